//! `measure`: how large an image would be.

use umbra_block::{CreateOptions, Disk};

use super::failure::{Failure, Outcome};
use super::getopt::Parsed;
use super::json::{Json, Object};
use super::open::Want;
use super::{Tool, convert, create, print, size, target};

/// Clusters of qcow2 where no option says otherwise.
const CLUSTER: u64 = 65536;

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let json = tool.wants_json(parsed)?;
    let size = parsed.last("size").map(create::parse_size).transpose()?;
    let file = match parsed.operands.as_slice() {
        [] => None,
        [name] => Some(name.as_str()),
        _ => return Err(Failure::new("At most one filename argument is allowed.")),
    };
    let about_file = ["image-opts", "format", "snapshot"].iter().any(|key| parsed.has(key));
    match (size, file) {
        (_, None) if about_file => {
            return Err(Failure::new("--image-opts, -f, and -l require a filename argument."));
        }
        (None, None) => return Err(Failure::new("Either --size N or one filename must be specified.")),
        (Some(_), Some(_)) => return Err(Failure::new("--size N cannot be used together with a filename.")),
        _ => {}
    }
    let format = parsed.last("target-format").unwrap_or("raw");
    let driver = tool.driver(format)?;
    let texts: Vec<&str> = parsed.all("options").collect();
    let given = target::given(&**driver, &texts)?;
    let cluster = given.options.get("cluster_size").map_or(Ok(CLUSTER), size::parse);
    let cluster = cluster.map_err(|_| Failure::new("cluster_size is no size"))?.max(512);
    let (mut disk, mut total) = (None, size.unwrap_or(0));
    if let Some(name) = file {
        let now = tool.open(&Want::new(parsed, name)?)?;
        total = now.size();
        disk = Some(match parsed.last("snapshot") {
            Some(snapshot) => convert::open_snapshot(&now, snapshot)?,
            None => now,
        });
    }
    let data = match &disk {
        Some(disk) => {
            // An image that grew after the snapshot is measured at its present size; one that shrank needs room for all
            // that the snapshot has.
            total = total.max(disk.size());
            data_of(tool, disk, cluster)?
        }
        None => 0,
    };
    let options = CreateOptions { size: given.size.unwrap_or(total), backing: None, options: given.options };
    if driver.name() == "luks" && options.options.get("key-secret").is_none() {
        return Err(Failure::new("Parameter 'key-secret' is required for cipher"));
    }
    let below = given.backing_file.is_some();
    let Some((required, full)) = driver.measure(&options, data)? else {
        return Err(Failure::new(format!("Block driver '{format}' does not support size measurement")));
    };
    // What a backing file would spare is not known here.
    let required = if below { full } else { required };
    let bitmaps =
        disk.as_ref().filter(|_| format == "qcow2").map(|disk| bitmaps_of(disk, cluster)).transpose()?;
    report(json, required, full, bitmaps.flatten());
    Ok(0)
}

fn report(json: bool, required: u64, full: u64, bitmaps: Option<u64>) {
    if json {
        let object = Object::default()
            .with_some("bitmaps", bitmaps)
            .with("required", required)
            .with("fully-allocated", full);
        print(&format!("{}\n", Json::from(object).pretty()));
        return;
    }
    print(&format!("required size: {required}\nfully allocated size: {full}\n"));
    if let Some(bitmaps) = bitmaps {
        print(&format!("bitmaps size: {bitmaps}\n"));
    }
}

/// Bytes of the clusters that would be written.
fn data_of(tool: &Tool, disk: &Disk, cluster: u64) -> Outcome<u64> {
    let mut data = 0;
    let mut at = 0;
    while at < disk.size() {
        tool.signals.cancel().check()?;
        let status = disk.block_status(at, disk.size() - at)?;
        let mut end = at + status.len.max(1);
        if !status.zero && status.data {
            // A cluster that is begun is written whole.
            end = end.next_multiple_of(cluster);
            data += end - at / cluster * cluster;
        }
        at = end;
    }
    Ok(data)
}

/// Bytes that persistent bitmaps take: their data, a table for each, and the directory. `None` where the format has none.
fn bitmaps_of(disk: &Disk, cluster: u64) -> Outcome<Option<u64>> {
    let node = disk.node();
    let Some(bitmaps) = node.format().bitmaps() else { return Ok(None) };
    let (mut bytes, mut directory) = (0, 0u64);
    for bitmap in bitmaps.list()? {
        if bitmap.in_use {
            continue;
        }
        let clusters = disk.size().div_ceil(bitmap.granularity.max(1)).div_ceil(8).div_ceil(cluster);
        bytes += clusters * cluster + (clusters * 8).next_multiple_of(cluster);
        // A directory's entry: 24 bytes and the name, to a multiple of 8.
        directory += (24 + bitmap.name.len() as u64).next_multiple_of(8);
    }
    Ok(Some(bytes + directory.next_multiple_of(cluster)))
}
