//! What an IKE SA knows about addresses, and how its Child SAs follow: shared by MOBIKE (`mobike`) and MOBIKE-X
//! (`mobike_x`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mobikex_common::addr::{AddressSet, Path, Scheduler};
use mobikex_common::sa::{ChildSaId, Mode};
use mobikex_common::wire::ike::{Notify, NotifyType, Payload};
use rand_core::Rng;
use tracing::debug;

use super::addresses::{Half, Halves, Outer};
use super::child::ChildSa;
use super::ctx::{Ctx, nat_hash};
use super::mappings::Mappings;
use super::mobike_x::decide::hosts;
use super::output::{Event, Output};
use super::path_table::{Health, PathTable, path};
use super::path_test;
use super::roles::OriginalInitiator;
use super::sa::IkeSa;
use super::sets::{self, Check, Knowledge};
use super::tasks::Task;
use super::versions::Version;
use crate::config::Connection;

/// Packets that were on their way when a path left a set are still expected for this long.
pub(super) const RETIRED: Duration = Duration::from_secs(5);
/// No more of them are remembered.
const MAX_RETIRED: usize = 32;
/// After a change of paths, packets may overtake each other for this long.
const UNSETTLED: Duration = Duration::from_millis(500);
/// Bounds of the time that packets wait for each other then.
const REORDER: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// Datagrams that go to an address of the peer that is not checked yet, one a second (M6 of the threats).
pub(super) const CHECK_TRIES: u32 = 3;
/// How long a check takes at most.
pub(super) const CHECK_TIME: Duration = Duration::from_secs(CHECK_TRIES as u64);
/// After a check that failed, until the next one of an address that stays.
pub(super) const CHECK_AGAIN: Duration = Duration::from_secs(10);
/// Between two tellings of the addresses that the peer should know, doubled each time up to the second value.
pub(super) const TELL_AGAIN: Duration = Duration::from_secs(30);
const TELL_AT_MOST: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Clone)]
pub(super) struct Mobility {
    pub(super) version: Version,
    /// What we have offered.
    pub(super) offered: Vec<Version>,
    /// We are the initiator of the first IKE SA, who decides in version 1 (RFC 4555 1.3).
    pub(super) decides: bool,
    /// The peer answers echoes, so that paths can be probed.
    pub(super) echo: bool,
    /// The peer's additional addresses (RFC 4555 3.4): where else to look for it.
    pub(super) alternates: Half,
    /// The peer's addresses, and whether they have been checked.
    pub(super) checks: BTreeMap<SocketAddr, Check>,
    pub(super) table: PathTable,
    /// What a NAT shows toward single addresses of ours.
    pub(super) mappings: Mappings,
    /// Our addresses that the peer has been told of, and has not refused.
    pub(super) announced: BTreeSet<IpAddr>,
    /// Those that an operator has told it of by hand, whether we have them or not.
    pub(super) by_hand: BTreeSet<IpAddr>,
    /// Those that it has refused; asked again when the network changes.
    pub(super) refused: BTreeSet<IpAddr>,
    /// Those from which no request has reached it; tried again when there may be another way, and from time to time.
    pub(super) unheard: BTreeSet<IpAddr>,
    /// The first message of version 2 has told what we can do.
    pub(super) greeted: bool,
    /// Version 1: the pair that the peer has taken last.
    pub(super) agreed: Option<Path>,
    /// Version 1: pairs to which the peer has refused to move; asked again when the network changes.
    pub(super) refused_pairs: Vec<Path>,
    /// Version 1: our addresses are others than the peer has been told.
    pub(super) untold: bool,
    /// Version 1: the pair over which the list of our addresses shall go.
    pub(super) list_over: Option<Path>,
    /// Version 1: the peer is to be told of new addresses (RFC 4555 3.5, "pending_update").
    pub(super) update_wanted: bool,
    /// The NAT before us has a new mapping, which the peer of version 2 is to be told.
    pub(super) remapped: bool,
    /// Where the peer was before it moved.
    pub(super) previous: Option<(SocketAddr, SocketAddr)>,
    /// What the peer saw as our address, hashed (RFC 4555 3.8).
    pub(super) seen: Option<Vec<u8>>,
    /// Requests to check something are answered for the sake of this budget, refilled every second.
    pub(super) check_budget: (Option<Instant>, u32),
    /// New requests after UNEXPECTED_NAT_DETECTED.
    pub(super) nat_retries: u32,
    /// When the peer was told of an address last.
    pub(super) told_at: Option<Instant>,
    /// When all our addresses are told once more.
    tell_again_at: Option<Instant>,
    /// When the next pair is tested by IKE (`path_test`), and how many have been.
    pub(super) tests_at: Option<Instant>,
    pub(super) tests: usize,
    /// When the traffic of the paths is read next.
    pub(super) reading_at: Option<Instant>,
    /// How long after that it hears of all of them once more.
    pub(super) tell_pause: Duration,
    /// The peer shall hear of all addresses, and forget others.
    pub(super) tell_all: bool,
    /// Version 1: the responder has moved by itself and waits for an UPDATE. Until then it is where it hears from the
    /// initiator, again and again: what comes first may have been sent over any pair in search of an answer.
    pub(super) adrift: bool,
    /// When a new source was followed last, and how long no other one is.
    pub(super) followed: Option<(Instant, Duration)>,
    unsettled_until: Option<Instant>,
}

impl Mobility {
    pub(super) fn new(conn: &Connection, initiator: OriginalInitiator) -> Self {
        Self {
            version: Version::None,
            offered: Vec::new(),
            decides: initiator.is_us(),
            echo: false,
            alternates: Half::default(),
            checks: BTreeMap::new(),
            table: PathTable::new(conn.paths.probe_interval),
            mappings: Mappings::default(),
            announced: BTreeSet::new(),
            by_hand: BTreeSet::new(),
            refused: BTreeSet::new(),
            unheard: BTreeSet::new(),
            greeted: false,
            agreed: None,
            refused_pairs: Vec::new(),
            untold: false,
            list_over: None,
            update_wanted: false,
            remapped: false,
            previous: None,
            seen: None,
            check_budget: (None, 0),
            nat_retries: 0,
            told_at: None,
            tell_again_at: None,
            tests_at: None,
            tests: 0,
            reading_at: None,
            tell_pause: TELL_AGAIN,
            tell_all: false,
            adrift: false,
            followed: None,
            unsettled_until: None,
        }
    }

    /// The peer has agreed to an action of ours. However often it does, all addresses are told again in time.
    pub(super) fn has_told(&mut self, now: Instant) {
        let again = now + self.tell_pause;
        self.told_at = Some(now);
        self.tell_again_at = Some(self.tell_again_at.map_or(again, |at| at.min(again)));
    }

    /// Whether paths are probed in the packet path.
    pub(super) fn probes(&self) -> bool {
        self.version == Version::MobikeX && self.echo
    }
}

/// The address belongs to a host behind a NAT when the other end has a public one.
pub(super) fn is_private(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => a.is_private() || (a.octets()[0] == 100 && a.octets()[1] & 0xc0 == 64),
        IpAddr::V6(a) => a.octets()[0] & 0xfe == 0xfc,
    }
}

impl IkeSa {
    /// The pair that this IKE SA sends over.
    pub(super) fn current(&self) -> Path {
        path(self.local, self.remote)
    }

    /// Both sides have just used the current pair: everything starts from it.
    pub(super) fn start_mobility(&mut self, ctx: &Ctx<'_>) {
        self.mobility.checks.insert(self.remote, Check::Passed);
        self.mobility.table.proven(self.current(), ctx.now);
        // In version 1, IKE_AUTH has told of all of them.
        if self.mobility.version != Version::Mobike {
            self.mobility.announced = [self.local.ip()].into();
        }
        self.mobility.agreed = Some(self.current());
        self.mobility.tests_at = Some(ctx.now + path_test::BETTER);
    }

    /// One of our addresses, with what its interface is worth.
    pub(super) fn own(&self, ctx: &Ctx<'_>, addr: SocketAddr) -> Outer {
        let found = ctx.network.find(addr.ip());
        let preference = found.map(|a| self.conn.paths.preference(&a.interface));
        let mut outer = Outer::new(addr);
        outer.preference = preference.unwrap_or(outer.preference);
        outer
    }

    /// The halves of a Child SA that is negotiated now.
    pub(super) fn initial_halves(&self, ctx: &Ctx<'_>) -> Halves {
        // In version 1 they are where the IKE SA is.
        let extended = self.mobility.version == Version::MobikeX;
        let (local, remote) = if extended { self.asked_over(ctx) } else { (self.local, self.remote) };
        let mut halves = Halves::single(local, remote);
        halves.local.add(self.own(ctx, local));
        halves
    }

    fn knowledge<'a>(&'a self, ctx: &'a Ctx<'_>) -> Knowledge<'a> {
        Knowledge {
            now: ctx.now,
            table: &self.mobility.table,
            network: ctx.network,
            checks: &self.mobility.checks,
            routability: self.conn.return_routability,
            probed: self.mobility.probes(),
            encap: self.encap,
            nat_t: self.nat_t,
            measured: self.conn.paths.measure_rates,
        }
    }

    /// The address set of a Child SA as it should be, with the generation of the one that it has.
    pub(super) fn address_set(&self, ctx: &Ctx<'_>, child: &ChildSa) -> AddressSet {
        let wanted = child.config.scheduler.unwrap_or(self.conn.paths.scheduler);
        let mapped: Vec<Path> = self.mobility.mappings.of(child).collect();
        let beside = sets::Beside { mapped: &mapped, leaving: &child.leaving, retired: &child.retired };
        let (scheduler, paths) = sets::build(&child.halves, &beside, wanted, &self.knowledge(ctx));
        let several = paths.iter().filter(|p| p.weight > 0).count() > 1;
        let waits = match wanted {
            Scheduler::Packet => several,
            Scheduler::Flow | Scheduler::Backup => self.mobility.unsettled_until.is_some(),
            Scheduler::Redundant => false,
        };
        let spread = self.mobility.table.spread() * 3 / 2 + REORDER.0;
        let resequence_ms = if waits { spread.min(REORDER.1).as_millis() as u16 } else { 0 };
        AddressSet { generation: child.addresses.generation, scheduler, resequence_ms, paths }
    }

    /// Brings the packet path in line with what is known now. SAs with the same paths change in one step.
    pub(super) fn refresh(&mut self, ctx: &mut Ctx<'_>) {
        self.begin_addresses(ctx);
        self.refresh_paths(ctx);
        let mut changes: Vec<(AddressSet, Vec<ChildSaId>)> = Vec::new();
        let mut transport: Vec<ChildSaId> = Vec::new();
        for index in 0..self.children.len() {
            let set = self.address_set(ctx, &self.children[index]);
            let child = &mut self.children[index];
            // An address without a counterpart makes no path, but it is a selector all the same.
            let selectors = child.follow_selectors();
            if set.paths.is_empty() {
                child.selectors_changed = selectors;
                continue;
            }
            if set == child.addresses && !selectors {
                continue;
            }
            child.addresses = AddressSet { generation: child.addresses.generation + 1, ..set };
            if selectors || child.mode == Mode::Transport {
                transport.push(child.id);
                continue;
            }
            let set = AddressSet { generation: 0, ..child.addresses.clone() };
            match changes.iter_mut().find(|(known, _)| *known == set) {
                Some((_, ids)) => ids.push(child.id),
                None => changes.push((set, vec![child.id])),
            }
        }
        for (set, children) in changes {
            ctx.out.push_back(Output::SetAddresses { children, set });
        }
        for id in transport {
            let Some(child) = self.children.iter().find(|c| c.id == id) else { continue };
            ctx.out.push_back(Output::SetSelectors {
                child: id,
                set: child.addresses.clone(),
                ts_local: child.ts_local.clone(),
                ts_remote: child.ts_remote.clone(),
            });
            self.raise_again(ctx, id);
        }
    }

    /// Ends what has had its time, and makes the path table hold the pairs of all children.
    fn refresh_paths(&mut self, ctx: &Ctx<'_>) {
        let now = ctx.now;
        self.prune_mappings(ctx);
        let mut wanted = vec![self.current()];
        for child in &mut self.children {
            child.halves.local.expire(now);
            child.halves.remote.expire(now);
            child.retired.retain(|(_, until)| *until > now);
            child.timed_at = [child.halves.local.next_change(now), child.halves.remote.next_change(now)]
                .into_iter()
                .flatten()
                .min();
            let pairs = child.halves.pairs().map(|(l, r)| path(l.addr, r.addr));
            let old =
                child.leaving.iter().flat_map(|r| child.halves.local.iter().map(|l| path(l.addr, r.addr)));
            for pair in pairs.chain(old).chain(self.mobility.mappings.of(child)) {
                if !wanted.contains(&pair) {
                    wanted.push(pair);
                }
            }
        }
        if self.tests_paths() {
            let tested = self.routes(ctx);
            wanted.extend(tested.into_iter().filter(|p| !wanted.contains(p)).collect::<Vec<_>>());
        }
        self.mobility.table.keep(&wanted, now);
    }

    /// Applies `change` to the halves of Child SAs. Paths that this takes away are retired, and for a while packets may
    /// overtake each other.
    pub(super) fn change_halves(
        &mut self,
        ctx: &mut Ctx<'_>,
        chosen: impl Fn(&ChildSa) -> bool,
        mut change: impl FnMut(&mut Halves),
    ) {
        let until = ctx.now + RETIRED;
        for child in self.children.iter_mut().filter(|c| chosen(c)) {
            let before: Vec<Path> = child.addresses.paths.iter().map(|p| p.path).collect();
            change(&mut child.halves);
            let pairs = child.halves.pairs().map(|(l, r)| path(l.addr, r.addr));
            let kept: Vec<Path> = pairs.chain(self.mobility.mappings.of(child)).collect();
            child.retire_paths(before.into_iter().filter(|p| !kept.contains(p)).collect(), until);
        }
        self.unsettle(ctx);
        self.refresh(ctx);
    }

    /// Packets may overtake each other for a while. Only version 2 lets a set have several paths.
    pub(super) fn unsettle(&mut self, ctx: &Ctx<'_>) {
        if self.mobility.version == Version::MobikeX {
            self.mobility.unsettled_until = Some(ctx.now + UNSETTLED);
        }
    }

    /// Timers of paths and addresses.
    pub(super) fn mobility_timeouts(&mut self, ctx: &mut Ctx<'_>) {
        let mut changed = false;
        if self.mobility.unsettled_until.is_some_and(|at| at <= ctx.now) {
            self.mobility.unsettled_until = None;
            changed = true;
        }
        if self.tell_again_at().is_some_and(|at| at <= ctx.now) {
            self.tell_again(ctx);
        }
        changed |= self.children.iter().any(|c| c.next_address_change().is_some_and(|at| at <= ctx.now));
        changed |= self.mobility.mappings.iter().any(|p| self.mobility.is_long_dead(p));
        if self.mobility.probes() {
            for path in self.mobility.table.expire(ctx.now) {
                changed = true;
                ctx.event(Event::PathDown { ike: self.name(), path });
            }
            self.send_probes(ctx);
            self.read_rates(ctx);
            if changed {
                self.prefer_working_path(ctx);
            }
        }
        self.test_paths(ctx);
        if changed {
            self.unsettle_if_several(ctx);
            self.refresh(ctx);
        }
    }

    fn unsettle_if_several(&mut self, ctx: &Ctx<'_>) {
        if self.mobility.table.iter().count() > 1 && self.mobility.unsettled_until.is_some() {
            self.unsettle(ctx);
        }
    }

    /// When [`Self::mobility_timeouts`] has something to do.
    pub(super) fn mobility_timeout(&self) -> Option<Instant> {
        let probes = self.mobility.probes() && self.carrier().is_some();
        [
            self.mobility.unsettled_until,
            self.tell_again_at(),
            self.mobility.table.next_timeout().filter(|_| probes),
            self.mobility.reading_at.filter(|_| probes && self.reads_rates()),
            self.path_test_at(),
            self.children.iter().filter_map(ChildSa::next_address_change).min(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// An address of ours works that did not when the peer was told of it: the peer may have checked it in vain and
    /// forgotten it. Adding what is there already does no harm (MOBIKE-X profile 6).
    pub(super) fn announce_again(&mut self, ctx: &mut Ctx<'_>, addr: IpAddr) {
        let told = self.mobility.told_at;
        let late = told.is_some_and(|at| ctx.now.saturating_duration_since(at) > CHECK_TIME);
        if late && addr != self.local.ip() && self.mobility.announced.remove(&addr) {
            self.add_task(ctx, Task::Reconcile);
        }
    }

    /// When all our addresses are told to the peer once more: a request may have been lost with the IKE SA that carried
    /// it, and the peer may have dropped an address for want of an answer. Seldom and seldom, unless something changes.
    fn tell_again_at(&self) -> Option<Instant> {
        self.mobility.tell_again_at.filter(|_| self.mobility.version == Version::MobikeX)
    }

    fn tell_again(&mut self, ctx: &mut Ctx<'_>) {
        self.mobility.tell_pause = (self.mobility.tell_pause * 2).min(TELL_AT_MOST);
        self.mobility.tell_again_at = Some(ctx.now + self.mobility.tell_pause);
        self.mobility.tell_all = true;
        self.mobility.unheard.clear();
        self.tasks.push(Task::Reconcile);
    }

    /// IKE messages go over a pair that works, if the current one does not, and not from an address that the peer refuses
    /// where another one works.
    pub(super) fn prefer_working_path(&mut self, ctx: &mut Ctx<'_>) {
        let current = self.current();
        let refused = |p: &Path| self.mobility.refused.contains(&p.local.ip());
        let works = self.mobility.table.health(&current) == Health::Up && ctx.network.has(current.local.ip());
        if works && !refused(&current) {
            return;
        }
        let passed = |p: &Path| self.mobility.checks.get(&p.remote) == Some(&Check::Passed);
        let working: Vec<Path> = self
            .mobility
            .table
            .iter()
            .filter(|p| p.health == Health::Up && passed(&p.path) && ctx.network.has(p.path.local.ip()))
            .map(|p| p.path)
            .collect();
        let best = working.iter().find(|p| !refused(p)).or(working.first()).copied();
        if let Some(path) = best.filter(|p| !works || !refused(p)) {
            debug!(target: "IKE", "{} sends over {path} now", self.name());
            self.retarget(ctx, path.local, path.remote);
        }
    }

    /// NAT_DETECTION of a message between two addresses. With `encap` the source is made to look translated, so that
    /// the peer encapsulates too; an all-zero port does that without lying about the address family.
    pub(super) fn nat_detection(&self, local: SocketAddr, remote: SocketAddr) -> [Payload; 2] {
        let source = if self.conn.encap { SocketAddr::new(local.ip(), 0) } else { local };
        let hash = |addr| nat_hash(self.spi_i, self.spi_r, addr).to_vec();
        [
            Payload::Notify(Notify::new(NotifyType::NAT_DETECTION_SOURCE_IP, hash(source))),
            Payload::Notify(Notify::new(NotifyType::NAT_DETECTION_DESTINATION_IP, hash(remote))),
        ]
    }
}

/// Unpredictable to the peer (RFC 4555 4.2.5).
pub(super) fn cookie(ctx: &mut Ctx<'_>) -> Vec<u8> {
    let mut cookie = vec![0; 16];
    ctx.rng.fill_bytes(&mut cookie);
    cookie
}

impl ChildSa {
    /// Packets may still arrive over these paths until then. However fast a peer moves, there is an end to the list.
    pub(super) fn retire_paths(&mut self, paths: Vec<Path>, until: Instant) {
        for path in paths {
            self.retired.retain(|(known, _)| *known != path);
            self.retired.push((path, until));
        }
        let surplus = self.retired.len().saturating_sub(MAX_RETIRED);
        self.retired.drain(..surplus);
    }

    /// In transport mode the addresses are the selectors: brings them in line. Tells whether the packet path has others.
    pub(super) fn follow_selectors(&mut self) -> bool {
        let mut changed = std::mem::take(&mut self.selectors_changed);
        if self.mode == Mode::Transport {
            let addrs = |half: &Half| half.iter().map(|o| o.addr.ip()).collect::<Vec<_>>();
            let local = hosts(&self.ts_local, &addrs(&self.halves.local));
            let remote = hosts(&self.ts_remote, &addrs(&self.halves.remote));
            changed |= (&local, &remote) != (&self.ts_local, &self.ts_remote);
            (self.ts_local, self.ts_remote) = (local, remote);
        }
        changed
    }

    /// When one of its addresses begins, ends, or is no longer expected.
    fn next_address_change(&self) -> Option<Instant> {
        self.retired.iter().map(|(_, until)| *until).chain(self.timed_at).min()
    }
}
