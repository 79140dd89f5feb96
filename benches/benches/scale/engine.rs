//! What IKE SAs with one Child SA each take of memory in the engine, beside what the packet path takes of them: of a
//! responder whose peers have come up, said what they had to say and are at rest.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use mobikex::config::{self, Config};
use mobikex::ike::{Command, Endpoint, Event, LocalAddress, Output, Version};
use mobikex_benches::memory;

/// IKE SAs that are set up.
pub(crate) const COUNT: u32 = 10_000;
/// Octets that one with its Child SA may take.
pub(crate) const GOAL: f64 = 8192.0;
/// Settings of both sides for each kind of mobility, by which it is named, and what they agree upon then.
pub(crate) const KINDS: [(&str, &str, Version); 3] = [
    ("no MOBIKE", "mobike = no\n mobike_x = no", Version::None),
    ("MOBIKE", "mobike = yes\n mobike_x = no", Version::Mobike),
    ("MOBIKE-X", "mobike = yes\n mobike_x = yes", Version::MobikeX),
];

const RESPONDER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn initiator(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xc612_0000 + n)
}

/// A responder that takes everybody, or the configuration of one initiator.
fn configuration(peer: Option<u32>, settings: &str) -> Config {
    let (local, remote) = match peer {
        Some(n) => (initiator(n).to_string(), RESPONDER.to_string()),
        None => (RESPONDER.to_string(), "%any".into()),
    };
    let ids = match peer {
        Some(n) => format!("local {{ auth = psk\n id = {n}.example\n }} remote {{ auth = psk\n }}"),
        None => "local { auth = psk\n id = responder.example\n } remote { auth = psk\n }".into(),
    };
    let (ours, theirs) = match peer {
        Some(n) => (format!("{}/32", Ipv4Addr::from(0x0a00_0000 + n)), "172.16.0.0/12"),
        None => ("172.16.0.0/12".into(), "10.0.0.0/8"),
    };
    let text = format!(
        "mobikex {{ max_child_sas = 65536\n cookie_threshold = 1000000\n half_open_limit = 1000000\n }}
         connections {{ load {{ local_addrs = {local}\n remote_addrs = {remote}\n {settings}
         proposals = aes256gcm16-prfsha384-x25519\n {ids}
         children {{ net {{ local_ts = {ours}\n remote_ts = {theirs}\n esp_proposals = aes256gcm16\n }} }} }} }}
         secrets {{ ike-load {{ secret = load\n }} }}"
    );
    config::parse_str("benchmark", &text).expect("a good configuration")
}

fn endpoint(now: Instant, peer: Option<u32>, settings: &str) -> Endpoint {
    let mut seed = [1; 32];
    seed[..4].copy_from_slice(&peer.unwrap_or(u32::MAX).to_be_bytes());
    let mut endpoint = Endpoint::new(now, configuration(peer, settings), seed);
    let here = LocalAddress {
        addr: IpAddr::V4(peer.map_or(RESPONDER, initiator)),
        device: 2,
        interface: "wan0".into(),
        reach: vec!["0.0.0.0/0".parse().expect("a prefix")],
    };
    endpoint.set_network(now, vec![here]);
    endpoint
}

/// Source, destination, with the non-ESP marker or not, octets.
type Datagram = (SocketAddr, SocketAddr, bool, Vec<u8>);

/// The datagrams that an endpoint sends, and how many Child SAs have come up.
fn sent(endpoint: &mut Endpoint, up: &mut u32) -> Vec<Datagram> {
    let mut datagrams = Vec::new();
    while let Some(output) = endpoint.poll_output() {
        match output {
            Output::Transmit { local, remote, nat_t, data } => datagrams.push((local, remote, nat_t, data)),
            Output::Event(Event::ChildUp { .. }) => *up += 1,
            _ => {}
        }
    }
    datagrams
}

/// Octets for each IKE SA of a responder that has `COUNT` of them.
pub(crate) fn measure(settings: &str, version: Version) -> f64 {
    let now = Instant::now();
    let mut responder = endpoint(now, None, settings);
    let (mut up, mut ignored) = (0, 0);
    sent(&mut responder, &mut up);
    let mut before = 0;
    // The first ones bring up what is there once.
    for n in 0..COUNT + 100 {
        if n == 100 {
            before = memory::resident();
        }
        let mut peer = endpoint(now, Some(n), settings);
        let command = Command::Up { connection: "load".into(), child: None };
        peer.handle_command(now, command).expect("it starts");
        loop {
            for (source, destination, nat_t, data) in sent(&mut peer, &mut ignored) {
                responder.handle_datagram(now, destination, source, nat_t, &data);
            }
            let back = sent(&mut responder, &mut up);
            if back.is_empty() {
                break;
            }
            for (source, destination, nat_t, data) in back {
                peer.handle_datagram(now, destination, source, nat_t, &data);
            }
        }
    }
    assert_eq!(up, COUNT + 100, "all have come up");
    let agreed = responder.ike_sas_after(now, 0, 1);
    assert!(agreed.iter().all(|sa| sa.mobike == version), "agreed upon is {:?}", agreed[0].mobike);
    (memory::resident() - before) as f64 / f64::from(COUNT)
}
