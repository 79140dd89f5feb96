//! What can be said of an address set before any packet is there: computed once at publication, shared by all the
//! SAs that have the set.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};

use mobikex_common::addr::{AddressSet, Path, Scheduler};

use super::{SEED, fold};

/// Places over which a set's traffic is divided: a weight counts in steps of 1/256 of the whole.
pub(super) const BUCKETS: usize = 256;

/// An address set with the choices that follow from it.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) set: AddressSet,
    /// By the scheduler: the path of each class of flows, or that of each packet in turn. A single one where there is no
    /// choice, as for most SAs, and none when no path may send.
    buckets: Box<[u16]>,
    /// Paths that may send, greatest weight first, and of equal ones the first.
    pub(super) ranked: Box<[u16]>,
    /// By which a flow remembers its path: one for each of `ranked`, all different and none 0. Empty where flows are
    /// not assigned to paths.
    pub(super) keys: Box<[u16]>,
    /// Differs, nearly always, between plans that divide traffic differently.
    pub(super) epoch: u8,
    /// One of them is not proven to lead to the peer.
    pub(super) limited: bool,
}

impl Plan {
    pub(super) fn new(set: AddressSet) -> Self {
        // More paths than the index holds are beyond any bound of the control side; they would only receive.
        let sending = (0..=u16::MAX).zip(&set.paths).filter(|(_, path)| path.weight > 0);
        let mut ranked: Box<[u16]> = sending.map(|(index, _)| index).collect();
        ranked.sort_by_key(|index| Reverse(set.paths[usize::from(*index)].weight));
        let buckets: Box<[u16]> = match (set.scheduler, ranked.first()) {
            (_, None) => Box::default(),
            (_, Some(only)) if ranked.len() == 1 => Box::new([*only]),
            (Scheduler::Flow, _) => rendezvous(&set, &ranked),
            (Scheduler::Packet, _) => turns(&set, &ranked),
            (Scheduler::Backup | Scheduler::Redundant, Some(first)) => Box::new([*first]),
        };
        // Also when only one of several may send now: what flows carry is known when another comes back.
        let assigns = set.scheduler == Scheduler::Flow && (2..=BUCKETS).contains(&set.paths.len());
        let keys = if assigns { short_keys(&set, &ranked) } else { Box::default() };
        let parts =
            ranked.iter().zip(&keys).map(|(index, key)| (set.paths[usize::from(*index)].weight, *key));
        let epoch =
            parts.fold(SEED, |hash, (weight, key)| fold(hash, u64::from(weight) << 16 | u64::from(key)));
        let limited = ranked.iter().any(|index| set.paths[usize::from(*index)].limited);
        Self { set, buckets, ranked, keys, epoch: (epoch >> 56) as u8, limited }
    }

    /// The path for a packet: of the flow `flow_hash`, the `turn`-th of its SA.
    pub(super) fn choose(&self, flow_hash: u64, turn: u64) -> Option<usize> {
        let bucket = match self.set.scheduler {
            // Consecutive turns, so that the least bits count; the best bits of the hash are the upper ones.
            Scheduler::Packet => turn as usize,
            _ => (flow_hash >> 56) as usize,
        };
        // There are 256, one or none of them.
        self.buckets.get(bucket & self.buckets.len().wrapping_sub(1)).map(|index| usize::from(*index))
    }

    /// The rank of the path with this place in the set.
    pub(super) fn rank(&self, index: usize) -> Option<usize> {
        self.ranked.iter().position(|ranked| usize::from(*ranked) == index)
    }
}

/// Each bucket goes to the path that scores highest in it (weighted rendezvous hashing). A score depends on the
/// path and the bucket alone, so that a path which comes takes buckets from the others and one which goes leaves
/// its own to them, and no other bucket moves.
fn rendezvous(set: &AddressSet, ranked: &[u16]) -> Box<[u16]> {
    let paths = || ranked.iter().map(|index| (*index, &set.paths[usize::from(*index)]));
    let keys: Vec<u64> = paths().map(|(index, path)| key(set, usize::from(index), &path.path)).collect();
    let bucket = |bucket: u64| {
        let score = |key: u64, weight: u16| {
            // Uniform in (0, 1); its logarithm over the weight wins in proportion to the weight.
            let point = (mix(key ^ mix(bucket + 1)) >> 11) as f64 + 0.5;
            (point / (1u64 << 53) as f64).ln() / f64::from(weight)
        };
        let scores = paths().zip(&keys).map(|((index, path), key)| (score(*key, path.weight), index));
        scores.max_by(|a, b| a.0.total_cmp(&b.0)).map_or(0, |(_, index)| index)
    };
    (0..BUCKETS as u64).map(bucket).collect()
}

/// The keys of paths cut to 16 bits, and made different from each other.
fn short_keys(set: &AddressSet, ranked: &[u16]) -> Box<[u16]> {
    let mut keys: Vec<u16> = Vec::with_capacity(ranked.len());
    for index in ranked.iter().copied().map(usize::from) {
        let mut key = mix(key(set, index, &set.paths[index].path)) as u16;
        while key == 0 || keys.contains(&key) {
            key = key.wrapping_add(1);
        }
        keys.push(key);
    }
    keys.into()
}

/// What a path is to the hash: its addresses. A NAT that changes a port does not move flows; paths that differ in
/// the port alone are told apart by their order.
fn key(set: &AddressSet, index: usize, path: &Path) -> u64 {
    let addresses = |path: &Path| (path.local.ip(), path.remote.ip());
    let twins = set.paths[..index].iter().filter(|p| addresses(&p.path) == addresses(path)).count();
    let end = |hash, end: SocketAddr| match end.ip() {
        IpAddr::V4(a) => fold(hash, u32::from(a).into()),
        IpAddr::V6(a) => fold(fold(hash, (u128::from(a) >> 64) as u64), u128::from(a) as u64),
    };
    fold(end(end(SEED, path.local), path.remote), twins as u64)
}

/// A mixer whose every output bit depends on every input bit: scores of neighbouring buckets and addresses must be
/// independent.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The paths in turn, each as often as its weight says and as evenly as can be (smooth weighted round robin). A
/// path of however small a weight has a turn.
fn turns(set: &AddressSet, ranked: &[u16]) -> Box<[u16]> {
    let ranked = &ranked[..ranked.len().min(BUCKETS)];
    let weight = |index: &u16| u64::from(set.paths[usize::from(*index)].weight);
    let total: u64 = ranked.iter().map(weight).sum();
    // One turn each, and of the others a share rounded down; what remains goes to the largest remainders.
    let spare = (BUCKETS - ranked.len()) as u64;
    let mut quotas: Vec<u64> = ranked.iter().map(|index| 1 + weight(index) * spare / total).collect();
    let mut by_remainder: Vec<usize> = (0..ranked.len()).collect();
    by_remainder.sort_by_key(|n| Reverse(weight(&ranked[*n]) * spare % total));
    let left = BUCKETS as u64 - quotas.iter().sum::<u64>();
    for n in by_remainder.into_iter().take(left as usize) {
        quotas[n] += 1;
    }
    let mut credits = vec![0i64; ranked.len()];
    let turn = |_| {
        for (credit, quota) in credits.iter_mut().zip(&quotas) {
            *credit += *quota as i64;
        }
        // The first of the greatest credit: `max_by_key` alone would take the last.
        let next = (0..credits.len()).rev().max_by_key(|n| credits[*n]).unwrap_or(0);
        credits[next] -= BUCKETS as i64;
        ranked[next]
    };
    (0..BUCKETS).map(turn).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::set;
    use super::*;
    use mobikex_common::addr::WeightedPath;
    use proptest::prelude::*;

    /// The path of each bucket, whether all of them are kept or one that stands for all.
    fn indices(plan: &Plan) -> impl Iterator<Item = usize> {
        (0..BUCKETS as u64).filter_map(|bucket| plan.choose(bucket << 56, bucket))
    }

    fn shares(plan: &Plan) -> Vec<usize> {
        let mut shares = vec![0; plan.set.paths.len()];
        indices(plan).for_each(|index| shares[index] += 1);
        shares
    }

    /// The path of each bucket, by its name: indices change when a path is taken out.
    fn owners(plan: &Plan) -> Vec<Path> {
        indices(plan).map(|index| plan.set.paths[index].path).collect()
    }

    #[test]
    fn flows_spread_by_weight() {
        // Each set is one draw; over many sets the share is the weight's.
        let mut total = [0; 3];
        for n in 0..200u32 {
            let mut set = set(&[1, 0, 3], Scheduler::Flow);
            for path in &mut set.paths {
                path.path.remote.set_ip(IpAddr::V4((0xc633_6400 + n).into()));
            }
            let shares = shares(&Plan::new(set));
            assert!((30..100).contains(&shares[0]), "{shares:?}");
            total.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
        }
        assert_eq!(total[1], 0);
        assert!((12_400..13_200).contains(&total[0]), "a quarter of {}: {total:?}", 200 * BUCKETS);
    }

    #[test]
    fn a_port_moves_no_flow_and_twins_share() {
        let mut moved = set(&[1, 1, 1], Scheduler::Flow);
        let before = Plan::new(moved.clone());
        moved.paths[1].path.remote.set_port(1025);
        assert_eq!(Plan::new(moved).buckets, before.buckets);
        let mut twins = set(&[1, 1], Scheduler::Flow);
        twins.paths[1].path.local = twins.paths[0].path.local;
        let shares = shares(&Plan::new(twins));
        assert!(shares[0] > 90 && shares[1] > 90, "{shares:?}");
    }

    #[test]
    fn packets_take_turns_by_weight_and_evenly() {
        let plan = Plan::new(set(&[1, 0, 3], Scheduler::Packet));
        assert_eq!(shares(&plan), [64, 0, 192]);
        let run: Vec<_> = (0..8).map(|turn| plan.choose(7, turn).unwrap()).collect();
        assert_eq!(run, [2, 2, 0, 2, 2, 2, 0, 2]);
        let plan = Plan::new(set(&[1, u16::MAX], Scheduler::Packet));
        assert_eq!(shares(&plan), [1, 255], "a small weight has its turn");
        assert_eq!(plan.choose(0, u64::MAX), plan.choose(9, 255));
    }

    #[test]
    fn backup_uses_the_first_path_of_greatest_weight() {
        assert_eq!(Plan::new(set(&[2, 5, 5], Scheduler::Backup)).choose(7, 7), Some(1));
        for scheduler in [Scheduler::Flow, Scheduler::Backup, Scheduler::Packet, Scheduler::Redundant] {
            assert_eq!(Plan::new(set(&[0, 0], scheduler)).choose(7, 7), None);
            assert_eq!(Plan::new(set(&[], scheduler)).choose(7, 7), None);
        }
    }

    #[test]
    fn more_paths_than_buckets_are_no_harm() {
        for scheduler in [Scheduler::Flow, Scheduler::Packet] {
            let many = set(&[1; 300], scheduler);
            assert!(Plan::new(many).choose(1, 1).is_some());
        }
    }

    proptest! {
        /// A path that comes takes buckets, and takes them only for itself.
        #[test]
        fn only_the_flows_that_must_move_do(weights in proptest::collection::vec(0u16..9, 1..9), gone in 0usize..8) {
            let all = set(&weights, Scheduler::Flow);
            let mut fewer = all.clone();
            let gone: WeightedPath = fewer.paths.remove(gone % weights.len());
            let (before, after) = (owners(&Plan::new(fewer)), owners(&Plan::new(all)));
            for (before, after) in before.iter().zip(&after) {
                prop_assert!(before == after || *after == gone.path);
            }
        }

        #[test]
        fn turns_follow_the_weights(weights in proptest::collection::vec(1u16..1000, 1..9)) {
            let plan = Plan::new(set(&weights, Scheduler::Packet));
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (share, weight) in shares(&plan).into_iter().zip(&weights) {
                let ideal = f64::from(*weight) / total * BUCKETS as f64;
                prop_assert!((share as f64 - ideal).abs() <= weights.len() as f64, "{} for {}", share, ideal);
            }
        }
    }
}
