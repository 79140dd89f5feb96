//! Two daemons in network namespaces of their own, joined by a link: what an operator does, from start to end.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Two hosts with a link between them, and a scratch directory; removed on drop.
struct Net {
    tag: String,
    dir: PathBuf,
}

impl Net {
    /// `None`, with a word about it, where network namespaces or TUN devices cannot be had.
    fn new(test: &str) -> Option<Self> {
        let able = Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|s| s.success());
        if !able || !std::path::Path::new("/dev/net/tun").exists() {
            eprintln!("SKIPPED {test}: needs root, network namespaces and /dev/net/tun");
            return None;
        }
        let tag = format!("mbx-{test}-{}", std::process::id());
        let dir = std::env::temp_dir().join(&tag);
        std::fs::create_dir_all(&dir).unwrap();
        let net = Self { tag, dir };
        for host in ["a", "b"] {
            ip(&format!("netns add {}", net.ns(host)));
            ip(&format!("-n {} link set lo up", net.ns(host)));
        }
        ip(&format!("link add w0 netns {} type veth peer name w0 netns {}", net.ns("a"), net.ns("b")));
        for (host, n) in [("a", 1), ("b", 2)] {
            let ns = net.ns(host);
            ip(&format!("-n {ns} addr add 192.0.2.{n}/24 dev w0"));
            ip(&format!("-n {ns} addr add 2001:db8::{n}/64 dev w0 nodad"));
            ip(&format!("-n {ns} addr add 10.{n}.0.1/16 dev lo"));
            ip(&format!("-n {ns} addr add fd0{n}::1/64 dev lo nodad"));
            ip(&format!("-n {ns} link set w0 up"));
        }
        Some(net)
    }

    fn ns(&self, host: &str) -> String {
        format!("{}-{host}", self.tag)
    }

    fn ip(&self, host: &str, args: &str) -> String {
        ip(&format!("-n {} {args}", self.ns(host)))
    }

    fn write_config(&self, host: &str, secret: &str, wan: &str, lan: (&str, &str), extra: &str) {
        let (own, peer, id, peer_id) =
            if host == "a" { (1, 2, "moon", "sun") } else { (2, 1, "sun", "moon") };
        let text = format!(
            "mobikex {{
                workers = 1
            }}
            connections {{
                home {{
                    local_addrs = {wan}{own}
                    remote_addrs = {wan}{peer}
                    mobike = no
                    local {{
                        auth = psk
                        id = {id}
                    }}
                    remote {{
                        auth = psk
                        id = {peer_id}
                    }}
                    children {{
                        net {{
                            local_ts = {}
                            remote_ts = {}
                            {extra}
                        }}
                    }}
                }}
            }}
            secrets {{
                ike-home {{
                    secret = \"{secret}\"
                }}
            }}",
            lan.0, lan.1,
        );
        std::fs::write(self.dir.join(format!("{host}.conf")), text).unwrap();
    }

    fn start(&self, host: &str) -> Daemon {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.dir.join(format!("{host}.log")))
            .unwrap();
        let socket = self.dir.join(format!("{host}.sock"));
        let child = Command::new("ip")
            .args(["netns", "exec", &self.ns(host), env!("CARGO_BIN_EXE_mobikex"), "run", "-c"])
            .arg(self.dir.join(format!("{host}.conf")))
            .arg("--socket")
            .arg(&socket)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon { child, socket };
        wait_for("the daemon answers", || daemon.run(&["sas"]).status.success());
        daemon
    }

    fn log(&self, host: &str) -> String {
        std::fs::read_to_string(self.dir.join(format!("{host}.log"))).unwrap_or_default()
    }

    /// How many of five echo requests from `a` are answered.
    fn ping(&self, to: &str) -> usize {
        let ns = self.ns("a");
        let out = Command::new("ip")
            .args(["netns", "exec", &ns, "ping", "-c5", "-i0.05", "-W1", to])
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).matches("icmp_seq=").count()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in ["a", "b"] {
                eprintln!("--- log of {host}\n{}", self.log(host));
            }
        }
        for host in ["a", "b"] {
            let _ = Command::new("ip").args(["netns", "del", &self.ns(host)]).status();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn run(&self, args: &[&str]) -> Output {
        let binary = env!("CARGO_BIN_EXE_mobikex");
        Command::new(binary).args(args).arg("--socket").arg(&self.socket).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{args:?}: {stdout}{stderr}");
        stdout.into_owned()
    }

    fn data(&self, view: &str) -> Value {
        serde_json::from_str(&self.ok(&[view, "--json"])).unwrap()
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Ends it politely; true if it reported success.
    fn stop(mut self) -> bool {
        self.signal("-TERM");
        wait_for("the daemon ends", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap().success()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ip(args: &str) -> String {
    let out = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < give_up, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const LAN: (&str, &str) = ("10.1.0.0/16", "10.2.0.0/16");
const LAN_BACK: (&str, &str) = ("10.2.0.0/16", "10.1.0.0/16");

#[test]
fn a_tunnel_from_up_to_the_end() {
    let Some(net) = Net::new("tunnel") else { return };
    net.write_config("a", "secret", "192.0.2.", LAN, "");
    net.write_config("b", "secret", "192.0.2.", LAN_BACK, "");
    let (a, b) = (net.start("a"), net.start("b"));
    assert_eq!(a.data("sas")["down"][0], "home");
    assert!(a.ok(&["conns"]).contains("remote: 10.2.0.0/16"));

    let said = a.ok(&["up", "home/net"]);
    assert!(said.contains("IKE_SA home[1] established between 192.0.2.1...192.0.2.2[sun]"), "{said}");
    assert!(said.contains("CHILD_SA net{1} established with SPIs"), "{said}");
    a.ok(&["up", "home/net"]);
    let route = net.ip("a", "route show table 220");
    assert!(route.contains("10.2.0.0/16 dev mobikex0 proto 109 scope link src 10.1.0.1"), "{route}");
    assert_eq!(net.ping("10.2.0.1"), 5);
    let traffic = |d: &Daemon| d.data("sas")["ike_sas"][0]["children"][0]["traffic"]["packets_in"].clone();
    assert_eq!((traffic(&a), traffic(&b)), (5.into(), 5.into()));

    let spi = |d: &Daemon| d.data("sas")["ike_sas"][0]["spi_i"].clone();
    let before = spi(&a);
    a.ok(&["rekey", "home/net"]);
    b.ok(&["rekey", "home"]);
    assert_ne!(spi(&a), before);
    assert_eq!(net.ping("10.2.0.1"), 5);

    a.ok(&["down", "home"]);
    assert_eq!(a.data("sas")["ike_sas"], Value::Array(vec![]));
    assert_eq!(net.ip("a", "route show table 220"), "");
    assert_eq!(a.run(&["up", "elsewhere"]).status.code(), Some(1));

    a.ok(&["up", "home"]);
    assert!(a.stop());
    assert!(!net.ip("a", "rule").contains("fwmark") && !net.ip("a", "link").contains("mobikex0"));
    assert!(!net.dir.join("a.sock").exists());
    wait_for("the peer knows", || b.data("sas")["ike_sas"] == Value::Array(vec![]));
    assert!(b.stop());
}

#[test]
fn a_trap_over_ipv6_survives_a_crash_of_the_peer() {
    let Some(net) = Net::new("trap") else { return };
    net.write_config("a", "secret", "2001:db8::", ("fd01::/64", "fd02::/64"), "start_action = trap");
    net.write_config("b", "secret", "2001:db8::", ("fd02::/64", "fd01::/64"), "");
    let (a, b) = (net.start("a"), net.start("b"));
    assert!(net.ip("a", "-6 route show table 220").contains("fd02::/64 dev mobikex0"));
    // The first packet asks for the SA and is lost.
    wait_for("traffic has set up the SA", || net.ping("fd02::1") == 5);

    b.signal("-KILL");
    drop(b);
    assert!(net.ip("b", "-6 rule").contains("fwmark"), "a crash leaves the rule behind");
    let b = net.start("b");
    assert_eq!(net.ip("b", "-6 rule").matches("fwmark").count(), 1);
    b.ok(&["up", "home"]);
    assert_eq!(net.ping("fd02::1"), 5);
    assert!(a.stop() && b.stop());
}

#[test]
fn an_icmp_error_makes_us_ask_the_peer() {
    let Some(net) = Net::new("icmp") else { return };
    net.write_config("a", "secret", "192.0.2.", LAN, "");
    net.write_config("b", "secret", "192.0.2.", LAN_BACK, "");
    let (a, b) = (net.start("a"), net.start("b"));
    a.ok(&["up", "home"]);
    assert_eq!(net.ping("10.2.0.1"), 5);
    assert!(!net.log("a").contains("undeliverable"));
    // Nobody listens on the port any more, and the host says so.
    b.signal("-KILL");
    drop(b);
    assert_eq!(net.ping("10.2.0.1"), 0);
    wait_for("the daemon asks", || net.log("a").contains("packets come back as undeliverable"));
    assert_eq!(net.log("a").matches("undeliverable").count(), 1, "not for each packet");
    assert!(a.stop());
}

#[test]
fn transport_mode_and_failures_that_say_why() {
    let Some(net) = Net::new("transport") else { return };
    let dynamic = ("dynamic", "dynamic");
    net.write_config("a", "wrong", "192.0.2.", dynamic, "mode = transport");
    net.write_config("b", "secret", "192.0.2.", dynamic, "mode = transport");
    let (a, b) = (net.start("a"), net.start("b"));
    let refused = a.run(&["up", "home"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("AUTHENTICATION_FAILED"));
    wait_for("the responder says why", || net.log("b").contains("do both sides have the same secret?"));

    net.write_config("a", "secret", "192.0.2.", dynamic, "mode = transport");
    a.signal("-HUP");
    wait_for("the configuration is loaded", || net.log("a").contains("configuration loaded"));
    a.ok(&["up", "home"]);
    assert!(net.ip("a", "route show table 220").contains("192.0.2.2 dev mobikex0"));
    assert_eq!(net.ping("192.0.2.2"), 5);
    wait_for("the packets are counted", || {
        a.data("sas")["ike_sas"][0]["children"][0]["traffic"]["packets_in"] == 5
    });
    // IKE itself stays outside the route that leads to the peer.
    a.ok(&["rekey", "home"]);
    a.ok(&["down", "home"]);

    let second = Command::new("ip")
        .args(["netns", "exec", &net.ns("a"), env!("CARGO_BIN_EXE_mobikex"), "run", "-c"])
        .arg(net.dir.join("a.conf"))
        .arg("--socket")
        .arg(&a.socket)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(net.ip("a", "rule").contains("fwmark"), "the first daemon is left alone");
    a.ok(&["up", "home"]);
    assert!(a.stop() && b.stop());
}

#[test]
fn without_a_daemon_and_with_a_wrong_configuration() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_mobikex")).args(args).output().unwrap();
    assert_eq!(run(&["sas", "--socket", "/nonexistent/socket"]).status.code(), Some(3));
    assert_eq!(run(&["up"]).status.code(), Some(2));
    let path = std::env::temp_dir().join(format!("mobikex-check-{}.conf", std::process::id()));
    std::fs::write(&path, "connections {\n  home {\n    mobkie = no\n  }\n}\n").unwrap();
    let checked = run(&["check", "-c", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&checked.stderr).contains(":3:5: "), "line and column");
}
