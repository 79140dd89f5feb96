//! Parameters into notify data.

use std::net::IpAddr;

use super::{IpParameter, Mip, Parameter, Reachability, SpiParameter, ip_bits, kind};

/// The data of a notify that carries `parameters`. What it makes reads back as it was, within the bounds of the
/// format: at most [`MAX_PARAMETERS`](super::MAX_PARAMETERS) of them, 1 to 255 versions (more are left out).
pub fn emit(parameters: &[Parameter]) -> Vec<u8> {
    let mut out = Vec::new();
    for parameter in parameters {
        match parameter {
            Parameter::Version(versions) => version(&mut out, versions),
            Parameter::Spi(parameter) => spi(&mut out, parameter),
            Parameter::Ip(parameter) => ip(&mut out, parameter),
            Parameter::Mode(value) => out.extend_from_slice(&[kind::IPSEC_MODE, *value, 0, 0]),
            Parameter::Proto(value) => out.extend_from_slice(&[kind::IPSEC_PROTO, *value, 0, 0]),
            Parameter::Special(value) => {
                out.extend_from_slice(&[kind::SELECTOR_SPECIFIC_VALUE, *value, 0, 0])
            }
            Parameter::Id(id) => {
                out.extend_from_slice(&[kind::ID, 0]);
                out.extend_from_slice(&id.to_be_bytes());
            }
        }
    }
    out
}

fn version(out: &mut Vec<u8>, versions: &[u8]) {
    let versions = &versions[..versions.len().min(255)];
    out.extend_from_slice(&[kind::VERSION, versions.len() as u8]);
    out.extend_from_slice(versions);
    // Every parameter before this one ended on a multiple of four, so the whole is padded as the part would be.
    out.resize(out.len().next_multiple_of(4), 0);
}

fn spi(out: &mut Vec<u8>, parameter: &SpiParameter) {
    let mut header = |size| out.extend_from_slice(&[kind::SPI, size, 0, 0]);
    match parameter {
        SpiParameter::Child(spi) => {
            header(4);
            out.extend_from_slice(&spi.to_be_bytes());
        }
        SpiParameter::Ike(spi) => {
            header(8);
            out.extend_from_slice(&spi.to_be_bytes());
        }
        SpiParameter::IkePair(initiator, responder) => {
            header(16);
            out.extend_from_slice(&initiator.to_be_bytes());
            out.extend_from_slice(&responder.to_be_bytes());
        }
    }
}

fn ip(out: &mut Vec<u8>, p: &IpParameter) {
    let version = if p.addr.is_ipv4() { ip_bits::IPV4 } else { ip_bits::IPV6 };
    let bits = [
        (p.mip.is_some(), ip_bits::MIP),
        (p.check, ip_bits::CHECK),
        (p.old, ip_bits::OLD),
        (p.new, ip_bits::NEW),
        (p.header, ip_bits::HEADER),
        (p.inner, ip_bits::INNER),
    ];
    let bits =
        bits.iter().filter(|(set, _)| *set).fold(version << ip_bits::VERSION_SHIFT, |all, (_, b)| all | b);
    out.extend_from_slice(&[kind::IP, bits, 0, 0]);
    if let Some(mip) = &p.mip {
        multihoming(out, mip);
    }
    match p.addr {
        IpAddr::V4(addr) => out.extend_from_slice(&addr.octets()),
        IpAddr::V6(addr) => out.extend_from_slice(&addr.octets()),
    }
}

fn multihoming(out: &mut Vec<u8>, mip: &Mip) {
    let reachability = match mip.reachability {
        Reachability::NoInfo => 0,
        Reachability::Reachable => 1,
        Reachability::Unreachable => 2,
    };
    out.extend_from_slice(&[mip.preference, mip.class, reachability << 6, 0]);
    out.extend_from_slice(&mip.start.to_be_bytes());
    out.extend_from_slice(&mip.life.to_be_bytes());
}
