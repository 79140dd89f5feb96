//! How a worker waits for work: it blocks, or it looks for more for a while before it does (busy polling).
//!
//! To be woken takes the system some microseconds, and what sends the packet pays for it. Looking costs no more than that
//! as long as the next packet comes soon. So whoever looks in vain looks half as long the next time, and not at all in the
//! end, until work has come again within the time that it would have looked for.

use std::time::{Duration, Instant};

/// What to do where there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// Ask for work without waiting.
    Look,
    /// Wait for work, so long at most.
    Block(Option<Duration>),
}

/// See the module. Time comes in as a function, which is not called where looking is switched off.
#[derive(Debug)]
pub(super) struct Patience {
    /// The longest that is ever looked for; zero to block at once.
    most: Duration,
    /// How long is looked for now.
    limit: Duration,
    /// When there was nothing to do any more: since the last work, and since the last pass.
    idle_since: Option<Instant>,
    passed_at: Option<Instant>,
}

impl Patience {
    pub(super) fn new(most: Duration) -> Self {
        Self { most, limit: most, idle_since: None, passed_at: None }
    }

    /// There is nothing to do, and what the worker holds is due in `due` after its last pass.
    pub(super) fn wait(&mut self, now: impl FnOnce() -> Instant, due: Option<Duration>) -> Wait {
        if self.most.is_zero() {
            return Wait::Block(due);
        }
        let now = now();
        let idle = now - *self.idle_since.get_or_insert(now);
        let passed = now - *self.passed_at.get_or_insert(now);
        let due = due.map(|due| due.saturating_sub(passed));
        if idle < self.limit && due.is_none_or(|due| !due.is_zero()) { Wait::Look } else { Wait::Block(due) }
    }

    /// A pass is made, with or without work.
    pub(super) fn passes(&mut self) {
        self.passed_at = None;
    }

    /// There is work.
    pub(super) fn found(&mut self, now: impl FnOnce() -> Instant) {
        let Some(since) = self.idle_since.take() else { return };
        if now() - since <= self.most {
            self.limit = (self.limit * 2).clamp(self.most / 8, self.most);
        } else {
            self.limit /= 2;
            if self.limit < self.most / 64 {
                self.limit = Duration::ZERO;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that asks for work every `STEP` while it looks, and packets that come so far apart.
    #[derive(Default)]
    struct Worker {
        looked: u32,
        blocked: u32,
    }

    const STEP: Duration = Duration::from_micros(1);

    impl Worker {
        fn receive(&mut self, patience: &mut Patience, now: &mut Instant, gaps: &[u64]) {
            for gap in gaps {
                let comes = *now + Duration::from_micros(*gap);
                while *now < comes {
                    match patience.wait(|| *now, None) {
                        Wait::Look => (self.looked, *now) = (self.looked + 1, *now + STEP),
                        Wait::Block(until) => {
                            assert_eq!(until, None);
                            (self.blocked, *now) = (self.blocked + 1, comes);
                        }
                    }
                }
                patience.found(|| *now);
                patience.passes();
            }
        }
    }

    /// How often it looked and how often it blocked.
    fn counts(most: u64, gaps: &[u64]) -> (u32, u32) {
        let (mut worker, mut now) = (Worker::default(), Instant::now());
        worker.receive(&mut Patience::new(Duration::from_micros(most)), &mut now, gaps);
        (worker.looked, worker.blocked)
    }

    #[test]
    fn without_it_each_packet_is_waited_for_and_no_clock_is_read() {
        assert_eq!(counts(0, &[10; 100]), (0, 100));
        let mut patience = Patience::new(Duration::ZERO);
        let due = Some(Duration::from_millis(3));
        assert_eq!(patience.wait(|| unreachable!(), due), Wait::Block(due));
        patience.found(|| unreachable!());
    }

    #[test]
    fn packets_that_come_soon_are_never_waited_for() {
        assert_eq!(counts(50, &[10; 100]), (1000, 0));
    }

    #[test]
    fn packets_that_come_late_are_soon_waited_for_at_once() {
        // 50, 25, 12.5, ... microseconds: under 100 in all, however many come.
        let (looked, blocked) = counts(50, &[1000; 100]);
        assert_eq!(blocked, 100);
        assert!((90..=110).contains(&looked), "{looked}");
        assert_eq!(counts(50, &[1000; 10_000]).0, looked);
    }

    #[test]
    fn it_looks_again_when_packets_come_soon_again() {
        let (late, soon) = (vec![1000; 20], vec![10; 100]);
        let (_, late_blocked) = counts(50, &late);
        let (_, blocked) = counts(50, &[late, soon].concat());
        // One that it is woken for shows that it would have paid; then it looks an eighth, a quarter ... of the time.
        assert!((1..=4).contains(&(blocked - late_blocked)), "{blocked} {late_blocked}");
    }

    #[test]
    fn what_is_due_is_not_waited_beyond() {
        let mut patience = Patience::new(Duration::from_millis(5));
        let start = Instant::now();
        let due = Some(Duration::from_millis(2));
        let at = |ms| move || start + Duration::from_millis(ms);
        assert_eq!(patience.wait(at(0), due), Wait::Look);
        assert_eq!(patience.wait(at(1), due), Wait::Look);
        assert_eq!(patience.wait(at(2), due), Wait::Block(Some(Duration::ZERO)));
        patience.passes();
        assert_eq!(patience.wait(at(3), due), Wait::Look);
        // Idle for longer than it looks: what is left of the time is slept.
        assert_eq!(
            patience.wait(at(6), Some(Duration::from_millis(4))),
            Wait::Block(Some(Duration::from_millis(1)))
        );
    }
}
