//! DSCP and ECN across the tunnel boundary (RFC 6040, RFC 4301 5.1.2).

use mobikex_common::drop::DropReason;
use mobikex_common::sa::CopyDscp;
use mobikex_common::wire::checksum;

/// The ECN bits of a TOS or Traffic Class octet.
const ECN: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// The outer octet for an inner one: ECN is copied (RFC 6040 4.1, normal mode, which IKEv2 implies), DSCP if
/// configured.
pub(super) fn outer(inner: u8, copy: CopyDscp) -> u8 {
    match copy {
        CopyDscp::Out | CopyDscp::Yes => inner,
        CopyDscp::In | CopyDscp::No => inner & ECN,
    }
}

/// The inner octet to forward (RFC 6040 4.2, figure 4).
///
/// # Errors
/// Congestion marked on a packet whose sender does not understand the mark: it has to be lost instead.
pub(super) fn inner(inner: u8, outer: u8, copy: CopyDscp) -> Result<u8, DropReason> {
    let ecn = match (inner & ECN, outer & ECN) {
        (NOT_ECT, CE) => return Err(DropReason::InBadEcn),
        (NOT_ECT, _) => NOT_ECT,
        (CE, _) | (_, CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        (kept, _) => kept,
    };
    let dscp = match copy {
        CopyDscp::In | CopyDscp::Yes => outer,
        CopyDscp::Out | CopyDscp::No => inner,
    };
    Ok(dscp & !ECN | ecn)
}

/// Writes the octet into an IPv4 or IPv6 header; the IPv4 checksum follows, right or wrong as it was.
pub(super) fn rewrite(packet: &mut [u8], tos: u8) {
    match packet {
        [first, old, rest @ ..] if *first >> 4 == 4 && rest.len() >= 10 => {
            let sum = u16::from_be_bytes([rest[8], rest[9]]);
            let sum = checksum::update(sum, &[*first, *old], &[*first, tos]);
            rest[8..10].copy_from_slice(&sum.to_be_bytes());
            *old = tos;
        }
        [first, second, ..] => {
            *first = *first & 0xf0 | tos >> 4;
            *second = *second & 0x0f | tos << 4;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobikex_common::wire::ip::{Fragment, Ipv4Header, Ipv6Header};

    #[test]
    fn rfc6040_figure_4() {
        let drop = None;
        #[rustfmt::skip]
        let table = [
            // outer:    Not-ECT        ECT(0)         ECT(1)         CE
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), drop]),
            (ECT_0,   [Some(ECT_0),   Some(ECT_0),   Some(ECT_1),   Some(CE)]),
            (ECT_1,   [Some(ECT_1),   Some(ECT_1),   Some(ECT_1),   Some(CE)]),
            (CE,      [Some(CE),      Some(CE),      Some(CE),      Some(CE)]),
        ];
        for (from, row) in table {
            for (arriving, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                let result = inner(0xb8 | from, 0x20 | arriving, CopyDscp::Out);
                assert_eq!(result.ok(), expected.map(|ecn| 0xb8 | ecn), "{from:02b} in {arriving:02b}");
            }
        }
    }

    #[test]
    fn dscp_is_copied_as_configured() {
        for (copy, out, into) in [
            (CopyDscp::Out, 0xb9, 0xb9),
            (CopyDscp::In, 0x01, 0x49),
            (CopyDscp::Yes, 0xb9, 0x49),
            (CopyDscp::No, 0x01, 0xb9),
        ] {
            assert_eq!(outer(0xb9, copy), out);
            assert_eq!(inner(0xb9, 0x48, copy), Ok(into));
        }
    }

    #[test]
    fn rewriting_keeps_the_header_valid() {
        let v4 = Ipv4Header {
            tos: 0xb8,
            total_len: 20,
            identification: 7,
            dont_fragment: true,
            fragment: Fragment::default(),
            ttl: 64,
            protocol: 17,
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 0, 2].into(),
        };
        let v6 = Ipv6Header {
            tos: 0xb8,
            flow_label: 0xabcde,
            payload_len: 0,
            next_header: 59,
            hop_limit: 64,
            src: 1.into(),
            dst: 2.into(),
        };
        for tos in 0..=255 {
            let mut packet = v4.emit();
            rewrite(&mut packet, tos);
            assert_eq!(Ipv4Header::parse(&packet).unwrap().0, Ipv4Header { tos, ..v4 });
            let mut packet = v6.emit();
            rewrite(&mut packet, tos);
            assert_eq!(Ipv6Header::parse(&packet).unwrap(), Ipv6Header { tos, ..v6 });
        }
    }
}
