//! Child SAs that nothing has gone over for a while are closed (`inactivity`).

use std::time::Instant;

use mobikex_common::sa::ChildSaId;
use tracing::info;

use super::child::ChildSa;
use super::ctx::Ctx;
use super::endpoint::Endpoint;
use super::output::Output;
use super::sa::IkeSa;
use super::tasks::Task;

/// How often packets are counted within the time: so much later at most an SA is closed.
const COUNTS: u32 = 4;

/// What is known about the use of a Child SA.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Idle {
    /// When to count next.
    due: Option<Instant>,
    /// Packets in both directions when they were counted last.
    packets: u64,
    /// Counts since then that have found no more.
    unchanged: u32,
}

impl Idle {
    /// For a new SA, with `inactivity` or zero.
    pub(super) fn new(now: Instant, inactivity: std::time::Duration) -> Self {
        Self { due: (!inactivity.is_zero()).then(|| now + inactivity / COUNTS), ..Self::default() }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl IkeSa {
    /// Has the packets counted of every SA for which it is time.
    pub(super) fn idle_timeouts(&mut self, ctx: &mut Ctx<'_>) {
        for child in self.children.iter_mut().filter(|c| c.is_live()) {
            if child.idle.due.take_if(|at| *at <= ctx.now).is_some() {
                ctx.out.push_back(Output::CountPackets(child.id));
            }
        }
    }

    fn note_packets(&mut self, ctx: &mut Ctx<'_>, id: ChildSaId, packets: u64) {
        // What all workers may fall back to stays as long as one of them has another one.
        let policy = self.child(id).filter(|c| c.resource.worker.is_none()).map(|c| c.policy);
        let further = |c: &ChildSa| c.is_live() && c.resource.worker.is_some() && Some(c.policy) == policy;
        let needed = self.children.iter().any(further);
        let Some(child) = self.child(id).filter(|c| c.is_live()) else { return };
        let (name, inactivity) = (child.name(), child.config.inactivity);
        let ChildSa { idle, .. } = child;
        idle.unchanged = if packets == idle.packets && !needed { idle.unchanged + 1 } else { 0 };
        idle.packets = packets;
        if idle.unchanged < COUNTS {
            idle.due = Some(ctx.now + inactivity / COUNTS);
            return;
        }
        info!(target: "CHD", "closing CHILD_SA {name} after {} s without a packet", inactivity.as_secs());
        self.add_task(ctx, Task::DeleteChild(id));
    }
}

impl Endpoint {
    /// How many packets a Child SA has carried in both directions, for [`Output::CountPackets`].
    pub fn note_packets(&mut self, now: Instant, child: ChildSaId, packets: u64) {
        self.with_owner(now, child, |sa, ctx| sa.note_packets(ctx, child, packets));
    }
}
