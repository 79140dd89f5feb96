//! Traffic selectors: what an SA may carry (RFC 7296 2.9 and 3.13.1, RFC 4301 4.4.1.1).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A range of addresses of one family, an IP protocol (0 = any) and a range of ports.
///
/// For ICMP, ICMPv6 and Mobile IPv6 the "port" is the type and code or the MH type in the upper octet(s), as
/// RFC 7296 3.13.1 defines. `start_port` 65535 with `end_port` 0 means OPAQUE: the field is not available.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TrafficSelector {
    /// IP protocol, 0 for any.
    pub protocol: u8,
    /// First port, inclusive.
    pub start_port: u16,
    /// Last port, inclusive.
    pub end_port: u16,
    /// First address, inclusive.
    pub start: IpAddr,
    /// Last address, inclusive; same family as `start`.
    pub end: IpAddr,
}

impl TrafficSelector {
    /// Every IPv4 address, protocol and port.
    pub const ANY_V4: Self = Self {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
        start: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        end: IpAddr::V4(Ipv4Addr::BROADCAST),
    };
    /// Every IPv6 address, protocol and port.
    pub const ANY_V6: Self = Self {
        protocol: 0,
        start_port: 0,
        end_port: u16::MAX,
        start: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        end: IpAddr::V6(Ipv6Addr::new(0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff)),
    };

    /// One address, any protocol and port.
    pub fn host(addr: IpAddr) -> Self {
        Self { protocol: 0, start_port: 0, end_port: u16::MAX, start: addr, end: addr }
    }

    /// A prefix, any protocol and port. Host bits of `addr` are ignored; `len` above the family's width is cut.
    pub fn prefix(addr: IpAddr, len: u8) -> Self {
        let (start, end) = match addr {
            IpAddr::V4(a) => {
                let host = u32::MAX.checked_shr(u32::from(len)).unwrap_or(0);
                let base = u32::from(a) & !host;
                (IpAddr::V4(base.into()), IpAddr::V4((base | host).into()))
            }
            IpAddr::V6(a) => {
                let host = u128::MAX.checked_shr(u32::from(len)).unwrap_or(0);
                let base = u128::from(a) & !host;
                (IpAddr::V6(base.into()), IpAddr::V6((base | host).into()))
            }
        };
        Self { protocol: 0, start_port: 0, end_port: u16::MAX, start, end }
    }

    /// The same addresses, limited to `protocol` and `ports`.
    pub fn with_protocol(self, protocol: u8, ports: std::ops::RangeInclusive<u16>) -> Self {
        Self { protocol, start_port: *ports.start(), end_port: *ports.end(), ..self }
    }

    /// True for IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.start.is_ipv4()
    }

    /// True when no field can match anything: families differ or a range is reversed (OPAQUE ports are fine).
    pub fn is_empty(&self) -> bool {
        self.start.is_ipv4() != self.end.is_ipv4()
            || to_u128(self.start) > to_u128(self.end)
            || (self.start_port > self.end_port && !self.is_opaque())
    }

    /// Ports that are not available, e.g. in fragments (RFC 7296 3.13.1).
    pub fn is_opaque(&self) -> bool {
        self.start_port == u16::MAX && self.end_port == 0
    }

    /// Whether `addr` lies in the address range.
    pub fn contains_addr(&self, addr: IpAddr) -> bool {
        match (self.start, self.end, addr) {
            // Of the machine's own width: this is asked for every packet, several times.
            (IpAddr::V4(start), IpAddr::V4(end), IpAddr::V4(addr)) => {
                (u32::from(start)..=u32::from(end)).contains(&addr.into())
            }
            (IpAddr::V6(start), IpAddr::V6(end), IpAddr::V6(addr)) => {
                (u128::from(start)..=u128::from(end)).contains(&addr.into())
            }
            _ => false,
        }
    }

    /// Whether a packet's field values match. `port` is `None` when the packet does not show it (a fragment, an
    /// unknown protocol): then only selectors that take every port, or OPAQUE ones, match (RFC 4301 4.4.1.1).
    pub fn matches(&self, addr: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        self.contains_addr(addr)
            && (self.protocol == 0 || self.protocol == protocol)
            && match port {
                Some(port) => (self.start_port..=self.end_port).contains(&port),
                None => self.is_opaque() || (self.start_port == 0 && self.end_port == u16::MAX),
            }
    }

    /// The traffic that both selectors cover, if any.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        if self.is_ipv4() != other.is_ipv4() {
            return None;
        }
        let protocol = match (self.protocol, other.protocol) {
            (0, p) | (p, 0) => p,
            (a, b) if a == b => a,
            _ => return None,
        };
        let (start_port, end_port) = match (self.is_opaque(), other.is_opaque()) {
            (true, true) => (u16::MAX, 0),
            (true, false) if other.start_port == 0 && other.end_port == u16::MAX => (u16::MAX, 0),
            (false, true) if self.start_port == 0 && self.end_port == u16::MAX => (u16::MAX, 0),
            (false, false) => (self.start_port.max(other.start_port), self.end_port.min(other.end_port)),
            _ => return None,
        };
        let start = if to_u128(self.start) >= to_u128(other.start) { self.start } else { other.start };
        let end = if to_u128(self.end) <= to_u128(other.end) { self.end } else { other.end };
        let both = Self { protocol, start_port, end_port, start, end };
        (!both.is_empty()).then_some(both)
    }

    /// Whether everything in `other` is also in `self`.
    pub fn covers(&self, other: &Self) -> bool {
        self.intersection(other).as_ref() == Some(other)
    }

    /// The fewest prefixes `(address, length)` that together make up the address range, in order.
    pub fn prefixes(&self) -> Vec<(IpAddr, u8)> {
        let (width, v4) = if self.is_ipv4() { (32u32, true) } else { (128, false) };
        let (mut at, last) = (to_u128(self.start), to_u128(self.end));
        let mut out = Vec::new();
        while at <= last {
            // The largest aligned block that starts here and does not pass the end.
            let aligned = if at == 0 { width } else { at.trailing_zeros().min(width) };
            let span = last - at;
            let fits = match span.checked_add(1) {
                Some(count) => 127 - count.leading_zeros(),
                None => 128,
            };
            let bits = aligned.min(fits);
            let addr = if v4 { IpAddr::V4((at as u32).into()) } else { IpAddr::V6(at.into()) };
            out.push((addr, (width - bits) as u8));
            match 1u128.checked_shl(bits).and_then(|step| at.checked_add(step)) {
                Some(next) => at = next,
                None => break,
            }
        }
        out
    }
}

fn to_u128(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => a.into(),
    }
}

impl fmt::Display for TrafficSelector {
    /// `10.1.0.0/16`, `10.1.0.5/32[tcp/80]`, `10.0.0.1..10.0.0.9[17]`, the forms that swanctl prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefixes().as_slice() {
            [(addr, len)] => write!(f, "{addr}/{len}")?,
            _ => write!(f, "{}..{}", self.start, self.end)?,
        }
        let all_ports = self.start_port == 0 && self.end_port == u16::MAX;
        if self.protocol == 0 && all_ports {
            return Ok(());
        }
        match self.protocol {
            0 => f.write_str("[0")?,
            1 => f.write_str("[icmp")?,
            6 => f.write_str("[tcp")?,
            17 => f.write_str("[udp")?,
            58 => f.write_str("[ipv6-icmp")?,
            p => write!(f, "[{p}")?,
        }
        if self.is_opaque() {
            f.write_str("/OPAQUE")?;
        } else if !all_ports && self.start_port == self.end_port {
            write!(f, "/{}", self.start_port)?;
        } else if !all_ports {
            write!(f, "/{}-{}", self.start_port, self.end_port)?;
        }
        f.write_str("]")
    }
}

impl Serialize for TrafficSelector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for TrafficSelector {
    type Err = String;

    /// Parses `ADDR`, `ADDR/LEN`, `ADDR..ADDR` or `ADDR-ADDR`, each optionally followed by `[PROTO]` or
    /// `[PROTO/PORT]`, where PROTO is a name or number and PORT a number, a range `A-B`, `any` or `opaque`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (addrs, rest) = match text.split_once('[') {
            Some((addrs, rest)) => {
                (addrs, Some(rest.strip_suffix(']').ok_or_else(|| format!("'{text}' lacks a closing ]"))?))
            }
            None => (text, None),
        };
        let addr = |s: &str| s.trim().parse::<IpAddr>().map_err(|_| format!("'{s}' is not an IP address"));
        let mut ts = if let Some((first, last)) = addrs.split_once("..").or_else(|| addrs.split_once('-')) {
            Self { end: addr(last)?, ..Self::host(addr(first)?) }
        } else if let Some((base, len)) = addrs.split_once('/') {
            let base = addr(base)?;
            let max = if base.is_ipv4() { 32 } else { 128 };
            let len: u8 = len
                .parse()
                .ok()
                .filter(|len| *len <= max)
                .ok_or_else(|| format!("'{len}' is not a prefix length from 0 to {max}"))?;
            Self::prefix(base, len)
        } else {
            Self::host(addr(addrs)?)
        };
        if let Some(rest) = rest {
            let (proto, ports) = match rest.split_once('/') {
                Some((proto, ports)) => (proto, Some(ports)),
                None => (rest, None),
            };
            ts.protocol = parse_protocol(proto)?;
            (ts.start_port, ts.end_port) = match ports {
                None | Some("any") => (0, u16::MAX),
                Some("opaque") => (u16::MAX, 0),
                Some(ports) => {
                    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                    let port = |s: &str| s.parse::<u16>().map_err(|_| format!("'{s}' is not a port"));
                    (port(first)?, port(last)?)
                }
            };
        }
        if ts.is_empty() { Err(format!("'{text}' is an empty range")) } else { Ok(ts) }
    }
}

fn parse_protocol(text: &str) -> Result<u8, String> {
    match text {
        "any" | "" => Ok(0),
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "gre" => Ok(47),
        "icmpv6" | "ipv6-icmp" => Ok(58),
        "sctp" => Ok(132),
        other => other.parse().map_err(|_| format!("'{other}' is not a protocol name or number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(text: &str) -> TrafficSelector {
        text.parse().unwrap()
    }

    #[test]
    fn text_form_round_trips() {
        for text in [
            "10.1.0.0/16",
            "0.0.0.0/0",
            "::/0",
            "2001:db8::/32",
            "10.0.0.1..10.0.0.9",
            "10.1.0.5/32[tcp/80]",
            "192.0.2.0/24[udp/1000-2000]",
            "fe80::1/128[ipv6-icmp]",
            "10.0.0.0/8[17/OPAQUE]",
        ] {
            let text = text.replace("[17/OPAQUE]", "[udp/opaque]");
            let shown = ts(&text).to_string();
            assert_eq!(ts(&shown.replace("OPAQUE", "opaque")), ts(&text), "{text} shown as {shown}");
        }
        for bad in
            ["10.0.0.0/33", "10.0.0.9..10.0.0.1", "10.0.0.1..::1", "x", "10.0.0.1[tcp", "1.2.3.4[tcp/9-3]"]
        {
            assert!(bad.parse::<TrafficSelector>().is_err(), "{bad}");
        }
    }

    #[test]
    fn intersection_narrows_every_field() {
        let a = ts("10.0.0.0/8[tcp]");
        assert_eq!(a.intersection(&ts("10.1.0.0/16[0/80]")), Some(ts("10.1.0.0/16[tcp/80]")));
        assert_eq!(a.intersection(&ts("11.0.0.0/8")), None);
        assert_eq!(a.intersection(&ts("10.0.0.0/8[udp]")), None);
        assert_eq!(a.intersection(&ts("::/0")), None);
        assert!(ts("0.0.0.0/0").covers(&a));
        assert!(!a.covers(&ts("0.0.0.0/0")));
    }

    #[test]
    fn a_hidden_port_matches_only_selectors_that_take_every_port() {
        let addr = "10.0.0.1".parse().unwrap();
        assert!(ts("10.0.0.0/8[udp]").matches(addr, 17, None));
        assert!(!ts("10.0.0.0/8[udp/53]").matches(addr, 17, None));
        assert!(ts("10.0.0.0/8[udp/opaque]").matches(addr, 17, None));
        assert!(!ts("10.0.0.0/8[udp/opaque]").matches(addr, 17, Some(53)));
    }

    #[test]
    fn ranges_split_into_minimal_prefixes() {
        let show = |text: &str| {
            ts(text).prefixes().iter().map(|(a, l)| format!("{a}/{l}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(show("0.0.0.0/0"), "0.0.0.0/0");
        assert_eq!(show("::/0"), "::/0");
        assert_eq!(show("10.0.0.1..10.0.0.6"), "10.0.0.1/32 10.0.0.2/31 10.0.0.4/31 10.0.0.6/32");
        assert_eq!(show("255.255.255.255"), "255.255.255.255/32");
        assert_eq!(show("ffff::..ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "ffff::/16");
        assert_eq!(show("::..7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "::/1");
    }
}
