//! Certificates and keys from files, as swanctl.conf names them, and what `mobikex check` says of those that are wrong.

use std::path::{Path, PathBuf};
use std::process::Command;

use mobikex::config::{self, Config};
use mobikex::credentials::certificates_data;
use rcgen::{KeyPair, SignatureAlgorithm};

use crate::made::{Ca, NOW, key};

pub const P256: &SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mobikex-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        for folder in ["x509", "x509ca", "x509crl", "private", "pkcs12", "pubkey"] {
            std::fs::create_dir_all(path.join(folder)).unwrap();
        }
        Self(path)
    }

    pub fn put(&self, name: &str, octets: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.0.join(name), octets).unwrap();
        self
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn openssl(&self, arguments: &[&str]) {
        let done =
            Command::new("openssl").args(arguments).current_dir(&self.0).output().expect("openssl runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn load(&self, local: &str, remote: &str, secrets: &str) -> Result<Config, Vec<String>> {
        self.load_text(&format!(
            "connections {{ c {{\nlocal {{ {local} }}\nremote {{ {remote} }}\nchildren {{ k {{ }} }} }} }}\nsecrets {{\n{secrets}\n}}\n"
        ))
    }

    /// Errors are without the path of the folder.
    pub fn load_text(&self, text: &str) -> Result<Config, Vec<String>> {
        self.put("swanctl.conf", text);
        config::load_at(&self.0.join("swanctl.conf"), Some(NOW)).map_err(|errors| {
            errors.iter().map(|e| e.to_string().replace(&format!("{}/", self.0.display()), "")).collect()
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn pem(der: &[u8], label: &str) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A CA, a key, and its certificate in place.
fn folder(name: &str) -> (Folder, Ca, KeyPair) {
    let (folder, ca, key) = (Folder::new(name), Ca::new("root"), key(P256));
    folder.put("x509ca/root.pem", pem(ca.cert.der(), "CERTIFICATE"));
    folder.put("x509/a.pem", pem(&ca.end("a.example", &key, |_| {}), "CERTIFICATE"));
    (folder, ca, key)
}

fn one(outcome: Result<Config, Vec<String>>) -> String {
    let errors = outcome.unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].clone()
}

#[test]
fn a_file_of_swanctl_with_certificates_loads() {
    let (folder, ca, key) = folder("loads");
    folder.put("private/a.pem", key.serialize_pem());
    let config =
        folder.load("certs = a.pem  id = a.example", "id = \"C=CH, CN=*\"  revocation = strict", "").unwrap();
    let conn = &config.connections[0];
    assert_eq!(conn.local.id.as_ref().unwrap().to_string(), "a.example");
    assert_eq!(conn.local.certs[0].name(), "C=CH, CN=a.example");
    assert!(conn.remote.id.as_ref().unwrap().is_pattern());
    let text = config.describe();
    assert!(text.contains("we are a.example by signature (pubkey)"), "{text}");
    assert!(text.contains("until 2027-01-01T00:00:00Z"), "{text}");
    let data = certificates_data(&config.credentials, NOW);
    assert_eq!(data["certificates"][0]["private_key"], true);
    assert_eq!(data["certificates"][0]["trouble"], serde_json::Value::Null);
    assert_eq!(data["authorities"][0]["ca"], true);
    // Without an identity, or with one that the certificate has not, we are its subject.
    for local in ["certs = a.pem", "certs = a.pem  id = other.example"] {
        let config = folder.load(local, "", "").unwrap();
        assert_eq!(config.connections[0].local.id.as_ref().unwrap().to_string(), "C=CH, CN=a.example");
    }
    // By identity alone, by sections, and DER instead of PEM.
    folder.load("id = a.example", "cacert1 { file = root.pem }", "").unwrap();
    folder.put("x509ca/root.der", ca.cert.der());
    folder.load("cert-one { file = a.pem }", "cacerts = root.der", "").unwrap();
}

/// What a further round needs of files is there, or is missed where that round stands.
#[test]
fn further_rounds_have_certificates_of_their_own() {
    let (folder, ca, first) = folder("rounds");
    folder.put("private/a.pem", first.serialize_pem());
    let second = key(P256);
    folder.put("x509/user.pem", pem(&ca.end("user.example", &second, |_| {}), "CERTIFICATE"));
    let two = "certs = a.pem }\nlocal-2 {\n certs = user.pem";
    let missing = one(folder.load(two, "", ""));
    assert!(missing.contains("none of the private keys that are loaded belongs to"), "{missing}");
    let line = |text: &str| text.split(':').nth(1).unwrap().parse::<u32>().unwrap();
    let place = one(folder.load("certs = no.pem }\nlocal-2 {\n auth = psk", "", "ike { secret = x }"));
    assert_eq!(line(&missing), line(&place) + 1, "{missing}, {place}");
    folder.put("private/user.pem", second.serialize_pem());
    let config =
        folder.load(two, "id = a.example }\nremote-2 {\n id = *.example\n cacerts = root.pem", "").unwrap();
    let conn = &config.connections[0];
    assert_eq!(conn.further_local[0].id.as_ref().unwrap().to_string(), "C=CH, CN=user.example");
    assert_eq!(conn.further_remote[0].cacerts.len(), 1);
    let text = config.describe();
    assert!(
        text.contains("we are C=CH, CN=a.example by signature (pubkey); and then C=CH, CN=user.example"),
        "{text}"
    );
    assert!(text.contains("; and then *.example by signature (pubkey), of the CA C=CH, CN=root"), "{text}");
}

/// A gateway for passwords and certificates, and both kinds of roadwarriors.
#[test]
fn eap_with_the_certificates_of_files_loads() {
    use mobikex::eap::Kind;
    let (folder, _, key) = folder("eap");
    folder.put("private/a.pem", key.serialize_pem());
    let carol = "eap-carol { id = carol@example.org  secret = Ar3etTnp }";
    let load = |local: &str, remote: &str, secrets: &str| {
        let config =
            folder.load(local, remote, secrets).unwrap_or_else(|e| panic!("{local} {remote}: {e:?}"));
        config.connections[0].clone()
    };
    let gateway = "auth = pubkey\ncerts = a.pem\nid = a.example";
    let conn = load(gateway, "auth = eap-mschapv2\neap_id = %any", carol);
    assert_eq!(conn.remote.eap(), Some(&[Kind::Mschapv2][..]));
    let conn = load(gateway, "auth = eap-dynamic\neap_id = %any", carol);
    assert_eq!(conn.remote.eap(), Some(&[Kind::Tls, Kind::Mschapv2][..]));
    let conn = load("auth = eap\neap_id = carol@example.org", "auth = pubkey\nid = moon.example", carol);
    assert_eq!(conn.local.eap(), Some(&[Kind::Mschapv2][..]), "there is no certificate of carol");
    let tls = "auth = eap-tls\ncerts = a.pem\nid = a.example";
    load(tls, "auth = pubkey\nid = moon.example", "");
    load(tls, "auth = eap-tls\nid = *.example\ncacerts = root.pem", "");
    assert!(
        one(folder.load("auth = eap-tls\nid = b.example", "auth = pubkey", ""))
            .contains("without a certificate of ours")
    );
    assert!(
        one(folder.load(gateway, "auth = eap-mschapv2\ncacerts = root.pem", carol))
            .contains("found 'cacerts' beside 'auth = eap-mschapv2'")
    );
}

#[test]
fn keys_in_every_form() {
    let (folder, ca, _) = folder("forms");
    let check = |name: &str, local: &str, secrets: &str| {
        let config = folder.load(local, "", secrets).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!(config.credentials.keys.len(), 1, "{name}");
    };
    for (alg, traditional) in [
        (&rcgen::PKCS_RSA_SHA256, &["rsa", "-traditional"][..]),
        (P256, &["ec"]),
        (&rcgen::PKCS_ECDSA_P384_SHA384, &["ec"]),
        (&rcgen::PKCS_ECDSA_P521_SHA512, &["ec"]),
        (&rcgen::PKCS_ED25519, &[]),
    ] {
        let key = if alg == &rcgen::PKCS_ED25519 {
            // What rcgen makes has the public key in it, and openssl may not read that.
            folder.openssl(&["genpkey", "-algorithm", "ed25519", "-out", "key.pem"]);
            KeyPair::from_pem(&std::fs::read_to_string(folder.path("key.pem")).unwrap()).unwrap()
        } else {
            key(alg)
        };
        folder.put("x509/a.pem", pem(&ca.end("a.example", &key, |_| {}), "CERTIFICATE"));
        folder.put("private/a.pem", key.serialize_pem());
        folder.put("key.pem", key.serialize_pem());
        check("PKCS#8", "certs = a.pem", "");
        folder.put("private/a.pem", key.serialized_der());
        check("DER", "certs = a.pem", "");
        if !traditional.is_empty() {
            folder.openssl(&[traditional, &["-in", "key.pem", "-out", "private/a.pem"]].concat());
            check("the older form", "certs = a.pem", "");
        }
        folder.openssl(&[
            "pkcs8",
            "-topk8",
            "-v2",
            "aes256",
            "-in",
            "key.pem",
            "-passout",
            "pass:sesame",
            "-out",
            "private/a.pem",
        ]);
        check("encrypted", "certs = a.pem", "private-a { file = a.pem  secret = sesame }");
        let reason = one(folder.load("certs = a.pem", "", "private-a { file = a.pem\n secret = other }"));
        assert_eq!(reason, "swanctl.conf:6:20: cannot use 'private/a.pem': its password is another one");
        let reason = one(folder.load("certs = a.pem", "", ""));
        assert!(
            reason.starts_with("private/a.pem:0:0: cannot use 'private/a.pem': it is encrypted"),
            "{reason}"
        );
        std::fs::remove_file(folder.0.join("private/a.pem")).unwrap();
        folder.openssl(&[
            "pkcs12",
            "-export",
            "-inkey",
            "key.pem",
            "-in",
            "x509/a.pem",
            "-certfile",
            "x509ca/root.pem",
            "-passout",
            "pass:sesame",
            "-out",
            "pkcs12/a.p12",
        ]);
        check("PKCS#12", "id = a.example", "pkcs12-a { file = a.p12  secret = sesame }");
        let reason = one(folder.load("id = a.example", "", "pkcs12-a { file = a.p12  secret = other }"));
        assert!(reason.contains("it is no PKCS#12 container of this password"), "{reason}");
        std::fs::remove_file(folder.0.join("pkcs12/a.p12")).unwrap();
    }
}

#[test]
fn raw_public_keys_from_files() {
    let (folder, _, key) = folder("raw");
    folder.put("private/a.pem", key.serialize_pem());
    folder.put("pubkey/a.pem", key.public_key_pem());
    folder.put("pubkey/b.pem", KeyPair::generate().unwrap().public_key_pem());
    let config =
        folder.load("pubkeys = a.pem  id = a.example", "pubkeys = b.pem  id = b.example", "").unwrap();
    assert_eq!(config.connections[0].remote.pubkeys.len(), 1);
    let reason = one(folder.load("pubkeys = b.pem  id = a.example", "pubkeys = a.pem", ""));
    assert_eq!(reason, "swanctl.conf:2:1: none of the private keys that are loaded belongs to 'pubkeys'");
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_the_line_that_names_it() {
    let (folder, ca, key) = folder("wrong");
    let local = "certs = a.pem";
    assert_eq!(
        one(folder.load(local, "", "")),
        "swanctl.conf:2:1: none of the private keys that are loaded belongs to 'x509/a.pem' (C=CH, CN=a.example)"
    );
    folder.put("private/a.pem", KeyPair::generate().unwrap().serialize_pem());
    assert!(one(folder.load(local, "", "")).contains("none of the private keys"), "a key that does not fit");
    folder.put("private/a.pem", key.serialize_pem());
    let missing = one(folder.load("certs = b.pem", "", ""));
    assert_eq!(missing, "swanctl.conf:2:17: cannot use 'x509/b.pem': No such file or directory (os error 2)");
    folder.put(
        "x509/old.pem",
        pem(&ca.end("a.example", &key, |p| p.not_after = rcgen::date_time_ymd(2026, 2, 1)), "CERTIFICATE"),
    );
    let old = one(folder.load("certs = old.pem", "", ""));
    assert_eq!(
        old,
        "swanctl.conf:2:17: cannot use 'x509/old.pem': the certificate of 'C=CH, CN=a.example' expired on 2026-02-01T00:00:00Z"
    );
    // The daemon starts all the same: it may have other connections, and the time may be wrong.
    assert!(config::load(Path::new(&folder.path("swanctl.conf"))).is_ok());
    assert!(
        one(folder.load("id = nobody.example", "", ""))
            .contains("no certificate for 'nobody.example' is loaded")
    );
    assert!(
        one(folder.load("auth = rsa  certs = a.pem", "", ""))
            .contains("none of 'certs' has a key as 'auth = rsa' wants it")
    );
    assert!(one(folder.load("", "", "")).contains("found neither 'certs' nor 'id'"));
    let remote = one(folder.load(local, "auth = rsa-md5", ""));
    assert!(remote.starts_with("swanctl.conf:3:17: found 'rsa-md5' for 'auth'"), "{remote}");
    folder.put("x509ca/root.pem", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
    assert_eq!(
        one(folder.load(local, "", "")),
        "x509ca/root.pem:0:0: cannot use 'x509ca/root.pem': its PEM is damaged"
    );
    std::fs::remove_file(folder.0.join("x509ca/root.pem")).unwrap();
    std::fs::remove_file(folder.0.join("x509/a.pem")).unwrap();
    std::fs::remove_file(folder.0.join("x509/old.pem")).unwrap();
    folder.put("pubkey/a.pem", key.public_key_pem());
    let alone = one(folder.load("pubkeys = a.pem", "id = b", ""));
    assert!(alone.starts_with("swanctl.conf:3:1: no CA is loaded that could vouch for the peer"), "{alone}");
    folder.put("pkcs12/a.p12", "x");
    assert!(
        one(folder.load("pubkeys = a.pem", "pubkeys = a.pem", ""))
            .contains("there is no section 'pkcs12-NAME")
    );
}
