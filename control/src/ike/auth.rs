//! AUTH with a pre-shared key (RFC 7296 2.15) and the proof that a peer is who it says.

use mobikex_common::alg::Prf;
use mobikex_common::crypto::{Secret, prf};
use mobikex_common::wire::ike::{AuthMethod, AuthPayload, IdType, Identification};

use super::error::IkeError;
use crate::config::PskSecret;

const KEY_PAD: &[u8] = b"Key Pad for IKEv2";
/// Makes the name of a credential, which is of no use for AUTH.
const CREDENTIAL_PAD: &[u8] = b"mobikex credential";

/// An identity that has been proven, and by what; only `verify_psk` makes one. Two are equal only when the same identity
/// was proven by the same method and credential.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthenticatedPeer {
    id: Identification,
    method: AuthMethod,
    /// Tells credentials apart without keeping them.
    credential: Secret,
}

impl AuthenticatedPeer {
    /// The proven identity.
    pub fn id(&self) -> &Identification {
        &self.id
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

fn psk_auth(alg: Prf, secret: &Secret, octets: &SignedOctets<'_>) -> Secret {
    let id_header = [octets.id.kind.0, 0, 0, 0];
    let maced_id = prf::prf(alg, octets.sk_p, &[&id_header, &octets.id.data]);
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
        Ok(AuthenticatedPeer { id: octets.id.clone(), method: auth.method, credential })
    } else {
        Err(IkeError::Authentication(format!(
            "the MAC of {} is wrong; do both sides have the same secret?",
            octets.id
        )))
    }
}

/// The secret for a pair of identities: one that names both beats one that names only the peer beats one that
/// names nobody.
pub(super) fn find_secret<'a>(
    secrets: &'a [PskSecret],
    local: &Identification,
    remote: &Identification,
) -> Option<&'a PskSecret> {
    let score = |s: &PskSecret| {
        let has = |id: &Identification| s.ids.iter().any(|own| same_id(own, id));
        match (has(local), has(remote), s.ids.is_empty()) {
            (true, true, _) => 3,
            (false, true, _) => 2,
            (_, _, true) => 1,
            _ => 0,
        }
    };
    secrets.iter().map(|s| (score(s), s)).filter(|(n, _)| *n > 0).max_by_key(|(n, _)| *n).map(|(_, s)| s)
}

/// Canonical comparison: names compare without regard to ASCII case, everything else octet by octet.
pub(super) fn same_id(a: &Identification, b: &Identification) -> bool {
    let folds = [IdType::FQDN, IdType::RFC822_ADDR];
    a.kind == b.kind
        && if folds.contains(&a.kind) { a.data.eq_ignore_ascii_case(&b.data) } else { a.data == b.data }
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
    fn b9_identities_compare_by_type_and_whole_value() {
        let id = |text: &str| text.parse::<Identification>().unwrap();
        assert!(same_id(&id("A.Example"), &id("a.example")));
        assert!(!same_id(&id("a.example"), &id("a.example.org")));
        assert!(!same_id(&id("192.0.2.1"), &Identification { kind: IdType::FQDN, data: vec![192, 0, 2, 1] }));
        assert!(!same_id(&id("keyid:0x61"), &id("keyid:0x41")));
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
