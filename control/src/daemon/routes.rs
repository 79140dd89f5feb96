//! Routes into the TUN device follow the policies: one route per prefix of the peer's selectors, as long as a
//! trap or a Child SA wants it.
//!
//! What a peer gives up while its SA goes on (an address of transport mode, an inner address) keeps its route for a
//! while. No SA covers it, so that packets to it are dropped; without the route, what applications still send on their
//! old connections would leave in the clear.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

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

/// How long what a peer has given up is kept out of the clear: TCP repeats data for 924.6 s (tcp_retries2 of tcp(7)).
const CLOSED: Duration = Duration::from_secs(16 * 60);
/// The latest prefixes of a policy that are kept so.
const CLOSED_MAX: usize = 32;

/// Who wants a route, under a policy.
type Owner = (PolicyId, Claim);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Claim {
    Trap,
    Child(ChildSaId),
    /// Nobody's any more, but not to be reached in the clear.
    Closed,
}

struct Closed {
    prefix: Prefix,
    policy: PolicyId,
    until: Instant,
}

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
    /// The other way round: what each owner wants.
    claims: BTreeMap<Owner, BTreeSet<Prefix>>,
    policies: HashMap<ChildSaId, PolicyId>,
    /// In the order in which they end.
    closed: Vec<Closed>,
}

impl Routes {
    /// No routes yet.
    pub fn new(device: u32, table: u32) -> Self {
        Self {
            device,
            table,
            addresses: Vec::new(),
            wanted: BTreeMap::new(),
            claims: BTreeMap::new(),
            policies: HashMap::new(),
            closed: Vec::new(),
        }
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
        let owner = (policy, child.map_or(Claim::Trap, Claim::Child));
        for prefix in prefixes(ts_remote) {
            self.claim(sink, prefix, owner, ts_local);
        }
    }

    /// A Child SA has other selectors: what is new comes before what is old is closed.
    pub fn change_child(
        &mut self,
        sink: &mut impl RouteSink,
        child: ChildSaId,
        ts_local: &[TrafficSelector],
        ts_remote: &[TrafficSelector],
        now: Instant,
    ) {
        let Some(policy) = self.policies.get(&child).copied() else { return };
        let owner = (policy, Claim::Child(child));
        self.add(sink, policy, Some(child), ts_local, ts_remote);
        let wanted = prefixes(ts_remote);
        let had = self.claims.get(&owner).cloned().unwrap_or_default();
        for prefix in had.difference(&wanted) {
            self.close(sink, *prefix, policy, now);
            self.release(sink, owner, *prefix);
        }
    }

    /// A Child SA is gone. With the last one of its policy, what its peer has given up is nobody's concern.
    pub fn remove_child(&mut self, sink: &mut impl RouteSink, child: ChildSaId) {
        let Some(policy) = self.policies.get(&child).copied() else { return };
        self.remove_owner(sink, (policy, Claim::Child(child)));
        if self.claims.range((policy, Claim::Trap)..(policy, Claim::Closed)).next().is_none() {
            self.remove_owner(sink, (policy, Claim::Closed));
        }
    }

    /// When [`Self::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.closed.first().map(|closed| closed.until)
    }

    /// Ends what was closed long enough.
    pub fn expire(&mut self, sink: &mut impl RouteSink, now: Instant) {
        let over = self.closed.iter().take_while(|closed| closed.until <= now).count();
        for Closed { prefix, policy, .. } in self.closed.drain(..over).collect::<Vec<_>>() {
            self.release(sink, (policy, Claim::Closed), prefix);
        }
    }

    /// A policy is gone, and with it whatever its Child SAs still want.
    pub fn remove_policy(&mut self, sink: &mut impl RouteSink, policy: PolicyId) {
        let owners = self.claims.range((policy, Claim::Trap)..=(policy, Claim::Closed));
        for owner in owners.map(|(owner, _)| *owner).collect::<Vec<_>>() {
            self.remove_owner(sink, owner);
        }
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

    /// The TUN device has one more address.
    pub fn add_address(&mut self, sink: &mut impl RouteSink, addr: IpAddr) {
        let added = HostAddress { device: self.device, addr };
        let mut addresses = self.addresses.clone();
        if !addresses.contains(&added) {
            addresses.push(added);
        }
        self.set_addresses(sink, addresses);
    }

    /// The TUN device has an address no more.
    pub fn remove_address(&mut self, sink: &mut impl RouteSink, addr: IpAddr) {
        let gone = HostAddress { device: self.device, addr };
        let addresses = self.addresses.iter().filter(|a| **a != gone).copied().collect();
        self.set_addresses(sink, addresses);
    }

    /// Removes everything.
    pub fn clear(&mut self, sink: &mut impl RouteSink) {
        for owner in self.claims.keys().copied().collect::<Vec<_>>() {
            self.remove_owner(sink, owner);
        }
    }

    fn claim(
        &mut self,
        sink: &mut impl RouteSink,
        prefix: Prefix,
        owner: Owner,
        ts_local: &[TrafficSelector],
    ) {
        let wanted =
            self.wanted.entry(prefix).or_insert_with(|| Wanted { owners: BTreeMap::new(), source: None });
        let first = wanted.owners.is_empty();
        wanted.owners.insert(owner, ts_local.to_vec());
        self.claims.entry(owner).or_default().insert(prefix);
        if let (policy, Claim::Child(child)) = owner {
            self.policies.insert(child, policy);
        }
        let source = source_for(prefix, wanted, &self.addresses, self.device);
        if first || source != wanted.source {
            wanted.source = source;
            install(sink, Route { prefix, device: self.device, table: self.table, source });
        }
    }

    fn close(&mut self, sink: &mut impl RouteSink, prefix: Prefix, policy: PolicyId, now: Instant) {
        self.claim(sink, prefix, (policy, Claim::Closed), &[]);
        self.closed.retain(|c| (c.prefix, c.policy) != (prefix, policy));
        self.closed.push(Closed { prefix, policy, until: now + CLOSED });
        if self.closed.iter().filter(|c| c.policy == policy).count() > CLOSED_MAX
            && let Some(oldest) = self.closed.iter().position(|c| c.policy == policy)
        {
            let Closed { prefix, .. } = self.closed.remove(oldest);
            self.release(sink, (policy, Claim::Closed), prefix);
        }
    }

    fn remove_owner(&mut self, sink: &mut impl RouteSink, owner: Owner) {
        for prefix in self.claims.get(&owner).cloned().unwrap_or_default() {
            self.release(sink, owner, prefix);
        }
        match owner {
            (policy, Claim::Closed) => self.closed.retain(|closed| closed.policy != policy),
            (_, Claim::Child(child)) => {
                self.policies.remove(&child);
            }
            (_, Claim::Trap) => {}
        }
    }

    /// An owner wants a prefix no more.
    fn release(&mut self, sink: &mut impl RouteSink, owner: Owner, prefix: Prefix) {
        if let Some(claims) = self.claims.get_mut(&owner) {
            claims.remove(&prefix);
            if claims.is_empty() {
                self.claims.remove(&owner);
            }
        }
        let Some(wanted) = self.wanted.get_mut(&prefix) else { return };
        wanted.owners.remove(&owner);
        if wanted.owners.is_empty() {
            self.wanted.remove(&prefix);
            let (device, table) = (self.device, self.table);
            if let Err(error) = sink.remove(Route { prefix, device, table, source: None }) {
                warn!(target: "NET", "{error}");
            }
        }
    }
}

fn prefixes(selectors: &[TrafficSelector]) -> BTreeSet<Prefix> {
    selectors.iter().flat_map(TrafficSelector::prefixes).collect()
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

    #[test]
    fn a_virtual_address_is_the_source_as_long_as_it_is_there() {
        let (mut routes, mut log) = (Routes::new(7, 220), Log::default());
        routes.set_addresses(&mut log, vec![addr(2, "192.0.2.1")]);
        let vip: IpAddr = "10.3.0.1".parse().unwrap();
        routes.add_address(&mut log, vip);
        routes.add(&mut log, PolicyId(1), Some(ChildSaId(1)), &ts("10.3.0.1"), &ts("0.0.0.0/0"));
        assert_eq!(log.0, ["+0.0.0.0/0 src 10.3.0.1"]);
        log.0.clear();
        // The kernel tells of it as well.
        routes.set_addresses(&mut log, vec![addr(2, "192.0.2.1"), addr(7, "10.3.0.1")]);
        assert!(log.0.is_empty(), "{:?}", log.0);
        routes.remove_address(&mut log, vip);
        assert_eq!(log.0, ["+0.0.0.0/0"]);
    }

    #[test]
    fn what_a_peer_gives_up_stays_out_of_the_clear_for_a_while() {
        let (mut routes, mut log, now) = (Routes::new(7, 220), Log::default(), Instant::now());
        let (child, next, local) = (ChildSaId(1), ChildSaId(2), ts("192.0.2.1"));
        routes.add(&mut log, PolicyId(1), Some(child), &local, &ts("198.51.100.1 198.51.100.2"));
        log.0.clear();
        routes.change_child(&mut log, child, &local, &ts("198.51.100.2"), now);
        routes.change_child(&mut log, child, &local, &ts("198.51.100.2 198.51.100.3"), now);
        assert_eq!(log.0, ["+198.51.100.3/32"]);
        log.0.clear();
        // Rekeying ends nothing early, and a second absence counts from its own beginning.
        let later = now + CLOSED / 2;
        routes.add(&mut log, PolicyId(1), Some(next), &local, &ts("198.51.100.2 198.51.100.3"));
        routes.remove_child(&mut log, child);
        routes.change_child(&mut log, next, &local, &ts("198.51.100.2"), later);
        routes.expire(&mut log, now + CLOSED - Duration::from_secs(1));
        assert!(log.0.is_empty(), "{:?}", log.0);
        assert_eq!(routes.next_expiry(), Some(now + CLOSED));
        routes.expire(&mut log, now + CLOSED);
        assert_eq!(log.0, ["-198.51.100.1/32"]);
        // Once nobody has an SA with the peer, its addresses are like any others.
        routes.remove_child(&mut log, next);
        assert_eq!(log.0[1..], ["-198.51.100.2/32", "-198.51.100.3/32"]);
        assert_eq!(routes.next_expiry(), None);
    }

    #[test]
    fn a_peer_that_moves_without_end_leaves_a_bounded_trail() {
        let (mut routes, mut log, now) = (Routes::new(7, 220), Log::default(), Instant::now());
        let (child, local) = (ChildSaId(1), ts("192.0.2.1"));
        routes.add(&mut log, PolicyId(1), Some(child), &local, &ts("198.51.100.0"));
        for n in 1..100 {
            routes.change_child(&mut log, child, &local, &ts(&format!("198.51.100.{n}")), now);
        }
        assert_eq!(routes.wanted.len(), 1 + CLOSED_MAX);
        assert_eq!(log.0.last().map(String::as_str), Some("-198.51.100.66/32"));
        routes.clear(&mut log);
        assert!(routes.wanted.is_empty() && routes.next_expiry().is_none());
    }
}
