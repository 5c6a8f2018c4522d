//! Counts against a map.

use std::collections::BTreeMap;

use super::Counts;
use crate::test_help::Rng;

#[test]
fn what_is_counted_is_told() {
    for clusters in [1000, 1 << 40] {
        let mut rng = Rng(clusters);
        let (mut counts, mut model) = (Counts::new(clusters), BTreeMap::new());
        for _ in 0..300 {
            // Some behind the end.
            let first = if rng.below(10) == 0 { clusters + rng.below(100) } else { rng.below(clusters) };
            let (count, times) = (1 + rng.below(200), [1, 2, 130, 255][rng.below(4) as usize]);
            counts.add(first, count, times);
            (first..first + count).for_each(|cluster| *model.entry(cluster).or_insert(0) += u64::from(times));
        }
        counts.add(7, 1, u32::MAX);
        model.insert(7, u64::from(u32::MAX));
        for (&cluster, &times) in &model {
            assert_eq!(counts.get(cluster), times);
        }
        assert_eq!(Some(&(counts.end - 1)), model.keys().next_back());
        let mut chunks: Vec<u64> = model.keys().map(|cluster| cluster / super::CHUNK).collect();
        chunks.dedup();
        assert_eq!(counts.used(), chunks);
        for start in [0, 3, clusters - 100] {
            let mut out = [9; 300];
            counts.fill(start, &mut out);
            let same = |(cluster, times): (u64, &u64)| model.get(&cluster).unwrap_or(&0) == times;
            assert!((start..).zip(&out).all(same), "from {start}");
        }
        assert_eq!(counts.get(clusters + 10_000), 0);
    }
}
