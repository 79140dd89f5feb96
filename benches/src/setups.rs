//! Many initiators in one process: the engine of mobikex with a connection for each of them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};
use mobikex::config::{AddrPattern, AuthRound, Child, Config, Connection, PskSecret, TsPattern};
use mobikex::ike::{Command, Endpoint, Event, LocalAddress, Output};
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::esp::NON_ESP_MARKER;
use socket2::{Domain, Protocol, Socket, Type};

/// The ports of IKE: without and with the non-ESP marker.
const PORTS: [u16; 2] = [500, 4500];
/// Octets of a socket's buffers.
const BUFFER: usize = 8 << 20;
/// No progress for this long ends the run.
const STALLED: Duration = Duration::from_secs(20);

fn host(addr: Ipv4Addr) -> TrafficSelector {
    TrafficSelector::prefix(IpAddr::V4(addr), 32)
}

pub(crate) fn name(n: u32) -> String {
    format!("c{n}")
}

pub(crate) fn configuration(local: Ipv4Addr, remote: Ipv4Addr, count: u32) -> Config {
    let id = |text: String| AuthRound { id: text.parse().ok(), ..AuthRound::default() };
    let connection = |n: u32| {
        let inner = Ipv4Addr::from(0x0a00_0000 + n);
        let child = Child {
            local_ts: vec![TsPattern::Fixed(host(inner))],
            remote_ts: vec![TsPattern::Fixed(host(Ipv4Addr::new(172, 16, 0, 1)))],
            ..Child::new("net")
        };
        Connection {
            local_addrs: vec![AddrPattern::Range(host(local))],
            remote_addrs: vec![AddrPattern::Range(host(remote))],
            local: id(format!("{n}.load.example")),
            remote: id("responder.example".into()),
            mobike: false,
            dpd_delay: Duration::ZERO,
            children: vec![child],
            ..Connection::new(&name(n))
        }
    };
    let secret = PskSecret { name: "ike".into(), ids: Vec::new(), secret: b"load".to_vec().into() };
    let mut config = Config {
        connections: (0..count).map(connection).collect(),
        secrets: vec![secret],
        ..Config::default()
    };
    config.daemon.max_child_sas = count.max(64) * 2;
    config
}

fn socket(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(UdpSocket::from_std(socket.into()))
}

struct Load {
    endpoint: Endpoint,
    sockets: Vec<UdpSocket>,
    up: u32,
    failed: u32,
}

impl Load {
    fn start(&mut self, now: Instant, n: u32) {
        if self.endpoint.handle_command(now, Command::Up { connection: name(n), child: None }).is_err() {
            self.failed += 1;
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.endpoint.poll_output() {
            match output {
                Output::Transmit { local, remote, nat_t, data } => {
                    let place = usize::from(local.port() == PORTS[1]);
                    let marked = nat_t.then(|| [&NON_ESP_MARKER[..], &data].concat());
                    // What does not go out is sent again by the engine.
                    let _ = self.sockets[place].send_to(marked.as_deref().unwrap_or(&data), remote);
                }
                Output::Event(Event::ChildUp { .. }) => self.up += 1,
                Output::Event(Event::IkeFailed { .. } | Event::ChildFailed { .. }) => self.failed += 1,
                _ => {}
            }
        }
    }

    fn receive(&mut self, local: IpAddr, buffer: &mut [u8]) {
        for (place, port) in PORTS.iter().enumerate() {
            while let Ok((len, remote)) = self.sockets[place].recv_from(buffer) {
                let data = &buffer[..len];
                let message = if place == 0 { Some(data) } else { data.strip_prefix(&NON_ESP_MARKER[..]) };
                if let Some(message) = message {
                    let at = SocketAddr::new(local, *port);
                    self.endpoint.handle_datagram(Instant::now(), at, remote, place == 1, message);
                    self.carry_out();
                }
            }
        }
    }
}

/// Sets up `count` tunnels, `parallel` at a time, and keeps them for `hold` seconds. What came of it, as JSON.
///
/// # Errors
/// When a socket cannot be had, or nothing comes up for a long time.
pub fn run(local: Ipv4Addr, remote: Ipv4Addr, count: u32, parallel: u32, hold: u32) -> io::Result<String> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let mut endpoint = Endpoint::new(Instant::now(), configuration(local, remote, count), seed);
    let here = LocalAddress {
        addr: local.into(),
        device: 1,
        interface: "load".into(),
        reach: vec![TrafficSelector::ANY_V4],
    };
    endpoint.set_network(Instant::now(), vec![here]);
    let mut poll = Poll::new()?;
    let mut sockets = Vec::new();
    for (n, port) in PORTS.into_iter().enumerate() {
        let mut socket = socket((local, port).into())?;
        poll.registry().register(&mut socket, Token(n), Interest::READABLE)?;
        sockets.push(socket);
    }
    let mut load = Load { endpoint, sockets, up: 0, failed: 0 };
    let mut events = Events::with_capacity(8);
    let mut buffer = vec![0; 1 << 16];
    let begin = Instant::now();
    let (mut started, mut took, mut progress) = (0, None, (0, begin));
    loop {
        let now = Instant::now();
        let ended = load.up + load.failed;
        if ended != progress.0 {
            progress = (ended, now);
        }
        while started < count && started - ended.min(started) < parallel {
            load.start(now, started);
            started += 1;
        }
        load.carry_out();
        if ended >= count {
            let end = *took.get_or_insert(now - begin) + Duration::from_secs(hold.into());
            if now - begin >= end {
                break;
            }
        } else if now - progress.1 > STALLED {
            return Err(io::Error::other(format!("{} of {count} are up and no more come", load.up)));
        }
        let wait = load.endpoint.next_timeout().map_or(Duration::from_millis(100), |at| {
            at.saturating_duration_since(now).min(Duration::from_millis(100))
        });
        if let Err(error) = poll.poll(&mut events, Some(wait))
            && error.kind() != io::ErrorKind::Interrupted
        {
            return Err(error);
        }
        load.receive(local.into(), &mut buffer);
        load.endpoint.handle_timeout(Instant::now());
        load.carry_out();
    }
    let seconds = took.unwrap_or_default().as_secs_f64();
    Ok(format!(
        "{{\"setups\": {}, \"failed\": {}, \"seconds\": {seconds:.3}, \"per_s\": {:.0}}}",
        load.up,
        load.failed,
        f64::from(load.up) / seconds
    ))
}
