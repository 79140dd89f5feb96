//! The conformance ledger (`common/specs/ledger.toml`): every requirement names tests that exist or says why it is
//! open, and the page made from it (`common/specs/LEDGER.md`) is current.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

mod page;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The documents, by the beginning of their rows' ids, with the heading on the page.
const DOCUMENTS: [(&str, &str); 5] = [
    ("4555", "RFC 4555: MOBIKE"),
    ("mx", "draft-mglt-ipsec-mm-mobikex-00: MOBIKE-X"),
    ("profile", "The project's profile of MOBIKE-X"),
    ("9611", "RFC 9611: Child SAs for single resources"),
    ("4739", "RFC 4739: several rounds of authentication"),
];
const CRATES: [&str; 3] = ["common", "dataplane", "control"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ledger {
    row: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// The document, the clause and a number within the clause, as in `mx-7.4-3`.
    id: String,
    clause: String,
    level: Level,
    text: String,
    /// The file that carries it, from the top of the workspace.
    module: String,
    /// `CRATE::FUNCTION` of a test, or `cases::NAME` of a case in `scripts/cases`.
    #[serde(default)]
    tests: Vec<String>,
    /// Why there is no test.
    open: Option<String>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "UPPERCASE")]
enum Level {
    Must,
    Should,
    May,
}

fn ledger() -> Vec<Row> {
    toml::from_str::<Ledger>(&page::read("ledger.toml")).unwrap().row
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The names of all functions with a `#[test]` above them in the Rust sources below `dir`.
fn test_functions(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            test_functions(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            tests_in(&std::fs::read_to_string(&path).unwrap(), found);
        }
    }
}

fn tests_in(text: &str, found: &mut BTreeSet<String>) {
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if let Some((name, _)) = line.strip_prefix("fn ").and_then(|rest| rest.split_once('('))
            && marked
        {
            found.insert(name.to_string());
            marked = false;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            marked = false;
        }
    }
}

/// The words of `scripts/cases`, among which are the names of its cases.
fn case_words() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("scripts/cases")).unwrap();
    let inside = |c: char| c.is_ascii_alphanumeric() || "/-".contains(c);
    text.split(|c| !inside(c)).filter(|word| !word.is_empty()).map(str::to_string).collect()
}

/// What is wrong with a row.
fn faults(row: &Row, tests: &BTreeMap<&str, BTreeSet<String>>, cases: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut id = row.id.splitn(3, '-');
    let document = id.next().filter(|document| DOCUMENTS.iter().any(|(known, _)| known == document));
    let number = row.id.rsplit('-').next().and_then(|number| number.parse::<u32>().ok());
    if document.is_none() || id.count() != 2 || number.is_none() {
        faults.push("the id is not DOCUMENT-CLAUSE-NUMBER".into());
    }
    if row.clause.is_empty() || row.text.is_empty() || row.module.is_empty() {
        faults.push("clause, text or module is empty".into());
    }
    if row.tests.is_empty() == row.open.as_ref().is_none_or(String::is_empty) {
        faults.push("it needs either tests, or the reason why it is open".into());
    }
    if row.open.is_none() && !root().join(&row.module).exists() {
        faults.push(format!("there is no {}", row.module));
    }
    for test in &row.tests {
        let known = match test.split_once("::") {
            Some(("cases", name)) => cases.contains(name),
            Some((package, path)) => {
                let function = path.rsplit("::").next().unwrap_or(path);
                tests.get(package).is_some_and(|names| names.contains(function))
            }
            None => false,
        };
        if !known {
            faults.push(format!("there is no test {test}"));
        }
    }
    faults
}

fn sources() -> (BTreeMap<&'static str, BTreeSet<String>>, BTreeSet<String>) {
    let mut tests = BTreeMap::new();
    for package in CRATES {
        let mut found = BTreeSet::new();
        for part in ["src", "tests"] {
            let dir = root().join(package).join(part);
            if dir.exists() {
                test_functions(&dir, &mut found);
            }
        }
        tests.insert(package, found);
    }
    (tests, case_words())
}

#[test]
fn every_requirement_names_tests_that_exist_or_says_why_it_is_open() {
    let (tests, cases) = sources();
    let rows = ledger();
    let mut wrong = Vec::new();
    let mut ids = BTreeSet::new();
    for row in &rows {
        wrong.extend(faults(row, &tests, &cases).into_iter().map(|fault| format!("{}: {fault}", row.id)));
        if !ids.insert(&row.id) {
            wrong.push(format!("{}: the id is taken", row.id));
        }
    }
    assert!(wrong.is_empty(), "common/specs/ledger.toml:\n{}", wrong.join("\n"));
    for (document, _) in DOCUMENTS {
        assert!(rows.iter().any(|row| row.id.starts_with(document)), "no row of {document}");
    }
}

#[test]
fn a_row_that_claims_too_much_is_noticed() {
    let (tests, cases) = sources();
    let good = r#"
        id = "mx-1-1"
        clause = "1"
        level = "MUST"
        text = "text"
        module = "common/tests/ledger.rs"
    "#;
    let faults_of =
        |more: &str| faults(&toml::from_str::<Row>(&format!("{good}{more}")).unwrap(), &tests, &cases);
    let this = "common::ledger::a_row_that_claims_too_much_is_noticed";
    assert_eq!(faults_of(&format!("tests = [\"{this}\", \"cases::rekey/child\"]")), [""; 0]);
    assert_eq!(faults_of("open = \"later\""), [""; 0]);
    // No such function, a function that is no test, a test of another crate, no such case, no crate.
    for name in
        ["common::no_such", "common::case_words", &this.replace("common", "control"), "cases::no/such", "x"]
    {
        assert_eq!(faults_of(&format!("tests = [\"{name}\"]")), [format!("there is no test {name}")]);
    }
    assert_eq!(faults_of("").len(), 1);
    assert_eq!(faults_of("tests = []").len(), 1);
    assert_eq!(faults_of("open = \"\"").len(), 1);
    assert_eq!(faults_of(&format!("open = \"x\"\ntests = [\"{this}\"]")).len(), 1);
    assert!(toml::from_str::<Row>(&good.replace("MUST", "WILL")).is_err());
}

#[test]
fn the_page_is_what_the_ledger_says() {
    let rows = ledger();
    let open = |rows: &[&Row]| rows.iter().filter(|row| row.open.is_some()).count();
    let mut page = String::from(
        "# Conformance ledger\n\nOne row for each requirement, in the project's own words. This page is made from \
         `ledger.toml`.\n\n| document | requirements | shown by tests | open |\n|---|---|---|---|\n",
    );
    let of = |document: &str| -> Vec<&Row> {
        let prefix = format!("{document}-");
        rows.iter().filter(|row| row.id.starts_with(&prefix)).collect()
    };
    for (document, heading) in DOCUMENTS {
        let (all, open) = (of(document).len(), open(&of(document)));
        writeln!(page, "| {heading} | {all} | {} | {open} |", all - open).unwrap();
    }
    for (document, heading) in DOCUMENTS {
        writeln!(page, "\n## {heading}\n\n| id | clause | level | requirement | module | shown by |\n|---|---|---|---|---|---|")
            .unwrap();
        for row in of(document) {
            let shown = match &row.open {
                Some(reason) => format!("open: {reason}"),
                None => row.tests.iter().map(|test| format!("`{test}`")).collect::<Vec<_>>().join(", "),
            };
            let level = format!("{:?}", row.level).to_uppercase();
            let Row { id, clause, text, module, .. } = row;
            writeln!(page, "| {id} | {clause} | {level} | {text} | `{module}` | {shown} |").unwrap();
        }
    }
    page::compare("LEDGER.md", &page);
}
