//! An IKE SA: what both sides know of it, and how it begins and ends. What it does by itself is in `timers`, what it has still
//! to do in `tasks`, and how requests and answers go out in `window`.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mobikex_common::addr::Path;
use mobikex_common::alg::IkeSuite;
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::sa::{ChildSaId, PolicyId};
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::Identification;
use tracing::info;

use super::addresses::{Outer, Replaces};
use super::auth::{AuthenticatedPeer, SignedOctets};
use super::auth_serving::AuthServing;
use super::child::{ChildOffer, ChildSa};
use super::configuration::Configuration;
use super::ctx::Ctx;
use super::eap_initiator::EapSent;
use super::error::IkeError;
use super::fragments::{Fragments, Outgoing};
use super::informational::Parting;
use super::keys::SkKeys;
use super::mobility::Mobility;
use super::output::{Event, IkeSaView};
use super::prove::Wishes;
use super::reauth::Reauth;
use super::roles::OriginalInitiator;
use super::rounds::{self, RoundView};
use super::sets::Check;
use super::tasks::Tasks;
use super::versions::Version;
use super::window::{Exchange, Pending};
use crate::config::{AuthRound, Connection, ReturnRoutability, Unique};

/// Port of IKE with the non-ESP marker (RFC 7296 2.23).
pub(super) const NAT_T_PORT: u16 = 4500;
/// A responder forgets an initiator that does not authenticate within this time.
const HALF_OPEN_LIFETIME: Duration = Duration::from_secs(30);

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
    pub(super) tasks: Tasks,
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
    /// The peer has deleted this IKE SA, and its answer is put off.
    pub(super) parting: Option<Box<Parting>>,
    /// The last request was never answered.
    pub(super) gave_up: bool,
    /// The peer has found a NAT on a way that has none (RFC 4555 3.9).
    pub(super) unexpected_nat: bool,
    /// When somebody last complained about what we send, see `hints`.
    pub(super) doubted_at: Option<Instant>,
    pub(super) last_keepalive: Instant,
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
            tasks: Tasks::default(),
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
            parting: None,
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
        let replaces = self.conn.unique == Unique::Replace;
        if lost || (replaces && self.initiator.is_us()) {
            self.end_others(ctx, lost);
        } else if replaces && ctx.others.of_peer(&peer_id).next().is_some() {
            self.reauth.await_peer();
        }
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

    /// The addresses of the request that is being answered, where policy lets the peer be there, or else those in use.
    pub(super) fn asked_over(&self, ctx: &Ctx<'_>) -> (SocketAddr, SocketAddr) {
        let unchecked = self.conn.return_routability == ReturnRoutability::Off && !self.peer_behind_nat;
        let over = self.answer_over.filter(|(_, remote, _)| {
            // Where nothing would be checked, whoever is on the way could write any source.
            self.acceptable(ctx, remote.ip()) && (!unchecked || self.peer_addresses(ctx.now).contains(remote))
        });
        over.map_or((self.local, self.remote), |(local, remote, _)| (local, remote))
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

    /// A DELETE of either side is under way.
    fn is_deleting(&self) -> bool {
        let asks = matches!(self.pending.as_ref().map(|p| &p.exchange), Some(Exchange::DeleteIke(_)));
        asks || self.parting.is_some()
    }

    /// Whether it is about to end, so that nothing new is for it, and what it still has does not count.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_deleting() || self.reauth.gives_way()
    }

    /// The state's name in the status view.
    pub(super) fn state_name(&self) -> &'static str {
        let deleting = self.is_deleting();
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
