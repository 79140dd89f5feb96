//! How logs show parameters: `IP(192.0.2.1 N H pref 50)`, `SPI(c1234567)`, `ID(7)`.

use std::fmt;

use super::{
    ALL_IKE_SAS, IKE_SA_ALONE, IKE_SA_AND_CHILD_SAS, IpParameter, Mip, Parameter, Reachability, SpiParameter,
    VERSION_NONE,
};
use crate::wire::ike::ProtocolId;

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(versions) => {
                let names: Vec<_> = versions.iter().map(|&v| version(v)).collect();
                write!(f, "VERSION({})", names.join(" "))
            }
            Self::Spi(spi) => write!(f, "SPI({spi})"),
            Self::Ip(ip) => write!(f, "IP({ip})"),
            Self::Mode(1) => f.write_str("MODE(tunnel)"),
            Self::Mode(2) => f.write_str("MODE(transport)"),
            Self::Mode(3) => f.write_str("MODE(tunnel in UDP)"),
            Self::Mode(4) => f.write_str("MODE(transport in UDP)"),
            Self::Mode(other) => write!(f, "MODE({other})"),
            Self::Proto(value) => write!(f, "PROTO({})", ProtocolId(*value)),
            Self::Special(IKE_SA_ALONE) => f.write_str("SPECIAL(IKE SA)"),
            Self::Special(IKE_SA_AND_CHILD_SAS) => f.write_str("SPECIAL(IKE SA and Child SAs)"),
            Self::Special(ALL_IKE_SAS) => f.write_str("SPECIAL(all IKE SAs)"),
            Self::Special(other) => write!(f, "SPECIAL({other})"),
            Self::Id(id) => write!(f, "ID({id})"),
        }
    }
}

fn version(version: u8) -> String {
    if version == VERSION_NONE { "none".into() } else { version.to_string() }
}

impl fmt::Display for SpiParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Child(spi) => spi.fmt(f),
            Self::Ike(spi) => spi.fmt(f),
            Self::IkePair(initiator, responder) => write!(f, "{initiator}/{responder}"),
        }
    }
}

impl fmt::Display for IpParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)?;
        let bits =
            [(self.check, "C"), (self.old, "O"), (self.new, "N"), (self.header, "H"), (self.inner, "I")];
        for (_, name) in bits.iter().filter(|(set, _)| *set) {
            write!(f, " {name}")?;
        }
        self.mip.as_ref().map_or(Ok(()), |mip| write!(f, " {mip}"))
    }
}

impl fmt::Display for Mip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {}", self.preference)?;
        match self.class {
            0 => {}
            1 => f.write_str(" HoA")?,
            2 => f.write_str(" CoA")?,
            other => write!(f, " class {other}")?,
        }
        match self.reachability {
            Reachability::NoInfo => {}
            Reachability::Reachable => f.write_str(" reachable")?,
            Reachability::Unreachable => f.write_str(" unreachable")?,
        }
        if self.start != 0 {
            write!(f, " in {}s", self.start)?;
        }
        if self.life != 0 {
            write!(f, " for {}s", self.life)?;
        }
        Ok(())
    }
}
