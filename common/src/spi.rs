//! Security Parameter Indexes and how ours are laid out.
//!
//! We choose the SPIs that peers put on packets toward us, so an SPI carries where its SA lives: the low
//! [`SLOT_BITS`] bits are the index in the SAD, and `slot % workers` is the worker that owns the SA's replay
//! window. The upper bits are random and never zero, which keeps the value out of the reserved range 0..=255
//! (RFC 4303 2.1) and makes a late packet of a removed SA miss the slot's next tenant.

use std::fmt;

use rand_core::Rng;
use serde::{Serialize, Serializer};

/// Bits of an ESP SPI that hold the SAD slot.
pub const SLOT_BITS: u32 = 20;
/// The largest number of inbound SAs that SPIs can address.
pub const MAX_SLOTS: u32 = 1 << SLOT_BITS;

/// The SPI of an ESP SA (RFC 4303 2.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(pub u32);

impl Spi {
    /// The SAD slot that an SPI of ours carries.
    pub fn slot(self) -> usize {
        (self.0 & (MAX_SLOTS - 1)) as usize
    }

    /// The worker, of `workers` (at least 1), that owns an SPI of ours.
    pub fn worker(self, workers: usize) -> usize {
        self.slot() % workers
    }

    /// Network byte order.
    pub fn to_be_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl Serialize for Spi {
    /// In hexadecimal, as it is shown everywhere; many JSON readers would round a number of 64 bits.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spi({self})")
    }
}

/// One of the two SPIs of an IKE SA (RFC 7296 3.1); zero only in the responder's place of a first request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct IkeSpi(pub u64);

impl IkeSpi {
    /// The value that stands for "not known yet".
    pub const ZERO: Self = Self(0);

    /// A random SPI that is not zero.
    pub fn random(rng: &mut impl Rng) -> Self {
        loop {
            let spi = rng.next_u64();
            if spi != 0 {
                return Self(spi);
            }
        }
    }

    /// Network byte order.
    pub fn to_be_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for IkeSpi {
    /// In hexadecimal, as it is shown everywhere; many JSON readers would round a number of 64 bits.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IkeSpi({self})")
    }
}

/// Hands out inbound SPIs, one free SAD slot each. Slots are taken in turn, so consecutive SAs land on
/// consecutive workers and a freed slot rests as long as possible.
#[derive(Debug)]
pub struct SpiAllocator {
    used: Vec<u64>,
    slots: u32,
    next: u32,
    in_use: u32,
}

impl SpiAllocator {
    /// An allocator for `slots` SAs (1 ..= [`MAX_SLOTS`]; larger values are cut).
    pub fn new(slots: u32) -> Self {
        let slots = slots.clamp(1, MAX_SLOTS);
        Self { used: vec![0; slots.div_ceil(64) as usize], slots, next: 0, in_use: 0 }
    }

    /// A fresh SPI, or `None` when every slot is taken.
    pub fn allocate(&mut self, rng: &mut impl Rng) -> Option<Spi> {
        if self.in_use == self.slots {
            return None;
        }
        let mut slot = self.next;
        while self.is_used(slot) {
            slot = (slot + 1) % self.slots;
        }
        Some(self.take(slot, rng))
    }

    /// A fresh SPI that worker number `worker` of `workers` owns, or any one when that worker's slots are all taken.
    pub fn allocate_on(&mut self, worker: usize, workers: usize, rng: &mut impl Rng) -> Option<Spi> {
        let owned = |slot: &u32| *slot as usize % workers.max(1) == worker;
        let ahead = (self.next..self.slots).chain(0..self.next);
        match ahead.filter(owned).find(|slot| !self.is_used(*slot)) {
            Some(slot) => Some(self.take(slot, rng)),
            None => self.allocate(rng),
        }
    }

    fn take(&mut self, slot: u32, rng: &mut impl Rng) -> Spi {
        self.used[(slot / 64) as usize] |= 1 << (slot % 64);
        self.in_use += 1;
        self.next = (slot + 1) % self.slots;
        let tags = (1 << (32 - SLOT_BITS)) - 1;
        let tag = 1 + rng.next_u32() % tags;
        Spi(tag << SLOT_BITS | slot)
    }

    /// Gives the slot of `spi` back. Releasing a free slot does nothing.
    pub fn release(&mut self, spi: Spi) {
        let slot = spi.slot() as u32;
        if slot < self.slots && self.is_used(slot) {
            self.used[(slot / 64) as usize] &= !(1 << (slot % 64));
            self.in_use -= 1;
        }
    }

    /// How many SPIs are out.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    fn is_used(&self, slot: u32) -> bool {
        self.used[(slot / 64) as usize] >> (slot % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    #[test]
    fn spis_avoid_the_reserved_range_and_never_share_a_slot() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut spis = SpiAllocator::new(1000);
        let mut slots = std::collections::HashSet::new();
        for _ in 0..1000 {
            let spi = spis.allocate(&mut rng).unwrap();
            assert!(spi.0 > 255);
            assert!(slots.insert(spi.slot()));
        }
        assert_eq!(spis.allocate(&mut rng), None);
        spis.release(Spi(1 << SLOT_BITS | 77));
        assert_eq!(spis.allocate(&mut rng).unwrap().slot(), 77);
        assert_eq!(spis.in_use(), 1000);
    }

    #[test]
    fn consecutive_spis_spread_over_the_workers() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let mut spis = SpiAllocator::new(64);
        let workers: Vec<_> = (0..4).map(|_| spis.allocate(&mut rng).unwrap().worker(2)).collect();
        assert_eq!(workers, [0, 1, 0, 1]);
    }

    #[test]
    fn an_spi_may_be_asked_for_by_its_worker() {
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        let mut spis = SpiAllocator::new(8);
        for _ in 0..4 {
            assert_eq!(spis.allocate_on(1, 2, &mut rng).unwrap().worker(2), 1);
        }
        assert_eq!(spis.allocate_on(1, 2, &mut rng).unwrap().worker(2), 0, "better another worker than none");
        for _ in 0..3 {
            assert!(spis.allocate_on(0, 2, &mut rng).is_some());
        }
        assert_eq!((spis.allocate_on(0, 2, &mut rng), spis.in_use()), (None, 8));
    }
}
