//! IKE fragmentation (RFC 7383): messages that would be larger than a datagram may be are cut before they are protected, and
//! those of the peer are put together after each piece was verified.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mobikex_common::wire::ike::{Header, Notify, NotifyType, Payload, PayloadType, emit_chain, parse_chain};
use tracing::{debug, info};

use super::crypt::{self, Envelope, Opened, Part, Protected, Sealed};
use super::ctx::Ctx;
use super::dispatch::{Ignored, permitted};
use super::error::IkeError;
use super::reassembly::{self, Fragment, Judged, Place, Reassembly};
use super::rules::notify;
use super::sa::IkeSa;
use crate::config::{Connection, Fragmentation};

/// What a message takes of an IP datagram besides its own octets: the header of IPv6, since the same fragments may go over
/// pairs of addresses of either family, the UDP header and the non-ESP marker.
const DATAGRAM_OVERHEAD: usize = 40 + 8 + 4;
/// Datagrams that every network carries, with IPv4 (RFC 7383 2.5.1) and with IPv6 (RFC 8200 5).
const SMALLEST_V4: usize = 576;
const SMALLEST_V6: usize = 1280;
/// After this many retransmissions without an answer a large message goes out in the smallest fragments (RFC 7383 2.5.2). Not
/// before: what has arrived of the larger ones is lost then.
pub(super) const CUT_SMALLER_AT: u32 = 3;

/// A protected message as it goes out, and goes out again: one datagram, or its fragments.
#[derive(Clone)]
pub(super) struct Outgoing {
    datagrams: Arc<[Vec<u8>]>,
    /// What they were made of, where they could be made smaller.
    source: Option<Arc<Source>>,
}

struct Source {
    envelope: Envelope,
    first: PayloadType,
    text: Vec<u8>,
}

impl Outgoing {
    /// A message that is not protected, and therefore always in one piece.
    pub(super) fn plain(datagram: Vec<u8>) -> Self {
        Self { datagrams: Arc::new([datagram]), source: None }
    }

    /// The datagrams, in order.
    pub(super) fn datagrams(&self) -> &[Vec<u8>] {
        &self.datagrams
    }

    /// Octets of all of them.
    pub(super) fn octets(&self) -> usize {
        self.datagrams.iter().map(Vec::len).sum()
    }
}

/// What an IKE SA knows about fragments, and those of the peer's messages that are not whole yet.
#[derive(Default)]
pub(super) struct Fragments {
    /// Both sides have said that they can.
    agreed: bool,
    /// Larger IP datagrams than this many octets seem not to arrive.
    largest: Option<usize>,
    requests: Option<Box<Reassembly>>,
    responses: Option<Box<Reassembly>>,
}

impl Fragments {
    /// For the IKE SA that takes this one's place, between the same two.
    pub(super) fn successor(&self) -> Self {
        Self { agreed: self.agreed, largest: self.largest, ..Self::default() }
    }

    /// Whether both sides take fragments.
    pub(super) fn agreed(&self) -> bool {
        self.agreed
    }

    fn held(&mut self, response: bool) -> &mut Option<Box<Reassembly>> {
        if response { &mut self.responses } else { &mut self.requests }
    }

    /// When something has been waiting for too long.
    pub(super) fn timeout(&self) -> Option<Instant> {
        self.requests.iter().chain(&self.responses).map(|h| h.expires()).min()
    }

    /// Forgets what has been waiting for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        for held in [&mut self.requests, &mut self.responses] {
            held.take_if(|h| h.expires() <= now);
        }
    }
}

/// What has come.
pub(super) enum Received {
    /// A whole message. The inner chain may still be malformed: then the peer, which is authentic, hears of it.
    Message(Result<Vec<Payload>, IkeError>, Protected),
    /// A fragment of one that is not whole yet.
    Part,
}

/// Our part of the negotiation (RFC 7383 2.3).
pub(super) fn offer(conn: &Connection) -> Option<Payload> {
    let notify = Notify::new(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, Vec::new());
    (conn.fragmentation != Fragmentation::No).then_some(Payload::Notify(notify))
}

fn chain_of(opened: &Opened) -> Result<Vec<Payload>, IkeError> {
    opened.padded().and_then(|text| Ok(parse_chain(opened.next, text)?))
}

impl IkeSa {
    /// Notes whether the peer's IKE_SA_INIT message agrees to fragmentation; returns what agrees to it in ours.
    pub(super) fn agree_on_fragments(&mut self, payloads: &[Payload]) -> Option<Payload> {
        let ours = offer(&self.conn);
        self.fragments.agreed =
            ours.is_some() && notify(payloads, NotifyType::IKEV2_FRAGMENTATION_SUPPORTED).is_some();
        ours.filter(|_| self.fragments.agreed)
    }

    // ---- sending -------------------------------------------------------------------------------------------------------

    /// Octets of an IP datagram that may go out.
    fn datagram_size(&self, ctx: &Ctx<'_>) -> usize {
        let configured = usize::from(ctx.config.daemon.fragment_size);
        self.fragments.largest.map_or(configured, |largest| largest.min(configured))
    }

    /// Protects a message of ours, in fragments if it is too large for one datagram.
    pub(super) fn protect(
        &mut self,
        ctx: &mut Ctx<'_>,
        envelope: Envelope,
        payloads: &[Payload],
    ) -> Result<Outgoing, IkeError> {
        let (first, text) = emit_chain(payloads);
        let source = Source { envelope, first, text };
        let cuts = self.fragments.agreed && self.conn.fragmentation == Fragmentation::Yes;
        let limit = cuts.then(|| self.datagram_size(ctx) - DATAGRAM_OVERHEAD);
        let datagrams = self.cut(ctx, &source, limit)?;
        let (exchange, id) = (envelope.exchange, envelope.message_id);
        if datagrams.len() > 1 {
            let (name, octets, count) = (self.name(), source.text.len(), datagrams.len());
            info!(target: "ENC", "{name} splitting {exchange} message {id} ({octets} octets) into {count} fragments");
        }
        let may_shrink = cuts && datagrams[0].len() + DATAGRAM_OVERHEAD > SMALLEST_V4;
        Ok(Outgoing { datagrams: datagrams.into(), source: may_shrink.then(|| Arc::new(source)) })
    }

    /// The datagrams of a message: at least one, none larger than the limit.
    fn cut(
        &mut self,
        ctx: &mut Ctx<'_>,
        source: &Source,
        limit: Option<usize>,
    ) -> Result<Vec<Vec<u8>>, IkeError> {
        let mut ivs = self.ivs;
        let keys = self.keys()?;
        let cipher = if self.initiator.is_us() { &keys.initiator } else { &keys.responder };
        // Content and padding are multiples of a block, and the last octet is the length of the padding.
        let room = |limit: usize, fragment: bool| {
            let octets = limit.saturating_sub(crypt::overhead(cipher, fragment));
            (octets - octets % crypt::block(cipher)).saturating_sub(1)
        };
        let whole = limit.is_none_or(|limit| source.text.len() <= room(limit, false));
        let pieces: Vec<&[u8]> = match limit.filter(|_| !whole) {
            None => vec![&source.text],
            Some(limit) => source.text.chunks(room(limit, true).max(1)).collect(),
        };
        let total = u16::try_from(pieces.len()).map_err(|_| IkeError::NotProtected)?;
        let datagrams: Result<Vec<_>, _> = (1..=total)
            .zip(pieces)
            .map(|(number, text)| {
                let next = if number == 1 { source.first } else { PayloadType::NONE };
                let part = Part { next, place: (!whole).then_some((number, total)), text };
                crypt::seal(&source.envelope, &part, cipher, &mut ivs, ctx.rng)
            })
            .collect();
        self.ivs = ivs;
        datagrams
    }

    /// The same message in datagrams of at most `size` octets, if that makes more of them: it is by their number that the
    /// receiver tells the new ones from the old (RFC 7383 2.5.2).
    fn cut_to(&mut self, ctx: &mut Ctx<'_>, message: &Outgoing, size: usize) -> Option<Outgoing> {
        let source = message.source.clone()?;
        let datagrams = self.cut(ctx, &source, Some(size - DATAGRAM_OVERHEAD)).ok()?;
        if datagrams.len() <= message.datagrams.len() {
            return None;
        }
        self.fragments.largest = Some(size);
        let count = datagrams.len();
        info!(target: "ENC", "{} splitting message {} into {count} fragments that fit datagrams of {size} octets", self.name(), source.envelope.message_id);
        Some(Outgoing { datagrams: datagrams.into(), source: Some(source) })
    }

    /// A request that went out several times without an answer may have been too large for the way.
    pub(super) fn cut_request_smaller(&mut self, ctx: &mut Ctx<'_>) {
        let size = if self.remote.is_ipv4() { SMALLEST_V4 } else { SMALLEST_V6 };
        let Some(earlier) = self.pending.as_ref().map(|p| p.message.clone()) else { return };
        let Some(mut message) = self.cut_to(ctx, &earlier, size) else { return };
        // Perhaps only the answer was lost. A peer that knows a retransmission by its octets answers again to the first
        // fragment as it was, and to no other; one that has not answered yet drops that for its total.
        message.datagrams = earlier.datagrams[..1].iter().chain(&*message.datagrams).cloned().collect();
        if let Some(pending) = &mut self.pending {
            pending.message = message;
            pending.restarted = pending.attempts;
        }
    }

    /// The peer sends smaller fragments than we do, so larger ones may not arrive (RFC 7383 2.5.1).
    fn follow_size(&mut self, ctx: &Ctx<'_>, datagram: usize) -> Option<usize> {
        let size = (datagram + DATAGRAM_OVERHEAD).max(SMALLEST_V4);
        (size < self.datagram_size(ctx)).then(|| *self.fragments.largest.insert(size))
    }

    /// Sends every datagram of a message.
    pub(super) fn transmit(
        &self,
        ctx: &mut Ctx<'_>,
        (local, remote, nat_t): (SocketAddr, SocketAddr, bool),
        message: &Outgoing,
    ) {
        for datagram in message.datagrams() {
            ctx.transmit(local, remote, nat_t, datagram.clone());
        }
    }

    // ---- receiving -----------------------------------------------------------------------------------------------------

    /// Verifies and decrypts with the peer's keys.
    fn unseal(&self, sealed: &Sealed<'_>) -> Result<Opened, Ignored> {
        let Some(keys) = &self.keys else { return Err(Ignored::WrongState) };
        let cipher = if self.initiator.is_us() { &keys.responder } else { &keys.initiator };
        sealed.open(cipher).map_err(|_| Ignored::NotAuthentic)
    }

    /// A message that the window expects, or a piece of it. Nothing is kept that was not verified.
    pub(super) fn receive(
        &mut self,
        ctx: &mut Ctx<'_>,
        header: &Header,
        datagram: &[u8],
    ) -> Result<Received, Ignored> {
        let sealed = Sealed::read(datagram).map_err(|_| Ignored::NotAuthentic)?;
        let response = header.flags.response;
        let Some((number, total)) = sealed.place else {
            let opened = self.unseal(&sealed)?;
            *self.fragments.held(response) = None;
            return Ok(Received::Message(chain_of(&opened), opened.proof));
        };
        let place = Place { message_id: header.message_id, exchange: header.exchange, number, total };
        if !self.fragments.agreed || !permitted(&self.state, header.exchange, response) {
            return Err(Ignored::WrongState);
        }
        match reassembly::judge(self.fragments.held(response).as_deref(), place) {
            Judged::New => {}
            Judged::Known => return Ok(Received::Part),
            Judged::Impossible => return Err(Ignored::Fragment),
        }
        let opened = self.unseal(&sealed)?;
        let text = opened.padded().map_err(|_| Ignored::Fragment)?;
        let kind = if response { "response" } else { "request" };
        debug!(target: "ENC", "{} parsed {} {kind} {} [ EF({number}/{total}) ]", self.name(), header.exchange, header.message_id);
        let fragment = Fragment { next: opened.next, text, datagram: datagram.len() };
        let when = (ctx.now, self.peer().is_some());
        let held = self.fragments.held(response);
        let Some(whole) = reassembly::add(held, place, &fragment, when, ctx.fragment_memory) else {
            return match held {
                Some(_) => Ok(Received::Part),
                None => Err(Ignored::Fragment),
            };
        };
        let octets = whole.text.len();
        if self.peer().is_some() || ctx.notices.allow(ctx.now) {
            info!(target: "ENC", "{} reassembled {} {kind} {} ({octets} octets) from {total} fragments", self.name(), header.exchange, header.message_id);
        }
        if total > 1 {
            self.follow_size(ctx, whole.largest);
        }
        let payloads = parse_chain(whole.first, &whole.text).map_err(IkeError::from);
        Ok(Received::Message(payloads, opened.proof))
    }

    /// The request before the one that is expected has come again: so does its answer. Of a request in fragments only the
    /// first asks for that (RFC 7383 2.6.1).
    pub(super) fn answer_again(
        &mut self,
        ctx: &mut Ctx<'_>,
        message_id: u32,
        addresses: (SocketAddr, SocketAddr, bool),
        datagram: &[u8],
    ) -> Result<(), Ignored> {
        let sealed = Sealed::read(datagram).map_err(|_| Ignored::NotAuthentic)?;
        if sealed.place.is_some_and(|(number, _)| number != 1) {
            return Ok(());
        }
        self.unseal(&sealed)?;
        // It may be an attacker's who repeats it: no sign of life (RFC 7296 2.4 wants a fresh message).
        let Some(mut answer) = self.last_response.clone() else { return Ok(()) };
        if sealed.place.is_some_and(|(_, total)| total > 1)
            && let Some(size) = self.follow_size(ctx, datagram.len())
            && let Some(smaller) = self.cut_to(ctx, &answer, size)
        {
            self.last_response = Some(smaller.clone());
            answer = smaller;
        }
        debug!(target: "IKE", "{} retransmitting response {message_id}", self.name());
        self.transmit(ctx, addresses, &answer);
        Ok(())
    }

    /// For tests that read what passes between two ends.
    #[cfg(test)]
    pub(super) fn read(&self, datagram: &[u8]) -> Option<Vec<Payload>> {
        let opened = self.unseal(&Sealed::read(datagram).ok()?).ok()?;
        chain_of(&opened).ok()
    }
}

#[cfg(test)]
#[path = "fragments_tests.rs"]
mod tests;
