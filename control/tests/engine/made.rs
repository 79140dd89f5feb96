//! Certificates made for the tests.

use std::sync::Arc;

use mobikex::credentials::{Certificate, Crl, OwnKey};
use mobikex_common::crypto::signature::PrivateKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};

/// 1 July 2026, in the validity of everything here that does not say otherwise.
pub const NOW: u64 = 1_782_864_000;

/// A CA, with the key to issue more.
pub struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub cert: Arc<Certificate>,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "CH");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params
}

pub fn key(alg: &'static SignatureAlgorithm) -> KeyPair {
    if alg == &rcgen::PKCS_RSA_SHA256 {
        return KeyPair::generate_rsa_for(alg, rcgen::RsaKeySize::_2048).unwrap();
    }
    KeyPair::generate_for(alg).unwrap()
}

/// Keys for both sides, so that every kind of key is once on each.
pub fn keys_of_every_kind() -> impl Iterator<Item = [KeyPair; 2]> {
    let algs = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ];
    (0..algs.len()).map(move |n| [key(algs[n]), key(algs[(n + 1) % algs.len()])])
}

pub fn load(cert: &rcgen::Certificate) -> Arc<Certificate> {
    Arc::new(Certificate::from_der(cert.der(), "made").unwrap())
}

fn ca_params(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    params
}

impl Ca {
    pub fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    pub fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (params, key) = (ca_params(name, change), key(&rcgen::PKCS_ECDSA_P256_SHA256));
        let cert = load(&params.self_signed(&key).unwrap());
        Self { params, key, cert }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// A CA below this one.
    pub fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (params, key) = (ca_params(name, change), key(&rcgen::PKCS_ECDSA_P256_SHA256));
        let cert = load(&params.signed_by(&key, &self.issuer()).unwrap());
        Self { params, key, cert }
    }

    /// A certificate of an end, whose subject is its only name unless `change` adds some.
    pub fn end(
        &self,
        name: &str,
        key: &impl rcgen::PublicKeyData,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<u8> {
        let mut params = params(name);
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        params.signed_by(key, &self.issuer()).unwrap().der().to_vec()
    }

    /// A CRL that names these serial numbers, valid in the first half of a year.
    pub fn crl(&self, serials: &[u64], until: i32) -> Crl {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2026, 2, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(until, 3, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Crl::from_der(list.signed_by(&self.issuer()).unwrap().der(), "made").unwrap()
    }
}

/// The key as it is loaded from a file.
pub fn own(key: &KeyPair) -> OwnKey {
    let key = PrivateKey::from_der(key.serialized_der()).unwrap();
    OwnKey { source: "made".into(), key: Arc::new(key) }
}
