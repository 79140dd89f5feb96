//! Configuration payloads that no honest peer sends.

use std::net::IpAddr;
use std::time::Duration;

use mobikex_common::wire::ike::{
    ConfigAttribute, ConfigAttributeType as Type, ConfigPayload, ConfigType, NotifyType, Payload, emit_chain,
    parse_chain,
};

use super::internal::Given;
use super::testing::{Pair, ip};
use crate::config::{self, Config, TsPattern};

fn attribute(kind: Type, value: &[u8]) -> ConfigAttribute {
    ConfigAttribute { kind, value: value.to_vec() }
}

fn payload(kind: ConfigType, attributes: Vec<ConfigAttribute>) -> Payload {
    Payload::Cp(ConfigPayload { kind, attributes })
}

/// The first end has a virtual address of the second one's pool.
fn pair() -> Pair {
    let pools = "pools { v4 { addrs = 10.3.0.0/24\n dns = 10.2.0.53\n } }";
    let pools = config::parse_str("t.conf", pools).unwrap().pools;
    let dynamic = || vec![TsPattern::Dynamic("0.0.0.0/0".parse().unwrap())];
    let change = |me: usize, config: &mut Config| {
        let conn = &mut config.connections[0];
        if me == 0 {
            conn.vips = vec![ip("0.0.0.0")];
            conn.children[0].local_ts = dynamic();
        } else {
            conn.pools = vec!["v4".into()];
            conn.children[0].remote_ts = dynamic();
            config.pools = pools.clone();
        }
    };
    let mut pair = Pair::with(change);
    pair.start(0);
    pair.run(Duration::from_secs(1));
    assert_eq!(given(&mut pair).addresses, [ip("10.3.0.1")], "{}{}", pair.story(0), pair.story(1));
    pair
}

fn given(pair: &mut Pair) -> Given {
    pair.sa(0, |sa, _| sa.given().cloned().unwrap_or_default())
}

fn replies(answer: &[Payload]) -> Vec<&ConfigPayload> {
    answer.iter().filter_map(|p| if let Payload::Cp(cp) = p { Some(cp) } else { None }).collect()
}

/// What the first end makes of an answer in IKE_AUTH, as if it had nothing yet.
fn taken(attributes: Vec<ConfigAttribute>) -> (Result<(), String>, Given) {
    let mut pair = pair();
    let outcome = pair.sa(0, |sa, ctx| {
        sa.release_configuration(ctx);
        sa.configuration = None;
        sa.take_configuration(ctx, &[payload(ConfigType::CFG_REPLY, attributes)])
    });
    let given = given(&mut pair);
    (outcome, given)
}

fn v4(addr: &str) -> ConfigAttribute {
    ConfigAttribute::address(Type::INTERNAL_IP4_ADDRESS, addr.parse::<IpAddr>().unwrap())
}

#[test]
fn addresses_that_cannot_be_ours_end_the_ike_sa() {
    // Loopback, multicast, broadcast, our own outer one; and none at all.
    for bad in ["127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.0.1", "192.0.2.1"] {
        let (outcome, given) = taken(vec![v4(bad)]);
        assert!(outcome.unwrap_err().contains(bad));
        assert!(given.addresses.is_empty());
    }
    for bad in [vec![], vec![attribute(Type::INTERNAL_IP4_ADDRESS, &[10, 3, 0])], vec![v4("0.0.0.0")]] {
        assert!(taken(bad).0.unwrap_err().contains("no virtual address"));
    }
}

#[test]
fn only_what_was_asked_for_is_taken_and_no_more_than_there_is_room_for() {
    let dns = |n: u8| ConfigAttribute::address(Type::INTERNAL_IP4_DNS, IpAddr::from([10, 2, 0, n]));
    let mut attributes = vec![v4("10.3.0.7"), v4("10.3.0.8")];
    attributes.push(ConfigAttribute::prefix(Type::INTERNAL_IP6_ADDRESS, ip("fd03::1"), 64));
    attributes.extend((1..200).map(dns));
    attributes.push(attribute(Type::INTERNAL_DNS_DOMAIN, b"corp.example"));
    attributes.push(attribute(Type::INTERNAL_DNS_DOMAIN, b"x\nnameserver 6.6.6.6"));
    let (outcome, given) = taken(attributes);
    assert_eq!(outcome, Ok(()));
    assert_eq!(given.addresses, [ip("10.3.0.7")], "one was asked for, and nothing of IPv6");
    assert_eq!((given.dns.len(), given.domains), (32, vec!["corp.example".to_string()]));
}

#[test]
fn replies_and_settings_that_nobody_asked_for_change_nothing() {
    let mut pair = pair();
    let before = given(&mut pair);
    let forged = || vec![v4("10.9.9.9"), attribute(Type::INTERNAL_IP4_DNS, &[6, 6, 6, 6])];
    for kind in [ConfigType::CFG_REPLY, ConfigType::CFG_ACK, ConfigType(99)] {
        assert!(replies(&pair.ask(1, &[payload(kind, forged())])).is_empty());
    }
    let answer = pair.ask(1, &[payload(ConfigType::CFG_SET, forged())]);
    assert_eq!(replies(&answer), [&ConfigPayload { kind: ConfigType::CFG_ACK, attributes: vec![] }]);
    assert_eq!(given(&mut pair), before);
    // Nor does an answer to a request that asked for nothing of the kind.
    pair.sa(0, |sa, ctx| sa.take_configuration(ctx, &[payload(ConfigType::CFG_REPLY, forged())])).unwrap();
    assert_eq!(given(&mut pair), before);
}

#[test]
fn a_peer_asks_again_and_again_and_has_one_address() {
    let mut pair = pair();
    let many = vec![ConfigAttribute::empty(Type::INTERNAL_IP4_ADDRESS); 200];
    for _ in 0..3 {
        let answer = pair.ask(0, &[payload(ConfigType::CFG_REQUEST, many.clone())]);
        let [reply] = replies(&answer)[..] else { panic!("{answer:?}") };
        let addresses: Vec<_> =
            reply.attributes.iter().filter(|a| a.kind == Type::INTERNAL_IP4_ADDRESS).collect();
        assert_eq!(addresses, [&v4("10.3.0.1")]);
        assert!(answer.iter().any(|p| matches!(p, Payload::Notify(n) if n.kind == NotifyType::IP4_ALLOWED)));
    }
    assert_eq!(pair.ends[1].pools()[0].online, 1);
    // The gateway's own wish is not ours to grant.
    let answer = pair.ask(1, &[payload(ConfigType::CFG_REQUEST, many)]);
    assert!(replies(&answer).is_empty());
    let failure =
        |p: &Payload| matches!(p, Payload::Notify(n) if n.kind == NotifyType::INTERNAL_ADDRESS_FAILURE);
    assert!(answer.iter().any(failure));
}

#[test]
fn what_else_is_asked_for_gets_an_answer_of_our_own() {
    let mut pair = pair();
    let asked =
        [Type::APPLICATION_VERSION, Type::SUPPORTED_ATTRIBUTES, Type(28673)].map(ConfigAttribute::empty);
    let answer = pair.ask(1, &[payload(ConfigType::CFG_REQUEST, asked.to_vec())]);
    let [reply] = replies(&answer)[..] else { panic!("{answer:?}") };
    assert_eq!(reply.kind, ConfigType::CFG_REPLY);
    let kinds: Vec<_> = reply.attributes.iter().map(|a| a.kind).collect();
    assert_eq!(kinds, [Type::APPLICATION_VERSION, Type::SUPPORTED_ATTRIBUTES]);
    assert_eq!(reply.attributes[1].value.len(), 26);
}

#[test]
fn an_inner_address_that_was_assigned_is_the_only_one_that_a_peer_may_move_to() {
    let mut pair = pair();
    let permitted = pair.sa(1, |sa, _| sa.children[0].permitted_remote(sa.assigned()));
    assert_eq!(permitted, ["10.3.0.1/32".parse().unwrap()]);
}

#[test]
fn a_payload_of_thousands_of_attributes_is_malformed() {
    let many = payload(ConfigType::CFG_REQUEST, vec![ConfigAttribute::empty(Type::INTERNAL_IP4_DNS); 5000]);
    let (first, octets) = emit_chain(&[many]);
    assert!(parse_chain(first, &octets).is_err());
}
