//! Whether a request is nothing but bytes of files: then it can be handed to the kernel, and nobody has to wait for it.
//!
//! A plan holds what the request must hold while it is under way. Nothing here waits for other requests; metadata may be
//! read. What is no such request (compressed, encrypted, to be allocated, or in the way of another) has no plan, and is
//! left to a thread that may wait.

use std::sync::Arc;

use super::{Disk, Node};
use crate::io::{Memory, Op, slice_bufs, slice_srcs};
use crate::{DetectZeroes, IoBuf, IoSrc, Mapping, Place, Prepare};

/// Parts of one request. More would take long to plan, and a thread does as well.
const PARTS_MAX: usize = 64;

/// A range of a node, shared with others.
#[derive(Debug)]
struct Held {
    node: Arc<Node>,
    ticket: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.node.locks.release(self.ticket);
    }
}

/// What is to be done, and what is held for it.
#[derive(Debug, Default)]
pub(super) struct Plan<'m> {
    pub ops: Vec<Op<'m>>,
    held: Vec<Held>,
}

impl<'m> Plan<'m> {
    /// For a read. What reads as zeroes is filled at once.
    pub(super) fn read(node: &Arc<Node>, offset: u64, bufs: &[IoBuf<'m>]) -> Option<Self> {
        let mut plan = Plan::default();
        plan.add_read(node, offset, bufs)?;
        Some(plan)
    }

    /// For a write to places that there are.
    pub(super) fn write(disk: &Disk, node: &Arc<Node>, offset: u64, srcs: &[IoSrc<'m>]) -> Option<Self> {
        if disk.detect_zeroes != DetectZeroes::Off || node.format.cipher().is_some() {
            return None;
        }
        let len = IoSrc::total(srcs);
        let end = node.range("write", offset, len).ok()?;
        let writer = node.format.write()?;
        let mut plan = Plan::default();
        plan.hold(node, offset, end)?;
        let mut at = offset;
        while at < end {
            let prepared = writer.prepare(at, end - at, Prepare::InPlace).ok()??;
            let len = prepared.len.min(end - at);
            if len == 0 || prepared.place.sector.is_some() {
                return None;
            }
            plan.add(node, prepared.place, Memory::Write(slice_srcs(srcs, at - offset, len)))?;
            at += len;
        }
        Some(plan)
    }

    fn hold(&mut self, node: &Arc<Node>, start: u64, end: u64) -> Option<()> {
        let ticket = node.locks.try_shared(start, end)?;
        self.held.push(Held { node: node.clone(), ticket });
        Some(())
    }

    fn add(&mut self, node: &Arc<Node>, place: Place, memory: Memory<'m>) -> Option<()> {
        let storage = node.format.storages().get(place.storage.0)?;
        let alignment = storage.handle()?.alignment;
        if !memory.is_aligned(place.offset, alignment) || self.ops.len() == PARTS_MAX {
            return None;
        }
        self.ops.push(Op { storage: storage.clone(), offset: place.offset, memory });
        Some(())
    }

    fn add_read(&mut self, node: &Arc<Node>, offset: u64, bufs: &[IoBuf<'m>]) -> Option<()> {
        let len = IoBuf::total(bufs);
        let end = node.range("read", offset, len).ok()?;
        self.hold(node, offset, end)?;
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let extent = node.format.map(at, len - done).ok()?;
            if extent.len == 0 || extent.len > len - done {
                return None;
            }
            let part = slice_bufs(bufs, done, extent.len);
            match extent.mapping {
                Mapping::Data(place) if place.sector.is_none() => {
                    self.add(node, place, Memory::Read(part))?
                }
                Mapping::Zero(_) => part.iter().for_each(IoBuf::zero),
                Mapping::Backing => self.add_backing(node, at, extent.len, &part)?,
                Mapping::Data(_) | Mapping::Compressed { .. } => return None,
            }
            done += extent.len;
        }
        Some(())
    }

    /// From the node behind; zeroes behind its end.
    fn add_backing(&mut self, node: &Arc<Node>, at: u64, len: u64, bufs: &[IoBuf<'m>]) -> Option<()> {
        let backing = node.backing();
        let have = backing.as_ref().map_or(0, |backing| backing.format.geometry().size);
        let have = have.saturating_sub(at).min(len);
        slice_bufs(bufs, have, len).iter().for_each(IoBuf::zero);
        match backing.filter(|_| have > 0) {
            Some(backing) => self.add_read(&backing, at, &slice_bufs(bufs, 0, have)),
            None => Some(()),
        }
    }
}
