//! Two multihomed hosts, fake time, and a network between them that can cut, lose, delay, translate and forge. The tests
//! of the engine (`tests/engine`) run in it as well.

#[path = "nat.rs"]
mod nat;
#[path = "packets.rs"]
mod packets;
#[path = "verdicts.rs"]
mod verdicts;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mobikex::config::{AddrPattern, AuthRound, Child, Config, Connection, PskSecret};
use mobikex::dissect::IkeKeys;
use mobikex::ike::{AddressAction, ChildEvent, Command, Endpoint, Event, LocalAddress, Script};
use mobikex_common::sa::{ChildSaId, ChildSaParams, PolicyId};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use tracing::debug;

pub use nat::Nat;
use packets::{Esp, Packets};

/// One way delay of every link.
pub const DELAY: Duration = Duration::from_millis(10);

#[derive(Clone)]
enum Cargo {
    Ike { nat_t: bool, data: Vec<u8> },
    Esp(Esp),
}

/// A datagram under way.
struct Flight {
    to: usize,
    source: SocketAddr,
    destination: SocketAddr,
    cargo: Cargo,
}

/// Changes an IKE datagram of a host on the wire.
pub type Tamper = Box<dyn FnMut(&mut Vec<u8>)>;
/// Changes source and destination of an IKE datagram of a host on the wire.
pub type Rewrite = Box<dyn FnMut(usize, &mut SocketAddr, &mut SocketAddr)>;

/// A datagram to an address that no host has or has had.
#[derive(Clone, Debug)]
pub struct Stray {
    pub at: Instant,
    pub from: usize,
    pub to: SocketAddr,
    pub what: StrayKind,
}

/// What it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StrayKind {
    Request,
    Response,
    Esp,
}

/// One host: its endpoint, its addresses, and what its packet path would hold.
pub struct Host {
    pub endpoint: Endpoint,
    pub events: Vec<Event>,
    /// Installed Child SAs, and whether each is sent on.
    pub children: BTreeMap<ChildSaId, (ChildSaParams, bool)>,
    pub addresses: BTreeSet<IpAddr>,
    /// Datagrams sent to each address of the peer.
    pub sent_to: BTreeMap<IpAddr, u32>,
    /// All addresses that it has had.
    pub ever: BTreeSet<IpAddr>,
    /// Where its datagrams have reached the peer.
    pub reached: BTreeSet<SocketAddr>,
    /// Policies that wait for traffic.
    pub traps: BTreeSet<PolicyId>,
    /// Keys of IKE SAs that were saved.
    pub keys: Vec<IkeKeys>,
    /// Its virtual addresses.
    pub vips: BTreeSet<IpAddr>,
    /// DNS servers that its peer has named.
    pub resolvers: Vec<IpAddr>,
    /// What scripts were told.
    pub told: Vec<(bool, Arc<Script>)>,
    /// Scripts that were told of a beginning and not yet of the end.
    pub raised: Vec<Arc<Script>>,
    config: Config,
    packets: Packets,
    /// Packets that the packet path would have sent, for the probes' pace.
    count: u64,
    /// Whether there is traffic.
    sending: bool,
    /// Who shall tell when there is some again.
    watched: Option<Vec<ChildSaId>>,
    /// Workers that shall tell when they send on an SA.
    watched_workers: BTreeSet<(ChildSaId, u32)>,
    /// Suspended until then.
    asleep: Option<Instant>,
}

/// See the module.
pub struct World {
    start: Instant,
    pub now: Instant,
    pub hosts: [Host; 2],
    flights: BTreeMap<(Instant, u64), Flight>,
    launched: u64,
    rng: ChaCha20Rng,
    /// Datagrams lost, duplicated, or delayed by up to a second, in percent.
    pub loss: u32,
    pub duplication: u32,
    pub reordering: u32,
    /// Addresses whose links are cut, although their hosts do not know.
    pub cut: BTreeSet<IpAddr>,
    /// Addresses at which nothing arrives.
    pub deaf: BTreeSet<IpAddr>,
    /// Addresses from which nothing gets away.
    pub mute: BTreeSet<IpAddr>,
    /// Pairs, host 0 first, between which there is no way.
    pub no_way: BTreeSet<(IpAddr, IpAddr)>,
    /// IKE datagrams of more octets get lost.
    pub mtu: Option<usize>,
    /// Host 0 is behind a NAT with this address and first port.
    pub nat: Option<Nat>,
    /// Addresses that NATs have shown instead of those of host 0.
    pub outsides: BTreeSet<IpAddr>,
    /// Sources that an attacker has put into the headers of genuine datagrams.
    pub rewritten: Vec<(Instant, IpAddr)>,
    pub tamper: Option<Tamper>,
    pub rewrite: Option<Rewrite>,
    /// Every IKE datagram that was sent: sender, octets.
    pub sent: Vec<(usize, Vec<u8>)>,
    /// Every one that arrived, of an SA that the receiver had: receiver, octets.
    pub heard: Vec<(usize, Vec<u8>)>,
    pub strays: Vec<Stray>,
    /// Time between packets of each host that has traffic; without it only the probes' pace shows that there is some.
    pub traffic: Option<Duration>,
    next_packet: Instant,
    /// Something but datagrams came out of an endpoint since this was false last.
    pub changed: bool,
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub const A: [&str; 3] = ["192.0.2.1", "203.0.113.1", "2001:db8:a::1"];
pub const B: [&str; 3] = ["198.51.100.1", "198.51.100.129", "2001:db8:b::1"];

/// A configuration of side `me` for one tunnel with a pre-shared key, on any addresses.
pub fn config(me: usize) -> Config {
    let ids = ["a.example", "b.example"];
    let nets = ["10.1.0.0/16", "10.2.0.0/16"];
    let ts = |text: &str| mobikex::config::TsPattern::Fixed(text.parse().unwrap());
    let round = |i: usize| AuthRound { id: Some(ids[i].parse().unwrap()), ..AuthRound::default() };
    let child =
        Child { local_ts: vec![ts(nets[me])], remote_ts: vec![ts(nets[1 - me])], ..Child::new("net") };
    let remote =
        if me == 0 { vec![AddrPattern::Range(B[0].parse().unwrap())] } else { vec![AddrPattern::Any] };
    let connection = Connection {
        local_addrs: vec![AddrPattern::Any],
        remote_addrs: remote,
        local: round(me),
        remote: round(1 - me),
        children: vec![child],
        ..Connection::new("home")
    };
    let secret = PskSecret {
        name: "ike-1".into(),
        ids: ids.iter().map(|id| id.parse().unwrap()).collect(),
        secret: b"correct horse battery staple".to_vec().into(),
    };
    Config { connections: vec![connection], secrets: vec![secret], ..Config::default() }
}

/// Both sides with a change to their only connection.
pub fn configs(change: impl Fn(&mut Connection)) -> [Config; 2] {
    [0, 1].map(|me| {
        let mut c = config(me);
        change(&mut c.connections[0]);
        c
    })
}

fn seed_of(seed: u64, host: usize, life: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    (bytes[8], bytes[9]) = (host as u8, life);
    bytes
}

impl Host {
    fn new(now: Instant, config: Config, seed: [u8; 32], addresses: BTreeSet<IpAddr>) -> Self {
        Self {
            endpoint: Endpoint::new(now, config.clone(), seed),
            events: Vec::new(),
            children: BTreeMap::new(),
            ever: addresses.clone(),
            addresses,
            sent_to: BTreeMap::new(),
            reached: BTreeSet::new(),
            config,
            traps: BTreeSet::new(),
            keys: Vec::new(),
            vips: BTreeSet::new(),
            resolvers: Vec::new(),
            told: Vec::new(),
            raised: Vec::new(),
            packets: Packets::default(),
            count: 0,
            sending: true,
            watched: None,
            watched_workers: BTreeSet::new(),
            asleep: None,
        }
    }
}

impl World {
    /// Two hosts with these addresses, not connected yet.
    pub fn with(seed: u64, configs: [Config; 2], addresses: [&[&str]; 2]) -> Self {
        let now = Instant::now();
        let mut index = 0;
        let hosts = configs.map(|mut config| {
            index += 1;
            // Scripts are told of everything, so that every test shows whether they are told well.
            let children = config.connections.iter_mut().flat_map(|conn| &mut conn.children);
            children.for_each(|child| child.updown = Some("true".into()));
            let addresses = addresses[index - 1].iter().map(|a| ip(a)).collect();
            Host::new(now, config, seed_of(seed, index, 0), addresses)
        });
        let mut world = Self {
            start: now,
            now,
            hosts,
            flights: BTreeMap::new(),
            launched: 0,
            rng: ChaCha20Rng::seed_from_u64(seed),
            loss: 0,
            duplication: 0,
            reordering: 0,
            cut: BTreeSet::new(),
            deaf: BTreeSet::new(),
            mute: BTreeSet::new(),
            no_way: BTreeSet::new(),
            mtu: None,
            nat: None,
            outsides: BTreeSet::new(),
            rewritten: Vec::new(),
            tamper: None,
            rewrite: None,
            sent: Vec::new(),
            heard: Vec::new(),
            strays: Vec::new(),
            traffic: None,
            next_packet: now,
            changed: true,
        };
        world.tell_network(0);
        world.tell_network(1);
        world
    }

    /// One tunnel between hosts with `addresses`, settled.
    pub fn up(seed: u64, configs: [Config; 2], addresses: [&[&str]; 2]) -> Self {
        let mut world = Self::with(seed, configs, addresses);
        world.connect();
        world
    }

    pub fn connect(&mut self) {
        self.command(0, Command::Up { connection: "home".into(), child: None });
        self.advance(Duration::from_secs(3));
        self.assert_one_tunnel();
    }

    fn tell_network(&mut self, host: usize) {
        let list = self.hosts[host]
            .addresses
            .iter()
            .zip(2..)
            .map(|(addr, device)| LocalAddress {
                addr: *addr,
                device,
                interface: format!("wan{device}"),
                reach: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            })
            .collect();
        let host = &mut self.hosts[host];
        host.ever.extend(host.addresses.iter().copied());
        host.endpoint.set_network(self.now, list);
        self.collect();
    }

    /// An address appears on a host.
    pub fn add(&mut self, host: usize, addr: &str) {
        self.hosts[host].addresses.insert(ip(addr));
        self.tell_network(host);
    }

    /// An address vanishes from a host.
    pub fn remove(&mut self, host: usize, addr: &str) {
        self.hosts[host].addresses.remove(&ip(addr));
        self.tell_network(host);
    }

    /// One address gives way to another in one step.
    pub fn replace(&mut self, host: usize, old: &str, new: &str) {
        self.hosts[host].addresses.remove(&ip(old));
        self.hosts[host].addresses.insert(ip(new));
        self.tell_network(host);
    }

    /// All addresses of a host give way to one in one step.
    pub fn replace_all(&mut self, host: usize, new: &str) {
        self.hosts[host].addresses = [ip(new)].into();
        self.tell_network(host);
    }

    pub fn command(&mut self, host: usize, command: Command) {
        self.hosts[host].endpoint.handle_command(self.now, command).unwrap();
        self.collect();
    }

    /// An action by hand on all SAs; the peer's verdict.
    pub fn action(&mut self, host: usize, action: AddressAction, check: bool) -> String {
        self.ask(
            host,
            Command::Address { connection: "home".into(), child: None, action, check, inner: false },
        )
    }

    /// The peer's verdict on an action by hand.
    pub fn ask(&mut self, host: usize, command: Command) -> String {
        let before = self.hosts[host].events.len();
        self.command(host, command);
        self.advance(Duration::from_secs(1));
        let verdict = self.hosts[host].events[before..].iter().find_map(|e| match e {
            Event::AddressAction { by_peer: false, by_hand: true, verdict, .. } => Some(verdict.clone()),
            _ => None,
        });
        verdict.expect("there is a verdict within a second")
    }

    /// Lets time pass, delivering datagrams and firing timers in order.
    pub fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..1_000_000 {
            if !self.step(end) {
                return;
            }
            self.assert_invariants();
        }
        panic!("the endpoints never come to rest");
    }

    /// Lets happen what is next, unless that is after `end`: then it is `end`, and nothing has happened.
    pub fn step(&mut self, end: Instant) -> bool {
        let arrival = self.flights.keys().next().map(|(at, _)| *at);
        let timers = self.hosts.iter().filter_map(|h| h.asleep.or_else(|| h.endpoint.next_timeout()));
        let packet = self.traffic.map(|_| self.next_packet);
        let next = arrival.into_iter().chain(timers).chain(packet).min();
        let Some(next) = next.filter(|at| *at <= end) else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(next);
        for host in &mut self.hosts {
            host.asleep = host.asleep.filter(|until| *until > self.now);
            if host.asleep.is_none() {
                host.endpoint.handle_timeout(self.now);
            }
        }
        self.collect();
        if let Some(interval) = self.traffic
            && self.next_packet <= self.now
        {
            self.next_packet = self.now + interval;
            self.send_traffic();
        }
        while let Some(entry) = self.flights.first_entry()
            && entry.key().0 <= self.now
        {
            let flight = entry.remove();
            self.arrive(flight);
            self.collect();
        }
        true
    }

    fn arrive(&mut self, flight: Flight) {
        let Flight { to, source, destination, cargo } = flight;
        if !self.hosts[to].addresses.contains(&destination.ip()) || self.hosts[to].asleep.is_some() {
            return;
        }
        match cargo {
            Cargo::Ike { nat_t, data } => {
                debug!(target: "SIM", "{:?} host {to} gets {source} -> {destination}", self.now - self.start);
                let unknown = self.hosts[to].endpoint.counters().unknown_spi;
                self.hosts[to].endpoint.handle_datagram(self.now, destination, source, nat_t, &data);
                if self.hosts[to].endpoint.counters().unknown_spi == unknown {
                    self.heard.push((to, data));
                }
            }
            Cargo::Esp(esp) => self.receive_esp(to, (destination, source), esp),
        }
    }

    fn percent(&mut self, chance: u32) -> bool {
        self.rng.next_u32() % 100 < chance
    }

    /// Puts a datagram on the wire, if there is one between these addresses.
    fn fly(&mut self, index: usize, local: SocketAddr, remote: SocketAddr, cargo: Cargo) {
        let to = 1 - index;
        let (mut source, mut destination, mut cargo) = (local, remote, cargo);
        let mut what = StrayKind::Esp;
        if let Cargo::Ike { data, .. } = &mut cargo {
            if self.mtu.is_some_and(|mtu| data.len() > mtu) {
                return;
            }
            if data.len() == 1 {
                // A keepalive is for the NAT alone.
                return;
            }
            what = if data[19] & 0x20 == 0 { StrayKind::Request } else { StrayKind::Response };
            if let Some(tamper) = &mut self.tamper {
                tamper(data);
            }
        }
        let away = |addr: IpAddr| !self.cut.contains(&addr) && !self.mute.contains(&addr);
        if !self.hosts[index].addresses.contains(&local.ip())
            || !away(local.ip())
            || local.is_ipv4() != remote.is_ipv4()
        {
            return;
        }
        if let (Some(rewrite), Cargo::Ike { .. }) = (&mut self.rewrite, &cargo) {
            rewrite(index, &mut source, &mut destination);
            self.rewritten.extend((source != local).then_some((self.now, source.ip())));
        }
        if let Some(nat) = &mut self.nat {
            let in_udp = match &cargo {
                Cargo::Ike { .. } => true,
                Cargo::Esp(esp) => esp.in_udp(),
            };
            if !in_udp && local.is_ipv4() {
                return;
            }
            if index == 0 {
                source = nat.out(source, destination);
                self.outsides.extend((source != local).then_some(source.ip()));
            } else if destination.is_ipv4() {
                let Some(inside) = nat.enter(destination, source) else { return };
                destination = inside;
            }
        }
        let known = |addr| self.outsides.contains(&addr) || self.hosts.iter().any(|h| h.ever.contains(&addr));
        // Where an attacker or a NAT makes it go is not where it was sent.
        if !known(remote.ip()) {
            self.strays.push(Stray { at: self.now, from: index, to: remote, what });
        }
        let ends = if index == 0 { (local.ip(), destination.ip()) } else { (destination.ip(), local.ip()) };
        let there = self.hosts[to].addresses.contains(&destination.ip())
            && !self.cut.contains(&destination.ip())
            && !self.deaf.contains(&destination.ip())
            && !self.no_way.contains(&ends);
        if !there || self.percent(self.loss) {
            return;
        }
        self.hosts[index].reached.insert(remote);
        let copies = if self.percent(self.duplication) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if self.percent(self.reordering) { self.rng.next_u32() % 1000 } else { 0 };
            self.launched += 1;
            let at = self.now + DELAY + Duration::from_millis(late.into());
            let flight = Flight { to, source, destination, cargo: cargo.clone() };
            self.flights.insert((at, self.launched), flight);
        }
    }

    /// Traffic of a host pauses, or goes on: then whoever was asked to tell does so.
    pub fn traffic(&mut self, host: usize, on: bool) {
        self.hosts[host].sending = on;
        if let Some(child) = self.hosts[host].watched.take_if(|_| on).and_then(|c| c.first().copied()) {
            self.hosts[host].endpoint.handle_child_event(self.now, ChildEvent::Traffic(child));
            self.collect();
        }
    }

    /// A host forgets everything at once, and starts again.
    pub fn crash(&mut self, host: usize) {
        let seed = seed_of(self.random().into(), host, 1);
        let old = &mut self.hosts[host];
        let mut new = Host::new(self.now, old.config.clone(), seed, std::mem::take(&mut old.addresses));
        new.events = std::mem::take(&mut old.events);
        new.ever.append(&mut old.ever);
        new.reached.append(&mut old.reached);
        new.sending = old.sending;
        *old = new;
        self.changed = true;
        self.tell_network(host);
    }

    /// Both are suspended, and what is under way gets lost.
    pub fn jump(&mut self, time: Duration) {
        self.flights.clear();
        self.now += time;
    }

    /// Every link works again, in both directions.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.deaf.clear();
        self.mute.clear();
        self.no_way.clear();
        self.mtu = None;
    }

    /// A host is suspended: it neither hears nor sends nor sees the time.
    pub fn sleep(&mut self, host: usize, time: Duration) {
        self.hosts[host].asleep = Some(self.now + time);
    }

    /// Whoever is suspended goes on.
    pub fn wake(&mut self) {
        self.hosts.iter_mut().for_each(|host| host.asleep = None);
    }

    pub fn random(&mut self) -> u32 {
        self.rng.next_u32()
    }

    pub fn fill(&mut self, octets: &mut [u8]) {
        self.rng.fill_bytes(octets);
    }
}
