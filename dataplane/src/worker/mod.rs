//! A worker: one thread, one core, one TUN queue, its own sockets, buffers, replay windows and counters.
//!
//! It shares nothing that it writes per packet with other workers, except the counters and sequence numbers of
//! SAs that several of them send on. One pass takes at most one batch from each source that has something, under
//! one epoch pin and with one reading of the clock; so no source starves another.

mod early;
pub(crate) mod echo;
mod handover;
mod inbound;
mod limit;
mod mtu;
mod outbound;
mod parked;
mod patience;
mod resequence;
mod store;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use mobikex_common::drop::DropReason;
use mobikex_common::spi::Spi;

use crate::engine::Shared;
use crate::io::{RawEspSocket, RecvBatch, TunQueue, UdpSocket};
use crate::published::{self, Guard};
use crate::sad::SaEvent;
use crate::upcall::Upcall;

use early::Early;
pub(crate) use handover::Ring;
use inbound::Inbound;
use outbound::Outbound;
use patience::{Patience, Wait};

const TUN: Token = Token(0);
const UDP4: Token = Token(1);
const UDP6: Token = Token(2);
const RAW4: Token = Token(3);
const RAW6: Token = Token(4);
/// The handover ring has something, or the worker shall stop.
pub(crate) const WAKE: Token = Token(5);
const SOURCES: usize = 6;

/// Passes without asking the system for other ready sources while some are known to be.
const PASSES_BETWEEN_POLLS: u32 = 4;

/// A worker's sockets.
pub(crate) struct Sockets {
    pub(crate) udp4: Option<UdpSocket>,
    pub(crate) udp6: Option<UdpSocket>,
    pub(crate) raw4: Option<RawEspSocket>,
    pub(crate) raw6: Option<RawEspSocket>,
}

/// All that a worker owns.
pub(crate) struct Worker {
    index: usize,
    shared: Arc<Shared>,
    poll: Poll,
    tun: TunQueue,
    sockets: Sockets,
    received: RecvBatch,
    inbound: Inbound,
    early: Early,
    outbound: Outbound,
    patience: Patience,
}

impl Worker {
    /// `segments`: the system cuts messages into datagrams. `busy_poll`: how long to look for more work before waiting.
    pub(crate) fn new(
        index: usize,
        shared: Arc<Shared>,
        poll: Poll,
        tun: TunQueue,
        sockets: Sockets,
        segments: bool,
        busy_poll: Duration,
    ) -> io::Result<Self> {
        let watch = |fd: Option<RawFd>, token| match fd {
            Some(fd) => poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE),
            None => Ok(()),
        };
        watch(tun.reads().then(|| tun.as_raw_fd()), TUN)?;
        watch(sockets.udp4.as_ref().map(AsRawFd::as_raw_fd), UDP4)?;
        watch(sockets.udp6.as_ref().map(AsRawFd::as_raw_fd), UDP6)?;
        watch(sockets.raw4.as_ref().map(AsRawFd::as_raw_fd), RAW4)?;
        watch(sockets.raw6.as_ref().map(AsRawFd::as_raw_fd), RAW6)?;
        let workers = shared.rings.len();
        Ok(Self {
            index,
            shared,
            poll,
            inbound: Inbound::new(workers, tun.offload())?,
            early: Early::default(),
            tun,
            sockets,
            received: RecvBatch::new(),
            outbound: Outbound::new(segments)?,
            patience: Patience::new(busy_poll),
        })
    }

    /// One batch from each source in `ready`; clears those that are exhausted. Returns how long the worker may
    /// sleep before something that it holds is due.
    fn pass(&mut self, ready: &mut [bool; SOURCES]) -> Option<Duration> {
        let now = Now { guard: &published::pin(), ms: self.shared.now_ms() };
        // Before anything newer goes the same way.
        self.release_parked(&now);
        self.release_early(&now);
        for (source, ready) in ready.iter_mut().enumerate().filter(|(_, ready)| **ready) {
            *ready = match Token(source) {
                TUN => self.outbound(&now),
                WAKE => self.handed_over(&now),
                socket => self.inbound(socket, &now),
            };
        }
        self.expire(&now);
        let due = [self.inbound.due(), self.early.due(now.ms), self.outbound.due(now.ms)];
        let due = due.into_iter().flatten().min();
        due.map(|due| Duration::from_millis(due.saturating_sub(now.ms)))
    }

    fn drop_packet(&self, reason: DropReason) {
        self.shared.drops[self.index].add(reason, 1);
    }
}

/// What a pass is bound to: an epoch and a moment.
struct Now<'a> {
    guard: &'a Guard,
    ms: u64,
}

/// Works until told to stop.
pub(crate) fn run(mut worker: Worker) {
    let mut events = Events::with_capacity(2 * SOURCES);
    // Whatever came before the sockets were registered is found by looking once.
    let mut ready = [true; SOURCES];
    let (mut passes, mut due) = (0, None);
    while !worker.shared.stop.load(Ordering::Acquire) {
        let busy = ready.contains(&true);
        if !busy || passes % PASSES_BETWEEN_POLLS == 0 {
            let wait = if busy { Wait::Look } else { worker.patience.wait(Instant::now, due) };
            if !busy {
                worker.shared.waits[worker.index].add(wait == Wait::Look);
            }
            let timeout = match wait {
                Wait::Look => Some(Duration::ZERO),
                Wait::Block(timeout) => timeout,
            };
            match worker.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(worker = worker.index, "cannot wait for packets: {error}");
                    return;
                }
            }
            for event in &events {
                ready[event.token().0] = true;
            }
            match (busy, events.is_empty(), wait) {
                (false, true, Wait::Look) => continue,
                (false, false, _) => worker.patience.found(Instant::now),
                _ => {}
            }
        }
        worker.patience.passes();
        passes = passes.wrapping_add(1);
        due = worker.pass(&mut ready);
    }
}

/// The worker that owns the SA of an ESP packet.
pub(crate) fn owner(packet: &[u8], workers: usize) -> Option<usize> {
    Some(spi(packet)?.worker(workers))
}

fn spi(packet: &[u8]) -> Option<Spi> {
    packet.first_chunk().map(|spi| Spi(u32::from_be_bytes(*spi)))
}

fn report(shared: &Shared, id: mobikex_common::sa::ChildSaId, events: impl Iterator<Item = SaEvent>) {
    for event in events {
        shared.upcalls.send(match event {
            SaEvent::SoftLimit => Upcall::SoftLimit(id),
            SaEvent::HardLimit => Upcall::HardLimit(id),
            SaEvent::FirstInbound => Upcall::FirstInbound(id),
            SaEvent::SequenceExhausted => Upcall::SequenceExhausted(id),
        });
    }
}
