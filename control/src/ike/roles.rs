//! Who started what (RFC 7296 2.2, MOBIKE-X profile 1): two questions that must not be mixed up, and therefore two types.

/// Who started an IKE SA, by IKE_SA_INIT or by the rekeying that made it. Decides flags and keys of its messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum OriginalInitiator {
    Us,
    Peer,
}

impl OriginalInitiator {
    pub(super) fn is_us(self) -> bool {
        self == Self::Us
    }
}

/// Who sent the request of an exchange, which either side may do at any time. Decides the keys of the Child SA that it
/// makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExchangeInitiator {
    Us,
    Peer,
}
