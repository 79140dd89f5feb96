//! What an IKE SA may touch outside itself while it handles one input.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mobikex_common::sa::{ChildSaId, PolicyId};
use mobikex_common::spi::SpiAllocator;
use mobikex_common::wire::ike::{Identification, NotifyType, Payload};
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;

use super::child::ChildSa;
use super::endpoint::{Sas, Traps};
use super::internal::Internal;
use super::mappings::Mappings;
use super::network::Network;
use super::notices::Notices;
use super::output::{Event, Output};
use super::pace::Pace;
use super::pools::Pools;
use super::reassembly::FragmentMemory;
use super::sa::IkeSa;
use super::tasks::Tasks;
use crate::config::{Config, Connection};
use crate::credentials::UnixSeconds;

/// Numbers for new things.
#[derive(Default, Debug)]
pub(super) struct Ids {
    ike: u32,
    child: u32,
    policy: u32,
}

impl Ids {
    pub(super) fn ike(&mut self) -> u32 {
        self.ike += 1;
        self.ike
    }

    pub(super) fn child(&mut self) -> ChildSaId {
        self.child += 1;
        ChildSaId(self.child)
    }

    pub(super) fn policy(&mut self) -> PolicyId {
        self.policy += 1;
        PolicyId(self.policy)
    }
}

/// What the endpoint does once the SA has returned.
pub(super) enum Effect {
    /// Take up a new IKE SA (a rekeyed one).
    Spawn(Box<IkeSa>),
    /// Give Child SAs and their waiting tasks to another IKE SA.
    MoveChildren { to: u32, children: Vec<ChildSa>, tasks: Tasks, mappings: Option<Mappings> },
    /// The peer works on its new IKE SA, so its rekeying is the one that counts: the old one yields its children. Then the
    /// message that shows it is handled: it may concern them.
    Inherit { from: u32, addresses: (SocketAddr, SocketAddr, bool), message: Vec<u8> },
    /// An IKE SA lost against another; it only waits for its DELETE.
    Supersede { id: u32, by: u32 },
    /// The peer has come to know an IKE SA: what it was asked there before may be asked at once once more.
    AskAgain(u32),
    /// Ask an IKE SA to delete itself with the peer.
    DeleteIke(u32),
    /// Other IKE SAs between the same identities go. With `lost` the peer has said that it holds none of them any
    /// more (INITIAL_CONTACT, RFC 7296 2.4); otherwise our policy is to have only one, and the peer is told.
    OnlyThis { keep: u32, peer: Identification, local: Identification, lost: bool },
    /// An IKE SA was changed by a message to another one and may have something to do.
    RunTasks(u32),
    /// Set a connection up anew with a peer that refuses the offer of MOBIKE, and what it holds with it.
    StartWithoutMobike { conn: Arc<Connection>, wanted: Vec<String> },
    /// Set up an IKE SA that takes the place of this one.
    Reauthenticate(u32),
    /// An IKE SA was replaced by one with a new proof.
    Reauthenticated { connection: String, attempt: u32, by: String },
    /// A policy has become a trap for a child, unless there is one.
    Trap { connection: String, child: String, policy: PolicyId },
    /// Set a connection up again after its SA was lost.
    Restart { connection: String, child: Option<String> },
}

/// The part of [`super::Endpoint`] that SAs share.
pub(super) struct Ctx<'a> {
    pub(super) now: Instant,
    /// The machine's clock, if it is known: certificates have their validity in it.
    pub(super) unix: Option<UnixSeconds>,
    pub(super) config: &'a Config,
    /// Those of `config`, to share without copying.
    pub(super) connections: &'a [Arc<Connection>],
    /// Of the packet path.
    pub(super) workers: usize,
    pub(super) rng: &'a mut ChaCha20Rng,
    pub(super) out: &'a mut VecDeque<Output>,
    pub(super) spis: &'a mut SpiAllocator,
    pub(super) ids: &'a mut Ids,
    pub(super) traps: &'a Traps,
    pub(super) notices: &'a mut Notices,
    /// Keys of IKE SAs leave the engine.
    pub(super) saves_keys: bool,
    /// How often addresses are asked at which no peer has ever been.
    pub(super) pace: &'a mut Pace,
    /// What requests about addresses were answered with, if not carried out.
    pub(super) refusals: &'a mut BTreeMap<NotifyType, u64>,
    /// What messages in pieces take.
    pub(super) fragment_memory: &'a FragmentMemory,
    /// This machine's addresses.
    pub(super) network: &'a Network,
    /// Virtual addresses of peers.
    pub(super) pools: &'a mut Pools,
    /// Those of ours.
    pub(super) internal: &'a mut Internal,
    /// All IKE SAs but the one that is at work.
    pub(super) others: &'a mut Sas,
    pub(super) effects: Vec<Effect>,
}

impl Ctx<'_> {
    pub(super) fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }

    pub(super) fn transmit(&mut self, local: SocketAddr, remote: SocketAddr, nat_t: bool, data: Vec<u8>) {
        self.out.push_back(Output::Transmit { local, remote, nat_t, data });
    }

    /// Counts what an answer refuses.
    pub(super) fn count_refusals(&mut self, answer: &[Payload]) {
        for payload in answer {
            if let Payload::Notify(notify) = payload
                && notify.kind.is_error()
            {
                *self.refusals.entry(notify.kind).or_default() += 1;
            }
        }
    }

    pub(super) fn nonce(&mut self) -> Vec<u8> {
        // Half the output of the largest PRF and at least 16 octets (RFC 7296 2.10).
        let mut nonce = vec![0; 32];
        self.rng.fill_bytes(&mut nonce);
        nonce
    }

    /// `time` minus a random part of `jitter`, so that both sides seldom rekey at once (RFC 7296 2.8).
    pub(super) fn soon_before(&mut self, time: Duration, jitter: Duration) -> Option<Instant> {
        if time.is_zero() {
            return None;
        }
        let millis = jitter.min(time).as_millis() as u64;
        let back = if millis == 0 { 0 } else { self.rng.next_u64() % millis };
        Some(self.now + (time - Duration::from_millis(back)))
    }
}

/// NAT_DETECTION data (RFC 7296 2.23).
pub(super) fn nat_hash(
    spi_i: mobikex_common::spi::IkeSpi,
    spi_r: mobikex_common::spi::IkeSpi,
    addr: SocketAddr,
) -> [u8; 20] {
    let port = addr.port().to_be_bytes();
    let (spi_i, spi_r) = (spi_i.to_be_bytes(), spi_r.to_be_bytes());
    match addr.ip() {
        IpAddr::V4(ip) => mobikex_common::crypto::sha1(&[&spi_i, &spi_r, &ip.octets(), &port]),
        IpAddr::V6(ip) => mobikex_common::crypto::sha1(&[&spi_i, &spi_r, &ip.octets(), &port]),
    }
}
