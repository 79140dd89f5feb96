//! Checks across options: what each value alone cannot show.

use mobikex_common::sa::Mode;

use super::error::Issues;
use super::fields::Fields;
use super::model::{
    AddrPattern, AuthRound, Child, Childless, Config, Connection, Method, PskSecret, StartAction, TsPattern,
};
use super::tree::Section;

/// Address families: (IPv4, IPv6).
type Families = (bool, bool);

fn addr_families(patterns: &[AddrPattern]) -> Families {
    patterns.iter().fold((false, false), |(v4, v6), pattern| match pattern {
        AddrPattern::Any => (true, true),
        AddrPattern::Range(range) => (v4 || range.is_ipv4(), v6 || !range.is_ipv4()),
    })
}

/// A dynamic selector takes the family that the outer address has.
fn ts_families(patterns: &[TsPattern]) -> Families {
    patterns.iter().fold((false, false), |(v4, v6), pattern| match pattern {
        TsPattern::Dynamic(_) => (true, true),
        TsPattern::Fixed(ts) => (v4 || ts.is_ipv4(), v6 || !ts.is_ipv4()),
    })
}

/// The ends of a connection must be able to meet.
pub(super) fn addresses(conn: &Connection, f: &Fields<'_>, issues: &mut Issues) {
    let (local, remote) = (addr_families(&conn.local_addrs), addr_families(&conn.remote_addrs));
    if !(local.0 && remote.0 || local.1 && remote.1) {
        let message = "'local_addrs' and 'remote_addrs' have no address family in common";
        issues.push(f.place("remote_addrs"), message);
    }
}

/// A connection without children is for IKE SAs alone (RFC 6023).
pub(super) fn childless(conn: &Connection, f: &Fields<'_>, issues: &mut Issues) {
    let expected = "expected 'children { NAME { ... } }'";
    if conn.childless == Childless::Never {
        let message = format!(
            "found 'childless = never' in connection '{}', which has no children; {expected}, or another value",
            conn.name
        );
        issues.push(f.place("childless"), message);
    }
    if !conn.vips.is_empty() {
        let message = format!(
            "found 'vips' in connection '{}', which has no children to use them; {expected}, or no 'vips'",
            conn.name
        );
        issues.push(f.place("vips"), message);
    }
}

/// A child within its connection.
pub(super) fn child(conn: &Connection, child: &Child, f: &Fields<'_>, issues: &mut Issues) {
    let (local, remote) = (ts_families(&child.local_ts), ts_families(&child.remote_ts));
    for (family, here, there) in [("IPv4", local.0, remote.0), ("IPv6", local.1, remote.1)] {
        // A selector of one family without a counterpart could never carry a packet.
        let (has, lacks) = match (here, there) {
            (true, false) if !has_dynamic(&child.local_ts) => ("local_ts", "remote_ts"),
            (false, true) if !has_dynamic(&child.remote_ts) => ("remote_ts", "local_ts"),
            _ => continue,
        };
        issues.push(f.place(has), format!("'{has}' has {family} selectors, but '{lacks}' has none"));
    }
    if child.mode == Mode::Transport {
        for (name, patterns) in [("local_ts", &child.local_ts), ("remote_ts", &child.remote_ts)] {
            for pattern in patterns {
                if let TsPattern::Fixed(ts) = pattern
                    && ts.start != ts.end
                {
                    let message = format!(
                        "found '{ts}' for '{name}' in transport mode, which carries only the two ends' own packets; \
                         expected dynamic or single addresses"
                    );
                    issues.push(f.place(name), message);
                }
            }
        }
    }
    if child.mode == Mode::Transport && child.tfc_padding > 0 {
        let message = "found 'tfc_padding' in transport mode, in which a receiver could not tell it from the packet; \
                       expected 'tfc_padding = 0'";
        issues.push(f.place("tfc_padding"), message);
    }
    for (name, action) in [("start_action", child.start_action), ("close_action", child.close_action)] {
        if action != StartAction::None && conn.remote_addr().is_none() && f.raw(name).is_some() {
            let message = format!("'{name}' needs a peer to go to, but 'remote_addrs' has no single address");
            issues.push(f.place(name), message);
        }
    }
}

fn has_dynamic(patterns: &[TsPattern]) -> bool {
    patterns.iter().any(|p| matches!(p, TsPattern::Dynamic(_)))
}

/// A connection that authenticates with a pre-shared key needs one that can be chosen for its peer: a secret
/// for anybody, or one that names the peer's identity; if that is not fixed, any.
pub(super) fn has_secret(config: &Config, part: &Section, issues: &mut Issues) {
    let Some(conn) = config.connection(&part.name) else { return };
    if conn.locals().chain(conn.remotes()).all(|round| round.method != Method::Psk) {
        return;
    }
    let fits = |secret: &PskSecret, round: &AuthRound| match &round.id {
        Some(id) => secret.ids.is_empty() || secret.ids.iter().any(|own| own.same(id) || id.allows(own)),
        None => true,
    };
    let found = config.secrets.iter().any(|secret| conn.remotes().any(|round| fits(secret, round)));
    if !found {
        let whose = conn.remote.id.as_ref().map_or_else(|| "its peer".to_string(), |id| format!("'{id}'"));
        let message = format!(
            "connection '{}' has 'auth = psk', but no secret is for {whose}; expected one in 'secrets {{ ike-NAME {{ ... }} }}'",
            conn.name
        );
        issues.push(part.at, message);
    }
}
