//! Steering by SPI: classic BPF programs that give each ESP packet to the worker that owns its SA.
//!
//! Our SPIs carry the SAD slot (see `mobikex_common::spi`), and `slot % workers` is the owner. On the UDP side
//! the members of a port's `SO_REUSEPORT` group are numbered in the order of binding: index 0 is the control
//! thread's socket, index 1 + n is worker n's. Datagrams with the non-ESP marker (RFC 3948 2.2) and those too
//! short for an SPI, keep-alives among them, go to index 0.

use std::io;

use libc::sock_filter;
use mobikex_common::spi::MAX_SLOTS;

use super::{UdpSocket, sys};

const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_WORD_AT_X: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_IND;
/// X = 4 * (octet at k & 0x0f): the length of an IPv4 header.
const LOAD_HEADER_LEN: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
const ADD: u32 = libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const RETURN_ACCUMULATOR: u32 = libc::BPF_RET | libc::BPF_A;

/// Attaches the group's program to the group that `member` is in; do so when all members are bound.
pub fn steer_group(member: &UdpSocket, workers: usize) -> io::Result<()> {
    use std::os::fd::AsFd;
    sys::attach_program(member.as_fd(), libc::SO_ATTACH_REUSEPORT_CBPF, &group_program(workers))
}

/// Leaves the choice to the kernel's hash again, as where programs cannot be attached.
#[cfg(test)]
pub(crate) fn unsteer_group(member: &UdpSocket) -> io::Result<()> {
    use std::os::fd::AsFd;
    sys::set_option(member.as_fd(), libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, 0)
}

/// The program of a UDP group; it sees the UDP payload. A load beyond the end of it ends the program with 0.
fn group_program(workers: usize) -> [sock_filter; 7] {
    [
        op(LOAD_WORD, 0),
        jump(JUMP_IF_EQUAL, 0, 0, 1),
        op(RETURN, 0),
        op(AND, MAX_SLOTS - 1),
        op(MODULO, workers.max(1) as u32),
        op(ADD, 1),
        op(RETURN_ACCUMULATOR, 0),
    ]
}

/// The filter of a raw ESP socket: keep what belongs to `worker`. IPv4 packets begin with their IP header,
/// IPv6 packets with the ESP header. A load beyond the end drops the packet.
pub(super) fn raw_filter(ipv4: bool, worker: usize, workers: usize) -> Vec<sock_filter> {
    let mut code =
        if ipv4 { vec![op(LOAD_HEADER_LEN, 0), op(LOAD_WORD_AT_X, 0)] } else { vec![op(LOAD_WORD, 0)] };
    code.extend([
        op(AND, MAX_SLOTS - 1),
        op(MODULO, workers.max(1) as u32),
        jump(JUMP_IF_EQUAL, worker as u32, 0, 1),
        op(RETURN, u32::MAX),
        op(RETURN, 0),
    ]);
    code
}

fn op(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(code: u32, k: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter { code: code as u16, jt: if_true, jf: if_false, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{RawEspSocket, RecvBatch};
    use mobikex_common::spi::{Spi, SpiAllocator};
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;
    use std::collections::HashSet;
    use std::net::SocketAddr;
    use std::time::Duration;

    const WORKERS: usize = 2;

    fn drain(mut receive: impl FnMut(&mut RecvBatch) -> io::Result<usize>) -> Vec<Vec<u8>> {
        std::thread::sleep(Duration::from_millis(50));
        let (mut batch, mut seen) = (RecvBatch::new(), Vec::new());
        while receive(&mut batch).is_ok() {
            seen.extend(batch.iter().map(|(_, data)| data.to_vec()));
        }
        seen
    }

    fn esp(spi: Spi) -> [u8; 24] {
        let mut packet = [0x5a; 24];
        packet[..4].copy_from_slice(&spi.to_be_bytes());
        packet
    }

    #[test]
    fn each_datagram_reaches_the_owner_of_its_spi_and_ike_reaches_control() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let control = UdpSocket::bind_group(any.parse().unwrap(), 0).unwrap();
            let target = control.local_addr();
            let workers: Vec<_> = (0..WORKERS).map(|_| UdpSocket::bind_group(target, 0).unwrap()).collect();
            steer_group(&control, WORKERS).unwrap();

            let mut rng = ChaCha20Rng::seed_from_u64(3);
            let mut spis = SpiAllocator::new(64);
            let spis: Vec<_> = (0..40).map(|_| spis.allocate(&mut rng).unwrap()).collect();
            for (index, spi) in spis.iter().enumerate() {
                // Many senders: a hash over addresses and ports would spread them otherwise.
                let sender = UdpSocket::bind(SocketAddr::new(target.ip(), 0), 0).unwrap();
                sender.send_to(sender.local_addr(), target, 0, &esp(*spi), 0).unwrap();
                if index % 4 == 0 {
                    sender.send_to(sender.local_addr(), target, 0, b"\0\0\0\0ike", 0).unwrap();
                    sender.send_to(sender.local_addr(), target, 0, &[0xff], 0).unwrap();
                }
            }
            let at_control = drain(|batch| control.recv_batch(batch));
            assert_eq!(at_control.len(), 20);
            assert!(at_control.iter().all(|data| data.len() < 8));
            for (worker, socket) in workers.iter().enumerate() {
                let got: HashSet<_> = drain(|batch| socket.recv_batch(batch)).into_iter().collect();
                let own = spis.iter().filter(|spi| spi.worker(WORKERS) == worker);
                assert_eq!(got, own.map(|spi| esp(*spi).to_vec()).collect());
            }
        }
    }

    #[test]
    fn raw_sockets_get_only_their_own_spis() {
        let open = |ipv4, worker| RawEspSocket::open(ipv4, 0, worker, WORKERS);
        for (ipv4, addr) in [(true, "127.0.0.1:0"), (false, "[::1]:0")] {
            let sockets = match (open(ipv4, 0), open(ipv4, 1)) {
                (Ok(a), Ok(b)) => [a, b],
                (Err(error), _) | (_, Err(error)) => {
                    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                    eprintln!("SKIPPED: raw sockets need CAP_NET_RAW: {error}");
                    return;
                }
            };
            let here: SocketAddr = addr.parse().unwrap();
            for slot in 0..20 {
                sockets[0].send_to(here, here, 0, &esp(Spi(1 << 20 | slot)), 0).unwrap();
            }
            for (worker, socket) in sockets.iter().enumerate() {
                let got = drain(|batch| socket.recv_batch(batch));
                assert_eq!(got.len(), 10, "worker {worker}, IPv4 {ipv4}");
                assert!(got.iter().all(|data| data.len() == 24 && usize::from(data[3] % 2) == worker));
            }
        }
    }
}
