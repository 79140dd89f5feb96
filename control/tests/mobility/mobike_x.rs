//! What MOBIKE-X demands of both ends together.

use std::time::Duration;

use mobikex::config::{Connection, MobikeX, TsPattern};
use mobikex::ike::{AddressAction, Command, Event};

use crate::world::{A, B, World, config, configs, ip};
use crate::{SECOND, pair, version_1};

fn ts(text: &str) -> Vec<TsPattern> {
    vec![TsPattern::Fixed(text.parse().unwrap())]
}

#[test]
fn from_ike_auth_on_everything_runs_on_port_4500() {
    for (mobike, port) in [(true, 4500), (false, 500)] {
        let without = |c: &mut Connection| {
            c.encap = false;
            if !mobike {
                (c.mobike, c.mobike_x) = (false, MobikeX::No);
            }
        };
        let world = World::up(50, configs(without), [&A[..1], &B[..1]]);
        for host in 0..2 {
            let view = world.view(host);
            assert_eq!((view.local.port(), view.remote.port()), (port, port), "without any NAT");
            assert!(world.sending(host).addresses.paths.iter().all(|p| !p.encap));
        }
    }
}

/// A tunnel whose first end has one inner address of those that the second end permits.
fn one_inner_address() -> World {
    let mut c = [config(0), config(1)];
    c[0].connections[0].children[0].local_ts = ts("10.1.0.5");
    World::up(51, c, [&A[..1], &B[..1]])
}

fn inner(world: &mut World, action: AddressAction, check: bool) -> String {
    let child = Some("net".into());
    world.ask(0, Command::Address { connection: "home".into(), child, action, check, inner: true })
}

/// The first end's inner addresses, as both ends have them.
fn selectors(world: &World) -> Vec<String> {
    let (ours, theirs) = (world.sending(0), world.sending(1));
    assert_eq!((&ours.ts_local, &ours.ts_remote), (&theirs.ts_remote, &theirs.ts_local));
    ours.ts_local.iter().map(ToString::to_string).collect()
}

#[test]
fn m10_inner_addresses_change_on_both_sides_within_the_policy_and_outlive_a_rekeying() {
    let mut world = one_inner_address();
    let update = |old: &str, new: &str| AddressAction::Update { old: Some(ip(old)), new: ip(new) };
    let before = world.sending(0).addresses.paths.clone();
    assert_eq!(inner(&mut world, update("10.1.0.5", "10.1.0.6"), true), "done");
    assert_eq!(selectors(&world), ["10.1.0.5/32"], "it was a check");
    // By default nothing is permitted beyond what CREATE_CHILD_SA would be.
    for outside in ["10.3.0.1", "10.2.0.1", A[0], "2001:db8::5"] {
        assert_eq!(inner(&mut world, update("10.1.0.5", outside), false), "DOES_NOT_FIT_SPD", "{outside}");
        assert_eq!(
            inner(&mut world, AddressAction::Add(ip(outside)), false),
            "DOES_NOT_FIT_SPD",
            "{outside}"
        );
        assert_eq!(selectors(&world), ["10.1.0.5/32"], "{outside}");
    }
    assert_eq!(inner(&mut world, update("10.1.0.9", "10.1.0.6"), false), "UNACCEPTABLE_ADDRESSES");
    assert_eq!(inner(&mut world, update("10.1.0.5", "10.1.0.6"), false), "done");
    assert_eq!(selectors(&world), ["10.1.0.6/32"]);
    assert_eq!(inner(&mut world, AddressAction::Add(ip("10.1.0.7")), false), "done");
    assert_eq!(selectors(&world), ["10.1.0.6/32", "10.1.0.7/32"]);
    assert_eq!(world.sending(0).addresses.paths, before, "the outer addresses are as they were");
    for host in 0..2 {
        let old = world.sending(host).spi_in;
        world.command(host, Command::Rekey { connection: "home".into(), child: Some("net".into()) });
        world.advance(10 * SECOND);
        assert_ne!(world.sending(host).spi_in, old, "{}", world.story(host));
        assert_eq!(selectors(&world), ["10.1.0.6/32", "10.1.0.7/32"]);
    }
    assert_eq!(inner(&mut world, AddressAction::Remove(ip("10.1.0.6")), false), "done");
    assert_eq!(selectors(&world), ["10.1.0.7/32"]);
    world.assert_one_tunnel();
}

/// How often the peer was asked for something about an address.
fn asked(world: &World, addr: &str) -> usize {
    let about = |e: &&Event| matches!(e, Event::AddressAction { by_peer: false, action, .. } if action.contains(addr));
    world.hosts[0].events.iter().filter(about).count()
}

#[test]
fn an_address_that_the_peer_refuses_is_taken_back_and_the_others_are_tried() {
    let refused = ["198.18.0.5", "198.18.0.6"];
    let mut c = [config(0), config(1)];
    c[1].connections[0].paths.allowed =
        vec!["192.0.2.0/24".parse().unwrap(), "203.0.113.0/24".parse().unwrap()];
    let mut world = World::up(52, c, [&A[..1], &B[..1]]);
    // The address in use gives way to three others, of which the peer takes the last.
    world.hosts[0].addresses.extend([ip(refused[0]), ip(A[1])]);
    world.replace(0, A[0], refused[1]);
    world.advance(10 * SECOND);
    assert_eq!(world.carrying(0), [pair(A[1], B[0])], "{}", world.story(0));
    assert_eq!(world.carrying(1), [pair(B[0], A[1])], "{}", world.story(1));
    assert_eq!((world.view(0).local.ip(), world.view(1).remote.ip()), (ip(A[1]), ip(A[1])));
    let ours: Vec<_> = world.view(0).children[0].local_addresses.iter().map(|a| a.addr.ip()).collect();
    assert_eq!(ours, [ip(A[1])], "what was refused is in use nowhere");
    world.assert_traffic_arrives();
    // It is not asked for over and over.
    let before = refused.map(|addr| asked(&world, addr));
    assert!(before.iter().all(|n| (1..=4).contains(n)), "{before:?}: {}", world.story(0));
    world.advance(60 * SECOND);
    assert_eq!(refused.map(|addr| asked(&world, addr)), before);
}

#[test]
fn a_move_that_the_peer_refuses_ends_where_it_began() {
    let mut c = configs(|c| c.dpd_delay = 5 * SECOND);
    c[1].connections[0].paths.allowed = vec!["192.0.2.0/24".parse().unwrap()];
    let mut world = World::up(53, c, [&[A[0], "198.18.0.5"], &B[..1]]);
    // Only the address that the peer refuses leads to it for a while.
    world.cut.insert(ip(A[0]));
    world.advance(20 * SECOND);
    assert!(asked(&world, "198.18.0.5") > 0, "{}", world.story(0));
    world.cut.clear();
    world.advance(20 * SECOND);
    assert_eq!(world.view(0).local.ip(), ip(A[0]), "{}", world.story(0));
    assert_eq!((world.carrying(0), world.carrying(1)), (vec![pair(A[0], B[0])], vec![pair(B[0], A[0])]));
    world.assert_one_tunnel();
}

#[test]
fn an_alternate_address_carries_no_traffic_while_the_current_one_works() {
    let dead_peer = |c: &mut Connection| {
        version_1(c);
        c.dpd_delay = 5 * SECOND;
    };
    let mut world = World::up(54, configs(dead_peer), [&A[..1], &B[..2]]);
    assert!(world.view(0).alternates.contains(&ip(B[1])));
    for _ in 0..20 {
        world.advance(SECOND);
        assert_eq!(world.carrying(0), [pair(A[0], B[0])]);
    }
    world.cut.insert(ip(B[0]));
    world.advance(20 * SECOND);
    assert_eq!(world.carrying(0), [pair(A[0], B[1])], "{}", world.story(0));
    world.assert_traffic_arrives();
}

#[test]
fn alternates_are_given_for_the_ike_sa_and_for_single_sas() {
    let mut world = World::up(55, configs(|_| {}), [&A[..1], &B[..1]]);
    let sets = world.sending(1).addresses.clone();
    let give = |world: &mut World, child: Option<&str>, addr: &str, check| {
        let (child, action) = (child.map(Into::into), AddressAction::Additional(ip(addr)));
        world.ask(0, Command::Address { connection: "home".into(), child, action, check, inner: false })
    };
    assert_eq!(give(&mut world, None, A[2], false), "done");
    assert_eq!(world.view(1).alternates, [ip(A[2])]);
    assert_eq!(give(&mut world, Some("net"), A[1], false), "done");
    let handed_up = "CHILD_SA net{1} alternative addresses of the peer: 203.0.113.1";
    assert!(world.story(1).contains(handed_up), "{}", world.story(1));
    assert_eq!(world.view(1).alternates, [ip(A[2])], "that list is another one");
    assert_eq!(give(&mut world, None, "224.0.0.1", true), "UNACCEPTABLE_ADDRESSES");
    assert_eq!(give(&mut world, None, A[1], true), "done");
    assert_eq!(world.view(1).alternates, [ip(A[2])]);
    assert_eq!(give(&mut world, None, A[1], false), "done");
    assert_eq!(world.view(1).alternates, [ip(A[1])]);
    assert_eq!(world.sending(1).addresses, sets, "and no packet goes another way");
}

/// A responder does not follow a peer that it can still reach, and finds one that it cannot.
#[test]
fn a_responder_goes_to_another_address_by_itself_only_when_the_peer_is_out_of_reach() {
    let mut world = World::up(56, configs(|_| {}), [&A[..2], &B[..1]]);
    world.advance(5 * SECOND);
    assert_eq!(world.view(1).remote.ip(), ip(A[0]));
    assert_eq!(world.carrying(1).len(), 2);
    world.advance(60 * SECOND);
    assert_eq!(world.view(1).remote.ip(), ip(A[0]), "two that work: it stays");
    world.cut.insert(ip(A[0]));
    world.advance(Duration::from_millis(500));
    assert_eq!(world.view(1).remote.ip(), ip(A[1]), "{}", world.story(1));
    assert_eq!(world.carrying(1), [pair(B[0], A[1])]);
}
