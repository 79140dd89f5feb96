//! What an IKE SA does by itself as time passes.

use std::time::{Duration, Instant};

use super::child::ChildSa;
use super::ctx::Ctx;
use super::sa::{Gone, IkeSa, State};
use super::tasks::Task;
use super::versions::Version;

/// An initiator behind a NAT keeps its mapping alive (RFC 3948 4).
const NAT_KEEPALIVE: Duration = Duration::from_secs(20);
/// How long a peer may take to delete an IKE SA that it has rekeyed.
const REKEYED_LIFETIME: Duration = Duration::from_secs(120);
/// How long the DELETE of an SA that was replaced may take before we ask for it.
const FORGOTTEN: Duration = Duration::from_secs(3);

impl IkeSa {
    /// Everything that is due. An error says that the SA is gone.
    pub(super) fn handle_timeout(&mut self, ctx: &mut Ctx<'_>) -> Result<(), Gone> {
        if self.expire_at.is_some_and(|at| at <= ctx.now) && self.is_needed(ctx) {
            self.expire_at = Some(ctx.now + REKEYED_LIFETIME);
        }
        if self.expire_at.is_some_and(|at| at <= ctx.now) {
            let reason = match (&self.state, self.rekeyed_by) {
                (State::HalfOpen(_) | State::AuthServing(_), _) => {
                    "the initiator did not authenticate in time"
                }
                (_, Some(_)) => "the peer did not delete it after rekeying",
                _ => "its lifetime is over and rekeying failed",
            };
            return Err(self.close(ctx, reason, self.rekeyed_by.is_none() && self.peer().is_some()));
        }
        self.parting_timeout(ctx)?;
        self.retransmit(ctx)?;
        self.fragments.expire(ctx.now);
        self.tasks.ripen(ctx.now);
        if self.peer().is_some() && self.rekeyed_by.is_none() {
            if self.rekey_at.is_some_and(|at| at <= ctx.now) {
                self.rekey_at = None;
                self.tasks.push(Task::RekeyIke);
            }
            self.reauth_timeouts(ctx);
            if self.dead_peer_check_at().is_some_and(|at| at <= ctx.now) {
                self.tasks.push(Task::Liveness);
                // Heard again or dead: either way not due before the next interval.
                self.last_heard = ctx.now;
            }
            if self.keepalive_at().is_some_and(|at| at <= ctx.now) {
                self.last_keepalive = ctx.now;
                ctx.transmit(self.local, self.remote, false, vec![0xff]);
            }
        }
        if self.forgotten_at().is_some_and(|at| at <= ctx.now) {
            self.tasks.push(Task::Liveness);
            self.last_heard = ctx.now;
        }
        self.child_timeouts(ctx);
        self.idle_timeouts(ctx);
        self.mobility_timeouts(ctx);
        self.run_tasks(ctx);
        Ok(())
    }

    /// Whether the peer has not been heard on the IKE SA that it has replaced this one by: it may lack the answer that made
    /// it, and asks for that here. The new one has an end of its own if it never does.
    fn is_needed(&self, ctx: &Ctx<'_>) -> bool {
        let answered = |sa: &Self| sa.next_request - u32::from(sa.pending.is_some());
        let unheard = |sa: &Self| !sa.initiator.is_us() && sa.expected_request == 0 && answered(sa) == 0;
        self.rekeyed_by.and_then(|id| ctx.others.get(id)).is_some_and(unheard)
    }

    fn dead_peer_check_at(&self) -> Option<Instant> {
        (!self.conn.dpd_delay.is_zero() && self.pending.is_none())
            .then(|| self.last_heard + self.conn.dpd_delay)
    }

    /// When the peer should have deleted an SA that it has replaced. Perhaps our answer was lost and we have moved since, so
    /// that it waits where we are not and knows no other SA: hearing us on this one it asks there once more.
    fn forgotten_at(&self) -> Option<Instant> {
        let waits = self.rekeyed_by.is_some() && self.peer().is_some() && self.pending.is_none();
        (waits && self.mobility.version != Version::None).then(|| self.last_heard + FORGOTTEN)
    }

    fn keepalive_at(&self) -> Option<Instant> {
        (self.nat_t && self.behind_nat).then(|| self.last_keepalive + NAT_KEEPALIVE)
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let established = self.peer().is_some() && self.rekeyed_by.is_none();
        [
            self.expire_at,
            self.pending.as_ref().map(|p| p.next),
            self.tasks.due(),
            self.parting_at(),
            self.rekey_at.filter(|_| established),
            self.reauth.timeout().filter(|_| established),
            self.dead_peer_check_at().filter(|_| established),
            self.keepalive_at().filter(|_| established),
            self.forgotten_at(),
            self.fragments.timeout(),
            self.children.iter().filter_map(ChildSa::next_timeout).min(),
            self.mobility_timeout().filter(|_| established),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Marks this SA as replaced: it only waits for its DELETE now.
    pub(super) fn mark_rekeyed(&mut self, ctx: &mut Ctx<'_>, by: u32) {
        self.rekeyed_by = Some(by);
        self.rekey_at = None;
        self.expire_at = Some(ctx.now + REKEYED_LIFETIME);
    }
}
