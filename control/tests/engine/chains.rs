//! Which certificates are trusted, and why others are not: each with its own reason, in bounded time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mobikex::credentials::{Certificate, CertificateError, Crl, MAX_CERTIFICATES, Revocation, Trust};
use mobikex_common::crypto::signature::Hash;
use rcgen::{
    BasicConstraints, CrlDistributionPoint, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};

use crate::made::{Ca, NOW, key, load};

const P256: &SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;

fn parse(der: &[u8]) -> Certificate {
    Certificate::from_der(der, "").unwrap()
}

fn check_at(
    now: u64,
    anchors: &[&Ca],
    der: &[u8],
    sent: &[&Ca],
    (crls, revocation): (&[Crl], Revocation),
) -> Result<(), CertificateError> {
    let anchors: Vec<_> = anchors.iter().map(|ca| Arc::clone(&ca.cert)).collect();
    let sent: Vec<_> = sent.iter().map(|ca| (*ca.cert).clone()).collect();
    let trust = Trust { anchors: &anchors, authorities: &[], crls, revocation, allows: &|_| true, now };
    trust.check(&parse(der), &sent)
}

fn check(anchors: &[&Ca], der: &[u8], sent: &[&Ca]) -> Result<(), CertificateError> {
    check_at(NOW, anchors, der, sent, (&[], Revocation::Relaxed))
}

fn says(outcome: Result<(), CertificateError>, words: &str) {
    let reason = outcome.unwrap_err().to_string();
    assert!(reason.contains(words), "'{reason}' does not say '{words}'");
}

#[test]
fn a_chain_with_two_intermediate_cas_is_trusted_whatever_their_order() {
    let root = Ca::new("root");
    let one = root.below("one", |_| {});
    let two = one.below("two", |_| {});
    let end = two.end("a.example", &key(P256), |_| {});
    assert_eq!(check(&[&root], &end, &[&two, &one]), Ok(()));
    assert_eq!(check(&[&root], &end, &[&one, &two]), Ok(()));
    says(check(&[&root], &end, &[&two]), "no trusted CA has issued");
    // A CA that the operator has named needs none above it.
    assert_eq!(check(&[&two], &end, &[]), Ok(()));
}

#[test]
fn time_decides() {
    let root = Ca::new("root");
    let end = root.end("a.example", &key(P256), |_| {});
    let at = |now| check_at(now, &[&root], &end, &[], (&[], Revocation::Relaxed));
    const DAY: u64 = 86_400;
    assert_eq!(at(NOW), Ok(()));
    says(at(NOW + 365 * DAY), "'C=CH, CN=a.example' expired on 2027-01-01T00:00:00Z");
    says(at(NOW - 365 * DAY), "is not valid before 2026-01-01T00:00:00Z");
    let old = Ca::with("old", |p| p.not_after = date_time_ymd(2026, 2, 1));
    says(
        check(&[&old], &old.end("a.example", &key(P256), |_| {}), &[]),
        "'C=CH, CN=old' expired on 2026-02-01",
    );
    let middle = root.below("middle", |p| p.not_after = date_time_ymd(2026, 2, 1));
    says(
        check(&[&root], &middle.end("a.example", &key(P256), |_| {}), &[&middle]),
        "a CA of C=CH, CN=a.example' expired",
    );
}

#[test]
fn b13_strangers_and_impostors_are_told_apart() {
    let (root, stranger) = (Ca::new("root"), Ca::new("stranger"));
    let end = stranger.end("a.example", &key(P256), |_| {});
    says(
        check(&[&root], &end, &[]),
        "no trusted CA has issued the certificate of 'C=CH, CN=a.example' (issuer 'C=CH, CN=stranger')",
    );
    says(check(&[&root], &end, &[&stranger]), "no trusted CA");
    says(check(&[], &end, &[&stranger]), "no trusted CA");
    // The name of our CA, but not its key.
    let impostor = Ca::new("root");
    says(
        check(&[&root], &impostor.end("a.example", &key(P256), |_| {}), &[]),
        "signature: it is not the issuer's",
    );
    // An end that plays the CA, a CA that may not issue, and a CA that is an end.
    let end_as_ca = root.below("end", |p| {
        p.is_ca = IsCa::ExplicitNoCa;
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    says(
        check(&[&root], &end_as_ca.end("a.example", &key(P256), |_| {}), &[&end_as_ca]),
        "may not issue certificates",
    );
    let no_sign = root.below("nosign", |p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
    says(
        check(&[&root], &no_sign.end("a.example", &key(P256), |_| {}), &[&no_sign]),
        "may not issue certificates",
    );
    says(check(&[&root], root.below("ca", |p| p.key_usages.clear()).cert.der(), &[]), "CaUsedAsEndEntity");
}

#[test]
fn b13_length_of_a_chain_is_bounded() {
    let mut cas = vec![Ca::new("root")];
    for depth in 1..=10 {
        cas.push(cas[depth - 1].below(&format!("ca {depth}"), |_| {}));
    }
    let end = cas[10].end("a.example", &key(P256), |_| {});
    let sent: Vec<&Ca> = cas[1..].iter().rev().collect();
    says(check(&[&cas[0]], &end, &sent), "11 certificates are refused: at most 8");
    // What one message may carry can still be too deep.
    let end = cas[7].end("a.example", &key(P256), |_| {});
    let sent: Vec<&Ca> = cas[1..=7].iter().collect();
    assert_eq!(sent.len() + 1, MAX_CERTIFICATES);
    says(check(&[&cas[0]], &end, &sent), "chain of 'C=CH, CN=a.example' is longer");
    let short = Ca::with("short", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    assert_eq!(check(&[&short], &short.end("a.example", &key(P256), |_| {}), &[]), Ok(()));
    let below = short.below("below", |_| {});
    says(check(&[&short], &below.end("a.example", &key(P256), |_| {}), &[&below]), "is longer than the CAs");
}

#[test]
fn b13_cas_that_issue_each_other_end_in_bounded_time() {
    // Every name has several certificates, each issued by the name after it, in a ring.
    let ring: Vec<Ca> = (0..3).map(|n| Ca::new(&format!("ring {n}"))).collect();
    let mut sent = Vec::new();
    for n in 0..3 {
        for _ in 0..2 {
            sent.push(ring[(n + 1) % 3].below(&format!("ring {n}"), |_| {}));
        }
    }
    let end = sent[0].end("a.example", &key(P256), |_| {});
    let sent: Vec<&Ca> = sent.iter().collect();
    let begin = Instant::now();
    says(check(&[&Ca::new("root")], &end, &sent), "no trusted CA");
    assert!(begin.elapsed() < Duration::from_secs(2), "it took {:?}", begin.elapsed());
}

#[test]
fn b13_size_and_number_of_names_are_bounded() {
    let root = Ca::new("root");
    let names = |count: usize| {
        root.end("a.example", &key(P256), |p| {
            p.subject_alt_names =
                (0..count).map(|n| SanType::DnsName(format!("h{n}").try_into().unwrap())).collect();
        })
    };
    let reason = |der: &[u8]| Certificate::from_der(der, "").unwrap_err().to_string();
    assert!(Certificate::from_der(&names(256), "").is_ok());
    assert!(reason(&names(300)).contains("300 alternative names is refused: at most 256"));
    let begin = Instant::now();
    let huge = names(10_000);
    let made = begin.elapsed();
    assert!(reason(&huge).contains(&format!("{} octets is refused: at most 16384", huge.len())));
    assert!(begin.elapsed() - made < Duration::from_millis(100));
    for cut in [0, 1, 10, huge.len().min(1000)] {
        assert!(Certificate::from_der(&huge[..cut], "").is_err());
    }
}

struct Weak(Vec<u8>);

impl rcgen::PublicKeyData for Weak {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

#[test]
fn b13_short_rsa_keys_are_refused() {
    let rsa = |octets: usize| {
        let mut modulus = vec![0xc5; octets];
        modulus[octets - 1] = 0xc7;
        let len = (octets + 1) as u16;
        let number = [&[0x02, 0x82][..], &len.to_be_bytes(), &[0], &modulus, &[2, 3, 1, 0, 1]].concat();
        let number = if octets == 128 {
            [&[0x02, 0x81, 129, 0][..], &modulus, &[2, 3, 1, 0, 1]].concat()
        } else {
            number
        };
        let head = if octets == 128 {
            vec![0x30, 0x81, number.len() as u8]
        } else {
            vec![0x30, 0x82, (number.len() >> 8) as u8, number.len() as u8]
        };
        Weak([head, number].concat())
    };
    let root = Ca::new("root");
    says(
        check(&[&root], &root.end("a.example", &rsa(128), |_| {}), &[]),
        "an RSA key of 1024 bits is refused",
    );
    assert_eq!(check(&[&root], &root.end("a.example", &rsa(256), |_| {}), &[]), Ok(()));
    says(
        check(&[&root], &root.end("a.example", &rsa(2048), |_| {}), &[]),
        "an RSA key of 16384 bits is refused",
    );
}

#[test]
fn rfc4945_5_1_3_usages() {
    let root = Ca::new("root");
    let with = |usages: &[KeyUsagePurpose], purposes: &[ExtendedKeyUsagePurpose]| {
        let der = root.end("a.example", &key(P256), |p| {
            p.key_usages = usages.to_vec();
            p.extended_key_usages = purposes.to_vec();
        });
        check(&[&root], &der, &[])
    };
    use ExtendedKeyUsagePurpose as Purpose;
    assert_eq!(with(&[], &[]), Ok(()));
    assert_eq!(with(&[KeyUsagePurpose::ContentCommitment], &[]), Ok(()));
    says(with(&[KeyUsagePurpose::KeyEncipherment], &[]), "neither digitalSignature nor nonRepudiation");
    for purpose in [
        Purpose::ServerAuth,
        Purpose::ClientAuth,
        Purpose::Any,
        Purpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17]),
    ] {
        assert_eq!(with(&[], &[Purpose::CodeSigning, purpose]), Ok(()));
    }
    says(with(&[], &[Purpose::CodeSigning, Purpose::OcspSigning]), "names only other purposes");
}

#[test]
fn b13_name_constraints_are_honoured() {
    let constrain = |permitted: &str| NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(permitted.into())],
        excluded_subtrees: vec![],
    };
    let root = Ca::new("root");
    let sub = root.below("sub", |p| p.name_constraints = Some(constrain("example.org")));
    assert_eq!(check(&[&root], &sub.end("a.example.org", &key(P256), |_| {}), &[&sub]), Ok(()));
    says(check(&[&root], &sub.end("a.example", &key(P256), |_| {}), &[&sub]), "does not permit the names");
    let top = Ca::with("top", |p| p.name_constraints = Some(constrain("example.org")));
    says(check(&[&top], &top.end("a.example", &key(P256), |_| {}), &[]), "does not permit the names");
}

#[test]
fn revocation_as_the_three_policies_have_it() {
    let (root, other) = (Ca::new("root"), Ca::new("other"));
    let serial =
        |n: u64| root.end("a.example", &key(P256), |p| p.serial_number = Some(SerialNumber::from(n)));
    let (bad, good) = (serial(7), serial(8));
    let list = [root.crl(&[7], 2027)];
    let with = |der: &[u8], crls: &[Crl], policy| check_at(NOW, &[&root], der, &[], (crls, policy));
    for policy in [Revocation::Relaxed, Revocation::IfUri, Revocation::Strict] {
        says(with(&bad, &list, policy), "is revoked");
        assert_eq!(with(&good, &list, policy), Ok(()));
    }
    let unknown = "whether the certificate of 'C=CH, CN=a.example' is revoked is not known";
    for crls in [&[][..], &[other.crl(&[7], 2027)]] {
        assert_eq!(with(&bad, crls, Revocation::Relaxed), Ok(()));
        assert_eq!(with(&good, crls, Revocation::IfUri), Ok(()));
        says(with(&good, crls, Revocation::Strict), unknown);
        let uri = root.end("a.example", &key(P256), |p| {
            p.crl_distribution_points =
                vec![CrlDistributionPoint { uris: vec!["http://ca.example/crl".into()] }];
        });
        says(with(&uri, crls, Revocation::IfUri), unknown);
        assert_eq!(with(&uri, crls, Revocation::Relaxed), Ok(()));
    }
    let stale = [root.crl(&[7], 2026)];
    says(
        with(&good, &stale, Revocation::Strict),
        "CRL that covers 'C=CH, CN=a.example' expired on 2026-03-01",
    );
    says(with(&bad, &stale, Revocation::Relaxed), "is revoked");
    // A list with our CA's name and another key says nothing.
    says(with(&good, &[Ca::new("root").crl(&[8], 2027)], Revocation::Strict), "InvalidCrlSignature");
}

#[test]
fn hashes_of_a_chain_follow_the_rules() {
    let root = Ca::new("root");
    let end = parse(&root.end("a.example", &key(P256), |_| {}));
    let anchors = [Arc::clone(&root.cert)];
    let with = |allows: &dyn Fn(Hash) -> bool| {
        let trust = Trust {
            anchors: &anchors,
            authorities: &[],
            crls: &[],
            revocation: Revocation::Relaxed,
            allows,
            now: NOW,
        };
        trust.check(&end, &[])
    };
    assert_eq!(with(&|hash| hash == Hash::Sha256), Ok(()));
    says(with(&|hash| hash == Hash::Sha384), "its algorithm is not taken");
}

#[test]
fn a_certificate_that_the_operator_has_put_here_needs_no_ca() {
    let (key, nobody) = (KeyPair::generate_for(P256).unwrap(), Ca::new("nobody"));
    let end = parse(&nobody.end("a.example", &key, |_| {}));
    let known = [Arc::new(end.clone())];
    let trust = Trust {
        anchors: &[],
        authorities: &[],
        crls: &[],
        revocation: Revocation::Relaxed,
        allows: &|_| true,
        now: NOW,
    };
    assert_eq!(trust.check_end(&end, &[], (&known, false)), Ok(()));
    let other = parse(&nobody.end("a.example", &key, |_| {}));
    says(trust.check_end(&other, &[], (&known, true)), "is not one of those that the connection names");
    let ca = self_signed();
    assert_eq!(trust.check_end(&ca, &[], (&[Arc::new(ca.clone())], true)), Ok(()));
    let late = Trust { now: NOW * 2, ..trust };
    says(late.check_end(&end, &[], (&known, true)), "expired");
}

/// A CA that may also sign AUTH, as self-signed certificates of gateways are.
fn self_signed() -> Certificate {
    let key = key(P256);
    let mut params = rcgen::CertificateParams::new(vec!["a.example".to_string()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    (*load(&params.self_signed(&key).unwrap())).clone()
}
