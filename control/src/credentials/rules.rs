//! Which keys and hashes a side may prove itself with: `auth = rsa-3072-sha256-sha384`, as swanctl.conf has it.

use std::fmt;

use mobikex_common::crypto::signature::{Hash, KeyKind, Scheme};
use serde::{Serialize, Serializer};

/// One kind of key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyRule {
    /// `rsa`, `ecdsa`, `ed25519`; `None` for any (`pubkey`).
    pub kind: Option<&'static str>,
    /// Only RSASSA-PSS.
    pub pss: bool,
    /// The fewest bits.
    pub min_bits: u32,
    /// Hashes in order of preference; empty for any.
    pub hashes: Vec<Hash>,
}

impl KeyRule {
    fn takes_key(&self, key: KeyKind) -> bool {
        let kind = match key {
            KeyKind::Rsa(_) => "rsa",
            KeyKind::Ecdsa(_) => "ecdsa",
            KeyKind::Ed25519 => "ed25519",
        };
        self.kind.is_none_or(|wanted| wanted == kind) && key.bits() >= self.min_bits
    }

    fn takes_scheme(&self, scheme: Scheme, key: KeyKind) -> bool {
        let hash = match (scheme, key) {
            (Scheme::EcdsaFixed, KeyKind::Ecdsa(curve)) => Some(curve.hash()),
            _ => scheme.hash(),
        };
        let pkcs1 = matches!(scheme, Scheme::RsaPkcs1(_));
        // Ed25519 leaves no choice, so a list of hashes says nothing about it.
        let hash_fits = scheme == Scheme::Ed25519
            || self.hashes.is_empty()
            || hash.is_some_and(|hash| self.hashes.contains(&hash));
        hash_fits && !(self.pss && pkcs1)
    }
}

/// What `auth` says where it is not a pre-shared key: any of these.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PubkeyRules {
    /// At least one.
    pub rules: Vec<KeyRule>,
    /// They are about AUTH alone (`ike:`), and not about the signatures of certificates too.
    pub ike_only: bool,
}

impl Default for PubkeyRules {
    fn default() -> Self {
        Self { rules: vec![KeyRule::default()], ike_only: false }
    }
}

impl PubkeyRules {
    /// Reads `pubkey`, `rsa`, `rsa/pss`, `ecdsa`, `ed25519`, each followed by bits and hashes, several joined by `-`, with
    /// `ike:` before them where they are about AUTH alone.
    ///
    /// # Errors
    /// When a word is none of these.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (ike_only, words) = match text.strip_prefix("ike:") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let mut rules: Vec<KeyRule> = Vec::new();
        for word in words.split('-') {
            let key = |kind, pss| KeyRule { kind, pss, ..KeyRule::default() };
            match word {
                "pubkey" => rules.push(key(None, false)),
                "rsa" => rules.push(key(Some("rsa"), false)),
                "rsa/pss" => rules.push(key(Some("rsa"), true)),
                "ecdsa" => rules.push(key(Some("ecdsa"), false)),
                "ed25519" => rules.push(key(Some("ed25519"), false)),
                _ => {
                    let rule = rules.last_mut().ok_or_else(|| format!("'{word}' names no kind of key"))?;
                    let hash = [Hash::Sha256, Hash::Sha384, Hash::Sha512, Hash::Identity]
                        .into_iter()
                        .find(|hash| hash.name() == word);
                    match (hash, word.parse()) {
                        (Some(hash), _) => rule.hashes.push(hash),
                        (None, Ok(bits)) if rule.kind.is_some() => rule.min_bits = bits,
                        _ if word == "sha1" => return Err("SHA-1 is not taken any more".to_string()),
                        _ => return Err(format!("'{word}' is neither a hash nor a length of the key")),
                    }
                }
            }
        }
        Ok(Self { rules, ike_only })
    }

    /// Whether a key may be used.
    pub fn takes_key(&self, key: KeyKind) -> bool {
        self.rules.iter().any(|rule| rule.takes_key(key))
    }

    /// Whether a key may be used in this way.
    pub fn takes(&self, key: KeyKind, scheme: Scheme) -> bool {
        self.rules.iter().any(|rule| rule.takes_key(key) && rule.takes_scheme(scheme, key))
    }

    /// Whether our own RSA signatures are to be RSASSA-PSS.
    pub fn wants_pss(&self, key: KeyKind) -> bool {
        self.rules.iter().find(|rule| rule.takes_key(key)).is_some_and(|rule| rule.pss)
    }

    /// Whether signatures of certificates may use this hash.
    pub fn takes_in_chain(&self, hash: Hash) -> bool {
        // Ed25519 leaves no choice, see above.
        self.ike_only
            || hash == Hash::Identity
            || self.rules.iter().any(|rule| rule.hashes.is_empty() || rule.hashes.contains(&hash))
    }

    /// Hashes for our signature with a key, the preferred one first.
    pub fn hashes(&self, key: KeyKind) -> Vec<Hash> {
        let listed = self.rules.iter().find(|rule| rule.takes_key(key)).map_or(&[][..], |rule| &rule.hashes);
        if listed.is_empty() { vec![Hash::Sha256, Hash::Sha384, Hash::Sha512] } else { listed.to_vec() }
    }
}

impl fmt::Display for PubkeyRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        for rule in &self.rules {
            let kind = rule.kind.unwrap_or("pubkey");
            words.push(if rule.pss { format!("{kind}/pss") } else { kind.to_string() });
            words.extend((rule.min_bits > 0).then(|| rule.min_bits.to_string()));
            words.extend(rule.hashes.iter().map(|hash| hash.name().to_string()));
        }
        write!(f, "{}{}", if self.ike_only { "ike:" } else { "" }, words.join("-"))
    }
}

impl Serialize for PubkeyRules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobikex_common::crypto::signature::Curve;

    #[test]
    fn the_forms_of_swanctl_conf() {
        let takes = |text: &str, key, scheme| PubkeyRules::parse(text).unwrap().takes(key, scheme);
        let (rsa, p256) = (KeyKind::Rsa(2048), KeyKind::Ecdsa(Curve::P256));
        assert!(takes("pubkey", rsa, Scheme::RsaPkcs1(Hash::Sha1)));
        assert!(takes("rsa", rsa, Scheme::RsaPss(Hash::Sha512)) && !takes("rsa", p256, Scheme::EcdsaFixed));
        assert!(!takes("rsa-3072", rsa, Scheme::RsaPkcs1(Hash::Sha256)));
        assert!(!takes("rsa/pss-sha512", rsa, Scheme::RsaPkcs1(Hash::Sha512)));
        assert!(takes("rsa/pss-sha512", rsa, Scheme::RsaPss(Hash::Sha512)));
        assert!(!takes("rsa/pss-sha512", rsa, Scheme::RsaPss(Hash::Sha256)));
        assert!(takes("rsa-2048-sha256-ecdsa-256-sha256", p256, Scheme::EcdsaFixed));
        assert!(!takes("pubkey-sha384", p256, Scheme::EcdsaFixed));
        assert!(takes("pubkey-sha384", KeyKind::Ed25519, Scheme::Ed25519));
        for bad in ["psk", "sha256", "rsa-", "rsa-md5", "rsa-sha1", "eap", "pubkey-2048", ""] {
            assert!(PubkeyRules::parse(bad).is_err(), "{bad}");
        }
        let shown = "ike:rsa/pss-3072-sha384-ecdsa-sha256";
        assert_eq!(PubkeyRules::parse(shown).unwrap().to_string(), shown);
        assert!(PubkeyRules::parse("ike:rsa-sha512").unwrap().takes_in_chain(Hash::Sha256));
        assert!(!PubkeyRules::parse("rsa-sha512").unwrap().takes_in_chain(Hash::Sha256));
    }
}
