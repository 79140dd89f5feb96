//! Packets that reached the wrong worker on their way to the one that owns their SA.
//!
//! A bounded ring for each worker, with buffers that were allocated once and circulate: the giver takes one from
//! `free`, fills it and puts it into `full`; the owner empties it and puts it back.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;
use mio::Waker;

use crate::io::{HEADROOM, Meta};

/// Packets that may wait for a worker.
const CAPACITY: usize = 256;
const BUFFER: usize = HEADROOM + 65_536;

/// One packet on its way, with [`HEADROOM`] octets in front.
pub(crate) struct Parcel {
    pub(crate) meta: Meta,
    /// The packet came in UDP.
    pub(crate) encap: bool,
    len: usize,
    data: Box<[u8]>,
}

impl Parcel {
    /// The buffer up to the packet's end, and where the packet starts in it.
    pub(crate) fn with_headroom(&mut self) -> (&mut [u8], usize) {
        (&mut self.data[..HEADROOM + self.len], HEADROOM)
    }
}

/// The ring of one worker, and how to wake it.
pub(crate) struct Ring {
    full: ArrayQueue<Box<Parcel>>,
    free: ArrayQueue<Box<Parcel>>,
    signalled: AtomicBool,
    waker: Waker,
}

impl Ring {
    pub(crate) fn new(waker: Waker) -> Self {
        let (full, free) = (ArrayQueue::new(CAPACITY), ArrayQueue::new(CAPACITY));
        for _ in 0..CAPACITY {
            let data = vec![0; BUFFER].into_boxed_slice();
            // Cannot fail: the queue has just this many places.
            let _ = free.push(Box::new(Parcel { meta: Meta::UNKNOWN, encap: false, len: 0, data }));
        }
        Self { full, free, signalled: AtomicBool::new(false), waker }
    }

    /// Copies a packet into the ring; `false` when it is full or the packet too long.
    pub(crate) fn give(&self, meta: Meta, encap: bool, packet: &[u8]) -> bool {
        if packet.len() > BUFFER - HEADROOM {
            return false;
        }
        let Some(mut parcel) = self.free.pop() else { return false };
        parcel.meta = meta;
        parcel.encap = encap;
        parcel.len = packet.len();
        parcel.data[HEADROOM..][..packet.len()].copy_from_slice(packet);
        // There are no more parcels than places, so this succeeds.
        let _ = self.full.push(parcel);
        if !self.signalled.swap(true, Ordering::AcqRel) {
            self.wake();
        }
        true
    }

    /// Wakes the worker to look around.
    pub(crate) fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!("a worker cannot be woken: {error}");
        }
    }

    /// To be called by the owner before it empties the ring, so that what comes after it wakes again.
    pub(crate) fn rearm(&self) {
        self.signalled.store(false, Ordering::Release);
    }

    /// The next packet.
    pub(crate) fn take(&self) -> Option<Box<Parcel>> {
        self.full.pop()
    }

    /// Gives the buffer of a taken packet back.
    pub(crate) fn give_back(&self, parcel: Box<Parcel>) {
        let _ = self.free.push(parcel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_ring_refuses_and_buffers_come_back() {
        let poll = mio::Poll::new().unwrap();
        let ring = Ring::new(Waker::new(poll.registry(), mio::Token(0)).unwrap());
        assert!(!ring.give(Meta::UNKNOWN, true, &vec![0; 65_537]));
        for n in 0..CAPACITY {
            assert!(ring.give(Meta::UNKNOWN, true, &[n as u8; 40]));
        }
        assert!(!ring.give(Meta::UNKNOWN, true, b"one too many"));
        for n in 0..CAPACITY {
            let mut parcel = ring.take().unwrap();
            let (buffer, start) = parcel.with_headroom();
            assert_eq!(buffer[start..], [n as u8; 40]);
            ring.give_back(parcel);
        }
        assert!(ring.take().is_none());
        assert!(ring.give(Meta::UNKNOWN, true, b"again"));
    }
}
