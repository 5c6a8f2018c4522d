//! `commit`: write what an overlay has into an image below it.
//!
//! The order keeps everything safe: the base gets the data and is flushed before the overlay loses anything, so a commit
//! that is interrupted leaves the same content, and can be made again.

use std::sync::Arc;

use umbra_block::{Access, BackingSpec, Disk, Error, Node, NodeSpec, resolve};

use super::copy;
use super::failure::{Doing, Failure, Outcome};
use super::getopt::Parsed;
use super::open::Want;
use super::{Tool, print};

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let rate = copy::rate(parsed)?;
    let drop = parsed.has("drop") || parsed.has("base");
    let name = tool.one_name(parsed)?;
    let want = Want::new(parsed, name)?;
    // To find the base the chain is only read.
    let (depth, base_name) = {
        let disk = tool.open(&want)?;
        find_base(&disk, name, parsed.last("base"))?
    };
    if parsed.has("dry-run") {
        print(&format!("would write what '{name}' has into '{base_name}'\n"));
        return Ok(0);
    }
    let (top, base) = open_both(tool, &want, depth)?;
    tool.progress(parsed).run(|task| -> Outcome<()> {
        umbra_block::commit(&top, &base, depth, rate, task)?;
        match drop {
            true => Ok(()),
            false => empty(&top),
        }
    })?;
    top.close()?;
    base.close()?;
    if !parsed.has("quiet") {
        print("Image committed.\n");
    }
    Ok(0)
}

/// The base has everything now. An overlay of a format that cannot be emptied stays as it is.
fn empty(top: &Disk) -> Outcome<()> {
    match top.make_empty() {
        Err(Error::Unsupported(_)) => Ok(()),
        done => done.doing(|| "the base has everything, but the image could not be emptied".to_owned()),
    }
}

fn same_file(one: &str, other: &str) -> bool {
    let real = |name: &str| std::fs::canonicalize(name);
    matches!((real(one), real(other)), (Ok(one), Ok(other)) if one == other)
}

/// How far below the top the base is, and what it is called.
fn find_base(disk: &Disk, name: &str, base: Option<&str>) -> Outcome<(usize, String)> {
    let mut below = disk.backing().ok_or_else(|| Failure::new("Image does not have a backing file"))?;
    let Some(base) = base else { return Ok((1, below.node().name().to_owned())) };
    let path = resolve(name, base);
    for depth in 1.. {
        let node = below.node();
        if node.name() == base || node.name() == path || same_file(node.name(), base) {
            return Ok((depth, node.name().to_owned()));
        }
        let Some(next) = below.backing() else { break };
        below = next;
    }
    Err(Failure::new(format!("Did not find '{base}' in the backing chain of '{name}'")))
}

/// Opens the chain with two nodes that can be written: the top and the base. The base is one node of both.
fn open_both(tool: &Tool, want: &Want<'_>, depth: usize) -> Outcome<(Disk, Disk)> {
    let specs = chain_specs(tool, want)?;
    let mut below: Option<Arc<Node>> = None;
    let mut base = None;
    for (index, spec) in specs.into_iter().enumerate().rev() {
        let writable = index == 0 || index == depth;
        let access = if writable { Access::ReadWrite } else { Access::Read };
        let alone = NodeSpec { access, backing: BackingSpec::None, ..spec };
        let disk =
            tool.open_spec(&alone, want.cache).doing(|| format!("Could not open '{}'", alone.file.name))?;
        disk.drain().exchange_backing(below.take());
        if index == depth {
            base = Some(Disk::over(disk.node()));
        }
        below = Some(disk.node());
    }
    match (below, base) {
        (Some(top), Some(base)) => Ok((Disk::over(top), base)),
        _ => Err(Failure::new("Image does not have a backing file")),
    }
}

/// How each image of a chain is opened, from the top down.
fn chain_specs(tool: &Tool, want: &Want<'_>) -> Outcome<Vec<NodeSpec>> {
    let mut specs = Vec::new();
    let mut next = Some(tool.open(&Want { writable: false, ..*want })?);
    while let Some(disk) = next {
        specs.push(disk.node().spec().clone());
        next = disk.backing();
    }
    Ok(specs)
}
