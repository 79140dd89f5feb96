//! Where a NAT shows the peer toward one of our addresses only (RFC 4787 4.1, "address and port-dependent mapping").
//!
//! What the peer says about its addresses it says over one pair, and the source of that request is where the NAT shows it
//! on this pair. Many NATs show it there toward our other addresses too, but not all: there, the pairs of what both have
//! told lead nowhere, while the peer's packets come from yet another port. Such a source, once it has answered a check from
//! the address of ours that it sends to, makes a pair of its own beside them.

use std::net::SocketAddr;
use std::time::Duration;

use mobikex_common::addr::Path;
use mobikex_common::sa::Mode;
use tracing::info;

use super::addresses::MAX_ADDRESSES;
use super::child::ChildSa;
use super::ctx::Ctx;
use super::mobility::{Mobility, RETIRED};
use super::network::Network;
use super::path_table::{Health, PathTable};
use super::sa::IkeSa;

/// Between two new sources of a NATed peer's that are followed, doubled each time up to the second value.
const FOLLOW_PAUSE: Duration = Duration::from_secs(2);
const FOLLOW_AT_MOST: Duration = Duration::from_secs(64);

/// Pairs that are remembered at most.
const MAX_MAPPINGS: usize = 4 * MAX_ADDRESSES;
/// So many probes in a row go unanswered, one a second, before a pair is forgotten. A packet that comes brings it back.
const LONG_DEAD: u32 = 60;

/// The pairs that there are beside what the peer has told.
#[derive(Clone, Debug, Default)]
pub(super) struct Mappings(Vec<Path>);

impl Mappings {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Path> {
        self.0.iter()
    }

    pub(super) fn has(&self, pair: &Path) -> bool {
        self.0.contains(pair)
    }

    /// An address of ours, which is there, toward which a NAT shows the peer there.
    pub(super) fn toward(&self, network: &Network, remote: SocketAddr) -> Option<SocketAddr> {
        self.0.iter().find(|p| p.remote == remote && network.has(p.local.ip())).map(|p| p.local)
    }

    /// Those that packets of a Child SA may take.
    pub(super) fn of(&self, child: &ChildSa) -> impl Iterator<Item = Path> {
        self.0.iter().copied().filter(|p| child.may_take(p))
    }

    /// Adds a pair, in the place of one with the same address of ours that works no more; that one, if there is any.
    /// Beyond so many nothing is added.
    fn note(&mut self, pair: Path, table: &PathTable) -> Option<Path> {
        let dead = |p: &Path| p.local == pair.local && table.health(p) == Health::Down;
        if let Some(old) = self.0.iter_mut().find(|p| dead(p)) {
            return Some(std::mem::replace(old, pair));
        }
        if self.0.len() < MAX_MAPPINGS {
            self.0.push(pair);
        }
        None
    }

    /// Takes out what `gone` says.
    fn remove(&mut self, gone: impl Fn(&Path) -> bool) -> Vec<Path> {
        self.0.extract_if(.., |p| gone(p)).collect()
    }
}

impl Mobility {
    /// Nothing has been heard over a pair for long.
    pub(super) fn is_long_dead(&self, pair: &Path) -> bool {
        self.table.get(pair).is_some_and(|p| p.health != Health::Up && p.missed >= LONG_DEAD)
    }
}

impl ChildSa {
    /// Whether packets of this SA may take a pair that only a NAT has told: its end here must be an address that the peer
    /// knows. In transport mode an address is a selector, so there it must also be one that the peer has told.
    fn may_take(&self, pair: &Path) -> bool {
        let known = self.mode == Mode::Tunnel || self.halves.remote.has(pair.remote.ip());
        known && self.halves.local.has_exactly(pair.local) && !self.halves.remote.has_exactly(pair.remote)
    }
}

impl IkeSa {
    /// ESP came from an address that is not in the set. Only a peer behind a NAT can be where it has not said to be, and
    /// only if it answers there.
    pub(super) fn new_source(&mut self, ctx: &mut Ctx<'_>, path: Path) {
        // Plain ESP has no port.
        let port = if path.remote.port() == 0 { self.default_port() } else { path.remote.port() };
        let remote = SocketAddr::new(path.remote.ip(), port);
        let pair = Path { local: SocketAddr::new(path.local.ip(), self.local.port()), remote };
        let told = |c: &ChildSa| {
            c.halves.remote.iter().chain(&c.leaving).any(|o| o.addr == remote)
                || c.retired.iter().any(|(p, _)| p.remote == remote)
        };
        if self.children.iter().any(told) || self.mobility.mappings.has(&pair) {
            return;
        }
        // Where the peer was not told that we are, somebody else has led its packets.
        let ours = |c: &ChildSa| c.halves.local.has_exactly(pair.local);
        let expected = !self.mobility.probes() || self.children.iter().any(ours);
        if !expected || !self.may_be_translated(remote) || !self.acceptable(ctx, remote.ip()) {
            return;
        }
        // A peer with two addresses behind one NAT shows up at two ports in turn: no reason to follow each time.
        let (since, pause) = self.mobility.followed.unwrap_or((ctx.now, Duration::ZERO));
        let quiet = ctx.now.saturating_duration_since(since);
        if quiet < pause {
            return;
        }
        let next = if quiet > FOLLOW_AT_MOST * 2 { FOLLOW_PAUSE } else { (pause * 2).max(FOLLOW_PAUSE) };
        self.mobility.followed = Some((ctx.now, next.min(FOLLOW_AT_MOST)));
        let task = self.check_of(pair, true);
        self.add_task(ctx, task);
    }

    /// A source has answered that the peer has not told, and that takes the place of nothing that it has.
    pub(super) fn note_mapping(&mut self, ctx: &mut Ctx<'_>, pair: Path) {
        if !self.mobility.probes() || self.mobility.mappings.has(&pair) {
            return;
        }
        let old = self.mobility.mappings.note(pair, &self.mobility.table);
        if !self.mobility.mappings.has(&pair) {
            return;
        }
        info!(target: "IKE", "{} a NAT shows the peer at {} toward {}", self.name(), pair.remote, pair.local);
        let Some(old) = old else {
            // There may be more of them, up to a limit.
            self.mobility.followed = None;
            return;
        };
        self.retire_everywhere(ctx, vec![old]);
        if old == self.current() {
            self.retarget(ctx, pair.local, pair.remote);
        }
    }

    /// Forgets the pairs that `gone` names. Should the peer be heard over one of them yet, it is found anew.
    pub(super) fn forget_mappings(&mut self, ctx: &Ctx<'_>, gone: impl Fn(&Path) -> bool) {
        let gone = self.mobility.mappings.remove(gone);
        self.retire_everywhere(ctx, gone);
    }

    /// Forgets pairs without an end here that the peer knows, those that it has told meanwhile, and what has been silent for
    /// long; and all of them once nobody would notice that one is silent.
    pub(super) fn prune_mappings(&mut self, ctx: &Ctx<'_>) {
        // While the Child SAs are still with the IKE SA that this one replaces, they are not known.
        if self.children.is_empty() {
            return;
        }
        let all = !self.mobility.probes();
        let there = |p: &Path| ctx.network.has(p.local.ip()) && self.children.iter().any(|c| c.may_take(p));
        let goes = |p: &Path| all || !there(p) || self.mobility.is_long_dead(p);
        let gone: Vec<Path> = self.mobility.mappings.iter().copied().filter(goes).collect();
        self.forget_mappings(ctx, |p| gone.contains(p));
    }

    fn retire_everywhere(&mut self, ctx: &Ctx<'_>, gone: Vec<Path>) {
        let until = ctx.now + RETIRED;
        if !gone.is_empty() {
            self.children.iter_mut().for_each(|c| c.retire_paths(gone.clone(), until));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::ike::path_table::path;

    fn at(addr: u8, port: u16) -> SocketAddr {
        SocketAddr::new([192, 0, 2, addr].into(), port)
    }

    #[test]
    fn a_new_mapping_replaces_one_that_is_dead_toward_the_same_address_and_there_are_few() {
        let now = Instant::now();
        let mut table = PathTable::new(Duration::from_millis(100));
        let mut mappings = Mappings::default();
        let (here, there) = (path(at(1, 4500), at(9, 20_001)), path(at(2, 4500), at(9, 20_002)));
        for pair in [here, there] {
            assert_eq!(mappings.note(pair, &table), None);
            table.proven(pair, now);
        }
        // Both work: what comes next is one more address of the peer.
        let third = path(here.local, at(9, 20_003));
        assert_eq!(mappings.note(third, &table), None);
        table.fail(|p| *p == here || *p == there, now);
        let again = path(here.local, at(9, 20_004));
        assert_eq!(mappings.note(again, &table), Some(here), "not the one toward another address");
        assert!(mappings.has(&there) && mappings.has(&third) && mappings.has(&again) && !mappings.has(&here));
        for port in 30_000..30_100 {
            mappings.note(path(at(3, 4500), at(9, port)), &table);
        }
        assert_eq!(mappings.iter().count(), MAX_MAPPINGS);
        assert_eq!(mappings.remove(|p| p.local == there.local), [there]);
    }
}
