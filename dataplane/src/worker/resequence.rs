//! Puts the packets of an SA in order again that took paths of different length.
//!
//! What is ahead of a gap in the sequence numbers is held. The gap is given up when it cannot fill any more: each
//! path keeps its order, so once every path in use has brought a higher number, the missing packet is lost. Without
//! that evidence it is given up after the time that the SA's set allows. What comes after its gap was given up is
//! passed on as it comes.
//!
//! A sender with several workers may swap numbers on one path by a batch. Packets of one flow are never swapped so,
//! for a flow has one worker.

use std::collections::VecDeque;

use mobikex_common::addr::Path;
use mobikex_common::sa::ChildSaId;

use super::store::{Store, Stored};

/// Packets held at most, of all SAs of a worker.
const MAX_HELD: usize = 1024;
/// Paths whose order is watched in one SA; of more the least active are forgotten, as if they were idle.
const MAX_SOURCES: usize = 16;

/// An authentic packet and what decides how long it waits.
pub(super) struct Arrival<'a> {
    /// Number of the SA among the worker's.
    pub(super) stream: u32,
    /// The SA that has the number now.
    pub(super) sa: ChildSaId,
    /// The packet's sequence number. The replay window sees to it that none comes twice.
    pub(super) sequence: u64,
    /// The SA's highest number before this packet.
    pub(super) highest: u64,
    /// Generation of the SA's address set.
    pub(super) generation: u64,
    /// How long a packet may wait, in milliseconds; 0 = not at all.
    pub(super) wait_ms: u16,
    /// The path that it came on.
    pub(super) path: Path,
    /// The inner packet; empty when its number is all that counts.
    pub(super) packet: &'a [u8],
}

/// The order of one SA's packets.
struct Stream {
    sa: ChildSaId,
    /// The smallest number that is still waited for.
    next: u64,
    generation: u64,
    wait_ms: u64,
    /// Until then paths may be in use from which nothing has come yet: the first packet of a path in use is sent
    /// within one wait and arrives within another.
    settled_ms: u64,
    sources: Vec<Source>,
}

struct Source {
    path: Path,
    highest: u64,
    last_ms: u64,
}

struct Held {
    stream: u32,
    sequence: u64,
    due_ms: u64,
    packet: Stored,
}

/// The held packets of one worker. Nothing is allocated before the first is held.
#[derive(Default)]
pub(super) struct Resequencer {
    streams: Vec<Option<Box<Stream>>>,
    /// By stream, then by number.
    held: VecDeque<Held>,
    store: Store,
    /// No held packet is due before.
    due_ms: u64,
}

impl Resequencer {
    /// When [`expire`](Self::expire) has something to do at the earliest; `None` when nothing is held.
    pub(super) fn due(&self) -> Option<u64> {
        (!self.held.is_empty()).then_some(self.due_ms)
    }

    /// Takes a packet and gives out whatever need not wait, in order.
    pub(super) fn receive(&mut self, arrival: &Arrival<'_>, now_ms: u64, mut out: impl FnMut(&[u8])) {
        let stream = arrival.stream;
        if !self.enter(arrival, now_ms, &mut out) {
            return give(arrival.packet, &mut out);
        }
        while let Some(next) = self.stream(stream).map(|stream| &mut stream.next) {
            if arrival.sequence <= *next {
                if arrival.sequence == *next {
                    *next = next.saturating_add(1);
                }
                give(arrival.packet, &mut out);
                break;
            }
            if self.hold(arrival, now_ms) {
                break;
            }
            if !self.release_oldest(now_ms, &mut out) {
                // Nothing is left to make room, so there is nothing to wait for either.
                self.skip_to(stream, arrival.sequence);
            }
        }
        self.release(stream, now_ms, &mut out);
    }

    /// Gives out what has waited long enough, and with it what was to come before.
    pub(super) fn expire(&mut self, now_ms: u64, mut out: impl FnMut(&[u8])) {
        if self.held.is_empty() || now_ms < self.due_ms {
            return;
        }
        let mut at = 0;
        while let Some(held) = self.held.get(at) {
            let stream = held.stream;
            let end = self.end(stream);
            match (at..end).rev().find(|index| self.held[*index].due_ms <= now_ms) {
                Some(last) => {
                    self.give_until(at, last, &mut out);
                    self.release(stream, now_ms, &mut out);
                    at = self.end(stream);
                }
                None => at = end,
            }
        }
        self.due_ms = self.held.iter().map(|held| held.due_ms).min().unwrap_or(u64::MAX);
    }

    /// Finds or makes the packet's stream; `false` when its SA keeps no order.
    fn enter(&mut self, arrival: &Arrival<'_>, now_ms: u64, out: &mut impl FnMut(&[u8])) -> bool {
        let index = arrival.stream as usize;
        let known = self.streams.get(index).and_then(Option::as_ref).map(|known| known.sa);
        if known.is_some_and(|sa| sa != arrival.sa || arrival.wait_ms == 0) {
            self.flush(arrival.stream, out);
        }
        if arrival.wait_ms == 0 {
            return false;
        }
        if index >= self.streams.len() {
            self.streams.resize_with(index + 1, || None);
        }
        let stream = self.streams[index].get_or_insert_with(|| {
            Box::new(Stream {
                sa: arrival.sa,
                next: arrival.highest.saturating_add(1),
                generation: 0,
                wait_ms: 0,
                settled_ms: 0,
                sources: Vec::with_capacity(MAX_SOURCES),
            })
        });
        stream.wait_ms = arrival.wait_ms.into();
        if stream.generation != arrival.generation {
            stream.generation = arrival.generation;
            stream.settled_ms = now_ms + 2 * stream.wait_ms;
        }
        stream.note(arrival, now_ms);
        true
    }

    /// Gives out all that is held of a stream and forgets it.
    fn flush(&mut self, stream: u32, out: &mut impl FnMut(&[u8])) {
        let (first, end) = (self.place(stream, 0), self.end(stream));
        if first < end {
            self.give_until(first, end - 1, out);
        }
        if let Some(place) = self.streams.get_mut(stream as usize) {
            *place = None;
        }
    }

    /// Copies a packet; `false` when there is no room.
    fn hold(&mut self, arrival: &Arrival<'_>, now_ms: u64) -> bool {
        if self.held.len() == MAX_HELD {
            return false;
        }
        let Some(packet) = self.store.put(arrival.packet) else { return false };
        if self.held.capacity() == 0 {
            self.held.reserve_exact(MAX_HELD);
        }
        let due_ms = now_ms + u64::from(arrival.wait_ms);
        self.due_ms = if self.held.is_empty() { due_ms } else { self.due_ms.min(due_ms) };
        let at = self.place(arrival.stream, arrival.sequence);
        let Arrival { stream, sequence, .. } = *arrival;
        self.held.insert(at, Held { stream, sequence, due_ms, packet });
        true
    }

    /// Gives out what follows without a gap, or after gaps that will not fill.
    fn release(&mut self, stream: u32, now_ms: u64, out: &mut impl FnMut(&[u8])) {
        let first = self.place(stream, 0);
        let Some(known) = self.streams.get(stream as usize).and_then(Option::as_ref) else { return };
        let (mut next, passed) = (known.next, known.passed(now_ms));
        let mut end = first;
        while let Some(held) = self.held.get(end) {
            if held.stream != stream || held.sequence > next.max(passed) {
                break;
            }
            next = held.sequence.saturating_add(1);
            end += 1;
        }
        if first < end {
            self.give_until(first, end - 1, out);
        }
    }

    /// Makes room: gives out the packet that has waited longest, and with it what was to come before.
    fn release_oldest(&mut self, now_ms: u64, out: &mut impl FnMut(&[u8])) -> bool {
        let ages = self.held.iter().enumerate().map(|(index, held)| (held.due_ms, index, held.stream));
        let Some((_, oldest, stream)) = ages.min() else { return false };
        self.give_until(self.place(stream, 0), oldest, out);
        self.release(stream, now_ms, out);
        true
    }

    /// Gives out the held packets `first..=last`, all of one stream.
    fn give_until(&mut self, first: usize, last: usize, out: &mut impl FnMut(&[u8])) {
        let (stream, sequence) = (self.held[last].stream, self.held[last].sequence);
        for held in self.held.drain(first..=last) {
            self.store.take(held.packet, |packet| give(packet, out));
        }
        self.skip_to(stream, sequence.saturating_add(1));
    }

    fn skip_to(&mut self, stream: u32, next: u64) {
        if let Some(stream) = self.stream(stream) {
            stream.next = stream.next.max(next);
        }
    }

    fn stream(&mut self, stream: u32) -> Option<&mut Stream> {
        self.streams.get_mut(stream as usize)?.as_deref_mut()
    }

    /// Where this number is, or would be.
    fn place(&self, stream: u32, sequence: u64) -> usize {
        self.held.partition_point(|held| (held.stream, held.sequence) < (stream, sequence))
    }

    /// Where the next stream begins.
    fn end(&self, stream: u32) -> usize {
        self.held.partition_point(|held| held.stream <= stream)
    }
}

impl Stream {
    /// Notes how far the packet's path has come.
    fn note(&mut self, arrival: &Arrival<'_>, now_ms: u64) {
        let fresh = Source { path: arrival.path, highest: arrival.sequence, last_ms: now_ms };
        if let Some(source) = self.sources.iter_mut().find(|source| source.path == arrival.path) {
            source.highest = source.highest.max(arrival.sequence);
            source.last_ms = now_ms;
        } else if self.sources.len() < MAX_SOURCES {
            self.sources.push(fresh);
        } else if let Some(idlest) = self.sources.iter_mut().min_by_key(|source| source.last_ms) {
            *idlest = fresh;
        }
    }

    /// The number that every path in use has reached: what is missing below it is lost.
    fn passed(&self, now_ms: u64) -> u64 {
        if now_ms < self.settled_ms {
            return 0;
        }
        let active = self.sources.iter().filter(|source| now_ms <= source.last_ms + self.wait_ms);
        active.map(|source| source.highest).min().unwrap_or(0)
    }
}

fn give(packet: &[u8], out: &mut impl FnMut(&[u8])) {
    if !packet.is_empty() {
        out(packet);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WAIT: u16 = 50;

    fn path(n: usize) -> Path {
        let local = format!("192.0.2.{n}:4500").parse().unwrap();
        Path { local, remote: "198.51.100.1:4500".parse().unwrap() }
    }

    /// A packet of SA 1 that says its number.
    fn numbered(sequence: u64) -> [u8; 8] {
        sequence.to_be_bytes()
    }

    fn arrival(sequence: u64, from: usize, packet: &[u8]) -> Arrival<'_> {
        Arrival {
            stream: 3,
            sa: ChildSaId(1),
            sequence,
            highest: 0,
            generation: 1,
            wait_ms: WAIT,
            path: path(from),
            packet,
        }
    }

    /// A resequencer and the numbers that it has given out, with the time.
    #[derive(Default)]
    struct Line {
        core: Resequencer,
        out: Vec<(u64, u64)>,
    }

    impl Line {
        fn numbers(&mut self) -> Vec<u64> {
            std::mem::take(&mut self.out).into_iter().map(|(number, _)| number).collect()
        }

        fn with<T>(
            &mut self,
            now_ms: u64,
            run: impl FnOnce(&mut Resequencer, &mut dyn FnMut(&[u8])) -> T,
        ) -> T {
            let Self { core, out } = self;
            run(core, &mut |packet| {
                out.push((u64::from_be_bytes(packet[..8].try_into().unwrap()), now_ms));
            })
        }

        fn feed(&mut self, now_ms: u64, arrival: &Arrival<'_>) {
            self.with(now_ms, |core, out| core.receive(arrival, now_ms, out));
        }

        fn receive(&mut self, now_ms: u64, sequence: u64, from: usize) {
            self.feed(now_ms, &arrival(sequence, from, &numbered(sequence)));
        }

        fn expire(&mut self, now_ms: u64) {
            self.with(now_ms, |core, out| core.expire(now_ms, out));
        }
    }

    #[test]
    fn a_gap_fills_and_everything_goes_on() {
        let mut line = Line::default();
        assert_eq!(line.core.due(), None);
        line.receive(1, 1, 0);
        line.receive(2, 3, 0);
        line.receive(3, 5, 0);
        assert_eq!((line.numbers(), line.core.due()), (vec![1], Some(52)));
        line.receive(4, 2, 1);
        assert_eq!(line.numbers(), [2, 3]);
        line.receive(5, 4, 1);
        assert_eq!((line.numbers(), line.core.due()), (vec![4, 5], None));
        assert_eq!(line.core.store.put(&[0; 65_536]).map(|_| ()), Some(()));
    }

    #[test]
    fn a_gap_that_does_not_fill_costs_the_wait_and_no_more() {
        let mut line = Line::default();
        line.receive(1, 2, 0);
        line.receive(9, 4, 0);
        line.expire(50);
        assert_eq!(line.numbers(), []);
        line.expire(51);
        assert_eq!((line.numbers(), line.core.due()), (vec![2], Some(59)));
        line.expire(59);
        assert_eq!((line.numbers(), line.core.due()), (vec![4], None));
        line.receive(60, 3, 1);
        line.receive(60, 5, 1);
        assert_eq!(line.numbers(), [3, 5], "what comes late is not lost");
    }

    /// Each path keeps its order, so a number that all have passed does not come.
    #[test]
    fn a_number_that_every_path_has_passed_is_not_waited_for() {
        let mut line = Line::default();
        line.receive(1, 1, 0);
        line.receive(1, 2, 1);
        line.receive(80, 3, 0);
        line.receive(80, 4, 1);
        assert_eq!(line.numbers(), [1, 2, 3, 4]);
        // By now every path in use has brought something.
        line.receive(101, 6, 0);
        assert_eq!(line.numbers(), []);
        line.receive(102, 8, 1);
        assert_eq!(line.numbers(), [6], "5 cannot come, 7 still can");
        line.receive(103, 9, 0);
        assert_eq!(line.numbers(), [8, 9]);
        // A path that brings nothing for as long as a packet may wait is not in use.
        line.receive(152, 11, 0);
        assert_eq!(line.numbers(), []);
        line.receive(153, 12, 0);
        assert_eq!(line.numbers(), [11, 12]);
        // A new set may have a path that nothing came from yet.
        let packet = numbered(14);
        line.feed(154, &Arrival { generation: 2, ..arrival(14, 0, &packet) });
        assert_eq!(line.numbers(), []);
    }

    #[test]
    fn nothing_is_held_any_more_when_the_setting_goes() {
        let mut line = Line::default();
        line.receive(1, 2, 0);
        line.receive(1, 3, 0);
        let packet = numbered(5);
        line.feed(2, &Arrival { wait_ms: 0, ..arrival(5, 0, &packet) });
        assert_eq!((line.numbers(), line.core.due()), (vec![2, 3, 5], None));
        // It comes back in the middle of the numbers.
        let packet = numbered(7);
        line.feed(3, &Arrival { highest: 6, ..arrival(7, 0, &packet) });
        assert_eq!(line.numbers(), [7]);
    }

    #[test]
    fn a_removed_sa_leaves_its_packets_and_a_new_one_starts_anew() {
        let mut line = Line::default();
        line.receive(1, 9, 0);
        let packet = numbered(1);
        line.feed(2, &Arrival { sa: ChildSaId(2), ..arrival(1, 0, &packet) });
        assert_eq!(line.numbers(), [9, 1]);
        line.receive(3, 7, 0);
        line.expire(1000);
        assert_eq!((line.numbers(), line.core.due()), (vec![7], None));
    }

    #[test]
    fn a_number_without_a_packet_closes_its_gap() {
        let mut line = Line::default();
        line.receive(1, 3, 0);
        line.feed(1, &arrival(2, 0, &[]));
        line.feed(1, &arrival(1, 0, &[]));
        assert_eq!((line.numbers(), line.core.due()), (vec![3], None));
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_go_first() {
        let mut line = Line::default();
        for n in 0..MAX_HELD as u64 {
            // Two SAs in turn; the first one's packets are the oldest.
            let packet = numbered(10 + n);
            let (stream, sa) = (n as u32 % 2, ChildSaId(n as u32 % 2));
            line.feed(1 + n, &Arrival { stream, sa, wait_ms: u16::MAX, ..arrival(10 + n, 0, &packet) });
        }
        assert_eq!((line.numbers(), line.core.held.len()), (vec![], MAX_HELD));
        let capacity = line.core.held.capacity();
        let packet = numbered(9);
        line.feed(
            5000,
            &Arrival { stream: 1, sa: ChildSaId(1), wait_ms: u16::MAX, ..arrival(9, 0, &packet) },
        );
        assert_eq!(line.numbers(), [10], "one place was needed");
        // The octets are bounded too: large packets drive the small ones out.
        let mut large = vec![0; 65_536];
        for n in 0..65u64 {
            large[..8].copy_from_slice(&numbered(5000 + 2 * n));
            line.feed(
                6000,
                &Arrival {
                    stream: 1,
                    sa: ChildSaId(1),
                    wait_ms: u16::MAX,
                    ..arrival(5000 + 2 * n, 0, &large)
                },
            );
        }
        assert!(line.out.len() >= 1000 && line.core.held.len() < 65);
        assert_eq!(line.core.held.capacity(), capacity);
        line.expire(u64::MAX);
        assert_eq!((line.out.len() + 1, line.core.due()), (MAX_HELD + 1 + 65, None));
    }

    #[test]
    fn the_last_number_is_no_trap() {
        let mut line = Line::default();
        line.receive(1, u64::MAX, 0);
        line.receive(2, u64::MAX - 1, 0);
        line.expire(100);
        assert_eq!(line.numbers(), [u64::MAX - 1, u64::MAX]);
    }

    proptest! {
        /// A packet a millisecond over paths of different length that keep their order and lose some.
        #[test]
        fn paths_of_different_length_make_one_line(
            delays in proptest::collection::vec(0u64..u64::from(WAIT), 1..5),
            lost in proptest::collection::vec(proptest::bool::weighted(0.1), 300),
            start in prop_oneof![Just(0u64), Just(u64::from(u32::MAX) - 50), any::<u32>().prop_map(u64::from)],
        ) {
            let mut arrivals: Vec<(u64, u64, usize)> = Vec::new();
            for (n, lost) in lost.iter().enumerate() {
                let from = n % delays.len();
                if !lost {
                    arrivals.push((1000 + n as u64 + delays[from], start + 1 + n as u64, from));
                }
            }
            arrivals.sort_unstable();
            let mut line = Line::default();
            let mut pending = arrivals.iter().peekable();
            for now in 1000..1500 {
                line.expire(now);
                while let Some((_, sequence, from)) = pending.next_if(|(at, ..)| *at == now) {
                    let packet = numbered(*sequence);
                    line.feed(now, &Arrival { highest: start, ..arrival(*sequence, *from, &packet) });
                }
            }
            prop_assert_eq!(line.core.due(), None);
            let mut expected: Vec<u64> = arrivals.iter().map(|(_, sequence, _)| *sequence).collect();
            expected.sort_unstable();
            let given: Vec<u64> = line.out.iter().map(|(sequence, _)| *sequence).collect();
            prop_assert_eq!(given, expected);
            for (sequence, at) in &line.out {
                let (came, ..) = arrivals.iter().find(|(_, number, _)| number == sequence).unwrap();
                prop_assert!(at - came <= u64::from(WAIT), "{} waited {}", sequence, at - came);
            }
        }

        /// Whatever comes, in whatever order and from wherever, goes out once and in time.
        #[test]
        fn nothing_is_lost_or_kept(
            packets in proptest::collection::hash_map((0u32..3, 1u64..400), (0u64..300, 0usize..20, 0u16..60, 0u64..3), 0..500),
        ) {
            let mut packets: Vec<_> = packets.into_iter().collect();
            packets.sort_unstable_by_key(|(_, (at, ..))| *at);
            let mut line = Line::default();
            let mut came = std::collections::HashMap::new();
            let mut pending = packets.iter().peekable();
            for now in 0..500 {
                line.expire(now);
                while let Some(((stream, sequence), (_, from, wait_ms, generation))) = pending.next_if(|(_, (at, ..))| *at == now) {
                    let number = u64::from(*stream) << 32 | sequence;
                    came.insert(number, now);
                    let packet = numbered(number);
                    line.feed(now, &Arrival {
                        stream: *stream,
                        wait_ms: *wait_ms,
                        generation: 1 + generation,
                        ..arrival(*sequence, *from, &packet)
                    });
                }
            }
            prop_assert_eq!(line.core.due(), None);
            prop_assert_eq!(line.out.len(), came.len());
            for (number, at) in &line.out {
                let waited = at - came.remove(number).expect("twice");
                prop_assert!(waited <= 60);
            }
        }
    }
}
