//! Where a NAT shows the peer toward one of our addresses only (RFC 4787 4.1, "address and port-dependent mapping").
//!
//! What the peer says about its addresses it says over one pair, and the source of that request is where the NAT shows it
//! on this pair. Many NATs show it there toward our other addresses too, but not all: there, the pairs of what both have
//! told lead nowhere, while the peer's packets come from yet another port. Such a source, once it has answered a check from
//! the address of ours that it sends to, makes a pair of its own beside them.

use std::net::SocketAddr;

use mobikex_common::addr::Path;
use mobikex_common::sa::Mode;
use tracing::info;

use super::addresses::MAX_ADDRESSES;
use super::child::ChildSa;
use super::ctx::Ctx;
use super::mobility::RETIRED;
use super::path_table::{Health, PathTable};
use super::sa::IkeSa;

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

    /// Our address toward which a NAT shows the peer there.
    pub(super) fn toward(&self, remote: SocketAddr) -> Option<SocketAddr> {
        self.0.iter().find(|p| p.remote == remote).map(|p| p.local)
    }

    /// Adds a pair, in the place of one with the same address of ours that works no more; that one, if there is any.
    /// Beyond so many nothing is added.
    fn note(&mut self, pair: Path, table: &PathTable) -> Option<Path> {
        let dead = |p: &Path| p.local == pair.local && table.health(p) == Health::Down;
        if let Some(old) = self.0.iter_mut().find(|p| dead(p)) {
            return Some(std::mem::replace(old, pair));
        }
        if self.0.len() < MAX_ADDRESSES {
            self.0.push(pair);
        }
        None
    }

    /// Takes out what `gone` says.
    fn remove(&mut self, gone: impl Fn(&Path) -> bool) -> Vec<Path> {
        self.0.extract_if(.., |p| gone(p)).collect()
    }
}

impl ChildSa {
    /// Whether packets of this SA may take a pair that only a NAT has told: the one with an address of ours that the
    /// peer knows. In transport mode an address is a selector, so there it must be one that the peer has told.
    pub(super) fn may_take(&self, pair: &Path) -> bool {
        let known = self.mode == Mode::Tunnel || self.halves.remote.has(pair.remote.ip());
        known && self.halves.local.has_exactly(pair.local) && !self.halves.remote.has_exactly(pair.remote)
    }
}

impl IkeSa {
    /// A source has answered that the peer has not told, and that takes the place of nothing that it has.
    pub(super) fn note_mapping(&mut self, ctx: &mut Ctx<'_>, pair: Path) {
        if !self.mobility.probes() || self.mobility.mappings.has(&pair) {
            return;
        }
        info!(target: "IKE", "{} a NAT shows the peer at {} toward {}", self.name(), pair.remote, pair.local);
        let old = self.mobility.mappings.note(pair, &self.mobility.table);
        if let Some(old) = old {
            self.retire_everywhere(ctx, vec![old]);
            if old == self.current() {
                self.retarget(ctx, pair.local, pair.remote);
            }
        }
    }

    /// The peer has told of this address, or is not there.
    pub(super) fn forget_mapping(&mut self, ctx: &Ctx<'_>, remote: SocketAddr) {
        let gone = self.mobility.mappings.remove(|p| p.remote == remote);
        self.retire_everywhere(ctx, gone);
    }

    /// The peer has left addresses: which of the pairs went with them is not known, and it will be heard over the others.
    pub(super) fn forget_mappings(&mut self, ctx: &Ctx<'_>) {
        let gone = self.mobility.mappings.remove(|_| true);
        self.mobility.followed = None;
        self.retire_everywhere(ctx, gone);
    }

    fn retire_everywhere(&mut self, ctx: &Ctx<'_>, gone: Vec<Path>) {
        let until = ctx.now + RETIRED;
        if !gone.is_empty() {
            self.children.iter_mut().for_each(|c| c.retire_paths(gone.clone(), until));
        }
    }
}
