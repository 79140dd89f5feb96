//! Finite-field groups of RFC 3526, with the checks of RFC 6989 2.1.

use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, Uint};
use zeroize::Zeroize;

use super::{CryptoError, Secret};
use crate::alg::KeyExchange;

/// Octets of a private exponent: twice the strength of the largest group here, with a margin (RFC 3526 8).
pub(super) const EXPONENT: usize = 48;

/// `base^exponent mod p`, in the length of the modulus; `base` is the generator 2 if absent.
///
/// # Errors
/// When `base` has the wrong length or is not between 2 and p - 2.
pub(super) fn power(
    group: KeyExchange,
    base: Option<&[u8]>,
    exponent: &[u8; EXPONENT],
) -> Result<Secret, CryptoError> {
    match group {
        KeyExchange::Modp2048 => run::<32>(MODP_2048, base, exponent),
        KeyExchange::Modp3072 => run::<48>(MODP_3072, base, exponent),
        KeyExchange::Modp4096 => run::<64>(MODP_4096, base, exponent),
        _ => Err(CryptoError::BadPublicValue),
    }
}

fn run<const LIMBS: usize>(
    prime: &str,
    base: Option<&[u8]>,
    exponent: &[u8; EXPONENT],
) -> Result<Secret, CryptoError> {
    let p = Uint::<LIMBS>::from_be_hex(prime);
    let two = Uint::from(2u8);
    let base = match base {
        None => two,
        Some(bytes) if bytes.len() == LIMBS * 8 => Uint::from_be_slice(bytes),
        Some(_) => return Err(CryptoError::BadPublicValue),
    };
    // 0, 1 and p - 1 give away the secret or make it constant.
    if base < two || base > p.wrapping_sub(&two) {
        return Err(CryptoError::BadPublicValue);
    }
    let modulus = Odd::new(p).into_option().ok_or(CryptoError::BadPublicValue)?;
    let params = FixedMontyParams::new(modulus);
    let mut exponent = Uint::<{ EXPONENT / 8 }>::from_be_slice(exponent);
    let mut power = FixedMontyForm::new(&base, &params).pow(&exponent);
    exponent.zeroize();
    let mut plain = power.retrieve();
    power.zeroize();
    let mut octets = plain.to_be_bytes();
    plain.zeroize();
    // Zeros in front stay: g^ir has the length of the modulus (RFC 7296 2.14).
    let secret = Secret::from(octets.as_slice().to_vec());
    octets.zeroize();
    Ok(secret)
}

const MODP_2048: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
    EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F\
    83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
    E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510\
    15728E5A8AACAA68FFFFFFFFFFFFFFFF";
const MODP_3072: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
    EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F\
    83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
    E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510\
    15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7\
    ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C\
    BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF";
const MODP_4096: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD\
    EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F\
    83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
    E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510\
    15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7\
    ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C\
    BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A92108011A723C12A787E6D7\
    88719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8DBBBC2DB04DE8EF92E8EFC141FBECAA6\
    287C59474E6BC05D99B2964FA090C3A2233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA9\
    93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF";

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use sha2::{Digest, Sha256};

    /// Exponents found by search, such that the first octet of the shared secret is zero and its length would
    /// be lost without padding. The digests were computed by another implementation.
    #[test]
    fn a_leading_zero_stays() {
        let low: [u8; EXPONENT] = std::array::from_fn(|i| i as u8 + 1);
        let mut high: [u8; EXPONENT] = std::array::from_fn(|i| i as u8 + 101);
        let cases = [
            (
                KeyExchange::Modp2048,
                [0x93, 0xce],
                hex!("a165c14f3dad014fd9e07c5053ad90158ebbcc9a850a70dbfb320799cbd4994c"),
            ),
            (
                KeyExchange::Modp3072,
                [0x94, 0xa5],
                hex!("59863cb58cd4f8aab5a795099f46b96cfef8098f90ee9b16e0d0369e5ebc9485"),
            ),
            (
                KeyExchange::Modp4096,
                [0x94, 0xa9],
                hex!("553d302c56fa1875bb8714dbdb7842e1b56dcfa6a157b933affe21e7ba2cf9b6"),
            ),
        ];
        for (group, end, digest) in cases {
            let public = power(group, None, &low).unwrap();
            high[EXPONENT - 2..].copy_from_slice(&end);
            let shared = power(group, Some(&public), &high).unwrap();
            assert_eq!((shared.len(), shared[0]), (group.public_len(), 0), "{group}");
            assert_eq!(Sha256::digest(&shared[..])[..], digest, "{group}");
        }
    }

    /// RFC 6989 2.1: 1 < y < p - 1.
    #[test]
    fn b5_modp_borders() {
        let groups = [
            (KeyExchange::Modp2048, MODP_2048),
            (KeyExchange::Modp3072, MODP_3072),
            (KeyExchange::Modp4096, MODP_4096),
        ];
        for (group, prime) in groups {
            let octets: Vec<u8> = prime
                .as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect();
            // The last octet is 0xff, so that the neighbours differ in it alone.
            let near = |last: u8| {
                let mut near = octets.clone();
                *near.last_mut().unwrap() = last;
                near
            };
            let small = |value: u8| {
                let mut small = vec![0; octets.len()];
                *small.last_mut().unwrap() = value;
                small
            };
            let exponent = [7; EXPONENT];
            let take = |value: &[u8]| power(group, Some(value), &exponent).is_ok();
            assert!(take(&small(2)) && take(&near(0xfd)), "{group}");
            assert!(!take(&small(0)) && !take(&small(1)), "{group}");
            assert!(!take(&near(0xfe)) && !take(&octets) && !take(&vec![0xff; octets.len()]), "{group}");
            assert!(!take(&octets[1..]) && !take(&[&[0], &small(2)[..]].concat()) && !take(&[]), "{group}");
        }
    }
}
