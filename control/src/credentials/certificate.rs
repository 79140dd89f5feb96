//! One certificate, as far as it matters here.

use std::fmt;

use mobikex_common::crypto::signature::{KeyError, PublicKey};
use mobikex_common::crypto::{self};
use mobikex_common::wire::ike::{IdType, Identification};
use rustls_pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use x509_cert::Certificate as Parsed;
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{
    BasicConstraints, CrlDistributionPoints, ExtendedKeyUsage, KeyUsage, SubjectAltName,
};

use super::{CertificateError, UnixSeconds, date};

/// Octets of the largest certificate that is read.
pub const MAX_CERTIFICATE: usize = 16 * 1024;
/// The most alternative names of a certificate.
pub const MAX_NAMES: usize = 256;

/// A certificate. Nothing about it is trusted yet.
#[derive(Clone, PartialEq)]
pub struct Certificate {
    der: Vec<u8>,
    /// The file that it is from; empty for one that a peer has sent.
    source: String,
    subject: Identification,
    issuer: Identification,
    serial: Vec<u8>,
    names: Vec<Identification>,
    key: Result<PublicKey, KeyError>,
    key_hash: [u8; 20],
    not_before: UnixSeconds,
    not_after: UnixSeconds,
    is_ca: bool,
    path_len: Option<u8>,
    usage: Option<KeyUsage>,
    purposes: Vec<String>,
    names_a_crl: bool,
}

impl Certificate {
    /// Reads a DER certificate.
    ///
    /// # Errors
    /// When it is too large or does not parse.
    pub fn from_der(der: &[u8], source: &str) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(CertificateError::TooLarge(der.len()));
        }
        let malformed = |error: x509_cert::der::Error| CertificateError::Malformed(error.to_string());
        let parsed = Parsed::from_der(der).map_err(malformed)?;
        let tbs = parsed.tbs_certificate();
        let name = |name: &x509_cert::name::Name| {
            let data = name.to_der().map_err(malformed)?;
            let id = Identification { kind: IdType::DER_ASN1_DN, data };
            if !id.is_well_formed() {
                return Err(CertificateError::Malformed("a name is too long, or empty".to_string()));
            }
            Ok(id)
        };
        let spki = tbs.subject_public_key_info();
        let alternatives = extension::<SubjectAltName>(tbs)?.map_or_else(Vec::new, |names| names.0);
        if alternatives.len() > MAX_NAMES {
            return Err(CertificateError::TooManyNames(alternatives.len()));
        }
        let constraints = extension::<BasicConstraints>(tbs)?;
        let points = extension::<CrlDistributionPoints>(tbs)?.map_or_else(Vec::new, |points| points.0);
        let purposes = extension::<ExtendedKeyUsage>(tbs)?.map_or_else(Vec::new, |eku| eku.0);
        Ok(Self {
            der: der.to_vec(),
            source: source.to_string(),
            subject: name(tbs.subject())?,
            issuer: name(tbs.issuer())?,
            serial: tbs.serial_number().as_bytes().to_vec(),
            names: alternatives.iter().filter_map(identity).collect(),
            key: PublicKey::from_spki(&spki.to_der().map_err(malformed)?),
            key_hash: crypto::sha1(&[spki.to_der().map_err(malformed)?.as_slice()]),
            not_before: tbs.validity().not_before.to_unix_duration().as_secs(),
            not_after: tbs.validity().not_after.to_unix_duration().as_secs(),
            is_ca: constraints.as_ref().is_some_and(|c| c.ca),
            path_len: constraints.and_then(|c| c.path_len_constraint),
            usage: extension::<KeyUsage>(tbs)?,
            purposes: purposes.iter().map(ToString::to_string).collect(),
            names_a_crl: points.iter().any(|p| {
                matches!(&p.distribution_point, Some(DistributionPointName::FullName(names))
                    if names.iter().any(|n| matches!(n, GeneralName::UniformResourceIdentifier(_))))
            }),
        })
    }

    /// The certificate itself.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    pub(super) fn as_pki(&self) -> CertificateDer<'_> {
        CertificateDer::from(self.der.as_slice())
    }

    /// The file that it is from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whose it is.
    pub fn subject(&self) -> &Identification {
        &self.subject
    }

    /// Who has issued it.
    pub fn issuer(&self) -> &Identification {
        &self.issuer
    }

    /// SHA-1 of its SubjectPublicKeyInfo, as CERTREQ names a CA (RFC 7296 3.7).
    pub fn key_hash(&self) -> [u8; 20] {
        self.key_hash
    }

    /// Its key.
    ///
    /// # Errors
    /// When the key is of a kind or length that is not taken.
    pub fn key(&self) -> Result<&PublicKey, CertificateError> {
        self.key
            .as_ref()
            .map_err(|error| CertificateError::Key { subject: self.name(), reason: error.to_string() })
    }

    /// The subject for messages.
    pub fn name(&self) -> String {
        self.subject.to_string()
    }

    /// When its validity ends.
    pub fn not_after(&self) -> UnixSeconds {
        self.not_after
    }

    /// Whether it says that it is a CA's.
    pub fn is_ca(&self) -> bool {
        self.is_ca
    }

    pub(super) fn path_len(&self) -> Option<u8> {
        self.path_len
    }

    /// Whether subject and issuer are the same.
    pub fn is_self_issued(&self) -> bool {
        self.subject.same(&self.issuer)
    }

    /// Whether its subject is this name.
    pub fn has_subject(&self, name: &Identification) -> bool {
        self.subject.same(name)
    }

    /// Whether it names where its CRL is.
    pub(super) fn names_a_crl(&self) -> bool {
        self.names_a_crl
    }

    /// Whether it proves this identity (RFC 4945 3.1): its subject, or one of its alternative names, compared as a whole.
    pub fn is_for(&self, id: &Identification) -> bool {
        self.subject.same(id) || self.names.iter().any(|name| name.same(id))
    }

    /// Whether a moment lies in its validity.
    ///
    /// # Errors
    /// When it is over or has not begun.
    pub fn check_time(&self, now: UnixSeconds) -> Result<(), CertificateError> {
        if now < self.not_before {
            return Err(CertificateError::NotYetValid { subject: self.name(), at: date(self.not_before) });
        }
        if now > self.not_after {
            return Err(CertificateError::Expired { subject: self.name(), at: date(self.not_after) });
        }
        Ok(())
    }

    /// Whether its key may sign AUTH (RFC 4945 5.1.3.2, 5.1.3.12).
    ///
    /// # Errors
    /// When an extension says that it is for something else.
    pub fn check_usage(&self) -> Result<(), CertificateError> {
        if self.usage.as_ref().is_some_and(|usage| !usage.digital_signature() && !usage.non_repudiation()) {
            return Err(CertificateError::KeyUsage(self.name()));
        }
        let fits = |purpose: &String| PURPOSES.contains(&purpose.as_str());
        if !self.purposes.is_empty() && !self.purposes.iter().any(fits) {
            return Err(CertificateError::ExtendedKeyUsage(self.name()));
        }
        Ok(())
    }

    /// Whether it may issue certificates (RFC 5280 4.2.1.3, 4.2.1.9).
    pub(super) fn may_issue(&self) -> bool {
        self.is_ca && self.usage.as_ref().is_none_or(KeyUsage::key_cert_sign)
    }
}

/// Purposes of an extended key usage that are taken: ipsecIKE and anyExtendedKeyUsage as RFC 4945 5.1.3.12 has it, and
/// what VPN gateways and clients have in practice: serverAuth, clientAuth, iKEIntermediate.
const PURPOSES: [&str; 5] =
    ["1.3.6.1.5.5.7.3.17", "2.5.29.37.0", "1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2", "1.3.6.1.5.5.8.2.2"];

/// As [`Certificate::check_usage`], for the validator, which hands out the arcs of each purpose.
pub(super) fn is_purpose(arcs: impl Iterator<Item = usize>) -> bool {
    let text = arcs.map(|arc| arc.to_string()).collect::<Vec<_>>().join(".");
    PURPOSES.contains(&text.as_str())
}

/// An extension, which may stand only once (RFC 5280 4.2).
fn extension<T: for<'a> Decode<'a, Error = x509_cert::der::Error> + AssociatedOid>(
    tbs: &x509_cert::TbsCertificate,
) -> Result<Option<T>, CertificateError> {
    let found = tbs.get_extension::<T>();
    found.map(|found| found.map(|(_, value)| value)).map_err(|e| CertificateError::Malformed(e.to_string()))
}

fn identity(name: &GeneralName) -> Option<Identification> {
    let (kind, data) = match name {
        GeneralName::DnsName(name) => (IdType::FQDN, name.as_bytes()),
        GeneralName::Rfc822Name(name) => (IdType::RFC822_ADDR, name.as_bytes()),
        GeneralName::IpAddress(addr) if addr.as_bytes().len() == 4 => (IdType::IPV4_ADDR, addr.as_bytes()),
        GeneralName::IpAddress(addr) => (IdType::IPV6_ADDR, addr.as_bytes()),
        _ => return None,
    };
    let id = Identification { kind, data: data.to_vec() };
    id.is_well_formed().then_some(id)
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.subject)
    }
}

/// What `mobikex certs --json` and `mobikex check --json` say about a certificate.
#[derive(Serialize)]
struct Shown<'a> {
    file: &'a str,
    subject: String,
    issuer: String,
    serial: String,
    names: Vec<String>,
    key: String,
    not_before: String,
    not_after: String,
    ca: bool,
}

impl Serialize for Certificate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Shown {
            file: &self.source,
            subject: self.name(),
            issuer: self.issuer.to_string(),
            serial: self.serial.iter().map(|b| format!("{b:02x}")).collect(),
            names: self.names.iter().map(ToString::to_string).collect(),
            key: match &self.key {
                Ok(key) => key.kind().to_string(),
                Err(error) => error.to_string(),
            },
            not_before: date(self.not_before),
            not_after: date(self.not_after),
            ca: self.is_ca,
        }
        .serialize(serializer)
    }
}
