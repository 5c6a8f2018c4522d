use umbra_x86::reg::gpr::{RAX, RBX};
use umbra_x86::reg::{Cr0, Cr4, Efer};

use super::Host;
use crate::exec::test::guest::{CODE, DATA, DEVICE, Guest, RAM, STACK, TABLES};
use crate::fault::Fault;
use crate::vm::attention;

const PAGE: u64 = 0x1000;
/// A second set of page tables: the first one's, but for the page at [`DATA`], which is that at [`OTHER`].
const TABLES_B: u64 = 0x38_0000;
const OTHER: u64 = DATA + 0x5000;

/// A guest with PCIDs and two address spaces.
fn two_spaces() -> Guest {
    let mut guest = Guest::new();
    for n in 0..3 {
        guest.put(TABLES_B + n * PAGE, (TABLES_B + (n + 1) * PAGE) | 7, 8);
    }
    for n in 0..512 {
        guest.put(TABLES_B + 3 * PAGE + 8 * n, (n * PAGE) | 7, 8);
    }
    guest.put(TABLES_B + 2 * PAGE + 8, (TABLES_B + 4 * PAGE) | 7, 8);
    for n in 0..512 {
        let linear = (512 + n) * PAGE;
        guest.put(TABLES_B + 4 * PAGE + 8 * n, if linear == DATA { OTHER } else { linear } | 7, 8);
    }
    guest.put(DATA, 0xa, 8);
    guest.put(OTHER, 0xb, 8);
    guest.cpu.cr4.insert(Cr4::PCIDE);
    guest.cpu.paging_changed();
    guest
}

fn switch(guest: &mut Guest, cr3: u64, keep: bool) {
    guest.cpu.cr3 = cr3;
    guest.cpu.cr3_written(keep);
}

#[test]
fn address_spaces_have_their_own_translations() {
    let mut guest = two_spaces();
    assert_eq!(guest.cpu.load::<u64>(DATA), Ok(0xa));
    for _ in 0..2 {
        switch(&mut guest, TABLES_B | 1, true);
        assert_eq!(guest.cpu.load::<u64>(DATA), Ok(0xb));
        switch(&mut guest, TABLES, true);
        assert_eq!(guest.cpu.load::<u64>(DATA), Ok(0xa));
    }
    // A translation that is kept is used, even though the tables say otherwise by now.
    guest.map(DATA, OTHER | 7);
    switch(&mut guest, TABLES_B | 1, true);
    switch(&mut guest, TABLES, true);
    assert_eq!(guest.cpu.load::<u64>(DATA), Ok(0xa));
    switch(&mut guest, TABLES, false);
    assert_eq!(guest.cpu.load::<u64>(DATA), Ok(0xb));
}

#[test]
fn every_way_to_flush() {
    let flushes: [fn(&mut Guest); 5] = [
        |guest| guest.cpu.flush_page(DATA + 5),
        |guest| guest.cpu.flush_all(),
        |guest| guest.cpu.flush_pcid(0),
        |guest| guest.cpu.paging_changed(),
        |guest| {
            switch(guest, TABLES_B | 1, true);
            guest.cpu.flush_pcid(0);
            switch(guest, TABLES, true);
        },
    ];
    for flush in flushes {
        let mut guest = two_spaces();
        guest.cpu.load::<u64>(DATA).unwrap();
        guest.map(DATA, OTHER | 7);
        flush(&mut guest);
        assert_eq!(guest.cpu.load::<u64>(DATA), Ok(0xb));
        assert_eq!(guest.cpu.load_system::<u64>(DATA), Ok(0xb));
    }
}

#[test]
fn contexts_do_not_run_out() {
    let mut guest = two_spaces();
    for n in 0..10_000u64 {
        let (space, value) = if n % 2 == 0 { (TABLES, 0xa) } else { (TABLES_B, 0xb) };
        switch(&mut guest, space | (n % 37), n % 3 == 0 && n % 37 == 36);
        assert_eq!(guest.cpu.load::<u64>(DATA), Ok(value), "after {n}");
    }
}

#[test]
fn parts_of_large_pages_go_together() {
    let mut guest = Guest::new();
    // Linear 4 to 6 MiB is a large page at 2 MiB, then one at 0.
    let entry = TABLES + 2 * PAGE + 8 * 2;
    guest.put(entry, 0x20_0087, 8);
    guest.put(DATA, 0xa, 8);
    guest.put(DATA + PAGE, 0xb, 8);
    assert_eq!(guest.cpu.load::<u64>(0x40_0000), Ok(0xa));
    assert_eq!(guest.cpu.load::<u64>(0x40_0000 + PAGE), Ok(0xb));
    guest.put(entry, 0x87, 8);
    guest.cpu.flush_page(0x5f_f000);
    guest.put(PAGE, 0xc, 8);
    assert_eq!(guest.cpu.load::<u64>(0x40_0000 + PAGE), Ok(0xc));
}

#[test]
fn stores_mark_pages_dirty() {
    let mut guest = Guest::new();
    guest.cpu.store(DATA, 1u64).unwrap();
    let shared = guest.cpu.shared.clone();
    let (_, tracker) = shared.memory.region(0).unwrap();
    tracker.set_tracking(true);
    shared.forget_writes(None);
    guest.cpu.gpr[RBX] = DATA;
    // mov [rbx], rax; inc qword [rbx+0x1000]
    guest.run(&[0x48, 0x89, 0x03, 0x48, 0xff, 0x83, 0, 0x10, 0, 0]);
    let dirty = tracker.take_dirty();
    let is_dirty = |gpa: u64| dirty[(gpa / PAGE / 64) as usize] >> (gpa / PAGE % 64) & 1 != 0;
    assert!(is_dirty(DATA) && is_dirty(DATA + PAGE) && !is_dirty(DATA + 2 * PAGE));
    // The page tables' own dirty flags are writes too.
    assert!(is_dirty(TABLES + 4 * PAGE));
}

#[test]
fn where_an_operand_is() {
    let mut guest = Guest::new();
    guest.map(DATA + PAGE, (DATA + PAGE) | 5);
    let cpu = &mut guest.cpu;
    let Ok(Host::Direct(p)) = cpu.host(DATA, 64, true) else { panic!("RAM is direct") };
    assert_eq!(Some(p), cpu.shared.memory.host_address(DATA, 64));
    assert!(matches!(cpu.host(DATA + PAGE - 8, 16, false), Ok(Host::Bounce)));
    assert_eq!(cpu.host(DATA + PAGE - 8, 16, true).err(), Some(Fault::pf(3)));
    assert_eq!(cpu.fault_address, DATA + PAGE);
    assert!(matches!(cpu.host(DEVICE, 8, true), Ok(Host::Bounce)));
    assert_eq!(cpu.host(u64::MAX >> 1, 8, true).err(), Some(Fault::GP0));
}

#[test]
fn a_native_write_voids_code() {
    let mut guest = Guest::new();
    guest.run(&[0xb0, 0x01]);
    let shared = guest.cpu.shared.clone();
    let page = shared.memory.code_page(CODE).unwrap();
    let version = page.version();
    let Ok(Host::Direct(_)) = guest.cpu.host(CODE + 0x800, 8, true) else { panic!("RAM is direct") };
    guest.cpu.host_written();
    assert_eq!(page.version(), version, "no code there");
    let Ok(Host::Direct(_)) = guest.cpu.host(CODE, 8, true) else { panic!("RAM is direct") };
    guest.cpu.host_written();
    assert_ne!(page.version(), version);
}

#[test]
fn bytes_over_many_pages() {
    let mut guest = Guest::new();
    let data: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
    guest.cpu.store_bytes(DATA + 123, &data).unwrap();
    let mut back = vec![0; data.len()];
    guest.cpu.load_bytes(DATA + 123, &mut back).unwrap();
    assert_eq!(back, data);
    guest.map(DATA + 2 * PAGE, 0);
    guest.cpu.flush_page(DATA + 2 * PAGE);
    assert_eq!(guest.cpu.store_bytes(DATA, &[7; 10_000]), Err(Fault::pf(2)));
    assert_eq!(guest.peek(DATA, 8), 0, "nothing was written");
    // A device's bytes in pieces that it takes.
    let mut from = [0; 200];
    guest.cpu.load_bytes(DEVICE, &mut from).unwrap();
    assert!((0..200).all(|n| from[n] == n as u8));
}

#[test]
fn pae_directories_are_checked_when_loaded() {
    let mut guest = Guest::new();
    guest.cpu.efer.remove(Efer::LMA | Efer::LME);
    guest.narrow();
    guest.cpu.paging_changed();
    guest.put(0x7000, 1 | 2, 8);
    assert_eq!(guest.cpu.load_pdptes(0x7000), Err(Fault::GP0));
    guest.put(0x7000, 0x3a_0001, 8);
    guest.put(0x7018, 0x3a_0001, 8);
    guest.cpu.load_pdptes(0x7000).unwrap();
    guest.put(0x3a_0000 + 8, 0x20_0000 | 0x83, 8);
    guest.put(0x3a_0000 + 8 * 0x1ff, 0x20_0000 | 0x83, 8);
    guest.cpu.cr3 = 0x7000;
    guest.cpu.cr3_written(false);
    guest.put(DATA, 0x77, 4);
    assert_eq!(guest.cpu.load::<u32>(DATA), Ok(0x77));
    // The last page of the 4 GiB, and past its end.
    assert_eq!(guest.cpu.load::<u32>(0xffe0_0000), Ok(0x77));
    assert_eq!(guest.cpu.load::<u32>(0xffff_fffe), Err(Fault::GP0));
}

#[test]
fn without_paging() {
    let mut guest = Guest::new();
    guest.narrow();
    guest.cpu.efer.remove(Efer::LMA);
    guest.cpu.cr0.remove(Cr0::PG);
    guest.cpu.paging_changed();
    guest.cpu.update_mode();
    guest.put(DATA, 0x55, 4);
    guest.cpu.gpr[RBX] = DATA;
    guest.run(&[0x8b, 0x03]);
    assert_eq!(guest.cpu.gpr[RAX], 0x55);
    assert!(guest.cpu.load::<u32>(RAM).is_ok(), "no memory, but no fault");
}

#[test]
fn attention_flushes() {
    let mut guest = Guest::new();
    guest.cpu.load::<u64>(DATA).unwrap();
    guest.map(DATA, STACK | 7);
    guest.put(STACK, 0x99, 8);
    guest.cpu.port().signal(attention::FLUSH);
    guest.cpu.gpr[RBX] = DATA;
    guest.run(&[0x48, 0x8b, 0x03]);
    assert_eq!(guest.cpu.gpr[RAX], 0x99);
}
