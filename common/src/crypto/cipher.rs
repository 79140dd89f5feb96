//! One direction of an SA: encryption and integrity of packets, whichever algorithms were negotiated.

use std::fmt;
use std::sync::OnceLock;

use aes::cipher::{Array, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit};
use aes::{Aes128, Aes256, Block};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::CryptoError;
use super::aead::{AeadKey, NONCE, Provider, TAG};
use super::prf::HmacKey;
use crate::alg::{Cipher, Integrity, KeyBits, Prf};

/// Encrypts and authenticates, or verifies and decrypts, packets of one direction of an SA.
pub struct PacketCipher {
    cipher: Cipher,
    keys: Keys,
}

enum Keys {
    Aead(SaltedKey),
    Cbc { aes: AesKey, mac: Box<HmacKey>, icv_len: usize },
}

/// The key of an AEAD. What a provider makes of it takes more than half a kilobyte, so that is made when the first
/// packet comes: of many SAs most are idle, or carry packets one way only.
struct SaltedKey {
    made: OnceLock<AeadKey>,
    provider: Provider,
    cipher: Cipher,
    salt: Zeroizing<[u8; 4]>,
    /// As long as the cipher's key is; the rest is not used.
    key: Zeroizing<[u8; KEY_MAX]>,
}

/// Octets of the longest key.
const KEY_MAX: usize = 32;

pub(super) enum AesKey {
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
        Self::by(Provider::chosen(), cipher, integrity, encryption_key, integrity_key)
    }

    fn by(
        provider: Provider,
        cipher: Cipher,
        integrity: Option<Integrity>,
        encryption_key: &[u8],
        integrity_key: &[u8],
    ) -> Result<Self, CryptoError> {
        if cipher.is_aead() == integrity.is_some() {
            return Err(CryptoError::BadCombination);
        }
        let lengths = (cipher.key_material_len(), integrity.map_or(0, Integrity::key_len));
        if (encryption_key.len(), integrity_key.len()) != lengths {
            return Err(CryptoError::BadKeyLength);
        }
        let keys = match (cipher, integrity) {
            (Cipher::AesCbc(bits), Some(integrity)) => {
                let hash = match integrity {
                    Integrity::HmacSha256 => Prf::HmacSha256,
                    Integrity::HmacSha384 => Prf::HmacSha384,
                    Integrity::HmacSha512 => Prf::HmacSha512,
                };
                Keys::Cbc {
                    aes: AesKey::new(bits, encryption_key)?,
                    mac: Box::new(HmacKey::new(hash, integrity_key)),
                    icv_len: integrity.icv_len(),
                }
            }
            _ => {
                let (bytes, salt) = encryption_key.split_last_chunk().ok_or(CryptoError::BadKeyLength)?;
                let mut key = Zeroizing::new([0; KEY_MAX]);
                key.get_mut(..bytes.len()).ok_or(CryptoError::BadKeyLength)?.copy_from_slice(bytes);
                let salt = Zeroizing::new(*salt);
                Keys::Aead(SaltedKey { made: OnceLock::new(), provider, cipher, salt, key })
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
            Keys::Aead(_) => TAG,
            Keys::Cbc { icv_len, .. } => *icv_len,
        }
    }

    /// Lets go of what was made of the key for speed, until the next packet. For what has to be done seldom.
    pub fn rest(&mut self) {
        if let Keys::Aead(key) = &mut self.keys {
            key.made.take();
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
            Keys::Aead(key) => {
                let icv = icv.try_into().map_err(|_| CryptoError::BadLength)?;
                key.made()?.seal(nonce(&key.salt, iv, tail)?, head, text, icv)
            }
            Keys::Cbc { aes, mac, icv_len } => {
                if icv.len() != *icv_len {
                    return Err(CryptoError::BadLength);
                }
                aes.encrypt(iv, text)?;
                mac.mac(&[head, iv, text, tail], |full| icv.copy_from_slice(&full[..*icv_len]));
                Ok(())
            }
        }
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
            Keys::Aead(key) => {
                let tag = icv.try_into().map_err(|_| CryptoError::BadLength)?;
                key.made()?.open(nonce(&key.salt, iv, tail)?, head, text, tag)
            }
            Keys::Cbc { aes, mac, icv_len } => {
                if icv.len() != *icv_len {
                    return Err(CryptoError::BadLength);
                }
                // The text is not looked at before its integrity is known (RFC 4303 3.4.4.1).
                let good: bool = mac.mac(&[head, iv, text, tail], |full| full[..*icv_len].ct_eq(icv)).into();
                if !good {
                    return Err(CryptoError::AuthenticationFailed);
                }
                aes.decrypt(iv, text)
            }
        }
    }
}

impl SaltedKey {
    #[inline]
    fn made(&self) -> Result<&AeadKey, CryptoError> {
        self.made.get().map_or_else(|| self.make(), Ok)
    }

    #[cold]
    fn make(&self) -> Result<&AeadKey, CryptoError> {
        let key = &self.key[..self.cipher.key_material_len() - self.salt.len()];
        let made = self.provider.key(self.cipher, key)?;
        Ok(self.made.get_or_init(|| made))
    }
}

fn nonce(salt: &[u8; 4], iv: &[u8], tail: &[u8]) -> Result<[u8; NONCE], CryptoError> {
    let (Ok(iv), []) = (<&[u8; 8]>::try_from(iv), tail) else { return Err(CryptoError::BadLength) };
    // Put together in a register: written in two pieces and read as others, it would stall the processor.
    let whole = u128::from(u32::from_le_bytes(*salt)) | u128::from(u64::from_le_bytes(*iv)) << 32;
    let mut nonce = [0; NONCE];
    nonce.copy_from_slice(&whole.to_le_bytes()[..NONCE]);
    Ok(nonce)
}

impl fmt::Debug for PacketCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketCipher({}, ..)", self.cipher)
    }
}

impl AesKey {
    pub(super) fn new(bits: KeyBits, key: &[u8]) -> Result<Self, CryptoError> {
        let bad = |_| CryptoError::BadKeyLength;
        Ok(match bits {
            KeyBits::B128 => Self::B128(Box::new(Aes128::new_from_slice(key).map_err(bad)?)),
            KeyBits::B256 => Self::B256(Box::new(Aes256::new_from_slice(key).map_err(bad)?)),
        })
    }

    /// AES-CBC without padding.
    pub(super) fn encrypt(&self, iv: &[u8], text: &mut [u8]) -> Result<(), CryptoError> {
        let (iv, blocks) = blocks(iv, text)?;
        // By reference: the expanded key is neither computed nor copied anew for a packet.
        match self {
            Self::B128(aes) => cbc::Encryptor::<&Aes128>::inner_iv_init(aes, iv).encrypt_blocks(blocks),
            Self::B256(aes) => cbc::Encryptor::<&Aes256>::inner_iv_init(aes, iv).encrypt_blocks(blocks),
        }
        Ok(())
    }

    pub(super) fn decrypt(&self, iv: &[u8], text: &mut [u8]) -> Result<(), CryptoError> {
        let (iv, blocks) = blocks(iv, text)?;
        match self {
            Self::B128(aes) => cbc::Decryptor::<&Aes128>::inner_iv_init(aes, iv).decrypt_blocks(blocks),
            Self::B256(aes) => cbc::Decryptor::<&Aes256>::inner_iv_init(aes, iv).decrypt_blocks(blocks),
        }
        Ok(())
    }
}

fn blocks<'a>(iv: &'a [u8], text: &'a mut [u8]) -> Result<(&'a Block, &'a mut [Block]), CryptoError> {
    let iv: &[u8; 16] = iv.try_into().map_err(|_| CryptoError::BadLength)?;
    match Array::slice_as_chunks_mut(text) {
        (blocks, []) => Ok((iv.into(), blocks)),
        _ => Err(CryptoError::BadLength),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use proptest::prelude::*;

    /// Every suite on every provider, with keys that differ in all octets.
    fn suites() -> Vec<PacketCipher> {
        let mut all = vec![];
        for (provider, cipher) in Provider::ALL.iter().flat_map(|p| Cipher::ALL.map(|c| (*p, c))) {
            let key: Vec<u8> = (1..).take(cipher.key_material_len()).collect();
            if cipher.is_aead() {
                all.push(PacketCipher::by(provider, cipher, None, &key, &[]).unwrap());
                continue;
            }
            for integrity in Integrity::ALL {
                let mac: Vec<u8> = (101..).take(integrity.key_len()).collect();
                all.push(PacketCipher::by(provider, cipher, Some(integrity), &key, &mac).unwrap());
            }
        }
        all
    }

    type Row = (&'static [u8], &'static [u8], &'static [u8], &'static [u8]);

    /// RFC 3602 4: key, IV, plaintext, ciphertext. Case 4 is among the known answers of the self-test.
    #[test]
    fn rfc3602_4() {
        let rows: [Row; 7] = [
            // Case 1.
            (
                &hex!("06a9214036b8a15b512e03d534120006"),
                &hex!("3dafba429d9eb430b422da802c9fac41"),
                b"Single block msg",
                &hex!("e353779c1079aeb82708942dbe77181a"),
            ),
            // Case 2.
            (
                &hex!("c286696d887c9aa0611bbb3e2025a45a"),
                &hex!("562e17996d093d28ddb3ba695a2e6f58"),
                &hex!("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"),
                &hex!("d296cd94c2cccf8a3a863028b5e1dc0a7586602d253cfff91b8266bea6d61ab1"),
            ),
            // Case 3.
            (
                &hex!("6c3ea0477630ce21a2ce334aa746c2cd"),
                &hex!("c782dc4c098c66cbd9cd27d825682c81"),
                b"This is a 48-byte message (exactly 3 AES blocks)",
                &hex!(
                    "d0a02b3836451753d493665d33f0e8862dea54cdb293abc7506939276772f8d5"
                    "021c19216bad525c8579695d83ba2684"
                ),
            ),
            // Case 5.
            (
                &hex!("90d382b410eeba7ad938c46cec1a82bf"),
                &hex!("e96e8c08ab465763fd098d45dd3ff893"),
                &hex!(
                    "08000ebda70a00008e9c083db95b070008090a0b0c0d0e0f1011121314151617"
                    "18191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637"
                    "0102030405060708090a0b0c0d0e0e01"
                ),
                &hex!(
                    "f663c25d325c18c6a9453e194e120849a4870b66cc6b9965330013b4898dc856"
                    "a4699e523a55db080b59ec3a8e4b7e52775b07d1db34ed9c538ab50c551b874a"
                    "a269add047ad2d5913ac19b7cfbad4a6"
                ),
            ),
            // Case 6.
            (
                &hex!("90d382b410eeba7ad938c46cec1a82bf"),
                &hex!("69d08df7d203329db093fc4924e5bd80"),
                &hex!("0800b5e8a80a0500a69c083d0b660e0077777777777777777777777701020201"),
                &hex!("f51995881ec4e0c4488987ce742e8109689bb379d2d750c0d915dca346a89f75"),
            ),
            // Case 7.
            (
                &hex!("0123456789abcdef0123456789abcdef"),
                &hex!("f4e765244f6407adf13dc1380f673f37"),
                &hex!(
                    "45000054090400004001f988c0a87b03c0a87bc808009f76a90a0100b49c083d"
                    "02a2040008090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223"
                    "2425262728292a2b2c2d2e2f30313233343536370102030405060708090a0a04"
                ),
                &hex!(
                    "773b5241a4c449225e4f3ce5ed611b0c237ca96cf74a93013c1b0ea1a0cf70f8"
                    "e4ecaec78ac53aad7a0f022b859243c647752e94a859352b8a4d4d2decd136e5"
                    "c177f132ad3fbfb2201ac9904c74ee0a109e0ca1e4dfe9d5a100b842f1c22f0d"
                ),
            ),
            // Case 8.
            (
                &hex!("0123456789abcdef0123456789abcdef"),
                &hex!("85d47224b5f3dd5d2101d4ea8dffab22"),
                &hex!(
                    "45000044090c00004001f990c0a87b03c0a87bc80800d63caa0a0200c69c083d"
                    "a3de0300ffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
                    "ffffffff0102030405060708090a0a04"
                ),
                &hex!(
                    "15b92683819596a8047232cc00f7048fe45318e11f8a0f62ede3c3fc61203bb5"
                    "0f980a08c9843fd3a1b06d5c07ff9639b7eb7dfb3512e5de435e7207ed971ef3"
                    "d2726d9b5ef6affc6d17a0decbb13892"
                ),
            ),
        ];
        for (key, iv, plain, sealed) in rows {
            let aes = AesKey::new(KeyBits::B128, key).unwrap();
            let mut text = plain.to_vec();
            aes.encrypt(iv, &mut text).unwrap();
            assert_eq!(text, sealed);
            aes.decrypt(iv, &mut text).unwrap();
            assert_eq!(text, plain);
        }
    }

    /// The ICV of AES-CBC is the truncated HMAC over head, IV, ciphertext and tail, in this order.
    #[test]
    fn the_icv_covers_the_packet_in_its_order() {
        for cipher in suites().iter().filter(|c| !c.cipher().is_aead()) {
            let (alg, len) = match cipher.icv_len() {
                16 => (Prf::HmacSha256, 32),
                24 => (Prf::HmacSha384, 48),
                _ => (Prf::HmacSha512, 64),
            };
            let key: Vec<u8> = (101..).take(len).collect();
            let (iv, mut text, mut icv) = ([3; 16], [5; 32], vec![0; cipher.icv_len()]);
            cipher.seal(&iv, b"head", b"tail", &mut text, &mut icv).unwrap();
            let whole = [&b"head"[..], &iv, &text, b"tail"].concat();
            assert_eq!(icv, super::super::prf::prf(alg, &key, &[&whole])[..icv.len()]);
        }
    }

    const RFC7634_KEY: [u8; 36] =
        hex!("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3");

    /// RFC 7634 A: the ESP packet, from its SPI on.
    #[test]
    fn rfc7634_appendix_a() {
        let cipher = PacketCipher::new(Cipher::ChaCha20Poly1305, None, &RFC7634_KEY, &[]).unwrap();
        let plain = hex!(
            "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10"
            "0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223"
            "2425262728292a2b2c2d2e2f303132333435363701020204"
        );
        let packet = hex!(
            "0102030400000005101112131415161724039428b97f417e3c13753a4f05087b"
            "67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f7"
            "2aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da"
            "9165b82829f641e076aaa8266b7fb0f7b11b369907e1ad43"
        );
        let (head, iv, mut text, mut icv) = (&packet[..8], &packet[8..16], plain, [0; 16]);
        cipher.seal(iv, head, &[], &mut text, &mut icv).unwrap();
        assert_eq!([head, iv, &text, &icv].concat(), packet);
        cipher.open(iv, head, &[], &mut text, &packet[packet.len() - 16..]).unwrap();
        assert_eq!(text, plain);
    }

    /// RFC 7634 B: the IKE message, whose AAD is the IKE header and the SK payload's header.
    #[test]
    fn rfc7634_appendix_b() {
        let cipher = PacketCipher::new(Cipher::ChaCha20Poly1305, None, &RFC7634_KEY, &[]).unwrap();
        let plain = hex!("0000000c000040010000000a00");
        let message = hex!(
            "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e202500000000090000004529000029"
            "1011121314151617610394701f8d017f7c129248896b71bfe25236efd7cdc670"
            "66906315b2"
        );
        let (head, iv, mut text, mut icv) = (&message[..32], &message[32..40], plain, [0; 16]);
        cipher.seal(iv, head, &[], &mut text, &mut icv).unwrap();
        assert_eq!([head, iv, &text, &icv].concat(), message);
        cipher.open(iv, head, &[], &mut text, &message[message.len() - 16..]).unwrap();
        assert_eq!(text, plain);
    }

    #[test]
    fn a_cipher_that_has_rested_is_the_same() {
        for mut cipher in suites() {
            let (iv, plain) = (vec![3; cipher.iv_len()], [5; 32]);
            let sealed = |cipher: &PacketCipher| {
                let (mut text, mut icv) = (plain, vec![0; cipher.icv_len()]);
                cipher.seal(&iv, b"head", &[], &mut text, &mut icv).unwrap();
                (text, icv)
            };
            let (mut text, icv) = sealed(&cipher);
            cipher.rest();
            assert_eq!(sealed(&cipher), (text, icv.clone()));
            cipher.rest();
            cipher.open(&iv, b"head", &[], &mut text, &icv).unwrap();
            assert_eq!(text, plain);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for cipher in suites() {
            let tail: &[u8] = if cipher.cipher().is_aead() { &[] } else { &[1, 2, 3, 4] };
            let head = [8; 12];
            let iv: Vec<u8> = (0..).take(cipher.iv_len()).collect();
            let (plain, mut icv) = (vec![5u8; 48], vec![0; cipher.icv_len()]);
            let mut sealed = plain.clone();
            cipher.seal(&iv, &head, tail, &mut sealed, &mut icv).unwrap();
            assert_ne!(sealed, plain);
            let mut parts = [head.to_vec(), iv, sealed, tail.to_vec(), icv];
            let open = |parts: &[Vec<u8>; 5]| {
                let [head, iv, text, tail, icv] = parts;
                let mut text = text.clone();
                cipher.open(iv, head, tail, &mut text, icv).map(|()| text)
            };
            assert_eq!(open(&parts), Ok(plain));
            for part in 0..parts.len() {
                for bit in 0..parts[part].len() * 8 {
                    parts[part][bit / 8] ^= 1 << (bit % 8);
                    assert_eq!(
                        open(&parts),
                        Err(CryptoError::AuthenticationFailed),
                        "{cipher:?} {part} {bit}"
                    );
                    parts[part][bit / 8] ^= 1 << (bit % 8);
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_are_errors_and_change_nothing() {
        for cipher in suites() {
            let (iv_len, icv_len) = (cipher.iv_len(), cipher.icv_len());
            let check = |iv: usize, tail: &[u8], text: usize, icv: usize| {
                let (iv, mut text, mut icv) = (vec![0; iv], vec![7; text], vec![9; icv]);
                let sealed = cipher.seal(&iv, b"head", tail, &mut text, &mut icv);
                assert_eq!(sealed, Err(CryptoError::BadLength), "{cipher:?}");
                assert!(text.iter().all(|octet| *octet == 7) && icv.iter().all(|octet| *octet == 9));
                assert!(cipher.open(&iv, b"head", tail, &mut text, &icv).is_err());
            };
            for icv in [0, icv_len - 1, icv_len + 1] {
                check(iv_len, &[], 32, icv);
            }
            for iv in [0, iv_len - 1, iv_len + 1, 12] {
                check(iv, &[], 32, icv_len);
            }
            if cipher.cipher().is_aead() {
                check(iv_len, &[0], 32, icv_len);
            } else {
                check(iv_len, &[], 31, icv_len);
            }
        }
    }

    #[test]
    fn cipher_and_integrity_must_fit() {
        let new = |cipher, integrity, key: usize, mac: usize| {
            PacketCipher::new(cipher, integrity, &vec![0; key], &vec![0; mac]).err()
        };
        let (gcm, cbc) = (Cipher::AesGcm16(KeyBits::B128), Cipher::AesCbc(KeyBits::B256));
        let sha = Some(Integrity::HmacSha256);
        assert_eq!(new(gcm, None, 20, 0), None);
        assert_eq!(new(cbc, sha, 32, 32), None);
        assert_eq!(new(gcm, sha, 20, 32), Some(CryptoError::BadCombination));
        assert_eq!(new(cbc, None, 32, 0), Some(CryptoError::BadCombination));
        for (key, mac) in [(0, 0), (16, 0), (19, 0), (21, 0), (20, 1)] {
            assert_eq!(new(gcm, None, key, mac), Some(CryptoError::BadKeyLength));
        }
        for (key, mac) in [(0, 0), (16, 32), (32, 0), (32, 16), (32, 33), (36, 32)] {
            assert_eq!(new(cbc, sha, key, mac), Some(CryptoError::BadKeyLength));
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let cipher = PacketCipher::new(Cipher::ChaCha20Poly1305, None, &[0xab; 36], &[]).unwrap();
        assert_eq!(format!("{cipher:?}"), "PacketCipher(CHACHA20_POLY1305, ..)");
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens(blocks in 0usize..120, octet in any::<u8>(), iv in any::<[u8; 16]>(),
                                head in proptest::collection::vec(any::<u8>(), 0..64)) {
            for cipher in suites() {
                let plain = vec![octet; blocks * 16];
                let (mut text, mut icv) = (plain.clone(), vec![0; cipher.icv_len()]);
                let iv = &iv[..cipher.iv_len()];
                cipher.seal(iv, &head, &[], &mut text, &mut icv).unwrap();
                cipher.open(iv, &head, &[], &mut text, &icv).unwrap();
                prop_assert_eq!(text, plain);
            }
        }
    }
}
