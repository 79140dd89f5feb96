//! A Child SA as the control thread hands it to the packet path.

use std::fmt;

use serde::Serialize;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::addr::AddressSet;
use crate::alg::EspSuite;
use crate::spi::Spi;
use crate::ts::TrafficSelector;

/// Names one Child SA for the life of the process; a rekeyed SA gets a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct ChildSaId(pub u32);

/// Names the policy that successive Child SAs serve; a rekeyed SA keeps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct PolicyId(pub u32);

/// IPsec mode (RFC 4301 3.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Whole packets inside new outer headers.
    #[default]
    Tunnel,
    /// The packet's own addresses stay outside.
    Transport,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tunnel => "TUNNEL",
            Self::Transport => "TRANSPORT",
        })
    }
}

/// Key material of one direction: encryption key with its salt, then the integrity key. Wiped when dropped and
/// never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct EspKeys {
    /// `Cipher::key_material_len` octets.
    pub encryption: Vec<u8>,
    /// `Integrity::key_len` octets, or none for an AEAD.
    pub integrity: Vec<u8>,
}

impl fmt::Debug for EspKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EspKeys(..)")
    }
}

/// When an SA has served long enough. `None` = no limit. Reaching a soft limit asks for a rekey, reaching a
/// hard one ends the SA (RFC 4301 4.4.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct VolumeLimits {
    /// Octets of inner packets, per direction.
    pub soft_bytes: Option<u64>,
    /// Octets of inner packets, per direction.
    pub hard_bytes: Option<u64>,
    /// Packets, per direction.
    pub soft_packets: Option<u64>,
    /// Packets, per direction.
    pub hard_packets: Option<u64>,
}

/// How DSCP values cross the tunnel boundary (RFC 4301 5.1.2, RFC 6040 governs ECN regardless).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyDscp {
    /// Inner to outer only.
    #[default]
    Out,
    /// Outer to inner only.
    In,
    /// Both.
    Yes,
    /// Neither.
    No,
}

/// Everything that the packet path must know of a Child SA, both directions.
#[derive(Clone, Debug)]
pub struct ChildSaParams {
    /// This SA.
    pub id: ChildSaId,
    /// The policy that it serves.
    pub policy: PolicyId,
    /// The worker that sends on it (RFC 9611); `None`: those that have none of their own.
    pub worker: Option<u32>,
    /// For people, e.g. `home/net{3}`.
    pub name: String,
    /// Tunnel or transport.
    pub mode: Mode,
    /// SPI of packets toward us, from our allocator.
    pub spi_in: Spi,
    /// SPI of packets toward the peer.
    pub spi_out: Spi,
    /// Algorithms.
    pub suite: EspSuite,
    /// Keys of packets toward us.
    pub keys_in: EspKeys,
    /// Keys of packets toward the peer.
    pub keys_out: EspKeys,
    /// Traffic selectors of our side, at least one.
    pub ts_local: Vec<TrafficSelector>,
    /// Traffic selectors of the peer's side, at least one.
    pub ts_remote: Vec<TrafficSelector>,
    /// Outer addresses at the start.
    pub addresses: AddressSet,
    /// Replay window in packets, 64 to 65 536; 0 is refused.
    pub replay_window: u32,
    /// Volume limits.
    pub limits: VolumeLimits,
    /// Copy the inner DF bit to the outer IPv4 header.
    pub copy_df: bool,
    /// DSCP handling.
    pub copy_dscp: CopyDscp,
    /// Octets to which TFC padding makes each inner packet (RFC 4303 2.7), as far as its path takes them; 0 is none. Tunnel mode
    /// only.
    pub tfc_padding: u16,
}
