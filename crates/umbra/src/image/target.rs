//! Making images: their options, and the line that says what is made.

use std::sync::Arc;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use umbra_block::{
    BackingRef, CreateOptions, Environment, Error, FormatDriver, OptionKind, OptionSpec, Options,
    Preallocation, Result as BlockResult, Task,
};

use super::failure::{Failure, Outcome, told};
use super::open::{Cache, file_spec};
use super::partial::Partial;
use super::{Tool, keyval, size};

/// Formats whose images can have a backing file.
pub const WITH_BACKING: [&str; 2] = ["qcow2", "vmdk"];

/// Options whose defaults are not told of when an image is made.
const SILENT: [&str; 2] = ["preallocation", "compat"];

/// Options of `amend` alone: what they change is there only afterwards.
const AMEND_ONLY: [&str; 4] = ["keyslot", "new-secret", "old-secret", "state"];

/// The order in which options are told of when an image is made.
const ORDER: [&str; 24] = [
    "encryption",
    "encrypt.format",
    "encrypt.key-secret",
    "encrypt.cipher-alg",
    "encrypt.cipher-mode",
    "encrypt.ivgen-alg",
    "encrypt.ivgen-hash-alg",
    "encrypt.hash-alg",
    "encrypt.iter-time",
    "cluster_size",
    "extended_l2",
    "preallocation",
    "compression_type",
    "size",
    "compat",
    "backing_file",
    "key-secret",
    "cipher-alg",
    "cipher-mode",
    "ivgen-alg",
    "ivgen-hash-alg",
    "hash-alg",
    "iter-time",
    "detached-header",
];

/// Options of every file: hints to the host's file system about a new one.
const HINTS: [OptionSpec; 2] = [
    OptionSpec::new(
        "extent_size_hint",
        OptionKind::Size,
        "Extent size hint for the image file, 0 to disable",
        None,
    ),
    OptionSpec::new(NOCOW, OptionKind::Bool, "Turn off copy-on-write (valid only on btrfs)", None),
];
const NOCOW: &str = "nocow";

/// Formats with an option `preallocation` of their own.
const PREALLOCATED_BY_FORMAT: [&str; 1] = ["qcow2"];
/// Formats that preallocate their file, which is told of as the file's affair.
const PREALLOCATED_BY_FILE: [&str; 3] = ["raw", "luks", "file"];
/// The file's `preallocation` of other formats. Their file is empty at first, so nothing comes of it.
const PREALLOCATION: OptionSpec = OptionSpec::new(
    "preallocation",
    OptionKind::Text,
    "Preallocation mode (allowed values: off, falloc, full)",
    None,
);

/// An image to make.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its format.
    pub driver: Arc<dyn FormatDriver>,
    /// Its file.
    pub name: String,
    /// The disk's size.
    pub size: u64,
    /// Its backing file.
    pub backing: Option<BackingRef>,
    /// Options of the format.
    pub options: Options,
    /// Hints to the file system.
    pub hints: Options,
}

/// Options of a new image, with those taken out that every format has.
#[derive(Debug, Default)]
pub struct Given {
    /// `size`.
    pub size: Option<u64>,
    /// `backing_file`.
    pub backing_file: Option<String>,
    /// `backing_fmt`.
    pub backing_fmt: Option<String>,
    /// The format's own.
    pub options: Options,
    /// The file's.
    pub hints: Options,
}

/// Reads the values of all `-o`, which add up.
pub fn given(driver: &dyn FormatDriver, texts: &[&str]) -> Outcome<Given> {
    let mut options = keyval::of_all(texts).map_err(Failure::new)?;
    let mut given = Given::default();
    if let Some(text) = options.take("size") {
        given.size = Some(size::parse(&text).map_err(|_| wrong_size("size"))?);
    }
    if WITH_BACKING.contains(&driver.name()) {
        given.backing_file = options.take("backing_file");
        given.backing_fmt = options.take("backing_fmt");
    }
    for (name, value) in options.iter() {
        let spec = driver.create_options().iter().chain(&HINTS).chain([&PREALLOCATION]);
        let spec = spec.into_iter().find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| Failure::new(format!("Invalid parameter '{name}'")))?;
        match spec.kind {
            OptionKind::Size if size::parse(value).is_err() => return Err(wrong_size(name)),
            OptionKind::Number if value.parse::<u64>().is_err() => {
                return Err(Failure::new(format!("Parameter '{name}' expects a number")));
            }
            OptionKind::Bool => {
                options.clone().take_bool(name)?;
            }
            _ => {}
        }
    }
    for hint in HINTS {
        if let Some(value) = options.take(hint.name) {
            given.hints.set(hint.name, value);
        }
    }
    if !driver.create_options().iter().any(|spec| spec.name == PREALLOCATION.name)
        && let Some(mode) = options.take(PREALLOCATION.name)
    {
        given.hints.set(PREALLOCATION.name, mode);
    }
    given.options = options;
    Ok(given)
}

impl Tool {
    /// The format of a new image.
    pub fn driver(&self, format: &str) -> Outcome<&Arc<dyn FormatDriver>> {
        let driver = self.environment.registry.get(format);
        driver.map_err(|_| Failure::new(format!("Unknown file format '{format}'")))
    }
}

/// What is said where a format has no backing files.
pub fn no_backing(format: &str) -> Failure {
    Failure::new(format!("Backing file not supported for file format '{format}'"))
}

/// What is said of a value that is no size.
pub fn wrong_size(name: &str) -> Failure {
    Failure::new(format!(
        "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, \
         mega-, giga-, tera-, peta-\nand exabytes, respectively."
    ))
}

impl Target {
    /// The line that says what is being made.
    pub fn formatting(&self) -> String {
        let mut words: Vec<(String, String)> = vec![("size".into(), self.size.to_string())];
        if let Some(backing) = &self.backing {
            words.push(("backing_file".into(), backing.name.clone()));
            if let Some(format) = &backing.format {
                words.push(("backing_fmt".into(), format.clone()));
            }
        }
        for spec in self.driver.create_options() {
            let default = spec.default.filter(|_| !SILENT.contains(&spec.name));
            if let Some(value) = self.options.get(spec.name).or(default) {
                let value = match (spec.kind, size::parse(value)) {
                    (OptionKind::Size, Ok(bytes)) => bytes.to_string(),
                    _ => value.to_owned(),
                };
                words.push((spec.name.to_owned(), value));
            }
        }
        for (name, value) in self.hints.iter() {
            let value = size::parse(value).map_or(value.to_owned(), |bytes| bytes.to_string());
            words.push((name.to_owned(), value));
        }
        let by_file = !PREALLOCATED_BY_FORMAT.contains(&self.driver.name());
        let rank = |name: &str| match name {
            "backing_fmt" => ORDER.len(),
            NOCOW => ORDER.len() + 3,
            "extent_size_hint" => ORDER.len() + 4,
            "preallocation" if by_file => ORDER.len() + 2,
            name => ORDER.iter().position(|other| *other == name).unwrap_or(ORDER.len() + 1),
        };
        words.sort_by_key(|(name, _)| rank(name));
        let mut line = format!("Formatting '{}', fmt={}", self.name, self.driver.name());
        for (name, value) in words {
            // So that it can be given as options again.
            line.push_str(&format!(" {name}={}", value.replace(',', ",,")));
        }
        line
    }

    /// Makes it. What is left when that fails is removed.
    pub fn make(&self, tool: &Tool, cache: Cache, task: &Task<'_>) -> Outcome<Partial> {
        if self.backing.is_some() && !WITH_BACKING.contains(&self.driver.name()) {
            return Err(no_backing(self.driver.name()));
        }
        self.check_preallocation()?;
        let secret = if self.driver.name() == "qcow2" { "encrypt.key-secret" } else { "key-secret" };
        let partial = Partial::default();
        let mut environment = tool.environment_for(cache);
        environment.opener = partial.recording(environment.opener);
        let options =
            CreateOptions { size: self.size, backing: self.backing.clone(), options: self.options.clone() };
        let made = self.make_in(&environment, &options, task);
        made.map(|()| partial).map_err(|error| match error {
            Error::Cancelled => Failure::interrupted(),
            Error::Io { doing, name, source } if doing == "open" => {
                Failure::new(format!("Could not create '{name}': {}", super::failure::reason(&source)))
            }
            other => Failure::new(told(&other).replace("'key-secret'", &format!("'{secret}'"))),
        })
    }

    fn check_preallocation(&self) -> Outcome<()> {
        let by_format = PREALLOCATED_BY_FORMAT.contains(&self.driver.name());
        let hint = self.hints.get(PREALLOCATION.name);
        let Some(mode) = hint.or(self.options.get(PREALLOCATION.name)) else { return Ok(()) };
        Err(Failure::new(match Preallocation::parse(mode) {
            Err(_) if by_format => format!("Parameter 'preallocation' does not accept value '{mode}'"),
            Err(_) => format!("invalid parameter value: {mode}"),
            Ok(Preallocation::Metadata) if hint.is_some() => {
                format!("Unsupported preallocation mode: {mode}")
            }
            Ok(_) => return Ok(()),
        }))
    }

    fn make_in(
        &self,
        environment: &Environment,
        options: &CreateOptions,
        task: &Task<'_>,
    ) -> BlockResult<()> {
        let storage = environment.opener.create(&file_spec(&self.name))?;
        if self.hints.clone().take_bool(NOCOW)?.unwrap_or(false)
            && let Some(handle) = storage.handle()
            && let Ok(flags) = ioctl_getflags(handle.file)
        {
            // A hint: file systems that do not know it are none the worse.
            let _ = ioctl_setflags(handle.file, flags | IFlags::NOCOW);
        }
        self.driver.create(storage, &self.name, options, environment, task)
    }
}

/// What `-o help` prints.
///
/// Of a new image, with a file's name `with_file`, the file's own options too.
pub fn option_help(driver: &dyn FormatDriver, amend: bool, with_file: bool) -> String {
    let mut lines: Vec<(String, &str)> = Vec::new();
    let mut put = |name: &str, kind: &str, help| lines.push((format!("{name}=<{kind}>"), help));
    match driver.name() {
        "luks" if amend => {}
        "vhdx" => put("size", "size", "Virtual disk size; max of 64TB."),
        _ => put("size", "size", "Virtual disk size"),
    }
    if WITH_BACKING.contains(&driver.name()) {
        put("backing_file", "str", "File name of a base image");
        let only_own = driver.name() == "vmdk";
        put(
            "backing_fmt",
            "str",
            if only_own { "Must be 'vmdk' if present" } else { "Image format of the base image" },
        );
    }
    let own = |name: &str| !amend && AMEND_ONLY.contains(&name.trim_start_matches("encrypt."));
    for spec in driver.create_options().iter().filter(|spec| (!amend || spec.amendable) && !own(spec.name)) {
        let kind = match spec.kind {
            OptionKind::Bool => "bool (on/off)",
            OptionKind::Size => "size",
            OptionKind::Number => "num",
            OptionKind::Text => "str",
        };
        put(spec.name, kind, spec.help);
    }
    let files_own = |line: &str| line.starts_with("preallocation=");
    if with_file {
        let own = lines.iter().any(|(line, _)| files_own(line));
        HINTS.iter().chain((!own).then_some(&PREALLOCATION)).for_each(|hint| {
            let kind = match hint.kind {
                OptionKind::Size => "size",
                OptionKind::Bool => "bool (on/off)",
                _ => "str",
            };
            lines.push((format!("{}=<{kind}>", hint.name), hint.help));
        });
    } else if PREALLOCATED_BY_FILE.contains(&driver.name()) {
        lines.retain(|(line, _)| !files_own(line));
    }
    lines.sort();
    let mut text = match amend {
        _ if with_file => "Supported options:\n".to_owned(),
        true => format!("Amend options for '{}':\n", driver.name()),
        false => format!("Supported {} options:\n", driver.name()),
    };
    for (name, help) in lines {
        text.push_str(&format!("  {name:22} - {help}\n"));
    }
    if !amend && !with_file {
        text.push_str("\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n");
    }
    text
}
