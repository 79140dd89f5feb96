//! The form of our own requests.

use super::*;

#[test]
fn our_sets_carry_ids_are_shared_by_actions_and_end() {
    let mut pair = Pair::up(|_, _| {});
    let child = pair.sa(0, |sa, _| sa.children[0].id);
    let request = |wish, scope| Request { wish, scope, inner: false, check: true, by_hand: false };
    let add = |n: u8| Wish::Add(Some(IpAddr::from([192, 0, 2, n])));
    let requests = vec![
        request(Wish::Update { old: None, new: None }, Scope::IkeAlone),
        request(add(2), Scope::Child(child)),
        request(Wish::Additional(ip("192.0.2.3")), Scope::Child(child)),
        request(add(4), Scope::All),
    ];
    pair.sa(0, |sa, ctx| sa.send_actions(ctx, requests, None).unwrap());
    pair.run(SECOND);
    let sent = pair.heard[1].iter().rev().find(|m| verdicts(m).iter().any(|(kind, _)| *kind == ADDITIONAL));
    let sent: Vec<_> = verdicts(sent.unwrap()).into_iter().filter(|(_, id)| id.is_some()).collect();
    let kinds: Vec<_> = sent.iter().map(|(kind, _)| *kind).collect();
    let set = NotifyType::SELECTOR;
    assert_eq!(kinds, [set, UPDATE, set, ADD, ADDITIONAL, ADD]);
    let mut ids: Vec<_> = sent.iter().map(|(_, id)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), sent.len(), "no ID stands twice");
    let all = pair.heard[1].iter().rev().find(|m| verdicts(m).iter().any(|(kind, _)| *kind == ADDITIONAL));
    let order: Vec<_> = verdicts(all.unwrap())
        .into_iter()
        .map(|(kind, _)| kind)
        .filter(|kind| [set, NotifyType::END_OF_SELECTOR, UPDATE, ADD, ADDITIONAL].contains(kind))
        .collect();
    let end = NotifyType::END_OF_SELECTOR;
    assert_eq!(order, [set, UPDATE, end, set, ADD, ADDITIONAL, end, ADD]);
}

#[test]
fn our_addresses_carry_their_preference_and_alternates_have_h_and_no_other_bit() {
    let mut pair = Pair::up(|_, c| {
        c.paths.policies =
            vec![crate::config::InterfacePolicy { name: "wan3".into(), preference: Some(33), rate: None }];
    });
    pair.add(0, "192.0.2.2");
    pair.run(SECOND);
    let additional = Request {
        wish: Wish::Additional(ip("192.0.2.2")),
        scope: Scope::All,
        inner: false,
        check: false,
        by_hand: true,
    };
    pair.sa(0, |sa, ctx| sa.send_actions(ctx, vec![additional], None).unwrap());
    pair.run(SECOND);
    for kind in [ADD, ADDITIONAL] {
        let found = pair.heard[1].iter().flatten().find_map(|p| match p {
            Payload::Notify(n) if n.kind == kind => mobikex_common::wire::mobike_x::parse(&n.data).ok(),
            _ => None,
        });
        let mip = Mip { preference: 33, ..Mip::default() };
        assert_eq!(found.unwrap()[0], Parameter::Ip(with(outer("192.0.2.2"), mip)), "{kind}");
    }
    assert_eq!(alternates(&mut pair), ["192.0.2.2"]);
    let known = pair.sa(1, |sa, _| sa.children[0].halves.remote.find(ip("192.0.2.2")).unwrap().preference);
    assert_eq!(known, 33, "which is the weight of the path");
}

#[test]
fn the_original_responder_starts_exchanges_and_stays_what_it_is() {
    let mut pair = Pair::up(|_, _| {});
    let last_request = |pair: &Pair| {
        let headers = pair.sent[1].iter().map(|d| Header::parse(&d.data).unwrap().flags);
        headers.rev().find(|flags| !flags.response).unwrap()
    };
    pair.add(1, "198.51.100.2");
    pair.run(SECOND);
    let ours = pair.sa(0, |sa, _| sa.children[0].halves.remote.has(ip("198.51.100.2")));
    assert!(ours, "it acts on its own addresses: {}", pair.story(1));
    assert!(!last_request(&pair).initiator, "the flag is about who started the IKE SA");
    // The same two roles when it makes a Child SA: its keys come first, and its flag stays.
    pair.command(1, Command::Rekey { connection: "home".into(), child: Some("net".into()) });
    pair.run(SECOND);
    assert!(!last_request(&pair).initiator);
    pair.command(1, Command::Rekey { connection: "home".into(), child: None });
    pair.run(SECOND);
    pair.command(1, Command::Rekey { connection: "home".into(), child: Some("net".into()) });
    pair.run(SECOND);
    assert!(last_request(&pair).initiator, "of the new IKE SA it is the original initiator");
    assert!(pair.sa(1, |sa, _| sa.initiator.is_us() && !sa.mobility.decides));
}
