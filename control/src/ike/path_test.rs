//! Path tests by IKE (RFC 4555 3.10), where ESP carries no echoes: with standard peers. A request goes over one other
//! pair of addresses; the answer shows that the pair works, and that it may take over if it is worth more.

use std::time::{Duration, Instant};

use mobikex_common::addr::Path;
use mobikex_common::wire::ike::{ExchangeType, Payload};
use tracing::{debug, info};

use super::ctx::Ctx;
use super::error::IkeError;
use super::mobility::cookie;
use super::output::Event;
use super::path_table::Health;
use super::sa::{Gone, IkeSa};
use super::tasks::Task;
use super::versions::Version;
use super::window::{Exchange, Via};

/// Between tests of pairs that are worth more than the one in use.
pub(super) const BETTER: Duration = Duration::from_secs(10);
/// Between tests when there is none.
const OTHER: Duration = Duration::from_secs(60);
/// Datagrams that a test sends, one a second, before its request goes on over the pair in use: the window is one
/// request, so everything else waits.
const TRIES: u32 = 1;

impl IkeSa {
    /// Whether pairs that are not in use are tested by IKE. In version 1 the initiator decides, so it is the one to ask.
    pub(super) fn tests_paths(&self) -> bool {
        match self.mobility.version {
            Version::None => false,
            Version::Mobike => self.mobility.decides,
            Version::MobikeX => !self.mobility.echo,
        }
    }

    /// When the next test is due.
    pub(super) fn path_test_at(&self) -> Option<Instant> {
        self.mobility.tests_at.filter(|_| self.tests_paths() && self.peer().is_some())
    }

    /// Starts a test if one is due and the window is free; otherwise it is the next one's turn.
    pub(super) fn test_paths(&mut self, ctx: &Ctx<'_>) {
        if self.path_test_at().is_none_or(|at| at > ctx.now) {
            return;
        }
        let current = self.current();
        let mut pairs = self.routes(ctx);
        pairs.retain(|p| *p != current && !self.mobility.refused_pairs.contains(p));
        let better: Vec<Path> = pairs.iter().copied().filter(|p| self.is_better(ctx, p)).collect();
        let pause = if better.is_empty() { OTHER } else { BETTER };
        self.mobility.tests_at = Some(ctx.now + pause);
        let pairs = if better.is_empty() { pairs } else { better };
        if pairs.is_empty() || self.pending.is_some() || !self.tasks.is_empty() {
            return;
        }
        self.mobility.tests = self.mobility.tests.wrapping_add(1);
        let turn = self.mobility.tests % pairs.len();
        self.tasks.push(Task::TestPath(pairs[turn]));
    }

    /// A pair is worth more than the one in use when its interface is.
    fn is_better(&self, ctx: &Ctx<'_>, pair: &Path) -> bool {
        let worth = |p: &Path| self.own(ctx, p.local).preference;
        worth(pair) > worth(&self.current())
    }

    /// COOKIE2 and NAT detection over one pair.
    pub(super) fn start_path_test(&mut self, ctx: &mut Ctx<'_>, path: Path) -> Result<(), IkeError> {
        if !ctx.network.has(path.local.ip()) || path == self.current() {
            return Ok(());
        }
        debug!(target: "IKE", "{} testing {path}", self.name());
        let cookie = cookie(ctx);
        let payloads = self.question(path.local, path.remote, Some(&cookie));
        let exchange = Exchange::PathTest { path, cookie, at: ctx.now };
        let via = Via { path, tries: TRIES };
        self.send_request_via(ctx, ExchangeType::INFORMATIONAL, exchange, &payloads, Some(via)).map(drop)
    }

    /// The answer; `only_there` says that it came by way of the pair under test alone.
    pub(super) fn handle_path_test_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        (path, cookie, at): (Path, &[u8], Instant),
        payloads: &[Payload],
        only_there: bool,
    ) -> Result<(), Gone> {
        self.verify_cookie(ctx, cookie, payloads)?;
        let before = self.mobility.table.health(&path);
        if only_there {
            self.mobility.table.tested(path, ctx.now.saturating_duration_since(at), ctx.now);
        } else {
            self.mobility.table.fail(|p| *p == path, ctx.now);
        }
        let after = self.mobility.table.health(&path);
        match after {
            _ if before == after => {}
            Health::Up => ctx.event(Event::PathUp { ike: self.name(), path }),
            Health::Down => ctx.event(Event::PathDown { ike: self.name(), path }),
            Health::Unknown => {}
        }
        if only_there && self.mobility.version == Version::Mobike && self.is_better(ctx, &path) {
            info!(target: "IKE", "{} {path} works and is preferred", self.name());
            self.found_working(ctx, (path.local, path.remote));
        }
        self.refresh(ctx);
        Ok(())
    }
}
