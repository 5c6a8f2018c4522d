//! Where things are kept: XDG base directories.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The longest path that a Unix socket may have (`sockaddr_un`), without the ending zero.
const SOCKET_PATH_MAX: usize = 107;

fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute())
}

/// The folder of control sockets: `$XDG_RUNTIME_DIR/umbra`, or a private folder in the temporary directory where there is none.
///
/// # Errors
/// It cannot be made, or belongs to somebody else.
pub fn runtime_folder() -> anyhow::Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let folder = match absolute("XDG_RUNTIME_DIR") {
        Some(base) => base.join("umbra"),
        None => std::env::temp_dir().join(format!("umbra-{uid}")),
    };
    make_private(&folder).with_context(|| format!("cannot make the folder of control sockets {}", folder.display()))?;
    let meta = fs::symlink_metadata(&folder)?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
        bail!("{} is not a folder that only you can write to; remove it or set XDG_RUNTIME_DIR", folder.display());
    }
    Ok(folder)
}

fn make_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The control socket of machine `name`.
///
/// # Errors
/// As [`runtime_folder`]; a path that is too long for a socket.
pub fn control_socket(name: &str) -> anyhow::Result<PathBuf> {
    let path = runtime_folder()?.join(format!("{name}.sock"));
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        bail!("the path {} is too long for a socket; use a shorter name or XDG_RUNTIME_DIR", path.display());
    }
    Ok(path)
}

/// The cache folder: `$XDG_CACHE_HOME/umbra`, or `~/.cache/umbra`.
///
/// # Errors
/// There is no home, or it cannot be made.
pub fn cache_folder() -> anyhow::Result<PathBuf> {
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|h| h.join(".cache")));
    let folder = base.context("neither XDG_CACHE_HOME nor HOME is set; set one")?.join("umbra");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the cache folder {}", folder.display()))?;
    Ok(folder)
}
