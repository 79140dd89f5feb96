//! IKE_AUTH with EAP as its initiator: the responder proves itself first, then we do, then both have the same key.

use mobikex_common::wire::ike::{Identification, Notify, NotifyType, Payload};
use tracing::info;

use super::ctx::Ctx;
use super::eap::{self, Resources};
use super::error::IkeError;
use super::rules::{self, error_notify};
use super::sa::IkeSa;
use crate::config::{AuthRound, Connection};
use crate::eap::{Kind, Peer, Proven, Reaction};

/// A round of ours in EAP. The responder has proven itself before, or will do so in here alone (RFC 5998).
pub(super) struct EapSent {
    peer: Peer,
    /// EAP is over, and our AUTH is sent.
    proven: Option<Proven>,
}

impl EapSent {
    /// For a round in which we prove ourselves in EAP.
    ///
    /// # Errors
    /// When the responder is to use EAP and we are not: EAP asks initiators alone.
    pub(super) fn new(
        conn: &Connection,
        round: &AuthRound,
        local: &Identification,
    ) -> Result<Option<Box<Self>>, IkeError> {
        let alone = is_alone(conn);
        if !alone && conn.remotes().any(|round| round.eap().is_some()) {
            let reason = "the connection expects EAP of the peer, so the peer has to initiate it";
            return Err(IkeError::Authentication(reason.into()));
        }
        let Some(kinds) = round.eap() else { return Ok(None) };
        let kinds = kinds.iter().copied().filter(|kind: &Kind| !alone || kind.is_mutual()).collect();
        let peer = Peer::new(round.eap_name(local), kinds);
        Ok(Some(Box::new(Self { peer, proven: None })))
    }

    /// Whether EAP is over, so that AUTH of the responder has to be made with its key.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.is_some()
    }
}

/// The responder too proves itself in EAP alone.
pub(super) fn is_alone(conn: &Connection) -> bool {
    !conn.has_rounds() && conn.local.eap().is_some() && conn.remote.eap().is_some()
}

/// EAP_ONLY_AUTHENTICATION (RFC 5998 3), where we can do without AUTH.
pub(super) fn offer(conn: &Connection) -> Option<Payload> {
    is_alone(conn).then(|| Payload::Notify(Notify::new(NotifyType::EAP_ONLY_AUTHENTICATION, Vec::new())))
}

const fn rule(story: &'static str) -> IkeError {
    IkeError::Rule { exchange: "IKE_AUTH", story }
}

impl IkeSa {
    /// A response of a round in EAP, of which the responder's part has been verified. The next request, or nothing once the
    /// round is over.
    pub(super) fn step_eap(
        &mut self,
        ctx: &mut Ctx<'_>,
        mut eap: Box<EapSent>,
        payloads: &[Payload],
    ) -> Result<Option<Vec<Payload>>, IkeError> {
        if let Some(proven) = &eap.proven {
            return self.conclude_eap(payloads, proven).map(|()| None);
        }
        let Some(packet) = rules::eap(payloads) else {
            return Err(match error_notify(payloads) {
                Some(error) => IkeError::Notified(error.kind),
                None => rule("the response needs EAP until EAP is over"),
            });
        };
        let sent = self.auth_sent()?;
        let (local, index) = (sent.ours.last(), sent.ours.len());
        let local = local.ok_or(rule("the response was not expected"))?;
        let means = Resources {
            config: ctx.config,
            unix: ctx.unix,
            ours: self.conn.locals().nth(index - 1).ok_or(rule("the response was not expected"))?,
            theirs: &self.conn.remote,
            local,
            responder: sent.first_responder(),
        };
        let request = match eap.peer.handle(&means, ctx.rng, packet)? {
            Reaction::Say(packet) => vec![Payload::Eap(packet)],
            Reaction::Success(proven) => {
                info!(target: "IKE", "EAP method {} succeeded, MSK established", proven.kind);
                let keys = self.keys()?;
                let auth = eap::sign(keys.prf, &proven, &sent.handshake.of_initiator(keys, local));
                info!(target: "IKE", "authentication of '{local}' (myself) with EAP");
                eap.proven = Some(proven);
                self.prove_or_ask(Some(auth), index)
            }
        };
        self.auth_sent_mut()?.eap = Some(eap);
        Ok(Some(request))
    }

    /// The last response of the round: the responder has the key of EAP too.
    fn conclude_eap(&mut self, payloads: &[Payload], proven: &Proven) -> Result<(), IkeError> {
        let sent = self.auth_sent()?;
        let Some(auth) = rules::auth(payloads) else {
            return Err(match error_notify(payloads) {
                Some(error) => IkeError::Notified(error.kind),
                None => rule("the response needs AUTH after EAP"),
            });
        };
        let id = sent.responder.as_ref().ok_or(rule("no IDr"))?;
        let keys = self.keys()?;
        let octets = sent.handshake.of_responder(keys, id);
        let in_eap = eap::verify(keys.prf, proven, id.clone(), &octets, auth)?;
        let sent = self.auth_sent_mut()?;
        if sent.peer.is_none() {
            (sent.peer, sent.theirs) = (Some(in_eap), 1);
        }
        Ok(())
    }
}
