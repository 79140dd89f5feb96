//! What EAP-TLS needs besides TLS: our certificate, and a judgement of the other side's as IKE_AUTH has it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use mobikex_common::crypto::signature::{Hash, PrivateKey};
use mobikex_common::wire::ike::Identification;

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

/// A certificate that has passed.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Whose it is.
    pub name: Identification,
    /// Its key.
    pub spki: Vec<u8>,
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
    fn verdict(&self) -> Option<Result<Seen, Failed>> {
        self.verdict.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificate that has been accepted.
    pub fn seen(&self) -> Option<Seen> {
        self.verdict().and_then(Result::ok)
    }

    /// Why one has not been.
    pub fn refusal(&self) -> Option<Failed> {
        self.verdict().and_then(Result::err)
    }

    fn check(&self, end: &[u8], others: &[&[u8]]) -> Result<Seen, CertificateError> {
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

    /// Decides, and remembers it.
    pub fn accepts(&self, end: &[u8], others: &[&[u8]]) -> bool {
        let outcome = self.check(end, others).map_err(|error| Failed(error.to_string()));
        let accepted = outcome.is_ok();
        *self.verdict.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        accepted
    }
}
