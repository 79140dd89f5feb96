//! What scripts are told (`updown`), and when. That each is told of one end after one beginning, and of nothing else, is
//! watched in all tests.

use std::time::Duration;

use mobikex::config::{AddrPattern, Child, Config, StartAction};
use mobikex::ike::{AddressAction, Command};
use mobikex_common::sa::Mode;

use crate::pair::{Pair, config, ts};
use crate::world::ip;

const SECOND: Duration = Duration::from_secs(1);

/// What a host's scripts were told: the verb and the client networks.
fn told(pair: &Pair, host: usize) -> Vec<String> {
    let runs = pair.hosts[host].told.iter().flat_map(|(up, script)| script.runs(*up));
    let shown = runs.map(|run| {
        let of = |name: &str| {
            let found = run.variables.iter().find(|(known, _)| known == name);
            found.map_or(String::new(), |(_, value)| value.clone())
        };
        format!("{} {} {}", run.verb, of("PLUTO_MY_CLIENT"), of("PLUTO_PEER_CLIENT"))
    });
    shown.collect()
}

const UP: [&str; 2] = ["up-client 10.1.0.0/16 10.2.0.0/16", "up-client 10.2.0.0/16 10.1.0.0/16"];
const DOWN: [&str; 2] = ["down-client 10.1.0.0/16 10.2.0.0/16", "down-client 10.2.0.0/16 10.1.0.0/16"];

#[test]
fn rekeying_is_neither_up_nor_down() {
    let mut pair = Pair::established(80);
    for who in 0..2 {
        pair.rekey(who, Some("net"));
        pair.advance(10 * SECOND);
        pair.rekey(who, None);
        pair.advance(10 * SECOND);
    }
    // Both at once.
    pair.rekey(0, Some("net"));
    pair.rekey(1, Some("net"));
    pair.advance(10 * SECOND);
    assert_eq!([told(&pair, 0), told(&pair, 1)], UP.map(|up| vec![up]));
    pair.down(1, Some("net"));
    pair.advance(SECOND);
    let both = |host: usize| vec![UP[host], DOWN[host]];
    assert_eq!([told(&pair, 0), told(&pair, 1)], [both(0), both(1)]);
}

#[test]
fn a_new_proof_is_neither_up_nor_down() {
    for wants in 0..2 {
        let mut c = [config(0), config(1)];
        c[wants].connections[0].reauth_time = 100 * SECOND;
        let [a, b] = c;
        let mut pair = Pair::with(82, a, b);
        pair.up(0);
        pair.advance(500 * SECOND);
        assert!(pair.story(0).matches("established between").count() > 3, "{}", pair.story(0));
        assert_eq!([told(&pair, 0), told(&pair, 1)], UP.map(|up| vec![up]));
        pair.down(0, None);
        pair.advance(10 * SECOND);
        pair.assert_nothing_is_left();
    }
}

#[test]
fn the_environment_tells_of_the_peer_and_the_way_to_it() {
    let mut mobile = [config(0), config(1)];
    mobile[0].connections[0].local_addrs = vec![AddrPattern::Any];
    mobile[1].connections[0].remote_addrs = vec![AddrPattern::Any];
    mobile[1].connections[0].children[0].hostaccess = true;
    let [a, b] = mobile;
    let mut pair = Pair::with(81, a, b);
    pair.up(0);
    pair.advance(SECOND);
    let environment = |pair: &Pair, host: usize, index: usize| -> Vec<String> {
        let (up, script) = &pair.hosts[host].told[index];
        let run = script.runs(*up).remove(0);
        run.variables.iter().map(|(name, value)| format!("{name}={value}")).collect()
    };
    let before = environment(&pair, 1, 0);
    let mut expected = vec![
        "PLUTO_VERB=up-client",
        "PLUTO_VERSION=1.1",
        "PLUTO_CONNECTION=net",
        "PLUTO_INTERFACE=wan2",
        "PLUTO_REQID=1",
        "PLUTO_PROTO=esp",
        "PLUTO_UNIQUEID=1",
        "PLUTO_ME=192.0.2.2",
        "PLUTO_MY_ID=b.example",
        "PLUTO_PEER=192.0.2.1",
        "PLUTO_PEER_ID=a.example",
        "PLUTO_UDP_ENC=4500",
        "PLUTO_HOST_ACCESS=1",
        "MOBIKEX_CONNECTION=home",
        "PLUTO_MY_CLIENT=10.2.0.0/16",
        "PLUTO_MY_PORT=0",
        "PLUTO_MY_PROTOCOL=0",
        "PLUTO_PEER_CLIENT=10.1.0.0/16",
        "PLUTO_PEER_PORT=0",
        "PLUTO_PEER_PROTOCOL=0",
    ];
    assert_eq!(before, expected);
    assert_eq!(pair.hosts[1].told[0].1.turn, "home/net a.example");
    // A move is not told, and the end is told as the beginning was.
    pair.replace_all(0, "192.0.2.77");
    pair.advance(10 * SECOND);
    assert_eq!(pair.views(1)[0].remote.ip(), ip("192.0.2.77"));
    assert_eq!(pair.hosts[1].told.len(), 1);
    pair.down(0, None);
    pair.advance(SECOND);
    expected[0] = "PLUTO_VERB=down-client";
    assert_eq!(environment(&pair, 1, 1), expected);
}

#[test]
fn other_inner_addresses_end_what_was_before_them() {
    let change = |me: usize| -> Config {
        let mut c = config(me);
        if me == 0 {
            c.connections[0].children[0].local_ts = vec![ts("10.1.0.5")];
        }
        c
    };
    let mut pair = Pair::with(82, change(0), change(1));
    pair.up(0);
    pair.advance(2 * SECOND);
    let action = AddressAction::Update { old: Some(ip("10.1.0.5")), new: ip("10.1.0.9") };
    let (connection, child) = ("home".into(), Some("net".into()));
    pair.command(0, Command::Address { connection, child, action, check: false, inner: true });
    pair.advance(2 * SECOND);
    pair.rekey(0, Some("net"));
    pair.advance(10 * SECOND);
    let expected = [
        "up-client 10.2.0.0/16 10.1.0.5/32",
        "down-client 10.2.0.0/16 10.1.0.5/32",
        "up-client 10.2.0.0/16 10.1.0.9/32",
    ];
    assert_eq!(told(&pair, 1), expected);
    assert_eq!(told(&pair, 0).len(), 3);
}

#[test]
fn virtual_addresses_are_told_on_both_sides() {
    let pools = "v4 { addrs = 10.3.0.0/30\n dns = 10.2.0.53, fd02::53\n }\n v6 { addrs = fd03::/64\n }";
    let [a, b] = crate::configuration::configs("0.0.0.0 ::", pools);
    let mut pair = Pair::with(86, a, b);
    pair.up(0);
    pair.advance(SECOND);
    for (host, side, dns) in [(0, "MY", true), (1, "PEER", false)] {
        let runs = pair.hosts[host].told[0].1.runs(true);
        let verbs: Vec<&str> = runs.iter().map(|run| run.verb.as_str()).collect();
        assert_eq!(verbs, ["up-client", "up-client-v6"]);
        let told: Vec<String> =
            runs[1].variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        for (name, value) in [("", "10.3.0.1"), ("4_1", "10.3.0.1"), ("6_1", "fd03::1")] {
            let expected = format!("PLUTO_{side}_SOURCEIP{name}={value}");
            assert!(told.contains(&expected), "{expected}: {told:?}");
        }
        assert_eq!(told.iter().filter(|line| line.contains("SOURCEIP")).count(), 3);
        for expected in ["PLUTO_DNS4_1=10.2.0.53", "PLUTO_DNS6_1=fd02::53"] {
            assert_eq!(told.iter().any(|line| line == expected), dns, "{told:?}");
        }
    }
}

#[test]
fn in_transport_mode_a_move_is_another_pair() {
    let change = |me: usize| -> Config {
        let mut c = config(me);
        let conn = &mut c.connections[0];
        (conn.local_addrs, conn.encap) = (vec![AddrPattern::Any], false);
        conn.children[0] = Child { mode: Mode::Transport, ..Child::new("net") };
        if me == 1 {
            conn.remote_addrs = vec![AddrPattern::Any];
        }
        c
    };
    let mut pair = Pair::with(85, change(0), change(1));
    pair.up(0);
    pair.advance(SECOND);
    assert_eq!(told(&pair, 1), ["up-host 192.0.2.2/32 192.0.2.1/32"]);
    pair.replace_all(0, "192.0.2.77");
    pair.advance(60 * SECOND);
    let now = told(&pair, 1);
    assert_eq!(now[1], "down-host 192.0.2.2/32 192.0.2.1/32");
    assert_eq!(now.last().unwrap(), "up-host 192.0.2.2/32 192.0.2.77/32", "{now:?}");
    assert_eq!(pair.hosts[1].raised.len(), 1);
}

#[test]
fn a_peer_that_is_gone_is_down_and_so_is_all_at_the_end() {
    let mut dead = [config(0), config(1)];
    dead[0].connections[0].dpd_delay = 5 * SECOND;
    let [a, b] = dead;
    let mut pair = Pair::with(83, a, b);
    pair.up(0);
    pair.advance(SECOND);
    pair.cut(true);
    pair.advance(600 * SECOND);
    assert_eq!(told(&pair, 0), [UP[0], DOWN[0]]);
    assert_eq!(told(&pair, 1), [UP[1]]);
    let now = pair.now;
    pair.hosts[1].endpoint.abandon(now);
    pair.collect();
    assert_eq!(told(&pair, 1), [UP[1], DOWN[1]]);
    pair.assert_nothing_is_left();
}

#[test]
fn what_a_trap_sets_up_is_told_each_time() {
    let mut a = config(0);
    a.connections[0].children[0].start_action = StartAction::Trap;
    let mut pair = Pair::with(84, a, config(1));
    for round in 1..=2 {
        let trap = *pair.hosts[0].traps.first().unwrap();
        let now = pair.now;
        pair.hosts[0].endpoint.handle_child_event(now, mobikex::ike::ChildEvent::Acquire(trap));
        pair.collect();
        pair.advance(SECOND);
        assert_eq!(told(&pair, 0).len(), 2 * round - 1);
        pair.down(1, Some("net"));
        pair.advance(10 * SECOND);
        assert_eq!(told(&pair, 0).len(), 2 * round);
    }
}
