//! Virtual addresses of peers: which are given to whom (RFC 7296 2.19).
//!
//! A lease belongs to an identity and is online while an IKE SA holds it. Afterwards the address is kept for that identity
//! as long as there are others: a pool gives the peer's own old address, then one that nobody has had, then the one
//! that has been offline longest. All leases are in one table, whatever pool they came from, so that no change of the
//! configuration can give an address twice. Memory goes with the leases and not with the size of a pool.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use mobikex_common::wire::ike::Identification;
use serde::Serialize;

use crate::config::{self, Pool, address, number};

/// Leases that are kept for identities without an IKE SA, in each pool.
const OFFLINE_MAX: usize = 65_536;

/// A lease's last holder has left: when, counted in leases that ended.
type Ended = u64;

struct Lease {
    identity: Identification,
    /// IKE SAs that hold it: one, and while it is rekeyed or set up again its successor as well.
    holders: Vec<u32>,
    ended: Ended,
}

#[derive(Default)]
struct State {
    /// Where to look for an address that nobody has had, as a distance from the first.
    next: u128,
    /// Leases in its range.
    used: u128,
    offline: BTreeSet<(Ended, IpAddr)>,
}

/// Who asks for an address.
pub(super) struct Asker<'a> {
    pub(super) identity: &'a Identification,
    /// The IKE SA.
    pub(super) ike: u32,
    /// IKE SAs of the same peer that this one replaces; it may have what they hold.
    pub(super) replaces: &'a [u32],
}

/// All pools and leases.
#[derive(Default)]
pub(super) struct Pools {
    pools: Vec<(Pool, State)>,
    leases: BTreeMap<IpAddr, Lease>,
    by_identity: HashMap<Vec<u8>, BTreeSet<IpAddr>>,
    ended: Ended,
    /// [`OFFLINE_MAX`], but for tests.
    offline_max: usize,
}

/// A pool as an operator sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PoolView {
    /// Name.
    pub name: String,
    /// First and last address.
    pub addrs: config::AddressRange,
    /// How many addresses there are, or the largest number that fits.
    pub size: u64,
    /// Leases that IKE SAs hold.
    pub online: usize,
    /// Leases that are kept for those who had them.
    pub offline: usize,
}

/// A lease as an operator sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LeaseView {
    /// Pool, unless the configuration has it no more.
    pub pool: Option<String>,
    /// The address.
    pub addr: IpAddr,
    /// Whose it is.
    pub identity: String,
    /// An IKE SA holds it.
    pub online: bool,
}

impl Pools {
    pub(super) fn new(pools: &[Pool]) -> Self {
        let mut all = Self { offline_max: OFFLINE_MAX, ..Self::default() };
        all.set_config(pools);
        all
    }

    /// Takes up other pools. What IKE SAs hold stays theirs; what is only kept for somebody goes with its pool.
    pub(super) fn set_config(&mut self, pools: &[Pool]) {
        let mut before = std::mem::take(&mut self.pools);
        for pool in pools {
            let known = before.iter().position(|(old, _)| old.name == pool.name && old.addrs == pool.addrs);
            let next = known.map_or(0, |at| before.swap_remove(at).1.next);
            self.pools.push((pool.clone(), State { next, ..State::default() }));
        }
        let mut homeless = Vec::new();
        for (addr, lease) in &self.leases {
            let offline = lease.holders.is_empty();
            match self.pools.iter_mut().find(|(pool, _)| pool.addrs.contains(*addr)) {
                Some((_, state)) => {
                    state.used += 1;
                    state.offline.extend(offline.then_some((lease.ended, *addr)));
                }
                None if offline => homeless.push(*addr),
                None => {}
            }
        }
        homeless.into_iter().for_each(|addr| self.forget(addr));
    }

    /// The configuration of a pool.
    pub(super) fn get(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().map(|(pool, _)| pool).find(|pool| pool.name == name)
    }

    /// An address of one of the pools of these names and the family of `wanted`, which is given if it is free or the
    /// peer's own, unless it is the unspecified one. `None` when all addresses are held.
    pub(super) fn acquire(&mut self, names: &[String], wanted: IpAddr, asker: &Asker<'_>) -> Option<IpAddr> {
        let fits = |pool: &Pool| pool.addrs.start.is_ipv4() == wanted.is_ipv4();
        let index = |name: &String| self.pools.iter().position(|(pool, _)| pool.name == *name && fits(pool));
        let indexes: Vec<usize> = names.iter().filter_map(index).collect();
        let inside = |addr: IpAddr| indexes.iter().any(|index| self.pools[*index].0.addrs.contains(addr));
        let available = |addr: IpAddr| self.leases.get(&addr).is_none_or(|lease| self.may_have(lease, asker));
        let own = || {
            let own = self.by_identity.get(&asker.identity.key()).into_iter().flatten().copied();
            let own = own.filter(|addr| inside(*addr) && available(*addr));
            // What it had last; and what it still holds rather than what it once had.
            own.max_by_key(|addr| self.leases.get(addr).map(|l| (!l.holders.is_empty(), l.ended)))
        };
        let wish = Some(wanted).filter(|addr| inside(*addr) && available(*addr));
        let known = wish.or_else(own);
        let addr = known
            .or_else(|| indexes.iter().find_map(|index| self.fresh(*index)))
            .or_else(|| indexes.iter().find_map(|index| self.oldest(*index)))?;
        self.hold(addr, asker.identity, asker.ike);
        Some(addr)
    }

    /// Whether a peer may have what is leased already.
    fn may_have(&self, lease: &Lease, asker: &Asker<'_>) -> bool {
        lease.identity.same(asker.identity) && lease.holders.iter().all(|ike| asker.replaces.contains(ike))
    }

    /// An address that nobody has had.
    fn fresh(&mut self, index: usize) -> Option<IpAddr> {
        let (pool, state) = &mut self.pools[index];
        let size = pool.addrs.size();
        if state.used >= size {
            return None;
        }
        // There is one, so this ends; what is passed over now is not looked at again before the next turn.
        loop {
            let addr = address(number(pool.addrs.start) + state.next % size, pool.addrs.start);
            state.next = (state.next + 1) % size;
            if !self.leases.contains_key(&addr) {
                return Some(addr);
            }
        }
    }

    /// The address that has been offline longest.
    fn oldest(&self, index: usize) -> Option<IpAddr> {
        self.pools[index].1.offline.first().map(|(_, addr)| *addr)
    }

    fn hold(&mut self, addr: IpAddr, identity: &Identification, ike: u32) {
        if self.leases.get(&addr).is_some_and(|lease| !lease.identity.same(identity)) {
            self.forget(addr);
        }
        let state = self.pools.iter_mut().find(|(pool, _)| pool.addrs.contains(addr)).map(|(_, state)| state);
        if let Some(lease) = self.leases.get_mut(&addr) {
            state.into_iter().for_each(|state| {
                state.offline.remove(&(lease.ended, addr));
            });
            lease.holders.push(ike);
            return;
        }
        state.into_iter().for_each(|state| state.used += 1);
        self.leases.insert(addr, Lease { identity: identity.clone(), holders: vec![ike], ended: 0 });
        self.by_identity.entry(identity.key()).or_default().insert(addr);
    }

    /// The IKE SAs that hold an address.
    pub(super) fn holders(&self, addr: IpAddr) -> &[u32] {
        self.leases.get(&addr).map_or(&[], |lease| &lease.holders)
    }

    /// Another IKE SA of the same peer holds the address as well.
    pub(super) fn share(&mut self, addr: IpAddr, ike: u32) {
        if let Some(lease) = self.leases.get_mut(&addr)
            && !lease.holders.contains(&ike)
        {
            lease.holders.push(ike);
        }
    }

    /// An IKE SA that held the address is gone; true if it was the last.
    pub(super) fn release(&mut self, addr: IpAddr, ike: u32) -> bool {
        let Some(lease) = self.leases.get_mut(&addr) else { return false };
        let before = lease.holders.len();
        lease.holders.retain(|holder| *holder != ike);
        if lease.holders.len() == before || !lease.holders.is_empty() {
            return false;
        }
        self.ended += 1;
        lease.ended = self.ended;
        match self.pools.iter_mut().find(|(pool, _)| pool.addrs.contains(addr)) {
            Some((_, state)) => {
                state.offline.insert((self.ended, addr));
                let surplus =
                    state.offline.first().filter(|_| state.offline.len() > self.offline_max).copied();
                surplus.into_iter().for_each(|(_, addr)| self.forget(addr));
            }
            None => self.forget(addr),
        }
        true
    }

    fn forget(&mut self, addr: IpAddr) {
        let Some(lease) = self.leases.remove(&addr) else { return };
        if let Some((_, state)) = self.pools.iter_mut().find(|(pool, _)| pool.addrs.contains(addr)) {
            state.used -= 1;
            state.offline.remove(&(lease.ended, addr));
        }
        let key = lease.identity.key();
        if let Some(own) = self.by_identity.get_mut(&key) {
            own.remove(&addr);
            if own.is_empty() {
                self.by_identity.remove(&key);
            }
        }
    }

    pub(super) fn views(&self) -> Vec<PoolView> {
        let view = |(pool, state): &(Pool, State)| PoolView {
            name: pool.name.clone(),
            addrs: pool.addrs,
            size: u64::try_from(pool.addrs.size()).unwrap_or(u64::MAX),
            online: state.used.saturating_sub(state.offline.len() as u128) as usize,
            offline: state.offline.len(),
        };
        self.pools.iter().map(view).collect()
    }

    /// Up to `count` leases behind `after`, in the order of their addresses.
    pub(super) fn leases_after(&self, after: Option<IpAddr>, count: usize) -> Vec<LeaseView> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let view = |(addr, lease): (&IpAddr, &Lease)| LeaseView {
            pool: self
                .pools
                .iter()
                .find(|(pool, _)| pool.addrs.contains(*addr))
                .map(|(pool, _)| pool.name.clone()),
            addr: *addr,
            identity: lease.identity.to_string(),
            online: !lease.holders.is_empty(),
        };
        self.leases.range((from, Bound::Unbounded)).take(count).map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::config::AddressRange;

    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    fn pool(name: &str, start: &str, end: &str) -> Pool {
        let addrs = AddressRange { start: start.parse().unwrap(), end: end.parse().unwrap() };
        let (dns, nbns, dhcp, subnets) = Default::default();
        Pool { name: name.into(), addrs, dns, nbns, dhcp, netmask: None, subnets }
    }

    fn id(text: &str) -> Identification {
        text.parse().unwrap()
    }

    fn take(pools: &mut Pools, who: &str, ike: u32, wanted: IpAddr) -> Option<String> {
        let (identity, names) = (id(who), ["v4".to_string(), "v6".to_string()]);
        let asker = Asker { identity: &identity, ike, replaces: &[] };
        pools.acquire(&names, wanted, &asker).map(|addr| addr.to_string())
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_string())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_identity_has_its_old_address_back_as_long_as_there_are_others() {
        let mut pools = Pools::new(&[pool("v4", "10.3.0.1", "10.3.0.3")]);
        assert_eq!(take(&mut pools, "a", 1, ANY), some("10.3.0.1"));
        assert_eq!(take(&mut pools, "b", 2, ANY), some("10.3.0.2"));
        assert!(pools.release(ip("10.3.0.1"), 1));
        assert!(!pools.release(ip("10.3.0.1"), 1), "it is released already");
        assert_eq!(take(&mut pools, "c", 3, ANY), some("10.3.0.3"), "the one that nobody has had");
        assert_eq!(take(&mut pools, "a", 4, ANY), some("10.3.0.1"));
        // The same identity once more has an address of its own, and there is none left.
        assert_eq!(take(&mut pools, "a", 5, ANY), None);
        pools.release(ip("10.3.0.3"), 3);
        pools.release(ip("10.3.0.2"), 2);
        assert_eq!(take(&mut pools, "d", 6, ANY), some("10.3.0.3"), "offline longest");
        assert_eq!(take(&mut pools, "c", 7, ANY), some("10.3.0.2"), "its own is gone");
        let views = pools.views();
        assert_eq!((views[0].online, views[0].offline, views[0].size), (3, 0, 3));
    }

    #[test]
    fn a_wish_is_granted_if_the_address_is_free_or_the_peers_own() {
        let mut pools = Pools::new(&[pool("v4", "10.3.0.1", "10.3.0.9")]);
        assert_eq!(take(&mut pools, "a", 1, ip("10.3.0.7")), some("10.3.0.7"));
        assert_eq!(take(&mut pools, "b", 2, ip("10.3.0.7")), some("10.3.0.1"));
        assert_eq!(take(&mut pools, "b", 3, ip("192.0.2.1")), some("10.3.0.2"), "not of the pool");
        pools.release(ip("10.3.0.7"), 1);
        assert_eq!(take(&mut pools, "c", 4, ip("10.3.0.7")), some("10.3.0.3"), "kept for a");
        assert_eq!(take(&mut pools, "a", 5, ip("10.3.0.7")), some("10.3.0.7"));
        // A successor may have what those hold that it replaces, and only that.
        let (identity, names) = (id("a"), ["v4".to_string()]);
        let mut again = |replaces: &[u32], wanted| {
            pools.acquire(&names, wanted, &Asker { identity: &identity, ike: 6, replaces }).unwrap()
        };
        assert_eq!(again(&[5], ANY), ip("10.3.0.7"));
        assert_eq!(again(&[9], ip("10.3.0.7")), ip("10.3.0.4"));
        assert!(!pools.release(ip("10.3.0.7"), 5));
        assert!(pools.release(ip("10.3.0.7"), 6));
    }

    #[test]
    fn a_large_pool_costs_no_more_than_its_leases() {
        let mut pools = Pools::new(&[pool("v6", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")]);
        let any: IpAddr = "::".parse().unwrap();
        for n in 1..=1000u32 {
            assert_eq!(
                take(&mut pools, &format!("peer{n}"), n, any),
                some(&IpAddr::from(u128::from(n).to_be_bytes()).to_string())
            );
        }
        assert_eq!(take(&mut pools, "v4", 9999, ANY), None, "there is no pool of that family");
        assert_eq!(pools.leases.len(), 1000);
        pools.offline_max = 10;
        for n in 1..=1000u32 {
            pools.release(IpAddr::from(u128::from(n).to_be_bytes()), n);
        }
        assert_eq!((pools.leases.len(), pools.by_identity.len(), pools.views()[0].offline), (10, 10, 10));
        assert_eq!(take(&mut pools, "peer1000", 1, any), some("::3e8"));
    }

    #[test]
    fn leases_survive_a_reload() {
        let v4 = pool("v4", "10.3.0.1", "10.3.0.4");
        let mut pools = Pools::new(std::slice::from_ref(&v4));
        take(&mut pools, "a", 1, ANY);
        take(&mut pools, "b", 2, ANY);
        pools.release(ip("10.3.0.2"), 2);
        pools.set_config(&[v4]);
        assert_eq!((pools.views()[0].online, pools.views()[0].offline), (1, 1));
        assert_eq!(take(&mut pools, "b", 3, ANY), some("10.3.0.2"));
        // Under another name, and smaller: what is held is not given to anybody else.
        pools.release(ip("10.3.0.2"), 3);
        pools.set_config(&[pool("v6", "10.3.0.1", "10.3.0.1")]);
        assert_eq!(take(&mut pools, "c", 4, ANY), None);
        assert_eq!(pools.leases_after(None, 9).len(), 1, "what was kept for b is gone with the pool");
        pools.set_config(&[]);
        assert_eq!(pools.leases_after(None, 9)[0].pool, None);
        assert!(pools.release(ip("10.3.0.1"), 1));
        assert!(pools.leases.is_empty() && pools.by_identity.is_empty());
    }

    proptest! {
        #[test]
        fn no_address_is_held_by_two_peers_whatever_happens(
            steps in prop::collection::vec((0u32..6, 0u8..8, any::<bool>(), 0u8..12), 1..200),
        ) {
            let all = [pool("v4", "10.3.0.1", "10.3.0.5"), pool("v6", "10.4.0.1", "10.4.0.3")];
            let mut pools = Pools::new(&all);
            pools.offline_max = 3;
            let mut held: BTreeMap<u32, (u8, IpAddr)> = BTreeMap::new();
            for (ike, who, take, wish) in steps {
                if let (false, Some((_, addr))) = (take, held.get(&ike)) {
                    prop_assert!(pools.release(*addr, ike));
                    held.remove(&ike);
                } else if wish == 11 {
                    pools.set_config(&all[usize::from(who) % 2..]);
                } else if !held.contains_key(&ike) {
                    let (identity, names) = (id(&format!("peer{who}")), ["v4".to_string(), "v6".to_string()]);
                    let asker = Asker { identity: &identity, ike, replaces: &[] };
                    let wanted = if wish < 8 { IpAddr::from([10, 3 + wish % 2, 0, wish]) } else { ANY };
                    let configured: u128 = pools.pools.iter().map(|(pool, _)| pool.addrs.size()).sum();
                    let busy = held.values().filter(|(_, a)| pools.pools.iter().any(|(p, _)| p.addrs.contains(*a)));
                    let busy = busy.count() as u128;
                    match pools.acquire(&names, wanted, &asker) {
                        Some(addr) => {
                            prop_assert!(held.values().all(|(_, other)| *other != addr), "{addr} twice");
                            held.insert(ike, (who, addr));
                        }
                        None => prop_assert_eq!(busy, configured, "addresses are left"),
                    }
                }
                for (pool, state) in &pools.pools {
                    let used = pools.leases.keys().filter(|addr| pool.addrs.contains(**addr)).count();
                    prop_assert_eq!(state.used, used as u128);
                    prop_assert!(state.offline.len() <= 3);
                }
                let online = pools.leases.values().filter(|lease| !lease.holders.is_empty()).count();
                prop_assert_eq!(online, held.len());
            }
        }
    }
}
