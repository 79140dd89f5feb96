//! Child SAs: what was offered, what was agreed, and their life until the last late packet.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mobikex_common::addr::{AddressSet, Path};
use mobikex_common::alg::{EspSuite, KeyExchange};
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::sa::{ChildSaId, ChildSaParams, Mode, PolicyId};
use mobikex_common::spi::Spi;
use mobikex_common::ts::TrafficSelector;
use std::collections::BTreeMap;
use tracing::info;

use super::addresses::{Halves, Outer, OuterView};
use super::ctx::{Ctx, Effect};
use super::inactivity::Idle;
use super::keys::ChildKeymat;
use super::output::{ChildSaView, Event, Output};
use super::resources::Resource;
use super::roles::ExchangeInitiator;
use super::sa::IkeSa;
use super::senders::sharer;
use super::sets::Check;
use super::tasks::Task;
use super::updown::{self, Raised};
use super::window::Exchange;
use crate::config::{Child, StartAction, TsPattern};

/// After DELETE, packets that were already on their way are still accepted for this long.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// Of two equal Child SAs that were made within this time, one by each side, one is too many.
const TWINS: Duration = Duration::from_secs(10);

/// Our side of a Child SA negotiation, kept until the answer.
pub(super) struct ChildOffer {
    pub(super) config: Arc<Child>,
    pub(super) spi_in: Spi,
    pub(super) ni: Vec<u8>,
    pub(super) ke: Option<(KeyExchange, PrivateKey)>,
    pub(super) ts_local: Vec<TrafficSelector>,
    pub(super) ts_remote: Vec<TrafficSelector>,
    pub(super) rekeys: Option<ChildSaId>,
    /// We say that there may be more of the kind (RFC 9611).
    pub(super) shares: bool,
    /// The policy that has the first one, and the worker that this further one is for.
    pub(super) own: Option<(PolicyId, u32)>,
    /// What the peer has deleted meanwhile without our having it.
    pub(super) deleted: Vec<Spi>,
}

/// What both sides agreed on, before it is installed.
pub(super) struct Agreed {
    pub(super) config: Arc<Child>,
    pub(super) mode: Mode,
    pub(super) suite: EspSuite,
    pub(super) spi_in: Spi,
    pub(super) spi_out: Spi,
    pub(super) ts_local: Vec<TrafficSelector>,
    pub(super) ts_remote: Vec<TrafficSelector>,
    /// The policy that has the first one, if it is a further one.
    pub(super) joins: Option<PolicyId>,
    pub(super) resource: Resource,
    /// The peer takes TFC padding.
    pub(super) takes_tfc: bool,
}

/// Where a Child SA is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ChildState {
    Installed,
    /// Our request to rekey it is under way or waits.
    Rekeying,
    /// Replaced; DELETE is to come from either side.
    Rekeyed,
    /// Our DELETE is under way or waits.
    Deleting,
    /// Deleted; only late packets are received until the instant.
    Lingering(Instant),
}

/// What an SA carries: a policy, or what one worker has of it.
pub(super) type Place = (PolicyId, Option<u32>);

/// The peer's rekeying of the same SA (RFC 7296 2.8.1).
pub(super) struct PeerChildRekey {
    pub(super) new: ChildSaId,
    pub(super) lowest_nonce: Vec<u8>,
}

pub(super) struct ChildSa {
    pub(super) id: ChildSaId,
    pub(super) policy: PolicyId,
    pub(super) config: Arc<Child>,
    pub(super) mode: Mode,
    pub(super) suite: EspSuite,
    pub(super) spi_in: Spi,
    pub(super) spi_out: Spi,
    pub(super) ts_local: Vec<TrafficSelector>,
    pub(super) ts_remote: Vec<TrafficSelector>,
    /// What the packet path has.
    pub(super) addresses: AddressSet,
    /// What both sides have told each other.
    pub(super) halves: Halves,
    /// Addresses that the peer has replaced by one that is not checked yet.
    pub(super) leaving: Vec<Outer>,
    /// Paths from which packets may still arrive, and until when.
    pub(super) retired: Vec<(Path, Instant)>,
    /// When one of the addresses begins or ends.
    pub(super) timed_at: Option<Instant>,
    /// An action has changed the inner addresses.
    pub(super) selectors_changed: bool,
    pub(super) state: ChildState,
    /// Whether we send on it (or wait until the peer does).
    pub(super) outbound: bool,
    /// When it was sent on last, if it is not any more.
    pub(super) sent_until: Option<Instant>,
    /// Who has asked for it, unless it was made in the place of another one.
    pub(super) fresh: Option<ExchangeInitiator>,
    pub(super) resource: Resource,
    pub(super) peer_rekey: Option<PeerChildRekey>,
    /// Lost against this SA of the peer's in a simultaneous rekeying. It goes on sending until the peer is known
    /// to have the other one, that is until the peer deletes the SA that both have replaced.
    pub(super) redundant_to: Option<ChildSaId>,
    pub(super) idle: Idle,
    /// The script that is to be told of the end.
    pub(super) raised: Option<Arc<Raised>>,
    /// The end of the SA is not that of its policy: it is a trap, or has gone already.
    policy_stays: bool,
    installed_at: Instant,
    pub(super) rekey_at: Option<Instant>,
    expire_at: Option<Instant>,
}

impl ChildSa {
    /// `net{3}`
    pub(super) fn name(&self) -> String {
        format!("{}{{{}}}", self.config.name, self.id.0)
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        match self.state {
            ChildState::Lingering(until) => Some(until),
            ChildState::Installed => {
                [self.rekey_at, self.expire_at, self.idle.due()].into_iter().flatten().min()
            }
            _ => self.expire_at,
        }
    }

    /// Nothing goes out on it any more, since another policy has its traffic.
    pub(super) fn hand_over(&mut self, ctx: &mut Ctx<'_>) {
        self.outbound = false;
        if self.resource.worker.is_some() {
            ctx.out.push_back(Output::DeactivateOutbound(self.id));
        }
        self.end_policy(ctx);
        self.policy_stays = true;
    }

    /// The policy ends with this SA, unless it is a trap, or has ended before.
    fn end_policy(&self, ctx: &mut Ctx<'_>) {
        if !self.policy_stays && !ctx.traps.contains(self.policy) {
            ctx.out.push_back(Output::RemovePolicy(self.policy));
        }
    }

    /// Deleted by either side, or about to be.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, ChildState::Lingering(_) | ChildState::Deleting)
    }

    /// Whether it was replaced by this one of the peer's making, and waits for its DELETE.
    pub(super) fn waits_for(&self, new: ChildSaId) -> bool {
        let by = |theirs: &PeerChildRekey| theirs.new == new;
        self.state == ChildState::Rekeyed && self.peer_rekey.as_ref().is_some_and(by)
    }

    /// Not yet replaced or deleted.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, ChildState::Installed | ChildState::Rekeying)
    }

    /// Removes the SA from the packet path and forgets its policy, unless a trap or a successor keeps it.
    pub(super) fn remove(self, ctx: &mut Ctx<'_>, reason: &str) {
        ctx.out.push_back(Output::RemoveChild(self.id));
        ctx.spis.release(self.spi_in);
        if self.is_live() || self.state == ChildState::Deleting {
            self.end_policy(ctx);
            ctx.event(Event::ChildDown { child: self.name(), reason: reason.to_string() });
        }
        updown::lower(ctx, self.raised);
    }

    /// What our policy lets the peer's side of this SA be. A peer to which we have assigned virtual addresses has no others.
    pub(super) fn permitted_remote(&self, assigned: &[IpAddr]) -> Vec<TrafficSelector> {
        let any = |ts: &TrafficSelector| {
            let all = if ts.is_ipv4() {
                [TrafficSelector::ANY_V4, TrafficSelector::ANY_V6]
            } else {
                [TrafficSelector::ANY_V6, TrafficSelector::ANY_V4]
            };
            all.map(|any| TrafficSelector { start: any.start, end: any.end, ..*ts })
        };
        self.config
            .remote_ts
            .iter()
            .flat_map(|pattern| match pattern {
                TsPattern::Fixed(ts) => vec![*ts],
                TsPattern::Dynamic(ts) if assigned.is_empty() || self.mode == Mode::Transport => {
                    any(ts).to_vec()
                }
                TsPattern::Dynamic(ts) => {
                    assigned.iter().map(|a| TrafficSelector { start: *a, end: *a, ..*ts }).collect()
                }
            })
            .collect()
    }

    /// The state's name in the status view.
    pub(super) fn state_name(&self) -> &'static str {
        match self.state {
            ChildState::Installed => "INSTALLED",
            ChildState::Rekeying => "REKEYING",
            ChildState::Rekeyed => "REKEYED",
            ChildState::Deleting => "DELETING",
            ChildState::Lingering(_) => "DELETED",
        }
    }

    pub(super) fn view(&self, now: Instant, checks: &BTreeMap<SocketAddr, Check>) -> ChildSaView {
        let view = |outer: &Outer, check: Option<Check>| OuterView {
            addr: outer.addr,
            preference: outer.preference,
            state: match check {
                _ if outer.unreachable => "unreachable",
                _ if outer.starts.is_some_and(|at| at > now) => "not yet",
                _ if outer.ends.is_some_and(|at| at <= now) => "over",
                Some(Check::Open) => "being checked",
                _ => "in use",
            },
        };
        ChildSaView {
            id: self.id,
            name: self.config.name.clone(),
            state: self.state_name(),
            mode: self.mode,
            spi_in: self.spi_in,
            spi_out: self.spi_out,
            suite: self.suite.to_string(),
            resource: (&self.resource).into(),
            ts_local: self.ts_local.clone(),
            ts_remote: self.ts_remote.clone(),
            addresses: self.addresses.clone(),
            local_addresses: self.halves.local.iter().map(|o| view(o, None)).collect(),
            remote_addresses: self
                .halves
                .remote
                .iter()
                .map(|o| view(o, checks.get(&o.addr).copied()))
                .collect(),
            installed: now.saturating_duration_since(self.installed_at).as_secs(),
            rekey_in: self.rekey_at.map(|at| at.saturating_duration_since(now).as_secs()),
        }
    }
}

/// Turns configured selectors into addresses; `dynamic` is the outer address of its side.
pub(super) fn resolve(patterns: &[TsPattern], own: SocketAddr) -> Vec<TrafficSelector> {
    patterns.iter().map(|p| p.resolve(own.ip())).collect()
}

impl IkeSa {
    /// Whether a configured child has a Child SA here.
    pub(super) fn has_child(&self, name: &str) -> bool {
        self.children.iter().any(|c| c.is_live() && c.config.name == name)
    }

    pub(super) fn child(&mut self, id: ChildSaId) -> Option<&mut ChildSa> {
        self.children.iter_mut().find(|c| c.id == id)
    }

    /// The Child SA on which the peer receives with this SPI.
    pub(super) fn child_by_peer_spi(&mut self, spi: &[u8]) -> Option<&mut ChildSa> {
        self.children
            .iter_mut()
            .filter(|c| !matches!(c.state, ChildState::Lingering(_)))
            .find(|c| c.spi_out.to_be_bytes() == spi)
    }

    /// Puts an agreed Child SA into the packet path. `started_by` is who sent the request: it
    /// sends on it at once, its responder once the peer is known to receive on it (RFC 7296 2.8).
    pub(super) fn install_child(
        &mut self,
        ctx: &mut Ctx<'_>,
        agreed: Agreed,
        keymat: ChildKeymat,
        started_by: ExchangeInitiator,
        replaces: Option<ChildSaId>,
    ) -> ChildSaId {
        let id = ctx.ids.child();
        let config = agreed.config.clone();
        let trap = self.free_trap(ctx, &config.name);
        let old = replaces.and_then(|old| self.children.iter().find(|c| c.id == old));
        let twin = self.children.iter().find(|c| c.is_live() && c.is_for(&agreed)).filter(|_| old.is_none());
        let alone = old.or(twin).is_none() && agreed.joins.is_none();
        let elder = if alone { self.elder(ctx, &agreed) } else { None };
        let like = old.or(twin).or(elder).map(|c| c.policy).or(agreed.joins);
        let raised = old.or(elder).and_then(|c| c.raised.clone());
        let policy = like.or(trap).unwrap_or_else(|| ctx.ids.policy());
        let mut resource = old.map_or(agreed.resource, |old| old.resource.clone());
        // A rekeyed SA inherits the addresses of the one that it replaces.
        let (halves, leaving, retired) = match old {
            Some(old) => (old.halves.clone(), old.leaving.clone(), old.retired.clone()),
            None => (self.initial_halves(ctx), Vec::new(), Vec::new()),
        };
        let mut addresses = AddressSet::single(self.current(), self.encap);
        // While there is no pair of addresses, what was there before stays.
        addresses.paths = old.map_or(addresses.paths, |old| old.addresses.paths.clone());
        let we_started = started_by == ExchangeInitiator::Us;
        let outbound = we_started || like.is_none();
        resource.unheard = !outbound;
        let (keys_out, keys_in) = if we_started {
            (keymat.initiator, keymat.responder)
        } else {
            (keymat.responder, keymat.initiator)
        };
        let mut child = ChildSa {
            id,
            policy,
            mode: agreed.mode,
            suite: agreed.suite,
            spi_in: agreed.spi_in,
            spi_out: agreed.spi_out,
            ts_local: agreed.ts_local,
            ts_remote: agreed.ts_remote,
            addresses,
            halves,
            leaving,
            retired,
            timed_at: None,
            selectors_changed: false,
            state: ChildState::Installed,
            outbound,
            sent_until: None,
            fresh: old.is_none().then_some(started_by),
            resource,
            peer_rekey: None,
            redundant_to: None,
            idle: Idle::new(ctx.now, config.inactivity),
            raised: None,
            policy_stays: trap == Some(policy),
            installed_at: ctx.now,
            rekey_at: ctx.soon_before(config.rekey_time, config.rand_time),
            expire_at: (!config.life_time.is_zero()).then(|| ctx.now + config.life_time),
            config,
        };
        let set = self.address_set(ctx, &child);
        if !set.paths.is_empty() {
            child.addresses = set;
        }
        if replaces.is_some() {
            // The addresses may have changed while the exchange was under way.
            child.follow_selectors();
        }
        let params = ChildSaParams {
            id,
            policy,
            worker: child.resource.worker,
            name: format!("{}/{}", self.conn.name, child.name()),
            mode: child.mode,
            spi_in: child.spi_in,
            spi_out: child.spi_out,
            suite: child.suite,
            keys_in,
            keys_out,
            ts_local: child.ts_local.clone(),
            ts_remote: child.ts_remote.clone(),
            addresses: child.addresses.clone(),
            replay_window: child.config.replay_window,
            limits: child.config.limits,
            copy_df: child.config.copy_df,
            copy_dscp: child.config.copy_dscp,
            tfc_padding: if agreed.takes_tfc { child.config.tfc_padding } else { 0 },
        };
        let telling = matches!(self.pending.as_ref().map(|p| &p.exchange), Some(Exchange::Actions(_)));
        if old.is_none() && (self.mobility.announced.len() > 1 || telling) {
            // A new set starts with one pair: the peer is to hear of our other addresses for this one too.
            self.mobility.tell_all = true;
            self.tasks.push(Task::Reconcile);
        }
        info!(target: "CHD", "{} selected proposal {}", self.name(), child.suite);
        if params.tfc_padding < child.config.tfc_padding {
            info!(target: "CHD", "{} the peer takes no TFC padding, sending none", child.name());
        }
        if outbound {
            self.note_sender(ctx, child.place(), None);
        }
        let old = replaces.and_then(|old| self.children.iter().find(|c| c.id == old));
        ctx.out.push_back(Output::InstallChild { params: Box::new(params), outbound });
        if self.mobility.probes() && !self.mobility.table.is_busy() {
            // Traffic may begin on this one.
            ctx.out.push_back(Output::WatchTraffic(vec![id]));
        }
        match old {
            Some(old) => ctx.event(Event::ChildRekeyed { child: old.name(), by: child.name() }),
            None => ctx.event(Event::ChildUp {
                ike: self.name(),
                child: child.name(),
                spi_in: child.spi_in,
                spi_out: child.spi_out,
                ts_local: child.ts_local.clone(),
                ts_remote: child.ts_remote.clone(),
                worker: child.resource.worker,
            }),
        }
        child.raised = raised.or_else(|| self.raised_with(&child)).or_else(|| self.raise(ctx, &child));
        let common = child.resource.shares && child.resource.worker.is_none();
        self.children.push(child);
        if common {
            self.watch_workers(ctx, policy);
        }
        id
    }

    /// Both sides have asked for the same Child SA at once, and have it twice. The responder of the IKE SA, of which there is
    /// one, deletes its own; no standard says who does.
    pub(super) fn settle_twins(&mut self, ctx: &Ctx<'_>, new: ChildSaId) {
        let new = self.children.iter().find(|c| c.id == new && c.resource.worker.is_none());
        let Some(new) = new.filter(|_| !self.initiator.is_us()) else { return };
        let lately = |c: &ChildSa| ctx.now.saturating_duration_since(c.installed_at) < TWINS;
        let mut twins = self.children.iter().filter(|c| c.is_live() && c.place() == new.place() && lately(c));
        let of = |who: ExchangeInitiator| move |c: &&ChildSa| c.fresh == Some(who);
        let theirs = twins.clone().any(|c| of(ExchangeInitiator::Peer)(&c));
        if let (true, Some(ours)) = (theirs, twins.find(of(ExchangeInitiator::Us)).map(|c| c.id)) {
            info!(target: "CHD", "{} both have asked for the same: the peer's stays", self.name());
            self.tasks.push(Task::DeleteChild(ours));
        }
    }

    /// The peer has deleted, or confirmed our DELETE of, a Child SA: sending ends, receiving lingers.
    pub(super) fn retire(&mut self, ctx: &mut Ctx<'_>, id: ChildSaId, reason: &str) {
        let Some(child) = self.children.iter().find(|c| c.id == id) else { return };
        if matches!(child.state, ChildState::Lingering(_)) {
            return;
        }
        let place = child.place();
        let mut others = self.children.iter().filter(|c| c.policy == place.0 && c.id != id && !c.has_ended());
        let last = others.next().is_none() && sharer(ctx, place.0).is_none();
        let winner = child.peer_rekey.as_ref().map(|theirs| theirs.new);
        let successor = self.heir(ctx, place, id, winner);
        let stays = self.children.iter().any(|c| c.id != id && c.place() == place && !c.has_ended());
        if let Some(new) = successor {
            self.activate(ctx, new);
            self.delete_redundant([Some(id), winner]);
        }
        let Some(child) = self.child(id) else { return };
        child.state = ChildState::Lingering(ctx.now + LINGER);
        let raised = child.raised.take();
        ctx.out.push_back(Output::DeactivateOutbound(id));
        if !stays {
            if last {
                child.end_policy(ctx);
            }
            ctx.event(Event::ChildDown { child: child.name(), reason: reason.to_string() });
        }
        updown::lower(ctx, raised);
    }

    /// Deletes what simultaneous rekeyings that ended with these SAs have made superfluous.
    pub(super) fn delete_redundant(&mut self, to: [Option<ChildSaId>; 2]) {
        let redundant = |c: &&mut ChildSa| c.redundant_to.is_some() && to.contains(&c.redundant_to);
        for child in self.children.iter_mut().filter(redundant) {
            child.redundant_to = None;
            child.state = ChildState::Deleting;
            child.outbound = false;
            self.tasks.push(Task::DeleteChild(child.id));
        }
    }

    /// Lifetimes and lingering SAs.
    pub(super) fn child_timeouts(&mut self, ctx: &mut Ctx<'_>) {
        // What a request under way refers to is needed for its answer.
        let awaited = match self.pending.as_ref().map(|p| &p.exchange) {
            Some(Exchange::CreateChild(offer)) => offer.rekeys,
            _ => None,
        };
        let mut index = 0;
        while index < self.children.len() {
            let child = &mut self.children[index];
            if let ChildState::Lingering(until) = child.state {
                if until <= ctx.now && Some(child.id) == awaited {
                    child.state = ChildState::Lingering(ctx.now + LINGER);
                } else if until <= ctx.now {
                    let gone = self.children.remove(index);
                    let (policy, worker) = gone.place();
                    gone.remove(ctx, "");
                    if worker.is_some() {
                        // From now on its worker may have another one, if it has any use for it.
                        self.watch_workers(ctx, policy);
                    }
                    continue;
                }
            } else if child.expire_at.is_some_and(|at| at <= ctx.now) {
                child.expire_at = None;
                child.state = ChildState::Deleting;
                let task = Task::DeleteChild(child.id);
                info!(target: "CHD", "{} its lifetime is over", child.name());
                self.tasks.push(task);
            } else if child.rekey_at.is_some_and(|at| at <= ctx.now) && child.state == ChildState::Installed {
                child.rekey_at = None;
                child.state = ChildState::Rekeying;
                self.tasks.push(Task::RekeyChild(self.children[index].id));
            }
            index += 1;
        }
    }

    /// Arranges what is to become of Child SAs that are about to go without our wish (close_action, dpd_action).
    pub(super) fn return_later(
        &mut self,
        ctx: &mut Ctx<'_>,
        meant: impl Fn(&ChildSa) -> bool,
        action: impl Fn(&Child) -> StartAction,
    ) {
        // The SAs of one policy come back together.
        let mut trapped = Vec::new();
        let (connection, peer) = (&self.conn.name, self.peer().map(|peer| peer.id().clone()));
        for child in self.children.iter_mut().filter(|c| c.is_live() && meant(c)) {
            let (connection, name) = (connection.clone(), child.config.name.clone());
            if trapped.contains(&child.policy) {
                continue;
            }
            // Another IKE SA with the peer may have it already, as after a new proof.
            let has_it = |sa: &IkeSa| sa.conn.name == connection && !sa.is_leaving() && sa.has_child(&name);
            if peer.as_ref().is_some_and(|peer| ctx.others.of_peer(peer).any(has_it)) {
                continue;
            }
            let action = action(&child.config);
            if action.starts() {
                ctx.effects.push(Effect::Restart { connection, child: Some(name) });
            } else if action.traps() && !child.policy_stays {
                // Before the SA goes, so that no packet passes it by in the clear.
                let policy = child.policy;
                trapped.push(policy);
                ctx.out.push_back(Output::InstallTrap {
                    policy,
                    ts_local: child.ts_local.clone(),
                    ts_remote: child.ts_remote.clone(),
                    mode: child.mode,
                });
                ctx.effects.push(Effect::Trap { connection, child: name, policy });
            }
        }
        self.children.iter_mut().filter(|c| trapped.contains(&c.policy)).for_each(|c| c.policy_stays = true);
    }
}
