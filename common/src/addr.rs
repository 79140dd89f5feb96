//! Outer addresses of an SA: the set as one immutable value, and the paths that it spans.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

/// One (local, remote) pair of outer addresses. Ports are those of UDP encapsulation; they are ignored for
/// plain ESP (IP protocol 50).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct Path {
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=={}", self.local, self.remote)
    }
}

/// How outbound packets are spread over the paths of a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// A flow stays on one path; flows are spread by weight.
    #[default]
    Flow,
    /// Packets are spread by weight, whatever their flow; the receiver puts them in order again.
    Packet,
    /// Every packet goes out on every path; the receiver's replay window drops the copies.
    Redundant,
    /// Only the path of greatest weight.
    Backup,
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flow => "flow",
            Self::Packet => "packet",
            Self::Redundant => "redundant",
            Self::Backup => "backup",
        })
    }
}

/// A path with its share of the traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct WeightedPath {
    /// The pair of addresses.
    pub path: Path,
    /// Index of the interface by which packets leave; 0 leaves the choice to the routing table. The system binds
    /// IPv4 to it. For IPv6 it only prefers it among routes of one metric, so with several IPv6 uplinks the daemon
    /// adds rules by source address.
    pub device: u32,
    /// UDP encapsulation (RFC 3948); otherwise plain IP protocol 50.
    pub encap: bool,
    /// Share of the traffic relative to the set's other paths; 0 keeps the path for receiving only.
    pub weight: u16,
    /// The peer's address has not been shown to be reachable yet (RFC 4555 3.7): at most three times the octets
    /// that came from it may be sent to it.
    pub limited: bool,
}

impl WeightedPath {
    /// A proven path of weight 1 by whatever interface the system chooses.
    pub fn new(path: Path, encap: bool) -> Self {
        Self { path, device: 0, encap, weight: 1, limited: false }
    }
}

/// The outer addresses of an SA. A change is a new value with a larger generation; nothing edits one in place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct AddressSet {
    /// Counts the changes, from 1.
    pub generation: u64,
    /// How to choose among the paths.
    pub scheduler: Scheduler,
    /// Longest time in milliseconds that a packet of the peer waits for one with a smaller sequence number that
    /// is still missing; 0 delivers packets as they come.
    pub resequence_ms: u16,
    /// At least one path.
    pub paths: Vec<WeightedPath>,
}

impl AddressSet {
    /// The set that an SA starts with: one path.
    pub fn single(path: Path, encap: bool) -> Self {
        Self {
            generation: 1,
            scheduler: Scheduler::default(),
            resequence_ms: 0,
            paths: vec![WeightedPath::new(path, encap)],
        }
    }
}
