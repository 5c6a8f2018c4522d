//! `info`: what an image says of itself, and what its files are.

use std::fmt::Write as _;

use umbra_block::{
    BackingSpec, Disk, Error, ImageInfo, InfoValue, Node, NodeSpec, Referenced, SnapshotInfo, StorageInfo,
    resolve,
};

use super::failure::{Doing, Failure, Outcome};
use super::getopt::Parsed;
use super::json::{Json, Object};
use super::open::{PROTOCOLS, Want, file_spec};
use super::{Tool, print, size, snapshot};

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let json = tool.wants_json(parsed)?;
    let name = tool.one_name(parsed)?;
    let chain = parsed.has("backing-chain");
    let want = Want { metadata_only: true, alone: true, ..Want::new(parsed, name)? };
    let nodes = open_nodes(tool, &want, chain)?;
    let infos: Vec<NodeInfo> = nodes.iter().map(NodeInfo::of).collect::<Outcome<_>>()?;
    if json {
        let all: Vec<Json> = infos.iter().map(NodeInfo::json).collect();
        let json =
            if chain { Json::List(all) } else { all.into_iter().next().unwrap_or(Json::List(Vec::new())) };
        print(&format!("{}\n", json.pretty()));
    } else {
        let texts: Vec<String> = infos.iter().map(NodeInfo::human).collect();
        print(&texts.join("\n"));
    }
    Ok(0)
}

/// Opens the image alone, and with `chain` what is below it, each without its own backing file: an image is told of even
/// where its chain is broken.
fn open_nodes(tool: &Tool, want: &Want<'_>, chain: bool) -> Outcome<Vec<Disk>> {
    let mut spec = tool.spec(want)?;
    let mut shown = want.name.to_owned();
    let mut disks: Vec<Disk> = Vec::new();
    loop {
        let given = std::mem::replace(&mut spec.backing, BackingSpec::None);
        let disk = tool.open_spec(&spec, want.cache).doing(|| format!("Could not open '{shown}'"))?;
        let node = disk.node();
        let identity =
            |node: &Node| node.format().storages().first().and_then(|storage| storage.info().identity);
        let loops = disks
            .iter()
            .any(|other| identity(&node).is_some_and(|this| identity(&other.node()) == Some(this)));
        if loops {
            return Err(Failure::new(format!("Backing file '{shown}' creates an infinite loop.")));
        }
        let named = node.format().backing();
        disks.push(disk);
        spec = match (chain, given, named) {
            (true, BackingSpec::Node(below), _) => *below,
            (true, BackingSpec::FromImage | BackingSpec::Changed(_), Some(backing)) => {
                if !spec.follow_references {
                    let role = Referenced::Backing.role();
                    return Err(Error::ReferenceRefused { image: shown, named: backing.name, role }.into());
                }
                let node = tool.environment.opener.node_of_name(&backing.name)?.unwrap_or_else(|| NodeSpec {
                    file: file_spec(&resolve(&spec.file.name, &backing.name)),
                    ..NodeSpec::new(String::new(), None)
                });
                let format = node.format.or(backing.format);
                NodeSpec {
                    file: node.file,
                    // As where a chain is opened for good: what was found out by content names no files.
                    follow_references: format.is_some(),
                    format,
                    backing: node.backing,
                    options: node.options,
                    ..spec
                }
            }
            _ => return Ok(disks),
        };
        shown.clone_from(&spec.file.name);
    }
}

/// A file of a node.
struct File {
    /// `file`, or `extents.N`.
    role: String,
    info: StorageInfo,
    len: u64,
}

impl File {
    fn protocol(&self) -> &'static str {
        if umbra_nbd::Address::is_name(&self.info.name) {
            return "nbd";
        }
        let is_device = std::fs::metadata(&self.info.name).is_ok_and(|meta| !meta.is_file());
        if is_device { "host_device" } else { "file" }
    }
}

/// What is told of a node.
pub struct NodeInfo {
    info: ImageInfo,
    /// The backing file's name as seen from here.
    backing_path: Option<String>,
    files: Vec<File>,
}

impl NodeInfo {
    /// Asks a node.
    pub fn of(disk: &Disk) -> Outcome<NodeInfo> {
        let node = disk.node();
        let mut info = node.format().info()?;
        info.format = node.format_name().to_owned();
        info.filename = name_of(&node);
        let mut files = Vec::new();
        let storages = node.format().storages();
        // The files of a disk in several parts come first; an external data file is not told of.
        for (index, storage) in storages.iter().enumerate().rev() {
            let role = if index == 0 { "file".to_owned() } else { format!("extents.{}", index - 1) };
            if index == 0 || info.format == "vmdk" {
                // In whole sectors, as everything that a block device tells.
                files.push(File { role, info: storage.info(), len: storage.len()?.next_multiple_of(512) });
            }
        }
        let allocated: Option<u64> = files.iter().map(|file| file.info.allocated).sum();
        info.actual_size = allocated;
        // A protocol has no file below it: it is one.
        if PROTOCOLS.contains(&info.format.as_str()) {
            files.clear();
            if info.format != "nbd" {
                info.specific_type = "file".into();
            }
        }
        let backing_path = info.backing.as_ref().map(|backing| resolve(node.name(), &backing.name));
        Ok(NodeInfo { info, backing_path, files })
    }

    /// As `qemu-img info --output=json`.
    pub fn json(&self) -> Json {
        let info = &self.info;
        let children: Vec<Json> = self.files.iter().map(file_json).collect();
        let snapshots: Vec<Json> = info.snapshots.iter().map(snapshot::json).collect();
        let specific = (!info.specific_type.is_empty()).then(|| {
            let data = Json::Map(
                info.specific.iter().map(|(name, value)| (name.clone(), value_json(value))).collect(),
            );
            Object::default().with("type", info.specific_type.as_str()).with("data", data)
        });
        let backing = info.backing.as_ref();
        let knows_dirty = match info.format.as_str() {
            "nbd" => false,
            "raw" => self.files.iter().all(|file| file.protocol() != "nbd"),
            _ => true,
        };
        Object::default()
            .with("children", children)
            .with_some("snapshots", (!snapshots.is_empty()).then_some(snapshots))
            .with_some("backing-filename-format", backing.and_then(|backing| backing.format.clone()))
            .with("virtual-size", info.virtual_size)
            .with("filename", info.filename.as_str())
            .with_some("cluster-size", info.cluster_size)
            .with("format", info.format.as_str())
            .with_some("actual-size", info.actual_size)
            .with_some("format-specific", specific)
            .with_some("full-backing-filename", self.backing_path.clone())
            .with_some("backing-filename", backing.map(|backing| backing.name.clone()))
            .with_some("compressed", info.compressed.then_some(true))
            .with_some("encrypted", info.encrypted.then_some(true))
            .with_some("dirty-flag", knows_dirty.then_some(info.dirty))
            .into()
    }

    /// As `qemu-img info`.
    pub fn human(&self) -> String {
        let info = &self.info;
        let disk_size = info.actual_size.map_or_else(|| "unavailable".to_owned(), size::human);
        let mut text = format!(
            "image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {disk_size}\n",
            info.filename,
            info.format,
            size::human(info.virtual_size),
            info.virtual_size
        );
        let mut line = |name: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}: {value}");
        };
        if info.encrypted {
            line("encrypted", "yes");
        }
        if let Some(cluster) = info.cluster_size {
            line("cluster_size", &cluster.to_string());
        }
        if info.dirty {
            line("cleanly shut down", "no");
        }
        if let Some(backing) = &info.backing {
            let path = self.backing_path.as_deref().unwrap_or_default();
            match path == backing.name {
                true => line("backing file", path),
                false => line("backing file", &format!("{} (actual path: {path})", backing.name)),
            }
            if let Some(format) = &backing.format {
                line("backing file format", format);
            }
        }
        if !info.snapshots.is_empty() {
            text.push_str(&snapshot::table(&info.snapshots));
        }
        if !info.specific.is_empty() {
            text.push_str("Format specific information:\n");
            for (name, value) in &info.specific {
                value_human(&mut text, name, value, 1);
            }
        }
        for file in &self.files {
            file_human(&mut text, file);
        }
        text
    }

    /// What the image says of itself.
    pub fn info(&self) -> &ImageInfo {
        &self.info
    }

    /// Its snapshots.
    pub fn snapshots(&self) -> &[SnapshotInfo] {
        &self.info.snapshots
    }
}

/// What a node is called: its file's name, or a `json:` name where that alone would not open the same.
fn name_of(node: &Node) -> String {
    let spec = node.spec();
    let option = |name: &str| spec.options.get(name).map(|value| (name.to_owned(), Json::from(value)));
    let strong = match node.format_name() {
        "raw" => [option("offset"), option("size"), None],
        "luks" => [None, None, option("key-secret")],
        "qcow2" => [option("encrypt.key-secret"), None, None],
        "vpc" => [option("force_size_calc"), None, None],
        _ => [None, None, None],
    };
    if strong.iter().all(Option::is_none) || !matches!(spec.file.protocol.as_str(), "" | "file") {
        return node.name().to_owned();
    }
    let [first, middle, last] = strong;
    let file = Object::default().with("driver", "file").with("filename", node.name());
    let driver = ("driver".to_owned(), Json::from(node.format_name()));
    let file = ("file".to_owned(), Json::from(file));
    let members = [first, Some(driver), middle, Some(file), last];
    format!("json:{}", Json::Map(members.into_iter().flatten().collect()).line())
}

fn file_json(file: &File) -> Json {
    let specific = Object::default().with("type", file.protocol()).with("data", Object::default());
    let info = Object::default()
        .with("children", Json::List(Vec::new()))
        .with("virtual-size", file.len)
        .with("filename", file.info.name.as_str())
        .with("format", file.protocol())
        .with_some("actual-size", file.info.allocated)
        .with_some("format-specific", (file.protocol() == "file").then_some(specific))
        // Of an export nobody knows.
        .with_some("dirty-flag", (file.protocol() != "nbd").then_some(false));
    Object::default().with("name", file.role.as_str()).with("info", info).into()
}

fn file_human(text: &mut String, file: &File) {
    let allocated = file.info.allocated.map_or_else(|| "unavailable".to_owned(), size::human);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "Child node '/{}':\n    filename: {}\n    protocol type: {}\n    file length: {} ({} bytes)\n    disk size: {allocated}\n",
        file.role,
        file.info.name,
        file.protocol(),
        size::human(file.len),
        file.len,
    );
}

fn value_json(value: &InfoValue) -> Json {
    match value {
        InfoValue::Bool(truth) => Json::Bool(*truth),
        InfoValue::Int(number) => Json::from(*number),
        InfoValue::Text(text) => Json::from(text.as_str()),
        InfoValue::List(list) => Json::List(list.iter().map(value_json).collect()),
        InfoValue::Map(members) => {
            Json::Map(members.iter().map(|(name, value)| (name.clone(), value_json(value))).collect())
        }
    }
}

fn value_human(text: &mut String, name: &str, value: &InfoValue, depth: usize) {
    let name = name.replace('-', " ");
    let _ = write!(text, "{:width$}{name}:", "", width = depth * 4);
    let _ = match value {
        InfoValue::Bool(truth) => writeln!(text, " {truth}"),
        InfoValue::Int(number) => writeln!(text, " {number}"),
        InfoValue::Text(value) => writeln!(text, " {value}"),
        InfoValue::List(list) => {
            text.push('\n');
            for (index, value) in list.iter().enumerate() {
                value_human(text, &format!("[{index}]"), value, depth + 1);
            }
            Ok(())
        }
        InfoValue::Map(members) => {
            text.push('\n');
            for (name, value) in members {
                value_human(text, name, value, depth + 1);
            }
            Ok(())
        }
    };
}
