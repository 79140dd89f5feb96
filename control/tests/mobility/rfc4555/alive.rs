//! Whether the peer is where it says, whether it is alive, and who it is (RFC 4555 3.7, 3.11, 3.12, 5.2 to 5.4, A.2).

use super::*;

// ---- 3.7, 4.2.5: COOKIE2 ---------------------------------------------------------------------------------------------

#[test]
fn cookie2_comes_back_as_it_was_sent_if_it_is_one() {
    let mut puppet = called(|_| {}, &B[..1], &[]);
    for (len, good) in [(8, true), (16, true), (64, true), (0, false), (7, false), (65, false), (200, false)]
    {
        let cookie = puppet.octets(len);
        let answer = puppet.ask(over(A[0], B[0]), &[say(N::COOKIE2, cookie.clone())]);
        let expected = if good { vec![say(N::COOKIE2, cookie)] } else { vec![] };
        assert_eq!(answer.payloads, expected, "{len} octets");
    }
    assert!(puppet.is_up());
}

#[test]
fn another_cookie2_than_was_sent_closes_the_ike_sa() {
    let other = |request: &Said| {
        let mut cookie = request.data(N::COOKIE2).to_vec();
        cookie[0] ^= 1;
        vec![say(N::COOKIE2, cookie)]
    };
    let longer = |request: &Said| vec![say(N::COOKIE2, [request.data(N::COOKIE2), &[0]].concat())];
    let none = |_: &Said| vec![];
    let good = |request: &Said| echo(request);
    let answers: [(&Answer, bool); 4] = [(&other, false), (&longer, false), (&none, false), (&good, true)];
    for (answer, stays) in answers {
        // A check of the initiator's address, an update, and the answer to a complaint.
        let mut checked = called(|_| {}, &B[..1], &[]);
        checked.ask(over(A[1], B[0]), &[say(N::UPDATE_SA_ADDRESSES, [])]);
        let mut moved = calling(|_| {}, Nat::Absent, &A[..1], &[]);
        moved.network(&[A[1]]);
        let mut doubtful = calling(|_| {}, Nat::Absent, &A[..1], &[]);
        doubtful.unreachable(A[0], B[0], 4500);
        for puppet in [&mut checked, &mut moved, &mut doubtful] {
            let request = puppet.one();
            puppet.answer(&request, &answer(&request));
            assert_eq!(puppet.is_up(), stays);
            assert_eq!(puppet.children.is_empty(), !stays);
            assert_eq!(puppet.story().contains("did not return COOKIE2"), !stays, "{}", puppet.story());
        }
    }
}

#[test]
fn cookies_are_long_enough_and_never_the_same() {
    let mut puppet = called(|_| {}, &B[..1], &[]);
    let mut seen = BTreeSet::new();
    for n in 0..50 {
        let from = if n % 2 == 0 { A[1] } else { A[0] };
        puppet.ask(over(from, B[0]), &[say(N::UPDATE_SA_ADDRESSES, [])]);
        let check = puppet.one();
        let cookie = check.data(N::COOKIE2).to_vec();
        assert!((8..=64).contains(&cookie.len()));
        assert!(seen.insert(cookie), "the same twice");
        puppet.answer(&check, &echo(&check));
    }
    // No octet stands still, as it would in a counter.
    for place in 0..8 {
        let values: BTreeSet<u8> = seen.iter().map(|cookie| cookie[place]).collect();
        assert!(values.len() > 20, "octet {place} takes {} values", values.len());
    }
}

// ---- 3.11, 3.12, 5.3, 5.4: is the peer alive? ------------------------------------------------------------------------

#[test]
fn a_responder_is_patient_for_five_minutes() {
    let mut puppet = called(|c| c.dpd_delay = 10 * SECOND, &B[..1], &[]);
    puppet.advance(10 * SECOND);
    let first = puppet.one();
    puppet.advance(300 * SECOND);
    let said = puppet.said();
    assert!(puppet.is_up() && said.iter().all(|s| s.header.message_id == first.header.message_id));
    assert!(said.last().unwrap().at > first.at + 270 * SECOND, "it still tries");
    puppet.answer(&first, &[]);
    puppet.advance(60 * SECOND);
    assert!(puppet.is_up());
    puppet.advance(900 * SECOND);
    assert!(!puppet.is_up() && puppet.children.is_empty());
}

#[test]
fn esp_from_other_addresses_is_no_sign_of_life() {
    let inside = plain_over("10.9.9.9", B[0]);
    for detected in [plain_over(A[0], B[0]), inside] {
        let mut puppet = Puppet::new(plain(1, |c| c.dpd_delay = 10 * SECOND), &B[..1]);
        let more = [say(N::MOBIKE_SUPPORTED, [])];
        puppet.connect(plain_over(A[0], B[0]), over(A[0], B[0]), Some(detected), &more);
        puppet.said();
        let heard = puppet.now;
        let child = *puppet.children.keys().next().unwrap();
        let mut asked = None;
        for _ in 0..12 {
            puppet.advance(SECOND);
            let elsewhere = Path { local: at(B[0], 4500), remote: at(A[1], 4500) };
            puppet.endpoint.handle_new_source(puppet.now, child, elsewhere);
            puppet.child_event(ChildEvent::FirstInbound(child));
            // Where the peer is behind a NAT, that address is asked first; nobody answers there.
            let said = puppet.said().into_iter().find(|s| s.to.ip() == ip(A[0]));
            asked = asked.or(said.map(|s| s.at));
        }
        assert!(
            asked.is_some_and(|at| at <= heard + 10 * SECOND),
            "the peer is asked as if nothing had come"
        );
    }
}

/// Every way to complain about the traffic of an endpoint that sends from `A[0]` to `B[0]`.
fn complaints(puppet: &mut Puppet, number: usize) {
    let (zero, way) = ((IkeSpi::ZERO, IkeSpi::ZERO), over(B[0], A[0]));
    let spi = crate::puppet::PEER_SPI.to_be_bytes();
    let view = puppet.view();
    match number % 3 {
        0 => puppet.unreachable(A[0], B[0], 4500),
        1 => puppet.shout(way, zero, false, say(N::INVALID_SPI, spi)),
        _ => puppet.shout(way, (view.spi_i, view.spi_r), true, say(N::INVALID_IKE_SPI, [])),
    }
}

#[test]
fn a_complaint_makes_us_ask_with_cookie2_and_moves_nothing() {
    for number in 0..3 {
        let mut puppet = calling(|_| {}, Nat::Absent, &A[..2], &[]);
        complaints(&mut puppet, number);
        let probe = puppet.one();
        // With NAT detection, as every question whether the peer is alive.
        let asks = vec![N::NAT_DETECTION_SOURCE_IP, N::NAT_DETECTION_DESTINATION_IP, N::COOKIE2];
        assert_eq!((probe.kinds(), (probe.from, probe.to)), (asks, over(A[0], B[0])));
        assert_eq!(puppet.carrying(), carries(A[0], B[0]));
        // No answer comes; only when it comes over the other pair does anything move.
        puppet.advance(2500 * MS);
        assert_eq!(puppet.carrying(), carries(A[0], B[0]));
        let other = puppet.said().into_iter().rfind(|s| s.from.ip() == ip(A[1])).unwrap();
        puppet.answer(&other, &echo(&other));
        assert!(puppet.one().says(N::UPDATE_SA_ADDRESSES));
        assert_eq!(puppet.carrying(), carries(A[1], B[0]));
    }
    // Who has not seen our packets cannot complain about them.
    let mut puppet = calling(|_| {}, Nat::Absent, &A[..2], &[]);
    let (zero, way) = ((IkeSpi::ZERO, IkeSpi::ZERO), over(B[0], A[0]));
    let spi = crate::puppet::PEER_SPI.to_be_bytes();
    puppet.shout(way, zero, false, say(N::INVALID_SPI, [1, 2, 3, 4]));
    puppet.shout(over(B[1], A[0]), zero, false, say(N::INVALID_SPI, spi));
    puppet.shout(way, (IkeSpi(1), IkeSpi(2)), true, say(N::INVALID_IKE_SPI, []));
    puppet.unreachable(A[0], B[1], 4500);
    puppet.unreachable(A[1], B[0], 4500);
    puppet.unreachable(A[0], B[0], 4501);
    assert!(puppet.said().is_empty());
}

#[test]
fn complaints_are_rate_limited_and_end_nothing() {
    let mut puppet = calling(|_| {}, Nat::Absent, &A[..1], &[]);
    let mut asked = 0;
    for number in 0..600 {
        complaints(&mut puppet, number);
        puppet.advance(100 * MS);
        for request in puppet.said() {
            asked += 1;
            puppet.answer(&request, &echo(&request));
        }
    }
    assert!((2..=7).contains(&asked), "{asked} questions in a minute");
    assert!(puppet.is_up());
    assert_eq!(puppet.carrying(), carries(A[0], B[0]));
    // A flood is cut off before it costs anything, and over a second later.
    puppet.advance(20 * SECOND);
    for _ in 0..1000 {
        let nothing = [1, 2, 3, 4];
        puppet.shout(over(B[0], A[0]), (IkeSpi::ZERO, IkeSpi::ZERO), false, say(N::INVALID_SPI, nothing));
    }
    complaints(&mut puppet, 0);
    assert!(puppet.said().is_empty());
    puppet.advance(SECOND);
    complaints(&mut puppet, 0);
    assert_eq!(puppet.said().len(), 1);
}

// ---- 5.2, A.2: who the peer is ---------------------------------------------------------------------------------------

#[test]
fn being_reachable_gives_no_right_to_selectors() {
    let mut puppet = called(|_| {}, &B[..1], &[]);
    puppet.ask(over(A[1], B[0]), &[say(N::UPDATE_SA_ADDRESSES, [])]);
    let check = puppet.one();
    puppet.answer(&check, &echo(&check));
    assert_eq!(puppet.carrying(), carries(B[0], A[1]));
    let nonce = puppet.octets(32);
    let mut request = vec![esp_proposal(0xc0de_0002), Payload::Nonce(nonce)];
    request.extend(selectors(&format!("{}/32", A[1]), "10.2.0.0/16"));
    let answer = puppet.request(ExchangeType::CREATE_CHILD_SA, over(A[1], B[0]), &request);
    assert_eq!(answer.kinds(), [N::TS_UNACCEPTABLE]);
    assert_eq!(puppet.children.len(), 1);
    let child = puppet.children.values().next().unwrap();
    assert_eq!(child.ts_remote, ["10.1.0.0/16".parse().unwrap()], "nor has the move changed those it had");
}

#[test]
fn the_peer_of_a_packet_is_found_by_its_identity() {
    let fixed = |text: &str| vec![TsPattern::Fixed(text.parse().unwrap())];
    let mut puppet = called(
        |c| {
            // Where it is to be found at first.
            c.remote_addrs = vec![AddrPattern::Range(A[0].parse().unwrap())];
            c.return_routability = ReturnRoutability::Off;
            let local_ts = fixed("10.2.0.0/16");
            c.children.push(Child { local_ts, remote_ts: fixed("10.3.0.0/16"), ..Child::new("other") });
        },
        &B[..1],
        &[],
    );
    puppet.ask(over(A[1], B[0]), &[say(N::UPDATE_SA_ADDRESSES, [])]);
    puppet.command(Command::Up { connection: "home".into(), child: Some("other".into()) });
    let request = puppet.one();
    assert_eq!(request.header.exchange, ExchangeType::CREATE_CHILD_SA, "the IKE SA with that peer serves it");
    assert_eq!(request.to, at(A[1], 4500), "wherever it is now");
    assert_eq!(puppet.endpoint.ike_sas(puppet.now).len(), 1);
}
