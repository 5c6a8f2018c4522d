//! Opening and making VDI images.

use std::sync::{Arc, Mutex};

use umbra_block::{
    CreateOptions, Environment, Error, Format, FormatDriver, OpenRequest, OptionKind, OptionSpec, Result,
    Storage, StorageExt, Task,
};
use zerocopy::{FromBytes, IntoBytes};

use super::Image;
use super::header::{Header, SIGNATURE};
use crate::common::random_uuid;
use crate::table::Table;

/// The format `vdi`.
#[derive(Debug, Clone, Copy)]
pub struct Vdi;

const OPTIONS: &[OptionSpec] =
    &[OptionSpec::new("static", OptionKind::Bool, "VDI static (pre-allocated) image", Some("off"))];

impl FormatDriver for Vdi {
    fn name(&self) -> &'static str {
        "vdi"
    }

    fn probe(&self, head: &[u8], _len: u64, _name: &str) -> u8 {
        let is_ours = head.get(64..68) == Some(&SIGNATURE.to_le_bytes());
        if is_ours { 100 } else { 0 }
    }

    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Format>> {
        request.options.finish()?;
        let mut bytes = [0; 512];
        request.storage.read_at(0, &mut bytes)?;
        let wrong = |reason: String| Error::not_this_format(request.name, "vdi", reason);
        let (header, _) = Header::read_from_prefix(&bytes).map_err(|_| wrong("it is too short".into()))?;
        header.check().map_err(wrong)?;
        header.refuse_parent()?;
        let table_len = u64::from(header.blocks.get()) * 4;
        let offset = u64::from(header.offset_blocks.get());
        let len = request.storage.len()?;
        if offset + table_len > len {
            return Err(wrong("its table of blocks goes beyond its end".into()));
        }
        Ok(Box::new(Image {
            blocks: Table::new(request.storage.clone(), offset, table_len),
            storages: [request.storage.clone()],
            name: request.name.to_owned(),
            writable: !request.read_only,
            next: Mutex::new(None),
            flushing: Mutex::new(()),
            header,
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
        let fixed = left.take_bool("static")?.unwrap_or(false);
        left.finish()?;
        options.refuse_backing("vdi")?;
        let header = Header::new(options.size, fixed, random_uuid()?)?;
        storage.write_at(0, header.as_bytes())?;
        let blocks = u64::from(header.blocks.get());
        let start = u64::from(header.offset_blocks.get());
        // By the piece, because the table of a large disk is large.
        const PIECE: u64 = 16384;
        for first in (0..blocks).step_by(PIECE as usize) {
            let entries = first..blocks.min(first + PIECE);
            let bytes: Vec<u8> = match fixed {
                // Numbers of blocks fit in 32 bits.
                true => entries.flat_map(|block| (block as u32).to_le_bytes()).collect(),
                false => vec![0xff; 4 * (entries.end - entries.start) as usize],
            };
            storage.write_at(start + first * 4, &bytes)?;
        }
        let data = u64::from(header.offset_data.get());
        let end = if fixed { data + blocks * u64::from(header.block_size.get()) } else { data };
        if !storage.info().fixed_len {
            storage.set_len(end)?;
        }
        storage.flush()
    }
}
