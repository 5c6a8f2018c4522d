//! Opening a chain: an image, the file that it names as its backing file, and so on.
//!
//! An image that names a backing file should name its format too. Where it does not, the content decides; but a guest
//! may have written that content, so files which a node that was found in this way names by itself are not opened.

use std::sync::Arc;

use super::Node;
use crate::io::GuessedRaw;
use crate::node::resolve;
use crate::{
    Access, BackingSpec, Environment, Error, FileSpec, FileStorageSpec, LockMode, NodeSpec, OpenRequest,
    Options, Referenced, Registry, Result, Storage, StorageExt,
};

/// Images in a chain. Each takes a descriptor and a stack frame of every read.
const CHAIN_MAX: usize = 512;

/// Opens the node of `spec`, and what is behind it.
pub(super) fn open(environment: &Environment, spec: &NodeSpec) -> Result<Arc<Node>> {
    let mut seen = Vec::new();
    let mut opened = Vec::new();
    let mut next = Some(spec.clone());
    while let Some(spec) = next.take() {
        if opened.len() == CHAIN_MAX {
            return Err(Error::TooLarge {
                what: "number of images in the backing chain".to_owned(),
                value: CHAIN_MAX as u64 + 1,
                limit: CHAIN_MAX as u64,
            });
        }
        let behind = !opened.is_empty();
        let name = spec.file.name.clone();
        let node = open_one(environment, spec, &mut seen);
        let (node, backing) = match node {
            Err(error) if behind && !matches!(error, Error::BackingLoop(_)) => {
                let role = Referenced::Backing.role();
                return Err(Error::Reference { role, name, source: Box::new(error) });
            }
            node => node?,
        };
        opened.push(node);
        next = backing;
    }
    let mut behind: Option<Arc<Node>> = None;
    while let Some((format, name, spec)) = opened.pop() {
        if let Some(parent) = behind.as_ref().filter(|_| !spec.metadata_only) {
            is_parent(&*format, &spec, parent)?;
        }
        behind = Some(Node::new(format, name, spec, behind.take()));
    }
    behind.ok_or_else(|| Error::corrupt("a chain of no images"))
}

/// Fails where the node behind is not the one that an image was made over, as far as its format can tell.
fn is_parent(format: &dyn crate::Format, spec: &NodeSpec, parent: &Node) -> Result<()> {
    let wanted = format.parent_identities();
    match parent.format().identity() {
        Some(found) if !wanted.is_empty() && !wanted.contains(&found) => Err(Error::OtherParent {
            image: spec.file.name.clone(),
            parent: parent.name().to_owned(),
            found,
            wanted: wanted.join(" or "),
        }),
        _ => Ok(()),
    }
}

type Opened = (Box<dyn crate::Format>, String, NodeSpec);

fn open_one(
    environment: &Environment,
    mut spec: NodeSpec,
    seen: &mut Vec<(u64, u64)>,
) -> Result<(Opened, Option<NodeSpec>)> {
    let how = FileStorageSpec { access: spec.access, direct: spec.direct, lock: spec.lock };
    let storage = environment.opener.open(&spec.file, &how)?;
    if let Some(identity) = storage.info().identity {
        if seen.contains(&identity) {
            return Err(Error::BackingLoop(spec.file.name));
        }
        seen.push(identity);
    }
    let driver = match &spec.format {
        Some(name) => environment.registry.get(name)?,
        None => probe(environment, &*storage, &spec.file.name)?,
    };
    let guessed = spec.format.is_none() && spec.access == Access::ReadWrite && driver.name() == "raw";
    let storage = match guessed {
        true => Arc::new(GuessedRaw::over(storage, environment.registry.clone())),
        false => storage,
    };
    let request = OpenRequest {
        storage,
        name: &spec.file.name,
        read_only: spec.access == Access::Read,
        for_check: spec.for_check,
        metadata_only: spec.metadata_only,
        options: spec.options.clone(),
        spec: &spec,
        environment,
    };
    let format = driver.open(request).map_err(|error| match error {
        Error::InvalidOption(text) if text.starts_with("Invalid parameter ") => {
            let name = text.trim_start_matches("Invalid parameter ");
            Error::option(format!("Block format '{}' does not support the option {name}", driver.name()))
        }
        other => other,
    })?;
    let backing = match &spec.backing {
        BackingSpec::None => None,
        BackingSpec::Node(node) => Some((**node).clone()),
        BackingSpec::FromImage => named_by(environment, &*format, &spec)?,
        BackingSpec::Changed(wish) => {
            if format.backing().is_none() {
                let source = Box::new(Error::option("Must specify either driver or file"));
                let role = Referenced::Backing.role();
                return Err(Error::Reference { role, name: String::new(), source });
            }
            named_by(environment, &*format, &spec)?.map(|named| changed(named, wish, &spec))
        }
    };
    let name = driver.name().to_owned();
    spec.format = Some(name.clone());
    Ok(((format, name, spec), backing))
}

/// What an image names, opened as the user wishes. The user vouches for it, so what it names is opened too.
fn changed(named: NodeSpec, wish: &NodeSpec, above: &NodeSpec) -> NodeSpec {
    let format = wish.format.clone().or(named.format);
    NodeSpec {
        follow_references: above.follow_references && format.is_some(),
        format,
        file: named.file,
        direct: wish.direct || named.direct,
        lock: if wish.lock == LockMode::None { wish.lock } else { named.lock },
        metadata_only: above.metadata_only,
        ..wish.clone()
    }
}

/// The node that an image names as its backing file.
fn named_by(
    environment: &Environment,
    format: &dyn crate::Format,
    spec: &NodeSpec,
) -> Result<Option<NodeSpec>> {
    let Some(backing) = format.backing().filter(|_| !spec.for_check) else { return Ok(None) };
    if !spec.follow_references {
        return Err(Error::ReferenceRefused {
            image: spec.file.name.clone(),
            named: backing.name,
            role: Referenced::Backing.role(),
        });
    }
    let explicit = backing.format.is_some();
    if let Some(node) = environment.opener.node_of_name(&backing.name)? {
        let format = node.format.clone().or(backing.format);
        let follow_references = format.is_some();
        let inherited = NodeSpec { access: Access::Read, direct: spec.direct, lock: spec.lock, ..node };
        return Ok(Some(NodeSpec {
            format,
            follow_references,
            metadata_only: spec.metadata_only,
            ..inherited
        }));
    }
    Ok(Some(NodeSpec {
        file: FileSpec::file(resolve(&spec.file.name, &backing.name)),
        format: backing.format,
        backing: BackingSpec::FromImage,
        options: Options::new(),
        access: Access::Read,
        follow_references: explicit,
        ..spec.clone()
    }))
}

/// The format that a file's content shows.
pub(crate) fn probe<'a>(
    environment: &'a Environment,
    storage: &dyn Storage,
    name: &str,
) -> Result<&'a Arc<dyn crate::FormatDriver>> {
    let head = storage.read_vec(0, Registry::PROBE_BYTES)?;
    let len = storage.len()?;
    let found = environment.registry.probe(&head, len, name);
    found.ok_or_else(|| Error::not_this_format(name, "known", "no format recognizes its content"))
}
