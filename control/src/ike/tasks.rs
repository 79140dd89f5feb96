//! What an IKE SA has still to do with the peer: once the window is free, or later.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mobikex_common::addr::Path;
use mobikex_common::sa::{ChildSaId, PolicyId};
use mobikex_common::spi::Spi;
use mobikex_common::wire::ike::ExchangeType;
use rand_core::Rng;
use tracing::info;

use super::ctx::Ctx;
use super::error::IkeError;
use super::mobike_x::Request;
use super::mobility::cookie;
use super::sa::IkeSa;
use super::versions::Version;
use super::window::Exchange;

/// Something to do once the window is free.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Task {
    CreateChild(String),
    /// A further one of a policy, for a worker.
    CreateOwn(PolicyId, u32),
    RekeyChild(ChildSaId),
    DeleteChild(ChildSaId),
    /// Tell the peer of the end of a Child SA of which it could not be told when it came.
    TellEnd(ChildSaId, Spi),
    RekeyIke,
    DeleteIke(String),
    Liveness,
    /// The same because of a complaint that anybody could have sent.
    Doubt,
    /// Tell the peer what has changed about our addresses, if anything has.
    Reconcile,
    /// See whether the peer is at an address.
    Check(SocketAddr),
    /// See whether the peer is where its packets come from, though it has not told of that.
    CheckSource(Path),
    /// See whether a pair of addresses works.
    TestPath(Path),
    /// Offer a version of MOBIKE once more.
    Negotiate(Version),
    /// End MOBIKE-X.
    MobikeNone,
    /// An action on addresses that an operator wants.
    Address(Request),
}

/// The tasks of one IKE SA.
#[derive(Default)]
pub(super) struct Tasks {
    queue: VecDeque<Task>,
    /// Those that wait for a time.
    later: Vec<(Instant, Task)>,
    /// How often in a row the peer has put us off.
    put_off: u32,
}

impl Tasks {
    /// After all others.
    pub(super) fn push(&mut self, task: Task) {
        self.queue.push_back(task);
    }

    /// Before all others.
    pub(super) fn push_first(&mut self, task: Task) {
        self.queue.push_front(task);
    }

    pub(super) fn extend(&mut self, tasks: impl IntoIterator<Item = Task>) {
        self.queue.extend(tasks);
    }

    /// Not before `at`.
    pub(super) fn push_at(&mut self, at: Instant, task: Task) {
        self.later.push((at, task));
    }

    /// Tries `task` again in a few seconds (RFC 7296 2.25).
    pub(super) fn put_off(&mut self, now: Instant, rng: &mut impl Rng, task: Task) {
        // Two that ask each other at the same time would never stop, if both tried again at once (RFC 7296 2.25).
        let millis = 2000 + rng.next_u64() % (3000 << self.put_off.saturating_sub(2));
        self.put_off = (self.put_off + 1).min(6);
        self.push_at(now + Duration::from_millis(millis), task);
    }

    /// The peer has done what it was asked for: it puts us off no more.
    pub(super) fn welcome(&mut self) {
        self.put_off = 0;
    }

    /// The next one that need not wait.
    pub(super) fn next(&mut self) -> Option<Task> {
        self.queue.pop_front()
    }

    /// Queues those whose time has come.
    pub(super) fn ripen(&mut self, now: Instant) {
        self.queue.extend(self.later.extract_if(.., |(at, _)| *at <= now).map(|(_, task)| task));
    }

    /// When the first of those comes that wait for a time.
    pub(super) fn due(&self) -> Option<Instant> {
        self.later.iter().map(|(at, _)| *at).min()
    }

    /// Whether nothing is left to do now.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether there is such a one that need not wait.
    pub(super) fn any(&self, which: impl Fn(&Task) -> bool) -> bool {
        self.queue.iter().any(which)
    }

    /// Whether this one is queued and need not wait.
    pub(super) fn contains(&self, task: &Task) -> bool {
        self.queue.contains(task)
    }

    /// Whether there is such a one that waits for its time.
    pub(super) fn any_later(&self, which: impl Fn(&Task) -> bool) -> bool {
        self.later.iter().any(|(_, task)| which(task))
    }

    pub(super) fn retain(&mut self, which: impl Fn(&Task) -> bool) {
        self.queue.retain(&which);
        self.later.retain(|(_, task)| which(task));
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.later.clear();
    }

    /// Takes out what fits.
    pub(super) fn take(&mut self, which: impl Fn(&Task) -> bool) -> Self {
        let (queue, own) = std::mem::take(&mut self.queue).into_iter().partition(&which);
        self.queue = own;
        let later = self.later.extract_if(.., |(_, task)| which(task)).collect();
        Self { queue, later, put_off: 0 }
    }

    /// Adds those of another IKE SA.
    pub(super) fn append(&mut self, other: Self) {
        self.queue.extend(other.queue);
        self.later.extend(other.later);
    }

    /// Takes no more room than it needs.
    pub(super) fn rest(&mut self) {
        self.queue.shrink_to_fit();
        self.later.shrink_to_fit();
    }
}

impl IkeSa {
    /// Queues a task unless the same one already waits, and starts it if the window is free.
    pub(super) fn add_task(&mut self, ctx: &mut Ctx<'_>, task: Task) {
        if !self.tasks.contains(&task) {
            self.tasks.push(task);
        }
        self.run_tasks(ctx);
    }

    /// Starts waiting tasks while the window is free.
    pub(super) fn run_tasks(&mut self, ctx: &mut Ctx<'_>) {
        while self.pending.is_none() && self.peer().is_some() && self.parting.is_none() {
            let Some(task) = self.tasks.next() else { return self.conclude_reauth(ctx) };
            if let Err(error) = self.start(ctx, &task) {
                info!(target: "IKE", "{} cannot do {task:?}: {error}", self.name());
            }
        }
    }

    fn start(&mut self, ctx: &mut Ctx<'_>, task: &Task) -> Result<(), IkeError> {
        match task {
            Task::CreateChild(name) => self.start_create_child(ctx, name),
            Task::CreateOwn(policy, worker) => self.start_create_own(ctx, *policy, *worker),
            Task::RekeyChild(id) => self.start_rekey_child(ctx, *id),
            Task::DeleteChild(id) => self.start_delete_child(ctx, *id),
            Task::TellEnd(id, spi) => self.send_delete(ctx, *id, *spi),
            Task::RekeyIke => self.start_rekey_ike(ctx),
            Task::DeleteIke(reason) => self.start_delete_ike(ctx, reason),
            Task::Liveness => self.start_liveness(ctx, None),
            Task::Doubt => {
                // So that the answer also proves where the peer is (RFC 4555 5.3).
                let cookie = (self.mobility.version != Version::None).then(|| cookie(ctx));
                self.start_liveness(ctx, cookie)
            }
            Task::Reconcile => self.start_reconcile(ctx),
            Task::Check(remote) => self.start_check(ctx, *remote),
            Task::CheckSource(pair) => self.start_check_of_source(ctx, *pair),
            Task::TestPath(path) => self.start_path_test(ctx, *path),
            Task::Negotiate(version) => self.start_negotiation(ctx, *version),
            Task::MobikeNone => self.start_mobike_none(ctx),
            Task::Address(request) => self.send_actions(ctx, vec![request.clone()], None),
        }
    }

    fn start_liveness(&mut self, ctx: &mut Ctx<'_>, cookie: Option<Vec<u8>>) -> Result<(), IkeError> {
        let payloads = self.question(self.local, self.remote, cookie.as_deref());
        self.send_request(ctx, ExchangeType::INFORMATIONAL, Exchange::Liveness(cookie), &payloads).map(drop)
    }

    /// Tries `task` again in a few seconds.
    pub(super) fn retry_later(&mut self, ctx: &mut Ctx<'_>, task: Task) {
        self.tasks.put_off(ctx.now, ctx.rng, task);
    }
}
