//! The clear part of ESP (RFC 4303 2.1, 2.2) and what else shares UDP port 4500 with it (RFC 3948 2).

use super::WireError;
use super::reader::Reader;
use crate::spi::Spi;

/// The protocol number of ESP.
pub const PROTOCOL: u8 = 50;
/// Next Header of a tunnelled IPv4 packet (RFC 4303 2.6).
pub const NEXT_HEADER_IPV4: u8 = 4;
/// Next Header of a tunnelled IPv6 packet.
pub const NEXT_HEADER_IPV6: u8 = 41;
/// Next Header of a dummy packet (RFC 4303 2.6).
pub const NEXT_HEADER_DUMMY: u8 = 59;
/// Next Header of an AGGFRAG payload (RFC 9347 6.1), of which an [`echo`](super::echo) is one.
pub const NEXT_HEADER_AGGFRAG: u8 = 144;
/// Octets of the trailer after the padding: Pad Length and Next Header (RFC 4303 2).
pub const TRAILER_LEN: usize = 2;
/// What precedes an IKE message on port 4500: the place where ESP has an SPI that is never zero (RFC 3948 2.2).
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];
/// The only octet of a NAT-keepalive packet (RFC 3948 2.3).
pub const KEEPALIVE: u8 = 0xff;

/// The header of an ESP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Security Parameters Index.
    pub spi: Spi,
    /// Sequence Number; with ESN its low half.
    pub seq: u32,
}

impl Header {
    /// Octets of the header.
    pub const LEN: usize = 8;

    /// Reads the header at the front of an ESP packet.
    ///
    /// # Errors
    /// When the packet is shorter than a header.
    pub fn parse(packet: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(packet, "the ESP header");
        Ok(Self { spi: Spi(r.u32()?), seq: r.u32()? })
    }

    /// Network form.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..4].copy_from_slice(&self.spi.to_be_bytes());
        out[4..].copy_from_slice(&self.seq.to_be_bytes());
        out
    }
}

/// What a UDP payload on port 4500 is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Datagram<'a> {
    /// An IKE message: what follows the non-ESP marker.
    Ike(&'a [u8]),
    /// An ESP packet, at least a header long.
    Esp,
    /// A NAT keepalive, to be ignored.
    Keepalive,
    /// Too short to be any of these.
    Short,
}

/// Tells the packets on port 4500 apart (RFC 3948 2).
pub fn classify(udp_payload: &[u8]) -> Datagram<'_> {
    match udp_payload {
        [KEEPALIVE] => Datagram::Keepalive,
        [0, 0, 0, 0, message @ ..] => Datagram::Ike(message),
        packet if packet.len() >= Header::LEN => Datagram::Esp,
        _ => Datagram::Short,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn port_4500_is_shared_by_three() {
        assert_eq!(classify(&[0xff]), Datagram::Keepalive);
        assert_eq!(classify(&[0xff, 0xff]), Datagram::Short);
        assert_eq!(classify(&[]), Datagram::Short);
        assert_eq!(classify(&[0, 0, 0]), Datagram::Short);
        assert_eq!(classify(&[0, 0, 0, 0]), Datagram::Ike(&[]));
        assert_eq!(classify(&[0, 0, 0, 0, 7]), Datagram::Ike(&[7]));
        assert_eq!(classify(&[0, 0, 0, 1, 0, 0, 0]), Datagram::Short);
        assert_eq!(classify(&[0, 0, 0, 1, 0, 0, 0, 1]), Datagram::Esp);
    }

    #[test]
    fn a_cut_header_is_refused() {
        assert_eq!(
            Header::parse(&[1, 2, 3, 4, 5]),
            Err(WireError::Truncated { what: "the ESP header", need: 4, have: 1 })
        );
    }

    proptest! {
        #[test]
        fn round_trip(spi: u32, seq: u32, rest in proptest::collection::vec(any::<u8>(), 0..9)) {
            let header = Header { spi: Spi(spi), seq };
            let packet = [&header.emit()[..], &rest].concat();
            prop_assert_eq!(Header::parse(&packet), Ok(header));
            prop_assert_eq!(classify(&packet) == Datagram::Esp, spi != 0);
        }
    }
}
