//! What a configuration would do, in words for `mobikex check`.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use mobikex_common::sa::{Mode, VolumeLimits};

use super::eap::EapId;
use super::model::{
    AuthRound, Child, Childless, Config, Connection, DpdAction, Fragmentation, Method, StartAction, Unique,
};
use super::multipath::{MobikeX, ReturnRoutability};
use super::pools::Pool;
use crate::credentials::{Certificate, date};

impl Config {
    /// What the daemon would do with this configuration, one fact a line. Keys never appear.
    pub fn describe(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = write_config(&mut out, self);
        out
    }
}

fn write_config(out: &mut String, config: &Config) -> fmt::Result {
    let d = &config.daemon;
    writeln!(out, "daemon: IKE on UDP ports {} and {} (with NAT traversal)", d.port, d.port_nat_t)?;
    let workers = match d.workers {
        Some(n) => format!("{n} packet workers"),
        None => "a packet worker for every core".to_string(),
    };
    let pinned = if d.pin { ", pinned" } else { "" };
    let offload = if d.offload { "" } else { ", without offloads" };
    let polling = match d.busy_poll.as_micros() {
        0 => String::new(),
        us => format!(", polling for {us}us before they wait"),
    };
    writeln!(out, "  TUN device {}, MTU {}, {workers}{pinned}{polling}{offload}", d.tun, d.mtu)?;
    writeln!(
        out,
        "  routes go into table {}, rule priority {}, own packets carry mark {:#x}",
        d.table, d.priority, d.mark
    )?;
    writeln!(
        out,
        "  at most {} Child SAs; cookies from {} half-open IKE SAs on, no more than {} of them",
        d.max_child_sas, d.cookie_threshold, d.half_open_limit
    )?;
    writeln!(out, "  IKE messages in fragments above datagrams of {} octets", d.fragment_size)?;
    if let Some(path) = &d.resolvconf {
        writeln!(out, "  DNS servers of peers go into {}", path.display())?;
    }
    for conn in &config.connections {
        write_connection(out, conn)?;
    }
    for pool in &config.pools {
        write_pool(out, pool)?;
    }
    for secret in &config.secrets {
        let whose = if secret.ids.is_empty() { "anybody".to_string() } else { join(&secret.ids) };
        writeln!(out, "secret {}: pre-shared key for {whose}", secret.name)?;
    }
    for secret in &config.eap_secrets {
        let whose = if secret.ids.is_empty() { "us".to_string() } else { join(&secret.ids) };
        writeln!(out, "secret {}: password in EAP of {whose}", secret.name)?;
    }
    let c = &config.credentials;
    for (what, certs) in [("certificate", &c.certificates), ("CA", &c.authorities)] {
        for cert in certs {
            writeln!(out, "{what} {}: {}, until {}", cert.source(), cert.name(), date(cert.not_after()))?;
        }
    }
    for crl in &c.crls {
        writeln!(out, "CRL {}", crl.source())?;
    }
    for own in &c.keys {
        writeln!(out, "private key {}: {}", own.source, own.key.public().kind())?;
    }
    if config.connections.is_empty() {
        writeln!(out, "no connections: the daemon would answer nobody")?;
    }
    Ok(())
}

fn write_connection(out: &mut String, c: &Connection) -> fmt::Result {
    writeln!(out, "connection {}: {} === {}", c.name, join(&c.local_addrs), join(&c.remote_addrs))?;
    write_rounds(out, c)?;
    writeln!(out, "  IKE proposals {}", join(&c.proposals))?;
    let rekey = if c.rekey_time.is_zero() {
        "never rekeyed".to_string()
    } else {
        format!(
            "rekeyed after {} (up to {} earlier), closed {} later",
            dur(c.rekey_time),
            dur(c.rand_time),
            dur(c.over_time)
        )
    };
    let tries = match c.keyingtries {
        0 => "tries for ever".to_string(),
        1 => "tries once".to_string(),
        n => format!("tries {n} times"),
    };
    let reauth = match c.reauth_time {
        Duration::ZERO => String::new(),
        time => format!(", set up anew after {}", dur(time)),
    };
    writeln!(out, "  IKE SA {rekey}{reauth}; {tries}")?;
    match c.fragmentation {
        Fragmentation::Yes => {}
        Fragmentation::Accept => writeln!(out, "  no message of ours goes out in fragments")?,
        Fragmentation::No => writeln!(out, "  no IKE fragmentation")?,
    }
    match c.childless {
        Childless::Allow => {}
        Childless::Never => writeln!(out, "  no IKE SA without a first Child SA")?,
        Childless::Prefer => writeln!(out, "  the first Child SA comes after IKE_AUTH, if the peer agrees")?,
        Childless::Force => writeln!(out, "  the first Child SA comes after IKE_AUTH")?,
    }
    if !c.dpd_delay.is_zero() {
        writeln!(out, "  a silent peer is probed after {}", dur(c.dpd_delay))?;
    }
    let encap = match (c.nat_traversal, c.encap) {
        (false, _) => "as IP protocol 50; a NAT is taken for an attack",
        (true, true) => "always in UDP",
        (true, false) => "in UDP only behind a NAT, else IP protocol 50",
    };
    let unique = match c.unique {
        Unique::No => "",
        Unique::Never => "; INITIAL_CONTACT is neither said nor heard",
        Unique::Keep => "; a second IKE SA of the same identities from elsewhere is refused",
        Unique::Replace => "; a new IKE SA replaces an old one of the same identities",
    };
    writeln!(out, "  ESP {encap}{unique}")?;
    if !c.vips.is_empty() {
        writeln!(out, "  we ask for a virtual address: {}", join(&c.vips))?;
    }
    if !c.pools.is_empty() {
        writeln!(out, "  the peer gets a virtual address of {}, and must ask for one", c.pools.join(", "))?;
    }
    write_paths(out, c)?;
    if c.children.is_empty() {
        writeln!(out, "  no children: an IKE SA alone")?;
    }
    c.children.iter().try_for_each(|child| write_child(out, child, &c.name))
}

/// How a side proves itself.
fn write_rounds(out: &mut String, c: &Connection) -> fmt::Result {
    let own = |round: &AuthRound| round.id.as_ref().map_or("our address".to_string(), ToString::to_string);
    let peer = |round: &AuthRound| round.shown_id().unwrap_or_else(|| "any identity".to_string());
    let all_by_psk = c.locals().chain(c.remotes()).all(|round| round.method == Method::Psk);
    if all_by_psk && !c.has_rounds() {
        let (own, peer) = (own(&c.local), peer(&c.remote));
        return writeln!(out, "  we are {own}, the peer must be {peer}, both by pre-shared key");
    }
    let ours: Vec<_> = c.locals().map(|round| format!("{} by {}", own(round), by(round))).collect();
    let judged = |round: &AuthRound| format!("{} by {}{}", peer(round), by(round), trusted(round));
    let theirs: Vec<_> = c.remotes().map(judged).collect();
    let then = "; and then ";
    if !c.has_rounds() {
        return writeln!(out, "  we are {}, the peer must be {}", ours.join(then), theirs.join(then));
    }
    writeln!(out, "  we are {}", ours.join(then))?;
    writeln!(out, "  the peer must be {}", theirs.join(then))
}

fn by(round: &AuthRound) -> String {
    match &round.method {
        Method::Psk => "pre-shared key".to_string(),
        Method::Pubkey(rules) => format!("signature ({rules})"),
        Method::Eap(kinds) => {
            let name = match &round.eap_id {
                EapId::Unset => String::new(),
                id => format!(" as {id}"),
            };
            format!("{}{name}", join(kinds))
        }
    }
}

fn write_pool(out: &mut String, pool: &Pool) -> fmt::Result {
    write!(out, "pool {}: {}, {} addresses", pool.name, pool.addrs, pool.addrs.size())?;
    let subnets: Vec<_> = pool.subnets.iter().map(|(addr, len)| format!("{addr}/{len}")).collect();
    for (what, list) in [
        ("DNS", join(&pool.dns)),
        ("NBNS", join(&pool.nbns)),
        ("DHCP", join(&pool.dhcp)),
        ("networks", subnets.join(", ")),
    ] {
        if !list.is_empty() {
            write!(out, "; {what} {list}")?;
        }
    }
    writeln!(out)
}

/// Whom we believe about the peer.
fn trusted(round: &AuthRound) -> String {
    if round.rules().is_none() {
        String::new()
    } else if !round.pubkeys.is_empty() {
        format!(", with one of {} raw public keys", round.pubkeys.len())
    } else if !round.certs.is_empty() {
        format!(", with the certificate {}", join(&names(&round.certs)))
    } else if !round.cacerts.is_empty() {
        format!(", of the CA {}", join(&names(&round.cacerts)))
    } else {
        ", of any CA that is loaded".to_string()
    }
}

fn names(certs: &[Arc<Certificate>]) -> Vec<String> {
    certs.iter().map(|cert| cert.name()).collect()
}

fn write_paths(out: &mut String, c: &Connection) -> fmt::Result {
    let version = match (c.mobike, c.mobike_x) {
        (false, MobikeX::No) => return writeln!(out, "  addresses stay as they are: no MOBIKE"),
        (true, MobikeX::No) => "MOBIKE (RFC 4555)",
        (true, MobikeX::Yes) => "MOBIKE-X, or else MOBIKE (RFC 4555)",
        (false, MobikeX::Yes) => "MOBIKE-X, or else none",
        (_, MobikeX::Require) => "MOBIKE-X, or else no IKE SA",
    };
    let check = match c.return_routability {
        ReturnRoutability::Required => "checked before use",
        ReturnRoutability::After => "used at once and checked",
        ReturnRoutability::Off => "believed",
    };
    let p = &c.paths;
    let interfaces = if p.interfaces.is_empty() { "all interfaces".to_string() } else { join(&p.interfaces) };
    let allowed = if p.allowed.is_empty() { "any".to_string() } else { join(&p.allowed) };
    let critical = if c.mobike_critical { ", offered as critical" } else { "" };
    writeln!(out, "  {version}{critical}; new addresses of the peer ({allowed}) are {check}")?;
    let millis = p.probe_interval.as_millis();
    let measured = if p.measure_rates { "measured" } else { "not measured" };
    writeln!(
        out,
        "  paths: {interfaces}, scheduler {}, busy ones probed every {millis} ms, rates {measured}",
        p.scheduler
    )?;
    for policy in &p.policies {
        let rate = policy.rate.map_or_else(String::new, |rate| format!(", {rate} bit/s"));
        writeln!(out, "    {}: preference {}{rate}", policy.name, p.preference(&policy.name))?;
    }
    Ok(())
}

fn write_child(out: &mut String, c: &Child, conn: &str) -> fmt::Result {
    let mode = match c.mode {
        Mode::Tunnel => "tunnel",
        Mode::Transport => "transport",
    };
    writeln!(
        out,
        "  child {conn}/{}: {} === {}, {mode} mode",
        c.name,
        join(&c.local_ts),
        join(&c.remote_ts)
    )?;
    writeln!(out, "    ESP proposals {}; replay window {}", join(&c.esp_proposals), c.replay_window)?;
    if let Some(scheduler) = c.scheduler {
        writeln!(out, "    scheduler {scheduler}")?;
    }
    let rekey = if c.rekey_time.is_zero() {
        "never rekeyed by time".to_string()
    } else {
        format!("rekeyed after {} (up to {} earlier)", dur(c.rekey_time), dur(c.rand_time))
    };
    let life =
        if c.life_time.is_zero() { String::new() } else { format!(", closed after {}", dur(c.life_time)) };
    writeln!(out, "    {rekey}{life}{}", volumes(&c.limits))?;
    let start = match c.start_action {
        StartAction::None => "set up on request",
        StartAction::Trap => "set up by the first packet",
        StartAction::Start => "set up at start",
        StartAction::TrapStart => "set up at start, and by a packet when it is down",
    };
    let close = match c.close_action {
        StartAction::None => "",
        StartAction::Trap => "; when the peer closes it, the next packet sets it up",
        StartAction::Start | StartAction::TrapStart => "; set up again when the peer closes it",
    };
    let dpd = match c.dpd_action {
        DpdAction::Clear => "",
        DpdAction::Trap => "; when the peer is dead, the next packet sets it up",
        DpdAction::Restart => "; set up again when the peer is dead",
    };
    let idle = match c.inactivity {
        Duration::ZERO => String::new(),
        time => format!("; closed after {} without traffic", dur(time)),
    };
    let own = match c.per_cpu_sas {
        None => "",
        Some(true) => "; further Child SAs for single workers",
        Some(false) => "; one Child SA for all workers",
    };
    writeln!(out, "    {start}{close}{dpd}{idle}{own}")?;
    match c.tfc_padding {
        0 => {}
        u16::MAX => writeln!(out, "    packets are padded to what their path takes")?,
        octets => writeln!(out, "    packets are padded to {octets} octets")?,
    }
    c.updown.iter().try_for_each(|command| writeln!(out, "    up and down are told to: {command}"))
}

fn volumes(l: &VolumeLimits) -> String {
    let parts = [
        ("rekeyed", l.soft_bytes, "octets"),
        ("closed", l.hard_bytes, "octets"),
        ("rekeyed", l.soft_packets, "packets"),
        ("closed", l.hard_packets, "packets"),
    ];
    parts.iter().filter_map(|(what, n, unit)| n.map(|n| format!(", {what} after {n} {unit}"))).collect()
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The largest unit that shows the time without a remainder.
fn dur(time: Duration) -> String {
    let seconds = time.as_secs();
    let unit = [(86_400, "d"), (3600, "h"), (60, "m")]
        .into_iter()
        .find(|(n, _)| seconds >= *n && seconds.is_multiple_of(*n));
    let (n, name) = unit.unwrap_or((1, "s"));
    format!("{} {name}", seconds / n)
}
