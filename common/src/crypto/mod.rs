//! Cryptography: thin, uniform types over well-kept libraries. Key material is wiped when dropped and never
//! printed; everything that compares secrets does so in constant time.

mod aead;
mod cipher;
pub mod ke;
mod modp;
pub mod prf;
mod secret;
mod selftest;
pub mod signature;

pub use aead::provider_name;
pub use cipher::PacketCipher;
pub use secret::Secret;
pub use selftest::{SelfTestError, self_test};

/// Why a cryptographic operation failed. Says nothing that an attacker could use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CryptoError {
    /// The key has not the length that the algorithm needs; an error of ours.
    #[error("the key has the wrong length")]
    BadKeyLength,
    /// The text is no multiple of the block length, or the IV or ICV has the wrong length.
    #[error("a length does not fit the algorithm")]
    BadLength,
    /// The integrity check value is wrong.
    #[error("the integrity check failed")]
    AuthenticationFailed,
    /// The peer's public value is no element of the group that could be used safely (RFC 6989, RFC 8031).
    #[error("the peer's key exchange value is not acceptable")]
    BadPublicValue,
    /// A cipher without integrity was asked for without one, or the reverse.
    #[error("cipher and integrity do not belong together")]
    BadCombination,
}

/// SHA-1 of the concatenation, for NAT_DETECTION (RFC 7296 2.23) and the names of CAs in CERTREQ (3.7), where it need
/// not withstand an attacker.
pub fn sha1(parts: &[&[u8]]) -> [u8; 20] {
    use sha1::Digest;
    let mut hash = sha1::Sha1::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}
