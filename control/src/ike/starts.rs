//! Addresses of the peer that begin later than they were announced (MOBIKE-X 11.4.4, start time).

use std::net::{IpAddr, SocketAddr};

use mobikex_common::sa::Mode;
use mobikex_common::wire::ike::NotifyType;

use super::child::ChildSa;
use super::ctx::Ctx;
use super::output::Event;
use super::sa::IkeSa;
use super::versions::Version;

impl IkeSa {
    /// Addresses of the peer whose time has come are judged as if they were added now, and checked (M15 of the threats):
    /// policy and who has which address may be other than when the peer announced them.
    pub(super) fn begin_addresses(&mut self, ctx: &mut Ctx<'_>) {
        let mut begun: Vec<SocketAddr> =
            self.children.iter_mut().flat_map(|c| c.halves.remote.begin(ctx.now)).collect();
        begun.sort();
        begun.dedup();
        let none = begun.is_empty();
        for addr in begun {
            let verdict = self.permits_start(ctx, addr.ip());
            match verdict {
                Err(_) => self.drop_address(ctx, addr),
                Ok(()) => {
                    // What was shown of it earlier does not count.
                    self.mobility.checks.remove(&addr);
                    let has = |c: &ChildSa| c.halves.remote.has(self.remote.ip());
                    if !self.children.iter().any(has) && addr.is_ipv4() == self.local.is_ipv4() {
                        self.mobility.previous = Some((self.local, self.remote));
                        self.retarget(ctx, self.local, addr);
                    }
                }
            }
            let verdict = verdict.map_or_else(|kind| kind.to_string(), |()| "done".to_string());
            let action = format!("begin {}", addr.ip());
            ctx.event(Event::AddressAction {
                ike: self.name(),
                by_peer: true,
                action,
                verdict,
                by_hand: false,
            });
        }
        if !none {
            self.want_checks(ctx.now);
        }
    }

    /// Whether an address may begin, by the policy of today. Once version 2 is over nothing new begins.
    fn permits_start(&self, ctx: &Ctx<'_>, addr: IpAddr) -> Result<(), NotifyType> {
        let today = ctx.connections.iter().find(|c| c.name == self.conn.name);
        let allowed = today.is_none_or(|c| c.paths.allows(addr)) && self.acceptable(ctx, addr);
        if self.mobility.version != Version::MobikeX || !allowed {
            return Err(NotifyType::UNACCEPTABLE_ADDRESSES);
        }
        let fits = |c: &ChildSa| {
            c.mode != Mode::Transport
                || c.permitted_remote(self.assigned()).iter().any(|ts| ts.contains_addr(addr))
        };
        let all = self.children.iter().filter(|c| c.halves.remote.has(addr)).all(fits);
        if all { Ok(()) } else { Err(NotifyType::DOES_NOT_FIT_SPD) }
    }
}
