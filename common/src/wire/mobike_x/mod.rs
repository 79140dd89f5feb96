//! The parameters that MOBIKE-X notifies carry as their data (MOBIKE-X draft 11.4).
//!
//! Every parameter starts on a multiple of four octets and its first octet is its type. There is no common
//! length field: the type alone says how long a parameter is, so nothing after an unknown one can be read.
//! Where the draft contradicts itself, the clauses named "profile" are the project's decision; the published
//! vectors (`common/specs/mobike-x-vectors.json`) show each of them in octets.

mod display;
mod emit;
mod error;
mod parse;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub use emit::emit;
pub use error::{ParameterError, ParameterErrorKind};
pub use parse::parse;

use crate::spi::{IkeSpi, Spi};

/// The most parameters that one notify may carry (profile 3); no meaningful one has more than a few.
pub const MAX_PARAMETERS: usize = 16;

/// VERSION of MOBIKE as in RFC 4555 (draft 11.4.1).
pub const VERSION_MOBIKE: u8 = 1;
/// VERSION of MOBIKE-X (draft 11.4.1; profile 3: 2 everywhere, although draft 6.2 says 1 once).
pub const VERSION_MOBIKE_X: u8 = 2;
/// VERSION that takes mobility back (draft 6.2, 11.4.1); only in MOBIKE_UNSUPPORTED_VERSION.
pub const VERSION_NONE: u8 = 255;

/// SELECTOR_SPECIFIC_VALUE: this IKE SA without its Child SAs (profile 5; missing in draft 11.4.7).
pub const IKE_SA_ALONE: u8 = 1;
/// SELECTOR_SPECIFIC_VALUE: this IKE SA and its Child SAs (draft 11.4.7).
pub const IKE_SA_AND_CHILD_SAS: u8 = 2;
/// SELECTOR_SPECIFIC_VALUE: all IKE SAs of the same peer (draft 11.4.7; "the same peer" as in profile 5).
pub const ALL_IKE_SAS: u8 = 3;

mod kind {
    //! Parameter types (draft 11.4.9).
    pub(super) const VERSION: u8 = 1;
    pub(super) const SPI: u8 = 2;
    pub(super) const IP: u8 = 3;
    pub(super) const IPSEC_MODE: u8 = 4;
    pub(super) const IPSEC_PROTO: u8 = 5;
    pub(super) const SELECTOR_SPECIFIC_VALUE: u8 = 6;
    pub(super) const ID: u8 = 7;
}

mod ip_bits {
    //! The second octet of the IP parameter (draft 11.4.3, figure).
    pub(super) const MIP: u8 = 0x80;
    pub(super) const CHECK: u8 = 0x10;
    pub(super) const OLD: u8 = 0x08;
    pub(super) const NEW: u8 = 0x04;
    pub(super) const HEADER: u8 = 0x02;
    pub(super) const INNER: u8 = 0x01;
    /// How far left the two bits of the IP version are, and their values (profile 3: as in the prose).
    pub(super) const VERSION_SHIFT: u8 = 5;
    pub(super) const IPV4: u8 = 0;
    pub(super) const IPV6: u8 = 1;
}

/// One parameter of a notify (draft 11.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// The versions offered, chosen or supported, 1 to 255 of them (draft 11.4.1).
    Version(Vec<u8>),
    /// An SA by its SPI (draft 11.4.2).
    Spi(SpiParameter),
    /// An address and what is to be done with it (draft 11.4.3).
    Ip(IpParameter),
    /// IPSEC_MODE: 1 tunnel, 2 transport, 3 and 4 the same in UDP (draft 11.4.5). Other values are kept.
    Mode(u8),
    /// IPSEC_PROTO: a Protocol ID of IKEv2 (draft 11.4.6). Other values are kept.
    Proto(u8),
    /// SELECTOR_SPECIFIC_VALUE: [`IKE_SA_ALONE`] and the like (draft 11.4.7). Other values are kept.
    Special(u8),
    /// What binds an answer to the notify that it answers (draft 10, 11.4.8).
    Id(u16),
}

/// What an SPI parameter names; its size tells which (profile 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpiParameter {
    /// 4 octets: a Child SA.
    Child(Spi),
    /// 8 octets: an IKE SA by one of its SPIs.
    Ike(IkeSpi),
    /// 16 octets: an IKE SA by both, the original initiator's first.
    IkePair(IkeSpi, IkeSpi),
}

/// An address with its bits (draft 11.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpParameter {
    /// The address.
    pub addr: IpAddr,
    /// C: only say whether the action would be done.
    pub check: bool,
    /// O: the address to be replaced.
    pub old: bool,
    /// N: the address that replaces.
    pub new: bool,
    /// H: an outer address, the one in the IP header on the wire.
    pub header: bool,
    /// I: an inner address of tunnel mode.
    pub inner: bool,
    /// Multihoming information, when the M bit is set.
    pub mip: Option<Mip>,
}

impl IpParameter {
    /// An outer address (H = 1), no other bit set.
    pub fn outer(addr: IpAddr) -> Self {
        Self { addr, check: false, old: false, new: false, header: true, inner: false, mip: None }
    }

    /// An inner address (I = 1), no other bit set.
    pub fn inner_addr(addr: IpAddr) -> Self {
        Self { header: false, inner: true, ..Self::outer(addr) }
    }
}

/// Multihoming Information Payload (draft 11.4.4). The default says nothing: it is valid at once and for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mip {
    /// PREFERENCE; larger is preferred (profile 6).
    pub preference: u8,
    /// CLASS: 0 none, 1 home address, 2 care-of address. Other values are kept.
    pub class: u8,
    /// What the sender knows about the address being reachable.
    pub reachability: Reachability,
    /// Seconds from receipt until the address is to be considered.
    pub start: u32,
    /// Seconds that the information holds; 0 means without end.
    pub life: u32,
}

/// R of the multihoming information (draft 11.4.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reachability {
    /// Nothing known; the unassigned value 3 reads as this (profile 3).
    #[default]
    NoInfo,
    /// Reachable.
    Reachable,
    /// Not reachable: keep it out of use.
    Unreachable,
}
