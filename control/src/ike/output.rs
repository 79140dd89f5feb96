//! What the engine asks of the world, and what it tells.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mobikex_common::addr::{AddressSet, Path};
use mobikex_common::sa::{ChildSaId, ChildSaParams, Mode, PolicyId};
use mobikex_common::spi::{IkeSpi, Spi};
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::echo::Echo;
use serde::Serialize;

pub use super::addresses::{Alternate, OuterView};
use super::internal::Given;
use super::path_table::PathView;
pub use super::resources::ResourceView;
pub use super::rounds::RoundView;
use super::updown::Script;
use super::versions::Version;
use crate::dissect::IkeKeys;

/// One thing for the caller to do, in order.
#[derive(Debug)]
pub enum Output {
    /// Send a datagram.
    Transmit {
        /// Source; its port tells which socket.
        local: SocketAddr,
        /// Destination.
        remote: SocketAddr,
        /// Prepend the non-ESP marker (RFC 3948 2.2).
        nat_t: bool,
        /// The IKE message, or a one-octet NAT keepalive.
        data: Vec<u8>,
    },
    /// Ask for an SA when traffic of this policy shows up.
    InstallTrap {
        /// The policy.
        policy: PolicyId,
        /// Our side.
        ts_local: Vec<TrafficSelector>,
        /// The peer's side.
        ts_remote: Vec<TrafficSelector>,
        /// Tunnel or transport.
        mode: Mode,
    },
    /// A policy is gone.
    RemovePolicy(PolicyId),
    /// Install a Child SA: always for receiving, for sending only if `outbound`.
    InstallChild {
        /// The SA.
        params: Box<ChildSaParams>,
        /// Send on it at once.
        outbound: bool,
    },
    /// These SAs use other outer addresses from now on, in both directions at once. The generation is each SA's own
    /// affair and zero here.
    SetAddresses {
        /// The SAs.
        children: Vec<ChildSaId>,
        /// Their common set.
        set: AddressSet,
    },
    /// An SA has other outer addresses and other selectors, in one step.
    SetSelectors {
        /// The SA.
        child: ChildSaId,
        /// Its outer addresses.
        set: AddressSet,
        /// Our side.
        ts_local: Vec<TrafficSelector>,
        /// The peer's side.
        ts_remote: Vec<TrafficSelector>,
    },
    /// Tell what has gone over each path for these SAs together.
    CountPaths(Vec<ChildSaId>),
    /// Tell how many packets this SA has carried in both directions.
    CountPackets(ChildSaId),
    /// Send an encrypted echo request over a path; its answer comes back as an upcall.
    Echo {
        /// The SA that carries it.
        child: ChildSaId,
        /// The path.
        path: Path,
        /// Interface of the path; 0 leaves the choice to the system.
        device: u32,
        /// In UDP.
        encap: bool,
        /// The request.
        echo: Echo,
    },
    /// Tell when one of these SAs sends again.
    WatchTraffic(Vec<ChildSaId>),
    /// Tell when one of these workers sends on this SA, once for each: it has none of its own.
    WatchWorkers {
        /// The SA.
        child: ChildSaId,
        /// The workers.
        workers: Vec<u32>,
    },
    /// The policy's traffic, or what the SA's worker has of it, now goes out on this SA.
    ActivateOutbound(ChildSaId),
    /// Stop sending on this SA; go on receiving.
    DeactivateOutbound(ChildSaId),
    /// Remove an SA wholly.
    RemoveChild(ChildSaId),
    /// This host has a virtual address.
    InstallAddress(IpAddr),
    /// It has it no more.
    RemoveAddress(IpAddr),
    /// DNS servers and domains behind all peers, in the place of those before.
    SetResolvers {
        /// The servers.
        servers: Vec<IpAddr>,
        /// Domains to search.
        domains: Vec<String>,
    },
    /// A script is told that a Child SA has begun or ended, after all others of the same turn. It may take a while.
    RunScript {
        /// It has begun.
        up: bool,
        /// The script.
        script: Arc<Script>,
    },
    /// The keys of a new IKE SA, for those who want to read a capture. Only after [`super::Endpoint::save_keys`].
    SaveKeys(Box<IkeKeys>),
    /// Something that an operator may want to know.
    Event(Event),
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An IKE SA is established.
    IkeUp {
        /// `home[1]`
        ike: String,
        /// Our address.
        local: SocketAddr,
        /// The peer's.
        remote: SocketAddr,
        /// The proven identity of the peer.
        peer: String,
    },
    /// An IKE SA was replaced by a new one.
    IkeRekeyed {
        /// The old one.
        ike: String,
        /// The new one.
        by: String,
    },
    /// An IKE SA is gone.
    IkeDown {
        /// `home[1]`
        ike: String,
        /// Why.
        reason: String,
    },
    /// An attempt to set up an IKE SA failed.
    IkeFailed {
        /// Connection.
        connection: String,
        /// `home[1]`
        ike: String,
        /// Why, for people.
        reason: String,
    },
    /// A Child SA carries traffic.
    ChildUp {
        /// `home[1]`
        ike: String,
        /// `net{1}`
        child: String,
        /// SPI toward us.
        spi_in: Spi,
        /// SPI toward the peer.
        spi_out: Spi,
        /// Our selectors.
        ts_local: Vec<TrafficSelector>,
        /// The peer's.
        ts_remote: Vec<TrafficSelector>,
        /// The worker that it is for, if not for all that have none of their own (RFC 9611).
        worker: Option<u32>,
    },
    /// A Child SA was replaced.
    ChildRekeyed {
        /// The old one.
        child: String,
        /// The new one.
        by: String,
    },
    /// A Child SA is gone.
    ChildDown {
        /// `net{1}`
        child: String,
        /// Why.
        reason: String,
    },
    /// The IKE SA and all its Child SAs use another pair of addresses.
    Moved {
        /// `home[1]`
        ike: String,
        /// The pair.
        path: Path,
    },
    /// An action on addresses was judged: by the peer, or by us for the peer.
    AddressAction {
        /// `home[1]`
        ike: String,
        /// The peer asked.
        by_peer: bool,
        /// What was asked.
        action: String,
        /// `done`, or the notify that refuses it.
        verdict: String,
        /// An operator asked.
        by_hand: bool,
    },
    /// The peer has other addresses, which the layers above a Child SA may know better what to do with: the whole list,
    /// in the place of any before it.
    Alternates {
        /// `home[1]`
        ike: String,
        /// `net{1}`
        child: String,
        /// In the peer's order.
        addresses: Vec<Alternate>,
    },
    /// An address of the peer was checked.
    AddressChecked {
        /// `home[1]`
        ike: String,
        /// The address.
        addr: SocketAddr,
        /// Whether the peer answered there.
        reachable: bool,
    },
    /// A path works.
    PathUp {
        /// `home[1]`
        ike: String,
        /// The path.
        path: Path,
    },
    /// A path does not work any more.
    PathDown {
        /// `home[1]`
        ike: String,
        /// The path.
        path: Path,
    },
    /// One side has ended MOBIKE-X.
    MobikeOff {
        /// `home[1]`
        ike: String,
    },
    /// The peer has a virtual address of our pools.
    AddressAssigned {
        /// `home[1]`
        ike: String,
        /// Its identity.
        peer: String,
        /// The address.
        addr: IpAddr,
    },
    /// Nobody uses a virtual address of our pools any more; it is kept for the peer that had it.
    AddressReleased {
        /// Its identity.
        peer: String,
        /// The address.
        addr: IpAddr,
    },
    /// We have virtual addresses.
    AddressGiven {
        /// `home[1]`
        ike: String,
        /// They, and what else the peer has named.
        #[serde(flatten)]
        given: Given,
    },
    /// A Child SA could not be set up.
    ChildFailed {
        /// `home[1]`
        ike: String,
        /// Configured name.
        child: String,
        /// Why, for people.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IkeUp { ike, local, remote, peer } => {
                write!(f, "IKE_SA {ike} established between {}...{}[{peer}]", local.ip(), remote.ip())
            }
            Self::IkeRekeyed { ike, by } => write!(f, "IKE_SA {ike} rekeyed as {by}"),
            Self::IkeDown { ike, reason } => write!(f, "IKE_SA {ike} closed: {reason}"),
            Self::IkeFailed { ike, reason, .. } => write!(f, "IKE_SA {ike} failed: {reason}"),
            Self::ChildUp { child, spi_in, spi_out, ts_local, ts_remote, worker, .. } => write!(
                f,
                "CHILD_SA {child} established with SPIs {spi_in}_i {spi_out}_o and TS {} === {}{}",
                super::narrow::show(ts_local),
                super::narrow::show(ts_remote),
                worker.map_or(String::new(), |worker| format!(" for worker {worker}"))
            ),
            Self::ChildRekeyed { child, by } => write!(f, "CHILD_SA {child} rekeyed as {by}"),
            Self::ChildDown { child, reason } => write!(f, "CHILD_SA {child} closed: {reason}"),
            Self::Moved { ike, path } => write!(f, "IKE_SA {ike} and its CHILD_SAs moved to {path}"),
            Self::AddressAction { ike, by_peer, action, verdict, .. } => {
                let who = if *by_peer { "peer asked" } else { "asked the peer" };
                write!(f, "IKE_SA {ike} {who}: {action}: {verdict}")
            }
            Self::Alternates { child, addresses, .. } => {
                let shown: Vec<_> = addresses.iter().map(|a| a.addr.to_string()).collect();
                write!(f, "CHILD_SA {child} alternative addresses of the peer: {}", shown.join(" "))
            }
            Self::AddressChecked { ike, addr, reachable } => {
                let verdict = if *reachable { "reachable" } else { "not reachable" };
                write!(f, "IKE_SA {ike} peer is {verdict} at {addr}")
            }
            Self::PathUp { ike, path } => write!(f, "IKE_SA {ike} path {path} is up"),
            Self::PathDown { ike, path } => write!(f, "IKE_SA {ike} path {path} is down"),
            Self::MobikeOff { ike } => write!(f, "IKE_SA {ike} MOBIKE-X is off"),
            Self::AddressAssigned { peer, addr, .. } => {
                write!(f, "assigning virtual IP {addr} to peer '{peer}'")
            }
            Self::AddressReleased { peer, addr } => write!(f, "lease {addr} by '{peer}' went offline"),
            Self::AddressGiven { ike, given } => {
                write!(f, "IKE_SA {ike} installing virtual IP {}", list(&given.addresses))?;
                for (what, list) in [("DNS", list(&given.dns)), ("networks", given.subnets.join(" "))] {
                    if !list.is_empty() {
                        write!(f, ", {what} {list}")?;
                    }
                }
                Ok(())
            }
            Self::ChildFailed { child, reason, .. } => write!(f, "CHILD_SA {child} failed: {reason}"),
        }
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// One IKE SA as an operator sees it. Times are whole seconds.
#[derive(Clone, Debug, Serialize)]
pub struct IkeSaView {
    /// Number, as in `home[1]`.
    pub id: u32,
    /// Connection.
    pub name: String,
    /// CONNECTING, ESTABLISHED, REKEYED or DELETING.
    pub state: &'static str,
    /// Whether we started it.
    pub initiator: bool,
    /// Original initiator's SPI.
    pub spi_i: IkeSpi,
    /// Original responder's SPI.
    pub spi_r: IkeSpi,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// The version of MOBIKE that is agreed.
    pub mobike: Version,
    /// What probes have shown, if there are several paths.
    pub paths: Vec<PathView>,
    /// Where else the peer may be found.
    pub alternates: Vec<IpAddr>,
    /// Our identity, once known.
    pub local_id: Option<String>,
    /// How we have proven ourselves, the first round first; `local_id` is the last one's.
    pub local_rounds: Vec<RoundView>,
    /// The proven identity of the peer.
    pub remote_id: Option<String>,
    /// The identity that EAP has proven; the one before it is only what the peer calls itself.
    pub remote_eap_id: Option<String>,
    /// How the peer has proven itself; `remote_id` and `remote_eap_id` are of the last round.
    pub remote_rounds: Vec<RoundView>,
    /// The peer's virtual addresses.
    pub remote_vips: Vec<IpAddr>,
    /// Our virtual addresses, and what else the peer has named with them.
    pub given: Option<Given>,
    /// Algorithms.
    pub suite: Option<String>,
    /// Seconds since it was established.
    pub established: Option<u64>,
    /// Seconds until it is rekeyed.
    pub rekey_in: Option<u64>,
    /// Its Child SAs.
    pub children: Vec<ChildSaView>,
}

/// One Child SA as an operator sees it; traffic counters are the packet path's to add.
#[derive(Clone, Debug, Serialize)]
pub struct ChildSaView {
    /// Handle for counters.
    pub id: ChildSaId,
    /// Configured name.
    pub name: String,
    /// INSTALLED, REKEYING, REKEYED, DELETING or DELETED (the last only receives late packets).
    pub state: &'static str,
    /// Tunnel or transport.
    pub mode: Mode,
    /// SPI toward us.
    pub spi_in: Spi,
    /// SPI toward the peer.
    pub spi_out: Spi,
    /// Algorithms.
    pub suite: String,
    /// What it is for, where a policy may have several.
    pub resource: Option<ResourceView>,
    /// Our selectors.
    pub ts_local: Vec<TrafficSelector>,
    /// The peer's.
    pub ts_remote: Vec<TrafficSelector>,
    /// Outer addresses, as pairs.
    pub addresses: AddressSet,
    /// Ours, as the peer knows them.
    pub local_addresses: Vec<OuterView>,
    /// The peer's.
    pub remote_addresses: Vec<OuterView>,
    /// Seconds since it was installed.
    pub installed: u64,
    /// Seconds until it is rekeyed.
    pub rekey_in: Option<u64>,
}
