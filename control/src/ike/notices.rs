//! Log lines that anybody on the network can cause, and therefore only so many of them a second.

use std::time::{Duration, Instant};

use tracing::info;

/// Lines in each second; the rest is counted and said in one line later.
const PER_SECOND: u32 = 10;

/// Lets some lines pass and counts the others.
#[derive(Debug)]
pub(super) struct Notices {
    since: Instant,
    said: u32,
    withheld: u64,
}

impl Notices {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, said: 0, withheld: 0 }
    }

    /// Whether one more line may be written at `now`.
    pub(super) fn allow(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            if self.withheld > 0 {
                info!(target: "IKE", "{} further messages about unauthenticated peers withheld", self.withheld);
            }
            *self = Self::new(now);
        }
        let allowed = self.said < PER_SECOND;
        if allowed {
            self.said += 1;
        } else {
            self.withheld += 1;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_a_later_line_passes_again() {
        let start = Instant::now();
        let mut notices = Notices::new(start);
        let passed = (0..100_000).filter(|_| notices.allow(start)).count();
        assert_eq!(passed, PER_SECOND as usize);
        assert_eq!(notices.withheld, 100_000 - u64::from(PER_SECOND));
        assert!(notices.allow(start + Duration::from_secs(1)));
        assert_eq!(notices.withheld, 0);
    }
}
