//! Bulk traffic: what is handed over as one must arrive as many, in order and unharmed.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use mobikex_common::addr::Scheduler;
use mobikex_common::drop::DropReason;
use mobikex_common::sa::{ChildSaId, Mode};
use mobikex_common::wire::ip::Packet;

use super::{INNER, Net, OUTER, V4, V6, gcm, wait_for};
use crate::Upcall;
use crate::esp::{self, IvSource};
use crate::io::{LANES, SendBatch, SendSlot};

impl Net {
    /// Sends `octets` octets over TCP from the first site to the second; each must arrive, in its place.
    pub(super) fn stream(&self, inner: [&str; 2], octets: usize) {
        let [from, to] = inner.map(|addr| SocketAddr::new(addr.parse::<IpAddr>().unwrap(), 0));
        let listener = self.namespaces[1].run(move || TcpListener::bind(to)).unwrap();
        let target = listener.local_addr().unwrap();
        let receiver = std::thread::spawn(move || {
            let (mut stream, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip(), from.ip());
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut data = Vec::new();
            stream.read_to_end(&mut data).map(|_| data)
        });
        let mut stream = self.namespaces[0].run(move || TcpStream::connect(target)).unwrap();
        let data: Vec<u8> = (0..octets).map(|n| (n * 7 + n / 251) as u8).collect();
        stream.write_all(&data).unwrap();
        // The answer to the end comes when nothing is under way any more.
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        let received = receiver.join().unwrap().unwrap_or_else(|error| {
            let drops = self.dataplanes.each_ref().map(|d| d.counters());
            panic!("{inner:?}: {error}; drops {drops:?}")
        });
        assert!(received == data, "{} of {octets} octets", received.len());
    }
}

const MIB: usize = 1 << 20;

/// What TCP repeats needlessly, as on a slow machine or where paths overtake each other, may come after its SA is gone.
pub(super) const LATE: &[DropReason] = &[DropReason::InNoSa];

/// Every mixture of sites with and without offloads carries the same octets, and with them the system sees few packets.
#[test]
fn streams_cross_with_and_without_offloads() {
    for offload in [[true, true], [true, false], [false, true], [false, false]] {
        let Some(net) = Net::offloading(true, offload) else { return };
        let mut id = 1;
        for encap in [true, false] {
            for (outer, inner) in [(V4, V4), (V4, V6), (V6, V4), (V6, V6)] {
                net.install(id, Mode::Tunnel, INNER[inner], OUTER[outer], encap, gcm());
                let before = [net.packets(0, "mkx0")[1], net.packets(1, "mkx0")[0]];
                net.stream(INNER[inner], 4 * MIB);
                let handed = [net.packets(0, "mkx0")[1] - before[0], net.packets(1, "mkx0")[0] - before[1]];
                let stats = net.dataplanes[1].tables().stats(ChildSaId(id)).unwrap();
                assert!(stats.packets_in >= 3000, "{stats:?}");
                for site in 0..2 {
                    // How many become one depends on the pace of both ends; without offloads none does, and what
                    // ends the stream may be counted by one and not yet by the other.
                    let few = handed[site] + 100 < stats.packets_in;
                    assert_eq!(few, offload[site], "site {site}, {offload:?}: {handed:?} of {stats:?}");
                }
                net.remove(id);
                id += 1;
            }
        }
        net.assert_no_inbound_drops_but(LATE);
    }
}

#[test]
fn streams_cross_in_transport_mode_and_with_every_scheduler() {
    let Some(net) = Net::new(true) else { return };
    net.second_uplink();
    let mut id = 1;
    for encap in [true, false] {
        for family in [V4, V6] {
            net.install(id, Mode::Transport, OUTER[family], OUTER[family], encap, gcm());
            net.stream(OUTER[family], 2 * MIB);
            net.remove(id);
            id += 1;
        }
        for scheduler in [Scheduler::Flow, Scheduler::Backup, Scheduler::Packet] {
            net.install_multipath(id, scheduler, encap);
            net.stream(INNER[V4], 2 * MIB);
            wait_for(|| {
                let stats = net.dataplanes[0].tables().stats(ChildSaId(id)).unwrap();
                let [first, second] = [stats.paths[0].packets_out, stats.paths[1].packets_out];
                let shared_out = match scheduler {
                    // Workers that send at the same moment take the same turn.
                    Scheduler::Packet => first.abs_diff(second) <= stats.packets_out / 50,
                    // What the flow before it repeats may still come, and take another path.
                    _ => first.min(second) < 20,
                };
                (first + second == stats.packets_out && shared_out).then_some(())
            });
            net.remove(id);
            id += 1;
        }
    }
    net.assert_no_inbound_drops_but(LATE);
    for encap in [true, false] {
        net.install_multipath(id, Scheduler::Redundant, encap);
        net.stream(INNER[V4], 2 * MIB);
        wait_for(|| {
            let stats = net.dataplanes[0].tables().stats(ChildSaId(id)).unwrap();
            let copies: Vec<_> = stats.paths.iter().map(|path| path.packets_out).collect();
            (copies == [stats.packets_out; 2]).then_some(())
        });
        net.remove(id);
        id += 1;
    }
}

/// What counts is the length of the packets that a super-packet is cut into.
#[test]
fn a_stream_adapts_to_a_narrow_path() {
    let Some(net) = Net::new(true) else { return };
    for ns in &net.namespaces {
        ns.sh("ip link set veth0 mtu 1380");
    }
    for (id, encap, inner) in [(1, true, V4), (2, true, V6), (3, false, V4)] {
        net.install(id, Mode::Tunnel, INNER[inner], OUTER[V4], encap, gcm());
        net.stream(INNER[inner], MIB);
        let mtu = net.route_mtu(INNER[inner][1]);
        assert!(mtu < 1380 - 28, "{mtu}");
        net.remove(id);
    }
    assert!(net.drops(0, DropReason::OutTooBig) >= 2);
    net.assert_no_inbound_drops_but(LATE);
}

/// Datagrams that an application hands over as one (UDP_SEGMENT) are cut here, merged there, and arrive one by one.
#[test]
fn datagrams_sent_as_one_arrive_one_by_one() {
    let Some(net) = Net::new(false) else { return };
    for (id, family) in [(1, V4), (2, V6)] {
        net.install(id, Mode::Tunnel, INNER[family], OUTER[V4], true, gcm());
        let addr = |n: usize| SocketAddr::new(INNER[family][n].parse().unwrap(), 0);
        let (from, to) = (addr(0), addr(1));
        let socket = net.namespaces[0].run(move || crate::io::UdpSocket::bind(from, 0)).unwrap();
        let receiver = net.namespaces[1].run(move || UdpSocket::bind(to)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let lens: Vec<usize> = (0..40).map(|n| if n == 39 { 700 } else { 1200 }).collect();
        let mut batch = SendBatch::new([socket.segments(); LANES]);
        for (tag, len) in lens.iter().enumerate() {
            batch.reserve(*len).unwrap().fill(tag as u8);
            let remote = receiver.local_addr().unwrap();
            batch.commit(0, SendSlot { local: from, remote, device: 0, tos: 0, tag, len: *len });
        }
        assert_eq!(socket.send_batch(&mut batch, 0, |_, error| panic!("{error}")), 40);
        let mut data = [0; 2000];
        for (n, len) in lens.into_iter().enumerate() {
            assert_eq!(receiver.recv(&mut data).unwrap(), len);
            assert!(data[..len].iter().all(|octet| usize::from(*octet) == n));
        }
        net.remove(id);
    }
    net.assert_no_inbound_drops();
}

/// The group's program sees the first datagram of a merged message only; the others belong to SAs of both workers, and
/// IKE messages are among them.
#[test]
fn a_merged_message_holds_packets_of_other_workers() {
    let Some(net) = Net::new(false) else { return };
    let hosts = [["10.0.1.11", "10.0.2.11"], ["10.0.1.12", "10.0.2.12"]];
    let mut sas = Vec::new();
    for (id, inner) in (1..).zip(hosts) {
        net.install(id, Mode::Tunnel, inner, OUTER[V4], true, gcm());
        net.namespaces[1].sh(&format!("ip addr add {} dev mkx0", inner[1]));
        sas.push(net.dataplanes[0].tables().outbound(ChildSaId(id)).unwrap());
    }
    let receivers = hosts.map(|inner| {
        let target = (inner[1].parse::<IpAddr>().unwrap(), 9);
        let receiver = net.namespaces[1].run(move || UdpSocket::bind(target)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        receiver
    });
    let socket = net.namespaces[0]
        .run(|| crate::io::UdpSocket::bind((IpAddr::from([192, 0, 2, 1]), 0).into(), 0))
        .unwrap();
    if !socket.segments() {
        return eprintln!("SKIPPED: this system does not cut datagrams");
    }
    let (mut batch, mut ivs) = (SendBatch::new([true; LANES]), IvSource::from_system().unwrap());
    let slot = |tag, len| {
        let remote = (IpAddr::from([192, 0, 2, 2]), 4500).into();
        SendSlot { local: socket.local_addr(), remote, device: 0, tos: 0, tag, len }
    };
    let mut messages = 0;
    for n in 0..30u8 {
        let which = usize::from(n % 3 == 1);
        let inner = crate::testing::udp(hosts[which][0], hosts[which][1], (1000, 9), &[n; 100]);
        let out = batch.reserve(sas[0].sealed_len(inner.len())).unwrap();
        let sealed = esp::seal(&sas[which], &Packet::parse(&inner).unwrap(), out, &mut ivs).unwrap();
        batch.commit(0, slot(usize::from(n), sealed.len));
        if n % 10 == 9 {
            let out = batch.reserve(sealed.len).unwrap();
            out.fill(0);
            batch.commit(0, slot(99, sealed.len));
            messages += 1;
        }
    }
    assert_eq!(batch.len(0), 1, "all of it is one message");
    socket.send_batch(&mut batch, 0, |_, error| panic!("{error}"));
    for n in 0..30u8 {
        let mut data = [0; 200];
        assert_eq!(receivers[usize::from(n % 3 == 1)].recv(&mut data).unwrap(), 100);
        assert_eq!(data[..100], [n; 100]);
    }
    let mut seen = 0;
    wait_for(|| {
        let upcalls = net.dataplanes[1].upcalls().try_iter();
        seen += upcalls.filter(|upcall| matches!(upcall, Upcall::Ike { .. })).count();
        (seen == messages).then_some(())
    });
    net.assert_no_inbound_drops();
}
