//! Which script has its turn. What concerns the same peer and child runs one after the other, in the order in which it came.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::ike::Script;

/// Something to run.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// The beginning, or the end.
    pub(super) up: bool,
    pub(super) script: Arc<Script>,
}

/// See the module.
#[derive(Default, Debug)]
pub(super) struct Turns {
    /// What waits in each turn that has something running or waiting.
    waiting: HashMap<String, VecDeque<Job>>,
    /// Turns in which nothing is running.
    ready: VecDeque<String>,
    running: usize,
}

impl Turns {
    /// Takes up a job. False if there is nothing to run: it would only take back what has not been run, and then neither is,
    /// so that what waits is bounded by what there is and was at once, however often it comes and goes.
    pub(super) fn push(&mut self, job: Job) -> bool {
        let Some(waiting) = self.waiting.get_mut(&job.script.turn) else {
            self.ready.push_back(job.script.turn.clone());
            self.waiting.insert(job.script.turn.clone(), VecDeque::from([job]));
            return true;
        };
        let beginning = |waits: &Job| !job.up && waits.up && Arc::ptr_eq(&waits.script, &job.script);
        if let Some(index) = waiting.iter().position(beginning) {
            waiting.remove(index);
            return false;
        }
        waiting.push_back(job);
        true
    }

    /// The next job that may run; [`Self::done`] has to follow.
    pub(super) fn next(&mut self) -> Option<Job> {
        while let Some(turn) = self.ready.pop_front() {
            if let Some(job) = self.waiting.get_mut(&turn).and_then(VecDeque::pop_front) {
                self.running += 1;
                return Some(job);
            }
            self.waiting.remove(&turn);
        }
        None
    }

    /// A job of this turn has run.
    pub(super) fn done(&mut self, turn: &str) {
        self.running -= 1;
        if self.waiting.get(turn).is_some_and(|waiting| !waiting.is_empty()) {
            self.ready.push_back(turn.to_string());
        } else {
            self.waiting.remove(turn);
        }
    }

    /// Forgets all that waits; how much that was.
    pub(super) fn clear(&mut self) -> usize {
        self.ready.clear();
        let left = self.waiting.values().map(VecDeque::len).sum();
        self.waiting.values_mut().for_each(VecDeque::clear);
        left
    }

    /// Nothing runs or waits.
    pub(super) fn is_empty(&self) -> bool {
        self.running == 0 && self.waiting.values().all(VecDeque::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(up: bool, script: &Arc<Script>) -> Job {
        Job { up, script: Arc::clone(script) }
    }

    #[test]
    fn what_belongs_together_runs_in_order_and_the_rest_beside_it() {
        let (first, second, other) = (Script::of("a", "1"), Script::of("a", "2"), Script::of("b", "3"));
        let mut turns = Turns::default();
        for job in [job(true, &first), job(true, &second), job(true, &other)] {
            assert!(turns.push(job));
        }
        let next = |turns: &mut Turns| turns.next().map(|job| (job.up, job.script.child.clone()));
        assert_eq!(next(&mut turns), Some((true, "1".into())));
        assert_eq!(next(&mut turns), Some((true, "3".into())));
        assert!(turns.push(job(false, &first)), "its beginning runs already");
        assert_eq!(next(&mut turns), None, "both turns are taken");
        turns.done("a");
        assert_eq!(next(&mut turns), Some((true, "2".into())));
        turns.done("b");
        assert!(!turns.is_empty());
        turns.done("a");
        assert_eq!(next(&mut turns), Some((false, "1".into())));
        turns.done("a");
        assert!(turns.is_empty() && turns.waiting.is_empty());
    }

    #[test]
    fn what_ends_before_it_was_told_to_begin_is_not_told_at_all() {
        let (running, waiting) = (Script::of("a", "1"), Script::of("a", "2"));
        let mut turns = Turns::default();
        turns.push(job(true, &running));
        turns.next().unwrap();
        for _ in 0..1000 {
            assert!(turns.push(job(true, &waiting)));
            assert!(!turns.push(job(false, &waiting)));
        }
        assert!(turns.push(job(false, &running)));
        turns.done("a");
        assert!(!turns.next().unwrap().up);
        turns.done("a");
        assert!(turns.next().is_none() && turns.is_empty());
        // Also when it is the only one there.
        turns.push(job(true, &waiting));
        assert!(!turns.push(job(false, &waiting)));
        assert!(turns.next().is_none() && turns.is_empty() && turns.waiting.is_empty());
        turns.push(job(true, &waiting));
        assert_eq!((turns.clear(), turns.is_empty()), (1, true));
    }
}
