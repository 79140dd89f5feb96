//! Our own virtual addresses, and the servers that peers have named with them: what the machine is to have, as long as an IKE
//! SA holds it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use serde::Serialize;

use super::output::Output;

/// What a peer has given to us (CFG_REPLY, RFC 7296 3.15).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Given {
    /// Our virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// DNS servers.
    pub dns: Vec<IpAddr>,
    /// DNS domains.
    pub domains: Vec<String>,
    /// NetBIOS name servers.
    pub nbns: Vec<IpAddr>,
    /// DHCP servers.
    pub dhcp: Vec<IpAddr>,
    /// Networks behind the peer. They are shown; what is sent through the tunnel is what the selectors say.
    pub subnets: Vec<String>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Internal {
    holders: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// Of IKE SAs whose peer has named any.
    servers: BTreeMap<u32, (Vec<IpAddr>, Vec<String>)>,
    /// What each connection had last, to ask for it again.
    last: HashMap<String, Vec<IpAddr>>,
}

impl Internal {
    /// An IKE SA has been given this, or shares it with the one that it succeeds.
    pub(super) fn hold(&mut self, out: &mut VecDeque<Output>, (connection, ike): (&str, u32), given: &Given) {
        for addr in &given.addresses {
            let holders = self.holders.entry(*addr).or_default();
            if holders.is_empty() {
                out.push_back(Output::InstallAddress(*addr));
            }
            holders.insert(ike);
        }
        self.last.insert(connection.to_string(), given.addresses.clone());
        if !given.dns.is_empty() || !given.domains.is_empty() {
            let before = self.resolvers();
            self.servers.insert(ike, (given.dns.clone(), given.domains.clone()));
            self.tell(out, before);
        }
    }

    /// An IKE SA is gone.
    pub(super) fn release(&mut self, out: &mut VecDeque<Output>, ike: u32, given: &Given) {
        for addr in &given.addresses {
            if let Some(holders) = self.holders.get_mut(addr) {
                holders.remove(&ike);
                if holders.is_empty() {
                    self.holders.remove(addr);
                    out.push_back(Output::RemoveAddress(*addr));
                }
            }
        }
        if self.servers.contains_key(&ike) {
            let before = self.resolvers();
            self.servers.remove(&ike);
            self.tell(out, before);
        }
    }

    /// What a connection had last of a family.
    pub(super) fn last(&self, connection: &str, ipv4: bool) -> Option<IpAddr> {
        self.last.get(connection)?.iter().copied().find(|addr| addr.is_ipv4() == ipv4)
    }

    /// The IKE SAs that hold an address of ours.
    pub(super) fn holders(&self, addr: IpAddr) -> impl Iterator<Item = u32> + '_ {
        self.holders.get(&addr).into_iter().flatten().copied()
    }

    /// Forgets connections that are no longer configured.
    pub(super) fn retain(&mut self, configured: impl Fn(&str) -> bool) {
        self.last.retain(|name, _| configured(name));
    }

    fn tell(&self, out: &mut VecDeque<Output>, before: (Vec<IpAddr>, Vec<String>)) {
        let (servers, domains) = self.resolvers();
        if (&servers, &domains) != (&before.0, &before.1) {
            out.push_back(Output::SetResolvers { servers, domains });
        }
    }

    /// All servers and domains, those of the oldest IKE SA first, each once.
    fn resolvers(&self) -> (Vec<IpAddr>, Vec<String>) {
        let (mut servers, mut domains) = (Vec::new(), Vec::new());
        for (dns, names) in self.servers.values() {
            add_new(&mut servers, dns);
            add_new(&mut domains, names);
        }
        (servers, domains)
    }
}

/// Adds what is not there yet.
pub(super) fn add_new<T: Clone + PartialEq>(list: &mut Vec<T>, more: &[T]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}
