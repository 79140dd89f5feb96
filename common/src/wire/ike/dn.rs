//! Distinguished names (RFC 5280 4.1.2.4): as text in the order of the certificate, as swanctl.conf has them, and their
//! comparison.

use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{
    Any, BmpString, Ia5StringRef, ObjectIdentifier, PrintableStringRef, TeletexStringRef, Utf8StringRef,
};
use x509_cert::der::{Decode, Encode, Tag, Tagged};
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};

/// Attribute types by name, the one that we print first.
const TYPES: &[(&str, ObjectIdentifier)] = &[
    ("C", ObjectIdentifier::new_unwrap("2.5.4.6")),
    ("ST", ObjectIdentifier::new_unwrap("2.5.4.8")),
    ("L", ObjectIdentifier::new_unwrap("2.5.4.7")),
    ("O", ObjectIdentifier::new_unwrap("2.5.4.10")),
    ("OU", ObjectIdentifier::new_unwrap("2.5.4.11")),
    ("CN", ObjectIdentifier::new_unwrap("2.5.4.3")),
    ("E", EMAIL),
    ("emailAddress", EMAIL),
    ("Email", EMAIL),
    ("DC", DOMAIN),
    ("UID", ObjectIdentifier::new_unwrap("0.9.2342.19200300.100.1.1")),
    ("SN", ObjectIdentifier::new_unwrap("2.5.4.5")),
    ("serialNumber", ObjectIdentifier::new_unwrap("2.5.4.5")),
    ("S", ObjectIdentifier::new_unwrap("2.5.4.4")),
    ("G", ObjectIdentifier::new_unwrap("2.5.4.42")),
    ("I", ObjectIdentifier::new_unwrap("2.5.4.43")),
    ("T", ObjectIdentifier::new_unwrap("2.5.4.12")),
    ("D", ObjectIdentifier::new_unwrap("2.5.4.13")),
    ("N", ObjectIdentifier::new_unwrap("2.5.4.41")),
    ("street", ObjectIdentifier::new_unwrap("2.5.4.9")),
    ("unstructuredName", ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.2")),
];
const EMAIL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.1");
const DOMAIN: ObjectIdentifier = ObjectIdentifier::new_unwrap("0.9.2342.19200300.100.1.25");

/// More attributes than any name has.
const MAX_ATTRIBUTES: usize = 64;

/// The DER of `C=CH, O=Example, CN=gateway`, or of the same with `/` before each attribute. A backslash keeps the
/// character after it.
pub(super) fn parse(text: &str) -> Option<Vec<u8>> {
    let (separator, text) = match text.trim().strip_prefix('/') {
        Some(rest) => ('/', rest),
        None => (',', text.trim()),
    };
    let mut name = RdnSequence::default();
    for part in split(text, separator)? {
        let (kind, value) = part.split_once('=')?;
        let oid = TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(kind.trim()))?.1;
        let value = value.trim();
        if value.is_empty() || value.contains(char::is_control) || name.len() == MAX_ATTRIBUTES {
            return None;
        }
        let value = if oid == EMAIL || oid == DOMAIN {
            Any::from(Ia5StringRef::new(value).ok()?)
        } else if let Ok(printable) = PrintableStringRef::new(value) {
            Any::from(printable)
        } else {
            Any::from(Utf8StringRef::new(value).ok()?)
        };
        let mut rdn = RelativeDistinguishedName::default();
        rdn.insert(AttributeTypeAndValue { oid, value }).ok()?;
        name.push(rdn);
    }
    name.to_der().ok()
}

/// The parts between separators, without the backslashes.
fn split(text: &str, separator: char) -> Option<Vec<String>> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => part.push(chars.next()?),
            c if c == separator => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    parts.push(part);
    Some(parts)
}

/// The name as text, if every attribute of it has one.
pub(super) fn show(der: &[u8]) -> Option<String> {
    let name = Name::from_der(der).ok()?;
    let mut out = Vec::new();
    for rdn in name.iter_rdn() {
        let [attribute] = rdn.iter().collect::<Vec<_>>()[..] else { return None };
        let kind = TYPES.iter().find(|(_, oid)| *oid == attribute.oid)?.0;
        let value = text(&attribute.value)?;
        if value.trim() != value || value.contains(char::is_control) {
            return None;
        }
        let escaped: String = value
            .chars()
            .flat_map(|c| (c == ',' || c == '\\').then_some('\\').into_iter().chain([c]))
            .collect();
        out.push(format!("{kind}={escaped}"));
    }
    (!out.is_empty()).then(|| out.join(", "))
}

fn text(value: &Any) -> Option<String> {
    match value.tag() {
        Tag::Utf8String => value.decode_as::<Utf8StringRef<'_>>().ok().map(|s| s.as_str().to_string()),
        Tag::PrintableString => {
            value.decode_as::<PrintableStringRef<'_>>().ok().map(|s| s.as_str().to_string())
        }
        Tag::Ia5String => value.decode_as::<Ia5StringRef<'_>>().ok().map(|s| s.as_str().to_string()),
        Tag::TeletexString => value.decode_as::<TeletexStringRef<'_>>().ok().map(|s| s.as_str().to_string()),
        Tag::BmpString => value.decode_as::<BmpString>().ok().map(|s| s.to_string()),
        _ => None,
    }
}

/// An attribute for comparison: text without regard to its encoding, its case and repeated spaces (RFC 5280 7.1),
/// anything else octet by octet.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Canonical {
    Text(String),
    Other(Vec<u8>),
}

fn canonical(value: &Any) -> Option<Canonical> {
    Some(match text(value) {
        Some(text) => Canonical::Text(text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")),
        None => Canonical::Other(value.to_der().ok()?),
    })
}

/// The attributes of each relative name, in an order of their own.
fn attributes(der: &[u8]) -> Option<Vec<Vec<(ObjectIdentifier, Canonical)>>> {
    let name = Name::from_der(der).ok()?;
    if name.len() > MAX_ATTRIBUTES {
        return None;
    }
    let rdn = |rdn: &RelativeDistinguishedName| {
        let mut list: Vec<_> =
            rdn.iter().map(|a| Some((a.oid, canonical(&a.value)?))).collect::<Option<_>>()?;
        list.sort();
        Some(list)
    };
    name.iter_rdn().map(rdn).collect()
}

/// Whether two names are the same (RFC 5280 7.1). With `patterns` an attribute of `a` that is `*` fits any value.
pub(super) fn same(a: &[u8], b: &[u8], patterns: bool) -> bool {
    let (Some(a), Some(b)) = (attributes(a), attributes(b)) else { return a == b };
    let fits = |(one, other): (&(ObjectIdentifier, Canonical), &(ObjectIdentifier, Canonical))| {
        one.0 == other.0 && (one.1 == other.1 || patterns && one.1 == Canonical::Text("*".into()))
    };
    a.len() == b.len()
        && a.iter().zip(&b).all(|(one, other)| one.len() == other.len() && one.iter().zip(other).all(fits))
}

/// Octets that names have in common if they are the [`same`].
pub(super) fn key(der: &[u8]) -> Vec<u8> {
    attributes(der).map_or_else(|| der.to_vec(), |rdns| format!("{rdns:?}").into_bytes())
}

/// Whether an attribute is `*`.
pub(super) fn is_pattern(der: &[u8]) -> bool {
    attributes(der).is_some_and(|rdns| rdns.iter().flatten().any(|(_, v)| *v == Canonical::Text("*".into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn utf8(attributes: &[(&str, &str)]) -> Vec<u8> {
        let mut name = RdnSequence::default();
        for (kind, value) in attributes {
            let oid = TYPES.iter().find(|(known, _)| known == kind).unwrap().1;
            let value = Any::from(Utf8StringRef::new(value).unwrap());
            let mut rdn = RelativeDistinguishedName::default();
            rdn.insert(AttributeTypeAndValue { oid, value }).unwrap();
            name.push(rdn);
        }
        name.to_der().unwrap()
    }

    #[test]
    fn text_and_back() {
        for text in [
            "C=CH, O=strongSwan Project, CN=moon.strongswan.org",
            "CN=a\\, b\\\\c",
            "O=Müller, E=a@b.example",
        ] {
            assert_eq!(show(&parse(text).unwrap()).unwrap(), text);
        }
        assert_eq!(parse("/C=CH/CN=moon"), parse("c=CH,  cn = moon"));
        for bad in ["", "CN", "CN=", "XY=1", "CN=a, ", "CN=a\\", "CN=a\u{7}"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_compare_as_rfc5280_7_1() {
        let moon = parse("C=CH, CN=moon  Base").unwrap();
        assert!(same(&moon, &utf8(&[("C", "ch"), ("CN", "Moon base")]), false));
        assert!(!same(&moon, &utf8(&[("CN", "moon base"), ("C", "CH")]), false), "the order counts");
        assert!(!same(&moon, &utf8(&[("C", "CH")]), false));
        assert!(!same(&moon, &utf8(&[("C", "CH"), ("O", "moon base")]), false));
        let pattern = parse("C=CH, CN=*").unwrap();
        assert!(same(&pattern, &moon, true) && !same(&pattern, &moon, false) && !same(&moon, &pattern, true));
        assert!(is_pattern(&pattern) && !is_pattern(&moon));
    }

    proptest! {
        #[test]
        fn random_octets_never_panic(der in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (show(&der), is_pattern(&der));
            prop_assert!(same(&der, &der, false));
        }

        #[test]
        fn shown_names_read_back(text in "CN=[ -~]{1,30}") {
            if let Some(der) = parse(&text) {
                prop_assert!(show(&der).is_none_or(|shown| same(&parse(&shown).unwrap(), &der, false)));
            }
        }
    }
}
