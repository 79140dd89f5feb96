//! Small datagrams, more than can be carried, counted where they arrive.
//!
//!     mobikex-flood receive ADDRESS:PORT SECONDS
//!         waits for the first, then counts for SECONDS after half a second more; prints packets a second
//!     mobikex-flood send LOCAL:PORT REMOTE:PORT OCTETS SECONDS
//!         datagrams of OCTETS octets, handed over many at once where the system cuts them; prints packets a second
//!
//! What was handed over at once reaches a device that takes no super-packets (`ip link set DEVICE gso_max_segs 1`) one by
//! one. The sender does not wait for the device, so that its queue overflows as under any overload.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use mobikex_dataplane::io::{BATCH, LANES, RecvBatch, SendBatch, SendSlot, UdpSocket};

/// Until queues and caches are as they will be.
const WARM: Duration = Duration::from_millis(500);
/// For the first datagram to arrive.
const PATIENCE: Duration = Duration::from_secs(20);

fn receive(at: SocketAddr, seconds: f64) -> io::Result<f64> {
    let socket = UdpSocket::bind(at, 0)?;
    let mut batch = RecvBatch::new();
    let begin = Instant::now();
    let (mut from, mut packets) = (None, 0usize);
    let time = Duration::from_secs_f64(seconds);
    loop {
        let count = match socket.recv_batch(&mut batch) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                sleep(Duration::from_micros(200));
                0
            }
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        match from {
            None if count > 0 => from = Some(now + WARM),
            None if now - begin > PATIENCE => return Err(ErrorKind::TimedOut.into()),
            None => {}
            Some(from) if now >= from + time => return Ok(packets as f64 / seconds),
            Some(from) if now >= from => packets += count,
            Some(_) => {}
        }
    }
}

fn send(local: SocketAddr, remote: SocketAddr, len: usize, seconds: f64) -> io::Result<f64> {
    let socket = UdpSocket::bind(local, 0)?;
    let mut batch = SendBatch::new([socket.segments(); LANES]);
    let (begin, time) = (Instant::now(), Duration::from_secs_f64(seconds));
    let mut packets = 0;
    while begin.elapsed() < time {
        for tag in 0..BATCH {
            batch.reserve(len).ok_or(ErrorKind::InvalidInput)?.fill(0);
            batch.commit(0, SendSlot { local, remote, device: 0, tos: 0, tag, len });
        }
        packets += BATCH;
        // What the device has no room for is offered all the same.
        socket.send_batch(&mut batch, 0, |_, _| {});
    }
    Ok(packets as f64 / begin.elapsed().as_secs_f64())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let bad = || io::Error::from(ErrorKind::InvalidInput);
    let addr = |text: &str| text.parse::<SocketAddr>().map_err(|_| bad());
    let number = |text: &str| text.parse::<f64>().map_err(|_| bad());
    let result = match words[..] {
        ["receive", at, seconds] => addr(at).and_then(|at| receive(at, number(seconds)?)),
        ["send", local, remote, octets, seconds] => addr(local)
            .and_then(|local| send(local, addr(remote)?, number(octets)? as usize, number(seconds)?)),
        _ => Err(bad()),
    };
    match result {
        Ok(rate) => {
            println!("{rate:.0}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mobikex-flood: {error}");
            ExitCode::FAILURE
        }
    }
}
