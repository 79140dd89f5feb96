//! ICMP errors about our own packets. Raw sockets hear of them whichever socket or worker has sent the packet, and of plain
//! ESP as well.

use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use mobikex_common::wire::{esp, icmp, udp};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tracing::warn;

/// Octets that wait at most: what does not fit is a hint the less.
const QUEUE: usize = 16 * 1024;
/// More than ever wait.
const AT_ONCE: usize = 256;
/// Enough for the headers of the packet that an error quotes.
const ENOUGH: usize = 256;

pub(super) struct IcmpSockets {
    sockets: Vec<(Socket, bool)>,
}

/// Lets only Destination Unreachable pass. IPv4 packets begin with their IP header, IPv6 packets with ICMPv6.
fn filter(ipv4: bool) -> Vec<SockFilter> {
    let op = |code: u32, if_false: u8, k: u32| SockFilter::new(code as u16, 0, if_false, k);
    let kind = if ipv4 {
        vec![
            op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0),
            op(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0, 0),
            op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 3),
        ]
    } else {
        vec![
            op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0),
            op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 1),
        ]
    };
    let verdicts = [op(libc::BPF_RET | libc::BPF_K, 0, u32::MAX), op(libc::BPF_RET | libc::BPF_K, 0, 0)];
    kind.into_iter().chain(verdicts).collect()
}

fn open(ipv4: bool) -> io::Result<Socket> {
    let (domain, protocol) =
        if ipv4 { (Domain::IPV4, Protocol::ICMPV4) } else { (Domain::IPV6, Protocol::ICMPV6) };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.attach_filter(&filter(ipv4))?;
    socket.set_recv_buffer_size(QUEUE)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl IcmpSockets {
    /// A socket for each family that the system has. Without them only the hints are missing.
    pub(super) fn open() -> Self {
        let mut sockets = Vec::new();
        for ipv4 in [true, false] {
            match open(ipv4) {
                Ok(socket) => sockets.push((socket, ipv4)),
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                Err(error) => warn!(target: "NET", "cannot listen for ICMP errors: {error}"),
            }
        }
        Self { sockets }
    }

    pub(super) fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        self.sockets.iter().try_for_each(|(socket, _)| {
            registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)
        })
    }

    /// Reads what waits: source and destination of each packet of ours, from one of `ports` or plain ESP, that did not
    /// arrive, and the destination's port where there are ports.
    pub(super) fn receive(&self, ports: [u16; 2], mut handle: impl FnMut(IpAddr, IpAddr, Option<u16>)) {
        let mut buffer = [0; ENOUGH];
        for (socket, ipv4) in &self.sockets {
            for _ in 0..AT_ONCE {
                let mut socket = socket;
                let Ok(len) = socket.read(&mut buffer) else { break };
                let skip = if *ipv4 { usize::from(buffer[0] & 15) * 4 } else { 0 };
                let Some(found) = buffer[..len].get(skip..).and_then(|m| icmp::undelivered(m, *ipv4)) else {
                    continue;
                };
                match found.protocol {
                    udp::PROTOCOL if ports.contains(&found.src_port) => {
                        handle(found.src, found.dst, Some(found.dst_port));
                    }
                    esp::PROTOCOL => handle(found.src, found.dst, None),
                    _ => {}
                }
            }
        }
    }
}
