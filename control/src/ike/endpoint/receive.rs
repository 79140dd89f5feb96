//! Datagrams: to the SA that they belong to, or the beginning of one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::{ExchangeType, Header, Notify, NotifyType, Payload, parse_chain};
use tracing::{debug, info};

use super::Endpoint;
use crate::config::Connection;
use crate::ike::crypt::{self, Envelope};
use crate::ike::dispatch::Ignored;
use crate::ike::output::Output;
use crate::ike::responder::InitOutcome;
use crate::ike::rules::{self, notify};
use crate::ike::sa::{IkeSa, State};

impl Endpoint {
    /// Handles one IKE message. `nat_t` says that it came with the non-ESP marker, already taken off.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        nat_t: bool,
        datagram: &[u8],
    ) {
        let header = match Header::parse(datagram) {
            Ok(header) => header,
            Err(error) => {
                self.counters.malformed += 1;
                if self.notices.allow(now) {
                    info!(target: "ENC", "ignoring a message from {remote}: {error}");
                }
                return;
            }
        };
        if header.major != 2 {
            self.counters.wrong_version += 1;
            // RFC 7296 2.5: only a request with a higher version is told what we speak.
            if header.major > 2 && !header.flags.response {
                self.refuse_init(
                    &header,
                    (local, remote, nat_t),
                    Notify::new(NotifyType::INVALID_MAJOR_VERSION, vec![]),
                );
            }
            return;
        }
        let first = header.exchange == ExchangeType::IKE_SA_INIT
            && !header.flags.response
            && header.flags.initiator
            && header.responder_spi == IkeSpi::ZERO;
        if first {
            return self.handle_init_request(now, &header, (local, remote, nat_t), datagram);
        }
        let ours = if header.flags.initiator { header.responder_spi } else { header.initiator_spi };
        let Some(sa) = self.sas.with_spi(ours) else {
            self.counters.unknown_spi += 1;
            return self.handle_complaint(now, remote, &header, datagram);
        };
        let fits = sa.initiator.is_us() != header.flags.initiator
            && sa.spi_i == header.initiator_spi
            && (sa.spi_r == header.responder_spi || sa.spi_r == IkeSpi::ZERO);
        let id = sa.id;
        if !fits {
            self.counters.unknown_spi += 1;
            return;
        }
        let handled = self
            .with_sa(now, id, |sa, ctx| sa.handle_message(ctx, &header, (local, remote, nat_t), datagram));
        let Some(Err(ignored)) = handled else { return };
        match ignored {
            Ignored::OutsideWindow => self.counters.outside_window += 1,
            Ignored::NotAuthentic => self.counters.not_authentic += 1,
            Ignored::WrongState => self.counters.wrong_state += 1,
            Ignored::Fragment => self.counters.fragments_refused += 1,
        }
        self.handle_complaint(now, remote, &header, datagram);
    }

    fn handle_init_request(
        &mut self,
        now: Instant,
        header: &Header,
        (local, remote, nat_t): (SocketAddr, SocketAddr, bool),
        datagram: &[u8],
    ) {
        if header.message_id != 0 || header.initiator_spi == IkeSpi::ZERO {
            self.counters.malformed += 1;
            return;
        }
        if let Some(sa) = self.sas.begun_by(remote, header.initiator_spi) {
            // Only a byte-for-byte retransmission gets the answer again.
            if let (State::HalfOpen(handshake), Some(answer)) = (&sa.state, &sa.last_response)
                && handshake.request == datagram
            {
                for datagram in answer.datagrams() {
                    let data = datagram.clone();
                    self.out.push_back(Output::Transmit { local, remote, nat_t, data });
                }
            }
            return;
        }
        let payloads = match parse_chain(header.next_payload, &datagram[Header::LEN..]) {
            Ok(payloads) => payloads,
            Err(error) => {
                self.counters.malformed += 1;
                if self.notices.allow(now) {
                    info!(target: "ENC", "ignoring a message from {remote}: {error}");
                }
                return;
            }
        };
        debug!(target: "ENC", "parsed IKE_SA_INIT request 0 {}", rules::show(&payloads));
        if let Some(kind) = rules::unknown_critical(&payloads) {
            let refusal = Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![kind.0]);
            return self.refuse_init(header, (local, remote, nat_t), refusal);
        }
        let Some(nonce) = rules::nonce(&payloads) else {
            self.counters.malformed += 1;
            return;
        };
        let half_open = self.sas.half_open();
        if half_open >= self.config.daemon.cookie_threshold as usize {
            let good = notify(&payloads, NotifyType::COOKIE)
                .is_some_and(|c| self.cookies.check(&c.data, remote.ip(), header.initiator_spi, nonce));
            if !good {
                self.counters.cookies_asked += 1;
                let cookie = self.cookies.make(now, &mut self.rng, remote.ip(), header.initiator_spi, nonce);
                return self.refuse_init(
                    header,
                    (local, remote, nat_t),
                    Notify::new(NotifyType::COOKIE, cookie),
                );
            }
        }
        if half_open >= self.config.daemon.half_open_limit as usize {
            self.counters.half_open_dropped += 1;
            return;
        }
        let fitting = self.connections.iter().filter(|c| c.accepts(local.ip(), remote.ip()));
        let candidates: Vec<Arc<Connection>> = fitting.cloned().collect();
        if candidates.is_empty() {
            self.counters.no_connection += 1;
            if self.notices.allow(now) {
                info!(target: "IKE", "no connection is configured for {}...{}", local.ip(), remote.ip());
            }
            let refusal = Notify::new(NotifyType::NO_PROPOSAL_CHOSEN, vec![]);
            return self.refuse_init(header, (local, remote, nat_t), refusal);
        }
        let (outcome, effects) = self.with_ctx(now, |ctx| {
            IkeSa::respond(
                ctx,
                &candidates,
                header.initiator_spi,
                (local, remote),
                nat_t,
                datagram,
                &payloads,
            )
        });
        self.apply(now, effects);
        match outcome {
            Ok(InitOutcome::Accepted(sa)) => self.sas.put(sa),
            Ok(InitOutcome::Refused(refusal)) => self.refuse_init(header, (local, remote, nat_t), refusal),
            Err(error) => {
                self.counters.malformed += 1;
                if self.notices.allow(now) {
                    info!(target: "IKE", "ignoring a message from {remote}: {error}");
                }
            }
        }
    }

    /// An answer without state: shorter than any request that leads to it.
    fn refuse_init(
        &mut self,
        header: &Header,
        (local, remote, nat_t): (SocketAddr, SocketAddr, bool),
        refusal: Notify,
    ) {
        let envelope = Envelope {
            spi_i: header.initiator_spi,
            spi_r: header.responder_spi,
            exchange: header.exchange,
            from_initiator: !header.flags.initiator,
            response: true,
            message_id: header.message_id,
        };
        let data = crypt::plain(&envelope, &[Payload::Notify(refusal)]);
        self.out.push_back(Output::Transmit { local, remote, nat_t, data });
    }
}
