//! EAP packets (RFC 3748 4) and the types of their data (5).

use std::fmt;

use mobikex_common::wire::WireError;

/// Octets of the largest packet that is read or sent: a fragment of EAP-TLS with room to spare.
pub const MAX_PACKET: usize = 4096;
/// Octets of the longest identity (RFC 7542 2.2 has 253).
pub const MAX_IDENTITY: usize = 253;

/// The type of a request or response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EapType(pub u8);

impl EapType {
    /// Who are you?
    pub const IDENTITY: Self = Self(1);
    /// A message for the user.
    pub const NOTIFICATION: Self = Self(2);
    /// The method of the request is not wanted; the data name others.
    pub const NAK: Self = Self(3);
    /// EAP-TLS (RFC 5216).
    pub const TLS: Self = Self(13);
    /// EAP-MSCHAPv2.
    pub const MSCHAPV2: Self = Self(26);
}

impl fmt::Display for EapType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IDENTITY => f.write_str("EAP_IDENTITY"),
            Self::NOTIFICATION => f.write_str("EAP_NOTIFICATION"),
            Self::NAK => f.write_str("EAP_NAK"),
            Self::TLS => f.write_str("EAP_TLS"),
            Self::MSCHAPV2 => f.write_str("EAP_MSCHAPV2"),
            Self(number) => write!(f, "EAP method {number}"),
        }
    }
}

const WHAT: &str = "EAP packet";

fn cut(need: usize, octets: &[u8]) -> WireError {
    WireError::Truncated { what: WHAT, need, have: octets.len() }
}

/// One packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Packet {
    /// From the server.
    Request {
        /// Comes back in the response.
        id: u8,
        /// What the data are.
        kind: EapType,
        /// As the type has them.
        data: Vec<u8>,
    },
    /// From the peer.
    Response {
        /// That of the request.
        id: u8,
        /// What the data are.
        kind: EapType,
        /// As the type has them.
        data: Vec<u8>,
    },
    /// The server is content.
    Success {
        /// That of the last response.
        id: u8,
    },
    /// It is not.
    Failure {
        /// That of the last response.
        id: u8,
    },
}

impl Packet {
    /// Reads a whole packet: nothing may follow it.
    ///
    /// # Errors
    /// When a length is wrong or the code unknown.
    pub fn parse(octets: &[u8]) -> Result<Self, WireError> {
        let &[code, id, high, low, ref rest @ ..] = octets else { return Err(cut(4, octets)) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length != octets.len() || length > MAX_PACKET {
            return Err(WireError::BadLength { what: WHAT, length });
        }
        match (code, rest) {
            (1, &[kind, ref data @ ..]) => Ok(Self::Request { id, kind: EapType(kind), data: data.to_vec() }),
            (2, &[kind, ref data @ ..]) => {
                Ok(Self::Response { id, kind: EapType(kind), data: data.to_vec() })
            }
            (3, []) => Ok(Self::Success { id }),
            (4, []) => Ok(Self::Failure { id }),
            (1 | 2, []) => Err(cut(5, octets)),
            _ => Err(WireError::BadValue { what: WHAT, value: u64::from(code) }),
        }
    }

    /// The octets of a packet.
    pub fn emit(&self) -> Vec<u8> {
        let (code, id, body) = match self {
            Self::Request { id, kind, data } => (1, *id, Some((kind.0, data.as_slice()))),
            Self::Response { id, kind, data } => (2, *id, Some((kind.0, data.as_slice()))),
            Self::Success { id } => (3, *id, None),
            Self::Failure { id } => (4, *id, None),
        };
        let length = 4 + body.map_or(0, |(_, data)| 1 + data.len());
        let mut out = vec![code, id];
        out.extend((length as u16).to_be_bytes());
        if let Some((kind, data)) = body {
            out.push(kind);
            out.extend(data);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_and_codes_are_checked() {
        assert_eq!(Packet::parse(&[3, 7, 0, 4]), Ok(Packet::Success { id: 7 }));
        for wrong in [
            &[][..],
            &[1, 0, 0],
            &[1, 0, 0, 4],
            &[2, 0, 0, 4],
            &[1, 0, 0, 6, 1],
            &[1, 0, 0, 4, 1],
            &[3, 0, 0, 5, 0],
            &[0, 0, 0, 5, 1],
            &[5, 0, 0, 4],
        ] {
            assert!(Packet::parse(wrong).is_err(), "{wrong:?}");
        }
        let long = Packet::Request { id: 0, kind: EapType::TLS, data: vec![0; MAX_PACKET] };
        assert!(Packet::parse(&long.emit()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_read_back(code in 0..4u8, id: u8, kind: u8, data in prop::collection::vec(any::<u8>(), 0..300)) {
            let kind = EapType(kind);
            let packet = match code {
                0 => Packet::Request { id, kind, data },
                1 => Packet::Response { id, kind, data },
                2 => Packet::Success { id },
                _ => Packet::Failure { id },
            };
            prop_assert_eq!(Packet::parse(&packet.emit()), Ok(packet));
        }

        #[test]
        fn random_octets_never_panic(octets in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(packet) = Packet::parse(&octets) {
                prop_assert_eq!(packet.emit(), octets);
            }
        }
    }
}
