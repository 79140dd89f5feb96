//! Inbound: an ESP packet becomes an IP packet (RFC 4303 3.4), checked in the order of RFC 4301 5.2: sequence
//! number, integrity, padding, next header, selectors.

use std::ops::Range;

use mobikex_common::addr::Path;
use mobikex_common::drop::DropReason;
use mobikex_common::sa::Mode;
use mobikex_common::wire::esp::{
    Header, NEXT_HEADER_AGGFRAG, NEXT_HEADER_DUMMY, NEXT_HEADER_IPV4, NEXT_HEADER_IPV6, TRAILER_LEN,
};
use mobikex_common::wire::ip::Packet;

use super::{Authenticated, Covered, ReplayWindow, ecn, transport};
use crate::paths::{Chosen, PathSet};
use crate::published::Guard;
use crate::sad::{InboundSa, Selectors};

/// Octets that must be free in front of the ESP packet, so that transport mode can put an IP header before the
/// payload: an IPv6 header less what the ESP header and the shortest IV leave.
pub const HEADROOM: usize = 24;

/// What the outer header of an ESP packet said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OuterInfo {
    /// Our address and the peer's as we see them; ports count in UDP only.
    pub path: Path,
    /// DSCP and ECN.
    pub tos: u8,
    /// The packet came in UDP (RFC 3948).
    pub encap: bool,
}

/// An authentic ESP packet. It has used up its sequence number whatever is inside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// What was inside.
    pub content: Content,
    /// Its sequence number, with the high half of ESN.
    pub sequence: u64,
    /// It is the newest of the SA so far.
    pub newest: bool,
    /// It came on a path of the SA's set.
    pub on_path: bool,
}

/// What an authentic ESP packet held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// An IP packet that fits the SA, at this place of the buffer.
    Packet(Range<usize>),
    /// An AGGFRAG payload, padding included, at this place of the buffer. It is no traffic of the SA
    /// (draft-ietf-ipsecme-encrypted-esp-ping-03, 4.1) and nothing of it has been looked at.
    Aggfrag(Range<usize>),
    /// Nothing that may be passed on.
    Nothing(DropReason),
}

/// Opens the ESP packet at `esp` in `buffer`, in place: a run of one. [`HEADROOM`] octets before it may be overwritten.
/// The caller has found `sa` by the packet's SPI, and `replay` is its window.
///
/// # Errors
/// Why the packet must be dropped, when it is not authentic or not looked at. Nothing has changed then but the buffer.
pub fn open(
    sa: &InboundSa,
    replay: &mut ReplayWindow,
    buffer: &mut [u8],
    esp: Range<usize>,
    outer: &OuterInfo,
    guard: &Guard,
) -> Result<Opened, DropReason> {
    Opener::new(sa, replay, outer, guard)?.open(buffer, esp)
}

/// Opens a run of packets of one SA that have the same outer header: what is the same for all of them is looked up once,
/// and they are counted together when it is dropped.
pub struct Opener<'a> {
    sa: &'a InboundSa,
    replay: &'a mut ReplayWindow,
    outer: &'a OuterInfo,
    paths: &'a PathSet,
    /// The path of the set on which they come.
    path: Option<Chosen<'a>>,
    /// Authentic ESP packets that are not counted yet, and the inner packets in them.
    outside: Count,
    inside: Count,
}

#[derive(Clone, Copy, Default)]
struct Count {
    packets: usize,
    octets: usize,
}

impl Count {
    fn add(&mut self, octets: usize) {
        self.packets += 1;
        self.octets += octets;
    }
}

impl<'a> Opener<'a> {
    /// The caller has found `sa` by the packets' SPI, and `replay` is its window.
    ///
    /// # Errors
    /// When the SA admits nothing.
    pub fn new(
        sa: &'a InboundSa,
        replay: &'a mut ReplayWindow,
        outer: &'a OuterInfo,
        guard: &'a Guard,
    ) -> Result<Self, DropReason> {
        let paths = sa.addresses().load(guard).ok_or(DropReason::InSelectorMismatch)?;
        let path = paths.find(&outer.path, outer.encap);
        Ok(Self { sa, replay, outer, paths, path, outside: Count::default(), inside: Count::default() })
    }

    /// The addresses of the SA as they are for this run.
    pub fn paths(&self) -> &'a PathSet {
        self.paths
    }

    /// The highest authentic sequence number so far.
    pub fn highest(&self) -> u64 {
        self.replay.highest()
    }

    /// Opens the ESP packet at `esp` in `buffer`, in place. [`HEADROOM`] octets before it may be overwritten.
    ///
    /// # Errors
    /// Why the packet must be dropped, when it is not authentic or not looked at. Nothing has changed then but the buffer.
    pub fn open(&mut self, buffer: &mut [u8], esp: Range<usize>) -> Result<Opened, DropReason> {
        let Self { sa, replay, .. } = self;
        let esp_len = esp.len();
        let packet = buffer.get_mut(esp.clone()).ok_or(DropReason::InTooShort)?;
        let cipher = sa.cipher();
        let overhead = Header::LEN + cipher.iv_len() + cipher.icv_len();
        let text_len = packet.len().checked_sub(overhead).ok_or(DropReason::InTooShort)?;
        // At least one block; whatever is no multiple cannot have been made by a sender (RFC 4303 2.4).
        if text_len < TRAILER_LEN || text_len % cipher.block_len() != 0 {
            return Err(DropReason::InTooShort);
        }
        let header = Header::parse(packet).map_err(|_| DropReason::InTooShort)?;
        if header.spi != sa.spi() {
            return Err(DropReason::InNoSa);
        }
        sa.within_limits()?;
        let seq = if sa.esn() { replay.infer_esn(header.seq) } else { header.seq.into() };
        replay.check(seq)?;

        let (head, rest) = packet.split_at_mut(Header::LEN);
        let (iv, rest) = rest.split_at_mut(cipher.iv_len());
        let (text, icv) = rest.split_at_mut(text_len);
        let covered = Covered::new(head, seq, sa.esn(), cipher.cipher().is_aead());
        cipher.open(iv, covered.head(), covered.tail(), text, icv).map_err(|_| DropReason::InAuthFailed)?;
        let newest = seq > replay.highest();
        replay.commit(Authenticated(seq));
        self.outside.add(esp_len);

        let from = esp.start + Header::LEN + cipher.iv_len();
        let content = content(sa, buffer, from..from + text_len, self.outer, self.paths);
        let content = content.unwrap_or_else(Content::Nothing);
        if let Content::Packet(range) = &content {
            self.inside.add(range.len());
        }
        if sa.is_limited() {
            // What the next packet may do depends on it.
            self.count();
        }
        Ok(Opened { content, sequence: seq, newest, on_path: self.path.is_some() })
    }

    fn count(&mut self) {
        let (outside, inside) = (std::mem::take(&mut self.outside), std::mem::take(&mut self.inside));
        if outside.packets == 0 {
            return;
        }
        self.sa.authentic(self.replay.highest());
        if let Some(path) = self.path {
            path.counters.count_in(outside.packets, outside.octets);
        }
        if inside.packets > 0 {
            self.sa.count(inside.packets, inside.octets);
        }
    }
}

impl Drop for Opener<'_> {
    fn drop(&mut self) {
        self.count();
    }
}

/// Looks into the decrypted text, trailer included.
#[inline]
fn content(
    sa: &InboundSa,
    buffer: &mut [u8],
    text: Range<usize>,
    outer: &OuterInfo,
    paths: &PathSet,
) -> Result<Content, DropReason> {
    let start = text.start;
    let (payload_len, next_header) = unpad(&buffer[text])?;
    let payload = start..start + payload_len;
    match next_header {
        NEXT_HEADER_DUMMY => return Err(DropReason::InDummy),
        NEXT_HEADER_AGGFRAG => return Ok(Content::Aggfrag(payload)),
        _ => {}
    }
    match sa.mode() {
        Mode::Tunnel => {
            tunnelled(sa, paths.selectors(), buffer, payload, next_header, outer.tos).map(Content::Packet)
        }
        Mode::Transport => {
            let (src, dst) = sa.transport_addresses(outer, paths).ok_or(DropReason::InSourceMismatch)?;
            let first = start.checked_sub(transport::header_len(src)).ok_or(DropReason::InTooShort)?;
            let range = first..payload.end;
            let packet = &mut buffer[range.clone()];
            transport::rebuild(packet, src, dst, outer.tos, next_header)?;
            let inner = Packet::parse(packet).map_err(|_| DropReason::InBadInner)?;
            if inner.is_fragment() {
                return Err(DropReason::InBadNextHeader);
            }
            if !paths.selectors().match_inbound(&inner) {
                return Err(DropReason::InSelectorMismatch);
            }
            if outer.encap {
                transport::repair_checksum(packet);
            }
            Ok(Content::Packet(range))
        }
    }
}

/// The inner packet of tunnel mode; octets after its end are TFC padding (RFC 4303 2.7) and left out.
#[inline]
fn tunnelled(
    sa: &InboundSa,
    selectors: &Selectors,
    buffer: &mut [u8],
    payload: Range<usize>,
    next_header: u8,
    outer_tos: u8,
) -> Result<Range<usize>, DropReason> {
    if !matches!(next_header, NEXT_HEADER_IPV4 | NEXT_HEADER_IPV6) {
        return Err(DropReason::InBadNextHeader);
    }
    let start = payload.start;
    let inner = Packet::parse(&buffer[payload]).map_err(|_| DropReason::InBadInner)?;
    if inner.is_ipv4() != (next_header == NEXT_HEADER_IPV4) {
        return Err(DropReason::InBadNextHeader);
    }
    if !selectors.match_inbound(&inner) {
        return Err(DropReason::InSelectorMismatch);
    }
    let tos = ecn::inner(inner.tos, outer_tos, sa.copy_dscp())?;
    let (before, range) = (inner.tos, start..start + inner.total_len);
    if tos != before {
        ecn::rewrite(&mut buffer[range.clone()], tos);
    }
    Ok(range)
}

/// Verifies the padding (RFC 4303 2.4: the receiver SHOULD inspect it) and returns the length of what it follows
/// and the Next Header.
fn unpad(text: &[u8]) -> Result<(usize, u8), DropReason> {
    let [rest @ .., pad_len, next_header] = text else { return Err(DropReason::InBadPadding) };
    let payload_len = rest.len().checked_sub(usize::from(*pad_len)).ok_or(DropReason::InBadPadding)?;
    let counted = rest[payload_len..].iter().zip(1u8..).all(|(octet, n)| *octet == n);
    if counted { Ok((payload_len, *next_header)) } else { Err(DropReason::InBadPadding) }
}
