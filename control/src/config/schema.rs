//! Which options exist where: here, in swanctl only, or nowhere.

/// How far an option is supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Support {
    /// Read and obeyed.
    Here,
    /// Only these values, which ask for nothing.
    Only(&'static [&'static str]),
    /// Known from swanctl.conf or planned, but not in this version.
    Absent,
}

use Support::{Absent, Here, Only};

const NO: Support = Only(&["no", "false", "disabled", "0"]);
const YES: Support = Only(&["yes", "true", "enabled", "1"]);
const ZERO: Support = Only(&["0", "0s"]);

/// The names that a section takes. A name that ends in `*` also takes a suffix of digits, or one after `-`, `_`
/// or `.`; one that ends in `**` takes any suffix.
pub(super) struct SectionSpec {
    /// For messages: "in {what}".
    pub(super) what: &'static str,
    pub(super) settings: &'static [(&'static str, Support)],
    pub(super) sections: &'static [(&'static str, Support)],
}

pub(super) const ROOT: SectionSpec = SectionSpec {
    what: "the top level",
    settings: &[],
    sections: &[
        ("mobikex", Here),
        ("connections", Here),
        ("secrets", Here),
        ("pools", Here),
        ("authorities", Absent),
    ],
};

pub(super) const DAEMON: SectionSpec = SectionSpec {
    what: "section 'mobikex'",
    settings: &[
        ("port", Here),
        ("port_nat_t", Here),
        ("tun", Here),
        ("mtu", Here),
        ("workers", Here),
        ("pin", Here),
        ("offload", Here),
        ("busy_poll", Here),
        ("table", Here),
        ("priority", Here),
        ("mark", Here),
        ("max_child_sas", Here),
        ("cookie_threshold", Here),
        ("half_open_limit", Here),
        ("fragment_size", Here),
        ("resolvconf", Here),
    ],
    sections: &[],
};

pub(super) const CONNECTION: SectionSpec = SectionSpec {
    what: "a connection",
    settings: &[
        ("version", Only(&["2", "0"])),
        ("local_addrs", Here),
        ("remote_addrs", Here),
        ("local_port", Here),
        ("remote_port", Here),
        ("proposals", Here),
        ("nat_traversal", Here),
        ("encap", Here),
        ("dpd_delay", Here),
        ("keyingtries", Here),
        ("rekey_time", Here),
        ("over_time", Here),
        ("rand_time", Here),
        ("unique", Here),
        ("aggressive", NO),
        ("childless", Here),
        ("dscp", Only(&["000000"])),
        ("fragmentation", Here),
        ("mediation", NO),
        ("mobike", Here),
        ("mobike_x", Here),
        ("mobike_critical", Here),
        ("return_routability", Here),
        ("ppk_required", NO),
        ("reauth_time", Here),
        ("send_cert", Here),
        ("send_certreq", Here),
        ("dpd_timeout", Absent),
        ("if_id_in", Absent),
        ("if_id_out", Absent),
        ("mediated_by", Absent),
        ("mediation_peer", Absent),
        ("ocsp", Absent),
        ("pools", Here),
        ("ppk_id", Absent),
        ("pull", Absent),
        ("vips", Here),
    ],
    sections: &[("children", Here), ("local*", Here), ("remote*", Here), ("paths", Here)],
};

pub(super) const POOL: SectionSpec = SectionSpec {
    what: "a pool",
    settings: &[
        ("addrs", Here),
        ("dns", Here),
        ("nbns", Here),
        ("dhcp", Here),
        ("netmask", Here),
        ("subnet", Here),
        ("split_include", Here),
        ("server", Absent),
        ("split_exclude", Absent),
    ],
    sections: &[],
};

pub(super) const PATHS: SectionSpec = SectionSpec {
    what: "section 'paths'",
    settings: &[
        ("scheduler", Here),
        ("interfaces", Here),
        ("allowed", Here),
        ("probe_interval", Here),
        ("measure_rates", Here),
    ],
    // Any other section is named after an interface.
    sections: &[("**", Here)],
};

pub(super) const INTERFACE: SectionSpec = SectionSpec {
    what: "an interface of section 'paths'",
    settings: &[("preference", Here), ("rate", Here)],
    sections: &[],
};

pub(super) const AUTH: SectionSpec = SectionSpec {
    what: "an authentication section",
    settings: &[
        ("auth", Here),
        ("id", Here),
        ("cacerts", Here),
        ("certs", Here),
        ("pubkeys", Here),
        ("revocation", Here),
        ("round", Here),
        ("aaa_id", Absent),
        ("ca_id", Absent),
        ("cert_policy", Absent),
        ("eap_id", Here),
        ("groups", Absent),
        ("xauth_id", Absent),
    ],
    sections: &[("cert*", Here), ("cacert*", Here)],
};

pub(super) const FILE: SectionSpec = SectionSpec {
    what: "a section for a certificate",
    settings: &[("file", Here), ("handle", Absent), ("slot", Absent), ("module", Absent)],
    sections: &[],
};

pub(super) const CHILD: SectionSpec = SectionSpec {
    what: "a child",
    settings: &[
        ("local_ts", Here),
        ("remote_ts", Here),
        ("mode", Here),
        ("esp_proposals", Here),
        ("replay_window", Here),
        ("scheduler", Here),
        ("rekey_time", Here),
        ("life_time", Here),
        ("rand_time", Here),
        ("rekey_bytes", Here),
        ("life_bytes", Here),
        ("rekey_packets", Here),
        ("life_packets", Here),
        ("start_action", Here),
        ("close_action", Here),
        ("dpd_action", Here),
        ("copy_df", Here),
        ("copy_dscp", Here),
        ("encap", Here),
        ("copy_ecn", YES),
        ("hostaccess", Here),
        ("hw_offload", NO),
        ("inactivity", Here),
        ("ipcomp", NO),
        ("per_cpu_sas", Here),
        ("policies", YES),
        ("policies_fwd_out", NO),
        ("rand_bytes", ZERO),
        ("rand_packets", ZERO),
        ("sha256_96", NO),
        ("tfc_padding", Here),
        ("updown", Here),
        ("ah_proposals", Absent),
        ("icmp", Absent),
        ("if_id_in", Absent),
        ("if_id_out", Absent),
        ("interface", Absent),
        ("label", Absent),
        ("label_mode", Absent),
        ("mark_in", Absent),
        ("mark_in_sa", Absent),
        ("mark_out", Absent),
        ("priority", Absent),
        ("reqid", Absent),
        ("set_mark_in", Absent),
        ("set_mark_out", Absent),
    ],
    sections: &[],
};

pub(super) const SECRETS: SectionSpec = SectionSpec {
    what: "section 'secrets'",
    settings: &[],
    sections: &[
        ("ike**", Here),
        ("eap*", Here),
        ("ecdsa*", Here),
        ("ntlm*", Here),
        ("pkcs12*", Here),
        ("pkcs8*", Here),
        ("ppk*", Absent),
        ("private*", Here),
        ("rsa*", Here),
        ("token*", Absent),
        ("xauth*", Absent),
    ],
};

pub(super) const SECRET: SectionSpec =
    SectionSpec { what: "a secret", settings: &[("secret", Here), ("id*", Here)], sections: &[] };

/// A password of a file. What an operator wrote in it is not repeated.
pub(super) const FILE_SECRET: SectionSpec =
    SectionSpec { what: SECRET.what, settings: &[("file", Here), ("secret", Here)], sections: &[] };

/// How the section treats `name`, if it knows it.
pub(super) fn support(names: &[(&str, Support)], name: &str) -> Option<Support> {
    let fits = |known: &str| match known.strip_suffix('*') {
        Some(stem) if stem.ends_with('*') => name.starts_with(stem.trim_end_matches('*')),
        // "local", "local-1", "local2", but not "localhost".
        Some(stem) => name
            .strip_prefix(stem)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']) || digits(rest)),
        None => known == name,
    };
    names.iter().find(|(known, _)| fits(known)).map(|(_, support)| *support)
}

fn digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// The available name that `name` most likely means.
pub(super) fn nearest(spec: &SectionSpec, name: &str) -> Option<&'static str> {
    let all = spec.settings.iter().chain(spec.sections);
    let available = all.filter(|(_, s)| *s != Absent).map(|(known, _)| known.trim_end_matches('*'));
    let limit = (name.chars().count() / 3).clamp(1, 3);
    available
        .map(|known| (distance(name, known), known))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// Edits (insert, delete, replace, swap neighbours) from `a` to `b`; both are cut to 64 characters.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_suffixes_fit_their_stem_only() {
        for (name, fits) in
            [("local", true), ("local-1", true), ("local2", true), ("localhost", false), ("loc", false)]
        {
            assert_eq!(support(CONNECTION.sections, name).is_some(), fits, "{name}");
        }
        assert_eq!(support(CHILD.settings, "reqid"), Some(Absent));
    }

    #[test]
    fn the_nearest_name_is_suggested() {
        assert_eq!(nearest(&CHILD, "rekey_tiem"), Some("rekey_time"));
        assert_eq!(nearest(&CONNECTION, "local_addr"), Some("local_addrs"));
        assert_eq!(nearest(&CONNECTION, "chidlren"), Some("children"));
        assert_eq!(nearest(&CONNECTION, "frobnicate"), None);
    }
}
