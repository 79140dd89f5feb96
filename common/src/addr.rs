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
    /// Only the path of greatest weight.
    Backup,
}

/// A path with its share of the traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct WeightedPath {
    /// The pair of addresses.
    pub path: Path,
    /// Share of the traffic relative to the set's other paths; 0 keeps the path for receiving only.
    pub weight: u16,
}

/// The outer addresses of an SA. A change is a new value with a larger generation; nothing edits one in place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct AddressSet {
    /// Counts the changes, from 1.
    pub generation: u64,
    /// UDP encapsulation (RFC 3948); otherwise plain IP protocol 50.
    pub encap: bool,
    /// How to choose among the paths.
    pub scheduler: Scheduler,
    /// At least one path.
    pub paths: Vec<WeightedPath>,
}

impl AddressSet {
    /// The set that an SA starts with: one path.
    pub fn single(path: Path, encap: bool) -> Self {
        Self {
            generation: 1,
            encap,
            scheduler: Scheduler::default(),
            paths: vec![WeightedPath { path, weight: 1 }],
        }
    }
}
