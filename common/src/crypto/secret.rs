//! Octets that must not be seen.

use std::fmt;
use std::ops::Deref;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Key material: wiped when dropped, never printed, compared in constant time.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(Vec<u8>);

impl From<Vec<u8>> for Secret {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds only with the `zeroize` features of the libraries; aws-lc wipes what it frees by itself.
    #[test]
    fn every_key_is_wiped_when_dropped() {
        fn wiped<T: ZeroizeOnDrop>() {}
        wiped::<Secret>();
        wiped::<aes::Aes128>();
        wiped::<aes::Aes256>();
        wiped::<aes_gcm::Aes128Gcm>();
        wiped::<aes_gcm::Aes256Gcm>();
        wiped::<chacha20poly1305::ChaCha20Poly1305>();
        // An HMAC is two hashes keyed in advance.
        wiped::<sha2::Sha256>();
        wiped::<sha2::Sha384>();
        wiped::<sha2::Sha512>();
        assert!(std::mem::needs_drop::<hmac::Hmac<sha2::Sha256>>());
        assert!(std::mem::needs_drop::<hmac::Hmac<sha2::Sha512>>());
        wiped::<x25519_dalek::StaticSecret>();
        wiped::<p256::SecretKey>();
        wiped::<p384::SecretKey>();
        wiped::<p521::SecretKey>();
    }

    #[test]
    fn debug_shows_nothing_and_equality_is_of_octets() {
        let secret = Secret::from(vec![0xab, 0xcd]);
        assert_eq!(format!("{secret:?} {:?}", Some(&secret)), "Secret(..) Some(Secret(..))");
        assert_eq!(secret, Secret::from(vec![0xab, 0xcd]));
        assert_ne!(secret, Secret::from(vec![0xab, 0xce]));
        assert_ne!(secret, Secret::from(vec![0xab]));
        assert_eq!(secret[..], [0xab, 0xcd]);
    }
}
