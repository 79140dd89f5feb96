//! Two IKE SAs of the same two with the same Child SA, as a peer makes them that proves itself anew by itself, and how one of the
//! two ends: by DELETE of the IKE SA as a whole, which is how most implementations do it.

use std::time::Duration;

use super::Command;
use super::child::LINGER;
use super::tasks::Task;
use super::testing::Done::{Activate, Deactivate, Install, InstallTrap, Remove, RemovePolicy, Sent};
use super::testing::{Done, Pair};
use crate::config::{Connection, MobikeX, StartAction, TsPattern, Unique};

const SECOND: Duration = Duration::from_secs(1);

/// A tunnel that is some time old, and nothing noted of what has happened so far.
fn old(change: impl Fn(usize, &mut Connection)) -> Pair {
    let mut pair = Pair::up(change);
    pair.run(60 * SECOND);
    pair.done = Default::default();
    pair
}

/// End 0 deletes an IKE SA with all that it has.
fn delete(pair: &mut Pair, id: u32) {
    pair.sa_by_id(0, id, |sa, ctx| sa.add_task(ctx, Task::DeleteIke("over".into())));
}

/// What an end has done since this was asked last.
fn done(pair: &mut Pair, end: usize) -> Vec<Done> {
    std::mem::take(&mut pair.done[end])
}

/// The same but for messages.
fn changes(pair: &mut Pair, end: usize) -> Vec<Done> {
    done(pair, end).into_iter().filter(|what| *what != Sent).collect()
}

/// The states of an end's Child SAs, by the number of their IKE SA.
fn states(pair: &Pair, end: usize) -> Vec<(u32, &'static str)> {
    let views = pair.ends[end].ike_sas(pair.now);
    views.iter().flat_map(|sa| sa.children.iter().map(|child| (sa.id, child.state))).collect()
}

#[test]
fn a_new_proof_takes_over_once_the_peer_has_it_and_the_old_one_lingers() {
    let mut pair = old(|_, _| {});
    pair.start_beside(0);
    pair.run(SECOND);
    assert_eq!(changes(&mut pair, 0), [Install(2, true)], "who has asked has the answer");
    assert_eq!(changes(&mut pair, 1), [Install(2, false), Activate(2)]);
    delete(&mut pair, 1);
    pair.run(SECOND);
    for end in 0..2 {
        assert_eq!(states(&pair, end), [(2, "INSTALLED"), (2, "DELETED")]);
        assert_eq!(changes(&mut pair, end), [Deactivate(1)], "it goes on receiving");
        assert!(pair.story(end).contains("CHILD_SA net{1} closed"), "{}", pair.story(end));
    }
    pair.run(LINGER);
    for end in 0..2 {
        assert_eq!(states(&pair, end), [(2, "INSTALLED")]);
        assert_eq!(changes(&mut pair, end), [Remove(1)]);
    }
    // Nobody else has the policy now.
    delete(&mut pair, 2);
    pair.run(SECOND);
    for end in 0..2 {
        assert_eq!(changes(&mut pair, end), [Remove(2), RemovePolicy]);
    }
}

/// The peer has sent on the new SA of end 1.
fn first_packet(pair: &mut Pair) {
    pair.sa_by_id(1, 2, |sa, ctx| {
        let id = sa.children[0].id;
        sa.peer_sends_on(ctx, id);
    });
}

#[test]
fn what_is_on_its_way_on_the_old_sas_arrives_before_the_peer_learns_that_they_are_gone() {
    for (used, asks_again) in [(false, false), (false, true), (true, false)] {
        let mut pair = old(|_, conn| (conn.mobike, conn.mobike_x) = (false, MobikeX::No));
        pair.start_beside(0);
        pair.run(Duration::ZERO);
        assert_eq!(changes(&mut pair, 1), [Install(2, false)]);
        if used {
            first_packet(&mut pair);
            assert_eq!(changes(&mut pair, 1), [Activate(2)], "the peer has it");
        }
        delete(&mut pair, 1);
        assert_eq!(done(&mut pair, 0).last(), Some(&Sent));
        let request = pair.take(1, |_| true).unwrap();
        pair.deliver(1, request.clone());
        let now: &[Done] = if used { &[] } else { &[Activate(2)] };
        assert_eq!(done(&mut pair, 1), now, "the answer has to wait");
        assert_eq!(pair.ends[1].ike_sas(pair.now)[0].state, "DELETING");
        if asks_again {
            pair.deliver(1, request);
            assert_eq!(done(&mut pair, 1), [Deactivate(1), Sent]);
        }
        pair.run(SECOND);
        assert_eq!(pair.ends[0].ike_sas(pair.now).len(), 1);
        assert_eq!(states(&pair, 1), [(2, "INSTALLED"), (2, "DELETED")]);
    }
}

#[test]
fn when_the_new_one_goes_first_the_old_one_sends_again() {
    for several in [false, true] {
        let mut pair = old(|_, _| {});
        if several {
            // There are probes, and who sends has to send them.
            pair.add(0, "203.0.113.1");
            pair.add(1, "198.51.100.2");
            pair.run(10 * SECOND);
            pair.done = Default::default();
        }
        pair.start_beside(0);
        pair.run(SECOND);
        pair.done = Default::default();
        delete(&mut pair, 2);
        assert_eq!(done(&mut pair, 0), [Activate(1), Sent], "the peer will not have it after that message");
        pair.run(2 * LINGER);
        for end in 0..2 {
            let last: &[Done] =
                if end == 0 { &[Deactivate(2), Remove(2)] } else { &[Activate(1), Deactivate(2), Remove(2)] };
            assert_eq!(changes(&mut pair, end), last);
            assert_eq!(states(&pair, end), [(1, "INSTALLED")]);
        }
    }
}

#[test]
fn an_old_one_that_is_to_be_the_only_one_no_more_has_time_to_receive() {
    let mut pair = old(|end, conn| conn.unique = if end == 1 { Unique::Replace } else { Unique::No });
    pair.start_beside(0);
    pair.run(SECOND);
    assert_eq!(changes(&mut pair, 1), [Install(2, false), Activate(2)]);
    assert_eq!(pair.ends[1].ike_sas(pair.now).len(), 2);
    pair.run(3 * LINGER);
    assert_eq!(pair.ends[1].ike_sas(pair.now).len(), 1);
    pair.run(LINGER);
    assert_eq!([states(&pair, 0), states(&pair, 1)], [0, 1].map(|_| vec![(2, "INSTALLED")]));
}

#[test]
fn one_with_other_selectors_has_a_policy_of_its_own() {
    let mut pair = old(|_, _| {});
    pair.sa(0, |sa, _| {
        let mut conn = (*sa.conn).clone();
        conn.children[0].local_ts = vec![TsPattern::Fixed("10.1.2.0/24".parse().unwrap())];
        sa.conn = conn.into();
    });
    pair.start_beside(0);
    pair.run(SECOND);
    delete(&mut pair, 1);
    pair.run(SECOND);
    for end in 0..2 {
        assert_eq!(changes(&mut pair, end), [Install(2, true), Remove(1), RemovePolicy]);
    }
}

#[test]
fn a_trap_is_not_shared_by_two_peers() {
    let mut pair = Pair::with(|end, config| {
        let second = || "c.example".parse().unwrap();
        config.secrets[0].ids.push(second());
        if end == 0 {
            let mut other = Connection { name: "away".into(), ..config.connections[0].clone() };
            other.local.id = Some(second());
            config.connections.push(other);
        } else {
            config.connections[0].remote.id = None;
            config.connections[0].children[0].close_action = StartAction::Trap;
        }
    });
    let command = |pair: &mut Pair, up: bool, connection: &str| {
        let connection = connection.to_string();
        let child = None;
        let command =
            if up { Command::Up { connection, child } } else { Command::Down { connection, child } };
        pair.command(0, command);
        pair.run(SECOND);
        changes(pair, 1)
    };
    assert_eq!(command(&mut pair, true, "home"), [Install(1, true)]);
    assert_eq!(command(&mut pair, false, "home"), [InstallTrap, Remove(1)], "its policy waits for traffic");
    assert_eq!(command(&mut pair, true, "away"), [Install(2, true)]);
    assert_eq!(command(&mut pair, true, "home"), [Install(3, true)]);
    assert_eq!(command(&mut pair, false, "away"), [Remove(2)]);
    assert_eq!(
        command(&mut pair, false, "home"),
        [InstallTrap, Remove(3), RemovePolicy],
        "one trap is enough"
    );
}

#[test]
fn what_the_new_one_lacks_ends_as_close_action_says() {
    for action in [StartAction::Trap, StartAction::Start] {
        let mut pair = Pair::up(|end, conn| {
            let nets = ["10.3.0.0/16", "10.4.0.0/16"].map(|net| vec![TsPattern::Fixed(net.parse().unwrap())]);
            let mut lab = conn.children[0].clone();
            lab.name = "lab".into();
            (lab.local_ts, lab.remote_ts) = (nets[end].clone(), nets[1 - end].clone());
            lab.close_action = if end == 1 { action } else { StartAction::None };
            conn.children.push(lab);
        });
        pair.command(0, Command::Up { connection: "home".into(), child: Some("lab".into()) });
        pair.run(60 * SECOND);
        pair.start_beside(0);
        pair.run(Duration::ZERO);
        pair.done = Default::default();
        // The answer waits, since what it is about has been sent on until now.
        delete(&mut pair, 1);
        pair.run(SECOND);
        let seen = changes(&mut pair, 1);
        assert!(!seen.contains(&RemovePolicy) || action == StartAction::Start, "{seen:?}");
        assert_eq!(seen.contains(&InstallTrap), action == StartAction::Trap, "{seen:?}");
        let there =
            pair.ends[1].ike_sas(pair.now).iter().flat_map(|sa| &sa.children).any(|c| c.name == "lab");
        assert_eq!(there, action == StartAction::Start);
    }
}
