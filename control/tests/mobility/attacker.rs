//! Attackers: one off the path, who can send anything from anywhere, and one on it, who also sees what passes and
//! changes the headers. Neither has a key.

use std::net::{IpAddr, SocketAddr};

use mobikex::ike::Output;
use mobikex_common::wire::ike::Header;

use crate::world::{Rewrite, World, ip};

/// Sources that an attacker makes up.
const MADE_UP: [&str; 4] = ["203.0.113.200", "198.18.0.9", "2001:db8:bad::1", "192.0.2.99"];

/// What must not change when a datagram comes that its sender cannot have authenticated: SAs, addresses, timers.
fn fingerprint(world: &World, host: usize) -> String {
    let host = &world.hosts[host];
    let sas: Vec<_> =
        host.endpoint.ike_sas(world.now).into_iter().filter(|sa| sa.state != "CONNECTING").collect();
    let timer = host.endpoint.next_timeout();
    let children: Vec<_> =
        host.children.values().map(|(p, outbound)| (p.id, &p.addresses, &p.ts_remote, outbound)).collect();
    format!("{sas:?} {timer:?} {children:?}")
}

/// A made-up or plausible source for a datagram to a host.
fn source(world: &mut World, to: usize, local: IpAddr) -> SocketAddr {
    let dice = world.random();
    let own = world.hosts[1 - to].addresses.iter().copied().find(|a| a.is_ipv4() == local.is_ipv4());
    let made_up: Vec<IpAddr> =
        MADE_UP.iter().map(|a| ip(a)).filter(|a| a.is_ipv4() == local.is_ipv4()).collect();
    let addr = own.filter(|_| dice.is_multiple_of(2)).unwrap_or(made_up[dice as usize / 2 % made_up.len()]);
    SocketAddr::new(addr, if dice.is_multiple_of(3) { 4500 } else { (dice >> 16) as u16 })
}

/// Hands a host a datagram of the attacker's and sees to it that nothing comes of it (M1): at most an answer, and no
/// larger than three times the datagram.
fn inject(world: &mut World, to: usize, datagram: &[u8]) {
    let Some(local) = world.hosts[to].addresses.iter().next().copied() else { return };
    let source = source(world, to, local);
    let local = SocketAddr::new(local, 4500);
    let before = fingerprint(world, to);
    let now = world.now;
    let endpoint = &mut world.hosts[to].endpoint;
    endpoint.handle_datagram(now, local, source, true, datagram);
    let mut answered = 0;
    while let Some(output) = endpoint.poll_output() {
        match output {
            Output::Transmit { remote, data, .. } => {
                assert_eq!(remote, source, "M1: an attacker made a host send elsewhere");
                answered += data.len();
            }
            other => panic!("M1: an attacker's datagram did something: {other:?}"),
        }
    }
    assert!(answered <= 3 * datagram.len(), "{answered} octets answer {} of an attacker", datagram.len());
    let after = fingerprint(world, to);
    assert!(before == after, "M1: an attacker's datagram changed\n{before}\nto\n{after}");
}

/// Datagrams that a host has heard come once more, from anywhere; only protected ones, for who repeats a first message
/// is just one more stranger who asks for a connection.
pub fn replay(world: &mut World, datagrams: u32) {
    let protected = |data: &[u8]| Header::parse(data).is_ok_and(|h| h.exchange.0 != 34);
    let known: Vec<(usize, Vec<u8>)> = world.heard.iter().filter(|(_, d)| protected(d)).cloned().collect();
    for _ in 0..datagrams {
        if !known.is_empty() {
            // The latest ones are those that might still fit.
            let back = world.random() as usize
                % known.len().min(if world.random().is_multiple_of(2) { 4 } else { 400 });
            let (to, datagram) = &known[known.len() - 1 - back];
            inject(world, *to, datagram);
        }
    }
}

/// Datagrams with the SPIs of the SAs that there are, a message ID that may fit, and garbage inside.
pub fn garbage(world: &mut World, datagrams: u32) {
    for _ in 0..datagrams {
        let to = (world.random() % 2) as usize;
        let sas = world.hosts[to].endpoint.ike_sas(world.now);
        let Some(sa) = sas.get(world.random() as usize % sas.len().max(1)) else { continue };
        let mut data = vec![0; 28 + (world.random() % 200) as usize];
        world.fill(&mut data);
        data[..8].copy_from_slice(&sa.spi_i.to_be_bytes());
        data[8..16].copy_from_slice(&sa.spi_r.to_be_bytes());
        let dice = world.random();
        // SK, version 2, CREATE_CHILD_SA or INFORMATIONAL, flags of the peer.
        (data[16], data[17], data[18]) = (46, 0x20, 36 + (dice % 2) as u8);
        data[19] = if sa.initiator { 0 } else { 0x08 } | if dice & 4 == 0 { 0x20 } else { 0 };
        data[20..24].copy_from_slice(&(dice >> 8 & 7).to_be_bytes());
        let length = data.len() as u32;
        data[24..28].copy_from_slice(&length.to_be_bytes());
        inject(world, to, &data);
    }
}

/// The next `datagrams` of a host get other addresses in their headers.
pub fn on_path(
    host: usize,
    mut datagrams: u32,
    change: impl Fn(&mut SocketAddr, &mut SocketAddr) + 'static,
) -> Rewrite {
    Box::new(move |from, source, destination| {
        if from == host && datagrams > 0 {
            datagrams -= 1;
            change(source, destination);
        }
    })
}
