//! The machine's addresses as the engine knows them, and which of them a connection may use.

use std::net::IpAddr;

use mobikex_common::ts::TrafficSelector;

use crate::config::Connection;

/// Addresses that have gone and are remembered.
const MAX_FORMER: usize = 16;

/// An address of this host, with the interface that has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalAddress {
    /// The address.
    pub addr: IpAddr,
    /// Index of the interface; 0 when not known.
    pub device: u32,
    /// Its name.
    pub interface: String,
    /// Destinations that some route leads to through that interface.
    pub reach: Vec<TrafficSelector>,
}

impl LocalAddress {
    /// Whether there is a default route from here.
    pub(super) fn leads_anywhere(&self) -> bool {
        let any = if self.addr.is_ipv4() { TrafficSelector::ANY_V4 } else { TrafficSelector::ANY_V6 };
        self.reach.iter().any(|r| r.covers(&any))
    }

    /// Whether packets from here can be sent to `remote` at all.
    pub(super) fn reaches(&self, remote: IpAddr) -> bool {
        self.addr.is_ipv4() == remote.is_ipv4() && self.reach.iter().any(|r| r.contains_addr(remote))
    }
}

/// All addresses of this host, those preferred by the system first.
#[derive(Clone, Default, Debug)]
pub(super) struct Network {
    addresses: Vec<LocalAddress>,
    /// The machine has been looked at.
    known: bool,
    /// Those that have gone, the latest last.
    former: Vec<IpAddr>,
}

impl Network {
    /// Takes up a new state; tells whether anything is different.
    pub(super) fn set(&mut self, addresses: Vec<LocalAddress>) -> bool {
        let changed = self.addresses != addresses;
        let before = std::mem::replace(&mut self.addresses, addresses);
        let gone = before.into_iter().map(|a| a.addr).filter(|a| self.find(*a).is_none());
        let gone: Vec<IpAddr> = gone.collect();
        self.former.retain(|a| !gone.contains(a));
        self.former.extend(gone);
        let surplus = self.former.len().saturating_sub(MAX_FORMER);
        self.former.drain(..surplus);
        self.known = true;
        changed
    }

    /// All addresses that are or were ours not long ago: a message may still be about one of them.
    pub(super) fn had(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(|a| a.addr).chain(self.former.iter().copied())
    }

    /// The interface of an address; 0 when it is none of ours.
    pub(super) fn device(&self, addr: IpAddr) -> u32 {
        self.find(addr).map_or(0, |a| a.device)
    }

    /// Whether an address is ours. As long as nothing is known about the machine, all are.
    pub(super) fn has(&self, addr: IpAddr) -> bool {
        self.addresses.is_empty() || self.find(addr).is_some()
    }

    /// Whether an address is known not to be ours any more.
    pub(super) fn lacks(&self, addr: IpAddr) -> bool {
        self.known && self.find(addr).is_none()
    }

    pub(super) fn find(&self, addr: IpAddr) -> Option<&LocalAddress> {
        self.addresses.iter().find(|a| a.addr == addr)
    }

    /// Those that a connection's policy lets it use: its `local_addrs` and `interfaces`, and nothing that lies
    /// inside its own tunnels.
    pub(super) fn usable<'a>(&'a self, conn: &'a Connection) -> impl Iterator<Item = &'a LocalAddress> {
        let inside: Vec<TrafficSelector> = conn.tunnelled().collect();
        self.addresses.iter().filter(move |a| {
            let tunnelled = || inside.iter().any(|ts| ts.contains_addr(a.addr));
            conn.may_use(a.addr, &a.interface)
                && !a.reach.is_empty()
                && (conn.names_local(a.addr) || !tunnelled())
        })
    }
}
