//! IPv4 (RFC 791) and IPv6 (RFC 8200): the headers, and a summary of a packet for policy lookups.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::reader::Reader;
use super::{WireError, checksum};

/// More extension headers than any honest packet has; each kind should occur once (RFC 8200 4.1).
const MAX_EXTENSION_HEADERS: usize = 16;

const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
const SCTP: u8 = 132;
const MOBILITY: u8 = 135;
const UDP_LITE: u8 = 136;

/// Where a packet lies in the datagram that it is a fragment of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fragment {
    /// Offset of the data, in octets.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
}

/// What the packet path needs to know about an IPv4 or IPv6 packet.
///
/// The checksum of an IPv4 header is left to the system's stack, which computes and verifies it on either side
/// of the packet path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// The upper-layer protocol. AH, ESP and the Mobility Header count as upper layers; in later fragments it is
    /// what the Fragment header names.
    pub protocol: u8,
    /// Octets before the upper layer: the IP header with IPv4 options or IPv6 extension headers.
    pub header_len: usize,
    /// Octets of the packet as its header tells; there may be more after it (TFC padding, RFC 4303 2.7).
    pub total_len: usize,
    /// DSCP and ECN: IPv4 Type of Service or IPv6 Traffic Class.
    pub tos: u8,
    /// Time to Live or Hop Limit.
    pub ttl: u8,
    /// Must not be fragmented on the way; always so for IPv6.
    pub dont_fragment: bool,
    /// Zero offset and no more fragments for a whole datagram.
    pub fragment: Fragment,
    /// Source and destination port; for ICMP, type and code as one number in both places; for the Mobility Header
    /// its type in the upper octet (RFC 7296 3.13.1). `None` when the packet does not show them.
    pub ports: Option<(u16, u16)>,
}

impl<'a> Packet<'a> {
    /// Looks at a packet of either family.
    ///
    /// # Errors
    /// When it is neither IPv4 nor IPv6, or a header or the packet is cut short or contradicts itself.
    // Inlined, so that what a caller does not look at is not computed: it happens for every packet, twice.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        match bytes.first().map(|b| b >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(version) => Err(WireError::BadValue { what: "the IP version", value: version.into() }),
            None => Err(WireError::Truncated { what: "an IP packet", need: 1, have: 0 }),
        }
    }

    /// The packet without anything after its end.
    pub fn bytes(&self) -> &'a [u8] {
        &self.bytes[..self.total_len]
    }

    /// The upper-layer header and its data.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_len..self.total_len]
    }

    /// True for IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.src.is_ipv4()
    }

    /// True for any fragment, also the first.
    pub fn is_fragment(&self) -> bool {
        self.fragment != Fragment::default()
    }

    #[inline(always)]
    fn parse_v4(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (header, header_len) = Ipv4Header::parse_unverified(bytes)?;
        let total_len = usize::from(header.total_len);
        Ok(Self {
            bytes,
            src: header.src.into(),
            dst: header.dst.into(),
            protocol: header.protocol,
            header_len,
            total_len,
            tos: header.tos,
            ttl: header.ttl,
            dont_fragment: header.dont_fragment,
            fragment: header.fragment,
            ports: ports(header.protocol, header.fragment, &bytes[header_len..total_len]),
        })
    }

    #[inline(never)]
    fn parse_v6(bytes: &'a [u8]) -> Result<Self, WireError> {
        let header = Ipv6Header::parse(bytes)?;
        let total_len = Ipv6Header::LEN + usize::from(header.payload_len);
        let mut r = Reader::new(&bytes[Ipv6Header::LEN..total_len], "an IPv6 extension header");
        let (mut protocol, mut fragment, mut count) = (header.next_header, Fragment::default(), 0);
        while matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) {
            count += 1;
            if count > MAX_EXTENSION_HEADERS {
                return Err(WireError::TooMany {
                    what: "IPv6 extension headers",
                    limit: MAX_EXTENSION_HEADERS,
                });
            }
            let is_fragment_header = protocol == FRAGMENT;
            let [next, length, high, low] = r.array()?;
            protocol = next;
            r.take(4)?;
            if is_fragment_header {
                let field = u16::from_be_bytes([high, low]);
                fragment = Fragment { offset: field & !7, more: field & 1 != 0 };
                // What follows in a later fragment is data, whatever its first octets look like.
                if fragment.offset != 0 {
                    break;
                }
            } else {
                r.take(usize::from(length) * 8)?;
            }
        }
        let payload = r.rest();
        Ok(Self {
            bytes,
            src: header.src.into(),
            dst: header.dst.into(),
            protocol,
            header_len: total_len - payload.len(),
            total_len,
            tos: header.tos,
            ttl: header.hop_limit,
            dont_fragment: true,
            fragment,
            ports: ports(protocol, fragment, payload),
        })
    }
}

#[inline]
fn ports(protocol: u8, fragment: Fragment, payload: &[u8]) -> Option<(u16, u16)> {
    if fragment.offset != 0 {
        return None;
    }
    match protocol {
        TCP | UDP | DCCP | SCTP | UDP_LITE => {
            let ports: &[u8; 4] = payload.first_chunk()?;
            Some((u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])))
        }
        ICMP | ICMPV6 => {
            let kind = u16::from_be_bytes(*payload.first_chunk()?);
            Some((kind, kind))
        }
        MOBILITY => {
            // Payload Proto, Header Len, MH Type (RFC 6275 6.1.1).
            let kind = u16::from(*payload.get(2)?) << 8;
            Some((kind, kind))
        }
        _ => None,
    }
}

/// An IPv4 header; options are skipped when reading and never written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv4Header {
    /// DSCP and ECN.
    pub tos: u8,
    /// Octets of the packet.
    pub total_len: u16,
    /// Identification.
    pub identification: u16,
    /// Don't Fragment.
    pub dont_fragment: bool,
    /// Fragment Offset (in octets) and More Fragments.
    pub fragment: Fragment,
    /// Time to Live.
    pub ttl: u8,
    /// Protocol.
    pub protocol: u8,
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
}

impl Ipv4Header {
    /// Octets of a header without options.
    pub const LEN: usize = 20;

    /// Reads the header of a packet, verifies its checksum and returns it with its length, options included.
    ///
    /// # Errors
    /// When the packet is cut short, a length contradicts another, or the checksum is wrong.
    pub fn parse(packet: &[u8]) -> Result<(Self, usize), WireError> {
        let (header, len) = Self::parse_unverified(packet)?;
        match checksum::finish(checksum::sum(&packet[..len], 0)) {
            0 => Ok((header, len)),
            value => Err(WireError::BadValue { what: "the sum over the IPv4 header", value: value.into() }),
        }
    }

    #[inline(always)]
    fn parse_unverified(packet: &[u8]) -> Result<(Self, usize), WireError> {
        let have = packet.len();
        let short = |need| WireError::Truncated { what: "an IPv4 packet", need, have };
        // All of it at once: this is done for every packet.
        let header: &[u8; Self::LEN] = packet.first_chunk().ok_or(short(Self::LEN))?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let addr = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        if header[0] >> 4 != 4 {
            return Err(WireError::BadValue { what: "the IP version", value: (header[0] >> 4).into() });
        }
        let header_len = usize::from(header[0] & 15) * 4;
        let (total_len, fragment) = (word(2), word(6));
        let length = usize::from(total_len);
        if header_len < Self::LEN || length < header_len {
            return Err(WireError::BadLength { what: "an IPv4 header", length: header_len });
        }
        if have < length {
            return Err(short(length));
        }
        let header = Self {
            tos: header[1],
            total_len,
            identification: word(4),
            dont_fragment: fragment & 0x4000 != 0,
            fragment: Fragment { offset: (fragment & 0x1fff) << 3, more: fragment & 0x2000 != 0 },
            ttl: header[8],
            protocol: header[9],
            src: addr(12),
            dst: addr(16),
        };
        Ok((header, header_len))
    }

    /// Network form, with its checksum. The lower three bits of the fragment's offset do not exist on the wire.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0] = 0x45;
        out[1] = self.tos;
        out[2..4].copy_from_slice(&self.total_len.to_be_bytes());
        out[4..6].copy_from_slice(&self.identification.to_be_bytes());
        let fragment = u16::from(self.dont_fragment) << 14
            | u16::from(self.fragment.more) << 13
            | self.fragment.offset >> 3;
        out[6..8].copy_from_slice(&fragment.to_be_bytes());
        out[8] = self.ttl;
        out[9] = self.protocol;
        out[12..16].copy_from_slice(&self.src.octets());
        out[16..].copy_from_slice(&self.dst.octets());
        let sum = checksum::finish(checksum::sum(&out, 0));
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        out
    }
}

/// An IPv6 header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ipv6Header {
    /// Traffic Class: DSCP and ECN.
    pub tos: u8,
    /// Flow Label, 20 bits.
    pub flow_label: u32,
    /// Octets after this header, extension headers included.
    pub payload_len: u16,
    /// Type of what follows.
    pub next_header: u8,
    /// Hop Limit.
    pub hop_limit: u8,
    /// Source address.
    pub src: Ipv6Addr,
    /// Destination address.
    pub dst: Ipv6Addr,
}

impl Ipv6Header {
    /// Octets of the header.
    pub const LEN: usize = 40;

    /// Reads the header of a packet. Jumbograms (RFC 2675) have no place on our links and end as a packet without
    /// payload, whose Hop-by-Hop header is missing.
    ///
    /// # Errors
    /// When the packet is not IPv6 or shorter than it says.
    pub fn parse(packet: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(packet, "an IPv6 packet");
        let first = r.u32()?;
        if first >> 28 != 6 {
            return Err(WireError::BadValue { what: "the IP version", value: (first >> 28).into() });
        }
        let header = Self {
            tos: (first >> 20) as u8,
            flow_label: first & 0xf_ffff,
            payload_len: r.u16()?,
            next_header: r.u8()?,
            hop_limit: r.u8()?,
            src: r.array::<16>()?.into(),
            dst: r.array::<16>()?.into(),
        };
        r.take(usize::from(header.payload_len))?;
        Ok(header)
    }

    /// Network form. Bits of the flow label above the 20th are left out.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let first = 6 << 28 | u32::from(self.tos) << 20 | self.flow_label & 0xf_ffff;
        out[..4].copy_from_slice(&first.to_be_bytes());
        out[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
        out[6] = self.next_header;
        out[7] = self.hop_limit;
        out[8..24].copy_from_slice(&self.src.octets());
        out[24..].copy_from_slice(&self.dst.octets());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use proptest::prelude::*;

    /// A UDP packet from 192.168.0.1:32768 to 192.168.0.199:53, header checksum as sent.
    const V4: [u8; 32] =
        hex!("45b8 0020 1234 4000 4011 a5c8 c0a8 0001 c0a8 00c7 8000 0035 000c 0000 01020304");

    fn v6(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let header = Ipv6Header {
            tos: 0xb9,
            flow_label: 0xabcde,
            payload_len: payload.len() as u16,
            next_header,
            hop_limit: 63,
            src: "2001:db8::1".parse().unwrap(),
            dst: "2001:db8::2".parse().unwrap(),
        };
        [&header.emit()[..], payload].concat()
    }

    #[test]
    fn an_ipv4_packet_shows_its_fields() {
        let mut padded = V4.to_vec();
        padded.extend_from_slice(&[0; 9]);
        let packet = Packet::parse(&padded).unwrap();
        assert_eq!(packet.src, IpAddr::from([192, 168, 0, 1]));
        assert_eq!(packet.dst, IpAddr::from([192, 168, 0, 199]));
        assert_eq!((packet.protocol, packet.ports), (17, Some((32768, 53))));
        assert_eq!((packet.header_len, packet.total_len, packet.tos, packet.ttl), (20, 32, 0xb8, 64));
        assert!(packet.dont_fragment && !packet.is_fragment() && packet.is_ipv4());
        assert_eq!(packet.bytes(), V4);
        assert_eq!(packet.payload(), &V4[20..]);
        assert_eq!(Ipv4Header::parse(&V4).unwrap().0.emit(), V4[..20]);
    }

    #[test]
    fn ipv4_options_are_skipped_and_cut_packets_refused() {
        let mut with_options = V4.to_vec();
        with_options[0] = 0x46;
        with_options[3] = 36;
        with_options.splice(20..20, [1, 1, 1, 0]);
        let packet = Packet::parse(&with_options).unwrap();
        assert_eq!((packet.header_len, packet.ports), (24, Some((32768, 53))));
        for cut in 0..V4.len() {
            assert!(Packet::parse(&V4[..cut]).is_err());
        }
        let mut bad = V4;
        bad[0] = 0x44;
        assert!(Packet::parse(&bad).is_err());
        bad[0] = 0x4f;
        assert!(Packet::parse(&bad).is_err());
        bad[0] = 0x55;
        assert_eq!(Packet::parse(&bad), Err(WireError::BadValue { what: "the IP version", value: 5 }));
        let mut bad = V4;
        bad[8] ^= 1;
        assert!(Ipv4Header::parse(&bad).is_err());
        assert!(Packet::parse(&bad).is_ok());
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut fragment = V4;
        fragment[6..8].copy_from_slice(&hex!("2003"));
        let packet = Packet::parse(&fragment).unwrap();
        assert_eq!(packet.fragment, Fragment { offset: 24, more: true });
        assert_eq!((packet.ports, packet.dont_fragment, packet.is_fragment()), (None, false, true));
        fragment[6..8].copy_from_slice(&hex!("2000"));
        let packet = Packet::parse(&fragment).unwrap();
        assert_eq!(packet.ports, Some((32768, 53)));
        assert!(packet.is_fragment());
    }

    #[test]
    fn icmp_shows_type_and_code() {
        let packet = v6(58, &hex!("80 00 0000 0001 0002"));
        assert_eq!(Packet::parse(&packet).unwrap().ports, Some((0x8000, 0x8000)));
        let mut packet = V4;
        packet[9] = 1;
        packet[20..22].copy_from_slice(&[3, 4]);
        assert_eq!(Packet::parse(&packet).unwrap().ports, Some((0x0304, 0x0304)));
        let packet = v6(135, &hex!("3b 01 05 00 0000 0000"));
        assert_eq!(Packet::parse(&packet).unwrap().ports, Some((0x0500, 0x0500)));
    }

    #[test]
    fn ipv6_extension_headers_are_walked() {
        // Hop-by-Hop (8), Routing (16), Destination Options (8), then TCP.
        let chain = hex!(
            "2b 00 05 02 0000 0100" "3c 01 00 00 0000 0000 0000 0000 0000 0000" "06 00 01 04 0000 0000"
            "01bb 0050 0000 0000"
        );
        let bytes = v6(0, &chain);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.protocol, packet.header_len, packet.ports), (6, 40 + 32, Some((443, 80))));
        assert_eq!((packet.tos, packet.ttl, packet.total_len), (0xb9, 63, bytes.len()));
        for cut in 0..bytes.len() {
            assert!(Packet::parse(&bytes[..cut]).is_err());
        }
        // A length that runs over the packet's end.
        assert!(Packet::parse(&v6(0, &hex!("06 05 05 02 0000 0100"))).is_err());
        assert!(Packet::parse(&v6(0, &[])).is_err());
        assert!(matches!(
            Packet::parse(&v6(60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(40))),
            Err(WireError::TooMany { .. })
        ));
    }

    #[test]
    fn ipv6_fragments_stop_the_walk() {
        let first = v6(44, &hex!("11 00 0001 00000007" "1194 1194 0100 0000"));
        let packet = Packet::parse(&first).unwrap();
        assert_eq!(packet.fragment, Fragment { offset: 0, more: true });
        assert_eq!((packet.protocol, packet.header_len, packet.ports), (17, 48, Some((4500, 4500))));
        let later = v6(44, &hex!("3c 00 0108 00000007" "ffff ffff"));
        let packet = Packet::parse(&later).unwrap();
        assert_eq!(packet.fragment, Fragment { offset: 264, more: false });
        assert_eq!((packet.protocol, packet.header_len, packet.ports), (60, 48, None));
    }

    #[test]
    fn too_little_data_shows_no_ports() {
        assert_eq!(Packet::parse(&v6(17, &[1, 2, 3])).unwrap().ports, None);
        assert_eq!(Packet::parse(&v6(58, &[1])).unwrap().ports, None);
        assert_eq!(Packet::parse(&v6(59, &[])).unwrap().ports, None);
    }

    proptest! {
        #[test]
        fn random_octets_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), six: bool) {
            if let Some(first) = bytes.first_mut() {
                *first = if six { 0x60 } else { 0x45 };
            }
            if bytes.len() > 6 && six {
                bytes[4] = 0;
                bytes[6] = [0, 43, 44, 60][usize::from(bytes[6] % 4)];
            } else if bytes.len() > 3 {
                bytes[2] = 0;
            }
            if let Ok(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.header_len <= packet.total_len && packet.total_len <= bytes.len());
                prop_assert_eq!(packet.payload().len(), packet.total_len - packet.header_len);
            }
        }

        #[test]
        fn ipv4_headers_round_trip(
            tos: u8, identification: u16, dont_fragment: bool, more: bool, offset in 0u16..0x2000, ttl: u8,
            protocol: u8, src: u32, dst: u32,
        ) {
            let header = Ipv4Header {
                tos, total_len: 20, identification, dont_fragment, fragment: Fragment { offset: offset << 3, more },
                ttl, protocol, src: src.into(), dst: dst.into(),
            };
            prop_assert_eq!(Ipv4Header::parse(&header.emit()), Ok((header, 20)));
        }

        #[test]
        fn ipv6_headers_round_trip(
            tos: u8, flow_label in 0u32..0x10_0000, next_header: u8, hop_limit: u8, src: u128, dst: u128,
        ) {
            let header = Ipv6Header {
                tos, flow_label, payload_len: 0, next_header, hop_limit, src: src.into(), dst: dst.into(),
            };
            prop_assert_eq!(Ipv6Header::parse(&header.emit()), Ok(header));
        }
    }
}
