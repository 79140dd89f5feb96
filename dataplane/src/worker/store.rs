//! Room for packets that wait: blocks of equal size, allocated together on first use.

/// Octets of a block. Nearly every packet fits into one.
const BLOCK: usize = 2048;
/// Four MiB in all.
const BLOCKS: u16 = 2048;

/// Where a packet is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    /// Its first block, if it has any octets; each block names the next.
    first: u16,
    len: usize,
}

/// The blocks.
#[derive(Default)]
pub(super) struct Store {
    data: Box<[u8]>,
    next: Box<[u16]>,
    free: Vec<u16>,
    /// For packets of several blocks on their way out.
    whole: Vec<u8>,
}

impl Store {
    /// Copies a packet; `None` when there is no room for it.
    pub(super) fn put(&mut self, packet: &[u8]) -> Option<Stored> {
        if self.data.is_empty() {
            self.data = vec![0; BLOCK * usize::from(BLOCKS)].into_boxed_slice();
            self.next = vec![0; usize::from(BLOCKS)].into_boxed_slice();
            self.free = (0..BLOCKS).rev().collect();
            self.whole = Vec::with_capacity(usize::from(u16::MAX) + 1);
        }
        if packet.len().div_ceil(BLOCK) > self.free.len() {
            return None;
        }
        let mut first = 0;
        // From the end, so that each block can name the one after it.
        for part in packet.chunks(BLOCK).rev() {
            let block = self.free.pop()?;
            self.data[usize::from(block) * BLOCK..][..part.len()].copy_from_slice(part);
            self.next[usize::from(block)] = first;
            first = block;
        }
        Some(Stored { first, len: packet.len() })
    }

    /// Hands a packet to `give` and frees its blocks.
    pub(super) fn take(&mut self, stored: Stored, give: impl FnOnce(&[u8])) {
        let Stored { mut first, len } = stored;
        if len <= BLOCK {
            give(self.data.get(usize::from(first) * BLOCK..).map_or(&[], |data| &data[..len]));
            if len > 0 {
                self.free.push(first);
            }
            return;
        }
        self.whole.clear();
        while self.whole.len() < len {
            let part = (len - self.whole.len()).min(BLOCK);
            self.whole.extend_from_slice(&self.data[usize::from(first) * BLOCK..][..part]);
            self.free.push(first);
            first = self.next[usize::from(first)];
        }
        give(&self.whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n * 7 + len) as u8).collect()
    }

    #[test]
    fn packets_of_every_length_come_back_and_leave_nothing_behind() {
        let mut store = Store::default();
        assert!(store.data.is_empty(), "nothing is allocated before use");
        for round in 0..3 {
            let lens = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 65_535, 65_536];
            let stored: Vec<_> = lens.iter().map(|len| store.put(&packet(*len)).unwrap()).collect();
            let order: Vec<usize> =
                if round == 1 { (0..lens.len()).rev().collect() } else { (0..lens.len()).collect() };
            for n in order {
                let mut given = None;
                store.take(stored[n], |bytes| given = Some(bytes.to_vec()));
                assert_eq!(given, Some(packet(lens[n])));
            }
            assert_eq!(store.free.len(), usize::from(BLOCKS));
        }
    }

    #[test]
    fn a_full_store_refuses_and_goes_on_after() {
        let mut store = Store::default();
        let stored: Vec<_> = std::iter::from_fn(|| store.put(&packet(1400))).collect();
        assert_eq!(stored.len(), usize::from(BLOCKS));
        assert!(store.put(&[1]).is_none() && store.put(&[]).is_some());
        store.take(stored[0], |_| {});
        assert!(store.put(&packet(BLOCK + 1)).is_none());
        assert!(store.put(&packet(BLOCK)).is_some());
    }
}
