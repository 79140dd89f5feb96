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
    let text = check(sa, packet, out)?;
    let seq = sa.next_sequence()?.take(sa.id()).ok_or(DropReason::OutSequenceExhausted)?;
    write(sa, seq, text, out, ivs).map(|len| finish(sa, packet, len, seq))
}

/// Seals `packet` with a number that was reserved before; otherwise as [`seal`]. The number is consumed.
///
/// # Errors
/// As for [`seal`], and when the number was drawn from another SA.
pub fn seal_numbered(
    sa: &OutboundSa,
    number: SequenceNumber,
    packet: &Packet<'_>,
    out: &mut [u8],
    ivs: &mut IvSource,
) -> Result<Sealed, DropReason> {
    let text = check(sa, packet, out)?;
    let seq = number.take(sa.id()).ok_or(DropReason::OutSequenceExhausted)?;
    write(sa, seq, text, out, ivs).map(|len| finish(sa, packet, len, seq))
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
    if sa.sealed_len(message.len()) > out.len() {
        return Err(DropReason::OutTooBig);
    }
    sa.within_limits()?;
    let sequence = sa.next_sequence()?.take(sa.id()).ok_or(DropReason::OutSequenceExhausted)?;
    let len = write(sa, sequence, (NEXT_HEADER_AGGFRAG, message), out, ivs)?;
    Ok(Sealed { len, tos: 0, sequence })
}

/// Whether the outer packet must not be fragmented: the inner one must not (IPv6 never is on its way), and DF is
/// carried outside (RFC 4301 8.1). Then the sender hears of a narrow path instead (RFC 4301 8.2).
pub fn must_stay_whole(sa: &OutboundSa, packet: &Packet<'_>) -> bool {
    let inner = !packet.is_ipv4() || packet.dont_fragment;
    inner && (sa.mode() == Mode::Transport || sa.copy_df())
}

/// Octets of the ESP packet that [`seal`] makes of `packet`.
///
/// # Errors
/// When the packet cannot be protected in the SA's mode.
pub fn sealed_len(sa: &OutboundSa, packet: &Packet<'_>) -> Result<usize, DropReason> {
    Ok(sa.sealed_len(plaintext(sa, packet)?.1.len()))
}

/// Whatever can fail is checked before a number is drawn, so that numbers are not wasted on drops. Returns the
/// Next Header value and what it stands for.
fn check<'a>(sa: &OutboundSa, packet: &Packet<'a>, out: &[u8]) -> Result<(u8, &'a [u8]), DropReason> {
    let text = plaintext(sa, packet)?;
    if sa.sealed_len(text.1.len()) > out.len() {
        return Err(DropReason::OutTooBig);
    }
    sa.within_limits()?;
    Ok(text)
}

/// Counts a packet that was sealed and says what its outer header needs.
fn finish(sa: &OutboundSa, packet: &Packet<'_>, len: usize, sequence: u64) -> Sealed {
    sa.count(packet.total_len);
    let tos = match sa.mode() {
        Mode::Tunnel => ecn::outer(packet.tos, sa.copy_dscp()),
        Mode::Transport => packet.tos,
    };
    Sealed { len, tos, sequence }
}

/// Frames, pads and encrypts; `seq` is spent on this packet. Returns the octets of the ESP packet.
fn write(
    sa: &OutboundSa,
    seq: u64,
    (next_header, payload): (u8, &[u8]),
    out: &mut [u8],
    ivs: &mut IvSource,
) -> Result<usize, DropReason> {
    let cipher = sa.cipher();
    let len = sa.sealed_len(payload.len());
    let out = out.get_mut(..len).ok_or(DropReason::OutTooBig)?;

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
    let (data, trailer) = text.split_at_mut(payload.len());
    data.copy_from_slice(payload);
    let padding = trailer.len() - TRAILER_LEN;
    // Padding counts 1, 2, 3, ... (RFC 4303 2.4); the block length keeps it below 16.
    for (n, octet) in trailer[..padding].iter_mut().enumerate() {
        *octet = n as u8 + 1;
    }
    trailer[padding] = padding as u8;
    trailer[padding + 1] = next_header;

    let covered = Covered::new(sa.spi().to_be_bytes(), seq, sa.esn(), aead);
    cipher
        .seal(iv, covered.head(), covered.tail(), text, icv)
        // Only a text beyond the AEAD's own limit can fail here, far above any IP packet.
        .map_err(|_| DropReason::OutTooBig)?;
    Ok(len)
}

/// What ESP protects of the packet, and the Next Header value for it.
fn plaintext<'a>(sa: &OutboundSa, packet: &Packet<'a>) -> Result<(u8, &'a [u8]), DropReason> {
    match sa.mode() {
        Mode::Tunnel if packet.is_ipv4() => Ok((NEXT_HEADER_IPV4, packet.bytes())),
        Mode::Tunnel => Ok((NEXT_HEADER_IPV6, packet.bytes())),
        Mode::Transport => transport::split(packet),
    }
}
