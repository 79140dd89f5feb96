//! What each path can carry, learnt from what it does carry: pure values.
//!
//! A path is full when its round trip has grown well beyond the shortest one, since a queue stands in it, or when it
//! loses probes. What goes over a full path is, less the losses, what it can carry. A path that has never been full
//! counts as much as the best one known, and one that rests while others are full is given more until it is full too.

use std::time::{Duration, Instant};

/// Time between two readings.
pub(super) const READING: Duration = Duration::from_secs(1);
/// A queue that lets the round trip grow by less than this, or by less than half of it, is none.
const QUEUE: Duration = Duration::from_millis(10);
/// Loss of probes (in 1/1000) that shows a full path.
const LOSS: u32 = 60;
/// Share of a new reading in the estimate.
const GAIN: f64 = 0.3;
/// What a path that rests is given more each time, and what one that was never full is thought to carry more than it
/// does.
const MORE: f64 = 1.1;
const UNTRIED: f64 = 1.25;
/// The share of the best path, in units of which the others' are told.
pub(super) const WHOLE: u16 = 100;
/// However slow, a path goes on being tried with this much.
const LEAST: u16 = 4;
/// Shares that differ by less than a fifth are left alone: each change moves flows.
const STEP: u16 = 5;

/// One path's estimate.
#[derive(Clone, Debug, Default)]
pub(super) struct PathRate {
    /// The last reading: octets so far, and when.
    last: Option<(u64, Instant)>,
    /// The shortest round trip, which rises slowly in case the path has changed.
    base: Option<Duration>,
    /// Octets a second at the last reading.
    seen: f64,
    /// What it carries when full, in octets a second.
    capacity: Option<f64>,
    full: bool,
}

impl PathRate {
    /// Takes in a round trip, as each probe measures it.
    pub(super) fn note_rtt(&mut self, rtt: Duration) {
        self.base = Some(self.base.map_or(rtt, |base| rtt.min(base + base / 4096)));
    }

    /// Takes in how many octets have gone over the path so far, its smoothed round trip, and the loss in 1/1000.
    pub(super) fn read(&mut self, octets: u64, rtt: Option<Duration>, loss: u32, now: Instant) {
        let last = self.last.replace((octets, now));
        let Some((before, at)) = last.filter(|(before, _)| *before <= octets) else {
            // The first reading, or a rekeyed SA counts anew.
            return;
        };
        let seconds = now.saturating_duration_since(at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        self.seen = (octets - before) as f64 / seconds * f64::from(1000 - loss.min(1000)) / 1000.0;
        self.full = loss >= LOSS;
        if let (Some(rtt), Some(base)) = (rtt, self.base) {
            self.full |= rtt > base + (base / 2).max(QUEUE);
        }
        if self.full && self.seen > 0.0 {
            self.capacity = Some(self.capacity.map_or(self.seen, |c| c + (self.seen - c) * GAIN));
        } else {
            self.capacity = self.capacity.map(|c| c.max(self.seen));
        }
    }

    /// Bits a second that it can carry, once it has been full.
    pub(super) fn bits_per_second(&self) -> Option<u64> {
        self.capacity.map(|octets| (octets * 8.0) as u64)
    }
}

/// The shares of paths after a reading of all of them; `None` while none has ever been full.
pub(super) fn shares(rates: &mut [&mut PathRate]) -> Option<Vec<u16>> {
    let best = rates.iter().filter_map(|r| r.capacity).reduce(f64::max)?;
    if rates.iter().any(|r| r.full) {
        for rate in rates.iter_mut().filter(|r| !r.full) {
            rate.capacity = rate.capacity.map(|c| c * MORE);
        }
    }
    let worth: Vec<f64> =
        rates.iter().map(|r| r.capacity.unwrap_or_else(|| best.max(r.seen * UNTRIED))).collect();
    let most = worth.iter().copied().reduce(f64::max).filter(|most| *most > 0.0)?;
    let share = |worth: &f64| ((worth / most * f64::from(WHOLE)).round() as u16).clamp(LEAST, WHOLE);
    Some(worth.iter().map(share).collect())
}

/// Whether shares differ enough to be worth moving flows for.
pub(super) fn differ(old: &[u16], new: &[u16]) -> bool {
    old.len() != new.len() || old.iter().zip(new).any(|(a, b)| a.abs_diff(*b) * STEP > *a.max(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: f64 = 1e6 / 8.0;

    /// A link with a queue of 60 ms, the flows that use it, and the sender's estimate of it.
    struct Link {
        capacity: f64,
        delay: Duration,
        queue: f64,
        octets: f64,
        rate: PathRate,
    }

    impl Link {
        fn new(mbit: f64, delay_ms: u64) -> Self {
            let delay = Duration::from_millis(2 * delay_ms);
            let mut rate = PathRate::default();
            // Probes have gone over it before there was traffic.
            rate.note_rtt(delay);
            Self { capacity: mbit * MBIT, delay, queue: 0.0, octets: 0.0, rate }
        }

        /// A second in which `offered` octets are sent at most; TCP sends what fits.
        fn second(&mut self, offered: f64, elastic: bool, now: Instant) {
            let sent = if elastic { offered.min(self.capacity) } else { offered };
            let most = self.capacity * 0.06;
            let excess = (self.queue + offered - self.capacity).max(0.0);
            self.queue = excess.min(most);
            let lost = if elastic { 0.0 } else { (excess - most).max(0.0) / offered.max(1.0) };
            self.octets += sent;
            let rtt = self.delay + Duration::from_secs_f64(self.queue / self.capacity);
            self.rate.note_rtt(rtt);
            self.rate.read(self.octets as u64, Some(rtt), (lost * 1000.0) as u32, now);
        }
    }

    /// The shares after so many seconds under load that is divided by them.
    fn settle(links: &mut [Link], offered: f64, elastic: bool, seconds: u64) -> Vec<u16> {
        let start = Instant::now();
        let mut used = vec![WHOLE; links.len()];
        for second in 0..seconds {
            let sum: f64 = used.iter().map(|s| f64::from(*s)).sum();
            for (link, share) in links.iter_mut().zip(&used) {
                let part = offered * MBIT * f64::from(*share) / sum;
                link.second(part, elastic, start + Duration::from_secs(second));
            }
            let mut rates: Vec<_> = links.iter_mut().map(|l| &mut l.rate).collect();
            if let Some(new) = shares(&mut rates).filter(|new| differ(&used, new)) {
                used = new;
            }
        }
        used
    }

    #[test]
    fn tcp_on_two_uplinks_is_divided_as_they_can_carry() {
        let mut links = [Link::new(200.0, 10), Link::new(100.0, 40)];
        let shares = settle(&mut links, 1000.0, true, 20);
        assert_eq!(shares[0], WHOLE);
        assert!((45..=55).contains(&shares[1]), "{shares:?}");
        let known = links[1].rate.bits_per_second().unwrap();
        assert!((95_000_000..=105_000_000).contains(&known), "{known}");
    }

    #[test]
    fn a_stream_that_fits_ends_up_where_it_fits() {
        let mut links = [Link::new(200.0, 10), Link::new(50.0, 10)];
        let shares = settle(&mut links, 220.0, false, 120);
        let part = 220.0 * f64::from(shares[1]) / f64::from(shares[0] + shares[1]);
        assert!((20.0..=55.0).contains(&part), "{part} of 50 Mbit/s, {shares:?}");
    }

    #[test]
    fn paths_that_are_never_full_share_alike() {
        let mut links = [Link::new(200.0, 10), Link::new(100.0, 40)];
        assert_eq!(settle(&mut links, 50.0, false, 60), [WHOLE, WHOLE]);
        assert!(links.iter().all(|l| l.rate.bits_per_second().is_none()));
    }

    #[test]
    fn a_link_that_grows_is_noticed_and_none_is_forgotten() {
        let mut links = [Link::new(200.0, 10), Link::new(2.0, 10)];
        let shares = settle(&mut links, 1000.0, true, 30);
        assert_eq!(shares, [WHOLE, LEAST]);
        links[1].capacity = 200.0 * MBIT;
        let shares = settle(&mut links, 1000.0, true, 120);
        assert!(shares[1] > 80, "{shares:?}");
    }

    #[test]
    fn a_rekeyed_sa_counts_anew_without_harm() {
        let mut rate = PathRate::default();
        let start = Instant::now();
        rate.read(1_000_000, None, 0, start);
        rate.read(5, None, 0, start + READING);
        assert_eq!(rate.seen, 0.0);
        rate.read(125_005, None, 0, start + 2 * READING);
        assert_eq!((rate.seen, rate.bits_per_second()), (125_000.0, None));
    }
}
