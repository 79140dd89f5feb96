//! A chain of payloads that goes on behind a payload that cannot be read. The engine refuses such a message as a whole;
//! who looks at a capture wants to see the rest.

use mobikex_common::wire::WireError;
use mobikex_common::wire::ike::{Payload, PayloadType, parse_chain};

use super::node::Node;
use super::payloads;

/// As many as the engine takes.
const MAX_PAYLOADS: usize = 64;
const HEADER: usize = 4;

/// One payload of a chain.
pub(super) struct Entry {
    pub(super) kind: PayloadType,
    pub(super) critical: bool,
    pub(super) payload: Result<Payload, WireError>,
    /// Where its body lies in the octets.
    pub(super) body: std::ops::Range<usize>,
}

/// The payloads, and why the chain could not be followed to its end, if so.
pub(super) struct Chain {
    pub(super) entries: Vec<Entry>,
    pub(super) fault: Option<String>,
}

/// Follows the chain that begins at `start` in `octets`.
pub(super) fn walk(first: PayloadType, octets: &[u8], start: usize) -> Chain {
    let mut chain = Chain { entries: Vec::new(), fault: None };
    let (mut kind, mut at) = (first, start);
    while kind != PayloadType::NONE {
        if chain.entries.len() == MAX_PAYLOADS {
            chain.fault = Some(format!("more than {MAX_PAYLOADS} payloads"));
            return chain;
        }
        let Some(&[next, flags, high, low]) = octets.get(at..).and_then(<[u8]>::first_chunk) else {
            chain.fault = Some(format!("{kind}: no payload header is left"));
            return chain;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < HEADER || octets.len() - at < length {
            chain.fault =
                Some(format!("{kind}: a length of {length} with {} octets there", octets.len() - at));
            return chain;
        }
        let last = kind == PayloadType::SK || kind == PayloadType::SKF;
        // On its own, a payload is a chain that ends with it; only Encrypted ones name what is inside.
        let mut alone = octets[at..at + length].to_vec();
        alone[0] = if last { next } else { PayloadType::NONE.0 };
        let payload = parse_chain(kind, &alone).and_then(|payloads| {
            payloads.into_iter().next().ok_or(WireError::BadLength { what: "a payload", length })
        });
        let body = at + HEADER..at + length;
        chain.entries.push(Entry { kind, critical: flags & 0x80 != 0, payload, body });
        at += length;
        if last {
            break;
        }
        kind = PayloadType(next);
    }
    if at < octets.len() {
        chain.fault = Some(format!("{} octets after the last payload", octets.len() - at));
    }
    chain
}

impl Chain {
    /// `SA KE No`, with `!` after what could not be read.
    pub(super) fn summary(&self) -> String {
        let one = |entry: &Entry| match &entry.payload {
            Ok(payload) => payload.summary(),
            Err(_) => format!("{}!", entry.kind),
        };
        let mut words: Vec<_> = self.entries.iter().map(one).collect();
        words.extend(self.fault.is_some().then(|| "!".to_string()));
        words.join(" ")
    }

    /// Every payload; `octets` are those that were walked.
    pub(super) fn nodes(&self, octets: &[u8]) -> Vec<Node> {
        let mut nodes: Vec<_> = self.entries.iter().map(|entry| entry.node(octets)).collect();
        nodes.extend(self.fault.iter().map(|fault| Node::new("malformed", fault)));
        nodes
    }
}

impl Entry {
    pub(super) fn node(&self, octets: &[u8]) -> Node {
        let mut node = match &self.payload {
            Ok(payload) => payloads::node(payload),
            Err(error) => Node::new(self.kind.to_string(), format!("malformed: {error}"))
                .with(vec![Node::octets("data", &octets[self.body.clone()])]),
        };
        if self.critical {
            node.name += " (critical)";
        }
        node
    }
}
