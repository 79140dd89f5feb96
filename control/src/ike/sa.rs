//! An IKE SA: its state, its message windows, its timers.
//!
//! The window is one request in each direction (RFC 7296 2.3): a request of ours waits in `tasks` until the
//! one before it is answered; a request of the peer is answered at once and the answer is kept for
//! retransmissions.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mobikex_common::addr::Path;
use mobikex_common::alg::IkeSuite;
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::sa::{ChildSaId, PolicyId};
use mobikex_common::spi::{IkeSpi, Spi};
use mobikex_common::wire::ike::{ExchangeType, Identification, Payload};
use tracing::{debug, info};

use super::addresses::{Outer, Replaces};
use super::auth::{AuthenticatedPeer, SignedOctets};
use super::auth_serving::AuthServing;
use super::child::{ChildOffer, ChildSa};
use super::configuration::Configuration;
use super::crypt::{self, Envelope};
use super::ctx::{Ctx, Effect};
use super::eap_initiator::EapSent;
use super::error::IkeError;
use super::fragments::{CUT_SMALLER_AT, Fragments, Outgoing};
use super::keys::SkKeys;
use super::mobike::Update;
use super::mobike_x::{Actions, Request};
use super::mobility::{Mobility, cookie};
use super::output::{Event, IkeSaView};
use super::prove::Wishes;
use super::reauth::Reauth;
use super::roles::OriginalInitiator;
use super::rounds::{self, RoundView};
use super::rules;
use super::sets::Check;
use super::versions::Version;
use crate::config::{AuthRound, Connection, ReturnRoutability, Unique};

/// Port of IKE with the non-ESP marker (RFC 7296 2.23).
pub(super) const NAT_T_PORT: u16 = 4500;
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
/// A responder forgets an initiator that does not authenticate within this time.
const HALF_OPEN_LIFETIME: Duration = Duration::from_secs(30);
/// An initiator behind a NAT keeps its mapping alive (RFC 3948 4).
const NAT_KEEPALIVE: Duration = Duration::from_secs(20);
/// How long a peer may take to delete an IKE SA that it has rekeyed.
const REKEYED_LIFETIME: Duration = Duration::from_secs(120);
/// How long the DELETE of an SA that was replaced may take before we ask for it.
const FORGOTTEN: Duration = Duration::from_secs(3);

/// Pairs of addresses that are remembered for one request: more than it is sent over, unless both sides move all the time.
const MAX_WAYS: usize = 32;

/// Where an IKE SA is in its life. The last state is the one that lasts, so that the others take no room in it.
pub(super) enum State {
    /// We sent IKE_SA_INIT.
    InitSent(Box<InitSent>),
    /// We answered IKE_SA_INIT and wait for IKE_AUTH.
    HalfOpen(Box<Handshake>),
    /// We sent IKE_AUTH.
    AuthSent(Box<AuthSent>),
    /// We answered IKE_AUTH, and it goes on: in EAP, or in further rounds.
    AuthServing(Box<AuthServing>),
    /// Both sides have proven themselves.
    Established(AuthenticatedPeer),
}

/// What both sides keep of IKE_SA_INIT until AUTH is verified.
#[derive(Default)]
pub(super) struct Handshake {
    pub(super) ni: Vec<u8>,
    pub(super) nr: Vec<u8>,
    pub(super) request: Vec<u8>,
    pub(super) response: Vec<u8>,
    /// What the peer said there about signatures and certificates.
    pub(super) wishes: Wishes,
    /// The request under way has come from where nothing has been sent to yet.
    pub(super) elsewhere: bool,
}

impl Handshake {
    /// What the initiator's AUTH covers (RFC 7296 2.15), of whom `id` is the identity.
    pub(super) fn of_initiator<'a>(&'a self, keys: &'a SkKeys, id: &'a Identification) -> SignedOctets<'a> {
        SignedOctets { message: &self.request, nonce: &self.nr, id, sk_p: &keys.pi }
    }

    /// What the responder's AUTH covers.
    pub(super) fn of_responder<'a>(&'a self, keys: &'a SkKeys, id: &'a Identification) -> SignedOctets<'a> {
        SignedOctets { message: &self.response, nonce: &self.ni, id, sk_p: &keys.pr }
    }
}

pub(super) struct InitSent {
    pub(super) ke: PrivateKey,
    pub(super) method: mobikex_common::alg::KeyExchange,
    pub(super) ni: Vec<u8>,
    pub(super) request: Vec<u8>,
    /// What was sent from where to where: the peer's AUTH covers the one that it received.
    pub(super) sent: Vec<(Path, Vec<u8>)>,
    /// Pairs of addresses to try in turn.
    pub(super) pairs: Vec<Path>,
    pub(super) cookie: Option<Vec<u8>>,
    /// Round trips so far; INVALID_KE_PAYLOAD and COOKIE may ask for a few, not for ever.
    pub(super) rounds: u32,
}

pub(super) struct AuthSent {
    pub(super) handshake: Handshake,
    pub(super) child: Option<Box<ChildOffer>>,
    /// Who we are in our rounds so far; the last one is under way.
    pub(super) ours: Vec<Identification>,
    /// By which we prove ourselves in it, if it is not by AUTH alone.
    pub(super) eap: Option<Box<EapSent>>,
    /// How many rounds of the responder are over.
    pub(super) theirs: usize,
    /// Its latest identity.
    pub(super) responder: Option<Identification>,
    /// What it has proven.
    pub(super) peer: Option<AuthenticatedPeer>,
}

/// Something to do once the window is free.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Task {
    CreateChild(String),
    /// A further one of a policy, for a worker.
    CreateOwn(PolicyId, u32),
    RekeyChild(ChildSaId),
    DeleteChild(ChildSaId),
    /// Tell the peer of the end of a Child SA of which it could not be told when it came.
    TellEnd(ChildSaId, Spi),
    RekeyIke,
    DeleteIke(String),
    Liveness,
    /// The same because of a complaint that anybody could have sent.
    Doubt,
    /// Tell the peer what has changed about our addresses, if anything has.
    Reconcile,
    /// See whether the peer is at an address.
    Check(SocketAddr),
    /// See whether a pair of addresses works.
    TestPath(Path),
    /// Offer a version of MOBIKE once more.
    Negotiate(Version),
    /// End MOBIKE-X.
    MobikeNone,
    /// An action on addresses that an operator wants.
    Address(Request),
}

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
    /// A question to an address of the peer, asked first at that time, with COOKIE2 if there is MOBIKE; `rebound` when
    /// it showed up there by itself.
    Check {
        remote: SocketAddr,
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

pub(super) struct IkeRekey {
    pub(super) spi: IkeSpi,
    pub(super) ke: PrivateKey,
    pub(super) method: mobikex_common::alg::KeyExchange,
    pub(super) ni: Vec<u8>,
}

/// The peer rekeyed this IKE SA while our own rekeying was under way (RFC 7296 2.8.1).
pub(super) struct PeerRekey {
    pub(super) id: u32,
    pub(super) lowest_nonce: Vec<u8>,
}

/// Why the endpoint should forget an SA.
pub(super) struct Gone;

pub(super) struct IkeSa {
    pub(super) id: u32,
    pub(super) conn: Arc<Connection>,
    pub(super) initiator: OriginalInitiator,
    pub(super) spi_i: IkeSpi,
    pub(super) spi_r: IkeSpi,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// IKE runs on the port with the non-ESP marker.
    pub(super) nat_t: bool,
    /// ESP is encapsulated in UDP.
    pub(super) encap: bool,
    /// A NAT hides our address.
    pub(super) behind_nat: bool,
    /// A NAT hides the peer's address.
    pub(super) peer_behind_nat: bool,
    /// The peer is known to discard MOBIKE_SUPPORTED with data.
    pub(super) discards_data: bool,
    pub(super) mobility: Mobility,
    /// Virtual addresses, if there are any.
    pub(super) configuration: Option<Box<Configuration>>,
    /// From where to where the request went that is being answered.
    pub(super) answer_over: Option<(SocketAddr, SocketAddr, bool)>,
    pub(super) state: State,
    pub(super) suite: Option<IkeSuite>,
    pub(super) keys: Option<SkKeys>,
    pub(super) ivs: u64,
    pub(super) local_id: Option<Identification>,
    /// Who we were in the rounds before the last one.
    pub(super) earlier_ids: Box<[Identification]>,
    pub(super) children: Vec<ChildSa>,
    /// Policies for which the peer wants no further Child SA (RFC 9611), on this IKE SA.
    pub(super) refuses_more: Vec<PolicyId>,
    pub(super) tasks: VecDeque<Task>,
    /// Tasks that the peer asked us to try later (TEMPORARY_FAILURE).
    pub(super) retries: Vec<(Instant, Task)>,
    /// How often in a row that was so.
    pub(super) put_off: u32,
    /// Most of the time there is none.
    pub(super) pending: Option<Box<Pending>>,
    pub(super) next_request: u32,
    pub(super) expected_request: u32,
    pub(super) last_response: Option<Outgoing>,
    pub(super) fragments: Fragments,
    pub(super) peer_rekey: Option<PeerRekey>,
    /// Made by the peer's rekeying of this SA, which still waits for the answer to its own; see
    /// [`Effect::Inherit`].
    pub(super) inherits_from: Option<u32>,
    /// Replaced by this one; waits only for DELETE.
    pub(super) rekeyed_by: Option<u32>,
    /// The child that started a set-up, and those to create after it.
    pub(super) wanted: VecDeque<String>,
    pub(super) established_at: Option<Instant>,
    pub(super) rekey_at: Option<Instant>,
    pub(super) expire_at: Option<Instant>,
    pub(super) last_heard: Instant,
    /// IKE_AUTH goes without a Child SA (RFC 6023).
    pub(super) childless: bool,
    pub(super) reauth: Reauth,
    /// We hold no other IKE SA with this peer, and may say so (INITIAL_CONTACT, RFC 7296 2.4).
    pub(super) first_contact: bool,
    /// Made by our IKE_AUTH answer; an elder one sends until the peer is known to have it.
    pub(super) unconfirmed: Option<ChildSaId>,
    /// The last request was never answered.
    pub(super) gave_up: bool,
    /// The peer has found a NAT on a way that has none (RFC 4555 3.9).
    pub(super) unexpected_nat: bool,
    /// When somebody last complained about what we send, see `hints`.
    pub(super) doubted_at: Option<Instant>,
    last_keepalive: Instant,
}

impl IkeSa {
    /// A new SA in `state`; a responder's half-open SA expires by itself.
    pub(super) fn new(
        ctx: &mut Ctx<'_>,
        conn: Arc<Connection>,
        initiator: OriginalInitiator,
        spis: (IkeSpi, IkeSpi),
        addresses: (SocketAddr, SocketAddr),
        state: State,
    ) -> Self {
        let expire_at = matches!(state, State::HalfOpen(_)).then(|| ctx.now + HALF_OPEN_LIFETIME);
        let mobility = Mobility::new(&conn, initiator);
        Self {
            id: ctx.ids.ike(),
            conn,
            initiator,
            spi_i: spis.0,
            spi_r: spis.1,
            local: addresses.0,
            remote: addresses.1,
            nat_t: false,
            encap: false,
            behind_nat: false,
            peer_behind_nat: false,
            discards_data: false,
            mobility,
            configuration: None,
            answer_over: None,
            state,
            suite: None,
            keys: None,
            ivs: 0,
            local_id: None,
            earlier_ids: Box::default(),
            children: Vec::new(),
            refuses_more: Vec::new(),
            tasks: VecDeque::new(),
            retries: Vec::new(),
            put_off: 0,
            pending: None,
            next_request: 0,
            expected_request: 0,
            last_response: None,
            fragments: Fragments::default(),
            peer_rekey: None,
            inherits_from: None,
            rekeyed_by: None,
            wanted: VecDeque::new(),
            established_at: None,
            rekey_at: None,
            expire_at,
            last_heard: ctx.now,
            childless: false,
            reauth: Reauth::default(),
            first_contact: false,
            unconfirmed: None,
            gave_up: false,
            unexpected_nat: false,
            doubted_at: None,
            last_keepalive: ctx.now,
        }
    }

    /// `home[1]`
    pub(super) fn name(&self) -> String {
        format!("{}[{}]", self.conn.name, self.id)
    }

    /// The SPI by which the peer's messages find this SA.
    pub(super) fn our_spi(&self) -> IkeSpi {
        if self.initiator.is_us() { self.spi_i } else { self.spi_r }
    }

    pub(super) fn peer(&self) -> Option<&AuthenticatedPeer> {
        match &self.state {
            State::Established(peer) => Some(peer),
            _ => None,
        }
    }

    /// Whether a first message may reach the peer over several pairs of addresses.
    fn has_alternatives(&self) -> bool {
        matches!(&self.state, State::InitSent(init) if init.pairs.len() > 1)
    }

    /// An initiator that has not proven itself.
    pub(super) fn is_half_open(&self) -> bool {
        matches!(self.state, State::HalfOpen(_) | State::AuthServing(_))
    }

    /// The keys of a state that has them.
    pub(super) fn keys(&self) -> Result<&SkKeys, IkeError> {
        self.keys.as_ref().ok_or(IkeError::NotProtected)
    }

    /// Starts the lifetimes of an SA that has just been established.
    pub(super) fn establish(&mut self, ctx: &mut Ctx<'_>, peer: AuthenticatedPeer) {
        self.state = State::Established(peer);
        self.established_at = Some(ctx.now);
        self.rekey_at = ctx.soon_before(self.conn.rekey_time, self.conn.rand_time);
        let life = self.conn.rekey_time + self.conn.over_time;
        self.expire_at = (!self.conn.rekey_time.is_zero()).then(|| ctx.now + life);
    }

    /// Both sides have proven themselves. `lost` says that the peer has sent INITIAL_CONTACT.
    pub(super) fn come_up(&mut self, ctx: &mut Ctx<'_>, peer: AuthenticatedPeer, lost: bool) {
        let peer_id = peer.id().clone();
        let proven = peer.rounds().iter().map(|round| round.id().to_string()).collect::<Vec<_>>().join(", ");
        self.establish(ctx, peer);
        self.begin_authentication_age(ctx);
        if self.fragments.agreed() {
            info!(target: "IKE", "{} peer supports IKE fragmentation", self.name());
        }
        let lost = lost && self.conn.unique != Unique::Never;
        ctx.event(Event::IkeUp { ike: self.name(), local: self.local, remote: self.remote, peer: proven });
        if let Some(local) = self.local_id.clone().filter(|_| lost || self.conn.unique == Unique::Replace) {
            ctx.effects.push(Effect::OnlyThis { keep: self.id, peer: peer_id, local, lost });
        }
    }

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

    /// Without MOBIKE a peer behind a NAT is wherever its latest authentic request came from (RFC 7296 2.23).
    pub(super) fn follow_nat(&mut self, ctx: &mut Ctx<'_>, (local, remote): (SocketAddr, SocketAddr)) {
        let moved = remote != self.remote && local == self.local;
        if self.mobility.version != Version::None || !self.peer_behind_nat || !moved {
            return;
        }
        info!(target: "IKE", "{} the NAT before the peer has a new mapping: {remote}", self.name());
        self.mobility.checks.insert(remote, Check::Passed);
        self.remote = remote;
        self.change_halves(
            ctx,
            |_| true,
            |halves| {
                halves.remote.update(Replaces::All, Outer::new(remote));
            },
        );
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

    /// The addresses of the request that is being answered, where policy lets the peer be there, or else those in use.
    pub(super) fn asked_over(&self, ctx: &Ctx<'_>) -> (SocketAddr, SocketAddr) {
        let unchecked = self.conn.return_routability == ReturnRoutability::Off && !self.peer_behind_nat;
        let over = self.answer_over.filter(|(_, remote, _)| {
            // Where nothing would be checked, whoever is on the way could write any source.
            self.acceptable(ctx, remote.ip()) && (!unchecked || self.peer_addresses(ctx.now).contains(remote))
        });
        over.map_or((self.local, self.remote), |(local, remote, _)| (local, remote))
    }

    /// Queues a task unless the same one already waits, and starts it if the window is free.
    pub(super) fn add_task(&mut self, ctx: &mut Ctx<'_>, task: Task) {
        if !self.tasks.contains(&task) {
            self.tasks.push_back(task);
        }
        self.run_tasks(ctx);
    }

    /// Starts waiting tasks while the window is free.
    pub(super) fn run_tasks(&mut self, ctx: &mut Ctx<'_>) {
        while self.pending.is_none() && self.peer().is_some() {
            let Some(task) = self.tasks.pop_front() else { return self.conclude_reauth(ctx) };
            if let Err(error) = self.start(ctx, &task) {
                info!(target: "IKE", "{} cannot do {task:?}: {error}", self.name());
            }
        }
    }

    fn start(&mut self, ctx: &mut Ctx<'_>, task: &Task) -> Result<(), IkeError> {
        match task {
            Task::CreateChild(name) => self.start_create_child(ctx, name),
            Task::CreateOwn(policy, worker) => self.start_create_own(ctx, *policy, *worker),
            Task::RekeyChild(id) => self.start_rekey_child(ctx, *id),
            Task::DeleteChild(id) => self.start_delete_child(ctx, *id),
            Task::TellEnd(id, spi) => self.send_delete(ctx, *id, *spi),
            Task::RekeyIke => self.start_rekey_ike(ctx),
            Task::DeleteIke(reason) => self.start_delete_ike(ctx, reason),
            Task::Liveness => self.start_liveness(ctx, None),
            Task::Doubt => {
                // So that the answer also proves where the peer is (RFC 4555 5.3).
                let cookie = (self.mobility.version != Version::None).then(|| cookie(ctx));
                self.start_liveness(ctx, cookie)
            }
            Task::Reconcile => self.start_reconcile(ctx),
            Task::Check(remote) => self.start_check(ctx, *remote),
            Task::TestPath(path) => self.start_path_test(ctx, *path),
            Task::Negotiate(version) => self.start_negotiation(ctx, *version),
            Task::MobikeNone => self.start_mobike_none(ctx),
            Task::Address(request) => self.send_actions(ctx, vec![request.clone()], None),
        }
    }

    fn start_liveness(&mut self, ctx: &mut Ctx<'_>, cookie: Option<Vec<u8>>) -> Result<(), IkeError> {
        let payloads = self.question(self.local, self.remote, cookie.as_deref());
        self.send_request(ctx, ExchangeType::INFORMATIONAL, Exchange::Liveness(cookie), &payloads).map(drop)
    }

    /// Tries `task` again in a few seconds (RFC 7296 2.25).
    pub(super) fn retry_later(&mut self, ctx: &mut Ctx<'_>, task: Task) {
        use rand_core::Rng;
        // Two that ask each other at the same time would never stop, if both tried again at once (RFC 7296 2.25).
        let millis = 2000 + ctx.rng.next_u64() % (3000 << self.put_off.saturating_sub(2));
        self.put_off = (self.put_off + 1).min(6);
        self.retries.push((ctx.now + Duration::from_millis(millis), task));
    }

    /// Everything that is due. An error says that the SA is gone.
    pub(super) fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) -> Result<(), Gone> {
        if self.expire_at.is_some_and(|at| at <= ctx.now) && self.is_needed(ctx) {
            self.expire_at = Some(ctx.now + REKEYED_LIFETIME);
        }
        if self.expire_at.is_some_and(|at| at <= ctx.now) {
            let reason = match (&self.state, self.rekeyed_by) {
                (State::HalfOpen(_) | State::AuthServing(_), _) => {
                    "the initiator did not authenticate in time"
                }
                (_, Some(_)) => "the peer did not delete it after rekeying",
                _ => "its lifetime is over and rekeying failed",
            };
            return Err(self.close(ctx, reason, self.rekeyed_by.is_none() && self.peer().is_some()));
        }
        self.retransmit(ctx)?;
        self.fragments.expire(ctx.now);
        for (at, task) in std::mem::take(&mut self.retries) {
            if at <= ctx.now {
                self.tasks.push_back(task);
            } else {
                self.retries.push((at, task));
            }
        }
        if self.peer().is_some() && self.rekeyed_by.is_none() {
            if self.rekey_at.is_some_and(|at| at <= ctx.now) {
                self.rekey_at = None;
                self.tasks.push_back(Task::RekeyIke);
            }
            self.reauth_timeouts(ctx);
            if self.dead_peer_check_at().is_some_and(|at| at <= ctx.now) {
                self.tasks.push_back(Task::Liveness);
                // Heard again or dead: either way not due before the next interval.
                self.last_heard = ctx.now;
            }
            if self.keepalive_at().is_some_and(|at| at <= ctx.now) {
                self.last_keepalive = ctx.now;
                ctx.transmit(self.local, self.remote, false, vec![0xff]);
            }
        }
        if self.forgotten_at().is_some_and(|at| at <= ctx.now) {
            self.tasks.push_back(Task::Liveness);
            self.last_heard = ctx.now;
        }
        self.child_timeouts(ctx);
        self.idle_timeouts(ctx);
        self.mobility_timeouts(ctx);
        self.run_tasks(ctx);
        Ok(())
    }

    fn retransmit(&mut self, ctx: &mut Ctx<'_>) -> Result<(), Gone> {
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

    /// Whether the peer has not been heard on the IKE SA that it has replaced this one by: it may lack the answer that made
    /// it, and asks for that here. The new one has an end of its own if it never does.
    fn is_needed(&self, ctx: &Ctx<'_>) -> bool {
        let answered = |sa: &Self| sa.next_request - u32::from(sa.pending.is_some());
        let unheard = |sa: &Self| !sa.initiator.is_us() && sa.expected_request == 0 && answered(sa) == 0;
        self.rekeyed_by.and_then(|id| ctx.others.get(id)).is_some_and(unheard)
    }

    fn dead_peer_check_at(&self) -> Option<Instant> {
        (!self.conn.dpd_delay.is_zero() && self.pending.is_none())
            .then(|| self.last_heard + self.conn.dpd_delay)
    }

    /// When the peer should have deleted an SA that it has replaced. Perhaps our answer was lost and we have moved since, so
    /// that it waits where we are not and knows no other SA: hearing us on this one it asks there once more.
    fn forgotten_at(&self) -> Option<Instant> {
        let waits = self.rekeyed_by.is_some() && self.peer().is_some() && self.pending.is_none();
        (waits && self.mobility.version != Version::None).then(|| self.last_heard + FORGOTTEN)
    }

    fn keepalive_at(&self) -> Option<Instant> {
        (self.nat_t && self.behind_nat).then(|| self.last_keepalive + NAT_KEEPALIVE)
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let established = self.peer().is_some() && self.rekeyed_by.is_none();
        [
            self.expire_at,
            self.pending.as_ref().map(|p| p.next),
            self.retries.iter().map(|(at, _)| *at).min(),
            self.rekey_at.filter(|_| established),
            self.reauth.timeout().filter(|_| established),
            self.dead_peer_check_at().filter(|_| established),
            self.keepalive_at().filter(|_| established),
            self.forgotten_at(),
            self.fragments.timeout(),
            self.children.iter().filter_map(ChildSa::next_timeout).min(),
            self.mobility_timeout().filter(|_| established),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Marks this SA as replaced: it only waits for its DELETE now.
    pub(super) fn mark_rekeyed(&mut self, ctx: &mut Ctx<'_>, by: u32) {
        self.rekeyed_by = Some(by);
        self.rekey_at = None;
        self.expire_at = Some(ctx.now + REKEYED_LIFETIME);
    }

    /// Gives everything of this SA back. With `restart` its children are set up again if their policy says so.
    pub(super) fn close(&mut self, ctx: &mut Ctx<'_>, reason: &str, restart: bool) -> Gone {
        self.release_offers(ctx);
        if restart {
            self.return_later(ctx, |_| true, |config| config.dpd_action.into());
        }
        self.lodge_children(ctx, reason);
        for child in std::mem::take(&mut self.children) {
            child.remove(ctx, reason);
        }
        let event = match self.state {
            State::Established(_) => Event::IkeDown { ike: self.name(), reason: reason.to_string() },
            _ => Event::IkeFailed {
                connection: self.conn.name.clone(),
                ike: self.name(),
                reason: reason.to_string(),
            },
        };
        // One that has not taken over yet is redundant.
        if self.rekeyed_by.is_none() && self.inherits_from.is_none() {
            ctx.event(event);
        }
        Gone
    }

    /// Frees the SPIs that requests under way have reserved.
    pub(super) fn release_offers(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(Exchange::CreateChild(offer)) = self.pending.take().map(|pending| pending.exchange) {
            ctx.spis.release(offer.spi_in);
        }
        if let State::AuthSent(sent) = &self.state
            && let Some(offer) = &sent.child
        {
            ctx.spis.release(offer.spi_in);
        }
    }

    /// The state's name in the status view.
    pub(super) fn state_name(&self) -> &'static str {
        let deleting = matches!(self.pending.as_ref().map(|p| &p.exchange), Some(Exchange::DeleteIke(_)));
        match (&self.state, self.rekeyed_by) {
            (_, Some(_)) => "REKEYED",
            (State::Established(_), None) if deleting => "DELETING",
            (State::Established(_), None) => "ESTABLISHED",
            _ => "CONNECTING",
        }
    }

    /// How we have proven ourselves.
    fn local_rounds(&self) -> Vec<RoundView> {
        let ids = self.earlier_ids.iter().chain(&self.local_id).filter(|_| self.peer().is_some());
        let view = |(id, round): (&Identification, &AuthRound)| RoundView {
            id: id.to_string(),
            eap_id: round.eap().map(|_| String::from_utf8_lossy(&round.eap_name(id)).into_owned()),
            by: rounds::by(round),
        };
        ids.zip(self.conn.locals()).map(view).collect()
    }

    /// For the status view.
    pub(super) fn view(&self, now: Instant) -> IkeSaView {
        IkeSaView {
            id: self.id,
            name: self.conn.name.clone(),
            state: self.state_name(),
            initiator: self.initiator.is_us(),
            spi_i: self.spi_i,
            spi_r: self.spi_r,
            local: self.local,
            remote: self.remote,
            mobike: self.mobility.version,
            paths: self.mobility.table.iter().map(Into::into).collect(),
            alternates: self.mobility.alternates.ranked(now),
            local_id: self.local_id.as_ref().map(ToString::to_string),
            local_rounds: self.local_rounds(),
            remote_id: self.peer().map(|p| p.ike_id().to_string()),
            remote_eap_id: self.peer().and_then(|p| p.eap_id()).map(ToString::to_string),
            remote_rounds: self.peer().map_or(Vec::new(), |p| rounds::views(p, self.conn.remotes())),
            remote_vips: self.assigned().to_vec(),
            given: self.given().cloned(),
            suite: self.suite.map(|s| s.to_string()),
            established: self.established_at.map(|at| now.saturating_duration_since(at).as_secs()),
            rekey_in: self.rekey_at.map(|at| at.saturating_duration_since(now).as_secs()),
            children: self.children.iter().map(|c| c.view(now, &self.mobility.checks)).collect(),
        }
    }
}
