//! EAP: `auth = eap-...`, `eap_id`, and the sections `eap-NAME` and `ntlm-NAME` of `secrets`.

use std::fmt;

use mobikex_common::wire::ike::Identification;
use serde::{Serialize, Serializer};

use super::error::{Issues, Pos};
use super::model::{AuthRound, Config, Method, PskSecret};
use super::rounds::Places;
use crate::credentials::Credentials;
use crate::eap::{Kind, MAX_IDENTITY, NtHash, identification, name_of};

/// The identity within EAP.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum EapId {
    /// Not set: that of IKE.
    #[default]
    Unset,
    /// `%any`: the peer is asked for it, and may say anything.
    Any,
    /// This one.
    Name(String),
}

impl fmt::Display for EapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => Ok(()),
            Self::Any => f.write_str("%any"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Serialize for EapId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unset => serializer.serialize_none(),
            id => serializer.collect_str(id),
        }
    }
}

/// A password, as the hash of it that MSCHAPv2 needs. Its serialized form leaves the hash out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EapSecret {
    /// Section name.
    pub name: String,
    /// Whose it is; empty for ours, whoever we are.
    pub ids: Vec<String>,
    /// The hash.
    #[serde(skip)]
    pub hash: NtHash,
}

impl EapSecret {
    fn is_of(&self, name: &[u8]) -> bool {
        self.ids.iter().any(|id| id.as_bytes() == name)
    }
}

/// The secret of a name: one that names it, or with `ours` one that names nobody.
pub fn find_eap_secret<'a>(secrets: &'a [EapSecret], name: &[u8], ours: bool) -> Option<&'a EapSecret> {
    let named = secrets.iter().find(|secret| secret.is_of(name));
    named.or_else(|| secrets.iter().find(|secret| ours && secret.ids.is_empty()))
}

impl AuthRound {
    /// The methods of EAP, where it is EAP.
    pub fn eap(&self) -> Option<&[Kind]> {
        match &self.method {
            Method::Eap(kinds) => Some(kinds),
            _ => None,
        }
    }

    /// Whether certificates may have a part in it.
    pub fn may_need_certificates(&self) -> bool {
        self.rules().is_some() || self.eap().is_some_and(|kinds| kinds.contains(&Kind::Tls))
    }

    /// Our name within EAP.
    pub fn eap_name(&self, own: &Identification) -> Vec<u8> {
        match &self.eap_id {
            EapId::Name(name) => name.clone().into_bytes(),
            EapId::Unset | EapId::Any => name_of(own),
        }
    }
}

/// `eap`, `eap-dynamic` or `eap-METHOD`.
pub(super) fn method(text: &str) -> Result<Method, String> {
    let one = |kind: Kind| {
        Kind::AVAILABLE.contains(&kind).then(|| Method::Eap(vec![kind])).ok_or_else(|| {
            "eap-mschapv2: this build was made without aws-lc-rs, and has no certificates".to_string()
        })
    };
    match text {
        "eap" | "eap-dynamic" => Ok(Method::Eap(Kind::AVAILABLE.to_vec())),
        "eap-mschapv2" => one(Kind::Mschapv2),
        "eap-tls" => one(Kind::Tls),
        _ => {
            Err("eap, eap-dynamic, eap-mschapv2 or eap-tls; other methods are not available in this version"
                .to_string())
        }
    }
}

/// The value of `eap_id`.
pub(super) fn identity(text: &str) -> Result<EapId, String> {
    match text {
        "%any" => Ok(EapId::Any),
        _ if text.starts_with('%') || text.len() > MAX_IDENTITY => {
            Err(format!("a name of at most {MAX_IDENTITY} octets, or %any"))
        }
        _ => Ok(EapId::Name(text.to_string())),
    }
}

/// A section `eap-NAME` or `ntlm-NAME`, as one of `ike-NAME` is read.
pub(super) fn secret(read: PskSecret, at: Pos, issues: &mut Issues) -> Option<EapSecret> {
    let hash = if read.name.starts_with("ntlm") {
        NtHash::from_octets(read.secret).ok_or("expected 16 octets, such as 0x and 32 hex digits")
    } else {
        std::str::from_utf8(&read.secret).map(NtHash::of).map_err(|_| "expected text")
    };
    let ids = read.ids.iter().map(|id| String::from_utf8_lossy(&name_of(id)).into_owned()).collect();
    match hash {
        Ok(hash) => Some(EapSecret { name: read.name, ids, hash }),
        Err(expected) => {
            issues.push(at, format!("found a value for 'secret' that is none; {expected}"));
            None
        }
    }
}

/// What a side can do by EAP is what there are secrets and certificates for.
pub(super) fn settle(config: &mut Config, places: &[Places], issues: &mut Issues) {
    let Config { connections, credentials, eap_secrets, .. } = config;
    for (conn, places) in connections.iter_mut().zip(places) {
        let alone = conn.local.eap().is_some() && conn.remote.eap().is_some();
        // A server of TLS is who the responder is in its first round.
        let (server, judges) = (has_certificate(credentials, &conn.local), !conn.remote.cacerts.is_empty());
        let anybody = eap_secrets.iter().any(|secret| !secret.ids.is_empty());
        let loaded = !credentials.authorities.is_empty() || !credentials.certificates.is_empty();
        let mut sides = Vec::new();
        for round in std::iter::once(&mut conn.local).chain(&mut conn.further_local).zip(&places.local) {
            let password = knows_password(eap_secrets, round.0);
            let tls = has_certificate(credentials, round.0) && (loaded || judges);
            sides.push((round, password, tls));
        }
        for round in std::iter::once(&mut conn.remote).chain(&mut conn.further_remote).zip(&places.remote) {
            let tls = server && (loaded || !round.0.cacerts.is_empty());
            sides.push((round, anybody, tls));
        }
        for ((round, at), password, tls) in sides {
            let Method::Eap(kinds) = &mut round.method else { continue };
            let possible: Vec<Kind> = kinds
                .iter()
                .copied()
                .filter(|kind| match kind {
                    Kind::Tls => tls,
                    Kind::Mschapv2 => password && !alone,
                })
                .collect();
            if possible.is_empty() {
                let lacks = match kinds.first() {
                    Some(Kind::Tls) if kinds.len() == 1 => {
                        "found 'auth = eap-tls' without a certificate of ours with its key ('certs', 'id'), or without a CA for the peer's"
                    }
                    _ if alone => {
                        "found EAP on both sides, which proves them only by 'auth = eap-tls'; expected that on both, or 'auth = pubkey' on one"
                    }
                    _ => {
                        "found EAP without a secret that it could use; expected one in 'secrets { eap-NAME { id = ...  secret = ... } }'"
                    }
                };
                issues.push(*at, lacks);
            }
            *kinds = possible;
        }
    }
}

/// Whether there is a password for a round of ours.
fn knows_password(secrets: &[EapSecret], round: &AuthRound) -> bool {
    match (&round.eap_id, &round.id) {
        (EapId::Name(name), _) => find_eap_secret(secrets, name.as_bytes(), true).is_some(),
        (_, Some(id)) => find_eap_secret(secrets, &round.eap_name(id), true).is_some(),
        (_, None) => !secrets.is_empty(),
    }
}

fn has_certificate(credentials: &Credentials, round: &AuthRound) -> bool {
    let by_name = match &round.eap_id {
        EapId::Name(name) => Some(identification(name.as_bytes())),
        EapId::Unset | EapId::Any => round.id.clone(),
    };
    let named = by_name.iter().flat_map(|id| credentials.certificates_for(id));
    let mut all = round.certs.iter().chain(named);
    all.any(|cert| cert.key().is_ok_and(|key| credentials.key_for(key).is_some()))
}
