//! A NAT before host 0.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Translates the IPv4 addresses of host 0; IPv6 passes.
pub struct Nat {
    pub outside: IpAddr,
    /// Lets in only what comes from where a mapping has been used toward (RFC 4787 5, "address and port-dependent"). What
    /// came from elsewhere before is a connection to the NAT itself, as Linux sees it: toward there it uses another port.
    pub filters: bool,
    /// Has a mapping of its own for each destination (RFC 4787 4.1, "address and port-dependent").
    pub per_destination: bool,
    next_port: u16,
    /// By the source, and by the destination if that matters.
    mappings: BTreeMap<(SocketAddr, Option<SocketAddr>), Mapping>,
    /// Ports of the outside that are taken toward a destination.
    taken: BTreeSet<(u16, SocketAddr)>,
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
            per_destination: false,
            next_port: 20_000,
            mappings: BTreeMap::new(),
            taken: BTreeSet::new(),
        }
    }

    /// Forgets all mappings, as a reboot does; further ports are other ones.
    pub fn reboot(&mut self) {
        self.mappings.clear();
        self.taken.clear();
    }

    /// Forgets the mappings of one inside address, as a timeout does.
    pub fn rebind(&mut self, inside: IpAddr) {
        self.mappings.retain(|(source, _), _| source.ip() != inside);
    }

    pub(super) fn out(&mut self, source: SocketAddr, destination: SocketAddr) -> SocketAddr {
        if source.is_ipv6() {
            return source;
        }
        let next_port = &mut self.next_port;
        let common = self.mappings.get(&(source, None)).filter(|m| !m.contacted.contains(&destination));
        let taken = common.is_some_and(|m| self.taken.contains(&(m.port, destination)));
        let toward = (self.per_destination || taken).then_some(destination);
        let mapping = self.mappings.entry((source, toward)).or_insert_with(|| {
            *next_port += 1;
            while self.taken.contains(&(*next_port, destination)) {
                *next_port += 1;
            }
            Mapping { port: *next_port, contacted: BTreeSet::new() }
        });
        mapping.contacted.insert(destination);
        SocketAddr::new(self.outside, mapping.port)
    }

    /// The host behind an address and port of the outside, if what comes from `source` is let in.
    pub(super) fn back(&self, destination: SocketAddr, source: SocketAddr) -> Option<SocketAddr> {
        let (inside, mapping) = self.find(destination)?;
        let open = !self.filters && !self.per_destination;
        (open || mapping.contacted.contains(&source)).then_some(inside)
    }

    /// The same for a datagram, which leaves its trace if it is not let in.
    pub(super) fn enter(&mut self, destination: SocketAddr, source: SocketAddr) -> Option<SocketAddr> {
        let inside = self.back(destination, source);
        if inside.is_none() && destination.ip() == self.outside {
            self.taken.insert((destination.port(), source));
        }
        inside
    }

    fn find(&self, destination: SocketAddr) -> Option<(SocketAddr, &Mapping)> {
        let mut found = self.mappings.iter().filter(|(_, mapping)| mapping.port == destination.port());
        let found = found.next().filter(|_| destination.ip() == self.outside);
        found.map(|((inside, _), mapping)| (*inside, mapping))
    }
}
