//! No signatures in this build.

use std::convert::Infallible;

use super::{KeyError, KeyKind, PublicKey, Scheme};
use crate::crypto::CryptoError;

/// There is no private key.
pub(super) type Inner = Infallible;

pub(super) fn load(_der: &[u8]) -> Result<(Inner, Vec<u8>), KeyError> {
    Err(KeyError::NotBuilt)
}

pub(super) fn sign(
    inner: &Inner,
    _kind: KeyKind,
    _scheme: Scheme,
    _message: &[u8],
) -> Result<Vec<u8>, CryptoError> {
    match *inner {}
}

pub(super) fn verify(
    _: &PublicKey,
    _: Scheme,
    _message: &[u8],
    _signature: &[u8],
) -> Result<(), CryptoError> {
    Err(CryptoError::AuthenticationFailed)
}
