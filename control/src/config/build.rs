//! From sections to typed values, section by section.

use std::path::PathBuf;
use std::time::Duration;

use mobikex_common::addr::Scheduler;
use mobikex_common::proposal::{EspProposal, IkeProposal};
use mobikex_common::sa::{CopyDscp, Mode};
use mobikex_common::spi::MAX_SLOTS;
use mobikex_common::wire::ike::Identification;

use super::checks;
use super::credentials::Files;
use super::eap;
use super::error::Issues;
use super::fields::{Fields, choice};
use super::model::{
    AuthRound, Child, Childless, Config, Connection, DaemonSettings, DpdAction, Fragmentation, PskSecret,
    SendCert, StartAction, Unique,
};
use super::multipath::{InterfacePolicy, MobikeX, Paths, ReturnRoutability};
use super::pools;
use super::rounds::{self, Places};
use super::schema::{self, CHILD, CONNECTION, DAEMON, INTERFACE, PATHS, ROOT, SECRET, SECRETS, Support};
use super::tree::Section;
use super::values;
use crate::credentials::UnixSeconds;

/// What the sections say; meaningful only while `issues` stays empty. After an error of the grammar whatever
/// seems to be missing may just not have been read, so checks across options wait for a sound file.
pub(super) fn config(root: &Section, now: Option<UnixSeconds>, issues: &mut Issues) -> Config {
    let sound = issues.is_empty();
    let files = Files::new(&issues.folder(), now);
    let mut places = Vec::new();
    Fields::check(&[root], &ROOT, issues);
    let mut config = Config { daemon: daemon(&named(&[root], "mobikex"), issues), ..Config::default() };
    let groups = named(&[root], "connections");
    for part in operator_named(&groups, "connection", issues) {
        let (connection, place) = connection(part, &config.daemon, &files, sound, issues);
        config.connections.push(connection);
        places.push(place);
    }
    let groups = named(&[root], "pools");
    let parts = operator_named(&groups, "pool", issues);
    config.pools = parts.iter().filter_map(|part| pools::pool(part, sound, issues)).collect();
    pools::overlaps(&config, &parts, issues);
    let groups = named(&[root], "secrets");
    Fields::check(&groups, &SECRETS, issues);
    let mut of_files = Vec::new();
    for part in operator_named(&groups, "secret", issues) {
        if schema::support(SECRETS.sections, &part.name) == Some(Support::Here) {
            if part.name.starts_with("ike") {
                config.secrets.extend(secret(part, sound, issues));
            } else if ["eap", "ntlm"].iter().any(|kind| part.name.starts_with(kind)) {
                let read = secret(part, sound, issues);
                config.eap_secrets.extend(read.and_then(|read| eap::secret(read, part.at, issues)));
            } else {
                of_files.push(part);
            }
        }
    }
    let signs = |c: &Connection| c.locals().chain(c.remotes()).any(AuthRound::may_need_certificates);
    if sound && (!of_files.is_empty() || config.connections.iter().any(signs)) {
        config.credentials = files.folders(&of_files, issues);
        if issues.is_empty() {
            files.settle(&mut config, &places, issues);
        }
    }
    if sound && issues.is_empty() {
        eap::settle(&mut config, &places, issues);
    }
    // A broken secret has been reported already; that its connection now lacks one is no second mistake.
    if sound && issues.is_empty() {
        for part in groups_of_connections(root) {
            checks::has_secret(&config, part, issues);
            pools::are_known(&config, part, issues);
        }
    }
    config
}

fn groups_of_connections(root: &Section) -> Vec<&Section> {
    named(&[root], "connections").into_iter().flat_map(|group| &group.sections).collect()
}

/// All sections of a fixed name: together they are one.
fn named<'a>(parts: &[&'a Section], name: &str) -> Vec<&'a Section> {
    parts.iter().flat_map(|part| &part.sections).filter(|section| section.name == name).collect()
}

/// The sections that the operator names, each of which may stand only once.
fn operator_named<'a>(groups: &[&'a Section], kind: &str, issues: &mut Issues) -> Vec<&'a Section> {
    let mut out: Vec<&Section> = Vec::new();
    for group in groups {
        if kind != "secret" {
            for setting in &group.settings {
                let message = format!(
                    "found option '{}' where a {kind} should begin; expected 'NAME {{'",
                    setting.name
                );
                issues.push(setting.at, message);
            }
        }
        for section in &group.sections {
            if let Some(first) = out.iter().find(|s| s.name == section.name) {
                let place = issues.place(first.at);
                issues.push(section.at, format!("{kind} '{}' is already defined in {place}", section.name));
            } else {
                if section.name.contains('/') {
                    issues.push(
                        section.at,
                        format!("found '/' in the name of a {kind}; it separates NAME/CHILD"),
                    );
                }
                out.push(section);
            }
        }
    }
    out
}

fn port(text: &str) -> Result<u16, String> {
    values::number(text, 1, 65_535).map(|n| n as u16)
}

fn between(min: u32, max: u32) -> impl Fn(&str) -> Result<u32, String> {
    move |text| values::number(text, u64::from(min), u64::from(max)).map(|n| n as u32)
}

fn daemon(parts: &[&Section], issues: &mut Issues) -> DaemonSettings {
    let f = Fields::check(parts, &DAEMON, issues);
    let mut d = DaemonSettings::default();
    f.set("port", &mut d.port, issues, port);
    f.set("port_nat_t", &mut d.port_nat_t, issues, port);
    if d.port == d.port_nat_t {
        issues.push(
            f.place("port_nat_t"),
            format!("'port' and 'port_nat_t' are both {}; expected two ports", d.port),
        );
    }
    f.set("tun", &mut d.tun, issues, |text| {
        // IFNAMSIZ is 16 with the closing zero.
        let fits = text.len() <= 15 && text != "." && text != "..";
        let plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%');
        if fits && plain {
            Ok(text.to_string())
        } else {
            Err("an interface name of at most 15 characters".into())
        }
    });
    f.set("mtu", &mut d.mtu, issues, |text| values::number(text, 576, 65_500).map(|n| n as u16));
    f.set("workers", &mut d.workers, issues, |text| match text {
        "auto" => Ok(None),
        _ => values::number(text, 1, 1024)
            .map(|n| Some(n as usize))
            .map_err(|expected| format!("auto, or {expected}")),
    });
    f.set("pin", &mut d.pin, issues, values::boolean);
    f.set("offload", &mut d.offload, issues, values::boolean);
    f.set("busy_poll", &mut d.busy_poll, issues, values::busy_poll);
    f.set("table", &mut d.table, issues, |text| {
        // 253 to 255 are the system's default, main and local tables.
        let table = between(1, u32::MAX)(text).ok().filter(|n| !(253..=255).contains(n));
        table.ok_or_else(|| "the number of a table of its own (not 253, 254 or 255)".to_string())
    });
    f.set("priority", &mut d.priority, issues, between(1, 32_765));
    f.set("mark", &mut d.mark, issues, between(1, u32::MAX));
    f.set("max_child_sas", &mut d.max_child_sas, issues, between(1, MAX_SLOTS));
    f.set("cookie_threshold", &mut d.cookie_threshold, issues, between(0, u32::MAX));
    f.set("half_open_limit", &mut d.half_open_limit, issues, between(1, u32::MAX));
    f.set("fragment_size", &mut d.fragment_size, issues, |text| {
        values::number(text, 576, 65_535).map(|n| n as u16)
    });
    d.resolvconf = f.get("resolvconf", issues, |text| match PathBuf::from(text) {
        path if path.is_absolute() && path.file_name().is_some() => Ok(path),
        _ => Err("the whole path of a file".to_string()),
    });
    if d.half_open_limit < d.cookie_threshold {
        let (limit, threshold) = (d.half_open_limit, d.cookie_threshold);
        let message = format!(
            "'half_open_limit' {limit} is below 'cookie_threshold' {threshold}: no cookie would be asked for"
        );
        issues.push(f.place("half_open_limit"), message);
    }
    d
}

fn connection(
    part: &Section,
    daemon: &DaemonSettings,
    files: &Files,
    sound: bool,
    issues: &mut Issues,
) -> (Connection, Places) {
    let f = Fields::check(&[part], &CONNECTION, issues);
    let mut c = Connection::new(&part.name);
    if let Some(list) = f.list("local_addrs", issues, values::address) {
        c.local_addrs = list;
    }
    if let Some(list) = f.list("remote_addrs", issues, values::address) {
        c.remote_addrs = list;
    }
    f.get("local_port", issues, |text| match port(text)? {
        p if p == daemon.port => Ok(()),
        _ => Err(format!("{}, the port of section 'mobikex'", daemon.port)),
    });
    f.set("remote_port", &mut c.remote_port, issues, |text| match port(text)? {
        4500 => Err("the peer's port without NAT traversal, such as 500".to_string()),
        p => Ok(p),
    });
    if let Some(list) = f.list("proposals", issues, proposals(IkeProposal::defaults)) {
        c.proposals = list.into_iter().flatten().collect();
    }
    f.set("nat_traversal", &mut c.nat_traversal, issues, values::boolean);
    // ESP in UDP is a part of NAT traversal.
    c.encap = c.nat_traversal;
    f.set("encap", &mut c.encap, issues, values::boolean);
    if c.encap && !c.nat_traversal {
        let message = "found 'encap = yes' beside 'nat_traversal = no'; expected 'encap = no'";
        issues.push(f.place("encap"), message);
    }
    f.set("fragmentation", &mut c.fragmentation, issues, |text| match (values::boolean(text), text) {
        // To force it makes a difference in IKEv1 alone.
        (Ok(true), _) | (_, "force") => Ok(Fragmentation::Yes),
        (Ok(false), _) => Ok(Fragmentation::No),
        (_, "accept") => Ok(Fragmentation::Accept),
        _ => Err("yes, accept, force or no".to_string()),
    });
    f.set("mobike", &mut c.mobike, issues, values::boolean);
    f.set("mobike_x", &mut c.mobike_x, issues, |text| match (values::boolean(text), text) {
        (Ok(true), _) => Ok(MobikeX::Yes),
        (Ok(false), _) => Ok(MobikeX::No),
        (_, "require") => Ok(MobikeX::Require),
        _ => Err("yes, no or require".to_string()),
    });
    f.set("mobike_critical", &mut c.mobike_critical, issues, values::boolean);
    f.set("return_routability", &mut c.return_routability, issues, |text| {
        let known = [
            ("required", ReturnRoutability::Required),
            ("after", ReturnRoutability::After),
            ("off", ReturnRoutability::Off),
        ];
        choice(&known, &[], text)
    });
    c.paths = paths(part, issues);
    f.set("dpd_delay", &mut c.dpd_delay, issues, values::time);
    f.set("keyingtries", &mut c.keyingtries, issues, between(0, u32::MAX));
    f.set("rekey_time", &mut c.rekey_time, issues, values::time);
    f.set("reauth_time", &mut c.reauth_time, issues, values::time);
    if !c.reauth_time.is_zero() && f.raw("rekey_time").is_none() {
        // swanctl.conf: who wants a new proof at times gets new keys with it.
        c.rekey_time = Duration::ZERO;
    }
    let longest = c.rekey_time.max(c.reauth_time);
    c.over_time = longest / 10;
    f.set("over_time", &mut c.over_time, issues, values::time);
    c.rand_time = c.over_time.min(longest);
    f.set("rand_time", &mut c.rand_time, issues, values::time);
    if c.rand_time > longest {
        let than = if longest == c.rekey_time { "rekey_time" } else { "reauth_time" };
        issues.push(f.place("rand_time"), longer("rand_time", c.rand_time, than, longest));
    }
    f.set("unique", &mut c.unique, issues, |text| {
        let known = [
            ("no", Unique::No),
            ("never", Unique::Never),
            ("keep", Unique::Keep),
            ("replace", Unique::Replace),
        ];
        choice(&known, &[], text)
    });
    f.set("childless", &mut c.childless, issues, |text| {
        let known = [
            ("allow", Childless::Allow),
            ("never", Childless::Never),
            ("prefer", Childless::Prefer),
            ("force", Childless::Force),
        ];
        choice(&known, &[], text)
    });
    f.set("send_cert", &mut c.send_cert, issues, |text| {
        let known =
            [("always", SendCert::Always), ("ifasked", SendCert::IfAsked), ("never", SendCert::Never)];
        choice(&known, &[], text)
    });
    f.set("send_certreq", &mut c.send_certreq, issues, values::boolean);
    if let Some(list) = f.list("vips", issues, pools::wanted) {
        if list.iter().filter(|a| a.is_ipv4()).count() > 1 || list.iter().filter(|a| a.is_ipv6()).count() > 1
        {
            issues.push(
                f.place("vips"),
                "found several virtual addresses of a family; expected one".to_string(),
            );
        }
        c.vips = list;
    }
    if let Some(list) = f.list("pools", issues, |name| Ok(name.to_string())) {
        c.pools = list;
    }
    let places = rounds::read(part, &mut c, files, sound, issues);
    let children = named(&[part], "children");
    for child_part in operator_named(&children, "child", issues) {
        let fields = Fields::check(&[child_part], &CHILD, issues);
        let child = child(&child_part.name, &fields, issues);
        if let Some(encap) = fields.get("encap", issues, values::boolean)
            && encap != c.encap
        {
            let (a, b) = (yes_no(encap), yes_no(c.encap));
            let message = format!(
                "found 'encap = {a}' in a child of a connection with 'encap = {b}'; expected the same"
            );
            issues.push(fields.place("encap"), message);
        }
        checks::child(&c, &child, &fields, issues);
        c.children.push(child);
    }
    if sound && c.children.is_empty() {
        checks::childless(&c, &f, issues);
    }
    checks::addresses(&c, &f, issues);
    (c, places)
}

const SCHEDULERS: &[(&str, Scheduler)] = &[
    ("flow", Scheduler::Flow),
    ("packet", Scheduler::Packet),
    ("redundant", Scheduler::Redundant),
    ("backup", Scheduler::Backup),
];

fn paths(conn: &Section, issues: &mut Issues) -> Paths {
    let parts = named(&[conn], "paths");
    let mut p = Paths::default();
    if parts.is_empty() {
        return p;
    }
    let f = Fields::check(&parts, &PATHS, issues);
    f.set("scheduler", &mut p.scheduler, issues, |text| choice(SCHEDULERS, &[], text));
    f.set("probe_interval", &mut p.probe_interval, issues, values::milliseconds);
    f.set("measure_rates", &mut p.measure_rates, issues, values::boolean);
    let name = |text: &str| match text.len() {
        1..=15 => Ok(text.to_string()),
        _ => Err("the name of an interface".to_string()),
    };
    if let Some(list) = f.list("interfaces", issues, name) {
        p.interfaces = list;
    }
    if let Some(list) = f.list("allowed", issues, values::prefix) {
        p.allowed = list;
    }
    for part in parts.iter().flat_map(|part| &part.sections) {
        let f = Fields::check(&[part], &INTERFACE, issues);
        if p.policies.iter().any(|known| known.name == part.name) {
            issues.push(part.at, format!("interface '{}' stands twice in section 'paths'", part.name));
        }
        let preference = f.get("preference", issues, |text| values::number(text, 1, 255).map(|n| n as u8));
        let rate = f.get("rate", issues, values::rate);
        p.policies.push(InterfacePolicy { name: part.name.clone(), preference, rate });
    }
    p
}

fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

pub(super) fn longer(what: &str, is: Duration, than: &str, limit: Duration) -> String {
    format!("'{what}' of {} s is longer than '{than}' of {} s", is.as_secs(), limit.as_secs())
}

/// One proposal, or the word `default` for the list of them.
fn proposals<T: std::str::FromStr<Err = String>>(
    defaults: fn() -> Vec<T>,
) -> impl Fn(&str) -> Result<Vec<T>, String> {
    move |text| match text {
        "default" => Ok(defaults()),
        _ => text
            .parse()
            .map(|one| vec![one])
            .map_err(|reason| format!("algorithms joined by '-', or default: {reason}")),
    }
}

const ACTIONS: &[(&str, StartAction)] = &[
    ("none", StartAction::None),
    ("trap", StartAction::Trap),
    ("start", StartAction::Start),
    // The older names of swanctl.conf.
    ("clear", StartAction::None),
    ("hold", StartAction::Trap),
    ("route", StartAction::Trap),
    ("restart", StartAction::Start),
];

fn child(name: &str, f: &Fields<'_>, issues: &mut Issues) -> Child {
    let mut c = Child::new(name);
    if let Some(list) = f.list("local_ts", issues, values::selector) {
        c.local_ts = list;
    }
    if let Some(list) = f.list("remote_ts", issues, values::selector) {
        c.remote_ts = list;
    }
    f.set("mode", &mut c.mode, issues, |text| {
        let absent = ["transport_proxy", "beet", "pass", "drop", "iptfs"];
        choice(&[("tunnel", Mode::Tunnel), ("transport", Mode::Transport)], &absent, text)
    });
    if let Some(list) = f.list("esp_proposals", issues, proposals(EspProposal::defaults)) {
        c.esp_proposals = list.into_iter().flatten().collect();
    }
    f.set("replay_window", &mut c.replay_window, issues, between(64, 65_536));
    c.scheduler = f.get("scheduler", issues, |text| choice(SCHEDULERS, &[], text));
    times(&mut c, f, issues);
    volumes(&mut c, f, issues);
    f.set("start_action", &mut c.start_action, issues, |text| match text {
        "trap|start" | "start|trap" => Ok(StartAction::TrapStart),
        _ => choice(ACTIONS, &[], text).map_err(|expected| format!("{expected}, or trap|start")),
    });
    f.set("close_action", &mut c.close_action, issues, |text| choice(ACTIONS, &[], text));
    f.set("dpd_action", &mut c.dpd_action, issues, |text| {
        let known = [
            ("clear", DpdAction::Clear),
            ("restart", DpdAction::Restart),
            ("trap", DpdAction::Trap),
            ("none", DpdAction::Clear),
            ("start", DpdAction::Restart),
            ("hold", DpdAction::Trap),
            ("route", DpdAction::Trap),
        ];
        choice(&known, &[], text)
    });
    f.set("inactivity", &mut c.inactivity, issues, values::time);
    c.per_cpu_sas = f.get("per_cpu_sas", issues, |text| match text {
        "encap" => {
            Err("yes or no: here ESP always has the ports of IKE, and SAs are told apart by their SPIs"
                .into())
        }
        _ => values::boolean(text),
    });
    f.set("tfc_padding", &mut c.tfc_padding, issues, |text| match text {
        "mtu" => Ok(u16::MAX),
        _ => values::number(text, 0, u64::from(u16::MAX))
            .map(|n| n as u16)
            .map_err(|expected| format!("mtu, or {expected}")),
    });
    f.set("hostaccess", &mut c.hostaccess, issues, values::boolean);
    c.updown = f.get("updown", issues, |text| Ok(text.to_string()));
    f.set("copy_df", &mut c.copy_df, issues, values::boolean);
    f.set("copy_dscp", &mut c.copy_dscp, issues, |text| {
        let known =
            [("out", CopyDscp::Out), ("in", CopyDscp::In), ("yes", CopyDscp::Yes), ("no", CopyDscp::No)];
        choice(&known, &[], text)
    });
    c
}

fn times(c: &mut Child, f: &Fields<'_>, issues: &mut Issues) {
    f.set("rekey_time", &mut c.rekey_time, issues, values::time);
    c.life_time = c.rekey_time + c.rekey_time / 10;
    f.set("life_time", &mut c.life_time, issues, values::time);
    if f.raw("life_time").is_some() && f.raw("rekey_time").is_none() && !c.life_time.is_zero() {
        // swanctl.conf: rekeying is 10 % before the end when only the end is given.
        c.rekey_time = c.rekey_time.min(c.life_time * 10 / 11);
    }
    if !c.life_time.is_zero() && c.rekey_time >= c.life_time {
        let (rekey, life) = (c.rekey_time.as_secs(), c.life_time.as_secs());
        let message = format!("'life_time' of {life} s ends before 'rekey_time' of {rekey} s; expected more");
        issues.push(f.place("life_time"), message);
    }
    c.rand_time = c.life_time.saturating_sub(c.rekey_time).min(c.rekey_time);
    if c.life_time.is_zero() {
        c.rand_time = c.rekey_time / 10;
    }
    f.set("rand_time", &mut c.rand_time, issues, values::time);
    if c.rand_time > c.rekey_time {
        issues.push(f.place("rand_time"), longer("rand_time", c.rand_time, "rekey_time", c.rekey_time));
    }
}

fn volumes(c: &mut Child, f: &Fields<'_>, issues: &mut Issues) {
    let l = &mut c.limits;
    f.set("rekey_bytes", &mut l.soft_bytes, issues, values::volume);
    f.set("rekey_packets", &mut l.soft_packets, issues, values::packets);
    l.hard_bytes = l.soft_bytes.map(tenth_more);
    l.hard_packets = l.soft_packets.map(tenth_more);
    f.set("life_bytes", &mut l.hard_bytes, issues, values::volume);
    f.set("life_packets", &mut l.hard_packets, issues, values::packets);
    for (unit, soft, hard) in
        [("bytes", l.soft_bytes, l.hard_bytes), ("packets", l.soft_packets, l.hard_packets)]
    {
        if let (Some(soft), Some(hard)) = (soft, hard)
            && soft >= hard
        {
            let life = format!("life_{unit}");
            let message = format!("'{life}' {hard} is not above 'rekey_{unit}' {soft}; expected more");
            issues.push(f.place(&life), message);
        }
    }
}

fn tenth_more(volume: u64) -> u64 {
    volume.saturating_add((volume / 10).max(1))
}

fn secret(part: &Section, sound: bool, issues: &mut Issues) -> Option<PskSecret> {
    let f = Fields::check(&[part], &SECRET, issues);
    let mut ids: Vec<Identification> = Vec::new();
    let (mut any, mut wrong) = (None, false);
    for (name, value) in f.with_stem("id") {
        match values::identity(&value.text) {
            Ok(Some(id)) => ids.push(id),
            Ok(None) => any = Some(value.at),
            Err(expected) => {
                wrong = true;
                issues.push(value.at, format!("found '{}' for '{name}'; expected {expected}", &*value.text));
            }
        }
    }
    if let Some(at) = any
        && !ids.is_empty()
    {
        issues.push(at, "found '%any' beside other identities; expected either them or '%any' alone");
    }
    let Some(value) = f.raw("secret") else {
        if sound {
            issues.push(part.at, format!("secret '{}' has no 'secret'; expected 'secret = ...'", part.name));
        }
        return None;
    };
    match values::secret(&value.text) {
        Ok(secret) if !wrong => Some(PskSecret { name: part.name.clone(), ids, secret }),
        Ok(_) => None,
        Err(expected) => {
            // What was found stays unsaid: it is a key, if a damaged one.
            issues.push(value.at, format!("found a value for 'secret' that is none; expected {expected}"));
            None
        }
    }
}
