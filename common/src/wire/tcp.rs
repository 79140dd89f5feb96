//! The fields of a TCP header (RFC 9293 3.1) that cutting and merging segments touch.

/// The protocol number of TCP.
pub const PROTOCOL: u8 = 6;
/// Octets of a header without options.
pub const MIN_LEN: usize = 20;
/// Octets of the longest header.
pub const MAX_LEN: usize = 60;

/// Offset of the sequence number.
pub const SEQUENCE: usize = 4;
/// Offset of the octet with the flags.
pub const FLAGS: usize = 13;
/// Offset of the checksum.
pub const CHECKSUM: usize = 16;

/// The sender has finished.
pub const FIN: u8 = 0x01;
/// Hand over at once what has been received.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;
/// Congestion was experienced (RFC 3168 6.1).
pub const ECE: u8 = 0x40;
/// The congestion window was reduced (RFC 3168 6.1).
pub const CWR: u8 = 0x80;

/// Octets of the header at the front of `segment`, options included; `None` when it is cut short or contradicts
/// itself.
pub fn header_len(segment: &[u8]) -> Option<usize> {
    let len = usize::from(segment.get(12)? >> 4) * 4;
    (len >= MIN_LEN && len <= segment.len()).then_some(len)
}

/// The sequence number. `segment` holds a whole header.
pub fn sequence(segment: &[u8]) -> u32 {
    u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_that_of_a_whole_header() {
        let mut segment = [0; 64];
        for (words, len) in [(0, None), (4, None), (5, Some(20)), (8, Some(32)), (15, Some(60))] {
            segment[12] = words << 4 | 0x0f;
            assert_eq!(header_len(&segment), len);
        }
        segment[12] = 0x60;
        assert_eq!((header_len(&segment[..24]), header_len(&segment[..23])), (Some(24), None));
        assert_eq!(header_len(&segment[..12]), None);
        segment[SEQUENCE..8].copy_from_slice(&[1, 2, 3, 4]);
        assert_eq!(sequence(&segment), 0x0102_0304);
    }
}
