//! The rounds of IKE_AUTH that a responder is in the midst of (RFC 4739): what each request of the initiator, and each
//! answer of ours, adds to them.

use std::net::IpAddr;
use std::sync::Arc;

use mobikex_common::wire::ike::{Identification, Payload};
use tracing::info;

use super::auth::AuthenticatedPeer;
use super::ctx::Ctx;
use super::eap::{self, Resources};
use super::eap_responder::EapServing;
use super::error::IkeError;
use super::keys::SkKeys;
use super::prove::Parties;
use super::rounds;
use super::rules;
use super::sa::Handshake;
use crate::config::Connection;

/// An initiator in the midst of IKE_AUTH: in EAP, or between rounds.
pub(super) struct AuthServing {
    pub(super) handshake: Handshake,
    pub(super) conn: Arc<Connection>,
    /// The first request.
    pub(super) request: Vec<Payload>,
    /// Who we are in our rounds so far.
    pub(super) ours: Vec<Identification>,
    /// What the initiator calls itself in the latest of its own.
    pub(super) id: Identification,
    /// How many of these are over.
    pub(super) theirs: usize,
    /// What it has proven in them.
    pub(super) peer: Option<AuthenticatedPeer>,
    /// The one that is under way in EAP.
    pub(super) eap: Option<EapServing>,
}

const fn rule(story: &'static str) -> IkeError {
    IkeError::Rule { exchange: "IKE_AUTH", story }
}

impl AuthServing {
    /// What IKE_SA_INIT has left.
    pub(super) fn into_handshake(self) -> Handshake {
        self.handshake
    }

    /// The initiator speaks again, from somewhere else or not.
    pub(super) fn heard(&mut self, elsewhere: bool) {
        self.handshake.elsewhere = elsewhere;
    }

    pub(super) fn is_over(&self) -> bool {
        self.theirs == self.conn.remotes().count()
            && self.ours.len() == self.conn.locals().count()
            && self.eap.is_none()
    }

    /// What EAP works with in the initiator's round that is under way.
    pub(super) fn means<'a>(&'a self, ctx: &Ctx<'a>) -> Result<Resources<'a>, IkeError> {
        Ok(Resources {
            config: ctx.config,
            unix: ctx.unix,
            ours: &self.conn.local,
            theirs: self.conn.remotes().nth(self.theirs).ok_or(rule("the initiator has no further round"))?,
            local: self.ours.first().ok_or(rule("the request was not expected"))?,
            responder: None,
        })
    }

    /// The initiator has proven itself in a round, and says whether it goes on.
    fn proven(&mut self, peer: AuthenticatedPeer, payloads: &[Payload]) -> Result<(), IkeError> {
        self.theirs += 1;
        rounds::check_end(&self.conn, self.theirs, payloads)?;
        self.peer = Some(peer.after(self.peer.take()));
        Ok(())
    }

    /// The initiator begins another round. What of the answer it makes.
    pub(super) fn open(
        &mut self,
        ctx: &mut Ctx<'_>,
        keys: &SkKeys,
        payloads: &[Payload],
    ) -> Result<Vec<Payload>, IkeError> {
        let conn = Arc::clone(&self.conn);
        let id = rules::id_i(payloads).ok_or(rule("the request needs IDi, with which a round begins"))?;
        let theirs = conn.remotes().nth(self.theirs).ok_or(rule("the initiator has no further round"))?;
        rounds::check_id(theirs, id)?;
        self.id = id.clone();
        if rules::auth(payloads).is_none() {
            // RFC 7296 2.16: leaving AUTH out asks for EAP.
            if theirs.eap().is_none() {
                return Err(IkeError::Authentication(format!(
                    "'{id}' asks for EAP, we expect {}",
                    rounds::by(theirs)
                )));
            }
            return self.start_eap(ctx);
        }
        let local = self.ours.last().ok_or(rule("the request was not expected"))?;
        let wishes = &self.handshake.wishes;
        let parties = Parties { conn: &conn, ours: &conn.local, theirs, keys, wishes, local, remote: id };
        let peer = parties.verify(ctx, &self.handshake.of_initiator(keys, id), payloads)?;
        self.proven(peer, payloads)?;
        Ok(Vec::new())
    }

    pub(super) fn start_eap(&mut self, ctx: &mut Ctx<'_>) -> Result<Vec<Payload>, IkeError> {
        let means = self.means(ctx)?;
        let (eap, first) = EapServing::start(&self.conn, means.theirs, &self.id, &means, ctx.rng)?;
        self.eap = Some(eap);
        Ok(vec![Payload::Eap(first)])
    }

    /// EAP is over: the initiator's AUTH from its key, and then ours.
    pub(super) fn after_eap(
        &mut self,
        keys: &SkKeys,
        eap: EapServing,
        payloads: &[Payload],
    ) -> Result<Vec<Payload>, IkeError> {
        let auth = rules::auth(payloads).ok_or(rule("the request needs AUTH after EAP"))?;
        let (user, proven) = eap.proven.ok_or(rule("AUTH before the end of EAP"))?;
        let peer = eap::verify(keys.prf, &proven, user, &self.handshake.of_initiator(keys, &self.id), auth)?;
        self.proven(peer, payloads)?;
        let local = self.ours.last().ok_or(rule("the request was not expected"))?;
        let auth = eap::sign(keys.prf, &proven, &self.handshake.of_responder(keys, local));
        info!(target: "IKE", "authentication of '{local}' (myself) with EAP");
        Ok(vec![Payload::Auth(auth)])
    }

    /// The next round of ours: IDr, certificates, AUTH, and whether another one follows.
    pub(super) fn prove(
        &mut self,
        ctx: &Ctx<'_>,
        keys: &SkKeys,
        at: IpAddr,
    ) -> Result<Vec<Payload>, IkeError> {
        let (conn, index) = (&self.conn, self.ours.len());
        let ours = conn.locals().nth(index).ok_or(rule("we have no further round"))?;
        let local = ours.own_id(at);
        let wishes = &self.handshake.wishes;
        let parties =
            Parties { conn, ours, theirs: &conn.remote, keys, wishes, local: &local, remote: &self.id };
        let (certs, auth) = parties.prove(ctx, &self.handshake.of_responder(keys, &local))?;
        let mut answer = vec![Payload::IdR(local.clone())];
        answer.extend(certs);
        answer.push(Payload::Auth(auth));
        answer.extend(rounds::another(index + 1 < conn.locals().count()));
        self.ours.push(local);
        Ok(answer)
    }
}
