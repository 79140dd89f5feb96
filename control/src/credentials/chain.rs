//! Whether a certificate leads to a CA that is trusted. The path is found and verified by rustls-webpki (RFC 5280 6), within
//! its bounds on depth, signatures and comparisons; what it leaves to others is checked here.

use std::sync::Arc;
use std::time::Duration;

use mobikex_common::crypto::signature::Hash;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime, alg_id};
use serde::Serialize;
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};

use super::certificate::is_purpose;
use super::{Certificate, CertificateError, Crl, UnixSeconds, date};

/// The most certificates that a peer may send: its own and a chain of CAs.
pub const MAX_CERTIFICATES: usize = 8;

/// What becomes of a certificate whose revocation is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Revocation {
    /// It is refused.
    Strict,
    /// It is refused if it names where its CRL would be.
    IfUri,
    /// It is taken.
    #[default]
    Relaxed,
}

/// What is believed, and when.
pub struct Trust<'a> {
    /// Trusted CAs.
    pub anchors: &'a [Arc<Certificate>],
    /// More CAs, to complete chains with.
    pub authorities: &'a [Arc<Certificate>],
    /// Revocation lists.
    pub crls: &'a [Crl],
    /// What to do without one.
    pub revocation: Revocation,
    /// Whether signatures of certificates and CRLs may use a hash.
    pub allows: &'a dyn Fn(Hash) -> bool,
    /// The time.
    pub now: UnixSeconds,
}

#[cfg(feature = "aws-lc")]
fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    webpki::ALL_VERIFICATION_ALGS
}

#[cfg(not(feature = "aws-lc"))]
fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    &[]
}

/// The hash of a signature algorithm of the validator.
fn hash_of(algorithm: &dyn SignatureVerificationAlgorithm) -> Option<Hash> {
    let id = algorithm.signature_alg_id();
    let table = [
        (Hash::Sha256, [alg_id::RSA_PKCS1_SHA256, alg_id::RSA_PSS_SHA256, alg_id::ECDSA_SHA256]),
        (Hash::Sha384, [alg_id::RSA_PKCS1_SHA384, alg_id::RSA_PSS_SHA384, alg_id::ECDSA_SHA384]),
        (Hash::Sha512, [alg_id::RSA_PKCS1_SHA512, alg_id::RSA_PSS_SHA512, alg_id::ECDSA_SHA512]),
    ];
    let found = table.iter().find(|(_, ids)| ids.contains(&id)).map(|(hash, _)| *hash);
    found.or_else(|| (id == alg_id::ED25519).then_some(Hash::Identity))
}

/// Takes certificates for IKE, and those without a purpose.
struct ForIke;

impl ExtendedKeyUsageValidator for ForIke {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        let mut none = true;
        for purpose in purposes {
            none = false;
            if is_purpose(purpose?.to_decoded_oid().into_iter()) {
                return Ok(());
            }
        }
        if none { Ok(()) } else { Err(Error::EmptyEkuExtension) }
    }
}

impl Trust<'_> {
    /// Checks that `end`, with the help of `sent`, is a valid end's certificate of a trusted CA.
    ///
    /// # Errors
    /// When it is not, with the reason.
    pub fn check(&self, end: &Certificate, sent: &[Certificate]) -> Result<(), CertificateError> {
        if sent.len() >= MAX_CERTIFICATES {
            return Err(CertificateError::TooMany(sent.len() + 1));
        }
        end.check_time(self.now)?;
        end.key()?;
        end.check_usage()?;
        let der = end.as_pki();
        let cert = EndEntityCert::try_from(&der).map_err(|error| self.explain(end, &error))?;
        let valid: Vec<_> =
            self.anchors.iter().filter(|ca| ca.may_issue() && ca.check_time(self.now).is_ok()).collect();
        let ders: Vec<_> = valid.iter().map(|ca| ca.as_pki()).collect();
        let anchors: Vec<TrustAnchor<'_>> =
            ders.iter().filter_map(|der| webpki::anchor_from_trusted_cert(der).ok()).collect();
        let others = sent.iter().chain(self.authorities.iter().map(|ca| ca.as_ref()));
        let intermediates: Vec<CertificateDer<'_>> = others.map(Certificate::as_pki).collect();
        let algorithms: Vec<_> =
            algorithms().iter().copied().filter(|alg| hash_of(*alg).is_some_and(self.allows)).collect();
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().map(Crl::list).collect();
        let strict = self.revocation == Revocation::Strict
            || self.revocation == Revocation::IfUri
                && (end.names_a_crl() || sent.iter().any(Certificate::names_a_crl));
        if strict && crls.is_empty() {
            // Unless nobody vouches for it anyway.
            self.path(&cert, &algorithms, &anchors, &intermediates, None)
                .map_err(|e| self.explain(end, &e))?;
            return Err(CertificateError::NoCrl(end.name()));
        }
        let revocation = (!crls.is_empty()).then(|| self.revocation_options(&crls, strict)).flatten();
        self.path(&cert, &algorithms, &anchors, &intermediates, revocation)
            .map_err(|error| self.explain(end, &error))
    }

    /// As [`Self::check`]; but a certificate among those that the operator has put here needs no CA, and with `only` no other
    /// one is taken.
    ///
    /// # Errors
    /// When it is not to be trusted.
    pub fn check_end(
        &self,
        end: &Certificate,
        sent: &[Certificate],
        (known, only): (&[Arc<Certificate>], bool),
    ) -> Result<(), CertificateError> {
        let is_known = known.iter().any(|cert| cert.der() == end.der());
        if only && !is_known {
            return Err(CertificateError::NotNamed(end.name()));
        }
        match self.check(end, sent) {
            // Nobody need vouch for it, nor may it be a CA's: it is this one that was meant.
            Err(CertificateError::UnknownIssuer { .. } | CertificateError::Other { .. }) if is_known => {
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn revocation_options<'b>(
        &self,
        crls: &'b [&'b CertRevocationList<'b>],
        strict: bool,
    ) -> Option<RevocationOptions<'b>> {
        let (unknown, expired) = if strict {
            (UnknownStatusPolicy::Deny, ExpirationPolicy::Enforce)
        } else {
            (UnknownStatusPolicy::Allow, ExpirationPolicy::Ignore)
        };
        let builder = RevocationOptionsBuilder::new(crls).ok()?;
        Some(
            builder
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(unknown)
                .with_expiration_policy(expired)
                .build(),
        )
    }

    fn path(
        &self,
        cert: &EndEntityCert<'_>,
        algorithms: &[&'static dyn SignatureVerificationAlgorithm],
        anchors: &[TrustAnchor<'_>],
        intermediates: &[CertificateDer<'_>],
        revocation: Option<RevocationOptions<'_>>,
    ) -> Result<(), Error> {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(self.now));
        let further = |path: &VerifiedPath<'_>| self.check_path(path);
        cert.verify_for_usage(algorithms, anchors, intermediates, time, ForIke, revocation, Some(&further))
            .map(drop)
    }

    /// What the validator does not look at: the key usage of CAs, and the path length of the one at the top.
    fn check_path(&self, path: &VerifiedPath<'_>) -> Result<(), Error> {
        let mut count = 0;
        for ca in path.intermediate_certificates() {
            let ca = Certificate::from_der(ca.der().as_ref(), "").map_err(|_| Error::BadDer)?;
            if !ca.may_issue() {
                return Err(Error::EndEntityUsedAsCa);
            }
            count += 1;
        }
        let top = path.anchor();
        let anchor = self.anchors.iter().filter(|ca| {
            webpki::anchor_from_trusted_cert(&ca.as_pki()).is_ok_and(|anchor| {
                anchor.subject == top.subject && anchor.subject_public_key_info == top.subject_public_key_info
            })
        });
        // The same CA may be there more than once, renewed; the one that permits most counts.
        let limit = anchor.map(|ca| ca.path_len().map_or(usize::MAX, usize::from)).max();
        if limit.is_some_and(|limit| count > limit) {
            return Err(Error::PathLenConstraintViolated);
        }
        Ok(())
    }

    /// In words for the operator.
    fn explain(&self, end: &Certificate, error: &Error) -> CertificateError {
        let subject = end.name();
        let seconds = |time: &UnixTime| date(time.as_secs());
        match error {
            // Its own times are checked before, so it is a CA's.
            Error::CertExpired { not_after, .. } => {
                CertificateError::Expired { subject: format!("a CA of {subject}"), at: seconds(not_after) }
            }
            Error::CertNotValidYet { not_before, .. } => CertificateError::NotYetValid {
                subject: format!("a CA of {subject}"),
                at: seconds(not_before),
            },
            Error::CertRevoked => CertificateError::Revoked(subject),
            Error::UnknownRevocationStatus => CertificateError::NoCrl(subject),
            Error::CrlExpired { next_update, .. } => {
                CertificateError::CrlExpired { subject, at: seconds(next_update) }
            }
            Error::UnknownIssuer => self.unknown_issuer(end),
            Error::MaximumPathDepthExceeded | Error::PathLenConstraintViolated => {
                CertificateError::ChainTooLong(subject)
            }
            Error::MaximumSignatureChecksExceeded
            | Error::MaximumPathBuildCallsExceeded
            | Error::MaximumNameConstraintComparisonsExceeded => CertificateError::TooMuchWork(subject),
            Error::NameConstraintViolation => CertificateError::NameConstraints(subject),
            Error::EndEntityUsedAsCa => CertificateError::NotACa(format!("the issuer of {subject}")),
            Error::EmptyEkuExtension => CertificateError::ExtendedKeyUsage(subject),
            Error::InvalidSignatureForPublicKey
            | Error::SignatureAlgorithmMismatch
            | Error::UnsupportedSignatureAlgorithmContext(_)
            | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => CertificateError::Signature {
                subject,
                reason: match error {
                    Error::InvalidSignatureForPublicKey => {
                        "it is not the issuer's, or the issuer's key is too short".to_string()
                    }
                    _ => "its algorithm is not taken (RSA and ECDSA with SHA-2, and Ed25519 are)".to_string(),
                },
            },
            other => CertificateError::Other { subject, reason: other.to_string() },
        }
    }

    /// The CA may be known and over.
    fn unknown_issuer(&self, end: &Certificate) -> CertificateError {
        let known = self.anchors.iter().find(|ca| ca.has_subject(end.issuer()));
        match known.map(|ca| ca.check_time(self.now)) {
            Some(Err(error)) => error,
            _ => CertificateError::UnknownIssuer { subject: end.name(), issuer: end.issuer().to_string() },
        }
    }
}
