//! Certificates, CRLs and keys: how they are read from files, and whom they prove.
//!
//! `certificate` reads one certificate within bounds; `chain` decides whether a peer's is to be trusted at a given time;
//! `rules` says which keys and hashes a connection takes. All three are pure. `files` alone reads the disk.

mod certificate;
mod chain;
mod files;
mod list;
mod rules;

use std::sync::Arc;
use std::time::Duration;

use mobikex_common::crypto::signature::{PrivateKey, PublicKey};
use mobikex_common::wire::ike::Identification;
use x509_cert::der::DateTime;

pub use certificate::{Certificate, MAX_CERTIFICATE, MAX_NAMES};
pub use chain::{MAX_CERTIFICATES, Revocation, Trust};
pub use files::{Crl, Loader, PrivateKeyFile};
pub use list::{certificates_data, certificates_text};
pub use rules::{KeyRule, PubkeyRules};

/// Seconds since 1970, by the machine's clock.
pub type UnixSeconds = u64;

/// What the machine's clock shows.
pub fn unix_now() -> UnixSeconds {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Why a certificate does not prove a peer. For our log; the peer learns nothing of it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum CertificateError {
    #[error("a certificate of {0} octets is refused: at most {MAX_CERTIFICATE} are taken")]
    TooLarge(usize),
    #[error("a certificate with {0} alternative names is refused: at most {MAX_NAMES} are taken")]
    TooManyNames(usize),
    #[error("{0} certificates are refused: at most {MAX_CERTIFICATES} are taken")]
    TooMany(usize),
    #[error("the certificate does not parse: {0}")]
    Malformed(String),
    #[error("the key of '{subject}' is not taken: {reason}")]
    Key { subject: String, reason: String },
    #[error("the certificate of '{subject}' expired on {at}")]
    Expired { subject: String, at: String },
    #[error("the certificate of '{subject}' is not valid before {at}")]
    NotYetValid { subject: String, at: String },
    #[error("no trusted CA has issued the certificate of '{subject}' (issuer '{issuer}')")]
    UnknownIssuer { subject: String, issuer: String },
    #[error("the chain of '{0}' is longer than the CAs or we allow")]
    ChainTooLong(String),
    #[error("checking the chain of '{0}' takes too much work")]
    TooMuchWork(String),
    #[error("the certificate of '{0}' is revoked")]
    Revoked(String),
    #[error("whether the certificate of '{0}' is revoked is not known: no CRL of its issuer is loaded")]
    NoCrl(String),
    #[error("the CRL that covers '{subject}' expired on {at}")]
    CrlExpired { subject: String, at: String },
    #[error(
        "the certificate of '{0}' is not for signatures: its key usage has neither digitalSignature nor nonRepudiation"
    )]
    KeyUsage(String),
    #[error("the certificate of '{0}' is not for IKE: its extended key usage names only other purposes")]
    ExtendedKeyUsage(String),
    #[error("'{0}' may not issue certificates")]
    NotACa(String),
    #[error("a CA does not permit the names of '{0}' (name constraints)")]
    NameConstraints(String),
    #[error("the certificate of '{subject}' is not for '{id}'")]
    WrongId { subject: String, id: String },
    #[error("the certificate of '{subject}' has a wrong or unacceptable signature: {reason}")]
    Signature { subject: String, reason: String },
    #[error("the certificate of '{0}' is not one of those that the connection names")]
    NotNamed(String),
    #[error("the time is not known, so no certificate can be taken")]
    NoClock,
    #[error("the certificate of '{subject}' is refused: {reason}")]
    Other { subject: String, reason: String },
}

/// A time for people.
pub(crate) fn date(at: UnixSeconds) -> String {
    DateTime::from_unix_duration(Duration::from_secs(at)).map_or_else(|_| at.to_string(), |d| d.to_string())
}

/// A private key and the file that it is from.
#[derive(Clone, Debug)]
pub struct OwnKey {
    /// The file.
    pub source: String,
    /// The key.
    pub key: Arc<PrivateKey>,
}

impl PartialEq for OwnKey {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.key.public() == other.key.public()
    }
}

/// Everything that was loaded beside the connections.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Credentials {
    /// Certificates of ends, ours and peers'.
    pub certificates: Vec<Arc<Certificate>>,
    /// Certificates of CAs. Those that are their own issuers are trusted, the others complete chains.
    pub authorities: Vec<Arc<Certificate>>,
    /// Revocation lists.
    pub crls: Vec<Crl>,
    /// Our private keys.
    pub keys: Vec<OwnKey>,
}

impl Credentials {
    /// The CAs that are their own issuers; others only complete chains.
    pub fn trusted(&self) -> Vec<Arc<Certificate>> {
        self.authorities.iter().filter(|ca| ca.is_self_issued()).map(Arc::clone).collect()
    }

    /// The private key that belongs to a public one.
    pub fn key_for(&self, public: &PublicKey) -> Option<&Arc<PrivateKey>> {
        self.keys.iter().map(|own| &own.key).find(|key| key.public() == public)
    }

    /// The CAs above a certificate as far as they are loaded, the nearest first, without the one at the top that has
    /// issued itself.
    pub fn chain_of(&self, end: &Certificate) -> Vec<Arc<Certificate>> {
        let mut chain: Vec<Arc<Certificate>> = Vec::new();
        while chain.len() < MAX_CERTIFICATES {
            let last = chain.last().map_or(end, |ca| ca);
            let issuer = self.authorities.iter().find(|ca| ca.has_subject(last.issuer()));
            match issuer.filter(|ca| !ca.is_self_issued() && !chain.contains(ca)) {
                Some(ca) => chain.push(Arc::clone(ca)),
                None => break,
            }
        }
        chain
    }

    /// Whether one of the CAs that a peer names (SHA-1 of their keys, RFC 7296 3.7) stands above a certificate.
    pub fn is_below(&self, end: &Certificate, cas: &[[u8; 20]]) -> bool {
        let chain = self.chain_of(end);
        let last = chain.last().map_or(end, |ca| ca);
        let tops = self.authorities.iter().filter(|ca| ca.has_subject(last.issuer()));
        chain.iter().chain(tops).any(|ca| cas.contains(&ca.key_hash()))
    }

    /// The certificates that are for an identity.
    pub fn certificates_for<'a>(
        &'a self,
        id: &'a Identification,
    ) -> impl Iterator<Item = &'a Arc<Certificate>> {
        self.certificates.iter().filter(|c| c.is_for(id))
    }
}
