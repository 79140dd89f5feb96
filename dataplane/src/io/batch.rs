//! Buffers of one batch of packets, allocated once and used for ever.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use super::message::{Control, Name};
use super::sys::{self, Header};
use super::tun::TUN_READ;

/// Packets that one system call moves at most.
pub const BATCH: usize = 64;
/// Octets read from the TUN device before a pass ends, so that what is read still fits the cache when it is sent.
pub const PASS_READ: usize = 4 * TUN_READ;
/// Octets sealed before they are sent, for the same reason.
pub const PASS_SEND: usize = 64 << 10;
/// Free octets in front of each received packet: room to rebuild an IP header in transport mode.
pub const HEADROOM: usize = 128;
/// Octets from one packet's buffer to the next: the largest datagram and headroom. The odd multiple of a cache
/// line keeps packet starts of a batch from falling into the same few cache sets.
const SLOT: usize = 65_536 + HEADROOM + 64 * 31;
/// The largest packet that a slot takes.
const PACKET: usize = 65_536;
/// Octets that one receive call should bring at most, and messages that it asks for at least.
const CACHED: usize = 256 << 10;
const BATCH_MIN: usize = 4;

/// Where a received packet came from and went to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// The sender. Port 0 for raw ESP.
    pub remote: SocketAddr,
    /// The address that it was sent to, with the socket's port. Port 0 for raw ESP.
    pub local: SocketAddr,
    /// Interface that it came in on; 0 when not known.
    pub ifindex: u32,
    /// TOS octet or traffic class of the packet (DSCP and ECN).
    pub tos: u8,
}

impl Meta {
    /// No addresses yet.
    pub const UNKNOWN: Self = {
        let addr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        Self { remote: addr, local: addr, ifindex: 0, tos: 0 }
    };
}

/// Messages of one receive call, each of which is a packet or, from a socket that merges, several of equal size.
/// Pages that no packet touches cost nothing.
pub struct RecvBatch {
    data: Box<[u8]>,
    headers: Box<[Header]>,
    messages: Box<[Message]>,
    count: usize,
    /// Messages to ask for next time.
    limit: usize,
    truncated: u64,
}

/// A received message.
#[derive(Clone, Copy)]
struct Message {
    meta: Meta,
    /// First octet in the buffer.
    start: usize,
    len: usize,
    /// Octets of each of its packets but the last.
    segment: usize,
}

impl Message {
    /// Where in the buffer the packet at a place begins and ends.
    fn bounds(&self, at: Place) -> (usize, usize) {
        let from = at.offset.min(self.len);
        (self.start + from, self.start + (from + self.segment).min(self.len))
    }
}

/// Where a packet is in a [`RecvBatch`]. The first is at the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    message: usize,
    /// Octets of its message before it.
    offset: usize,
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl RecvBatch {
    /// Room for [`BATCH`] messages.
    pub fn new() -> Self {
        let empty = Message { meta: Meta::UNKNOWN, start: 0, len: 0, segment: 0 };
        Self {
            data: vec![0; BATCH * SLOT].into_boxed_slice(),
            headers: vec![Header::default(); BATCH].into_boxed_slice(),
            messages: vec![empty; BATCH].into_boxed_slice(),
            count: 0,
            limit: BATCH,
            truncated: 0,
        }
    }

    /// The packet at a place, if there is one there.
    pub fn get(&self, at: Place) -> Option<(&Meta, &[u8])> {
        let message = self.messages[..self.count].get(at.message)?;
        let (start, end) = message.bounds(at);
        Some((&message.meta, &self.data[start..end]))
    }

    /// The place behind this one, where the next packet is if there is one.
    pub fn after(&self, at: Place) -> Place {
        let Some(Message { len, segment, .. }) = self.messages.get(at.message).copied() else { return at };
        let offset = at.offset + segment.max(1);
        if offset < len { Place { offset, ..at } } else { Place { message: at.message + 1, offset: 0 } }
    }

    /// The packet at a place where there is one, with [`HEADROOM`] or more octets in front: the buffer and where the packet
    /// starts in it. The packet ends with the buffer. What is in front is free only until the packets before it of
    /// the same message are done with.
    pub fn with_headroom(&mut self, at: Place) -> (Meta, &mut [u8], usize) {
        let message = &self.messages[..self.count][at.message];
        let ((start, end), slot) = (message.bounds(at), at.message * SLOT);
        (message.meta, &mut self.data[slot..end], start - slot)
    }

    /// The packets of the last call, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Meta, &[u8])> {
        let places = std::iter::successors(Some(Place::default()), |at| Some(self.after(*at)));
        places.map_while(|at| self.get(at)).map(|(meta, packet)| (*meta, packet))
    }

    /// Datagrams lost so far because they were longer than any IP packet can be.
    pub fn truncated(&self) -> u64 {
        self.truncated
    }

    /// One `recvmmsg`. `describe` gives a message's address pair and how many octets to skip in front of it, or
    /// `None` to ignore it.
    pub(super) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        describe: impl Fn(&Header, &[u8]) -> Option<(Meta, usize)>,
    ) -> io::Result<usize> {
        self.count = 0;
        let headers = &mut self.headers[..self.limit];
        for (index, header) in headers.iter_mut().enumerate() {
            header.offset = index * SLOT + HEADROOM;
            header.len = PACKET;
        }
        let received = sys::receive_many(fd, &mut self.data, headers)?;
        let mut octets = 0;
        for (header, message) in headers.iter().zip(&mut self.messages).take(received) {
            let bytes = &self.data[header.offset..][..header.len.min(PACKET)];
            let described = if header.truncated { None } else { describe(header, bytes) };
            self.truncated += u64::from(header.truncated);
            octets += bytes.len();
            *message = match described {
                Some((meta, skip)) if skip <= bytes.len() => {
                    let len = bytes.len() - skip;
                    let segment = match header.control.info(header.control_len).segment {
                        0 => len,
                        size => size,
                    };
                    Message { meta, start: header.offset + skip, len, segment }
                }
                // Ignored ones stay as empty packets, which every reader drops as too short.
                _ => Message { meta: Meta::UNKNOWN, start: header.offset, len: 0, segment: 0 },
            };
        }
        self.count = received;
        // Long messages would push each other out of the cache before they are looked at.
        self.limit = match octets {
            _ if octets > CACHED => (received / 2).clamp(BATCH_MIN, BATCH),
            _ if received == self.limit => (self.limit * 2).min(BATCH),
            _ => self.limit,
        };
        Ok(received)
    }
}

/// One packet of a [`SendBatch`] and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct SendSlot {
    /// Our address and port; an unspecified address leaves the choice to the system.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Index of the interface to leave by; 0 leaves the choice to the routing table.
    pub device: u32,
    /// TOS octet or traffic class.
    pub tos: u8,
    /// The caller's own number for the packet.
    pub tag: usize,
    /// Length in octets.
    pub len: usize,
}

/// Groups of a [`SendBatch`] that are sent by different calls.
pub const LANES: usize = 8;
/// Messages that a lane holds.
pub const MESSAGES: usize = 256;
/// Octets that a batch holds.
const ARENA: usize = 384 << 10;
/// Datagrams that the system cuts one message into, and octets of it, at most.
const SEGMENTS: usize = 64;
const RUN: usize = 65_000;
/// Messages among which one for the same way is looked for.
const NEIGHBOURS: usize = 8;
/// Ways that are remembered because the system cannot cut messages for them.
const REFUSED: usize = 8;

/// Packets to be sent: reserve a buffer, write into it, commit; an abandoned reservation costs nothing.
///
/// Packets that need another socket or socket option go into another lane; within a lane the order of packets that
/// go the same way is kept. Where the system cuts messages (`UDP_SEGMENT`), packets of equal size that go the same way
/// become one, of which the last may be shorter.
pub struct SendBatch {
    data: Box<[u8]>,
    used: usize,
    /// Where the packet that was committed last lies.
    last: usize,
    /// The caller's tag of the packets from this offset on.
    tags: Vec<(usize, usize)>,
    lanes: [Lane; LANES],
    /// Ways whose messages the system does not cut, the one met last at `refusals % REFUSED`.
    refused: [Option<Way>; REFUSED],
    refusals: usize,
    /// For runs that go out packet by packet.
    singles: Vec<Header>,
}

/// What makes the kernel's form of a message: addresses, interface, traffic class.
type Way = (SocketAddr, SocketAddr, u32, u8);

fn way(slot: &SendSlot) -> Way {
    (slot.remote, slot.local, slot.device, slot.tos)
}

#[derive(Default)]
struct Lane {
    /// The system cuts messages of this lane.
    segments: bool,
    headers: Vec<Header>,
    runs: Vec<Run>,
}

/// One message: packets of `slot.len` octets that lie behind each other, the last of which may be shorter.
struct Run {
    slot: SendSlot,
    count: usize,
    /// Nothing can follow.
    complete: bool,
    /// Octets of ancillary data without the size of the datagrams.
    control_len: usize,
}

impl SendBatch {
    /// An empty batch; `segments` says in which lanes the system cuts messages.
    pub fn new(segments: [bool; LANES]) -> Self {
        let lane = |segments| Lane {
            segments,
            headers: Vec::with_capacity(MESSAGES),
            runs: Vec::with_capacity(MESSAGES),
        };
        Self {
            data: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            last: 0,
            tags: Vec::with_capacity(MESSAGES),
            lanes: segments.map(lane),
            refused: [None; REFUSED],
            refusals: 0,
            singles: Vec::with_capacity(SEGMENTS),
        }
    }

    /// Messages that wait in a lane.
    pub fn len(&self, lane: usize) -> usize {
        self.lanes[lane].runs.len()
    }

    /// Whether nothing waits in any lane.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.runs.is_empty())
    }

    /// Octets that wait.
    pub fn octets(&self) -> usize {
        self.used
    }

    /// A buffer of `len` octets for the next packet, or `None` when the batch is full.
    pub fn reserve(&mut self, len: usize) -> Option<&mut [u8]> {
        self.data.get_mut(self.used..self.used + len)
    }

    /// Whether so many packets, each with so many copies, of so many octets together still fit.
    pub fn fits(&self, packets: usize, copies: usize, octets: usize) -> bool {
        let waiting = self.lanes.iter().map(|lane| lane.runs.len()).max().unwrap_or(0);
        self.used + octets <= ARENA
            && waiting + packets * copies <= MESSAGES
            && self.tags.len() + packets <= MESSAGES
    }

    /// Queues what was written into the reserved buffer.
    pub fn commit(&mut self, lane: usize, slot: SendSlot) {
        if self.tags.last().is_none_or(|(_, tag)| *tag != slot.tag) {
            self.tags.push((self.used, slot.tag));
        }
        self.last = self.used;
        self.used += slot.len;
        self.push(lane, slot);
    }

    /// Queues the packet that was committed last once more, for another way. It shares the buffer.
    pub fn commit_copy(&mut self, lane: usize, slot: SendSlot) {
        if self.last + slot.len == self.used && self.lanes[lane].runs.len() < MESSAGES {
            self.push(lane, slot);
        }
    }

    fn push(&mut self, lane: usize, slot: SendSlot) {
        let (offset, way_of) = (self.last, way(&slot));
        let uncut = self.refusals > 0 && self.refused.contains(&Some(way_of));
        let lane = &mut self.lanes[lane];
        // Neighbours mostly share their path, or take turns on a few.
        let recent = lane.runs.len().saturating_sub(NEIGHBOURS);
        let same = lane.runs[recent..].iter().rposition(|run| way(&run.slot) == way_of).map(|at| recent + at);
        if let Some(at) = same
            && lane.segments
            && !uncut
            && lane.runs[at].append(&mut lane.headers[at], offset, slot.len)
        {
            return;
        }
        let mut header = match same {
            // What is already in the kernel's form is copied.
            Some(at) => Header { control_len: lane.runs[at].control_len, ..lane.headers[at] },
            None => {
                let (name, name_len) = Name::new(slot.remote);
                let (control, control_len) = Control::new(slot.local, slot.remote, slot.device, slot.tos);
                Header { name, name_len, control, control_len, ..Header::default() }
            }
        };
        (header.offset, header.len) = (offset, slot.len);
        let control_len = header.control_len;
        lane.headers.push(header);
        lane.runs.push(Run { slot, count: 1, complete: false, control_len });
    }

    /// Sends a lane, in order, and empties it. `failed` hears of each packet that the system refused; the
    /// others are not held up by it. The buffers are free again when all lanes are empty.
    pub(super) fn flush(
        &mut self,
        lane: usize,
        fd: BorrowedFd<'_>,
        mut failed: impl FnMut(&SendSlot, io::Error),
    ) -> usize {
        let (mut at, mut sent) = (0, 0);
        let Self { data, tags, lanes, singles, .. } = self;
        let Lane { headers, runs, .. } = &mut lanes[lane];
        let mut refused = None;
        while at < runs.len() {
            match sys::send_many(fd, data, &headers[at..]) {
                Ok(0) => break,
                Ok(count) => {
                    sent += runs[at..at + count].iter().map(|run| run.count).sum::<usize>();
                    at += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // The device cannot do what cutting needs.
                    if runs[at].count > 1 && error.raw_os_error() == Some(libc::EIO) {
                        refused = Some(way(&runs[at].slot));
                    }
                    sent += runs[at].one_by_one(&headers[at], data, tags, singles, fd, error, &mut failed);
                    at += 1;
                }
            }
        }
        headers.clear();
        runs.clear();
        if let Some(way) = refused {
            if self.refusals == 0 {
                tracing::warn!(remote = %way.0, "no segmentation of datagrams by this way, they go out one by one");
            }
            self.refused[self.refusals % REFUSED] = Some(way);
            self.refusals += 1;
        }
        self.free();
        sent
    }

    /// Drops what waits in a lane and returns how many packets that was.
    pub fn discard(&mut self, lane: usize) -> usize {
        let Lane { headers, runs, .. } = &mut self.lanes[lane];
        let count = runs.iter().map(|run| run.count).sum();
        headers.clear();
        runs.clear();
        self.free();
        count
    }

    fn free(&mut self) {
        if self.is_empty() {
            self.used = 0;
            self.last = 0;
            self.tags.clear();
        }
    }
}

impl Run {
    /// Takes the packet at `offset` in, if it may follow.
    fn append(&mut self, header: &mut Header, offset: usize, len: usize) -> bool {
        let size = self.slot.len;
        let follows = header.offset + header.len == offset && len <= size && !self.complete;
        if !follows || self.count == SEGMENTS || header.len + len > RUN {
            return false;
        }
        if self.count == 1 {
            header.control_len = header.control.segment(self.control_len, size as u16);
        }
        self.count += 1;
        self.complete = len < size;
        header.len += len;
        true
    }

    /// Sends a run that was refused with `error` packet by packet, if that may help, and tells of each packet that
    /// cannot be sent. Returns how many could.
    #[allow(clippy::too_many_arguments)] // The parts of a batch, borrowed apart.
    fn one_by_one(
        &self,
        header: &Header,
        data: &[u8],
        tags: &[(usize, usize)],
        singles: &mut Vec<Header>,
        fd: BorrowedFd<'_>,
        error: io::Error,
        failed: &mut impl FnMut(&SendSlot, io::Error),
    ) -> usize {
        let end = header.offset + header.len;
        let starts = (header.offset..end).step_by(self.slot.len.max(1));
        singles.clear();
        singles.extend(starts.map(|offset| {
            let len = self.slot.len.min(end - offset);
            Header { offset, len, control_len: self.control_len, ..*header }
        }));
        let slot = |single: &Header| {
            let tag = tags.partition_point(|(offset, _)| *offset <= single.offset);
            let tag = tag.checked_sub(1).map_or(self.slot.tag, |at| tags[at].1);
            SendSlot { tag, len: single.len, ..self.slot }
        };
        // Too long for the path, or impossible for the device: that is no reason for packets by themselves.
        let code = error.raw_os_error();
        let helps = self.count > 1 && matches!(code, Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO));
        let again = |error: &io::Error| match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => error.kind().into(),
        };
        if !helps {
            singles.iter().for_each(|single| failed(&slot(single), again(&error)));
            return 0;
        }
        let (mut at, mut sent) = (0, 0);
        while at < singles.len() {
            match sys::send_many(fd, data, &singles[at..]) {
                Ok(0) => break,
                Ok(count) => {
                    sent += count;
                    at += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failed(&slot(&singles[at]), error);
                    at += 1;
                }
            }
        }
        sent
    }
}
