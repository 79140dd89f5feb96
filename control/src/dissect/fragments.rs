//! Encrypted fragments (RFC 7383) on their way to a whole chain, after decryption.

use std::collections::{BTreeMap, VecDeque};

use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::PayloadType;

/// Messages that are kept while fragments are missing; the oldest makes room.
const MAX_MESSAGES: usize = 64;
/// Fragments of one message; those of the largest datagrams that UDP has would be far fewer.
const MAX_PARTS: usize = 1024;
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
        let room = message.octets + part.len() <= MAX_OCTETS && message.parts.len() < MAX_PARTS;
        if room && !message.parts.contains_key(&number) {
            message.octets += part.len();
            message.parts.insert(number, part);
        }
        let complete = message.parts.len() == usize::from(key.total);
        let first = message.first.filter(|_| complete)?;
        let (_, message) = self.messages.remove(at)?;
        Some((first, message.parts.into_values().flatten().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(message_id: u32, total: u16) -> Key {
        Key { spis: (IkeSpi(1), IkeSpi(2)), message_id, response: false, total }
    }

    #[test]
    fn messages_that_never_become_whole_take_bounded_room() {
        let mut fragments = Fragments::default();
        let mut add = |key, number, len| fragments.add(key, number, PayloadType::N, vec![7; len]);
        for message_id in 0..1000 {
            assert_eq!(add(key(message_id, 2), 1, 10), None);
        }
        // The oldest have made room, the newest are still there.
        assert_eq!(add(key(0, 2), 2, 10), None);
        assert_eq!(add(key(999, 2), 2, 10), Some((PayloadType::N, vec![7; 20])));
        // Too many octets, too many parts.
        assert_eq!(add(key(2000, 2), 1, MAX_OCTETS), None);
        assert_eq!(add(key(2000, 2), 2, 1), None);
        for number in 1..=u16::MAX {
            assert_eq!(add(key(2001, u16::MAX), number, 0), None);
        }
        assert!(fragments.messages.len() <= MAX_MESSAGES);
        assert!(fragments.messages.iter().all(|(_, m)| m.parts.len() <= MAX_PARTS && m.octets <= MAX_OCTETS));
    }
}
