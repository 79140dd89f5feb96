//! The outer addresses of a Child SA, as both sides have told each other: pure values.
//!
//! A peer speaks only about its own addresses, so there are two halves. The paths that carry traffic are the pairs
//! of both halves that the path table has proven; see [`super::path_table`].

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mobikex_common::wire::mobike_x::{Mip, Reachability};
use serde::Serialize;

use crate::config::DEFAULT_PREFERENCE;

/// Addresses that one side may have in one SA.
pub(super) const MAX_ADDRESSES: usize = 8;
/// Start and life times are cut to this (MOBIKE-X 11.4.4 has no limit of its own).
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);

/// One outer address of one side of an SA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Outer {
    /// Address and port; the port counts only in UDP.
    pub(super) addr: SocketAddr,
    /// Rank and share of the traffic.
    pub(super) preference: u8,
    /// Kind of address: none, home, care-of (MOBIKE-X 11.4.4).
    pub(super) class: u8,
    /// Its owner says that it cannot be reached there.
    pub(super) unreachable: bool,
    /// Not to be used before.
    pub(super) starts: Option<Instant>,
    /// Not to be used from then on.
    pub(super) ends: Option<Instant>,
}

impl Outer {
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self { addr, preference: DEFAULT_PREFERENCE, class: 0, unreachable: false, starts: None, ends: None }
    }

    /// With what its owner says about it.
    pub(super) fn described(addr: SocketAddr, mip: Option<&Mip>, now: Instant) -> Self {
        let Some(mip) = mip else { return Self::new(addr) };
        let after = |seconds: u32| now + Duration::from_secs(seconds.into()).min(MAX_TIME);
        let starts = (mip.start > 0).then(|| after(mip.start));
        Self {
            preference: mip.preference,
            class: mip.class,
            unreachable: mip.reachability == Reachability::Unreachable,
            starts,
            // The life begins when the address does.
            ends: (mip.life > 0).then(|| after(mip.start.saturating_add(mip.life))),
            ..Self::new(addr)
        }
    }

    /// Whether it may be used now.
    pub(super) fn is_current(&self, now: Instant) -> bool {
        !self.unreachable && self.starts.is_none_or(|at| at <= now) && self.ends.is_none_or(|at| at > now)
    }

    /// When that changes next.
    fn next_change(&self, now: Instant) -> Option<Instant> {
        [self.starts, self.ends].into_iter().flatten().filter(|at| *at > now).min()
    }
}

/// What a new address in a half replaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Replaces {
    /// All that the half has.
    All,
    /// One address.
    One(IpAddr),
    /// What a NAT has shown with this address and port.
    Shown(SocketAddr),
}

/// One side's addresses in an SA, in order; never two with the same IP address, unless a NAT shows several addresses of the
/// peer as one with several ports.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Half(Vec<Outer>);

impl Half {
    pub(super) fn single(addr: SocketAddr) -> Self {
        Self(vec![Outer::new(addr)])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Outer> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn find(&self, addr: IpAddr) -> Option<&Outer> {
        self.0.iter().find(|o| o.addr.ip() == addr)
    }

    pub(super) fn has(&self, addr: IpAddr) -> bool {
        self.find(addr).is_some()
    }

    /// Whether it holds this address with this port.
    pub(super) fn has_exactly(&self, addr: SocketAddr) -> bool {
        self.0.iter().any(|o| o.addr == addr)
    }

    /// Adds an address, or replaces what is known about it. `false` when there is no room.
    pub(super) fn add(&mut self, outer: Outer) -> bool {
        self.update(Replaces::One(outer.addr.ip()), outer) || self.append(outer)
    }

    /// Adds what a NAT shows with this port, or replaces what is known about it. `false` when there is no room.
    pub(super) fn add_shown(&mut self, outer: Outer) -> bool {
        self.update(Replaces::Shown(outer.addr), outer) || self.append(outer)
    }

    fn append(&mut self, outer: Outer) -> bool {
        let room = self.0.len() < MAX_ADDRESSES;
        if room {
            self.0.push(outer);
        }
        room
    }

    /// Those that may be used now, the preferred ones first.
    pub(super) fn ranked(&self, now: Instant) -> Vec<IpAddr> {
        let mut current: Vec<_> = self.iter().filter(|o| o.is_current(now)).collect();
        current.sort_by_key(|o| std::cmp::Reverse(o.preference));
        current.into_iter().map(|o| o.addr.ip()).collect()
    }

    /// Addresses whose time has come since they were announced; each is named once.
    pub(super) fn begin(&mut self, now: Instant) -> Vec<SocketAddr> {
        let due = |o: &&mut Outer| o.starts.is_some_and(|at| at <= now);
        let begin = |o: &mut Outer| {
            o.starts = None;
            o.addr
        };
        self.0.iter_mut().filter(due).map(begin).collect()
    }

    /// Removes an address; tells whether it was there.
    pub(super) fn remove(&mut self, addr: IpAddr) -> bool {
        let before = self.0.len();
        self.0.retain(|o| o.addr.ip() != addr);
        self.0.len() < before
    }

    /// Removes what a NAT has shown with this address and port.
    pub(super) fn remove_shown(&mut self, addr: SocketAddr) {
        self.0.retain(|o| o.addr != addr);
    }

    /// Puts `outer` in the place of what it replaces; tells whether that was there.
    pub(super) fn update(&mut self, old: Replaces, outer: Outer) -> bool {
        let replaced = |o: &Outer| match old {
            Replaces::All => true,
            Replaces::One(old) => o.addr.ip() == old,
            Replaces::Shown(old) => o.addr == old,
        };
        let doubled = |o: &Outer| match old {
            Replaces::All | Replaces::One(_) => o.addr.ip() == outer.addr.ip(),
            Replaces::Shown(_) => o.addr == outer.addr,
        };
        let found = old == Replaces::All || self.0.iter().any(replaced);
        if found {
            let goes = |o: &Outer| replaced(o) || doubled(o);
            let place = self.0.iter().position(goes).unwrap_or(0);
            self.0.retain(|o| !goes(o));
            self.0.insert(place, outer);
        }
        found
    }

    /// Forgets what has ended; the last address stays.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let ended = |o: &Outer| o.ends.is_some_and(|at| at <= now);
        let before = self.0.len();
        if !self.0.iter().all(ended) {
            self.0.retain(|o| !ended(o));
        }
        self.0.len() < before
    }

    pub(super) fn next_change(&self, now: Instant) -> Option<Instant> {
        self.0.iter().filter_map(|o| o.next_change(now)).min()
    }
}

/// Both halves of a Child SA's set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Halves {
    /// Ours, as the peer knows them.
    pub(super) local: Half,
    /// The peer's.
    pub(super) remote: Half,
}

impl Halves {
    /// The one pair that IKE_AUTH ran over.
    pub(super) fn single(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local: Half::single(local), remote: Half::single(remote) }
    }

    /// The pairs of one family, ours first.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&Outer, &Outer)> {
        self.local.iter().flat_map(|l| {
            let fits = move |r: &&Outer| r.addr.is_ipv4() == l.addr.is_ipv4();
            self.remote.iter().filter(fits).map(move |r| (l, r))
        })
    }
}

/// An alternative address of the peer, for whoever chooses among them above IPsec (MOBIKE-X 5.5).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Alternate {
    /// The address.
    pub addr: IpAddr,
    /// Larger is preferred.
    pub preference: u8,
    /// 0 none, 1 home address, 2 care-of address.
    pub class: u8,
    /// The peer says that it cannot be reached there.
    pub unreachable: bool,
    /// Seconds until it may be used.
    pub starts_in: u64,
    /// Seconds until it may not be used any more, if there is an end.
    pub ends_in: Option<u64>,
}

impl Alternate {
    pub(super) fn new(outer: &Outer, now: Instant) -> Self {
        let seconds = |at: Instant| at.saturating_duration_since(now).as_secs();
        Self {
            addr: outer.addr.ip(),
            preference: outer.preference,
            class: outer.class,
            unreachable: outer.unreachable,
            starts_in: outer.starts.map_or(0, seconds),
            ends_in: outer.ends.map(seconds),
        }
    }
}

/// An address of an SA as an operator sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct OuterView {
    /// The address and its port.
    pub addr: SocketAddr,
    /// Rank and share.
    pub preference: u8,
    /// `in use`, `unreachable`, `not yet`, `over`, or, of the peer's, `being checked`.
    pub state: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        format!("{text}:4500").parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn half(addrs: &[&str]) -> Half {
        Half(addrs.iter().map(|a| Outer::new(at(a))).collect())
    }

    #[test]
    fn adding_twice_replaces_what_is_known_and_there_is_an_end_to_it() {
        let mut h = half(&["192.0.2.1"]);
        assert!(h.add(Outer { preference: 7, ..Outer::new(at("192.0.2.1")) }));
        assert_eq!((h.len(), h.find(ip("192.0.2.1")).unwrap().preference), (1, 7));
        for n in 2..=8 {
            assert!(h.add(Outer::new(at(&format!("192.0.2.{n}")))));
        }
        assert!(!h.add(Outer::new(at("192.0.2.9"))));
        assert!(h.add(Outer::new(at("192.0.2.8"))), "what is there needs no room");
    }

    #[test]
    fn an_update_keeps_the_place_and_never_doubles() {
        let mut h = half(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        assert!(!h.update(Replaces::One(ip("192.0.2.9")), Outer::new(at("192.0.2.4"))));
        assert!(h.update(Replaces::One(ip("192.0.2.2")), Outer::new(at("192.0.2.4"))));
        assert_eq!(h, half(&["192.0.2.1", "192.0.2.4", "192.0.2.3"]));
        assert!(h.update(Replaces::One(ip("192.0.2.3")), Outer::new(at("192.0.2.1"))));
        assert_eq!(h, half(&["192.0.2.1", "192.0.2.4"]));
        assert!(h.update(Replaces::All, Outer::new(at("192.0.2.7"))));
        assert_eq!(h, half(&["192.0.2.7"]));
    }

    #[test]
    fn m15_times_are_cut_and_the_last_address_does_not_expire() {
        let now = Instant::now();
        let mip = Mip { start: u32::MAX, life: u32::MAX, ..Mip::default() };
        let outer = Outer::described(at("192.0.2.1"), Some(&mip), now);
        assert_eq!((outer.starts, outer.ends), (Some(now + MAX_TIME), Some(now + MAX_TIME)));
        assert!(!outer.is_current(now));
        let mut h = half(&["192.0.2.2"]);
        h.add(outer);
        assert_eq!(h.next_change(now), Some(now + MAX_TIME));
        assert!(h.expire(now + MAX_TIME) && !h.has(ip("192.0.2.1")));
        let mut last = Half(vec![outer]);
        assert!(!last.expire(now + MAX_TIME));
    }

    #[test]
    fn a_life_time_of_zero_has_no_end() {
        let now = Instant::now();
        let mut h = half(&["192.0.2.2"]);
        h.add(Outer::described(at("192.0.2.1"), Some(&Mip::default()), now));
        let years = now + 400 * MAX_TIME;
        assert!(h.find(ip("192.0.2.1")).unwrap().is_current(years) && !h.expire(years));
        assert_eq!(h.next_change(now), None);
        let second = Mip { life: 1, ..Mip::default() };
        assert!(!Outer::described(at("192.0.2.1"), Some(&second), now).is_current(years));
    }

    #[test]
    fn pairs_are_of_one_family() {
        let mut halves = Halves::single(at("192.0.2.1"), at("198.51.100.1"));
        halves.local.add(Outer::new(at("[2001:db8::1]")));
        halves.remote.add(Outer::new(at("[2001:db8::2]")));
        halves.remote.add(Outer::new(at("198.51.100.2")));
        let pairs: Vec<_> = halves.pairs().map(|(l, r)| (l.addr.is_ipv4(), r.addr.is_ipv4())).collect();
        assert_eq!(pairs, [(true, true), (true, true), (false, false)]);
    }
}
