use std::cell::RefCell;
use std::collections::BTreeMap;

use super::*;

#[derive(Default)]
struct Ram(RefCell<BTreeMap<u64, u32>>, RefCell<Option<(u64, u64)>>);

impl Ram {
    fn set(&self, gpa: u64, value: u64) {
        self.0.borrow_mut().insert(gpa, value as u32);
        self.0.borrow_mut().insert(gpa + 4, (value >> 32) as u32);
    }
}

impl Physical for Ram {
    fn read_u32(&self, gpa: u64) -> u32 {
        assert_eq!(gpa % 4, 0);
        self.0.borrow().get(&gpa).copied().unwrap_or(0)
    }
    fn read_u64(&self, gpa: u64) -> u64 {
        assert_eq!(gpa % 8, 0);
        u64::from(self.read_u32(gpa)) | u64::from(self.read_u32(gpa + 4)) << 32
    }
    fn replace_u32(&self, gpa: u64, old: u32, new: u32) -> bool {
        let same = self.read_u32(gpa) == old;
        if same {
            self.0.borrow_mut().insert(gpa, new);
        }
        same
    }
    fn replace_u64(&self, gpa: u64, old: u64, new: u64) -> bool {
        if let Some((at, value)) = self.1.take() {
            self.set(at, value);
        }
        let same = self.read_u64(gpa) == old;
        if same {
            self.set(gpa, new);
        }
        same
    }
}

const READ: Access = Access { kind: Kind::Read, user: false, ac: false };
const WRITE: Access = Access { kind: Kind::Write, ..READ };
const FETCH: Access = Access { kind: Kind::Fetch, ..READ };
const fn user(a: Access) -> Access {
    Access { user: true, ..a }
}

fn long() -> Paging {
    let cr4 = Cr4::PAE | Cr4::PGE;
    Paging::new(Cr0::PG | Cr0::PE | Cr0::WP, 0x1000, cr4, Efer::LMA | Efer::NXE, 46, true)
}

const LINEAR: u64 = 0xffff_8123_4567_89ab;

/// Four levels of tables for `LINEAR`; returns where the four entries are.
fn tables(ram: &Ram, leaf: u64) -> [u64; 4] {
    let at = |level: u64, table: u64| table + (LINEAR >> (3 + 9 * level) & 0x1ff) * 8;
    let places = [at(4, 0x1000), at(3, 0x2000), at(2, 0x3000), at(1, 0x4000)];
    for (place, next) in places.iter().zip([0x2000, 0x3000, 0x4000]) {
        ram.set(*place, next | P | RW | US);
    }
    ram.set(places[3], leaf);
    places
}

#[test]
fn four_levels_translate_and_mark() {
    let ram = Ram::default();
    let places = tables(&ram, 0x1234_5000 | P | RW | G);
    let t = long().walk(&ram, LINEAR, READ).unwrap();
    assert_eq!((t.gpa, t.page_len, t.user, t.writable), (0x1234_59ab, 4096, false, true));
    assert!(t.executable && t.global && !t.dirty);
    assert!(places.iter().all(|p| ram.read_u64(*p) & (A | D) == A));
    assert!(long().walk(&ram, LINEAR, WRITE).unwrap().dirty);
    assert_eq!(ram.read_u64(places[3]) & (A | D), A | D);
    assert!(places[..3].iter().all(|p| ram.read_u64(*p) & (A | D) == A), "dirty is the leaf's alone");
}

#[test]
fn absent_entries_at_every_level() {
    for level in 0..4 {
        let ram = Ram::default();
        let places = tables(&ram, 0x5000 | P);
        ram.set(places[level], ram.read_u64(places[level]) & !P);
        assert_eq!(long().walk(&ram, LINEAR, READ), Err(0));
        assert_eq!(long().walk(&ram, LINEAR, user(WRITE)), Err(error::W | error::U));
        assert_eq!(long().walk(&ram, LINEAR, FETCH), Err(error::I));
        assert!(places.iter().all(|p| ram.read_u64(*p) & A == 0), "a fault marks nothing");
    }
}

#[test]
fn every_level_can_forbid() {
    for level in 0..4 {
        let ram = Ram::default();
        let places = tables(&ram, 0x5000 | P | RW | US);
        let whole = ram.read_u64(places[level]);
        ram.set(places[level], whole & !US);
        assert_eq!(long().walk(&ram, LINEAR, user(READ)), Err(error::P | error::U));
        ram.set(places[level], whole & !RW);
        assert_eq!(long().walk(&ram, LINEAR, user(WRITE)), Err(error::P | error::U | error::W));
        assert_eq!(long().walk(&ram, LINEAR, WRITE), Err(error::P | error::W));
        let no_wp = Paging { wp: false, ..long() };
        assert!(no_wp.walk(&ram, LINEAR, WRITE).is_ok());
        assert!(no_wp.walk(&ram, LINEAR, user(WRITE)).is_err());
        ram.set(places[level], whole | NX);
        assert_eq!(long().walk(&ram, LINEAR, user(FETCH)), Err(error::P | error::U | error::I));
        assert!(long().walk(&ram, LINEAR, user(READ)).is_ok());
        let no_nx = Paging { nxe: false, ..long() };
        assert_eq!(no_nx.walk(&ram, LINEAR, READ), Err(error::P | error::RSVD));
    }
}

#[test]
fn supervisors_and_user_pages() {
    let ram = Ram::default();
    tables(&ram, 0x5000 | P | RW | US);
    let guarded = Paging { smap: true, smep: true, ..long() };
    assert_eq!(guarded.walk(&ram, LINEAR, READ), Err(error::P));
    assert_eq!(guarded.walk(&ram, LINEAR, WRITE), Err(error::P | error::W));
    assert_eq!(guarded.walk(&ram, LINEAR, FETCH), Err(error::P | error::I));
    assert!(guarded.walk(&ram, LINEAR, Access { ac: true, ..WRITE }).is_ok());
    assert!(guarded.walk(&ram, LINEAR, Access { ac: true, ..FETCH }).is_err());
    assert!(guarded.walk(&ram, LINEAR, user(FETCH)).is_ok());
    assert!(long().walk(&ram, LINEAR, FETCH).is_ok());
    let supervisor = Ram::default();
    tables(&supervisor, 0x5000 | P | RW);
    assert!(guarded.walk(&supervisor, LINEAR, WRITE).is_ok());
    assert!(guarded.walk(&supervisor, LINEAR, FETCH).is_ok());
}

#[test]
fn the_fetch_bit_needs_nx_or_smep() {
    let ram = Ram::default();
    assert_eq!(Paging { nxe: false, ..long() }.walk(&ram, LINEAR, FETCH), Err(0));
    assert_eq!(Paging { nxe: false, smep: true, ..long() }.walk(&ram, LINEAR, FETCH), Err(error::I));
    let legacy = Paging { mode: PagingMode::Bits32, ..long() };
    assert_eq!(legacy.walk(&ram, 0, FETCH), Err(0), "NXE means nothing without PAE");
}

#[test]
fn large_pages_and_their_reserved_bits() {
    for (level, shift) in [(2usize, 21), (1, 30)] {
        let ram = Ram::default();
        let places = tables(&ram, 0);
        let base = 3u64 << 30;
        let place = places[level];
        ram.set(place, base | P | RW | PS);
        let t = long().walk(&ram, LINEAR, WRITE).unwrap();
        assert_eq!((t.gpa, t.page_len), (base | LINEAR & ((1 << shift) - 1), 1 << shift));
        ram.set(place, base | P | PS | 1 << 12);
        assert!(long().walk(&ram, LINEAR, READ).is_ok(), "bit 12 is the memory type");
        for bit in 13..shift {
            ram.set(place, base | P | PS | 1 << bit);
            assert_eq!(long().walk(&ram, LINEAR, READ), Err(error::P | error::RSVD), "bit {bit}");
        }
    }
    let ram = Ram::default();
    let places = tables(&ram, 0x5000 | P);
    ram.set(places[1], P | PS);
    assert_eq!(Paging { gib_pages: false, ..long() }.walk(&ram, LINEAR, READ), Err(error::P | error::RSVD));
    ram.set(places[1], 0x3000 | P);
    ram.set(places[0], 0x2000 | P | PS);
    assert_eq!(long().walk(&ram, LINEAR, READ), Err(error::P | error::RSVD));
}

#[test]
fn bits_above_the_physical_width() {
    for bit in 46..63 {
        let ram = Ram::default();
        tables(&ram, 0x5000 | P | 1 << bit);
        assert_eq!(long().walk(&ram, LINEAR, READ).is_err(), bit < 52, "bit {bit}");
    }
    let wide = Paging { physical_bits: 52, ..long() };
    let ram = Ram::default();
    tables(&ram, 1 << 51 | P);
    assert_eq!(wide.walk(&ram, LINEAR, READ).unwrap().gpa, 1 << 51 | 0x9ab);
}

fn pae() -> Paging {
    let mut p = Paging::new(Cr0::PG | Cr0::PE, 0, Cr4::PAE, Efer::NXE, 46, true);
    p.pdptes = [0, 0, 0, 0x2000 | P];
    p
}

#[test]
fn pae_paging() {
    let linear = 0xc060_3abc;
    let ram = Ram::default();
    ram.set(0x2000 + 3 * 8, 0x3000 | P | RW | US);
    ram.set(0x3000 + 3 * 8, 1 << 40 | P | RW | US | NX);
    let t = pae().walk(&ram, linear, user(WRITE)).unwrap();
    assert_eq!(t.gpa, 1 << 40 | 0xabc);
    assert_eq!(pae().walk(&ram, linear, FETCH), Err(error::P | error::I));
    assert_eq!(pae().walk(&ram, 0x1000, READ), Err(0));
    ram.set(0x2000 + 3 * 8, 0x8020_0000 | P | PS);
    assert_eq!(pae().walk(&ram, linear, READ).unwrap().gpa, 0x8020_3abc);
    for bit in 46..63 {
        ram.set(0x2000 + 3 * 8, P | PS | 1 << bit);
        assert_eq!(pae().walk(&ram, linear, READ), Err(error::P | error::RSVD), "bit {bit}");
    }
    assert!(pae().pdpte_is_reserved(P | 2));
    assert!(pae().pdpte_is_reserved(P | 1 << 5));
    assert!(pae().pdpte_is_reserved(P | 1 << 46));
    assert!(!pae().pdpte_is_reserved(P | 0xe18 | 0x1_0000_0000));
    assert!(!pae().pdpte_is_reserved(2), "not present");
}

#[test]
fn legacy_paging() {
    let paging = Paging::new(Cr0::PG | Cr0::PE, 0x1000, Cr4::PSE, Efer::empty(), 40, true);
    let ram = Ram::default();
    ram.0.borrow_mut().insert(0x1000 + 4, 0x2000 | (P | RW | US) as u32);
    ram.0.borrow_mut().insert(0x2000 + 8, 0xffff_f000 | (P | US) as u32);
    let linear = 0x40_2123;
    let t = paging.walk(&ram, linear, user(READ)).unwrap();
    assert_eq!((t.gpa, t.writable), (0xffff_f123, false));
    assert_eq!(paging.walk(&ram, linear, user(WRITE)), Err(error::P | error::U | error::W));
    assert!(paging.walk(&ram, linear, WRITE).is_ok(), "no WP");
    assert_eq!(u64::from(ram.read_u32(0x2008)) & (A | D), A | D);
    // PSE-36.
    let large = (P | PS) as u32 | 0x12 << 13 | 0x0080_0000;
    ram.0.borrow_mut().insert(0x1004, large);
    assert_eq!(paging.walk(&ram, linear, READ).unwrap().gpa, 0x12_0080_2123);
    ram.0.borrow_mut().insert(0x1004, large | 1 << 21);
    assert_eq!(paging.walk(&ram, linear, READ), Err(error::P | error::RSVD));
    let narrow = Paging { physical_bits: 36, ..paging };
    ram.0.borrow_mut().insert(0x1004, large);
    assert_eq!(narrow.walk(&ram, linear, READ), Err(error::P | error::RSVD));
    // Without PSE the bit is ignored and the entry is one of a table.
    let plain = Paging { pse: false, ..paging };
    assert_eq!(plain.walk(&ram, linear, READ), Err(0));
}

#[test]
fn an_entry_that_changes_meanwhile_is_read_again() {
    let ram = Ram::default();
    let places = tables(&ram, 0x5000 | P | RW | US);
    ram.1.replace(Some((places[3], 0x7000 | P | RW | US)));
    assert_eq!(long().walk(&ram, LINEAR, WRITE).unwrap().gpa, 0x79ab);
    let ram = Ram::default();
    let places = tables(&ram, 0x5000 | P | RW | US);
    ram.1.replace(Some((places[2], 0)));
    assert_eq!(
        long().walk(&ram, LINEAR, WRITE),
        Err(error::W),
        "and no flag is set in an entry that has gone"
    );
    assert_eq!(ram.read_u64(places[2]), 0);
}

#[test]
fn without_paging_everything_is_itself() {
    let off = Paging::new(Cr0::PE, 0, Cr4::empty(), Efer::empty(), 46, true);
    assert_eq!(off.walk(&Ram::default(), 0xfff0_1234, user(WRITE)).unwrap().gpa, 0xfff0_1234);
}
