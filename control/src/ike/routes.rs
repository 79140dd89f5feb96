//! Requests over several pairs of addresses: which pairs there are, which are tried next, and which one has worked.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mobikex_common::addr::Path;
use tracing::{debug, info};

use super::addresses::MAX_ADDRESSES;
use super::ctx::Ctx;
use super::path_table::{Health, path};
use super::sa::IkeSa;
use super::sets::Check;
use super::tasks::Task;
use super::versions::Version;
use super::window::{Pending, QUICK_ATTEMPTS};
use crate::config::ReturnRoutability;

/// Pairs of addresses over which one request is sent at most.
const MAX_ROUTES: usize = 8;

impl IkeSa {
    /// Sends over another pair from now on, beginning with the request under way.
    pub(super) fn retarget(&mut self, ctx: &mut Ctx<'_>, local: SocketAddr, remote: SocketAddr) {
        if (self.local, self.remote) == (local, remote) {
            return;
        }
        self.goes_over((local, remote));
        // What goes over a pair of its own stays there.
        if let Some(pending) = self.pending.as_mut().filter(|p| p.via.is_none()) {
            pending.goes_over(path(local, remote));
            let message = pending.message.clone();
            let sent = self.send_over(ctx, self.current(), &message);
            if let (Err(when), Some(pending)) = (sent, &mut self.pending) {
                pending.next = pending.next.min(when);
            }
        }
    }

    /// Notes another current pair; whether there is a NAT on the way of another family is not known.
    fn goes_over(&mut self, (local, remote): (SocketAddr, SocketAddr)) {
        self.peer_behind_nat |= self.remote.is_ipv4() != remote.is_ipv4();
        (self.local, self.remote) = (local, remote);
    }

    /// Our addresses that the connection may use and that lead to some address of the peer, or anywhere.
    pub(super) fn candidates(&self, ctx: &Ctx<'_>) -> Vec<IpAddr> {
        let remotes = self.peer_addresses(ctx.now);
        let mut found: Vec<_> = ctx
            .network
            .usable(&self.conn)
            .filter(|a| a.leads_anywhere() || remotes.iter().any(|r| a.reaches(r.ip())))
            .map(|a| (std::cmp::Reverse(self.conn.paths.preference(&a.interface)), a.addr))
            .collect();
        // Stable, so that the system's order decides among equals.
        found.sort_by_key(|(preference, _)| *preference);
        found.into_iter().map(|(_, addr)| addr).take(MAX_ADDRESSES).collect()
    }

    /// Where the peer may be found, the present address first.
    pub(super) fn peer_addresses(&self, now: Instant) -> Vec<SocketAddr> {
        let mut found = vec![self.remote];
        // A NAT may show several as one address with several ports.
        for outer in self.children.iter().flat_map(|c| c.halves.remote.iter()) {
            if !found.contains(&outer.addr) {
                found.push(outer.addr);
            }
        }
        let mut push = |addr: SocketAddr| {
            if !found.iter().any(|f| f.ip() == addr.ip()) {
                found.push(addr);
            }
        };
        self.mobility.previous.iter().for_each(|(_, remote)| push(*remote));
        let port = self.remote.port();
        // In version 1 the responder has no other use for the initiator's list than to tell it of its own (RFC 4555 3.4,
        // 3.6).
        let version_1 = self.mobility.version == Version::Mobike;
        if !version_1 || self.mobility.decides || self.mobility.untold {
            self.mobility.alternates.ranked(now).into_iter().for_each(|a| push(SocketAddr::new(a, port)));
        }
        self.conn.remote_singles().for_each(|a| push(SocketAddr::new(a, port)));
        found
    }

    /// Pairs over which a request may reach the peer, the most promising first.
    pub(super) fn routes(&self, ctx: &Ctx<'_>) -> Vec<Path> {
        let mut found = Vec::new();
        let mut push = |p: Path| {
            if found.len() < MAX_ROUTES && !found.contains(&p) {
                found.push(p);
            }
        };
        if ctx.network.has(self.local.ip()) {
            push(self.current());
        }
        if self.mobility.version == Version::None {
            return vec![self.current()];
        }
        let up = self.mobility.table.iter().filter(|p| p.health == Health::Up);
        up.filter(|p| ctx.network.has(p.path.local.ip())).for_each(|p| push(p.path));
        let remotes = self.peer_addresses(ctx.now);
        for local in self.candidates(ctx) {
            let reaches = |r: &&SocketAddr| ctx.network.find(local).is_some_and(|l| l.reaches(r.ip()));
            for remote in remotes.iter().filter(reaches) {
                push(path(SocketAddr::new(local, self.local.port()), *remote));
            }
        }
        found
    }

    /// Whether the peer has been at an address, or is configured to be: then it may get more than one datagram a second.
    pub(super) fn is_proven(&self, remote: SocketAddr) -> bool {
        // Without checks, only what has been answered over some pair shows it.
        let answered = || match self.conn.return_routability {
            ReturnRoutability::Off => {
                self.mobility.table.iter().any(|p| p.path.remote == remote && p.health == Health::Up)
            }
            _ => true,
        };
        (self.mobility.checks.get(&remote) == Some(&Check::Passed) && answered())
            || self.conn.remote_singles().any(|a| a == remote.ip())
    }

    /// The pairs for one more transmission. An address at which the peer has never been gets one datagram of them (M6 of
    /// the threats), each time from another address of ours.
    fn routes_now(&self, ctx: &Ctx<'_>) -> Vec<Path> {
        let routes = self.routes(ctx);
        let turn = self.pending.as_ref().map_or(0, |p| p.attempts as usize);
        let chosen = |p: &Path| {
            let mut same = routes.iter().filter(|r| r.remote == p.remote);
            let count = same.clone().count();
            self.is_proven(p.remote) || same.nth(turn % count.max(1)) == Some(p)
        };
        routes.iter().filter(|p| chosen(p)).copied().collect()
    }

    /// Sends the request under way once more: first as it was sent, then over every other pair as well.
    pub(super) fn transmit_again(&mut self, ctx: &mut Ctx<'_>) {
        let current = self.current();
        let alone = self.pending.as_ref().is_none_or(|p| p.attempts < 2);
        let routes = if alone { vec![current] } else { self.routes_now(ctx) };
        let name = self.name();
        let Some(pending) = &mut self.pending else { return };
        let message = pending.message.clone();
        let routes = match &mut pending.via {
            Some(via) if via.tries > 1 => {
                via.tries -= 1;
                vec![via.path]
            }
            Some(via) => {
                debug!(target: "IKE", "{name} {} does not answer, going on over {current}", via.path);
                pending.via = None;
                vec![current]
            }
            None => routes,
        };
        routes.iter().for_each(|route| pending.goes_over(*route));
        for route in routes {
            // What may not go there now does so with the next one.
            let _ = self.send_over(ctx, route, &message);
        }
    }

    /// The peer asks something over another pair, while it does not answer us over the ones that we know, or is heard again
    /// after a long time. Within three times what came from there meanwhile (M4 of the threats), our request goes there too.
    pub(super) fn try_there(
        &mut self,
        ctx: &mut Ctx<'_>,
        (local, remote): (SocketAddr, SocketAddr),
        octets: usize,
    ) {
        let elsewhere = (local, remote) != (self.local, self.remote);
        let mobile = self.mobility.version != Version::None && self.acceptable(ctx, remote.ip());
        let patience = if elsewhere { 0 } else { QUICK_ATTEMPTS };
        let waits = |p: &&mut Box<Pending>| p.attempts > patience && p.via.is_none();
        let Some(pending) = self.pending.as_mut().filter(waits).filter(|_| mobile) else { return };
        let before = pending.credit.filter(|(from, _)| *from == remote).map_or(0, |(_, credit)| credit);
        let credit = before.saturating_add(3 * octets);
        let needed = pending.message.octets();
        pending.credit = Some((remote, credit.checked_sub(needed).unwrap_or(credit)));
        if credit >= needed {
            pending.goes_over(path(local, remote));
            let message = pending.message.clone();
            let _ = self.send_over(ctx, path(local, remote), &message);
        }
    }

    /// An answer came over a pair other than the current one, which did not answer: that one works.
    pub(super) fn found_working(&mut self, ctx: &mut Ctx<'_>, addresses: (SocketAddr, SocketAddr)) {
        let (local, remote) = addresses;
        let known = self.peer_addresses(ctx.now).contains(&remote)
            || self.mobility.mappings.has(&path(local, remote));
        if known && self.mobility.adrift {
            return self.follow_initiator(ctx, addresses);
        }
        if self.mobility.version == Version::None || !known || (self.local, self.remote) == addresses {
            return;
        }
        if self.mobility.version == Version::MobikeX || self.mobility.decides {
            info!(target: "IKE", "{} found a working path {}", self.name(), path(local, remote));
            self.mobility.previous = Some((self.local, self.remote));
            self.goes_over(addresses);
            self.mobility.table.proven(self.current(), ctx.now);
            self.mobility.update_wanted = true;
            self.tasks.push(Task::Reconcile);
        }
    }
}
