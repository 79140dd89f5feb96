//! The TUN device: one queue per worker. With offloads a packet has a virtio header before it, and may stand for many.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use mobikex_common::wire::virtio::Header;

use super::sys;

/// Octets that [`TunQueue::recv`] needs: the longest super-packet and its header.
pub const TUN_READ: usize = Header::LEN + 40 + 65_536;

/// A packet of so many octets is copied behind its header rather than written in two pieces, which takes the system longer.
const SMALL: usize = 256;

/// Packets that may wait in the device; the default of 500 loses bursts.
const QUEUE_LENGTH: u16 = 2000;
/// `IFF_TUN_EXCL`: refuse to join a device that exists already.
const EXCLUSIVE: libc::c_int = 0x8000;

/// Checksums are left to us, and TCP comes in super-packets.
const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// So does UDP; Linux 6.2 and later.
const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// What a TUN device moves at once, in both directions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TunOffload {
    /// Packets.
    Packets,
    /// Super-packets of TCP too.
    Tcp,
    /// And of UDP.
    TcpUdp,
}

/// A TUN device that lives as long as its queues.
#[derive(Debug)]
pub struct Tun {
    name: String,
    index: u32,
    offload: TunOffload,
    queues: Vec<TunQueue>,
}

/// One queue: IP packets, one per read or write, without blocking.
pub struct TunQueue {
    device: Device,
    offload: TunOffload,
}

enum Device {
    Direct(File),
    /// The plain device has a single queue. All workers write to it; the first one reads.
    Shared(Arc<tun_tap::Iface>, bool),
}

impl Tun {
    /// Creates the device `name` (`%d` in it becomes a free number) with `queues` queues, and offloads if `offload`
    /// and as far as the kernel has them. A device of that name must not exist. Where the kernel knows no multiple
    /// queues, a plain device is opened and its one queue is shared for writing. The device is down and without
    /// addresses.
    pub fn create(name: &str, queues: usize, mtu: u16, offload: bool) -> io::Result<Self> {
        let queues = queues.max(1);
        let offloading = if offload { Self::offloading(name, queues)? } else { None };
        let tun = match offloading.map_or_else(|| Self::multi_queue(name, queues, 0), Ok) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::warn!(name, "no multi-queue TUN device here, one worker reads for all: {error}");
                Self::plain(name, queues)?
            }
            other => other?,
        };
        let socket =
            std::net::UdpSocket::bind("[::1]:0").or_else(|_| std::net::UdpSocket::bind("127.0.0.1:0"));
        // Any socket will do; loopback may be down in a fresh namespace, but binding works all the same.
        let socket = socket.or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))?;
        sys::set_mtu(socket.as_fd(), &tun.name, mtu)?;
        sys::set_queue_length(socket.as_fd(), &tun.name, QUEUE_LENGTH)?;
        Ok(tun)
    }

    /// The name that the device got.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What the device moves at once.
    pub fn offload(&self) -> TunOffload {
        self.offload
    }

    /// Gives the queues away, one per worker.
    pub fn into_queues(self) -> Vec<TunQueue> {
        self.queues
    }

    /// A device with offloads; `None` where the kernel does not offer them.
    fn offloading(name: &str, count: usize) -> io::Result<Option<Self>> {
        let mut tun = match Self::multi_queue(name, count, libc::IFF_VNET_HDR) {
            Ok(tun) => tun,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Device::Direct(file) = &tun.queues[0].device else { return Ok(None) };
        let offers = [(TunOffload::TcpUdp, TCP | UDP), (TunOffload::Tcp, TCP)];
        let taken = offers.iter().find(|(_, features)| sys::set_tun_offload(file.as_fd(), *features).is_ok());
        let Some((offload, _)) = taken else { return Ok(None) };
        tun.offload = *offload;
        tun.queues.iter_mut().for_each(|queue| queue.offload = *offload);
        Ok(Some(tun))
    }

    fn multi_queue(name: &str, count: usize, more: libc::c_int) -> io::Result<Self> {
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | more;
        let (mut name, mut queues) = (name.to_owned(), Vec::with_capacity(count));
        let offload = TunOffload::Packets;
        for number in 0..count {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")?;
            let exclusive = if number == 0 { EXCLUSIVE } else { 0 };
            name = sys::attach_tun(file.as_fd(), &name, flags | exclusive)?;
            queues.push(TunQueue { device: Device::Direct(file), offload });
        }
        Ok(Self { index: sys::interface_index(&name)?, name, offload, queues })
    }

    fn plain(name: &str, count: usize) -> io::Result<Self> {
        let device = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun)?;
        sys::set_nonblocking(device.as_raw_fd())?;
        let name = device.name().to_owned();
        let (device, offload) = (Arc::new(device), TunOffload::Packets);
        let queue = |n| TunQueue { device: Device::Shared(device.clone(), n == 0), offload };
        let queues = (0..count).map(queue).collect();
        Ok(Self { index: sys::interface_index(&name)?, name, offload, queues })
    }
}

impl TunQueue {
    /// Whether packets can be read here; only the first queue of a plain device reads.
    pub fn reads(&self) -> bool {
        match &self.device {
            Device::Direct(_) => true,
            Device::Shared(_, reads) => *reads,
        }
    }

    /// What the queue moves at once.
    pub fn offload(&self) -> TunOffload {
        self.offload
    }

    /// Reads one packet into `buffer` ([`TUN_READ`] octets): what its header says, and where it lies. `WouldBlock`
    /// when there is none.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<(Header, Range<usize>)> {
        let len = match &self.device {
            Device::Direct(file) => (&mut &*file).read(buffer)?,
            Device::Shared(device, _) => device.recv(buffer)?,
        };
        if self.offload == TunOffload::Packets {
            return Ok((Header::default(), 0..len));
        }
        let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        Ok((Header::parse(&buffer[..len]).map_err(bad)?, Header::LEN..len))
    }

    /// Writes one packet into the device: the system receives it. A header that says more than nothing is for
    /// devices with offloads only.
    pub fn send(&self, header: &Header, packet: &[u8]) -> io::Result<()> {
        match &self.device {
            Device::Direct(file) if self.offload == TunOffload::Packets => (&mut &*file).write(packet),
            Device::Direct(file) if packet.len() <= SMALL => {
                let mut whole = [0; Header::LEN + SMALL];
                whole[..Header::LEN].copy_from_slice(&header.emit());
                whole[Header::LEN..][..packet.len()].copy_from_slice(packet);
                (&mut &*file).write(&whole[..Header::LEN + packet.len()])
            }
            Device::Direct(file) => {
                (&mut &*file).write_vectored(&[IoSlice::new(&header.emit()), IoSlice::new(packet)])
            }
            Device::Shared(device, _) => device.send(packet),
        }
        .map(|_| ())
    }
}

impl AsRawFd for TunQueue {
    fn as_raw_fd(&self) -> RawFd {
        match &self.device {
            Device::Direct(file) => file.as_raw_fd(),
            Device::Shared(device, _) => device.as_raw_fd(),
        }
    }
}

impl std::fmt::Debug for TunQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TunQueue({})", self.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each test runs in a namespace of its own, so the name is free.
    fn create(queues: usize, offload: bool) -> Option<Tun> {
        match sys::enter_new_network().and_then(|()| Tun::create("mkxt%d", queues, 1400, offload)) {
            Ok(tun) => Some(tun),
            Err(error) => {
                let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound];
                assert!(kinds.contains(&error.kind()), "{error}");
                eprintln!("SKIPPED: a TUN device needs CAP_NET_ADMIN and /dev/net/tun: {error}");
                None
            }
        }
    }

    #[test]
    fn a_device_has_the_queues_asked_for_and_cannot_be_joined() {
        for offload in [false, true] {
            let Some(tun) = create(2, offload) else { return };
            assert_eq!(tun.name(), "mkxt0");
            assert_ne!(tun.index(), 0);
            assert_eq!(tun.queues.len(), 2);
            assert_eq!(tun.offload() == TunOffload::Packets, !offload, "{:?}", tun.offload());
            assert!(tun.queues.iter().all(|queue| queue.offload() == tun.offload()));
            let mut packet = [0; 64];
            assert_eq!(tun.queues[1].recv(&mut packet).unwrap_err().kind(), io::ErrorKind::WouldBlock);
            let again = Tun::create("mkxt0", 1, 1400, offload).unwrap_err();
            assert_eq!(again.raw_os_error(), Some(libc::EBUSY));
        }
    }

    #[test]
    fn the_plain_device_reads_on_its_first_queue_only() {
        if create(1, true).is_none() {
            return;
        }
        let queues = Tun::plain("mkxp0", 2).unwrap().into_queues();
        assert_eq!([queues[0].reads(), queues[1].reads()], [true, false]);
    }
}
