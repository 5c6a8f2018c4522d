//! The one loop that moves data: over a format, its storages, and the node behind it.
//!
//! Every node has a lock on ranges. Reads and writes in place share; whatever changes mappings has its units alone, from
//! before the place is prepared until it is committed. So overlapping copy-on-write is serialized, and nobody has data
//! in flight to a place that is freed. Draining is having the whole disk alone.

mod bounce;
mod chain;
mod codec;
mod gate;
mod plan;
mod queue;
mod range_lock;
mod read;
mod status;
mod write;

#[cfg(test)]
mod queue_test;
#[cfg(test)]
mod range_lock_test;

use std::fmt;
use std::sync::{Arc, RwLock};

use gate::Gate;
pub use queue::{Aio, Done, Queue, Request};
use range_lock::RangeLock;
pub use status::BlockStatus;
pub(crate) use write::is_zero;

use crate::{
    BitmapInfo, DetectZeroes, Discard, Environment, Error, Format, FormatWrite, Geometry, IoBuf, IoSrc,
    NodeSpec, Preallocation, Result, SnapshotInfo, SnapshotTarget, Snapshots, Task,
};

/// A node of a chain: an image, and the node behind it.
pub struct Node {
    format: Box<dyn Format>,
    format_name: String,
    name: String,
    spec: NodeSpec,
    backing: RwLock<Option<Arc<Node>>>,
    locks: RangeLock,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("format", &self.format_name)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// A node over a format. `name` and `format_name` are for messages.
    pub fn new(
        format: Box<dyn Format>,
        format_name: impl Into<String>,
        spec: NodeSpec,
        backing: Option<Arc<Node>>,
    ) -> Arc<Self> {
        let name = spec.file.name.clone();
        Arc::new(Self {
            format,
            format_name: format_name.into(),
            name,
            spec,
            backing: RwLock::new(backing),
            locks: RangeLock::default(),
        })
    }

    /// The format. Calls that change something are safe only while the disk is drained.
    pub fn format(&self) -> &dyn Format {
        &*self.format
    }

    /// The format's name.
    pub fn format_name(&self) -> &str {
        &self.format_name
    }

    /// The image's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it was specified.
    pub fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    /// The node behind it.
    pub fn backing(&self) -> Option<Arc<Node>> {
        self.backing.read().unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    fn snapshots_for_change(&self) -> Result<&dyn Snapshots> {
        self.writer("change snapshots")?;
        self.format.snapshots().ok_or_else(|| {
            Error::Unsupported(format!("format '{}' has no internal snapshots", self.format_name))
        })
    }

    fn writer(&self, what: &str) -> Result<&dyn FormatWrite> {
        self.format.write().ok_or_else(|| Error::ReadOnly(what.to_owned()))
    }

    /// The end of a range that must lie in the disk.
    fn range(&self, what: &'static str, offset: u64, len: u64) -> Result<u64> {
        let size = self.format.geometry().size;
        offset.checked_add(len).filter(|&end| end <= size).ok_or(Error::OutOfRange {
            what,
            offset,
            len,
            size,
        })
    }
}

/// A disk: the top of a chain. All calls may come from many threads at once.
#[derive(Debug)]
pub struct Disk {
    gate: Gate,
    discard: Discard,
    detect_zeroes: DetectZeroes,
}

impl Disk {
    /// Opens an image and what is behind it.
    ///
    /// # Errors
    /// Whatever is wrong with one of them; [`Error::BackingLoop`].
    pub fn open(environment: &Environment, spec: &NodeSpec) -> Result<Self> {
        Ok(Self::over(chain::open(environment, spec)?))
    }

    /// A disk over a node that is open already.
    pub fn over(node: Arc<Node>) -> Self {
        Self { gate: Gate::new(node), discard: Discard::Unmap, detect_zeroes: DetectZeroes::Off }
    }

    /// What becomes of discard requests and of writes of zeroes. A new disk unmaps and does not look for zeroes.
    #[must_use]
    pub fn with_policy(mut self, discard: Discard, detect_zeroes: DetectZeroes) -> Self {
        (self.discard, self.detect_zeroes) = (discard, detect_zeroes);
        self
    }

    /// The node at the top.
    pub fn node(&self) -> Arc<Node> {
        self.gate.top()
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.geometry().size
    }

    /// Sizes of the format at the top.
    pub fn geometry(&self) -> Geometry {
        self.node().format.geometry()
    }

    /// The disk behind this one, read-only in use.
    pub fn backing(&self) -> Option<Disk> {
        self.node().backing().map(Disk::over)
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// A range beyond the end, a storage that fails, metadata that is wrong.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.readv(offset, &[IoBuf::new(bytes)])
    }

    /// Fills the buffers from `offset`.
    ///
    /// # Errors
    /// As `read`.
    pub fn readv(&self, offset: u64, bufs: &[IoBuf<'_>]) -> Result<()> {
        self.on_top(|node| node.readv(offset, bufs))
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// As `read`; [`Error::ReadOnly`].
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writev(offset, &[IoSrc::new(bytes)])
    }

    /// Writes the sources at `offset`.
    ///
    /// # Errors
    /// As `write`.
    pub fn writev(&self, offset: u64, srcs: &[IoSrc<'_>]) -> Result<()> {
        self.on_top(|node| match self.detect_zeroes {
            DetectZeroes::Off => node.writev(offset, srcs),
            mode => node.writev_detecting(offset, srcs, mode == DetectZeroes::Unmap),
        })
    }

    /// Writes one unit ([`Geometry::compression`]) compressed: `offset` is a multiple of the unit, `bytes` are a unit or
    /// reach to the disk's end. Data that does not get smaller is written plain. Calls from many threads compress in
    /// parallel.
    ///
    /// # Errors
    /// As `write`; [`Error::Unsupported`] where the format has no compression.
    pub fn write_compressed(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.on_top(|node| node.write_compressed(offset, bytes))
    }

    /// Makes a range read as zeroes; with `unmap` its space may be given back.
    ///
    /// # Errors
    /// As `write`.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.on_top(|node| node.write_zeroes(offset, len, unmap && self.discard == Discard::Unmap))
    }

    /// The range is not needed any more: it reads as zeroes or as before afterwards.
    ///
    /// # Errors
    /// As `write`.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        match self.discard {
            Discard::Ignore => Ok(()),
            Discard::Unmap => self.on_top(|node| node.discard(offset, len)),
        }
    }

    /// Makes all that was written before durable.
    ///
    /// # Errors
    /// The storage's.
    pub fn flush(&self) -> Result<()> {
        self.on_top(|node| node.format.flush())
    }

    /// What is at `offset`, for up to `len` bytes, in whichever node of the chain it is.
    ///
    /// # Errors
    /// As `read`.
    pub fn block_status(&self, offset: u64, len: u64) -> Result<BlockStatus> {
        self.on_top(|node| node.block_status(offset, len))
    }

    /// Whether the node at the top itself has something (data or zeroes) at `offset`, and for how many bytes.
    ///
    /// # Errors
    /// As `read`.
    pub fn is_allocated(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        self.on_top(|node| node.is_allocated(offset, len))
    }

    /// Waits until nothing is in flight, and keeps everything out until the guard is dropped.
    pub fn drain(&self) -> Drained<'_> {
        Drained { top: self.gate.close(), gate: &self.gate }
    }

    /// Changes the disk's size. Making it smaller needs `shrink`.
    ///
    /// # Errors
    /// [`Error::Refused`] without `shrink`; the format's.
    pub fn resize(
        &self,
        size: u64,
        preallocation: Preallocation,
        shrink: bool,
        task: &Task<'_>,
    ) -> Result<()> {
        self.drained(|node| {
            let old = node.format.geometry().size;
            if size < old && !shrink {
                return Err(Error::Refused(
                    "shrinking an image loses all data beyond the new end; use --shrink to do it all the same".into(),
                ));
            }
            if size > old && node.format.snapshots().is_some() {
                // What the last unit holds behind the end goes before it becomes part of the disk. Only formats that
                // keep VM state there have mappings behind the end.
                let unit = node.format.geometry().unit.max(1);
                node.clear_new_end(old, old.next_multiple_of(unit).min(size))?;
            }
            node.writer("resize")?.resize(size, preallocation, task)?;
            if size > old {
                node.clear_new_end(old, size)?;
            }
            node.format.flush()
        })
    }

    /// Drops all that the image at the top itself has, so that what is behind it shows everywhere.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the format cannot; the format's.
    pub fn make_empty(&self) -> Result<()> {
        self.drained(|node| node.writer("empty")?.make_empty())
    }

    /// Runs `work` on the node at the top while the disk is drained. `work` must not call this disk: it would wait for itself.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn drained<T>(&self, work: impl FnOnce(&Node) -> Result<T>) -> Result<T> {
        let drained = self.drain();
        let node = drained.node();
        let _alone = node.locks.exclusive(0, u64::MAX);
        work(node)
    }

    /// Internal snapshots.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        self.node().format.snapshots().map_or(Ok(Vec::new()), |snapshots| snapshots.list())
    }

    /// Keeps the disk as it is now in an internal snapshot; its id.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the format has none; the format's.
    pub fn snapshot_create(&self, info: &SnapshotInfo) -> Result<String> {
        self.drained(|node| node.snapshots_for_change()?.create(info))
    }

    /// Makes the disk what it was at a snapshot.
    ///
    /// # Errors
    /// As `snapshot_create`; [`Error::NotFound`].
    pub fn snapshot_apply(&self, target: SnapshotTarget<'_>) -> Result<()> {
        self.drained(|node| node.snapshots_for_change()?.apply(target))
    }

    /// Forgets a snapshot.
    ///
    /// # Errors
    /// As `snapshot_create`; [`Error::NotFound`].
    pub fn snapshot_delete(&self, target: SnapshotTarget<'_>) -> Result<()> {
        self.drained(|node| node.snapshots_for_change()?.delete(target))
    }

    /// Persistent dirty bitmaps.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    pub fn bitmaps(&self) -> Result<Vec<BitmapInfo>> {
        self.node().format.bitmaps().map_or(Ok(Vec::new()), |bitmaps| bitmaps.list())
    }

    /// Reads VM state, `offset` bytes into its area behind the disk.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the format has no such area; the format's.
    pub fn read_vm_state(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.on_top(|node| node.read_vm_state(offset, bytes))
    }

    /// Writes VM state, `offset` bytes into its area behind the disk.
    ///
    /// # Errors
    /// As `read_vm_state`.
    pub fn write_vm_state(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.on_top(|node| node.write_vm_state(offset, bytes))
    }

    /// Flushes, and leaves the images as ones that were closed in order.
    ///
    /// # Errors
    /// The storage's.
    pub fn close(self) -> Result<()> {
        self.drained(|node| node.format.close())
    }

    /// Runs on the node that is the top while it runs: a node is exchanged only when nobody is in it.
    fn on_top<T>(&self, work: impl FnOnce(&Node) -> Result<T>) -> Result<T> {
        work(self.gate.enter().node())
    }
}

/// A disk with nothing in flight. Requests wait until it is dropped.
#[derive(Debug)]
pub struct Drained<'a> {
    top: Arc<Node>,
    gate: &'a Gate,
}

impl Drop for Drained<'_> {
    fn drop(&mut self) {
        self.gate.open(self.top.clone());
    }
}

impl Drained<'_> {
    /// The node at the top.
    pub fn node(&self) -> &Arc<Node> {
        &self.top
    }

    /// Puts another node at the top (a mirror that is complete, a new overlay); the one that was there.
    ///
    /// # Errors
    /// [`Error::Refused`] where its size is another.
    pub fn exchange(&mut self, node: Arc<Node>) -> Result<Arc<Node>> {
        if node.format.geometry().size != self.top.format.geometry().size {
            return Err(Error::Refused(format!("'{}' has another size than the disk in use", node.name)));
        }
        Ok(std::mem::replace(&mut self.top, node))
    }

    /// Puts another node behind the one at the top (after commit or rebase); the one that was there.
    pub fn exchange_backing(&mut self, backing: Option<Arc<Node>>) -> Option<Arc<Node>> {
        let mut place = self.top.backing.write().unwrap_or_else(|poison| poison.into_inner());
        std::mem::replace(&mut place, backing)
    }
}
