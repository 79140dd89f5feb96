//! Captures built in memory.

use std::io::Cursor;
use std::net::{Ipv4Addr, Ipv6Addr};

use hex_literal::hex;
use mobikex_common::alg::{Cipher, Integrity, KeyBits};
use mobikex_common::crypto::Secret;
use mobikex_common::spi::{IkeSpi, Spi};
use mobikex_common::wire::ike::{
    AuthMethod, AuthPayload, CertEncoding, ConfigAttribute, ConfigAttributeType, ConfigPayload, ConfigType,
    Delete, ExchangeType, Flags, Header, Notify, NotifyType, Payload, PayloadType, ProtocolId, emit_chain,
};
use mobikex_common::wire::ip::{Fragment, Ipv4Header, Ipv6Header};
use mobikex_common::wire::mobike_x::{IpParameter, Parameter, SpiParameter, emit};
use proptest::prelude::*;

use super::*;

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SPI_I: IkeSpi = IkeSpi(0xa1a2_a3a4_a5a6_a7a8);
const SPI_R: IkeSpi = IkeSpi(0xb1b2_b3b4_b5b6_b7b8);

// ---- building captures ---------------------------------------------------------------------------------------------

fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = Ipv4Header {
        tos: 0,
        total_len: (20 + payload.len()) as u16,
        identification: 1,
        dont_fragment: true,
        fragment: Fragment::default(),
        ttl: 64,
        protocol,
        src: A,
        dst: B,
    };
    [&header.emit()[..], payload].concat()
}

fn ipv6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        tos: 0,
        flow_label: 0,
        payload_len: payload.len() as u16,
        next_header: protocol,
        hop_limit: 64,
        src: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        dst: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
    };
    [&header.emit()[..], payload].concat()
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let header =
        udp::Header { src_port: port, dst_port: port, length: (8 + payload.len()) as u16, checksum: 0 };
    [&header.emit()[..], payload].concat()
}

/// With the non-ESP marker, from port 4500 to 4500.
fn ike_4500(message: &[u8]) -> Vec<u8> {
    ipv4(17, &udp(4500, &[&[0; 4], message].concat()))
}

fn ethernet(packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    [&[2; 12][..], &kind, packet].concat()
}

struct Order(bool);

impl Order {
    fn u16(&self, value: u16) -> [u8; 2] {
        if self.0 { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn u32(&self, value: u32) -> [u8; 4] {
        if self.0 { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn block(&self, kind: u32, body: &[u8]) -> Vec<u8> {
        let length = self.u32(12 + body.len().next_multiple_of(4) as u32);
        let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
        [&self.u32(kind), &length, body, &padding, &length].concat()
    }
}

fn pcap(big_endian: bool, nanos: bool, link: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    let order = Order(big_endian);
    let magic = if nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
    let mut out = [magic, 4 << 16 | 2, 0, 0, 65535, link].map(|field| order.u32(field)).concat();
    for frame in frames {
        let fraction = if nanos { 250_000_000 } else { 250_000 };
        let len = frame.len() as u32;
        out.extend([1_700_000_000, fraction, len, len].map(|field| order.u32(field)).concat());
        out.extend(frame);
    }
    out
}

fn pcapng(big_endian: bool, link: u16, resolution: u8, ticks: u64, frames: &[Vec<u8>]) -> Vec<u8> {
    let order = Order(big_endian);
    let unknown_length = [255; 8];
    let section = [&order.u32(0x1a2b_3c4d)[..], &order.u16(1), &order.u16(0), &unknown_length].concat();
    let options = [&order.u16(9)[..], &order.u16(1), &[resolution, 0, 0, 0], &[0; 4]].concat();
    let interface = [&order.u16(link)[..], &[0; 2], &order.u32(0), &options].concat();
    let mut out = order.block(0x0a0d_0d0a, &section);
    out.extend(order.block(1, &interface));
    // A name resolution block, which is of no interest.
    out.extend(order.block(4, &[0; 8]));
    for frame in frames {
        let len = frame.len() as u32;
        let head = [0, (ticks >> 32) as u32, ticks as u32, len, len].map(|field| order.u32(field)).concat();
        out.extend(order.block(6, &[&head[..], frame].concat()));
    }
    out
}

fn frames(file: &[u8]) -> Result<Vec<Frame>, CaptureError> {
    let mut capture = Capture::new(Cursor::new(file))?;
    let mut frames = Vec::new();
    while let Some(frame) = capture.next_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

/// What is shown of raw IP packets.
fn shown(keys: Keys, packets: &[Vec<u8>]) -> Vec<String> {
    let mut dissector = Dissector::new(keys);
    let frames = frames(&pcap(false, false, 101, packets)).unwrap();
    frames.iter().map(|frame| dissector.frame(frame).to_string()).collect()
}

// ---- building messages ---------------------------------------------------------------------------------------------

fn header(next_payload: PayloadType, exchange: ExchangeType, message_id: u32, length: usize) -> Vec<u8> {
    Header {
        initiator_spi: SPI_I,
        responder_spi: SPI_R,
        next_payload,
        major: 2,
        minor: 0,
        exchange,
        flags: Flags { initiator: true, higher_version: false, response: false },
        message_id,
        length: length as u32,
    }
    .emit()
    .to_vec()
}

fn plain(exchange: ExchangeType, payloads: &[Payload]) -> Vec<u8> {
    let (first, body) = emit_chain(payloads);
    [header(first, exchange, 0, 28 + body.len()), body].concat()
}

fn secret(first: u8, len: usize) -> Secret {
    (first..=255).cycle().take(len).collect::<Vec<u8>>().into()
}

fn ike_keys(cipher: Cipher) -> IkeKeys {
    let integrity = (!cipher.is_aead()).then_some(Integrity::HmacSha256);
    let mac = integrity.map_or(0, Integrity::key_len);
    let len = cipher.key_material_len();
    IkeKeys {
        initiator_spi: SPI_I,
        responder_spi: SPI_R,
        cipher,
        integrity,
        encryption: [secret(1, len), secret(2, len)],
        authentication: [secret(3, mac), secret(4, mac)],
    }
}

/// The body of an Encrypted payload (or a fragment with number and total), as the original initiator seals it.
fn sealed(keys: &IkeKeys, fragment: Option<(u16, u16)>, next: PayloadType, text: &[u8]) -> Vec<u8> {
    let cipher = keys.cipher(true).unwrap();
    let mut text = text.to_vec();
    let padding = (cipher.block_len() - (text.len() + 1) % cipher.block_len()) % cipher.block_len();
    text.resize(text.len() + padding, 0);
    text.push(padding as u8);
    let (iv, mut icv) = (vec![9; cipher.iv_len()], vec![0; cipher.icv_len()]);
    let numbers = fragment
        .map(|(number, total)| [number.to_be_bytes(), total.to_be_bytes()].concat())
        .unwrap_or_default();
    let body_len = 4 + numbers.len() + iv.len() + text.len() + icv.len();
    let kind = if fragment.is_some() { PayloadType::SKF } else { PayloadType::SK };
    let mut message = header(kind, ExchangeType::INFORMATIONAL, 5, 28 + body_len);
    message.extend([next.0, 0]);
    message.extend((body_len as u16).to_be_bytes());
    message.extend(numbers);
    cipher.seal(&iv, &message, &[], &mut text, &mut icv).unwrap();
    [message, iv, text, icv].concat()
}

fn notify(kind: NotifyType, parameters: &[Parameter]) -> Payload {
    Payload::Notify(Notify::new(kind, emit(parameters)))
}

/// A move of one Child SA, in version 2.
fn moving() -> Vec<Payload> {
    let mut old = IpParameter::outer(A.into());
    let mut new = IpParameter::outer(B.into());
    (old.old, new.new) = (true, true);
    vec![
        notify(
            NotifyType::SELECTOR,
            &[Parameter::Spi(SpiParameter::Child(Spi(0xc123_4567))), Parameter::Id(1)],
        ),
        notify(NotifyType::UPDATE_SA_ADDRESSES, &[Parameter::Ip(old), Parameter::Ip(new), Parameter::Id(2)]),
        notify(NotifyType::END_OF_SELECTOR, &[]),
    ]
}

const MOVING: &str = "        N: SELECTOR (40961)
            parameter: SPI(c1234567)
            parameter: ID(1)
        N: UPDATE_SA_ADDRESSES (16400)
            parameter: IP(192.0.2.1 O H)
            parameter: IP(198.51.100.7 N H)
            parameter: ID(2)
        N: END_OF_SELECTOR (40962)
";

// ---- capture files -------------------------------------------------------------------------------------------------

#[test]
fn every_form_of_capture_gives_the_same_frames() {
    let packets = [ipv4(17, &udp(500, b"abc")), ipv4(50, &[1; 21])];
    let expected: Vec<_> = packets
        .iter()
        .map(|packet| Frame {
            time: Some(Duration::new(1_700_000_000, 250_000_000)),
            link: 101,
            octets: packet.clone(),
            original: packet.len(),
        })
        .collect();
    for big_endian in [false, true] {
        for nanos in [false, true] {
            assert_eq!(frames(&pcap(big_endian, nanos, 101, &packets)).unwrap(), expected);
        }
        // Micro- and nanoseconds, and quarters of a second as a power of two.
        let forms = [(6, 1_700_000_000_250_000), (9, 1_700_000_000_250_000_000), (0x82, 6_800_000_001)];
        for (resolution, ticks) in forms {
            assert_eq!(frames(&pcapng(big_endian, 101, resolution, ticks, &packets)).unwrap(), expected);
        }
    }
    // Sections of either byte order may follow each other.
    let both = [pcapng(true, 101, 9, 0, &packets), pcapng(false, 101, 9, 0, &packets)].concat();
    assert_eq!(frames(&both).unwrap().len(), 4);
    // A simple packet block has no time.
    let order = Order(false);
    let head = pcapng(false, 101, 6, 0, &[]);
    let simple = order.block(3, &[&order.u32(33)[..], &[7; 33]].concat());
    let simple = frames(&[head, simple].concat()).unwrap();
    assert_eq!(simple, [Frame { time: None, link: 101, octets: vec![7; 33], original: 33 }]);
}

#[test]
fn damaged_captures_end_in_an_error() {
    let packets = [ipv4(17, &udp(500, b"abc")), ipv4(50, &[1; 21])];
    for file in [pcap(false, false, 101, &packets), pcapng(true, 101, 6, 0, &packets)] {
        let whole = frames(&file).unwrap().len();
        for cut in 0..file.len() {
            match frames(&file[..cut]) {
                Ok(frames) => assert!(frames.len() < whole, "{cut}"),
                Err(error) => assert!(matches!(error, CaptureError::Truncated | CaptureError::NotACapture)),
            }
        }
    }
    assert!(matches!(frames(b"GIF89a.........."), Err(CaptureError::NotACapture)));
    // Lengths that nobody could mean are refused before room is made for them.
    let mut file = pcap(false, false, 101, &packets);
    file[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(frames(&file), Err(CaptureError::Damaged(_))));
    let order = Order(false);
    let head = pcapng(false, 101, 6, 0, &[]);
    let huge = [order.u32(6), order.u32(!3)].concat();
    assert!(matches!(frames(&[head.clone(), huge].concat()), Err(CaptureError::Damaged(_))));
    // A packet of an interface that is not there, a frame longer than its block, two lengths that differ.
    let packet = |id, captured| {
        let fields = [id, 0, 0, captured, captured].map(|field| order.u32(field)).concat();
        order.block(6, &[&fields[..], &[0; 8]].concat())
    };
    assert!(frames(&[head.clone(), packet(0, 8)].concat()).is_ok());
    assert!(matches!(frames(&[head.clone(), packet(1, 8)].concat()), Err(CaptureError::Damaged(_))));
    assert!(matches!(frames(&[head.clone(), packet(0, 9)].concat()), Err(CaptureError::Damaged(_))));
    let mut uneven = packet(0, 8);
    *uneven.last_mut().unwrap() = 1;
    assert!(matches!(frames(&[head, uneven].concat()), Err(CaptureError::Damaged(_))));
}

#[test]
fn every_link_leads_to_the_same_packet() {
    let packet = ipv4(17, &udp(4500, &[0xff]));
    let tagged = [&[2; 12][..], &hex!("88a8 0001 8100 0002 0800"), &packet].concat();
    let cooked = [&[0; 14][..], &[8, 0], &packet].concat();
    let cooked_2 = [&[8, 0][..], &[0; 18], &packet].concat();
    let loopback = [&[2, 0, 0, 0][..], &packet].concat();
    let padded = [ethernet(&packet), vec![0; 17]].concat();
    for (link, frame) in [
        (1, ethernet(&packet)),
        (1, tagged),
        (1, padded),
        (101, packet.clone()),
        (113, cooked),
        (276, cooked_2),
        (0, loopback),
    ] {
        let frames = frames(&pcap(false, false, link, &[frame])).unwrap();
        let line = Dissector::default().frame(&frames[0]).to_string();
        assert_eq!(line, "1 0.000000 192.0.2.1:4500 > 198.51.100.7:4500 NAT keepalive\n", "link {link}");
    }
    let arp = [&[2; 12][..], &hex!("0806 0001")].concat();
    let line =
        |link, frame| Dissector::default().frame(&Frame { time: None, link, octets: frame, original: 0 });
    assert_eq!(line(1, arp).to_string(), "1 no IP packet, ethertype 0x0806\n");
    assert_eq!(line(105, vec![1]).to_string(), "1 link type 105 is not known\n");
    assert_eq!(line(1, vec![1]).to_string(), "1 shorter than a link header\n");
}

#[test]
fn packets_of_other_kinds_are_named() {
    let mut fragment = ipv4(17, &[0; 24]);
    fragment[6] = 0x20;
    let lines = shown(
        Keys::default(),
        &[
            ipv4(6, &[0; 20]),
            ipv6(17, &udp(53, b"query")),
            fragment,
            ipv4(17, &udp(4500, &[1])),
            ipv4(17, &[0; 3]),
            ipv6(50, &hex!("c1234567 00000009 aabb")),
            vec![0x45, 0],
        ],
    );
    assert_eq!(lines[0], "1 0.000000 192.0.2.1 > 198.51.100.7 TCP\n");
    assert_eq!(lines[1], "2 0.000000 [2001:db8::1]:53 > [2001:db8::2]:53 UDP\n");
    assert_eq!(lines[2], "3 0.000000 192.0.2.1 > 198.51.100.7 UDP, IP fragment at 0\n");
    assert!(lines[3].contains("too short for IKE or ESP\n    data: 01\n"), "{}", lines[3]);
    assert!(lines[4].contains("UDP, malformed: a UDP datagram is cut short"), "{}", lines[4]);
    assert_eq!(lines[5], "6 0.000000 2001:db8::1 > 2001:db8::2 ESP spi c1234567 seq 9, 10 octets\n");
    assert!(lines[6].starts_with("7 0.000000 IP, malformed: an IPv4 packet is cut short"), "{}", lines[6]);
    let cut = Frame { time: None, link: 101, octets: ipv4(6, &[0; 20]), original: 99 };
    let line = Dissector::default().frame(&cut).to_string();
    assert!(line.ends_with("TCP, captured 40 of 99 octets\n"), "{line}");
}

// ---- IKE -----------------------------------------------------------------------------------------------------------

#[test]
fn an_ike_sa_init_request_is_shown_in_full() {
    // SA with one proposal, KE, nonce, NAT detection, hash algorithms.
    let payloads = hex!(
        "22 00 0028  00 00 0024 01 01 00 03"
        "03 00 000c 01 00 0014 800e 0100  03 00 0008 02 00 0006  00 00 0008 04 00 001f"
        "28 00 0028 001f 0000 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        "2b 00 0014 202122232425262728292a2b2c2d2e2f"
        "29 00 0009 61621b635c"
        "29 00 001c 00 00 4004 404142434445464748494a4b4c4d4e4f50515253"
        "00 00 000c 00 00 402f 0002 0005"
    );
    let message =
        [header(PayloadType::SA, ExchangeType::IKE_SA_INIT, 0, 28 + payloads.len()), payloads.to_vec()];
    let lines = shown(Keys::default(), &[ipv4(17, &udp(500, &message.concat()))]);
    let expected = "\
1 0.000000 192.0.2.1:500 > 198.51.100.7:500 IKE_SA_INIT request 0 [ SA KE No V N(NATD_S_IP) N(HASH_ALG) ]
    header: version 2.0, spi_i a1a2a3a4a5a6a7a8, spi_r b1b2b3b4b5b6b7b8, from the original initiator, 177 octets
    SA
        proposal 1: IKE
            ENCR: AES_GCM_16, 256 bits
            PRF: HMAC_SHA2_384
            KE: CURVE_25519
    KE: CURVE_25519
        data: 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
    NONCE: 202122232425262728292a2b2c2d2e2f
    V: 61621b635c \"ab\\x1bc\\\\\"
    N: NAT_DETECTION_SOURCE_IP (16388)
        data: 404142434445464748494a4b4c4d4e4f50515253
    N: SIGNATURE_HASH_ALGORITHMS (16431)
        algorithms: SHA2_256 IDENTITY
";
    assert_eq!(lines[0], expected);
}

#[test]
fn what_cannot_be_read_is_shown_and_the_rest_too() {
    // A nonce of one octet between two notifies, an unknown critical payload, and a notify that ends too early.
    let payloads = hex!(
        "28 00 0008 00 00 4000" "29 00 0005 07" "c8 00 0008 00 00 4014"
        "29 80 0006 0102" "00 00 0008 00 04 4000"
    );
    let message = [header(PayloadType::N, ExchangeType::IKE_AUTH, 0, 28 + payloads.len()), payloads.to_vec()];
    let line = shown(Keys::default(), &[ike_4500(&message.concat())]).remove(0);
    assert!(line.contains("IKE_AUTH request 0 [ N(INIT_CONTACT) NONCE! N(MULT_AUTH) 0xc8 N! ]\n"), "{line}");
    assert!(
        line.contains("    NONCE: malformed: the nonce has a wrong length of 1\n        data: 07\n"),
        "{line}"
    );
    assert!(line.contains("    payload 200 (critical)\n        data: 0102\n"), "{line}");
    assert!(
        line.contains("    N: malformed: N is cut short: 4 octets needed, 0 there\n        data: 00044000\n"),
        "{line}"
    );
    // A length that lies ends the chain, and what came before it stays.
    let payloads = hex!("29 00 0008 00 00 4000" "00 00 00ff 00 00");
    let message = [header(PayloadType::N, ExchangeType::IKE_AUTH, 0, 28 + payloads.len()), payloads.to_vec()];
    let line = shown(Keys::default(), &[ike_4500(&message.concat())]).remove(0);
    assert!(line.contains("[ N(INIT_CONTACT) ! ]"), "{line}");
    assert!(line.contains("    malformed: N: a length of 255 with 6 octets there\n"), "{line}");
    // Too many payloads, octets after the last, a header that lies, and another version.
    let many = [hex!("29 00 0008 00 00 4000").repeat(70), hex!("00 00 0008 00 00 4000").to_vec()].concat();
    let message = [header(PayloadType::N, ExchangeType::IKE_AUTH, 0, 28 + many.len()), many];
    let line = shown(Keys::default(), &[ike_4500(&message.concat())]).remove(0);
    assert!(line.contains("    malformed: more than 64 payloads\n"), "{line}");
    let message = [header(PayloadType::NONE, ExchangeType::IKE_AUTH, 0, 30), vec![1, 2]].concat();
    let line = shown(Keys::default(), &[ike_4500(&message)]).remove(0);
    assert!(line.contains("    malformed: 2 octets after the last payload\n"), "{line}");
    let line = shown(Keys::default(), &[ike_4500(&message[..29])]).remove(0);
    assert!(
        line.contains("IKE, malformed\n    malformed: the IKE header has a wrong length of 30\n"),
        "{line}"
    );
    let mut old = message;
    old[17] = 0x10;
    let line = shown(Keys::default(), &[ike_4500(&old)]).remove(0);
    assert!(line.contains("IKE version 1.0, not decoded\n"), "{line}");
}

#[test]
fn notifies_of_mobike_show_their_addresses() {
    let raw = |kind, data: &[u8]| Payload::Notify(Notify::new(kind, data.to_vec()));
    let no_nats = hex!("c0000201 c6336407 1194 01f4");
    let v6 = hex!("20010db8000000000000000000000001");
    let message = plain(
        ExchangeType::INFORMATIONAL,
        &[
            raw(NotifyType::ADDITIONAL_IP4_ADDRESS, &[192, 0, 2, 9]),
            raw(NotifyType::ADDITIONAL_IP6_ADDRESS, &v6),
            raw(NotifyType::NO_NATS_ALLOWED, &no_nats),
            raw(NotifyType::NO_NATS_ALLOWED, &no_nats[1..]),
            notify(NotifyType::ADDITIONAL_IP6_ADDRESS, &[Parameter::Ip(IpParameter::outer(A.into()))]),
            raw(NotifyType::SELECTOR, &hex!("09000000 07000005")),
            raw(NotifyType::INVALID_KE_PAYLOAD, &[0, 19]),
        ],
    );
    let line = shown(Keys::default(), &[ike_4500(&message)]).remove(0);
    let expected = "    N: ADDITIONAL_IP4_ADDRESS (16397)
        address: 192.0.2.9
    N: ADDITIONAL_IP6_ADDRESS (16398)
        address: 2001:db8::1
    N: NO_NATS_ALLOWED (16402)
        source: 192.0.2.1:4500
        destination: 198.51.100.7:500
    N: NO_NATS_ALLOWED (16402)
        data: 000201c6336407119401f4
    N: ADDITIONAL_IP6_ADDRESS (16398)
        parameter: IP(192.0.2.1 H)
    N: SELECTOR (40961)
        no parameters of MOBIKE-X: unknown parameter type 9 at octet 0
        data: 0900000007000005
    N: INVALID_KE_PAYLOAD (17)
        method: ECP_256
";
    assert!(line.ends_with(expected), "{line}");
}

#[test]
fn every_kind_of_payload_is_shown() {
    let attribute = |kind, value: &[u8]| ConfigAttribute { kind, value: value.to_vec() };
    let message = plain(
        ExchangeType::IKE_AUTH,
        &[
            Payload::IdI("branch.example".parse().unwrap()),
            Payload::IdR("@#0102".parse().unwrap()),
            Payload::Cert { encoding: CertEncoding::X509_SIGNATURE, data: vec![48] },
            Payload::CertReq { encoding: CertEncoding::X509_SIGNATURE, data: vec![1; 2] },
            Payload::Auth(AuthPayload { method: AuthMethod::SHARED_KEY_MIC, data: vec![5] }),
            Payload::Delete(Delete { protocol: ProtocolId::ESP, spis: vec![vec![1, 2, 3, 4]] }),
            Payload::TsI(vec!["10.1.0.0/16".parse().unwrap()]),
            Payload::Cp(ConfigPayload {
                kind: ConfigType::CFG_REPLY,
                attributes: vec![
                    attribute(ConfigAttributeType::INTERNAL_IP4_ADDRESS, &[10, 0, 0, 1]),
                    attribute(ConfigAttributeType::INTERNAL_IP4_SUBNET, &[10, 0, 0, 0, 255, 0, 0, 0]),
                    attribute(ConfigAttributeType::APPLICATION_VERSION, b"x\n"),
                    attribute(ConfigAttributeType::INTERNAL_IP6_DNS, &[]),
                ],
            }),
            Payload::Eap(vec![1, 0, 0, 4]),
            Payload::Notify(Notify {
                protocol: ProtocolId::ESP,
                spi: vec![0, 0, 1, 1],
                ..Notify::new(NotifyType::REKEY_SA, vec![])
            }),
        ],
    );
    let line = shown(Keys::default(), &[ike_4500(&message)]).remove(0);
    let expected = "    IDI: FQDN branch.example
    IDR: KEY_ID keyid:0x0102
        data: 0102
    CERT: X509_SIGNATURE
        data: 30
    CERTREQ: X509_SIGNATURE
        data: 0101
    AUTH: SHARED_KEY_MIC
        data: 05
    D: ESP
        spi: 01020304
    TSI
        selector: 10.1.0.0/16
    CP: CFG_REPLY
        INTERNAL_IP4_ADDRESS: 10.0.0.1
        INTERNAL_IP4_SUBNET: 10.0.0.0/8
        APPLICATION_VERSION: x\\n
        INTERNAL_IP6_DNS
    EAP: 01000004
    N: REKEY_SA (16393)
        protocol: ESP
        spi: 00000101
";
    assert!(line.ends_with(expected), "{line}");
}

#[test]
fn encrypted_payloads_open_with_the_keys_of_their_sa() {
    let (first, text) = emit_chain(&moving());
    for cipher in Cipher::ALL {
        let ours = ike_keys(cipher);
        let message = sealed(&ours, None, first, &text);
        let keys = Keys::parse(&ours.line()).unwrap();
        let line = shown(keys, &[ike_4500(&message)]).remove(0);
        let summary = "INFORMATIONAL request 5 [ SK { N(SELECTOR) N(UPD_SA_ADDR) N(END_SELECTOR) } ]\n";
        assert!(line.contains(summary), "{cipher}: {line}");
        assert!(line.ends_with(MOVING), "{cipher}: {line}");
        // Without keys the summary stays closed, with wrong ones it says so.
        let line = shown(Keys::default(), &[ike_4500(&message)]).remove(0);
        assert!(
            line.contains("[ SK ]\n") && line.contains("not decrypted: no keys for this IKE SA"),
            "{line}"
        );
        let wrong = IkeKeys {
            encryption: [secret(7, ours.encryption[0].len()), ours.encryption[1].clone()],
            authentication: [secret(7, ours.authentication[0].len()), ours.authentication[1].clone()],
            ..ours
        };
        let line = shown(Keys::parse(&wrong.line()).unwrap(), &[ike_4500(&message)]).remove(0);
        assert!(line.contains("not decrypted: the integrity check failed"), "{cipher}: {line}");
    }
}

#[test]
fn malformed_payloads_inside_are_survived_too() {
    let ours = ike_keys(Cipher::ChaCha20Poly1305);
    let text = hex!("29 00 0005 07" "00 00 0008 00 00 4010");
    let message = sealed(&ours, None, PayloadType::NONCE, &text);
    let line = shown(Keys::parse(&ours.line()).unwrap(), &[ike_4500(&message)]).remove(0);
    assert!(line.contains("[ SK { NONCE! N(UPD_SA_ADDR) } ]"), "{line}");
    // Padding that cannot be.
    let cipher = ours.cipher(true).unwrap();
    let mut message = header(PayloadType::SK, ExchangeType::INFORMATIONAL, 5, 28 + 4 + 8 + 1 + 16);
    message.extend(hex!("29 00 001d"));
    let (mut text, mut icv) = ([200], [0; 16]);
    cipher.seal(&[9; 8], &message, &[], &mut text, &mut icv).unwrap();
    let message = [&message[..], &[9; 8], &text, &icv].concat();
    let line = shown(Keys::parse(&ours.line()).unwrap(), &[ike_4500(&message)]).remove(0);
    assert!(line.contains("not decrypted: more padding than content"), "{line}");
}

#[test]
fn fragments_are_put_together_in_any_order() {
    let ours = ike_keys(Cipher::AesGcm16(KeyBits::B256));
    let (first, text) = emit_chain(&moving());
    let parts: Vec<_> = text.chunks(25).collect();
    let total = parts.len() as u16;
    assert!(total >= 3);
    let mut packets: Vec<_> = (1..=total)
        .map(|number| {
            let next = if number == 1 { first } else { PayloadType::NONE };
            ike_4500(&sealed(&ours, Some((number, total)), next, parts[usize::from(number) - 1]))
        })
        .collect();
    packets.reverse();
    packets.insert(1, packets[0].clone());
    let lines = shown(Keys::parse(&ours.line()).unwrap(), &packets);
    let (last, before) = lines.split_last().unwrap();
    assert!(
        last.contains(&format!("[ EF(1/{total}) {{ N(SELECTOR) N(UPD_SA_ADDR) N(END_SELECTOR) }} ]")),
        "{last}"
    );
    assert!(last.ends_with(MOVING), "{last}");
    assert!(before.iter().all(|line| line.contains(&format!("/{total}) ]\n"))), "{before:?}");
    // Number 0 and numbers above the total belong nowhere.
    for number in [0, total + 1] {
        let odd = ike_4500(&sealed(&ours, Some((number, total)), first, &text));
        let line = shown(Keys::parse(&ours.line()).unwrap(), &[odd]).remove(0);
        assert!(line.contains(&format!("EF({number}/{total}) ]")), "{line}");
    }
}

// ---- ESP -----------------------------------------------------------------------------------------------------------

fn esp_keys(cipher: Cipher, esn: Option<bool>) -> EspKeys {
    let integrity = (!cipher.is_aead()).then_some(Integrity::HmacSha512);
    EspKeys {
        spi: Spi(0xc123_4567),
        cipher,
        integrity,
        encryption: secret(11, cipher.key_material_len()),
        authentication: secret(12, integrity.map_or(0, Integrity::key_len)),
        esn,
    }
}

fn esp_packet(keys: &EspKeys, esn: bool, next: u8, payload: &[u8]) -> Vec<u8> {
    let cipher = keys.cipher().unwrap();
    let block = cipher.block_len();
    let padding = (block - (payload.len() + 2) % block) % block;
    let mut text = [payload, &(1..=padding as u8).collect::<Vec<_>>(), &[padding as u8, next]].concat();
    let (iv, mut icv) = (vec![3; cipher.iv_len()], vec![0; cipher.icv_len()]);
    let header = hex!("c1234567 00000007");
    let with_upper = hex!("c1234567 00000000 00000007");
    match (esn, keys.cipher.is_aead()) {
        (false, _) => cipher.seal(&iv, &header, &[], &mut text, &mut icv),
        (true, true) => cipher.seal(&iv, &with_upper, &[], &mut text, &mut icv),
        (true, false) => cipher.seal(&iv, &header, &[0; 4], &mut text, &mut icv),
    }
    .unwrap();
    [&header[..], &iv, &text, &icv].concat()
}

#[test]
fn esp_opens_with_the_key_of_its_spi() {
    let inner = ipv4(17, &udp(53, b"hello"));
    for cipher in Cipher::ALL {
        for esn in [false, true] {
            for told in [None, Some(esn)] {
                let ours = esp_keys(cipher, told);
                let esp = esp_packet(&ours, esn, 4, &inner);
                let keys = Keys::parse(&ours.lines()).unwrap();
                assert_eq!(keys.esp.len(), 2);
                let lines = shown(keys, &[ipv4(50, &esp), ipv4(17, &udp(4500, &esp))]);
                let expected =
                    "ESP spi c1234567 seq 7 { UDP 192.0.2.1 port 53 > 198.51.100.7 port 53, 33 octets }\n";
                assert!(lines.iter().all(|line| line.contains(expected)), "{cipher} {esn}: {lines:?}");
                let data = inner.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
                assert!(lines[0].ends_with(&format!("    data: {data}\n")), "{}", lines[0]);
                let mut other = esp;
                *other.last_mut().unwrap() ^= 1;
                let line = shown(Keys::parse(&ours.lines()).unwrap(), &[ipv4(50, &other)]).remove(0);
                assert!(line.contains("ESP spi c1234567 seq 7, no key fits\n"), "{line}");
            }
        }
    }
}

#[test]
fn esp_contents_of_all_kinds_are_named() {
    let ours = esp_keys(Cipher::ChaCha20Poly1305, None);
    let line = |next, payload: &[u8]| {
        shown(Keys::parse(&ours.lines()).unwrap(), &[ipv4(50, &esp_packet(&ours, false, next, payload))])
            .remove(0)
    };
    assert!(line(59, &[0; 6]).contains("{ dummy packet, 6 octets }"));
    assert!(line(41, &ipv6(58, &[128, 0])).contains("{ ICMPv6 2001:db8::1 > 2001:db8::2, 42 octets }"));
    assert!(line(4, &[0x45]).contains("{ malformed inner packet: an IPv4 packet is cut short"));
    assert!(line(6, &[0; 22]).contains("{ TCP, 22 octets }"));
    assert!(line(200, &[0; 2]).contains("{ protocol 200, 2 octets }"));
    // More padding than there is.
    let cipher = ours.cipher().unwrap();
    let (mut text, mut icv) = ([9, 9, 200, 4], [0; 16]);
    cipher.seal(&[3; 8], &hex!("c1234567 00000007"), &[], &mut text, &mut icv).unwrap();
    let esp = [&hex!("c1234567 00000007")[..], &[3; 8], &text, &icv].concat();
    let line = shown(Keys::parse(&ours.lines()).unwrap(), &[ipv4(50, &esp)]).remove(0);
    assert!(line.contains("seq 7, malformed\n    malformed: more padding than content\n"), "{line}");
}

// ---- keys ----------------------------------------------------------------------------------------------------------

#[test]
fn lines_are_those_of_wireshark() {
    let gcm = Cipher::AesGcm16(KeyBits::B128);
    let expected = "a1a2a3a4a5a6a7a8,b1b2b3b4b5b6b7b8,0102030405060708090a0b0c0d0e0f1011121314,\
        02030405060708090a0b0c0d0e0f101112131415,\"AES-GCM-128 with 16 octet ICV [RFC5282]\",,,\"NONE [RFC4306]\"\n";
    assert_eq!(*ike_keys(gcm).line(), expected);
    let cbc = ike_keys(Cipher::AesCbc(KeyBits::B256)).line();
    assert!(cbc.contains("\"AES-CBC-256 [RFC3602]\"") && cbc.ends_with(",\"HMAC_SHA2_256_128 [RFC4868]\"\n"));
    let expected = "\"IPv4\",\"*\",\"*\",\"0xc1234567\",\"AES-GCM with 16 octet ICV [RFC4106]\",\
        \"0x0b0c0d0e0f101112131415161718191a1b1c1d1e\",\"NULL\",\"\"\n";
    assert_eq!(*esp_keys(gcm, None).lines(), [expected, &expected.replace("IPv4", "IPv6")].concat());
    let cbc = esp_keys(Cipher::AesCbc(KeyBits::B128), Some(true)).lines();
    assert!(
        cbc.contains("\"AES-CBC [RFC3602]\",\"0x") && cbc.contains("\"HMAC-SHA-512-256 [RFC4868]\",\"0x")
    );
    assert!(cbc.ends_with("\",\"64-bit\"\n"));
}

#[test]
fn files_of_keys_are_read_line_by_line() {
    // As strongSwan's save-keys writes them, with an algorithm that is not known here.
    let text = "# comment\n\n\
        0102030405060708,1112131415161718,00112233445566778899aabbccddeeff,00112233445566778899aabbccddeeff,\
        \"AES-CBC-128 [RFC3602]\",00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff,\
        00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff,\"HMAC_SHA2_256_128 [RFC4868]\"\n\
        0102030405060708,1112131415161718,0011,0011,\"3DES [RFC2451]\",00,00,\"HMAC_SHA1_96 [RFC2404]\"\n\
        \"IPv4\",\"192.0.2.1\",\"198.51.100.7\",\"0xc1234567\",\"AES-GCM [RFC4106]\",\
        \"0x00112233445566778899aabbccddeeff00112233\",\"ANY 128 bit authentication [no checking]\",\"0x\"\n\
        \"IPv6\",\"*\",\"*\",\"0xc1234567\",\"AES-GCM with 8 octet ICV [RFC4106]\",\
        \"0x00112233445566778899aabbccddeeff00112233\",\"NULL\",\"\",\"32-bit\"\n";
    let keys = Keys::parse(text).unwrap();
    assert_eq!((keys.ike.len(), keys.esp.len(), &keys.skipped[..]), (1, 1, &[4, 6][..]));
    assert_eq!(keys.ike[0].initiator_spi, IkeSpi(0x0102_0304_0506_0708));
    assert_eq!((keys.esp[0].spi, keys.esp[0].esn), (Spi(0xc123_4567), None));

    let gcm = "\"AES-GCM-128 with 16 octet ICV [RFC5282]\",,,\"NONE [RFC4306]\"";
    let key = "00112233445566778899aabbccddeeff00112233";
    let short = "001122";
    for (line, reason) in [
        ("nonsense".to_string(), "neither a line"),
        (format!("zz,2,{key},{key},{gcm}"), "an SPI is not hexadecimal"),
        (format!("1,2,{key}0,{key},{gcm}"), "a key is not hexadecimal"),
        (format!("1,2,+{short}0,{key},{gcm}"), "a key is not hexadecimal"),
        (format!("1,2,{key},{short},{gcm}"), "a key has not the length"),
        (format!("\"IPv4\",*,*,c1,\"AES-GCM\",\"0x{key}\",NULL,"), "an SPI without 0x"),
        (
            format!("\"IPv4\",*,*,0xc1,\"AES-GCM\",\"0x{key}\",NULL,,\"48-bit\""),
            "the length of sequence numbers",
        ),
    ] {
        let error = Keys::parse(&format!("\n{line}")).unwrap_err();
        assert_eq!(error.line, 2);
        assert!(error.to_string().contains(reason), "{line}: {error}");
        assert!(!error.to_string().contains(short), "{error}");
    }
}

#[test]
fn data_is_the_same_tree() {
    let message = plain(ExchangeType::INFORMATIONAL, &moving()[..1]);
    let file = pcap(false, false, 1, &[ethernet(&ike_4500(&message))]);
    let packet = Dissector::default().frame(&frames(&file).unwrap()[0]);
    let expected = serde_json::json!({
        "number": 1,
        "time": "1700000000.250000000",
        "from": "192.0.2.1:4500",
        "to": "198.51.100.7:4500",
        "summary": "INFORMATIONAL request 0 [ N(SELECTOR) ]",
        "payloads": [
            {
                "name": "header",
                "value": "version 2.0, spi_i a1a2a3a4a5a6a7a8, spi_r b1b2b3b4b5b6b7b8, from the original initiator, \
                          48 octets"
            },
            {
                "name": "N",
                "value": "SELECTOR (40961)",
                "inside": [
                    { "name": "parameter", "value": "SPI(c1234567)" },
                    { "name": "parameter", "value": "ID(1)" }
                ]
            }
        ]
    });
    assert_eq!(serde_json::to_value(&packet).unwrap(), expected);
}

// ---- hostile input -------------------------------------------------------------------------------------------------

fn all_keys() -> Keys {
    let text: String = Cipher::ALL
        .iter()
        .flat_map(|cipher| {
            [ike_keys(*cipher).line().to_string(), esp_keys(*cipher, None).lines().to_string()]
        })
        .collect();
    Keys::parse(&text).unwrap()
}

proptest! {
    #[test]
    fn random_files_never_panic(kind in 0usize..4, rest in proptest::collection::vec(any::<u8>(), 0..300)) {
        let start = [&[0xd4, 0xc3, 0xb2, 0xa1][..], &[0xa1, 0xb2, 0x3c, 0x4d], &hex!("0a0d0d0a 1c000000 4d3c2b1a"), &[]];
        let file = [start[kind], &rest].concat();
        if let Ok(mut capture) = Capture::new(Cursor::new(&file)) {
            let mut dissector = Dissector::new(all_keys());
            while let Ok(Some(frame)) = capture.next_frame() {
                let _ = dissector.frame(&frame).to_string();
            }
        }
    }

    #[test]
    fn changed_packets_never_panic(
        which in 0usize..5,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let ours = ike_keys(Cipher::AesGcm16(KeyBits::B128));
        let (first, text) = emit_chain(&moving());
        let mut packet = ethernet(&match which {
            0 => ike_4500(&plain(ExchangeType::INFORMATIONAL, &moving())),
            1 => ike_4500(&sealed(&ours, None, first, &text)),
            2 => ike_4500(&sealed(&ours, Some((1, 1)), first, &text)),
            3 => ipv4(50, &esp_packet(&esp_keys(Cipher::AesGcm16(KeyBits::B256), None), false, 4, &ipv4(17, &[0; 9]))),
            _ => ipv6(17, &udp(500, &plain(ExchangeType::IKE_AUTH, &moving()))),
        });
        for (at, value) in changes {
            let at = at.index(packet.len());
            packet[at] = value;
        }
        let mut dissector = Dissector::new(all_keys());
        for octets in [packet.clone(), packet[..cut.index(packet.len())].to_vec()] {
            let original = octets.len();
            let shown = dissector.frame(&Frame { time: None, link: 1, octets, original });
            prop_assert!(shown.to_string().ends_with('\n'));
            prop_assert!(serde_json::to_string(&shown).is_ok());
        }
    }

    /// Whatever is inside, authentic but senseless, is shown or named as malformed.
    #[test]
    fn random_plaintext_never_panics(first: u8, text in proptest::collection::vec(any::<u8>(), 1..200)) {
        let ours = ike_keys(Cipher::ChaCha20Poly1305);
        let sealed = ike_4500(&sealed(&ours, None, PayloadType(first), &text));
        let line = shown(Keys::parse(&ours.line()).unwrap(), &[sealed]).remove(0);
        prop_assert!(line.contains("SK: decrypted"), "{}", line);
    }
}
