//! The databases as one shared value: the control thread changes them, the workers look things up.
//!
//! Changes take a lock among themselves. Lookups take none: everything that they reach is published whole by one
//! pointer store, and an SA only after both of its halves are complete.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mobikex_common::addr::{AddressSet, Path};
use mobikex_common::crypto::CryptoError;
use mobikex_common::sa::{ChildSaId, ChildSaParams, Mode, PolicyId};
use mobikex_common::spi::{MAX_SLOTS, Spi};
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ip::Packet;

use crate::counters::ChildStats;
use crate::esp::{WINDOW_MAX, WINDOW_MIN};
use crate::paths::{Addresses, Change, PathSet};
use crate::published::{Guard, Published, pin};
use crate::sad::{InboundSa, OutboundSa, Selectors};
use crate::spd::{LengthCounts, Policy, Prefix, Rank, Senders, Spd, prefixes};

pub use crate::spd::Lookup;

/// Why an SA cannot be installed. All of them are errors of the caller, none of the peer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InstallError {
    /// The SPI carries a slot that the SAD does not have.
    #[error("SPI {0} is outside the SAD")]
    NoSuchSlot(Spi),
    /// Another SA has the slot.
    #[error("the SAD slot of SPI {0} is taken")]
    SlotTaken(Spi),
    /// SPIs up to 255 are reserved (RFC 4303 2.1).
    #[error("SPI {0} is reserved")]
    ReservedSpi(Spi),
    /// The identifier is in use.
    #[error("Child SA {} is installed already", .0.0)]
    DuplicateId(ChildSaId),
    /// Replay protection cannot be switched off, nor grow without bound.
    #[error("a replay window of {0} is not between {WINDOW_MIN} and {WINDOW_MAX}")]
    BadReplayWindow(u32),
    /// A side has no traffic selectors, or an empty one.
    #[error("the traffic selectors admit nothing")]
    NoSelectors,
    /// There is no pair of outer addresses.
    #[error("the address set is empty")]
    NoPaths,
    /// The keys do not fit the suite.
    #[error("the keys do not fit the suite: {0}")]
    Keys(#[from] CryptoError),
}

/// SAs that are read before others may change the tables.
const COUNTED_AT_ONCE: usize = 256;

/// SAD and SPD.
#[derive(Debug)]
pub struct Tables {
    slots: Box<[Published<InboundSa>]>,
    spd: Spd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    children: HashMap<ChildSaId, Child>,
    policies: HashMap<PolicyId, PolicyState>,
    lengths: LengthCounts,
    age: u64,
}

#[derive(Debug)]
struct Child {
    spi_in: Spi,
    policy: PolicyId,
    /// Who sends on it, if not all that have none of their own.
    worker: Option<u32>,
    outbound: Arc<OutboundSa>,
}

#[derive(Debug)]
struct PolicyState {
    policy: Arc<Policy>,
    age: u64,
    trap: Option<Arc<Selectors>>,
    children: Vec<(ChildSaId, Arc<Selectors>)>,
    senders: Senders,
    /// In ascending order.
    places: Box<[(Prefix, Rank)]>,
}

impl Tables {
    /// Room for `slots` inbound SAs (1 ..= [`MAX_SLOTS`]; other values are cut). The SPI allocator must have the
    /// same number.
    pub fn new(slots: u32) -> Self {
        let slots = slots.clamp(1, MAX_SLOTS) as usize;
        Self {
            slots: std::iter::repeat_with(Published::empty).take(slots).collect(),
            spd: Spd::new(slots),
            state: Mutex::default(),
        }
    }

    /// The inbound SA with this SPI.
    pub fn lookup_inbound<'a>(&'a self, spi: Spi, guard: &'a Guard) -> Option<&'a InboundSa> {
        self.slots.get(spi.slot())?.load(guard).filter(|sa| sa.spi() == spi)
    }

    /// What to do with an outbound packet that a worker has read.
    pub fn lookup_outbound<'a>(&'a self, packet: &Packet<'_>, worker: usize, guard: &'a Guard) -> Lookup<'a> {
        self.spd.lookup(packet, worker, guard)
    }

    /// Installs a Child SA: for receiving at once, and for sending if `outbound_active`.
    ///
    /// # Errors
    /// When the parameters contradict themselves or what is installed; nothing has changed then.
    pub fn install(&self, params: &ChildSaParams, outbound_active: bool) -> Result<(), InstallError> {
        let mut state = self.lock();
        let guard = pin();
        for spi in [params.spi_in, params.spi_out] {
            if spi.0 <= 255 {
                return Err(InstallError::ReservedSpi(spi));
            }
        }
        let slot = self.slots.get(params.spi_in.slot()).ok_or(InstallError::NoSuchSlot(params.spi_in))?;
        if slot.load(&guard).is_some() {
            return Err(InstallError::SlotTaken(params.spi_in));
        }
        if state.children.contains_key(&params.id) {
            return Err(InstallError::DuplicateId(params.id));
        }
        if !(WINDOW_MIN..=WINDOW_MAX).contains(&params.replay_window) {
            return Err(InstallError::BadReplayWindow(params.replay_window));
        }
        if !admit_something(&params.ts_local, &params.ts_remote) {
            return Err(InstallError::NoSelectors);
        }
        if params.addresses.paths.is_empty() {
            return Err(InstallError::NoPaths);
        }
        let addresses = Arc::new(Addresses::new(params.addresses.clone(), params.into()));
        let outbound = Arc::new(OutboundSa::new(params, addresses.clone())?);
        let inbound = InboundSa::new(params, addresses.clone(), outbound.clone())?;
        let selectors = shared_selectors(&addresses).ok_or(InstallError::NoPaths)?;

        // Receiving comes first: the peer may answer the first packet that we send.
        slot.replace(Some(inbound));
        let ChildSaParams { spi_in, policy, worker, .. } = *params;
        let child = Child { spi_in, policy, worker, outbound };
        state.children.insert(params.id, child);
        let policy = state.policy(params.policy);
        // Most policies never have a second one.
        policy.children.reserve_exact(1);
        policy.children.push((params.id, selectors));
        self.publish_policy(&mut state, params.policy);
        if outbound_active {
            state.activate(params.id);
        }
        Ok(())
    }

    /// Sends its policy's traffic on this SA from now on, or what its worker has of it. Unknown SAs are ignored.
    pub fn activate_outbound(&self, id: ChildSaId) {
        let mut state = self.lock();
        let Some(child) = state.children.get(&id) else { return };
        let (policy, selectors) = (child.policy, shared_selectors(child.outbound.addresses()));
        let known = state.policy(policy);
        // The policy may have been removed while the SA lingered.
        if !known.serves(id) {
            known.children.extend(selectors.map(|selectors| (id, selectors)));
            self.publish_policy(&mut state, policy);
        }
        state.activate(id);
    }

    /// Sends nothing more on this SA; receiving goes on.
    pub fn deactivate_outbound(&self, id: ChildSaId) {
        self.lock().deactivate(id);
    }

    /// Removes an SA, and its policy if neither a trap nor another SA needs that.
    pub fn remove(&self, id: ChildSaId) {
        let mut state = self.lock();
        state.deactivate(id);
        let Some(child) = state.children.remove(&id) else { return };
        if let Some(slot) = self.slots.get(child.spi_in.slot()) {
            slot.replace(None);
        }
        if let Some(policy) = state.policies.get_mut(&child.policy) {
            policy.children.retain(|(other, _)| *other != id);
            self.publish_policy(&mut state, child.policy);
        }
    }

    /// Replaces the outer addresses of SAs, of each both directions in one store. Unknown SAs are skipped; returns
    /// how many were changed.
    pub fn set_addresses(&self, ids: &[ChildSaId], set: &AddressSet) -> usize {
        let mut change = Change::new(set.clone());
        let state = self.lock();
        let guard = pin();
        let children = ids.iter().filter_map(|id| state.children.get(id));
        children.map(|child| change.publish(child.outbound.addresses(), None, &guard)).count()
    }

    /// Replaces the outer addresses of an SA together with its selectors, as when an SA in transport mode moves, whose
    /// packets have the outer addresses: both of both directions in one store. A packet that fits the selectors before
    /// and after is never refused meanwhile; one that only fitted them before may raise an acquire. `false`, and
    /// nothing has changed, when there is no such SA or the set or the selectors admit nothing.
    pub fn set_selectors(
        &self,
        id: ChildSaId,
        set: &AddressSet,
        ts_local: &[TrafficSelector],
        ts_remote: &[TrafficSelector],
    ) -> bool {
        let mut state = self.lock();
        let Some(child) = state.children.get(&id) else { return false };
        if set.paths.is_empty() || !admit_something(ts_local, ts_remote) {
            return false;
        }
        let (policy, addresses) = (child.policy, child.outbound.addresses().clone());
        let selectors = Arc::new(Selectors::new(ts_local, ts_remote));
        Change::new(set.clone()).publish(&addresses, Some(selectors.clone()), &pin());
        // The policy is still found where it was, and from there on also where it will be before it leaves there.
        // A lingering SA may be without one.
        if let Some(known) = state.policies.get_mut(&policy)
            && let Some((_, theirs)) = known.children.iter_mut().find(|(other, _)| *other == id)
        {
            *theirs = selectors;
            self.publish_policy(&mut state, policy);
        }
        true
    }

    /// Asks for [`Upcall::Traffic`](crate::Upcall::Traffic) at the next inner packet sent on each of these SAs.
    pub fn watch_traffic(&self, ids: &[ChildSaId]) {
        let state = self.lock();
        ids.iter().filter_map(|id| state.children.get(id)).for_each(|child| child.outbound.watch());
    }

    /// Asks for [`Upcall::OwnSa`](crate::Upcall::OwnSa) when one of these workers sends on this SA, once for each.
    pub fn watch_workers(&self, id: ChildSaId, workers: &[u32]) {
        if let Some(child) = self.lock().children.get(&id) {
            child.outbound.watch_workers(workers);
        }
    }

    /// Inner packets sent so far on all SAs of the policy that this one serves, and authentic ESP packets received on
    /// them over `path`.
    pub fn policy_packets(&self, id: ChildSaId, path: &Path) -> (u64, u64) {
        let state = self.lock();
        let Some(child) = state.children.get(&id) else { return (0, 0) };
        let guard = pin();
        let all = state.policies.get(&child.policy).into_iter().flat_map(|policy| &policy.children);
        all.filter_map(|(id, _)| state.children.get(id)).fold((0, 0), |(sent, received), child| {
            let ways = child.outbound.addresses().stats(&guard);
            let here = ways.iter().find(|way| way.path == *path).map_or(0, |way| way.packets_in);
            (sent + child.outbound.counters().packets(), received + here)
        })
    }

    /// The sending half of an SA.
    pub(crate) fn outbound(&self, id: ChildSaId) -> Option<Arc<OutboundSa>> {
        self.lock().children.get(&id).map(|child| child.outbound.clone())
    }

    /// Makes a policy known before it has an SA: its packets then ask for one. Replaces an earlier trap.
    pub fn install_trap(
        &self,
        id: PolicyId,
        ts_local: &[TrafficSelector],
        ts_remote: &[TrafficSelector],
        _mode: Mode,
    ) {
        let mut state = self.lock();
        state.policy(id).trap = Some(Arc::new(Selectors::new(ts_local, ts_remote)));
        self.publish_policy(&mut state, id);
    }

    /// Removes a policy. SAs that it still has go on receiving.
    pub fn remove_policy(&self, id: PolicyId) {
        let mut state = self.lock();
        let Some(policy) = state.policies.get_mut(&id) else { return };
        policy.trap = None;
        policy.children.clear();
        policy.senders = Senders::default();
        policy.policy.set_senders(&policy.senders);
        self.publish_policy(&mut state, id);
    }

    /// What an SA has carried.
    pub fn stats(&self, id: ChildSaId) -> Option<ChildStats> {
        let state = self.lock();
        let child = state.children.get(&id)?;
        let guard = pin();
        let outbound = &child.outbound;
        let mut stats = ChildStats {
            bytes_out: outbound.counters().bytes(),
            packets_out: outbound.counters().packets(),
            last_out: outbound.counters().last_ms(),
            seq_out: outbound.sequence(),
            paths: outbound.addresses().stats(&guard),
            ..ChildStats::default()
        };
        if let Some(inbound) = self.lookup_inbound(child.spi_in, &guard) {
            stats.bytes_in = inbound.counters().bytes();
            stats.packets_in = inbound.counters().packets();
            stats.last_in = inbound.counters().last_ms();
            stats.replay_highest = inbound.highest();
        }
        Some(stats)
    }

    /// Octets sent so far over each path, for these SAs together.
    pub fn path_octets(&self, ids: &[ChildSaId]) -> Vec<(Path, u64)> {
        let mut octets: Vec<(Path, u64)> = Vec::new();
        let guard = pin();
        for slice in ids.chunks(COUNTED_AT_ONCE) {
            let state = self.lock();
            let addresses = slice.iter().filter_map(|id| Some(state.children.get(id)?.outbound.addresses()));
            for stats in addresses.filter_map(|addresses| addresses.load(&guard)).flat_map(PathSet::stats) {
                match octets.iter_mut().find(|(path, _)| *path == stats.path) {
                    Some((_, sum)) => *sum += stats.bytes_out,
                    None => octets.push((stats.path, stats.bytes_out)),
                }
            }
        }
        octets
    }

    /// All installed SAs, in ascending order.
    pub fn children(&self) -> Vec<ChildSaId> {
        let mut ids: Vec<_> = self.lock().children.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a writer leaves whole published values behind; the bookkeeping is no worse than that.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings what readers see of a policy in line with its bookkeeping, and forgets it when nothing needs it.
    fn publish_policy(&self, state: &mut State, id: PolicyId) {
        let State { policies, lengths, .. } = state;
        let Some(known) = policies.get_mut(&id) else { return };
        let mut covers: Vec<Arc<Selectors>> = known.trap.iter().cloned().collect();
        for (_, selectors) in &known.children {
            if !covers.contains(selectors) {
                covers.push(selectors.clone());
            }
        }
        let places = prefixes(covers.iter().map(Arc::as_ref), known.age);
        known.policy.set_covers(covers);
        for (prefix, rank) in &places {
            if place(&known.places, prefix) != Some(*rank) {
                self.spd.insert(*prefix, *rank, &known.policy, lengths);
            }
        }
        for (prefix, _) in known.places.iter().filter(|(prefix, _)| place(&places, prefix).is_none()) {
            self.spd.remove(*prefix, id, lengths);
        }
        known.places = places;
        if known.trap.is_none() && known.children.is_empty() {
            policies.remove(&id);
        }
    }
}

fn admit_something(ts_local: &[TrafficSelector], ts_remote: &[TrafficSelector]) -> bool {
    [ts_local, ts_remote].iter().all(|side| !side.is_empty() && !side.iter().any(TrafficSelector::is_empty))
}

/// Where a policy is among others under one of its prefixes.
fn place(places: &[(Prefix, Rank)], prefix: &Prefix) -> Option<Rank> {
    places.binary_search_by(|(other, _)| other.cmp(prefix)).ok().map(|n| places[n].1)
}

fn shared_selectors(addresses: &Addresses) -> Option<Arc<Selectors>> {
    addresses.load(&pin()).map(|paths| paths.shared_selectors().clone())
}

impl PolicyState {
    fn serves(&self, id: ChildSaId) -> bool {
        self.children.iter().any(|(other, _)| *other == id)
    }
}

impl State {
    /// The policy's bookkeeping, made if need be.
    fn policy(&mut self, id: PolicyId) -> &mut PolicyState {
        self.policies.entry(id).or_insert_with(|| {
            self.age += 1;
            PolicyState {
                policy: Arc::new(Policy::new(id)),
                age: self.age,
                trap: None,
                children: Vec::new(),
                senders: Senders::default(),
                places: Box::default(),
            }
        })
    }

    fn activate(&mut self, id: ChildSaId) {
        let Some(child) = self.children.get(&id) else { return };
        if let Some(known) = self.policies.get_mut(&child.policy) {
            known.senders.set(child.worker, Some(child.outbound.clone()));
            known.policy.set_senders(&known.senders);
        }
    }

    fn deactivate(&mut self, id: ChildSaId) {
        let Some(child) = self.children.get(&id) else { return };
        let Some(known) = self.policies.get_mut(&child.policy) else { return };
        if known.senders.get(child.worker).is_some_and(|sa| sa.id() == id) {
            known.senders.set(child.worker, None);
            known.policy.set_senders(&known.senders);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::esp::{self, Content, HEADROOM, IvSource, OuterInfo, ReplayTable, WINDOW_MIN};
    use crate::paths::Traffic;
    use crate::testing::{GCM, PEER, US, addresses, mirrored, outbound, params, ts, udp};
    use mobikex_common::addr::{Scheduler, WeightedPath};
    use mobikex_common::drop::DropReason;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    fn tables() -> Tables {
        Tables::new(1024)
    }

    fn sa(id: u32) -> ChildSaParams {
        params(id, Mode::Tunnel, GCM)
    }

    /// The Child SA that carries our packet to the peer, or the policy that lacks one.
    fn carrier(tables: &Tables) -> Result<u32, Option<u32>> {
        let bytes = udp(US, PEER, (1, 2), b"data");
        let guard = pin();
        match tables.lookup_outbound(&Packet::parse(&bytes).unwrap(), 0, &guard) {
            Lookup::Sa(sa, _) => Ok(sa.id().0),
            Lookup::NoSa(policy) => Err(Some(policy.0)),
            Lookup::NoPolicy => Err(None),
        }
    }

    #[test]
    fn a_trap_asks_and_an_sa_answers() {
        let tables = tables();
        assert_eq!(carrier(&tables), Err(None));
        let first = sa(1);
        tables.install_trap(first.policy, &first.ts_local, &first.ts_remote, Mode::Tunnel);
        assert_eq!(carrier(&tables), Err(Some(1)));
        tables.install(&first, false).unwrap();
        assert!(tables.lookup_inbound(first.spi_in, &pin()).is_some());
        assert_eq!(carrier(&tables), Err(Some(1)), "the responder of a rekeying does not send yet");
        tables.activate_outbound(first.id);
        assert_eq!(carrier(&tables), Ok(1));
        // A rekeying: both receive, one sends.
        let second = ChildSaParams { policy: first.policy, ..sa(2) };
        tables.install(&second, true).unwrap();
        assert_eq!(carrier(&tables), Ok(2));
        assert_eq!(tables.children(), [first.id, second.id]);
        tables.deactivate_outbound(first.id);
        assert_eq!(carrier(&tables), Ok(2), "only its own sending ends");
        tables.remove(first.id);
        assert!(tables.lookup_inbound(first.spi_in, &pin()).is_none());
        assert_eq!(carrier(&tables), Ok(2));
        tables.remove(second.id);
        assert_eq!(carrier(&tables), Err(Some(1)), "the trap stays");
        tables.remove_policy(first.policy);
        assert_eq!(carrier(&tables), Err(None));
        assert!(tables.lock().policies.is_empty() && tables.children().is_empty());
        tables.remove(first.id);
        tables.activate_outbound(first.id);
        assert!(
            tables.set_addresses(&[first.id], &addresses(US, PEER)) == 0 && tables.stats(first.id).is_none()
        );
    }

    #[test]
    fn a_worker_sends_on_its_own_sa_and_on_the_common_one_without() {
        let tables = tables();
        let bytes = udp(US, PEER, (1, 2), b"data");
        let packet = Packet::parse(&bytes).unwrap();
        let used = |worker| {
            let guard = pin();
            match tables.lookup_outbound(&packet, worker, &guard) {
                Lookup::Sa(sa, _) => Some((sa.id().0, sa.take_worker(worker))),
                _ => None,
            }
        };
        let of = |id, worker| ChildSaParams { policy: PolicyId(1), worker, ..sa(id) };
        tables.install(&of(1, None), true).unwrap();
        tables.watch_workers(ChildSaId(1), &[1, 70, 256]);
        tables.watch_workers(ChildSaId(9), &[1]);
        assert_eq!((used(0), used(1), used(1)), (Some((1, false)), Some((1, true)), Some((1, false))));
        assert_eq!((used(70), used(300)), (Some((1, true)), Some((1, false))));
        tables.install(&of(2, Some(1)), false).unwrap();
        assert_eq!(used(1), Some((1, false)), "the peer may not have it yet");
        tables.activate_outbound(ChildSaId(2));
        assert_eq!((used(0), used(1), used(2)), (Some((1, false)), Some((2, false)), Some((1, false))));
        // Each is rekeyed by itself.
        tables.install(&of(3, Some(1)), true).unwrap();
        tables.remove(ChildSaId(2));
        tables.install(&of(4, None), true).unwrap();
        tables.remove(ChildSaId(1));
        assert_eq!((used(0), used(1)), (Some((4, false)), Some((3, false))));
        tables.remove(ChildSaId(3));
        assert_eq!(used(1), Some((4, false)));
        // Without a common one those of others will do.
        tables.install(&of(5, Some(2)), true).unwrap();
        tables.deactivate_outbound(ChildSaId(4));
        assert_eq!((used(0), used(2)), (Some((5, false)), Some((5, false))));
        tables.remove_policy(PolicyId(1));
        assert_eq!(used(2), None);
        tables.activate_outbound(ChildSaId(5));
        assert_eq!(used(1), Some((5, false)));
    }

    #[test]
    fn an_sa_without_a_trap_takes_its_policy_along() {
        let tables = tables();
        tables.install(&sa(1), true).unwrap();
        assert_eq!(carrier(&tables), Ok(1));
        tables.deactivate_outbound(ChildSaId(1));
        assert_eq!(carrier(&tables), Err(Some(1)), "no other policy gets the packets of a closing SA");
        tables.activate_outbound(ChildSaId(1));
        tables.remove_policy(PolicyId(1));
        assert_eq!(carrier(&tables), Err(None));
        assert!(tables.lookup_inbound(sa(1).spi_in, &pin()).is_some(), "a lingering SA still receives");
        tables.activate_outbound(ChildSaId(1));
        assert_eq!(carrier(&tables), Ok(1));
        tables.remove(ChildSaId(1));
        assert_eq!(carrier(&tables), Err(None));
    }

    #[test]
    fn a_packet_outside_a_narrowed_sa_does_not_leave_through_it() {
        let tables = tables();
        let narrow = ChildSaParams { ts_remote: vec![ts("10.2.0.0/16[udp/53]")], ..sa(1) };
        tables.install_trap(narrow.policy, &[ts("10.1.0.0/16")], &[ts("10.2.0.0/16")], Mode::Tunnel);
        tables.install(&narrow, true).unwrap();
        assert_eq!(carrier(&tables), Err(Some(1)));
        let dns = udp(US, PEER, (1, 53), b"data");
        let guard = pin();
        assert!(matches!(tables.lookup_outbound(&Packet::parse(&dns).unwrap(), 0, &guard), Lookup::Sa(..)));
    }

    #[test]
    fn b21_numbers_go_on_after_a_move_and_an_activation() {
        let tables = tables();
        tables.install(&sa(1), true).unwrap();
        let bytes = udp(US, PEER, (1, 2), b"data");
        let packet = Packet::parse(&bytes).unwrap();
        let mut ivs = IvSource::from_seed([0; 32]);
        for number in 1..=6 {
            let guard = pin();
            let Lookup::Sa(sa, _) = tables.lookup_outbound(&packet, 0, &guard) else { panic!("no SA") };
            assert_eq!(esp::seal(sa, &packet, &mut [0; 200], &mut ivs).unwrap().sequence, number);
            match number % 3 {
                0 => {
                    let moved = addresses("192.0.2.9", "198.51.100.1");
                    assert_eq!(tables.set_addresses(&[ChildSaId(1)], &moved), 1);
                }
                1 => tables.activate_outbound(ChildSaId(1)),
                _ => {
                    tables.deactivate_outbound(ChildSaId(1));
                    tables.activate_outbound(ChildSaId(1));
                }
            }
        }
        assert_eq!(tables.install(&sa(1), true), Err(InstallError::SlotTaken(sa(1).spi_in)));
        assert_eq!(tables.stats(ChildSaId(1)).unwrap().seq_out, 6);
    }

    #[test]
    fn b23_a_refused_sa_leaves_nothing_behind() {
        let tables = tables();
        let spi = sa(1).spi_in;
        let mut cases = vec![
            (ChildSaParams { ts_local: vec![], ..sa(1) }, InstallError::NoSelectors),
            (ChildSaParams { spi_out: Spi(255), ..sa(1) }, InstallError::ReservedSpi(Spi(255))),
            (ChildSaParams { spi_in: Spi(0x1000_0400), ..sa(1) }, InstallError::NoSuchSlot(Spi(0x1000_0400))),
        ];
        let mut bad = sa(1);
        bad.keys_out.encryption.pop();
        cases.push((bad, InstallError::Keys(CryptoError::BadKeyLength)));
        let mut bad = sa(1);
        bad.keys_in.integrity.push(1);
        cases.push((bad, InstallError::Keys(CryptoError::BadKeyLength)));
        let mut bad = sa(1);
        bad.addresses.paths.clear();
        cases.push((bad, InstallError::NoPaths));
        for (bad, error) in cases {
            assert_eq!(tables.install(&bad, true), Err(error));
            assert!(tables.lookup_inbound(spi, &pin()).is_none());
            assert_eq!(carrier(&tables), Err(None));
            assert!(tables.children().is_empty() && tables.lock().policies.is_empty());
        }
        tables.install(&sa(1), true).unwrap();
        let other = ChildSaParams { spi_in: Spi(0x3000_0001), ..sa(2) };
        assert_eq!(tables.install(&other, true), Err(InstallError::SlotTaken(other.spi_in)));
        let other = ChildSaParams { id: ChildSaId(1), ..sa(2) };
        assert_eq!(tables.install(&other, true), Err(InstallError::DuplicateId(ChildSaId(1))));
        assert!(tables.lookup_inbound(Spi(0x3000_0001), &pin()).is_none(), "the whole SPI is compared");
    }

    #[test]
    fn b24_replay_protection_cannot_be_off() {
        for window in [0, 1, WINDOW_MIN - 1, WINDOW_MAX + 1] {
            let bad = ChildSaParams { replay_window: window, ..sa(1) };
            assert_eq!(tables().install(&bad, true), Err(InstallError::BadReplayWindow(window)));
        }
        let tables = tables();
        tables.install(&sa(1), true).unwrap();
        let guard = pin();
        let inbound = tables.lookup_inbound(sa(1).spi_in, &guard).unwrap();
        let mut windows = ReplayTable::new(1);
        let window = windows.window(inbound).unwrap();
        assert_eq!(window.size(), 64);
        assert_eq!(window.check(0), Err(DropReason::InReplayOld));
    }

    #[test]
    fn b22_a_window_belongs_to_one_sa() {
        let tables = tables();
        let first = sa(1);
        tables.install(&first, true).unwrap();
        let mut windows = ReplayTable::new(2);
        let guard = pin();
        let old = tables.lookup_inbound(first.spi_in, &guard).unwrap();
        windows.window(old).unwrap().commit(esp::Authenticated::for_test(7));
        assert_eq!(windows.window(old).unwrap().highest(), 7);
        tables.remove(first.id);
        let next = ChildSaParams { spi_in: Spi(first.spi_in.0 ^ 0x4000_0000), ..sa(2) };
        tables.install(&next, true).unwrap();
        let new = tables.lookup_inbound(next.spi_in, &guard).unwrap();
        assert_eq!(windows.window(new).unwrap().highest(), 0);
        windows.window(new).unwrap().commit(esp::Authenticated::for_test(9));
        assert!(windows.window(old).is_none(), "a late packet of the old SA must not reset the new window");
        assert_eq!(windows.window(new).unwrap().highest(), 9);
    }

    #[test]
    fn a_move_changes_both_directions_at_once_and_keeps_counting() {
        let tables = tables();
        tables.install(&sa(1), true).unwrap();
        let guard = pin();
        let inbound = tables.lookup_inbound(sa(1).spi_in, &guard).unwrap();
        let mut next = addresses("192.0.2.7", "198.51.100.1");
        next.paths.extend(sa(1).addresses.paths);
        next.generation = 2;
        assert_eq!(tables.set_addresses(&[ChildSaId(1)], &next), 1);
        assert_eq!(inbound.addresses().load(&guard).unwrap().set(), &next);
        let bytes = udp(US, PEER, (1, 2), b"data");
        let Lookup::Sa(outbound, _) = tables.lookup_outbound(&Packet::parse(&bytes).unwrap(), 0, &guard)
        else {
            panic!("no SA")
        };
        let paths = outbound.addresses().load(&guard).unwrap();
        assert_eq!(paths.set(), &next);
        let chosen = paths.choose(&traffic(0)).unwrap();
        chosen.counters.count_out(1, 100);
        outbound.counters().stamp(77);
        let stats = tables.stats(ChildSaId(1)).unwrap();
        assert_eq!(
            (stats.paths[0].path, stats.paths[0].bytes_out, stats.last_out),
            (chosen.path.path, 100, 77)
        );
    }

    const SCHEDULERS: [Scheduler; 4] =
        [Scheduler::Flow, Scheduler::Packet, Scheduler::Redundant, Scheduler::Backup];

    fn traffic(flow_hash: u64) -> Traffic {
        Traffic { flow_hash, assigned: None, turn: 0, len: 100, ends: None }
    }

    /// RFC 4555 moves all Child SAs of an IKE SA at once, and their packets wait for nothing meanwhile.
    #[test]
    fn a_thousand_sas_move_in_no_time() {
        let tables = tables();
        let ids: Vec<_> = (1..=1000).map(ChildSaId).collect();
        for id in &ids {
            tables.install(&ChildSaParams { policy: PolicyId(1), ..sa(id.0) }, true).unwrap();
        }
        let mut set = addresses("192.0.2.7", "198.51.100.1");
        set.paths.extend((1..8).map(|n| addresses(&format!("192.0.2.{n}"), "198.51.100.2").paths[0]));
        let mut best = Duration::MAX;
        for generation in 2..12 {
            set.generation = generation;
            let start = Instant::now();
            assert_eq!(tables.set_addresses(&ids, &set), 1000);
            best = best.min(start.elapsed());
        }
        assert!(best < Duration::from_millis(10), "{best:?}");
        let guard = pin();
        let last = tables.lookup_inbound(sa(1000).spi_in, &guard).unwrap();
        assert_eq!(last.addresses().load(&guard).unwrap().set(), &set);
    }

    /// A transport SA between our address and the peer's.
    fn transport(id: u32, us: &str, peer: &str) -> ChildSaParams {
        ChildSaParams {
            ts_local: vec![ts(us)],
            ts_remote: vec![ts(peer)],
            addresses: addresses(us, peer),
            ..params(id, Mode::Transport, GCM)
        }
    }

    #[test]
    fn a_transport_sa_moves_with_its_selectors() {
        let tables = tables();
        tables.install(&transport(1, US, PEER), true).unwrap();
        tables.install(&ChildSaParams { ts_local: vec![ts("10.1.0.9")], ..sa(2) }, true).unwrap();
        let carrier = |src: &str| {
            let bytes = udp(src, PEER, (1, 2), b"data");
            let guard = pin();
            match tables.lookup_outbound(&Packet::parse(&bytes).unwrap(), 0, &guard) {
                Lookup::Sa(sa, paths) => {
                    let ends = Some((src.parse().unwrap(), PEER.parse().unwrap()));
                    assert!(paths.choose(&Traffic { ends, ..traffic(0) }).is_ok());
                    Some(sa.id().0)
                }
                _ => None,
            }
        };
        assert_eq!((carrier(US), carrier("10.1.0.2")), (Some(1), None));
        let moved = addresses("10.1.0.2", PEER);
        assert!(tables.set_selectors(ChildSaId(1), &moved, &[ts("10.1.0.2")], &[ts(PEER)]));
        assert_eq!((carrier(US), carrier("10.1.0.2")), (None, Some(1)));
        let guard = pin();
        let inbound = tables.lookup_inbound(sa(1).spi_in, &guard).unwrap();
        let paths = inbound.addresses().load(&guard).unwrap();
        assert_eq!((paths.set(), paths.selectors().local()), (&moved, &[ts("10.1.0.2")][..]));
        // Once more without a change, and with what admits nothing.
        assert!(tables.set_selectors(ChildSaId(1), &moved, &[ts("10.1.0.2")], &[ts(PEER)]));
        let mut empty = moved.clone();
        empty.paths.clear();
        assert!(!tables.set_selectors(ChildSaId(1), &empty, &[ts(US)], &[ts(PEER)]));
        assert!(!tables.set_selectors(ChildSaId(1), &moved, &[], &[ts(PEER)]));
        assert!(
            tables.set_selectors(ChildSaId(2), &moved, &[ts("10.1.0.8")], &[ts(PEER)]),
            "inner addresses change"
        );
        assert!(!tables.set_selectors(ChildSaId(3), &moved, &[ts(US)], &[ts(PEER)]));
        assert_eq!(carrier("10.1.0.2"), Some(1));
        // Without its policy the SA still moves, and brings the new selectors when it is activated again.
        tables.remove_policy(PolicyId(1));
        assert!(tables.set_selectors(ChildSaId(1), &addresses(US, PEER), &[ts(US)], &[ts(PEER)]));
        assert_eq!((carrier(US), carrier("10.1.0.2")), (None, None));
        tables.activate_outbound(ChildSaId(1));
        assert_eq!((carrier(US), carrier("10.1.0.2")), (Some(1), None));
        tables.remove(ChildSaId(1));
        tables.remove(ChildSaId(2));
        assert!(tables.lock().policies.is_empty());
    }

    /// The peer has three addresses and keeps the middle one, which stands under another prefix each time. A wider
    /// policy lies in wait for packets that fall through.
    #[test]
    fn b23_what_stays_allowed_is_never_refused_while_a_transport_sa_moves() {
        let tables = Arc::new(tables());
        let first = transport(1, US, PEER);
        tables.install(&first, true).unwrap();
        tables
            .install(
                &ChildSaParams {
                    ts_local: vec![ts("10.0.0.0/8")],
                    ts_remote: vec![ts("0.0.0.0/0")],
                    ..sa(2)
                },
                true,
            )
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        // More readers than cores, so that some lose theirs in the middle of a lookup.
        let reader = || {
            let (tables, stop) = (tables.clone(), stop.clone());
            std::thread::spawn(move || {
                let bytes = udp(US, PEER, (1, 2), b"data");
                let packet = Packet::parse(&bytes).unwrap();
                let ends = Some((packet.src, packet.dst));
                let mut lookups = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let guard = pin();
                    let Lookup::Sa(sa, paths) = tables.lookup_outbound(&packet, 0, &guard) else {
                        panic!("refused")
                    };
                    assert_eq!(sa.id(), ChildSaId(1));
                    assert!(paths.choose(&Traffic { ends, ..traffic(0) }).is_ok());
                    lookups += 1;
                }
                lookups
            })
        };
        let readers: Vec<_> = (0..8).map(|_| reader()).collect();
        let remotes = [
            vec![ts(PEER)],
            vec![ts("10.2.0.0/24")],
            vec![ts("10.0.0.0..10.2.0.1")],
            vec![ts("10.2.0.0/31"), ts("10.3.0.1")],
        ];
        for round in 0..4000 {
            let mut set = addresses(US, PEER);
            set.paths.insert(0, addresses(US, &format!("10.2.0.{}", 2 + round % 9)).paths[0]);
            assert!(tables.set_selectors(
                ChildSaId(1),
                &set,
                &first.ts_local,
                &remotes[round % remotes.len()]
            ));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 0));
    }

    /// All SAs move over and over while workers use them: no set is seen half, and no octet of a path that stays
    /// goes uncounted.
    #[test]
    fn b23_many_sas_move_under_load() {
        const SAS: u32 = 500;
        let tables = Arc::new(tables());
        let ids: Vec<_> = (1..=SAS).map(ChildSaId).collect();
        // Encapsulated, so that ports tell paths apart.
        let stays = WeightedPath::new(sa(1).addresses.paths[0].path, true);
        for id in &ids {
            let addresses = AddressSet { paths: vec![stays], ..sa(1).addresses };
            tables.install(&ChildSaParams { policy: PolicyId(1), addresses, ..sa(id.0) }, true).unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..2u32)
            .map(|reader| {
                let (tables, stop) = (tables.clone(), stop.clone());
                std::thread::spawn(move || {
                    let (mut counted, mut turn) = (0, u64::from(reader));
                    while !stop.load(Ordering::Relaxed) {
                        let guard = pin();
                        // Each SA has one owner, as in the packet path.
                        let id = 1 + reader + 2 * ((turn as u32).wrapping_mul(0x9e37_79b9) % (SAS / 2));
                        let sa = tables.lookup_inbound(sa(id).spi_in, &guard).unwrap();
                        let paths = sa.addresses().load(&guard).unwrap();
                        let set = paths.set();
                        // The second path's port is the generation, so what belongs to another set is told apart.
                        assert_eq!(set.paths.len(), if set.generation == 1 { 1 } else { 2 });
                        let own = |path: Path| {
                            path == stays.path || u64::from(path.remote.port()) == set.generation
                        };
                        let traffic = Traffic { turn, ..traffic(turn << 56) };
                        let first = paths.choose(&traffic).unwrap();
                        assert!(own(first.path.path));
                        assert!(paths.others(first, &traffic).all(|other| own(other.path.path)));
                        paths.find(&stays.path, true).unwrap().counters.count_in(1, 1);
                        (counted, turn) = (counted + 1, turn + 1);
                    }
                    counted
                })
            })
            .collect();
        for generation in 2..400 {
            let mut set = sa(1).addresses;
            set.generation = generation;
            set.scheduler = SCHEDULERS[generation as usize % SCHEDULERS.len()];
            set.paths = vec![stays, stays];
            set.paths[1].path.remote.set_port(generation as u16);
            // The path that stays is now the first and now the second.
            set.paths.rotate_left(generation as usize % 2);
            assert_eq!(tables.set_addresses(&ids, &set), SAS as usize);
        }
        stop.store(true, Ordering::Relaxed);
        let counted: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        let guard = pin();
        let found = ids.iter().map(|id| {
            let sa = tables.lookup_inbound(sa(id.0).spi_in, &guard).unwrap();
            let stats = sa.addresses().stats(&guard);
            stats.iter().find(|path| path.path == stays.path).unwrap().bytes_in
        });
        assert_eq!((found.sum::<u64>(), counted > 0), (counted, true));
    }

    /// Readers run while SAs come, go and move: whatever a reader sees is whole and works.
    #[test]
    fn b23_readers_see_an_sa_complete_or_not_at_all() {
        const SAS: u32 = 8;
        let tables = Arc::new(tables());
        let stop = Arc::new(AtomicBool::new(false));
        let (hits, moves) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut readers = Vec::new();
        for worker in 0..2u64 {
            let (tables, stop, hits) = (tables.clone(), stop.clone(), hits.clone());
            readers.push(std::thread::spawn(move || {
                let bytes = udp(US, PEER, (1, 2), b"data");
                let packet = Packet::parse(&bytes).unwrap();
                let mut ivs = IvSource::from_seed([worker as u8; 32]);
                let mut windows = ReplayTable::new(1);
                // The peers' ends, in fixed tables of their own: they number what we open.
                let peers: Vec<_> = (0..SAS).map(|n| outbound(&mirrored(&sa(n + 1)))).collect();
                let back = udp(PEER, US, (2, 1), b"data");
                let back = Packet::parse(&back).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let guard = pin();
                    if let Lookup::Sa(sa, paths) = tables.lookup_outbound(&packet, 0, &guard) {
                        esp::seal(sa, &packet, &mut [0; 200], &mut ivs).unwrap();
                        let chosen = paths.choose(&traffic(crate::paths::flow_hash(&packet))).unwrap();
                        // Each set is made so that its parts name its generation.
                        let port = u64::from(chosen.path.path.local.port());
                        assert!(port == paths.set().generation || paths.set().generation == 1);
                    }
                    for peer in &peers {
                        let spi = peer.spi();
                        let Some(sa) = tables.lookup_inbound(spi, &guard) else { continue };
                        assert_eq!(sa.spi(), spi);
                        let mut buffer = [0; 300];
                        let sealed = esp::seal(peer, &back, &mut buffer[HEADROOM..], &mut ivs).unwrap();
                        let path = addresses("192.0.2.1", "198.51.100.1").paths[0].path;
                        let outer = OuterInfo { path, tos: 0, encap: false };
                        let window = windows.window(sa).unwrap();
                        let range = HEADROOM..HEADROOM + sealed.len;
                        let opened = esp::open(sa, window, &mut buffer, range, &outer, &guard).unwrap();
                        let Content::Packet(range) = opened.content else { panic!("{opened:?}") };
                        assert_eq!(&buffer[range], back.bytes());
                        hits.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }));
        }
        let mover = {
            let (tables, stop, moves) = (tables.clone(), stop.clone(), moves.clone());
            std::thread::spawn(move || {
                let mut generation = 2;
                while !stop.load(Ordering::Relaxed) {
                    let ids: Vec<_> = (1..=SAS).map(ChildSaId).collect();
                    let mut set = addresses("192.0.2.1", "198.51.100.1");
                    set.generation = generation;
                    set.paths[0].path.local.set_port(generation as u16);
                    set.paths.push(set.paths[0]);
                    set.scheduler = SCHEDULERS[generation as usize % SCHEDULERS.len()];
                    moves.fetch_add(tables.set_addresses(&ids, &set) as u64, Ordering::Relaxed);
                    generation = 2 + generation % 60_000;
                }
            })
        };
        let mut round = 0u32;
        while round < 400 || hits.load(Ordering::Relaxed) < 100 || moves.load(Ordering::Relaxed) < 100 {
            let params = ChildSaParams { policy: PolicyId(1), ..sa(1 + round % SAS) };
            if tables.children().contains(&params.id) {
                tables.remove(params.id);
            } else {
                tables.install(&params, round.is_multiple_of(3)).unwrap();
                tables.activate_outbound(params.id);
            }
            round += if round % 5 == 4 { 2 } else { 1 };
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        mover.join().unwrap();
    }
}
