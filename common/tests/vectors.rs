//! The published byte vectors of MOBIKE-X (`common/specs/mobike-x-vectors.json`), in both directions, and the page
//! made from them (`common/specs/VECTORS.md`). `scripts/mobikex_layer.py` checks the same file on its own.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

mod page;

use std::fmt::Write as _;
use std::net::IpAddr;

use mobikex_common::spi::{IkeSpi, Spi};
use mobikex_common::wire::ike::{Notify, NotifyType, Payload, PayloadType, emit_chain, parse_chain};
use mobikex_common::wire::mobike_x::{
    IpParameter, Mip, Parameter, ParameterErrorKind, Reachability, SpiParameter, emit, parse,
};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    about: String,
    notifies: Vec<NotifyVector>,
    tolerated: Vec<Tolerated>,
    malformed: Vec<Malformed>,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NotifyVector {
    name: String,
    clause: String,
    notify: String,
    meaning: Value,
    #[serde(rename = "type")]
    kind: u16,
    data: String,
    payload: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tolerated {
    name: String,
    clause: String,
    data: String,
    meaning: Value,
    canonical: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Malformed {
    name: String,
    clause: String,
    data: String,
    error: String,
    offset: usize,
    id: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    name: String,
    clause: String,
    notifies: Vec<Part>,
    chain: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    notify: String,
    meaning: Value,
}

fn vectors() -> Vectors {
    serde_json::from_str(&page::read("mobike-x-vectors.json")).unwrap()
}

fn octets(hex: &str) -> Vec<u8> {
    assert_eq!(hex.len() % 2, 0, "{hex}");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn number<T: TryFrom<u64>>(value: &Value) -> T {
    T::try_from(value.as_u64().unwrap()).ok().unwrap()
}

fn addr(value: &Value) -> IpAddr {
    value.as_str().unwrap().parse().unwrap()
}

fn parameter(value: &Value) -> Parameter {
    let (kind, first) =
        value.as_object().unwrap().iter().find(|(key, _)| !["bits", "mip"].contains(&&***key)).unwrap();
    match kind.as_str() {
        "version" => Parameter::Version(first.as_array().unwrap().iter().map(number).collect()),
        "spi" => {
            let hex = first.as_str().unwrap();
            let ike = |hex| IkeSpi(u64::from_str_radix(hex, 16).unwrap());
            Parameter::Spi(match hex.len() {
                8 => SpiParameter::Child(Spi(u32::from_str_radix(hex, 16).unwrap())),
                16 => SpiParameter::Ike(ike(hex)),
                32 => SpiParameter::IkePair(ike(&hex[..16]), ike(&hex[16..])),
                _ => panic!("{hex}"),
            })
        }
        "ip" => {
            let bit = |letter| value["bits"].as_str().unwrap().contains(letter);
            Parameter::Ip(IpParameter {
                addr: addr(first),
                check: bit('C'),
                old: bit('O'),
                new: bit('N'),
                header: bit('H'),
                inner: bit('I'),
                mip: value.get("mip").map(mip),
            })
        }
        "mode" => Parameter::Mode(number(first)),
        "proto" => Parameter::Proto(number(first)),
        "special" => Parameter::Special(number(first)),
        "id" => Parameter::Id(number(first)),
        other => panic!("{other}"),
    }
}

fn mip(value: &Value) -> Mip {
    Mip {
        preference: number(&value["preference"]),
        class: number(&value["class"]),
        reachability: match value["reachability"].as_str().unwrap() {
            "no info" => Reachability::NoInfo,
            "reachable" => Reachability::Reachable,
            "unreachable" => Reachability::Unreachable,
            other => panic!("{other}"),
        },
        start: number(&value["start"]),
        life: number(&value["life"]),
    }
}

/// The parameters that a meaning describes; `None` for the notifies of RFC 4555 with data of their own.
fn parameters(meaning: &Value) -> Option<Vec<Parameter>> {
    Some(meaning.get("parameters")?.as_array().unwrap().iter().map(parameter).collect())
}

fn bare(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The notify data of a meaning.
fn data(meaning: &Value) -> Vec<u8> {
    if let Some(parameters) = parameters(meaning) {
        emit(&parameters)
    } else if let Some(value) = meaning.get("address") {
        bare(addr(value))
    } else if let Some(value) = meaning.get("octets") {
        octets(value.as_str().unwrap())
    } else {
        let ends = [&meaning["source"], &meaning["destination"]];
        let ports = ends.map(|end| number::<u16>(&end[1]).to_be_bytes());
        [bare(addr(&ends[0][0])), bare(addr(&ends[1][0])), ports.concat()].concat()
    }
}

fn kind(name: &str) -> NotifyType {
    let by_name = |number: &u16| NotifyType(*number).name() == Some(name);
    match name {
        "ADDITIONAL_IP_ADDRESS" => NotifyType::ADDITIONAL_IP_ADDRESS,
        name => {
            NotifyType((0..=u16::MAX).find(by_name).unwrap_or_else(|| panic!("there is no notify {name}")))
        }
    }
}

fn fault(kind: ParameterErrorKind) -> &'static str {
    match kind {
        ParameterErrorKind::Truncated { .. } => "truncated",
        ParameterErrorKind::UnknownType(_) => "unknown type",
        ParameterErrorKind::NoVersions => "no versions",
        ParameterErrorKind::Padding => "padding",
        ParameterErrorKind::SpiSize(_) => "spi size",
        ParameterErrorKind::IpVersion(_) => "ip version",
        ParameterErrorKind::TooMany => "too many",
    }
}

#[test]
fn every_notify_is_written_and_read_as_published() {
    for v in &vectors().notifies {
        let data = data(&v.meaning);
        assert_eq!(data, octets(&v.data), "{}", v.name);
        assert_eq!(kind(&v.notify), NotifyType(v.kind), "{}", v.name);
        let payload = Payload::Notify(Notify::new(NotifyType(v.kind), data));
        assert_eq!(
            emit_chain(std::slice::from_ref(&payload)),
            (PayloadType::N, octets(&v.payload)),
            "{}",
            v.name
        );
        assert_eq!(parse_chain(PayloadType::N, &octets(&v.payload)).unwrap(), [payload], "{}", v.name);
        if let Some(expected) = parameters(&v.meaning) {
            assert_eq!(parse(&octets(&v.data)).unwrap(), expected, "{}", v.name);
        }
    }
}

#[test]
fn what_is_tolerated_reads_and_is_written_back_clean() {
    for v in &vectors().tolerated {
        let read = parse(&octets(&v.data)).unwrap();
        assert_eq!(read, parameters(&v.meaning).unwrap(), "{}", v.name);
        assert_eq!(emit(&read), octets(&v.canonical), "{}", v.name);
        assert_ne!(v.data, v.canonical, "{}", v.name);
    }
}

#[test]
fn what_is_malformed_is_refused_for_its_fault() {
    for v in &vectors().malformed {
        let error = parse(&octets(&v.data)).expect_err(&v.name);
        assert_eq!((fault(error.kind), error.offset, error.id), (&*v.error, v.offset, v.id), "{}", v.name);
    }
}

#[test]
fn whole_messages_are_chains_of_their_notifies() {
    for v in &vectors().messages {
        let notify = |part: &Part| Payload::Notify(Notify::new(kind(&part.notify), data(&part.meaning)));
        let payloads: Vec<_> = v.notifies.iter().map(notify).collect();
        assert_eq!(emit_chain(&payloads), (PayloadType::N, octets(&v.chain)), "{}", v.name);
        assert_eq!(parse_chain(PayloadType::N, &octets(&v.chain)).unwrap(), payloads, "{}", v.name);
    }
}

/// Every notify of MOBIKE and MOBIKE-X and every kind of fault is among the vectors, and no name twice.
#[test]
fn nothing_is_left_without_a_vector() {
    let vectors = vectors();
    for number in [40, 41].into_iter().chain(8192..=8196).chain(16396..=16402).chain(40961..=40966) {
        assert!(vectors.notifies.iter().any(|v| v.kind == number), "{}", NotifyType(number));
    }
    for kind in ["truncated", "unknown type", "no versions", "padding", "spi size", "ip version", "too many"]
    {
        assert!(vectors.malformed.iter().any(|v| v.error == kind), "{kind}");
    }
    let mut names: Vec<_> = vectors.notifies.iter().map(|v| &v.name).collect();
    names.extend(vectors.tolerated.iter().map(|v| &v.name));
    names.extend(vectors.malformed.iter().map(|v| &v.name));
    names.extend(vectors.messages.iter().map(|v| &v.name));
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

fn shown(meaning: &Value) -> String {
    let end = |value: &Value| format!("{} port {}", addr(&value[0]), value[1]);
    match parameters(meaning) {
        Some(parameters) if parameters.is_empty() => "empty".into(),
        Some(parameters) => parameters.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        None if meaning.get("source").is_some() => {
            format!("{} to {}", end(&meaning["source"]), end(&meaning["destination"]))
        }
        None => meaning["address"].as_str().unwrap_or("octets").into(),
    }
}

/// Octets in a table.
fn code(hex: &str) -> String {
    if hex.is_empty() { String::new() } else { format!("`{hex}`") }
}

#[test]
fn the_page_is_what_the_vectors_say() {
    let vectors = vectors();
    let mut page = format!("# Byte vectors\n\n{}\n\n", vectors.about);
    page += "This page is made from `mobike-x-vectors.json`.\n\n## Notifies\n\n";
    page += "| vector | clause | notify | data | octets of the data |\n|---|---|---|---|---|\n";
    for v in &vectors.notifies {
        let shown = shown(&v.meaning);
        writeln!(
            page,
            "| {} | {} | {} ({}) | {shown} | {} |",
            v.name,
            v.clause,
            v.notify,
            v.kind,
            code(&v.data)
        )
        .unwrap();
    }
    page += "\n## Read although not written so\n\n";
    page += "| vector | clause | reads as | octets | written as |\n|---|---|---|---|---|\n";
    for v in &vectors.tolerated {
        let shown = shown(&v.meaning);
        writeln!(page, "| {} | {} | {shown} | `{}` | `{}` |", v.name, v.clause, v.data, v.canonical).unwrap();
    }
    page += "\n## Refused\n\n| vector | clause | fault | at octet | ID for the answer | octets |\n|---|---|---|---|---|---|\n";
    for v in &vectors.malformed {
        let id = v.id.map_or("none".into(), |id| id.to_string());
        writeln!(page, "| {} | {} | {} | {} | {id} | `{}` |", v.name, v.clause, v.error, v.offset, v.data)
            .unwrap();
    }
    page += "\n## Chains of payloads\n";
    for v in &vectors.messages {
        writeln!(page, "\n### {}\n\n{}\n", v.name, v.clause).unwrap();
        for part in &v.notifies {
            writeln!(page, "- {}: {}", part.notify, shown(&part.meaning)).unwrap();
        }
        writeln!(page, "\n`{}`", v.chain).unwrap();
    }
    page::compare("VECTORS.md", &page);
}
