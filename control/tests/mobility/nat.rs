//! A NAT before host 0.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Translates the IPv4 addresses of host 0; IPv6 passes.
pub struct Nat {
    pub outside: IpAddr,
    /// Lets in only what comes from where a mapping has been used toward (RFC 4787 5, "address and port-dependent").
    pub filters: bool,
    next_port: u16,
    mappings: BTreeMap<SocketAddr, Mapping>,
}

struct Mapping {
    port: u16,
    contacted: BTreeSet<SocketAddr>,
}

impl Nat {
    pub fn new(outside: &str) -> Self {
        Self {
            outside: outside.parse().unwrap(),
            filters: false,
            next_port: 20_000,
            mappings: BTreeMap::new(),
        }
    }

    /// Forgets all mappings, as a reboot does; further ports are other ones.
    pub fn reboot(&mut self) {
        self.mappings.clear();
    }

    /// Forgets the mappings of one inside address, as a timeout does.
    pub fn rebind(&mut self, inside: IpAddr) {
        self.mappings.retain(|source, _| source.ip() != inside);
    }

    pub(super) fn out(&mut self, source: SocketAddr, destination: SocketAddr) -> SocketAddr {
        if source.is_ipv6() {
            return source;
        }
        let next_port = &mut self.next_port;
        let mapping = self.mappings.entry(source).or_insert_with(|| {
            *next_port += 1;
            Mapping { port: *next_port, contacted: BTreeSet::new() }
        });
        mapping.contacted.insert(destination);
        SocketAddr::new(self.outside, mapping.port)
    }

    /// The host behind an address and port of the outside, if what comes from `source` is let in.
    pub(super) fn back(&self, destination: SocketAddr, source: SocketAddr) -> Option<SocketAddr> {
        let (inside, mapping) = self.find(destination)?;
        (!self.filters || mapping.contacted.contains(&source)).then_some(inside)
    }

    fn find(&self, destination: SocketAddr) -> Option<(SocketAddr, &Mapping)> {
        let mut found = self.mappings.iter().filter(|(_, mapping)| mapping.port == destination.port());
        found.next().filter(|_| destination.ip() == self.outside).map(|(inside, mapping)| (*inside, mapping))
    }
}
