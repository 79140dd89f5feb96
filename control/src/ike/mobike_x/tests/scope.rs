//! Which IKE SAs a peer reaches.

use super::*;

/// Two IKE SAs between the same ends; the numbers of the second end's.
fn two_ike_sas() -> (Pair, [u32; 2]) {
    let mut pair = Pair::new(|end, c| {
        if end == 1 {
            c.local_addrs = config(end).connections[0].local_addrs.clone();
        }
    });
    pair.start(0);
    pair.start(1);
    pair.run(2 * SECOND);
    let ids: Vec<u32> = pair.ends[1].ike_sas(pair.now).iter().map(|v| v.id).collect();
    (pair, ids.try_into().expect("two IKE SAs"))
}

#[test]
fn m8_another_ike_sa_is_reached_only_with_the_same_peer_method_credential_and_pad_entry() {
    let (mut pair, [first, second]) = two_ike_sas();
    let halves = |pair: &mut Pair, id| pair.sa_by_id(1, id, |sa, _| sa.children[0].halves.remote.len());
    // The one over which the first end asks is its own first.
    let asked = pair.sa(0, |sa, _| sa.spi_i);
    let (this, other) =
        if pair.sa_by_id(1, first, |sa, _| sa.spi_i) == asked { (first, second) } else { (second, first) };
    let ask = |pair: &mut Pair, parameter: Parameter, n: u16| {
        let add = action(ADD, &[outer(&format!("192.0.2.{n}"))], n);
        verdicts(&pair.ask(0, &[selector(parameter), add]))
    };
    let named = |spi| Parameter::Spi(SpiParameter::Ike(spi));
    let all = Parameter::Special(ALL_IKE_SAS);
    assert_eq!(ask(&mut pair, all.clone(), 11), []);
    assert_eq!((halves(&mut pair, this), halves(&mut pair, other)), (2, 2), "the same peer");
    let spi = pair.sa_by_id(1, other, |sa, _| sa.spi_i);
    // ADD passes over an IKE SA, but it was found.
    assert_eq!(ask(&mut pair, named(spi), 12), []);

    let peer = |id: &str, secret: &[u8]| -> AuthenticatedPeer {
        let (id, key) = (id.parse().unwrap(), secret.to_vec().into());
        let prf = mobikex_common::alg::Prf::HmacSha256;
        let octets = SignedOctets { message: b"m", nonce: b"n", id: &id, sk_p: &key };
        verify_psk(prf, &key, &octets, &sign_psk(prf, &key, &octets)).unwrap()
    };
    let true_peer = pair.sa_by_id(1, other, |sa, _| sa.peer().unwrap().clone());
    let unknown = pair.sa_by_id(1, other, |_, ctx| mobikex_common::spi::IkeSpi::random(ctx.rng));
    let absent = ask(&mut pair, named(unknown), 20);
    assert_eq!(absent, [(NotifyType::UNMATCHED_SELECTOR_SET, Some(20))]);
    for (id, secret) in
        [("c.example", &b"correct horse battery staple"[..]), ("a.example", b"another secret")]
    {
        pair.sa_by_id(1, other, |sa, _| sa.state = State::Established(peer(id, secret)));
        let before = halves(&mut pair, other);
        // It answers as one that does not exist, and is not reached.
        assert_eq!(ask(&mut pair, named(spi), 20), absent, "{id}");
        assert_eq!(ask(&mut pair, all.clone(), 21), [], "{id}: our own is there");
        assert_eq!(halves(&mut pair, other), before, "{id}");
    }
    pair.sa_by_id(1, other, |sa, _| sa.state = State::Established(true_peer));
    pair.sa_by_id(1, other, |sa, _| {
        sa.conn = std::sync::Arc::new(Connection { name: "elsewhere".into(), ..(*sa.conn).clone() });
    });
    assert_eq!(ask(&mut pair, named(spi), 20), absent, "another PAD entry");
}

#[test]
fn the_spi_of_a_deleted_child_matches_nothing() {
    let mut pair = Pair::up(|_, _| {});
    let spi = selector(Parameter::Spi(SpiParameter::Child(child_spi(&mut pair, 0))));
    let add = |n: u16| action(ADD, &[outer(&format!("192.0.2.{n}"))], n);
    assert_eq!(pair.ask(0, &[spi.clone(), add(7)]), []);
    pair.command(0, Command::Down { connection: "home".into(), child: Some("net".into()) });
    pair.run(SECOND);
    // Late packets are still received, so that the SA as such is there.
    assert_eq!(pair.sa(1, |sa, _| sa.children.len()), 1);
    let answer = pair.ask(0, &[spi, add(8)]);
    assert_eq!(verdicts(&answer), [(NotifyType::UNMATCHED_SELECTOR_SET, Some(8))]);
}
