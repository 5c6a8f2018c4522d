use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use super::{Fragments, PACKETS_MAX, PATIENCE};
use crate::wire::{Packet, Part};

fn packet(payload: &[u8]) -> Packet<'_> {
    Packet {
        mac: [2; 6],
        source: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)),
        destination: IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2)),
        protocol: 17,
        hop_limit: 64,
        whole: payload,
        payload,
        part: None,
        trusted: false,
    }
}

fn add(
    fragments: &mut Fragments,
    now: Instant,
    id: u32,
    bytes: &[u8],
    offset: usize,
    more: bool,
) -> Option<Vec<u8>> {
    fragments.add(now, &packet(bytes), Part { id, offset, more })
}

#[test]
fn parts_in_any_order_make_the_whole() {
    let bytes: Vec<u8> = (0..64).collect();
    let parts = [(0, 16, true), (16, 40, true), (40, 64, false)];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut fragments = Fragments::default();
        let now = Instant::now();
        let mut whole = None;
        for index in order {
            assert!(whole.is_none());
            let (start, end, more) = parts[index];
            whole = add(&mut fragments, now, 1, &bytes[start..end], start, more);
        }
        assert_eq!(whole, Some(bytes.clone()), "{order:?}");
        assert!(fragments.packets.is_empty());
    }
}

#[test]
fn overlaps_spoil_the_whole_packet() {
    let now = Instant::now();
    for (offset, len, more) in [(0, 16, true), (8, 8, true), (8, 16, false), (24, 8, false)] {
        let mut fragments = Fragments::default();
        assert_eq!(add(&mut fragments, now, 1, &[0; 16], 8, true), None);
        assert_eq!(add(&mut fragments, now, 1, &[0; 16], 32, false), None);
        assert_eq!(add(&mut fragments, now, 1, &vec![0; len], offset, more), None);
        assert!(fragments.packets.is_empty(), "{offset} {len}");
    }
}

#[test]
fn what_cannot_be_is_dropped() {
    let now = Instant::now();
    let mut fragments = Fragments::default();
    // Not a multiple of eight, nothing, beyond 64 KiB.
    assert_eq!(add(&mut fragments, now, 1, &[0; 9], 0, true), None);
    assert_eq!(add(&mut fragments, now, 2, &[], 8, true), None);
    assert_eq!(add(&mut fragments, now, 3, &[0; 64], 65_528, false), None);
    assert!(fragments.packets.is_empty());
}

#[test]
fn a_flood_of_first_parts_is_bounded_in_number_and_time() {
    let now = Instant::now();
    let mut fragments = Fragments::default();
    for id in 0..1000 {
        add(&mut fragments, now, id, &[0; 8], 65_520, true);
    }
    assert_eq!(fragments.packets.len(), PACKETS_MAX);
    add(&mut fragments, now + PATIENCE + Duration::from_secs(1), 5000, &[0; 8], 0, true);
    assert_eq!(fragments.packets.len(), 1);
}
