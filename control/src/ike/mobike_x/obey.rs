//! The peer's actions: judged one after the other (`decide`), then applied as a whole.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use mobikex_common::addr::Path;
use mobikex_common::sa::ChildSaId;
use mobikex_common::wire::ike::{NotifyType, Payload};
use mobikex_common::wire::mobike_x::{self, Parameter};
use tracing::info;

use super::decide::{Object, Situation, Verdict, What, decide, ike_address};
use super::selector::{self, Action, Kind, Place, answer};
use crate::config::MobikeX;
use crate::ike::addresses::{Alternate, Half, Halves};
use crate::ike::child::{ChildSa, ChildState};
use crate::ike::ctx::{Ctx, Effect};
use crate::ike::mobility::RETIRED;
use crate::ike::output::Event;
use crate::ike::path_table::path;
use crate::ike::rules::notify;
use crate::ike::sa::{IkeSa, NAT_T_PORT};
use crate::ike::tasks::Task;

/// Requests to check something that are answered in a second.
const CHECKS_PER_SECOND: u32 = 20;
/// How long the peer has to delete an SA whose last address it has removed.
const CLOSING: Duration = Duration::from_secs(5);

impl IkeSa {
    /// Judges and applies the actions of a request; returns what the answer says about them.
    pub(in crate::ike) fn handle_actions(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        (local, source): (SocketAddr, SocketAddr),
    ) -> Vec<Payload> {
        if notify(payloads, NotifyType::ECHO_SUPPORTED).is_some() && !self.mobility.echo {
            self.mobility.echo = true;
            self.mobility.table.wake(ctx.now);
        }
        if let Some(off) = notify(payloads, NotifyType::MOBIKE_UNSUPPORTED_VERSION) {
            if mobike_x::parse(&off.data)
                .is_ok_and(|p| p == [Parameter::Version(vec![mobike_x::VERSION_NONE])])
            {
                self.freeze(ctx);
                if self.conn.mobike_x == MobikeX::Require {
                    self.tasks.push(Task::DeleteIke("MOBIKE-X is required here".into()));
                }
            }
            return Vec::new();
        }
        if notify(payloads, NotifyType::NO_ADDITIONAL_ADDRESSES).is_some() {
            self.mobility.alternates = Half::default();
        }
        let parsed = selector::parse(payloads);
        for refusal in &parsed.refusals {
            info!(target: "IKE", "{} the peer's actions on addresses are not understood: {}", self.name(), refusal.kind);
        }
        let mut answers = parsed.refusals;
        if parsed.actions.is_empty() {
            return answers.into_iter().map(Payload::Notify).collect();
        }
        let mut objects = self.objects(ctx);
        let port = self.default_port();
        for action in &parsed.actions {
            let verdict = if action.check && !self.may_check(ctx) {
                Verdict::Refused(NotifyType::TEMPORARY_FAILURE)
            } else {
                let acceptable = |addr| self.acceptable(ctx, addr);
                let silent = |addr| self.is_silent(addr);
                let situation = Situation {
                    now: ctx.now,
                    sa: self.id,
                    source,
                    port,
                    acceptable: &acceptable,
                    silent: &silent,
                };
                decide(&mut objects, action, &situation)
            };
            self.tell(ctx, action, source, verdict);
            match verdict {
                Verdict::Done => {}
                Verdict::Closing => answers.push(answer(NotifyType::CLOSING_SA, action.id)),
                Verdict::Refused(kind) => answers.push(answer(kind, action.id)),
            }
        }
        self.commit(ctx, objects, (local, source));
        if (local, source) == self.pair() {
            let from_there = parsed.actions.iter().any(Action::moves_to_source);
            self.detect_nat_of_request(ctx, payloads, from_there);
        }
        answers.into_iter().map(Payload::Notify).collect()
    }

    /// The port of an address of the peer that comes without one.
    pub(in crate::ike) fn default_port(&self) -> u16 {
        // A NAT's port says nothing about another address. One that is like ours is the peer's own.
        let translated = self.peer_behind_nat && self.remote.port() != self.local.port();
        if translated { NAT_T_PORT } else { self.remote.port() }
    }

    fn may_check(&mut self, ctx: &Ctx<'_>) -> bool {
        let (since, used) = &mut self.mobility.check_budget;
        if since.is_none_or(|at| ctx.now.saturating_duration_since(at) >= Duration::from_secs(1)) {
            (*since, *used) = (Some(ctx.now), 0);
        }
        *used += 1;
        *used <= CHECKS_PER_SECOND
    }

    fn tell(&self, ctx: &mut Ctx<'_>, action: &Action, source: SocketAddr, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::Done => "done".to_string(),
            Verdict::Closing => NotifyType::CLOSING_SA.to_string(),
            Verdict::Refused(kind) => kind.to_string(),
        };
        let action = show(action, source);
        ctx.event(Event::AddressAction { ike: self.name(), by_peer: true, action, verdict, by_hand: false });
    }

    /// Copies of the SAs that the peer may speak about: this IKE SA and its Child SAs, then those of its other IKE SAs.
    fn objects(&self, ctx: &Ctx<'_>) -> Vec<Object> {
        let mut objects = self.own_objects();
        if let Some(peer) = self.peer() {
            for other in ctx.others.of_peer(peer.id()).filter(|o| self.same_peer(o)) {
                objects.extend(other.own_objects());
            }
        }
        objects
    }

    /// The same identity, proven the same way, under the same connection (M8 of the threats).
    fn same_peer(&self, other: &Self) -> bool {
        self.peer().is_some()
            && self.peer() == other.peer()
            && self.conn.name == other.conn.name
            && other.rekeyed_by.is_none()
            && other.mobility.version == self.mobility.version
    }

    fn own_objects(&self) -> Vec<Object> {
        let what = What::Ike { spis: (self.spi_i, self.spi_r) };
        let mut objects = vec![Object::new(self.id, what, Halves::single(self.local, self.remote))];
        for child in self.children.iter().filter(|c| !matches!(c.state, ChildState::Lingering(_))) {
            let what = What::Child {
                id: child.id,
                spis: (child.spi_in, child.spi_out),
                mode: child.mode,
                encap: self.encap,
                ts_local: child.ts_local.clone(),
                ts_remote: child.ts_remote.clone(),
                permitted: child.permitted_remote(self.assigned()),
            };
            objects.push(Object::new(self.id, what, child.halves.clone()));
        }
        objects
    }

    /// Puts the changed copies in the place of what they were made of, ours here and those of other IKE SAs there.
    fn commit(&mut self, ctx: &mut Ctx<'_>, objects: Vec<Object>, (local, source): (SocketAddr, SocketAddr)) {
        let (own, others): (Vec<_>, Vec<_>) = objects
            .into_iter()
            .filter(|o| o.changed || o.closing || o.alternates.is_some())
            .partition(|o| o.sa == self.id);
        self.take_over(ctx, own, (local, source));
        let mut by_sa: BTreeMap<u32, Vec<Object>> = BTreeMap::new();
        others.into_iter().for_each(|o| by_sa.entry(o.sa).or_default().push(o));
        for (id, objects) in by_sa {
            // Out of the map while it changes, as for any other input.
            let Some(mut sa) = ctx.others.take(id) else { continue };
            sa.take_over(ctx, objects, (local, source));
            ctx.others.put(sa);
            ctx.effects.push(Effect::RunTasks(id));
        }
    }

    fn take_over(
        &mut self,
        ctx: &mut Ctx<'_>,
        objects: Vec<Object>,
        (local, source): (SocketAddr, SocketAddr),
    ) {
        if objects.is_empty() {
            return;
        }
        let moved = objects.iter().any(|o| o.changed);
        let mut left = false;
        let places: HashMap<ChildSaId, usize> =
            self.children.iter().enumerate().map(|(place, child)| (child.id, place)).collect();
        for object in objects {
            if let Some(list) = object.alternates {
                self.note_alternates(ctx, &object.what, list);
            }
            match object.what {
                _ if !object.changed && !object.closing => {}
                What::Ike { .. } => {
                    // Before its time has come it is not used.
                    let Some(remote) = ike_address(&object.halves.remote, ctx.now) else { continue };
                    self.mobility.previous = Some((self.local, self.remote));
                    // Where the request itself came from, its answer goes back the same way.
                    let local = if remote == source { local } else { self.local };
                    if local.is_ipv4() == remote.is_ipv4() {
                        self.retarget(ctx, local, remote);
                    }
                }
                What::Child { id, ts_remote, .. } => {
                    if object.closing {
                        let task = Task::DeleteChild(id);
                        if !self.tasks.any_later(|waiting| *waiting == task) {
                            self.tasks.push_at(ctx.now + CLOSING, task);
                        }
                        continue;
                    }
                    let Some(child) = places.get(&id).map(|place| &mut self.children[*place]) else {
                        continue;
                    };
                    let next = &object.halves.remote;
                    let gone = child.halves.pairs().filter(|(_, r)| !next.has_exactly(r.addr));
                    let retired: Vec<Path> = gone.map(|(l, r)| path(l.addr, r.addr)).collect();
                    left |= !retired.is_empty();
                    child.selectors_changed |= child.ts_remote != ts_remote;
                    child.ts_remote = ts_remote;
                    child.halves.remote = object.halves.remote;
                    child.leaving = object.replaced;
                    child.leaving.retain(|old| !child.halves.remote.has(old.addr.ip()));
                    child.retire_paths(retired, ctx.now + RETIRED);
                }
            }
        }
        if left {
            // Which of these pairs went with the addresses that the peer has left is not known.
            self.forget_mappings(ctx, |_| true);
            self.mobility.followed = None;
        }
        if moved {
            self.want_checks(ctx.now);
            self.clear_leaving(ctx.now);
            self.unsettle(ctx);
            self.refresh(ctx);
            // What could not be told for want of a way may be told now.
            self.mobility.unheard.clear();
            self.tasks.push(Task::Reconcile);
        }
    }

    /// Alternative addresses: those of the IKE SA are for us, those of a Child SA for the layers above (MOBIKE-X 5.5).
    fn note_alternates(&mut self, ctx: &mut Ctx<'_>, what: &What, list: Half) {
        match what {
            What::Ike { .. } => self.mobility.alternates = list,
            What::Child { id, .. } => {
                let Some(child) = self.children.iter().find(|c| c.id == *id).map(ChildSa::name) else {
                    return;
                };
                let addresses = list.iter().map(|o| Alternate::new(o, ctx.now)).collect();
                ctx.event(Event::Alternates { ike: self.name(), child, addresses });
            }
        }
    }
}

fn show(action: &Action, source: SocketAddr) -> String {
    let check = if action.check { "check: " } else { "" };
    let inner = |place: &Place| if *place == Place::Inner { " inner" } else { "" };
    let implicit = || format!("{source} (implicit)");
    match &action.kind {
        Kind::Add { place, addr } => {
            format!("{check}add{} {}", inner(place), addr.map_or_else(implicit, |n| n.addr.to_string()))
        }
        Kind::Remove { place, addr } => {
            format!("{check}remove{} {}", inner(place), addr.map_or_else(implicit, |a| a.to_string()))
        }
        Kind::Update { place, old, new } => {
            let old = old.map_or_else(|| "all".to_string(), |a| a.to_string());
            format!(
                "{check}update{} {old} to {}",
                inner(place),
                new.map_or_else(implicit, |n| n.addr.to_string())
            )
        }
        Kind::Additional(named) => format!("{check}additional {}", named.addr),
    }
}
