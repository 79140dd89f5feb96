//! What packets cost without I/O: sealing and opening beside the bare AEAD of the same provider, replay windows, finding an
//! SA or a policy among many, checksums, and cutting and merging super-packets.
//!
//! `cargo bench --bench packets`; after criterion's own figures come the ratios and whether the goals are reached, with
//! `MOBIKEX_JSON=FILE` also as JSON.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use criterion::{Bencher, Criterion};
use mobikex_benches::sample::{packet, sa};
use mobikex_common::spi::Spi;
use mobikex_common::wire::checksum;
use mobikex_common::wire::ip::Packet;
use mobikex_common::wire::virtio::{Gso, Header};
use mobikex_dataplane::esp::{self, Content, HEADROOM, IvSource, OuterInfo, ReplayTable};
use mobikex_dataplane::offload::{Coalescer, Segments};
use mobikex_dataplane::published::pin;
use mobikex_dataplane::tables::{Lookup, Tables};

/// Packets that are made, and then opened while the clock runs.
const CHUNK: usize = 64;
/// Octets of ESP before the text (SPI, sequence number, IV) and behind it.
const HEAD: usize = 16;
const ICV: usize = 16;
const SIZES: [usize; 2] = [64, 1400];

fn key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32]).expect("a key"))
}

fn nonce(number: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Octets that ESP encrypts of a packet.
fn text_len(len: usize) -> usize {
    (len + 2).next_multiple_of(4)
}

/// The least that a packet can cost: nothing but the AEAD, over the same octets.
fn bare(c: &mut Criterion, len: usize) {
    let key = key();
    let mut text = vec![7; text_len(len)];
    let mut number = 0u64;
    c.bench_function(&format!("seal {len}: bare AEAD"), |b| {
        b.iter(|| {
            number += 1;
            let aad = Aad::from(number.to_be_bytes());
            black_box(key.seal_in_place_separate_tag(nonce(number), aad, &mut text).expect("it is sealed"))
        });
    });
}

fn seal(c: &mut Criterion, len: usize) {
    bare(c, len);
    let tables = Tables::new(1);
    tables.install(&sa(0), true).expect("an SA");
    let (bytes, mut out, mut ivs) = (packet(0, 0, len), vec![0; len + 64], IvSource::from_seed([7; 32]));
    let parsed = Packet::parse(&bytes).expect("a packet");
    let guard = pin();
    let Lookup::Sa(sa, _) = tables.lookup_outbound(&parsed, &guard) else { panic!("no SA") };
    c.bench_function(&format!("seal {len}: ESP"), |b| {
        b.iter(|| black_box(esp::seal(sa, &parsed, &mut out, &mut ivs).expect("it is sealed")));
    });
}

/// Packets of SAs 0 to `count`, sealed by the SAs themselves, and what opens them.
struct Receiver {
    tables: Tables,
    replay: ReplayTable,
    ivs: IvSource,
    /// The packets' octets, with room in front.
    data: Vec<u8>,
    count: u32,
    next: u32,
    len: usize,
}

impl Receiver {
    fn new(count: u32, window: u32, len: usize) -> Self {
        let tables = Tables::new(count);
        for id in 0..count {
            let mut params = sa(id);
            params.replay_window = window;
            tables.install(&params, true).expect("an SA");
        }
        let data = vec![0; CHUNK * Self::slot(len)];
        let (replay, ivs) = (ReplayTable::new(1), IvSource::from_seed([7; 32]));
        Self { tables, replay, ivs, data, count, next: 0, len }
    }

    fn slot(len: usize) -> usize {
        HEADROOM + HEAD + text_len(len) + ICV
    }

    /// Seals the next packets, of SAs that are far from each other.
    fn prepare(&mut self, count: usize) {
        let guard = pin();
        for slot in self.data.chunks_mut(Self::slot(self.len)).take(count) {
            self.next = (self.next + 7919) % self.count.max(1);
            let bytes = packet(self.next, 0, self.len);
            let parsed = Packet::parse(&bytes).expect("a packet");
            let Lookup::Sa(sa, _) = self.tables.lookup_outbound(&parsed, &guard) else { panic!("no SA") };
            esp::seal(sa, &parsed, &mut slot[HEADROOM..], &mut self.ivs).expect("it is sealed");
        }
    }

    /// Opens them, as a worker does: by SPI, under one guard.
    fn open(&mut self, count: usize, outer: &OuterInfo) {
        let guard = pin();
        for slot in self.data.chunks_mut(Self::slot(self.len)).take(count) {
            let spi = slot[HEADROOM..].first_chunk().expect("an SPI");
            let sa = self.tables.lookup_inbound(Spi(u32::from_be_bytes(*spi)), &guard).expect("an SA");
            let window = self.replay.window(sa).expect("a window");
            let end = slot.len();
            let opened = esp::open(sa, window, slot, HEADROOM..end, outer, &guard).expect("it is opened");
            assert!(matches!(opened.content, Content::Packet(_)));
            black_box(opened);
        }
    }

    /// Times the opening alone.
    fn run(&mut self, b: &mut Bencher<'_>) {
        let path = sa(0).addresses.paths[0].path;
        let outer = OuterInfo { path, tos: 0, encap: true };
        chunks(b, self, Self::prepare, |this, count| this.open(count, &outer));
    }
}

/// Chunk by chunk, with the clock stopped while the next one is made.
fn chunks<T>(
    b: &mut Bencher<'_>,
    what: &mut T,
    mut prepare: impl FnMut(&mut T, usize),
    mut run: impl FnMut(&mut T, usize),
) {
    b.iter_custom(|iterations| {
        let (mut left, mut time) = (iterations as usize, Duration::ZERO);
        while left > 0 {
            let count = left.min(CHUNK);
            prepare(what, count);
            let begin = Instant::now();
            run(what, count);
            time += begin.elapsed();
            left -= count;
        }
        time
    });
}

fn open(c: &mut Criterion, len: usize) {
    let key = key();
    let slot = text_len(len) + ICV;
    let mut data = vec![0; CHUNK * slot];
    c.bench_function(&format!("open {len}: bare AEAD"), |b| {
        let prepare = |data: &mut Vec<u8>, _| {
            for (n, packet) in (0u64..).zip(data.chunks_mut(slot)) {
                let (text, tag) = packet.split_at_mut(slot - ICV);
                let sealed = key.seal_in_place_separate_tag(nonce(n), Aad::from(n.to_be_bytes()), text);
                tag.copy_from_slice(sealed.expect("it is sealed").as_ref());
            }
        };
        chunks(b, &mut data, prepare, |data, count| {
            for (n, packet) in (0u64..).zip(data.chunks_mut(slot)).take(count) {
                let (text, tag) = packet.split_at_mut(slot - ICV);
                let opened = key.open_in_place_separate_tag(nonce(n), Aad::from(n.to_be_bytes()), tag, text);
                black_box(opened.expect("it is opened"));
            }
        });
    });
    c.bench_function(&format!("open {len}: ESP"), |b| Receiver::new(1, 64, len).run(b));
}

const WINDOWS: [u32; 2] = [64, 65_536];

fn windows(c: &mut Criterion) {
    for window in WINDOWS {
        c.bench_function(&format!("open 64: window {window}"), |b| Receiver::new(1, window, 64).run(b));
    }
}

const COUNTS: [u32; 3] = [1, 1000, 100_000];

fn many(c: &mut Criterion) {
    for count in COUNTS {
        let mut receiver = Receiver::new(count, 64, 1400);
        c.bench_function(&format!("open 1400: {count} SAs in turn"), |b| receiver.run(b));
        // One of all that are installed is busy.
        receiver.count = 1;
        c.bench_function(&format!("open 1400: one of {count} SAs"), |b| receiver.run(b));
        let packets: Vec<_> = (0..1000).map(|n| packet(n * 7919 % count, 0, 64)).collect();
        let mut turn = 0;
        c.bench_function(&format!("policy of a packet among {count}"), |b| {
            b.iter(|| {
                turn = (turn + 1) % packets.len();
                let guard = pin();
                let parsed = Packet::parse(&packets[turn]).expect("a packet");
                assert!(matches!(receiver.tables.lookup_outbound(&parsed, &guard), Lookup::Sa(..)));
            });
        });
    }
}

fn offloads(c: &mut Criterion) {
    let (bytes, mut copy) = (packet(0, 0, 1400), vec![0; 1400]);
    c.bench_function("checksum of 1400", |b| b.iter(|| checksum::sum(black_box(&bytes), 0)));
    c.bench_function("copy and checksum of 1400", |b| {
        b.iter(|| checksum::copy_and_sum(&mut copy, black_box(&bytes), 0));
    });
    let long = packet(0, 0, 40 + 45 * 1360);
    let parsed = Packet::parse(&long).expect("a packet");
    let header = Header { checksum: Some((20, 16)), gso: Gso::TcpV4, hdr_len: 40, gso_size: 1360 };
    let mut out = vec![0; 1400];
    c.bench_function("cut into 45 packets of 1400", |b| {
        b.iter(|| {
            let segments = Segments::new(&header, parsed).expect("a super-packet");
            assert_eq!(segments.count(), 45);
            (0..45).for_each(|index| segments.write(index, 0, black_box(&mut out)));
        });
    });
    let packets: Vec<_> = (0..45).map(|index| packet(0, index, 1400)).collect();
    let mut merge = Coalescer::new(true);
    c.bench_function("merge 45 packets of 1400", |b| {
        b.iter(|| {
            let mut written = 0;
            packets.iter().for_each(|packet| merge.offer(packet, |_, _| written += 1));
            merge.flush(|_, _| written += 1);
            assert_eq!(written, 1);
        });
    });
}

/// What criterion found: nanoseconds of the median, from its own record.
fn median(name: &str) -> Option<f64> {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "../target".into());
    let folder = name.replace(':', "_");
    let file = std::path::Path::new(&target).join("criterion").join(folder).join("new/estimates.json");
    let text = std::fs::read_to_string(file).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    json["median"]["point_estimate"].as_f64()
}

/// Each of these may take so many times as long as the other.
fn goals() -> Vec<(String, String, f64)> {
    let mut goals = Vec::new();
    for (len, most) in SIZES.into_iter().zip([1.4, 1.15]) {
        for what in ["seal", "open"] {
            goals.push((format!("{what} {len}: ESP"), format!("{what} {len}: bare AEAD"), most));
        }
    }
    let window = |n: u32| format!("open 64: window {n}");
    goals.push((window(WINDOWS[1]), window(WINDOWS[0]), 1.05));
    for what in ["one of 100000 SAs", "100000 SAs in turn"] {
        goals.push((format!("open 1400: {what}"), "open 1400: 1 SAs in turn".into(), 1.2));
    }
    goals
}

fn main() {
    let quick = |c: Criterion| {
        c.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(50)
    };
    let mut c = quick(Criterion::default()).configure_from_args();
    for len in SIZES {
        seal(&mut c, len);
        open(&mut c, len);
    }
    windows(&mut c);
    many(&mut c);
    offloads(&mut c);
    c.final_summary();
    let mut lines = Vec::new();
    for (what, against, most) in goals() {
        let (Some(ours), Some(theirs)) = (median(&what), median(&against)) else { continue };
        let ratio = ours / theirs;
        let verdict = if ratio <= most { "ok" } else { "MISSED" };
        println!(
            "{what:<32} {ours:8.1} ns  {ratio:5.2}x {against:<26} {theirs:8.1} ns  goal <= {most}x  {verdict}"
        );
        lines.push(serde_json::json!({
            "what": what, "ns": ours, "against": against, "against_ns": theirs, "ratio": ratio, "goal": most,
            "reached": ratio <= most,
        }));
    }
    if let Some(file) = std::env::var_os("MOBIKEX_JSON") {
        let text = serde_json::Value::from(lines).to_string() + "\n";
        std::fs::write(file, text).expect("a file to write to");
    }
}
