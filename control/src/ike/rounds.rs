//! Several rounds of authentication (RFC 4739): what both sides say of them, and what they hold each other to.
//!
//! A side proves itself as often as the connection says, each time with an identity and an AUTH of that round over the same
//! octets of IKE_SA_INIT, and says ANOTHER_AUTH_FOLLOWS beside all but the last. The rounds of the two sides pass each other: the
//! responder's begin with its first answer, one a message, and the initiator's EAP takes several messages for one of its. Nothing
//! else of IKE_AUTH counts before the last round of both: the first request is kept and answered in the last response.

use std::fmt;
use std::sync::Arc;

use mobikex_common::wire::ike::{Identification, Notify, NotifyType, Payload};
use serde::Serialize;

use super::auth::AuthenticatedPeer;
use super::error::IkeError;
use super::rules::notify;
use crate::config::{AuthRound, Connection, Method};

/// A round of authentication as an operator sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RoundView {
    /// The identity in IKE.
    pub id: String,
    /// The identity that EAP has proven.
    pub eap_id: Option<String>,
    /// `a pre-shared key`, `a signature` or `EAP`.
    pub by: &'static str,
}

impl fmt::Display for RoundView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' by {}", self.id, self.by)?;
        self.eap_id.iter().try_for_each(|id| write!(f, " as '{id}'"))
    }
}

/// A method in words.
pub(super) fn by(round: &AuthRound) -> &'static str {
    match &round.method {
        Method::Psk => "a pre-shared key",
        Method::Pubkey(_) => "a signature",
        Method::Eap(_) => "EAP",
    }
}

/// The rounds of a peer, of which the connection has `rounds`.
pub(super) fn views<'a>(
    peer: &AuthenticatedPeer,
    rounds: impl Iterator<Item = &'a AuthRound>,
) -> Vec<RoundView> {
    let view = |(proven, round): (&AuthenticatedPeer, &AuthRound)| RoundView {
        id: proven.ike_id().to_string(),
        eap_id: proven.eap_id().map(ToString::to_string),
        by: by(round),
    };
    peer.rounds().into_iter().zip(rounds).map(view).collect()
}

fn say(kind: NotifyType) -> Payload {
    Payload::Notify(Notify::new(kind, Vec::new()))
}

/// MULTIPLE_AUTH_SUPPORTED (RFC 4739 3.1), if one of the connections has a use for it.
pub(super) fn announce<'a>(mut conns: impl Iterator<Item = &'a Arc<Connection>>) -> Option<Payload> {
    conns.any(|conn| conn.has_rounds()).then(|| say(NotifyType::MULTIPLE_AUTH_SUPPORTED))
}

/// ANOTHER_AUTH_FOLLOWS (RFC 4739 3.2), to stand beside AUTH.
pub(super) fn another(more: bool) -> Option<Payload> {
    more.then(|| say(NotifyType::ANOTHER_AUTH_FOLLOWS))
}

/// Whether the peer, who speaks here for the first time about it, can do as the connection wants.
pub(super) fn supported(conn: &Connection, payloads: &[Payload]) -> bool {
    !conn.has_rounds() || notify(payloads, NotifyType::MULTIPLE_AUTH_SUPPORTED).is_some()
}

/// # Errors
/// When the peer has not announced what the connection needs.
pub(super) fn check_support(conn: &Connection, payloads: &[Payload]) -> Result<(), IkeError> {
    if supported(conn, payloads) {
        return Ok(());
    }
    let (ours, theirs) = (conn.locals().count(), conn.remotes().count());
    Err(IkeError::Authentication(format!(
        "'{}' has several rounds of authentication ({ours} of 'local', {theirs} of 'remote'), but the peer has not announced \
         that it can have more than one (MULTIPLE_AUTH_SUPPORTED, RFC 4739)",
        conn.name
    )))
}

/// Whether the peer says that another round of its follows.
pub(super) fn follows(payloads: &[Payload]) -> bool {
    notify(payloads, NotifyType::ANOTHER_AUTH_FOLLOWS).is_some()
}

/// The peer says with the proof of a round, after which it is at `done`, whether it goes on. It has to do as the connection
/// expects: neither may a round be left out, nor may it have our ear for ever.
pub(super) fn check_end(conn: &Connection, done: usize, payloads: &[Payload]) -> Result<(), IkeError> {
    let total = conn.remotes().count();
    match (conn.remotes().nth(done), follows(payloads)) {
        (Some(next), false) => {
            let id = next.shown_id().map_or("anybody".to_string(), |id| format!("'{id}'"));
            Err(IkeError::Authentication(format!(
                "the peer ends after round {done} of {total}: '{}' also expects {id} by {}",
                conn.name,
                by(next)
            )))
        }
        (None, true) => Err(IkeError::Authentication(format!(
            "the peer wants to prove itself once more after round {done}; '{}' expects {total}",
            conn.name
        ))),
        _ => Ok(()),
    }
}

/// An error of a round says which it was, where there are several.
pub(super) fn in_round(conn: &Connection, number: usize, error: IkeError) -> IkeError {
    match error {
        IkeError::Authentication(reason) if conn.has_rounds() => {
            let total = conn.remotes().count();
            IkeError::Authentication(format!("round {number} of {total} of the peer: {reason}"))
        }
        other => other,
    }
}

/// The identity that a round of the peer has to have.
pub(super) fn check_id(round: &AuthRound, id: &Identification) -> Result<(), IkeError> {
    match round.shown_id().filter(|_| round.id.as_ref().is_some_and(|want| !want.allows(id))) {
        Some(expected) => {
            Err(IkeError::Authentication(format!("the peer is '{id}', the connection expects '{expected}'")))
        }
        None => Ok(()),
    }
}
