//! IKE_SA_INIT and IKE_AUTH as their responder (RFC 7296 1.2).

use std::net::SocketAddr;
use std::sync::Arc;

use mobikex_common::alg::KeyExchange;
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::{
    AuthMethod, ExchangeType, Identification, Notify, NotifyType, Payload, Proposal,
};
use tracing::info;

use super::auth::AuthenticatedPeer;
use super::childless;
use super::crypt::{self, Envelope, Protected};
use super::ctx::Ctx;
use super::error::IkeError;
use super::fragments::Outgoing;
use super::keys::SkeySeed;
use super::mobility::Mobility;
use super::prove::{self, Parties, Wishes};
use super::roles::OriginalInitiator;
use super::rules::{self, notify};
use super::sa::{Gone, Handshake, IkeSa, NAT_T_PORT, State};
use super::select;
use super::versions::Version;
use crate::config::{Connection, Method, Unique};

/// Both sides' lists, and where they part.
fn explain_refusal(candidates: &[Arc<Connection>], theirs: &[Proposal], remote: SocketAddr) {
    let configured: Vec<_> = candidates.iter().flat_map(|c| select::offer_ike(&c.proposals, &[])).collect();
    info!(target: "CFG", "received proposals: {}", select::describe(theirs));
    info!(target: "CFG", "configured proposals: {}", select::describe(&configured));
    info!(target: "IKE", "no IKE proposal of {remote} is acceptable: {}", select::mismatch(&configured, theirs));
}

/// What became of an IKE_SA_INIT request.
pub(super) enum InitOutcome {
    /// A half-open SA; its answer has been sent.
    Accepted(Box<IkeSa>),
    /// Refused with a notify.
    Refused(Notify),
}

/// An initiator that has proven itself, and our own proof for it.
pub(super) struct Verified {
    pub(super) conn: Arc<Connection>,
    pub(super) local_id: Identification,
    pub(super) peer: AuthenticatedPeer,
    /// What of it the answer holds.
    pub(super) proof: Vec<Payload>,
}

/// The most connections with which an initiator's signature is tried.
const MAX_CANDIDATES: usize = 8;

impl IkeSa {
    /// Answers a first request that has passed the cookie check. `candidates` are the connections that fit the
    /// addresses, in the order of the configuration.
    pub(super) fn respond(
        ctx: &mut Ctx<'_>,
        candidates: &[Arc<Connection>],
        spi_i: IkeSpi,
        addresses: (SocketAddr, SocketAddr),
        nat_t: bool,
        datagram: &[u8],
        payloads: &[Payload],
    ) -> Result<InitOutcome, IkeError> {
        rules::check(ExchangeType::IKE_SA_INIT, false, payloads)?;
        let rule = |story| IkeError::Rule { exchange: "IKE_SA_INIT", story };
        let theirs = rules::proposals(payloads).ok_or_else(|| rule("no SA"))?;
        let (method, public) = rules::key_exchange(payloads).ok_or_else(|| rule("no KE"))?;
        let ni = rules::nonce(payloads).ok_or_else(|| rule("no nonce"))?;
        let sent = KeyExchange::from_transform(method);
        let found = candidates.iter().find_map(|conn| {
            select::choose_ike(&conn.proposals, theirs, 0, sent).map(|(suite, chosen)| (conn, suite, chosen))
        });
        let Some((conn, suite, chosen)) = found else {
            if ctx.notices.allow(ctx.now) {
                explain_refusal(candidates, theirs, addresses.1);
            }
            return Ok(InitOutcome::Refused(Notify::new(NotifyType::NO_PROPOSAL_CHOSEN, Vec::new())));
        };
        if method != suite.ke.transform() {
            if ctx.notices.allow(ctx.now) {
                info!(target: "IKE", "KE method {method} unacceptable, requesting {}", suite.ke);
            }
            let wanted = suite.ke.transform().to_be_bytes().to_vec();
            return Ok(InitOutcome::Refused(Notify::new(NotifyType::INVALID_KE_PAYLOAD, wanted)));
        }
        let ke = PrivateKey::generate(suite.ke, ctx.rng);
        let shared = ke.agree(public)?;
        let nr = ctx.nonce();
        let spi_r = IkeSpi::random(ctx.rng);
        let mut wishes = Wishes::default();
        wishes.read(payloads);
        // Only who has announced hashes hears of ours (RFC 7427 4).
        let hashes = wishes.hashes.is_some().then(|| prove::announce(candidates.iter())).flatten();
        let handshake = Handshake {
            ni: ni.clone(),
            nr: nr.clone(),
            request: datagram.to_vec(),
            response: Vec::new(),
            wishes,
            elsewhere: false,
        };
        let mut sa = Self::new(
            ctx,
            conn.clone(),
            OriginalInitiator::Peer,
            (spi_i, spi_r),
            addresses,
            State::HalfOpen(Box::new(handshake)),
        );
        sa.nat_t = nat_t;
        sa.suite = Some(suite);
        let seed = SkeySeed::initial(suite.prf, ni, &nr, &shared);
        sa.keys = Some(seed.expand(ctx, suite, ni, &nr, spi_i, spi_r)?);
        // The initiator hashed its view with our SPI still zero.
        sa.spi_r = IkeSpi::ZERO;
        let supports_nat = conn.nat_traversal && sa.detect_nat(payloads);
        sa.spi_r = spi_r;
        sa.encap &= supports_nat;
        let mut answer = vec![
            Payload::Sa(vec![select::answer_ike(&suite, &chosen, &[])]),
            Payload::Ke { method, data: ke.public().to_vec() },
            Payload::Nonce(nr),
        ];
        if supports_nat {
            answer.extend(sa.nat_detection(addresses.0, addresses.1));
        }
        answer.extend(prove::ask(&ctx.config.credentials, candidates.iter()));
        answer.extend(hashes);
        answer.extend(sa.agree_on_fragments(payloads));
        answer.extend(childless::supported(conn));
        if ctx.notices.allow(ctx.now) {
            info!(target: "IKE", "{} is initiating an IKE_SA", addresses.1.ip());
            info!(target: "CFG", "{} selected proposal: {suite}", sa.name());
        }
        let envelope = Envelope {
            spi_i,
            spi_r,
            exchange: ExchangeType::IKE_SA_INIT,
            from_initiator: false,
            response: true,
            message_id: 0,
        };
        let response = crypt::plain(&envelope, &answer);
        if let State::HalfOpen(handshake) = &mut sa.state {
            handshake.response = response.clone();
        }
        ctx.transmit(sa.local, sa.remote, nat_t, response.clone());
        sa.last_response = Some(Outgoing::plain(response));
        sa.expected_request = 1;
        Ok(InitOutcome::Accepted(Box::new(sa)))
    }

    /// The initiator may have moved to the port with the marker (RFC 7296 2.23). It has got our answer to what it sent before,
    /// which shows that it is at that address: at another one, or behind a NAT at another port, it need not be.
    pub(super) fn follow_handshake(&mut self, addresses: (SocketAddr, SocketAddr, bool)) {
        let (before, now) = (self.remote, addresses.1);
        (self.local, self.remote, self.nat_t) = addresses;
        let standard = SocketAddr::new(before.ip(), NAT_T_PORT);
        let elsewhere = now != before && now != standard;
        match &mut self.state {
            State::HalfOpen(handshake) => handshake.elsewhere = elsewhere,
            State::EapServing(serving) => serving.heard(elsewhere),
            _ => {}
        }
    }

    /// IKE_AUTH request. The initiator is verified before any secret of ours is used for an answer.
    pub(super) fn handle_auth_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        _proof: Protected,
    ) -> Result<(), Gone> {
        if matches!(self.state, State::EapServing(_)) {
            return self.handle_eap_request(ctx, payloads);
        }
        if rules::auth(payloads).is_none() {
            // RFC 7296 2.16: leaving AUTH out asks for EAP.
            return self.start_eap(ctx, payloads);
        }
        match self.verify_initiator(ctx, payloads) {
            Ok(verified) => self.conclude(ctx, payloads, verified),
            Err(error) => Err(self.refuse(ctx, &error)),
        }
    }

    /// The peer learns only that it failed; the reason is ours to log.
    pub(super) fn refuse(&mut self, ctx: &mut Ctx<'_>, error: &IkeError) -> Gone {
        let kind = match error {
            IkeError::Rule { .. } => NotifyType::INVALID_SYNTAX,
            IkeError::UnexpectedNat => NotifyType::UNEXPECTED_NAT_DETECTED,
            _ => NotifyType::AUTHENTICATION_FAILED,
        };
        let refusal = [Payload::Notify(Notify::new(kind, Vec::new()))];
        let _ = self.send_response(ctx, ExchangeType::IKE_AUTH, &refusal);
        self.close(ctx, &error.to_string(), false)
    }

    /// Takes up an initiator that is verified; `payloads` are those of its first request.
    pub(super) fn conclude(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        verified: Verified,
    ) -> Result<(), Gone> {
        self.accept(ctx, payloads, verified).map_err(|error| self.refuse(ctx, &error))
    }

    /// Finds the connection that expects this peer and checks its AUTH.
    fn verify_initiator(&self, ctx: &Ctx<'_>, payloads: &[Payload]) -> Result<Verified, IkeError> {
        let State::HalfOpen(handshake) = &self.state else {
            return Err(IkeError::Rule { exchange: "IKE_AUTH", story: "the request was not expected" });
        };
        rules::check(ExchangeType::IKE_AUTH, false, payloads)?;
        let rule = |story| IkeError::Rule { exchange: "IKE_AUTH", story };
        let id = rules::id_i(payloads).ok_or_else(|| rule("no IDi"))?;
        let wanted = rules::id_r(payloads);
        let auth = rules::auth(payloads).ok_or_else(|| rule("no AUTH"))?;
        let by_psk = auth.method == AuthMethod::SHARED_KEY_MIC;
        let mut fitting: Vec<_> = ctx.connections.iter().filter(|c| self.fits(c, id, wanted)).collect();
        // One that names the peer beats one that has a pattern for it beats one that takes anybody. Those that expect the
        // peer's method come first; if there are none, the first of the others says what is wrong.
        fitting.sort_by_key(|c| {
            let other_method = match c.remote.method {
                Method::Psk => !by_psk,
                Method::Pubkey(_) => by_psk,
                Method::Eap(_) => true,
            };
            (other_method, c.remote.id.as_ref().map_or(2, |id| u8::from(id.is_pattern())))
        });
        if fitting.is_empty() {
            let wanted = wanted.map_or("%any".to_string(), ToString::to_string);
            let here = |c: &&Arc<Connection>| c.accepts(self.local.ip(), self.remote.ip());
            let configured = ctx.connections.iter().filter(here).take(MAX_CANDIDATES).map(|c| {
                let theirs = c.remote.id.as_ref().map_or("%any".to_string(), ToString::to_string);
                format!("{} is '{}' and expects '{theirs}'", c.name, prove::own_id(c, self.local.ip()))
            });
            let configured = configured.collect::<Vec<_>>().join(", ");
            let suite = self.suite.ok_or(IkeError::NotProtected)?;
            let reason = format!(
                "no connection expects '{id}' asking for '{wanted}' with {suite}; configured: {configured}"
            );
            return Err(IkeError::Authentication(reason));
        }
        // The connections may differ in what they trust, so more than one may have to be tried; a MAC is tried once.
        let limit = if by_psk { 1 } else { MAX_CANDIDATES };
        let mut refusal = None;
        for conn in fitting.into_iter().take(limit) {
            let own = prove::own_id(conn, self.local.ip());
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
    pub(super) fn fits(
        &self,
        conn: &Connection,
        id: &Identification,
        wanted: Option<&Identification>,
    ) -> bool {
        let Some(suite) = self.suite else { return false };
        conn.accepts(self.local.ip(), self.remote.ip())
            && (conn.nat_traversal || !self.nat_t)
            && conn.remote.id.as_ref().is_none_or(|want| want.allows(id))
            && wanted.is_none_or(|want| want.same(&prove::own_id(conn, self.local.ip())))
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
        let parties = Parties { conn, keys, wishes: &wishes, local: &local_id, remote: id };
        let octets = handshake.of_initiator(keys, id);
        let peer = parties.verify(ctx, &octets, payloads)?;
        // Only now is our own secret put to use.
        let octets = handshake.of_responder(keys, &local_id);
        let (certs, auth) = parties.prove(ctx, &octets)?;
        let mut proof = vec![Payload::IdR(local_id.clone())];
        proof.extend(certs);
        proof.push(Payload::Auth(auth));
        Ok(Verified { conn: Arc::clone(conn), local_id, peer, proof })
    }

    fn accept(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        verified: Verified,
    ) -> Result<(), IkeError> {
        let Verified { conn, local_id, peer, proof: mut answer } = verified;
        childless::accept(&conn, payloads)?;
        let lost = notify(payloads, NotifyType::INITIAL_CONTACT).is_some();
        if conn.unique == Unique::Keep && !lost {
            self.check_alone(ctx, &peer, &local_id)?;
        }
        let handshake = match std::mem::replace(&mut self.state, State::Established(peer.clone())) {
            State::HalfOpen(handshake) => *handshake,
            State::EapServing(serving) => serving.into_handshake(),
            _ => return Ok(()),
        };
        self.conn = conn;
        self.local_id = Some(local_id);
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
