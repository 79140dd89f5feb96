//! The table of IKE SAs, and where to look for one: by number, by our SPI, by Child SA, connection, peer and time.
//!
//! The SAs are the truth. The indexes are made of them whenever one is put (back) into the table, which is the only way
//! to change one; so handling a message or a timer costs the logarithm of how many SAs there are, not their number.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use mobikex_common::sa::{ChildSaId, PolicyId};
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::Identification;

use crate::config::Connection;
use crate::ike::child::{ChildSa, Place};
use crate::ike::keys::SkKeys;
use crate::ike::sa::IkeSa;

/// A first request, told from others by who sent it and the SPI in it.
type FirstRequest = (SocketAddr, IkeSpi);

/// All IKE SAs but the one that is at work.
#[derive(Default)]
pub(in crate::ike) struct Sas {
    entries: BTreeMap<u32, Entry>,
    timeouts: BTreeSet<(Instant, u32)>,
    by_spi: HashMap<IkeSpi, u32>,
    by_first_request: HashMap<FirstRequest, u32>,
    by_child: HashMap<ChildSaId, u32>,
    by_policy: Groups<PolicyId>,
    by_connection: Groups<String>,
    by_peer: Groups<Vec<u8>>,
    by_remote: Groups<IpAddr>,
    half_open: usize,
}

struct Entry {
    /// Absent while the SA is at work.
    sa: Option<Box<IkeSa>>,
    indexed: Indexed,
}

/// What the indexes know of an SA.
#[derive(Default)]
struct Indexed {
    timeout: Option<Instant>,
    spi: Option<IkeSpi>,
    /// Of an SA that the peer has initiated; it stays as long as the SA, so that a late copy of the request begins no other.
    first_request: Option<FirstRequest>,
    children: Vec<(ChildSaId, PolicyId)>,
    connection: Option<Arc<Connection>>,
    peer: Option<Vec<u8>>,
    remotes: Vec<IpAddr>,
    half_open: bool,
}

impl Indexed {
    fn set_timeout(&mut self, timeouts: &mut BTreeSet<(Instant, u32)>, id: u32, timeout: Option<Instant>) {
        if timeout != self.timeout {
            self.timeout.iter().for_each(|at| {
                timeouts.remove(&(*at, id));
            });
            timeouts.extend(timeout.map(|at| (at, id)));
            self.timeout = timeout;
        }
    }
}

/// SAs that have something in common. Most are alone with it, and there are many: only several take a set.
#[derive(Debug)]
enum Group {
    One(u32),
    Several(BTreeSet<u32>),
}

impl Group {
    /// In ascending order.
    fn iter(&self) -> impl Iterator<Item = u32> {
        let (one, several) = match self {
            Self::One(id) => (Some(*id), None),
            Self::Several(ids) => (None, Some(ids)),
        };
        one.into_iter().chain(several.into_iter().flatten().copied())
    }
}

/// The groups, by what they have in common.
struct Groups<K>(HashMap<K, Group>);

impl<K> Default for Groups<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq> Groups<K> {
    fn add(&mut self, key: K, id: u32) {
        match self.0.entry(key).or_insert(Group::One(id)) {
            Group::Several(ids) => drop(ids.insert(id)),
            Group::One(other) if *other == id => {}
            group @ Group::One(_) => *group = Group::Several(group.iter().chain([id]).collect()),
        }
    }

    fn remove(&mut self, key: &K, id: u32) {
        let Some(group) = self.0.get_mut(key) else { return };
        let empty = match group {
            Group::One(other) => *other == id,
            Group::Several(ids) => {
                ids.remove(&id);
                ids.is_empty()
            }
        };
        if empty {
            self.0.remove(key);
        }
    }
}

impl Sas {
    /// Takes up an SA, or takes one back that was at work.
    pub(in crate::ike) fn put(&mut self, mut sa: Box<IkeSa>) {
        let id = sa.id;
        // Most SAs rest most of the time, and most have one child: room for more than there is adds up.
        sa.children.shrink_to_fit();
        sa.wanted.shrink_to_fit();
        sa.mobility.table.rest();
        sa.tasks.rest();
        sa.keys.iter_mut().for_each(SkKeys::rest);
        let entry = self.entries.entry(id).or_insert_with(|| Entry { sa: None, indexed: Indexed::default() });
        let was = &mut entry.indexed;

        was.set_timeout(&mut self.timeouts, id, sa.next_timeout());
        let spi = sa.our_spi();
        if was.spi != Some(spi) {
            was.spi.iter().for_each(|spi| {
                self.by_spi.remove(spi);
            });
            self.by_spi.insert(spi, id);
            was.spi = Some(spi);
        }
        let half_open = sa.is_half_open();
        if half_open != was.half_open {
            self.half_open = self.half_open + usize::from(half_open) - usize::from(was.half_open);
            was.half_open = half_open;
        }
        if half_open && was.first_request.is_none() {
            let request = (sa.remote, sa.spi_i);
            self.by_first_request.insert(request, id);
            was.first_request = Some(request);
        }
        if !sa.children.iter().map(|c| (c.id, c.policy)).eq(was.children.iter().copied()) {
            for (child, policy) in was.children.drain(..) {
                // It may have moved to another SA meanwhile.
                if self.by_child.get(&child) == Some(&id) {
                    self.by_child.remove(&child);
                }
                self.by_policy.remove(&policy, id);
            }
            was.children.extend(sa.children.iter().map(|c| (c.id, c.policy)));
            self.by_child.extend(was.children.iter().map(|(child, _)| (*child, id)));
            was.children.iter().for_each(|(_, policy)| self.by_policy.add(*policy, id));
        }
        if was.connection.as_ref().is_none_or(|conn| conn.name != sa.conn.name) {
            was.connection.iter().for_each(|conn| self.by_connection.remove(&conn.name, id));
            self.by_connection.add(sa.conn.name.clone(), id);
            was.connection = Some(sa.conn.clone());
        }
        let peer = sa.peer().map(|peer| peer.id().key());
        if peer != was.peer {
            was.peer.iter().for_each(|peer| self.by_peer.remove(peer, id));
            peer.iter().for_each(|peer| self.by_peer.add(peer.clone(), id));
            was.peer = peer;
        }
        let mut remotes: Vec<IpAddr> = Vec::new();
        for remote in sa.remotes() {
            if !remotes.contains(&remote) {
                remotes.push(remote);
            }
        }
        if remotes != was.remotes {
            was.remotes.iter().for_each(|remote| self.by_remote.remove(remote, id));
            remotes.iter().for_each(|remote| self.by_remote.add(*remote, id));
            was.remotes = remotes;
        }
        entry.sa = Some(sa);
    }

    /// Takes an SA out for work; it is to be [`put`](Self::put) back or [`forgotten`](Self::forget).
    pub(in crate::ike) fn take(&mut self, id: u32) -> Option<Box<IkeSa>> {
        self.entries.get_mut(&id)?.sa.take()
    }

    /// Forgets an SA that was taken and ends.
    pub(super) fn forget(&mut self, id: u32) {
        let Some(Entry { indexed: was, .. }) = self.entries.remove(&id) else { return };
        was.timeout.iter().for_each(|at| {
            self.timeouts.remove(&(*at, id));
        });
        was.spi.iter().for_each(|spi| {
            self.by_spi.remove(spi);
        });
        was.first_request.iter().for_each(|request| {
            self.by_first_request.remove(request);
        });
        for (child, policy) in &was.children {
            if self.by_child.get(child) == Some(&id) {
                self.by_child.remove(child);
            }
            self.by_policy.remove(policy, id);
        }
        was.connection.iter().for_each(|conn| self.by_connection.remove(&conn.name, id));
        was.peer.iter().for_each(|peer| self.by_peer.remove(peer, id));
        was.remotes.iter().for_each(|remote| self.by_remote.remove(remote, id));
        self.half_open -= usize::from(was.half_open);
    }

    /// One SA.
    pub(in crate::ike) fn get(&self, id: u32) -> Option<&IkeSa> {
        self.entries.get(&id)?.sa.as_deref()
    }

    /// Whether there is one of this number and it is not at work.
    pub(super) fn contains(&self, id: u32) -> bool {
        self.get(id).is_some()
    }

    /// Every SA, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &IkeSa> {
        self.entries.values().filter_map(|entry| entry.sa.as_deref())
    }

    /// Those with numbers above `after`, oldest first.
    pub(super) fn after(&self, after: u32) -> impl Iterator<Item = &IkeSa> {
        self.entries.range(after.saturating_add(1)..).filter_map(|(_, entry)| entry.sa.as_deref())
    }

    /// The numbers of all, oldest first.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.entries.keys().copied().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// When the first of them has something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timeouts.first().map(|(at, _)| *at)
    }

    /// Those that have something to do at `now`, oldest first.
    pub(super) fn due(&self, now: Instant) -> Vec<u32> {
        let mut due: Vec<u32> = self.timeouts.range(..=(now, u32::MAX)).map(|(_, id)| *id).collect();
        due.sort_unstable();
        due
    }

    /// The one with this SPI of ours.
    pub(super) fn with_spi(&self, spi: IkeSpi) -> Option<&IkeSa> {
        self.get(*self.by_spi.get(&spi)?)
    }

    /// The one that this first request began.
    pub(super) fn begun_by(&self, remote: SocketAddr, spi_i: IkeSpi) -> Option<&IkeSa> {
        self.get(*self.by_first_request.get(&(remote, spi_i))?)
    }

    /// The one that has this Child SA.
    pub(super) fn owner(&self, child: ChildSaId) -> Option<u32> {
        self.by_child.get(&child).copied().filter(|id| self.contains(*id))
    }

    /// A Child SA of an IKE SA that is not at work.
    pub(in crate::ike) fn child(&self, id: ChildSaId) -> Option<&ChildSa> {
        self.get(*self.by_child.get(&id)?)?.children.iter().find(|c| c.id == id)
    }

    /// Those that have Child SAs of a policy, oldest first.
    pub(in crate::ike) fn with_policy(&self, policy: PolicyId) -> impl Iterator<Item = &IkeSa> {
        self.group(self.by_policy.0.get(&policy))
    }

    /// Notes which Child SA sends in a place. That is the one thing about SAs that are not at work that may change; only when they
    /// have something to do depends on it.
    pub(in crate::ike) fn note_sender(&mut self, now: Instant, place: Place, id: Option<ChildSaId>) {
        for number in self.by_policy.0.get(&place.0).into_iter().flat_map(Group::iter) {
            let Some(Entry { sa: Some(sa), indexed }) = self.entries.get_mut(&number) else { continue };
            for child in sa.children.iter_mut().filter(|c| c.place() == place) {
                child.note_sender(now, id);
            }
            indexed.set_timeout(&mut self.timeouts, number, sa.next_timeout());
        }
    }

    /// Those of a connection, oldest first.
    pub(in crate::ike) fn of_connection<'a>(
        &'a self,
        name: &str,
    ) -> impl Iterator<Item = &'a IkeSa> + use<'a> {
        self.group(self.by_connection.0.get(name))
    }

    /// Those whose peer has proven to be `id`, oldest first; a few others may be among them.
    pub(in crate::ike) fn of_peer<'a>(
        &'a self,
        id: &Identification,
    ) -> impl Iterator<Item = &'a IkeSa> + use<'a> {
        self.group(self.by_peer.0.get(&id.key()))
    }

    /// Those that send anything to this address, oldest first.
    pub(in crate::ike) fn sending_to(&self, remote: IpAddr) -> impl Iterator<Item = &IkeSa> {
        self.group(self.by_remote.0.get(&remote))
    }

    /// How many initiators have not authenticated yet.
    pub(super) fn half_open(&self) -> usize {
        self.half_open
    }

    fn group<'a>(&'a self, group: Option<&'a Group>) -> impl Iterator<Item = &'a IkeSa> + use<'a> {
        group.into_iter().flat_map(Group::iter).filter_map(|id| self.get(id))
    }
}

#[cfg(test)]
impl Sas {
    /// Asserts that every index says what the SAs say. The tests' two endpoints are asked after every step.
    pub(in crate::ike) fn check(&self) {
        let all: Vec<&IkeSa> = self.iter().collect();
        assert_eq!(all.len(), self.entries.len(), "one has not come back from work");
        let timeouts = all.iter().filter_map(|sa| Some((sa.next_timeout()?, sa.id)));
        assert_eq!(self.timeouts, timeouts.collect());
        assert_eq!(self.by_spi, all.iter().map(|sa| (sa.our_spi(), sa.id)).collect());
        let children = all.iter().flat_map(|sa| sa.children.iter().map(|c| (c.id, sa.id)));
        assert_eq!(self.by_child, children.collect());
        for (policy, ids) in &self.by_policy.0 {
            let has_it = |sa: &&&IkeSa| sa.children.iter().any(|c| c.policy == *policy);
            assert!(ids.iter().eq(all.iter().filter(has_it).map(|sa| sa.id)));
            // Whoever sends is alone in its place, whichever IKE SA it belongs to.
            let senders =
                all.iter().flat_map(|sa| &sa.children).filter(|c| c.policy == *policy && c.outbound);
            let places: Vec<Place> = senders.map(ChildSa::place).collect();
            assert!(places.iter().all(|place| places.iter().filter(|p| *p == place).count() == 1));
        }
        let policies = all.iter().flat_map(|sa| sa.children.iter().map(|c| c.policy));
        assert_eq!(self.by_policy.0.len(), policies.collect::<BTreeSet<_>>().len());
        assert_eq!(self.half_open, all.iter().filter(|sa| sa.is_half_open()).count());
        let group = |keys: Vec<(Vec<u8>, u32)>| {
            let mut groups = HashMap::<Vec<u8>, BTreeSet<u32>>::new();
            keys.into_iter().for_each(|(key, id)| {
                groups.entry(key).or_default().insert(id);
            });
            groups
        };
        let peers = all.iter().filter_map(|sa| Some((sa.peer()?.id().key(), sa.id)));
        let set = |group: &Group| group.iter().collect::<BTreeSet<u32>>();
        let known = self.by_peer.0.iter().map(|(key, ids)| (key.clone(), set(ids)));
        assert_eq!(known.collect::<HashMap<_, _>>(), group(peers.collect()));
        let connections = all.iter().map(|sa| (sa.conn.name.clone().into_bytes(), sa.id));
        let known = self.by_connection.0.iter().map(|(name, ids)| (name.clone().into_bytes(), set(ids)));
        assert_eq!(known.collect::<HashMap<_, _>>(), group(connections.collect()));
        for sa in &all {
            assert!(sa.remotes().all(|remote| self.by_remote.0[&remote].iter().any(|id| id == sa.id)));
        }
        for (remote, ids) in &self.by_remote.0 {
            assert!(ids.iter().all(|id| self.get(id).unwrap().remotes().any(|r| r == *remote)));
        }
        assert!(self.by_first_request.values().all(|id| self.contains(*id)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::ike::Command;
    use crate::ike::testing::Pair;

    #[test]
    fn an_sa_that_ends_leaves_no_index_behind() {
        let mut pair = Pair::up(|_, conn| conn.rekey_time = Duration::from_secs(60));
        pair.run(Duration::from_secs(200));
        assert!(pair.ends[1].sas.ids().iter().all(|id| *id > 1), "it was rekeyed");
        pair.command(0, Command::Down { connection: "home".into(), child: None });
        pair.run(Duration::from_secs(30));
        for end in &pair.ends {
            let sas = &end.sas;
            assert!(
                sas.is_empty() && sas.timeouts.is_empty() && sas.by_spi.is_empty() && sas.by_child.is_empty()
            );
            assert!(sas.by_policy.0.is_empty());
            assert!(sas.by_first_request.is_empty() && sas.by_connection.0.is_empty());
            assert!(sas.by_peer.0.is_empty() && sas.by_remote.0.is_empty() && sas.half_open == 0);
        }
    }

    #[test]
    fn half_open_sas_are_counted_until_they_authenticate_or_their_time_is_over() {
        let mut pair = Pair::new(|_, _| {});
        pair.start(0);
        let request = pair.take(1, |_| true).unwrap();
        pair.deliver(1, request.clone());
        assert_eq!(pair.ends[1].sas.half_open(), 1);
        assert!(
            pair.ends[1]
                .sas
                .begun_by(request.source, pair.ends[0].sas.iter().next().unwrap().spi_i)
                .is_some()
        );
        pair.run(Duration::from_secs(1));
        assert_eq!(pair.ends[1].sas.half_open(), 0);
        let mut pair = Pair::new(|_, _| {});
        pair.start(0);
        let request = pair.take(1, |_| true).unwrap();
        pair.deliver(1, request);
        assert!(pair.take(0, |_| true).is_some(), "the answer, which is lost");
        let due = pair.ends[1].next_timeout().unwrap();
        pair.ends[1].handle_timeout(due - Duration::from_millis(1));
        assert_eq!(pair.ends[1].sas.half_open(), 1);
        pair.ends[1].handle_timeout(due);
        assert!(pair.ends[1].sas.is_empty() && pair.ends[1].sas.half_open() == 0);
    }
}
