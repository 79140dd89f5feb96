//! Notify data into parameters.

use std::net::IpAddr;

use super::{
    IpParameter, MAX_PARAMETERS, Mip, Parameter, ParameterError, ParameterErrorKind, Reachability,
    SpiParameter, ip_bits, kind,
};
use crate::spi::{IkeSpi, Spi};

/// Octets of the multihoming information (draft 11.4.4).
const MIP_LEN: usize = 12;

/// Reads the data of a MOBIKE-X notify. Reserved bits are ignored (profile 3); empty data is no parameters.
///
/// # Errors
/// When a parameter does not have the form of profile 3, or there are more than [`MAX_PARAMETERS`].
pub fn parse(data: &[u8]) -> Result<Vec<Parameter>, ParameterError> {
    let mut parameters = Vec::new();
    let mut offset = 0;
    while offset < data.len() {
        let one = if parameters.len() < MAX_PARAMETERS {
            length(&data[offset..]).and_then(|length| Ok((length, one(&data[offset..][..length])?)))
        } else {
            Err(ParameterErrorKind::TooMany)
        };
        match one {
            Ok((length, parameter)) => {
                offset += length;
                parameters.push(parameter);
            }
            Err(kind) => return Err(ParameterError { kind, offset, id: find_id(data) }),
        }
    }
    Ok(parameters)
}

/// The first ID parameter that can be reached by lengths alone, past faults within a parameter.
fn find_id(mut data: &[u8]) -> Option<u16> {
    for _ in 0..MAX_PARAMETERS {
        let (this, rest) = data.split_at_checked(length(data).ok()?)?;
        if let [kind::ID, _, high, low] = *this {
            return Some(u16::from_be_bytes([high, low]));
        }
        data = rest;
    }
    None
}

/// Octets of the parameter that `data` starts with, all of which are there.
fn length(data: &[u8]) -> Result<usize, ParameterErrorKind> {
    let &[kind, second, ..] = data else {
        return Err(ParameterErrorKind::Truncated { need: 4, have: data.len() });
    };
    let need = match kind {
        kind::VERSION => (2 + usize::from(second)).next_multiple_of(4),
        kind::SPI => (4 + usize::from(second)).next_multiple_of(4),
        kind::IP => {
            let mip = if second & ip_bits::MIP != 0 { MIP_LEN } else { 0 };
            match second >> ip_bits::VERSION_SHIFT & 3 {
                ip_bits::IPV4 => 4 + mip + 4,
                ip_bits::IPV6 => 4 + mip + 16,
                version => return Err(ParameterErrorKind::IpVersion(version)),
            }
        }
        kind::IPSEC_MODE | kind::IPSEC_PROTO | kind::SELECTOR_SPECIFIC_VALUE | kind::ID => 4,
        other => return Err(ParameterErrorKind::UnknownType(other)),
    };
    if need <= data.len() { Ok(need) } else { Err(ParameterErrorKind::Truncated { need, have: data.len() }) }
}

/// Reads `data`, which is one parameter as [`length`] found it.
fn one(data: &[u8]) -> Result<Parameter, ParameterErrorKind> {
    let value = data[1];
    Ok(match data[0] {
        kind::VERSION => Parameter::Version(versions(&data[2..], usize::from(value))?),
        kind::SPI => Parameter::Spi(spi(&data[4..], value)?),
        kind::IP => Parameter::Ip(ip(value, &data[4..])?),
        kind::IPSEC_MODE => Parameter::Mode(value),
        kind::IPSEC_PROTO => Parameter::Proto(value),
        kind::SELECTOR_SPECIFIC_VALUE => Parameter::Special(value),
        kind::ID => Parameter::Id(u16::from_be_bytes([data[2], data[3]])),
        other => return Err(ParameterErrorKind::UnknownType(other)),
    })
}

fn versions(body: &[u8], count: usize) -> Result<Vec<u8>, ParameterErrorKind> {
    let (versions, padding) = body.split_at(count);
    if count == 0 {
        Err(ParameterErrorKind::NoVersions)
    } else if padding.iter().any(|&octet| octet != 0) {
        Err(ParameterErrorKind::Padding)
    } else {
        Ok(versions.to_vec())
    }
}

fn spi(body: &[u8], size: u8) -> Result<SpiParameter, ParameterErrorKind> {
    let ike = |octets: &[u8]| Some(IkeSpi(u64::from_be_bytes(octets.try_into().ok()?)));
    match size {
        4 => body.try_into().ok().map(|octets| SpiParameter::Child(Spi(u32::from_be_bytes(octets)))),
        8 => ike(body).map(SpiParameter::Ike),
        16 => ike(&body[..8]).zip(ike(&body[8..])).map(|(i, r)| SpiParameter::IkePair(i, r)),
        _ => None,
    }
    .ok_or(ParameterErrorKind::SpiSize(size))
}

fn ip(bits: u8, body: &[u8]) -> Result<IpParameter, ParameterErrorKind> {
    let is = |bit| bits & bit != 0;
    let (mip, addr) = body.split_at(if is(ip_bits::MIP) { MIP_LEN } else { 0 });
    let addr = match addr.len() {
        4 => <[u8; 4]>::try_from(addr).map(IpAddr::from),
        _ => <[u8; 16]>::try_from(addr).map(IpAddr::from),
    }
    .map_err(|_| ParameterErrorKind::IpVersion(bits >> ip_bits::VERSION_SHIFT & 3))?;
    Ok(IpParameter {
        addr,
        check: is(ip_bits::CHECK),
        old: is(ip_bits::OLD),
        new: is(ip_bits::NEW),
        header: is(ip_bits::HEADER),
        inner: is(ip_bits::INNER),
        mip: multihoming(mip),
    })
}

/// `None` when `octets` are not of the length of multihoming information, that is, when there is none.
fn multihoming(octets: &[u8]) -> Option<Mip> {
    let &[preference, class, r, _, s0, s1, s2, s3, l0, l1, l2, l3] = octets else { return None };
    let reachability = match r >> 6 {
        1 => Reachability::Reachable,
        2 => Reachability::Unreachable,
        _ => Reachability::NoInfo,
    };
    let (start, life) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([l0, l1, l2, l3]));
    Some(Mip { preference, class, reachability, start, life })
}
