//! Virtual addresses: asked for, given out of pools, kept, and given back.

use std::time::Duration;

use mobikex::config::{Config, Pool, TsPattern, Unique, parse_str};
use mobikex::ike::{Command, IkeSaView};

use crate::pair::{Pair, config, ts};
use crate::world::ip;

const SECOND: Duration = Duration::from_secs(1);

/// Pools as they stand in a configuration.
fn pools(text: &str) -> Vec<Pool> {
    parse_str("pools.conf", &format!("pools {{ {text} }}")).unwrap().pools
}

fn dynamic() -> Vec<TsPattern> {
    vec![TsPattern::Dynamic("0.0.0.0/0".parse().unwrap())]
}

/// Host 0 asks for `vips`, host 1 has `pools`.
pub fn configs(vips: &str, text: &str) -> [Config; 2] {
    let [mut a, mut b] = [config(0), config(1)];
    let (client, gateway) = (&mut a.connections[0], &mut b.connections[0]);
    client.vips = vips.split(' ').filter(|v| !v.is_empty()).map(ip).collect();
    client.children[0].local_ts = dynamic();
    client.children[0].remote_ts = vec![ts("10.2.0.0/16"), ts("fd02::/64")];
    b.pools = pools(text);
    gateway.pools = b.pools.iter().map(|pool| pool.name.clone()).collect();
    gateway.children[0].remote_ts = dynamic();
    gateway.children[0].local_ts = client.children[0].remote_ts.clone();
    [a, b]
}

fn up(seed: u64, [a, b]: [Config; 2]) -> Pair {
    let mut pair = Pair::with(seed, a, b);
    pair.up(0);
    pair.advance(SECOND);
    pair
}

const V4: &str = "v4 { addrs = 10.3.0.0/30\n dns = 10.2.0.53, fd02::53\n subnet = 10.2.0.0/16\n }";
const V6: &str = "v6 { addrs = fd03::/64\n }";

fn live(pair: &Pair, host: usize) -> IkeSaView {
    pair.views(host).into_iter().find(|v| v.state == "ESTABLISHED").unwrap()
}

fn vips(pair: &Pair) -> Vec<String> {
    pair.hosts[0].vips.iter().map(ToString::to_string).collect()
}

fn selectors(pair: &Pair, host: usize) -> [String; 2] {
    let sa = pair.sending(host)[0];
    [&sa.ts_local, &sa.ts_remote].map(|l| l.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
}

#[test]
fn a_roadwarrior_gets_an_address_and_its_child_is_for_that_address() {
    let mut pair = up(1, configs("0.0.0.0", V4));
    pair.assert_one_tunnel();
    assert_eq!(vips(&pair), ["10.3.0.1"]);
    assert_eq!(selectors(&pair, 0), ["10.3.0.1/32", "10.2.0.0/16"]);
    assert_eq!(pair.hosts[0].resolvers, [ip("10.2.0.53"), ip("fd02::53")]);
    let given = live(&pair, 0).given.unwrap();
    assert_eq!((given.addresses, given.subnets), (vec![ip("10.3.0.1")], vec!["10.2.0.0/16".to_string()]));
    assert_eq!(live(&pair, 1).remote_vips, [ip("10.3.0.1")]);
    assert!(pair.story(1).contains("assigning virtual IP 10.3.0.1 to peer 'a.example'"), "{}", pair.story(1));
    // Rekeying changes nothing about it, whoever does it and whatever of.
    for host in 0..2 {
        pair.rekey(host, None);
        pair.advance(10 * SECOND);
        pair.rekey(host, Some("net"));
        pair.advance(10 * SECOND);
        pair.assert_one_tunnel();
        assert_eq!(selectors(&pair, 1), ["10.2.0.0/16", "10.3.0.1/32"]);
        assert_eq!(live(&pair, 1).remote_vips, [ip("10.3.0.1")]);
    }
    let pool = &pair.hosts[1].endpoint.pools()[0];
    assert_eq!((pool.online, pool.offline, pool.size), (1, 0, 2));
    pair.down(0, None);
    pair.advance(SECOND);
    pair.assert_nothing_is_left();
    assert!(vips(&pair).is_empty() && pair.hosts[0].resolvers.is_empty());
    assert_eq!(pair.hosts[1].endpoint.pools()[0].offline, 1);
    // The same peer has the same address again.
    pair.up(0);
    pair.advance(SECOND);
    assert_eq!(vips(&pair), ["10.3.0.1"]);
}

#[test]
fn both_families_in_one_request() {
    let pair = up(2, configs("0.0.0.0 ::", &format!("{V4} {V6}")));
    pair.assert_one_tunnel();
    assert_eq!(vips(&pair), ["10.3.0.1", "fd03::1"]);
    assert_eq!(selectors(&pair, 1), ["10.2.0.0/16 fd02::/64", "10.3.0.1/32 fd03::1/128"]);
    // One of them is enough; then there is nothing of the other in the tunnel.
    let pair = up(3, configs("0.0.0.0 ::", V6));
    pair.assert_one_tunnel();
    assert_eq!(vips(&pair), ["fd03::1"]);
    assert_eq!(selectors(&pair, 0), ["fd03::1/128", "fd02::/64"]);
}

#[test]
fn without_an_address_there_is_an_ike_sa_and_no_child() {
    for (vips, pools, said) in [
        ("::", V4, "INTERNAL_ADDRESS_FAILURE"),
        ("0.0.0.0", "", "INTERNAL_ADDRESS_FAILURE"),
        ("", V4, "FAILED_CP_REQUIRED"),
    ] {
        let mut pair = up(4, configs(vips, pools));
        for host in 0..2 {
            assert_eq!(live(&pair, host).children.len(), 0, "{vips} {pools}");
            assert!(pair.hosts[host].children.is_empty());
        }
        assert!(pair.story(0).contains(said), "{}", pair.story(0));
        assert!(pair.hosts[0].vips.is_empty());
        // Nor later.
        pair.up(0);
        pair.advance(10 * SECOND);
        assert!(pair.hosts[0].children.is_empty(), "{}", pair.story(0));
    }
}

#[test]
fn an_exhausted_pool_fails_the_child_until_an_address_is_free() {
    let [a, mut b] = configs("0.0.0.0", "v4 { addrs = 10.3.0.1\n }");
    let mut pair = up(5, [a.clone(), b.clone()]);
    pair.assert_one_tunnel();
    // A second connection of the same identity has no claim to the same address, and there is no other.
    let mut more = a.clone();
    more.connections.push(mobikex::config::Connection { name: "again".into(), ..a.connections[0].clone() });
    let now = pair.now;
    pair.hosts[0].endpoint.set_config(now, more);
    pair.command(0, Command::Up { connection: "again".into(), child: None });
    pair.advance(SECOND);
    assert!(pair.story(0).contains("INTERNAL_ADDRESS_FAILURE"), "{}", pair.story(0));
    assert_eq!(pair.hosts[1].endpoint.leases_after(None, 9).len(), 1);
    pair.down(0, None);
    pair.advance(SECOND);
    assert!(vips(&pair).is_empty());
    pair.command(0, Command::Up { connection: "again".into(), child: None });
    pair.advance(SECOND);
    assert_eq!(vips(&pair), ["10.3.0.1"], "it asks again with its child");
    // A larger pool after a reload gives the first peer another one, and leaves the other its own.
    b.pools = pools("v4 { addrs = 10.3.0.1-10.3.0.9\n }");
    pair.hosts[1].endpoint.set_config(now, b);
    pair.up(0);
    pair.advance(SECOND);
    assert_eq!(vips(&pair), ["10.3.0.1", "10.3.0.2"]);
    let leases = pair.hosts[1].endpoint.leases_after(None, 9);
    assert!(leases.iter().all(|l| l.online && l.identity == "a.example"), "{leases:?}");
}

#[test]
fn the_address_that_is_asked_for_is_given_if_it_is_free() {
    let pair = up(6, configs("10.3.0.7", "v4 { addrs = 10.3.0.0/24\n }"));
    assert_eq!(vips(&pair), ["10.3.0.7"]);
    // One that is not of the pool gives way to one that is.
    let pair = up(7, configs("172.16.0.1", "v4 { addrs = 10.3.0.0/24\n }"));
    assert_eq!(vips(&pair), ["10.3.0.1"]);
}

#[test]
fn after_a_dead_peer_the_same_address_is_asked_for_again() {
    let [mut a, b] = configs("0.0.0.0", V4);
    a.connections[0].dpd_delay = 10 * SECOND;
    a.connections[0].keyingtries = 0;
    a.connections[0].children[0].dpd_action = mobikex::config::DpdAction::Restart;
    let mut pair = up(8, [a, b]);
    assert_eq!(vips(&pair), ["10.3.0.1"]);
    pair.cut(true);
    pair.advance(400 * SECOND);
    assert!(vips(&pair).is_empty(), "{}", pair.story(0));
    pair.cut(false);
    pair.advance(200 * SECOND);
    // The gateway may still hold the old IKE SA; the peer takes its place.
    assert_eq!(vips(&pair), ["10.3.0.1"], "{}", pair.story(1));
}

#[test]
fn a_new_ike_sa_that_replaces_the_old_one_takes_its_address() {
    for unique in [false, true] {
        let [a, mut b] = configs("0.0.0.0", "v4 { addrs = 10.3.0.1-10.3.0.9\n }");
        if unique {
            b.connections[0].unique = Unique::Replace;
        }
        let mut pair = up(9, [a.clone(), b]);
        pair.advance(10 * SECOND);
        assert_eq!(vips(&pair), ["10.3.0.1"]);
        // The peer has lost its memory, and with it what it could ask for.
        pair.crash(0);
        pair.up(0);
        pair.advance(10 * SECOND);
        pair.assert_one_tunnel();
        assert_eq!(vips(&pair), ["10.3.0.1"]);
        let pool = &pair.hosts[1].endpoint.pools()[0];
        assert_eq!((pool.online, pool.offline), (1, 0));
    }
}

#[test]
fn a_lossy_network_loses_no_address() {
    for seed in 0..20 {
        let [a, b] = configs("0.0.0.0", "v4 { addrs = 10.3.0.1-10.3.0.2\n }");
        let mut pair = Pair::with(seed, a, b);
        (pair.loss, pair.duplication, pair.reordering) = (20, 20, 20);
        for _ in 0..5 {
            pair.up(0);
            pair.advance(60 * SECOND);
            pair.rekey(0, None);
            pair.rekey(1, None);
            pair.advance(60 * SECOND);
            pair.command(0, Command::Shutdown);
            pair.advance(400 * SECOND);
        }
        pair.assert_nothing_is_left();
        assert!(vips(&pair).is_empty());
        let pool = &pair.hosts[1].endpoint.pools()[0];
        assert_eq!(pool.online, 0, "{}", pair.story(1));
    }
}

#[test]
fn transport_mode_and_fixed_selectors_have_nothing_to_do_with_it() {
    let [mut a, mut b] = configs("0.0.0.0", V4);
    a.connections[0].children[0].local_ts = vec![ts("10.1.0.0/16")];
    b.connections[0].children[0].remote_ts = vec![ts("10.1.0.0/16")];
    let pair = up(10, [a, b]);
    pair.assert_one_tunnel();
    assert_eq!(selectors(&pair, 0), ["10.1.0.0/16", "10.2.0.0/16"]);
    assert_eq!(vips(&pair), ["10.3.0.1"]);
}
