//! The shape of the workspace: which crate may depend on which, and what stands at the top level.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The tables of a manifest: (table name, keys at the beginning of its lines).
fn tables(manifest: &str) -> Vec<(String, Vec<String>)> {
    let mut tables = vec![(String::new(), Vec::new())];
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            tables.push((name.trim_matches(['[', ']']).to_string(), Vec::new()));
        } else if let Some((key, _)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            let key = key.trim().split('.').next().unwrap_or_default().trim_matches('"');
            tables.last_mut().unwrap().1.push(key.to_string());
        }
    }
    tables
}

#[test]
fn dependencies_between_the_crates_point_one_way() {
    let names = ["mobikex-ipsec-mb", "mobikex-common", "mobikex-dataplane", "mobikex", "mobikex-benches"];
    let packages = [("common/ipsec-mb", 0), ("common", 1), ("dataplane", 2), ("control", 3), ("benches", 4)];
    for (package, allowed) in packages {
        let text = std::fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        let mut seen = 0;
        for (table, keys) in tables(&text) {
            // Also [dev-dependencies], [build-dependencies], [target.'..'.dependencies] and [dependencies.name].
            let Some((_, rest)) = table.split_once("dependencies") else { continue };
            seen += 1;
            for key in keys.iter().map(String::as_str).chain(rest.strip_prefix('.')) {
                let ours = names.iter().position(|name| *name == key);
                assert!(
                    ours.is_none_or(|index| index < allowed),
                    "{package} must not depend on {key} ({table})"
                );
                let library = key == "mobikex-ipsec-mb";
                assert!(!library || package == "common", "{package} gets its cryptography from common");
            }
        }
        assert!(seen > 0, "{package} has no dependencies at all? then this test looks in the wrong place");
    }
}

#[test]
fn the_top_level_holds_only_what_was_agreed() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "control",
        "dataplane",
        "common",
        "benches",
        "scripts",
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "clippy.toml",
        "rustfmt.toml",
        "target",
    ];
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.starts_with('.') || allowed.contains(&name.as_str()),
            "{name} does not belong at the top level"
        );
    }
}

#[test]
fn only_the_daemon_may_name_the_packet_path() {
    fn visit(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().unwrap() != "daemon" {
                visit(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") && path.file_name().unwrap() != "main.rs" {
                let text = std::fs::read_to_string(&path).unwrap();
                if text.contains("mobikex_dataplane") {
                    found.push(path.display().to_string());
                }
            }
        }
    }
    let mut found = Vec::new();
    visit(&root().join("control/src"), &mut found);
    assert!(found.is_empty(), "{found:?} name the packet path");
}

#[test]
fn the_engine_reads_no_clock_and_opens_no_socket() {
    fn visit(dir: &Path) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let only_for_tests = path.file_stem().is_some_and(|name| name == "testing" || name == "tests");
            if only_for_tests {
                continue;
            }
            // Its tests may start from the present.
            let text = text.split("#[cfg(test)]").next().unwrap();
            for forbidden in ["Instant::now", "SystemTime", "UdpSocket", "std::thread", "std::fs"] {
                assert!(!text.contains(forbidden), "{} uses {forbidden}", path.display());
            }
        }
    }
    visit(&root().join("control/src/ike"));
}
