//! One direction of an SA: encryption and integrity of packets, whichever algorithms were negotiated.

use aes::cipher::{Array, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit};
use aes::{Aes128, Aes256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::CryptoError;
use super::aead::{self, Aead, NONCE, TAG};
use super::prf::HmacKey;
use crate::alg::{Cipher, Integrity, KeyBits, Prf};

/// Encrypts and authenticates, or verifies and decrypts, packets of one direction of an SA.
pub struct PacketCipher {
    cipher: Cipher,
    keys: Keys,
}

enum Keys {
    Aead { key: Box<dyn Aead>, salt: Zeroizing<[u8; 4]> },
    Cbc { aes: AesKey, mac: Box<HmacKey>, icv_len: usize },
}

enum AesKey {
    B128(Box<Aes128>),
    B256(Box<Aes256>),
}

impl PacketCipher {
    /// `encryption_key` holds the salt of an AEAD at its end; `integrity_key` is empty for an AEAD.
    ///
    /// # Errors
    /// When a key has the wrong length, or `integrity` is given for an AEAD or missing for another cipher.
    pub fn new(
        cipher: Cipher,
        integrity: Option<Integrity>,
        encryption_key: &[u8],
        integrity_key: &[u8],
    ) -> Result<Self, CryptoError> {
        let lengths = (cipher.key_material_len(), integrity.map_or(0, Integrity::key_len));
        if (encryption_key.len(), integrity_key.len()) != lengths {
            return Err(CryptoError::BadKeyLength);
        }
        let keys = match (cipher, integrity) {
            (Cipher::AesCbc(bits), Some(integrity)) => {
                let bad = |_| CryptoError::BadKeyLength;
                let aes = match bits {
                    KeyBits::B128 => {
                        AesKey::B128(Box::new(Aes128::new_from_slice(encryption_key).map_err(bad)?))
                    }
                    KeyBits::B256 => {
                        AesKey::B256(Box::new(Aes256::new_from_slice(encryption_key).map_err(bad)?))
                    }
                };
                let hash = match integrity {
                    Integrity::HmacSha256 => Prf::HmacSha256,
                    Integrity::HmacSha384 => Prf::HmacSha384,
                    Integrity::HmacSha512 => Prf::HmacSha512,
                };
                Keys::Cbc {
                    aes,
                    mac: Box::new(HmacKey::new(hash, integrity_key)),
                    icv_len: integrity.icv_len(),
                }
            }
            (Cipher::AesCbc(_), None) => return Err(CryptoError::BadCombination),
            (_, Some(_)) => return Err(CryptoError::BadCombination),
            (_, None) => {
                let (key, tail) = encryption_key.split_last_chunk::<4>().ok_or(CryptoError::BadKeyLength)?;
                Keys::Aead { key: aead::new(cipher, key)?, salt: Zeroizing::new(*tail) }
            }
        };
        Ok(Self { cipher, keys })
    }

    /// The encryption algorithm.
    pub fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Octets of IV in each packet.
    pub fn iv_len(&self) -> usize {
        self.cipher.iv_len()
    }

    /// Octets of ICV in each packet.
    pub fn icv_len(&self) -> usize {
        match &self.keys {
            Keys::Aead { .. } => TAG,
            Keys::Cbc { icv_len, .. } => *icv_len,
        }
    }

    /// The plaintext must be a multiple of this.
    pub fn block_len(&self) -> usize {
        self.cipher.block_len()
    }

    /// Encrypts `text` in place and writes the ICV. For an AEAD the AAD is `head` and `tail` must be empty; for
    /// AES-CBC the ICV covers `head | iv | ciphertext | tail` (RFC 4303 3.3.2.1).
    ///
    /// # Errors
    /// When a length does not fit.
    pub fn seal(
        &self,
        iv: &[u8],
        head: &[u8],
        tail: &[u8],
        text: &mut [u8],
        icv: &mut [u8],
    ) -> Result<(), CryptoError> {
        match &self.keys {
            Keys::Aead { key, salt } => {
                let tag = key.seal(nonce(salt, iv, tail)?, head, text)?;
                if icv.len() != TAG {
                    return Err(CryptoError::BadLength);
                }
                icv.copy_from_slice(&tag);
            }
            Keys::Cbc { aes, mac, icv_len } => {
                if icv.len() != *icv_len {
                    return Err(CryptoError::BadLength);
                }
                aes.encrypt(iv, text)?;
                mac.mac(&[head, iv, text, tail], |full| icv.copy_from_slice(&full[..*icv_len]));
            }
        }
        Ok(())
    }

    /// Verifies the ICV and decrypts `text` in place; arguments as for [`Self::seal`]. After an error the text
    /// is worthless.
    ///
    /// # Errors
    /// [`CryptoError::AuthenticationFailed`] when the ICV is wrong, [`CryptoError::BadLength`] when a length
    /// does not fit.
    pub fn open(
        &self,
        iv: &[u8],
        head: &[u8],
        tail: &[u8],
        text: &mut [u8],
        icv: &[u8],
    ) -> Result<(), CryptoError> {
        match &self.keys {
            Keys::Aead { key, salt } => {
                let tag = icv.try_into().map_err(|_| CryptoError::BadLength)?;
                key.open(nonce(salt, iv, tail)?, head, text, tag)
            }
            Keys::Cbc { aes, mac, icv_len } => {
                let good: bool = mac.mac(&[head, iv, text, tail], |full| full[..*icv_len].ct_eq(icv)).into();
                if !good {
                    return Err(CryptoError::AuthenticationFailed);
                }
                aes.decrypt(iv, text)
            }
        }
    }
}

fn nonce(salt: &[u8; 4], iv: &[u8], tail: &[u8]) -> Result<[u8; NONCE], CryptoError> {
    if iv.len() != NONCE - salt.len() || !tail.is_empty() {
        return Err(CryptoError::BadLength);
    }
    let mut nonce = [0; NONCE];
    nonce[..4].copy_from_slice(salt);
    nonce[4..].copy_from_slice(iv);
    Ok(nonce)
}

impl AesKey {
    fn encrypt(&self, iv: &[u8], text: &mut [u8]) -> Result<(), CryptoError> {
        let iv: &[u8; 16] = iv.try_into().map_err(|_| CryptoError::BadLength)?;
        let (blocks, []) = Array::slice_as_chunks_mut(text) else { return Err(CryptoError::BadLength) };
        match self {
            Self::B128(aes) => {
                cbc::Encryptor::inner_iv_init((**aes).clone(), iv.into()).encrypt_blocks(blocks)
            }
            Self::B256(aes) => {
                cbc::Encryptor::inner_iv_init((**aes).clone(), iv.into()).encrypt_blocks(blocks)
            }
        }
        Ok(())
    }

    fn decrypt(&self, iv: &[u8], text: &mut [u8]) -> Result<(), CryptoError> {
        let iv: &[u8; 16] = iv.try_into().map_err(|_| CryptoError::BadLength)?;
        let (blocks, []) = Array::slice_as_chunks_mut(text) else { return Err(CryptoError::BadLength) };
        match self {
            Self::B128(aes) => {
                cbc::Decryptor::inner_iv_init((**aes).clone(), iv.into()).decrypt_blocks(blocks)
            }
            Self::B256(aes) => {
                cbc::Decryptor::inner_iv_init((**aes).clone(), iv.into()).decrypt_blocks(blocks)
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    /// RFC 3602 4, case 4: AES-CBC-128 of 64 octets.
    #[test]
    fn rfc3602_case_4() {
        let aes = AesKey::B128(Box::new(Aes128::new(&hex!("56e47a38c5598974bc46903dba290349").into())));
        let plain: Vec<u8> = (0xa0..=0xdf).collect();
        let iv = hex!("8ce82eefbea0da3c44699ed7db51b7d9");
        let mut text = plain.clone();
        aes.encrypt(&iv, &mut text).unwrap();
        assert_eq!(text[..16], hex!("c30e32ffedc0774e6aff6af0869f71aa"));
        assert_eq!(text[48..], hex!("83ce9f9a102ee99d49a53e87f4c3da55"));
        aes.decrypt(&iv, &mut text).unwrap();
        assert_eq!(text, plain);
    }

    /// RFC 7634 A: the ESP packet's AEAD.
    #[test]
    fn rfc7634_appendix_a() {
        let key = hex!("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3");
        let cipher = PacketCipher::new(Cipher::ChaCha20Poly1305, None, &key, &[]).unwrap();
        let mut text = hex!(
            "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10"
            "0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223"
            "2425262728292a2b2c2d2e2f303132333435363701020204"
        );
        let mut icv = [0; 16];
        cipher.seal(&hex!("1011121314151617"), &hex!("0102030400000005"), &[], &mut text, &mut icv).unwrap();
        assert_eq!(text[..16], hex!("24039428b97f417e3c13753a4f05087b"));
        assert_eq!(icv, hex!("76aaa8266b7fb0f7b11b369907e1ad43"));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for cipher in Cipher::ALL {
            let integrity = (!cipher.is_aead()).then_some(Integrity::HmacSha256);
            let key = vec![7; cipher.key_material_len()];
            let mac = vec![9; integrity.map_or(0, Integrity::key_len)];
            let cipher = PacketCipher::new(cipher, integrity, &key, &mac).unwrap();
            let iv = vec![1; cipher.iv_len()];
            let (plain, mut icv) = (vec![5u8; 48], vec![0; cipher.icv_len()]);
            let mut sealed = plain.clone();
            cipher.seal(&iv, b"head", &[], &mut sealed, &mut icv).unwrap();
            let mut text = sealed.clone();
            cipher.open(&iv, b"head", &[], &mut text, &icv).unwrap();
            assert_eq!(text, plain);
            for bit in 0..sealed.len() * 8 {
                let mut text = sealed.clone();
                text[bit / 8] ^= 1 << (bit % 8);
                assert!(cipher.open(&iv, b"head", &[], &mut text, &icv).is_err());
            }
            for bit in 0..icv.len() * 8 {
                let mut bad = icv.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(cipher.open(&iv, b"head", &[], &mut sealed.clone(), &bad).is_err());
            }
            assert!(cipher.open(&iv, b"Head", &[], &mut sealed.clone(), &icv).is_err());
            assert!(cipher.open(&iv, b"head", &[], &mut sealed.clone(), &[]).is_err());
        }
    }
}
