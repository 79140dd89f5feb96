//! RFC 4555 clause by clause, against a peer that the test plays by hand; see `common/specs/ledger.toml`.

mod alive;
mod nat;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use mobikex::config::{AddrPattern, Child, Connection, ReturnRoutability, TsPattern};
use mobikex::ike::{ChildEvent, Command, Version};
use mobikex_common::addr::{Path, WeightedPath};
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::{ExchangeType, NotifyType as N, Payload};

use crate::puppet::{Nat, Pair, Puppet, Said, at, esp_proposal, plain, say, selectors};
use crate::world::{self, A, B, World, configs, ip};
use crate::{MS, SECOND, pair, version_1};

type Change = fn(&mut Connection);
/// What the peer answers to a request.
type Answer = dyn Fn(&Said) -> Vec<Payload>;

/// A third address of the endpoint.
const C: &str = "192.0.2.99";

/// From an address of the peer to one of the endpoint, or the reverse, where everything runs once IKE_AUTH is over.
fn over(from: &str, to: &str) -> Pair {
    (at(from, 4500), at(to, 4500))
}

fn plain_over(from: &str, to: &str) -> Pair {
    (at(from, 500), at(to, 500))
}

/// The endpoint has `addresses` and was called by the peer from its first address.
fn called(change: impl FnOnce(&mut Connection), addresses: &[&str], more: &[Payload]) -> Puppet {
    let mut puppet = Puppet::new(plain(1, change), addresses);
    let first = plain_over(A[0], addresses[0]);
    let said = [&[say(N::MOBIKE_SUPPORTED, [])], more].concat();
    puppet.connect(first, over(A[0], addresses[0]), Some(first), &said);
    assert_eq!(puppet.view().mobike, Version::Mobike, "{}", puppet.story());
    assert!(puppet.said().is_empty(), "there is nothing left to say");
    puppet
}

/// The endpoint has `addresses` and has called the peer at its first address.
fn calling(change: impl FnOnce(&mut Connection), nat: Nat, addresses: &[&str], more: &[Payload]) -> Puppet {
    let mut puppet = Puppet::new(plain(0, change), addresses);
    puppet.command(Command::Up { connection: "home".into(), child: None });
    let (_, auth) = puppet.meet(nat);
    puppet.accept(&auth, &[&[say(N::MOBIKE_SUPPORTED, [])], more].concat());
    assert_eq!(puppet.view().mobike, Version::Mobike, "{}", puppet.story());
    puppet
}

fn v4(addr: &str) -> Payload {
    let octets = addr.parse::<std::net::Ipv4Addr>().unwrap().octets();
    say(N::ADDITIONAL_IP4_ADDRESS, octets)
}

fn v6(addr: &str) -> Payload {
    let octets = addr.parse::<std::net::Ipv6Addr>().unwrap().octets();
    say(N::ADDITIONAL_IP6_ADDRESS, octets)
}

/// Data of NO_NATS_ALLOWED between IPv4 addresses (RFC 4555 4.2.6).
fn guard((from, to): Pair) -> Vec<u8> {
    let octets = |addr: SocketAddr| addr.ip().to_string().parse::<std::net::Ipv4Addr>().unwrap().octets();
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    [&octets(from)[..], &octets(to), &ports].concat()
}

/// What an answer must hold when all is well: COOKIE2 as it came.
fn echo(request: &Said) -> Vec<Payload> {
    let cookie = |p: &&Payload| matches!(p, Payload::Notify(n) if n.kind == N::COOKIE2);
    request.payloads.iter().filter(cookie).cloned().collect()
}

fn paths(puppet: &Puppet) -> Vec<WeightedPath> {
    puppet.children.values().flat_map(|c| c.addresses.paths.clone()).collect()
}

fn path_to(puppet: &Puppet, remote: &str) -> WeightedPath {
    let found = paths(puppet).into_iter().find(|p| p.path.remote.ip() == ip(remote));
    found.unwrap_or_else(|| panic!("no path to {remote}: {:?}", paths(puppet)))
}

fn carries(local: &str, remote: &str) -> [String; 1] {
    [format!("{local}:4500-{remote}:4500")]
}

// ---- 3.2, 3.3: set-up ------------------------------------------------------------------------------------------------

#[test]
fn mobike_supported_stands_beside_the_sa_payload() {
    let beside = |said: &Said| {
        let sa = said.payloads.iter().any(|p| matches!(p, Payload::Sa(_)));
        sa && said.says(N::MOBIKE_SUPPORTED) && said.says(N::ADDITIONAL_IP4_ADDRESS)
    };
    let mut puppet = Puppet::new(plain(0, |_| {}), &A[..2]);
    puppet.command(Command::Up { connection: "home".into(), child: None });
    let (init, auth) = puppet.meet(Nat::Absent);
    assert!(!init.says(N::MOBIKE_SUPPORTED) && beside(&auth));
    let mut puppet = Puppet::new(plain(1, |_| {}), &B[..2]);
    let first = plain_over(A[0], B[0]);
    let answer = puppet.connect(first, over(A[0], B[0]), Some(first), &[say(N::MOBIKE_SUPPORTED, [])]);
    assert!(beside(&answer), "{:?}", answer.kinds());
}

#[test]
fn addresses_start_with_ike_auth_and_new_child_sas_take_those_of_the_ike_sa() {
    let mut puppet = Puppet::new(plain(1, |_| {}), &B[..2]);
    let first = plain_over(A[0], B[0]);
    puppet.connect(first, over(A[1], B[1]), Some(first), &[say(N::MOBIKE_SUPPORTED, [])]);
    let view = puppet.view();
    assert_eq!((view.local, view.remote), (at(B[1], 4500), at(A[1], 4500)), "not those of IKE_SA_INIT");
    assert_eq!(puppet.carrying(), carries(B[1], A[1]));
    puppet.said();
    // A request from elsewhere: its answer goes back there, the SA does not.
    let nonce = puppet.octets(32);
    let mut request = vec![esp_proposal(0xc0de_0002), Payload::Nonce(nonce)];
    request.extend(selectors("10.1.0.0/16", "10.2.0.0/16"));
    let answer = puppet.request(ExchangeType::CREATE_CHILD_SA, over(A[0], B[0]), &request);
    assert_eq!((answer.from, answer.to), (at(B[0], 4500), at(A[0], 4500)));
    assert_eq!(puppet.children.len(), 2, "{:?}", answer.kinds());
    for path in paths(&puppet) {
        assert_eq!(path.path, Path { local: at(B[1], 4500), remote: at(A[1], 4500) });
    }
}

#[test]
fn port_4500_is_used_from_ike_auth_on_even_without_a_nat() {
    for (nat, port) in [(Nat::Absent, 4500), (Nat::Unsupported, 500)] {
        let mut puppet = Puppet::new(plain(0, |_| {}), &A[..1]);
        puppet.command(Command::Up { connection: "home".into(), child: None });
        let (init, auth) = puppet.meet(nat);
        assert_eq!((init.from, init.to), plain_over(A[0], B[0]));
        assert_eq!((auth.from, auth.to), (at(A[0], port), at(B[0], port)));
        puppet.accept(&auth, &[say(N::MOBIKE_SUPPORTED, [])]);
        assert!(paths(&puppet).iter().all(|p| !p.encap), "and ESP stays plain");
    }
}

// ---- 3.4, 3.6: lists of addresses ------------------------------------------------------------------------------------

#[test]
fn a_responder_uses_the_list_only_to_tell_of_its_own_addresses() {
    let mut puppet = called(|c| c.dpd_delay = 5 * SECOND, &B[..1], &[v4(A[1])]);
    assert_eq!(puppet.view().alternates, [ip(A[1])]);
    puppet.advance(60 * SECOND);
    let said = puppet.said();
    assert!(said.len() > 3 && said.iter().all(|s| s.to.ip() == ip(A[0])), "no request goes to the list");
    assert_eq!(puppet.carrying(), carries(B[0], A[0]));
    puppet.answer(&said[0], &[]);

    // Now its own address changes, and nothing comes back: every pair of both lists is tried.
    puppet.network(&[B[1], "198.51.100.200"]);
    puppet.advance(6 * SECOND);
    let said = puppet.said();
    let tried: BTreeSet<_> = said.iter().map(|s| (s.from.ip(), s.to.ip())).collect();
    for from in [B[1], "198.51.100.200"] {
        for to in [A[0], A[1]] {
            assert!(tried.contains(&(ip(from), ip(to))), "{from} to {to}: {tried:?}");
        }
    }
    let last = said.iter().rfind(|s| s.to.ip() == ip(A[1])).unwrap();
    assert!(last.says(N::ADDITIONAL_IP4_ADDRESS));
    // One of them answers: there is the initiator now, if it proves it. What was said from several addresses is said anew,
    // where it works.
    puppet.answer(last, &[]);
    let check = puppet.one();
    assert!(check.says(N::COOKIE2) && (check.from, check.to) == (last.from, last.to));
    puppet.answer(&check, &echo(&check));
    let again = puppet.one();
    assert_eq!((again.from, again.to), (last.from, last.to));
    assert_eq!(again.header.message_id, check.header.message_id + 1);
    assert!(again.says(N::ADDITIONAL_IP4_ADDRESS));
    puppet.answer(&again, &[]);
    assert!(puppet.said().is_empty());
}

#[test]
fn a_list_that_went_out_from_several_sources_is_sent_as_a_new_request() {
    let mut puppet = calling(|_| {}, Nat::Absent, &A[..1], &[]);
    puppet.network(&[A[0], A[1], C]);
    let first = puppet.one();
    assert_eq!(first.kinds().iter().filter(|k| **k == N::ADDITIONAL_IP4_ADDRESS).count(), 2);
    puppet.advance(2500 * MS);
    let sources: BTreeSet<_> = puppet.said().iter().map(|s| s.from.ip()).collect();
    assert_eq!(sources, [ip(A[0]), ip(A[1]), ip(C)].into());
    puppet.answer(&first, &[]);
    let second = puppet.one();
    assert_eq!(second.header.message_id, first.header.message_id + 1);
    assert_eq!((second.from, second.to), (first.from, first.to));
    assert_eq!(second.kinds(), first.kinds());
    // Once from one address is enough.
    puppet.answer(&second, &[]);
    assert!(puppet.said().is_empty());
}

#[test]
fn an_update_tells_the_whole_list_as_well() {
    let mut puppet = calling(|_| {}, Nat::Absent, &A[..2], &[]);
    puppet.network(&[A[1], C]);
    let update = puppet.one();
    assert!(update.says(N::UPDATE_SA_ADDRESSES));
    assert_eq!(update.data(N::ADDITIONAL_IP4_ADDRESS), C.parse::<std::net::Ipv4Addr>().unwrap().octets());
    puppet.answer(&update, &echo(&update));
    puppet.network(&[C]);
    let update = puppet.one();
    assert!(update.says(N::UPDATE_SA_ADDRESSES) && update.says(N::NO_ADDITIONAL_ADDRESSES));
    puppet.answer(&update, &echo(&update));
    assert!(puppet.said().is_empty());

    let mut puppet = called(|_| {}, &B[..1], &[]);
    puppet.ask(over(A[1], B[0]), &[say(N::UPDATE_SA_ADDRESSES, []), v4(C), v6(A[2])]);
    assert_eq!(puppet.view().remote, at(A[1], 4500));
    assert_eq!(puppet.view().alternates, [ip(C), ip(A[2]), ip(A[1])]);
}

#[test]
fn older_updates_and_lists_change_nothing() {
    let mut puppet = called(|c| c.return_routability = ReturnRoutability::Off, &B[..1], &[]);
    let update = |addr: &str| [say(N::UPDATE_SA_ADDRESSES, []), v4(addr)];
    let older = puppet.compose(ExchangeType::INFORMATIONAL, &update("203.0.113.5"));
    let newer = puppet.compose(ExchangeType::INFORMATIONAL, &update("203.0.113.6"));
    let state = |puppet: &Puppet| (puppet.view().remote, puppet.view().alternates, puppet.carrying());
    // The newer one overtakes: the window is one, so that it waits for the older.
    let before = state(&puppet);
    puppet.deliver(over(C, B[0]), &newer);
    assert!(puppet.said().is_empty() && state(&puppet) == before);
    puppet.deliver(over(A[1], B[0]), &older);
    puppet.deliver(over(C, B[0]), &newer);
    assert_eq!(puppet.said().len(), 2);
    let after = state(&puppet);
    assert_eq!(after.0, at(C, 4500));
    assert_eq!(after.1, [ip("203.0.113.6"), ip(C)]);
    // Both once more, from elsewhere: the latest is answered as it was, to where it came from.
    puppet.deliver(over(A[1], B[0]), &older);
    assert!(puppet.said().is_empty());
    puppet.deliver(over(A[1], B[0]), &newer);
    let answer = puppet.one();
    assert_eq!((answer.is_request(), answer.to), (false, at(A[1], 4500)));
    assert_eq!(state(&puppet), after);
}

#[test]
fn addresses_that_must_not_be_used_are_not_told() {
    let limits: [Change; 2] = [
        |c| c.paths.interfaces = vec!["wan2".into()],
        |c| c.local_addrs = vec![AddrPattern::Range("192.0.2.0/27".parse().unwrap())],
    ];
    for limit in limits {
        let mut puppet = Puppet::new(plain(0, limit), &[A[0], A[1], C]);
        puppet.command(Command::Up { connection: "home".into(), child: None });
        let (_, auth) = puppet.meet(Nat::Absent);
        assert!(auth.says(N::MOBIKE_SUPPORTED) && !auth.says(N::ADDITIONAL_IP4_ADDRESS));
        puppet.accept(&auth, &[say(N::MOBIKE_SUPPORTED, [])]);
        puppet.network(&[A[0], "203.0.113.50", A[2]]);
        assert!(puppet.said().is_empty(), "there is nothing new to tell");
        puppet.network(&["192.0.2.7", A[1], A[2]]);
        let update = puppet.one();
        assert_eq!(update.from.ip(), ip("192.0.2.7"));
        assert!(update.says(N::NO_ADDITIONAL_ADDRESSES) && !update.says(N::ADDITIONAL_IP4_ADDRESS));
    }
}

// ---- 3.5: moves ------------------------------------------------------------------------------------------------------

#[test]
fn child_sas_move_before_the_answer_unless_the_responders_address_is_unproven() {
    // The responder's address stays: everything is sent from the new one at once.
    let mut puppet = calling(|_| {}, Nat::Absent, &A[..1], &[]);
    puppet.network(&[A[1]]);
    assert_eq!(puppet.carrying(), carries(A[1], B[0]));
    assert!(!path_to(&puppet, B[0]).limited);
    assert_eq!(puppet.one().from.ip(), ip(A[1]));
    // It changes too: what goes there is limited until the answer, if policy wants that.
    for (policy, limited) in [(ReturnRoutability::Required, true), (ReturnRoutability::After, false)] {
        let mut puppet = calling(|c| c.return_routability = policy, Nat::Absent, &A[..1], &[v6(B[2])]);
        puppet.network(&[A[2]]);
        assert_eq!(path_to(&puppet, B[2]).limited, limited, "{policy:?}");
        let update = puppet.one();
        puppet.answer(&update, &echo(&update));
        assert!(path_to(&puppet, B[2]).weight > 0 && !path_to(&puppet, B[2]).limited);
    }
}

#[test]
fn a_likely_nat_is_met_with_udp_and_keepalives_at_once() {
    for (nat, expected) in [(Nat::Absent, true), (Nat::Unsupported, false)] {
        let mut puppet = calling(|_| {}, nat, &A[..1], &[]);
        assert!(!path_to(&puppet, B[0]).encap);
        puppet.advance(60 * SECOND);
        assert_eq!(puppet.keepalives, 0);
        puppet.network(&["10.9.9.9"]);
        assert_eq!(path_to(&puppet, B[0]).encap, expected);
        puppet.advance(SECOND);
        assert_eq!(puppet.keepalives > 0, expected);
    }
}

#[test]
fn a_change_during_an_update_starts_anew() {
    for verdict in [vec![say(N::UNACCEPTABLE_ADDRESSES, [])], vec![]] {
        let mut puppet = calling(|_| {}, Nat::Absent, &A[..1], &[]);
        puppet.network(&[A[1]]);
        let first = puppet.one();
        puppet.network(&[C]);
        // The request under way goes on from the new address, and the Child SAs are there already.
        let moved = puppet.one();
        assert_eq!((moved.header.message_id, moved.from.ip()), (first.header.message_id, ip(C)));
        assert_eq!(puppet.carrying(), carries(C, B[0]));
        let changes = puppet.changes;
        puppet.answer(&first, &[echo(&first), verdict].concat());
        assert_eq!(puppet.changes, changes, "an answer to the older request moves nothing");
        let second = puppet.one();
        assert!(second.says(N::UPDATE_SA_ADDRESSES) && second.from.ip() == ip(C));
        puppet.answer(&second, &echo(&second));
        assert_eq!(puppet.carrying(), carries(C, B[0]));
        assert!(puppet.said().is_empty());
    }
}

#[test]
fn a_pair_that_policy_refuses_changes_nothing() {
    let mut puppet = called(
        |c| {
            c.paths.allowed = vec!["192.0.2.0/24".parse().unwrap()];
            c.local_addrs = vec![AddrPattern::Range("198.51.100.1".parse().unwrap())];
        },
        &B[..2],
        &[],
    );
    let cookie = puppet.octets(16);
    for refused in [over(A[1], B[0]), over(C, B[1])] {
        let request = [say(N::UPDATE_SA_ADDRESSES, []), say(N::COOKIE2, cookie.clone())];
        let answer = puppet.ask(refused, &request);
        assert_eq!(answer.kinds(), [N::COOKIE2, N::UNACCEPTABLE_ADDRESSES]);
        assert_eq!((answer.to, answer.from), refused);
        assert_eq!((puppet.view().local, puppet.view().remote), (at(B[0], 4500), at(A[0], 4500)));
        assert_eq!(puppet.carrying(), carries(B[0], A[0]));
    }
    assert!(puppet.said().is_empty(), "nothing is checked");
    puppet.ask(over(C, B[0]), &[say(N::UPDATE_SA_ADDRESSES, [])]);
    assert_eq!(puppet.view().remote, at(C, 4500));
}

#[test]
fn an_update_is_answered_with_nat_detection_and_its_cookie() {
    let mut puppet = called(|_| {}, &B[..1], &[]);
    let (way, back) = (over(A[1], B[0]), over(B[0], A[1]));
    let cookie = puppet.octets(64);
    let mut request = vec![say(N::UPDATE_SA_ADDRESSES, []), say(N::COOKIE2, cookie.clone())];
    assert_eq!(puppet.ask(way, &request).kinds(), [N::COOKIE2]);
    puppet.said();
    request.extend(puppet.detection(way));
    let answer = puppet.ask(way, &request);
    assert_eq!(answer.data(N::COOKIE2), cookie);
    assert_eq!(answer.payloads[1..], puppet.detection(back));
}

#[test]
fn a_responders_child_sas_wait_for_the_check() {
    for answered in [true, false] {
        let mut puppet = called(|_| {}, &B[..1], &[]);
        puppet.ask(over(A[1], B[0]), &[say(N::UPDATE_SA_ADDRESSES, [])]);
        let check = puppet.one();
        assert_eq!((check.to.ip(), check.data(N::COOKIE2).len() >= 8), (ip(A[1]), true));
        // The old address goes on; no more than what came from the new one allows goes there.
        assert!(path_to(&puppet, A[1]).limited);
        let old = path_to(&puppet, A[0]);
        assert!(old.weight > 0 && !old.limited);
        if answered {
            puppet.answer(&check, &echo(&check));
            assert_eq!(puppet.carrying(), carries(B[0], A[1]));
            assert!(!path_to(&puppet, A[1]).limited);
            continue;
        }
        puppet.advance(8 * SECOND);
        // Over the old pair the peer answers, and so it is not at the new one.
        let old = puppet.said().into_iter().rfind(|s| s.to.ip() == ip(A[0])).expect("it asks there as well");
        puppet.answer(&old, &echo(&old));
        assert!(puppet.carrying().contains(&carries(B[0], A[0])[0]), "{}", puppet.story());
        assert!(paths(&puppet).iter().all(|p| p.path.remote.ip() == ip(A[0]) || p.weight == 0 || p.limited));
    }
}

#[test]
fn udp_encapsulation_follows_nat_detection() {
    let settings = |c: &mut Connection| {
        version_1(c);
        c.encap = false;
    };
    let mut world = World::up(60, configs(settings), [&A[..1], &B[..1]]);
    let in_udp = |world: &World| {
        [0, 1].map(|h| world.sending(h).addresses.paths.iter().filter(|p| p.weight > 0).all(|p| p.encap))
    };
    assert_eq!(in_udp(&world), [false; 2]);
    world.nat = Some(world::Nat::new("203.0.113.200"));
    world.replace(0, A[0], "10.9.9.9");
    world.advance(3 * SECOND);
    assert_eq!(in_udp(&world), [true; 2], "{}", world.story(0));
    world.assert_traffic_arrives();
    world.nat = None;
    world.replace(0, "10.9.9.9", A[1]);
    world.advance(3 * SECOND);
    assert_eq!(in_udp(&world), [false; 2]);
    assert_eq!(world.carrying(1), [pair(B[0], A[1])]);
}

#[test]
fn a_refused_initiator_tries_other_pairs_and_then_stays() {
    let refuse = |request: &Said| [echo(request), vec![say(N::UNACCEPTABLE_ADDRESSES, [])]].concat();
    // The address in use is gone: the next one is tried.
    let mut puppet = calling(|_| {}, Nat::Absent, &A[..1], &[]);
    puppet.network(&[A[1], C]);
    let first = puppet.one();
    assert_eq!(first.from.ip(), ip(A[1]));
    puppet.answer(&first, &refuse(&first));
    let second = puppet.one();
    assert!(second.says(N::UPDATE_SA_ADDRESSES) && second.from.ip() == ip(C));
    puppet.answer(&second, &echo(&second));
    assert_eq!(puppet.carrying(), carries(C, B[0]));
    // The address in use only seemed not to work: refused everywhere else, it goes back.
    puppet.unreachable(C, B[0], 4500);
    assert_eq!(puppet.one().from.ip(), ip(C));
    puppet.advance(2500 * MS);
    let elsewhere = puppet.said().into_iter().rfind(|s| s.from.ip() == ip(A[1])).unwrap();
    puppet.answer(&elsewhere, &echo(&elsewhere));
    let update = puppet.one();
    assert!(update.says(N::UPDATE_SA_ADDRESSES) && update.from.ip() == ip(A[1]));
    puppet.answer(&update, &refuse(&update));
    assert_eq!(puppet.carrying(), carries(C, B[0]));
    assert_eq!(puppet.view().local, at(C, 4500));
}
