//! How an image is specified and found: names, policy, secrets, and the chain that images make.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::{Access, Error, FileStorage, FileStorageSpec, LockMode, Options, Registry, Result, Storage};

/// Where the bytes of a node come from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileSpec {
    /// The protocol: "file", "nbd", ...; empty for "file".
    pub protocol: String,
    /// The file's name or the protocol's address.
    pub name: String,
    /// The protocol's options.
    pub options: Options,
}

impl FileSpec {
    /// A file of the host.
    pub fn file(name: impl Into<String>) -> Self {
        Self { protocol: "file".to_owned(), name: name.into(), options: Options::new() }
    }
}

/// The backing node of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BackingSpec {
    /// What the image says, where [`NodeSpec::follow_references`] allows it.
    #[default]
    FromImage,
    /// None, whatever the image says.
    None,
    /// This one, whatever the image says.
    Node(Box<NodeSpec>),
    /// The file that the image names, opened as this says where it says anything; its own name counts for nothing.
    Changed(Box<NodeSpec>),
}

/// A node of a chain: how to open an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// The image file.
    pub file: FileSpec,
    /// Its format; `None` to look at its content. For a node that is named by an image: never guessed to be anything
    /// but what the image says.
    pub format: Option<String>,
    /// The backing node.
    pub backing: BackingSpec,
    /// The format's runtime options (`encrypt.key-secret`, `lazy-refcounts`, `data-file.filename`, ...).
    pub options: Options,
    /// For what it is opened. Backing nodes are opened for reading.
    pub access: Access,
    /// Around the page cache (O_DIRECT).
    pub direct: bool,
    /// Whom to keep out.
    pub lock: LockMode,
    /// Whether files that the image itself names (backing file, data file, extents) are opened.
    pub follow_references: bool,
    /// Only metadata is wanted (`info`): no secret is needed.
    pub metadata_only: bool,
    /// For `check`: the image is opened even where it is marked as corrupt, and its backing chain is not.
    pub for_check: bool,
}

impl NodeSpec {
    /// A file of the host, of a format or (with `None`) whatever it turns out to be; read-only.
    pub fn new(name: impl Into<String>, format: Option<&str>) -> Self {
        Self {
            file: FileSpec::file(name),
            format: format.map(str::to_owned),
            backing: BackingSpec::FromImage,
            options: Options::new(),
            access: Access::Read,
            direct: false,
            lock: LockMode::Exclusive,
            follow_references: true,
            metadata_only: false,
            for_check: false,
        }
    }

    /// The same for writing.
    #[must_use]
    pub fn writable(mut self) -> Self {
        self.access = Access::ReadWrite;
        self
    }
}

/// What an image may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Referenced {
    /// Its backing file.
    Backing,
    /// Its external data file.
    Data,
    /// A further file of its own.
    Extent,
}

impl Referenced {
    /// In words.
    pub fn role(self) -> &'static str {
        match self {
            Self::Backing => "backing file",
            Self::Data => "data file",
            Self::Extent => "extent",
        }
    }
}

/// Turns names into storages. A process that must not open files itself has one that asks its broker.
pub trait Opener: Send + Sync + fmt::Debug {
    /// Opens a file that is there.
    ///
    /// # Errors
    /// The host's, [`Error::Locked`], or an unknown protocol.
    fn open(&self, file: &FileSpec, spec: &FileStorageSpec) -> Result<Arc<dyn Storage>>;

    /// Makes an empty file, or empties the one that is there.
    ///
    /// # Errors
    /// As `open`.
    fn create(&self, file: &FileSpec) -> Result<Arc<dyn Storage>>;

    /// What a name means that is more than a path (`json:{...}`, `nbd://...`); `None` where it is a path, or not known.
    ///
    /// # Errors
    /// A name that is such a one, and wrong.
    fn node_of_name(&self, _name: &str) -> Result<Option<NodeSpec>> {
        Ok(None)
    }
}

/// Files of the host, by path.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostFiles;

impl HostFiles {
    fn check(file: &FileSpec) -> Result<()> {
        match file.protocol.as_str() {
            "" | "file" | "host_device" => Ok(()),
            other => Err(Error::option(format!("Unknown protocol '{other}'"))),
        }
    }
}

impl Opener for HostFiles {
    fn open(&self, file: &FileSpec, spec: &FileStorageSpec) -> Result<Arc<dyn Storage>> {
        Self::check(file)?;
        Ok(Arc::new(FileStorage::open(&file.name, spec)?))
    }

    fn create(&self, file: &FileSpec) -> Result<Arc<dyn Storage>> {
        Self::check(file)?;
        Ok(Arc::new(FileStorage::create(&file.name)?))
    }
}

/// Secrets by id. They are never shown, and wiped when the last of those that share them is dropped.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<String, Arc<Zeroizing<Vec<u8>>>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} kept)", self.0.len())
    }
}

impl Secrets {
    /// Adds one.
    pub fn add(&mut self, id: impl Into<String>, secret: impl Into<Zeroizing<Vec<u8>>>) {
        self.0.insert(id.into(), Arc::new(secret.into()));
    }

    /// The secret of that id.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] where there is none.
    pub fn get(&self, id: &str) -> Result<&[u8]> {
        let secret = self.0.get(id).map(|secret| secret.as_slice());
        secret.ok_or_else(|| Error::option(format!("No secret with id '{id}'")))
    }

    /// The secret of that id, which is a passphrase: text, so that every program that knows the format can be given it.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] where there is none, or it is no text.
    pub fn passphrase(&self, id: &str) -> Result<&[u8]> {
        let secret = self.get(id)?;
        match std::str::from_utf8(secret).is_ok_and(|text| !text.contains('\0')) {
            true => Ok(secret),
            false => Err(Error::option(format!("Data from secret {id} is not valid UTF-8"))),
        }
    }
}

/// What opening images needs: formats, files, secrets.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Formats.
    pub registry: Registry,
    /// Files.
    pub opener: Arc<dyn Opener>,
    /// Secrets.
    pub secrets: Secrets,
}

impl Environment {
    /// With the formats of a registry, files of the host and no secrets.
    pub fn new(registry: Registry) -> Self {
        Self { registry, opener: Arc::new(HostFiles), secrets: Secrets::default() }
    }

    /// Opens a file that the image of `spec` names, if policy allows it. `name` is relative to the image, but for data
    /// files.
    ///
    /// # Errors
    /// [`Error::ReferenceRefused`], or [`Error::Reference`] with the reason.
    pub fn open_referenced(
        &self,
        spec: &NodeSpec,
        name: &str,
        role: Referenced,
        access: Access,
    ) -> Result<Arc<dyn Storage>> {
        if !spec.follow_references {
            return Err(Error::ReferenceRefused {
                image: spec.file.name.clone(),
                named: name.to_owned(),
                role: role.role(),
            });
        }
        // As QEMU: a data file's name is relative to where the program runs, all others' to the image.
        let file = match role {
            Referenced::Data => FileSpec::file(name),
            Referenced::Backing | Referenced::Extent => FileSpec::file(resolve(&spec.file.name, name)),
        };
        let how = FileStorageSpec { access, direct: spec.direct, lock: spec.lock };
        self.opener.open(&file, &how).map_err(|error| Error::Reference {
            role: role.role(),
            name: file.name.clone(),
            source: Box::new(error),
        })
    }
}

/// Whether a name begins with a protocol: letters and a colon, before any slash.
fn has_protocol(name: &str) -> bool {
    name.split_once(':').is_some_and(|(protocol, _)| !protocol.is_empty() && !protocol.contains('/'))
}

/// A name that an image gives, as seen from where we are: relative names begin in the image's folder. A `file:` prefix
/// is taken away; names with another protocol stay.
pub fn resolve(image: &str, name: &str) -> String {
    let name = match name.strip_prefix("file:") {
        Some(path) => path,
        None if has_protocol(name) => return name.to_owned(),
        None => name,
    };
    if name.starts_with('/') {
        return name.to_owned();
    }
    match Path::new(image).parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.join(name).display().to_string(),
        _ => name.to_owned(),
    }
}
