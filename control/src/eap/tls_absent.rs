//! Stands for EAP-TLS in a build that has no signatures. Its configuration never asks for it.

use mobikex_common::wire::ike::Identification;
use rand_chacha::ChaCha20Rng;

use super::{Failed, Means, Method, Proven, failed};

/// There is none.
pub(super) enum Tls {}

impl Tls {
    pub(super) fn client(means: &dyn Means) -> Result<Self, Failed> {
        means.tls(None).and(Err(failed("this build has no EAP-TLS")))
    }

    pub(super) fn server(
        means: &dyn Means,
        user: Option<&Identification>,
    ) -> Result<(Self, Vec<u8>), Failed> {
        means.tls(user).and(Err(failed("this build has no EAP-TLS")))
    }
}

impl Method for Tls {
    fn handle(&mut self, _: &dyn Means, _: &mut ChaCha20Rng, _: &[u8]) -> Result<Option<Vec<u8>>, Failed> {
        match *self {}
    }

    fn outcome(&self) -> Option<&Result<Proven, Failed>> {
        match *self {}
    }
}
