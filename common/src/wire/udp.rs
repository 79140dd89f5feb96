//! UDP (RFC 768).

use std::net::IpAddr;

use super::reader::Reader;
use super::{WireError, checksum};

/// The protocol number of UDP.
pub const PROTOCOL: u8 = 17;

/// A UDP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Octets of header and data.
    pub length: u16,
    /// Checksum; zero when the sender computed none (RFC 768, RFC 3948 2.1).
    pub checksum: u16,
}

impl Header {
    /// Octets of the header.
    pub const LEN: usize = 8;

    /// Reads the header of a datagram, which may have octets after its end.
    ///
    /// # Errors
    /// When `datagram` is shorter than a header or than the length field, or that is less than a header.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(datagram, "a UDP datagram");
        let header = Self { src_port: r.u16()?, dst_port: r.u16()?, length: r.u16()?, checksum: r.u16()? };
        let length = usize::from(header.length);
        if length < Self::LEN {
            return Err(WireError::BadLength { what: "a UDP datagram", length });
        }
        r.take(length - Self::LEN)?;
        Ok(header)
    }

    /// Network form.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..2].copy_from_slice(&self.src_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        out[4..6].copy_from_slice(&self.length.to_be_bytes());
        out[6..].copy_from_slice(&self.checksum.to_be_bytes());
        out
    }
}

/// The checksum field of a datagram (header with a zero checksum, and data). A computed zero is sent as all ones,
/// because zero means "none" (RFC 768).
pub fn checksum(src: IpAddr, dst: IpAddr, datagram: &[u8]) -> u16 {
    let pseudo = checksum::pseudo_header(src, dst, PROTOCOL, datagram.len() as u32);
    match checksum::finish(checksum::sum(datagram, pseudo)) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use proptest::prelude::*;

    #[test]
    fn lengths_are_checked() {
        let datagram = hex!("1194 1194 0009 0000 ff");
        let header = Header::parse(&datagram).unwrap();
        assert_eq!(header, Header { src_port: 4500, dst_port: 4500, length: 9, checksum: 0 });
        assert!(Header::parse(&datagram[..8]).is_err());
        assert!(Header::parse(&datagram[..7]).is_err());
        assert!(Header::parse(&hex!("1194 1194 0007 0000")).is_err());
    }

    #[test]
    fn a_zero_checksum_is_sent_as_all_ones() {
        let unspecified = "0.0.0.0".parse().unwrap();
        // 17 (protocol) + 10 (pseudo length) + 10 (length) + data = 0xffff.
        let datagram = hex!("0000 0000 000a 0000 ffda");
        assert_eq!(checksum(unspecified, unspecified, &datagram), 0xffff);
        let datagram = hex!("0000 0000 000a 0000 ffd9");
        assert_eq!(checksum(unspecified, unspecified, &datagram), 1);
    }

    proptest! {
        #[test]
        fn round_trip(src_port: u16, dst_port: u16, checksum: u16, data in proptest::collection::vec(any::<u8>(), 0..40)) {
            let header = Header { src_port, dst_port, length: (8 + data.len()) as u16, checksum };
            let datagram = [&header.emit()[..], &data].concat();
            prop_assert_eq!(Header::parse(&datagram), Ok(header));
        }

        #[test]
        fn random_octets_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = Header::parse(&bytes);
        }
    }
}
