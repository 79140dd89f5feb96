//! Small packets through a TUN device: one system call for each, as the packet path does, beside io_uring, which takes a
//! batch of reads or writes with one.
//!
//!   cargo bench -p mobikex-benches --bench tun [-- --json]
//!
//! Runs in a network namespace of its own (needs root), with a sender that keeps the device's queue full on another core.
//! The kinds take turns. What is compared is packets a second of processor time, that of the kernel's helpers for io_uring
//! included, since that is what is left for everything else.

#![allow(unsafe_code)]

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use mobikex_common::wire::ip::{Fragment, Ipv4Header};
use mobikex_common::wire::virtio::Header;
use mobikex_dataplane::io::{Tun, TunQueue};

/// Packets that are read or written at once, as the packet path does it at most.
const BATCH: usize = 64;
/// Octets of a packet, and of its place: a virtio header comes with it.
const LEN: usize = 64;
const SLOT: usize = 2048;
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(600);
const OURS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const BEHIND: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const PORT: u16 = 7777;
const INSIDE: &str = "MOBIKEX_BENCH_IN_NAMESPACE";
const KINDS: [&str; 2] = ["one call a packet", "io_uring, 64 a call"];

/// Nanoseconds of the processor that all threads of this process have had, but for one.
fn processor_time(but: u32) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc").flatten();
    let others = tasks.filter(|task| task.file_name().to_str() != Some(&but.to_string()));
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0)
    };
    others.map(|task| read(task.path())).sum()
}

/// The number of this thread.
fn this_thread() -> u32 {
    let path = std::fs::read_link("/proc/thread-self").expect("/proc");
    path.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number")
}

/// A batch of operations by io_uring on one descriptor that does not block.
struct Ring(IoUring);

impl Ring {
    fn new(fd: RawFd) -> io::Result<Self> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(BATCH as u32)?;
        ring.submitter().register_files(&[fd])?;
        Ok(Self(ring))
    }

    /// Reads into each slot, or writes `len` octets of it; how many did.
    fn run(&mut self, data: &mut [u8], write: Option<usize>) -> usize {
        let Self(ring) = self;
        for slot in data.chunks_exact_mut(SLOT) {
            let entry = match write {
                None => opcode::Read::new(types::Fixed(0), slot.as_mut_ptr(), SLOT as u32).build(),
                Some(len) => opcode::Write::new(types::Fixed(0), slot.as_ptr(), len as u32).build(),
            };
            // SAFETY: each entry points into its own slot of `data`, which stays borrowed until all of them are
            // complete: this function waits for as many completions as it has submitted.
            unsafe { ring.submission().push(&entry) }.expect("room for a batch");
        }
        let count = data.len() / SLOT;
        ring.submit_and_wait(count).expect("it is submitted");
        let done: Vec<i32> = ring.completion().map(|entry| entry.result()).collect();
        assert_eq!(done.len(), count, "all are complete");
        done.into_iter().filter(|result| *result > 0).count()
    }
}

/// Packets, seconds, and seconds of the processor.
#[derive(Clone, Copy)]
struct Run {
    packets: usize,
    seconds: f64,
    processor: f64,
}

/// Measures `batch`, which says how many packets it has moved.
fn run(sender: u32, mut batch: impl FnMut() -> usize) -> Run {
    let (begin, before, mut packets) = (Instant::now(), processor_time(sender), 0);
    while begin.elapsed() < TIME {
        packets += batch();
    }
    let processor = (processor_time(sender) - before) as f64 / 1e9;
    Run { packets, seconds: begin.elapsed().as_secs_f64(), processor }
}

struct Device {
    queue: TunQueue,
    ring: Ring,
    poll: Poll,
    events: Events,
    data: Vec<u8>,
}

impl Device {
    fn new(queue: TunQueue) -> io::Result<Self> {
        let (ring, poll) = (Ring::new(queue.as_raw_fd())?, Poll::new()?);
        poll.registry().register(&mut SourceFd(&queue.as_raw_fd()), Token(0), Interest::READABLE)?;
        Ok(Self { queue, ring, poll, events: Events::with_capacity(1), data: vec![0; BATCH * SLOT] })
    }

    /// Up to a batch of packets, waiting for the first.
    fn read(&mut self, kind: usize) -> usize {
        let packets = if kind == 0 {
            let slots = self.data.chunks_exact_mut(SLOT);
            slots.map(|slot| self.queue.recv(slot)).take_while(Result::is_ok).count()
        } else {
            self.ring.run(&mut self.data, None)
        };
        if packets < BATCH {
            let _ = self.poll.poll(&mut self.events, Some(Duration::from_millis(100)));
        }
        packets
    }

    /// A batch of packets. What is in the slots is written.
    fn write(&mut self, kind: usize, packet: &[u8]) -> usize {
        if kind == 0 {
            (0..BATCH).filter(|_| self.queue.send(&Header::default(), packet).is_ok()).count()
        } else {
            self.ring.run(&mut self.data, Some(Header::LEN + packet.len()))
        }
    }
}

/// A UDP packet from behind the device to us, without a checksum of UDP, which IPv4 allows.
fn packet() -> [u8; LEN] {
    let header = Ipv4Header {
        tos: 0,
        total_len: LEN as u16,
        identification: 0,
        dont_fragment: true,
        fragment: Fragment::default(),
        ttl: 64,
        protocol: 17,
        src: BEHIND,
        dst: OURS,
    };
    let mut packet = [7; LEN];
    packet[..Ipv4Header::LEN].copy_from_slice(&header.emit());
    let [high, low] = PORT.to_be_bytes();
    packet[Ipv4Header::LEN..][..8].copy_from_slice(&[high, low, high, low, 0, (LEN - 20) as u8, 0, 0]);
    packet
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The medians, as text or JSON. The ratio is that of packets a second of the processor.
fn report(what: &str, runs: &[Vec<Run>], json: bool) -> String {
    let rates = |of: fn(&Run) -> f64| {
        let kinds = runs.iter().map(move |kind| median(kind.iter().map(of).collect()));
        kinds.collect::<Vec<f64>>()
    };
    let plain = rates(|run| run.packets as f64 / run.seconds);
    let processor = rates(|run| run.packets as f64 / run.processor);
    if json {
        let rows = (0..KINDS.len()).map(|n| {
            format!(
                "{{\"kind\": \"{}\", \"per_s\": {:.0}, \"per_processor_s\": {:.0}}}",
                KINDS[n], plain[n], processor[n]
            )
        });
        return format!("{{\"what\": \"{what}\", \"kinds\": [{}]}}", rows.collect::<Vec<_>>().join(", "));
    }
    let row = |n: usize| {
        format!(
            "{what:<6} {:<20} {:>8.0} packets/s {:>8.0} packets/s of the processor {:>6.2}x",
            KINDS[n],
            plain[n],
            processor[n],
            processor[n] / processor[0]
        )
    };
    (0..KINDS.len()).map(row).collect::<Vec<_>>().join("\n")
}

fn inside(json: bool) {
    let shell = |line: &str| {
        let status = Command::new("sh").args(["-c", line]).status().expect("a shell");
        assert!(status.success(), "{line}");
    };
    let queue = Tun::create("mkxbench", 1, 1400, true).expect("a device").into_queues().remove(0);
    shell(&format!("ip addr add {OURS}/24 dev mkxbench && ip link set mkxbench up && ip link set lo up"));
    let mut device = Device::new(queue).expect("io_uring");
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let pin = |n: usize| cores.get(n).is_none_or(|core| core_affinity::set_for_current(*core));
    pin(0);

    let stop = AtomicBool::new(false);
    let mut reads = vec![Vec::new(); KINDS.len()];
    std::thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let stop = &stop;
        scope.spawn(move || {
            pin(1);
            tell.send(this_thread()).expect("somebody listens");
            let socket = UdpSocket::bind((OURS, 0)).expect("a socket");
            // The device drops what its queue has no room for.
            while !stop.load(Ordering::Relaxed) {
                let _ = socket.send_to(&[7; LEN - 28], (BEHIND, PORT));
            }
        });
        let sender = told.recv().expect("a sender");
        for round in 0..ROUNDS * KINDS.len() {
            let kind = round % KINDS.len();
            reads[kind].push(run(sender, || device.read(kind)));
        }
        stop.store(true, Ordering::Relaxed);
    });

    // Nobody reads there, so that packets end at a full buffer.
    let socket = UdpSocket::bind((OURS, PORT)).expect("a socket");
    let packet = packet();
    for slot in device.data.chunks_exact_mut(SLOT) {
        slot[..Header::LEN].fill(0);
        slot[Header::LEN..][..LEN].copy_from_slice(&packet);
    }
    let mut writes = vec![Vec::new(); KINDS.len()];
    for round in 0..ROUNDS * KINDS.len() {
        let kind = round % KINDS.len();
        writes[kind].push(run(0, || device.write(kind, &packet)));
    }
    drop(socket);
    let rows = [report("read", &reads, json), report("write", &writes, json)];
    if json { println!("[{}]", rows.join(", ")) } else { println!("{}", rows.join("\n")) }
}

fn main() {
    let json = std::env::args().any(|a| a == "--json");
    if std::env::var_os(INSIDE).is_some() {
        return inside(json);
    }
    let this = std::env::current_exe().expect("our own path");
    let mut command = Command::new("unshare");
    command.arg("--net").arg(this).args(json.then_some("--json")).env(INSIDE, "1");
    let status = command.status().expect("unshare");
    assert!(status.success(), "it needs root, io_uring and a TUN device");
}
