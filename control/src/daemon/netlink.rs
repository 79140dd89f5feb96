//! What the daemon asks of the kernel's routing through rtnetlink: the TUN link, the rule that leads into the
//! tunnels' table, the routes in it, and what the kernel would choose by itself.
//!
//! Requests are synchronous: the kernel answers a request on this socket before `send` has long returned, so
//! waiting for the answer does not hold up the event loop.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// The "protocol" that marks routes and rules as ours (`ip route` shows it as `proto 109`), from the range that
/// the kernel leaves to routing daemons. It is how the rule that a crash leaves behind is
/// recognised; routes vanish with the TUN device.
pub const PROTOCOL: u8 = 109;

/// Multicast groups of a monitor, as in `linux/rtnetlink.h`: links, addresses and routes of both families.
const MONITOR_GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// How a link makes its IPv6 link-local address (`linux/if_link.h`); here: not at all.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// Routes of this machine that are looked at. More than an edge router has would only be kept for nothing.
const DESTINATIONS_MAX: usize = 65_536;

/// An address prefix.
pub type Prefix = (IpAddr, u8);

/// A request to the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket failed.
    #[error("netlink socket: {0}")]
    Socket(io::Error),
    /// The kernel refused.
    #[error("kernel refused to {what}: {error}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its answer.
        error: io::Error,
    },
    /// The kernel's answer does not parse.
    #[error("netlink answer to '{what}' does not parse: {reason}")]
    Unreadable {
        /// What was asked.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl NetlinkError {
    fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Refused { error, .. } if error.raw_os_error() == Some(errno))
    }
}

/// The policy rule `not fwmark MARK lookup TABLE`: all but our own outer packets see the tunnels' routes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Order among the rules.
    pub priority: u32,
    /// Mark of our own packets.
    pub mark: u32,
    /// The tunnels' table.
    pub table: u32,
}

/// A route into the TUN device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// Destinations.
    pub prefix: Prefix,
    /// Index of the TUN device.
    pub device: u32,
    /// The tunnels' table.
    pub table: u32,
    /// Source address of packets that this host sends, if one of ours lies inside the local selectors.
    pub source: Option<IpAddr>,
}

/// An address of this host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HostAddress {
    /// The interface.
    pub device: u32,
    /// The address.
    pub addr: IpAddr,
}

/// A request socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens the socket in the network namespace of the calling thread.
    pub fn new() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        Ok(Self { socket: open().map_err(NetlinkError::Socket)?, sequence: 0 })
    }

    /// Sets the MTU and brings a link up. The kernel gives it no link-local address and sends no router
    /// solicitations on it: such packets would only be dropped for want of a policy.
    pub fn set_link_up(&mut self, device: u32, mtu: u16) -> Result<(), NetlinkError> {
        let mut quiet = LinkMessage::default();
        quiet.header.index = device;
        quiet.attributes =
            vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::Other(
                DefaultNla::new(IFLA_INET6_ADDR_GEN_MODE, vec![IN6_ADDR_GEN_MODE_NONE]),
            )])])];
        // Refused where IPv6 is switched off, which serves the purpose just as well.
        if let Err(error) = self.change("quieten the link", RouteNetlinkMessage::SetLink(quiet), 0) {
            tracing::debug!(target: "NET", "{error}");
        }
        let mut message = LinkMessage::default();
        message.header.index = device;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![LinkAttribute::Mtu(u32::from(mtu))];
        self.change("bring the TUN device up", RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Usable unicast addresses of all interfaces: no link-local, loopback, tentative or failed ones, and IPv6
    /// addresses past their preferred lifetime come last.
    pub fn addresses(&mut self) -> Result<Vec<HostAddress>, NetlinkError> {
        let answers =
            self.dump("list addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let mut found = Vec::new();
        for answer in answers {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            let unusable = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
            if message.header.scope != AddressScope::Universe || message.header.flags.intersects(unusable) {
                continue;
            }
            // IFA_LOCAL is our end of a point-to-point link, where IFA_ADDRESS is the other one.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(addr) => Some(*addr),
                _ => None,
            });
            let addr = local.or_else(|| {
                message.attributes.iter().find_map(|a| match a {
                    AddressAttribute::Address(addr) => Some(*addr),
                    _ => None,
                })
            });
            let deprecated = message.header.flags.contains(AddressHeaderFlags::Deprecated);
            if let Some(addr) = addr.filter(|a| !a.is_loopback()) {
                found.push((deprecated, HostAddress { device: message.header.index, addr }));
            }
        }
        found.sort_by_key(|(deprecated, _)| *deprecated);
        Ok(found.into_iter().map(|(_, addr)| addr).collect())
    }

    /// Interfaces that can carry packets now, by index, with their names.
    pub fn links(&mut self) -> Result<BTreeMap<u32, String>, NetlinkError> {
        let answers = self.dump("list interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let mut links = BTreeMap::new();
        for answer in answers {
            let RouteNetlinkMessage::NewLink(message) = answer else { continue };
            // Without a carrier an interface keeps its addresses but is of no use.
            if !message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp) {
                continue;
            }
            let name = message.attributes.iter().find_map(|a| match a {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            links.insert(message.header.index, name.unwrap_or_default());
        }
        Ok(links)
    }

    /// Packets that the kernel has dropped at an interface: on their way out (from a TUN device, into the program that
    /// reads it), and on their way in.
    pub fn link_drops(&mut self, device: u32) -> Result<(u64, u64), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = device;
        let what = format!("show the counters of interface {device}");
        let answer = self.request(&what, RouteNetlinkMessage::GetLink(message), NLM_F_REQUEST, false)?;
        let found = answer.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => link.attributes.into_iter().find_map(|a| match a {
                LinkAttribute::Stats64(stats) => Some((stats.tx_dropped, stats.rx_dropped)),
                _ => None,
            }),
            _ => None,
        });
        found.ok_or_else(|| NetlinkError::Unreadable { what, reason: "it has none".into() })
    }

    /// Where routes of any table lead, except those of the table `without`: destinations by interface.
    pub fn destinations(&mut self, without: u32) -> Result<BTreeMap<u32, Vec<Prefix>>, NetlinkError> {
        let mut found: BTreeMap<u32, Vec<Prefix>> = BTreeMap::new();
        for (family, any) in
            [(AddressFamily::Inet, IpAddr::from([0; 4])), (AddressFamily::Inet6, IpAddr::from([0; 16]))]
        {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            for answer in self.dump("list routes", RouteNetlinkMessage::GetRoute(request))? {
                let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
                let (mut device, mut destination) = (None, any);
                for attribute in &route.attributes {
                    match attribute {
                        RouteAttribute::Oif(index) => device = Some(*index),
                        RouteAttribute::Destination(RouteAddress::Inet(addr)) => destination = (*addr).into(),
                        RouteAttribute::Destination(RouteAddress::Inet6(addr)) => {
                            destination = (*addr).into()
                        }
                        _ => {}
                    }
                }
                let known = found.values().map(Vec::len).sum::<usize>();
                if let Some(device) = device
                    && table_of(&route) != without
                    && !is_ours(&route)
                    && route.header.kind == RouteType::Unicast
                    && known < DESTINATIONS_MAX
                {
                    found
                        .entry(device)
                        .or_default()
                        .push((destination, route.header.destination_prefix_length));
                }
            }
        }
        Ok(found)
    }

    /// All IPv6 routes.
    pub(super) fn routes_v6(&mut self) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet6;
        let answers = self.dump("list IPv6 routes", RouteNetlinkMessage::GetRoute(request))?;
        let routes = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        Ok(routes.collect())
    }

    /// Adds a route as it stands.
    pub(super) fn add_copy(&mut self, route: &RouteMessage) -> Result<(), NetlinkError> {
        let what = format!("add a route to table {}", table_of(route));
        self.change(&what, RouteNetlinkMessage::NewRoute(route.clone()), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route as it stands; one that is gone already is no error.
    pub(super) fn remove_copy(&mut self, route: &RouteMessage) -> Result<(), NetlinkError> {
        let what = format!("remove a route from table {}", table_of(route));
        match self.change(&what, RouteNetlinkMessage::DelRoute(route.clone()), 0) {
            Err(error) if error.is(libc::ESRCH) || error.is(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// The rule `from ADDR fwmark MARK lookup TABLE`.
    pub(super) fn add_source_rule(&mut self, addr: Ipv6Addr, rule: Rule) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewRule(source_rule_message(addr, rule));
        match self.change(&format!("add a rule for {addr}"), message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.is(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Removes such a rule; one that is gone already is no error.
    pub(super) fn remove_source_rule(&mut self, addr: Ipv6Addr, rule: Rule) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelRule(source_rule_message(addr, rule));
        match self.change(&format!("remove the rule for {addr}"), message, 0) {
            Err(error) if error.is(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Installs the rule for both families, in the place of left-overs.
    pub fn add_rule(&mut self, rule: Rule) -> Result<(), NetlinkError> {
        self.remove_rule(rule)?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let what = format!("add the rule 'not fwmark {:#x} lookup {}'", rule.mark, rule.table);
            let message = RouteNetlinkMessage::NewRule(rule_message(family, rule));
            match self.change(&what, message, NLM_F_CREATE | NLM_F_EXCL) {
                Err(error) if family == AddressFamily::Inet6 && error.is(libc::EAFNOSUPPORT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Removes the rule, however often it is there, and those of source addresses, which have its priority and mark.
    /// Only rules with our protocol mark match.
    pub fn remove_rule(&mut self, rule: Rule) -> Result<(), NetlinkError> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            loop {
                let mut message = rule_message(family, rule);
                message.attributes.retain(|a| !matches!(a, RuleAttribute::Table(_)));
                let message = RouteNetlinkMessage::DelRule(message);
                match self.change("remove a rule", message, 0) {
                    Ok(()) => {}
                    Err(error) if error.is(libc::ENOENT) || error.is(libc::EAFNOSUPPORT) => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Adds a route, or replaces the one to the same prefix.
    pub fn replace_route(&mut self, route: Route) -> Result<(), NetlinkError> {
        let what = format!("add a route to {}/{}", route.prefix.0, route.prefix.1);
        let message = RouteNetlinkMessage::NewRoute(route_message(route));
        self.change(&what, message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes a route; one that is gone already, with its device perhaps, is no error.
    pub fn remove_route(&mut self, route: Route) -> Result<(), NetlinkError> {
        let what = format!("remove the route to {}/{}", route.prefix.0, route.prefix.1);
        let message = route_message(Route { source: None, ..route });
        match self.change(&what, RouteNetlinkMessage::DelRoute(message), 0) {
            Err(error) if error.is(libc::ESRCH) || error.is(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// The source address that the kernel would choose toward `remote` for a packet with our mark, or `None`
    /// when it has no route.
    pub fn route_source(&mut self, remote: IpAddr, mark: u32) -> Result<Option<IpAddr>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(remote);
        message.header.destination_prefix_length = width(remote);
        message.attributes = vec![RouteAttribute::Destination(remote.into()), RouteAttribute::Mark(mark)];
        let what = format!("look up the route to {remote}");
        let answer = match self.request(&what, RouteNetlinkMessage::GetRoute(message), NLM_F_REQUEST, false) {
            Ok(answer) => answer,
            Err(error)
                if [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::ENETDOWN, libc::EACCES, libc::EINVAL]
                    .into_iter()
                    .any(|errno| error.is(errno)) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        Ok(answer.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => route.attributes.iter().find_map(|a| match a {
                RouteAttribute::PrefSource(RouteAddress::Inet(addr)) => Some((*addr).into()),
                RouteAttribute::PrefSource(RouteAddress::Inet6(addr)) => Some((*addr).into()),
                _ => None,
            }),
            _ => None,
        }))
    }

    /// Gives an address of its own to a device: no route to a network comes with it, and nobody else is asked whether they
    /// have it. One that is there already is no error.
    pub fn add_address(&mut self, device: u32, addr: IpAddr) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::NewAddress(address_message(device, addr));
        match self.change(&format!("add the address {addr}"), message, NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.is(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    /// Takes an address from a device; one that is gone already is no error.
    pub fn remove_address(&mut self, device: u32, addr: IpAddr) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelAddress(address_message(device, addr));
        match self.change(&format!("remove the address {addr}"), message, 0) {
            Err(error) if error.is(libc::EADDRNOTAVAIL) || error.is(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    fn change(&mut self, what: &str, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.request(what, message, NLM_F_REQUEST | NLM_F_ACK | flags, false).map(|_| ())
    }

    fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.request(what, message, NLM_F_REQUEST | NLM_F_DUMP, true)
    }

    /// Sends a request and collects its answer: until DONE for a dump, until the acknowledgement if one was
    /// asked for, otherwise one message.
    fn request(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
        dump: bool,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(NetlinkError::Socket)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(NetlinkError::Socket)?;
            let mut rest = &datagram[..];
            while rest.len() >= 16 {
                let unreadable = |reason: String| NetlinkError::Unreadable { what: what.into(), reason };
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| unreadable(e.to_string()))?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                // The end of a dump that was given up after an error.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(answers),
                        Some(code) => {
                            let error = io::Error::from_raw_os_error(code.get().saturating_neg());
                            return Err(NetlinkError::Refused { what: what.into(), error });
                        }
                    },
                    NetlinkPayload::InnerMessage(message) => {
                        answers.push(message);
                        if !dump && flags & NLM_F_ACK == 0 {
                            return Ok(answers);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Tells that links, addresses or routes have changed.
pub struct Monitor {
    socket: Socket,
}

impl Monitor {
    /// Subscribes. The socket does not block.
    pub fn new() -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, MONITOR_GROUPS))?;
            socket.set_non_blocking(true)?;
            Ok(Self { socket })
        };
        open().map_err(NetlinkError::Socket)
    }

    /// Reads all there is; true if something changed that is not our own doing. What changed is looked up afresh, so
    /// that notifications lost to a full queue do no harm.
    pub fn drain(&mut self) -> bool {
        let mut changed = false;
        let mut buffer = Vec::with_capacity(8192);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => changed |= !only_ours(&buffer),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return changed,
            }
        }
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// Whether a notification tells of nothing but routes that we have installed or removed.
fn only_ours(mut datagram: &[u8]) -> bool {
    while datagram.len() >= 16 {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram) else { return false };
        let ours = match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
            ) => is_ours(route),
            _ => false,
        };
        if !ours {
            return false;
        }
        let length = (message.header.length as usize).next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    true
}

/// Capabilities that the daemon needs (`linux/capability.h`) and does not have, by name.
pub fn missing_capabilities(proc_status: &str) -> Vec<&'static str> {
    let effective = proc_status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    BTreeMap::from([(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW")])
        .into_iter()
        .filter(|(bit, _)| effective & (1u64 << bit) == 0)
        .map(|(_, name)| name)
        .collect()
}

fn family(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn rule_message(family: AddressFamily, rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.header.flags = RuleFlags::Invert;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::FwMark(rule.mark),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    message
}

fn source_rule_message(addr: Ipv6Addr, rule: Rule) -> RuleMessage {
    let mut message = rule_message(AddressFamily::Inet6, rule);
    message.header.flags = RuleFlags::empty();
    message.header.src_len = 128;
    message.attributes.push(RuleAttribute::Source(addr.into()));
    message
}

/// Whether a route was installed by this program.
pub(super) fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(PROTOCOL)
}

/// The table that a route is in.
pub(super) fn table_of(route: &RouteMessage) -> u32 {
    let number = |a: &RouteAttribute| if let RouteAttribute::Table(table) = a { Some(*table) } else { None };
    route.attributes.iter().find_map(number).unwrap_or(route.header.table.into())
}

fn address_message(device: u32, addr: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: family(addr),
        prefix_len: width(addr),
        scope: AddressScope::Universe,
        index: device,
        ..AddressHeader::default()
    };
    message.attributes = vec![
        AddressAttribute::Local(addr),
        AddressAttribute::Address(addr),
        AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute),
    ];
    message
}

fn route_message(route: Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (addr, len) = route.prefix;
    message.header = RouteHeader {
        address_family: family(addr),
        destination_prefix_length: len,
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: if addr.is_ipv4() { RouteScope::Link } else { RouteScope::Universe },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![
        RouteAttribute::Destination(addr.into()),
        RouteAttribute::Oif(route.device),
        RouteAttribute::Table(route.table),
    ];
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    message
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const INSIDE: &str = "MOBIKEX_TEST_NAMESPACE";

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_capabilities("CapEff:\t000001ffffffffff\n"), Vec::<&str>::new());
        assert_eq!(missing_capabilities("CapEff:\t0000000000001000\n"), ["CAP_NET_RAW"]);
        assert_eq!(missing_capabilities("Name: x\n"), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
    }

    fn ip(args: &str) -> String {
        let out = Command::new("ip").args(args.split(' ')).output().unwrap();
        assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs the named test again inside a network namespace of its own; false in the run that is inside.
    fn outside(test: &str) -> bool {
        if std::env::var_os(INSIDE).is_some() {
            return false;
        }
        let able = Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|s| s.success());
        if !able {
            eprintln!("SKIPPED {test}: network namespaces need root");
            return true;
        }
        let exe = std::env::current_exe().unwrap();
        let status = Command::new("unshare")
            .arg("--net")
            .arg(exe)
            .args(["--exact", test, "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success());
        true
    }

    #[test]
    fn rules_routes_and_lookups_in_a_namespace() {
        if outside("daemon::netlink::tests::rules_routes_and_lookups_in_a_namespace") {
            return;
        }
        ip("link set lo up");
        ip("link add up0 type veth peer name up1");
        ip("link set up1 up");
        ip("addr add 192.0.2.1/24 dev up0");
        ip("addr add 2001:db8::1/64 dev up0 nodad");
        ip("link set up0 up");
        ip("tuntap add dev tun9 mode tun");
        let device = |name: &str| {
            let text = ip(&format!("-o link show {name}"));
            text.split(':').next().unwrap().trim().parse::<u32>().unwrap()
        };
        let tun = device("tun9");
        let mut netlink = Netlink::new().unwrap();
        let mut monitor = Monitor::new().unwrap();
        assert!(!monitor.drain());

        netlink.set_link_up(tun, 1380).unwrap();
        assert!(monitor.drain());
        let shown = ip("addr show tun9");
        assert!(shown.contains("mtu 1380") && shown.contains("UP") && !shown.contains("inet6"), "{shown}");

        // A TUN device that nobody reads has no queue: what is sent into it is dropped and counted.
        assert_eq!(netlink.link_drops(tun).unwrap(), (0, 0));
        ip("route add 192.0.2.128/25 dev tun9");
        std::net::UdpSocket::bind("192.0.2.1:0").unwrap().send_to(b"x", "192.0.2.200:9").unwrap_or(0);
        assert_eq!(netlink.link_drops(tun).unwrap(), (1, 0));
        assert!(netlink.link_drops(9999).is_err());

        let addresses: Vec<_> = netlink.addresses().unwrap();
        let up = device("up0");
        let want = |addr: &str| HostAddress { device: up, addr: addr.parse().unwrap() };
        assert!(addresses.contains(&want("192.0.2.1")) && addresses.contains(&want("2001:db8::1")));
        assert_eq!(addresses.len(), 2, "neither loopback nor link-local: {addresses:?}");

        // A rule of somebody else with the same priority survives ours.
        ip("rule add priority 220 lookup 99");
        let rule = Rule { priority: 220, mark: 0x6d6b, table: 220 };
        netlink.add_rule(rule).unwrap();
        netlink.add_rule(rule).unwrap();
        for shown in [ip("rule show"), ip("-6 rule show")] {
            assert_eq!(shown.matches("not from all fwmark 0x6d6b lookup 220").count(), 1, "{shown}");
        }

        let route = |prefix: &str, len, source: Option<&str>| Route {
            prefix: (prefix.parse().unwrap(), len),
            device: tun,
            table: 220,
            source: source.map(|s| s.parse().unwrap()),
        };
        netlink.replace_route(route("10.2.0.0", 16, None)).unwrap();
        netlink.replace_route(route("10.2.0.0", 16, Some("192.0.2.1"))).unwrap();
        netlink.replace_route(route("2001:db8:2::", 48, Some("2001:db8::1"))).unwrap();
        netlink.replace_route(route("0.0.0.0", 0, None)).unwrap();
        let shown = ip("route show table 220");
        assert!(shown.contains("10.2.0.0/16 dev tun9 proto 109 scope link src 192.0.2.1"), "{shown}");
        assert!(shown.contains("default dev tun9"), "{shown}");
        assert!(ip("-6 route show table 220").contains("2001:db8:2::/48 dev tun9 proto 109 src 2001:db8::1"));
        assert!(ip("route get 10.2.0.9").contains("dev tun9"));

        // Our own packets, by their mark, see only the system's routes.
        let peer = "192.0.2.9".parse().unwrap();
        assert_eq!(netlink.route_source(peer, rule.mark).unwrap(), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(netlink.route_source("203.0.113.1".parse().unwrap(), rule.mark).unwrap(), None);
        let peer = "2001:db8::9".parse().unwrap();
        assert_eq!(netlink.route_source(peer, rule.mark).unwrap(), Some("2001:db8::1".parse().unwrap()));

        // Rules of source addresses: twice is once, and they go with the other one.
        let (addr, of_uplink) = ("2001:db8::1".parse().unwrap(), Rule { table: 9999, ..rule });
        for _ in 0..2 {
            netlink.add_source_rule(addr, of_uplink).unwrap();
        }
        assert_eq!(ip("-6 rule show").matches("from 2001:db8::1 fwmark 0x6d6b lookup 9999").count(), 1);
        netlink.remove_source_rule(addr, of_uplink).unwrap();
        netlink.remove_source_rule(addr, of_uplink).unwrap();
        assert!(!ip("-6 rule show").contains("9999") && ip("-6 rule show").contains("lookup 220"));
        netlink.add_source_rule(addr, of_uplink).unwrap();

        netlink.remove_route(route("0.0.0.0", 0, None)).unwrap();
        netlink.remove_route(route("0.0.0.0", 0, None)).unwrap();
        netlink.remove_rule(rule).unwrap();
        netlink.remove_rule(rule).unwrap();
        assert!(!ip("rule show").contains("fwmark") && ip("rule show").contains("lookup 99"));
        assert!(!ip("-6 rule show").contains("fwmark"));
    }
}
