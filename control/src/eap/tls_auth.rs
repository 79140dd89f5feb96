//! Certificates in TLS: ours to show, and the other side's, judged as those in IKE_AUTH are.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use mobikex_common::crypto::signature::{Hash, KeyKind, PrivateKey, Scheme};
use mobikex_common::wire::ike::Identification;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::Failed;
use crate::credentials::{
    Certificate, CertificateError, Crl, MAX_CERTIFICATES, Revocation, Trust, UnixSeconds,
};

/// What one side of EAP-TLS needs.
pub struct TlsSettings {
    /// To prove ourselves with.
    pub identity: OwnIdentity,
    /// To judge the other side with.
    pub judge: Judge,
}

/// Our certificate, the CAs that go with it, and its key.
pub struct OwnIdentity {
    /// DER, the end's first.
    pub chain: Vec<Vec<u8>>,
    /// The key.
    pub key: Arc<PrivateKey>,
}

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

/// A certificate that has passed.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) name: Identification,
    pub(super) spki: Vec<u8>,
}

/// Decides about the certificate of the other side.
pub struct Judge {
    /// Whose it has to be; anybody's if not said.
    pub expected: Option<Identification>,
    /// Trusted CAs, or an end's certificates that need none.
    pub anchors: Vec<Arc<Certificate>>,
    /// More CAs, to complete chains with.
    pub authorities: Vec<Arc<Certificate>>,
    /// Revocation lists.
    pub crls: Vec<Crl>,
    /// What to do without one.
    pub revocation: Revocation,
    /// Certificates that an operator has put here, and whether only they count.
    pub pinned: (Vec<Arc<Certificate>>, bool),
    /// The time.
    pub now: UnixSeconds,
    /// How it has been decided.
    pub verdict: Verdict,
}

/// What has become of the other side's certificate.
#[derive(Default)]
pub struct Verdict(Mutex<Option<Result<Seen, Failed>>>);

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Judge({:?})", self.expected)
    }
}

impl Judge {
    pub(super) fn clock(&self) -> Arc<dyn TimeProvider> {
        Arc::new(At(self.now))
    }

    fn verdict(&self) -> Option<Result<Seen, Failed>> {
        self.verdict.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn seen(&self) -> Option<Seen> {
        self.verdict().and_then(Result::ok)
    }

    pub(super) fn refusal(&self) -> Option<Failed> {
        self.verdict().and_then(Result::err)
    }

    fn check(&self, end: &[u8], others: &[CertificateDer<'_>]) -> Result<Seen, CertificateError> {
        if others.len() >= MAX_CERTIFICATES {
            return Err(CertificateError::TooMany(others.len() + 1));
        }
        let end = Certificate::from_der(end, "")?;
        let others: Vec<_> =
            others.iter().map(|der| Certificate::from_der(der, "")).collect::<Result<_, _>>()?;
        let spki = end.key()?.spki().to_vec();
        if let Some(id) = self.expected.as_ref().filter(|id| !end.is_for(id)) {
            return Err(CertificateError::WrongId { subject: end.name(), id: id.to_string() });
        }
        let trust = Trust {
            anchors: &self.anchors,
            authorities: &self.authorities,
            crls: &self.crls,
            revocation: self.revocation,
            allows: &|hash| hash != Hash::Sha1,
            now: self.now,
        };
        trust.check_end(&end, &others, (&self.pinned.0, self.pinned.1))?;
        Ok(Seen { name: self.expected.clone().unwrap_or_else(|| end.subject().clone()), spki })
    }

    fn decide(&self, end: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> Result<(), Error> {
        let outcome = self.check(end, others).map_err(|error| Failed(error.to_string()));
        let passed = outcome.is_ok();
        *self.verdict.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        // The other side learns that it is refused, and not why.
        let refused = Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure);
        if passed { Ok(()) } else { Err(refused) }
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
