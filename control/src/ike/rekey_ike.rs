//! Rekeying of the IKE SA (RFC 7296 1.3.2, 2.8.2, 2.18).

use std::time::Duration;

use mobikex_common::alg::{IkeSuite, KeyExchange};
use mobikex_common::crypto::ke::PrivateKey;
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::{ExchangeType, Notify, NotifyType, Payload};
use tracing::info;

use super::crypt::Protected;
use super::ctx::{Ctx, Effect};
use super::error::IkeError;
use super::keys::{SkKeys, SkeySeed};
use super::output::Event;
use super::roles::OriginalInitiator;
use super::rules::{self, error_notify};
use super::sa::{IkeRekey, IkeSa, PeerRekey, State};
use super::select;
use super::tasks::Task;
use super::versions::Version;
use super::window::Exchange;

/// SA, nonce and KE of one side.
struct Parts<'a> {
    proposals: &'a [mobikex_common::wire::ike::Proposal],
    nonce: &'a Vec<u8>,
    method: u16,
    public: &'a [u8],
}

fn parts(payloads: &[Payload]) -> Result<Parts<'_>, IkeError> {
    let rule = |story| IkeError::Rule { exchange: "IKE SA rekeying", story };
    let proposals = rules::proposals(payloads);
    let nonce = rules::nonce(payloads);
    let ke = rules::key_exchange(payloads);
    let (method, public) = ke.ok_or_else(|| rule("the message has no KE"))?;
    Ok(Parts {
        proposals: proposals.ok_or_else(|| rule("the message has no SA"))?,
        nonce: nonce.ok_or_else(|| rule("the message has no nonce"))?,
        method,
        public,
    })
}

fn spi_of(bytes: &[u8]) -> Option<IkeSpi> {
    <[u8; 8]>::try_from(bytes).ok().map(u64::from_be_bytes).filter(|spi| *spi != 0).map(IkeSpi)
}

impl IkeSa {
    /// Asks for a new IKE SA.
    pub(super) fn start_rekey_ike(&mut self, ctx: &mut Ctx<'_>) -> Result<(), IkeError> {
        if self.rekeyed_by.is_some() || self.peer_rekey.is_some() {
            return Ok(());
        }
        if self.inherits_from.is_some() {
            // Not before it is settled that this SA is the one that stays.
            self.retry_later(ctx, Task::RekeyIke);
            return Ok(());
        }
        // The method in use is acceptable to both.
        let method = self.suite.map(|s| s.ke).ok_or(IkeError::NotProtected)?;
        self.send_rekey_ike(ctx, method)
    }

    fn send_rekey_ike(&mut self, ctx: &mut Ctx<'_>, method: KeyExchange) -> Result<(), IkeError> {
        let spi = IkeSpi::random(ctx.rng);
        let ke = PrivateKey::generate(method, ctx.rng);
        let ni = ctx.nonce();
        let payloads = [
            Payload::Sa(select::offer_ike(&self.conn.proposals, &spi.to_be_bytes())),
            Payload::Nonce(ni.clone()),
            Payload::Ke { method: method.transform(), data: ke.public().to_vec() },
        ];
        let exchange = Exchange::RekeyIke(Box::new(IkeRekey { spi, ke, method, ni }));
        self.send_request(ctx, ExchangeType::CREATE_CHILD_SA, exchange, &payloads).map(drop)
    }

    /// A new SA that takes this one's place: same peer, same addresses, message IDs from zero.
    fn successor(
        &self,
        ctx: &mut Ctx<'_>,
        initiator: OriginalInitiator,
        spis: (IkeSpi, IkeSpi),
        suite: IkeSuite,
        keys: SkKeys,
    ) -> Result<Self, IkeError> {
        let peer = self.peer().cloned().ok_or(IkeError::NotProtected)?;
        let state = State::Established(peer.clone());
        let mut sa = Self::new(ctx, self.conn.clone(), initiator, spis, (self.local, self.remote), state);
        sa.nat_t = self.nat_t;
        sa.encap = self.encap;
        sa.fragments = self.fragments.successor();
        sa.behind_nat = self.behind_nat;
        sa.peer_behind_nat = self.peer_behind_nat;
        sa.mobility = self.mobility.clone();
        // The hash covers the SPIs, which are new (RFC 4555 3.8).
        sa.mobility.seen = None;
        if sa.mobility.version != Version::None {
            // What was left undone when this one was replaced.
            sa.tasks.push(Task::Reconcile);
        }
        match self.pending.as_ref().map(|p| &p.exchange) {
            // The answer will not come any more.
            Some(Exchange::Actions(_)) if sa.behind_nat => sa.mobility.remapped = true,
            Some(Exchange::Actions(_)) => sa.mobility.tell_all = true,
            Some(Exchange::Update(_) | Exchange::Announce) => {
                sa.mobility.update_wanted |= sa.mobility.decides;
                sa.mobility.announced.clear();
            }
            // Not at once: there may have been a datagram just now (M6 of the threats).
            Some(Exchange::Check { pair, rebound, .. }) => {
                let check = sa.check_of(*pair, *rebound);
                sa.tasks.push_at(ctx.now + Duration::from_secs(1), check);
            }
            _ => {}
        }
        sa.local_id = self.local_id.clone();
        sa.earlier_ids = self.earlier_ids.clone();
        sa.inherit_configuration(ctx, self);
        sa.suite = Some(suite);
        sa.keys = Some(keys);
        sa.establish(ctx, peer);
        sa.reauth = self.reauth.successor();
        Ok(sa)
    }

    /// The peer's request to rekey this IKE SA; returns the answer.
    pub(super) fn handle_rekey_ike_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        _proof: Protected,
    ) -> Result<Vec<Payload>, IkeError> {
        let refuse = |kind| vec![Payload::Notify(Notify::new(kind, Vec::new()))];
        let pending = self.pending.as_ref().map(|p| &p.exchange);
        let collides = matches!(pending, Some(Exchange::RekeyIke(_)));
        let busy = matches!(
            pending,
            Some(Exchange::CreateChild(_) | Exchange::DeleteChild(_) | Exchange::DeleteIke(_))
        );
        if busy || self.rekeyed_by.is_some() || self.peer_rekey.is_some() {
            return Ok(refuse(NotifyType::TEMPORARY_FAILURE));
        }
        let theirs = parts(payloads)?;
        let sent = KeyExchange::from_transform(theirs.method);
        let Some((suite, chosen)) = select::choose_ike(&self.conn.proposals, theirs.proposals, 8, sent)
        else {
            let ours = select::offer_ike(&self.conn.proposals, &[]);
            info!(target: "CFG", "received proposals: {}", select::describe(theirs.proposals));
            info!(target: "CFG", "configured proposals: {}", select::describe(&ours));
            let mismatch = select::mismatch(&ours, theirs.proposals);
            info!(target: "IKE", "{} no IKE proposal for rekeying is acceptable: {mismatch}", self.name());
            return Ok(refuse(NotifyType::NO_PROPOSAL_CHOSEN));
        };
        if theirs.method != suite.ke.transform() {
            info!(target: "IKE", "{} KE method {} unacceptable, requesting {}", self.name(), theirs.method, suite.ke);
            let wanted = suite.ke.transform().to_be_bytes().to_vec();
            return Ok(vec![Payload::Notify(Notify::new(NotifyType::INVALID_KE_PAYLOAD, wanted))]);
        }
        let Some(spi_i) = spi_of(&chosen.spi) else { return Ok(refuse(NotifyType::NO_PROPOSAL_CHOSEN)) };
        let spi_r = IkeSpi::random(ctx.rng);
        let ke = PrivateKey::generate(suite.ke, ctx.rng);
        let shared = ke.agree(theirs.public)?;
        let (ni, nr) = (theirs.nonce.clone(), ctx.nonce());
        let seed = SkeySeed::rekeyed(self.keys()?, &ni, &nr, &shared);
        let keys = seed.expand(ctx, suite, &ni, &nr, spi_i, spi_r)?;
        let mut sa = self.successor(ctx, OriginalInitiator::Peer, (spi_i, spi_r), suite, keys)?;
        sa.inherits_from = collides.then_some(self.id);
        let (id, name) = (sa.id, sa.name());
        ctx.effects.push(Effect::Spawn(Box::new(sa)));
        if collides {
            self.peer_rekey = Some(PeerRekey { id, lowest_nonce: ni.min(nr.clone()) });
        } else {
            self.replaced_by(ctx, id, &name);
        }
        Ok(vec![
            Payload::Sa(vec![select::answer_ike(&suite, &chosen, &spi_r.to_be_bytes())]),
            Payload::Nonce(nr),
            Payload::Ke { method: theirs.method, data: ke.public().to_vec() },
        ])
    }

    /// The new SA inherits all children and what was to be done with them (RFC 7296 2.8).
    fn replaced_by(&mut self, ctx: &mut Ctx<'_>, id: u32, name: &str) {
        self.mark_rekeyed(ctx, id);
        let of_children =
            |t: &Task| !matches!(t, Task::DeleteIke(_) | Task::RekeyIke | Task::Liveness | Task::Doubt);
        let tasks = self.tasks.take(of_children);
        self.tasks.retain(|task| matches!(task, Task::DeleteIke(_)));
        let children = std::mem::take(&mut self.children);
        let mappings = Some(std::mem::take(&mut self.mobility.mappings));
        ctx.effects.push(Effect::MoveChildren { to: id, children, tasks, mappings });
        ctx.event(Event::IkeRekeyed { ike: self.name(), by: name.to_string() });
    }

    /// The answer to our own request.
    pub(super) fn handle_rekey_ike_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        ours: IkeRekey,
        payloads: &[Payload],
        _proof: Protected,
    ) -> Result<(), IkeError> {
        if let Some(error) = error_notify(payloads) {
            return self.rekey_refused(ctx, &ours, error);
        }
        let theirs = parts(payloads)?;
        let rule = |story| IkeError::Rule { exchange: "IKE SA rekeying", story };
        let [proposal] = theirs.proposals else { return Err(rule("the answer must hold one proposal")) };
        let (suite, _) = select::choose_ike(&self.conn.proposals, theirs.proposals, 8, Some(ours.method))
            .ok_or_else(|| {
                let theirs = select::describe(theirs.proposals);
                IkeError::NoProposal(format!("the peer selected {theirs}; we offered {}", self.offered_ike()))
            })?;
        if suite.ke != ours.method || theirs.method != ours.method.transform() {
            return Err(rule("the KE payload is not of the method that was selected"));
        }
        let spi_r = spi_of(&proposal.spi).ok_or_else(|| rule("the peer's SPI is zero"))?;
        let shared = ours.ke.agree(theirs.public)?;
        let (ni, nr) = (ours.ni.clone(), theirs.nonce.clone());
        let seed = SkeySeed::rekeyed(self.keys()?, &ni, &nr, &shared);
        let keys = seed.expand(ctx, suite, &ni, &nr, ours.spi, spi_r)?;
        let mut sa = self.successor(ctx, OriginalInitiator::Us, (ours.spi, spi_r), suite, keys)?;
        let (id, name) = (sa.id, sa.name());
        let lowest = ni.min(nr);
        let loses = |theirs: &&PeerRekey| lowest < theirs.lowest_nonce;
        let winner = self.peer_rekey.as_ref().filter(loses).map(|theirs| theirs.id);
        if let Some(by) = self.rekeyed_by.or(winner) {
            // Nothing is done with it but its deletion.
            sa.tasks.clear();
            sa.mark_rekeyed(ctx, by);
        }
        ctx.effects.push(Effect::Spawn(Box::new(sa)));
        if self.rekeyed_by.is_some() {
            // The peer has settled for its own meanwhile.
            ctx.effects.push(Effect::DeleteIke(id));
            return Ok(());
        }
        match self.peer_rekey.take() {
            // RFC 7296 2.8.2, as for Child SAs: the exchange with the lowest nonce is redundant.
            Some(theirs) if lowest < theirs.lowest_nonce => {
                info!(target: "IKE", "{} simultaneous rekeying: the peer's IKE_SA stays", self.name());
                let winner = format!("{}[{}]", self.conn.name, theirs.id);
                self.replaced_by(ctx, theirs.id, &winner);
                ctx.effects.push(Effect::DeleteIke(id));
            }
            theirs => {
                if let Some(loser) = theirs {
                    // The peer deletes it if it ever hears of it; until then it must not look alive.
                    ctx.effects.push(Effect::Supersede { id: loser.id, by: id });
                }
                self.replaced_by(ctx, id, &name);
                self.tasks.push_first(Task::DeleteIke("rekeyed".into()));
            }
        }
        Ok(())
    }

    /// Our own rekeying came to nothing: if the peer's was done meanwhile, that one stands.
    pub(super) fn yield_to_peer_rekey(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let Some(theirs) = self.peer_rekey.take() else { return false };
        let winner = format!("{}[{}]", self.conn.name, theirs.id);
        self.replaced_by(ctx, theirs.id, &winner);
        true
    }

    fn rekey_refused(&mut self, ctx: &mut Ctx<'_>, ours: &IkeRekey, error: &Notify) -> Result<(), IkeError> {
        if self.yield_to_peer_rekey(ctx) {
            return Ok(());
        }
        if error.kind == NotifyType::INVALID_KE_PAYLOAD {
            let method = rules::wanted_method(error).and_then(KeyExchange::from_transform);
            let offered = method.filter(|m| self.conn.proposals.iter().any(|p| p.kes.contains(m)));
            if let Some(method) = offered.filter(|m| *m != ours.method) {
                return self.send_rekey_ike(ctx, method);
            }
        }
        let (name, ours) = (self.name(), self.offered_ike());
        info!(target: "IKE", "{name} peer answered {} to rekeying with {ours}, trying again soon", error.kind);
        self.retry_later(ctx, Task::RekeyIke);
        Ok(())
    }
}
