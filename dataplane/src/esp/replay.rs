//! The anti-replay window (RFC 4303 3.4.3) and the high half of extended sequence numbers (RFC 4303 Appendix A).
//!
//! The window is a ring of 64-bit blocks (RFC 6479): moving it forward clears whole blocks and never shifts
//! bits, so its cost does not grow with its size. Until it has moved on by its own length no block is used twice, so
//! that an SA which has carried little has only the blocks that it needs. It belongs to one worker and is plain memory:
//! a check, the integrity check and the update happen on one core with nothing in between.

use mobikex_common::drop::DropReason;
use mobikex_common::sa::ChildSaId;

use super::Authenticated;
use crate::sad::InboundSa;

/// The smallest window, in packets.
pub const WINDOW_MIN: u32 = 64;
/// The largest window, in packets.
pub const WINDOW_MAX: u32 = 65_536;

/// Which sequence numbers of an SA have been received.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    highest: u64,
    size: u32,
    /// A power of two; all that the window needs, or as many as the highest number has called for.
    blocks: Box<[u64]>,
}

/// Blocks to begin with.
const FIRST_BLOCKS: usize = 4;

impl ReplayWindow {
    /// A window of `size` packets, cut to [`WINDOW_MIN`] ..= [`WINDOW_MAX`]; there is no way to have none.
    pub fn new(size: u32) -> Self {
        let size = size.clamp(WINDOW_MIN, WINDOW_MAX);
        Self { highest: 0, size, blocks: vec![0; FIRST_BLOCKS.min(all_blocks(size))].into() }
    }

    /// The highest authentic sequence number received; 0 before the first.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// The window in packets.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The 64-bit sequence number that `low` stands for (RFC 4303 A2.2). The guess is confirmed or refuted by
    /// the integrity check, which covers the high half.
    pub fn infer_esn(&self, low: u32) -> u64 {
        let (high, top) = ((self.highest >> 32) as u32, self.highest as u32);
        let bottom = top.wrapping_sub(self.size - 1);
        let high = if top >= self.size - 1 {
            // The window lies within one subspace: a number below it belongs to the next.
            if low >= bottom { high } else { high.saturating_add(1) }
        } else if low >= bottom {
            // The window reaches back into the previous subspace, if there is one.
            high.saturating_sub(1)
        } else {
            high
        };
        u64::from(high) << 32 | u64::from(low)
    }

    /// Whether a packet numbered `seq` may still be accepted. Changes nothing (RFC 4303 3.4.3: the window moves
    /// only after the integrity check).
    ///
    /// # Errors
    /// When `seq` lies before the window, was received already, or is 0, which no sender may use.
    pub fn check(&self, seq: u64) -> Result<(), DropReason> {
        if seq > self.highest {
            return Ok(());
        }
        if seq == 0 || self.highest - seq >= self.size.into() {
            return Err(DropReason::InReplayOld);
        }
        let (block, bit) = self.place(seq);
        if self.blocks[block] & bit == 0 { Ok(()) } else { Err(DropReason::InReplayDuplicate) }
    }

    /// Records the packet that `proof` stands for, moving the window forward if need be.
    pub fn commit(&mut self, proof: Authenticated) {
        let seq = proof.sequence();
        if seq > self.highest {
            // For one packet in 64, as they come in order.
            if seq / 64 > self.highest / 64 {
                self.advance(self.highest / 64, seq / 64);
            }
            self.highest = seq;
        } else if self.highest - seq >= self.size.into() {
            // Unreachable after a check; setting the bit would mark a number of the future.
            return;
        }
        let (block, bit) = self.place(seq);
        self.blocks[block] |= bit;
    }

    /// Clears the blocks after number `from` up to number `to`, whatever was in their places before.
    #[inline(never)]
    fn advance(&mut self, from: u64, to: u64) {
        if to >= self.blocks.len() as u64 {
            self.grow(to);
        }
        let len = self.blocks.len() as u64;
        for block in (to.saturating_sub(len).max(from) + 1)..=to {
            self.blocks[(block & (len - 1)) as usize] = 0;
        }
    }

    /// Makes room for block number `block`, as far as the window may. Whatever is there stays in its place.
    fn grow(&mut self, block: u64) {
        let all = all_blocks(self.size);
        if self.blocks.len() < all {
            let wanted = usize::try_from(block + 1).unwrap_or(all).min(all).next_power_of_two();
            let mut blocks = vec![0; wanted].into_boxed_slice();
            blocks[..self.blocks.len()].copy_from_slice(&self.blocks);
            self.blocks = blocks;
        }
    }

    fn place(&self, seq: u64) -> (usize, u64) {
        (((seq / 64) & (self.blocks.len() as u64 - 1)) as usize, 1 << (seq % 64))
    }
}

/// How many blocks a window of `size` packets needs: one more than it fills, since the newest may have only its first
/// number in use.
fn all_blocks(size: u32) -> usize {
    (size.div_ceil(64) as usize + 1).next_power_of_two()
}

/// The replay windows that one worker owns, by SAD slot. A window is made when its SA's first packet arrives.
#[derive(Debug)]
pub struct ReplayTable {
    windows: Vec<Option<Box<Tenant>>>,
    workers: u32,
}

#[derive(Debug)]
struct Tenant {
    id: ChildSaId,
    window: ReplayWindow,
}

impl ReplayTable {
    /// For one of `workers` workers, each owning the slots of equal `slot % workers`.
    pub fn new(workers: usize) -> Self {
        Self { windows: Vec::new(), workers: u32::try_from(workers).unwrap_or(u32::MAX).max(1) }
    }

    /// The window of `sa`. `None` when a newer SA has taken its slot: a packet that was matched to the old one
    /// just before must not reset the new one's window.
    pub fn window(&mut self, sa: &InboundSa) -> Option<&mut ReplayWindow> {
        // A short division takes half the time of a long one, and slots have 20 bits.
        let index = (sa.spi().slot() as u32 / self.workers) as usize;
        if index >= self.windows.len() {
            self.windows.resize_with(index + 1, || None);
        }
        let place = &mut self.windows[index];
        match place {
            Some(tenant) if tenant.id == sa.id() => {}
            // Identifiers count up; the difference tells the newer one even after they wrap.
            Some(tenant) if sa.id().0.wrapping_sub(tenant.id.0) > u32::MAX / 2 => return None,
            _ => {
                let window = ReplayWindow::new(sa.replay_window());
                *place = Some(Box::new(Tenant { id: sa.id(), window }));
            }
        }
        place.as_mut().map(|tenant| &mut tenant.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// RFC 4303 3.4.3 as written: remember everything.
    #[derive(Default)]
    struct Naive {
        highest: u64,
        seen: HashSet<u64>,
        size: u64,
    }

    impl Naive {
        fn check(&self, seq: u64) -> Result<(), DropReason> {
            if seq == 0 || (seq <= self.highest && self.highest - seq >= self.size) {
                Err(DropReason::InReplayOld)
            } else if self.seen.contains(&seq) {
                Err(DropReason::InReplayDuplicate)
            } else {
                Ok(())
            }
        }

        fn commit(&mut self, seq: u64) {
            self.highest = self.highest.max(seq);
            self.seen.insert(seq);
        }

        /// The number nearest to the window that has this low half, by trying every subspace around it.
        fn infer(&self, low: u32) -> u64 {
            let bottom = self.highest.saturating_sub(self.size - 1);
            let high = self.highest >> 32;
            (high.saturating_sub(1)..=high + 1)
                .map(|high| high << 32 | u64::from(low))
                .find(|seq| *seq >= bottom)
                .unwrap()
        }
    }

    fn sizes() -> impl Strategy<Value = u32> {
        prop_oneof![Just(64), Just(65), Just(128), Just(1000), Just(4096), Just(65_536), 64u32..65_536]
    }

    /// Steps relative to the highest number: mostly near, at times at the window's edge or far ahead.
    fn steps() -> impl Strategy<Value = Vec<(u8, i64)>> {
        proptest::collection::vec((0u8..6, -200i64..200), 1..400)
    }

    fn target(kind: u8, delta: i64, highest: u64, size: u64) -> u64 {
        let base = match kind {
            0..=2 => highest as i128,
            3 => highest as i128 - size as i128,
            4 => highest as i128 - i128::from(size / 2),
            _ => highest as i128 + size as i128,
        };
        (base + i128::from(delta)).clamp(0, u64::MAX.into()) as u64
    }

    proptest! {
        #[test]
        fn b22_the_window_decides_as_the_naive_model_does(
            size in sizes(), start in prop_oneof![Just(0u64), 1u64..100_000, Just((1 << 32) - 100), Just(u64::MAX - 500)],
            steps in steps(), authentic in proptest::collection::vec(any::<bool>(), 400),
        ) {
            let mut window = ReplayWindow::new(size);
            let mut naive = Naive { size: size.into(), ..Naive::default() };
            if start > 0 {
                window.commit(Authenticated::for_test(start));
                naive.commit(start);
            }
            for ((kind, delta), authentic) in steps.into_iter().zip(authentic) {
                let seq = target(kind, delta, naive.highest, size.into());
                prop_assert_eq!(window.check(seq), naive.check(seq), "seq {} highest {}", seq, naive.highest);
                if authentic && window.check(seq).is_ok() {
                    window.commit(Authenticated::for_test(seq));
                    naive.commit(seq);
                }
                prop_assert_eq!(window.highest(), naive.highest);
            }
        }

        #[test]
        fn esn_high_halves_follow_the_window(size in sizes(), high in 0u64..5, low in prop_oneof![
            0u32..70_000, (u32::MAX - 70_000)..=u32::MAX, any::<u32>()], delta in -70_000i64..70_000) {
            let highest = high << 32 | u64::from(low);
            let mut window = ReplayWindow::new(size);
            if highest > 0 {
                window.commit(Authenticated::for_test(highest));
            }
            let naive = Naive { highest, size: size.into(), ..Naive::default() };
            let seq = (i128::from(highest) + i128::from(delta)).max(0) as u64;
            // Whatever lies in or ahead of the window is found; what lies before it is taken for the future.
            if seq + u64::from(size) > highest {
                prop_assert_eq!(window.infer_esn(seq as u32), seq);
            }
            // In the first subspace there is nothing behind: RFC 4303 has no such number.
            if high > 0 || low >= size {
                prop_assert_eq!(window.infer_esn(seq as u32), naive.infer(seq as u32));
            }
        }
    }

    #[test]
    fn b24_there_is_no_window_of_zero() {
        assert_eq!(ReplayWindow::new(0).size(), WINDOW_MIN);
        assert_eq!(ReplayWindow::new(u32::MAX).size(), WINDOW_MAX);
        assert_eq!(ReplayWindow::new(0).check(0), Err(DropReason::InReplayOld));
    }

    #[test]
    fn a_window_takes_room_only_as_it_moves_on() {
        let mut window = ReplayWindow::new(8192);
        window.commit(Authenticated::for_test(1));
        assert_eq!(window.blocks.len(), FIRST_BLOCKS);
        (2..=10_000).for_each(|seq| window.commit(Authenticated::for_test(seq)));
        assert_eq!(window.blocks.len(), all_blocks(8192));
        assert!((1..=10_000).all(|seq| window.check(seq).is_err()));
        let mut window = ReplayWindow::new(8192);
        window.commit(Authenticated::for_test(3));
        window.commit(Authenticated::for_test(8000));
        assert_eq!(window.check(3), Err(DropReason::InReplayDuplicate));
        assert_eq!(window.check(4), Ok(()));
        window.commit(Authenticated::for_test(u64::MAX));
        assert_eq!(window.blocks.len(), all_blocks(8192), "however far the jump");
    }

    /// RFC 4303 A2.2: the window reaches from T - W + 1, in its own subspace or the one before.
    #[test]
    fn esn_subspaces_change_at_the_bottom_of_the_window() {
        let mut window = ReplayWindow::new(64);
        window.commit(Authenticated::for_test(1000));
        assert_eq!(window.infer_esn(937), 937);
        assert_eq!(window.infer_esn(936), 1 << 32 | 936);
        window.commit(Authenticated::for_test(1 << 32 | 10));
        assert_eq!(window.infer_esn(u32::MAX - 52), u64::from(u32::MAX) - 52);
        assert_eq!(window.infer_esn(u32::MAX - 53), 1 << 32 | u64::from(u32::MAX - 53));
    }

    #[test]
    fn esn_at_the_ends_of_the_number_space() {
        let window = ReplayWindow::new(64);
        assert_eq!(window.infer_esn(1), 1);
        assert_eq!(window.infer_esn(u32::MAX), u64::from(u32::MAX), "there is no subspace before the first");
        let mut window = ReplayWindow::new(64);
        window.commit(Authenticated::for_test(u64::MAX));
        assert_eq!(window.infer_esn(u32::MAX), u64::MAX);
        assert_eq!(window.check(window.infer_esn(5)), Err(DropReason::InReplayOld), "none after the last");
    }
}
