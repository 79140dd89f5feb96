//! IKE fragmentation (RFC 7383) between two endpoints: large messages arrive where large datagrams do not.

use std::time::Duration;

use mobikex::config::{Config, Fragmentation};
use mobikex::ike::Command;
use mobikex_common::wire::ike::{ExchangeType, Header, PayloadType};

use crate::pair::{Pair, config, ts};
use crate::world::{self, World};

const SECOND: Duration = Duration::from_secs(1);

/// IPv6, UDP and the non-ESP marker, which are reckoned whatever the family.
const OVERHEAD: usize = 52;

fn sized(mut c: Config, size: u16) -> Config {
    c.daemon.fragment_size = size;
    c
}

fn header(data: &[u8]) -> Header {
    Header::parse(data).unwrap()
}

/// The largest protected message of a host.
fn largest(pair: &World, host: usize) -> usize {
    let protected = |data: &Vec<u8>| header(data).exchange != ExchangeType::IKE_SA_INIT;
    pair.sent.iter().filter(|(h, d)| *h == host && protected(d)).map(|(_, d)| d.len()).max().unwrap()
}

/// The fragments that a host has sent.
fn fragments(pair: &World, host: usize) -> usize {
    pair.sent.iter().filter(|(h, d)| *h == host && header(d).next_payload == PayloadType::SKF).count()
}

/// Proposals and selectors so many that every message about SAs has more than 524 octets.
fn large(me: usize, suite: [&str; 2]) -> Config {
    let mut c = config(me);
    c.connections[0].proposals = vec![format!("{}-x25519", suite[0]).parse().unwrap(); 12];
    let child = &mut c.connections[0].children[0];
    child.esp_proposals = vec![suite[1].parse().unwrap()];
    let nets = |host: usize| (0..40).map(|n| ts(&format!("10.{}.{n}.0/24", 1 + host))).collect();
    (child.local_ts, child.remote_ts) = (nets(me), nets(1 - me));
    sized(c, 576)
}

#[test]
fn every_suite_protects_fragments_of_every_exchange() {
    for suite in [
        ["aes256gcm16-prfsha384", "aes256gcm16-esn"],
        ["aes128gcm16-prfsha256", "aes128gcm16"],
        ["chacha20poly1305-prfsha512", "chacha20poly1305"],
        ["aes128-sha256", "aes128-sha256"],
        ["aes256-sha384", "aes256-sha384"],
        ["aes256-sha512", "aes256-sha512"],
    ] {
        let mut pair = Pair::with(1, large(0, suite), large(1, suite));
        pair.up(0);
        pair.advance(SECOND);
        pair.assert_one_tunnel();
        for host in 0..2 {
            let before = fragments(&pair, host);
            pair.rekey(host, Some("net"));
            pair.advance(10 * SECOND);
            pair.rekey(host, None);
            pair.advance(10 * SECOND);
            pair.assert_one_tunnel();
            assert!(fragments(&pair, host) >= before + 4, "{suite:?}: {}", fragments(&pair, host) - before);
        }
        // A rekeyed IKE SA has what the first one agreed to.
        let before = fragments(&pair, 0);
        pair.rekey(0, Some("net"));
        pair.advance(10 * SECOND);
        assert!(fragments(&pair, 0) >= before + 2);
        for host in 0..2 {
            assert!(largest(&pair, host) <= 576 - OVERHEAD, "{suite:?}: {}", largest(&pair, host));
        }
    }
}

#[test]
fn the_setting_says_who_cuts() {
    use Fragmentation::{Accept, No, Yes};
    let suite = ["aes256gcm16-prfsha384", "aes256gcm16"];
    for (ours, theirs, cut) in [
        (Yes, Yes, [true, true]),
        (Yes, Accept, [true, false]),
        (Accept, Yes, [false, true]),
        (Yes, No, [false; 2]),
        (No, Yes, [false; 2]),
    ] {
        let (mut a, mut b) = (large(0, suite), large(1, suite));
        (a.connections[0].fragmentation, b.connections[0].fragmentation) = (ours, theirs);
        let mut pair = Pair::with(2, a, b);
        pair.up(0);
        pair.advance(SECOND);
        pair.rekey(0, Some("net"));
        pair.advance(10 * SECOND);
        pair.assert_one_tunnel();
        for (host, cuts) in cut.into_iter().enumerate() {
            assert_eq!(fragments(&pair, host) > 0, cuts, "{ours:?} {theirs:?} {host}");
            assert_eq!(largest(&pair, host) > 576, !cuts, "{ours:?} {theirs:?} {host}");
        }
    }
}

#[test]
fn each_fragment_is_a_message_of_its_own() {
    let suite = ["aes256gcm16-prfsha384", "aes256gcm16"];
    let mut pair = Pair::with(3, large(0, suite), large(1, suite));
    pair.up(0);
    pair.advance(SECOND);
    let before = pair.sent.len();
    pair.rekey(0, Some("net"));
    pair.advance(SECOND);
    let request: Vec<_> = pair.sent[before..].iter().filter(|(host, _)| *host == 0).take(3).collect();
    let mut ivs = std::collections::BTreeSet::new();
    for (number, (_, data)) in (1u16..).zip(&request) {
        let (first, this) = (header(&request[0].1), header(data));
        assert_eq!(
            (this.next_payload, this.message_id, this.exchange, this.flags),
            (PayloadType::SKF, first.message_id, ExchangeType::CREATE_CHILD_SA, first.flags)
        );
        // The first says what is inside, the others nothing (RFC 7383 2.5).
        assert_eq!(data[28] == 0, number != 1);
        assert_eq!(data[32..36], [[0, number as u8], [0, request.len() as u8]].concat());
        assert!(ivs.insert(data[36..44].to_vec()), "an IV twice");
    }
    assert_eq!(ivs.len(), 3);
}

#[test]
fn a_way_for_small_datagrams_only_is_found_out() {
    let suite = ["aes256gcm16-prfsha384", "aes256gcm16"];
    for host in 0..2 {
        let mut c = [large(0, suite), large(1, suite)];
        c.iter_mut().for_each(|c| c.daemon.fragment_size = 1280);
        let [a, b] = c;
        let mut pair = Pair::with(4, a, b);
        pair.up(0);
        pair.advance(SECOND);
        // From here on nothing with more than 548 octets gets through, which no message of less knows.
        pair.mtu = Some(576 - 28);
        let before = pair.sending(host)[0].spi_out;
        pair.rekey(host, Some("net"));
        pair.advance(30 * SECOND);
        pair.mtu = None;
        pair.advance(10 * SECOND);
        pair.assert_one_tunnel();
        assert_ne!(pair.sending(host)[0].spi_out, before, "{}", pair.story(host));
        // Both have learned it.
        let before = pair.sent.len();
        pair.rekey(1 - host, Some("net"));
        pair.advance(10 * SECOND);
        pair.assert_one_tunnel();
        assert!(pair.sent[before..].iter().all(|(_, d)| d.len() <= 576 - OVERHEAD));
    }
}

#[test]
fn duplicates_and_disorder_are_harmless() {
    let suite = ["aes128-sha256", "aes128-sha256"];
    for seed in 0..20 {
        let mut pair = Pair::with(seed, large(0, suite), large(1, suite));
        pair.up(0);
        pair.advance(SECOND);
        (pair.duplication, pair.reordering) = (50, 50);
        for host in [0, 1, 0, 1] {
            pair.rekey(host, Some("net"));
            pair.advance(20 * SECOND);
            pair.rekey(host, None);
            pair.advance(20 * SECOND);
        }
        pair.assert_one_tunnel();
        assert!(!pair.story(0).contains("closed: the peer") && fragments(&pair, 0) > 8);
        assert_eq!(pair.hosts[0].endpoint.counters().not_authentic, 0);
        assert_eq!(pair.hosts[1].endpoint.counters().not_authentic, 0);
    }
}

#[test]
fn fragments_go_over_every_pair_of_addresses() {
    let configs = world::configs(|conn| {
        conn.children[0].esp_proposals = vec!["aes256gcm16-modp4096".parse().unwrap()];
    });
    for gone in [false, true] {
        let configs = configs.clone().map(|c| sized(c, 576));
        let mut world = World::up(5, configs, [&world::A[..2], &world::B[..1]]);
        let before = world.sent.len();
        if gone {
            // The request is under way when its address goes.
            world.cut.insert(world::ip(world::A[0]));
        } else {
            world.deaf.insert(world::ip(world::A[0]));
        }
        world.command(0, Command::Rekey { connection: "home".into(), child: Some("net".into()) });
        world.advance(Duration::from_millis(5));
        if gone {
            world.remove(0, world::A[0]);
        }
        world.advance(60 * SECOND);
        world.assert_one_tunnel();
        let rekeyed = world.hosts[0].events.iter().any(|e| e.to_string().contains("rekeyed as net{2}"));
        assert!(rekeyed, "gone {gone}: {:?}", world.hosts[0].events);
        let cut = |(_, d): &&(usize, Vec<u8>)| header(d).next_payload == PayloadType::SKF;
        assert!(world.sent[before..].iter().filter(cut).count() >= 6);
    }
}

#[cfg(feature = "aws-lc")]
mod with_certificates {
    use super::*;
    use crate::certificates::{pair, side};
    use crate::made::{Ca, key};
    use rcgen::SanType;

    /// Both sides send their certificate and those of two CAs below the one that the other side trusts.
    fn chains(size: u16) -> [Config; 2] {
        // With as many names as certificates of gateways may have.
        let names = |p: &mut rcgen::CertificateParams| {
            let name =
                |n| SanType::DnsName(format!("gateway-{n}.of-some-office.example.org").try_into().unwrap());
            p.subject_alt_names = (0..16).map(name).collect();
        };
        let root = Ca::new("root");
        let sub = root.below("sub", names);
        let last = sub.below("last", names);
        [0, 1].map(|me| {
            let key = key(&rcgen::PKCS_ECDSA_P256_SHA256);
            let mut c = side(me, &key, &last, &[&root]);
            c.credentials.authorities.extend([sub.cert.clone(), last.cert.clone()]);
            sized(c, size)
        })
    }

    #[test]
    fn a_chain_of_three_certificates_arrives_in_fragments() {
        for (size, at_least) in [(1280, 3), (576, 6)] {
            let [a, b] = chains(size);
            let mut pair = pair(a, b);
            pair.up(0);
            pair.advance(SECOND);
            pair.assert_one_tunnel();
            for host in 0..2 {
                assert!(fragments(&pair, host) >= at_least, "{} of {size}", fragments(&pair, host));
                assert!(largest(&pair, host) <= usize::from(size) - OVERHEAD);
            }
        }
    }

    #[test]
    fn a_chain_of_three_certificates_arrives_though_every_fifth_datagram_is_lost() {
        let mut at_once = 0;
        for size in [1280, 576] {
            let [mut a, b] = chains(size);
            a.connections[0].keyingtries = 0;
            for seed in 0..20 {
                let mut pair = pair_of(seed, a.clone(), b.clone());
                (pair.loss, pair.duplication, pair.reordering) = (20, 10, 20);
                pair.up(0);
                pair.advance(165 * SECOND);
                at_once += usize::from(!pair.sending(0).is_empty());
                pair.advance(600 * SECOND);
                pair.loss = 0;
                pair.advance(200 * SECOND);
                pair.assert_one_tunnel();
            }
        }
        // The first attempt fails when a fragment is lost each time before the responder forgets the half-open IKE SA.
        assert!(at_once >= 34, "{at_once} of 40 at the first attempt");
    }

    fn pair_of(seed: u64, a: Config, b: Config) -> Pair {
        let mut pair = Pair::with(seed, a, b);
        for host in 0..2 {
            let now = pair.now;
            pair.hosts[host].endpoint.set_clock(now, crate::made::NOW);
        }
        pair
    }
}
