//! Child SAs for one resource each (RFC 9611), here one for each worker of the packet path.
//!
//! The first Child SA of a policy is for all workers that have none of their own. Both sides say with it, by
//! SA_RESOURCE_INFO, that there may be more; who has not heard that from the peer never asks for one. More are made on
//! demand: the packet path tells when a worker sends on the common SA. The first such packet makes one for every worker,
//! since flows soon come back by whichever worker their answers came to, and a worker that has none would never see any;
//! later ones only replace what was closed.
//!
//! What a peer asks for is bound to the worker with the fewest. Every SA keeps its worker when it is rekeyed, and both of
//! its directions have the same one: we choose the SPI by which its packets are steered. TS_MAX_QUEUE, or any other
//! refusal, ends the asking until the IKE SA is replaced.

use std::sync::Arc;

use mobikex_common::alg::EspSuite;
use mobikex_common::proposal::EspProposal;
use mobikex_common::sa::{ChildSaId, Mode, PolicyId};
use mobikex_common::spi::Spi;
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ike::{Notify, NotifyType, Payload};
use serde::Serialize;
use tracing::info;

use super::child::{ChildSa, Place};
use super::ctx::Ctx;
use super::error::IkeError;
use super::narrow::narrow;
use super::output::Output;
use super::roles::ExchangeInitiator;
use super::rules::notify;
use super::sa::IkeSa;
use super::tasks::Task;
use super::versions::Version;
use super::window::Exchange;
use crate::config::{Child, Connection};

/// What a peer may have for one policy beside the common SA, however few workers we have.
const MORE_MIN: usize = 16;
/// Octets of the peer's identifier that are kept. It serves nobody but people (RFC 9611 3).
const PEER_ID_MAX: usize = 32;

/// What the two sides have agreed upon for one Child SA.
#[derive(Clone, Default, Debug)]
pub(super) struct Resource {
    /// There may be more SAs for the policy.
    pub(super) shares: bool,
    /// The worker that it is for; `None`: all that have none of their own.
    pub(super) worker: Option<u32>,
    /// What the peer calls its resource.
    pub(super) peer_id: Vec<u8>,
    /// The peer has asked for it, and nothing has shown yet that it has our answer.
    pub(super) unheard: bool,
}

impl Resource {
    /// As what it was asked for, and what the other side has said to it.
    pub(super) fn agreed(worker: Option<u32>, willing: bool, theirs: Option<&Notify>) -> Self {
        let mut peer_id = theirs.map(|n| n.data.clone()).unwrap_or_default();
        peer_id.truncate(PEER_ID_MAX);
        Self { shares: willing && theirs.is_some(), worker, peer_id, unheard: false }
    }
}

/// The same for an operator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ResourceView {
    /// The worker that it is for; absent: all that have none of their own.
    pub worker: Option<u32>,
    /// What the peer calls its resource, in hexadecimal.
    pub peer: Option<String>,
}

impl From<&Resource> for Option<ResourceView> {
    fn from(resource: &Resource) -> Self {
        let hex: String = resource.peer_id.iter().map(|octet| format!("{octet:02x}")).collect();
        let view = ResourceView { worker: resource.worker, peer: (!hex.is_empty()).then_some(hex) };
        (resource.shares || view.worker.is_some()).then_some(view)
    }
}

/// Whether more than one SA is welcome. Unless it is said, not where there is but one worker, and not with peers that get
/// their addresses from us (RFC 9611 7).
pub(super) fn willing(ctx: &Ctx<'_>, conn: &Connection, config: &Child) -> bool {
    config.per_cpu_sas.unwrap_or(ctx.workers > 1 && conn.pools.is_empty())
}

/// SA_RESOURCE_INFO. Our identifiers say nothing about the machine: they are the SPI, or absent for the common SA.
pub(super) fn info(spi_in: Option<Spi>) -> Payload {
    let own = spi_in.map(|spi| spi.to_be_bytes().to_vec());
    Payload::Notify(Notify::new(NotifyType::SA_RESOURCE_INFO, own.unwrap_or_default()))
}

/// The settings of a further SA: the algorithms can only be those of the first (RFC 9611 3).
fn same_suite(config: &Child, suite: &EspSuite) -> Arc<Child> {
    let fits = |p: &&EspProposal| {
        p.ciphers.contains(&suite.cipher)
            && suite.integrity.is_none_or(|i| p.integrity.contains(&i))
            && p.esn.contains(&suite.esn)
    };
    let esp_proposals = config.esp_proposals.iter().filter(fits).map(|p| EspProposal {
        ciphers: vec![suite.cipher],
        integrity: suite.integrity.into_iter().collect(),
        kes: p.kes.clone(),
        esn: vec![suite.esn],
    });
    Arc::new(Child { esp_proposals: esp_proposals.take(1).collect(), ..config.clone() })
}

/// A further Child SA that a peer asks for.
pub(super) struct Further {
    pub(super) config: Arc<Child>,
    pub(super) policy: PolicyId,
    pub(super) worker: u32,
    pub(super) ts_local: Vec<TrafficSelector>,
    pub(super) ts_remote: Vec<TrafficSelector>,
}

impl Further {
    pub(super) fn into_parts(self) -> (Arc<Child>, Vec<TrafficSelector>, Vec<TrafficSelector>) {
        (self.config, self.ts_local, self.ts_remote)
    }
}

impl IkeSa {
    /// An SPI of the worker that an SA is for: its own, or the one that had the SA that is rekeyed. So late packets of a
    /// flow are not overtaken by those on another SA.
    pub(super) fn inbound_spi(
        &self,
        ctx: &mut Ctx<'_>,
        old: Option<&ChildSa>,
        worker: Option<u32>,
    ) -> Option<Spi> {
        let before = old.map(|old| old.spi_in.worker(ctx.workers));
        match before.or(worker.map(|worker| worker as usize)) {
            Some(worker) => ctx.spis.allocate_on(worker, ctx.workers, ctx.rng),
            None => ctx.spis.allocate(ctx.rng),
        }
    }

    /// The SA that others are modelled on: the common one, or in its absence another.
    fn model(&self, meant: impl Fn(&ChildSa) -> bool) -> Option<&ChildSa> {
        let ends = |c: &ChildSa| self.tasks.contains(&Task::DeleteChild(c.id));
        let may = |c: &&ChildSa| c.is_live() && c.resource.shares && meant(c) && !ends(c);
        self.children.iter().filter(may).min_by_key(|c| c.resource.worker)
    }

    /// The workers for which a policy has an SA, or will have one as it seems; once for each.
    fn workers_of(&self, policy: PolicyId) -> impl Iterator<Item = u32> {
        let under_way = self.pending.as_ref().and_then(|p| match &p.exchange {
            Exchange::CreateChild(offer) => offer.own.filter(|own| own.0 == policy).map(|own| own.1),
            _ => None,
        });
        let have = self.children.iter().filter(move |c| c.policy == policy && c.is_live());
        have.filter_map(|c| c.resource.worker).chain(under_way)
    }

    /// A worker sends on an SA that is not its own.
    pub(super) fn resource_wanted(&mut self, ctx: &mut Ctx<'_>, id: ChildSaId, worker: u32) {
        let Some(policy) = self.child(id).filter(|c| c.is_live()).map(|c| c.policy) else { return };
        let none = self.workers_of(policy).next().is_none();
        let all = (0..ctx.workers as u32).filter(|other| none && *other != worker);
        for worker in std::iter::once(worker).chain(all) {
            self.add_task(ctx, Task::CreateOwn(policy, worker));
        }
    }

    /// Starts CREATE_CHILD_SA for a worker's own SA, if it is still to be had.
    pub(super) fn start_create_own(
        &mut self,
        ctx: &mut Ctx<'_>,
        policy: PolicyId,
        worker: u32,
    ) -> Result<(), IkeError> {
        let has_one = self.workers_of(policy).any(|other| other == worker);
        if has_one || self.refuses_more.contains(&policy) {
            return Ok(());
        }
        let Some(model) = self.model(|c| c.policy == policy) else { return Ok(()) };
        let config = same_suite(&model.config, &model.suite);
        self.start_child_exchange(ctx, config, None, None, Some((policy, worker)))
    }

    /// The selectors of a policy's SAs.
    pub(super) fn selectors_of(
        &self,
        policy: PolicyId,
    ) -> Option<(Vec<TrafficSelector>, Vec<TrafficSelector>)> {
        self.model(|c| c.policy == policy).map(|c| (c.ts_local.clone(), c.ts_remote.clone()))
    }

    /// A worker's own SA has been made at our request, for these selectors: the answer has to agree to all of them (RFC 9611
    /// 3).
    pub(super) fn own_made(
        &mut self,
        id: ChildSaId,
        (local, remote): &(Vec<TrafficSelector>, Vec<TrafficSelector>),
    ) {
        let Some(child) = self.child(id) else { return };
        let same = |a: &[TrafficSelector], b: &[TrafficSelector]| a.iter().all(|ts| b.contains(ts));
        let narrowed = !same(local, &child.ts_local) || !same(remote, &child.ts_remote);
        let (policy, name) = (child.policy, child.config.name.clone());
        if narrowed {
            self.no_more(policy, &name, "the peer has narrowed its selectors");
            self.tasks.push(Task::DeleteChild(id));
        } else if self.model(|c| c.policy == policy && c.id != id).is_none() {
            // What it was to join has been taken down meanwhile.
            self.tasks.push(Task::DeleteChild(id));
        } else if !self.tasks.contains(&Task::Liveness) {
            // The next request, this one if there is no other, shows the peer that we have its answer, so that it may send
            // on the SA.
            self.tasks.push(Task::Liveness);
        }
    }

    /// The peer has refused another SA for a policy: it is not asked again.
    pub(super) fn no_more(&mut self, policy: PolicyId, name: &str, reason: &str) {
        info!(target: "CHD", "{} no further CHILD_SA for {name}: {reason}", self.name());
        self.refuses_more.push(policy);
        self.tasks.retain(|task| !matches!(task, Task::CreateOwn(of, _) if *of == policy));
    }

    /// What the peer asks for, if it is one more of what there is already: of the same mode, and for all that the first is
    /// for. Its request may also name the packet that was the reason for it (RFC 9611 4). `plain` is what it would get
    /// otherwise.
    ///
    /// # Errors
    /// TS_MAX_QUEUE, when there are enough of them; TEMPORARY_FAILURE, when the two sides do not have the same selectors just now.
    pub(super) fn further(
        &self,
        ctx: &Ctx<'_>,
        payloads: &[Payload],
        (tsi, tsr): (&[TrafficSelector], &[TrafficSelector]),
        plain: Option<&Child>,
    ) -> Result<Option<Further>, Notify> {
        let Some(info) = notify(payloads, NotifyType::SA_RESOURCE_INFO) else { return Ok(None) };
        let transport = notify(payloads, NotifyType::USE_TRANSPORT_MODE).is_some();
        let mode = if transport { Mode::Transport } else { Mode::Tunnel };
        let covers = |ours: &[TrafficSelector], theirs: &[TrafficSelector]| {
            let common = narrow(ours, theirs);
            ours.iter().all(|ts| common.iter().any(|c| c.covers(ts)))
        };
        let within = |c: &ChildSa| c.mode == mode && covers(&c.ts_local, tsr) && covers(&c.ts_remote, tsi);
        let exact = |c: &ChildSa| covers(tsr, &c.ts_local) && covers(tsi, &c.ts_remote);
        let named = |c: &ChildSa| plain.is_some_and(|config| config.name == c.config.name);
        let model = match self.model(|c| within(c) && exact(c)) {
            Some(model) => Some(model),
            None if !info.data.is_empty() && self.is_changing(|c| c.mode == mode && named(c), plain) => {
                return Err(Notify::new(NotifyType::TEMPORARY_FAILURE, Vec::new()));
            }
            // Some name what they once asked for, rather than what came of it.
            None => self.model(|c| within(c) && named(c)),
        };
        let Some(model) = model else { return Ok(None) };
        let policy = model.policy;
        let count = |worker| self.workers_of(policy).filter(|of| *of == worker).count();
        if self.workers_of(policy).count() >= MORE_MIN.max(2 * ctx.workers) {
            info!(target: "CHD", "{} no further CHILD_SA for {}, there are enough, sending TS_MAX_QUEUE", self.name(), model.config.name);
            return Err(Notify::new(NotifyType::TS_MAX_QUEUE, Vec::new()));
        }
        Ok(Some(Further {
            config: same_suite(&model.config, &model.suite),
            policy,
            worker: (0..ctx.workers as u32).min_by_key(|worker| count(*worker)).unwrap_or(0),
            ts_local: model.ts_local.clone(),
            ts_remote: model.ts_remote.clone(),
        }))
    }

    /// Whether another one of us knows the first SA of those `meant`, for the settings `plain`, otherwise than we do: an
    /// action on addresses has changed the selectors, or the answer that makes the SA has not come yet.
    fn is_changing(&self, meant: impl Fn(&ChildSa) -> bool, plain: Option<&Child>) -> bool {
        let asked = self.pending.as_ref().is_some_and(|p| match &p.exchange {
            Exchange::CreateChild(offer) => plain.is_some_and(|config| config.name == offer.config.name),
            _ => false,
        });
        asked || (self.mobility.version == Version::MobikeX && self.model(meant).is_some())
    }

    /// The peer asks for something else, so that it has our answers to what it asked before (RFC 7296 2.3).
    pub(super) fn heard_again(&mut self, ctx: &mut Ctx<'_>) {
        let waits = |c: &&ChildSa| c.resource.unheard && c.fresh == Some(ExchangeInitiator::Peer);
        let known: Vec<_> = self.children.iter().filter(waits).map(|c| c.id).collect();
        known.into_iter().for_each(|id| self.peer_sends_on(ctx, id));
    }

    /// Whether another SA already carries what this one could.
    pub(super) fn has_sender_beside(&self, id: ChildSaId) -> bool {
        let place = self.children.iter().find(|c| c.id == id).map(ChildSa::place);
        self.children.iter().any(|c| c.id != id && c.outbound && c.is_live() && Some(c.place()) == place)
    }

    /// Has the packet path tell which workers want an SA of their own.
    pub(super) fn watch_workers(&self, ctx: &mut Ctx<'_>, policy: PolicyId) {
        if ctx.workers < 2 || self.refuses_more.contains(&policy) {
            return;
        }
        let common = |c: &&ChildSa| c.policy == policy && c.is_live() && c.resource.worker.is_none();
        let Some(common) = self.children.iter().filter(common).find(|c| c.resource.shares) else { return };
        let workers: Vec<u32> =
            (0..ctx.workers as u32).filter(|worker| !self.workers_of(policy).any(|w| w == *worker)).collect();
        if !workers.is_empty() {
            ctx.out.push_back(Output::WatchWorkers { child: common.id, workers });
        }
    }

    /// The same for all policies of this IKE SA, as when it has taken the place of another one: what was refused there may
    /// be asked for here.
    pub(super) fn watch_all_workers(&self, ctx: &mut Ctx<'_>) {
        let common = |c: &&ChildSa| c.resource.shares && c.resource.worker.is_none();
        let policies: Vec<_> = self.children.iter().filter(common).map(|c| c.policy).collect();
        policies.into_iter().for_each(|policy| self.watch_workers(ctx, policy));
    }
}

impl ChildSa {
    /// What it carries. One SA at a time sends in each place.
    pub(super) fn place(&self) -> Place {
        (self.policy, self.resource.worker)
    }

    /// Whether it may begin to send.
    pub(super) fn may_send(&self) -> bool {
        let waits = self.resource.unheard && self.resource.worker.is_some() && self.fresh.is_some();
        !waits && !self.has_ended()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_peer_calls_its_resource_is_only_shown() {
        let theirs = Notify::new(NotifyType::SA_RESOURCE_INFO, vec![0xc0; 1000]);
        let resource = Resource::agreed(Some(3), true, Some(&theirs));
        let view = Option::<ResourceView>::from(&resource).unwrap();
        assert_eq!((view.worker, view.peer), (Some(3), Some("c0".repeat(PEER_ID_MAX))));
        // Whatever stands in fields that mean nothing here.
        let odd = Notify { protocol: mobikex_common::wire::ike::ProtocolId::ESP, spi: vec![1; 4], ..theirs };
        assert!(Resource::agreed(None, true, Some(&odd)).shares);
        for (willing, theirs) in [(true, None), (false, Some(&odd))] {
            let resource = Resource::agreed(None, willing, theirs);
            assert!(!resource.shares && Option::<ResourceView>::from(&resource).is_none());
        }
        // Ours are no numbers of workers.
        for (spi, data) in [(None, vec![]), (Some(Spi(0xc120_0001)), vec![0xc1, 0x20, 0, 1])] {
            assert_eq!(info(spi), Payload::Notify(Notify::new(NotifyType::SA_RESOURCE_INFO, data)));
        }
    }

    #[test]
    fn a_further_sa_can_only_have_the_algorithms_of_the_first() {
        let list = ["aes256gcm16-aes128gcm16-x25519-esn", "aes128-aes256-sha256-sha512-ecp256-esn-noesn"];
        let config = Child { esp_proposals: list.map(|p| p.parse().unwrap()).into(), ..Child::new("net") };
        let suite = |text: &str| {
            let p: EspProposal = text.parse().unwrap();
            EspSuite {
                cipher: p.ciphers[0],
                integrity: p.integrity.first().copied(),
                ke: None,
                esn: p.esn[0],
            }
        };
        for (first, further) in [
            ("aes128gcm16-esn", "aes128gcm16-x25519-esn"),
            ("aes256-sha512-noesn", "aes256-sha512-ecp256-noesn"),
        ] {
            let narrowed = same_suite(&config, &suite(first));
            assert_eq!(narrowed.esp_proposals, [further.parse().unwrap()], "{first}");
        }
    }
}
