//! Raw sockets for plain ESP (IP protocol 50).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::batch::{RecvBatch, SendBatch, SendSlot};
use super::udp::{self, meta};
use super::{steering, sys};

/// IP protocol number of ESP (RFC 4303 2).
const PROTOCOL_ESP: i32 = 50;

/// A raw socket for ESP of one family, non-blocking. Packets begin with the ESP header in both directions.
#[derive(Debug)]
pub struct RawEspSocket {
    socket: Socket,
    any: SocketAddr,
}

impl RawEspSocket {
    /// A socket that receives the ESP packets whose SPI belongs to `worker` of `workers`. Every raw socket gets
    /// its own copy of each packet, so a filter that drops the others is part of opening it. Needs CAP_NET_RAW.
    pub fn open(ipv4: bool, mark: u32, worker: usize, workers: usize) -> io::Result<Self> {
        let domain = if ipv4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(PROTOCOL_ESP)))?;
        // From socket() until the filter is there, foreign packets may be queued; the reader hands those over.
        sys::attach_program(
            socket.as_fd(),
            libc::SO_ATTACH_FILTER,
            &steering::raw_filter(ipv4, worker, workers),
        )?;
        udp::prepare(&socket, ipv4, mark)?;
        udp::set_dont_fragment(socket.as_fd(), ipv4, false)?;
        let any: IpAddr = if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        Ok(Self { socket, any: SocketAddr::new(any, 0) })
    }

    /// Another handle of the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, any: self.any })
    }

    /// Receives up to a batch of packets without waiting. `WouldBlock` when there are none. IPv4 headers, which
    /// the kernel leaves in front, are skipped.
    pub fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        let any = self.any;
        batch.receive(self.socket.as_fd(), |header, bytes| {
            let skip = if any.is_ipv4() { usize::from(bytes.first()? & 0x0f) * 4 } else { 0 };
            let mut meta = meta(header, any)?;
            // The kernel puts the protocol number where a port would be.
            meta.remote.set_port(0);
            Some((meta, skip))
        })
    }

    /// Sends one packet from `local` to `remote` by the interface of index `device` (0 = by route); ports are
    /// ignored.
    pub fn send_to(
        &self,
        local: SocketAddr,
        mut remote: SocketAddr,
        device: u32,
        data: &[u8],
        tos: u8,
    ) -> io::Result<()> {
        remote.set_port(0);
        udp::send_one(self.socket.as_fd(), local, remote, device, data, tos)
    }

    /// Sends a lane of a batch and empties it; the ports of its addresses must be 0. Returns how many the system took.
    pub fn send_batch(
        &self,
        batch: &mut SendBatch,
        lane: usize,
        failed: impl FnMut(&SendSlot, io::Error),
    ) -> usize {
        batch.flush(lane, self.socket.as_fd(), failed)
    }

    /// As [`UdpSocket::set_dont_fragment`](super::UdpSocket::set_dont_fragment).
    pub fn set_dont_fragment(&self, on: bool) -> io::Result<()> {
        udp::set_dont_fragment(self.socket.as_fd(), self.any.is_ipv4(), on)
    }
}

impl AsFd for RawEspSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for RawEspSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
