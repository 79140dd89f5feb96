//! From packets in order to super-packets, which the system takes at the price of one packet.
//!
//! What is merged could be cut again into the very same packets, but for the IPv4 identification of packets that may
//! not be fragmented, which means nothing (RFC 6864 4.1). A merged packet's checksum is not looked at any more by the
//! system, so every packet's own is verified before; one that is wrong is passed on alone, as it came. Of one flow
//! nothing overtakes anything.

use mobikex_common::wire::ip::{Ipv4Header, Ipv6Header, Packet};
use mobikex_common::wire::virtio::{Gso, Header};
use mobikex_common::wire::{checksum, tcp, udp};

use crate::paths::flow_hash;

/// Flows that grow at a time; of more the one that began first is written.
const FLOWS: usize = 16;
/// Octets of a super-packet at most: what the length field of IPv4 can say.
const LONGEST: usize = 65_535;
/// Datagrams that the system is willing to cut a super-packet of UDP into.
const DATAGRAMS: usize = 64;
/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: usize = 6;
/// Don't Fragment, in the seventh octet of an IPv4 header.
const DF: u8 = 0x40;

/// Merges packets of a batch. All memory is allocated when it is made.
pub struct Coalescer {
    /// In the order in which they began.
    growing: Vec<Run>,
    free: Vec<Run>,
    udp: bool,
}

/// A super-packet that grows: the first packet's headers, which the others share, and the payload of all.
struct Run {
    flow: u64,
    data: Box<[u8]>,
    len: usize,
    shape: Shape,
    /// Payload octets of each packet.
    size: usize,
    count: usize,
    /// By how much the IPv4 identification grows, once there are two.
    id_step: Option<u16>,
    /// Partial sum of the pseudo-header, less the length.
    pseudo: u32,
}

/// Where the parts of a packet lie that can be merged.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    ipv4: bool,
    tcp: bool,
    /// Octets of the IP header.
    ip: usize,
    /// Octets of all headers.
    headers: usize,
}

impl Coalescer {
    /// Merges TCP, and UDP too if `udp`.
    pub fn new(udp: bool) -> Self {
        Self { growing: Vec::with_capacity(FLOWS), free: (0..FLOWS).map(|_| Run::new()).collect(), udp }
    }

    /// Takes a packet, without anything after its end. `write` gets what is complete: the header for the device and
    /// the packet.
    pub fn offer(&mut self, packet: &[u8], mut write: impl FnMut(&Header, &[u8])) {
        let alone = Header::default();
        let Ok(parsed) = Packet::parse(packet) else { return write(&alone, packet) };
        if !matches!(parsed.protocol, tcp::PROTOCOL | udp::PROTOCOL) {
            return write(&alone, packet);
        }
        if parsed.is_fragment() || parsed.ports.is_none() {
            // It may belong to any flow.
            self.flush(&mut write);
            return write(&alone, packet);
        }
        let flow = flow_hash(&parsed);
        let shape = Shape::of(&parsed, self.udp).filter(|_| parsed.total_len == packet.len());
        let grows = self.growing.iter().position(|run| run.flow == flow);
        if let (Some(place), Some(shape)) = (grows, shape)
            && self.growing[place].append(shape, packet)
        {
            if self.growing[place].is_complete(packet.len() - shape.headers) {
                self.write(place, write);
            }
            return;
        }
        if let Some(place) = grows {
            self.write(place, &mut write);
        }
        match shape {
            Some(shape) if !shape.pushes(packet) => {
                if self.growing.len() == FLOWS {
                    self.write(0, &mut write);
                }
                if !self.start(flow, shape, &parsed) {
                    write(&alone, packet);
                }
            }
            _ => write(&alone, packet),
        }
    }

    /// Gives out whatever still grows, in the order in which it began.
    pub fn flush(&mut self, mut write: impl FnMut(&Header, &[u8])) {
        while !self.growing.is_empty() {
            self.write(0, &mut write);
        }
    }

    fn write(&mut self, place: usize, mut write: impl FnMut(&Header, &[u8])) {
        let mut run = self.growing.remove(place);
        let header = run.finish();
        write(&header, &run.data[..run.len]);
        self.free.push(run);
    }

    /// Begins a run; `false` when the packet is damaged.
    fn start(&mut self, flow: u64, shape: Shape, packet: &Packet<'_>) -> bool {
        let Some(mut run) = self.free.pop() else { return false };
        let sound = run.start(flow, shape, packet);
        if sound {
            self.growing.push(run)
        } else {
            self.free.push(run)
        }
        sound
    }
}

impl Shape {
    /// The shape of a packet that could be merged with others.
    fn of(packet: &Packet<'_>, merge_udp: bool) -> Option<Self> {
        let bytes = packet.bytes();
        let ipv4 = packet.is_ipv4();
        let ip = if ipv4 {
            // No options; of the flags at most DF; a header that is sound, for the merged one will be.
            let plain = packet.header_len == Ipv4Header::LEN && bytes[6] & !DF == 0 && bytes[7] == 0;
            let sound = || checksum::finish(checksum::sum(&bytes[..Ipv4Header::LEN], 0)) == 0;
            (plain && sound()).then_some(Ipv4Header::LEN)?
        } else {
            (packet.header_len == Ipv6Header::LEN).then_some(Ipv6Header::LEN)?
        };
        let upper = packet.payload();
        let tcp = packet.protocol == tcp::PROTOCOL;
        let upper_len = if tcp {
            let len = tcp::header_len(upper)?;
            (upper[tcp::FLAGS] & !(tcp::PSH | tcp::ECE) == tcp::ACK).then_some(len)?
        } else {
            let header = udp::Header::parse(upper).ok()?;
            let whole = usize::from(header.length) == upper.len() && header.checksum != 0;
            (merge_udp && whole).then_some(udp::Header::LEN)?
        };
        let headers = ip + upper_len;
        (bytes.len() > headers && bytes.len() <= LONGEST).then_some(Self { ipv4, tcp, ip, headers })
    }

    /// Whether the segment shall be handed over at once, with what came before it.
    fn pushes(self, packet: &[u8]) -> bool {
        self.tcp && packet[self.ip + tcp::FLAGS] & tcp::PSH != 0
    }

    /// Whether `next` says the same as `first` in every field that cutting would repeat.
    fn repeats(self, first: &[u8], next: &[u8]) -> bool {
        let same = |from: usize, to: usize| first[from..to] == next[from..to];
        let ip = if self.ipv4 {
            // All but length, identification and checksum.
            same(0, 2) && same(6, 10) && same(12, 20)
        } else {
            // All but the length.
            same(0, 4) && same(6, 40)
        };
        let at = |field: usize| self.ip + field;
        let upper = if self.tcp {
            // All but sequence number, PSH and checksum: acknowledgement, flags, window, options.
            let flags = next[at(tcp::FLAGS)] & !tcp::PSH == first[at(tcp::FLAGS)];
            same(at(0), at(4))
                && same(at(8), at(13))
                && flags
                && same(at(14), at(16))
                && same(at(18), self.headers)
        } else {
            same(at(0), at(4))
        };
        ip && upper
    }
}

impl Run {
    fn new() -> Self {
        let shape = Shape { ipv4: true, tcp: true, ip: 0, headers: 0 };
        let data = vec![0; LONGEST].into_boxed_slice();
        Self { flow: 0, data, len: 0, shape, size: 0, count: 0, id_step: None, pseudo: 0 }
    }

    fn start(&mut self, flow: u64, shape: Shape, packet: &Packet<'_>) -> bool {
        let bytes = packet.bytes();
        let (head, body) = bytes.split_at(shape.headers);
        self.data[..shape.headers].copy_from_slice(head);
        self.pseudo = checksum::pseudo_header(packet.src, packet.dst, packet.protocol, 0);
        (self.flow, self.shape, self.len, self.count) = (flow, shape, shape.headers, 0);
        (self.size, self.id_step) = (body.len(), None);
        self.take_over(bytes)
    }

    /// Copies the payload of a packet of our shape behind what is there, if its checksum is right.
    fn take_over(&mut self, packet: &[u8]) -> bool {
        let (head, body) = packet.split_at(self.shape.headers);
        let sum = self.pseudo + (packet.len() - self.shape.ip) as u32;
        let sum = checksum::sum(&head[self.shape.ip..], sum);
        let sum = checksum::copy_and_sum(&mut self.data[self.len..], body, sum);
        let sound = checksum::finish(sum) == 0;
        if sound {
            self.len += body.len();
            self.count += 1;
        }
        sound
    }

    /// Takes the next packet of the flow, if it is one that cutting would make next.
    fn append(&mut self, shape: Shape, packet: &[u8]) -> bool {
        let Self { len, size, count, .. } = *self;
        let body = packet.len().saturating_sub(shape.headers);
        if shape != self.shape || body > size || len + body > LONGEST || (!shape.tcp && count == DATAGRAMS) {
            return false;
        }
        if !shape.repeats(&self.data, packet) {
            return false;
        }
        let next = |bytes: &[u8]| tcp::sequence(&bytes[shape.ip..]);
        if shape.tcp && next(packet) != next(&self.data).wrapping_add((len - shape.headers) as u32) {
            return false;
        }
        let step = if shape.ipv4 { self.id_step(packet) } else { Some(0) };
        if step.is_none() || !self.take_over(packet) {
            return false;
        }
        self.id_step = step;
        if shape.pushes(packet) {
            self.data[shape.ip + tcp::FLAGS] |= tcp::PSH;
        }
        true
    }

    /// By how much the identification grows, if this packet's is the next: by one, as in what the system cuts, or,
    /// where it means nothing, not at all.
    fn id_step(&self, packet: &[u8]) -> Option<u16> {
        let id = |bytes: &[u8]| u16::from_be_bytes([bytes[4], bytes[5]]);
        let ahead = id(packet).wrapping_sub(id(&self.data));
        let step = match ahead {
            0 if packet[6] & DF != 0 => 0,
            _ => 1,
        };
        (step * self.count as u16 == ahead && self.id_step.is_none_or(|known| known == step)).then_some(step)
    }

    /// Whether nothing can follow the packet taken last, of `body` octets of payload.
    fn is_complete(&self, body: usize) -> bool {
        body < self.size || self.shape.pushes(&self.data)
    }

    /// Makes the headers fit what they now stand before. A single packet is left as it came.
    fn finish(&mut self) -> Header {
        if self.count == 1 {
            return Header::default();
        }
        let Shape { ipv4, tcp, ip, headers } = self.shape;
        let upper_len = self.len - ip;
        let head = &mut self.data[..headers];
        if ipv4 {
            head[2..4].copy_from_slice(&(self.len as u16).to_be_bytes());
            head[10..12].fill(0);
            let sum = checksum::finish(checksum::sum(&head[..ip], 0));
            head[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            head[4..6].copy_from_slice(&(upper_len as u16).to_be_bytes());
        }
        // The sum over the pseudo-header, from which whoever needs the checksum goes on.
        let pseudo = !checksum::finish(self.pseudo + upper_len as u32);
        let field = if tcp { tcp::CHECKSUM } else { UDP_CHECKSUM };
        head[ip + field..][..2].copy_from_slice(&pseudo.to_be_bytes());
        if !tcp {
            head[ip + 4..][..2].copy_from_slice(&(upper_len as u16).to_be_bytes());
        }
        let gso = match (tcp, ipv4) {
            (true, true) => Gso::TcpV4,
            (true, false) => Gso::TcpV6,
            (false, _) => Gso::Udp,
        };
        let (start, offset) = (ip as u16, field as u16);
        Header { checksum: Some((start, offset)), gso, hdr_len: headers as u16, gso_size: self.size as u16 }
    }
}
