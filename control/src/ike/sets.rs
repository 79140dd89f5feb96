//! From what both sides have told each other, and what probes have shown, to the address set of the packet path.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use mobikex_common::addr::{Path, Scheduler, WeightedPath};

use super::addresses::{Halves, Outer};
use super::mobility::is_private;
use super::network::Network;
use super::path_rate::WHOLE;
use super::path_table::{Health, PathTable, path};
use super::sa::NAT_T_PORT;
use crate::config::ReturnRoutability;

/// Whether the peer has been shown to receive at an address of its (RFC 4555 3.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Check {
    /// It answered a cookie sent there, or IKE_AUTH ran over it.
    Passed,
    /// A check waits or is under way.
    Open,
}

/// What the paths of all Child SAs of an IKE SA depend on.
pub(super) struct Knowledge<'a> {
    pub(super) now: Instant,
    pub(super) table: &'a PathTable,
    pub(super) network: &'a Network,
    pub(super) checks: &'a BTreeMap<SocketAddr, Check>,
    pub(super) routability: ReturnRoutability,
    /// Paths are probed, so that one of which nothing is known yet is not taken for a working one.
    pub(super) probed: bool,
    pub(super) encap: bool,
    pub(super) nat_t: bool,
    /// Where preferences make no difference, measured rates do.
    pub(super) measured: bool,
}

/// Whether ESP over a pair goes in UDP: as the IKE SA has found out over its own pair, or where a NAT is all but certain
/// on another one.
pub(super) fn in_udp(pair: &Path, encap: bool, nat_t: bool) -> bool {
    let outward = is_private(pair.local.ip()) && !is_private(pair.remote.ip());
    encap || (nat_t && (outward || pair.remote.port() != NAT_T_PORT))
}

impl Knowledge<'_> {
    fn may_carry(&self, remote: SocketAddr) -> bool {
        self.routability != ReturnRoutability::Required || self.checks.get(&remote) == Some(&Check::Passed)
    }

    /// How good a path is; the best ones carry the traffic.
    fn grade(&self, local: &Outer, remote: &Outer) -> Grade {
        if !self.network.has(local.addr.ip()) || !local.is_current(self.now) || !remote.is_current(self.now) {
            return Grade::Unusable;
        }
        match self.table.health(&path(local.addr, remote.addr)) {
            _ if !self.may_carry(remote.addr) => Grade::Unchecked,
            Health::Down => Grade::Down,
            Health::Unknown if self.probed => Grade::Unknown,
            Health::Unknown | Health::Up => Grade::Works,
        }
    }

    fn weighted(&self, local: &Outer, remote: &Outer, weight: u16) -> WeightedPath {
        let path = path(local.addr, remote.addr);
        WeightedPath {
            path,
            device: self.network.device(local.addr.ip()),
            encap: in_udp(&path, self.encap, self.nat_t),
            weight,
            limited: !self.may_carry(remote.addr),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    /// Its addresses are not there, or not now.
    Unusable,
    Down,
    /// Nothing has been sent there to see whether the peer is.
    Unchecked,
    Unknown,
    Works,
}

/// Share of the traffic by the preferences of both ends.
fn weight(local: &Outer, remote: &Outer) -> u16 {
    u16::from(local.preference) * u16::from(remote.preference)
}

/// Weighs paths by what each has been seen to carry, unless somebody has said what they are worth.
fn share_by_rate(paths: &mut [WeightedPath], table: &PathTable) {
    let mut used: Vec<_> = paths.iter_mut().filter(|p| p.weight > 0).collect();
    if used.windows(2).all(|pair| pair[0].weight == pair[1].weight) {
        for path in &mut used {
            let weight = u32::from(path.weight) * u32::from(table.share(&path.path)) / u32::from(WHOLE);
            path.weight = u16::try_from(weight).unwrap_or(u16::MAX).max(1);
        }
    }
}

/// What a Child SA has beside the pairs of its halves.
pub(super) struct Beside<'a> {
    /// Pairs that only a NAT has told.
    pub(super) mapped: &'a [Path],
    /// Addresses of the peer that it has replaced by ones that are not checked yet.
    pub(super) leaving: &'a [Outer],
    /// Paths from which packets may still arrive.
    pub(super) retired: &'a [(Path, Instant)],
}

/// The paths of a Child SA, and how to choose among them.
pub(super) fn build(
    halves: &Halves,
    beside: &Beside<'_>,
    scheduler: Scheduler,
    knowledge: &Knowledge<'_>,
) -> (Scheduler, Vec<WeightedPath>) {
    let &Beside { mapped, leaving, retired } = beside;
    let ours = |pair: &Path| halves.local.iter().find(|l| l.addr == pair.local).copied();
    let mapped = mapped.iter().filter_map(|pair| Some((ours(pair)?, Outer::new(pair.remote))));
    let pairs = halves.pairs().map(|(l, r)| (*l, *r)).chain(mapped);
    let graded: Vec<_> = pairs.map(|(l, r)| (l, r, knowledge.grade(&l, &r))).collect();
    let best = graded.iter().map(|(_, _, grade)| *grade).max().unwrap_or(Grade::Unusable);
    let mut paths: Vec<WeightedPath> = graded
        .iter()
        .map(|(l, r, grade)| {
            let used = *grade == best && best != Grade::Unusable;
            knowledge.weighted(l, r, if used { weight(l, r) } else { 0 })
        })
        .collect();
    if best != Grade::Unusable && paths.iter().all(|p| p.weight == 0) {
        // A preference of zero is a last resort, not a ban.
        for (path, (_, _, grade)) in paths.iter_mut().zip(&graded) {
            path.weight = u16::from(*grade == best);
        }
    }
    if knowledge.measured && matches!(scheduler, Scheduler::Flow | Scheduler::Packet) {
        share_by_rate(&mut paths, knowledge.table);
    }
    // Until a new address is checked the old one goes on, and what may already go to the new one goes there too: if the
    // peer has lost the old address nothing waits for the check, and if not, the replay window drops the copies.
    let mut scheduler = scheduler;
    for old in leaving {
        for local in halves.local.iter().filter(|l| l.addr.is_ipv4() == old.addr.is_ipv4()) {
            let works = best < Grade::Works && knowledge.grade(local, old) == Grade::Works;
            if works {
                scheduler = Scheduler::Redundant;
            }
            paths.push(knowledge.weighted(local, old, u16::from(works)));
        }
    }
    for (path, _) in retired {
        if !paths.iter().any(|p| p.path == *path) {
            let device = knowledge.network.device(path.local.ip());
            paths.push(WeightedPath {
                path: *path,
                device,
                encap: in_udp(path, knowledge.encap, knowledge.nat_t),
                weight: 0,
                limited: false,
            });
        }
    }
    (scheduler, paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ike::network::LocalAddress;

    fn at(text: &str) -> SocketAddr {
        format!("{text}:4500").parse().unwrap()
    }

    fn network(addrs: &[&str]) -> Network {
        let mut network = Network::default();
        network.set(
            addrs
                .iter()
                .zip(2..)
                .map(|(addr, device)| LocalAddress {
                    addr: addr.parse().unwrap(),
                    device,
                    interface: format!("wan{device}"),
                    reach: vec!["0.0.0.0/0".parse().unwrap()],
                })
                .collect(),
        );
        network
    }

    struct World {
        now: Instant,
        table: PathTable,
        network: Network,
        checks: BTreeMap<SocketAddr, Check>,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            let (l1, l2) = (at("192.0.2.1"), at("192.0.2.2"));
            let (r1, r2) = (at("198.51.100.1"), at("198.51.100.2"));
            let mut table = PathTable::new(std::time::Duration::from_millis(100));
            for pair in [path(l1, r1), path(l2, r1), path(l1, r2), path(l2, r2)] {
                table.proven(pair, now);
            }
            let checks = [(r1, Check::Passed), (r2, Check::Passed)].into();
            Self { now, table, network: network(&["192.0.2.1", "192.0.2.2"]), checks }
        }

        fn build(&self, halves: &Halves, leaving: &[Outer]) -> (Scheduler, Vec<(String, u16, bool)>) {
            let knowledge = Knowledge {
                now: self.now,
                table: &self.table,
                network: &self.network,
                checks: &self.checks,
                routability: ReturnRoutability::Required,
                probed: true,
                encap: true,
                nat_t: true,
                measured: true,
            };
            let beside = Beside { mapped: &[], leaving, retired: &[] };
            let (scheduler, paths) = super::build(halves, &beside, Scheduler::Flow, &knowledge);
            let last = |addr: SocketAddr| addr.ip().to_string().chars().last().unwrap();
            let name = |p: &WeightedPath| format!("{}-{}", last(p.path.local), last(p.path.remote));
            (scheduler, paths.iter().map(|p| (name(p), p.weight, p.limited)).collect())
        }
    }

    fn halves() -> Halves {
        let mut halves = Halves::single(at("192.0.2.1"), at("198.51.100.1"));
        halves.local.add(Outer { preference: 50, ..Outer::new(at("192.0.2.2")) });
        halves
    }

    #[test]
    fn all_working_paths_carry_traffic_by_their_preferences() {
        let world = World::new();
        let (scheduler, paths) = world.build(&halves(), &[]);
        assert_eq!(scheduler, Scheduler::Flow);
        assert_eq!(paths, [("1-1".into(), 10_000, false), ("2-1".into(), 5000, false)]);
    }

    #[test]
    fn a_path_that_is_down_or_gone_rests_unless_nothing_else_is_left() {
        let mut world = World::new();
        let now = world.now;
        world.table.fail(|p| p.local == at("192.0.2.1"), now);
        assert_eq!(world.build(&halves(), &[]).1, [("1-1".into(), 0, false), ("2-1".into(), 5000, false)]);
        world.table.fail(|_| true, now);
        assert_eq!(
            world.build(&halves(), &[]).1,
            [("1-1".into(), 10_000, false), ("2-1".into(), 5000, false)]
        );
        world.network = network(&["192.0.2.2"]);
        assert_eq!(world.build(&halves(), &[]).1, [("1-1".into(), 0, false), ("2-1".into(), 5000, false)]);
    }

    #[test]
    fn m4_an_unchecked_address_is_limited_and_does_not_displace_a_working_one() {
        let mut world = World::new();
        world.checks.insert(at("198.51.100.2"), Check::Open);
        let mut added = halves();
        added.remote.add(Outer::new(at("198.51.100.2")));
        let (_, paths) = world.build(&added, &[]);
        let used: Vec<_> =
            paths.iter().filter(|(_, weight, _)| *weight > 0).map(|(n, _, l)| (n.as_str(), *l)).collect();
        assert_eq!(used, [("1-1", false), ("2-1", false)]);

        // The peer has moved wholly: copies go both ways until the check has passed.
        let moved = Halves::single(at("192.0.2.1"), at("198.51.100.2"));
        let leaving = [Outer::new(at("198.51.100.1"))];
        let (scheduler, paths) = world.build(&moved, &leaving);
        assert_eq!(scheduler, Scheduler::Redundant);
        assert_eq!(paths, [("1-2".into(), 10_000, true), ("1-1".into(), 1, false)]);
        world.checks.insert(at("198.51.100.2"), Check::Passed);
        let (scheduler, paths) = world.build(&moved, &leaving);
        assert_eq!(scheduler, Scheduler::Flow);
        assert_eq!(paths, [("1-2".into(), 10_000, false), ("1-1".into(), 0, false)]);
    }

    #[test]
    fn an_unreachable_address_stays_out_of_use_even_alone() {
        let world = World::new();
        let unreachable = |addr: &str| Outer { unreachable: true, ..Outer::new(at(addr)) };
        let mut halves = halves();
        halves.remote.add(unreachable("198.51.100.2"));
        let rests = |(name, weight, _): &(String, u16, bool)| name.ends_with("-2") == (*weight == 0);
        let (_, paths) = world.build(&halves, &[]);
        assert!(paths.len() == 4 && paths.iter().all(rests), "{paths:?}");
        halves.remote.add(unreachable("198.51.100.1"));
        assert!(world.build(&halves, &[]).1.iter().all(|(_, weight, _)| *weight == 0));
    }

    #[test]
    fn a_preference_of_zero_is_the_last_resort() {
        let world = World::new();
        let mut halves = halves();
        halves.local.add(Outer { preference: 0, ..Outer::new(at("192.0.2.2")) });
        assert_eq!(world.build(&halves, &[]).1, [("1-1".into(), 10_000, false), ("2-1".into(), 0, false)]);
        halves.local.remove("192.0.2.1".parse().unwrap());
        assert_eq!(world.build(&halves, &[]).1, [("2-1".into(), 1, false)]);
    }
}
