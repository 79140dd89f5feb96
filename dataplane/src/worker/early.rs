//! ESP packets that come before their SA is here. Who answers has the keys first and may send with them at once, and its packets can
//! overtake the answer, or the control thread's work on it. They wait a moment instead of being lost.

use std::collections::VecDeque;

use mobikex_common::spi::Spi;

use super::spi;
use crate::io::{HEADROOM, Meta};

/// Packets that wait at most. Anybody can send packets for no SA: they cost no more than this, and when there are so many of
/// them the others are dropped at once.
const MAX_EARLY: usize = 64;
/// Octets that they may have together.
const MAX_OCTETS: usize = 128 << 10;
/// What the SA is not there for by then is for none.
const MAX_WAIT_MS: u64 = 100;
/// A worker without other work looks after this long whether the SA is there, and then when the packet has waited twice as long
/// as before: what is for nobody must not keep it awake.
const PACE_MS: u64 = 2;

/// One packet, with [`HEADROOM`] octets in front.
pub(super) struct Waiting {
    pub(super) meta: Meta,
    /// It came in UDP.
    pub(super) encap: bool,
    pub(super) spi: Spi,
    since_ms: u64,
    buffer: Box<[u8]>,
}

impl Waiting {
    /// The buffer up to the packet's end, and where the packet starts in it.
    pub(super) fn with_headroom(&mut self) -> (&mut [u8], usize) {
        (&mut self.buffer, HEADROOM)
    }
}

/// The waiting packets of one worker, in order. Nothing is allocated before the first waits.
#[derive(Default)]
pub(super) struct Early {
    queue: VecDeque<Waiting>,
    octets: usize,
    looked_ms: u64,
}

impl Early {
    /// Keeps a copy of an ESP packet; whether there was room.
    pub(super) fn hold(&mut self, meta: Meta, encap: bool, packet: &[u8], now_ms: u64) -> bool {
        let Some(spi) = spi(packet) else { return false };
        if self.queue.len() == MAX_EARLY || self.octets + packet.len() > MAX_OCTETS {
            return false;
        }
        let buffer = [&[0; HEADROOM], packet].concat().into_boxed_slice();
        self.octets += packet.len();
        self.queue.push_back(Waiting { meta, encap, spi, since_ms: now_ms, buffer });
        true
    }

    /// Whether to look now: there is a packet, and this millisecond has not seen a look yet.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        !self.queue.is_empty() && self.looked_ms != now_ms
    }

    /// When to look again.
    pub(super) fn due(&self, now_ms: u64) -> Option<u64> {
        let newest = self.queue.back()?;
        Some(now_ms + now_ms.saturating_sub(newest.since_ms).clamp(PACE_MS, MAX_WAIT_MS))
    }

    /// Hands out, in order, the packets whose SA is `there` now; returns how many have waited in vain.
    pub(super) fn release(
        &mut self,
        now_ms: u64,
        there: impl Fn(Spi) -> bool,
        mut out: impl FnMut(Waiting),
    ) -> usize {
        let mut lost = 0;
        self.looked_ms = now_ms;
        for _ in 0..self.queue.len() {
            let Some(waiting) = self.queue.pop_front() else { break };
            let goes = there(waiting.spi);
            if !goes && now_ms.saturating_sub(waiting.since_ms) < MAX_WAIT_MS {
                self.queue.push_back(waiting);
                continue;
            }
            self.octets -= waiting.buffer.len() - HEADROOM;
            if goes {
                out(waiting);
            } else {
                lost += 1;
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(spi: u32, len: usize) -> Vec<u8> {
        let mut packet = vec![spi as u8; len];
        packet[..4].copy_from_slice(&spi.to_be_bytes());
        packet
    }

    fn released(early: &mut Early, now_ms: u64, there: &[u32]) -> (Vec<Vec<u8>>, usize) {
        let mut out = Vec::new();
        let lost = early.release(
            now_ms,
            |spi| there.contains(&spi.0),
            |mut waiting| {
                let (buffer, start) = waiting.with_headroom();
                assert!(start >= HEADROOM);
                out.push(buffer[start..].to_vec());
            },
        );
        (out, lost)
    }

    #[test]
    fn packets_wait_for_their_sa_and_then_go_in_order() {
        let mut early = Early::default();
        for (n, spi) in [7, 8, 7].into_iter().enumerate() {
            assert!(early.hold(Meta::UNKNOWN, true, &packet(spi, 40 + n), 10));
        }
        assert_eq!(released(&mut early, 11, &[]), (vec![], 0));
        assert_eq!((early.due(11), early.due(30)), (Some(13), Some(50)));
        assert!(!early.is_due(11) && early.is_due(12), "once in a millisecond");
        assert_eq!(released(&mut early, 12, &[7]), (vec![packet(7, 40), packet(7, 42)], 0));
        assert_eq!(released(&mut early, 109, &[7]), (vec![], 0));
        assert_eq!(released(&mut early, 110, &[7]), (vec![], 1));
        assert!(!early.is_due(111) && early.due(110).is_none() && early.octets == 0);
    }

    #[test]
    fn what_is_for_nobody_takes_little_room_and_goes() {
        let mut early = Early::default();
        assert!(!early.hold(Meta::UNKNOWN, true, &[1, 2, 3], 0), "too short for an SPI");
        let held = (0..1000).filter(|n| early.hold(Meta::UNKNOWN, true, &packet(*n, 40), 0)).count();
        assert_eq!(held, MAX_EARLY);
        assert_eq!(released(&mut early, 100, &[]), (vec![], MAX_EARLY));
        let held = (0..1000).filter(|n| early.hold(Meta::UNKNOWN, true, &packet(*n, 60_000), 100)).count();
        assert_eq!(held, 2);
        assert_eq!(released(&mut early, 200, &[0, 1]).0.len(), 2);
        assert_eq!(early.octets, 0);
    }
}
