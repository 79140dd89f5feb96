//! What must hold after every step of a schedule, and when it may be said that two hosts have come to the same end. The
//! numbers are those of the project's list of attacks on mobility.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mobikex::config::ReturnRoutability;
use mobikex::ike::{ChildSaView, Event, IkeSaView};
use mobikex_common::addr::Scheduler;
use mobikex_common::sa::ChildSaParams;
use mobikex_common::ts::TrafficSelector;

use crate::schedule::{Setup, Step};
use crate::world::{StrayKind, World, ip};

/// Addresses that one side may have in one SA.
const MAX_ADDRESSES: usize = 8;
/// The longest time for which a request may still wait in vain once the network is whole: the last interval between two
/// retransmissions, and a little.
const LAST_WAIT: Duration = Duration::from_secs(80);

/// What the model knows beside the world itself.
pub struct Model {
    setup: Setup,
    /// Addresses of each that were named by hand.
    named: [BTreeSet<IpAddr>; 2],
    /// Both have the tunnel: until then the responder is ahead.
    pub begun: bool,
    /// Someone has asked for the end of an SA, or its time was over.
    deleted: bool,
    crashed: bool,
    /// A peer was given up for dead.
    given_up: bool,
    /// How many SAs have ended.
    pub ends: u32,
    /// Since when the network is as good as it gets, if it is.
    pub whole_since: Option<Instant>,
    /// By hand or by force, addresses are not simply those that the hosts have.
    meddled: bool,
    events: [usize; 2],
}

impl Model {
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            named: Default::default(),
            begun: false,
            deleted: false,
            crashed: false,
            given_up: false,
            ends: 0,
            whole_since: None,
            meddled: false,
            events: [0; 2],
        }
    }

    /// Takes note of what a step permits.
    pub fn note(&mut self, step: &Step) {
        match *step {
            Step::Down { .. } => self.deleted = true,
            // Lifetimes are longer than an hour.
            Step::Jump { seconds } => self.deleted |= seconds > 3000,
            Step::Crash { .. } => {
                self.crashed = true;
                self.ends += 1;
            }
            Step::HandAdd { host, addr, check } | Step::HandUpdate { host, new: addr, check, .. } => {
                self.meddled |= !check;
                self.named[host].extend((!check).then(|| ip(self.setup.addr(host, addr))));
            }
            Step::HandRemove { check, .. } => {
                self.meddled |= !check;
                self.deleted |= !check;
            }
            Step::ForgeSource { .. } | Step::ForgePort { .. } | Step::ForgeDestination { .. } => {
                self.meddled = true;
            }
            _ => {}
        }
    }

    /// Whether `host` may be thought to be at `addr`: it has or had it, a NAT or an attacker showed it there (which
    /// NAT_DETECTION tells of), or its operator said so.
    fn explained(&self, world: &World, host: usize, addr: IpAddr) -> bool {
        world.hosts[host].ever.contains(&addr)
            || (host == 0 && world.outsides.contains(&addr))
            || world.rewritten.iter().any(|(_, written)| *written == addr)
            || self.named[host].contains(&addr)
    }

    /// After every step.
    pub fn check(&mut self, world: &World) {
        self.hear(world);
        for host in 0..2 {
            for (params, outbound) in world.hosts[host].children.values() {
                self.check_set(world, host, params);
                let peer = &world.hosts[1 - host];
                let has = peer.children.values().any(|(p, _)| p.spi_in == params.spi_out);
                let excused = !self.begun || self.deleted || self.crashed || self.given_up;
                assert!(
                    has || excused || !outbound,
                    "host {host} sends on {} which the peer lacks",
                    params.name
                );
            }
            let sas = world.hosts[host].endpoint.ike_sas(world.now);
            sas.iter().for_each(|sa| self.check_sa(world, host, sa));
            let live = sas.iter().flat_map(|sa| &sa.children).filter(|c| c.state != "DELETED").count();
            let raised = world.hosts[host].raised.len();
            assert!(
                raised <= live && (raised > 0) == (live > 0),
                "host {host}: {raised} scripts for {live} SAs"
            );
        }
    }

    /// What the endpoints have told since: an SA that ends needs a reason.
    fn hear(&mut self, world: &World) {
        for host in 0..2 {
            let events = &world.hosts[host].events;
            for event in &events[self.events[host].min(events.len())..] {
                let (Event::IkeDown { reason, .. } | Event::ChildDown { reason, .. }) = event else {
                    continue;
                };
                if reason.contains("redundant after simultaneous rekeying") {
                    continue;
                }
                self.ends += 1;
                if reason.contains("does not answer") {
                    self.given_up = true;
                    let waited = self.whole_since.map(|since| world.now.saturating_duration_since(since));
                    let in_vain =
                        waited.is_none_or(|waited| waited <= LAST_WAIT) || self.crashed || self.deleted;
                    assert!(in_vain, "host {host} gave up a peer that can be reached: {event}");
                }
                let excused = self.deleted || self.crashed || self.given_up;
                assert!(excused, "nobody asked for this end, host {host}: {event}");
            }
            self.events[host] = events.len();
        }
    }

    fn check_set(&self, world: &World, host: usize, params: &ChildSaParams) {
        let set = &params.addresses;
        // M16, M5.
        assert!(!set.paths.is_empty(), "M16: a set is empty");
        assert!(set.paths.len() <= 2 * MAX_ADDRESSES * MAX_ADDRESSES + 32, "M5: {} paths", set.paths.len());
        let used: Vec<_> = set.paths.iter().filter(|p| p.weight > 0).collect();
        if set.scheduler == Scheduler::Redundant && self.setup.scheduler != Scheduler::Redundant {
            // Copies go to where a peer was and where it says to be, and no further.
            let remotes: BTreeSet<SocketAddr> = used.iter().map(|p| p.path.remote).collect();
            assert!(self.setup.extended || remotes.len() <= 2, "M5: copies without need: {set:?}");
        }
        // M4: without limit only to where the peer has been.
        if self.setup.routability == ReturnRoutability::Required {
            for way in used.iter().filter(|p| !p.limited) {
                assert!(
                    world.hosts[host].reached.contains(&way.path.remote),
                    "M4: host {host} sends without limit to {}, where nobody was ever reached",
                    way.path.remote
                );
            }
        }
    }

    fn check_sa(&self, world: &World, host: usize, sa: &IkeSaView) {
        if sa.state == "CONNECTING" {
            return;
        }
        let explained = |addr: IpAddr| self.explained(world, 1 - host, addr);
        assert!(explained(sa.remote.ip()), "M2: host {host} thinks that its peer is at {}", sa.remote);
        for addr in &sa.alternates {
            assert!(explained(*addr), "M2: host {host} thinks that its peer may be at {addr}");
        }
        for child in &sa.children {
            let (ours, theirs) = (&child.local_addresses, &child.remote_addresses);
            assert!(!ours.is_empty() && !theirs.is_empty(), "M16: a half is empty");
            assert!(ours.len().max(theirs.len()) <= MAX_ADDRESSES, "M5: {} addresses", theirs.len());
            for view in theirs {
                assert!(explained(view.addr.ip()), "M1, M2: host {host} has {} for its peer", view.addr);
            }
        }
    }

    /// Datagrams to where nobody is (M4, M6): no more than three requests in a row and one a second, no traffic.
    pub fn check_strays(&self, world: &World) {
        for (n, stray) in world.strays.iter().enumerate() {
            let second = Duration::from_secs(1);
            let same = |s: &&crate::world::Stray| {
                s.from == stray.from
                    && s.to == stray.to
                    && s.what == stray.what
                    && s.what != StrayKind::Response
            };
            let soon = |s: &&crate::world::Stray| stray.at.duration_since(s.at) < second;
            let lately = world.strays[..n].iter().rev().take_while(soon).filter(same).count();
            let policy = self.setup.routability;
            if stray.what == StrayKind::Esp {
                assert!(policy != ReturnRoutability::Required, "M4, M6: ESP to {} of nobody", stray.to);
            } else {
                // Who changes the source of an answer on its way gets one more for each, and one for what was before.
                let written = |(at, by): &&(Instant, IpAddr)| {
                    *by == stray.to.ip() && *at <= stray.at && stray.at.duration_since(*at) < 2 * second
                };
                let ever = world.rewritten.iter().any(|(_, by)| *by == stray.to.ip());
                // Without checks, an answer from there counts as its own, and what waits is sent there at once.
                let least = if policy == ReturnRoutability::Off { 2 } else { 1 };
                let forged = world.rewritten.iter().filter(written).count().max(usize::from(ever) * least);
                assert!(lately <= forged, "M6: more than one datagram a second to {} of nobody", stray.to);
            }
        }
    }

    /// Why the hosts are not at the same end yet: one tunnel, IKE and ESP where the peer is, everything that is sent
    /// arrives, and each knows the addresses of the other.
    pub fn not_settled(&self, world: &World) -> Option<String> {
        let mut views = Vec::new();
        for host in 0..2 {
            let sas = world.hosts[host].endpoint.ike_sas(world.now);
            let [sa] = &sas[..] else { return Some(format!("host {host} has {} IKE SAs", sas.len())) };
            let common =
                sa.children.iter().filter(|c| c.resource.as_ref().is_none_or(|r| r.worker.is_none()));
            if common.count() > 1 || sa.children.is_empty() {
                return Some(format!("host {host} has {} Child SAs", sa.children.len()));
            }
            if let Some(child) =
                sa.children.iter().find(|c| (sa.state, c.state) != ("ESTABLISHED", "INSTALLED"))
            {
                return Some(format!("host {host} is {}, {}", sa.state, child.state));
            }
            views.push(sa.clone());
        }
        let [a, b] = &views[..] else { return Some("a host is missing".into()) };
        if (a.spi_i, a.spi_r) != (b.spi_i, b.spi_r) || a.children.len() != b.children.len() {
            return Some("the SAs do not fit each other".into());
        }
        for child in &a.children {
            let other = b.children.iter().find(|c| (c.spi_in, c.spi_out) == (child.spi_out, child.spi_in));
            let Some(other) = other else { return Some("the Child SAs do not fit each other".into()) };
            let (ours, theirs) = (selectors(child), selectors(other));
            if !self.meddled && (&ours.0, &ours.1) != (&theirs.1, &theirs.0) {
                return Some(format!("the selectors differ: {child:?}, {other:?}"));
            }
        }
        (0..2).find_map(|host| self.not_settled_at(world, host, &views[host]))
    }

    fn not_settled_at(&self, world: &World, host: usize, sa: &IkeSaView) -> Option<String> {
        let path = mobikex_common::addr::Path { local: sa.local, remote: sa.remote };
        if world.leads_to(host, path).is_none() {
            return Some(format!("the IKE messages of host {host} go over {path}"));
        }
        if let Some(path) = world.broken_path(host) {
            return Some(format!("host {host} sends over {path}"));
        }
        sa.children.iter().find_map(|child| self.not_settled_in(world, host, sa, child))
    }

    fn not_settled_in(
        &self,
        world: &World,
        host: usize,
        sa: &IkeSaView,
        child: &ChildSaView,
    ) -> Option<String> {
        let path = mobikex_common::addr::Path { local: sa.local, remote: sa.remote };
        let set = &child.addresses;
        let used: Vec<_> = set.paths.iter().filter(|p| p.weight > 0).collect();
        if used.is_empty() || used.iter().any(|p| p.limited) {
            return Some(format!("host {host} is limited: {set:?}"));
        }
        if set.scheduler != self.setup.scheduler {
            return Some(format!("host {host} sends copies: {set:?}"));
        }
        if !self.setup.extended && (used.len() != 1 || used[0].path != path) {
            return Some(format!("the IKE SA of host {host} is at {path}, its Child SA at {set:?}"));
        }
        self.not_told(world, host, child)
    }

    /// M13: whatever the order was, each knows of the other what is so now.
    fn not_told(&self, world: &World, host: usize, child: &ChildSaView) -> Option<String> {
        if !self.setup.extended || self.meddled {
            return None;
        }
        let translated = |addr: &IpAddr| host == 1 && addr.is_ipv4() && world.nat.is_some();
        let shown = |addr: &IpAddr| match &world.nat {
            Some(nat) if translated(addr) => nat.outside,
            _ => *addr,
        };
        let of_peer = &world.hosts[1 - host].addresses;
        // What cannot be reached for want of an address of its family may be left out, and so may what a host cannot know
        // to be translated: a public address while it talks over IPv6.
        let reachable =
            |addr: &&IpAddr| world.hosts[host].addresses.iter().any(|a| a.is_ipv4() == addr.is_ipv4());
        let knowable = |addr: &&IpAddr| self.setup.private || !translated(addr);
        let must: BTreeSet<IpAddr> = of_peer.iter().filter(reachable).filter(knowable).map(shown).collect();
        let mut may: BTreeSet<IpAddr> = of_peer.iter().map(shown).collect();
        may.extend(of_peer.iter().filter(|addr| !knowable(addr)));
        let known: BTreeSet<IpAddr> = child.remote_addresses.iter().map(|v| v.addr.ip()).collect();
        // Where a NAT was, the peer may be thought to be as well.
        let was = |addr: &IpAddr| host == 1 && world.outsides.contains(addr);
        let told = must.is_subset(&known) && known.iter().all(|addr| may.contains(addr) || was(addr));
        (!told).then(|| format!("host {host} knows {known:?} of its peer, which is at {may:?}"))
    }
}

/// The selectors of an SA as sets, ours first. One of a family that the other side does not have selects nothing.
fn selectors(child: &ChildSaView) -> (BTreeSet<String>, BTreeSet<String>) {
    let of = |own: &[TrafficSelector], other: &[TrafficSelector]| {
        let fits = |ts: &&TrafficSelector| other.iter().any(|o| o.is_ipv4() == ts.is_ipv4());
        own.iter().filter(fits).map(ToString::to_string).collect()
    };
    (of(&child.ts_local, &child.ts_remote), of(&child.ts_remote, &child.ts_local))
}
