//! IKE messages.

use mobikex_common::wire::ike::{Header, Payload, PayloadType};

use super::chain::{self, Chain, Entry};
use super::fragments::{Fragments, Key};
use super::keys::Keys;
use super::node::Node;

/// What to print on the packet's line, and below it.
pub(super) type Found = (String, Vec<Node>);

/// Takes a message apart.
pub(super) fn found(keys: &Keys, fragments: &mut Fragments, octets: &[u8]) -> Found {
    let header = match Header::parse(octets) {
        Ok(header) => header,
        Err(error) => return ("IKE, malformed".into(), malformed(error, octets)),
    };
    let (spi_i, spi_r) = (header.initiator_spi, header.responder_spi);
    let version = format!("{}.{}", header.major, header.minor);
    let from = if header.flags.initiator { "original initiator" } else { "original responder" };
    let mut nodes = vec![Node::new(
        "header",
        format!("version {version}, spi_i {spi_i}, spi_r {spi_r}, from the {from}, {} octets", octets.len()),
    )];
    if header.major != 2 {
        nodes.push(Node::octets("data", &octets[Header::LEN..]));
        return (format!("IKE version {version}, not decoded"), nodes);
    }
    let kind = if header.flags.response { "response" } else { "request" };
    let name = format!("{} {kind} {}", header.exchange, header.message_id);

    let outer = chain::walk(header.next_payload, octets, Header::LEN);
    let mut summary = outer.summary();
    for entry in &outer.entries {
        match encrypted(entry).map(|part| open(keys, &header, octets, entry, part)) {
            None => nodes.push(entry.node(octets)),
            Some(Err(reason)) => {
                let mut node = entry.node(octets);
                node.inside.insert(0, Node::new("not decrypted", reason));
                nodes.push(node);
            }
            Some(Ok(plain)) => {
                let (inner, node) = inside(fragments, &header, plain);
                summary += &inner;
                nodes.push(node);
            }
        }
    }
    nodes.extend(outer.fault.iter().map(|fault| Node::new("malformed", fault)));
    (format!("{name} [ {summary} ]"), nodes)
}

pub(super) fn malformed(error: impl std::fmt::Display, octets: &[u8]) -> Vec<Node> {
    vec![Node::new("malformed", error), Node::octets("data", octets)]
}

/// An Encrypted payload or fragment: what is inside, its place among the fragments, and octets before the IV.
#[derive(Clone, Copy)]
struct Part {
    next: PayloadType,
    fragment: Option<(u16, u16)>,
    before: usize,
}

fn encrypted(entry: &Entry) -> Option<Part> {
    match entry.payload {
        Ok(Payload::Encrypted { next, .. }) => Some(Part { next, fragment: None, before: 0 }),
        Ok(Payload::EncryptedFragment { next, number, total, .. }) => {
            Some(Part { next, fragment: Some((number, total)), before: 4 })
        }
        _ => None,
    }
}

/// Something decrypted, without its padding.
struct Plain {
    part: Part,
    text: Vec<u8>,
    padding: usize,
}

fn open(
    keys: &Keys,
    header: &Header,
    octets: &[u8],
    entry: &Entry,
    part: Part,
) -> Result<Plain, &'static str> {
    let keys = keys.ike(header.initiator_spi, header.responder_spi).ok_or("no keys for this IKE SA")?;
    let cipher = keys.cipher(header.flags.initiator)?;
    // The ICV covers the message from its first octet, and nothing follows the ICV (RFC 7296 3.14).
    if entry.body.end != octets.len() {
        return Err("octets after the Encrypted payload");
    }
    let (head, body) = octets.split_at(entry.body.start + part.before);
    let (iv, rest) = body.split_at_checked(cipher.iv_len()).ok_or("too short for its algorithm")?;
    let text_len = rest.len().checked_sub(cipher.icv_len()).ok_or("too short for its algorithm")?;
    let (text, icv) = rest.split_at(text_len);
    let mut text = text.to_vec();
    cipher.open(iv, head, &[], &mut text, icv).map_err(|_| "the integrity check failed")?;
    let padding = usize::from(*text.last().ok_or("nothing inside")?);
    let len = text.len().checked_sub(padding + 1).ok_or("more padding than content")?;
    text.truncate(len);
    Ok(Plain { part, text, padding })
}

/// The payloads inside, for the packet's line and below it.
fn inside(fragments: &mut Fragments, header: &Header, plain: Plain) -> (String, Node) {
    let Plain { part, text, padding } = plain;
    let Some((number, total)) = part.fragment else {
        let node = Node::new("SK", format!("decrypted, {padding} octets of padding"));
        return whole(node, &chain::walk(part.next, &text, 0), &text);
    };
    let key = Key {
        spis: (header.initiator_spi, header.responder_spi),
        message_id: header.message_id,
        response: header.flags.response,
        total,
    };
    let node = Node::new("SKF", format!("{number} of {total}, decrypted, {padding} octets of padding"));
    match fragments.add(key, number, part.next, text.clone()) {
        Some((first, text)) => whole(node, &chain::walk(first, &text, 0), &text),
        None => (String::new(), node.with(vec![Node::octets("data", &text)])),
    }
}

fn whole(node: Node, chain: &Chain, text: &[u8]) -> (String, Node) {
    (format!(" {{ {} }}", chain.summary()), node.with(chain.nodes(text)))
}
