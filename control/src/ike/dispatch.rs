//! From a datagram to a handler: the window first, then the integrity check, then the state.

use std::net::SocketAddr;

use mobikex_common::wire::ike::parse_chain;
use mobikex_common::wire::ike::{ExchangeType, Header, Notify, NotifyType, Payload, PayloadType, ProtocolId};
use tracing::{debug, info};

use super::crypt::Protected;
use super::ctx::{Ctx, Effect};
use super::fragments::Received;
use super::path_table::path;
use super::rules::{self, notify};
use super::sa::{Gone, IkeSa, State};
use super::window::Exchange;

/// Why a message was not processed; only counted, for it may be a forgery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ignored {
    /// Not the message ID that the window expects.
    OutsideWindow,
    /// The integrity check failed, or there is none.
    NotAuthentic,
    /// The SA is in no state for this exchange.
    WrongState,
    /// A fragment with impossible numbers, or one too many.
    Fragment,
}

/// What became of a message.
pub(super) type Handled = Result<Result<(), Ignored>, Gone>;

/// Which exchanges an SA takes in which state, as `(request, response)`. A protected exchange needs keys and,
/// but for IKE_AUTH, both AUTHs verified.
pub(super) fn permitted(state: &State, exchange: ExchangeType, response: bool) -> bool {
    match (state, exchange) {
        (State::InitSent(_), ExchangeType::IKE_SA_INIT) => response,
        (State::HalfOpen(_) | State::AuthServing(_), ExchangeType::IKE_AUTH) => !response,
        (State::AuthSent(_), ExchangeType::IKE_AUTH) => response,
        (State::Established(_), ExchangeType::CREATE_CHILD_SA | ExchangeType::INFORMATIONAL) => true,
        _ => false,
    }
}

impl IkeSa {
    /// Handles one message that belongs to this SA by its SPIs.
    pub(super) fn handle_message(
        &mut self,
        ctx: &mut Ctx<'_>,
        header: &Header,
        addresses: (SocketAddr, SocketAddr, bool),
        datagram: &[u8],
    ) -> Handled {
        if header.exchange == ExchangeType::IKE_SA_INIT {
            return self.handle_init_message(ctx, header, (addresses.0, addresses.1), datagram);
        }
        if header.flags.response {
            self.handle_response(ctx, header, (addresses.0, addresses.1), datagram)
        } else {
            self.handle_request(ctx, header, addresses, datagram)
        }
    }

    fn handle_init_message(
        &mut self,
        ctx: &mut Ctx<'_>,
        header: &Header,
        addresses: (SocketAddr, SocketAddr),
        datagram: &[u8],
    ) -> Handled {
        if !permitted(&self.state, header.exchange, header.flags.response) || header.message_id != 0 {
            return Ok(Err(Ignored::WrongState));
        }
        let Ok(payloads) = parse_chain(header.next_payload, &datagram[Header::LEN..]) else {
            return Ok(Err(Ignored::NotAuthentic));
        };
        debug!(target: "ENC", "{} parsed IKE_SA_INIT response 0 {}", self.name(), rules::show(&payloads));
        self.handle_init_response(ctx, header.responder_spi, addresses, datagram, &payloads).map(Ok)
    }

    fn handle_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        header: &Header,
        addresses: (SocketAddr, SocketAddr, bool),
        datagram: &[u8],
    ) -> Handled {
        let retransmission = header.message_id.checked_add(1) == Some(self.expected_request);
        if header.message_id != self.expected_request && !retransmission {
            return Ok(Err(Ignored::OutsideWindow));
        }
        if retransmission {
            return Ok(self.answer_again(ctx, header.message_id, addresses, datagram));
        }
        let (payloads, proof) = match self.receive(ctx, header, datagram) {
            Ok(Received::Message(payloads, proof)) => (payloads, proof),
            Ok(Received::Part) => return Ok(Ok(())),
            Err(ignored) => return Ok(Err(ignored)),
        };
        self.last_heard = ctx.now;
        if let (State::AuthServing(_), ExchangeType::INFORMATIONAL, Ok(payloads)) =
            (&self.state, header.exchange, &payloads)
            && notify(payloads, NotifyType::AUTHENTICATION_FAILED).is_some()
        {
            // All that this can end is the attempt of who says it (RFC 7296 2.21.2).
            self.answer_over = Some(addresses);
            let _ = self.send_response(ctx, header.exchange, &[]);
            return Err(self.close(ctx, "the initiator has given up", false));
        }
        if !permitted(&self.state, header.exchange, false) {
            return Ok(Err(Ignored::WrongState));
        }
        // What tests a pair of addresses does not come over the one in use (RFC 4555 3.7, 3.10).
        let tests = payloads.as_ref().is_ok_and(|p| notify(p, NotifyType::COOKIE2).is_some());
        if header.exchange == ExchangeType::IKE_AUTH {
            self.follow_handshake(addresses);
        } else if self.mobility.adrift && !tests {
            self.follow_initiator(ctx, (addresses.0, addresses.1));
        } else {
            self.follow_nat(ctx, (addresses.0, addresses.1));
        }
        self.try_there(ctx, (addresses.0, addresses.1), datagram.len());
        self.answer_over = Some(addresses);
        let payloads = match payloads {
            Ok(payloads) => payloads,
            Err(error) => {
                info!(target: "ENC", "{} {error}", self.name());
                return self.fatal(ctx, header.exchange, "the peer sent a malformed message");
            }
        };
        debug!(target: "ENC", "{} parsed {} request {} {}", self.name(), header.exchange, header.message_id, rules::show(&payloads));
        if let Some(kind) = rules::unknown_critical(&payloads) {
            return self.refuse_critical(ctx, header.exchange, kind);
        }
        let deletes_ike = |p: &Payload| matches!(p, Payload::Delete(d) if d.protocol == ProtocolId::IKE);
        let deleted = payloads.iter().any(deletes_ike);
        if !deleted && let Some(from) = self.inherits_from.take() {
            ctx.effects.push(Effect::Inherit { from, addresses, message: datagram.to_vec() });
            self.answer_over = None;
            return Ok(Ok(()));
        }
        self.heard_again(ctx);
        let done = match header.exchange {
            ExchangeType::IKE_AUTH => self.handle_auth_request(ctx, &payloads, proof),
            ExchangeType::INFORMATIONAL => {
                match self.handle_informational_request(ctx, &payloads, (addresses.0, addresses.1), proof) {
                    Ok(answer) => self.answer(ctx, header.exchange, &answer),
                    Err(reason) => {
                        self.yield_to_peer_rekey(ctx);
                        // Who deletes the old one has the new one.
                        ctx.effects.extend(self.rekeyed_by.map(Effect::AskAgain));
                        self.part(ctx, addresses, (reason, deleted))
                    }
                }
            }
            _ => self.handle_create_child_request(ctx, &payloads, proof),
        };
        self.answer_over = None;
        done?;
        if header.exchange != ExchangeType::IKE_AUTH {
            self.peer_has_this(ctx);
        }
        self.run_tasks(ctx);
        Ok(Ok(()))
    }

    fn answer(
        &mut self,
        ctx: &mut Ctx<'_>,
        exchange: ExchangeType,
        payloads: &[Payload],
    ) -> Result<(), Gone> {
        self.send_response(ctx, exchange, payloads)
            .map_err(|error| self.close(ctx, &error.to_string(), false))
    }

    fn handle_create_child_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        payloads: &[Payload],
        proof: Protected,
    ) -> Result<(), Gone> {
        let invalid = || vec![Payload::Notify(Notify::new(NotifyType::INVALID_SYNTAX, Vec::new()))];
        let answer = if let Err(error) = rules::check(ExchangeType::CREATE_CHILD_SA, false, payloads) {
            info!(target: "IKE", "{} {error}", self.name());
            invalid()
        } else if payloads.iter().any(|p| matches!(p, Payload::TsI(_) | Payload::TsR(_)))
            || notify(payloads, NotifyType::REKEY_SA).is_some()
        {
            self.handle_child_request(ctx, payloads, proof)
        } else {
            self.handle_rekey_ike_request(ctx, payloads, proof).unwrap_or_else(|error| {
                info!(target: "IKE", "{} {error}", self.name());
                invalid()
            })
        };
        self.answer(ctx, ExchangeType::CREATE_CHILD_SA, &answer)
    }

    /// INVALID_SYNTAX in an authentic message ends the IKE SA (RFC 7296 2.21.3).
    fn fatal(&mut self, ctx: &mut Ctx<'_>, exchange: ExchangeType, reason: &str) -> Handled {
        let answer = [Payload::Notify(Notify::new(NotifyType::INVALID_SYNTAX, Vec::new()))];
        let _ = self.send_response(ctx, exchange, &answer);
        Err(self.close(ctx, reason, false))
    }

    /// RFC 7296 2.5: the request is refused, naming the payload type; the SA lives on, unless it was IKE_AUTH.
    fn refuse_critical(&mut self, ctx: &mut Ctx<'_>, exchange: ExchangeType, kind: PayloadType) -> Handled {
        info!(target: "ENC", "{} critical payload {kind} is not supported", self.name());
        let refusal = Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![kind.0]);
        self.answer(ctx, exchange, &[Payload::Notify(refusal)])?;
        if exchange == ExchangeType::IKE_AUTH {
            return Err(self.close(ctx, "the peer demands an unknown critical payload", false));
        }
        Ok(Ok(()))
    }

    fn handle_response(
        &mut self,
        ctx: &mut Ctx<'_>,
        header: &Header,
        addresses: (SocketAddr, SocketAddr),
        datagram: &[u8],
    ) -> Handled {
        if self.pending.as_ref().map(|p| p.message_id) != Some(header.message_id) {
            return Ok(Err(Ignored::OutsideWindow));
        }
        if !permitted(&self.state, header.exchange, true) {
            return Ok(Err(Ignored::WrongState));
        }
        let (payloads, proof) = match self.receive(ctx, header, datagram) {
            Ok(Received::Message(payloads, proof)) => (payloads, proof),
            Ok(Received::Part) => return Ok(Ok(())),
            Err(ignored) => return Ok(Err(ignored)),
        };
        self.last_heard = ctx.now;
        ctx.pace.heard_from(addresses.1.ip());
        let payloads = match payloads {
            Ok(payloads) if rules::unknown_critical(&payloads).is_none() => payloads,
            _ => return Err(self.close(ctx, "the peer sent an answer that cannot be understood", false)),
        };
        debug!(target: "ENC", "{} parsed {} response {} {}", self.name(), header.exchange, header.message_id, rules::show(&payloads));
        let Some(pending) = self.pending.take() else { return Ok(Err(Ignored::OutsideWindow)) };
        let only_there = pending.ways.len() == 1;
        // One from where nothing was sent has had its header changed.
        let sent_there = pending.ways.contains(&path(addresses.0, addresses.1));
        if !only_there && sent_there && pending.attempts > 0 && matches!(self.state, State::Established(_)) {
            self.found_working(ctx, addresses);
        }
        self.answer_heard(ctx);
        match pending.exchange {
            Exchange::Init => {}
            Exchange::Auth => self.handle_auth_response(ctx, &payloads, proof)?,
            Exchange::CreateChild(offer) => self.handle_child_response(ctx, *offer, &payloads, proof),
            Exchange::RekeyIke(ours) => {
                if let Err(error) = self.handle_rekey_ike_response(ctx, *ours, &payloads, proof) {
                    info!(target: "IKE", "{} rekeying failed: {error}", self.name());
                }
            }
            other => {
                let answered = path(addresses.0, addresses.1);
                self.handle_informational_response(ctx, other, &payloads, answered, only_there)?;
            }
        }
        self.run_tasks(ctx);
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ike::auth::{SignedOctets, sign_psk, verify_psk};
    use crate::ike::sa::Handshake;
    use mobikex_common::alg::Prf;
    use mobikex_common::crypto::Secret;

    fn peer() -> crate::ike::AuthenticatedPeer {
        let (id, key) = ("a.example".parse().unwrap(), Secret::from(vec![1; 32]));
        let octets = SignedOctets { message: b"m", nonce: b"n", id: &id, sk_p: &key };
        verify_psk(Prf::HmacSha256, &key, &octets, &sign_psk(Prf::HmacSha256, &key, &octets)).unwrap()
    }

    /// Before both AUTHs are verified, nothing but the handshake itself is handled, whatever the exchange.
    #[test]
    fn b1_b6_every_exchange_in_every_state() {
        let handshake = || Handshake {
            ni: vec![],
            nr: vec![],
            request: vec![],
            response: vec![],
            wishes: Default::default(),
            elsewhere: false,
        };
        let half_open = State::HalfOpen(Box::new(handshake()));
        let auth_sent = State::AuthSent(Box::new(crate::ike::sa::AuthSent {
            handshake: handshake(),
            child: None,
            ours: vec!["a.example".parse().unwrap()],
            eap: None,
            theirs: 0,
            responder: None,
            peer: None,
        }));
        let established = State::Established(peer());
        for exchange in (0..=255).map(ExchangeType) {
            for response in [false, true] {
                let handled = |state| permitted(state, exchange, response);
                assert_eq!(handled(&half_open), exchange == ExchangeType::IKE_AUTH && !response);
                assert_eq!(handled(&auth_sent), exchange == ExchangeType::IKE_AUTH && response);
                let late = [ExchangeType::CREATE_CHILD_SA, ExchangeType::INFORMATIONAL].contains(&exchange);
                assert_eq!(handled(&established), late);
            }
        }
    }
}
