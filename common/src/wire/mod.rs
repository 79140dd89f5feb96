//! Wire formats. One file per protocol; parsers take slices, check lengths first and never panic.

pub mod checksum;
pub mod echo;
pub mod esp;
pub mod icmp;
pub mod ike;
pub mod ip;
pub mod mobike_x;
mod reader;
pub mod tcp;
pub mod udp;
pub mod virtio;

/// A packet or message does not have the form that its protocol demands.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// It ends before a field does.
    #[error("{what} is cut short: {need} octets needed, {have} there")]
    Truncated {
        /// The structure being read.
        what: &'static str,
        /// Octets that it needs.
        need: usize,
        /// Octets that are left.
        have: usize,
    },
    /// A length field contradicts what is there.
    #[error("{what} has a wrong length of {length}")]
    BadLength {
        /// The structure being read.
        what: &'static str,
        /// The length found.
        length: usize,
    },
    /// A field has a value that the format does not allow.
    #[error("{what} has the impossible value {value}")]
    BadValue {
        /// The field.
        what: &'static str,
        /// The value found.
        value: u64,
    },
    /// More items than we are willing to look at.
    #[error("more than {limit} {what}")]
    TooMany {
        /// The items.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
}
