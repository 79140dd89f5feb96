//! SAs, address sets and packets to measure with.

use mobikex_common::wire::ip::Packet;
use mobikex_dataplane::counters::Tally;
use mobikex_dataplane::esp::{self, Content, HEADROOM, IvSource, Opener, OuterInfo, ReplayTable};
use mobikex_dataplane::paths::Chosen;
use mobikex_dataplane::published::Guard;
use mobikex_dataplane::sad::OutboundSa;
use mobikex_dataplane::tables::Tables;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mobikex_common::addr::{AddressSet, Path, Scheduler, WeightedPath};
use mobikex_common::alg::{Cipher, EspSuite, KeyBits};
use mobikex_common::sa::{ChildSaId, ChildSaParams, CopyDscp, EspKeys, Mode, PolicyId, VolumeLimits};
use mobikex_common::spi::Spi;
use mobikex_common::wire::checksum;

/// `count` uplinks of ours to one address of the peer; `third` tells sets apart.
pub fn set(third: u8, count: u8, scheduler: Scheduler) -> AddressSet {
    let end = |addr: [u8; 4]| SocketAddr::new(IpAddr::from(addr), 4500);
    let path = |n: u8| {
        let path = Path { local: end([192, 0, third, n + 1]), remote: end([198, 51, 100, 2]) };
        WeightedPath { weight: 100 + u16::from(n), ..WeightedPath::new(path, true) }
    };
    let paths = (0..count).map(path).collect();
    AddressSet { generation: third.into(), scheduler, resequence_ms: 0, paths }
}

/// Number `id` of SAs with AES-256-GCM for packets within a /29. It talks to itself: selectors, keys and SPIs are the same
/// both ways, so that it opens what it sealed.
pub fn sa(id: u32) -> ChildSaParams {
    let suite = EspSuite { cipher: Cipher::AesGcm16(KeyBits::B256), integrity: None, ke: None, esn: false };
    let keys = EspKeys { encryption: vec![1; suite.cipher.key_material_len()], integrity: Vec::new() };
    let net = format!("{}/29", host(id, 0)).parse().expect("a prefix");
    ChildSaParams {
        id: ChildSaId(id),
        policy: PolicyId(id),
        worker: None,
        name: format!("bench/{id}"),
        mode: Mode::Tunnel,
        spi_in: Spi(0x1000_0000 | id),
        spi_out: Spi(0x1000_0000 | id),
        suite,
        keys_in: keys.clone(),
        keys_out: keys,
        ts_local: vec![net],
        ts_remote: vec![net],
        addresses: set(1, 2, Scheduler::Flow),
        replay_window: 64,
        limits: VolumeLimits::default(),
        copy_df: true,
        copy_dscp: CopyDscp::Out,
        tfc_padding: 0,
    }
}

fn host(id: u32, number: u32) -> Ipv4Addr {
    (0x0a00_0000 | id << 3 | number).into()
}

/// An IPv4 packet of `len` octets in all (40 at least) that SA number `id` carries: TCP with an acknowledgement, segment
/// `index` of a stream, every checksum right.
pub fn packet(id: u32, index: u32, len: usize) -> Vec<u8> {
    let (src, dst) = (host(id, 1), host(id, 2));
    let mut packet: Vec<u8> = (0..len).map(|n| n as u8).collect();
    packet[..12].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    packet[12..16].copy_from_slice(&src.octets());
    packet[16..20].copy_from_slice(&dst.octets());
    let sum = checksum::finish(checksum::sum(&packet[..20], 0));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..40].copy_from_slice(&[0x10, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    packet[24..28].copy_from_slice(&(index * (len as u32 - 40)).to_be_bytes());
    let pseudo = checksum::pseudo_header(src.into(), dst.into(), 6, len as u32 - 20);
    let sum = checksum::finish(checksum::sum(&packet[20..], pseudo));
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Seals a packet of `sa` for a path as a worker does, one of a run; the octets of the ESP packet.
///
/// # Panics
/// When it cannot be sealed.
pub fn seal<'s>(
    sa: &'s OutboundSa,
    path: Chosen<'s>,
    packet: &Packet<'_>,
    out: &mut [u8],
    ivs: &mut IvSource,
    tally: &mut Tally<'s>,
) -> usize {
    let frame = esp::frame(sa, packet).expect("it can be sealed");
    let text = packet.bytes();
    let len = sa.sealed_len(text.len());
    let number = sa.reserve(1).expect("a number").next().expect("a number");
    out[sa.text_offset()..][..text.len()].copy_from_slice(text);
    esp::seal_in_place(sa, number, &frame, text.len(), &mut out[..len], ivs).expect("it is sealed");
    tally.add(sa, path.counters, (1, packet.total_len), (1, len));
    len
}

/// Opens ESP packets as a worker does, in runs of one SA. Each slot has the room in front of its packet and ends with it.
///
/// # Panics
/// When one is of no SA or is not authentic.
pub fn open<'a>(
    tables: &Tables,
    replay: &mut ReplayTable,
    slots: impl Iterator<Item = &'a mut [u8]>,
    outer: &OuterInfo,
    guard: &Guard,
) {
    let spi = |slot: &[u8]| u32::from_be_bytes(*slot[HEADROOM..].first_chunk().expect("an SPI"));
    let mut slots = slots.peekable();
    while let Some(first) = slots.peek() {
        let run = spi(first);
        let sa = tables.lookup_inbound(Spi(run), guard).expect("an SA");
        let window = replay.window(sa).expect("a window");
        let mut opener = Opener::new(sa, window, outer, guard).expect("a path");
        while let Some(slot) = slots.next_if(|slot| spi(slot) == run) {
            let opened = opener.open(slot, HEADROOM..slot.len()).expect("it is opened");
            assert!(matches!(opened.content, Content::Packet(_)) && opened.on_path);
            black_box(opened);
        }
    }
}
