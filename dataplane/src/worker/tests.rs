//! Two packet paths in network namespaces of their own, joined by a veth pair, with SAs installed by hand: what the
//! system's own IP stack sends on one side must come out on the other.

mod early;
mod offload;
mod padding;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mobikex_common::addr::{AddressSet, Path, Scheduler, WeightedPath};
use mobikex_common::alg::{Cipher, EspSuite, Integrity, KeyBits};
use mobikex_common::drop::DropReason;
use mobikex_common::sa::{ChildSaId, ChildSaParams, CopyDscp, EspKeys, Mode, PolicyId, VolumeLimits};
use mobikex_common::spi::{SLOT_BITS, Spi};
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::echo::Echo;

use crate::io::{RecvBatch, enter_new_network, steering};
use crate::{Dataplane, DataplaneConfig, Upcall};

const WORKERS: usize = 2;
const MARK: u32 = 0x6d6b;
const OUTER: [[&str; 2]; 2] = [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]];
const INNER: [[&str; 2]; 2] = [["10.0.1.1", "10.0.2.1"], ["fd00:1::1", "fd00:2::1"]];
const V4: usize = 0;
const V6: usize = 1;

/// A thread that lives in a network namespace of its own and runs what it is given.
struct Namespace {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    /// Names the namespace to `ip`.
    path: String,
}

impl Namespace {
    fn new() -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (started, result) = mpsc::channel();
        std::thread::spawn(move || {
            let entered = enter_new_network().and_then(|()| std::fs::read_link("/proc/thread-self"));
            if started.send(entered).is_ok() {
                queue.into_iter().for_each(|job| job());
            }
        });
        let thread = result.recv().unwrap()?;
        Ok(Self { jobs, path: format!("/proc/{}/ns/net", thread.display()) })
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).unwrap();
        result.recv().expect("the job panicked")
    }

    /// Runs a command line; its output and whether it succeeded.
    fn try_sh(&self, line: &str) -> (bool, String) {
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        let output = self.run(move || command.output()).unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text.into_owned())
    }

    fn sh(&self, line: &str) -> String {
        let (ok, output) = self.try_sh(line);
        assert!(ok, "{line}: {output}");
        output
    }
}

/// The two sites.
struct Net {
    namespaces: [Namespace; 2],
    dataplanes: [Dataplane; 2],
}

impl Net {
    /// `None`, said loudly, where the test may not have namespaces.
    fn new(raw_esp: bool) -> Option<Self> {
        Self::offloading(raw_esp, [true; 2])
    }

    /// With or without offloads at either site.
    fn offloading(raw_esp: bool, offload: [bool; 2]) -> Option<Self> {
        let namespaces = match (Namespace::new(), Namespace::new()) {
            (Ok(a), Ok(b)) => [a, b],
            (Err(error), _) | (_, Err(error)) => {
                assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
                eprintln!("SKIPPED: network namespaces need CAP_SYS_ADMIN: {error}");
                return None;
            }
        };
        let other = &namespaces[1].path;
        namespaces[0].sh(&format!("ip link add veth0 type veth peer name veth0 netns {other}"));
        for (n, ns) in namespaces.iter().enumerate() {
            // Transport mode routes the peer's address into the tunnel while it also speaks from outside.
            ns.sh("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0");
            ns.sh("ip link set lo up");
            ns.sh("ip link set veth0 up");
            ns.sh(&format!("ip addr add {}/24 dev veth0", OUTER[V4][n]));
            ns.sh(&format!("ip addr add {}/64 dev veth0 nodad", OUTER[V6][n]));
        }
        let start = |site: usize| {
            namespaces[site].run(move || {
                Dataplane::start(DataplaneConfig {
                    tun_name: "mkx0".into(),
                    tun_mtu: 1400,
                    workers: WORKERS,
                    pin: true,
                    slots: 64,
                    mark: MARK,
                    raw_esp,
                    offload: offload[site],
                    busy_poll: [Duration::ZERO, Duration::from_micros(50)][site],
                    ..DataplaneConfig::default()
                })
                .unwrap()
            })
        };
        let dataplanes = [start(0), start(1)];
        for (n, ns) in namespaces.iter().enumerate() {
            assert_eq!(dataplanes[n].tun_name(), "mkx0");
            assert!(dataplanes[n].steered());
            ns.sh("ip link set mkx0 up");
            for family in [V4, V6] {
                let dad = if family == V6 { "nodad" } else { "" };
                ns.sh(&format!("ip addr add {} dev mkx0 {dad}", INNER[family][n]));
                ns.sh(&format!("ip route add {} dev mkx0", INNER[family][1 - n]));
                let v = if family == V4 { "-4" } else { "-6" };
                ns.sh(&format!("ip {v} rule add not fwmark {MARK} lookup 220 priority 220"));
            }
        }
        Some(Self { namespaces, dataplanes })
    }

    /// Installs SA number `id` for the hosts `inner` through `outer`, on both sides.
    fn install(&self, id: u32, mode: Mode, inner: [&str; 2], outer: [&str; 2], encap: bool, suite: EspSuite) {
        for (n, dataplane) in self.dataplanes.iter().enumerate() {
            let params = params(n, id, mode, inner, outer, encap, suite);
            dataplane.tables().install(&params, true).unwrap();
        }
        if mode == Mode::Transport {
            for (n, ns) in self.namespaces.iter().enumerate() {
                // The device has addresses of its own, so the source must be said.
                ns.sh(&format!("ip route add {} dev mkx0 table 220 src {}", inner[1 - n], inner[n]));
            }
        }
    }

    fn remove(&self, id: u32) {
        for dataplane in &self.dataplanes {
            dataplane.tables().remove(ChildSaId(id));
        }
        for ns in &self.namespaces {
            ns.try_sh("ip route flush table 220");
            ns.try_sh("ip -6 route flush table 220");
        }
    }

    /// Many datagrams of several flows and sizes there and back; every one must arrive unharmed.
    fn echo(&self, inner: [&str; 2]) {
        let addr = |n: usize, port| SocketAddr::new(inner[n].parse::<IpAddr>().unwrap(), port);
        let server = addr(1, 7);
        let echo = self.namespaces[1].run(move || UdpSocket::bind(server)).unwrap();
        echo.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        const FLOWS: usize = 8;
        const EACH: usize = 40;
        let reflector = std::thread::spawn(move || {
            let mut data = [0; 2048];
            for _ in 0..FLOWS * EACH {
                let (len, from) = echo.recv_from(&mut data).unwrap();
                echo.send_to(&data[..len], from).unwrap();
            }
        });
        for flow in 0..FLOWS {
            let client = addr(0, 0);
            let socket = self.namespaces[0].run(move || UdpSocket::bind(client)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            for n in 0..EACH {
                socket.send_to(&payload(flow, n), server).unwrap();
            }
            let (mut data, mut seen) = ([0; 2048], vec![false; EACH]);
            for _ in 0..EACH {
                let (len, _) = socket.recv_from(&mut data).unwrap_or_else(|error| {
                    let drops = self.dataplanes.each_ref().map(|d| d.counters());
                    panic!("{inner:?}: {error}; drops {drops:?}")
                });
                let n = usize::from(data[1]);
                assert_eq!(data[..len], payload(flow, n));
                assert!(!std::mem::replace(&mut seen[n], true), "a duplicate");
            }
        }
        reflector.join().unwrap();
    }

    /// The MTU that the first site's system has learnt for `target`.
    fn route_mtu(&self, target: &str) -> usize {
        let route = self.namespaces[0].sh(&format!("ip route get {target}"));
        let mtu = route.split_once("mtu ").and_then(|(_, rest)| rest.split_whitespace().next());
        mtu.unwrap_or_else(|| panic!("no MTU learnt: {route}")).parse().unwrap()
    }

    fn drops(&self, site: usize, reason: DropReason) -> u64 {
        self.dataplanes[site].counters().get(reason)
    }

    /// What must never be counted when all goes well.
    fn assert_no_inbound_drops(&self) {
        self.assert_no_inbound_drops_but(&[]);
    }

    fn assert_no_inbound_drops_but(&self, allowed: &[DropReason]) {
        for dataplane in &self.dataplanes {
            let counters = dataplane.counters();
            let inbound = |r: &DropReason| r.name().starts_with("in_") && !allowed.contains(r);
            let bad: Vec<_> = counters.iter().filter(|(r, n)| *n > 0 && inbound(r)).collect();
            assert!(bad.is_empty(), "{bad:?}");
        }
    }
}

/// Both sites' addresses on no link, reachable by either of two.
const BEHIND: [&str; 2] = ["203.0.113.1", "203.0.113.2"];

impl Net {
    /// Joins the sites a second time, by `veth1`. Routes to [`BEHIND`] prefer `veth0`.
    fn second_uplink(&self) {
        let other = &self.namespaces[1].path;
        self.namespaces[0].sh(&format!("ip link add veth1 type veth peer name veth1 netns {other}"));
        let second = ["198.51.100.1", "198.51.100.2"];
        for (n, ns) in self.namespaces.iter().enumerate() {
            ns.sh("ip link set veth1 up");
            ns.sh(&format!("ip addr add {} dev lo", BEHIND[n]));
            ns.sh(&format!("ip addr add {}/24 dev veth1", second[n]));
            for (metric, device, via) in [(1, "veth0", OUTER[V4][1 - n]), (2, "veth1", second[1 - n])] {
                let target = BEHIND[1 - n];
                ns.sh(&format!("ip route add {target} via {via} dev {device} metric {metric}"));
            }
        }
        // The neighbours get to know each other, so that no burst waits for that.
        for target in [OUTER[V4][1], second[1]] {
            self.namespaces[0].sh(&format!("ping -c 1 -W 2 {target}"));
        }
    }

    /// The index of a device and how many packets it has sent.
    fn device(&self, site: usize, name: &str) -> (u32, u64) {
        let link = self.namespaces[site].sh(&format!("ip -o link show {name}"));
        (link.split(':').next().unwrap().parse().unwrap(), self.packets(site, name)[1])
    }

    /// How many packets a device has received and sent; a super-packet counts as one.
    fn packets(&self, site: usize, name: &str) -> [u64; 2] {
        let all = self.namespaces[site].sh("cat /proc/net/dev");
        let line = all.lines().find_map(|line| line.trim().strip_prefix(&format!("{name}:"))).unwrap();
        [1, 9].map(|column| line.split_whitespace().nth(column).unwrap().parse().unwrap())
    }
}

fn payload(flow: usize, n: usize) -> Vec<u8> {
    let mut data = vec![flow as u8 ^ n as u8; 2 + n * 33 % 1300];
    data[0] = flow as u8;
    data[1] = n as u8;
    data
}

/// One side's view of SA number `id`. Each SA occupies slot `id`, so odd ones belong to worker 1.
fn params(
    site: usize,
    id: u32,
    mode: Mode,
    inner: [&str; 2],
    outer: [&str; 2],
    encap: bool,
    suite: EspSuite,
) -> ChildSaParams {
    let spi = |site: usize| Spi((site as u32 + 1) << SLOT_BITS | id);
    let keys = |site: usize| EspKeys {
        encryption: vec![site as u8 + 1; suite.cipher.key_material_len()],
        integrity: vec![site as u8 + 9; suite.integrity.map_or(0, Integrity::key_len)],
    };
    let ts = |site: usize| vec![TrafficSelector::host(inner[site].parse().unwrap())];
    let end = |site: usize| SocketAddr::new(outer[site].parse().unwrap(), 4500);
    let peer = 1 - site;
    let path = Path { local: end(site), remote: end(peer) };
    ChildSaParams {
        id: ChildSaId(id),
        policy: PolicyId(id),
        worker: None,
        name: format!("test{{{id}}}"),
        mode,
        spi_in: spi(site),
        spi_out: spi(peer),
        suite,
        keys_in: keys(site),
        keys_out: keys(peer),
        ts_local: ts(site),
        ts_remote: ts(peer),
        addresses: AddressSet::single(path, encap),
        replay_window: 128,
        limits: VolumeLimits::default(),
        copy_df: true,
        copy_dscp: CopyDscp::Out,
        tfc_padding: 0,
    }
}

fn gcm() -> EspSuite {
    EspSuite { cipher: Cipher::AesGcm16(KeyBits::B256), integrity: None, esn: true, ke: None }
}

fn cbc() -> EspSuite {
    EspSuite {
        cipher: Cipher::AesCbc(KeyBits::B128),
        integrity: Some(Integrity::HmacSha256),
        esn: false,
        ke: None,
    }
}

/// Waits until something is there. A worker counts what it read or sent at the end of a run, so the packets and
/// upcalls of the run may come before its counts.
fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "it does not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn tunnel_mode_carries_both_families_in_both_families() {
    let Some(net) = Net::new(true) else { return };
    let mut id = 1;
    for encap in [true, false] {
        for suite in [gcm(), cbc()] {
            for (outer, inner) in [(V4, V4), (V4, V6), (V6, V4), (V6, V6)] {
                net.install(id, Mode::Tunnel, INNER[inner], OUTER[outer], encap, suite);
                net.namespaces[0].sh(&format!("ping -c 3 -i 0.05 -W 2 {}", INNER[inner][1]));
                net.echo(INNER[inner]);
                let stats = wait_for(|| {
                    let stats = net.dataplanes[1].tables().stats(ChildSaId(id)).unwrap();
                    (stats.packets_in >= 323 && stats.last_in > 0).then_some(stats)
                });
                assert_eq!(stats.packets_in, stats.paths[0].packets_in);
                net.remove(id);
                id += 1;
            }
        }
    }
    net.assert_no_inbound_drops();
    let waits = net.dataplanes.each_ref().map(Dataplane::waits);
    assert!(waits[0].blocked > 0 && waits[0].looked == 0, "{waits:?}");
    assert!(waits[1].blocked > 0 && waits[1].looked > 0, "only this one looks before it waits: {waits:?}");
}

#[test]
fn transport_mode_carries_the_hosts_own_addresses() {
    let Some(net) = Net::new(true) else { return };
    let mut id = 1;
    for encap in [true, false] {
        for family in [V4, V6] {
            net.install(id, Mode::Transport, OUTER[family], OUTER[family], encap, gcm());
            net.namespaces[0].sh(&format!("ping -c 3 -i 0.05 -W 2 {}", OUTER[family][1]));
            net.echo(OUTER[family]);
            net.remove(id);
            id += 1;
        }
    }
    net.assert_no_inbound_drops();
}

/// The first site takes another address: its hosts' packets carry it, so selectors and path move in one step.
#[test]
fn transport_mode_moves_with_its_hosts() {
    let Some(net) = Net::new(true) else { return };
    for (id, encap) in [(1, true), (2, false)] {
        net.install(id, Mode::Transport, OUTER[V4], OUTER[V4], encap, gcm());
        net.echo(OUTER[V4]);
        let moved = ["192.0.2.11", OUTER[V4][1]];
        net.namespaces[0].try_sh("ip addr add 192.0.2.11/24 dev veth0");
        for (n, ns) in net.namespaces.iter().enumerate() {
            ns.sh("ip route flush table 220");
            ns.sh(&format!("ip route add {} dev mkx0 table 220 src {}", moved[1 - n], moved[n]));
            let params = params(n, id, Mode::Transport, moved, moved, encap, gcm());
            let ChildSaParams { addresses, ts_local, ts_remote, .. } = params;
            let tables = net.dataplanes[n].tables();
            assert!(tables.set_selectors(ChildSaId(id), &addresses, &ts_local, &ts_remote));
        }
        net.echo(moved);
        net.assert_no_inbound_drops();
        // The path alone does not carry the packets of other addresses.
        let no_path = net.drops(0, DropReason::OutNoPath);
        let other = params(0, id, Mode::Transport, OUTER[V4], OUTER[V4], encap, gcm()).addresses;
        net.dataplanes[0].tables().set_addresses(&[ChildSaId(id)], &other);
        assert!(!net.namespaces[0].try_sh(&format!("ping -c 1 -W 1 -I 192.0.2.11 {}", OUTER[V4][1])).0);
        assert!(net.drops(0, DropReason::OutNoPath) > no_path);
        net.remove(id);
    }
}

/// RFC 4301 8.2: a sender that forbids fragments hears the MTU that really fits; others are fragmented outside.
#[test]
fn b27_a_narrow_path_is_told_to_the_sender() {
    let Some(net) = Net::new(true) else { return };
    for ns in &net.namespaces {
        ns.sh("ip link set veth0 mtu 1380");
    }
    let cases = [(true, V4, V4), (true, V4, V6), (false, V6, V4), (true, V6, V6)];
    for (id, (encap, outer, inner)) in (1..).zip(cases) {
        net.install(id, Mode::Tunnel, INNER[inner], OUTER[outer], encap, gcm());
        let target = INNER[inner][1];
        let ns = &net.namespaces[0];
        let headers = if inner == V4 { 28 } else { 48 };
        // The first packet finds out, and its sender hears the exact figure.
        ns.try_sh("ip route flush cache");
        ns.try_sh("ip -6 route flush cache");
        let (ok, output) = ns.try_sh(&format!("ping -c 1 -W 1 -M do -s {} {target}", 1400 - headers));
        assert!(!ok, "{output}");
        let mtu = net.route_mtu(target);
        let front = if outer == V4 { 20 } else { 40 } + if encap { 8 } else { 0 };
        let fits = (1380 - front - 32) / 4 * 4 - 2;
        assert_eq!(mtu, fits);
        ns.sh(&format!("ping -c 1 -W 2 -M do -s {} {target}", mtu - headers));
        if inner == V4 {
            ns.sh(&format!("ping -c 1 -W 2 -M dont -s {} {target}", 1400 - headers));
        }
        net.remove(id);
    }
    assert!(net.drops(0, DropReason::OutTooBig) >= 4);
}

/// However narrow the path claims to be, no sender is told less than every packet may measure, and that much passes.
#[test]
fn b27_the_mtu_told_has_a_floor() {
    let Some(net) = Net::new(false) else { return };
    for ns in &net.namespaces {
        ns.sh("ip link set veth0 mtu 600");
    }
    for (id, inner, headers, floor) in [(1, V4, 28, 576), (2, V6, 48, 1280)] {
        net.install(id, Mode::Tunnel, INNER[inner], OUTER[V4], true, gcm());
        let (ns, target) = (&net.namespaces[0], INNER[inner][1]);
        assert!(!ns.try_sh(&format!("ping -c 1 -W 1 -M do -s {} {target}", 1400 - headers)).0);
        assert_eq!(net.route_mtu(target), floor);
        ns.sh(&format!("ping -c 1 -W 2 -M do -s {} {target}", floor - headers));
        net.remove(id);
    }
}

#[test]
fn packets_at_the_wrong_worker_are_handed_over_and_ike_is_never_lost() {
    let Some(mut net) = Net::new(false) else { return };
    let control = net.dataplanes[1].control_sockets();
    for socket in &control {
        // Everything goes to worker 0 now; SA 1 belongs to worker 1.
        steering::steer_group(socket, 1).unwrap();
    }
    net.install(1, Mode::Tunnel, INNER[V4], OUTER[V4], true, gcm());
    net.echo(INNER[V4]);
    net.remove(1);
    net.assert_no_inbound_drops();

    // Without steering the kernel spreads datagrams over all members, the control thread's among them.
    for socket in &control {
        steering::unsteer_group(socket).unwrap();
    }
    let target: SocketAddr = format!("{}:4500", OUTER[V4][1]).parse().unwrap();
    for n in 0..60u8 {
        let sender = net.namespaces[0].run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        sender.send_to(&[0, 0, 0, 0, n], target).unwrap();
    }
    let (mut batch, mut seen, mut by_workers) = (RecvBatch::new(), [false; 60], 0);
    wait_for(|| {
        if control[0].recv_batch(&mut batch).is_ok() {
            batch.iter().for_each(|(_, data)| seen[usize::from(data[4])] = true);
        }
        for upcall in net.dataplanes[1].upcalls().try_iter() {
            if let Upcall::Ike { local, data, .. } = upcall {
                assert_eq!(local, target);
                seen[usize::from(data[0])] = true;
                by_workers += 1;
            }
        }
        (!seen.contains(&false)).then_some(())
    });
    assert!(by_workers > 0 && by_workers < 60, "{by_workers}");
}

#[test]
fn the_control_thread_hears_of_wanted_and_confirmed_sas() {
    let Some(net) = Net::new(false) else { return };
    let ts = |n: usize| [TrafficSelector::host(INNER[V4][n].parse().unwrap())];
    net.dataplanes[0].tables().install_trap(PolicyId(9), &ts(0), &ts(1), Mode::Tunnel);
    let (woken, wakes) = mpsc::channel();
    net.dataplanes[0].set_waker(Box::new(move || {
        let _ = woken.send(());
    }));
    net.namespaces[0].try_sh(&format!("ping -c 3 -i 0.05 -W 1 {}", INNER[V4][1]));
    wakes.recv_timeout(Duration::from_secs(2)).unwrap();
    let upcall = net.dataplanes[0].upcalls().recv_timeout(Duration::from_secs(2)).unwrap();
    let [src, dst] = INNER[V4].map(|addr| addr.parse().unwrap());
    let echo = Some((8 << 8, 8 << 8));
    assert_eq!(upcall, Upcall::Acquire { policy: PolicyId(9), src, dst, protocol: 1, ports: echo });
    assert!(net.drops(0, DropReason::OutNoSa) >= 3);

    net.install(9, Mode::Tunnel, INNER[V4], OUTER[V4], true, gcm());
    net.namespaces[0].sh(&format!("ping -c 2 -i 0.05 -W 2 {}", INNER[V4][1]));
    let first: Vec<_> = net.dataplanes[1].upcalls().try_iter().collect();
    assert_eq!(first, [Upcall::FirstInbound(ChildSaId(9))]);
}

/// A path leaves by its interface although the routes prefer another one.
#[test]
fn a_path_names_its_interface() {
    let Some(net) = Net::new(true) else { return };
    net.second_uplink();
    let mut id = 1;
    for encap in [true, false] {
        for device in ["veth0", "veth1"] {
            let before = net.device(0, device).1;
            for (n, dataplane) in net.dataplanes.iter().enumerate() {
                let mut params = params(n, id, Mode::Tunnel, INNER[V4], BEHIND, encap, gcm());
                params.addresses.paths[0].device =
                    if device == "veth0" { 0 } else { net.device(n, device).0 };
                dataplane.tables().install(&params, true).unwrap();
            }
            net.echo(INNER[V4]);
            assert!(net.device(0, device).1 >= before + 320, "{device} {encap}");
            net.remove(id);
            id += 1;
        }
    }
    net.assert_no_inbound_drops();
}

impl Net {
    /// A tunnel SA over both uplinks, scheduled as said.
    fn install_multipath(&self, id: u32, scheduler: Scheduler, encap: bool) {
        for (n, dataplane) in self.dataplanes.iter().enumerate() {
            let mut params = params(n, id, Mode::Tunnel, INNER[V4], OUTER[V4], encap, gcm());
            let second =
                self::params(n, id, Mode::Tunnel, INNER[V4], BEHIND, encap, gcm()).addresses.paths[0];
            params.addresses.paths.push(WeightedPath { device: self.device(n, "veth1").0, ..second });
            params.addresses.scheduler = scheduler;
            dataplane.tables().install(&params, true).unwrap();
        }
    }
}

#[test]
fn packets_take_turns_on_the_paths_or_all_of_them() {
    let Some(net) = Net::new(true) else { return };
    net.second_uplink();
    for (id, encap) in [(1, true), (2, false)] {
        net.install_multipath(id, Scheduler::Packet, encap);
        net.echo(INNER[V4]);
        let stats = net.dataplanes[1].tables().stats(ChildSaId(id)).unwrap();
        let [first, second] = [stats.paths[0].packets_in, stats.paths[1].packets_in];
        // Workers that send at the same moment take the same turn.
        assert!(first.abs_diff(second) <= stats.packets_in / 50, "{stats:?}");
        net.remove(id);
    }
    net.assert_no_inbound_drops();
    for (id, encap) in [(3, true), (4, false)] {
        net.install_multipath(id, Scheduler::Redundant, encap);
        net.echo(INNER[V4]);
        wait_for(|| {
            let stats = net.dataplanes[1].tables().stats(ChildSaId(id)).unwrap();
            let [first, second] = [stats.paths[0].packets_out, stats.paths[1].packets_out];
            (stats.packets_out >= 300 && [first, second] == [stats.packets_out; 2]).then_some(())
        });
        net.remove(id);
    }
    for site in 0..2 {
        wait_for(|| (net.drops(site, DropReason::InReplayDuplicate) >= 600).then_some(()));
    }
}

/// Sends numbered datagrams of one flow from the first site; their numbers in the order of arrival.
fn numbers_received(net: &Net, count: u8) -> Vec<u8> {
    let target: SocketAddr = format!("{}:9", INNER[V4][1]).parse().unwrap();
    let receiver = net.namespaces[1].run(move || UdpSocket::bind(target)).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let sender = net.namespaces[0].run(|| UdpSocket::bind((INNER[V4][0], 0))).unwrap();
    for n in 0..count {
        sender.send_to(&[n; 1000], target).unwrap();
    }
    let mut data = [0; 2000];
    (0..count).map(|_| receiver.recv(&mut data).map(|_| data[0]).unwrap()).collect()
}

/// One uplink is slow, so that what it carries falls behind.
#[test]
fn packets_of_unequal_paths_come_out_in_order() {
    let Some(net) = Net::new(false) else { return };
    net.second_uplink();
    let slow = "tc qdisc add dev veth1 root tbf rate 20mbit burst 2kb latency 400ms";
    if let (false, output) = net.namespaces[0].try_sh(slow) {
        return eprintln!("SKIPPED: no way to slow a device down: {output}");
    }
    net.install_multipath(1, Scheduler::Packet, true);
    assert!(!numbers_received(&net, 60).is_sorted(), "the paths are not unequal enough");
    let tables = net.dataplanes[1].tables();
    let guard = crate::published::pin();
    let inbound = tables.lookup_inbound(Spi(2 << SLOT_BITS | 1), &guard).unwrap();
    let mut set = inbound.addresses().load(&guard).unwrap().set().clone();
    set.generation = 2;
    set.resequence_ms = 300;
    tables.set_addresses(&[ChildSaId(1)], &set);
    for _ in 0..3 {
        assert_eq!(numbers_received(&net, 60), (0..60).collect::<Vec<_>>());
    }
    // A packet that cannot come: those behind it come out when their time is over, though nothing else happens.
    let lost = net.dataplanes[0].tables().outbound(ChildSaId(1)).unwrap();
    lost.next_sequence().unwrap();
    let start = Instant::now();
    assert_eq!(numbers_received(&net, 1), [0]);
    let waited = start.elapsed();
    assert!(waited > Duration::from_millis(250) && waited < Duration::from_millis(1000), "{waited:?}");
    net.assert_no_inbound_drops();
}

/// RFC 4555 3.7, where the peer's address could be somebody else's.
#[test]
fn a_limited_path_waits_for_the_peer() {
    let Some(net) = Net::new(false) else { return };
    net.install(1, Mode::Tunnel, INNER[V4], OUTER[V4], true, gcm());
    let mut set = params(0, 1, Mode::Tunnel, INNER[V4], OUTER[V4], true, gcm()).addresses;
    set.paths[0].limited = true;
    let tables = net.dataplanes[0].tables();
    assert_eq!(tables.set_addresses(&[ChildSaId(1), ChildSaId(99)], &set), 1);
    assert!(!net.namespaces[0].try_sh(&format!("ping -c 2 -i 0.05 -W 1 {}", INNER[V4][1])).0);
    wait_for(|| (net.drops(0, DropReason::OutNotRoutable) == 2).then_some(()));
    assert_eq!(net.dataplanes[1].tables().stats(ChildSaId(1)).unwrap().packets_in, 0);
    net.namespaces[1].sh(&format!("ping -c 2 -i 0.05 -W 2 {}", INNER[V4][0]));
    let stats = tables.stats(ChildSaId(1)).unwrap().paths[0];
    assert!(stats.bytes_out > 0 && stats.bytes_out <= 3 * stats.bytes_in, "{stats:?}");

    // What is sent while the proof is under way comes when it is there, in order, and nothing twice.
    set.paths[0].limited = false;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            tables.set_addresses(&[ChildSaId(1)], &set);
        });
        assert_eq!(numbers_received(&net, 100), (0..100).collect::<Vec<_>>());
    });
    assert_eq!(net.drops(0, DropReason::OutNotRoutable), 2);
    net.assert_no_inbound_drops();
}

fn echo_request(sequence: u16) -> Echo {
    Echo { response: false, identifier: 7, sequence, return_spi: None, data: vec![0xab; 56] }
}

/// The upcalls of a site, leaving out the first packets of SAs.
fn upcall(net: &Net, site: usize) -> Upcall {
    let mut upcalls = std::iter::repeat_with(|| {
        net.dataplanes[site].upcalls().recv_timeout(Duration::from_secs(2)).expect("no upcall")
    });
    upcalls.find(|upcall| !matches!(upcall, Upcall::FirstInbound(_))).unwrap()
}

#[test]
fn echoes_take_the_path_asked_for_and_are_no_traffic() {
    let Some(net) = Net::new(true) else { return };
    net.second_uplink();
    let mut id = 1;
    for encap in [true, false] {
        for (mode, inner) in [(Mode::Tunnel, INNER), (Mode::Transport, OUTER)] {
            for family in [V4, V6] {
                for (n, dataplane) in net.dataplanes.iter().enumerate() {
                    let params = params(n, id, mode, inner[family], OUTER[family], encap, gcm());
                    dataplane.tables().install(&params, true).unwrap();
                }
                let way = params(0, id, mode, inner[family], OUTER[family], encap, gcm()).addresses.paths[0];
                // Neither weight nor proof are needed.
                let way = WeightedPath { weight: 0, limited: true, ..way };
                let before = Instant::now();
                net.dataplanes[0].send_echo(ChildSaId(id), &way, &echo_request(9)).unwrap();
                let Upcall::Echo { child, path, echo, at } = upcall(&net, 0) else { panic!("no echo") };
                assert_eq!(
                    (child, path.local.ip(), path.remote.ip()),
                    (ChildSaId(id), way.path.local.ip(), way.path.remote.ip())
                );
                assert_eq!(echo, Echo { response: true, ..echo_request(9) });
                assert!(at > before && at <= Instant::now());
                for dataplane in &net.dataplanes {
                    let stats = wait_for(|| {
                        let stats = dataplane.tables().stats(ChildSaId(id)).unwrap();
                        (stats.paths[0].packets_in > 0).then_some(stats)
                    });
                    assert_eq!(
                        (stats.packets_in, stats.last_in, stats.packets_out, stats.last_out),
                        (0, 0, 0, 0)
                    );
                    assert_eq!(
                        (stats.seq_out, stats.paths[0].packets_in, stats.paths[0].packets_out),
                        (1, 1, 1)
                    );
                }
                net.remove(id);
                id += 1;
            }
        }
    }
    // A path that the set does not have: the answer comes back over it, and both ends tell where from.
    net.install(id, Mode::Tunnel, INNER[V4], OUTER[V4], true, gcm());
    let behind = params(0, id, Mode::Tunnel, INNER[V4], BEHIND, true, gcm()).addresses.paths[0];
    net.dataplanes[0].send_echo(ChildSaId(id), &behind, &echo_request(1)).unwrap();
    let reversed = Path { local: behind.path.remote, remote: behind.path.local };
    assert_eq!(upcall(&net, 1), Upcall::NewSource { child: ChildSaId(id), path: reversed });
    assert_eq!(upcall(&net, 0), Upcall::NewSource { child: ChildSaId(id), path: behind.path });
    assert!(matches!(upcall(&net, 0), Upcall::Echo { path, .. } if path == behind.path));
    // Within the same second nothing more is said of new sources, and of echoes only so many.
    for sequence in 0..1500 {
        net.dataplanes[0].send_echo(ChildSaId(id), &behind, &echo_request(sequence)).unwrap();
    }
    wait_for(|| {
        let answered = net.dataplanes[1].tables().stats(ChildSaId(id)).unwrap().seq_out;
        (answered + net.drops(1, DropReason::InEchoLimit) == 1501).then_some(())
    });
    assert_eq!(
        net.dataplanes[0].send_echo(ChildSaId(99), &behind, &echo_request(1)),
        Err(DropReason::OutNoSa)
    );
    let mixed = Path { local: behind.path.local, remote: "[2001:db8::2]:4500".parse().unwrap() };
    let mixed = WeightedPath::new(mixed, true);
    assert_eq!(
        net.dataplanes[0].send_echo(ChildSaId(id), &mixed, &echo_request(1)),
        Err(DropReason::OutNoPath)
    );
}

/// A NAT gives the peer another port, or the peer moves: the packets still count, and the control thread hears it.
#[test]
fn a_packet_from_elsewhere_is_reported_once_a_second() {
    let Some(net) = Net::new(false) else { return };
    net.install(1, Mode::Tunnel, INNER[V4], OUTER[V4], true, gcm());
    let mut set = params(1, 1, Mode::Tunnel, INNER[V4], OUTER[V4], true, gcm()).addresses;
    set.paths[0].path.remote.set_port(1025);
    net.dataplanes[1].tables().set_addresses(&[ChildSaId(1)], &set);
    net.dataplanes[0].tables().watch_traffic(&[ChildSaId(1), ChildSaId(5)]);
    net.namespaces[0].try_sh(&format!("ping -c 5 -i 0.05 -W 1 {}", INNER[V4][1]));
    let from = params(1, 1, Mode::Tunnel, INNER[V4], OUTER[V4], true, gcm()).addresses.paths[0].path;
    assert_eq!(upcall(&net, 1), Upcall::NewSource { child: ChildSaId(1), path: from });
    let stats = net.dataplanes[1].tables().stats(ChildSaId(1)).unwrap();
    assert_eq!((stats.packets_in, stats.paths[0].packets_in), (5, 0));
    let more =
        net.dataplanes[1].upcalls().try_iter().filter(|u| matches!(u, Upcall::NewSource { .. })).count();
    assert!(more <= 1, "the second may have changed meanwhile: {more}");

    assert_eq!(net.dataplanes[0].upcalls().try_iter().collect::<Vec<_>>(), [Upcall::Traffic(ChildSaId(1))]);
    net.dataplanes[0].tables().watch_traffic(&[ChildSaId(1)]);
    net.namespaces[0].try_sh(&format!("ping -c 2 -i 0.05 -W 1 {}", INNER[V4][1]));
    assert_eq!(net.dataplanes[0].upcalls().try_iter().collect::<Vec<_>>(), [Upcall::Traffic(ChildSaId(1))]);
}

/// After the last handle is gone the device is too, and the port is free.
#[test]
fn shutdown_leaves_nothing() {
    let Some(net) = Net::new(true) else { return };
    let Net { namespaces, dataplanes: [a, b] } = net;
    a.shutdown();
    assert!(!namespaces[0].try_sh("ip link show mkx0").0);
    namespaces[0].run(|| UdpSocket::bind("0.0.0.0:4500")).unwrap();
    drop(b);
}

/// `MOBIKEX_IPERF=1 cargo test ... throughput -- --nocapture` prints what iperf3 measures through the tunnel.
#[test]
fn throughput() {
    if std::env::var_os("MOBIKEX_IPERF").is_none() {
        return;
    }
    let Some(net) = Net::new(true) else { return };
    for (id, encap) in [(1, true), (2, false)] {
        net.install(id, Mode::Tunnel, INNER[V4], OUTER[V4], encap, gcm());
        let mut server = net.namespaces[1].run(|| Command::new("iperf3").args(["-s", "-1"]).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(300));
        eprintln!("{}", net.namespaces[0].sh(&format!("iperf3 -t 5 -c {}", INNER[V4][1])));
        server.wait().unwrap();
        net.remove(id);
    }
    for dataplane in &net.dataplanes {
        eprintln!("{:?}", dataplane.counters().iter().filter(|(_, n)| *n > 0).collect::<Vec<_>>());
    }
}
