//! A new proof of both sides after a time: a whole new IKE SA with new Child SAs, before the old ones go, so that nothing is
//! lost (RFC 7296 2.8.3). Who answered IKE_AUTH can only say by when (AUTH_LIFETIME, RFC 4478).

use std::time::{Duration, Instant};

use mobikex_common::wire::ike::{Notify, NotifyType, Payload};
use tracing::info;

use super::child::LINGER;
use super::ctx::{Ctx, Effect};
use super::endpoint::Endpoint;
use super::rules::notify;
use super::sa::IkeSa;
use super::senders::sharer;
use super::tasks::Task;

/// What is still on its way on an old Child SA has this long to reach the peer before that is told to delete it: many receive
/// nothing on it from that moment on.
const DRAIN: Duration = Duration::from_secs(2);
/// A new proof that failed is tried once more after this long.
const AGAIN: Duration = Duration::from_secs(30);

/// How old the proof may become.
#[derive(Clone, Default)]
pub(super) struct Reauth {
    /// When to begin with the next one, if that is our affair.
    at: Option<Instant>,
    /// When the present one is worth nothing any more.
    ends: Option<Instant>,
    /// We have sent the IKE_AUTH request, so that the next one is ours as well.
    ours: bool,
    /// The attempt at a new proof that is under way: the number of its first IKE SA, since both sides of it may be rekeyed.
    attempt: Option<u32>,
    /// The attempt that this one is, as long as the old IKE SA is still needed.
    replaces: Option<u32>,
    /// The others between the same two go (`unique = replace`) as soon as the peer is known to have this one: it may yet
    /// reject our proof.
    alone: bool,
    /// A newer IKE SA has the same Child SAs, or will have when this one has taken those of its predecessor over.
    over: Option<String>,
    yields: Option<String>,
}

impl Reauth {
    /// For the IKE SA that takes this one's place by rekeying, which proves nothing.
    pub(super) fn successor(&self) -> Self {
        Self { yields: self.over.clone(), over: None, ..self.clone() }
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        self.at.into_iter().chain(self.ends).min()
    }

    /// Others go when the peer is known to have this one.
    pub(super) fn await_peer(&mut self) {
        self.alone = true;
    }

    pub(super) fn awaits_peer(&self) -> bool {
        self.alone
    }

    /// A newer IKE SA has everything.
    pub(super) fn gives_way(&self) -> bool {
        self.over.is_some()
    }

    pub(super) fn replaces(&self) -> Option<u32> {
        self.replaces
    }
}

impl IkeSa {
    /// Both sides have just been proven.
    pub(super) fn begin_authentication_age(&mut self, ctx: &mut Ctx<'_>) {
        let time = self.conn.reauth_time;
        self.reauth.ends = (!time.is_zero()).then(|| ctx.now + time + self.conn.over_time);
        self.reauth.ours = self.initiator.is_us();
        if self.reauth.ours {
            self.reauth.at = ctx.soon_before(time, self.conn.rand_time);
        }
    }

    /// What our IKE_AUTH response says about it.
    pub(super) fn authentication_lifetime(&self) -> Option<Payload> {
        let seconds = u32::try_from(self.conn.reauth_time.as_secs()).unwrap_or(u32::MAX);
        let data = seconds.to_be_bytes().to_vec();
        (seconds > 0).then(|| Payload::Notify(Notify::new(NotifyType::AUTH_LIFETIME, data)))
    }

    /// The responder of IKE_AUTH wants another proof within a time; ours may come sooner.
    pub(super) fn obey_lifetime(&mut self, ctx: &mut Ctx<'_>, payloads: &[Payload]) {
        let Some(notify) = notify(payloads, NotifyType::AUTH_LIFETIME).filter(|_| self.reauth.ours) else {
            return;
        };
        let Ok(octets) = <[u8; 4]>::try_from(notify.data.as_slice()) else { return };
        let lifetime = Duration::from_secs(u32::from_be_bytes(octets).into());
        let begin = ctx.soon_before(lifetime * 9 / 10, lifetime / 20).unwrap_or(ctx.now + AGAIN);
        self.reauth.at = Some(self.reauth.at.map_or(begin, |at| at.min(begin)));
        let (name, left) = (self.name(), begin.saturating_duration_since(ctx.now).as_secs());
        info!(target: "IKE", "{name} received AUTH_LIFETIME of {} s, reauthentication in {left} s", lifetime.as_secs());
    }

    /// What is due.
    pub(super) fn reauth_timeouts(&mut self, ctx: &mut Ctx<'_>) {
        if self.reauth.at.take_if(|at| *at <= ctx.now).is_some() {
            ctx.effects.push(Effect::Reauthenticate(self.id));
        }
        if self.reauth.ends.take_if(|at| *at <= ctx.now).is_some() {
            self.tasks.push(Task::DeleteIke("nobody has proven anything for too long".into()));
        }
    }

    /// Everything is here that the old IKE SA had: that one may go. Or this one may, if it has only just come into the place of
    /// such an old one.
    pub(super) fn conclude_reauth(&mut self, ctx: &mut Ctx<'_>) {
        if self.rekeyed_by.is_some() {
            return;
        }
        if let Some(by) = self.reauth.yields.take() {
            return self.give_way(ctx, &by);
        }
        if self.tasks.any_later(|task| matches!(task, Task::CreateChild(_))) {
            return;
        }
        if let Some(attempt) = self.reauth.replaces.take() {
            let connection = self.conn.name.clone();
            ctx.effects.push(Effect::Reauthenticated { connection, attempt, by: self.name() });
        }
    }

    /// The peer has answered or asked something that does not end this IKE SA, so that it has it.
    pub(super) fn peer_has_this(&mut self, ctx: &mut Ctx<'_>) {
        if self.parting.is_none() && std::mem::take(&mut self.reauth.alone) {
            self.end_others(ctx, false);
        }
    }

    /// No other IKE SA between the same two stays; `lost`: the peer has none of them.
    pub(super) fn end_others(&self, ctx: &mut Ctx<'_>, lost: bool) {
        if let (Some(peer), Some(local)) = (self.peer(), self.local_id.clone()) {
            ctx.effects.push(Effect::OnlyThis { keep: self.id, peer: peer.id().clone(), local, lost });
        }
    }

    /// A newer IKE SA has the same Child SAs. Each goes by itself, since those go on receiving for a while, and the IKE SA
    /// last.
    pub(super) fn give_way(&mut self, ctx: &mut Ctx<'_>, by: &str) {
        info!(target: "IKE", "{} reauthenticated as {by}", self.name());
        (self.rekey_at, self.reauth) = (None, Reauth { over: Some(by.to_string()), ..Reauth::default() });
        self.tasks.clear();
        // What goes out from now on goes out on the new ones.
        self.leave_to_others(ctx);
        for child in self.children.iter_mut().filter(|c| c.is_live()) {
            if sharer(ctx, child.policy).is_none() {
                child.hand_over(ctx);
            }
            self.tasks.push_at(ctx.now + DRAIN, Task::DeleteChild(child.id));
        }
        self.tasks.push_at(ctx.now + 2 * LINGER, Task::DeleteIke("reauthenticated".into()));
        self.run_tasks(ctx);
    }
}

impl Endpoint {
    pub(super) fn reauthenticate(&mut self, now: Instant, old: u32) {
        let Some(sa) = self.sas.get(old) else { return };
        let mut wanted: Vec<String> = Vec::new();
        for child in sa.children.iter().filter(|c| c.is_live()) {
            if !wanted.contains(&child.config.name) {
                wanted.push(child.config.name.clone());
            }
        }
        info!(target: "IKE", "reauthenticating IKE_SA {}", sa.name());
        let conn = self.connection(&sa.conn.name).unwrap_or_else(|| sa.conn.clone());
        let started = self.start(now, conn, wanted);
        match started {
            Ok(new) => {
                self.with_sa(now, old, |sa, _| {
                    sa.reauth.attempt = Some(new);
                    Ok(())
                });
                self.with_sa(now, new, |sa, _| {
                    sa.reauth.replaces = Some(new);
                    Ok(())
                });
            }
            Err(error) => {
                info!(target: "IKE", "{error}");
                self.with_sa(now, old, |sa, _| {
                    sa.reauth.at = Some(now + AGAIN);
                    Ok(())
                });
            }
        }
    }

    /// An attempt has failed.
    pub(super) fn reauthenticate_later(&mut self, now: Instant, connection: &str, attempt: u32) {
        for id in self.waiting_for(connection, attempt) {
            self.with_sa(now, id, |sa, _| {
                sa.reauth.at = Some(now + AGAIN);
                Ok(())
            });
        }
    }

    /// An attempt has led to all that there was before.
    pub(super) fn reauthenticated(&mut self, now: Instant, connection: &str, attempt: u32, by: &str) {
        for id in self.waiting_for(connection, attempt) {
            self.with_sa(now, id, |sa, ctx| {
                sa.give_way(ctx, by);
                Ok(())
            });
        }
    }

    fn waiting_for(&self, connection: &str, attempt: u32) -> Vec<u32> {
        let waits = |sa: &&IkeSa| sa.reauth.attempt == Some(attempt) && sa.rekeyed_by.is_none();
        self.sas.of_connection(connection).filter(waits).map(|sa| sa.id).collect()
    }
}
