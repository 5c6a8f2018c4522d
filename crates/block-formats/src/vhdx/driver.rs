//! Opening and making VHDX images.

use std::sync::{Arc, Mutex};

use umbra_block::{
    CreateOptions, Environment, Error, Format, FormatDriver, OpenRequest, OptionKind, OptionSpec, Result,
    Storage, StorageExt, Task,
};
use zerocopy::IntoBytes;

use super::layout::{
    self, BAT, DISK_ID, DISK_SIZE, FILE_ID, FILE_PARAMETERS, HEADERS, Header, LOG_MAX, LOGICAL_SECTOR,
    METADATA, MIB, Metadata, MetadataEntry, MetadataTable, PHYSICAL_SECTOR, REGION_TABLES, RegionEntry,
    RegionTable, SIZE_MAX, TABLE_LEN, wrong,
};
use super::replayed::Replayed;
use super::write::{Session, replay};
use super::{Image, PRESENT, ZERO, log, parent};
use crate::common::{at_most, random_uuid};
use crate::table::Table;

/// The format `vhdx`.
#[derive(Debug, Clone, Copy)]
pub struct Vhdx;

const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new("log_size", OptionKind::Size, "Log size; min 1MB.", Some("1048576")),
    OptionSpec::new(
        "block_size",
        OptionKind::Size,
        "Block Size; min 1MB, max 256MB. 0 means auto-calculate based on image size.",
        Some("0"),
    ),
    OptionSpec::new(
        "subformat",
        OptionKind::Text,
        "VHDX format type, can be either 'dynamic' or 'fixed'. Default is 'dynamic'.",
        None,
    ),
    OptionSpec::new(
        "block_state_zero",
        OptionKind::Bool,
        "Force use of payload blocks of type 'ZERO'. Non-standard, but default.  Do not set to 'off' when using 'qemu-img convert' with subformat=dynamic.",
        None,
    ),
];

impl FormatDriver for Vhdx {
    fn name(&self) -> &'static str {
        "vhdx"
    }

    fn probe(&self, head: &[u8], _len: u64, _name: &str) -> u8 {
        if head.starts_with(FILE_ID) { 100 } else { 0 }
    }

    fn open(&self, request: OpenRequest<'_>) -> Result<Box<dyn Format>> {
        request.options.finish()?;
        let name = request.name;
        let mut storage = request.storage;
        if storage.read_vec(0, FILE_ID.len())? != FILE_ID {
            return Err(wrong(name, "it does not begin as one".into()));
        }
        let (mut slot, mut header) = Header::read(&*storage).map_err(|what| wrong(name, what))?;
        if let Some(pending) = log::read(&*storage, &header)? {
            if request.read_only {
                let log::Replay { pages, file_len } = pending;
                storage = Arc::new(Replayed { storage, pages, file_len });
            } else {
                (slot, header) = replay(&storage, slot, &header, &pending)?;
            }
        }
        let (table, region) = layout::regions(&*storage).map_err(|what| wrong(name, what))?;
        let metadata = layout::metadata(&*storage, region).map_err(|what| wrong(name, what))?;
        let len = storage.len()?;
        let needed = metadata.entries() * 8;
        if needed > table.len || table.offset.saturating_add(needed) > len {
            return Err(wrong(name, "its table of blocks is too short for its size".into()));
        }
        let (mut backing, mut parents) = (None, Vec::new());
        if metadata.has_parent {
            let locator =
                metadata.locator.ok_or_else(|| Error::corrupt("it has a parent and does not say where"))?;
            let (named, identities) = parent::find(&*storage, locator)?;
            (backing, parents) = (Some(named), identities);
            if !request.read_only {
                return Err(Error::Unsupported(
                    "writing to a differencing VHDX image; convert it, or put a qcow2 overlay on it".into(),
                ));
            }
        }
        let pages = needed.next_multiple_of(layout::PAGE);
        let data_write = header.data_write;
        let session = match request.read_only {
            true => None,
            false => Some(Session::new(slot, header, [table, region])?),
        };
        Ok(Box::new(Image {
            table: Table::new(storage.clone(), table.offset, pages.min(table.len)),
            storages: [storage],
            name: name.to_owned(),
            metadata,
            backing,
            parents,
            data_write,
            session,
            bits: Mutex::new(None),
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
        task: &Task<'_>,
    ) -> Result<()> {
        options.refuse_backing("vhdx")?;
        let plan = plan(options)?;
        let log_offset = MIB;
        let region = log_offset + plan.log_len;
        let table = region + MIB;
        let table_len = (plan.metadata.entries() * 8).next_multiple_of(MIB).max(MIB);
        write_metadata(&*storage, region, &plan.metadata)?;
        write_regions(&*storage, (region, MIB), (table, table_len))?;
        let data = table + table_len;
        write_table(&*storage, &plan, table, data, task)?;
        let end =
            if plan.metadata.fixed { data + plan.metadata.blocks() * plan.metadata.block } else { data };
        if !storage.info().fixed_len {
            storage.set_len(end)?;
        }
        let (file_write, data_write) = (random_uuid()?, random_uuid()?);
        for (number, offset) in HEADERS.into_iter().enumerate() {
            // Below 2^32, by the limit of a log.
            let mut header = Header::new(log_offset, plan.log_len as u32, file_write, data_write);
            header.sequence = (number as u64 + 1).into();
            storage.write_at(offset, header.sealed().as_bytes())?;
        }
        let mut id = vec![0; 512];
        id[..8].copy_from_slice(FILE_ID);
        let creator: Vec<u8> = "Umbra".encode_utf16().flat_map(u16::to_le_bytes).collect();
        id[8..8 + creator.len()].copy_from_slice(&creator);
        storage.write_at(0, &id)?;
        storage.flush()
    }
}

/// What is made.
struct Plan {
    metadata: Metadata,
    log_len: u64,
    zero_state: bool,
}

fn plan(options: &CreateOptions) -> Result<Plan> {
    let mut left = options.options.clone();
    let size = options.size.next_multiple_of(512);
    at_most("the disk's size", size, SIZE_MAX)?;
    let log_len = left.take_size("log_size")?.unwrap_or(MIB).max(MIB).next_multiple_of(MIB);
    at_most("the log's size", log_len, LOG_MAX)?;
    let block = match left.take_size("block_size")?.unwrap_or(0) {
        0 if size > 32 << 40 => 64 * MIB,
        0 if size > 100 << 30 => 32 * MIB,
        0 if size > 1 << 30 => 16 * MIB,
        0 => 8 * MIB,
        given => given.max(MIB),
    };
    if !block.is_power_of_two() {
        return Err(Error::option("Block size must be a power of two"));
    }
    if block > 256 * MIB {
        return Err(Error::option("Block size must not exceed 268435456"));
    }
    let fixed = match left.take("subformat").as_deref() {
        None | Some("dynamic") => false,
        Some("fixed") => true,
        Some(other) => {
            return Err(Error::option(format!("Parameter 'subformat' does not accept value '{other}'")));
        }
    };
    let zero_state = left.take_bool("block_state_zero")?.unwrap_or(true);
    left.finish()?;
    let metadata = Metadata { block, fixed, has_parent: false, size, sector: 512, locator: None };
    Ok(Plan { metadata, log_len, zero_state })
}

fn write_metadata(storage: &dyn Storage, region: u64, metadata: &Metadata) -> Result<()> {
    const REQUIRED: u32 = 4;
    const OF_DISK: u32 = 2;
    let parameters =
        [(metadata.block as u32).to_le_bytes(), u32::from(metadata.fixed).to_le_bytes()].concat();
    let items: [(layout::Guid, Vec<u8>, u32); 5] = [
        (FILE_PARAMETERS, parameters, REQUIRED),
        (DISK_SIZE, metadata.size.to_le_bytes().to_vec(), REQUIRED | OF_DISK),
        (DISK_ID, random_uuid()?.to_vec(), REQUIRED | OF_DISK),
        (LOGICAL_SECTOR, (metadata.sector as u32).to_le_bytes().to_vec(), REQUIRED | OF_DISK),
        (PHYSICAL_SECTOR, 512u32.to_le_bytes().to_vec(), REQUIRED | OF_DISK),
    ];
    let head = MetadataTable {
        signature: *b"metadata",
        reserved: 0.into(),
        entries: (items.len() as u16).into(),
        unused: [0; 20],
    };
    let mut bytes = head.as_bytes().to_vec();
    let mut offset = TABLE_LEN as u32;
    let mut values = Vec::new();
    for (kind, value, flags) in items {
        let entry = MetadataEntry {
            kind,
            offset: offset.into(),
            len: (value.len() as u32).into(),
            flags: flags.into(),
            reserved: 0.into(),
        };
        bytes.extend_from_slice(entry.as_bytes());
        offset += value.len() as u32;
        values.extend(value);
    }
    bytes.resize(TABLE_LEN, 0);
    bytes.extend(values);
    storage.write_at(region, &bytes)
}

fn write_regions(storage: &dyn Storage, metadata: (u64, u64), table: (u64, u64)) -> Result<()> {
    let entry = |kind, (offset, len): (u64, u64)| RegionEntry {
        kind,
        offset: offset.into(),
        // At most 2 GiB, by the limit of a disk.
        len: (len as u32).into(),
        required: 1.into(),
    };
    let head = RegionTable { signature: *b"regi", checksum: 0.into(), entries: 2.into(), reserved: 0.into() };
    let mut bytes = head.as_bytes().to_vec();
    bytes.extend_from_slice(entry(BAT, table).as_bytes());
    bytes.extend_from_slice(entry(METADATA, metadata).as_bytes());
    bytes.resize(TABLE_LEN, 0);
    let sum = layout::checksum(&bytes, 4);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    REGION_TABLES.into_iter().try_for_each(|offset| storage.write_at(offset, &bytes))
}

fn write_table(storage: &dyn Storage, plan: &Plan, table: u64, data: u64, task: &Task<'_>) -> Result<()> {
    if !plan.metadata.fixed && !plan.zero_state {
        return storage.write_zeroes(table, plan.metadata.entries() * 8, true);
    }
    // By the piece, because the table of a large disk is large.
    const PIECE: u64 = 8192;
    let (entries, chunk) = (plan.metadata.entries(), plan.metadata.chunk());
    for first in (0..entries).step_by(PIECE as usize) {
        task.at(first, entries)?;
        let bytes: Vec<u8> = (first..entries.min(first + PIECE))
            .flat_map(|index| {
                let block = index - index / (chunk + 1);
                let word = match (index % (chunk + 1) == chunk, plan.metadata.fixed) {
                    (true, _) => 0,
                    (false, true) => (data + block * plan.metadata.block) | PRESENT,
                    (false, false) => ZERO,
                };
                word.to_le_bytes()
            })
            .collect();
        storage.write_at(table + first * 8, &bytes)?;
    }
    Ok(())
}
