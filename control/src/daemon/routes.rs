//! Routes into the TUN device follow the policies: one route per prefix of the peer's selectors, as long as a
//! trap or a Child SA wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mobikex_common::sa::{ChildSaId, PolicyId};
use mobikex_common::ts::TrafficSelector;
use tracing::warn;

use super::netlink::{HostAddress, Netlink, NetlinkError, Prefix, Route};

/// Where routes go; the kernel in production.
pub trait RouteSink {
    /// Adds a route or replaces the one to the same prefix.
    fn replace(&mut self, route: Route) -> Result<(), NetlinkError>;
    /// Removes a route, if it is there.
    fn remove(&mut self, route: Route) -> Result<(), NetlinkError>;
}

impl RouteSink for Netlink {
    fn replace(&mut self, route: Route) -> Result<(), NetlinkError> {
        self.replace_route(route)
    }

    fn remove(&mut self, route: Route) -> Result<(), NetlinkError> {
        self.remove_route(route)
    }
}

/// Who wants a route. The policy comes first, so that all of a policy's owners are neighbours.
type Owner = (PolicyId, Option<ChildSaId>);

struct Wanted {
    owners: BTreeMap<Owner, Vec<TrafficSelector>>,
    source: Option<IpAddr>,
}

/// The routes that are wanted, and by whom.
pub struct Routes {
    device: u32,
    table: u32,
    addresses: Vec<HostAddress>,
    wanted: BTreeMap<Prefix, Wanted>,
}

impl Routes {
    /// No routes yet.
    pub fn new(device: u32, table: u32) -> Self {
        Self { device, table, addresses: Vec::new(), wanted: BTreeMap::new() }
    }

    /// A policy's trap (`child` is none) or a Child SA of it wants the peer's side to be reached through us.
    pub fn add(
        &mut self,
        sink: &mut impl RouteSink,
        policy: PolicyId,
        child: Option<ChildSaId>,
        ts_local: &[TrafficSelector],
        ts_remote: &[TrafficSelector],
    ) {
        let prefixes: BTreeSet<Prefix> = ts_remote.iter().flat_map(TrafficSelector::prefixes).collect();
        for prefix in prefixes {
            let wanted =
                self.wanted.entry(prefix).or_insert_with(|| Wanted { owners: BTreeMap::new(), source: None });
            let first = wanted.owners.is_empty();
            wanted.owners.insert((policy, child), ts_local.to_vec());
            let source = source_for(prefix, wanted, &self.addresses, self.device);
            if first || source != wanted.source {
                wanted.source = source;
                install(sink, Route { prefix, device: self.device, table: self.table, source });
            }
        }
    }

    /// A Child SA has other selectors: what is new comes before what is old goes.
    pub fn change_child(
        &mut self,
        sink: &mut impl RouteSink,
        child: ChildSaId,
        ts_local: &[TrafficSelector],
        ts_remote: &[TrafficSelector],
    ) {
        let owner = self.wanted.values().flat_map(|w| w.owners.keys()).find(|o| o.1 == Some(child)).copied();
        let Some(owner) = owner else { return };
        self.add(sink, owner.0, owner.1, ts_local, ts_remote);
        let wanted: BTreeSet<Prefix> = ts_remote.iter().flat_map(TrafficSelector::prefixes).collect();
        self.remove_owners(sink, |prefix, o| *o == owner && !wanted.contains(prefix));
    }

    /// A Child SA is gone.
    pub fn remove_child(&mut self, sink: &mut impl RouteSink, child: ChildSaId) {
        self.remove_owners(sink, |_, owner| owner.1 == Some(child));
    }

    /// A policy is gone, and with it whatever its Child SAs still want.
    pub fn remove_policy(&mut self, sink: &mut impl RouteSink, policy: PolicyId) {
        self.remove_owners(sink, |_, owner| owner.0 == policy);
    }

    /// This host's addresses, which are candidates for the source of packets into a tunnel. The kernel drops
    /// routes whose source address goes away, so that every route is written again.
    pub fn set_addresses(&mut self, sink: &mut impl RouteSink, addresses: Vec<HostAddress>) {
        if addresses == self.addresses {
            return;
        }
        self.addresses = addresses;
        for (&prefix, wanted) in &mut self.wanted {
            wanted.source = source_for(prefix, wanted, &self.addresses, self.device);
            let (device, table, source) = (self.device, self.table, wanted.source);
            install(sink, Route { prefix, device, table, source });
        }
    }

    /// Removes everything.
    pub fn clear(&mut self, sink: &mut impl RouteSink) {
        self.remove_owners(sink, |_, _| true);
    }

    fn remove_owners(&mut self, sink: &mut impl RouteSink, gone: impl Fn(&Prefix, &Owner) -> bool) {
        let (device, table) = (self.device, self.table);
        self.wanted.retain(|&prefix, wanted| {
            wanted.owners.retain(|owner, _| !gone(&prefix, owner));
            if wanted.owners.is_empty() {
                if let Err(error) = sink.remove(Route { prefix, device, table, source: None }) {
                    warn!(target: "NET", "{error}");
                }
                return false;
            }
            true
        });
    }
}

fn install(sink: &mut impl RouteSink, route: Route) {
    if let Err(error) = sink.replace(route) {
        warn!(target: "NET", "{error}");
    }
}

/// An address of ours that the policy lets speak to the peer, so that this host can use its own tunnels.
fn source_for(prefix: Prefix, wanted: &Wanted, addresses: &[HostAddress], device: u32) -> Option<IpAddr> {
    let inside = |addr: &IpAddr| wanted.owners.values().flatten().any(|ts| ts.contains_addr(*addr));
    addresses
        .iter()
        .filter(|a| a.addr.is_ipv4() == prefix.0.is_ipv4() && inside(&a.addr))
        // One on the TUN device itself was put there for this purpose.
        .min_by_key(|a| a.device != device)
        .map(|a| a.addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Log(Vec<String>);

    impl RouteSink for Log {
        fn replace(&mut self, route: Route) -> Result<(), NetlinkError> {
            let source = route.source.map_or(String::new(), |s| format!(" src {s}"));
            self.0.push(format!("+{}/{}{source}", route.prefix.0, route.prefix.1));
            Ok(())
        }
        fn remove(&mut self, route: Route) -> Result<(), NetlinkError> {
            self.0.push(format!("-{}/{}", route.prefix.0, route.prefix.1));
            Ok(())
        }
    }

    fn ts(text: &str) -> Vec<TrafficSelector> {
        text.split(' ').map(|t| t.parse().unwrap()).collect()
    }

    fn addr(device: u32, text: &str) -> HostAddress {
        HostAddress { device, addr: text.parse().unwrap() }
    }

    #[test]
    fn a_route_stays_as_long_as_anybody_wants_it() {
        let (mut routes, mut log) = (Routes::new(7, 220), Log::default());
        let (policy, other) = (PolicyId(1), PolicyId(2));
        let (local, remote) = (ts("10.1.0.0/16"), ts("10.2.0.0/16 10.2.0.0/16[tcp/80] 10.3.0.0..10.3.0.2"));
        routes.add(&mut log, policy, None, &local, &remote);
        assert_eq!(log.0, ["+10.2.0.0/16", "+10.3.0.0/31", "+10.3.0.2/32"]);
        log.0.clear();
        routes.add(&mut log, policy, Some(ChildSaId(1)), &local, &remote);
        routes.add(&mut log, policy, Some(ChildSaId(2)), &local, &remote);
        routes.remove_child(&mut log, ChildSaId(1));
        routes.add(&mut log, other, Some(ChildSaId(3)), &local, &ts("10.2.0.0/16"));
        assert!(log.0.is_empty(), "{:?}", log.0);
        routes.remove_policy(&mut log, policy);
        assert_eq!(log.0, ["-10.3.0.0/31", "-10.3.0.2/32"]);
        routes.remove_child(&mut log, ChildSaId(2));
        routes.clear(&mut log);
        assert_eq!(log.0.last().unwrap(), "-10.2.0.0/16");
        assert_eq!(log.0.len(), 3);
    }

    #[test]
    fn the_source_is_an_address_that_the_policy_permits() {
        let (mut routes, mut log) = (Routes::new(7, 220), Log::default());
        let addresses = vec![addr(2, "192.0.2.1"), addr(3, "10.1.0.1"), addr(3, "2001:db8:1::1")];
        routes.set_addresses(&mut log, addresses.clone());
        let (local, remote) = (ts("10.1.0.0/16 2001:db8:1::/48"), ts("10.2.0.0/16 2001:db8:2::/48"));
        routes.add(&mut log, PolicyId(1), None, &local, &remote);
        assert_eq!(log.0, ["+10.2.0.0/16 src 10.1.0.1", "+2001:db8:2::/48 src 2001:db8:1::1"]);
        log.0.clear();
        routes.set_addresses(&mut log, addresses);
        assert!(log.0.is_empty());
        routes.set_addresses(&mut log, vec![addr(3, "10.1.0.1"), addr(7, "10.1.0.9")]);
        assert_eq!(log.0, ["+10.2.0.0/16 src 10.1.0.9", "+2001:db8:2::/48"]);
    }
}
