//! Outbound: an IP packet becomes an ESP packet (RFC 4303 3.3).

use mobikex_common::drop::DropReason;
use mobikex_common::sa::Mode;
use mobikex_common::wire::esp::{
    Header, NEXT_HEADER_AGGFRAG, NEXT_HEADER_IPV4, NEXT_HEADER_IPV6, TRAILER_LEN,
};
use mobikex_common::wire::ip::Packet;

use super::{Covered, IvSource, ecn, transport};
use crate::sad::{OutboundSa, SequenceNumber};

/// An ESP packet that is ready to be sent, and what its outer header must say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// Octets of the ESP packet, from the start of the output buffer.
    pub len: usize,
    /// DSCP and ECN of the outer header.
    pub tos: u8,
    /// The sequence number used.
    pub sequence: u64,
}

/// Seals `packet` for `sa` into `out`, drawing the next sequence number. The caller has matched the packet to
/// the SA's selectors.
///
/// # Errors
/// When the SA is at its end, the packet cannot be protected in its mode, or `out` is too short.
pub fn seal(
    sa: &OutboundSa,
    packet: &Packet<'_>,
    out: &mut [u8],
    ivs: &mut IvSource,
) -> Result<Sealed, DropReason> {
    let frame = frame(sa, packet)?;
    let text = &packet.bytes()[frame.skip..];
    // Whatever can fail is checked before a number is drawn, so that numbers are not wasted on drops.
    let out = room(sa, text.len(), out)?;
    sa.admit(1, packet.total_len)?;
    let sequence = sa.next_sequence()?.take(sa.id()).ok_or(DropReason::OutSequenceExhausted)?;
    out[sa.text_offset()..][..text.len()].copy_from_slice(text);
    write(sa, sequence, frame.next_header, text.len(), out, ivs)?;
    sa.count(1, packet.total_len);
    Ok(Sealed { len: out.len(), tos: frame.tos, sequence })
}

/// What sealing needs to know of a packet, the same for all packets that a super-packet stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    next_header: u8,
    /// Octets at the packet's front that stay outside ESP: the IP header in transport mode.
    pub skip: usize,
    /// DSCP and ECN of the outer header.
    pub tos: u8,
}

/// How to seal `packet`. The caller has matched it to the SA's selectors.
///
/// # Errors
/// When the packet cannot be protected in the SA's mode.
pub fn frame(sa: &OutboundSa, packet: &Packet<'_>) -> Result<Frame, DropReason> {
    let (next_header, text) = plaintext(sa, packet)?;
    let tos = match sa.mode() {
        Mode::Tunnel => ecn::outer(packet.tos, sa.copy_dscp()),
        Mode::Transport => packet.tos,
    };
    Ok(Frame { next_header, skip: packet.total_len - text.len(), tos })
}

/// Seals in place, with a number that was reserved before, which is consumed. `out` is just the ESP packet:
/// [`OutboundSa::sealed_len`] octets, of which the plaintext, `len` octets, is there already from
/// [`OutboundSa::text_offset`] on. The packet is not counted.
///
/// # Errors
/// When the number was drawn from another SA or a length does not fit.
pub fn seal_in_place(
    sa: &OutboundSa,
    number: SequenceNumber,
    frame: &Frame,
    len: usize,
    out: &mut [u8],
    ivs: &mut IvSource,
) -> Result<(), DropReason> {
    let seq = number.take(sa.id()).ok_or(DropReason::OutSequenceExhausted)?;
    write(sa, seq, frame.next_header, len, out, ivs)
}

/// Seals an ESP echo in its network form (draft-ietf-ipsecme-encrypted-esp-ping-03, 4). It is no traffic of the SA
/// and not counted as such, but none goes out when the SA is at its end.
///
/// # Errors
/// When the SA is at its end or `out` is too short.
pub fn seal_echo(
    sa: &OutboundSa,
    message: &[u8],
    out: &mut [u8],
    ivs: &mut IvSource,
) -> Result<Sealed, DropReason> {
    let out = room(sa, message.len(), out)?;
    sa.admit(1, message.len())?;
    let sequence = sa.next_sequence()?.take(sa.id()).ok_or(DropReason::OutSequenceExhausted)?;
    out[sa.text_offset()..][..message.len()].copy_from_slice(message);
    write(sa, sequence, NEXT_HEADER_AGGFRAG, message.len(), out, ivs)?;
    Ok(Sealed { len: out.len(), tos: 0, sequence })
}

/// Whether the outer packet must not be fragmented: the inner one must not (IPv6 never is on its way), and DF is
/// carried outside (RFC 4301 8.1). Then the sender hears of a narrow path instead (RFC 4301 8.2).
pub fn must_stay_whole(sa: &OutboundSa, packet: &Packet<'_>) -> bool {
    let inner = !packet.is_ipv4() || packet.dont_fragment;
    inner && (sa.mode() == Mode::Transport || sa.copy_df())
}

/// The part of `out` for the ESP packet around `len` octets of plaintext.
fn room<'a>(sa: &OutboundSa, len: usize, out: &'a mut [u8]) -> Result<&'a mut [u8], DropReason> {
    out.get_mut(..sa.sealed_len(len)).ok_or(DropReason::OutTooBig)
}

/// Frames, pads and encrypts the plaintext that is in place in `out`; `seq` is spent on this packet.
fn write(
    sa: &OutboundSa,
    seq: u64,
    next_header: u8,
    len: usize,
    out: &mut [u8],
    ivs: &mut IvSource,
) -> Result<(), DropReason> {
    let cipher = sa.cipher();
    if out.len() != sa.sealed_len(len) {
        return Err(DropReason::OutTooBig);
    }
    let (header, rest) = out.split_at_mut(Header::LEN);
    let (iv, rest) = rest.split_at_mut(cipher.iv_len());
    let (text, icv) = rest.split_at_mut(rest.len() - cipher.icv_len());
    header.copy_from_slice(&Header { spi: sa.spi(), seq: seq as u32 }.emit());
    let aead = cipher.cipher().is_aead();
    if aead {
        // The counter is unique for the key by construction, with or without ESN (RFC 4106 3.1, RFC 7634 2).
        iv.copy_from_slice(&seq.to_be_bytes());
    } else {
        ivs.fill(iv);
    }
    let trailer = &mut text[len..];
    let padding = trailer.len() - TRAILER_LEN;
    // Padding counts 1, 2, 3, ... (RFC 4303 2.4); the block length keeps it below 16.
    for (n, octet) in trailer[..padding].iter_mut().enumerate() {
        *octet = n as u8 + 1;
    }
    trailer[padding] = padding as u8;
    trailer[padding + 1] = next_header;

    let covered = Covered::new(header, seq, sa.esn(), aead);
    cipher
        .seal(iv, covered.head(), covered.tail(), text, icv)
        // Only a text beyond the AEAD's own limit can fail here, far above any IP packet.
        .map_err(|_| DropReason::OutTooBig)
}

/// What ESP protects of the packet, and the Next Header value for it.
fn plaintext<'a>(sa: &OutboundSa, packet: &Packet<'a>) -> Result<(u8, &'a [u8]), DropReason> {
    match sa.mode() {
        Mode::Tunnel if packet.is_ipv4() => Ok((NEXT_HEADER_IPV4, packet.bytes())),
        Mode::Tunnel => Ok((NEXT_HEADER_IPV6, packet.bytes())),
        Mode::Transport => transport::split(packet),
    }
}
