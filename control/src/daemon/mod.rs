//! The daemon: everything between the engine, which neither reads a clock nor opens a socket, and the machine.
//!
//! One thread runs `event_loop`: IKE datagrams (`sockets`), commands (`control_socket`, `commands`, `operation`),
//! signals, changes of the network (`netlink`, `routes`) and the packet path's upcalls go into the engine, and
//! what the engine asks for is carried out.

mod commands;
mod control_socket;
mod event_loop;
mod icmp;
mod key_file;
pub mod netlink;
mod notify;
mod operation;
mod resolvconf;
mod routes;
mod scripts;
mod sockets;
mod source_routes;
mod turns;

use std::io;
use std::path::PathBuf;

use mobikex_dataplane::{Dataplane, DataplaneConfig, DataplaneError};
use tracing::warn;

use crate::config::{self, Config};
use crate::logging::LogTap;
use event_loop::Daemon;
use key_file::KeyFile;
use netlink::{Monitor, Netlink, NetlinkError, Rule};
use sockets::IkeSockets;

/// How the daemon is started.
#[derive(Clone)]
pub struct Options {
    /// Configuration file, read again on SIGHUP.
    pub config: PathBuf,
    /// Control socket.
    pub socket: PathBuf,
    /// Group that may use the control socket beside the owner.
    pub socket_group: Option<u32>,
    /// File that gets the keys of all SAs.
    pub save_keys: Option<PathBuf>,
    /// The log, for those who wait for a command.
    pub tap: LogTap,
}

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration has mistakes, one a line.
    #[error("{0}")]
    Config(String),
    /// Privileges are missing.
    #[error(
        "missing {0}: run as root, or from systemd with 'AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE'"
    )]
    Capabilities(String),
    /// An algorithm gives wrong answers.
    #[error(transparent)]
    SelfTest(#[from] mobikex_common::crypto::SelfTestError),
    /// The packet path.
    #[error("packet path: {0}")]
    Dataplane(#[from] DataplaneError),
    /// The kernel's routing.
    #[error("{0}")]
    Netlink(#[from] NetlinkError),
    /// A port of IKE.
    #[error("cannot open UDP port {port} for IKE: {error}{}", port_hint(*port, .error))]
    Port {
        /// The port.
        port: u16,
        /// What the system said.
        error: io::Error,
    },
    /// The control socket.
    #[error("cannot open the control socket {path}: {error}")]
    ControlSocket {
        /// Where.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// The file for keys is not one that keys may be written to.
    #[error("keys cannot be saved in {path}: {reason}")]
    SaveKeys {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A worker ended by itself; the packet path is not whole any more.
    #[error("packet worker {0} has failed")]
    Worker(usize),
    /// Anything else that the system refused.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// Runs until SIGTERM or SIGINT. What was installed in the system is removed again, also after an error.
pub fn run(options: &Options) -> Result<(), DaemonError> {
    mobikex_common::crypto::self_test()?;
    check_capabilities()?;
    let mut config = load(options)?;
    let cores = || std::thread::available_parallelism().map_or(1, Into::into);
    let workers = *config.daemon.workers.get_or_insert_with(cores);
    let keys = options.save_keys.as_deref().map(KeyFile::open).transpose()?;
    let mut netlink = Netlink::new()?;
    let settings = &config.daemon;
    let mut dataplane = Dataplane::start(DataplaneConfig {
        tun_name: settings.tun.clone(),
        tun_mtu: settings.mtu,
        workers,
        pin: settings.pin,
        nat_t_port: settings.port_nat_t,
        mark: settings.mark,
        slots: settings.max_child_sas,
        raw_esp: needs_raw_esp(&config),
        offload: settings.offload,
        busy_poll: settings.busy_poll,
    })?;
    let sockets = IkeSockets::open(settings.port, settings.mark, dataplane.control_sockets())?;
    netlink.set_link_up(dataplane.tun_index(), settings.mtu)?;
    let rule = rule_of(&config);
    let monitor = Monitor::new()?;
    // From here on there is something to take back.
    let outcome = netlink
        .add_rule(rule)
        .map_err(DaemonError::from)
        .and_then(|()| Daemon::new(options, config, dataplane, sockets, (netlink, monitor), keys))
        .and_then(Daemon::run);
    // Routes into the tunnels went with the TUN device.
    let removed = Netlink::new().and_then(|mut netlink| {
        netlink.remove_rule(rule)?;
        source_routes::remove_all(&mut netlink, rule);
        Ok(())
    });
    if let Err(error) = removed {
        warn!(target: "NET", "{error}");
    }
    outcome
}

fn load(options: &Options) -> Result<Config, DaemonError> {
    config::load(&options.config).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        DaemonError::Config(lines.join("\n"))
    })
}

fn rule_of(config: &Config) -> Rule {
    let d = &config.daemon;
    Rule { priority: d.priority, mark: d.mark, table: d.table }
}

/// Plain ESP (IP protocol 50) only comes where UDP encapsulation is not forced.
fn needs_raw_esp(config: &Config) -> bool {
    config.connections.iter().any(|c| !c.encap)
}

/// Whether a port is privileged is the system's to say (`net.ipv4.ip_unprivileged_port_start`), so this capability
/// is not demanded beforehand.
fn port_hint(port: u16, error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied if port < 1024 => " (CAP_NET_BIND_SERVICE is needed)",
        io::ErrorKind::AddrInUse => " (is another IKE daemon running?)",
        _ => "",
    }
}

fn check_capabilities() -> Result<(), DaemonError> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|error| DaemonError::System("cannot read /proc/self/status", error))?;
    match netlink::missing_capabilities(&status).as_slice() {
        [] => Ok(()),
        missing => Err(DaemonError::Capabilities(missing.join(" and "))),
    }
}
