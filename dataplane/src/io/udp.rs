//! UDP sockets that know which of our addresses a datagram was sent to and choose the one to send from.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::batch::{Meta, RecvBatch, SendBatch, SendSlot};
use super::message::{Control, Name};
use super::sys::{self, Header};

/// Receive and send buffer asked for; a burst of a few milliseconds at 10 Gbit/s.
const BUFFER: usize = 4 << 20;

/// A UDP socket of one family, non-blocking, usually bound to a wildcard address.
///
/// IPv4 packets leave without DF until [`set_dont_fragment`](Self::set_dont_fragment) says otherwise, so that
/// large IKE messages are fragmented rather than lost.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    local: SocketAddr,
}

impl UdpSocket {
    /// Binds `addr` alone: a second socket on it is an error. Packets carry `mark` (0 = none), which keeps them
    /// out of the tunnel's routing rule. IPv6 sockets do not take IPv4.
    pub fn bind(addr: SocketAddr, mark: u32) -> io::Result<Self> {
        Self::open(addr, mark, false)
    }

    /// Binds `addr` as the next member of its `SO_REUSEPORT` group. The order of binding is the index that
    /// [`steering`](super::steering) uses.
    pub fn bind_group(addr: SocketAddr, mark: u32) -> io::Result<Self> {
        Self::open(addr, mark, true)
    }

    fn open(addr: SocketAddr, mark: u32, group: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        prepare(&socket, addr.is_ipv4(), mark)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if group {
            socket.set_reuse_port(true)?;
        }
        socket.bind(&addr.into())?;
        let local = socket.local_addr()?.as_socket().unwrap_or(addr);
        let socket = Self { socket, local };
        socket.set_dont_fragment(false)?;
        Ok(socket)
    }

    /// Another handle of the same socket.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, local: self.local })
    }

    /// The address and port that the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether the system cuts messages into datagrams (`UDP_SEGMENT`).
    pub fn segments(&self) -> bool {
        sys::set_option(self.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
    }

    /// Has the system merge datagrams of equal size into one message (`UDP_GRO`). The group's program sees the first
    /// of them only, so the others may belong to anybody.
    ///
    /// # Errors
    /// When the system cannot.
    pub fn merge_received(&self) -> io::Result<()> {
        sys::set_option(self.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)
    }

    /// Receives up to a batch of messages without waiting. `WouldBlock` when there are none.
    pub fn recv_batch(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        let bound = self.local;
        batch.receive(self.socket.as_fd(), |header, _| Some((meta(header, bound)?, 0)))
    }

    /// Sends one datagram from `local` (the address only; the port is the socket's) to `remote`, by the interface
    /// of index `device` (0 = by route).
    pub fn send_to(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        device: u32,
        data: &[u8],
        tos: u8,
    ) -> io::Result<()> {
        send_one(self.socket.as_fd(), local, remote, device, data, tos)
    }

    /// Sends a lane of a batch and empties it; see [`SendBatch`]. Returns how many packets the system took.
    pub fn send_batch(
        &self,
        batch: &mut SendBatch,
        lane: usize,
        failed: impl FnMut(&SendSlot, io::Error),
    ) -> usize {
        batch.flush(lane, self.socket.as_fd(), failed)
    }

    /// Whether packets may be fragmented on their way. With `true`, IPv4 carries DF and what exceeds the path
    /// MTU that the system knows is refused with `EMSGSIZE`; with `false` the system fragments it.
    pub fn set_dont_fragment(&self, on: bool) -> io::Result<()> {
        set_dont_fragment(self.socket.as_fd(), self.local.is_ipv4(), on)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The MTU of the path between two addresses by the interface of index `device` (0 = by route), as the system's
/// routes and its record of ICMP errors have it. Costs several system calls; nothing is sent.
pub fn path_mtu(local: IpAddr, remote: SocketAddr, device: u32, mark: u32) -> io::Result<u16> {
    let socket = Socket::new(Domain::for_address(remote), Type::DGRAM, Some(Protocol::UDP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    if device != 0 {
        sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, device as libc::c_int)?;
    }
    if local.is_ipv4() == remote.is_ipv4() && !local.is_unspecified() {
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    // A raw path has no port, and UDP cannot be connected to port 0.
    let target = SocketAddr::new(remote.ip(), if remote.port() == 0 { 4500 } else { remote.port() });
    socket.connect(&target.into())?;
    let mtu = if remote.is_ipv4() {
        sys::option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU)?
    } else {
        sys::option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU)?
    };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// What every outer socket has: non-blocking, marked, large buffers, destination and traffic class on receipt.
pub(super) fn prepare(socket: &Socket, ipv4: bool, mark: u32) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    let fd = socket.as_fd();
    if ipv4 {
        sys::set_option(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
        sys::set_option(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    } else {
        sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    // The forced forms pass net.core.{r,w}mem_max and need CAP_NET_ADMIN; without it take what is allowed.
    let bytes = BUFFER as libc::c_int;
    if sys::set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    if sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    Ok(())
}

/// `IP_PMTUDISC_DO` for DF, `IP_PMTUDISC_DONT` without, and the IPv6 counterparts.
///
/// `DO` lets the kernel check ICMP errors against our sockets, keep the path MTU with its own floor and expiry,
/// and refuse what is too big before it leaves. `PROBE` would ignore that record and lose packets silently on
/// every path narrower than the interface; `WANT` would fragment behind the back of a sender that asked for DF.
pub(super) fn set_dont_fragment(fd: BorrowedFd<'_>, ipv4: bool, on: bool) -> io::Result<()> {
    if ipv4 {
        let value = if on { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_DONT };
        sys::set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)
    } else {
        let value = if on { libc::IPV6_PMTUDISC_DO } else { libc::IPV6_PMTUDISC_DONT };
        sys::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)
    }
}

pub(super) fn send_one(
    fd: BorrowedFd<'_>,
    local: SocketAddr,
    remote: SocketAddr,
    device: u32,
    data: &[u8],
    tos: u8,
) -> io::Result<()> {
    let (name, name_len) = Name::new(remote);
    let (control, control_len) = Control::new(local, remote, device, tos);
    let header =
        Header { name, name_len, control, control_len, offset: 0, len: data.len(), truncated: false };
    sys::send_many(fd, data, &[header]).map(|_| ())
}

/// Addresses of a received datagram; `bound` supplies the port and stands in where the kernel names no address.
pub(super) fn meta(header: &Header, bound: SocketAddr) -> Option<Meta> {
    let remote = header.name.address(header.name_len)?;
    let info = header.control.info(header.control_len);
    let mut local = SocketAddr::new(info.local.unwrap_or(bound.ip()), bound.port());
    if let SocketAddr::V6(v6) = &mut local
        && v6.ip().is_unicast_link_local()
    {
        v6.set_scope_id(info.ifindex);
    }
    Some(Meta { remote, local, ifindex: info.ifindex, tos: info.tos })
}

#[cfg(test)]
mod tests {
    use super::super::batch::{HEADROOM, LANES, Place};
    use super::*;

    fn bind(addr: &str) -> UdpSocket {
        UdpSocket::bind(addr.parse().unwrap(), 0).unwrap()
    }

    fn receive(socket: &UdpSocket, batch: &mut RecvBatch) -> usize {
        for _ in 0..100 {
            match socket.recv_batch(batch) {
                Ok(count) => return count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                Err(error) => panic!("{error}"),
            }
        }
        0
    }

    /// A socket on the wildcard address learns which address was used, and answers from any of ours.
    #[test]
    fn source_and_destination_are_the_packets_own() {
        for (wildcard, from, to) in [("0.0.0.0:0", "127.0.0.3", "127.0.0.2"), ("[::]:0", "::1", "::1")] {
            let (a, b) = (bind(wildcard), bind(wildcard));
            let source = SocketAddr::new(from.parse().unwrap(), 9);
            let target = SocketAddr::new(to.parse().unwrap(), b.local_addr().port());
            a.send_to(source, target, 0, b"hello", 0xb8).unwrap();
            let mut batch = RecvBatch::new();
            assert_eq!(receive(&b, &mut batch), 1);
            let (meta, data) = batch.iter().next().unwrap();
            assert_eq!(data, b"hello");
            assert_eq!(meta.remote, SocketAddr::new(source.ip(), a.local_addr().port()));
            assert_eq!(meta.local, target);
            assert_eq!(meta.tos, 0xb8);
            assert_ne!(meta.ifindex, 0);
        }
    }

    /// Packets of these lengths, each full of its number, go out as one batch by `lane`.
    fn queue(out: &mut SendBatch, lane: usize, slot: SendSlot, lens: &[usize]) {
        for (tag, len) in lens.iter().enumerate() {
            out.reserve(*len).unwrap().fill(tag as u8);
            out.commit(lane, SendSlot { tag, len: *len, ..slot });
        }
    }

    fn slot(to: &UdpSocket) -> SendSlot {
        let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let remote = SocketAddr::new(local.ip(), to.local_addr().port());
        SendSlot { local, remote, device: 0, tos: 0, tag: 0, len: 1 }
    }

    /// All packets of however many messages, by number and length.
    fn collect(socket: &UdpSocket, count: usize) -> Vec<(u8, usize)> {
        let (mut batch, mut seen) = (RecvBatch::new(), Vec::new());
        while seen.len() < count {
            assert_ne!(receive(socket, &mut batch), 0, "{seen:?}");
            for (_, data) in batch.iter() {
                assert!(data.iter().all(|octet| *octet == data[0]));
                seen.push((data[0], data.len()));
            }
        }
        seen
    }

    #[test]
    fn a_batch_crosses_in_order_and_one_refused_packet_does_not_stop_it() {
        let (a, b) = (bind("0.0.0.0:0"), bind("0.0.0.0:0"));
        for segments in [false, true] {
            let mut out = SendBatch::new([segments; LANES]);
            for tag in 0..64usize {
                let len = 1 + tag / 3;
                out.reserve(len).unwrap().fill(tag as u8);
                // Number 7 goes out from an address that is not ours.
                let local = if tag == 7 { "192.0.2.1:0" } else { "127.0.0.1:0" }.parse().unwrap();
                out.commit(0, SendSlot { local, tag, len, ..slot(&b) });
            }
            let mut refused = Vec::new();
            assert_eq!(a.send_batch(&mut out, 0, |slot, _| refused.push((slot.tag, slot.len))), 63);
            assert_eq!(refused, [(7, 3)]);
            assert!(out.is_empty() && out.octets() == 0);
            let expected: Vec<_> = (0..64).filter(|n| *n != 7).map(|n| (n, 1 + usize::from(n) / 3)).collect();
            assert_eq!(collect(&b, 63), expected);
        }
    }

    /// Equal sizes become one message, which a shorter one ends, and at most 64 of them or 64 KiB.
    #[test]
    fn packets_of_equal_size_are_cut_by_the_system_and_merged_again() {
        let (a, b, plain) = (bind("0.0.0.0:0"), bind("0.0.0.0:0"), bind("0.0.0.0:0"));
        if !a.segments() || b.merge_received().is_err() {
            return eprintln!("SKIPPED: this system neither cuts nor merges datagrams");
        }
        let cases: [(&[usize], usize); 6] = [
            (&[100, 100, 100, 40, 100], 2),
            (&[100, 101, 101, 100, 99], 3),
            (&[1408; 47], 2),
            (&[20; 130], 3),
            (&[9], 1),
            (&[40_000, 40_000], 2),
        ];
        for (lens, messages) in cases {
            for to in [&b, &plain] {
                let mut out = SendBatch::new([true; LANES]);
                queue(&mut out, 0, slot(to), lens);
                assert_eq!(out.len(0), messages, "{lens:?}");
                assert_eq!(a.send_batch(&mut out, 0, |_, error| panic!("{error}")), lens.len());
                let expected: Vec<_> = lens.iter().enumerate().map(|(n, len)| (n as u8, *len)).collect();
                assert_eq!(collect(to, lens.len()), expected);
            }
        }
        // What is merged comes as one message with all its packets, each with the octets before it.
        let mut out = SendBatch::new([true; LANES]);
        queue(&mut out, 0, slot(&b), &[500, 500, 7]);
        a.send_batch(&mut out, 0, |_, error| panic!("{error}"));
        let mut batch = RecvBatch::new();
        assert_eq!((receive(&b, &mut batch), batch.iter().count()), (1, 3));
        let mut at = Place::default();
        for (index, len) in [500, 500, 7].into_iter().enumerate() {
            let (_, buffer, start) = batch.with_headroom(at);
            assert!(start >= HEADROOM && buffer[start..] == vec![index as u8; len]);
            at = batch.after(at);
        }
        assert_eq!(batch.get(at), None);
    }

    /// Each packet that is refused is told with its own tag, and what comes next is not held up.
    #[test]
    fn a_run_that_cannot_be_sent_is_tried_packet_by_packet() {
        let (a, b) = (bind("0.0.0.0:0"), bind("0.0.0.0:0"));
        if !a.segments() {
            return eprintln!("SKIPPED: this system does not cut datagrams");
        }
        let mut out = SendBatch::new([true; LANES]);
        // An address that is not ours.
        queue(&mut out, 0, SendSlot { local: "192.0.2.1:0".parse().unwrap(), ..slot(&b) }, &[30, 30, 30, 10]);
        assert_eq!(out.len(0), 1);
        let mut refused = Vec::new();
        assert_eq!(
            a.send_batch(&mut out, 0, |slot, error| refused.push((slot.tag, slot.len, error.kind()))),
            0
        );
        let kind = refused[0].2;
        assert_eq!(refused, [(0, 30, kind), (1, 30, kind), (2, 30, kind), (3, 10, kind)]);
        queue(&mut out, 0, slot(&b), &[30, 30]);
        assert_eq!(a.send_batch(&mut out, 0, |_, error| panic!("{error}")), 2);
        assert_eq!(collect(&b, 2), [(0, 30), (1, 30)]);
    }

    #[test]
    fn a_copy_shares_the_buffer_and_lanes_fill_up() {
        let (a, b) = (bind("0.0.0.0:0"), bind("0.0.0.0:0"));
        for segments in [false, true] {
            let mut out = SendBatch::new([segments; LANES]);
            out.commit_copy(0, slot(&b));
            assert!(out.is_empty(), "there is nothing to copy yet");
            for tag in 0..2u8 {
                out.reserve(1).unwrap()[0] = tag;
                let slot = SendSlot { tag: tag.into(), ..slot(&b) };
                out.commit(0, slot);
                out.commit_copy(1, slot);
                out.commit_copy(1, SendSlot { tos: 1, ..slot });
            }
            assert_eq!((out.len(0), out.len(1)), if segments { (1, 2) } else { (2, 4) });
            assert_eq!(a.send_batch(&mut out, 0, |_, error| panic!("{error}")), 2);
            out.reserve(1).unwrap()[0] = 9;
            let sent = a.send_batch(&mut out, 1, |_, error| panic!("{error}"));
            assert_eq!(sent, 4, "the buffers were kept for lane 1");
            let mut seen = collect(&b, 6);
            seen[2..].sort_unstable();
            assert_eq!(seen, [(0, 1), (1, 1), (0, 1), (0, 1), (1, 1), (1, 1)]);
        }
        let mut out = SendBatch::new([false; LANES]);
        let mut copies = 0;
        while out.fits(1, 1, 1) {
            out.reserve(1);
            if copies == 0 {
                out.commit(0, slot(&b))
            } else {
                out.commit_copy(0, slot(&b))
            }
            copies += 1;
        }
        assert_eq!((out.len(0), out.fits(0, 1, 1)), (copies, true));
        assert_eq!((out.discard(0), out.octets()), (copies, 0));
        assert!(out.reserve(1 << 20).is_none() && !out.fits(1, 1, 1 << 20));
    }

    #[test]
    fn too_big_without_fragments_is_refused_and_the_mtu_is_known() {
        let (a, b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        assert_eq!(path_mtu("127.0.0.1".parse().unwrap(), b.local_addr(), 0, 0).unwrap(), u16::MAX);
        a.set_dont_fragment(true).unwrap();
        let error = a.send_to(a.local_addr(), b.local_addr(), 0, &[0; 65_508], 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn an_exclusive_port_cannot_be_shared() {
        let a = bind("127.0.0.1:0");
        assert!(UdpSocket::bind_group(a.local_addr(), 0).is_err());
    }
}
