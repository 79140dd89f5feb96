//! The outer addresses of an SA on the packet path: the published set, its counters, and the choice of a path.

use std::net::IpAddr;
use std::sync::Arc;

use mobikex_common::addr::{AddressSet, Scheduler, WeightedPath};
use mobikex_common::wire::ip::Packet;

use crate::counters::{PathCounters, PathStats};
use crate::published::{Guard, Published};

/// Chooses the path for a packet whose flow hashes to `flow_hash`. Paths of weight 0 never send; `None` when no
/// other is left.
pub fn choose(set: &AddressSet, flow_hash: u64) -> Option<&WeightedPath> {
    choose_index(set, flow_hash).and_then(|index| set.paths.get(index))
}

fn choose_index(set: &AddressSet, flow_hash: u64) -> Option<usize> {
    let weighted = || set.paths.iter().enumerate().filter(|(_, path)| path.weight > 0);
    match set.scheduler {
        Scheduler::Backup => {
            // The first of the greatest weight: `max_by_key` alone would take the last.
            weighted().rev().max_by_key(|(_, path)| path.weight).map(|(index, _)| index)
        }
        Scheduler::Flow | Scheduler::Packet | Scheduler::Redundant => {
            let total: u64 = weighted().map(|(_, path)| u64::from(path.weight)).sum();
            let mut point = ((u128::from(flow_hash) * u128::from(total)) >> 64) as u64;
            for (index, path) in weighted() {
                let weight = u64::from(path.weight);
                if point < weight {
                    return Some(index);
                }
                point -= weight;
            }
            None
        }
    }
}

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

/// One address set with the counters of its paths.
#[derive(Debug)]
pub struct PathSet {
    set: AddressSet,
    counters: Vec<Arc<PathCounters>>,
}

impl PathSet {
    fn new(set: AddressSet, before: Option<&Self>) -> Self {
        let kept = |path: &WeightedPath| {
            let before = before?;
            let index = before.set.paths.iter().position(|p| p.path == path.path)?;
            before.counters.get(index).cloned()
        };
        let counters = set.paths.iter().map(|path| kept(path).unwrap_or_default()).collect();
        Self { set, counters }
    }

    /// The set itself.
    pub fn set(&self) -> &AddressSet {
        &self.set
    }

    /// The path for a flow, with its counters.
    pub fn choose(&self, flow_hash: u64) -> Option<(&WeightedPath, &PathCounters)> {
        let index = choose_index(&self.set, flow_hash)?;
        Some((self.set.paths.get(index)?, self.counters.get(index)?))
    }

    /// The counters of the path between these addresses, if it is one of the set.
    pub(crate) fn counters_of(&self, local: IpAddr, remote: IpAddr) -> Option<&PathCounters> {
        let same = |p: &WeightedPath| p.path.local.ip() == local && p.path.remote.ip() == remote;
        let index = self.set.paths.iter().position(same)?;
        self.counters.get(index).map(|counters| &**counters)
    }

    /// Whether `remote` is the peer's end of any path.
    pub(crate) fn has_remote(&self, remote: IpAddr) -> bool {
        self.set.paths.iter().any(|p| p.path.remote.ip() == remote)
    }

    /// Whether `local` is our end of any path.
    pub(crate) fn has_local(&self, local: IpAddr) -> bool {
        self.set.paths.iter().any(|p| p.path.local.ip() == local)
    }
}

/// The current address set of a Child SA, shared by its two directions so that one store moves both.
#[derive(Debug)]
pub struct Addresses(Published<PathSet>);

impl Addresses {
    pub(crate) fn new(set: AddressSet) -> Self {
        Self(Published::new(PathSet::new(set, None)))
    }

    /// The set as of now.
    pub fn load<'a>(&'a self, guard: &'a Guard) -> Option<&'a PathSet> {
        self.0.load(guard)
    }

    /// Publishes a new set. Paths that stay keep their counters. One writer at a time.
    pub(crate) fn replace(&self, set: AddressSet, guard: &Guard) {
        let next = PathSet::new(set, self.load(guard));
        self.0.replace(Some(next));
    }

    pub(crate) fn stats(&self, guard: &Guard) -> Vec<PathStats> {
        self.load(guard).map_or_else(Vec::new, |paths| {
            paths.set.paths.iter().zip(&paths.counters).map(|(p, counters)| counters.stats(p.path)).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobikex_common::addr::Path;

    fn set(weights: &[u16], scheduler: Scheduler) -> AddressSet {
        let path = |n: usize| Path {
            local: format!("192.0.2.{n}:4500").parse().unwrap(),
            remote: "198.51.100.1:4500".parse().unwrap(),
        };
        let paths = weights
            .iter()
            .enumerate()
            .map(|(n, w)| WeightedPath { weight: *w, ..WeightedPath::new(path(n), true) })
            .collect();
        AddressSet { generation: 1, scheduler, resequence_ms: 0, paths }
    }

    #[test]
    fn flows_spread_by_weight_and_stay() {
        let set = set(&[1, 0, 3], Scheduler::Flow);
        let mut hits = [0u32; 3];
        for n in 0..40_000u64 {
            let hash = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let chosen = choose_index(&set, hash).unwrap();
            assert_eq!(choose_index(&set, hash), Some(chosen));
            hits[chosen] += 1;
        }
        assert_eq!(hits[1], 0);
        assert!((9_000..11_000).contains(&hits[0]), "{hits:?}");
        assert_eq!(choose_index(&set, u64::MAX), Some(2));
        assert_eq!(choose_index(&set, 0), Some(0));
    }

    #[test]
    fn backup_uses_the_first_path_of_greatest_weight() {
        assert_eq!(choose_index(&set(&[2, 5, 5], Scheduler::Backup), 7), Some(1));
        for scheduler in [Scheduler::Flow, Scheduler::Backup] {
            assert!(choose(&set(&[0, 0], scheduler), 7).is_none());
            assert!(choose(&set(&[], scheduler), 7).is_none());
        }
    }

    #[test]
    fn a_path_that_stays_keeps_its_counters() {
        let guard = crate::published::pin();
        let addresses = Addresses::new(set(&[1, 1], Scheduler::Flow));
        let second = set(&[1, 1], Scheduler::Flow).paths[1].path;
        let counters = |guard| {
            let found = addresses.load(guard).unwrap();
            found.counters_of(second.local.ip(), second.remote.ip()).unwrap()
        };
        counters(&guard).count_in(100);
        let mut next = set(&[1, 1, 1], Scheduler::Flow);
        next.paths.remove(0);
        addresses.replace(next, &guard);
        counters(&guard).count_out(2, 50);
        let stats = addresses.stats(&guard);
        assert_eq!(stats.len(), 2);
        assert_eq!((stats[0].path, stats[0].bytes_in, stats[0].packets_out), (second, 100, 2));
        assert_eq!(stats[1].bytes_in, 0);
    }
}
