//! MOBIKE (RFC 4555) and MOBIKE-X between two endpoints, in fake time.
//!
//! Tests named `m1_...` and so on hold the invariants of the project's list of attacks on mobility.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

mod attacker;
mod chance;
mod faults;
mod mobike_x;
mod model;
mod path_test;
mod puppet;
mod rfc4555;
mod schedule;
mod tfc;
mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use mobikex::config::{MobikeX, ReturnRoutability};
use mobikex::ike::{AddressAction, Command, Event, Version};
use mobikex_common::addr::Scheduler;
use world::{A, B, Nat, World, config, configs, ip};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn version_1(c: &mut mobikex::config::Connection) {
    c.mobike_x = MobikeX::No;
}

fn pair(a: &str, b: &str) -> String {
    format!("{a}-{b}")
}

// ---- version 1 -------------------------------------------------------------------------------------------------------

#[test]
fn mobike_moves_the_ike_sa_and_its_children_together() {
    let mut world = World::up(1, configs(version_1), [&A[..1], &B[..1]]);
    assert_eq!(world.view(0).mobike, Version::Mobike);
    world.replace(0, A[0], A[1]);
    world.advance(SECOND);
    assert_eq!(world.carrying(0), [pair(A[1], B[0])]);
    assert_eq!(world.carrying(1), [pair(B[0], A[1])]);
    assert_eq!(world.view(1).remote.ip(), ip(A[1]));
    world.assert_traffic_arrives();
}

#[test]
fn what_lost_its_address_is_taken_down_at_once() {
    let down =
        |child: Option<&str>| Command::Down { connection: "home".into(), child: child.map(str::to_string) };
    for child in [None, Some("net")] {
        // Without MOBIKE nothing moves, but the peer can be told from elsewhere.
        let without = configs(|c| (c.mobike, c.mobike_x) = (false, MobikeX::No));
        let mut world = World::up(6, without, [&A[..2], &B[..1]]);
        world.remove(0, A[0]);
        world.command(0, down(child));
        world.advance(SECOND);
        for host in 0..2 {
            assert!(world.hosts[host].children.values().all(|(_, sends)| !sends), "{}", world.story(host));
            let left = world.hosts[host].endpoint.ike_sas(world.now).len();
            assert_eq!(left, usize::from(child.is_some()), "{}", world.story(host));
        }
        // Where there is no other address, it ends here alone, with MOBIKE and without.
        for mobike in [false, true] {
            let one = configs(|c| (c.mobike, c.mobike_x) = (mobike, MobikeX::No));
            let mut world = World::up(7, one, [&A[..1], &B[..1]]);
            world.remove(0, A[0]);
            world.command(0, down(child));
            world.advance(MS);
            let (ours, theirs) = (&world.hosts[0], &world.hosts[1]);
            assert!(ours.children.values().all(|(_, sends)| !sends), "{}", world.story(0));
            assert_eq!(ours.endpoint.ike_sas(world.now).len(), usize::from(child.is_some()));
            assert_eq!(theirs.endpoint.ike_sas(world.now).len(), 1);
            assert!(world.story(0).contains("here alone, as 192.0.2.1 is gone"), "{}", world.story(0));
        }
    }
}

#[test]
fn mobike_moves_between_families() {
    let mut world = World::up(2, configs(version_1), [&A[..1], &[B[0], B[2]]]);
    world.replace(0, A[0], A[2]);
    world.advance(5 * SECOND);
    assert_eq!(world.carrying(0), [pair(A[2], B[2])], "by the responder's additional address");
    assert_eq!(world.carrying(1), [pair(B[2], A[2])]);
}

#[test]
fn mobike_finds_another_pair_when_the_link_is_cut() {
    let mut world = World::up(
        3,
        configs(|c| {
            version_1(c);
            c.dpd_delay = 5 * SECOND;
        }),
        [&A[..2], &B[..2]],
    );
    world.cut.insert(ip(A[0]));
    world.advance(20 * SECOND);
    world.assert_one_tunnel();
    world.assert_traffic_arrives();
    world.cut.clear();
    world.cut.insert(ip(B[0]));
    world.advance(20 * SECOND);
    world.assert_traffic_arrives();
}

#[test]
fn mobike_responder_tells_of_its_addresses_and_moves_by_itself_only_when_it_must() {
    let mut world = World::up(4, configs(version_1), [&A[..1], &B[..1]]);
    world.add(1, B[1]);
    world.advance(SECOND);
    assert_eq!(world.view(0).alternates, [ip(B[1]), ip(B[0])]);
    assert_eq!(world.carrying(1), [pair(B[0], A[0])]);
    world.remove(1, B[0]);
    world.advance(5 * SECOND);
    world.assert_traffic_arrives();
    assert_eq!(world.carrying(0), [pair(A[0], B[1])]);
}

#[test]
fn m1_m13_only_the_original_initiator_may_update_in_version_1() {
    let mut world = World::up(5, configs(version_1), [&A[..1], &B[..1]]);
    world.command(1, Command::Rekey { connection: "home".into(), child: None });
    world.advance(5 * SECOND);
    // The responder started the latest IKE SA, yet the initiator of the first one decides.
    world.replace(0, A[0], A[1]);
    world.advance(2 * SECOND);
    assert_eq!(world.carrying(1), [pair(B[0], A[1])]);
}

// ---- versions --------------------------------------------------------------------------------------------------------

#[test]
fn versions_are_agreed_as_policies_allow() {
    let policies = [(false, MobikeX::No), (true, MobikeX::No), (true, MobikeX::Yes), (false, MobikeX::Yes)];
    for (seed, a) in policies.into_iter().enumerate() {
        for b in policies {
            let mut c = [config(0), config(1)];
            for (config, (mobike, x)) in c.iter_mut().zip([a, b]) {
                (config.connections[0].mobike, config.connections[0].mobike_x) = (mobike, x);
            }
            let world = World::up(seed as u64, c, [&A[..1], &B[..1]]);
            let expected = match (a, b) {
                ((_, MobikeX::Yes), (_, MobikeX::Yes)) => Version::MobikeX,
                ((true, _), (true, _)) => Version::Mobike,
                _ => Version::None,
            };
            assert_eq!(world.view(0).mobike, expected, "{a:?} {b:?}");
            for host in 0..2 {
                let paths = &world.sending(host).addresses.paths;
                assert!(paths.iter().any(|p| p.weight > 0) && paths.iter().all(|p| !p.limited), "{paths:?}");
            }
        }
    }
}

#[test]
fn m14_require_means_that_there_is_no_ike_sa_without() {
    for (required, other) in [(0, 1), (1, 0)] {
        let mut c = [config(0), config(1)];
        c[required].connections[0].mobike_x = MobikeX::Require;
        c[other].connections[0].mobike_x = MobikeX::No;
        let mut world = World::with(7, c, [&A[..1], &B[..1]]);
        world.command(0, Command::Up { connection: "home".into(), child: None });
        world.advance(5 * SECOND);
        for host in 0..2 {
            assert!(
                world.hosts[host].endpoint.ike_sas(world.now).is_empty(),
                "{required}: {}",
                world.story(host)
            );
            assert!(world.hosts[host].children.is_empty());
        }
        assert!(world.story(required).contains("MOBIKE-X is required"), "{}", world.story(required));
    }
}

#[test]
fn m14_none_in_mid_life_freezes_the_addresses() {
    let mut world = World::up(8, configs(|_| {}), [&A[..2], &B[..1]]);
    let before = (world.carrying(0), world.carrying(1));
    assert_eq!(before.0.len(), 2);
    let mut without = config(0);
    without.connections[0].mobike_x = MobikeX::No;
    let now = world.now;
    world.hosts[0].endpoint.set_config(now, without);
    world.advance(2 * SECOND);
    for host in 0..2 {
        assert_eq!(world.view(host).mobike, Version::None);
    }
    assert_eq!((world.carrying(0), world.carrying(1)), before);
    world.assert_one_tunnel();
}

// ---- version 2 -------------------------------------------------------------------------------------------------------

#[test]
fn all_addresses_of_both_sides_carry_traffic_at_once() {
    let mut world = World::up(10, configs(|_| {}), [&A[..2], &B[..2]]);
    assert_eq!(world.view(0).mobike, Version::MobikeX);
    world.advance(5 * SECOND);
    let all = [pair(A[0], B[0]), pair(A[0], B[1]), pair(A[1], B[0]), pair(A[1], B[1])];
    assert_eq!(world.carrying(0), all);
    assert_eq!(world.carrying(1).len(), 4);
    world.assert_traffic_arrives();
}

#[test]
fn addresses_join_and_leave() {
    let mut world = World::up(11, configs(|_| {}), [&A[..1], &B[..1]]);
    world.add(0, A[1]);
    world.advance(2 * SECOND);
    assert_eq!(world.carrying(1), [pair(B[0], A[0]), pair(B[0], A[1])]);
    world.remove(0, A[0]);
    assert_eq!(world.carrying(0), [pair(A[1], B[0])], "at once: the address is gone");
    world.advance(SECOND);
    assert_eq!(world.carrying(1), [pair(B[0], A[1])]);
    assert_eq!(world.view(1).remote.ip(), ip(A[1]), "the IKE SA has moved as well");
    world.add(0, A[2]);
    world.add(1, B[2]);
    world.advance(3 * SECOND);
    let mut expected = [pair(A[2], B[2]), pair(A[1], B[0])];
    expected.sort();
    assert_eq!(world.carrying(0), expected);
    world.assert_traffic_arrives();
}

#[test]
fn a_host_that_changes_its_only_address_is_followed() {
    for side in 0..2 {
        let mut world = World::up(12, configs(|_| {}), [&A[..1], &B[..1]]);
        let (old, new) = if side == 0 { (A[0], A[1]) } else { (B[0], B[1]) };
        world.replace(side, old, new);
        // Half a round trip later the peer sends to the new address, before it is checked.
        world.advance(15 * MS);
        let copies = &world.sending(1 - side).addresses;
        assert_eq!(copies.scheduler, Scheduler::Redundant);
        assert!(copies.paths.iter().any(|p| p.path.remote.ip() == ip(new) && p.weight > 0 && p.limited));
        world.advance(SECOND);
        assert_eq!(world.carrying(1 - side).len(), 1);
        world.assert_traffic_arrives();
        assert_eq!(world.scheduler(1 - side), Scheduler::Flow);
    }
}

#[test]
fn in_transport_mode_the_selectors_follow_the_addresses() {
    let mut world = World::up(
        17,
        configs(|c| {
            let any = mobikex::config::TsPattern::Dynamic("0.0.0.0/0[tcp]".parse().unwrap());
            let child = &mut c.children[0];
            child.mode = mobikex_common::sa::Mode::Transport;
            (child.local_ts, child.remote_ts) = (vec![any.clone()], vec![any]);
        }),
        [&A[..1], &B[..1]],
    );
    let selectors = |world: &World| {
        let (ours, theirs) = (world.sending(0), world.sending(1));
        assert_eq!((&ours.ts_local, &ours.ts_remote), (&theirs.ts_remote, &theirs.ts_local));
        let mut shown: Vec<_> = ours.ts_local.iter().map(ToString::to_string).collect();
        shown.sort();
        shown
    };
    assert_eq!(selectors(&world), ["192.0.2.1/32[tcp]"]);
    world.add(0, A[1]);
    world.advance(2 * SECOND);
    assert_eq!(selectors(&world), ["192.0.2.1/32[tcp]", "203.0.113.1/32[tcp]"]);
    for host in 0..2 {
        // What replaces the SA has all of them, also when another one comes meanwhile.
        let spi = world.sending(0).spi_in;
        world.command(host, Command::Rekey { connection: "home".into(), child: Some("net".into()) });
        world.advance(2 * MS);
        world.add(0, "192.0.2.77");
        world.advance(2 * SECOND);
        assert_ne!(world.sending(0).spi_in, spi);
        assert_eq!(selectors(&world).len(), 3, "{:?}", selectors(&world));
        world.remove(0, "192.0.2.77");
        world.advance(2 * SECOND);
        assert_eq!(selectors(&world).len(), 2);
    }
    world.remove(0, A[0]);
    world.advance(2 * SECOND);
    assert_eq!(selectors(&world), ["203.0.113.1/32[tcp]"]);
    world.replace(1, B[0], B[1]);
    world.advance(2 * SECOND);
    assert_eq!(world.sending(0).ts_remote[0].to_string(), "198.51.100.129/32[tcp]");
    world.assert_traffic_arrives();
}

#[test]
fn inner_addresses_change_within_policy_and_outlive_rekeying() {
    let mut c = [config(0), config(1)];
    for (host, config) in c.iter_mut().enumerate() {
        let ts = |text: &str| vec![mobikex::config::TsPattern::Fixed(text.parse().unwrap())];
        let child = &mut config.connections[0].children[0];
        (child.local_ts, child.remote_ts) =
            (ts(["10.1.0.5", "10.2.0.5"][host]), ts(["10.2.0.0/16", "10.1.0.0/16"][host]));
    }
    let mut world = World::up(18, c, [&A[..1], &B[..1]]);
    let inner = |world: &mut World, host: usize, old: &str, new: &str| {
        let action = AddressAction::Update { old: Some(ip(old)), new: ip(new) };
        let child = Some("net".to_string());
        world.command(
            host,
            Command::Address { connection: "home".into(), child, action, check: false, inner: true },
        );
        world.advance(SECOND);
    };
    let selectors = |world: &World| {
        let (ours, theirs) = (world.sending(0), world.sending(1));
        assert_eq!((&ours.ts_local, &ours.ts_remote), (&theirs.ts_remote, &theirs.ts_local));
        (ours.ts_local[0].to_string(), ours.ts_remote[0].to_string())
    };
    let expected = |a: &str, b: &str| (format!("{a}/32"), format!("{b}/32"));
    inner(&mut world, 0, "10.1.0.5", "10.1.0.9");
    assert_eq!(selectors(&world), expected("10.1.0.9", "10.2.0.5"));
    inner(&mut world, 1, "10.2.0.5", "10.2.0.9");
    assert_eq!(selectors(&world), expected("10.1.0.9", "10.2.0.9"));
    inner(&mut world, 0, "10.1.0.9", "172.16.0.9");
    assert_eq!(selectors(&world), expected("10.1.0.9", "10.2.0.9"), "policy has its say");
    assert!(world.story(0).contains("update inner 10.1.0.9 to 172.16.0.9: DOES_NOT_FIT_SPD"));
    for host in 0..2 {
        let spi = world.sending(0).spi_in;
        world.command(host, Command::Rekey { connection: "home".into(), child: Some("net".into()) });
        world.advance(2 * SECOND);
        assert_ne!(world.sending(0).spi_in, spi);
        assert_eq!(selectors(&world), expected("10.1.0.9", "10.2.0.9"));
    }
    world.assert_traffic_arrives();
}

#[test]
fn a_gap_without_any_address_is_bridged() {
    let mut world = World::up(13, configs(|_| {}), [&A[..1], &B[..1]]);
    world.remove(0, A[0]);
    world.advance(20 * SECOND);
    world.add(0, A[1]);
    world.advance(SECOND);
    world.assert_one_tunnel();
    world.assert_traffic_arrives();
    assert_eq!(world.carrying(1), [pair(B[0], A[1])]);
}

#[test]
fn both_ends_may_move_at_once() {
    let mut world = World::up(14, configs(|_| {}), [&A[..2], &B[..2]]);
    world.advance(3 * SECOND);
    world.remove(0, A[0]);
    world.remove(1, B[0]);
    world.advance(10 * SECOND);
    world.assert_one_tunnel();
    world.assert_traffic_arrives();
    assert_eq!(world.carrying(0), [pair(A[1], B[1])]);
}

#[test]
fn a_cut_link_is_left_within_three_probes_and_comes_back() {
    let mut world = World::up(15, configs(|_| {}), [&A[..2], &B[..1]]);
    world.advance(5 * SECOND);
    assert_eq!(world.carrying(0).len(), 2);
    world.cut.insert(ip(A[0]));
    world.advance(300 * MS);
    assert_eq!(world.carrying(0), [pair(A[1], B[0])], "{:#?}", world.view(0).paths);
    assert_eq!(world.carrying(1), [pair(B[0], A[1])]);
    world.advance(30 * SECOND);
    world.assert_one_tunnel();
    world.cut.clear();
    world.advance(3 * SECOND);
    assert_eq!(world.carrying(0).len(), 2, "{}", world.story(0));
    assert_eq!(world.carrying(1).len(), 2);
}

#[test]
fn a_path_that_died_in_a_pause_is_left_soon_after_the_traffic_goes_on() {
    let mut world = World::up(18, configs(|_| {}), [&A[..2], &B[..1]]);
    world.advance(5 * SECOND);
    world.traffic(0, false);
    world.advance(21 * SECOND);
    world.cut.insert(ip(A[0]));
    world.advance(100 * MS);
    world.traffic(0, true);
    world.advance(300 * MS);
    assert_eq!(world.carrying(0), [pair(A[1], B[0])], "{:#?}", world.view(0).paths);
}

#[test]
fn start_up_tries_every_pair() {
    let mut c = [config(0), config(1)];
    c[0].connections[0].remote_addrs =
        B[..2].iter().map(|b| mobikex::config::AddrPattern::Range(b.parse().unwrap())).collect();
    let mut world = World::with(16, c, [&A[..2], &B[..2]]);
    world.cut.insert(ip(A[0]));
    world.cut.insert(ip(B[0]));
    world.command(0, Command::Up { connection: "home".into(), child: None });
    world.advance(20 * SECOND);
    world.assert_one_tunnel();
    world.assert_traffic_arrives();
}

#[test]
fn moves_cross_rekeys() {
    for seed in 0..20 {
        let mut world = World::up(20 + seed, configs(|_| {}), [&A[..2], &B[..1]]);
        world.traffic = Some(3 * MS);
        world.advance(SECOND);
        let child = seed.is_multiple_of(2).then(|| "net".to_string());
        world.command((seed % 2) as usize, Command::Rekey { connection: "home".into(), child });
        world.remove(0, A[0]);
        world.advance((seed as u32) * MS);
        world.add(0, A[2]);
        world.advance(20 * SECOND);
        world.assert_one_tunnel();
        world.assert_traffic_arrives();
        assert_eq!(world.carrying(1), [pair(B[0], A[1])], "seed {seed}");
        assert_eq!([world.homeless(0), world.homeless(1)], [0, 0], "seed {seed}");
    }
}

// ---- by hand ---------------------------------------------------------------------------------------------------------

#[test]
fn an_operator_hears_the_peers_verdict() {
    let mut c = [config(0), config(1)];
    c[1].connections[0].paths.allowed =
        vec!["192.0.2.0/24".parse().unwrap(), "203.0.113.0/24".parse().unwrap()];
    let mut world = World::up(30, c, [&A[..1], &B[..1]]);
    world.hosts[0].addresses.insert(ip(A[1]));
    assert_eq!(world.action(0, AddressAction::Add(ip("198.18.0.1")), false), "UNACCEPTABLE_ADDRESSES");
    assert_eq!(world.action(0, AddressAction::Add(ip(A[1])), true), "done");
    assert_eq!(world.carrying(1).len(), 1, "a check changes nothing");
    assert_eq!(world.action(0, AddressAction::Add(ip(A[1])), false), "done");
    world.advance(2 * SECOND);
    assert_eq!(world.view(1).children[0].remote_addresses.len(), 2);
    let update = AddressAction::Update { old: Some(ip("198.18.0.1")), new: ip(A[1]) };
    assert_eq!(world.action(0, update, false), "UNACCEPTABLE_ADDRESSES");
    assert_eq!(world.action(0, AddressAction::Remove(ip(A[1])), false), "done");
    assert_eq!(world.view(1).children[0].remote_addresses.len(), 1);
    assert_eq!(world.action(0, AddressAction::Remove(ip(A[0])), true), "CLOSING_SA");
    world.assert_one_tunnel();
}

#[test]
fn m12_removing_the_last_address_closes_by_delete() {
    let mut world = World::up(31, configs(|_| {}), [&A[..1], &B[..1]]);
    assert_eq!(world.action(0, AddressAction::Remove(ip(A[0])), false), "CLOSING_SA");
    world.advance(20 * SECOND);
    for host in 0..2 {
        assert!(world.hosts[host].children.is_empty(), "{}", world.story(host));
        assert_eq!(world.view(host).children.len(), 0);
    }
}

// ---- attacks ---------------------------------------------------------------------------------------------------------

#[test]
fn m4_m6_a_victims_address_gets_three_small_datagrams_and_no_traffic() {
    let mut world = World::up(40, configs(|_| {}), [&A[..1], &B[..1]]);
    let victim = "203.0.113.77";
    world.advance(2 * SECOND);
    assert_eq!(world.action(0, AddressAction::Add(ip(victim)), false), "done");
    world.advance(30 * SECOND);
    let probes = world.hosts[1].sent_to.get(&ip(victim)).copied().unwrap_or(0);
    assert!((1..=3).contains(&probes), "{probes} datagrams to the victim");
    assert_eq!(world.carrying(1), [pair(B[0], A[0])]);
    assert!(world.story(1).contains("not reachable at 203.0.113.77"), "{}", world.story(1));
    world.assert_one_tunnel();
}

#[test]
fn return_routability_may_come_after_or_not_at_all() {
    for (policy, limited) in [(ReturnRoutability::After, false), (ReturnRoutability::Off, false)] {
        let mut world = World::up(41, configs(|c| c.return_routability = policy), [&A[..1], &B[..1]]);
        world.replace(0, A[0], A[1]);
        world.advance(15 * MS);
        let set = &world.sending(1).addresses;
        let new = set.paths.iter().find(|p| p.path.remote.ip() == ip(A[1])).unwrap();
        assert!(new.weight > 0 && new.limited == limited, "{policy:?}: {set:?}");
    }
}

#[test]
fn m3_a_new_nat_mapping_is_followed_once_it_answers() {
    for version in [MobikeX::No, MobikeX::Yes] {
        let mut world = World::with(
            42,
            configs(|c| {
                c.mobike_x = version;
                c.dpd_delay = 5 * SECOND;
            }),
            [&["10.9.9.9"], &B[..1]],
        );
        world.nat = Some(Nat::new("192.0.2.200"));
        world.connect();
        let before = world.view(1).remote;
        assert_eq!(before.ip(), ip("192.0.2.200"));
        world.nat.as_mut().unwrap().reboot();
        world.advance(30 * SECOND);
        assert_ne!(world.view(1).remote, before, "{version:?}: {}", world.story(1));
        world.assert_one_tunnel();
        world.assert_traffic_arrives();
    }
}

#[test]
fn m2_a_private_address_behind_a_nat_is_never_named() {
    let mut world = World::with(43, configs(|_| {}), [&["10.9.9.9"], &B[..1]]);
    world.nat = Some(Nat::new("192.0.2.200"));
    world.connect();
    world.add(0, "10.9.8.8");
    world.advance(5 * SECOND);
    let seen: Vec<_> = world.view(1).children[0].remote_addresses.iter().map(|a| a.addr.ip()).collect();
    assert!(seen.iter().all(|a| *a == ip("192.0.2.200")), "{seen:?}");
    world.assert_traffic_arrives();
}

#[test]
fn m9_checks_are_rate_limited() {
    let mut world = World::up(44, configs(|_| {}), [&A[..1], &B[..1]]);
    for n in 0..200u8 {
        let action = AddressAction::Add(ip(&format!("203.0.113.{n}")));
        world.command(
            0,
            Command::Address { connection: "home".into(), child: None, action, check: true, inner: false },
        );
    }
    world.advance(3 * SECOND);
    let limited = world.hosts[0]
        .events
        .iter()
        .filter(|e| matches!(e, Event::AddressAction { verdict, .. } if verdict == "TEMPORARY_FAILURE"));
    assert!(limited.count() > 50);
    assert_eq!(world.view(1).children[0].remote_addresses.len(), 1);
}

#[test]
fn without_probes_nothing_goes_to_what_a_nat_showed_before() {
    let configs = configs(|c| c.dpd_delay = 5 * SECOND);
    let mut world = World::with(46, configs.clone(), [&["10.9.9.9"], &B[..2]]);
    let mut nat = Nat::new("192.0.2.200");
    nat.per_destination = true;
    world.nat = Some(nat);
    world.connect();
    world.advance(10 * SECOND);
    let seen = |world: &World| -> BTreeSet<_> {
        world.sending(1).addresses.paths.iter().map(|p| p.path.remote.port()).collect()
    };
    assert_eq!(seen(&world).len(), 2, "each of our addresses is shown another port");
    let mut without = configs[0].clone();
    without.connections[0].mobike_x = MobikeX::No;
    let now = world.now;
    world.hosts[0].endpoint.set_config(now, without);
    world.advance(2 * SECOND);
    assert_eq!(world.view(1).mobike, Version::None);
    let before = seen(&world);
    world.nat.as_mut().unwrap().reboot();
    world.advance(30 * SECOND);
    let after = seen(&world);
    assert!(after.len() == 1 && after.is_disjoint(&before), "{before:?} {after:?}");
}

/// Two uplinks behind a NAT that has a mapping of its own for each destination, toward a host with two addresses.
#[test]
fn a_nat_with_a_mapping_for_each_destination_leaves_all_paths_in_use() {
    let mut world = World::with(45, configs(|_| {}), [&["10.9.9.9", "10.9.8.8"], &B[..2]]);
    let mut nat = Nat::new("192.0.2.200");
    nat.per_destination = true;
    world.nat = Some(nat);
    world.connect();
    let both_ways = |world: &World| {
        (0..2).for_each(|host| {
            let paths = &world.sending(host).addresses.paths;
            let used = paths.iter().filter(|p| p.weight > 0).map(|p| p.path);
            let ports: BTreeSet<_> = used.map(|p| (p.local, p.remote)).collect();
            assert_eq!(ports.len(), 4, "host {host}: {paths:?}");
        });
    };
    world.traffic = Some(100 * MS);
    world.advance(10 * SECOND);
    both_ways(&world);
    // What it shows after a reboot is found as well, and what it showed before is not looked for.
    world.nat.as_mut().unwrap().reboot();
    world.advance(60 * SECOND);
    both_ways(&world);
    // Pairs of an address that is gone leave nothing behind, however many come and go.
    for last in 130..170 {
        let old = world.hosts[1].addresses.iter().find(|a| **a != ip(B[0])).unwrap().to_string();
        world.add(1, &format!("198.51.100.{last}"));
        world.remove(1, &old);
        world.advance(10 * SECOND);
    }
    world.advance(60 * SECOND);
    both_ways(&world);
    let paths = &world.sending(1).addresses.paths;
    assert!(
        paths.len() <= 2 * 2 + 2,
        "two of each side, and what the NAT shows toward the second of ours: {paths:?}"
    );
    // Addresses come and go.
    world.remove(0, "10.9.8.8");
    world.advance(10 * SECOND);
    world.add(0, "10.9.8.8");
    world.advance(60 * SECOND);
    both_ways(&world);
    world.assert_one_tunnel();
    world.assert_traffic_arrives();
}
