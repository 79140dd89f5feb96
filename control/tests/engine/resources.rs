//! Child SAs for single workers (RFC 9611), both roles.

use std::collections::BTreeSet;
use std::time::Duration;

use mobikex::config::{Config, DpdAction, StartAction};
use mobikex::ike::{ChildEvent, ChildSaView, Command, Event};
use mobikex_common::sa::ChildSaParams;

use crate::pair::{Pair, config};
use crate::world::{A, B, World, configs};

const SECOND: Duration = Duration::from_secs(1);

/// Side `me` with so many workers.
fn with_workers(me: usize, workers: usize) -> Config {
    let mut c = config(me);
    c.daemon.workers = Some(workers);
    c
}

fn refusing(mut c: Config) -> Config {
    c.connections[0].children[0].per_cpu_sas = Some(false);
    c
}

/// Two hosts with so many workers each, and the first Child SA.
fn up(seed: u64, workers: [usize; 2]) -> Pair {
    let mut pair = Pair::with(seed, with_workers(0, workers[0]), with_workers(1, workers[1]));
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_one_tunnel();
    pair
}

/// All workers of a host send.
fn busy(pair: &mut Pair, host: usize) {
    pair.busy_workers(host);
    for _ in 0..200 {
        pair.advance(Duration::from_millis(10));
        pair.assert_nothing_is_lost();
    }
}

/// The Child SAs of a host that are in use.
fn installed(pair: &Pair, host: usize) -> Vec<ChildSaView> {
    let views = pair.views(host).into_iter().filter(|v| v.state == "ESTABLISHED");
    views.flat_map(|v| v.children).filter(|c| c.state == "INSTALLED").collect()
}

/// Those that are for single workers, by them.
fn own(pair: &Pair, host: usize) -> Vec<u32> {
    let views = installed(pair, host);
    let mut workers: Vec<_> = views.iter().filter_map(|c| c.resource.as_ref()?.worker).collect();
    workers.sort_unstable();
    workers
}

/// On which workers' SAs a host sends, `None` for the common one.
fn senders(pair: &Pair, host: usize) -> Vec<Option<u32>> {
    let mut senders: Vec<_> = pair.sending(host).iter().map(|p| p.worker).collect();
    senders.sort_unstable();
    senders
}

/// What single workers have reaches that worker, and all SAs are of one kind.
fn assert_steered(pair: &Pair, host: usize, workers: usize) {
    let of = |p: &ChildSaParams| (p.suite.cipher, p.suite.integrity, p.suite.esn, p.mode, p.ts_local.clone());
    let all: Vec<_> = pair.hosts[host].children.values().map(|(p, _)| p).collect();
    for params in &all {
        assert_eq!(of(params), of(all[0]));
        if let Some(worker) = params.worker {
            assert_eq!(params.spi_in.worker(workers), worker as usize);
        }
    }
    let keys: BTreeSet<_> = all.iter().map(|p| p.keys_in.encryption.clone()).collect();
    assert_eq!(keys.len(), all.len(), "each has keys of its own");
}

#[test]
fn the_first_packet_makes_one_sa_for_each_worker() {
    for host in 0..2 {
        let mut pair = up(1, [2, 2]);
        for host in 0..2 {
            assert_eq!(installed(&pair, host)[0].resource.as_ref().unwrap().worker, None);
        }
        busy(&mut pair, host);
        for host in 0..2 {
            assert_eq!(own(&pair, host), [0, 1], "{}", pair.story(host));
            assert_eq!(senders(&pair, host), [None, Some(0), Some(1)]);
            assert_steered(&pair, host, 2);
        }
        // The identifiers are unique, and for people alone.
        let ids: BTreeSet<_> =
            installed(&pair, 0).into_iter().filter_map(|c| c.resource.and_then(|r| r.peer)).collect();
        assert_eq!(ids.len(), 2);
        let up = |e: &&Event| matches!(e, Event::ChildUp { worker: Some(_), .. });
        assert_eq!(pair.hosts[1 - host].events.iter().filter(up).count(), 2);
        // Everything is there, so that there is nothing to tell any more.
        let sent = pair.sent.len();
        busy(&mut pair, 0);
        busy(&mut pair, 1);
        assert_eq!(pair.sent.len(), sent);
    }
}

#[test]
fn a_peer_that_does_not_say_so_is_never_asked() {
    for (a, b) in [
        (with_workers(0, 2), refusing(with_workers(1, 2))),
        (refusing(with_workers(0, 2)), with_workers(1, 2)),
        (with_workers(0, 2), config(1)),
        (with_workers(0, 1), with_workers(1, 1)),
    ] {
        let mut pair = Pair::with(2, a, b);
        pair.up(0);
        pair.advance(SECOND);
        let sent = pair.sent.len();
        for host in 0..2 {
            busy(&mut pair, host);
            assert_eq!(installed(&pair, host)[0].resource, None);
        }
        assert_eq!(pair.sent.len(), sent);
        pair.assert_one_tunnel();
    }
}

#[test]
fn peers_that_get_addresses_from_us_have_one_unless_it_is_said() {
    for (said, more) in [(None, 0), (Some(true), 2)] {
        let [mut a, mut b] = crate::configuration::configs("0.0.0.0", "v4 { addrs = 10.3.0.0/30\n }");
        [&mut a, &mut b].into_iter().for_each(|c| c.daemon.workers = Some(2));
        b.connections[0].children[0].per_cpu_sas = said;
        let mut pair = Pair::with(3, a, b);
        pair.up(0);
        pair.advance(SECOND);
        busy(&mut pair, 0);
        assert_eq!(own(&pair, 0).len(), more, "{}", pair.story(1));
    }
}

#[test]
fn more_than_is_wanted_is_refused_with_ts_max_queue_and_not_asked_for_again() {
    let few = |me| {
        let mut c = with_workers(me, 1);
        c.connections[0].children[0].per_cpu_sas = Some(true);
        c
    };
    let mut pair = Pair::with(4, with_workers(0, 40), few(1));
    pair.up(0);
    pair.advance(SECOND);
    let refusals = |pair: &Pair| pair.story(1).matches("sending TS_MAX_QUEUE").count();
    busy(&mut pair, 0);
    pair.advance(60 * SECOND);
    assert_eq!((own(&pair, 0).len(), own(&pair, 1).len()), (16, 16));
    assert!(own(&pair, 1).iter().all(|worker| *worker == 0), "its only worker receives them all");
    assert_eq!(senders(&pair, 1), [None, Some(0)], "and sends on one of them");
    let before = pair.sent.len();
    for _ in 0..5 {
        busy(&mut pair, 0);
    }
    assert_eq!(pair.sent.len(), before, "{}", pair.story(0));
    // What a new IKE SA allows is asked anew.
    pair.rekey(0, None);
    pair.advance(5 * SECOND);
    let before = pair.sent.len();
    busy(&mut pair, 0);
    assert!(pair.sent.len() > before);
    assert_eq!(own(&pair, 0).len(), 16);
    assert_eq!(refusals(&pair), 0, "the story holds events alone");
}

#[test]
fn the_packet_that_was_the_reason_may_be_named() {
    // A peer that names a packet has it in front of its selectors, also of the first one.
    let packet = |me: usize, net: &str| {
        let mut c = with_workers(me, 2);
        c.connections[0].children[0].local_ts.insert(0, crate::pair::ts(net));
        c
    };
    let mut pair = Pair::with(14, packet(0, "10.1.0.9/32[udp/53]"), with_workers(1, 2));
    pair.up(0);
    pair.advance(SECOND);
    busy(&mut pair, 0);
    assert_eq!((own(&pair, 0), own(&pair, 1)), (vec![0, 1], vec![0, 1]), "{}", pair.story(1));
    let all: BTreeSet<_> = pair.hosts[1].children.values().map(|(p, _)| p.policy).collect();
    assert_eq!(all.len(), 1);
}

#[test]
fn what_the_peer_asks_for_goes_to_the_worker_with_the_fewest() {
    let mut pair = up(5, [4, 2]);
    busy(&mut pair, 0);
    assert_eq!((own(&pair, 0), own(&pair, 1)), (vec![0, 1, 2, 3], vec![0, 0, 1, 1]));
    assert_eq!(senders(&pair, 0), [None, Some(0), Some(1), Some(2), Some(3)]);
    assert_eq!(senders(&pair, 1), [None, Some(0), Some(1)]);
    assert_steered(&pair, 1, 2);
    busy(&mut pair, 1);
    assert_eq!(own(&pair, 1).len(), 4, "its workers have what they need");
    // Both directions of one that it does not send on are rekeyed all the same.
    pair.rekey(1, Some("net"));
    for _ in 0..100 {
        pair.advance(Duration::from_millis(500));
        pair.assert_nothing_is_lost();
    }
    assert_eq!((own(&pair, 0), own(&pair, 1)), (vec![0, 1, 2, 3], vec![0, 0, 1, 1]));
    // Where the sending one goes another takes its place.
    let first = pair.sending(1).iter().find(|p| p.worker == Some(0)).unwrap().id;
    let now = pair.now;
    pair.hosts[1].endpoint.handle_child_event(now, ChildEvent::HardLimit(first));
    pair.collect();
    pair.advance(2 * SECOND);
    assert_eq!((senders(&pair, 1), own(&pair, 1)), (vec![None, Some(0), Some(1)], vec![0, 1, 1]));
}

#[test]
fn requests_that_cross_leave_each_worker_with_one_and_lose_nothing() {
    for seed in 0..40 {
        let mut pair = up(100 + seed, [3, 3]);
        (pair.loss, pair.reordering) = if seed % 2 == 0 { (0, 0) } else { (20, 20) };
        let now = pair.now;
        for host in 0..2 {
            // Not in the same order.
            let common = pair.sending(host)[0].id;
            let worker = (seed as u32 + host as u32) % 3;
            pair.hosts[host].endpoint.handle_child_event(now, ChildEvent::OwnSa(common, worker));
            pair.collect();
        }
        assert!(pair.settles(100), "seed {seed}");
        for host in 0..2 {
            let workers: BTreeSet<_> = own(&pair, host).into_iter().collect();
            assert_eq!(workers, [0, 1, 2].into(), "seed {seed}, host {host}: {}", pair.story(host));
            assert!(own(&pair, host).len() <= 6, "seed {seed}: {:?}", own(&pair, host));
            assert_eq!(senders(&pair, host), [None, Some(0), Some(1), Some(2)], "seed {seed}");
            assert_steered(&pair, host, 3);
        }
    }
}

#[test]
fn each_is_rekeyed_by_itself_and_keeps_its_worker() {
    for seed in 0..20 {
        let mut pair = up(200 + seed, [2, 2]);
        busy(&mut pair, 0);
        let before: Vec<_> = pair.sending(0).iter().map(|p| p.spi_in).collect();
        let steered = |pair: &Pair| {
            let mut to: Vec<_> = pair.sending(0).iter().map(|p| (p.worker, p.spi_in.worker(2))).collect();
            to.sort_unstable();
            to
        };
        let places = steered(&pair);
        (pair.loss, pair.reordering) = if seed % 2 == 0 { (0, 0) } else { (20, 20) };
        // From one side, from both at once, and with the IKE SA.
        pair.rekey(0, Some("net"));
        if seed % 4 >= 2 {
            pair.rekey(1, Some("net"));
        }
        if seed % 3 == 0 {
            pair.rekey(1, None);
        }
        assert!(pair.settles(100), "seed {seed}");
        for host in 0..2 {
            assert_eq!(own(&pair, host), [0, 1], "seed {seed}: {}", pair.story(host));
            assert_eq!(senders(&pair, host), [None, Some(0), Some(1)], "seed {seed}");
            assert_eq!(installed(&pair, host).len(), 3, "seed {seed}");
        }
        assert!(pair.sending(0).iter().all(|p| !before.contains(&p.spi_in)), "all are new");
        assert_eq!(steered(&pair), places, "also the common one is received where it was");
    }
}

#[test]
fn what_is_closed_falls_back_to_the_common_one_and_comes_back_with_traffic() {
    for host in 0..2 {
        let mut pair = up(6, [2, 2]);
        busy(&mut pair, 0);
        let id = pair.sending(host).iter().find(|p| p.worker == Some(1)).unwrap().id;
        let now = pair.now;
        pair.hosts[host].endpoint.handle_child_event(now, ChildEvent::HardLimit(id));
        pair.collect();
        for _ in 0..40 {
            // Not again before the old one is gone for good.
            pair.busy_workers(0);
            pair.advance(Duration::from_millis(100));
            pair.assert_nothing_is_lost();
            assert_eq!(own(&pair, 0), [0]);
        }
        assert_eq!((senders(&pair, 0), senders(&pair, 1)), (vec![None, Some(0)], vec![None, Some(0)]));
        pair.advance(5 * SECOND);
        assert_eq!(own(&pair, 0), [0], "without traffic it stays away");
        busy(&mut pair, 1 - host);
        assert_eq!((own(&pair, 0), own(&pair, 1)), (vec![0, 1], vec![0, 1]));
        let gone = |e: &&Event| matches!(e, Event::ChildDown { .. });
        assert_eq!(pair.hosts[0].events.iter().filter(gone).count(), 1);
    }
}

#[test]
fn without_the_common_one_the_others_go_on() {
    let mut pair = up(7, [2, 2]);
    busy(&mut pair, 0);
    let common = pair.sending(0).iter().find(|p| p.worker.is_none()).unwrap().id;
    let now = pair.now;
    pair.hosts[0].endpoint.handle_child_event(now, ChildEvent::HardLimit(common));
    pair.collect();
    pair.advance(20 * SECOND);
    for host in 0..2 {
        assert_eq!(senders(&pair, host), [Some(0), Some(1)]);
    }
    pair.rekey(1, Some("net"));
    pair.advance(20 * SECOND);
    assert_eq!((own(&pair, 0), senders(&pair, 1)), (vec![0, 1], vec![Some(0), Some(1)]));
    pair.down(1, None);
    pair.advance(20 * SECOND);
    pair.assert_nothing_is_left();
}

#[test]
fn all_go_and_come_back_together() {
    for (close, dpd) in [
        (StartAction::None, DpdAction::Clear),
        (StartAction::Trap, DpdAction::Trap),
        (StartAction::Start, DpdAction::Restart),
    ] {
        for dead in [false, true] {
            let mut a = with_workers(0, 2);
            let child = &mut a.connections[0].children[0];
            (child.close_action, child.dpd_action) = (close, dpd);
            let mut b = with_workers(1, 2);
            [&mut a, &mut b]
                .into_iter()
                .for_each(|c| (c.connections[0].dpd_delay, c.connections[0].keyingtries) = (10 * SECOND, 0));
            let mut pair = Pair::with(8, a, b);
            pair.up(0);
            pair.advance(SECOND);
            busy(&mut pair, 0);
            if dead {
                pair.cut(true);
                pair.advance(1000 * SECOND);
                pair.cut(false);
                pair.advance(1000 * SECOND);
            } else {
                pair.down(1, Some("net"));
                pair.advance(20 * SECOND);
            }
            let what = format!("{close:?}, dead {dead}: {}", pair.story(0));
            assert_eq!(!pair.hosts[0].traps.is_empty(), close == StartAction::Trap, "{what}");
            let common: &[_] = if close == StartAction::Start { &[None] } else { &[] };
            assert_eq!(senders(&pair, 0), common, "{what}");
            // What comes back may have several again.
            let now = pair.now;
            for policy in pair.hosts[0].traps.clone() {
                pair.hosts[0].endpoint.handle_child_event(now, ChildEvent::Acquire(policy));
            }
            pair.collect();
            pair.advance(2 * SECOND);
            busy(&mut pair, 0);
            let many: &[_] = if close == StartAction::None { &[] } else { &[None, Some(0), Some(1)] };
            assert_eq!(senders(&pair, 0), many, "{what}");
        }
    }
}

#[test]
fn what_is_taken_down_does_not_grow_again() {
    // While a further one is under way, or waits.
    for delay in [0, 5, 15, 25, 35] {
        let mut pair = up(9, [3, 3]);
        pair.busy_workers(0);
        pair.advance(Duration::from_millis(delay));
        pair.down(0, Some("net"));
        pair.advance(20 * SECOND);
        for host in 0..2 {
            let left = installed(&pair, host);
            assert!(left.is_empty(), "{delay} ms, host {host}: {}", pair.story(host));
            assert!(pair.hosts[host].children.is_empty());
        }
    }
}

#[test]
fn what_nothing_goes_over_is_closed_but_not_the_common_one() {
    let mut a = with_workers(0, 2);
    a.connections[0].children[0].inactivity = 60 * SECOND;
    let mut pair = Pair::with(10, a, with_workers(1, 2));
    pair.up(0);
    pair.advance(SECOND);
    busy(&mut pair, 0);
    pair.traffic(0, false);
    // They go one by one, the common one last.
    for _ in 0..200 {
        pair.advance(SECOND);
        let senders = senders(&pair, 0);
        assert!(senders.is_empty() || senders[0].is_none(), "{senders:?}");
    }
    assert!(installed(&pair, 0).is_empty());
}

#[test]
fn a_new_proof_takes_all_of_them_over() {
    for start in [StartAction::None, StartAction::Trap] {
        let mut c = [with_workers(0, 2), with_workers(1, 2)];
        c[0].connections[0].reauth_time = 600 * SECOND;
        c[0].connections[0].over_time = 60 * SECOND;
        c[0].connections[0].children[0].start_action = start;
        let [a, b] = c;
        let mut pair = Pair::with(11, a, b);
        pair.up(0);
        pair.advance(SECOND);
        busy(&mut pair, 0);
        for _ in 0..4 * 700 {
            pair.advance(Duration::from_millis(250));
            pair.assert_nothing_is_lost();
        }
        busy(&mut pair, 0);
        for host in 0..2 {
            assert_eq!(own(&pair, host), [0, 1], "{}", pair.story(host));
            assert_eq!(senders(&pair, host), [None, Some(0), Some(1)]);
        }
    }
}

#[test]
fn all_of_them_have_the_addresses_of_the_tunnel() {
    let mut configs = configs(|_| {});
    configs.iter_mut().for_each(|c| c.daemon.workers = Some(2));
    let mut world = World::up(12, configs, [&A[..2], &B[..2]]);
    world.busy_workers(0);
    world.advance(5 * SECOND);
    let sets = |world: &World, host: usize| -> BTreeSet<Vec<String>> {
        let sends = world.hosts[host].children.values().filter(|(_, outbound)| *outbound);
        let paths = |p: &ChildSaParams| {
            let mut paths: Vec<_> =
                p.addresses.paths.iter().map(|p| format!("{} {}", p.path, p.weight)).collect();
            paths.sort_unstable();
            paths
        };
        sends.map(|(p, _)| paths(p)).collect()
    };
    for host in 0..2 {
        assert_eq!(world.hosts[host].children.len(), 3);
        assert_eq!(sets(&world, host).len(), 1, "{:?}", sets(&world, host));
        assert_eq!(sets(&world, host).first().unwrap().len(), 4);
    }
    world.remove(0, A[0]);
    world.advance(5 * SECOND);
    world.add(0, A[0]);
    world.replace(1, B[1], "198.51.100.77");
    world.advance(20 * SECOND);
    for host in 0..2 {
        assert_eq!(sets(&world, host).len(), 1, "{:?}", sets(&world, host));
        assert!(sets(&world, host).first().unwrap().iter().any(|path| path.contains("198.51.100.77")));
    }
    // An action by hand on a child is about all its SAs.
    world.command(
        0,
        Command::Address {
            connection: "home".into(),
            child: Some("net".into()),
            action: mobikex::ike::AddressAction::Remove(A[1].parse().unwrap()),
            check: false,
            inner: false,
        },
    );
    world.advance(5 * SECOND);
    assert_eq!(sets(&world, 1).len(), 1);
    assert!(
        !sets(&world, 1).first().unwrap().iter().any(|path| path.contains(A[1]) && !path.ends_with(" 0"))
    );
}
