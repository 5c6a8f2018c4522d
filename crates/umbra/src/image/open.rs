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
use super::{Tool, json, keyval, tell};

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

    fn spec_plain(&self, want: &Want<'_>) -> Outcome<NodeSpec> {
        let json = want.name.strip_prefix("json:");
        let node = |options: Options| match want.alone {
            true => refuse_backing(&options).and_then(|()| from_options(options)),
            false => from_options(options),
        };
        let mut spec = if want.image_opts {
            node(keyval::options(want.name).map_err(Failure::new)?)?
        } else if let Some(text) = json {
            let value = json::parse_relaxed(text).map_err(|error| {
                Failure::new(format!("Could not parse the JSON options: JSON parse error, {error}"))
            })?;
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
        Error::InvalidOption(text) => match (text.strip_prefix("Invalid parameter "), &spec.format) {
            (Some(name), Some(format)) => {
                Failure::new(format!("Block format '{format}' does not support the option {name}"))
            }
            _ => error.into(),
        },
        _ => error.into(),
    }
}

fn policy(options: &Options) -> Outcome<(Discard, DetectZeroes)> {
    let wrong =
        |name: &str, value: &str| Failure::new(format!("Parameter '{name}' does not accept value '{value}'"));
    let discard = match options.get("discard") {
        None | Some("unmap" | "on") => Discard::Unmap,
        Some("ignore" | "off") => Discard::Ignore,
        Some(_) => return Err(Failure::new("Invalid discard option")),
    };
    let detect = match options.get("detect-zeroes") {
        None | Some("off") => DetectZeroes::Off,
        Some("on") => DetectZeroes::On,
        Some("unmap") => DetectZeroes::Unmap,
        Some(other) => return Err(wrong("detect-zeroes", other)),
    };
    Ok((discard, detect))
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
    let backing = backing_of(&mut options)?;
    let mut spec = NodeSpec { format, backing, ..NodeSpec::new(String::new(), None) };
    spec.file = file_of(file, &mut spec)?;
    // What only a running machine has a use for.
    for name in ["node-name", "auto-read-only", "cache.no-flush"] {
        options.take(name);
    }
    spec.direct |= options.take_bool("cache.direct")?.unwrap_or(false);
    if options.take_bool("force-share")?.unwrap_or(false) {
        spec.lock = LockMode::None;
    }
    options.take_bool("read-only")?;
    let policy = policy(&options)?;
    if policy == (Discard::Ignore, DetectZeroes::Unmap)
        || options.get("discard").is_none() && policy.1 == DetectZeroes::Unmap
    {
        return Err(Failure::new(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ));
    }
    spec.options = options;
    Ok(spec)
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

fn backing_of(options: &mut Options) -> Outcome<BackingSpec> {
    let below = options.take_prefixed("backing.");
    match (options.take("backing").as_deref(), below.is_empty()) {
        (Some(""), _) => Ok(BackingSpec::None),
        (Some(node), _) => Err(Failure::new(format!(
            "Could not open backing file: Cannot find device='{node}' nor node-name='{node}'"
        ))),
        (None, true) => Ok(BackingSpec::FromImage),
        (None, false) => {
            let node = from_options(below).doing(|| "Could not open backing file".to_owned())?;
            Ok(BackingSpec::Node(Box::new(node)))
        }
    }
}

fn file_of(mut file: Options, spec: &mut NodeSpec) -> Outcome<FileSpec> {
    let driver = file.take("driver");
    let name = file.take("filename");
    match driver.as_deref() {
        None | Some("file" | "host_device") => {
            let name = name.ok_or_else(|| {
                let driver = driver.as_deref().unwrap_or("file");
                Failure::new(format!("The '{driver}' block driver requires a file name"))
            })?;
            let invalid = |value: &str| Failure::new(format!("invalid parameter value: {value}"));
            match file.take("locking").as_deref() {
                None | Some("on" | "auto") => {}
                Some("off") => spec.lock = LockMode::None,
                Some(other) => return Err(invalid(other)),
            }
            match file.take("aio").as_deref() {
                // How requests reach the host is chosen by what the host can do.
                None | Some("threads" | "native" | "io_uring") => {}
                Some(other) => return Err(invalid(other)),
            }
            for ignored in ["node-name", "discard", "read-only", "auto-read-only", "cache.no-flush"] {
                file.take(ignored);
            }
            spec.direct |= file.take_bool("cache.direct")?.unwrap_or(false);
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
