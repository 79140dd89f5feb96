//! The configuration: swanctl.conf's grammar on the outside, typed values on the inside.
//!
//! A file goes through three stages: `lexer` and `tree` read sections and settings with their places;
//! `schema` and `fields` hold every name against what exists here; `build` and `checks` make the typed
//! values of `model`. Mistakes are collected, all of them, and a file with any of them yields nothing.

mod build;
mod checks;
mod credentials;
mod describe;
mod eap;
mod error;
mod fields;
mod include;
mod lexer;
mod model;
mod multipath;
mod pools;
mod rounds;
mod schema;
mod tree;
mod values;

use std::path::Path;

pub use eap::{EapId, EapSecret, find_eap_secret};
pub use error::ConfigError;
pub use model::{
    AddrPattern, AuthRound, Child, Childless, Config, Connection, DaemonSettings, DpdAction, Fragmentation,
    Method, PskSecret, SendCert, StartAction, TsPattern, Unique,
};

pub use multipath::{DEFAULT_PREFERENCE, InterfacePolicy, MobikeX, Paths, ReturnRoutability};

pub use pools::{AddressRange, Pool};
pub(crate) use pools::{address, is_assignable, number};

use crate::credentials::UnixSeconds;
use error::Issues;

/// Reads a configuration, everything that it includes, and the certificates and keys in the folders beside it.
pub fn load(path: &Path) -> Result<Config, Vec<ConfigError>> {
    load_at(path, None)
}

/// As [`load`]; with a time, certificates that a connection needs have to be valid then.
pub fn load_at(path: &Path, now: Option<UnixSeconds>) -> Result<Config, Vec<ConfigError>> {
    let mut issues = Issues::default();
    let root = tree::read_file(path, &mut issues);
    finish(&root, now, issues)
}

/// Reads a configuration from a text, which stands for the file `name`: errors carry that name, and `include`
/// starts from its directory.
pub fn parse_str(name: &str, text: &str) -> Result<Config, Vec<ConfigError>> {
    let mut issues = Issues::default();
    let root = tree::read_text(name, text, &mut issues);
    finish(&root, None, issues)
}

fn finish(
    root: &tree::Section,
    now: Option<UnixSeconds>,
    mut issues: Issues,
) -> Result<Config, Vec<ConfigError>> {
    let config = build::config(root, now, &mut issues);
    if issues.is_empty() { Ok(config) } else { Err(issues.finish()) }
}

#[cfg(test)]
mod tests;
