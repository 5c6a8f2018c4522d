//! Initramfs images: a small tree in memory, written as one uncompressed newc archive.
//!
//! Uncompressed on purpose: the loader copies it at full speed, while unpacking would run at the guest's. The kernel
//! takes several archives one after another, so a run's own files are appended to a prepared image. Authority: the
//! kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use umbra_boot::cpio::Archive;

use crate::elf;

/// The tree of an initramfs under construction.
#[derive(Debug, Clone, Default)]
pub struct Initramfs {
    nodes: BTreeMap<String, Node>,
}

#[derive(Debug, Clone)]
enum Node {
    Folder,
    File { executable: bool, bytes: Vec<u8> },
    Link(String),
}

impl Initramfs {
    /// An empty tree.
    pub fn new() -> Initramfs {
        Initramfs::default()
    }

    /// Adds a folder. Those that a path needs are made without being asked for.
    pub fn folder(&mut self, path: &str) {
        self.insert(path, Node::Folder);
    }

    /// Adds a file with these contents.
    pub fn file(&mut self, path: &str, executable: bool, bytes: impl Into<Vec<u8>>) {
        self.insert(path, Node::File { executable, bytes: bytes.into() });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.insert(path, Node::Link(target.to_owned()));
    }

    fn insert(&mut self, path: &str, node: Node) {
        self.nodes.insert(path.trim_matches('/').to_owned(), node);
    }

    /// Copies a file of this machine, executable where it is.
    pub fn copy(&mut self, from: &Path, to: &str) -> Result<()> {
        let bytes = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let executable = std::fs::metadata(from)?.permissions().mode() & 0o100 != 0;
        self.file(to, executable, bytes);
        Ok(())
    }

    /// Copies a whole folder of this machine to the root: its folders, files and symbolic links, and nothing else of it.
    pub fn tree(&mut self, folder: &Path) -> Result<()> {
        self.branch(folder, "")
    }

    fn branch(&mut self, folder: &Path, at: &str) -> Result<()> {
        let what = || format!("cannot copy {}", folder.display());
        for entry in std::fs::read_dir(folder).with_context(what)? {
            let entry = entry.with_context(what)?;
            let (kind, path) = (entry.file_type()?, entry.path());
            let target = format!("{at}/{}", entry.file_name().to_string_lossy());
            if kind.is_symlink() {
                self.link(&target, &std::fs::read_link(&path).with_context(what)?.to_string_lossy());
            } else if kind.is_dir() {
                self.folder(&target);
                self.branch(&path, &target)?;
            } else if kind.is_file() {
                self.copy(&path, &target)?;
            }
        }
        Ok(())
    }

    /// Copies a program to `/bin/NAME` together with the shared libraries that it needs, `folders` searched first.
    pub fn program(&mut self, program: &Path, name: &str, folders: &[PathBuf]) -> Result<()> {
        self.copy(program, &format!("bin/{name}"))?;
        for (target, source) in elf::shared_libraries(program, folders)? {
            self.copy(&source, &target.to_string_lossy())?;
        }
        Ok(())
    }

    /// Installs busybox with a link for each of its applets, and the folders that every image has.
    pub fn busybox(&mut self, busybox: &Path) -> Result<()> {
        for folder in ["dev", "proc", "sys", "tmp", "run", "root", "etc"] {
            self.folder(folder);
        }
        self.copy(busybox, "bin/busybox")?;
        let output = Command::new(busybox).arg("--list").output().context("cannot run busybox")?;
        if !output.status.success() {
            bail!("busybox --list failed");
        }
        let applets = String::from_utf8_lossy(&output.stdout);
        for applet in applets.lines().filter(|applet| *applet != "busybox") {
            self.link(&format!("bin/{applet}"), "busybox");
        }
        Ok(())
    }

    /// Installs modules, and their order in `/etc/modules`.
    pub fn modules(&mut self, modules: Vec<elf::Module>) {
        let order: String = modules.iter().map(|module| format!("{}\n", module.name)).collect();
        self.file("etc/modules", false, order);
        for module in modules {
            self.file(&format!("lib/modules/{}.ko", module.name), false, module.bytes);
        }
    }

    /// The archive.
    pub fn to_cpio(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        for (path, node) in &self.nodes {
            archive = match node {
                Node::Folder => archive.dir(path, 0o755),
                Node::File { executable, bytes } => {
                    archive.file(path, if *executable { 0o755 } else { 0o644 }, bytes.as_slice())
                }
                Node::Link(target) => archive.symlink(path, target),
            };
        }
        archive.finish().context("cannot write the initramfs")
    }
}
