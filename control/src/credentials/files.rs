//! Certificates, CRLs and keys from files, in PEM or DER.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mobikex_common::crypto;
use mobikex_common::crypto::signature::{PrivateKey, PublicKey};
use p12_keystore::{KeyStore, KeyStoreEntry, Pkcs12ImportPolicy};
use pkcs8::EncryptedPrivateKeyInfoRef;
use rustls_pki_types::pem::{self, SectionKind};
use webpki::{BorrowedCertRevocationList, CertRevocationList};
use zeroize::Zeroizing;

use super::{Certificate, OwnKey};

/// Octets of the largest file with a certificate or a key, and of one with a CRL.
const MAX_FILE: u64 = 256 * 1024;
const MAX_CRL: u64 = 32 << 20;
/// The most files of a folder.
const MAX_FILES: usize = 10_000;

/// A revocation list whose signature is checked when it is used.
#[derive(Clone, Debug)]
pub struct Crl {
    source: String,
    digest: [u8; 20],
    list: Arc<CertRevocationList<'static>>,
}

impl Crl {
    /// Reads a DER CRL.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn from_der(der: &[u8], source: &str) -> Result<Self, String> {
        let list = BorrowedCertRevocationList::from_der(der).and_then(|list| list.to_owned());
        let list = list.map_err(|error| format!("it is no CRL that can be used: {error}"))?;
        Ok(Self { source: source.to_string(), digest: crypto::sha1(&[der]), list: Arc::new(list.into()) })
    }

    /// The file that it is from.
    pub fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn list(&self) -> &CertRevocationList<'static> {
        &self.list
    }
}

impl PartialEq for Crl {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.digest == other.digest
    }
}

/// What came out of a file with a private key.
#[derive(Default)]
pub struct PrivateKeyFile {
    /// Keys.
    pub keys: Vec<OwnKey>,
    /// Certificates that were with them (PKCS#12): those of ends, and those of CAs.
    pub certificates: Vec<Arc<Certificate>>,
    /// See above.
    pub authorities: Vec<Arc<Certificate>>,
}

/// Reads files relative to the folder of the configuration.
pub struct Loader {
    base: PathBuf,
}

impl Loader {
    /// `base` is the folder in which `x509`, `private` and the like are.
    pub fn new(base: &Path) -> Self {
        Self { base: base.to_path_buf() }
    }

    /// The file of a name: absolute, or in one of the folders, the first that has it.
    pub fn find(&self, name: &str, folders: &[&str]) -> PathBuf {
        let paths = folders.iter().map(|folder| self.base.join(folder).join(name));
        let mut paths = paths.collect::<Vec<_>>();
        let found = paths.iter().position(|path| path.exists()).unwrap_or(0);
        paths.swap_remove(found)
    }

    /// The files of a folder by name; none if there is no such folder.
    ///
    /// # Errors
    /// When it cannot be read or holds too many.
    pub fn folder(&self, folder: &str) -> Result<Vec<PathBuf>, String> {
        let path = self.base.join(folder);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(format!("cannot read the folder '{}': {error}", path.display())),
        };
        let mut files: Vec<PathBuf> =
            entries.flatten().map(|e| e.path()).filter(|path| path.is_file()).take(MAX_FILES + 1).collect();
        if files.len() > MAX_FILES {
            return Err(format!("the folder '{}' has more than {MAX_FILES} files", path.display()));
        }
        // What editors and version control leave behind is no credential.
        files.retain(|path| path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
        files.sort();
        Ok(files)
    }

    /// All certificates of a file.
    ///
    /// # Errors
    /// When it cannot be read or has none, or one that does not parse.
    pub fn certificates(path: &Path) -> Result<Vec<Arc<Certificate>>, String> {
        let ders = sections(path, MAX_FILE, &[SectionKind::Certificate], "certificate")?;
        let source = path.display().to_string();
        ders.iter()
            .map(|der| Certificate::from_der(der, &source).map(Arc::new).map_err(|e| named(path, &e)))
            .collect()
    }

    /// All CRLs of a file.
    ///
    /// # Errors
    /// When it cannot be read or has none.
    pub fn crls(path: &Path) -> Result<Vec<Crl>, String> {
        let ders = sections(path, MAX_CRL, &[SectionKind::Crl], "CRL")?;
        let source = path.display().to_string();
        ders.iter().map(|der| Crl::from_der(der, &source).map_err(|e| named(path, &e))).collect()
    }

    /// A raw public key.
    ///
    /// # Errors
    /// When it cannot be read or is none.
    pub fn public_key(path: &Path) -> Result<PublicKey, String> {
        let ders = sections(path, MAX_FILE, &[SectionKind::PublicKey], "public key")?;
        ders.first()
            .ok_or_else(|| named(path, &"it has no public key"))
            .and_then(|der| PublicKey::from_spki(der).map_err(|e| named(path, &e)))
    }

    /// A private key, with its password if it is encrypted.
    ///
    /// # Errors
    /// When it cannot be read, is none, or the password is wrong.
    pub fn private_key(path: &Path, password: Option<&[u8]>) -> Result<PrivateKeyFile, String> {
        let octets = Zeroizing::new(read(path, MAX_FILE)?);
        let der = match std::str::from_utf8(&octets) {
            Ok(text) if text.contains("-----BEGIN") => Zeroizing::new(private_pem(path, text)?),
            _ => octets,
        };
        let key = match (EncryptedPrivateKeyInfoRef::try_from(der.as_slice()), password) {
            (Ok(encrypted), Some(password)) => {
                let plain =
                    encrypted.decrypt(password).map_err(|_| named(path, &"its password is another one"))?;
                PrivateKey::from_der(plain.as_bytes())
            }
            (Ok(_), None) => {
                let section = "it is encrypted, and no section 'private-NAME { file = ...  secret = ... }' has its password";
                return Err(named(path, &section));
            }
            (Err(_), _) => PrivateKey::from_der(&der),
        };
        let key = key.map_err(|error| named(path, &error))?;
        let own = OwnKey { source: path.display().to_string(), key: Arc::new(key) };
        Ok(PrivateKeyFile { keys: vec![own], ..PrivateKeyFile::default() })
    }

    /// A PKCS#12 container.
    ///
    /// # Errors
    /// When it cannot be read, or the password is wrong.
    pub fn pkcs12(path: &Path, password: &[u8]) -> Result<PrivateKeyFile, String> {
        let octets = Zeroizing::new(read(path, MAX_FILE)?);
        let password = std::str::from_utf8(password).map_err(|_| named(path, &"its password is no text"))?;
        let store =
            KeyStore::from_pkcs12(&octets, password, Pkcs12ImportPolicy::Relaxed).map_err(|error| {
                named(path, &format!("it is no PKCS#12 container of this password ({error})"))
            })?;
        let source = path.display().to_string();
        let mut out = PrivateKeyFile::default();
        for (_, entry) in store.entries() {
            let certs = match entry {
                KeyStoreEntry::PrivateKeyChain(chain) => {
                    let key = PrivateKey::from_der(chain.key().as_der()).map_err(|e| named(path, &e))?;
                    out.keys.push(OwnKey { source: source.clone(), key: Arc::new(key) });
                    chain.certs()
                }
                KeyStoreEntry::Certificate(cert) => std::slice::from_ref(cert),
                KeyStoreEntry::Secret(_) => &[],
            };
            for cert in certs {
                let cert = Certificate::from_der(cert.as_der(), &source).map_err(|e| named(path, &e))?;
                let list = if cert.is_ca() { &mut out.authorities } else { &mut out.certificates };
                list.push(Arc::new(cert));
            }
        }
        if out.keys.is_empty() {
            return Err(named(path, &"it has no private key"));
        }
        Ok(out)
    }
}

fn named(path: &Path, reason: &dyn std::fmt::Display) -> String {
    format!("cannot use '{}': {reason}", path.display())
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let mut octets = Vec::new();
    let file = File::open(path).map_err(|error| named(path, &error))?;
    // A device or a pipe could be endless or never answer.
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return Err(named(path, &"it is no file"));
    }
    file.take(limit + 1).read_to_end(&mut octets).map_err(|error| named(path, &error))?;
    if octets.len() as u64 > limit {
        return Err(named(path, &format!("it is larger than {limit} octets")));
    }
    Ok(octets)
}

/// The parts of some kinds in a PEM file, or the whole of a DER file.
fn sections(path: &Path, limit: u64, kinds: &[SectionKind], what: &str) -> Result<Vec<Vec<u8>>, String> {
    let octets = read(path, limit)?;
    if !octets.windows(10).any(|w| w == b"-----BEGIN") {
        return Ok(vec![octets]);
    }
    let (mut rest, mut out) = (octets.as_slice(), Vec::new());
    loop {
        match pem::from_buf(&mut rest) {
            Ok(Some((kind, der))) if kinds.contains(&kind) => out.push(der),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(_) => return Err(named(path, &"its PEM is damaged")),
        }
    }
    if out.is_empty() { Err(named(path, &format!("it has no {what}"))) } else { Ok(out) }
}

/// The private key of a PEM file.
fn private_pem(path: &Path, text: &str) -> Result<Vec<u8>, String> {
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        let advice =
            "it is encrypted in a form that is too weak to be taken; convert it with 'openssl pkcs8 -topk8'";
        return Err(named(path, &advice));
    }
    if let Some(at) = text.find("-----BEGIN ENCRYPTED PRIVATE KEY-----") {
        let decoded = pem_rfc7468::decode_vec(&text.as_bytes()[at..]);
        return decoded.map(|(_, der)| der).map_err(|_| named(path, &"its PEM is damaged"));
    }
    let mut rest = text.as_bytes();
    loop {
        match pem::from_buf(&mut rest) {
            Ok(Some((
                SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey,
                der,
            ))) => {
                return Ok(der);
            }
            Ok(Some(_)) => {}
            Ok(None) => return Err(named(path, &"it has no private key")),
            Err(_) => return Err(named(path, &"its PEM is damaged")),
        }
    }
}
