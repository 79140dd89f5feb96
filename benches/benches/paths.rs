//! What paths cost: the choice of one for a packet with each scheduler, and the move of 1 000 SAs to another address set,
//! which is to be visible within 10 ms.

use criterion::{Criterion, criterion_group, criterion_main};
use mobikex_benches::sample::{sa, set};
use mobikex_common::addr::Scheduler;
use mobikex_common::sa::ChildSaId;
use mobikex_dataplane::paths::{Addresses, Traffic};
use mobikex_dataplane::published::pin;
use mobikex_dataplane::sad::Selectors;
use mobikex_dataplane::tables::Tables;
use std::hint::black_box;

const SAS: u32 = 1000;

fn move_sas(c: &mut Criterion) {
    let tables = Tables::new(SAS + 1);
    let ids: Vec<ChildSaId> = (0..SAS).map(ChildSaId).collect();
    for id in 0..SAS {
        tables.install(&sa(id), true).expect("an SA");
    }
    let sets = [set(2, 4, Scheduler::Flow), set(3, 4, Scheduler::Flow)];
    let mut turn = 0;
    c.bench_function("set_addresses on 1000 SAs", |b| {
        b.iter(|| {
            turn ^= 1;
            assert_eq!(tables.set_addresses(&ids, &sets[turn]), ids.len());
        });
    });
    // The call has returned, so every SA must show the last set: a result that is not visible would measure nothing.
    assert!(ids.iter().all(|id| {
        let stats = tables.stats(*id).expect("an SA");
        stats.paths.iter().map(|path| path.path).eq(sets[turn].paths.iter().map(|path| path.path))
    }));
}

fn choose(c: &mut Criterion) {
    for scheduler in [Scheduler::Flow, Scheduler::Packet, Scheduler::Redundant, Scheduler::Backup] {
        let addresses = Addresses::new(set(1, 4, scheduler), Selectors::new(&[], &[]));
        let guard = pin();
        let mut traffic = Traffic { flow_hash: 0, assigned: None, turn: 0, len: 1400, ends: None };
        c.bench_function(&format!("choose a path of 4, {scheduler:?}"), |b| {
            b.iter(|| {
                traffic.turn += 1;
                // Another flow each time: the upper bits count.
                traffic.flow_hash = traffic.flow_hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let paths = addresses.load(&guard).expect("a set");
                let first = paths.choose(&traffic).expect("a path");
                // A copy for every other path is the price of redundancy; the others stop at the first.
                match scheduler {
                    Scheduler::Redundant => 1 + paths.others(first, &traffic).map(black_box).count(),
                    _ => usize::from(black_box(first).path.weight),
                }
            });
        });
    }
}

criterion_group!(benches, move_sas, choose);
criterion_main!(benches);
