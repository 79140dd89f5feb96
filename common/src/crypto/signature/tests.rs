//! Every scheme with keys of every kind.
#![cfg(feature = "aws-lc")]

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature as aws;
use hex_literal::hex;

use super::*;

fn rsa() -> PrivateKey {
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).unwrap();
    PrivateKey::from_der(der.as_ref()).unwrap()
}

fn ecdsa(alg: &'static aws::EcdsaSigningAlgorithm) -> PrivateKey {
    PrivateKey::from_der(aws::EcdsaKeyPair::generate(alg).unwrap().to_pkcs8v1().unwrap().as_ref()).unwrap()
}

fn ed25519() -> PrivateKey {
    PrivateKey::from_der(aws::Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap().as_ref()).unwrap()
}

const HASHES: [Hash; 3] = [Hash::Sha256, Hash::Sha384, Hash::Sha512];

#[test]
fn every_scheme_verifies_and_no_other_octet_does() {
    let schemes = |key: &PrivateKey| match key.public().kind() {
        KeyKind::Rsa(bits) => {
            assert_eq!(bits, 2048);
            let mut all: Vec<_> =
                HASHES.iter().flat_map(|h| [Scheme::RsaPkcs1(*h), Scheme::RsaPss(*h)]).collect();
            all.push(Scheme::RsaPkcs1(Hash::Sha1));
            all
        }
        KeyKind::Ecdsa(curve) => vec![Scheme::Ecdsa(curve.hash()), Scheme::EcdsaFixed],
        KeyKind::Ed25519 => vec![Scheme::Ed25519],
    };
    let keys = [
        rsa(),
        ecdsa(&aws::ECDSA_P256_SHA256_ASN1_SIGNING),
        ecdsa(&aws::ECDSA_P384_SHA384_ASN1_SIGNING),
        ecdsa(&aws::ECDSA_P521_SHA512_ASN1_SIGNING),
        ed25519(),
    ];
    for key in &keys {
        assert_eq!(PublicKey::from_spki(key.public().spki()).unwrap(), *key.public());
        for scheme in schemes(key) {
            let signature = key.sign(scheme, &[b"one", b"two"]).unwrap();
            assert_eq!(key.public().verify(scheme, &[b"onetwo"], &signature), Ok(()), "{scheme}");
            assert!(key.public().verify(scheme, &[b"onetwO"], &signature).is_err(), "{scheme}");
            for other in keys.iter().filter(|k| k.public() != key.public()) {
                assert!(other.public().verify(scheme, &[b"onetwo"], &signature).is_err(), "{scheme}");
            }
            // B14: nothing, zeros, and parts of it are no signature.
            for bad in [&[][..], &vec![0; signature.len()], &signature[..signature.len() - 1]] {
                assert!(key.public().verify(scheme, &[b"onetwo"], bad).is_err(), "{scheme}");
            }
            for at in [0, signature.len() / 2, signature.len() - 1] {
                let mut bad = signature.clone();
                bad[at] ^= 1;
                assert!(key.public().verify(scheme, &[b"onetwo"], &bad).is_err(), "{scheme} octet {at}");
            }
        }
        let unfit = [Scheme::RsaPss(Hash::Sha1), Scheme::Ecdsa(Hash::Identity), Scheme::Ecdsa(Hash::Sha1)];
        assert!(unfit.iter().all(|scheme| key.sign(*scheme, &[b"x"]).is_err()));
    }
}

#[test]
fn what_is_no_key_is_refused() {
    assert_eq!(PrivateKey::from_der(b"").err(), Some(KeyError::Malformed));
    assert_eq!(PrivateKey::from_der(&[0x30, 0x80]).err(), Some(KeyError::Malformed));
    assert_eq!(PublicKey::from_spki(&[0x30, 0]).err(), Some(KeyError::Malformed));
    // Ed448, and a curve that is not taken (secp256k1).
    let ed448 = [&hex!("3043300506032b6571033a00")[..], &[7; 57]].concat();
    assert_eq!(PublicKey::from_spki(&ed448).err(), Some(KeyError::Unsupported));
    let k1 = [&hex!("3056301006072a8648ce3d020106052b8104000a03420004")[..], &[7; 64]].concat();
    assert_eq!(PublicKey::from_spki(&k1).err(), Some(KeyError::Unsupported));
    assert_eq!(format!("{:?} {:?}", ed25519(), ed25519().public()), "PrivateKey(Ed25519) PublicKey(Ed25519)");
}
