//! The Configuration payload (RFC 7296 3.15): addresses, servers and networks behind a gateway.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{ConfigAttributeType, ConfigType};
use crate::wire::WireError;
use crate::wire::reader::Reader;

/// Attributes in one payload. An address, its servers and the networks behind a gateway are far fewer.
const MAX_ATTRIBUTES: usize = 256;

/// One attribute of a Configuration payload (RFC 7296 3.15.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigAttribute {
    /// Attribute Type.
    pub kind: ConfigAttributeType,
    /// Value, may be empty.
    pub value: Vec<u8>,
}

/// What an attribute of a known type says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ConfigValue {
    /// No value: it is asked for, or was taken over (CFG_ACK).
    Empty,
    /// An address, or a netmask.
    Address(IpAddr),
    /// An address with the length of its prefix.
    Prefix(IpAddr, u8),
    /// Octets that are meant to be text; nothing is known about them.
    Text(Vec<u8>),
    /// Attribute types.
    Types(Vec<ConfigAttributeType>),
}

impl ConfigAttribute {
    /// An attribute without a value.
    pub fn empty(kind: ConfigAttributeType) -> Self {
        Self { kind, value: Vec::new() }
    }

    /// An attribute that is an address and nothing else.
    pub fn address(kind: ConfigAttributeType, addr: IpAddr) -> Self {
        let value = match addr {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        Self { kind, value }
    }

    /// An attribute that is a prefix: of IPv4 an address and a mask, of IPv6 an address and a length.
    pub fn prefix(kind: ConfigAttributeType, addr: IpAddr, len: u8) -> Self {
        let mut attribute = Self::address(kind, addr);
        match addr {
            IpAddr::V4(_) => {
                let host = u32::MAX.checked_shr(u32::from(len)).unwrap_or(0);
                attribute.value.extend_from_slice(&(!host).to_be_bytes());
            }
            IpAddr::V6(_) => attribute.value.push(len.min(128)),
        }
        attribute
    }

    /// What it says; `None` for a type that is not known here, which is to be ignored.
    ///
    /// # Errors
    /// When the length does not fit the type, a mask has gaps, or a prefix is longer than an address.
    pub fn read(&self) -> Result<Option<ConfigValue>, WireError> {
        use ConfigAttributeType as Type;
        let wrong = || WireError::BadLength { what: "a configuration attribute", length: self.value.len() };
        if self.value.is_empty() {
            return Ok(Some(ConfigValue::Empty));
        }
        let value = match self.kind {
            Type::INTERNAL_IP4_ADDRESS
            | Type::INTERNAL_IP4_NETMASK
            | Type::INTERNAL_IP4_DNS
            | Type::INTERNAL_IP4_NBNS
            | Type::INTERNAL_IP4_DHCP
            | Type::P_CSCF_IP4_ADDRESS => ConfigValue::Address(v4(&self.value).ok_or_else(wrong)?.into()),
            Type::INTERNAL_IP6_DNS | Type::INTERNAL_IP6_DHCP | Type::P_CSCF_IP6_ADDRESS => {
                ConfigValue::Address(v6(&self.value).ok_or_else(wrong)?.into())
            }
            Type::INTERNAL_IP4_SUBNET => {
                let (addr, mask) = self.value.split_at_checked(4).ok_or_else(wrong)?;
                let (addr, mask) = (v4(addr).ok_or_else(wrong)?, v4(mask).ok_or_else(wrong)?);
                ConfigValue::Prefix(addr.into(), length_of(mask)?)
            }
            Type::INTERNAL_IP6_ADDRESS | Type::INTERNAL_IP6_SUBNET => {
                let (addr, rest) = self.value.split_at_checked(16).ok_or_else(wrong)?;
                let &[len] = rest else { return Err(wrong()) };
                if len > 128 {
                    return Err(WireError::BadValue { what: "a prefix length", value: u64::from(len) });
                }
                ConfigValue::Prefix(v6(addr).ok_or_else(wrong)?.into(), len)
            }
            Type::APPLICATION_VERSION | Type::INTERNAL_DNS_DOMAIN => ConfigValue::Text(self.value.clone()),
            Type::SUPPORTED_ATTRIBUTES => {
                if !self.value.len().is_multiple_of(2) {
                    return Err(wrong());
                }
                let kinds = self.value.chunks_exact(2);
                let kinds = kinds.map(|k| Type(u16::from_be_bytes([k[0], k[1]]) & 0x7fff));
                ConfigValue::Types(kinds.collect())
            }
            _ => return Ok(None),
        };
        Ok(Some(value))
    }
}

fn v4(octets: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)
}

fn v6(octets: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(octets).ok().map(Ipv6Addr::from)
}

fn length_of(mask: Ipv4Addr) -> Result<u8, WireError> {
    let mask = u32::from(mask);
    if mask.leading_ones() + mask.trailing_zeros() == 32 || mask == 0 {
        Ok(mask.leading_ones() as u8)
    } else {
        Err(WireError::BadValue { what: "a netmask", value: u64::from(mask) })
    }
}

impl fmt::Display for ConfigValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => Ok(()),
            Self::Address(addr) => write!(f, "{addr}"),
            Self::Prefix(addr, len) => write!(f, "{addr}/{len}"),
            Self::Text(text) => write!(f, "{}", text.escape_ascii()),
            Self::Types(kinds) => {
                let names: Vec<_> = kinds.iter().map(ToString::to_string).collect();
                f.write_str(&names.join(" "))
            }
        }
    }
}

/// Configuration payload (RFC 7296 3.15).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigPayload {
    /// CFG Type.
    pub kind: ConfigType,
    /// Attributes.
    pub attributes: Vec<ConfigAttribute>,
}

impl ConfigPayload {
    /// `CPRQ(ADDR DNS)`, as logs of IPsec daemons have it.
    pub(super) fn summary(&self) -> String {
        let kind = match self.kind {
            ConfigType::CFG_REQUEST => "CPRQ".to_string(),
            ConfigType::CFG_REPLY => "CPRP".to_string(),
            ConfigType::CFG_SET => "CPS".to_string(),
            ConfigType::CFG_ACK => "CPA".to_string(),
            other => format!("CP{other}"),
        };
        let names: Vec<_> = self.attributes.iter().map(|a| a.kind.short_name()).collect();
        if names.is_empty() { kind } else { format!("{kind}({})", names.join(" ")) }
    }

    /// What the attributes say of which something is known here. One that is wrong is passed over like one that is not
    /// known, since nothing depends on it but itself.
    pub fn values(&self) -> impl Iterator<Item = (ConfigAttributeType, ConfigValue)> + '_ {
        self.attributes.iter().filter_map(|a| Some((a.kind, a.read().ok()??)))
    }

    pub(super) fn parse(mut r: Reader<'_>) -> Result<Self, WireError> {
        let kind = ConfigType(r.u8()?);
        r.take(3)?;
        let mut attributes = Vec::new();
        while !r.is_empty() {
            // The top bit is reserved (RFC 7296 3.15.1).
            let kind = ConfigAttributeType(r.u16()? & 0x7fff);
            let length = usize::from(r.u16()?);
            if attributes.len() == MAX_ATTRIBUTES {
                return Err(WireError::TooMany { what: "configuration attributes", limit: MAX_ATTRIBUTES });
            }
            attributes.push(ConfigAttribute { kind, value: r.take(length)?.to_vec() });
        }
        Ok(Self { kind, attributes })
    }

    pub(super) fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.kind.0, 0, 0, 0]);
        for a in &self.attributes {
            out.extend_from_slice(&a.kind.0.to_be_bytes());
            out.extend_from_slice(&(a.value.len() as u16).to_be_bytes());
            out.extend_from_slice(&a.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use ConfigAttributeType as Type;

    fn attribute(kind: Type, value: &[u8]) -> ConfigAttribute {
        ConfigAttribute { kind, value: value.to_vec() }
    }

    #[test]
    fn values_have_the_forms_of_the_table() {
        let v4: IpAddr = "10.3.0.1".parse().unwrap();
        let v6: IpAddr = "fd00::1".parse().unwrap();
        for (made, octets, shown) in [
            (ConfigAttribute::address(Type::INTERNAL_IP4_ADDRESS, v4), &[10, 3, 0, 1][..], "10.3.0.1"),
            (ConfigAttribute::address(Type::INTERNAL_IP6_DNS, v6), &v6_octets(&[]), "fd00::1"),
            (ConfigAttribute::prefix(Type::INTERNAL_IP6_ADDRESS, v6, 128), &v6_octets(&[128]), "fd00::1/128"),
            (
                ConfigAttribute::prefix(Type::INTERNAL_IP4_SUBNET, "10.2.0.0".parse().unwrap(), 15),
                &[10, 2, 0, 0, 255, 254, 0, 0],
                "10.2.0.0/15",
            ),
            (
                ConfigAttribute::prefix(Type::INTERNAL_IP4_SUBNET, "0.0.0.0".parse().unwrap(), 0),
                &[0; 8],
                "0.0.0.0/0",
            ),
            (ConfigAttribute::empty(Type::INTERNAL_IP4_DNS), &[], ""),
            (attribute(Type::INTERNAL_DNS_DOMAIN, b"corp\n"), b"corp\n", "corp\\n"),
            (
                attribute(Type::SUPPORTED_ATTRIBUTES, &[0, 1, 0x80, 8]),
                &[0, 1, 0x80, 8],
                "INTERNAL_IP4_ADDRESS INTERNAL_IP6_ADDRESS",
            ),
        ] {
            assert_eq!(made.value, octets, "{shown}");
            assert_eq!(made.read().unwrap().unwrap().to_string(), shown);
        }
    }

    fn v6_octets(more: &[u8]) -> Vec<u8> {
        [&"fd00::1".parse::<Ipv6Addr>().unwrap().octets()[..], more].concat()
    }

    #[test]
    fn wrong_lengths_and_masks_are_errors_and_unknown_types_are_nothing() {
        for kind in [1, 2, 3, 4, 6, 8, 10, 12, 13, 14, 15].map(ConfigAttributeType) {
            for length in 1..40 {
                let fits = match kind.0 {
                    1..=6 => length == 4,
                    8 | 15 => length == 17,
                    10 | 12 => length == 16,
                    13 => length == 8,
                    _ => length % 2 == 0,
                };
                assert_eq!(attribute(kind, &vec![0; length]).read().is_ok(), fits, "{kind} {length}");
            }
        }
        assert!(attribute(Type::INTERNAL_IP4_SUBNET, &[10, 0, 0, 0, 255, 0, 255, 0]).read().is_err());
        assert!(attribute(Type::INTERNAL_IP6_SUBNET, &v6_octets(&[129])).read().is_err());
        assert_eq!(attribute(Type(28672), b"Cisco").read().unwrap(), None);
        let payload = ConfigPayload {
            kind: ConfigType::CFG_REPLY,
            attributes: vec![
                attribute(Type::INTERNAL_IP4_ADDRESS, &[1; 5]),
                attribute(Type(999), &[1]),
                attribute(Type::INTERNAL_IP4_ADDRESS, &[10, 0, 0, 1]),
            ],
        };
        assert_eq!(
            payload.values().collect::<Vec<_>>(),
            [(Type::INTERNAL_IP4_ADDRESS, ConfigValue::Address("10.0.0.1".parse().unwrap()))]
        );
    }

    #[test]
    fn the_number_of_attributes_is_bounded() {
        let body = |count: usize| [vec![1, 0, 0, 0], [0, 1, 0, 0].repeat(count)].concat();
        let read = |body: &[u8]| ConfigPayload::parse(Reader::new(body, "CP"));
        assert_eq!(read(&body(MAX_ATTRIBUTES)).unwrap().attributes.len(), MAX_ATTRIBUTES);
        assert!(read(&body(MAX_ATTRIBUTES + 1)).is_err());
        assert!(read(&[1, 0, 0, 0, 0, 1, 0, 4, 10]).is_err(), "the value is cut off");
        let mut out = Vec::new();
        read(&body(2)).unwrap().emit(&mut out);
        assert_eq!(out, body(2));
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_read_without_harm_and_comes_back(octets in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(payload) = ConfigPayload::parse(Reader::new(&octets, "CP")) {
                prop_assert!(payload.values().all(|(_, value)| value.to_string().is_ascii()));
                let mut out = Vec::new();
                payload.emit(&mut out);
                prop_assert_eq!(&ConfigPayload::parse(Reader::new(&out, "CP")).unwrap(), &payload);
            }
        }
    }
}
