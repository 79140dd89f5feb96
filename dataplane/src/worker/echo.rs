//! ESP echoes (draft-ietf-ipsecme-encrypted-esp-ping-03, 4.2): a request is answered where it came in.

use std::time::Instant;

use mobikex_common::addr::{Path, WeightedPath};
use mobikex_common::drop::DropReason;
use mobikex_common::wire::echo::{self, Echo, MAX_LEN};

use super::Sockets;
use super::limit::Limit;
use crate::esp::{self, IvSource, OuterInfo};
use crate::published::Guard;
use crate::sad::{InboundSa, OutboundSa};
use crate::upcall::Upcall;

/// Requests answered and responses reported a second and worker.
const ECHOES_PER_SECOND: u32 = 1000;
/// The longest sealed echo: what ESP adds is at most a header, an IV, a block of padding, the trailer and an ICV.
const SEALED: usize = MAX_LEN + 8 + 16 + 16 + 64;

/// A worker's part in echoes.
pub(super) struct Echoes {
    ivs: IvSource,
    limit: Limit,
}

impl Echoes {
    pub(super) fn new(ivs: IvSource) -> Self {
        Self { ivs, limit: Limit::new(ECHOES_PER_SECOND) }
    }

    /// Answers a request over the way that it came, with the same octets; a response is returned as an upcall.
    ///
    /// # Errors
    /// Why it was dropped instead.
    pub(super) fn received(
        &mut self,
        sa: &InboundSa,
        payload: &[u8],
        outer: &OuterInfo,
        sockets: &Sockets,
        now: &super::Now<'_>,
    ) -> Result<Option<Upcall>, DropReason> {
        let bad = |_| DropReason::InBadEcho;
        let (response, message) =
            (echo::response(payload).map_err(bad)?, echo::message(payload).map_err(bad)?);
        if !self.limit.allow(now.ms) {
            return Err(DropReason::InEchoLimit);
        }
        if response {
            let (child, path, at) = (sa.id(), outer.path, Instant::now());
            return Ok(Some(Upcall::Echo { child, path, echo: Echo::parse(message).map_err(bad)?, at }));
        }
        let mut answer = [0; MAX_LEN];
        let answer = &mut answer[..message.len()];
        answer.copy_from_slice(message);
        answer[0] = echo::RESPONSE;
        let set = sa.addresses().load(now.guard);
        let device =
            set.and_then(|set| set.find(&outer.path, outer.encap)).map_or(0, |found| found.path.device);
        let back = WeightedPath { device, ..WeightedPath::new(outer.path, outer.encap) };
        send(sa.outbound(), &back, answer, sockets, &mut self.ivs, now.guard).map(|()| None)
    }
}

/// Seals an echo and sends it on exactly this path, which need not be one of the SA's set; if it is, the octets are
/// counted there.
pub(crate) fn send(
    sa: &OutboundSa,
    way: &WeightedPath,
    message: &[u8],
    sockets: &Sockets,
    ivs: &mut IvSource,
    guard: &Guard,
) -> Result<(), DropReason> {
    let mut out = [0; SEALED];
    let sealed = esp::seal_echo(sa, message, &mut out, ivs)?;
    if let Some(found) = sa.addresses().load(guard).and_then(|set| set.find(&way.path, way.encap)) {
        found.counters.count_out(1, sealed.len);
    }
    let Path { local, remote } = way.path;
    let out = &out[..sealed.len];
    let result = match (way.encap, remote.is_ipv4()) {
        _ if local.is_ipv4() != remote.is_ipv4() => None,
        (true, true) => sockets.udp4.as_ref().map(|s| s.send_to(local, remote, way.device, out, sealed.tos)),
        (true, false) => sockets.udp6.as_ref().map(|s| s.send_to(local, remote, way.device, out, sealed.tos)),
        (false, true) => sockets.raw4.as_ref().map(|s| s.send_to(local, remote, way.device, out, sealed.tos)),
        (false, false) => {
            sockets.raw6.as_ref().map(|s| s.send_to(local, remote, way.device, out, sealed.tos))
        }
    };
    result.ok_or(DropReason::OutNoPath)?.map_err(|_| DropReason::OutSend)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{outbound, params, suites};
    use mobikex_common::sa::Mode;

    #[test]
    fn the_longest_echo_fits_with_every_suite() {
        for suite in suites() {
            let sa = outbound(&params(1, Mode::Tunnel, suite));
            assert!(sa.sealed_len(MAX_LEN) <= SEALED, "{suite}");
        }
    }
}
