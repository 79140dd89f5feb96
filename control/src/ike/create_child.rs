//! Child SAs that we ask for, in IKE_AUTH and in CREATE_CHILD_SA, and the rekeying of Child SAs (RFC 7296 1.3.1, 1.3.3, 2.8, 2.9,
//! 2.17). What the peer asks for is in `answer_child`.

use std::sync::Arc;

use mobikex_common::alg::KeyExchange;
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::sa::{ChildSaId, Mode, PolicyId};
use mobikex_common::spi::Spi;
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ike::{ExchangeType, Notify, NotifyType, Payload, ProtocolId};
use tracing::info;

use super::child::{Agreed, ChildOffer, ChildState};
use super::crypt::Protected;
use super::ctx::Ctx;
use super::error::IkeError;
use super::narrow::{narrow, show};
use super::output::Event;
use super::resources::{self, Resource};
use super::roles::ExchangeInitiator;
use super::rules::{self, error_notify, find, notify};
use super::sa::IkeSa;
use super::select;
use super::tasks::Task;
use super::window::Exchange;
use crate::config::Child;

/// A notify without data.
pub(super) fn refuse(kind: NotifyType) -> Payload {
    Payload::Notify(Notify::new(kind, Vec::new()))
}

/// TSi and TSr.
pub(super) fn selectors(payloads: &[Payload]) -> Option<(&Vec<TrafficSelector>, &Vec<TrafficSelector>)> {
    let tsi = find(payloads, |p| if let Payload::TsI(t) = p { Some(t) } else { None })?;
    let tsr = find(payloads, |p| if let Payload::TsR(t) = p { Some(t) } else { None })?;
    Some((tsi, tsr))
}

/// The payloads of an offer. IKE_AUTH takes nonces and key exchange from IKE_SA_INIT, so `fresh` is false there.
pub(super) fn request_payloads(offer: &ChildOffer, fresh: bool) -> Vec<Payload> {
    let mut payloads = Vec::new();
    if offer.config.mode == Mode::Transport {
        payloads.push(refuse(NotifyType::USE_TRANSPORT_MODE));
    }
    payloads.push(Payload::Sa(select::offer_esp(
        &offer.config.esp_proposals,
        &offer.spi_in.to_be_bytes(),
        fresh,
    )));
    if fresh {
        payloads.push(Payload::Nonce(offer.ni.clone()));
        if let Some((method, ke)) = &offer.ke {
            payloads.push(Payload::Ke { method: method.transform(), data: ke.public().to_vec() });
        }
    }
    payloads.push(Payload::TsI(offer.ts_local.clone()));
    payloads.push(Payload::TsR(offer.ts_remote.clone()));
    payloads.extend(offer.shares.then(|| resources::info(offer.own.map(|_| offer.spi_in))));
    payloads
}

impl IkeSa {
    /// Reserves an SPI and prepares an offer; `ni` is the nonce that will seed its keys.
    pub(super) fn offer_child(
        &self,
        ctx: &mut Ctx<'_>,
        config: Arc<Child>,
        rekeys: Option<ChildSaId>,
        own: Option<(PolicyId, u32)>,
        ni: Vec<u8>,
    ) -> Result<ChildOffer, IkeError> {
        let old = rekeys.and_then(|id| self.children.iter().find(|c| c.id == id));
        let of_first = own.and_then(|(policy, _)| self.selectors_of(policy));
        let (ts_local, ts_remote) = match old {
            // A rekeyed SA must not lose selectors (RFC 7296 2.9.2).
            Some(old) => (old.ts_local.clone(), old.ts_remote.clone()),
            None => of_first.unwrap_or_else(|| {
                (self.own_selectors(&config, self.local), self.peer_selectors(&config, self.remote))
            }),
        };
        let shares = old.is_none() && resources::willing(ctx, &self.conn, &config);
        let spi_in = self.inbound_spi(ctx, old, own.map(|own| own.1)).ok_or(IkeError::NoSpi)?;
        let (ke, deleted) = (None, Vec::new());
        Ok(ChildOffer { config, spi_in, ni, ke, ts_local, ts_remote, rekeys, shares, own, deleted })
    }

    /// Makes a Child SA of our offer and the peer's answer, or says why not. Gives the SPI back on failure.
    pub(super) fn finish_child(
        &mut self,
        ctx: &mut Ctx<'_>,
        offer: ChildOffer,
        payloads: &[Payload],
        nr: &[u8],
    ) -> Option<ChildSaId> {
        let name = offer.config.name.clone();
        let (spi, rekeys, ni) = (offer.spi_in, offer.rekeys, offer.ni.clone());
        let offered = offered(&offer);
        let result = agree(&offer, payloads).and_then(|(mut agreed, shared)| {
            if rekeys.is_none() {
                self.confine(&mut agreed)?;
            }
            let keymat = self.keys()?.child(agreed.suite, shared.as_ref(), &ni, nr);
            Ok((agreed, keymat))
        });
        match result {
            Ok((agreed, keymat)) => {
                Some(self.install_child(ctx, agreed, keymat, ExchangeInitiator::Us, rekeys))
            }
            Err(error) => {
                ctx.spis.release(spi);
                let reason = match &error {
                    IkeError::Notified(kind) => format!("the peer answered {kind}{offered}"),
                    other => {
                        self.disown(ctx, spi);
                        other.to_string()
                    }
                };
                ctx.event(Event::ChildFailed { ike: self.name(), child: name, reason });
                None
            }
        }
    }

    /// The peer has made a Child SA by an answer that is of no use here, as when it does not agree to transport mode: it is told
    /// to delete it (RFC 7296 1.3.1).
    fn disown(&mut self, ctx: &mut Ctx<'_>, spi_in: Spi) {
        let task = Task::TellEnd(ctx.ids.child(), spi_in);
        self.tasks.push(task);
    }

    /// Starts CREATE_CHILD_SA for a configured child.
    pub(super) fn start_create_child(&mut self, ctx: &mut Ctx<'_>, name: &str) -> Result<(), IkeError> {
        if self.has_child(name) {
            // It was asked for once more while the first request for it was under way.
            return Ok(());
        }
        let config = self.conn.children.iter().find(|c| c.name == name).cloned();
        match config {
            Some(config) => self.start_child_exchange(ctx, Arc::new(config), None, None, None),
            None => Err(IkeError::TsUnacceptable(format!("no child '{name}' is configured"))),
        }
    }

    /// Starts the rekeying of a Child SA, if it is still there.
    pub(super) fn start_rekey_child(&mut self, ctx: &mut Ctx<'_>, id: ChildSaId) -> Result<(), IkeError> {
        let Some(old) = self.child(id).filter(|c| c.is_live()) else { return Ok(()) };
        if old.redundant_to.is_some() {
            // It is about to be deleted; a successor would outlive it.
            return Ok(());
        }
        if !old.outbound && (old.resource.unheard || old.resource.worker.is_none()) {
            // The peer may not have it yet: our answer that made it can be on its way still.
            self.retry_later(ctx, Task::RekeyChild(id));
            return Ok(());
        }
        old.state = ChildState::Rekeying;
        let config = old.config.clone();
        self.start_child_exchange(ctx, config, Some(id), None, None)
    }

    /// `own`: the policy that has the first one, and the worker that the new one is for.
    pub(super) fn start_child_exchange(
        &mut self,
        ctx: &mut Ctx<'_>,
        config: Arc<Child>,
        rekeys: Option<ChildSaId>,
        method: Option<KeyExchange>,
        own: Option<(PolicyId, u32)>,
    ) -> Result<(), IkeError> {
        let ni = ctx.nonce();
        let method = method.or_else(|| config.esp_proposals.first().and_then(|p| p.kes.first()).copied());
        let mut offer = self.offer_child(ctx, config, rekeys, own, ni)?;
        offer.ke = method.map(|m| (m, PrivateKey::generate(m, ctx.rng)));
        let mut payloads = Vec::new();
        if let Some(old) = rekeys.and_then(|id| self.child(id)) {
            payloads.push(Payload::Notify(Notify {
                protocol: ProtocolId::ESP,
                spi: old.spi_in.to_be_bytes().to_vec(),
                ..Notify::new(NotifyType::REKEY_SA, Vec::new())
            }));
        }
        payloads.extend(self.ask_configuration(ctx));
        payloads.extend(request_payloads(&offer, true));
        let exchange = Exchange::CreateChild(Box::new(offer));
        self.send_request(ctx, ExchangeType::CREATE_CHILD_SA, exchange, &payloads).map(drop)
    }

    /// The answer to our CREATE_CHILD_SA for a Child SA.
    pub(super) fn handle_child_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        offer: ChildOffer,
        payloads: &[Payload],
        _proof: Protected,
    ) {
        let (rekeys, config) = (offer.rekeys, offer.config.clone());
        let own = offer.own;
        if let Some(error) = error_notify(payloads) {
            ctx.spis.release(offer.spi_in);
            return self.child_refused(ctx, (rekeys, own), config, error, &offered(&offer));
        }
        let Some(nr) = rules::nonce(payloads).cloned() else {
            ctx.spis.release(offer.spi_in);
            self.disown(ctx, offer.spi_in);
            let reason = "the peer's answer has no nonce".to_string();
            ctx.event(Event::ChildFailed { ike: self.name(), child: config.name.clone(), reason });
            return self.rekey_again(ctx, rekeys);
        };
        let lowest = offer.ni.clone().min(nr.clone());
        let deleted = offer.deleted.clone();
        if let Err(reason) = self.take_configuration(ctx, payloads) {
            ctx.spis.release(offer.spi_in);
            return self.tasks.push_first(Task::DeleteIke(reason));
        }
        let wanted = own.map(|_| (offer.ts_local.clone(), offer.ts_remote.clone()));
        let Some(new) = self.finish_child(ctx, offer, payloads, &nr) else {
            if let Some((policy, _)) = own {
                self.no_more(policy, &config.name, "the peer's answer is of no use");
            }
            return self.rekey_again(ctx, rekeys);
        };
        self.tasks.welcome();
        self.conclude_rekeying(ctx, rekeys, new, lowest);
        self.settle_twins(ctx, new);
        if let Some(wanted) = wanted {
            self.own_made(new, &wanted);
        }
        if self.child(new).is_some_and(|c| deleted.contains(&c.spi_out)) {
            self.retire(ctx, new, "deleted by the peer");
        }
    }

    /// A Child SA of ours has been made in the place of another one: which of the two goes, if not both.
    fn conclude_rekeying(
        &mut self,
        ctx: &mut Ctx<'_>,
        rekeys: Option<ChildSaId>,
        new: ChildSaId,
        lowest: Vec<u8>,
    ) {
        let Some(old) = rekeys.and_then(|id| self.child(id)) else { return };
        // RFC 7296 2.8.1: of two simultaneous rekeyings, the one with the lowest nonce is redundant, and its
        // initiator deletes what it created; the other initiator deletes the old SA.
        let lost = old.peer_rekey.as_ref().is_some_and(|theirs| lowest < theirs.lowest_nonce);
        let winner = old.peer_rekey.as_ref().map(|theirs| theirs.new);
        let (old_id, place) = (old.id, old.place());
        let deleted = matches!(old.state, ChildState::Lingering(_));
        if !deleted {
            old.state = ChildState::Rekeyed;
        }
        if let (true, Some(winner)) = (deleted, winner) {
            // The peer knows both exchanges and has deleted the old SA, so its own is the one that stays.
            if let Some(new) = self.child(new) {
                new.redundant_to = Some(winner);
            }
            // By now it may have been replaced itself.
            let live = self.child(winner).is_some_and(|c| c.is_live());
            if let Some(sender) = Some(winner).filter(|_| live).or_else(|| self.heir(ctx, place, new, None)) {
                self.activate(ctx, sender);
            }
            self.delete_redundant([Some(winner), None]);
            return;
        }
        if let (true, Some(winner)) = (lost, winner) {
            info!(target: "CHD", "{} simultaneous rekeying: the peer's SA stays", self.name());
            if let Some(new) = self.child(new) {
                new.redundant_to = Some(winner);
            }
        } else {
            self.tasks.push(Task::DeleteChild(old_id));
        }
    }

    fn child_refused(
        &mut self,
        ctx: &mut Ctx<'_>,
        (rekeys, own): (Option<ChildSaId>, Option<(PolicyId, u32)>),
        config: Arc<Child>,
        error: &Notify,
        offered: &str,
    ) {
        let old = rekeys.and_then(|id| self.child(id).map(|c| (c.id, c.peer_rekey.is_some())));
        if rekeys.is_some() && old.is_none() {
            // The peer's own rekeying has long replaced it.
            return;
        }
        match (error.kind, old) {
            (NotifyType::TEMPORARY_FAILURE, Some((_, true))) => {
                // The peer is deleting the SA because its own rekeying is through.
            }
            (NotifyType::TEMPORARY_FAILURE, old) => {
                let task = match (old, own) {
                    (Some((id, _)), _) => Task::RekeyChild(id),
                    (None, Some((policy, worker))) => Task::CreateOwn(policy, worker),
                    (None, None) => Task::CreateChild(config.name.clone()),
                };
                info!(target: "IKE", "{} peer is busy, trying again soon", self.name());
                self.retry_later(ctx, task);
            }
            (NotifyType::CHILD_SA_NOT_FOUND, Some((id, replaced))) => {
                // The peer has no such SA any more: either its own rekeying replaced it, or we must make a new one.
                self.retire(ctx, id, "the peer does not have it any more");
                if !replaced {
                    self.tasks.push(Task::CreateChild(config.name.clone()));
                }
            }
            (NotifyType::INVALID_KE_PAYLOAD, _) => {
                let method = rules::wanted_method(error).and_then(KeyExchange::from_transform);
                match method.filter(|m| config.esp_proposals.iter().any(|p| p.kes.contains(m))) {
                    Some(method) => {
                        if let Err(error) = self.start_child_exchange(ctx, config, rekeys, Some(method), own)
                        {
                            info!(target: "IKE", "{} {error}", self.name());
                        }
                    }
                    None => self.child_failed(ctx, &config, old.map(|o| o.0), error, offered),
                }
            }
            _ => match own {
                Some((policy, _)) => {
                    self.no_more(policy, &config.name, &format!("the peer answered {}", error.kind));
                }
                None => self.child_failed(ctx, &config, old.map(|o| o.0), error, offered),
            },
        }
    }

    fn child_failed(
        &mut self,
        ctx: &mut Ctx<'_>,
        config: &Child,
        old: Option<ChildSaId>,
        error: &Notify,
        offered: &str,
    ) {
        let reason = format!("the peer answered {}{offered}", error.kind);
        ctx.event(Event::ChildFailed { ike: self.name(), child: config.name.clone(), reason });
        self.rekey_again(ctx, old);
    }

    /// An SA could not be rekeyed. It is still good until its lifetime ends, and there is time for another try.
    fn rekey_again(&mut self, ctx: &mut Ctx<'_>, old: Option<ChildSaId>) {
        let Some(child) = old.and_then(|id| self.child(id)).filter(|c| c.state == ChildState::Rekeying)
        else {
            return;
        };
        child.state = ChildState::Installed;
        let task = Task::RekeyChild(child.id);
        self.retry_later(ctx, task);
    }
}

/// Everything in an offer that can be refused, for people.
fn offered(offer: &ChildOffer) -> String {
    let ours: Vec<_> = offer.config.esp_proposals.iter().map(ToString::to_string).collect();
    let mode = if offer.config.mode == Mode::Transport { "transport" } else { "tunnel" };
    let (local, remote) = (show(&offer.ts_local), show(&offer.ts_remote));
    format!("; we offered {} for {local} === {remote} in {mode} mode", ours.join(", "))
}

/// The SPI in these octets, if it may be one of ESP.
pub(super) fn spi_of(bytes: &[u8]) -> Option<Spi> {
    // 0 to 255 are reserved (RFC 4303 2.1).
    <[u8; 4]>::try_from(bytes).ok().map(u32::from_be_bytes).filter(|spi| *spi > 255).map(Spi)
}

/// Whether the peer has not said that it takes no padding after packets (RFC 7296 1.3.1).
pub(super) fn takes_tfc(payloads: &[Payload]) -> bool {
    notify(payloads, NotifyType::ESP_TFC_PADDING_NOT_SUPPORTED).is_none()
}

type Shared = Option<mobikex_common::crypto::Secret>;

/// Checks the peer's answer against our offer: nothing may come back that was not offered.
fn agree(offer: &ChildOffer, payloads: &[Payload]) -> Result<(Agreed, Shared), IkeError> {
    let rule = |story| IkeError::Rule { exchange: "the Child SA negotiation", story };
    if let Some(error) = error_notify(payloads) {
        return Err(IkeError::Notified(error.kind));
    }
    rules::check_single("the Child SA negotiation", payloads)?;
    let theirs = rules::proposals(payloads).ok_or_else(|| rule("the answer has no SA payload"))?;
    let [proposal] = theirs else { return Err(rule("the answer must hold one proposal")) };
    let fresh = offer.ke.is_some();
    let (suite, _) =
        select::choose_esp(&offer.config.esp_proposals, theirs, fresh, None).ok_or_else(|| {
            IkeError::NoProposal(format!("the peer selected {}{}", select::describe(theirs), offered(offer)))
        })?;
    let spi_out = spi_of(&proposal.spi).ok_or_else(|| rule("the peer's SPI is not usable"))?;
    let (tsi, tsr) = selectors(payloads).ok_or_else(|| rule("the answer has no traffic selectors"))?;
    let ts_local = narrow(&offer.ts_local, tsi);
    let ts_remote = narrow(&offer.ts_remote, tsr);
    // The peer may narrow, never widen.
    if ts_local != *tsi || ts_remote != *tsr || ts_local.is_empty() || ts_remote.is_empty() {
        return Err(IkeError::TsUnacceptable(format!(
            "we offered {} === {}, the peer answered {} === {}",
            show(&offer.ts_local),
            show(&offer.ts_remote),
            show(tsi),
            show(tsr)
        )));
    }
    let transport = notify(payloads, NotifyType::USE_TRANSPORT_MODE).is_some();
    if transport && offer.config.mode == Mode::Tunnel {
        return Err(rule("the peer answered a tunnel-mode offer with transport mode"));
    }
    if !transport && offer.config.mode == Mode::Transport {
        return Err(rule("the peer does not agree to transport mode"));
    }
    let shared = match (suite.ke, &offer.ke) {
        (None, _) => None,
        (Some(method), Some((ours, ke))) if method == *ours => {
            let (id, public) =
                rules::key_exchange(payloads).ok_or_else(|| rule("the answer has no KE payload"))?;
            if id != method.transform() {
                return Err(rule("the KE payload is not of the method that was selected"));
            }
            Some(ke.agree(public)?)
        }
        (Some(_), _) => return Err(rule("the peer selected another key exchange than was sent")),
    };
    let agreed = Agreed {
        config: offer.config.clone(),
        mode: offer.config.mode,
        suite,
        spi_in: offer.spi_in,
        spi_out,
        ts_local,
        ts_remote,
        joins: offer.own.map(|own| own.0),
        resource: Resource::agreed(
            offer.own.map(|own| own.1),
            offer.shares,
            notify(payloads, NotifyType::SA_RESOURCE_INFO),
        ),
        takes_tfc: takes_tfc(payloads),
    };
    Ok((agreed, shared))
}
