//! Opening and making VHD images.

use std::sync::Arc;

use umbra_block::{
    CreateOptions, Environment, Error, Format, FormatDriver, OpenRequest, OptionKind, OptionSpec, Result,
    Storage, StorageExt, Task,
};
use zerocopy::{FromBytes, IntoBytes};

use super::header::{BLOCK, COOKIE, DIFFERENCING, DYNAMIC, Dynamic, FIXED, Footer, SECTOR};
use super::{Blocks, Image, parent};
use crate::common::{Reserved, random_uuid};

/// The format `vpc`.
#[derive(Debug, Clone, Copy)]
pub struct Vpc;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "subformat",
        OptionKind::Text,
        "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed} ",
        None,
    ),
    OptionSpec::new(
        "force_size",
        OptionKind::Bool,
        "Force disk size calculation to use the actual size specified, rather than using the nearest CHS-based calculation",
        None,
    ),
];

fn read_footer(storage: &dyn Storage, offset: u64) -> Result<Footer> {
    let mut bytes = [0; SECTOR as usize];
    storage.read_at(offset, &mut bytes)?;
    Footer::read_from_bytes(&bytes).map_err(|_| Error::corrupt("a footer of another length"))
}

impl FormatDriver for Vpc {
    fn name(&self) -> &'static str {
        "vpc"
    }

    fn probe(&self, head: &[u8], _len: u64, _name: &str) -> u8 {
        // A fixed image begins with the guest's own bytes, and is not guessed to be anything.
        if head.starts_with(COOKIE) { 100 } else { 0 }
    }

    fn open(&self, mut request: OpenRequest<'_>) -> Result<Box<dyn Format>> {
        let by_geometry = match request.options.take("force_size_calc").as_deref() {
            None | Some("auto") => None,
            Some("chs") => Some(true),
            Some("current_size") => Some(false),
            Some(other) => return Err(Error::option(format!("Invalid size calculation mode: '{other}'"))),
        };
        request.options.finish()?;
        let storage = request.storage;
        let wrong = |reason: String| Error::not_this_format(request.name, "vpc", reason);
        let len = storage.len()?;
        let mut footer = read_footer(&*storage, 0)?;
        if footer.check().is_err() {
            // A fixed image, or one whose copy at the beginning is damaged.
            let last = len.checked_sub(SECTOR).ok_or_else(|| wrong("it is too short".into()))?;
            footer = read_footer(&*storage, last)?;
        }
        footer.check().map_err(wrong)?;
        let size = footer.size(by_geometry).map_err(wrong)?;
        let kind = footer.kind.get();
        let (mut blocks, mut backing, mut parent) = (None, None, None);
        let mut reserved = Reserved::default();
        if kind == FIXED {
            if size > len.saturating_sub(SECTOR) {
                return Err(wrong("it is shorter than its disk".into()));
            }
        } else {
            let mut bytes = [0; size_of::<Dynamic>()];
            storage.read_at(footer.data_offset.get(), &mut bytes)?;
            let header = Dynamic::read_from_bytes(&bytes).map_err(|_| wrong("it is too short".into()))?;
            header.check(size, len).map_err(wrong)?;
            if kind == DIFFERENCING {
                backing = Some(parent::find(&header, &*storage)?);
                parent = Some(header.parent_uuid);
            }
            blocks = Some(Blocks::new(&header, &storage));
            if !request.read_only {
                reserved.add("footer's copy", 0, SECTOR)?;
                reserved.add("dynamic header", footer.data_offset.get(), size_of::<Dynamic>() as u64)?;
                let table_len = (u64::from(header.entries.get()) * 4).next_multiple_of(SECTOR);
                reserved.add("table of blocks", header.table_offset.get(), table_len)?;
            }
        }
        if backing.is_some() && !request.read_only {
            return Err(Error::Unsupported(
                "writing to a differencing VHD image; convert it, or put a qcow2 overlay on it".into(),
            ));
        }
        Ok(Box::new(Image {
            storages: [storage],
            name: request.name.to_owned(),
            size,
            footer,
            blocks,
            backing,
            parent,
            reserved,
            writable: !request.read_only,
        }))
    }

    fn create_options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn create(
        &self,
        storage: Arc<dyn Storage>,
        _name: &str,
        options: &CreateOptions,
        _environment: &Environment,
        _task: &Task<'_>,
    ) -> Result<()> {
        let mut left = options.options.clone();
        let exact = left.take_bool("force_size")?.unwrap_or(false);
        let kind = match left.take("subformat").as_deref() {
            None | Some("dynamic") => DYNAMIC,
            Some("fixed") => FIXED,
            Some(other) => {
                return Err(Error::option(format!("Parameter 'subformat' does not accept value '{other}'")));
            }
        };
        left.finish()?;
        options.refuse_backing("vpc")?;
        let footer = Footer::new(options.size, exact, kind, random_uuid()?)?;
        let size = footer.current_size.get();
        if kind == FIXED {
            storage.write_at(size, footer.as_bytes())?;
            return storage.flush();
        }
        // Below 2^32, by the limit of a disk's sectors.
        let entries = size.div_ceil(BLOCK.into()) as u32;
        let header = Dynamic::new(entries);
        storage.write_at(0, footer.as_bytes())?;
        storage.write_at(SECTOR, header.as_bytes())?;
        let table_len = (u64::from(entries) * 4).next_multiple_of(SECTOR);
        let table = header.table_offset.get();
        // At most 4 MiB.
        storage.write_at(table, &vec![0xff; table_len as usize])?;
        storage.write_at(table + table_len, footer.as_bytes())?;
        storage.flush()
    }
}
