//! Operands that cannot be accessed: at which address, and what comes first.

use umbra_x86::reg::Cr4;
use umbra_x86::reg::gpr::{RBP, RBX, RDI, RSP};

use crate::exec::test::guest::{CODE, DATA, Guest, STACK, TABLES};

const PAGE: u64 = 0x1000;
/// Room for more page tables.
const MORE: u64 = 0x38_0000;

/// Maps the last page below 4 GiB to the page at [`DATA`], and the first above to `above`.
fn map_around_four_gib(guest: &mut Guest, above: u64) {
    let pdpt = TABLES + PAGE;
    for (n, (entry, index, leaf)) in [(3, 511, DATA | 7), (4, 0, above)].into_iter().enumerate() {
        let directory = MORE + 2 * PAGE * n as u64;
        guest.put(pdpt + 8 * entry, directory | 7, 8);
        guest.put(directory + 8 * index, (directory + PAGE) | 7, 8);
        guest.put(directory + PAGE + 8 * index, leaf, 8);
    }
    guest.cpu.paging_changed();
}

#[test]
fn only_the_effective_address_is_cut_to_32_bits() {
    // MASKMOVDQU XMM2, XMM1 to [EDI], of which byte 9 only.
    let maskmovdqu = [0x67, 0x66, 0x0f, 0xf7, 0xd1];
    let mut guest = Guest::new();
    map_around_four_gib(&mut guest, (DATA + PAGE) | 7);
    guest.cpu.gpr[RDI] = 0x5_ffff_fff8;
    guest.cpu.vector.zmm[1][9] = 0x80;
    guest.cpu.vector.zmm[2][9] = 0x55;
    guest.run(&maskmovdqu);
    assert_eq!(guest.peek(DATA + PAGE, 4), 0x5500);
    assert_eq!(guest.peek(1, 1), 0);
    map_around_four_gib(&mut guest, 0);
    guest.cpu.gpr[RSP] = STACK;
    assert_eq!(guest.fault(&maskmovdqu), (14, 2, CODE));
    assert_eq!(guest.cpu.cr2, 0x1_0000_0001);
}

/// What each vendor's processors look at first, whatever this host's are.
const INTEL: &[u8; 4] = b"Genu";
const AMD: &[u8; 4] = b"Auth";

fn guest_shown(vendor: &[u8; 4]) -> Guest {
    let mut guest = Guest::new();
    guest.cpu.cpuid.get_mut(0, 0).unwrap().ebx = u32::from_le_bytes(*vendor);
    guest
}

#[test]
fn an_image_that_leaves_the_canonical_half() {
    for (vendor, neither_aligned_nor_canonical) in [(INTEL, 12), (AMD, 13)] {
        let mut guest = guest_shown(vendor);
        guest.cpu.cr4.insert(Cr4::OSXSAVE);
        guest.cpu.paging_changed();
        let mut vector = |code: &[u8], at: u64| {
            guest.cpu.gpr[RBP] = at;
            guest.cpu.gpr[RSP] = STACK;
            guest.fault(code).0
        };
        // FXSAVE [RBP], FXRSTOR [RBP].
        for code in [[0x0f, 0xae, 0x45, 0], [0x0f, 0xae, 0x4d, 0]] {
            assert_eq!(vector(&code, 0x7fff_ffff_fff2), 13, "not aligned");
            assert_eq!(vector(&code, 0x7fff_ffff_fff0), 12);
            assert_eq!(vector(&code, 0x8000_0000_0008), 12);
        }
        // XSAVE [RBP], XRSTOR [RBP].
        for code in [[0x0f, 0xae, 0x65, 0], [0x0f, 0xae, 0x6d, 0]] {
            assert_eq!(vector(&code, 0x7fff_ffff_fff0), 13, "not aligned");
            assert_eq!(vector(&code, 0x7fff_ffff_ff00), 12);
            assert_eq!(vector(&code, 0x8000_0000_0008), neither_aligned_nor_canonical);
        }
    }
}

/// FIST of an empty stack with nothing masked stores nothing.
#[test]
fn a_store_that_is_not_made_and_its_page() {
    // FIST dword [RBX]; UD2.
    let code = [0xdb, 0x13, 0x0f, 0x0b];
    for (vendor, faults) in [(INTEL, false), (AMD, true)] {
        let mut guest = guest_shown(vendor);
        guest.map(DATA, 0);
        guest.cpu.flush_page(DATA);
        guest.cpu.gpr[RBX] = DATA;
        guest.cpu.gpr[RSP] = STACK;
        guest.cpu.vector.fx[..5].copy_from_slice(&[0x40, 0x03, 0, 0, 0]);
        assert_eq!(guest.fault(&code).0, if faults { 14 } else { 6 });
        // Invalid operation, of the stack.
        assert_eq!(guest.cpu.vector.fx[2] & 0x41, if faults { 0 } else { 0x41 });
    }
}

#[test]
fn what_does_not_wait_for_x87_exceptions_changes_nothing_if_it_faults() {
    // CVTPI2PS XMM1, [RBX]; CVTPI2PD XMM1, [RBX]; PADDB MM1, [RBX]; FLD dword [RBX]; each followed by UD2.
    let codes: [&[u8]; 4] =
        [&[0x0f, 0x2a, 0x0b], &[0x66, 0x0f, 0x2a, 0x0b], &[0x0f, 0xfc, 0x0b], &[0xd9, 0x03]];
    let mut waiting = [false; 4];
    for (code, waits) in codes.iter().zip(&mut waiting) {
        let mut guest = Guest::new();
        let run = |guest: &mut Guest| {
            guest.cpu.gpr[RBX] = DATA;
            guest.cpu.gpr[RSP] = STACK;
            // Nothing masked, and a zero divide that is pending.
            guest.cpu.vector.fx[..4].copy_from_slice(&[0x40, 0x03, 0x84, 0x80]);
            guest.cpu.vector.zmm[1] = [7; 64];
            guest.fault(&[code, &[0x0f, 0x0b][..]].concat()).0
        };
        let good = run(&mut guest);
        assert!([6, 16].contains(&good), "{code:x?}: {good}");
        *waits = good == 16;
        guest.map(DATA, 0);
        guest.cpu.flush_page(DATA);
        let before = guest.cpu.vector.fx;
        assert_eq!(run(&mut guest), if *waits { 16 } else { 14 }, "{code:x?}");
        assert_eq!(guest.cpu.vector.zmm[1], [7; 64], "{code:x?}");
        assert_eq!(guest.cpu.vector.fx[..4], [0x40, 0x03, 0x84, 0x80]);
        assert_eq!(guest.cpu.vector.fx[24..], before[24..]);
    }
    assert_eq!(waiting[1..], [false, true, true]);
}
