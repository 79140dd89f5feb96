//! Counters that workers keep and the control thread reads.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use mobikex_common::addr::Path;
use mobikex_common::drop::DropReason;
use serde::{Serialize, Serializer};

use crate::sad::OutboundSa;

/// One worker's drops by reason. Only its worker writes, so that an increment is a load and a store.
#[derive(Debug, Default)]
pub struct DropCounters(CachePadded<[AtomicU64; DropReason::ALL.len()]>);

impl DropCounters {
    /// All zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts dropped packets. To be called by the owning worker alone.
    pub fn add(&self, reason: DropReason, packets: usize) {
        add_alone(&self.0[reason as usize], packets as u64);
    }
}

/// Drops by reason, summed over the workers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DropCounts([u64; DropReason::ALL.len()]);

impl DropCounts {
    /// Adds up the workers' counters.
    pub fn sum<'a>(workers: impl IntoIterator<Item = &'a DropCounters>) -> Self {
        let mut total = [0; DropReason::ALL.len()];
        for worker in workers {
            for (sum, counter) in total.iter_mut().zip(worker.0.iter()) {
                *sum += counter.load(Ordering::Relaxed);
            }
        }
        Self(total)
    }

    /// Drops for one reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason as usize]
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|reason| (*reason, self.get(*reason)))
    }
}

impl Serialize for DropCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(reason, count)| (reason.name(), count)))
    }
}

/// How one worker has waited for work. Only it writes.
#[derive(Debug, Default)]
pub(crate) struct WaitCounters(CachePadded<[AtomicU64; 2]>);

impl WaitCounters {
    /// Counts one time that it `looked` for work, or else blocked until there was some.
    pub(crate) fn add(&self, looked: bool) {
        add_alone(&self.0[usize::from(looked)], 1);
    }
}

/// A reading of how the workers have waited for work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Waits {
    /// Times that one blocked until there was work.
    pub blocked: u64,
    /// Times that one looked for work without blocking.
    pub looked: u64,
}

impl Waits {
    pub(crate) fn sum<'a>(workers: impl IntoIterator<Item = &'a WaitCounters>) -> Self {
        workers.into_iter().fold(Self::default(), |sum, WaitCounters(counters)| {
            let read = |n: usize| counters[n].load(Ordering::Relaxed);
            Self { blocked: sum.blocked + read(0), looked: sum.looked + read(1) }
        })
    }
}

/// Traffic of one direction of an SA, in inner packets.
#[derive(Debug, Default)]
pub struct SaCounters {
    packets: AtomicU64,
    bytes: AtomicU64,
    last_ms: AtomicU64,
}

impl SaCounters {
    /// Counts packets of `bytes` octets together and returns the totals after them (packets, octets).
    pub(crate) fn add(&self, packets: usize, bytes: usize) -> (u64, u64) {
        let (packets, bytes) = (packets as u64, bytes as u64);
        let total = self.packets.fetch_add(packets, Ordering::Relaxed) + packets;
        (total, self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes)
    }

    /// [`Self::add`] where only one worker counts.
    pub(crate) fn add_alone(&self, packets: usize, bytes: usize) -> (u64, u64) {
        (add_alone(&self.packets, packets as u64), add_alone(&self.bytes, bytes as u64))
    }

    /// Packets so far.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Octets of inner packets so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Notes that there was traffic at `now_ms` on the workers' coarse clock (read once per batch).
    pub fn stamp(&self, now_ms: u64) {
        self.last_ms.store(now_ms, Ordering::Relaxed);
    }

    /// The latest [`Self::stamp`]; 0 before the first.
    pub fn last_ms(&self) -> u64 {
        self.last_ms.load(Ordering::Relaxed)
    }
}

/// Traffic of one pair of outer addresses, in ESP packets. Survives changes of the address set that keep it.
#[derive(Debug, Default)]
pub struct PathCounters {
    packets_in: AtomicU64,
    bytes_in: AtomicU64,
    packets_out: AtomicU64,
    bytes_out: AtomicU64,
}

impl PathCounters {
    /// Counts authentic ESP packets from the peer, of `bytes` octets together. Only the worker that owns the inbound SA
    /// does.
    pub fn count_in(&self, packets: usize, bytes: usize) {
        add_alone(&self.packets_in, packets as u64);
        add_alone(&self.bytes_in, bytes as u64);
    }

    /// Counts `packets` ESP packets, of `bytes` octets together, handed to the network.
    pub fn count_out(&self, packets: u64, bytes: usize) {
        self.packets_out.fetch_add(packets, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whether `bytes` octets more are at most three times what came (RFC 4555 3.7).
    pub(crate) fn within_three_times(&self, bytes: usize) -> bool {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        read(&self.bytes_out) + bytes as u64 <= read(&self.bytes_in).saturating_mul(3)
    }

    /// Octets sent so far.
    pub(crate) fn octets_out(&self) -> u64 {
        self.bytes_out.load(Ordering::Relaxed)
    }

    pub(crate) fn stats(&self, path: Path) -> PathStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PathStats {
            path,
            packets_in: read(&self.packets_in),
            bytes_in: read(&self.bytes_in),
            packets_out: read(&self.packets_out),
            bytes_out: read(&self.bytes_out),
        }
    }
}

/// What has gone out on one SA over one path and is not counted yet. Workers may share what they count for, so that each
/// addition is a locked one: those of a run of packets are made together.
#[derive(Default)]
pub struct Tally<'a> {
    run: Option<Run<'a>>,
}

struct Run<'a> {
    sa: &'a OutboundSa,
    path: &'a PathCounters,
    packets: usize,
    octets: usize,
    sealed: u64,
    sealed_octets: usize,
}

impl<'a> Tally<'a> {
    /// Counts inner packets of `octets` octets together, and the ESP packets handed to the network by `path`.
    pub fn add(
        &mut self,
        sa: &'a OutboundSa,
        path: &'a PathCounters,
        (packets, octets): (usize, usize),
        (sealed, sealed_octets): (u64, usize),
    ) {
        let same = |run: &Run<'_>| std::ptr::eq(run.sa, sa) && std::ptr::eq(run.path, path);
        if !self.run.as_ref().is_some_and(same) {
            self.count();
        }
        let none = Run { sa, path, packets: 0, octets: 0, sealed: 0, sealed_octets: 0 };
        let run = self.run.get_or_insert(none);
        run.packets += packets;
        run.octets += octets;
        run.sealed += sealed;
        run.sealed_octets += sealed_octets;
        if sa.is_limited() {
            // What the next packet may do depends on it.
            self.count();
        }
    }

    /// Counts what there is.
    pub fn count(&mut self) {
        if let Some(Run { sa, path, packets, octets, sealed, sealed_octets }) = self.run.take() {
            sa.count(packets, octets);
            path.count_out(sealed, sealed_octets);
        }
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.count();
    }
}

/// A reading of [`PathCounters`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct PathStats {
    /// Which pair of addresses.
    pub path: Path,
    /// Authentic ESP packets received on it.
    pub packets_in: u64,
    /// Their octets, from the ESP header to the ICV.
    pub bytes_in: u64,
    /// ESP packets sent on it.
    pub packets_out: u64,
    /// Their octets, from the ESP header to the ICV.
    pub bytes_out: u64,
}

/// What a Child SA has carried.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ChildStats {
    /// Octets of inner packets received.
    pub bytes_in: u64,
    /// Inner packets received.
    pub packets_in: u64,
    /// Octets of inner packets sent.
    pub bytes_out: u64,
    /// Inner packets sent.
    pub packets_out: u64,
    /// Coarse milliseconds since start at the last packet received; 0 if none.
    pub last_in: u64,
    /// Coarse milliseconds since start at the last packet sent; 0 if none.
    pub last_out: u64,
    /// The last sequence number given out.
    pub seq_out: u64,
    /// The highest authentic sequence number received.
    pub replay_highest: u64,
    /// By pair of outer addresses, those of the current set.
    pub paths: Vec<PathStats>,
}

/// An increment by the only writer, and the total after it: no read-modify-write cycle on the bus.
fn add_alone(counter: &AtomicU64, by: u64) -> u64 {
    let total = counter.load(Ordering::Relaxed).wrapping_add(by);
    counter.store(total, Ordering::Relaxed);
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GCM, outbound, params};
    use mobikex_common::sa::{ChildSaParams, Mode, VolumeLimits};

    #[test]
    fn drops_are_summed_over_workers() {
        let (a, b) = (DropCounters::new(), DropCounters::new());
        a.add(DropReason::InNoSa, 1);
        b.add(DropReason::InNoSa, 1);
        b.add(DropReason::OutNoSa, 3);
        let sum = DropCounts::sum([&a, &b]);
        assert_eq!((sum.get(DropReason::InNoSa), sum.get(DropReason::OutNoSa)), (2, 3));
        assert_eq!(sum.iter().map(|(_, n)| n).sum::<u64>(), 5);
    }

    #[test]
    fn what_a_tally_holds_is_counted_when_another_begins_or_it_ends() {
        let limits = VolumeLimits { hard_packets: Some(9), ..VolumeLimits::default() };
        let sas = [1, 2].map(|id| outbound(&params(id, Mode::Tunnel, GCM)));
        let limited = outbound(&ChildSaParams { limits, ..params(3, Mode::Tunnel, GCM) });
        let paths = [PathCounters::default(), PathCounters::default()];
        let sums = |sa: &OutboundSa| (sa.counters().packets(), sa.counters().bytes());
        let mut tally = Tally::default();
        tally.add(&sas[0], &paths[0], (1, 40), (1, 80));
        tally.add(&sas[0], &paths[0], (2, 100), (3, 200));
        assert_eq!(sums(&sas[0]), (0, 0));
        tally.add(&sas[0], &paths[1], (1, 1), (1, 2));
        assert_eq!((sums(&sas[0]), paths[0].octets_out(), paths[1].octets_out()), ((3, 140), 280, 0));
        tally.add(&sas[1], &paths[1], (1, 1), (1, 2));
        assert_eq!((sums(&sas[0]), sums(&sas[1]), paths[1].octets_out()), ((4, 141), (0, 0), 2));
        tally.add(&limited, &paths[1], (1, 7), (1, 2));
        assert_eq!((sums(&sas[1]), sums(&limited), paths[1].octets_out()), ((1, 1), (1, 7), 6));
        tally.add(&sas[0], &paths[0], (1, 1), (1, 1));
        drop(tally);
        assert_eq!((sums(&sas[0]), paths[0].packets_out.load(Ordering::Relaxed)), ((5, 142), 5));
    }
}
