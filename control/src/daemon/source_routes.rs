//! Several IPv6 uplinks: each packet of ours leaves by the uplink that its source address belongs to.
//!
//! IPv4 sends by the interface that a packet names. For IPv6 a named interface only decides among routes of one metric
//! unless the source is left to the system, so that the uplink of the best metric would carry everything, and the
//! provider there drops what has a foreign source (RFC 2827). So each uplink gets a table of its own with copies of its
//! routes, and each of its addresses a rule that leads our own packets, by their mark, from that address there. Nobody
//! else's packets are touched, and with one uplink there is nothing of this.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType};
use tracing::{debug, warn};

use super::netlink::{HostAddress, Netlink, NetlinkError, PROTOCOL, Rule, is_ours, table_of};

/// Routes of an uplink that are copied: its prefixes, its default route and what a network of some size adds. Of more,
/// those with the shortest prefixes.
const ROUTES_MAX: usize = 64;

/// What is to be installed, or is.
#[derive(Default, PartialEq, Debug)]
struct Plan {
    routes: Vec<RouteMessage>,
    /// Source addresses with the tables of their uplinks.
    rules: BTreeSet<(Ipv6Addr, u32)>,
}

/// What is installed. Routes are looked up each time, since the kernel drops them with their interface.
pub(super) struct SourceRoutes {
    /// The rule of the tunnels: its table, from which those of the uplinks derive, its mark and its priority.
    rule: Rule,
    rules: BTreeSet<(Ipv6Addr, u32)>,
}

impl SourceRoutes {
    /// For a daemon with this rule. What a crash has left in the tables of uplinks goes.
    pub(super) fn new(netlink: &mut Netlink, rule: Rule) -> Self {
        remove_all(netlink, rule);
        Self { rule, rules: BTreeSet::new() }
    }

    /// Brings rules and routes in line with the machine's.
    pub(super) fn update(&mut self, netlink: &mut Netlink, addresses: &[HostAddress]) {
        match netlink.routes_v6() {
            Ok(routes) => {
                let of_uplinks = routes.iter().filter(|r| is_copy(r, self.rule.table));
                let copies = of_uplinks.map(|r| copy(r, table_of(r))).collect::<Vec<_>>();
                self.install(netlink, &copies, plan(self.rule.table, &routes, addresses));
            }
            Err(error) => warn!(target: "NET", "{error}"),
        }
    }

    /// Routes come before the rules that lead to them and go after them.
    fn install(&mut self, netlink: &mut Netlink, copies: &[RouteMessage], plan: Plan) {
        let rule = |table: u32| Rule { table, ..self.rule };
        for route in plan.routes.iter().filter(|r| !copies.contains(r)) {
            debug!(target: "NET", "adding a route to table {}", table_of(route));
            tell(netlink.add_copy(route));
        }
        for (addr, table) in plan.rules.difference(&self.rules) {
            debug!(target: "NET", "packets from {addr} follow table {table}");
            tell(netlink.add_source_rule(*addr, rule(*table)));
        }
        for (addr, table) in self.rules.difference(&plan.rules) {
            tell(netlink.remove_source_rule(*addr, rule(*table)));
        }
        for route in copies.iter().filter(|r| !plan.routes.contains(r)) {
            tell(netlink.remove_copy(route));
        }
        self.rules = plan.rules;
    }
}

/// Removes the routes in the tables of uplinks. Their rules go with that of the tunnels.
pub(super) fn remove_all(netlink: &mut Netlink, rule: Rule) {
    let left = netlink.routes_v6().unwrap_or_default();
    for route in left.iter().filter(|r| is_copy(r, rule.table)) {
        tell(netlink.remove_copy(route));
    }
}

fn tell(outcome: Result<(), NetlinkError>) {
    if let Err(error) = outcome {
        warn!(target: "NET", "{error}");
    }
}

/// The table of an uplink: the tunnels' in the upper half, the interface below.
fn uplink_table(table: u32, device: u32) -> u32 {
    table << 16 | (device & 0xffff)
}

fn is_copy(route: &RouteMessage, table: u32) -> bool {
    is_ours(route) && table_of(route) >> 16 == table
}

fn device_of(route: &RouteMessage) -> Option<u32> {
    route
        .attributes
        .iter()
        .find_map(|a| if let RouteAttribute::Oif(device) = a { Some(*device) } else { None })
}

/// What several uplinks need; nothing for a single one.
fn plan(table: u32, routes: &[RouteMessage], addresses: &[HostAddress]) -> Plan {
    let of_system = |r: &&RouteMessage| {
        let h = &r.header;
        // Who is on the link has no need of a source of ours from elsewhere.
        let on_link = r.attributes.iter().any(|a| match a {
            RouteAttribute::Destination(RouteAddress::Inet6(addr)) => addr.is_unicast_link_local(),
            _ => false,
        });
        h.address_family == AddressFamily::Inet6 && h.kind == RouteType::Unicast && !is_ours(r) && !on_link
    };
    let mut uplinks: BTreeMap<u32, Vec<&RouteMessage>> = BTreeMap::new();
    for route in routes.iter().filter(of_system) {
        if let Some(device) = device_of(route) {
            uplinks.entry(device).or_default().push(route);
        }
    }
    uplinks.retain(|_, routes| routes.iter().any(|r| r.header.destination_prefix_length == 0));
    // The kernel cuts table numbers of routes to 32 bits, and a table that does not fit into half of them has no room.
    if uplinks.len() < 2 || table > 0xffff {
        return Plan::default();
    }
    let mut plan = Plan::default();
    for (device, routes) in &mut uplinks {
        routes.sort_by_key(|r| r.header.destination_prefix_length);
        plan.routes.extend(routes.iter().take(ROUTES_MAX).map(|r| copy(r, uplink_table(table, *device))));
    }
    for HostAddress { device, addr } in addresses {
        if let (IpAddr::V6(addr), true) = (addr, uplinks.contains_key(device)) {
            plan.rules.insert((*addr, uplink_table(table, *device)));
        }
    }
    plan
}

/// The same way in another table; without what the kernel says about age and use.
fn copy(route: &RouteMessage, table: u32) -> RouteMessage {
    let mut copy = route.clone();
    copy.header.table = 0;
    copy.header.protocol = PROTOCOL.into();
    copy.header.flags &= RouteFlags::Onlink;
    copy.attributes.retain(|a| {
        matches!(
            a,
            RouteAttribute::Destination(_)
                | RouteAttribute::Gateway(_)
                | RouteAttribute::Oif(_)
                | RouteAttribute::Priority(_)
                | RouteAttribute::Metrics(_)
        )
    });
    copy.attributes.push(RouteAttribute::Table(table));
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(prefix: &str, len: u8, device: u32) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet6;
        route.header.kind = RouteType::Unicast;
        route.header.destination_prefix_length = len;
        route.attributes = vec![
            RouteAttribute::Destination(prefix.parse::<IpAddr>().unwrap().into()),
            RouteAttribute::Oif(device),
            RouteAttribute::Table(254),
            RouteAttribute::Expires(9),
        ];
        route
    }

    fn addr(device: u32, text: &str) -> HostAddress {
        HostAddress { device, addr: text.parse().unwrap() }
    }

    #[test]
    fn each_of_several_uplinks_has_a_table_of_its_own() {
        let (wan, lte, lan) = (2, 3, 4);
        let addresses = [
            addr(wan, "2001:db8:a::1"),
            addr(lte, "2001:db8:b::1"),
            addr(lan, "fd00::1"),
            addr(wan, "192.0.2.1"),
        ];
        let mut routes = vec![route("::", 0, wan), route("2001:db8:a::", 64, wan), route("fd00::", 64, lan)];
        routes.push(route("fe80::", 64, wan));
        assert_eq!(plan(220, &routes, &addresses), Plan::default(), "one uplink needs nothing");
        routes.push(route("::", 0, lte));
        let found = plan(220, &routes, &addresses);
        let (first, second) = (220 << 16 | wan, 220 << 16 | lte);
        let rules = [("2001:db8:a::1", first), ("2001:db8:b::1", second)];
        assert_eq!(found.rules, rules.map(|(a, table)| (a.parse().unwrap(), table)).into());
        assert_eq!(found.routes.iter().map(table_of).collect::<Vec<_>>(), [first, first, second]);
        assert!(found.routes.iter().all(is_ours));
        assert!(!found.routes[0].attributes.contains(&RouteAttribute::Expires(9)));
        // Our own copies are no routes of the system.
        routes.extend(found.routes.clone());
        assert_eq!(plan(220, &routes, &addresses), found);
        assert_eq!(plan(0x1_0000, &routes, &addresses), Plan::default());
    }

    #[test]
    fn not_more_routes_than_bounds_allow_and_the_default_route_among_them() {
        let mut routes: Vec<_> = (0..1000).map(|n| route(&format!("2001:db8:{n:x}::"), 48, 2)).collect();
        routes.extend([route("::", 0, 2), route("::", 0, 3)]);
        let found = plan(220, &routes, &[]);
        assert_eq!(found.routes.len(), ROUTES_MAX + 1);
        assert_eq!(found.routes[0].header.destination_prefix_length, 0);
    }
}
