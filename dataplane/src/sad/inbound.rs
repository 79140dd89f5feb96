//! The inbound half of a Child SA.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mobikex_common::crypto::{CryptoError, PacketCipher};
use mobikex_common::drop::DropReason;
use mobikex_common::sa::{ChildSaId, ChildSaParams, CopyDscp, Mode, PolicyId};
use mobikex_common::spi::Spi;
use mobikex_common::ts::TrafficSelector;

use super::{Events, Limits, OutboundSa, SaEvent, limits};
use crate::counters::SaCounters;
use crate::esp::OuterInfo;
use crate::paths::{Addresses, PathSet};

/// Packets from the peer. All but counters, addresses and selectors is fixed when the SA is made; the replay window
/// belongs to the worker (`esp::ReplayTable`).
pub struct InboundSa {
    cipher: PacketCipher,
    spi: Spi,
    id: ChildSaId,
    policy: PolicyId,
    mode: Mode,
    esn: bool,
    copy_dscp: CopyDscp,
    replay_window: u32,
    limits: Limits,
    addresses: Arc<Addresses>,
    outbound: Arc<OutboundSa>,
    counters: SaCounters,
    highest: AtomicU64,
    events: Events,
    /// Second, from 1, in which the last packet from an unknown source was reported.
    source_told: AtomicU64,
}

impl InboundSa {
    /// The inbound half of `params`, which answers by `outbound`.
    ///
    /// # Errors
    /// When a key does not fit its algorithm.
    pub fn new(
        params: &ChildSaParams,
        addresses: Arc<Addresses>,
        outbound: Arc<OutboundSa>,
    ) -> Result<Self, CryptoError> {
        let (suite, keys) = (&params.suite, &params.keys_in);
        Ok(Self {
            cipher: PacketCipher::new(suite.cipher, suite.integrity, &keys.encryption, &keys.integrity)?,
            spi: params.spi_in,
            id: params.id,
            policy: params.policy,
            mode: params.mode,
            esn: suite.esn,
            copy_dscp: params.copy_dscp,
            replay_window: params.replay_window,
            limits: limits(params),
            addresses,
            outbound,
            counters: SaCounters::default(),
            highest: AtomicU64::new(0),
            events: Events::default(),
            source_told: AtomicU64::new(0),
        })
    }

    /// The SPI that the peer uses.
    pub fn spi(&self) -> Spi {
        self.spi
    }

    /// The Child SA.
    pub fn id(&self) -> ChildSaId {
        self.id
    }

    /// The policy that it serves.
    pub fn policy(&self) -> PolicyId {
        self.policy
    }

    /// Tunnel or transport.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The current outer addresses and selectors.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The other half of the Child SA.
    pub fn outbound(&self) -> &Arc<OutboundSa> {
        &self.outbound
    }

    /// Whether a packet from an unknown source may be reported in this second; notes that it is.
    pub fn may_tell_source(&self, now_ms: u64) -> bool {
        let second = now_ms / 1000 + 1;
        self.source_told.swap(second, Ordering::Relaxed) != second
    }

    /// What it has carried.
    pub fn counters(&self) -> &SaCounters {
        &self.counters
    }

    /// The replay window in packets.
    pub fn replay_window(&self) -> u32 {
        self.replay_window
    }

    /// The highest authentic sequence number; 0 before the first.
    pub fn highest(&self) -> u64 {
        self.highest.load(Ordering::Relaxed)
    }

    /// Events since the last call; cheap when there are none.
    pub fn take_events(&self) -> impl Iterator<Item = SaEvent> + use<> {
        self.events.take()
    }

    pub(crate) fn cipher(&self) -> &PacketCipher {
        &self.cipher
    }

    pub(crate) fn esn(&self) -> bool {
        self.esn
    }

    pub(crate) fn copy_dscp(&self) -> CopyDscp {
        self.copy_dscp
    }

    pub(crate) fn within_limits(&self) -> Result<(), DropReason> {
        let totals = (self.counters.packets(), self.counters.bytes());
        if self.events.judge(&self.limits, totals) { Ok(()) } else { Err(DropReason::InHardLimit) }
    }

    /// Packets passed the integrity check, of which the highest number so far is this.
    pub(crate) fn authentic(&self, highest: u64) {
        self.highest.store(highest, Ordering::Relaxed);
        self.events.raise(SaEvent::FirstInbound);
    }

    /// Whether what it may carry is bounded.
    pub(crate) fn is_limited(&self) -> bool {
        self.limits.is_some()
    }

    /// Packets, of `bytes` octets together, passed every check. To be called by the owning worker alone.
    pub(crate) fn count(&self, packets: usize, bytes: usize) {
        let totals = self.counters.add_alone(packets, bytes);
        self.events.judge(&self.limits, totals);
    }

    /// Source and destination of a packet in transport mode: the outer ones, if they are of the SA's set. Behind a
    /// NAT, which only UDP encapsulation passes, the selectors decide where they leave no choice.
    pub(crate) fn transport_addresses(&self, outer: &OuterInfo, paths: &PathSet) -> Option<(IpAddr, IpAddr)> {
        let (src, dst) = (outer.path.remote.ip(), outer.path.local.ip());
        let named = |side: &[TrafficSelector]| only_host(side).filter(|_| outer.encap);
        let src = named(paths.selectors().remote()).or_else(|| paths.has_remote(src).then_some(src))?;
        let dst = named(paths.selectors().local()).or_else(|| paths.has_local(dst).then_some(dst))?;
        Some((src, dst))
    }
}

/// The address that all selectors name, if it is one.
fn only_host(selectors: &[TrafficSelector]) -> Option<IpAddr> {
    let first = selectors.first()?.start;
    selectors.iter().all(|ts| ts.start == first && ts.end == first).then_some(first)
}

impl fmt::Debug for InboundSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundSa").field("id", &self.id).field("spi", &self.spi).finish_non_exhaustive()
    }
}
