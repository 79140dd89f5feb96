//! How a connection uses several addresses: `mobike`, `mobike_x`, `return_routability` and the section `paths`.

use std::net::IpAddr;
use std::time::Duration;

use mobikex_common::addr::Scheduler;
use mobikex_common::ts::TrafficSelector;
use serde::{Serialize, Serializer};

/// Whether MOBIKE-X may, or must, be agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MobikeX {
    /// Never offered.
    No,
    /// Offered; the peer may speak less.
    #[default]
    Yes,
    /// Without it there is no IKE SA.
    Require,
}

/// When a new address of the peer must have shown that it is reachable (RFC 4555 3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReturnRoutability {
    /// Before it carries more than three times what came from it.
    #[default]
    Required,
    /// It carries traffic at once, and is dropped if the check fails.
    After,
    /// Never.
    Off,
}

/// What an interface is worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InterfacePolicy {
    /// Its name.
    pub name: String,
    /// Share of the traffic and rank among the interfaces, 1 to 255.
    pub preference: Option<u8>,
    /// What it carries, in bit/s.
    pub rate: Option<u64>,
}

/// Section `paths`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paths {
    /// How traffic is spread, unless a child says otherwise.
    pub scheduler: Scheduler,
    /// Interfaces that may be used; empty for all.
    pub interfaces: Vec<String>,
    /// Addresses that the peer may take or add; empty for any unicast address.
    #[serde(serialize_with = "texts")]
    pub allowed: Vec<TrafficSelector>,
    /// Time between two probes of a path that carries traffic.
    #[serde(rename = "probe_interval_ms", serialize_with = "millis")]
    pub probe_interval: Duration,
    /// Where preferences are equal, measured rates decide the shares of paths.
    pub measure_rates: bool,
    /// What single interfaces are worth.
    pub policies: Vec<InterfacePolicy>,
}

/// The preference of an address of which nothing is said.
pub const DEFAULT_PREFERENCE: u8 = 100;

impl Default for Paths {
    fn default() -> Self {
        Self {
            scheduler: Scheduler::default(),
            interfaces: Vec::new(),
            allowed: Vec::new(),
            probe_interval: Duration::from_millis(100),
            measure_rates: true,
            policies: Vec::new(),
        }
    }
}

impl Paths {
    /// Whether an interface may be used.
    pub fn uses(&self, interface: &str) -> bool {
        self.interfaces.is_empty() || self.interfaces.iter().any(|name| name == interface)
    }

    /// Whether the peer may have `addr`, as far as prefixes say.
    pub fn allows(&self, addr: IpAddr) -> bool {
        self.allowed.is_empty() || self.allowed.iter().any(|prefix| prefix.contains_addr(addr))
    }

    /// The preference of an interface: the configured one, or its share of the greatest configured rate.
    pub fn preference(&self, interface: &str) -> u8 {
        let policy = self.policies.iter().find(|p| p.name == interface);
        if let Some(preference) = policy.and_then(|p| p.preference) {
            return preference;
        }
        let most = self.policies.iter().filter_map(|p| p.rate).max();
        match (policy.and_then(|p| p.rate), most) {
            (Some(rate), Some(most)) => {
                let share = u128::from(rate) * u128::from(DEFAULT_PREFERENCE) / u128::from(most.max(1));
                u8::try_from(share).unwrap_or(u8::MAX).max(1)
            }
            _ => DEFAULT_PREFERENCE,
        }
    }
}

fn texts<S: Serializer>(items: &[TrafficSelector], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(items.iter().map(ToString::to_string))
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_preference_relative_to_the_greatest() {
        let policy = |name: &str, preference, rate| InterfacePolicy { name: name.into(), preference, rate };
        let paths = Paths {
            policies: vec![
                policy("wan0", None, Some(200_000_000)),
                policy("lte0", None, Some(50_000_000)),
                policy("sat0", Some(7), Some(900)),
                policy("slow0", None, Some(1)),
            ],
            ..Paths::default()
        };
        let found = ["wan0", "lte0", "sat0", "slow0", "eth9"].map(|name| paths.preference(name));
        assert_eq!(found, [100, 25, 7, 1, 100]);
    }
}
