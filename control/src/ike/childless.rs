//! IKE SAs that are set up without a first Child SA (RFC 6023).

use mobikex_common::wire::ike::{Notify, NotifyType, Payload};

use super::error::IkeError;
use super::rules::{self, notify};
use crate::config::{Childless, Connection};

/// What a responder says in IKE_SA_INIT.
pub(super) fn supported(conn: &Connection) -> Option<Payload> {
    let notify = Notify::new(NotifyType::CHILDLESS_IKEV2_SUPPORTED, Vec::new());
    (conn.childless != Childless::Never).then_some(Payload::Notify(notify))
}

/// Whether the initiator leaves the Child SA out, after what the responder has said. `needless` says that none is asked for
/// now.
pub(super) fn wanted(conn: &Connection, needless: bool, answer: &[Payload]) -> Result<bool, IkeError> {
    let supported = notify(answer, NotifyType::CHILDLESS_IKEV2_SUPPORTED).is_some();
    let needless = needless && conn.childless != Childless::Never;
    match conn.childless {
        _ if needless && supported => Ok(true),
        _ if conn.children.is_empty() => {
            Err(IkeError::Childless("our connection has no children, and the peer takes none without"))
        }
        Childless::Never | Childless::Allow => Ok(false),
        Childless::Prefer => Ok(supported),
        Childless::Force if supported => Ok(true),
        Childless::Force => Err(IkeError::Childless("we have 'childless = force', and the peer takes none")),
    }
}

/// Whether a responder takes the initiator's IKE_AUTH request as it is, with or without a Child SA.
pub(super) fn accept(conn: &Connection, request: &[Payload]) -> Result<(), IkeError> {
    match (conn.childless, rules::proposals(request)) {
        (Childless::Never, None) => {
            Err(IkeError::Childless("the peer wants one without a Child SA, and we have 'childless = never'"))
        }
        (Childless::Force, Some(_)) => {
            Err(IkeError::Childless("the peer wants a Child SA with it, and we have 'childless = force'"))
        }
        _ => Ok(()),
    }
}
