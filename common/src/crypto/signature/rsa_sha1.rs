//! RSASSA-PKCS1-v1_5 with SHA-1, which aws-lc-rs verifies but does not make. Peers that know nothing of RFC 7427 expect it with
//! authentication method 1 (RFC 7296 3.8).

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd};
use pkcs8::PrivateKeyInfoRef;
use x509_cert::der::asn1::UintRef;
use x509_cert::der::{Decode, Reader, SliceReader};
use zeroize::Zeroize;

use crate::crypto::{CryptoError, Secret, sha1};

/// DigestInfo of SHA-1 up to the digest (RFC 8017 9.2).
const DIGEST_INFO: [u8; 15] =
    [0x30, 0x21, 0x30, 0x09, 0x06, 0x05, 0x2b, 0x0e, 0x03, 0x02, 0x1a, 0x05, 0x00, 0x04, 0x14];

/// The two numbers of a private key (RFC 8017 3.2).
pub(super) struct RsaPrivate {
    modulus: Vec<u8>,
    exponent: Secret,
}

impl RsaPrivate {
    /// Reads a key that aws-lc-rs has taken, in PKCS#8 or PKCS#1 form.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let key = PrivateKeyInfoRef::try_from(der).map_or(der, |info| info.private_key.as_bytes());
        let mut reader = SliceReader::new(key).ok()?;
        // Version, n, e, d, and what makes it faster.
        let numbers = reader.sequence(|r| {
            let mut numbers: Vec<UintRef<'_>> = Vec::new();
            while !r.is_finished() && numbers.len() < 9 {
                numbers.push(UintRef::decode(r)?);
            }
            Ok::<_, x509_cert::der::Error>(numbers)
        });
        let numbers = numbers.ok()?;
        let (modulus, exponent) = (numbers.get(1)?, numbers.get(3)?);
        let (modulus, exponent) = (modulus.as_bytes().to_vec(), exponent.as_bytes().to_vec());
        Some(Self { modulus, exponent: Secret::from(exponent) })
    }

    /// `m^d mod n` in constant time for the length of the key. Whoever sends it has to verify it first: a faulty result
    /// could give the key away.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let len = self.modulus.len();
        let digest = sha1(&[message]);
        let fill = len.checked_sub(3 + DIGEST_INFO.len() + digest.len()).filter(|fill| *fill >= 8);
        let fill = vec![0xff; fill.ok_or(CryptoError::BadKeyLength)?];
        let encoded = [&[0, 1][..], &fill, &[0], &DIGEST_INFO, &digest].concat();
        let bits = (len * 8) as u32;
        let number =
            |octets: &[u8]| BoxedUint::from_be_slice(octets, bits).map_err(|_| CryptoError::BadKeyLength);
        let modulus = Odd::new(number(&self.modulus)?).into_option().ok_or(CryptoError::BadKeyLength)?;
        let params = BoxedMontyParams::new(modulus);
        let mut exponent = number(&self.exponent)?;
        let signature = BoxedMontyForm::new(number(&encoded)?, &params).pow(&exponent).retrieve();
        exponent.zeroize();
        let octets = signature.to_be_bytes();
        octets.get(octets.len() - len..).map(<[u8]>::to_vec).ok_or(CryptoError::BadLength)
    }
}
