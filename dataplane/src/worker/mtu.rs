//! Path MTUs that a worker has learnt from refused packets, and the ICMP errors that follow from them.

use std::net::{IpAddr, SocketAddr};

use super::limit::Limit;

/// Paths remembered; two that fall into one place push each other out and are learnt again.
const PLACES: usize = 256;
/// How long an MTU is believed. The system keeps its own record for ten minutes; asking again costs one packet.
const LIFETIME_MS: u64 = 60_000;
/// ICMP errors a second and worker (RFC 1812 4.3.2.8, RFC 4443 2.4 f).
const ERRORS_PER_SECOND: u32 = 200;

/// What an inner packet may always be long, whatever a path or an ICMP error claims: below it the outer packet
/// is fragmented instead (RFC 791 3.1, RFC 8200 5).
pub(crate) fn floor(inner_ipv4: bool) -> usize {
    if inner_ipv4 { 576 } else { 1280 }
}

/// Learnt MTUs of outer paths, in octets of the whole outer packet.
pub(crate) struct PathMtus {
    places: Box<[Option<Learnt>]>,
    any: bool,
}

#[derive(Clone, Copy)]
struct Learnt {
    local: IpAddr,
    remote: IpAddr,
    mtu: u16,
    until_ms: u64,
}

impl PathMtus {
    pub(crate) fn new() -> Self {
        Self { places: vec![None; PLACES].into_boxed_slice(), any: false }
    }

    /// Notes the MTU of a path.
    pub(crate) fn learn(&mut self, local: SocketAddr, remote: SocketAddr, mtu: u16, now_ms: u64) {
        let (local, remote) = (local.ip(), remote.ip());
        let learnt = Learnt { local, remote, mtu, until_ms: now_ms + LIFETIME_MS };
        self.places[place(local, remote)] = Some(learnt);
        self.any = true;
    }

    /// The MTU of a path, if it is known to be small.
    pub(crate) fn get(&self, local: SocketAddr, remote: SocketAddr, now_ms: u64) -> Option<usize> {
        if !self.any {
            return None;
        }
        let (local, remote) = (local.ip(), remote.ip());
        self.places[place(local, remote)]
            .filter(|l| l.local == local && l.remote == remote && now_ms < l.until_ms)
            .map(|l| l.mtu.into())
    }
}

fn place(local: IpAddr, remote: IpAddr) -> usize {
    let fold = |addr: IpAddr| match addr {
        IpAddr::V4(a) => u64::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a) as u64 ^ (u128::from(a) >> 64) as u64,
    };
    let mixed = (fold(local).rotate_left(32) ^ fold(remote)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as usize % PLACES
}

/// The limit on a worker's ICMP errors.
pub(crate) fn error_limit() -> Limit {
    Limit::new(ERRORS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learnt_mtu_belongs_to_its_path_and_expires() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (a, b, c) = (addr("192.0.2.1:4500"), addr("198.51.100.1:4500"), addr("198.51.100.2:4500"));
        let mut mtus = PathMtus::new();
        assert_eq!(mtus.get(a, b, 0), None);
        mtus.learn(a, b, 1300, 5);
        assert_eq!(mtus.get(a, b, 60_004), Some(1300));
        assert_eq!(mtus.get(a, c, 6), None);
        assert_eq!(mtus.get(a, b, 60_005), None);
    }

    #[test]
    fn icmp_errors_are_limited_by_the_second() {
        let mut limit = error_limit();
        assert_eq!((0..1000).filter(|_| limit.allow(10)).count(), 200);
        assert!(limit.allow(1000));
    }
}
