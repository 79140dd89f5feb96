//! Padding against who counts octets (TFC, RFC 4303 2.7): how long packets are outside, and that they are the same inside.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use mobikex_common::alg::EspSuite;
use mobikex_common::sa::{ChildSaParams, Mode};
use socket2::{Domain, Protocol, Socket, Type};

use super::{INNER, Net, OUTER, V4, V6, cbc, gcm, params};

/// Of a frame, before IP.
const ETHERNET: usize = 14;

impl Net {
    fn install_padded(&self, id: u32, inner: usize, outer: usize, encap: bool, suite: EspSuite, octets: u16) {
        for (site, dataplane) in self.dataplanes.iter().enumerate() {
            let plain = params(site, id, Mode::Tunnel, INNER[inner], OUTER[outer], encap, suite);
            let padded = ChildSaParams { tfc_padding: octets, ..plain };
            dataplane.tables().install(&padded, true).unwrap();
        }
    }

    /// How many packets of each length cross the link while the sites talk, in IPv4 outside.
    fn lengths(&self, inner: usize) -> BTreeMap<usize, usize> {
        let all = i32::from((libc::ETH_P_IP as u16).to_be());
        let open = move || Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all)));
        let tap = self.namespaces[1].run(open).unwrap();
        tap.set_recv_buffer_size(8 << 20).unwrap();
        self.echo(INNER[inner]);
        tap.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let (mut frame, mut seen) = ([0; 2048], BTreeMap::new());
        let ours = OUTER[V4].map(|addr| addr.parse::<Ipv4Addr>().unwrap().octets());
        while let Ok(len) = (&tap).read(&mut frame) {
            // The tunnel's device, of which all is seen as well, has no Ethernet and other addresses.
            if len > ETHERNET + 20 && ours.iter().any(|addr| frame[ETHERNET + 12..][..4] == *addr) {
                *seen.entry(len - ETHERNET).or_default() += 1;
            }
        }
        seen
    }
}

/// With what is in front of ESP, and around the plaintext.
fn outer(encap: bool, suite: EspSuite, text: usize) -> usize {
    let udp = if encap { 8 } else { 0 };
    // Header, IV, padding to whole blocks with its two octets, ICV.
    let (iv, block, icv) = if suite == gcm() { (8, 4, 16) } else { (16, 16, 16) };
    20 + udp + 8 + iv + (text + 2).next_multiple_of(block) + icv
}

#[test]
fn packets_are_as_long_as_asked_for_and_no_longer_than_their_path_takes() {
    for mtu in [1500, 1300] {
        let Some(net) = Net::offloading(true, [false; 2]) else { return };
        net.namespaces.iter().for_each(|ns| drop(ns.sh(&format!("ip link set veth0 mtu {mtu}"))));
        net.namespaces.iter().for_each(|ns| drop(ns.sh("ip link set mkx0 mtu 1180")));
        let mut id = 1;
        for (encap, suite) in [(true, gcm()), (false, gcm()), (true, cbc())] {
            for octets in [0, 600, u16::MAX] {
                net.install_padded(id, V4, V4, encap, suite, octets);
                let seen = net.lengths(V4);
                let (least, most) = (*seen.keys().next().unwrap(), *seen.keys().last().unwrap());
                let what = format!("{octets} octets, MTU {mtu}, {encap}, {suite}: {seen:?}");
                assert!(most <= mtu, "{what}");
                match octets {
                    0 => assert!(least < 120 && seen.len() > 20, "{what}"),
                    600 => {
                        assert_eq!(least, outer(encap, suite, 600), "{what}");
                        assert!(seen[&least] > 100 && seen.len() > 10, "{what}");
                    }
                    _ => {
                        assert_eq!(seen.len(), 1, "all look the same: {what}");
                        // Less than a block is left over.
                        assert!(most + 16 > mtu, "{what}");
                    }
                }
                net.remove(id);
                id += 1;
            }
        }
        net.assert_no_inbound_drops();
    }
}

/// What is cut by us, and what of it the system cuts once more.
#[test]
fn super_packets_are_padded_packet_by_packet() {
    for offload in [[true, true], [true, false], [false, true]] {
        let Some(net) = Net::offloading(true, offload) else { return };
        for (id, (inner, advmss)) in (1..).zip([(V4, 0), (V6, 0), (V4, 200)]) {
            net.install_padded(id, inner, V4, id % 2 == 1, gcm(), u16::MAX);
            if advmss > 0 {
                // Many small packets in one read become many times as many octets.
                for (site, ns) in net.namespaces.iter().enumerate() {
                    let to = INNER[inner][1 - site];
                    ns.sh(&format!("ip route replace {to} dev mkx0 advmss {advmss}"));
                }
            }
            net.echo(INNER[inner]);
            net.stream(INNER[inner], 1 << 20);
            net.remove(id);
        }
        net.assert_no_inbound_drops_but(super::offload::LATE);
    }
}
