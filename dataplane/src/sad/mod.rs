//! The Security Association Database's records (RFC 4301 4.4.2): what a Child SA is to the packet path.

mod inbound;
mod outbound;

use std::sync::atomic::{AtomicU8, Ordering};

use mobikex_common::sa::{ChildSaParams, VolumeLimits};
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ip::Packet;

pub use inbound::InboundSa;
pub(crate) use outbound::WORKERS_MAX;
pub use outbound::{OutboundSa, SequenceNumber, SequenceNumbers};

/// What an SA may carry: any of our side's selectors with any of the peer's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selectors {
    local: Box<[TrafficSelector]>,
    remote: Box<[TrafficSelector]>,
}

impl Selectors {
    /// From both sides' lists.
    pub fn new(local: &[TrafficSelector], remote: &[TrafficSelector]) -> Self {
        Self { local: local.into(), remote: remote.into() }
    }

    /// Our side.
    pub fn local(&self) -> &[TrafficSelector] {
        &self.local
    }

    /// The peer's side.
    pub fn remote(&self) -> &[TrafficSelector] {
        &self.remote
    }

    /// Whether a packet from us to the peer fits in every field (RFC 4301 5.1).
    #[inline]
    pub fn match_outbound(&self, packet: &Packet<'_>) -> bool {
        let (src_port, dst_port) = packet.ports.unzip();
        let protocol = packet.protocol;
        self.remote.iter().any(|ts| ts.matches(packet.dst, protocol, dst_port))
            && self.local.iter().any(|ts| ts.matches(packet.src, protocol, src_port))
    }

    /// Whether a packet from the peer to us fits in every field (RFC 4301 5.2).
    #[inline]
    pub fn match_inbound(&self, packet: &Packet<'_>) -> bool {
        let (src_port, dst_port) = packet.ports.unzip();
        let protocol = packet.protocol;
        self.remote.iter().any(|ts| ts.matches(packet.src, protocol, src_port))
            && self.local.iter().any(|ts| ts.matches(packet.dst, protocol, dst_port))
    }
}

impl From<&ChildSaParams> for Selectors {
    fn from(params: &ChildSaParams) -> Self {
        Self::new(&params.ts_local, &params.ts_remote)
    }
}

/// Something that the control thread should hear about an SA, each kind once in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum SaEvent {
    /// A soft volume limit, or most of the sequence numbers: time to rekey.
    SoftLimit = 1,
    /// A hard volume limit: the SA carries nothing more.
    HardLimit = 2,
    /// The first authentic packet from the peer.
    FirstInbound = 4,
    /// No sequence numbers are left.
    SequenceExhausted = 8,
}

impl SaEvent {
    const ALL: [Self; 4] = [Self::SoftLimit, Self::HardLimit, Self::FirstInbound, Self::SequenceExhausted];
}

/// The limits of an SA that has any; few have.
type Limits = Option<Box<VolumeLimits>>;

fn limits(params: &ChildSaParams) -> Limits {
    (params.limits != VolumeLimits::default()).then(|| Box::new(params.limits))
}

/// Events that wait for a worker to report them.
#[derive(Debug, Default)]
struct Events {
    raised: AtomicU8,
    waiting: AtomicU8,
}

impl Events {
    fn raise(&self, event: SaEvent) {
        let bit = event as u8;
        if self.raised.load(Ordering::Relaxed) & bit == 0
            && self.raised.fetch_or(bit, Ordering::Relaxed) & bit == 0
        {
            self.waiting.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn take(&self) -> impl Iterator<Item = SaEvent> + use<> {
        let waiting = match self.waiting.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.waiting.swap(0, Ordering::Relaxed),
        };
        SaEvent::ALL.into_iter().filter(move |event| waiting & *event as u8 != 0)
    }

    /// Whether a direction with these totals may carry on, raising what has been reached.
    fn judge(&self, limits: &Limits, totals: (u64, u64)) -> bool {
        let Some(limits) = limits else { return true };
        let at = |limit: Option<u64>, total| limit.is_some_and(|limit| total >= limit);
        if at(limits.soft_packets, totals.0) || at(limits.soft_bytes, totals.1) {
            self.raise(SaEvent::SoftLimit);
        }
        let hard = at(limits.hard_packets, totals.0) || at(limits.hard_bytes, totals.1);
        if hard {
            self.raise(SaEvent::HardLimit);
        }
        !hard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_reported_once() {
        let events = Events::default();
        assert_eq!(events.take().count(), 0);
        events.raise(SaEvent::SoftLimit);
        events.raise(SaEvent::FirstInbound);
        events.raise(SaEvent::SoftLimit);
        assert_eq!(events.take().collect::<Vec<_>>(), [SaEvent::SoftLimit, SaEvent::FirstInbound]);
        events.raise(SaEvent::SoftLimit);
        assert_eq!(events.take().count(), 0);
    }
}
