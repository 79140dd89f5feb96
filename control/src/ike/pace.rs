//! The pace of requests to where the peer has never been seen (M6 of the threats): however many reasons there are to try
//! an address, and however many IKE SAs have one, it gets one datagram a second.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mobikex_common::addr::Path;

use super::ctx::Ctx;
use super::sa::IkeSa;

const PACE: Duration = Duration::from_secs(1);

/// When each such address got a datagram, as long as that matters.
#[derive(Default)]
pub(super) struct Pace {
    sent: HashMap<IpAddr, Instant>,
    /// When what matters no more was forgotten last.
    swept: Option<Instant>,
}

impl Pace {
    /// Counts a datagram to `addr`, or tells when there may be one.
    fn take(&mut self, addr: IpAddr, now: Instant) -> Result<(), Instant> {
        let matters = |at: &Instant| now.saturating_duration_since(*at) < PACE;
        if !self.swept.as_ref().is_some_and(matters) {
            self.swept = Some(now);
            self.sent.retain(|_, at| matters(at));
        }
        match self.sent.get(&addr).filter(|at| matters(at)) {
            Some(at) => Err(*at + PACE),
            None => {
                self.sent.insert(addr, now);
                Ok(())
            }
        }
    }

    /// Something authentic came from there, so whoever is there has not been sent more than it asked for.
    pub(super) fn heard_from(&mut self, addr: IpAddr) {
        self.sent.remove(&addr);
    }
}

impl IkeSa {
    /// Sends a request, or tells when it may be sent there.
    pub(super) fn send_over(
        &mut self,
        ctx: &mut Ctx<'_>,
        path: Path,
        datagram: Vec<u8>,
    ) -> Result<(), Instant> {
        if self.peer().is_some() && !self.is_proven(path.remote) {
            ctx.pace.take(path.remote.ip(), ctx.now)?;
        }
        ctx.transmit(path.local, path.remote, self.nat_t, datagram);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m6_one_datagram_a_second_unless_somebody_answers() {
        let mut pace = Pace::default();
        let [one, other]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let start = Instant::now();
        assert_eq!(pace.take(one, start), Ok(()));
        assert_eq!(pace.take(one, start + PACE / 2), Err(start + PACE));
        assert_eq!(pace.take(other, start + PACE / 2), Ok(()));
        assert_eq!(pace.take(one, start + PACE), Ok(()));
        pace.heard_from(one);
        assert_eq!(pace.take(one, start + PACE), Ok(()));
    }
}
