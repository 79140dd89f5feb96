//! Addresses that begin later than they are announced.

use super::*;

const LATER: &str = "192.0.2.9";

/// An address is added that begins in a minute. By then `meanwhile` has happened.
fn one_that_begins_later(meanwhile: impl FnOnce(&mut Pair)) -> Pair {
    let mut pair = Pair::up(|_, _| {});
    let mip = Mip { start: 60, preference: 100, ..Mip::default() };
    assert_eq!(pair.ask(0, &[action(ADD, &[with(outer(LATER), mip)], 1)]), []);
    pair.run(59 * SECOND);
    assert_eq!(sent_to(&pair, LATER), 0, "its time has not come");
    assert_eq!(carrying(&mut pair), ["192.0.2.1"]);
    meanwhile(&mut pair);
    pair.run(5 * SECOND);
    pair
}

/// The addresses to which the Child SA of the second end sends.
fn carrying(pair: &mut Pair) -> Vec<String> {
    pair.sa(1, |sa, _| {
        let paths = sa.children[0].addresses.paths.iter().filter(|p| p.weight > 0);
        paths.map(|p| p.path.remote.ip().to_string()).collect()
    })
}

#[test]
fn m15_an_address_is_checked_when_it_begins() {
    let mut pair = one_that_begins_later(|pair| {
        pair.addresses[0].insert(ip(LATER));
    });
    assert!(sent_to(&pair, LATER) > 0);
    assert!(pair.story(1).contains("begin 192.0.2.9: done"), "{}", pair.story(1));
    assert_eq!(carrying(&mut pair), ["192.0.2.1", LATER]);

    let mut pair = one_that_begins_later(|_| {});
    assert_eq!(sent_to(&pair, LATER), 3, "nobody is there");
    assert_eq!((carrying(&mut pair), pair.theirs(1)), (vec!["192.0.2.1".into()], vec!["192.0.2.1".into()]));
}

#[test]
fn m15_an_address_that_carried_traffic_is_checked_once_more_when_it_begins_anew() {
    let mut pair = Pair::up(|_, _| {});
    pair.addresses[0].insert(ip(LATER));
    pair.ask(0, &[action(ADD, &[outer(LATER)], 1)]);
    pair.run(5 * SECOND);
    assert_eq!(carrying(&mut pair), ["192.0.2.1", LATER]);
    let checked = sent_to(&pair, LATER);
    pair.ask(0, &[action(ADD, &[with(outer(LATER), Mip { start: 60, ..Mip::default() })], 1)]);
    pair.run(30 * SECOND);
    assert_eq!(carrying(&mut pair), ["192.0.2.1"]);
    pair.addresses[0].remove(&ip(LATER));
    pair.run(40 * SECOND);
    assert!(sent_to(&pair, LATER) > checked, "{}", pair.story(1));
    assert_eq!(pair.theirs(1), ["192.0.2.1"]);
}

#[test]
fn m15_an_address_is_authorised_again_when_it_begins() {
    let refused = |meanwhile: &dyn Fn(&mut Pair), why: &str| {
        let mut pair = one_that_begins_later(|pair| {
            pair.addresses[0].insert(ip(LATER));
            meanwhile(pair);
        });
        let begun = format!("begin {LATER}: UNACCEPTABLE_ADDRESSES");
        assert!(pair.story(1).contains(&begun), "{why}: {}", pair.story(1));
        assert_eq!((sent_to(&pair, LATER), pair.theirs(1)), (0, vec!["192.0.2.1".to_string()]), "{why}");
    };
    refused(&|pair| pair.add(1, LATER), "it has become our own");
    refused(
        &|pair| drop(pair.ask(0, &[crate::ike::mobike_x::negotiation_tests::unsupported(255)])),
        "version 2 is over",
    );
    let narrower = |pair: &mut Pair| {
        let mut config = config(1);
        config.connections[0].paths.allowed = vec!["203.0.113.0/24".parse().unwrap()];
        pair.ends[1].set_config(pair.now, config);
    };
    refused(&narrower, "the configuration does not allow it any more");
}

#[test]
fn an_update_to_an_address_that_begins_later_moves_when_it_begins() {
    let mut pair = Pair::up(|_, _| {});
    let new = IpParameter { new: true, ..with(outer(LATER), Mip { start: 60, ..Mip::default() }) };
    assert_eq!(pair.ask(0, &[action(UPDATE, &[new], 1)]), []);
    pair.run(50 * SECOND);
    assert_eq!(pair.sa(1, |sa, _| sa.remote.ip()), ip("192.0.2.1"));
    assert_eq!((carrying(&mut pair), sent_to(&pair, LATER)), (vec!["192.0.2.1".to_string()], 0));
    pair.addresses[0].insert(ip(LATER));
    pair.run(20 * SECOND);
    assert_eq!(
        pair.sa(1, |sa, _| (sa.remote.ip(), sa.mobility.checks[&sa.remote])),
        (ip(LATER), Check::Passed)
    );
    assert_eq!(carrying(&mut pair), [LATER]);
}
