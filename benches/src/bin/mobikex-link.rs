//! An emulated link: frames between two TAP devices, with a rate, a delay, a queue and loss in each direction.
//!
//!     mobikex-link LEFT RIGHT RULES [RULES-BACK]
//!
//! creates the devices LEFT and RIGHT (they may be moved to other network namespaces) and carries frames until SIGTERM
//! or SIGINT; then it prints what it did as one JSON object. `RULES` are those of `mobikex_benches::shaper::Rules`, for
//! frames from LEFT to RIGHT; the way back has the same unless it is given its own.

use std::io::ErrorKind;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use mobikex_benches::shaper::{Lost, Rules, Shaper};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tun_tap::{Iface, Mode};

/// Frames on their way in one direction, at most: a link without a rate must be bounded too.
const IN_FLIGHT: usize = 16 << 10;
/// Longer than any frame of a TAP device with an ordinary MTU.
const FRAME_MAX: usize = 16 << 10;
/// A frame that leaves this long after its time counts as late.
const LATE: Duration = Duration::from_millis(1);

#[derive(Default)]
struct Counters {
    frames: AtomicU64,
    octets: AtomicU64,
    queue: AtomicU64,
    wire: AtomicU64,
    late: AtomicU64,
    late_sum_ns: AtomicU64,
    late_max_ns: AtomicU64,
}

struct Frame {
    due: Duration,
    octets: Box<[u8]>,
}

/// One direction: a thread that reads and decides, and one that waits and writes.
struct Direction {
    from: Arc<Iface>,
    to: Arc<Iface>,
    rules: Rules,
    seed: u64,
    start: Instant,
    counters: Arc<Counters>,
}

impl Direction {
    fn run(self) -> std::io::Result<()> {
        let Self { from, to, rules, seed, start, counters } = self;
        let (entering, leaving) = sync_channel(IN_FLIGHT);
        let counted = counters.clone();
        thread::Builder::new().name("out".into()).spawn(move || write(&to, &leaving, start, &counted))?;
        let read = move || read(&from, Shaper::new(rules, seed), &entering, start, &counters);
        thread::Builder::new().name("in".into()).spawn(read)?;
        Ok(())
    }
}

fn read(from: &Iface, mut shaper: Shaper, frames: &SyncSender<Frame>, start: Instant, counters: &Counters) {
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        let length = match from.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => fail(&format!("{}: {error}", from.name())),
        };
        let fate = shaper.pass(start.elapsed(), length).and_then(|due| {
            let frame = Frame { due, octets: buffer[..length].into() };
            frames.try_send(frame).map_err(|_| Lost::Queue)
        });
        match fate {
            Ok(()) => {}
            Err(Lost::Queue) => drop(counters.queue.fetch_add(1, Relaxed)),
            Err(Lost::Wire) => drop(counters.wire.fetch_add(1, Relaxed)),
        }
    }
}

fn write(to: &Iface, frames: &Receiver<Frame>, start: Instant, counters: &Counters) {
    for frame in frames {
        let early = frame.due.saturating_sub(start.elapsed());
        if !early.is_zero() {
            thread::sleep(early);
        }
        let late = start.elapsed().saturating_sub(frame.due);
        let nanos = late.as_nanos() as u64;
        counters.late.fetch_add(u64::from(late > LATE), Relaxed);
        counters.late_sum_ns.fetch_add(nanos, Relaxed);
        counters.late_max_ns.fetch_max(nanos, Relaxed);
        // A device that is down takes nothing: what is sent over a link to it is lost.
        if to.send(&frame.octets).is_ok() {
            counters.frames.fetch_add(1, Relaxed);
            counters.octets.fetch_add(frame.octets.len() as u64, Relaxed);
        }
    }
}

fn fail(why: &str) -> ! {
    eprintln!("mobikex-link: {why}");
    std::process::exit(1)
}

fn report(from: &str, to: &str, counters: &Counters) -> String {
    let get = |counter: &AtomicU64| counter.load(Relaxed);
    let frames = get(&counters.frames);
    format!(
        "{{\"from\":\"{from}\",\"to\":\"{to}\",\"frames\":{frames},\"octets\":{},\"dropped_queue\":{},\"lost_wire\":{},\
         \"late_1ms\":{},\"late_mean_us\":{},\"late_max_us\":{}}}",
        get(&counters.octets),
        get(&counters.queue),
        get(&counters.wire),
        get(&counters.late),
        get(&counters.late_sum_ns) / frames.max(1) / 1000,
        get(&counters.late_max_ns) / 1000,
    )
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (left, right, forth, back) = match arguments.as_slice() {
        [left, right, rules] => (left, right, rules, rules),
        [left, right, forth, back] => (left, right, forth, back),
        _ => {
            eprintln!("usage: mobikex-link LEFT RIGHT RULES [RULES-BACK]");
            return ExitCode::from(2);
        }
    };
    let tap = |name: &str| match Iface::without_packet_info(name, Mode::Tap) {
        Ok(tap) => Arc::new(tap),
        Err(error) => fail(&format!("no TAP device {name}: {error}")),
    };
    let rules = |text: &str| text.parse::<Rules>().unwrap_or_else(|error| fail(&error.to_string()));
    let (forth, back) = (rules(forth), rules(back));
    let mut signals = Signals::new([SIGTERM, SIGINT]).unwrap_or_else(|error| fail(&error.to_string()));
    let (left, right) = (tap(left), tap(right));
    let start = Instant::now();
    let both = [Arc::<Counters>::default(), Arc::default()];
    let ways = [(&left, &right, forth), (&right, &left, back)];
    for (seed, ((from, to, rules), counters)) in (1..).zip(ways.into_iter().zip(&both)) {
        let (from, to, counters) = (from.clone(), to.clone(), counters.clone());
        let direction = Direction { from, to, rules, seed, start, counters };
        direction.run().unwrap_or_else(|error| fail(&format!("no thread: {error}")));
    }
    signals.forever().next();
    let line = |n: usize| report(ways[n].0.name(), ways[n].1.name(), &both[n]);
    println!("[{},{}]", line(0), line(1));
    ExitCode::SUCCESS
}
