//! Recipes: what an image is made of, as data.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

/// Recipes that are part of this program.
const BUILT_IN: [&str; 2] = [include_str!("recipes/debian.json"), include_str!("recipes/alpine.json")];
/// A longer recipe is none.
const BYTES_MAX: u64 = 1 << 20;

/// What an image is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The image's name.
    #[serde(default)]
    pub name: String,
    /// What it is, in a few words.
    #[serde(default)]
    pub about: String,
    /// `apt:SUITE`, `pypi:PACKAGE`, `file:PATH` (an archive of tar) or `https://...` (one too).
    pub from: String,
    /// Of `apt:`, the packages beside the essential ones.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Of `apt:`, what packages are installed without: paths with `*`.
    #[serde(default)]
    pub without: Vec<String>,
    /// Paths with `*` in their last part that are left out of the image.
    #[serde(default)]
    pub remove: Vec<String>,
    /// Files that are put into the image, `@UUID@` being the root file system's.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Symbolic links that are put into the image.
    #[serde(default)]
    pub links: BTreeMap<String, String>,
    /// The root file system's size: a number with M or G.
    pub size: Option<String>,
    /// Of `https:`, what the file must have; of others may be given.
    pub sha256: Option<String>,
    /// Of what comes with a disk image, a kernel and an initial RAM disk: which these are, as file names with `*`.
    pub disk: Option<String>,
    /// See `disk`.
    pub kernel: Option<String>,
    /// See `disk`.
    pub initrd: Option<String>,
    /// What is added to the kernel's command line.
    #[serde(default)]
    pub cmdline: String,
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source<'a> {
    /// Packages of a suite of Debian's.
    Apt(&'a str),
    /// A package of the Python index.
    Pypi(&'a str),
    /// A file of the host.
    File(&'a Path),
    /// A file of the network.
    Https(&'a str),
}

impl Recipe {
    /// The recipe of this name, in this file, or of this source.
    ///
    /// # Errors
    /// There is none.
    pub fn find(text: &str) -> anyhow::Result<Self> {
        if let Some(recipe) = Self::built_in()?.into_iter().find(|recipe| recipe.name == text) {
            return Ok(recipe);
        }
        if ["apt:", "pypi:", "file:", "https:"].iter().any(|source| text.starts_with(source)) {
            let recipe = Self { from: text.to_owned(), ..Self::default() };
            return recipe.check(text);
        }
        let path = Path::new(text);
        if !path.is_file() {
            let names: Vec<String> = Self::built_in()?.into_iter().map(|recipe| recipe.name).collect();
            bail!(
                "there is no recipe `{text}`: give one of {}, a source (apt:, pypi:, file:, https:) or a file with a recipe",
                names.join(" and ")
            );
        }
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {text}"))?;
        let file = std::io::Read::take(file, BYTES_MAX);
        let mut recipe: Self =
            serde_json::from_reader(file).with_context(|| format!("{text} is no recipe"))?;
        if recipe.name.is_empty() {
            recipe.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        }
        recipe.check(text)
    }

    /// All that are part of this program.
    ///
    /// # Errors
    /// None: a test reads them.
    pub fn built_in() -> anyhow::Result<Vec<Self>> {
        let read = |text: &str| serde_json::from_str(text).context("a recipe of this program is none");
        BUILT_IN.into_iter().map(read).collect()
    }

    fn check(mut self, text: &str) -> anyhow::Result<Self> {
        self.source()?;
        self.bytes()?;
        if self.name.is_empty() {
            let (_, rest) = self.from.split_once(':').unwrap_or_default();
            let last = rest.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            self.name = last.split(".tar").next().unwrap_or_default().to_owned();
        }
        crate::cli::parse_name(&self.name).map_err(|why| {
            anyhow::anyhow!("`{}` cannot be the name of an image ({text}): {why}", self.name)
        })?;
        Ok(self)
    }

    /// Where it comes from.
    ///
    /// # Errors
    /// It comes from nowhere that is known.
    pub fn source(&self) -> anyhow::Result<Source<'_>> {
        let from = self.from.as_str();
        let (kind, rest) = from.split_once(':').unwrap_or((from, ""));
        let simple = !rest.is_empty()
            && !rest.starts_with('-')
            && rest.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.+".contains(letter));
        match kind {
            "apt" if simple => Ok(Source::Apt(rest)),
            "pypi" if simple => Ok(Source::Pypi(rest)),
            "file" if !rest.is_empty() => Ok(Source::File(Path::new(rest))),
            "https" if self.sha256.is_none() => {
                bail!(
                    "what comes from {from} needs a `sha256` in the recipe: the network is not to be trusted"
                )
            }
            "https" if rest.starts_with("//") => Ok(Source::Https(from)),
            _ => bail!(
                "`{from}` is no source of an image; it is apt:SUITE, pypi:PACKAGE, file:PATH or https://..."
            ),
        }
    }

    /// The root file system's size in bytes.
    ///
    /// # Errors
    /// It is none.
    pub fn bytes(&self) -> anyhow::Result<u64> {
        const DEFAULT: u64 = 8 << 30;
        let parse = |text: &String| crate::cli::parse_size(text).map_err(anyhow::Error::msg);
        Ok(self.size.as_ref().map(parse).transpose()?.unwrap_or(DEFAULT))
    }
}

/// Whether a name is what a pattern with `*` says.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(before) = last.replace(part) {
            match rest.find(before) {
                Some(at) => rest = &rest[at + before.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |end: &str| rest.ends_with(end))
}
