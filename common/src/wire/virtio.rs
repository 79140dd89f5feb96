//! The header that a TUN device with `IFF_VNET_HDR` puts before each packet (virtio 1.2, 5.1.6): which checksum is
//! still to be computed, and how a super-packet is to be cut into packets.
//!
//! The fields have the byte order of the machine, as legacy virtio has it and TUN devices do by default.

use super::WireError;
use super::reader::Reader;

const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// What kind of packets a super-packet is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Gso {
    /// It is a packet as it stands.
    #[default]
    None,
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP datagrams, over either family.
    Udp,
}

/// The header, less what this project has no use for (the ECN bit of segmentation is implied by the packet's CWR).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Where the checksum is still to be computed: from which octet of the packet on, and how far behind that octet
    /// the field lies. The field holds the sum over the pseudo-header.
    pub checksum: Option<(u16, u16)>,
    /// How to cut the packet.
    pub gso: Gso,
    /// Octets of headers before the payload; a hint.
    pub hdr_len: u16,
    /// Payload octets of each packet but the last.
    pub gso_size: u16,
}

impl Header {
    /// Octets of the header.
    pub const LEN: usize = 10;

    /// Reads the header in front of a packet.
    ///
    /// # Errors
    /// When it is cut short or asks for a segmentation that was never offered.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes, "a virtio header");
        let ([flags, gso], words) = (r.array::<2>()?, r.array::<8>()?);
        let word = |at: usize| u16::from_ne_bytes([words[at], words[at + 1]]);
        let gso = match gso & !GSO_ECN {
            0 => Gso::None,
            GSO_TCPV4 => Gso::TcpV4,
            GSO_TCPV6 => Gso::TcpV6,
            GSO_UDP_L4 => Gso::Udp,
            kind => {
                return Err(WireError::BadValue { what: "the kind of segmentation", value: kind.into() });
            }
        };
        let checksum = (flags & NEEDS_CSUM != 0).then(|| (word(4), word(6)));
        Ok(Self { checksum, gso, hdr_len: word(0), gso_size: word(2) })
    }

    /// The form that the device takes.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[1] = match self.gso {
            Gso::None => 0,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        out[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        out[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        if let Some((start, offset)) = self.checksum {
            out[0] = NEEDS_CSUM;
            out[6..8].copy_from_slice(&start.to_ne_bytes());
            out[8..].copy_from_slice(&offset.to_ne_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As Linux wrote it for a TCP super-packet with CWR, on a little-endian machine.
    #[cfg(target_endian = "little")]
    #[test]
    fn a_captured_header() {
        let bytes = [0x01, 0x81, 0x34, 0x00, 0x44, 0x05, 0x14, 0x00, 0x10, 0x00];
        let header = Header { checksum: Some((20, 16)), gso: Gso::TcpV4, hdr_len: 52, gso_size: 1348 };
        assert_eq!(Header::parse(&bytes), Ok(header));
        assert_eq!(header.emit()[2..], bytes[2..]);
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        // UFO, which is no longer made.
        assert!(Header::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(Header::parse(&[0; 9]).is_err());
        assert_eq!(Header::parse(&[0; 10]), Ok(Header::default()));
        assert_eq!(Header::default().emit(), [0; 10]);
    }

    proptest! {
        #[test]
        fn round_trip(checksum: Option<(u16, u16)>, kind in 0usize..4, hdr_len: u16, gso_size: u16) {
            let gso = [Gso::None, Gso::TcpV4, Gso::TcpV6, Gso::Udp][kind];
            let header = Header { checksum, gso, hdr_len, gso_size };
            prop_assert_eq!(Header::parse(&header.emit()), Ok(header));
        }
    }
}
