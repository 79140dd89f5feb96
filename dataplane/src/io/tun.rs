//! The TUN device: one queue per worker.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use super::sys;

/// Packets that may wait in the device; the default of 500 loses bursts.
const QUEUE_LENGTH: u16 = 2000;
/// `IFF_TUN_EXCL`: refuse to join a device that exists already.
const EXCLUSIVE: libc::c_int = 0x8000;

/// A TUN device that lives as long as its queues.
#[derive(Debug)]
pub struct Tun {
    name: String,
    index: u32,
    queues: Vec<TunQueue>,
}

/// One queue: IP packets, one per read or write, without blocking.
pub struct TunQueue(Device);

enum Device {
    Direct(File),
    /// The plain device has a single queue. All workers write to it; the first one reads.
    Shared(Arc<tun_tap::Iface>, bool),
}

impl Tun {
    /// Creates the device `name` (`%d` in it becomes a free number) with `queues` queues. A device of that name
    /// must not exist. Where the kernel knows no multiple queues, a plain device is opened and its one queue
    /// is shared for writing. The device is down and without addresses.
    pub fn create(name: &str, queues: usize, mtu: u16) -> io::Result<Self> {
        let tun = match Self::multi_queue(name, queues.max(1)) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::warn!(name, "no multi-queue TUN device here, one worker reads for all: {error}");
                Self::plain(name, queues.max(1))?
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

    /// Gives the queues away, one per worker.
    pub fn into_queues(self) -> Vec<TunQueue> {
        self.queues
    }

    fn multi_queue(name: &str, count: usize) -> io::Result<Self> {
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
        let (mut name, mut queues) = (name.to_owned(), Vec::with_capacity(count));
        for number in 0..count {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")?;
            let exclusive = if number == 0 { EXCLUSIVE } else { 0 };
            name = sys::attach_tun(file.as_fd(), &name, flags | exclusive)?;
            queues.push(TunQueue(Device::Direct(file)));
        }
        Ok(Self { index: sys::interface_index(&name)?, name, queues })
    }

    fn plain(name: &str, count: usize) -> io::Result<Self> {
        let device = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun)?;
        sys::set_nonblocking(device.as_raw_fd())?;
        let name = device.name().to_owned();
        let device = Arc::new(device);
        let queues = (0..count).map(|n| TunQueue(Device::Shared(device.clone(), n == 0))).collect();
        Ok(Self { index: sys::interface_index(&name)?, name, queues })
    }
}

impl TunQueue {
    /// Whether packets can be read here; only the first queue of a plain device reads.
    pub fn reads(&self) -> bool {
        match &self.0 {
            Device::Direct(_) => true,
            Device::Shared(_, reads) => *reads,
        }
    }

    /// Reads one packet. `WouldBlock` when there is none.
    pub fn recv(&self, packet: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Device::Direct(file) => (&mut &*file).read(packet),
            Device::Shared(device, _) => device.recv(packet),
        }
    }

    /// Writes one packet into the device: the system receives it.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        match &self.0 {
            Device::Direct(file) => (&mut &*file).write(packet),
            Device::Shared(device, _) => device.send(packet),
        }
        .map(|_| ())
    }
}

impl AsRawFd for TunQueue {
    fn as_raw_fd(&self) -> RawFd {
        match &self.0 {
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
    fn create(queues: usize) -> Option<Tun> {
        match sys::enter_new_network().and_then(|()| Tun::create("mkxt%d", queues, 1400)) {
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
        let Some(tun) = create(2) else { return };
        assert_eq!(tun.name(), "mkxt0");
        assert_ne!(tun.index(), 0);
        assert_eq!(tun.queues.len(), 2);
        let mut packet = [0; 64];
        assert_eq!(tun.queues[1].recv(&mut packet).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(Tun::create("mkxt0", 1, 1400).unwrap_err().raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn the_plain_device_reads_on_its_first_queue_only() {
        if create(1).is_none() {
            return;
        }
        let queues = Tun::plain("mkxp0", 2).unwrap().into_queues();
        assert_eq!([queues[0].reads(), queues[1].reads()], [true, false]);
    }
}
