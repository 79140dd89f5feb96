//! The IKEv2 engine, both roles, in fake time.
//!
//! Tests named `b1_...` and so on hold what went wrong in other implementations; the number is the row of the
//! project's list of such faults.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

#[cfg(feature = "aws-lc")]
mod certificates;
#[cfg(feature = "aws-lc")]
mod chains;
mod configuration;
#[cfg(feature = "aws-lc")]
mod eap;
#[cfg(feature = "aws-lc")]
mod files;
mod fragmentation;
mod life;
#[cfg(feature = "aws-lc")]
mod made;
mod pair;
mod resources;
#[cfg(feature = "aws-lc")]
mod rounds;
#[cfg(feature = "aws-lc")]
mod shapes;
mod updown;
#[allow(dead_code)] // What only the tests of mobility need.
#[path = "../mobility/world.rs"]
mod world;

use std::time::Duration;

use mobikex::config::{DpdAction, TsPattern, Unique};
use mobikex::ike::{ChildEvent, Command};
use mobikex_common::alg::KeyExchange;
use mobikex_common::sa::Mode;
use mobikex_common::wire::ike::Identification;
use pair::{Pair, config, starting, ts};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_tunnel_comes_up_from_either_side() {
    for host in 0..2 {
        let mut pair = Pair::new(1);
        pair.up(host);
        pair.advance(SECOND);
        pair.assert_one_tunnel();
        // IKE_SA_INIT, IKE_AUTH, and what the initiator can do in MOBIKE-X, once each way.
        assert_eq!(pair.sent.len(), 6);
    }
}

#[test]
fn every_suite_and_key_exchange_works() {
    let ike = [
        "aes256gcm16-prfsha384",
        "aes128gcm16-prfsha256",
        "chacha20poly1305-prfsha512",
        "aes128-sha256",
        "aes256-sha512",
    ];
    let esp =
        ["aes256gcm16-esn", "aes128gcm16", "chacha20poly1305-esn", "aes128-sha256", "aes256-sha384-noesn"];
    let kes = ["x25519", "ecp256", "ecp384", "ecp521", "modp2048", "modp3072", "modp4096"];
    for (index, ke) in kes.iter().enumerate() {
        let suite = |mut c: mobikex::config::Config| {
            c.connections[0].proposals = vec![format!("{}-{ke}", ike[index % 5]).parse().unwrap()];
            c.connections[0].children[0].esp_proposals =
                vec![format!("{}-{ke}", esp[index % 5]).parse().unwrap()];
            c
        };
        let mut pair = Pair::with(2, suite(config(0)), suite(config(1)));
        pair.up(0);
        pair.advance(SECOND);
        pair.assert_one_tunnel();
        assert_eq!(pair.sending(0)[0].suite.ke, None, "IKE_AUTH carries no key exchange of its own");
        pair.rekey(1, Some("net"));
        pair.advance(10 * SECOND);
        pair.assert_one_tunnel();
        assert!(pair.sending(0)[0].suite.ke.is_some(), "the rekeyed SA has perfect forward secrecy");
        pair.rekey(0, None);
        pair.advance(10 * SECOND);
        pair.assert_one_tunnel();
    }
}

#[test]
fn transport_mode_is_agreed_or_refused() {
    let mode = |mut c: mobikex::config::Config| {
        let child = &mut c.connections[0].children[0];
        child.mode = Mode::Transport;
        let any = TsPattern::Dynamic("0.0.0.0/0".parse().unwrap());
        (child.local_ts, child.remote_ts) = (vec![any.clone()], vec![any]);
        c
    };
    let mut pair = Pair::with(3, mode(config(0)), mode(config(1)));
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_one_tunnel();
    assert_eq!(pair.sending(0)[0].mode, Mode::Transport);
    assert_eq!(pair.sending(1)[0].ts_local[0].to_string(), "192.0.2.2/32");
}

#[test]
fn keys_leave_the_engine_only_where_they_are_asked_for() {
    let mut pair = Pair::new(2);
    pair.hosts[0].endpoint.save_keys();
    pair.up(0);
    pair.advance(SECOND);
    for host in 0..2 {
        pair.rekey(host, None);
        pair.advance(10 * SECOND);
    }
    let keys = &pair.hosts[0].keys;
    assert_eq!(keys.len(), 3, "one IKE SA and two that replaced it");
    let last = &pair.hosts[1].endpoint.ike_sas(pair.now)[0];
    assert_eq!((keys[2].initiator_spi, keys[2].responder_spi), (last.spi_i, last.spi_r));
    assert!(keys.iter().all(|k| k.encryption[0] != k.encryption[1]));
    assert!(pair.hosts[1].keys.is_empty());
}

#[test]
fn a_lossy_network_only_delays() {
    for seed in 0..40 {
        let mut pair = Pair::new(seed);
        (pair.loss, pair.duplication, pair.reordering) = (20, 20, 20);
        pair.up((seed % 2) as usize);
        pair.advance(200 * SECOND);
        pair.assert_one_tunnel();
    }
}

#[test]
fn the_responder_may_want_another_key_exchange() {
    let mut b = config(1);
    for proposal in &mut b.connections[0].proposals {
        proposal.kes = vec![KeyExchange::Ecp384];
    }
    let mut pair = Pair::with(5, config(0), b);
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_one_tunnel();
    assert_eq!(pair.sent.len(), 8, "one more round for INVALID_KE_PAYLOAD");
}

#[test]
fn cookies_are_asked_for_under_load() {
    let mut b = config(1);
    b.daemon.cookie_threshold = 0;
    let mut pair = Pair::with(6, config(0), b);
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_one_tunnel();
    assert_eq!(pair.hosts[1].endpoint.counters().cookies_asked, 1);
    assert_eq!(pair.sent.len(), 8);
}

#[test]
fn b4_nothing_that_was_not_offered_is_selected() {
    let mut a = config(0);
    a.connections[0].proposals = vec!["aes256gcm16-prfsha384-ecp384".parse().unwrap()];
    let mut b = config(1);
    b.connections[0].proposals = vec!["chacha20poly1305-prfsha384-ecp384".parse().unwrap()];
    let mut pair = Pair::with(7, a, b);
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_nothing_is_left();
    let reason = pair.story(0);
    assert!(reason.contains("NO_PROPOSAL_CHOSEN") && reason.contains("AES_GCM_16_256"), "{reason}");
}

/// The responder has sent its proof last, and believes in the IKE SA.
#[test]
fn a_responder_that_is_not_accepted_learns_it() {
    let mut a = config(0);
    a.connections[0].remote.id = Some(Identification::pattern("*.example.org").unwrap());
    a.secrets[0].ids.clear();
    let mut pair = Pair::with(1, a, config(1));
    pair.up(0);
    pair.advance(Duration::from_millis(100));
    pair.assert_nothing_is_left();
    assert!(pair.story(0).contains("b.example"), "{}", pair.story(0));
    assert!(pair.story(1).contains("the peer does not accept our proof"), "{}", pair.story(1));
}

#[test]
fn unique_replace_keeps_the_older_ike_sa_when_the_peer_does_not_accept_the_new_one() {
    let mut b = config(1);
    b.connections[0].unique = Unique::Replace;
    let mut a = config(0);
    a.secrets[0].ids.clear();
    let mut pair = Pair::with(31, a.clone(), b);
    pair.up(0);
    pair.advance(10 * SECOND);
    let first = pair.views(0)[0].spi_i;
    a.connections[0].name = "again".into();
    a.connections[0].remote.id = Some(Identification::pattern("*.example.org").unwrap());
    let now = pair.now;
    pair.hosts[0].endpoint.set_config(now, a);
    pair.command(0, Command::Up { connection: "again".into(), child: None });
    pair.advance(60 * SECOND);
    assert!(pair.story(1).contains("the peer does not accept our proof"), "{}", pair.story(1));
    pair.assert_one_tunnel();
    assert_eq!(pair.views(1)[0].spi_i, first);
}

#[test]
fn b3_b18_a_wrong_secret_leaves_nothing_behind() {
    let mut a = config(0);
    a.secrets[0].secret = b"wrong".to_vec().into();
    let mut pair = Pair::with(8, a, config(1));
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_nothing_is_left();
    assert!(pair.story(0).contains("AUTHENTICATION_FAILED"), "{}", pair.story(0));
    assert!(pair.story(1).contains("MAC of a.example is wrong"), "{}", pair.story(1));
    // The responder gave away no AUTH of its own: its refusal is far shorter than an IKE_AUTH response.
    let (_, refusal) = pair.sent.last().unwrap();
    assert!(refusal.len() < 100, "{}", refusal.len());
}

#[test]
fn an_unexpected_identity_is_refused() {
    let mut b = config(1);
    b.connections[0].remote.id = Some("c.example".parse().unwrap());
    let mut pair = Pair::with(9, config(0), b);
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_nothing_is_left();
    assert!(pair.story(1).contains("no connection expects 'a.example'"), "{}", pair.story(1));
}

#[test]
fn selectors_are_narrowed_by_the_responder() {
    let mut a = config(0);
    a.connections[0].children[0].remote_ts = vec![ts("10.0.0.0/8")];
    let mut pair = Pair::with(10, a, config(1));
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_one_tunnel();
    assert_eq!(pair.sending(0)[0].ts_remote, vec!["10.2.0.0/16".parse().unwrap()]);
}

#[test]
fn without_common_selectors_only_the_ike_sa_stands() {
    let mut a = config(0);
    a.connections[0].children[0].remote_ts = vec![ts("172.16.0.0/12")];
    let mut pair = Pair::with(11, a, config(1));
    pair.up(0);
    pair.advance(SECOND);
    for host in 0..2 {
        assert_eq!(pair.views(host)[0].state, "ESTABLISHED");
        assert!(pair.hosts[host].children.is_empty());
    }
    assert!(pair.story(0).contains("TS_UNACCEPTABLE"), "{}", pair.story(0));
}

#[test]
fn a_second_child_is_created_on_the_same_ike_sa() {
    let two = |me: usize| {
        let mut c = config(me);
        let mut second = c.connections[0].children[0].clone();
        second.name = "lab".into();
        let nets = [ts("10.3.0.0/16"), ts("10.4.0.0/16")];
        (second.local_ts, second.remote_ts) = (vec![nets[me].clone()], vec![nets[1 - me].clone()]);
        c.connections[0].children.push(second);
        for child in &mut c.connections[0].children {
            child.start_action = mobikex::config::StartAction::Start;
        }
        c
    };
    let mut pair = Pair::with(12, two(0), two(1));
    pair.up(0);
    pair.advance(SECOND);
    for host in 0..2 {
        assert_eq!(pair.views(host).len(), 1);
        assert_eq!(pair.sending(host).len(), 2);
    }
    pair.assert_nothing_is_lost();
}

#[test]
fn rekeying_a_child_never_leaves_a_gap() {
    for host in 0..2 {
        let mut pair = Pair::established(13);
        let before = pair.sending(0)[0].spi_out;
        pair.rekey(host, Some("net"));
        for _ in 0..200 {
            pair.advance(Duration::from_millis(1));
            assert_eq!((pair.sending(0).len(), pair.sending(1).len()), (1, 1));
            pair.assert_nothing_is_lost();
        }
        pair.advance(10 * SECOND);
        pair.assert_one_tunnel();
        assert_ne!(pair.sending(0)[0].spi_out, before);
        assert_eq!(pair.hosts[0].children.len(), 1, "the old SA is gone");
        assert_eq!(pair.hosts[1].children.len(), 1, "the old SA is gone");
    }
}

#[test]
fn traffic_on_a_new_child_lets_the_responder_switch_at_once() {
    let mut pair = Pair::established(14);
    pair.rekey(0, Some("net"));
    pair.advance(Duration::from_millis(15));
    let new = *pair.hosts[1].children.keys().last().unwrap();
    assert!(!pair.hosts[1].children[&new].1, "the responder waits");
    let now = pair.now;
    pair.hosts[1].endpoint.handle_child_event(now, ChildEvent::FirstInbound(new));
    pair.advance(Duration::ZERO);
    pair.advance(10 * SECOND);
    pair.assert_one_tunnel();
}

#[test]
fn b17_simultaneous_child_rekeying_ends_with_one_sa() {
    let mut given_up = 0;
    for seed in 0..60 {
        let mut pair = Pair::established(seed);
        (pair.loss, pair.reordering) = if seed < 20 { (0, 0) } else { (15, 30) };
        pair.rekey(0, Some("net"));
        // Anything from at once to about when the first answer arrives.
        pair.advance(Duration::from_millis(seed % 25));
        pair.rekey(1, Some("net"));
        if !pair.settles(300) {
            given_up += 1;
            continue;
        }
        pair.assert_one_tunnel();
    }
    assert!(given_up <= 3, "{given_up} of 60 attempts proved nothing");
}

#[test]
fn b17_simultaneous_ike_rekeying_ends_with_one_sa() {
    let mut given_up = 0;
    for seed in 0..60 {
        let mut pair = Pair::established(seed);
        (pair.loss, pair.reordering) = if seed < 20 { (0, 0) } else { (15, 30) };
        pair.rekey(0, None);
        pair.advance(Duration::from_millis(seed % 25));
        pair.rekey(1, None);
        if !pair.settles(500) {
            given_up += 1;
            continue;
        }
        pair.assert_one_tunnel();
        assert_eq!(pair.views(0).len(), 1, "seed {seed}: {:#?}", pair.views(0));
        assert_eq!(pair.views(1).len(), 1, "seed {seed}: {:#?}", pair.views(1));
        assert_eq!(pair.views(0)[0].spi_i, pair.views(1)[0].spi_i);
    }
    assert!(given_up <= 3, "{given_up} of 60 attempts proved nothing");
}

#[test]
fn b17_rekeying_of_everything_from_both_sides_at_once_settles() {
    let mut given_up = 0;
    for seed in 0..600 {
        let mut pair = Pair::established(seed);
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        (pair.loss, pair.duplication, pair.reordering) = (10, 10, 20);
        for _ in 0..6 {
            let (host, child) = ((rng.next_u32() % 2) as usize, rng.next_u32() % 2 == 0);
            pair.rekey(host, child.then_some("net"));
            pair.advance(Duration::from_millis(u64::from(rng.next_u32() % 40)));
        }
        if !pair.settles(600) {
            given_up += 1;
            continue;
        }
        pair.assert_one_tunnel();
    }
    assert!(given_up <= 30, "{given_up} of 600 attempts proved nothing");
}

#[test]
fn deleting_a_child_keeps_the_ike_sa() {
    for host in 0..2 {
        let mut pair = Pair::established(15);
        pair.down(host, Some("net"));
        pair.advance(10 * SECOND);
        for host in 0..2 {
            assert_eq!(pair.views(host)[0].state, "ESTABLISHED");
            assert!(pair.hosts[host].children.is_empty());
        }
    }
}

#[test]
fn b17_deleting_from_both_sides_at_once_is_harmless() {
    let mut pair = Pair::established(16);
    pair.down(0, Some("net"));
    pair.down(1, Some("net"));
    pair.advance(10 * SECOND);
    assert!(pair.hosts.iter().all(|h| h.children.is_empty()));
    pair.down(0, None);
    pair.down(1, None);
    pair.advance(200 * SECOND);
    pair.assert_nothing_is_left();
}

#[test]
fn shutting_down_tells_the_peer() {
    let mut pair = Pair::established(17);
    pair.command(0, Command::Shutdown);
    pair.advance(SECOND);
    pair.assert_nothing_is_left();
    assert!(pair.story(1).contains("deleted by the peer"));
}

#[test]
fn a_dead_peer_is_noticed_and_the_tunnel_comes_back() {
    let mut a = config(0);
    a.connections[0].dpd_delay = 10 * SECOND;
    a.connections[0].keyingtries = 0;
    a.connections[0].children[0].dpd_action = DpdAction::Restart;
    let mut pair = Pair::with(18, a, config(1));
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_one_tunnel();
    pair.cut(true);
    pair.advance(600 * SECOND);
    assert!(pair.hosts[0].children.is_empty());
    pair.cut(false);
    pair.advance(300 * SECOND);
    pair.assert_one_tunnel();
}

#[test]
fn a_crashed_peer_replaces_what_it_forgot() {
    let mut pair = Pair::established(19);
    pair.advance(60 * SECOND);
    pair.crash(0);
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_one_tunnel();
    assert!(pair.story(1).contains("the peer has set up a new one"), "{}", pair.story(1));
}

#[test]
fn both_sides_may_start_at_once() {
    let mut c = [starting(config(0)), starting(config(1))];
    c.iter_mut().for_each(|c| c.connections[0].unique = Unique::No);
    let [a, b] = c;
    let mut pair = Pair::with(20, a, b);
    for host in 0..2 {
        let now = pair.now;
        pair.hosts[host].endpoint.start_connections(now);
    }
    pair.advance(10 * SECOND);
    for host in 0..2 {
        assert!(pair.views(host).iter().any(|v| v.state == "ESTABLISHED"), "{}", pair.story(host));
    }
    pair.assert_nothing_is_lost();
}

#[test]
fn a_week_of_lifetimes_keeps_exactly_one_tunnel() {
    let mut pair = Pair::established(21);
    pair.loss = 1;
    for _ in 0..7 * 24 {
        pair.advance(3600 * SECOND);
        pair.assert_nothing_is_lost();
    }
    pair.loss = 0;
    pair.advance(200 * SECOND);
    pair.assert_one_tunnel();
    assert!(pair.story(0).matches("CHILD_SA").count() > 150);
}

#[test]
fn b6_b7_corrupted_datagrams_change_nothing() {
    for seed in 0..200u64 {
        let mut pair = Pair::new(seed);
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        // Three of four datagrams are damaged: flipped, cut, grown or replaced.
        pair.tamper = Some(Box::new(move |data| match rng.next_u32() % 8 {
            0 | 1 => {
                let at = rng.next_u32() as usize % data.len();
                data[at] ^= 1 << (rng.next_u32() % 8);
            }
            2 => data.truncate(rng.next_u32() as usize % data.len()),
            3 => data.extend_from_slice(&[0; 5]),
            4 => rng.fill_bytes(data),
            5 => data[16] = rng.next_u32() as u8,
            _ => {}
        }));
        pair.up(0);
        pair.advance(400 * SECOND);
        // Whatever became of the attempt, no side holds a Child SA that was not authenticated.
        for host in 0..2 {
            let up = pair.views(host).iter().any(|v| v.remote_id.is_some());
            assert!(up || pair.hosts[host].children.is_empty());
        }
    }
}

#[test]
fn b6_noise_is_counted_and_dropped() {
    let mut pair = Pair::established(22);
    let mut rng = ChaCha20Rng::seed_from_u64(22);
    let now = pair.now;
    let sent = pair.sent.len();
    let (local, remote) = (Pair::addr(1), Pair::addr(0));
    let view = pair.views(1)[0].clone();
    for round in 0..20_000u32 {
        let mut data = vec![0; (rng.next_u32() % 200) as usize];
        rng.fill_bytes(&mut data);
        if data.len() >= 28 && round % 2 == 0 {
            // A header that looks right, with the SPIs of the live SA.
            data[..8].copy_from_slice(&view.spi_i.to_be_bytes());
            data[8..16].copy_from_slice(&view.spi_r.to_be_bytes());
            data[17] = 0x20;
            data[18] = 34 + (round % 4) as u8;
            let length = (data.len() as u32).to_be_bytes();
            data[24..28].copy_from_slice(&length);
            data[20..24].copy_from_slice(&(round % 4).to_be_bytes());
        }
        pair.hosts[1].endpoint.handle_datagram(now, local, remote, true, &data);
    }
    pair.advance(SECOND);
    pair.assert_one_tunnel();
    assert_eq!(pair.sent.len(), sent, "noise got an answer");
    let counters = pair.hosts[1].endpoint.counters();
    assert!(
        counters.malformed > 1000 && counters.not_authentic + counters.outside_window > 100,
        "{counters:?}"
    );
}

#[test]
fn b11_a_stateless_answer_is_smaller_than_its_question() {
    let mut b = config(1);
    b.daemon.cookie_threshold = 0;
    let mut pair = Pair::with(23, config(0), b);
    pair.up(0);
    pair.advance(Duration::from_millis(25));
    let question = pair.sent.iter().find(|(host, _)| *host == 0).unwrap().1.len();
    let answer = pair.sent.iter().find(|(host, _)| *host == 1).unwrap().1.len();
    assert!(answer < question, "{answer} octets answer {question}");
    // A responder never repeats itself unprompted.
    let mut pair = Pair::new(24);
    pair.up(0);
    pair.advance(Duration::from_millis(15));
    pair.cut(true);
    let before = pair.sent.iter().filter(|(host, _)| *host == 1).count();
    pair.advance(100 * SECOND);
    assert_eq!(pair.sent.iter().filter(|(host, _)| *host == 1).count(), before);
    assert!(pair.views(1).is_empty(), "a half-open SA expires");
}

#[test]
fn b12_half_open_sas_are_bounded() {
    let mut b = config(1);
    (b.daemon.cookie_threshold, b.daemon.half_open_limit) = (1000, 20);
    let mut pair = Pair::with(25, config(0), b);
    let request = {
        let mut other = Pair::new(26);
        other.up(0);
        other.sent[0].1.clone()
    };
    for spi in 1..=100u64 {
        let mut data = request.clone();
        data[..8].copy_from_slice(&spi.to_be_bytes());
        let (now, local, remote) = (pair.now, Pair::addr(1), Pair::addr(0));
        pair.hosts[1].endpoint.handle_datagram(now, local, remote, false, &data);
    }
    assert_eq!(pair.views(1).len(), 20);
    assert_eq!(pair.hosts[1].endpoint.counters().half_open_dropped, 80);
    // They expire, and an honest peer gets in again.
    pair.advance(60 * SECOND);
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_one_tunnel();
}

#[test]
fn without_encap_and_without_nat_esp_goes_plain() {
    let mut pair = Pair::with(27, plain(config(0)), plain(config(1)));
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_one_tunnel();
    assert!(!pair.sending(0)[0].addresses.paths[0].encap, "no NAT, no encapsulation");
    assert_eq!(pair.views(0)[0].local.port(), 500);
}

fn plain(mut c: mobikex::config::Config) -> mobikex::config::Config {
    c.connections[0].encap = false;
    (c.connections[0].mobike, c.connections[0].mobike_x) = (false, mobikex::config::MobikeX::No);
    c
}

/// Rewrites the NAT_DETECTION payloads of both IKE_SA_INIT messages to `len` octets, lengths made good.
fn with_hashes_of(len: usize) -> Pair {
    use mobikex_common::wire::ike::{Header, NotifyType, Payload, emit_chain, parse_chain};
    let mut pair = Pair::with(28, plain(config(0)), plain(config(1)));
    pair.tamper = Some(Box::new(move |data| {
        let mut header = Header::parse(data).unwrap();
        let Ok(mut payloads) = parse_chain(header.next_payload, &data[Header::LEN..]) else { return };
        for payload in &mut payloads {
            if let Payload::Notify(n) = payload
                && [NotifyType::NAT_DETECTION_SOURCE_IP, NotifyType::NAT_DETECTION_DESTINATION_IP]
                    .contains(&n.kind)
            {
                n.data = vec![7; len];
            }
        }
        let (_, body) = emit_chain(&payloads);
        header.length = (Header::LEN + body.len()) as u32;
        *data = [&header.emit()[..], &body].concat();
    }));
    pair.up(0);
    pair.advance(Duration::from_millis(25));
    pair
}

#[test]
fn b16_nat_detection_of_another_length_is_ignored() {
    // The initiator has just chosen the port of IKE_AUTH: 4500 shows that it believes in a NAT.
    assert_eq!(with_hashes_of(20).views(0)[0].local.port(), 4500, "a hash that does not match means a NAT");
    for len in [0, 1, 19, 21, 64] {
        assert_eq!(with_hashes_of(len).views(0)[0].local.port(), 500, "{len} octets are no hash");
    }
}

#[test]
fn a_peer_that_crashed_at_once_leaves_no_second_tunnel() {
    let mut pair = Pair::established(29);
    pair.crash(0);
    pair.up(0);
    pair.advance(SECOND);
    pair.assert_one_tunnel();
}

#[test]
fn unique_replace_deletes_the_older_ike_sa_with_the_peer() {
    let replace = |mut c: mobikex::config::Config| {
        c.connections[0].unique = Unique::Replace;
        c
    };
    let mut pair = Pair::with(30, replace(config(0)), replace(config(1)));
    pair.up(0);
    pair.advance(10 * SECOND);
    let first = pair.views(0)[0].spi_i;
    // The other side starts one too, as after a change of its configuration.
    let mut renamed = replace(config(1));
    renamed.connections[0].name = "again".into();
    let now = pair.now;
    pair.hosts[1].endpoint.set_config(now, renamed);
    pair.command(1, Command::Up { connection: "again".into(), child: None });
    pair.advance(10 * SECOND);
    pair.assert_one_tunnel();
    assert_ne!(pair.views(0)[0].spi_i, first);
}
