//! Key exchange: X25519 (RFC 8031), ECP groups (RFC 5903), MODP groups (RFC 3526).

use rand_core::Rng;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::modp::{self, EXPONENT};
use super::{CryptoError, Secret};
use crate::alg::KeyExchange;

/// A private value, good for one exchange, and its public value.
pub struct PrivateKey {
    inner: Inner,
    public: Vec<u8>,
}

enum Inner {
    X25519(StaticSecret),
    P256(p256::SecretKey),
    P384(p384::SecretKey),
    P521(p521::SecretKey),
    Modp(KeyExchange, Zeroizing<[u8; EXPONENT]>),
}

/// Generates the code for one curve: the octets of RFC 5903 7 are x | y, without SEC1's leading 4.
macro_rules! curve {
    ($module:ident, $curve:ident, $variant:ident, $len:literal) => {
        mod $module {
            use super::*;
            use $curve::elliptic_curve::sec1::ToSec1Point;

            pub(super) fn generate(rng: &mut impl Rng) -> (Inner, Vec<u8>) {
                let mut bytes = Zeroizing::new([0u8; $len]);
                loop {
                    rng.fill_bytes(&mut bytes[..]);
                    if $len == 66 {
                        // The order has 521 bits.
                        bytes[0] &= 1;
                    }
                    // Zero and values beyond the order are drawn again, so that all others stay equally likely.
                    if let Ok(key) = $curve::SecretKey::from_slice(&bytes[..]) {
                        return from_key(key);
                    }
                }
            }

            pub(super) fn from_key(key: $curve::SecretKey) -> (Inner, Vec<u8>) {
                let public = key.public_key().to_sec1_point(false).as_bytes()[1..].to_vec();
                (Inner::$variant(key), public)
            }

            pub(super) fn agree(key: &$curve::SecretKey, peer: &[u8]) -> Result<Secret, CryptoError> {
                let mut sec1 = vec![4];
                sec1.extend_from_slice(peer);
                // Refuses points off the curve; the point at infinity has no such form.
                let peer =
                    $curve::PublicKey::from_sec1_bytes(&sec1).map_err(|_| CryptoError::BadPublicValue)?;
                let shared = $curve::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
                Ok(Secret::from(shared.raw_secret_bytes().to_vec()))
            }
        }
    };
}

curve!(ecp256, p256, P256, 32);
curve!(ecp384, p384, P384, 48);
curve!(ecp521, p521, P521, 66);

impl PrivateKey {
    /// A fresh key pair; the same generator state gives the same pair.
    pub fn generate(method: KeyExchange, rng: &mut impl Rng) -> Self {
        let (inner, public) = match method {
            KeyExchange::X25519 => {
                let mut bytes = Zeroizing::new([0; 32]);
                rng.fill_bytes(&mut bytes[..]);
                let secret = StaticSecret::from(*bytes);
                let public = x25519_dalek::PublicKey::from(&secret).as_bytes().to_vec();
                (Inner::X25519(secret), public)
            }
            KeyExchange::Ecp256 => ecp256::generate(rng),
            KeyExchange::Ecp384 => ecp384::generate(rng),
            KeyExchange::Ecp521 => ecp521::generate(rng),
            KeyExchange::Modp2048 | KeyExchange::Modp3072 | KeyExchange::Modp4096 => {
                let mut exponent = Zeroizing::new([0; EXPONENT]);
                rng.fill_bytes(&mut exponent[..]);
                let public = modp::power(method, None, &exponent).expect("the generator is in the group");
                (Inner::Modp(method, exponent), public.to_vec())
            }
        };
        Self { inner, public }
    }

    /// The public value, as it stands in the KE payload.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret with a peer's public value.
    ///
    /// # Errors
    /// [`CryptoError::BadPublicValue`] when the value has the wrong length or is no safe element of the group.
    pub fn agree(&self, peer: &[u8]) -> Result<Secret, CryptoError> {
        match &self.inner {
            Inner::X25519(secret) => {
                let peer: [u8; 32] = peer.try_into().map_err(|_| CryptoError::BadPublicValue)?;
                let shared = secret.diffie_hellman(&peer.into());
                // A point of low order contributes nothing (RFC 8031 3.2).
                if !shared.was_contributory() {
                    return Err(CryptoError::BadPublicValue);
                }
                Ok(Secret::from(shared.as_bytes().to_vec()))
            }
            Inner::P256(key) => ecp256::agree(key, peer),
            Inner::P384(key) => ecp384::agree(key, peer),
            Inner::P521(key) => ecp521::agree(key, peer),
            Inner::Modp(method, exponent) => modp::power(*method, Some(peer), exponent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    #[test]
    fn both_sides_agree_with_every_method() {
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        for method in KeyExchange::ALL {
            let (a, b) = (PrivateKey::generate(method, &mut rng), PrivateKey::generate(method, &mut rng));
            assert_eq!(a.public().len(), method.public_len());
            let (ab, ba) = (a.agree(b.public()).unwrap(), b.agree(a.public()).unwrap());
            assert_eq!(ab, ba, "{method}");
            assert!(ab.iter().any(|byte| *byte != 0));
        }
    }

    /// RFC 7748 6.1.
    #[test]
    fn rfc7748_x25519() {
        let alice = hex!("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a");
        let bob = hex!("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        let key = PrivateKey { inner: Inner::X25519(alice.into()), public: vec![] };
        let shared = hex!("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!(key.agree(&bob).unwrap()[..], shared);
    }

    /// RFC 5903 8.1: the 256-bit group.
    #[test]
    fn rfc5903_ecp256() {
        let i = hex!("c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433");
        let (inner, public) = ecp256::from_key(p256::SecretKey::from_slice(&i).unwrap());
        assert_eq!(public[..32], hex!("dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c3772581180"));
        let r = hex!(
            "d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf63"
            "56fbf3ca366cc23e8157854c13c58d6aac23f046ada30f8353e74f33039872ab"
        );
        let shared = hex!("d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de");
        assert_eq!(PrivateKey { inner, public }.agree(&r).unwrap()[..], shared);
    }

    #[test]
    fn b5_unsafe_public_values_are_refused() {
        let mut rng = ChaCha20Rng::seed_from_u64(4);
        for method in KeyExchange::ALL {
            let key = PrivateKey::generate(method, &mut rng);
            let len = method.public_len();
            let mut one = vec![0; len];
            one[len - 1] = 1;
            let good = key.public().to_vec();
            let mut bad = vec![vec![], vec![0; len], vec![0xff; len + 1], good[1..].to_vec()];
            if method != KeyExchange::X25519 {
                // For X25519 every other string is a point; elsewhere 1 and all ones are outside the group.
                bad.extend([one, vec![0xff; len]]);
            }
            if matches!(method, KeyExchange::Ecp256 | KeyExchange::Ecp384 | KeyExchange::Ecp521) {
                let mut off_curve = good.clone();
                off_curve[len - 1] ^= 1;
                bad.push(off_curve);
            }
            for value in bad {
                assert!(key.agree(&value).is_err(), "{method} took {value:02x?}");
            }
        }
        // Points of order 2, 4 and 8 on Curve25519 (RFC 7748 6.1 asks to notice the all-zero result).
        let key = PrivateKey::generate(KeyExchange::X25519, &mut rng);
        for low in [
            hex!("0100000000000000000000000000000000000000000000000000000000000000"),
            hex!("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
            hex!("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        ] {
            assert!(key.agree(&low).is_err());
        }
    }
}
