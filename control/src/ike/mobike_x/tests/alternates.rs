//! Alternative addresses: those of the IKE SA, and those for the layers above a Child SA.

use super::*;

#[test]
fn alternates_without_selector_are_the_ike_sas_and_each_message_replaces_them() {
    let mut pair = Pair::up(|_, _| {});
    let sets = pair.theirs(1);
    let list =
        [action(ADDITIONAL, &[outer("203.0.113.1")], 1), action(ADDITIONAL, &[outer("2001:db8::1")], 2)];
    assert_eq!(pair.ask(0, &list), []);
    assert_eq!(alternates(&mut pair), ["203.0.113.1", "2001:db8::1"], "of either family");
    // H is taken for granted, and what it replaces is gone.
    let bare = IpParameter { header: false, ..outer("203.0.113.2") };
    assert_eq!(pair.ask(0, &[action(ADDITIONAL, &[bare], 1)]), []);
    assert_eq!(alternates(&mut pair), ["203.0.113.2"]);
    assert_eq!(pair.theirs(1), sets, "no Child SA has them");
    assert_eq!(handed_up(&pair), [""; 0]);

    let before = pair.state(1);
    for (bad, kind) in [
        (vec![outer("203.0.113.3"), outer("203.0.113.4")], PARAMETER),
        (vec![], PARAMETER),
        (vec![outer("224.0.0.1")], ADDRESSES),
        (vec![check(outer("224.0.0.1"))], ADDRESSES),
    ] {
        let answer = pair.ask(0, &[action(ADDITIONAL, &bad, 9)]);
        assert_eq!(verdicts(&answer), [(kind, Some(9))], "{bad:?}");
    }
    // A check that succeeds changes as little.
    assert_eq!(pair.ask(0, &[action(ADDITIONAL, &[check(outer("203.0.113.3"))], 1)]), []);
    // The form of version 1.
    let raw = Payload::Notify(Notify::new(ADDITIONAL, [0x20, 1, 0xd, 0xb8].repeat(4)));
    assert_eq!(verdicts(&pair.ask(0, &[raw])), [(PARAMETER, None)]);
    assert_eq!(pair.state(1), before);

    assert_eq!(pair.ask(0, &[notice(NotifyType::NO_ADDITIONAL_ADDRESSES, &[])]), []);
    assert_eq!(alternates(&mut pair), [""; 0]);
}

#[test]
fn in_version_1_an_alternate_is_bare_octets() {
    let mut pair = Pair::up(|_, c| c.mobike_x = MobikeX::No);
    let bare = Payload::Notify(Notify::new(ADDITIONAL, [0x20, 1, 0xd, 0xb8].repeat(4)));
    pair.ask(0, &[bare]);
    let listed = ["2001:db8:2001:db8:2001:db8:2001:db8", "192.0.2.1"];
    assert_eq!(alternates(&mut pair), listed);
    pair.ask(0, &[notice(ADDITIONAL, &[Parameter::Ip(outer("2001:db8::1"))])]);
    assert_eq!(alternates(&mut pair), ["192.0.2.1"], "a parameter is no address");
}

#[test]
fn the_best_alternate_is_tried_first_and_none_that_is_out_of_reach_or_out_of_time() {
    let mut pair = Pair::up(|_, _| {});
    let mip = |preference, class| Mip { preference, class, ..Mip::default() };
    let list = [
        with(outer("203.0.113.1"), mip(10, 1)),
        with(outer("203.0.113.2"), mip(200, 2)),
        with(outer("203.0.113.3"), Mip { reachability: Reachability::Unreachable, ..mip(255, 0) }),
        with(outer("203.0.113.4"), Mip { start: 60, ..mip(255, 0) }),
        with(outer("203.0.113.5"), Mip { life: 30, ..mip(100, 0) }),
    ];
    let list: Vec<_> = list.iter().zip(1..).map(|(ip, id)| action(ADDITIONAL, &[*ip], id)).collect();
    assert_eq!(pair.ask(0, &list), []);
    let tried = |pair: &mut Pair| -> Vec<String> {
        let tried = pair.sa(1, |sa, ctx| sa.peer_addresses(ctx.now));
        tried.iter().skip(1).map(|a| a.ip().to_string()).collect()
    };
    assert_eq!(tried(&mut pair), ["203.0.113.2", "203.0.113.5", "203.0.113.1"]);
    pair.run(61 * SECOND);
    assert_eq!(tried(&mut pair), ["203.0.113.4", "203.0.113.2", "203.0.113.1"]);
}

#[test]
fn alternates_for_a_child_are_handed_to_the_layers_above() {
    let mut pair = Pair::up(|_, _| {});
    let spi = selector(Parameter::Spi(SpiParameter::Child(child_spi(&mut pair, 0))));
    let mip = Mip { preference: 7, class: 2, start: 60, life: 600, ..Mip::default() };
    let first = action(ADDITIONAL, &[with(outer("203.0.113.1"), mip)], 1);
    let second = action(ADDITIONAL, &[outer("203.0.113.2")], 2);
    let before = pair.state(1);
    assert_eq!(pair.ask(0, &[spi.clone(), first, second, end_of_selector()]), []);
    assert_eq!(pair.state(1), before, "nothing below them uses it");
    let Some(Event::Alternates { child, addresses, .. }) =
        pair.events[1].iter().find(|e| matches!(e, Event::Alternates { .. }))
    else {
        panic!("{}", pair.story(1))
    };
    assert!(child.starts_with("net{"), "{child}");
    let handed = &addresses[0];
    assert_eq!((handed.addr, handed.preference, handed.class), (ip("203.0.113.1"), 7, 2));
    assert_eq!((handed.starts_in, handed.ends_in, handed.unreachable), (60, Some(660), false));
    assert_eq!((addresses.len(), addresses[1].addr), (2, ip("203.0.113.2")));

    // A check is no news; the next message replaces the list; the IKE SA and the Child SA each have their own.
    pair.events[1].clear();
    pair.ask(0, &[spi.clone(), action(ADDITIONAL, &[check(outer("203.0.113.3"))], 1), end_of_selector()]);
    assert_eq!(handed_up(&pair), [""; 0]);
    let own = action(ADDITIONAL, &[outer("203.0.113.5")], 2);
    pair.ask(0, &[spi, action(ADDITIONAL, &[outer("203.0.113.4")], 1), end_of_selector(), own]);
    let expected = format!("CHILD_SA {} alternative addresses of the peer: 203.0.113.4", "net{1}");
    assert_eq!(handed_up(&pair), [expected]);
    assert_eq!(alternates(&mut pair), ["203.0.113.5"]);
}

#[test]
fn alternates_fit_the_spd_of_a_child_and_always_that_of_the_ike_sa() {
    let mut pair = Pair::up(transport);
    let all = selector(Parameter::Special(2));
    let answer = pair.ask(0, &[all.clone(), action(ADDITIONAL, &[outer("203.0.113.1")], 1)]);
    assert_eq!(verdicts(&answer), [(NotifyType::DOES_NOT_FIT_SPD, Some(1))]);
    assert_eq!((alternates(&mut pair), handed_up(&pair)), (vec![], vec![]), "all that are selected or none");
    let answer = pair.ask(0, &[all.clone(), action(ADDITIONAL, &[check(outer("203.0.113.1"))], 1)]);
    assert_eq!(verdicts(&answer), [(NotifyType::DOES_NOT_FIT_SPD, Some(1))]);
    assert_eq!(pair.ask(0, &[all, action(ADDITIONAL, &[outer("192.0.2.9")], 1)]), []);
    assert_eq!((alternates(&mut pair).len(), handed_up(&pair).len()), (1, 1));
    assert_eq!(pair.ask(0, &[action(ADDITIONAL, &[outer("203.0.113.1")], 1)]), []);
    assert_eq!(alternates(&mut pair), ["203.0.113.1"]);

    let nine: Vec<_> = (1..=9).map(|n| action(ADDITIONAL, &[outer(&format!("203.0.113.{n}"))], n)).collect();
    assert_eq!(verdicts(&pair.ask(0, &nine)), [(ADDRESSES, Some(9))]);
    assert_eq!(alternates(&mut pair).len(), 8);
}

#[test]
fn an_alternate_is_used_when_the_address_in_use_is_out_of_reach_and_not_before() {
    let mut pair = Pair::up(|end, c| {
        c.dpd_delay = if end == 1 { 5 * SECOND } else { Duration::ZERO };
        // The second address of the first end is none that it adds by itself.
        c.paths.interfaces = vec!["wan2".into()];
    });
    pair.add(0, "192.0.2.2");
    assert_eq!(pair.ask(0, &[action(ADDITIONAL, &[outer("192.0.2.2")], 1)]), []);
    // That something comes from there does not move anything, either.
    pair.ask_from(0, "192.0.2.2:4500".parse().unwrap(), &[]);
    let before = pair.state(1);
    let answers = sent_to(&pair, "192.0.2.2");
    pair.run(30 * SECOND);
    assert_eq!((sent_to(&pair, "192.0.2.2"), pair.state(1)), (answers, before));
    // The address is lost without its owner knowing.
    pair.addresses[0].remove(&ip(ADDRS[0]));
    pair.run(30 * SECOND);
    assert!(sent_to(&pair, "192.0.2.2") > answers);
    assert_eq!(pair.sa(1, |sa, _| sa.remote.ip()), ip("192.0.2.2"), "{}", pair.story(1));
}
