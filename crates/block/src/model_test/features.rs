//! The features of an image, drawn so that every two values that go together meet.

use crate::Options;
use crate::test_help::Rng;

/// Features and the values that they have.
pub(super) const FEATURES: [(&str, &[&str]); 13] = [
    ("compat", &["0.10", "1.1"]),
    (
        "cluster_size",
        &["512", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "2M"],
    ),
    ("refcount_bits", &["1", "2", "4", "8", "16", "32", "64"]),
    ("extended_l2", &["off", "on"]),
    ("lazy_refcounts", &["off", "on"]),
    ("compression_type", &["zlib", "zstd"]),
    ("data_file", &["none", "mapped", "raw"]),
    ("encryption", &["none", "luks"]),
    ("backing", &["none", "raw", "qcow2"]),
    ("preallocation", &["off", "metadata", "falloc", "full"]),
    ("bitmap", &["none", "recording"]),
    ("detect-zeroes", &["off", "on", "unmap"]),
    ("discard", &["ignore", "unmap"]),
];

pub(super) const VERSION: usize = 0;
pub(super) const CLUSTER: usize = 1;
pub(super) const REFCOUNT: usize = 2;
pub(super) const EXTENDED: usize = 3;
pub(super) const LAZY: usize = 4;
pub(super) const CODEC: usize = 5;
pub(super) const DATA: usize = 6;
pub(super) const CRYPT: usize = 7;
pub(super) const BACKING: usize = 8;
pub(super) const PREALLOCATION: usize = 9;
pub(super) const BITMAP: usize = 10;
pub(super) const DETECT: usize = 11;
pub(super) const DISCARD: usize = 12;

/// 16 KiB, the least cluster of extended L2 entries.
const CLUSTER_EXTENDED: usize = 5;
const REFCOUNT_16: usize = 4;

/// An image's features: of each the index of its value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Features(pub [usize; FEATURES.len()]);

impl std::fmt::Debug for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries((0..FEATURES.len()).map(|feature| (FEATURES[feature].0, self.word(feature))))
            .finish()
    }
}

impl Features {
    /// An image's features by chance. `backing` is the value of that feature.
    pub(super) fn draw(rng: &mut Rng, backing: usize) -> Self {
        let mut of = |feature: usize| rng.below(FEATURES[feature].1.len() as u64) as usize;
        let mut values: [usize; FEATURES.len()] = std::array::from_fn(&mut of);
        values[BACKING] = backing;
        // Most of an image's states need many clusters, and large ones take long.
        values[CLUSTER] = match rng.below(20) {
            0..=11 => rng.below(5) as usize,
            12..=17 => 5 + rng.below(4) as usize,
            _ => 9 + rng.below(4) as usize,
        };
        for rare in [DATA, CRYPT, PREALLOCATION] {
            if rng.below(2) == 0 {
                values[rare] = 0;
            }
        }
        if rng.below(4) > 0 {
            values[VERSION] = 1;
        }
        Self(values).sound()
    }

    /// Without what does not go together.
    fn sound(mut self) -> Self {
        let values = &mut self.0;
        if values[VERSION] == 0 {
            for other in [EXTENDED, LAZY, CODEC, DATA, BITMAP] {
                values[other] = 0;
            }
            values[REFCOUNT] = REFCOUNT_16;
            if values[CRYPT] != 0 {
                values[PREALLOCATION] = 0;
            }
        }
        if values[EXTENDED] != 0 {
            values[CLUSTER] = values[CLUSTER].max(CLUSTER_EXTENDED);
        }
        if values[BACKING] != 0 {
            values[DATA] = values[DATA].min(1);
            if values[EXTENDED] == 0 {
                values[PREALLOCATION] = 0;
            }
        }
        if values[DATA] == 2 {
            // What is in the file is what the disk holds.
            values[CRYPT] = 0;
        }
        self
    }

    pub(super) fn word(&self, feature: usize) -> &'static str {
        FEATURES[feature].1[self.0[feature]]
    }

    pub(super) fn has(&self, feature: usize) -> bool {
        self.0[feature] != 0
    }

    pub(super) fn set(&mut self, feature: usize, word: &str) {
        if let Some(index) = FEATURES[feature].1.iter().position(|other| *other == word) {
            self.0[feature] = index;
        }
    }

    pub(super) fn cluster(&self) -> u64 {
        512 << self.0[CLUSTER]
    }

    /// Sizes of disks: some dozens of clusters, and several L2 tables where these are small.
    pub(super) fn size(&self, rng: &mut Rng) -> u64 {
        let clusters = if self.0[CLUSTER] < 5 { 80 + rng.below(400) } else { 5 + rng.below(16) };
        let tail = if rng.below(2) == 0 { 0 } else { rng.below(self.cluster() / 512) * 512 };
        clusters * self.cluster() + tail
    }

    /// What `create` is told.
    pub(super) fn options(&self, data: &str) -> Options {
        let mut options = Options::new();
        for feature in [VERSION, CLUSTER, REFCOUNT, EXTENDED, LAZY, CODEC, PREALLOCATION] {
            options.set(FEATURES[feature].0, self.word(feature));
        }
        if self.has(DATA) {
            options.set("data_file", data);
            options.set("data_file_raw", if self.word(DATA) == "raw" { "on" } else { "off" });
        }
        if self.has(CRYPT) {
            options
                .set("encrypt.format", "luks")
                .set("encrypt.key-secret", "s")
                .set("encrypt.iter-time", "1");
        }
        options
    }
}
