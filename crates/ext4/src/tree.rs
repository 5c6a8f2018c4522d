//! The tree of files while it is being put together.
//!
//! Paths are an archive's: relative to the root whether or not they begin with a slash. Links among the folders of a path are
//! followed, and lead nowhere but into the tree, as they would for a process whose root it is.

use std::collections::BTreeMap;

use crate::error::{Error, Result, shown};
use crate::extent::Extent;
use crate::xattr::Xattr;

/// Bytes of a name.
const NAME_MAX: usize = 255;
/// Bytes of a path, and of what a symbolic link holds: Linux' PATH_MAX, less the ending zero.
pub const PATH_MAX: usize = 4095;
/// Links that are followed for one path, as Linux does.
const FOLLOW_MAX: u32 = 40;
/// Names that one file can have (`EXT4_LINK_MAX`).
const LINKS_MAX: u32 = 65_000;

/// The root's number.
pub const ROOT: usize = 0;

/// What a file has beside its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permissions, with the bits for set-user-ID, set-group-ID and sticky.
    pub mode: u16,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was last changed: seconds since 1970, and nanoseconds.
    pub modified: (i64, u32),
    /// Extended attributes: full names, such as `security.capability`, and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A file that is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// A character device.
    Character {
        /// Its driver.
        major: u32,
        /// Which of the driver's.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Its driver.
        major: u32,
        /// Which of the driver's.
        minor: u32,
    },
    /// A pipe with a name.
    Fifo,
    /// A socket that nobody listens at.
    Socket,
}

/// What a file is.
#[derive(Debug)]
pub enum Kind {
    Directory(BTreeMap<Box<[u8]>, usize>),
    File { size: u64, extents: Vec<Extent> },
    Symlink(Vec<u8>),
    Special(Special),
}

/// A file of any kind.
#[derive(Debug)]
pub struct Node {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub modified: (i64, u32),
    pub xattrs: Vec<Xattr>,
    pub kind: Kind,
    /// The folder of a folder.
    pub parent: usize,
    /// Its names.
    pub links: u32,
    /// The layer that last said something of it or of what is in it.
    layer: u32,
}

/// All files.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Option<Node>>,
    /// Numbers without a node.
    unused: Vec<usize>,
    layer: u32,
    nodes_max: u32,
    /// Time of folders that nobody described.
    time: i64,
    /// Blocks of files that are gone.
    pub freed: Vec<Extent>,
}

/// A folder and a name in it.
#[derive(Debug)]
pub struct Place {
    pub folder: usize,
    pub name: Box<[u8]>,
}

impl Tree {
    pub fn new(nodes_max: u32, time: i64) -> Self {
        let mut tree =
            Self { nodes: Vec::new(), unused: Vec::new(), layer: 0, nodes_max, time, freed: Vec::new() };
        let root = tree.implied();
        tree.nodes.push(Some(root));
        tree
    }

    /// A folder that a path needs and nobody has described.
    fn implied(&self) -> Node {
        let kind = Kind::Directory(BTreeMap::new());
        let modified = (self.time, 0);
        let (mode, uid, gid, xattrs) = (0o755, 0, 0, Vec::new());
        Node { mode, uid, gid, modified, xattrs, kind, parent: ROOT, links: 1, layer: self.layer }
    }

    /// What comes now lies over what was there.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
    }

    pub fn node(&self, number: usize) -> Option<&Node> {
        self.nodes.get(number)?.as_ref()
    }

    pub fn node_mut(&mut self, number: usize) -> Option<&mut Node> {
        self.nodes.get_mut(number)?.as_mut()
    }

    fn entries(&self, number: usize) -> Option<&BTreeMap<Box<[u8]>, usize>> {
        match &self.node(number)?.kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    fn child(&self, folder: usize, name: &[u8]) -> Option<usize> {
        self.entries(folder)?.get(name).copied()
    }

    /// The place of a path, whose folders are made where they are not there; `None` for the root itself.
    pub fn place(&mut self, path: &[u8]) -> Result<Option<Place>> {
        let mut parts = names(path)?;
        let Some(name) = parts.pop() else { return Ok(None) };
        let folder = self.folder(path, &parts, true)?;
        Ok(folder.map(|folder| Place { folder, name: name.into() }))
    }

    /// The same without making anything.
    pub fn find(&mut self, path: &[u8]) -> Result<Option<usize>> {
        let mut parts = names(path)?;
        let Some(name) = parts.pop() else { return Ok(Some(ROOT)) };
        let folder = self.folder(path, &parts, false)?;
        Ok(folder.and_then(|folder| self.child(folder, name)))
    }

    /// Walks folders from the root.
    fn folder(&mut self, path: &[u8], parts: &[&[u8]], make: bool) -> Result<Option<usize>> {
        let mut at = ROOT;
        let mut follow = FOLLOW_MAX;
        // The next part is the last.
        let mut left: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        while let Some(part) = left.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    at = self.node(at).map_or(ROOT, |node| node.parent);
                    continue;
                }
                _ => {}
            }
            if part.len() > NAME_MAX {
                return Err(wrong(path, "a part of it has more than 255 bytes"));
            }
            let Some(child) = self.child(at, &part) else {
                if !make {
                    return Ok(None);
                }
                at = self.insert(Place { folder: at, name: part.into() }, self.implied(), path)?;
                continue;
            };
            match self.node(child).map(|node| &node.kind) {
                Some(Kind::Directory(_)) => at = child,
                Some(Kind::Symlink(target)) => {
                    follow = follow.checked_sub(1).ok_or_else(|| wrong(path, "links lead around in it"))?;
                    let target = target.clone();
                    if target.first() == Some(&b'/') {
                        at = ROOT;
                    }
                    left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                _ if !make => return Ok(None),
                _ => return Err(wrong(path, "what it takes for a folder is none")),
            }
        }
        Ok(Some(at))
    }

    /// A node of what is known of it.
    pub fn make(&self, metadata: &Metadata, xattrs: Vec<Xattr>, kind: Kind) -> Node {
        let Metadata { mode, uid, gid, modified, .. } = *metadata;
        Node {
            mode: mode & 0o7777,
            uid,
            gid,
            modified,
            xattrs,
            kind,
            parent: ROOT,
            links: 1,
            layer: self.layer,
        }
    }

    /// Puts a node at its place, where whatever was there goes; a folder keeps what is in it where a folder comes.
    pub fn put(&mut self, path: &[u8], mut node: Node) -> Result<usize> {
        let Some(place) = self.place(path)? else {
            let Kind::Directory(_) = node.kind else { return Err(wrong(path, "it is the root")) };
            self.describe(ROOT, node);
            return Ok(ROOT);
        };
        if let Some(old) = self.child(place.folder, &place.name) {
            if matches!(node.kind, Kind::Directory(_)) && self.entries(old).is_some() {
                self.describe(old, node);
                self.touch(old);
                return Ok(old);
            }
            self.detach(place.folder, &place.name);
        }
        node.parent = place.folder;
        self.insert(place, node, path)
    }

    /// Gives a folder another's metadata.
    fn describe(&mut self, number: usize, node: Node) {
        if let Some(old) = self.node_mut(number) {
            let kind = std::mem::replace(&mut old.kind, Kind::Symlink(Vec::new()));
            *old = Node { kind, parent: old.parent, ..node };
        }
    }

    fn insert(&mut self, place: Place, mut node: Node, path: &[u8]) -> Result<usize> {
        if place.name.len() > NAME_MAX {
            return Err(wrong(path, "a part of it has more than 255 bytes"));
        }
        let live = self.nodes.len() - self.unused.len();
        if live >= self.nodes_max as usize {
            return Err(Error::TooManyFiles(self.nodes_max));
        }
        node.parent = place.folder;
        let number = match self.unused.pop() {
            Some(number) => number,
            None => {
                self.nodes.push(None);
                self.nodes.len() - 1
            }
        };
        if let Some(slot) = self.nodes.get_mut(number) {
            *slot = Some(node);
        }
        self.name(place, number);
        Ok(number)
    }

    fn name(&mut self, place: Place, number: usize) {
        let folder = place.folder;
        if let Some(Node { kind: Kind::Directory(entries), .. }) = self.node_mut(folder) {
            entries.insert(place.name, number);
        }
        self.touch(folder);
    }

    /// This layer has something to say of a folder.
    fn touch(&mut self, mut number: usize) {
        let layer = self.layer;
        while let Some(node) = self.node_mut(number)
            && node.layer != layer
        {
            node.layer = layer;
            number = node.parent;
        }
    }

    /// A second name for a file.
    pub fn link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let failed = |why| Error::Link { path: shown(path), target: shown(target), why };
        let number = self.find(target)?.ok_or_else(|| failed("which is not there"))?;
        if self.entries(number).is_some() {
            return Err(failed("which is a folder"));
        }
        let Some(place) = self.place(path)? else { return Err(wrong(path, "it is the root")) };
        if self.child(place.folder, &place.name) == Some(number) {
            return Ok(());
        }
        let links = self.node(number).map_or(0, |node| node.links);
        if links >= LINKS_MAX {
            return Err(failed("which has 65,000 names already"));
        }
        // Before the old file of this name goes, whose links may have led to the target.
        if let Some(node) = self.node_mut(number) {
            node.links += 1;
        }
        self.detach(place.folder, &place.name);
        self.name(place, number);
        Ok(())
    }

    /// Removes a file, or a folder with all that is in it. What is not there is fine.
    pub fn remove(&mut self, path: &[u8]) -> Result<()> {
        let mut parts = names(path)?;
        let Some(name) = parts.pop() else { return Err(wrong(path, "it is the root")) };
        if let Some(folder) = self.folder(path, &parts, false)? {
            self.detach(folder, name);
        }
        Ok(())
    }

    /// Removes what lower layers have put into a folder.
    pub fn clear(&mut self, path: &[u8]) -> Result<()> {
        let Some(number) = self.find(path)? else { return Ok(()) };
        let mut folders = vec![number];
        while let Some(folder) = folders.pop() {
            let Some(entries) = self.entries(folder) else { continue };
            let mut gone = Vec::new();
            for (name, child) in entries {
                match self.node(*child) {
                    Some(node) if node.layer == self.layer => folders.push(*child),
                    _ => gone.push(name.clone()),
                }
            }
            gone.iter().for_each(|name| self.detach(folder, name));
        }
        Ok(())
    }

    /// Takes a name out of a folder, and away what has no other.
    fn detach(&mut self, folder: usize, name: &[u8]) {
        let mut gone = match self.node_mut(folder).map(|node| &mut node.kind) {
            Some(Kind::Directory(entries)) => entries.remove(name).into_iter().collect(),
            _ => Vec::new(),
        };
        while let Some(number) = gone.pop() {
            let Some(node) = self.node_mut(number) else { continue };
            node.links = node.links.saturating_sub(1);
            if node.links > 0 {
                continue;
            }
            let Some(node) = self.nodes.get_mut(number).and_then(Option::take) else { continue };
            self.unused.push(number);
            match node.kind {
                Kind::Directory(entries) => gone.extend(entries.into_values()),
                Kind::File { extents, .. } => self.freed.extend(extents),
                Kind::Symlink(_) | Kind::Special(_) => {}
            }
        }
    }
}

/// The names in a path. An archive's `..` can only be meant badly.
fn names(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.len() > PATH_MAX {
        return Err(wrong(path, "it has more than 4,095 bytes"));
    }
    if path.contains(&0) {
        return Err(wrong(path, "there is a zero byte in it"));
    }
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(wrong(path, "it has a `..`"));
    }
    if parts.iter().any(|part| part.len() > NAME_MAX) {
        return Err(wrong(path, "a part of it has more than 255 bytes"));
    }
    Ok(parts)
}

fn wrong(path: &[u8], why: &'static str) -> Error {
    Error::Name { path: shown(path), why }
}
