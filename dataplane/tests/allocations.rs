//! The packet path allocates nothing once it is warm: counted by the global allocator, over two running packet paths with
//! real devices and sockets, whatever the scheduler and for single packets as for super-packets of TCP and UDP.
//!
//! An allocation of any thread counts, so this is one test in a program of its own, and it does nothing while it counts but
//! send and receive.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use mobikex_common::addr::{AddressSet, Path, Scheduler, WeightedPath};
use mobikex_common::alg::{Cipher, EspSuite, KeyBits};
use mobikex_common::sa::{ChildSaId, ChildSaParams, CopyDscp, EspKeys, Mode, PolicyId, VolumeLimits};
use mobikex_common::spi::{SLOT_BITS, Spi};
use mobikex_common::ts::TrafficSelector;
use mobikex_dataplane::io::{LANES, SendBatch, SendSlot, UdpSocket};
use mobikex_dataplane::{Dataplane, DataplaneConfig};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Set in the process that has a network namespace of its own.
const INSIDE: &str = "MOBIKEX_TEST_IN_NAMESPACE";
const INNER: [&str; 2] = ["10.1.0.1", "10.2.0.1"];
const PORTS: [u16; 2] = [4500, 4501];
const TUN: [&str; 2] = ["mkxa0", "mkxb0"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Two packet paths whose outer packets cross the loopback device; the rules make inner packets between the two local
/// addresses leave by the devices.
fn start() -> [Dataplane; 2] {
    run("ip link set lo up");
    let sites = [0, 1].map(|n| {
        Dataplane::start(DataplaneConfig {
            tun_name: TUN[n].into(),
            workers: 2,
            nat_t_port: PORTS[n],
            mark: 0,
            slots: 64,
            ..DataplaneConfig::default()
        })
        .unwrap()
    });
    for key in ["all.rp_filter=0", "default.rp_filter=0", "all.accept_local=1"] {
        run(&format!("sysctl -qw net.ipv4.conf.{key}"));
    }
    for n in 0..2 {
        let (device, from, to, table) = (TUN[n], INNER[n], INNER[1 - n], 101 + n);
        run(&format!("sysctl -qw net.ipv4.conf.{device}.rp_filter=0 net.ipv4.conf.{device}.accept_local=1"));
        run(&format!("ip addr add {from}/32 dev {device}"));
        run(&format!("ip link set {device} up"));
        run(&format!("ip route add default dev {device} table {table}"));
        run(&format!("ip rule add pref 10 from {from} to {to} iif lo lookup {table}"));
    }
    run("ip rule add pref 100 lookup local");
    run("ip rule del pref 0");
    sites
}

/// One side of an SA over two pairs of loopback addresses.
fn params(site: usize, id: u32, scheduler: Scheduler) -> ChildSaParams {
    let suite = EspSuite { cipher: Cipher::AesGcm16(KeyBits::B256), integrity: None, ke: None, esn: true };
    let spi = |site: usize| Spi((site as u32 + 1) << SLOT_BITS | id);
    let keys = |site: usize| EspKeys {
        encryption: vec![site as u8 + 1; suite.cipher.key_material_len()],
        integrity: Vec::new(),
    };
    let ts = |site: usize| vec![TrafficSelector::host(ip(INNER[site]))];
    let path = |n: u8| {
        let end = |site: usize| SocketAddr::new(IpAddr::from([127, 0, 0, n]), PORTS[site]);
        WeightedPath::new(Path { local: end(site), remote: end(1 - site) }, true)
    };
    ChildSaParams {
        id: ChildSaId(id),
        policy: PolicyId(id),
        worker: None,
        name: format!("test/{id}"),
        mode: Mode::Tunnel,
        spi_in: spi(site),
        spi_out: spi(1 - site),
        suite,
        keys_in: keys(site),
        keys_out: keys(1 - site),
        ts_local: ts(site),
        ts_remote: ts(1 - site),
        addresses: AddressSet {
            generation: 1,
            scheduler,
            resequence_ms: if scheduler == Scheduler::Packet { 20 } else { 0 },
            paths: vec![path(1), path(2)],
        },
        replay_window: 1024,
        limits: VolumeLimits::default(),
        copy_df: true,
        copy_dscp: CopyDscp::Out,
        tfc_padding: 0,
    }
}

/// Everything that sends and receives, made before anything is counted.
struct Traffic {
    streams: [TcpStream; 2],
    single: std::net::UdpSocket,
    many: UdpSocket,
    sink: std::net::UdpSocket,
    batch: SendBatch,
    data: Box<[u8]>,
}

impl Traffic {
    fn new() -> Self {
        let [from, to] = INNER.map(|addr| SocketAddr::new(ip(addr), 0));
        let listener = TcpListener::bind(to).unwrap();
        let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        client.bind(&from.into()).unwrap();
        client.connect_timeout(&listener.local_addr().unwrap().into(), Duration::from_secs(5)).unwrap();
        let streams = [client.into(), listener.accept().unwrap().0];
        streams.iter().for_each(|stream: &TcpStream| {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        });
        let many = UdpSocket::bind(from, 0).unwrap();
        Self {
            streams,
            single: std::net::UdpSocket::bind(from).unwrap(),
            batch: SendBatch::new([many.segments(); LANES]),
            many,
            sink: std::net::UdpSocket::bind(to).unwrap(),
            data: vec![7; 64 << 10].into_boxed_slice(),
        }
    }

    /// A round of everything: a mebibyte of TCP, small packets by themselves, and datagrams handed over as one.
    fn round(&mut self) {
        let Self { streams: [client, server], single, many, sink, batch, data } = self;
        for _ in 0..16 {
            // Small enough for the socket buffers.
            client.write_all(data).unwrap();
            server.read_exact(data).unwrap();
        }
        let remote = sink.local_addr().unwrap();
        for n in 0..200 {
            single.send_to(&data[..64 + n], remote).unwrap();
        }
        let local = many.local_addr();
        for tag in 0..20 {
            batch.reserve(1000).unwrap().fill(tag as u8);
            batch.commit(0, SendSlot { local, remote, device: 0, tos: 0, tag, len: 1000 });
        }
        assert_eq!(many.send_batch(batch, 0, |_, error| panic!("{error}")), 20);
    }
}

/// Reads of the first device so far; one of a super-packet counts once.
fn reads() -> u64 {
    let devices = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = devices.lines().find(|line| line.trim_start().starts_with(TUN[0])).unwrap();
    line.split_whitespace().nth(10).unwrap().parse().unwrap()
}

/// Allocations while `work` runs.
fn allocations(work: impl FnOnce()) -> usize {
    let region = Region::new(ALLOCATOR);
    work();
    // What is under way arrives.
    std::thread::sleep(Duration::from_millis(50));
    let change = region.change();
    change.allocations + change.reallocations
}

#[test]
fn the_packet_path_allocates_nothing() {
    if std::env::var_os(INSIDE).is_none() {
        let program = std::env::current_exe().unwrap();
        let run = |program: &std::ffi::OsStr, args: &[&str]| {
            Command::new("unshare").arg("--net").arg(program).args(args).env(INSIDE, "1").output().unwrap()
        };
        if !run("true".as_ref(), &[]).status.success() {
            return eprintln!("SKIPPED: network namespaces need CAP_SYS_ADMIN");
        }
        let output =
            run(program.as_os_str(), &["--exact", "the_packet_path_allocates_nothing", "--nocapture"]);
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        print!("{text}");
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let sites = start();
    let schedulers = [Scheduler::Flow, Scheduler::Packet, Scheduler::Redundant, Scheduler::Backup];
    for (id, scheduler) in (1..).zip(schedulers) {
        for (n, site) in sites.iter().enumerate() {
            site.tables().install(&params(n, id, scheduler), true).unwrap();
        }
        let stats = || sites.each_ref().map(|site| site.tables().stats(ChildSaId(id)).unwrap());
        let mut traffic = Traffic::new();
        // Windows have grown to their size, the epoch's own memory is taken, what waits for its turn has got its room.
        let begin = Instant::now();
        let grown =
            || stats().iter().all(|s| s.replay_highest > params(0, id, scheduler).replay_window.into());
        while begin.elapsed() < Duration::from_millis(500) || !grown() {
            traffic.round();
        }
        let (before, read) = (stats(), reads());
        let made = allocations(|| (0..8).for_each(|_| traffic.round()));
        let (after, read) = (stats(), reads() - read);
        assert_eq!(made, 0, "{scheduler:?}");
        let packets = after[1].packets_in - before[1].packets_in;
        assert!(packets > 8 * (1 << 20) / 1400, "{scheduler:?}: only {packets} packets");
        // The single packets are 1600 of them.
        assert!((1600..packets / 2).contains(&read), "{scheduler:?}: {read} reads for {packets} packets");
        assert!(after[0].packets_in > before[0].packets_in, "acknowledgements came back");
        println!("{scheduler:?}: {packets} packets there, no allocation");

        // The same, but something on a worker's thread allocates: it must show.
        sites[0].set_waker(Box::new(|| drop(std::hint::black_box(Box::new([0u8; 32])))));
        let made = allocations(|| {
            sites[0].tables().watch_traffic(&[ChildSaId(id)]);
            traffic.round();
        });
        assert!(made > 0, "a worker's allocation was not seen");
        sites[0].set_waker(Box::new(|| {}));
        sites.iter().for_each(|site| site.tables().remove(ChildSaId(id)));
    }
}
