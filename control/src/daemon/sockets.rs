//! The UDP sockets of IKE: port 500, and the control thread's members of the encapsulation port's groups.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use mobikex_common::wire::esp::{Datagram, NON_ESP_MARKER, classify};
use mobikex_dataplane::io::{Meta, RecvBatch, UdpSocket};
use tracing::{debug, warn};

use super::DaemonError;

/// Batches taken from one socket before the others have their turn.
const BATCHES: usize = 4;

/// What a socket received.
pub(super) enum Received<'a> {
    /// An IKE message; `nat_t` when it came with the non-ESP marker.
    Ike { local: SocketAddr, remote: SocketAddr, nat_t: bool, message: &'a [u8] },
    /// An ESP packet that steering has not sent to its worker.
    Esp(Meta, &'a [u8]),
}

struct Port {
    socket: UdpSocket,
    encapsulation: bool,
}

pub(super) struct IkeSockets {
    ports: Vec<Port>,
    batch: RecvBatch,
}

impl IkeSockets {
    /// Opens the IKE port and takes over the encapsulation port's control members.
    pub(super) fn open(port: u16, mark: u32, encapsulation: Vec<UdpSocket>) -> Result<Self, DaemonError> {
        let has_v6 = encapsulation.iter().any(|s| s.local_addr().is_ipv6());
        let mut ports: Vec<Port> =
            encapsulation.into_iter().map(|socket| Port { socket, encapsulation: true }).collect();
        let bind =
            |addr: SocketAddr| UdpSocket::bind(addr, mark).map_err(|error| DaemonError::Port { port, error });
        let v4 = bind((Ipv4Addr::UNSPECIFIED, port).into())?;
        ports.push(Port { socket: v4, encapsulation: false });
        if has_v6 {
            let v6 = bind((Ipv6Addr::UNSPECIFIED, port).into())?;
            ports.push(Port { socket: v6, encapsulation: false });
        }
        Ok(Self { ports, batch: RecvBatch::new() })
    }

    /// Registers every socket, with tokens from 0 on; returns how many there are.
    pub(super) fn register(&self, registry: &Registry) -> io::Result<usize> {
        for (index, port) in self.ports.iter().enumerate() {
            let fd = port.socket.as_raw_fd();
            registry.register(&mut SourceFd(&fd), Token(index), Interest::READABLE)?;
        }
        Ok(self.ports.len())
    }

    /// Reads some of what waits on a socket; true if there may be more.
    pub(super) fn receive(&mut self, index: usize, mut handle: impl FnMut(Received<'_>)) -> bool {
        let Some(port) = self.ports.get(index) else { return false };
        for _ in 0..BATCHES {
            match port.socket.recv_batch(&mut self.batch) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // ICMP errors of earlier packets come back here (RFC 7296 2.4: they prove nothing).
                Err(error) => {
                    debug!(target: "NET", "receiving on {}: {error}", port.socket.local_addr());
                    continue;
                }
            }
            for (meta, data) in self.batch.iter() {
                let (local, remote) = (meta.local, meta.remote);
                if !port.encapsulation {
                    handle(Received::Ike { local, remote, nat_t: false, message: data });
                    continue;
                }
                match classify(data) {
                    Datagram::Ike(message) => {
                        handle(Received::Ike { local, remote, nat_t: true, message });
                    }
                    Datagram::Esp => handle(Received::Esp(meta, data)),
                    Datagram::Keepalive | Datagram::Short => {}
                }
            }
        }
        true
    }

    /// Sends a datagram from the socket that has `local`'s port and family, by the interface `device` (0: the system
    /// chooses).
    pub(super) fn send(&self, local: SocketAddr, remote: SocketAddr, device: u32, nat_t: bool, data: &[u8]) {
        let fits = |port: &&Port| {
            let bound = port.socket.local_addr();
            bound.port() == local.port() && bound.is_ipv4() == local.is_ipv4()
        };
        let Some(port) = self.ports.iter().find(fits) else {
            return warn!(target: "NET", "no socket to send from {local}");
        };
        let marked = nat_t.then(|| [&NON_ESP_MARKER[..], data].concat());
        if let Err(error) = port.socket.send_to(local, remote, device, marked.as_deref().unwrap_or(data), 0) {
            warn!(target: "NET", "sending from {local} to {remote} failed: {error}");
        }
    }
}
