//! Transport mode: the IP header stays outside ESP (RFC 4303 3.1.1).
//!
//! Outside means: in the header that the system writes for our socket. What such a header cannot carry, IPv4
//! options and the IPv6 headers that belong before ESP, cannot be protected and is dropped by name.

use std::net::IpAddr;

use mobikex_common::drop::DropReason;
use mobikex_common::wire::checksum;
use mobikex_common::wire::ip::{Fragment, Ipv4Header, Ipv6Header, Packet};

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;

/// Time to Live of rebuilt headers: the outer one was consumed by the system.
const TTL: u8 = 64;

/// The part of `packet` that goes into ESP, with its protocol. IPv6 Destination Options go inside with the
/// upper layer, which RFC 4303 3.1.1 allows.
pub(super) fn split<'a>(packet: &Packet<'a>) -> Result<(u8, &'a [u8]), DropReason> {
    // ESP in transport mode applies to whole datagrams only (RFC 4303 3.3.4).
    if packet.is_fragment() {
        return Err(DropReason::OutFragment);
    }
    let bytes = packet.bytes();
    if packet.is_ipv4() {
        if packet.header_len != Ipv4Header::LEN {
            return Err(DropReason::OutHeaders);
        }
        return Ok((packet.protocol, packet.payload()));
    }
    match bytes[6] {
        HOP_BY_HOP | ROUTING => Err(DropReason::OutHeaders),
        // An atomic fragment (RFC 6946) is whole, yet its header is one of those before ESP.
        FRAGMENT => Err(DropReason::OutFragment),
        next => Ok((next, &bytes[Ipv6Header::LEN..])),
    }
}

/// Octets of the IP header that [`rebuild`] puts before the payload.
pub(super) fn header_len(src: IpAddr) -> usize {
    if src.is_ipv4() { Ipv4Header::LEN } else { Ipv6Header::LEN }
}

/// Writes the IP header into the first octets of `packet`, whose payload is in place behind it.
///
/// # Errors
/// When the addresses are of two families, the payload is too long, or `next_header` belongs before ESP.
pub(super) fn rebuild(
    packet: &mut [u8],
    src: IpAddr,
    dst: IpAddr,
    tos: u8,
    next_header: u8,
) -> Result<(), DropReason> {
    let bad = |_| DropReason::InBadInner;
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = Ipv4Header {
                tos,
                total_len: packet.len().try_into().map_err(bad)?,
                identification: 0,
                dont_fragment: true,
                fragment: Fragment::default(),
                ttl: TTL,
                protocol: next_header,
                src,
                dst,
            };
            packet[..Ipv4Header::LEN].copy_from_slice(&header.emit());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            if matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT) {
                return Err(DropReason::InBadNextHeader);
            }
            let header = Ipv6Header {
                tos,
                flow_label: 0,
                payload_len: (packet.len() - Ipv6Header::LEN).try_into().map_err(bad)?,
                next_header,
                hop_limit: TTL,
                src,
                dst,
            };
            packet[..Ipv6Header::LEN].copy_from_slice(&header.emit());
        }
        _ => return Err(DropReason::InSourceMismatch),
    }
    Ok(())
}

/// Makes the upper layer's checksum right for the addresses that the packet now has, if a NAT changed them on
/// the way (RFC 3948 3.1.2). The integrity check has vouched for the data, so the checksum is computed anew when
/// it does not fit; the sender's own addresses need not be known for that.
pub(super) fn repair_checksum(packet: &mut [u8]) {
    let Ok(seen) = Packet::parse(packet) else { return };
    let (field, min) = match seen.protocol {
        TCP => (16, 20),
        UDP => (6, 8),
        ICMPV6 => (2, 4),
        _ => return,
    };
    let (start, end, protocol) = (seen.header_len, seen.total_len, seen.protocol);
    let length = (end - start) as u32;
    if (length as usize) < min {
        return;
    }
    let pseudo = checksum::pseudo_header(seen.src, seen.dst, protocol, length);
    let upper = &mut packet[start..end];
    // UDP without a checksum (RFC 768) stays so.
    if (protocol == UDP && upper[6..8] == [0, 0]) || checksum::finish(checksum::sum(upper, pseudo)) == 0 {
        return;
    }
    upper[field..field + 2].fill(0);
    let sum = match checksum::finish(checksum::sum(upper, pseudo)) {
        // UDP sends a computed zero as ones: zero means "none".
        0 if protocol == UDP => u16::MAX,
        sum => sum,
    };
    upper[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}
