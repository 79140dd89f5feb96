//! Which path each flow takes with the scheduler `flow`.
//!
//! The hash alone would divide a few large flows badly: sixteen of them over four paths leave one nearly idle now and
//! then. So a flow that begins goes where there is most room for the weights, and to the path that its hash names if
//! it makes little difference, which needs no memory and is the same for all workers. A flow stays on its path, since
//! another one would overtake or delay it, and moves when it has to, or to a place with clearly more room once it has
//! paused so long that nothing of it is under way, or the set of paths has changed.

use std::sync::atomic::{AtomicU64, Ordering};

use super::load::{LATELY_MS, Lately};
use super::{PathSet, Way};

/// Flows that are remembered; the others go by hash. 16 octets each.
const SLOTS: usize = 1 << 14;
/// After such a pause nothing of a flow is under way.
const PAUSE_MS: u64 = 500;
/// A flow that has been silent for so long may be forgotten for another.
const FORGET_MS: u64 = 10_000;
/// Steps in which the time of the last packet is kept.
const STEP_MS: u64 = 16;
/// A flow whose size nobody knows yet is expected to carry one part in so many of what there is, less if there are more
/// such flows, and at least a packet.
const PARTS: f32 = 4.0;
const PACKET: f32 = 1500.0;
/// A move has to gain more than this factor.
const GAIN: f32 = 1.25;

/// The paths of flows, for all SAs and workers: a rekeyed SA goes on as the one before.
#[derive(Debug)]
pub(crate) struct FlowTable(Box<[Slot]>);

/// One flow. Nearly always one worker has it; a write by another that is lost only delays a decision.
#[derive(Debug, Default)]
struct Slot {
    entry: AtomicU64,
    volume: AtomicU64,
}

/// What a slot says. Zero is an empty one, since no path has the key 0.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The part of the flow's hash that does not name the slot.
    tag: u16,
    /// The path's.
    key: u16,
    /// The epoch of the plan by which the path was chosen.
    epoch: u8,
    /// Of the last packet, in steps, modulo 2^24.
    at: u32,
}

/// Octets of a flow since a moment.
#[derive(Clone, Copy, Debug)]
struct Volume {
    /// Modulo 2^40.
    octets: u64,
    /// In steps, modulo 2^24.
    since: u32,
}

const STEPS: u32 = (1 << 24) - 1;

impl FlowTable {
    /// Nothing known of any flow.
    pub(crate) fn new() -> Self {
        Self(std::iter::repeat_with(Slot::default).take(SLOTS).collect())
    }

    /// The place in the set of the path for the next `octets` octets of a flow; `None` leaves it to the hash.
    pub(crate) fn place(&self, set: &PathSet, flow_hash: u64, octets: usize, now_ms: u64) -> Option<usize> {
        let slot = &self.0[(flow_hash as usize) % SLOTS];
        let tag = (flow_hash >> 32) as u16;
        let epoch = set.plan.epoch;
        let now = steps(now_ms);
        let entry = Entry::unpack(slot.entry.load(Ordering::Relaxed));
        let Some(known) = entry.filter(|entry| entry.tag == tag) else {
            if entry.is_some_and(|other| since(now, other.at) < FORGET_MS) {
                return None;
            }
            let rank = begin(set, flow_hash, 0.0, now_ms)?;
            slot.note(Entry { tag, key: set.plan.keys[rank], epoch, at: now });
            slot.set(Volume { octets: octets as u64, since: now });
            return Some(set.place(rank));
        };
        let idle = since(now, known.at);
        let rank = match set.plan.keys.iter().position(|key| *key == known.key) {
            Some(rank) if known.epoch == epoch && idle < PAUSE_MS => rank,
            Some(rank) => better(set, rank, slot.lately(now), now_ms),
            None => begin(set, flow_hash, slot.lately(now), now_ms)?,
        };
        let entry = Entry { key: set.plan.keys[rank], epoch, at: now, ..known };
        if idle > 0 || entry.key != known.key || epoch != known.epoch {
            slot.note(entry);
            let way = set.way(rank);
            if way.load.is_stale(now_ms) {
                set.sending_ways().for_each(|way| _ = way.look(now_ms));
            }
        }
        slot.add(octets, now);
        Some(set.place(rank))
    }
}

/// The path for a flow that has none, of which `octets` octets are known to come.
fn begin(set: &PathSet, flow_hash: u64, octets: f32, now_ms: u64) -> Option<usize> {
    let rooms = Rooms::new(set, now_ms);
    let best = rooms.least(|rank| rooms.expected(rank))?;
    let hashed = set.plan.choose(flow_hash, 0).and_then(|index| set.plan.rank(index))?;
    let near = rooms.expected(hashed) <= rooms.expected(best) + rooms.unknown / 2.0;
    let rank = if near { hashed } else { best };
    set.way(rank).load.expect(octets, if octets > 0.0 { 0.0 } else { 1.0 });
    Some(rank)
}

/// The path for a flow that may leave the one it has, with what it carried lately.
fn better(set: &PathSet, rank: usize, octets: f32, now_ms: u64) -> usize {
    let rooms = Rooms::new(set, now_ms);
    let Some(best) = rooms.least(|rank| rooms.filled(rank, octets)) else { return rank };
    if best == rank || rooms.filled(best, octets) * GAIN >= rooms.filled(rank, 0.0) {
        return rank;
    }
    set.way(rank).load.expect(-octets, 0.0);
    set.way(best).load.expect(octets, 0.0);
    best
}

/// How full the paths of a set are.
struct Rooms<'a> {
    set: &'a PathSet,
    /// Octets that a flow is expected to bring of which nothing is known.
    unknown: f32,
    /// The mean weight.
    mean: f32,
}

impl<'a> Rooms<'a> {
    fn new(set: &'a PathSet, now_ms: u64) -> Self {
        let (total, flows) = set
            .sending_ways()
            .map(|way| way.look(now_ms))
            .fold((0.0, 0.0), |sum, lately| (sum.0 + lately.octets, sum.1 + lately.flows));
        let weights: f32 = set.sending().map(|chosen| f32::from(chosen.path.weight)).sum();
        let mean = weights / set.sending_len().max(1) as f32;
        Self { set, unknown: f32::max(total / (PARTS + flows), PACKET), mean }
    }

    /// What a path carries lately, with `more` on top, by its weight.
    fn filled(&self, rank: usize, more: f32) -> f32 {
        let weight = f32::from(self.set.set().paths[self.set.place(rank)].weight);
        (self.set.way(rank).load.lately().octets + more) * self.mean / weight
    }

    /// The same with what is expected of flows that have just begun.
    fn expected(&self, rank: usize) -> f32 {
        self.filled(rank, self.unknown * self.set.way(rank).load.lately().flows)
    }

    fn least(&self, full: impl Fn(usize) -> f32) -> Option<usize> {
        (0..self.set.sending_len()).min_by(|a, b| full(*a).total_cmp(&full(*b)))
    }
}

impl Way {
    fn look(&self, now_ms: u64) -> Lately {
        self.load.look(self.counters.octets_out(), now_ms)
    }
}

impl PathSet {
    /// The place in the set of the path of this rank.
    fn place(&self, rank: usize) -> usize {
        usize::from(self.plan.ranked[rank])
    }

    fn way(&self, rank: usize) -> &Way {
        &self.ways[self.place(rank)]
    }

    fn sending_ways(&self) -> impl Iterator<Item = &Way> {
        (0..self.sending_len()).map(|rank| self.way(rank))
    }
}

impl Slot {
    fn note(&self, entry: Entry) {
        self.entry.store(entry.pack(), Ordering::Relaxed);
    }

    /// Counts octets; the older half of what has been counted for long is forgotten.
    fn add(&self, octets: usize, now: u32) {
        let mut volume = Volume::unpack(self.volume.load(Ordering::Relaxed));
        if since(now, volume.since) > 2 * LATELY_MS {
            let lately = LATELY_MS / STEP_MS;
            volume =
                Volume { octets: self.lately(now) as u64, since: now.wrapping_sub(lately as u32) & STEPS };
        }
        self.set(Volume { octets: volume.octets + octets as u64, ..volume });
    }

    fn set(&self, volume: Volume) {
        self.volume.store(volume.octets << 24 | u64::from(volume.since), Ordering::Relaxed);
    }

    /// Octets of the flow lately, as [`Load`](super::load::Load) counts them.
    fn lately(&self, now: u32) -> f32 {
        let volume = Volume::unpack(self.volume.load(Ordering::Relaxed));
        let time = since(now, volume.since).max(LATELY_MS);
        volume.octets as f32 * (LATELY_MS as f32 / time as f32)
    }
}

impl Entry {
    fn pack(self) -> u64 {
        u64::from(self.tag) << 48
            | u64::from(self.key) << 32
            | u64::from(self.epoch) << 24
            | u64::from(self.at)
    }

    fn unpack(word: u64) -> Option<Self> {
        let entry = Self {
            tag: (word >> 48) as u16,
            key: (word >> 32) as u16,
            epoch: (word >> 24) as u8,
            at: word as u32 & STEPS,
        };
        (entry.key != 0).then_some(entry)
    }
}

impl Volume {
    fn unpack(word: u64) -> Self {
        Self { octets: word >> 24, since: word as u32 & STEPS }
    }
}

fn steps(ms: u64) -> u32 {
    (ms / STEP_MS) as u32 & STEPS
}

/// Milliseconds between two times in steps.
fn since(now: u32, then: u32) -> u64 {
    u64::from(now.wrapping_sub(then) & STEPS) * STEP_MS
}

#[cfg(test)]
mod tests {
    use super::super::tests::{any as all, set};
    use super::super::{Addresses, Change, fold};
    use super::*;
    use crate::published::{Guard, pin};
    use mobikex_common::addr::Scheduler;
    use proptest::prelude::*;

    /// A sender of many flows over one SA.
    struct Sender {
        table: FlowTable,
        addresses: Addresses,
        guard: Guard,
        now_ms: u64,
    }

    impl Sender {
        fn new(weights: &[u16]) -> Self {
            let addresses = Addresses::new(set(weights, Scheduler::Flow), all());
            Self { table: FlowTable::new(), addresses, guard: pin(), now_ms: 1 }
        }

        /// The same paths with other weights.
        fn change(&mut self, weights: &[u16]) {
            Change::new(set(weights, Scheduler::Flow)).publish(&self.addresses, None, &self.guard);
        }

        fn set(&self) -> &PathSet {
            self.addresses.load(&self.guard).unwrap()
        }

        /// Sends a packet of a flow, and says by which path.
        fn send(&self, flow: u64, octets: usize) -> usize {
            let set = self.set();
            let placed = self.table.place(set, fold(7, flow), octets, self.now_ms);
            let place = placed.expect("room in the table for so few flows");
            set.ways[place].counters.count_out(1, octets);
            place
        }

        /// Each of the flows sends its octets in each millisecond.
        fn run(&mut self, flows: &[u64], octets: usize, ms: u64) {
            for _ in 0..ms {
                self.now_ms += 1;
                flows.iter().for_each(|flow| _ = self.send(*flow, octets));
            }
        }

        /// The paths of flows that go on.
        fn paths(&self, flows: &[u64]) -> Vec<usize> {
            flows.iter().map(|flow| self.send(*flow, 1)).collect()
        }

        fn count(&self, flows: &[u64]) -> Vec<usize> {
            let mut count = vec![0; self.set().set().paths.len()];
            self.paths(flows).iter().for_each(|path| count[*path] += 1);
            count
        }
    }

    #[test]
    fn flows_that_begin_together_are_divided_by_weight() {
        for round in 0..200 {
            let mut sender = Sender::new(&[100, 75, 0, 75, 50]);
            let flows: Vec<u64> = (round * 100..).take(16).collect();
            // A connection is set up by small packets, one after the other.
            for flow in &flows {
                sender.now_ms += 40;
                sender.send(*flow, 100);
            }
            let count = sender.count(&flows);
            let ideal = [5.33, 4.0, 0.0, 4.0, 2.67];
            let near = |(count, ideal): (&usize, &f64)| (*count as f64 - ideal).abs() < 1.7;
            assert!(count.iter().zip(&ideal).all(near), "{round}: {count:?}");
        }
    }

    #[test]
    fn one_flow_stays_where_it_is_whatever_else_happens() {
        let mut sender = Sender::new(&[1, 1]);
        let path = sender.send(1, 100);
        sender.run(&[1], 3000, 5000);
        for flow in 100..150 {
            sender.run(&[1, flow], 1000, 20);
            assert_eq!(sender.send(1, 0), path);
        }
        sender.run(&[1], 3000, 3000);
        sender.change(&[1, 1, 1]);
        assert_eq!(sender.send(1, 100), path, "alone on a new path it has no more room than here");
        sender.change(&[2, 2, 1]);
        assert_eq!(sender.send(1, 100), path);
    }

    #[test]
    fn a_new_flow_avoids_the_path_of_a_large_one() {
        let mut hashed = 0;
        for round in 0..100 {
            let mut sender = Sender::new(&[1, 1]);
            let large = sender.send(round, 100);
            sender.run(&[round], 10_000, 1000);
            let news: Vec<u64> = (1000 * round + 1000..).take(3).collect();
            assert!(sender.paths(&news).iter().all(|path| *path != large));
            hashed += large;
        }
        assert!((20..80).contains(&hashed), "where nothing else counts the hash decides: {hashed}");
    }

    #[test]
    fn flows_leave_a_path_that_goes_and_share_it_when_it_is_back() {
        let mut sender = Sender::new(&[1, 1]);
        let flows: Vec<u64> = (0..16).collect();
        sender.run(&flows, 1000, 3000);
        let before = sender.paths(&flows);
        assert!((6..=10).contains(&sender.count(&flows)[0]), "{before:?}");
        sender.change(&[1, 0]);
        assert_eq!(sender.count(&flows), [16, 0]);
        sender.run(&flows, 1000, 5000);
        sender.change(&[1, 1]);
        let count = sender.count(&flows);
        assert!((6..=10).contains(&count[0]), "{count:?}");
        let after = sender.paths(&flows);
        sender.run(&flows, 1000, 3000);
        assert_eq!(sender.paths(&flows), after, "nothing goes on moving");
    }

    /// Three paths, one goes: the flows of the others are not touched.
    #[test]
    fn only_flows_whose_path_goes_must_move() {
        let mut sender = Sender::new(&[1, 1, 1]);
        let flows: Vec<u64> = (0..30).collect();
        sender.run(&flows, 1000, 3000);
        let before = sender.paths(&flows);
        sender.change(&[1, 0, 1]);
        let after = sender.paths(&flows);
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || *before == 1);
        }
        let count = sender.count(&flows);
        assert!(count[0].abs_diff(count[2]) <= 4, "{count:?}");
    }

    #[test]
    fn a_pause_is_a_chance_to_go_where_there_is_room() {
        let mut sender = Sender::new(&[1, 1]);
        let flows: Vec<u64> = (0..8).collect();
        sender.run(&flows, 1000, 3000);
        let paths = sender.paths(&flows);
        let (stays, pauses): (Vec<u64>, Vec<u64>) =
            flows.iter().partition(|flow| paths[**flow as usize] == 0);
        // Those of the second path fall silent, which leaves it room for one that pauses.
        sender.run(&stays, 4000, 3000);
        let moved = stays[0];
        assert_eq!(sender.send(moved, 1000), 0, "no pause, no move");
        sender.now_ms += PAUSE_MS + STEP_MS;
        assert_eq!(sender.send(moved, 1000), 1);
        assert_eq!(sender.send(pauses[0], 1000), 1);
    }

    #[test]
    fn a_rekeyed_sa_goes_on_as_the_one_before() {
        let mut sender = Sender::new(&[1, 3, 2]);
        let flows: Vec<u64> = (0..50).collect();
        sender.run(&flows, 100, 1000);
        let before = sender.paths(&flows);
        sender.addresses = Addresses::new(set(&[1, 3, 2], Scheduler::Flow), all());
        assert_eq!(sender.paths(&flows), before);
    }

    #[test]
    fn a_flow_without_a_slot_goes_by_hash_until_there_is_one() {
        let mut sender = Sender::new(&[1, 1]);
        let place = |sender: &Sender, hash| sender.table.place(sender.set(), hash, 100, sender.now_ms);
        let (first, second) = (5, 5 | 1 << 32);
        assert!(place(&sender, first).is_some());
        assert_eq!(place(&sender, second), None);
        sender.now_ms += FORGET_MS + STEP_MS;
        assert!(place(&sender, second).is_some());
        assert_eq!(place(&sender, first), None);
    }

    /// Weights that were wrong are corrected: more goes where more may go.
    #[test]
    fn new_weights_move_flows_toward_them() {
        let mut sender = Sender::new(&[1, 1]);
        let flows: Vec<u64> = (0..30).collect();
        sender.run(&flows, 1000, 3000);
        sender.change(&[2, 1]);
        sender.run(&flows, 1000, 1000);
        let count = sender.count(&flows);
        assert!((18..=22).contains(&count[0]), "{count:?}");
    }

    proptest! {
        /// Whatever the weights, times and changes: a path of the set that may send.
        #[test]
        fn the_path_may_send(
            changes in proptest::collection::vec((proptest::collection::vec(0u16..5, 2..6), 0u64..20_000), 1..8),
            flows in proptest::collection::vec(any::<u64>(), 1..40),
        ) {
            let mut sender = Sender::new(&[1, 1]);
            for (weights, later) in changes {
                sender.change(&weights);
                sender.now_ms += later;
                for flow in &flows {
                    if let Some(place) = sender.table.place(sender.set(), *flow, 1400, sender.now_ms) {
                        prop_assert!(weights[place] > 0);
                    }
                }
            }
        }

        #[test]
        fn entries_are_kept_whole(tag: u16, key in 1u16.., epoch: u8, at in 0..=STEPS) {
            let entry = Entry { tag, key, epoch, at };
            let back = Entry::unpack(entry.pack()).unwrap();
            prop_assert_eq!((back.tag, back.key, back.epoch, back.at), (tag, key, epoch, at));
        }
    }
}
