//! `tree`: a chain of images with their snapshots and sizes, from the base up.

use std::fmt::Write as _;

use umbra_block::Disk;

use super::failure::Outcome;
use super::getopt::Parsed;
use super::info::NodeInfo;
use super::json::{Json, Object};
use super::open::Want;
use super::{Tool, print, size, snapshot};

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let json = tool.wants_json(parsed)?;
    let name = tool.one_name(parsed)?;
    let mut next = Some(tool.open(&Want { metadata_only: true, ..Want::new(parsed, name)? })?);
    let mut nodes = Vec::new();
    while let Some(disk) = next {
        next = disk.backing();
        nodes.push(node(&disk)?);
    }
    // The base is the root: what lies on it are its overlays.
    nodes.reverse();
    if json {
        let list = nodes.iter().map(Node::json).collect();
        print(&format!("{}\n", Json::List(list).pretty()));
    } else {
        print(&text(&nodes));
    }
    Ok(0)
}

struct Node {
    info: NodeInfo,
    /// Bytes of the disk that this image itself has.
    own: u64,
}

fn node(disk: &Disk) -> Outcome<Node> {
    let mut own = 0;
    let mut at = 0;
    while at < disk.size() {
        let (allocated, len) = disk.is_allocated(at, disk.size() - at)?;
        own += if allocated { len } else { 0 };
        at += len.max(1);
    }
    Ok(Node { info: NodeInfo::of(disk)?, own })
}

impl Node {
    fn json(&self) -> Json {
        let info = self.info.info();
        Object::default()
            .with("filename", info.filename.as_str())
            .with("format", info.format.as_str())
            .with("virtual-size", info.virtual_size)
            .with_some("actual-size", info.actual_size)
            .with("own-size", self.own)
            .with("snapshots", self.info.snapshots().iter().map(snapshot::json).collect::<Vec<_>>())
            .into()
    }
}

fn text(nodes: &[Node]) -> String {
    let mut text = String::new();
    for (depth, node) in nodes.iter().enumerate() {
        let info = node.info.info();
        let indent = "   ".repeat(depth.saturating_sub(1));
        let branch = if depth == 0 { "" } else { "└─ " };
        let on_disk = info.actual_size.map_or_else(|| "?".to_owned(), size::human);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{indent}{branch}{} ({}, {}; own data {}, on disk {on_disk})",
            info.filename,
            info.format,
            size::human(info.virtual_size),
            size::human(node.own),
        );
        let indent = "   ".repeat(depth);
        let overlay = depth + 1 < nodes.len();
        for (index, one) in node.info.snapshots().iter().enumerate() {
            let last = index + 1 == node.info.snapshots().len() && !overlay;
            let branch = if last { "└─" } else { "├─" };
            let state = match one.vm_state_size {
                0 => String::new(),
                bytes => format!(", with {} of VM state", size::human(bytes)),
            };
            let date = snapshot::date(one);
            let _ = writeln!(text, "{indent}{branch} snapshot {} '{}', {date}{state}", one.id, one.name);
        }
    }
    text
}
