//! ESP echo (draft-ietf-ipsecme-encrypted-esp-ping-03, 4.2): a ping inside an SA, for one path of it.
//!
//! The draft leaves the sub-types to be assigned; until they are, [`REQUEST`] and [`RESPONSE`] are ours.

use super::WireError;
use super::reader::Reader;
use crate::spi::Spi;

/// Sub-type of a request. Provisional: the draft has no value yet.
pub const REQUEST: u8 = 0xf0;
/// Sub-type of a response. Provisional: the draft has no value yet.
pub const RESPONSE: u8 = 0xf1;
/// Octets of data that we send or answer at most; the format has room for more.
pub const MAX_DATA: usize = 64;
/// Octets of the longest message.
pub const MAX_LEN: usize = FIXED + 4 + MAX_DATA;

/// Octets before the return path SPI or, without one, the data.
const FIXED: usize = 8;
/// The flag that says that there is a return path SPI.
const HAS_SPI: u8 = 0x80;
const WHAT: &str = "the ESP echo";

/// A request or its response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Echo {
    /// It answers a request.
    pub response: bool,
    /// The session of requests that it belongs to.
    pub identifier: u16,
    /// Its number in the session.
    pub sequence: u16,
    /// The SA by which the sender of the request would like the response.
    pub return_spi: Option<Spi>,
    /// Comes back as it was sent; at most [`MAX_DATA`] octets.
    pub data: Vec<u8>,
}

impl Echo {
    /// Reads the message at the front of an ESP payload; padding may follow it.
    ///
    /// # Errors
    /// When it is cut short, longer than we answer, or no echo.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let response = response(payload)?;
        let mut r = Reader::new(message(payload)?, WHAT);
        let [_, flags] = r.array()?;
        let _data_len = r.u16()?;
        let (identifier, sequence) = (r.u16()?, r.u16()?);
        let return_spi = if flags & HAS_SPI == 0 { None } else { Some(Spi(r.u32()?)) };
        Ok(Self { response, identifier, sequence, return_spi, data: r.rest().to_vec() })
    }

    /// Network form. Data beyond [`MAX_DATA`] is left out.
    pub fn emit(&self) -> Vec<u8> {
        let data = &self.data[..self.data.len().min(MAX_DATA)];
        let mut out = Vec::with_capacity(FIXED + 4 + data.len());
        out.push(if self.response { RESPONSE } else { REQUEST });
        out.push(if self.return_spi.is_some() { HAS_SPI } else { 0 });
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(self.identifier.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        out.extend(self.return_spi.iter().flat_map(|spi| spi.to_be_bytes()));
        out.extend(data);
        out
    }
}

/// Whether the payload is a response, else a request.
///
/// # Errors
/// When it is empty or of another sub-type.
pub fn response(payload: &[u8]) -> Result<bool, WireError> {
    match Reader::new(payload, WHAT).u8()? {
        REQUEST => Ok(false),
        RESPONSE => Ok(true),
        other => Err(WireError::BadValue { what: "the sub-type of an AGGFRAG payload", value: other.into() }),
    }
}

/// The octets of the message at the front of an ESP payload, without the padding behind it.
///
/// # Errors
/// When it is cut short or longer than we answer.
pub fn message(payload: &[u8]) -> Result<&[u8], WireError> {
    let mut r = Reader::new(payload, WHAT);
    let [_, flags] = r.array()?;
    let data_len = usize::from(r.u16()?);
    if data_len > MAX_DATA {
        return Err(WireError::BadLength { what: "the data of an ESP echo", length: data_len });
    }
    let spi_len = if flags & HAS_SPI == 0 { 0 } else { 4 };
    Reader::new(payload, WHAT).take(FIXED + spi_len + data_len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use proptest::prelude::*;

    #[test]
    fn the_figure_of_the_draft() {
        let plain = Echo {
            response: false,
            identifier: 0x1234,
            sequence: 0x5678,
            return_spi: None,
            data: b"abc".to_vec(),
        };
        assert_eq!(plain.emit(), hex!("f0 00 0003 1234 5678 616263"));
        let full = Echo { response: true, return_spi: Some(Spi(0xaabb_ccdd)), ..plain };
        assert_eq!(full.emit(), hex!("f1 80 0003 1234 5678 aabbccdd 616263"));
        // Reserved bits are ignored, and so is what pads the payload.
        assert_eq!(Echo::parse(&hex!("f1 ff 0003 1234 5678 aabbccdd 616263 0000")), Ok(full));
    }

    #[test]
    fn what_is_no_echo_or_too_long_is_refused() {
        assert!(matches!(
            Echo::parse(&hex!("00 00 0000 0000 0000")),
            Err(WireError::BadValue { value: 0, .. })
        ));
        assert!(matches!(response(&[1]), Err(WireError::BadValue { value: 1, .. })));
        let long = [&hex!("f0 00 0041 1234 5678")[..], &[0; 65]].concat();
        assert_eq!(
            Echo::parse(&long),
            Err(WireError::BadLength { what: "the data of an ESP echo", length: 65 })
        );
        let echo = Echo { response: false, identifier: 1, sequence: 1, return_spi: None, data: vec![7; 99] };
        assert_eq!(Echo::parse(&echo.emit()).map(|echo| echo.data.len()), Ok(MAX_DATA));
    }

    proptest! {
        #[test]
        fn round_trip(response: bool, identifier: u16, sequence: u16, spi: Option<u32>,
                      data in proptest::collection::vec(any::<u8>(), 0..=MAX_DATA), padding in 0usize..9) {
            let echo = Echo { response, identifier, sequence, return_spi: spi.map(Spi), data };
            let emitted = echo.emit();
            prop_assert!(emitted.len() <= MAX_LEN);
            let padded = [&emitted[..], &vec![0xaa; padding]].concat();
            prop_assert_eq!(message(&padded), Ok(&emitted[..]));
            prop_assert_eq!(Echo::parse(&padded), Ok(echo));
            for len in 0..emitted.len() {
                prop_assert!(Echo::parse(&emitted[..len]).is_err());
            }
        }

        #[test]
        fn hostile_payloads_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(echo) = Echo::parse(&payload) {
                prop_assert!(echo.data.len() <= MAX_DATA);
            }
        }
    }
}
