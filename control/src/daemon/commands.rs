//! What clients of the control socket ask for.

use std::net::IpAddr;
use std::time::Instant;

use mio::Token;
use mobikex_common::crypto::provider_name;
use mobikex_common::sa::ChildSaId;
use tracing::warn;

use super::control_socket::ClientId;
use super::event_loop::Daemon;
use super::operation::Operation;
use crate::credentials::{certificates_data, certificates_text, unix_now};
use crate::ike::{AddressAction, Command, CommandError, IkeSaView};
use crate::protocol::{AddressVerb, Reply, Request, Target};
use crate::views::{
    PathTraffic, Pools, Sas, Stats, Traffic, TunDrops, Waits, connections_data, connections_text,
};

/// IKE SAs in one part of a view.
const SAS_AT_ONCE: usize = 64;

/// Leases in one part of a view.
const LEASES_AT_ONCE: usize = 1024;

/// A view that goes out in parts.
pub(super) struct Viewing {
    json: bool,
    shown: Shown,
}

/// What a client has seen of it.
#[derive(Clone, Copy)]
enum Shown {
    /// The SAs as far as the IKE SA of this number.
    Sas(u32),
    /// Leases as far as that of this address; before the first, the pools come.
    Leases(Option<IpAddr>),
}

fn view(json: bool, more: bool, data: &dyn Fn() -> serde_json::Value, text: &dyn Fn() -> String) -> Reply {
    if json { Reply::Data { data: data(), more } } else { Reply::Text { text: text(), more } }
}

impl Daemon {
    /// Something happened to a client: it sent, it reads again, or it left.
    pub(super) fn serve(&mut self, token: Token) {
        let Some(id) = self.control.client(token) else { return };
        let requests = if self.control.flush(id) { self.control.read(id) } else { None };
        let Some(requests) = requests else {
            self.operations.remove(&id);
            self.monitors.remove(&id);
            self.viewings.remove(&id);
            self.tap.set_open(!self.operations.is_empty());
            return;
        };
        for request in requests {
            match request {
                Ok(request) => self.handle(id, request),
                Err(reason) => {
                    self.control.send(id, &Reply::Failed { reason });
                }
            }
        }
    }

    fn handle(&mut self, id: ClientId, request: Request) {
        if self.viewings.contains_key(&id) {
            self.viewings.remove(&id);
            self.control.send(id, &Reply::Failed { reason: "one command at a time".into() });
            return;
        }
        let reply = match request {
            Request::Sas { json } => {
                self.viewings.insert(id, Viewing { json, shown: Shown::Sas(0) });
                return;
            }
            Request::Pools { json, leases: true } => {
                self.viewings.insert(id, Viewing { json, shown: Shown::Leases(None) });
                return;
            }
            Request::Pools { json, leases: false } => {
                let pools = Pools { pools: self.endpoint.pools(), leases: None };
                view(json, false, &|| pools.data(), &|| pools.to_string())
            }
            Request::Conns { json } => {
                view(json, false, &|| connections_data(&self.config), &|| connections_text(&self.config))
            }
            Request::Certs { json } => {
                let (loaded, now) = (&self.config.credentials, unix_now());
                view(json, false, &|| certificates_data(loaded, now), &|| certificates_text(loaded, now))
            }
            Request::Stats { json } => {
                let stats = self.stats();
                view(json, false, &|| serde_json::json!(stats), &|| stats.to_string())
            }
            Request::Monitor => {
                self.monitors.insert(id);
                return;
            }
            Request::Up(target) => return self.begin(id, target, Kind::Up),
            Request::Down(target) => return self.begin(id, target, Kind::Down),
            Request::Rekey(target) => return self.begin(id, target, Kind::Rekey),
            Request::Address { target, action, addr, old, check, inner } => {
                let action = match action {
                    AddressVerb::Add => AddressAction::Add(addr),
                    AddressVerb::Remove => AddressAction::Remove(addr),
                    AddressVerb::Additional => AddressAction::Additional(addr),
                    AddressVerb::Update => AddressAction::Update { old, new: addr },
                };
                return self.begin(id, target, Kind::Address { action, check, inner });
            }
        };
        self.control.send(id, &reply);
    }

    /// Starts a command; its outcome is told when it is known, which may be at once.
    fn begin(&mut self, id: ClientId, target: Target, kind: Kind) {
        if self.operations.contains_key(&id) {
            self.control.send(id, &Reply::Failed { reason: "one command at a time".into() });
            return;
        }
        let now = Instant::now();
        // What is said from here on belongs to this command.
        if self.operations.is_empty() {
            self.tap.take();
        }
        self.tap.set_open(true);
        let before = self.endpoint.ike_sas_of(now, &target.connection);
        let started = self.start(now, &target, kind);
        let operation = match (started, kind) {
            (Err(error), _) => Err(error.to_string()),
            (Ok(()), Kind::Up) => match self.config.connection(&target.connection) {
                Some(connection) => Ok(Operation::up(target, connection)),
                None => Err(CommandError::Unknown(target.to_string()).to_string()),
            },
            (Ok(()), Kind::Down) => Ok(Operation::down(target, &before)),
            (Ok(()), Kind::Rekey) => Ok(Operation::rekey(target, &before)),
            (Ok(()), Kind::Address { .. }) => Ok(Operation::address(target)),
        };
        match operation {
            Ok(operation) => {
                self.operations.insert(id, operation);
            }
            Err(reason) => {
                self.control.send(id, &Reply::Failed { reason });
            }
        }
        self.carry_out(now);
        self.tap.set_open(!self.operations.is_empty());
    }

    fn start(&mut self, now: Instant, target: &Target, kind: Kind) -> Result<(), CommandError> {
        let (connection, child) = (target.connection.clone(), target.child.clone());
        let command = match kind {
            Kind::Up => {
                // Routes may have come since the last look.
                self.look_at_network();
                Command::Up { connection, child }
            }
            Kind::Down => Command::Down { connection, child },
            Kind::Rekey => Command::Rekey { connection, child },
            Kind::Address { action, check, inner } => {
                Command::Address { connection, child, action, check, inner }
            }
        };
        self.endpoint.handle_command(now, command)
    }

    /// Shows one more part to every client that waits for a view and has read the parts before; true if there
    /// may be another at once. However much there is, nothing else waits longer than for a part.
    pub(super) fn show_more(&mut self) -> bool {
        let ready = self.viewings.keys().filter(|id| self.control.is_idle(**id));
        for id in ready.copied().collect::<Vec<_>>() {
            let Some(Viewing { json, shown }) = self.viewings.remove(&id) else { continue };
            let (part, next) = self.part(json, shown);
            if self.control.send(id, &part)
                && let Some(shown) = next
            {
                self.viewings.insert(id, Viewing { json, shown });
            }
        }
        self.viewings.keys().any(|id| self.control.is_idle(*id))
    }

    /// The next part of a view, and what has been shown then unless it was the last.
    fn part(&self, json: bool, shown: Shown) -> (Reply, Option<Shown>) {
        match shown {
            Shown::Sas(after) => {
                let ike = self.endpoint.ike_sas_after(Instant::now(), after, SAS_AT_ONCE);
                let next = ike.last().filter(|_| ike.len() == SAS_AT_ONCE).map(|sa| Shown::Sas(sa.id));
                let sas = self.sas(ike, next.is_none());
                (view(json, next.is_some(), &|| sas.data(), &|| sas.to_string()), next)
            }
            Shown::Leases(after) => {
                let leases = self.endpoint.leases_after(after, LEASES_AT_ONCE);
                let full = leases.last().filter(|_| leases.len() == LEASES_AT_ONCE);
                let next = full.map(|lease| Shown::Leases(Some(lease.addr)));
                let pools = if after.is_none() { self.endpoint.pools() } else { Vec::new() };
                let pools = Pools { pools, leases: Some(leases) };
                (view(json, next.is_some(), &|| pools.data(), &|| pools.to_string()), next)
            }
        }
    }

    /// These IKE SAs with their traffic, and in the last part the connections that have none.
    fn sas(&self, ike: Vec<IkeSaView>, last: bool) -> Sas {
        let children = ike.iter().flat_map(|sa| &sa.children);
        let traffic = children.filter_map(|child| Some((child.id, self.traffic(child.id)?))).collect();
        let names = self.config.connections.iter().map(|conn| &conn.name).filter(|_| last);
        let down = names.filter(|name| !self.endpoint.has_sa(name)).cloned().collect();
        Sas { ike, traffic, down }
    }

    fn traffic(&self, id: ChildSaId) -> Option<Traffic> {
        let stats = self.dataplane.tables().stats(id)?;
        let now_ms = self.dataplane.now_ms();
        // 0 stands for never.
        let idle = |last_ms: u64| (last_ms != 0).then(|| now_ms.saturating_sub(last_ms) / 1000);
        let path = |p: &mobikex_dataplane::counters::PathStats| PathTraffic {
            path: p.path,
            packets_in: p.packets_in,
            bytes_in: p.bytes_in,
            packets_out: p.packets_out,
            bytes_out: p.bytes_out,
        };
        Some(Traffic {
            bytes_in: stats.bytes_in,
            packets_in: stats.packets_in,
            idle_in: idle(stats.last_in),
            bytes_out: stats.bytes_out,
            packets_out: stats.packets_out,
            idle_out: idle(stats.last_out),
            sequence_out: stats.seq_out,
            sequence_in: stats.replay_highest,
            paths: stats.paths.iter().map(path).collect(),
        })
    }

    fn stats(&mut self) -> Stats {
        let [ike_sas, child_sas] = self.endpoint.states();
        let tun = match self.netlink.link_drops(self.dataplane.tun_index()) {
            Ok((tx_dropped, rx_dropped)) => {
                Some(TunDrops { device: self.dataplane.tun_name().to_string(), tx_dropped, rx_dropped })
            }
            Err(error) => {
                warn!(target: "NET", "{error}");
                None
            }
        };
        let waits = self.dataplane.waits();
        Stats {
            version: env!("CARGO_PKG_VERSION"),
            crypto: provider_name(),
            uptime: self.started.elapsed().as_secs(),
            ike_sas,
            child_sas,
            ike_ignored: self.endpoint.counters(),
            actions_refused: self
                .endpoint
                .refusals()
                .iter()
                .map(|(n, count)| (n.to_string(), *count))
                .collect(),
            drops: self.dataplane.counters().iter().map(|(reason, count)| (reason.name(), count)).collect(),
            tun,
            waits: Waits { blocked: waits.blocked, looked: waits.looked },
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Up,
    Down,
    Rekey,
    Address { action: AddressAction, check: bool, inner: bool },
}
