//! SAs, address sets and packets to measure with.

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
