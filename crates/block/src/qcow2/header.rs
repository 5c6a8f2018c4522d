//! The header, its extensions, and the rules for features that a program does not know.
//!
//! Authority: the qcow2 specification, "Header" and "Header extensions". Extensions that are unknown stay as they are.
//! What changes while an image is in use lies in the first 512 bytes, so that a write of the header is all or nothing.

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::{Codec, Error, Result, Storage, StorageExt};

pub(super) const MAGIC: u32 = 0x5146_49fb;
const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
const EXT_BITMAPS: u32 = 0x2385_2875;
const EXT_CRYPTO: u32 = 0x0537_be77;
const EXT_DATA_FILE: u32 = 0x4441_5441;

/// Incompatible features.
pub(super) const DIRTY: u64 = 1;
pub(super) const CORRUPT: u64 = 1 << 1;
pub(super) const DATA_FILE: u64 = 1 << 2;
pub(super) const COMPRESSION: u64 = 1 << 3;
pub(super) const EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
/// Compatible features.
pub(super) const LAZY_REFCOUNTS: u64 = 1;
/// Autoclear features.
pub(super) const BITMAPS_VALID: u64 = 1;
pub(super) const DATA_FILE_RAW: u64 = 1 << 1;
const AUTOCLEAR: u64 = BITMAPS_VALID | DATA_FILE_RAW;

/// Names of features, for programs that do not know them: kind (0 incompatible, 1 compatible, 2 autoclear), bit, name.
const FEATURE_NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];
const FEATURE_NAME_LEN: usize = 48;

pub(super) const L1_BYTES_MAX: u64 = 32 << 20;
pub(super) const REFTABLE_BYTES_MAX: u64 = 8 << 20;
pub(super) const SNAPSHOTS_MAX: u64 = 65536;
pub(super) const NAME_MAX: usize = 1023;
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;

/// The header as it lies in the file. Version 2 ends before the features.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Raw {
    pub magic: U32,
    pub version: U32,
    pub backing_offset: U64,
    pub backing_len: U32,
    pub cluster_bits: U32,
    pub size: U64,
    pub crypt_method: U32,
    pub l1_len: U32,
    pub l1_offset: U64,
    pub reftable_offset: U64,
    pub reftable_clusters: U32,
    pub snapshots: U32,
    pub snapshots_offset: U64,
    pub incompatible: U64,
    pub compatible: U64,
    pub autoclear: U64,
    pub refcount_order: U32,
    pub header_len: U32,
    pub compression: u8,
    pub padding: [u8; 7],
}

/// Where the bitmap directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct BitmapExtension {
    pub count: u32,
    pub directory_len: u64,
    pub directory_offset: u64,
}

/// How data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Crypt {
    #[default]
    None,
    /// The legacy scheme.
    Aes,
    /// LUKS1, with its header at an offset in the file.
    Luks,
}

/// The header, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub crypt: Crypt,
    pub l1_len: u32,
    pub l1_offset: u64,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub codec: Codec,
    pub backing_name: Option<String>,
    pub backing_format: Option<String>,
    pub data_file: Option<String>,
    pub bitmaps: Option<BitmapExtension>,
    /// Offset and length of the LUKS header.
    pub crypto: Option<(u64, u64)>,
    /// Extensions that are not known here.
    pub unknown: Vec<(u32, Vec<u8>)>,
}

impl Header {
    /// Reads and judges a header.
    pub(super) fn read(storage: &dyn Storage, name: &str) -> Result<Self> {
        let mut raw = Raw::new_zeroed();
        storage.read_at(0, raw.as_mut_bytes())?;
        if raw.magic.get() != MAGIC {
            return Err(Error::not_this_format(name, "qcow2", ""));
        }
        let version = raw.version.get();
        if !matches!(version, 2 | 3) {
            return Err(Error::Unsupported(format!("qcow2 version {version}; 2 and 3 are known")));
        }
        let cluster_bits = raw.cluster_bits.get();
        if !(9..=21).contains(&cluster_bits) {
            return Err(Error::corrupt(format!("cluster size 2^{cluster_bits}; it is 2^9 to 2^21")));
        }
        let header_len = if version == 2 { V2_LEN as u64 } else { u64::from(raw.header_len.get()) };
        if version == 2 {
            (raw.incompatible, raw.compatible, raw.autoclear) = (U64::ZERO, U64::ZERO, U64::ZERO);
            (raw.refcount_order, raw.compression) = (U32::new(4), 0);
        } else if header_len < V3_LEN as u64 || header_len > 1 << cluster_bits {
            return Err(Error::corrupt(format!("header length {header_len}")));
        }
        if header_len <= V3_LEN as u64 {
            raw.compression = 0;
        }
        let mut header = Self::of_raw(&raw, version)?;
        let cluster = storage.read_vec(0, 1 << cluster_bits)?;
        header.read_extensions(
            &cluster,
            header_len as usize,
            raw.backing_offset.get(),
            raw.backing_len.get(),
        )?;
        header.judge()?;
        Ok(header)
    }

    fn of_raw(raw: &Raw, version: u32) -> Result<Self> {
        let crypt = match raw.crypt_method.get() {
            0 => Crypt::None,
            1 => Crypt::Aes,
            2 => Crypt::Luks,
            other => return Err(Error::Unsupported(format!("encryption method {other}"))),
        };
        let codec = match raw.compression {
            0 => Codec::Deflate,
            1 => Codec::Zstd,
            other => return Err(Error::Unsupported(format!("compression type {other}"))),
        };
        Ok(Self {
            version,
            cluster_bits: raw.cluster_bits.get(),
            size: raw.size.get(),
            crypt,
            l1_len: raw.l1_len.get(),
            l1_offset: raw.l1_offset.get(),
            reftable_offset: raw.reftable_offset.get(),
            reftable_clusters: raw.reftable_clusters.get(),
            snapshots: raw.snapshots.get(),
            snapshots_offset: raw.snapshots_offset.get(),
            incompatible: raw.incompatible.get(),
            compatible: raw.compatible.get(),
            autoclear: raw.autoclear.get(),
            refcount_order: raw.refcount_order.get(),
            codec,
            backing_name: None,
            backing_format: None,
            data_file: None,
            bitmaps: None,
            crypto: None,
            unknown: Vec::new(),
        })
    }

    fn read_extensions(
        &mut self,
        cluster: &[u8],
        start: usize,
        backing_at: u64,
        backing_len: u32,
    ) -> Result<()> {
        let mut names = Vec::new();
        let end = if backing_at == 0 { cluster.len() as u64 } else { backing_at.min(cluster.len() as u64) };
        let mut at = start;
        while let Some((kind, data, next)) = extension(cluster, at, end)? {
            self.take_extension(kind, data, &mut names)?;
            at = next;
        }
        if backing_at != 0 {
            let len = backing_len as usize;
            let from = usize::try_from(backing_at).unwrap_or(usize::MAX);
            let name = (len <= NAME_MAX)
                .then(|| from.checked_add(len).and_then(|to| cluster.get(from..to)))
                .flatten();
            let name =
                name.ok_or_else(|| Error::corrupt("the backing file's name lies outside of the header"))?;
            self.backing_name = Some(text(name, "backing file's name")?).filter(|name| !name.is_empty());
        }
        let unknown = self.incompatible & !INCOMPATIBLE;
        if unknown != 0 {
            return Err(Error::Unsupported(format!("qcow2 feature(s): {}", feature_words(unknown, &names))));
        }
        Ok(())
    }

    fn take_extension(&mut self, kind: u32, data: &[u8], names: &mut Vec<(u8, u8, String)>) -> Result<()> {
        let word = |at: usize| {
            data.get(at..at + 8).map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap_or_default()))
        };
        match kind {
            EXT_BACKING_FORMAT => self.backing_format = Some(text(data, "backing format")?),
            EXT_DATA_FILE => self.data_file = Some(text(data, "data file's name")?),
            EXT_FEATURE_NAMES => {
                for entry in data.chunks_exact(FEATURE_NAME_LEN) {
                    let name = entry[2..].split(|&byte| byte == 0).next().unwrap_or_default();
                    names.push((entry[0], entry[1], String::from_utf8_lossy(name).into_owned()));
                }
            }
            EXT_BITMAPS if self.version >= 3 => {
                let (Some(first), Some(directory_len), Some(directory_offset)) = (word(0), word(8), word(16))
                else {
                    return Err(Error::corrupt("the bitmaps extension is too short"));
                };
                self.bitmaps =
                    Some(BitmapExtension { count: (first >> 32) as u32, directory_len, directory_offset });
            }
            EXT_CRYPTO => {
                let (Some(offset), Some(len)) = (word(0), word(8)) else {
                    return Err(Error::corrupt("the encryption extension is too short"));
                };
                self.crypto = Some((offset, len));
            }
            other => self.unknown.push((other, data.to_vec())),
        }
        Ok(())
    }

    /// Numbers that are impossible.
    fn judge(&mut self) -> Result<()> {
        let cluster = 1u64 << self.cluster_bits;
        if self.refcount_order > 6 {
            return Err(Error::corrupt(format!(
                "refcount width 2^{}; it is at most 2^6",
                self.refcount_order
            )));
        }
        let extended = self.incompatible & EXTENDED_L2 != 0;
        if extended && self.cluster_bits < 14 {
            return Err(Error::corrupt("extended L2 entries need clusters of at least 16 KiB"));
        }
        // One byte of the format's own for each limit: 2^55 bytes of offset, and tables of at most so many bytes.
        limit("disk size", self.size, i64::MAX as u64)?;
        limit("L1 table (bytes)", u64::from(self.l1_len) * 8, L1_BYTES_MAX)?;
        limit("refcount table (bytes)", u64::from(self.reftable_clusters) * cluster, REFTABLE_BYTES_MAX)?;
        limit("number of snapshots", u64::from(self.snapshots), SNAPSHOTS_MAX)?;
        for (what, offset) in [
            ("L1 table", self.l1_offset),
            ("refcount table", self.reftable_offset),
            ("snapshot table", self.snapshots_offset),
        ] {
            if !offset.is_multiple_of(cluster) {
                return Err(Error::corrupt(format!("the {what} does not begin at a cluster ({offset:#x})")));
            }
            limit(what, offset, 1 << 56)?;
        }
        if self.reftable_clusters == 0 || self.reftable_offset == 0 {
            return Err(Error::corrupt("the image has no refcount table"));
        }
        if self.snapshots == 0 {
            self.snapshots_offset = 0;
        }
        if self.l1_len > 0 && self.l1_offset == 0 {
            return Err(Error::corrupt("the image has no L1 table"));
        }
        if self.crypt == Crypt::Luks {
            let (offset, len) = self.crypto.ok_or_else(|| Error::corrupt("the LUKS header is missing"))?;
            limit("LUKS header", len, 64 << 20)?;
            limit("LUKS header's offset", offset, 1 << 56)?;
            if !offset.is_multiple_of(cluster) || offset == 0 {
                return Err(Error::corrupt("the LUKS header does not begin at a cluster"));
            }
        }
        Ok(())
    }

    /// Autoclear features that this program does not know: it clears them when it writes.
    pub(super) fn clear_unknown_autoclear(&mut self) -> bool {
        let known = self.autoclear & AUTOCLEAR;
        let changed = known != self.autoclear;
        self.autoclear = known;
        changed
    }

    /// Whether a feature is on.
    pub(super) fn has(&self, incompatible: u64) -> bool {
        self.incompatible & incompatible != 0
    }

    fn header_len(&self) -> usize {
        if self.version == 2 { V2_LEN } else { size_of::<Raw>() }
    }

    /// The header's bytes, with extensions and backing file's name. The names of features are left out where there is
    /// no room for them.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        let with_names = self.version >= 3;
        let bytes = self.to_bytes_with(with_names);
        if with_names && bytes.is_err() { self.to_bytes_with(false) } else { bytes }
    }

    fn to_bytes_with(&self, feature_names: bool) -> Result<Vec<u8>> {
        let mut extensions = Vec::new();
        let mut put = |kind: u32, data: &[u8]| {
            extensions.extend_from_slice(&kind.to_be_bytes());
            extensions.extend_from_slice(&(data.len() as u32).to_be_bytes());
            extensions.extend_from_slice(data);
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        };
        // Those that change come first, so that they lie in the first sector.
        if let Some((offset, len)) = self.crypto {
            put(EXT_CRYPTO, &[offset.to_be_bytes(), len.to_be_bytes()].concat());
        }
        if let Some(bitmaps) = self.bitmaps.filter(|_| self.version >= 3) {
            let first = u64::from(bitmaps.count) << 32;
            let words = [first, bitmaps.directory_len, bitmaps.directory_offset];
            put(EXT_BITMAPS, &words.map(u64::to_be_bytes).concat());
        }
        if let Some(format) = self.backing_format.as_ref().filter(|_| self.backing_name.is_some()) {
            put(EXT_BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            put(EXT_DATA_FILE, name.as_bytes());
        }
        for (kind, data) in &self.unknown {
            put(*kind, data);
        }
        if feature_names {
            put(EXT_FEATURE_NAMES, &feature_table());
        }
        put(EXT_END, &[]);
        let backing = self.backing_name.as_deref().unwrap_or_default().as_bytes();
        let backing_at = self.header_len() + extensions.len();
        let total = backing_at + backing.len();
        if total > 1 << self.cluster_bits || backing.len() > NAME_MAX {
            return Err(Error::option(
                "the header does not fit into a cluster: choose a larger cluster size or a shorter backing file name",
            ));
        }
        let mut bytes =
            self.raw(if backing.is_empty() { 0 } else { backing_at }, backing.len()).as_bytes().to_vec();
        bytes.truncate(self.header_len());
        bytes.extend_from_slice(&extensions);
        bytes.extend_from_slice(backing);
        Ok(bytes)
    }

    fn raw(&self, backing_at: usize, backing_len: usize) -> Raw {
        Raw {
            magic: MAGIC.into(),
            version: self.version.into(),
            backing_offset: (backing_at as u64).into(),
            backing_len: (backing_len as u32).into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.size.into(),
            crypt_method: match self.crypt {
                Crypt::None => 0.into(),
                Crypt::Aes => 1.into(),
                Crypt::Luks => 2.into(),
            },
            l1_len: self.l1_len.into(),
            l1_offset: self.l1_offset.into(),
            reftable_offset: self.reftable_offset.into(),
            reftable_clusters: self.reftable_clusters.into(),
            snapshots: self.snapshots.into(),
            snapshots_offset: self.snapshots_offset.into(),
            incompatible: self.incompatible.into(),
            compatible: self.compatible.into(),
            autoclear: self.autoclear.into(),
            refcount_order: self.refcount_order.into(),
            header_len: (size_of::<Raw>() as u32).into(),
            compression: u8::from(self.codec == Codec::Zstd),
            padding: [0; 7],
        }
    }
}

fn limit(what: &str, value: u64, limit: u64) -> Result<()> {
    if value <= limit { Ok(()) } else { Err(Error::TooLarge { what: what.to_owned(), value, limit }) }
}

fn text(bytes: &[u8], what: &str) -> Result<String> {
    if bytes.len() > NAME_MAX {
        return Err(Error::corrupt(format!("the {what} is too long")));
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::corrupt(format!("the {what} is not UTF-8")))
}

/// The extension at `at`: its kind, its data, and where the next begins. `None` at the end.
fn extension(cluster: &[u8], at: usize, end: u64) -> Result<Option<(u32, &[u8], usize)>> {
    if at as u64 + 8 > end {
        return Ok(None);
    }
    let number = |at: usize| u32::from_be_bytes(cluster[at..at + 4].try_into().unwrap_or_default());
    let (kind, len) = (number(at), number(at + 4) as usize);
    if kind == EXT_END {
        return Ok(None);
    }
    let from = at + 8;
    if len as u64 > end - from as u64 {
        return Err(Error::corrupt("a header extension is too long"));
    }
    Ok(Some((kind, &cluster[from..from + len], (from + len).next_multiple_of(8))))
}

fn feature_table() -> Vec<u8> {
    let mut table = Vec::new();
    for (kind, bit, name) in FEATURE_NAMES {
        let start = table.len();
        table.extend_from_slice(&[kind, bit]);
        table.extend_from_slice(name.as_bytes());
        table.resize(start + FEATURE_NAME_LEN, 0);
    }
    table
}

fn feature_words(bits: u64, names: &[(u8, u8, String)]) -> String {
    let word = |bit: u8| match names.iter().find(|(kind, at, _)| *kind == 0 && *at == bit) {
        Some((_, _, name)) => name.clone(),
        None => format!("unknown incompatible feature: {:x}", 1u64 << bit),
    };
    (0..64).filter(|bit| bits >> bit & 1 != 0).map(word).collect::<Vec<_>>().join(", ")
}
