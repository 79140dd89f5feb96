//! Encrypted fragments (RFC 7383) on their way to a whole chain, after decryption.

use std::collections::{BTreeMap, VecDeque};

use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::PayloadType;

/// Messages that are kept while fragments are missing; the oldest makes room.
const MAX_MESSAGES: usize = 64;
/// Octets of one message.
const MAX_OCTETS: usize = 256 * 1024;

/// What fragments of one message have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub(super) spis: (IkeSpi, IkeSpi),
    pub(super) message_id: u32,
    pub(super) response: bool,
    pub(super) total: u16,
}

#[derive(Default)]
pub(super) struct Fragments {
    messages: VecDeque<(Key, Message)>,
}

#[derive(Default)]
struct Message {
    first: Option<PayloadType>,
    parts: BTreeMap<u16, Vec<u8>>,
    octets: usize,
}

impl Fragments {
    /// Takes a fragment's plaintext; the whole chain once nothing is missing. `next` counts in the first only.
    pub(super) fn add(
        &mut self,
        key: Key,
        number: u16,
        next: PayloadType,
        part: Vec<u8>,
    ) -> Option<(PayloadType, Vec<u8>)> {
        if number == 0 || number > key.total {
            return None;
        }
        let at = self.messages.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            if self.messages.len() == MAX_MESSAGES {
                self.messages.pop_front();
            }
            self.messages.push_back((key, Message::default()));
            self.messages.len() - 1
        });
        let message = &mut self.messages[at].1;
        if number == 1 {
            message.first = Some(next);
        }
        if message.octets + part.len() <= MAX_OCTETS && !message.parts.contains_key(&number) {
            message.octets += part.len();
            message.parts.insert(number, part);
        }
        let complete = message.parts.len() == usize::from(key.total);
        let first = message.first.filter(|_| complete)?;
        let (_, message) = self.messages.remove(at)?;
        Some((first, message.parts.into_values().flatten().collect()))
    }
}
