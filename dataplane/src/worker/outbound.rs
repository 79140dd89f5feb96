//! Read from the TUN device, classify, choose a path, check the size, cut, seal, send: the functions in that order.
//!
//! What is read may be a super-packet. It is classified once, and each packet that it stands for is written straight
//! to where it is sealed.

use std::io;
use std::net::IpAddr;
use std::ops::Range;

use mobikex_common::addr::{Path, Scheduler, WeightedPath};
use mobikex_common::drop::DropReason;
use mobikex_common::sa::Mode;
use mobikex_common::wire::icmp;
use mobikex_common::wire::ip::Packet;
use mobikex_common::wire::virtio::Header;

use super::limit::Limit;
use super::mtu::{PathMtus, error_limit, floor};
use super::parked::Parked;
use super::{Now, Sockets, Worker, report};
use crate::counters::Tally;
use crate::engine::Shared;
use crate::esp::{self, Frame, IvSource};
use crate::io::{
    BATCH, LANES, MESSAGES, PASS_READ, PASS_SEND, SendBatch, SendSlot, TUN_READ, TunQueue, path_mtu,
};
use crate::offload::{Segments, complete_checksum};
use crate::paths::{self, Chosen, PathSet, Traffic};
use crate::sad::{OutboundSa, SequenceNumber};
use crate::tables::Lookup;
use crate::upcall::Upcall;

/// IP header, and UDP header where there is one, in front of ESP.
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;
/// The least that a path of IPv6 takes.
const IPV6_MTU: usize = 1280;

/// A lane of the send batch is a socket and a setting of DF.
const LANE_RAW: usize = 1;
const LANE_IPV6: usize = 2;
const LANE_DF: usize = 4;

/// Packets that are numbered and sealed together at most.
const BLOCK: usize = 64;

/// What a worker needs to send.
pub(super) struct Outbound {
    reads: Reads,
    out: Out,
}

/// Packets read from the TUN device, kept until they are sent: an ICMP error quotes them.
struct Reads {
    data: Box<[u8]>,
    used: usize,
    list: Vec<(Header, Range<usize>)>,
}

/// The way from an inner packet to the system.
struct Out {
    batch: SendBatch,
    ivs: IvSource,
    mtus: PathMtus,
    errors: Limit,
    /// What waits for proof that the peer is at an address.
    parked: Parked,
    /// The read whose sender was told last that it does not fit.
    told: Option<usize>,
    /// The DF setting that each socket has (lanes without [`LANE_DF`]).
    df: [bool; LANE_DF],
}

/// What everything on the way out needs and nothing changes.
struct Around<'a> {
    shared: &'a Shared,
    worker: usize,
    sockets: &'a Sockets,
    tun: &'a TunQueue,
    now: &'a Now<'a>,
}

/// Packets that were dropped, and why.
type Dropped = (DropReason, usize);

impl Outbound {
    /// `segments`: the system cuts messages into datagrams.
    pub(super) fn new(segments: bool) -> io::Result<Self> {
        let lanes: [bool; LANES] = std::array::from_fn(|lane| segments && lane & LANE_RAW == 0);
        Ok(Self {
            reads: Reads {
                data: vec![0; PASS_READ].into_boxed_slice(),
                used: 0,
                list: Vec::with_capacity(BATCH),
            },
            out: Out {
                batch: SendBatch::new(lanes),
                ivs: IvSource::from_system().map_err(io::Error::other)?,
                mtus: PathMtus::new(),
                errors: error_limit(),
                parked: Parked::default(),
                told: None,
                df: [false; LANE_DF],
            },
        })
    }

    /// When parked packets are to be looked at.
    pub(super) fn due(&self, now_ms: u64) -> Option<u64> {
        self.out.parked.due(now_ms)
    }
}

impl Worker {
    /// Sends the parked packets for addresses that have been proven meanwhile.
    pub(super) fn release_parked(&mut self, now: &Now<'_>) {
        let Outbound { reads, out } = &mut self.outbound;
        if out.parked.is_empty() {
            return;
        }
        let around =
            Around { shared: &self.shared, worker: self.index, sockets: &self.sockets, tun: &self.tun, now };
        let mut parked = std::mem::take(&mut out.parked);
        let lost = parked.release(now.ms, now.guard, |lane, slot, packet| {
            if !out.batch.fits(1, 1, packet.len()) {
                out.send(reads, &around);
            }
            if let Some(buffer) = out.batch.reserve(packet.len()) {
                buffer.copy_from_slice(packet);
                out.batch.commit(lane, slot);
            }
        });
        out.parked = parked;
        out.send(reads, &around);
        around.drop((DropReason::OutNotRoutable, lost));
    }

    /// One batch from the TUN device; whether there may be more.
    pub(super) fn outbound(&mut self, now: &Now<'_>) -> bool {
        if !self.tun.reads() {
            return false;
        }
        let Outbound { reads, out } = &mut self.outbound;
        let around =
            Around { shared: &self.shared, worker: self.index, sockets: &self.sockets, tun: &self.tun, now };
        let mut tally = Tally::default();
        let mut more = true;
        for _ in 0..BATCH {
            if reads.used + TUN_READ > PASS_READ {
                break;
            }
            match reads.receive(&self.tun) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    around.drop((DropReason::OutBadOffload, 1));
                    continue;
                }
                // Nothing there, or the device is gone, which the next wake-up tells again.
                Err(_) => {
                    more = false;
                    break;
                }
            }
            let index = reads.list.len() - 1;
            if let Err(dropped) = out.prepare(reads, index, &around, &mut tally) {
                around.drop(dropped);
            }
            if out.batch.octets() >= PASS_SEND {
                out.send(reads, &around);
            }
        }
        out.send(reads, &around);
        (reads.used, out.told) = (0, None);
        reads.list.clear();
        more
    }
}

impl Around<'_> {
    fn drop(&self, (reason, packets): Dropped) {
        self.shared.drops[self.worker].add(reason, packets);
    }
}

impl Reads {
    /// Reads one packet, checksum completed.
    fn receive(&mut self, tun: &TunQueue) -> io::Result<()> {
        let free = &mut self.data[self.used..];
        let (header, range) = tun.recv(free)?;
        complete_checksum(&header, &mut free[range.clone()])
            .map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason.text()))?;
        self.list.push((header, self.used + range.start..self.used + range.end));
        self.used += range.end;
        Ok(())
    }

    fn get(&self, index: usize) -> (&Header, Result<Packet<'_>, Dropped>) {
        let (header, range) = &self.list[index];
        (header, Packet::parse(&self.data[range.clone()]).map_err(|_| (DropReason::OutNotIp, 1)))
    }
}

/// A read that has an SA, and all that is the same for its packets.
struct Unit<'a, 's> {
    index: usize,
    packet: Packet<'a>,
    segments: Segments<'a>,
    sa: &'s OutboundSa,
    set: &'s PathSet,
    frame: Frame,
    flow_hash: u64,
    /// The place in the set of the flow's path, if it has one.
    assigned: Option<usize>,
    redundant: bool,
    /// The outer packets must not be fragmented.
    whole: bool,
    /// Octets that TFC padding makes of shorter packets (RFC 4303 2.7).
    padded: usize,
    /// Packets of which so many are sealed together.
    block: usize,
}

/// One packet of a unit.
struct One {
    index: usize,
    /// Its copies are counted for it alone.
    apart: bool,
    /// For proof that the peer is where it would go.
    waits: bool,
}

impl<'s> Unit<'_, 's> {
    /// Octets of the plaintext of a packet, padding for TFC included.
    fn text(&self, index: usize) -> usize {
        (self.segments.len(index) - self.frame.skip).max(self.padded)
    }

    /// Octets of the ESP packets around packets `range`.
    fn sealed(&self, range: Range<usize>) -> usize {
        let one = |index| self.sa.sealed_len(self.text(index));
        // All but the last have the length of the first.
        match range.end.checked_sub(1).filter(|last| *last >= range.start) {
            Some(last) => one(range.start) * (last - range.start) + one(last),
            None => 0,
        }
    }

    /// The packets from number `first` on, of `len` octets sealed, as the choice of a path sees them.
    fn traffic(&self, first: usize, len: usize) -> Traffic {
        Traffic {
            flow_hash: self.flow_hash,
            assigned: self.assigned,
            turn: self.sa.sequence() + first as u64,
            len,
            ends: (self.sa.mode() == Mode::Transport).then_some((self.packet.src, self.packet.dst)),
        }
    }

    /// The path of a packet, and whether it may go there now rather than wait for proof that the peer is there.
    fn choose(&self, traffic: &Traffic) -> Result<(Chosen<'s>, bool), DropReason> {
        let waiting = |reason| self.set.unproven(traffic).next().map(|chosen| (chosen, false)).ok_or(reason);
        self.set.choose(traffic).map(|chosen| (chosen, true)).or_else(waiting)
    }

    /// The paths beside `first` that carry copies.
    fn copies(&self, first: Chosen<'s>, traffic: &Traffic) -> impl Iterator<Item = Chosen<'s>> {
        self.set.others(first, traffic).take(if self.redundant { BATCH - 1 } else { 0 })
    }

    /// The longest packet of this kind whose outer packet fits the path, if that is known to be narrow.
    fn fits(&self, path: &WeightedPath, mtus: &PathMtus, now: &Now<'_>) -> Option<usize> {
        let mtu = mtus.get(path.path.local, path.path.remote, now.ms)?;
        Some(inner_fit(self.sa, &self.packet, &self.frame, outer_len(&path.path, path.encap), mtu))
    }
}

impl Out {
    /// Classifies a read, chooses its path and seals its packets into the batch, which is sent when it is full.
    fn prepare<'s>(
        &mut self,
        reads: &Reads,
        index: usize,
        around: &Around<'s>,
        tally: &mut Tally<'s>,
    ) -> Result<(), Dropped> {
        let Around { shared, now, .. } = *around;
        let (header, packet) = reads.get(index);
        let packet = packet?;
        let segments = Segments::new(header, packet).map_err(|reason| (reason, 1))?;
        let count = segments.count();
        let all = |reason| (reason, count);
        let (sa, set) = match shared.tables.lookup_outbound(&packet, around.worker, now.guard) {
            Lookup::Sa(sa, set) => (sa, set),
            Lookup::NoSa(policy) => {
                if shared.upcalls.may_acquire(policy, now.ms) {
                    let Packet { src, dst, protocol, ports, .. } = packet;
                    shared.upcalls.send(Upcall::Acquire { policy, src, dst, protocol, ports });
                }
                return Err(all(DropReason::OutNoSa));
            }
            Lookup::NoPolicy => return Err(all(DropReason::OutNoPolicy)),
        };
        let frame = esp::frame(sa, &packet).map_err(all)?;
        // Packets up to the floor always pass, in fragments if need be.
        let whole = esp::must_stay_whole(sa, &packet) && segments.longest() > floor(packet.is_ipv4());
        let scheduler = set.set().scheduler;
        let redundant = scheduler == Scheduler::Redundant && sa.mode() == Mode::Tunnel;
        let flow_hash = paths::flow_hash(&packet);
        let (assigned, padded, block) = (None, 0, BLOCK);
        let mut unit = Unit {
            index,
            packet,
            segments,
            sa,
            set,
            frame,
            flow_hash,
            assigned,
            redundant,
            whole,
            padded,
            block,
        };
        if set.assigns_flows() && sa.mode() == Mode::Tunnel {
            unit.assigned = shared.flows.place(set, flow_hash, unit.sealed(0..count), now.ms);
        }

        // Packets that take turns, or have to share what a path may carry, are looked at one by one.
        let apart = set.is_limited() || count > 1 && scheduler == Scheduler::Packet;
        let len = unit.sealed(0..if apart { 1 } else { count });
        let traffic = unit.traffic(0, len);
        let (chosen, _) = unit.choose(&traffic).map_err(all)?;
        lane(around.sockets, chosen.path).ok_or(all(DropReason::OutNoPath))?;
        if whole {
            let fits = |chosen: Chosen<'s>| unit.fits(chosen.path, &self.mtus, now);
            let turns = set.sending().filter(|_| apart && scheduler == Scheduler::Packet);
            let ways = std::iter::once(chosen).chain(unit.copies(chosen, &traffic)).chain(turns);
            let least = ways.filter_map(fits).min();
            if let Some(fits) = least.filter(|fits| unit.segments.longest() > *fits) {
                self.too_big(&unit.packet, &unit.segments, fits, around);
                return Err(all(DropReason::OutTooBig));
            }
        }
        if sa.tfc_padding() > 0 {
            let turns = set.sending().filter(|_| apart);
            let ways = std::iter::once(chosen).chain(unit.copies(chosen, &traffic)).chain(turns);
            let padded = self.padded(sa, ways.map(|way| way.path), around);
            // Few octets may become many, which have to fit the batch.
            unit.block = (PASS_SEND / sa.sealed_len(padded)).clamp(1, BLOCK);
            unit.padded = padded;
        }
        let admitted = sa.admit(count, unit.segments.longest());
        report(shared, sa.id(), sa.take_events());
        let admitted = admitted.map_err(all)?;
        let copies = if redundant { set.sending_len().clamp(1, BATCH) } else { 1 };
        let (mut sealed, mut result) = (0, Ok(()));
        while sealed < admitted && result.is_ok() {
            let block = sealed..admitted.min(sealed + (MESSAGES / copies).min(unit.block));
            sealed = block.end;
            if !self.batch.fits(block.len(), copies, unit.sealed(block.clone())) {
                self.send(reads, around);
            }
            let way = if apart { None } else { Some(chosen) };
            result = self
                .seal(&unit, block, way, around, tally)
                .map_err(|(reason, n)| (reason, n + count - sealed));
        }
        report(shared, sa.id(), sa.take_events());
        sa.counters().stamp(now.ms);
        if sa.take_watch() {
            shared.upcalls.send(Upcall::Traffic(sa.id()));
        }
        if sa.take_worker(around.worker) {
            shared.upcalls.send(Upcall::OwnSa { child: sa.id(), worker: around.worker as u32 });
        }
        if admitted < count && result.is_ok() {
            return Err((DropReason::OutHardLimit, count - admitted));
        }
        result
    }

    /// The length that padding gives to the packets of an SA: what is wished for, as far as each of these paths takes it whole.
    fn padded<'p>(
        &mut self,
        sa: &OutboundSa,
        paths: impl Iterator<Item = &'p WeightedPath>,
        around: &Around<'_>,
    ) -> usize {
        let fits = paths.map(|way| {
            let Path { local, remote } = way.path;
            let known = self.mtus.get(local, remote, around.now.ms).or_else(|| {
                let mtu = path_mtu(local.ip(), remote, way.device, around.shared.mark).ok()?;
                self.mtus.learn(local, remote, mtu, around.now.ms);
                Some(mtu.into())
            });
            // Where nobody knows, any path of IPv6 takes so much (RFC 8200 5).
            sa.max_payload(known.unwrap_or(IPV6_MTU).saturating_sub(outer_len(&way.path, way.encap)))
        });
        fits.fold(sa.tfc_padding(), usize::min)
    }

    /// Seals packets `range` of a unit, for the path `way` or each for one of its own.
    fn seal<'s>(
        &mut self,
        unit: &Unit<'_, 's>,
        range: Range<usize>,
        way: Option<Chosen<'s>>,
        around: &Around<'_>,
        tally: &mut Tally<'s>,
    ) -> Result<(), Dropped> {
        let Unit { sa, segments, .. } = unit;
        let (first, count) = (range.start, range.len());
        let mut ways = [way; BLOCK];
        let mut waits = [false; BLOCK];
        let mut numbered = count;
        if way.is_none() {
            numbered = 0;
            for index in range.clone() {
                let len = unit.sealed(index..index + 1);
                match unit.choose(&unit.traffic(index - first, len)) {
                    Ok((chosen, _)) if lane(around.sockets, chosen.path).is_none() => {
                        around.drop((DropReason::OutNoPath, 1));
                    }
                    Ok((chosen, proven)) => {
                        // At once, for the next choice depends on it.
                        if proven {
                            chosen.counters.count_out(1, len);
                        }
                        waits[index - first] = !proven;
                        ways[index - first] = Some(chosen);
                        numbered += 1;
                    }
                    Err(reason) => around.drop((reason, 1)),
                }
            }
        }
        let mut reserved = sa.reserve(numbered as u32).map_err(|reason| (reason, numbered))?;
        let mut numbers: [Option<SequenceNumber>; BLOCK] = [const { None }; BLOCK];
        let mut sent = 0;
        for (number, _) in numbers.iter_mut().zip(&ways).take(count).filter(|(_, way)| way.is_some()) {
            *number = reserved.next();
            sent += usize::from(number.is_some());
        }
        let (mut done, mut octets, mut result) = (0, 0, Ok(()));
        // Path by path, so that what goes the same way lies together.
        for lead in 0..count {
            let Some(chosen) = ways[lead] else { continue };
            let same = |way: &Option<Chosen<'_>>| way.is_some_and(|way| way.index == chosen.index);
            for place in lead..count {
                if !same(&ways[place]) {
                    continue;
                }
                ways[place] = None;
                let Some(number) = numbers[place].take() else { continue };
                let one = One { index: first + place, apart: way.is_none(), waits: waits[place] };
                match self.seal_one(unit, one, number, chosen, around) {
                    Ok(()) => (done, octets) = (done + 1, octets + segments.len(first + place)),
                    Err(reason) => result = Err((reason, sent - done)),
                }
            }
        }
        if let Some(chosen) = way {
            let len = unit.sealed(first..first + sent);
            tally.add(sa, chosen.counters, (done, octets), (sent as u64, len));
            let traffic = unit.traffic(first, len);
            let there = |copy: &Chosen<'_>| lane(around.sockets, copy.path).is_some();
            for copy in unit.copies(chosen, &traffic).filter(there) {
                copy.counters.count_out(sent as u64, len);
            }
        } else {
            sa.count(done, octets);
        }
        if sent < numbered {
            return Err((DropReason::OutSequenceExhausted, numbered - done));
        }
        result
    }

    /// Writes a packet of a unit to where it is sealed, seals it and queues it for its paths, or parks it.
    fn seal_one<'s>(
        &mut self,
        unit: &Unit<'_, 's>,
        one: One,
        number: SequenceNumber,
        chosen: Chosen<'s>,
        around: &Around<'_>,
    ) -> Result<(), DropReason> {
        let Unit { sa, segments, frame, .. } = unit;
        let One { index, apart, waits } = one;
        let Self { batch, ivs, parked, .. } = self;
        let first = lane(around.sockets, chosen.path).ok_or(DropReason::OutNoPath)?;
        let text = unit.text(index);
        let len = sa.sealed_len(text);
        let out = batch.reserve(len).ok_or(DropReason::OutSend)?;
        segments.write(index, frame.skip, &mut out[sa.text_offset()..]);
        if unit.padded > 0 {
            // What an earlier packet has left in the buffer is nobody's to see.
            let begin = sa.text_offset();
            out[begin + segments.len(index) - frame.skip..begin + text].fill(0);
        }
        esp::seal_in_place(sa, number, frame, text, out, ivs)?;
        let df = if unit.whole { LANE_DF } else { 0 };
        let slot = |path: &WeightedPath| {
            let WeightedPath { path: Path { local, mut remote }, device, encap, .. } = *path;
            if !encap {
                remote.set_port(0);
            }
            SendSlot { local, remote, device, tos: frame.tos, tag: unit.index, len }
        };
        // Nothing is known of the MTU toward these yet, so they may be fragmented.
        let mut park = |waiting: Chosen<'_>| {
            let Some(lane) = lane(around.sockets, waiting.path) else { return false };
            let way = (lane, slot(waiting.path), waiting.path.encap);
            parked.park(sa.addresses(), way, out, around.now.ms)
        };
        if waits {
            return park(chosen).then_some(()).ok_or(DropReason::OutNotRoutable);
        }
        let traffic = unit.traffic(index, len);
        if unit.redundant && apart {
            // A copy for which there is no room is no loss: the packet goes another way.
            unit.set.unproven(&traffic).for_each(|waiting| _ = park(waiting));
        }
        batch.commit(first | df, slot(chosen.path));
        for copy in unit.copies(chosen, &traffic) {
            if let Some(lane) = lane(around.sockets, copy.path) {
                batch.commit_copy(lane | df, slot(copy.path));
                if apart {
                    copy.counters.count_out(1, len);
                }
            }
        }
        Ok(())
    }

    /// Sends what waits, lane by lane.
    fn send(&mut self, reads: &Reads, around: &Around<'_>) {
        for lane in 0..LANES {
            if self.batch.len(lane) > 0 {
                self.send_lane(lane, reads, around);
            }
        }
    }

    /// Sends a lane. DF is a setting of the socket, so it is changed when a lane wants the other one; traffic that
    /// mixes both costs one more system call a batch, not one a packet.
    fn send_lane(&mut self, lane: usize, reads: &Reads, around: &Around<'_>) {
        let Self { batch, mtus, errors, told, df, .. } = self;
        let (socket, want) = (lane % LANE_DF, lane >= LANE_DF);
        let failed = |slot: &SendSlot, error: io::Error| {
            if !want || error.raw_os_error() != Some(libc::EMSGSIZE) {
                return around.drop((DropReason::OutSend, 1));
            }
            around.drop((DropReason::OutTooBig, 1));
            // Once for all packets of a read.
            if told.replace(slot.tag) == Some(slot.tag) {
                return;
            }
            // The path is narrower than thought: ask the system how narrow, and tell the sender.
            let mark = around.shared.mark;
            let Ok(mtu) = path_mtu(slot.local.ip(), slot.remote, slot.device, mark) else { return };
            mtus.learn(slot.local, slot.remote, mtu, around.now.ms);
            let (header, Ok(packet)) = reads.get(slot.tag) else { return };
            let Ok(segments) = Segments::new(header, packet) else { return };
            let Around { shared, worker, .. } = *around;
            let Lookup::Sa(sa, _) = shared.tables.lookup_outbound(&packet, worker, around.now.guard) else {
                return;
            };
            let Ok(frame) = esp::frame(sa, &packet) else { return };
            let outer = outer_len(&Path { local: slot.local, remote: slot.remote }, socket & LANE_RAW == 0);
            let fits = inner_fit(sa, &packet, &frame, outer, mtu.into());
            too_big(errors, around, &packet, &segments, fits);
        };
        let set_df = |set: &mut [bool], apply: &dyn Fn(bool) -> io::Result<()>| {
            if set[socket] == want || apply(want).is_ok() {
                set[socket] = want;
            }
        };
        let raw = socket & LANE_RAW != 0;
        let ipv6 = socket & LANE_IPV6 != 0;
        let sockets = around.sockets;
        let (udp, esp) = match (raw, ipv6) {
            (false, false) => (sockets.udp4.as_ref(), None),
            (false, true) => (sockets.udp6.as_ref(), None),
            (true, false) => (None, sockets.raw4.as_ref()),
            (true, true) => (None, sockets.raw6.as_ref()),
        };
        if let Some(udp) = udp {
            set_df(df, &|on| udp.set_dont_fragment(on));
            udp.send_batch(batch, lane, failed);
        } else if let Some(esp) = esp {
            set_df(df, &|on| esp.set_dont_fragment(on));
            esp.send_batch(batch, lane, failed);
        } else {
            // `lane()` admits no packet without a socket; should that change, the batch must still come free.
            around.drop((DropReason::OutNoPath, batch.discard(lane)));
        }
    }

    fn too_big(&mut self, packet: &Packet<'_>, segments: &Segments<'_>, mtu: usize, around: &Around<'_>) {
        too_big(&mut self.errors, around, packet, segments, mtu);
    }
}

/// The lane, without DF, of a path; `None` when its socket is missing.
fn lane(sockets: &Sockets, path: &WeightedPath) -> Option<usize> {
    let WeightedPath { path, encap, .. } = *path;
    let ipv4 = path.remote.is_ipv4();
    let there = match (encap, ipv4) {
        (true, true) => sockets.udp4.is_some(),
        (true, false) => sockets.udp6.is_some(),
        (false, true) => sockets.raw4.is_some(),
        (false, false) => sockets.raw6.is_some(),
    };
    let same_family = path.local.is_ipv4() == ipv4;
    (there && same_family).then_some(if encap { 0 } else { LANE_RAW } | if ipv4 { 0 } else { LANE_IPV6 })
}

/// Octets in front of ESP.
fn outer_len(path: &Path, encap: bool) -> usize {
    let ip = if path.remote.is_ipv4() { IPV4 } else { IPV6 };
    ip + if encap { UDP } else { 0 }
}

/// The longest packet like `packet` whose outer packet fits `mtu`; at least the floor.
fn inner_fit(sa: &OutboundSa, packet: &Packet<'_>, frame: &Frame, outer: usize, mtu: usize) -> usize {
    (sa.max_payload(mtu.saturating_sub(outer)) + frame.skip).max(floor(packet.is_ipv4()))
}

/// Tells the sender of `packet`, which `segments` cuts, what would fit (RFC 1191 4, RFC 4443 3.2). The error comes from
/// the packet's destination: that address is routed into the tunnel, so it passes a reverse path filter, and it is none
/// of ours.
fn too_big(
    errors: &mut Limit,
    around: &Around<'_>,
    packet: &Packet<'_>,
    segments: &Segments<'_>,
    mtu: usize,
) {
    if !errors.allow(around.now.ms) {
        return;
    }
    // The sender may know nothing of super-packets: what is quoted is the first packet of one.
    let mut first = vec![0; segments.longest()];
    segments.write(0, 0, &mut first);
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
    let error = match packet.dst {
        IpAddr::V4(from) => icmp::frag_needed_v4(mtu, &first, from),
        IpAddr::V6(from) => icmp::packet_too_big_v6(mtu, &first, from),
    };
    // Empty when no error may be sent about this packet. A lost error is repeated for the next packet.
    if !error.is_empty() {
        let _ = around.tun.send(&Header::default(), &error);
    }
}
