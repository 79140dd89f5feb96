//! IKE_AUTH with EAP as its responder. We prove ourselves first, so that who asks for a password is known; the initiator is
//! somebody only once EAP has come to its end and its AUTH shows the key.

use std::sync::Arc;

use mobikex_common::wire::ike::{ExchangeType, Identification, Notify, NotifyType, Payload, PayloadType};
use tracing::info;

use super::ctx::Ctx;
use super::eap::{self, Resources};
use super::error::IkeError;
use super::prove::{self, Parties};
use super::responder::Verified;
use super::rules::{self, notify};
use super::sa::{Gone, Handshake, IkeSa, State};
use crate::config::{Connection, EapId};
use crate::eap::{Asks, Kind, Proven, Server, Turn, name_of};

/// An initiator in the midst of EAP.
pub(super) struct EapServing {
    handshake: Handshake,
    conn: Arc<Connection>,
    local_id: Identification,
    /// What the initiator calls itself in IKE.
    id: Identification,
    /// The first request: what it wants besides is answered at the end.
    request: Vec<Payload>,
    server: Server,
    /// Whom EAP has shown it to be; this counts with AUTH alone.
    proven: Option<(Identification, Proven)>,
}

impl EapServing {
    /// What IKE_SA_INIT has left.
    pub(super) fn into_handshake(self) -> Handshake {
        self.handshake
    }

    /// The initiator speaks again, from somewhere else or not.
    pub(super) fn heard(&mut self, elsewhere: bool) {
        self.handshake.elsewhere = elsewhere;
    }
}

const fn rule(story: &'static str) -> IkeError {
    IkeError::Rule { exchange: "IKE_AUTH", story }
}

/// How the initiator's name becomes known.
fn asks(conn: &Connection, id: &Identification) -> Asks {
    match (&conn.remote.eap_id, &conn.remote.id) {
        (EapId::Any, _) => Asks::Identity(None),
        (EapId::Name(name), _) => Asks::Identity(Some(name.clone().into_bytes())),
        // Where the connection is for certain identities, the one in IKE must not be another than that in EAP.
        (EapId::Unset, Some(_)) => Asks::Known(name_of(id)),
        (EapId::Unset, None) => Asks::Nothing,
    }
}

impl IkeSa {
    /// A first request without AUTH.
    pub(super) fn start_eap(&mut self, ctx: &mut Ctx<'_>, payloads: &[Payload]) -> Result<(), Gone> {
        self.try_start_eap(ctx, payloads).map_err(|error| self.refuse(ctx, &error))
    }

    fn try_start_eap(&mut self, ctx: &mut Ctx<'_>, payloads: &[Payload]) -> Result<(), IkeError> {
        rules::check_single("IKE_AUTH", payloads)?;
        let needs = [PayloadType::SA, PayloadType::TSI, PayloadType::TSR];
        if needs.iter().any(|kind| !payloads.iter().any(|p| p.kind() == *kind)) {
            return Err(rule("the request for EAP needs SA, TSi and TSr, once each"));
        }
        let id = rules::id_i(payloads).ok_or(rule("no IDi"))?;
        let conn = self.connection_for_eap(ctx, id, payloads)?;
        let local_id = prove::own_id(&conn, self.local.ip());
        let State::HalfOpen(handshake) = &mut self.state else {
            return Err(rule("the request was not expected"));
        };
        handshake.wishes.read(payloads);
        let mut answer = vec![Payload::IdR(local_id.clone())];
        let mut kinds: Vec<Kind> = conn.remote.eap().unwrap_or_default().to_vec();
        if conn.local.eap().is_some() {
            kinds.retain(|kind| kind.is_mutual());
        } else {
            let keys = self.keys.as_ref().ok_or(IkeError::NotProtected)?;
            let parties =
                Parties { conn: &conn, keys, wishes: &handshake.wishes, local: &local_id, remote: id };
            let octets = handshake.of_responder(keys, &local_id);
            let (certs, auth) = parties.prove(ctx, &octets)?;
            answer.extend(certs);
            answer.push(Payload::Auth(auth));
        }
        let means =
            Resources { config: ctx.config, unix: ctx.unix, conn: &conn, local: &local_id, responder: None };
        let (server, first) = Server::start(asks(&conn, id), &kinds, &means, ctx.rng)?;
        answer.push(Payload::Eap(first));
        let handshake = std::mem::take(handshake);
        self.state = State::EapServing(Box::new(EapServing {
            handshake: *handshake,
            conn,
            local_id,
            id: id.clone(),
            request: payloads.to_vec(),
            server,
            proven: None,
        }));
        self.send_response(ctx, ExchangeType::IKE_AUTH, &answer)
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
        let failed = |reason: String| IkeError::Authentication(reason);
        if fitting.is_empty() {
            return Err(failed(format!("no connection expects '{id}' by EAP")));
        }
        // Without AUTH of ours only who has said that it can do so (RFC 5998 3).
        let able = fitting.into_iter().filter(|conn| alone || conn.local.eap().is_none());
        let best = able.min_by_key(|conn| conn.remote.id.as_ref().map_or(2, |id| u8::from(id.is_pattern())));
        best.cloned().ok_or_else(|| {
            failed(format!("configured EAP-only authentication, but '{id}' does not support it"))
        })
    }

    /// A request of a later round.
    pub(super) fn handle_eap_request(&mut self, ctx: &mut Ctx<'_>, payloads: &[Payload]) -> Result<(), Gone> {
        let State::EapServing(serving) = &mut self.state else { return Ok(()) };
        let wrong = match (rules::check_single("IKE_AUTH", payloads), &serving.proven) {
            (Err(error), _) => Some(error),
            (Ok(()), Some(_)) => {
                let verified = self.verify_after_eap(payloads);
                return match verified {
                    Ok((verified, request)) => self.conclude(ctx, &request, verified),
                    Err(error) => Err(self.refuse(ctx, &error)),
                };
            }
            (Ok(()), None) => None,
        };
        let packet = rules::eap(payloads).ok_or(rule("the request needs EAP until EAP is over"));
        let packet = match wrong.map_or(packet, Err) {
            Ok(packet) => packet,
            Err(error) => return Err(self.refuse(ctx, &error)),
        };
        let means = Resources {
            config: ctx.config,
            unix: ctx.unix,
            conn: &serving.conn,
            local: &serving.local_id,
            responder: None,
        };
        let (packet, failure) = match serving.server.handle(&means, ctx.rng, packet) {
            Turn::Request(packet) => (packet, None),
            Turn::Success(packet, user, proven) => {
                info!(target: "IKE", "EAP method {} succeeded, MSK established", proven.kind);
                serving.proven = Some((user, proven));
                (packet, None)
            }
            Turn::Failure(packet, reason) => (packet, Some(reason)),
        };
        let mut answer = vec![Payload::Eap(packet)];
        if failure.is_some() {
            answer.push(Payload::Notify(Notify::new(NotifyType::AUTHENTICATION_FAILED, Vec::new())));
        }
        let sent = self.send_response(ctx, ExchangeType::IKE_AUTH, &answer);
        match (failure, sent) {
            (Some(reason), _) => {
                info!(target: "IKE", "EAP authentication failed, sending EAP failure");
                Err(self.close(ctx, &IkeError::from(reason).to_string(), false))
            }
            (None, Err(error)) => Err(self.close(ctx, &error.to_string(), false)),
            (None, Ok(())) => Ok(()),
        }
    }

    /// The request after EAP: AUTH from its key, and then ours.
    fn verify_after_eap(&mut self, payloads: &[Payload]) -> Result<(Verified, Vec<Payload>), IkeError> {
        let keys = self.keys.as_ref().ok_or(IkeError::NotProtected)?;
        let State::EapServing(serving) = &mut self.state else {
            return Err(rule("the request was not expected"));
        };
        let auth = rules::auth(payloads).ok_or(rule("the request needs AUTH after EAP"))?;
        let (user, proven) = serving.proven.take().ok_or(rule("AUTH before the end of EAP"))?;
        let handshake = &serving.handshake;
        let octets = handshake.of_initiator(keys, &serving.id);
        let peer = eap::verify(keys.prf, &proven, user, &octets, auth)?;
        let octets = handshake.of_responder(keys, &serving.local_id);
        let auth = eap::sign(keys.prf, &proven, &octets);
        info!(target: "IKE", "authentication of '{}' (myself) with EAP", serving.local_id);
        let verified = Verified {
            conn: Arc::clone(&serving.conn),
            local_id: serving.local_id.clone(),
            peer,
            proof: vec![Payload::Auth(auth)],
        };
        Ok((verified, std::mem::take(&mut serving.request)))
    }
}
