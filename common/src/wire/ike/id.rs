//! Identities (RFC 7296 3.5) and how an operator writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::{IdType, dn};

/// Longest identity that we take, in octets.
const MAX_LEN: usize = 2048;
/// Octets that are shown in hex.
const SHOWN: usize = 64;

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

    /// Whether both name the same: host names and mail addresses without regard to ASCII case, distinguished names as
    /// RFC 5280 7.1 compares them, everything else octet by octet.
    pub fn same(&self, other: &Self) -> bool {
        self.kind == other.kind
            && match self.kind {
                IdType::FQDN | IdType::RFC822_ADDR => self.data.eq_ignore_ascii_case(&other.data),
                IdType::DER_ASN1_DN => dn::same(&self.data, &other.data, false),
                _ => self.data == other.data,
            }
    }

    /// Whether `id` is what this pattern of an operator allows: `*.example.org`, `*@example.org`, a distinguished name
    /// with `*` for the value of an attribute, or else one identity.
    pub fn allows(&self, id: &Self) -> bool {
        match (self.kind, self.data.strip_prefix(b"*")) {
            (IdType::FQDN | IdType::RFC822_ADDR, Some(end)) => {
                let head = id.data.len().checked_sub(end.len());
                self.kind == id.kind
                    && head.is_some_and(|head| head > 0 && id.data[head..].eq_ignore_ascii_case(end))
            }
            (IdType::DER_ASN1_DN, _) => id.kind == self.kind && dn::same(&self.data, &id.data, true),
            _ => self.same(id),
        }
    }

    /// Whether it stands for many, see [`Self::allows`].
    pub fn is_pattern(&self) -> bool {
        match self.kind {
            IdType::FQDN | IdType::RFC822_ADDR => self.data.starts_with(b"*"),
            IdType::DER_ASN1_DN => dn::is_pattern(&self.data),
            _ => false,
        }
    }

    /// A pattern as an operator writes it, or one identity.
    ///
    /// # Errors
    /// When it is neither.
    pub fn pattern(text: &str) -> Result<Self, String> {
        let kind = if text.contains('@') { IdType::RFC822_ADDR } else { IdType::FQDN };
        match text.strip_prefix('*') {
            // What follows must be a name by itself, with no further pattern in it.
            Some(end)
                if end.len() > 1
                    && end.starts_with(['.', '@'])
                    && format!("x{end}").parse::<Self>().is_ok() =>
            {
                Ok(Self { kind, data: text.as_bytes().to_vec() })
            }
            _ => text.parse(),
        }
    }
}

/// The prefixes that name a type, the one that we print first (ID types as swanctl names them).
const PREFIXES: [(&str, IdType); 8] = [
    ("fqdn:", IdType::FQDN),
    ("dns:", IdType::FQDN),
    ("email:", IdType::RFC822_ADDR),
    ("rfc822:", IdType::RFC822_ADDR),
    ("userfqdn:", IdType::RFC822_ADDR),
    ("keyid:", IdType::KEY_ID),
    ("asn1dn:", IdType::DER_ASN1_DN),
    ("asn1gn:", IdType::DER_ASN1_GN),
];

impl FromStr for Identification {
    type Err = String;

    /// An address, `user@host`, `host` or `@host` (FQDN), `@@user@host`, `@#HEX` (key ID), `C=CH, CN=host` (distinguished
    /// name), or the type by a prefix: `fqdn:`, `email:`, `keyid:`, `asn1dn:`, `ipv4:`, `ipv6:`, before text or `0x` and
    /// hex.
    fn from_str(text: &str) -> Result<Self, String> {
        let unusable = || format!("'{text}' is not an identity (an address, a host name or user@host)");
        if let Some(addr) = text.strip_prefix("ipv4:").or_else(|| text.strip_prefix("ipv6:")) {
            let addr: IpAddr = addr.parse().map_err(|_| unusable())?;
            return if addr.is_ipv4() == text.starts_with("ipv4:") {
                Ok(Self::from_ip(addr))
            } else {
                Err(unusable())
            };
        }
        if let Ok(addr) = text.parse::<IpAddr>() {
            return Ok(Self::from_ip(addr));
        }
        if let Some(hex) = text.strip_prefix("@#") {
            return from_hex(IdType::KEY_ID, hex, text);
        }
        let named = PREFIXES.iter().find_map(|(p, kind)| text.strip_prefix(p).map(|rest| (*kind, rest)));
        if let Some((kind, rest)) = named
            && let Some(hex) = rest.strip_prefix("0x")
        {
            return from_hex(kind, hex, text);
        }
        let dn = match named {
            Some((IdType::DER_ASN1_DN, rest)) => Some(rest),
            None if text.contains('=') && !text.starts_with('@') => Some(text),
            _ => None,
        };
        if let Some(name) = dn {
            let data = dn::parse(name).filter(|data| data.len() <= MAX_LEN).ok_or_else(unusable)?;
            return Ok(Self { kind: IdType::DER_ASN1_DN, data });
        }
        let (kind, name) = match (named, text.strip_prefix("@@"), text.strip_prefix('@')) {
            (Some((kind, rest)), ..) => (kind, rest),
            (None, Some(name), _) => (IdType::RFC822_ADDR, name),
            (None, None, Some(name)) => (IdType::FQDN, name),
            (None, None, None) if text.contains('@') => (IdType::RFC822_ADDR, text),
            (None, None, None) => (IdType::FQDN, text),
        };
        // A '%' starts words such as %any, '*' a pattern, '=' a distinguished name: none of them is a name.
        let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '=' | '*');
        let is_name = match kind {
            IdType::FQDN | IdType::RFC822_ADDR => !name.contains(odd) && !name.starts_with('%'),
            IdType::KEY_ID => true,
            _ => false,
        };
        if !is_name || name.is_empty() || name.len() > MAX_LEN {
            return Err(unusable());
        }
        Ok(Self { kind, data: name.as_bytes().to_vec() })
    }
}

fn from_hex(kind: IdType, hex: &str, text: &str) -> Result<Identification, String> {
    let octet = |i: usize| {
        let digits = hex.get(i..i + 2).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        digits.and_then(|d| u8::from_str_radix(d, 16).ok())
    };
    let data: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(octet).collect();
    match data {
        Some(data) if (1..=MAX_LEN).contains(&data.len()) => Ok(Identification { kind, data }),
        _ => Err(format!("'{text}' is not an identity in hex octets")),
    }
}

impl fmt::Display for Identification {
    /// As an operator would write it. Text that would be read as another identity gets the prefix of its type, so
    /// that two different identities never look the same; what is no text is shown in hex, the first 64 octets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (IdType::IPV4_ADDR, Ok(octets)) = (self.kind, <[u8; 4]>::try_from(&*self.data)) {
            return write!(f, "{}", Ipv4Addr::from(octets));
        }
        if let (IdType::IPV6_ADDR, Ok(octets)) = (self.kind, <[u8; 16]>::try_from(&*self.data)) {
            return write!(f, "{}", Ipv6Addr::from(octets));
        }
        if let (IdType::DER_ASN1_DN, Some(text)) = (self.kind, dn::show(&self.data))
            && text.parse().is_ok_and(|id: Self| id.same(self))
        {
            return f.write_str(&text);
        }
        let prefix = PREFIXES.iter().find(|(_, kind)| *kind == self.kind).map(|(prefix, _)| *prefix);
        let names_self = |text: &str| text.parse().is_ok_and(|id: Self| id == *self);
        if let (IdType::FQDN | IdType::RFC822_ADDR, Some(prefix), Ok(text)) =
            (self.kind, prefix, std::str::from_utf8(&self.data))
        {
            let prefixed = format!("{prefix}{text}");
            if names_self(text) {
                return f.write_str(text);
            } else if names_self(&prefixed) {
                return f.write_str(&prefixed);
            }
        }
        match prefix {
            Some(prefix) => write!(f, "{prefix}0x")?,
            None => write!(f, "{}:0x", self.kind)?,
        }
        self.data.iter().take(SHOWN).try_for_each(|b| write!(f, "{b:02x}"))?;
        if self.data.len() > SHOWN { f.write_str("..") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(text: &str) -> (IdType, Vec<u8>) {
        let id: Identification = text.parse().unwrap();
        (id.kind, id.data)
    }

    #[test]
    fn operators_forms() {
        assert_eq!(id("192.0.2.1"), (IdType::IPV4_ADDR, vec![192, 0, 2, 1]));
        assert_eq!(id("ipv4:192.0.2.1"), id("192.0.2.1"));
        assert_eq!(id("2001:db8::1").0, IdType::IPV6_ADDR);
        assert_eq!(id("ipv6:::1"), id("::1"));
        assert_eq!(id("hq.example.org"), (IdType::FQDN, b"hq.example.org".to_vec()));
        for same in ["@hq.example.org", "fqdn:hq.example.org", "dns:hq.example.org"] {
            assert_eq!(id(same), id("hq.example.org"));
        }
        assert_eq!(id("carol@example.org"), (IdType::RFC822_ADDR, b"carol@example.org".to_vec()));
        for same in ["@@carol@example.org", "email:carol@example.org", "rfc822:carol@example.org"] {
            assert_eq!(id(same), id("carol@example.org"));
        }
        assert_eq!(id("fqdn:192.0.2.1"), (IdType::FQDN, b"192.0.2.1".to_vec()));
        assert_eq!(id("keyid:0x00ff"), (IdType::KEY_ID, vec![0, 255]));
        assert_eq!(id("@#00FF"), id("keyid:0x00ff"));
        assert_eq!(id("keyid:branch 7"), (IdType::KEY_ID, b"branch 7".to_vec()));
        assert_eq!(id("C=CH, CN=moon").0, IdType::DER_ASN1_DN);
        assert_eq!(id("asn1dn:C=CH, CN=moon"), id("/C=CH/CN=moon"));
        for bad in [
            "",
            "@",
            "@@",
            "%any",
            "two words",
            "*.example.org",
            "XY=CH, CN=moon",
            "CN=",
            "keyid:",
            "keyid:0x",
            "keyid:0x1",
            "keyid:0x+1",
            "@#zz",
            "ipv4:::1",
            "ipv6:192.0.2.1",
            "asn1dn:moon",
            "fqdn:",
        ] {
            assert!(bad.parse::<Identification>().is_err(), "{bad}");
        }
    }

    #[test]
    fn b9_identities_compare_by_type_and_whole_value() {
        let id = |text: &str| text.parse::<Identification>().unwrap();
        assert!(id("A.Example").same(&id("a.example")));
        assert!(!id("a.example").same(&id("a.example.org")));
        assert!(!id("192.0.2.1").same(&Identification { kind: IdType::FQDN, data: vec![192, 0, 2, 1] }));
        assert!(!id("keyid:0x61").same(&id("keyid:0x41")));
        assert!(id("C=CH, CN=Moon").same(&id("C=ch, CN=moon")) && !id("C=CH, CN=moon").same(&id("CN=moon")));
    }

    #[test]
    fn patterns_fit_whole_labels_and_only_their_type() {
        let allows = |pattern: &str, name: &str| {
            Identification::pattern(pattern).unwrap().allows(&name.parse().unwrap())
        };
        assert!(allows("*.example.org", "a.b.Example.ORG") && allows("*@example.org", "carol@example.org"));
        assert!(!allows("*.example.org", "badexample.org") && !allows("*.example.org", ".example.org"));
        assert!(!allows("*.example.org", "carol@a.example.org") && !allows("*@example.org", "a.example.org"));
        assert!(allows("C=CH, CN=*", "C=CH, CN=carol") && !allows("C=CH, CN=*", "C=AT, CN=carol"));
        assert!(allows("a.example", "A.example") && !allows("a.example", "b.example"));
        // What a peer sends is never a pattern.
        let star = Identification { kind: IdType::FQDN, data: b"*.example.org".to_vec() };
        assert!(!star.same(&"a.example.org".parse().unwrap()) && star.is_pattern());
        for bad in ["*", "**.example.org", "a.*.example.org", "*example.org", "*.", "*.a b"] {
            assert!(Identification::pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn different_identities_never_look_the_same() {
        let show = |kind, data: &[u8]| Identification { kind, data: data.to_vec() }.to_string();
        assert_eq!(show(IdType::IPV4_ADDR, &[192, 0, 2, 1]), "192.0.2.1");
        assert_eq!(show(IdType::FQDN, b"192.0.2.1"), "fqdn:192.0.2.1");
        assert_eq!(show(IdType::FQDN, b"a@b"), "fqdn:a@b");
        assert_eq!(show(IdType::RFC822_ADDR, b"moon"), "email:moon");
        assert_eq!(show(IdType::FQDN, b"moon\n[IKE] fake"), "fqdn:0x6d6f6f6e0a5b494b455d2066616b65");
        assert_eq!(show(IdType::IPV4_ADDR, &[1]), "IPV4_ADDR:0x01");
        assert_eq!(show(IdType(200), &[1, 2]), "0xc8:0x0102");
        assert_eq!(show(IdType::KEY_ID, &[7; 65]), format!("keyid:0x{}..", "07".repeat(64)));
    }

    proptest! {
        #[test]
        fn shown_identities_read_back(
            kind in prop::sample::select(vec![2u8, 3, 9, 10, 11]),
            data in prop_oneof![
                proptest::collection::vec(any::<u8>(), 1..=SHOWN),
                "[ -~]{1,64}".prop_map(String::into_bytes),
                "(fqdn:|@|0x|email:|keyid:)?[a-z0-9.@:]{1,20}".prop_map(String::into_bytes),
            ],
        ) {
            let id = Identification { kind: IdType(kind), data };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn random_text_never_panics(text in ".{0,80}") {
            if let Ok(id) = text.parse::<Identification>() {
                prop_assert!(id.is_well_formed());
            }
        }
    }
}
