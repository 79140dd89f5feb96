//! What a second worker adds to sealing, where both send on one SA and where each has its own (RFC 9611).
//!
//! `cargo bench --bench workers`; with `MOBIKEX_JSON=FILE` also as JSON. No I/O: every worker finds the SA of a packet, draws
//! its number and seals it, over and over. The forms take turns, so that what else the machine does falls on all alike; it
//! takes two idle cores to say anything.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mobikex_benches::sample::{packet, sa};
use mobikex_common::sa::{ChildSaId, ChildSaParams, PolicyId};
use mobikex_common::spi::Spi;
use mobikex_common::wire::ip::Packet;
use mobikex_dataplane::esp::{self, HEADROOM, IvSource};
use mobikex_dataplane::published::pin;
use mobikex_dataplane::tables::{Lookup, Tables};

const TURN: Duration = Duration::from_millis(150);
const TURNS: usize = 15;
/// Packets under one guard.
const BATCH: usize = 64;
const FORMS: [(&str, usize, bool); 3] =
    [("1 worker", 1, false), ("2 workers, one SA", 2, false), ("2 workers, each its SA", 2, true)];

fn tables(own: bool) -> Tables {
    let tables = Tables::new(8);
    tables.install(&sa(0), true).expect("an SA");
    for worker in (0..2).filter(|_| own) {
        let id = worker + 1;
        let spi = Spi(0x1000_0000 | id);
        let further = ChildSaParams { id: ChildSaId(id), worker: Some(worker), spi_in: spi, ..sa(0) };
        tables.install(&ChildSaParams { policy: PolicyId(0), ..further }, true).expect("an SA");
    }
    tables
}

/// Packets a second of all workers together.
fn turn(tables: &Tables, workers: usize, len: usize) -> f64 {
    let (start, stop) = (Barrier::new(workers + 1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                let (start, stop) = (&start, &stop);
                scope.spawn(move || {
                    let bytes = packet(0, 0, len);
                    let parsed = Packet::parse(&bytes).expect("a packet");
                    let mut ivs = IvSource::from_seed([7; 32]);
                    let mut out = vec![0; HEADROOM + len + 64];
                    let mut sealed = 0_u64;
                    start.wait();
                    while !stop.load(Ordering::Relaxed) {
                        let guard = pin();
                        for _ in 0..BATCH {
                            let Lookup::Sa(sa, _) = tables.lookup_outbound(&parsed, worker, &guard) else {
                                panic!("no SA")
                            };
                            black_box(esp::seal(sa, &parsed, &mut out, &mut ivs).expect("it is sealed"));
                            sa.counters().stamp(sealed);
                        }
                        sealed += BATCH as u64;
                    }
                    sealed
                })
            })
            .collect();
        start.wait();
        let begin = Instant::now();
        std::thread::sleep(TURN);
        stop.store(true, Ordering::Relaxed);
        let took = begin.elapsed().as_secs_f64();
        let sealed: u64 = threads.into_iter().map(|thread| thread.join().expect("a worker")).sum();
        sealed as f64 / took
    })
}

fn main() {
    let mut results = BTreeMap::new();
    for len in [64, 1400] {
        let tables = FORMS.map(|(_, _, own)| tables(own));
        let mut rates = FORMS.map(|_| Vec::new());
        for _ in 0..TURNS {
            for ((form, tables), rates) in FORMS.iter().zip(&tables).zip(&mut rates) {
                rates.push(turn(tables, form.1, len));
            }
        }
        let medians = rates.map(|mut rates| {
            rates.sort_by(f64::total_cmp);
            rates[TURNS / 2]
        });
        for ((name, ..), rate) in FORMS.iter().zip(medians) {
            println!(
                "{len:>5} octets, {name:<24} {:>6.2} M packets/s, {:.2}x",
                rate / 1e6,
                rate / medians[0]
            );
            results.insert(format!("{len} octets, {name}"), rate);
        }
    }
    if let Ok(file) = std::env::var("MOBIKEX_JSON") {
        let text = serde_json::to_string_pretty(&results).expect("numbers");
        std::fs::write(&file, text).expect("the file can be written");
    }
}
