//! How SAs, connections and counters are shown: as text in the look of `swanctl`, and as data for programs.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use mobikex_common::addr::Path;
use mobikex_common::drop::DropReason;
use mobikex_common::sa::ChildSaId;
use mobikex_common::ts::TrafficSelector;
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::{Config, Connection, Method};
use crate::ike::{
    ChildSaView, Given, IkeCounters, IkeSaView, LeaseView, PathView, PoolView, ResourceView, Version,
};

/// What a Child SA has carried.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Traffic {
    /// Octets of inner packets received.
    pub bytes_in: u64,
    /// Inner packets received.
    pub packets_in: u64,
    /// Seconds since the last packet received, if any was.
    pub idle_in: Option<u64>,
    /// Octets of inner packets sent.
    pub bytes_out: u64,
    /// Inner packets sent.
    pub packets_out: u64,
    /// Seconds since the last packet sent, if any was.
    pub idle_out: Option<u64>,
    /// The last sequence number given out.
    pub sequence_out: u64,
    /// The highest authentic sequence number received.
    pub sequence_in: u64,
    /// By pair of outer addresses.
    pub paths: Vec<PathTraffic>,
}

/// What a pair of outer addresses has carried, in ESP packets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PathTraffic {
    /// The pair.
    pub path: Path,
    /// Authentic ESP packets received.
    pub packets_in: u64,
    /// Their octets.
    pub bytes_in: u64,
    /// ESP packets sent.
    pub packets_out: u64,
    /// Their octets.
    pub bytes_out: u64,
}

/// A moment's SAs with their traffic, and the connections that have none.
#[derive(Debug, Default)]
pub struct Sas {
    /// All IKE SAs.
    pub ike: Vec<IkeSaView>,
    /// Traffic of their Child SAs.
    pub traffic: HashMap<ChildSaId, Traffic>,
    /// Configured connections without an SA.
    pub down: Vec<String>,
}

impl Sas {
    /// `{"ike_sas": [..], "down": [..]}`; each child has an object `traffic`.
    pub fn data(&self) -> Value {
        let ike: Vec<Value> = self
            .ike
            .iter()
            .map(|sa| {
                let mut value = json!(sa);
                let children = value.get_mut("children").and_then(Value::as_array_mut);
                for (child, view) in children.into_iter().flatten().zip(&sa.children) {
                    child["traffic"] = json!(self.traffic.get(&view.id));
                }
                value
            })
            .collect();
        json!({ "ike_sas": ike, "down": self.down })
    }
}

impl fmt::Display for Sas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for sa in &self.ike {
            write_ike_sa(f, sa, &self.traffic)?;
        }
        for name in &self.down {
            writeln!(f, "{name}: DOWN, IKEv2")?;
        }
        Ok(())
    }
}

fn write_ike_sa(
    f: &mut fmt::Formatter<'_>,
    sa: &IkeSaView,
    traffic: &HashMap<ChildSaId, Traffic>,
) -> fmt::Result {
    // The asterisk marks our own SPI, as in swanctl.
    let (mark_i, mark_r) = if sa.initiator { ("*", "") } else { ("", "*") };
    writeln!(
        f,
        "{}: #{}, {}, IKEv2, {}_i{mark_i} {}_r{mark_r}",
        sa.name, sa.id, sa.state, sa.spi_i, sa.spi_r
    )?;
    let id = |id: &Option<String>| id.clone().unwrap_or_else(|| "%any".to_string());
    // Virtual addresses in brackets, as in swanctl.
    let vips =
        |list: &[IpAddr]| if list.is_empty() { String::new() } else { format!(" [{}]", join(list, " ")) };
    let own = sa.given.as_ref().map_or(&[][..], |given| &given.addresses);
    writeln!(f, "  local  '{}' @ {}[{}]{}", id(&sa.local_id), sa.local.ip(), sa.local.port(), vips(own))?;
    let eap = sa.remote_eap_id.as_ref().map(|id| format!(" EAP: '{id}'")).unwrap_or_default();
    let theirs = vips(&sa.remote_vips);
    writeln!(f, "  remote '{}' @ {}[{}]{eap}{theirs}", id(&sa.remote_id), sa.remote.ip(), sa.remote.port())?;
    for (whose, rounds) in [("local", &sa.local_rounds), ("remote", &sa.remote_rounds)] {
        // One has been shown already.
        if rounds.len() > 1 {
            let shown: Vec<_> = rounds.iter().map(ToString::to_string).collect();
            writeln!(f, "  {whose} rounds: {}", shown.join(", "))?;
        }
    }
    sa.given.iter().try_for_each(|given| write_given(f, given))?;
    if sa.mobike != Version::None {
        let alternates: Vec<_> = sa.alternates.iter().map(ToString::to_string).collect();
        let also = if alternates.is_empty() {
            String::new()
        } else {
            format!(", peer also at {}", alternates.join(" "))
        };
        writeln!(f, "  {}{also}", sa.mobike)?;
    }
    if let Some(suite) = &sa.suite {
        writeln!(f, "  {}", suite.trim_start_matches("IKE:"))?;
    }
    if let Some(seconds) = sa.established {
        write!(f, "  established {seconds}s ago")?;
        writeln!(f, "{}", rekeying(sa.rekey_in))?;
    }
    sa.children.iter().try_for_each(|child| write_child_sa(f, child, &sa.paths, traffic.get(&child.id)))
}

/// What a peer has named beside our virtual addresses.
fn write_given(f: &mut fmt::Formatter<'_>, given: &Given) -> fmt::Result {
    for (what, list) in [
        ("DNS servers", join(&given.dns, " ")),
        ("DNS domains", join(&given.domains, " ")),
        ("NBNS servers", join(&given.nbns, " ")),
        ("DHCP servers", join(&given.dhcp, " ")),
        ("networks", join(&given.subnets, " ")),
    ] {
        if !list.is_empty() {
            writeln!(f, "  {what} of the peer: {list}")?;
        }
    }
    Ok(())
}

/// The pools of virtual addresses.
#[derive(Debug)]
pub struct Pools {
    /// The pools.
    pub pools: Vec<PoolView>,
    /// Leases, if they are asked for.
    pub leases: Option<Vec<LeaseView>>,
}

impl Pools {
    /// `{"pools": [..]}`, and a list `leases` if they are asked for.
    pub fn data(&self) -> Value {
        match &self.leases {
            Some(leases) => json!({ "pools": self.pools, "leases": leases }),
            None => json!({ "pools": self.pools }),
        }
    }
}

impl fmt::Display for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pool in &self.pools {
            let PoolView { name, addrs, size, online, offline } = pool;
            writeln!(f, "{name:<16} {addrs}, {size} addresses: {online} online, {offline} offline")?;
        }
        for lease in self.leases.iter().flatten() {
            let (state, pool) =
                (if lease.online { "online" } else { "offline" }, lease.pool.as_deref().unwrap_or("no pool"));
            writeln!(f, "  {:<30} {state:<7} '{}' ({pool})", lease.addr, lease.identity)?;
        }
        Ok(())
    }
}

fn write_child_sa(
    f: &mut fmt::Formatter<'_>,
    child: &ChildSaView,
    states: &[PathView],
    traffic: Option<&Traffic>,
) -> fmt::Result {
    let udp = if child.addresses.paths.iter().any(|p| p.encap) { "-in-UDP" } else { "" };
    writeln!(f, "  {}: #{}, {}, {}{udp}, {}", child.name, child.id.0, child.state, child.mode, child.suite)?;
    writeln!(f, "    installed {}s ago{}", child.installed, rekeying(child.rekey_in))?;
    if let Some(ResourceView { worker, peer }) = &child.resource {
        let whose =
            worker.map_or("for workers without their own".into(), |worker| format!("for worker {worker}"));
        let theirs = peer.as_ref().map_or(String::new(), |id| format!(", the peer's resource {id}"));
        writeln!(f, "    {whose}{theirs}")?;
    }
    let none = Traffic::default();
    let t = traffic.unwrap_or(&none);
    for (way, spi, bytes, packets, idle) in [
        ("in ", child.spi_in, t.bytes_in, t.packets_in, t.idle_in),
        ("out", child.spi_out, t.bytes_out, t.packets_out, t.idle_out),
    ] {
        let idle = idle.map_or(String::new(), |s| format!(", {s:>5}s ago"));
        writeln!(f, "    {way} {spi}, {bytes:>6} bytes, {packets:>5} packets{idle}")?;
    }
    writeln!(f, "    local  {}", list(&child.ts_local))?;
    writeln!(f, "    remote {}", list(&child.ts_remote))?;
    if child.addresses.paths.len() > 1 {
        writeln!(f, "    scheduler {}", child.addresses.scheduler)?;
        for (side, addresses) in [("ours  ", &child.local_addresses), ("theirs", &child.remote_addresses)] {
            for a in addresses {
                writeln!(f, "    {side} {}, {}, preference {}", a.addr, a.state, a.preference)?;
            }
        }
    }
    for weighted in &child.addresses.paths {
        let path = weighted.path;
        write!(f, "    path   {path}, weight {}", weighted.weight)?;
        if weighted.limited {
            write!(f, ", being checked")?;
        }
        if let Some(state) = states.iter().find(|s| s.path == path && s.rtt_us.is_some()) {
            let rtt = state.rtt_us.unwrap_or(0) as f64 / 1000.0;
            write!(
                f,
                ", {}, rtt {rtt:.1} ms, loss {:.1} %",
                state.health,
                f64::from(state.loss_permille) / 10.0
            )?;
            if let Some(rate) = state.rate_bps {
                write!(f, ", carries {:.1} Mbit/s", rate as f64 / 1e6)?;
            }
        }
        if let Some(p) = t.paths.iter().find(|p| p.path == path) {
            write!(
                f,
                ", in {} bytes {} packets, out {} bytes {} packets",
                p.bytes_in, p.packets_in, p.bytes_out, p.packets_out
            )?;
        }
        writeln!(f)?;
    }
    Ok(())
}

fn rekeying(seconds: Option<u64>) -> String {
    seconds.map_or(String::new(), |s| format!(", rekeying in {s}s"))
}

fn list(selectors: &[TrafficSelector]) -> String {
    join(selectors, " ")
}

fn join<T: fmt::Display>(items: &[T], separator: &str) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(separator)
}

/// The configured connections as `swanctl --list-conns` shows them.
pub fn connections_text(config: &Config) -> String {
    let mut out = String::new();
    for conn in &config.connections {
        // Writing to a String cannot fail.
        let _ = write_connection(&mut out, conn);
    }
    out
}

/// The configured connections as data, without secrets.
pub fn connections_data(config: &Config) -> Value {
    json!({ "connections": config.connections })
}

fn write_connection(out: &mut String, conn: &Connection) -> fmt::Result {
    let every = |seconds: u64| match seconds {
        0 => "no rekeying".to_string(),
        n => format!("rekeying every {n}s"),
    };
    write!(out, "{}: IKEv2, no reauthentication, {}", conn.name, every(conn.rekey_time.as_secs()))?;
    match conn.dpd_delay.as_secs() {
        0 => writeln!(out)?,
        n => writeln!(out, ", dpd delay {n}s")?,
    }
    writeln!(out, "  local:  {}", join(&conn.local_addrs, " "))?;
    writeln!(out, "  remote: {}", join(&conn.remote_addrs, " "))?;
    if !conn.vips.is_empty() {
        writeln!(out, "  vips:   {}", join(&conn.vips, " "))?;
    }
    if !conn.pools.is_empty() {
        writeln!(out, "  pools:  {}", conn.pools.join(" "))?;
    }
    let sides = conn.locals().map(|round| ("local", round));
    for (side, round) in sides.chain(conn.remotes().map(|round| ("remote", round))) {
        let method = match &round.method {
            Method::Psk => "pre-shared key".to_string(),
            Method::Pubkey(_) => "public key".to_string(),
            Method::Eap(kinds) => join(kinds, " "),
        };
        writeln!(out, "  {side} {method} authentication:")?;
        if let Some(id) = &round.id {
            writeln!(out, "    id: {id}")?;
        }
    }
    for child in &conn.children {
        writeln!(out, "  {}: {}, {}", child.name, child.mode, every(child.rekey_time.as_secs()))?;
        writeln!(out, "    local:  {}", join(&child.local_ts, " "))?;
        writeln!(out, "    remote: {}", join(&child.remote_ts, " "))?;
    }
    Ok(())
}

/// Counters of the whole daemon.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Of the program.
    pub version: &'static str,
    /// Who does the cryptography.
    pub crypto: &'static str,
    /// Seconds since the start.
    pub uptime: u64,
    /// IKE SAs by state.
    pub ike_sas: BTreeMap<&'static str, usize>,
    /// Child SAs by state.
    pub child_sas: BTreeMap<&'static str, usize>,
    /// IKE messages that were not acted on, by reason.
    pub ike_ignored: IkeCounters,
    /// Actions of peers on addresses that were refused, by the notify that says why.
    pub actions_refused: BTreeMap<String, u64>,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// What the kernel dropped at the TUN device; absent when it does not say.
    pub tun: Option<TunDrops>,
    /// How the packet workers have waited for work.
    pub waits: Waits,
}

/// How the packet workers have waited for work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Waits {
    /// Times that one blocked until there was work.
    pub blocked: u64,
    /// Times that one looked for work without blocking (`busy_poll`).
    pub looked: u64,
}

/// What never came from the TUN device to us, or from us into the system.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TunDrops {
    /// Its name.
    pub device: String,
    /// Packets for the tunnels that found the device's queue full.
    pub tx_dropped: u64,
    /// Packets from the tunnels that the system did not take.
    pub rx_dropped: u64,
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "mobikex {}, cryptography by {}, up {}s", self.version, self.crypto, self.uptime)?;
        for (what, states) in [("IKE_SAs", &self.ike_sas), ("CHILD_SAs", &self.child_sas)] {
            let mut line = format!("{what}: {}", states.values().sum::<usize>());
            for (state, count) in states {
                write!(line, ", {count} {state}")?;
            }
            writeln!(f, "{line}")?;
        }
        writeln!(f, "IKE messages ignored:")?;
        if let Value::Object(counters) = json!(self.ike_ignored) {
            // A number of JSON would not heed the width.
            let counts = counters.iter().filter_map(|(name, count)| Some((name, count.as_u64()?)));
            for (name, count) in counts.filter(|(_, count)| *count != 0) {
                writeln!(f, "  {name:<24} {count:>10}")?;
            }
        }
        writeln!(f, "actions on addresses refused:")?;
        for (notify, count) in &self.actions_refused {
            writeln!(f, "  {notify:<24} {count:>10}")?;
        }
        writeln!(
            f,
            "packet workers: waited for work {} times, looked for it {} times",
            self.waits.blocked, self.waits.looked
        )?;
        writeln!(f, "packets dropped:")?;
        for (name, count) in self.drops.iter().filter(|(_, count)| **count != 0) {
            let text = DropReason::ALL.iter().find(|r| r.name() == *name).map_or("", |r| r.text());
            writeln!(f, "  {name:<24} {count:>10}  {text}")?;
        }
        if let Some(tun) = &self.tun {
            writeln!(f, "packets dropped by the kernel at {}:", tun.device)?;
            for (name, count, text) in [
                (
                    "tx_dropped",
                    tun.tx_dropped,
                    "The queue was full: packets came faster than they were read.",
                ),
                (
                    "rx_dropped",
                    tun.rx_dropped,
                    "The system did not take a packet that had come through a tunnel.",
                ),
            ] {
                if count != 0 {
                    writeln!(f, "  {name:<24} {count:>10}  {text}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use mobikex_common::addr::AddressSet;
    use mobikex_common::sa::Mode;
    use mobikex_common::spi::{IkeSpi, Spi};

    use super::*;

    fn sas() -> Sas {
        let (local, remote) = ("192.0.2.1:4500".parse().unwrap(), "192.0.2.2:4500".parse().unwrap());
        let path = Path { local, remote };
        let child = ChildSaView {
            id: ChildSaId(3),
            name: "net".into(),
            state: "INSTALLED",
            mode: Mode::Tunnel,
            spi_in: Spi(0xc000_0001),
            spi_out: Spi(0xc000_0002),
            suite: "ESP:AES_GCM_16_256/EXT_SEQ".into(),
            resource: Some(ResourceView { worker: Some(1), peer: Some("c0ffee01".into()) }),
            ts_local: vec!["10.1.0.0/16".parse().unwrap()],
            ts_remote: vec!["10.2.0.0/16".parse().unwrap(), "10.3.0.0/16".parse().unwrap()],
            addresses: AddressSet::single(path, true),
            local_addresses: vec![],
            remote_addresses: vec![],
            installed: 12,
            rekey_in: Some(3300),
        };
        let ike = IkeSaView {
            id: 1,
            name: "home".into(),
            state: "ESTABLISHED",
            initiator: true,
            spi_i: IkeSpi(0x1122_3344_5566_7788),
            spi_r: IkeSpi(0x99aa_bbcc_ddee_ff00),
            local,
            remote,
            mobike: Version::None,
            paths: vec![],
            alternates: vec![],
            local_id: Some("moon".into()),
            remote_id: Some("sun".into()),
            remote_eap_id: None,
            local_rounds: vec![],
            remote_rounds: vec![],
            remote_vips: vec![],
            given: None,
            suite: Some("IKE:AES_GCM_16_256/PRF_HMAC_SHA2_384/CURVE_25519".into()),
            established: Some(12),
            rekey_in: Some(13000),
            children: vec![child],
        };
        let path = PathTraffic { path, packets_in: 1, bytes_in: 120, packets_out: 2, bytes_out: 240 };
        let traffic = Traffic {
            bytes_in: 84,
            packets_in: 1,
            idle_in: Some(5),
            bytes_out: 168,
            packets_out: 2,
            paths: vec![path],
            ..Traffic::default()
        };
        Sas { ike: vec![ike], traffic: HashMap::from([(ChildSaId(3), traffic)]), down: vec!["branch".into()] }
    }

    #[test]
    fn sas_look_as_in_swanctl() {
        let want = "\
home: #1, ESTABLISHED, IKEv2, 1122334455667788_i* 99aabbccddeeff00_r
  local  'moon' @ 192.0.2.1[4500]
  remote 'sun' @ 192.0.2.2[4500]
  AES_GCM_16_256/PRF_HMAC_SHA2_384/CURVE_25519
  established 12s ago, rekeying in 13000s
  net: #3, INSTALLED, TUNNEL-in-UDP, ESP:AES_GCM_16_256/EXT_SEQ
    installed 12s ago, rekeying in 3300s
    for worker 1, the peer's resource c0ffee01
    in  c0000001,     84 bytes,     1 packets,     5s ago
    out c0000002,    168 bytes,     2 packets
    local  10.1.0.0/16
    remote 10.2.0.0/16 10.3.0.0/16
    path   192.0.2.1:4500==192.0.2.2:4500, weight 1, in 120 bytes 1 packets, out 240 bytes 2 packets
branch: DOWN, IKEv2
";
        assert_eq!(sas().to_string(), want);
    }

    #[test]
    fn virtual_addresses_stand_behind_the_outer_ones() {
        let mut sas = sas();
        sas.ike[0].given = Some(Given {
            addresses: vec!["10.3.0.1".parse().unwrap(), "fd03::1".parse().unwrap()],
            dns: vec!["10.2.0.53".parse().unwrap()],
            subnets: vec!["10.2.0.0/16".into()],
            ..Given::default()
        });
        sas.ike[0].remote_vips = vec!["10.4.0.1".parse().unwrap()];
        let shown = sas.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines[1..5],
            [
                "  local  'moon' @ 192.0.2.1[4500] [10.3.0.1 fd03::1]",
                "  remote 'sun' @ 192.0.2.2[4500] [10.4.0.1]",
                "  DNS servers of the peer: 10.2.0.53",
                "  networks of the peer: 10.2.0.0/16",
            ]
        );
        let data = sas.data();
        assert_eq!(data["ike_sas"][0]["given"]["addresses"], json!(["10.3.0.1", "fd03::1"]));
        assert_eq!(data["ike_sas"][0]["remote_vips"], json!(["10.4.0.1"]));
    }

    #[test]
    fn several_rounds_of_authentication_are_shown_and_one_is_not() {
        use crate::ike::RoundView;
        let round =
            |id: &str, by, eap: Option<&str>| RoundView { id: id.into(), eap_id: eap.map(Into::into), by };
        let mut sas = sas();
        sas.ike[0].local_rounds = vec![round("moon", "a signature", None)];
        assert_eq!(sas.to_string(), self::sas().to_string());
        let theirs = vec![round("host", "a signature", None), round("sun", "EAP", Some("carol"))];
        (sas.ike[0].remote_eap_id, sas.ike[0].remote_rounds) = (Some("carol".into()), theirs);
        let shown = sas.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[2], "  remote 'sun' @ 192.0.2.2[4500] EAP: 'carol'");
        assert_eq!(lines[3], "  remote rounds: 'host' by a signature, 'sun' by EAP as 'carol'");
        let data = sas.data();
        assert_eq!(
            data["ike_sas"][0]["local_rounds"],
            json!([{ "id": "moon", "eap_id": null, "by": "a signature" }])
        );
        assert_eq!(data["ike_sas"][0]["remote_rounds"][1]["eap_id"], "carol");
    }

    #[test]
    fn connections_show_each_round() {
        let text = "connections { home { remote_addrs = 192.0.2.2
              local { auth = psk }
              remote-1 { auth = psk
                id = host }
              remote-2 { auth = eap-mschapv2
                id = sun }
              children { net { remote_ts = 10.2.0.0/16 } } } }
            secrets { ike { secret = x }
              eap-sun { id = sun
                secret = y } }";
        let shown = connections_text(&crate::config::parse_str("test", text).unwrap());
        let rounds = "\
  local pre-shared key authentication:
  remote pre-shared key authentication:
    id: host
  remote EAP_MSCHAPV2 authentication:
    id: sun
";
        assert!(shown.contains(rounds), "{shown}");
    }

    #[test]
    fn pools_show_their_leases_where_they_are_asked_for() {
        let addrs = crate::config::AddressRange {
            start: "10.3.0.1".parse().unwrap(),
            end: "10.3.0.254".parse().unwrap(),
        };
        let pool = PoolView { name: "rw".into(), addrs, size: 254, online: 1, offline: 0 };
        let lease = LeaseView {
            pool: Some("rw".into()),
            addr: addrs.start,
            identity: "carol@example.org".into(),
            online: true,
        };
        let mut pools = Pools { pools: vec![pool], leases: None };
        let first = "rw               10.3.0.1-10.3.0.254, 254 addresses: 1 online, 0 offline\n";
        assert_eq!(pools.to_string(), first);
        assert_eq!(pools.data()["pools"][0]["size"], 254);
        assert_eq!(pools.data().get("leases"), None);
        pools.leases = Some(vec![lease]);
        let second = "  10.3.0.1                       online  'carol@example.org' (rw)\n";
        assert_eq!(pools.to_string(), format!("{first}{second}"));
        assert_eq!(pools.data()["leases"][0]["online"], true);
    }

    #[test]
    fn sas_as_data_carry_their_traffic() {
        let data = sas().data();
        assert_eq!(data["down"][0], "branch");
        assert_eq!(data["ike_sas"][0]["spi_i"], "1122334455667788");
        let child = &data["ike_sas"][0]["children"][0];
        assert_eq!(child["traffic"]["packets_out"], 2);
        assert_eq!(child["traffic"]["paths"][0]["bytes_in"], 120);
        assert_eq!(child["spi_in"], "c0000001");
        assert_eq!(child["ts_remote"][1], "10.3.0.0/16");
    }

    #[test]
    fn drops_are_shown_with_their_reasons_and_those_of_the_kernel_apart() {
        let stats = Stats {
            version: "1.0",
            crypto: "ring",
            uptime: 7,
            ike_sas: BTreeMap::new(),
            child_sas: BTreeMap::from([("INSTALLED", 2)]),
            ike_ignored: IkeCounters { unknown_spi: 3, ..IkeCounters::default() },
            actions_refused: BTreeMap::new(),
            drops: BTreeMap::from([("out_no_policy", 4), ("in_no_sa", 0)]),
            tun: Some(TunDrops { device: "tun9".into(), tx_dropped: 5, rx_dropped: 0 }),
            waits: Waits { blocked: 8, looked: 9 },
        };
        let want = "\
mobikex 1.0, cryptography by ring, up 7s
IKE_SAs: 0
CHILD_SAs: 2, 2 INSTALLED
IKE messages ignored:
  unknown_spi                       3
actions on addresses refused:
packet workers: waited for work 8 times, looked for it 9 times
packets dropped:
  out_no_policy                     4  No policy covers a packet from the TUN device.
packets dropped by the kernel at tun9:
  tx_dropped                        5  The queue was full: packets came faster than they were read.
";
        assert_eq!(stats.to_string(), want);
        let data = json!(stats);
        assert_eq!(data["tun"], json!({ "device": "tun9", "tx_dropped": 5, "rx_dropped": 0 }));
    }

    #[test]
    fn stats_say_what_was_refused_and_why() {
        let stats = Stats {
            version: "1",
            crypto: "none",
            uptime: 1,
            ike_sas: BTreeMap::new(),
            child_sas: BTreeMap::new(),
            ike_ignored: IkeCounters::default(),
            actions_refused: BTreeMap::from([("DOES_NOT_FIT_SPD".into(), 3)]),
            drops: BTreeMap::new(),
            tun: None,
            waits: Waits::default(),
        };
        let line = format!("actions on addresses refused:\n  DOES_NOT_FIT_SPD {:>18}\n", 3);
        assert!(stats.to_string().contains(&line), "{stats}");
        assert_eq!(json!(stats)["actions_refused"]["DOES_NOT_FIT_SPD"], 3);
    }

    #[test]
    fn connections_are_shown_without_their_secrets() {
        let text = "connections { home { remote_addrs = 192.0.2.2
              local { auth = psk
                id = moon }
              remote { auth = psk
                id = sun }
              dpd_delay = 30s
              children { net { remote_ts = 10.2.0.0/16 } } } }
            secrets { ike { secret = verysecret } }";
        let config = crate::config::parse_str("test", text).unwrap();
        let want = "\
home: IKEv2, no reauthentication, rekeying every 14400s, dpd delay 30s
  local:  %any
  remote: 192.0.2.2
  local pre-shared key authentication:
    id: moon
  remote pre-shared key authentication:
    id: sun
  net: TUNNEL, rekeying every 3600s
    local:  dynamic
    remote: 10.2.0.0/16
";
        assert_eq!(connections_text(&config), want);
        let data = connections_data(&config);
        assert_eq!(data["connections"][0]["name"], "home");
        assert!(!data.to_string().contains("verysecret"));
    }
}
