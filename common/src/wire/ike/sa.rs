//! The Security Association payload (RFC 7296 3.3).

use super::ProtocolId;
use crate::alg::TransformType;
use crate::wire::WireError;
use crate::wire::reader::Reader;

const MAX_PROPOSALS: usize = 64;
const MAX_TRANSFORMS: usize = 128;
const MAX_ATTRIBUTES: usize = 16;
const KEY_LENGTH: u16 = 14;
/// The attribute format bit: type and value only, without a length.
const TV: u16 = 0x8000;

/// One proposal (RFC 7296 3.3.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// Proposal Num.
    pub number: u8,
    /// Protocol.
    pub protocol: ProtocolId,
    /// SPI of the sender, 0, 4 or 8 octets.
    pub spi: Vec<u8>,
    /// Transforms.
    pub transforms: Vec<Transform>,
}

/// One transform (RFC 7296 3.3.2).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transform {
    /// Transform Type.
    pub kind: TransformType,
    /// Transform ID.
    pub id: u16,
    /// Key Length attribute, in bits.
    pub key_bits: Option<u16>,
    /// Attributes that we do not know, with their format bit, as they came.
    pub other_attributes: Vec<(u16, Vec<u8>)>,
}

pub(super) fn parse(body: &[u8]) -> Result<Vec<Proposal>, WireError> {
    let mut r = Reader::new(body, "a proposal");
    let mut proposals = Vec::new();
    loop {
        if proposals.len() == MAX_PROPOSALS {
            return Err(WireError::TooMany { what: "proposals", limit: MAX_PROPOSALS });
        }
        let last = last_flag(r.u8()?, 2, "a proposal's last-substructure field")?;
        r.u8()?;
        let length = r.u16()?;
        let mut p = Reader::new(r.body(length, 4)?, "a proposal");
        let (number, protocol, spi_len, count) = (p.u8()?, ProtocolId(p.u8()?), p.u8()?, p.u8()?);
        let spi = p.take(usize::from(spi_len))?.to_vec();
        let transforms = parse_transforms(&mut p, usize::from(count))?;
        proposals.push(Proposal { number, protocol, spi, transforms });
        match (last, r.is_empty()) {
            (true, true) => return Ok(proposals),
            (false, false) => {}
            _ => return Err(WireError::BadLength { what: "the SA payload", length: body.len() }),
        }
    }
}

/// True for the last substructure.
fn last_flag(value: u8, more: u8, what: &'static str) -> Result<bool, WireError> {
    match value {
        0 => Ok(true),
        v if v == more => Ok(false),
        v => Err(WireError::BadValue { what, value: v.into() }),
    }
}

fn parse_transforms(p: &mut Reader<'_>, count: usize) -> Result<Vec<Transform>, WireError> {
    if count > MAX_TRANSFORMS {
        return Err(WireError::TooMany { what: "transforms in a proposal", limit: MAX_TRANSFORMS });
    }
    let mut transforms = Vec::new();
    for index in 0..count {
        let last = last_flag(p.u8()?, 3, "a transform's last-substructure field")?;
        p.u8()?;
        let length = p.u16()?;
        let mut t = Reader::new(p.body(length, 4)?, "a transform");
        let kind = TransformType(t.u8()?);
        t.u8()?;
        let id = t.u16()?;
        let (mut key_bits, mut other_attributes) = (None, Vec::new());
        while !t.is_empty() {
            let (kind, value) = (t.u16()?, t.u16()?);
            if other_attributes.len() == MAX_ATTRIBUTES {
                return Err(WireError::TooMany { what: "attributes of a transform", limit: MAX_ATTRIBUTES });
            }
            match kind {
                k if k == TV | KEY_LENGTH && key_bits.is_none() => key_bits = Some(value),
                k if k & TV != 0 => other_attributes.push((k, value.to_be_bytes().to_vec())),
                k => other_attributes.push((k, t.take(usize::from(value))?.to_vec())),
            }
        }
        if last != (index + 1 == count) {
            return Err(WireError::BadValue { what: "a proposal's transform count", value: count as u64 });
        }
        transforms.push(Transform { kind, id, key_bits, other_attributes });
    }
    if !p.is_empty() {
        return Err(WireError::BadLength { what: "a proposal", length: p.rest().len() });
    }
    Ok(transforms)
}

pub(super) fn emit(proposals: &[Proposal]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, proposal) in proposals.iter().enumerate() {
        let mut body = vec![
            proposal.number,
            proposal.protocol.0,
            proposal.spi.len() as u8,
            proposal.transforms.len() as u8,
        ];
        body.extend_from_slice(&proposal.spi);
        for (index, t) in proposal.transforms.iter().enumerate() {
            let mut tail = vec![t.kind.0, 0];
            tail.extend_from_slice(&t.id.to_be_bytes());
            if let Some(bits) = t.key_bits {
                tail.extend_from_slice(&(TV | KEY_LENGTH).to_be_bytes());
                tail.extend_from_slice(&bits.to_be_bytes());
            }
            for (kind, value) in &t.other_attributes {
                tail.extend_from_slice(&kind.to_be_bytes());
                if kind & TV == 0 {
                    tail.extend_from_slice(&(value.len() as u16).to_be_bytes());
                }
                tail.extend_from_slice(value);
            }
            substructure(&mut body, if index + 1 == proposal.transforms.len() { 0 } else { 3 }, &tail);
        }
        substructure(&mut out, if index + 1 == proposals.len() { 0 } else { 2 }, &body);
    }
    out
}

fn substructure(out: &mut Vec<u8>, more: u8, body: &[u8]) {
    out.extend_from_slice(&[more, 0]);
    out.extend_from_slice(&((body.len() + 4) as u16).to_be_bytes());
    out.extend_from_slice(body);
}
