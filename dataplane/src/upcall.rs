//! What the workers tell the control thread.

use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use mobikex_common::addr::Path;
use mobikex_common::sa::{ChildSaId, PolicyId};
use mobikex_common::wire::echo::Echo;

/// Upcalls that may wait for the control thread.
const CAPACITY: usize = 4096;
/// Policies whose latest acquire is remembered; more only repeat some requests.
const ACQUIRES: usize = 1024;

/// An event of the packet path that needs the control thread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Upcall {
    /// A packet matched a policy without an SA. At most one a second for each policy.
    Acquire {
        /// The policy.
        policy: PolicyId,
        /// The packet's source.
        src: IpAddr,
        /// The packet's destination.
        dst: IpAddr,
        /// The packet's upper-layer protocol.
        protocol: u8,
        /// Source and destination port, or ICMP type and code, when the packet shows them.
        ports: Option<(u16, u16)>,
    },
    /// The SA has reached a soft volume limit: rekey it.
    SoftLimit(ChildSaId),
    /// The SA has reached a hard volume limit and carries no more in the direction concerned.
    HardLimit(ChildSaId),
    /// The first authentic packet of the SA has arrived.
    FirstInbound(ChildSaId),
    /// The SA has no sequence number left.
    SequenceExhausted(ChildSaId),
    /// An inner packet was sent on an SA that [`watch_traffic`](crate::tables::Tables::watch_traffic) named; once
    /// for each call.
    Traffic(ChildSaId),
    /// A worker without an SA of its own has sent on one that
    /// [`watch_workers`](crate::tables::Tables::watch_workers) named, once for each call (RFC 9611 6).
    OwnSa {
        /// The SA.
        child: ChildSaId,
        /// The worker.
        worker: u32,
    },
    /// An authentic packet with the newest sequence number came from an address, or in UDP from a port, that is on
    /// no path of the SA's set. At most one a second for each SA.
    NewSource {
        /// The SA.
        child: ChildSaId,
        /// Where it came from and to; the remote port is 0 for plain ESP.
        path: Path,
    },
    /// The peer has answered an ESP echo.
    Echo {
        /// The SA.
        child: ChildSaId,
        /// Where the answer came from and to; the remote port is 0 for plain ESP.
        path: Path,
        /// The answer.
        echo: Echo,
        /// When it came.
        at: Instant,
    },
    /// An IKE message that the system gave to a worker because steering is not in force. Without its marker.
    Ike {
        /// The address that it was sent to.
        local: SocketAddr,
        /// The sender.
        remote: SocketAddr,
        /// The message.
        data: Vec<u8>,
    },
    /// A worker has ended without being told to; its share of the traffic is no longer carried.
    WorkerFailed(usize),
}

/// The workers' end of the channel.
pub(crate) struct Upcalls {
    sender: Sender<Upcall>,
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Policy number in the upper half, second of its latest acquire in the lower.
    acquires: Box<[AtomicU64]>,
    lost: AtomicU64,
}

impl Upcalls {
    pub(crate) fn new() -> (Self, Receiver<Upcall>) {
        let (sender, receiver) = bounded(CAPACITY);
        let acquires = (0..ACQUIRES).map(|_| AtomicU64::new(0)).collect();
        (Self { sender, waker: OnceLock::new(), acquires, lost: AtomicU64::new(0) }, receiver)
    }

    /// Sets what wakes the receiver, once.
    pub(crate) fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        if self.waker.set(waker).is_err() {
            tracing::warn!("the upcall waker is set already; the first one stays");
        }
        // Something may have been queued before there was a way to say so.
        self.wake();
    }

    /// Queues an upcall. When the queue is full it is lost and counted: waiting would stop the packets.
    pub(crate) fn send(&self, upcall: Upcall) {
        match self.sender.try_send(upcall) {
            Ok(()) => self.wake(),
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
            // The facade is being dropped.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Whether an acquire for `policy` may be sent in this second; notes that it is.
    pub(crate) fn may_acquire(&self, policy: PolicyId, now_ms: u64) -> bool {
        // Seconds count from 1, so that an untouched place never looks like policy 0 just now.
        let value = u64::from(policy.0) << 32 | ((now_ms / 1000 + 1) & u64::from(u32::MAX));
        let place = &self.acquires[policy.0 as usize % ACQUIRES];
        place.swap(value, Ordering::Relaxed) != value
    }

    /// Upcalls lost to a full queue.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn acquires_are_limited_by_policy_and_second() {
        let (upcalls, _receiver) = Upcalls::new();
        assert!(upcalls.may_acquire(PolicyId(0), 0));
        assert!(!upcalls.may_acquire(PolicyId(0), 999));
        assert!(upcalls.may_acquire(PolicyId(1), 999));
        assert!(upcalls.may_acquire(PolicyId(0), 1000));
    }

    #[test]
    fn a_full_queue_loses_and_counts_and_a_late_waker_is_called() {
        let (upcalls, receiver) = Upcalls::new();
        for n in 0..CAPACITY as u32 + 3 {
            upcalls.send(Upcall::SoftLimit(ChildSaId(n)));
        }
        assert_eq!((receiver.len(), upcalls.lost()), (CAPACITY, 3));
        let calls = Arc::new(AtomicU64::new(0));
        let seen = calls.clone();
        upcalls.set_waker(Box::new(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}
