//! Which operations have met which features, and which pairs of features.

use super::features::{BACKING, BITMAP, CRYPT, DATA, FEATURES, Features, REFCOUNT, VERSION};
use super::operations::{OPERATIONS, Operation};

/// Values of all features.
const VALUES: usize = {
    let (mut sum, mut feature) = (0, 0);
    while feature < FEATURES.len() {
        sum += FEATURES[feature].1.len();
        feature += 1;
    }
    sum
};

/// Counts of operations by feature, and by pair of features.
pub(super) struct Coverage {
    counts: Vec<u64>,
}

fn first_value(feature: usize) -> usize {
    FEATURES[..feature].iter().map(|(_, values)| values.len()).sum()
}

/// Operations that an image of this feature refuses, or that have nothing to do.
fn is_possible(operation: Operation, feature: usize, value: usize) -> bool {
    use Operation::{
        AddKey, Amend, Bitmap, Compressed, SnapshotApply, SnapshotCreate, SnapshotDelete, VmState,
    };
    let is = |other: usize, index: usize| (feature, value) == (other, index);
    let has = |other: usize| feature == other && value != 0;
    match operation {
        Compressed => !has(DATA) && !has(CRYPT),
        SnapshotCreate | SnapshotApply | SnapshotDelete | VmState => !has(DATA) && !is(REFCOUNT, 0),
        AddKey => !is(CRYPT, 0) && !is(DATA, 2),
        Bitmap => !is(VERSION, 0) && !is(BITMAP, 0),
        Amend => true,
        Operation::Empty => !is(DATA, 2),
        Operation::Commit | Operation::CommitFar | Operation::RebaseUnsafe => !is(BACKING, 0) && !is(DATA, 2),
        Operation::Rebase => !is(DATA, 2),
        _ => true,
    }
}

impl Coverage {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; OPERATIONS.len() * VALUES * VALUES] }
    }

    /// Notes that an operation was done on an image.
    pub(super) fn note(&mut self, operation: Operation, features: &Features) {
        let base = operation as usize * VALUES * VALUES;
        let values: [usize; FEATURES.len()] =
            std::array::from_fn(|feature| first_value(feature) + features.0[feature]);
        for (index, one) in values.iter().enumerate() {
            for other in &values[index..] {
                self.counts[base + one * VALUES + other] += 1;
            }
        }
    }

    /// How often an operation met a pair of values; both the same for one value.
    fn count(&self, operation: Operation, one: usize, other: usize) -> u64 {
        self.counts[operation as usize * VALUES * VALUES + one * VALUES + other]
    }

    pub(super) fn operations(&self) -> u64 {
        // Every operation met one of the two versions.
        OPERATIONS
            .iter()
            .map(|&(operation, _)| self.count(operation, 0, 0) + self.count(operation, 1, 1))
            .sum()
    }

    /// Pairs of operation and feature that have met, and those that could but have not.
    pub(super) fn pairs(&self) -> (u64, Vec<String>) {
        let (mut met, mut missing) = (0, Vec::new());
        for &(operation, _) in OPERATIONS {
            for (feature, (name, values)) in FEATURES.iter().enumerate() {
                for (value, word) in values.iter().enumerate() {
                    let place = first_value(feature) + value;
                    if self.count(operation, place, place) > 0 {
                        met += 1;
                    } else if is_possible(operation, feature, value) {
                        missing.push(format!("{operation:?} with {name}={word}"));
                    }
                }
            }
        }
        (met, missing)
    }

    /// How many pairs of features each operation has met, all together.
    pub(super) fn triples(&self) -> u64 {
        let different = |index: usize| index / VALUES % VALUES != index % VALUES;
        self.counts.iter().enumerate().filter(|(index, count)| **count > 0 && different(*index)).count()
            as u64
    }
}
