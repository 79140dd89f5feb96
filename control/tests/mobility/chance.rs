//! Random schedules and those that once went wrong. `MOBIKEX_SCHEDULES=N` runs more of them than usual,
//! `MOBIKEX_SEED=N` begins with another one, and alone runs only that one. With `MOBIKEX_LOG` what fails is told in full.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use mobikex::config::{AddrPattern, MobikeX, TsPattern};
use mobikex::ike::{AddressAction, Command};
use mobikex_common::sa::Mode;
use tracing::debug;

use crate::attacker;
use crate::faults;
use crate::model::Model;
use crate::schedule::{Schedule, Setup, Step, VICTIMS};
use crate::world::{Nat, World, configs, ip};

const SECOND: Duration = Duration::from_secs(1);
/// Address of the NAT before host 0, and of the one that comes after its reboot.
const OUTSIDE: [&str; 2] = ["192.0.2.200", "192.0.2.201"];
/// Within this time a tunnel that nobody ended is mended, once the network is whole.
const MENDED: Duration = Duration::from_secs(150);
/// Within this time there is one again, if someone sets it up.
const RENEWED: Duration = Duration::from_secs(900);
/// What is mended stays so.
const STAYS: Duration = Duration::from_secs(15);
/// Schedules of an ordinary run.
const ORDINARY: u64 = 200;
const FIRST: u64 = 1000;
/// After so many failures there is enough to look at.
const MOST_FAILURES: usize = 30;

/// How a schedule came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// With the SAs that it began with, or their successors.
    Survived,
    /// They ended for a reason, and new ones took their place.
    Renewed,
}

struct Run {
    setup: Setup,
    world: World,
    model: Model,
    /// Whose operators have taken an address away.
    withdrawn: [bool; 2],
}

fn world(schedule: &Schedule) -> World {
    let setup = &schedule.setup;
    let mut configs = configs(|c| {
        c.mobike_x = if setup.extended { MobikeX::Yes } else { MobikeX::No };
        c.return_routability = setup.routability;
        c.encap = setup.encap;
        c.paths.scheduler = setup.scheduler;
        c.dpd_delay = 10 * SECOND;
        if setup.transport {
            let any = TsPattern::Dynamic("0.0.0.0/0[tcp]".parse().unwrap());
            let child = &mut c.children[0];
            child.mode = Mode::Transport;
            (child.local_ts, child.remote_ts) = (vec![any.clone()], vec![any]);
        }
    });
    // Some have several workers, each of which may have a Child SA of its own.
    for (host, config) in configs.iter_mut().enumerate() {
        config.daemon.workers = Some([[1, 1], [1, 1], [2, 2], [3, 2]][schedule.seed as usize % 4][host]);
    }
    configs[0].connections[0].remote_addrs = vec![AddrPattern::Range(setup.first(1).parse().unwrap())];
    let mut world = World::with(schedule.seed, configs, [&setup.start(0), &setup.start(1)]);
    world.traffic = Some(Duration::from_millis(250));
    if setup.private {
        world.nat = Some(nat(setup, OUTSIDE[0]));
    }
    world
}

fn nat(setup: &Setup, outside: &str) -> Nat {
    let mut nat = Nat::new(outside);
    nat.filters = setup.filters;
    nat.per_destination = setup.per_destination;
    nat
}

impl Run {
    fn up(&mut self) {
        // Without a route there is nothing to do yet.
        let command = Command::Up { connection: "home".into(), child: None };
        let _ = self.world.hosts[0].endpoint.handle_command(self.world.now, command);
        self.world.collect();
    }

    /// Lets time pass under the eyes of the model.
    fn pass(&mut self, time: Duration) {
        let end = self.world.now + time;
        for _ in 0..1_000_000 {
            if std::mem::take(&mut self.world.changed) {
                self.model.check(&self.world);
            }
            if !self.world.step(end) {
                return;
            }
        }
        panic!("the endpoints never come to rest");
    }

    fn hand(&mut self, host: usize, action: AddressAction, check: bool) {
        let command =
            Command::Address { connection: "home".into(), child: None, action, check, inner: false };
        // Without an SA, or with version 1, there is nothing to act on.
        let _ = self.world.hosts[host].endpoint.handle_command(self.world.now, command);
        self.world.collect();
    }

    fn command(&mut self, host: usize, child: bool, command: impl Fn(Option<String>) -> Command) {
        let child = child.then(|| "net".to_string());
        let _ = self.world.hosts[host].endpoint.handle_command(self.world.now, command(child));
        self.world.collect();
    }

    fn take(&mut self, step: &Step) {
        self.model.note(step);
        let setup = self.setup;
        let world = &mut self.world;
        let name = |host: usize, addr: usize| setup.addr(host, addr);
        let at = |host: usize, addr: usize| ip(setup.addr(host, addr));
        let connection = || "home".to_string();
        match *step {
            Step::Nothing => {}
            Step::Add { host, addr } => world.add(host, name(host, addr)),
            Step::Remove { host, addr } => world.remove(host, name(host, addr)),
            Step::Replace { host, addr } => world.replace_all(host, name(host, addr)),
            Step::ReplaceBoth { addrs } => {
                (0..2).for_each(|host| world.replace_all(host, name(host, addrs[host])));
            }
            Step::Cut { host, addr } => {
                world.cut.insert(at(host, addr));
            }
            Step::Deafen { host, addr } => {
                world.deaf.insert(at(host, addr));
            }
            Step::Mute { host, addr } => {
                world.mute.insert(at(host, addr));
            }
            Step::NoWay { addrs } => {
                world.no_way.insert((at(0, addrs[0]), at(1, addrs[1])));
            }
            Step::Mtu { octets } => world.mtu = Some(octets),
            Step::Heal => world.heal(),
            Step::Nat { on } => world.nat = on.then(|| nat(&setup, OUTSIDE[0])),
            Step::NatReboot => {
                if let Some(old) = &mut world.nat {
                    let outside = if old.outside == ip(OUTSIDE[0]) { OUTSIDE[1] } else { OUTSIDE[0] };
                    *old = nat(&setup, outside);
                }
            }
            Step::NatRebind { addr } => {
                if let Some(nat) = &mut world.nat {
                    nat.rebind(at(0, addr));
                }
            }
            Step::Rekey { host, child } => {
                self.command(host, child, |child| Command::Rekey { connection: connection(), child })
            }
            Step::Down { host, child } => {
                self.command(host, child, |child| Command::Down { connection: connection(), child })
            }
            Step::Up => self.up(),
            Step::Crash { host } => world.crash(host),
            Step::Sleep { host, seconds } => world.sleep(host, Duration::from_secs(seconds)),
            Step::Jump { seconds } => world.jump(Duration::from_secs(seconds)),
            Step::Traffic { host, on } => world.traffic(host, on),
            Step::HandAdd { host, addr, check } => self.hand(host, AddressAction::Add(at(host, addr)), check),
            Step::HandRemove { host, addr, check } => {
                self.withdrawn[host] |= !check;
                self.hand(host, AddressAction::Remove(at(host, addr)), check)
            }
            Step::HandUpdate { host, old, new, check } => {
                // Nobody in their right mind moves to where they are not.
                let check = check || !world.hosts[host].addresses.contains(&at(host, new));
                self.withdrawn[host] |= !check && old.is_some();
                let action = AddressAction::Update { old: old.map(|old| at(host, old)), new: at(host, new) };
                self.hand(host, action, check);
            }
            Step::ForgeSource { host, victim, datagrams } => {
                let victim = ip(VICTIMS[victim]);
                world.rewrite = Some(attacker::on_path(host, datagrams, move |source, _| {
                    if source.is_ipv4() == victim.is_ipv4() {
                        source.set_ip(victim);
                    }
                }));
            }
            Step::ForgePort { host, datagrams } => {
                world.rewrite =
                    Some(attacker::on_path(host, datagrams, |source, _| source.set_port(source.port() ^ 7)));
            }
            Step::ForgeDestination { host, addr, datagrams } => {
                let other = at(1 - host, addr);
                world.rewrite = Some(attacker::on_path(host, datagrams, move |_, destination| {
                    if destination.is_ipv4() == other.is_ipv4() {
                        destination.set_ip(other);
                    }
                }));
            }
            Step::Replay { datagrams } => attacker::replay(world, datagrams),
            Step::Garbage { datagrams } => attacker::garbage(world, datagrams),
        }
    }

    /// The network is whole, and both hosts have an address by which they can find each other.
    fn make_whole(&mut self) {
        let world = &mut self.world;
        world.heal();
        (world.loss, world.duplication, world.reordering) = (0, 0, 0);
        world.rewrite = None;
        world.wake();
        (0..2).for_each(|host| world.add(host, self.setup.first(host)));
        (0..2).for_each(|host| world.traffic(host, true));
        self.model.whole_since = Some(world.now);
        for host in [0, 1].into_iter().filter(|host| self.withdrawn[*host]).collect::<Vec<_>>() {
            // Against the will of an operator nobody uses it.
            self.hand(host, AddressAction::Add(ip(self.setup.first(host))), false);
        }
    }

    /// Waits until both are at the same end, at most that long.
    fn settles(&mut self, time: Duration, renew: bool) -> Result<(), String> {
        let end = self.world.now + time;
        let mut why = String::new();
        for second in 0.. {
            if self.world.now >= end {
                break;
            }
            if renew && second % 20 == 0 {
                self.up();
            }
            self.pass(SECOND);
            match self.model.not_settled(&self.world) {
                Some(reason) => why = reason,
                None => return Ok(()),
            }
            if self.model.ends > 0 && !renew {
                return Err("it has ended".into());
            }
        }
        Err(why)
    }

    /// Sees to it that the end that has been reached is one, and that all traffic arrives.
    fn stays(&mut self) {
        for _ in 0..3 {
            let ends = self.model.ends;
            let before = [self.world.arrived(0), self.world.arrived(1)];
            self.pass(STAYS);
            // A rekeying that had to wait may be under way just now.
            let settled = self.settles(STAYS, true);
            if self.model.ends > ends {
                // An end that was asked for long ago.
                if let Err(why) = self.settles(RENEWED, true) {
                    panic!("not set up again: {why}\n{}", self.story());
                }
                continue;
            }
            if let Err(why) = settled {
                panic!("it does not last: {why}\n{}", self.story());
            }
            for (host, before) in before.into_iter().enumerate() {
                let packets = self.world.arrived(host) - before;
                assert!(
                    packets >= 4 * STAYS.as_secs() - 4,
                    "only {packets} packets arrive\n{}",
                    self.story()
                );
            }
            return;
        }
        panic!("there is no end to the ends\n{}", self.story());
    }

    fn story(&self) -> String {
        format!("{}\n{}", self.world.story(0), self.world.story(1))
    }
}

/// Runs a schedule. Panics when something is wrong.
fn run(schedule: &Schedule) -> Outcome {
    let setup = schedule.setup;
    let mut run = Run { setup, world: world(schedule), model: Model::new(setup), withdrawn: [false; 2] };
    run.up();
    run.pass(3 * SECOND);
    if let Some(why) = run.model.not_settled(&run.world) {
        panic!("it does not begin: {why}\n{}", run.story());
    }
    run.model.begun = true;
    let world = &mut run.world;
    (world.loss, world.duplication, world.reordering) = (setup.loss, setup.duplication, setup.reordering);
    for (step, pause) in &schedule.steps {
        debug!(target: "SIM", "{step:?}");
        run.take(step);
        run.pass(Duration::from_millis(*pause));
    }
    run.make_whole();
    if run.model.ends == 0
        && let Err(why) = run.settles(MENDED, false)
        && run.model.ends == 0
    {
        panic!("not mended: {why}\n{}", run.story());
    }
    let outcome = if run.model.ends > 0 { Outcome::Renewed } else { Outcome::Survived };
    if run.model.ends > 0
        && let Err(why) = run.settles(RENEWED, true)
    {
        panic!("not set up again: {why}\n{}", run.story());
    }
    run.stays();
    run.model.check_strays(&run.world);
    outcome
}

thread_local! {
    /// The message of the latest panic.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs a schedule; why it failed, if it did.
fn attempt(schedule: &Schedule) -> Result<Outcome, String> {
    panic::catch_unwind(AssertUnwindSafe(|| run(schedule))).map_err(|_| PANIC.with_borrow(Clone::clone))
}

/// Runs `work` with panics remembered rather than printed.
fn quietly<R>(work: impl FnOnce() -> R) -> R {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(|info| PANIC.set(info.to_string())));
    let result = work();
    panic::set_hook(usual);
    result
}

/// What to know about a failure: the shortest schedule with it, and how to see it again.
fn report(schedule: &Schedule, reason: &str) -> String {
    // Shrinking must not slip to another failure: the first words are the kind of it.
    let kind = |text: &str| text.lines().nth(1).unwrap_or_default().chars().take(20).collect::<String>();
    let same = |s: &Schedule| attempt(s).is_err_and(|why| kind(&why) == kind(reason));
    let short = schedule.clone().shrink(same);
    let again = || attempt(&short).expect_err("it failed before");
    let why = if std::env::var("MOBIKEX_LOG").is_ok() { logged(again) } else { again() };
    format!(
        "schedule {seed}: {why}\n{short:?}\nAgain: MOBIKEX_SEED={seed} cargo test -p mobikex --test mobility random\n",
        seed = schedule.seed
    )
}

/// Runs `work` with everything that the endpoints have to say on the standard output.
fn logged<R>(work: impl FnOnce() -> R) -> R {
    let level = tracing::Level::DEBUG;
    let log = tracing_subscriber::fmt().with_max_level(level).without_time().with_ansi(false).finish();
    tracing::subscriber::with_default(log, work)
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

#[test]
fn random_schedules_end_well() {
    let (seed, count) = (variable("MOBIKEX_SEED"), variable("MOBIKEX_SCHEDULES"));
    let count = count.unwrap_or(if seed.is_some() { 1 } else { ORDINARY });
    let begin = Instant::now();
    let (mut survived, mut failures) = (0, Vec::new());
    quietly(|| {
        for seed in (seed.unwrap_or(FIRST)..).take(count as usize) {
            let schedule = Schedule::random(seed);
            if count == 1 {
                // Before anything goes wrong, since one that does not come to an end says nothing.
                println!("{schedule:?}");
            }
            match attempt(&schedule) {
                Ok(outcome) => survived += u64::from(outcome == Outcome::Survived),
                Err(why) => {
                    failures.push(report(&schedule, &why));
                    println!("{}", failures[failures.len() - 1]);
                }
            }
            if failures.len() == MOST_FAILURES {
                break;
            }
        }
    });
    println!(
        "{count} schedules, {survived} survived, {:.1} a second",
        count as f64 / begin.elapsed().as_secs_f64()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(count < 100 || survived * 10 > count * 6, "only {survived} of {count} connections survived");
}

#[test]
fn schedules_that_once_failed_end_well() {
    for (name, schedule) in faults::all() {
        if let Err(why) = quietly(|| attempt(&schedule)) {
            panic!("{name}: {why}\n{schedule:?}");
        }
    }
}
