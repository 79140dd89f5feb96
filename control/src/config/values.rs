//! What single values mean: durations, volumes, identities, keys, addresses.
//!
//! An error completes "found '...'; expected ".

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use mobikex_common::crypto::Secret;
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ike::{IdType, Identification};

use super::model::{AddrPattern, TsPattern};

/// The longest time that is taken; a sum with the clock must stay in range.
const MAX_SECONDS: u64 = 3650 * 86_400;

/// `90`, `90s`, `5m`, `4h`, `1d`
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(digits) => (digits, text.as_bytes()[digits.len()]),
        None => (text, b's'),
    };
    let factor = match unit {
        b'm' => 60,
        b'h' => 3600,
        b'd' => 86_400,
        _ => 1,
    };
    let seconds = unsigned(digits.trim_end()).and_then(|n| n.checked_mul(factor));
    seconds
        .filter(|s| *s <= MAX_SECONDS)
        .map(Duration::from_secs)
        .ok_or_else(|| "a time such as 90, 90s, 5m, 4h or 1d, at most 3650d".to_string())
}

/// `1000000`, `500m`, `1g`: octets with binary suffixes; zero means no limit.
pub(super) fn volume(text: &str) -> Result<Option<u64>, String> {
    let (digits, shift) = match text.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G']) {
        Some(digits) => match text.as_bytes()[digits.len()].to_ascii_lowercase() {
            b'k' => (digits, 10),
            b'm' => (digits, 20),
            _ => (digits, 30),
        },
        None => (text, 0),
    };
    unsigned(digits.trim_end())
        .and_then(|n| n.checked_mul(1 << shift))
        .map(|n| (n > 0).then_some(n))
        .ok_or_else(|| "a number of octets such as 1000000, 500m or 1g".to_string())
}

/// A count of packets; zero means no limit.
pub(super) fn packets(text: &str) -> Result<Option<u64>, String> {
    unsigned(text).map(|n| (n > 0).then_some(n)).ok_or_else(|| "a number of packets".to_string())
}

/// `100ms`, or whole seconds: 10 ms to a minute.
pub(super) fn milliseconds(text: &str) -> Result<Duration, String> {
    let time = match text.strip_suffix("ms") {
        Some(digits) => unsigned(digits.trim_end()).map(Duration::from_millis),
        None => time(text).ok(),
    };
    time.filter(|t| (Duration::from_millis(10)..=Duration::from_secs(60)).contains(t))
        .ok_or_else(|| "a time from 10ms to 60s".to_string())
}

/// `50us`, `1ms`: up to 10 ms; zero needs no unit.
pub(super) fn busy_poll(text: &str) -> Result<Duration, String> {
    let units = [("us", 1), ("ms", 1000)];
    let found = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let time = match found {
        Some((digits, factor)) => unsigned(digits.trim_end()).and_then(|n| n.checked_mul(factor)),
        None => unsigned(text).filter(|n| *n == 0),
    };
    time.filter(|us| *us <= 10_000)
        .map(Duration::from_micros)
        .ok_or_else(|| "0, or a time such as 50us or 1ms, at most 10ms".to_string())
}

/// `50mbit`, `64kbit`, `1gbit`: a rate in bit/s, above zero.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let units = [("kbit", 1_000), ("mbit", 1_000_000), ("gbit", 1_000_000_000), ("bit", 1)];
    let found = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    found
        .and_then(|(digits, factor)| unsigned(digits.trim_end())?.checked_mul(factor))
        .filter(|rate| *rate > 0)
        .ok_or_else(|| "a rate such as 800kbit, 50mbit or 1gbit".to_string())
}

/// An address, a prefix or a range.
pub(super) fn prefix(text: &str) -> Result<TrafficSelector, String> {
    match address(text) {
        Ok(AddrPattern::Range(range)) => Ok(range),
        _ => Err("an address, a prefix or a range of addresses".to_string()),
    }
}

/// Digits only: no sign, no spaces.
fn unsigned(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A number between two bounds, decimal or with `0x`.
pub(super) fn number(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let value = match text.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None => unsigned(text),
    };
    value.filter(|n| (min..=max).contains(n)).ok_or_else(|| format!("a number from {min} to {max}"))
}

/// `yes` or `no`, and the words that swanctl takes for them.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" | "enabled" | "1" => Ok(true),
        "no" | "false" | "disabled" | "0" => Ok(false),
        _ => Err("yes or no".to_string()),
    }
}

/// An identity; `None` for `%any`.
pub(super) fn identity(text: &str) -> Result<Option<Identification>, String> {
    const FORMS: &str = "an address, a host name, user@host, keyid:..., a distinguished name or %any";
    if text == "%any" {
        return Ok(None);
    }
    for prefix in ["email:", "rfc822:", "userfqdn:"] {
        if let Some(name) = text.strip_prefix(prefix) {
            let id = format!("x@{name}").parse::<Identification>();
            let plain = id.is_ok() && !name.is_empty();
            let id = Identification { kind: IdType::RFC822_ADDR, data: name.as_bytes().to_vec() };
            return plain.then_some(Some(id)).ok_or_else(|| FORMS.to_string());
        }
    }
    if let Some(name) = text.strip_prefix("keyid:").filter(|name| !name.starts_with("0x")) {
        let id = Identification { kind: IdType::KEY_ID, data: name.as_bytes().to_vec() };
        return if id.is_well_formed() { Ok(Some(id)) } else { Err(FORMS.to_string()) };
    }
    if text.contains('*') {
        return Err(format!("{FORMS}; patterns stand for peers only"));
    }
    let name = ["ipv4:", "ipv6:", "dns:", "dn:"].iter().find_map(|p| text.strip_prefix(p)).unwrap_or(text);
    name.parse().map(Some).map_err(|_| FORMS.to_string())
}

/// The identity of a peer, which may be a pattern; `None` for `%any`.
pub(super) fn pattern(text: &str) -> Result<Option<Identification>, String> {
    if !text.contains('*') {
        return identity(text);
    }
    Identification::pattern(text).map(Some).map_err(|_| {
        "an identity, or a pattern such as *.example.org, *@example.org or 'C=CH, O=Example, CN=*'"
            .to_string()
    })
}

/// A pre-shared key: `0x` hex, `0s` base64, or the text itself. The error never repeats it.
pub(super) fn secret(text: &str) -> Result<Secret, String> {
    let octets = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let digits: Option<Vec<u8>> =
            hex.chars().filter(|c| *c != ':').map(|c| c.to_digit(16).map(|d| d as u8)).collect();
        match digits {
            Some(digits) if digits.len().is_multiple_of(2) => {
                digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
            }
            _ => return Err("an even number of hex digits after 0x".to_string()),
        }
    } else if let Some(encoded) = text.strip_prefix("0s").or_else(|| text.strip_prefix("0S")) {
        let decoded = STANDARD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded));
        decoded.map_err(|_| "base64 after 0s".to_string())?
    } else {
        text.as_bytes().to_vec()
    };
    if octets.is_empty() { Err("a key of at least one octet".to_string()) } else { Ok(Secret::from(octets)) }
}

/// `%any`, an address, a prefix or a range.
pub(super) fn address(text: &str) -> Result<AddrPattern, String> {
    match text {
        "%any" | "%" => return Ok(AddrPattern::Any),
        "%any4" => return Ok(AddrPattern::Range(TrafficSelector::ANY_V4)),
        "%any6" => return Ok(AddrPattern::Range(TrafficSelector::ANY_V6)),
        _ => {}
    }
    let forms = "%any, an address, a prefix or a range of addresses";
    match text.parse::<TrafficSelector>() {
        Ok(range) if !text.contains('[') => Ok(AddrPattern::Range(range)),
        Err(_) if looks_like_a_host_name(text) => {
            Err(format!("{forms}; host names are not available in this version"))
        }
        _ => Err(forms.to_string()),
    }
}

fn looks_like_a_host_name(text: &str) -> bool {
    let label =
        |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    text.split('.').all(label) && text.contains(|c: char| c.is_ascii_alphabetic())
}

/// `dynamic`, or a traffic selector; each with an optional `[protocol/port]`.
pub(super) fn selector(text: &str) -> Result<TsPattern, String> {
    let forms =
        |reason: String| format!("dynamic, or addresses such as 10.1.0.0/16 or 10.1.0.5[tcp/80]: {reason}");
    let dynamic = text.strip_prefix("%dynamic").or_else(|| text.strip_prefix("dynamic"));
    match dynamic {
        Some(rest) if rest.is_empty() || rest.starts_with('[') => {
            format!("0.0.0.0/0{rest}").parse().map(TsPattern::Dynamic).map_err(forms)
        }
        _ => text.parse().map(TsPattern::Fixed).map_err(forms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in
            [("90", 90), ("90s", 90), ("5m", 300), ("4h", 14_400), ("1 d", 86_400), ("0", 0)]
        {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "s", "-1", "+1", "1w", "1.5h", "99999999999999999999d", "3651d", "4 h 3"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_of_busy_polling() {
        for (text, us) in [("0", 0), ("0us", 0), ("50us", 50), ("1ms", 1000), ("10 ms", 10_000)] {
            assert_eq!(busy_poll(text), Ok(Duration::from_micros(us)), "{text}");
        }
        for bad in ["", "us", "50", "-1us", "11ms", "10001us", "1s", "99999999999999999999us"] {
            assert!(busy_poll(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes() {
        for (text, octets) in
            [("1", Some(1)), ("2k", Some(2048)), ("500M", Some(500 << 20)), ("1g", Some(1 << 30))]
        {
            assert_eq!(volume(text), Ok(octets), "{text}");
        }
        assert_eq!(volume("0"), Ok(None));
        assert!(volume("1t").is_err() && volume("99999999999g").is_err() && volume("").is_err());
    }

    #[test]
    fn rates_and_short_times() {
        assert_eq!(rate("50mbit"), Ok(50_000_000));
        assert_eq!(rate("9600bit"), Ok(9600));
        assert!(["50", "0mbit", "mbit", "50mbps", "99999999999gbit"].iter().all(|bad| rate(bad).is_err()));
        assert_eq!(milliseconds("100ms"), Ok(Duration::from_millis(100)));
        assert_eq!(milliseconds("2s"), Ok(Duration::from_secs(2)));
        assert!(["9ms", "61s", "0", "1.5s"].iter().all(|bad| milliseconds(bad).is_err()));
    }

    #[test]
    fn identities() {
        for (text, kind, data) in [
            ("192.0.2.1", IdType::IPV4_ADDR, &[192, 0, 2, 1][..]),
            ("moon.example.org", IdType::FQDN, b"moon.example.org"),
            ("@moon", IdType::FQDN, b"moon"),
            ("fqdn:moon", IdType::FQDN, b"moon"),
            ("carol@example.org", IdType::RFC822_ADDR, b"carol@example.org"),
            ("email:carol@example.org", IdType::RFC822_ADDR, b"carol@example.org"),
            ("keyid:0x0102", IdType::KEY_ID, &[1, 2]),
            ("keyid:branch 7", IdType::KEY_ID, b"branch 7"),
        ] {
            assert_eq!(identity(text), Ok(Some(Identification { kind, data: data.to_vec() })), "{text}");
        }
        assert_eq!(identity("%any"), Ok(None));
        for bad in ["", "XX=CH, O=strongSwan, CN=moon", "*.example.org", "keyid:", "keyid:0x1", "two words"] {
            assert!(identity(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_in_three_notations() {
        for text in ["abc", "0x616263", "0X61:62:63", "0sYWJj"] {
            assert_eq!(&*secret(text).unwrap(), b"abc", "{text}");
        }
        assert_eq!(&*secret("0sYQ").unwrap(), b"a");
        for (bad, reason) in
            [("0x1", "hex"), ("0xhello", "hex"), ("0s!!!", "base64"), ("0x", "one octet"), ("", "one")]
        {
            let error = secret(bad).unwrap_err();
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("hello"));
        }
    }

    #[test]
    fn addresses_and_selectors() {
        assert_eq!(address("%any"), Ok(AddrPattern::Any));
        for text in ["192.0.2.1", "192.0.2.0/24", "192.0.2.1-192.0.2.9", "2001:db8::/32"] {
            assert!(matches!(address(text), Ok(AddrPattern::Range(_))), "{text}");
        }
        assert!(address("gw.example.org").unwrap_err().contains("host names"));
        assert!(address("10.0.0.1[tcp]").is_err());
        assert!(address("10.0.0.0/40").is_err());
        for (text, shown) in [
            ("dynamic", "dynamic"),
            ("dynamic[tcp/80]", "dynamic[tcp/80]"),
            ("10.1.0.0/16[udp]", "10.1.0.0/16[udp]"),
            ("10.1.0.7", "10.1.0.7/32"),
        ] {
            assert_eq!(selector(text).unwrap().to_string(), shown);
        }
        assert!(selector("dynamically").is_err());
        assert!(selector("10.0.0.0/8[tcp").is_err());
    }
}
