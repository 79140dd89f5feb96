//! Tests of sealing and opening, named by the rows of the project's list of other implementations' bugs.

use hex_literal::hex;
use mobikex_common::alg::{Cipher, EspSuite, Integrity, KeyBits};
use mobikex_common::crypto::PacketCipher;
use mobikex_common::drop::DropReason;
use mobikex_common::sa::{ChildSaParams, CopyDscp, EspKeys, Mode, VolumeLimits};
use mobikex_common::spi::Spi;
use mobikex_common::wire::checksum;
use mobikex_common::wire::ip::Packet;
use proptest::prelude::*;

use super::*;
use crate::published::pin;
use crate::sad::{InboundSa, OutboundSa, SaEvent, Selectors};
use crate::testing::{
    GCM, PEER, PEER_V6, US, US_V6, addresses, inbound, ip, mirrored, outbound, packet, params, suites, ts,
    udp,
};

/// The peer's receiving end, with room for a rebuilt header before the packet.
struct Receiver {
    sa: InboundSa,
    replay: ReplayWindow,
    outer: OuterInfo,
}

impl Receiver {
    /// The end that receives what `ours` sends.
    fn of(ours: &ChildSaParams) -> Self {
        let theirs = mirrored(ours);
        let path = theirs.addresses.paths[0].path;
        Self {
            sa: inbound(&theirs),
            replay: ReplayWindow::new(theirs.replay_window),
            outer: OuterInfo { path, tos: 0, encap: false },
        }
    }

    fn open(&mut self, esp: &[u8]) -> Result<Vec<u8>, DropReason> {
        let mut buffer = vec![0xee; HEADROOM];
        buffer.extend_from_slice(esp);
        let end = buffer.len();
        let opened = open(&self.sa, &mut self.replay, &mut buffer, HEADROOM..end, &self.outer, &pin())?;
        match opened.content {
            Content::Packet(range) | Content::Aggfrag(range) => Ok(buffer[range].to_vec()),
            Content::Nothing(reason) => Err(reason),
        }
    }
}

fn seal_vec(sa: &OutboundSa, inner: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut out = vec![0; 70_000];
    let mut ivs = IvSource::from_system().unwrap();
    let sealed = seal(sa, &Packet::parse(inner).unwrap(), &mut out, &mut ivs)?;
    assert_eq!(sealed.len % 4, 0);
    out.truncate(sealed.len);
    Ok(out)
}

/// An authentic ESP packet with any plaintext, trailer included.
fn craft(ours: &ChildSaParams, seq: u64, text: &[u8]) -> Vec<u8> {
    let (suite, keys) = (&ours.suite, &ours.keys_out);
    let cipher = PacketCipher::new(suite.cipher, suite.integrity, &keys.encryption, &keys.integrity).unwrap();
    let mut iv = vec![3; cipher.iv_len()];
    if suite.cipher.is_aead() {
        iv = seq.to_be_bytes().to_vec();
    }
    let header = [ours.spi_out.to_be_bytes(), (seq as u32).to_be_bytes()].concat();
    let covered = Covered::new(&header, seq, suite.esn, suite.cipher.is_aead());
    let (mut text, mut icv) = (text.to_vec(), vec![0; cipher.icv_len()]);
    cipher.seal(&iv, covered.head(), covered.tail(), &mut text, &mut icv).unwrap();
    [&header[..], &iv, &text, &icv].concat()
}

/// `payload` with right padding and this Next Header.
fn padded(payload: &[u8], next_header: u8) -> Vec<u8> {
    let padding = (payload.len() + 2).next_multiple_of(16) - payload.len() - 2;
    let mut text = payload.to_vec();
    text.extend(1..=padding as u8);
    text.extend([padding as u8, next_header]);
    text
}

fn transport(family_v6: bool, suite: EspSuite) -> ChildSaParams {
    let mut ours = params(1, Mode::Transport, suite);
    let (us, peer) = if family_v6 { (US_V6, PEER_V6) } else { (US, PEER) };
    (ours.ts_local, ours.ts_remote) = (vec![ts(us)], vec![ts(peer)]);
    ours.addresses = addresses(us, peer);
    ours
}

/// RFC 7634 Appendix A: the whole ESP packet.
#[test]
fn rfc7634_appendix_a_packet() {
    let mut ours = params(1, Mode::Tunnel, EspSuite { cipher: Cipher::ChaCha20Poly1305, ..GCM });
    let key = hex!("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3");
    ours.keys_out = EspKeys { encryption: key.to_vec(), integrity: vec![] };
    ours.spi_out = Spi(0x0102_0304);
    ours.ts_local = vec![ts("198.51.100.0/24")];
    ours.ts_remote = vec![ts("192.0.2.0/24")];
    ours.addresses = addresses("203.0.113.153", "203.0.113.5");
    let esp = hex!(
        "0102030400000005101112131415161724039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6"
        "14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da"
        "9165b82829f641e076aaa8266b7fb0f7b11b369907e1ad43"
    );
    let source = hex!(
        "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f10111213"
        "1415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637"
    );
    let mut receiver = Receiver::of(&ours);
    assert_eq!(receiver.open(&esp).unwrap(), source);
    assert_eq!(receiver.replay.highest(), 5);
    // Ours differs in the IV alone, which is the sequence number.
    let sa = outbound(&ours);
    let sent: Vec<_> = (1..=5).map(|_| seal_vec(&sa, &source).unwrap()).collect();
    assert_eq!((sent[4].len(), &sent[4][..8]), (esp.len(), &esp[..8]));
    assert_eq!(sent[4][8..16], 5u64.to_be_bytes());
}

#[test]
fn b19_padding_and_next_header_are_checked() {
    for suite in [
        GCM,
        EspSuite { cipher: Cipher::AesCbc(KeyBits::B128), integrity: Some(Integrity::HmacSha256), ..GCM },
    ] {
        let ours = params(1, Mode::Tunnel, suite);
        let inner = udp(US, PEER, (1, 2), b"data");
        let good = padded(&inner, 4);
        let mut receiver = Receiver::of(&ours);
        assert_eq!(receiver.open(&craft(&ours, 1, &good)).unwrap(), inner);

        let mut seq = 1;
        let mut verdict = |text: &[u8]| {
            seq += 1;
            receiver.open(&craft(&ours, seq, text)).unwrap_err()
        };
        let last = good.len() - 1;
        // A Pad Length that reaches beyond the packet, by much and by one.
        for len in [255, last as u8] {
            let mut text = good.clone();
            text[last - 1] = len;
            assert_eq!(verdict(&text), DropReason::InBadPadding);
        }
        // Each padding octet counts.
        let padding = usize::from(good[last - 1]);
        assert!(padding > 1);
        for n in 0..padding {
            let mut text = good.clone();
            text[last - 2 - n] ^= 0x80;
            assert_eq!(verdict(&text), DropReason::InBadPadding);
        }
        for (next_header, reason) in [
            (41, DropReason::InBadNextHeader),
            (17, DropReason::InBadNextHeader),
            (0, DropReason::InBadNextHeader),
            (50, DropReason::InBadNextHeader),
        ] {
            assert_eq!(verdict(&padded(&inner, next_header)), reason);
        }
        assert_eq!(verdict(&padded(&[], 4)), DropReason::InBadInner);
        assert_eq!(verdict(&padded(&inner[..inner.len() - 1], 4)), DropReason::InBadInner);
        assert_eq!(receiver.sa.counters().packets(), 1);
    }
    // Headers that belong before ESP cannot come out of it (RFC 4303 3.1.1).
    let ours = transport(true, GCM);
    for (seq, next_header) in [(1, 0), (2, 43), (3, 44)] {
        let esp = craft(&ours, seq, &padded(&[59, 0, 1, 4, 0, 0, 0, 0], next_header));
        assert_eq!(Receiver::of(&ours).open(&esp), Err(DropReason::InBadNextHeader));
    }
}

#[test]
fn b19_every_cut_packet_is_dropped() {
    for suite in suites() {
        let ours = params(1, Mode::Tunnel, suite);
        let esp = seal_vec(&outbound(&ours), &udp(US, PEER, (1, 2), b"")).unwrap();
        let mut receiver = Receiver::of(&ours);
        for len in 0..esp.len() {
            assert!(receiver.open(&esp[..len]).is_err());
        }
        assert!(receiver.open(&esp).is_ok());
    }
}

#[test]
fn b20_cbc_ivs_do_not_repeat_or_count() {
    let suite =
        EspSuite { cipher: Cipher::AesCbc(KeyBits::B256), integrity: Some(Integrity::HmacSha512), ..GCM };
    let sa = outbound(&params(1, Mode::Tunnel, suite));
    let inner = udp(US, PEER, (1, 2), b"data");
    let ivs: std::collections::HashSet<_> =
        (0..200).map(|_| seal_vec(&sa, &inner).unwrap()[8..24].to_vec()).collect();
    assert_eq!(ivs.len(), 200);
}

#[test]
fn b21_the_nonce_is_the_counter_and_stops_before_it_wraps() {
    for (esn, last) in [(false, u64::from(u32::MAX)), (true, u64::MAX)] {
        let ours = params(1, Mode::Tunnel, EspSuite { esn, ..GCM });
        let sa = outbound(&ours);
        let inner = udp(US, PEER, (1, 2), b"data");
        assert_eq!(seal_vec(&sa, &inner).unwrap()[8..16], 1u64.to_be_bytes());
        assert_eq!(sa.take_events().count(), 0);
        sa.skip_to(last - 2);
        for seq in [last - 1, last] {
            let esp = seal_vec(&sa, &inner).unwrap();
            assert_eq!(esp[4..8], (seq as u32).to_be_bytes());
            assert_eq!(esp[8..16], seq.to_be_bytes());
        }
        for _ in 0..3 {
            assert_eq!(seal_vec(&sa, &inner), Err(DropReason::OutSequenceExhausted));
            assert_eq!(sa.sequence(), last);
        }
        assert_eq!(sa.take_events().collect::<Vec<_>>(), [SaEvent::SoftLimit, SaEvent::SequenceExhausted]);
    }
}

#[test]
fn b21_workers_never_share_a_number() {
    let sa = outbound(&params(1, Mode::Tunnel, GCM));
    let last = u64::from(u32::MAX);
    sa.skip_to(last - 10_000);
    let mut all: Vec<u64> = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=4)
            .map(|batch| {
                let sa = &sa;
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    while let Ok(numbers) = sa.reserve(batch * 7) {
                        mine.extend(numbers.map(|number| number.take(sa.id()).unwrap()));
                    }
                    mine
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    all.sort_unstable();
    assert!(all.iter().copied().eq(last - 9_999..=last));
}

#[test]
fn b21_a_number_of_another_sa_is_refused() {
    let (one, other) = (outbound(&params(1, Mode::Tunnel, GCM)), outbound(&params(2, Mode::Tunnel, GCM)));
    let inner = udp(US, PEER, (1, 2), b"data");
    let mut ivs = IvSource::from_seed([0; 32]);
    let frame = frame(&one, &Packet::parse(&inner).unwrap()).unwrap();
    let mut out = vec![0; one.sealed_len(inner.len())];
    let mut seal = |sa: &OutboundSa, out: &mut [u8]| {
        seal_in_place(&one, sa.next_sequence().unwrap(), &frame, inner.len(), out, &mut ivs)
    };
    assert_eq!(seal(&other, &mut out), Err(DropReason::OutSequenceExhausted));
    assert_eq!(seal(&one, &mut out[1..]), Err(DropReason::OutTooBig));
    assert_eq!(seal(&one, &mut out), Ok(()));
}

#[test]
fn b22_a_forged_packet_moves_nothing_and_a_replayed_one_is_dropped() {
    for suite in suites() {
        let ours = params(1, Mode::Tunnel, suite);
        let (sa, mut receiver) = (outbound(&ours), Receiver::of(&ours));
        let inner = udp(US, PEER, (1, 2), b"data");
        let first = seal_vec(&sa, &inner).unwrap();
        // A number far ahead, forged: the window must not jump.
        let mut forged = first.clone();
        forged[4..8].copy_from_slice(&1_000_000u32.to_be_bytes());
        assert_eq!(receiver.open(&forged), Err(DropReason::InAuthFailed));
        assert_eq!((receiver.replay.highest(), receiver.sa.highest()), (0, 0));
        assert_eq!(receiver.sa.take_events().count(), 0);
        assert_eq!(receiver.open(&first).unwrap(), inner);
        assert_eq!(receiver.sa.take_events().collect::<Vec<_>>(), [SaEvent::FirstInbound]);
        assert_eq!(receiver.open(&first), Err(DropReason::InReplayDuplicate));
        sa.skip_to(100);
        assert_eq!(receiver.open(&seal_vec(&sa, &inner).unwrap()).unwrap(), inner);
        // With ESN an old number is taken for one of the next subspace, which the integrity check refutes.
        let old = if suite.esn { DropReason::InAuthFailed } else { DropReason::InReplayOld };
        assert_eq!(receiver.open(&first), Err(old));
        assert_eq!(receiver.sa.counters().packets(), 2);
    }
}

#[test]
fn esn_crosses_into_the_next_subspace() {
    for suite in suites().into_iter().filter(|suite| suite.esn) {
        let ours = params(1, Mode::Tunnel, suite);
        let (sa, mut receiver) = (outbound(&ours), Receiver::of(&ours));
        let inner = udp(US, PEER, (1, 2), b"data");
        sa.skip_to((1 << 32) - 3);
        let sent: Vec<_> = (0..6).map(|_| seal_vec(&sa, &inner).unwrap()).collect();
        // Out of order over the boundary.
        for n in [0, 3, 1, 5, 2, 4] {
            assert_eq!(receiver.open(&sent[n]).unwrap(), inner, "{suite} {n}");
            assert!(receiver.open(&sent[n]).is_err());
        }
        assert_eq!(receiver.replay.highest(), (1 << 32) + 3);
    }
}

#[test]
fn b25_the_inner_packet_fits_the_selectors_in_every_field() {
    let mut ours = params(1, Mode::Tunnel, GCM);
    ours.ts_local = vec![ts("10.1.0.0/16[udp/1000-2000]")];
    ours.ts_remote = vec![ts("10.2.0.0/16[udp/53]")];
    let good = udp(US, PEER, (1500, 53), b"data");
    let mut fragment = good.clone();
    fragment[6..8].copy_from_slice(&[0, 8]);
    let mut tcp = good.clone();
    tcp[9] = 6;
    let others = [
        udp("10.3.0.1", PEER, (1500, 53), b"data"),
        udp(US, "10.3.0.1", (1500, 53), b"data"),
        udp(US, PEER, (999, 53), b"data"),
        udp(US, PEER, (1500, 54), b"data"),
        udp(PEER, US, (53, 1500), b"data"),
        udp(US_V6, PEER_V6, (1500, 53), b"data"),
        packet(US, PEER, 17, 0, &[5]),
        fragment,
        tcp,
    ];
    let mut receiver = Receiver::of(&ours);
    assert!(receiver.open(&craft(&ours, 1, &padded(&good, 4))).is_ok());
    for (seq, other) in (2..).zip(&others) {
        let esp = craft(&ours, seq, &padded(other, if other[0] >> 4 == 4 { 4 } else { 41 }));
        assert_eq!(receiver.open(&esp), Err(DropReason::InSelectorMismatch), "case {seq}");
        assert!(!Selectors::from(&ours).match_outbound(&Packet::parse(other).unwrap()));
    }
    // Transport mode: protocol and ports. Behind a NAT the addresses are the negotiated ones whatever the outer
    // header says; without encapsulation there is none, so the source must be of the set.
    let mut ours = transport(false, GCM);
    ours.ts_remote = vec![ts("10.2.0.1[udp/53]")];
    let mut receiver = Receiver::of(&ours);
    receiver.outer.path.remote.set_ip(ip("203.0.113.66"));
    assert_eq!(receiver.open(&craft(&ours, 9, &padded(&good[20..], 17))), Err(DropReason::InSourceMismatch));
    receiver.outer.encap = true;
    assert_eq!(receiver.open(&craft(&ours, 1, &padded(&good[20..], 17))).unwrap()[12..], good[12..]);
    assert_eq!(receiver.open(&craft(&ours, 2, &padded(&good[20..], 6))), Err(DropReason::InSelectorMismatch));
    // Where the selectors leave a choice, only addresses of the set count.
    ours.ts_local = vec![ts("10.1.0.0/16")];
    let mut receiver = Receiver::of(&ours);
    assert!(receiver.open(&craft(&ours, 1, &padded(&good[20..], 17))).is_ok());
    receiver.outer.path.remote.set_ip(ip("10.1.0.2"));
    assert_eq!(receiver.open(&craft(&ours, 2, &padded(&good[20..], 17))), Err(DropReason::InSourceMismatch));
}

#[test]
fn b26_dummies_are_dropped_and_tfc_padding_is_cut_off() {
    for mode in [Mode::Tunnel, Mode::Transport] {
        let mut ours = params(1, mode, GCM);
        ours.addresses = addresses(US, PEER);
        let mut receiver = Receiver::of(&ours);
        assert_eq!(receiver.open(&craft(&ours, 1, &padded(&[], 59))), Err(DropReason::InDummy));
        assert_eq!(receiver.open(&craft(&ours, 2, &padded(&[0xff; 1000], 59))), Err(DropReason::InDummy));
        assert_eq!(receiver.replay.highest(), 2, "a dummy uses up its number");
    }
    let ours = params(1, Mode::Tunnel, GCM);
    let mut receiver = Receiver::of(&ours);
    let inner = udp(US, PEER, (1, 2), b"data");
    let with_tfc = [&inner[..], &[0xaa; 333]].concat();
    assert_eq!(receiver.open(&craft(&ours, 1, &padded(&with_tfc, 4))).unwrap(), inner);
    assert_eq!(receiver.sa.counters().bytes(), inner.len() as u64);
}

/// Only the echo's own code looks into it; it is no traffic, yet it uses up its number.
#[test]
fn an_echo_is_opened_and_counts_as_nothing() {
    for suite in suites() {
        let ours = params(1, Mode::Transport, suite);
        let (sa, mut receiver) = (outbound(&ours), Receiver::of(&ours));
        let mut out = [0; 300];
        let mut ivs = IvSource::from_seed([0; 32]);
        let sealed = seal_echo(&sa, b"message", &mut out, &mut ivs).unwrap();
        assert_eq!(receiver.open(&out[..sealed.len]).unwrap(), b"message");
        assert_eq!((sa.counters().packets(), receiver.sa.counters().packets()), (0, 0));
        assert_eq!((sa.sequence(), receiver.replay.highest()), (1, 1));
        assert_eq!(seal_echo(&sa, b"message", &mut out[..20], &mut ivs), Err(DropReason::OutTooBig));
    }
    let limits = VolumeLimits { hard_packets: Some(0), ..VolumeLimits::default() };
    let sa = outbound(&ChildSaParams { limits, ..params(1, Mode::Tunnel, GCM) });
    let ended = seal_echo(&sa, b"message", &mut [0; 300], &mut IvSource::from_seed([0; 32]));
    assert_eq!(ended, Err(DropReason::OutHardLimit));
}

/// What came before a packet of the same run counts for it where that matters.
#[test]
fn a_run_is_counted_together_and_a_limited_one_at_once() {
    for hard_packets in [None, Some(2)] {
        let limits = VolumeLimits { hard_packets, ..VolumeLimits::default() };
        let ours = params(1, Mode::Tunnel, GCM);
        let theirs = ChildSaParams { limits, ..mirrored(&ours) };
        let (sa, receiver, mut replay) = (outbound(&ours), inbound(&theirs), ReplayWindow::new(64));
        let outer = OuterInfo { path: theirs.addresses.paths[0].path, tos: 0, encap: false };
        let inner = udp(US, PEER, (1, 2), b"data");
        let guard = pin();
        let mut opener = Opener::new(&receiver, &mut replay, &outer, &guard).unwrap();
        let mut open = |esp: &[u8]| {
            let mut buffer = [&[0; HEADROOM][..], esp].concat();
            let end = buffer.len();
            opener.open(&mut buffer, HEADROOM..end).map(|opened| opened.content)
        };
        let mut forged = seal_vec(&sa, &inner).unwrap();
        forged[30] ^= 1;
        assert_eq!(open(&forged), Err(DropReason::InAuthFailed));
        let packets: Vec<_> = (0..3).map(|_| seal_vec(&sa, &inner).unwrap()).collect();
        for esp in &packets[..2] {
            assert!(matches!(open(esp), Ok(Content::Packet(_))));
        }
        let again = hard_packets.map_or(DropReason::InReplayDuplicate, |_| DropReason::InHardLimit);
        assert_eq!(open(&packets[1]), Err(again));
        let third = open(&packets[2]);
        assert_eq!(third.is_ok(), hard_packets.is_none(), "{third:?}");
        let before = receiver.counters().packets();
        drop(opener);
        let count = if third.is_ok() { 3 } else { 2 };
        assert_eq!((before, receiver.counters().packets()), (if third.is_ok() { 0 } else { 2 }, count));
        assert_eq!(receiver.counters().bytes(), count * inner.len() as u64);
        let path = receiver.addresses().stats(&guard)[0];
        assert_eq!((path.packets_in, path.bytes_in), (count, count * packets[0].len() as u64));
        assert_eq!(receiver.highest(), count + 1);
    }
}

#[test]
fn congestion_marks_cross_the_tunnel() {
    let ours = params(1, Mode::Tunnel, GCM);
    let (sa, mut receiver) = (outbound(&ours), Receiver::of(&ours));
    let inner = packet(US, PEER, 99, 0xba, b"capable");
    let parsed = Packet::parse(&inner).unwrap();
    let sealed = seal(&sa, &parsed, &mut [0; 200], &mut IvSource::from_seed([0; 32])).unwrap();
    assert_eq!((sealed.tos, must_stay_whole(&sa, &parsed)), (0xba, true));
    receiver.outer.tos = 0x03;
    let opened = receiver.open(&seal_vec(&sa, &inner).unwrap()).unwrap();
    assert_eq!(opened, packet(US, PEER, 99, 0xbb, b"capable"), "marked, and the checksum is right");
    let deaf = packet(US, PEER, 99, 0xb8, b"not capable");
    assert_eq!(receiver.open(&seal_vec(&sa, &deaf).unwrap()), Err(DropReason::InBadEcn));

    let mut closed = ours.clone();
    (closed.copy_df, closed.copy_dscp) = (false, CopyDscp::No);
    let sa = outbound(&closed);
    let sealed = seal(&sa, &parsed, &mut [0; 200], &mut IvSource::from_seed([0; 32])).unwrap();
    assert_eq!((sealed.tos, must_stay_whole(&sa, &parsed)), (0x02, false));
}

#[test]
fn limits_warn_and_then_stop_each_direction() {
    let inner = udp(US, PEER, (1, 2), &[0; 72]);
    for limits in [
        VolumeLimits { soft_packets: Some(3), hard_packets: Some(5), ..VolumeLimits::default() },
        VolumeLimits { soft_bytes: Some(300), hard_bytes: Some(401), ..VolumeLimits::default() },
    ] {
        let ours = ChildSaParams { limits, ..params(1, Mode::Tunnel, GCM) };
        let unlimited = params(1, Mode::Tunnel, GCM);
        let sa = outbound(&ours);
        let mut events = Vec::new();
        let sent: Vec<_> = (1..=6)
            .map(|n| {
                let result = seal_vec(&sa, &inner);
                events.extend(sa.take_events().map(|event| (n, event)));
                result.is_ok()
            })
            .collect();
        assert_eq!(sent, [true, true, true, true, true, false]);
        assert_eq!(events, [(3, SaEvent::SoftLimit), (5, SaEvent::HardLimit)]);
        assert_eq!(sa.sequence(), 5, "a refused packet takes no number");

        let (sa, mut receiver) = (outbound(&unlimited), Receiver::of(&ours));
        let results: Vec<_> = (0..6).map(|_| receiver.open(&seal_vec(&sa, &inner).unwrap())).collect();
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 5);
        assert_eq!(results[5], Err(DropReason::InHardLimit));
        let events: Vec<_> = receiver.sa.take_events().collect();
        assert_eq!(events, [SaEvent::SoftLimit, SaEvent::HardLimit, SaEvent::FirstInbound]);
    }
}

#[test]
fn transport_mode_refuses_what_cannot_stay_outside() {
    let sa = outbound(&transport(false, GCM));
    let good = udp(US, PEER, (1, 2), b"data");
    for (bits, at) in [(0x20, 6), (0x01, 7)] {
        let mut fragment = good.clone();
        (fragment[6], fragment[7]) = (0, 0);
        fragment[at] = bits;
        assert_eq!(seal_vec(&sa, &fragment), Err(DropReason::OutFragment));
    }
    let mut options = good.clone();
    options[0] = 0x46;
    assert_eq!(seal_vec(&sa, &options), Err(DropReason::OutHeaders));
    assert_eq!(sa.sequence(), 0);

    let ours = transport(true, GCM);
    let (sa, mut receiver) = (outbound(&ours), Receiver::of(&ours));
    let chain = |first, next| {
        packet(US_V6, PEER_V6, first, 0, &[&[next, 0, 1, 4, 0, 0, 0, 0][..], b"12345678"].concat())
    };
    assert_eq!(seal_vec(&sa, &chain(0, 99)), Err(DropReason::OutHeaders));
    assert_eq!(seal_vec(&sa, &chain(43, 99)), Err(DropReason::OutHeaders));
    assert_eq!(seal_vec(&sa, &chain(44, 99)), Err(DropReason::OutFragment));
    // Destination Options travel inside.
    let options = chain(60, 99);
    let opened = receiver.open(&seal_vec(&sa, &options).unwrap()).unwrap();
    assert_eq!(opened[40..], options[40..]);
    assert_eq!(Packet::parse(&opened).unwrap().protocol, 99);
}

#[test]
fn transport_mode_repairs_checksums_behind_a_nat() {
    // The sender believes itself at 192.168.7.7; we know it by the NAT's address.
    for (us, hidden, peer) in [(US, "192.168.7.7", PEER), (US_V6, "fd00::7", PEER_V6)] {
        let ours = transport(us == US_V6, GCM);
        let head = if us == US { 20 } else { 40 };
        let sent = udp(hidden, peer, (1234, 53), b"odd data");
        let right = udp(us, peer, (1234, 53), b"odd data");
        let mut receiver = Receiver::of(&ours);
        receiver.outer.encap = true;
        let opened = receiver.open(&craft(&ours, 1, &padded(&sent[head..], 17))).unwrap();
        assert_eq!(opened[head..], right[head..]);
        // Without UDP encapsulation no NAT can have been on the way.
        receiver.outer.encap = false;
        let opened = receiver.open(&craft(&ours, 2, &padded(&sent[head..], 17))).unwrap();
        assert_eq!(opened[head..], sent[head..]);
        // TCP, odd length.
        let mut tcp = vec![0u8; 27];
        (tcp[12], tcp[26]) = (0x50, 0x99);
        receiver.outer.encap = true;
        let opened = receiver.open(&craft(&ours, 3, &padded(&tcp, 6))).unwrap();
        let pseudo = checksum::pseudo_header(ip(us), ip(peer), 6, 27);
        assert_eq!(checksum::finish(checksum::sum(&opened[head..], pseudo)), 0);
    }
    // A sum of zero is sent as ones, for zero means "none" (RFC 768).
    let ours = transport(false, GCM);
    let mut receiver = Receiver::of(&ours);
    receiver.outer.encap = true;
    let sum = udp(US, PEER, (1, 2), &[0, 0])[26..28].to_vec();
    let mut sent = udp(US, PEER, (1, 2), &sum);
    sent[26..28].copy_from_slice(&[0x12, 0x34]);
    let opened = receiver.open(&craft(&ours, 1, &padded(&sent[20..], 17))).unwrap();
    assert_eq!(opened[26..28], [0xff, 0xff]);
    // UDP over IPv4 may do without.
    let ours = transport(false, GCM);
    let mut receiver = Receiver::of(&ours);
    receiver.outer.encap = true;
    let mut sent = udp(US, PEER, (1, 2), b"data");
    sent[26..28].fill(0);
    assert_eq!(receiver.open(&craft(&ours, 1, &padded(&sent[20..], 17))).unwrap()[20..], sent[20..]);
}

#[test]
fn sealed_lengths_are_told_beforehand() {
    for suite in suites() {
        let sa = outbound(&params(1, Mode::Tunnel, suite));
        for len in 20..120 {
            let inner = packet(US, PEER, 99, 0, &vec![0; len - 20]);
            assert_eq!(seal_vec(&sa, &inner).unwrap().len(), sa.sealed_len(len));
            assert!(sa.max_payload(sa.sealed_len(len)) >= len);
            let fits = sa.max_payload(len);
            assert!(fits == 0 || (sa.sealed_len(fits) <= len && sa.sealed_len(fits + 1) > len));
        }
        let inner = packet(US, PEER, 99, 0, &[0; 100]);
        let parsed = Packet::parse(&inner).unwrap();
        let mut short = vec![0; sa.sealed_len(120) - 1];
        let before = sa.sequence();
        let result = seal(&sa, &parsed, &mut short, &mut IvSource::from_seed([0; 32]));
        assert_eq!((result, sa.sequence()), (Err(DropReason::OutTooBig), before));
    }
}

fn any_suite() -> impl Strategy<Value = EspSuite> {
    proptest::sample::select(suites())
}

proptest! {
    #[test]
    fn open_undoes_seal(suite in any_suite(), v6: bool, outer_v6: bool, tos: u8, skip in any::<u32>(),
                        data in proptest::collection::vec(any::<u8>(), 0..1500)) {
        let mut ours = params(1, Mode::Tunnel, suite);
        if outer_v6 {
            ours.addresses = addresses("2001:db8::1", "2001:db8::2");
        }
        let (sa, mut receiver) = (outbound(&ours), Receiver::of(&ours));
        // A first packet sets the subspace of ESN.
        sa.skip_to(u64::from(skip / 2));
        let (us, peer) = if v6 { (US_V6, PEER_V6) } else { (US, PEER) };
        let inner = packet(us, peer, 99, tos, &data);
        for _ in 0..3 {
            let esp = seal_vec(&sa, &inner).unwrap();
            prop_assert_eq!(receiver.open(&esp).unwrap(), inner.clone());
        }
        let guard = pin();
        let stats = receiver.sa.addresses().stats(&guard);
        prop_assert_eq!((stats[0].packets_in, receiver.sa.counters().packets()), (3, 3));
        prop_assert_eq!(receiver.sa.counters().bytes(), 3 * inner.len() as u64);
    }

    #[test]
    fn open_undoes_seal_in_transport_mode(suite in any_suite(), v6: bool, tos: u8,
                                          data in proptest::collection::vec(any::<u8>(), 0..1500)) {
        let ours = transport(v6, suite);
        let (sa, mut receiver) = (outbound(&ours), Receiver::of(&ours));
        let (us, peer) = if v6 { (US_V6, PEER_V6) } else { (US, PEER) };
        let inner = packet(us, peer, 99, tos, &data);
        receiver.outer.tos = tos;
        let opened = receiver.open(&seal_vec(&sa, &inner).unwrap()).unwrap();
        let (was, is) = (Packet::parse(&inner).unwrap(), Packet::parse(&opened).unwrap());
        prop_assert_eq!((is.src, is.dst, is.protocol, is.tos), (was.src, was.dst, was.protocol, tos));
        prop_assert_eq!(is.payload(), was.payload());
        if !v6 {
            prop_assert_eq!(checksum::finish(checksum::sum(&opened[..20], 0)), 0);
        }
    }

    #[test]
    fn a_flipped_bit_is_dropped_and_changes_nothing(suite in any_suite(), transport_mode: bool, before in 0u64..200,
                                                    data in proptest::collection::vec(any::<u8>(), 0..40)) {
        let ours = if transport_mode { transport(false, suite) } else { params(1, Mode::Tunnel, suite) };
        let (sa, mut receiver) = (outbound(&ours), Receiver::of(&ours));
        if before > 0 {
            sa.skip_to(before);
            receiver.replay.commit(Authenticated::for_test(before));
        }
        let inner = packet(US, PEER, 99, 0, &data);
        let esp = seal_vec(&sa, &inner).unwrap();
        for bit in 0..esp.len() * 8 {
            let mut bad = esp.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(receiver.open(&bad).is_err(), "bit {}", bit);
        }
        prop_assert_eq!(receiver.replay.highest(), before);
        prop_assert_eq!((receiver.sa.counters().packets(), receiver.sa.highest()), (0, 0));
        prop_assert_eq!(receiver.sa.addresses().stats(&pin())[0].packets_in, 0);
        prop_assert!(receiver.open(&esp).is_ok());
    }

    #[test]
    fn hostile_plaintext_never_panics(transport_mode: bool, v6: bool, encap: bool, next_header: u8,
                                      mut text in proptest::collection::vec(any::<u8>(), 0..120)) {
        let mut ours = if transport_mode { transport(v6, GCM) } else { params(1, Mode::Tunnel, GCM) };
        ours.ts_local = ours.ts_local.iter().map(|ts| mobikex_common::ts::TrafficSelector::host(ts.start)).collect();
        if let Some(first) = text.first_mut() {
            *first = if v6 { 0x60 } else { 0x45 };
        }
        let next_header = if transport_mode { next_header } else { [4, 41, next_header][usize::from(next_header % 3)] };
        let mut receiver = Receiver::of(&ours);
        receiver.outer.encap = encap;
        let _ = receiver.open(&craft(&ours, 1, &padded(&text, next_header)));
        text.truncate(text.len() / 4 * 4);
        let _ = receiver.open(&craft(&ours, 2, &text));
    }
}
