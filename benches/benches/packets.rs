//! What packets cost without I/O: sealing and opening beside the bare AEAD of the default provider, replay windows, finding an
//! SA or a policy among many, checksums, and cutting and merging super-packets.
//!
//! `cargo bench --bench packets`; after criterion's own figures come the ratios and whether the goals are reached, with
//! `MOBIKEX_JSON=FILE` also as JSON. The two sides of a ratio are measured in turn, a few microseconds each, so that what
//! else the machine does falls on both alike.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use criterion::{Bencher, Criterion};
use mobikex_benches::sample::{self, packet, sa};
use mobikex_common::crypto::provider_name;
use mobikex_common::wire::checksum;
use mobikex_common::wire::ip::Packet;
use mobikex_common::wire::virtio::{Gso, Header};
use mobikex_dataplane::counters::Tally;
use mobikex_dataplane::esp::{self, HEADROOM, IvSource, OuterInfo, ReplayTable};
use mobikex_dataplane::offload::{Coalescer, Segments};
use mobikex_dataplane::paths::Traffic;
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

/// The least that packets can cost: nothing but the AEAD, over the same octets at the same places as in [`Receiver`].
struct Bare {
    key: LessSafeKey,
    data: Vec<u8>,
    len: usize,
    number: u64,
}

impl Bare {
    fn new(len: usize) -> Self {
        Self { key: key(), data: vec![7; CHUNK * Receiver::slot(len)], len, number: 0 }
    }

    /// Does something with the number, the text and the ICV of each packet.
    fn each(&mut self, count: usize, run: impl Fn(&LessSafeKey, u64, &mut [u8], &mut [u8])) {
        for (n, slot) in (1..).zip(self.data.chunks_mut(Receiver::slot(self.len)).take(count)) {
            let (text, icv) = slot[HEADROOM + HEAD..].split_at_mut(text_len(self.len));
            run(&self.key, self.number + n, text, icv);
        }
    }

    fn seal(&mut self, count: usize) {
        self.each(count, |key, number, text, icv| {
            let sealed = key.seal_in_place_separate_tag(nonce(number), Aad::from(number.to_be_bytes()), text);
            icv.copy_from_slice(sealed.expect("it is sealed").as_ref());
        });
    }

    /// Opens what was sealed last.
    fn open(&mut self, count: usize) {
        self.each(count, |key, number, text, icv| {
            let aad = Aad::from(number.to_be_bytes());
            black_box(key.open_in_place_separate_tag(nonce(number), aad, icv, text).expect("it is opened"));
        });
        self.number += CHUNK as u64;
    }
}

/// Packets of SAs 0 to `count`, sealed by the SAs themselves, and what opens them.
struct Receiver {
    tables: Tables,
    replay: ReplayTable,
    ivs: IvSource,
    outer: OuterInfo,
    /// What is sealed as one packet many times.
    packet: Vec<u8>,
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
        let outer = OuterInfo { path: sa(0).addresses.paths[0].path, tos: 0, encap: true };
        Self { tables, replay, ivs, outer, packet: packet(0, 0, len), data, count, next: 0, len }
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
            let Lookup::Sa(sa, _) = self.tables.lookup_outbound(&parsed, 0, &guard) else { panic!("no SA") };
            esp::seal(sa, &parsed, &mut slot[HEADROOM..], &mut self.ivs).expect("it is sealed");
        }
    }

    /// Seals the same packet so many times, as a worker does with a run.
    fn seal(&mut self, count: usize) {
        let parsed = Packet::parse(&self.packet).expect("a packet");
        let guard = pin();
        let Lookup::Sa(sa, set) = self.tables.lookup_outbound(&parsed, 0, &guard) else { panic!("no SA") };
        let traffic = Traffic { flow_hash: 0, assigned: None, turn: 0, len: self.len, ends: None };
        let (path, mut tally) = (set.choose(&traffic).expect("a path"), Tally::default());
        for slot in self.data.chunks_mut(Self::slot(self.len)).take(count) {
            black_box(sample::seal(sa, path, &parsed, &mut slot[HEADROOM..], &mut self.ivs, &mut tally));
        }
    }

    /// Opens what was sealed last, as a worker does: by SPI in runs, under one guard.
    fn open(&mut self, count: usize) {
        let guard = pin();
        let slots = self.data.chunks_mut(Self::slot(self.len)).take(count);
        sample::open(&self.tables, &mut self.replay, slots, &self.outer, &guard);
    }

    /// Times the opening alone.
    fn run(&mut self, b: &mut Bencher<'_>) {
        chunks(b, self, Self::prepare, Self::open);
    }

    /// Seals a chunk, and times the opening of it.
    fn timed_open(&mut self) -> f64 {
        self.prepare(CHUNK);
        timed(|| self.open(CHUNK))
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

fn single(c: &mut Criterion, len: usize) {
    let (mut bare, mut ours) = (Bare::new(len), Receiver::new(1, 64, len));
    let nothing = |_: &mut Bare, _| ();
    c.bench_function(&format!("seal {len}: bare AEAD"), |b| chunks(b, &mut bare, nothing, Bare::seal));
    c.bench_function(&format!("seal {len}: ESP"), |b| chunks(b, &mut ours, |_, _| (), Receiver::seal));
    c.bench_function(&format!("open {len}: bare AEAD"), |b| chunks(b, &mut bare, Bare::seal, Bare::open));
    c.bench_function(&format!("open {len}: ESP"), |b| ours.run(b));
}

const WINDOWS: [u32; 2] = [64, 65_536];

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
                assert!(matches!(receiver.tables.lookup_outbound(&parsed, 0, &guard), Lookup::Sa(..)));
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

/// Nanoseconds a packet, when this is done with a chunk of them.
fn timed(run: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    run();
    begin.elapsed().as_secs_f64() * 1e9 / CHUNK as f64
}

/// Two things that are measured in turn, and how many times as long the first may take.
struct Contest {
    what: String,
    against: String,
    most: f64,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Contest {
    /// Each gives the time of one chunk when called.
    fn run(
        names: [String; 2],
        most: f64,
        mut ours: impl FnMut() -> f64,
        mut theirs: impl FnMut() -> f64,
    ) -> Self {
        let [what, against] = names;
        let mut this = Self { what, against, most, ours: Vec::new(), theirs: Vec::new() };
        let begin = Instant::now();
        while begin.elapsed() < CONTEST {
            this.ours.push(ours());
            this.theirs.push(theirs());
        }
        this
    }

    /// Prints the verdict and returns it as JSON.
    fn verdict(mut self) -> serde_json::Value {
        // Of neighbours, which ran while the machine was in the same state.
        let mut ratios: Vec<f64> =
            self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours / theirs).collect();
        let ratio = median(&mut ratios);
        let (ours, theirs) = (median(&mut self.ours), median(&mut self.theirs));
        let Self { what, against, most, .. } = self;
        let verdict = if ratio <= most { "ok" } else { "MISSED" };
        println!(
            "{what:<32} {ours:8.1} ns  {ratio:5.2}x {against:<26} {theirs:8.1} ns  goal <= {most}x  {verdict}"
        );
        serde_json::json!({
            "what": what, "ns": ours, "against": against, "against_ns": theirs, "ratio": ratio, "goal": most,
            "reached": ratio <= most,
        })
    }
}

/// How long a contest takes.
const CONTEST: Duration = Duration::from_secs(3);

fn median(times: &mut [f64]) -> f64 {
    let middle = times.len() / 2;
    *times.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// Everything that has a goal.
fn contests() -> Vec<serde_json::Value> {
    println!("ESP with AES-256-GCM by {}, the bare AEAD by aws-lc-rs", provider_name());
    let mut verdicts = Vec::new();
    for (len, most) in SIZES.into_iter().zip([1.4, 1.15]) {
        let (mut bare, mut ours) = (Bare::new(len), Receiver::new(1, 64, len));
        let names = |what| [format!("{what} {len}: ESP"), format!("{what} {len}: bare AEAD")];
        let seal =
            Contest::run(names("seal"), most, || timed(|| ours.seal(CHUNK)), || timed(|| bare.seal(CHUNK)));
        verdicts.push(seal.verdict());
        let open = Contest::run(
            names("open"),
            most,
            || ours.timed_open(),
            || {
                bare.seal(CHUNK);
                timed(|| bare.open(CHUNK))
            },
        );
        verdicts.push(open.verdict());
    }
    let [mut small, mut large] = WINDOWS.map(|window| Receiver::new(1, window, 64));
    // Until the ring is as long as it will be.
    (0..2 * WINDOWS[1] as usize / CHUNK).for_each(|_| _ = large.timed_open());
    let names = [WINDOWS[1], WINDOWS[0]].map(|window| format!("open 64: window {window}"));
    verdicts.push(Contest::run(names, 1.05, || large.timed_open(), || small.timed_open()).verdict());
    let (mut one, mut many) = (Receiver::new(1, 64, 1400), Receiver::new(COUNTS[2], 64, 1400));
    for (what, busy) in [("one of 100000 SAs", 1), ("100000 SAs in turn", COUNTS[2])] {
        many.count = busy;
        let names = [format!("open 1400: {what}"), "open 1400: one SA".into()];
        verdicts.push(Contest::run(names, 1.2, || many.timed_open(), || one.timed_open()).verdict());
    }
    verdicts
}

fn main() {
    let quick = |c: Criterion| {
        c.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(50)
    };
    let mut c = quick(Criterion::default()).configure_from_args();
    // What an SA costs at its first packet in a direction.
    c.bench_function("make an AES-256-GCM key", |b| b.iter(key));
    SIZES.into_iter().for_each(|len| single(&mut c, len));
    many(&mut c);
    offloads(&mut c);
    c.final_summary();
    let verdicts = contests();
    if let Some(file) = std::env::var_os("MOBIKEX_JSON") {
        let text = serde_json::Value::from(verdicts).to_string() + "\n";
        std::fs::write(file, text).expect("a file to write to");
    }
}
