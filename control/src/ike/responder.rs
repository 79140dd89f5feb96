//! IKE_SA_INIT as its responder (RFC 7296 1.2).

use std::net::SocketAddr;
use std::sync::Arc;

use mobikex_common::alg::KeyExchange;
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::{ExchangeType, Notify, NotifyType, Payload, Proposal};
use tracing::info;

use super::childless;
use super::crypt::{self, Envelope};
use super::ctx::Ctx;
use super::error::IkeError;
use super::fragments::Outgoing;
use super::keys::SkeySeed;
use super::prove::{self, Wishes};
use super::roles::OriginalInitiator;
use super::rounds;
use super::rules;
use super::sa::{Handshake, IkeSa, NAT_T_PORT, State};
use super::select;
use crate::config::Connection;

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
        answer.extend(rounds::announce(candidates.iter()));
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
            State::AuthServing(serving) => serving.heard(elsewhere),
            _ => {}
        }
    }
}
