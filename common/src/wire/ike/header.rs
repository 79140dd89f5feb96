//! The IKE header (RFC 7296 3.1).

use super::{ExchangeType, PayloadType};
use crate::spi::IkeSpi;
use crate::wire::WireError;
use crate::wire::reader::Reader;

/// The flags that mean something in IKEv2; all others are sent as zero and ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    /// The sender is the original initiator of the IKE SA.
    pub initiator: bool,
    /// The sender could speak a higher major version.
    pub higher_version: bool,
    /// This is a response.
    pub response: bool,
}

/// The fixed header of every message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// SPI of the original initiator.
    pub initiator_spi: IkeSpi,
    /// SPI of the original responder; zero in a first request.
    pub responder_spi: IkeSpi,
    /// Type of the first payload.
    pub next_payload: PayloadType,
    /// Major version; the caller judges it.
    pub major: u8,
    /// Minor version.
    pub minor: u8,
    /// Exchange type.
    pub exchange: ExchangeType,
    /// Flags.
    pub flags: Flags,
    /// Message ID.
    pub message_id: u32,
    /// Octets of the whole message.
    pub length: u32,
}

impl Header {
    /// Octets of the header.
    pub const LEN: usize = 28;

    /// Reads the header of a datagram.
    ///
    /// # Errors
    /// When the datagram is shorter than a header or its length field is not the datagram's length.
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(datagram, "the IKE header");
        let (initiator_spi, responder_spi) = (IkeSpi(r.u64()?), IkeSpi(r.u64()?));
        let next_payload = PayloadType(r.u8()?);
        let version = r.u8()?;
        let exchange = ExchangeType(r.u8()?);
        let flags = r.u8()?;
        let (message_id, length) = (r.u32()?, r.u32()?);
        if length as usize != datagram.len() {
            return Err(WireError::BadLength { what: "the IKE header", length: length as usize });
        }
        Ok(Self {
            initiator_spi,
            responder_spi,
            next_payload,
            major: version >> 4,
            minor: version & 15,
            exchange,
            flags: Flags {
                initiator: flags & 0x08 != 0,
                higher_version: flags & 0x10 != 0,
                response: flags & 0x20 != 0,
            },
            message_id,
            length,
        })
    }

    /// Network form.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..8].copy_from_slice(&self.initiator_spi.to_be_bytes());
        out[8..16].copy_from_slice(&self.responder_spi.to_be_bytes());
        out[16] = self.next_payload.0;
        out[17] = self.major << 4 | self.minor & 15;
        out[18] = self.exchange.0;
        out[19] = u8::from(self.flags.initiator) << 3
            | u8::from(self.flags.higher_version) << 4
            | u8::from(self.flags.response) << 5;
        out[20..24].copy_from_slice(&self.message_id.to_be_bytes());
        out[24..].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}
