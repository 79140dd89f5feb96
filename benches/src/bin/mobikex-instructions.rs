//! One step of the packet path, many times, for scripts/instructions to count its instructions under callgrind.
//!
//!     mobikex-instructions              the names of the steps
//!     mobikex-instructions STEP TIMES

use std::hint::black_box;
use std::process::ExitCode;

use mobikex_benches::sample::{self, packet, sa, set};
use mobikex_common::addr::Scheduler;
use mobikex_common::wire::checksum;
use mobikex_common::wire::ip::Packet;
use mobikex_common::wire::virtio::{Gso, Header};
use mobikex_dataplane::counters::Tally;
use mobikex_dataplane::esp::{self, HEADROOM, IvSource, OuterInfo, ReplayTable};
use mobikex_dataplane::offload::{Coalescer, Segments};
use mobikex_dataplane::paths::{Addresses, Traffic};
use mobikex_dataplane::published::pin;
use mobikex_dataplane::sad::Selectors;
use mobikex_dataplane::tables::{Lookup, Tables};

/// Does a step so many times.
type Step = fn(usize);

const STEPS: &[(&str, Step)] = &[
    ("find the policy and seal, 64 octets", |times| carry(64, times, false)),
    ("find the policy and seal, 1400 octets", |times| carry(1400, times, false)),
    ("the same, and find the SA and open, 64 octets", |times| carry(64, times, true)),
    ("the same, and find the SA and open, 1400 octets", |times| carry(1400, times, true)),
    ("seal in a run of 50, 64 octets", |times| runs(64, times, false)),
    ("seal and open in runs of 50, 64 octets", |times| runs(64, times, true)),
    ("choose a path, flow", choose),
    ("checksum of 1400 octets", sum),
    ("cut into 45 packets", cut),
    ("merge 45 packets", merge),
];

fn carry(len: usize, times: usize, back: bool) {
    let tables = Tables::new(64);
    for id in 0..64 {
        tables.install(&sa(id), true).expect("an SA");
    }
    let (mut replay, mut ivs) = (ReplayTable::new(1), IvSource::from_seed([7; 32]));
    let outer = OuterInfo { path: sa(0).addresses.paths[0].path, tos: 0, encap: true };
    let (bytes, mut buffer) = (packet(7, 0, len), vec![0; HEADROOM + len + 64]);
    let guard = pin();
    for _ in 0..times {
        let parsed = Packet::parse(black_box(&bytes)).expect("a packet");
        let Lookup::Sa(out, _) = tables.lookup_outbound(&parsed, 0, &guard) else { panic!("no SA") };
        let sealed = esp::seal(out, &parsed, &mut buffer[HEADROOM..], &mut ivs).expect("it is sealed");
        if !back {
            continue;
        }
        let sa = tables.lookup_inbound(black_box(out.spi()), &guard).expect("an SA");
        let window = replay.window(sa).expect("a window");
        let range = HEADROOM..HEADROOM + sealed.len;
        let opened = esp::open(sa, window, &mut buffer, range, &outer, &guard).expect("it is opened");
        assert!(black_box(opened).on_path);
    }
}

/// As many packets, one run of the same SA after the other.
fn runs(len: usize, times: usize, back: bool) {
    const RUN: usize = 50;
    let tables = Tables::new(64);
    tables.install(&sa(7), true).expect("an SA");
    let (mut replay, mut ivs) = (ReplayTable::new(1), IvSource::from_seed([7; 32]));
    let outer = OuterInfo { path: sa(7).addresses.paths[0].path, tos: 0, encap: true };
    let bytes = packet(7, 0, len);
    let guard = pin();
    let parsed = Packet::parse(black_box(&bytes)).expect("a packet");
    let Lookup::Sa(out, set) = tables.lookup_outbound(&parsed, 0, &guard) else { panic!("no SA") };
    let slot = HEADROOM + out.sealed_len(len);
    let mut buffers = vec![0; RUN * slot];
    let traffic = Traffic { flow_hash: 0, assigned: None, turn: 0, len, ends: None };
    let path = set.choose(&traffic).expect("a path");
    for _ in 0..times / RUN {
        let mut tally = Tally::default();
        for slot in buffers.chunks_mut(slot) {
            sample::seal(out, path, &parsed, &mut slot[HEADROOM..], &mut ivs, &mut tally);
        }
        if back {
            sample::open(&tables, &mut replay, buffers.chunks_mut(slot), &outer, &guard);
        }
    }
}

fn choose(times: usize) {
    let addresses = Addresses::new(set(1, 4, Scheduler::Flow), Selectors::new(&[], &[]));
    let guard = pin();
    for turn in 0..times as u64 {
        let flow_hash = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let traffic = Traffic { flow_hash, assigned: None, turn, len: 1400, ends: None };
        let paths = addresses.load(&guard).expect("a set");
        assert!(black_box(paths.choose(&traffic)).is_ok());
    }
}

fn sum(times: usize) {
    let bytes = packet(0, 0, 1400);
    (0..times).for_each(|_| _ = black_box(checksum::sum(black_box(&bytes), 0)));
}

fn cut(times: usize) {
    let long = packet(0, 0, 40 + 45 * 1360);
    let parsed = Packet::parse(&long).expect("a packet");
    let header = Header { checksum: Some((20, 16)), gso: Gso::TcpV4, hdr_len: 40, gso_size: 1360 };
    let mut out = vec![0; 1400];
    for _ in 0..times {
        let segments = Segments::new(&header, black_box(parsed)).expect("a super-packet");
        (0..segments.count()).for_each(|index| segments.write(index, 0, black_box(&mut out)));
    }
}

fn merge(times: usize) {
    let packets: Vec<_> = (0..45).map(|index| packet(0, index, 1400)).collect();
    let mut merge = Coalescer::new(true);
    for _ in 0..times {
        let mut written = 0;
        packets.iter().for_each(|packet| merge.offer(black_box(packet), |_, _| written += 1));
        merge.flush(|_, _| written += 1);
        assert_eq!(written, 1);
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => STEPS.iter().for_each(|(name, _)| println!("{name}")),
        [wanted, times] => {
            let step = STEPS.iter().find(|(name, _)| name == wanted);
            let (Some((_, step)), Ok(times)) = (step, times.parse()) else {
                eprintln!("mobikex-instructions: no such step, or not a number");
                return ExitCode::from(2);
            };
            step(times);
        }
        _ => {
            eprintln!("usage: mobikex-instructions [STEP TIMES]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
