//! IKE_SA_INIT requests of initiators that do not exist.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mobikex::ike::{Command, Endpoint, LocalAddress, Output};
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ike::{Header, Payload, parse_chain};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use socket2::{Domain, Protocol, Socket, Type};

use crate::setups;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;
const PORT: u16 = 500;

/// A request as an engine sends it, and where in it its nonce and its public key are.
fn template(target: Ipv4Addr) -> Option<(Vec<u8>, [std::ops::Range<usize>; 2])> {
    let now = Instant::now();
    let local = Ipv4Addr::new(192, 0, 2, 99);
    let mut endpoint = Endpoint::new(now, setups::configuration(local, target, 1), [1; 32]);
    let here = LocalAddress {
        addr: IpAddr::V4(local),
        device: 1,
        interface: "flood".into(),
        reach: vec![TrafficSelector::ANY_V4],
    };
    endpoint.set_network(now, vec![here]);
    endpoint.handle_command(now, Command::Up { connection: setups::name(0), child: None }).ok()?;
    let outputs = std::iter::from_fn(|| endpoint.poll_output());
    let request = outputs.into_iter().find_map(|output| match output {
        Output::Transmit { data, .. } => Some(data),
        _ => None,
    })?;
    let header = Header::parse(&request).ok()?;
    let payloads = parse_chain(header.next_payload, &request[Header::LEN..]).ok()?;
    let place = |data: &[u8]| {
        let at = request.windows(data.len()).position(|window| window == data)?;
        Some(at..at + data.len())
    };
    let nonce =
        payloads.iter().find_map(|p| if let Payload::Nonce(data) = p { place(data) } else { None })?;
    let key =
        payloads.iter().find_map(|p| if let Payload::Ke { data, .. } = p { place(data) } else { None })?;
    Some((request, [nonce, key]))
}

/// Sends `rate` requests a second to `target` for `seconds`, no two alike. How many it were, as JSON.
///
/// # Errors
/// When there is no raw socket to be had.
pub fn run(target: Ipv4Addr, rate: u32, seconds: u32) -> io::Result<String> {
    let (request, random) =
        template(target).ok_or_else(|| io::Error::other("the engine sends no request"))?;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))?;
    socket.set_header_included_v4(true)?;
    let to = SocketAddr::from((target, PORT)).into();
    let head = IP_HEADER + UDP_HEADER;
    // Identification, total length and header checksum are the system's; a UDP checksum of zero is none.
    let mut packet = vec![0; head + request.len()];
    packet[0] = 0x45;
    (packet[8], packet[9]) = (64, UDP);
    packet[16..20].copy_from_slice(&target.octets());
    packet[22..24].copy_from_slice(&PORT.to_be_bytes());
    packet[24..26].copy_from_slice(&((UDP_HEADER + request.len()) as u16).to_be_bytes());
    packet[head..].copy_from_slice(&request);
    let mut rng = ChaCha8Rng::from_rng(&mut ChaCha8Rng::seed_from_u64(u64::from(std::process::id())));
    let (begin, total) = (Instant::now(), u64::from(rate) * u64::from(seconds));
    let (mut tried, mut sent) = (0u64, 0u64);
    while tried < total {
        let due = ((begin.elapsed().as_secs_f64() * f64::from(rate)) as u64 + 1).min(total);
        while tried < due {
            tried += 1;
            // From 1.0.0.0 to 126.255.255.255 and from any port.
            let source = 0x0100_0000 + rng.next_u32() % 0x7e00_0000;
            packet[12..16].copy_from_slice(&source.to_be_bytes());
            packet[20..22].copy_from_slice(&(1024 + rng.next_u32() as u16 % 60_000).to_be_bytes());
            rng.fill_bytes(&mut packet[head..head + 8]);
            for range in &random {
                rng.fill_bytes(&mut packet[head + range.start..head + range.end]);
            }
            sent += u64::from(socket.send_to(&packet, &to).is_ok());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let seconds = begin.elapsed().as_secs_f64();
    Ok(format!("{{\"sent\": {sent}, \"seconds\": {seconds:.3}, \"per_s\": {:.0}}}", sent as f64 / seconds))
}
