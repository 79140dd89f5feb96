//! Path tests by IKE (RFC 4555 3.10) with a peer of version 1.

use std::time::Duration;

use mobikex::config::{Connection, InterfacePolicy, MobikeX};
use mobikex::ike::{Event, Health};

use super::world::{A, B, World, configs, ip};
use super::{SECOND, pair};

/// The second uplink of host 0 is a last resort.
fn standby(c: &mut Connection) {
    c.mobike_x = MobikeX::No;
    c.dpd_delay = 5 * SECOND;
    c.paths.policies = vec![InterfacePolicy { name: "wan3".into(), preference: Some(10), rate: None }];
}

#[test]
fn a_preferred_path_that_was_dead_is_tested_for_ever_and_taken_again() {
    let mut world = World::up(70, configs(standby), [&A[..2], &B[..1]]);
    assert_eq!(world.carrying(0), [pair(A[0], B[0])]);
    world.cut.insert(ip(A[0]));
    world.advance(20 * SECOND);
    assert_eq!(world.carrying(0), [pair(A[1], B[0])]);
    // However long it takes.
    world.advance(Duration::from_secs(1000));
    assert_eq!(world.carrying(0), [pair(A[1], B[0])]);
    world.assert_traffic_arrives();
    world.cut.clear();
    world.advance(15 * SECOND);
    assert_eq!(world.carrying(0), [pair(A[0], B[0])], "{}", world.story(0));
    assert_eq!(world.carrying(1), [pair(B[0], A[0])]);
    world.assert_one_tunnel();
}

#[test]
fn a_path_test_alone_moves_nothing_and_shows_the_other_pairs() {
    let mut world = World::up(71, configs(standby), [&A[..2], &B[..1]]);
    world.advance(Duration::from_secs(200));
    assert_eq!(world.carrying(0), [pair(A[0], B[0])]);
    assert_eq!(world.carrying(1), [pair(B[0], A[0])]);
    let standby = world.view(0).paths.into_iter().find(|p| p.path.local.ip() == ip(A[1]));
    let standby = standby.expect("the other pair is known");
    assert_eq!(standby.health, Health::Up);
    assert!(standby.rtt_us.is_some_and(|rtt| rtt >= 20_000), "{standby:?}");
    assert!(!world.hosts[1].events.iter().any(|e| matches!(e, Event::Moved { .. })), "{}", world.story(1));
}

/// The responder of version 1 asks nothing about paths: it does not decide.
#[test]
fn the_responder_of_version_1_does_not_test_paths() {
    let mut world = World::up(72, configs(standby), [&A[..2], &B[..2]]);
    let before = world.hosts[1].sent_to.get(&ip(A[1])).copied();
    world.hosts[1].events.clear();
    world.cut.insert(ip(A[1]));
    world.advance(Duration::from_secs(200));
    assert_eq!(world.hosts[1].sent_to.get(&ip(A[1])).copied(), before);
}
