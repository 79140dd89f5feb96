//! What the documents promise is tried: the configurations in the README load, and fit each other.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

use mobikex::config::{self, Config};

/// The fenced blocks of one language in a Markdown text.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_string()).collect()
}

fn readme() -> Vec<Config> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    blocks(&std::fs::read_to_string(path).unwrap(), "conf")
        .iter()
        .map(|text| config::parse_str("README.md", text).unwrap())
        .collect()
}

#[test]
fn the_two_sites_of_the_readme_fit_each_other() {
    let [branch, hq] = &readme()[..] else { panic!("the README shows two configurations") };
    let (ours, theirs) = (&branch.connections[0], &hq.connections[0]);
    assert_eq!(ours.proposals, theirs.proposals);
    assert_eq!((&ours.local, &ours.remote), (&theirs.remote, &theirs.local));
    assert!(ours.remote_addr().is_some(), "the branch knows where to start");
    assert!(theirs.accepts(ours.remote_addr().unwrap(), "203.0.113.9".parse().unwrap()));
    let (ours, theirs) = (&ours.children[0], &theirs.children[0]);
    assert_eq!(ours.esp_proposals, theirs.esp_proposals);
    assert_eq!((&ours.local_ts, &ours.remote_ts), (&theirs.remote_ts, &theirs.local_ts));
    assert_eq!(branch.secrets[0].secret, hq.secrets[0].secret);
    assert_eq!(branch.secrets[0].secret.len(), 32);
}
