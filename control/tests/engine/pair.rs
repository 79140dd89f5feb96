//! Two endpoints, fake time and a seeded network between them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mobikex::config::{AddrPattern, AuthRound, Child, Config, Connection, PskSecret, StartAction};
use mobikex::dissect::IkeKeys;
use mobikex::ike::{Command, Endpoint, Event, IkeSaView, Output};
use mobikex_common::sa::{ChildSaId, ChildSaParams};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

/// One way delay of the network.
const DELAY: Duration = Duration::from_millis(10);

/// A datagram under way.
struct Flight {
    at: Instant,
    to: usize,
    source: SocketAddr,
    destination: SocketAddr,
    nat_t: bool,
    data: Vec<u8>,
}

/// Changes a datagram on the wire.
pub type Tamper = Box<dyn FnMut(&mut Vec<u8>)>;

/// One host: its endpoint, and what its packet path would hold.
pub struct Host {
    pub endpoint: Endpoint,
    pub events: Vec<Event>,
    /// Installed Child SAs, and whether each is sent on.
    pub children: BTreeMap<ChildSaId, (ChildSaParams, bool)>,
    pub addr: SocketAddr,
    /// Keys of IKE SAs that were saved.
    pub keys: Vec<IkeKeys>,
}

/// Two hosts.
pub struct Pair {
    pub now: Instant,
    pub hosts: [Host; 2],
    flights: Vec<Flight>,
    rng: ChaCha20Rng,
    /// Datagrams lost, duplicated, or delayed by up to a second, in percent.
    pub loss: u32,
    pub duplication: u32,
    pub reordering: u32,
    /// Nothing gets through.
    pub cut: bool,
    /// Every datagram that was sent: sender, octets.
    pub sent: Vec<(usize, Vec<u8>)>,
    /// Changes datagrams on the wire.
    pub tamper: Option<Tamper>,
}

pub fn ts(text: &str) -> mobikex::config::TsPattern {
    mobikex::config::TsPattern::Fixed(text.parse().unwrap())
}

/// A configuration of side `me` (0 or 1) for one tunnel with a pre-shared key.
pub fn config(me: usize) -> Config {
    let addrs = ["192.0.2.1", "192.0.2.2"];
    let ids = ["a.example", "b.example"];
    let nets = ["10.1.0.0/16", "10.2.0.0/16"];
    let pattern = |i: usize| vec![AddrPattern::Range(addrs[i].parse().unwrap())];
    let round = |i: usize| AuthRound { id: Some(ids[i].parse().unwrap()) };
    let child =
        Child { local_ts: vec![ts(nets[me])], remote_ts: vec![ts(nets[1 - me])], ..Child::new("net") };
    let connection = Connection {
        local_addrs: pattern(me),
        remote_addrs: pattern(1 - me),
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

impl Pair {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, config(0), config(1))
    }

    pub fn with(seed: u64, a: Config, b: Config) -> Self {
        let now = Instant::now();
        let host = |index: u8, config: Config| Host {
            endpoint: Endpoint::new(now, config, [seed as u8 ^ index; 32]),
            events: Vec::new(),
            children: BTreeMap::new(),
            addr: format!("192.0.2.{}:500", index + 1).parse().unwrap(),
            keys: Vec::new(),
        };
        Self {
            now,
            hosts: [host(0, a), host(1, b)],
            flights: Vec::new(),
            rng: ChaCha20Rng::seed_from_u64(seed),
            loss: 0,
            duplication: 0,
            reordering: 0,
            cut: false,
            sent: Vec::new(),
            tamper: None,
        }
    }

    pub fn up(&mut self, host: usize) {
        self.command(host, Command::Up { connection: "home".into(), child: None });
    }

    pub fn rekey(&mut self, host: usize, child: Option<&str>) {
        let child = child.map(Into::into);
        self.command(host, Command::Rekey { connection: "home".into(), child });
    }

    pub fn down(&mut self, host: usize, child: Option<&str>) {
        let child = child.map(Into::into);
        self.command(host, Command::Down { connection: "home".into(), child });
    }

    pub fn command(&mut self, host: usize, command: Command) {
        self.hosts[host].endpoint.handle_command(self.now, command).unwrap();
        self.collect();
    }

    /// Set up, and check that it worked.
    pub fn established(seed: u64) -> Self {
        let mut pair = Self::new(seed);
        pair.up(0);
        pair.advance(Duration::from_secs(1));
        pair.assert_one_tunnel();
        pair
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
                let f = self.flights.remove(index);
                let endpoint = &mut self.hosts[f.to].endpoint;
                endpoint.handle_datagram(self.now, f.destination, f.source, f.nat_t, &f.data);
                self.collect();
            }
        }
        panic!("the endpoints never come to rest");
    }

    fn percent(&mut self, chance: u32) -> bool {
        self.rng.next_u32() % 100 < chance
    }

    /// Carries out what the endpoints ask for.
    fn collect(&mut self) {
        for index in 0..2 {
            while let Some(output) = self.hosts[index].endpoint.poll_output() {
                self.carry_out(index, output);
            }
        }
    }

    fn carry_out(&mut self, index: usize, output: Output) {
        let host = &mut self.hosts[index];
        match output {
            Output::Transmit { local, remote, nat_t, data } => self.send(index, local, remote, nat_t, data),
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
            Output::Event(event) => host.events.push(event),
            Output::SetAddresses { children, set } => {
                for id in children {
                    let Some((params, _)) = host.children.get_mut(&id) else { panic!("no such Child SA") };
                    params.addresses = set.clone();
                }
            }
            Output::SetSelectors { child, set, ts_local, ts_remote } => {
                let (params, _) = host.children.get_mut(&child).unwrap();
                (params.addresses, params.ts_local, params.ts_remote) = (set, ts_local, ts_remote);
            }
            Output::Echo { .. } | Output::WatchTraffic(_) => {}
            Output::SaveKeys(keys) => host.keys.push(*keys),
            Output::InstallTrap { .. } | Output::RemovePolicy(_) | Output::CountPaths(_) => {}
        }
    }

    fn send(&mut self, index: usize, local: SocketAddr, remote: SocketAddr, nat_t: bool, mut data: Vec<u8>) {
        self.sent.push((index, data.clone()));
        if data.len() == 1 || self.cut || self.percent(self.loss) {
            return;
        }
        if let Some(tamper) = &mut self.tamper {
            tamper(&mut data);
        }
        let copies = if self.percent(self.duplication) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if self.percent(self.reordering) { self.rng.next_u32() % 1000 } else { 0 };
            self.flights.push(Flight {
                at: self.now + DELAY + Duration::from_millis(late.into()),
                to: 1 - index,
                source: local,
                destination: remote,
                nat_t,
                data: data.clone(),
            });
        }
    }

    pub fn views(&self, host: usize) -> Vec<IkeSaView> {
        self.hosts[host].endpoint.ike_sas(self.now)
    }

    /// The SAs on which a host sends, by the SPI on its packets.
    pub fn sending(&self, host: usize) -> Vec<&ChildSaParams> {
        self.hosts[host].children.values().filter(|(_, outbound)| *outbound).map(|(p, _)| p).collect()
    }

    /// Exactly one IKE SA and one Child SA, the same on both sides, with mirrored keys and selectors.
    pub fn assert_one_tunnel(&self) {
        for host in 0..2 {
            let views = self.views(host);
            let live: Vec<_> = views.iter().filter(|v| v.state == "ESTABLISHED").collect();
            assert_eq!(live.len(), 1, "host {host}: {views:#?} {:#?}", self.hosts[host].events);
            assert_eq!(
                live[0].children.iter().filter(|c| c.state == "INSTALLED").count(),
                1,
                "host {host}: {views:#?}"
            );
        }
        let (a, b) = (self.sending(0), self.sending(1));
        assert_eq!((a.len(), b.len()), (1, 1));
        let (a, b) = (a[0], b[0]);
        assert_eq!((a.spi_out, a.spi_in), (b.spi_in, b.spi_out));
        assert_eq!(a.suite, b.suite);
        assert_eq!((&a.ts_local, &a.ts_remote), (&b.ts_remote, &b.ts_local));
        assert_eq!(a.keys_out.encryption, b.keys_in.encryption);
        assert_eq!(a.keys_in.encryption, b.keys_out.encryption);
        assert_eq!(a.keys_out.integrity, b.keys_in.integrity);
        assert_eq!(a.keys_in.integrity, b.keys_out.integrity);
        assert_ne!(a.keys_in.encryption, a.keys_out.encryption);
    }

    /// Every SA on which one side sends is one on which the other receives: nothing sent now would be lost.
    pub fn assert_nothing_is_lost(&self) {
        for host in 0..2 {
            for sa in self.sending(host) {
                let received = self.hosts[1 - host].children.values().any(|(p, _)| p.spi_in == sa.spi_out);
                assert!(received, "host {host} sends on {} which the peer does not have", sa.spi_out);
            }
        }
    }

    pub fn assert_nothing_is_left(&self) {
        for host in 0..2 {
            assert!(self.views(host).is_empty(), "host {host}: {:#?}", self.views(host));
            assert!(self.hosts[host].children.is_empty(), "host {host} left Child SAs behind");
        }
    }

    /// Half seconds of the network as it is, then quiet: nothing is lost on the way, and whatever collided comes
    /// to an end. False when a peer was given up for dead, which proves nothing.
    pub fn settles(&mut self, half_seconds: u32) -> bool {
        for _ in 0..half_seconds {
            self.advance(Duration::from_millis(500));
            if self.gave_up() {
                return false;
            }
            self.assert_nothing_is_lost();
        }
        (self.loss, self.reordering) = (0, 0);
        self.advance(Duration::from_secs(200));
        !self.gave_up()
    }

    /// A peer can be given up for dead by bad luck alone, when the network loses a request six times in a row.
    fn gave_up(&self) -> bool {
        (0..2).any(|host| self.reasons(host).contains("the peer does not answer"))
    }

    pub fn reasons(&self, host: usize) -> String {
        self.hosts[host].events.iter().map(|e| format!("{e}\n")).collect()
    }
}

impl Host {
    fn stop_sending(&mut self, params: &ChildSaParams) {
        for (other, outbound) in self.children.values_mut() {
            *outbound &= other.policy != params.policy;
        }
    }
}

/// Marks the child to be set up at start.
pub fn starting(mut config: Config) -> Config {
    config.connections[0].children[0].start_action = StartAction::Start;
    config
}
