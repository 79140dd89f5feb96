//! Fragments of a message on their way to the whole (RFC 7383 2.6): number, size, memory and time are bounded, and each
//! fragment costs the same however many there are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mobikex_common::wire::ike::{ExchangeType, PayloadType};

/// Fragments of one message. The largest message takes fewer, even in datagrams of 576 octets.
pub(super) const MAX_FRAGMENTS: u16 = 256;
/// Octets of one message (RFC 7383 5).
pub(super) const MAX_OCTETS: usize = 64 * 1024;
/// What a stored fragment takes besides its octets.
const KEEPING: usize = 64;
/// Octets of all messages in pieces together, and of those whose sender has not proven itself yet.
const MAX_MEMORY: usize = 32 * 1024 * 1024;
const MAX_MEMORY_UNPROVEN: usize = MAX_MEMORY / 2;
/// As long as a sender goes on sending a request again, which is what RFC 7383 2.6 recommends.
pub(super) const LIFETIME: Duration = Duration::from_secs(165);

/// What all IKE SAs together hold of messages in pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct FragmentMemory(Arc<AtomicUsize>);

/// The part of it that one message has; given back with the message.
struct Share {
    of: FragmentMemory,
    octets: usize,
}

impl Share {
    /// Takes room for `octets` more, unless there is none left.
    fn grow(&mut self, octets: usize, limit: usize) -> bool {
        // Only the control thread counts here, so nothing comes in between.
        let fits = self.of.0.load(Ordering::Relaxed) + octets <= limit;
        if fits {
            self.of.0.fetch_add(octets, Ordering::Relaxed);
            self.octets += octets;
        }
        fits
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.octets, Ordering::Relaxed);
    }
}

/// Where a fragment says that it belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) message_id: u32,
    pub(super) exchange: ExchangeType,
    pub(super) number: u16,
    pub(super) total: u16,
}

/// What is to be done with a fragment, by its place alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Judged {
    /// It is worth an integrity check.
    New,
    /// It is here already, or a set of smaller ones has taken the place of its own.
    Known,
    /// No sender that obeys RFC 7383 makes such a one.
    Impossible,
}

/// A fragment that has passed the integrity check, without its padding.
pub(super) struct Fragment<'a> {
    pub(super) next: PayloadType,
    pub(super) text: &'a [u8],
    /// Octets of the IKE message that it came in.
    pub(super) datagram: usize,
}

/// A whole message.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Whole {
    /// The type of the first payload.
    pub(super) first: PayloadType,
    /// The payload chain.
    pub(super) text: Vec<u8>,
    /// Octets of the largest IKE message that brought a fragment.
    pub(super) largest: usize,
}

/// One message in pieces.
pub(super) struct Reassembly {
    message_id: u32,
    exchange: ExchangeType,
    total: u16,
    first: PayloadType,
    parts: BTreeMap<u16, Vec<u8>>,
    octets: usize,
    largest: usize,
    expires: Instant,
    share: Share,
}

impl Reassembly {
    fn new(place: Place, now: Instant, memory: &FragmentMemory) -> Self {
        Self {
            message_id: place.message_id,
            exchange: place.exchange,
            total: place.total,
            first: PayloadType::NONE,
            parts: BTreeMap::new(),
            octets: 0,
            largest: 0,
            expires: now + LIFETIME,
            share: Share { of: memory.clone(), octets: 0 },
        }
    }

    /// When its sender will have given up.
    pub(super) fn expires(&self) -> Instant {
        self.expires
    }

    fn is_of(&self, place: Place) -> bool {
        self.message_id == place.message_id
    }
}

/// Judges a fragment before the integrity check (RFC 7383 2.6), so that what is known already costs nothing.
pub(super) fn judge(held: Option<&Reassembly>, place: Place) -> Judged {
    let held = held.filter(|h| h.is_of(place));
    if place.number == 0 || place.number > place.total || place.total > MAX_FRAGMENTS {
        return Judged::Impossible;
    }
    match held {
        Some(held) if held.exchange != place.exchange => Judged::Impossible,
        Some(held) if place.total < held.total => Judged::Known,
        Some(held) if place.total == held.total && held.parts.contains_key(&place.number) => Judged::Known,
        _ => Judged::New,
    }
}

/// Takes a fragment that was judged to be new; the message once nothing is missing. What does not fit is left out, with
/// everything that came before it if the message is too long. `proven` says that the sender is known.
///
/// A larger number of fragments begins anew: the sender has made them smaller (RFC 7383 2.5.2). One message ID gives way to
/// another, which only the window lets come this far.
pub(super) fn add(
    held: &mut Option<Box<Reassembly>>,
    place: Place,
    fragment: &Fragment<'_>,
    (now, proven): (Instant, bool),
    memory: &FragmentMemory,
) -> Option<Whole> {
    if held.as_ref().is_some_and(|h| !h.is_of(place) || place.total > h.total) {
        *held = None;
    }
    let message = held.get_or_insert_with(|| Box::new(Reassembly::new(place, now, memory)));
    let limit = if proven { MAX_MEMORY } else { MAX_MEMORY_UNPROVEN };
    if message.octets + fragment.text.len() > MAX_OCTETS {
        *held = None;
        return None;
    }
    if !message.share.grow(fragment.text.len() + KEEPING, limit) {
        if message.parts.is_empty() {
            *held = None;
        }
        return None;
    }
    if place.number == 1 {
        message.first = fragment.next;
    }
    message.octets += fragment.text.len();
    message.largest = message.largest.max(fragment.datagram);
    message.parts.insert(place.number, fragment.text.to_vec());
    if message.parts.len() < usize::from(message.total) {
        return None;
    }
    let message = *held.take()?;
    let text = message.parts.into_values().flatten().collect();
    Some(Whole { first: message.first, text, largest: message.largest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: u32 = 7;

    fn place(number: u16, total: u16) -> Place {
        Place { message_id: ID, exchange: ExchangeType::IKE_AUTH, number, total }
    }

    /// A message that is being put together, as its IKE SA does it.
    struct Receiver {
        held: Option<Box<Reassembly>>,
        memory: FragmentMemory,
        proven: bool,
        now: Instant,
    }

    impl Receiver {
        fn new() -> Self {
            Self { held: None, memory: FragmentMemory::default(), proven: true, now: Instant::now() }
        }

        fn take(&mut self, place: Place, text: &[u8]) -> Result<Option<Whole>, Judged> {
            match judge(self.held.as_deref(), place) {
                Judged::New => {
                    let next = if place.number == 1 { PayloadType::IDI } else { PayloadType::NONE };
                    let fragment = Fragment { next, text, datagram: text.len() + 60 };
                    let when = (self.now, self.proven);
                    Ok(add(&mut self.held, place, &fragment, when, &self.memory))
                }
                refused => Err(refused),
            }
        }

        fn used(&self) -> usize {
            self.memory.0.load(Ordering::Relaxed)
        }
    }

    proptest! {
        /// Whatever the order and however often each comes, the message is whole exactly when the last one arrives.
        #[test]
        fn any_order_makes_the_same_message(
            text in proptest::collection::vec(any::<u8>(), 1..4000),
            size in 1usize..700,
            order in proptest::collection::vec(any::<u16>(), 0..600),
        ) {
            prop_assume!(text.len() / size < 250);
            let parts: Vec<&[u8]> = text.chunks(size).collect();
            let total = parts.len() as u16;
            let mut receiver = Receiver::new();
            let mut missing: std::collections::BTreeSet<u16> = (1..=total).collect();
            let last: Vec<u16> = (1..=total).rev().collect();
            for number in order.into_iter().map(|n| n % total + 1).chain(last) {
                if missing.is_empty() {
                    break;
                }
                let fresh = missing.remove(&number);
                let outcome = receiver.take(place(number, total), parts[usize::from(number) - 1]);
                if !fresh {
                    prop_assert_eq!(outcome, Err(Judged::Known));
                } else if missing.is_empty() {
                    let largest = parts.iter().map(|p| p.len()).max().unwrap() + 60;
                    let whole = Whole { first: PayloadType::IDI, text: text.clone(), largest };
                    prop_assert_eq!(outcome, Ok(Some(whole)));
                } else {
                    prop_assert_eq!(outcome, Ok(None));
                }
            }
            prop_assert_eq!(receiver.used(), 0);
        }
    }

    #[test]
    fn b8_impossible_numbers_are_refused_before_anything_is_kept() {
        let mut receiver = Receiver::new();
        for (number, total) in [(0, 0), (0, 3), (4, 3), (1, 0), (1, MAX_FRAGMENTS + 1), (u16::MAX, u16::MAX)]
        {
            assert_eq!(
                receiver.take(place(number, total), b"x"),
                Err(Judged::Impossible),
                "{number}/{total}"
            );
        }
        assert!(receiver.held.is_none() && receiver.used() == 0);
    }

    #[test]
    fn b8_a_total_may_grow_and_never_shrink() {
        let mut receiver = Receiver::new();
        receiver.take(place(1, 3), b"aa").unwrap();
        receiver.take(place(2, 3), b"bb").unwrap();
        assert_eq!(receiver.take(place(2, 2), b"evil"), Err(Judged::Known));
        assert_eq!(receiver.take(place(3, 4), b"3"), Ok(None), "smaller ones begin anew");
        assert_eq!(receiver.take(place(3, 3), b"cc"), Err(Judged::Known), "the older set is over");
        for (number, text) in [(1, b"1"), (2, b"2")] {
            assert_eq!(receiver.take(place(number, 4), text), Ok(None));
        }
        assert_eq!(receiver.take(place(4, 4), b"4").unwrap().unwrap().text, b"1234");
    }

    #[test]
    fn b8_the_first_content_of_a_number_stands() {
        let mut receiver = Receiver::new();
        receiver.take(place(1, 2), b"right").unwrap();
        assert_eq!(receiver.take(place(1, 2), b"wrong"), Err(Judged::Known));
        assert_eq!(receiver.take(place(2, 2), b"!").unwrap().unwrap().text, b"right!");
    }

    #[test]
    fn b8_fragments_of_another_exchange_or_message_do_not_mix() {
        let mut receiver = Receiver::new();
        receiver.take(place(1, 2), b"a").unwrap();
        let other = Place { exchange: ExchangeType::INFORMATIONAL, ..place(2, 2) };
        assert_eq!(receiver.take(other, b"b"), Err(Judged::Impossible));
        // The window has moved: what is left of the message before it goes.
        let next = Place { message_id: ID + 1, ..place(2, 2) };
        assert_eq!(receiver.take(next, b"d"), Ok(None));
        assert_eq!(receiver.used(), 1 + KEEPING);
        let next = Place { message_id: ID + 1, ..place(1, 2) };
        assert_eq!(receiver.take(next, b"c").unwrap().unwrap().text, b"cd");
    }

    #[test]
    fn b8_a_message_that_is_too_long_is_dropped_whole() {
        let mut receiver = Receiver::new();
        let part = vec![0; MAX_OCTETS / 4];
        for number in 1..=4 {
            assert_eq!(receiver.take(place(number, 6), &part), Ok(None));
        }
        assert_eq!(receiver.take(place(5, 6), b"x"), Ok(None));
        assert!(receiver.held.is_none());
        assert_eq!(receiver.used(), 0);
    }

    #[test]
    fn b8_memory_of_all_together_is_bounded_and_strangers_do_not_take_it_from_peers() {
        let mut one = Receiver::new();
        one.proven = false;
        let part = vec![0; MAX_OCTETS];
        let mut strangers = Vec::new();
        for _ in 0..1000 {
            one.take(place(1, 2), &part).unwrap();
            strangers.extend(one.held.take());
        }
        assert!(strangers.len() < 257, "{}", strangers.len());
        assert!(one.used() <= MAX_MEMORY_UNPROVEN);
        one.proven = true;
        assert_eq!(one.take(place(1, 2), b"a"), Ok(None));
        assert!(one.take(place(2, 2), b"b").unwrap().is_some());
        // Empty ones are not for nothing either.
        let before = one.used();
        assert_eq!(one.take(place(1, 2), b""), Ok(None));
        assert_eq!(one.used(), before + KEEPING);
        drop((strangers, one.held.take()));
        assert_eq!(one.used(), 0);
    }
}
