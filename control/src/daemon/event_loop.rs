//! The loop: waits for something to happen, gives it to the engine, carries out what the engine asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use mobikex_common::addr::WeightedPath;
use mobikex_common::ts::TrafficSelector;
use mobikex_dataplane::{Dataplane, Upcall};
use signal_hook_mio::v1_0::Signals;
use tracing::{debug, error, info, warn};

use super::commands::Viewing;
use super::control_socket::{ClientId, ControlSocket};
use super::icmp::IcmpSockets;
use super::key_file::KeyFile;
use super::netlink::{Monitor, Netlink, NetlinkError};
use super::notify::notify;
use super::operation::Operation;
use super::resolvconf;
use super::routes::Routes;
use super::scripts::Scripts;
use super::sockets::{IkeSockets, Received};
use super::source_routes::SourceRoutes;
use super::{DaemonError, Options, needs_raw_esp, rule_of};
use crate::config::{self, Config, StartAction};
use crate::credentials;
use crate::ike::{ChildEvent, Command, Endpoint, Event, LocalAddress, Output};
use crate::logging::LogTap;
use crate::protocol::Reply;

/// Sockets of IKE have the tokens below; there are four at most.
const SIGNALS: Token = Token(16);
const UPCALLS: Token = Token(17);
const NETWORK: Token = Token(18);
const ICMP: Token = Token(19);
/// Clients have the tokens above.
const CONTROL: Token = Token(20);

/// How long peers have to confirm the deletion of their SAs when we end.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long scripts have after that.
const SCRIPTS_END: Duration = Duration::from_secs(10);

/// Changes of the network come in flocks: an address, then its routes. The first few are looked at at once, since they
/// may be all that is missing; after that there is this time between two looks.
const DEBOUNCE: Duration = Duration::from_millis(25);
/// Looks without a pause. Each interval of quiet gives one back.
const LOOKS_AT_ONCE: u32 = 8;

/// Upcalls handled before the sockets have their turn again.
const UPCALLS_AT_ONCE: usize = 1024;

pub(super) struct Daemon {
    pub(super) config: Config,
    pub(super) endpoint: Endpoint,
    pub(super) dataplane: Dataplane,
    pub(super) control: ControlSocket,
    pub(super) operations: BTreeMap<ClientId, Operation>,
    pub(super) monitors: BTreeSet<ClientId>,
    /// Views of the SAs that are on their way.
    pub(super) viewings: BTreeMap<ClientId, Viewing>,
    pub(super) started: Instant,
    pub(super) tap: LogTap,
    config_path: PathBuf,
    poll: Poll,
    sockets: IkeSockets,
    icmp: IcmpSockets,
    signals: Signals,
    pub(super) netlink: Netlink,
    monitor: Monitor,
    routes: Routes,
    source_routes: SourceRoutes,
    scripts: Scripts,
    /// When to look at the network again.
    network_at: Option<Instant>,
    /// When that was done last.
    network_seen: Instant,
    /// Looks at the network that need not wait.
    looks: u32,
    /// The interface of each of our addresses.
    devices: BTreeMap<IpAddr, u32>,
    /// When to end although peers have not answered.
    end_at: Option<Instant>,
    failure: Option<DaemonError>,
    /// Where keys are saved, if they are.
    keys: Option<KeyFile>,
}

impl Daemon {
    pub(super) fn new(
        options: &Options,
        config: Config,
        dataplane: Dataplane,
        sockets: IkeSockets,
        (mut netlink, monitor): (Netlink, Monitor),
        keys: Option<KeyFile>,
    ) -> Result<Self, DaemonError> {
        let system = |what: &'static str| move |error| DaemonError::System(what, error);
        let poll = Poll::new().map_err(system("cannot poll"))?;
        let registry = poll.registry();
        sockets.register(registry).map_err(system("cannot poll the sockets"))?;
        let icmp = IcmpSockets::open();
        icmp.register(registry, ICMP).map_err(system("cannot poll the ICMP sockets"))?;
        let wanted = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
        let mut signals = Signals::new(wanted).map_err(system("cannot take signals"))?;
        registry
            .register(&mut signals, SIGNALS, Interest::READABLE)
            .map_err(system("cannot poll signals"))?;
        let waker = Arc::new(Waker::new(registry, UPCALLS).map_err(system("cannot make a waker"))?);
        dataplane.set_waker(Box::new(move || {
            // Fails only when the loop is gone.
            let _ = waker.wake();
        }));
        registry
            .register(&mut SourceFd(&monitor.as_raw_fd()), NETWORK, Interest::READABLE)
            .map_err(system("cannot poll netlink"))?;
        let control = ControlSocket::bind(&options.socket, options.socket_group, CONTROL, registry).map_err(
            |error| DaemonError::ControlSocket { path: options.socket.display().to_string(), error },
        )?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|error| DaemonError::System("no random seed", io::Error::other(error)))?;
        let now = Instant::now();
        let routes = Routes::new(dataplane.tun_index(), config.daemon.table);
        let source_routes = SourceRoutes::new(&mut netlink, rule_of(&config));
        let scripts = Scripts::new(dataplane.tun_name());
        let mut endpoint = Endpoint::new(now, config.clone(), seed);
        if keys.is_some() {
            endpoint.save_keys();
        }
        Ok(Self {
            endpoint,
            config,
            dataplane,
            control,
            operations: BTreeMap::new(),
            monitors: BTreeSet::new(),
            viewings: BTreeMap::new(),
            started: now,
            tap: options.tap.clone(),
            config_path: options.config.clone(),
            poll,
            sockets,
            icmp,
            signals,
            netlink,
            monitor,
            routes,
            source_routes,
            scripts,
            network_at: None,
            network_seen: now,
            looks: LOOKS_AT_ONCE,
            devices: BTreeMap::new(),
            end_at: None,
            failure: None,
            keys,
        })
    }

    /// Runs until told to end, then takes leave of the peers.
    pub(super) fn run(mut self) -> Result<(), DaemonError> {
        self.tell_time();
        // What a crash has left is out of date.
        self.set_resolvers(&[], &[]);
        self.look_at_network();
        self.endpoint.start_connections(Instant::now());
        self.carry_out(Instant::now());
        let d = &self.config.daemon;
        info!(
            target: "CFG",
            "mobikex {} is ready: {} connections, UDP ports {} and {}, device {}",
            env!("CARGO_PKG_VERSION"),
            self.config.connections.len(),
            d.port,
            d.port_nat_t,
            self.dataplane.tun_name(),
        );
        tell_service_manager("READY=1");
        let mut events = Events::with_capacity(64);
        // Sockets that had more than one turn's worth; readiness is told only once.
        let mut unfinished: BTreeSet<usize> = BTreeSet::new();
        let mut more_upcalls = false;
        loop {
            let more_to_show = self.show_more();
            let rests = unfinished.is_empty() && !more_upcalls && !more_to_show;
            let pause = if rests { self.pause() } else { Some(Duration::ZERO) };
            if let Err(error) = self.poll.poll(&mut events, pause)
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(DaemonError::System("cannot poll", error));
            }
            // The machine's clock may have been set while nothing happened.
            self.tell_time();
            let mut ready = std::mem::take(&mut unfinished);
            let (mut signalled, mut accept, mut network, mut unreachable) = (false, false, false, false);
            let mut upcalls = std::mem::take(&mut more_upcalls);
            let mut clients = BTreeSet::new();
            for event in &events {
                match event.token() {
                    SIGNALS => signalled = true,
                    UPCALLS => upcalls = true,
                    NETWORK => network = true,
                    ICMP => unreachable = true,
                    CONTROL => accept = true,
                    Token(index) if index < SIGNALS.0 => {
                        ready.insert(index);
                    }
                    token => {
                        clients.insert(token);
                    }
                }
            }
            for index in ready {
                if self.receive(index) {
                    unfinished.insert(index);
                }
            }
            if upcalls {
                more_upcalls = self.take_upcalls();
            }
            if unreachable {
                let now = Instant::now();
                let ports = [self.config.daemon.port, self.config.daemon.port_nat_t];
                let endpoint = &mut self.endpoint;
                self.icmp.receive(ports, |local, remote, port| {
                    endpoint.handle_unreachable(now, local, remote, port);
                });
            }
            if accept {
                self.control.accept(self.poll.registry());
            }
            for token in clients {
                self.serve(token);
            }
            if network && self.monitor.drain() && self.network_at.is_none() {
                self.network_at = Some(self.next_look(Instant::now()));
            }
            let now = Instant::now();
            if self.network_at.is_some_and(|at| at <= now) {
                self.network_at = None;
                self.look_at_network();
            }
            if self.endpoint.next_timeout().is_some_and(|at| at <= now) {
                self.endpoint.handle_timeout(now);
            }
            self.routes.expire(&mut self.netlink, now);
            self.carry_out(now);
            if signalled {
                self.take_signals();
            }
            if let Some(failure) = self.failure.take() {
                self.end_scripts();
                return Err(failure);
            }
            if self.end_at.is_some_and(|at| at <= Instant::now() || self.endpoint.is_idle()) {
                info!(target: "CFG", "ending");
                self.end_scripts();
                self.set_resolvers(&[], &[]);
                self.routes.clear(&mut self.netlink);
                self.dataplane.shutdown();
                return Ok(());
            }
        }
    }

    fn tell_time(&mut self) {
        self.endpoint.set_clock(Instant::now(), credentials::unix_now());
    }

    fn pause(&self) -> Option<Duration> {
        let next = [self.endpoint.next_timeout(), self.network_at, self.end_at, self.routes.next_expiry()];
        let next = next.into_iter().flatten().min();
        next.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn receive(&mut self, index: usize) -> bool {
        let now = Instant::now();
        let (endpoint, dataplane) = (&mut self.endpoint, &self.dataplane);
        let more = self.sockets.receive(index, |received| match received {
            Received::Ike { local, remote, nat_t, message } => {
                endpoint.handle_datagram(now, local, remote, nat_t, message);
            }
            Received::Esp(meta, packet) => {
                dataplane.give_esp(meta, packet);
            }
        });
        self.carry_out(now);
        more
    }

    /// Handles some upcalls; true if there may be more.
    fn take_upcalls(&mut self) -> bool {
        let now = Instant::now();
        for _ in 0..UPCALLS_AT_ONCE {
            let Ok(upcall) = self.dataplane.upcalls().try_recv() else {
                self.carry_out(now);
                return false;
            };
            let event = match upcall {
                Upcall::Acquire { policy, src, dst, protocol, .. } => {
                    debug!(target: "CHD", "traffic {src} -> {dst}, protocol {protocol} asks for an SA");
                    ChildEvent::Acquire(policy)
                }
                Upcall::SoftLimit(id) => ChildEvent::SoftLimit(id),
                Upcall::HardLimit(id) | Upcall::SequenceExhausted(id) => ChildEvent::HardLimit(id),
                Upcall::FirstInbound(id) => ChildEvent::FirstInbound(id),
                Upcall::Echo { child, echo, at, .. } => {
                    self.endpoint.handle_echo(now, child, &echo, at);
                    continue;
                }
                Upcall::NewSource { child, path } => {
                    self.endpoint.handle_new_source(now, child, path);
                    continue;
                }
                Upcall::Traffic(id) => ChildEvent::Traffic(id),
                Upcall::OwnSa { child, worker } => ChildEvent::OwnSa(child, worker),
                Upcall::Ike { local, remote, data } => {
                    self.endpoint.handle_datagram(now, local, remote, true, &data);
                    continue;
                }
                // Nothing asks for these yet.
                Upcall::WorkerFailed(index) => {
                    error!(target: "ESP", "packet worker {index} has failed");
                    self.failure = Some(DaemonError::Worker(index));
                    self.begin_end(now);
                    continue;
                }
            };
            self.endpoint.handle_child_event(now, event);
        }
        self.carry_out(now);
        true
    }

    fn take_signals(&mut self) {
        let pending: Vec<_> = self.signals.pending().collect();
        for signal in pending {
            if signal == libc::SIGHUP {
                self.reload();
            } else if self.end_at.is_some() {
                // Asked twice: at once.
                self.end_at = Some(Instant::now());
            } else {
                self.begin_end(Instant::now());
            }
        }
    }

    /// Has scripts told of the end of what is still there, and waits until they have run, for a time. Whoever is in a hurry
    /// asks once more.
    fn end_scripts(&mut self) {
        let now = Instant::now();
        self.endpoint.abandon(now);
        self.carry_out(now);
        self.scripts.end_within(SCRIPTS_END);
        while !self.scripts.have_ended(Duration::from_millis(100)) {
            if self.signals.pending().any(|signal| signal != libc::SIGHUP) {
                self.scripts.end_within(Duration::ZERO);
            }
        }
    }

    fn begin_end(&mut self, now: Instant) {
        info!(target: "CFG", "deleting all SAs, then ending");
        tell_service_manager("STOPPING=1");
        self.end_at = Some(now + FAREWELL);
        if let Err(error) = self.endpoint.handle_command(now, Command::Shutdown) {
            warn!(target: "IKE", "{error}");
        }
        self.carry_out(now);
    }

    /// Reads the configuration again. Established SAs stay as they were negotiated.
    fn reload(&mut self) {
        let config = match config::load(&self.config_path) {
            Ok(mut config) => {
                config.daemon.workers = config.daemon.workers.or(self.config.daemon.workers);
                config
            }
            Err(errors) => {
                for error in &errors {
                    error!(target: "CFG", "{error}");
                }
                return error!(target: "CFG", "the configuration stays as it was");
            }
        };
        if config.daemon != self.config.daemon || needs_raw_esp(&config) && !needs_raw_esp(&self.config) {
            warn!(target: "CFG", "changes of the section 'mobikex', and the first 'encap = no', need a restart");
        }
        let now = Instant::now();
        let added: Vec<String> = config
            .connections
            .iter()
            .filter(|c| self.config.connection(&c.name).is_none())
            .filter(|c| c.children.iter().any(|child| child.start_action == StartAction::Start))
            .map(|c| c.name.clone())
            .collect();
        self.config = config.clone();
        self.endpoint.set_config(now, config);
        self.look_at_network();
        for connection in added {
            if let Err(error) = self.endpoint.handle_command(now, Command::Up { connection, child: None }) {
                info!(target: "IKE", "{error}");
            }
        }
        self.carry_out(now);
        info!(target: "CFG", "configuration loaded: {} connections", self.config.connections.len());
    }

    /// When a change of the network that is told now is looked at.
    fn next_look(&mut self, now: Instant) -> Instant {
        let quiet = now.saturating_duration_since(self.network_seen).as_millis() / DEBOUNCE.as_millis();
        self.looks = self.looks.saturating_add(u32::try_from(quiet).unwrap_or(u32::MAX)).min(LOOKS_AT_ONCE);
        match self.looks.checked_sub(1) {
            Some(left) => {
                self.looks = left;
                now
            }
            None => (self.network_seen + DEBOUNCE).max(now),
        }
    }

    /// Looks up which addresses we have and which the system would use toward each peer.
    pub(super) fn look_at_network(&mut self) {
        self.network_seen = Instant::now();
        match self.look_at_addresses() {
            Ok(addresses) => self.endpoint.set_network(self.network_seen, addresses),
            Err(error) => warn!(target: "NET", "{error}"),
        }
        let mark = self.config.daemon.mark;
        for remote in self.endpoint.remote_addresses() {
            match self.netlink.route_source(remote, mark) {
                Ok(Some(local)) => self.endpoint.set_route_source(remote, local),
                Ok(None) => debug!(target: "NET", "no route to {remote}"),
                Err(error) => warn!(target: "NET", "{error}"),
            }
        }
        self.carry_out(Instant::now());
    }

    /// Our addresses on interfaces that work, with where each leads.
    fn look_at_addresses(&mut self) -> Result<Vec<LocalAddress>, NetlinkError> {
        let addresses = self.netlink.addresses()?;
        self.routes.set_addresses(&mut self.netlink, addresses.clone());
        let links = self.netlink.links()?;
        let destinations = self.netlink.destinations(self.config.daemon.table)?;
        let tun = self.dataplane.tun_index();
        self.source_routes.update(&mut self.netlink, &addresses);
        self.devices = addresses.iter().map(|a| (a.addr, a.device)).collect();
        let usable = addresses.into_iter().filter(|a| a.device != tun);
        let found = usable.filter_map(|a| {
            let reach = destinations.get(&a.device).map_or(&[][..], Vec::as_slice);
            Some(LocalAddress {
                addr: a.addr,
                device: a.device,
                interface: links.get(&a.device)?.clone(),
                reach: reach.iter().map(|(addr, len)| TrafficSelector::prefix(*addr, *len)).collect(),
            })
        });
        Ok(found.collect())
    }

    /// Does what the engine asks for, then tells those who wait.
    pub(super) fn carry_out(&mut self, now: Instant) {
        let mut happened = Vec::new();
        while let Some(output) = self.endpoint.poll_output() {
            match output {
                Output::Transmit { local, remote, nat_t, data } => self.transmit(local, remote, nat_t, &data),
                Output::Event(event) => {
                    log_event(&event);
                    happened.push(event);
                }
                Output::Echo { child, path, device, encap, echo } => {
                    let way = WeightedPath { path, device, encap, weight: 0, limited: false };
                    if let Err(reason) = self.dataplane.send_echo(child, &way, &echo) {
                        debug!(target: "ESP", "a probe of {path} was not sent: {}", reason.name());
                    }
                    let (packets, packets_in) = self.dataplane.tables().policy_packets(child, &path);
                    self.endpoint.note_traffic(now, child, &path, packets, packets_in);
                }
                Output::CountPaths(children) => {
                    let octets = self.dataplane.tables().path_octets(&children);
                    if let Some(child) = children.first() {
                        self.endpoint.note_octets(now, *child, &octets);
                    }
                }
                Output::CountPackets(child) => {
                    let stats = self.dataplane.tables().stats(child).unwrap_or_default();
                    self.endpoint.note_packets(now, child, stats.packets_in + stats.packets_out);
                }
                Output::RunScript { up, script } => self.scripts.run(up, script),
                other => self.change_tables(now, other),
            }
        }
        self.tell(now, &happened);
    }

    fn transmit(&self, local: SocketAddr, remote: SocketAddr, nat_t: bool, data: &[u8]) {
        let device = self.devices.get(&local.ip()).copied().unwrap_or(0);
        self.sockets.send(local, remote, device, nat_t, data);
    }

    /// Changes the packet path and the routes into it. A route comes after what it leads to, and goes before it.
    fn change_tables(&mut self, now: Instant, output: Output) {
        let (tables, routes, netlink) = (self.dataplane.tables(), &mut self.routes, &mut self.netlink);
        match output {
            Output::InstallTrap { policy, ts_local, ts_remote, mode } => {
                tables.install_trap(policy, &ts_local, &ts_remote, mode);
                routes.add(netlink, policy, None, &ts_local, &ts_remote);
            }
            Output::InstallChild { params, outbound } => {
                self.keys.iter_mut().for_each(|file| file.child(&params));
                if let Err(error) = tables.install(&params, outbound) {
                    return error!(target: "CHD", "{} cannot be installed: {error}", params.name);
                }
                routes.add(netlink, params.policy, Some(params.id), &params.ts_local, &params.ts_remote);
            }
            Output::RemovePolicy(policy) => {
                routes.remove_policy(netlink, policy);
                tables.remove_policy(policy);
            }
            Output::RemoveChild(id) => {
                routes.remove_child(netlink, id);
                tables.remove(id);
            }
            Output::SetAddresses { children, set } => {
                tables.set_addresses(&children, &set);
            }
            Output::SetSelectors { child, set, ts_local, ts_remote } => {
                tables.set_selectors(child, &set, &ts_local, &ts_remote);
                routes.change_child(netlink, child, &ts_local, &ts_remote, now);
            }
            Output::InstallAddress(addr) => match netlink.add_address(self.dataplane.tun_index(), addr) {
                Ok(()) => routes.add_address(netlink, addr),
                Err(error) => warn!(target: "NET", "{error}"),
            },
            Output::RemoveAddress(addr) => {
                if let Err(error) = netlink.remove_address(self.dataplane.tun_index(), addr) {
                    warn!(target: "NET", "{error}");
                }
                routes.remove_address(netlink, addr);
            }
            Output::SetResolvers { servers, domains } => self.set_resolvers(&servers, &domains),
            Output::SaveKeys(keys) => self.keys.iter_mut().for_each(|file| file.ike(&keys)),
            Output::WatchTraffic(children) => tables.watch_traffic(&children),
            Output::WatchWorkers { child, workers } => tables.watch_workers(child, &workers),
            Output::ActivateOutbound(id) => tables.activate_outbound(id),
            Output::DeactivateOutbound(id) => tables.deactivate_outbound(id),
            Output::Transmit { .. }
            | Output::Echo { .. }
            | Output::CountPaths(_)
            | Output::CountPackets(_)
            | Output::RunScript { .. }
            | Output::Event(_) => {}
        }
    }

    /// Tells the machine which DNS servers there are, where the operator has said how.
    fn set_resolvers(&self, servers: &[IpAddr], domains: &[String]) {
        let Some(path) = &self.config.daemon.resolvconf else { return };
        if let Err(error) = resolvconf::write(path, servers, domains) {
            warn!(target: "CFG", "cannot write {}: {error}", path.display());
        }
    }

    /// Shows events to monitors, and events, log lines and outcomes to clients that wait for a command.
    fn tell(&mut self, now: Instant, happened: &[Event]) {
        if !self.monitors.is_empty() {
            for event in happened {
                let data = serde_json::to_value(event).unwrap_or_default();
                let reply = Reply::Event { text: event.to_string(), data };
                self.monitors.retain(|id| self.control.send(*id, &reply));
            }
        }
        if self.operations.is_empty() {
            return;
        }
        let lines = self.tap.take();
        let (endpoint, control) = (&self.endpoint, &mut self.control);
        self.operations.retain(|id, operation| {
            let shown = lines.iter().all(|(group, text)| {
                control.send(*id, &Reply::Log { group: (*group).into(), text: text.clone() })
            });
            let views = endpoint.ike_sas_of(now, operation.connection());
            match operation.step(happened, &views) {
                _ if !shown => false,
                None => true,
                Some(outcome) => {
                    control
                        .send(*id, &outcome.map_or_else(|reason| Reply::Failed { reason }, |()| Reply::Done));
                    false
                }
            }
        });
        self.tap.set_open(!self.operations.is_empty());
    }
}

fn log_event(event: &Event) {
    match event {
        Event::ChildUp { .. }
        | Event::ChildRekeyed { .. }
        | Event::ChildDown { .. }
        | Event::ChildFailed { .. } => info!(target: "CHD", "{event}"),
        _ => info!(target: "IKE", "{event}"),
    }
}

fn tell_service_manager(state: &str) {
    if let Err(error) = notify(state) {
        warn!(target: "CFG", "cannot tell the service manager {state}: {error}");
    }
}
