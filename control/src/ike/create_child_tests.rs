//! Answers that make a Child SA at the peer and are of no use here.

use std::time::Duration;

use super::Command;
use super::testing::{Done, Pair};
use super::window::Exchange;
use crate::config::{StartAction, TsPattern};

const SECOND: Duration = Duration::from_secs(1);

/// The answer to what end 0 is asking for is wider than what it has offered.
fn spoil(pair: &mut Pair) {
    pair.sa(0, |sa, _| {
        let Some(Exchange::CreateChild(offer)) = sa.pending.as_mut().map(|p| &mut p.exchange) else {
            panic!("nothing is asked for");
        };
        offer.ts_local = vec!["10.1.2.0/24".parse().unwrap()];
    });
}

/// The states of an end's Child SAs, by name.
fn states(pair: &Pair, end: usize) -> Vec<String> {
    let views = pair.ends[end].ike_sas(pair.now);
    let shown = views.iter().flat_map(|sa| &sa.children).map(|c| format!("{}{} {}", c.name, c.id.0, c.state));
    shown.collect()
}

#[test]
fn what_we_do_not_accept_the_peer_deletes_as_well() {
    let mut pair = Pair::up(|end, conn| {
        let nets = ["10.3.0.0/16", "10.4.0.0/16"].map(|net| vec![TsPattern::Fixed(net.parse().unwrap())]);
        let mut lab = conn.children[0].clone();
        lab.name = "lab".into();
        (lab.local_ts, lab.remote_ts) = (nets[end].clone(), nets[1 - end].clone());
        conn.children.push(lab);
    });
    pair.command(0, Command::Up { connection: "home".into(), child: Some("lab".into()) });
    spoil(&mut pair);
    pair.run(SECOND);
    assert!(pair.story(0).contains("CHILD_SA lab failed: traffic selectors"), "{}", pair.story(0));
    assert_eq!(states(&pair, 0), ["net1 INSTALLED"]);
    assert_eq!(states(&pair, 1), ["net1 INSTALLED", "lab2 DELETED"]);
}

#[test]
fn what_could_not_be_replaced_stays_and_is_tried_again() {
    let mut pair = Pair::up(|_, conn| conn.children[0].close_action = StartAction::Trap);
    pair.command(0, Command::Rekey { connection: "home".into(), child: Some("net".into()) });
    spoil(&mut pair);
    pair.run(SECOND);
    assert_eq!(states(&pair, 0), ["net1 INSTALLED"]);
    for done in &pair.done {
        assert!(!done.contains(&Done::RemovePolicy) && !done.contains(&Done::InstallTrap), "{done:?}");
    }
    pair.run(30 * SECOND);
    for end in 0..2 {
        let states = states(&pair, end);
        assert!(
            states.len() == 1 && states[0].ends_with("INSTALLED") && states[0] != "net1 INSTALLED",
            "{states:?}"
        );
    }
}
