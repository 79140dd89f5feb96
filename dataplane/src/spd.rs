//! The Security Policy Database (RFC 4301 4.4.1), outbound: which policy a packet falls under.
//!
//! Policies are found by destination prefix. Prefixes live in a hash table of fixed size; each bucket is an
//! immutable value that is published whole, so a change costs one bucket however many policies there are, and
//! readers never wait. A lookup tries the prefix lengths in use, longest first; within a prefix the most specific
//! policy comes first, then the oldest (RFC 4301 asks for an ordered database; this is its order).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mobikex_common::sa::PolicyId;
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ip::Packet;

use crate::paths::{PathSet, SEED, fold};
use crate::published::{Guard, Published};
use crate::sad::{OutboundSa, Selectors};

/// Lookups of a packet at most while policies move.
const LOOKUPS: usize = 4;

/// What a lookup found.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'a> {
    /// Seal the packet for this SA. Its set as it was when the packet fitted the selectors in it.
    Sa(&'a Arc<OutboundSa>, &'a PathSet),
    /// A policy covers the packet, but none of its SAs can carry it now.
    NoSa(PolicyId),
    /// No policy covers the packet.
    NoPolicy,
}

/// The SAs that carry a policy's traffic now.
#[derive(Clone, Default, Debug)]
pub(crate) struct Senders {
    /// Of the workers that have none of their own.
    shared: Option<Arc<OutboundSa>>,
    /// By worker (RFC 9611). Empty where no worker has one.
    own: Box<[Option<Arc<OutboundSa>>]>,
}

impl Senders {
    /// Puts `sa` into the place of a worker, or of those without one of their own.
    pub(crate) fn set(&mut self, worker: Option<u32>, sa: Option<Arc<OutboundSa>>) {
        let Some(worker) = worker.map(|worker| worker as usize) else {
            self.shared = sa;
            return;
        };
        let mut own = std::mem::take(&mut self.own).into_vec();
        own.resize(own.len().max(worker + 1), None);
        own[worker] = sa;
        if own.iter().any(Option::is_some) {
            self.own = own.into();
        }
    }

    /// The SA in the place of a worker.
    pub(crate) fn get(&self, worker: Option<u32>) -> Option<&Arc<OutboundSa>> {
        match worker {
            Some(worker) => self.own.get(worker as usize)?.as_ref(),
            None => self.shared.as_ref(),
        }
    }

    /// As the workers are to see it: where nobody's SA is for all, one of the others is.
    fn filled(mut self) -> Option<Self> {
        if self.shared.is_none() {
            self.shared = self.own.iter().flatten().next().cloned();
        }
        self.shared.is_some().then_some(self)
    }

    /// The worker's own SA, or the common one, whichever fits the packet, and its set.
    fn choose<'a>(
        &'a self,
        packet: &Packet<'_>,
        worker: usize,
        guard: &'a Guard,
    ) -> Option<(&'a Arc<OutboundSa>, &'a PathSet)> {
        let fits = |sa: &'a Arc<OutboundSa>| {
            let paths = sa.addresses().load(guard)?;
            paths.selectors().match_outbound(packet).then_some((sa, paths))
        };
        if let Some(Some(own)) = self.own.get(worker)
            && let Some(found) = fits(own)
        {
            return Some(found);
        }
        self.shared.as_ref().and_then(fits)
    }
}

/// A policy: what it covers, and the SAs that carry its traffic now.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) id: PolicyId,
    /// The trap's selectors and those of each installed SA.
    covers: Published<Box<[Arc<Selectors>]>>,
    senders: Published<Senders>,
}

impl Policy {
    pub(crate) fn new(id: PolicyId) -> Self {
        Self { id, covers: Published::empty(), senders: Published::empty() }
    }

    pub(crate) fn set_senders(&self, senders: &Senders) {
        self.senders.replace(senders.clone().filled());
    }

    pub(crate) fn set_covers(&self, covers: Vec<Arc<Selectors>>) {
        self.covers.replace(Some(covers.into()));
    }

    fn lookup<'a>(&'a self, packet: &Packet<'_>, worker: usize, guard: &'a Guard) -> Option<Lookup<'a>> {
        if let Some((sa, paths)) = self.senders.load(guard).and_then(|all| all.choose(packet, worker, guard))
        {
            return Some(Lookup::Sa(sa, paths));
        }
        let covered = self.covers.load(guard)?.iter().any(|selectors| selectors.match_outbound(packet));
        covered.then_some(Lookup::NoSa(self.id))
    }
}

/// A destination prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    fn of(addr: IpAddr, len: u8) -> Self {
        let masked = match addr {
            IpAddr::V4(a) => {
                let mask = !u32::MAX.checked_shr(len.into()).unwrap_or(0);
                IpAddr::V4((u32::from(a) & mask).into())
            }
            IpAddr::V6(a) => {
                let mask = !u128::MAX.checked_shr(len.into()).unwrap_or(0);
                IpAddr::V6((u128::from(a) & mask).into())
            }
        };
        Self { addr: masked, len }
    }

    fn bucket(&self, buckets: usize) -> usize {
        let len = u64::from(self.len);
        let hash = match self.addr {
            IpAddr::V4(a) => fold(SEED, u64::from(u32::from(a)) << 8 | len),
            IpAddr::V6(a) => {
                let bits = u128::from(a);
                fold(fold(SEED, (bits >> 64) as u64), bits as u64 ^ len << 56)
            }
        };
        hash as usize & (buckets - 1)
    }
}

/// Order among the policies of one prefix, smallest first: fixed protocol, fewer ports, fewer source addresses,
/// then age.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Rank {
    any_protocol: bool,
    ports: u64,
    sources: u32,
    age: u64,
}

impl Rank {
    fn of(local: &TrafficSelector, remote: &TrafficSelector, age: u64) -> Self {
        // OPAQUE is one value of a port field, though its range is reversed.
        let span = |ts: &TrafficSelector| u64::from(ts.end_port.saturating_sub(ts.start_port)) + 1;
        let bits = |addr: IpAddr| match addr {
            IpAddr::V4(a) => u128::from(u32::from(a)),
            IpAddr::V6(a) => a.into(),
        };
        let range = bits(local.end).saturating_sub(bits(local.start));
        Self {
            any_protocol: local.protocol == 0 && remote.protocol == 0,
            ports: span(local) * span(remote),
            sources: 128 - range.leading_zeros(),
            age,
        }
    }
}

/// The destination prefixes of a policy with its place among others of the same prefix.
pub(crate) fn prefixes<'a>(covers: impl Iterator<Item = &'a Selectors>, age: u64) -> Box<[(Prefix, Rank)]> {
    let mut places = BTreeMap::new();
    for selectors in covers {
        for remote in selectors.remote() {
            let ranks = selectors.local().iter().map(|local| Rank::of(local, remote, age));
            let Some(rank) = ranks.min() else { continue };
            for (addr, len) in remote.prefixes() {
                let place = places.entry(Prefix::of(addr, len)).or_insert(rank);
                *place = rank.min(*place);
            }
        }
    }
    places.into_iter().collect()
}

#[derive(Clone, Debug)]
struct Entry {
    prefix: Prefix,
    rank: Rank,
    policy: Arc<Policy>,
}

/// The table. One writer at a time, any number of readers.
#[derive(Debug)]
pub(crate) struct Spd {
    buckets: Box<[Published<Box<[Entry]>>]>,
    /// One bit per prefix length in use.
    lengths_v4: AtomicU64,
    lengths_v6: [AtomicU64; 3],
    /// Counts the removals.
    removals: AtomicU64,
}

/// How many prefixes there are of each length: the writer's half of the bits above.
#[derive(Debug)]
pub(crate) struct LengthCounts([[u32; 129]; 2]);

impl Default for LengthCounts {
    fn default() -> Self {
        Self([[0; 129]; 2])
    }
}

impl Spd {
    /// A table that works best with up to about `policies` prefixes.
    pub(crate) fn new(policies: usize) -> Self {
        let buckets = policies.max(32).next_power_of_two() * 2;
        Self {
            buckets: std::iter::repeat_with(Published::empty).take(buckets).collect(),
            lengths_v4: AtomicU64::new(0),
            lengths_v6: Default::default(),
            removals: AtomicU64::new(0),
        }
    }

    /// Finds the policy of an outbound packet that a worker has read.
    ///
    /// A policy that moves from one prefix to another is for a moment under both. A lookup that passes the new one
    /// before it is there and the old one when it is gone would miss it, and sees by the count that it must look
    /// again.
    pub(crate) fn lookup<'a>(&'a self, packet: &Packet<'_>, worker: usize, guard: &'a Guard) -> Lookup<'a> {
        let mut before = self.removals.load(Ordering::Acquire);
        for _ in 0..LOOKUPS {
            let found = self.lookup_once(packet, worker, guard);
            let after = self.removals.load(Ordering::Acquire);
            if after == before {
                return found;
            }
            before = after;
        }
        self.lookup_once(packet, worker, guard)
    }

    fn lookup_once<'a>(&'a self, packet: &Packet<'_>, worker: usize, guard: &'a Guard) -> Lookup<'a> {
        let found = if packet.is_ipv4() {
            self.lookup_lengths((self.lengths_v4.load(Ordering::Acquire), 0), packet, worker, guard)
        } else {
            (0..3).rev().find_map(|word| {
                let bits = self.lengths_v6[word].load(Ordering::Acquire);
                self.lookup_lengths((bits, word * 64), packet, worker, guard)
            })
        };
        found.unwrap_or(Lookup::NoPolicy)
    }

    fn lookup_lengths<'a>(
        &'a self,
        (mut bits, base): (u64, usize),
        packet: &Packet<'_>,
        worker: usize,
        guard: &'a Guard,
    ) -> Option<Lookup<'a>> {
        while bits != 0 {
            let top = 63 - bits.leading_zeros();
            bits &= !(1 << top);
            let prefix = Prefix::of(packet.dst, (base + top as usize) as u8);
            let Some(entries) = self.buckets[prefix.bucket(self.buckets.len())].load(guard) else { continue };
            let mut here = entries.iter().filter(|entry| entry.prefix == prefix);
            if let Some(found) = here.find_map(|entry| entry.policy.lookup(packet, worker, guard)) {
                return Some(found);
            }
        }
        None
    }

    /// Puts a policy under a prefix, or moves it to another rank there.
    pub(crate) fn insert(&self, prefix: Prefix, rank: Rank, policy: &Arc<Policy>, counts: &mut LengthCounts) {
        let known = self.edit(prefix, |entries| {
            let before = entries.len();
            entries.retain(|e| e.prefix != prefix || e.policy.id != policy.id);
            let known = entries.len() != before;
            let at = entries.partition_point(|e| (e.prefix, e.rank) <= (prefix, rank));
            entries.insert(at, Entry { prefix, rank, policy: policy.clone() });
            known
        });
        if !known {
            let count = counts.of(prefix);
            *count += 1;
            if *count == 1 {
                self.length_bit(prefix, |word, bit| word.fetch_or(bit, Ordering::Release));
            }
        }
    }

    /// Takes a policy away from a prefix.
    pub(crate) fn remove(&self, prefix: Prefix, policy: PolicyId, counts: &mut LengthCounts) {
        // Before the removal itself: who sees that also sees this.
        self.removals.fetch_add(1, Ordering::Release);
        let known = self.edit(prefix, |entries| {
            let before = entries.len();
            entries.retain(|e| e.prefix != prefix || e.policy.id != policy);
            entries.len() != before
        });
        if known {
            let count = counts.of(prefix);
            *count -= 1;
            if *count == 0 {
                self.length_bit(prefix, |word, bit| word.fetch_and(!bit, Ordering::Release));
            }
        }
    }

    fn edit(&self, prefix: Prefix, change: impl FnOnce(&mut Vec<Entry>) -> bool) -> bool {
        let bucket = &self.buckets[prefix.bucket(self.buckets.len())];
        let guard = crate::published::pin();
        let mut entries = bucket.load(&guard).map_or_else(Vec::new, |entries| entries.to_vec());
        let result = change(&mut entries);
        bucket.replace((!entries.is_empty()).then(|| entries.into_boxed_slice()));
        result
    }

    fn length_bit(&self, prefix: Prefix, change: impl FnOnce(&AtomicU64, u64) -> u64) {
        let word = match prefix.addr {
            IpAddr::V4(_) => &self.lengths_v4,
            IpAddr::V6(_) => &self.lengths_v6[usize::from(prefix.len) / 64],
        };
        change(word, 1 << (prefix.len % 64));
    }
}

impl LengthCounts {
    fn of(&mut self, prefix: Prefix) -> &mut u32 {
        &mut self.0[usize::from(prefix.addr.is_ipv4())][usize::from(prefix.len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::published::pin;
    use crate::testing::{ip, packet, ts, udp};
    use proptest::prelude::*;

    /// A table with one trap per item, and what a plain search of the same policies gives.
    struct Both {
        spd: Spd,
        counts: LengthCounts,
        policies: Vec<(Arc<Policy>, Selectors, u64)>,
    }

    impl Both {
        fn new(buckets: usize) -> Self {
            Self { spd: Spd::new(buckets), counts: LengthCounts::default(), policies: Vec::new() }
        }

        fn add(&mut self, local: &str, remote: &str) -> PolicyId {
            let age = self.policies.len() as u64;
            let id = PolicyId(age as u32);
            let policy = Arc::new(Policy::new(id));
            let selectors = Selectors::new(&[ts(local)], &[ts(remote)]);
            policy.set_covers(vec![Arc::new(selectors.clone())]);
            for (prefix, rank) in prefixes(std::iter::once(&selectors), age) {
                self.spd.insert(prefix, rank, &policy, &mut self.counts);
            }
            self.policies.push((policy, selectors, age));
            id
        }

        fn remove(&mut self, id: PolicyId) {
            let at = self.policies.iter().position(|(policy, ..)| policy.id == id).unwrap();
            let (_, selectors, age) = self.policies.remove(at);
            for (prefix, _) in &prefixes(std::iter::once(&selectors), age) {
                self.spd.remove(*prefix, id, &mut self.counts);
            }
        }

        fn find(&self, bytes: &[u8]) -> Option<u32> {
            let guard = pin();
            match self.spd.lookup(&Packet::parse(bytes).unwrap(), 0, &guard) {
                Lookup::NoSa(id) => Some(id.0),
                Lookup::NoPolicy => None,
                Lookup::Sa(..) => panic!("there are no SAs here"),
            }
        }

        /// The longest prefix that holds the destination, then rank.
        fn search(&self, bytes: &[u8]) -> Option<u32> {
            let parsed = Packet::parse(bytes).unwrap();
            let mut found = Vec::new();
            for (policy, selectors, age) in &self.policies {
                if selectors.match_outbound(&parsed) {
                    for (prefix, rank) in prefixes(std::iter::once(selectors), *age) {
                        if prefix.addr.is_ipv4() == parsed.is_ipv4()
                            && Prefix::of(parsed.dst, prefix.len) == prefix
                        {
                            found.push((u8::MAX - prefix.len, rank, policy.id.0));
                        }
                    }
                }
            }
            found.into_iter().min().map(|(.., id)| id)
        }
    }

    #[test]
    fn the_longest_prefix_wins_then_the_most_specific_then_the_oldest() {
        let mut both = Both::new(1);
        let all = both.add("0.0.0.0/0", "0.0.0.0/0").0;
        let net = both.add("10.1.0.0/16", "10.2.0.0/16").0;
        let dns = both.add("10.1.0.0/16", "10.2.0.0/16[udp/53]").0;
        let host = both.add("10.1.0.9/32", "10.2.0.0/16").0;
        let later = both.add("10.1.0.0/16", "10.2.0.0/16").0;
        let find = |both: &Both, src, dst, port| both.find(&udp(src, dst, (9, port), b""));
        assert_eq!(find(&both, "10.1.0.1", "10.2.0.1", 80), Some(net));
        assert_eq!(find(&both, "10.1.0.1", "10.2.0.1", 53), Some(dns));
        assert_eq!(find(&both, "10.1.0.9", "10.2.0.1", 80), Some(host));
        assert_eq!(find(&both, "10.9.0.1", "10.2.0.1", 80), Some(all), "the source does not fit the others");
        assert_eq!(find(&both, "10.1.0.1", "8.8.8.8", 80), Some(all));
        assert_eq!(both.find(&packet("::1", "::2", 99, 0, &[])), None);
        both.remove(PolicyId(net));
        assert_eq!(find(&both, "10.1.0.1", "10.2.0.1", 80), Some(later));
        both.remove(PolicyId(later));
        both.remove(PolicyId(host));
        both.remove(PolicyId(dns));
        both.remove(PolicyId(all));
        assert_eq!(find(&both, "10.1.0.1", "10.2.0.1", 80), None);
        assert_eq!(both.spd.lengths_v4.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn fragments_fall_under_policies_without_ports_only() {
        let mut both = Both::new(8);
        let any = both.add("10.0.0.0/8", "10.0.0.0/8").0;
        let dns = both.add("10.0.0.0/8", "10.0.0.0/8[udp/53]").0;
        let mut bytes = udp("10.0.0.1", "10.0.0.2", (9, 53), b"data");
        assert_eq!(both.find(&bytes), Some(dns));
        bytes[6..8].copy_from_slice(&[0, 8]);
        assert_eq!(both.find(&bytes), Some(any));
    }

    #[test]
    fn prefixes_are_masked() {
        assert_eq!(Prefix::of(ip("10.1.2.3"), 0).addr, ip("0.0.0.0"));
        assert_eq!(Prefix::of(ip("10.1.2.3"), 32).addr, ip("10.1.2.3"));
        assert_eq!(Prefix::of(ip("ffff::1"), 4).addr, ip("f000::"));
        assert_eq!(Prefix::of(ip("::1"), 128).addr, ip("::1"));
    }

    fn selector() -> impl Strategy<Value = String> {
        let v4 = (0u8..4, 0u8..4, 8u8..=32).prop_map(|(a, b, len)| format!("10.{a}.{b}.1/{len}"));
        let v6 = (0u8..4, 0u8..=128).prop_map(|(a, len)| format!("2001:db8:{a}::1/{len}"));
        let range = (0u8..3, 0u8..9).prop_map(|(a, b)| format!("10.{a}.0.3..10.{}.1.{b}", a + 1));
        let ports =
            prop_oneof![Just(""), Just("[udp]"), Just("[udp/53]"), Just("[tcp/1-99]"), Just("[udp/opaque]")];
        (prop_oneof![4 => v4, 1 => range, 2 => v6], ports).prop_map(|(addr, ports)| format!("{addr}{ports}"))
    }

    proptest! {
        #[test]
        fn lookup_decides_as_a_plain_search_does(
            rules in proptest::collection::vec((selector(), selector()), 1..20),
            gone in proptest::collection::vec(any::<bool>(), 20),
            probes in proptest::collection::vec((0u8..4, 0u8..4, 0u8..4, any::<bool>(), 50u16..56), 1..40),
        ) {
            // So few buckets that prefixes share them.
            let mut both = Both::new(1);
            for (local, remote) in &rules {
                both.add(local, remote);
            }
            for (n, gone) in (0..rules.len()).zip(gone) {
                if gone {
                    both.remove(PolicyId(n as u32));
                }
            }
            for (a, b, c, v6, port) in probes {
                let bytes = if v6 {
                    udp(&format!("2001:db8:{a}::1"), &format!("2001:db8:{b}::1"), (port, 53), b"")
                } else {
                    udp(&format!("10.{a}.{c}.1"), &format!("10.{b}.{c}.1"), (port, 53), b"")
                };
                prop_assert_eq!(both.find(&bytes), both.search(&bytes));
            }
        }
    }
}
