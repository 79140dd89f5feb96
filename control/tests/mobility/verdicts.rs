//! What a test says about the state of the world.

use std::net::IpAddr;

use mobikex::ike::IkeSaView;
use mobikex_common::addr::{Path, Scheduler};
use mobikex_common::sa::ChildSaParams;

use super::World;

impl World {
    pub fn view(&self, host: usize) -> IkeSaView {
        let views = self.hosts[host].endpoint.ike_sas(self.now);
        let found = views.into_iter().find(|v| v.state == "ESTABLISHED");
        found.unwrap_or_else(|| panic!("host {host} has no IKE SA:\n{}", self.story(host)))
    }

    /// The SA on which a host sends.
    pub fn sending(&self, host: usize) -> &ChildSaParams {
        let mut found = self.hosts[host].children.values().filter(|(_, outbound)| *outbound).map(|(p, _)| p);
        found.next().unwrap_or_else(|| panic!("host {host} sends on no SA:\n{}", self.story(host)))
    }

    /// The pairs that carry traffic of a host, as `local-remote`, in order.
    pub fn carrying(&self, host: usize) -> Vec<String> {
        let set = &self.sending(host).addresses;
        let used = set.paths.iter().filter(|p| p.weight > 0);
        let mut found: Vec<_> =
            used.map(|p| format!("{}-{}", p.path.local.ip(), p.path.remote.ip())).collect();
        found.sort();
        found
    }

    pub fn scheduler(&self, host: usize) -> Scheduler {
        self.sending(host).addresses.scheduler
    }

    /// Exactly one IKE SA and one Child SA that fit each other.
    pub fn assert_one_tunnel(&self) {
        let (a, b) = (self.sending(0), self.sending(1));
        assert_eq!((a.spi_out, a.spi_in), (b.spi_in, b.spi_out), "{}\n{}", self.story(0), self.story(1));
        self.view(0);
        self.view(1);
    }

    /// Where a datagram of a host over a pair arrives, if the network lets it through as it is now.
    pub fn leads_to(&self, host: usize, path: Path) -> Option<IpAddr> {
        let remote = match &self.nat {
            Some(nat) if host == 1 && path.remote.is_ipv4() => nat.back(path.remote, path.local)?.ip(),
            _ => path.remote.ip(),
        };
        let local = path.local.ip();
        let ends = if host == 0 { (local, remote) } else { (remote, local) };
        let works =
            |h: usize, addr: IpAddr| self.hosts[h].addresses.contains(&addr) && !self.cut.contains(&addr);
        let free =
            !self.mute.contains(&local) && !self.deaf.contains(&remote) && !self.no_way.contains(&ends);
        (works(host, local) && works(1 - host, remote) && free).then_some(remote)
    }

    /// A pair over which a host sends in vain.
    pub fn broken_path(&self, host: usize) -> Option<Path> {
        let sets = self.hosts[host].children.values().filter(|(_, outbound)| *outbound);
        let mut used = sets.flat_map(|(p, _)| &p.addresses.paths).filter(|p| p.weight > 0);
        let translated = |p: &Path| self.nat.is_some() && p.local.is_ipv4();
        used.find(|p| self.leads_to(host, p.path).is_none() || (!p.encap && translated(&p.path)))
            .map(|p| p.path)
    }

    /// Everything that is sent now arrives: each carrying pair of a host leads from an address that it has, over links
    /// that work, to one that the peer has.
    pub fn assert_traffic_arrives(&self) {
        for host in 0..2 {
            assert!(!self.carrying(host).is_empty(), "host {host} has no path:\n{}", self.story(host));
            if let Some(path) = self.broken_path(host) {
                panic!("host {host} sends over {path}:\n{}\n{}", self.story(host), self.story(1 - host));
            }
        }
    }

    /// Packets of the traffic that a host has received.
    pub fn arrived(&self, host: usize) -> u64 {
        self.hosts[host].packets.arrived
    }

    /// ESP packets that have arrived at a host that has no SA for them.
    pub fn homeless(&self, host: usize) -> u64 {
        self.hosts[host].packets.homeless
    }

    pub(super) fn assert_invariants(&self) {
        for host in &self.hosts {
            for (params, _) in host.children.values() {
                let set = &params.addresses;
                // M16, M5: a set is never empty, and bounded.
                assert!(!set.paths.is_empty() && set.paths.len() <= 200, "{} paths", set.paths.len());
                assert!(set.paths.iter().all(|p| p.path.local.is_ipv4() == p.path.remote.is_ipv4()));
                let mut pairs: Vec<_> = set.paths.iter().map(|p| p.path).collect();
                pairs.sort();
                pairs.dedup();
                assert_eq!(pairs.len(), set.paths.len(), "a path stands twice");
            }
        }
    }

    pub fn story(&self, host: usize) -> String {
        self.hosts[host].events.iter().map(|e| format!("  {host}: {e}\n")).collect()
    }
}
