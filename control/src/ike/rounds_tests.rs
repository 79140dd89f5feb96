//! Several rounds of authentication (RFC 4739), with peers that do as they should and with peers that do not. Pre-shared keys and
//! passwords alone, so that this needs no signatures.

use std::time::Duration;

use mobikex_common::wire::ike::{ExchangeType, Identification, Notify, NotifyType, Payload, PayloadType};

use super::auth::sign_psk;
use super::sa::{Handshake, IkeSa, State};
use super::testing::Pair;
use super::window::Exchange;
use crate::config::{AuthRound, Config, EapId, EapSecret, Method, PskSecret};
use crate::eap::{Kind, NtHash};

/// `a1.example` is the first end in its first round.
fn id(end: usize, round: usize) -> Identification {
    format!("{}{round}.example", ["a", "b"][end]).parse().unwrap()
}

fn password(name: &str, password: &str) -> EapSecret {
    EapSecret { name: "eap-1".into(), ids: vec![name.into()], hash: NtHash::of(password) }
}

/// Both ends prove themselves as often as there are letters: `p` by a secret, `e` in EAP as a user of the number of the round.
fn with(rounds: [&str; 2], change: impl Fn(usize, &mut Config)) -> Pair {
    Pair::with(|me, config| {
        let round = |end: usize, number: usize, letter: char| AuthRound {
            id: Some(id(end, number)),
            method: if letter == 'e' { Method::Eap(vec![Kind::Mschapv2]) } else { Method::Psk },
            eap_id: match (letter, end == me) {
                ('e', true) => EapId::Name(format!("user{number}")),
                ('e', false) => EapId::Any,
                _ => EapId::Unset,
            },
            ..AuthRound::default()
        };
        let all = |end: usize| rounds[end].chars().zip(1..).map(move |(letter, n)| round(end, n, letter));
        let c = &mut config.connections[0];
        (c.local, c.further_local) = (all(me).next().unwrap(), all(me).skip(1).collect());
        (c.remote, c.further_remote) = (all(1 - me).next().unwrap(), all(1 - me).skip(1).collect());
        // A secret for each round of the first end, whichever that of the other one is.
        let secret = |n: usize| PskSecret {
            name: format!("ike-{n}"),
            ids: (1..=3).map(|n| id(1, n)).chain([id(0, n)]).collect(),
            secret: format!("secret {n}").into_bytes().into(),
        };
        config.secrets = (1..=3).map(secret).collect();
        config.eap_secrets = (1..=3).map(|n| password(&format!("user{n}"), &format!("pass{n}"))).collect();
        change(me, config);
    })
}

fn started(rounds: [&str; 2], change: impl Fn(usize, &mut Config)) -> Pair {
    let mut pair = with(rounds, change);
    pair.start(0);
    pair
}

fn up(rounds: [&str; 2], change: impl Fn(usize, &mut Config)) -> Pair {
    let mut pair = started(rounds, change);
    pair.run(Duration::from_secs(1));
    pair
}

/// Started, with so many messages delivered: IKE_SA_INIT is 0 and 1, and then a request is even.
fn delivered(rounds: [&str; 2], count: usize) -> Pair {
    let mut pair = started(rounds, |_, _| {});
    for n in 0..count {
        let to = 1 - n % 2;
        let next = pair.take(to, |_| true).unwrap();
        pair.deliver(to, next);
    }
    pair
}

/// Puts other payloads in the place of those of the message that is on its way.
fn replace(pair: &mut Pair, to: usize, payloads: &[Payload]) {
    pair.take(to, |_| true).unwrap();
    let id = pair.ends[1 - to].ike_sas(pair.now)[0].id;
    pair.sa_by_id(1 - to, id, |sa, ctx| {
        if to == 0 {
            sa.expected_request -= 1;
            sa.send_response(ctx, ExchangeType::IKE_AUTH, payloads).unwrap();
        } else {
            sa.next_request -= 1;
            sa.send_request(ctx, ExchangeType::IKE_AUTH, Exchange::Auth, payloads).unwrap();
        }
    });
}

/// Nothing has come of it at the end that had to judge, for a reason.
fn refused(pair: &mut Pair, judge: usize, reason: &str) {
    pair.run(Duration::from_secs(1));
    let views = pair.ends[judge].ike_sas(pair.now);
    let story = pair.story(judge);
    assert!(views.is_empty(), "{reason}: {views:#?}");
    assert!(story.contains(reason) && !story.contains("established"), "{reason}: {story}");
}

fn fails(rounds: [&str; 2], judge: usize, reason: &str, change: impl Fn(usize, &mut Config)) {
    let mut pair = up(rounds, change);
    refused(&mut pair, judge, reason);
    // An initiator that is refused has nothing either. A responder has said its last word before it can be.
    let other = pair.ends[1 - judge].ike_sas(pair.now);
    assert!(judge == 0 || other.is_empty(), "{other:#?}");
}

fn say(kind: NotifyType) -> Payload {
    Payload::Notify(Notify::new(kind, Vec::new()))
}

/// AUTH of an end as a pre-shared key makes it.
fn auth(pair: &mut Pair, end: usize, me: &Identification, secret: &str) -> Payload {
    let sa = pair.ends[0].ike_sas(pair.now)[0].id;
    pair.sa_by_id(0, sa, |sa: &mut IkeSa, _| {
        let State::AuthSent(sent) = &sa.state else { panic!("the initiator waits for IKE_AUTH") };
        let (keys, handshake): (_, &Handshake) = (sa.keys().unwrap(), &sent.handshake);
        let octets =
            if end == 0 { handshake.of_initiator(keys, me) } else { handshake.of_responder(keys, me) };
        Payload::Auth(sign_psk(keys.prf, &secret.as_bytes().to_vec().into(), &octets))
    })
}

/// A reason to be refused for, and what to say instead.
type Case<'a> = (&'a str, &'a dyn Fn(&mut Pair) -> Vec<Payload>);

#[test]
fn every_number_of_rounds_on_either_side_brings_a_tunnel_up() {
    for rounds in [
        ["p", "pp"],
        ["pp", "p"],
        ["pp", "pp"],
        ["ppp", "ppp"],
        ["p", "ppp"],
        ["pe", "p"],
        ["ep", "p"],
        ["ee", "p"],
        ["e", "ppp"],
        ["pe", "ppp"],
        ["eee", "ppp"],
    ] {
        let mut pair = started(rounds, |_, _| {});
        // Nothing is acted upon before the last message.
        let mut count = 0;
        while let Some((to, next)) = (0..2).find_map(|to| Some((to, pair.take(to, |_| true)?))) {
            let before: String = (0..2).map(|end| pair.story(end)).collect();
            assert!(!before.contains("established"), "{rounds:?}: {before}");
            assert!((0..2).all(|end| pair.ends[end].ike_sas(pair.now).iter().all(|v| v.children.is_empty())));
            pair.deliver(to, next);
            count += 1;
            if pair.ends[0].ike_sas(pair.now).first().is_none_or(|v| v.state == "ESTABLISHED") {
                break;
            }
            if pair.ends[1].ike_sas(pair.now).first().is_some_and(|v| v.state == "ESTABLISHED") {
                let last = pair.take(0, |_| true).unwrap();
                pair.deliver(0, last);
                break;
            }
        }
        pair.run(Duration::from_secs(1));
        assert!(count < 40, "{rounds:?}");
        for end in 0..2 {
            let views = pair.ends[end].ike_sas(pair.now);
            assert!(views.len() == 1 && views[0].state == "ESTABLISHED", "{rounds:?} {}", pair.story(end));
            assert_eq!(views[0].children.len(), 1, "{rounds:?} {}", pair.story(end));
            for (whose, shown) in [(end, &views[0].local_rounds), (1 - end, &views[0].remote_rounds)] {
                let wanted: Vec<_> = rounds[whose]
                    .chars()
                    .zip(1..)
                    .map(|(letter, n)| match letter {
                        'e' => format!("'{}' by EAP as 'user{n}'", id(whose, n)),
                        _ => format!("'{}' by a pre-shared key", id(whose, n)),
                    })
                    .collect();
                assert_eq!(shown.iter().map(ToString::to_string).collect::<Vec<_>>(), wanted, "{rounds:?}");
            }
            // The last round is who the peer is.
            let last = rounds[1 - end].len();
            assert_eq!(views[0].remote_id, Some(id(1 - end, last).to_string()));
        }
    }
}

#[test]
fn only_who_has_rounds_speaks_of_them() {
    let spoken = |pair: &Pair, kind: NotifyType| -> Vec<usize> {
        let all = pair.heard.iter().map(|heard| heard.iter().flatten());
        all.map(|mut heard| {
            heard.by_ref().filter(|p| matches!(p, Payload::Notify(n) if n.kind == kind)).count()
        })
        .collect()
    };
    let pair = up(["p", "p"], |_, _| {});
    assert_eq!(spoken(&pair, NotifyType::MULTIPLE_AUTH_SUPPORTED), [0, 0]);
    let pair = up(["pp", "ppp"], |_, _| {});
    assert_eq!(spoken(&pair, NotifyType::MULTIPLE_AUTH_SUPPORTED), [1, 1]);
    // Beside each AUTH but the last.
    assert_eq!(spoken(&pair, NotifyType::ANOTHER_AUTH_FOLLOWS), [2, 1]);
    // Of a round, IDi and AUTH; everything else stands in the first request and the last response (RFC 4739 2.4).
    let kinds =
        |n: usize, end: usize| -> Vec<PayloadType> { pair.heard[end][n].iter().map(Payload::kind).collect() };
    assert_eq!(kinds(2, 1), [PayloadType::IDI, PayloadType::AUTH]);
    assert_eq!(kinds(3, 1), []);
    assert_eq!(kinds(2, 0), [PayloadType::IDR, PayloadType::AUTH, PayloadType::N]);
    assert!(kinds(3, 0).contains(&PayloadType::SA));
}

#[test]
fn every_round_has_to_succeed() {
    let wrong = |n: usize| {
        move |me: usize, c: &mut Config| {
            if me == 0 {
                c.secrets[n - 1].secret = b"guess".to_vec().into();
            }
        }
    };
    fails(["ppp", "p"], 1, "round 1 of 3 of the peer: the MAC of a1.example is wrong", wrong(1));
    fails(["ppp", "p"], 1, "round 2 of 3 of the peer: the MAC of a2.example is wrong", wrong(2));
    fails(["ppp", "p"], 1, "round 3 of 3 of the peer: the MAC of a3.example is wrong", wrong(3));
    for rounds in [["pe", "p"], ["ee", "pp"]] {
        fails(rounds, 1, "round 2 of 2 of the peer: user 'user2' has a wrong password", |me, c| {
            if me == 0 {
                c.eap_secrets[1] = password("user2", "guess");
            }
        });
    }
    // The first one, although the second would have succeeded.
    fails(["ep", "p"], 1, "round 1 of 2 of the peer: user 'user1' has a wrong password", |me, c| {
        if me == 0 {
            c.eap_secrets[0] = password("user1", "guess");
        }
    });
    // The initiator judges as well; the secret is that of its only round with each of the responder's.
    let mut pair = delivered(["p", "pp"], 5);
    let forged = auth(&mut pair, 1, &id(1, 2), "guess");
    replace(&mut pair, 0, &[Payload::IdR(id(1, 2)), forged]);
    refused(&mut pair, 0, "round 2 of 2 of the peer: the MAC of b2.example is wrong");
}

#[test]
fn who_is_refused_says_in_which_round() {
    let mut pair = up(["pp", "p"], |me, c| {
        if me == 0 {
            c.secrets[1].secret = b"guess".to_vec().into();
        }
    });
    pair.run(Duration::from_secs(1));
    let reason = "we are 'a2.example' by a pre-shared key in round 2 of 2 and asked for 'b1.example'";
    assert!(pair.story(0).contains(reason), "{}", pair.story(0));
}

#[test]
fn identities_and_methods_are_those_of_the_round() {
    let other = |me: usize, c: &mut Config, whose: usize| {
        if me == whose {
            c.connections[0].further_remote[0].id = Some("c.example".parse().unwrap());
        }
    };
    let reason = "round 2 of 2 of the peer: the peer is 'a2.example', the connection expects 'c.example'";
    fails(["pp", "p"], 1, reason, |me, c| other(me, c, 1));
    fails(["pe", "p"], 1, reason, |me, c| other(me, c, 1));
    let reason = "round 2 of 2 of the peer: the peer is 'b2.example', the connection expects 'c.example'";
    fails(["p", "pp"], 0, reason, |me, c| other(me, c, 0));
    // A pattern, or anybody, is enough.
    for wanted in [Some(Identification::pattern("*.example").unwrap()), None] {
        let pair = up(["pp", "p"], |me, c| {
            if me == 1 {
                c.connections[0].further_remote[0].id = wanted.clone();
            }
        });
        assert_eq!(pair.ends[1].ike_sas(pair.now)[0].remote_id.as_deref(), Some("a2.example"));
    }
    let method = |me: usize, c: &mut Config, method: Method| {
        if me == 1 {
            c.connections[0].further_remote[0].method = method;
        }
    };
    fails(["pp", "p"], 1, "'a2.example' uses AUTH alone, we expect EAP", |me, c| {
        method(me, c, Method::Eap(vec![Kind::Mschapv2]));
    });
    fails(["pe", "p"], 1, "'a2.example' asks for EAP, we expect a pre-shared key", |me, c| {
        method(me, c, Method::Psk);
    });
    fails(["pe", "p"], 1, "user 'user2' is not who the connection expects", |me, c| {
        if me == 1 {
            c.connections[0].further_remote[0].eap_id = EapId::Name("user3".into());
        }
    });
}

#[test]
fn the_number_of_rounds_is_the_configured_one() {
    let fewer = |me: usize, c: &mut Config, whose: usize| {
        if me == whose {
            c.connections[0].further_local.pop();
        }
    };
    let reason = "the peer ends after round 2 of 3: 'home' also expects 'a3.example' by a pre-shared key";
    fails(["ppp", "p"], 1, reason, |me, c| fewer(me, c, 0));
    let reason = "the peer ends after round 1 of 2: 'home' also expects 'a2.example' by EAP";
    fails(["pe", "pp"], 1, reason, |me, c| fewer(me, c, 0));
    let reason = "the peer ends after round 1 of 2: 'home' also expects 'a2.example' by a pre-shared key";
    fails(["ep", "pp"], 1, reason, |me, c| fewer(me, c, 0));
    let reason = "the peer ends after round 2 of 3: 'home' also expects 'b3.example' by a pre-shared key";
    fails(["p", "ppp"], 0, reason, |me, c| fewer(me, c, 1));
    let more = |me: usize, c: &mut Config, whose: usize| {
        if me == whose {
            c.connections[0].further_remote.pop();
        }
    };
    let reason = "the peer wants to prove itself once more after round 2; 'home' expects 2";
    fails(["ppp", "p"], 1, reason, |me, c| more(me, c, 1));
    fails(["p", "ppp"], 0, reason, |me, c| more(me, c, 0));
    let reason = "the peer wants to prove itself once more after round 1; 'home' expects 1";
    fails(["pp", "pp"], 1, reason, |me, c| more(me, c, 1));
    fails(["ep", "pp"], 1, reason, |me, c| more(me, c, 1));
}

#[test]
fn a_peer_that_has_not_announced_it_is_told_nothing() {
    let alone = |me: usize, c: &mut Config, whose: usize| {
        if me == whose {
            c.connections[0].further_local.clear();
            c.connections[0].further_remote.clear();
        }
    };
    let reason =
        "several rounds of authentication (2 of 'local', 1 of 'remote'), but the peer has not announced";
    let mut pair = up(["pp", "p"], |me, c| alone(me, c, 1));
    refused(&mut pair, 0, reason);
    assert_eq!(pair.sent[0].len(), 1, "IKE_SA_INIT, and no identity after it");
    for rounds in [["pp", "p"], ["ep", "p"], ["p", "pp"]] {
        let mut pair = up(rounds, |me, c| alone(me, c, 0));
        refused(&mut pair, 1, "but the peer has not announced that it can have more than one");
        let Some(answer) = pair.heard[0].last() else { panic!("it has an answer") };
        assert_eq!(answer, &[say(NotifyType::AUTHENTICATION_FAILED)]);
    }
}

#[test]
fn b7_nonsense_in_a_further_round_of_the_initiator_ends_the_attempt() {
    let me = || Payload::IdI(id(0, 2));
    let rule = "broke the rules of IKE_AUTH";
    let cases: [Case; 8] = [
        (rule, &|_| vec![]),
        (rule, &|pair| vec![auth(pair, 0, &id(0, 2), "secret 2")]),
        ("asks for EAP, we expect a pre-shared key", &|_| vec![me()]),
        (rule, &|pair| vec![me(), me(), auth(pair, 0, &id(0, 2), "secret 2")]),
        (rule, &|_| vec![Payload::Eap(vec![2, 0, 0, 5, 1])]),
        ("the MAC of a2.example is wrong", &|pair| vec![me(), auth(pair, 0, &id(0, 1), "secret 2")]),
        // The first round's, which would be right there.
        ("the peer is 'a1.example'", &|pair| {
            vec![Payload::IdI(id(0, 1)), auth(pair, 0, &id(0, 1), "secret 1")]
        }),
        ("wants to prove itself once more", &|pair| {
            vec![me(), auth(pair, 0, &id(0, 2), "secret 2"), say(NotifyType::ANOTHER_AUTH_FOLLOWS)]
        }),
    ];
    for (reason, payloads) in cases {
        let mut pair = delivered(["pp", "p"], 4);
        let payloads = payloads(&mut pair);
        replace(&mut pair, 1, &payloads);
        refused(&mut pair, 1, reason);
    }
    // What begins a round after the last one; the responder goes on by itself.
    for payloads in [vec![me()], vec![Payload::Eap(vec![2, 0, 0, 5, 1])]] {
        let mut pair = delivered(["p", "pp"], 4);
        replace(&mut pair, 1, &payloads);
        refused(&mut pair, 1, "the initiator has had its last round");
    }
    // EAP that is not over, and AUTH that is not made with its key.
    for (count, reason) in [(6, rule), (8, rule), (10, rule), (12, "round 2 of 2 of the peer: the AUTH of")] {
        let mut pair = delivered(["pe", "p"], count);
        let payloads = [me(), auth(&mut pair, 0, &id(0, 2), "secret 2")];
        replace(&mut pair, 1, &payloads);
        refused(&mut pair, 1, reason);
    }
}

#[test]
fn b7_nonsense_in_a_further_round_of_the_responder_ends_the_attempt() {
    let me = || Payload::IdR(id(1, 2));
    let rule = "broke the rules of IKE_AUTH";
    let sa = |pair: &mut Pair| {
        let mut requests = pair.heard[1].iter().rev().flatten();
        requests.find(|p| p.kind() == PayloadType::SA).unwrap().clone()
    };
    let cases: [Case; 7] = [
        (rule, &|_| vec![]),
        (rule, &|_| vec![me()]),
        (rule, &|pair| vec![auth(pair, 1, &id(1, 2), "secret 1")]),
        ("the MAC of b2.example is wrong", &|pair| vec![me(), auth(pair, 1, &id(1, 1), "secret 1")]),
        ("the peer is 'b1.example'", &|pair| {
            vec![Payload::IdR(id(1, 1)), auth(pair, 1, &id(1, 1), "secret 1")]
        }),
        ("peer answered AUTHENTICATION_FAILED", &|_| vec![say(NotifyType::AUTHENTICATION_FAILED)]),
        // It acts before it is at its end.
        ("the response has SA before the last round", &|pair| {
            let auth = auth(pair, 1, &id(1, 2), "secret 1");
            vec![me(), auth, say(NotifyType::ANOTHER_AUTH_FOLLOWS), sa(pair)]
        }),
    ];
    for (reason, payloads) in cases {
        let mut pair = delivered(["p", "ppp"], 5);
        let payloads = payloads(&mut pair);
        replace(&mut pair, 0, &payloads);
        refused(&mut pair, 0, reason);
    }
    // A last response without AUTH (RFC 4739 2.4) may say that there is no Child SA, but not that we are refused.
    for (kind, stands) in [(NotifyType::TS_UNACCEPTABLE, true), (NotifyType::AUTHENTICATION_FAILED, false)] {
        let mut pair = delivered(["pp", "p"], 5);
        replace(&mut pair, 0, &[say(kind)]);
        let next = pair.take(0, |_| true).unwrap();
        pair.deliver(0, next);
        assert_eq!(pair.ends[0].ike_sas(pair.now).len(), usize::from(stands), "{kind}");
        assert!(pair.ends[0].ike_sas(pair.now).iter().all(|v| v.children.is_empty()));
    }
}

#[test]
fn b1_nothing_but_ike_auth_is_heard_between_rounds() {
    for exchange in [ExchangeType::INFORMATIONAL, ExchangeType::CREATE_CHILD_SA] {
        let mut pair = delivered(["pp", "pp"], 4);
        pair.take(1, |_| true).unwrap();
        let sa = pair.ends[0].ike_sas(pair.now)[0].id;
        pair.sa_by_id(0, sa, |sa, ctx| {
            sa.next_request -= 1;
            sa.send_request(ctx, exchange, Exchange::Auth, &[say(NotifyType::INITIAL_CONTACT)]).unwrap();
        });
        let before = pair.sent[1].len();
        let next = pair.take(1, |_| true).unwrap();
        pair.deliver(1, next);
        assert_eq!(pair.sent[1].len(), before, "{exchange} is answered");
    }
}

#[test]
fn an_initiator_that_gives_up_between_rounds_is_forgotten_at_once() {
    let mut pair = delivered(["pp", "pp"], 4);
    pair.take(1, |_| true).unwrap();
    let sa = pair.ends[0].ike_sas(pair.now)[0].id;
    pair.sa_by_id(0, sa, |sa, ctx| {
        sa.next_request -= 1;
        let failed = [say(NotifyType::AUTHENTICATION_FAILED)];
        sa.send_request(ctx, ExchangeType::INFORMATIONAL, Exchange::Auth, &failed).unwrap();
    });
    let next = pair.take(1, |_| true).unwrap();
    pair.deliver(1, next);
    assert!(pair.ends[1].ike_sas(pair.now).is_empty());
    assert!(pair.story(1).contains("the initiator has given up"), "{}", pair.story(1));
}

#[test]
fn who_expects_eap_in_any_round_cannot_initiate() {
    for rounds in [["pe", "p"], ["ep", "pp"]] {
        let mut pair = with(rounds, |_, _| {});
        pair.start(1);
        pair.run(Duration::from_secs(1));
        refused(&mut pair, 1, "so the peer has to initiate it");
    }
}

#[test]
fn b11_the_same_request_has_the_same_answer_in_every_round() {
    for count in [2, 4, 6] {
        let mut pair = delivered(["ppp", "ppp"], count);
        let request = pair.take(1, |_| true).unwrap();
        pair.deliver(1, request.clone());
        let first = pair.take(0, |_| true).unwrap();
        pair.deliver(1, request);
        let again = pair.take(0, |_| true).unwrap();
        assert_eq!(first.data, again.data, "message {count}");
        pair.deliver(0, first);
        pair.deliver(0, again);
        pair.run(Duration::from_secs(1));
        assert_eq!(pair.ends[0].ike_sas(pair.now)[0].state, "ESTABLISHED");
    }
}

#[test]
fn who_stops_between_rounds_is_forgotten() {
    let mut pair = delivered(["pp", "pp"], 4);
    pair.take(1, |_| true).unwrap();
    pair.addresses[0].clear();
    pair.run(Duration::from_secs(29));
    assert_eq!(pair.ends[1].ike_sas(pair.now).len(), 1, "it counts as half-open");
    pair.run(Duration::from_secs(2));
    assert!(pair.ends[1].ike_sas(pair.now).is_empty());
    assert!(pair.story(1).contains("did not authenticate in time"), "{}", pair.story(1));
}

#[test]
fn a_peer_is_the_same_only_if_all_its_rounds_are() {
    let peer = |change: &dyn Fn(usize, &mut Config)| {
        let mut pair = up(["pp", "p"], change);
        pair.sa(1, |sa, _| sa.peer().unwrap().clone())
    };
    let first = peer(&|_, _| {});
    assert_eq!(first, peer(&|_, _| {}));
    let secret = peer(&|_, c| c.secrets[0].secret = b"another".to_vec().into());
    assert_ne!(first, secret, "the last round is the same, the first one is not");
    assert!(first.id().same(secret.id()));
    assert_eq!(first.rounds().len(), 2);
    assert_eq!(first.rounds()[0].id(), &id(0, 1));
}

#[test]
fn another_connection_of_the_same_identity_is_chosen_by_its_rounds() {
    for (rounds, chosen) in [("p", "single"), ("pp", "home")] {
        let pair = up(["pp", "p"], |me, c| {
            if me == 1 {
                let mut single = c.connections[0].clone();
                single.name = "single".into();
                single.further_remote.clear();
                c.connections.push(single);
            } else if rounds == "p" {
                c.connections[0].further_local.clear();
            }
        });
        let views = pair.ends[1].ike_sas(pair.now);
        assert_eq!(views.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(), [chosen], "{}", pair.story(1));
    }
}
