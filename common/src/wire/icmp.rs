//! The two ICMP errors that a tunnel must send: the packet does not fit (RFC 1191 4, RFC 4443 3.2); and the one that it
//! may hear of its own packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum;
use super::ip::{Fragment, Ipv4Header, Ipv6Header, Packet};
use super::reader::Reader;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ICMP_LEN: usize = 8;
/// Longest ICMP error: RFC 1812 4.3.2.3 for IPv4, the minimum MTU for IPv6 (RFC 4443 3.2).
const MAX_LEN_V4: usize = 576;
const MAX_LEN_V6: usize = 1280;
/// "Internetwork control", as routers' errors are marked (RFC 1812 4.3.2.5).
const TOS: u8 = 0xc0;

/// Whether an ICMP error may be sent about a packet: it is whole or a first fragment, no ICMP error itself, and its
/// source is a single host (RFC 1122 3.2.2, RFC 4443 2.4 e).
pub fn may_answer(original: &Packet<'_>) -> bool {
    let one_host = match original.src {
        IpAddr::V4(a) => !(a.is_unspecified() || a.is_multicast() || a.is_broadcast() || a.is_loopback()),
        IpAddr::V6(a) => !(a.is_unspecified() || a.is_multicast() || a.is_loopback()),
    };
    // Packet Too Big is the one error that multicast may cause in IPv6 (RFC 4443 2.4 e.3).
    let multicast_v4 = matches!(original.dst, IpAddr::V4(a) if a.is_multicast() || a.is_broadcast());
    let kind = original.ports.map(|(kind, _)| (kind >> 8) as u8);
    let is_error = match original.protocol {
        // Destination Unreachable, Source Quench, Redirect, Time Exceeded, Parameter Problem.
        ICMP => kind.is_none_or(|k| matches!(k, 3 | 4 | 5 | 11 | 12)),
        // Everything below 128, and Redirect.
        ICMPV6 => kind.is_none_or(|k| k < 128 || k == 137),
        _ => false,
    };
    one_host && !multicast_v4 && !is_error && original.fragment.offset == 0
}

/// A whole IPv4 packet from `from` to the source of `original`: Destination Unreachable, fragmentation needed and
/// DF set, with the next-hop MTU (RFC 1191 4). Empty when no error may be sent about `original`.
pub fn frag_needed_v4(mtu: u16, original: &[u8], from: Ipv4Addr) -> Vec<u8> {
    let Ok(packet) = Packet::parse(original) else { return Vec::new() };
    let IpAddr::V4(dst) = packet.src else { return Vec::new() };
    if !may_answer(&packet) {
        return Vec::new();
    }
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend_from_slice(&mtu.to_be_bytes());
    message.extend_from_slice(quote(&packet, MAX_LEN_V4 - Ipv4Header::LEN - ICMP_LEN));
    let sum = checksum::finish(checksum::sum(&message, 0));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let header = Ipv4Header {
        tos: TOS,
        total_len: (Ipv4Header::LEN + message.len()) as u16,
        // An atomic datagram needs no identification (RFC 6864 4.1).
        identification: 0,
        dont_fragment: true,
        fragment: Fragment::default(),
        ttl: 64,
        protocol: ICMP,
        src: from,
        dst,
    };
    [&header.emit()[..], &message].concat()
}

/// A whole IPv6 packet from `from` to the source of `original`: Packet Too Big (RFC 4443 3.2). Empty when no error
/// may be sent about `original`.
pub fn packet_too_big_v6(mtu: u16, original: &[u8], from: Ipv6Addr) -> Vec<u8> {
    let Ok(packet) = Packet::parse(original) else { return Vec::new() };
    let IpAddr::V6(dst) = packet.src else { return Vec::new() };
    if !may_answer(&packet) {
        return Vec::new();
    }
    let mut message = vec![2, 0, 0, 0];
    message.extend_from_slice(&u32::from(mtu).to_be_bytes());
    message.extend_from_slice(quote(&packet, MAX_LEN_V6 - Ipv6Header::LEN - ICMP_LEN));
    let pseudo = checksum::pseudo_header(from.into(), dst.into(), ICMPV6, message.len() as u32);
    let sum = checksum::finish(checksum::sum(&message, pseudo));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let header = Ipv6Header {
        tos: TOS,
        flow_label: 0,
        payload_len: message.len() as u16,
        next_header: ICMPV6,
        hop_limit: 64,
        src: from,
        dst,
    };
    [&header.emit()[..], &message].concat()
}

fn quote<'a>(packet: &Packet<'a>, limit: usize) -> &'a [u8] {
    let bytes = packet.bytes();
    &bytes[..bytes.len().min(limit)]
}

/// What an ICMP error quotes of a packet that did not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undelivered {
    /// Its source.
    pub src: IpAddr,
    /// Its destination.
    pub dst: IpAddr,
    /// Its protocol.
    pub protocol: u8,
    /// What follows its IP header: the source port, if the protocol has ports.
    pub src_port: u16,
    /// The destination port likewise.
    pub dst_port: u16,
}

/// Reads Destination Unreachable (RFC 792, RFC 4443 3.1); `None` for anything else. That a packet is too big does not
/// count. As little is quoted as routers see fit, and nothing of it is proven.
pub fn undelivered(message: &[u8], ipv4: bool) -> Option<Undelivered> {
    let mut r = Reader::new(message, "an ICMP error");
    let (kind, code) = (r.u8().ok()?, r.u8().ok()?);
    r.take(ICMP_LEN - 2).ok()?;
    let first = r.u8().ok()?;
    let (src, dst, protocol): (IpAddr, IpAddr, u8) = match (ipv4, kind, code, first >> 4) {
        // 4: fragmentation needed.
        (true, 3, code, 4) if code != 4 => {
            let options = usize::from(first & 15).checked_sub(Ipv4Header::LEN / 4)? * 4;
            r.take(5).ok()?;
            let later_fragment = r.u16().ok()? & 0x1fff != 0;
            r.u8().ok()?;
            let protocol = r.u8().ok()?;
            r.u16().ok()?;
            let (src, dst) = (r.array::<4>().ok()?.into(), r.array::<4>().ok()?.into());
            r.take(options).ok()?;
            (!later_fragment).then_some((src, dst, protocol))?
        }
        (false, 1, _, 6) => {
            r.take(5).ok()?;
            let protocol = r.u8().ok()?;
            r.u8().ok()?;
            (r.array::<16>().ok()?.into(), r.array::<16>().ok()?.into(), protocol)
        }
        _ => return None,
    };
    Some(Undelivered { src, dst, protocol, src_port: r.u16().ok()?, dst_port: r.u16().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    fn udp_v4(len: u16) -> Vec<u8> {
        let header = Ipv4Header {
            tos: 0,
            total_len: len,
            identification: 7,
            dont_fragment: true,
            fragment: Fragment::default(),
            ttl: 64,
            protocol: 17,
            src: Ipv4Addr::new(10, 1, 0, 5),
            dst: Ipv4Addr::new(10, 2, 0, 6),
        };
        let mut packet = header.emit().to_vec();
        packet.resize(usize::from(len), 0xaa);
        packet
    }

    fn udp_v6(len: u16) -> Vec<u8> {
        let header = Ipv6Header {
            tos: 0,
            flow_label: 0,
            payload_len: len,
            next_header: 17,
            hop_limit: 64,
            src: "2001:db8::5".parse().unwrap(),
            dst: "2001:db8::6".parse().unwrap(),
        };
        let mut packet = header.emit().to_vec();
        packet.resize(40 + usize::from(len), 0xaa);
        packet
    }

    #[test]
    fn an_error_tells_which_packet_did_not_arrive() {
        let mut packet = udp_v4(1500);
        packet[20..24].copy_from_slice(&hex!("1194 01f4"));
        let error = |kind: u8, code: u8, quoted: &[u8]| [&[kind, code, 0, 0, 0, 0, 0, 0], quoted].concat();
        let v4 = Undelivered {
            src: "10.1.0.5".parse().unwrap(),
            dst: "10.2.0.6".parse().unwrap(),
            protocol: 17,
            src_port: 4500,
            dst_port: 500,
        };
        // Eight octets after the header are all that must be there.
        assert_eq!(undelivered(&error(3, 3, &packet[..28]), true), Some(v4));
        for len in 0..24 {
            assert_eq!(undelivered(&error(3, 3, &packet[..len]), true), None);
        }
        // An echo reply, too big, time exceeded; the other family's numbers; a later fragment.
        for (kind, code) in [(0, 0), (3, 4), (11, 0), (1, 0)] {
            assert_eq!(undelivered(&error(kind, code, &packet), true), None);
        }
        assert_eq!(undelivered(&error(3, 3, &packet), false), None);
        let mut fragment = packet.clone();
        fragment[7] = 1;
        assert_eq!(undelivered(&error(3, 1, &fragment), true), None);
        let mut options = packet.clone();
        options[0] = 0x46;
        options.splice(20..20, [1, 1, 1, 1]);
        assert_eq!(undelivered(&error(3, 1, &options), true), Some(v4));
        options[0] = 0x44;
        assert_eq!(undelivered(&error(3, 1, &options), true), None);

        let mut packet = udp_v6(8);
        packet[40..44].copy_from_slice(&hex!("01f4 1194"));
        let v6 = Undelivered {
            src: "2001:db8::5".parse().unwrap(),
            dst: "2001:db8::6".parse().unwrap(),
            protocol: 17,
            src_port: 500,
            dst_port: 4500,
        };
        assert_eq!(undelivered(&error(1, 4, &packet), false), Some(v6));
        assert_eq!(undelivered(&error(2, 0, &packet), false), None);
    }

    #[test]
    fn ipv4_says_the_mtu_and_quotes_the_packet() {
        let original = udp_v4(1500);
        let error = frag_needed_v4(1400, &original, Ipv4Addr::new(10, 1, 0, 1));
        let (header, len) = Ipv4Header::parse(&error).unwrap();
        assert_eq!((header.dst, header.src), (Ipv4Addr::new(10, 1, 0, 5), Ipv4Addr::new(10, 1, 0, 1)));
        assert_eq!((error.len(), usize::from(header.total_len)), (576, 576));
        assert_eq!(checksum::finish(checksum::sum(&error[len..], 0)), 0);
        assert_eq!(
            (&error[len..len + 2], &error[len + 4..len + 8]),
            (&hex!("0304")[..], &hex!("0000 0578")[..])
        );
        assert_eq!(&error[len + 8..], &original[..548]);
    }

    #[test]
    fn ipv6_says_the_mtu_and_quotes_the_packet() {
        let original = udp_v6(1460);
        let from = "2001:db8::1".parse().unwrap();
        let error = packet_too_big_v6(1400, &original, from);
        let packet = Packet::parse(&error).unwrap();
        assert_eq!((packet.src, packet.dst), (from.into(), "2001:db8::5".parse().unwrap()));
        assert_eq!((error.len(), packet.total_len, packet.ports), (1280, 1280, Some((0x0200, 0x0200))));
        let pseudo = checksum::pseudo_header(packet.src, packet.dst, 58, 1240);
        assert_eq!(checksum::finish(checksum::sum(packet.payload(), pseudo)), 0);
        assert_eq!(&error[44..48], hex!("0000 0578"));
        assert_eq!(&error[48..], &original[..1232]);
        // Short packets are quoted whole, without what follows them.
        let mut original = udp_v6(100);
        original.extend_from_slice(&[0; 50]);
        assert_eq!(packet_too_big_v6(1280, &original, from).len(), 40 + 8 + 140);
    }

    #[test]
    fn no_error_about_errors_fragments_or_groups() {
        let from = Ipv4Addr::new(10, 1, 0, 1);
        let silent = |packet: &[u8]| frag_needed_v4(1400, packet, from).is_empty();
        let good = udp_v4(1500);
        assert!(!silent(&good));
        let with = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet[at] = value;
            packet
        };
        assert!(silent(&with(7, 1)), "a later fragment");
        assert!(silent(&with(16, 224)), "to a group");
        assert!(silent(&with(12, 224)), "from a group");
        let mut icmp = with(9, 1);
        icmp[20] = 3;
        assert!(silent(&icmp), "an ICMP error");
        icmp[20] = 8;
        assert!(!silent(&icmp), "an echo request");
        assert!(silent(&udp_v6(100)) && silent(&[]) && silent(&good[..30]));
        let mut icmp = udp_v6(1460);
        icmp[6] = 58;
        icmp[40] = 2;
        assert!(packet_too_big_v6(1280, &icmp, "2001:db8::1".parse().unwrap()).is_empty());
        icmp[40] = 128;
        icmp[24] = 0xff;
        assert!(!packet_too_big_v6(1280, &icmp, "2001:db8::1".parse().unwrap()).is_empty());
        assert!(packet_too_big_v6(1280, &good, "2001:db8::1".parse().unwrap()).is_empty());
    }
}
