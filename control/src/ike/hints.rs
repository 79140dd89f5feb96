//! Complaints that anybody could have sent: INVALID_SPI and INVALID_IKE_SPI outside an IKE SA, and ICMP errors. They prove
//! nothing and change nothing; they only make us ask the peer, and not often (RFC 7296 2.4, 2.21.4; RFC 4555 3.5, 5.3, 5.4).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mobikex_common::addr::Path;
use mobikex_common::spi::Spi;
use mobikex_common::wire::ike::{Header, NotifyType, PayloadType, parse_chain};
use tracing::info;

use super::ctx::Ctx;
use super::endpoint::Endpoint;
use super::rules::notify;
use super::sa::IkeSa;
use super::tasks::Task;

/// A peer is not asked more often than this, however many complain.
const INTERVAL: Duration = Duration::from_secs(10);
/// Complaints that are heard in a second: for each, all IKE SAs that send to an address are looked at.
const PER_SECOND: u32 = 20;

/// Counts complaints.
#[derive(Default)]
pub(super) struct Complaints {
    since: Option<Instant>,
    heard: u32,
}

impl Complaints {
    fn allow(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|at| now.saturating_duration_since(at) >= Duration::from_secs(1)) {
            *self = Self { since: Some(now), heard: 0 };
        }
        self.heard += 1;
        self.heard <= PER_SECOND
    }
}

impl Endpoint {
    /// An ICMP error says that packets of ours from one address to another, and to that port of it if they went in UDP,
    /// do not arrive there.
    pub fn handle_unreachable(&mut self, now: Instant, local: IpAddr, remote: IpAddr, port: Option<u16>) {
        let meant = |p: &Path| {
            (p.local.ip(), p.remote.ip()) == (local, remote)
                && port.is_none_or(|port| p.remote.port() == port)
        };
        let sends = |sa: &IkeSa| sa.sends_over().any(|p| meant(&p));
        self.doubt(now, remote, sends, "packets come back as undeliverable from the peer's address");
    }

    /// A message without protection that belongs to no exchange.
    pub(super) fn handle_complaint(
        &mut self,
        now: Instant,
        remote: SocketAddr,
        header: &Header,
        datagram: &[u8],
    ) {
        if header.next_payload != PayloadType::N {
            return;
        }
        let Ok(payloads) = parse_chain(header.next_payload, &datagram[Header::LEN..]) else { return };
        // Whoever complains knows an SPI that we use, so it has at least seen a packet.
        if let Some(complaint) = notify(&payloads, NotifyType::INVALID_SPI)
            && let Ok(octets) = <[u8; 4]>::try_from(complaint.data.as_slice())
        {
            let spi = Spi(u32::from_be_bytes(octets));
            let sends = |sa: &IkeSa| sa.children.iter().any(|c| c.spi_out == spi);
            self.doubt(now, remote.ip(), sends, "the peer seems not to know an SPI");
        } else if notify(&payloads, NotifyType::INVALID_IKE_SPI).is_some() && header.flags.response {
            let spis = (header.initiator_spi, header.responder_spi);
            let meant = |sa: &IkeSa| (sa.spi_i, sa.spi_r) == spis;
            self.doubt(now, remote.ip(), meant, "the peer seems not to know the IKE SA");
        }
    }

    /// Of the SAs that send to `remote`, asks the peers of those that are meant.
    fn doubt(&mut self, now: Instant, remote: IpAddr, meant: impl Fn(&IkeSa) -> bool, reason: &str) {
        if !self.complaints.allow(now) {
            return;
        }
        let due = |sa: &IkeSa| {
            let lately = sa.doubted_at.is_some_and(|at| now.saturating_duration_since(at) < INTERVAL);
            !lately && sa.peer().is_some() && sa.rekeyed_by.is_none() && meant(sa)
        };
        let ids: Vec<u32> = self.sas.sending_to(remote).filter(|sa| due(sa)).map(|sa| sa.id).collect();
        for id in ids {
            self.with_sa(now, id, |sa, ctx| {
                sa.begin_to_doubt(ctx, reason);
                Ok(())
            });
        }
    }
}

impl IkeSa {
    /// Every pair over which anything is sent.
    fn sends_over(&self) -> impl Iterator<Item = Path> + '_ {
        let paths = self.children.iter().flat_map(|c| &c.addresses.paths);
        paths.filter(|p| p.weight > 0).map(|p| p.path).chain([self.current()])
    }

    /// Every address to which anything is sent, some of them several times.
    pub(super) fn remotes(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.sends_over().map(|p| p.remote.ip())
    }

    fn begin_to_doubt(&mut self, ctx: &mut Ctx<'_>, reason: &str) {
        self.doubted_at = Some(ctx.now);
        info!(target: "IKE", "{} {reason}, asking it", self.name());
        self.add_task(ctx, Task::Doubt);
    }
}
