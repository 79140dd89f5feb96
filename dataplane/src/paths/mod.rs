//! The outer addresses of an SA on the packet path: the published set, its counters, and the choice of a path.

mod flows;
mod load;
mod plan;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mobikex_common::addr::{AddressSet, Path, WeightedPath};
use mobikex_common::drop::DropReason;
use mobikex_common::wire::ip::Packet;

use crate::counters::{PathCounters, PathStats};
use crate::published::{Guard, Published};
use crate::sad::Selectors;
pub(crate) use flows::FlowTable;
use load::Load;
use plan::Plan;

/// Where hashing starts.
pub(crate) const SEED: u64 = 0x2545_f491_4f6c_dd1d;

/// One step of a multiply-and-fold hash: quick and well mixed, but no defence against chosen collisions, which
/// would only put flows on one path or prefixes of authenticated peers into one bucket.
pub(crate) fn fold(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
    (product as u64) ^ ((product >> 64) as u64)
}

/// Hashes what identifies a packet's flow: addresses, protocol and ports. Fragments leave the ports out, so that
/// all fragments of one packet take the same path.
pub fn flow_hash(packet: &Packet<'_>) -> u64 {
    let addr = |hash: u64, addr: IpAddr| match addr {
        IpAddr::V4(a) => fold(hash, u32::from(a).into()),
        IpAddr::V6(a) => {
            let bits = u128::from(a);
            fold(fold(hash, bits as u64), (bits >> 64) as u64)
        }
    };
    let (a, b) = packet.ports.filter(|_| !packet.is_fragment()).unwrap_or((0, 0));
    let last = u64::from(packet.protocol) << 32 | u64::from(a) << 16 | u64::from(b);
    fold(addr(addr(SEED, packet.src), packet.dst), last)
}

/// What the choice of a path depends on.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    /// Of the packet's flow.
    pub flow_hash: u64,
    /// The place in the set of the path to which the flow has been assigned; `None` leaves it to the hash.
    pub assigned: Option<usize>,
    /// How many packets of the SA went before it, near enough.
    pub turn: u64,
    /// Octets of the ESP packet.
    pub len: usize,
    /// In transport mode the packet's own source and destination: they are the outer ones, so only a path between
    /// them can carry it.
    pub ends: Option<(IpAddr, IpAddr)>,
}

/// A path that may carry a packet, with its counters.
#[derive(Clone, Copy, Debug)]
pub struct Chosen<'a> {
    /// The path.
    pub path: &'a WeightedPath,
    /// What it has carried for the SA.
    pub counters: &'a PathCounters,
    /// Its place in the set.
    pub(crate) index: usize,
}

/// One address set with the counters of its paths for one SA, and what the SA may carry: in transport mode the
/// addresses are part of that, so both change in one step.
#[derive(Debug)]
pub struct PathSet {
    plan: Arc<Plan>,
    selectors: Arc<Selectors>,
    ways: Box<[Arc<Way>]>,
}

/// What is known of one path for one SA. It survives changes of the set that keep the path.
#[derive(Debug, Default)]
struct Way {
    counters: PathCounters,
    load: Load,
}

impl PathSet {
    fn new(set: AddressSet, selectors: Selectors) -> Self {
        let ways = set.paths.iter().map(|_| Arc::default()).collect();
        Self { plan: Arc::new(Plan::new(set)), selectors: Arc::new(selectors), ways }
    }

    /// What the SA may carry.
    pub fn selectors(&self) -> &Selectors {
        &self.selectors
    }

    /// The same, to share.
    pub(crate) fn shared_selectors(&self) -> &Arc<Selectors> {
        &self.selectors
    }

    /// The set itself.
    pub fn set(&self) -> &AddressSet {
        &self.plan.set
    }

    /// The path for a packet; with the redundant scheduler the first of those that [`others`](Self::others)
    /// completes. A path whose peer is not proven to be reachable steps back when it has had its share.
    ///
    /// # Errors
    /// When no path may send, or none of those that fit before more has come from the peer (RFC 4555 3.7).
    pub fn choose(&self, traffic: &Traffic) -> Result<Chosen<'_>, DropReason> {
        if let Some(ends) = traffic.ends {
            return self.choose_between(ends, traffic.len);
        }
        let planned = traffic.assigned.or_else(|| self.plan.choose(traffic.flow_hash, traffic.turn));
        match self.chosen(planned.ok_or(DropReason::OutNoPath)?) {
            Some(chosen) if chosen.may_send(traffic.len) => Ok(chosen),
            _ => self.choose_another(traffic.len),
        }
    }

    /// In the place of one that may not send now.
    #[cold]
    fn choose_another(&self, len: usize) -> Result<Chosen<'_>, DropReason> {
        self.sending().find(|chosen| chosen.may_send(len)).ok_or(DropReason::OutNotRoutable)
    }

    /// The path between two addresses that the packet names itself, as in transport mode.
    #[inline(never)]
    fn choose_between(&self, (src, dst): (IpAddr, IpAddr), len: usize) -> Result<Chosen<'_>, DropReason> {
        let between = |path: &Path| path.local.ip() == src && path.remote.ip() == dst;
        let mut refusal = DropReason::OutNoPath;
        for chosen in self.sending().filter(|chosen| between(&chosen.path.path)) {
            if chosen.may_send(len) {
                return Ok(chosen);
            }
            refusal = DropReason::OutNotRoutable;
        }
        Err(refusal)
    }

    /// The paths beside `first` that may carry a copy of a packet.
    pub fn others(&self, first: Chosen<'_>, traffic: &Traffic) -> impl Iterator<Item = Chosen<'_>> {
        let (first, len) = (first.index, traffic.len);
        self.sending().filter(move |chosen| chosen.index != first && chosen.may_send(len))
    }

    /// The paths that would carry the packet, or a copy, if it were proven that the peer is there.
    pub(crate) fn unproven(&self, traffic: &Traffic) -> impl Iterator<Item = Chosen<'_>> {
        let Traffic { len, ends, .. } = *traffic;
        let between = move |path: &Path| {
            ends.is_none_or(|(src, dst)| path.local.ip() == src && path.remote.ip() == dst)
        };
        self.sending().filter(move |chosen| !chosen.may_send(len) && between(&chosen.path.path))
    }

    /// Whether what a path may carry depends on what has come from the peer (RFC 4555 3.7).
    pub(crate) fn is_limited(&self) -> bool {
        self.plan.limited
    }

    /// Whether each flow shall have a path of its own choice.
    pub(crate) fn assigns_flows(&self) -> bool {
        !self.plan.keys.is_empty()
    }

    /// How many paths may send.
    pub fn sending_len(&self) -> usize {
        self.plan.ranked.len()
    }

    /// The path by which a packet came from `path.remote` to `path.local`, if it is one of the set. Ports count
    /// where both the path and the packet are encapsulated; our own is always that of the socket.
    pub fn find(&self, path: &Path, encap: bool) -> Option<Chosen<'_>> {
        let same = |p: &WeightedPath| {
            same_ip(&p.path.local, &path.local)
                && same_ip(&p.path.remote, &path.remote)
                && (!p.encap || !encap || p.path.remote.port() == path.remote.port())
        };
        self.chosen(self.set().paths.iter().position(same)?)
    }

    /// What each path has carried for the SA.
    pub(crate) fn stats(&self) -> impl Iterator<Item = PathStats> {
        let both = self.set().paths.iter().zip(&self.ways);
        both.map(|(p, way)| way.counters.stats(p.path))
    }

    /// Whether `remote` is the peer's end of any path.
    pub(crate) fn has_remote(&self, remote: IpAddr) -> bool {
        self.set().paths.iter().any(|p| p.path.remote.ip() == remote)
    }

    /// Whether `local` is our end of any path.
    pub(crate) fn has_local(&self, local: IpAddr) -> bool {
        self.set().paths.iter().any(|p| p.path.local.ip() == local)
    }

    /// The paths that may send, greatest weight first.
    pub(crate) fn sending(&self) -> impl Iterator<Item = Chosen<'_>> {
        self.plan.ranked.iter().filter_map(|index| self.chosen(usize::from(*index)))
    }

    fn chosen(&self, index: usize) -> Option<Chosen<'_>> {
        Some(Chosen { path: self.set().paths.get(index)?, counters: &self.ways.get(index)?.counters, index })
    }
}

/// Without a copy of either, since this is asked for every packet.
fn same_ip(a: &SocketAddr, b: &SocketAddr) -> bool {
    match (a, b) {
        (SocketAddr::V4(a), SocketAddr::V4(b)) => a.ip() == b.ip(),
        (SocketAddr::V6(a), SocketAddr::V6(b)) => a.ip() == b.ip(),
        _ => false,
    }
}

impl Chosen<'_> {
    /// Several workers may pass this check with the same figures, so the bound is kept up to one packet each.
    pub(crate) fn may_send(&self, len: usize) -> bool {
        !self.path.limited || self.counters.within_three_times(len)
    }
}

/// The current address set of a Child SA, shared by its two directions so that one store moves both.
#[derive(Debug)]
pub struct Addresses(Published<PathSet>);

impl Addresses {
    /// The set and the selectors that an SA starts with.
    pub fn new(set: AddressSet, selectors: Selectors) -> Self {
        Self(Published::new(PathSet::new(set, selectors)))
    }

    /// The set as of now.
    pub fn load<'a>(&'a self, guard: &'a Guard) -> Option<&'a PathSet> {
        self.0.load(guard)
    }

    pub(crate) fn stats(&self, guard: &Guard) -> Vec<PathStats> {
        self.load(guard).map_or_else(Vec::new, |paths| paths.stats().collect())
    }
}

/// A new set on its way to many SAs. What is expensive is done once: the plan, and for all SAs that had the same
/// set before, the search for the paths that stay.
pub(crate) struct Change {
    plan: Arc<Plan>,
    /// The predecessor that was met last, and where in it each path of the plan was.
    kept: Option<(Arc<Plan>, Vec<Option<usize>>)>,
}

impl Change {
    pub(crate) fn new(set: AddressSet) -> Self {
        Self { plan: Arc::new(Plan::new(set)), kept: None }
    }

    /// Publishes the set for one SA, together with new selectors if there are any. Paths that stay keep their
    /// counters. One writer at a time.
    pub(crate) fn publish(
        &mut self,
        addresses: &Addresses,
        selectors: Option<Arc<Selectors>>,
        guard: &Guard,
    ) {
        // There is a set from the start; none is ever taken away.
        let Some(before) = addresses.load(guard) else { return };
        let plan = self.plan.clone();
        let kept = self.kept(&before.plan).iter();
        let ways = kept.map(|place| place.map_or_else(Arc::default, |n| before.ways[n].clone())).collect();
        let selectors = selectors.unwrap_or_else(|| before.selectors.clone());
        addresses.0.swap(PathSet { plan, selectors, ways }, guard);
    }

    fn kept(&mut self, before: &Arc<Plan>) -> &[Option<usize>] {
        if self.kept.as_ref().is_none_or(|(plan, _)| !Arc::ptr_eq(plan, before)) {
            let place = |path: &WeightedPath| before.set.paths.iter().position(|p| p.path == path.path);
            let places = self.plan.set.paths.iter().map(place).collect();
            self.kept = Some((before.clone(), places));
        }
        self.kept.as_ref().map_or(&[], |(_, places)| places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::published::pin;
    use mobikex_common::addr::Scheduler;

    pub(super) fn set(weights: &[u16], scheduler: Scheduler) -> AddressSet {
        let path = |n: usize| Path {
            local: format!("192.0.{}.{}:4500", n / 256, n % 256).parse().unwrap(),
            remote: "198.51.100.1:4500".parse().unwrap(),
        };
        let paths = weights
            .iter()
            .enumerate()
            .map(|(n, w)| WeightedPath { weight: *w, ..WeightedPath::new(path(n), true) })
            .collect();
        AddressSet { generation: 1, scheduler, resequence_ms: 0, paths }
    }

    pub(super) fn any() -> Selectors {
        Selectors::new(&[], &[])
    }

    const TRAFFIC: Traffic = Traffic { flow_hash: 7, assigned: None, turn: 0, len: 100, ends: None };

    #[test]
    fn a_path_that_stays_keeps_its_counters() {
        let guard = pin();
        let addresses = Addresses::new(set(&[1, 1], Scheduler::Flow), any());
        let second = set(&[1, 1], Scheduler::Flow).paths[1].path;
        let counters = |guard| addresses.load(guard).unwrap().find(&second, true).unwrap().counters;
        counters(&guard).count_in(1, 100);
        let mut next = set(&[1, 1, 1], Scheduler::Flow);
        next.paths.remove(0);
        Change::new(next).publish(&addresses, None, &guard);
        counters(&guard).count_out(2, 50);
        let stats = addresses.stats(&guard);
        assert_eq!(stats.len(), 2);
        assert_eq!((stats[0].path, stats[0].bytes_in, stats[0].packets_out), (second, 100, 2));
        assert_eq!(stats[1].bytes_in, 0);
    }

    /// One change reaches SAs with different predecessors; each keeps what is its own.
    #[test]
    fn counters_stay_with_their_sa() {
        let guard = pin();
        let both = set(&[1, 1], Scheduler::Flow);
        let mut turned = both.clone();
        turned.paths.reverse();
        let sas = [
            Addresses::new(both.clone(), any()),
            Addresses::new(both.clone(), any()),
            Addresses::new(turned, any()),
        ];
        for (n, sa) in sas.iter().enumerate() {
            let paths = sa.load(&guard).unwrap();
            paths.find(&both.paths[0].path, true).unwrap().counters.count_in(1, n + 1);
        }
        let mut change = Change::new(set(&[1, 1, 1], Scheduler::Packet));
        sas.iter().for_each(|sa| change.publish(sa, None, &guard));
        for (n, sa) in sas.iter().enumerate() {
            let bytes: Vec<_> = sa.stats(&guard).iter().map(|path| path.bytes_in).collect();
            assert_eq!(bytes, [n as u64 + 1, 0, 0]);
        }
        let plans = sas.each_ref().map(|sa| Arc::as_ptr(&sa.load(&guard).unwrap().plan));
        assert!(plans.iter().all(|plan| *plan == plans[0]), "computed once");
    }

    /// RFC 4555 3.7: three times what came, and another path where there is one.
    #[test]
    fn a_path_that_is_not_proven_carries_three_times_what_it_brought() {
        for scheduler in [Scheduler::Flow, Scheduler::Packet, Scheduler::Backup, Scheduler::Redundant] {
            let mut alone = set(&[1], scheduler);
            alone.paths[0].limited = true;
            let paths = PathSet::new(alone, any());
            assert_eq!(paths.choose(&TRAFFIC).err(), Some(DropReason::OutNotRoutable));
            paths.ways[0].counters.count_in(1, 100);
            for _ in 0..3 {
                paths.choose(&TRAFFIC).unwrap().counters.count_out(1, 100);
            }
            assert_eq!(paths.choose(&Traffic { len: 1, ..TRAFFIC }).err(), Some(DropReason::OutNotRoutable));

            // The unproven path has all the weight, so that it is chosen wherever it can be.
            let mut two = set(&[2, 60_000], scheduler);
            two.paths[1].limited = true;
            let paths = PathSet::new(two, any());
            for turn in 0..2000 {
                let traffic = Traffic { flow_hash: turn << 56, turn, ..TRAFFIC };
                let chosen = paths.choose(&traffic).unwrap();
                assert_eq!(chosen.index, 0);
                assert_eq!(paths.others(chosen, &traffic).count(), 0);
            }
            paths.ways[1].counters.count_in(1, 34);
            let traffic = Traffic { flow_hash: 1 << 56, turn: 1, ..TRAFFIC };
            assert_eq!(paths.choose(&traffic).unwrap().index, 1);
        }
    }

    #[test]
    fn the_others_are_every_path_that_sends_but_the_first() {
        let paths = PathSet::new(set(&[1, 0, 5, 2], Scheduler::Redundant), any());
        let first = paths.choose(&TRAFFIC).unwrap();
        let others: Vec<_> = paths.others(first, &TRAFFIC).map(|chosen| chosen.index).collect();
        assert_eq!((first.index, others, paths.sending_len()), (2, vec![3, 0], 3));
    }

    #[test]
    fn in_transport_mode_the_packets_own_addresses_decide() {
        let mut all = set(&[1, 9, 0], Scheduler::Flow);
        all.paths[1].limited = true;
        let paths = PathSet::new(all.clone(), any());
        let ends = |n: usize| Some((all.paths[n].path.local.ip(), all.paths[n].path.remote.ip()));
        let choose = |ends| paths.choose(&Traffic { ends, ..TRAFFIC }).map(|chosen| chosen.index);
        assert_eq!(choose(ends(0)), Ok(0));
        assert_eq!(choose(ends(1)), Err(DropReason::OutNotRoutable));
        assert_eq!(choose(ends(2)), Err(DropReason::OutNoPath), "for receiving only");
        assert_eq!(choose(ends(0).map(|(a, b)| (b, a))), Err(DropReason::OutNoPath));
    }

    #[test]
    fn ports_tell_encapsulated_paths_apart() {
        let mut all = set(&[1, 1], Scheduler::Flow);
        all.paths[1].path.local = all.paths[0].path.local;
        all.paths[1].path.remote.set_port(1025);
        let paths = PathSet::new(all.clone(), any());
        let mut from = all.paths[0].path;
        // The system's own port is the socket's, whatever the set says.
        from.local.set_port(9);
        let index = |from: &Path, encap| paths.find(from, encap).map(|found| found.index);
        assert_eq!(index(&from, true), Some(0));
        from.remote.set_port(1025);
        assert_eq!(index(&from, true), Some(1));
        from.remote.set_port(1026);
        assert_eq!(index(&from, true), None);
        from.remote.set_port(0);
        assert_eq!(index(&from, false), Some(0), "plain ESP has no port");
        all.paths.iter_mut().for_each(|path| path.encap = false);
        from.remote.set_port(7777);
        assert!(PathSet::new(all, any()).find(&from, true).is_some(), "a path of plain ESP has none either");
    }
}
