//! Algorithms: the open registries as they appear on the wire, and the closed sets that this build implements.
//!
//! A value from the network becomes usable only by passing through one of the closed enums, so an algorithm
//! that we neither offered nor implement cannot be selected.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::registry::registry;

registry! {
    /// Transform Type (RFC 7296 3.3.2).
    TransformType(u8) { ENCR = 1, PRF = 2, INTEG = 3, KE = 4, ESN = 5 }
}

/// Encryption: AEADs, and AES-CBC, which needs an [`Integrity`] beside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Cipher {
    /// AES-GCM with a 16-octet ICV (RFC 4106, RFC 5282), transform 20. The field is the key length in bits.
    AesGcm16(KeyBits),
    /// ChaCha20-Poly1305 (RFC 7634), transform 28.
    ChaCha20Poly1305,
    /// AES-CBC (RFC 3602), transform 12. The field is the key length in bits.
    AesCbc(KeyBits),
}

/// AES key lengths.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KeyBits {
    /// 128 bits.
    B128,
    /// 256 bits.
    B256,
}

impl KeyBits {
    /// The length in bits, as in the Key Length attribute (RFC 7296 3.3.5).
    pub fn bits(self) -> u16 {
        match self {
            Self::B128 => 128,
            Self::B256 => 256,
        }
    }
}

impl Cipher {
    /// All that are implemented.
    pub const ALL: [Self; 5] = [
        Self::AesGcm16(KeyBits::B256),
        Self::AesGcm16(KeyBits::B128),
        Self::ChaCha20Poly1305,
        Self::AesCbc(KeyBits::B256),
        Self::AesCbc(KeyBits::B128),
    ];

    /// Transform ID (type 1) and Key Length attribute.
    pub fn transform(self) -> (u16, Option<u16>) {
        match self {
            Self::AesGcm16(bits) => (20, Some(bits.bits())),
            Self::ChaCha20Poly1305 => (28, None),
            Self::AesCbc(bits) => (12, Some(bits.bits())),
        }
    }

    /// The implemented cipher of a transform.
    pub fn from_transform(id: u16, key_bits: Option<u16>) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.transform() == (id, key_bits))
    }

    /// Whether the cipher authenticates by itself.
    pub fn is_aead(self) -> bool {
        !matches!(self, Self::AesCbc(_))
    }

    /// Octets of keying material: the key, and for AEADs the 4-octet salt after it.
    pub fn key_material_len(self) -> usize {
        match self {
            Self::AesGcm16(bits) => usize::from(bits.bits()) / 8 + 4,
            Self::ChaCha20Poly1305 => 32 + 4,
            Self::AesCbc(bits) => usize::from(bits.bits()) / 8,
        }
    }

    /// Octets of IV in each packet.
    pub fn iv_len(self) -> usize {
        if self.is_aead() { 8 } else { 16 }
    }

    /// The plaintext is padded to a multiple of this (RFC 4303 2.4 asks for at least 4 in ESP).
    pub fn block_len(self) -> usize {
        if self.is_aead() { 4 } else { 16 }
    }
}

/// Integrity protection beside a cipher that has none (RFC 4868).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Integrity {
    /// AUTH_HMAC_SHA2_256_128, transform 12.
    HmacSha256,
    /// AUTH_HMAC_SHA2_384_192, transform 13.
    HmacSha384,
    /// AUTH_HMAC_SHA2_512_256, transform 14.
    HmacSha512,
}

impl Integrity {
    /// All that are implemented.
    pub const ALL: [Self; 3] = [Self::HmacSha256, Self::HmacSha384, Self::HmacSha512];

    /// Transform ID (type 3).
    pub fn transform(self) -> u16 {
        match self {
            Self::HmacSha256 => 12,
            Self::HmacSha384 => 13,
            Self::HmacSha512 => 14,
        }
    }

    /// The implemented algorithm of a transform.
    pub fn from_transform(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|i| i.transform() == id)
    }

    /// Octets of key (RFC 4868 2.1.1: the output length of the hash).
    pub fn key_len(self) -> usize {
        2 * self.icv_len()
    }

    /// Octets of the truncated ICV.
    pub fn icv_len(self) -> usize {
        match self {
            Self::HmacSha256 => 16,
            Self::HmacSha384 => 24,
            Self::HmacSha512 => 32,
        }
    }
}

/// Pseudorandom function (RFC 4868).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Prf {
    /// PRF_HMAC_SHA2_256, transform 5.
    HmacSha256,
    /// PRF_HMAC_SHA2_384, transform 6.
    HmacSha384,
    /// PRF_HMAC_SHA2_512, transform 7.
    HmacSha512,
}

impl Prf {
    /// All that are implemented.
    pub const ALL: [Self; 3] = [Self::HmacSha256, Self::HmacSha384, Self::HmacSha512];

    /// Transform ID (type 2).
    pub fn transform(self) -> u16 {
        match self {
            Self::HmacSha256 => 5,
            Self::HmacSha384 => 6,
            Self::HmacSha512 => 7,
        }
    }

    /// The implemented function of a transform.
    pub fn from_transform(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.transform() == id)
    }

    /// Octets of output, which is also the preferred key length (RFC 7296 2.13).
    pub fn output_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }
}

/// Key exchange method.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KeyExchange {
    /// Curve25519 (RFC 8031), method 31.
    X25519,
    /// 256-bit random ECP group (RFC 5903), method 19.
    Ecp256,
    /// 384-bit random ECP group (RFC 5903), method 20.
    Ecp384,
    /// 521-bit random ECP group (RFC 5903), method 21.
    Ecp521,
    /// 2048-bit MODP group (RFC 3526), method 14.
    Modp2048,
    /// 3072-bit MODP group (RFC 3526), method 15.
    Modp3072,
    /// 4096-bit MODP group (RFC 3526), method 16.
    Modp4096,
}

impl KeyExchange {
    /// All that are implemented.
    pub const ALL: [Self; 7] = [
        Self::X25519,
        Self::Ecp256,
        Self::Ecp384,
        Self::Ecp521,
        Self::Modp2048,
        Self::Modp3072,
        Self::Modp4096,
    ];

    /// Transform ID (type 4).
    pub fn transform(self) -> u16 {
        match self {
            Self::X25519 => 31,
            Self::Ecp256 => 19,
            Self::Ecp384 => 20,
            Self::Ecp521 => 21,
            Self::Modp2048 => 14,
            Self::Modp3072 => 15,
            Self::Modp4096 => 16,
        }
    }

    /// The implemented method of a transform.
    pub fn from_transform(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.transform() == id)
    }

    /// Octets of a public value in the KE payload.
    pub fn public_len(self) -> usize {
        match self {
            Self::X25519 => 32,
            Self::Ecp256 => 64,
            Self::Ecp384 => 96,
            Self::Ecp521 => 132,
            Self::Modp2048 => 256,
            Self::Modp3072 => 384,
            Self::Modp4096 => 512,
        }
    }
}

/// What was selected for an IKE SA.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IkeSuite {
    /// Encryption of SK payloads.
    pub cipher: Cipher,
    /// Present exactly when `cipher` is no AEAD.
    pub integrity: Option<Integrity>,
    /// Key derivation and AUTH.
    pub prf: Prf,
    /// Key exchange.
    pub ke: KeyExchange,
}

/// What was selected for a Child SA.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EspSuite {
    /// Encryption.
    pub cipher: Cipher,
    /// Present exactly when `cipher` is no AEAD.
    pub integrity: Option<Integrity>,
    /// Key exchange of its own (perfect forward secrecy), if any.
    pub ke: Option<KeyExchange>,
    /// 64-bit sequence numbers (RFC 4303 2.2.1).
    pub esn: bool,
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AesGcm16(bits) => write!(f, "AES_GCM_16_{}", bits.bits()),
            Self::ChaCha20Poly1305 => f.write_str("CHACHA20_POLY1305"),
            Self::AesCbc(bits) => write!(f, "AES_CBC_{}", bits.bits()),
        }
    }
}

impl fmt::Display for Integrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HmacSha256 => "HMAC_SHA2_256_128",
            Self::HmacSha384 => "HMAC_SHA2_384_192",
            Self::HmacSha512 => "HMAC_SHA2_512_256",
        })
    }
}

impl fmt::Display for Prf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HmacSha256 => "PRF_HMAC_SHA2_256",
            Self::HmacSha384 => "PRF_HMAC_SHA2_384",
            Self::HmacSha512 => "PRF_HMAC_SHA2_512",
        })
    }
}

impl fmt::Display for KeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X25519 => "CURVE_25519",
            Self::Ecp256 => "ECP_256",
            Self::Ecp384 => "ECP_384",
            Self::Ecp521 => "ECP_521",
            Self::Modp2048 => "MODP_2048",
            Self::Modp3072 => "MODP_3072",
            Self::Modp4096 => "MODP_4096",
        })
    }
}

impl fmt::Display for IkeSuite {
    /// `IKE:AES_GCM_16_256/PRF_HMAC_SHA2_384/CURVE_25519`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IKE:{}", self.cipher)?;
        if let Some(integrity) = self.integrity {
            write!(f, "/{integrity}")?;
        }
        write!(f, "/{}/{}", self.prf, self.ke)
    }
}

impl fmt::Display for EspSuite {
    /// `ESP:AES_CBC_128/HMAC_SHA2_256_128/NO_EXT_SEQ`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ESP:{}", self.cipher)?;
        if let Some(integrity) = self.integrity {
            write!(f, "/{integrity}")?;
        }
        if let Some(ke) = self.ke {
            write!(f, "/{ke}")?;
        }
        f.write_str(if self.esn { "/EXT_SEQ" } else { "/NO_EXT_SEQ" })
    }
}

impl Serialize for IkeSuite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for EspSuite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
