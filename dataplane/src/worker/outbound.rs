//! Read from the TUN device, classify, choose a path, check the size, seal, send: the functions in that order.

use std::io;
use std::net::IpAddr;

use mobikex_common::addr::{Path, Scheduler, WeightedPath};
use mobikex_common::drop::DropReason;
use mobikex_common::sa::Mode;
use mobikex_common::wire::icmp;
use mobikex_common::wire::ip::Packet;

use super::limit::Limit;
use super::mtu::{PathMtus, error_limit, floor};
use super::parked::Parked;
use super::{Now, Sockets, Worker, report};
use crate::engine::Shared;
use crate::esp::{self, IvSource};
use crate::io::{BATCH, SLOT, SendBatch, SendSlot, TunQueue, path_mtu};
use crate::paths::{self, Chosen, Traffic};
use crate::sad::OutboundSa;
use crate::tables::Lookup;
use crate::upcall::Upcall;

/// IP header, and UDP header where there is one, in front of ESP.
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;

/// A lane of the send batch is a socket and a setting of DF.
const LANE_RAW: usize = 1;
const LANE_IPV6: usize = 2;
const LANE_DF: usize = 4;

/// What a worker needs to send.
pub(super) struct Outbound {
    /// Packets read from the TUN device, kept until they are sent: an ICMP error quotes them.
    inner: Box<[u8]>,
    /// Their lengths.
    lens: [usize; BATCH],
    batch: SendBatch,
    ivs: IvSource,
    mtus: PathMtus,
    errors: Limit,
    /// What waits for proof that the peer is at an address.
    parked: Parked,
    /// The DF setting that each socket has (lanes without [`LANE_DF`]).
    df: [bool; LANE_DF],
}

impl Outbound {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            inner: vec![0; BATCH * SLOT].into_boxed_slice(),
            lens: [0; BATCH],
            batch: SendBatch::new(),
            ivs: IvSource::from_system().map_err(io::Error::other)?,
            mtus: PathMtus::new(),
            errors: error_limit(),
            parked: Parked::default(),
            df: [false; LANE_DF],
        })
    }

    /// When parked packets are to be looked at.
    pub(super) fn due(&self, now_ms: u64) -> Option<u64> {
        self.parked.due(now_ms)
    }
}

impl Worker {
    /// Sends the parked packets for addresses that have been proven meanwhile.
    pub(super) fn release_parked(&mut self, now: &Now<'_>) {
        if self.outbound.parked.is_empty() {
            return;
        }
        let Self { index, shared, outbound, sockets, tun, .. } = self;
        let mut parked = std::mem::take(&mut outbound.parked);
        let lost = parked.release(now.ms, now.guard, |lane, slot, packet| {
            if outbound.batch.room() == 0 {
                send_lanes(shared, *index, outbound, sockets, tun, now);
            }
            if let Some(out) = outbound.batch.reserve() {
                out[..packet.len()].copy_from_slice(packet);
                outbound.batch.commit(lane, slot);
            }
        });
        outbound.parked = parked;
        send_lanes(shared, *index, outbound, sockets, tun, now);
        for _ in 0..lost {
            self.drop_packet(DropReason::OutNotRoutable);
        }
    }

    /// One batch from the TUN device; whether there may be more.
    pub(super) fn outbound(&mut self, now: &Now<'_>) -> bool {
        if !self.tun.reads() {
            return false;
        }
        let mut more = true;
        for index in 0..BATCH {
            let slot = &mut self.outbound.inner[index * SLOT..][..SLOT];
            let len = match self.tun.recv(slot) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Nothing there, or the device is gone, which the next wake-up tells again.
                Err(_) => {
                    more = false;
                    break;
                }
            };
            self.outbound.lens[index] = len;
            let mut result = self.prepare(index, now);
            if matches!(result, Ok(Prepared::NoRoom)) {
                self.send(now);
                result = self.prepare(index, now);
            }
            if let Err(reason) = result {
                self.drop_packet(reason);
            }
        }
        self.send(now);
        more
    }

    fn prepare(&mut self, index: usize, now: &Now<'_>) -> Result<Prepared, DropReason> {
        prepare(&self.shared, &mut self.outbound, &self.sockets, &self.tun, index, now)
    }

    fn send(&mut self, now: &Now<'_>) {
        send_lanes(&self.shared, self.index, &mut self.outbound, &self.sockets, &self.tun, now);
    }
}

/// What became of a packet that was not dropped.
enum Prepared {
    /// It is in the batch, or waits for proof that the peer is where it would go.
    Queued,
    /// Its copies do not fit into the batch until that has been sent; nothing has changed.
    NoRoom,
}

/// Classifies the packet in slot `index`, chooses its path and seals it into the batch.
fn prepare(
    shared: &Shared,
    this: &mut Outbound,
    sockets: &Sockets,
    tun: &TunQueue,
    index: usize,
    now: &Now<'_>,
) -> Result<Prepared, DropReason> {
    let Outbound { inner, lens, batch, ivs, mtus, errors, parked, .. } = this;
    let bytes = &inner[index * SLOT..][..lens[index]];
    let packet = Packet::parse(bytes).map_err(|_| DropReason::OutNotIp)?;
    let (sa, set) = match shared.tables.lookup_outbound(&packet, now.guard) {
        Lookup::Sa(sa, set) => (sa, set),
        Lookup::NoSa(policy) => {
            if shared.upcalls.may_acquire(policy, now.ms) {
                let Packet { src, dst, protocol, ports, .. } = packet;
                shared.upcalls.send(Upcall::Acquire { policy, src, dst, protocol, ports });
            }
            return Err(DropReason::OutNoSa);
        }
        Lookup::NoPolicy => return Err(DropReason::OutNoPolicy),
    };
    let traffic = Traffic {
        flow_hash: paths::flow_hash(&packet),
        turn: sa.sequence(),
        len: esp::sealed_len(sa, &packet)?,
        ends: (sa.mode() == Mode::Transport).then_some((packet.src, packet.dst)),
    };
    let (chosen, proven) = match set.choose(&traffic) {
        Ok(chosen) => (chosen, true),
        Err(reason) => (set.unproven(&traffic).next().ok_or(reason)?, false),
    };
    let first = lane(sockets, chosen.path).ok_or(DropReason::OutNoPath)?;
    let redundant = set.set().scheduler == Scheduler::Redundant && traffic.ends.is_none();
    let copies = || set.others(chosen, &traffic).take(if redundant && proven { BATCH - 1 } else { 0 });
    if redundant && batch.room() < set.sending_len().min(BATCH) {
        return Ok(Prepared::NoRoom);
    }

    // Packets up to the floor always pass, in fragments if need be.
    let whole = esp::must_stay_whole(sa, &packet) && packet.total_len > floor(packet.is_ipv4());
    if whole {
        let fits = |chosen: Chosen<'_>| {
            let mtu = mtus.get(chosen.path.path.local, chosen.path.path.remote, now.ms)?;
            Some(inner_fit(sa, &packet, outer_len(&chosen.path.path, chosen.path.encap), mtu))
        };
        let least = std::iter::once(chosen).chain(copies()).filter_map(fits).min();
        if let Some(fits) = least.filter(|fits| packet.total_len > *fits) {
            too_big(errors, tun, &packet, fits, now);
            return Err(DropReason::OutTooBig);
        }
    }

    let out = batch.reserve().ok_or(DropReason::OutSend)?;
    let sealed = esp::seal(sa, &packet, out, ivs);
    report(shared, sa.id(), sa.take_events());
    let sealed = sealed?;
    sa.counters().stamp(now.ms);
    if sa.take_watch() {
        shared.upcalls.send(Upcall::Traffic(sa.id()));
    }
    let df = if whole { LANE_DF } else { 0 };
    let slot = |chosen: Chosen<'_>| {
        let WeightedPath { path: Path { local, mut remote }, device, encap, .. } = *chosen.path;
        if !encap {
            remote.set_port(0);
        }
        SendSlot { local, remote, device, tos: sealed.tos, tag: index, len: sealed.len }
    };
    // Nothing is known of their addresses' MTU yet, so these may be fragmented.
    let mut park = |chosen: Chosen<'_>| {
        let Some(lane) = lane(sockets, chosen.path) else { return false };
        parked.park(sa.addresses(), (lane, slot(chosen), chosen.path.encap), &out[..sealed.len], now.ms)
    };
    if !proven {
        return if park(chosen) { Ok(Prepared::Queued) } else { Err(DropReason::OutNotRoutable) };
    }
    if redundant {
        // A copy for which there is no room is no loss: the packet goes another way.
        for waiting in set.unproven(&traffic) {
            let _ = park(waiting);
        }
    }
    let counted = |chosen: Chosen<'_>| {
        chosen.counters.count_out(1, sealed.len);
        slot(chosen)
    };
    batch.commit(first | df, counted(chosen));
    for copy in copies() {
        if let Some(lane) = lane(sockets, copy.path) {
            batch.commit_copy(lane | df, counted(copy));
        }
    }
    Ok(Prepared::Queued)
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
fn inner_fit(sa: &OutboundSa, packet: &Packet<'_>, outer: usize, mtu: usize) -> usize {
    // Transport mode protects what follows the IP header.
    let bare = if sa.mode() == Mode::Transport { packet.header_len } else { 0 };
    (sa.max_payload(mtu.saturating_sub(outer)) + bare).max(floor(packet.is_ipv4()))
}

fn send_lanes(
    shared: &Shared,
    worker: usize,
    this: &mut Outbound,
    sockets: &Sockets,
    tun: &TunQueue,
    now: &Now<'_>,
) {
    for lane in 0..2 * LANE_DF {
        if this.batch.len(lane) > 0 {
            send_lane(shared, worker, this, sockets, tun, lane, now);
        }
    }
}

/// Sends a lane. DF is a setting of the socket, so it is changed when a lane wants the other one; traffic that
/// mixes both costs one more system call a batch, not one a packet.
fn send_lane(
    shared: &Shared,
    worker: usize,
    this: &mut Outbound,
    sockets: &Sockets,
    tun: &TunQueue,
    lane: usize,
    now: &Now<'_>,
) {
    let Outbound { inner, lens, batch, mtus, errors, df, .. } = this;
    let (socket, want) = (lane % LANE_DF, lane >= LANE_DF);
    let count = |reason| shared.drops[worker].add(reason);
    let failed = |slot: &SendSlot, error: io::Error| {
        if !want || error.raw_os_error() != Some(libc::EMSGSIZE) {
            return count(DropReason::OutSend);
        }
        count(DropReason::OutTooBig);
        // The path is narrower than thought: ask the system how narrow, and tell the sender.
        let Ok(mtu) = path_mtu(slot.local.ip(), slot.remote, slot.device, shared.mark) else { return };
        mtus.learn(slot.local, slot.remote, mtu, now.ms);
        let Ok(packet) = Packet::parse(&inner[slot.tag * SLOT..][..lens[slot.tag]]) else { return };
        let Lookup::Sa(sa, _) = shared.tables.lookup_outbound(&packet, now.guard) else { return };
        let outer = outer_len(&Path { local: slot.local, remote: slot.remote }, socket & LANE_RAW == 0);
        too_big(errors, tun, &packet, inner_fit(sa, &packet, outer, mtu.into()), now);
    };
    let set_df = |set: &mut [bool], apply: &dyn Fn(bool) -> io::Result<()>| {
        if set[socket] == want || apply(want).is_ok() {
            set[socket] = want;
        }
    };
    let raw = socket & LANE_RAW != 0;
    let ipv6 = socket & LANE_IPV6 != 0;
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
        for _ in 0..batch.discard(lane) {
            count(DropReason::OutNoPath);
        }
    }
}

/// Tells the sender of `packet` what would fit (RFC 1191 4, RFC 4443 3.2). The error comes from the packet's
/// destination: that address is routed into the tunnel, so it passes a reverse path filter, and it is none of ours.
fn too_big(errors: &mut Limit, tun: &TunQueue, packet: &Packet<'_>, mtu: usize, now: &Now<'_>) {
    if !errors.allow(now.ms) {
        return;
    }
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
    let error = match packet.dst {
        IpAddr::V4(from) => icmp::frag_needed_v4(mtu, packet.bytes(), from),
        IpAddr::V6(from) => icmp::packet_too_big_v6(mtu, packet.bytes(), from),
    };
    // Empty when no error may be sent about this packet. A lost error is repeated for the next packet.
    if !error.is_empty() {
        let _ = tun.send(&error);
    }
}
