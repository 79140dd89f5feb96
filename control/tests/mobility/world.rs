//! Two multihomed hosts, fake time, and a network between them that can cut, lose, delay, translate and forge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mobikex::config::{AddrPattern, AuthRound, Child, Config, Connection, PskSecret};
use mobikex::ike::{AddressAction, ChildEvent, Command, Endpoint, Event, IkeSaView, LocalAddress, Output};
use mobikex_common::addr::{Path, Scheduler};
use mobikex_common::sa::{ChildSaId, ChildSaParams};
use mobikex_common::wire::echo::Echo;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

/// One way delay of every link.
pub const DELAY: Duration = Duration::from_millis(10);

enum Cargo {
    Ike {
        nat_t: bool,
        data: Vec<u8>,
    },
    /// To the SA with this inbound SPI.
    Echo {
        spi: u32,
        child: ChildSaId,
        echo: Echo,
    },
}

/// A datagram under way.
struct Flight {
    at: Instant,
    to: usize,
    source: SocketAddr,
    destination: SocketAddr,
    cargo: Cargo,
}

/// One host: its endpoint, its addresses, and what its packet path would hold.
pub struct Host {
    pub endpoint: Endpoint,
    pub events: Vec<Event>,
    pub children: BTreeMap<ChildSaId, (ChildSaParams, bool)>,
    pub addresses: BTreeSet<IpAddr>,
    /// Datagrams sent to each address of the peer.
    pub sent_to: BTreeMap<IpAddr, u32>,
    /// Packets that the packet path would have sent, for the probes' pace.
    packets: u64,
    /// Whether there is traffic.
    sending: bool,
    /// Who shall tell when there is some again.
    watched: Option<Vec<ChildSaId>>,
}

/// See the module.
pub struct World {
    pub now: Instant,
    pub hosts: [Host; 2],
    flights: Vec<Flight>,
    rng: ChaCha20Rng,
    pub loss: u32,
    pub duplication: u32,
    pub reordering: u32,
    /// Addresses whose links are cut, although their hosts do not know.
    pub cut: BTreeSet<IpAddr>,
    /// Host 0 is behind a NAT with this address and first port.
    pub nat: Option<Nat>,
}

/// Translates the addresses of host 0.
pub struct Nat {
    pub outside: IpAddr,
    next_port: u16,
    mappings: BTreeMap<SocketAddr, u16>,
}

impl Nat {
    pub fn new(outside: &str) -> Self {
        Self { outside: outside.parse().unwrap(), next_port: 20_000, mappings: BTreeMap::new() }
    }

    /// Forgets all mappings, as a reboot does; further ports are other ones.
    pub fn reboot(&mut self) {
        self.mappings.clear();
    }

    fn out(&mut self, source: SocketAddr) -> SocketAddr {
        let port = *self.mappings.entry(source).or_insert_with(|| {
            self.next_port += 1;
            self.next_port
        });
        SocketAddr::new(self.outside, port)
    }

    fn back(&self, destination: SocketAddr) -> Option<SocketAddr> {
        let found = self.mappings.iter().find(|(_, port)| **port == destination.port());
        found.filter(|_| destination.ip() == self.outside).map(|(inside, _)| *inside)
    }
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
    let round = |i: usize| AuthRound { id: Some(ids[i].parse().unwrap()) };
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

impl World {
    /// Two hosts with these addresses, not connected yet.
    pub fn with(seed: u64, configs: [Config; 2], addresses: [&[&str]; 2]) -> Self {
        let now = Instant::now();
        let mut index = 0;
        let hosts = configs.map(|config| {
            index += 1;
            Host {
                endpoint: Endpoint::new(now, config, [seed as u8 ^ (index * 77) as u8; 32]),
                events: Vec::new(),
                children: BTreeMap::new(),
                addresses: addresses[index - 1].iter().map(|a| ip(a)).collect(),
                sent_to: BTreeMap::new(),
                packets: 0,
                sending: true,
                watched: None,
            }
        });
        let mut world = Self {
            now,
            hosts,
            flights: Vec::new(),
            rng: ChaCha20Rng::seed_from_u64(seed),
            loss: 0,
            duplication: 0,
            reordering: 0,
            cut: BTreeSet::new(),
            nat: None,
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
        self.hosts[host].endpoint.set_network(self.now, list);
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
            let arrival = self.flights.iter().map(|f| f.at).min();
            let timers = self.hosts.iter().filter_map(|h| h.endpoint.next_timeout());
            let Some(next) = arrival.into_iter().chain(timers).min().filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            for index in 0..2 {
                self.hosts[index].endpoint.handle_timeout(self.now);
            }
            self.collect();
            while let Some(index) = self.flights.iter().position(|f| f.at <= self.now) {
                let flight = self.flights.remove(index);
                self.arrive(flight);
                self.collect();
            }
            self.assert_invariants();
        }
        panic!("the endpoints never come to rest");
    }

    fn arrive(&mut self, flight: Flight) {
        let Flight { to, source, destination, cargo, .. } = flight;
        match cargo {
            Cargo::Ike { nat_t, data } => {
                self.hosts[to].endpoint.handle_datagram(self.now, destination, source, nat_t, &data);
            }
            Cargo::Echo { spi, child, echo } => {
                // What a packet path does: answer over the same pair, or hand the answer up.
                let Some((_, (params, _))) =
                    self.hosts[to].children.iter().find(|(_, (p, _))| p.spi_in.0 == spi)
                else {
                    return;
                };
                let (id, out, known) = (params.id, params.spi_out.0, params.addresses.paths.clone());
                if !known.iter().any(|p| p.path.remote == source) {
                    let path = Path { local: destination, remote: source };
                    self.hosts[to].endpoint.handle_new_source(self.now, id, path);
                }
                if echo.response {
                    let own = self.hosts[to].children.get(&child).map(|(p, _)| p.id);
                    if let Some(own) = own {
                        self.hosts[to].endpoint.handle_echo(self.now, own, &echo, self.now);
                    }
                } else {
                    let answer = Echo { response: true, ..echo };
                    self.fly(to, destination, source, Cargo::Echo { spi: out, child, echo: answer });
                }
            }
        }
    }

    fn percent(&mut self, chance: u32) -> bool {
        self.rng.next_u32() % 100 < chance
    }

    fn collect(&mut self) {
        loop {
            let mut idle = true;
            for index in 0..2 {
                while let Some(output) = self.hosts[index].endpoint.poll_output() {
                    idle = false;
                    self.carry_out(index, output);
                }
            }
            if idle {
                return;
            }
        }
    }

    fn carry_out(&mut self, index: usize, output: Output) {
        let host = &mut self.hosts[index];
        match output {
            Output::Transmit { local, remote, nat_t, data } => {
                *host.sent_to.entry(remote.ip()).or_default() += 1;
                self.fly(index, local, remote, Cargo::Ike { nat_t, data });
            }
            Output::Echo { child, path, echo, .. } => {
                host.packets += u64::from(host.sending);
                let packets = host.packets;
                let spi = host.children[&child].0.spi_out.0;
                self.hosts[index].endpoint.note_traffic(self.now, child, packets);
                self.fly(index, path.local, path.remote, Cargo::Echo { spi, child, echo });
            }
            Output::InstallChild { params, outbound } => {
                if outbound {
                    host.stop_sending(&params);
                }
                let old = host.children.insert(params.id, (*params, outbound));
                assert!(old.is_none(), "a Child SA was installed twice");
            }
            Output::ActivateOutbound(id) => {
                let params = host.children[&id].0.clone();
                host.stop_sending(&params);
                host.children.get_mut(&id).unwrap().1 = true;
            }
            Output::DeactivateOutbound(id) => host.children.get_mut(&id).unwrap().1 = false,
            Output::RemoveChild(id) => {
                host.children.remove(&id).expect("only installed Child SAs are removed");
            }
            Output::SetAddresses { children, set } => {
                for id in children {
                    let (params, _) = host.children.get_mut(&id).expect("only installed Child SAs change");
                    params.addresses = set.clone();
                }
            }
            Output::SetSelectors { child, set, ts_local, ts_remote } => {
                let (params, _) = host.children.get_mut(&child).unwrap();
                (params.addresses, params.ts_local, params.ts_remote) = (set, ts_local, ts_remote);
            }
            Output::Event(event) => host.events.push(event),
            Output::WatchTraffic(children) => host.watched = Some(children),
            Output::SaveKeys(_) => unreachable!("nobody asked for keys"),
            Output::InstallTrap { .. } | Output::RemovePolicy(_) | Output::CountPaths(_) => {}
        }
    }

    /// Puts a datagram on the wire, if there is one between these addresses.
    fn fly(&mut self, index: usize, local: SocketAddr, remote: SocketAddr, cargo: Cargo) {
        let to = 1 - index;
        if matches!(&cargo, Cargo::Ike { data, .. } if data.len() == 1) {
            return;
        }
        if !self.hosts[index].addresses.contains(&local.ip()) || self.cut.contains(&local.ip()) {
            return;
        }
        let (mut source, mut destination) = (local, remote);
        if let Some(nat) = &mut self.nat {
            if index == 0 {
                source = nat.out(local);
            } else if let Some(inside) = nat.back(remote) {
                destination = inside;
            } else {
                return;
            }
        }
        let there =
            self.hosts[to].addresses.contains(&destination.ip()) && !self.cut.contains(&destination.ip());
        if !there || local.is_ipv4() != remote.is_ipv4() || self.percent(self.loss) {
            return;
        }
        let copies = if self.percent(self.duplication) { 2 } else { 1 };
        let mut cargo = Some(cargo);
        for copy in 0..copies {
            let late = if self.percent(self.reordering) { self.rng.next_u32() % 1000 } else { 0 };
            let cargo = if copy + 1 == copies { cargo.take() } else { cargo.as_ref().map(Cargo::copy) };
            self.flights.push(Flight {
                at: self.now + DELAY + Duration::from_millis(late.into()),
                to,
                source,
                destination,
                cargo: cargo.unwrap(),
            });
        }
    }

    pub fn view(&self, host: usize) -> IkeSaView {
        let views = self.hosts[host].endpoint.ike_sas(self.now);
        let found = views.into_iter().find(|v| v.state == "ESTABLISHED");
        found.unwrap_or_else(|| panic!("host {host} has no IKE SA:\n{}", self.story(host)))
    }

    /// The SA on which a host sends.
    pub fn sending(&self, host: usize) -> &ChildSaParams {
        let mut found = self.hosts[host].children.values().filter(|(_, outbound)| *outbound).map(|(p, _)| p);
        found.next().unwrap_or_else(|| panic!("host {host} sends on no SA:\n{}", self.story(host)))
    }

    /// The pairs that carry traffic of a host, as `local-remote`, in order.
    pub fn carrying(&self, host: usize) -> Vec<String> {
        let set = &self.sending(host).addresses;
        let used = set.paths.iter().filter(|p| p.weight > 0);
        let mut found: Vec<_> =
            used.map(|p| format!("{}-{}", p.path.local.ip(), p.path.remote.ip())).collect();
        found.sort();
        found
    }

    pub fn scheduler(&self, host: usize) -> Scheduler {
        self.sending(host).addresses.scheduler
    }

    /// Exactly one IKE SA and one Child SA that fit each other.
    pub fn assert_one_tunnel(&self) {
        let (a, b) = (self.sending(0), self.sending(1));
        assert_eq!((a.spi_out, a.spi_in), (b.spi_in, b.spi_out), "{}\n{}", self.story(0), self.story(1));
        self.view(0);
        self.view(1);
    }

    /// Everything that is sent now arrives: each carrying pair of a host leads from an address that it has, over links
    /// that work, to one that the peer has.
    pub fn assert_traffic_arrives(&self) {
        for host in 0..2 {
            let carrying = self.carrying(host);
            assert!(!carrying.is_empty(), "host {host} has no path:\n{}", self.story(host));
            for weighted in self.sending(host).addresses.paths.iter().filter(|p| p.weight > 0) {
                let Path { local, remote } = weighted.path;
                let remote = match &self.nat {
                    Some(nat) if host == 1 => nat.back(remote).map_or(remote, |inside| inside).ip(),
                    _ => remote.ip(),
                };
                let works = |h: usize, addr: IpAddr| {
                    self.hosts[h].addresses.contains(&addr) && !self.cut.contains(&addr)
                };
                assert!(
                    works(host, local.ip()) && works(1 - host, remote),
                    "host {host} sends over {}:\n{}\n{}",
                    weighted.path,
                    self.story(host),
                    self.story(1 - host)
                );
            }
        }
    }

    fn assert_invariants(&self) {
        for host in &self.hosts {
            for (params, _) in host.children.values() {
                let set = &params.addresses;
                // M16, M5: a set is never empty, and bounded.
                assert!(!set.paths.is_empty() && set.paths.len() <= 200, "{} paths", set.paths.len());
                assert!(set.paths.iter().all(|p| p.path.local.is_ipv4() == p.path.remote.is_ipv4()));
                let mut pairs: Vec<_> = set.paths.iter().map(|p| p.path).collect();
                pairs.sort();
                pairs.dedup();
                assert_eq!(pairs.len(), set.paths.len(), "a path stands twice");
            }
        }
    }

    pub fn story(&self, host: usize) -> String {
        self.hosts[host].events.iter().map(|e| format!("  {host}: {e}\n")).collect()
    }

    /// Traffic of a host pauses, or goes on: then whoever was asked to tell does so.
    pub fn traffic(&mut self, host: usize, on: bool) {
        self.hosts[host].sending = on;
        if let Some(child) = self.hosts[host].watched.take_if(|_| on).and_then(|c| c.first().copied()) {
            self.hosts[host].endpoint.handle_child_event(self.now, ChildEvent::Traffic(child));
            self.collect();
        }
    }

    /// Rekeys something, if there is anything.
    pub fn try_rekey(&mut self, host: usize) {
        let child = self.random().is_multiple_of(2).then(|| "net".to_string());
        let command = Command::Rekey { connection: "home".into(), child };
        let _ = self.hosts[host].endpoint.handle_command(self.now, command);
        self.collect();
    }

    /// A peer was given up for dead.
    pub fn lost(&self) -> bool {
        (0..2).any(|h| self.story(h).contains("the peer does not answer"))
    }

    pub fn random(&mut self) -> u32 {
        self.rng.next_u32()
    }
}

impl Cargo {
    fn copy(&self) -> Self {
        match self {
            Self::Ike { nat_t, data } => Self::Ike { nat_t: *nat_t, data: data.clone() },
            Self::Echo { spi, child, echo } => Self::Echo { spi: *spi, child: *child, echo: echo.clone() },
        }
    }
}

impl Host {
    fn stop_sending(&mut self, params: &ChildSaParams) {
        for (other, outbound) in self.children.values_mut() {
            *outbound &= other.policy != params.policy;
        }
    }
}
