//! What can be wrong with a parameter.

/// Notify data that does not read as parameters. The action that it belongs to is answered with
/// UNACCEPTABLE_PARAMETER (draft 11.3.4, profile 3).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at octet {offset}")]
pub struct ParameterError {
    /// What is wrong.
    pub kind: ParameterErrorKind,
    /// Where the faulty parameter starts in the notify data.
    pub offset: usize,
    /// The first ID parameter of the notify, before the fault or after it as far as lengths are known, so that
    /// the answer can echo it (draft 10).
    pub id: Option<u16>,
}

/// The faults that the form of a parameter can have (profile 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterErrorKind {
    /// The data ends before the parameter does.
    #[error("a parameter of {need} octets with {have} there")]
    Truncated {
        /// Octets that it needs.
        need: usize,
        /// Octets that are left.
        have: usize,
    },
    /// A type that is not assigned; its length is unknown.
    #[error("unknown parameter type {0}")]
    UnknownType(u8),
    /// VERSION without a version.
    #[error("VERSION parameter without versions")]
    NoVersions,
    /// VERSION with padding other than zero.
    #[error("VERSION parameter with padding other than zero")]
    Padding,
    /// An SPI that is not of 4, 8 or 16 octets.
    #[error("SPI parameter with an SPI of {0} octets")]
    SpiSize(u8),
    /// IP with a version field that is neither IPv4 (0) nor IPv6 (1).
    #[error("IP parameter with the IP version value {0}")]
    IpVersion(u8),
    /// More parameters than [`MAX_PARAMETERS`](super::MAX_PARAMETERS).
    #[error("more than {} parameters", super::MAX_PARAMETERS)]
    TooMany,
}
