use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use crate::{Backing, Memory, MemoryError, Observer, PAGE_SIZE, Region, RegionKind};

fn space(len: u64) -> Memory {
    space_on(&Backing::memfd(c"test", len).unwrap(), len)
}

fn space_on(backing: &Backing, len: u64) -> Memory {
    let mut offset = 0;
    let regions = Memory::ram_ranges(len, 0xc000_0000)
        .into_iter()
        .map(|(gpa, len)| {
            let part = backing.further(offset);
            offset += len;
            Region::map(gpa, len, RegionKind::Ram, part).unwrap()
        })
        .collect();
    Memory::new(regions).unwrap()
}

#[test]
fn the_hole_below_4_gib_is_no_memory() {
    let m = space(64 << 30);
    assert_eq!(m.ram_len(), 64 << 30);
    m.write(0xbfff_fff8, &[1; 8]).unwrap();
    assert!(matches!(m.write(0xbfff_fff9, &[1; 8]), Err(MemoryError::OutOfRange { .. })));
    m.write(1 << 32, &[2; 8]).unwrap();
    let mut b = [0; 8];
    m.read(1 << 32, &mut b).unwrap();
    assert_eq!(b, [2; 8]);
    assert!(m.host_address(0xc000_0000, 1).is_none());
    assert!(m.host_address(0xbfff_f000, 0x1001).is_none());
    assert!(m.read(u64::MAX - 3, &mut b).is_err());
}

#[test]
fn host_and_guest_addresses_are_congruent_for_huge_pages() {
    for backing in [Backing::Anonymous, Backing::memfd(c"t", 16 << 20).unwrap()] {
        for gpa in [0u64, 0x1000, 0xf_f000, 0x1f_f000, 1 << 32] {
            let region = Region::map(gpa, 8 << 20, RegionKind::Ram, backing.clone()).unwrap();
            assert_eq!(region.host() as u64 % (2 << 20), gpa % (2 << 20));
            let memory = Memory::new(vec![region]).unwrap();
            memory.write(gpa + (8 << 20) - 1, &[7]).unwrap();
            assert!(memory.write(gpa + (8 << 20), &[7]).is_err());
        }
    }
}

#[test]
fn anonymous_memory_is_zero_and_costs_nothing_until_it_is_touched() {
    let m = space_on(&Backing::Anonymous, 64 << 30);
    let mut bytes = [1; 64];
    m.read(17 << 30, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 64]);
    m.write(17 << 30, &[9; 64]).unwrap();
    m.read(17 << 30, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 64]);
}

#[test]
fn host_writes_mark_pages() {
    let m = space(16 << 20);
    let (_, tracker) = m.region(0).unwrap();
    m.write(0x5000, &[1]).unwrap();
    assert!(tracker.take_dirty().iter().all(|w| *w == 0), "nothing is noted while tracking is off");
    tracker.set_tracking(true);
    m.write(0x5fff, &[1, 2]).unwrap();
    m.guest().write_obj(7u32, GuestAddress(0x9000)).unwrap();
    assert_eq!(tracker.take_dirty()[0], 0b10_0110_0000);
}

#[test]
fn host_writes_void_code() {
    let m = space(16 << 20);
    let page = m.code_page(0x7000).unwrap();
    let (v, first) = page.mark(0x100, 0x20);
    assert!(first);
    m.write(0x7000, &[0; 0x100]).unwrap();
    assert_eq!(page.version(), v, "a write beside the code leaves it alone");
    m.write(0x6ff0, &[0; 0x200]).unwrap();
    assert_ne!(page.version(), v, "a write from the page before runs into it");
    assert!(!page.has_code());
    assert!(page.mark(0, 1).1);
    assert!(!page.mark(PAGE_SIZE - 1, 1).1);
    assert!(page.written(PAGE_SIZE - 2, 2));
    assert!(!page.written(PAGE_SIZE - 2, 2));
}

#[test]
fn overlapping_regions_are_refused() {
    let region =
        |gpa| Region::map(gpa, 0x4000, RegionKind::Ram, Backing::memfd(c"t", 0x4000).unwrap()).unwrap();
    assert!(matches!(Memory::new(vec![region(0x3000), region(0)]), Err(MemoryError::Overlap(0x3000))));
    assert!(Region::map(0, 0x1001, RegionKind::Ram, Backing::memfd(c"t", 0x2000).unwrap()).is_err());
}

#[derive(Default)]
struct Watch(Mutex<Vec<(u32, u64, bool)>>);

impl Observer for Watch {
    fn mapped(&self, slot: u32, r: &Region) -> std::io::Result<()> {
        self.0.lock().unwrap().push((slot, r.gpa(), true));
        Ok(())
    }
    fn unmapped(&self, slot: u32, r: &Region) {
        self.0.lock().unwrap().push((slot, r.gpa(), false));
    }
}

#[test]
fn observers_see_every_region_come_and_go() {
    let watch = Arc::new(Watch::default());
    let m = space(4 << 30);
    m.observe(watch.clone()).unwrap();
    drop(m);
    let seen = watch.0.lock().unwrap();
    assert_eq!(*seen, [(0, 0, true), (1, 1 << 32, true), (0, 0, false), (1, 1 << 32, false)]);
}
