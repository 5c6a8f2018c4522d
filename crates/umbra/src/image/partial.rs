//! Files of an image that is being made: they are removed where that fails, and what was there before stays until the new
//! image's first byte is written.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use umbra_block::{
    Access, FileSpec, FileStorageSpec, IoBuf, IoSrc, NodeSpec, Opener, Result as BlockResult, Run, Storage,
    StorageInfo,
};

use super::files::is_export;

/// Bytes by which a format is known.
const HEAD: u64 = umbra_block::Registry::PROBE_BYTES as u64;

/// Files that are not complete yet. They are removed, unless they are kept.
#[derive(Debug, Default)]
pub struct Partial {
    made: Made,
}

type Made = Arc<Mutex<Vec<PathBuf>>>;

impl Partial {
    /// Makes files as `files` does, and remembers them.
    pub fn recording(&self, files: Arc<dyn Opener>) -> Arc<dyn Opener> {
        Arc::new(Recording { files, made: self.made.clone() })
    }

    /// They are complete.
    pub fn keep(self) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        for path in self.made.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A device stays; and a file that somebody else has removed meanwhile is gone as it should be.
            if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file()) {
                let _ = std::fs::remove_file(&path);
            }
        }
    }
}

/// Remembers which files were made.
#[derive(Debug)]
struct Recording {
    files: Arc<dyn Opener>,
    made: Made,
}

impl Opener for Recording {
    fn open(&self, file: &FileSpec, spec: &FileStorageSpec) -> BlockResult<Arc<dyn Storage>> {
        self.files.open(file, spec)
    }

    fn node_of_name(&self, name: &str) -> BlockResult<Option<NodeSpec>> {
        self.files.node_of_name(name)
    }

    fn create(&self, file: &FileSpec) -> BlockResult<Arc<dyn Storage>> {
        let replaced = |storage, file| -> Arc<dyn Storage> {
            Arc::new(Replaced { storage, file, made: self.made.clone(), begun: Mutex::default() })
        };
        if is_export(file) {
            return Ok(replaced(self.files.create(file)?, None));
        }
        let path = Path::new(&file.name);
        if std::fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
            let storage = self.files.open(file, &FileStorageSpec::new(Access::ReadWrite))?;
            return Ok(replaced(storage, Some(real(path))));
        }
        let storage = self.files.create(file)?;
        note(&self.made, real(path));
        Ok(storage)
    }
}

/// The file that a name means, which may be a link.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn note(made: &Made, path: PathBuf) {
    made.lock().unwrap_or_else(PoisonError::into_inner).push(path);
}

/// A file that was there before: it loses what it has when the first of the new image is written, so that options which
/// the format refuses cost nobody an image.
#[derive(Debug)]
struct Replaced {
    storage: Arc<dyn Storage>,
    /// Its path; none for what is no file of the host, which stays as large as it is.
    file: Option<PathBuf>,
    made: Made,
    begun: Mutex<bool>,
}

impl Replaced {
    fn begun(&self) -> BlockResult<&dyn Storage> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if !*begun {
            match &self.file {
                Some(path) => {
                    self.storage.set_len(0)?;
                    note(&self.made, path.clone());
                }
                // What it was is not to be found in it any more.
                None => self.storage.write_zeroes(0, self.storage.len()?.min(HEAD), false)?,
            }
            *begun = true;
        }
        Ok(&*self.storage)
    }
}

impl Storage for Replaced {
    fn readv(&self, offset: u64, bufs: &[IoBuf<'_>]) -> BlockResult<()> {
        self.begun()?.readv(offset, bufs)
    }

    fn writev(&self, offset: u64, srcs: &[IoSrc<'_>]) -> BlockResult<()> {
        self.begun()?.writev(offset, srcs)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> BlockResult<()> {
        self.begun()?.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> BlockResult<()> {
        self.begun()?.discard(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> BlockResult<()> {
        self.begun()?.allocate(offset, len)
    }

    fn len(&self) -> BlockResult<u64> {
        self.begun()?.len()
    }

    fn set_len(&self, len: u64) -> BlockResult<()> {
        self.begun()?.set_len(len)
    }

    fn flush(&self) -> BlockResult<()> {
        self.begun()?.flush()
    }

    fn run(&self, offset: u64, len: u64) -> BlockResult<Run> {
        self.begun()?.run(offset, len)
    }

    fn info(&self) -> StorageInfo {
        self.storage.info()
    }
}
