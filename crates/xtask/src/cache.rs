//! The folder that what tests need is kept in, and scratch folders inside it.
//!
//! `$UMBRA_TEST_CACHE`, else `test-cache` in cargo's target folder. Everything below it can be deleted at any time;
//! `cargo xtask deps` makes it anew.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// How the names of folders for sockets begin.
const SOCKETS: &str = "umbra-test-";

/// The workspace that this program was built from.
pub fn workspace() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map_or(here.clone(), PathBuf::from)
}

/// Cargo's target folder.
pub fn target_folder() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The cache folder; it need not exist yet.
pub fn folder() -> PathBuf {
    std::env::var_os("UMBRA_TEST_CACHE").map_or_else(|| target_folder().join("test-cache"), PathBuf::from)
}

/// A folder for one run's files, deleted when the value is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty folder in the cache.
    pub fn new() -> Result<Scratch> {
        static CLEAN: Once = Once::new();
        CLEAN.call_once(|| remove_stale(&folder().join("scratch"), ""));
        Self::at(folder().join("scratch").join(unique()))
    }

    /// Makes an empty folder with a short path that only this user may enter, for sockets.
    pub fn for_sockets() -> Result<Scratch> {
        static CLEAN: Once = Once::new();
        CLEAN.call_once(|| remove_stale(&std::env::temp_dir(), SOCKETS));
        let scratch = Self::at(std::env::temp_dir().join(format!("{SOCKETS}{}", unique())))?;
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o700))?;
        Ok(scratch)
    }

    fn at(path: PathBuf) -> Result<Scratch> {
        if path.exists() {
            // Left by an earlier process of the same number.
            std::fs::remove_dir_all(&path).with_context(|| format!("cannot empty {}", path.display()))?;
        }
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it being gone; the next user of the name empties it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Removes what killed processes have left: folders `PREFIX PID-NUMBER` of processes that are no more.
fn remove_stale(folder: &Path, prefix: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let Some((process, number)) = name.split_once('-') else { continue };
        let is_ours = [process, number].iter().all(|part| part.parse::<u32>().is_ok());
        if is_ours && !Path::new("/proc").join(process).exists() {
            // What cannot be removed is somebody else's, or is tried again next time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A name that no other scratch folder of a living process has.
fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Writes a whole file so that it is either there complete or not at all, and leaves an equal one alone.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() == bytes.len() as u64)
        && std::fs::read(path).is_ok_and(|old| old == bytes)
    {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    std::fs::write(&partial, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("cannot rename to {}", path.display()))
}

#[cfg(test)]
#[path = "cache_test.rs"]
mod cache_test;
