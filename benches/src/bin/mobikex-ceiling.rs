//! What the machine can carry at most the way mobikex does it: packets of a TUN device in datagrams, and back, with the
//! packet path's own I/O and offloads but without SAD, SPD, replay window, counters, paths or IKE.
//!
//!     mobikex-ceiling TUN none|aes-gcm LOCAL:PORT REMOTE:PORT
//!
//! creates the device TUN (down, without addresses) and forwards until it is killed. `none` sends packets as they are, in
//! the place that ESP would give them; `aes-gcm` seals them by AES-256-GCM with a key that everybody can read here. Only to
//! be measured, never to be used: both ends count their nonces from one.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use mobikex_common::alg::{Cipher, KeyBits};
use mobikex_common::crypto::PacketCipher;
use mobikex_common::wire::ip::Packet;
use mobikex_dataplane::io::{
    BATCH, LANES, PASS_READ, PASS_SEND, Place, RecvBatch, SendBatch, SendSlot, TUN_READ, Tun, TunOffload,
    TunQueue, UdpSocket,
};
use mobikex_dataplane::offload::{Coalescer, Segments, complete_checksum};

/// As mobikex has it by default.
const MTU: u16 = 1400;
/// What ESP puts before a packet: SPI and sequence number, and the IV, which are the number twice here.
const HEAD: usize = 16;
const IV: usize = 8;
/// And behind it: Pad Length, Next Header and, at its least, padding, then the ICV.
const TRAILER: usize = 2;
const ICV: usize = 16;
/// Passes without asking the system for the other source, as in a worker.
const PASSES: u32 = 4;

struct Forwarder {
    tun: TunQueue,
    udp: UdpSocket,
    cipher: Option<PacketCipher>,
    remote: SocketAddr,
    number: u64,
    read: Box<[u8]>,
    batch: SendBatch,
    received: RecvBatch,
    merge: Option<Coalescer>,
}

impl Forwarder {
    fn new(device: &str, cipher: &str, local: SocketAddr, remote: SocketAddr) -> io::Result<Self> {
        let cipher = match cipher {
            "none" => None,
            "aes-gcm" => Some(
                PacketCipher::new(Cipher::AesGcm16(KeyBits::B256), None, &[1; 36], &[])
                    .map_err(io::Error::other)?,
            ),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "the cipher is none or aes-gcm")),
        };
        let tun = Tun::create(device, 1, MTU, true)?;
        let tun = tun.into_queues().pop().ok_or(io::ErrorKind::NotFound)?;
        let udp = UdpSocket::bind(local, 0)?;
        udp.set_dont_fragment(true)?;
        udp.merge_received()?;
        let offload = tun.offload();
        Ok(Self {
            batch: SendBatch::new([udp.segments(); LANES]),
            tun,
            udp,
            cipher,
            remote,
            number: 0,
            read: vec![0; TUN_READ].into_boxed_slice(),
            received: RecvBatch::new(),
            merge: (offload > TunOffload::Packets).then(|| Coalescer::new(offload == TunOffload::TcpUdp)),
        })
    }

    /// One batch from the device; whether there may be more.
    fn out(&mut self) -> bool {
        let (mut octets, mut more) = (0, true);
        for _ in 0..BATCH {
            if octets > PASS_READ - TUN_READ {
                break;
            }
            match self.tun.recv(&mut self.read) {
                Ok((header, range)) => {
                    octets += range.len();
                    let bytes = &mut self.read[range];
                    if complete_checksum(&header, bytes).is_err() {
                        continue;
                    }
                    let Ok(packet) = Packet::parse(bytes) else { continue };
                    let Ok(segments) = Segments::new(&header, packet) else { continue };
                    if !self.batch.fits(segments.count(), 1, segments.count() * (segments.longest() + 48)) {
                        self.udp.send_batch(&mut self.batch, 0, |_, _| {});
                    }
                    for index in 0..segments.count() {
                        let text = segments.len(index) + TRAILER;
                        let len = HEAD + text.next_multiple_of(4) + ICV;
                        let Some(out) = self.batch.reserve(len) else { break };
                        let (head, text) = out.split_at_mut(HEAD);
                        let (text, icv) = text.split_at_mut(len - HEAD - ICV);
                        segments.write(index, 0, text);
                        self.number += 1;
                        let number = self.number.to_be_bytes();
                        head[..IV].copy_from_slice(&number);
                        head[IV..].copy_from_slice(&number);
                        if let Some(cipher) = &self.cipher {
                            let (aad, iv) = head.split_at(IV);
                            let sealed = cipher.seal(iv, aad, &[], text, icv);
                            sealed.expect("lengths are those of the cipher");
                        }
                        let (local, remote) = (self.udp.local_addr(), self.remote);
                        self.batch.commit(0, SendSlot { local, remote, device: 0, tos: 0, tag: 0, len });
                    }
                    if self.batch.octets() >= PASS_SEND {
                        self.udp.send_batch(&mut self.batch, 0, |_, _| {});
                    }
                }
                Err(_) => {
                    more = false;
                    break;
                }
            }
        }
        self.udp.send_batch(&mut self.batch, 0, |_, _| {});
        more
    }

    /// One batch from the socket; whether there may be more.
    fn back(&mut self) -> bool {
        let Self { tun, udp, cipher, received, merge, .. } = self;
        if let Err(error) = udp.recv_batch(received) {
            return error.kind() != io::ErrorKind::WouldBlock;
        }
        let mut next = Place::default();
        while received.get(next).is_some() {
            let at = next;
            next = received.after(at);
            let (_, buffer, start) = received.with_headroom(at);
            let packet = &mut buffer[start..];
            let Some(len) = packet.len().checked_sub(HEAD + ICV) else { continue };
            let (head, rest) = packet.split_at_mut(HEAD);
            let (text, icv) = rest.split_at_mut(len);
            let (aad, iv) = head.split_at(IV);
            if cipher.as_ref().is_some_and(|cipher| cipher.open(iv, aad, &[], text, icv).is_err()) {
                continue;
            }
            // The packet tells its own length; behind it is padding.
            let Ok(inner) = Packet::parse(text) else { continue };
            // What the device does not take is lost, as on any link.
            match merge {
                Some(merge) => merge.offer(inner.bytes(), |header, packet| _ = tun.send(header, packet)),
                None => _ = tun.send(&Default::default(), inner.bytes()),
            }
        }
        if let Some(merge) = merge {
            merge.flush(|header, packet| _ = tun.send(header, packet));
        }
        true
    }

    fn run(mut self) -> io::Result<()> {
        let mut poll = Poll::new()?;
        let sources = [self.tun.as_raw_fd(), self.udp.as_raw_fd()];
        for (token, fd) in sources.iter().enumerate() {
            poll.registry().register(&mut SourceFd(fd), Token(token), Interest::READABLE)?;
        }
        let (mut events, mut ready, mut passes) = (Events::with_capacity(8), [true; 2], 0u32);
        loop {
            let busy = ready.contains(&true);
            if !busy || passes % PASSES == 0 {
                match poll.poll(&mut events, busy.then_some(Duration::ZERO)) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => events.iter().for_each(|event| ready[event.token().0] = true),
                }
            }
            passes = passes.wrapping_add(1);
            if ready[0] {
                ready[0] = self.out();
            }
            if ready[1] {
                ready[1] = self.back();
            }
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [device, cipher, local, remote] = arguments.as_slice() else {
        eprintln!("usage: mobikex-ceiling TUN none|aes-gcm LOCAL:PORT REMOTE:PORT");
        return ExitCode::from(2);
    };
    let ends = local.parse().and_then(|local| Ok((local, remote.parse()?))).map_err(io::Error::other);
    let result = ends.and_then(|(local, remote)| Forwarder::new(device, cipher, local, remote)?.run());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mobikex-ceiling: {error}");
            ExitCode::FAILURE
        }
    }
}
