//! EAP with a peer that says what it must not.

use std::time::Duration;

use mobikex_common::crypto::Secret;
use mobikex_common::wire::ike::{ExchangeType, Notify, NotifyType, Payload};

use super::auth::{SignedOctets, sign_psk};
use super::sa::State;
use super::testing::Pair;
use super::window::Exchange;
use crate::config::{Config, EapId, EapSecret, Method};
use crate::eap::{EapType, Kind, NtHash, Packet};

fn secret(name: &str, password: &str) -> EapSecret {
    EapSecret { name: "eap-1".into(), ids: vec![name.into()], hash: NtHash::of(password) }
}

/// The first end proves itself by a password; the second one by a pre-shared key, so that this needs no signatures.
fn with(change: impl Fn(usize, &mut Config)) -> Pair {
    Pair::with(|me, config| {
        let c = &mut config.connections[0];
        let round = if me == 0 { &mut c.local } else { &mut c.remote };
        round.method = Method::Eap(vec![Kind::Mschapv2]);
        round.eap_id = if me == 0 { EapId::Name("carol".into()) } else { EapId::Any };
        config.eap_secrets = vec![secret("carol", "Ar3etTnp"), secret("david", "W7R0g3do")];
        change(me, config);
    })
}

fn up(change: impl Fn(usize, &mut Config)) -> Pair {
    let mut pair = with(change);
    pair.start(0);
    pair.run(Duration::from_secs(1));
    pair
}

/// Started, with so many messages delivered: IKE_SA_INIT is 0 and 1, the first IKE_AUTH 2 and 3, then the identity is
/// answered by 4, the challenge by 6, the success of MSCHAPv2 by 8, that of EAP by AUTH in 10.
fn delivered(count: usize) -> Pair {
    let mut pair = with(|_, _| {});
    pair.start(0);
    for n in 0..count {
        let to = 1 - n % 2;
        let next = pair.take(to, |_| true).unwrap();
        pair.deliver(to, next);
    }
    pair
}

/// Puts another message in the place of the one that is on its way.
fn replace(pair: &mut Pair, to: usize, exchange: ExchangeType, payloads: &[Payload]) {
    pair.take(to, |_| true).unwrap();
    let id = pair.ends[1 - to].ike_sas(pair.now)[0].id;
    pair.sa_by_id(1 - to, id, |sa, ctx| {
        if to == 0 {
            sa.expected_request -= 1;
            sa.send_response(ctx, exchange, payloads).unwrap();
        } else {
            sa.next_request -= 1;
            sa.send_request(ctx, exchange, Exchange::Auth, payloads).unwrap();
        }
    });
}

/// Nothing has come of it, at the end that had to judge.
fn refused(mut pair: Pair, judge: usize, what: &str) {
    pair.run(Duration::from_secs(1));
    let views = pair.ends[judge].ike_sas(pair.now);
    assert!(views.is_empty(), "{what}: {views:#?}");
    assert!(!pair.story(judge).contains("established"), "{what}: {}", pair.story(judge));
}

fn request(id: u8, kind: EapType, data: &[u8]) -> Payload {
    Payload::Eap(Packet::Request { id, kind, data: data.to_vec() }.emit())
}

fn success() -> Payload {
    Payload::Eap(Packet::Success { id: 0 }.emit())
}

#[test]
fn a_password_brings_a_tunnel_up_and_the_user_is_the_peer() {
    let mut pair = up(|_, _| {});
    let views = [0, 1].map(|end| pair.ends[end].ike_sas(pair.now));
    assert!(
        views.iter().all(|v| v.len() == 1 && v[0].state == "ESTABLISHED"),
        "{views:#?} {}",
        pair.story(1)
    );
    assert!(views.iter().all(|v| v[0].children.len() == 1), "{views:#?}");
    let shown = (views[1][0].remote_id.as_deref(), views[1][0].remote_eap_id.as_deref());
    assert_eq!(shown, (Some("a.example"), Some("carol")));
    assert_eq!(views[0][0].remote_eap_id, None);
    pair.sa(1, |sa, _| assert_eq!(sa.peer().unwrap().id().to_string(), "carol"));
}

#[test]
fn without_a_question_the_name_is_that_of_ike_or_of_the_method() {
    // The connection is for one identity, so nobody else's password serves.
    let unset = |me: usize, config: &mut Config| {
        if me == 1 {
            config.connections[0].remote.eap_id = EapId::Unset;
        }
    };
    let pair = up(unset);
    assert!(pair.story(1).contains("user 'carol' is not who the connection expects"), "{}", pair.story(1));
    let pair = up(|me, config| {
        unset(me, config);
        config.connections[0].local.eap_id = EapId::Unset;
        config.eap_secrets = vec![secret("a.example", "x")];
    });
    assert_eq!(pair.ends[1].ike_sas(pair.now)[0].remote_eap_id.as_deref(), Some("a.example"));
    let pair = up(|me, config| {
        unset(me, config);
        if me == 1 {
            config.connections[0].remote.id = None;
        }
    });
    assert_eq!(pair.ends[1].ike_sas(pair.now)[0].remote_eap_id.as_deref(), Some("carol"));
}

/// What the initiator hears, as kinds and lengths.
fn heard(change: impl Fn(usize, &mut Config)) -> (Vec<Vec<String>>, Pair) {
    let pair = up(change);
    let shape = |p: &Payload| match p {
        Payload::Eap(packet) => format!("EAP {}", packet.len()),
        other => other.summary(),
    };
    let shapes = pair.heard[0].iter().map(|message| message.iter().map(shape).collect()).collect();
    assert!(pair.ends.iter().all(|end| end.ike_sas(pair.now).is_empty()));
    (shapes, pair)
}

#[test]
fn a_user_that_nobody_knows_hears_what_one_with_a_wrong_password_hears() {
    let (wrong, pair) = heard(|me, config| {
        if me == 0 {
            config.eap_secrets = vec![secret("carol", "guess")];
        }
    });
    assert!(pair.story(1).contains("user 'carol' has a wrong password"), "{}", pair.story(1));
    assert!(pair.story(0).contains("failed with error 691"), "{}", pair.story(0));
    let names = |me: usize, config: &mut Config, name: &str| {
        if me == 0 {
            config.connections[0].local.eap_id = EapId::Name(name.into());
            config.eap_secrets = vec![secret(name, "W7R0g3do")];
        }
    };
    let (unknown, pair) = heard(|me, config| names(me, config, "ceros"));
    assert!(pair.story(1).contains("user 'ceros' is not known"), "{}", pair.story(1));
    assert_eq!(unknown, wrong);
    // A user with the right password that the connection is not for.
    let (stranger, pair) = heard(|me, config| {
        names(me, config, "david");
        if me == 1 {
            config.connections[0].remote.eap_id = EapId::Name("carol".into());
        }
    });
    assert!(pair.story(1).contains("user 'david' is not who the connection expects"), "{}", pair.story(1));
    assert_eq!(stranger, wrong);
}

#[test]
fn b2_success_counts_only_after_the_method_and_with_auth() {
    for count in [3, 5, 7] {
        let mut pair = delivered(count);
        replace(&mut pair, 0, ExchangeType::IKE_AUTH, &[success()]);
        refused(pair, 0, &format!("success as message {count}"));
    }
    // The last response without AUTH, with one that is made without the MSK, or with success once more.
    let wrong = |pair: &mut Pair, by: usize| {
        let id = pair.ends[by].ike_sas(pair.now)[0].id;
        pair.sa_by_id(by, id, |sa, _| {
            let (keys, local) = (sa.keys().unwrap(), "b.example".parse().unwrap());
            let sk_p = if by == 0 { &keys.pi } else { &keys.pr };
            let octets = SignedOctets { message: b"", nonce: b"", id: &local, sk_p };
            Payload::Auth(sign_psk(keys.prf, &Secret::from(vec![0; 64]), &octets))
        })
    };
    let mut pair = delivered(11);
    let auth = wrong(&mut pair, 1);
    for payloads in [vec![], vec![success()], vec![auth]] {
        let mut pair = delivered(11);
        replace(&mut pair, 0, ExchangeType::IKE_AUTH, &payloads);
        refused(pair, 0, "no AUTH from the MSK");
    }
    let auth = wrong(&mut delivered(10), 0);
    for payloads in [vec![], vec![success()], vec![auth.clone()]] {
        let mut pair = delivered(10);
        replace(&mut pair, 1, ExchangeType::IKE_AUTH, &payloads);
        refused(pair, 1, "no AUTH from the MSK");
    }
    for count in [4, 6, 8] {
        let mut pair = delivered(count);
        replace(&mut pair, 1, ExchangeType::IKE_AUTH, std::slice::from_ref(&auth));
        refused(pair, 1, &format!("AUTH as message {count}"));
    }
}

#[test]
fn b1_nothing_but_ike_auth_is_heard_during_eap() {
    for (count, exchange) in [
        (4, ExchangeType::INFORMATIONAL),
        (6, ExchangeType::CREATE_CHILD_SA),
        (10, ExchangeType::INFORMATIONAL),
        (5, ExchangeType::INFORMATIONAL),
        (11, ExchangeType::CREATE_CHILD_SA),
    ] {
        let to = 1 - count % 2;
        let mut pair = delivered(count);
        let before = pair.sent[to].len();
        let none = Payload::Notify(Notify::new(NotifyType::INITIAL_CONTACT, Vec::new()));
        replace(&mut pair, to, exchange, &[none]);
        let next = pair.take(to, |_| true).unwrap();
        pair.deliver(to, next);
        assert_eq!(pair.sent[to].len(), before, "message {count} is answered");
        let id = pair.ends[to].ike_sas(pair.now)[0].id;
        pair.sa_by_id(to, id, |sa, _| assert!(!matches!(sa.state, State::Established(_))));
    }
}

#[test]
fn b7_eap_that_is_wrong_in_its_form_ends_the_attempt() {
    let long = Packet::Response { id: 0, kind: EapType::IDENTITY, data: vec![b'x'; 300] }.emit();
    let packets: [&[u8]; 7] =
        [&[], &[2], &[2, 0, 0, 4], &[2, 0, 0, 200, 1, 2], &[1, 0, 0, 5, 1], &[9, 0, 0, 5, 1], &long];
    for packet in packets {
        for count in 3..9 {
            let to = 1 - count % 2;
            let mut pair = delivered(count);
            replace(&mut pair, to, ExchangeType::IKE_AUTH, &[Payload::Eap(packet.to_vec())]);
            refused(pair, to, &format!("{packet:?} as message {count}"));
        }
    }
    for count in 4..9 {
        let to = 1 - count % 2;
        let mut pair = delivered(count);
        replace(&mut pair, to, ExchangeType::IKE_AUTH, &[success(), success()]);
        refused(pair, to, &format!("two packets as message {count}"));
    }
}

#[test]
fn a_server_can_neither_go_on_for_ever_nor_change_the_method() {
    let mut pair = delivered(5);
    replace(&mut pair, 0, ExchangeType::IKE_AUTH, &[request(0, EapType::IDENTITY, b"")]);
    for round in 1.. {
        let next = pair.take(0, |_| true).unwrap();
        pair.deliver(0, next);
        if pair.ends[0].ike_sas(pair.now).is_empty() {
            break;
        }
        assert!(round < 100, "no end");
        // What the peer has answered is not even looked at.
        pair.take(1, |_| true).unwrap();
        let id = pair.ends[1].ike_sas(pair.now)[0].id;
        let again = [request(round, EapType::IDENTITY, b"")];
        pair.sa_by_id(1, id, |sa, ctx| sa.send_response(ctx, ExchangeType::IKE_AUTH, &again).unwrap());
    }
    assert!(pair.story(0).contains("EAP takes more than 50 rounds"), "{}", pair.story(0));
    for (kind, data) in [(EapType::TLS, &b"\x20"[..]), (EapType::IDENTITY, b""), (EapType::MSCHAPV2, b"\x01")]
    {
        let mut pair = delivered(7);
        replace(&mut pair, 0, ExchangeType::IKE_AUTH, &[request(9, kind, data)]);
        refused(pair, 0, &format!("{kind} in the midst of another"));
    }
}

#[test]
fn an_initiator_that_gives_up_is_forgotten_at_once() {
    let failed = [Payload::Notify(Notify::new(NotifyType::AUTHENTICATION_FAILED, Vec::new()))];
    let mut pair = delivered(6);
    replace(&mut pair, 1, ExchangeType::INFORMATIONAL, &failed);
    let next = pair.take(1, |_| true).unwrap();
    pair.deliver(1, next);
    assert!(pair.ends[1].ike_sas(pair.now).is_empty());
    assert!(pair.take_answer(0).is_some());
    // Before that there is nothing to give up.
    let mut pair = delivered(2);
    replace(&mut pair, 1, ExchangeType::INFORMATIONAL, &failed);
    let next = pair.take(1, |_| true).unwrap();
    pair.deliver(1, next);
    assert_eq!(pair.ends[1].ike_sas(pair.now).len(), 1);
}

#[test]
fn an_initiator_that_stays_silent_is_forgotten() {
    let mut pair = delivered(6);
    pair.take(1, |_| true).unwrap();
    pair.addresses[0].clear();
    pair.run(Duration::from_secs(31));
    assert!(pair.ends[1].ike_sas(pair.now).is_empty());
    assert!(pair.story(1).contains("did not authenticate in time"), "{}", pair.story(1));
}

#[test]
fn who_expects_eap_of_the_peer_cannot_initiate() {
    let mut pair = with(|_, _| {});
    pair.start(1);
    pair.run(Duration::from_secs(1));
    assert!(pair.story(1).contains("so the peer has to initiate it"), "{}", pair.story(1));
    assert!(pair.ends[1].ike_sas(pair.now).is_empty());
}
