//! The Internet checksum (RFC 1071) and its update in place (RFC 1624).

use std::net::IpAddr;

/// Octets that are added at a time: eight words in eight accumulators, so that the processor's vector unit does it.
const BLOCK: usize = 32;

/// Adds `bytes` to a partial ones-complement sum. An odd last octet counts as if a zero followed (RFC 1071 1),
/// so of several slices only the last may be of odd length.
pub fn sum(bytes: &[u8], initial: u32) -> u32 {
    // Headers, of which there are many, are not worth the vector unit.
    if bytes.len() < 2 * BLOCK {
        return finish_words(0, bytes, initial);
    }
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let mut lanes = Lanes::default();
    blocks.iter().for_each(|block| lanes.add(block));
    lanes.finish(rest, initial)
}

/// Copies `from` to the front of `to` and adds it to a partial sum, as [`sum`] does, in one pass.
///
/// # Panics
/// When `to` is the shorter one.
pub fn copy_and_sum(to: &mut [u8], from: &[u8], initial: u32) -> u32 {
    let to = &mut to[..from.len()];
    let (blocks, rest) = from.as_chunks::<BLOCK>();
    let (to_blocks, to_rest) = to.as_chunks_mut::<BLOCK>();
    let mut lanes = Lanes::default();
    for (to, block) in to_blocks.iter_mut().zip(blocks) {
        *to = *block;
        lanes.add(block);
    }
    to_rest.copy_from_slice(rest);
    lanes.finish(rest, initial)
}

/// Sums of 32-bit words in 64 bits: 2^16 = 1 modulo 2^16 - 1, so wide words fold to the same value, and 2^32 of them
/// fit before an accumulator could overflow. The words are taken as they lie in memory and the octets of the result
/// are put in order at the end (RFC 1071 2 B).
#[derive(Default)]
struct Lanes([u64; BLOCK / 4]);

impl Lanes {
    fn add(&mut self, block: &[u8; BLOCK]) {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in self.0.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }

    /// Adds what is left.
    fn finish(self, rest: &[u8], initial: u32) -> u32 {
        let total = self.0.iter().map(|lane| (lane & 0xffff_ffff) + (lane >> 32)).sum();
        finish_words(total, rest, initial)
    }
}

/// Adds few words as they lie in memory to a total of such, and puts the octets of the sum in order.
fn finish_words(mut total: u64, bytes: &[u8], initial: u32) -> u32 {
    let (words, last) = bytes.as_chunks::<4>();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut word = [0; 4];
    word[..last.len()].copy_from_slice(last);
    total += u64::from(u32::from_ne_bytes(word));
    let total = u16::from_be_bytes(fold(total).to_ne_bytes());
    u32::from(fold(u64::from(initial) + u64::from(total)))
}

/// The checksum field for a partial sum.
pub fn finish(sum: u32) -> u16 {
    !fold(u64::from(sum))
}

/// The partial sum of the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 8200 8.1). `len` is the length
/// of the upper-layer header and its data.
pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: u32) -> u32 {
    let addresses = sum_addr(dst, sum_addr(src, 0));
    sum(&len.to_be_bytes(), addresses + u32::from(protocol))
}

/// The checksum after the octets `old` of what it covers became `new` (RFC 1624 3, equation 3). Both start at an
/// even offset of the covered data.
pub fn update(old_checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    let removed = !fold(u64::from(sum(old, 0)));
    finish(sum(new, u32::from(!old_checksum) + u32::from(removed)))
}

fn sum_addr(addr: IpAddr, initial: u32) -> u32 {
    match addr {
        IpAddr::V4(a) => sum(&a.octets(), initial),
        IpAddr::V6(a) => sum(&a.octets(), initial),
    }
}

fn fold(total: u64) -> u16 {
    let add = |total: u64, bits: u32| (total >> bits) + (total & ((1 << bits) - 1));
    // 64 bits to 33, to 18, to 17, to 16.
    add(add(add(add(total, 32), 16), 16), 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use proptest::prelude::*;

    #[test]
    fn rfc1071_example() {
        assert_eq!(sum(&hex!("0001 f203 f4f5 f6f7"), 0), 0xddf2);
        assert_eq!(finish(sum(&hex!("0001 f203 f4f5 f6f7"), 0)), 0x220d);
    }

    #[test]
    fn rfc1624_example() {
        // RFC 1624 4: HC = 0xdd2f, m = 0x5555, m' = 0x3285 gives 0x0000, where RFC 1141 went wrong.
        assert_eq!(update(0xdd2f, &hex!("5555"), &hex!("3285")), 0x0000);
    }

    #[test]
    fn a_captured_ipv4_header_sums_to_zero() {
        let header = hex!("4500 0073 0000 4000 4011 b861 c0a8 0001 c0a8 00c7");
        assert_eq!(finish(sum(&header, 0)), 0);
    }

    #[test]
    fn pseudo_headers_of_both_families() {
        let udp = hex!("0035 0035 000a 0000 6869");
        let v4 = pseudo_header("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), 17, 10);
        assert_eq!(v4, 0x0a00 + 1 + 0x0a00 + 2 + 17 + 10);
        assert_eq!(
            finish(sum(&udp, v4)),
            !(0x0a00u16 + 1 + 0x0a00 + 2 + 17 + 10 + 0x35 + 0x35 + 10 + 0x6869)
        );
        let v6 = pseudo_header("::1".parse().unwrap(), "::2".parse().unwrap(), 58, 0x1_0002);
        assert_eq!(v6, 1 + 2 + 58 + 1 + 2);
    }

    proptest! {
        #[test]
        fn wide_words_add_up_like_16_bit_words(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            initial in any::<u32>(),
        ) {
            let words = bytes.chunks(2).map(|c| u64::from(c[0]) << 8 | u64::from(*c.get(1).unwrap_or(&0)));
            let expected = u32::from(fold(u64::from(initial) + words.sum::<u64>()));
            prop_assert_eq!(sum(&bytes, initial), expected);
            let mut copy = vec![0; bytes.len() + 3];
            prop_assert_eq!(copy_and_sum(&mut copy, &bytes, initial), expected);
            prop_assert_eq!((&copy[..bytes.len()], &copy[bytes.len()..]), (&bytes[..], &[0; 3][..]));
        }

        #[test]
        fn update_equals_a_fresh_checksum(
            mut data in proptest::collection::vec(any::<u8>(), 40),
            new in proptest::collection::vec(any::<u8>(), 4),
            at in 0usize..18,
        ) {
            data[39] |= 1; // An all-zero sum has two representations.
            let before = finish(sum(&data, 0));
            let old = data[2 * at..2 * at + 4].to_vec();
            data[2 * at..2 * at + 4].copy_from_slice(&new);
            prop_assert_eq!(update(before, &old, &new), finish(sum(&data, 0)));
        }
    }
}
