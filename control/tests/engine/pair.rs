//! Two endpoints with one address each, and what the tests of the engine ask of them.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use mobikex::config::{AddrPattern, AuthRound, Child, Config, Connection, PskSecret, StartAction};
use mobikex::ike::{Command, IkeSaView};
use mobikex_common::sa::ChildSaParams;

use crate::world::{World, ip};

const ADDRS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// Two hosts.
pub struct Pair(World);

impl Deref for Pair {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl DerefMut for Pair {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.0
    }
}

pub fn ts(text: &str) -> mobikex::config::TsPattern {
    mobikex::config::TsPattern::Fixed(text.parse().unwrap())
}

/// A configuration of side `me` (0 or 1) for one tunnel with a pre-shared key.
pub fn config(me: usize) -> Config {
    let ids = ["a.example", "b.example"];
    let nets = ["10.1.0.0/16", "10.2.0.0/16"];
    let pattern = |i: usize| vec![AddrPattern::Range(ADDRS[i].parse().unwrap())];
    let round = |i: usize| AuthRound { id: Some(ids[i].parse().unwrap()), ..AuthRound::default() };
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
        Self(World::with(seed, [a, b], [&ADDRS[..1], &ADDRS[1..]]))
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

    /// Set up, and check that it worked.
    pub fn established(seed: u64) -> Self {
        let mut pair = Self::new(seed);
        pair.up(0);
        pair.advance(Duration::from_secs(1));
        pair.assert_one_tunnel();
        pair
    }

    /// Where a host starts from.
    pub fn addr(host: usize) -> SocketAddr {
        SocketAddr::new(ip(ADDRS[host]), 500)
    }

    /// Nothing gets through, or everything again.
    pub fn cut(&mut self, cut: bool) {
        self.0.cut = if cut { ADDRS.iter().map(|a| ip(a)).collect() } else { Default::default() };
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
            assert!(self.hosts[host].raised.is_empty(), "host {host} left scripts without an end");
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
        (0..2).any(|host| self.story(host).contains("the peer does not answer"))
    }
}

/// Marks the child to be set up at start.
pub fn starting(mut config: Config) -> Config {
    config.connections[0].children[0].start_action = StartAction::Start;
    config
}
