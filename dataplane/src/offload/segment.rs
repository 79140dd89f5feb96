//! From a super-packet to the packets that it stands for, each written straight to where it is sealed.

use mobikex_common::drop::DropReason;
use mobikex_common::wire::ip::{Ipv4Header, Ipv6Header, Packet};
use mobikex_common::wire::virtio::{Gso, Header};
use mobikex_common::wire::{checksum, tcp, udp};

/// Offset of the checksum in a UDP header.
const UDP_CHECKSUM: usize = 6;

/// The packets that one read of a TUN device stands for: often one, which is taken as it is.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    packet: Packet<'a>,
    kind: Kind,
    /// Octets of headers that every packet repeats.
    headers: usize,
    /// Payload octets of each packet but the last.
    size: usize,
    count: usize,
    /// Partial sum of the pseudo-header, less the length.
    pseudo: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// One packet, written as it is.
    Whole,
    Tcp,
    /// With a checksum, or without one in IPv4 (RFC 768).
    Udp(bool),
}

impl<'a> Segments<'a> {
    /// What `packet`, read with `header` before it, stands for. A checksum that a packet of one still needs must be
    /// there already ([`complete_checksum`]).
    ///
    /// # Errors
    /// When header and packet contradict each other.
    pub fn new(header: &Header, packet: Packet<'a>) -> Result<Self, DropReason> {
        let whole =
            Self { packet, kind: Kind::Whole, headers: 0, size: packet.total_len, count: 1, pseudo: 0 };
        let bad = DropReason::OutBadOffload;
        let upper = packet.payload();
        let (protocol, field, upper_len) = match (header.gso, packet.is_ipv4()) {
            (Gso::None, _) => return Ok(whole),
            (Gso::TcpV4, true) | (Gso::TcpV6, false) => {
                (tcp::PROTOCOL, tcp::CHECKSUM, tcp::header_len(upper).ok_or(bad)?)
            }
            (Gso::Udp, _) => (udp::PROTOCOL, UDP_CHECKSUM, udp::Header::LEN),
            _ => return Err(bad),
        };
        let headers = packet.header_len + upper_len;
        let (size, payload) = (usize::from(header.gso_size), upper.len().saturating_sub(upper_len));
        if packet.protocol != protocol || packet.is_fragment() || size == 0 || payload == 0 {
            return Err(bad);
        }
        let sum_at = header.checksum.map(|(start, offset)| (usize::from(start), usize::from(offset)));
        if sum_at.is_some_and(|at| at != (packet.header_len, field)) {
            return Err(bad);
        }
        let without = packet.is_ipv4() && sum_at.is_none() && upper[field..field + 2] == [0, 0];
        let kind = if protocol == tcp::PROTOCOL { Kind::Tcp } else { Kind::Udp(!without) };
        let pseudo = checksum::pseudo_header(packet.src, packet.dst, protocol, 0);
        Ok(Self { kind, headers, size, count: payload.div_ceil(size), pseudo, ..whole })
    }

    /// How many packets, at least one.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Octets of packet `index`.
    pub fn len(&self, index: usize) -> usize {
        let payload = self.packet.total_len - self.headers;
        self.headers + self.size.min(payload - (index * self.size).min(payload))
    }

    /// Octets of the longest packet, which the first one is.
    pub fn longest(&self) -> usize {
        self.len(0)
    }

    /// Octets of the first `count` packets together.
    pub fn octets(&self, count: usize) -> usize {
        count * self.headers + (count * self.size).min(self.packet.total_len - self.headers)
    }

    /// Writes packet `index` without its first `skip` octets to the front of `out`. What is left out is nothing or
    /// at least the fixed IP header.
    ///
    /// # Panics
    /// When `out` is shorter than that or there is no such packet.
    pub fn write(&self, index: usize, skip: usize, out: &mut [u8]) {
        let bytes = self.packet.bytes();
        if self.kind == Kind::Whole {
            let bytes = &bytes[skip..];
            out[..bytes.len()].copy_from_slice(bytes);
            return;
        }
        let len = self.len(index);
        let (head, body) = out[..len - skip].split_at_mut(self.headers - skip);
        head.copy_from_slice(&bytes[skip..self.headers]);
        let sum = checksum::copy_and_sum(body, &bytes[self.headers + index * self.size..][..body.len()], 0);
        let (ip, upper) = head.split_at_mut(self.packet.header_len - skip);
        if skip == 0 {
            self.fix_ip(ip, index, len);
        }
        let upper_len = len - self.packet.header_len;
        let sum = sum + self.pseudo + upper_len as u32;
        match self.kind {
            Kind::Tcp => self.fix_tcp(upper, index, sum),
            _ => self.fix_udp(upper, upper_len, sum),
        }
    }

    fn fix_ip(&self, ip: &mut [u8], index: usize, len: usize) {
        if !self.packet.is_ipv4() {
            ip[4..6].copy_from_slice(&((len - Ipv6Header::LEN) as u16).to_be_bytes());
            return;
        }
        ip[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        let id = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(index as u16);
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        ip[10..12].fill(0);
        let sum = checksum::finish(checksum::sum(ip, 0));
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    /// The sequence number goes on; what ends the stream or asks for attention belongs to the last segment, that the
    /// window was reduced to the first (RFC 3168 6.1.2).
    fn fix_tcp(&self, header: &mut [u8], index: usize, sum: u32) {
        let sequence = tcp::sequence(header).wrapping_add((index * self.size) as u32);
        header[tcp::SEQUENCE..][..4].copy_from_slice(&sequence.to_be_bytes());
        if index + 1 < self.count {
            header[tcp::FLAGS] &= !(tcp::FIN | tcp::PSH);
        }
        if index > 0 {
            header[tcp::FLAGS] &= !tcp::CWR;
        }
        header[tcp::CHECKSUM..][..2].fill(0);
        let sum = checksum::finish(checksum::sum(header, sum));
        header[tcp::CHECKSUM..][..2].copy_from_slice(&sum.to_be_bytes());
    }

    fn fix_udp(&self, header: &mut [u8], len: usize, sum: u32) {
        header[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        header[UDP_CHECKSUM..].fill(0);
        if self.kind == Kind::Udp(true) {
            let sum = not_none(checksum::finish(checksum::sum(header, sum)));
            header[UDP_CHECKSUM..].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// Computes the checksum that a packet as read from a TUN device still needs. Those of a super-packet are computed as
/// it is cut.
///
/// # Errors
/// When the header names a place outside the packet.
pub fn complete_checksum(header: &Header, packet: &mut [u8]) -> Result<(), DropReason> {
    let (Gso::None, Some((start, offset))) = (header.gso, header.checksum) else { return Ok(()) };
    let (start, offset) = (usize::from(start), usize::from(offset));
    // An IP header at least is not covered; without it the place of a checksum makes no sense.
    let covered = packet.get_mut(start..).filter(|_| start >= Ipv4Header::LEN);
    let covered = covered.filter(|covered| offset + 2 <= covered.len()).ok_or(DropReason::OutBadOffload)?;
    let sum = not_none(checksum::finish(checksum::sum(covered, 0)));
    covered[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

/// A computed zero is sent as all ones, because zero means "none" in UDP (RFC 768); elsewhere both say the same.
fn not_none(sum: u16) -> u16 {
    if sum == 0 { u16::MAX } else { sum }
}
