//! Making VMDK images: one file, or a descriptor and files of at most 2 GiB.

use std::path::Path;
use std::sync::Arc;

use umbra_block::{
    Access, CreateOptions, Environment, Error, FileSpec, FileStorageSpec, OptionKind, OptionSpec, Result,
    Storage, StorageExt, Task, resolve,
};
use zerocopy::IntoBytes;

use super::descriptor::{ExtentLine, Kind, New};
use super::sparse::{
    ENTRIES, FLAG_COMPRESSED, FLAG_MARKERS, FLAG_NEWLINE, FLAG_SECOND, FLAG_ZEROED, GRAIN, Header, SECTOR,
};
use crate::common::{at_most, random_uuid};

/// Where the descriptor is in a file that has it inside, and its room, in sectors.
const DESCRIPTOR: u64 = 1;
const DESCRIPTOR_SECTORS: u64 = 20;
/// Sectors of an extent of a disk in parts.
const PART_SECTORS: u64 = (2 << 30) / SECTOR;
/// Sectors of the largest disk: 62 TiB, as VMware has it.
const SECTORS_MAX: u64 = (62 << 40) / SECTOR;

pub(super) const OPTIONS: &[OptionSpec] = &[
    OptionSpec::new(
        "adapter_type",
        OptionKind::Text,
        "Virtual adapter type, can be one of ide (default), lsilogic, buslogic or legacyESX",
        None,
    ),
    OptionSpec::new("compat6", OptionKind::Bool, "VMDK version 6 image", Some("off")),
    OptionSpec::new("hwversion", OptionKind::Text, "VMDK hardware version", Some("undefined")),
    OptionSpec::new(
        "subformat",
        OptionKind::Text,
        "VMDK flat extent format, can be one of {monolithicSparse (default) | monolithicFlat | twoGbMaxExtentSparse | twoGbMaxExtentFlat | streamOptimized} ",
        None,
    ),
    OptionSpec::new("toolsversion", OptionKind::Text, "VMware guest tools version", None),
    OptionSpec::new(
        "zeroed_grain",
        OptionKind::Bool,
        "Enable efficient zero writes using the zeroed-grain GTE feature",
        None,
    ),
];

/// What is made.
struct Plan {
    subformat: String,
    adapter: String,
    hardware: String,
    tools: String,
    zeroed: bool,
    sectors: u64,
    flat: bool,
    parts: bool,
}

fn plan(options: &CreateOptions) -> Result<Plan> {
    let mut left = options.options.clone();
    let subformat = left.take("subformat").unwrap_or_else(|| "monolithicSparse".into());
    let (flat, parts) = match subformat.as_str() {
        "monolithicSparse" | "streamOptimized" => (false, false),
        "monolithicFlat" => (true, false),
        "twoGbMaxExtentSparse" => (false, true),
        "twoGbMaxExtentFlat" => (true, true),
        other => return Err(Error::option(format!("invalid parameter value: {other}"))),
    };
    let adapter = left.take("adapter_type").unwrap_or_else(|| "ide".into());
    if !["ide", "buslogic", "lsilogic", "legacyESX"].contains(&adapter.as_str()) {
        return Err(Error::option(format!("invalid parameter value: {adapter}")));
    }
    let hardware = left.take("hwversion").filter(|version| version != "undefined");
    let compat6 = left.take_bool("compat6")?.unwrap_or(false);
    let hardware = match (hardware, compat6) {
        (Some(_), true) => return Err(Error::option("compat6 cannot be enabled with hwversion set")),
        (Some(version), false) => version,
        (None, true) => "6".into(),
        (None, false) => "4".into(),
    };
    let tools = left.take("toolsversion").unwrap_or_else(|| i32::MAX.to_string());
    if [&hardware, &tools].iter().any(|text| text.contains(['"', '\n'])) {
        return Err(Error::option("hwversion and toolsversion are numbers"));
    }
    let zeroed = left.take_bool("zeroed_grain")?.unwrap_or(false);
    left.finish()?;
    if flat && zeroed {
        return Err(Error::option("Flat image can't enable zeroed grain"));
    }
    if flat && options.backing.is_some() {
        return Err(Error::option("Flat image can't have backing file"));
    }
    let sectors = options.size.div_ceil(SECTOR);
    at_most("the disk's number of sectors", sectors, SECTORS_MAX)?;
    Ok(Plan { subformat, adapter, hardware, tools, zeroed, sectors, flat, parts })
}

pub(super) fn create(
    storage: Arc<dyn Storage>,
    name: &str,
    options: &CreateOptions,
    environment: &Environment,
    task: &Task<'_>,
) -> Result<()> {
    let plan = plan(options)?;
    let parent = parent(name, options, environment)?;
    let word = if plan.flat { "FLAT" } else { "SPARSE" };
    let kind = if plan.flat { Kind::Flat } else { Kind::Sparse };
    let line = |sectors, file: String| ExtentLine { kind, word: word.into(), sectors, file, offset: 0 };
    let own = Path::new(name).file_name().map_or(name.to_owned(), |name| name.to_string_lossy().into_owned());
    let inside = !plan.flat && !plan.parts;
    let mut extents = Vec::new();
    if inside {
        extents.push(line(plan.sectors, own));
    } else {
        // Further files have the same ending.
        let (stem, ending) = own.split_at(own.rfind('.').unwrap_or(own.len()));
        let mut left = plan.sectors.max(1);
        while left > 0 {
            task.cancel().check()?;
            let number = extents.len() + 1;
            let sectors = if plan.parts { left.min(PART_SECTORS) } else { left };
            let file = match (plan.parts, plan.flat) {
                (false, _) => format!("{stem}-flat{ending}"),
                (true, true) => format!("{stem}-f{number:03}{ending}"),
                (true, false) => format!("{stem}-s{number:03}{ending}"),
            };
            let made = environment.opener.create(&FileSpec::file(resolve(name, &file)))?;
            match plan.flat {
                true => made.set_len(sectors * SECTOR)?,
                false => sparse_file(&*made, &plan, sectors, None)?,
            }
            made.flush()?;
            extents.push(line(sectors, file));
            left -= sectors;
        }
    }
    let uuid = random_uuid()?;
    let text = New {
        cid: u32::from_le_bytes([uuid[0], uuid[1], uuid[2], uuid[3]]),
        parent: parent.as_ref().map(|(cid, name)| (*cid, name.as_str())),
        create_type: &plan.subformat,
        extents: &extents,
        sectors: plan.sectors,
        adapter: &plan.adapter,
        hardware: &plan.hardware,
        tools: &plan.tools,
    }
    .text();
    match inside {
        true => sparse_file(&*storage, &plan, plan.sectors, Some(&text))?,
        false => storage.write_at(0, text.as_bytes())?,
    }
    storage.flush()
}

/// The identity and the name of the image that the new one is over.
fn parent(name: &str, options: &CreateOptions, environment: &Environment) -> Result<Option<(u32, String)>> {
    let Some(backing) = &options.backing else { return Ok(None) };
    if backing.format.as_deref().is_some_and(|format| format != "vmdk") {
        return Err(Error::option("backing_file must be a vmdk image"));
    }
    if backing.name.contains(['"', '\n']) {
        return Err(Error::option("the backing file's name has a character that a descriptor cannot have"));
    }
    let file = FileSpec::file(resolve(name, &backing.name));
    let storage = environment.opener.open(&file, &FileStorageSpec::new(Access::Read))?;
    let cid = super::driver::identity(&*storage)?;
    Ok(Some((cid, backing.name.clone())))
}

/// Writes header, descriptor, both directories and all (empty) grain tables.
fn sparse_file(storage: &dyn Storage, plan: &Plan, sectors: u64, text: Option<&str>) -> Result<()> {
    let streams = plan.subformat == "streamOptimized";
    let mut flags = FLAG_NEWLINE | FLAG_SECOND;
    if streams {
        flags |= FLAG_COMPRESSED | FLAG_MARKERS;
    }
    if plan.zeroed {
        flags |= FLAG_ZEROED;
    }
    let version = match (streams, plan.zeroed) {
        (true, _) => 3,
        (false, true) => 2,
        (false, false) => 1,
    };
    let tables = sectors.div_ceil(GRAIN).div_ceil(ENTRIES);
    let table = (ENTRIES * 4).div_ceil(SECTOR);
    let directory = (tables * 4).div_ceil(SECTOR);
    let second = DESCRIPTOR + DESCRIPTOR_SECTORS;
    let first = second + directory + tables * table;
    let overhead = (first + directory + tables * table).next_multiple_of(GRAIN);
    at_most("the grain tables' end in sectors", overhead, u32::MAX.into())?;
    let mut header = Header::new(version, flags, sectors);
    header.descriptor_offset = DESCRIPTOR.into();
    header.descriptor_size = DESCRIPTOR_SECTORS.into();
    header.second_offset = second.into();
    header.directory_offset = first.into();
    header.overhead = overhead.into();
    if !storage.info().fixed_len {
        storage.set_len(overhead * SECTOR)?;
    }
    storage.write_at(0, header.as_bytes())?;
    for start in [second, first] {
        // At most 8 MiB, by the limit of a disk. Numbers of sectors are below 2^32, as seen above.
        let entries: Vec<u8> = (0..tables)
            .flat_map(|number| ((start + directory + number * table) as u32).to_le_bytes())
            .collect();
        storage.write_at(start * SECTOR, &entries)?;
        if storage.info().fixed_len {
            storage.write_zeroes((start + directory) * SECTOR, tables * table * SECTOR, false)?;
        }
    }
    let text = text.unwrap_or_default();
    at_most("the descriptor's length", text.len() as u64, DESCRIPTOR_SECTORS * SECTOR)?;
    let mut room = vec![0; (DESCRIPTOR_SECTORS * SECTOR) as usize];
    room[..text.len()].copy_from_slice(text.as_bytes());
    storage.write_at(DESCRIPTOR * SECTOR, &room)
}
