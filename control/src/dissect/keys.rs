//! Keys that open a capture, in the forms of wireshark's preference files `ikev2_decryption_table` and `esp_sa`.
//!
//! ```text
//! SPIi,SPIr,SK_ei,SK_er,"ENCR",SK_ai,SK_ar,"INTEG"
//! "IPv4","SRC","DST","SPI","ENCR","KEY","INTEG","KEY"[,"32-bit"|"64-bit"]
//! ```
//!
//! Both kinds of lines may stand in one file. Keys are hexadecimal, those of AEADs with their salt at the end. The
//! addresses of an ESP line are not looked at: SAs move, and the integrity check tells which key is the right one.

use mobikex_common::alg::{Cipher, Integrity, KeyBits};
use mobikex_common::crypto::{PacketCipher, Secret};
use mobikex_common::spi::{IkeSpi, Spi};
use zeroize::Zeroizing;

/// Lines of a file that are taken; a capture has no use for more.
const MAX_LINES: usize = 100_000;

/// Both directions of an IKE SA.
#[derive(Clone, Debug)]
pub struct IkeKeys {
    /// SPI of the original initiator.
    pub initiator_spi: IkeSpi,
    /// SPI of the original responder.
    pub responder_spi: IkeSpi,
    /// Encryption.
    pub cipher: Cipher,
    /// Present exactly when `cipher` is no AEAD.
    pub integrity: Option<Integrity>,
    /// SK_ei and SK_er, with the salts of an AEAD.
    pub encryption: [Secret; 2],
    /// SK_ai and SK_ar; empty for an AEAD.
    pub authentication: [Secret; 2],
}

/// One direction of a Child SA.
#[derive(Clone, Debug)]
pub struct EspKeys {
    /// The SPI on its packets.
    pub spi: Spi,
    /// Encryption.
    pub cipher: Cipher,
    /// Present exactly when `cipher` is no AEAD.
    pub integrity: Option<Integrity>,
    /// The key, with the salt of an AEAD.
    pub encryption: Secret,
    /// The integrity key; empty for an AEAD.
    pub authentication: Secret,
    /// Extended Sequence Numbers; `None` when the line does not say, and both are tried.
    pub esn: Option<bool>,
}

/// All keys of a file.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Of IKE SAs.
    pub ike: Vec<IkeKeys>,
    /// Of Child SAs.
    pub esp: Vec<EspKeys>,
    /// Lines with algorithms that this build does not have, by number.
    pub skipped: Vec<usize>,
}

/// A line cannot be understood. It says nothing of what stands there: that may be a key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct KeysError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: &'static str,
}

impl Keys {
    /// Reads a file's text. Empty lines and those that begin with `#` are comments.
    ///
    /// # Errors
    /// At the first line that is neither kind of line, or has a key of the wrong length.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let mut keys = Self::default();
        for (index, line) in text.lines().enumerate() {
            let error = |reason| KeysError { line: index + 1, reason };
            if index == MAX_LINES {
                return Err(error("too many lines"));
            }
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fields: Vec<_> = line.split(',').map(|field| field.trim().trim_matches('"')).collect();
            let known = match fields[..] {
                ["IPv4" | "IPv6", _, _, spi, encr, key, integ, mac, ref more @ ..] => {
                    EspKeys::parse([spi, encr, key, integ, mac], more)
                        .map(|one| one.map(|k| keys.esp.push(k)))
                }
                [i, r, ei, er, encr, ai, ar, integ] => IkeKeys::parse([i, r, ei, er, encr, ai, ar, integ])
                    .map(|one| one.map(|k| keys.ike.push(k))),
                _ => Err("neither a line of ikev2_decryption_table nor of esp_sa"),
            };
            if known.map_err(error)?.is_none() {
                keys.skipped.push(index + 1);
            }
        }
        Ok(keys)
    }

    pub(super) fn ike(&self, initiator: IkeSpi, responder: IkeSpi) -> Option<&IkeKeys> {
        self.ike.iter().find(|k| (k.initiator_spi, k.responder_spi) == (initiator, responder))
    }
}

impl IkeKeys {
    fn parse(fields: [&str; 8]) -> Result<Option<Self>, &'static str> {
        let [i, r, ei, er, encr, ai, ar, integ] = fields;
        let spi = |text| u64::from_str_radix(text, 16).map(IkeSpi).map_err(|_| "an SPI is not hexadecimal");
        let encryption = [secret(ei)?, secret(er)?];
        let authentication = [secret(ai)?, secret(ar)?];
        let Some((cipher, integrity)) = suite(encr, &encryption[0], integ) else { return Ok(None) };
        let keys = Self {
            initiator_spi: spi(i)?,
            responder_spi: spi(r)?,
            cipher,
            integrity,
            encryption,
            authentication,
        };
        keys.cipher(true)?;
        keys.cipher(false)?;
        Ok(Some(keys))
    }

    /// What opens messages of the original initiator, or of the responder.
    pub(super) fn cipher(&self, from_initiator: bool) -> Result<PacketCipher, &'static str> {
        let at = usize::from(!from_initiator);
        PacketCipher::new(self.cipher, self.integrity, &self.encryption[at], &self.authentication[at])
            .map_err(|_| "a key has not the length that the algorithm needs")
    }

    /// The line for these keys, with its line feed. ChaCha20-Poly1305 has no name in wireshark's table of IKEv2, which
    /// a line with it keeps from being read there.
    pub fn line(&self) -> Zeroizing<String> {
        let encr = match self.cipher {
            Cipher::AesGcm16(bits) => format!("AES-GCM-{} with 16 octet ICV [RFC5282]", bits.bits()),
            Cipher::ChaCha20Poly1305 => "ChaCha20-Poly1305 [RFC7634]".into(),
            Cipher::AesCbc(bits) => format!("AES-CBC-{} [RFC3602]", bits.bits()),
        };
        let integ = match self.integrity {
            None => "NONE [RFC4306]",
            Some(Integrity::HmacSha256) => "HMAC_SHA2_256_128 [RFC4868]",
            Some(Integrity::HmacSha384) => "HMAC_SHA2_384_192 [RFC4868]",
            Some(Integrity::HmacSha512) => "HMAC_SHA2_512_256 [RFC4868]",
        };
        let [ei, er] = [0, 1].map(|at| hex(&self.encryption[at]));
        let [ai, ar] = [0, 1].map(|at| hex(&self.authentication[at]));
        let (i, r) = (self.initiator_spi, self.responder_spi);
        Zeroizing::new(format!("{i},{r},{},{},\"{encr}\",{},{},\"{integ}\"\n", *ei, *er, *ai, *ar))
    }
}

impl EspKeys {
    fn parse(fields: [&str; 5], more: &[&str]) -> Result<Option<Self>, &'static str> {
        let [spi, encr, key, integ, mac] = fields;
        let spi = spi.strip_prefix("0x").ok_or("an SPI without 0x")?;
        let spi = Spi(u32::from_str_radix(spi, 16).map_err(|_| "an SPI is not hexadecimal")?);
        let (encryption, authentication) = (secret(key)?, secret(mac)?);
        let esn = match more.first() {
            None => None,
            Some(&"32-bit") => Some(false),
            Some(&"64-bit") => Some(true),
            Some(_) => return Err("the length of sequence numbers is neither 32-bit nor 64-bit"),
        };
        let Some((cipher, integrity)) = suite(encr, &encryption, integ) else { return Ok(None) };
        let keys = Self { spi, cipher, integrity, encryption, authentication, esn };
        keys.cipher()?;
        Ok(Some(keys))
    }

    /// What opens the packets.
    pub(super) fn cipher(&self) -> Result<PacketCipher, &'static str> {
        PacketCipher::new(self.cipher, self.integrity, &self.encryption, &self.authentication)
            .map_err(|_| "a key has not the length that the algorithm needs")
    }

    /// The lines for this key, one for each family and both for any address, because SAs move. Wireshark 4.0 does not
    /// know ChaCha20-Poly1305 yet and takes no table with it.
    pub fn lines(&self) -> Zeroizing<String> {
        let encr = match self.cipher {
            Cipher::AesGcm16(_) => "AES-GCM with 16 octet ICV [RFC4106]",
            Cipher::ChaCha20Poly1305 => "ChaCha20 with Poly1305 [RFC7634]",
            Cipher::AesCbc(_) => "AES-CBC [RFC3602]",
        };
        let integ = match self.integrity {
            None => "NULL",
            Some(Integrity::HmacSha256) => "HMAC-SHA-256-128 [RFC4868]",
            Some(Integrity::HmacSha384) => "HMAC-SHA-384-192 [RFC4868]",
            Some(Integrity::HmacSha512) => "HMAC-SHA-512-256 [RFC4868]",
        };
        let (key, mac) = (hex(&self.encryption), hex(&self.authentication));
        let (spi, mac_prefix) = (self.spi, if mac.is_empty() { "" } else { "0x" });
        // Wireshark 4.0 warns of the ninth field, so it is there only where it matters.
        let esn = if self.esn == Some(true) { ",\"64-bit\"" } else { "" };
        let mut lines = Zeroizing::new(String::with_capacity(2 * (key.len() + mac.len() + 160)));
        for family in ["IPv4", "IPv6"] {
            for part in [
                &format!("\"{family}\",\"*\",\"*\",\"0x{spi}\",\"{encr}\",\"0x"),
                &*key,
                &format!("\",\"{integ}\",\"{mac_prefix}"),
                &*mac,
                &format!("\"{esn}\n"),
            ] {
                lines.push_str(part);
            }
        }
        lines
    }
}

/// The algorithms by their names in either table; the length of the key tells that of AES. `None` for what this build
/// does not have.
fn suite(encr: &str, key: &[u8], integ: &str) -> Option<(Cipher, Option<Integrity>)> {
    // The IKE table writes HMAC_SHA2_256_128 for what the ESP table calls HMAC-SHA-256-128.
    let (encr, integ) = (encr.to_ascii_uppercase(), integ.replace('_', "-"));
    let bits = |len| match len {
        16 => Some(KeyBits::B128),
        32 => Some(KeyBits::B256),
        _ => None,
    };
    let cipher = if encr.starts_with("CHACHA20") {
        Cipher::ChaCha20Poly1305
    } else if encr.starts_with("AES-GCM") && !encr.contains(" 8 OCTET") && !encr.contains(" 12 OCTET") {
        Cipher::AesGcm16(bits(key.len().checked_sub(4)?)?)
    } else if encr.starts_with("AES-CBC") {
        Cipher::AesCbc(bits(key.len())?)
    } else {
        return None;
    };
    if cipher.is_aead() {
        return Some((cipher, None));
    }
    let integrity = [
        ("256-128", Integrity::HmacSha256),
        ("384-192", Integrity::HmacSha384),
        ("512-256", Integrity::HmacSha512),
    ];
    let integrity = integrity.into_iter().find(|(name, _)| integ.contains(name))?.1;
    Some((cipher, Some(integrity)))
}

fn secret(text: &str) -> Result<Secret, &'static str> {
    let text = text.strip_prefix("0x").unwrap_or(text).as_bytes();
    let digit = |c: u8| char::from(c).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_chunks::<2>();
    let octets: Option<Vec<u8>> = pairs.iter().map(|&[a, b]| Some(digit(a)? << 4 | digit(b)?)).collect();
    match octets {
        Some(octets) if rest.is_empty() => Ok(octets.into()),
        _ => Err("a key is not hexadecimal"),
    }
}

fn hex(octets: &[u8]) -> Zeroizing<String> {
    // Room for all at once, so that no copy of a key stays behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * octets.len()));
    for octet in octets {
        for digit in [octet >> 4, octet & 15] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('?'));
        }
    }
    text
}
