//! `umbra cp`: files and folders to a guest and from it.
//!
//! The agent copies files itself. For a folder it runs the guest's `tar`; what comes from there is unpacked here as what a
//! hostile guest may have made: nothing lands outside of the folder that the user named.

use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use umbra_agent::protocol::step;
use umbra_agent::{Command, Output};

use super::args::{CopyArgs, Place};
use super::connect;

/// Unpacks into a folder: into `$1/$2` where `$1` is there, else into `$1`.
const UNPACK: &str = r#"if [ -d "$1" ]; then set -- "$1/$2"; fi; mkdir -p "$1" && exec tar -xf - -C "$1""#;
/// What the guest says while it fails, as far as it is shown.
const SAID_MAX: usize = 1000;

/// `umbra cp`.
///
/// # Errors
/// There is no such machine, file or folder.
pub fn copy(args: &CopyArgs) -> anyhow::Result<()> {
    match (&args.from, &args.to) {
        (Place::Host(from), Place::Guest(name, to)) => to_guest(Path::new(from), name, to, args.wait),
        (Place::Guest(name, from), Place::Host(to)) => from_guest(name, from, Path::new(to), args.wait),
        _ => bail!(
            "one of the two is to be a path of a guest, NAME:PATH, and the other one a path of this host"
        ),
    }
}

fn name_of(path: &Path) -> anyhow::Result<String> {
    let path = fs::canonicalize(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

fn to_guest(from: &Path, machine: &str, to: &str, wait: u64) -> anyhow::Result<()> {
    let name = name_of(from)?;
    let agent = connect(machine, wait)?;
    let mut file = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    let meta = file.metadata()?;
    let failed = || format!("cannot copy {} to {machine}:{to}", from.display());
    if !meta.is_dir() {
        agent.write_file(to, &name, meta.permissions().mode() & 0o777, &mut file).with_context(failed)?;
        return Ok(());
    }
    let words = ["sh", "-c", UNPACK, "sh", to, &name].map(str::to_owned).to_vec();
    let running = Command { arguments: words, ..Command::default() }.start(agent).with_context(failed)?;
    let input = running.input();
    let folder = from.to_owned();
    let packing = std::thread::spawn(move || -> io::Result<()> {
        struct Pass(umbra_agent::Input);
        impl Write for Pass {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.write(bytes).map(|()| bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut archive = tar::Builder::new(io::BufWriter::with_capacity(32 << 10, Pass(input.clone())));
        archive.follow_symlinks(false);
        archive.append_dir_all(".", folder)?;
        archive.into_inner()?.flush()?;
        input.end()
    });
    let mut said = Vec::new();
    let code = running.finish(|output| {
        let (Output::Out(bytes) | Output::Error(bytes)) = output;
        said.extend_from_slice(&bytes[..bytes.len().min(SAID_MAX.saturating_sub(said.len()))]);
    });
    let packed = packing.join().unwrap_or_else(|_| Err(io::Error::other("internal error")));
    finished(code.with_context(failed)?, &said, "a shell and tar").with_context(failed)?;
    packed.with_context(|| format!("cannot read {}", from.display()))
}

/// Whether the guest's program has done it.
fn finished(code: u8, said: &[u8], needed: &str) -> anyhow::Result<()> {
    match code {
        0 => Ok(()),
        127 => bail!("the guest needs {needed} for folders"),
        code => {
            let said = String::from_utf8_lossy(said);
            bail!("the guest's tar ended with code {code}: {}", said.trim().escape_debug())
        }
    }
}

fn from_guest(machine: &str, from: &str, to: &Path, wait: u64) -> anyhow::Result<()> {
    let failed = || format!("cannot copy {machine}:{from} to {}", to.display());
    let name = Path::new(from).file_name().map(ToOwned::to_owned);
    let inside = || -> anyhow::Result<PathBuf> {
        let name = name.as_ref().with_context(|| format!("{from} has no name; give one for the copy"))?;
        Ok(if to.is_dir() { to.join(name) } else { to.to_owned() })
    };
    let target = inside()?;
    let mut incomplete = None;
    let copied = connect(machine, wait)?.read_file(from, |mode, _| {
        let part = target.with_file_name(format!(
            ".{}.{}.part",
            target.file_name().unwrap_or_default().to_string_lossy(),
            std::process::id()
        ));
        let file = File::options().write(true).create_new(true).mode(mode & 0o777).open(&part)?;
        incomplete = Some(part);
        Ok(file)
    });
    match copied {
        Ok(_) => {
            let part = incomplete.context("the guest sent nothing")?;
            fs::rename(&part, &target).with_context(failed)
        }
        Err(error) if error.step() == Some(step::IS_FOLDER) => {
            folder_from_guest(machine, from, &target, wait).with_context(failed)
        }
        Err(error) => {
            if let Some(part) = incomplete {
                // It is not whole. If it cannot be removed, its name tells.
                let _ = fs::remove_file(part);
            }
            Err(anyhow::Error::new(error).context(failed()))
        }
    }
}

fn folder_from_guest(machine: &str, from: &str, target: &Path, wait: u64) -> anyhow::Result<()> {
    let words = ["tar", "-cf", "-", "-C", from, "."].map(str::to_owned).to_vec();
    let started = Command { arguments: words, ..Command::default() }.start(connect(machine, wait)?);
    let running = match started {
        Err(error) if error.step() == Some(step::PROGRAM) => bail!("the guest needs tar for folders"),
        other => other?,
    };
    // It reads nothing; if it has ended already, all the better.
    let _ = running.input().end();
    fs::create_dir_all(target).with_context(|| format!("cannot make {}", target.display()))?;
    let (archive, packed): (PipeReader, PipeWriter) = io::pipe()?;
    let folder = target.to_owned();
    let unpacking = std::thread::spawn(move || -> io::Result<()> {
        let mut archive = tar::Archive::new(io::BufReader::with_capacity(32 << 10, archive));
        archive.unpack(folder)?;
        // The end of an archive is padded.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
    });
    let (mut packed, mut said) = (Some(packed), Vec::new());
    let code = running.finish(|output| match output {
        Output::Out(bytes) => {
            // Who unpacks tells why it does not any more.
            if packed.as_mut().is_some_and(|packed| packed.write_all(bytes).is_err()) {
                packed = None;
            }
        }
        Output::Error(bytes) => {
            said.extend_from_slice(&bytes[..bytes.len().min(SAID_MAX.saturating_sub(said.len()))]);
        }
    });
    drop(packed);
    let unpacked = unpacking.join().unwrap_or_else(|_| Err(io::Error::other("internal error")));
    unpacked.context("cannot unpack what the guest sends")?;
    finished(code?, &said, "tar")
}
