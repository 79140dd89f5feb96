//! IKE_AUTH with EAP and certificates, between two endpoints.

use std::time::Duration;

use mobikex::config::{Config, EapId, EapSecret, Method};
use mobikex::eap::{Kind, NtHash};
use mobikex_common::wire::ike::{ExchangeType, Header};
use rcgen::KeyPair;

use crate::certificates::{connects, pair, pubkey, reasons, side};
use crate::made::{Ca, key, keys_of_every_kind};

const P256: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;

fn secret(name: &str, password: &str) -> EapSecret {
    EapSecret { name: "eap-1".into(), ids: vec![name.into()], hash: NtHash::of(password) }
}

/// An initiator that proves itself by one of these methods to a responder with a certificate.
fn roadwarrior(keys: &[KeyPair; 2], ca: &Ca, kinds: &[Kind]) -> (Config, Config) {
    let (mut a, mut b) = (side(0, &keys[0], ca, &[ca]), side(1, &keys[1], ca, &[ca]));
    a.connections[0].local.method = Method::Eap(kinds.to_vec());
    b.connections[0].remote.method = Method::Eap(kinds.to_vec());
    b.connections[0].remote.eap_id = EapId::Any;
    a.eap_secrets = vec![secret("a.example", "Ar3etTnp")];
    b.eap_secrets = a.eap_secrets.clone();
    (a, b)
}

fn two_keys() -> [KeyPair; 2] {
    [key(P256), key(P256)]
}

#[test]
fn mschapv2_with_a_certificate_of_the_responder() {
    let (ca, keys) = (Ca::new("root"), two_keys());
    let (a, b) = roadwarrior(&keys, &ca, &[Kind::Mschapv2]);
    let mut pair = connects(a, b);
    assert_eq!(pair.views(1)[0].remote_eap_id.as_deref(), Some("a.example"));
    for host in 0..2 {
        pair.rekey(host, None);
        pair.advance(Duration::from_secs(10));
        pair.assert_one_tunnel();
    }
    assert_eq!(pair.views(1)[0].remote_eap_id.as_deref(), Some("a.example"));
}

#[test]
fn b3_nothing_is_said_in_eap_to_a_responder_that_is_not_the_one() {
    let (ca, other, keys) = (Ca::new("root"), Ca::new("other"), two_keys());
    for kind in [Kind::Mschapv2, Kind::Tls] {
        let (mut a, b) = roadwarrior(&keys, &ca, &[kind]);
        a.credentials.authorities = vec![other.cert.clone()];
        let mut pair = pair(a, b);
        pair.up(0);
        pair.advance(Duration::from_secs(2));
        assert!(pair.story(0).contains("no trusted CA has issued"), "{}", pair.story(0));
        assert!(pair.views(0).is_empty() && pair.views(1).is_empty());
        let from_us = pair.sent.iter().filter(|(host, _)| *host == 0);
        let kinds: Vec<_> = from_us.map(|(_, data)| Header::parse(data).unwrap().exchange).collect();
        let [init, auth] = [ExchangeType::IKE_SA_INIT, ExchangeType::IKE_AUTH];
        assert_eq!(
            kinds,
            [init, auth, ExchangeType::INFORMATIONAL],
            "only IKE_AUTH could name a user, and it is the first"
        );
        assert!(pair.story(1).contains("the initiator has given up"), "{}", pair.story(1));
    }
}

#[test]
fn tls_proves_both_with_every_kind_of_key() {
    let ca = Ca::new("root");
    for keys in keys_of_every_kind() {
        let (a, b) = roadwarrior(&keys, &ca, &[Kind::Tls]);
        let pair = connects(a, b);
        assert_eq!(pair.views(1)[0].remote_eap_id.as_deref(), Some("a.example"));
    }
}

#[test]
fn tls_judges_certificates_as_ike_does() {
    let (ca, other, keys) = (Ca::new("root"), Ca::new("other"), two_keys());
    let refuse = |change: &dyn Fn(&mut Config, &mut Config), who: usize, reason: &str| {
        let (mut a, mut b) = roadwarrior(&keys, &ca, &[Kind::Tls]);
        change(&mut a, &mut b);
        let told = reasons(a, b);
        assert!(told[who].contains(reason), "{reason}: {told:?}");
    };
    let strange = side(0, &keys[0], &other, &[]).credentials.certificates;
    refuse(&|a, _| a.credentials.certificates = strange.clone(), 1, "no trusted CA has issued");
    // A certificate of another name than the one said in EAP.
    refuse(
        &|a, _| {
            let local = &mut a.connections[0].local;
            local.certs = a.credentials.certificates.clone();
            local.eap_id = EapId::Name("carol".into());
        },
        1,
        "is not for 'carol'",
    );
    refuse(
        &|_, b| b.connections[0].remote.eap_id = EapId::Name("carol".into()),
        1,
        "user 'a.example' is not who the connection expects",
    );
    refuse(&|_, b| b.connections[0].remote.cacerts = vec![other.cert.clone()], 1, "no trusted CA has issued");
}

#[test]
fn the_peer_may_choose_another_method() {
    let (ca, keys) = (Ca::new("root"), two_keys());
    let (mut a, b) = roadwarrior(&keys, &ca, &[Kind::Tls, Kind::Mschapv2]);
    a.connections[0].local.method = Method::Eap(vec![Kind::Mschapv2]);
    connects(a.clone(), b.clone());
    let mut only = b;
    only.connections[0].remote.method = Method::Eap(vec![Kind::Tls]);
    let told = reasons(a, only);
    assert!(told[1].contains("no EAP method in common"), "{told:?}");
}

#[test]
fn rfc5998_eap_alone_is_used_where_both_want_it() {
    let (ca, other, keys) = (Ca::new("root"), Ca::new("other"), two_keys());
    let alone = || {
        let (mut a, mut b) = roadwarrior(&keys, &ca, &[Kind::Tls]);
        a.connections[0].remote.method = Method::Eap(vec![Kind::Tls]);
        b.connections[0].local.method = Method::Eap(vec![Kind::Tls]);
        (a, b)
    };
    let (a, b) = alone();
    let pair = connects(a.clone(), b.clone());
    assert_eq!(pair.views(0)[0].remote_eap_id.as_deref(), Some("b.example"));
    // A responder that proves itself by AUTH all the same.
    let (_, signing) = roadwarrior(&keys, &ca, &[Kind::Tls]);
    connects(a.clone(), signing);
    // An initiator that wants AUTH.
    let (wants, _) = roadwarrior(&keys, &ca, &[Kind::Tls]);
    let told = reasons(wants, b.clone());
    assert!(told[1].contains("configured EAP-only authentication"), "{told:?}");
    // The certificate of the server has to be trusted and the one of the responder.
    let mut distrusts = a.clone();
    distrusts.credentials.authorities = vec![other.cert.clone()];
    assert!(reasons(distrusts, b.clone())[0].contains("no trusted CA has issued"));
    let mut expects = a.clone();
    expects.connections[0].remote.id = None;
    let mut lies = b.clone();
    lies.connections[0].local.certs = b.credentials.certificates.clone();
    lies.connections[0].local.id = Some("c.example".parse().unwrap());
    let told = reasons(expects, lies);
    assert!(told[0].contains("is not for 'c.example'"), "{told:?}");
    // A password alone proves no responder.
    let (mut a, mut b) = alone();
    a.connections[0].local.method = Method::Eap(vec![Kind::Mschapv2]);
    b.connections[0].remote.method = Method::Eap(vec![Kind::Mschapv2]);
    assert!(reasons(a, b)[1].contains("no EAP method in common"));
}

#[test]
fn auth_alone_is_no_substitute_for_eap() {
    let (ca, keys) = (Ca::new("root"), two_keys());
    let (mut a, b) = roadwarrior(&keys, &ca, &[Kind::Mschapv2]);
    a.connections[0].local.method = pubkey("pubkey");
    let told = reasons(a, b);
    assert!(told[1].contains("uses AUTH alone, we expect EAP"), "{told:?}");
    let (a, mut b) = roadwarrior(&keys, &ca, &[Kind::Mschapv2]);
    b.connections[0].remote.method = pubkey("pubkey");
    let told = reasons(a, b);
    assert!(told[1].contains("no connection expects 'a.example' by EAP"), "{told:?}");
}

#[test]
fn certificates_of_many_fragments_fit() {
    let (ca, keys) = (Ca::new("root"), two_keys());
    let large = |me: usize| {
        let mut c = side(me, &keys[me], &ca, &[&ca]);
        let alternatives = (0..200).map(|n| format!("host-{n}.{}.example", "x".repeat(40)));
        let names: Vec<_> =
            alternatives.map(|name| rcgen::SanType::DnsName(name.try_into().unwrap())).collect();
        let der = ca.end(["a.example", "b.example"][me], &keys[me], |p| p.subject_alt_names.extend(names));
        c.credentials.certificates =
            vec![std::sync::Arc::new(mobikex::credentials::Certificate::from_der(&der, "made").unwrap())];
        c.credentials
    };
    let (mut a, mut b) = roadwarrior(&keys, &ca, &[Kind::Tls]);
    (a.credentials, b.credentials) = (large(0), large(1));
    connects(a, b);
}
