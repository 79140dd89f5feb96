//! The payload chain and its payloads (RFC 7296 3.2 to 3.16, RFC 7383 2.5).

use super::{
    AuthMethod, CertEncoding, ConfigPayload, IdType, Identification, NotifyType, PayloadType, Proposal,
    ProtocolId, sa, ts,
};
use crate::ts::TrafficSelector;
use crate::wire::WireError;
use crate::wire::reader::Reader;

const MAX_PAYLOADS: usize = 64;
const MAX_SPIS: usize = 4096;
const HEADER: usize = 4;
const CRITICAL: u8 = 0x80;

/// Notify payload (RFC 7296 3.10).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notify {
    /// The SA's protocol, or NONE.
    pub protocol: ProtocolId,
    /// The SA's SPI, or empty.
    pub spi: Vec<u8>,
    /// Notify Message Type.
    pub kind: NotifyType,
    /// Notification Data.
    pub data: Vec<u8>,
    /// The payload's critical bit. Everybody knows the Notify payload, so that it has no meaning in RFC 7296 (2.5);
    /// MOBIKE-X gives it one for MOBIKE_SUPPORTED (draft 7.1.1).
    pub critical: bool,
}

impl Notify {
    /// A notify that concerns no particular SA.
    pub fn new(kind: NotifyType, data: Vec<u8>) -> Self {
        Self { protocol: ProtocolId::NONE, spi: Vec::new(), kind, data, critical: false }
    }
}

/// Authentication payload (RFC 7296 3.8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuthPayload {
    /// Auth Method.
    pub method: AuthMethod,
    /// Authentication Data.
    pub data: Vec<u8>,
}

/// Delete payload (RFC 7296 3.11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delete {
    /// IKE (no SPIs) or ESP/AH.
    pub protocol: ProtocolId,
    /// SPIs that the sender receives on, all of one length.
    pub spis: Vec<Vec<u8>>,
}

/// A payload of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // The fields are the payloads' own, named after them.
pub enum Payload {
    /// Security Association.
    Sa(Vec<Proposal>),
    /// Key Exchange.
    Ke { method: u16, data: Vec<u8> },
    /// Identification of the initiator.
    IdI(Identification),
    /// Identification of the responder.
    IdR(Identification),
    /// Certificate.
    Cert { encoding: CertEncoding, data: Vec<u8> },
    /// Certificate Request.
    CertReq { encoding: CertEncoding, data: Vec<u8> },
    /// Authentication.
    Auth(AuthPayload),
    /// Nonce.
    Nonce(Vec<u8>),
    /// Notify.
    Notify(Notify),
    /// Delete.
    Delete(Delete),
    /// Vendor ID.
    VendorId(Vec<u8>),
    /// Traffic selectors of the initiator.
    TsI(Vec<TrafficSelector>),
    /// Traffic selectors of the responder.
    TsR(Vec<TrafficSelector>),
    /// Encrypted and Authenticated; `next` is the first inner type, `body` the IV, ciphertext and ICV.
    Encrypted { next: PayloadType, body: Vec<u8> },
    /// Encrypted and Authenticated Fragment (RFC 7383).
    EncryptedFragment { next: PayloadType, number: u16, total: u16, body: Vec<u8> },
    /// Configuration.
    Cp(ConfigPayload),
    /// EAP message.
    Eap(Vec<u8>),
    /// Anything else, as it came.
    Unknown { kind: PayloadType, critical: bool, body: Vec<u8> },
}

impl Payload {
    /// The payload's type number.
    pub fn kind(&self) -> PayloadType {
        match self {
            Self::Sa(_) => PayloadType::SA,
            Self::Ke { .. } => PayloadType::KE,
            Self::IdI(_) => PayloadType::IDI,
            Self::IdR(_) => PayloadType::IDR,
            Self::Cert { .. } => PayloadType::CERT,
            Self::CertReq { .. } => PayloadType::CERTREQ,
            Self::Auth(_) => PayloadType::AUTH,
            Self::Nonce(_) => PayloadType::NONCE,
            Self::Notify(_) => PayloadType::N,
            Self::Delete(_) => PayloadType::D,
            Self::VendorId(_) => PayloadType::V,
            Self::TsI(_) => PayloadType::TSI,
            Self::TsR(_) => PayloadType::TSR,
            Self::Encrypted { .. } => PayloadType::SK,
            Self::EncryptedFragment { .. } => PayloadType::SKF,
            Self::Cp(_) => PayloadType::CP,
            Self::Eap(_) => PayloadType::EAP,
            Self::Unknown { kind, .. } => *kind,
        }
    }

    /// How logs name it: `SA`, `No`, `N(NATD_S_IP)`, `CPRQ(ADDR DNS)`, `EF(1/3)`.
    pub fn summary(&self) -> String {
        match self {
            Self::Notify(n) => format!("N({})", n.kind.short_name()),
            Self::Nonce(_) => "No".into(),
            Self::IdI(_) => "IDi".into(),
            Self::IdR(_) => "IDr".into(),
            Self::TsI(_) => "TSi".into(),
            Self::TsR(_) => "TSr".into(),
            Self::EncryptedFragment { number, total, .. } => format!("EF({number}/{total})"),
            Self::Cp(cp) => cp.summary(),
            other => other.kind().to_string(),
        }
    }

    fn parse(kind: PayloadType, next: PayloadType, critical: bool, body: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(body, kind.name().unwrap_or("a payload"));
        Ok(match kind {
            PayloadType::SA => Self::Sa(sa::parse(body)?),
            PayloadType::KE => {
                let method = r.u16()?;
                r.u16()?;
                Self::Ke { method, data: r.rest().to_vec() }
            }
            PayloadType::IDI => Self::IdI(identification(r)?),
            PayloadType::IDR => Self::IdR(identification(r)?),
            PayloadType::CERT => Self::Cert { encoding: CertEncoding(r.u8()?), data: r.rest().to_vec() },
            PayloadType::CERTREQ => {
                Self::CertReq { encoding: CertEncoding(r.u8()?), data: r.rest().to_vec() }
            }
            PayloadType::AUTH => {
                let method = AuthMethod(r.u8()?);
                r.take(3)?;
                Self::Auth(AuthPayload { method, data: r.rest().to_vec() })
            }
            PayloadType::NONCE => {
                // RFC 7296 3.9: 16 to 256 octets.
                if !(16..=256).contains(&body.len()) {
                    return Err(WireError::BadLength { what: "the nonce", length: body.len() });
                }
                Self::Nonce(body.to_vec())
            }
            PayloadType::N => {
                let (protocol, spi_len, kind) = (ProtocolId(r.u8()?), r.u8()?, NotifyType(r.u16()?));
                let spi = r.take(usize::from(spi_len))?.to_vec();
                Self::Notify(Notify { protocol, spi, kind, data: r.rest().to_vec(), critical })
            }
            PayloadType::D => Self::Delete(delete(r)?),
            PayloadType::V => Self::VendorId(body.to_vec()),
            PayloadType::TSI => Self::TsI(ts::parse(body)?),
            PayloadType::TSR => Self::TsR(ts::parse(body)?),
            PayloadType::SK => Self::Encrypted { next, body: body.to_vec() },
            PayloadType::SKF => {
                Self::EncryptedFragment { next, number: r.u16()?, total: r.u16()?, body: r.rest().to_vec() }
            }
            PayloadType::CP => Self::Cp(ConfigPayload::parse(r)?),
            PayloadType::EAP => Self::Eap(body.to_vec()),
            kind => Self::Unknown { kind, critical, body: body.to_vec() },
        })
    }

    fn emit(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Sa(proposals) => out = sa::emit(proposals),
            Self::Ke { method, data } => {
                out.extend_from_slice(&method.to_be_bytes());
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(data);
            }
            Self::IdI(id) | Self::IdR(id) => {
                out.extend_from_slice(&[id.kind.0, 0, 0, 0]);
                out.extend_from_slice(&id.data);
            }
            Self::Cert { encoding, data } | Self::CertReq { encoding, data } => {
                out.push(encoding.0);
                out.extend_from_slice(data);
            }
            Self::Auth(auth) => {
                out.extend_from_slice(&[auth.method.0, 0, 0, 0]);
                out.extend_from_slice(&auth.data);
            }
            Self::Notify(n) => {
                out.extend_from_slice(&[n.protocol.0, n.spi.len() as u8]);
                out.extend_from_slice(&n.kind.0.to_be_bytes());
                out.extend_from_slice(&n.spi);
                out.extend_from_slice(&n.data);
            }
            Self::Delete(d) => {
                out.extend_from_slice(&[d.protocol.0, d.spis.first().map_or(0, Vec::len) as u8]);
                out.extend_from_slice(&(d.spis.len() as u16).to_be_bytes());
                d.spis.iter().for_each(|spi| out.extend_from_slice(spi));
            }
            Self::TsI(selectors) | Self::TsR(selectors) => out = ts::emit(selectors),
            Self::EncryptedFragment { number, total, body, .. } => {
                out.extend_from_slice(&number.to_be_bytes());
                out.extend_from_slice(&total.to_be_bytes());
                out.extend_from_slice(body);
            }
            Self::Cp(cp) => cp.emit(&mut out),
            Self::Nonce(body)
            | Self::VendorId(body)
            | Self::Eap(body)
            | Self::Encrypted { body, .. }
            | Self::Unknown { body, .. } => out.extend_from_slice(body),
        }
        out
    }
}

fn identification(mut r: Reader<'_>) -> Result<Identification, WireError> {
    let kind = IdType(r.u8()?);
    r.take(3)?;
    let id = Identification { kind, data: r.rest().to_vec() };
    if id.is_well_formed() {
        Ok(id)
    } else {
        Err(WireError::BadLength { what: "an identity", length: id.data.len() })
    }
}

fn delete(mut r: Reader<'_>) -> Result<Delete, WireError> {
    let (protocol, spi_len, count) = (ProtocolId(r.u8()?), usize::from(r.u8()?), usize::from(r.u16()?));
    let body = r.rest();
    // Zero-length SPIs belong to the IKE SA, which is named by the message itself; there is then nothing to list.
    if body.len() != spi_len * count || (spi_len == 0 && count != 0) {
        return Err(WireError::BadLength { what: "the Delete payload", length: body.len() });
    }
    if count > MAX_SPIS {
        return Err(WireError::TooMany { what: "SPIs in a Delete payload", limit: MAX_SPIS });
    }
    let spis = if spi_len == 0 { Vec::new() } else { body.chunks(spi_len).map(<[u8]>::to_vec).collect() };
    Ok(Delete { protocol, spis })
}

/// Reads a chain of payloads. An Encrypted payload is always the last (RFC 7296 3.14): its own next-payload
/// field names what is inside.
///
/// # Errors
/// When a length does not fit, a known payload is malformed, or there are more than 64 payloads.
pub fn parse_chain(first: PayloadType, bytes: &[u8]) -> Result<Vec<Payload>, WireError> {
    let mut r = Reader::new(bytes, "the payload chain");
    let (mut kind, mut payloads) = (first, Vec::new());
    while kind != PayloadType::NONE {
        if payloads.len() == MAX_PAYLOADS {
            return Err(WireError::TooMany { what: "payloads", limit: MAX_PAYLOADS });
        }
        let (next, flags, length) = (PayloadType(r.u8()?), r.u8()?, r.u16()?);
        let body = r.body(length, HEADER)?;
        payloads.push(Payload::parse(kind, next, flags & CRITICAL != 0, body)?);
        if kind == PayloadType::SK || kind == PayloadType::SKF {
            break;
        }
        kind = next;
    }
    if r.is_empty() {
        Ok(payloads)
    } else {
        Err(WireError::BadLength { what: "the payload chain", length: bytes.len() })
    }
}

/// The type of the first payload, and the chain.
pub fn emit_chain(payloads: &[Payload]) -> (PayloadType, Vec<u8>) {
    let mut out = Vec::new();
    for (index, payload) in payloads.iter().enumerate() {
        let next = match payload {
            Payload::Encrypted { next, .. } | Payload::EncryptedFragment { next, .. } => *next,
            _ => payloads.get(index + 1).map_or(PayloadType::NONE, Payload::kind),
        };
        let critical = match payload {
            Payload::Unknown { critical, .. } | Payload::Notify(Notify { critical, .. }) => *critical,
            _ => false,
        };
        let body = payload.emit();
        out.extend_from_slice(&[next.0, if critical { CRITICAL } else { 0 }]);
        out.extend_from_slice(&((body.len() + HEADER) as u16).to_be_bytes());
        out.extend_from_slice(&body);
    }
    (payloads.first().map_or(PayloadType::NONE, Payload::kind), out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alg::TransformType;
    use crate::wire::ike::{ConfigAttribute, ConfigAttributeType, ConfigType, Transform};
    use proptest::prelude::*;

    fn round_trip(payloads: Vec<Payload>) {
        let (first, bytes) = emit_chain(&payloads);
        assert_eq!(parse_chain(first, &bytes).unwrap(), payloads);
    }

    #[test]
    fn every_payload_survives_a_round_trip() {
        let transform = |kind, id, key_bits| Transform { kind, id, key_bits, other_attributes: vec![] };
        let odd = Transform {
            kind: TransformType(9),
            id: 77,
            key_bits: None,
            other_attributes: vec![(0x8001, vec![1, 2]), (5, vec![9; 7])],
        };
        round_trip(vec![
            Payload::Sa(vec![
                Proposal {
                    number: 1,
                    protocol: ProtocolId::ESP,
                    spi: vec![1, 2, 3, 4],
                    transforms: vec![transform(TransformType::ENCR, 20, Some(256)), odd],
                },
                Proposal { number: 2, protocol: ProtocolId::IKE, spi: vec![], transforms: vec![] },
            ]),
            Payload::Ke { method: 31, data: vec![7; 32] },
            Payload::IdI("a.example".parse().unwrap()),
            Payload::IdR("192.0.2.1".parse().unwrap()),
            Payload::Cert { encoding: CertEncoding(4), data: vec![1] },
            Payload::CertReq { encoding: CertEncoding(4), data: vec![] },
            Payload::Auth(AuthPayload { method: AuthMethod(2), data: vec![3; 32] }),
            Payload::Nonce(vec![9; 32]),
            Payload::Notify(Notify::new(NotifyType(50000), vec![1, 2, 3])),
            Payload::Notify(Notify { critical: true, ..Notify::new(NotifyType::MOBIKE_SUPPORTED, vec![]) }),
            Payload::Delete(Delete {
                protocol: ProtocolId::ESP,
                spis: vec![vec![1, 2, 3, 4], vec![5, 6, 7, 8]],
            }),
            Payload::VendorId(b"vendor".to_vec()),
            Payload::TsI(vec![TrafficSelector::ANY_V4, "2001:db8::/32[tcp/443]".parse().unwrap()]),
            Payload::TsR(vec!["10.0.0.1..10.0.0.9".parse().unwrap()]),
            Payload::Cp(ConfigPayload {
                kind: ConfigType::CFG_REQUEST,
                attributes: vec![ConfigAttribute { kind: ConfigAttributeType(1), value: vec![] }],
            }),
            Payload::Eap(vec![1, 0, 0, 4]),
            Payload::Unknown { kind: PayloadType(200), critical: true, body: vec![1, 2] },
            Payload::Unknown { kind: PayloadType(201), critical: false, body: vec![] },
        ]);
        round_trip(vec![Payload::Encrypted { next: PayloadType::N, body: vec![1; 40] }]);
        round_trip(vec![Payload::EncryptedFragment {
            next: PayloadType::N,
            number: 1,
            total: 2,
            body: vec![1],
        }]);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for (kind, bytes) in [
            (PayloadType::N, &[0, 0, 0, 3][..]),
            (PayloadType::N, &[0, 0, 0, 9, 0, 0, 0, 1]),
            (PayloadType::N, &[0, 0, 0, 8, 1, 200, 0, 1]),
            (PayloadType::NONCE, &[0, 0, 0, 5, 1]),
            (PayloadType::D, &[0, 0, 0, 9, 3, 4, 0, 1, 1]),
            (PayloadType::TSI, &[0, 0, 0, 8, 1, 0, 0, 0]),
            (PayloadType::SA, &[0, 0, 0, 12, 7, 0, 0, 8, 1, 1, 0, 0]),
            (PayloadType::IDI, &[0, 0, 0, 9, 1, 0, 0, 0, 1]),
            (PayloadType::NONE, &[0]),
        ] {
            assert!(parse_chain(kind, bytes).is_err(), "{kind} {bytes:?}");
        }
    }

    #[test]
    fn b15_traffic_selector_entries_are_checked_one_by_one() {
        // An IPv6 range that claims the length of an IPv4 one.
        let mut body = vec![0, 0, 0, 24, 1, 0, 0, 0, 8, 0, 0, 16];
        body.extend_from_slice(&[0; 12]);
        assert!(parse_chain(PayloadType::TSI, &body).is_err());
        // 255 entries announced, one there.
        let mut body = vec![0, 0, 0, 24, 255, 0, 0, 0, 7, 0, 0, 16];
        body.extend_from_slice(&[0; 12]);
        assert!(parse_chain(PayloadType::TSI, &body).is_err());
    }

    proptest! {
        #[test]
        fn random_octets_never_panic(first in 0u8..60, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(payloads) = parse_chain(PayloadType(first), &bytes) {
                let (kind, again) = emit_chain(&payloads);
                // Reserved fields are normalised, so compare meaning, not octets.
                prop_assert_eq!(parse_chain(kind, &again), Ok(payloads));
            }
        }
    }
}
