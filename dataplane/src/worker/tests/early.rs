//! Packets that come before their SA is installed.

use super::*;

/// How many packets are sent too early.
const EARLY: usize = 8;

impl Net {
    /// Sends small packets from the first site, which has SA `id` alone, and waits until they are at the second one. The socket
    /// that they are for.
    fn send_early(&self, id: u32, outer: usize, encap: bool) -> UdpSocket {
        let at_one = |n: usize| params(n, id, Mode::Tunnel, INNER[V4], OUTER[outer], encap, gcm());
        self.dataplanes[0].tables().install(&at_one(0), true).unwrap();
        let addr = |n: usize, port| SocketAddr::new(INNER[V4][n].parse::<IpAddr>().unwrap(), port);
        let (target, source) = (addr(1, 7), addr(0, 0));
        let receiver = self.namespaces[1].run(move || UdpSocket::bind(target)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let sender = self.namespaces[0].run(move || UdpSocket::bind(source)).unwrap();
        for n in 0..EARLY {
            sender.send_to(&[n as u8], target).unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
        receiver
    }
}

#[test]
fn packets_that_come_before_their_sa_wait_for_it() {
    let Some(net) = Net::new(true) else { return };
    // The neighbours get to know each other, so that nothing waits for that.
    for outer in [V4, V6] {
        net.namespaces[0].sh(&format!("ping -c 1 -W 2 {}", OUTER[outer][1]));
    }
    let mut id = 0;
    for (outer, encap) in [(V4, true), (V6, true), (V4, false)] {
        // A machine that stands still for the time that they wait may lose some, but not every time.
        let arrives = (0..10).any(|_| {
            id += 1;
            let receiver = net.send_early(id, outer, encap);
            let of_second = params(1, id, Mode::Tunnel, INNER[V4], OUTER[outer], encap, gcm());
            net.dataplanes[1].tables().install(&of_second, true).unwrap();
            let received: Vec<u8> = (0..EARLY)
                .map_while(|_| {
                    let mut octet = [0];
                    receiver.recv(&mut octet).ok().map(|_| octet[0])
                })
                .collect();
            net.remove(id);
            received == (0..EARLY as u8).collect::<Vec<_>>()
        });
        assert!(arrives, "{outer} {encap}: {:?}", net.dataplanes[1].counters());
    }
}

#[test]
fn packets_for_no_sa_are_dropped_in_the_end() {
    let Some(net) = Net::new(false) else { return };
    net.namespaces[0].sh(&format!("ping -c 1 -W 2 {}", OUTER[V4][1]));
    let receiver = net.send_early(1, V4, true);
    wait_for(|| (net.drops(1, DropReason::InNoSa) == EARLY as u64).then_some(()));
    assert!(receiver.recv(&mut [0]).is_err());
}
