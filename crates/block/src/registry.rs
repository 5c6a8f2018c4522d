//! Which formats there are. The program puts them together; this crate knows raw, qcow2 and LUKS only.

use std::sync::Arc;

use crate::{
    CreateOptions, Environment, Error, Format, NodeSpec, OptionSpec, Options, Result, Storage, Task,
};

/// What a driver gets to open an image.
#[derive(Debug)]
pub struct OpenRequest<'a> {
    /// The image file.
    pub storage: Arc<dyn Storage>,
    /// Its name as the user has it, for messages and for names relative to it.
    pub name: &'a str,
    /// Whether it shall not be written.
    pub read_only: bool,
    /// It is opened for `check` only: an image that is marked as corrupt or dirty is opened as it is.
    pub for_check: bool,
    /// Only its metadata is wanted (`info`): no secret is needed, a missing data file is no error.
    pub metadata_only: bool,
    /// The driver's runtime options (`encrypt.key-secret`, `lazy-refcounts`, ...). What it does not know is an error.
    pub options: Options,
    /// How the node was specified; further files are opened with its policy.
    pub spec: &'a NodeSpec,
    /// Files, secrets and formats.
    pub environment: &'a Environment,
}

/// Opens and creates images of one format.
pub trait FormatDriver: Send + Sync + std::fmt::Debug {
    /// Its name, as `-f` takes it.
    fn name(&self) -> &'static str;

    /// How sure it is that a file which begins with `head` (up to [`Registry::PROBE_BYTES`]) and is `len` bytes long is
    /// its: 0 no, 100 yes.
    fn probe(&self, head: &[u8], len: u64, name: &str) -> u8;

    /// Opens an image.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Format>>;

    /// Options of `create`.
    fn create_options(&self) -> &'static [OptionSpec];

    /// Makes a new image in `storage`, which is empty. `name` is its name, for further files beside it.
    ///
    /// # Errors
    /// Wrong options, or a storage that fails. [`Error::Unsupported`] where the format is only read.
    fn create(
        &self,
        storage: Arc<dyn Storage>,
        name: &str,
        options: &CreateOptions,
        environment: &Environment,
        task: &Task<'_>,
    ) -> Result<()>;

    /// Bytes that an image would need: (for `data` bytes of `size` in use, fully allocated). `None` where the format
    /// cannot say.
    ///
    /// # Errors
    /// Wrong options.
    fn measure(&self, _options: &CreateOptions, _data: u64) -> Result<Option<(u64, u64)>> {
        Ok(None)
    }
}

/// The formats that there are.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    drivers: Vec<Arc<dyn FormatDriver>>,
}

impl Registry {
    /// Bytes that are read to find out a format.
    pub const PROBE_BYTES: usize = 2048;

    /// None at all.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The formats of this crate.
    pub fn builtin() -> Self {
        let mut registry = Self::empty();
        registry.add(Arc::new(crate::RawDriver));
        registry.add(Arc::new(crate::Qcow2Driver));
        registry.add(Arc::new(crate::LuksDriver));
        registry
    }

    /// Adds a format; one of the same name takes its place.
    pub fn add(&mut self, driver: Arc<dyn FormatDriver>) -> &mut Self {
        self.drivers.retain(|old| old.name() != driver.name());
        self.drivers.push(driver);
        self
    }

    /// The format of that name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn get(&self, name: &str) -> Result<&Arc<dyn FormatDriver>> {
        self.drivers
            .iter()
            .find(|driver| driver.name() == name)
            .ok_or_else(|| Error::NotFound { kind: "format", name: name.to_owned() })
    }

    /// All, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn FormatDriver>> {
        self.drivers.iter()
    }

    /// The format that is surest that the file is its; the first of several.
    pub fn probe(&self, head: &[u8], len: u64, name: &str) -> Option<&Arc<dyn FormatDriver>> {
        let mut best: Option<(&Arc<dyn FormatDriver>, u8)> = None;
        for driver in &self.drivers {
            let score = driver.probe(head, len, name);
            if score > best.map_or(0, |(_, score)| score) {
                best = Some((driver, score));
            }
        }
        best.map(|(driver, _)| driver)
    }
}
