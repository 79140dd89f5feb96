//! IKE_AUTH with certificates and raw public keys, between two endpoints.

use std::sync::Arc;
use std::time::Duration;

use mobikex::config::{AuthRound, Config, Method, SendCert};
use mobikex::credentials::{Certificate, PubkeyRules};
use mobikex::ike::Event;
use rcgen::{KeyPair, SanType, SignatureAlgorithm};

use crate::made::{Ca, NOW, key, keys_of_every_kind, own};
use crate::pair::{Pair, config};

const P256: &SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
const NAMES: [&str; 2] = ["a.example", "b.example"];

fn cert(der: &[u8]) -> Arc<Certificate> {
    Arc::new(Certificate::from_der(der, "made").unwrap())
}

pub fn pubkey(auth: &str) -> Method {
    Method::Pubkey(PubkeyRules::parse(auth).unwrap())
}

/// Side `me` with a certificate of `ca` for a key, and trust in `trusted`.
pub fn side(me: usize, key: &KeyPair, ca: &Ca, trusted: &[&Ca]) -> Config {
    let mut c = config(me);
    c.secrets.clear();
    c.connections[0].local.method = pubkey("pubkey");
    c.connections[0].remote.method = pubkey("pubkey");
    c.credentials.keys.push(own(key));
    c.credentials.certificates.push(cert(&ca.end(NAMES[me], key, |_| {})));
    c.credentials.authorities.extend(trusted.iter().map(|ca| Arc::clone(&ca.cert)));
    c
}

pub fn pair(a: Config, b: Config) -> Pair {
    let mut pair = Pair::with(1, a, b);
    for host in 0..2 {
        let now = pair.now;
        pair.hosts[host].endpoint.set_clock(now, NOW);
    }
    pair
}

pub fn up(a: Config, b: Config) -> Pair {
    let mut pair = pair(a, b);
    pair.up(0);
    pair.advance(Duration::from_secs(2));
    pair
}

pub fn connects(a: Config, b: Config) -> Pair {
    let pair = up(a, b);
    pair.assert_one_tunnel();
    pair
}

/// The reasons that both sides give for a failure: the initiator's and the responder's.
pub fn reasons(a: Config, b: Config) -> [String; 2] {
    let pair = up(a, b);
    [0, 1].map(|host| {
        assert!(pair.views(host).is_empty(), "an IKE SA is left at {host}");
        let failed = pair.hosts[host].events.iter().find_map(|event| match event {
            Event::IkeFailed { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        failed.unwrap_or_default()
    })
}

#[test]
fn every_kind_of_key_proves_either_side() {
    let ca = Ca::new("root");
    for keys in keys_of_every_kind() {
        connects(side(0, &keys[0], &ca, &[&ca]), side(1, &keys[1], &ca, &[&ca]));
    }
}

#[test]
fn rules_choose_hash_and_padding() {
    let (ca, keys) = (Ca::new("root"), [key(&rcgen::PKCS_RSA_SHA256), key(P256)]);
    let with = |ours: &str, theirs: &str| {
        let (mut a, mut b) = (side(0, &keys[0], &ca, &[&ca]), side(1, &keys[1], &ca, &[&ca]));
        a.connections[0].local.method = pubkey(ours);
        b.connections[0].remote.method = pubkey(theirs);
        (a, b)
    };
    for (ours, theirs) in [
        ("rsa", "rsa-2048-sha256"),
        ("rsa-sha512", "ike:rsa-sha512"),
        ("rsa/pss-sha384", "ike:rsa/pss-sha384"),
        ("rsa/pss", "pubkey"),
    ] {
        let (a, b) = with(ours, theirs);
        connects(a, b);
    }
    for (ours, theirs, reason) in [
        ("rsa", "ecdsa", "RSA 2048 is not what the connection takes (ecdsa)"),
        ("rsa", "rsa-3072", "RSA 2048 is not what the connection takes"),
        ("rsa-sha256", "ike:rsa-sha512", "RSA (PKCS#1 v1.5) with sha256 with RSA 2048 is not what"),
        ("rsa", "ike:rsa/pss", "RSA (PKCS#1 v1.5) with sha256 with RSA 2048 is not what"),
        ("rsa", "pubkey-sha384", "its algorithm is not taken"),
    ] {
        let (a, b) = with(ours, theirs);
        let told = reasons(a, b);
        assert!(told[1].contains(reason), "{told:?}");
        let all = "peer answered AUTHENTICATION_FAILED; we are 'a.example' by a signature and asked for 'b.example'; what \
            does not fit stands in the peer's log";
        assert_eq!(told[0], all, "the peer learns no more");
    }
}

#[test]
fn intermediate_cas_travel_with_the_certificate_and_certreq_chooses_it() {
    let (root, other) = (Ca::new("root"), Ca::new("other"));
    let (sub, keys) = (root.below("sub", |_| {}), [key(P256), key(P256)]);
    let mut a = side(0, &keys[0], &other, &[&root, &sub]);
    // Two certificates for the same name; the peer asks for those of the root alone.
    a.credentials.certificates.push(cert(&sub.end(NAMES[0], &keys[0], |_| {})));
    let b = side(1, &keys[1], &root, &[&root]);
    connects(a.clone(), b.clone());
    a.credentials.certificates.pop();
    assert!(reasons(a, b)[1].contains("no trusted CA has issued"));
}

#[test]
fn an_identity_has_to_be_in_the_certificate() {
    let (ca, keys) = (Ca::new("root"), [key(P256), key(P256)]);
    let with = |id: &str, change: fn(&mut rcgen::CertificateParams)| {
        let (mut a, mut b) = (side(0, &keys[0], &ca, &[&ca]), side(1, &keys[1], &ca, &[&ca]));
        let own = cert(&ca.end(NAMES[0], &keys[0], change));
        a.credentials.certificates = vec![Arc::clone(&own)];
        a.connections[0].local.certs = vec![own];
        a.connections[0].local.id = Some(id.parse().unwrap());
        b.connections[0].remote.id = Some(id.parse().unwrap());
        (a, b)
    };
    let many: fn(&mut rcgen::CertificateParams) = |p| {
        p.subject_alt_names = vec![
            SanType::DnsName("gw.example".try_into().unwrap()),
            SanType::Rfc822Name("carol@example.org".try_into().unwrap()),
            SanType::IpAddress("192.0.2.1".parse().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
        ];
    };
    for id in [
        "GW.example",
        "carol@example.org",
        "192.0.2.1",
        "2001:db8::1",
        "C=CH, CN=a.example",
        "C=ch, CN=A.Example",
    ] {
        let (a, b) = with(id, many);
        connects(a, b);
    }
    for id in [
        "a.example",
        "x.gw.example",
        "example",
        "dave@example.org",
        "192.0.2.9",
        "C=CH, CN=b.example",
        "CN=a.example",
    ] {
        let (a, b) = with(id, many);
        let told = reasons(a, b);
        assert!(told[1].contains("the certificate of 'C=CH, CN=a.example' is not for"), "{id}: {told:?}");
    }
}

#[test]
fn patterns_stand_for_many_peers_and_never_for_what_a_peer_sends() {
    let (ca, keys) = (Ca::new("root"), [key(P256), key(P256)]);
    for (pattern, fits) in [("*.example", true), ("C=CH, CN=*", false), ("*.example.org", false)] {
        let (a, mut b) = (side(0, &keys[0], &ca, &[&ca]), side(1, &keys[1], &ca, &[&ca]));
        b.connections[0].remote.id =
            Some(mobikex_common::wire::ike::Identification::pattern(pattern).unwrap());
        if fits {
            connects(a, b);
        } else {
            assert!(reasons(a, b)[1].contains("no connection expects 'a.example'"));
        }
    }
}

#[test]
fn connections_may_trust_different_cas_for_anybody() {
    let (one, two) = (Ca::new("one"), Ca::new("two"));
    let keys = [key(P256), key(P256)];
    let a = side(0, &keys[0], &two, &[&one, &two]);
    let mut b = side(1, &keys[1], &one, &[&one, &two]);
    let mut first = b.connections[0].clone();
    first.remote =
        AuthRound { method: pubkey("pubkey"), cacerts: vec![Arc::clone(&one.cert)], ..AuthRound::default() };
    let mut second = first.clone();
    second.name = "second".into();
    second.remote.cacerts = vec![Arc::clone(&two.cert)];
    b.connections = vec![first.clone(), second];
    let pair = up(a.clone(), b.clone());
    assert_eq!(pair.views(1)[0].name, "second");
    b.connections.pop();
    assert!(reasons(a, b)[1].contains("no trusted CA has issued"));
}

#[test]
fn a_certificate_that_is_not_sent_may_be_known() {
    let (ca, keys) = (Ca::new("root"), [key(P256), key(P256)]);
    let (mut a, mut b) = (side(0, &keys[0], &ca, &[&ca]), side(1, &keys[1], &ca, &[&ca]));
    a.connections[0].send_cert = SendCert::Never;
    assert!(
        reasons(a.clone(), b.clone())[1]
            .contains("'a.example' has sent no certificate, and none of it is loaded")
    );
    b.credentials.certificates.push(Arc::clone(&a.credentials.certificates[0]));
    connects(a.clone(), b.clone());
    // Without CERTREQ nothing is sent, unless always.
    b.credentials.certificates.pop();
    b.connections[0].send_certreq = false;
    a.connections[0].send_cert = SendCert::IfAsked;
    assert!(reasons(a.clone(), b.clone())[1].contains("has sent no certificate"));
    a.connections[0].send_cert = SendCert::Always;
    connects(a, b);
}

#[test]
fn rfc7670_raw_public_keys() {
    let keys = [key(&rcgen::PKCS_ED25519), key(&rcgen::PKCS_RSA_SHA256), key(P256)];
    let public = |n: usize| own(&keys[n]).key.public().clone();
    let raw = |me: usize| {
        let mut c = config(me);
        c.secrets.clear();
        let round = |n: usize, id: &str| AuthRound {
            id: Some(id.parse().unwrap()),
            method: pubkey("pubkey"),
            pubkeys: vec![public(n)],
            ..AuthRound::default()
        };
        c.connections[0].local = round(me, NAMES[me]);
        c.connections[0].remote = round(1 - me, NAMES[1 - me]);
        c.credentials.keys.push(own(&keys[me]));
        c
    };
    for send in [SendCert::IfAsked, SendCert::Never] {
        let mut a = raw(0);
        a.connections[0].send_cert = send;
        connects(a, raw(1));
    }
    let mut b = raw(1);
    b.connections[0].remote.pubkeys = vec![public(2)];
    assert!(reasons(raw(0), b.clone())[1].contains("the raw public key of 'a.example' is not a known one"));
    let mut a = raw(0);
    a.connections[0].send_cert = SendCert::Never;
    assert!(reasons(a, b)[1].contains("it is wrong for its key (ECDSA 256)"));
}

#[test]
fn b3_methods_do_not_stand_in_for_each_other() {
    let (ca, keys) = (Ca::new("root"), [key(P256), key(P256)]);
    let signing = |me: usize| side(me, &keys[me], &ca, &[&ca]);
    assert!(
        reasons(config(0), signing(1))[1]
            .contains("'a.example' uses a pre-shared key, we expect a signature")
    );
    assert!(reasons(signing(0), config(1))[1].contains("we expect a pre-shared key"));
    // One side each.
    let (mut a, mut b) = (signing(0), signing(1));
    (a.secrets, b.secrets) = (config(0).secrets, config(1).secrets);
    a.connections[0].remote.method = Method::Psk;
    b.connections[0].local.method = Method::Psk;
    connects(a, b);
}

#[test]
fn a_wrong_key_and_an_unknown_time_prove_nobody() {
    let (ca, keys) = (Ca::new("root"), [key(P256), key(P256)]);
    let (mut a, b) = (side(0, &keys[0], &ca, &[&ca]), side(1, &keys[1], &ca, &[&ca]));
    let mut pair = Pair::with(1, a.clone(), b.clone());
    pair.up(0);
    pair.advance(Duration::from_secs(2));
    let reason = pair.hosts[1].events.iter().map(ToString::to_string).collect::<String>();
    assert!(reason.contains("the time is not known"), "{reason}");
    // The certificate of another key with our name: we have no key for it, so we do not even try.
    a.credentials.keys = vec![own(&keys[1])];
    let mut pair = self::pair(a, b);
    pair.up(0);
    pair.advance(Duration::from_secs(2));
    let story = pair.hosts[0].events.iter().map(ToString::to_string).collect::<String>();
    assert!(story.contains("no private key with a certificate for 'a.example' is loaded"), "{story}");
}
