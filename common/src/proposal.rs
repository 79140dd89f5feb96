//! Proposals as an operator writes them: `aes256gcm16-prfsha384-x25519`, `aes128-sha256-modp2048-esn`.

use std::fmt;
use std::str::FromStr;

use crate::alg::{Cipher, Integrity, KeyBits, KeyExchange, Prf};

/// What is acceptable for an IKE SA; within a list, earlier is preferred.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IkeProposal {
    /// Ciphers: all AEADs or all not (RFC 7296 3.3 forbids one proposal to mix them).
    pub ciphers: Vec<Cipher>,
    /// Empty exactly when the ciphers are AEADs.
    pub integrity: Vec<Integrity>,
    /// At least one.
    pub prfs: Vec<Prf>,
    /// At least one.
    pub kes: Vec<KeyExchange>,
}

/// What is acceptable for a Child SA; within a list, earlier is preferred.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EspProposal {
    /// Ciphers: all AEADs or all not.
    pub ciphers: Vec<Cipher>,
    /// Empty exactly when the ciphers are AEADs.
    pub integrity: Vec<Integrity>,
    /// Empty = no key exchange of its own in CREATE_CHILD_SA.
    pub kes: Vec<KeyExchange>,
    /// Acceptable values of the ESN transform, at least one.
    pub esn: Vec<bool>,
}

#[derive(Default)]
struct Words {
    ciphers: Vec<Cipher>,
    integrity: Vec<Integrity>,
    prfs: Vec<Prf>,
    kes: Vec<KeyExchange>,
    esn: Vec<bool>,
}

fn parse_words(text: &str) -> Result<Words, String> {
    let mut w = Words::default();
    for word in text.split('-') {
        match word {
            "aes256gcm16" | "aes256gcm128" | "aes256gcm" => w.ciphers.push(Cipher::AesGcm16(KeyBits::B256)),
            "aes128gcm16" | "aes128gcm128" | "aes128gcm" | "aesgcm16" => {
                w.ciphers.push(Cipher::AesGcm16(KeyBits::B128));
            }
            "chacha20poly1305" | "chacha20poly1305compat" => w.ciphers.push(Cipher::ChaCha20Poly1305),
            "aes256" => w.ciphers.push(Cipher::AesCbc(KeyBits::B256)),
            "aes128" | "aes" => w.ciphers.push(Cipher::AesCbc(KeyBits::B128)),
            "sha256" | "sha2_256" => w.integrity.push(Integrity::HmacSha256),
            "sha384" | "sha2_384" => w.integrity.push(Integrity::HmacSha384),
            "sha512" | "sha2_512" => w.integrity.push(Integrity::HmacSha512),
            "prfsha256" => w.prfs.push(Prf::HmacSha256),
            "prfsha384" => w.prfs.push(Prf::HmacSha384),
            "prfsha512" => w.prfs.push(Prf::HmacSha512),
            "x25519" | "curve25519" => w.kes.push(KeyExchange::X25519),
            "ecp256" => w.kes.push(KeyExchange::Ecp256),
            "ecp384" => w.kes.push(KeyExchange::Ecp384),
            "ecp521" => w.kes.push(KeyExchange::Ecp521),
            "modp2048" => w.kes.push(KeyExchange::Modp2048),
            "modp3072" => w.kes.push(KeyExchange::Modp3072),
            "modp4096" => w.kes.push(KeyExchange::Modp4096),
            "esn" => w.esn.push(true),
            "noesn" => w.esn.push(false),
            other => return Err(format!("'{other}' is not an algorithm that is available here")),
        }
    }
    let aead = w.ciphers.first().ok_or_else(|| format!("'{text}' names no encryption algorithm"))?.is_aead();
    if w.ciphers.iter().any(|c| c.is_aead() != aead) {
        return Err(format!("'{text}' mixes AEAD and other encryption; write two proposals"));
    }
    Ok(w)
}

impl FromStr for IkeProposal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut w = parse_words(text)?;
        if !w.esn.is_empty() {
            return Err(format!("'{text}' has esn/noesn, which belongs in esp_proposals"));
        }
        if w.ciphers[0].is_aead() {
            if w.prfs.is_empty() {
                // swanctl reads "aes128gcm16-sha256-x25519" as naming the PRF.
                w.prfs = w.integrity.iter().copied().map(prf_of).collect();
            }
            w.integrity.clear();
        } else if w.integrity.is_empty() {
            return Err(format!("'{text}' needs an integrity algorithm such as sha256"));
        } else if w.prfs.is_empty() {
            w.prfs = w.integrity.iter().copied().map(prf_of).collect();
        }
        if w.prfs.is_empty() {
            return Err(format!("'{text}' needs a PRF such as prfsha256"));
        }
        if w.kes.is_empty() {
            return Err(format!("'{text}' needs a key exchange such as x25519"));
        }
        Ok(Self { ciphers: w.ciphers, integrity: w.integrity, prfs: w.prfs, kes: w.kes })
    }
}

impl FromStr for EspProposal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut w = parse_words(text)?;
        if !w.prfs.is_empty() {
            return Err(format!("'{text}' has a PRF, which belongs in proposals"));
        }
        if w.ciphers[0].is_aead() {
            w.integrity.clear();
        } else if w.integrity.is_empty() {
            return Err(format!("'{text}' needs an integrity algorithm such as sha256"));
        }
        if w.esn.is_empty() {
            w.esn.push(false);
        }
        Ok(Self { ciphers: w.ciphers, integrity: w.integrity, kes: w.kes, esn: w.esn })
    }
}

fn prf_of(integrity: Integrity) -> Prf {
    match integrity {
        Integrity::HmacSha256 => Prf::HmacSha256,
        Integrity::HmacSha384 => Prf::HmacSha384,
        Integrity::HmacSha512 => Prf::HmacSha512,
    }
}

impl IkeProposal {
    /// What is offered when the configuration names nothing: AEADs first, then AES-CBC (RFC 8247).
    pub fn defaults() -> Vec<Self> {
        let prfs = vec![Prf::HmacSha384, Prf::HmacSha256, Prf::HmacSha512];
        let kes = KeyExchange::ALL.to_vec();
        vec![
            Self {
                ciphers: Cipher::ALL[..3].to_vec(),
                integrity: vec![],
                prfs: prfs.clone(),
                kes: kes.clone(),
            },
            Self { ciphers: Cipher::ALL[3..].to_vec(), integrity: Integrity::ALL.to_vec(), prfs, kes },
        ]
    }
}

impl EspProposal {
    /// What is offered when the configuration names nothing (RFC 8221), ESN preferred.
    pub fn defaults() -> Vec<Self> {
        let esn = vec![true, false];
        vec![
            Self { ciphers: Cipher::ALL[..3].to_vec(), integrity: vec![], kes: vec![], esn: esn.clone() },
            Self { ciphers: Cipher::ALL[3..].to_vec(), integrity: Integrity::ALL.to_vec(), kes: vec![], esn },
        ]
    }
}

fn join<T: fmt::Display>(f: &mut fmt::Formatter<'_>, prefix: &mut &str, items: &[T]) -> fmt::Result {
    for item in items {
        write!(f, "{prefix}{item}")?;
        *prefix = "/";
    }
    Ok(())
}

impl fmt::Display for IkeProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sep = "IKE:";
        join(f, &mut sep, &self.ciphers)?;
        join(f, &mut sep, &self.integrity)?;
        join(f, &mut sep, &self.prfs)?;
        join(f, &mut sep, &self.kes)
    }
}

impl fmt::Display for EspProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sep = "ESP:";
        join(f, &mut sep, &self.ciphers)?;
        join(f, &mut sep, &self.integrity)?;
        join(f, &mut sep, &self.kes)?;
        let esn: Vec<_> = self.esn.iter().map(|e| if *e { "EXT_SEQ" } else { "NO_EXT_SEQ" }).collect();
        join(f, &mut sep, &esn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_words_become_lists() {
        let p: IkeProposal = "aes256gcm16-prfsha384-x25519-modp2048".parse().unwrap();
        assert_eq!(p.to_string(), "IKE:AES_GCM_16_256/PRF_HMAC_SHA2_384/CURVE_25519/MODP_2048");
        let p: IkeProposal = "aes128-sha256-modp2048".parse().unwrap();
        assert_eq!(p.to_string(), "IKE:AES_CBC_128/HMAC_SHA2_256_128/PRF_HMAC_SHA2_256/MODP_2048");
        let p: EspProposal = "aes256gcm16-esn".parse().unwrap();
        assert_eq!(p.to_string(), "ESP:AES_GCM_16_256/EXT_SEQ");
        let p: EspProposal = "aes128-sha256".parse().unwrap();
        assert_eq!(p.esn, [false]);
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for (text, reason) in [
            ("aes256gcm16-x25519", "PRF"),
            ("aes256-x25519", "integrity"),
            ("aes256gcm16-prfsha384", "key exchange"),
            ("aes256gcm16-aes128-sha256-x25519", "mixes"),
            ("des-md5-modp768", "'des'"),
            ("", "''"),
        ] {
            let error = text.parse::<IkeProposal>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!("aes128".parse::<EspProposal>().is_err());
    }
}
