//! The shape of the workspace: which crate may depend on which, and what stands at the top level.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn dependencies_between_the_crates_point_one_way() {
    let names = ["mobikex-common", "mobikex-dataplane", "mobikex"];
    for (package, allowed) in [("common", 0), ("dataplane", 1), ("control", 2)] {
        let text = std::fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        let dependencies = text.split("[dependencies]").nth(1).unwrap();
        for (index, name) in names.iter().enumerate() {
            let uses = dependencies.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(name));
            assert!(!uses || index < allowed, "{package} must not depend on {name}");
        }
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
    for entry in std::fs::read_dir(root().join("control/src/ike")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for forbidden in ["Instant::now", "SystemTime", "UdpSocket", "std::thread", "std::fs"] {
            assert!(!text.contains(forbidden), "{} uses {forbidden}", path.display());
        }
    }
}
