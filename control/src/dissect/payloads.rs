//! Every payload in full.

use mobikex_common::wire::ike::{
    CertEncoding, ConfigAttribute, ConfigValue, IdType, Identification, Payload, Proposal, Transform,
};

use super::node::{Node, hex, text};
use super::{names, notify};

/// A payload that could be read.
pub(super) fn node(payload: &Payload) -> Node {
    let kind = payload.kind().to_string();
    match payload {
        Payload::Sa(proposals) => Node::new(kind, "").with(proposals.iter().map(proposal).collect()),
        Payload::Ke { method, data } => Node::new(kind, names::key_exchange(*method)).with(data_of(data)),
        Payload::IdI(id) | Payload::IdR(id) => identification(kind, id),
        Payload::Cert { encoding, data } | Payload::CertReq { encoding, data } => {
            certificate(kind, *encoding, data)
        }
        Payload::Auth(auth) => Node::new(kind, auth.method).with(data_of(&auth.data)),
        Payload::Nonce(data) | Payload::Eap(data) => Node::octets(kind, data),
        Payload::Notify(n) => {
            let mut inside = Vec::new();
            if n.protocol.0 != 0 || !n.spi.is_empty() {
                inside.push(Node::new("protocol", n.protocol));
                inside.push(Node::octets("spi", &n.spi));
            }
            inside.extend(notify::data(n));
            Node::new(kind, format!("{} ({})", n.kind, n.kind.0)).with(inside)
        }
        Payload::Delete(delete) => {
            let spis = delete.spis.iter().map(|spi| Node::octets("spi", spi)).collect();
            Node::new(kind, delete.protocol).with(spis)
        }
        Payload::VendorId(data) => Node::new(kind, format!("{} \"{}\"", hex(data), text(data))),
        Payload::TsI(selectors) | Payload::TsR(selectors) => {
            Node::new(kind, "").with(selectors.iter().map(|ts| Node::new("selector", ts)).collect())
        }
        Payload::Cp(cp) => Node::new(kind, cp.kind).with(cp.attributes.iter().map(attribute).collect()),
        Payload::Encrypted { body, .. } => Node::octets(kind, body),
        Payload::EncryptedFragment { number, total, body, .. } => {
            Node::new(kind, format!("{number} of {total}")).with(data_of(body))
        }
        Payload::Unknown { body, .. } => {
            Node::new(format!("payload {}", payload.kind().0), "").with(data_of(body))
        }
    }
}

fn data_of(data: &[u8]) -> Vec<Node> {
    vec![Node::octets("data", data)]
}

fn proposal(p: &Proposal) -> Node {
    let mut inside = Vec::new();
    if !p.spi.is_empty() {
        inside.push(Node::octets("spi", &p.spi));
    }
    inside.extend(p.transforms.iter().map(transform));
    Node::new(format!("proposal {}", p.number), p.protocol).with(inside)
}

fn transform(t: &Transform) -> Node {
    let bits = t.key_bits.map(|bits| format!(", {bits} bits")).unwrap_or_default();
    let attributes = t.other_attributes.iter();
    let attributes =
        attributes.map(|(kind, value)| Node::octets(format!("attribute {}", kind & 0x7fff), value)).collect();
    Node::new(t.kind.to_string(), names::transform(t.kind, t.id) + &bits).with(attributes)
}

fn identification(kind: String, id: &Identification) -> Node {
    let textual =
        matches!(id.kind, IdType::IPV4_ADDR | IdType::IPV6_ADDR | IdType::FQDN | IdType::RFC822_ADDR);
    // What is no text is shortened for logs; here it is shown in full.
    let inside = if textual { Vec::new() } else { data_of(&id.data) };
    Node::new(kind, format!("{} {}", id.kind, text(id.to_string().as_bytes()))).with(inside)
}

fn certificate(kind: String, encoding: CertEncoding, data: &[u8]) -> Node {
    Node::new(kind, encoding).with(data_of(data))
}

fn attribute(a: &ConfigAttribute) -> Node {
    let name = a.kind.to_string();
    match a.read() {
        Ok(Some(ConfigValue::Text(octets))) => Node::new(name, text(&octets)),
        Ok(Some(value)) => Node::new(name, value),
        // Of another type than those that are known, or not what its type says.
        Ok(None) | Err(_) => Node::new(name, hex(&a.value)),
    }
}
