//! The life of IKE SAs: a new proof in time, one of a kind, without a first Child SA, and what follows their end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mobikex::config::{AddrPattern, Childless, Config, DpdAction, StartAction, Unique};
use mobikex::ike::{ChildEvent, Command, Endpoint, Output};
use mobikex_common::wire::ike::{ExchangeType, Header};

use crate::pair::{Pair, config, ts};
use crate::world::ip;

const SECOND: Duration = Duration::from_secs(1);

fn changed(mut c: Config, change: impl Fn(&mut mobikex::config::Connection)) -> Config {
    change(&mut c.connections[0]);
    c
}

fn exchanges(pair: &Pair, kind: ExchangeType) -> usize {
    pair.sent.iter().filter(|(_, data)| Header::parse(data).unwrap().exchange == kind).count()
}

#[test]
fn rfc6023_ike_sas_without_a_first_child() {
    use Childless::{Allow, Force, Never, Prefer};
    for ours in [Never, Allow, Prefer, Force] {
        for theirs in [Never, Allow, Prefer, Force] {
            let a = changed(config(0), |c| c.childless = ours);
            let b = changed(config(1), |c| c.childless = theirs);
            let mut pair = Pair::with(1, a, b);
            pair.up(0);
            pair.advance(2 * SECOND);
            let childless = match (ours, theirs) {
                (Prefer, Never) => Some(false),
                (Prefer | Force, Allow | Prefer | Force) => Some(true),
                (Force, Never) | (Never | Allow, Force) => None,
                (Never | Allow, _) => Some(false),
            };
            let Some(childless) = childless else {
                pair.advance(40 * SECOND);
                pair.assert_nothing_is_left();
                let story = format!("{}{}", pair.story(0), pair.story(1));
                assert!(story.contains("childless = force"), "{ours:?} {theirs:?}: {story}");
                continue;
            };
            pair.assert_one_tunnel();
            let later = exchanges(&pair, ExchangeType::CREATE_CHILD_SA) > 0;
            assert_eq!(later, childless, "{ours:?} {theirs:?}");
        }
    }
}

#[test]
fn rfc6023_a_connection_without_children_is_an_ike_sa_alone() {
    use Childless::{Allow, Force, Never, Prefer};
    let alone = |me: usize, childless: Childless| {
        changed(config(me), |c| {
            (c.childless, c.dpd_delay) = (childless, 10 * SECOND);
            (c.local_addrs, c.reauth_time, c.over_time) = (vec![AddrPattern::Any], 600 * SECOND, 60 * SECOND);
            c.children.clear();
        })
    };
    for (ours, theirs) in [(Allow, Allow), (Prefer, Force), (Force, Prefer)] {
        let mut b = alone(1, theirs);
        b.connections[0].remote_addrs = vec![AddrPattern::Any];
        let mut pair = Pair::with(20, alone(0, ours), b);
        let one = |pair: &Pair| {
            for host in 0..2 {
                let views = pair.views(host);
                assert_eq!(views.iter().filter(|v| v.state == "ESTABLISHED").count(), 1, "{views:#?}");
                assert!(views.iter().all(|v| v.children.is_empty()));
            }
        };
        pair.up(0);
        pair.advance(2 * SECOND);
        one(&pair);
        assert_eq!(exchanges(&pair, ExchangeType::CREATE_CHILD_SA), 0);
        pair.up(0);
        pair.rekey(0, None);
        pair.advance(10 * SECOND);
        pair.rekey(1, None);
        pair.advance(10 * SECOND);
        one(&pair);
        pair.replace_all(0, "192.0.2.77");
        pair.advance(60 * SECOND);
        one(&pair);
        assert_eq!(pair.views(1)[0].remote.ip(), ip("192.0.2.77"));
        // A new proof is alone as well.
        let before = pair.views(0)[0].spi_i;
        pair.advance(620 * SECOND);
        one(&pair);
        assert_ne!(pair.views(0)[0].spi_i, before);
        pair.down(1, None);
        pair.advance(SECOND);
        pair.assert_nothing_is_left();
    }
    // A peer that wants a Child SA has an IKE SA without.
    let mut pair = Pair::with(21, config(0), alone(1, Allow));
    pair.up(0);
    pair.advance(2 * SECOND);
    assert!(
        pair.story(0).contains("CHILD_SA net failed: the peer answered TS_UNACCEPTABLE"),
        "{}",
        pair.story(0)
    );
    assert!(pair.views(0)[0].state == "ESTABLISHED" && pair.hosts[1].children.is_empty());
    // One that takes no IKE SA alone gets none.
    let mut pair = Pair::with(22, alone(0, Allow), changed(config(1), |c| c.childless = Never));
    pair.up(0);
    pair.advance(40 * SECOND);
    pair.assert_nothing_is_left();
    assert!(pair.story(0).contains("our connection has no children"), "{}", pair.story(0));
    // Nobody answers: it is tried again as often as any other.
    let mut never = alone(0, Allow);
    never.connections[0].keyingtries = 3;
    let mut pair = Pair::with(23, never, config(1));
    pair.cut(true);
    pair.up(0);
    pair.advance(3600 * SECOND);
    assert_eq!(pair.story(0).matches("the peer does not answer").count(), 3, "{}", pair.story(0));
}

/// Two children, `net` and `lab`.
fn two(me: usize) -> Config {
    changed(config(me), |c| {
        let nets = [ts("10.3.0.0/16"), ts("10.4.0.0/16")];
        let mut second = c.children[0].clone();
        second.name = "lab".into();
        (second.local_ts, second.remote_ts) = (vec![nets[me].clone()], vec![nets[1 - me].clone()]);
        c.children.push(second);
        c.children.iter_mut().for_each(|child| child.start_action = StartAction::Start);
    })
}

#[test]
fn a_new_proof_comes_before_the_old_one_goes() {
    // The initiator's own wish, and the responder's (RFC 4478).
    for wants in 0..2 {
        for loss in [0, 10] {
            let mut c = [two(0), two(1)];
            c[wants].connections[0].reauth_time = 600 * SECOND;
            c[wants].connections[0].over_time = 60 * SECOND;
            let [a, b] = c;
            let mut pair = Pair::with(2 + wants as u64, a, b);
            pair.up(0);
            pair.advance(5 * SECOND);
            pair.loss = loss;
            let mut proofs = BTreeSet::new();
            for _ in 0..4 * 3000 {
                pair.advance(Duration::from_millis(250));
                for host in 0..2 {
                    proofs.extend(
                        pair.views(host).iter().filter(|v| v.state == "ESTABLISHED").map(|v| v.spi_i),
                    );
                    assert_eq!(pair.sending(host).len(), 2, "host {host}: {}", pair.story(host));
                }
                pair.assert_nothing_is_lost();
            }
            pair.loss = 0;
            pair.advance(60 * SECOND);
            assert!(proofs.len() >= 5, "{} proofs", proofs.len());
            for host in 0..2 {
                let live: Vec<_> =
                    pair.views(host).into_iter().filter(|v| v.state == "ESTABLISHED").collect();
                assert!(live.len() <= 2 && live.iter().any(|v| v.established.unwrap() < 700), "{live:?}");
            }
            assert!(!pair.story(1).contains("nobody has proven anything"), "{}", pair.story(1));
        }
    }
}

/// Not even on a bad network does a packet meet no SA: who has answered waits until the other side has the new ones, and what
/// was deleted still receives.
#[test]
fn no_packet_is_for_nobody_in_a_new_proof() {
    // With 75 three IKE SAs have the same at once.
    for seed in (0..12).chain([75]) {
        let wants = usize::from(seed % 2 == 0);
        let mut c = [two(0), two(1)];
        c[wants].connections[0].reauth_time = 20 * SECOND;
        c[wants].connections[0].over_time = 400 * SECOND;
        let [a, b] = c;
        let mut pair = Pair::with(seed, a, b);
        pair.up(0);
        pair.advance(5 * SECOND);
        (pair.loss, pair.reordering) = if seed < 2 { (0, 0) } else { (10, 20) };
        pair.traffic = Some(Duration::from_millis(7));
        pair.advance(120 * SECOND);
        let proofs = pair.story(0).matches("established between").count();
        assert!(proofs > 3, "seed {seed}: {proofs} proofs: {}", pair.story(0));
        let homeless = [pair.homeless(0), pair.homeless(1)];
        assert_eq!(homeless, [0, 0], "seed {seed}: {}{}", pair.story(0), pair.story(1));
        assert!(pair.arrived(0) > 1000 && pair.arrived(1) > 1000);
    }
}

#[test]
fn a_new_proof_that_fails_is_tried_again_and_the_old_one_ends_in_time() {
    let slow = |me| {
        changed(config(me), |c| {
            c.reauth_time = 600 * SECOND;
            (c.over_time, c.rand_time) = ((300 + 100 * me as u32) * SECOND, 10 * SECOND);
        })
    };
    let mut pair = Pair::with(4, slow(0), slow(1));
    pair.up(0);
    pair.advance(500 * SECOND);
    let first = pair.views(0)[0].spi_i;
    let secret = |me: usize, text: &[u8]| {
        let mut c = slow(me);
        c.secrets[0].secret = text.to_vec().into();
        c
    };
    let now = pair.now;
    pair.hosts[1].endpoint.set_config(now, secret(1, b"another secret"));
    pair.advance(200 * SECOND);
    pair.assert_one_tunnel();
    assert_eq!(pair.views(0)[0].spi_i, first, "the old IKE SA stays while the new one fails");
    assert!(pair.story(0).matches("AUTHENTICATION_FAILED").count() > 1, "{}", pair.story(0));
    let now = pair.now;
    pair.hosts[1].endpoint.set_config(now, slow(1));
    pair.advance(60 * SECOND);
    pair.assert_one_tunnel();
    assert_ne!(pair.views(0)[0].spi_i, first);

    // It never works again: in the end there is nothing.
    let now = pair.now;
    pair.hosts[1].endpoint.set_config(now, secret(1, b"another secret"));
    pair.advance(1200 * SECOND);
    pair.assert_nothing_is_left();
    let story = format!("{}{}", pair.story(0), pair.story(1));
    assert!(story.contains("nobody has proven anything for too long"), "{story}");
}

#[test]
fn rekeying_does_not_make_a_proof_younger() {
    let mut c = [config(0), config(1)];
    c.iter_mut().for_each(|c| {
        c.connections[0].reauth_time = 1000 * SECOND;
        c.connections[0].over_time = 100 * SECOND;
        c.connections[0].rekey_time = 300 * SECOND;
        c.connections[0].rand_time = 10 * SECOND;
    });
    let [a, b] = c;
    let mut pair = Pair::with(5, a, b);
    pair.up(0);
    pair.advance(1200 * SECOND);
    pair.assert_one_tunnel();
    let ups = |pair: &Pair| pair.story(0).matches("established between").count();
    assert_eq!(ups(&pair), 2, "{}", pair.story(0));
    assert!(pair.story(0).contains("rekeyed as"));
}

#[test]
fn a_new_proof_and_rekeyings_at_once_end_with_one_tunnel() {
    for seed in 0..30 {
        let a = changed(config(0), |c| {
            (c.reauth_time, c.over_time, c.rand_time) = (100 * SECOND, 100 * SECOND, Duration::ZERO);
        });
        let mut pair = Pair::with(seed, a, config(1));
        pair.up(0);
        pair.advance(99 * SECOND);
        // Some time before, while, or after the new IKE SA comes up.
        pair.advance(Duration::from_millis(950 + 5 * seed));
        let before = pair.views(0)[0].spi_i;
        for host in 0..2 {
            pair.rekey(host, (seed % 3 == 0).then_some("net"));
            pair.advance(Duration::from_millis(3 * seed));
        }
        pair.advance(50 * SECOND);
        pair.assert_one_tunnel();
        assert!(pair.views(0).iter().all(|v| v.spi_i != before), "seed {seed}: {}", pair.story(0));
        assert!(pair.story(0).matches("established between").count() == 2, "seed {seed}: {}", pair.story(0));
    }
}

#[test]
fn one_of_a_kind_or_many() {
    for (unique, stay) in [(Unique::Never, 2), (Unique::No, 1), (Unique::Keep, 1), (Unique::Replace, 1)] {
        let mut pair = Pair::with(6, config(0), changed(config(1), |c| c.unique = unique));
        pair.up(0);
        pair.advance(60 * SECOND);
        // The peer forgets everything and says so (INITIAL_CONTACT).
        pair.crash(0);
        pair.up(0);
        pair.advance(5 * SECOND);
        assert_eq!(pair.views(1).len(), stay, "{unique:?}: {}", pair.story(1));
        assert_eq!(pair.views(0).len(), 1);
    }
}

#[test]
fn unique_keep_refuses_a_second_one_from_elsewhere() {
    let any = |me: usize, unique| {
        changed(config(me), |c| {
            c.unique = unique;
            if me == 1 {
                c.remote_addrs = vec![AddrPattern::Any];
            } else {
                c.local_addrs = vec![AddrPattern::Any];
            }
        })
    };
    // Who says nothing of a first contact might be a second one of the same name.
    let mut pair = Pair::with(7, any(0, Unique::Never), any(1, Unique::Keep));
    pair.up(0);
    pair.advance(SECOND);
    let first = pair.views(1)[0].spi_i;
    pair.crash(0);
    pair.replace(0, "192.0.2.1", "192.0.2.77");
    pair.up(0);
    pair.advance(5 * SECOND);
    assert_eq!(pair.views(1).len(), 1);
    assert_eq!(pair.views(1)[0].spi_i, first);
    assert!(pair.story(1).contains("'unique = keep': a.example has an IKE SA already"), "{}", pair.story(1));
    // From where the known one is, it may be the same with a new proof.
    pair.crash(0);
    pair.replace(0, "192.0.2.77", "192.0.2.1");
    pair.up(0);
    pair.advance(5 * SECOND);
    assert!(pair.views(0).iter().any(|v| v.state == "ESTABLISHED"), "{}", pair.story(0));
}

/// Traffic of host 0 wants a policy that waits for it.
fn acquire(pair: &mut Pair) {
    let now = pair.now;
    for policy in pair.hosts[0].traps.clone() {
        pair.hosts[0].endpoint.handle_child_event(now, ChildEvent::Acquire(policy));
    }
    pair.collect();
}

#[test]
fn what_follows_when_the_peer_closes_a_child_or_all() {
    use StartAction::{None, Start, Trap, TrapStart};
    for start in [None, Trap, Start, TrapStart] {
        for close in [None, Trap, Start] {
            for child in [Some("net"), Option::None] {
                let a = changed(config(0), |c| {
                    (c.children[0].start_action, c.children[0].close_action) = (start, close);
                });
                let mut pair = Pair::with(8, a, config(1));
                pair.up(0);
                pair.advance(SECOND);
                assert_eq!(!pair.hosts[0].traps.is_empty(), start.traps());
                pair.down(1, child);
                pair.advance(20 * SECOND);
                let what = format!("start {start:?}, close {close:?}, child {child:?}: {}", pair.story(0));
                let up = !pair.sending(0).is_empty();
                assert_eq!(up, close == Start, "{what}");
                let waits = start.traps() || close == Trap;
                assert_eq!(!pair.hosts[0].traps.is_empty(), waits, "{what}");
                acquire(&mut pair);
                pair.advance(5 * SECOND);
                assert_eq!(pair.sending(0).len(), usize::from(up || waits), "{what}");
                // A trap stays a trap when its SA goes once more.
                if waits {
                    pair.down(0, Some("net"));
                    pair.advance(20 * SECOND);
                    assert!(!pair.hosts[0].traps.is_empty() && pair.sending(0).is_empty(), "{what}");
                }
            }
        }
    }
}

#[test]
fn what_follows_when_the_peer_is_dead() {
    use StartAction::{None, Start, Trap, TrapStart};
    for start in [None, Trap, Start, TrapStart] {
        for dpd in [DpdAction::Clear, DpdAction::Trap, DpdAction::Restart] {
            let a = changed(config(0), |c| {
                (c.children[0].start_action, c.children[0].dpd_action) = (start, dpd);
                c.dpd_delay = 10 * SECOND;
                c.keyingtries = 0;
            });
            let mut pair = Pair::with(9, a, config(1));
            pair.up(0);
            pair.advance(SECOND);
            pair.cut(true);
            pair.advance(400 * SECOND);
            let what = format!("start {start:?}, dpd {dpd:?}: {}", pair.story(0));
            assert!(pair.hosts[0].children.is_empty(), "{what}");
            let waits = start.traps() || dpd == DpdAction::Trap;
            assert_eq!(!pair.hosts[0].traps.is_empty(), waits, "{what}");
            pair.cut(false);
            acquire(&mut pair);
            pair.advance(300 * SECOND);
            assert_eq!(!pair.sending(0).is_empty(), waits || dpd == DpdAction::Restart, "{what}");
        }
    }
}

/// A gateway and peers with addresses of their own behind one NAT, which tells them apart by port alone.
struct Office {
    now: Instant,
    gateway: Endpoint,
    peers: Vec<Endpoint>,
}

const OUTSIDE: &str = "203.0.113.9";
const GATEWAY: &str = "192.0.2.2";

impl Office {
    /// What is outside of the port of a peer's, and back.
    fn outside(peer: usize, port: u16) -> SocketAddr {
        SocketAddr::new(ip(OUTSIDE), 20_000 + 10_000 * (port / 4000) + peer as u16)
    }

    fn inside(to: SocketAddr) -> (usize, u16) {
        let port = if to.port() >= 30_000 { 4500 } else { 500 };
        (usize::from(to.port() % 10_000), port)
    }

    fn address(peer: usize) -> String {
        format!("192.168.1.{}", 2 + peer)
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 10 {
            self.now += Duration::from_millis(100);
            let now = self.now;
            self.gateway.handle_timeout(now);
            self.peers.iter_mut().for_each(|peer| peer.handle_timeout(now));
            let mut busy = true;
            while busy {
                busy = false;
                for peer in 0..self.peers.len() {
                    while let Some(output) = self.peers[peer].poll_output() {
                        busy = true;
                        if let Output::Transmit { local, remote, nat_t, data } = output
                            && data.len() > 1
                        {
                            assert_eq!(remote.ip(), ip(GATEWAY));
                            let source = Self::outside(peer, local.port());
                            self.gateway.handle_datagram(now, remote, source, nat_t, &data);
                        }
                    }
                }
                while let Some(output) = self.gateway.poll_output() {
                    busy = true;
                    if let Output::Transmit { local, remote, nat_t, data } = output {
                        assert_eq!(remote.ip(), ip(OUTSIDE), "the gateway knows the outside only");
                        let (peer, port) = Self::inside(remote);
                        let there = SocketAddr::new(ip(&Self::address(peer)), port);
                        self.peers[peer].handle_datagram(now, there, local, nat_t, &data);
                    }
                }
            }
        }
    }

    fn established(&self) -> Vec<(String, SocketAddr, String)> {
        let live = self.gateway.ike_sas(self.now).into_iter().filter(|v| v.state == "ESTABLISHED");
        let mut found: Vec<_> = live
            .map(|v| {
                let children: Vec<_> = v.children.iter().filter(|c| c.state == "INSTALLED").collect();
                assert_eq!(children.len(), 1, "{v:?}");
                (v.name, v.remote, children[0].ts_remote[0].to_string())
            })
            .collect();
        found.sort();
        found
    }
}

#[test]
fn peers_behind_one_nat_are_told_apart_by_who_they_are() {
    const PEERS: usize = 3;
    let now = Instant::now();
    let name = |peer: usize| format!("peer{peer}.example");
    let net = |peer: usize| format!("10.{}.0.0/16", 10 + peer);
    let secret = |peer: usize| mobikex::config::PskSecret {
        name: format!("ike-{peer}"),
        ids: vec![name(peer).parse().unwrap(), "b.example".parse().unwrap()],
        secret: format!("secret of {peer}").into_bytes().into(),
    };
    let mut server = config(1);
    // One connection for each of two peers, and one for whoever else proves itself; all from anywhere.
    server.connections = (0..PEERS)
        .map(|peer| {
            let mut c = server.connections[0].clone();
            c.name = if peer < 2 { format!("to{peer}") } else { "others".into() };
            c.remote_addrs = vec![AddrPattern::Any];
            c.remote.id = (peer < 2).then(|| name(peer).parse().unwrap());
            c.children[0].remote_ts = vec![ts(&net(peer))];
            c
        })
        .rev()
        .collect();
    server.secrets = (0..PEERS).map(secret).collect();
    let peers = (0..PEERS).map(|peer| {
        let mut c = changed(config(0), |c| {
            c.local_addrs = vec![AddrPattern::Any];
            c.local.id = Some(name(peer).parse().unwrap());
            c.children[0].local_ts = vec![ts(&net(peer))];
        });
        c.secrets = vec![secret(peer)];
        let mut endpoint = Endpoint::new(now, c, [10 + peer as u8; 32]);
        let local = mobikex::ike::LocalAddress {
            addr: ip(&Office::address(peer)),
            device: 2,
            interface: "wan2".into(),
            reach: vec!["0.0.0.0/0".parse().unwrap()],
        };
        endpoint.set_network(now, vec![local]);
        endpoint
    });
    let peers = peers.collect();
    let mut office = Office { now, gateway: Endpoint::new(now, server, [1; 32]), peers };
    for peer in 0..PEERS {
        let up = Command::Up { connection: "home".into(), child: None };
        office.peers[peer].handle_command(now, up).unwrap();
    }
    office.run(5);
    let found = office.established();
    let expected: Vec<_> = [("others", 2), ("to0", 0), ("to1", 1)]
        .map(|(conn, peer)| (conn.to_string(), Office::outside(peer, 4500), net(peer)))
        .into();
    assert_eq!(found, expected);
    // Each rekeys and moves to another mapping of its own; nothing gets mixed up.
    for peer in 0..PEERS {
        let now = office.now;
        for child in [Some("net".to_string()), None] {
            let rekey = Command::Rekey { connection: "home".into(), child };
            office.peers[peer].handle_command(now, rekey).unwrap();
        }
    }
    office.run(10);
    assert_eq!(office.established(), expected);
    let now = office.now;
    let down = Command::Down { connection: "home".into(), child: None };
    office.peers[1].handle_command(now, down).unwrap();
    office.run(5);
    assert_eq!(office.established(), expected[..2]);
}

#[test]
fn a_child_without_traffic_is_closed() {
    for traffic in [false, true] {
        let a = changed(config(0), |c| c.children[0].inactivity = 100 * SECOND);
        let mut pair = Pair::with(10, a, config(1));
        pair.up(0);
        pair.advance(90 * SECOND);
        pair.assert_one_tunnel();
        pair.traffic(0, traffic);
        pair.advance(500 * SECOND);
        let closed = pair.story(0).contains("net{1} closed: deleted");
        assert_eq!(closed, !traffic, "{}", pair.story(0));
        assert_eq!(pair.views(0)[0].state, "ESTABLISHED", "the IKE SA stays");
    }
}

#[test]
fn who_is_refused_says_what_it_had_offered() {
    type Change = fn(&mut mobikex::config::Connection);
    let cases: [(Change, &str, &str); 5] = [
        (
            |c| c.proposals = vec!["aes256-sha256-modp2048".parse().unwrap()],
            "the peer answered IKE_SA_INIT with NO_PROPOSAL_CHOSEN; we offered ",
            "AES_CBC_256",
        ),
        (
            |c| c.children[0].esp_proposals = vec!["aes256-sha256".parse().unwrap()],
            "net failed: the peer answered NO_PROPOSAL_CHOSEN; we offered ",
            "AES_CBC_256",
        ),
        (
            |c| c.children[0].remote_ts = vec![ts("172.16.0.0/12")],
            "net failed: the peer answered TS_UNACCEPTABLE; we offered ",
            "for 10.1.0.0/16 === 172.16.0.0/12 in tunnel mode",
        ),
        (
            |c| c.local.id = Some("somebody.example".parse().unwrap()),
            "peer answered AUTHENTICATION_FAILED; we are 'somebody.example' by a pre-shared key",
            "asked for 'b.example'",
        ),
        (
            |c| c.remote.id = Some("other.example".parse().unwrap()),
            "peer answered AUTHENTICATION_FAILED; we are 'a.example' by a pre-shared key",
            "asked for 'other.example'",
        ),
    ];
    for (change, refusal, offer) in cases {
        let theirs = changed(config(1), |c| {
            c.proposals = vec!["aes256gcm16-prfsha384-x25519".parse().unwrap()];
            c.children[0].esp_proposals = vec!["aes256gcm16".parse().unwrap()];
        });
        let mut ours = changed(config(0), change);
        // So that it is the peer that refuses.
        ours.secrets[0].ids.clear();
        let mut pair = Pair::with(11, ours, theirs);
        pair.up(0);
        pair.advance(2 * SECOND);
        let story = pair.story(0);
        assert!(story.contains(refusal) && story.contains(offer), "{refusal}: {story}");
    }
    // And the one that refuses says what it would have taken.
    let mut ours = changed(config(0), |c| c.local.id = Some("x.example".parse().unwrap()));
    ours.secrets[0].ids.clear();
    let mut pair = Pair::with(12, ours, config(1));
    pair.up(0);
    pair.advance(2 * SECOND);
    let story = pair.story(1);
    assert!(story.contains("no connection expects 'x.example' asking for 'b.example'"), "{story}");
    assert!(story.contains("configured: home is 'b.example' and expects 'a.example'"), "{story}");
}
