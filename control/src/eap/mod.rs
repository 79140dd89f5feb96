//! EAP (RFC 3748) as IKEv2 carries it (RFC 7296 2.16): the initiator is the peer, the responder the server. Pure state
//! machines: no I/O, no clock, and randomness is passed in (TLS alone has its own).
//!
//! [`Peer`] and [`Server`] run the exchange: identity, choice of a method, its messages, and the end. A success counts only
//! with the MSK of a method that has come to its own end; what is done with the MSK is the engine's business.

mod judge;
mod mschapv2;
mod nt;
mod packet;
mod peer;
mod server;
#[cfg(feature = "aws-lc")]
mod tls;
#[cfg(not(feature = "aws-lc"))]
#[path = "tls_absent.rs"]
mod tls;
#[cfg(feature = "aws-lc")]
mod tls_auth;

use std::fmt;

use mobikex_common::crypto::Secret;
use mobikex_common::crypto::signature;
use mobikex_common::wire::ike::{IdType, Identification};
use rand_chacha::ChaCha20Rng;
use serde::Serialize;

pub use judge::{Judge, OwnIdentity, Seen, TlsSettings, Verdict};
pub use nt::NtHash;
pub use packet::{EapType, MAX_IDENTITY, MAX_PACKET, Packet};
pub use peer::{Peer, Reaction};
pub use server::{Asks, Server, Turn};

/// Requests that one authentication may take, whatever the method: enough for the largest flights of EAP-TLS.
pub const MAX_ROUNDS: u32 = 50;

/// A method that makes keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// EAP-TLS (RFC 5216, RFC 9190).
    Tls,
    /// EAP-MSCHAPv2.
    Mschapv2,
}

impl Kind {
    /// Those of this build, the preferred one first. TLS needs signatures.
    pub const AVAILABLE: &'static [Self] =
        if signature::AVAILABLE { &[Self::Tls, Self::Mschapv2] } else { &[Self::Mschapv2] };

    fn eap_type(self) -> EapType {
        match self {
            Self::Tls => EapType::TLS,
            Self::Mschapv2 => EapType::MSCHAPV2,
        }
    }

    /// Whether it can stand for both sides by itself (RFC 5998 4): MSCHAPv2 gives away what a password can be guessed from.
    pub fn is_mutual(self) -> bool {
        self == Self::Tls
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.eap_type().fmt(f)
    }
}

/// Why an authentication has failed: for our log, the peer learns nothing of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failed(pub String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn failed(reason: impl Into<String>) -> Failed {
    Failed(reason.into())
}

/// What a method has come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proven {
    /// The method.
    pub kind: Kind,
    /// The shared key.
    pub msk: Secret,
    /// Who the other side has proven to be, if the method says so.
    pub name: Option<Identification>,
    /// Tells the credential of the other side from others.
    pub credential: Secret,
}

/// A side of a method.
trait Method {
    /// Takes the data of a message and makes those of the next one; `None` when a server has nothing more to ask.
    fn handle(
        &mut self,
        means: &dyn Means,
        rng: &mut ChaCha20Rng,
        data: &[u8],
    ) -> Result<Option<Vec<u8>>, Failed>;

    /// How it has ended, once it has: both sides have proven themselves, or one has not.
    fn outcome(&self) -> Option<&Result<Proven, Failed>>;
}

/// What an operator has put here to prove somebody with.
pub trait Means {
    /// The password of a user, as far as MSCHAPv2 needs it. With `ours` it may also be one that names nobody.
    fn password(&self, user: &[u8], ours: bool) -> Option<NtHash>;

    /// Certificates and trust, to prove ourselves and to judge the other side: at a server `user`, or anybody that is
    /// trusted; at a peer the responder of the IKE SA.
    ///
    /// # Errors
    /// When there is no certificate of ours, or no clock.
    fn tls(&self, user: Option<&Identification>) -> Result<TlsSettings, Failed>;
}

/// The identity that a name of EAP stands for.
pub fn identification(name: &[u8]) -> Identification {
    let text = std::str::from_utf8(name).ok();
    let id = text.and_then(|text| text.parse::<Identification>().ok()).filter(Identification::is_well_formed);
    id.unwrap_or_else(|| Identification { kind: IdType::KEY_ID, data: name.to_vec() })
}

/// The name in EAP that an identity has.
pub fn name_of(id: &Identification) -> Vec<u8> {
    match id.kind {
        IdType::FQDN | IdType::RFC822_ADDR | IdType::KEY_ID => id.data.clone(),
        _ => id.to_string().into_bytes(),
    }
}

/// A name in a log.
fn shown(name: &[u8]) -> String {
    identification(name).to_string()
}
