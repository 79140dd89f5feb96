//! Sealed packets for an address at which the peer is not proven to be (RFC 4555 3.7): they wait for the proof, which
//! takes a round trip, instead of being lost.

use std::collections::VecDeque;
use std::sync::Arc;

use mobikex_common::addr::Path;

use super::store::{Store, Stored};
use crate::io::SendSlot;
use crate::paths::Addresses;
use crate::published::Guard;

/// Packets that wait at most, of all SAs of a worker.
const MAX_PARKED: usize = 1024;
/// A check that takes longer than this has probably failed; nobody waits for the packets any more.
const MAX_WAIT_MS: u64 = 1000;
/// How often a worker without other work looks whether the proof is there.
const PACE_MS: u64 = 2;

struct Waiting {
    addresses: Arc<Addresses>,
    lane: usize,
    slot: SendSlot,
    encap: bool,
    since_ms: u64,
    packet: Stored,
}

/// The waiting packets of one worker, in order. Nothing is allocated before the first waits.
#[derive(Default)]
pub(super) struct Parked {
    queue: VecDeque<Waiting>,
    store: Store,
}

/// What becomes of a packet that waited.
enum Fate {
    Goes,
    Waits,
    Lost,
}

impl Waiting {
    fn fate(&self, now_ms: u64, guard: &Guard) -> Fate {
        let path = Path { local: self.slot.local, remote: self.slot.remote };
        let found = self.addresses.load(guard).and_then(|set| set.find(&path, self.encap));
        match found {
            Some(found) if found.may_send(self.slot.len) => {
                found.counters.count_out(1, self.slot.len);
                Fate::Goes
            }
            Some(_) if now_ms.saturating_sub(self.since_ms) < MAX_WAIT_MS => Fate::Waits,
            _ => Fate::Lost,
        }
    }
}

impl Parked {
    /// Keeps a copy of the sealed `packet` for the path that `slot` names; whether there was room.
    pub(super) fn park(
        &mut self,
        addresses: &Arc<Addresses>,
        (lane, slot, encap): (usize, SendSlot, bool),
        packet: &[u8],
        now_ms: u64,
    ) -> bool {
        if self.queue.len() == MAX_PARKED {
            return false;
        }
        let Some(packet) = self.store.put(packet) else { return false };
        self.queue.push_back(Waiting {
            addresses: addresses.clone(),
            lane,
            slot,
            encap,
            since_ms: now_ms,
            packet,
        });
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// When to look again.
    pub(super) fn due(&self, now_ms: u64) -> Option<u64> {
        (!self.queue.is_empty()).then_some(now_ms + PACE_MS)
    }

    /// Hands out, in order, what may go now; returns how many packets have waited in vain.
    pub(super) fn release(
        &mut self,
        now_ms: u64,
        guard: &Guard,
        mut out: impl FnMut(usize, SendSlot, &[u8]),
    ) -> usize {
        let mut lost = 0;
        for _ in 0..self.queue.len() {
            let Some(waiting) = self.queue.pop_front() else { break };
            match waiting.fate(now_ms, guard) {
                Fate::Goes => self.store.take(waiting.packet, |bytes| out(waiting.lane, waiting.slot, bytes)),
                Fate::Waits => self.queue.push_back(waiting),
                Fate::Lost => {
                    self.store.take(waiting.packet, |_| ());
                    lost += 1;
                }
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::Change;
    use crate::published::pin;
    use crate::sad::Selectors;
    use mobikex_common::addr::{AddressSet, Scheduler, WeightedPath};

    fn path(n: u8) -> Path {
        Path {
            local: format!("192.0.2.{n}:4500").parse().unwrap(),
            remote: "198.51.100.1:4500".parse().unwrap(),
        }
    }

    fn set(limited: &[(u8, bool)]) -> AddressSet {
        let paths = limited
            .iter()
            .map(|(n, limited)| WeightedPath { limited: *limited, ..WeightedPath::new(path(*n), true) });
        AddressSet { generation: 1, scheduler: Scheduler::Flow, resequence_ms: 0, paths: paths.collect() }
    }

    fn slot(n: u8, len: usize) -> SendSlot {
        let Path { local, remote } = path(n);
        SendSlot { local, remote, device: 0, tos: 0, tag: 0, len }
    }

    fn addresses(limited: &[(u8, bool)]) -> Arc<Addresses> {
        Arc::new(Addresses::new(set(limited), Selectors::new(&[], &[])))
    }

    fn publish(sa: &Addresses, limited: &[(u8, bool)]) {
        Change::new(set(limited)).publish(sa, None, &pin());
    }

    fn released(parked: &mut Parked, now_ms: u64) -> (Vec<Vec<u8>>, usize) {
        let mut out = Vec::new();
        let lost = parked.release(now_ms, &pin(), |_, slot, bytes| {
            assert_eq!(slot.len, bytes.len());
            out.push(bytes.to_vec());
        });
        (out, lost)
    }

    #[test]
    fn packets_wait_for_the_proof_and_then_go_in_order() {
        let mut parked = Parked::default();
        let sa = addresses(&[(1, true), (2, true)]);
        for n in 0..4u8 {
            assert!(parked.park(&sa, (0, slot(1 + n % 2, 3), true), &[n; 3], 10));
        }
        assert_eq!(released(&mut parked, 11), (vec![], 0));
        assert_eq!(parked.due(11), Some(13));
        // Proof for one address lets the packets for the other wait.
        publish(&sa, &[(1, false), (2, true)]);
        assert_eq!(released(&mut parked, 12), (vec![vec![0; 3], vec![2; 3]], 0));
        publish(&sa, &[(2, false)]);
        assert_eq!(released(&mut parked, 12), (vec![vec![1; 3], vec![3; 3]], 0));
        assert!(parked.is_empty() && parked.due(12).is_none());
    }

    #[test]
    fn what_came_from_there_lets_three_times_as_much_go() {
        let mut parked = Parked::default();
        let sa = addresses(&[(1, true)]);
        for _ in 0..4 {
            assert!(parked.park(&sa, (0, slot(1, 100), true), &[0; 100], 0));
        }
        sa.load(&pin()).unwrap().find(&path(1), true).unwrap().counters.count_in(1, 100);
        assert_eq!(released(&mut parked, 1).0.len(), 3);
        assert_eq!(released(&mut parked, 1).0.len(), 0);
    }

    #[test]
    fn nobody_waits_for_ever_nor_for_an_address_that_is_gone() {
        let mut parked = Parked::default();
        let sa = addresses(&[(1, true), (2, true)]);
        assert!(parked.park(&sa, (0, slot(1, 1), true), &[1], 0));
        assert!(parked.park(&sa, (0, slot(2, 1), true), &[2], 500));
        assert_eq!(released(&mut parked, MAX_WAIT_MS - 1), (vec![], 0));
        assert_eq!(released(&mut parked, MAX_WAIT_MS), (vec![], 1));
        publish(&sa, &[(1, false)]);
        assert_eq!(released(&mut parked, MAX_WAIT_MS), (vec![], 1));
        assert!(parked.is_empty());
    }

    #[test]
    fn there_is_an_end_to_what_waits() {
        let mut parked = Parked::default();
        let sa = addresses(&[(1, true)]);
        let mut park = || parked.park(&sa, (0, slot(1, 1400), true), &[0; 1400], 0);
        assert!((0..MAX_PARKED).all(|_| park()) && !park());
    }
}
