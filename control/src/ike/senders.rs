//! Which Child SA sends: one at a time for each policy, or for what one worker has of it, whichever IKE SA it belongs to.
//!
//! After a new proof (RFC 7296 2.8.3) two IKE SAs with one peer have the same Child SAs for a while. These share a policy. The
//! elder ones go on sending until the peer is known to have the new ones, and when their IKE SA goes they still receive for a
//! while, as lodgers of the one that stays.

use std::time::Instant;

use mobikex_common::sa::{ChildSaId, PolicyId};

use super::child::{Agreed, ChildSa, Place};
use super::ctx::{Ctx, Effect};
use super::output::Output;
use super::sa::IkeSa;
use super::tasks::Tasks;

impl IkeSa {
    /// Lets the policy's traffic go out on `id` from now on, which may be of another IKE SA.
    pub(super) fn activate(&mut self, ctx: &mut Ctx<'_>, id: ChildSaId) {
        if let Some(child) = self.child(id) {
            child.resource.unheard = false;
        }
        let mut own = self.children.iter();
        let child = own.find(|c| c.id == id).or_else(|| ctx.others.child(id));
        if let Some(place) = child.filter(|c| !c.outbound).map(ChildSa::place) {
            self.note_sender(ctx, place, Some(id));
            ctx.out.push_back(Output::ActivateOutbound(id));
        }
    }

    /// The peer has sent on `id`, so that it has it. A late packet on one that was replaced meanwhile says nothing.
    pub(super) fn peer_sends_on(&mut self, ctx: &mut Ctx<'_>, id: ChildSaId) {
        let leaves = self.is_leaving();
        let Some(child) = self.child(id).filter(|c| c.is_live() && !leaves) else { return };
        child.resource.unheard = false;
        let further = child.resource.worker.is_some() && child.fresh.is_some();
        if !further || !self.has_sender_beside(id) {
            self.activate(ctx, id);
        }
    }

    /// The peer has answered a request of ours, as only a complete IKE SA can: it has what our IKE_AUTH answer has made.
    pub(super) fn answer_heard(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(id) = self.unconfirmed.take() {
            self.peer_sends_on(ctx, id);
        }
        self.peer_has_this(ctx);
    }

    /// Notes that `id` sends in its place from now on; `None`: one that is not there yet.
    pub(super) fn note_sender(&mut self, ctx: &mut Ctx<'_>, place: Place, id: Option<ChildSaId>) {
        for child in self.children.iter_mut().filter(|c| c.place() == place) {
            child.note_sender(ctx.now, id);
        }
        ctx.others.note_sender(ctx.now, place, id);
    }

    /// Which SA of a place sends when `id` does not any more, nor what is redundant to `winner`.
    pub(super) fn heir(
        &self,
        ctx: &Ctx<'_>,
        place: Place,
        id: ChildSaId,
        winner: Option<ChildSaId>,
    ) -> Option<ChildSaId> {
        let stays = |c: &ChildSa| c.redundant_to.is_none() || c.redundant_to != winner;
        let rank = |c: &&ChildSa| (c.outbound && stays(c), c.redundant_to.is_none());
        let own = self.children.iter().filter(|c| c.id != id && c.may_send_in(place)).max_by_key(rank);
        let other = heir_elsewhere(ctx, place);
        own.filter(|_| !other.is_some_and(|c| c.outbound)).or(other).map(|c| c.id)
    }

    /// The Child SA of another IKE SA with the same peer that is what was agreed upon now.
    pub(super) fn elder<'a>(&self, ctx: &'a Ctx<'_>, agreed: &Agreed) -> Option<&'a ChildSa> {
        let like = ctx.others.of_peer(self.peer()?.id()).filter(|sa| self.has_ends_of(sa));
        let children = like.flat_map(|sa| &sa.children);
        let fits = |c: &&ChildSa| c.is_live() && c.resource.worker.is_none() && c.is_for(agreed);
        children.filter(fits).max_by_key(|c| (c.outbound, c.id))
    }

    /// The trap of a child, unless it is another peer's already: a policy belongs to one.
    pub(super) fn free_trap(&self, ctx: &Ctx<'_>, child: &str) -> Option<PolicyId> {
        let trap = ctx.traps.policy(&self.conn.name, child)?;
        ctx.others.with_policy(trap).all(|sa| self.has_ends_of(sa)).then_some(trap)
    }

    /// Whether both are of one connection and between the same two.
    fn has_ends_of(&self, other: &Self) -> bool {
        let peer = self.peer().zip(other.peer()).is_some_and(|(a, b)| a.is_same(b));
        let local = self.local_id.iter().zip(&other.local_id).any(|(a, b)| a.same(b));
        self.conn.name == other.conn.name && peer && local
    }

    /// Nothing goes out on any Child SA from now on for which another IKE SA has one: the peer may soon receive on these no more.
    pub(super) fn leave_to_others(&mut self, ctx: &mut Ctx<'_>) {
        let live = self.children.iter().filter(|c| c.is_live() && sharer(ctx, c.policy).is_some());
        let places: Vec<_> = live.map(|c| (c.id, c.place())).collect();
        for (id, place) in places {
            match heir_elsewhere(ctx, place).map(|c| c.id) {
                Some(heir) => self.activate(ctx, heir),
                None => {
                    self.note_sender(ctx, place, None);
                    ctx.out.push_back(Output::DeactivateOutbound(id));
                }
            }
        }
    }

    /// Until when something has gone out on Child SAs that others have taken over.
    pub(super) fn sent_until(&self, ctx: &Ctx<'_>) -> Option<Instant> {
        self.children.iter().filter(|c| sharer(ctx, c.policy).is_some()).filter_map(|c| c.sent_until).max()
    }

    /// This IKE SA ends: its Child SAs of which another one has the like go on receiving there.
    pub(super) fn lodge_children(&mut self, ctx: &mut Ctx<'_>, reason: &str) {
        self.leave_to_others(ctx);
        let shared = self.children.iter().filter_map(|c| Some((c.id, sharer(ctx, c.policy)?)));
        for (id, to) in shared.collect::<Vec<_>>() {
            self.retire(ctx, id, reason);
            let children = self.children.extract_if(.., |c| c.id == id).collect();
            ctx.effects.push(Effect::MoveChildren { to, children, tasks: Tasks::default(), mappings: None });
        }
    }
}

impl ChildSa {
    /// Whether it is what was agreed upon now.
    pub(super) fn is_for(&self, agreed: &Agreed) -> bool {
        (&self.config.name, self.mode) == (&agreed.config.name, agreed.mode)
            && (&self.ts_local, &self.ts_remote) == (&agreed.ts_local, &agreed.ts_remote)
    }

    /// Notes which SA sends in the place of this one.
    pub(super) fn note_sender(&mut self, now: Instant, id: Option<ChildSaId>) {
        if self.outbound && Some(self.id) != id {
            self.sent_until = Some(now);
        }
        self.outbound = Some(self.id) == id;
    }

    fn may_send_in(&self, place: Place) -> bool {
        self.place() == place && !self.has_ended() && self.may_send()
    }
}

/// The newest of the other IKE SAs that have SAs of a policy.
pub(super) fn sharer(ctx: &Ctx<'_>, policy: PolicyId) -> Option<u32> {
    let has_it = |sa: &&IkeSa| sa.children.iter().any(|c| c.policy == policy && !c.has_ended());
    ctx.others.with_policy(policy).filter(has_it).map(|sa| sa.id).last()
}

/// The SA of another IKE SA that sends in a place, or else may: the latest that the peer is known to have, or the first of those
/// that it will have.
fn heir_elsewhere<'a>(ctx: &'a Ctx<'_>, place: Place) -> Option<&'a ChildSa> {
    let children = ctx.others.with_policy(place.0).flat_map(|sa| &sa.children);
    let rank = |c: &&ChildSa| {
        let heard = !c.resource.unheard;
        (c.outbound, c.is_live(), heard, if heard { c.id.0 } else { u32::MAX - c.id.0 })
    };
    children.filter(|c| c.may_send_in(place)).max_by_key(rank)
}
