//! Stateless cookies (RFC 7296 2.6).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use mobikex_common::alg::Prf;
use mobikex_common::crypto::{Secret, prf};
use mobikex_common::spi::IkeSpi;
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;

/// A secret makes cookies for this long, and they are taken for as long again.
const SECRET_LIFETIME: Duration = Duration::from_secs(60);

/// Makes and checks cookies; two secrets overlap so that a change catches nobody in between.
pub(super) struct Cookies {
    current: Secret,
    previous: Secret,
    changed: Instant,
}

fn secret(rng: &mut ChaCha20Rng) -> Secret {
    let mut bytes = vec![0; 32];
    rng.fill_bytes(&mut bytes);
    Secret::from(bytes)
}

impl Cookies {
    pub(super) fn new(now: Instant, rng: &mut ChaCha20Rng) -> Self {
        Self { current: secret(rng), previous: secret(rng), changed: now }
    }

    /// The cookie for an initiator, for it to send back.
    pub(super) fn make(
        &mut self,
        now: Instant,
        rng: &mut ChaCha20Rng,
        addr: IpAddr,
        spi: IkeSpi,
        nonce: &[u8],
    ) -> Vec<u8> {
        if now.saturating_duration_since(self.changed) >= SECRET_LIFETIME {
            self.previous = std::mem::replace(&mut self.current, secret(rng));
            self.changed = now;
        }
        compute(&self.current, addr, spi, nonce).to_vec()
    }

    /// Whether a cookie is one of ours for this initiator, in constant time.
    pub(super) fn check(&self, cookie: &[u8], addr: IpAddr, spi: IkeSpi, nonce: &[u8]) -> bool {
        let cookie = Secret::from(cookie.to_vec());
        [&self.current, &self.previous].into_iter().any(|s| compute(s, addr, spi, nonce) == cookie)
    }
}

fn compute(secret: &Secret, addr: IpAddr, spi: IkeSpi, nonce: &[u8]) -> Secret {
    let spi = spi.to_be_bytes();
    match addr {
        IpAddr::V4(ip) => prf::prf(Prf::HmacSha256, secret, &[nonce, &ip.octets(), &spi]),
        IpAddr::V6(ip) => prf::prf(Prf::HmacSha256, secret, &[nonce, &ip.octets(), &spi]),
    }
}
