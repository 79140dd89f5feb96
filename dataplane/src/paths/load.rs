//! How much has lately gone over a path for one SA: what the choice of a path for a new flow goes by.

use std::sync::atomic::{AtomicU64, Ordering};

/// Milliseconds that count as lately for octets: what was sent so long ago counts a third. Longer than the bursts of
/// TCP, and so short that the place of flows which have ended is soon free.
pub(super) const LATELY_MS: u64 = 400;
/// The same for flows that have begun: to set up a connection and come up to speed takes several round trips.
const BEGUN_MS: u64 = 2000;

/// Traffic of the last moments. Workers look at it and correct it without a lock; when two do at once, a correction
/// may be lost, which the next seconds forget.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// When the path's counter was last read, in milliseconds of the workers' clock.
    at_ms: AtomicU64,
    /// What it was then, in octets.
    counted: AtomicU64,
    lately: AtomicU64,
}

/// What happened lately; older events count less and less.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Lately {
    /// Octets sent.
    pub(super) octets: f32,
    /// Flows that were sent here and have not shown yet what they carry.
    pub(super) flows: f32,
}

impl Load {
    /// Whether [`look`](Self::look) would tell something new.
    pub(super) fn is_stale(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.at_ms.load(Ordering::Relaxed)) > LATELY_MS / 4
    }

    /// Takes in the octets counted so far.
    pub(super) fn look(&self, counted: u64, now_ms: u64) -> Lately {
        let before = self.at_ms.load(Ordering::Relaxed);
        let passed = now_ms.saturating_sub(before);
        let mine =
            || self.at_ms.compare_exchange(before, now_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if passed == 0 || !mine() {
            return self.lately();
        }
        let more = counted.saturating_sub(self.counted.swap(counted, Ordering::Relaxed));
        let ages = passed as f32 / LATELY_MS as f32;
        let kept = (-ages).exp();
        // What came in between came evenly, as far as is known: the mean of what is left of it.
        let octets = more as f32 * (1.0 - kept) / ages;
        let begun = (-(passed as f32) / BEGUN_MS as f32).exp();
        self.change(|l| Lately { octets: l.octets * kept + octets, flows: l.flows * begun })
    }

    /// Adds what is expected to come, or takes off what is expected to stay away.
    pub(super) fn expect(&self, octets: f32, flows: f32) {
        self.change(|l| Lately { octets: (l.octets + octets).max(0.0), flows: l.flows + flows });
    }

    /// As of the last look, and what has been expected since.
    pub(super) fn lately(&self) -> Lately {
        unpack(self.lately.load(Ordering::Relaxed))
    }

    fn change(&self, change: impl Fn(Lately) -> Lately) -> Lately {
        let new = change(self.lately());
        self.lately.store(pack(new), Ordering::Relaxed);
        new
    }
}

fn pack(lately: Lately) -> u64 {
    u64::from(lately.octets.to_bits()) << 32 | u64::from(lately.flows.to_bits())
}

fn unpack(word: u64) -> Lately {
    Lately { octets: f32::from_bits((word >> 32) as u32), flows: f32::from_bits(word as u32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_shows_as_what_it_brings_in_that_time() {
        for step in [1, 50, 100] {
            let load = Load::default();
            let mut seen = Lately::default();
            for now in (0..20_000).step_by(step) {
                seen = load.look(now * 1000, now);
            }
            let expected = LATELY_MS as f32 * 1000.0;
            assert!((seen.octets / expected - 1.0).abs() < 0.01, "{seen:?} at {step} ms");
            // Silence is noticed.
            let last = (20_000 - step as u64) * 1000;
            seen = load.look(last, 20_000 + 5 * LATELY_MS);
            assert!(seen.octets < expected / 20.0, "{seen:?}");
        }
    }

    #[test]
    fn expectations_count_at_once_and_are_forgotten() {
        let load = Load::default();
        load.look(0, 1);
        load.expect(1000.0, 1.0);
        assert_eq!(load.look(0, 1), Lately { octets: 1000.0, flows: 1.0 });
        load.expect(-5000.0, 0.0);
        assert_eq!(load.look(0, 1).octets, 0.0, "less than nothing cannot be there");
        assert!(load.look(0, 1 + 4 * BEGUN_MS).flows < 0.02);
    }

    #[test]
    fn a_counter_that_starts_anew_is_no_load() {
        let load = Load::default();
        load.look(1_000_000, 10);
        assert!(load.look(5, 20).octets < 1_000_000.0);
        assert!(load.is_stale(1000) && !load.is_stale(100));
    }
}
