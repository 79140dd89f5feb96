//! Random schedules: what happens to two hosts and to the network between them, step by step. A schedule is a value, so
//! that it can be printed, made shorter and kept.

use mobikex::config::ReturnRoutability;
use mobikex_common::addr::Scheduler;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::world::{A, B};

/// Addresses of host 0 behind a NAT.
const PRIVATE: [&str; 3] = ["10.9.9.9", "10.9.8.8", A[2]];
/// Addresses at which nobody is, for whoever wants to send traffic there; by their numbers they follow those of a host.
pub const VICTIMS: [&str; 2] = ["203.0.113.77", "2001:db8:77::1"];

/// What the two hosts are like, and the network at its start.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// MOBIKE-X rather than MOBIKE.
    pub extended: bool,
    pub transport: bool,
    pub scheduler: Scheduler,
    pub routability: ReturnRoutability,
    /// UDP encapsulation without need.
    pub encap: bool,
    /// Host 0 has private addresses behind a NAT that stays.
    pub private: bool,
    /// NATs let in only what was asked for.
    pub filters: bool,
    /// NATs have a mapping of their own for each destination.
    pub per_destination: bool,
    /// They start over IPv6.
    pub v6: bool,
    /// How many addresses each has at first.
    pub addresses: [usize; 2],
    /// Percent.
    pub loss: u32,
    pub duplication: u32,
    pub reordering: u32,
}

/// Something that happens. Hosts are 0 and 1, addresses the numbers of those that a host may have.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Nothing,
    Add {
        host: usize,
        addr: usize,
    },
    Remove {
        host: usize,
        addr: usize,
    },
    /// All that it has give way to one.
    Replace {
        host: usize,
        addr: usize,
    },
    /// Both at once.
    ReplaceBoth {
        addrs: [usize; 2],
    },
    Cut {
        host: usize,
        addr: usize,
    },
    /// Nothing arrives there.
    Deafen {
        host: usize,
        addr: usize,
    },
    /// Nothing gets away from there.
    Mute {
        host: usize,
        addr: usize,
    },
    NoWay {
        addrs: [usize; 2],
    },
    /// IKE datagrams of more octets get lost.
    Mtu {
        octets: usize,
    },
    /// All cuts are over, and no datagram is too large.
    Heal,
    Nat {
        on: bool,
    },
    NatReboot,
    NatRebind {
        addr: usize,
    },
    Rekey {
        host: usize,
        child: bool,
    },
    Down {
        host: usize,
        child: bool,
    },
    /// Host 0 sets up what is not there.
    Up,
    Crash {
        host: usize,
    },
    Sleep {
        host: usize,
        seconds: u64,
    },
    /// The clocks of both go on without them.
    Jump {
        seconds: u64,
    },
    Traffic {
        host: usize,
        on: bool,
    },
    HandAdd {
        host: usize,
        addr: usize,
        check: bool,
    },
    HandRemove {
        host: usize,
        addr: usize,
        check: bool,
    },
    HandUpdate {
        host: usize,
        old: Option<usize>,
        new: usize,
        check: bool,
    },
    /// The next datagrams of a host get another source address in their headers.
    ForgeSource {
        host: usize,
        victim: usize,
        datagrams: u32,
    },
    /// The next datagrams of a host get another source port.
    ForgePort {
        host: usize,
        datagrams: u32,
    },
    /// The next datagrams of a host go to another address of the other.
    ForgeDestination {
        host: usize,
        addr: usize,
        datagrams: u32,
    },
    /// Datagrams of the past come once more, from anywhere.
    Replay {
        datagrams: u32,
    },
    /// Datagrams for the SAs that there are, with garbage inside, from anywhere.
    Garbage {
        datagrams: u32,
    },
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Of the endpoints' and the network's chance.
    pub seed: u64,
    pub setup: Setup,
    /// Each with the milliseconds that pass after it.
    pub steps: Vec<(Step, u64)>,
}

impl Setup {
    /// The addresses that a host may have.
    pub fn pool(&self, host: usize) -> [&'static str; 3] {
        match (host, self.private) {
            (0, true) => PRIVATE,
            (0, false) => A,
            _ => B,
        }
    }

    /// An address of a host, or of a victim.
    pub fn addr(&self, host: usize, number: usize) -> &'static str {
        self.pool(host).into_iter().chain(VICTIMS).nth(number).unwrap()
    }

    /// The address of a host that it starts with.
    pub fn first(&self, host: usize) -> &'static str {
        self.pool(host)[if self.v6 { 2 } else { 0 }]
    }

    /// All that it starts with.
    pub fn start(&self, host: usize) -> Vec<&'static str> {
        let mut all = self.pool(host).to_vec();
        if self.v6 {
            all.reverse();
        }
        all.truncate(self.addresses[host]);
        all
    }
}

/// What may happen in a schedule. Some of it leaves the model less to say, so that it is not always there.
struct Kinds {
    cuts: bool,
    nat: bool,
    rekeys: bool,
    downs: bool,
    crashes: bool,
    pauses: bool,
    hand: bool,
    attacks: bool,
}

struct Dice(ChaCha20Rng);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0.next_u32() as usize % end
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

impl Schedule {
    /// The schedule of a seed.
    pub fn random(seed: u64) -> Self {
        let mut dice = Dice(ChaCha20Rng::seed_from_u64(!seed));
        let extended = !dice.one_in(4);
        let transport = dice.one_in(5);
        let v6 = dice.one_in(4);
        let private = !transport && !v6 && dice.one_in(4);
        let mut setup = Setup {
            extended,
            transport,
            scheduler: dice.of(&[
                Scheduler::Flow,
                Scheduler::Packet,
                Scheduler::Redundant,
                Scheduler::Backup,
            ]),
            routability: dice.of(&[
                ReturnRoutability::Required,
                ReturnRoutability::Required,
                ReturnRoutability::After,
                ReturnRoutability::Off,
            ]),
            encap: !dice.one_in(4),
            private,
            filters: dice.one_in(2),
            per_destination: false,
            v6,
            addresses: [1 + dice.below(2), 1 + dice.below(2)],
            loss: dice.of(&[0, 0, 2, 5, 10, 14]),
            duplication: dice.of(&[0, 10]),
            reordering: dice.of(&[0, 0, 5, 20]),
        };
        let kinds = Kinds {
            cuts: dice.one_in(2),
            nat: private || (!transport && dice.one_in(4)),
            rekeys: dice.one_in(2),
            downs: dice.one_in(8),
            crashes: dice.one_in(8),
            pauses: dice.one_in(6),
            hand: extended && dice.one_in(5),
            attacks: dice.one_in(3),
        };
        let steps = (0..4 + dice.below(10))
            .map(|_| {
                let step = kinds.random(&mut dice, &setup);
                let most = dice.of(&[30, 300, 3000, 3000, 12_000]);
                (step, dice.below(most) as u64)
            })
            .collect();
        setup.per_destination = dice.one_in(4);
        Self { seed, setup, steps }
    }

    /// A shorter schedule for which `fails` holds as well.
    pub fn shrink(mut self, fails: impl Fn(&Self) -> bool) -> Self {
        let mut calm = self.clone();
        (calm.setup.loss, calm.setup.duplication, calm.setup.reordering) = (0, 0, 0);
        if fails(&calm) {
            self = calm;
        }
        let mut size = self.steps.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < self.steps.len() {
                let mut shorter = self.clone();
                shorter.steps.drain(at..(at + size).min(self.steps.len()));
                if fails(&shorter) {
                    self = shorter;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        self
    }
}

impl Kinds {
    fn random(&self, dice: &mut Dice, setup: &Setup) -> Step {
        let host = dice.below(2);
        let addr = dice.below(3);
        let addrs = [dice.below(3), dice.below(3)];
        loop {
            let step = match dice.below(16) {
                0 | 1 => Step::Add { host, addr },
                2 => Step::Remove { host, addr },
                3 => Step::Replace { host, addr },
                4 => Step::ReplaceBoth { addrs },
                5 => Step::Traffic { host, on: dice.one_in(2) },
                6 if self.cuts => match dice.below(5) {
                    0 => Step::Deafen { host, addr },
                    1 => Step::Mute { host, addr },
                    2 => Step::NoWay { addrs },
                    3 => Step::Mtu { octets: 200 + dice.below(300) },
                    _ => Step::Cut { host, addr },
                },
                7 if self.cuts => Step::Heal,
                8 if self.nat => match dice.below(4) {
                    0 => Step::NatReboot,
                    1 => Step::NatRebind { addr },
                    _ => Step::Nat { on: setup.private || dice.one_in(2) },
                },
                9 if self.rekeys => Step::Rekey { host, child: dice.one_in(2) },
                10 if self.downs => match dice.below(3) {
                    0 => Step::Up,
                    _ => Step::Down { host, child: dice.one_in(2) },
                },
                11 if self.crashes => Step::Crash { host },
                12 if self.pauses => match dice.below(3) {
                    0 => Step::Jump { seconds: dice.of(&[5, 60, 600, 5000]) },
                    _ => Step::Sleep { host, seconds: dice.of(&[2, 20, 100]) },
                },
                13 if self.hand => {
                    let (check, new) = (dice.one_in(3), dice.below(5));
                    match dice.below(4) {
                        0 => Step::HandRemove { host, addr: new, check },
                        1 => Step::HandUpdate { host, old: Some(addr), new, check },
                        2 => Step::HandUpdate { host, old: None, new, check },
                        _ => Step::HandAdd { host, addr: new, check },
                    }
                }
                14 if self.attacks => {
                    let datagrams = 1 + dice.below(6) as u32;
                    match dice.below(4) {
                        0 => Step::ForgePort { host, datagrams },
                        1 => Step::ForgeDestination { host, addr, datagrams },
                        _ => Step::ForgeSource { host, victim: dice.below(2), datagrams },
                    }
                }
                15 if self.attacks => {
                    let datagrams = 1 + dice.below(20) as u32;
                    if dice.one_in(2) { Step::Replay { datagrams } } else { Step::Garbage { datagrams } }
                }
                _ => Step::Nothing,
            };
            if !matches!(step, Step::Nothing) {
                return step;
            }
        }
    }
}
