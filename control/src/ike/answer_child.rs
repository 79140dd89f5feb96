//! Child SAs that the peer asks for, in IKE_AUTH and in CREATE_CHILD_SA (RFC 7296 1.3.1, 1.3.3, 2.9).

use std::net::SocketAddr;
use std::sync::Arc;

use mobikex_common::alg::KeyExchange;
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::sa::{ChildSaId, Mode};
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ike::{Notify, NotifyType, Payload, ProtocolId};
use tracing::info;

use super::child::{Agreed, ChildState, PeerChildRekey};
use super::create_child::{refuse, selectors, spi_of, takes_tfc};
use super::crypt::Protected;
use super::ctx::Ctx;
use super::narrow::{narrow, show};
use super::resources::{self, Further, Resource};
use super::roles::ExchangeInitiator;
use super::rules::{self, notify};
use super::sa::IkeSa;
use super::select;
use super::tasks::Task;
use super::versions::Version;
use super::window::Exchange;
use crate::config::Child;

/// Unknown SAs whose DELETE is remembered while an answer is awaited: more than one is unheard of.
const MAX_DELETED: usize = 4;

impl IkeSa {
    /// Answers a peer's offer in IKE_AUTH: a Child SA, or the reason why there is none (the IKE SA stands
    /// anyway, RFC 7296 1.2).
    pub(super) fn answer_child(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        ni: &[u8],
        nr: &[u8],
    ) -> Vec<Payload> {
        match self.answer_offer(ctx, payloads, ni, nr, None, false) {
            Ok((answer, _)) => answer,
            Err(notify) => vec![Payload::Notify(*notify)],
        }
    }

    /// The responder's half. `replaces` is the SA that the peer rekeys; `fresh` is false in IKE_AUTH.
    fn answer_offer(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        ni: &[u8],
        nr: &[u8],
        replaces: Option<ChildSaId>,
        fresh: bool,
    ) -> Result<(Vec<Payload>, ChildSaId), Box<Notify>> {
        let no = |kind| Box::new(Notify::new(kind, Vec::new()));
        if let Some(kind) = self.lacks_address(payloads).filter(|_| replaces.is_none()) {
            info!(target: "CFG", "{} no child without a virtual IP, sending {kind}", self.name());
            return Err(no(kind));
        }
        let theirs = rules::proposals(payloads).ok_or_else(|| no(NotifyType::INVALID_SYNTAX))?;
        let (tsi, tsr) = selectors(payloads).ok_or_else(|| no(NotifyType::INVALID_SYNTAX))?;
        let transport = notify(payloads, NotifyType::USE_TRANSPORT_MODE).is_some();
        let plain = self.match_child(ctx, tsi, tsr, transport, replaces);
        let further = match replaces {
            Some(_) => None,
            None => self.further(ctx, payloads, (tsi, tsr), plain.as_ref().map(|(config, ..)| &**config))?,
        };
        let joins = further.as_ref().map(|further| further.policy);
        let worker = further.as_ref().map(|further| further.worker);
        let Some((config, ts_local, ts_remote)) = further.map(Further::into_parts).or(plain) else {
            let ours: Vec<_> = self
                .conn
                .children
                .iter()
                .map(|c| {
                    let (local, remote) =
                        (self.own_selectors(c, self.local), self.peer_selectors(c, self.remote));
                    format!("{}: {} === {}", c.name, show(&local), show(&remote))
                })
                .collect();
            info!(target: "IKE", "{} traffic selectors {} === {} unacceptable; configured: {}", self.name(), show(tsr), show(tsi), ours.join("; "));
            return Err(no(NotifyType::TS_UNACCEPTABLE));
        };
        let sent = rules::key_exchange(payloads);
        let prefer = sent.and_then(|(method, _)| KeyExchange::from_transform(method));
        let Some((suite, chosen)) = select::choose_esp(&config.esp_proposals, theirs, fresh, prefer) else {
            let ours: Vec<_> = config.esp_proposals.iter().map(ToString::to_string).collect();
            info!(target: "CFG", "received proposals: {}", select::describe(theirs));
            info!(target: "CFG", "configured proposals: {}", ours.join(", "));
            let mismatch = select::mismatch(&select::offer_esp(&config.esp_proposals, &[], fresh), theirs);
            info!(target: "IKE", "{} no ESP proposal is acceptable: {mismatch}", self.name());
            return Err(no(NotifyType::NO_PROPOSAL_CHOSEN));
        };
        let mut answer = Vec::new();
        let shared = match (suite.ke, sent) {
            (None, _) => None,
            (Some(ke), Some((method, public))) if method == ke.transform() => {
                let own = PrivateKey::generate(ke, ctx.rng);
                let shared = own.agree(public).map_err(|_| no(NotifyType::INVALID_SYNTAX))?;
                answer.push(Payload::Ke { method, data: own.public().to_vec() });
                Some(shared)
            }
            (Some(ke), sent) => {
                let sent = sent.map_or("none".to_string(), |(method, _)| method.to_string());
                info!(target: "IKE", "{} KE method {sent} unacceptable, requesting {ke}", self.name());
                let wanted = ke.transform().to_be_bytes().to_vec();
                return Err(Box::new(Notify::new(NotifyType::INVALID_KE_PAYLOAD, wanted)));
            }
        };
        let spi_out = spi_of(&chosen.spi).ok_or_else(|| no(NotifyType::NO_PROPOSAL_CHOSEN))?;
        let keys = self.keys().map_err(|_| no(NotifyType::INVALID_SYNTAX))?;
        let keymat = keys.child(suite, shared.as_ref(), ni, nr);
        let old = replaces.and_then(|id| self.children.iter().find(|c| c.id == id));
        let spi_in = self.inbound_spi(ctx, old, worker).ok_or_else(|| no(NotifyType::NO_ADDITIONAL_SAS))?;
        let info = notify(payloads, NotifyType::SA_RESOURCE_INFO).filter(|_| old.is_none());
        let willing = joins.is_some() || resources::willing(ctx, &self.conn, &config);
        let resource = Resource::agreed(worker, willing, info);
        if fresh {
            answer.push(Payload::Nonce(nr.to_vec()));
        }
        answer.push(Payload::Sa(vec![select::answer_esp(&suite, &chosen, &spi_in.to_be_bytes())]));
        if config.mode == Mode::Transport {
            answer.push(refuse(NotifyType::USE_TRANSPORT_MODE));
        }
        answer.push(Payload::TsI(ts_remote.clone()));
        answer.push(Payload::TsR(ts_local.clone()));
        answer.extend(resource.shares.then(|| resources::info(worker.map(|_| spi_in))));
        let mode = config.mode;
        let takes_tfc = takes_tfc(payloads);
        let agreed =
            Agreed { config, mode, suite, spi_in, spi_out, ts_local, ts_remote, joins, resource, takes_tfc };
        let id = self.install_child(ctx, agreed, keymat, ExchangeInitiator::Peer, replaces);
        Ok((answer, id))
    }

    /// The configured child that fits the peer's selectors best: the first with the asked mode and an overlap.
    fn match_child(
        &self,
        ctx: &Ctx<'_>,
        tsi: &[TrafficSelector],
        tsr: &[TrafficSelector],
        transport: bool,
        replaces: Option<ChildSaId>,
    ) -> Option<(Arc<Child>, Vec<TrafficSelector>, Vec<TrafficSelector>)> {
        let both = |mut ts_local: Vec<TrafficSelector>, mut ts_remote: Vec<TrafficSelector>| {
            self.pair_selectors(&mut ts_local, &mut ts_remote);
            (!ts_local.is_empty() && !ts_remote.is_empty()).then_some((ts_local, ts_remote))
        };
        // The peer may have another pair of addresses in mind than we have, and asks over that one.
        let (here, there) = self.asked_over(ctx);
        let local = |config: &Child| either([self.local, here], |at| self.own_selectors(config, at));
        let remote = |config: &Child| either([self.remote, there], |at| self.peer_selectors(config, at));
        let fit = |config: &Child| both(narrow(&local(config), tsr), narrow(&remote(config), tsi));
        if let Some(old) = replaces.and_then(|id| self.children.iter().find(|c| c.id == id)) {
            // What is in use stays so (RFC 7296 2.9.2), also what actions on addresses have made of it since.
            let (local, remote) = both(
                narrow(&[local(&old.config), old.ts_local.clone()].concat(), tsr),
                narrow(&[remote(&old.config), old.ts_remote.clone()].concat(), tsi),
            )?;
            return ((old.mode == Mode::Transport) == transport).then(|| (old.config.clone(), local, remote));
        }
        // Asked for transport mode, a responder may still settle for tunnel mode by not echoing the notify;
        // asked for tunnel mode it cannot answer with transport (RFC 7296 1.3.1).
        let fits = |mode: Mode| {
            self.conn
                .children
                .iter()
                .filter(move |c| c.mode == mode)
                .find_map(|c| fit(c).map(|(local, remote)| (Arc::new(c.clone()), local, remote)))
        };
        if transport { fits(Mode::Transport).or_else(|| fits(Mode::Tunnel)) } else { fits(Mode::Tunnel) }
    }

    /// The peer has deleted what it had made in the place of another one, perhaps because it could not use our answer. That one
    /// stays as it was, if it is left with the traffic and not about to go itself.
    pub(super) fn reinstate(&mut self, ctx: &mut Ctx<'_>, deleted: ChildSaId) {
        let Some(old) = self.children.iter().find(|c| c.waits_for(deleted) && c.outbound).map(|c| c.id)
        else {
            return;
        };
        if self.asks_to_delete(old) || self.tasks.contains(&Task::DeleteChild(old)) {
            return;
        }
        let Some(child) = self.child(old) else { return };
        (child.state, child.peer_rekey) = (ChildState::Installed, None);
        if child.rekey_at.is_none() && !child.config.rekey_time.is_zero() {
            // Ours has been given up for the peer's.
            self.retry_later(ctx, Task::RekeyChild(old));
        }
    }

    /// The peer deletes an SA that we do not know: perhaps the one whose making it has answered, and the answer was lost.
    pub(super) fn note_deleted(&mut self, spi: &[u8]) {
        let pending = self.pending.as_mut().map(|p| &mut p.exchange);
        if let (Some(Exchange::CreateChild(offer)), Some(spi)) = (pending, spi_of(spi)) {
            offer.deleted.truncate(MAX_DELETED - 1);
            offer.deleted.insert(0, spi);
        }
    }

    /// A CREATE_CHILD_SA request for a Child SA, new or rekeyed; returns the answer.
    pub(super) fn handle_child_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        _proof: Protected,
    ) -> Vec<Payload> {
        // While the IKE SA itself is being replaced or closed, its children stay as they are (RFC 7296 2.25.1).
        if self.rekeyed_by.is_some()
            || matches!(
                self.pending.as_ref().map(|p| &p.exchange),
                Some(Exchange::RekeyIke(_) | Exchange::DeleteIke(_))
            )
        {
            return vec![refuse(NotifyType::TEMPORARY_FAILURE)];
        }
        let Some(ni) = rules::nonce(payloads).cloned() else {
            return vec![refuse(NotifyType::INVALID_SYNTAX)];
        };
        let nr = ctx.nonce();
        let Some(rekey) = notify(payloads, NotifyType::REKEY_SA) else {
            let mut answer = self.answer_configuration(ctx, payloads, false);
            match self.answer_offer(ctx, payloads, &ni, &nr, None, true) {
                Ok((child, new)) => {
                    self.settle_twins(ctx, new);
                    if self.mobility.version == Version::MobikeX {
                        // It begins with the pair of this request, which may be a new one.
                        self.want_checks(ctx.now);
                    }
                    answer.extend(child);
                }
                Err(notify) => answer.push(Payload::Notify(*notify)),
            }
            return answer;
        };
        let Some(old) = self.child_by_peer_spi(&rekey.spi).map(|c| (c.id, c.state, c.redundant_to)) else {
            return vec![Payload::Notify(Notify {
                protocol: ProtocolId::ESP,
                spi: rekey.spi.clone(),
                ..Notify::new(NotifyType::CHILD_SA_NOT_FOUND, Vec::new())
            })];
        };
        if matches!(old.1, ChildState::Deleting | ChildState::Rekeyed) || old.2.is_some() {
            return vec![refuse(NotifyType::TEMPORARY_FAILURE)];
        }
        match self.answer_offer(ctx, payloads, &ni, &nr, Some(old.0), true) {
            Ok((answer, new)) => {
                let ours = matches!(
                    self.pending.as_ref().map(|p| &p.exchange),
                    Some(Exchange::CreateChild(offer)) if offer.rekeys == Some(old.0)
                );
                // A rekeying of ours that has not been sent yet is settled by this one.
                self.tasks.retain(|t| *t != Task::RekeyChild(old.0));
                if let Some(old) = self.child(old.0) {
                    old.peer_rekey = Some(PeerChildRekey { new, lowest_nonce: ni.min(nr) });
                    if !ours {
                        old.state = ChildState::Rekeyed;
                    }
                }
                answer
            }
            Err(notify) => vec![Payload::Notify(*notify)],
        }
    }
}

/// Selectors at one of two addresses, which may be the same.
fn either(own: [SocketAddr; 2], at: impl Fn(SocketAddr) -> Vec<TrafficSelector>) -> Vec<TrafficSelector> {
    let [mut all, more] = own.map(at);
    all.extend(more.into_iter().filter(|ts| !all.contains(ts)).collect::<Vec<_>>());
    all
}
