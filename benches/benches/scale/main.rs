//! Tables with many Child SAs: what it costs to install, rekey, look up and remove one among them, and what one takes of
//! memory: while it is idle, and once it has carried packets both ways, for which both keys are made ready and there is a
//! replay window. Then what IKE SAs take in the engine. Each is measured in a process of its own, so that what is freed does
//! not hide what is used.
//!
//!   cargo bench -p mobikex-benches --bench scale [-- --json]

mod engine;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Instant;

use mobikex_benches::memory;
use mobikex_common::addr::{AddressSet, Path};
use mobikex_common::alg::{Cipher, EspSuite, KeyBits};
use mobikex_common::sa::{ChildSaId, ChildSaParams, CopyDscp, EspKeys, Mode, PolicyId, VolumeLimits};
use mobikex_common::spi::SpiAllocator;
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ip::Packet;
use mobikex_dataplane::esp::{self, HEADROOM, IvSource, OuterInfo, ReplayTable};
use mobikex_dataplane::published::pin;
use mobikex_dataplane::tables::{Lookup, Tables};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];
const LOOKUPS: u32 = 1_000_000;
/// The window that a configuration without one gets.
const WINDOW: u32 = 8192;
/// Octets that a Child SA may take in the packet path.
const GOAL: f64 = 2048.0;
/// In the environment of a child of ourselves: how many Child SAs, or which kind of IKE SA, it measures.
const SIZE: &str = "MOBIKEX_SCALE";
const KIND: &str = "MOBIKEX_SCALE_IKE";

/// The inner network of a peer.
fn net(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + (n << 4))
}

/// A UDP packet without data to this address.
fn packet(to: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    packet[..16].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 255, 0, 1]);
    packet[16..20].copy_from_slice(&to.octets());
    packet
}

struct Site {
    tables: Tables,
    spis: SpiAllocator,
    rng: ChaCha20Rng,
    next: u32,
}

impl Site {
    fn params(&mut self, peer: u32) -> ChildSaParams {
        self.next += 1;
        let suite =
            EspSuite { cipher: Cipher::AesGcm16(KeyBits::B256), integrity: None, ke: None, esn: false };
        let keys = {
            let mut encryption = vec![0; suite.cipher.key_material_len()];
            self.rng.fill_bytes(&mut encryption);
            EspKeys { encryption, integrity: Vec::new() }
        };
        let spi_in = self.spis.allocate(&mut self.rng).expect("a free slot");
        let local = SocketAddr::from(([192, 0, 2, 1], 4500));
        let remote = SocketAddr::from((Ipv4Addr::from(0xc612_0000 + peer), 4500));
        let all = "10.0.0.0/8".parse().expect("a prefix");
        ChildSaParams {
            id: ChildSaId(self.next),
            policy: PolicyId(peer + 1),
            worker: None,
            name: format!("peer/net{{{}}}", self.next),
            mode: Mode::Tunnel,
            spi_in,
            spi_out: spi_in,
            suite,
            // It opens what it has sealed.
            keys_in: keys.clone(),
            keys_out: keys,
            ts_local: vec![all],
            ts_remote: vec![TrafficSelector::prefix(IpAddr::V4(net(peer)), 28)],
            addresses: AddressSet::single(Path { local, remote }, true),
            replay_window: WINDOW,
            limits: VolumeLimits::default(),
            copy_df: true,
            copy_dscp: CopyDscp::Out,
            tfc_padding: 0,
        }
    }
}

/// Rates in operations a second, times in nanoseconds, memory in octets for each Child SA.
struct Figures {
    install: f64,
    rekey: f64,
    remove: f64,
    inbound_ns: f64,
    outbound_ns: f64,
    idle: f64,
    busy: f64,
}

fn rate(count: u32, since: Instant) -> f64 {
    f64::from(count) / since.elapsed().as_secs_f64()
}

fn measure(count: u32) -> Figures {
    let slots = 2 * count.next_power_of_two();
    let mut site = Site {
        tables: Tables::new(slots),
        spis: SpiAllocator::new(slots),
        rng: ChaCha20Rng::seed_from_u64(1),
        next: 0,
    };
    let all: Vec<ChildSaParams> = (0..count).map(|peer| site.params(peer)).collect();
    let before = memory::resident();
    let since = Instant::now();
    for params in &all {
        site.tables.install(params, true).expect("it is installed");
    }
    let install = rate(count, since);
    let idle = (memory::resident() - before) as f64 / f64::from(count);

    let guard = pin();
    let mut windows = ReplayTable::new(1);
    let (mut buffer, mut ivs) = ([0; 128], IvSource::from_seed([7; 32]));
    let outer = OuterInfo { path: all[0].addresses.paths[0].path, tos: 0, encap: true };
    for (peer, params) in (0..).zip(&all) {
        let packet = packet(net(peer));
        let parsed = Packet::parse(&packet).expect("a packet");
        let Lookup::Sa(out, _) = site.tables.lookup_outbound(&parsed, 0, &guard) else { panic!("no SA") };
        let sealed = esp::seal(out, &parsed, &mut buffer[HEADROOM..], &mut ivs).expect("it is sealed");
        let sa = site.tables.lookup_inbound(params.spi_in, &guard).expect("an SA");
        let window = windows.window(sa).expect("a window");
        let range = HEADROOM..HEADROOM + sealed.len;
        // Authentic, though from nobody whom the selectors would let in.
        assert!(esp::open(sa, window, &mut buffer, range, &outer, &guard).is_ok());
    }
    let busy = (memory::resident() - before) as f64 / f64::from(count);
    let order: Vec<usize> = (0..LOOKUPS).map(|_| site.rng.next_u32() as usize % all.len()).collect();
    let since = Instant::now();
    for n in &order {
        black_box(site.tables.lookup_inbound(all[*n].spi_in, &guard)).expect("an SA");
    }
    let inbound_ns = 1e9 / rate(LOOKUPS, since);
    let mut packet = packet(net(0));
    let since = Instant::now();
    for n in &order {
        packet[16..20].copy_from_slice(&net(*n as u32).octets());
        let parsed = Packet::parse(&packet).expect("a packet");
        assert!(matches!(black_box(site.tables.lookup_outbound(&parsed, 0, &guard)), Lookup::Sa(..)));
    }
    let outbound_ns = 1e9 / rate(LOOKUPS, since);
    drop((guard, windows, order));

    let next: Vec<ChildSaParams> = (0..count).map(|peer| site.params(peer)).collect();
    let since = Instant::now();
    for (old, new) in all.iter().zip(&next) {
        // As the responder of a rekeying asks for it.
        site.tables.install(new, false).expect("it is installed");
        site.tables.activate_outbound(new.id);
        site.tables.remove(old.id);
    }
    let rekey = rate(count, since);
    let since = Instant::now();
    for params in &next {
        site.tables.remove(params.id);
    }
    let remove = rate(count, since);
    assert!(site.tables.children().is_empty());
    Figures { install, rekey, remove, inbound_ns, outbound_ns, idle, busy }
}

impl Figures {
    fn json(&self, count: u32) -> String {
        format!(
            "{{\"child_sas\": {count}, \"install_per_s\": {:.0}, \"rekey_per_s\": {:.0}, \"remove_per_s\": {:.0}, \
             \"lookup_in_ns\": {:.1}, \"lookup_out_ns\": {:.1}, \"octets_per_idle_sa\": {:.0}, \
             \"octets_per_busy_sa\": {:.0}, \"goal_octets\": {GOAL:.0}}}",
            self.install, self.rekey, self.remove, self.inbound_ns, self.outbound_ns, self.idle, self.busy
        )
    }

    fn text(&self, count: u32) -> String {
        let verdict = |octets| if octets <= GOAL { "ok" } else { "MISSED" };
        format!(
            "{count:>9} {:>10.0} {:>10.0} {:>10.0} {:>10.1} {:>10.1} {:>10.0} {:>7} {:>10.0} {:>7}",
            self.install,
            self.rekey,
            self.remove,
            self.inbound_ns,
            self.outbound_ns,
            self.idle,
            verdict(self.idle),
            self.busy,
            verdict(self.busy)
        )
    }
}

/// Our own output when it is run with this in its environment.
fn child(variable: &str, value: &str, json: bool) -> String {
    let this = std::env::current_exe().expect("our own path");
    let mut command = Command::new(this);
    command.args(json.then_some("--json")).env(variable, value);
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_string()
}

/// What IKE SAs of one kind take of memory, as text or JSON.
fn engine_row(kind: usize, json: bool) -> String {
    let (name, settings, version) = engine::KINDS[kind];
    let octets = engine::measure(settings, version);
    if json {
        format!("{{\"kind\": \"{name}\", \"octets\": {octets:.0}, \"goal_octets\": {:.0}}}", engine::GOAL)
    } else {
        format!("{name:>12} {octets:>8.0} {}", if octets <= engine::GOAL { "ok" } else { "MISSED" })
    }
}

fn main() {
    let json = std::env::args().any(|a| a == "--json");
    // The children of ourselves, each of which measures one thing.
    let wanted = |variable| std::env::var(variable).ok().map(|text| text.parse::<u32>().expect("a number"));
    if let Some(count) = wanted(SIZE) {
        let figures = measure(count);
        return println!("{}", if json { figures.json(count) } else { figures.text(count) });
    }
    if let Some(kind) = wanted(KIND) {
        return println!("{}", engine_row(kind as usize, json));
    }
    let rows = SIZES.map(|count| child(SIZE, &count.to_string(), json));
    let engines: Vec<String> =
        (0..engine::KINDS.len()).map(|kind| child(KIND, &kind.to_string(), json)).collect();
    if json {
        println!(
            "{{\"replay_window\": {WINDOW}, \"results\": [{}], \"ike_sas\": [{}]}}",
            rows.join(", "),
            engines.join(", ")
        );
    } else {
        println!(
            "Child SAs in one process; operations a second, nanoseconds a lookup, octets an SA (goal <= {GOAL})"
        );
        println!(
            "{:>9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>7} {:>10} {:>7}",
            "SAs", "install/s", "rekey/s", "remove/s", "in ns", "out ns", "idle", "", "busy", ""
        );
        rows.iter().for_each(|row| println!("{row}"));
        println!(
            "{} IKE SAs with a Child SA each in the engine; octets an IKE SA (goal <= {})",
            engine::COUNT,
            engine::GOAL
        );
        engines.iter().for_each(|row| println!("{row}"));
    }
}
