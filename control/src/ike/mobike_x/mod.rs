//! MOBIKE-X: the actions of version 2, asked for and answered.
//!
//! An incoming message goes from notifies to actions (`selector`), is judged on copies of the SAs (`decide`), and only
//! then applied, so that each SA changes once for all actions of a message.

pub(super) mod decide;
#[cfg(test)]
mod negotiation_tests;
pub(super) mod selector;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mobikex_common::addr::Path;
use mobikex_common::sa::ChildSaId;
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ike::{ExchangeType, Notify, NotifyType, Payload};
use mobikex_common::wire::mobike_x::{self, IKE_SA_ALONE, IpParameter, Mip, Parameter, SpiParameter};
use tracing::info;

use self::decide::{Object, Situation, Verdict, What, decide, ike_address};
use self::selector::{Action, Kind, Place, answer};
use super::addresses::{Alternate, Half, Halves, Replaces};
use super::child::{ChildSa, ChildState};
use super::ctx::{Ctx, Effect};
use super::error::IkeError;
use super::mobike::NAT_RETRIES;
use super::mobility::{CHECK_TRIES, RETIRED, TELL_AGAIN, is_private};
use super::output::Event;
use super::path_table::{Health, PathState, path};
use super::rules::notify;
use super::sa::{Gone, IkeSa, NAT_T_PORT};
use super::tasks::Task;
use super::versions::Version;
use super::window::{Exchange, Via};
use crate::config::MobikeX;

/// IDs of our SELECTORs count from here, so that they are none of an action's.
const SELECTOR_IDS: u16 = 0x8000;
/// Requests to check something that are answered in a second.
const CHECKS_PER_SECOND: u32 = 20;
/// How long the peer has to delete an SA whose last address it has removed.
const CLOSING: Duration = Duration::from_secs(5);

/// What we ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    /// Use this address of ours too; `None` for the one that the request comes from.
    Add(Option<IpAddr>),
    Remove(IpAddr),
    /// Know of it, in the place of all that was told so before.
    Additional(IpAddr),
    /// Replace `old` (`None`: all) by `new` (`None`: the one that the request comes from).
    Update {
        old: Option<IpAddr>,
        new: Option<IpAddr>,
    },
}

/// A move to where the request comes from.
const IMPLICIT: Wish = Wish::Update { old: None, new: None };

/// Which SAs a wish is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    /// This IKE SA and its Child SAs.
    All,
    /// This IKE SA alone.
    IkeAlone,
    /// One Child SA.
    Child(ChildSaId),
}

/// One action that we send, with what is needed to make sense of the answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) wish: Wish,
    pub(super) scope: Scope,
    /// Inner addresses rather than outer ones.
    pub(super) inner: bool,
    pub(super) check: bool,
    /// An operator waits for the verdict.
    pub(super) by_hand: bool,
}

/// The address actions of one message that is under way.
pub(super) struct Actions {
    requests: Vec<Request>,
    /// Where the request was sent from: the implicit address.
    source: SocketAddr,
}

impl IkeSa {
    // ---- our side ------------------------------------------------------------------------------------------------------

    /// Brings what the peer knows of our addresses in line with what we have: one message at a time until it is. An
    /// address is removed only while another one stays; otherwise one takes its place.
    pub(super) fn reconcile_mobike_x(&mut self, ctx: &mut Ctx<'_>) -> Result<(), IkeError> {
        let wanted = self.candidates(ctx);
        let here = self.local.ip();
        let mut requests = Vec::new();
        let request = |wish, scope| Request { wish, scope, inner: false, check: false, by_hand: false };
        let mut moved = std::mem::take(&mut self.mobility.update_wanted);
        if !wanted.contains(&here) && !ctx.network.has(here) {
            let accepted = self.acceptable_to_peer(ctx);
            let Some(next) = self.refuge(ctx, &accepted).or_else(|| self.refuge(ctx, &wanted)) else {
                info!(target: "IKE", "{} there is no address left to reach the peer from", self.name());
                return Ok(());
            };
            info!(target: "IKE", "{} {here} is gone, moving to {}", self.name(), path(next.0, next.1));
            self.mobility.previous = Some(self.pair());
            self.retarget(ctx, next.0, next.1);
            moved = true;
        }
        let gone = self.gone(ctx);
        for addr in &gone {
            self.mobility.table.fail(|p| p.local.ip() == *addr, ctx.now);
        }
        if std::mem::take(&mut self.mobility.remapped) || gone.iter().any(|a| self.hidden(*a)) {
            // What is in the sets cannot be named, so that the peer forgets all of it and hears of the rest anew.
            requests.push(request(IMPLICIT, Scope::All));
            self.mobility.announced.clear();
            // Without the NAT, or with another one, also what could not be told before.
            self.mobility.unheard.clear();
            self.replace_own(ctx, None, self.local);
            moved = false;
        } else {
            for addr in gone {
                // The one in use takes its place, also where it is in the set already. REMOVE could take the last one
                // away: the peer may have dropped addresses that it could not reach.
                let new = Some(self.local.ip()).filter(|a| !self.hidden(*a));
                requests.push(request(Wish::Update { old: Some(addr), new }, Scope::All));
                // Then the IKE SA moves along, if that is where it was.
                moved &= addr != here;
                self.mobility.announced.remove(&addr);
                self.replace_own(ctx, Some(addr), self.local);
            }
        }
        if requests.is_empty() && std::mem::take(&mut self.mobility.tell_all) {
            let here = self.local.ip();
            // Where they cannot be told at once, this one is told once more like all others.
            let told = self.may_tell_all() || self.hidden(here);
            if self.may_tell_all() {
                requests.push(request(Wish::Update { old: None, new: Some(here) }, Scope::All));
                moved = false;
            } else if self.hidden(here) {
                // The request comes from there. The peer may have dropped it for want of an answer.
                requests.push(request(Wish::Add(None), Scope::All));
            }
            // What an operator has named and we do not have is not ours to tell.
            let foreign = |a: &IpAddr| self.mobility.by_hand.contains(a) && !ctx.network.has(*a);
            let kept = |a: &IpAddr| (*a == here && told) || foreign(a);
            self.mobility.announced = self.mobility.announced.iter().copied().filter(kept).collect();
        } else if !requests.is_empty() {
            self.mobility.tell_pause = TELL_AGAIN;
        }
        if moved {
            requests.insert(0, request(Wish::Update { old: None, new: None }, Scope::IkeAlone));
        }
        let mobility = &self.mobility;
        let left_out = [&mobility.announced, &mobility.refused, &mobility.unheard];
        let new = |a: &IpAddr| !left_out.iter().any(|set| set.contains(a));
        let new: Vec<IpAddr> = wanted.into_iter().filter(new).collect();
        let mut via = None;
        for addr in new {
            if !self.hidden(addr) {
                requests.push(request(Wish::Add(Some(addr)), Scope::All));
            } else if requests.is_empty() {
                // Only the peer can tell what the NAT makes of it, so the request comes from there.
                let Some(remote) = self.target_from(ctx, addr) else { continue };
                let pair = path(SocketAddr::new(addr, self.local.port()), remote);
                via = Some(Via { path: pair, tries: CHECK_TRIES });
                requests.push(request(Wish::Add(None), Scope::All));
                break;
            }
        }
        if requests.is_empty() && self.mobility.greeted {
            return Ok(());
        }
        self.send_actions(ctx, requests, via)
    }

    /// Addresses that the peer may still have and we have no longer. One that was to be told once more is only in the sets.
    fn gone(&self, ctx: &Ctx<'_>) -> BTreeSet<IpAddr> {
        let kept = |a: &IpAddr| ctx.network.has(*a) || self.mobility.by_hand.contains(a);
        let sets = self.children.iter().flat_map(|c| c.halves.local.iter().map(|o| o.addr.ip()));
        self.mobility.announced.iter().copied().chain(sets).filter(|a| !kept(a)).collect()
    }

    /// Whether all addresses can be told at once: not what only a NAT can name, nor against what an operator has asked for.
    fn may_tell_all(&self) -> bool {
        let mobility = &self.mobility;
        let hidden = mobility.announced.iter().any(|a| self.hidden(*a)) || self.hidden(self.local.ip());
        !hidden && mobility.by_hand.is_empty() && mobility.refused.is_empty()
    }

    fn pair(&self) -> (SocketAddr, SocketAddr) {
        (self.local, self.remote)
    }

    /// The peer may not know the address by its own name: there is a NAT before us, or must be. Such an address is
    /// never named; a request that comes from it stands for it (MOBIKE-X profile 6).
    fn hidden(&self, addr: IpAddr) -> bool {
        let translated = self.behind_nat && addr.is_ipv4() == self.local.is_ipv4();
        translated || (is_private(addr) && !is_private(self.remote.ip()))
    }

    /// A pair to go on with when our present address is gone: one that the peer knows and that works, or else any.
    pub(in crate::ike) fn refuge(
        &self,
        ctx: &Ctx<'_>,
        wanted: &[IpAddr],
    ) -> Option<(SocketAddr, SocketAddr)> {
        let used = self.used_addresses(ctx.now);
        let fits = |p: &&PathState| wanted.contains(&p.path.local.ip()) && used.contains(&p.path.remote);
        let known = self.mobility.table.iter().filter(fits).filter(|p| p.health == Health::Up);
        let known = known.map(|p| (p.path.local, p.path.remote)).next();
        known.or_else(|| {
            wanted.iter().find_map(|a| {
                let remote = self.target_from(ctx, *a)?;
                Some((SocketAddr::new(*a, self.local.port()), remote))
            })
        })
    }

    /// An address of the peer that one of ours leads to.
    fn target_from(&self, ctx: &Ctx<'_>, local: IpAddr) -> Option<SocketAddr> {
        let local = ctx.network.find(local)?;
        self.peer_addresses(ctx.now).into_iter().find(|r| local.reaches(r.ip()))
    }

    fn replace_own(&mut self, ctx: &mut Ctx<'_>, old: Option<IpAddr>, new: SocketAddr) {
        let own = self.own(ctx, new);
        self.mobility.announced.insert(new.ip());
        self.change_halves(
            ctx,
            |_| true,
            |halves| {
                halves.local.update(old.map_or(Replaces::All, Replaces::One), own);
            },
        );
    }

    /// Sends actions, each with an ID that is its place in the list.
    pub(super) fn send_actions(
        &mut self,
        ctx: &mut Ctx<'_>,
        requests: Vec<Request>,
        via: Option<Via>,
    ) -> Result<(), IkeError> {
        // Without its selector an action would be about everything.
        let there = |scope| match scope {
            Scope::Child(id) => self.children.iter().any(|c| c.id == id && c.is_live()),
            Scope::All | Scope::IkeAlone => true,
        };
        if self.mobility.version != Version::MobikeX || !requests.iter().all(|r| there(r.scope)) {
            return Err(IkeError::Rule {
                exchange: "INFORMATIONAL",
                story: "the SA of an action on addresses is gone",
            });
        }
        let source = via.as_ref().map_or(self.local, |v| v.path.local);
        let mut payloads = Vec::new();
        if !self.mobility.greeted {
            self.mobility.greeted = true;
            payloads.push(Payload::Notify(Notify::new(NotifyType::ECHO_SUPPORTED, Vec::new())));
        }
        payloads.extend(self.nat_guard(source, via.as_ref().map_or(self.remote, |v| v.path.remote)));
        let mut selected = Scope::All;
        for (request, id) in requests.iter().zip(1u16..) {
            if request.scope != selected {
                if selected != Scope::All {
                    payloads.push(Payload::Notify(Notify::new(NotifyType::END_OF_SELECTOR, Vec::new())));
                }
                selected = request.scope;
                payloads.extend(self.selector_for(selected, SELECTOR_IDS + id));
            }
            payloads.push(Payload::Notify(self.action(ctx, request, id)));
        }
        if selected != Scope::All {
            payloads.push(Payload::Notify(Notify::new(NotifyType::END_OF_SELECTOR, Vec::new())));
        }
        let exchange = Exchange::Actions(Box::new(Actions { requests, source }));
        self.send_request_via(ctx, ExchangeType::INFORMATIONAL, exchange, &payloads, via).map(drop)
    }

    fn selector_for(&self, scope: Scope, id: u16) -> Option<Payload> {
        let parameter = match scope {
            Scope::All => return None,
            Scope::IkeAlone => Parameter::Special(IKE_SA_ALONE),
            Scope::Child(id) => {
                let child = self.children.iter().find(|c| c.id == id)?;
                Parameter::Spi(SpiParameter::Child(child.spi_in))
            }
        };
        let data = mobike_x::emit(&[parameter, Parameter::Id(id)]);
        Some(Payload::Notify(Notify::new(NotifyType::SELECTOR, data)))
    }

    fn action(&self, ctx: &Ctx<'_>, request: &Request, id: u16) -> Notify {
        let place =
            |addr| if request.inner { IpParameter::inner_addr(addr) } else { IpParameter::outer(addr) };
        let ip = |addr: IpAddr| IpParameter { check: request.check, ..place(addr) };
        // The address's preference goes with it.
        let described = |addr: IpAddr| {
            let preference = self.own(ctx, SocketAddr::new(addr, 0)).preference;
            let mip = (!request.inner).then(|| Mip { preference, ..Mip::default() });
            IpParameter { mip, ..ip(addr) }
        };
        let (kind, ips) = match request.wish {
            Wish::Add(addr) => (NotifyType::ADD_SA_ADDRESS, addr.map(described).into_iter().collect()),
            Wish::Remove(addr) => (NotifyType::REMOVE_SA_ADDRESS, vec![ip(addr)]),
            Wish::Additional(addr) => (NotifyType::ADDITIONAL_IP_ADDRESS, vec![described(addr)]),
            Wish::Update { old, new } => {
                let old = old.map(|a| IpParameter { old: true, ..ip(a) });
                let new = new.map(|a| IpParameter { new: true, ..described(a) });
                (NotifyType::UPDATE_SA_ADDRESSES, old.into_iter().chain(new).collect::<Vec<_>>())
            }
        };
        let mut parameters: Vec<Parameter> = ips.into_iter().map(Parameter::Ip).collect();
        parameters.push(Parameter::Id(id));
        Notify::new(kind, mobike_x::emit(&parameters))
    }

    /// The answer, which came over `answered`: what is not refused is done.
    pub(super) fn handle_actions_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        actions: &Actions,
        payloads: &[Payload],
        answered: Path,
        only_there: bool,
    ) -> Result<(), Gone> {
        if let Some(id) = self.rekeyed_by
            && let Some(mut sa) = ctx.others.take(id)
        {
            // By now that one has what the actions were about.
            sa.conclude_actions(ctx, actions, payloads, only_there);
            ctx.others.put(sa);
            ctx.effects.push(Effect::RunTasks(id));
            return Ok(());
        }
        if only_there && actions.source == self.local {
            self.note_nat(ctx, payloads, answered);
        }
        self.conclude_actions(ctx, actions, payloads, only_there);
        Ok(())
    }

    fn conclude_actions(
        &mut self,
        ctx: &mut Ctx<'_>,
        actions: &Actions,
        payloads: &[Payload],
        only_there: bool,
    ) {
        if notify(payloads, NotifyType::UNEXPECTED_NAT_DETECTED).is_some()
            && self.mobility.nat_retries < NAT_RETRIES
        {
            // Nothing was done. In a new request it may pass (RFC 4555 3.9).
            self.mobility.nat_retries += 1;
            let by_hand = actions.requests.iter().filter(|r| r.by_hand);
            self.tasks.extend(by_hand.cloned().map(Task::Address));
            self.tasks.push(Task::Reconcile);
            return;
        }
        self.mobility.nat_retries = 0;
        for (request, id) in actions.requests.iter().zip(1u16..) {
            let answers = payloads.iter().filter_map(|p| match p {
                Payload::Notify(n) => Some(n),
                _ => None,
            });
            let concerns = |n: &&Notify| {
                let named = mobike_x::parse(&n.data).unwrap_or_default();
                let ids: Vec<u16> = named
                    .iter()
                    .filter_map(|p| if let Parameter::Id(id) = p { Some(*id) } else { None })
                    .collect();
                ids.contains(&id) || (ids.is_empty() && n.kind.is_error())
            };
            let verdict = answers
                .filter(concerns)
                .map(|n| n.kind)
                .find(|k| k.is_error() || *k == NotifyType::CLOSING_SA);
            self.conclude_action(ctx, request, actions.source, verdict, only_there);
        }
        // Something may have been left over, or come up meanwhile.
        self.tasks.push(Task::Reconcile);
    }

    fn conclude_action(
        &mut self,
        ctx: &mut Ctx<'_>,
        request: &Request,
        source: SocketAddr,
        verdict: Option<NotifyType>,
        only_there: bool,
    ) {
        let refused = verdict.filter(|k| k.is_error());
        let action = describe(request, source);
        let outcome = verdict.map_or_else(|| "done".to_string(), |k| k.to_string());
        ctx.event(Event::AddressAction {
            ike: self.name(),
            by_peer: false,
            action,
            verdict: outcome,
            by_hand: request.by_hand,
        });
        if request.check {
            return;
        }
        if refused.is_some() && request.by_hand {
            return;
        }
        if refused.is_some() {
            return self.refused(ctx, request, source);
        }
        if let (true, Wish::Add(Some(addr)) | Wish::Update { new: Some(addr), .. }) =
            (request.by_hand, &request.wish)
        {
            self.mobility.by_hand.insert(*addr);
            self.mobility.refused.remove(addr);
        }
        if request.inner {
            return self.change_inner(ctx, request);
        }
        let chosen = |c: &ChildSa| match request.scope {
            Scope::All => true,
            Scope::IkeAlone => false,
            Scope::Child(id) => c.id == id,
        };
        if verdict == Some(NotifyType::CLOSING_SA) {
            let ids: Vec<ChildSaId> =
                self.children.iter().filter(|c| chosen(c) && c.is_live()).map(|c| c.id).collect();
            self.tasks.extend(ids.into_iter().map(Task::DeleteChild));
            return;
        }
        let port = self.local.port();
        match request.wish {
            Wish::Add(addr) => {
                let addr = SocketAddr::new(addr.unwrap_or(source.ip()), port);
                self.mobility.has_told(ctx.now);
                self.mobility.announced.insert(addr.ip());
                if request.wish == Wish::Add(None) && !only_there {
                    // It came from another address in the end, which the peer had before.
                    self.mobility.announced.remove(&addr.ip());
                    self.mobility.unheard.insert(addr.ip());
                    return;
                }
                let own = self.own(ctx, addr);
                self.change_halves(ctx, chosen, |halves| {
                    halves.local.add(own);
                });
            }
            Wish::Additional(_) => {}
            Wish::Remove(addr) => {
                if request.scope == Scope::All {
                    self.mobility.announced.remove(&addr);
                    if ctx.network.has(addr) {
                        self.mobility.refused.insert(addr);
                    }
                }
                self.change_halves(ctx, chosen, |halves| {
                    if halves.local.len() > 1 {
                        halves.local.remove(addr);
                    }
                });
            }
            IMPLICIT if request.scope == Scope::All && !request.by_hand && !only_there => {
                // The peer has taken one of the addresses from which it came: once more, from a single one.
                self.mobility.remapped = true;
            }
            Wish::Update { old, new } => {
                let new = SocketAddr::new(new.unwrap_or(source.ip()), port);
                self.mobility.has_told(ctx.now);
                if !request.by_hand && old.is_none() && request.wish != IMPLICIT {
                    // Only the first of all that the same message names.
                    let own = self.own(ctx, new);
                    return self.change_halves(ctx, chosen, |halves| {
                        halves.local.add(own);
                    });
                }
                if request.scope == Scope::All {
                    match old {
                        Some(old) => {
                            self.mobility.announced.remove(&old);
                            // What has gone may be back by now; an operator wants it not to be used any more.
                            if request.by_hand && ctx.network.has(old) && old != new.ip() {
                                self.mobility.refused.insert(old);
                            }
                        }
                        None => self.mobility.announced.clear(),
                    }
                    self.mobility.announced.insert(new.ip());
                }
                let own = self.own(ctx, new);
                self.change_halves(ctx, chosen, |halves| {
                    halves.local.update(old.map_or(Replaces::All, Replaces::One), own);
                });
                let moves_ike = request.scope != Scope::All || old.is_none_or(|o| o == self.local.ip());
                if moves_ike
                    && !matches!(request.scope, Scope::Child(_))
                    && new.is_ipv4() == self.remote.is_ipv4()
                {
                    let remote = self.remote;
                    self.retarget(ctx, new, remote);
                }
            }
        }
    }

    /// The peer has not carried out an action. By hand nothing was done early; otherwise our own half is ahead of it.
    fn refused(&mut self, ctx: &mut Ctx<'_>, request: &Request, source: SocketAddr) {
        let early = !request.by_hand && !request.check;
        match request.wish {
            // It may not know the old address any more: whatever it has is replaced.
            Wish::Update { old: Some(_), .. } if early => self.mobility.remapped = true,
            Wish::Add(addr) | Wish::Update { new: addr, .. } => {
                let addr = addr.unwrap_or(source.ip());
                self.mobility.refused.insert(addr);
                if early && matches!(request.wish, Wish::Update { .. }) {
                    self.take_back(ctx, addr);
                }
            }
            Wish::Remove(_) | Wish::Additional(_) => {}
        }
    }

    /// The peer refuses an address of ours to which we have moved already: back to the one before it, or on to another
    /// (MOBIKE-X 7.4, 7.5).
    fn take_back(&mut self, ctx: &mut Ctx<'_>, addr: IpAddr) {
        self.mobility.announced.remove(&addr);
        if self.local.ip() != addr {
            return;
        }
        let wanted = self.acceptable_to_peer(ctx);
        let before = self.mobility.previous.filter(|(local, _)| wanted.contains(&local.ip()));
        let Some(next) = before.or_else(|| self.refuge(ctx, &wanted)) else {
            info!(target: "IKE", "{} the peer refuses {addr}, and there is no other address", self.name());
            return;
        };
        info!(target: "IKE", "{} the peer refuses {addr}, moving to {}", self.name(), path(next.0, next.1));
        self.retarget(ctx, next.0, next.1);
        // The peer has nothing to change where it has not followed us away.
        self.mobility.remapped = !self.children.iter().any(|c| c.halves.local.has(next.0.ip()));
    }

    /// Our addresses that the peer has not refused.
    fn acceptable_to_peer(&self, ctx: &Ctx<'_>) -> Vec<IpAddr> {
        self.candidates(ctx).into_iter().filter(|a| !self.mobility.refused.contains(a)).collect()
    }

    /// Our traffic selectors after an action on inner addresses that the peer has carried out.
    fn change_inner(&mut self, ctx: &mut Ctx<'_>, request: &Request) {
        let Scope::Child(id) = request.scope else { return };
        let Some(child) = self.child(id) else { return };
        let single = |ts: &TrafficSelector, addr: IpAddr| ts.start == ts.end && ts.start == addr;
        let host = |shape: &[TrafficSelector], addr| decide::hosts(shape, &[addr]);
        let before = child.ts_local.clone();
        match request.wish {
            Wish::Add(Some(addr)) => child.ts_local.extend(host(&before, addr)),
            Wish::Remove(addr) => child.ts_local.retain(|ts| !single(ts, addr)),
            Wish::Update { old, new: Some(addr) } => {
                let replaced =
                    |ts: &TrafficSelector| ts.start == ts.end && old.is_none_or(|old| ts.start == old);
                let shape: Vec<_> = before.iter().filter(|ts| replaced(ts)).copied().collect();
                child.ts_local.retain(|ts| !replaced(ts));
                child.ts_local.extend(host(&shape, addr));
            }
            _ => {}
        }
        child.selectors_changed = child.ts_local != before;
        self.refresh(ctx);
    }

    // ---- the peer's side -----------------------------------------------------------------------------------------------

    /// Judges and applies the actions of a request; returns what the answer says about them.
    pub(super) fn handle_actions(
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
        let port = if source.ip() == self.remote.ip() { self.remote.port() } else { self.default_port() };
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

    fn default_port(&self) -> u16 {
        // A NAT's port says nothing about another address.
        if self.peer_behind_nat { NAT_T_PORT } else { self.remote.port() }
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
                    child.selectors_changed |= child.ts_remote != ts_remote;
                    child.ts_remote = ts_remote;
                    child.halves.remote = object.halves.remote;
                    child.leaving = object.replaced;
                    child.leaving.retain(|old| !child.halves.remote.has(old.addr.ip()));
                    child.retire_paths(retired, ctx.now + RETIRED);
                }
            }
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

fn describe(request: &Request, source: SocketAddr) -> String {
    let implicit = |addr: &Option<IpAddr>| {
        addr.map_or_else(|| format!("{} (implicit)", source.ip()), |addr| addr.to_string())
    };
    let inner = if request.inner { " inner" } else { "" };
    let check = if request.check { "check: " } else { "" };
    match &request.wish {
        Wish::Add(addr) => format!("{check}add{inner} {}", implicit(addr)),
        Wish::Remove(addr) => format!("{check}remove{inner} {addr}"),
        Wish::Additional(addr) => format!("{check}additional {addr}"),
        Wish::Update { old, new } => {
            let old = old.map_or_else(|| "all".to_string(), |addr| addr.to_string());
            format!("{check}update{inner} {old} to {}", implicit(new))
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
