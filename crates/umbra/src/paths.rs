//! Where things are kept: XDG base directories.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};

/// The longest path that a Unix socket may have (`sockaddr_un`), without the ending zero.
pub const SOCKET_PATH_MAX: usize = 107;

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
    make_private(&folder)
        .with_context(|| format!("cannot make the folder of control sockets {}", folder.display()))?;
    let meta = fs::symlink_metadata(&folder)?;
    if !meta.is_dir() || meta.uid() != uid || meta.mode() & 0o022 != 0 {
        bail!(
            "{} is not a folder that only you can write to; remove it or set XDG_RUNTIME_DIR",
            folder.display()
        );
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

/// A machine's name, taken for as long as this lives.
pub struct TakenName {
    path: PathBuf,
    /// Locked; the kernel unlocks it however we end.
    _file: File,
}

impl Drop for TakenName {
    fn drop(&mut self) {
        // Whoever opened it in the meantime holds a file without a name, and finds out: see `take_name`.
        let _ = fs::remove_file(&self.path);
    }
}

/// How long [`claim_name`] tries: others hold a name for the moment in which they look whether its machine lives.
const CLAIM_TIME: Duration = Duration::from_millis(200);

/// Takes the name of a machine that is to be started; `None` if a running machine has it.
///
/// # Errors
/// The lock file cannot be made.
pub fn claim_name(name: &str) -> anyhow::Result<Option<TakenName>> {
    let begun = Instant::now();
    loop {
        match take_name(name)? {
            None if begun.elapsed() < CLAIM_TIME => std::thread::sleep(Duration::from_millis(10)),
            other => return Ok(other),
        }
    }
}

/// Takes the name of a machine; `None` if a running machine has it.
///
/// # Errors
/// The lock file cannot be made.
pub fn take_name(name: &str) -> anyhow::Result<Option<TakenName>> {
    let path = control_socket(name)?.with_extension("lock");
    loop {
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        if flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        // The file may have lost its name between opening and locking: then the lock protects nothing.
        let named = fs::metadata(&path).is_ok_and(|m| file.metadata().is_ok_and(|f| f.ino() == m.ino()));
        if named {
            return Ok(Some(TakenName { path, _file: file }));
        }
    }
}

/// The folder of what machines leave: `$XDG_STATE_HOME/umbra`, or `~/.local/state/umbra`. It may not be there.
///
/// # Errors
/// There is no home.
pub fn state_home() -> anyhow::Result<PathBuf> {
    let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|h| h.join(".local/state")));
    Ok(base.context("neither XDG_STATE_HOME nor HOME is set; set one")?.join("umbra"))
}

/// Where machine `name` keeps its record, its log and its own disks. It may not be there.
///
/// # Errors
/// There is no home.
pub fn state_path(name: &str) -> anyhow::Result<PathBuf> {
    Ok(state_home()?.join(name))
}

/// The same, made if it is not there. A machine that has it when it starts leaves a record there when it ends, and
/// everything in it stays until `umbra rm`, or until the machine's end with `--rm`. Whoever has the machine's name
/// ([`take_name`]) may write to it.
///
/// # Errors
/// There is no home, or it cannot be made.
pub fn state_folder(name: &str) -> anyhow::Result<PathBuf> {
    let folder = state_path(name)?;
    make_private(&folder)
        .with_context(|| format!("cannot make the machine's folder {}", folder.display()))?;
    Ok(folder)
}

/// The cache folder: `$XDG_CACHE_HOME/umbra`, or `~/.cache/umbra`.
///
/// # Errors
/// There is no home, or it cannot be made.
pub fn cache_folder() -> anyhow::Result<PathBuf> {
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|h| h.join(".cache")));
    let folder = base.context("neither XDG_CACHE_HOME nor HOME is set; set one")?.join("umbra");
    fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the cache folder {}", folder.display()))?;
    Ok(folder)
}
