//! IKE_AUTH as its responder (RFC 7296 1.2, 2.15), in as many rounds as the connection has (RFC 4739). The first request
//! chooses the connection; it is kept, and what it wants besides is done once the last round of both sides is over.

use std::sync::Arc;
use std::time::Duration;

use mobikex_common::wire::ike::{
    AuthMethod, ExchangeType, Identification, Notify, NotifyType, Payload, PayloadType,
};
use tracing::info;

use super::auth::AuthenticatedPeer;
use super::auth_serving::AuthServing;
use super::childless;
use super::crypt::Protected;
use super::ctx::Ctx;
use super::error::IkeError;
use super::mobility::Mobility;
use super::prove::Parties;
use super::roles::OriginalInitiator;
use super::rounds;
use super::rules::{self, notify};
use super::sa::{Gone, Handshake, IkeSa, State};
use super::tasks::Task;
use super::versions::Version;
use crate::config::{Connection, Method, Unique};

/// An initiator that has proven itself, and our own proof for it.
struct Verified {
    conn: Arc<Connection>,
    /// Who we are in our rounds.
    ours: Vec<Identification>,
    peer: AuthenticatedPeer,
    /// What of our proof the answer holds.
    proof: Vec<Payload>,
    /// The first request, where it is not the one that is being answered.
    request: Option<Vec<Payload>>,
}

/// What a request leads to.
enum Step {
    /// There is more to prove.
    Answer(Vec<Payload>),
    /// Everything is proven.
    Over(Box<Verified>),
    /// EAP has failed, which has an answer of its own.
    Failed(Vec<Payload>, IkeError),
}

/// What stands in a round.
const BEGINS: [PayloadType; 3] = [PayloadType::IDI, PayloadType::AUTH, PayloadType::EAP];

/// The most connections with which an initiator's signature is tried.
const MAX_CANDIDATES: usize = 8;
/// An initiator whose new Child SA waits to be used is asked after this long whether it has it.
const CONFIRM: Duration = Duration::from_millis(100);

const fn rule(story: &'static str) -> IkeError {
    IkeError::Rule { exchange: "IKE_AUTH", story }
}

fn failed(reason: String) -> IkeError {
    IkeError::Authentication(reason)
}

impl IkeSa {
    /// IKE_AUTH request. The initiator is verified before any secret of ours is used for an answer, but where it asks for EAP.
    pub(super) fn handle_auth_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        _proof: Protected,
    ) -> Result<(), Gone> {
        let step = if matches!(self.state, State::AuthServing(_)) {
            self.serve_round(ctx, payloads)
        } else if rules::auth(payloads).is_none() {
            self.serve_eap(ctx, payloads)
        } else {
            self.serve_first(ctx, payloads)
        };
        let done = step.and_then(|step| match step {
            Step::Answer(answer) => self.send_response(ctx, ExchangeType::IKE_AUTH, &answer).map(|()| None),
            Step::Over(verified) => self.accept(ctx, payloads, *verified).map(|()| None),
            Step::Failed(mut answer, reason) => {
                answer.push(Payload::Notify(Notify::new(NotifyType::AUTHENTICATION_FAILED, Vec::new())));
                info!(target: "IKE", "EAP authentication failed, sending EAP failure");
                self.send_response(ctx, ExchangeType::IKE_AUTH, &answer).map(|()| Some(reason))
            }
        });
        match done {
            Ok(None) => Ok(()),
            Ok(Some(reason)) => Err(self.close(ctx, &reason.to_string(), false)),
            Err(error) => Err(self.refuse(ctx, &error)),
        }
    }

    /// The peer learns only that it failed; the reason is ours to log.
    fn refuse(&mut self, ctx: &mut Ctx<'_>, error: &IkeError) -> Gone {
        let kind = match error {
            IkeError::Rule { .. } => NotifyType::INVALID_SYNTAX,
            IkeError::UnexpectedNat => NotifyType::UNEXPECTED_NAT_DETECTED,
            _ => NotifyType::AUTHENTICATION_FAILED,
        };
        let refusal = [Payload::Notify(Notify::new(kind, Vec::new()))];
        let _ = self.send_response(ctx, ExchangeType::IKE_AUTH, &refusal);
        self.close(ctx, &error.to_string(), false)
    }

    /// A first request with AUTH.
    fn serve_first(&mut self, ctx: &mut Ctx<'_>, payloads: &[Payload]) -> Result<Step, IkeError> {
        let verified = self.verify_initiator(ctx, payloads)?;
        if !verified.conn.has_rounds() {
            return Ok(Step::Over(Box::new(verified)));
        }
        let Verified { conn, ours, peer, proof, .. } = verified;
        let id = peer.id().clone();
        self.serve(conn, payloads, id, |serving| {
            (serving.ours, serving.theirs, serving.peer) = (ours, 1, Some(peer));
        })?;
        Ok(Step::Answer(proof))
    }

    /// A first request without AUTH (RFC 7296 2.16).
    fn serve_eap(&mut self, ctx: &mut Ctx<'_>, payloads: &[Payload]) -> Result<Step, IkeError> {
        rules::check_single("IKE_AUTH", payloads)?;
        let needs = [PayloadType::SA, PayloadType::TSI, PayloadType::TSR];
        if needs.iter().any(|kind| !payloads.iter().any(|p| p.kind() == *kind)) {
            return Err(rule("the request for EAP needs SA, TSi and TSr, once each"));
        }
        let id = rules::id_i(payloads).ok_or(rule("no IDi"))?;
        let conn = self.connection_for_eap(ctx, id, payloads)?;
        let at = self.local.ip();
        self.serve(Arc::clone(&conn), payloads, id.clone(), |_| {})?;
        let keys = self.keys.as_ref().ok_or(IkeError::NotProtected)?;
        let State::AuthServing(serving) = &mut self.state else {
            return Err(rule("the request was not expected"));
        };
        let mut answer = if conn.local.eap().is_some() {
            let local = conn.local.own_id(at);
            serving.ours.push(local.clone());
            vec![Payload::IdR(local)]
        } else {
            serving.prove(ctx, keys, at)?
        };
        answer.extend(serving.start_eap(ctx)?);
        Ok(Step::Answer(answer))
    }

    /// From now on there is more than one request.
    fn serve(
        &mut self,
        conn: Arc<Connection>,
        payloads: &[Payload],
        id: Identification,
        change: impl FnOnce(&mut AuthServing),
    ) -> Result<(), IkeError> {
        let State::HalfOpen(handshake) = &mut self.state else {
            return Err(rule("the request was not expected"));
        };
        handshake.wishes.read(payloads);
        let mut serving = AuthServing {
            handshake: std::mem::take(&mut **handshake),
            conn,
            request: payloads.to_vec(),
            ours: Vec::new(),
            id,
            theirs: 0,
            peer: None,
            eap: None,
        };
        change(&mut serving);
        self.state = State::AuthServing(Box::new(serving));
        Ok(())
    }

    /// A later request: the initiator's part of it, then ours.
    fn serve_round(&mut self, ctx: &mut Ctx<'_>, payloads: &[Payload]) -> Result<Step, IkeError> {
        rules::check_single("IKE_AUTH", payloads)?;
        let at = self.local.ip();
        let keys = self.keys.as_ref().ok_or(IkeError::NotProtected)?;
        let State::AuthServing(serving) = &mut self.state else {
            return Err(rule("the request was not expected"));
        };
        let conn = Arc::clone(&serving.conn);
        let number = serving.theirs + 1;
        let of_round = |error| rounds::in_round(&conn, number, error);
        let mut answer = match serving.eap.take() {
            Some(eap) if eap.proven.is_some() => serving.after_eap(keys, eap, payloads).map_err(of_round)?,
            Some(mut eap) => {
                let (packet, failure) =
                    eap.step(&serving.means(ctx)?, ctx.rng, payloads).map_err(of_round)?;
                if let Some(reason) = failure {
                    return Ok(Step::Failed(vec![packet], of_round(reason.into())));
                }
                serving.eap = Some(eap);
                vec![packet]
            }
            None if number <= conn.remotes().count() => {
                serving.open(ctx, keys, payloads).map_err(of_round)?
            }
            None if payloads.iter().any(|p| BEGINS.contains(&p.kind())) => {
                return Err(rule("the initiator has had its last round"));
            }
            None => Vec::new(),
        };
        // Ours begin with our first answer and are one a message, so the end of EAP comes after them (see `MAX_ROUNDS`).
        if serving.ours.len() < conn.locals().count() && rules::auth(&answer).is_none() {
            let proof = serving.prove(ctx, keys, at)?;
            answer.splice(0..0, proof);
        }
        if !serving.is_over() {
            return Ok(Step::Answer(answer));
        }
        Ok(Step::Over(Box::new(Verified {
            ours: std::mem::take(&mut serving.ours),
            peer: serving.peer.take().ok_or(rule("the initiator has proven nothing"))?,
            proof: answer,
            request: Some(std::mem::take(&mut serving.request)),
            conn,
        })))
    }

    /// The connection that expects this peer by EAP.
    fn connection_for_eap(
        &self,
        ctx: &Ctx<'_>,
        id: &Identification,
        payloads: &[Payload],
    ) -> Result<Arc<Connection>, IkeError> {
        let alone = notify(payloads, NotifyType::EAP_ONLY_AUTHENTICATION).is_some();
        let wanted = rules::id_r(payloads);
        let fitting: Vec<_> = ctx
            .connections
            .iter()
            .filter(|conn| conn.remote.eap().is_some() && self.fits(conn, id, wanted))
            .collect();
        if fitting.is_empty() {
            return Err(failed(format!("no connection expects '{id}' by EAP")));
        }
        // Without AUTH of ours only who has said that it can do so (RFC 5998 3).
        let able = fitting.into_iter().filter(|conn| alone || conn.local.eap().is_none());
        // Whether another round follows is not known before EAP is over, but who cannot have any is.
        let best = able.min_by_key(|conn| {
            let id = conn.remote.id.as_ref().map_or(2, |id| u8::from(id.is_pattern()));
            (!rounds::supported(conn, payloads), id)
        });
        let best = best.ok_or_else(|| {
            failed(format!("configured EAP-only authentication, but '{id}' does not support it"))
        })?;
        rounds::check_support(best, payloads)?;
        Ok(Arc::clone(best))
    }

    /// Finds the connection that expects this peer and checks its AUTH.
    fn verify_initiator(&self, ctx: &Ctx<'_>, payloads: &[Payload]) -> Result<Verified, IkeError> {
        let State::HalfOpen(handshake) = &self.state else {
            return Err(rule("the request was not expected"));
        };
        rules::check(ExchangeType::IKE_AUTH, false, payloads)?;
        let id = rules::id_i(payloads).ok_or(rule("no IDi"))?;
        let wanted = rules::id_r(payloads);
        let auth = rules::auth(payloads).ok_or(rule("no AUTH"))?;
        let by_psk = auth.method == AuthMethod::SHARED_KEY_MIC;
        let another = rounds::follows(payloads);
        let mut fitting: Vec<_> = ctx.connections.iter().filter(|c| self.fits(c, id, wanted)).collect();
        // One that names the peer beats one that has a pattern for it beats one that takes anybody. Those that expect the
        // peer's method, and as many rounds as it announces, come first; if there are none, the first of the others says what
        // is wrong.
        fitting.sort_by_key(|c| {
            let other_method = match c.remote.method {
                Method::Psk => !by_psk,
                Method::Pubkey(_) => by_psk,
                Method::Eap(_) => true,
            };
            let other_rounds = another == c.further_remote.is_empty() || !rounds::supported(c, payloads);
            (other_method, other_rounds, c.remote.id.as_ref().map_or(2, |id| u8::from(id.is_pattern())))
        });
        if fitting.is_empty() {
            let wanted = wanted.map_or("%any".to_string(), ToString::to_string);
            let here = |c: &&Arc<Connection>| c.accepts(self.local.ip(), self.remote.ip());
            let configured = ctx.connections.iter().filter(here).take(MAX_CANDIDATES).map(|c| {
                let theirs = c.remote.shown_id().unwrap_or_else(|| "%any".to_string());
                format!("{} is '{}' and expects '{theirs}'", c.name, c.local.own_id(self.local.ip()))
            });
            let configured = configured.collect::<Vec<_>>().join(", ");
            let suite = self.suite.ok_or(IkeError::NotProtected)?;
            let reason = format!(
                "no connection expects '{id}' asking for '{wanted}' with {suite}; configured: {configured}"
            );
            return Err(failed(reason));
        }
        // The connections may differ in what they trust, so more than one may have to be tried; a MAC is tried once.
        let limit = if by_psk { 1 } else { MAX_CANDIDATES };
        let mut refusal = None;
        for conn in fitting.into_iter().take(limit) {
            let own = conn.local.own_id(self.local.ip());
            match self.verify_for(ctx, conn, (own, id), handshake, payloads) {
                Ok(verified) => return Ok(verified),
                Err(error) => {
                    refusal.get_or_insert(error);
                }
            }
        }
        Err(refusal.unwrap_or(IkeError::NotProtected))
    }

    /// Whether a connection may be for this peer, which asks for `wanted`. The suite is settled; a connection that would not
    /// have allowed it is no candidate any more.
    fn fits(&self, conn: &Connection, id: &Identification, wanted: Option<&Identification>) -> bool {
        let Some(suite) = self.suite else { return false };
        conn.accepts(self.local.ip(), self.remote.ip())
            && (conn.nat_traversal || !self.nat_t)
            && conn.remote.id.as_ref().is_none_or(|want| want.allows(id))
            && wanted.is_none_or(|want| want.same(&conn.local.own_id(self.local.ip())))
            && conn.proposals.iter().any(|p| {
                p.ciphers.contains(&suite.cipher)
                    && suite.integrity.is_none_or(|i| p.integrity.contains(&i))
                    && p.prfs.contains(&suite.prf)
                    && p.kes.contains(&suite.ke)
            })
    }

    /// Checks the initiator's proof as one connection wants it, and only then makes our own.
    fn verify_for(
        &self,
        ctx: &Ctx<'_>,
        conn: &Arc<Connection>,
        (local_id, id): (Identification, &Identification),
        handshake: &Handshake,
        payloads: &[Payload],
    ) -> Result<Verified, IkeError> {
        let keys = self.keys()?;
        let mut wishes = handshake.wishes.clone();
        wishes.read(payloads);
        let (ours, theirs) = (&conn.local, &conn.remote);
        let parties = Parties { conn, ours, theirs, keys, wishes: &wishes, local: &local_id, remote: id };
        let octets = handshake.of_initiator(keys, id);
        let peer =
            parties.verify(ctx, &octets, payloads).map_err(|error| rounds::in_round(conn, 1, error))?;
        rounds::check_support(conn, payloads)?;
        rounds::check_end(conn, 1, payloads)?;
        // Only now is our own secret put to use.
        let octets = handshake.of_responder(keys, &local_id);
        let (certs, auth) = parties.prove(ctx, &octets)?;
        let mut proof = vec![Payload::IdR(local_id.clone())];
        proof.extend(certs);
        proof.push(Payload::Auth(auth));
        proof.extend(rounds::another(!conn.further_local.is_empty()));
        Ok(Verified { conn: Arc::clone(conn), ours: vec![local_id], peer, proof, request: None })
    }

    fn accept(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        verified: Verified,
    ) -> Result<(), IkeError> {
        let Verified { conn, mut ours, peer, proof: mut answer, request } = verified;
        let payloads = request.as_deref().unwrap_or(payloads);
        let local_id = ours.pop().ok_or(rule("we have proven nothing"))?;
        childless::accept(&conn, payloads)?;
        let lost = notify(payloads, NotifyType::INITIAL_CONTACT).is_some();
        if conn.unique == Unique::Keep && !lost {
            self.check_alone(ctx, &peer, &local_id)?;
        }
        let handshake = match std::mem::replace(&mut self.state, State::Established(peer.clone())) {
            State::HalfOpen(handshake) => *handshake,
            State::AuthServing(serving) => serving.into_handshake(),
            _ => return Ok(()),
        };
        self.conn = conn;
        self.local_id = Some(local_id);
        self.earlier_ids = ours.into();
        self.mobility = Mobility::new(&self.conn, OriginalInitiator::Peer);
        let mobility = self.answer_mobility(ctx, payloads)?;
        if handshake.elsewhere && self.mobility.version != Version::None {
            self.mobility.checks.remove(&self.remote);
            self.want_checks(ctx.now);
        }
        self.come_up(ctx, peer, lost);
        answer.extend(self.answer_configuration(ctx, payloads, lost));
        answer.extend(mobility);
        answer.extend(self.authentication_lifetime());
        if rules::proposals(payloads).is_some() {
            answer.extend(self.answer_child(ctx, payloads, &handshake.ni, &handshake.nr));
        }
        self.unconfirmed = self.children.iter().find(|c| c.resource.unheard).map(|c| c.id);
        if self.unconfirmed.is_some() || self.reauth.awaits_peer() {
            // Its answer says that the peer has ours. Some discard what comes while they still work on that.
            self.tasks.push_at(ctx.now + CONFIRM, Task::Liveness);
        }
        self.send_response(ctx, ExchangeType::IKE_AUTH, &answer)
    }

    /// No other IKE SA between the same two may be there, unless it comes from the same address: then it is a new proof
    /// (RFC 7296 2.8.3).
    fn check_alone(
        &self,
        ctx: &Ctx<'_>,
        peer: &AuthenticatedPeer,
        local_id: &Identification,
    ) -> Result<(), IkeError> {
        let other = |sa: &&IkeSa| {
            sa.rekeyed_by.is_none()
                && sa.peer().is_some_and(|known| known.id().same(peer.id()))
                && sa.local_id.as_ref().is_some_and(|id| id.same(local_id))
                && sa.remote.ip() != self.remote.ip()
        };
        match ctx.others.of_peer(peer.id()).find(other) {
            Some(sa) => Err(IkeError::NotUnique(peer.id().clone(), sa.remote.ip())),
            None => Ok(()),
        }
    }
}
