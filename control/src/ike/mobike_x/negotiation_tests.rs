//! Versions between two endpoints (MOBIKE-X 7.1): what the pure decisions of `versions` lead to.

use std::time::Duration;

use mobikex_common::wire::ike::{Header, Notify, NotifyType, Payload, PayloadType, emit_chain, parse_chain};
use mobikex_common::wire::mobike_x::{IpParameter, Parameter, VERSION_NONE};

use crate::config::{Connection, MobikeX};
use crate::ike::sa::State;
use crate::ike::testing::{Datagram, Pair, ip, notice};
use crate::ike::versions::Version;
use mobikex_common::wire::ike::ExchangeType;

const SECOND: Duration = Duration::from_secs(1);

fn without(conn: &mut Connection) {
    (conn.mobike, conn.mobike_x) = (false, MobikeX::No);
}

fn of_kind(payloads: &[Payload], kind: NotifyType) -> Vec<&Notify> {
    let found = payloads.iter().filter_map(|p| match p {
        Payload::Notify(n) if n.kind == kind => Some(n),
        _ => None,
    });
    found.collect()
}

/// Every offer of MOBIKE that an end has heard.
fn offers(pair: &Pair, end: usize) -> Vec<Notify> {
    pair.heard[end]
        .iter()
        .flat_map(|payloads| of_kind(payloads, NotifyType::MOBIKE_SUPPORTED))
        .cloned()
        .collect()
}

fn versions(pair: &mut Pair) -> [Version; 2] {
    [0, 1].map(|end| pair.sa(end, |sa, _| sa.mobility.version))
}

fn has_child(pair: &mut Pair, end: usize) -> bool {
    pair.sa(end, |sa, _| sa.children.iter().any(|c| c.is_live()))
}

pub(in crate::ike) fn unsupported(version: u8) -> Payload {
    notice(NotifyType::MOBIKE_UNSUPPORTED_VERSION, &[Parameter::Version(vec![version])])
}

fn add(addr: &str) -> Payload {
    notice(NotifyType::ADD_SA_ADDRESS, &[Parameter::Ip(IpParameter::outer(ip(addr)))])
}

fn is_auth(datagram: &Datagram) -> bool {
    Header::parse(&datagram.data).is_ok_and(|h| h.exchange == ExchangeType::IKE_AUTH)
}

#[test]
fn the_critical_bit_of_the_offer_is_an_option() {
    for critical in [false, true] {
        let mut pair = Pair::up(|_, c| c.mobike_critical = critical);
        let offer = offers(&pair, 1).remove(0);
        assert_eq!(offer.critical, critical);
        assert_eq!(versions(&mut pair), [Version::MobikeX; 2], "who knows MOBIKE takes no notice of it");
    }
}

#[test]
fn a_responder_without_mobike_answers_the_critical_bit_and_both_go_on() {
    for critical in [false, true] {
        let mut pair = Pair::up(|end, c| {
            c.mobike_critical = critical;
            if end == 0 { c.mobike_x = MobikeX::No } else { without(c) }
        });
        let refusals: Vec<Notify> = pair.heard[0]
            .iter()
            .flat_map(|payloads| of_kind(payloads, NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD))
            .cloned()
            .collect();
        let expected = if critical { vec![vec![PayloadType::N.0]] } else { vec![] };
        assert_eq!(refusals.into_iter().map(|n| n.data).collect::<Vec<_>>(), expected);
        assert_eq!(versions(&mut pair), [Version::None; 2]);
        assert!(has_child(&mut pair, 0) && has_child(&mut pair, 1));
    }
}

/// Up to IKE_AUTH, which the responder rejects for the critical bit as RFC 7296 2.5 has it for payloads that it does
/// not know.
fn rejected(x: MobikeX) -> Pair {
    let mut pair = Pair::new(|_, c| {
        c.mobike_critical = true;
        c.mobike_x = x;
    });
    pair.start(0);
    let request = pair.take(1, |_| true).unwrap();
    pair.deliver(1, request);
    let response = pair.take(0, |_| true).unwrap();
    pair.deliver(0, response);
    pair.take(1, is_auth).unwrap();
    let half_open = pair.ends[1].ike_sas(pair.now)[0].id;
    pair.sa_by_id(1, half_open, |sa, ctx| {
        let refusal = Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![PayloadType::N.0]);
        sa.send_response(ctx, ExchangeType::IKE_AUTH, &[Payload::Notify(refusal)]).unwrap();
    });
    pair.run(2 * SECOND);
    pair
}

#[test]
fn a_peer_that_rejects_ike_auth_for_the_critical_bit_is_tried_again_without_mobike() {
    let mut pair = rejected(MobikeX::Yes);
    assert_eq!(versions(&mut pair), [Version::None; 2]);
    assert!(has_child(&mut pair, 0) && has_child(&mut pair, 1), "what was wanted is there");
    assert!(offers(&pair, 1).is_empty(), "the second IKE_AUTH offers nothing");
    assert!(!pair.story(0).contains("failed"), "{}", pair.story(0));
    pair.add(0, "192.0.2.2");
    pair.run(SECOND);
    assert!(
        pair.heard[1]
            .iter()
            .flatten()
            .all(|p| !matches!(p, Payload::Notify(n) if n.kind == NotifyType::ADD_SA_ADDRESS))
    );

    let pair = rejected(MobikeX::Require);
    assert!(pair.ends[0].ike_sas(pair.now).is_empty());
    assert!(pair.story(0).contains("UNSUPPORTED_CRITICAL_PAYLOAD"), "{}", pair.story(0));
}

#[test]
fn a_vendor_that_discards_offers_with_data_gets_one_without() {
    let mut pair = Pair::new(|_, _| {});
    pair.start(0);
    let request = pair.take(1, |_| true).unwrap();
    pair.deliver(1, request);
    let mut response = pair.take(0, |_| true).unwrap();
    // The responder says who it is.
    let header = Header::parse(&response.data).unwrap();
    let mut payloads = parse_chain(header.next_payload, &response.data[Header::LEN..]).unwrap();
    payloads.push(Payload::VendorId(b"OpenIKED-7.2".to_vec()));
    let (next_payload, chain) = emit_chain(&payloads);
    let length = (Header::LEN + chain.len()) as u32;
    response.data = [&Header { next_payload, length, ..header }.emit()[..], &chain].concat();
    let half_open = pair.ends[1].ike_sas(pair.now)[0].id;
    pair.sa_by_id(1, half_open, |sa, _| {
        let State::HalfOpen(handshake) = &mut sa.state else { panic!("it waits for IKE_AUTH") };
        handshake.response = response.data.clone();
    });
    pair.deliver(0, response);
    pair.run(SECOND);
    assert_eq!(offers(&pair, 1)[0].data, Vec::<u8>::new());
    assert_eq!(versions(&mut pair), [Version::Mobike; 2]);
    assert_eq!(offers(&Pair::up(|_, _| {}), 1)[0].data, [1, 2, 1, 2], "anybody else gets both versions");
}

/// The initiator has offered `offered` alone and is told what the responder speaks instead.
fn second_offer(offered: Version, named: u8, responder: impl Fn(&mut Connection)) -> Pair {
    let mut pair = Pair::up(|end, c| {
        if end == 1 {
            responder(c)
        }
    });
    for end in 0..2 {
        pair.sa(end, |sa, _| sa.mobility.version = Version::None);
    }
    pair.heard = Default::default();
    pair.sa(0, |sa, ctx| {
        sa.mobility.offered = vec![offered];
        assert!(sa.conclude_mobility(ctx, &[unsupported(named)]).is_ok());
        sa.run_tasks(ctx);
    });
    pair.run(SECOND);
    pair
}

#[test]
fn a_second_exchange_agrees_on_the_version_that_the_responder_names() {
    let mut pair = second_offer(Version::MobikeX, 1, |c| c.mobike_x = MobikeX::No);
    assert_eq!(versions(&mut pair), [Version::Mobike; 2]);
    assert_eq!(offers(&pair, 1).len(), 1);
    let mut pair = second_offer(Version::Mobike, 2, |c| c.mobike = false);
    assert_eq!(versions(&mut pair), [Version::MobikeX; 2]);
    assert_eq!(offers(&pair, 1)[0].data, [1, 1, 2, 0]);
    // Named, but refused all the same: there is no third offer.
    for (offered, named) in [(Version::Mobike, 2), (Version::MobikeX, 1)] {
        let mut pair = second_offer(offered, named, without);
        assert_eq!(versions(&mut pair), [Version::None; 2]);
        assert_eq!(offers(&pair, 1).len(), 1);
        assert!(has_child(&mut pair, 0) && has_child(&mut pair, 1));
    }
}

#[test]
fn a_failed_negotiation_leaves_nothing_behind() {
    let mut failed = Pair::up(|end, c| {
        let version_1 = end == 1;
        (c.mobike, c.mobike_x) = (version_1, if version_1 { MobikeX::No } else { MobikeX::Yes });
    });
    let mut never = Pair::up(|_, c| without(c));
    assert_eq!(versions(&mut failed), [Version::None; 2]);
    for end in 0..2 {
        assert_eq!(failed.state(end), never.state(end));
        failed.sa(end, |sa, _| assert!(!sa.mobility.echo && sa.tasks.is_empty() && sa.tasks.due().is_none()));
    }
}

#[test]
fn in_mid_life_only_none_is_taken_and_a_message_with_another_version_is_discarded() {
    let mut pair = Pair::up(|_, _| {});
    let before = pair.state(1);
    for other in [1, 2, 3] {
        assert_eq!(pair.ask(0, &[unsupported(other), add("203.0.113.7")]), []);
        assert_eq!((pair.state(1), versions(&mut pair)[1]), (before.clone(), Version::MobikeX));
    }
    // Another message is treated as ever.
    assert_eq!(pair.ask(0, &[add("192.0.2.9")]), []);
    let frozen = pair.theirs(1);
    assert_eq!(frozen, ["192.0.2.1", "192.0.2.9"]);
    assert_eq!(pair.ask(0, &[unsupported(VERSION_NONE)]), []);
    assert_eq!(versions(&mut pair)[1], Version::None);
    assert!(pair.story(1).contains("MOBIKE-X is off"), "{}", pair.story(1));
    assert_eq!(pair.ask(0, &[add("192.0.2.10")]), []);
    assert_eq!(pair.theirs(1), frozen, "the sets stay as they were");
}

#[test]
fn m14_none_in_mid_life_closes_where_version_2_is_required() {
    let mut pair = Pair::up(|end, c| {
        if end == 1 {
            c.mobike_x = MobikeX::Require
        }
    });
    pair.ask(0, &[unsupported(VERSION_NONE)]);
    pair.run(SECOND);
    assert!((0..2).all(|end| pair.ends[end].ike_sas(pair.now).is_empty()), "{}", pair.story(1));
    assert!(pair.story(1).contains("MOBIKE-X is required here"), "{}", pair.story(1));
}

#[test]
fn nothing_of_version_2_is_said_before_it_is_agreed() {
    let extended = |n: &Notify| {
        let private = (8192..16384).contains(&n.kind.0) || n.kind.0 >= 40_960;
        private || (n.kind == NotifyType::ADDITIONAL_IP_ADDRESS && n.data.len() != 16)
    };
    let said = |pair: &Pair| {
        let notifies = pair.heard.iter().flatten().flatten();
        notifies.filter(|p| matches!(p, Payload::Notify(n) if extended(n))).count()
    };
    for version_1 in [true, false] {
        let mut pair = Pair::up(|end, c| match (end, version_1) {
            (0, _) => {}
            (_, true) => c.mobike_x = MobikeX::No,
            (_, false) => without(c),
        });
        // The one answer of a responder that has seen an offer of version 2 and wants nothing.
        assert_eq!(said(&pair), usize::from(!version_1));
        for end in 0..2 {
            pair.add(end, ["192.0.2.2", "198.51.100.2"][end]);
            pair.run(2 * SECOND);
        }
        assert_eq!(said(&pair), usize::from(!version_1), "{version_1}");
    }
    assert!(said(&Pair::up(|_, _| {})) > 0, "and otherwise there is a lot to say");
}
