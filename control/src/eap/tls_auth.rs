//! Certificates in TLS: ours to show, and the judge of the other side's as rustls asks it.

use std::sync::Arc;

use mobikex_common::crypto::signature::{Hash, KeyKind, PrivateKey, Scheme};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::judge::{Judge, OwnIdentity};
use crate::credentials::UnixSeconds;

impl OwnIdentity {
    pub(super) fn into_resolver(self) -> SingleCertAndKey {
        let chain = self.chain.into_iter().map(CertificateDer::from).collect();
        CertifiedKey::new(chain, Arc::new(Key(self.key))).into()
    }
}

/// A key of ours as TLS uses it.
#[derive(Debug)]
struct Key(Arc<PrivateKey>);

#[derive(Debug)]
struct With {
    key: Arc<PrivateKey>,
    name: SignatureScheme,
    scheme: Scheme,
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let all: &[(SignatureScheme, Scheme)] = match self.0.public().kind() {
            KeyKind::Rsa(_) => &[
                (SignatureScheme::RSA_PSS_SHA256, Scheme::RsaPss(Hash::Sha256)),
                (SignatureScheme::RSA_PSS_SHA384, Scheme::RsaPss(Hash::Sha384)),
                (SignatureScheme::RSA_PSS_SHA512, Scheme::RsaPss(Hash::Sha512)),
                (SignatureScheme::RSA_PKCS1_SHA256, Scheme::RsaPkcs1(Hash::Sha256)),
                (SignatureScheme::RSA_PKCS1_SHA384, Scheme::RsaPkcs1(Hash::Sha384)),
                (SignatureScheme::RSA_PKCS1_SHA512, Scheme::RsaPkcs1(Hash::Sha512)),
            ],
            KeyKind::Ecdsa(curve) => match curve.hash() {
                Hash::Sha256 => &[(SignatureScheme::ECDSA_NISTP256_SHA256, Scheme::Ecdsa(Hash::Sha256))],
                Hash::Sha384 => &[(SignatureScheme::ECDSA_NISTP384_SHA384, Scheme::Ecdsa(Hash::Sha384))],
                _ => &[(SignatureScheme::ECDSA_NISTP521_SHA512, Scheme::Ecdsa(Hash::Sha512))],
            },
            KeyKind::Ed25519 => &[(SignatureScheme::ED25519, Scheme::Ed25519)],
        };
        let (name, scheme) = *all.iter().find(|(name, _)| offered.contains(name))?;
        Some(Box::new(With { key: Arc::clone(&self.0), name, scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.0.public().kind() {
            KeyKind::Rsa(_) => SignatureAlgorithm::RSA,
            KeyKind::Ecdsa(_) => SignatureAlgorithm::ECDSA,
            KeyKind::Ed25519 => SignatureAlgorithm::ED25519,
        }
    }
}

impl Signer for With {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.key.sign(self.scheme, &[message]).map_err(|error| Error::General(error.to_string()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.name
    }
}

impl Judge {
    pub(super) fn clock(&self) -> Arc<dyn TimeProvider> {
        Arc::new(At(self.now))
    }

    fn decide(&self, end: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        let others: Vec<&[u8]> = others.iter().map(AsRef::as_ref).collect();
        if self.accepts(end, &others) {
            return Ok(());
        }
        // The other side learns that it is refused, and not why.
        Err(Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure))
    }
}

/// The time, as the engine has it.
#[derive(Debug)]
struct At(UnixSeconds);

impl TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.0)))
    }
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.decide(end, others).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.decide(end, others).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}
