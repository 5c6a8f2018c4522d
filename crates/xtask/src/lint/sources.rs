//! The Rust source files of the workspace, and what the lints need to know of a file's text.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A source file of the workspace.
#[derive(Debug)]
pub(super) struct Source {
    /// Path relative to the workspace.
    pub path: PathBuf,
    /// The whole text.
    pub text: String,
}

/// Reads every `.rs` file below `crates/`, in the order of their paths.
pub(super) fn read_all(root: &Path) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    collect(&root.join("crates"), &mut paths)?;
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Source { path: path.strip_prefix(root).unwrap_or(&path).to_path_buf(), text })
        })
        .collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, paths)?;
            }
        } else if name.ends_with(".rs") {
            paths.push(path);
        }
    }
    Ok(())
}

/// The crate folder that a path below `crates/` belongs to.
pub(super) fn crate_of(path: &Path) -> Option<&str> {
    let mut parts = path.components().map(|part| part.as_os_str());
    (parts.next()? == "crates").then_some(())?;
    parts.next()?.to_str()
}
