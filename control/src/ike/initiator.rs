//! IKE_SA_INIT as its initiator (RFC 7296 1.2).

use std::net::SocketAddr;
use std::sync::Arc;

use mobikex_common::addr::Path;
use mobikex_common::alg::KeyExchange;
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::{ExchangeType, Notify, NotifyType, Payload};
use tracing::{debug, info};

use super::childless;
use super::ctx::{Ctx, Effect, nat_hash};
use super::error::IkeError;
use super::fragments;
use super::keys::SkeySeed;
use super::prove::{self, Wishes};
use super::roles::OriginalInitiator;
use super::rounds;
use super::rules::{self, error_notify, notify};
use super::sa::{Gone, Handshake, IkeSa, InitSent, NAT_T_PORT, State};
use super::select;
use super::window::Exchange;
use crate::config::{Connection, MobikeX};

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
        rounds::check_support(&self.conn, payloads)?;
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

    /// Our proposals for the IKE SA, for people.
    pub(super) fn offered_ike(&self) -> String {
        let ours: Vec<_> = self.conn.proposals.iter().map(ToString::to_string).collect();
        ours.join(", ")
    }

    /// Whether the offer of MOBIKE may have been refused as critical, and is not needed.
    pub(super) fn can_do_without(&self) -> bool {
        self.conn.mobike_critical
            && !self.mobility.offered.is_empty()
            && self.conn.mobike_x != MobikeX::Require
    }

    /// The peer rejects IKE_AUTH for the critical bit of the offer (RFC 7296 2.5): once more without it.
    pub(super) fn start_without_mobike(&mut self, ctx: &mut Ctx<'_>) -> Gone {
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
}
