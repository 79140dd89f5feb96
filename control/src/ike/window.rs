//! The message window (RFC 7296 2.3): our one request that is under way, how often it is sent again, and our last answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mobikex_common::addr::Path;
use mobikex_common::sa::ChildSaId;
use mobikex_common::wire::ike::{ExchangeType, Payload};
use tracing::{debug, info};

use super::child::ChildOffer;
use super::crypt::{self, Envelope};
use super::ctx::Ctx;
use super::error::IkeError;
use super::fragments::{CUT_SMALLER_AT, Outgoing};
use super::mobike::Update;
use super::mobike_x::Actions;
use super::rules;
use super::sa::{Gone, IkeRekey, IkeSa, State};
use super::versions::Version;

/// First retransmission after this long; each further one 1.8 times later.
const RETRANSMIT_BASE: Duration = Duration::from_secs(4);
const RETRANSMIT_FACTOR: f64 = 1.8;
/// Where another pair of addresses may work, it is tried sooner.
const RETRANSMIT_QUICK: Duration = Duration::from_secs(1);
/// Retransmissions of this pace.
pub(super) const QUICK_ATTEMPTS: u32 = 3;
/// Retransmissions before the peer counts as dead.
const RETRANSMIT_TRIES: u32 = 5;
/// A responder of MOBIKE gives the initiator time to find another path: more than five minutes in all (RFC 4555 3.11),
/// and often enough that one which works again is soon in use.
const PATIENT_TRIES: u32 = 13;
const PATIENT_INTERVAL: Duration = Duration::from_secs(30);
/// Pairs of addresses that are remembered for one request: more than it is sent over, unless both sides move all the time.
const MAX_WAYS: usize = 32;

/// A pair of addresses that a request goes over instead of the current one.
pub(super) struct Via {
    pub(super) path: Path,
    /// Datagrams that may still go there, one a second; then the request goes on over the current pair.
    pub(super) tries: u32,
}

/// Our request that is under way.
pub(super) struct Pending {
    pub(super) message_id: u32,
    pub(super) exchange: Exchange,
    pub(super) message: Outgoing,
    pub(super) attempts: u32,
    /// The attempts before it went out in smaller fragments, with which the pace began anew.
    pub(super) restarted: u32,
    pub(super) via: Option<Via>,
    /// The pairs of addresses that the request has gone over.
    pub(super) ways: Vec<Path>,
    /// Octets that may go to where the peer asked something from, while it does not answer where we know it.
    pub(super) credit: Option<(SocketAddr, usize)>,
    pub(super) next: Instant,
}

impl Pending {
    /// Notes that the request goes over a pair of addresses, whichever is the current one by then.
    pub(super) fn goes_over(&mut self, path: Path) {
        if !self.ways.contains(&path) && self.ways.len() < MAX_WAYS {
            self.ways.push(path);
        }
    }
}

/// What the request was for.
pub(super) enum Exchange {
    Init,
    Auth,
    CreateChild(Box<ChildOffer>),
    RekeyIke(Box<IkeRekey>),
    DeleteChild(ChildSaId),
    DeleteIke(String),
    /// With COOKIE2 if that was sent.
    Liveness(Option<Vec<u8>>),
    Update(Box<Update>),
    /// The list of our addresses.
    Announce,
    MobikeNone,
    Actions(Box<Actions>),
    Negotiate(Version),
    /// A question to an address of the peer over one pair, asked first at that time, with COOKIE2 if there is MOBIKE;
    /// `rebound` when it showed up there by itself.
    Check {
        pair: Path,
        cookie: Option<Vec<u8>>,
        rebound: bool,
        since: Instant,
    },
    /// A test of one pair of addresses, sent at that time.
    PathTest {
        path: Path,
        cookie: Vec<u8>,
        at: Instant,
    },
}

impl IkeSa {
    fn envelope(&self, exchange: ExchangeType, response: bool, message_id: u32) -> Envelope {
        Envelope {
            spi_i: self.spi_i,
            spi_r: self.spi_r,
            exchange,
            from_initiator: self.initiator.is_us(),
            response,
            message_id,
        }
    }

    /// Builds, sends and remembers a request. `plain` is for IKE_SA_INIT alone.
    pub(super) fn send_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        kind: ExchangeType,
        exchange: Exchange,
        payloads: &[Payload],
    ) -> Result<Outgoing, IkeError> {
        self.send_request_via(ctx, kind, exchange, payloads, None)
    }

    /// As [`Self::send_request`], but first over another pair of addresses.
    pub(super) fn send_request_via(
        &mut self,
        ctx: &mut Ctx<'_>,
        kind: ExchangeType,
        exchange: Exchange,
        payloads: &[Payload],
        via: Option<Via>,
    ) -> Result<Outgoing, IkeError> {
        let message_id = self.next_request;
        let envelope = self.envelope(kind, false, message_id);
        let message = if kind == ExchangeType::IKE_SA_INIT {
            Outgoing::plain(crypt::plain(&envelope, payloads))
        } else {
            self.protect(ctx, envelope, payloads)?
        };
        debug!(target: "ENC", "{} generating {kind} request {message_id} {}", self.name(), rules::show(payloads));
        self.next_request += 1;
        let path = via.as_ref().map_or(self.current(), |via| via.path);
        let quick = via.is_some() || self.mobility.version != Version::None || self.has_alternatives();
        let pause = if quick { RETRANSMIT_QUICK } else { RETRANSMIT_BASE };
        let (next, unsent) = match self.send_over(ctx, path, &message) {
            Ok(()) => (ctx.now + pause, 0),
            Err(when) => (when, 1),
        };
        self.pending = Some(Box::new(Pending {
            message_id,
            exchange,
            message: message.clone(),
            attempts: 0,
            restarted: 0,
            via: via.map(|via| Via { tries: via.tries + unsent, ..via }),
            ways: vec![path],
            credit: None,
            next,
        }));
        Ok(message)
    }

    /// A first message, which nobody but its pair of addresses tells from another.
    pub(super) fn plain_request(&self, payloads: &[Payload]) -> Vec<u8> {
        crypt::plain(&self.envelope(ExchangeType::IKE_SA_INIT, false, 0), payloads)
    }

    /// Answers the request that is being handled and keeps the answer.
    pub(super) fn send_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        kind: ExchangeType,
        payloads: &[Payload],
    ) -> Result<(), IkeError> {
        let message_id = self.expected_request;
        let envelope = self.envelope(kind, true, message_id);
        let message = self.protect(ctx, envelope, payloads)?;
        debug!(target: "ENC", "{} generating {kind} response {message_id} {}", self.name(), rules::show(payloads));
        self.expected_request += 1;
        self.last_response = Some(message.clone());
        // Back to where the request came from (RFC 7296 2.11), whatever else is known about the peer.
        let over = self.answer_over.unwrap_or((self.local, self.remote, self.nat_t));
        self.transmit(ctx, over, &message);
        Ok(())
    }

    /// Sends our request again if it is time, or gives the peer up.
    pub(super) fn retransmit(&mut self, ctx: &mut Ctx<'_>) -> Result<(), Gone> {
        let name = self.name();
        let mobile = self.mobility.version != Version::None || self.has_alternatives();
        let patient = self.mobility.version != Version::None && !self.mobility.decides;
        let tries = if patient { PATIENT_TRIES } else { RETRANSMIT_TRIES };
        let Some(pending) = self.pending.as_mut().filter(|p| p.next <= ctx.now) else { return Ok(()) };
        if pending.attempts == tries + pending.restarted {
            info!(target: "IKE", "{name} giving up after {} retransmits", pending.attempts);
            let established = self.peer().is_some();
            self.gave_up = true;
            return Err(self.close(ctx, "the peer does not answer", established));
        }
        if pending.via.is_none() {
            pending.attempts += 1;
            info!(target: "IKE", "{name} retransmit {} of request with message ID {}", pending.attempts, pending.message_id);
        }
        if pending.attempts == CUT_SMALLER_AT {
            self.cut_request_smaller(ctx);
        }
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let steps = pending.attempts - pending.restarted;
        let backoff = RETRANSMIT_BASE.mul_f64(RETRANSMIT_FACTOR.powi(steps as i32));
        let backoff = if patient { backoff.min(PATIENT_INTERVAL) } else { backoff };
        let quick = pending.via.is_some() || (mobile && pending.attempts <= QUICK_ATTEMPTS);
        pending.next = ctx.now + if quick { RETRANSMIT_QUICK } else { backoff };
        if matches!(self.state, State::InitSent(_)) {
            self.send_init_elsewhere(ctx);
        } else {
            self.transmit_again(ctx);
        }
        Ok(())
    }

    /// Whether a first message may reach the peer over several pairs of addresses.
    fn has_alternatives(&self) -> bool {
        matches!(&self.state, State::InitSent(init) if init.pairs.len() > 1)
    }
}
