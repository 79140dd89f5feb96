//! How the two sides prove themselves in IKE_AUTH, whichever of them is the initiator: by a pre-shared key, or by a signature
//! with a certificate or a raw public key (RFC 7296 2.15, 3.6 to 3.8, RFC 7427, RFC 7670).

use std::sync::Arc;

use mobikex_common::crypto::signature::{Hash, PrivateKey, PublicKey};
use mobikex_common::wire::ike::{
    AuthMethod, AuthPayload, CertEncoding, Identification, Notify, NotifyType, Payload,
};
use tracing::info;

use super::auth::{AuthenticatedPeer, SignedOctets, find_secret, sign_psk, verify_psk, verify_signature};
use super::ctx::Ctx;
use super::error::IkeError;
use super::keys::SkKeys;
use super::rules::{self, notify};
use super::signature;
use crate::config::{AuthRound, Connection, Method, SendCert};
use crate::credentials::{Certificate, CertificateError, Credentials, MAX_CERTIFICATES, PubkeyRules, Trust};

/// The most names of CAs that are read in a message, and that we send in one.
const MAX_CAS_READ: usize = 1024;
const MAX_CAS_SENT: usize = 32;
/// The most keys that an AUTH payload without a certificate is checked with.
const MAX_KEYS: usize = 8;

/// What a peer has said about signatures and certificates.
#[derive(Default, Clone)]
pub(super) struct Wishes {
    /// SIGNATURE_HASH_ALGORITHMS (RFC 7427 4), without those that we do not know.
    pub(super) hashes: Option<Vec<Hash>>,
    /// It asks for certificates, of these CAs.
    asks: bool,
    cas: Vec<[u8; 20]>,
    /// It asks for a raw public key (RFC 7670 3).
    asks_raw: bool,
}

impl Wishes {
    /// Reads what a message says; what one before it has said stays.
    pub(super) fn read(&mut self, payloads: &[Payload]) {
        if let Some(notify) = notify(payloads, NotifyType::SIGNATURE_HASH_ALGORITHMS) {
            let numbers = notify.data.chunks_exact(2).map(|n| u16::from_be_bytes([n[0], n[1]]));
            let known = |hash: &Hash| Hash::ANNOUNCED.contains(hash);
            let mut hashes: Vec<Hash> = numbers.filter_map(Hash::from_number).filter(known).collect();
            hashes.sort();
            hashes.dedup();
            self.hashes = Some(hashes);
        }
        for payload in payloads {
            match payload {
                Payload::CertReq { encoding: CertEncoding::X509_SIGNATURE, data } => {
                    self.asks = true;
                    let left = MAX_CAS_READ.saturating_sub(self.cas.len());
                    self.cas.extend(
                        data.chunks_exact(20).take(left).filter_map(|ca| <[u8; 20]>::try_from(ca).ok()),
                    );
                }
                Payload::CertReq { encoding: CertEncoding::RAW_PUBLIC_KEY, .. } => self.asks_raw = true,
                _ => {}
            }
        }
    }
}

/// Whether either side signs, so that IKE_SA_INIT has something to say about it.
fn signs(conn: &Connection) -> bool {
    conn.locals().chain(conn.remotes()).any(|round| round.rules().is_some())
}

/// SIGNATURE_HASH_ALGORITHMS, if one of the connections has a use for it.
pub(super) fn announce<'a>(mut conns: impl Iterator<Item = &'a Arc<Connection>>) -> Option<Payload> {
    let data = || Hash::ANNOUNCED.iter().flat_map(|hash| hash.number().to_be_bytes()).collect();
    conns
        .any(|conn| signs(conn))
        .then(|| Payload::Notify(Notify::new(NotifyType::SIGNATURE_HASH_ALGORITHMS, data())))
}

/// CERTREQ for the CAs and raw keys by which the peers of these connections may prove themselves (RFC 7296 3.7).
pub(super) fn ask<'a>(
    credentials: &Credentials,
    conns: impl Iterator<Item = &'a Arc<Connection>>,
) -> Vec<Payload> {
    let (mut cas, mut raw) = (Vec::new(), false);
    let rounds = conns.filter(|conn| conn.send_certreq).flat_map(|conn| conn.remotes());
    for round in rounds.filter(|round| round.rules().is_some()) {
        raw |= !round.pubkeys.is_empty();
        let own = if round.cacerts.is_empty() { &credentials.authorities } else { &round.cacerts };
        let wanted = if round.pubkeys.is_empty() { own.as_slice() } else { &[] };
        for ca in wanted {
            if !cas.contains(&ca.key_hash()) && cas.len() < MAX_CAS_SENT {
                cas.push(ca.key_hash());
            }
        }
    }
    let mut out = Vec::new();
    if !cas.is_empty() {
        out.push(Payload::CertReq { encoding: CertEncoding::X509_SIGNATURE, data: cas.concat() });
    }
    if raw {
        out.push(Payload::CertReq { encoding: CertEncoding::RAW_PUBLIC_KEY, data: Vec::new() });
    }
    out
}

/// The two sides of a connection in a round, and what is known about them.
pub(super) struct Parties<'a> {
    pub(super) conn: &'a Connection,
    /// How we prove ourselves.
    pub(super) ours: &'a AuthRound,
    /// How the peer does.
    pub(super) theirs: &'a AuthRound,
    pub(super) keys: &'a SkKeys,
    pub(super) wishes: &'a Wishes,
    pub(super) local: &'a Identification,
    pub(super) remote: &'a Identification,
}

fn failed(reason: impl ToString) -> IkeError {
    IkeError::Authentication(reason.to_string())
}

fn no_secret(parties: &Parties<'_>) -> IkeError {
    failed(format!("no shared key is configured for '{}' - '{}'", parties.local, parties.remote))
}

impl Parties<'_> {
    /// Our proof: AUTH, and before it the certificates.
    pub(super) fn prove(
        &self,
        ctx: &Ctx<'_>,
        octets: &SignedOctets<'_>,
    ) -> Result<(Vec<Payload>, AuthPayload), IkeError> {
        match &self.ours.method {
            Method::Psk => {
                let secret = find_secret(&ctx.config.secrets, self.local, self.remote);
                let secret = secret.ok_or_else(|| no_secret(self))?;
                Ok((Vec::new(), sign_psk(self.keys.prf, &secret.secret, octets)))
            }
            Method::Pubkey(rules) => self.sign(ctx, rules, octets),
            Method::Eap(_) => Err(failed(format!("'{}' proves itself by EAP alone", self.local))),
        }
    }

    fn sign(
        &self,
        ctx: &Ctx<'_>,
        rules: &PubkeyRules,
        octets: &SignedOctets<'_>,
    ) -> Result<(Vec<Payload>, AuthPayload), IkeError> {
        let (credentials, round) = (&ctx.config.credentials, self.ours);
        let (key, certs) = match self.own_certificate(ctx, rules) {
            Some((cert, key)) => (key, self.certificates_to_send(credentials, cert)),
            None => {
                let found = round.pubkeys.iter().filter(|key| rules.takes_key(key.kind()));
                let key = found.filter_map(|public| credentials.key_for(public)).next().ok_or_else(|| {
                    failed(format!("no private key with a certificate for '{}' is loaded", self.local))
                })?;
                let send = self.conn.send_cert == SendCert::Always
                    || self.conn.send_cert == SendCert::IfAsked && self.wishes.asks_raw;
                let (encoding, data) = (CertEncoding::RAW_PUBLIC_KEY, key.public().spki().to_vec());
                (key, if send { vec![Payload::Cert { encoding, data }] } else { Vec::new() })
            }
        };
        let kind = key.public().kind();
        let (method, scheme) =
            signature::choose(kind, rules, self.wishes.hashes.as_deref()).map_err(failed)?;
        let maced_id = octets.maced_id(self.keys.prf);
        let signature = key.sign(scheme, &[octets.message, octets.nonce, &maced_id])?;
        let auth = signature::payload(kind, method, scheme, &signature)
            .ok_or_else(|| failed(format!("{scheme} cannot be sent")))?;
        info!(target: "IKE", "authentication of '{}' (myself) with {scheme} successful", self.local);
        Ok((certs, auth))
    }

    /// The first certificate of ours that fits best: valid, and of a CA that the peer names.
    fn own_certificate<'c>(
        &'c self,
        ctx: &'c Ctx<'_>,
        rules: &PubkeyRules,
    ) -> Option<(&'c Arc<Certificate>, &'c Arc<PrivateKey>)> {
        let (credentials, round) = (&ctx.config.credentials, self.ours);
        if !round.pubkeys.is_empty() {
            return None;
        }
        let all: Vec<&Arc<Certificate>> = if round.certs.is_empty() {
            credentials.certificates_for(self.local).collect()
        } else {
            round.certs.iter().collect()
        };
        let usable = all.into_iter().filter_map(|cert| {
            let public = cert.key().ok().filter(|key| rules.takes_key(key.kind()))?;
            Some((cert, credentials.key_for(public)?))
        });
        usable.min_by_key(|(cert, _)| {
            let valid = ctx.unix.is_some_and(|now| cert.check_time(now).is_ok());
            (!valid, !credentials.is_below(cert, &self.wishes.cas))
        })
    }

    fn certificates_to_send(&self, credentials: &Credentials, cert: &Certificate) -> Vec<Payload> {
        let send = match self.conn.send_cert {
            SendCert::Always => true,
            SendCert::IfAsked => self.wishes.asks,
            SendCert::Never => false,
        };
        if !send {
            return Vec::new();
        }
        let encode =
            |der: &[u8]| Payload::Cert { encoding: CertEncoding::X509_SIGNATURE, data: der.to_vec() };
        let chain = credentials.chain_of(cert);
        std::iter::once(encode(cert.der())).chain(chain.iter().map(|ca| encode(ca.der()))).collect()
    }

    /// Checks the peer's proof.
    pub(super) fn verify(
        &self,
        ctx: &Ctx<'_>,
        octets: &SignedOctets<'_>,
        payloads: &[Payload],
    ) -> Result<AuthenticatedPeer, IkeError> {
        let auth = rules::auth(payloads).ok_or(IkeError::Rule { exchange: "IKE_AUTH", story: "no AUTH" })?;
        match &self.theirs.method {
            Method::Psk => {
                let secret = find_secret(&ctx.config.secrets, self.local, self.remote);
                let secret = secret.ok_or_else(|| no_secret(self))?;
                let peer = verify_psk(self.keys.prf, &secret.secret, octets, auth)?;
                info!(target: "IKE", "authentication of '{}' with pre-shared key successful", self.remote);
                Ok(peer)
            }
            Method::Eap(_) => Err(failed(format!("'{}' uses AUTH alone, we expect EAP", self.remote))),
            Method::Pubkey(_) if auth.method == AuthMethod::SHARED_KEY_MIC => {
                Err(failed(format!("'{}' uses a pre-shared key, we expect a signature", self.remote)))
            }
            Method::Pubkey(rules) => {
                let legacy = self.wishes.hashes.is_none();
                let mut outcome = Err(failed(format!("no key of '{}' is known", self.remote)));
                for key in self.peer_keys(ctx, rules, payloads)?.iter().take(MAX_KEYS) {
                    outcome = verify_signature(self.keys.prf, key, (rules, legacy), octets, auth);
                    if outcome.is_ok() {
                        break;
                    }
                }
                outcome
            }
        }
    }

    /// The keys that the peer may have: the one of its certificate, once that is trusted and is for its identity, or those
    /// that are known here.
    fn peer_keys(
        &self,
        ctx: &Ctx<'_>,
        rules: &PubkeyRules,
        payloads: &[Payload],
    ) -> Result<Vec<PublicKey>, IkeError> {
        let round = self.theirs;
        let sent = |wanted: CertEncoding| {
            payloads.iter().filter_map(move |p| match p {
                Payload::Cert { encoding, data } if *encoding == wanted => Some(data),
                _ => None,
            })
        };
        if !round.pubkeys.is_empty() {
            return match sent(CertEncoding::RAW_PUBLIC_KEY).next() {
                Some(spki) => {
                    let key = PublicKey::from_spki(spki).map_err(failed)?;
                    let known = round.pubkeys.contains(&key);
                    let stranger =
                        || failed(format!("the raw public key of '{}' is not a known one", self.remote));
                    known.then(|| vec![key]).ok_or_else(stranger)
                }
                None => Ok(round.pubkeys.clone()),
            };
        }
        let count = sent(CertEncoding::X509_SIGNATURE).count();
        if count > MAX_CERTIFICATES {
            return Err(failed(CertificateError::TooMany(count)));
        }
        let chain: Vec<Certificate> = sent(CertEncoding::X509_SIGNATURE)
            .map(|der| Certificate::from_der(der, ""))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        if let Some((end, others)) = chain.split_first() {
            info!(target: "IKE", "received end entity cert '{}'", end.name());
            return self.trusted_key(ctx, rules, end, others).map(|key| vec![key]).map_err(failed);
        }
        // The peer need not send a certificate that we have.
        let credentials = &ctx.config.credentials;
        let known: Vec<&Arc<Certificate>> = if round.certs.is_empty() {
            credentials.certificates_for(self.remote).collect()
        } else {
            round.certs.iter().collect()
        };
        let (mut keys, mut reason) = (Vec::new(), None);
        for cert in known.into_iter().take(MAX_KEYS) {
            match self.trusted_key(ctx, rules, cert, &[]) {
                Ok(key) => keys.push(key),
                Err(error) => reason = Some(error),
            }
        }
        match reason {
            Some(error) if keys.is_empty() => Err(failed(error)),
            None if keys.is_empty() => {
                Err(failed(format!("'{}' has sent no certificate, and none of it is loaded", self.remote)))
            }
            _ => Ok(keys),
        }
    }

    /// The key of a certificate that is trusted, valid and for the peer's identity.
    fn trusted_key(
        &self,
        ctx: &Ctx<'_>,
        rules: &PubkeyRules,
        end: &Certificate,
        others: &[Certificate],
    ) -> Result<PublicKey, CertificateError> {
        let key = end.key()?;
        if !rules.takes_key(key.kind()) {
            let reason = format!("{} is not what the connection takes ({rules})", key.kind());
            return Err(CertificateError::Key { subject: end.name(), reason });
        }
        if !end.is_for(self.remote) {
            return Err(CertificateError::WrongId { subject: end.name(), id: self.remote.to_string() });
        }
        let now = ctx.unix.ok_or(CertificateError::NoClock)?;
        let (credentials, round) = (&ctx.config.credentials, self.theirs);
        let allows = |hash| rules.takes_in_chain(hash);
        let own = credentials.trusted();
        let trust = Trust {
            anchors: if round.cacerts.is_empty() { &own } else { &round.cacerts },
            authorities: &credentials.authorities,
            crls: &credentials.crls,
            revocation: round.revocation,
            allows: &allows,
            now,
        };
        trust.check_end(end, others, round.pinned(credentials))?;
        Ok(key.clone())
    }
}
