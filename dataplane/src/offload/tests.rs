//! Cutting and merging against a slow reference that shares no code with either.

use std::collections::HashMap;

use mobikex_common::drop::DropReason;
use mobikex_common::wire::ip::Packet;
use mobikex_common::wire::virtio::{Gso, Header};
use mobikex_common::wire::{checksum, tcp};
use proptest::prelude::*;

use super::{Coalescer, Segments, complete_checksum};
use crate::testing::{PEER, PEER_V6, US, US_V6, packet};

/// RFC 1071 by the letter: 16-bit words, carry by carry.
fn slow_sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum over an upper-layer header with its data and their pseudo-header.
fn slow_upper_sum(packet: &[u8], ip: usize, protocol: u8) -> u16 {
    let upper = &packet[ip..];
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    slow_sum(&[addresses, &[0, protocol], &(upper.len() as u16).to_be_bytes(), upper])
}

/// Puts the right checksums into a packet without extension headers.
fn seal_sums(packet: &mut [u8]) {
    let (ip, protocol) = place(packet);
    if ip != 40 {
        packet[10..12].fill(0);
        let sum = !slow_sum(&[&packet[..ip]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let at = ip + if protocol == 6 { 16 } else { 6 };
    packet[at..at + 2].fill(0);
    let sum = match !slow_upper_sum(packet, ip, protocol) {
        0 if protocol == 17 => 0xffff,
        sum => sum,
    };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Octets of the IP header, and the protocol.
fn place(packet: &[u8]) -> (usize, u8) {
    if packet[0] >> 4 == 4 { (usize::from(packet[0] & 15) * 4, packet[9]) } else { (40, packet[6]) }
}

/// What Linux makes of a super-packet: one packet after the other, with every field set by hand.
fn split(header: &Header, whole: &[u8]) -> Vec<Vec<u8>> {
    if header.gso == Gso::None {
        return vec![whole.to_vec()];
    }
    let (ip, protocol) = place(whole);
    let headers = ip + if protocol == 6 { usize::from(whole[ip + 12] >> 4) * 4 } else { 8 };
    let pieces: Vec<_> = whole[headers..].chunks(header.gso_size.into()).collect();
    let mut sent = 0u32;
    let mut packets = Vec::new();
    for (n, piece) in pieces.iter().enumerate() {
        let mut packet = [&whole[..headers], piece].concat();
        let len = packet.len();
        if ip == 40 {
            packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        } else {
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            let id = u16::from_be_bytes([whole[4], whole[5]]).wrapping_add(n as u16);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
        }
        if protocol == 6 {
            let sequence = u32::from_be_bytes(whole[ip + 4..ip + 8].try_into().unwrap()).wrapping_add(sent);
            packet[ip + 4..ip + 8].copy_from_slice(&sequence.to_be_bytes());
            let (first, last) = (n == 0, n + 1 == pieces.len());
            packet[ip + 13] &= if last { 0xff } else { 0b1111_0110 };
            packet[ip + 13] &= if first { 0xff } else { 0b0111_1111 };
        } else {
            packet[ip + 4..ip + 6].copy_from_slice(&((len - ip) as u16).to_be_bytes());
        }
        seal_sums(&mut packet);
        sent += piece.len() as u32;
        packets.push(packet);
    }
    packets
}

/// A TCP or UDP packet with right checksums. Of UDP `fields` and `options` say nothing.
#[derive(Clone, Debug)]
struct Spec {
    v6: bool,
    udp: bool,
    port: u8,
    tos: u8,
    id: u16,
    df: bool,
    sequence: u32,
    flags: u8,
    /// Words of TCP options.
    options: usize,
    len: usize,
}

impl Spec {
    fn packet(&self) -> Vec<u8> {
        let (src, dst) = if self.v6 { (US_V6, PEER_V6) } else { (US, PEER) };
        let mut upper = vec![0x80, self.port, 0x13, 0x88];
        if self.udp {
            upper.extend(((8 + self.len) as u16).to_be_bytes());
            upper.extend([0, 0]);
        } else {
            upper.extend(self.sequence.to_be_bytes());
            upper.extend([9, 8, 7, 6, (5 + self.options as u8) << 4, self.flags, 0x12, 0x34, 0, 0, 0, 0]);
            upper.extend(
                [1, 1, 8, 10, 0xaa, 0xbb, 0xcc, 0xdd, 1, 2, 3, 4].iter().cycle().take(4 * self.options),
            );
        }
        let sequence = self.sequence as usize;
        upper.extend((0..self.len).map(|n| (((n + sequence) * 31) >> 3) as u8));
        let protocol = if self.udp { 17 } else { 6 };
        let mut packet = packet(src, dst, protocol, self.tos, &upper);
        if !self.v6 {
            packet[4..6].copy_from_slice(&self.id.to_be_bytes());
            packet[6] = if self.df { 0x40 } else { 0 };
        }
        seal_sums(&mut packet);
        packet
    }

    /// The header with which the system hands it over as a super-packet.
    fn header(&self, gso_size: u16) -> Header {
        let (gso, offset, upper) = match (self.udp, self.v6) {
            (true, _) => (Gso::Udp, 6, 8),
            (false, true) => (Gso::TcpV6, 16, 20 + 4 * self.options as u16),
            (false, false) => (Gso::TcpV4, 16, 20 + 4 * self.options as u16),
        };
        let ip = if self.v6 { 40 } else { 20 };
        Header { checksum: Some((ip, offset)), gso, hdr_len: ip + upper, gso_size }
    }
}

fn specs() -> impl Strategy<Value = Spec> {
    let bits = (any::<bool>(), any::<bool>(), any::<bool>(), any::<u8>());
    let numbers = (any::<u16>(), prop_oneof![any::<u32>(), Just(u32::MAX - 2000)]);
    let tcp = (prop_oneof![Just(0x10), Just(0x18), any::<u8>()], prop_oneof![Just(3usize), 0usize..=10]);
    let len = prop_oneof![1usize..200, 1usize..12_000];
    (bits, numbers, tcp, len).prop_map(|((v6, udp, df, tos), (id, sequence), (flags, options), len)| Spec {
        v6,
        udp,
        port: 7,
        tos,
        id,
        df,
        sequence,
        flags,
        options,
        len,
    })
}

/// Cuts with the code under test, leaving out `skip` octets of each.
fn cut(header: &Header, whole: &[u8], skip: usize) -> Result<Vec<Vec<u8>>, DropReason> {
    let segments = Segments::new(header, Packet::parse(whole).unwrap())?;
    let all = 0..segments.count();
    assert_eq!(segments.octets(all.len()), all.clone().map(|n| segments.len(n)).sum::<usize>());
    assert_eq!(Some(segments.longest()), all.clone().map(|n| segments.len(n)).max());
    Ok(all
        .map(|n| {
            let mut out = vec![0xee; segments.len(n) - skip + 2];
            segments.write(n, skip, &mut out);
            assert_eq!(out.split_off(out.len() - 2), [0xee; 2]);
            out
        })
        .collect())
}

/// Merges with the code under test.
fn merge<'a>(packets: impl IntoIterator<Item = &'a Vec<u8>>, udp: bool) -> Vec<(Header, Vec<u8>)> {
    let (mut merged, mut coalescer) = (Vec::new(), Coalescer::new(udp));
    let mut write = |header: &Header, packet: &[u8]| merged.push((*header, packet.to_vec()));
    packets.into_iter().for_each(|packet| coalescer.offer(packet, &mut write));
    coalescer.flush(&mut write);
    merged
}

/// The field of a super-packet holds the sum over its pseudo-header; whoever cuts it does not look at it.
fn without_sum(mut packet: Vec<u8>) -> Vec<u8> {
    let (ip, protocol) = place(&packet);
    let at = ip + if protocol == 6 { 16 } else { 6 };
    packet[at..at + 2].fill(0);
    packet
}

proptest! {
    #[test]
    fn cutting_equals_the_slow_reference(spec in specs(), size in prop_oneof![1u16..300, 500u16..1500]) {
        let (whole, header) = (spec.packet(), spec.header(size));
        let expected = split(&header, &whole);
        prop_assert_eq!(&cut(&header, &whole, 0).unwrap(), &expected);
        let (ip, _) = place(&whole);
        let payloads: Vec<_> = expected.iter().map(|packet| packet[ip..].to_vec()).collect();
        prop_assert_eq!(cut(&header, &whole, ip).unwrap(), payloads);
        for packet in &expected {
            prop_assert_eq!(slow_upper_sum(packet, ip, place(packet).1), 0xffff);
        }
    }

    /// What one side cuts the other one merges into the same.
    #[test]
    fn merging_undoes_cutting(spec in specs(), size in 100u16..1500, push: bool) {
        let spec = Spec { flags: if push { 0x18 } else { 0x10 }, ..spec };
        let (whole, header) = (spec.packet(), spec.header(size));
        let packets = cut(&header, &whole, 0).unwrap();
        prop_assume!(packets.len() > 1 && (!spec.udp || packets.len() <= 64));
        let merged = merge(&packets, true);
        prop_assert_eq!(merged.len(), 1);
        prop_assert_eq!(merged[0].0, header);
        prop_assert_eq!(without_sum(merged[0].1.clone()), without_sum(whole));
        // The sum is that of the pseudo-header: with it, what completes checksums makes a right packet.
        let (ip, protocol) = place(&merged[0].1);
        let mut completed = merged[0].1.clone();
        complete_checksum(&Header { gso: Gso::None, ..header }, &mut completed).unwrap();
        prop_assert_eq!(slow_upper_sum(&completed, ip, protocol), 0xffff);
        prop_assert_eq!(merge(&packets, false).len(), if spec.udp { packets.len() } else { 1 });
    }
}

/// How the next packet of a flow differs from what could be merged; most of the time not at all.
#[derive(Clone, Copy, Debug)]
enum Twist {
    None,
    Push,
    Shorter,
    Longer,
    Flags(u8),
    Gap,
    Again,
    Tos,
    Ttl,
    DontFragment,
    Id,
    SameId,
    Option,
    Window,
    Acknowledgement,
    Damage,
    DamageHeader,
    NoChecksum,
    Fragment,
    IpOption,
    Empty,
    FlowLabel,
}

fn twists() -> impl Strategy<Value = Twist> {
    use Twist::*;
    const REST: [Twist; 19] = [
        Shorter,
        Longer,
        Gap,
        Again,
        Tos,
        Ttl,
        DontFragment,
        Id,
        SameId,
        Option,
        Window,
        Acknowledgement,
        Damage,
        DamageHeader,
        NoChecksum,
        Fragment,
        IpOption,
        Empty,
        FlowLabel,
    ];
    prop_oneof![
        40 => Just(None),
        3 => Just(Push),
        2 => any::<u8>().prop_map(Flags),
        20 => proptest::sample::select(&REST[..]),
    ]
}

/// The next packet of a flow.
fn next(spec: &mut Spec, twist: Twist) -> Vec<u8> {
    let (flags, len) = (spec.flags, spec.len);
    match twist {
        Twist::Push => spec.flags |= tcp::PSH,
        Twist::Flags(flags) => spec.flags = flags,
        Twist::Shorter => spec.len -= 1,
        Twist::Longer => spec.len += 1,
        Twist::Gap => spec.sequence = spec.sequence.wrapping_add(1),
        Twist::Again => spec.sequence = spec.sequence.wrapping_sub(spec.len as u32),
        Twist::Id => spec.id = spec.id.wrapping_add(3),
        Twist::SameId => spec.id = spec.id.wrapping_sub(1),
        Twist::Tos => spec.tos ^= 3,
        Twist::DontFragment => spec.df = !spec.df,
        Twist::Empty => spec.len = 0,
        _ => {}
    }
    let mut packet = spec.packet();
    let (ip, _) = place(&packet);
    let mut change = |at: usize| {
        packet[at] ^= 1;
        seal_sums(&mut packet);
    };
    match twist {
        Twist::Ttl => change(if spec.v6 { 7 } else { 8 }),
        Twist::FlowLabel if spec.v6 => change(3),
        Twist::Option if !spec.udp && spec.options > 0 => change(ip + 21),
        Twist::Window if !spec.udp => change(ip + 15),
        Twist::Acknowledgement if !spec.udp => change(ip + 11),
        Twist::Damage => *packet.last_mut().unwrap() ^= 0x40,
        Twist::DamageHeader if !spec.v6 => packet[11] ^= 1,
        Twist::NoChecksum if spec.udp && !spec.v6 => packet[26..28].fill(0),
        Twist::Fragment if !spec.v6 => {
            packet[6..8].copy_from_slice(&[0x20, 0]);
            seal_sums(&mut packet);
        }
        Twist::IpOption if !spec.v6 => {
            packet[0] = 0x46;
            packet.splice(20..20, [1, 1, 1, 0]);
            let total = (packet.len() as u16).to_be_bytes();
            packet[2..4].copy_from_slice(&total);
            seal_sums(&mut packet);
        }
        _ => {}
    }
    spec.id = spec.id.wrapping_add(1);
    spec.sequence = spec.sequence.wrapping_add(spec.len as u32);
    (spec.flags, spec.len) = (flags, len);
    packet
}

/// Without the identification where it means nothing.
fn normal(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 && slow_sum(&[&packet[..place(&packet).0]]) == 0xffff {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// Packets by flow, in order. The ports of a flow differ in one octet.
fn by_flow(packets: impl IntoIterator<Item = Vec<u8>>) -> HashMap<u8, Vec<Vec<u8>>> {
    let mut flows: HashMap<u8, Vec<Vec<u8>>> = HashMap::new();
    for packet in packets {
        let (ip, _) = place(&packet);
        flows.entry(packet[ip + 1]).or_default().push(normal(&packet));
    }
    flows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Cut again, what was merged is what came: each flow's packets, in their order, octet by octet.
    #[test]
    fn nothing_is_merged_wrongly(
        mut flows in proptest::collection::vec(specs(), 1..24),
        steps in proptest::collection::vec((any::<proptest::sample::Index>(), twists()), 1..200),
        udp: bool,
    ) {
        for (port, flow) in (0..).zip(&mut flows) {
            (flow.port, flow.len, flow.flags) = (port, flow.len % 1400 + 1, tcp::ACK);
        }
        let packets: Vec<_> = steps.iter().map(|(n, twist)| next(n.get_mut(&mut flows), *twist)).collect();
        let merged = merge(&packets, udp);
        let again: Vec<_> = merged.iter().flat_map(|(header, packet)| split(header, packet)).collect();
        prop_assert_eq!(by_flow(again), by_flow(packets));
        for (header, _) in merged.iter().filter(|(header, _)| header.gso == Gso::Udp) {
            prop_assert!(udp && header.gso_size > 0);
        }
    }

    #[test]
    fn random_octets_never_panic_and_are_not_lost(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 0..20),
        header in any::<[u8; 10]>(),
    ) {
        prop_assert_eq!(merge(&packets, true).len(), packets.len());
        for packet in &packets {
            if let (Ok(header), Ok(parsed)) = (Header::parse(&header), Packet::parse(packet)) {
                let _ = Segments::new(&header, parsed).map(|_| cut(&header, packet, 0));
                let _ = complete_checksum(&header, &mut packet.clone());
            }
        }
    }
}

const PLAIN: Spec = Spec {
    v6: false,
    udp: false,
    port: 7,
    tos: 0,
    id: 100,
    df: true,
    sequence: 1000,
    flags: tcp::ACK,
    options: 3,
    len: 1000,
};

/// The oracle would not notice if nothing were ever merged.
#[test]
fn interleaved_flows_are_merged_each_for_itself() {
    let mut flows: Vec<_> =
        (0..5).map(|port| Spec { port, udp: port % 2 == 1, v6: port > 2, ..PLAIN }).collect();
    let packets: Vec<_> = (0..200).map(|n| next(&mut flows[n % 5], Twist::None)).collect();
    let merged = merge(&packets, true);
    assert_eq!(merged.len(), 5);
    let order: Vec<_> = merged.iter().map(|(_, packet)| packet[place(packet).0 + 1]).collect();
    assert_eq!(order, [0, 1, 2, 3, 4], "in the order in which they began");
    assert!(merged.iter().all(|(header, _)| header.gso_size == 1000));
}

#[test]
fn what_differs_ends_a_run() {
    use Twist::*;
    // Twist of the fourth packet of eight, and into how many writes that cuts a TCP and a UDP flow.
    let table = [
        (None, 1, 1),
        (Push, 2, 1),
        (Shorter, 2, 2),
        (Longer, 3, 3),
        (Flags(tcp::ACK | tcp::FIN), 3, 1),
        (Flags(0x02), 3, 1),
        (Flags(tcp::ACK | tcp::CWR), 3, 1),
        (Flags(tcp::ACK | 0x20), 3, 1),
        (Gap, 2, 1),
        (Tos, 2, 2),
        (Ttl, 3, 3),
        (DontFragment, 2, 2),
        (Id, 2, 2),
        (Option, 3, 1),
        (Window, 3, 1),
        (Acknowledgement, 3, 1),
        (Damage, 3, 3),
        (DamageHeader, 3, 3),
        (NoChecksum, 1, 3),
        (Fragment, 3, 3),
        (IpOption, 3, 3),
        (Empty, 3, 3),
    ];
    for (twist, tcp, udp) in table {
        for (is_udp, expected) in [(false, tcp), (true, udp)] {
            let mut flow = Spec { udp: is_udp, ..PLAIN };
            let twists = [None, None, None, twist, None, None, None, None];
            let packets: Vec<_> = twists.into_iter().map(|twist| next(&mut flow, twist)).collect();
            assert_eq!(merge(&packets, true).len(), expected, "{twist:?}, UDP {is_udp}");
        }
    }
    let mut flow = Spec { v6: true, ..PLAIN };
    let packets: Vec<_> = [None, FlowLabel, None].map(|twist| next(&mut flow, twist)).to_vec();
    assert_eq!(merge(&packets, true).len(), 3);
}

#[test]
fn a_run_ends_at_what_the_length_field_can_say() {
    let mut flow = PLAIN;
    let packets: Vec<_> = (0..130).map(|_| next(&mut flow, Twist::None)).collect();
    let lens: Vec<_> = merge(&packets, true).iter().map(|(_, packet)| packet.len()).collect();
    assert_eq!(lens, [65 * 1000 + 52, 65 * 1000 + 52]);
    let mut flow = Spec { udp: true, len: 10, ..PLAIN };
    let packets: Vec<_> = (0..130).map(|_| next(&mut flow, Twist::None)).collect();
    let lens: Vec<_> = merge(&packets, true).iter().map(|(_, packet)| packet.len()).collect();
    assert_eq!(lens, [64 * 10 + 28, 64 * 10 + 28, 2 * 10 + 28]);
}

/// Zero and one say the same where the identification means nothing, but not mixed, for a cut would make steps.
#[test]
fn identifications_stand_still_or_grow_by_one() {
    let ids = |df: bool, ids: &[u16]| {
        let specs = (0..).zip(ids).map(|(n, id)| Spec { df, id: *id, sequence: n * 1000, ..PLAIN });
        merge(&specs.map(|spec| spec.packet()).collect::<Vec<_>>(), true).len()
    };
    assert_eq!(ids(true, &[5, 5, 5, 5]), 1);
    assert_eq!(ids(false, &[5, 5, 5, 5]), 4);
    assert_eq!(ids(false, &[65_534, 65_535, 0, 1]), 1);
    assert_eq!(ids(true, &[5, 5, 6, 7]), 2);
    assert_eq!(ids(true, &[5, 6, 6, 7]), 2);
}

#[test]
fn headers_that_do_not_fit_are_refused() {
    let whole = PLAIN.packet();
    let good = PLAIN.header(100);
    let refused = |header: Header, packet: &[u8]| cut(&header, packet, 0) == Err(DropReason::OutBadOffload);
    assert!(!refused(good, &whole));
    assert!(!refused(Header { checksum: None, ..good }, &whole), "a checksum is computed either way");
    assert!(refused(Header { gso_size: 0, ..good }, &whole));
    assert!(refused(Header { gso: Gso::TcpV6, ..good }, &whole));
    assert!(refused(Header { gso: Gso::Udp, ..good }, &whole));
    assert!(refused(Header { checksum: Some((24, 16)), ..good }, &whole));
    assert!(refused(good, &Spec { len: 0, ..PLAIN }.packet()), "no payload");
    let mut bad = whole.clone();
    bad[32] = 0xf0;
    bad.truncate(60);
    bad[2..4].copy_from_slice(&60u16.to_be_bytes());
    assert!(refused(good, &bad), "a TCP header longer than the packet");
    let mut bad = whole;
    bad[6] = 0x20;
    assert!(refused(good, &bad), "a fragment");
}

#[test]
fn checksums_are_completed_where_the_device_says() {
    let expected = PLAIN.packet();
    let mut packet = expected.clone();
    let length = (packet.len() - 20) as u32;
    let pseudo = checksum::pseudo_header(US.parse().unwrap(), PEER.parse().unwrap(), 6, length);
    packet[36..38].copy_from_slice(&(!checksum::finish(pseudo)).to_be_bytes());
    let header = Header { gso: Gso::None, ..PLAIN.header(0) };
    complete_checksum(&header, &mut packet).unwrap();
    assert_eq!(packet, expected);
    complete_checksum(&Header { checksum: None, ..header }, &mut packet).unwrap();
    assert_eq!(packet, expected);
    for place in [(0, 16), (20, 1035), (2000, 0), (u16::MAX, u16::MAX)] {
        let header = Header { checksum: Some(place), ..header };
        assert_eq!(complete_checksum(&header, &mut packet), Err(DropReason::OutBadOffload));
    }
    // A sum of zero would say "none" in UDP.
    let mut zero = vec![0; 30];
    complete_checksum(&Header { checksum: Some((20, 6)), ..Header::default() }, &mut zero).unwrap();
    assert_eq!(zero[26..28], [0xff, 0xff]);
}

/// A datagram without a checksum stays without, and its parts too.
#[test]
fn udp_without_a_checksum_is_cut_without() {
    let spec = Spec { udp: true, ..PLAIN };
    let mut whole = spec.packet();
    whole[26..28].fill(0);
    let header = Header { checksum: None, ..spec.header(300) };
    assert!(cut(&header, &whole, 0).unwrap().iter().all(|packet| packet[26..28] == [0, 0]));
    assert!(cut(&spec.header(300), &whole, 0).unwrap().iter().all(|packet| packet[26..28] != [0, 0]));
}
