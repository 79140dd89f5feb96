//! Several rounds of authentication (RFC 4739) with every method, over a network that is not kind to them.

use std::sync::Arc;
use std::time::Duration;

use mobikex::config::{AuthRound, Config, EapId, EapSecret, Method, PskSecret};
use mobikex::credentials::Certificate;
use mobikex::eap::{Kind, NtHash};
use mobikex_common::wire::ike::{Header, PayloadType};
use rcgen::KeyPair;

use crate::certificates::{connects, pair, pubkey, reasons, up};
use crate::made::{Ca, key, own};
use crate::pair::{Pair, config};

const P256: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
const SECOND: Duration = Duration::from_secs(1);

/// `a1.example` is the first end in its first round.
fn name(end: usize, round: usize) -> String {
    format!("{}{round}.example", ["a", "b"][end])
}

/// What the ends have to prove themselves with: a key and a certificate for each name.
struct Office {
    ca: Ca,
    keys: Vec<KeyPair>,
}

impl Office {
    fn new() -> Self {
        // The hash that RFC 7427 agrees on goes with keys of every kind.
        let algs = [P256, &rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384];
        let keys = (0..6).map(|n| key(algs[n % 3])).collect();
        Self { ca: Ca::new("root"), keys }
    }

    fn round(&self, end: usize, number: usize, method: &str, ours: bool) -> AuthRound {
        AuthRound {
            id: Some(name(end, number).parse().unwrap()),
            method: match method {
                "psk" => Method::Psk,
                "cert" | "raw" => pubkey("pubkey"),
                "mschapv2" => Method::Eap(vec![Kind::Mschapv2]),
                "tls" => Method::Eap(vec![Kind::Tls]),
                other => panic!("{other} is no method"),
            },
            pubkeys: match method {
                "raw" => vec![own(&self.keys[3 * end + number - 1]).key.public().clone()],
                _ => vec![],
            },
            eap_id: match (method, ours) {
                ("mschapv2", true) => EapId::Name("carol".into()),
                ("mschapv2", false) => EapId::Any,
                _ => EapId::Unset,
            },
            ..AuthRound::default()
        }
    }

    /// Both ends, which prove themselves by these methods.
    fn configs(&self, methods: [&[&str]; 2]) -> [Config; 2] {
        [0, 1].map(|me| {
            let mut c = config(me);
            let all =
                |end: usize| methods[end].iter().zip(1..).map(move |(m, n)| self.round(end, n, m, end == me));
            let conn = &mut c.connections[0];
            (conn.local, conn.further_local) = (all(me).next().unwrap(), all(me).skip(1).collect());
            (conn.remote, conn.further_remote) = (all(1 - me).next().unwrap(), all(1 - me).skip(1).collect());
            let everybody = (0..2).flat_map(|end| (1..=3).map(move |n| name(end, n).parse().unwrap()));
            c.secrets = vec![PskSecret {
                name: "ike".into(),
                ids: everybody.collect(),
                secret: b"x".to_vec().into(),
            }];
            c.eap_secrets = vec![EapSecret {
                name: "eap".into(),
                ids: vec!["carol".into()],
                hash: NtHash::of("Ar3etTnp"),
            }];
            for n in 0..3 {
                let key = &self.keys[3 * me + n];
                let der = self.ca.end(&name(me, n + 1), key, |_| {});
                c.credentials.keys.push(own(key));
                c.credentials.certificates.push(Arc::new(Certificate::from_der(&der, "made").unwrap()));
            }
            c.credentials.authorities.push(Arc::clone(&self.ca.cert));
            c
        })
    }
}

fn rounds(pair: &Pair, host: usize) -> (Vec<String>, Vec<String>) {
    let views = pair.views(host);
    let live = views.iter().find(|v| v.state == "ESTABLISHED").unwrap();
    let shown = |rounds: &[mobikex::ike::RoundView]| rounds.iter().map(ToString::to_string).collect();
    (shown(&live.local_rounds), shown(&live.remote_rounds))
}

#[test]
fn every_method_goes_with_every_other() {
    let office = Office::new();
    let methods = ["psk", "cert", "raw", "mschapv2", "tls"];
    let pairs = methods.iter().flat_map(|first| methods.iter().map(move |second| [*first, *second]));
    for ours in pairs {
        for theirs in [&["cert"][..], &["psk", "raw"][..]] {
            let [a, b] = office.configs([&ours, theirs]);
            let pair = connects(a, b);
            assert_eq!(rounds(&pair, 0).0, rounds(&pair, 1).1, "{ours:?} {theirs:?}");
            assert_eq!(rounds(&pair, 0).1, rounds(&pair, 1).0, "{ours:?} {theirs:?}");
        }
    }
}

#[test]
fn the_responder_may_have_more_rounds_than_the_initiator() {
    let office = Office::new();
    let [a, b] = office.configs([&["cert"], &["cert", "raw", "psk"]]);
    let pair = connects(a, b);
    let shown =
        ["'b1.example' by a signature", "'b2.example' by a signature", "'b3.example' by a pre-shared key"];
    assert_eq!(rounds(&pair, 0).1, shown);
    // Or EAP that takes longer than all of them.
    let [a, b] = office.configs([&["tls"], &["cert", "raw", "psk"]]);
    let pair = connects(a, b);
    assert_eq!(rounds(&pair, 0).1, shown);
}

#[test]
fn certificates_are_judged_in_each_round() {
    let (office, other) = (Office::new(), Ca::new("other"));
    let refuse = |judge: usize, methods: [&[&str]; 2], reason: &str, change: &dyn Fn(&mut AuthRound)| {
        let mut configs = office.configs(methods);
        change(&mut configs[judge].connections[0].further_remote[0]);
        let [a, b] = configs;
        if judge == 1 {
            let told = reasons(a, b);
            assert!(told[1].contains(reason), "{reason}: {told:?}");
        } else {
            let pair = up(a, b);
            assert!(
                pair.views(0).is_empty() && pair.story(0).contains(reason),
                "{reason}: {}",
                pair.story(0)
            );
        }
    };
    let of_other = |round: &mut AuthRound| round.cacerts = vec![Arc::clone(&other.cert)];
    refuse(1, [&["psk", "cert"], &["psk"]], "no trusted CA has issued", &of_other);
    refuse(1, [&["cert", "tls"], &["psk"]], "no trusted CA has issued", &of_other);
    refuse(0, [&["psk"], &["psk", "cert"]], "no trusted CA has issued", &of_other);
    // A certificate of the first round does not serve for the second one.
    let first = office.configs([&["cert", "cert"], &["psk"]])[0].credentials.certificates[0].clone();
    let pinned = |round: &mut AuthRound| round.certs = vec![first.clone()];
    refuse(1, [&["cert", "cert"], &["psk"]], "round 2 of 2 of the peer: ", &pinned);
    let rsa = |round: &mut AuthRound| round.method = pubkey("rsa");
    refuse(1, [&["psk", "cert"], &["psk"]], "is not what the connection takes (rsa)", &rsa);
    let wrong = |round: &mut AuthRound| round.pubkeys = vec![own(&office.keys[0]).key.public().clone()];
    refuse(1, [&["psk", "raw"], &["psk"]], "the raw public key of 'a2.example' is not a known one", &wrong);
}

#[test]
fn b18_a_refusal_leaves_nothing_behind() {
    let office = Office::new();
    for methods in [[&["cert", "mschapv2"][..], &["cert"][..]], [&["cert", "psk"], &["cert", "raw"]]] {
        let [mut a, b] = office.configs(methods);
        a.eap_secrets[0].hash = NtHash::of("guess");
        a.secrets[0].secret = b"guess".to_vec().into();
        let pair = up(a, b);
        pair.assert_nothing_is_left();
        assert!(pair.story(1).contains("round 2 of 2 of the peer: "), "{}", pair.story(1));
    }
}

#[test]
fn loss_only_delays_and_fragments_carry_every_round() {
    let office = Office::new();
    for seed in 0..12 {
        let methods = [["cert", "mschapv2"], ["raw", "tls"], ["cert", "cert"]][seed as usize % 3];
        let mut configs = office.configs([&methods, &["cert", "cert"]]);
        configs.iter_mut().for_each(|c| c.daemon.fragment_size = 576);
        let [a, b] = configs;
        let mut pair = pair(a, b);
        // So that all are there within the half minute that the responder waits.
        (pair.loss, pair.duplication, pair.reordering) = (4, 20, 20);
        pair.up(0);
        pair.advance(200 * SECOND);
        if pair.views(0).is_empty() {
            pair.up(0);
            pair.advance(200 * SECOND);
        }
        pair.assert_one_tunnel();
        assert_eq!(rounds(&pair, 1).1.len(), 2, "seed {seed}");
        let fragments = |data: &[u8]| Header::parse(data).is_ok_and(|h| h.next_payload == PayloadType::SKF);
        assert!(pair.sent.iter().filter(|(_, data)| fragments(data)).count() > 4, "seed {seed}");
    }
}

#[test]
fn rekeying_keeps_the_rounds_and_reauthentication_has_them_all_again() {
    let office = Office::new();
    let mut configs = office.configs([&["cert", "mschapv2"], &["cert", "psk"]]);
    for c in &mut configs {
        let c = &mut c.connections[0];
        (c.reauth_time, c.over_time, c.rand_time) = (600 * SECOND, 60 * SECOND, Duration::ZERO);
    }
    let [a, b] = configs;
    let mut pair = connects(a, b);
    let all = [rounds(&pair, 0), rounds(&pair, 1)];
    assert_eq!(all[1].1, ["'a1.example' by a signature", "'a2.example' by EAP as 'carol'"]);
    for host in 0..2 {
        pair.rekey(host, None);
        pair.advance(10 * SECOND);
        pair.assert_one_tunnel();
        assert_eq!([rounds(&pair, 0), rounds(&pair, 1)], all);
    }
    let spi = pair.views(1).iter().find(|v| v.state == "ESTABLISHED").unwrap().spi_i;
    let proofs = |pair: &Pair| pair.story(1).matches("established between").count();
    let before = proofs(&pair);
    pair.advance(620 * SECOND);
    pair.assert_one_tunnel();
    assert_eq!(proofs(&pair), before + 1, "{}", pair.story(1));
    assert_ne!(pair.views(1).iter().find(|v| v.state == "ESTABLISHED").unwrap().spi_i, spi);
    assert_eq!([rounds(&pair, 0), rounds(&pair, 1)], all);
    assert!(pair.story(1).contains("[a1.example, carol]"), "{}", pair.story(1));
}
