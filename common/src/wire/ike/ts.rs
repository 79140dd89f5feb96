//! Traffic Selector payloads (RFC 7296 3.13).

use std::net::IpAddr;

use crate::ts::TrafficSelector;
use crate::wire::WireError;
use crate::wire::reader::Reader;

const MAX_SELECTORS: usize = 64;
const TS_IPV4_ADDR_RANGE: u8 = 7;
const TS_IPV6_ADDR_RANGE: u8 = 8;

/// Selectors of types that we do not know are left out: they can only make the result narrower.
pub(super) fn parse(body: &[u8]) -> Result<Vec<TrafficSelector>, WireError> {
    let mut r = Reader::new(body, "a traffic selector payload");
    let count = usize::from(r.u8()?);
    r.take(3)?;
    if count > MAX_SELECTORS {
        return Err(WireError::TooMany { what: "traffic selectors", limit: MAX_SELECTORS });
    }
    let mut out = Vec::new();
    for _ in 0..count {
        let kind = r.u8()?;
        let protocol = r.u8()?;
        let length = r.u16()?;
        let body = r.body(length, 4)?;
        let mut s = Reader::new(body, "a traffic selector");
        let (start_port, end_port) = (s.u16()?, s.u16()?);
        let (start, end) = match kind {
            TS_IPV4_ADDR_RANGE => (IpAddr::from(s.array::<4>()?), IpAddr::from(s.array::<4>()?)),
            TS_IPV6_ADDR_RANGE => (IpAddr::from(s.array::<16>()?), IpAddr::from(s.array::<16>()?)),
            _ => continue,
        };
        if !s.is_empty() {
            return Err(WireError::BadLength { what: "a traffic selector", length: usize::from(length) });
        }
        let selector = TrafficSelector { protocol, start_port, end_port, start, end };
        if selector.is_empty() {
            return Err(WireError::BadValue {
                what: "a traffic selector's range",
                value: u64::from(start_port),
            });
        }
        out.push(selector);
    }
    if !r.is_empty() {
        return Err(WireError::BadLength { what: "a traffic selector payload", length: body.len() });
    }
    Ok(out)
}

pub(super) fn emit(selectors: &[TrafficSelector]) -> Vec<u8> {
    let mut out = vec![selectors.len() as u8, 0, 0, 0];
    for s in selectors {
        let (kind, length) = if s.is_ipv4() { (TS_IPV4_ADDR_RANGE, 16u16) } else { (TS_IPV6_ADDR_RANGE, 40) };
        out.extend_from_slice(&[kind, s.protocol]);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&s.start_port.to_be_bytes());
        out.extend_from_slice(&s.end_port.to_be_bytes());
        for addr in [s.start, s.end] {
            match addr {
                IpAddr::V4(a) => out.extend_from_slice(&a.octets()),
                IpAddr::V6(a) => out.extend_from_slice(&a.octets()),
            }
        }
    }
    out
}
