//! The builder: contents go out as files come, everything else at the end.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Seek, Write};

use crate::checksum::{START, crc32c};
use crate::directory::{self, Name};
use crate::error::{Error, Result, shown};
use crate::extent::{self, Extent};
use crate::group::{BLOCK_UNINIT, Group, INODE_UNINIT, INODE_ZEROED};
use crate::inode::{self, EXTENTS, Inode, S_IFDIR, S_IFLNK, S_IFREG};
use crate::layout::{BLOCK, DESCRIPTOR, GROUP_INODES, INODE, Layout};
use crate::output::Output;
use crate::space::{self, Space};
use crate::superblock::{FIRST_INODE, Free, Identity, JOURNAL_INODE, Superblock};
use crate::tree::{Kind, Metadata, Node, PATH_MAX, ROOT, Special, Tree};
use crate::{journal, xattr};

/// Bytes that are read at once. One chunk of zeroes becomes a hole.
const CHUNK: usize = 64 * BLOCK;
/// The root's inode.
const ROOT_INODE: u32 = 2;
/// The folder for what `e2fsck` finds, and its blocks, so that it need not grow on a full disk.
const LOST_AND_FOUND: &[u8] = b"lost+found";
const LOST_AND_FOUND_BLOCKS: usize = 4;
/// Above these many links a folder says that nobody counts them (the feature dir_nlink).
const LINKS_MAX: usize = 65_000;
/// A target that is shorter than this is kept in the inode.
const SHORT_LINK: usize = extent::ROOT_BYTES;

/// What a file system is to be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Bytes of the target, of which the file system uses as many as make whole blocks.
    pub size: u64,
    /// Its name for programs.
    pub uuid: [u8; 16],
    /// Its name for people, of which the first 16 bytes are kept.
    pub label: String,
    /// When it is made, in seconds since 1970; also the time of folders that nobody describes.
    pub time: i64,
}

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Files of all kinds.
    pub files: u32,
    /// Bytes that are not free.
    pub used: u64,
    /// Bytes of the file system.
    pub size: u64,
}

/// A file system that is being made in `W`, which reads as zeroes where nothing is written and is as large as the
/// specification says.
#[derive(Debug)]
pub struct Builder<W> {
    out: Output<W>,
    layout: Layout,
    identity: Identity,
    /// Where checksums begin.
    seed: u32,
    space: Space,
    tree: Tree,
    journal: Vec<Extent>,
}

impl<W: Write + Seek> Builder<W> {
    /// Begins.
    ///
    /// # Errors
    /// A size that is too small or too large.
    pub fn new(to: W, spec: &Spec) -> Result<Self> {
        let layout = Layout::new(spec.size)?;
        let mut label = [0; 16];
        label.iter_mut().zip(spec.label.bytes()).for_each(|(to, from)| *to = from);
        let identity = Identity { uuid: spec.uuid, label, made: spec.time };
        let mut space = Space::new(layout);
        let mut journal = Vec::new();
        take(&mut space, &mut journal, 0, journal::blocks(layout.blocks))?;
        let files = layout.inodes() - FIRST_INODE;
        Ok(Self {
            out: Output::new(to),
            layout,
            identity,
            seed: crc32c(START, &spec.uuid),
            space,
            tree: Tree::new(files, spec.time),
            journal,
        })
    }

    /// A folder; one that is there keeps what is in it.
    ///
    /// # Errors
    /// This and all others below: a path that cannot be, a full file system, a target that cannot be written.
    pub fn directory(&mut self, path: &[u8], metadata: &Metadata) -> Result<()> {
        self.put(path, metadata, Kind::Directory(BTreeMap::new()))
    }

    /// A plain file of `size` bytes, which `content` gives.
    ///
    /// # Errors
    /// Also where it gives fewer.
    pub fn file(
        &mut self,
        path: &[u8],
        metadata: &Metadata,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<()> {
        // The path first: a file that goes nowhere need not be read.
        self.tree.place(path)?;
        if size > self.layout.blocks * BLOCK as u64 {
            return Err(Error::Full);
        }
        let extents = self.content(path, size, content)?;
        self.put(path, metadata, Kind::File { size, extents })
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// Also for a target that is empty, longer than 4,095 bytes, or has a zero in it.
    pub fn symlink(&mut self, path: &[u8], metadata: &Metadata, target: &[u8]) -> Result<()> {
        if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) {
            return Err(Error::Name { path: shown(path), why: "it links to what is no path" });
        }
        self.put(path, metadata, Kind::Symlink(target.to_vec()))
    }

    /// A device, a pipe or a socket.
    ///
    /// # Errors
    /// As above.
    pub fn special(&mut self, path: &[u8], metadata: &Metadata, special: Special) -> Result<()> {
        self.put(path, metadata, Kind::Special(special))
    }

    /// Another name for a file that is there.
    ///
    /// # Errors
    /// Also where it is not there, or is a folder.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        self.tree.link(path, target)?;
        self.collect();
        Ok(())
    }

    /// What comes now lies over what was there: a layer of a container's image.
    pub fn begin_layer(&mut self) {
        self.tree.begin_layer();
    }

    /// Removes a file, or a folder with all that is in it; what is not there is fine.
    ///
    /// # Errors
    /// A path that cannot be.
    pub fn remove(&mut self, path: &[u8]) -> Result<()> {
        self.tree.remove(path)?;
        self.collect();
        Ok(())
    }

    /// Removes what lower layers have put into a folder.
    ///
    /// # Errors
    /// A path that cannot be.
    pub fn clear(&mut self, path: &[u8]) -> Result<()> {
        self.tree.clear(path)?;
        self.collect();
        Ok(())
    }

    fn put(&mut self, path: &[u8], metadata: &Metadata, kind: Kind) -> Result<()> {
        let xattrs = xattr::read(path, &metadata.xattrs)?;
        let node = self.tree.make(metadata, xattrs, kind);
        self.tree.put(path, node)?;
        self.collect();
        Ok(())
    }

    /// Blocks of files that were replaced are free.
    fn collect(&mut self) {
        self.tree.freed.drain(..).for_each(|extent| self.space.free(extent.blocks()));
    }

    fn content(&mut self, path: &[u8], size: u64, content: &mut dyn Read) -> Result<Vec<Extent>> {
        let failed = |source| Error::Content { path: shown(path), source };
        let mut extents = Vec::new();
        let mut buffer = vec![0; CHUNK.min(size.next_multiple_of(BLOCK as u64) as usize)];
        let (mut left, mut logical) = (size, 0u32);
        while left > 0 {
            let len = left.min(CHUNK as u64) as usize;
            let blocks = len.div_ceil(BLOCK);
            let (data, rest) = buffer.split_at_mut(len);
            content.read_exact(data).map_err(failed)?;
            rest.fill(0);
            if len < CHUNK || !is_zero(data) {
                self.write(&mut extents, logical, &buffer[..blocks * BLOCK])?;
            }
            (left, logical) = (left - len as u64, logical + blocks as u32);
        }
        Ok(extents)
    }

    fn write(&mut self, extents: &mut Vec<Extent>, mut logical: u32, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            let run = self.space.take((data.len() / BLOCK) as u64)?;
            let count = run.end - run.start;
            let (now, later) = data.split_at(count as usize * BLOCK);
            self.out.write_block(run.start, now)?;
            extent::push(extents, logical, run);
            (logical, data) = (logical + count as u32, later);
        }
        Ok(())
    }

    /// Writes everything else, and gives the target back.
    ///
    /// # Errors
    /// A full file system, a target that cannot be written.
    pub fn finish(mut self) -> Result<(W, Summary)> {
        self.lost_and_found()?;
        let numbers = self.number();
        let mut inodes = Inodes::new(self.layout);
        let journal = self.journal_inode(&mut inodes)?;
        for (node, number) in numbers.order.iter().map(|node| (*node, numbers.of(*node))) {
            self.describe(node, number, &numbers, &mut inodes)?;
        }
        self.space.settle();
        let free = self.groups(&mut inodes, journal)?;
        let used = (self.layout.blocks - free.blocks) * BLOCK as u64;
        let files = numbers.order.len() as u32;
        let size = self.layout.blocks * BLOCK as u64;
        Ok((self.out.finish()?, Summary { files, used, size }))
    }

    fn lost_and_found(&mut self) -> Result<()> {
        if !matches!(
            self.tree.find(LOST_AND_FOUND)?.and_then(|n| self.tree.node(n)),
            Some(Node { kind: Kind::Directory(_), .. })
        ) {
            let metadata = Metadata { mode: 0o700, modified: (self.identity.made, 0), ..Metadata::default() };
            self.directory(LOST_AND_FOUND, &metadata)?;
        }
        Ok(())
    }

    /// Gives inodes to all files: the root's, `lost+found`'s, and the others' folder by folder.
    fn number(&mut self) -> Numbers {
        let mut numbers = Numbers::default();
        numbers.add(ROOT, ROOT_INODE);
        let lost = self.tree.find(LOST_AND_FOUND).ok().flatten().unwrap_or(ROOT);
        let mut next = FIRST_INODE;
        if lost != ROOT {
            numbers.add(lost, next);
        }
        next += 1;
        let mut folders = VecDeque::from([ROOT]);
        while let Some(folder) = folders.pop_front() {
            let Some(Node { kind: Kind::Directory(entries), .. }) = self.tree.node(folder) else { continue };
            for child in entries.values().copied() {
                if !numbers.has(child) {
                    numbers.add(child, next);
                    next += 1;
                }
                if matches!(self.tree.node(child), Some(Node { kind: Kind::Directory(_), .. })) {
                    folders.push_back(child);
                }
            }
        }
        numbers
    }

    fn journal_inode(&mut self, inodes: &mut Inodes) -> Result<([u8; 60], (u32, u32))> {
        let blocks = journal::blocks(self.layout.blocks);
        let extents = std::mem::take(&mut self.journal);
        let seed = inode::seed(self.seed, JOURNAL_INODE);
        let mut journal = Inode::new(S_IFREG | 0o600, (0, 0), (self.identity.made, 0));
        journal.links = 1.into();
        journal.set_size(blocks * BLOCK as u64);
        self.set_extents(&mut journal, &extents, 0, seed)?;
        if let Some(first) = extents.first() {
            self.out.write_block(first.physical, &journal::first_block(blocks, [0; 16]))?;
        }
        let copy = (journal.block, journal.size_halves());
        inodes.put(&mut self.out, JOURNAL_INODE, journal.finish(seed), false)?;
        Ok(copy)
    }

    /// Puts runs into an inode which has `more` blocks beside them.
    fn set_extents(&mut self, inode: &mut Inode, extents: &[Extent], more: u64, seed: u32) -> Result<()> {
        let mut blocks = more + extents.iter().map(|extent| u64::from(extent.len)).sum::<u64>();
        let (space, out) = (&mut self.space, &mut self.out);
        inode.block = extent::tree(extents, seed, |block| {
            let place = space.take_one()?;
            blocks += 1;
            out.write_block(place, block).map(|()| place)
        })?;
        inode.flags = (inode.flags.get() | EXTENTS).into();
        inode.set_blocks(blocks);
        Ok(())
    }

    /// Writes a node's inode and what belongs to it.
    fn describe(&mut self, node: usize, number: u32, numbers: &Numbers, inodes: &mut Inodes) -> Result<()> {
        let seed = inode::seed(self.seed, number);
        let Some(it) = self.tree.node_mut(node) else { return Ok(()) };
        let (owner, modified, mode, links) = ((it.uid, it.gid), it.modified, it.mode, it.links);
        let (xattrs, parent) = (std::mem::take(&mut it.xattrs), it.parent);
        // A folder's names are needed for its own blocks only, all others' kinds for those of their folders.
        let kind = match &mut it.kind {
            Kind::Directory(entries) => Kind::Directory(std::mem::take(entries)),
            Kind::File { size, extents } => Kind::File { size: *size, extents: std::mem::take(extents) },
            Kind::Symlink(target) => Kind::Symlink(std::mem::take(target)),
            Kind::Special(special) => Kind::Special(*special),
        };
        let (type_bits, _) = type_of(&kind);
        let mut inode = Inode::new(type_bits | mode, owner, modified);
        inode.links = (links as u16).into();
        let mut more = 0;
        match xattr::in_inode(&xattrs) {
            Some(bytes) => inode.xattrs = bytes,
            None => {
                let place = self.space.take_one()?;
                self.out.write_block(place, &xattr::block(&xattrs, place, self.seed))?;
                inode.set_xattr_block(place);
                more = 1;
            }
        }
        inode.set_blocks(more);
        let is_folder = matches!(kind, Kind::Directory(_));
        match kind {
            Kind::Directory(entries) => {
                let blocks = self.names(number, numbers.of(parent), &entries, numbers, seed, &mut inode);
                // Its children are described after it, and their own names are still there.
                let extents = self.write_all(&blocks)?;
                inode.set_size((blocks.len() * BLOCK) as u64);
                self.set_extents(&mut inode, &extents, more, seed)?;
            }
            Kind::File { size, extents } => {
                inode.set_size(size);
                self.set_extents(&mut inode, &extents, more, seed)?;
            }
            Kind::Symlink(target) => {
                inode.set_size(target.len() as u64);
                if target.len() < SHORT_LINK {
                    inode.block.iter_mut().zip(target).for_each(|(to, from)| *to = from);
                } else {
                    let mut block = [0; BLOCK];
                    block.iter_mut().zip(target).for_each(|(to, from)| *to = from);
                    let extents = self.write_all(&[block])?;
                    self.set_extents(&mut inode, &extents, more, seed)?;
                }
            }
            Kind::Special(special) => {
                let words = inode::special(special).2;
                let bytes = words.iter().flat_map(|word| word.to_le_bytes());
                inode.block.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            }
        }
        inodes.put(&mut self.out, number, inode.finish(seed), is_folder)
    }

    /// The blocks of a folder.
    fn names(
        &self,
        own: u32,
        parent: u32,
        entries: &BTreeMap<Box<[u8]>, usize>,
        numbers: &Numbers,
        seed: u32,
        inode: &mut Inode,
    ) -> Vec<[u8; BLOCK]> {
        let kind = |node: usize| self.tree.node(node).map_or(0, |node| type_of(&node.kind).1);
        let folders = entries.values().filter(|node| kind(**node) == 2).count();
        inode.links = (if folders + 2 > LINKS_MAX { 1 } else { folders as u16 + 2 }).into();
        let dots = [(b".".as_slice(), own), (b"..".as_slice(), parent)];
        let dots = dots.into_iter().map(|(name, inode)| Name { name, inode, kind: 2 });
        let names =
            entries.iter().map(|(name, node)| Name { name, inode: numbers.of(*node), kind: kind(*node) });
        let mut blocks = directory::blocks(dots.chain(names), seed);
        if own == FIRST_INODE {
            while blocks.len() < LOST_AND_FOUND_BLOCKS {
                blocks.extend(directory::blocks(std::iter::empty(), seed));
            }
        }
        blocks
    }

    fn write_all(&mut self, blocks: &[[u8; BLOCK]]) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        for (logical, block) in blocks.iter().enumerate() {
            self.write(&mut extents, logical as u32, block)?;
        }
        Ok(extents)
    }

    /// Writes bitmaps, descriptors and superblocks.
    fn groups(&mut self, inodes: &mut Inodes, journal: ([u8; 60], (u32, u32))) -> Result<Free> {
        let layout = self.layout;
        inodes.flush(&mut self.out)?;
        let mut free = Free { blocks: 0, inodes: 0 };
        let mut descriptors = Vec::with_capacity((layout.descriptor_blocks as usize) * BLOCK);
        for number in 0..layout.groups {
            let (bitmap, free_blocks) = self.space.bitmap(number);
            let (used, folders) = inodes.counts.get(&number).copied().unwrap_or_default();
            let mut group = Group {
                flags: INODE_ZEROED,
                free_blocks,
                inodes: used,
                folders,
                block_bitmap_sum: 0,
                inode_bitmap_sum: 0,
            };
            let is_last = number + 1 == layout.groups;
            if self.space.is_untouched(number) && !Layout::is_leader(number) && !is_last {
                group.flags |= BLOCK_UNINIT;
            } else {
                group.block_bitmap_sum = crc32c(self.seed, &bitmap);
                self.out.write_block(layout.block_bitmap(number), &bitmap)?;
            }
            if used == 0 {
                group.flags |= INODE_UNINIT;
            } else {
                let mut bits = [0xff; BLOCK];
                space::set(&mut bits, u64::from(used)..u64::from(GROUP_INODES), false);
                group.inode_bitmap_sum = crc32c(self.seed, &bits[..GROUP_INODES as usize / 8]);
                self.out.write_block(layout.inode_bitmap(number), &bits)?;
            }
            free.blocks += free_blocks;
            free.inodes += GROUP_INODES - used;
            descriptors.extend(group.descriptor(&layout, number, self.seed));
        }
        descriptors.resize((layout.descriptor_blocks as usize) * BLOCK, 0);
        let superblock = Superblock::new(&layout, &self.identity, free, journal);
        for group in (0..layout.groups).rev().filter(|group| Layout::has_super(*group)) {
            let place = layout.group(group).start;
            self.out.write_block(place + 1, &descriptors)?;
            // Last of all the first: before it there is no file system.
            self.out.write_block(place, &superblock.block(group))?;
        }
        Ok(free)
    }
}

/// Takes blocks for something that is not written now.
fn take(space: &mut Space, extents: &mut Vec<Extent>, mut logical: u32, blocks: u64) -> Result<()> {
    let end = u64::from(logical) + blocks;
    while u64::from(logical) < end {
        let run = space.take(end - u64::from(logical))?;
        let count = (run.end - run.start) as u32;
        extent::push(extents, logical, run);
        logical += count;
    }
    Ok(())
}

fn is_zero(data: &[u8]) -> bool {
    data.iter().all(|byte| *byte == 0)
}

/// What an inode's mode and a folder's entry say of a kind.
fn type_of(kind: &Kind) -> (u16, u8) {
    match kind {
        Kind::File { .. } => (S_IFREG, 1),
        Kind::Directory(_) => (S_IFDIR, 2),
        Kind::Symlink(_) => (S_IFLNK, 7),
        Kind::Special(special) => {
            let (mode, kind, _) = inode::special(*special);
            (mode, kind)
        }
    }
}

/// The inodes of all nodes.
#[derive(Debug, Default)]
struct Numbers {
    numbers: BTreeMap<usize, u32>,
    /// In the order of their inodes, so that tables are written from beginning to end.
    order: Vec<usize>,
}

impl Numbers {
    fn add(&mut self, node: usize, number: u32) {
        self.numbers.insert(node, number);
        self.order.push(node);
    }

    fn has(&self, node: usize) -> bool {
        self.numbers.contains_key(&node)
    }

    fn of(&self, node: usize) -> u32 {
        self.numbers.get(&node).copied().unwrap_or(0)
    }
}

/// The inode tables: a block is written when it is full.
#[derive(Debug)]
struct Inodes {
    layout: Layout,
    /// The block that is being filled, and what is in it.
    block: Option<(u64, Box<[u8; BLOCK]>)>,
    /// Inodes and folders of each group that has any.
    counts: BTreeMap<u64, (u32, u32)>,
}

impl Inodes {
    fn new(layout: Layout) -> Self {
        // The first ten are the file system's own, and most of them nothing.
        let counts = BTreeMap::from([(0, (FIRST_INODE - 1, 0))]);
        Self { layout, block: None, counts }
    }

    fn put<W: Write + Seek>(
        &mut self,
        out: &mut Output<W>,
        number: u32,
        inode: [u8; INODE],
        is_folder: bool,
    ) -> Result<()> {
        let (group, index) = (u64::from((number - 1) / GROUP_INODES), (number - 1) % GROUP_INODES);
        let count = self.counts.entry(group).or_default();
        *count = (count.0.max(index + 1), count.1 + u32::from(is_folder));
        let offset = index as usize * INODE;
        let place = self.layout.inode_table(group) + (offset / BLOCK) as u64;
        if self.block.as_ref().is_none_or(|(at, _)| *at != place) {
            self.flush(out)?;
            self.block = Some((place, Box::new([0; BLOCK])));
        }
        if let Some((_, block)) = &mut self.block {
            block.iter_mut().skip(offset % BLOCK).zip(inode).for_each(|(to, from)| *to = from);
        }
        Ok(())
    }

    fn flush<W: Write + Seek>(&mut self, out: &mut Output<W>) -> Result<()> {
        match self.block.take() {
            Some((place, block)) => out.write_block(place, &*block),
            None => Ok(()),
        }
    }
}

const _: () = assert!(BLOCK.is_multiple_of(DESCRIPTOR) && BLOCK.is_multiple_of(INODE));
