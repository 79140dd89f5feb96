//! Outbound: an IP packet becomes an ESP packet (RFC 4303 3.3).

use mobikex_common::drop::DropReason;
use mobikex_common::sa::Mode;
use mobikex_common::wire::esp::{Header, NEXT_HEADER_IPV4, NEXT_HEADER_IPV6, TRAILER_LEN};
use mobikex_common::wire::ip::Packet;

use super::{Covered, IvSource, ecn, transport};
use crate::paths;
use crate::sad::{OutboundSa, SequenceNumber};

/// An ESP packet that is ready to be sent, and what its outer header must say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// Octets of the ESP packet, from the start of the output buffer.
    pub len: usize,
    /// DSCP and ECN of the outer header.
    pub tos: u8,
    /// Don't Fragment of an outer IPv4 header.
    pub df: bool,
    /// Identifies the packet's flow, to choose a path.
    pub flow_hash: u64,
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
    // Whatever can fail is checked before a number is drawn, so that numbers are not wasted on drops.
    let (_, payload) = plaintext(sa, packet)?;
    if sa.sealed_len(payload.len()) > out.len() {
        return Err(DropReason::OutTooBig);
    }
    sa.within_limits()?;
    seal_numbered(sa, sa.next_sequence()?, packet, out, ivs)
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
    let (next_header, payload) = plaintext(sa, packet)?;
    sa.within_limits()?;
    let seq = number.take(sa.id()).ok_or(DropReason::OutSequenceExhausted)?;
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
    sa.count(packet.total_len);
    let (tos, df) = match sa.mode() {
        Mode::Tunnel => {
            let df = sa.copy_df() && packet.is_ipv4() && packet.dont_fragment;
            (ecn::outer(packet.tos, sa.copy_dscp()), df)
        }
        Mode::Transport => (packet.tos, packet.dont_fragment),
    };
    Ok(Sealed { len, tos, df, flow_hash: paths::flow_hash(packet), sequence: seq })
}

/// What ESP protects of the packet, and the Next Header value for it.
fn plaintext<'a>(sa: &OutboundSa, packet: &Packet<'a>) -> Result<(u8, &'a [u8]), DropReason> {
    match sa.mode() {
        Mode::Tunnel if packet.is_ipv4() => Ok((NEXT_HEADER_IPV4, packet.bytes())),
        Mode::Tunnel => Ok((NEXT_HEADER_IPV6, packet.bytes())),
        Mode::Transport => transport::split(packet),
    }
}
