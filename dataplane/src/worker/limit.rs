//! What a worker does so many times a second at most.

/// Counts within the second of the workers' coarse clock.
pub(crate) struct Limit {
    second: u64,
    done: u32,
    max: u32,
}

impl Limit {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { second: 0, done: 0, max: per_second }
    }

    /// Whether it may be done once more now; notes that it is.
    pub(crate) fn allow(&mut self, now_ms: u64) -> bool {
        if self.second != now_ms / 1000 {
            (self.second, self.done) = (now_ms / 1000, 0);
        }
        self.done = self.done.saturating_add(1);
        self.done <= self.max
    }
}
