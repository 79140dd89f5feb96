//! What is wrong is answered for what it is, and changes nothing.

use super::*;

/// A notify of the answer, with its ID.
type Expected = (NotifyType, Option<u16>);

/// Every way in which an action can be wrong, with the answer that it deserves.
fn bad_input() -> Vec<(&'static str, Vec<Payload>, Vec<Expected>)> {
    let raw = |kind, data: &[u8]| Payload::Notify(Notify::new(kind, data.to_vec()));
    let old = |text: &str| IpParameter { old: true, ..outer(text) };
    let new = |text: &str| IpParameter { new: true, ..outer(text) };
    let inner = |ip: IpParameter| IpParameter { header: false, inner: true, ..ip };
    let (a, b) = ("192.0.2.1", "192.0.2.9");
    let nowhere = IpParameter { header: false, ..outer(b) };
    let everywhere = IpParameter { inner: true, ..outer(b) };
    let wrong =
        |what, kind, ips: &[IpParameter]| (what, vec![action(kind, ips, 5)], vec![(PARAMETER, Some(5))]);
    let more = |what, kind, parameter| {
        let parameters = [Parameter::Ip(outer(b)), parameter, Parameter::Id(5)];
        (what, vec![notice(kind, &parameters)], vec![(PARAMETER, Some(5))])
    };
    let refused = |what, kind, ip, notify| (what, vec![action(kind, &[ip], 5)], vec![(notify, Some(5))]);
    let behind = |what, parameters: &[Parameter]| {
        let payloads = vec![notice(NotifyType::SELECTOR, parameters), action(ADD, &[outer(b)], 5)];
        (what, payloads, vec![(PARAMETER, None), (PARAMETER, Some(5))])
    };
    let ip_of = |version: u8| raw(ADD, &[3, version << 5 | 2, 0, 0, 192, 0, 2, 9]);
    let checked = |id| action(ADD, &[check(outer(b))], id);
    let seventeen = |one: &dyn Fn(u16) -> Payload| (1..=17).map(one).collect::<Vec<_>>();
    let mut selectors = seventeen(&|_| selector(Parameter::Special(IKE_SA_ALONE)));
    selectors.push(action(ADD, &[outer(b)], 5));
    vec![
        wrong("UPDATE: neither O nor N", UPDATE, &[outer(b)]),
        wrong("UPDATE: O and N", UPDATE, &[IpParameter { old: true, ..new(b) }]),
        wrong("UPDATE: two old ones", UPDATE, &[old(a), old(b)]),
        wrong("UPDATE: three addresses", UPDATE, &[old(a), new(b), new(b)]),
        wrong("UPDATE: C unequal", UPDATE, &[check(old(a)), new(b)]),
        wrong("UPDATE: H and I unequal", UPDATE, &[inner(old(a)), new(b)]),
        wrong("UPDATE: neither H nor I", UPDATE, &[IpParameter { new: true, ..nowhere }]),
        wrong("ADD: two addresses", ADD, &[outer(a), outer(b)]),
        wrong("ADD: neither H nor I", ADD, &[nowhere]),
        wrong("ADD: H and I", ADD, &[everywhere]),
        wrong("REMOVE: two addresses", REMOVE, &[outer(a), outer(b)]),
        wrong("REMOVE: neither H nor I", REMOVE, &[nowhere]),
        more("ADD: a mode", ADD, Parameter::Mode(1)),
        more("REMOVE: an SPI", REMOVE, Parameter::Spi(SpiParameter::Child(Spi(9)))),
        more("UPDATE: versions", UPDATE, Parameter::Version(vec![2])),
        more("ADD: a second ID", ADD, Parameter::Id(5)),
        ("ADD: cut short", vec![raw(ADD, &[3, 2, 0, 0, 192])], vec![(PARAMETER, None)]),
        ("ADD: V = 2", vec![ip_of(2)], vec![(PARAMETER, None)]),
        ("ADD: V = 3", vec![ip_of(3)], vec![(PARAMETER, None)]),
        ("ADD: unknown type", vec![raw(ADD, &[7, 0, 0, 5, 99, 0, 0, 0])], vec![(PARAMETER, Some(5))]),
        ("two equal IDs", vec![checked(4), checked(4)], vec![(PARAMETER, Some(4))]),
        ("seventeen actions", seventeen(&checked), vec![(PARAMETER, Some(17))]),
        ("seventeen SELECTORs", selectors, vec![(PARAMETER, None), (PARAMETER, Some(5))]),
        behind("SELECTOR: empty", &[]),
        behind("SELECTOR: special value 9", &[Parameter::Special(9)]),
        behind("SELECTOR: mode 5", &[Parameter::Mode(5)]),
        behind("SELECTOR: protocol 0", &[Parameter::Proto(0)]),
        behind("SELECTOR: versions", &[Parameter::Version(vec![2])]),
        (
            "SELECTOR: an SPI of 5 octets",
            vec![
                raw(NotifyType::SELECTOR, &[2, 5, 0, 0, 1, 2, 3, 4, 5, 0, 0, 0]),
                action(ADD, &[outer(b)], 5),
            ],
            vec![(PARAMETER, None), (PARAMETER, Some(5))],
        ),
        (
            "a payload between SELECTOR and action",
            vec![
                selector(Parameter::Special(IKE_SA_ALONE)),
                raw(NotifyType(50_000), &[]),
                action(ADD, &[outer(b)], 5),
            ],
            vec![(NotifyType::UNEXPECTED_PAYLOAD_AFTER_SELECTOR, None), (PARAMETER, Some(5))],
        ),
        (
            "no such SA",
            vec![selector(Parameter::Spi(SpiParameter::Child(Spi(9)))), action(ADD, &[outer(b)], 5)],
            vec![(NotifyType::UNMATCHED_SELECTOR_SET, Some(5))],
        ),
        refused("REMOVE: nobody has it", REMOVE, outer(b), ADDRESSES),
        refused("UPDATE: nobody has it", UPDATE, old(b), ADDRESSES),
        refused("multicast", ADD, outer("224.0.0.5"), ADDRESSES),
        refused("multicast, IPv6", ADD, outer("ff02::1"), ADDRESSES),
        refused("broadcast", ADD, outer("255.255.255.255"), ADDRESSES),
        refused("unspecified", ADD, outer("0.0.0.0"), ADDRESSES),
        refused("unspecified, IPv6", ADD, outer("::"), ADDRESSES),
        refused("loopback", ADD, outer("127.0.0.1"), ADDRESSES),
        refused("loopback, IPv6", ADD, outer("::1"), ADDRESSES),
        refused("IPv4 in IPv6", ADD, outer("::ffff:192.0.2.9"), ADDRESSES),
        refused("our own", ADD, outer(ADDRS[1]), ADDRESSES),
        refused("inside our tunnel, our side", ADD, outer("10.2.0.1"), ADDRESSES),
        refused("inside our tunnel, their side", UPDATE, new("10.1.0.1"), ADDRESSES),
        refused("inner, outside the policy", ADD, inner(outer("10.9.0.1")), NotifyType::DOES_NOT_FIT_SPD),
    ]
}

#[test]
fn bad_input_is_answered_precisely_changes_nothing_and_is_counted() {
    let mut pair = Pair::up(|_, _| {});
    for (what, payloads, expected) in bad_input() {
        let before = (pair.state(1), pair.ends[1].refusals().values().sum::<u64>());
        let answer = pair.ask(0, &payloads);
        assert_eq!(verdicts(&answer), expected, "{what}");
        let counted = pair.ends[1].refusals().values().sum::<u64>() - before.1;
        assert_eq!(counted, expected.len() as u64, "{what}");
        pair.run(SECOND);
        assert_eq!(pair.state(1), before.0, "{what}");
    }
    let kinds: Vec<_> = pair.ends[1].refusals().keys().map(ToString::to_string).collect();
    let named = [
        "UNACCEPTABLE_ADDRESSES",
        "DOES_NOT_FIT_SPD",
        "UNACCEPTABLE_PARAMETER",
        "UNEXPECTED_PAYLOAD_AFTER_SELECTOR",
        "UNMATCHED_SELECTOR_SET",
    ];
    assert_eq!(kinds, named);
    assert_eq!(pair.ask(0, &[action(ADD, &[outer("192.0.2.9")], 1)]), [], "the sender may go on");
}

#[test]
fn loopback_is_for_those_who_talk_over_it() {
    let mut pair = Pair::up(|_, _| {});
    let acceptable = |pair: &mut Pair| pair.sa(1, |sa, ctx| sa.acceptable(ctx, ip("127.0.0.9")));
    assert!(!acceptable(&mut pair));
    pair.sa(1, |sa, _| sa.remote = "127.0.0.1:4500".parse().unwrap());
    assert!(acceptable(&mut pair));
}

#[test]
fn what_is_refused_does_not_keep_the_rest_of_a_message_from_being_done() {
    let mut pair = Pair::up(|_, _| {});
    let answer = pair.ask(
        0,
        &[
            action(ADD, &[outer("224.0.0.1")], 1),
            action(ADD, &[outer("192.0.2.8")], 2),
            action(ADD, &[], 2),
            action(ADD, &[outer("192.0.2.9")], 3),
        ],
    );
    assert_eq!(verdicts(&answer), [(PARAMETER, Some(2)), (ADDRESSES, Some(1))]);
    assert_eq!(pair.theirs(1), ["192.0.2.1", "192.0.2.8", "192.0.2.9"]);
}
