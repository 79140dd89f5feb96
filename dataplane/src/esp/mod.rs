//! ESP (RFC 4303) as pure functions: [`seal()`] an IP packet for an SA, [`open()`] what came from the peer, one by one or in runs.

mod ecn;
mod open;
mod replay;
mod seal;
mod transport;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

pub use open::{Content, HEADROOM, Opened, Opener, OuterInfo, open};
pub use replay::{ReplayTable, ReplayWindow, WINDOW_MAX, WINDOW_MIN};
pub use seal::{Frame, Sealed, frame, must_stay_whole, seal, seal_echo, seal_in_place};

/// Proof that the packet with this sequence number passed the integrity check. Only [`Opener`] makes one, so a
/// replay window cannot move on the word of an unauthenticated packet.
#[derive(Debug)]
pub struct Authenticated(u64);

impl Authenticated {
    /// The packet's sequence number, with the high half of ESN.
    pub fn sequence(&self) -> u64 {
        self.0
    }

    #[cfg(test)]
    pub(crate) fn for_test(seq: u64) -> Self {
        Self(seq)
    }
}

/// Unpredictable IVs for AES-CBC (RFC 3602 3). AEADs do not draw from it: their IV is the sequence number.
pub struct IvSource(ChaCha20Rng);

impl IvSource {
    /// Seeded by the operating system; one per worker.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn from_system() -> Result<Self, getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        Ok(Self::from_seed(seed))
    }

    /// Reproducible, for tests and benchmarks.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha20Rng::from_seed(seed))
    }

    fn fill(&mut self, iv: &mut [u8]) {
        self.0.fill_bytes(iv);
    }
}

/// What the ICV covers beside the ciphertext: before it (or, for an AEAD, as associated data) and after it. That is
/// the header as it is in the packet, and with ESN also the high half of the number, which is not sent: in the middle
/// of an AEAD's associated data (RFC 4106 5), at the end of what an HMAC covers (RFC 4303 3.3.2.1).
struct Covered<'a> {
    header: &'a [u8],
    /// With ESN and an AEAD, in the header's place.
    extended: Option<[u8; 12]>,
    /// With ESN and an HMAC.
    high: Option<[u8; 4]>,
}

impl<'a> Covered<'a> {
    /// `header` is the SPI and the low half of `seq`.
    #[inline]
    fn new(header: &'a [u8], seq: u64, esn: bool, aead: bool) -> Self {
        let high = ((seq >> 32) as u32).to_be_bytes();
        let extended = (esn && aead).then(|| {
            let mut head = [0; 12];
            let (spi, low) = header.split_at(4);
            head[..4].copy_from_slice(spi);
            head[4..8].copy_from_slice(&high);
            head[8..].copy_from_slice(low);
            head
        });
        Self { header, extended, high: (esn && !aead).then_some(high) }
    }

    #[inline]
    fn head(&self) -> &[u8] {
        self.extended.as_ref().map_or(self.header, |head| head)
    }

    #[inline]
    fn tail(&self) -> &[u8] {
        self.high.as_ref().map_or(&[], |high| high)
    }
}

#[cfg(test)]
mod tests;
