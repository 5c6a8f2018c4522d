//! From archives of tar to the disk of an image: an ext4 file system in a qcow2 file, and what booting it needs out of the
//! same archives.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use umbra_block::{CreateOptions, Disk, Environment, FileSpec, NodeSpec, Registry, Task};
use umbra_ext4::tar::{Archive, Kind};
use umbra_ext4::{Builder, Metadata, Spec, Summary};

use super::recipe::{Recipe, matches};
use crate::guest::{Interrupt, MODULE_NAMES, module_name};

const FORMAT: &str = "qcow2";
/// A kernel or module that is larger is none.
const PART_MAX: u64 = 128 << 20;

/// What booting needs, by name: the kernel, busybox, modules.
#[derive(Debug, Default)]
pub struct Parts {
    /// `boot/vmlinuz-*`.
    pub kernel: Option<Vec<u8>>,
    /// The static busybox.
    pub busybox: Option<Vec<u8>>,
    /// Unpacked modules.
    pub modules: BTreeMap<String, Vec<u8>>,
}

/// A disk that is written like a file.
struct DiskFile {
    disk: Disk,
    at: u64,
}

impl Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(self.at, bytes).map_err(io::Error::other)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush().map_err(io::Error::other)
    }
}

impl Seek for DiskFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(at) => self.at = at,
            SeekFrom::Current(_) | SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(self.at)
    }
}

/// The formats of disks, and files of the host.
pub fn environment() -> Environment {
    let mut registry = Registry::builtin();
    umbra_block_formats::register(&mut registry);
    Environment::new(registry)
}

/// Makes an empty qcow2 image, over `backing` if that is given.
///
/// # Errors
/// It cannot be written.
pub fn create(path: &Path, options: &CreateOptions) -> anyhow::Result<()> {
    let environment = environment();
    let name = path.display().to_string();
    let make = || {
        let storage = environment.opener.create(&FileSpec::file(name.as_str()))?;
        environment.registry.get(FORMAT)?.create(storage, &name, options, &environment, &Task::quiet())
    };
    make().with_context(|| format!("cannot make {name}"))
}

/// Opens an image.
///
/// # Errors
/// It cannot be opened.
pub fn open(path: &Path, format: Option<&str>, writable: bool) -> anyhow::Result<Disk> {
    let spec = NodeSpec::new(path.display().to_string(), format);
    let spec = if writable { spec.writable() } else { spec };
    Disk::open(&environment(), &spec).with_context(|| format!("cannot open {}", path.display()))
}

/// The root file system that is being made.
pub struct Root<'a> {
    builder: Builder<DiskFile>,
    recipe: &'a Recipe,
    /// Its UUID as people write it.
    pub uuid: String,
    /// What was found for booting.
    pub parts: Parts,
    now: i64,
}

impl<'a> Root<'a> {
    /// Begins one in the file `path`.
    ///
    /// # Errors
    /// The file cannot be written; the recipe's size is none of a file system.
    pub fn begin(path: &Path, recipe: &'a Recipe) -> anyhow::Result<Self> {
        let size = recipe.bytes()?;
        create(path, &CreateOptions { size, ..CreateOptions::default() })?;
        let disk = open(path, Some(FORMAT), true)?;
        let mut uuid = [0; 16];
        rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())
            .context("cannot make a UUID")?;
        // Version 4, variant 1 (RFC 9562).
        (uuid[6], uuid[8]) = (uuid[6] & 0x0f | 0x40, uuid[8] & 0x3f | 0x80);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
        let spec = Spec { size, uuid, label: recipe.name.clone(), time: now };
        let builder = Builder::new(DiskFile { disk, at: 0 }, &spec)?;
        Ok(Self { builder, recipe, uuid: written(uuid), parts: Parts::default(), now })
    }

    /// Adds an archive's files.
    ///
    /// # Errors
    /// The archive is not in order, or does not fit; the user ended it.
    pub fn add(&mut self, archive: impl Read, interrupt: &Interrupt) -> anyhow::Result<()> {
        let mut archive = Archive::new(archive);
        while let Some(entry) = archive.next_entry()? {
            interrupt.check()?;
            if self.is_left_out(&entry.path) {
                continue;
            }
            match (&entry.kind, part(&entry.path)) {
                (Kind::File(size), Some(part)) if *size <= PART_MAX => {
                    let mut bytes = Vec::new();
                    archive.read_to_end(&mut bytes).context("cannot read the archive")?;
                    self.builder.entry(&entry, &mut bytes.as_slice())?;
                    self.take(part, bytes)?;
                }
                _ => self.builder.entry(&entry, &mut archive)?,
            }
        }
        Ok(())
    }

    fn is_left_out(&self, path: &[u8]) -> bool {
        let path = String::from_utf8_lossy(path);
        let path = path.trim_start_matches("./").trim_matches('/');
        self.recipe.remove.iter().any(|pattern| {
            let (folder, last) = pattern.rsplit_once('/').unwrap_or(("", pattern));
            let inside = if folder.is_empty() {
                Some(path)
            } else {
                path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'))
            };
            // What is in a folder that is left out is left out too.
            inside.is_some_and(|rest| matches(last, rest.split('/').next().unwrap_or_default()))
        })
    }

    fn take(&mut self, part: Part, bytes: Vec<u8>) -> anyhow::Result<()> {
        match part {
            Part::Kernel => self.parts.kernel = Some(bytes),
            Part::Busybox => self.parts.busybox = Some(bytes),
            Part::Module(name) => {
                let plain = umbra_boot::payload::unpack(&bytes, PART_MAX)
                    .with_context(|| format!("cannot unpack the module {name}"))?;
                self.parts.modules.insert(name, plain);
            }
        }
        Ok(())
    }

    /// Adds what the recipe says itself, and completes the file system.
    ///
    /// # Errors
    /// A path that cannot be; a full file system.
    pub fn finish(mut self) -> anyhow::Result<(Summary, Parts)> {
        let metadata = |mode| Metadata { mode, modified: (self.now, 0), ..Metadata::default() };
        for (path, text) in &self.recipe.files {
            let text = text.replace("@UUID@", &self.uuid);
            let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
            self.builder.file(path.as_bytes(), &metadata(mode), text.len() as u64, &mut text.as_bytes())?;
        }
        for (path, target) in &self.recipe.links {
            self.builder.symlink(path.as_bytes(), &metadata(0o777), target.as_bytes())?;
        }
        let (mut target, summary) = self.builder.finish()?;
        target.flush().context("cannot write the image")?;
        target.disk.close().context("cannot write the image")?;
        Ok((summary, self.parts))
    }
}

/// What a file is for booting.
enum Part {
    Kernel,
    Busybox,
    Module(String),
}

fn part(path: &[u8]) -> Option<Part> {
    let path = std::str::from_utf8(path).ok()?.trim_start_matches("./").trim_start_matches('/');
    if path.starts_with("boot/vmlinuz-") {
        return Some(Part::Kernel);
    }
    if matches!(path, "bin/busybox" | "usr/bin/busybox") {
        return Some(Part::Busybox);
    }
    let name = module_name(path).filter(|name| MODULE_NAMES.contains(name))?;
    Some(Part::Module(name.to_owned()))
}

fn written(uuid: [u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut parts = Vec::new();
    let mut rest = hex.as_str();
    for len in [8, 4, 4, 4, 12] {
        let (part, more) = rest.split_at(len);
        parts.push(part);
        rest = more;
    }
    parts.join("-")
}

/// An archive, unpacked as it is read: gzip, xz and zstd are known by their first bytes.
///
/// # Errors
/// It cannot be read.
pub fn unpacked(mut from: impl Read + 'static) -> anyhow::Result<Box<dyn Read>> {
    let mut head = [0; 6];
    let mut have = 0;
    while have < head.len() {
        match from.read(&mut head[have..]).context("cannot read the archive")? {
            0 => break,
            read => have += read,
        }
    }
    let whole = io::Cursor::new(head[..have].to_vec()).chain(from);
    Ok(match head {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::new(whole).context("cannot unpack the archive")?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            bail!("archives that xz has packed are not read here; unpack it first")
        }
        _ => Box::new(whole),
    })
}
