//! Signatures in the AUTH payload: which scheme a method means, and which one we use (RFC 7296 3.8, RFC 4754, RFC 7427,
//! RFC 8420).

use mobikex_common::crypto::signature::{Hash, KeyKind, Scheme};
use mobikex_common::wire::ike::{AuthMethod, AuthPayload};

use crate::credentials::PubkeyRules;

const ED25519: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70];

/// In the order in which object identifiers count them.
const HASHES: [Hash; 3] = [Hash::Sha256, Hash::Sha384, Hash::Sha512];

fn place(hash: Hash) -> Option<u8> {
    HASHES.into_iter().zip(0..).find_map(|(known, place)| (known == hash).then_some(place))
}

fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    // All of these are shorter than the 128 octets of a long length.
    let mut out = vec![tag, body.len() as u8];
    out.extend_from_slice(&body);
    out
}

/// `{ id-sha2, NULL }`, or without the NULL.
fn hash_identifier(hash: Hash, null: bool) -> Option<Vec<u8>> {
    let last = 1 + place(hash)?;
    let oid = tlv(6, &[&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, last]]);
    Some(tlv(0x30, &[&oid, if null { &[5, 0] } else { &[] }]))
}

/// RSASSA-PSS with the hash for the mask too and a salt of its length (RFC 7427 A.4.3). NULL and the trailer field, whose
/// only value is the default, are written or left out as implementations please.
fn pss_identifier(hash: Hash, nulls: (bool, bool), trailer: bool) -> Option<Vec<u8>> {
    let salt = 32 + 16 * place(hash)?;
    let mgf1 = tlv(6, &[&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 8]]);
    let mask = tlv(0x30, &[&mgf1, &hash_identifier(hash, nulls.1)?]);
    let trailer: &[u8] = if trailer { &[0xa3, 3, 2, 1, 1] } else { &[] };
    let parameters = tlv(
        0x30,
        &[
            &tlv(0xa0, &[&hash_identifier(hash, nulls.0)?]),
            &tlv(0xa1, &[&mask]),
            &tlv(0xa2, &[&[2, 1, salt]]),
            trailer,
        ],
    );
    let pss = tlv(6, &[&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10]]);
    Some(tlv(0x30, &[&pss, &parameters]))
}

/// The DER AlgorithmIdentifier that stands before a signature (RFC 7427 3, appendix A).
fn identifier(scheme: Scheme) -> Option<Vec<u8>> {
    Some(match scheme {
        Scheme::RsaPkcs1(hash) => {
            let last = 11 + place(hash)?;
            let oid = tlv(6, &[&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last]]);
            tlv(0x30, &[&oid, &[5, 0]])
        }
        Scheme::RsaPss(hash) => pss_identifier(hash, (true, true), false)?,
        Scheme::Ecdsa(hash) => {
            let last = 2 + place(hash)?;
            tlv(0x30, &[&tlv(6, &[&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, last]])])
        }
        Scheme::EcdsaFixed => return None,
        Scheme::Ed25519 => ED25519.to_vec(),
    })
}

/// The scheme of an AlgorithmIdentifier, whose whole encoding has to be one of those that are known.
fn scheme_of(der: &[u8]) -> Option<Scheme> {
    let exact =
        HASHES.into_iter().flat_map(|h| [Scheme::RsaPkcs1(h), Scheme::Ecdsa(h)]).chain([Scheme::Ed25519]);
    let is = |scheme: &Scheme| identifier(*scheme).is_some_and(|id| id == der);
    exact.into_iter().find(is).or_else(|| {
        let forms = [false, true];
        let variants = forms.iter().flat_map(|a| forms.iter().flat_map(move |b| forms.map(|c| (*a, *b, c))));
        let same = |hash: &Hash| {
            variants.clone().any(|(a, b, c)| pss_identifier(*hash, (a, b), c).is_some_and(|id| id == der))
        };
        HASHES.into_iter().find(same).map(Scheme::RsaPss)
    })
}

/// The AUTH payload of a signature.
pub(super) fn payload(
    key: KeyKind,
    method: AuthMethod,
    scheme: Scheme,
    signature: &[u8],
) -> Option<AuthPayload> {
    if method != AuthMethod::DIGITAL_SIGNATURE {
        let fits = matches!(
            (method, key),
            (AuthMethod::RSA_SIGNATURE, KeyKind::Rsa(_))
                | (AuthMethod::ECDSA_256 | AuthMethod::ECDSA_384 | AuthMethod::ECDSA_521, KeyKind::Ecdsa(_))
        );
        return fits.then(|| AuthPayload { method, data: signature.to_vec() });
    }
    let id = identifier(scheme)?;
    let data = [&[id.len() as u8][..], &id, signature].concat();
    Some(AuthPayload { method, data })
}

/// The schemes that an AUTH payload of the peer may mean for a key, and the signature. `legacy` says that the peer knows
/// nothing of RFC 7427, and may use SHA-1.
pub(super) fn read(auth: &AuthPayload, key: KeyKind, legacy: bool) -> Result<(Vec<Scheme>, &[u8]), String> {
    use mobikex_common::crypto::signature::Curve;
    match (auth.method, key) {
        (AuthMethod::RSA_SIGNATURE, KeyKind::Rsa(_)) => {
            let old = legacy.then_some(Hash::Sha1);
            Ok((old.into_iter().chain(HASHES).map(Scheme::RsaPkcs1).collect(), &auth.data))
        }
        (AuthMethod::ECDSA_256, KeyKind::Ecdsa(Curve::P256))
        | (AuthMethod::ECDSA_384, KeyKind::Ecdsa(Curve::P384))
        | (AuthMethod::ECDSA_521, KeyKind::Ecdsa(Curve::P521)) => Ok((vec![Scheme::EcdsaFixed], &auth.data)),
        (AuthMethod::DIGITAL_SIGNATURE, _) => {
            let (len, rest) = auth.data.split_first().ok_or("the AUTH payload is empty")?;
            let (id, signature) =
                rest.split_at_checked(usize::from(*len)).ok_or("the AUTH payload is shorter than it says")?;
            let scheme = scheme_of(id).ok_or("the signature is of an algorithm that is not taken")?;
            Ok((vec![scheme], signature))
        }
        (method, key) => Err(format!("method {method} does not belong to its key ({key})")),
    }
}

/// How we sign: with RFC 7427 as far as the peer has announced it, or else the older method of the key.
pub(super) fn choose(
    key: KeyKind,
    rules: &PubkeyRules,
    announced: Option<&[Hash]>,
) -> Result<(AuthMethod, Scheme), String> {
    use mobikex_common::crypto::signature::Curve;
    let has = |hash: Hash| announced.is_some_and(|list| list.contains(&hash));
    match key {
        KeyKind::Rsa(_) => {
            let wanted = rules.hashes(key);
            let hash = wanted.iter().copied().find(|hash| has(*hash));
            match hash {
                Some(hash) if rules.wants_pss(key) => {
                    Ok((AuthMethod::DIGITAL_SIGNATURE, Scheme::RsaPss(hash)))
                }
                Some(hash) => Ok((AuthMethod::DIGITAL_SIGNATURE, Scheme::RsaPkcs1(hash))),
                None if rules.wants_pss(key) => {
                    Err("the peer takes no RSASSA-PSS with our hashes".to_string())
                }
                // What a peer of that age expects (RFC 7296 3.8), unless the operator has said otherwise.
                None => {
                    let old = Scheme::RsaPkcs1(Hash::Sha1);
                    let first = wanted.first().copied().unwrap_or(Hash::Sha256);
                    let scheme = if rules.takes(key, old) { old } else { Scheme::RsaPkcs1(first) };
                    Ok((AuthMethod::RSA_SIGNATURE, scheme))
                }
            }
        }
        KeyKind::Ecdsa(curve) if has(curve.hash()) && rules.takes(key, Scheme::Ecdsa(curve.hash())) => {
            Ok((AuthMethod::DIGITAL_SIGNATURE, Scheme::Ecdsa(curve.hash())))
        }
        KeyKind::Ecdsa(curve) => Ok((
            match curve {
                Curve::P256 => AuthMethod::ECDSA_256,
                Curve::P384 => AuthMethod::ECDSA_384,
                Curve::P521 => AuthMethod::ECDSA_521,
            },
            Scheme::EcdsaFixed,
        )),
        KeyKind::Ed25519 if has(Hash::Identity) => Ok((AuthMethod::DIGITAL_SIGNATURE, Scheme::Ed25519)),
        KeyKind::Ed25519 => Err("the peer does not take Ed25519 signatures (RFC 8420)".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use mobikex_common::crypto::signature::Curve;

    /// RFC 7427 A.1, A.3, A.4.3; RFC 8420 A.
    #[test]
    fn the_identifiers_of_the_rfcs() {
        for (scheme, der) in [
            (Scheme::RsaPkcs1(Hash::Sha256), &hex!("300d06092a864886f70d01010b0500")[..]),
            (Scheme::RsaPkcs1(Hash::Sha384), &hex!("300d06092a864886f70d01010c0500")),
            (Scheme::RsaPkcs1(Hash::Sha512), &hex!("300d06092a864886f70d01010d0500")),
            (Scheme::Ecdsa(Hash::Sha256), &hex!("300a06082a8648ce3d040302")),
            (Scheme::Ecdsa(Hash::Sha384), &hex!("300a06082a8648ce3d040303")),
            (Scheme::Ecdsa(Hash::Sha512), &hex!("300a06082a8648ce3d040304")),
            (Scheme::Ed25519, &hex!("300506032b6570")),
        ] {
            assert_eq!(identifier(scheme).unwrap(), der, "{scheme}");
            assert_eq!(scheme_of(der), Some(scheme));
        }
        let pss = hex!(
            "304606092a864886f70d01010a3039a00f300d06096086480165030402010500a11c301a06092a864886f70d010108"
            "300d06096086480165030402010500a203020120a303020101"
        );
        assert_eq!(scheme_of(&pss), Some(Scheme::RsaPss(Hash::Sha256)));
        assert_eq!(
            scheme_of(&identifier(Scheme::RsaPss(Hash::Sha512)).unwrap()),
            Some(Scheme::RsaPss(Hash::Sha512))
        );
        // sha1WithRSAEncryption, PSS with its defaults (SHA-1), another salt length, nothing.
        for bad in [
            &hex!("300d06092a864886f70d0101050500")[..],
            &hex!("300d06092a864886f70d01010a3000"),
            &hex!("300d06092a864886f70d01010b05"),
            b"",
        ] {
            assert_eq!(scheme_of(bad), None);
        }
        let mut salted = pss;
        salted[66] = 0x14;
        assert_eq!(scheme_of(&salted), None);
    }

    #[test]
    fn b14_a_short_auth_payload_is_no_signature() {
        let auth = |data: &[u8]| AuthPayload { method: AuthMethod::DIGITAL_SIGNATURE, data: data.to_vec() };
        for bad in [&[][..], &[0], &[15], &[255, 1], &[1, 0x30]] {
            assert!(read(&auth(bad), KeyKind::Ed25519, false).is_err(), "{bad:?}");
        }
        let whole =
            payload(KeyKind::Ed25519, AuthMethod::DIGITAL_SIGNATURE, Scheme::Ed25519, &[7; 64]).unwrap();
        assert_eq!(read(&whole, KeyKind::Ed25519, false), Ok((vec![Scheme::Ed25519], &[7; 64][..])));
        let old = AuthPayload { method: AuthMethod::RSA_SIGNATURE, data: vec![1] };
        assert!(read(&old, KeyKind::Ed25519, true).is_err());
        assert!(read(&old, KeyKind::Rsa(2048), true).unwrap().0.contains(&Scheme::RsaPkcs1(Hash::Sha1)));
        assert!(!read(&old, KeyKind::Rsa(2048), false).unwrap().0.contains(&Scheme::RsaPkcs1(Hash::Sha1)));
    }

    #[test]
    fn our_scheme_follows_what_the_peer_announced() {
        let (any, rsa, p384) = (PubkeyRules::default(), KeyKind::Rsa(3072), KeyKind::Ecdsa(Curve::P384));
        let choose_from = |key, text: &str, list: Option<&[Hash]>| {
            choose(key, &PubkeyRules::parse(text).unwrap(), list).ok()
        };
        let new = AuthMethod::DIGITAL_SIGNATURE;
        assert_eq!(
            choose(rsa, &any, Some(&[Hash::Sha512, Hash::Sha256])),
            Ok((new, Scheme::RsaPkcs1(Hash::Sha256)))
        );
        assert_eq!(
            choose_from(rsa, "rsa-sha512-sha256", Some(&[Hash::Sha256, Hash::Sha512])),
            Some((new, Scheme::RsaPkcs1(Hash::Sha512)))
        );
        assert_eq!(
            choose_from(rsa, "rsa/pss-sha384", Some(&[Hash::Sha384])),
            Some((new, Scheme::RsaPss(Hash::Sha384)))
        );
        assert_eq!(choose_from(rsa, "rsa/pss", None), None);
        let old = AuthMethod::RSA_SIGNATURE;
        assert_eq!(choose(rsa, &any, None), Ok((old, Scheme::RsaPkcs1(Hash::Sha1))));
        assert_eq!(choose_from(rsa, "rsa-sha384", None), Some((old, Scheme::RsaPkcs1(Hash::Sha384))));
        assert_eq!(
            choose(p384, &any, Some(&[Hash::Sha256])),
            Ok((AuthMethod::ECDSA_384, Scheme::EcdsaFixed))
        );
        assert_eq!(choose(p384, &any, Some(&[Hash::Sha384])), Ok((new, Scheme::Ecdsa(Hash::Sha384))));
        assert!(choose(KeyKind::Ed25519, &any, Some(&[Hash::Sha256])).is_err());
    }
}
