//! AUTH (RFC 7296 2.15) and the proof that a peer is who it says.

use mobikex_common::alg::Prf;
use mobikex_common::crypto::signature::PublicKey;
use mobikex_common::crypto::{Secret, prf};
use mobikex_common::wire::ike::{AuthMethod, AuthPayload, Identification};
use tracing::info;

use super::error::IkeError;
use super::signature;
use crate::config::PskSecret;
use crate::credentials::PubkeyRules;

const KEY_PAD: &[u8] = b"Key Pad for IKEv2";
/// Makes the name of a credential, which is of no use for AUTH.
const CREDENTIAL_PAD: &[u8] = b"mobikex credential";

/// An identity that has been proven, and by what; only `verify_psk` and `verify_signature` make one. Two are equal only
/// when the same identity was proven by the same method and credential. Who has come by EAP is the user that it has proven.
/// After several rounds (RFC 4739) it is the last one's, and equal only if those before it are.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthenticatedPeer {
    id: Identification,
    method: AuthMethod,
    /// Tells credentials apart without keeping them.
    credential: Secret,
    /// What the peer calls itself in IKE, where EAP has proven the identity.
    in_ike: Option<Identification>,
    /// What it has proven in the round before.
    before: Option<Box<AuthenticatedPeer>>,
}

impl AuthenticatedPeer {
    /// The proven identity.
    pub fn id(&self) -> &Identification {
        &self.id
    }

    /// The identity in IKE, which EAP does not prove.
    pub fn ike_id(&self) -> &Identification {
        self.in_ike.as_ref().unwrap_or(&self.id)
    }

    /// The identity that EAP has proven, if it was EAP.
    pub fn eap_id(&self) -> Option<&Identification> {
        self.in_ike.is_some().then_some(&self.id)
    }

    /// Everything that it has proven, the first round first.
    pub fn rounds(&self) -> Vec<&Self> {
        let mut rounds: Vec<&Self> =
            std::iter::successors(Some(self), |peer| peer.before.as_deref()).collect();
        rounds.reverse();
        rounds
    }

    /// Whether both have proven the same identities, by whatever means.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let (own, other) = (self.rounds(), other.rounds());
        own.len() == other.len() && own.iter().zip(other).all(|(a, b)| a.id().same(b.id()))
    }

    /// The same peer, with what it has proven before.
    pub(super) fn after(self, before: Option<Self>) -> Self {
        Self { before: before.map(Box::new), ..self }
    }

    /// The same peer as the user of EAP that its AUTH has shown it to be: its key is another one each time, what it has
    /// proven itself with is not.
    pub(super) fn in_eap(self, user: Identification, credential: &Secret) -> Self {
        let credential = prf::prf(Prf::HmacSha256, credential, &[CREDENTIAL_PAD, b" in EAP"]);
        Self { id: user, method: self.method, credential, in_ike: Some(self.id), before: None }
    }
}

/// What one side's AUTH covers: its first message, the other's nonce and its own identity under SK_p.
pub(super) struct SignedOctets<'a> {
    /// The whole IKE_SA_INIT message of the signer.
    pub(super) message: &'a [u8],
    /// The nonce of the other side.
    pub(super) nonce: &'a [u8],
    /// The signer's identity.
    pub(super) id: &'a Identification,
    /// SK_pi or SK_pr of the signer.
    pub(super) sk_p: &'a Secret,
}

impl SignedOctets<'_> {
    /// `prf(SK_p, IDx')`, the last part of what is signed.
    pub(super) fn maced_id(&self, alg: Prf) -> Secret {
        let id_header = [self.id.kind.0, 0, 0, 0];
        prf::prf(alg, self.sk_p, &[&id_header, &self.id.data])
    }
}

fn psk_auth(alg: Prf, secret: &Secret, octets: &SignedOctets<'_>) -> Secret {
    let maced_id = octets.maced_id(alg);
    let key = prf::prf(alg, secret, &[KEY_PAD]);
    prf::prf(alg, &key, &[octets.message, octets.nonce, &maced_id])
}

/// Our AUTH payload.
pub(super) fn sign_psk(alg: Prf, secret: &Secret, octets: &SignedOctets<'_>) -> AuthPayload {
    AuthPayload { method: AuthMethod::SHARED_KEY_MIC, data: psk_auth(alg, secret, octets).to_vec() }
}

/// Checks the peer's AUTH payload, in constant time.
pub(super) fn verify_psk(
    alg: Prf,
    secret: &Secret,
    octets: &SignedOctets<'_>,
    auth: &AuthPayload,
) -> Result<AuthenticatedPeer, IkeError> {
    if auth.method != AuthMethod::SHARED_KEY_MIC {
        return Err(IkeError::Authentication(format!(
            "{} uses method {}, we expect a pre-shared key",
            octets.id, auth.method
        )));
    }
    // `Secret` compares in constant time, and an empty value never equals a PRF output.
    if psk_auth(alg, secret, octets) == Secret::from(auth.data.clone()) {
        let credential = prf::prf(Prf::HmacSha256, secret, &[CREDENTIAL_PAD]);
        Ok(AuthenticatedPeer {
            id: octets.id.clone(),
            method: auth.method,
            credential,
            in_ike: None,
            before: None,
        })
    } else {
        Err(IkeError::Authentication(format!(
            "the MAC of {} is wrong; do both sides have the same secret?",
            octets.id
        )))
    }
}

/// Checks the peer's AUTH payload with a key that is trusted to be the peer's, against the rules of the connection. With
/// `legacy` the peer has not announced what it knows of RFC 7427.
pub(super) fn verify_signature(
    alg: Prf,
    key: &PublicKey,
    (rules, legacy): (&PubkeyRules, bool),
    octets: &SignedOctets<'_>,
    auth: &AuthPayload,
) -> Result<AuthenticatedPeer, IkeError> {
    let (id, kind) = (octets.id, key.kind());
    let refused = |reason: String| IkeError::Authentication(format!("the signature of '{id}': {reason}"));
    let (schemes, data) = signature::read(auth, kind, legacy).map_err(refused)?;
    let taken: Vec<_> = schemes.iter().copied().filter(|scheme| rules.takes(kind, *scheme)).collect();
    if taken.is_empty() {
        let used = schemes.first().map_or(String::new(), ToString::to_string);
        return Err(refused(format!("{used} with {kind} is not what the connection takes ({rules})")));
    }
    let maced_id = octets.maced_id(alg);
    let parts: [&[u8]; 3] = [octets.message, octets.nonce, &maced_id];
    let good = taken.into_iter().find(|scheme| key.verify(*scheme, &parts, data).is_ok());
    let scheme = good.ok_or_else(|| refused(format!("it is wrong for its key ({kind})")))?;
    info!(target: "IKE", "authentication of '{id}' with {scheme} successful");
    let credential = prf::prf(Prf::HmacSha256, key.spki(), &[CREDENTIAL_PAD]);
    Ok(AuthenticatedPeer { id: id.clone(), method: auth.method, credential, in_ike: None, before: None })
}

/// The secret for a pair of identities: one that names both beats one that names only the peer beats one that
/// names nobody.
pub(super) fn find_secret<'a>(
    secrets: &'a [PskSecret],
    local: &Identification,
    remote: &Identification,
) -> Option<&'a PskSecret> {
    let score = |s: &PskSecret| {
        let has = |id: &Identification| s.ids.iter().any(|own| own.same(id));
        match (has(local), has(remote), s.ids.is_empty()) {
            (true, true, _) => 3,
            (false, true, _) => 2,
            (_, _, true) => 1,
            _ => 0,
        }
    };
    secrets.iter().map(|s| (score(s), s)).filter(|(n, _)| *n > 0).max_by_key(|(n, _)| *n).map(|(_, s)| s)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octets<'a>(id: &'a Identification, key: &'a Secret) -> SignedOctets<'a> {
        SignedOctets { message: b"message", nonce: b"nonce", id, sk_p: key }
    }

    #[test]
    fn b14_only_the_whole_mac_is_accepted() {
        let (id, key) = ("a.example".parse().unwrap(), Secret::from(vec![1; 32]));
        let good = sign_psk(Prf::HmacSha256, &key, &octets(&id, &key));
        let check = |method, data: Vec<u8>| {
            verify_psk(Prf::HmacSha256, &key, &octets(&id, &key), &AuthPayload { method, data }).is_ok()
        };
        assert!(check(good.method, good.data.clone()));
        assert!(!check(AuthMethod::NULL, good.data.clone()));
        for len in 0..good.data.len() {
            assert!(!check(good.method, good.data[..len].to_vec()), "{len} octets were enough");
        }
        assert!(!check(good.method, [&good.data[..], &[0]].concat()));
        assert!(!check(good.method, vec![0; good.data.len()]));
    }

    #[test]
    fn the_secret_that_names_both_sides_is_taken() {
        let id = |text: &str| text.parse::<Identification>().unwrap();
        let secret = |name: &str, ids: &[&str]| PskSecret {
            name: name.into(),
            ids: ids.iter().map(|i| id(i)).collect(),
            secret: Secret::from(vec![1]),
        };
        let all =
            [secret("any", &[]), secret("peer", &["b.example"]), secret("both", &["a.example", "b.example"])];
        let find = |remote: &str| find_secret(&all, &id("a.example"), &id(remote)).map(|s| s.name.as_str());
        assert_eq!(find("b.example"), Some("both"));
        assert_eq!(find("c.example"), Some("any"));
        assert_eq!(find_secret(&all[1..], &id("a.example"), &id("c.example")), None);
    }
}
