//! What an image says of itself, for people and for scripts.

use crate::format::{BackingRef, BitmapInfo, SnapshotInfo};

/// A value of the format's own facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InfoValue {
    /// Yes or no.
    Bool(bool),
    /// A number.
    Int(i64),
    /// Text.
    Text(String),
    /// Values in order.
    List(Vec<InfoValue>),
    /// Names and values in the order in which people shall see them.
    Map(Vec<(String, InfoValue)>),
}

impl From<bool> for InfoValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for InfoValue {
    fn from(value: u64) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<&str> for InfoValue {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for InfoValue {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

/// What one node of a chain says of itself; names and meaning are those of `qemu-img info`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageInfo {
    /// The format's name: "qcow2".
    pub format: String,
    /// The file's name, as it was opened.
    pub filename: String,
    /// The disk's size in bytes.
    pub virtual_size: u64,
    /// Bytes that the host has allocated for the file, where it knows.
    pub actual_size: Option<u64>,
    /// The format's unit of allocation.
    pub cluster_size: Option<u64>,
    /// Whether the data is encrypted.
    pub encrypted: bool,
    /// Whether the data is compressed (formats that say so for the whole image).
    pub compressed: bool,
    /// Whether the image was not closed in order.
    pub dirty: bool,
    /// Whether the image is marked as corrupt.
    pub corrupt: bool,
    /// The backing file that the image names.
    pub backing: Option<BackingRef>,
    /// Internal snapshots.
    pub snapshots: Vec<SnapshotInfo>,
    /// Persistent dirty bitmaps.
    pub bitmaps: Vec<BitmapInfo>,
    /// The format's own facts, as `format-specific/data` of `qemu-img info --output=json`.
    pub specific: Vec<(String, InfoValue)>,
    /// `format-specific/type`; usually the format's name.
    pub specific_type: String,
}
