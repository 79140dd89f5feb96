//! The pages under `common/specs` that are made from data beside them.

use std::path::{Path, PathBuf};

/// Set to anything, it makes [`compare`] write the page.
const UPDATE: &str = "UPDATE_SPECS";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("specs").join(name)
}

/// The text of a file under `common/specs`.
pub fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Panics when the page is not the one that its data makes.
pub fn compare(name: &str, page: &str) {
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(path(name), page).unwrap();
    }
    let current = std::fs::read_to_string(path(name)).unwrap_or_default();
    assert!(
        current == page,
        "common/specs/{name} is stale; write it with: {UPDATE}=1 cargo test -p mobikex-common --test '*'"
    );
}
