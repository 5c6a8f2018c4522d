//! What a program or a kernel module needs beside itself.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The shared libraries of `program`, with `folders` searched first; each as (path in the target, path here).
///
/// The loader's own list is asked for (`ldd`), since it follows the same rules as at run time.
pub(crate) fn shared_libraries(program: &Path, folders: &[PathBuf]) -> Result<Vec<(PathBuf, PathBuf)>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LD_LIBRARY_PATH", std::env::join_paths(folders)?)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    if text.contains("not a dynamic executable") || words.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    parse_ldd(&text).with_context(|| format!("libraries of {}", program.display()))
}

/// Reads `name => path (address)` and `/path/to/loader (address)` lines.
pub(crate) fn parse_ldd(text: &str) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        let (name, path) = match line.split_once(" => ") {
            Some((name, path)) => (name, path),
            None => ("", line),
        };
        if path.starts_with("not found") {
            bail!("`{name}` is missing");
        }
        let path = path.split(" (").next().unwrap_or(path);
        if path.starts_with('/') {
            // The loader is named by its full path in the program; libraries are found in a folder of ours.
            let target = if name.is_empty() { PathBuf::from(path) } else { Path::new("/lib").join(name) };
            libraries.push((target, PathBuf::from(path)));
        }
    }
    Ok(libraries)
}

/// A kernel module ready to be loaded, with those that it needs before it.
#[derive(Debug)]
pub struct Module {
    /// Name of its file without folder and endings.
    pub name: String,
    /// Uncompressed image.
    pub bytes: Vec<u8>,
}

/// Reads the modules `names` of the kernel whose modules are below `folder`, and their dependencies before them.
///
/// A name that is neither a module nor built in is an error.
pub(crate) fn modules(folder: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = Vec::new();
    list_modules(folder, &mut files)?;
    let builtin = std::fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let builtin: BTreeSet<String> = builtin.lines().map(|line| module_name(Path::new(line))).collect();
    let mut loaded = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        add_module(name, &files, &builtin, &mut seen, &mut loaded)?;
    }
    Ok(loaded)
}

fn add_module(
    name: &str,
    files: &[PathBuf],
    builtin: &BTreeSet<String>,
    seen: &mut BTreeSet<String>,
    loaded: &mut Vec<Module>,
) -> Result<()> {
    let name = name.replace('-', "_");
    if builtin.contains(&name) || !seen.insert(name.clone()) {
        return Ok(());
    }
    let path = files
        .iter()
        .find(|path| module_name(path) == name)
        .with_context(|| format!("this kernel has no module {name}"))?;
    let bytes = read_module(path)?;
    for needed in module_depends(&bytes) {
        add_module(&needed, files, builtin, seen, loaded)?;
    }
    loaded.push(Module { name, bytes });
    Ok(())
}

fn list_modules(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list_modules(&entry.path(), files)?;
        } else if entry.file_name().to_string_lossy().contains(".ko") {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// The kernel's name for a module file: no folder, no endings, underscores.
fn module_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if path.extension().is_some_and(|ending| ending == "xz") {
        let mut plain = Vec::new();
        liblzma::read::XzDecoder::new(bytes.as_slice())
            .read_to_end(&mut plain)
            .with_context(|| format!("cannot unpack {}", path.display()))?;
        return Ok(plain);
    }
    Ok(bytes)
}

/// The `depends=` entry of a module's `.modinfo` section: names, comma-separated, ended by a zero byte.
pub(crate) fn module_depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
