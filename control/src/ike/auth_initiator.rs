//! IKE_AUTH as its initiator (RFC 7296 1.2, 2.15), in as many rounds as the connection has (RFC 4739). Of each response the
//! responder's round comes first: nothing further of ours is proven to somebody who is not the one.

use std::sync::Arc;

use mobikex_common::wire::ike::{
    AuthPayload, ExchangeType, Identification, Notify, NotifyType, Payload, PayloadType,
};
use tracing::info;

use super::auth::AuthenticatedPeer;
use super::child::ChildOffer;
use super::create_child::request_payloads;
use super::crypt::Protected;
use super::ctx::Ctx;
use super::eap_initiator::{self, EapSent, is_alone};
use super::error::IkeError;
use super::prove::{self, Parties};
use super::rounds;
use super::rules::{self, error_notify};
use super::sa::{AuthSent, Gone, Handshake, IkeSa, State};
use super::tasks::Task;
use super::window::Exchange;

/// How a round of ours begins.
struct Opening {
    id: Identification,
    certs: Vec<Payload>,
    /// Without AUTH we ask for EAP (RFC 7296 2.16).
    auth: Option<AuthPayload>,
    eap: Option<Box<EapSent>>,
}

const fn rule(story: &'static str) -> IkeError {
    IkeError::Rule { exchange: "IKE_AUTH", story }
}

impl AuthSent {
    /// Who the responder is in its first round.
    pub(super) fn first_responder(&self) -> Option<&Identification> {
        let proven = self.peer.as_ref().and_then(|peer| peer.rounds().first().map(|first| first.ike_id()));
        proven.or(self.responder.as_ref())
    }
}

impl IkeSa {
    pub(super) fn auth_sent(&self) -> Result<&AuthSent, IkeError> {
        match &self.state {
            State::AuthSent(sent) => Ok(sent),
            _ => Err(rule("the response was not expected")),
        }
    }

    pub(super) fn auth_sent_mut(&mut self) -> Result<&mut AuthSent, IkeError> {
        match &mut self.state {
            State::AuthSent(sent) => Ok(sent),
            _ => Err(rule("the response was not expected")),
        }
    }

    /// The first request: it also says what else is wanted.
    pub(super) fn send_auth(&mut self, ctx: &mut Ctx<'_>, handshake: Handshake) -> Result<(), IkeError> {
        // A pattern names nobody.
        let expected = self.conn.remote.id.clone().filter(|id| !id.is_pattern());
        let remote_id = expected.clone().unwrap_or_else(|| Identification::from_ip(self.remote.ip()));
        let Opening { id, certs, auth, eap } = self.open_round(ctx, &handshake, 0, &remote_id)?;
        let mut payloads = vec![Payload::IdI(id.clone())];
        payloads.extend(certs);
        if self.first_contact {
            payloads.push(Payload::Notify(Notify::new(NotifyType::INITIAL_CONTACT, Vec::new())));
        }
        payloads.extend(prove::ask(&ctx.config.credentials, std::iter::once(&self.conn)));
        payloads.extend(expected.map(Payload::IdR));
        payloads.extend(self.prove_or_ask(auth, 1));
        payloads.extend(eap.is_some().then(|| eap_initiator::offer(&self.conn)).flatten());
        payloads.extend(rounds::announce(std::iter::once(&self.conn)));
        let offer =
            if self.childless { None } else { Some(Box::new(self.offer_first_child(ctx, &handshake.ni)?)) };
        if let Some(offer) = &offer {
            payloads.extend(self.ask_configuration(ctx));
            payloads.extend(request_payloads(offer, false));
        }
        payloads.extend(self.offer_mobility(ctx));
        self.local_id = Some(id.clone());
        if offer.is_some() {
            info!(target: "IKE", "establishing CHILD_SA {}", self.name());
        }
        self.state = State::AuthSent(Box::new(AuthSent {
            handshake,
            child: offer,
            ours: vec![id],
            eap,
            theirs: 0,
            responder: None,
            peer: None,
        }));
        self.send_request(ctx, ExchangeType::IKE_AUTH, Exchange::Auth, &payloads).map(drop)
    }

    /// The Child SA that IKE_AUTH sets up.
    fn offer_first_child(&mut self, ctx: &mut Ctx<'_>, ni: &[u8]) -> Result<ChildOffer, IkeError> {
        let first = self.wanted.pop_front();
        let config = first.and_then(|name| self.conn.children.iter().find(|c| c.name == name));
        let Some(config) = config.or_else(|| self.conn.children.first()).cloned() else {
            return Err(IkeError::TsUnacceptable("the connection has no children".into()));
        };
        self.offer_child(ctx, Arc::new(config), None, None, ni.to_vec())
    }

    /// Begins the round of ours of this index, toward `remote`.
    fn open_round(
        &self,
        ctx: &Ctx<'_>,
        handshake: &Handshake,
        index: usize,
        remote: &Identification,
    ) -> Result<Opening, IkeError> {
        let conn = &self.conn;
        let ours = conn.locals().nth(index).ok_or(rule("we have no further round"))?;
        let id = ours.own_id(self.local.ip());
        let eap = EapSent::new(conn, ours, &id)?;
        if eap.is_some() {
            return Ok(Opening { id, certs: Vec::new(), auth: None, eap });
        }
        let (keys, wishes) = (self.keys()?, &handshake.wishes);
        let parties = Parties { conn, ours, theirs: &conn.remote, keys, wishes, local: &id, remote };
        let (certs, auth) = parties.prove(ctx, &handshake.of_initiator(keys, &id))?;
        Ok(Opening { id, certs, auth: Some(auth), eap })
    }

    /// AUTH of the round of ours after which there are `done`, and whether another one follows.
    pub(super) fn prove_or_ask(&self, auth: Option<AuthPayload>, done: usize) -> Vec<Payload> {
        let more = auth.is_some() && done < self.conn.locals().count();
        auth.map(Payload::Auth).into_iter().chain(rounds::another(more)).collect()
    }

    /// IKE_AUTH response: nothing of it counts before the peer's AUTH is verified, except that it refuses us.
    pub(super) fn handle_auth_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        _proof: Protected,
    ) -> Result<(), Gone> {
        let peer = match self.go_on(ctx, payloads) {
            Ok(Some(peer)) => peer,
            Ok(None) => return Ok(()),
            Err(IkeError::Notified(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD)) if self.can_do_without() => {
                return Err(self.start_without_mobike(ctx));
            }
            Err(error) => {
                self.unexpected_nat =
                    matches!(error, IkeError::Notified(NotifyType::UNEXPECTED_NAT_DETECTED));
                let mut reason = error.to_string();
                match error {
                    IkeError::Notified(NotifyType::AUTHENTICATION_FAILED) => reason += &self.claimed(),
                    IkeError::Notified(_) => {}
                    _ => self.reject(ctx),
                }
                return Err(self.close(ctx, &reason, false));
            }
        };
        let State::AuthSent(sent) = std::mem::replace(&mut self.state, State::Established(peer.clone()))
        else {
            return Ok(());
        };
        let AuthSent { handshake, child, mut ours, .. } = *sent;
        ours.pop();
        self.earlier_ids = ours.into();
        if let Err(error) = self.conclude_mobility(ctx, payloads) {
            // The peer believes in the SA, so it must hear that there is none.
            child.into_iter().for_each(|offer| ctx.spis.release(offer.spi_in));
            self.wanted.clear();
            self.tasks.clear();
            self.add_task(ctx, Task::DeleteIke(error.to_string()));
            return Ok(());
        }
        self.come_up(ctx, peer, false);
        if let Err(reason) = self.take_configuration(ctx, payloads) {
            child.into_iter().for_each(|offer| ctx.spis.release(offer.spi_in));
            self.wanted.clear();
            self.tasks.clear();
            self.add_task(ctx, Task::DeleteIke(reason));
            return Ok(());
        }
        self.obey_lifetime(ctx, payloads);
        if let Some(offer) = child {
            // Where there is an AUTH, this one is about the offer of MOBIKE alone.
            let refusal = NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD;
            let of_mobike = |p: &&Payload| matches!(p, Payload::Notify(n) if n.kind == refusal);
            let payloads: Vec<Payload> = payloads.iter().filter(|p| !of_mobike(p)).cloned().collect();
            self.finish_child(ctx, *offer, &payloads, &handshake.nr);
        }
        for name in std::mem::take(&mut self.wanted) {
            self.tasks.push(Task::CreateChild(name));
        }
        self.run_tasks(ctx);
        Ok(())
    }

    /// The responder, which may believe in the IKE SA by now, learns that it is not accepted, and not why (RFC 7296 2.21.2). Nobody
    /// waits for its answer.
    fn reject(&mut self, ctx: &mut Ctx<'_>) {
        let refusal = [Payload::Notify(Notify::new(NotifyType::AUTHENTICATION_FAILED, Vec::new()))];
        info!(target: "IKE", "{} sending AUTHENTICATION_FAILED", self.name());
        if let Err(error) =
            self.send_request(ctx, ExchangeType::INFORMATIONAL, Exchange::Liveness(None), &refusal)
        {
            info!(target: "IKE", "{} {error}", self.name());
        }
    }

    /// One response: the responder's part of it, then ours. The peer, once both sides are at their end.
    fn go_on(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
    ) -> Result<Option<AuthenticatedPeer>, IkeError> {
        rules::check_single("IKE_AUTH", payloads)?;
        self.take_round(ctx, payloads)?;
        let in_eap = match self.auth_sent_mut()?.eap.take() {
            Some(eap) => self.step_eap(ctx, eap, payloads)?,
            None => None,
        };
        let request = match in_eap {
            Some(request) => request,
            None => match self.next_round(ctx, payloads)? {
                Some(request) => request,
                None => {
                    let peer = self.auth_sent_mut()?.peer.take();
                    return peer.map(Some).ok_or(rule("the responder has proven nothing"));
                }
            },
        };
        if self.conn.has_rounds() && payloads.iter().any(|p| p.kind() == PayloadType::SA) {
            return Err(rule("the response has SA before the last round"));
        }
        self.send_request(ctx, ExchangeType::IKE_AUTH, Exchange::Auth, &request)?;
        Ok(None)
    }

    /// The responder's round in a response, if there has to be one.
    fn take_round(&mut self, ctx: &Ctx<'_>, payloads: &[Payload]) -> Result<(), IkeError> {
        let conn = Arc::clone(&self.conn);
        let sent = self.auth_sent()?;
        let theirs = sent.theirs;
        if is_alone(&conn) {
            // It may send AUTH all the same; this connection has nothing to check it with, and need not.
            return if sent.responder.is_none() { self.hear_responder(payloads) } else { Ok(()) };
        }
        if theirs == conn.remotes().count() {
            return rounds::check_end(&conn, theirs, payloads);
        }
        if sent.eap.as_ref().is_some_and(|eap| eap.is_proven()) {
            return Err(rule("the end of EAP comes before the last round of the responder"));
        }
        let of_round = |error| rounds::in_round(&conn, theirs + 1, error);
        let (id, peer) = self.verify_responder(ctx, payloads).map_err(of_round)?;
        rounds::check_end(&conn, theirs + 1, payloads)?;
        let sent = self.auth_sent_mut()?;
        sent.peer = Some(peer.after(sent.peer.take()));
        sent.responder = Some(id);
        sent.theirs += 1;
        Ok(())
    }

    /// The identity of a responder that is to prove it in EAP.
    fn hear_responder(&mut self, payloads: &[Payload]) -> Result<(), IkeError> {
        let id = match (rules::id_r(payloads), error_notify(payloads)) {
            (Some(id), _) => id.clone(),
            (None, Some(error)) => return Err(IkeError::Notified(error.kind)),
            (None, None) => return Err(rule("no IDr")),
        };
        rounds::check_id(&self.conn.remote, &id)?;
        self.auth_sent_mut()?.responder = Some(id);
        Ok(())
    }

    fn verify_responder(
        &self,
        ctx: &Ctx<'_>,
        payloads: &[Payload],
    ) -> Result<(Identification, AuthenticatedPeer), IkeError> {
        let sent = self.auth_sent()?;
        if let (None, Some(error)) = (rules::auth(payloads), error_notify(payloads)) {
            return Err(IkeError::Notified(error.kind));
        }
        rules::check(ExchangeType::IKE_AUTH, true, payloads)?;
        let id = rules::id_r(payloads).ok_or(rule("no IDr"))?;
        let (conn, keys, wishes) = (&self.conn, self.keys()?, &sent.handshake.wishes);
        let theirs = conn.remotes().nth(sent.theirs).ok_or(rule("the responder has no further round"))?;
        rounds::check_id(theirs, id)?;
        let local = sent.ours.last().ok_or(rule("the response was not expected"))?;
        let octets = sent.handshake.of_responder(keys, id);
        let parties = Parties { conn, ours: &conn.local, theirs, keys, wishes, local, remote: id };
        Ok((id.clone(), parties.verify(ctx, &octets, payloads)?))
    }

    /// A round of ours is over. The next request, or nothing if this response is the last one.
    fn next_round(&mut self, ctx: &Ctx<'_>, payloads: &[Payload]) -> Result<Option<Vec<Payload>>, IkeError> {
        let sent = self.auth_sent()?;
        let index = sent.ours.len();
        let left = (index < self.conn.locals().count(), sent.theirs < self.conn.remotes().count());
        // An AUTH that was verified says that it is the Child SA's. In a last response there need not be one.
        if let Some(error) = error_notify(payloads)
            && (left != (false, false) || rules::auth(payloads).is_none() && !rules::is_of_child(error.kind))
        {
            return Err(IkeError::Notified(error.kind));
        }
        match left {
            (false, false) => Ok(None),
            // The responder goes on, and has to be asked (RFC 4739 2.5).
            (false, true) => Ok(Some(Vec::new())),
            (true, _) => {
                let remote = sent.responder.clone().ok_or(rule("no IDr"))?;
                let Opening { id, certs, auth, eap } =
                    self.open_round(ctx, &sent.handshake, index, &remote)?;
                let mut request = vec![Payload::IdI(id.clone())];
                request.extend(certs);
                request.extend(self.prove_or_ask(auth, index + 1));
                self.local_id = Some(id.clone());
                let sent = self.auth_sent_mut()?;
                sent.ours.push(id);
                sent.eap = eap;
                Ok(Some(request))
            }
        }
    }

    /// Who we said that we are, and whom we asked for: all that is known here about a refusal of IKE_AUTH.
    fn claimed(&self) -> String {
        let (index, theirs) = match &self.state {
            State::AuthSent(sent) => (sent.ours.len().saturating_sub(1), sent.theirs),
            _ => (0, 0),
        };
        let ours = self.local_id.as_ref().map_or("%any".to_string(), ToString::to_string);
        let expected = self.conn.remotes().nth(theirs).or(self.conn.remotes().last());
        let theirs = expected.and_then(|round| round.id.as_ref());
        let theirs = theirs.map_or("%any".to_string(), ToString::to_string);
        let method = self.conn.locals().nth(index).map_or("nothing", rounds::by);
        let round = match self.conn.locals().count() {
            1 => String::new(),
            total => format!(" in round {} of {total}", index + 1),
        };
        format!(
            "; we are '{ours}' by {method}{round} and asked for '{theirs}'; what does not fit stands in the peer's log"
        )
    }
}
