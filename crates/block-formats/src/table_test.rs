use std::sync::Arc;

use umbra_block::{MemoryStorage, Storage, StorageExt};

use super::{PAGES_MAX, Table};
use crate::common::hold;

fn table(len: u64) -> (Arc<MemoryStorage>, Table) {
    let storage = Arc::new(MemoryStorage::new("table"));
    let table = Table::new(storage.clone(), 512, len);
    (storage, table)
}

#[test]
fn what_is_set_is_written_only_when_told() {
    let (storage, table) = table(10_000);
    table.set(3, 7u32.to_le_bytes()).unwrap();
    table.set(2400, 9u32.to_le_bytes()).unwrap();
    assert_eq!(table.entry::<4>(3).unwrap(), [7, 0, 0, 0]);
    assert_eq!(storage.len().unwrap(), 0);
    assert!(table.is_changed());
    table.write_back(&table.changed()).unwrap();
    assert!(!table.is_changed());
    assert_eq!(storage.read_vec(512 + 12, 4).unwrap(), [7, 0, 0, 0]);
    assert_eq!(storage.read_vec(512 + 9600, 4).unwrap(), [9, 0, 0, 0]);
    assert_eq!(storage.len().unwrap(), 512 + 10_000, "the last page ends where the table does");
}

#[test]
fn what_is_set_meanwhile_waits_for_the_next_time() {
    let (storage, table) = table(10_000);
    table.set(3, 7u32.to_le_bytes()).unwrap();
    table.set(2400, 9u32.to_le_bytes()).unwrap();
    let changed = table.changed();
    table.set(4, 8u32.to_le_bytes()).unwrap();
    table.write_back(&changed).unwrap();
    assert_eq!(storage.read_vec(512 + 12, 8).unwrap(), [7, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(storage.read_vec(512 + 9600, 4).unwrap(), [9, 0, 0, 0]);
    assert!(table.is_changed());
    let changed = table.changed();
    assert_eq!(changed.len(), 1, "the page that was changed since, and no other");
    table.write_back(&changed).unwrap();
    assert_eq!(storage.read_vec(512 + 12, 8).unwrap(), [7, 0, 0, 0, 8, 0, 0, 0]);
    assert!(!table.is_changed());
}

#[test]
fn nothing_is_read_behind_the_end() {
    let (_, table) = table(10_000);
    assert!(table.entry::<4>(2499).is_ok());
    assert!(table.entry::<4>(2500).is_err());
    assert!(table.set(u64::MAX, [0; 8]).is_err());
}

#[test]
fn pages_are_bounded_and_changes_are_kept() {
    let pages = 4 * PAGES_MAX as u64;
    let (_, table) = table(pages * 4096);
    table.set(0, 1u32.to_le_bytes()).unwrap();
    for page in 0..pages {
        table.entry::<4>(page * 1024).unwrap();
    }
    assert!(hold(&table.pages).pages.len() <= PAGES_MAX);
    assert_eq!(table.entry::<4>(0).unwrap(), [1, 0, 0, 0]);
    assert!(!table.is_full());
    for page in 0..PAGES_MAX as u64 / 2 {
        table.set(page * 1024, [1; 4]).unwrap();
    }
    assert!(table.is_full());
    table.write_back(&table.changed()).unwrap();
    assert_eq!(table.entry::<4>(1024).unwrap(), [1; 4]);
}
