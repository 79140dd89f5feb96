//! Signatures by aws-lc-rs.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self as aws, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};

use super::rsa_sha1::RsaPrivate;
use super::{Curve, Hash, KeyError, KeyKind, PublicKey, Scheme};
use crate::crypto::CryptoError;

/// The private key. aws-lc wipes what it frees.
pub(super) enum Inner {
    Rsa(Box<RsaKeyPair>, RsaPrivate),
    /// One for each form of a signature.
    Ecdsa(Box<EcdsaKeyPair>, Box<EcdsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

pub(super) fn load(der: &[u8]) -> Result<(Inner, Vec<u8>), KeyError> {
    if let Ok(key) = RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der)) {
        let spki = spki(key.public_key())?;
        let numbers = RsaPrivate::read(der).ok_or(KeyError::Malformed)?;
        return Ok((Inner::Rsa(Box::new(key), numbers), spki));
    }
    for (asn1, fixed) in [
        (&aws::ECDSA_P256_SHA256_ASN1_SIGNING, &aws::ECDSA_P256_SHA256_FIXED_SIGNING),
        (&aws::ECDSA_P384_SHA384_ASN1_SIGNING, &aws::ECDSA_P384_SHA384_FIXED_SIGNING),
        (&aws::ECDSA_P521_SHA512_ASN1_SIGNING, &aws::ECDSA_P521_SHA512_FIXED_SIGNING),
    ] {
        let load = |alg| EcdsaKeyPair::from_private_key_der(alg, der).map(Box::new);
        if let (Ok(asn1), Ok(fixed)) = (load(asn1), load(fixed)) {
            let spki = spki(asn1.public_key())?;
            return Ok((Inner::Ecdsa(asn1, fixed), spki));
        }
    }
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| KeyError::Malformed)?;
    let spki = spki(key.public_key())?;
    Ok((Inner::Ed25519(Box::new(key)), spki))
}

fn spki(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Result<Vec<u8>, KeyError> {
    key.as_der().map(|der| der.as_ref().to_vec()).map_err(|_| KeyError::Malformed)
}

pub(super) fn sign(
    inner: &Inner,
    kind: KeyKind,
    scheme: Scheme,
    message: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    let rng = SystemRandom::new();
    let refused = |_| CryptoError::BadCombination;
    match (inner, scheme) {
        (Inner::Rsa(_, numbers), Scheme::RsaPkcs1(Hash::Sha1)) => numbers.sign(message),
        (Inner::Rsa(key, _), Scheme::RsaPkcs1(hash) | Scheme::RsaPss(hash)) => {
            let pss = matches!(scheme, Scheme::RsaPss(_));
            let encoding: &'static dyn aws::RsaEncoding = match (pss, hash) {
                (false, Hash::Sha256) => &aws::RSA_PKCS1_SHA256,
                (false, Hash::Sha384) => &aws::RSA_PKCS1_SHA384,
                (false, Hash::Sha512) => &aws::RSA_PKCS1_SHA512,
                (true, Hash::Sha256) => &aws::RSA_PSS_SHA256,
                (true, Hash::Sha384) => &aws::RSA_PSS_SHA384,
                (true, Hash::Sha512) => &aws::RSA_PSS_SHA512,
                _ => return Err(CryptoError::BadCombination),
            };
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(encoding, &rng, message, &mut signature).map_err(refused)?;
            Ok(signature)
        }
        (Inner::Ecdsa(asn1, _), Scheme::Ecdsa(hash)) if matches!(kind, KeyKind::Ecdsa(curve) if curve.hash() == hash) => {
            Ok(asn1.sign(&rng, message).map_err(refused)?.as_ref().to_vec())
        }
        (Inner::Ecdsa(_, fixed), Scheme::EcdsaFixed) => {
            Ok(fixed.sign(&rng, message).map_err(refused)?.as_ref().to_vec())
        }
        (Inner::Ed25519(key), Scheme::Ed25519) => Ok(key.sign(message).as_ref().to_vec()),
        _ => Err(CryptoError::BadCombination),
    }
}

pub(super) fn verify(
    key: &PublicKey,
    scheme: Scheme,
    message: &[u8],
    signature: &[u8],
) -> Result<(), CryptoError> {
    use Hash::{Sha1, Sha256, Sha384, Sha512};
    let algorithm: &'static dyn aws::VerificationAlgorithm = match (key.kind, scheme) {
        (KeyKind::Rsa(_), Scheme::RsaPkcs1(hash)) => match hash {
            Sha1 => &aws::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
            Sha256 => &aws::RSA_PKCS1_2048_8192_SHA256,
            Sha384 => &aws::RSA_PKCS1_2048_8192_SHA384,
            Sha512 => &aws::RSA_PKCS1_2048_8192_SHA512,
            Hash::Identity => return Err(CryptoError::BadCombination),
        },
        (KeyKind::Rsa(_), Scheme::RsaPss(hash)) => match hash {
            Sha256 => &aws::RSA_PSS_2048_8192_SHA256,
            Sha384 => &aws::RSA_PSS_2048_8192_SHA384,
            Sha512 => &aws::RSA_PSS_2048_8192_SHA512,
            _ => return Err(CryptoError::BadCombination),
        },
        (KeyKind::Ecdsa(curve), Scheme::Ecdsa(hash)) => match (curve, hash) {
            (Curve::P256, Sha256) => &aws::ECDSA_P256_SHA256_ASN1,
            (Curve::P256, Sha384) => &aws::ECDSA_P256_SHA384_ASN1,
            (Curve::P256, Sha512) => &aws::ECDSA_P256_SHA512_ASN1,
            (Curve::P384, Sha256) => &aws::ECDSA_P384_SHA256_ASN1,
            (Curve::P384, Sha384) => &aws::ECDSA_P384_SHA384_ASN1,
            (Curve::P384, Sha512) => &aws::ECDSA_P384_SHA512_ASN1,
            (Curve::P521, Sha256) => &aws::ECDSA_P521_SHA256_ASN1,
            (Curve::P521, Sha384) => &aws::ECDSA_P521_SHA384_ASN1,
            (Curve::P521, Sha512) => &aws::ECDSA_P521_SHA512_ASN1,
            _ => return Err(CryptoError::BadCombination),
        },
        (KeyKind::Ecdsa(curve), Scheme::EcdsaFixed) => match curve {
            Curve::P256 => &aws::ECDSA_P256_SHA256_FIXED,
            Curve::P384 => &aws::ECDSA_P384_SHA384_FIXED,
            Curve::P521 => &aws::ECDSA_P521_SHA512_FIXED,
        },
        (KeyKind::Ed25519, Scheme::Ed25519) => &aws::ED25519,
        _ => return Err(CryptoError::BadCombination),
    };
    aws::UnparsedPublicKey::new(algorithm, &key.raw)
        .verify(message, signature)
        .map_err(|_| CryptoError::AuthenticationFailed)
}
