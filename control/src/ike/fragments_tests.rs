//! Fragments as no endpoint of ours would send them: each kind by itself, to an established IKE SA.

use mobikex_common::wire::ike::ExchangeType;

use super::*;
use crate::ike::reassembly::{LIFETIME, MAX_FRAGMENTS};
use crate::ike::testing::{Datagram, Pair};
use crate::ike::window::Exchange;

/// A notify that nobody knows, so long that a request with it needs several fragments.
fn long() -> Vec<Payload> {
    vec![Payload::Notify(Notify::new(NotifyType(40_000), (0..3000).map(|n| n as u8).collect()))]
}

/// A request of end 0, as it lies on the wire.
fn request(pair: &mut Pair) -> Vec<Datagram> {
    let sent = pair.sa(0, |sa, ctx| {
        sa.send_request(ctx, ExchangeType::INFORMATIONAL, Exchange::Liveness(None), &long()).unwrap()
    });
    let pieces: Vec<_> = std::iter::from_fn(|| pair.take(1, |_| true)).collect();
    assert_eq!(pieces.len(), sent.datagrams().len());
    assert!(pieces.len() > 2, "{} fragments", pieces.len());
    pieces
}

/// The same datagram with a fragment that end 0 has protected.
fn made(pair: &mut Pair, like: &Datagram, place: (u16, u16), text: &[u8]) -> Datagram {
    let id = Header::parse(&like.data).unwrap().message_id;
    let data = pair.sa(0, |sa, ctx| {
        let envelope = Envelope {
            spi_i: sa.spi_i,
            spi_r: sa.spi_r,
            exchange: ExchangeType::INFORMATIONAL,
            from_initiator: true,
            response: false,
            message_id: id,
        };
        let part = Part { next: PayloadType::N, place: Some(place), text };
        let mut ivs = sa.ivs;
        let data = crypt::seal(&envelope, &part, &sa.keys().unwrap().initiator, &mut ivs, ctx.rng).unwrap();
        sa.ivs = ivs;
        data
    });
    Datagram { data, ..like.clone() }
}

/// Fragments that end 1 keeps of a request.
fn kept(pair: &mut Pair) -> bool {
    pair.sa(1, |sa, _| sa.fragments.requests.is_some())
}

fn refused(pair: &Pair) -> u64 {
    pair.ends[1].counters().fragments_refused
}

/// The rest of the request arrives, and it is answered.
fn completes(pair: &mut Pair, pieces: &[Datagram]) {
    let before = pair.sent[1].len();
    for piece in pieces {
        assert_eq!(pair.sent[1].len(), before, "answered before the message was whole");
        pair.deliver(1, piece.clone());
    }
    assert_eq!(pair.sent[1].len(), before + 1);
    assert!(!kept(pair), "what was put together is not kept");
    let answer = pair.take_answer(0).unwrap();
    pair.deliver(0, answer);
    pair.sa(0, |sa, _| assert!(sa.pending.is_none()));
}

#[test]
fn b8_what_is_not_authentic_does_not_disturb() {
    let mut pair = Pair::up(|_, _| {});
    let pieces = request(&mut pair);
    pair.deliver(1, pieces[0].clone());
    for at in [0, 20, 31, 33, 34, 35, 40, 300] {
        for bit in [1, 0x80] {
            // Header, numbers, IV, content: the numbers also become larger and smaller totals.
            let mut bad = pieces[1].clone();
            bad.data[at] ^= bit;
            pair.deliver(1, bad);
        }
    }
    assert!(kept(&mut pair));
    completes(&mut pair, &pieces[1..]);
}

#[test]
fn b8_impossible_numbers_with_the_right_keys_are_refused() {
    let mut pair = Pair::up(|_, _| {});
    let pieces = request(&mut pair);
    for place in [(0, 3), (4, 3), (0, 0), (1, 0), (1, MAX_FRAGMENTS + 1)] {
        let bad = made(&mut pair, &pieces[0], place, b"x");
        pair.deliver(1, bad);
        assert!(!kept(&mut pair));
    }
    assert_eq!(refused(&pair), 5);
    completes(&mut pair, &pieces);
}

#[test]
fn b8_a_shrinking_total_and_other_content_for_a_known_number_change_nothing() {
    let mut pair = Pair::up(|_, _| {});
    let pieces = request(&mut pair);
    pair.deliver(1, pieces[0].clone());
    for place in [(1, pieces.len() as u16), (2, 2), (1, 1)] {
        let bad = made(&mut pair, &pieces[0], place, b"something else");
        pair.deliver(1, bad);
    }
    completes(&mut pair, &pieces[1..]);
}

#[test]
fn b8_a_message_without_end_is_dropped_and_the_next_one_arrives() {
    let mut pair = Pair::up(|_, _| {});
    let pieces = request(&mut pair);
    let part = vec![0; 20_000];
    for number in 1..=4 {
        let bad = made(&mut pair, &pieces[0], (number, 200), &part);
        pair.deliver(1, bad);
    }
    assert!(!kept(&mut pair), "more than 64 KiB");
    assert_eq!(refused(&pair), 1);
    completes(&mut pair, &pieces);
}

#[test]
fn a_larger_total_begins_anew() {
    let mut pair = Pair::up(|_, _| {});
    let pieces = request(&mut pair);
    pieces[..pieces.len() - 1].iter().for_each(|piece| pair.deliver(1, piece.clone()));
    let smaller = pair.sa(0, |sa, ctx| {
        let message = sa.pending.as_ref().unwrap().message.clone();
        sa.cut_to(ctx, &message, 576).unwrap()
    });
    let smaller: Vec<_> = smaller.datagrams().to_vec();
    assert!(smaller.len() > pieces.len());
    assert!(smaller.iter().all(|d| d.len() + DATAGRAM_OVERHEAD <= 576));
    let smaller: Vec<_> = smaller.into_iter().map(|data| Datagram { data, ..pieces[0].clone() }).collect();
    pair.deliver(1, smaller[0].clone());
    // The last of the old set is of no use any more.
    pair.deliver(1, pieces[pieces.len() - 1].clone());
    completes(&mut pair, &smaller[1..]);
}

#[test]
fn a_peer_that_knows_a_retransmission_by_its_octets_answers_again_after_the_fragments_shrank() {
    let mut pair = Pair::up(|_, _| {});
    let pieces = request(&mut pair);
    let shrunk = pair.sa(0, |sa, ctx| {
        sa.cut_request_smaller(ctx);
        sa.pending.as_ref().unwrap().message.clone()
    });
    let datagrams: Vec<_> =
        shrunk.datagrams().iter().map(|data| Datagram { data: data.clone(), ..pieces[0].clone() }).collect();
    assert_eq!(datagrams[0].data, pieces[0].data);
    // One that has part of the larger ones takes the smaller ones all the same, whichever comes first.
    pair.deliver(1, pieces[1].clone());
    pair.deliver(1, datagrams[1].clone());
    pair.deliver(1, datagrams[0].clone());
    completes(&mut pair, &datagrams[2..]);
}

#[test]
fn rfc7383_2_6_1_only_the_first_fragment_asks_for_the_answer_again() {
    let mut pair = Pair::up(|_, _| {});
    let pieces = request(&mut pair);
    completes(&mut pair, &pieces);
    let answer = pair.sent[1].last().unwrap().data.clone();
    let before = pair.sent[1].len();
    for piece in &pieces[1..] {
        pair.deliver(1, piece.clone());
    }
    assert_eq!(pair.sent[1].len(), before);
    let mut forged = pieces[0].clone();
    *forged.data.last_mut().unwrap() ^= 1;
    pair.deliver(1, forged);
    assert_eq!(pair.sent[1].len(), before);
    pair.deliver(1, pieces[0].clone());
    assert_eq!(pair.sent[1].len(), before + 1);
    assert_eq!(pair.sent[1].last().unwrap().data, answer);
}

#[test]
fn what_stays_incomplete_is_forgotten_in_time_and_with_the_window() {
    let mut pair = Pair::up(|_, _| {});
    let pieces = request(&mut pair);
    pair.deliver(1, pieces[0].clone());
    assert!(pair.sa(1, |sa, _| sa.fragments.timeout()) == Some(pair.now + LIFETIME));
    let at = pair.now + LIFETIME;
    pair.ends[1].handle_timeout(at);
    assert!(!kept(&mut pair), "the sender has given up by now");
    // A whole message of the same number takes the place of what there is of it in pieces.
    pair.deliver(1, pieces[0].clone());
    assert!(kept(&mut pair));
    let whole = pair.sa(0, |sa, ctx| {
        sa.fragments.agreed = false;
        sa.next_request -= 1;
        let sent = sa.send_request(ctx, ExchangeType::INFORMATIONAL, Exchange::Liveness(None), &long());
        sa.fragments.agreed = true;
        sent.unwrap().datagrams().concat()
    });
    pair.deliver(1, Datagram { data: whole, ..pieces[0].clone() });
    assert!(!kept(&mut pair));
}

#[test]
fn without_the_notify_of_both_there_are_no_fragments() {
    for without in 0..2 {
        let mut pair = Pair::up(|end, conn| {
            if end == without {
                conn.fragmentation = Fragmentation::No;
            }
        });
        let sent = pair.sa(0, |sa, ctx| {
            sa.send_request(ctx, ExchangeType::INFORMATIONAL, Exchange::Liveness(None), &long()).unwrap()
        });
        assert_eq!(sent.datagrams().len(), 1);
        let whole = pair.take(1, |_| true).unwrap();
        let text = emit_chain(&long()).1;
        for number in 1..=2 {
            let half = &text[usize::from(number - 1) * 1502..][..1502];
            let piece = made(&mut pair, &whole, (number, 2), half);
            pair.deliver(1, piece);
        }
        assert!(!kept(&mut pair));
        assert_eq!(pair.ends[1].counters().wrong_state, 2);
    }
}
