//! Ranges: who waits for whom.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::range_lock::RangeLock;
use crate::test_help::Rng;

#[test]
fn those_that_change_are_alone() {
    let lock = Arc::new(RangeLock::default());
    // Per unit: readers in the low half, a writer in the high half.
    let units: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
    const WRITER: u64 = 1 << 32;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (lock, units) = (lock.clone(), units.clone());
            scope.spawn(move || {
                let mut rng = Rng(thread);
                for _ in 0..3000 {
                    let start = rng.below(8);
                    let end = start + 1 + rng.below(8 - start);
                    let exclusive = rng.below(3) == 0;
                    let guard = if exclusive { lock.exclusive(start, end) } else { lock.shared(start, end) };
                    let weight = if exclusive { WRITER } else { 1 };
                    for unit in &units[start as usize..end as usize] {
                        let before = unit.fetch_add(weight, Ordering::SeqCst);
                        assert!(if exclusive { before == 0 } else { before < WRITER });
                    }
                    for unit in &units[start as usize..end as usize] {
                        unit.fetch_sub(weight, Ordering::SeqCst);
                    }
                    drop(guard);
                }
            });
        }
    });
}

#[test]
fn those_that_share_do_not_wait() {
    let lock = RangeLock::default();
    let first = lock.shared(0, 10);
    let second = lock.shared(5, 15);
    let elsewhere = lock.exclusive(15, 20);
    drop((first, second, elsewhere));
    drop(lock.exclusive(0, u64::MAX));
}
