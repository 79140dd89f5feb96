//! EAP in IKE_AUTH (RFC 7296 2.16): what a connection gives it to work with, and AUTH from the key that it makes.

use std::sync::Arc;

use mobikex_common::alg::Prf;
use mobikex_common::wire::ike::{AuthPayload, Identification};
use tracing::info;

use super::auth::{AuthenticatedPeer, SignedOctets, sign_psk, verify_psk};
use super::error::IkeError;
use crate::config::{AuthRound, Config, find_eap_secret};
use crate::credentials::{Certificate, Credentials, UnixSeconds};
use crate::eap::{Failed, Judge, Means, NtHash, OwnIdentity, Proven, TlsSettings, Verdict, identification};

impl From<Failed> for IkeError {
    fn from(reason: Failed) -> Self {
        Self::Authentication(reason.0)
    }
}

/// Secrets, certificates and trust of a connection. The responder is here who it is in its first round.
pub(super) struct Resources<'a> {
    pub(super) config: &'a Config,
    pub(super) unix: Option<UnixSeconds>,
    /// How we prove ourselves.
    pub(super) ours: &'a AuthRound,
    /// How the other side does.
    pub(super) theirs: &'a AuthRound,
    /// Who we are in IKE.
    pub(super) local: &'a Identification,
    /// The responder, if that is the other side.
    pub(super) responder: Option<&'a Identification>,
}

impl Means for Resources<'_> {
    fn password(&self, user: &[u8], ours: bool) -> Option<NtHash> {
        find_eap_secret(&self.config.eap_secrets, user, ours).map(|secret| secret.hash.clone())
    }

    fn tls(&self, user: Option<&Identification>) -> Result<TlsSettings, Failed> {
        let (credentials, round) = (&self.config.credentials, self.theirs);
        let now = self
            .unix
            .ok_or_else(|| Failed("the time is not known, so no certificate can be taken".into()))?;
        let anchors = if round.cacerts.is_empty() { credentials.trusted() } else { round.cacerts.clone() };
        let (known, only) = round.pinned(credentials);
        let judge = Judge {
            expected: user.or(self.responder).cloned(),
            anchors,
            authorities: credentials.authorities.clone(),
            crls: credentials.crls.clone(),
            revocation: round.revocation,
            pinned: (known.to_vec(), only),
            now,
            verdict: Verdict::default(),
        };
        Ok(TlsSettings { identity: self.own_identity(credentials, now)?, judge })
    }
}

impl Resources<'_> {
    fn own_identity(&self, credentials: &Credentials, now: UnixSeconds) -> Result<OwnIdentity, Failed> {
        let round = self.ours;
        let id = match round.eap() {
            Some(_) => identification(&round.eap_name(self.local)),
            None => self.local.clone(),
        };
        let all: Vec<&Arc<Certificate>> = if round.certs.is_empty() {
            credentials.certificates_for(&id).collect()
        } else {
            round.certs.iter().collect()
        };
        let usable = all.into_iter().filter_map(|cert| Some((cert, credentials.key_for(cert.key().ok()?)?)));
        let (cert, key) = usable
            .min_by_key(|(cert, _)| cert.check_time(now).is_err())
            .ok_or_else(|| Failed(format!("no private key with a certificate for '{id}' is loaded")))?;
        let cas = credentials.chain_of(cert);
        let chain = std::iter::once(cert.der()).chain(cas.iter().map(|ca| ca.der())).map(<[u8]>::to_vec);
        Ok(OwnIdentity { chain: chain.collect(), key: Arc::clone(key) })
    }
}

/// Our AUTH from the MSK.
pub(super) fn sign(alg: Prf, proven: &Proven, octets: &SignedOctets<'_>) -> AuthPayload {
    sign_psk(alg, &proven.msk, octets)
}

/// Checks that the peer has the MSK too: only now does an EAP success count. The one proven is `user`.
pub(super) fn verify(
    alg: Prf,
    proven: &Proven,
    user: Identification,
    octets: &SignedOctets<'_>,
    auth: &AuthPayload,
) -> Result<AuthenticatedPeer, IkeError> {
    let peer = verify_psk(alg, &proven.msk, octets, auth).map_err(|_| {
        IkeError::Authentication(format!("the AUTH of '{}' is not made with the MSK of EAP", octets.id))
    })?;
    info!(target: "IKE", "authentication of '{}' with EAP successful", octets.id);
    Ok(peer.in_eap(user, &proven.credential))
}
