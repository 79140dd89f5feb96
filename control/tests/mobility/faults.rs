//! Schedules that once went wrong, each as short as it could be made.

use crate::schedule::Schedule;

pub fn all() -> Vec<(&'static str, Schedule)> {
    Vec::new()
}
