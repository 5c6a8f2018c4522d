//! Archives of tar (POSIX pax, ustar and GNU's), entry by entry, and how they become files of a file system.
//!
//! Headers are the `tar` crate's; what goes around them is done here, so that an archive decides of no memory: names and pax
//! records that are longer than a bound are refused. Sparse files are too, in all of their forms.

use std::io::{self, Read, Seek, Write};

use tar::{EntryType, Header};

use crate::builder::Builder;
use crate::error::{Error, Result, shown};
use crate::tree::{Metadata, Special};

/// Bytes of a header, and of what contents are rounded up to.
const RECORD: usize = 512;
/// Bytes of one entry's pax records or long name. Extended attributes of a file are in it, of which ext4 keeps 4 KiB.
const RECORDS_MAX: u64 = 1 << 20;
/// How the name of an extended attribute begins in pax records.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A plain file of so many bytes, which follow.
    File(u64),
    /// A folder.
    Directory,
    /// A symbolic link and what it holds.
    Symlink(Vec<u8>),
    /// A second name for what has this path.
    HardLink(Vec<u8>),
    /// A device or a pipe.
    Special(Special),
}

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, as it is in the archive.
    pub path: Vec<u8>,
    /// Owner, permissions, time, attributes.
    pub metadata: Metadata,
    /// What it is.
    pub kind: Kind,
}

/// An archive that is being read.
#[derive(Debug)]
pub struct Archive<R> {
    from: R,
    /// Bytes of the last entry's content that nobody has read, and those behind it up to the next header.
    left: u64,
    padding: u64,
}

/// What came before an entry and belongs to it.
#[derive(Debug, Default)]
struct Before {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> Archive<R> {
    /// An archive that begins here.
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0 }
    }

    /// The next entry, whose content is what can be read from the archive then; `None` at the end.
    ///
    /// # Errors
    /// It cannot be read, or is not in order.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut before = Before::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = header.entry_size().map_err(malformed)?;
            match header.entry_type() {
                EntryType::GNULongName => before.path = Some(text(self.records(size)?)),
                EntryType::GNULongLink => before.link = Some(text(self.records(size)?)),
                EntryType::XHeader => before.pax = pax(&self.records(size)?)?,
                // What is said of all entries is a comment, or what git writes.
                EntryType::XGlobalHeader => drop(self.records(size)?),
                _ => return self.entry(&header, size, before).map(Some),
            }
        }
    }

    /// Leaves out what is left of an entry.
    fn skip(&mut self) -> Result<()> {
        // The greatest sizes come to an end before their padding.
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let skipped =
            io::copy(&mut self.from.by_ref().take(rest), &mut io::sink()).map_err(Error::Archive)?;
        match skipped == rest {
            true => Ok(()),
            false => Err(Error::Archive(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn header(&mut self) -> Result<Option<Header>> {
        let mut bytes = [0; RECORD];
        let mut have = 0;
        while have < RECORD {
            match self.from.read(&mut bytes[have..]) {
                // Not all writers end an archive as they should; in the middle of a header none ends.
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(Error::Archive(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => have += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::Archive(e)),
            }
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&bytes).clone();
        // The field counts as eight spaces in it.
        let (start, field, end) = (&bytes[..148], [b' '; 8], &bytes[156..]);
        let sum: u32 = start.iter().chain(&field).chain(end).map(|byte| u32::from(*byte)).sum();
        match header.cksum() {
            Ok(told) if told == sum => Ok(Some(header)),
            _ => Err(Error::Malformed("it is no tar archive, or a header of it is damaged".into())),
        }
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % RECORD as u64;
    }

    fn records(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > RECORDS_MAX {
            return Err(Error::Malformed(format!("a name or its attributes have {size} bytes")));
        }
        self.begin(size);
        let mut bytes = Vec::new();
        self.by_ref().take(size).read_to_end(&mut bytes).map_err(Error::Archive)?;
        match bytes.len() as u64 == size {
            true => Ok(bytes),
            false => Err(Error::Archive(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn entry(&mut self, header: &Header, size: u64, before: Before) -> Result<Entry> {
        let pax = |name: &[u8]| before.pax.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value);
        let number = |name: &[u8]| pax(name).map(|value| decimal(value)).transpose();
        let path = pax(b"path").cloned().or(before.path).unwrap_or_else(|| header.path_bytes().into());
        let link = || {
            let short = || header.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
            pax(b"linkpath").cloned().or(before.link.clone()).unwrap_or_else(short)
        };
        let sparse = before.pax.iter().any(|(key, _)| key.starts_with(b"GNU.sparse."));
        let kind = match header.entry_type() {
            _ if sparse => return Err(unknown(&path, "a sparse file")),
            // Old archives tell folders by a slash.
            EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File(number(b"size")?.unwrap_or(size)),
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link()),
            EntryType::Link => Kind::HardLink(link()),
            EntryType::Char => Kind::Special(device(header, true)?),
            EntryType::Block => Kind::Special(device(header, false)?),
            EntryType::Fifo => Kind::Special(Special::Fifo),
            EntryType::GNUSparse => return Err(unknown(&path, "a sparse file")),
            other => return Err(unknown(&path, &format!("of the unknown kind {:#04x}", other.as_byte()))),
        };
        match kind {
            Kind::File(size) => self.begin(size),
            // Links of old archives tell the size of what they lead to, and have nothing.
            Kind::Symlink(_) | Kind::HardLink(_) | Kind::Special(_) => self.begin(0),
            Kind::Directory => self.begin(size),
        }
        let id = |told: Option<u64>, field: io::Result<u64>| -> Result<u32> {
            let id = told.map_or_else(|| field.map_err(malformed), Ok)?;
            u32::try_from(id).map_err(|_| Error::Malformed(format!("an owner has the number {id}")))
        };
        let metadata = Metadata {
            mode: (header.mode().map_err(malformed)? & 0o7777) as u16,
            uid: id(number(b"uid")?, header.uid())?,
            gid: id(number(b"gid")?, header.gid())?,
            modified: match pax(b"mtime") {
                Some(value) => time(value)?,
                None => (i64::try_from(header.mtime().map_err(malformed)?).unwrap_or(i64::MAX), 0),
            },
            xattrs: before
                .pax
                .iter()
                .filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?.to_vec(), value.clone())))
                .collect(),
        };
        Ok(Entry { path, metadata, kind })
    }
}

impl<R: Read> Read for Archive<R> {
    /// Reads the last entry's content.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.from.read(&mut buffer[..len])?;
        self.left -= read as u64;
        Ok(read)
    }
}

impl<W: Write + Seek> Builder<W> {
    /// Adds an archive's entry, whose content comes from `content`.
    ///
    /// # Errors
    /// As the builder's other functions.
    pub fn entry(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<()> {
        let Entry { path, metadata, kind } = entry;
        match kind {
            Kind::File(size) => self.file(path, metadata, *size, content),
            Kind::Directory => self.directory(path, metadata),
            Kind::Symlink(target) => self.symlink(path, metadata, target),
            Kind::HardLink(target) => self.hard_link(path, target),
            Kind::Special(special) => self.special(path, metadata, *special),
        }
    }
}

/// A long name ends with a zero.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Records of a length, which counts itself, a space, a key, `=`, a value and a newline. Values may be binary.
fn pax(mut bytes: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let wrong = || Error::Malformed("pax records are not in order".into());
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(8).position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let len = usize::try_from(decimal(&bytes[..space])?).ok().filter(|len| *len > space);
        let (record, rest) = len.and_then(|len| bytes.split_at_checked(len)).ok_or_else(wrong)?;
        let record =
            record.get(space + 1..).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(wrong)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = rest;
    }
    Ok(records)
}

fn device(header: &Header, character: bool) -> Result<Special> {
    let number = |field: io::Result<Option<u32>>| field.map_err(malformed).map(Option::unwrap_or_default);
    let (major, minor) = (number(header.device_major())?, number(header.device_minor())?);
    Ok(match character {
        true => Special::Character { major, minor },
        false => Special::Block { major, minor },
    })
}

fn decimal(value: &[u8]) -> Result<u64> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| Error::Malformed(format!("`{}` is no number", shown(value))))
}

/// Seconds with a fraction, perhaps negative.
fn time(value: &[u8]) -> Result<(i64, u32)> {
    let wrong = || Error::Malformed(format!("`{}` is no time", shown(value)));
    let text = std::str::from_utf8(value).map_err(|_| wrong())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    let digits: String = fraction.chars().take(9).collect();
    let nanoseconds: u32 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| wrong())? };
    let nanoseconds = nanoseconds * 10u32.pow(9 - digits.len() as u32);
    match text.starts_with('-') && nanoseconds > 0 {
        true => Ok((seconds.saturating_sub(1), 1_000_000_000 - nanoseconds)),
        false => Ok((seconds, nanoseconds)),
    }
}

fn unknown(path: &[u8], what: &str) -> Error {
    Error::Malformed(format!("'{}' is {what}, which is not read here", shown(path)))
}

fn malformed(e: io::Error) -> Error {
    Error::Malformed(e.to_string())
}
