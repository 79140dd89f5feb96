//! What paths cost: the choice of one for a packet with each scheduler, and the move of 1 000 SAs to another address set,
//! which is to be visible within 10 ms.

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};

use criterion::{Criterion, criterion_group, criterion_main};
use mobikex_common::addr::{AddressSet, Path, Scheduler, WeightedPath};
use mobikex_common::alg::{Cipher, EspSuite, KeyBits};
use mobikex_common::sa::{ChildSaId, ChildSaParams, CopyDscp, EspKeys, Mode, PolicyId, VolumeLimits};
use mobikex_common::spi::Spi;
use mobikex_dataplane::paths::{Addresses, Traffic};
use mobikex_dataplane::published::pin;
use mobikex_dataplane::sad::Selectors;
use mobikex_dataplane::tables::Tables;

const SAS: u32 = 1000;

/// `count` uplinks of ours to one address of the peer; `third` tells sets apart.
fn set(third: u8, count: u8, scheduler: Scheduler) -> AddressSet {
    let end = |addr: [u8; 4]| SocketAddr::new(IpAddr::from(addr), 4500);
    let path = |n: u8| {
        let path = Path { local: end([192, 0, third, n + 1]), remote: end([198, 51, 100, 2]) };
        WeightedPath { weight: 100 + u16::from(n), ..WeightedPath::new(path, true) }
    };
    AddressSet {
        generation: third.into(),
        scheduler,
        resequence_ms: 0,
        paths: (0..count).map(path).collect(),
    }
}

fn sa(id: u32) -> ChildSaParams {
    let suite = EspSuite { cipher: Cipher::AesGcm16(KeyBits::B256), integrity: None, ke: None, esn: false };
    let keys =
        |fill| EspKeys { encryption: vec![fill; suite.cipher.key_material_len()], integrity: Vec::new() };
    let net = |first: u8| format!("{first}.{}.{}.0/24", id >> 8, id & 0xff).parse().expect("a prefix");
    ChildSaParams {
        id: ChildSaId(id),
        policy: PolicyId(id),
        name: format!("bench/{id}"),
        mode: Mode::Tunnel,
        spi_in: Spi(0x1000_0000 | id),
        spi_out: Spi(0x2000_0000 | id),
        suite,
        keys_in: keys(1),
        keys_out: keys(2),
        ts_local: vec![net(10)],
        ts_remote: vec![net(11)],
        addresses: set(1, 2, Scheduler::Flow),
        replay_window: 64,
        limits: VolumeLimits::default(),
        copy_df: true,
        copy_dscp: CopyDscp::Out,
    }
}

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
