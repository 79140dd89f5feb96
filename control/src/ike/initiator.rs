//! IKE_SA_INIT and IKE_AUTH as their initiator (RFC 7296 1.2).

use std::net::SocketAddr;
use std::sync::Arc;

use mobikex_common::addr::Path;
use mobikex_common::alg::KeyExchange;
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::{ExchangeType, Identification, Notify, NotifyType, Payload};
use tracing::{debug, info};

use super::child::ChildOffer;
use super::childless;
use super::create_child::request_payloads;
use super::crypt::Protected;
use super::ctx::{Ctx, Effect, nat_hash};
use super::eap_initiator::{self, EapSent};
use super::error::IkeError;
use super::fragments;
use super::keys::SkeySeed;
use super::prove::{self, Parties, Wishes};
use super::roles::OriginalInitiator;
use super::rules::{self, error_notify, notify};
use super::sa::{AuthSent, Exchange, Gone, Handshake, IkeSa, InitSent, NAT_T_PORT, State, Task};
use super::select;
use crate::config::{Connection, Method, MobikeX};

/// COOKIE and INVALID_KE_PAYLOAD may make us start over this often.
const MAX_ROUNDS: u32 = 4;

impl IkeSa {
    /// Starts a new IKE SA. The first of `wanted` is negotiated in IKE_AUTH; without any the IKE SA is alone, if both sides can.
    pub(super) fn initiate(
        ctx: &mut Ctx<'_>,
        conn: Arc<Connection>,
        pairs: Vec<Path>,
        wanted: Vec<String>,
    ) -> Result<Self, IkeError> {
        let first =
            *pairs.first().ok_or_else(|| IkeError::NoProposal("there is no pair of addresses".into()))?;
        let (local, remote) = (first.local, first.remote);
        let method = conn.proposals.first().and_then(|p| p.kes.first()).copied();
        let method = method.ok_or_else(|| IkeError::NoProposal("the connection has no proposals".into()))?;
        let spi = IkeSpi::random(ctx.rng);
        let state = State::InitSent(Box::new(InitSent {
            ke: PrivateKey::generate(method, ctx.rng),
            method,
            ni: ctx.nonce(),
            request: Vec::new(),
            sent: Vec::new(),
            pairs,
            cookie: None,
            rounds: 0,
        }));
        let mut sa = Self::new(ctx, conn, OriginalInitiator::Us, (spi, IkeSpi::ZERO), (local, remote), state);
        sa.wanted = wanted.into();
        info!(target: "IKE", "initiating IKE_SA {} to {}", sa.name(), remote.ip());
        sa.send_init(ctx)?;
        Ok(sa)
    }

    /// A first message over a pair of addresses.
    fn init_payloads(&self, init: &InitSent, path: Path) -> Vec<Payload> {
        let mut payloads = Vec::new();
        if let Some(cookie) = &init.cookie {
            payloads.push(Payload::Notify(Notify::new(NotifyType::COOKIE, cookie.clone())));
        }
        payloads.push(Payload::Sa(select::offer_ike(&self.conn.proposals, &[])));
        payloads.push(Payload::Ke { method: init.method.transform(), data: init.ke.public().to_vec() });
        payloads.push(Payload::Nonce(init.ni.clone()));
        if self.conn.nat_traversal {
            payloads.extend(self.nat_detection(path.local, path.remote));
        }
        payloads.extend(prove::announce(std::iter::once(&self.conn)));
        payloads.extend(fragments::offer(&self.conn));
        payloads
    }

    fn send_init(&mut self, ctx: &mut Ctx<'_>) -> Result<(), IkeError> {
        let path = self.current();
        let State::InitSent(init) = &self.state else { return Ok(()) };
        let payloads = self.init_payloads(init, path);
        // Every round of IKE_SA_INIT has message ID 0 (RFC 7296 2.2).
        self.next_request = 0;
        let request = self.send_request(ctx, ExchangeType::IKE_SA_INIT, Exchange::Init, &payloads)?;
        if let State::InitSent(init) = &mut self.state {
            let datagram = request.datagrams().concat();
            init.sent = vec![(path, datagram.clone())];
            init.request = datagram;
            init.rounds += 1;
        }
        Ok(())
    }

    /// A first message again, over the next pair of addresses. It names its addresses in NAT_DETECTION, so each pair
    /// has a message of its own.
    pub(super) fn send_init_elsewhere(&mut self, ctx: &mut Ctx<'_>) {
        let State::InitSent(init) = &self.state else { return };
        let attempts = self.pending.as_ref().map_or(0, |p| p.attempts) as usize;
        let Some(path) = init.pairs.get(attempts % init.pairs.len().max(1)).copied() else { return };
        if let Some((_, message)) = init.sent.iter().find(|(p, _)| *p == path) {
            return ctx.transmit(path.local, path.remote, self.nat_t, message.clone());
        }
        debug!(target: "IKE", "{} trying {path}", self.name());
        let message = self.plain_request(&self.init_payloads(init, path));
        ctx.transmit(path.local, path.remote, self.nat_t, message.clone());
        if let State::InitSent(init) = &mut self.state {
            init.sent.push((path, message));
        }
    }

    /// The pair over which a first answer came is the one that works; the peer's AUTH covers what it received there.
    fn settle_pair(&mut self, (local, remote): (SocketAddr, SocketAddr)) {
        let State::InitSent(init) = &mut self.state else { return };
        let found = init.sent.iter().find(|(p, _)| p.local == local && p.remote == remote).cloned();
        if let Some((path, message)) = found {
            init.request = message;
            (self.local, self.remote) = (path.local, path.remote);
        }
    }

    /// Learns from the peer's NAT_DETECTION whether ESP needs UDP. Returns whether the peer can do it.
    pub(super) fn detect_nat(&mut self, payloads: &[Payload]) -> bool {
        self.detect_nat_among(payloads, &[self.local], &[self.remote])
    }

    /// As [`Self::detect_nat`], for a message that was made for one pair of these addresses, ours and the peer's, and may
    /// have come over another one.
    pub(super) fn detect_nat_among(
        &mut self,
        payloads: &[Payload],
        ours: &[SocketAddr],
        theirs: &[SocketAddr],
    ) -> bool {
        let hashes = |kind: NotifyType| {
            payloads.iter().filter_map(move |p| match p {
                // Anything but 20 octets is no hash (RFC 7296 2.23).
                Payload::Notify(n) if n.kind == kind && n.data.len() == 20 => Some(n.data.as_slice()),
                _ => None,
            })
        };
        let supported = hashes(NotifyType::NAT_DETECTION_SOURCE_IP).next().is_some()
            && hashes(NotifyType::NAT_DETECTION_DESTINATION_IP).next().is_some();
        if !supported {
            return false;
        }
        let before = (self.encap, self.behind_nat);
        let (spi_i, spi_r) = (self.spi_i, self.spi_r);
        let hash = |addr| nat_hash(spi_i, spi_r, addr);
        let source = |addr| hashes(NotifyType::NAT_DETECTION_SOURCE_IP).any(|h| h == hash(addr));
        let peer_behind_nat = !theirs.iter().any(|a| source(*a));
        // An all-zero port is how encapsulation is asked for without a NAT.
        let asked = theirs.iter().any(|a| source(SocketAddr::new(a.ip(), 0)));
        self.peer_behind_nat = peer_behind_nat && !asked;
        let destination = |addr| hashes(NotifyType::NAT_DETECTION_DESTINATION_IP).any(|h| h == hash(addr));
        self.behind_nat = !ours.iter().any(|a| destination(*a));
        self.encap = self.conn.encap || peer_behind_nat || self.behind_nat;
        if before == (self.encap, self.behind_nat) {
            return true;
        }
        if self.behind_nat {
            info!(target: "IKE", "{} local host is behind NAT, sending keep alives", self.name());
        } else if self.conn.encap {
            // The peer's hash may be made up just as ours is, so it says nothing about a NAT.
            debug!(target: "IKE", "{} faking NAT situation to enforce UDP encapsulation", self.name());
        } else if peer_behind_nat {
            info!(target: "IKE", "{} remote host is behind NAT", self.name());
        }
        true
    }

    /// IKE_SA_INIT response: unauthenticated, so an error in it only ends the attempt if it could not be a
    /// forgery's free kill: errors are acted on only where the protocol needs them.
    pub(super) fn handle_init_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        spi_r: IkeSpi,
        addresses: (SocketAddr, SocketAddr),
        datagram: &[u8],
        payloads: &[Payload],
    ) -> Result<(), Gone> {
        self.settle_pair(addresses);
        let State::InitSent(init) = &mut self.state else { return Ok(()) };
        if let Some(cookie) = notify(payloads, NotifyType::COOKIE) {
            let usable = (1..=64).contains(&cookie.data.len()) && init.rounds < MAX_ROUNDS;
            if usable {
                init.cookie = Some(cookie.data.clone());
                return self.restart_init(ctx);
            }
            return Ok(());
        }
        if let Some(wrong) = notify(payloads, NotifyType::INVALID_KE_PAYLOAD) {
            let wanted = rules::wanted_method(wrong);
            let method = wanted.and_then(KeyExchange::from_transform);
            let offered = method.filter(|m| self.conn.proposals.iter().any(|p| p.kes.contains(m)));
            let Some(method) = offered.filter(|m| *m != init.method && init.rounds < MAX_ROUNDS) else {
                let named = method.map(|m| m.to_string()).or(wanted.map(|id| id.to_string()));
                let (named, ours) = (named.unwrap_or("none".into()), self.offered_ike());
                let reason =
                    format!("the peer wants key exchange {named} (INVALID_KE_PAYLOAD); we offered {ours}");
                return Err(self.close(ctx, &reason, false));
            };
            info!(target: "IKE", "peer didn't accept key exchange method {}, it requested {method}", init.method);
            init.ke = PrivateKey::generate(method, ctx.rng);
            init.method = method;
            return self.restart_init(ctx);
        }
        if let Some(error) = error_notify(payloads) {
            let mut reason = format!("the peer answered IKE_SA_INIT with {}", error.kind);
            if error.kind == NotifyType::NO_PROPOSAL_CHOSEN {
                reason += &format!("; we offered {}", self.offered_ike());
            }
            return Err(self.close(ctx, &reason, false));
        }
        match self.complete_init(ctx, spi_r, datagram, payloads) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.close(ctx, &error.to_string(), false)),
        }
    }

    fn restart_init(&mut self, ctx: &mut Ctx<'_>) -> Result<(), Gone> {
        self.pending = None;
        self.send_init(ctx).map_err(|error| self.close(ctx, &error.to_string(), false))
    }

    fn complete_init(
        &mut self,
        ctx: &mut Ctx<'_>,
        spi_r: IkeSpi,
        datagram: &[u8],
        payloads: &[Payload],
    ) -> Result<(), IkeError> {
        rules::check(ExchangeType::IKE_SA_INIT, true, payloads)?;
        let rule = |story| IkeError::Rule { exchange: "IKE_SA_INIT", story };
        if spi_r == IkeSpi::ZERO {
            return Err(rule("the responder's SPI is zero"));
        }
        self.spi_r = spi_r;
        let supports_nat = self.conn.nat_traversal && self.detect_nat(payloads);
        self.agree_on_fragments(payloads);
        self.childless = childless::wanted(&self.conn, self.wanted.is_empty(), payloads)?;
        let State::InitSent(init) = &self.state else { return Ok(()) };
        let theirs = rules::proposals(payloads).unwrap_or_default();
        // Exactly one proposal, and one that we offered: choosing from our own lists checks both.
        let (suite, _) = match theirs {
            [one] => {
                select::choose_ike(&self.conn.proposals, std::slice::from_ref(one), 0, Some(init.method))
            }
            _ => None,
        }
        .ok_or_else(|| {
            let theirs = select::describe(theirs);
            IkeError::NoProposal(format!("the peer selected {theirs}; we offered {}", self.offered_ike()))
        })?;
        let (method, public) = rules::key_exchange(payloads).ok_or_else(|| rule("no KE"))?;
        if suite.ke != init.method || method != init.method.transform() {
            return Err(rule("the KE payload is not of the method that was selected"));
        }
        let nr = rules::nonce(payloads).ok_or_else(|| rule("no nonce"))?.clone();
        let shared = init.ke.agree(public)?;
        let ni = init.ni.clone();
        let mut wishes = Wishes::default();
        wishes.read(payloads);
        let handshake = Handshake {
            ni: ni.clone(),
            nr: nr.clone(),
            request: init.request.clone(),
            response: datagram.to_vec(),
            wishes,
            elsewhere: false,
        };
        let keys = SkeySeed::initial(suite.prf, &ni, &nr, &shared)
            .expand(ctx, suite, &ni, &nr, self.spi_i, self.spi_r)?;
        info!(target: "CFG", "{} selected proposal: {suite}", self.name());
        self.suite = Some(suite);
        self.keys = Some(keys);
        self.discards_data = payloads.iter().any(|p| match p {
            Payload::VendorId(id) => id.starts_with(b"OpenIKED"),
            _ => false,
        });
        // Who may move changes ports now, so that a NAT on a later path needs no change (RFC 4555 3.3).
        let may_move = !super::versions::allowed(&self.conn).is_empty();
        self.encap &= supports_nat;
        if supports_nat && (self.encap || may_move) {
            // From here on everything runs on the port with the marker (RFC 7296 2.23).
            self.nat_t = true;
            self.local.set_port(ctx.config.daemon.port_nat_t);
            if self.remote.port() == 500 {
                self.remote.set_port(NAT_T_PORT);
            }
        }
        self.pending = None;
        self.send_auth(ctx, handshake)
    }

    fn send_auth(&mut self, ctx: &mut Ctx<'_>, handshake: Handshake) -> Result<(), IkeError> {
        let local_id = prove::own_id(&self.conn, self.local.ip());
        // A pattern names nobody.
        let expected = self.conn.remote.id.clone().filter(|id| !id.is_pattern());
        let remote_id = expected.clone().unwrap_or_else(|| Identification::from_ip(self.remote.ip()));
        let keys = self.keys()?;
        let octets = handshake.of_initiator(keys, &local_id);
        let parties = Parties {
            conn: &self.conn,
            keys,
            wishes: &handshake.wishes,
            local: &local_id,
            remote: &remote_id,
        };
        let eap = EapSent::new(&self.conn, &local_id)?;
        // Without AUTH we ask for EAP (RFC 7296 2.16).
        let proof = if eap.is_none() { Some(parties.prove(ctx, &octets)?) } else { None };
        let (certs, auth) = proof.unzip();
        let mut payloads = vec![Payload::IdI(local_id.clone())];
        payloads.extend(certs.into_iter().flatten());
        if self.first_contact {
            payloads.push(Payload::Notify(Notify::new(NotifyType::INITIAL_CONTACT, Vec::new())));
        }
        payloads.extend(prove::ask(&ctx.config.credentials, std::iter::once(&self.conn)));
        payloads.extend(expected.map(Payload::IdR));
        payloads.extend(auth.map(Payload::Auth));
        payloads.extend(eap.is_some().then(|| eap_initiator::offer(&self.conn)).flatten());
        let offer =
            if self.childless { None } else { Some(Box::new(self.offer_first_child(ctx, &handshake.ni)?)) };
        if let Some(offer) = &offer {
            payloads.extend(self.ask_configuration(ctx));
            payloads.extend(request_payloads(offer, false));
        }
        payloads.extend(self.offer_mobility(ctx));
        self.local_id = Some(local_id.clone());
        if offer.is_some() {
            info!(target: "IKE", "establishing CHILD_SA {}", self.name());
        }
        self.state = State::AuthSent(Box::new(AuthSent { handshake, local_id, child: offer, eap }));
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

    /// IKE_AUTH response: nothing of it counts before the peer's AUTH is verified, except that it refuses us.
    pub(super) fn handle_auth_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        _proof: Protected,
    ) -> Result<(), Gone> {
        let in_eap = matches!(&self.state, State::AuthSent(sent) if sent.eap.is_some());
        let verified = if in_eap {
            self.handle_eap_response(ctx, payloads)
        } else {
            self.verify_responder(ctx, payloads).map(Some)
        };
        let peer = match verified {
            Ok(Some(peer)) => peer,
            Ok(None) => return Ok(()),
            Err(IkeError::Notified(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD)) if self.can_do_without() => {
                return Err(self.start_without_mobike(ctx));
            }
            Err(error) => {
                self.unexpected_nat =
                    matches!(error, IkeError::Notified(NotifyType::UNEXPECTED_NAT_DETECTED));
                let mut reason = error.to_string();
                if let IkeError::Notified(NotifyType::AUTHENTICATION_FAILED) = error {
                    reason += &self.claimed();
                }
                return Err(self.close(ctx, &reason, false));
            }
        };
        let State::AuthSent(sent) = std::mem::replace(&mut self.state, State::Established(peer.clone()))
        else {
            return Ok(());
        };
        let AuthSent { handshake, child, .. } = *sent;
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
            self.tasks.push_back(Task::CreateChild(name));
        }
        self.run_tasks(ctx);
        Ok(())
    }

    /// Our proposals for the IKE SA, for people.
    pub(super) fn offered_ike(&self) -> String {
        let ours: Vec<_> = self.conn.proposals.iter().map(ToString::to_string).collect();
        ours.join(", ")
    }

    /// Who we said that we are, and whom we asked for: all that is known here about a refusal of IKE_AUTH.
    fn claimed(&self) -> String {
        let by = |method: &Method| match method {
            Method::Psk => "a pre-shared key".to_string(),
            Method::Pubkey(_) => "a signature".to_string(),
            Method::Eap(_) => "EAP".to_string(),
        };
        let ours = self.local_id.as_ref().map_or("%any".to_string(), ToString::to_string);
        let theirs = self.conn.remote.id.as_ref().map_or("%any".to_string(), ToString::to_string);
        let method = by(&self.conn.local.method);
        format!(
            "; we are '{ours}' by {method} and asked for '{theirs}'; what does not fit stands in the peer's log"
        )
    }

    /// Whether the offer of MOBIKE may have been refused as critical, and is not needed.
    fn can_do_without(&self) -> bool {
        self.conn.mobike_critical
            && !self.mobility.offered.is_empty()
            && self.conn.mobike_x != MobikeX::Require
    }

    /// The peer rejects IKE_AUTH for the critical bit of the offer (RFC 7296 2.5): once more without it.
    fn start_without_mobike(&mut self, ctx: &mut Ctx<'_>) -> Gone {
        info!(target: "IKE", "{} the peer has no MOBIKE and refuses the offer, trying again without", self.name());
        let first = match &self.state {
            State::AuthSent(sent) => sent.child.as_ref().map(|offer| offer.config.name.clone()),
            _ => None,
        };
        let wanted = first.into_iter().chain(std::mem::take(&mut self.wanted)).collect();
        self.release_offers(ctx);
        let conn = Connection { mobike: false, mobike_x: MobikeX::No, ..(*self.conn).clone() };
        ctx.effects.push(Effect::StartWithoutMobike { conn: Arc::new(conn), wanted });
        Gone
    }

    /// The responder has to be who the connection expects.
    pub(super) fn expect_responder(&self, id: &Identification) -> Result<(), IkeError> {
        match self.conn.remote.id.as_ref().filter(|want| !want.allows(id)) {
            Some(expected) => Err(IkeError::Authentication(format!(
                "the peer is '{id}', the connection expects '{expected}'"
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn verify_responder(
        &self,
        ctx: &Ctx<'_>,
        payloads: &[Payload],
    ) -> Result<super::auth::AuthenticatedPeer, IkeError> {
        let State::AuthSent(sent) = &self.state else {
            return Err(IkeError::Rule { exchange: "IKE_AUTH", story: "the response was not expected" });
        };
        if let (None, Some(error)) = (rules::auth(payloads), error_notify(payloads)) {
            return Err(IkeError::Notified(error.kind));
        }
        rules::check(ExchangeType::IKE_AUTH, true, payloads)?;
        let rule = |story| IkeError::Rule { exchange: "IKE_AUTH", story };
        let id = rules::id_r(payloads).ok_or_else(|| rule("no IDr"))?;
        self.expect_responder(id)?;
        let keys = self.keys()?;
        let octets = sent.handshake.of_responder(keys, id);
        let wishes = &sent.handshake.wishes;
        let parties = Parties { conn: &self.conn, keys, wishes, local: &sent.local_id, remote: id };
        parties.verify(ctx, &octets, payloads)
    }
}
