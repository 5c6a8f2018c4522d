//! From what the user calls an image to an open disk: file names, `json:` names, options of a node, cache modes.

use std::io::Read;
use std::sync::Arc;

use umbra_block::{
    Access, BackingSpec, DetectZeroes, Discard, Disk, Environment, Error, FileHandle, FileSpec,
    FileStorageSpec, IoBuf, IoSrc, LockMode, NodeSpec, Opener, Options, Result as BlockResult, Run, Storage,
    StorageInfo,
};

use super::failure::{Doing, Failure, Outcome};
use super::getopt::Parsed;
use super::json_read::{self, Value};
use super::{Tool, keyval, tell};

/// A cache mode, as `-t` and `-T` name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cache {
    /// Around the host's page cache.
    pub direct: bool,
    /// Nothing is made durable.
    pub no_flush: bool,
}

impl Cache {
    /// From its name. `role` stands in the message: "cache option" or "source cache option".
    pub fn parse(text: Option<&str>, role: &str) -> Outcome<Cache> {
        match text {
            None | Some("writeback" | "writethrough") => Ok(Cache::default()),
            Some("none" | "off" | "directsync") => Ok(Cache { direct: true, no_flush: false }),
            Some("unsafe") => Ok(Cache { direct: false, no_flush: true }),
            Some(other) => Err(Failure::new(format!("Invalid {role}: {other}"))),
        }
    }
}

/// How to open an image.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// What the user calls it.
    pub name: &'a str,
    /// Its format.
    pub format: Option<&'a str>,
    /// The name is options.
    pub image_opts: bool,
    /// It is written.
    pub writable: bool,
    /// Without locks.
    pub share: bool,
    /// Cache mode.
    pub cache: Cache,
    /// Files that the image names are opened.
    pub implicit: bool,
    /// Only what it says of itself.
    pub metadata_only: bool,
    /// Options for a backing file are refused: none is opened.
    pub alone: bool,
    /// For `check`.
    pub for_check: bool,
}

impl<'a> Want<'a> {
    /// For reading, with nothing special.
    pub fn plain(name: &'a str, format: Option<&'a str>) -> Want<'a> {
        Want {
            name,
            format,
            image_opts: false,
            writable: false,
            share: false,
            cache: Cache::default(),
            implicit: true,
            metadata_only: false,
            alone: false,
            for_check: false,
        }
    }

    /// As the options of the command line say.
    pub fn new(parsed: &'a Parsed, name: &'a str) -> Outcome<Want<'a>> {
        let (format, image_opts) = (parsed.last("format"), parsed.has("image-opts"));
        if format.is_some() && image_opts {
            return Err(Failure::new("--image-opts and --format are mutually exclusive"));
        }
        Ok(Want {
            image_opts,
            share: parsed.has("force-share"),
            cache: Cache::parse(parsed.last("cache"), "cache option")?,
            implicit: !parsed.has("no-implicit-backing"),
            ..Want::plain(name, format)
        })
    }

    /// For writing.
    #[must_use]
    pub fn writable(self) -> Want<'a> {
        Want { writable: true, ..self }
    }
}

impl Tool {
    /// How to open an image.
    pub fn spec(&self, want: &Want<'_>) -> Outcome<NodeSpec> {
        self.spec_plain(want).doing(|| format!("Could not open '{}'", want.name))
    }

    /// The same, with what is wrong alone.
    pub fn spec_plain(&self, want: &Want<'_>) -> Outcome<NodeSpec> {
        let json = want.name.strip_prefix("json:");
        let node = |options: Options| {
            if let Some(driver) = options.get("driver") {
                self.environment.registry.get(driver)?;
            }
            check_node_names(&options)?;
            if want.alone {
                refuse_backing(&options)?;
            }
            from_options(options)
        };
        let mut spec = if want.image_opts {
            let options = keyval::options(want.name).map_err(Failure::new)?;
            self.warn_of_empty_backing(options.iter());
            node(options)?
        } else if let Some(text) = json {
            let value = json_read::read(text)
                .map_err(|error| Failure::new(format!("Could not parse the JSON options: {error}")))?;
            if let Value::Map(members) = &value {
                let texts = members.iter().filter_map(|(name, value)| match value {
                    Value::Text(text) => Some((name.as_str(), text.as_str())),
                    _ => None,
                });
                self.warn_of_empty_backing(texts);
            }
            node(keyval::flatten(&value).map_err(Failure::new)?)?
        } else {
            NodeSpec { file: file_spec(want.name), ..NodeSpec::new(want.name, None) }
        };
        if let Some(format) = want.format {
            spec.format = Some(format.to_owned());
        }
        if let Some(format) = &spec.format {
            self.environment.registry.get(format)?;
        }
        if want.writable {
            spec.access = Access::ReadWrite;
        }
        if want.share {
            if want.writable {
                return Err(Failure::new("force-share=on can only be used with read-only images"));
            }
            spec.lock = LockMode::None;
        }
        spec.direct |= want.cache.direct;
        spec.follow_references = want.implicit;
        spec.metadata_only = want.metadata_only;
        spec.for_check = want.for_check;
        Ok(spec)
    }

    fn warn_of_empty_backing<'o>(&self, mut options: impl Iterator<Item = (&'o str, &'o str)>) {
        if options.any(|option| option == ("backing", "")) {
            self.say("warning: Use of \"backing\": \"\" is deprecated; use \"backing\": null instead");
        }
    }

    /// Opens an image.
    pub fn open(&self, want: &Want<'_>) -> Outcome<Disk> {
        let spec = self.spec(want)?;
        let disk = self.open_spec(&spec, want.cache).doing(|| format!("Could not open '{}'", want.name))?;
        warn_of_guess(want, &spec, &disk);
        Ok(disk)
    }

    /// Opens the node of a specification.
    pub fn open_spec(&self, spec: &NodeSpec, cache: Cache) -> Outcome<Disk> {
        let environment = self.environment_for(cache);
        let (discard, detect) = policy(&spec.options)?;
        let mut spec = spec.clone();
        for name in ["discard", "detect-zeroes"] {
            spec.options.take(name);
        }
        let disk = Disk::open(&environment, &spec).map_err(|error| in_words_of_open(error, &spec))?;
        Ok(disk.with_policy(discard, detect))
    }

    /// The environment in which files have a cache mode.
    pub fn environment_for(&self, cache: Cache) -> Environment {
        let mut environment = self.environment.clone();
        if cache.no_flush {
            environment.opener = Arc::new(Unflushed(environment.opener));
        }
        environment
    }
}

/// Says that an image which is written was guessed to be raw.
pub fn warn_of_guess(want: &Want<'_>, spec: &NodeSpec, disk: &Disk) {
    let guessed = spec.format.is_none() && !want.image_opts && !want.name.starts_with("json:");
    if want.writable && guessed && disk.node().format_name() == "raw" {
        let name = want.name;
        tell(&format!(
            "WARNING: Image format was not specified for '{name}' and probing guessed raw.\n         \
             Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n         \
             Specify the 'raw' format explicitly to remove the restrictions."
        ));
    }
}

/// An error of opening, where scripts may know the words for it.
fn in_words_of_open(error: Error, spec: &NodeSpec) -> Failure {
    let is_luks = || match &spec.format {
        Some(format) => format == "luks",
        None => std::fs::File::open(&spec.file.name).is_ok_and(|mut file| {
            let mut magic = [0; 4];
            file.read_exact(&mut magic).is_ok() && &magic == b"LUKS"
        }),
    };
    match &error {
        Error::NeedsSecret(_) if is_luks() => Failure::new("Parameter 'key-secret' is required for cipher"),
        Error::NeedsSecret(_) => Failure::new("Parameter 'encrypt.key-secret' is required for cipher"),
        _ => error.into(),
    }
}

fn policy(options: &Options) -> Outcome<(Discard, DetectZeroes)> {
    let discard = match options.get("discard") {
        None | Some("unmap" | "on") => Discard::Unmap,
        Some("ignore" | "off") => Discard::Ignore,
        Some(_) => return Err(Failure::new("Invalid discard option")),
    };
    let detect = match options.get("detect-zeroes") {
        None | Some("off") => DetectZeroes::Off,
        Some("on") => DetectZeroes::On,
        Some("unmap") => DetectZeroes::Unmap,
        Some(other) => return Err(invalid(other)),
    };
    Ok((discard, detect))
}

fn invalid(value: &str) -> Failure {
    Failure::new(format!("invalid parameter value: {value}"))
}

/// Characters of a node's name, at most.
const NODE_NAME_MAX: usize = 31;

/// Nodes are named for who works on a running machine. Here nothing comes of their names, but wrong ones are told.
fn check_node_names(options: &Options) -> Outcome<()> {
    let mut names = Vec::new();
    for (key, name) in options.iter() {
        if key != "node-name" && !key.ends_with(".node-name") {
            continue;
        }
        let fits = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
        if !name.starts_with(|letter: char| letter.is_ascii_alphabetic()) || !name.chars().all(fits) {
            return Err(Failure::new(format!("Invalid node-name: '{name}'")));
        }
        if name.len() > NODE_NAME_MAX {
            return Err(Failure::new("Node name too long"));
        }
        if names.contains(&name) {
            return Err(Failure::new(format!("Duplicate nodes with node-name='{name}'")));
        }
        names.push(name);
    }
    Ok(())
}

/// Takes out what every node has, be it a format or a file.
fn take_common(options: &mut Options, spec: &mut NodeSpec) -> Outcome<()> {
    options.take("node-name");
    // What only a running machine has a use for.
    for name in ["active", "auto-read-only", "cache.no-flush", "read-only"] {
        options.take_bool(name)?;
    }
    spec.direct |= options.take_bool("cache.direct")?.unwrap_or(false);
    if options.take_bool("force-share")?.unwrap_or(false) {
        spec.lock = LockMode::None;
    }
    let (discard, detect) = policy(options)?;
    let unmaps = discard == Discard::Unmap && options.get("discard").is_some();
    if detect == DetectZeroes::Unmap && !unmaps {
        return Err(Failure::new(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ));
    }
    Ok(())
}

/// A file's name, with the protocol that it may begin with.
pub fn file_spec(name: &str) -> FileSpec {
    let Some((protocol, rest)) = name.split_once(':') else { return FileSpec::file(name) };
    let is_protocol = !protocol.is_empty()
        && protocol.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter));
    match (is_protocol, protocol) {
        (false, _) => FileSpec::file(name),
        (true, "file") => FileSpec::file(rest),
        (true, protocol) => {
            let address = umbra_nbd::Address::from_name(name).ok().filter(|address| address.tls.is_none());
            // One name for one export, as far as it says all that there is to say.
            let name = address.map_or_else(|| name.to_owned(), |address| address.to_string());
            FileSpec { protocol: protocol.to_owned(), name, options: Options::new() }
        }
    }
}

/// Drivers that are files and no formats.
pub const PROTOCOLS: [&str; 3] = ["file", "host_device", "nbd"];

/// A node from its options.
pub fn from_options(mut options: Options) -> Outcome<NodeSpec> {
    let driver = options.take("driver");
    let is_protocol = driver.as_deref().is_some_and(|driver| PROTOCOLS.contains(&driver));
    if let Some(node) = options.get("file") {
        return Err(Failure::new(format!("Cannot find device='{node}' nor node-name='{node}'")));
    }
    let mut file = options.take_prefixed("file.");
    let format = if is_protocol {
        file = std::mem::take(&mut options);
        file.set("driver", driver.as_deref().unwrap_or_default());
        driver
    } else {
        driver
    };
    if file.is_empty() {
        return Err(match format {
            Some(_) => Failure::new("A block device must be specified for \"file\""),
            None => Failure::new("Must specify either driver or file"),
        });
    }
    let mut spec = NodeSpec { format, ..NodeSpec::new(String::new(), None) };
    node_of(&mut spec, file, options)?;
    Ok(spec)
}

/// The rest of a node, of which driver and file are known.
fn node_of(spec: &mut NodeSpec, file: Options, mut options: Options) -> Outcome<()> {
    spec.backing = backing_of(&mut options)?;
    // It counts for the file too, where that says nothing else.
    spec.direct |= options.clone().take_bool("cache.direct")?.unwrap_or(false);
    if !file.is_empty() {
        spec.file = file_of(file, spec)?;
    }
    take_common(&mut options, spec)?;
    spec.options = options;
    Ok(())
}

/// Where no backing file is opened, what is said of one has no use.
fn refuse_backing(options: &Options) -> Outcome<()> {
    let Some(format) = options.get("driver").filter(|driver| !PROTOCOLS.contains(driver)) else {
        return Ok(());
    };
    let unused = |(name, value): &(&str, &str)| {
        name.starts_with("backing.") || *name == "backing" && !value.is_empty()
    };
    match options.iter().find(unused) {
        Some((name, _)) => {
            Err(Failure::new(format!("Block format '{format}' does not support the option '{name}'")))
        }
        None => Ok(()),
    }
}

/// What is said of the backing file. Where that has no file of its own, it is about the one that the image names.
fn backing_of(options: &mut Options) -> Outcome<BackingSpec> {
    let mut below = options.take_prefixed("backing.");
    match (options.take("backing").as_deref(), below.is_empty()) {
        (Some(""), _) => Ok(BackingSpec::None),
        (Some(node), _) => Err(Failure::new(format!(
            "Could not open backing file: Cannot find device='{node}' nor node-name='{node}'"
        ))),
        (None, true) => Ok(BackingSpec::FromImage),
        (None, false) => {
            let doing = || "Could not open backing file".to_owned();
            let of_protocol = below.get("driver").is_some_and(|driver| PROTOCOLS.contains(&driver));
            if of_protocol || below.get("file").is_some() || below.get("file.filename").is_some() {
                return Ok(BackingSpec::Node(Box::new(from_options(below).doing(doing)?)));
            }
            let mut spec = NodeSpec { format: below.take("driver"), ..NodeSpec::new(String::new(), None) };
            let mut file = below.take_prefixed("file.");
            // It stands for the name that the image has.
            if !file.is_empty() {
                file.set("filename", "");
            }
            node_of(&mut spec, file, below).doing(doing)?;
            Ok(BackingSpec::Changed(Box::new(spec)))
        }
    }
}

fn file_of(mut file: Options, spec: &mut NodeSpec) -> Outcome<FileSpec> {
    let driver = file.take("driver");
    let name = file.take("filename");
    match driver.as_deref() {
        None | Some("file" | "host_device") => {
            let name = name.ok_or_else(|| {
                Failure::new(match &driver {
                    Some(driver) => format!("The '{driver}' block driver requires a file name"),
                    None => "Must specify either driver or file".to_owned(),
                })
            })?;
            take_common(&mut file, spec)?;
            for name in ["discard", "detect-zeroes"] {
                file.take(name);
            }
            match file.take("locking").as_deref() {
                None | Some("on" | "auto") => {}
                Some("off") => spec.lock = LockMode::None,
                Some(other) => return Err(invalid(other)),
            }
            match file.take("aio").as_deref() {
                // How requests reach the host is chosen by what the host can do.
                None | Some("threads" | "io_uring") => {}
                Some("native") if spec.direct => {}
                Some("native") => {
                    return Err(Failure::new(
                        "aio=native was specified, but it requires cache.direct=on, which was not specified.",
                    ));
                }
                Some(other) => return Err(invalid(other)),
            }
            for ignored in ["drop-cache", "x-check-cache-dropped"] {
                file.take_bool(ignored)?;
            }
            file.take_number("aio-max-batch")?;
            if let Some(id) = file.take("pr-manager") {
                return Err(Failure::new(format!("No persistent reservation manager with id '{id}'")));
            }
            if let Some((name, _)) = file.iter().next() {
                let driver = driver.as_deref().unwrap_or("file");
                return Err(Failure::new(format!(
                    "Block protocol '{driver}' doesn't support the option '{name}'"
                )));
            }
            Ok(if driver.is_none() { file_spec(&name) } else { FileSpec::file(name) })
        }
        Some("nbd") => {
            let address = umbra_nbd::Address::from_options(file.clone()).map_err(umbra_block::Error::from)?;
            Ok(FileSpec { protocol: "nbd".to_owned(), name: address.to_string(), options: file })
        }
        Some(protocol) => {
            Ok(FileSpec { protocol: protocol.to_owned(), name: name.unwrap_or_default(), options: file })
        }
    }
}

/// Files that are not made durable: a copy that can be made again is finished sooner without.
#[derive(Debug)]
struct Unflushed(Arc<dyn Opener>);

impl Opener for Unflushed {
    fn open(&self, file: &FileSpec, spec: &FileStorageSpec) -> BlockResult<Arc<dyn Storage>> {
        Ok(Arc::new(NoFlush(self.0.open(file, spec)?)))
    }

    fn create(&self, file: &FileSpec) -> BlockResult<Arc<dyn Storage>> {
        Ok(Arc::new(NoFlush(self.0.create(file)?)))
    }

    fn node_of_name(&self, name: &str) -> BlockResult<Option<NodeSpec>> {
        self.0.node_of_name(name)
    }
}

#[derive(Debug)]
struct NoFlush(Arc<dyn Storage>);

impl Storage for NoFlush {
    fn readv(&self, offset: u64, bufs: &[IoBuf<'_>]) -> BlockResult<()> {
        self.0.readv(offset, bufs)
    }

    fn writev(&self, offset: u64, srcs: &[IoSrc<'_>]) -> BlockResult<()> {
        self.0.writev(offset, srcs)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> BlockResult<()> {
        self.0.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> BlockResult<()> {
        self.0.discard(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> BlockResult<()> {
        self.0.allocate(offset, len)
    }

    fn len(&self) -> BlockResult<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> BlockResult<()> {
        self.0.set_len(len)
    }

    fn flush(&self) -> BlockResult<()> {
        Ok(())
    }

    fn run(&self, offset: u64, len: u64) -> BlockResult<Run> {
        self.0.run(offset, len)
    }

    fn info(&self) -> StorageInfo {
        self.0.info()
    }

    fn handle(&self) -> Option<FileHandle<'_>> {
        self.0.handle()
    }
}

#[cfg(test)]
#[path = "open_test.rs"]
mod open_test;
