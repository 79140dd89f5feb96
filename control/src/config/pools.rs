//! Address pools: what peers are given (section `pools`), and what else they are told with it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mobikex_common::ts::TrafficSelector;
use serde::{Serialize, Serializer};

use super::error::Issues;
use super::fields::Fields;
use super::model::Config;
use super::schema::POOL;
use super::tree::Section;

/// Servers or networks of one kind that are told to a peer: all of them have to fit into one message.
const MAX_TOLD: usize = 32;

/// Consecutive addresses of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressRange {
    /// The first.
    pub start: IpAddr,
    /// The last; of the same family.
    pub end: IpAddr,
}

impl AddressRange {
    /// Whether `addr` is among them.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.selector().contains_addr(addr)
    }

    /// How many there are; one less than all that exist in IPv6, which no pool needs.
    pub fn size(&self) -> u128 {
        number(self.end).saturating_sub(number(self.start)).saturating_add(1)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.selector().intersection(&other.selector()).is_some()
    }

    fn selector(&self) -> TrafficSelector {
        TrafficSelector { end: self.end, ..TrafficSelector::host(self.start) }
    }
}

/// An address as a number of its family's width.
pub(crate) fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => a.into(),
    }
}

/// The other way round; `like` has the family.
pub(crate) fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A pool of addresses for peers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pool {
    /// Section name.
    pub name: String,
    /// What may be given.
    pub addrs: AddressRange,
    /// DNS servers.
    pub dns: Vec<IpAddr>,
    /// NetBIOS name servers.
    pub nbns: Vec<IpAddr>,
    /// DHCP servers.
    pub dhcp: Vec<IpAddr>,
    /// Netmask of the address.
    pub netmask: Option<Ipv4Addr>,
    /// Networks behind us, with the lengths of their prefixes.
    #[serde(serialize_with = "prefixes")]
    pub subnets: Vec<(IpAddr, u8)>,
}

fn prefixes<S: Serializer>(list: &[(IpAddr, u8)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(list.iter().map(|(addr, len)| format!("{addr}/{len}")))
}

/// `10.3.0.0/24`, `10.3.0.10-10.3.0.20` or one address. Of a prefix with more than two addresses neither the first,
/// which stands for the network, nor the last, the broadcast address, is given; one that begins inside the prefix
/// begins there.
fn range(text: &str) -> Result<AddressRange, String> {
    let wrong = || "a prefix, a range or an address, such as 10.3.0.0/24 or fd00::10-fd00::ff".to_string();
    let addr = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| wrong());
    if let Some((start, end)) = text.split_once('-') {
        let (start, end) = (addr(start)?, addr(end)?);
        let ordered = start.is_ipv4() == end.is_ipv4() && start <= end;
        return if ordered { Ok(AddressRange { start, end }) } else { Err(wrong()) };
    }
    let Some((start, len)) = text.split_once('/') else {
        return addr(text).map(|start| AddressRange { start, end: start });
    };
    let (start, len) = (addr(start)?, len.trim().parse::<u8>().map_err(|_| wrong())?);
    let width = if start.is_ipv4() { 32 } else { 128 };
    if len > width {
        return Err(wrong());
    }
    let all = TrafficSelector::prefix(start, len);
    if width - len < 2 {
        return Ok(AddressRange { start, end: all.end });
    }
    let first = number(start).max(number(all.start) + 1);
    let end = address(number(all.end) - 1, start);
    let start = address(first, start);
    if start > end { Err(wrong()) } else { Ok(AddressRange { start, end }) }
}

fn prefix(text: &str) -> Result<(IpAddr, u8), String> {
    let found = text.parse::<TrafficSelector>().ok().filter(|_| !text.contains('['));
    match found.map(|ts| ts.prefixes()).as_deref() {
        Some([one]) => Ok(*one),
        _ => Err("a prefix such as 10.2.0.0/16".to_string()),
    }
}

/// A virtual address to ask for: `0.0.0.0`, `%any`, `::` or `%any6` for whichever the peer gives.
pub(super) fn wanted(text: &str) -> Result<IpAddr, String> {
    match text {
        "%any" | "%any4" | "%config" | "%config4" => Ok(Ipv4Addr::UNSPECIFIED.into()),
        "%any6" | "%config6" => Ok(Ipv6Addr::UNSPECIFIED.into()),
        _ => {
            let addr = text.parse::<IpAddr>().ok();
            addr.filter(|a| a.is_unspecified() || is_assignable(*a))
                .ok_or_else(|| "0.0.0.0, :: or the address to ask for".to_string())
        }
    }
}

/// Whether a host can have this address inside a tunnel.
pub(crate) fn is_assignable(addr: IpAddr) -> bool {
    let special = match addr {
        IpAddr::V4(a) => a.is_broadcast() || a.is_link_local() || a.octets()[0] == 0 || a.octets()[0] >= 240,
        IpAddr::V6(a) => a.is_unicast_link_local() || a.to_ipv4_mapped().is_some(),
    };
    !(special || addr.is_unspecified() || addr.is_loopback() || addr.is_multicast())
}

/// One pool of the section.
pub(super) fn pool(part: &Section, sound: bool, issues: &mut Issues) -> Option<Pool> {
    let f = Fields::check(&[part], &POOL, issues);
    let addrs = f.get("addrs", issues, range);
    if f.raw("addrs").is_none() && sound {
        issues.push(part.at, format!("pool '{}' has no 'addrs'; expected 'addrs = 10.3.0.0/24'", part.name));
    }
    if let Some(addrs) = addrs
        && !(is_assignable(addrs.start) && is_assignable(addrs.end))
    {
        issues.push(f.place("addrs"), format!("no host can have all of the addresses {addrs}"));
    }
    let addr = |text: &str| text.parse::<IpAddr>().map_err(|_| "addresses".to_string());
    let v4 = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| "an IPv4 address".to_string());
    let mut pool = Pool {
        name: part.name.clone(),
        addrs: addrs?,
        dns: f.list("dns", issues, addr).unwrap_or_default(),
        nbns: f.list("nbns", issues, |text| v4(text).map(Into::into)).unwrap_or_default(),
        dhcp: f.list("dhcp", issues, addr).unwrap_or_default(),
        netmask: f.get("netmask", issues, v4),
        subnets: Vec::new(),
    };
    for option in ["subnet", "split_include"] {
        pool.subnets.extend(f.list(option, issues, prefix).unwrap_or_default());
    }
    let told = [
        ("dns", pool.dns.len()),
        ("nbns", pool.nbns.len()),
        ("dhcp", pool.dhcp.len()),
        ("subnet", pool.subnets.len()),
    ];
    for (option, _) in told.iter().filter(|(_, count)| *count > MAX_TOLD) {
        issues.push(f.place(option), format!("more than {MAX_TOLD} for '{option}'; expected fewer"));
    }
    Some(pool)
}

/// Pools must not share addresses, since one address must not be given twice.
pub(super) fn overlaps(config: &Config, parts: &[&Section], issues: &mut Issues) {
    for (index, pool) in config.pools.iter().enumerate() {
        let other = config.pools[..index].iter().find(|other| other.addrs.overlaps(&pool.addrs));
        let part = parts.iter().find(|part| part.name == pool.name);
        if let (Some(other), Some(part)) = (other, part) {
            issues.push(part.at, format!("pool '{}' shares addresses with pool '{}'", pool.name, other.name));
        }
    }
}

/// The pools that connections name must be there.
pub(super) fn are_known(config: &Config, part: &Section, issues: &mut Issues) {
    let Some(conn) = config.connection(&part.name) else { return };
    let place = part.settings.iter().find(|s| s.name == "pools").map_or(part.at, |s| s.value.at);
    for name in conn.pools.iter().filter(|name| !config.pools.iter().any(|pool| pool.name == **name)) {
        let message =
            format!("connection '{}' names the pool '{name}', which is not in 'pools {{ ... }}'", conn.name);
        issues.push(place, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_leave_out_network_and_broadcast() {
        for (text, shown, size) in [
            ("10.3.0.0/24", "10.3.0.1-10.3.0.254", 254),
            ("10.3.0.10/28", "10.3.0.10-10.3.0.14", 5),
            ("10.3.0.4/31", "10.3.0.4-10.3.0.5", 2),
            ("10.3.0.4/32", "10.3.0.4-10.3.0.4", 1),
            ("10.3.0.9", "10.3.0.9-10.3.0.9", 1),
            ("10.3.0.250 - 10.3.1.5", "10.3.0.250-10.3.1.5", 12),
            ("fd00::/64", "fd00::1-fd00::ffff:ffff:ffff:fffe", (1 << 64) - 2),
            ("fd00::10-fd00::1f", "fd00::10-fd00::1f", 16),
        ] {
            let range = range(text).unwrap();
            assert_eq!((range.to_string(), range.size()), (shown.to_string(), size), "{text}");
        }
        for bad in
            ["", "10.3.0.0/33", "10.3.0.9-10.3.0.1", "10.3.0.1-fd00::1", "10.3.0.255/24", "pool", "1-2"]
        {
            assert!(range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_no_host_can_have_is_told_apart() {
        let unfit = "0.0.0.0 0.1.2.3 127.0.0.1 169.254.1.1 224.0.0.1 240.0.0.1 255.255.255.255 :: ::1 ff02::1 fe80::1 ::ffff:10.0.0.1";
        assert!(unfit.split(' ').all(|text| !is_assignable(text.parse().unwrap())), "{unfit}");
        assert!(["10.3.0.1", "192.0.2.1", "fd00::1"].iter().all(|text| is_assignable(text.parse().unwrap())));
        assert_eq!(wanted("%any"), Ok("0.0.0.0".parse().unwrap()));
        assert_eq!(wanted("::"), Ok("::".parse().unwrap()));
        assert!(wanted("127.0.0.1").is_err() && wanted("host").is_err());
    }
}
