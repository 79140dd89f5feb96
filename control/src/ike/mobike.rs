//! MOBIKE (RFC 4555): the requests and answers of version 1, and what version 2 shares with it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mobikex_common::addr::Path;
use mobikex_common::sa::Mode;
use mobikex_common::wire::ike::{ExchangeType, Notify, NotifyType, Payload};
use tracing::{debug, info};

use super::addresses::{Half, Halves, Outer, Replaces};
use super::ctx::Ctx;
use super::error::IkeError;
use super::mobility::{CHECK_TRIES, cookie, is_private};
use super::output::Event;
use super::path_table::path;
use super::rules::notify;
use super::sa::{Gone, IkeSa};
use super::sets::Check;
use super::tasks::Task;
use super::versions::{self, Outcome, Version};
use super::window::{Exchange, Via};
use crate::config::MobikeX;

/// New requests after the answer UNEXPECTED_NAT_DETECTED, as many as a request is retransmitted (RFC 4555 3.9).
pub(super) const NAT_RETRIES: u32 = 5;

/// An UPDATE_SA_ADDRESSES of version 1 that is under way.
pub(super) struct Update {
    local: SocketAddr,
    remote: SocketAddr,
    cookie: Vec<u8>,
}

/// Data of NO_NATS_ALLOWED (RFC 4555 4.2.6): `None` when the families differ.
pub(super) fn no_nats_data(source: SocketAddr, destination: SocketAddr) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            data.extend(a.octets());
            data.extend(b.octets());
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            data.extend(a.octets());
            data.extend(b.octets());
        }
        _ => return None,
    }
    data.extend(source.port().to_be_bytes());
    data.extend(destination.port().to_be_bytes());
    Some(data)
}

/// The addresses in ADDITIONAL_IP4_ADDRESS and ADDITIONAL_IP6_ADDRESS of version 1; others than 4 and 16 octets are
/// none.
fn additional(payloads: &[Payload]) -> Half {
    let addr = |p: &Payload| match p {
        Payload::Notify(n) if n.kind == NotifyType::ADDITIONAL_IP4_ADDRESS => {
            <[u8; 4]>::try_from(n.data.as_slice()).ok().map(IpAddr::from)
        }
        Payload::Notify(n) if n.kind == NotifyType::ADDITIONAL_IP6_ADDRESS => {
            <[u8; 16]>::try_from(n.data.as_slice()).ok().map(IpAddr::from)
        }
        _ => None,
    };
    let mut found = Half::default();
    for addr in payloads.iter().filter_map(addr) {
        found.add(alternate(addr));
    }
    found
}

/// Without a port: that of the peer's address in use is the best guess.
fn alternate(addr: IpAddr) -> Outer {
    Outer::new(SocketAddr::new(addr, 0))
}

impl IkeSa {
    // ---- set-up (RFC 4555 3.2 to 3.4) ----------------------------------------------------------------------------------

    /// What our IKE_AUTH request says about addresses.
    pub(super) fn offer_mobility(&mut self, ctx: &Ctx<'_>) -> Vec<Payload> {
        let allowed = versions::allowed(&self.conn);
        // Some speakers of version 1 discard an offer with data.
        let offered = if self.discards_data { vec![Version::Mobike] } else { allowed.clone() };
        let offered: Vec<Version> = offered.into_iter().filter(|v| allowed.contains(v)).collect();
        let Some(offer) = versions::offer(&offered, self.conn.mobike_critical) else { return Vec::new() };
        self.mobility.offered = offered;
        let mut payloads = vec![Payload::Notify(offer)];
        if self.mobility.offered.contains(&Version::Mobike) {
            self.mobility.announced = self.candidates(ctx).into_iter().collect();
            payloads.extend(self.additional_addresses(ctx, self.local.ip()));
        }
        if !self.nat_t {
            payloads.extend(self.nat_guard(self.local, self.remote));
        }
        payloads
    }

    /// Takes up what the IKE_AUTH response says. An error ends the IKE SA.
    pub(super) fn conclude_mobility(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
    ) -> Result<(), IkeError> {
        let allowed = versions::allowed(&self.conn);
        match versions::conclude(&self.mobility.offered, &allowed, payloads) {
            Outcome::Agreed(version) => self.mobility.version = version,
            Outcome::Retry(version) => self.tasks.push(Task::Negotiate(version)),
        }
        self.mobility.echo = self.mobility.version == Version::MobikeX
            && notify(payloads, NotifyType::ECHO_SUPPORTED).is_some();
        self.settled(ctx, payloads)
    }

    /// Answers what the IKE_AUTH request says. An error ends the IKE SA.
    pub(super) fn answer_mobility(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
    ) -> Result<Vec<Payload>, IkeError> {
        let (version, answer) = versions::respond(&versions::allowed(&self.conn), payloads);
        self.mobility.version = version;
        if version != Version::None && self.is_translated(payloads, (self.local, self.remote)) {
            return Err(IkeError::UnexpectedNat);
        }
        self.settled(ctx, payloads)?;
        let mut out: Vec<Payload> = answer.map(Payload::Notify).into_iter().collect();
        if version == Version::Mobike {
            self.mobility.announced = self.candidates(ctx).into_iter().collect();
            out.extend(self.additional_addresses(ctx, self.local.ip()));
        }
        if version == Version::MobikeX {
            self.mobility.greeted = true;
            out.push(Payload::Notify(Notify::new(NotifyType::ECHO_SUPPORTED, Vec::new())));
        }
        Ok(out)
    }

    fn settled(&mut self, ctx: &mut Ctx<'_>, payloads: &[Payload]) -> Result<(), IkeError> {
        let version = self.mobility.version;
        if self.conn.mobike_x == MobikeX::Require && version != Version::MobikeX {
            let retry = self.tasks.any(|t| matches!(t, Task::Negotiate(_)));
            if !retry {
                return Err(IkeError::Authentication(
                    "MOBIKE-X is required here, but the peer does not agree to it".into(),
                ));
            }
        }
        self.start_mobility(ctx);
        if version == Version::None {
            return Ok(());
        }
        info!(target: "IKE", "{} peer supports {version}", self.name());
        self.mobility.alternates = additional(payloads);
        self.tasks.push(Task::Reconcile);
        Ok(())
    }

    /// Our addresses other than `here` (RFC 4555 3.4).
    fn additional_addresses(&self, ctx: &Ctx<'_>, here: IpAddr) -> Vec<Payload> {
        self.candidates(ctx)
            .into_iter()
            .filter(|a| *a != here && (!is_private(*a) || is_private(self.remote.ip())))
            .map(|a| {
                Payload::Notify(match a {
                    IpAddr::V4(a) => Notify::new(NotifyType::ADDITIONAL_IP4_ADDRESS, a.octets().to_vec()),
                    IpAddr::V6(a) => Notify::new(NotifyType::ADDITIONAL_IP6_ADDRESS, a.octets().to_vec()),
                })
            })
            .collect()
    }

    /// The same, or word that there are none (RFC 4555 3.6): what the peer knew before is void either way.
    fn address_list(&self, ctx: &Ctx<'_>, here: IpAddr) -> Vec<Payload> {
        let mut list = self.additional_addresses(ctx, here);
        if list.is_empty() {
            list.push(Payload::Notify(Notify::new(NotifyType::NO_ADDITIONAL_ADDRESSES, Vec::new())));
        }
        list
    }

    // ---- our side ------------------------------------------------------------------------------------------------------

    /// Tells the peer what has changed about our addresses.
    pub(super) fn start_reconcile(&mut self, ctx: &mut Ctx<'_>) -> Result<(), IkeError> {
        match self.mobility.version {
            Version::None => Ok(()),
            Version::Mobike => self.reconcile_mobike(ctx),
            Version::MobikeX => self.reconcile_mobike_x(ctx),
        }
    }

    fn reconcile_mobike(&mut self, ctx: &mut Ctx<'_>) -> Result<(), IkeError> {
        self.leave_vanished(ctx);
        if !ctx.network.has(self.local.ip()) {
            info!(target: "IKE", "{} there is no address left to reach the peer from", self.name());
            return Ok(());
        }
        let addresses: BTreeSet<IpAddr> = self.candidates(ctx).into_iter().collect();
        if self.mobility.decides && self.mobility.update_wanted {
            self.mobility.announced = addresses;
            self.mobility.list_over = None;
            return self.send_update(ctx);
        }
        if self.mobility.decides && self.behind_nat && self.mobility.seen.is_none() {
            // What the peer sees of us now is what later answers are compared with (RFC 4555 3.8).
            self.tasks.push_first(Task::Liveness);
        }
        if self.mobility.announced == addresses {
            self.mobility.untold = false;
            return Ok(());
        }
        self.mobility.announced = addresses;
        let over = self.mobility.list_over.take().filter(|p| ctx.network.has(p.local.ip()));
        let pair = over.unwrap_or(self.current());
        let mut payloads = self.address_list(ctx, pair.local.ip());
        payloads.extend(self.nat_guard(pair.local, pair.remote));
        let via = over.map(|path| Via { path, tries: CHECK_TRIES });
        self.send_request_via(ctx, ExchangeType::INFORMATIONAL, Exchange::Announce, &payloads, via).map(drop)
    }

    /// Our address of the IKE SA is gone: it goes on over another pair at once, together with its Child SAs and with the
    /// request that is under way (RFC 4555 3.5). The initiator tells the peer as soon as the window is free.
    pub(super) fn leave_vanished(&mut self, ctx: &mut Ctx<'_>) {
        let before = (self.local, self.remote);
        if ctx.network.has(before.0.ip()) {
            return;
        }
        let candidates = self.candidates(ctx);
        let Some(next) = self.routes(ctx).into_iter().find(|p| candidates.contains(&p.local.ip())) else {
            return;
        };
        info!(target: "IKE", "{} {} is gone, moving to {next}", self.name(), before.0.ip());
        self.mobility.previous = Some(before);
        self.retarget(ctx, next.local, next.remote);
        if self.mobility.decides {
            self.mobility.update_wanted = true;
            self.move_to(ctx, next.local, next.remote);
        } else {
            // The one case in which a responder moves SAs by itself.
            self.change_halves(ctx, |_| true, |halves| *halves = Halves::single(next.local, next.remote));
            self.want_checks(ctx.now);
            self.mobility.adrift = true;
        }
    }

    /// The answer to the list of our addresses, which came over `answered`.
    pub(super) fn handle_list_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        answered: Path,
        only_there: bool,
    ) {
        if only_there {
            self.note_nat(ctx, payloads, answered);
        }
        let refused = notify(payloads, NotifyType::UNEXPECTED_NAT_DETECTED).is_some();
        if refused && self.mobility.nat_retries >= NAT_RETRIES {
            info!(target: "IKE", "{} the peer does not hear of our addresses, a NAT is in the way", self.name());
        } else if refused || !only_there {
            // What went over several pairs meant another list on each of them, since the header is part of it: a new
            // request says it once more, over the pair that works (RFC 4555 3.6, 3.9).
            self.mobility.nat_retries += u32::from(refused);
            self.mobility.list_over = Some(answered);
            self.mobility.announced.clear();
            self.tasks.push(Task::Reconcile);
            return;
        }
        self.mobility.nat_retries = 0;
        self.mobility.untold = false;
    }

    /// NAT_DETECTION, or NO_NATS_ALLOWED when NAT traversal is not in use (RFC 4555 3.9).
    pub(super) fn nat_guard(&self, local: SocketAddr, remote: SocketAddr) -> Vec<Payload> {
        if self.nat_t {
            return self.nat_detection(local, remote).to_vec();
        }
        let data = no_nats_data(local, remote);
        data.map(|data| Payload::Notify(Notify::new(NotifyType::NO_NATS_ALLOWED, data))).into_iter().collect()
    }

    /// Whether the NO_NATS_ALLOWED of a message is not true of its header. It serves no other purpose (RFC 4555 3.9).
    fn is_translated(&self, payloads: &[Payload], (local, remote): (SocketAddr, SocketAddr)) -> bool {
        let Some(guard) = notify(payloads, NotifyType::NO_NATS_ALLOWED) else { return false };
        let translated = no_nats_data(remote, local).is_none_or(|expected| expected != guard.data);
        if translated {
            info!(target: "IKE", "{} a NAT is in the way of a peer that allows none", self.name());
        }
        translated
    }

    fn send_update(&mut self, ctx: &mut Ctx<'_>) -> Result<(), IkeError> {
        self.mobility.update_wanted = false;
        let (local, remote) = (self.local, self.remote);
        let cookie = cookie(ctx);
        let mut payloads = vec![Payload::Notify(Notify::new(NotifyType::UPDATE_SA_ADDRESSES, Vec::new()))];
        payloads.extend(self.nat_guard(local, remote));
        payloads.push(Payload::Notify(Notify::new(NotifyType::COOKIE2, cookie.clone())));
        payloads.extend(self.address_list(ctx, local.ip()));
        self.move_to(ctx, local, remote);
        let exchange = Exchange::Update(Box::new(Update { local, remote, cookie }));
        self.send_request(ctx, ExchangeType::INFORMATIONAL, exchange, &payloads).map(drop)
    }

    /// All Child SAs use the one pair of the IKE SA.
    fn move_to(&mut self, ctx: &mut Ctx<'_>, local: SocketAddr, remote: SocketAddr) {
        if self.nat_t && is_private(local.ip()) && !is_private(remote.ip()) {
            // A NAT is all but certain, and nothing plain would pass it; the answer tells for sure (RFC 4555 3.5).
            (self.encap, self.behind_nat) = (true, true);
        }
        let own = self.own(ctx, local);
        self.change_halves(
            ctx,
            |_| true,
            |halves| {
                halves.local.update(Replaces::All, own);
                halves.remote.update(Replaces::All, Outer::new(remote));
            },
        );
    }

    /// The IKE SA is where it was before a move, since the peer did not answer a check: so are its Child SAs. The initiator
    /// tells the peer; the responder, which may have been wrong, follows whoever speaks to it.
    pub(super) fn went_back(&mut self, ctx: &mut Ctx<'_>) {
        let (local, remote) = (self.local, self.remote);
        self.move_to(ctx, local, remote);
        // What it was seen at before may be somebody else's by now.
        self.want_checks(ctx.now);
        if self.mobility.decides {
            self.mobility.update_wanted = true;
            self.tasks.push(Task::Reconcile);
        } else {
            self.mobility.adrift = true;
        }
    }

    /// The answer to our UPDATE_SA_ADDRESSES, which came over `answered`. `only_there` says that the request went over one pair
    /// of addresses alone.
    pub(super) fn handle_update_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        update: &Update,
        payloads: &[Payload],
        answered: Path,
        only_there: bool,
    ) -> Result<(), Gone> {
        self.verify_cookie(ctx, &update.cookie, payloads)?;
        if (update.local, update.remote) != (self.local, self.remote) {
            // It has changed again meanwhile (RFC 4555 3.5).
            self.tasks.push(Task::Reconcile);
            return Ok(());
        }
        let refused = [NotifyType::UNEXPECTED_NAT_DETECTED, NotifyType::UNACCEPTABLE_ADDRESSES]
            .into_iter()
            .find(|kind| notify(payloads, *kind).is_some());
        if refused == Some(NotifyType::UNEXPECTED_NAT_DETECTED) && self.mobility.nat_retries < NAT_RETRIES {
            // Whoever alters one packet shall not keep a path out of use.
            self.mobility.nat_retries += 1;
            self.mobility.update_wanted = true;
            self.tasks.push(Task::Reconcile);
            return Ok(());
        }
        self.mobility.nat_retries = 0;
        if let Some(kind) = refused {
            self.update_refused(ctx, update, kind);
            return Ok(());
        }
        self.mobility.refused_pairs.clear();
        self.mobility.untold = false;
        self.mobility.agreed = Some(path(update.local, update.remote));
        if only_there {
            self.mobility.table.proven(path(update.local, update.remote), ctx.now);
            self.note_nat(ctx, payloads, answered);
            if answered.remote == update.remote {
                self.mobility.checks.insert(update.remote, Check::Passed);
            }
        } else {
            // Which of the pairs the peer has taken is not known (RFC 4555 3.7): once more, over this one alone.
            self.mobility.update_wanted = true;
            self.tasks.push(Task::Reconcile);
        }
        self.move_to(ctx, update.local, update.remote);
        self.want_checks(ctx.now);
        self.refresh(ctx);
        ctx.event(Event::Moved { ike: self.name(), path: self.current() });
        Ok(())
    }

    /// Tries the other pairs, and goes back to the one before when the peer takes none (RFC 4555 3.5).
    fn update_refused(&mut self, ctx: &mut Ctx<'_>, update: &Update, kind: NotifyType) {
        let refused = path(update.local, update.remote);
        info!(target: "IKE", "{} the peer refuses {refused}: {kind}", self.name());
        self.mobility.refused_pairs.push(refused);
        let before = self.mobility.agreed;
        let usable = |p: &Path| {
            ctx.network.find(p.local.ip()).is_some_and(|l| self.conn.may_use(l.addr, &l.interface))
                && !self.mobility.refused_pairs.contains(p)
        };
        let next = self.routes(ctx).into_iter().find(|p| usable(p) && Some(*p) != before);
        if let Some(next) = next {
            self.retarget(ctx, next.local, next.remote);
            self.mobility.update_wanted = true;
            self.tasks.push(Task::Reconcile);
        } else if let Some(back) = before.filter(usable) {
            self.retarget(ctx, back.local, back.remote);
            self.move_to(ctx, back.local, back.remote);
            self.want_checks(ctx.now);
        }
    }

    /// Learns from the peer's NAT_DETECTION in an answer that came over `answered`, and whether it sees us elsewhere than
    /// before (RFC 4555 3.8).
    pub(super) fn note_nat(&mut self, ctx: &mut Ctx<'_>, payloads: &[Payload], answered: Path) {
        if answered != self.current() {
            // Of another pair it would say that there is a NAT everywhere.
            return;
        }
        let Some(seen) = notify(payloads, NotifyType::NAT_DETECTION_DESTINATION_IP) else { return };
        let before = self.mobility.seen.replace(seen.data.clone());
        let was_behind = self.behind_nat;
        if self.detect_nat(payloads) {
            // Another SA has other hashes, but whether there is a NAT does not depend on them.
            let moved = before.is_some_and(|b| b != seen.data) || self.behind_nat != was_behind;
            let may_tell = match self.mobility.version {
                Version::None => false,
                Version::Mobike => self.mobility.decides,
                Version::MobikeX => true,
            };
            if moved && (self.behind_nat || was_behind) && may_tell {
                info!(target: "IKE", "{} the peer sees us elsewhere: a NAT has changed", self.name());
                let extended = self.mobility.version == Version::MobikeX;
                (self.mobility.update_wanted, self.mobility.remapped) = (!extended, extended);
                self.tasks.push(Task::Reconcile);
            }
            self.refresh(ctx);
        }
    }

    /// The responder of version 1 has moved by itself, which the initiator need not have noticed: where that one is heard
    /// from is where both are.
    pub(super) fn follow_initiator(&mut self, ctx: &mut Ctx<'_>, (local, remote): (SocketAddr, SocketAddr)) {
        if (self.local, self.remote) == (local, remote) || !self.acceptable(ctx, remote.ip()) {
            return;
        }
        info!(target: "IKE", "{} the initiator is at {}", self.name(), path(local, remote));
        self.retarget(ctx, local, remote);
        let own = self.own(ctx, local);
        self.peer_moved(ctx, |halves| {
            halves.local.update(Replaces::All, own);
            halves.remote.update(Replaces::All, Outer::new(remote));
        });
    }

    /// A request may have been made for another pair of addresses than it has come over. One that moves the peer to where it
    /// comes `from_there` without a name is from behind a NAT, if it was made for another source.
    pub(super) fn detect_nat_of_request(&mut self, ctx: &Ctx<'_>, payloads: &[Payload], from_there: bool) {
        // It may have been made before the NAT came: only an answer shows that there is none any more.
        let own =
            || ctx.network.had().chain([self.local.ip()]).map(|a| SocketAddr::new(a, self.local.port()));
        let ours: Vec<SocketAddr> = if self.behind_nat { Vec::new() } else { own().collect() };
        let retired = self.children.iter().flat_map(|c| c.retired.iter().map(|(p, _)| p.remote));
        let theirs: Vec<SocketAddr> = if self.peer_behind_nat || from_there {
            // What it calls itself may be where it was without a NAT: only the header shows that there is none any more.
            vec![self.remote]
        } else {
            self.peer_addresses(ctx.now).into_iter().chain(retired).collect()
        };
        self.detect_nat_among(payloads, &ours, &theirs);
    }

    // ---- the peer's side -----------------------------------------------------------------------------------------------

    /// The part of an INFORMATIONAL request that concerns addresses; returns what the answer must hold.
    /// `addresses` are ours and the peer's, from the IP header.
    pub(super) fn handle_mobility_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        addresses: (SocketAddr, SocketAddr),
    ) -> Vec<Payload> {
        let mut answer = Vec::new();
        // COOKIE2 and NAT_DETECTION are for any INFORMATIONAL request (RFC 4555 3.7, 3.8).
        if let Some(cookie) =
            notify(payloads, NotifyType::COOKIE2).filter(|c| (8..=64).contains(&c.data.len()))
        {
            answer.push(Payload::Notify(Notify::new(NotifyType::COOKIE2, cookie.data.clone())));
        }
        let with_nat = self.conn.nat_traversal
            && notify(payloads, NotifyType::NAT_DETECTION_SOURCE_IP).is_some()
            && notify(payloads, NotifyType::NAT_DETECTION_DESTINATION_IP).is_some();
        if with_nat {
            answer.extend(self.nat_detection(addresses.0, addresses.1));
        }
        if self.mobility.version == Version::None {
            answer.extend(self.answer_negotiation(ctx, payloads));
            return answer;
        }
        if self.is_translated(payloads, addresses) {
            answer.push(Payload::Notify(Notify::new(NotifyType::UNEXPECTED_NAT_DETECTED, Vec::new())));
            return answer;
        }
        match self.mobility.version {
            Version::MobikeX => answer.extend(self.handle_actions(ctx, payloads, addresses)),
            _ => answer.extend(self.handle_update_request(ctx, payloads, addresses, with_nat)),
        }
        answer
    }

    fn handle_update_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        (local, remote): (SocketAddr, SocketAddr),
        with_nat: bool,
    ) -> Option<Payload> {
        let announces = |p: &Payload| match p {
            Payload::Notify(n) => [
                NotifyType::ADDITIONAL_IP4_ADDRESS,
                NotifyType::ADDITIONAL_IP6_ADDRESS,
                NotifyType::NO_ADDITIONAL_ADDRESSES,
            ]
            .contains(&n.kind),
            _ => false,
        };
        if payloads.iter().any(announces) {
            // The one in the IP header belongs to the list (RFC 4555 3.6).
            self.mobility.alternates = additional(payloads);
            if !self.mobility.alternates.has(remote.ip()) {
                self.mobility.alternates.add(alternate(remote.ip()));
            }
            let shown: Vec<_> = self.mobility.alternates.iter().map(|o| o.addr.ip().to_string()).collect();
            debug!(target: "IKE", "{} the peer's additional addresses: [{}]", self.name(), shown.join(" "));
            if self.mobility.decides && !self.mobility.alternates.has(self.remote.ip()) {
                // The announced set lacks what is in use (RFC 4555 3.5): look for the peer elsewhere.
                self.found_working(ctx, (local, remote));
            }
        }
        notify(payloads, NotifyType::UPDATE_SA_ADDRESSES)?;
        let refuse = |kind| Some(Payload::Notify(Notify::new(kind, Vec::new())));
        if self.mobility.decides {
            info!(target: "IKE", "{} the peer may not decide about addresses, it did not start this SA", self.name());
            return refuse(NotifyType::UNACCEPTABLE_ADDRESSES);
        }
        let ours = ctx.network.find(local.ip()).is_none_or(|l| self.conn.may_use(l.addr, &l.interface));
        if !ours || !self.acceptable(ctx, remote.ip()) || !self.transport_permits(remote.ip()) {
            info!(target: "IKE", "{} policy does not allow {}", self.name(), path(local, remote));
            return refuse(NotifyType::UNACCEPTABLE_ADDRESSES);
        }
        info!(target: "IKE", "{} the peer moves to {remote}", self.name());
        self.mobility.previous = Some((self.local, self.remote));
        self.mobility.adrift = false;
        (self.local, self.remote) = (local, remote);
        if with_nat {
            self.detect_nat_of_request(ctx, payloads, false);
        }
        let own = self.own(ctx, local);
        self.peer_moved(ctx, |halves| {
            halves.local.update(Replaces::All, own);
            halves.remote.update(Replaces::All, Outer::new(remote));
        });
        ctx.event(Event::Moved { ike: self.name(), path: self.current() });
        None
    }

    /// In transport mode a move changes what the SA carries, which version 1 does not negotiate: the policy must permit
    /// the new address as it did the old one.
    fn transport_permits(&self, addr: IpAddr) -> bool {
        let mut transport = self.children.iter().filter(|c| c.mode == Mode::Transport);
        transport.all(|c| c.permitted_remote(self.assigned()).iter().any(|ts| ts.contains_addr(addr)))
    }

    /// Addresses that were replaced are not needed any longer where there is one that is checked already.
    pub(super) fn clear_leaving(&mut self, now: Instant) {
        let checks = &self.mobility.checks;
        for child in &mut self.children {
            if child.halves.remote.iter().any(|o| checks.get(&o.addr) == Some(&Check::Passed)) {
                child.leaving.clear();
            }
        }
        self.forget_checks(now);
    }

    /// Applies a move of the peer to all Child SAs; what it leaves stays in use until the new address is checked.
    pub(super) fn peer_moved(&mut self, ctx: &mut Ctx<'_>, mut change: impl FnMut(&mut Halves)) {
        for child in &mut self.children {
            let before = child.halves.remote.clone();
            change(&mut child.halves);
            let old = before.iter().filter(|o| !child.halves.remote.has(o.addr.ip()));
            child.leaving = old.copied().collect();
        }
        self.want_checks(ctx.now);
        self.clear_leaving(ctx.now);
        self.unsettle(ctx);
        self.refresh(ctx);
    }

    /// Whether policy lets the peer have an outer address.
    pub(super) fn acceptable(&self, ctx: &Ctx<'_>, addr: IpAddr) -> bool {
        let unusable = match addr {
            IpAddr::V4(a) => a.is_unspecified() || a.is_multicast() || a.is_broadcast() || a.octets()[0] == 0,
            IpAddr::V6(a) => a.is_unspecified() || a.is_multicast() || a.to_ipv4_mapped().is_some(),
        };
        // Loopback is for those who already talk over it.
        let loopback = addr.is_loopback() && !self.remote.ip().is_loopback();
        let inside = || {
            let tunnels = self.children.iter().filter(|c| c.mode == Mode::Tunnel);
            tunnels.flat_map(|c| c.ts_local.iter().chain(&c.ts_remote)).any(|ts| {
                // A tunnel for everything has its own outer addresses inside as well.
                ts.contains_addr(addr) && !ts.contains_addr(self.remote.ip())
            })
        };
        !unusable
            && !loopback
            && self.conn.paths.allows(addr)
            && ctx.network.find(addr).is_none()
            && !inside()
    }

    // ---- versions, later ---------------------------------------------------------------------------------------------

    /// Offers a version once more (MOBIKE-X 7.1.2).
    pub(super) fn start_negotiation(&mut self, ctx: &mut Ctx<'_>, version: Version) -> Result<(), IkeError> {
        let Some(offer) = versions::offer(&[version], false) else { return Ok(()) };
        self.mobility.offered.push(version);
        let exchange = Exchange::Negotiate(version);
        self.send_request(ctx, ExchangeType::INFORMATIONAL, exchange, &[Payload::Notify(offer)]).map(drop)
    }

    pub(super) fn handle_negotiation_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        version: Version,
        payloads: &[Payload],
    ) -> Result<(), Gone> {
        if let Outcome::Agreed(agreed) = versions::conclude(&[version], &[version], payloads) {
            self.mobility.version = agreed;
        }
        self.settled(ctx, &[]).map_err(|error| self.close(ctx, &error.to_string(), false))
    }

    fn answer_negotiation(&mut self, ctx: &mut Ctx<'_>, payloads: &[Payload]) -> Option<Payload> {
        notify(payloads, NotifyType::MOBIKE_SUPPORTED)?;
        let (version, answer) = versions::respond(&versions::allowed(&self.conn), payloads);
        self.mobility.version = version;
        // A version that policy demands and that fails now was missing before as well.
        let _ = self.settled(ctx, &[]);
        answer.map(Payload::Notify)
    }

    /// Tells the peer that version 2 is over (MOBIKE-X 7.1.2).
    pub(super) fn start_mobike_none(&mut self, ctx: &mut Ctx<'_>) -> Result<(), IkeError> {
        if self.mobility.version != Version::MobikeX {
            return Ok(());
        }
        self.freeze(ctx);
        let payloads = [Payload::Notify(versions::none())];
        self.send_request(ctx, ExchangeType::INFORMATIONAL, Exchange::MobikeNone, &payloads).map(drop)
    }

    /// Version 2 is off; the address sets stay as they are.
    pub(super) fn freeze(&mut self, ctx: &mut Ctx<'_>) {
        info!(target: "IKE", "{} MOBIKE-X is off from here on, addresses stay as they are", self.name());
        self.mobility.version = Version::None;
        self.mobility.echo = false;
        ctx.event(Event::MobikeOff { ike: self.name() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ike::addresses::MAX_ADDRESSES;

    #[test]
    fn no_nats_allowed_is_laid_out_as_the_standard_says() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let data = no_nats_data(at("192.0.2.1:500"), at("198.51.100.2:4500")).unwrap();
        assert_eq!(data, [192, 0, 2, 1, 198, 51, 100, 2, 1, 0xf4, 0x11, 0x94]);
        assert_eq!(no_nats_data(at("[::1]:1"), at("[::2]:2")).unwrap().len(), 36);
        assert_eq!(no_nats_data(at("[::1]:1"), at("192.0.2.1:2")), None);
    }

    #[test]
    fn additional_addresses_are_read_once_each_and_bounded() {
        let v4 = |n: u8| Payload::Notify(Notify::new(NotifyType::ADDITIONAL_IP4_ADDRESS, vec![192, 0, 2, n]));
        let bad = Payload::Notify(Notify::new(NotifyType::ADDITIONAL_IP6_ADDRESS, vec![1, 2, 3, 4]));
        assert_eq!(additional(&[v4(1), bad, v4(1), v4(2)]).len(), 2);
        assert_eq!(additional(&(0..50).map(v4).collect::<Vec<_>>()).len(), MAX_ADDRESSES);
    }
}
