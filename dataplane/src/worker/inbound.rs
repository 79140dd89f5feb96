//! Receive, find the SA by its SPI, open, merge, write into the TUN device: the functions in that order.

use std::io;

use mio::Token;
use mobikex_common::addr::Path;
use mobikex_common::drop::DropReason;
use mobikex_common::spi::Spi;
use mobikex_common::wire::esp::{self as wire, Datagram};
use mobikex_common::wire::virtio::{Gso, Header};

use super::echo::Echoes;
use super::resequence::{Arrival, Resequencer};
use super::{Now, RAW4, RAW6, Sockets, UDP4, UDP6, Worker, report, spi};
use crate::engine::Shared;
use crate::esp::{Content, IvSource, Opener, OuterInfo, ReplayTable};
use crate::io::{BATCH, Meta, Place, RecvBatch, TunOffload, TunQueue};
use crate::offload::Coalescer;
use crate::sad::InboundSa;
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
        let mut at = Place::default();
        while self.received.get(at).is_some() {
            at = self.take(at, encap, now);
        }
        self.inbound.flush(&destinations!(self));
        true
    }

    /// Passes a received packet on to whom it is for, and with it those behind it that belong to the same run. Where the
    /// next one is.
    fn take(&mut self, at: Place, encap: bool, now: &Now<'_>) -> Place {
        let (meta, buffer, start) = self.received.with_headroom(at);
        let packet = &buffer[start..];
        let next = |received: &RecvBatch| received.after(at);
        if encap {
            match wire::classify(packet) {
                Datagram::Esp => {}
                Datagram::Keepalive => return next(&self.received),
                Datagram::Ike(message) => {
                    let Meta { local, remote, .. } = meta;
                    self.shared.upcalls.send(Upcall::Ike { local, remote, data: message.to_vec() });
                    return next(&self.received);
                }
                Datagram::Short => {
                    self.drop_packet(DropReason::InTooShort);
                    return next(&self.received);
                }
            }
        }
        let result = match (spi(packet), self.shared.rings.len()) {
            (None, _) => Err(DropReason::InTooShort),
            (Some(spi), workers) if spi.worker(workers) == self.index => {
                return self.deliver(at, &meta, spi, encap, now);
            }
            (Some(spi), workers) => {
                let given = self.shared.rings[spi.worker(workers)].give(meta, encap, packet);
                given.then_some(()).ok_or(DropReason::InHandoverFull)
            }
        };
        if let Err(reason) = result {
            self.drop_packet(reason);
        }
        next(&self.received)
    }

    /// Opens the packets of one SA that came one after the other from the same place. Where the next one is.
    fn deliver(&mut self, mut at: Place, meta: &Meta, spi: Spi, encap: bool, now: &Now<'_>) -> Place {
        let to = destinations!(self);
        let outer = outer(meta, encap);
        let mut run = match self.inbound.begin(&to, spi, &outer, now) {
            Ok(run) => run,
            Err(reason) => {
                let packet = self.received.get(at).map_or(&[][..], |(_, packet)| packet);
                if reason != DropReason::InNoSa || !self.early.hold(*meta, encap, packet, now.ms) {
                    to.drop_packet(reason);
                }
                return self.received.after(at);
            }
        };
        loop {
            let (_, buffer, start) = self.received.with_headroom(at);
            if let Err(reason) = run.deliver(&to, buffer, start, now) {
                to.drop_packet(reason);
            }
            at = self.received.after(at);
            let next = self.received.get(at);
            if next.is_none_or(|(there, packet)| super::spi(packet) != Some(spi) || there != meta) {
                break;
            }
        }
        run.end(&to, now);
        at
    }

    /// Opens the packets that came before their SA, which is here now.
    pub(super) fn release_early(&mut self, now: &Now<'_>) {
        if !self.early.is_due(now.ms) {
            return;
        }
        let to = destinations!(self);
        let there = |spi| to.shared.tables.lookup_inbound(spi, now.guard).is_some();
        let Self { early, inbound, .. } = self;
        let lost = early.release(now.ms, there, |mut waiting| {
            let outer = outer(&waiting.meta, waiting.encap);
            let spi = waiting.spi;
            let (buffer, start) = waiting.with_headroom();
            if let Err(reason) = inbound.one(&to, (spi, &outer), buffer, start, now) {
                to.drop_packet(reason);
            }
        });
        self.shared.drops[self.index].add(DropReason::InNoSa, lost);
        self.inbound.flush(&destinations!(self));
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
            let outer = outer(&parcel.meta, parcel.encap);
            let (meta, encap) = (parcel.meta, parcel.encap);
            let (buffer, start) = parcel.with_headroom();
            let to = destinations!(self);
            let spi = spi(&buffer[start..]).ok_or(DropReason::InTooShort);
            let result = spi.and_then(|spi| self.inbound.one(&to, (spi, &outer), buffer, start, now));
            if let Err(reason) = result
                && (reason != DropReason::InNoSa || !self.early.hold(meta, encap, &buffer[start..], now.ms))
            {
                to.drop_packet(reason);
            }
            self.shared.rings[self.index].give_back(parcel);
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
    fn drop_packet(&self, reason: DropReason) {
        self.shared.drops[self.worker].add(reason, 1);
    }

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

    /// Opens a packet that comes alone.
    fn one(
        &mut self,
        to: &Destinations<'_>,
        (spi, outer): (Spi, &OuterInfo),
        buffer: &mut [u8],
        start: usize,
        now: &Now<'_>,
    ) -> Result<(), DropReason> {
        let mut run = self.begin(to, spi, outer, now)?;
        let result = run.deliver(to, buffer, start, now);
        run.end(to, now);
        result
    }

    /// Begins a run of packets with this SPI and this outer header.
    fn begin<'a>(
        &'a mut self,
        to: &Destinations<'a>,
        spi: Spi,
        outer: &'a OuterInfo,
        now: &Now<'a>,
    ) -> Result<Run<'a>, DropReason> {
        let sa = to.shared.tables.lookup_inbound(spi, now.guard).ok_or(DropReason::InNoSa)?;
        let Self { workers, replay, order, merge, echoes } = self;
        let window = replay.window(sa).ok_or(DropReason::InNoSa)?;
        let opener = Opener::new(sa, window, outer, now.guard)?;
        let stream = (spi.slot() / *workers) as u32;
        Ok(Run { sa, outer, opener, stream, order, merge, echoes, traffic: false })
    }
}

/// Packets of one SA with the same outer header, one after the other.
struct Run<'a> {
    sa: &'a InboundSa,
    outer: &'a OuterInfo,
    opener: Opener<'a>,
    /// By which the resequencer knows the SA's place.
    stream: u32,
    order: &'a mut Resequencer,
    merge: &'a mut Option<Coalescer>,
    echoes: &'a mut Echoes,
    /// There were inner packets among them.
    traffic: bool,
}

impl Run<'_> {
    /// Opens the ESP packet from `start` to the end of `buffer` and writes what was inside into the TUN device, in
    /// order if the SA's set asks for that.
    fn deliver(
        &mut self,
        to: &Destinations<'_>,
        buffer: &mut [u8],
        start: usize,
        now: &Now<'_>,
    ) -> Result<(), DropReason> {
        let Self { sa, outer, opener, .. } = self;
        let shared = to.shared;
        let highest = opener.highest();
        let opened = opener.open(buffer, start..buffer.len())?;
        if opened.newest && !opened.on_path && sa.may_tell_source(now.ms) {
            shared.upcalls.send(Upcall::NewSource { child: sa.id(), path: outer.path });
        }
        let packet = match &opened.content {
            Content::Packet(range) => &buffer[range.clone()],
            // The number has come all the same, so nothing needs to wait for it.
            Content::Aggfrag(_) | Content::Nothing(_) => &[],
        };
        let set = opener.paths().set();
        let arrival = Arrival {
            stream: self.stream,
            sa: sa.id(),
            sequence: opened.sequence,
            highest,
            generation: set.generation,
            wait_ms: set.resequence_ms,
            path: outer.path,
            packet,
        };
        self.order.receive(&arrival, now.ms, |packet| to.give(self.merge, packet));
        match opened.content {
            Content::Packet(_) => {
                self.traffic = true;
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

    /// Counts them, and reports what has been reached, a hard limit also by packets that were dropped.
    fn end(self, to: &Destinations<'_>, now: &Now<'_>) {
        let Self { sa, opener, traffic, .. } = self;
        drop(opener);
        report(to.shared, sa.id(), sa.take_events());
        if traffic {
            sa.counters().stamp(now.ms);
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
