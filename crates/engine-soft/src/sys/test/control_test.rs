//! Control registers.

use super::bench::*;
use crate::fault::{Fault, Flow};
use umbra_x86::reg::gpr::{RAX, RCX, RDX};
use umbra_x86::reg::{Cr0, Cr4, Efer};
use umbra_x86::segment::{access, sreg};

const TO_CR0: &[u8] = &[0x0f, 0x22, 0xc0];
const TO_CR3: &[u8] = &[0x0f, 0x22, 0xd8];
const TO_CR4: &[u8] = &[0x0f, 0x22, 0xe0];
const TO_CR8: &[u8] = &[0x44, 0x0f, 0x22, 0xc0];

fn write(b: &mut Bench, code: &[u8], value: u64) -> Result<Flow, Fault> {
    b.cpu.gpr[RAX] = value;
    let result = b.step(code);
    b.cpu.rip = CODE;
    result
}

#[test]
fn cr0_combinations() {
    let cases = [
        (Start::P32, 0x8000_0000, false),    // PG without PE
        (Start::P32, 0x2000_0001, false),    // NW without CD
        (Start::P32, 0x6000_0001, true),     // both
        (Start::P32, 0x1, true),             // ET cannot be cleared
        (Start::P32, 0x1ffa_ff81, true),     // reserved bits are ignored
        (Start::Long, 0x1_8000_0001, false), // the upper half must be zero
        (Start::Long, 0x0000_0001, false),   // paging cannot be left from 64-bit code
        (Start::Compat, 0x0000_0001, true),  // but from compatibility mode
        (Start::Long, 0x8001_002b, true),
    ];
    for (start, value, ok) in cases {
        let mut b = Bench::new(start, 0);
        assert_eq!(
            write(&mut b, TO_CR0, value),
            if ok { Ok(Flow::End) } else { Err(Fault::GP0) },
            "{value:#x}"
        );
        if ok {
            assert_eq!(b.cpu.cr0.bits(), value & 0xe005_003f | 0x10);
            let long = b.cpu.cr0.contains(Cr0::PG) && start != Start::P32;
            assert_eq!(b.cpu.efer.contains(Efer::LMA), long);
        }
    }
}

#[test]
fn real_mode_is_entered_and_left() {
    let mut b = Bench::new(Start::Real, 0);
    assert_eq!(write(&mut b, TO_CR0, 0x11), Ok(Flow::End));
    assert!(b.cpu.mode.protected && b.cpu.mode.cpl == 0 && b.cpu.mode.code == 16);
    assert_eq!(write(&mut b, TO_CR0, 0x10), Ok(Flow::End));
    assert!(!b.cpu.mode.protected);
}

#[test]
fn long_mode_is_entered_with_all_it_needs() {
    let ready = || {
        let mut b = Bench::new(Start::Compat, 0);
        b.cpu.cr0.remove(Cr0::PG);
        b.cpu.efer.remove(Efer::LMA);
        b.cpu.update_mode();
        b.cpu.paging_changed();
        b
    };
    let mut b = ready();
    assert_eq!(write(&mut b, TO_CR0, 0x8000_0011), Ok(Flow::End));
    assert!(b.cpu.mode.long && b.cpu.mode.code == 32 && b.cpu.efer.contains(Efer::LMA));
    let mut b = ready();
    b.cpu.cr4 = Cr4::empty();
    assert_eq!(write(&mut b, TO_CR0, 0x8000_0011), Err(Fault::GP0), "PAE");
    let mut b = ready();
    b.cpu.seg[sreg::CS].access |= access::L;
    assert_eq!(write(&mut b, TO_CR0, 0x8000_0011), Err(Fault::GP0), "64-bit CS");
    let mut b = ready();
    b.cpu.tr.access = 0x83;
    assert_eq!(write(&mut b, TO_CR0, 0x8000_0011), Err(Fault::GP0), "16-bit TSS");
}

#[test]
fn pae_pointers_are_checked() {
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.cr4 = Cr4::PAE;
    b.cpu.paging_changed();
    b.write(0xb000, 0x1_0001, 8);
    b.write(0xb020, 0x1_0023, 8);
    assert_eq!(write(&mut b, TO_CR3, 0xb000), Ok(Flow::End));
    b.write(0xb008, 0x2, 8);
    assert_eq!(
        write(&mut b, TO_CR0, 0x8000_0011),
        Ok(Flow::End),
        "an entry that is not present may be anything"
    );
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.cr4 = Cr4::PAE;
    b.cpu.paging_changed();
    b.write(0xb020, 0x1_0023, 8);
    assert_eq!(write(&mut b, TO_CR3, 0xb020), Ok(Flow::End), "not looked at without paging");
    assert_eq!(write(&mut b, TO_CR0, 0x8000_0011), Err(Fault::GP0));
    assert!(!b.cpu.cr0.contains(Cr0::PG));
}

#[test]
fn cr3_width() {
    let mut b = Bench::new(Start::Long, 0);
    let base = b.cpu.cr3;
    assert_eq!(write(&mut b, TO_CR3, 1 << 46 | base), Err(Fault::GP0));
    assert_eq!(write(&mut b, TO_CR3, 1 << 63 | base), Err(Fault::GP0), "without PCIDE");
    b.cpu.cr4 |= Cr4::PCIDE;
    b.cpu.paging_changed();
    assert_eq!(write(&mut b, TO_CR3, 1 << 63 | base | 5), Ok(Flow::End));
    assert_eq!(b.cpu.cr3, base | 5);
    assert_eq!(write(&mut b, TO_CR3, 1 << 62 | base), Err(Fault::GP0));
}

#[test]
fn cr4_rules() {
    let cases = [
        (Start::P32, Cr4::VME, false),
        (Start::P32, Cr4::PVI, false),
        (Start::P32, Cr4::VMXE, false),
        (Start::P32, Cr4::LA57, false),
        (Start::P32, Cr4::CET, false),
        (Start::P32, Cr4::TSD | Cr4::PSE | Cr4::PAE | Cr4::PGE | Cr4::OSFXSR | Cr4::UMIP | Cr4::SMEP, true),
        (Start::P32, Cr4::PCIDE | Cr4::PAE, false),
        (Start::Long, Cr4::empty(), false),
        (Start::Long, Cr4::PAE | Cr4::PCIDE, true),
        (Start::Compat, Cr4::PAE | Cr4::PCIDE, true),
        (Start::Long, Cr4::PAE | Cr4::SMAP | Cr4::FSGSBASE | Cr4::OSXSAVE, true),
    ];
    for (start, value, ok) in cases {
        let mut b = Bench::new(start, 0);
        let expected = if ok { Ok(Flow::End) } else { Err(Fault::GP0) };
        assert_eq!(write(&mut b, TO_CR4, value.bits()), expected, "{start:?} {value:?}");
        assert_eq!(b.cpu.cr4 == value, ok);
    }
    let mut b = Bench::new(Start::Long, 0);
    assert_eq!(write(&mut b, TO_CR4, 1 << 31 | 0x20), Err(Fault::GP0));
    b.cpu.cr3 |= 8;
    assert_eq!(write(&mut b, TO_CR4, 0x2_0020), Err(Fault::GP0), "PCIDE with a PCID in CR3");
    b.cpu.cr3 &= !8;
    assert_eq!(write(&mut b, TO_CR4, 0x2_0020), Ok(Flow::End));
    assert_eq!(write(&mut b, TO_CR0, 0x11), Err(Fault::GP0), "PG cannot go before PCIDE");
}

#[test]
fn which_registers_exist_and_for_whom() {
    let mut b = Bench::new(Start::Long, 0);
    for (modrm, rex) in [(0xc8, 0x40), (0xe8, 0x40), (0xc8, 0x44)] {
        // CR1, CR5, CR9
        assert_eq!(b.refuse(&[rex, 0x0f, 0x20, modrm]), Fault::UD);
    }
    assert_eq!(write(&mut b, TO_CR8, 7), Ok(Flow::End));
    b.step(&[0x44, 0x0f, 0x20, 0xc0]).unwrap();
    assert_eq!(b.cpu.gpr[RAX], 7);
    assert_eq!(write(&mut b, TO_CR8, 16), Err(Fault::GP0));
    let mut b = Bench::new(Start::Long, 3);
    for code in [TO_CR0, TO_CR3, TO_CR4, TO_CR8, &[0x0f, 0x20, 0xc0][..]] {
        assert_eq!(b.refuse(code), Fault::GP0);
    }
    assert_eq!(Bench::new(Start::V86, 3).refuse(TO_CR0), Fault::GP0);
}

#[test]
fn lmsw_smsw_clts() {
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.gpr[RAX] = 0xffff_000e;
    b.step(&[0x0f, 0x01, 0xf0]).unwrap();
    assert_eq!(b.cpu.cr0.bits() & 0xffff, 0x3f, "LMSW cannot clear PE");
    b.step(&[0x0f, 0x06]).unwrap();
    assert!(!b.cpu.cr0.contains(Cr0::TS));
    b.step(&[0x0f, 0x01, 0xe0]).unwrap();
    assert_eq!(b.cpu.gpr[RAX], b.cpu.cr0.bits());
    b.write(DATA, 0, 8);
    b.step(&[0x0f, 0x01, 0x25, 0x00, 0x90, 0, 0]).unwrap();
    assert_eq!(b.read(DATA, 4), b.cpu.cr0.bits() & 0xffff);
}

#[test]
fn xcr0() {
    const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];
    const XGETBV: &[u8] = &[0x0f, 0x01, 0xd0];
    let mut b = Bench::new(Start::Long, 0);
    assert_eq!((b.refuse(XSETBV), b.refuse(XGETBV)), (Fault::UD, Fault::UD));
    b.cpu.cr4 |= Cr4::OSXSAVE;
    for (value, ok) in
        [(1, true), (3, true), (0, false), (2, false), (5, false), (0x23, false), (1 << 62 | 3, false)]
    {
        (b.cpu.gpr[RAX], b.cpu.gpr[RDX], b.cpu.gpr[RCX]) = (value & 0xffff_ffff, value >> 32, 0);
        assert_eq!(b.step(XSETBV).is_ok(), ok, "{value:#x}");
        b.cpu.rip = CODE;
    }
    b.step(XGETBV).unwrap();
    assert_eq!((b.cpu.gpr[RAX], b.cpu.gpr[RDX]), (3, 0));
    b.cpu.gpr[RCX] = 2;
    assert_eq!((b.refuse(XSETBV), b.refuse(XGETBV)), (Fault::GP0, Fault::GP0));
    let mut b = Bench::new(Start::Long, 3);
    b.cpu.cr4 |= Cr4::OSXSAVE;
    assert_eq!(b.refuse(XSETBV), Fault::GP0);
    assert!(b.step(XGETBV).is_ok());
}

#[test]
fn invlpg_and_invpcid() {
    let mut b = Bench::new(Start::Long, 0);
    b.cpu.gpr[RAX] = 0x8000_0000_0000;
    assert_eq!(b.step(&[0x0f, 0x01, 0x38]), Ok(Flow::End), "INVLPG of an address that is not canonical");
    let cases = [
        // type, PCID, address, PCIDE
        (0, 0, 0x1000, false, true),
        (0, 1, 0x1000, false, false),
        (0, 1, 0x1000, true, true),
        (0, 0x1000, 0x1000, true, false),
        (0, 0, 0x8000_0000_0000, true, false),
        (1, 7, 0, true, true),
        (1, 7, 0, false, false),
        (2, 0, 0, false, true),
        (3, 0, 0, false, true),
        (4, 0, 0, true, false),
    ];
    for (kind, pcid, address, pcide, ok) in cases {
        let mut b = Bench::new(Start::Long, 0);
        b.cpu.cr4.set(Cr4::PCIDE, pcide);
        b.cpu.paging_changed();
        b.write(DATA, pcid, 8);
        b.write(DATA + 8, address, 8);
        b.cpu.gpr[RAX] = kind;
        // INVPCID RAX, [DATA]
        let result = b.step(&[0x66, 0x0f, 0x38, 0x82, 0x04, 0x25, 0x00, 0x90, 0, 0]);
        assert_eq!(result, if ok { Ok(Flow::End) } else { Err(Fault::GP0) }, "type {kind} PCID {pcid}");
    }
}

#[test]
fn a_flush_makes_changed_tables_count() {
    let mut b = Bench::new(Start::Long, 0);
    assert_eq!(b.cpu.load::<u8>(MISSING), Err(Fault::pf(0)));
    b.write(0x1_3000 + 8 * (DATA >> 12), 0xa007, 8);
    b.write(0xa000, 0x55, 1);
    b.cpu.gpr[RAX] = DATA;
    b.step(&[0x0f, 0x01, 0x38]).unwrap();
    assert_eq!(b.cpu.load::<u8>(DATA), Ok(0x55));
}
