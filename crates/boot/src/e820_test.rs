use crate::e820::{E820Entry, E820Kind, map};
use crate::layout::{GIB, Layout, MIB};

fn ram(map: &[E820Entry]) -> Vec<std::ops::Range<u64>> {
    map.iter().filter(|e| e.kind == E820Kind::Ram).map(|e| e.range.clone()).collect()
}

#[test]
fn the_map_is_ascending_and_tells_the_ram() {
    for size in [64 * MIB, GIB, 3 * GIB, 6 * GIB, 64 * GIB] {
        let layout = Layout::new(size, 46).unwrap();
        let map = map(&layout);
        for pair in map.windows(2) {
            assert!(pair[0].range.end <= pair[1].range.start, "{pair:x?}");
        }
        for range in ram(&map) {
            assert!(layout.ram().any(|r| r.start <= range.start && range.end <= r.end), "{range:x?}");
        }
        // All but what lies between the end of the low memory and 1 MiB.
        let told: u64 = ram(&map).iter().map(|r| r.end - r.start).sum();
        assert_eq!(told, size - (MIB - 0x9_fc00));
    }
}

#[test]
fn six_gib_in_full() {
    use E820Kind::{Ram, Reserved};
    let map = map(&Layout::new(6 * GIB, 40).unwrap());
    let map: Vec<_> = map.into_iter().map(|e| (e.range, e.kind)).collect();
    let expected = [
        (0..0x9_fc00, Ram),
        (0x9_fc00..0xa_0000, Reserved),
        (0xe_0000..0x10_0000, Reserved),
        (0x10_0000..0xc000_0000, Ram),
        (0xe000_0000..0xf000_0000, Reserved),
        (0xfeff_c000..0xff00_0000, Reserved),
        (0x1_0000_0000..0x1_c000_0000, Ram),
    ];
    assert_eq!(map, expected);
}
