//! The engine against strongSwan 5.9: a peer that nobody here wrote, in both roles.
//!
//! Two network namespaces joined by a veth pair; charon runs in one with its userspace ESP (kernel-libipsec), the
//! engine in the other behind plain UDP sockets. Needs root and Debian's strongSwan packages; `scripts/setup`
//! installs them.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mobikex::config::{self, AddrPattern, AuthRound, Config, Connection, PskSecret, TsPattern};
use mobikex::ike::{Command as IkeCommand, Endpoint, Output};
use mobikex_common::sa::{ChildSaId, ChildSaParams};
use mobikex_common::wire::ike::Identification;

const OURS: &str = "10.99.0.1";
const THEIRS: &str = "10.99.0.2";
const CHARON: &str = "/usr/lib/ipsec/charon";
/// Set in the process that runs inside our namespace.
const INSIDE: &str = "MOBIKEX_TEST_NAMESPACE";

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}");
    text
}

/// Two namespaces; gone with this value.
struct Namespaces {
    name: String,
}

impl Namespaces {
    fn new() -> Self {
        let name = format!("mbx{}", std::process::id());
        let this = Self { name };
        let n = &this.name;
        run(&format!("ip netns add {n}a && ip netns add {n}b"));
        run(&format!("ip -n {n}a link add v0 type veth peer name v0 netns {n}b"));
        for (side, addr) in [("a", OURS), ("b", THEIRS)] {
            run(&format!("ip -n {n}{side} addr add {addr}/24 dev v0"));
            // kernel-libipsec wants an address inside its traffic selectors for the route.
            let inner = if side == "a" { "10.1.0.1" } else { "10.2.0.1" };
            run(&format!("ip -n {n}{side} addr add {inner}/32 dev lo"));
            run(&format!("ip -n {n}{side} link set lo up && ip -n {n}{side} link set v0 up"));
        }
        this
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for side in ["a", "b"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{side}", self.name)]).status();
        }
    }
}

/// charon in its namespace; ended by its process id with this value.
struct Charon {
    process: Child,
    namespace: String,
    dir: PathBuf,
}

impl Charon {
    fn start(namespace: &str, dir: &Path, proposals: &str, esp: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let vici = at("vici");
        std::fs::write(
            dir.join("strongswan.conf"),
            format!(
                "charon {{\n load_modular = no\n load = random nonce aes sha1 sha2 hmac kdf gmp curve25519 openssl gcm \
                 chapoly kernel-libipsec kernel-netlink socket-default vici\n \
                 plugins {{\n vici {{\n socket = unix://{vici}\n }}\n }}\n \
                 filelog {{\n log {{\n path = {}\n default = 1\n flush_line = yes\n }}\n }}\n}}\n",
                at("log")
            ),
        )
        .unwrap();
        std::fs::write(
            dir.join("swanctl.conf"),
            format!(
                "connections {{\n home {{\n local_addrs = {THEIRS}\n remote_addrs = {OURS}\n version = 2\n \
                 proposals = {proposals}\n mobike = no\n \
                 local {{\n auth = psk\n id = b.example\n }}\n remote {{\n auth = psk\n id = a.example\n }}\n \
                 children {{\n net {{\n local_ts = 10.2.0.0/16\n remote_ts = 10.1.0.0/16\n \
                 esp_proposals = {esp}\n }}\n }}\n }}\n}}\n\
                 secrets {{\n ike-1 {{\n id = a.example\n secret = correct horse\n }}\n}}\n"
            ),
        )
        .unwrap();
        // charon's pid file has a fixed path: a tmpfs of its own, in the mount namespace that `ip netns exec` makes.
        let process = Command::new("ip")
            .args(["netns", "exec", namespace, "sh", "-c"])
            .arg(format!("mount -t tmpfs none /run && exec {CHARON}"))
            .env("STRONGSWAN_CONF", dir.join("strongswan.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { process, namespace: namespace.into(), dir: dir.into() };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !dir.join("vici").exists() {
            assert!(Instant::now() < deadline, "charon does not start: {}", this.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        this.swanctl(&format!("--load-all --file {}", at("swanctl.conf")));
        this
    }

    fn swanctl_command(&self, what: &str) -> Command {
        let mut command = Command::new("sh");
        let uri = self.dir.join("vici").display().to_string();
        command.arg("-c").arg(format!("swanctl {what} --uri unix://{uri} 2>&1"));
        command.env("STRONGSWAN_CONF", self.dir.join("strongswan.conf"));
        command
    }

    fn swanctl(&self, what: &str) -> String {
        let output = self.swanctl_command(what).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until something stands in the log.
    fn until_logged(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.log().contains(what) {
            assert!(Instant::now() < deadline, "charon never said {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Charon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("charon in {} said:\n{}", self.namespace, self.log());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The engine behind real sockets.
struct Live {
    endpoint: Endpoint,
    sockets: [UdpSocket; 2],
    children: BTreeMap<ChildSaId, ChildSaParams>,
    events: String,
}

fn our_config(proposals: &str, esp: &str, secret: &str) -> Config {
    let ts = |text: &str| vec![TsPattern::Fixed(text.parse().unwrap())];
    let only = |text: &str| vec![AddrPattern::Range(text.parse().unwrap())];
    let id = |text: &str| AuthRound { id: Some(text.parse().unwrap()), ..AuthRound::default() };
    let child = config::Child {
        local_ts: ts("10.1.0.0/16"),
        remote_ts: ts("10.2.0.0/16"),
        esp_proposals: vec![esp.parse().unwrap()],
        ..config::Child::new("net")
    };
    let connection = Connection {
        local_addrs: only(OURS),
        remote_addrs: only(THEIRS),
        proposals: vec![proposals.parse().unwrap()],
        local: id("a.example"),
        remote: id("b.example"),
        children: vec![child],
        ..Connection::new("home")
    };
    let secret = PskSecret { name: "ike-1".into(), ids: vec![], secret: secret.as_bytes().to_vec().into() };
    Config { connections: vec![connection], secrets: vec![secret], ..Config::default() }
}

impl Live {
    fn new(config: Config) -> Self {
        let bind = |port: u16| {
            let socket = UdpSocket::bind((OURS, port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
            socket
        };
        let endpoint = Endpoint::new(Instant::now(), config, [7; 32]);
        Self { endpoint, sockets: [bind(500), bind(4500)], children: BTreeMap::new(), events: String::new() }
    }

    fn command(&mut self, command: IkeCommand) {
        self.endpoint.handle_command(Instant::now(), command).unwrap();
    }

    /// Runs until `done`, or fails after 20 seconds.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: {}\n{:#?}", self.events, self.views());
            self.step();
        }
    }

    fn step(&mut self) {
        let mut buffer = [0; 4096];
        for (index, nat_t) in [(0, false), (1, true)] {
            let Ok((len, remote)) = self.sockets[index].recv_from(&mut buffer) else { continue };
            let data = match buffer[..len].strip_prefix(&[0; 4]) {
                Some(message) if nat_t => message,
                // Encapsulated ESP and keepalives belong to the packet path.
                None if nat_t => continue,
                _ => &buffer[..len],
            };
            let local = self.sockets[index].local_addr().unwrap();
            self.endpoint.handle_datagram(Instant::now(), local, remote, nat_t, data);
        }
        self.endpoint.handle_timeout(Instant::now());
        while let Some(output) = self.endpoint.poll_output() {
            match output {
                Output::Transmit { local, remote, nat_t, data } => self.transmit(local, remote, nat_t, &data),
                Output::InstallChild { params, .. } => {
                    self.children.insert(params.id, *params);
                }
                Output::RemoveChild(id) => {
                    self.children.remove(&id);
                }
                Output::Event(event) => self.events += &format!("{event}\n"),
                _ => {}
            }
        }
    }

    fn transmit(&self, local: SocketAddr, remote: SocketAddr, nat_t: bool, data: &[u8]) {
        let marker: &[u8] = if nat_t { &[0; 4] } else { &[] };
        let socket = &self.sockets[usize::from(local.port() == 4500)];
        socket.send_to(&[marker, data].concat(), remote).unwrap();
    }

    fn views(&self) -> Vec<mobikex::ike::IkeSaView> {
        self.endpoint.ike_sas(Instant::now())
    }

    /// The SPIs, toward us and toward the peer, of the one installed Child SA of the one IKE SA.
    fn tunnel(&self) -> Option<(String, String)> {
        let views = self.views();
        let [view] = views.iter().filter(|v| v.state == "ESTABLISHED").collect::<Vec<_>>()[..] else {
            return None;
        };
        let [child] = view.children.iter().filter(|c| c.state == "INSTALLED").collect::<Vec<_>>()[..] else {
            return None;
        };
        Some((child.spi_in.to_string(), child.spi_out.to_string()))
    }

    /// Both sides list the same SPIs.
    fn assert_agreed(&self, charon: &Charon) {
        let (spi_in, spi_out) = self.tunnel().expect("a tunnel");
        let list = charon.swanctl("--list-sas");
        assert!(list.contains("ESTABLISHED") && list.contains("INSTALLED"), "{list}");
        assert!(list.contains(&spi_in) && list.contains(&spi_out), "{spi_in} {spi_out} in\n{list}");
    }

    /// swanctl waits for us, so it runs beside.
    fn swanctl(&mut self, charon: &Charon, what: &str) {
        let mut process = charon.swanctl_command(what).stdout(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while process.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                let _ = process.kill();
                let _ = process.wait();
                panic!("swanctl {what} does not end");
            }
            self.step();
        }
    }

    fn rekey(&mut self, child: Option<&str>) {
        self.command(IkeCommand::Rekey { connection: "home".into(), child: child.map(Into::into) });
    }
}

/// Runs the rest of a test inside our namespace: this program again, for that one test.
fn enter(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    assert!(
        Path::new(CHARON).exists(),
        "strongSwan is not installed; scripts/setup installs it, and without it this test proves nothing"
    );
    let namespaces = Namespaces::new();
    let status = Command::new("ip")
        .args(["netns", "exec", &format!("{}a", namespaces.name)])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, format!("{}b", namespaces.name))
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed inside its namespace");
    false
}

fn peer_namespace() -> String {
    std::env::var(INSIDE).unwrap()
}

fn work_dir(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("mobikex-{}-{name}", std::process::id()))
}

const SUITES: [(&str, &str); 4] = [
    ("aes256gcm16-prfsha384-x25519", "aes256gcm16"),
    ("chacha20poly1305-prfsha256-ecp256", "chacha20poly1305"),
    ("aes128-sha256-modp2048", "aes128-sha256"),
    ("aes256-sha512-ecp384", "aes256gcm16-x25519"),
];

#[test]
fn every_suite_in_both_roles() {
    if !enter("every_suite_in_both_roles") {
        return;
    }
    for (index, (proposals, esp)) in SUITES.into_iter().enumerate() {
        let charon = Charon::start(&peer_namespace(), &work_dir(&index.to_string()), proposals, esp);
        let mut live = Live::new(our_config(proposals, esp, "correct horse"));
        live.command(IkeCommand::Up { connection: "home".into(), child: None });
        live.until("we initiate", |l| l.tunnel().is_some());
        live.assert_agreed(&charon);
        live.command(IkeCommand::Down { connection: "home".into(), child: None });
        live.until("we delete", |l| l.views().is_empty());
        assert!(!charon.swanctl("--list-sas").contains("ESTABLISHED"));

        live.swanctl(&charon, "--initiate --child net");
        live.until("charon initiates", |l| l.tunnel().is_some());
        live.assert_agreed(&charon);
        live.swanctl(&charon, "--terminate --ike home");
        live.until("charon deletes", |l| l.views().is_empty());
    }
}

#[test]
fn rekeying_and_liveness_from_either_side() {
    if !enter("rekeying_and_liveness_from_either_side") {
        return;
    }
    let (proposals, esp) = ("aes256gcm16-prfsha384-x25519", "aes256gcm16-x25519");
    let charon = Charon::start(&peer_namespace(), &work_dir("rekey"), proposals, esp);
    let mut config = our_config(proposals, esp, "correct horse");
    config.connections[0].dpd_delay = Duration::from_millis(700);
    let mut live = Live::new(config);
    live.command(IkeCommand::Up { connection: "home".into(), child: None });
    live.until("we initiate", |l| l.tunnel().is_some());
    for round in 0..2 {
        for (by_us, child) in [(true, true), (false, true), (true, false), (false, false)] {
            let (before, ike) = (live.tunnel(), live.views()[0].spi_i);
            match (by_us, child) {
                (true, true) => live.rekey(Some("net")),
                (true, false) => live.rekey(None),
                (false, true) => live.swanctl(&charon, "--rekey --child net"),
                (false, false) => live.swanctl(&charon, "--rekey --ike home"),
            }
            let what = format!("round {round}, by us {by_us}, child {child}");
            live.until(&what, |l| {
                let changed =
                    if child { l.tunnel() != before } else { l.views().iter().all(|v| v.spi_i != ike) };
                l.tunnel().is_some() && changed && l.views().len() == 1
            });
            live.assert_agreed(&charon);
        }
    }
    // Liveness checks go unanswered by nobody: after several intervals the SA still stands.
    let end = Instant::now() + Duration::from_secs(3);
    live.until("liveness", |_| Instant::now() > end);
    live.assert_agreed(&charon);
    assert!(charon.log().contains("parsed INFORMATIONAL request"), "{}", charon.log());
    live.swanctl(&charon, "--terminate --child net");
    live.until("charon deletes the child", |l| l.tunnel().is_none());
    assert_eq!(live.views()[0].state, "ESTABLISHED");
}

#[test]
fn disagreement_is_reported_and_leaves_nothing() {
    if !enter("disagreement_is_reported_and_leaves_nothing") {
        return;
    }
    let (proposals, esp) = ("aes256gcm16-prfsha384-x25519", "aes256gcm16");
    let charon = Charon::start(&peer_namespace(), &work_dir("refuse"), proposals, esp);
    for (ours, our_esp, secret, reason) in [
        (proposals, esp, "wrong", "AUTHENTICATION_FAILED"),
        ("chacha20poly1305-prfsha256-ecp256", esp, "correct horse", "NO_PROPOSAL_CHOSEN"),
        (proposals, "chacha20poly1305", "correct horse", "NO_PROPOSAL_CHOSEN"),
    ] {
        let mut live = Live::new(our_config(ours, our_esp, secret));
        live.command(IkeCommand::Up { connection: "home".into(), child: None });
        live.until(reason, |l| l.events.contains(reason));
        assert!(live.children.is_empty());
        live.command(IkeCommand::Shutdown);
        live.until("shut down", |l| l.views().is_empty());
    }
    // And the other way round: charon proves itself with a secret that is not ours.
    let mut live = Live::new(our_config(proposals, esp, "wrong"));
    live.swanctl(&charon, "--initiate --child net --timeout 5");
    assert!(live.events.contains("MAC of b.example is wrong"), "{}", live.events);
    assert!(live.views().is_empty() && live.children.is_empty());
    drop(live);
    // Whom we do not accept must not believe in us.
    let mut config = our_config(proposals, esp, "correct horse");
    config.connections[0].remote.id = Some(Identification::pattern("*.example.org").unwrap());
    let mut live = Live::new(config);
    live.command(IkeCommand::Up { connection: "home".into(), child: None });
    live.until("it is somebody else", |l| l.views().is_empty());
    assert!(live.events.contains("b.example"), "{}", live.events);
    charon.until_logged("parsed INFORMATIONAL request 2 [ N(AUTH_FAILED) ]");
    let list = charon.swanctl("--list-sas");
    assert!(!list.contains("ESTABLISHED") && !list.contains("INSTALLED"), "{list}");
}
