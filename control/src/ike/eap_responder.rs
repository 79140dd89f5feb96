//! IKE_AUTH with EAP as its responder. We prove ourselves first, so that who asks for a password is known; the initiator is
//! somebody only once EAP has come to its end and its AUTH shows the key.

use mobikex_common::wire::ike::{Identification, Payload};
use rand_chacha::ChaCha20Rng;
use tracing::info;

use super::error::IkeError;
use super::rules;
use crate::config::{AuthRound, Connection, EapId};
use crate::eap::{Asks, Failed, Kind, Means, Proven, Server, Turn, name_of};

/// A round of the initiator in EAP.
pub(super) struct EapServing {
    server: Server,
    /// Whom EAP has shown it to be; this counts with AUTH alone.
    pub(super) proven: Option<(Identification, Proven)>,
}

/// How the initiator's name becomes known.
fn asks(round: &AuthRound, id: &Identification) -> Asks {
    match (&round.eap_id, &round.id) {
        (EapId::Any, _) => Asks::Identity(None),
        (EapId::Name(name), _) => Asks::Identity(Some(name.clone().into_bytes())),
        // Where the connection is for certain identities, the one in IKE must not be another than that in EAP.
        (EapId::Unset, Some(_)) => Asks::Known(name_of(id)),
        (EapId::Unset, None) => Asks::Nothing,
    }
}

impl EapServing {
    /// Begins, with the first packet, for an initiator that calls itself `id`.
    pub(super) fn start(
        conn: &Connection,
        round: &AuthRound,
        id: &Identification,
        means: &dyn Means,
        rng: &mut ChaCha20Rng,
    ) -> Result<(Self, Vec<u8>), IkeError> {
        let mut kinds: Vec<Kind> = round.eap().unwrap_or_default().to_vec();
        if conn.local.eap().is_some() {
            kinds.retain(|kind| kind.is_mutual());
        }
        let (server, first) = Server::start(asks(round, id), &kinds, means, rng)?;
        Ok((Self { server, proven: None }, first))
    }

    /// Takes a packet. What to answer, and why EAP has failed if it has.
    pub(super) fn step(
        &mut self,
        means: &dyn Means,
        rng: &mut ChaCha20Rng,
        payloads: &[Payload],
    ) -> Result<(Payload, Option<Failed>), IkeError> {
        let story = "the request needs EAP until EAP is over";
        let packet = rules::eap(payloads).ok_or(IkeError::Rule { exchange: "IKE_AUTH", story })?;
        Ok(match self.server.handle(means, rng, packet) {
            Turn::Request(packet) => (Payload::Eap(packet), None),
            Turn::Success(packet, user, proven) => {
                info!(target: "IKE", "EAP method {} succeeded, MSK established", proven.kind);
                self.proven = Some((user, proven));
                (Payload::Eap(packet), None)
            }
            Turn::Failure(packet, reason) => (Payload::Eap(packet), Some(reason)),
        })
    }
}
