//! From names of files to certificates and keys, with the place in the configuration that asked for them.

use std::path::Path;
use std::sync::Arc;

use mobikex_common::crypto::signature::{self, PublicKey};

use super::error::{Issues, Pos};
use super::fields::Fields;
use super::lexer::Value;
use super::model::{AuthRound, Config, Method};
use super::rounds::Places;
use super::schema::{FILE, FILE_SECRET};
use super::tree::Section;
use crate::credentials::{
    Certificate, Credentials, Loader, PrivateKeyFile, PubkeyRules, Revocation, UnixSeconds,
};

/// Folders of private keys, as swanctl has them.
const PRIVATE: [&str; 4] = ["private", "rsa", "ecdsa", "pkcs8"];

/// Reads what a configuration names.
pub(super) struct Files {
    loader: Loader,
    /// Where certificates are to be valid too.
    now: Option<UnixSeconds>,
}

impl Files {
    pub(super) fn new(base: &Path, now: Option<UnixSeconds>) -> Self {
        Self { loader: Loader::new(base), now }
    }

    /// A side of a connection whose `auth` is not `psk`.
    pub(super) fn round(
        &self,
        parts: &[&Section],
        f: &Fields<'_>,
        round: &mut AuthRound,
        issues: &mut Issues,
    ) {
        round.certs = self.certificates(parts, f, ("certs", "cert"), "x509", issues);
        round.cacerts = self.certificates(parts, f, ("cacerts", "cacert"), "x509ca", issues);
        if let Some(value) = f.raw("pubkeys") {
            for (name, at) in value.elements() {
                match Loader::public_key(&self.loader.find(name, &["pubkey"])) {
                    Ok(key) => round.pubkeys.push(key),
                    Err(reason) => issues.push(at, reason),
                }
            }
        }
        f.set("revocation", &mut round.revocation, issues, |text| {
            let known = [
                ("strict", Revocation::Strict),
                ("ifuri", Revocation::IfUri),
                ("relaxed", Revocation::Relaxed),
            ];
            super::fields::choice(&known, &[], text)
        });
    }

    /// The certificates of an option such as `certs`, and of sections such as `cert-one { file = ... }`.
    fn certificates(
        &self,
        parts: &[&Section],
        f: &Fields<'_>,
        (option, section): (&str, &str),
        folder: &str,
        issues: &mut Issues,
    ) -> Vec<Arc<Certificate>> {
        let mut names: Vec<(String, Pos)> = Vec::new();
        if let Some(value) = f.raw(option) {
            names.extend(value.elements().into_iter().map(|(name, at)| (name.to_string(), at)));
        }
        for part in parts.iter().flat_map(|part| &part.sections).filter(|s| s.name.starts_with(section)) {
            let fields = Fields::check(&[part], &FILE, issues);
            match fields.raw("file") {
                Some(Value { text, at, .. }) => names.push((text.to_string(), *at)),
                None => issues.push(part.at, format!("section '{}' has no 'file'", part.name)),
            }
        }
        let mut out = Vec::new();
        for (name, at) in names {
            match Loader::certificates(&self.loader.find(&name, &[folder])) {
                Ok(certs) => {
                    for cert in certs {
                        self.check(&cert, at, issues);
                        out.push(cert);
                    }
                }
                Err(reason) => issues.push(at, reason),
            }
        }
        out
    }

    fn check(&self, cert: &Certificate, at: Pos, issues: &mut Issues) {
        let usable = cert.key().map(drop).and_then(|()| self.now.map_or(Ok(()), |now| cert.check_time(now)));
        if let Err(error) = usable {
            issues.push(at, format!("cannot use '{}': {error}", cert.source()));
        }
    }

    /// Everything in the folders, and the keys that `secrets` names.
    pub(super) fn folders(&self, secrets: &[&Section], issues: &mut Issues) -> Credentials {
        let mut out = Credentials::default();
        for path in self.list("x509", issues) {
            self.keep(Loader::certificates(&path), &path, &mut out.certificates, issues);
        }
        for path in self.list("x509ca", issues) {
            self.keep(Loader::certificates(&path), &path, &mut out.authorities, issues);
        }
        for path in self.list("x509crl", issues) {
            self.keep(Loader::crls(&path), &path, &mut out.crls, issues);
        }
        let mut named = Vec::new();
        for part in secrets {
            let f = Fields::check(&[part], &FILE_SECRET, issues);
            let (Some(file), Some(secret)) = (f.raw("file"), f.raw("secret")) else {
                let message = format!("section '{}' needs 'file' and 'secret'", part.name);
                issues.push(part.at, message);
                continue;
            };
            let Ok(password) = super::values::secret(&secret.text) else {
                issues.push(secret.at, "found a value for 'secret' that is none");
                continue;
            };
            let loaded = if part.name.starts_with("pkcs12") {
                let path = self.loader.find(&file.text, &["pkcs12"]);
                named.push(path.clone());
                Loader::pkcs12(&path, &password)
            } else {
                let path = self.loader.find(&file.text, &PRIVATE);
                named.push(path.clone());
                Loader::private_key(&path, Some(&password))
            };
            match loaded {
                Ok(loaded) => add(&mut out, loaded),
                Err(reason) => issues.push(file.at, reason),
            }
        }
        for path in PRIVATE.iter().flat_map(|folder| self.list(folder, issues)).collect::<Vec<_>>() {
            if !named.contains(&path) {
                match Loader::private_key(&path, None) {
                    Ok(loaded) => add(&mut out, loaded),
                    Err(reason) => in_file(&path, reason, issues),
                }
            }
        }
        for path in self.list("pkcs12", issues) {
            if !named.contains(&path) {
                let message = "there is no section 'pkcs12-NAME { file = ...  secret = ... }' for it";
                in_file(&path, format!("cannot use '{}': {message}", path.display()), issues);
            }
        }
        out
    }

    fn list(&self, folder: &str, issues: &mut Issues) -> Vec<std::path::PathBuf> {
        self.loader.folder(folder).unwrap_or_else(|reason| {
            in_file(Path::new(folder), reason, issues);
            Vec::new()
        })
    }

    fn keep<T>(&self, found: Result<Vec<T>, String>, path: &Path, into: &mut Vec<T>, issues: &mut Issues) {
        match found {
            Ok(found) => into.extend(found),
            Err(reason) => in_file(path, reason, issues),
        }
    }

    /// What a side needs to prove itself must be there; and who we are may follow from our certificate.
    pub(super) fn settle(&self, config: &mut Config, places: &[Places], issues: &mut Issues) {
        let credentials = &config.credentials;
        for (conn, places) in config.connections.iter_mut().zip(places) {
            let locals = std::iter::once(&mut conn.local).chain(&mut conn.further_local);
            for (round, at) in locals.zip(&places.local) {
                if let Method::Pubkey(rules) = round.method.clone() {
                    self.settle_local(credentials, round, &rules, *at, issues);
                }
            }
            for (r, at) in conn.remotes().zip(&places.remote).filter(|(r, _)| r.rules().is_some()) {
                let none = r.pubkeys.is_empty() && r.certs.is_empty() && r.cacerts.is_empty();
                if none && credentials.authorities.is_empty() && credentials.certificates.is_empty() {
                    let message = "no CA is loaded that could vouch for the peer; expected one in the folder 'x509ca', or 'cacerts', 'certs' or 'pubkeys'";
                    issues.push(*at, message);
                }
            }
        }
    }

    fn settle_local(
        &self,
        credentials: &Credentials,
        round: &mut AuthRound,
        rules: &PubkeyRules,
        at: Pos,
        issues: &mut Issues,
    ) {
        let has_key = |key: &PublicKey| credentials.key_for(key).is_some() && rules.takes_key(key.kind());
        if !round.pubkeys.is_empty() {
            if !round.pubkeys.iter().any(has_key) {
                issues.push(at, "none of the private keys that are loaded belongs to 'pubkeys'");
            }
            return;
        }
        for cert in &round.certs {
            if cert.key().is_ok_and(|key| credentials.key_for(key).is_none()) {
                let message = format!(
                    "none of the private keys that are loaded belongs to '{}' ({})",
                    cert.source(),
                    cert.name()
                );
                issues.push(at, message);
            }
        }
        if let Some(first) = round.certs.first() {
            // As swanctl does it: an identity that the certificate does not confirm gives way to its subject.
            let confirmed =
                round.id.as_ref().is_some_and(|id| round.certs.iter().any(|cert| cert.is_for(id)));
            if !confirmed {
                round.id = Some(first.subject().clone());
            }
            if !round.certs.iter().any(|cert| cert.key().is_ok_and(|key| rules.takes_key(key.kind()))) {
                issues.push(at, format!("none of 'certs' has a key as 'auth = {rules}' wants it"));
            }
            return;
        }
        let Some(id) = &round.id else {
            issues.push(
                at,
                "found neither 'certs' nor 'id'; expected one of them to choose our certificate by",
            );
            return;
        };
        let own: Vec<_> = credentials.certificates_for(id).collect();
        if own.is_empty() {
            issues.push(
                at,
                format!("no certificate for '{id}' is loaded; expected one in the folder 'x509', or 'certs'"),
            );
        } else if !own.iter().any(|cert| cert.key().is_ok_and(has_key)) {
            issues.push(at, format!("no private key is loaded that belongs to a certificate for '{id}' and fits 'auth = {rules}'"));
        } else if let Some(now) = self.now
            && let Some(Err(error)) = own.iter().map(|cert| cert.check_time(now)).min_by_key(Result::is_err)
        {
            issues.push(at, error.to_string());
        }
    }
}

fn add(credentials: &mut Credentials, loaded: PrivateKeyFile) {
    credentials.keys.extend(loaded.keys);
    credentials.certificates.extend(loaded.certificates);
    credentials.authorities.extend(loaded.authorities);
}

/// A mistake in a file that no line of the configuration names.
fn in_file(path: &Path, reason: String, issues: &mut Issues) {
    let file = issues.add_file(path);
    issues.push(Pos { file, line: 0, column: 0 }, reason);
}

/// `psk`, a kind of signature, or EAP.
pub(super) fn method(text: &str) -> Result<Method, String> {
    const FORMS: &str = "psk, pubkey, rsa, ecdsa or ed25519, with lengths and hashes such as rsa-2048-sha256 or rsa/pss-sha384";
    match text {
        "psk" => Ok(Method::Psk),
        _ if text.starts_with("eap") => super::eap::method(text),
        _ if text.starts_with("xauth") => Err(format!("{FORMS}; IKEv2 has no XAuth")),
        _ => {
            let rules = PubkeyRules::parse(text).map_err(|reason| format!("{FORMS}: {reason}"))?;
            if signature::AVAILABLE {
                Ok(Method::Pubkey(rules))
            } else {
                Err("psk: this build was made without aws-lc-rs, and has no certificates".to_string())
            }
        }
    }
}
