//! The pace of requests to where the peer has never been seen (M6 of the threats): however many reasons there are to try
//! an address, and however many IKE SAs have one, it gets one datagram a second, and after a message in fragments nothing for
//! as many seconds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mobikex_common::addr::Path;

use super::ctx::Ctx;
use super::fragments::Outgoing;
use super::sa::IkeSa;

const PACE: Duration = Duration::from_secs(1);

/// When each such address may get the next datagram, as long as that matters.
#[derive(Default)]
pub(super) struct Pace {
    next: HashMap<IpAddr, Instant>,
    /// When what matters no more was forgotten last.
    swept: Option<Instant>,
}

impl Pace {
    /// Counts datagrams to `addr`, or tells when there may be some.
    fn take(&mut self, addr: IpAddr, now: Instant, datagrams: usize) -> Result<(), Instant> {
        if self.swept.is_none_or(|at| now.saturating_duration_since(at) >= PACE) {
            self.swept = Some(now);
            self.next.retain(|_, next| *next > now);
        }
        match self.next.get(&addr).filter(|next| **next > now) {
            Some(next) => Err(*next),
            None => {
                self.next.insert(addr, now + PACE * datagrams as u32);
                Ok(())
            }
        }
    }

    /// Something authentic came from there, so whoever is there has not been sent more than it asked for.
    pub(super) fn heard_from(&mut self, addr: IpAddr) {
        self.next.remove(&addr);
    }
}

impl IkeSa {
    /// Sends a request, or tells when it may be sent there.
    pub(super) fn send_over(
        &mut self,
        ctx: &mut Ctx<'_>,
        path: Path,
        message: &Outgoing,
    ) -> Result<(), Instant> {
        if self.peer().is_some() && !self.is_proven(path.remote) {
            ctx.pace.take(path.remote.ip(), ctx.now, message.datagrams().len())?;
        }
        self.transmit(ctx, (path.local, path.remote, self.nat_t), message);
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
        assert_eq!(pace.take(one, start, 1), Ok(()));
        assert_eq!(pace.take(one, start + PACE / 2, 1), Err(start + PACE));
        assert_eq!(pace.take(other, start + PACE / 2, 1), Ok(()));
        assert_eq!(pace.take(one, start + PACE, 1), Ok(()));
        pace.heard_from(one);
        assert_eq!(pace.take(one, start + PACE, 3), Ok(()));
        assert_eq!(pace.take(one, start + 3 * PACE, 1), Err(start + 4 * PACE));
    }
}
