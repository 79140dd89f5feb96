//! One direction of an emulated link: when does a frame that enters it now leave it, if at all. Pure: time and frame
//! lengths come in, time comes out.

use std::str::FromStr;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// What a direction of a link does to frames. As text: `rate=200mbit,delay=10ms,queue=50ms,burst=1ms,loss=0.1%` in any
/// order, or `-` for a link that only forwards; what is not named keeps its default.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rules {
    /// Bits per second, counted over whole frames with their Ethernet header; `None` does not limit.
    pub rate: Option<u64>,
    /// From the end of a frame's transmission to its arrival; none by default.
    pub delay: Duration,
    /// How long a frame may wait for its turn before it is dropped instead; 50 ms by default.
    pub queue: Duration,
    /// Idle time that the link makes up for: the depth of the token bucket divided by its rate. It forgives the
    /// machine that a frame is read late; 1 ms by default.
    pub burst: Duration,
    /// Share of the frames that vanish on the wire, 0 to 1; none by default.
    pub loss: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            rate: None,
            delay: Duration::ZERO,
            queue: Duration::from_millis(50),
            burst: Duration::from_millis(1),
            loss: 0.0,
        }
    }
}

/// Text that is no [`Rules`]: the part that was not understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadRules(pub String);

impl std::fmt::Display for BadRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` is not one of rate=200mbit delay=10ms queue=50ms burst=1ms loss=0.1%", self.0)
    }
}

impl std::error::Error for BadRules {}

impl FromStr for Rules {
    type Err = BadRules;

    fn from_str(text: &str) -> Result<Self, BadRules> {
        let mut rules = Self::default();
        for part in text.split(',').filter(|_| text != "-") {
            let bad = || BadRules(part.to_owned());
            let (name, value) = part.split_once('=').ok_or_else(bad)?;
            match name {
                "rate" => rules.rate = Some(rate(value).ok_or_else(bad)?),
                "delay" => rules.delay = span(value).ok_or_else(bad)?,
                "queue" => rules.queue = span(value).ok_or_else(bad)?,
                "burst" => rules.burst = span(value).ok_or_else(bad)?,
                "loss" => rules.loss = share(value).ok_or_else(bad)?,
                _ => return Err(bad()),
            }
        }
        Ok(rules)
    }
}

/// A rate in bits per second, 1 kbit to 1 Tbit.
fn rate(text: &str) -> Option<u64> {
    let units = [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1_000)];
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    let rate = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (1_000..=1_000_000_000_000).contains(&rate).then_some(rate)
}

/// A time of up to ten seconds.
fn span(text: &str) -> Option<Duration> {
    let units = [("ms", 1e-3), ("us", 1e-6), ("s", 1.0)];
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    let seconds = number.parse::<f64>().ok()? * unit;
    (0.0..=10.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

fn share(text: &str) -> Option<f64> {
    let share = text.strip_suffix('%')?.parse::<f64>().ok()? / 100.0;
    (0.0..=1.0).contains(&share).then_some(share)
}

/// Why a frame does not leave the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// It would have waited for longer than the queue holds.
    Queue,
    /// It vanished on the wire, after its transmission.
    Wire,
}

/// The state of one direction. Frames leave in the order in which they enter.
#[derive(Debug)]
pub struct Shaper {
    rules: Rules,
    /// When the last accepted frame's transmission ends.
    free: Duration,
    chance: ChaCha8Rng,
}

impl Shaper {
    /// An idle link. Equal seeds lose the same frames.
    pub fn new(rules: Rules, seed: u64) -> Self {
        Self { rules, free: Duration::ZERO, chance: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// When a frame of `octets` that enters at `now` leaves. Times count from one start and never go back.
    ///
    /// # Errors
    /// Why it never leaves.
    pub fn pass(&mut self, now: Duration, octets: usize) -> Result<Duration, Lost> {
        let Rules { rate, delay, queue, burst, loss } = self.rules;
        let mut sent = now;
        if let Some(rate) = rate {
            let start = self.free.max(now.saturating_sub(burst));
            if start > now + queue {
                return Err(Lost::Queue);
            }
            self.free = start + Duration::from_nanos(octets as u64 * 8 * 1_000_000_000 / rate);
            sent = now.max(self.free);
        }
        // The share as a threshold on 53 random bits, of which a float keeps every one.
        if loss > 0.0 && ((self.chance.next_u64() >> 11) as f64) < loss * (1u64 << 53) as f64 {
            return Err(Lost::Wire);
        }
        Ok(sent + delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn shaper(rules: &str) -> Shaper {
        Shaper::new(rules.parse().unwrap(), 1)
    }

    #[test]
    fn a_plain_link_forwards_at_once_and_a_delay_delays() {
        assert_eq!(shaper("-").pass(7 * MS, 1500), Ok(7 * MS));
        assert_eq!(shaper("delay=40ms").pass(7 * MS, 1500), Ok(47 * MS));
    }

    /// 1250 octets at 10 Mbit/s take a millisecond.
    #[test]
    fn frames_leave_at_the_rate() {
        let mut link = shaper("rate=10mbit,delay=5ms,queue=50ms,burst=0ms");
        for n in 1..=20 {
            assert_eq!(link.pass(MS, 1250), Ok((6 + n) * MS));
        }
        // Idle time is not saved up.
        assert_eq!(link.pass(500 * MS, 1250), Ok(506 * MS));
    }

    #[test]
    fn the_bucket_lets_a_burst_through_and_no_more() {
        let mut link = shaper("rate=10mbit,burst=3ms");
        let out: Vec<_> = (0..5).map(|_| link.pass(100 * MS, 1250).unwrap()).collect();
        assert_eq!(out, [100, 100, 100, 101, 102].map(|ms| ms * MS));
    }

    #[test]
    fn what_waits_too_long_is_dropped() {
        let mut link = shaper("rate=10mbit,queue=10ms,burst=0ms");
        let fates: Vec<_> = (0..13).map(|_| link.pass(MS, 1250)).collect();
        assert_eq!(fates.iter().filter(|fate| fate.is_ok()).count(), 11, "ten wait and one is on its way");
        assert_eq!(fates[11..], [Err(Lost::Queue); 2]);
        assert_eq!(link.pass(2 * MS, 1250), Ok(13 * MS), "a dropped frame takes no time");
    }

    /// Whatever the arrival pattern, over a long time no more than the rate leaves, and a full link is never idle.
    #[test]
    fn a_loaded_link_carries_its_rate_in_order() {
        let mut link = shaper("rate=100mbit,queue=20ms");
        let (mut now, mut last, mut octets) = (Duration::ZERO, Duration::ZERO, 0);
        for n in 0..20_000u32 {
            // Clumps of 16 frames, at 112 Mbit/s on average.
            now += if n % 16 == 0 { Duration::from_micros(1715) } else { Duration::ZERO };
            if let Ok(out) = link.pass(now, 1500) {
                assert!(out >= last && out >= now);
                last = out;
                octets += 1500;
            }
        }
        let rate = octets as f64 * 8.0 / last.as_secs_f64();
        assert!((99.8e6..100.2e6).contains(&rate), "{rate}");
    }

    #[test]
    fn loss_takes_its_share_and_its_time() {
        let mut link = shaper("loss=2.5%,rate=1gbit,queue=10s,burst=0ms");
        let lost = (0..100_000).filter(|_| link.pass(MS, 125) == Err(Lost::Wire)).count();
        assert!((2300..2700).contains(&lost), "{lost}");
        assert_eq!(link.free, 101 * MS);
        assert_eq!(shaper("loss=100%").pass(MS, 1), Err(Lost::Wire));
    }

    #[test]
    fn rules_are_read_whole_or_not_at_all() {
        let rules: Rules = "rate=200mbit,delay=10ms,queue=0.1s,burst=500us,loss=50%".parse().unwrap();
        let expected = Rules {
            rate: Some(200_000_000),
            delay: 10 * MS,
            queue: 100 * MS,
            burst: Duration::from_micros(500),
            loss: 0.5,
        };
        assert_eq!(rules, expected);
        assert_eq!("-".parse(), Ok(Rules::default()));
        for bad in
            ["", "rate", "rate=5", "rate=0mbit", "delay=-1ms", "delay=11s", "loss=101%", "loss=1", "mtu=5"]
        {
            assert_eq!(format!("delay=1ms,{bad}").parse::<Rules>(), Err(BadRules(bad.to_owned())));
        }
    }
}
