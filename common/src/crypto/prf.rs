//! HMAC-SHA-2, the PRF and prf+ (RFC 7296 2.13, RFC 4868).

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha384, Sha512};

use super::Secret;
use crate::alg::Prf;

/// A keyed HMAC that can be used again and again without hashing the key anew.
#[derive(Clone)]
pub(super) enum HmacKey {
    Sha256(Hmac<Sha256>),
    Sha384(Hmac<Sha384>),
    Sha512(Hmac<Sha512>),
}

fn keyed<M: KeyInit>(key: &[u8]) -> M {
    M::new_from_slice(key).expect("HMAC takes a key of any length")
}

impl HmacKey {
    pub(super) fn new(alg: Prf, key: &[u8]) -> Self {
        match alg {
            Prf::HmacSha256 => Self::Sha256(keyed(key)),
            Prf::HmacSha384 => Self::Sha384(keyed(key)),
            Prf::HmacSha512 => Self::Sha512(keyed(key)),
        }
    }

    /// The full output over the concatenation of `parts`, handed to `use_it`; nothing is allocated.
    pub(super) fn mac<R>(&self, parts: &[&[u8]], use_it: impl FnOnce(&[u8]) -> R) -> R {
        fn run<M: Mac + Clone, R>(mac: &M, parts: &[&[u8]], use_it: impl FnOnce(&[u8]) -> R) -> R {
            let mut mac = mac.clone();
            parts.iter().for_each(|part| mac.update(part));
            use_it(&mac.finalize().into_bytes())
        }
        match self {
            Self::Sha256(mac) => run(mac, parts, use_it),
            Self::Sha384(mac) => run(mac, parts, use_it),
            Self::Sha512(mac) => run(mac, parts, use_it),
        }
    }
}

/// `prf(key, parts[0] | parts[1] | ...)`.
pub fn prf(alg: Prf, key: &[u8], parts: &[&[u8]]) -> Secret {
    HmacKey::new(alg, key).mac(parts, |out| Secret::from(out.to_vec()))
}

/// The first `len` octets of `prf+(key, seed)`.
///
/// # Panics
/// When `len` is more than 255 blocks, which no key schedule needs.
pub fn prf_plus(alg: Prf, key: &[u8], seed: &[&[u8]], len: usize) -> Secret {
    let blocks = len.div_ceil(alg.output_len());
    assert!(blocks <= 255, "prf+ is defined for at most 255 blocks");
    let hmac = HmacKey::new(alg, key);
    let mut out = Vec::with_capacity(blocks * alg.output_len());
    let mut previous = Secret::from(Vec::new());
    for counter in 1..=blocks as u8 {
        let counter = [counter];
        let mut parts: Vec<&[u8]> = vec![&previous];
        parts.extend_from_slice(seed);
        parts.push(&counter);
        let block = hmac.mac(&parts, |out| Secret::from(out.to_vec()));
        out.extend_from_slice(&block);
        previous = block;
    }
    out.truncate(len);
    Secret::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    /// RFC 4868 2.7.2: test cases PRF-1 and PRF-2.
    #[test]
    fn rfc4868_prf_vectors() {
        let cases: [(Prf, &[u8]); 3] = [
            (Prf::HmacSha256, &hex!("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7")),
            (
                Prf::HmacSha384,
                &hex!(
                    "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6"
                ),
            ),
            (
                Prf::HmacSha512,
                &hex!(
                    "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854"
                ),
            ),
        ];
        for (alg, expected) in cases {
            assert_eq!(&prf(alg, &[0x0b; 20], &[b"Hi ", b"There"])[..], expected, "{alg}");
        }
        let jefe = hex!("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert_eq!(&prf(Prf::HmacSha256, b"Jefe", &[b"what do ya want for nothing?"])[..], jefe);
    }

    #[test]
    fn prf_plus_chains_its_blocks() {
        let first = prf(Prf::HmacSha256, b"key", &[b"seed", &[1]]);
        let second = prf(Prf::HmacSha256, b"key", &[&first, b"seed", &[2]]);
        let both = prf_plus(Prf::HmacSha256, b"key", &[b"se", b"ed"], 50);
        assert_eq!(both[..32], first[..]);
        assert_eq!(both[32..], second[..18]);
    }
}
