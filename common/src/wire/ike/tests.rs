//! Whole messages against octets laid out by hand after the RFC's figures, and generated ones against each other.

use hex_literal::hex;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::alg::TransformType;
use crate::spi::IkeSpi;
use crate::ts::TrafficSelector;
use crate::wire::WireError;

/// An IKE_SA_INIT request as other implementations send it.
const SA_INIT: &[u8] = &hex!(
    // Header.
    "a1a2a3a4a5a6a7a8 0000000000000000 21 20 22 08 00000000 000000e8"
    // SA: one proposal, IKE, AES_GCM_16_256, PRF_HMAC_SHA2_384, CURVE_25519.
    "22 00 0028  00 00 0024 01 01 00 03"
    "03 00 000c 01 00 0014 800e 0100  03 00 0008 02 00 0006  00 00 0008 04 00 001f"
    // KE and nonce.
    "28 00 0028 001f 0000 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    "29 00 0024 202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f"
    // NAT detection, fragmentation, signature hashes, redirect.
    "29 00 001c 00 00 4004 404142434445464748494a4b4c4d4e4f50515253"
    "29 00 001c 00 00 4005 606162636465666768696a6b6c6d6e6f70717273"
    "29 00 0008 00 00 402e"
    "29 00 0010 00 00 402f 0002 0003 0004 0005"
    "00 00 0008 00 00 4016"
);

/// What is inside an IKE_AUTH request, from IDi on.
const AUTH: &[u8] = &hex!(
    "29 00 0016 02 000000 6272616e63682e6578616d706c65"
    "24 00 0008 00 00 4000"
    "27 00 000c 01 000000 c6336407"
    "21 00 0028 02 000000 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    // SA: two proposals, ESP, AES_GCM_16_256 with and without ESN; AES_CBC_128, HMAC and an unknown attribute.
    "2c 00 0058  02 00 0028 01 03 04 03 c0ffee01"
    "03 00 000c 01 00 0014 800e 0100  03 00 0008 05 00 0001  00 00 0008 05 00 0000"
    "00 00 002c 02 03 04 03 c0ffee01"
    "03 00 000c 01 00 000c 800e 0080  03 00 0008 03 00 000c  00 00 000c 05 00 0000 8001 0002"
    // TSi 10.1.0.0/16, TSr 2001:db8::/32[tcp/443].
    "2d 00 0018 01 000000 07 00 0010 0000 ffff 0a010000 0a01ffff"
    "29 00 0030 01 000000 08 06 0028 01bb 01bb 20010db8000000000000000000000000"
    "20010db8ffffffffffffffffffffffff"
    // MOBIKE_SUPPORTED, ADDITIONAL_IP4_ADDRESS, and a notify of private use.
    "29 00 0008 00 00 400c"
    "29 00 000c 00 00 400d cb007107"
    "00 00 0009 00 00 c350 01"
);

fn summaries(payloads: &[Payload]) -> String {
    payloads.iter().map(Payload::summary).collect::<Vec<_>>().join(" ")
}

fn transform(kind: TransformType, id: u16, key_bits: Option<u16>) -> Transform {
    Transform { kind, id, key_bits, other_attributes: vec![] }
}

#[test]
fn an_ike_sa_init_request_reads_as_laid_out() {
    let header = Header::parse(SA_INIT).unwrap();
    let expected = Header {
        initiator_spi: IkeSpi(0xa1a2_a3a4_a5a6_a7a8),
        responder_spi: IkeSpi::ZERO,
        next_payload: PayloadType::SA,
        major: 2,
        minor: 0,
        exchange: ExchangeType::IKE_SA_INIT,
        flags: Flags { initiator: true, higher_version: false, response: false },
        message_id: 0,
        length: 232,
    };
    assert_eq!(header, expected);
    assert_eq!(header.emit(), SA_INIT[..28]);
    let payloads = parse_chain(header.next_payload, &SA_INIT[28..]).unwrap();
    assert_eq!(
        summaries(&payloads),
        "SA KE No N(NATD_S_IP) N(NATD_D_IP) N(FRAG_SUP) N(HASH_ALG) N(REDIR_SUP)"
    );
    let Payload::Sa(proposals) = &payloads[0] else { panic!("{payloads:?}") };
    let transforms = vec![
        transform(TransformType::ENCR, 20, Some(256)),
        transform(TransformType::PRF, 6, None),
        transform(TransformType::KE, 31, None),
    ];
    assert_eq!(proposals, &[Proposal { number: 1, protocol: ProtocolId::IKE, spi: vec![], transforms }]);
    assert_eq!(payloads[1], Payload::Ke { method: 31, data: (0..32).collect() });
    assert_eq!(payloads[2], Payload::Nonce((32..64).collect()));
    assert_eq!(
        payloads[3],
        Payload::Notify(Notify::new(NotifyType::NAT_DETECTION_SOURCE_IP, (64..84).collect()))
    );
    assert_eq!(emit_chain(&payloads), (PayloadType::SA, SA_INIT[28..].to_vec()));
}

#[test]
fn the_inside_of_an_ike_auth_request_reads_as_laid_out() {
    let payloads = parse_chain(PayloadType::IDI, AUTH).unwrap();
    assert_eq!(
        summaries(&payloads),
        "IDi N(INIT_CONTACT) IDr AUTH SA TSi TSr N(MOBIKE_SUP) N(ADD_4_ADDR) N(0xc350)"
    );
    assert_eq!(payloads[0], Payload::IdI("branch.example".parse().unwrap()));
    assert_eq!(payloads[2], Payload::IdR("198.51.100.7".parse().unwrap()));
    let Payload::Sa(proposals) = &payloads[4] else { panic!("{payloads:?}") };
    assert_eq!((proposals.len(), &*proposals[1].spi), (2, &hex!("c0ffee01")[..]));
    assert_eq!(proposals[1].transforms[0], transform(TransformType::ENCR, 12, Some(128)));
    assert_eq!(proposals[1].transforms[2].other_attributes, [(0x8001, vec![0, 2])]);
    assert_eq!(payloads[5], Payload::TsI(vec!["10.1.0.0/16".parse().unwrap()]));
    assert_eq!(payloads[6], Payload::TsR(vec!["2001:db8::/32[tcp/443]".parse().unwrap()]));
    assert_eq!(emit_chain(&payloads), (PayloadType::IDI, AUTH.to_vec()));
}

#[test]
fn an_encrypted_payload_ends_the_chain() {
    let octets = hex!("2e 00 0006 0102" "29 00 000a ffffffffffff");
    let payloads = parse_chain(PayloadType::V, &octets).unwrap();
    let body = vec![255; 6];
    assert_eq!(
        payloads,
        [Payload::VendorId(vec![1, 2]), Payload::Encrypted { next: PayloadType::N, body: body.clone() }]
    );
    assert_eq!(emit_chain(&payloads), (PayloadType::V, octets.to_vec()));
    // RFC 7383 2.5: number, total, then IV and the rest.
    let octets = hex!("00 00 000e 0002 0003 ffffffffffff");
    let fragment = Payload::EncryptedFragment { next: PayloadType::NONE, number: 2, total: 3, body };
    assert_eq!(fragment.summary(), "EF(2/3)");
    assert_eq!(parse_chain(PayloadType::SKF, &octets), Ok(vec![fragment]));
    // Nothing may follow it.
    assert!(parse_chain(PayloadType::SK, &hex!("29 00 0005 01" "00 00 0008 00 00 4000")).is_err());
}

#[test]
fn rekey_and_delete_name_their_sas() {
    let octets = hex!("2a 00 000c 03 04 4009 00000101" "2a 00 0010 03 04 0002 00000101 00000102" "00 00 0008 01 00 0000");
    let payloads = parse_chain(PayloadType::N, &octets).unwrap();
    assert_eq!(summaries(&payloads), "N(REKEY_SA) D D");
    let spi = |last| vec![0, 0, 1, last];
    let Payload::Notify(rekey) = &payloads[0] else { panic!("{payloads:?}") };
    assert_eq!((rekey.protocol, &rekey.spi, rekey.data.len()), (ProtocolId::ESP, &spi(1), 0));
    assert_eq!(
        payloads[1..],
        [
            Payload::Delete(Delete { protocol: ProtocolId::ESP, spis: vec![spi(1), spi(2)] }),
            Payload::Delete(Delete { protocol: ProtocolId::IKE, spis: vec![] }),
        ]
    );
    assert_eq!(emit_chain(&payloads).1, octets);
}

#[test]
fn reserved_fields_and_flags_are_ignored() {
    // Reserved bits beside a critical bit that a known payload must not be judged by (RFC 7296 2.5).
    let octets = hex!("00 ff 000c 01 ffffff c0000201");
    assert_eq!(parse_chain(PayloadType::IDI, &octets), Ok(vec![Payload::IdI("192.0.2.1".parse().unwrap())]));
    let mut header = SA_INIT[..28].to_vec();
    header[27] = 28;
    header[19] = 0xc7;
    assert_eq!(Header::parse(&header).unwrap().flags, Flags::default());
}

#[test]
fn unknown_payloads_are_handed_over_with_their_critical_bit() {
    let octets = hex!("fa 80 0006 0102" "00 00 0004");
    let payloads = parse_chain(PayloadType(200), &octets).unwrap();
    assert_eq!(
        payloads,
        [
            Payload::Unknown { kind: PayloadType(200), critical: true, body: vec![1, 2] },
            Payload::Unknown { kind: PayloadType(250), critical: false, body: vec![] },
        ]
    );
    assert_eq!(summaries(&payloads), "0xc8 0xfa");
}

#[test]
fn headers_must_match_the_datagram() {
    for cut in 0..28 {
        assert!(matches!(Header::parse(&SA_INIT[..cut]), Err(WireError::Truncated { .. })), "{cut}");
    }
    for length in [27u32, 231, 233, u32::MAX] {
        let mut datagram = SA_INIT.to_vec();
        datagram[24..28].copy_from_slice(&length.to_be_bytes());
        assert!(Header::parse(&datagram).is_err(), "{length}");
    }
}

#[test]
fn configuration_is_summed_up() {
    // ADDR and DNS asked for, a reserved bit set on the second.
    let octets = hex!("00 00 0010 01 000000 0001 0000 8003 0000");
    let payloads = parse_chain(PayloadType::CP, &octets).unwrap();
    assert_eq!(summaries(&payloads), "CPRQ(ADDR DNS)");
    assert!(parse_chain(PayloadType::CP, &hex!("00 00 000c 01 000000 0001 0001")).is_err());
}

#[test]
fn every_count_is_bounded() {
    let too_many = |kind, octets: &[u8]| {
        let mut chain = vec![0, 0];
        chain.extend_from_slice(&(octets.len() as u16 + 4).to_be_bytes());
        chain.extend_from_slice(octets);
        assert!(matches!(parse_chain(kind, &chain), Err(WireError::TooMany { .. })), "{kind}");
    };
    let payloads = |count: usize| {
        let mut chain = hex!("2b 00 0004").repeat(count);
        let last = chain.len() - 4;
        chain[last] = 0;
        parse_chain(PayloadType::V, &chain)
    };
    assert_eq!(payloads(64).map(|p| p.len()), Ok(64));
    assert!(matches!(payloads(65), Err(WireError::TooMany { .. })));
    too_many(PayloadType::SA, &hex!("02 00 0008 01 03 00 00").repeat(65));
    too_many(PayloadType::SA, &[&hex!("00 00 0408 01 03 00 81")[..], &[0; 1024]].concat());
    too_many(
        PayloadType::SA,
        &[&hex!("00 00 0054 01 03 00 01" "00 00 004c 01 00 0014")[..], &hex!("8001 0000").repeat(17)]
            .concat(),
    );
    too_many(PayloadType::TSI, &[65, 0, 0, 0]);
    too_many(PayloadType::D, &[&hex!("03 01 1001")[..], &[0; 0x1001]].concat());
    too_many(PayloadType::CP, &[&hex!("02 000000")[..], &[0; 4 * 257]].concat());
    for (len, good) in [(15, false), (16, true), (256, true), (257, false)] {
        let (first, chain) = emit_chain(&[Payload::Nonce(vec![7; len])]);
        assert_eq!(parse_chain(first, &chain).is_ok(), good, "{len}");
    }
}

#[test]
fn every_cut_and_every_changed_octet_is_survived() {
    for (first, octets) in [(PayloadType::SA, &SA_INIT[28..]), (PayloadType::IDI, AUTH)] {
        for cut in 0..octets.len() {
            assert!(parse_chain(first, &octets[..cut]).is_err(), "{cut}");
        }
        let mut changed = octets.to_vec();
        for at in 0..octets.len() {
            for value in [0, 1, 4, 8, 0x21, 0x29, 0x2e, 0x7f, 0x80, 0xff] {
                changed[at] = value;
                if let Ok(payloads) = parse_chain(first, &changed) {
                    let (first, again) = emit_chain(&payloads);
                    assert_eq!(parse_chain(first, &again), Ok(payloads), "octet {at} = {value:#x}");
                }
            }
            changed[at] = octets[at];
        }
    }
}

fn octets(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), len)
}

fn proposals() -> impl Strategy<Value = Payload> {
    let attribute = prop_oneof![
        (0x8000u16.., octets(2))
            .prop_filter("the key length is no other attribute", |(kind, _)| *kind != 0x800e),
        (..0x8000u16, octets(0..9)),
    ];
    let transform = (any::<u8>(), any::<u16>(), any::<Option<u16>>(), vec(attribute, 0..3)).prop_map(
        |(kind, id, key_bits, other_attributes)| Transform {
            kind: TransformType(kind),
            id,
            key_bits,
            other_attributes,
        },
    );
    let proposal = (any::<u8>(), any::<u8>(), octets(0..9), vec(transform, 0..6)).prop_map(
        |(number, protocol, spi, transforms)| Proposal {
            number,
            protocol: ProtocolId(protocol),
            spi,
            transforms,
        },
    );
    vec(proposal, 1..5).prop_map(Payload::Sa)
}

fn selectors() -> impl Strategy<Value = Vec<TrafficSelector>> {
    let v4 = (any::<u32>(), any::<u32>()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let v6 = (any::<u128>(), any::<u128>()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let range = prop_oneof![
        v4.prop_map(|(a, b)| (std::net::Ipv4Addr::from(a).into(), std::net::Ipv4Addr::from(b).into())),
        v6.prop_map(|(a, b)| (std::net::Ipv6Addr::from(a).into(), std::net::Ipv6Addr::from(b).into())),
    ];
    let ports = prop_oneof![
        Just((u16::MAX, 0)),
        (any::<u16>(), any::<u16>()).prop_map(|(a, b): (u16, u16)| (a.min(b), a.max(b))),
    ];
    let selector =
        (range, ports, any::<u8>()).prop_map(|((start, end), (start_port, end_port), protocol)| {
            TrafficSelector { protocol, start_port, end_port, start, end }
        });
    vec(selector, 0..9)
}

fn identification() -> impl Strategy<Value = Identification> {
    prop_oneof![
        (Just(1u8), octets(4)),
        (Just(5u8), octets(16)),
        (any::<u8>().prop_filter("addresses have one length", |k| ![1, 5].contains(k)), octets(1..40)),
    ]
    .prop_map(|(kind, data)| Identification { kind: IdType(kind), data })
}

fn delete() -> impl Strategy<Value = Delete> {
    (any::<u8>(), 1usize..9)
        .prop_flat_map(|(protocol, len)| (Just(protocol), vec(octets(len), 0..9)))
        .prop_map(|(protocol, spis)| Delete { protocol: ProtocolId(protocol), spis })
}

fn notify() -> impl Strategy<Value = Notify> {
    (any::<u8>(), octets(0..9), any::<u16>(), octets(0..40), any::<bool>()).prop_map(
        |(protocol, spi, kind, data, critical)| Notify {
            protocol: ProtocolId(protocol),
            spi,
            kind: NotifyType(kind),
            data,
            critical,
        },
    )
}

fn configuration() -> impl Strategy<Value = ConfigPayload> {
    let attribute = (..0x8000u16, octets(0..20))
        .prop_map(|(kind, value)| ConfigAttribute { kind: ConfigAttributeType(kind), value });
    (any::<u8>(), vec(attribute, 0..6))
        .prop_map(|(kind, attributes)| ConfigPayload { kind: ConfigType(kind), attributes })
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        proposals(),
        (any::<u16>(), octets(0..80)).prop_map(|(method, data)| Payload::Ke { method, data }),
        identification().prop_map(Payload::IdI),
        identification().prop_map(Payload::IdR),
        (any::<u8>(), octets(0..40))
            .prop_map(|(kind, data)| Payload::Cert { encoding: CertEncoding(kind), data }),
        (any::<u8>(), octets(0..40))
            .prop_map(|(kind, data)| Payload::CertReq { encoding: CertEncoding(kind), data }),
        (any::<u8>(), octets(0..40))
            .prop_map(|(kind, data)| Payload::Auth(AuthPayload { method: AuthMethod(kind), data })),
        octets(16..=256).prop_map(Payload::Nonce),
        notify().prop_map(Payload::Notify),
        delete().prop_map(Payload::Delete),
        octets(0..40).prop_map(Payload::VendorId),
        selectors().prop_map(Payload::TsI),
        selectors().prop_map(Payload::TsR),
        configuration().prop_map(Payload::Cp),
        octets(0..40).prop_map(Payload::Eap),
        (any::<u8>(), any::<bool>(), octets(0..40))
            .prop_filter("a type without a payload of its own", |(kind, ..)| {
                *kind != 0 && (PayloadType(*kind).name().is_none() || [49, 54].contains(kind))
            })
            .prop_map(|(kind, critical, body)| Payload::Unknown { kind: PayloadType(kind), critical, body }),
    ]
}

fn last() -> impl Strategy<Value = Option<Payload>> {
    prop_oneof![
        Just(None),
        (any::<u8>(), octets(0..80))
            .prop_map(|(next, body)| Some(Payload::Encrypted { next: PayloadType(next), body })),
        (any::<u8>(), any::<u16>(), any::<u16>(), octets(0..80)).prop_map(
            |(next, number, total, body)| Some(Payload::EncryptedFragment {
                next: PayloadType(next),
                number,
                total,
                body
            })
        ),
    ]
}

proptest! {
    #[test]
    fn what_is_written_reads_back(mut payloads in vec(payload(), 0..12), last in last()) {
        payloads.extend(last);
        let (first, octets) = emit_chain(&payloads);
        prop_assert_eq!(parse_chain(first, &octets), Ok(payloads));
    }

    #[test]
    fn headers_round_trip(
        spis: (u64, u64), types: (u8, u8), version in (0u8..16, 0u8..16), flags: (bool, bool, bool), message_id: u32,
    ) {
        let header = Header {
            initiator_spi: IkeSpi(spis.0),
            responder_spi: IkeSpi(spis.1),
            next_payload: PayloadType(types.0),
            major: version.0,
            minor: version.1,
            exchange: ExchangeType(types.1),
            flags: Flags { initiator: flags.0, higher_version: flags.1, response: flags.2 },
            message_id,
            length: 28,
        };
        prop_assert_eq!(Header::parse(&header.emit()), Ok(header));
    }

    #[test]
    fn random_datagrams_never_panic(octets in octets(0..200)) {
        let _ = Header::parse(&octets);
    }

    #[test]
    fn mutated_messages_never_panic(
        payloads in vec(payload(), 1..6),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (first, mut octets) = emit_chain(&payloads);
        for (at, value) in changes {
            let at = at.index(octets.len());
            octets[at] = value;
        }
        if let Ok(payloads) = parse_chain(first, &octets) {
            payloads.iter().for_each(|p| drop(p.summary()));
            let (first, again) = emit_chain(&payloads);
            prop_assert_eq!(parse_chain(first, &again), Ok(payloads));
        }
    }
}
