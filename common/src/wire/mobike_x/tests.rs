//! Octets laid out by hand after the draft's figures, and generated parameters against their own octets.

use std::net::IpAddr;

use hex_literal::hex;
use proptest::collection::vec;
use proptest::prelude::*;

use super::ParameterErrorKind as Kind;
use super::*;

fn fault(data: &[u8]) -> (Kind, usize, Option<u16>) {
    let error = parse(data).unwrap_err();
    (error.kind, error.offset, error.id)
}

#[test]
fn the_figures_read_as_laid_out() {
    let data = hex!(
        "01 02 01 02" "01 03 01 02 ff 000000"
        "02 04 0000 c1234567"
        "02 08 0000 a1a2a3a4a5a6a7a8"
        "02 10 0000 a1a2a3a4a5a6a7a8 b1b2b3b4b5b6b7b8"
        "03 06 0000 c0000201"
        "03 b9 0000 32 02 80 00 0000000a 0000003c 20010db8000000000000000000000001"
        "04 03 0000" "05 03 0000" "06 03 0000" "07 00 1234"
    );
    let parameters = parse(&data).unwrap();
    let shown: Vec<_> = parameters.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "VERSION(1 2)",
            "VERSION(1 2 none)",
            "SPI(c1234567)",
            "SPI(a1a2a3a4a5a6a7a8)",
            "SPI(a1a2a3a4a5a6a7a8/b1b2b3b4b5b6b7b8)",
            "IP(192.0.2.1 N H)",
            "IP(2001:db8::1 C O I pref 50 CoA unreachable in 10s for 60s)",
            "MODE(tunnel in UDP)",
            "PROTO(ESP)",
            "SPECIAL(all IKE SAs)",
            "ID(4660)",
        ]
    );
    assert_eq!(emit(&parameters), data);
    assert_eq!(parse(&[]), Ok(vec![]));
}

#[test]
fn constructors_set_one_bit() {
    let addr: IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(emit(&[Parameter::Ip(IpParameter::outer(addr))]), hex!("03 02 0000 c0000201"));
    assert_eq!(emit(&[Parameter::Ip(IpParameter::inner_addr(addr))]), hex!("03 01 0000 c0000201"));
}

#[test]
fn reserved_bits_are_ignored_and_unassigned_reachability_means_nothing_known() {
    let parameters = parse(&hex!(
        "03 82 ffff 05 00 ff ff 00000000 00000000 c0000201"
        "02 04 ffff c1234567" "04 01 ffff" "05 03 ffff" "06 02 ffff" "07 ff 0007"
    ));
    let clean = hex!(
        "03 82 0000 05 00 00 00 00000000 00000000 c0000201"
        "02 04 0000 c1234567" "04 01 0000" "05 03 0000" "06 02 0000" "07 00 0007"
    );
    assert_eq!(emit(&parameters.unwrap()), clean);
}

#[test]
fn every_fault_is_named_and_placed() {
    assert_eq!(fault(&hex!("01 00 0000")), (Kind::NoVersions, 0, None));
    assert_eq!(fault(&hex!("07 00 0001 01 01 02 01")), (Kind::Padding, 4, Some(1)));
    assert_eq!(fault(&hex!("01 03 01 02")), (Kind::Truncated { need: 8, have: 4 }, 0, None));
    assert_eq!(fault(&hex!("02 00 0000")), (Kind::SpiSize(0), 0, None));
    assert_eq!(fault(&hex!("02 05 0000 0102030405 000000")), (Kind::SpiSize(5), 0, None));
    assert_eq!(fault(&hex!("03 42 0000 c0000201")), (Kind::IpVersion(2), 0, None));
    assert_eq!(fault(&hex!("03 62 0000 c0000201")), (Kind::IpVersion(3), 0, None));
    assert_eq!(fault(&hex!("03 22 0000 c0000201")), (Kind::Truncated { need: 20, have: 8 }, 0, None));
    assert_eq!(fault(&hex!("03 82 0000 c0000201")), (Kind::Truncated { need: 20, have: 8 }, 0, None));
    assert_eq!(fault(&hex!("00 00 0000")), (Kind::UnknownType(0), 0, None));
    assert_eq!(fault(&hex!("07 00 0001 08 00 0000")), (Kind::UnknownType(8), 4, Some(1)));
    assert_eq!(fault(&hex!("07")), (Kind::Truncated { need: 4, have: 1 }, 0, None));
    assert_eq!(fault(&hex!("04 01 00")), (Kind::Truncated { need: 4, have: 3 }, 0, None));
    assert_eq!(fault(&hex!("04 01 0000").repeat(17)), (Kind::TooMany, 64, None));
    assert_eq!(
        parse(&hex!("07 00 0001 02 06 0000")).unwrap_err().to_string(),
        "a parameter of 12 octets with 4 there at octet 4"
    );
}

#[test]
fn the_id_is_found_behind_a_fault_of_known_length_only() {
    assert_eq!(fault(&hex!("01 01 02 01 07 00 0102")), (Kind::Padding, 0, Some(0x102)));
    assert_eq!(fault(&hex!("02 06 0000 010203040506 0000 07 00 0102")), (Kind::SpiSize(6), 0, Some(0x102)));
    assert_eq!(fault(&hex!("03 42 0000 c0000201 07 00 0102")), (Kind::IpVersion(2), 0, None));
    assert_eq!(fault(&hex!("09 00 0000 07 00 0102")), (Kind::UnknownType(9), 0, None));
}

#[test]
fn versions_beyond_what_the_count_can_say_are_left_out() {
    let data = emit(&[Parameter::Version(vec![2; 300]), Parameter::Id(1)]);
    assert_eq!(parse(&data), Ok(vec![Parameter::Version(vec![2; 255]), Parameter::Id(1)]));
}

fn mip() -> impl Strategy<Value = Mip> {
    let reachability = prop_oneof![
        Just(Reachability::NoInfo),
        Just(Reachability::Reachable),
        Just(Reachability::Unreachable)
    ];
    (any::<(u8, u8, u32, u32)>(), reachability).prop_map(
        |((preference, class, start, life), reachability)| Mip {
            preference,
            class,
            reachability,
            start,
            life,
        },
    )
}

fn ip() -> impl Strategy<Value = IpParameter> {
    let addr = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
    (addr, any::<[bool; 5]>(), proptest::option::of(mip())).prop_map(
        |(addr, [check, old, new, header, inner], mip)| IpParameter {
            addr,
            check,
            old,
            new,
            header,
            inner,
            mip,
        },
    )
}

fn parameter() -> impl Strategy<Value = Parameter> {
    prop_oneof![
        vec(any::<u8>(), 1..=255).prop_map(Parameter::Version),
        any::<u32>().prop_map(|spi| Parameter::Spi(SpiParameter::Child(Spi(spi)))),
        any::<u64>().prop_map(|spi| Parameter::Spi(SpiParameter::Ike(IkeSpi(spi)))),
        any::<(u64, u64)>().prop_map(|(i, r)| Parameter::Spi(SpiParameter::IkePair(IkeSpi(i), IkeSpi(r)))),
        ip().prop_map(Parameter::Ip),
        any::<u8>().prop_map(Parameter::Mode),
        any::<u8>().prop_map(Parameter::Proto),
        any::<u8>().prop_map(Parameter::Special),
        any::<u16>().prop_map(Parameter::Id),
    ]
}

proptest! {
    #[test]
    fn parameters_round_trip(parameters in vec(parameter(), 0..=MAX_PARAMETERS)) {
        let data = emit(&parameters);
        prop_assert_eq!(data.len() % 4, 0);
        prop_assert_eq!(parse(&data), Ok(parameters));
    }

    #[test]
    fn random_octets_never_panic(data in vec(any::<u8>(), 0..200)) {
        match parse(&data) {
            Ok(parameters) => prop_assert_eq!(parse(&emit(&parameters)), Ok(parameters)),
            Err(error) => prop_assert!(error.offset < data.len() && !error.to_string().is_empty()),
        }
    }

    /// Random octets seldom get past the first type; changed good ones do.
    #[test]
    fn mutated_parameters_never_panic(
        parameters in vec(parameter(), 1..6),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut data = emit(&parameters);
        for (at, value) in changes {
            let at = at.index(data.len());
            data[at] = value;
        }
        for data in [&data[..], &data[..cut.index(data.len())]] {
            if let Ok(parameters) = parse(data) {
                parameters.iter().for_each(|p| drop(p.to_string()));
                prop_assert_eq!(parse(&emit(&parameters)), Ok(parameters));
            }
        }
    }
}
