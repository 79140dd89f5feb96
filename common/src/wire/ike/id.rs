//! Identities (RFC 7296 3.5) and how an operator writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::IdType;

/// Longest identity that we take, in octets.
const MAX_LEN: usize = 2048;

/// The content of an IDi or IDr payload.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Identification {
    /// ID Type.
    pub kind: IdType,
    /// Identification Data.
    pub data: Vec<u8>,
}

impl Identification {
    /// An address as an identity.
    pub fn from_ip(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(a) => Self { kind: IdType::IPV4_ADDR, data: a.octets().to_vec() },
            IpAddr::V6(a) => Self { kind: IdType::IPV6_ADDR, data: a.octets().to_vec() },
        }
    }

    /// Whether the data has a length that its type can have.
    pub fn is_well_formed(&self) -> bool {
        match self.kind {
            IdType::IPV4_ADDR => self.data.len() == 4,
            IdType::IPV6_ADDR => self.data.len() == 16,
            _ => (1..=MAX_LEN).contains(&self.data.len()),
        }
    }
}

impl FromStr for Identification {
    type Err = String;

    /// An address, `user@host`, `@host` or `host` (FQDN), `keyid:0x...` or `@#...` (key ID).
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Self::from_ip(addr));
        }
        if let Some(hex) = text.strip_prefix("keyid:0x").or_else(|| text.strip_prefix("@#")) {
            let octet = |i: usize| hex.get(i..i + 2).and_then(|h| u8::from_str_radix(h, 16).ok());
            let data: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(octet).collect();
            return match data {
                Some(data) if !data.is_empty() => Ok(Self { kind: IdType::KEY_ID, data }),
                _ => Err(format!("'{text}' is not a key ID of hex octets")),
            };
        }
        let (kind, name) = match text.strip_prefix('@') {
            Some(name) => (IdType::FQDN, name),
            None if text.contains('@') => (IdType::RFC822_ADDR, text),
            None => (IdType::FQDN, text.strip_prefix("fqdn:").unwrap_or(text)),
        };
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == '=' || c == '*';
        if name.is_empty() || name.len() > MAX_LEN || name.contains(odd) {
            return Err(format!("'{text}' is not an identity (an address, a host name or user@host)"));
        }
        Ok(Self { kind, data: name.as_bytes().to_vec() })
    }
}

impl fmt::Display for Identification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::str::from_utf8(&self.data).ok().filter(|t| !t.chars().any(char::is_control));
        match (self.kind, text) {
            (IdType::IPV4_ADDR, _) if self.data.len() == 4 => {
                let octets: [u8; 4] = std::array::from_fn(|i| self.data[i]);
                write!(f, "{}", Ipv4Addr::from(octets))
            }
            (IdType::IPV6_ADDR, _) if self.data.len() == 16 => {
                let octets: [u8; 16] = std::array::from_fn(|i| self.data[i]);
                write!(f, "{}", Ipv6Addr::from(octets))
            }
            (IdType::FQDN | IdType::RFC822_ADDR, Some(text)) => f.write_str(text),
            _ => {
                write!(f, "{}:0x", self.kind)?;
                self.data.iter().take(64).try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
    }
}
