//! The outbound half of a Child SA, and its sequence numbers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mobikex_common::crypto::{CryptoError, PacketCipher};
use mobikex_common::drop::DropReason;
use mobikex_common::sa::{ChildSaId, ChildSaParams, CopyDscp, Mode, PolicyId};
use mobikex_common::spi::Spi;
use mobikex_common::wire::esp::{Header, TRAILER_LEN};

use super::{Events, Limits, SaEvent, limits};
use crate::counters::SaCounters;
use crate::paths::Addresses;

/// Workers at most.
pub(crate) const WORKERS_MAX: usize = 256;

/// Packets to the peer. All but counters, numbers, addresses and selectors is fixed when the SA is made.
pub struct OutboundSa {
    cipher: PacketCipher,
    spi: Spi,
    id: ChildSaId,
    policy: PolicyId,
    mode: Mode,
    esn: bool,
    copy_df: bool,
    copy_dscp: CopyDscp,
    tfc_padding: u16,
    limits: Limits,
    addresses: Arc<Addresses>,
    /// A bit for each worker whose next packet shall be reported. Hardly ever written.
    asking: [AtomicU64; WORKERS_MAX / 64],
    used: Used,
}

/// What changes with every packet, in a cache line of its own: the rest is only read.
#[derive(Default)]
#[repr(align(64))]
struct Used {
    /// The last number given out. Every nonce of the key comes from here.
    sequence: AtomicU64,
    counters: SaCounters,
    events: Events,
    /// The next packet shall be reported.
    watched: AtomicBool,
}

impl OutboundSa {
    /// The outbound half of `params`.
    ///
    /// # Errors
    /// When a key does not fit its algorithm.
    pub fn new(params: &ChildSaParams, addresses: Arc<Addresses>) -> Result<Self, CryptoError> {
        let (suite, keys) = (&params.suite, &params.keys_out);
        Ok(Self {
            cipher: PacketCipher::new(suite.cipher, suite.integrity, &keys.encryption, &keys.integrity)?,
            spi: params.spi_out,
            id: params.id,
            policy: params.policy,
            mode: params.mode,
            esn: suite.esn,
            copy_df: params.copy_df,
            copy_dscp: params.copy_dscp,
            // A receiver finds the end of the packet by its length, which transport mode does not have inside.
            tfc_padding: if params.mode == Mode::Tunnel { params.tfc_padding } else { 0 },
            limits: limits(params),
            addresses,
            asking: Default::default(),
            used: Used::default(),
        })
    }

    /// The SPI that the peer has chosen.
    pub fn spi(&self) -> Spi {
        self.spi
    }

    /// The Child SA.
    pub fn id(&self) -> ChildSaId {
        self.id
    }

    /// The policy that it serves.
    pub fn policy(&self) -> PolicyId {
        self.policy
    }

    /// Tunnel or transport.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The current outer addresses and selectors.
    pub fn addresses(&self) -> &Arc<Addresses> {
        &self.addresses
    }

    /// What it has carried.
    pub fn counters(&self) -> &SaCounters {
        &self.used.counters
    }

    /// The last sequence number given out.
    pub fn sequence(&self) -> u64 {
        self.used.sequence.load(Ordering::Relaxed)
    }

    /// Events since the last call; cheap when there are none.
    pub fn take_events(&self) -> impl Iterator<Item = SaEvent> + use<> {
        self.used.events.take()
    }

    /// Asks that the next inner packet is reported.
    pub fn watch(&self) {
        self.used.watched.store(true, Ordering::Relaxed);
    }

    /// Whether a packet that goes out now is the one to be reported; true once for each [`watch`](Self::watch).
    pub fn take_watch(&self) -> bool {
        self.used.watched.load(Ordering::Relaxed) && self.used.watched.swap(false, Ordering::Relaxed)
    }

    /// Asks that the next packet of each of these workers is reported.
    pub fn watch_workers(&self, workers: &[u32]) {
        for worker in workers.iter().filter(|worker| **worker < WORKERS_MAX as u32) {
            self.asking[*worker as usize / 64].fetch_or(1 << (worker % 64), Ordering::Relaxed);
        }
    }

    /// Whether a packet of `worker` that goes out now is one to be reported; true once for each
    /// [`watch_workers`](Self::watch_workers).
    pub fn take_worker(&self, worker: usize) -> bool {
        let (Some(word), bit) = (self.asking.get(worker / 64), 1 << (worker % 64)) else { return false };
        word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }

    /// Octets of the ESP packet for `payload_len` octets of plaintext (in tunnel mode the whole inner packet).
    pub fn sealed_len(&self, payload_len: usize) -> usize {
        let text = (payload_len + TRAILER_LEN).next_multiple_of(self.cipher.block_len());
        Header::LEN + self.cipher.iv_len() + text + self.cipher.icv_len()
    }

    /// Where in an ESP packet the plaintext begins.
    pub fn text_offset(&self) -> usize {
        Header::LEN + self.cipher.iv_len()
    }

    /// The most plaintext that an ESP packet of `sealed_len` octets holds.
    pub fn max_payload(&self, sealed_len: usize) -> usize {
        let block = self.cipher.block_len();
        let text = sealed_len.saturating_sub(Header::LEN + self.cipher.iv_len() + self.cipher.icv_len());
        (text / block * block).saturating_sub(TRAILER_LEN)
    }

    /// The next sequence number.
    ///
    /// # Errors
    /// When the last one has been used: a number, and with it a nonce, is never given out twice (RFC 4303 3.3.3).
    pub fn next_sequence(&self) -> Result<SequenceNumber, DropReason> {
        self.reserve(1)?.next().ok_or(DropReason::OutSequenceExhausted)
    }

    /// Up to `count` consecutive numbers for one worker; fewer when the SA runs out. Those that are not used are
    /// lost.
    ///
    /// # Errors
    /// When none is left.
    pub fn reserve(&self, count: u32) -> Result<SequenceNumbers, DropReason> {
        let max = self.last_sequence();
        let count = u64::from(count);
        let taken = self.used.sequence.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
            (last < max).then(|| last + count.min(max - last))
        });
        let Ok(before) = taken else {
            self.used.events.raise(SaEvent::SequenceExhausted);
            return Err(DropReason::OutSequenceExhausted);
        };
        // A sixteenth of the space is left to complete a rekeying.
        if before >= max - max / 16 {
            self.used.events.raise(SaEvent::SoftLimit);
        }
        Ok(SequenceNumbers { sa: self.id, last: before, left: count.min(max - before) })
    }

    fn last_sequence(&self) -> u64 {
        if self.esn { u64::MAX } else { u32::MAX.into() }
    }

    pub(crate) fn cipher(&self) -> &PacketCipher {
        &self.cipher
    }

    pub(crate) fn esn(&self) -> bool {
        self.esn
    }

    pub(crate) fn copy_df(&self) -> bool {
        self.copy_df
    }

    pub(crate) fn copy_dscp(&self) -> CopyDscp {
        self.copy_dscp
    }

    /// Octets to which inner packets are padded where their path takes so many; 0 is not at all.
    pub(crate) fn tfc_padding(&self) -> usize {
        self.tfc_padding.into()
    }

    /// Whether what it may carry is bounded.
    pub(crate) fn is_limited(&self) -> bool {
        self.limits.is_some()
    }

    /// How many of `packets` inner packets of `octets` octets each may still go; at least one.
    ///
    /// # Errors
    /// When a hard limit has been reached.
    pub(crate) fn admit(&self, packets: usize, octets: usize) -> Result<usize, DropReason> {
        let Some(limits) = &self.limits else { return Ok(packets) };
        let totals = (self.used.counters.packets(), self.used.counters.bytes());
        if !self.used.events.judge(&self.limits, totals) {
            return Err(DropReason::OutHardLimit);
        }
        // The packet that crosses the limit is the last one.
        let packets_left = limits.hard_packets.map(|limit| limit - totals.0);
        let bytes_left = limits.hard_bytes.map(|limit| (limit - totals.1).div_ceil(octets.max(1) as u64));
        let left = packets_left.into_iter().chain(bytes_left).min().unwrap_or(u64::MAX);
        Ok(packets.min(usize::try_from(left).unwrap_or(usize::MAX)))
    }

    /// Counts inner packets of `octets` octets together.
    pub(crate) fn count(&self, packets: usize, octets: usize) {
        let totals = self.used.counters.add(packets, octets);
        self.used.events.judge(&self.limits, totals);
    }

    /// As if the numbers up to `last` had been used.
    #[cfg(test)]
    pub(crate) fn skip_to(&self, last: u64) {
        self.used.sequence.fetch_max(last, Ordering::Relaxed);
    }
}

impl fmt::Debug for OutboundSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboundSa").field("id", &self.id).field("spi", &self.spi).finish_non_exhaustive()
    }
}

/// One sequence number of one SA. It is neither copied nor made anywhere but in the SA's allocator, and sealing
/// consumes it, so that no two packets of a key can share a nonce.
#[derive(Debug)]
pub struct SequenceNumber {
    sa: ChildSaId,
    seq: u64,
}

impl SequenceNumber {
    /// Spends the number, if it is one of `sa`.
    pub(crate) fn take(self, sa: ChildSaId) -> Option<u64> {
        (self.sa == sa).then_some(self.seq)
    }
}

/// A run of reserved numbers, in ascending order.
#[derive(Debug)]
pub struct SequenceNumbers {
    sa: ChildSaId,
    last: u64,
    left: u64,
}

impl Iterator for SequenceNumbers {
    type Item = SequenceNumber;

    fn next(&mut self) -> Option<SequenceNumber> {
        self.left = self.left.checked_sub(1)?;
        self.last += 1;
        Some(SequenceNumber { sa: self.sa, seq: self.last })
    }
}
