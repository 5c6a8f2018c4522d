use super::*;

fn entry(leaf: u32, subleaf: u32, eax: u32) -> CpuidEntry {
    CpuidEntry { leaf, subleaf, indexed: true, eax, ..CpuidEntry::default() }
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let table =
        CpuidTable::new([entry(7, 1, 1), entry(0, 0, 2), entry(7, 1, 3), entry(7, 0, 4), entry(7, 1, 5)]);
    assert_eq!(table.entries(), [entry(0, 0, 2), entry(7, 0, 4), entry(7, 1, 5)]);
    let mut one_by_one = CpuidTable::default();
    [entry(7, 1, 1), entry(0, 0, 2), entry(7, 1, 5), entry(7, 0, 4)]
        .into_iter()
        .for_each(|e| one_by_one.set(e));
    assert_eq!(table, one_by_one);
}

#[test]
fn a_great_many_entries_in_the_worst_order_take_no_time() {
    let count = 2_000_000;
    let began = std::time::Instant::now();
    let table = CpuidTable::new((0..count).rev().map(|leaf| entry(leaf, 0, leaf)));
    assert_eq!(table.entries().len(), count as usize);
    assert_eq!(table.get(count - 1, 0), Some(&entry(count - 1, 0, count - 1)));
    // One by one it takes hours.
    assert!(began.elapsed().as_secs() < 60);
}
