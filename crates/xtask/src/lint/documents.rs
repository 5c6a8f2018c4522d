//! `docs/dependencies.md` has one line for every third-party dependency of the workspace, and for nothing else; and
//! some crate uses each of them.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;

const MANIFEST: &str = "Cargo.toml";
const DOCUMENT: &str = "docs/dependencies.md";

pub(super) fn run(root: &Path) -> Result<Vec<Finding>> {
    let read =
        |name: &str| std::fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"));
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(root)
        .no_deps()
        .exec()
        .context("cannot read cargo metadata")?;
    let packages = metadata.workspace_packages();
    let used =
        packages.iter().flat_map(|package| &package.dependencies).map(|dependency| dependency.name.as_str());
    Ok(check(&read(MANIFEST)?, &read(DOCUMENT)?, &used.collect()))
}

/// Compares the manifest's `[workspace.dependencies]` with the table rows of the document and with what is used.
pub(super) fn check(manifest: &str, document: &str, in_use: &BTreeSet<&str>) -> Vec<Finding> {
    let used = dependencies(manifest);
    let told = rows(document);
    let untold =
        used.iter().filter(|(name, _)| !told.iter().any(|(row, _)| row == name)).map(|(name, line)| {
            Finding {
                file: MANIFEST.into(),
                line: *line,
                what: format!("dependency `{name}` has no line in {DOCUMENT}"),
                cure: "say there why it was chosen, over what, and of which day the release is".into(),
            }
        });
    let unused =
        told.iter().filter(|(row, _)| !used.iter().any(|(name, _)| name == row)).map(|(row, line)| Finding {
            file: DOCUMENT.into(),
            line: *line,
            what: format!("`{row}` is no dependency of the workspace"),
            cure: "delete its line".into(),
        });
    let idle = used.iter().filter(|(name, _)| !in_use.contains(name.as_str())).map(|(name, line)| Finding {
        file: MANIFEST.into(),
        line: *line,
        what: format!("no crate uses `{name}`"),
        cure: "delete the dependency and its line in the document".into(),
    });
    untold.chain(unused).chain(idle).collect()
}

/// Names and lines of the third-party entries of `[workspace.dependencies]`.
fn dependencies(manifest: &str) -> Vec<(String, usize)> {
    let mut inside = false;
    let mut names = Vec::new();
    for (index, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            inside = line.trim() == "[workspace.dependencies]";
        } else if inside
            && !line.starts_with([' ', '#'])
            && let Some((name, _)) = line.split_once('=')
            && !name.starts_with("umbra-")
            && !line.contains("path =")
        {
            names.push((name.trim().to_owned(), index + 1));
        }
    }
    names
}

/// Names and lines of the table rows, whose first cell is a name in backquotes.
fn rows(document: &str) -> Vec<(String, usize)> {
    let name = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    document.lines().enumerate().filter_map(|(index, line)| Some((name(line)?, index + 1))).collect()
}
