//! Return routability: whether the peer is where it says to be (RFC 4555 3.7).

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mobikex_common::addr::Path;
use mobikex_common::wire::ike::{ExchangeType, Notify, NotifyType, Payload};
use tracing::{debug, info};

use super::addresses::{Half, Outer, Replaces};
use super::child::{ChildSa, ChildState};
use super::ctx::Ctx;
use super::error::IkeError;
use super::mobility::{CHECK_AGAIN, CHECK_TIME, CHECK_TRIES, RETIRED, cookie};
use super::output::Event;
use super::path_table::{Health, PathState, path};
use super::rules::notify;
use super::sa::{Gone, IkeSa};
use super::sets::Check;
use super::tasks::Task;
use super::versions::Version;
use super::window::{Exchange, Via};
use crate::config::ReturnRoutability;

impl IkeSa {
    /// Addresses of the peer to which something may be sent.
    pub(super) fn used_addresses(&self, now: Instant) -> Vec<SocketAddr> {
        let live = self.children.iter().filter(|c| !matches!(c.state, ChildState::Lingering(_)));
        live.flat_map(|c| c.halves.remote.iter().filter(|o| o.is_current(now)).map(|o| o.addr))
            .chain(self.mobility.mappings.iter().map(|p| p.remote))
            .chain([self.remote])
            .collect()
    }

    /// Once the peer has left an address somebody else may have it: if it comes back, it is checked again.
    pub(super) fn forget_checks(&mut self, now: Instant) {
        let leaving = self.children.iter().flat_map(|c| c.leaving.iter().map(|o| o.addr));
        let known: Vec<SocketAddr> = leaving.chain(self.used_addresses(now)).collect();
        self.mobility.checks.retain(|addr, _| known.contains(addr));
    }

    /// Sees to it that every address of the peer is checked, as policy wants; one whose time has not come, when it
    /// comes. The caller refreshes.
    pub(super) fn want_checks(&mut self, now: Instant) {
        self.forget_checks(now);
        let used = self.used_addresses(now);
        for addr in used {
            if self.mobility.checks.contains_key(&addr) {
                continue;
            }
            if self.conn.return_routability == ReturnRoutability::Off {
                self.mobility.checks.insert(addr, Check::Passed);
                continue;
            }
            self.mobility.checks.insert(addr, Check::Open);
            self.tasks.push(Task::Check(addr));
        }
    }

    /// A local address from which `remote` can be reached.
    fn source_toward(&self, ctx: &Ctx<'_>, remote: SocketAddr) -> Option<SocketAddr> {
        if let Some(local) =
            self.mobility.mappings.toward(ctx.network, remote).filter(|_| !self.is_named(remote))
        {
            return Some(local);
        }
        if self.local.is_ipv4() == remote.is_ipv4() && ctx.network.has(self.local.ip()) {
            return Some(self.local);
        }
        let reaches = |a: &IpAddr| ctx.network.find(*a).is_some_and(|l| l.reaches(remote.ip()));
        self.candidates(ctx).into_iter().find(reaches).map(|a| SocketAddr::new(a, self.local.port()))
    }

    /// Whether the peer has said to be at an address; without any Child SA that is where the IKE SA is.
    fn is_named(&self, remote: SocketAddr) -> bool {
        let named = |c: &ChildSa| c.halves.remote.has_exactly(remote);
        self.children.iter().any(named) || (self.children.is_empty() && self.remote == remote)
    }

    /// Whether a NAT may show the peer at an address that it has not named. Only about the family in use is there any
    /// NAT_DETECTION.
    pub(super) fn may_be_translated(&self, addr: SocketAddr) -> bool {
        self.peer_behind_nat || addr.is_ipv4() != self.remote.is_ipv4()
    }

    /// The task of checking whether the peer is at an address, which has shown up over this pair by itself if `rebound`.
    pub(super) fn check_of(&self, pair: Path, rebound: bool) -> Task {
        // Toward another address of ours a NAT may show it elsewhere. In version 1 there is one pair.
        if rebound && self.mobility.probes() { Task::CheckSource(pair) } else { Task::Check(pair.remote) }
    }

    /// COOKIE2 to an address of the peer.
    pub(super) fn start_check(&mut self, ctx: &mut Ctx<'_>, remote: SocketAddr) -> Result<(), IkeError> {
        let Some(local) = self.source_toward(ctx, remote) else {
            let before =
                self.mobility.previous.filter(|(_, before)| self.source_toward(ctx, *before).is_some());
            if remote == self.remote && before.is_some() {
                self.check_failed(ctx, remote, "there is no way to reach it");
            } else {
                // There may be one when our addresses change; until then it makes no path.
                self.mobility.checks.remove(&remote);
            }
            return Ok(());
        };
        self.start_check_over(ctx, path(local, remote))
    }

    /// The same to where packets of the peer's have come from. It may have told of that meanwhile.
    pub(super) fn start_check_of_source(&mut self, ctx: &mut Ctx<'_>, pair: Path) -> Result<(), IkeError> {
        if self.is_named(pair.remote) {
            return match self.mobility.checks.get(&pair.remote) {
                Some(Check::Open) => self.start_check(ctx, pair.remote),
                _ => Ok(()),
            };
        }
        if ctx.network.has(pair.local.ip()) { self.start_check_over(ctx, pair) } else { Ok(()) }
    }

    fn start_check_over(&mut self, ctx: &mut Ctx<'_>, pair: Path) -> Result<(), IkeError> {
        let Path { local, remote } = pair;
        let rebound = self.may_be_translated(remote) && !self.is_named(remote);
        // A peer without MOBIKE would leave COOKIE2 out of its answer, as whatever it does not know (RFC 7296 3.10).
        let cookie = (self.mobility.version != Version::None).then(|| cookie(ctx));
        let payloads = self.question(local, remote, cookie.as_deref());
        debug!(target: "IKE", "{} checking whether the peer is at {remote}", self.name());
        let exchange = Exchange::Check { pair, cookie, rebound, since: ctx.now };
        let via = Via { path: pair, tries: CHECK_TRIES };
        self.send_request_via(ctx, ExchangeType::INFORMATIONAL, exchange, &payloads, Some(via)).map(drop)
    }

    /// What is asked over one pair of addresses to see that the peer is there; its answer must repeat the cookie.
    pub(super) fn question(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        cookie: Option<&[u8]>,
    ) -> Vec<Payload> {
        let mut payloads = Vec::new();
        if self.nat_t && self.mobility.version != Version::None {
            // A NAT in front of us that comes, goes or has a new mapping shows in the answer (RFC 4555 3.8).
            payloads.extend(self.nat_detection(local, remote));
        }
        payloads.extend(cookie.map(|c| Payload::Notify(Notify::new(NotifyType::COOKIE2, c.to_vec()))));
        payloads
    }

    /// The answer to a check, which came over `answered`. It proves the address only if the request went nowhere
    /// else and the answer comes from there, as it does unless somebody on the way has led either astray (RFC 7296 2.11).
    pub(super) fn handle_check_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        (pair, cookie, rebound, since): (Path, Option<&[u8]>, bool, Instant),
        payloads: &[Payload],
        answered: Path,
        only_there: bool,
    ) -> Result<(), Gone> {
        if let Some(cookie) = cookie {
            self.verify_cookie(ctx, cookie, payloads)?;
        }
        let remote = pair.remote;
        // It may have told meanwhile that it is there.
        let rebound = rebound && !self.is_named(remote);
        if !only_there || answered.remote != remote {
            let there = answered == pair;
            let stale = !rebound && ctx.now.saturating_duration_since(since) > CHECK_TIME * 3;
            if there || stale {
                // It is silent no more, or was when everything else was too: once more, over this pair alone.
                self.tasks.push(self.check_of(pair, rebound));
                return Ok(());
            }
            // Where ESP goes there and comes back, what was lost is the check.
            if !self.carries(remote) {
                if rebound {
                    // A NAT did not show it there after all; should the peer tell of it yet, it is checked anew.
                    self.forget_mappings(ctx, |p| *p == pair);
                    if self.mobility.mappings.toward(ctx.network, remote).is_none() {
                        self.mobility.checks.remove(&remote);
                    }
                    self.refresh(ctx);
                } else {
                    self.check_failed(ctx, remote, "it does not answer there");
                }
            }
            self.check_again(ctx.now, remote);
            return Ok(());
        }
        if rebound {
            if !self.may_be_translated(remote) {
                // It has told meanwhile where it is, and that is elsewhere; what uses this address still checks it anew.
                self.mobility.checks.remove(&remote);
                self.want_checks(ctx.now);
                return Ok(());
            }
            self.peer_rebound(ctx, pair);
        }
        self.check_passed(ctx, pair);
        // Back in a family that has a NAT, plain ESP would not arrive.
        self.note_nat(ctx, payloads, answered);
        Ok(())
    }

    /// Closes the IKE SA unless COOKIE2 came back as it was sent (RFC 4555 3.7).
    pub(super) fn verify_cookie(
        &mut self,
        ctx: &mut Ctx<'_>,
        cookie: &[u8],
        payloads: &[Payload],
    ) -> Result<(), Gone> {
        match notify(payloads, NotifyType::COOKIE2) {
            Some(answer) if answer.data == cookie => Ok(()),
            _ => Err(self.close(ctx, "the peer did not return COOKIE2 as it was sent", false)),
        }
    }

    /// The peer has answered over this pair, which shows that its address is right.
    fn check_passed(&mut self, ctx: &mut Ctx<'_>, pair: Path) {
        let remote = pair.remote;
        self.mobility.checks.insert(remote, Check::Passed);
        // What UDP passes may stop plain ESP: there an echo has to come back first.
        if self.encap || pair == self.current() || !self.mobility.probes() {
            self.mobility.table.proven(pair, ctx.now);
        }
        self.mobility.table.hurry(remote, ctx.now);
        let until = ctx.now + RETIRED;
        for child in self.children.iter_mut().filter(|c| c.halves.remote.has_exactly(remote)) {
            for old in std::mem::take(&mut child.leaving) {
                let fits = |l: &&Outer| l.addr.is_ipv4() == old.addr.is_ipv4();
                let gone = child.halves.local.iter().filter(fits).map(|l| path(l.addr, old.addr));
                let gone = gone.collect();
                child.retire_paths(gone, until);
            }
        }
        self.forget_checks(ctx.now);
        ctx.event(Event::AddressChecked { ike: self.name(), addr: remote, reachable: true });
        if self.mobility.probes() {
            self.prefer_working_path(ctx);
        }
        self.unsettle(ctx);
        self.refresh(ctx);
    }

    /// The answer to a request that asked whether the peer is alive.
    pub(super) fn handle_liveness_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        cookie: Option<&[u8]>,
        payloads: &[Payload],
        answered: Path,
        only_there: bool,
    ) -> Result<(), Gone> {
        if let Some(cookie) = cookie {
            self.verify_cookie(ctx, cookie, payloads)?;
            let there = only_there && answered.remote == self.remote;
            if there && self.mobility.checks.get(&self.remote) == Some(&Check::Open) {
                self.check_passed(ctx, answered);
            }
        }
        if only_there {
            self.note_nat(ctx, payloads, answered);
        }
        Ok(())
    }

    /// An address at which the peer is not: what it had before counts again.
    fn check_failed(&mut self, ctx: &mut Ctx<'_>, remote: SocketAddr, reason: &str) {
        info!(target: "IKE", "{} the peer is not reachable at {remote}: {reason}", self.name());
        self.drop_address(ctx, remote);
        if self.remote == remote
            && let Some((local, remote)) = self.mobility.previous
        {
            self.retarget(ctx, local, remote);
            if self.mobility.version == Version::Mobike {
                self.went_back(ctx);
            }
        }
        ctx.event(Event::AddressChecked { ike: self.name(), addr: remote, reachable: false });
        self.refresh(ctx);
    }

    /// Whether ESP to an address is answered, where it does not wait for a check.
    fn carries(&self, remote: SocketAddr) -> bool {
        self.works(remote) && self.conn.return_routability != ReturnRoutability::Required
    }

    /// The last address stays although the check has failed: unless it is checked again, it stays limited.
    fn check_again(&mut self, now: Instant, remote: SocketAddr) {
        if self.used_addresses(now).contains(&remote) {
            self.mobility.checks.insert(remote, Check::Open);
            self.tasks.push_at(now + CHECK_AGAIN, Task::Check(remote));
        }
    }

    /// Takes an address of the peer out of the sets; what it replaced is there again.
    pub(super) fn drop_address(&mut self, ctx: &Ctx<'_>, remote: SocketAddr) {
        self.mobility.checks.remove(&remote);
        self.forget_mappings(ctx, |p| p.remote == remote);
        for child in self.children.iter_mut().filter(|c| c.halves.remote.has_exactly(remote)) {
            let back = std::mem::take(&mut child.leaving);
            back.into_iter().for_each(|old| {
                child.halves.remote.add(old);
            });
            let others = |c: &ChildSa| c.halves.pairs().any(|(_, other)| other.addr != remote);
            let elsewhere = !others(child) && self.remote != remote;
            if elsewhere && self.mobility.checks.get(&self.remote) == Some(&Check::Passed) {
                // At least the IKE SA knows where the peer is.
                child.halves.remote.add(Outer::new(self.remote));
            }
            // The last one that there is a way to stays, so that the SA can still be reached if the check was wrong.
            if others(child) {
                child.halves.remote.remove_shown(remote);
            }
        }
    }

    /// A NAT gave the peer another address or port (RFC 4555 3.8, RFC 7296 2.23): IKE and ESP follow together.
    fn peer_rebound(&mut self, ctx: &mut Ctx<'_>, pair: Path) {
        let remote = pair.remote;
        let old: Vec<Option<Outer>> =
            self.children.iter().map(|c| self.shown_before(&c.halves.remote, pair)).collect();
        let beside = !old.is_empty() && old.iter().all(Option::is_none);
        let in_use = self.remote;
        let same_family = in_use.is_ipv4() == remote.is_ipv4();
        let left = old.iter().flatten().any(|o| o.addr == in_use);
        let alone = same_family && old.is_empty();
        let mut old = old.into_iter();
        self.change_halves(
            ctx,
            |_| true,
            |halves| {
                if let Some(old) = old.next().flatten() {
                    let new = Outer { addr: remote, ..old };
                    halves.remote.update(Replaces::Shown(old.addr), new);
                } else if halves.pairs().next().is_none() {
                    // Better there than nowhere.
                    halves.remote.add(Outer::new(remote));
                }
            },
        );
        let mapped = self.mobility.mappings.has(&self.current());
        let lost = in_use.ip() == remote.ip() && !mapped && !self.is_named(in_use);
        if left || alone || lost {
            // In version 1 there is one pair, which may have moved meanwhile.
            let local = if self.mobility.probes() { pair.local } else { self.local };
            self.retarget(ctx, local, remote);
        }
        if beside && !self.is_named(remote) {
            self.note_mapping(ctx, pair);
        }
    }

    /// Whether ESP to an address of the peer is answered.
    pub(super) fn works(&self, remote: SocketAddr) -> bool {
        self.mobility.table.iter().any(|p| p.path.remote == remote && p.health == Health::Up)
    }

    /// Whether echoes to an address of the peer go unanswered, over every path.
    pub(super) fn is_silent(&self, remote: SocketAddr) -> bool {
        let down = |p: &PathState| p.path.remote == remote && p.health == Health::Down;
        self.mobility.table.iter().any(down) && !self.works(remote)
    }

    /// As what a NAT has shown the peer before that is at `remote` now: by the same address, or else the only one of the
    /// family, or with that address, that may have become this. The one in use, if it works no more, is the first that comes
    /// to mind. One that works toward other addresses of ours alone has not become this.
    fn shown_before(&self, half: &Half, pair: Path) -> Option<Outer> {
        let remote = pair.remote;
        let other = |p: &PathState| p.path.local != pair.local && p.health == Health::Up;
        let elsewhere = |o: &Outer| {
            self.mobility.probes() && self.mobility.table.iter().any(|p| p.path.remote == o.addr && other(p))
        };
        let same = half.has(remote.ip());
        let alike = |o: &&Outer| match same {
            true => o.addr.ip() == remote.ip(),
            false => o.addr.is_ipv4() == remote.is_ipv4(),
        };
        let alike: Vec<&Outer> = half.iter().filter(alike).collect();
        let dead: Vec<&Outer> = alike.iter().copied().filter(|o| !self.works(o.addr)).collect();
        let in_use = dead.iter().find(|o| o.addr == self.remote);
        match (&alike[..], in_use, &dead[..]) {
            ([only], ..) if elsewhere(only) => None,
            ([only], ..) | (_, None, [only]) | (_, Some(only), _) => Some(**only),
            _ => None,
        }
    }
}
