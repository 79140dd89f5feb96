//! UPDATE, ADD and REMOVE as the peer may ask for them.

use super::*;

#[test]
fn add_and_remove_without_an_address_mean_where_the_request_came_from() {
    let mut pair = Pair::up(|_, c| two_children(c));
    let here: SocketAddr = "192.0.2.2:4501".parse().unwrap();
    let every = |pair: &mut Pair| -> Vec<Vec<SocketAddr>> {
        let half = |c: &crate::ike::child::ChildSa| c.halves.remote.iter().map(|o| o.addr).collect();
        pair.sa(1, |sa, _| sa.children.iter().map(half).collect())
    };
    let before = every(&mut pair);
    assert_eq!(before.len(), 2);
    assert_eq!(pair.ask_from(0, here, &[action(ADD, &[], 1)]), []);
    assert_eq!(every(&mut pair), [[before[0][0], here]; 2], "both, with the port, and at once");
    assert_eq!(pair.sa(1, |sa, _| sa.remote), before[0][0], "the IKE SA is skipped");
    assert_eq!(pair.ask_from(0, here, &[action(REMOVE, &[], 1)]), []);
    assert_eq!(every(&mut pair), before);
}

#[test]
fn an_address_brings_its_multihoming_information() {
    let mut pair = Pair::up(|_, _| {});
    let mip = Mip { preference: 9, class: 2, reachability: Reachability::Unreachable, start: 0, life: 0 };
    assert_eq!(pair.ask(0, &[action(ADD, &[with(outer("192.0.2.9"), mip)], 1)]), []);
    let known = pair.sa(1, |sa, _| *sa.children[0].halves.remote.find(ip("192.0.2.9")).unwrap());
    assert_eq!((known.preference, known.class, known.unreachable), (9, 2, true));
    assert_eq!((known.starts, known.ends), (None, None));
    pair.run(5 * SECOND);
    assert_eq!(sent_to(&pair, "192.0.2.9"), 0, "its owner says that there is nobody");
    assert_eq!(pair.theirs(1), ["192.0.2.1", "192.0.2.9"]);
}

#[test]
fn the_receiver_changes_the_senders_half_and_does_nothing_in_its_place() {
    let mut pair = Pair::up(|_, _| {});
    let ours = pair.sa(1, |sa, _| sa.children[0].halves.local.clone());
    let acts = |pair: &Pair| {
        let kinds = [UPDATE, ADD, REMOVE, ADDITIONAL];
        let is_action = |p: &&Payload| matches!(p, Payload::Notify(n) if kinds.contains(&n.kind));
        pair.heard[0].iter().flatten().filter(is_action).count()
    };
    let before = acts(&pair);
    pair.addresses[0].insert(ip("192.0.2.2"));
    pair.ask(0, &[action(ADD, &[outer("192.0.2.2")], 1)]);
    let replaced = IpParameter { old: true, ..outer("192.0.2.1") };
    let replacing = IpParameter { new: true, ..outer("192.0.2.2") };
    pair.ask(0, &[action(UPDATE, &[replaced, replacing], 1)]);
    pair.run(5 * SECOND);
    assert_eq!(pair.theirs(1), ["192.0.2.2"]);
    assert_eq!(pair.sa(1, |sa, _| sa.children[0].halves.local.clone()), ours);
    assert_eq!(acts(&pair), before);
}

#[test]
fn a_check_does_not_include_return_routability_which_the_sender_may_ask_for_itself() {
    let mut pair = Pair::up(|_, _| {});
    assert_eq!(pair.ask(0, &[action(ADD, &[check(outer("192.0.2.9"))], 1)]), []);
    pair.run(5 * SECOND);
    assert_eq!(sent_to(&pair, "192.0.2.9"), 0);
    let cookie = Payload::Notify(Notify::new(NotifyType::COOKIE2, vec![7; 16]));
    let answer = pair.ask_from(0, "192.0.2.9:4500".parse().unwrap(), std::slice::from_ref(&cookie));
    assert_eq!(answer, [cookie]);
    assert_eq!(sent_to(&pair, "192.0.2.9"), 1, "the answer goes back to where the question came from");
}

#[test]
fn updates_are_done_as_they_come_without_asking_for_the_latest() {
    let mut pair = Pair::up(|_, _| {});
    for addr in ["192.0.2.2", "192.0.2.3", "192.0.2.4"] {
        pair.addresses[0].insert(ip(addr));
    }
    pair.ask(0, &[action(ADD, &[outer("192.0.2.2")], 1)]);
    let update = |old: &str, new: &str| {
        let (old, new) = (outer(old), outer(new));
        action(UPDATE, &[IpParameter { old: true, ..old }, IpParameter { new: true, ..new }], 1)
    };
    // Each is about an address of its own; the second does not make the first void.
    assert_eq!(pair.ask(0, &[update("192.0.2.1", "192.0.2.3")]), []);
    assert_eq!(pair.ask(0, &[update("192.0.2.2", "192.0.2.4")]), []);
    assert_eq!(pair.theirs(1), ["192.0.2.3", "192.0.2.4"]);
}

#[test]
fn protocol_and_spi_of_the_notifies_are_ignored() {
    let mut pair = Pair::up(|_, _| {});
    let Payload::Notify(plain) = action(ADD, &[outer("192.0.2.9")], 1) else { unreachable!() };
    let odd = Notify { protocol: ProtocolId::ESP, spi: vec![1, 2, 3, 4], ..plain };
    assert_eq!(pair.ask(0, &[Payload::Notify(odd)]), []);
    assert_eq!(pair.theirs(1), ["192.0.2.1", "192.0.2.9"]);
}

#[test]
fn a_retransmitted_request_gets_the_answer_that_it_got_before() {
    let mut pair = Pair::up(|_, _| {});
    let source = pair.sa(0, |sa, _| sa.local);
    let (request, answer) = pair.answer_from(0, source, &[action(ADD, &[outer("224.0.0.1")], 3)]);
    assert_eq!(verdicts(&answer), [(ADDRESSES, Some(3))]);
    let first = pair.sent[1].last().unwrap().data.clone();
    let (refusals, state) = (pair.ends[1].refusals().clone(), pair.state(1));
    pair.deliver(1, request);
    let again = pair.take_answer(0).unwrap();
    assert_eq!(again.data, first, "octet by octet");
    assert_eq!((pair.state(1), pair.ends[1].refusals()), (state, &refusals), "and nothing is done twice");
}

#[test]
fn each_form_of_update_takes_what_it_does_not_say_from_the_datagram() {
    let (here, there) = ("192.0.2.2", "192.0.2.3");
    let old = |text: &str| IpParameter { old: true, ..outer(text) };
    let new = |text: &str| IpParameter { new: true, ..outer(text) };
    for (ips, expected) in [
        (vec![], vec![here]),
        (vec![old(ADDRS[0])], vec![here, "192.0.2.9"]),
        (vec![new(there)], vec![there]),
        (vec![old(ADDRS[0]), new(there)], vec![there, "192.0.2.9"]),
        (vec![new(there), old("192.0.2.9")], vec![ADDRS[0], there]),
    ] {
        let mut pair = Pair::up(|_, _| {});
        pair.addresses[0].extend(["192.0.2.9", here, there].map(ip));
        pair.ask(0, &[action(ADD, &[outer("192.0.2.9")], 1)]);
        let source = SocketAddr::new(ip(here), 4500);
        assert_eq!(pair.ask_from(0, source, &[action(UPDATE, &ips, 1)]), [], "{ips:?}");
        assert_eq!(pair.theirs(1), expected, "{ips:?}");
        // The IKE SA has one address, and goes along if it was that.
        let ike = pair.sa(1, |sa, _| sa.remote.ip());
        let stays = ips.iter().any(|p| p.old && p.addr != ip(ADDRS[0]));
        assert_eq!(ike, ip(if stays { ADDRS[0] } else { expected[0] }), "{ips:?}");
    }
}

#[test]
fn m5_many_addresses_make_no_more_packets() {
    let mut pair = Pair::up(|_, _| {});
    let addrs: Vec<String> = (2..=20).map(|n| format!("192.0.2.{n}")).collect();
    pair.addresses[0].extend(addrs.iter().map(|a| ip(a)));
    for some in addrs.chunks(16) {
        let actions: Vec<_> = some.iter().zip(1..).map(|(a, id)| action(ADD, &[outer(a)], id)).collect();
        let answer = pair.ask(0, &actions);
        assert!(verdicts(&answer).iter().all(|(kind, _)| *kind == ADDRESSES), "{answer:?}");
    }
    pair.run(20 * SECOND);
    assert_eq!(pair.theirs(1).len(), 8);
    let (scheduler, paths) =
        pair.sa(1, |sa, _| (sa.children[0].addresses.scheduler, sa.children[0].addresses.paths.len()));
    assert_eq!((scheduler, paths), (Scheduler::Flow, 8), "each packet goes over one of them");
}

#[test]
fn m16_a_move_to_where_nobody_is_leaves_the_old_path_working() {
    let mut pair = Pair::up(|_, _| {});
    let new = IpParameter { new: true, ..outer("203.0.113.9") };
    assert_eq!(pair.ask(0, &[action(UPDATE, &[new], 1)]), []);
    let works = |pair: &mut Pair| {
        let set = pair.sa(1, |sa, _| sa.children[0].addresses.paths.clone());
        set.iter().any(|p| p.path.remote.ip() == ip(ADDRS[0]) && p.weight > 0 && !p.limited)
    };
    for _ in 0..80 {
        assert!(works(&mut pair), "{}", pair.story(1));
        pair.run(Duration::from_millis(100));
    }
    assert_eq!((pair.theirs(1), pair.sa(1, |sa, _| sa.remote.ip())), (vec![ADDRS[0].into()], ip(ADDRS[0])));
    // The other way round: what was on its way over the old path when the move succeeded is still taken.
    pair.addresses[0].insert(ip("192.0.2.9"));
    pair.ask(0, &[action(UPDATE, &[IpParameter { new: true, ..outer("192.0.2.9") }], 1)]);
    pair.run(SECOND);
    let old = pair
        .sa(1, |sa, _| sa.children[0].addresses.paths.iter().map(|p| p.path.remote.ip()).collect::<Vec<_>>());
    assert_eq!(old, [ip("192.0.2.9"), ip(ADDRS[0])]);
    pair.run(6 * SECOND);
    assert_eq!(pair.sa(1, |sa, _| sa.children[0].addresses.paths.len()), 1);
}
