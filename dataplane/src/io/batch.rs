//! Buffers of one batch of packets, allocated once and used for ever.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use super::message::{Control, Name};
use super::sys::{self, Header};

/// Packets that one system call moves at most.
pub const BATCH: usize = 64;
/// Free octets in front of each received packet: room to rebuild an IP header in transport mode.
pub const HEADROOM: usize = 128;
/// Octets from one packet's buffer to the next: the largest datagram and headroom. The odd multiple of a cache
/// line keeps packet starts of a batch from falling into the same few cache sets.
pub const SLOT: usize = 65_536 + HEADROOM + 64 * 31;
/// The largest packet that a slot takes.
const PACKET: usize = 65_536;

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

/// Packets of one receive call. Pages that no packet touches cost nothing.
pub struct RecvBatch {
    data: Box<[u8]>,
    headers: Box<[Header]>,
    packets: Box<[(Meta, usize, usize)]>,
    count: usize,
    truncated: u64,
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl RecvBatch {
    /// Room for [`BATCH`] packets.
    pub fn new() -> Self {
        Self::with_capacity(BATCH)
    }

    /// Room for `packets` packets, at most [`BATCH`].
    pub fn with_capacity(packets: usize) -> Self {
        let packets = packets.clamp(1, BATCH);
        Self {
            data: vec![0; packets * SLOT].into_boxed_slice(),
            headers: vec![Header::default(); packets].into_boxed_slice(),
            packets: vec![(Meta::UNKNOWN, 0, 0); packets].into_boxed_slice(),
            count: 0,
            truncated: 0,
        }
    }

    /// Packets of the last call.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the last call brought nothing.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Packet `index` of the last call.
    pub fn get(&self, index: usize) -> (Meta, &[u8]) {
        let (meta, start, len) = self.packets[..self.count][index];
        (meta, &self.data[start..][..len])
    }

    /// Packet `index`, to be changed in place.
    pub fn get_mut(&mut self, index: usize) -> (Meta, &mut [u8]) {
        let (meta, start, len) = self.packets[..self.count][index];
        (meta, &mut self.data[start..][..len])
    }

    /// Packet `index` with [`HEADROOM`] or more free octets in front: the buffer and where the packet starts
    /// in it. The packet ends with the buffer.
    pub fn with_headroom(&mut self, index: usize) -> (Meta, &mut [u8], usize) {
        let (meta, start, len) = self.packets[..self.count][index];
        let slot = index * SLOT;
        (meta, &mut self.data[slot..start + len], start - slot)
    }

    /// The packets of the last call, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Meta, &[u8])> {
        (0..self.count).map(|index| self.get(index))
    }

    /// Datagrams lost so far because they were longer than any IP packet can be.
    pub fn truncated(&self) -> u64 {
        self.truncated
    }

    /// One `recvmmsg`. `describe` gives a packet's address pair and how many octets to skip in front of it, or
    /// `None` to ignore it.
    pub(super) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        describe: impl Fn(&Header, &[u8]) -> Option<(Meta, usize)>,
    ) -> io::Result<usize> {
        self.count = 0;
        for (index, header) in self.headers.iter_mut().enumerate() {
            header.offset = index * SLOT + HEADROOM;
            header.len = PACKET;
        }
        let received = sys::receive_many(fd, &mut self.data, &mut self.headers)?;
        for index in 0..received {
            let header = &self.headers[index];
            let bytes = &self.data[header.offset..][..header.len.min(PACKET)];
            let described = if header.truncated { None } else { describe(header, bytes) };
            self.truncated += u64::from(header.truncated);
            self.packets[index] = match described {
                Some((meta, skip)) if skip <= bytes.len() => (meta, header.offset + skip, bytes.len() - skip),
                // Ignored ones stay as empty packets, which every reader drops as too short.
                _ => (Meta::UNKNOWN, header.offset, 0),
            };
        }
        self.count = received;
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

/// Packets to be sent: reserve a buffer, write into it, commit; an abandoned reservation costs nothing.
///
/// Packets that need another socket or socket option go into another lane; within a lane order is kept.
pub struct SendBatch {
    data: Box<[u8]>,
    used: usize,
    lanes: [Lane; LANES],
}

#[derive(Default)]
struct Lane {
    headers: Vec<Header>,
    slots: Vec<SendSlot>,
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl SendBatch {
    /// Room for [`BATCH`] packets.
    pub fn new() -> Self {
        let lane = || Lane { headers: Vec::with_capacity(BATCH), slots: Vec::with_capacity(BATCH) };
        Self {
            data: vec![0; BATCH * SLOT].into_boxed_slice(),
            used: 0,
            lanes: std::array::from_fn(|_| lane()),
        }
    }

    /// Packets that wait in a lane.
    pub fn len(&self, lane: usize) -> usize {
        self.lanes[lane].slots.len()
    }

    /// Whether nothing waits in any lane.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.slots.is_empty())
    }

    /// The next packet's buffer, or `None` when the batch is full.
    pub fn reserve(&mut self) -> Option<&mut [u8]> {
        let index = self.used;
        (index < BATCH).then(|| &mut self.data[index * SLOT..][..PACKET])
    }

    /// Packets, copies included, that every lane still takes before it must be sent.
    pub fn room(&self) -> usize {
        BATCH - self.lanes.iter().map(|lane| lane.slots.len()).max().unwrap_or(0)
    }

    /// Queues what was written into the reserved buffer.
    pub fn commit(&mut self, lane: usize, slot: SendSlot) {
        if self.used < BATCH {
            self.push(lane, slot, self.used);
            self.used += 1;
        }
    }

    /// Queues the packet that was committed last once more, for another way. It shares the buffer.
    pub fn commit_copy(&mut self, lane: usize, slot: SendSlot) {
        if let Some(last) = self.used.checked_sub(1)
            && self.lanes[lane].slots.len() < BATCH
        {
            self.push(lane, slot, last);
        }
    }

    fn push(&mut self, lane: usize, slot: SendSlot, buffer: usize) {
        let lane = &mut self.lanes[lane];
        // Neighbours mostly share their path: copy what is already in the kernel's form.
        let way = |s: &SendSlot| (s.remote, s.local, s.device, s.tos);
        let same = lane.slots.last().filter(|last| way(last) == way(&slot));
        let mut header = match (same, lane.headers.last()) {
            (Some(_), Some(header)) => *header,
            _ => {
                let (name, name_len) = Name::new(slot.remote);
                let (control, control_len) = Control::new(slot.local, slot.remote, slot.device, slot.tos);
                Header { name, name_len, control, control_len, ..Header::default() }
            }
        };
        header.offset = buffer * SLOT;
        header.len = slot.len.min(PACKET);
        lane.headers.push(header);
        lane.slots.push(slot);
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
        let Lane { headers, slots } = &mut self.lanes[lane];
        while at < slots.len() {
            match sys::send_many(fd, &self.data, &headers[at..]) {
                Ok(0) => break,
                Ok(count) => {
                    at += count;
                    sent += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    failed(&slots[at], error);
                    at += 1;
                }
            }
        }
        headers.clear();
        slots.clear();
        if self.is_empty() {
            self.used = 0;
        }
        sent
    }

    /// Drops what waits in a lane and returns how much that was.
    pub fn discard(&mut self, lane: usize) -> usize {
        let Lane { headers, slots } = &mut self.lanes[lane];
        let count = slots.len();
        headers.clear();
        slots.clear();
        if self.is_empty() {
            self.used = 0;
        }
        count
    }
}
