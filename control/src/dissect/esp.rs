//! ESP packets.

use mobikex_common::wire::esp::{Header, NEXT_HEADER_DUMMY, NEXT_HEADER_IPV4, NEXT_HEADER_IPV6, TRAILER_LEN};
use mobikex_common::wire::ip::Packet;

use super::keys::{EspKeys, Keys};
use super::message::{Found, malformed};
use super::names;
use super::node::Node;

/// Takes an ESP packet apart.
pub(super) fn found(keys: &Keys, octets: &[u8]) -> Found {
    let header = match Header::parse(octets) {
        Ok(header) => header,
        Err(error) => return ("ESP, malformed".into(), malformed(error, octets)),
    };
    let name = format!("ESP spi {} seq {}", header.spi, header.seq);
    let mut candidates = keys.esp.iter().filter(|k| k.spi == header.spi).peekable();
    if candidates.peek().is_none() {
        return (format!("{name}, {} octets", octets.len()), Vec::new());
    }
    match candidates.find_map(|keys| open(keys, header, octets)) {
        Some(text) => inside(&name, &text),
        None => (format!("{name}, no key fits"), vec![Node::octets("data", &octets[Header::LEN..])]),
    }
}

/// The plaintext with its trailer. Of ESN only sequence numbers below 2^32 are opened: the upper half is not on the
/// wire.
fn open(keys: &EspKeys, header: Header, octets: &[u8]) -> Option<Vec<u8>> {
    let cipher = keys.cipher().ok()?;
    let (iv, rest) = octets[Header::LEN..].split_at_checked(cipher.iv_len())?;
    let (text, icv) = rest.split_at(rest.len().checked_sub(cipher.icv_len())?);
    let variants = match keys.esn {
        Some(esn) => vec![esn],
        None => vec![false, true],
    };
    variants.into_iter().find_map(|esn| {
        // RFC 4303 2.2.1, RFC 4106 5: an AEAD has all 64 bits in its AAD, a separate MAC the upper half at the end.
        let (spi, high, low) = (header.spi.to_be_bytes(), [0; 4], header.seq.to_be_bytes());
        let (head, tail) = match (esn, cipher.cipher().is_aead()) {
            (false, _) => ([spi, low].concat(), &[][..]),
            (true, true) => ([spi, high, low].concat(), &[][..]),
            (true, false) => ([spi, low].concat(), &high[..]),
        };
        let mut text = text.to_vec();
        cipher.open(iv, &head, tail, &mut text, icv).ok().map(|()| text)
    })
}

fn inside(name: &str, text: &[u8]) -> Found {
    let trailer = text.split_last_chunk::<TRAILER_LEN>();
    let payload = trailer.and_then(|(rest, [padding, next])| {
        Some((rest.get(..rest.len().checked_sub(usize::from(*padding))?)?, *padding, *next))
    });
    let Some((payload, padding, next)) = payload else {
        return (format!("{name}, malformed"), malformed("more padding than content", text));
    };
    let what = match next {
        NEXT_HEADER_DUMMY => "dummy packet".into(),
        NEXT_HEADER_IPV4 | NEXT_HEADER_IPV6 => match Packet::parse(payload) {
            Ok(packet) => ip(&packet),
            Err(error) => format!("malformed inner packet: {error}"),
        },
        next => names::protocol(next),
    };
    let nodes = vec![
        Node::new("trailer", format!("{padding} octets of padding, next header {next}")),
        Node::octets("data", payload),
    ];
    (format!("{name} {{ {what}, {} octets }}", payload.len()), nodes)
}

/// An inner packet in a few words.
fn ip(packet: &Packet<'_>) -> String {
    let name = names::protocol(packet.protocol);
    match packet.ports {
        Some((from, to)) if matches!(packet.protocol, 6 | 17 | 132) => {
            format!("{name} {} port {from} > {} port {to}", packet.src, packet.dst)
        }
        _ => format!("{name} {} > {}", packet.src, packet.dst),
    }
}
