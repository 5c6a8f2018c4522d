//! Memory for thunks: never writable and executable at once, bounded, given back.

use super::*;

fn mappings_of(address: usize) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let lines = maps.lines().filter(|l| {
        let (start, end) = l.split_once(' ').unwrap().0.split_once('-').unwrap();
        let parse = |s| usize::from_str_radix(s, 16).unwrap();
        (parse(start)..parse(end)).contains(&address)
    });
    lines.map(str::to_owned).collect()
}

#[test]
fn code_is_never_writable() {
    let mut area = Area::new(Pool::Thunks).unwrap();
    let at = area.push(&[0xc3]).unwrap();
    let maps = mappings_of(at as usize);
    assert_eq!(maps.len(), 1);
    assert!(maps[0].contains("r-xs"), "{}", maps[0]);
    let all = std::fs::read_to_string("/proc/self/maps").unwrap();
    let of_thunks: Vec<&str> = all.lines().filter(|l| l.contains("umbra-code")).collect();
    assert!(of_thunks.iter().all(|l| !l.split_whitespace().nth(1).unwrap().contains('w')), "{of_thunks:?}");
    assert!(
        Pool::Thunks.contains(at as usize)
            && !Pool::Thunks.contains(code_is_never_writable as *const () as usize)
    );
}

#[test]
fn it_fills_and_is_emptied() {
    let mut area = Area::new(Pool::Thunks).unwrap();
    let code = [0x90; 1000];
    let mut count = 0;
    while area.push(&code).is_some() {
        count += 1;
    }
    // A thousand bytes take 1,008: starts are aligned to 16.
    assert_eq!(count, (Pool::Thunks.slot_size() - 1000) / 1008 + 1);
    area.clear();
    let at = area.push(&[0xc3, 0x90]).unwrap();
    // SAFETY: the mapping is readable.
    assert_eq!(unsafe { at.read_volatile() }, 0xc3);
}

#[test]
fn slots_do_not_overlap_and_come_back() {
    let areas: Vec<Area> = (0..8).map(|_| Area::new(Pool::Thunks).unwrap()).collect();
    let mut slots: Vec<usize> = areas.iter().map(|a| a.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), 8);
    let free = || memory(Pool::Thunks).unwrap().free.lock().unwrap().len();
    drop(areas);
    assert!(free() >= 8);
}
