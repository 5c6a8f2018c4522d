//! A dependency without its line, and a line without its dependency, are found.

use std::collections::BTreeSet;

use super::documents::check;

const MANIFEST: &str = "[workspace]\n[workspace.dependencies]\numbra-x86 = { path = \"crates/x86\" }\n\n\
    anyhow = \"1\"\nclap = { version = \"4\" }\n\n[workspace.lints.rust]\nmissing_docs = \"warn\"\n";

const COMPLETE: &str = "| name | why |\n|---|---|\n| `anyhow` | x |\n| `clap` | y |\n";

#[test]
fn complete_is_fine() {
    assert_eq!(check(MANIFEST, COMPLETE, &BTreeSet::from(["anyhow", "clap", "other"])), []);
}

#[test]
fn both_directions_are_found() {
    let findings = check(MANIFEST, "| `anyhow` | x |\n| `gone` | y |\n", &BTreeSet::from(["anyhow", "clap"]));
    assert_eq!(findings.len(), 2);
    assert!(findings[0].what.contains("`clap` has no line") && findings[0].line == 6, "{}", findings[0]);
    assert!(findings[1].what.contains("`gone`") && findings[1].line == 2, "{}", findings[1]);
}

#[test]
fn what_no_crate_uses_is_found() {
    let findings = check(MANIFEST, COMPLETE, &BTreeSet::from(["clap"]));
    assert_eq!(findings.len(), 1);
    assert!(findings[0].what.contains("no crate uses `anyhow`"), "{}", findings[0]);
}
