//! Why a message could not be processed, and who is at fault.

use std::net::IpAddr;

use mobikex_common::crypto::CryptoError;
use mobikex_common::wire::WireError;
use mobikex_common::wire::ike::{Identification, NotifyType};

/// A message or a request of ours failed.
#[derive(Debug, thiserror::Error)]
pub enum IkeError {
    /// The peer's message does not parse.
    #[error("peer sent a malformed message: {0}")]
    Wire(#[from] WireError),
    /// The peer's message does not verify, or a key was unusable.
    #[error("cryptography: {0}")]
    Crypto(#[from] CryptoError),
    /// A message that must be protected is not.
    #[error("peer sent a message without a usable Encrypted payload")]
    NotProtected,
    /// Authentic, but the padding is longer than the content.
    #[error("peer sent an Encrypted payload with impossible padding")]
    BadPadding,
    /// All IVs of the IKE SA are used up.
    #[error("the IKE SA has used all its IVs")]
    IvsExhausted,
    /// A payload that the exchange requires is absent, doubled or of the wrong form.
    #[error("peer broke the rules of {exchange}: {story}")]
    Rule {
        /// The exchange.
        exchange: &'static str,
        /// What is wrong.
        story: &'static str,
    },
    /// The peer answered with an error notify.
    #[error("peer answered {0}")]
    Notified(NotifyType),
    /// Nothing of what both sides accept is the same.
    #[error("no proposal in common: {0}")]
    NoProposal(String),
    /// Traffic selectors do not overlap.
    #[error("traffic selectors do not overlap: {0}")]
    TsUnacceptable(String),
    /// AUTH is wrong, an ID does not fit, or no secret is known.
    #[error("authentication failed: {0}")]
    Authentication(String),
    /// A peer that allows no NAT names other addresses than those of its message (RFC 4555 3.9).
    #[error("a NAT is in the way of a peer that allows none")]
    UnexpectedNat,
    /// One side wants an IKE SA with a first Child SA, the other one without (RFC 6023).
    #[error("an IKE SA without a Child SA: {0}")]
    Childless(&'static str),
    /// Another IKE SA of this peer stays.
    #[error("'unique = keep': {0} has an IKE SA already, from {1}")]
    NotUnique(Identification, IpAddr),
    /// Too many SAs.
    #[error("no free SPI: the limit max_child_sas is reached")]
    NoSpi,
}
