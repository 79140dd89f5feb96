//! Signatures: RSA, ECDSA and Ed25519 keys, and what they sign with.
//!
//! They come from aws-lc-rs alone. A build without it knows the types, so that everything else stays the same, but it
//! can neither sign nor verify; [`AVAILABLE`] says so.

#[cfg(not(feature = "aws-lc"))]
mod absent;
#[cfg(feature = "aws-lc")]
mod aws_lc;
#[cfg(feature = "aws-lc")]
mod rsa_sha1;

use std::fmt;

use serde::Serialize;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::CryptoError;
#[cfg(not(feature = "aws-lc"))]
use absent as provider;
#[cfg(feature = "aws-lc")]
use aws_lc as provider;

/// Whether this build can sign and verify.
pub const AVAILABLE: bool = cfg!(feature = "aws-lc");

/// The shortest RSA modulus that is taken, in bits.
pub const MIN_RSA_BITS: u32 = 2048;
/// The longest one: what a peer may make us compute has a bound.
pub const MAX_RSA_BITS: u32 = 8192;

/// A hash function of a signature, with its number in IKEv2 (RFC 7427 7, RFC 8420 4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hash {
    /// SHA-1, only for peers that know nothing newer.
    Sha1,
    /// SHA2-256.
    Sha256,
    /// SHA2-384.
    Sha384,
    /// SHA2-512.
    Sha512,
    /// None: the algorithm takes the whole message (Ed25519).
    Identity,
}

impl Hash {
    /// What we announce, the preferred one first. SHA-1 must not be among them (RFC 8247 3.2.1).
    pub const ANNOUNCED: [Self; 4] = [Self::Sha256, Self::Sha384, Self::Sha512, Self::Identity];

    /// Number in the registry "IKEv2 Hash Algorithms".
    pub fn number(self) -> u16 {
        match self {
            Self::Sha1 => 1,
            Self::Sha256 => 2,
            Self::Sha384 => 3,
            Self::Sha512 => 4,
            Self::Identity => 5,
        }
    }

    /// The hash of a number, if it is known.
    pub fn from_number(number: u16) -> Option<Self> {
        [Self::Sha1, Self::Sha256, Self::Sha384, Self::Sha512, Self::Identity]
            .into_iter()
            .find(|hash| hash.number() == number)
    }

    /// As swanctl.conf writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Identity => "identity",
        }
    }
}

/// A curve of ECDSA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
}

impl Curve {
    /// The hash as strong as the curve (RFC 4754 3, RFC 8247 3.2).
    pub fn hash(self) -> Hash {
        match self {
            Self::P256 => Hash::Sha256,
            Self::P384 => Hash::Sha384,
            Self::P521 => Hash::Sha512,
        }
    }

    fn bits(self) -> u32 {
        match self {
            Self::P256 => 256,
            Self::P384 => 384,
            Self::P521 => 521,
        }
    }
}

/// What kind of key it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyKind {
    /// RSA with a modulus of so many bits.
    Rsa(u32),
    /// ECDSA.
    Ecdsa(Curve),
    /// Ed25519.
    Ed25519,
}

impl KeyKind {
    /// Bits of the modulus or of the curve's field.
    pub fn bits(self) -> u32 {
        match self {
            Self::Rsa(bits) => bits,
            Self::Ecdsa(curve) => curve.bits(),
            Self::Ed25519 => 256,
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA {bits}"),
            Self::Ecdsa(curve) => write!(f, "ECDSA {}", curve.bits()),
            Self::Ed25519 => f.write_str("Ed25519"),
        }
    }
}

/// How a key signs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5.
    RsaPkcs1(Hash),
    /// RSASSA-PSS; the mask's hash is the same and the salt as long as it.
    RsaPss(Hash),
    /// ECDSA as `SEQUENCE { r, s }` (RFC 7427).
    Ecdsa(Hash),
    /// ECDSA as `r | s` with the curve's own hash (RFC 4754).
    EcdsaFixed,
    /// Ed25519 (RFC 8420).
    Ed25519,
}

impl Scheme {
    /// The hash, where the scheme leaves a choice.
    pub fn hash(self) -> Option<Hash> {
        match self {
            Self::RsaPkcs1(hash) | Self::RsaPss(hash) | Self::Ecdsa(hash) => Some(hash),
            Self::EcdsaFixed => None,
            Self::Ed25519 => Some(Hash::Identity),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RsaPkcs1(hash) => write!(f, "RSA (PKCS#1 v1.5) with {}", hash.name()),
            Self::RsaPss(hash) => write!(f, "RSA (PSS) with {}", hash.name()),
            Self::Ecdsa(hash) => write!(f, "ECDSA with {}", hash.name()),
            Self::EcdsaFixed => f.write_str("ECDSA (RFC 4754)"),
            Self::Ed25519 => f.write_str("Ed25519"),
        }
    }
}

/// Why a key cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// It does not parse.
    #[error("it is no key in a form that is known (PKCS#8, PKCS#1, SEC1, SubjectPublicKeyInfo)")]
    Malformed,
    /// DSA, Ed448, another curve.
    #[error("keys of this kind are not supported (RSA, ECDSA on P-256, P-384 or P-521, and Ed25519 are)")]
    Unsupported,
    /// RSA of a length outside the bounds.
    #[error("an RSA key of {0} bits is refused: from {MIN_RSA_BITS} to {MAX_RSA_BITS} are taken")]
    RsaSize(u32),
    /// This build has no signatures.
    #[error("this build was made without aws-lc-rs and has no signatures")]
    NotBuilt,
}

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: Vec<u8>,
    kind: KeyKind,
    /// The key itself, without what names its algorithm.
    raw: Vec<u8>,
}

impl PublicKey {
    /// Reads a DER SubjectPublicKeyInfo (RFC 5280 4.1.2.7).
    ///
    /// # Errors
    /// When it does not parse, or is of a kind or length that is not taken.
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        let info = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| KeyError::Malformed)?;
        let raw = info.subject_public_key.as_bytes().ok_or(KeyError::Malformed)?;
        let kind = match info.algorithm.oid {
            RSA => {
                let bits = rsa_bits(raw).ok_or(KeyError::Malformed)?;
                if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
                    return Err(KeyError::RsaSize(bits));
                }
                KeyKind::Rsa(bits)
            }
            EC => match info.algorithm.parameters_oid() {
                Ok(P256) => KeyKind::Ecdsa(Curve::P256),
                Ok(P384) => KeyKind::Ecdsa(Curve::P384),
                Ok(P521) => KeyKind::Ecdsa(Curve::P521),
                _ => return Err(KeyError::Unsupported),
            },
            ED25519 => KeyKind::Ed25519,
            _ => return Err(KeyError::Unsupported),
        };
        let raw = raw.to_vec();
        // The one form of it, so that two keys are equal when their octets are.
        let spki = info.to_der().map_err(|_| KeyError::Malformed)?;
        Ok(Self { spki, kind, raw })
    }

    /// The SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// What kind of key it is.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Checks a signature over the concatenation of `parts`.
    ///
    /// # Errors
    /// When it is not this key's signature by this scheme, whatever the reason.
    pub fn verify(&self, scheme: Scheme, parts: &[&[u8]], signature: &[u8]) -> Result<(), CryptoError> {
        provider::verify(self, scheme, &parts.concat(), signature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.kind)
    }
}

/// Bits of the modulus in an RSAPublicKey (RFC 8017 A.1.1).
fn rsa_bits(key: &[u8]) -> Option<u32> {
    use x509_cert::der::asn1::UintRef;
    use x509_cert::der::{Reader, SliceReader};
    let mut reader = SliceReader::new(key).ok()?;
    let modulus: UintRef<'_> = reader
        .sequence(|r| {
            let modulus = UintRef::decode(r)?;
            UintRef::decode(r)?;
            Ok::<_, x509_cert::der::Error>(modulus)
        })
        .ok()?;
    let octets = modulus.as_bytes();
    let first = octets.first()?;
    u32::try_from(octets.len()).ok()?.checked_mul(8)?.checked_sub(first.leading_zeros())
}

/// A private key, with its public half. It is never printed, and what holds it wipes it when dropped.
pub struct PrivateKey {
    inner: provider::Inner,
    public: PublicKey,
}

impl PrivateKey {
    /// Reads a DER key in PKCS#8 (RFC 5958), PKCS#1 (RFC 8017 A.1.2) or SEC1 form (RFC 5915).
    ///
    /// # Errors
    /// When it is none of them, or of a kind or length that is not taken.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let (inner, spki) = provider::load(der)?;
        Ok(Self { inner, public: PublicKey::from_spki(&spki)? })
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs the concatenation of `parts`.
    ///
    /// # Errors
    /// When the key cannot sign by this scheme.
    pub fn sign(&self, scheme: Scheme, parts: &[&[u8]]) -> Result<Vec<u8>, CryptoError> {
        let signature = provider::sign(&self.inner, self.public.kind, scheme, &parts.concat())?;
        // A fault in the computation could give the key away, so nothing wrong leaves.
        self.public.verify(scheme, parts, &signature)?;
        Ok(signature)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public.kind)
    }
}

#[cfg(test)]
mod tests;
