//! IKE_AUTH with EAP as its initiator: the responder proves itself first, then we do, then both have the same key.

use mobikex_common::wire::ike::{ExchangeType, Identification, Notify, NotifyType, Payload};
use tracing::info;

use super::auth::AuthenticatedPeer;
use super::ctx::Ctx;
use super::eap::{self, Resources};
use super::error::IkeError;
use super::rules::{self, error_notify};
use super::sa::{Exchange, IkeSa, State};
use crate::config::{Connection, Method};
use crate::eap::{Kind, Peer, Proven, Reaction};

/// Where we are.
pub(super) struct EapSent {
    peer: Peer,
    stage: Stage,
}

enum Stage {
    /// The responder has said nothing yet.
    First,
    /// It has proven itself by its own AUTH; without that, it will do so in EAP alone (RFC 5998).
    Asked(Identification, Option<AuthenticatedPeer>),
    /// EAP is over, and our AUTH is sent.
    Proven(Identification, Option<AuthenticatedPeer>, Box<Proven>),
}

impl EapSent {
    /// For a connection by which we prove ourselves in EAP.
    ///
    /// # Errors
    /// When the responder is to use EAP and we are not: EAP asks initiators alone.
    pub(super) fn new(conn: &Connection, local: &Identification) -> Result<Option<Box<Self>>, IkeError> {
        let Some(kinds) = conn.local.eap() else {
            return match is_alone(conn) {
                true => Err(IkeError::Authentication(
                    "the connection expects EAP of the peer, so the peer has to initiate it".into(),
                )),
                false => Ok(None),
            };
        };
        let fits = |kind: &Kind| !is_alone(conn) || kind.is_mutual();
        let kinds = kinds.iter().copied().filter(fits).collect();
        let peer = Peer::new(conn.local.eap_name(local), kinds);
        Ok(Some(Box::new(Self { peer, stage: Stage::First })))
    }
}

/// The responder too proves itself in EAP alone.
fn is_alone(conn: &Connection) -> bool {
    matches!(conn.remote.method, Method::Eap(_))
}

/// EAP_ONLY_AUTHENTICATION (RFC 5998 3), where we can do without AUTH.
pub(super) fn offer(conn: &Connection) -> Option<Payload> {
    is_alone(conn).then(|| Payload::Notify(Notify::new(NotifyType::EAP_ONLY_AUTHENTICATION, Vec::new())))
}

const fn rule(story: &'static str) -> IkeError {
    IkeError::Rule { exchange: "IKE_AUTH", story }
}

impl IkeSa {
    /// A response of any round. `None` while more are to come.
    pub(super) fn handle_eap_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
    ) -> Result<Option<AuthenticatedPeer>, IkeError> {
        rules::check_single("IKE_AUTH", payloads)?;
        let State::AuthSent(sent) = &mut self.state else {
            return Err(rule("the response was not expected"));
        };
        let Some(mut eap) = sent.eap.take() else { return Err(rule("the response was not expected")) };
        let (id, responder) = match eap.stage {
            Stage::First => self.verify_before_eap(ctx, payloads)?,
            Stage::Asked(id, responder) => (id, responder),
            Stage::Proven(id, responder, proven) => {
                return self.conclude_eap(payloads, &id, responder, &proven).map(Some);
            }
        };
        let Some(packet) = rules::eap(payloads) else {
            return Err(match error_notify(payloads) {
                Some(error) => IkeError::Notified(error.kind),
                None => rule("the response needs EAP until EAP is over"),
            });
        };
        let State::AuthSent(sent) = &self.state else { return Err(rule("the response was not expected")) };
        let means = Resources {
            config: ctx.config,
            unix: ctx.unix,
            conn: &self.conn,
            local: &sent.local_id,
            responder: Some(&id),
        };
        let payload = match eap.peer.handle(&means, ctx.rng, packet)? {
            Reaction::Say(packet) => {
                eap.stage = Stage::Asked(id, responder);
                Payload::Eap(packet)
            }
            Reaction::Success(proven) => {
                info!(target: "IKE", "EAP method {} succeeded, MSK established", proven.kind);
                let (keys, handshake) = (self.keys()?, &sent.handshake);
                let octets = handshake.of_initiator(keys, &sent.local_id);
                let auth = eap::sign(keys.prf, &proven, &octets);
                info!(target: "IKE", "authentication of '{}' (myself) with EAP", sent.local_id);
                eap.stage = Stage::Proven(id, responder, Box::new(proven));
                Payload::Auth(auth)
            }
        };
        if let State::AuthSent(sent) = &mut self.state {
            sent.eap = Some(eap);
        }
        self.send_request(ctx, ExchangeType::IKE_AUTH, Exchange::Auth, &[payload])?;
        Ok(None)
    }

    /// Nothing of ours is said in EAP before the responder has proven itself, or is to do so in EAP.
    fn verify_before_eap(
        &self,
        ctx: &Ctx<'_>,
        payloads: &[Payload],
    ) -> Result<(Identification, Option<AuthenticatedPeer>), IkeError> {
        if !is_alone(&self.conn) {
            let peer = self.verify_responder(ctx, payloads)?;
            return Ok((peer.id().clone(), Some(peer)));
        }
        // It may have sent AUTH all the same; this connection has nothing to check it with, and need not.
        let id = match (rules::id_r(payloads), error_notify(payloads)) {
            (Some(id), _) => id,
            (None, Some(error)) => return Err(IkeError::Notified(error.kind)),
            (None, None) => return Err(rule("no IDr")),
        };
        self.expect_responder(id)?;
        Ok((id.clone(), None))
    }

    /// The last response: the responder has the key of EAP too.
    fn conclude_eap(
        &self,
        payloads: &[Payload],
        id: &Identification,
        responder: Option<AuthenticatedPeer>,
        proven: &Proven,
    ) -> Result<AuthenticatedPeer, IkeError> {
        let State::AuthSent(sent) = &self.state else { return Err(rule("the response was not expected")) };
        let Some(auth) = rules::auth(payloads) else {
            return Err(match error_notify(payloads) {
                Some(error) => IkeError::Notified(error.kind),
                None => rule("the response needs AUTH after EAP"),
            });
        };
        let (keys, handshake) = (self.keys()?, &sent.handshake);
        let octets = handshake.of_responder(keys, id);
        let in_eap = eap::verify(keys.prf, proven, id.clone(), &octets, auth)?;
        Ok(responder.unwrap_or(in_eap))
    }
}
