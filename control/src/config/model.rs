//! What a configuration says, as typed values. Secrets are never printed.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::eap::{EapId, EapSecret};
use super::multipath::{MobikeX, Paths, ReturnRoutability};
use super::pools::Pool;
use crate::credentials::{Certificate, Credentials, PubkeyRules, Revocation};
use crate::eap::Kind;
use mobikex_common::addr::Scheduler;
use mobikex_common::crypto::Secret;
use mobikex_common::crypto::signature::PublicKey;
use mobikex_common::proposal::{EspProposal, IkeProposal};
use mobikex_common::sa::{CopyDscp, Mode, VolumeLimits};
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ike::Identification;

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct Config {
    /// Settings of the daemon itself, section `mobikex`.
    pub daemon: DaemonSettings,
    /// Section `connections`, in the order of the file.
    pub connections: Vec<Connection>,
    /// Section `pools`, in the order of the file.
    pub pools: Vec<Pool>,
    /// Pre-shared keys of section `secrets`.
    pub secrets: Vec<PskSecret>,
    /// Passwords for EAP of section `secrets`.
    pub eap_secrets: Vec<EapSecret>,
    /// Certificates and keys, from files.
    #[serde(skip)]
    pub credentials: Credentials,
}

impl Config {
    /// The connection of a name.
    pub fn connection(&self, name: &str) -> Option<&Connection> {
        self.connections.iter().find(|c| c.name == name)
    }
}

/// Settings of the daemon itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DaemonSettings {
    /// UDP port of IKE.
    pub port: u16,
    /// UDP port of IKE with the non-ESP marker and of encapsulated ESP.
    pub port_nat_t: u16,
    /// Name of the TUN device.
    pub tun: String,
    /// MTU of the TUN device.
    pub mtu: u16,
    /// Packet workers; `None` = as many as the machine has cores.
    pub workers: Option<usize>,
    /// Keep every worker on a core of its own.
    pub pin: bool,
    /// Let the system hand over, cut and merge many packets at once.
    pub offload: bool,
    /// How long a packet worker that has had work looks for more before it waits for some, in microseconds; zero waits at
    /// once. It saves waking up where packets follow each other closely, for time of the processor.
    #[serde(rename = "busy_poll_microseconds", serialize_with = "microseconds")]
    pub busy_poll: Duration,
    /// Routing table of the tunnels' routes.
    pub table: u32,
    /// Priority of the rule that leads to that table.
    pub priority: u32,
    /// Mark of our own packets, which that rule passes by.
    pub mark: u32,
    /// The most Child SAs at a time.
    pub max_child_sas: u32,
    /// Half-open IKE SAs from which on initiators must show a cookie.
    pub cookie_threshold: u32,
    /// Half-open IKE SAs from which on first requests are dropped.
    pub half_open_limit: u32,
    /// IKE messages that would make larger IP datagrams, in octets, go out in fragments (RFC 7383).
    pub fragment_size: u16,
    /// File that names the DNS servers that peers have told us.
    pub resolvconf: Option<PathBuf>,
}

impl Default for DaemonSettings {
    fn default() -> Self {
        Self {
            port: 500,
            port_nat_t: 4500,
            tun: "mobikex0".to_string(),
            mtu: 1400,
            workers: None,
            pin: false,
            offload: true,
            busy_poll: Duration::ZERO,
            table: 220,
            priority: 220,
            mark: 0x6d6b,
            max_child_sas: 131_072,
            cookie_threshold: 30,
            half_open_limit: 10_000,
            fragment_size: 1280,
            resolvconf: None,
        }
    }
}

/// Which addresses an end may have.
#[derive(Clone, Debug, PartialEq)]
pub enum AddrPattern {
    /// `%any`
    Any,
    /// One address, a prefix or a range.
    Range(TrafficSelector),
}

impl AddrPattern {
    fn matches(&self, addr: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Range(range) => range.contains_addr(addr),
        }
    }

    /// The address, if there is only one.
    fn single(&self) -> Option<IpAddr> {
        match self {
            Self::Range(range) if range.start == range.end => Some(range.start),
            _ => None,
        }
    }
}

/// One side's traffic selector as configured.
#[derive(Clone, Debug, PartialEq)]
pub enum TsPattern {
    /// Fixed addresses.
    Fixed(TrafficSelector),
    /// The outer address of that side, with the protocol and ports of this selector.
    Dynamic(TrafficSelector),
}

impl TsPattern {
    /// The selector when that side's outer address is `addr`.
    pub fn resolve(&self, addr: IpAddr) -> TrafficSelector {
        match self {
            Self::Fixed(ts) => *ts,
            Self::Dynamic(ts) => TrafficSelector { start: addr, end: addr, ..*ts },
        }
    }
}

/// IKE fragmentation (RFC 7383).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fragmentation {
    /// Large messages go out in fragments if the peer can take them.
    #[default]
    Yes,
    /// Those of the peer are taken, and none are sent.
    Accept,
    /// Neither.
    No,
}

/// What happens to other IKE SAs between the same identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unique {
    /// They stay, and nobody says or hears INITIAL_CONTACT.
    Never,
    /// They stay, unless the peer sends INITIAL_CONTACT.
    #[default]
    No,
    /// They stay, and a new one from elsewhere is refused.
    Keep,
    /// The newest replaces them.
    Replace,
}

/// IKE SAs without a first Child SA (RFC 6023).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Childless {
    /// None are made nor taken.
    Never,
    /// They are taken.
    #[default]
    Allow,
    /// They are taken, and made if the peer takes them.
    Prefer,
    /// No others are made nor taken.
    Force,
}

/// What to do at start and when a peer closes a Child SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StartAction {
    /// Nothing.
    #[default]
    None,
    /// Wait for traffic.
    Trap,
    /// Set it up.
    Start,
    /// Set it up, and wait for traffic whenever it is down.
    #[serde(rename = "trap|start")]
    TrapStart,
}

impl StartAction {
    /// Whether it is to be set up.
    pub fn starts(self) -> bool {
        matches!(self, Self::Start | Self::TrapStart)
    }

    /// Whether traffic sets it up.
    pub fn traps(self) -> bool {
        matches!(self, Self::Trap | Self::TrapStart)
    }
}

/// What to do with a Child SA when the peer is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DpdAction {
    /// Forget it.
    #[default]
    Clear,
    /// Wait for traffic.
    Trap,
    /// Set it up again.
    Restart,
}

impl From<DpdAction> for StartAction {
    fn from(action: DpdAction) -> Self {
        match action {
            DpdAction::Clear => Self::None,
            DpdAction::Trap => Self::Trap,
            DpdAction::Restart => Self::Start,
        }
    }
}

/// How a side proves itself.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// By a pre-shared key.
    #[default]
    Psk,
    /// By a signature, with a certificate or a raw public key.
    Pubkey(PubkeyRules),
    /// By EAP, with one of these methods.
    Eap(Vec<Kind>),
}

/// A round of one side's authentication.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct AuthRound {
    /// The identity: ours to show (default: our address, or the subject of our certificate), or the peer's to demand
    /// (default: any), which may be a pattern.
    #[serde(serialize_with = "optional_text")]
    pub id: Option<Identification>,
    /// How.
    pub method: Method,
    /// The identity within EAP: ours, or the peer's to ask for.
    pub eap_id: EapId,
    /// Ours to choose from (default: those for the identity), or the only ones of the peer that are taken.
    #[serde(serialize_with = "certificates")]
    pub certs: Vec<Arc<Certificate>>,
    /// The CAs of the peer (default: all that are trusted).
    #[serde(serialize_with = "certificates")]
    pub cacerts: Vec<Arc<Certificate>>,
    /// Raw public keys: ours to choose from, or the only ones of the peer that are taken.
    #[serde(serialize_with = "kinds")]
    pub pubkeys: Vec<PublicKey>,
    /// What is done about the peer's certificate if its revocation is not known.
    pub revocation: Revocation,
}

impl AuthRound {
    /// The ends' certificates that an operator has put here, which need no CA; and whether only they count.
    pub fn pinned<'a>(&'a self, credentials: &'a Credentials) -> (&'a [Arc<Certificate>], bool) {
        if !self.certs.is_empty() {
            (&self.certs, true)
        } else if self.cacerts.is_empty() {
            (&credentials.certificates, false)
        } else {
            (&[], false)
        }
    }

    /// The rules for keys, where there are any.
    pub fn rules(&self) -> Option<&PubkeyRules> {
        match &self.method {
            Method::Pubkey(rules) => Some(rules),
            Method::Psk | Method::Eap(_) => None,
        }
    }
}

/// When certificates are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SendCert {
    /// Always.
    Always,
    /// When the peer asks for them.
    #[default]
    IfAsked,
    /// Never.
    Never,
}

/// A pre-shared key. Its serialized form leaves the key out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PskSecret {
    /// Section name.
    pub name: String,
    /// Whose it is; empty for anybody's.
    #[serde(serialize_with = "texts")]
    pub ids: Vec<Identification>,
    /// The key.
    #[serde(skip)]
    pub secret: Secret,
}

/// A connection to a peer, or to many.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Connection {
    /// Section name.
    pub name: String,
    /// Our addresses.
    pub local_addrs: Vec<AddrPattern>,
    /// The peer's.
    pub remote_addrs: Vec<AddrPattern>,
    /// The peer's IKE port.
    pub remote_port: u16,
    /// Acceptable algorithms, best first.
    #[serde(serialize_with = "texts")]
    pub proposals: Vec<IkeProposal>,
    /// NATs on the path are coped with; otherwise they are an attack (RFC 4555 3.9).
    pub nat_traversal: bool,
    /// Large messages in fragments.
    pub fragmentation: Fragmentation,
    /// Encapsulate ESP in UDP even without a NAT.
    pub encap: bool,
    /// Offer MOBIKE (RFC 4555).
    pub mobike: bool,
    /// Offer MOBIKE-X.
    pub mobike_x: MobikeX,
    /// Set the critical bit of the offer (MOBIKE-X 7.1.1).
    pub mobike_critical: bool,
    /// When new addresses of the peer are checked.
    pub return_routability: ReturnRoutability,
    /// How several addresses are used.
    pub paths: Paths,
    /// Check the peer after this long without a message; zero = never.
    #[serde(rename = "dpd_delay_seconds", serialize_with = "seconds")]
    pub dpd_delay: Duration,
    /// Attempts to reach the peer; 0 = for ever.
    pub keyingtries: u32,
    /// Rekey the IKE SA after this long; zero = never.
    #[serde(rename = "rekey_time_seconds", serialize_with = "seconds")]
    pub rekey_time: Duration,
    /// Set up an IKE SA anew, with another proof of both, after this long; zero = never.
    #[serde(rename = "reauth_time_seconds", serialize_with = "seconds")]
    pub reauth_time: Duration,
    /// IKE SAs without a first Child SA.
    pub childless: Childless,
    /// Close it this long after a rekeying, or another proof, that failed.
    #[serde(rename = "over_time_seconds", serialize_with = "seconds")]
    pub over_time: Duration,
    /// Rekey up to this much earlier, at random.
    #[serde(rename = "rand_time_seconds", serialize_with = "seconds")]
    pub rand_time: Duration,
    /// Other IKE SAs between the same identities.
    pub unique: Unique,
    /// When our certificate is sent.
    pub send_cert: SendCert,
    /// Ask for the peer's certificate.
    pub send_certreq: bool,
    /// Virtual addresses that we ask for, one of a family at most; the unspecified one for any.
    pub vips: Vec<IpAddr>,
    /// Pools that the peer gets a virtual address of, in this order.
    pub pools: Vec<String>,
    /// Our side.
    pub local: AuthRound,
    /// How we prove ourselves after that (RFC 4739).
    pub further_local: Vec<AuthRound>,
    /// The peer's side.
    pub remote: AuthRound,
    /// How the peer proves itself after that.
    pub further_remote: Vec<AuthRound>,
    /// Child SAs, in the order of the file; at least one.
    pub children: Vec<Child>,
}

impl Connection {
    /// A connection with the defaults and no children.
    pub fn new(name: &str) -> Self {
        let rekey_time = Duration::from_secs(4 * 3600);
        Self {
            name: name.to_string(),
            local_addrs: vec![AddrPattern::Any],
            remote_addrs: vec![AddrPattern::Any],
            remote_port: 500,
            proposals: IkeProposal::defaults(),
            nat_traversal: true,
            fragmentation: Fragmentation::default(),
            encap: true,
            mobike: true,
            mobike_x: MobikeX::default(),
            mobike_critical: false,
            return_routability: ReturnRoutability::default(),
            paths: Paths::default(),
            dpd_delay: Duration::ZERO,
            keyingtries: 1,
            rekey_time,
            reauth_time: Duration::ZERO,
            childless: Childless::default(),
            over_time: rekey_time / 10,
            rand_time: rekey_time / 10,
            unique: Unique::default(),
            send_cert: SendCert::default(),
            send_certreq: true,
            vips: Vec::new(),
            pools: Vec::new(),
            local: AuthRound::default(),
            further_local: Vec::new(),
            remote: AuthRound::default(),
            further_remote: Vec::new(),
            children: Vec::new(),
        }
    }

    /// Whether a packet between these addresses can belong to this connection.
    pub fn accepts(&self, local: IpAddr, remote: IpAddr) -> bool {
        self.local_addrs.iter().any(|p| p.matches(local))
            && self.remote_addrs.iter().any(|p| p.matches(remote))
    }

    /// Whether we may use `addr` of `interface` for this connection.
    pub fn may_use(&self, addr: IpAddr, interface: &str) -> bool {
        self.local_addrs.iter().any(|p| p.matches(addr)) && self.paths.uses(interface)
    }

    /// Whether `addr` is named among our addresses, and not only covered.
    pub fn names_local(&self, addr: IpAddr) -> bool {
        self.local_addrs.iter().any(|p| p.single() == Some(addr))
    }

    /// Our sides of its tunnels, where they are fixed: addresses in there are no outer ones.
    pub fn tunnelled(&self) -> impl Iterator<Item = TrafficSelector> + '_ {
        let tunnels = self.children.iter().filter(|c| c.mode == Mode::Tunnel);
        tunnels.flat_map(|c| &c.local_ts).filter_map(|ts| match ts {
            // Whoever tunnels everything still has addresses of their own.
            TsPattern::Fixed(ts)
                if !ts.covers(&TrafficSelector::ANY_V4) && !ts.covers(&TrafficSelector::ANY_V6) =>
            {
                Some(*ts)
            }
            _ => None,
        })
    }

    /// All single addresses of the peer, in the order of the file.
    pub fn remote_singles(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.remote_addrs.iter().filter_map(AddrPattern::single)
    }

    /// The first single address of the peer: where to start.
    pub fn remote_addr(&self) -> Option<IpAddr> {
        self.remote_singles().next()
    }

    /// The first single address of ours that has the family of `remote`.
    pub fn local_addr(&self, remote: IpAddr) -> Option<IpAddr> {
        self.local_addrs.iter().filter_map(AddrPattern::single).find(|a| a.is_ipv4() == remote.is_ipv4())
    }
}

/// A Child SA of a connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Child {
    /// Section name.
    pub name: String,
    /// Our traffic selectors.
    pub local_ts: Vec<TsPattern>,
    /// The peer's.
    pub remote_ts: Vec<TsPattern>,
    /// Tunnel or transport.
    pub mode: Mode,
    /// Acceptable algorithms, best first.
    #[serde(serialize_with = "texts")]
    pub esp_proposals: Vec<EspProposal>,
    /// Packets that may arrive late, 64 to 65 536.
    pub replay_window: u32,
    /// How traffic is spread over several paths, if not as the connection says.
    pub scheduler: Option<Scheduler>,
    /// Rekey after this long; zero = never.
    #[serde(rename = "rekey_time_seconds", serialize_with = "seconds")]
    pub rekey_time: Duration,
    /// Close after this long; zero = never.
    #[serde(rename = "life_time_seconds", serialize_with = "seconds")]
    pub life_time: Duration,
    /// Rekey up to this much earlier, at random.
    #[serde(rename = "rand_time_seconds", serialize_with = "seconds")]
    pub rand_time: Duration,
    /// Volume limits.
    pub limits: VolumeLimits,
    /// Close it when nothing has gone over it for this long; zero = never.
    #[serde(rename = "inactivity_seconds", serialize_with = "seconds")]
    pub inactivity: Duration,
    /// Further Child SAs for single workers (RFC 9611); `None`: as the number of workers and the connection suggest.
    pub per_cpu_sas: Option<bool>,
    /// Octets to which TFC padding makes each packet, as far as its path takes them; 0 is none.
    pub tfc_padding: u16,
    /// Command line that runs when it comes up and when it goes down.
    pub updown: Option<String>,
    /// Told to that command: traffic of this host itself shall pass as well.
    pub hostaccess: bool,
    /// At start.
    pub start_action: StartAction,
    /// When the peer closes it.
    pub close_action: StartAction,
    /// When the peer is dead.
    pub dpd_action: DpdAction,
    /// Copy the inner DF bit outside.
    pub copy_df: bool,
    /// DSCP handling.
    pub copy_dscp: CopyDscp,
}

impl Child {
    /// A child with the defaults: tunnel mode between the two outer addresses.
    pub fn new(name: &str) -> Self {
        let rekey_time = Duration::from_secs(3600);
        let dynamic = vec![TsPattern::Dynamic(TrafficSelector::ANY_V4)];
        Self {
            name: name.to_string(),
            local_ts: dynamic.clone(),
            remote_ts: dynamic,
            mode: Mode::Tunnel,
            esp_proposals: EspProposal::defaults(),
            replay_window: 8192,
            scheduler: None,
            rekey_time,
            life_time: rekey_time + rekey_time / 10,
            rand_time: rekey_time / 10,
            limits: VolumeLimits::default(),
            inactivity: Duration::ZERO,
            per_cpu_sas: None,
            tfc_padding: 0,
            updown: None,
            hostaccess: false,
            start_action: StartAction::default(),
            close_action: StartAction::default(),
            dpd_action: DpdAction::default(),
            copy_df: true,
            copy_dscp: CopyDscp::default(),
        }
    }
}

impl fmt::Display for AddrPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("%any"),
            Self::Range(range) if range.start == range.end => write!(f, "{}", range.start),
            Self::Range(range) => write!(f, "{range}"),
        }
    }
}

impl Serialize for AddrPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for TsPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(ts) => write!(f, "{ts}"),
            Self::Dynamic(ts) => {
                // The address part stands for one that is not known yet; only protocol and ports are said.
                let shown = ts.to_string();
                write!(f, "dynamic{}", shown.find('[').map_or("", |at| &shown[at..]))
            }
        }
    }
}

impl Serialize for TsPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn certificates<S: Serializer>(certs: &[Arc<Certificate>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(certs.iter().map(AsRef::as_ref))
}

fn kinds<S: Serializer>(keys: &[PublicKey], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(keys.iter().map(|key| key.kind().to_string()))
}

fn texts<T: fmt::Display, S: Serializer>(items: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(items.iter().map(T::to_string))
}

fn optional_text<T: fmt::Display, S: Serializer>(item: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match item {
        Some(item) => serializer.collect_str(item),
        None => serializer.serialize_none(),
    }
}

fn microseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_micros() as u64)
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}
