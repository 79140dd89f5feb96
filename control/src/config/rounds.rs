//! The sections `local` and `remote` of a connection: one for each round of authentication (RFC 4739).

use std::net::IpAddr;

use mobikex_common::crypto::signature;
use mobikex_common::wire::ike::Identification;

use super::credentials::{self, Files};
use super::error::{Issues, Pos};
use super::fields::Fields;
use super::model::{AuthRound, Connection, Method};
use super::schema::{self, AUTH, CONNECTION, Support};
use super::tree::Section;
use super::{eap, values};
use crate::credentials::PubkeyRules;

/// The most rounds of a side. Each costs an asymmetric operation, or a conversation in EAP, for somebody who may fail in
/// the last one. And with three, the responder, which proves itself once more in each of its messages, is at its end
/// before the initiator's first EAP can be: so no message has two AUTH payloads.
pub(super) const MAX_ROUNDS: usize = 3;

impl AuthRound {
    /// Who we are in a round of ours, at an address.
    pub fn own_id(&self, local: IpAddr) -> Identification {
        self.id.clone().unwrap_or_else(|| Identification::from_ip(local))
    }

    /// The identity as the operator has written it, a pattern too; `None` for any.
    pub fn shown_id(&self) -> Option<String> {
        let id = self.id.as_ref()?;
        // What a peer says is never a pattern, so that one shows as octets where it is an identity.
        let pattern = id.is_pattern().then(|| String::from_utf8(id.data.clone()).ok()).flatten();
        Some(pattern.filter(|text| text.starts_with('*')).unwrap_or_else(|| id.to_string()))
    }
}

impl Connection {
    /// Our rounds, the first one first.
    pub fn locals(&self) -> impl Iterator<Item = &AuthRound> {
        std::iter::once(&self.local).chain(&self.further_local)
    }

    /// The peer's rounds, the first one first.
    pub fn remotes(&self) -> impl Iterator<Item = &AuthRound> {
        std::iter::once(&self.remote).chain(&self.further_remote)
    }

    /// Whether a side proves itself more than once, which the peer has to know of (RFC 4739).
    pub fn has_rounds(&self) -> bool {
        !self.further_local.is_empty() || !self.further_remote.is_empty()
    }
}

/// Where the sections of a connection's rounds stand.
pub(super) struct Places {
    pub(super) local: Vec<Pos>,
    pub(super) remote: Vec<Pos>,
}

/// All rounds of both sides.
pub(super) fn read(
    part: &Section,
    conn: &mut Connection,
    files: &Files,
    sound: bool,
    issues: &mut Issues,
) -> Places {
    let side = |name: &str, issues: &mut Issues| {
        let (mut rounds, places): (Vec<_>, Vec<_>) =
            rounds(part, name, files, sound, issues).into_iter().unzip();
        let first = if rounds.is_empty() { AuthRound::default() } else { rounds.remove(0) };
        (first, rounds, places)
    };
    let (local, remote);
    (conn.local, conn.further_local, local) = side("local", issues);
    (conn.remote, conn.further_remote, remote) = side("remote", issues);
    if sound && conn.has_rounds() {
        eap_of_both(conn, &remote, issues);
    }
    Places { local, remote }
}

/// EAP asks initiators alone; that it proves the responder too is for one round (RFC 5998).
fn eap_of_both(conn: &Connection, remote: &[Pos], issues: &mut Issues) {
    let ours = conn.locals().any(|round| round.eap().is_some());
    let theirs = conn.remotes().position(|round| round.eap().is_some());
    if let Some(at) = theirs.and_then(|n| remote.get(n)).filter(|_| ours) {
        let message = "found EAP on both sides of a connection with several rounds; expected it on the initiator's alone";
        issues.push(*at, message);
    }
}

/// The rounds of a side in their order: by `round`, and then as they stand in the file.
fn rounds(
    conn: &Section,
    side: &str,
    files: &Files,
    sound: bool,
    issues: &mut Issues,
) -> Vec<(AuthRound, Pos)> {
    let known = |name: &str| schema::support(CONNECTION.sections, name) == Some(Support::Here);
    let own = |section: &&Section| section.name.starts_with(side) && known(&section.name);
    // Sections of one name are one.
    let mut named: Vec<Vec<&Section>> = Vec::new();
    for section in conn.sections.iter().filter(own) {
        match named.iter_mut().find(|parts| parts[0].name == section.name) {
            Some(parts) => parts.push(section),
            None => named.push(vec![section]),
        }
    }
    if named.is_empty() && sound {
        let message =
            format!("connection '{}' has no section '{side}'; expected '{side} {{ auth = psk }}'", conn.name);
        issues.push(conn.at, message);
    }
    if let Some(more) = named.get(MAX_ROUNDS) {
        let message = format!(
            "section '{}' is round {} of '{side}'; expected at most {MAX_ROUNDS}",
            more[0].name,
            MAX_ROUNDS + 1
        );
        issues.push(more[0].at, message);
    }
    let mut read: Vec<(u32, AuthRound, Pos)> = Vec::new();
    let mut numbers: Vec<(u32, Pos)> = Vec::new();
    for parts in &named {
        let f = Fields::check(parts, &AUTH, issues);
        let number =
            f.get("round", issues, |text| values::number(text, 0, u64::from(u32::MAX)).map(|n| n as u32));
        if let Some(number) = number {
            let at = f.place("round");
            match numbers.iter().find(|(other, _)| *other == number) {
                Some((_, first)) => {
                    let place = issues.place(*first);
                    let message = format!("'round = {number}' of '{side}' is taken already, in {place}");
                    issues.push(at, message);
                }
                None => numbers.push((number, at)),
            }
        }
        let round = round(parts, &f, side, files, issues);
        // As swanctl has it: who has no number comes first.
        read.push((number.unwrap_or(0), round, parts[0].at));
    }
    read.sort_by_key(|(number, ..)| *number);
    read.into_iter().map(|(_, round, at)| (round, at)).collect()
}

fn round(parts: &[&Section], f: &Fields<'_>, side: &str, files: &Files, issues: &mut Issues) -> AuthRound {
    let mut round = AuthRound { method: Method::Pubkey(PubkeyRules::default()), ..AuthRound::default() };
    if f.raw("auth").is_none() && !signature::AVAILABLE {
        let message =
            format!("section '{}' has no 'auth', which means pubkey; expected 'auth = psk'", parts[0].name);
        issues.push(f.at, message);
    }
    f.set("auth", &mut round.method, issues, credentials::method);
    let identity = if side == "local" { values::identity } else { values::pattern };
    round.id = f.get("id", issues, identity).flatten();
    f.set("eap_id", &mut round.eap_id, issues, eap::identity);
    if f.raw("eap_id").is_some() && round.eap().is_none() {
        issues.push(f.place("eap_id"), "found 'eap_id' beside an 'auth' that is not EAP");
    }
    if round.may_need_certificates() {
        files.round(parts, f, &mut round, issues);
    } else {
        for option in
            ["certs", "cacerts", "pubkeys", "revocation"].iter().filter(|name| f.raw(name).is_some())
        {
            issues.push(
                f.place(option),
                format!("found '{option}' beside 'auth = {}', which has no use for it", f.text("auth")),
            );
        }
    }
    round
}
