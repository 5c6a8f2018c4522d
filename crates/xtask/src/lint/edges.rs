//! Which crate may know which: the table of `ARCHITECTURE.md`, checked against `cargo metadata`.
//!
//! A crate sees the layers before its own; within a layer only what [`SAME_LAYER`] lists. On top of that stand the
//! named rules: one crate alone names an engine and a device, disks and networks know nothing of guest memory, and a
//! few third-party crates stay behind one door each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::DependencyKind;

use super::Finding;

/// The layers of the house, in the order of the architecture's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Vocabulary,
    Engine,
    Backend,
    Device,
    Assembly,
    Program,
    Tests,
}

impl Layer {
    /// The layers that this one may see.
    fn sees(self) -> &'static [Layer] {
        use Layer::{Assembly, Backend, Device, Engine, Program, Tests, Vocabulary};
        match self {
            Vocabulary => &[],
            Engine | Backend => &[Vocabulary],
            Device => &[Vocabulary, Backend],
            Assembly => &[Vocabulary, Engine, Backend, Device],
            Program => &[Vocabulary, Engine, Backend, Device, Assembly],
            Tests => &[Vocabulary, Engine, Backend, Device, Assembly, Program, Tests],
        }
    }
}

/// Every room of the house. A crate that is not here is a finding: it needs a place first.
const ROOMS: [(&str, Layer); 30] = [
    ("x86", Layer::Vocabulary),
    ("apic", Layer::Vocabulary),
    ("memory", Layer::Vocabulary),
    ("device", Layer::Vocabulary),
    ("state", Layer::Vocabulary),
    ("engine", Layer::Engine),
    ("engine-kvm", Layer::Engine),
    ("engine-soft", Layer::Engine),
    ("block", Layer::Backend),
    ("block-formats", Layer::Backend),
    ("nbd", Layer::Backend),
    ("ext4", Layer::Backend),
    ("net", Layer::Backend),
    ("host", Layer::Backend),
    ("irqchip", Layer::Device),
    ("chipset", Layer::Device),
    ("pci", Layer::Device),
    ("virtio", Layer::Device),
    ("vfio", Layer::Device),
    ("agent", Layer::Assembly),
    ("boot", Layer::Assembly),
    ("machine", Layer::Assembly),
    ("migrate", Layer::Assembly),
    ("oci", Layer::Assembly),
    ("sandbox", Layer::Assembly),
    ("server", Layer::Assembly),
    ("umbra", Layer::Program),
    ("testkit", Layer::Tests),
    ("xtask", Layer::Tests),
    ("fuzz", Layer::Tests),
];

/// Edges within a layer: from, to.
const SAME_LAYER: [(&str, &str); 19] = [
    ("apic", "x86"),
    ("apic", "state"),
    ("memory", "x86"),
    ("memory", "state"),
    ("device", "state"),
    ("engine-kvm", "engine"),
    ("engine-soft", "engine"),
    ("block-formats", "block"),
    ("nbd", "block"),
    ("virtio", "pci"),
    ("vfio", "pci"),
    ("machine", "boot"),
    ("machine", "sandbox"),
    ("migrate", "machine"),
    ("oci", "boot"),
    ("oci", "machine"),
    ("server", "machine"),
    ("server", "migrate"),
    ("server", "oci"),
];

/// Crates whose tests may be used by any crate's tests.
const TEST_HELPERS: [&str; 2] = ["testkit", "xtask"];

/// Disks, networks and the host know nothing of these, not even through somebody else.
const UNKNOWN_TO_BACKENDS: [&str; 2] = ["memory", "vm-memory"];

/// Third-party crates behind one door: the crate, and who may name it (the tests always may).
const ONLY_IN: [(&str, &[&str]); 4] = [
    ("kvm-ioctls", &["engine-kvm"]),
    ("kvm-bindings", &["engine-kvm"]),
    ("iced-x86", &["engine-soft"]),
    ("tokio", &["server"]),
];

/// What the lint knows of one crate of the workspace.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Name without the `umbra-` prefix.
    pub name: String,
    /// Its manifest, relative to the workspace.
    pub manifest: PathBuf,
    /// The manifest's text, to find lines in.
    pub text: String,
    /// What it depends on: name without prefix, and whether for its tests only.
    pub dependencies: Vec<(String, bool)>,
}

impl Facts {
    fn finding(&self, dependency: &str, what: String, cure: &str) -> Finding {
        let names = |line: &str| {
            let name = line.trim().split(['.', '=', ' ']).next().unwrap_or_default();
            name.strip_prefix("umbra-").unwrap_or(name) == dependency
        };
        let line = self.text.lines().position(names).map_or(1, |index| index + 1);
        Finding { file: self.manifest.clone(), line, what, cure: cure.to_owned() }
    }
}

pub(super) fn run(root: &Path) -> Result<Vec<Finding>> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .current_dir(root)
        .no_deps()
        .exec()
        .context("cannot read cargo metadata")?;
    let mut crates = Vec::new();
    for package in metadata.workspace_packages() {
        let manifest = package.manifest_path.as_std_path();
        crates.push(Facts {
            name: room_name(&package.name),
            manifest: manifest.strip_prefix(root).unwrap_or(manifest).to_path_buf(),
            text: std::fs::read_to_string(manifest)
                .with_context(|| format!("cannot read {}", manifest.display()))?,
            dependencies: package
                .dependencies
                .iter()
                .map(|dependency| {
                    (room_name(&dependency.name), dependency.kind == DependencyKind::Development)
                })
                .collect(),
        });
    }
    Ok(check(&crates))
}

fn room_name(package: &str) -> String {
    package.strip_prefix("umbra-").unwrap_or(package).to_owned()
}

fn layer_of(name: &str) -> Option<Layer> {
    ROOMS.iter().find(|(room, _)| *room == name).map(|(_, layer)| *layer)
}

/// Checks the whole workspace.
pub(super) fn check(crates: &[Facts]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for facts in crates {
        let Some(layer) = layer_of(&facts.name) else {
            findings.push(facts.finding(
                "name",
                format!("crate `{}` has no room", facts.name),
                "give it a layer in ARCHITECTURE.md and in the table of crates/xtask/src/lint/edges.rs",
            ));
            continue;
        };
        findings.extend(facts.dependencies.iter().filter_map(|(to, dev)| check_edge(facts, layer, to, *dev)));
        findings.extend(check_engine_and_device(facts, layer));
    }
    findings.extend(check_backends(crates));
    findings
}

fn check_edge(facts: &Facts, layer: Layer, to: &str, dev: bool) -> Option<Finding> {
    let from = facts.name.as_str();
    if let Some((_, doors)) = ONLY_IN.iter().find(|(name, _)| *name == to)
        && layer != Layer::Tests
        && !doors.contains(&from)
    {
        let what = format!("`{from}` names `{to}`, which only {} may", doors.join(", "));
        return Some(facts.finding(to, what, "ask that crate for what you need"));
    }
    let target = layer_of(to)?;
    let allowed = layer.sees().contains(&target)
        || SAME_LAYER.contains(&(from, to))
        || (dev && TEST_HELPERS.contains(&to));
    (!allowed).then(|| {
        facts.finding(
            to,
            format!("`{from}` (layer {layer:?}) may not know `{to}` (layer {target:?})"),
            "turn the dependency round or move the shared part to an earlier layer; the edges are in \
             ARCHITECTURE.md and crates/xtask/src/lint/edges.rs",
        )
    })
}

/// Rule 2: `machine` alone may name an engine and a device.
fn check_engine_and_device(facts: &Facts, layer: Layer) -> Option<Finding> {
    if facts.name == "machine" || matches!(layer, Layer::Program | Layer::Tests) {
        return None;
    }
    let named = |wanted: Layer| {
        let of_layer = |(name, dev): &&(String, bool)| !dev && layer_of(name) == Some(wanted);
        facts.dependencies.iter().find(of_layer).map(|(name, _)| name.as_str())
    };
    let (engine, device) = (named(Layer::Engine)?, named(Layer::Device)?);
    Some(facts.finding(
        engine,
        format!("`{}` names an engine (`{engine}`) and a device (`{device}`)", facts.name),
        "only `machine` may: let it bring the two together",
    ))
}

/// Rule 3: nothing of guest memory, virtio or an engine is reachable from a backend.
fn check_backends(crates: &[Facts]) -> Vec<Finding> {
    let edges: BTreeMap<&str, BTreeSet<&str>> = crates
        .iter()
        .map(|facts| {
            let direct = facts.dependencies.iter().filter(|(_, dev)| !dev).map(|(name, _)| name.as_str());
            (facts.name.as_str(), direct.collect())
        })
        .collect();
    let mut findings = Vec::new();
    for facts in crates.iter().filter(|facts| layer_of(&facts.name) == Some(Layer::Backend)) {
        for (direct, _) in facts.dependencies.iter().filter(|(_, dev)| !dev) {
            if let Some(forbidden) = reachable(direct, &edges).into_iter().find(|name| is_guest_side(name)) {
                findings.push(facts.finding(
                    direct,
                    format!("`{}` reaches `{forbidden}` through `{direct}`", facts.name),
                    "a backend gets an `IoBuf` and knows nothing of guests",
                ));
            }
        }
    }
    findings
}

fn is_guest_side(name: &str) -> bool {
    UNKNOWN_TO_BACKENDS.contains(&name) || matches!(layer_of(name), Some(Layer::Engine | Layer::Device))
}

/// `start` and everything that it depends on within the workspace.
fn reachable<'a>(start: &'a str, edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut open = vec![start];
    while let Some(name) = open.pop() {
        if seen.insert(name) {
            open.extend(edges.get(name).into_iter().flatten());
        }
    }
    seen
}
