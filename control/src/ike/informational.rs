//! INFORMATIONAL: liveness, DELETE (RFC 7296 1.4), and what concerns addresses (`mobike`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mobikex_common::addr::Path;
use mobikex_common::sa::ChildSaId;
use mobikex_common::spi::Spi;
use mobikex_common::wire::ike::{Delete, ExchangeType, NotifyType, Payload, ProtocolId};
use tracing::info;

use super::child::{ChildSa, ChildState};
use super::crypt::Protected;
use super::ctx::Ctx;
use super::error::IkeError;
use super::path_table::path;
use super::rules::notify;
use super::sa::{Gone, IkeSa};
use super::tasks::Task;
use super::versions::Version;
use super::window::Exchange;

/// The peer receives nothing on the Child SAs of an IKE SA once its DELETE is answered. What was sent on them
/// has this long to arrive before the answer goes out, well below the time after which anybody asks again.
const PARTING: Duration = Duration::from_millis(200);

/// A DELETE of the IKE SA that is to be answered.
pub(super) struct Parting {
    at: Instant,
    over: (SocketAddr, SocketAddr, bool),
    reason: String,
    /// By DELETE, so that `close_action` has its turn.
    deleted: bool,
}

impl IkeSa {
    /// Takes this IKE SA, or one of its children, down together with the peer. Where the address of ours that the peer
    /// knows is gone, it is told from another one, since an answer goes back to where the request came from (RFC 7296
    /// 2.11); without another one what is here ends alone.
    pub(super) fn take_down(
        &mut self,
        ctx: &mut Ctx<'_>,
        child: Option<ChildSaId>,
        reason: &str,
    ) -> Result<(), Gone> {
        let here = self.local.ip();
        if ctx.network.lacks(here) {
            let name = self.name();
            match self.refuge(ctx, &self.candidates(ctx)) {
                // With MOBIKE the move is under way already, and this comes after it.
                Some(_) if self.mobility.version != Version::None => {}
                Some((local, remote)) => {
                    info!(target: "IKE", "{name} {here} is gone, telling the peer over {}", path(local, remote));
                    self.retarget(ctx, local, remote);
                }
                None => {
                    let reason =
                        format!("{reason} here alone, as {here} is gone and the peer cannot be told");
                    let Some(id) = child else { return Err(self.close(ctx, &reason, false)) };
                    let Some(spi) = self.child(id).map(|c| c.spi_in) else { return Ok(()) };
                    self.retire(ctx, id, &reason);
                    // The IKE SA stays: once there is a way again, the peer must not go on with its half.
                    self.add_task(ctx, Task::TellEnd(id, spi));
                    return Ok(());
                }
            }
        }
        self.add_task(ctx, child.map_or_else(|| Task::DeleteIke(reason.to_string()), Task::DeleteChild));
        Ok(())
    }

    /// Asks the peer to delete a Child SA together with us.
    pub(super) fn start_delete_child(&mut self, ctx: &mut Ctx<'_>, id: ChildSaId) -> Result<(), IkeError> {
        let name = self.name();
        let Some(child) = self.child(id).filter(|c| !matches!(c.state, ChildState::Lingering(_))) else {
            return Ok(());
        };
        if child.is_live() {
            child.state = ChildState::Deleting;
        }
        let spi = child.spi_in;
        info!(target: "IKE", "{name} sending DELETE for ESP CHILD_SA {} with SPI {spi}", child.name());
        self.send_delete(ctx, id, spi)
    }

    /// Whether our DELETE of this Child SA is under way.
    pub(super) fn asks_to_delete(&self, child: ChildSaId) -> bool {
        let asks = |exchange: &Exchange| matches!(exchange, Exchange::DeleteChild(id) if *id == child);
        self.pending.as_ref().is_some_and(|p| asks(&p.exchange))
    }

    /// DELETE of one Child SA, by our SPI.
    pub(super) fn send_delete(&mut self, ctx: &mut Ctx<'_>, id: ChildSaId, spi: Spi) -> Result<(), IkeError> {
        let spis = vec![spi.to_be_bytes().to_vec()];
        let payloads = [Payload::Delete(Delete { protocol: ProtocolId::ESP, spis })];
        self.send_request(ctx, ExchangeType::INFORMATIONAL, Exchange::DeleteChild(id), &payloads).map(drop)
    }

    /// Asks the peer to delete this IKE SA and with it all its children.
    pub(super) fn start_delete_ike(&mut self, ctx: &mut Ctx<'_>, reason: &str) -> Result<(), IkeError> {
        info!(target: "IKE", "deleting IKE_SA {} ({reason})", self.name());
        self.leave_to_others(ctx);
        let payloads = [Payload::Delete(Delete { protocol: ProtocolId::IKE, spis: Vec::new() })];
        let exchange = Exchange::DeleteIke(reason.to_string());
        self.send_request(ctx, ExchangeType::INFORMATIONAL, exchange, &payloads).map(drop)
    }

    /// The peer has ended this IKE SA by a request that came over `over`; `deleted`: by DELETE.
    pub(super) fn part(
        &mut self,
        ctx: &mut Ctx<'_>,
        over: (SocketAddr, SocketAddr, bool),
        (reason, deleted): (String, bool),
    ) -> Result<(), Gone> {
        self.leave_to_others(ctx);
        let at = self.sent_until(ctx).map_or(ctx.now, |sent| sent + PARTING);
        let parting = Parting { at, over, reason, deleted };
        // Who asks again has waited enough.
        if at > ctx.now && self.parting.is_none() {
            self.tasks.clear();
            self.parting = Some(Box::new(parting));
            return Ok(());
        }
        Err(self.answer_parting(ctx, &parting))
    }

    /// When the DELETE that is put off is to be answered.
    pub(super) fn parting_at(&self) -> Option<Instant> {
        self.parting.as_ref().map(|parting| parting.at)
    }

    /// Answers the peer's DELETE of this IKE SA if it is time.
    pub(super) fn parting_timeout(&mut self, ctx: &mut Ctx<'_>) -> Result<(), Gone> {
        match self.parting.take_if(|parting| parting.at <= ctx.now) {
            Some(parting) => Err(self.answer_parting(ctx, &parting)),
            None => Ok(()),
        }
    }

    fn answer_parting(&mut self, ctx: &mut Ctx<'_>, parting: &Parting) -> Gone {
        if parting.deleted && self.rekeyed_by.is_none() {
            self.return_later(ctx, |_| true, |config| config.close_action);
        }
        let gone = self.close(ctx, &parting.reason, false);
        self.answer_over = Some(parting.over);
        if let Err(error) = self.send_response(ctx, ExchangeType::INFORMATIONAL, &[]) {
            info!(target: "IKE", "{} {error}", self.name());
        }
        gone
    }

    /// A request. An IKE SA that the peer deletes is gone once the answer is sent.
    pub(super) fn handle_informational_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        addresses: (SocketAddr, SocketAddr),
        _proof: Protected,
    ) -> Result<Vec<Payload>, String> {
        self.obey_lifetime(ctx, payloads);
        if notify(payloads, NotifyType::AUTHENTICATION_FAILED).is_some() {
            return Err("the peer does not accept our proof (AUTHENTICATION_FAILED); why stands in its log"
                .to_string());
        }
        let mut answer_spis = Vec::new();
        for payload in payloads {
            let Payload::Delete(delete) = payload else { continue };
            if delete.protocol == ProtocolId::IKE {
                return Err("deleted by the peer".to_string());
            }
            if delete.protocol != ProtocolId::ESP {
                continue;
            }
            for spi in &delete.spis {
                let Some(child) = self.child_by_peer_spi(spi) else {
                    info!(target: "IKE", "{} received DELETE for an unknown ESP SPI", self.name());
                    self.note_deleted(spi);
                    continue;
                };
                let (id, state, spi_in) = (child.id, child.state, child.spi_in);
                info!(target: "IKE", "received DELETE for ESP CHILD_SA {}", child.name());
                let policy = child.policy;
                let replaced = matches!(state, ChildState::Rekeyed) || child.peer_rekey.is_some();
                let stays = |c: &ChildSa| c.is_live() || c.waits_for(id);
                let twin = self.children.iter().any(|c| c.policy == policy && c.id != id && stays(c));
                // If our own DELETE for it is under way, that one already names our half (RFC 7296 1.4.1).
                if !self.asks_to_delete(id) {
                    answer_spis.push(spi_in.to_be_bytes().to_vec());
                }
                if state == ChildState::Installed && !replaced && !twin {
                    self.return_later(ctx, |c| c.id == id, |config| config.close_action);
                }
                self.retire(ctx, id, "deleted by the peer");
                self.reinstate(ctx, id);
            }
        }
        let mut answer = self.handle_mobility_request(ctx, payloads, addresses);
        answer.extend(self.answer_later_configuration(ctx, payloads));
        ctx.count_refusals(&answer);
        if !answer_spis.is_empty() {
            answer.push(Payload::Delete(Delete { protocol: ProtocolId::ESP, spis: answer_spis }));
        }
        Ok(answer)
    }

    /// The answer to a request of ours, which came over `answered`. `only_there` says that the request went over one pair
    /// of addresses alone.
    pub(super) fn handle_informational_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        exchange: Exchange,
        payloads: &[Payload],
        answered: Path,
        only_there: bool,
    ) -> Result<(), Gone> {
        match exchange {
            Exchange::DeleteChild(id) => {
                self.retire(ctx, id, "deleted");
                Ok(())
            }
            Exchange::DeleteIke(reason) => Err(match self.parting.take() {
                Some(parting) => self.answer_parting(ctx, &parting),
                None => self.close(ctx, &reason, false),
            }),
            Exchange::Update(update) => {
                self.handle_update_response(ctx, &update, payloads, answered, only_there)
            }
            Exchange::Actions(actions) => {
                self.handle_actions_response(ctx, &actions, payloads, answered, only_there)
            }
            Exchange::Negotiate(version) => self.handle_negotiation_response(ctx, version, payloads),
            Exchange::PathTest { path, cookie, at } => {
                self.handle_path_test_response(ctx, (path, &cookie, at), payloads, only_there)
            }
            Exchange::Check { pair, cookie, rebound, since } => {
                let check = (pair, cookie.as_deref(), rebound, since);
                self.handle_check_response(ctx, check, payloads, answered, only_there)
            }
            Exchange::Liveness(cookie) => {
                self.handle_liveness_response(ctx, cookie.as_deref(), payloads, answered, only_there)
            }
            Exchange::Announce => {
                self.handle_list_response(ctx, payloads, answered, only_there);
                Ok(())
            }
            Exchange::MobikeNone
            | Exchange::Init
            | Exchange::Auth
            | Exchange::CreateChild(_)
            | Exchange::RekeyIke(_) => Ok(()),
        }
    }
}
