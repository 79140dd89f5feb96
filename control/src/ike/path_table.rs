//! Which pairs of addresses work: what probes have shown, for one IKE SA and all its Child SAs.
//!
//! A probe is an encrypted ESP echo with unpredictable data, so that an answer proves the whole round trip. While a
//! path carries traffic it is probed every `interval`, otherwise now and then; one that is down, every second and
//! for ever. It goes down after two probes in a row without an answer (four where the network loses many anyway)
//! and comes back after three with one. A probe that is lost is followed by others in quick succession, and a path over
//! which the peer is heard all the while gets more of them: it is more likely full than dead.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mobikex_common::addr::Path;
use serde::Serialize;

use super::path_rate::{self, PathRate, WHOLE};

/// Time between probes of a path that is up while there is no traffic.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);
/// Time between probes of a path that is down or has not been seen up.
const DOWN_INTERVAL: Duration = Duration::from_secs(1);
/// Between the answers that bring a path back.
const RETURN_INTERVAL: Duration = Duration::from_millis(100);
/// An answer is awaited at least this much longer than the path's own round trip takes.
const MARGIN: Duration = Duration::from_millis(20);
/// An answer that is late by no more shows that the path works after all.
const LATE: Duration = Duration::from_secs(1);
/// How long the first answers are awaited, when nothing is known about the path.
const UNKNOWN_RTT: Duration = Duration::from_secs(1);
/// Answers in a row that bring a path back.
const ANSWERS: u32 = 3;
/// Probes whose answers are awaited at a time.
const OUTSTANDING: usize = 32;
/// Probes in a row that must be lost to bring a path down.
const LOST: u32 = 2;
/// The same where more than this share of probes (in 1/1000) is lost anyway.
const LOSSY: u32 = 100;
const LOST_OF_MANY: u32 = 4;
/// The same while the peer's packets arrive over the path.
const LOST_BUT_HEARD: u32 = 8;
/// After a lost probe others follow in this part of the interval.
const HASTE: u32 = 4;
/// Traffic is over when nothing was sent for this many probes.
const QUIET_PROBES: u32 = 5;

/// What is known about a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Nothing has come back over it yet.
    Unknown,
    /// It works.
    Up,
    /// Probes come to nothing.
    Down,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        })
    }
}

/// A probe to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Probe {
    pub(super) path: Path,
    pub(super) identifier: u16,
    pub(super) sequence: u16,
    pub(super) cookie: u64,
}

#[derive(Clone)]
struct Sent {
    sequence: u16,
    cookie: u64,
    at: Instant,
    /// Counted as lost. Its answer may still come, as where a queue has grown meanwhile.
    overdue: bool,
}

/// One pair of addresses.
#[derive(Clone)]
pub(super) struct PathState {
    pub(super) path: Path,
    pub(super) health: Health,
    /// Smoothed round trip.
    pub(super) rtt: Option<Duration>,
    /// Smoothed deviation from it.
    deviation: Duration,
    /// Smoothed loss of probes in 1/1000.
    pub(super) loss: u32,
    /// What it has been seen to carry, and its share beside the best one that follows from it.
    rate: PathRate,
    share: u16,
    identifier: u16,
    sequence: u16,
    sent: VecDeque<Sent>,
    next: Instant,
    /// In a row.
    pub(super) missed: u32,
    answered: u32,
    /// Packets from the peer over it so far, and whether any came between the last two readings.
    packets_in: u64,
    heard: bool,
}

impl PathState {
    fn new(path: Path, health: Health, identifier: u16, now: Instant) -> Self {
        Self {
            path,
            health,
            rtt: None,
            deviation: Duration::ZERO,
            loss: 0,
            rate: PathRate::default(),
            share: WHOLE,
            identifier,
            sequence: 0,
            sent: VecDeque::new(),
            next: now,
            missed: 0,
            answered: 0,
            packets_in: 0,
            heard: false,
        }
    }

    /// How long the answer to a probe is awaited: as TCP computes it (RFC 6298 2).
    fn patience(&self, interval: Duration) -> Duration {
        self.rtt.map_or(UNKNOWN_RTT, |rtt| (rtt + self.deviation * 4 + MARGIN).max(interval))
    }

    fn note_rtt(&mut self, rtt: Duration) {
        self.rate.note_rtt(rtt);
        // The first packets wait for neighbours to be found: what they took says nothing about the path.
        let Some(old) = self.rtt.filter(|old| rtt * 2 > *old) else {
            (self.rtt, self.deviation) = (Some(rtt), rtt / 2);
            return;
        };
        self.deviation = (self.deviation * 3 + old.abs_diff(rtt)) / 4;
        self.rtt = Some((old * 7 + rtt) / 8);
    }

    fn deadline(&self, interval: Duration) -> Option<Instant> {
        self.sent.iter().find(|sent| !sent.overdue).map(|sent| sent.at + self.patience(interval))
    }

    /// Time between probes of a path that is up. All of them are remembered until their answers are overdue.
    fn pace(&self, wanted: Duration, interval: Duration) -> Duration {
        wanted.max(self.patience(interval) * 2 / OUTSTANDING as u32)
    }

    fn limit(&self) -> u32 {
        match (self.heard, self.loss > LOSSY) {
            (true, _) => LOST_BUT_HEARD,
            (false, true) => LOST_OF_MANY,
            (false, false) => LOST,
        }
    }

    fn note_loss(&mut self, lost: bool) {
        self.loss = (self.loss * 31 + if lost { 1000 } else { 0 }) / 32;
    }
}

/// All pairs of an IKE SA.
#[derive(Clone)]
pub(super) struct PathTable {
    paths: Vec<PathState>,
    interval: Duration,
    identifiers: u16,
    busy: bool,
    quiet: u32,
    packets: u64,
}

impl PathTable {
    pub(super) fn new(interval: Duration) -> Self {
        Self { paths: Vec::new(), interval, identifiers: 0, busy: true, quiet: 0, packets: 0 }
    }

    /// Takes no more room than it needs, as long as nothing happens.
    pub(super) fn rest(&mut self) {
        self.paths.shrink_to_fit();
    }

    /// A pair that has just carried something both ways.
    pub(super) fn proven(&mut self, path: Path, now: Instant) {
        match self.paths.iter_mut().find(|p| p.path == path) {
            Some(known) => {
                known.health = Health::Up;
                known.missed = 0;
                // Watched from now on, not at the pace of a path that is not up.
                known.next = known.next.min(now + self.interval);
            }
            None => self.insert(path, Health::Up, now),
        }
    }

    /// A pair over which a request has just been answered by itself.
    pub(super) fn tested(&mut self, path: Path, rtt: Duration, now: Instant) {
        self.proven(path, now);
        if let Some(known) = self.paths.iter_mut().find(|p| p.path == path) {
            known.note_rtt(rtt);
        }
    }

    /// Takes in the octets sent over each path so far; whether shares have changed by enough to matter.
    pub(super) fn note_octets(&mut self, octets: &[(Path, u64)], now: Instant) -> bool {
        let mut up: Vec<&mut PathState> = self.paths.iter_mut().filter(|p| p.health == Health::Up).collect();
        for path in &mut up {
            let sum = octets.iter().filter(|(p, _)| *p == path.path).map(|(_, octets)| octets).sum();
            path.rate.read(sum, path.rtt, path.loss, now);
        }
        let old: Vec<u16> = up.iter().map(|p| p.share).collect();
        let mut rates: Vec<&mut PathRate> = up.iter_mut().map(|p| &mut p.rate).collect();
        let new = path_rate::shares(&mut rates).filter(|new| path_rate::differ(&old, new));
        for (path, share) in up.iter_mut().zip(new.iter().flatten()) {
            path.share = *share;
        }
        new.is_some()
    }

    /// A path's share of the traffic beside the best one's, of [`WHOLE`].
    pub(super) fn share(&self, path: &Path) -> u16 {
        self.get(path).map_or(WHOLE, |p| p.share)
    }

    fn insert(&mut self, path: Path, health: Health, now: Instant) {
        self.identifiers = self.identifiers.wrapping_add(1);
        self.paths.push(PathState::new(path, health, self.identifiers, now));
    }

    /// Makes the table hold exactly `wanted`.
    pub(super) fn keep(&mut self, wanted: &[Path], now: Instant) {
        self.paths.retain(|p| wanted.contains(&p.path));
        for path in wanted {
            if self.get(path).is_none() {
                self.insert(*path, Health::Unknown, now);
            }
        }
    }

    pub(super) fn get(&self, path: &Path) -> Option<&PathState> {
        self.paths.iter().find(|p| p.path == *path)
    }

    pub(super) fn health(&self, path: &Path) -> Health {
        self.get(path).map_or(Health::Unknown, |p| p.health)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PathState> {
        self.paths.iter()
    }

    /// The greatest difference between the round trips of two paths: how far the fastest can be ahead.
    pub(super) fn spread(&self) -> Duration {
        let up = || self.paths.iter().filter(|p| p.health == Health::Up).filter_map(|p| p.rtt);
        up().max().unwrap_or_default() - up().min().unwrap_or_default()
    }

    /// A single path has no alternative, so that knowing its state would change nothing.
    fn worth_probing(&self) -> bool {
        self.paths.len() > 1
    }

    /// Traffic has begun.
    pub(super) fn wake(&mut self, now: Instant) {
        if !self.busy {
            (self.busy, self.quiet) = (true, 0);
            for path in &mut self.paths {
                path.next = path.next.min(now);
            }
        }
    }

    /// Takes in what there was of traffic so far when a probe is sent on `path`: packets sent on all paths, and
    /// packets that came over this one.
    pub(super) fn note_traffic(&mut self, path: &Path, packets: u64, packets_in: u64) {
        if let Some(known) = self.paths.iter_mut().find(|p| p.path == *path) {
            known.heard = packets_in > known.packets_in;
            known.packets_in = packets_in;
        }
        self.quiet = if packets == self.packets { self.quiet + 1 } else { 0 };
        self.packets = packets;
        self.busy = self.quiet < QUIET_PROBES * self.paths.len().max(1) as u32;
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Paths to an address that has just been shown to be the peer's: probed without delay.
    pub(super) fn hurry(&mut self, remote: SocketAddr, now: Instant) {
        for path in self.paths.iter_mut().filter(|p| p.path.remote == remote) {
            path.next = path.next.min(now);
        }
    }

    /// The probes that are due, on paths that `may` have some.
    pub(super) fn due(
        &mut self,
        now: Instant,
        may: impl Fn(&Path) -> bool,
        mut cookie: impl FnMut() -> u64,
    ) -> Vec<Probe> {
        if !self.worth_probing() {
            return Vec::new();
        }
        let (busy, interval) = (self.busy, self.interval);
        let mut probes = Vec::new();
        for path in self.paths.iter_mut().filter(|p| p.next <= now) {
            if !may(&path.path) {
                path.next = now + DOWN_INTERVAL;
                continue;
            }
            path.sequence = path.sequence.wrapping_add(1);
            if path.sent.len() == OUTSTANDING {
                path.sent.pop_front();
            }
            let probe = Probe {
                path: path.path,
                identifier: path.identifier,
                sequence: path.sequence,
                cookie: cookie(),
            };
            path.sent.push_back(Sent {
                sequence: path.sequence,
                cookie: probe.cookie,
                at: now,
                overdue: false,
            });
            path.next = now
                + match path.health {
                    Health::Up if path.missed > 0 => path.pace(interval / HASTE, interval),
                    Health::Up if busy => path.pace(interval, interval),
                    Health::Up => IDLE_INTERVAL,
                    _ if path.answered > 0 => RETURN_INTERVAL,
                    _ => DOWN_INTERVAL,
                };
            probes.push(probe);
        }
        probes
    }

    /// Takes in an answer; the path, if its health has changed.
    pub(super) fn answer(
        &mut self,
        identifier: u16,
        sequence: u16,
        cookie: u64,
        at: Instant,
    ) -> Option<Path> {
        let interval = self.interval;
        let path = self.paths.iter_mut().find(|p| p.identifier == identifier)?;
        let index = path.sent.iter().position(|s| s.sequence == sequence && s.cookie == cookie)?;
        let sent = path.sent.remove(index)?;
        // What was sent before it and is still open counts as lost: a path keeps order.
        let lost = path.sent.drain(..index).filter(|sent| !sent.overdue).count();
        (0..lost).for_each(|_| path.note_loss(true));
        path.note_loss(false);
        path.note_rtt(at.saturating_duration_since(sent.at));
        path.missed = 0;
        path.answered += 1;
        let before = path.health;
        match path.health {
            Health::Unknown => path.health = Health::Up,
            Health::Down if path.answered >= ANSWERS => path.health = Health::Up,
            // The next ones come quickly.
            Health::Down => path.next = path.next.min(at + RETURN_INTERVAL),
            Health::Up => {}
        }
        if path.health == before {
            return None;
        }
        // The pace of a path that was not up would leave it unwatched for a while.
        path.next = path.next.min(at + interval);
        Some(path.path)
    }

    /// Gives up probes that are overdue; the paths that went down by it.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Path> {
        let interval = self.interval;
        let mut down = Vec::new();
        for path in &mut self.paths {
            let patience = path.patience(interval);
            path.sent.retain(|sent| now < sent.at + patience + LATE);
            while let Some(sent) = path.sent.iter_mut().find(|sent| !sent.overdue) {
                if sent.at + patience > now {
                    break;
                }
                sent.overdue = true;
                path.note_loss(true);
                path.missed += 1;
                path.answered = 0;
                path.next = path.next.min(now + path.pace(interval / HASTE, interval));
                if path.health == Health::Up && path.missed >= path.limit() {
                    path.health = Health::Down;
                    path.next = now + DOWN_INTERVAL;
                    down.push(path.path);
                }
            }
        }
        down
    }

    /// A path is known to be gone, since its address is.
    pub(super) fn fail(&mut self, gone: impl Fn(&Path) -> bool, now: Instant) -> bool {
        let mut changed = false;
        for path in self.paths.iter_mut().filter(|p| gone(&p.path) && p.health != Health::Down) {
            path.health = Health::Down;
            path.answered = 0;
            path.next = now + DOWN_INTERVAL;
            changed = true;
        }
        changed
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        if !self.worth_probing() {
            return None;
        }
        let deadlines = self.paths.iter().filter_map(|p| p.deadline(self.interval));
        self.paths.iter().map(|p| p.next).chain(deadlines).min()
    }
}

/// What is known about a path, as an operator sees it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PathView {
    /// The pair.
    pub path: Path,
    /// Up, down, or nothing known yet.
    pub health: Health,
    /// Smoothed round trip in microseconds.
    pub rtt_us: Option<u64>,
    /// Smoothed loss of probes in 1/1000.
    pub loss_permille: u32,
    /// What it has been seen to carry when it was full, in bit/s.
    pub rate_bps: Option<u64>,
}

impl From<&PathState> for PathView {
    fn from(state: &PathState) -> Self {
        Self {
            path: state.path,
            health: state.health,
            rtt_us: state.rtt.map(|rtt| rtt.as_micros() as u64),
            loss_permille: state.loss,
            rate_bps: state.rate.bits_per_second(),
        }
    }
}

/// The pair of two addresses.
pub(super) fn path(local: SocketAddr, remote: SocketAddr) -> Path {
    Path { local, remote }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const INTERVAL: Duration = Duration::from_millis(100);

    fn pair(n: u8) -> Path {
        path(format!("192.0.2.{n}:4500").parse().unwrap(), "198.51.100.1:4500".parse().unwrap())
    }

    fn table(now: Instant) -> PathTable {
        let mut table = PathTable::new(INTERVAL);
        table.proven(pair(1), now);
        table.keep(&[pair(1), pair(2)], now);
        table
    }

    #[test]
    fn a_slow_path_that_dies_is_noticed_however_quickly_it_is_probed() {
        let start = Instant::now();
        let quick = 10 * MS;
        let mut table = PathTable::new(quick);
        table.proven(pair(1), start);
        table.keep(&[pair(1), pair(2)], start);
        let mut packets = 0;
        for step in 0..4000 {
            let now = start + step * MS;
            for probe in table.due(now, |_| true, || 1) {
                packets += 1;
                table.note_traffic(&probe.path, packets, 0);
            }
            if table.expire(now).contains(&pair(1)) {
                return;
            }
        }
        panic!("nobody has answered for four seconds, and the path still counts as up");
    }

    /// Runs until `end`, answering the probes of paths for which `alive` is true after `rtt`.
    fn run(
        table: &mut PathTable,
        now: &mut Instant,
        end: Instant,
        rtt: Duration,
        packets: &mut dyn FnMut() -> u64,
        heard: &mut dyn FnMut(Path) -> u64,
        alive: &dyn Fn(Path, Instant) -> bool,
    ) -> Vec<(Path, Health, Instant)> {
        let answer = |path, at| alive(path, at).then_some(rtt);
        run_answering(table, now, end, packets, heard, &answer)
    }

    /// Runs until `end`; `answer` tells after what time a probe is answered, if it is.
    fn run_answering(
        table: &mut PathTable,
        now: &mut Instant,
        end: Instant,
        packets: &mut dyn FnMut() -> u64,
        heard: &mut dyn FnMut(Path) -> u64,
        answer: &dyn Fn(Path, Instant) -> Option<Duration>,
    ) -> Vec<(Path, Health, Instant)> {
        let mut changes = Vec::new();
        let mut flying: Vec<(Instant, Probe)> = Vec::new();
        let mut cookie = 0;
        loop {
            let next = flying.iter().map(|(at, _)| *at).chain(table.next_timeout()).min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            *now = next.max(*now);
            let (arrived, rest) = flying.into_iter().partition(|(at, _)| *at <= *now);
            flying = rest;
            for (at, probe) in arrived {
                changes.extend(
                    table
                        .answer(probe.identifier, probe.sequence, probe.cookie, at)
                        .map(|p| (p, Health::Up, *now)),
                );
            }
            changes.extend(table.expire(*now).into_iter().map(|p| (p, Health::Down, *now)));
            for probe in table.due(
                *now,
                |_| true,
                || {
                    cookie += 1;
                    cookie
                },
            ) {
                table.note_traffic(&probe.path, packets(), heard(probe.path));
                flying.extend(answer(probe.path, *now).map(|rtt| (*now + rtt, probe)));
            }
        }
        *now = end;
        changes
    }

    fn traffic() -> impl FnMut() -> u64 {
        let mut packets = 0;
        move || {
            packets += 1;
            packets
        }
    }

    fn silence(_: Path) -> u64 {
        0
    }

    #[test]
    fn a_cut_is_noticed_within_three_intervals_and_the_path_comes_back() {
        let start = Instant::now();
        let (mut now, mut table) = (start, table(start));
        let mut packets = traffic();
        let changes =
            run(&mut table, &mut now, start + 2000 * MS, 20 * MS, &mut packets, &mut silence, &|_, _| true);
        assert_eq!(changes, [(pair(2), Health::Up, start + 20 * MS)]);
        let cut = now + 37 * MS;
        let alive = |path: Path, at: Instant| path != pair(1) || at < cut;
        let changes = run(&mut table, &mut now, cut + 5000 * MS, 20 * MS, &mut packets, &mut silence, &alive);
        assert_eq!(changes.len(), 1);
        assert!(changes[0].0 == pair(1) && changes[0].2 <= cut + 3 * INTERVAL, "{:?}", changes[0].2 - cut);
        let again = now;
        let changes =
            run(&mut table, &mut now, again + 5000 * MS, 20 * MS, &mut packets, &mut silence, &|_, _| true);
        assert_eq!(changes.len(), 1);
        assert!(changes[0].2 <= again + 1500 * MS);
    }

    /// Packets get lost where a queue is full, but the peer's come through.
    #[test]
    fn a_path_that_is_full_is_not_taken_for_dead() {
        let start = Instant::now();
        let (mut now, mut table) = (start, table(start));
        let (mut packets, mut came) = (traffic(), traffic());
        run(&mut table, &mut now, start + 1000 * MS, 80 * MS, &mut packets, &mut silence, &|_, _| true);
        // Three of ten probes, by a fixed pattern without period.
        let coin = std::cell::Cell::new(1u32);
        let alive = |_, _| {
            coin.set(coin.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
            (coin.get() >> 16) % 10 >= 3
        };
        let end = now + 20_000 * MS;
        let changes = run(&mut table, &mut now, end, 80 * MS, &mut packets, &mut |_| came(), &alive);
        assert_eq!(changes, []);
        let silent =
            run(&mut table, &mut now, end + 20_000 * MS, 80 * MS, &mut packets, &mut silence, &alive);
        assert!(!silent.is_empty(), "the same without a word from the peer");
    }

    /// A queue grows faster than the estimate of the round trip.
    #[test]
    fn late_answers_are_answers() {
        let start = Instant::now();
        let (mut now, mut table) = (start, table(start));
        let mut packets = traffic();
        let rtt = |_, at: Instant| {
            let phase = (at - start).as_secs() as usize / 3;
            Some([20, 150, 220, 20][phase] * MS)
        };
        let end = start + 12_000 * MS - MS;
        let changes = run_answering(&mut table, &mut now, end, &mut packets, &mut silence, &rtt);
        assert_eq!(changes, [(pair(2), Health::Up, start + 20 * MS)]);
        assert_eq!(table.get(&pair(1)).unwrap().missed, 0);
    }

    /// What we send is lost, though the peer's packets arrive.
    #[test]
    fn a_path_that_is_dead_in_one_direction_goes_down() {
        let start = Instant::now();
        let (mut now, mut table) = (start, table(start));
        let (mut packets, mut came) = (traffic(), traffic());
        run(&mut table, &mut now, start + 1000 * MS, 20 * MS, &mut packets, &mut silence, &|_, _| true);
        let cut = now;
        let alive = |path: Path, _| path != pair(1);
        let changes =
            run(&mut table, &mut now, cut + 3000 * MS, 20 * MS, &mut packets, &mut |_| came(), &alive);
        assert_eq!(changes.len(), 1);
        assert!(changes[0].0 == pair(1) && changes[0].2 <= cut + 5 * INTERVAL, "{:?}", changes[0].2 - cut);
    }

    #[test]
    fn without_traffic_probes_are_few_and_traffic_wakes_them() {
        let start = Instant::now();
        let (mut now, mut table) = (start, table(start));
        run(&mut table, &mut now, start + 10_000 * MS, 20 * MS, &mut || 7, &mut silence, &|_, _| true);
        assert!(!table.is_busy());
        let sequence = table.get(&pair(1)).unwrap().sequence;
        run(&mut table, &mut now, start + 40_000 * MS, 20 * MS, &mut || 7, &mut silence, &|_, _| true);
        let idle = table.get(&pair(1)).unwrap().sequence - sequence;
        assert!((5..=7).contains(&idle), "{idle} probes in 30 s");
        table.wake(now);
        assert_eq!(table.next_timeout(), Some(now));
        assert_eq!(table.due(now, |_| true, || 1).len(), 2);
    }

    #[test]
    fn an_answer_must_repeat_the_unpredictable_data() {
        let now = Instant::now();
        let mut table = table(now);
        let probes = table.due(now, |_| true, || 42);
        let probe = probes.iter().find(|p| p.path == pair(2)).unwrap();
        assert_eq!(table.answer(probe.identifier, probe.sequence, 43, now), None);
        assert_eq!(table.answer(probe.identifier + 7, probe.sequence, 42, now), None);
        assert_eq!(table.health(&pair(2)), Health::Unknown);
        assert_eq!(table.answer(probe.identifier, probe.sequence, 42, now + 5 * MS), Some(pair(2)));
        assert_eq!(table.answer(probe.identifier, probe.sequence, 42, now + 5 * MS), None, "only once");
        assert_eq!(table.get(&pair(2)).unwrap().rtt, Some(5 * MS));
        assert_eq!(table.get(&pair(2)).unwrap().next, now + 5 * MS + INTERVAL, "watched from now on");
    }

    #[test]
    fn a_slow_first_answer_is_forgotten_soon() {
        let mut path = PathState::new(pair(1), Health::Up, 1, Instant::now());
        path.note_rtt(1500 * MS);
        assert!(path.patience(INTERVAL) > 3000 * MS);
        for _ in 0..3 {
            path.note_rtt(10 * MS);
        }
        assert_eq!(path.patience(INTERVAL), INTERVAL);
    }

    #[test]
    fn a_single_path_is_not_probed() {
        let now = Instant::now();
        let mut table = PathTable::new(INTERVAL);
        table.proven(pair(1), now);
        assert!(table.due(now, |_| true, || 1).is_empty() && table.next_timeout().is_none());
    }
}
