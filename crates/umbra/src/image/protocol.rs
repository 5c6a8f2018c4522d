//! Protocols where a format is asked for: `-f file`, `-f host_device` and `-f nbd` show the bytes as they are, as `raw` does.

use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use umbra_block::{
    CreateOptions, Environment, Error, FileSpec, Format, FormatDriver, OpenRequest, OptionSpec, RawDriver,
    Registry, Result, Storage, Task,
};

use super::files::is_export;
use super::open::{PROTOCOLS, file_spec};

/// One of [`PROTOCOLS`].
#[derive(Debug)]
struct Protocol(&'static str);

/// Adds them all.
pub fn register(registry: &mut Registry) {
    for name in PROTOCOLS {
        registry.add(Arc::new(Protocol(name)));
    }
}

impl Protocol {
    /// Fails where the name is another protocol's.
    fn check(&self, file: &FileSpec) -> Result<()> {
        let name = &file.name;
        let is_device = || {
            std::fs::metadata(name)
                .is_ok_and(|meta| meta.file_type().is_block_device() || meta.file_type().is_char_device())
        };
        match self.0 {
            "nbd" if !is_export(file) => {
                Err(Error::InvalidOption("File name string for NBD must start with 'nbd:'".to_owned()))
            }
            "host_device" if !is_device() => Err(Error::InvalidOption(format!(
                "'host_device' driver requires '{name}' to be either a character or block device"
            ))),
            _ => Ok(()),
        }
    }
}

impl FormatDriver for Protocol {
    fn name(&self) -> &'static str {
        self.0
    }

    fn probe(&self, _head: &[u8], _len: u64, _name: &str) -> u8 {
        0
    }

    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Format>> {
        self.check(&request.spec.file)?;
        RawDriver.open(request)
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        if self.0 == "file" { RawDriver.create_options() } else { &[] }
    }

    fn create(
        &self,
        storage: Arc<dyn Storage>,
        name: &str,
        options: &CreateOptions,
        environment: &Environment,
        task: &Task<'_>,
    ) -> Result<()> {
        let checked = match self.0 {
            "file" => Ok(()),
            _ => self.check(&file_spec(name)),
        };
        checked.map_err(|error| {
            Error::InvalidOption(format!(
                "Protocol driver '{}' does not support creating new images, so an existing image must be selected as the \
                 target; however, opening the given target as an existing image failed: {error}",
                self.0
            ))
        })?;
        RawDriver.create(storage, name, options, environment, task)
    }
}
