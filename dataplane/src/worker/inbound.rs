//! Receive, find the SA by its SPI, open, merge, write into the TUN device: the functions in that order.

use std::io;

use mio::Token;
use mobikex_common::addr::Path;
use mobikex_common::drop::DropReason;
use mobikex_common::wire::esp::{self as wire, Datagram};
use mobikex_common::wire::virtio::{Gso, Header};

use super::echo::Echoes;
use super::resequence::{Arrival, Resequencer};
use super::{Now, RAW4, RAW6, Sockets, UDP4, UDP6, Worker, report, spi};
use crate::engine::Shared;
use crate::esp::{self, Content, IvSource, OuterInfo, ReplayTable};
use crate::io::{BATCH, Meta, TunOffload, TunQueue};
use crate::offload::Coalescer;
use crate::paths::PathSet;
use crate::upcall::Upcall;

/// The parts of a worker that [`Destinations`] borrows; the others stay free to be changed.
macro_rules! destinations {
    ($worker:expr) => {
        Destinations {
            shared: &$worker.shared,
            worker: $worker.index,
            tun: &$worker.tun,
            sockets: &$worker.sockets,
        }
    };
}

impl Worker {
    /// One batch from a socket; whether there may be more.
    pub(super) fn inbound(&mut self, source: Token, now: &Now<'_>) -> bool {
        let received = match (source, &self.sockets) {
            (UDP4, sockets) => sockets.udp4.as_ref().map(|s| s.recv_batch(&mut self.received)),
            (UDP6, sockets) => sockets.udp6.as_ref().map(|s| s.recv_batch(&mut self.received)),
            (RAW4, sockets) => sockets.raw4.as_ref().map(|s| s.recv_batch(&mut self.received)),
            (RAW6, sockets) => sockets.raw6.as_ref().map(|s| s.recv_batch(&mut self.received)),
            _ => None,
        };
        match received {
            Some(Ok(_)) => {}
            Some(Err(error)) => return again(&error),
            None => return false,
        }
        let encap = matches!(source, UDP4 | UDP6);
        for message in 0..self.received.messages() {
            for index in 0..self.received.packets(message) {
                self.take(message, index, encap, now);
            }
        }
        self.inbound.flush(&destinations!(self));
        true
    }

    /// Passes a received packet on to whom it is for.
    fn take(&mut self, message: usize, index: usize, encap: bool, now: &Now<'_>) {
        let (meta, buffer, start) = self.received.with_headroom(message, index);
        let packet = &buffer[start..];
        if encap {
            match wire::classify(packet) {
                Datagram::Esp => {}
                Datagram::Keepalive => return,
                Datagram::Ike(message) => {
                    let Meta { local, remote, .. } = meta;
                    self.shared.upcalls.send(Upcall::Ike { local, remote, data: message.to_vec() });
                    return;
                }
                Datagram::Short => {
                    self.drop_packet(DropReason::InTooShort);
                    return;
                }
            }
        }
        let result = match super::owner(packet, self.shared.rings.len()) {
            None => Err(DropReason::InTooShort),
            Some(owner) if owner == self.index => {
                let to = destinations!(self);
                self.inbound.deliver(&to, buffer, start, &outer(&meta, encap), now)
            }
            Some(owner) if self.shared.rings[owner].give(meta, encap, packet) => Ok(()),
            Some(_) => Err(DropReason::InHandoverFull),
        };
        if let Err(reason) = result {
            self.drop_packet(reason);
        }
    }

    /// Gives out what was held long enough for the packets before it.
    pub(super) fn expire(&mut self, now: &Now<'_>) {
        let to = destinations!(self);
        let Inbound { order, merge, .. } = &mut self.inbound;
        order.expire(now.ms, |packet| to.give(merge, packet));
        self.inbound.flush(&to);
    }

    /// One batch of packets that others received for us; whether there may be more.
    pub(super) fn handed_over(&mut self, now: &Now<'_>) -> bool {
        self.shared.rings[self.index].rearm();
        let mut more = true;
        for _ in 0..BATCH {
            let Some(mut parcel) = self.shared.rings[self.index].take() else {
                more = false;
                break;
            };
            let (meta, encap) = (parcel.meta, parcel.encap);
            let (buffer, start) = parcel.with_headroom();
            let to = destinations!(self);
            let result = self.inbound.deliver(&to, buffer, start, &outer(&meta, encap), now);
            self.shared.rings[self.index].give_back(parcel);
            if let Err(reason) = result {
                self.drop_packet(reason);
            }
        }
        self.inbound.flush(&destinations!(self));
        more
    }
}

/// What a worker needs to receive.
pub(super) struct Inbound {
    workers: usize,
    replay: ReplayTable,
    order: Resequencer,
    /// Where the device takes super-packets.
    merge: Option<Coalescer>,
    echoes: Echoes,
}

/// Where what was received goes.
struct Destinations<'a> {
    shared: &'a Shared,
    worker: usize,
    tun: &'a TunQueue,
    sockets: &'a Sockets,
}

impl Destinations<'_> {
    /// Gives an inner packet to what merges, or writes it.
    fn give(&self, merge: &mut Option<Coalescer>, packet: &[u8]) {
        match merge {
            Some(merge) => merge.offer(packet, |header, packet| self.write(header, packet)),
            None => self.write(&Header::default(), packet),
        }
    }

    /// Writes a packet, or a super-packet, into the TUN device.
    fn write(&self, header: &Header, packet: &[u8]) {
        if self.tun.send(header, packet).is_err() {
            let payload = packet.len() - usize::from(header.hdr_len);
            let packets = if header.gso == Gso::None { 1 } else { payload.div_ceil(header.gso_size.into()) };
            self.shared.drops[self.worker].add(DropReason::InTunWrite, packets);
        }
    }
}

impl Inbound {
    /// For one of `workers` workers, which writes into a device that takes this much at once.
    pub(super) fn new(workers: usize, offload: TunOffload) -> io::Result<Self> {
        let ivs = IvSource::from_system().map_err(io::Error::other)?;
        Ok(Self {
            workers,
            replay: ReplayTable::new(workers),
            order: Resequencer::default(),
            merge: (offload > TunOffload::Packets).then(|| Coalescer::new(offload == TunOffload::TcpUdp)),
            echoes: Echoes::new(ivs),
        })
    }

    /// When a held packet is due at the earliest.
    pub(super) fn due(&self) -> Option<u64> {
        self.order.due()
    }

    /// Writes what waits for packets that it could be merged with.
    fn flush(&mut self, to: &Destinations<'_>) {
        if let Some(merge) = &mut self.merge {
            merge.flush(|header, packet| to.write(header, packet));
        }
    }

    /// Opens the ESP packet from `start` to the end of `buffer` and writes what was inside into the TUN device, in
    /// order if the SA's set asks for that.
    fn deliver(
        &mut self,
        to: &Destinations<'_>,
        buffer: &mut [u8],
        start: usize,
        outer: &OuterInfo,
        now: &Now<'_>,
    ) -> Result<(), DropReason> {
        let shared = to.shared;
        let spi = spi(&buffer[start..]).ok_or(DropReason::InTooShort)?;
        let sa = shared.tables.lookup_inbound(spi, now.guard).ok_or(DropReason::InNoSa)?;
        let window = self.replay.window(sa).ok_or(DropReason::InNoSa)?;
        let highest = window.highest();
        let range = start..buffer.len();
        let opened = esp::open(sa, window, buffer, range, outer, now.guard);
        // Also after an error: the packet that reaches a hard limit is dropped and reported.
        report(shared, sa.id(), sa.take_events());
        let opened = opened?;
        if opened.newest && !opened.on_path && sa.may_tell_source(now.ms) {
            shared.upcalls.send(Upcall::NewSource { child: sa.id(), path: outer.path });
        }
        let packet = match &opened.content {
            Content::Packet(range) => &buffer[range.clone()],
            // The number has come all the same, so nothing needs to wait for it.
            Content::Aggfrag(_) | Content::Nothing(_) => &[],
        };
        let set = sa.addresses().load(now.guard).map(PathSet::set);
        let arrival = Arrival {
            stream: (spi.slot() / self.workers) as u32,
            sa: sa.id(),
            sequence: opened.sequence,
            highest,
            generation: set.map_or(0, |set| set.generation),
            wait_ms: set.map_or(0, |set| set.resequence_ms),
            path: outer.path,
            packet,
        };
        let Self { order, merge, .. } = self;
        order.receive(&arrival, now.ms, |packet| to.give(merge, packet));
        match opened.content {
            Content::Packet(_) => {
                sa.counters().stamp(now.ms);
                Ok(())
            }
            Content::Aggfrag(range) => {
                let upcall = self.echoes.received(sa, &buffer[range], outer, to.sockets, now)?;
                upcall.into_iter().for_each(|upcall| shared.upcalls.send(upcall));
                report(shared, sa.id(), sa.outbound().take_events());
                Ok(())
            }
            Content::Nothing(reason) => Err(reason),
        }
    }
}

fn outer(meta: &Meta, encap: bool) -> OuterInfo {
    OuterInfo { path: Path { local: meta.local, remote: meta.remote }, tos: meta.tos, encap }
}

/// Whether a failed receive is worth repeating at once. An error other than "nothing there" is one that the
/// network left on the socket; reading it has cleared it.
pub(super) fn again(error: &io::Error) -> bool {
    error.kind() != io::ErrorKind::WouldBlock
}
