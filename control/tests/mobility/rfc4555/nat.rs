//! NAT mappings, and paths that allow no NAT (RFC 4555 3.8, 3.9).

use std::collections::BTreeSet;

use super::*;

// ---- 3.8: NAT mappings -----------------------------------------------------------------------------------------------

#[test]
fn nat_detection_rides_on_any_request_when_both_support_it() {
    let dpd = |c: &mut Connection| c.dpd_delay = 10 * SECOND;
    let seen = at("203.0.113.200", 1024);
    let mut puppet = calling(dpd, Nat::SeenAs(seen), &["10.9.9.9"], &[]);
    puppet.advance(11 * SECOND);
    let probe = puppet.said().into_iter().find(Said::is_request).unwrap();
    assert_eq!(probe.payloads, puppet.detection(over("10.9.9.9", B[0])));
    let mut puppet = calling(dpd, Nat::Unsupported, &["10.9.9.9"], &[]);
    puppet.advance(10 * SECOND);
    assert!(puppet.one().payloads.is_empty());
}

#[test]
fn nat_detection_in_a_request_is_answered_and_has_no_other_effect() {
    let mut puppet = called(|_| {}, &B[..1], &[v4(A[1])]);
    let state = |p: &Puppet| (p.view().remote, p.view().alternates, paths(p), p.keepalives);
    let before = state(&puppet);
    // As if both were behind NATs now, and as it is, from where the peer is and from elsewhere.
    let untrue = (at("10.1.1.1", 1), at("10.1.1.2", 2));
    for said in [untrue, over(A[0], B[0]), over(A[1], B[0])] {
        for way in [over(A[0], B[0]), over(A[1], B[0])] {
            let request = puppet.detection(said);
            let answer = puppet.ask(way, &request);
            assert_eq!(answer.payloads, puppet.detection((way.1, way.0)));
            puppet.advance(30 * SECOND);
            assert_eq!(state(&puppet), before);
        }
    }
    assert!(puppet.said().is_empty());
}

/// RFC 7296 2.23: it is followed to where its ESP comes from, once it answers there, and knows nothing of COOKIE2.
#[test]
fn a_peer_without_mobike_is_followed_to_its_new_mapping() {
    let outside = |port| at("203.0.113.200", port);
    let mut puppet = Puppet::new(plain(1, |_| {}), &B[..1]);
    let to = at(B[0], 4500);
    let inside = plain_over("10.9.9.9", B[0]);
    puppet.connect((outside(500), at(B[0], 500)), (outside(1024), to), Some(inside), &[]);
    puppet.said();
    assert_eq!(puppet.view().mobike, Version::None);
    let child = *puppet.children.keys().next().unwrap();
    let seen = mobikex_common::addr::Path { local: to, remote: outside(1025) };
    puppet.endpoint.handle_new_source(puppet.now, child, seen);
    puppet.advance(SECOND);
    let check = puppet.said().pop().unwrap();
    assert_eq!((check.to, check.payloads.as_slice()), (outside(1025), &[][..]));
    assert_eq!(puppet.view().remote, outside(1024), "not before it answers");
    puppet.answer(&check, &[]);
    assert!(puppet.is_up(), "{}", puppet.story());
    assert_eq!(puppet.view().remote, outside(1025), "{}", puppet.story());
    let remotes: Vec<_> = paths(&puppet).into_iter().map(|path| path.path.remote).collect();
    assert!(remotes.contains(&outside(1025)), "{remotes:?}");
}

#[test]
fn an_ike_message_from_elsewhere_moves_nothing() {
    let outside = |port| at("203.0.113.200", port);
    let mut puppet = Puppet::new(plain(1, |c| c.dpd_delay = 20 * SECOND), &B[..1]);
    // The peer is behind a NAT.
    let inside = plain_over("10.9.9.9", B[0]);
    let to = at(B[0], 4500);
    puppet.connect(
        (outside(500), at(B[0], 500)),
        (outside(1024), to),
        Some(inside),
        &[say(N::MOBIKE_SUPPORTED, [])],
    );
    // Nothing has been sent to that port yet that it could have answered.
    let check = puppet.one();
    assert!(check.says(N::COOKIE2) && check.to == outside(1024));
    assert!(paths(&puppet).iter().all(|way| way.limited));
    puppet.answer(&check, &echo(&check));
    assert!(!paths(&puppet).iter().any(|way| way.limited));
    let before = paths(&puppet);
    for way in [(outside(1025), to), (at(A[1], 4500), to)] {
        assert_eq!(puppet.ask(way, &[]).to, way.0, "the answer goes where the request came from");
        assert_eq!((puppet.view().remote, paths(&puppet)), (outside(1024), before.clone()));
    }
    puppet.advance(20 * SECOND);
    assert_eq!(puppet.one().to, outside(1024), "and our own requests where the peer is");
}

// ---- 3.9: without NAT traversal --------------------------------------------------------------------------------------

fn strict(c: &mut Connection) {
    c.nat_traversal = false;
}

#[test]
fn without_nat_traversal_every_request_about_addresses_names_them() {
    // It is off here, or the peer has none.
    let cases: [(Change, Nat); 2] = [(strict, Nat::Absent), (|_| {}, Nat::Unsupported)];
    for (change, nat) in cases {
        let mut puppet = Puppet::new(plain(0, change), &A[..1]);
        puppet.command(Command::Up { connection: "home".into(), child: None });
        let (init, auth) = puppet.meet(nat);
        assert_eq!(init.says(N::NAT_DETECTION_SOURCE_IP), matches!(nat, Nat::Unsupported));
        let way = plain_over(A[0], B[0]);
        assert_eq!(((auth.from, auth.to), auth.data(N::NO_NATS_ALLOWED)), (way, &guard(way)[..]));
        puppet.accept(&auth, &[say(N::MOBIKE_SUPPORTED, [])]);
        puppet.network(&A[..2]);
        let list = puppet.one();
        assert!(list.says(N::ADDITIONAL_IP4_ADDRESS));
        assert_eq!(list.data(N::NO_NATS_ALLOWED), guard(way));
        puppet.answer(&list, &[]);
        puppet.network(&A[1..2]);
        let update = puppet.one();
        let way = plain_over(A[1], B[0]);
        assert!(update.says(N::UPDATE_SA_ADDRESSES) && !update.says(N::NAT_DETECTION_SOURCE_IP));
        assert_eq!(update.data(N::NO_NATS_ALLOWED), guard(way));
    }
    // With NAT traversal it would forbid what is coped with.
    let mut puppet = calling(|_| {}, Nat::Absent, &A[..1], &[]);
    puppet.network(&A[1..2]);
    assert!(!puppet.one().says(N::NO_NATS_ALLOWED));
}

#[test]
fn a_peer_that_allows_no_nat_is_refused_behind_one() {
    let way = plain_over(A[0], B[0]);
    let moved = |from: SocketAddr| (from, way.1);
    // Its IKE_AUTH: one of the four values is not what it says.
    let wrong =
        [plain_over(A[1], B[0]), plain_over(A[0], B[1]), moved(at(A[0], 501)), (way.0, at(B[0], 4500))];
    let mut said: Vec<Vec<u8>> = wrong.into_iter().map(guard).collect();
    said.push(guard(way)[..11].to_vec());
    said.push(vec![0; 36]);
    for data in &said {
        let mut puppet = Puppet::new(plain(1, strict), &B[..1]);
        let more = [say(N::MOBIKE_SUPPORTED, []), say(N::NO_NATS_ALLOWED, data.clone())];
        let answer = puppet.connect(way, way, None, &more);
        assert_eq!((answer.kinds(), answer.to), (vec![N::UNEXPECTED_NAT_DETECTED], way.0));
        assert!(!puppet.is_up() && puppet.children.is_empty());
        puppet.advance(60 * SECOND);
        assert!(puppet.said().is_empty(), "nothing goes to the address in the notify");
    }
    // Its requests afterwards.
    let mut puppet = Puppet::new(plain(1, strict), &B[..1]);
    let more = [say(N::MOBIKE_SUPPORTED, []), say(N::NO_NATS_ALLOWED, guard(way))];
    puppet.connect(way, way, None, &more);
    let state = |p: &Puppet| (p.view().remote, p.view().alternates, paths(p));
    let before = state(&puppet);
    let from = moved(at(A[1], 500));
    for data in said.iter().chain([&guard(way)]).filter(|data| **data != guard(from)) {
        for kind in [N::UPDATE_SA_ADDRESSES, N::NO_ADDITIONAL_ADDRESSES] {
            let answer = puppet.ask(from, &[say(kind, []), v4(C), say(N::NO_NATS_ALLOWED, data.clone())]);
            assert_eq!((answer.kinds(), answer.to), (vec![N::UNEXPECTED_NAT_DETECTED], from.0));
            assert_eq!(state(&puppet), before);
        }
    }
    assert!(puppet.said().is_empty(), "nothing goes to the address in the notify");
    let answer = puppet.ask(from, &[say(N::UPDATE_SA_ADDRESSES, []), say(N::NO_NATS_ALLOWED, guard(from))]);
    assert!(answer.payloads.is_empty());
    assert_eq!(puppet.view().remote, from.0);
}

#[test]
fn unexpected_nats_are_met_with_new_requests_several_times() {
    let nat = |request: &Said| [echo(request), vec![say(N::UNEXPECTED_NAT_DETECTED, [])]].concat();
    let attempts = |puppet: &mut Puppet, kind: N| {
        let mut ids = Vec::new();
        while let Some(request) = puppet.said().pop() {
            assert!(request.says(kind), "{:?}", request.kinds());
            ids.push(request.header.message_id);
            puppet.answer(&request, &nat(&request));
        }
        assert!(ids.windows(2).all(|w| w[1] == w[0] + 1), "each is a new one: {ids:?}");
        ids.len()
    };
    let mut puppet = calling(strict, Nat::Unsupported, &A[..1], &[]);
    puppet.network(&A[..2]);
    assert_eq!(attempts(&mut puppet, N::ADDITIONAL_IP4_ADDRESS), 6);
    puppet.network(&A[1..2]);
    assert_eq!(attempts(&mut puppet, N::UPDATE_SA_ADDRESSES), 6);
    assert!(puppet.is_up());
    // If it passes in the end, all is well.
    puppet.network(&[C]);
    for _ in 0..3 {
        let update = puppet.one();
        puppet.answer(&update, &nat(&update));
    }
    let update = puppet.one();
    puppet.answer(&update, &echo(&update));
    assert_eq!(puppet.carrying(), [format!("{C}:500-{}:500", B[0])]);
    assert!(puppet.said().is_empty());
}

#[test]
fn an_unexpected_nat_in_ike_auth_starts_over_several_times() {
    let mut puppet = Puppet::new(plain(0, strict), &A[..1]);
    puppet.command(Command::Up { connection: "home".into(), child: None });
    let mut spis = BTreeSet::new();
    for _ in 0..6 {
        let (init, auth) = puppet.meet(Nat::Unsupported);
        assert!(spis.insert(init.header.initiator_spi), "from IKE_SA_INIT on, everything is new");
        puppet.answer(&auth, &[say(N::UNEXPECTED_NAT_DETECTED, [])]);
    }
    puppet.advance(60 * SECOND);
    assert!(puppet.said().is_empty() && puppet.endpoint.is_idle(), "there is an end to it");
    // The second time is soon enough to succeed.
    puppet.command(Command::Up { connection: "home".into(), child: None });
    let (_, auth) = puppet.meet(Nat::Unsupported);
    puppet.answer(&auth, &[say(N::UNEXPECTED_NAT_DETECTED, [])]);
    let (_, auth) = puppet.meet(Nat::Unsupported);
    puppet.accept(&auth, &[say(N::MOBIKE_SUPPORTED, [])]);
    assert_eq!(puppet.children.len(), 1, "{}", puppet.story());
}

#[test]
fn version_2_holds_to_it_as_well() {
    let mut world = World::up(
        61,
        configs(|c| {
            strict(c);
            c.encap = false;
        }),
        [&A[..2], &B[..1]],
    );
    assert_eq!(world.view(0).mobike, Version::MobikeX);
    world.advance(3 * SECOND);
    assert_eq!(world.carrying(0).len(), 2);
    world.remove(0, A[0]);
    world.advance(5 * SECOND);
    assert_eq!(world.carrying(1), [pair(B[0], A[1])]);
    // Now there is a NAT. Its answers come back, and still nothing that it alters has an effect.
    world.nat = Some(world::Nat::new("203.0.113.200"));
    world.add(0, C);
    world.advance(10 * SECOND);
    assert!(world.story(0).contains("UNEXPECTED_NAT_DETECTED"), "{}", world.story(0));
    let known: Vec<_> = world.view(1).children[0].remote_addresses.iter().map(|a| a.addr.ip()).collect();
    assert_eq!(known, [ip(A[1])]);
}
