//! What the tests of this crate share: Child SAs of two ends, and packets for them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mobikex_common::addr::{AddressSet, Path};
use mobikex_common::alg::{Cipher, EspSuite, Integrity, KeyBits};
use mobikex_common::sa::{ChildSaId, ChildSaParams, CopyDscp, EspKeys, Mode, PolicyId, VolumeLimits};
use mobikex_common::spi::Spi;
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::checksum;
use mobikex_common::wire::ip::{Fragment, Ipv4Header, Ipv6Header};

use crate::paths::Addresses;
use crate::sad::{InboundSa, OutboundSa};

pub(crate) const US: &str = "10.1.0.1";
pub(crate) const PEER: &str = "10.2.0.1";
pub(crate) const US_V6: &str = "2001:db8:1::1";
pub(crate) const PEER_V6: &str = "2001:db8:2::1";

pub(crate) const GCM: EspSuite =
    EspSuite { cipher: Cipher::AesGcm16(KeyBits::B256), integrity: None, ke: None, esn: false };

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn ts(text: &str) -> TrafficSelector {
    text.parse().unwrap()
}

/// Every cipher, with each integrity algorithm where it needs one, with and without ESN.
pub(crate) fn suites() -> Vec<EspSuite> {
    let mut suites = Vec::new();
    for cipher in Cipher::ALL {
        let integrity = match cipher.is_aead() {
            true => vec![None],
            false => Integrity::ALL.map(Some).to_vec(),
        };
        for integrity in integrity {
            suites.extend([false, true].map(|esn| EspSuite { cipher, integrity, ke: None, esn }));
        }
    }
    suites
}

/// The addresses of one path, without UDP encapsulation.
pub(crate) fn addresses(local: &str, remote: &str) -> AddressSet {
    let at = |addr| SocketAddr::new(ip(addr), 4500);
    AddressSet::single(Path { local: at(local), remote: at(remote) }, false)
}

/// Our side of a Child SA between 10.1.0.0/16 with 2001:db8:1::/48 and 10.2.0.0/16 with 2001:db8:2::/48.
pub(crate) fn params(id: u32, mode: Mode, suite: EspSuite) -> ChildSaParams {
    let keys = |fill: u8| EspKeys {
        encryption: vec![fill; suite.cipher.key_material_len()],
        integrity: vec![fill ^ 0xff; suite.integrity.map_or(0, Integrity::key_len)],
    };
    ChildSaParams {
        id: ChildSaId(id),
        policy: PolicyId(id),
        worker: None,
        name: format!("test/{id}"),
        mode,
        spi_in: Spi(0x1000_0000 | id),
        spi_out: Spi(0x2000_0000 | id),
        suite,
        keys_in: keys(0x11),
        keys_out: keys(0x22),
        ts_local: vec![ts("10.1.0.0/16"), ts("2001:db8:1::/48")],
        ts_remote: vec![ts("10.2.0.0/16"), ts("2001:db8:2::/48")],
        addresses: addresses("192.0.2.1", "198.51.100.1"),
        replay_window: 64,
        limits: VolumeLimits::default(),
        copy_df: true,
        copy_dscp: CopyDscp::Out,
        tfc_padding: 0,
    }
}

/// The same Child SA as the peer has it.
pub(crate) fn mirrored(ours: &ChildSaParams) -> ChildSaParams {
    let mut theirs = ours.clone();
    (theirs.spi_in, theirs.spi_out) = (ours.spi_out, ours.spi_in);
    (theirs.keys_in, theirs.keys_out) = (ours.keys_out.clone(), ours.keys_in.clone());
    (theirs.ts_local, theirs.ts_remote) = (ours.ts_remote.clone(), ours.ts_local.clone());
    for path in &mut theirs.addresses.paths {
        (path.path.local, path.path.remote) = (path.path.remote, path.path.local);
    }
    theirs
}

pub(crate) fn outbound(params: &ChildSaParams) -> OutboundSa {
    OutboundSa::new(params, Arc::new(Addresses::new(params.addresses.clone(), params.into()))).unwrap()
}

pub(crate) fn inbound(params: &ChildSaParams) -> InboundSa {
    let addresses = Arc::new(Addresses::new(params.addresses.clone(), params.into()));
    let outbound = Arc::new(OutboundSa::new(params, addresses.clone()).unwrap());
    InboundSa::new(params, addresses, outbound).unwrap()
}

/// An IP packet around `payload`, of the family of `src`.
pub(crate) fn packet(src: &str, dst: &str, protocol: u8, tos: u8, payload: &[u8]) -> Vec<u8> {
    let head = match (ip(src), ip(dst)) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => Ipv4Header {
            tos,
            total_len: 20 + payload.len() as u16,
            identification: 0x1234,
            dont_fragment: true,
            fragment: Fragment::default(),
            ttl: 63,
            protocol,
            src,
            dst,
        }
        .emit()
        .to_vec(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => Ipv6Header {
            tos,
            flow_label: 0x12345,
            payload_len: payload.len() as u16,
            next_header: protocol,
            hop_limit: 63,
            src,
            dst,
        }
        .emit()
        .to_vec(),
        _ => panic!("addresses of two families"),
    };
    [&head[..], payload].concat()
}

/// A UDP packet with a right checksum.
pub(crate) fn udp(src: &str, dst: &str, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let len = 8 + data.len() as u16;
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    segment.extend_from_slice(data);
    let pseudo = checksum::pseudo_header(ip(src), ip(dst), 17, len.into());
    let sum = checksum::finish(checksum::sum(&segment, pseudo));
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    packet(src, dst, 17, 0, &segment)
}
