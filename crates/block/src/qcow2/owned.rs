//! Which clusters of the file hold metadata, so that data never lands on it: the overlap checks.
//!
//! Each cluster has the kinds of what lies there. What is checked is chosen when the image is opened, by the names that
//! QEMU has for it; the encryption header is kept off whatever is chosen.

use std::collections::HashMap;

use super::layout::Layout;
use crate::{Error, Options, Result};

/// A kind of metadata, as a bit.
pub(super) type Kinds = u16;

pub(super) const HEADER: Kinds = 1;
pub(super) const ACTIVE_L1: Kinds = 1 << 1;
pub(super) const ACTIVE_L2: Kinds = 1 << 2;
pub(super) const REFCOUNT_TABLE: Kinds = 1 << 3;
pub(super) const REFCOUNT_BLOCK: Kinds = 1 << 4;
pub(super) const SNAPSHOT_TABLE: Kinds = 1 << 5;
pub(super) const INACTIVE_L1: Kinds = 1 << 6;
pub(super) const INACTIVE_L2: Kinds = 1 << 7;
pub(super) const BITMAPS: Kinds = 1 << 8;
pub(super) const ENCRYPTION: Kinds = 1 << 9;

/// What is known without any table.
const CONSTANT: Kinds = HEADER | ACTIVE_L1 | REFCOUNT_TABLE | SNAPSHOT_TABLE | BITMAPS;
/// What tables in memory tell.
const CACHED: Kinds = CONSTANT | ACTIVE_L2 | REFCOUNT_BLOCK | INACTIVE_L1;
const ALL: Kinds = CACHED | INACTIVE_L2;

/// Kinds by their option, and in words.
const NAMES: [(Kinds, &str, &str); 10] = [
    (HEADER, "main-header", "the header"),
    (ACTIVE_L1, "active-l1", "the active L1 table"),
    (ACTIVE_L2, "active-l2", "an active L2 table"),
    (REFCOUNT_TABLE, "refcount-table", "the refcount table"),
    (REFCOUNT_BLOCK, "refcount-block", "a refcount block"),
    (SNAPSHOT_TABLE, "snapshot-table", "the snapshot table"),
    (INACTIVE_L1, "inactive-l1", "a snapshot's L1 table"),
    (INACTIVE_L2, "inactive-l2", "a snapshot's L2 table"),
    (BITMAPS, "bitmap-directory", "the bitmaps"),
    (ENCRYPTION, "", "the encryption header"),
];

/// What `overlap-check` and `overlap-check.*` choose.
pub(super) fn take_checks(options: &mut Options) -> Result<Kinds> {
    let whole = options.take("overlap-check");
    let template = options.take("overlap-check.template");
    if let (Some(whole), Some(template)) = (&whole, &template)
        && whole != template
    {
        return Err(Error::option(format!(
            "Conflicting values for qcow2 options 'overlap-check' ('{whole}') and 'overlap-check.template' ('{template}')"
        )));
    }
    let mut checks = match whole.or(template).as_deref() {
        None | Some("cached") => CACHED,
        Some("none") => 0,
        Some("constant") => CONSTANT,
        Some("all") => ALL,
        Some(other) => {
            return Err(Error::option(format!(
                "Unsupported value '{other}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, \
                 constant, cached, all"
            )));
        }
    };
    for (kind, name, _) in NAMES.into_iter().filter(|(_, name, _)| !name.is_empty()) {
        match options.take_bool(&format!("overlap-check.{name}"))? {
            Some(true) => checks |= kind,
            Some(false) => checks &= !kind,
            None => {}
        }
    }
    Ok(checks)
}

/// The clusters of the file that hold metadata.
#[derive(Debug)]
pub(super) struct Owned {
    clusters: HashMap<u64, Kinds>,
    bits: u32,
    checks: Kinds,
    /// The first cluster that two kinds claim.
    conflict: Option<(u64, Kinds)>,
}

impl Owned {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            clusters: HashMap::new(),
            bits: layout.cluster_bits,
            checks: CACHED | ENCRYPTION,
            conflict: None,
        }
    }

    /// Chooses what is checked.
    pub(super) fn set_checks(&mut self, checks: Kinds) {
        self.checks = checks | ENCRYPTION;
    }

    pub(super) fn checks(&self, kind: Kinds) -> bool {
        self.checks & kind != 0
    }

    /// Nothing is known any more.
    pub(super) fn clear(&mut self) {
        self.clusters.clear();
        self.conflict = None;
    }

    /// Notes a range as metadata of a kind.
    pub(super) fn add(&mut self, offset: u64, len: u64, kind: Kinds) {
        if len == 0 {
            return;
        }
        for cluster in offset >> self.bits..=(offset + len - 1) >> self.bits {
            let kinds = self.clusters.entry(cluster).or_default();
            // A table may be a snapshot's and the active disk's.
            let other = *kinds & !kind;
            let tables = ACTIVE_L2 | INACTIVE_L2;
            if other != 0 && (other | kind) & !tables != 0 {
                self.conflict.get_or_insert((cluster, other | kind));
            }
            *kinds |= kind;
        }
    }

    /// A range is metadata no more.
    pub(super) fn remove(&mut self, offset: u64, len: u64) {
        if len > 0 {
            (offset >> self.bits..=(offset + len - 1) >> self.bits)
                .for_each(|cluster| self.remove_cluster(cluster));
        }
    }

    pub(super) fn remove_cluster(&mut self, cluster: u64) {
        self.clusters.remove(&cluster);
    }

    /// Snapshots' L2 tables are noted anew.
    pub(super) fn forget_kind(&mut self, kind: Kinds) {
        self.clusters.retain(|_, kinds| {
            *kinds &= !kind;
            *kinds != 0
        });
    }

    /// Fails where data would land on metadata.
    pub(super) fn refuse(&self, first: u64, count: u64) -> Result<()> {
        let there = |cluster: u64| self.clusters.get(&cluster).copied().unwrap_or(0) & self.checks;
        match (first..first + count).find(|&cluster| there(cluster) != 0) {
            None => Ok(()),
            Some(cluster) => Err(Error::corrupt(format!(
                "data would be written to cluster {cluster}, which holds {}; nothing was written",
                words(there(cluster))
            ))),
        }
    }

    /// Fails where metadata of two kinds lies in one cluster: to write one would destroy the other.
    pub(super) fn refuse_conflict(&self) -> Result<()> {
        match self.conflict {
            Some((cluster, kinds)) if (kinds & self.checks).count_ones() > 1 => {
                Err(Error::corrupt(format!("cluster {cluster} holds {}", words(kinds))))
            }
            _ => Ok(()),
        }
    }
}

fn words(kinds: Kinds) -> String {
    let words: Vec<&str> =
        NAMES.iter().filter(|(kind, ..)| kinds & kind != 0).map(|(_, _, word)| *word).collect();
    words.join(" and ")
}
