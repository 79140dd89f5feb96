//! Known answers of every algorithm. They are asked for once at start: a build, a processor or a provider that
//! computes wrongly is noticed before a key depends on it.

use hex_literal::hex;
use sha2::{Digest, Sha256};

use super::aead::{NONCE, Provider, TAG};
use super::cipher::AesKey;
use super::ke::PrivateKey;
use super::prf::prf;
use super::sha1;
use crate::alg::{Cipher, KeyBits, KeyExchange, Prf};

/// An algorithm gives wrong answers here; nothing that uses it can be trusted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("self-test: {algorithm} gives a wrong answer")]
pub struct SelfTestError {
    /// The algorithm, by its name in logs.
    pub algorithm: String,
}

/// Compares every algorithm with answers that others computed.
///
/// # Errors
/// Names the first algorithm whose answer is wrong.
pub fn self_test() -> Result<(), SelfTestError> {
    aead(Provider::chosen())?;
    cbc()?;
    hashes()?;
    key_exchange()
}

fn expect(good: bool, algorithm: impl ToString) -> Result<(), SelfTestError> {
    if good { Ok(()) } else { Err(SelfTestError { algorithm: algorithm.to_string() }) }
}

/// One provider: sealing, opening, and refusing a changed packet.
pub(super) fn aead(provider: Provider) -> Result<(), SelfTestError> {
    for vector in AEAD {
        let right = || -> Option<bool> {
            let key = provider.key(vector.cipher, vector.key).ok()?;
            let mut text = vector.plain.to_vec();
            let mut tag = [0; TAG];
            key.seal(vector.nonce, vector.aad, &mut text, &mut tag).ok()?;
            let sealed = text == vector.sealed && tag == vector.tag;
            key.open(vector.nonce, vector.aad, &mut text, &tag).ok()?;
            let opened = text == vector.plain;
            let mut changed = vector.sealed.to_vec();
            changed[0] ^= 1;
            let refused = key.open(vector.nonce, vector.aad, &mut changed, &tag).is_err();
            Some(sealed && opened && refused)
        };
        expect(right() == Some(true), vector.cipher)?;
    }
    Ok(())
}

fn cbc() -> Result<(), SelfTestError> {
    for (bits, key, iv, plain, sealed) in CBC {
        let right = || -> Option<bool> {
            let key = AesKey::new(bits, key).ok()?;
            let mut text = plain.to_vec();
            key.encrypt(iv, &mut text).ok()?;
            let encrypted = text == sealed;
            key.decrypt(iv, &mut text).ok()?;
            Some(encrypted && text == plain)
        };
        expect(right() == Some(true), Cipher::AesCbc(bits))?;
    }
    Ok(())
}

fn hashes() -> Result<(), SelfTestError> {
    for (alg, answer) in HMAC {
        expect(prf(alg, &[0x0b; 20], &[b"Hi ", b"There"])[..] == *answer, alg)?;
    }
    expect(sha1(&[b"a", b"bc"]) == hex!("a9993e364706816aba3e25717850c26c9cd0d89d"), "SHA-1")
}

pub(super) fn key_exchange() -> Result<(), SelfTestError> {
    for vector in KE {
        let method = vector.method;
        // The values of MODP groups are long; the table has their digests.
        let modp = matches!(method, KeyExchange::Modp2048 | KeyExchange::Modp3072 | KeyExchange::Modp4096);
        let show = |value: &[u8]| if modp { Sha256::digest(value).to_vec() } else { value.to_vec() };
        let right = || -> Option<bool> {
            let a = PrivateKey::load(method, vector.private[0]).ok()?;
            let b = PrivateKey::load(method, vector.private[1]).ok()?;
            let (ab, ba) = (a.agree(b.public()).ok()?, b.agree(a.public()).ok()?);
            let public = show(a.public()) == vector.public[0] && show(b.public()) == vector.public[1];
            let refused = a.agree(&vec![0; method.public_len()]).is_err();
            Some(public && ab == ba && show(&ab) == vector.shared && refused)
        };
        expect(right() == Some(true), method)?;
    }
    Ok(())
}

struct AeadVector {
    cipher: Cipher,
    key: &'static [u8],
    nonce: [u8; NONCE],
    aad: &'static [u8],
    plain: &'static [u8],
    sealed: &'static [u8],
    tag: [u8; TAG],
}

/// Test cases 4 and 16 of the GCM specification (McGrew and Viega), RFC 7634 A.
const AEAD: [AeadVector; 3] = [
    AeadVector {
        cipher: Cipher::AesGcm16(KeyBits::B128),
        key: &hex!("feffe9928665731c6d6a8f9467308308"),
        nonce: hex!("cafebabefacedbaddecaf888"),
        aad: &hex!("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
        plain: &hex!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        ),
        sealed: &hex!(
            "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
            "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091"
        ),
        tag: hex!("5bc94fbc3221a5db94fae95ae7121a47"),
    },
    AeadVector {
        cipher: Cipher::AesGcm16(KeyBits::B256),
        key: &hex!("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"),
        nonce: hex!("cafebabefacedbaddecaf888"),
        aad: &hex!("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
        plain: &hex!(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
        ),
        sealed: &hex!(
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
            "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        ),
        tag: hex!("76fc6ece0f4e1768cddf8853bb2d551b"),
    },
    AeadVector {
        cipher: Cipher::ChaCha20Poly1305,
        key: &hex!("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f"),
        nonce: hex!("a0a1a2a31011121314151617"),
        aad: &hex!("0102030400000005"),
        plain: &hex!(
            "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10"
            "0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223"
            "2425262728292a2b2c2d2e2f303132333435363701020204"
        ),
        sealed: &hex!(
            "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6"
            "14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3"
            "cbec163fac469b502773f6fb94e664da9165b82829f641e0"
        ),
        tag: hex!("76aaa8266b7fb0f7b11b369907e1ad43"),
    },
];

type CbcVector = (KeyBits, &'static [u8], &'static [u8], &'static [u8], &'static [u8]);

/// RFC 3602 4 case 4; NIST SP 800-38A F.2.5.
const CBC: [CbcVector; 2] = [
    (
        KeyBits::B128,
        &hex!("56e47a38c5598974bc46903dba290349"),
        &hex!("8ce82eefbea0da3c44699ed7db51b7d9"),
        &hex!(
            "a0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf"
            "c0c1c2c3c4c5c6c7c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedf"
        ),
        &hex!(
            "c30e32ffedc0774e6aff6af0869f71aa0f3af07a9a31a9c684db207eb0ef8e4e"
            "35907aa632c3ffdf868bb7b29d3d46ad83ce9f9a102ee99d49a53e87f4c3da55"
        ),
    ),
    (
        KeyBits::B256,
        &hex!("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"),
        &hex!("000102030405060708090a0b0c0d0e0f"),
        &hex!(
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
            "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
        ),
        &hex!(
            "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"
            "39f23369a9d9bacfa530e26304231461b2eb05e2c39be9fcda6c19078c6a9d1b"
        ),
    ),
];

/// RFC 4868 2.7.1, test case PRF-1.
const HMAC: [(Prf, &[u8]); 3] = [
    (Prf::HmacSha256, &hex!("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7")),
    (
        Prf::HmacSha384,
        &hex!(
            "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59c"
            "faea9ea9076ede7f4af152e8b2fa9cb6"
        ),
    ),
    (
        Prf::HmacSha512,
        &hex!(
            "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde"
            "daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854"
        ),
    ),
];

struct KeVector {
    method: KeyExchange,
    private: [&'static [u8]; 2],
    public: [&'static [u8]; 2],
    shared: &'static [u8],
}

/// Octets 1 to 48 and 101 to 148, as exponents for the groups that come without vectors.
const EXPONENTS: [&[u8]; 2] = [
    &hex!(
        "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
        "2122232425262728292a2b2c2d2e2f30"
    ),
    &hex!(
        "65666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f8081828384"
        "85868788898a8b8c8d8e8f9091929394"
    ),
];

/// RFC 7748 6.1; RFC 5903 8.1, 8.2, 8.3. RFC 3526 has no vectors: the digests of the MODP groups were computed
/// from the RFC's own text of the primes with another implementation of long integers.
const KE: [KeVector; 7] = [
    KeVector {
        method: KeyExchange::X25519,
        private: [
            &hex!("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"),
            &hex!("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"),
        ],
        public: [
            &hex!("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"),
            &hex!("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"),
        ],
        shared: &hex!("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"),
    },
    KeVector {
        method: KeyExchange::Ecp256,
        private: [
            &hex!("c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433"),
            &hex!("c6ef9c5d78ae012a011164acb397ce2088685d8f06bf9be0b283ab46476bee53"),
        ],
        public: [
            &hex!(
                "dad0b65394221cf9b051e1feca5787d098dfe637fc90b9ef945d0c3772581180"
                "5271a0461cdb8252d61f1c456fa3e59ab1f45b33accf5f58389e0577b8990bb3"
            ),
            &hex!(
                "d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf63"
                "56fbf3ca366cc23e8157854c13c58d6aac23f046ada30f8353e74f33039872ab"
            ),
        ],
        shared: &hex!("d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de"),
    },
    KeVector {
        method: KeyExchange::Ecp384,
        private: [
            &hex!(
                "099f3c7034d4a2c699884d73a375a67f7624ef7c6b3c0f160647b67414dce655"
                "e35b538041e649ee3faef896783ab194"
            ),
            &hex!(
                "41cb0779b4bdb85d47846725fbec3c9430fab46cc8dc5060855cc9bda0aa2942"
                "e0308312916b8ed2960e4bd55a7448fc"
            ),
        ],
        public: [
            &hex!(
                "667842d7d180ac2cde6f74f37551f55755c7645c20ef73e31634fe72b4c55ee6"
                "de3ac808acb4bdb4c88732aee95f41aa9482ed1fc0eeb9cafc4984625ccfc23f"
                "65032149e0e144ada024181535a0f38eeb9fcff3c2c947dae69b4c634573a81c"
            ),
            &hex!(
                "e558dbef53eecde3d3fccfc1aea08a89a987475d12fd950d83cfa41732bc509d"
                "0d1ac43a0336def96fda41d0774a3571dcfbec7aacf3196472169e838430367f"
                "66eebe3c6e70c416dd5f0c68759dd1fff83fa40142209dff5eaad96db9e6386c"
            ),
        ],
        shared: &hex!(
            "11187331c279962d93d604243fd592cb9d0a926f422e47187521287e7156c5c4"
            "d603135569b9e9d09cf5d4a270f59746"
        ),
    },
    KeVector {
        method: KeyExchange::Ecp521,
        private: [
            &hex!(
                "0037ade9319a89f4dabdb3ef411aaccca5123c61acab57b5393dce47608172a0"
                "95aa85a30fe1c2952c6771d937ba9777f5957b2639bab072462f68c27a57382d"
                "4a52"
            ),
            &hex!(
                "0145ba99a847af43793fdd0e872e7cdfa16be30fdc780f97bccc3f078380201e"
                "9c677d600b343757a3bdbf2a3163e4c2f869cca7458aa4a4effc311f5cb15168"
                "5eb9"
            ),
        ],
        public: [
            &hex!(
                "0015417e84dbf28c0ad3c278713349dc7df153c897a1891bd98bab4357c9ecbe"
                "e1e3bf42e00b8e380aeae57c2d107564941885942af5a7f4601723c4195d176c"
                "ed3e017cae20b6641d2eeb695786d8c946146239d099e18e1d5a514c739d7cb4"
                "a10ad8a788015ac405d7799dc75e7b7d5b6cf2261a6a7f1507438bf01beb6ca3"
                "926f9582"
            ),
            &hex!(
                "00d0b3975ac4b799f5bea16d5e13e9af971d5e9b984c9f39728b5e5739735a21"
                "9b97c356436adc6e95bb0352f6be64a6c2912d4ef2d0433ced2b6171640012d9"
                "460f015c68226383956e3bd066e797b623c27ce0eac2f551a10c2c724d985207"
                "7b87220b6536c5c408a1d2aebb8e86d678ae49cb57091f4732296579ab44fcd1"
                "7f0fc56a"
            ),
        ],
        shared: &hex!(
            "01144c7d79ae6956bc8edb8e7c787c4521cb086fa64407f97894e5e6b2d79b04"
            "d1427e73ca4baa240a34786859810c06b3c715a3a8cc3151f2bee417996d19f3"
            "ddea"
        ),
    },
    KeVector {
        method: KeyExchange::Modp2048,
        private: EXPONENTS,
        public: [
            &hex!("c6bb6f5e574450b6ea4b3222e84df62562628476d37f4457509691d76012e1dc"),
            &hex!("9f66fa1fc8e8a33bf2765221418743a6de3be3206a0821181619ad654fb95aea"),
        ],
        shared: &hex!("6d281b7cf8ab4dfa9d2f232d0b8bd7e0240a2bb1cfc8c1a35510f5104b5e4033"),
    },
    KeVector {
        method: KeyExchange::Modp3072,
        private: EXPONENTS,
        public: [
            &hex!("3c53bf83dcbc85226c6a2b4509813df904976739b71df58a85386ee4b369bf8a"),
            &hex!("74f5f81163f13b6fdb4aae636cdec48a9ff6b83b0be9e38b93ea72b6dde3e9f6"),
        ],
        shared: &hex!("6f887022d70b67d953bc0d8ccf9ee865a7025ba82207f178ee6fc7be5d8010ba"),
    },
    KeVector {
        method: KeyExchange::Modp4096,
        private: EXPONENTS,
        public: [
            &hex!("98c3085677538ebfdd402b16495acba6e957e790870ccdca22443050c2fe4768"),
            &hex!("73ab3e162e1e191bd53433e43888ab610c5dac341aaf7ac2e882554a9d6ac57a"),
        ],
        shared: &hex!("fff4dd12284c3c42d4a770ace6144af763af505d0df2b5ad77043dbdd1d459e8"),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_passes() {
        assert_eq!(self_test(), Ok(()));
        for provider in Provider::ALL {
            assert_eq!(aead(*provider), Ok(()), "{provider:?}");
        }
    }

    #[test]
    fn every_algorithm_is_covered() {
        let aeads: Vec<_> = AEAD.iter().map(|v| v.cipher).collect();
        let cbcs: Vec<_> = CBC.iter().map(|v| Cipher::AesCbc(v.0)).collect();
        assert!(Cipher::ALL.iter().all(|c| aeads.contains(c) || cbcs.contains(c)));
        assert!(Prf::ALL.iter().all(|p| HMAC.iter().any(|v| v.0 == *p)));
        assert!(KeyExchange::ALL.iter().all(|k| KE.iter().any(|v| v.method == *k)));
    }

    #[test]
    fn the_error_names_the_algorithm() {
        let error = expect(false, KeyExchange::Ecp384).unwrap_err();
        assert_eq!(error.to_string(), "self-test: ECP_384 gives a wrong answer");
    }
}
