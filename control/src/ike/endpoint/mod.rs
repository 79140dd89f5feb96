//! All IKE SAs of this host. Time, datagrams and commands come in as arguments; everything to do goes out
//! through one queue.

mod commands;
mod receive;
mod sas;
mod traps;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mobikex_common::addr::Path;
use mobikex_common::sa::{ChildSaId, PolicyId};
use mobikex_common::spi::SpiAllocator;
use mobikex_common::wire::echo::Echo;
use mobikex_common::wire::ike::{Identification, NotifyType};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use serde::Serialize;
use tracing::info;

use crate::config::{Config, Connection};
use crate::credentials::UnixSeconds;
use crate::ike::child::ChildSa;
use crate::ike::cookie::Cookies;
use crate::ike::ctx::{Ctx, Effect, Ids};
use crate::ike::hints::Complaints;
use crate::ike::internal::Internal;
use crate::ike::mappings::Mappings;
use crate::ike::mobike::NAT_RETRIES;
use crate::ike::network::{LocalAddress, Network};
use crate::ike::notices::Notices;
use crate::ike::output::{IkeSaView, Output};
use crate::ike::pace::Pace;
use crate::ike::pools::{LeaseView, PoolView, Pools};
use crate::ike::reassembly::FragmentMemory;
use crate::ike::sa::{Gone, IkeSa, State};
use crate::ike::tasks::{Task, Tasks};
use crate::ike::versions::{self, Version};

pub use commands::{AddressAction, Command, CommandError};
pub(super) use sas::Sas;
pub(super) use traps::Traps;

/// An SA that we started this recently may cross one that the peer starts: both stay, rather than each side
/// removing the other's.
const BOTH_STARTED: Duration = Duration::from_secs(5);

/// Pairs of addresses that are tried to set up a connection.
const MAX_PAIRS: usize = 8;

fn shared(config: &Config) -> Vec<Arc<Connection>> {
    config.connections.iter().cloned().map(Arc::new).collect()
}

/// What the packet path reports about a Child SA.
#[derive(Clone, Copy, Debug)]
pub enum ChildEvent {
    /// Traffic wants an SA for this policy.
    Acquire(PolicyId),
    /// A soft volume limit was reached.
    SoftLimit(ChildSaId),
    /// A hard volume limit was reached, or the sequence numbers are used up.
    HardLimit(ChildSaId),
    /// The first authentic packet came in: the peer uses the SA.
    FirstInbound(ChildSaId),
    /// It sends again after a pause.
    Traffic(ChildSaId),
    /// A worker sends on it and has none of its own.
    OwnSa(ChildSaId, u32),
}

/// Messages that were not acted on.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct IkeCounters {
    /// Too short, wrong length, or a payload chain that does not parse.
    pub malformed: u64,
    /// A major version other than 2.
    pub wrong_version: u64,
    /// No IKE SA has these SPIs.
    pub unknown_spi: u64,
    /// Outside the message window.
    pub outside_window: u64,
    /// The integrity check failed.
    pub not_authentic: u64,
    /// The SA was in no state for the exchange.
    pub wrong_state: u64,
    /// A fragment with impossible numbers, or one too many (RFC 7383).
    pub fragments_refused: u64,
    /// No connection is configured for the addresses.
    pub no_connection: u64,
    /// IKE_SA_INIT requests that were asked for a cookie.
    pub cookies_asked: u64,
    /// IKE_SA_INIT requests dropped because too many initiators are half-open.
    pub half_open_dropped: u64,
}

/// The IKEv2 engine.
pub struct Endpoint {
    config: Arc<Config>,
    /// Those of `config`; an SA holds on to the one that it was negotiated with.
    connections: Vec<Arc<Connection>>,
    /// Of the packet path; it takes a restart to change them.
    workers: usize,
    rng: ChaCha20Rng,
    pub(super) sas: Sas,
    out: VecDeque<Output>,
    spis: SpiAllocator,
    ids: Ids,
    traps: Traps,
    cookies: Cookies,
    sources: HashMap<IpAddr, IpAddr>,
    network: Network,
    pools: Pools,
    internal: Internal,
    attempts: HashMap<String, u32>,
    counters: IkeCounters,
    notices: Notices,
    saves_keys: bool,
    pace: Pace,
    refusals: BTreeMap<NotifyType, u64>,
    fragment_memory: FragmentMemory,
    pub(super) complaints: Complaints,
    /// A moment and what the machine's clock showed then.
    clock: Option<(Instant, UnixSeconds)>,
}

impl Endpoint {
    /// An endpoint without SAs. `seed` feeds all nonces, SPIs and keys: from the system in production, fixed in
    /// tests. Traps of the configuration are installed at once; see [`Self::start_connections`] for the rest.
    pub fn new(now: Instant, config: Config, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let cookies = Cookies::new(now, &mut rng);
        let slots = config.daemon.max_child_sas;
        let mut endpoint = Self {
            connections: shared(&config),
            pools: Pools::new(&config.pools),
            workers: config.daemon.workers.unwrap_or(1).max(1),
            config: Arc::new(config),
            rng,
            sas: Sas::default(),
            out: VecDeque::new(),
            spis: SpiAllocator::new(slots),
            ids: Ids::default(),
            traps: Traps::default(),
            cookies,
            sources: HashMap::new(),
            network: Network::default(),
            internal: Internal::default(),
            attempts: HashMap::new(),
            counters: IkeCounters::default(),
            notices: Notices::new(now),
            saves_keys: false,
            pace: Pace::default(),
            refusals: BTreeMap::new(),
            fragment_memory: FragmentMemory::default(),
            complaints: Complaints::default(),
            clock: None,
        };
        endpoint.install_traps();
        endpoint
    }

    /// Tells what the machine's clock shows at `now`, in seconds since 1970. Without it no certificate is taken; it may be
    /// told anew whenever the clock may have been set.
    pub fn set_clock(&mut self, now: Instant, unix: UnixSeconds) {
        self.clock = Some((now, unix));
    }

    /// From now on the keys that open the messages of IKE SAs leave the engine, as [`Output::SaveKeys`].
    pub fn save_keys(&mut self) {
        self.saves_keys = true;
    }

    /// Takes up a new configuration. Established SAs keep what they were negotiated with (RFC 7296 has no
    /// notion of changing it); traps that are no longer configured go.
    pub fn set_config(&mut self, now: Instant, config: Config) {
        self.connections = shared(&config);
        self.config = Arc::new(config);
        let config = self.config.clone();
        self.pools.set_config(&config.pools);
        self.internal.retain(|name| config.connection(name).is_some());
        self.remove_traps(&config);
        self.install_traps();
        self.end_mobike_x(now);
    }

    /// Ends MOBIKE-X on SAs whose connection does not allow it any more (MOBIKE-X 7.1.2).
    fn end_mobike_x(&mut self, now: Instant) {
        let forbids = |conn: &&Connection| !versions::allowed(conn).contains(&Version::MobikeX);
        let over: HashSet<&str> =
            self.config.connections.iter().filter(forbids).map(|c| c.name.as_str()).collect();
        let meant =
            |sa: &&IkeSa| sa.mobility.version == Version::MobikeX && over.contains(sa.conn.name.as_str());
        let ids: Vec<u32> = self.sas.iter().filter(meant).map(|sa| sa.id).collect();
        for id in ids {
            self.with_sa(now, id, |sa, ctx| {
                sa.add_task(ctx, Task::MobikeNone);
                Ok(())
            });
        }
    }

    /// Sets up every connection that has a child with `start_action = start`.
    pub fn start_connections(&mut self, now: Instant) {
        let config = self.config.clone();
        for conn in &config.connections {
            if conn.children.iter().any(|c| c.start_action.starts()) {
                let command = Command::Up { connection: conn.name.clone(), child: None };
                if let Err(error) = self.handle_command(now, command) {
                    info!(target: "IKE", "{error}");
                }
            }
        }
    }

    /// Tells which of our addresses the system would use toward a peer.
    pub fn set_route_source(&mut self, remote: IpAddr, local: IpAddr) {
        if self.sources.insert(remote, local) != Some(local) {
            self.install_traps();
        }
    }

    /// The peers for which [`Self::set_route_source`] is wanted.
    pub fn remote_addresses(&self) -> Vec<IpAddr> {
        self.config.connections.iter().flat_map(Connection::remote_singles).collect()
    }

    /// Tells which addresses this machine has. What is different from before is told to the peers.
    pub fn set_network(&mut self, now: Instant, addresses: Vec<LocalAddress>) {
        if !self.network.set(addresses) {
            return;
        }
        for id in self.sas.ids() {
            self.with_sa(now, id, |sa, ctx| {
                if sa.peer().is_some() && sa.rekeyed_by.is_none() && sa.mobility.version != Version::None {
                    sa.mobility.refused.clear();
                    sa.mobility.unheard.clear();
                    sa.mobility.refused_pairs.clear();
                    sa.mobility.untold = true;
                    sa.want_checks(ctx.now);
                    sa.refresh(ctx);
                    if sa.mobility.version == Version::Mobike {
                        sa.leave_vanished(ctx);
                    }
                    sa.add_task(ctx, Task::Reconcile);
                }
                Ok(())
            });
        }
    }

    /// Pairs of addresses by which a peer may be reached, the most promising first.
    fn pairs_for(&self, conn: &Connection) -> Vec<Path> {
        let (port, remote_port) = (self.config.daemon.port, conn.remote_port);
        let mut pairs: Vec<Path> = Vec::new();
        let mut push = |local: IpAddr, remote: IpAddr| {
            let path = Path { local: (local, port).into(), remote: (remote, remote_port).into() };
            if local.is_ipv4() == remote.is_ipv4() && pairs.len() < MAX_PAIRS && !pairs.contains(&path) {
                pairs.push(path);
            }
        };
        let remotes: Vec<IpAddr> = conn.remote_singles().collect();
        for remote in &remotes {
            // What is configured, or else what the system would choose.
            if let Some(local) = conn.local_addr(*remote).or_else(|| self.sources.get(remote).copied())
                && self.network.has(local)
            {
                push(local, *remote);
            }
        }
        for local in self.network.usable(conn) {
            remotes.iter().filter(|r| local.reaches(**r)).for_each(|r| push(local.addr, *r));
        }
        pairs
    }

    fn local_for(&self, conn: &Connection) -> Option<IpAddr> {
        let remote = conn.remote_addr()?;
        conn.local_addr(remote).or_else(|| self.sources.get(&remote).copied())
    }

    /// The next thing for the caller to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.sas.next_timeout()
    }

    /// Messages that were not acted on.
    pub fn counters(&self) -> IkeCounters {
        self.counters
    }

    /// Requests about addresses that were refused, by the notify that said so.
    pub fn refusals(&self) -> &BTreeMap<NotifyType, u64> {
        &self.refusals
    }

    /// All IKE SAs, oldest first.
    pub fn ike_sas(&self, now: Instant) -> Vec<IkeSaView> {
        self.sas.iter().map(|sa| sa.view(now)).collect()
    }

    /// Up to `count` IKE SAs with numbers above `after`, oldest first: a part of [`Self::ike_sas`] that takes a short time
    /// however many there are.
    pub fn ike_sas_after(&self, now: Instant, after: u32, count: usize) -> Vec<IkeSaView> {
        self.sas.after(after).take(count).map(|sa| sa.view(now)).collect()
    }

    /// The IKE SAs of a connection, oldest first.
    pub fn ike_sas_of(&self, now: Instant, connection: &str) -> Vec<IkeSaView> {
        self.sas.of_connection(connection).map(|sa| sa.view(now)).collect()
    }

    /// Whether a connection has an IKE SA, in whatever state.
    pub fn has_sa(&self, connection: &str) -> bool {
        self.sas.of_connection(connection).next().is_some()
    }

    /// The pools of virtual addresses.
    pub fn pools(&self) -> Vec<PoolView> {
        self.pools.views()
    }

    /// Up to `count` leases of virtual addresses behind `after`, in the order of the addresses.
    pub fn leases_after(&self, after: Option<IpAddr>, count: usize) -> Vec<LeaseView> {
        self.pools.leases_after(after, count)
    }

    /// How many IKE SAs and Child SAs there are, by their state.
    pub fn states(&self) -> [BTreeMap<&'static str, usize>; 2] {
        let mut counts = [const { BTreeMap::new() }; 2];
        for sa in self.sas.iter() {
            *counts[0].entry(sa.state_name()).or_default() += 1;
            for child in &sa.children {
                *counts[1].entry(child.state_name()).or_default() += 1;
            }
        }
        counts
    }

    /// True when no SA is left, as after [`Command::Shutdown`].
    pub fn is_idle(&self) -> bool {
        self.sas.is_empty()
    }

    /// Forgets all SAs without a word to the peers.
    pub fn abandon(&mut self, now: Instant) {
        for id in self.sas.ids() {
            self.with_sa::<()>(now, id, |sa, ctx| Err(sa.close(ctx, "shutting down", false)));
        }
    }

    /// Runs `work` on one SA with everything that it may touch, then carries out what it asked for.
    pub(super) fn with_sa<R>(
        &mut self,
        now: Instant,
        id: u32,
        work: impl FnOnce(&mut IkeSa, &mut Ctx<'_>) -> Result<R, Gone>,
    ) -> Option<R> {
        let mut sa = self.sas.take(id)?;
        let (result, effects) = self.with_ctx(now, |ctx| work(&mut sa, ctx));
        match result {
            Ok(value) => {
                self.sas.put(sa);
                self.apply(now, effects);
                Some(value)
            }
            Err(Gone) => {
                self.sas.forget(id);
                self.with_ctx(now, |ctx| sa.release_configuration(ctx));
                self.apply(now, effects);
                self.retry_failed(now, &sa);
                None
            }
        }
    }

    fn with_ctx<R>(&mut self, now: Instant, work: impl FnOnce(&mut Ctx<'_>) -> R) -> (R, Vec<Effect>) {
        let unix = self.clock.map(|(at, unix)| unix + now.saturating_duration_since(at).as_secs());
        let mut ctx = Ctx {
            now,
            unix,
            config: &self.config,
            connections: &self.connections,
            workers: self.workers,
            rng: &mut self.rng,
            out: &mut self.out,
            spis: &mut self.spis,
            ids: &mut self.ids,
            traps: &self.traps,
            notices: &mut self.notices,
            saves_keys: self.saves_keys,
            pace: &mut self.pace,
            refusals: &mut self.refusals,
            fragment_memory: &self.fragment_memory,
            network: &self.network,
            pools: &mut self.pools,
            internal: &mut self.internal,
            others: &mut self.sas,
            effects: Vec::new(),
        };
        let result = work(&mut ctx);
        (result, ctx.effects)
    }

    /// An attempt of ours that nobody answered is repeated as `keyingtries` says (0 = for ever), and one that met a NAT
    /// several times (RFC 4555 3.9).
    fn retry_failed(&mut self, now: Instant, sa: &IkeSa) {
        if let Some(attempt) = sa.reauth.replaces() {
            return self.reauthenticate_later(now, &sa.conn.name, attempt);
        }
        let (reason, limit) = match &sa.state {
            State::InitSent(_) | State::AuthSent(_) if sa.gave_up => {
                ("peer not responding", sa.conn.keyingtries)
            }
            State::AuthSent(_) if sa.unexpected_nat => ("unexpected NAT", 1 + NAT_RETRIES),
            _ => {
                self.attempts.remove(&sa.conn.name);
                return;
            }
        };
        // The one that IKE_AUTH was to set up.
        let first = match &sa.state {
            State::AuthSent(sent) => sent.child.as_ref().map(|c| c.config.name.clone()),
            _ => None,
        };
        let tries = self.attempts.entry(sa.conn.name.clone()).or_insert(0);
        *tries += 1;
        if limit == 0 || *tries < limit {
            info!(target: "IKE", "{reason}, trying again ({tries}/{limit})");
            let names = first.into_iter().chain(sa.wanted.iter().cloned()).map(Some);
            let alone = sa.conn.children.is_empty().then_some(None);
            for child in names.chain(alone) {
                let command = Command::Up { connection: sa.conn.name.clone(), child };
                if let Err(error) = self.handle_command(now, command) {
                    info!(target: "IKE", "{error}");
                }
            }
        } else {
            self.attempts.remove(&sa.conn.name);
        }
    }

    fn apply(&mut self, now: Instant, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Spawn(sa) => self.sas.put(sa),
                Effect::MoveChildren { to, children, tasks, mappings } => {
                    self.move_children(now, to, children, tasks, mappings)
                }
                Effect::Inherit { from, addresses: (local, remote, nat_t), message } => {
                    self.with_sa(now, from, |sa, ctx| {
                        sa.yield_to_peer_rekey(ctx);
                        Ok(())
                    });
                    self.handle_datagram(now, local, remote, nat_t, &message);
                }
                Effect::Supersede { id, by } => {
                    self.with_sa(now, id, |sa, ctx| {
                        sa.mark_rekeyed(ctx, by);
                        Ok(())
                    });
                }
                Effect::AskAgain(id) => {
                    self.with_sa(now, id, |sa, ctx| {
                        sa.transmit_again(ctx);
                        Ok(())
                    });
                }
                Effect::RunTasks(id) => {
                    self.with_sa(now, id, |sa, ctx| {
                        sa.run_tasks(ctx);
                        Ok(())
                    });
                }
                Effect::DeleteIke(id) => {
                    self.with_sa(now, id, |sa, ctx| {
                        sa.add_task(ctx, Task::DeleteIke("redundant after simultaneous rekeying".into()));
                        Ok(())
                    });
                }
                Effect::OnlyThis { keep, peer, local, lost } => {
                    self.only_this(now, keep, &peer, &local, lost)
                }
                Effect::StartWithoutMobike { conn, wanted } => {
                    if let Err(error) = self.start(now, conn, wanted) {
                        info!(target: "IKE", "{error}");
                    }
                }
                Effect::Reauthenticate(id) => self.reauthenticate(now, id),
                Effect::Reauthenticated { connection, attempt, by } => {
                    self.reauthenticated(now, &connection, attempt, &by);
                }
                Effect::Trap { connection, child, policy } => self.keep_trap((connection, child), policy),
                Effect::Restart { connection, child } => {
                    if let Err(error) = self.handle_command(now, Command::Up { connection, child }) {
                        info!(target: "IKE", "{error}");
                    }
                }
            }
        }
    }

    /// Gives children to an IKE SA, or to the one that has replaced it since.
    fn move_children(
        &mut self,
        now: Instant,
        mut to: u32,
        children: Vec<ChildSa>,
        tasks: Tasks,
        mappings: Option<Mappings>,
    ) {
        while let Some(next) = self.sas.get(to).and_then(|sa| sa.rekeyed_by) {
            to = next;
        }
        if !self.sas.contains(to) {
            let (_, effects) = self.with_ctx(now, |ctx| {
                children.into_iter().for_each(|child| child.remove(ctx, "its IKE SA is gone"));
            });
            return self.apply(now, effects);
        }
        self.with_sa(now, to, |sa, ctx| {
            sa.inherits_from = None;
            sa.children.extend(children);
            if let Some(mappings) = mappings {
                // What it knew when it began may have changed since.
                sa.mobility.mappings = mappings;
            }
            sa.tasks.append(tasks);
            sa.watch_all_workers(ctx);
            sa.run_tasks(ctx);
            Ok(())
        });
    }

    fn only_this(
        &mut self,
        now: Instant,
        keep: u32,
        peer: &Identification,
        local: &Identification,
        lost: bool,
    ) {
        let settled = |sa: &IkeSa| {
            sa.established_at.is_some_and(|at| now.saturating_duration_since(at) >= BOTH_STARTED)
                // What the peer itself set up before it lost its memory is stale however young it is.
                || (lost && !sa.initiator.is_us())
        };
        let stale: Vec<u32> = self
            .sas
            .of_peer(peer)
            .filter(|sa| sa.id != keep && sa.rekeyed_by.is_none() && settled(sa))
            .filter(|sa| sa.peer().is_some_and(|p| p.id().same(peer)))
            .filter(|sa| sa.local_id.as_ref().is_some_and(|id| id.same(local)))
            .map(|sa| sa.id)
            .collect();
        for id in stale {
            self.with_sa(now, id, |sa, ctx| {
                if lost {
                    return Err(sa.close(ctx, "the peer has set up a new one", false));
                }
                let shares =
                    |c: &ChildSa| ctx.others.with_policy(c.policy).find(|sa| sa.id == keep).map(IkeSa::name);
                match sa.children.iter().find_map(shares) {
                    // It seems to be a new proof, after which nothing is to be lost that is still on its way.
                    Some(by) => sa.give_way(ctx, &by),
                    None => sa.add_task(ctx, Task::DeleteIke("replaced by a new one".into())),
                }
                Ok(())
            });
        }
    }

    /// Everything that is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        for id in self.sas.due(now) {
            self.with_sa(now, id, |sa, ctx| sa.handle_timeout(ctx));
        }
    }

    /// Handles what the packet path reports.
    pub fn handle_child_event(&mut self, now: Instant, event: ChildEvent) {
        let child = match event {
            ChildEvent::Acquire(policy) => return self.acquire(now, policy),
            ChildEvent::SoftLimit(id)
            | ChildEvent::HardLimit(id)
            | ChildEvent::FirstInbound(id)
            | ChildEvent::Traffic(id)
            | ChildEvent::OwnSa(id, _) => id,
        };
        self.with_owner(now, child, |sa, ctx| match event {
            ChildEvent::SoftLimit(id) => sa.add_task(ctx, Task::RekeyChild(id)),
            ChildEvent::HardLimit(id) => sa.add_task(ctx, Task::DeleteChild(id)),
            ChildEvent::FirstInbound(id) => sa.peer_sends_on(ctx, id),
            ChildEvent::Traffic(_) => sa.traffic_begins(ctx),
            ChildEvent::OwnSa(id, worker) => sa.resource_wanted(ctx, id, worker),
            ChildEvent::Acquire(_) => {}
        });
    }

    /// Lets the IKE SA that has this Child SA do something, if there is one.
    pub(super) fn with_owner(
        &mut self,
        now: Instant,
        child: ChildSaId,
        work: impl FnOnce(&mut IkeSa, &mut Ctx<'_>),
    ) {
        let Some(owner) = self.sas.owner(child) else { return };
        self.with_sa(now, owner, |sa, ctx| {
            work(sa, ctx);
            Ok(())
        });
    }

    /// The answer to an echo request of ours, received at `at`.
    pub fn handle_echo(&mut self, now: Instant, child: ChildSaId, echo: &Echo, at: Instant) {
        self.with_owner(now, child, |sa, ctx| {
            sa.handle_echo(ctx, echo, at);
            sa.run_tasks(ctx);
        });
    }

    /// How many packets a Child SA has sent, and how many have come over `path`, told whenever it carries an echo on that
    /// path.
    pub fn note_traffic(
        &mut self,
        now: Instant,
        child: ChildSaId,
        path: &Path,
        packets: u64,
        packets_in: u64,
    ) {
        self.with_owner(now, child, |sa, ctx| sa.note_traffic(ctx, path, packets, packets_in));
    }

    /// The octets that have gone over each path for Child SAs that [`Output::CountPaths`] named, `child` among them.
    pub fn note_octets(&mut self, now: Instant, child: ChildSaId, octets: &[(Path, u64)]) {
        self.with_owner(now, child, |sa, ctx| sa.note_octets(ctx, octets));
    }

    /// The newest authentic ESP packet came from an address or port of the peer that is not in the SA's set.
    pub fn handle_new_source(&mut self, now: Instant, child: ChildSaId, path: Path) {
        self.with_owner(now, child, |sa, ctx| sa.new_source(ctx, path));
    }
}
