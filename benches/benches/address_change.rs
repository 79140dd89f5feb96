//! One message of the peer moves 1 000 Child SAs: how long until a worker sees all of them on the new address, and
//! whether any packet waits for it. The whole way is measured: decrypt, judge, build sets, answer, publish.
//!
//!   cargo bench -p mobikex-benches --bench address_change [-- --json]

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mobikex::config::{self, Config};
use mobikex::ike::{Command, Endpoint, LocalAddress, Output};
use mobikex_common::addr::WeightedPath;
use mobikex_common::wire::ip::Packet;
use mobikex_dataplane::esp::{self, IvSource};
use mobikex_dataplane::paths::{Traffic, flow_hash};
use mobikex_dataplane::published::pin;
use mobikex_dataplane::tables::{Lookup, Tables};

const CHILDREN: usize = 1000;
const ROUNDS: usize = 9;
const OURS: &str = "198.51.100.1";
const THEIRS: [&str; 2] = ["192.0.2.1", "203.0.113.1"];

/// One side's configuration: a tunnel with as many Child SAs as are to be moved.
fn configuration(me: usize) -> Config {
    let ids = ["a.example", "b.example"];
    let net = |side: usize, child: usize| format!("10.{}.{}.0/24", side * 100 + child / 250, child % 250);
    let (local, remote) = if me == 0 { ("%any", OURS) } else { (OURS, "%any") };
    let mut text = format!(
        "connections {{ home {{ local_addrs = {local}\n remote_addrs = {remote}\n
         proposals = aes256gcm16-prfsha384-x25519\n
         local {{ auth = psk\n id = {} }}\n remote {{ auth = psk\n id = {} }}\n children {{\n",
        ids[me],
        ids[1 - me]
    );
    let start = if me == 0 { "start_action = start" } else { "" };
    for child in 0..CHILDREN {
        text += &format!(
            "c{child} {{ local_ts = {}\n remote_ts = {}\n esp_proposals = aes256gcm16\n {start}\n }}\n",
            net(me, child),
            net(1 - me, child)
        );
    }
    text += "} } }\n secrets { ike-1 { id-1 = a.example\n id-2 = b.example\n secret = benchmark } }\n";
    config::parse_str("benchmark", &text).expect("a good configuration")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A datagram: source, destination, with the non-ESP marker or not, octets.
type Datagram = (SocketAddr, SocketAddr, bool, Vec<u8>);

/// Two engines in one process; the second one's Child SAs are installed in a packet path.
struct Sites {
    now: Instant,
    endpoints: [Endpoint; 2],
    tables: Arc<Tables>,
}

impl Sites {
    /// Both, with all Child SAs up.
    fn new() -> Self {
        let now = Instant::now();
        let endpoints = [0, 1].map(|me| Endpoint::new(now, configuration(me), [me as u8 + 1; 32]));
        let mut sites = Self { now, endpoints, tables: Arc::new(Tables::new(CHILDREN as u32 + 64)) };
        sites.network(0, &[THEIRS[0]]);
        sites.network(1, &[OURS]);
        let up = Command::Up { connection: "home".into(), child: None };
        sites.endpoints[0].handle_command(now, up).expect("it starts");
        while sites.tables.children().len() < CHILDREN {
            sites.later(Duration::from_millis(100));
        }
        sites.later(Duration::from_secs(5));
        sites
    }

    fn network(&mut self, site: usize, addrs: &[&str]) {
        let list = addrs.iter().zip(2..).map(|(addr, device)| LocalAddress {
            addr: ip(addr),
            device,
            interface: format!("wan{device}"),
            reach: vec!["0.0.0.0/0".parse().expect("a prefix")],
        });
        self.endpoints[site].set_network(self.now, list.collect());
    }

    /// Does what a site's engine asks for; the datagrams that it sends.
    fn carry_out(&mut self, site: usize) -> Vec<Datagram> {
        let mut sent = Vec::new();
        while let Some(output) = self.endpoints[site].poll_output() {
            match output {
                Output::Transmit { local, remote, nat_t, data } => sent.push((local, remote, nat_t, data)),
                _ if site == 0 => {}
                Output::InstallChild { params, outbound } => {
                    self.tables.install(&params, outbound).expect("room for an SA");
                }
                Output::ActivateOutbound(id) => self.tables.activate_outbound(id),
                Output::SetAddresses { children, set } => {
                    self.tables.set_addresses(&children, &set);
                }
                _ => {}
            }
        }
        sent
    }

    /// Hands datagrams to a site; what it sends in return.
    fn deliver(&mut self, site: usize, datagrams: Vec<Datagram>) -> Vec<Datagram> {
        for (source, destination, nat_t, data) in datagrams {
            self.endpoints[site].handle_datagram(self.now, destination, source, nat_t, &data);
        }
        self.carry_out(site)
    }

    /// Exchanges datagrams until there are none.
    fn rest(&mut self) {
        let mut forth = self.carry_out(0);
        let mut back = self.carry_out(1);
        while !forth.is_empty() || !back.is_empty() {
            let answers = self.deliver(1, forth);
            back.extend(answers);
            forth = self.deliver(0, std::mem::take(&mut back));
        }
    }

    /// Lets time pass for both engines.
    fn later(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100);
            self.endpoints.iter_mut().for_each(|e| e.handle_timeout(self.now));
            self.rest();
        }
    }
}

/// What the sending thread sees.
struct Watch {
    stop: AtomicBool,
    /// The last octet of the address that is looked for; its SAs are counted anew when this changes.
    wanted: AtomicU64,
    /// Nanoseconds since `start` at which all SAs sent to it; 0 before.
    seen_at: AtomicU64,
    /// The longest time between two packets since it was last taken.
    worst_ns: AtomicU64,
    packets: AtomicU64,
    start: Instant,
}

/// An inner packet of Child SA number `child`, from the second site to the first.
fn packet(child: usize) -> Vec<u8> {
    let mut packet = vec![0; 100];
    packet[..20].copy_from_slice(&[
        0x45,
        0,
        0,
        100,
        0,
        0,
        0,
        0,
        64,
        17,
        0,
        0,
        10,
        (100 + child / 250) as u8,
        (child % 250) as u8,
        1,
        10,
        (child / 250) as u8,
        (child % 250) as u8,
        1,
    ]);
    packet[20..26].copy_from_slice(&[0x10, 0, 0x20, 0, 0, 80]);
    packet
}

/// As a worker sends: one packet of each SA in turn, as fast as it can.
fn send(tables: &Tables, watch: &Watch) {
    let packets: Vec<Vec<u8>> = (0..CHILDREN).map(packet).collect();
    let mut ivs = IvSource::from_seed([7; 32]);
    let mut out = vec![0; 2048];
    let (mut wanted, mut seen, mut left) = (0, vec![false; CHILDREN], CHILDREN);
    let mut last = Instant::now();
    while !watch.stop.load(Ordering::Relaxed) {
        for batch in (0..CHILDREN).step_by(50) {
            let guard = pin();
            let target = watch.wanted.load(Ordering::Acquire);
            if target != wanted {
                (wanted, left) = (target, CHILDREN);
                seen.fill(false);
            }
            for child in batch..batch + 50 {
                let parsed = Packet::parse(&packets[child]).expect("a packet");
                let Lookup::Sa(sa, set) = tables.lookup_outbound(&parsed, 0, &guard) else {
                    panic!("no SA for child {child}");
                };
                let traffic = Traffic {
                    flow_hash: flow_hash(&parsed),
                    assigned: None,
                    turn: sa.sequence(),
                    len: 150,
                    ends: None,
                };
                let _ = black_box(set.choose(&traffic));
                esp::seal(sa, &parsed, &mut out, &mut ivs).expect("a sealed packet");
                let there = |path: &WeightedPath| match path.path.remote.ip() {
                    IpAddr::V4(a) => u64::from(a.octets()[0]) == wanted && path.weight > 0,
                    IpAddr::V6(_) => false,
                };
                if left > 0 && !seen[child] && set.set().paths.iter().any(there) {
                    seen[child] = true;
                    left -= 1;
                    if left == 0 {
                        let at = watch.start.elapsed().as_nanos() as u64;
                        watch.seen_at.store(at, Ordering::Release);
                    }
                }
                let now = Instant::now();
                watch.worst_ns.fetch_max((now - last).as_nanos() as u64, Ordering::Relaxed);
                last = now;
            }
            watch.packets.fetch_add(50, Ordering::Relaxed);
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let json = std::env::args().any(|a| a == "--json");
    let mut sites = Sites::new();
    assert_eq!(sites.tables.children().len(), CHILDREN);
    let tables = sites.tables.clone();
    let watch = Watch {
        stop: AtomicBool::new(false),
        wanted: AtomicU64::new(0),
        seen_at: AtomicU64::new(0),
        worst_ns: AtomicU64::new(0),
        packets: AtomicU64::new(0),
        start: Instant::now(),
    };
    let [mut handled, mut visible, mut delayed, mut quiet] = [const { Vec::new() }; 4];
    let ms = |ns: u64| ns as f64 / 1e6;
    std::thread::scope(|scope| {
        scope.spawn(|| send(&tables, &watch));
        while watch.packets.load(Ordering::Relaxed) < 100_000 {
            std::thread::yield_now();
        }
        for round in 0..ROUNDS {
            let target = THEIRS[(round + 1) % THEIRS.len()];
            sites.network(0, &[target]);
            let request = sites.carry_out(0);
            assert!(!request.is_empty(), "the move is told");
            let IpAddr::V4(addr) = ip(target) else { unreachable!("an IPv4 address") };
            watch.wanted.store(addr.octets()[0].into(), Ordering::Release);
            watch.seen_at.store(0, Ordering::Release);
            watch.worst_ns.store(0, Ordering::Relaxed);
            let begin = watch.start.elapsed().as_nanos() as u64;
            let answers = sites.deliver(1, request);
            handled.push(ms(watch.start.elapsed().as_nanos() as u64 - begin));
            let limit = Instant::now() + Duration::from_secs(2);
            while watch.seen_at.load(Ordering::Acquire) == 0 {
                assert!(Instant::now() < limit, "the change never becomes visible");
                std::hint::spin_loop();
            }
            let took = watch.seen_at.load(Ordering::Acquire) - begin;
            visible.push(ms(took));
            delayed.push(ms(watch.worst_ns.swap(0, Ordering::Relaxed)));
            // As long again without any change, to tell the machine's own pauses apart.
            std::thread::sleep(Duration::from_nanos(took));
            quiet.push(ms(watch.worst_ns.swap(0, Ordering::Relaxed)));
            let questions = sites.deliver(0, answers);
            let rest = sites.deliver(1, questions);
            sites.deliver(0, rest);
            sites.later(Duration::from_secs(10));
        }
        watch.stop.store(true, Ordering::Relaxed);
    });
    let results = [
        ("message handled and published", median(&mut handled), None),
        ("all SAs send to the new address", median(&mut visible), Some(10.0)),
        ("longest time between two packets meanwhile", median(&mut delayed), Some(1.0)),
        ("the same while nothing changes", median(&mut quiet), None),
    ];
    if json {
        let items = results.map(|(what, ms, goal)| {
            let goal = goal.map_or("null".to_string(), |goal| goal.to_string());
            format!("{{\"what\": \"{what}\", \"median_ms\": {ms:.4}, \"goal_ms\": {goal}}}")
        });
        println!("{{\"child_sas\": {CHILDREN}, \"rounds\": {ROUNDS}, \"results\": [{}]}}", items.join(", "));
    } else {
        println!("one message moves {CHILDREN} Child SAs, medians of {ROUNDS}");
        for (what, ms, goal) in results {
            let verdict = goal.map_or(String::new(), |goal| {
                format!("  goal <= {goal} ms  {}", if ms <= goal { "ok" } else { "MISSED" })
            });
            println!("{what:<45} {ms:8.3} ms{verdict}");
        }
    }
}
