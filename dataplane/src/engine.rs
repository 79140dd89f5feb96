//! The facade: everything that the control thread needs of the packet path.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use mio::{Poll, Waker};
use mobikex_common::addr::WeightedPath;
use mobikex_common::drop::DropReason;
use mobikex_common::sa::ChildSaId;
use mobikex_common::spi::MAX_SLOTS;
use mobikex_common::wire::echo::Echo;

use crate::counters::{DropCounters, DropCounts, WaitCounters, Waits};
use crate::esp::IvSource;
use crate::io::{Meta, RawEspSocket, Tun, TunOffload, UdpSocket, steering};
use crate::paths::FlowTable;
use crate::published::pin;
use crate::sad::WORKERS_MAX;
use crate::tables::Tables;
use crate::upcall::{Upcall, Upcalls};
use crate::worker::{self, Ring, Sockets, WAKE, Worker};

/// How the packet path is set up. Nothing of it changes while it runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataplaneConfig {
    /// Name of the TUN device; `%d` in it becomes a free number.
    pub tun_name: String,
    /// MTU of the TUN device.
    pub tun_mtu: u16,
    /// Worker threads, at least one.
    pub workers: usize,
    /// Pin worker n to the n-th core that this process may use.
    pub pin: bool,
    /// UDP port of encapsulated ESP, usually 4500; 0 takes a free one.
    pub nat_t_port: u16,
    /// Mark of the outer packets, which keeps them out of the tunnel; 0 for none.
    pub mark: u32,
    /// Inbound SAs at most.
    pub slots: u32,
    /// Also carry plain ESP (IP protocol 50).
    pub raw_esp: bool,
    /// Move many packets at once where the system can: super-packets of the TUN device, datagrams that the system cuts
    /// and merges.
    pub offload: bool,
    /// How long a worker that has had work looks for more before it waits for some; zero waits at once.
    pub busy_poll: Duration,
}

impl Default for DataplaneConfig {
    fn default() -> Self {
        Self {
            tun_name: "mobikex%d".into(),
            tun_mtu: 1400,
            workers: 1,
            pin: false,
            nat_t_port: 4500,
            mark: 0x6d6b,
            slots: 131_072,
            raw_esp: false,
            offload: true,
            busy_poll: Duration::ZERO,
        }
    }
}

/// Why the packet path did not start.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The configuration is out of bounds.
    #[error("{0}")]
    Config(&'static str),
    /// The TUN device.
    #[error("cannot create the TUN device {name}: {source}{}", tun_hint(.source))]
    Tun {
        /// Its name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A socket.
    #[error("cannot open the {what}: {source}")]
    Socket {
        /// Which one.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Threads, timers, randomness.
    #[error("cannot start the workers: {0}")]
    System(#[from] io::Error),
}

fn tun_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (CAP_NET_ADMIN is needed)",
        Some(libc::EBUSY) => " (a device of this name exists; is another instance running?)",
        Some(libc::ENOENT) => " (there is no /dev/net/tun)",
        _ => "",
    }
}

/// What workers and control thread share.
pub(crate) struct Shared {
    pub(crate) tables: Tables,
    pub(crate) flows: FlowTable,
    pub(crate) drops: Box<[DropCounters]>,
    pub(crate) waits: Box<[WaitCounters]>,
    pub(crate) rings: Box<[Ring]>,
    pub(crate) upcalls: Upcalls,
    pub(crate) stop: AtomicBool,
    pub(crate) mark: u32,
    started: Instant,
}

impl Shared {
    /// The workers' coarse clock; starts at 1 because 0 stands for "never" in the counters.
    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }
}

/// The running packet path. Dropping it stops the workers and removes the TUN device.
pub struct Dataplane {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    upcalls: Receiver<Upcall>,
    control: Vec<UdpSocket>,
    /// For echoes: handles of the control thread's sockets and of one worker's raw ones.
    sockets: Sockets,
    tun_name: String,
    tun_index: u32,
    port: u16,
    steered: bool,
}

impl Dataplane {
    /// Creates the TUN device (down, without addresses) and the sockets, and starts the workers.
    ///
    /// # Errors
    /// When something that was asked for cannot be had. IPv6 sockets are left out, with a warning, where the
    /// system has no IPv6.
    pub fn start(config: DataplaneConfig) -> Result<Self, DataplaneError> {
        if config.workers == 0 || config.workers > WORKERS_MAX {
            return Err(DataplaneError::Config("there must be 1 to 256 workers"));
        }
        if config.slots == 0 || config.slots > MAX_SLOTS {
            return Err(DataplaneError::Config("there must be 1 to 1048576 slots for inbound SAs"));
        }
        let tun = Tun::create(&config.tun_name, config.workers, config.tun_mtu, config.offload)
            .map_err(|source| DataplaneError::Tun { name: config.tun_name.clone(), source })?;
        let (tun_name, tun_index) = (tun.name().to_owned(), tun.index());

        let v4 = Group::bind(Ipv4Addr::UNSPECIFIED.into(), config.nat_t_port, &config)?;
        let port = v4.control.local_addr().port();
        let v6 = match Group::bind(Ipv6Addr::UNSPECIFIED.into(), port, &config) {
            Err(DataplaneError::Socket { source, .. }) if no_ipv6(&source) => {
                tracing::warn!("no IPv6 here, outer addresses will be IPv4 only: {source}");
                None
            }
            other => Some(other?),
        };
        let segments = config.offload && v4.control.segments();
        if config.offload {
            tell_missing(tun.offload(), segments, v4.merged);
        }
        let steered = v4.steered && v6.as_ref().is_none_or(|group| group.steered);
        let has_v6 = v6.is_some();
        let (mut v6_workers, mut control) = (Vec::new(), vec![v4.control]);
        let mut own = Sockets { udp4: Some(control[0].try_clone()?), udp6: None, raw4: None, raw6: None };
        if let Some(group) = v6 {
            own.udp6 = Some(group.control.try_clone()?);
            control.push(group.control);
            v6_workers = group.workers;
        }

        let polls = (0..config.workers).map(|_| Poll::new()).collect::<io::Result<Vec<_>>>()?;
        let wakers = polls.iter().map(|poll| Waker::new(poll.registry(), WAKE));
        let rings = wakers.map(|waker| waker.map(Ring::new)).collect::<io::Result<_>>()?;
        let (upcalls, receiver) = Upcalls::new();
        let shared = Arc::new(Shared {
            tables: Tables::new(config.slots),
            flows: FlowTable::new(),
            drops: (0..config.workers).map(|_| DropCounters::new()).collect(),
            waits: (0..config.workers).map(|_| WaitCounters::default()).collect(),
            rings,
            upcalls,
            stop: AtomicBool::new(false),
            mark: config.mark,
            started: Instant::now(),
        });
        let mut this = Self {
            shared: shared.clone(),
            threads: Vec::new(),
            upcalls: receiver,
            control,
            sockets: own,
            tun_name,
            tun_index,
            port,
            steered,
        };

        let cores = if config.pin { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
        if config.pin && cores.len() < config.workers {
            tracing::warn!(
                workers = config.workers,
                cores = cores.len(),
                "more workers than cores to pin to"
            );
        }
        let mut v6_workers = v6_workers.into_iter();
        let parts = polls.into_iter().zip(tun.into_queues()).zip(v4.workers);
        for (index, ((poll, queue), udp4)) in parts.enumerate() {
            let raw = |ipv4| open_raw(ipv4, index, &config);
            let sockets = Sockets {
                udp4: Some(udp4),
                udp6: v6_workers.next(),
                raw4: if config.raw_esp { Some(raw(true)?) } else { None },
                raw6: if config.raw_esp && has_v6 { Some(raw(false)?) } else { None },
            };
            if index == 0 {
                this.sockets.raw4 = sockets.raw4.as_ref().map(RawEspSocket::try_clone).transpose()?;
                this.sockets.raw6 = sockets.raw6.as_ref().map(RawEspSocket::try_clone).transpose()?;
            }
            let core = cores.get(index).copied();
            let worker =
                Worker::new(index, shared.clone(), poll, queue, sockets, segments, config.busy_poll)?;
            this.spawn(index, worker, core)?;
        }
        tracing::info!(tun = this.tun_name, port, workers = config.workers, steered, "packet path is up");
        Ok(this)
    }

    fn spawn(
        &mut self,
        index: usize,
        worker: Worker,
        core: Option<core_affinity::CoreId>,
    ) -> Result<(), DataplaneError> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name(format!("mobikex-w{index}")).spawn(move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                tracing::warn!(worker = index, core = core.id, "the worker cannot be pinned");
            }
            // Tells the control thread also when the worker panics.
            let _farewell = Farewell { shared: &shared, index };
            worker::run(worker);
        })?;
        self.threads.push(thread);
        Ok(())
    }

    /// The control thread's members of the encapsulation port's groups: IPv4, and IPv6 where there is IPv6. They
    /// receive what carries the non-ESP marker and keep-alives. The first call takes them all.
    pub fn control_sockets(&mut self) -> Vec<UdpSocket> {
        std::mem::take(&mut self.control)
    }

    /// The SAs and policies that the workers use.
    pub fn tables(&self) -> &Tables {
        &self.shared.tables
    }

    /// Sends an ESP echo on exactly this path, be it limited, of weight 0 or of no set. The answer comes as
    /// [`Upcall::Echo`].
    ///
    /// # Errors
    /// When there is no such SA, the SA is at its end, no socket for the path, or the system refuses.
    pub fn send_echo(&self, child: ChildSaId, path: &WeightedPath, echo: &Echo) -> Result<(), DropReason> {
        let sa = self.shared.tables.outbound(child).ok_or(DropReason::OutNoSa)?;
        let mut ivs = IvSource::from_system().map_err(|_| DropReason::OutSend)?;
        worker::echo::send(&sa, path, &echo.emit(), &self.sockets, &mut ivs, &pin())
    }

    /// Events from the workers.
    pub fn upcalls(&self) -> &Receiver<Upcall> {
        &self.upcalls
    }

    /// Sets what wakes the reader of [`upcalls`](Self::upcalls); it is called from the workers' threads.
    pub fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        self.shared.upcalls.set_waker(waker);
    }

    /// Upcalls that were lost because nobody read them.
    pub fn upcalls_lost(&self) -> u64 {
        self.shared.upcalls.lost()
    }

    /// Drops by reason since the start.
    pub fn counters(&self) -> DropCounts {
        DropCounts::sum(self.shared.drops.iter())
    }

    /// How the workers have waited for work since the start.
    pub fn waits(&self) -> Waits {
        Waits::sum(self.shared.waits.iter())
    }

    /// Milliseconds on the clock that the SAs' `last_in` and `last_out` are read from.
    pub fn now_ms(&self) -> u64 {
        self.shared.now_ms()
    }

    /// Hands an encapsulated ESP packet that reached a control socket to the worker that owns its SA; that
    /// happens only where [`steered`](Self::steered) is false or in the instant before steering was in force.
    /// `false` when it was dropped.
    pub fn give_esp(&self, meta: Meta, packet: &[u8]) -> bool {
        worker::owner(packet, self.shared.rings.len())
            .is_some_and(|owner| self.shared.rings[owner].give(meta, true, packet))
    }

    /// Whether the system delivers ESP packets straight to their workers.
    pub fn steered(&self) -> bool {
        self.steered
    }

    /// Name of the TUN device.
    pub fn tun_name(&self) -> &str {
        &self.tun_name
    }

    /// Interface index of the TUN device.
    pub fn tun_index(&self) -> u32 {
        self.tun_index
    }

    /// The UDP port in use.
    pub fn nat_t_port(&self) -> u16 {
        self.port
    }

    /// Stops the workers and waits for them. The TUN device and the sockets are gone when this returns, except
    /// for control sockets that were taken.
    pub fn shutdown(self) {}
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for ring in &self.shared.rings {
            ring.wake();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
    }
}

struct Farewell<'a> {
    shared: &'a Shared,
    index: usize,
}

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        if !self.shared.stop.load(Ordering::Acquire) {
            self.shared.upcalls.send(Upcall::WorkerFailed(self.index));
        }
    }
}

/// One family's sockets on the encapsulation port: the control thread's first, then one for each worker.
struct Group {
    control: UdpSocket,
    workers: Vec<UdpSocket>,
    steered: bool,
    /// The workers' sockets get datagrams of equal size as one message.
    merged: bool,
}

impl Group {
    fn bind(any: IpAddr, port: u16, config: &DataplaneConfig) -> Result<Self, DataplaneError> {
        let addr = SocketAddr::new(any, port);
        let failed = |source| DataplaneError::Socket { what: format!("UDP socket {addr}"), source };
        if port != 0 {
            // A second instance of the same user could join the group unnoticed; alone it could not bind.
            drop(UdpSocket::bind(addr, config.mark).map_err(failed)?);
        }
        let control = UdpSocket::bind_group(addr, config.mark).map_err(failed)?;
        let addr = control.local_addr();
        let workers = (0..config.workers).map(|_| UdpSocket::bind_group(addr, config.mark));
        let workers = workers.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let steered = match steering::steer_group(&control, config.workers) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(
                    %addr,
                    "packets cannot be steered to their workers, which now hand them to each other; expect a \
                     fraction of the speed: {error}"
                );
                false
            }
        };
        // The control thread's socket stays as it is: whatever is merged comes apart again before it gets there.
        let merged = config.offload && workers.iter().all(|socket| socket.merge_received().is_ok());
        Ok(Self { control, workers, steered, merged })
    }
}

/// Says once what this kernel lacks.
fn tell_missing(tun: TunOffload, segments: bool, merged: bool) {
    let all = [
        (tun > TunOffload::Packets, "super-packets of the TUN device"),
        (tun == TunOffload::TcpUdp, "those of UDP"),
        (segments, "cutting of datagrams (UDP_SEGMENT)"),
        (merged, "merging of datagrams (UDP_GRO)"),
    ];
    let missing: Vec<_> = all.iter().filter(|(there, _)| !there).map(|(_, what)| *what).collect();
    if !missing.is_empty() {
        tracing::warn!("offloads that this kernel lacks, so that packets cost more: {}", missing.join(", "));
    }
}

fn open_raw(ipv4: bool, index: usize, config: &DataplaneConfig) -> Result<RawEspSocket, DataplaneError> {
    RawEspSocket::open(ipv4, config.mark, index, config.workers).map_err(|source| {
        let what = format!("raw ESP socket for IPv{}", if ipv4 { 4 } else { 6 });
        DataplaneError::Socket { what, source }
    })
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_before_anything_is_opened() {
        for (workers, slots) in [(0, 1), (257, 1), (1, 0), (1, MAX_SLOTS + 1)] {
            let config = DataplaneConfig { workers, slots, ..DataplaneConfig::default() };
            assert!(matches!(Dataplane::start(config), Err(DataplaneError::Config(_))));
        }
    }
}
