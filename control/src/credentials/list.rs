//! The view of `mobikex certs`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Certificate, Credentials, UnixSeconds, date};

/// What is wrong with a certificate by itself, if anything is.
fn trouble(cert: &Certificate, now: UnixSeconds) -> Option<String> {
    let fault = cert.key().map(drop).and_then(|()| cert.check_time(now));
    fault.err().map(|error| error.to_string())
}

/// As data.
pub fn certificates_data(credentials: &Credentials, now: UnixSeconds) -> Value {
    let cert = |cert: &Certificate| {
        let mut shown = json!(cert);
        shown["private_key"] = json!(cert.key().is_ok_and(|key| credentials.key_for(key).is_some()));
        shown["trouble"] = json!(trouble(cert, now));
        shown
    };
    let keys: Vec<Value> = credentials
        .keys
        .iter()
        .map(|own| json!({ "file": own.source, "key": own.key.public().kind().to_string() }))
        .collect();
    json!({
        "certificates": credentials.certificates.iter().map(|c| cert(c)).collect::<Vec<_>>(),
        "authorities": credentials.authorities.iter().map(|c| cert(c)).collect::<Vec<_>>(),
        "crls": credentials.crls.iter().map(|crl| json!({ "file": crl.source() })).collect::<Vec<_>>(),
        "private_keys": keys,
    })
}

/// As text.
pub fn certificates_text(credentials: &Credentials, now: UnixSeconds) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    for (what, certs) in [("certificate", &credentials.certificates), ("CA", &credentials.authorities)] {
        for cert in certs {
            let key = cert.key().map_or_else(|error| error.to_string(), |key| key.kind().to_string());
            let own = cert.key().is_ok_and(|key| credentials.key_for(key).is_some());
            let _ = writeln!(out, "{what} {}", cert.name());
            let _ = writeln!(out, "  issuer {}, valid until {}", cert.issuer(), date(cert.not_after()));
            let _ =
                writeln!(out, "  {key}{}, {}", if own { " with its private key" } else { "" }, cert.source());
            if let Some(trouble) = trouble(cert, now) {
                let _ = writeln!(out, "  {trouble}");
            }
        }
    }
    for crl in &credentials.crls {
        let _ = writeln!(out, "CRL {}", crl.source());
    }
    for own in &credentials.keys {
        let _ = writeln!(out, "private key {}, {}", own.key.public().kind(), own.source);
    }
    if out.is_empty() {
        out.push_str("no certificates are loaded\n");
    }
    out
}
