//! A value that readers take without a lock while a writer replaces it whole.
//!
//! This is the only place that dereferences epoch-protected pointers. Everything in it follows from one rule: a
//! value is destroyed only after every [`Guard`] that was pinned while it was still reachable has gone.
//! [`Guard`] is a type of its own so that a guard of a foreign collector, or the unprotected one, cannot be
//! passed by mistake.

#![allow(unsafe_code)]

use std::fmt;
use std::sync::atomic::Ordering;

use crossbeam::epoch::{self, Atomic, Owned, Shared};

/// Keeps alive what [`Published::load`] returned. A worker pins once per batch of packets.
pub struct Guard(epoch::Guard);

/// Enters the epoch of all published values.
pub fn pin() -> Guard {
    Guard(epoch::pin())
}

impl Guard {
    /// Lets retired values go by leaving and re-entering the epoch; nothing may still be borrowed from it.
    pub fn repin(&mut self) {
        self.0.repin();
    }
}

/// A place for one value, or none, that is replaced by a single pointer store.
pub struct Published<T>(Atomic<T>);

impl<T: Send + Sync + 'static> Published<T> {
    /// Holds nothing yet.
    pub fn empty() -> Self {
        Self(Atomic::null())
    }

    /// Holds `value`.
    pub fn new(value: T) -> Self {
        Self(Atomic::new(value))
    }

    /// What is published now. It stays readable for as long as the guard and the place both live.
    pub fn load<'a>(&'a self, guard: &'a Guard) -> Option<&'a T> {
        let shared = self.0.load(Ordering::Acquire, &guard.0);
        // SAFETY: a non-null pointer in the place came from `Owned::new` or `Atomic::new` and was stored with
        // Release (swap, AcqRel) or by the constructor, so the Acquire load sees the value complete. It is
        // freed in two ways only. `exchange` defers that until all guards pinned now are gone, and `guard`, of
        // the one default collector, is pinned for 'a. `drop` frees at once but needs `&mut self`, which the
        // borrow of `self` for 'a excludes. No `&mut T` is ever made.
        unsafe { shared.as_ref() }
    }

    /// Publishes `value` (or nothing) and retires the predecessor. Tells whether there was one.
    pub fn replace(&self, value: Option<T>) -> bool {
        let guard = pin();
        let retired = self.exchange(value, &guard);
        // Retired SAs hold keys: push them out of this thread's cache so that they are wiped soon.
        guard.0.flush();
        retired
    }

    /// Publishes `value` and retires the predecessor some time: for values without secrets that are replaced by
    /// the thousand under one guard.
    pub fn swap(&self, value: T, guard: &Guard) -> bool {
        self.exchange(Some(value), guard)
    }

    fn exchange(&self, value: Option<T>, guard: &Guard) -> bool {
        let old = match value {
            Some(value) => self.0.swap(Owned::new(value), Ordering::AcqRel, &guard.0),
            None => self.0.swap(Shared::null(), Ordering::AcqRel, &guard.0),
        };
        if old.is_null() {
            return false;
        }
        // SAFETY: the swap made `old` unreachable for later loads and handed it to us alone, so it is retired
        // exactly once. `T` is `Send` and `'static`, so that any thread may run its destructor later. The guard
        // is of the one default collector, as those of the readers are.
        unsafe { guard.0.defer_destroy(old) };
        true
    }
}

impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        let last = std::mem::replace(&mut self.0, Atomic::null());
        // SAFETY: `&mut self` proves that no `load` is borrowed any more (each borrows the place), and no swap
        // can run; the pointer is therefore ours alone and was not retired, for retired ones were swapped out.
        drop(unsafe { last.try_into_owned() });
    }
}

impl<T> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Published(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    #[test]
    fn a_replaced_value_lives_until_its_readers_are_gone_and_is_then_dropped_once() {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let drops = Arc::new(AtomicUsize::new(0));
        let place = Published::new(Counted(drops.clone()));
        let guard = pin();
        let seen = place.load(&guard).unwrap();
        assert!(place.replace(Some(Counted(drops.clone()))));
        assert_eq!(seen.0.load(Ordering::SeqCst), 0, "still readable");
        drop(guard);
        drop(place);
        for _ in 0..1000 {
            if drops.load(Ordering::SeqCst) == 2 {
                break;
            }
            epoch::pin().flush();
            std::thread::yield_now();
        }
        assert_eq!(drops.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn readers_see_whole_values_only() {
        let place = Arc::new(Published::new(vec![0u64; 64]));
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (place, stop) = (place.clone(), stop.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let guard = pin();
                        if let Some(value) = place.load(&guard) {
                            assert!(value.iter().all(|x| *x == value[0]), "torn value");
                        }
                    }
                })
            })
            .collect();
        for round in 1..5000u64 {
            place.replace((round % 7 != 0).then(|| vec![round; 64]));
        }
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|r| r.join().unwrap());
    }
}
