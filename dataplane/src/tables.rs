//! The databases as one shared value: the control thread changes them, the workers look things up.
//!
//! Changes take a lock among themselves. Lookups take none: everything that they reach is published whole by one
//! pointer store, and an SA only after both of its halves are complete.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mobikex_common::addr::AddressSet;
use mobikex_common::crypto::CryptoError;
use mobikex_common::sa::{ChildSaId, ChildSaParams, Mode, PolicyId};
use mobikex_common::spi::{MAX_SLOTS, Spi};
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ip::Packet;

use crate::counters::ChildStats;
use crate::esp::{WINDOW_MAX, WINDOW_MIN};
use crate::paths::Addresses;
use crate::published::{Guard, Published, pin};
use crate::sad::{InboundSa, OutboundSa, Selectors};
use crate::spd::{LengthCounts, Policy, Prefix, Rank, Spd, prefixes};

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
    outbound: Arc<OutboundSa>,
    addresses: Arc<Addresses>,
}

#[derive(Debug)]
struct PolicyState {
    policy: Arc<Policy>,
    age: u64,
    trap: Option<Selectors>,
    children: Vec<(ChildSaId, Selectors)>,
    places: BTreeMap<Prefix, Rank>,
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

    /// What to do with an outbound packet.
    pub fn lookup_outbound<'a>(&'a self, packet: &Packet<'_>, guard: &'a Guard) -> Lookup<'a> {
        self.spd.lookup(packet, guard)
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
        for side in [&params.ts_local, &params.ts_remote] {
            if side.is_empty() || side.iter().any(TrafficSelector::is_empty) {
                return Err(InstallError::NoSelectors);
            }
        }
        if params.addresses.paths.is_empty() {
            return Err(InstallError::NoPaths);
        }
        let addresses = Arc::new(Addresses::new(params.addresses.clone()));
        let inbound = InboundSa::new(params, addresses.clone())?;
        let outbound = Arc::new(OutboundSa::new(params, addresses.clone())?);

        // Receiving comes first: the peer may answer the first packet that we send.
        slot.replace(Some(inbound));
        let child = Child { spi_in: params.spi_in, policy: params.policy, outbound, addresses };
        state.children.insert(params.id, child);
        let policy = state.policy(params.policy);
        policy.children.push((params.id, params.into()));
        self.publish_policy(&mut state, params.policy);
        if outbound_active {
            state.activate(params.id);
        }
        Ok(())
    }

    /// Sends its policy's traffic on this SA from now on. Unknown SAs are ignored.
    pub fn activate_outbound(&self, id: ChildSaId) {
        let mut state = self.lock();
        let Some(child) = state.children.get(&id) else { return };
        let (policy, selectors) = (child.policy, child.outbound.selectors().clone());
        let known = state.policy(policy);
        // The policy may have been removed while the SA lingered.
        if known.children.iter().all(|(other, _)| *other != id) {
            known.children.push((id, selectors));
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

    /// Replaces the outer addresses of an SA, both directions in one store. Tells whether there is such an SA.
    pub fn set_addresses(&self, id: ChildSaId, set: AddressSet) -> bool {
        let state = self.lock();
        let Some(child) = state.children.get(&id) else { return false };
        child.addresses.replace(set, &pin());
        true
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
        state.policy(id).trap = Some(Selectors::new(ts_local, ts_remote));
        self.publish_policy(&mut state, id);
    }

    /// Removes a policy. SAs that it still has go on receiving.
    pub fn remove_policy(&self, id: PolicyId) {
        let mut state = self.lock();
        let Some(policy) = state.policies.get_mut(&id) else { return };
        policy.trap = None;
        policy.children.clear();
        policy.policy.set_active(None);
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
            paths: child.addresses.stats(&guard),
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
        let mut covers: Vec<Selectors> = known.trap.iter().cloned().collect();
        for (_, selectors) in &known.children {
            if !covers.contains(selectors) {
                covers.push(selectors.clone());
            }
        }
        let places = prefixes(covers.iter(), known.age);
        known.policy.set_covers(covers);
        for (prefix, rank) in &places {
            if known.places.get(prefix) != Some(rank) {
                self.spd.insert(*prefix, *rank, &known.policy, lengths);
            }
        }
        for prefix in known.places.keys().filter(|prefix| !places.contains_key(prefix)) {
            self.spd.remove(*prefix, id, lengths);
        }
        known.places = places;
        if known.trap.is_none() && known.children.is_empty() {
            policies.remove(&id);
        }
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
                places: BTreeMap::new(),
            }
        })
    }

    fn activate(&mut self, id: ChildSaId) {
        let Some(child) = self.children.get(&id) else { return };
        if let Some(known) = self.policies.get(&child.policy) {
            known.policy.set_active(Some(child.outbound.clone()));
        }
    }

    fn deactivate(&mut self, id: ChildSaId) {
        let Some(known) = self.children.get(&id).and_then(|child| self.policies.get(&child.policy)) else {
            return;
        };
        if known.policy.active(&pin()).is_some_and(|sa| sa.id() == id) {
            known.policy.set_active(None);
        }
    }
}
