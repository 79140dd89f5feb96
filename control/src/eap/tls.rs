//! EAP-TLS: TLS 1.2 (RFC 5216) and 1.3 (RFC 9190), both sides with certificates. rustls speaks TLS; here are the fragments
//! that carry it, the keys that come of it, and what has to be there besides before they count.

use std::io::{Read, Write};
use std::sync::Arc;

use mobikex_common::crypto::Secret;
use mobikex_common::wire::ike::Identification;
use rand_chacha::ChaCha20Rng;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ClientConnection, Connection, ProtocolVersion, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;
use tracing::info;

use super::judge::{Judge, Seen, TlsSettings};
use super::{EapType, Failed, Kind, Means, Method, Proven, failed};

/// The flags in the first octet (RFC 5216 3.1).
const LENGTH: u8 = 0x80;
const MORE: u8 = 0x40;
const START: u8 = 0x20;

/// Octets of TLS in one packet.
const FRAGMENT: usize = 1024;
/// Octets of TLS that one flight may have.
const MAX_FLIGHT: usize = 32 * 1024;

/// What a server says in TLS 1.3 when it is content (RFC 9190 2.1.1).
const COMMITMENT: u8 = 0;

/// Takes flights apart and puts them together.
#[derive(Default)]
struct Fragments {
    /// What has come of a flight, and how long it will be.
    received: Vec<u8>,
    total: Option<usize>,
    /// What is left to send of ours.
    sending: Vec<u8>,
}

/// What a packet was.
enum Arrived {
    /// A part: this goes back.
    Reply(Vec<u8>),
    /// The last part: the whole flight.
    Flight(Vec<u8>),
}

impl Fragments {
    fn take(&mut self, flags: u8, mut data: &[u8]) -> Result<Arrived, Failed> {
        if !self.sending.is_empty() {
            if flags != 0 || !data.is_empty() {
                return Err(failed("a fragment of EAP-TLS is not acknowledged"));
            }
            return Ok(Arrived::Reply(self.next()));
        }
        if flags & LENGTH != 0 {
            let (length, rest) =
                data.split_first_chunk().ok_or_else(|| failed("EAP-TLS is cut short in its length"))?;
            let total = u32::from_be_bytes(*length) as usize;
            if total > MAX_FLIGHT || self.total.is_some_and(|said| said != total) {
                return Err(failed(format!("EAP-TLS announces a flight of {total} octets")));
            }
            self.total = Some(total);
            data = rest;
        }
        if self.received.len() + data.len() > self.total.unwrap_or(MAX_FLIGHT) {
            return Err(failed("a flight of EAP-TLS is longer than announced or allowed"));
        }
        self.received.extend(data);
        if flags & MORE != 0 {
            if data.is_empty() {
                return Err(failed("a fragment of EAP-TLS is empty"));
            }
            return Ok(Arrived::Reply(vec![0]));
        }
        if self.total.take().is_some_and(|total| total != self.received.len()) {
            return Err(failed("a flight of EAP-TLS is shorter than announced"));
        }
        Ok(Arrived::Flight(std::mem::take(&mut self.received)))
    }

    /// The first packet of a flight of ours.
    fn send(&mut self, flight: Vec<u8>) -> Vec<u8> {
        let total = flight.len();
        self.sending = flight;
        let mut packet = self.next();
        if total > FRAGMENT {
            packet[0] |= LENGTH;
            packet.splice(1..1, (total as u32).to_be_bytes());
        }
        packet
    }

    fn next(&mut self) -> Vec<u8> {
        let rest = self.sending.split_off(self.sending.len().min(FRAGMENT));
        let part = std::mem::replace(&mut self.sending, rest);
        let flags = if self.sending.is_empty() { 0 } else { MORE };
        [&[flags], part.as_slice()].concat()
    }
}

/// Either side.
pub(super) struct Tls {
    connection: Box<Connection>,
    judge: Arc<Judge>,
    fragments: Fragments,
    /// The peer has had START.
    started: bool,
    /// The server has said everything, and waits for the last acknowledgement.
    concluded: bool,
    outcome: Option<Result<Proven, Failed>>,
    /// The reason of an alert that is on its way.
    broken: Option<Failed>,
}

impl Tls {
    pub(super) fn client(means: &dyn Means) -> Result<Self, Failed> {
        let TlsSettings { identity, judge } = means.tls(None)?;
        let judge = Arc::new(judge);
        let mut config =
            ClientConfig::builder_with_details(Arc::new(aws_lc_rs::default_provider()), judge.clock())
                .with_safe_default_protocol_versions()
                .map_err(unusable)?
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(&judge) as _)
                .with_client_cert_resolver(Arc::new(identity.into_resolver()));
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        // Who the server has to be is said in certificates, and checked by the judge.
        let name = ServerName::try_from("server.invalid").map_err(|error| failed(error.to_string()))?;
        let connection = ClientConnection::new(Arc::new(config), name).map_err(unusable)?;
        Ok(Self::new(connection.into(), judge))
    }

    /// The server's side, and its first message.
    pub(super) fn server(
        means: &dyn Means,
        user: Option<&Identification>,
    ) -> Result<(Self, Vec<u8>), Failed> {
        let TlsSettings { identity, judge } = means.tls(user)?;
        let judge = Arc::new(judge);
        let mut config =
            ServerConfig::builder_with_details(Arc::new(aws_lc_rs::default_provider()), judge.clock())
                .with_safe_default_protocol_versions()
                .map_err(unusable)?
                .with_client_cert_verifier(Arc::clone(&judge) as _)
                .with_cert_resolver(Arc::new(identity.into_resolver()));
        // A session that is resumed would prove no certificate anew.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let connection = ServerConnection::new(Arc::new(config)).map_err(unusable)?;
        let mut tls = Self::new(connection.into(), judge);
        tls.started = true;
        Ok((tls, vec![START]))
    }

    fn new(connection: Connection, judge: Arc<Judge>) -> Self {
        Self {
            connection: Box::new(connection),
            judge,
            fragments: Fragments::default(),
            started: false,
            concluded: false,
            outcome: None,
            broken: None,
        }
    }

    fn is_server(&self) -> bool {
        matches!(*self.connection, Connection::Server(_))
    }

    /// Gives TLS what has come. An alert for the other side may be the answer to it.
    fn feed(&mut self, mut flight: &[u8]) -> Result<(), Failed> {
        while !flight.is_empty() {
            self.connection.read_tls(&mut flight).map_err(|error| failed(error.to_string()))?;
            self.connection.process_new_packets().map_err(|error| {
                // What the judge has said is more than what the alert says.
                self.judge.refusal().unwrap_or_else(|| failed(format!("TLS: {error}")))
            })?;
        }
        Ok(())
    }

    /// What TLS has to say.
    fn written(&mut self) -> Result<Vec<u8>, Failed> {
        let mut out = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut out).map_err(|error| failed(error.to_string()))?;
        }
        Ok(out)
    }

    fn is_tls13(&self) -> bool {
        self.connection.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// Everything is proven but what is up to EAP. The keys are those of RFC 5216 2.3 or RFC 9190 2.3.
    fn prove(&self) -> Result<Proven, Failed> {
        let context = [EapType::TLS.0];
        let (label, context): (&[u8], _) = if self.is_tls13() {
            (b"EXPORTER_EAP_TLS_Key_Material", Some(&context[..]))
        } else {
            (b"client EAP encryption", None)
        };
        let keys = self.connection.export_keying_material(vec![0; 128], label, context).map_err(unusable)?;
        let keys = Secret::from(keys);
        let Seen { name, spki } =
            self.judge.seen().ok_or_else(|| failed("the other side has no certificate"))?;
        Ok(Proven {
            kind: Kind::Tls,
            msk: Secret::from(keys[..64].to_vec()),
            name: Some(name),
            credential: Secret::from(spki),
        })
    }

    /// After a flight of the other side: whether TLS is done, and what goes out.
    fn proceed(&mut self) -> Result<Option<Vec<u8>>, Failed> {
        if self.connection.is_handshaking() {
            let flight = self.written()?;
            if flight.is_empty() && self.is_server() {
                return Err(failed("the peer says nothing"));
            }
            return Ok(Some(self.fragments.send(flight)));
        }
        if !self.is_server() {
            let mut said = [0; 2];
            let count = self.connection.reader().read(&mut said).unwrap_or(0);
            if count > usize::from(self.is_tls13()) || said[0] != COMMITMENT {
                return Err(failed("the server says something in EAP-TLS"));
            }
            if count == 1 || !self.is_tls13() {
                self.outcome = Some(Ok(self.prove()?));
            }
        } else if self.concluded {
            self.outcome = Some(Ok(self.prove()?));
            return Ok(None);
        } else {
            self.concluded = true;
            if self.is_tls13() {
                self.connection.writer().write_all(&[COMMITMENT]).map_err(|e| failed(e.to_string()))?;
            }
        }
        let flight = self.written()?;
        Ok(Some(self.fragments.send(flight)))
    }

    /// The alert goes out before the end.
    fn alert(&mut self, reason: Failed) -> Result<Option<Vec<u8>>, Failed> {
        info!(target: "IKE", "EAP-TLS failed: {reason}");
        let alert = self.written()?;
        if alert.is_empty() && self.is_server() {
            return Err(reason);
        }
        if self.is_server() {
            self.broken = Some(reason);
        } else {
            self.outcome = Some(Err(reason));
        }
        Ok(Some(self.fragments.send(alert)))
    }
}

impl Method for Tls {
    fn handle(&mut self, _: &dyn Means, _: &mut ChaCha20Rng, data: &[u8]) -> Result<Option<Vec<u8>>, Failed> {
        let (&flags, rest) = data.split_first().ok_or_else(|| failed("a packet of EAP-TLS has no flags"))?;
        if let Some(reason) = self.broken.take() {
            return Err(reason);
        }
        if self.outcome.is_some() {
            return Err(failed("EAP-TLS goes on after its end"));
        }
        if !std::mem::replace(&mut self.started, true) {
            if flags & START == 0 || !rest.is_empty() {
                return Err(failed("the server does not start EAP-TLS"));
            }
        } else {
            if flags & START != 0 {
                return Err(failed("EAP-TLS starts again"));
            }
            let flight = match self.fragments.take(flags, rest)? {
                Arrived::Reply(packet) => return Ok(Some(packet)),
                Arrived::Flight(flight) => flight,
            };
            if self.concluded && !flight.is_empty() {
                return match self.feed(&flight) {
                    Err(reason) => Err(reason),
                    Ok(()) => Err(failed("the peer says something in EAP-TLS")),
                };
            }
            if let Err(reason) = self.feed(&flight) {
                return self.alert(reason);
            }
        }
        self.proceed()
    }

    fn outcome(&self) -> Option<&Result<Proven, Failed>> {
        self.outcome.as_ref()
    }
}

fn unusable(error: rustls::Error) -> Failed {
    failed(format!("TLS: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_flight_arrives_as_it_was_sent(length in 0..MAX_FLIGHT, seed: u8) {
            let flight: Vec<u8> = (0..length).map(|n| (n as u8).wrapping_mul(31) ^ seed).collect();
            let (mut from, mut to) = (Fragments::default(), Fragments::default());
            let mut packet = from.send(flight.clone());
            let arrived = loop {
                prop_assert!(packet.len() <= 5 + FRAGMENT);
                match to.take(packet[0], &packet[1..]) {
                    Ok(Arrived::Flight(arrived)) => break arrived,
                    Ok(Arrived::Reply(ack)) => match from.take(ack[0], &ack[1..]) {
                        Ok(Arrived::Reply(next)) => packet = next,
                        _ => panic!("an acknowledgement is no flight"),
                    },
                    Err(reason) => panic!("{reason}"),
                }
            };
            prop_assert_eq!(arrived, flight);
        }

        #[test]
        fn random_fragments_never_hold_more_than_a_flight(
            packets in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..2000)), 0..30)
        ) {
            let mut fragments = Fragments::default();
            for (flags, data) in packets {
                if fragments.take(flags, &data).is_err() {
                    break;
                }
                prop_assert!(fragments.received.len() <= MAX_FLIGHT);
            }
        }
    }

    #[test]
    fn what_is_announced_has_to_come() {
        let refused = |packets: &[(u8, &[u8])]| {
            let mut fragments = Fragments::default();
            packets.iter().any(|(flags, data)| fragments.take(*flags, data).is_err())
        };
        assert!(refused(&[(LENGTH, &[0, 0, 0])]), "cut short");
        assert!(refused(&[(LENGTH | MORE, &[0, 1, 0, 0, 1])]), "longer than is allowed");
        assert!(refused(&[(LENGTH, &[0, 0, 0, 2, 1])]), "shorter than announced");
        assert!(refused(&[(LENGTH, &[0, 0, 0, 1, 1, 2])]), "longer than announced");
        assert!(refused(&[(LENGTH | MORE, &[0, 0, 0, 9, 1]), (LENGTH, &[0, 0, 0, 8, 1])]), "another length");
        assert!(refused(&[(MORE, &[])]), "empty");
        assert!(!refused(&[(LENGTH | MORE, &[0, 0, 0, 2, 1]), (0, &[2])]));
    }
}
