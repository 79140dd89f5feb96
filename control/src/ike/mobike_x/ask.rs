//! Our own actions: what of our addresses the peer is to know, and what follows from its answers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use mobikex_common::addr::Path;
use mobikex_common::sa::ChildSaId;
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ike::{ExchangeType, Notify, NotifyType, Payload};
use mobikex_common::wire::mobike_x::{self, IKE_SA_ALONE, IpParameter, Mip, Parameter, SpiParameter};
use tracing::info;

use super::decide;
use crate::ike::addresses::Replaces;
use crate::ike::child::ChildSa;
use crate::ike::ctx::{Ctx, Effect};
use crate::ike::error::IkeError;
use crate::ike::mobike::NAT_RETRIES;
use crate::ike::mobility::{CHECK_TRIES, TELL_AGAIN, is_private};
use crate::ike::output::Event;
use crate::ike::path_table::{Health, PathState, path};
use crate::ike::rules::notify;
use crate::ike::sa::{Gone, IkeSa};
use crate::ike::tasks::Task;
use crate::ike::versions::Version;
use crate::ike::window::{Exchange, Via};

use super::{Actions, Request, Scope, Wish};

/// IDs of our SELECTORs count from here, so that they are none of an action's.
const SELECTOR_IDS: u16 = 0x8000;
/// A move to where the request comes from.
const IMPLICIT: Wish = Wish::Update { old: None, new: None };

impl IkeSa {
    /// Brings what the peer knows of our addresses in line with what we have: one message at a time until it is. An
    /// address is removed only while another one stays; otherwise one takes its place.
    pub(in crate::ike) fn reconcile_mobike_x(&mut self, ctx: &mut Ctx<'_>) -> Result<(), IkeError> {
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

    pub(super) fn pair(&self) -> (SocketAddr, SocketAddr) {
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
    pub(in crate::ike) fn send_actions(
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
    pub(in crate::ike) fn handle_actions_response(
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
