//! The Configuration payload (RFC 7296 2.19, 3.15; RFC 8983): a peer that asks gets a virtual address of our pools, and we
//! ask for one where a connection has `vips`.
//!
//! What an IKE SA was given, or has given, goes on with its successor when it is rekeyed; both hold it until the old one is
//! gone. A Child SA whose selectors are `dynamic` is for the virtual address and nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mobikex_common::sa::Mode;
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ike::{
    ConfigAttribute, ConfigAttributeType as Type, ConfigPayload, ConfigType, ConfigValue, Identification,
    Notify, NotifyType, Payload,
};
use tracing::info;

use super::child::{Agreed, resolve};
use super::ctx::Ctx;
use super::error::IkeError;
use super::internal::{Given, add_new};
use super::narrow::narrow;
use super::output::Event;
use super::pools::Asker;
use super::rules::{error_notify, find};
use super::sa::IkeSa;
use crate::config::{Child, Pool, TsPattern, Unique, is_assignable};

/// Servers, domains or networks of one kind that are taken from a reply.
const MAX_TAKEN: usize = 32;
/// A domain name (RFC 1035 2.3.4).
const MAX_DOMAIN: usize = 253;
/// APPLICATION_VERSION. Which version it is, is nobody's concern.
const APPLICATION: &[u8] = b"mobikex";
/// What is understood in a request or a reply.
const SUPPORTED: [Type; 13] = [
    Type::INTERNAL_IP4_ADDRESS,
    Type::INTERNAL_IP4_NETMASK,
    Type::INTERNAL_IP4_DNS,
    Type::INTERNAL_IP4_NBNS,
    Type::INTERNAL_IP4_DHCP,
    Type::APPLICATION_VERSION,
    Type::INTERNAL_IP6_ADDRESS,
    Type::INTERNAL_IP6_DNS,
    Type::INTERNAL_IP6_DHCP,
    Type::INTERNAL_IP4_SUBNET,
    Type::SUPPORTED_ATTRIBUTES,
    Type::INTERNAL_IP6_SUBNET,
    Type::INTERNAL_DNS_DOMAIN,
];

const FAMILIES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// What an IKE SA was given and has given.
#[derive(Clone, Debug, Default)]
pub(super) struct Configuration {
    /// The peer's virtual addresses, from our pools.
    pub(super) assigned: Vec<IpAddr>,
    /// From the peer.
    pub(super) given: Given,
}

/// The payload of a kind, if there is one.
fn configuration(payloads: &[Payload], kind: ConfigType) -> Option<&ConfigPayload> {
    find(payloads, |p| match p {
        Payload::Cp(cp) if cp.kind == kind => Some(cp),
        _ => None,
    })
}

fn address_type(ipv4: bool) -> Type {
    if ipv4 { Type::INTERNAL_IP4_ADDRESS } else { Type::INTERNAL_IP6_ADDRESS }
}

/// Type of an attribute with an address of either family.
fn by_family(v4: Type, v6: Type) -> impl Fn(&IpAddr) -> ConfigAttribute {
    move |addr| ConfigAttribute::address(if addr.is_ipv4() { v4 } else { v6 }, *addr)
}

/// The first address of a family that a payload asks for or gives: the unspecified one if any will do.
fn address_in(payload: &ConfigPayload, ipv4: bool) -> Option<IpAddr> {
    payload.values().filter(|(kind, _)| *kind == address_type(ipv4)).find_map(|(_, value)| match value {
        ConfigValue::Address(addr) | ConfigValue::Prefix(addr, _) => Some(addr),
        ConfigValue::Empty => FAMILIES.into_iter().find(|any| any.is_ipv4() == ipv4),
        _ => None,
    })
}

fn asks_for_an_address(payloads: &[Payload]) -> bool {
    let request = configuration(payloads, ConfigType::CFG_REQUEST);
    request.is_some_and(|r| [true, false].iter().any(|ipv4| address_in(r, *ipv4).is_some()))
}

/// What a peer with an address of this pool is told beside the address.
fn told(pool: &Pool) -> Vec<ConfigAttribute> {
    let mut attributes: Vec<_> = pool
        .netmask
        .map(|mask| ConfigAttribute::address(Type::INTERNAL_IP4_NETMASK, mask.into()))
        .into_iter()
        .collect();
    attributes.extend(pool.dns.iter().map(by_family(Type::INTERNAL_IP4_DNS, Type::INTERNAL_IP6_DNS)));
    attributes.extend(pool.nbns.iter().map(|addr| ConfigAttribute::address(Type::INTERNAL_IP4_NBNS, *addr)));
    attributes.extend(pool.dhcp.iter().map(by_family(Type::INTERNAL_IP4_DHCP, Type::INTERNAL_IP6_DHCP)));
    attributes.extend(pool.subnets.iter().map(|(addr, len)| {
        let kind = if addr.is_ipv4() { Type::INTERNAL_IP4_SUBNET } else { Type::INTERNAL_IP6_SUBNET };
        ConfigAttribute::prefix(kind, *addr, *len)
    }));
    attributes
}

/// A domain as it may be written into a file: letters, digits and what else names are made of.
fn domain(text: &[u8]) -> Option<String> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b".-_".contains(b);
    let name = std::str::from_utf8(text).ok().filter(|_| text.iter().all(plain))?;
    (1..=MAX_DOMAIN).contains(&name.len()).then(|| name.to_string())
}

/// Configured selectors, `dynamic` being these addresses.
fn resolve_inner(patterns: &[TsPattern], inner: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let at =
        |ts: TrafficSelector| inner.iter().map(move |a| TrafficSelector { start: a.start, end: a.end, ..ts });
    let each = patterns.iter().flat_map(|pattern| match pattern {
        TsPattern::Fixed(ts) => vec![*ts],
        TsPattern::Dynamic(ts) => at(*ts).collect(),
    });
    each.collect()
}

fn hosts(addresses: &[IpAddr]) -> Vec<TrafficSelector> {
    addresses.iter().copied().map(TrafficSelector::host).collect()
}

/// Leaves out selectors of a family that the other side has not: they could never carry a packet, but would lead it into
/// the tunnel.
fn pair_families(local: &mut Vec<TrafficSelector>, remote: &mut Vec<TrafficSelector>) {
    let has = |list: &[TrafficSelector], ipv4| list.iter().any(|ts| ts.is_ipv4() == ipv4);
    for ipv4 in [true, false] {
        if has(local, ipv4) != has(remote, ipv4) {
            local.retain(|ts| ts.is_ipv4() != ipv4);
            remote.retain(|ts| ts.is_ipv4() != ipv4);
        }
    }
}

impl IkeSa {
    /// The peer's virtual addresses.
    pub(super) fn assigned(&self) -> &[IpAddr] {
        self.configuration.as_ref().map_or(&[], |c| &c.assigned)
    }

    /// What the peer has given to us.
    pub(super) fn given(&self) -> Option<&Given> {
        self.configuration.as_ref().map(|c| &c.given).filter(|given| **given != Given::default())
    }

    /// Whether we need a virtual address of the peer: whoever starts an IKE SA asks for one.
    fn needs_vips(&self) -> bool {
        !self.conn.vips.is_empty() && (self.initiator.is_us() || self.given().is_some())
    }

    /// Our selectors for a child: `dynamic` is our virtual address where we have one or ask for one, else `outer`.
    pub(super) fn own_selectors(&self, config: &Child, outer: SocketAddr) -> Vec<TrafficSelector> {
        if !self.needs_vips() || config.mode == Mode::Transport {
            return resolve(&config.local_ts, outer);
        }
        let inner = match self.given() {
            Some(given) => hosts(&given.addresses),
            None => {
                let any =
                    |v: &IpAddr| if v.is_ipv4() { TrafficSelector::ANY_V4 } else { TrafficSelector::ANY_V6 };
                self.conn.vips.iter().map(any).collect()
            }
        };
        resolve_inner(&config.local_ts, &inner)
    }

    /// The peer's selectors for a child: `dynamic` is its virtual address where it has one, else `outer`.
    pub(super) fn peer_selectors(&self, config: &Child, outer: SocketAddr) -> Vec<TrafficSelector> {
        match self.assigned() {
            assigned if !assigned.is_empty() && config.mode == Mode::Tunnel => {
                resolve_inner(&config.remote_ts, &hosts(assigned))
            }
            _ => resolve(&config.remote_ts, outer),
        }
    }

    /// Leaves out selectors without a counterpart where there are virtual addresses, which may be of one family only.
    pub(super) fn pair_selectors(&self, local: &mut Vec<TrafficSelector>, remote: &mut Vec<TrafficSelector>) {
        if self.configuration.is_some() {
            pair_families(local, remote);
        }
    }

    /// What a child of ours carries once the virtual address is known: of what is `dynamic` only that address, whatever
    /// else the peer lets us use.
    pub(super) fn confine(&self, agreed: &mut Agreed) -> Result<(), IkeError> {
        if !self.needs_vips() || agreed.mode == Mode::Transport {
            return Ok(());
        }
        if self.given().is_none() {
            return Err(IkeError::TsUnacceptable("the peer has assigned no virtual address".into()));
        }
        agreed.ts_local = narrow(&self.own_selectors(&agreed.config, self.local), &agreed.ts_local);
        pair_families(&mut agreed.ts_local, &mut agreed.ts_remote);
        if agreed.ts_local.is_empty() || agreed.ts_remote.is_empty() {
            return Err(IkeError::TsUnacceptable(
                "the peer's selectors have no place for the virtual address".into(),
            ));
        }
        Ok(())
    }

    /// Why the peer gets no child yet: it has no virtual address although it asks for one, or has to (RFC 7296 2.19,
    /// 3.15.4).
    pub(super) fn lacks_address(&self, payloads: &[Payload]) -> Option<NotifyType> {
        if !self.assigned().is_empty() {
            None
        } else if asks_for_an_address(payloads) {
            Some(NotifyType::INTERNAL_ADDRESS_FAILURE)
        } else {
            // Whom we have called ourselves needs nothing of our pools.
            let needed = !self.conn.pools.is_empty() && !self.initiator.is_us();
            needed.then_some(NotifyType::FAILED_CP_REQUIRED)
        }
    }

    /// Our answer to a request for addresses and what else there is, with the families of which there are any (RFC 8983
    /// 5). Nothing if nothing is asked. `replaces` says that this IKE SA takes the place of the peer's others.
    pub(super) fn answer_configuration(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        replaces: bool,
    ) -> Vec<Payload> {
        let Some(request) = configuration(payloads, ConfigType::CFG_REQUEST) else { return Vec::new() };
        let mut answer = Vec::new();
        let mut attributes = Vec::new();
        for (ipv4, allowed) in [(true, NotifyType::IP4_ALLOWED), (false, NotifyType::IP6_ALLOWED)] {
            if let Some(wanted) = address_in(request, ipv4) {
                let addr = self.assign(ctx, wanted, replaces);
                attributes.extend(addr.map(|addr| match addr {
                    IpAddr::V4(_) => ConfigAttribute::address(Type::INTERNAL_IP4_ADDRESS, addr),
                    IpAddr::V6(_) => ConfigAttribute::prefix(Type::INTERNAL_IP6_ADDRESS, addr, 128),
                }));
            }
            let mut pools = self.conn.pools.iter().filter_map(|name| ctx.pools.get(name));
            if asks_for_an_address(payloads) && pools.any(|pool| pool.addrs.start.is_ipv4() == ipv4) {
                answer.push(Payload::Notify(Notify::new(allowed, Vec::new())));
            }
        }
        let pools = self.conn.pools.iter().filter_map(|name| ctx.pools.get(name));
        for pool in pools.filter(|pool| self.assigned().iter().any(|addr| pool.addrs.contains(*addr))) {
            add_new(&mut attributes, &told(pool));
        }
        for kind in request.attributes.iter().map(|a| a.kind) {
            let own = match kind {
                Type::APPLICATION_VERSION => ConfigAttribute { kind, value: APPLICATION.to_vec() },
                Type::SUPPORTED_ATTRIBUTES => ConfigAttribute {
                    kind,
                    value: SUPPORTED.iter().flat_map(|t| t.0.to_be_bytes()).collect(),
                },
                _ => continue,
            };
            add_new(&mut attributes, &[own]);
        }
        // Who needs an address takes an answer without CFG_REPLY for the refusal that it is (RFC 7296 3.15.4).
        if !(self.assigned().is_empty() && asks_for_an_address(payloads)) {
            answer.insert(0, Payload::Cp(ConfigPayload { kind: ConfigType::CFG_REPLY, attributes }));
        }
        answer
    }

    /// The peer's virtual address of a family: the one that it has, or one of the pools.
    fn assign(&mut self, ctx: &mut Ctx<'_>, wanted: IpAddr, replaces: bool) -> Option<IpAddr> {
        let same_family = |addr: &&IpAddr| addr.is_ipv4() == wanted.is_ipv4();
        if let Some(addr) = self.assigned().iter().find(same_family) {
            return Some(*addr);
        }
        let identity = self.peer()?.id().clone();
        let shown = if wanted.is_unspecified() { "%any".to_string() } else { wanted.to_string() };
        info!(target: "CFG", "{} peer requested virtual IP {shown}", self.name());
        let replaced = self.replaced(ctx, &identity, wanted, replaces);
        let asker = Asker { identity: &identity, ike: self.id, replaces: &replaced };
        let Some(addr) = ctx.pools.acquire(&self.conn.pools, wanted, &asker) else {
            info!(target: "CFG", "{} no virtual IP found for {shown} requested by '{identity}'", self.name());
            return None;
        };
        self.configuration.get_or_insert_default().assigned.push(addr);
        ctx.event(Event::AddressAssigned { ike: self.name(), peer: identity.to_string(), addr });
        Some(addr)
    }

    /// IKE SAs of the same peer whose addresses this one may have: those that it replaces, and one from the same place
    /// whose address the peer asks for, since it is being set up again.
    fn replaced(&self, ctx: &Ctx<'_>, peer: &Identification, wanted: IpAddr, replaces: bool) -> Vec<u32> {
        let same = |sa: &IkeSa| {
            sa.peer().is_some_and(|p| p.id().same(peer))
                && sa.local_id.as_ref().zip(self.local_id.as_ref()).is_some_and(|(a, b)| a.same(b))
        };
        if replaces || self.conn.unique == Unique::Replace {
            return ctx.others.of_peer(peer).filter(|sa| same(sa)).map(|sa| sa.id).collect();
        }
        let holders = ctx.pools.holders(wanted).iter().copied();
        let here =
            |id: &u32| ctx.others.get(*id).is_some_and(|sa| same(sa) && sa.remote.ip() == self.remote.ip());
        holders.filter(here).collect()
    }

    /// The answers to the Configuration payloads of an INFORMATIONAL request. Nothing that the peer would set is taken
    /// over, and replies that nobody asked for say nothing.
    pub(super) fn answer_later_configuration(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
    ) -> Vec<Payload> {
        let mut answer = self.answer_configuration(ctx, payloads, false);
        if self.assigned().is_empty() && asks_for_an_address(payloads) {
            answer.push(Payload::Notify(Notify::new(NotifyType::INTERNAL_ADDRESS_FAILURE, Vec::new())));
        }
        if configuration(payloads, ConfigType::CFG_SET).is_some() {
            answer.push(Payload::Cp(ConfigPayload { kind: ConfigType::CFG_ACK, attributes: Vec::new() }));
        }
        answer
    }

    /// Our request for virtual addresses, as long as we have none.
    pub(super) fn ask_configuration(&self, ctx: &Ctx<'_>) -> Option<Payload> {
        if !self.needs_vips() || self.given().is_some() {
            return None;
        }
        // What another connection has by now is not to be had twice.
        let of_others = |id: u32| ctx.others.get(id).is_some_and(|sa| sa.conn.name != self.conn.name);
        let mut attributes = Vec::new();
        for vip in &self.conn.vips {
            let last = ctx.internal.last(&self.conn.name, vip.is_ipv4());
            let last = last.filter(|addr| !ctx.internal.holders(*addr).any(of_others));
            let wish = if vip.is_unspecified() { last } else { Some(*vip) };
            attributes.push(match wish {
                None => ConfigAttribute::empty(address_type(vip.is_ipv4())),
                Some(addr @ IpAddr::V4(_)) => ConfigAttribute::address(Type::INTERNAL_IP4_ADDRESS, addr),
                Some(addr) => ConfigAttribute::prefix(Type::INTERNAL_IP6_ADDRESS, addr, 128),
            });
        }
        let dns = |vip: &IpAddr| if vip.is_ipv4() { Type::INTERNAL_IP4_DNS } else { Type::INTERNAL_IP6_DNS };
        attributes.extend(self.conn.vips.iter().map(|vip| ConfigAttribute::empty(dns(vip))));
        Some(Payload::Cp(ConfigPayload { kind: ConfigType::CFG_REQUEST, attributes }))
    }

    /// Takes what the peer gives to us, which is nothing that we did not ask for. An error says that the IKE SA cannot be
    /// used: there is no address although the peer believes that there is, or one that cannot be ours.
    pub(super) fn take_configuration(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
    ) -> Result<(), String> {
        if !self.needs_vips() || self.given().is_some() {
            return Ok(());
        }
        let mut given = Given::default();
        if let Some(reply) = configuration(payloads, ConfigType::CFG_REPLY) {
            for vip in &self.conn.vips {
                given
                    .addresses
                    .extend(address_in(reply, vip.is_ipv4()).filter(|addr| !addr.is_unspecified()));
            }
            reply.values().for_each(|(kind, value)| take(&mut given, kind, value));
        }
        if given.addresses.is_empty() {
            let allowed = |kind| super::rules::notify(payloads, kind).is_some();
            for (kind, family) in [(NotifyType::IP4_ALLOWED, "IPv4"), (NotifyType::IP6_ALLOWED, "IPv6")] {
                if allowed(kind) {
                    info!(target: "CFG", "{} the peer has {family} addresses to assign", self.name());
                }
            }
            // A refusal speaks for itself, and leaves no child with the peer.
            return match error_notify(payloads) {
                Some(_) => Ok(()),
                None => Err("the peer has assigned no virtual address".to_string()),
            };
        }
        for addr in &given.addresses {
            if !is_assignable(*addr) || ctx.network.find(*addr).is_some() {
                return Err(format!("the peer has assigned {addr}, which cannot be our virtual address"));
            }
        }
        ctx.event(Event::AddressGiven { ike: self.name(), given: given.clone() });
        ctx.internal.hold(ctx.out, (&self.conn.name, self.id), &given);
        self.configuration.get_or_insert_default().given = given;
        Ok(())
    }

    /// What the one that this IKE SA succeeds was given and has given is this one's as well.
    pub(super) fn inherit_configuration(&mut self, ctx: &mut Ctx<'_>, old: &Self) {
        self.configuration = old.configuration.clone();
        self.assigned().iter().for_each(|addr| ctx.pools.share(*addr, self.id));
        if let Some(given) = self.given() {
            ctx.internal.hold(ctx.out, (&self.conn.name, self.id), given);
        }
    }

    /// Gives back what this IKE SA holds.
    pub(super) fn release_configuration(&self, ctx: &mut Ctx<'_>) {
        for addr in self.assigned() {
            if ctx.pools.release(*addr, self.id) {
                let peer = self.peer().map_or_else(String::new, |p| p.id().to_string());
                ctx.event(Event::AddressReleased { peer, addr: *addr });
            }
        }
        if let Some(given) = self.given() {
            ctx.internal.release(ctx.out, self.id, given);
        }
    }
}

/// Takes one attribute of a reply, beside addresses, if there is room for it.
fn take(given: &mut Given, kind: Type, value: ConfigValue) {
    fn add<T: Clone + PartialEq>(list: &mut Vec<T>, item: T) {
        if list.len() < MAX_TAKEN {
            add_new(list, &[item]);
        }
    }
    match (kind, value) {
        (Type::INTERNAL_IP4_DNS | Type::INTERNAL_IP6_DNS, ConfigValue::Address(addr)) => {
            add(&mut given.dns, addr)
        }
        (Type::INTERNAL_IP4_NBNS, ConfigValue::Address(addr)) => add(&mut given.nbns, addr),
        (Type::INTERNAL_IP4_DHCP | Type::INTERNAL_IP6_DHCP, ConfigValue::Address(addr)) => {
            add(&mut given.dhcp, addr)
        }
        (Type::INTERNAL_IP4_SUBNET | Type::INTERNAL_IP6_SUBNET, ConfigValue::Prefix(addr, len)) => {
            add(&mut given.subnets, format!("{addr}/{len}"));
        }
        (Type::INTERNAL_DNS_DOMAIN, ConfigValue::Text(text)) => {
            domain(&text).into_iter().for_each(|name| add(&mut given.domains, name));
        }
        _ => {}
    }
}
