//! Delivery of exceptions and interrupts.

use super::bench::*;
use crate::fault::{Fault, Flow};
use crate::sys::{TripleFault, deliver_fault, deliver_interrupt, deliver_nmi};
use umbra_x86::reg::Rflags;
use umbra_x86::reg::gpr::{RAX, RSP};
use umbra_x86::segment::{Segment, access, sreg};

const INT16: u16 = 6;
const TRAP16: u16 = 7;
const INT32: u16 = 0xe;
const TRAP32: u16 = 0xf;
const HANDLER: u64 = 0x1_2340;
const INT_40: &[u8] = &[0xcd, 0x40];
const FLAGS: u64 = 0x4302; // TF, IF, NT

#[test]
fn real_mode() {
    let mut b = Bench::new(Start::Real, 0);
    b.write(0x40 * 4, 0x0200_0010, 4);
    b.cpu.rflags = 0x4_0302;
    assert_eq!(b.step(INT_40), Ok(Flow::Jump));
    assert_eq!(b.stack(3, 2), [CODE + 2, 0, 0x302]);
    assert_eq!(
        (b.cpu.seg[sreg::CS].base, b.cpu.rip, b.cpu.rflags),
        (0x2000, 0x10, 2),
        "IF, TF and AC are clear"
    );
    let mut b = Bench::new(Start::Real, 0);
    b.write(13 * 4, 0x0200_0010, 4);
    deliver_fault(&mut b.cpu, Fault::gp(0x1230)).unwrap();
    assert_eq!(b.cpu.gpr[RSP], STACK - 6, "no error code");
    b.cpu.idtr.limit = 0xff;
    assert_eq!(b.step(INT_40), Err(Fault::GP0));
}

#[test]
fn same_level() {
    let cases = [
        (INT32, 4, Rflags::TF | Rflags::NT | Rflags::IF),
        (TRAP32, 4, Rflags::TF | Rflags::NT),
        (INT16, 2, Rflags::TF | Rflags::NT | Rflags::IF),
        (TRAP16, 2, Rflags::TF | Rflags::NT),
    ];
    for (kind, size, cleared) in cases {
        let mut b = Bench::new(Start::P32, 0);
        b.idt(0x40, gate(CODE0, HANDLER, kind, 0, 0));
        b.cpu.rflags = FLAGS;
        assert_eq!(b.step(INT_40), Ok(Flow::Jump));
        assert_eq!(b.stack(3, size), [CODE + 2, u64::from(CODE0), FLAGS]);
        let rip = if size == 2 { HANDLER & 0xffff } else { HANDLER };
        assert_eq!(b.place(), (CODE0, rip, DATA0, STACK - 3 * size));
        assert_eq!(b.cpu.rflags, FLAGS & !cleared.bits());
    }
}

#[test]
fn error_codes_and_the_resume_flag() {
    let mut b = Bench::new(Start::P32, 0);
    b.idt(13, gate(CODE0, HANDLER, INT32, 0, 0));
    b.idt(1, gate(CODE0, HANDLER, INT32, 0, 0));
    b.idt(0x40, gate(CODE0, HANDLER, INT32, 0, 0));
    deliver_fault(&mut b.cpu, Fault::gp(0x1230)).unwrap();
    assert_eq!(b.stack(4, 4), [0x1230, CODE, u64::from(CODE0), 0x1_0002], "a fault sets RF in the image");
    let mut b2 = Bench::new(Start::P32, 0);
    b2.idt(1, gate(CODE0, HANDLER, INT32, 0, 0));
    b2.cpu.dr7 |= 1 << 13;
    deliver_fault(&mut b2.cpu, Fault::DB).unwrap();
    assert_eq!(b2.stack(3, 4), [CODE, u64::from(CODE0), 2]);
    assert_eq!(b2.cpu.dr7 & 1 << 13, 0, "GD ends with the exception");
    deliver_interrupt(&mut b.cpu, 0x40).unwrap();
    assert_eq!(b.stack(3, 4), [HANDLER, u64::from(CODE0), 2]);
}

#[test]
fn inner_level_by_the_stack_of_the_tss() {
    let mut b = Bench::new(Start::P32, 3);
    b.idt(0x40, gate(CODE0, HANDLER, INT32, 3, 0));
    b.cpu.rflags = 0x3202;
    assert_eq!(b.step(INT_40), Ok(Flow::Jump));
    assert_eq!(b.stack(5, 4), [CODE + 2, u64::from(CODE3), 0x3202, STACK3, u64::from(DATA3)]);
    assert_eq!(b.place(), (CODE0, HANDLER, DATA0, STACK0 - 20));
    assert_eq!((b.cpu.mode.cpl, b.cpu.rflags), (0, 0x3002));
    let mut b = Bench::new(Start::P32, 3);
    b.idt(0x40, gate(0x18, HANDLER, INT32, 3, 0));
    assert_eq!(b.step(INT_40), Ok(Flow::Jump));
    assert_eq!((b.place(), b.cpu.mode.cpl), ((0x19, HANDLER, 0x21, STACK0 - 0x100 - 20), 1));
    let mut b = Bench::new(Start::P32, 3);
    b.gdt(FREE, descriptor(0, 0xf_ffff, 0x9f | BIG));
    b.idt(0x40, gate(FREE, HANDLER, INT32, 3, 0));
    assert_eq!(b.step(INT_40), Ok(Flow::Jump));
    assert_eq!(
        (b.place(), b.cpu.mode.cpl),
        ((FREE | 3, HANDLER, DATA3, STACK3 - 12), 3),
        "conforming code stays at its level"
    );
}

#[test]
fn gates_are_checked() {
    let idt = |fault: fn(u16) -> Fault, ext: u32| Fault { error: 0x40 * 8 + 2 + ext, ..fault(0) };
    let with_ext = |f: Fault| Fault { error: f.error | 1, ..f };
    let absent = descriptor(0, 0xf_ffff, CODE_R & !access::P | BIG);
    let cases = [
        // CPL, gate, what INT n raises, what an external interrupt raises (None: delivered)
        (3, gate(CODE0, HANDLER, INT32, 2, 0), idt(Fault::gp, 0), None),
        (0, gate(CODE0, HANDLER, 0xc, 3, 0), idt(Fault::gp, 0), Some(idt(Fault::gp, 1))),
        (0, gate(CODE0, HANDLER, INT32, 3, 0) & !(0x80 << 40), idt(Fault::np, 0), Some(idt(Fault::np, 1))),
        (0, gate(0, HANDLER, INT32, 3, 0), Fault::GP0, Some(with_ext(Fault::GP0))),
        (0, gate(DATA0, HANDLER, INT32, 3, 0), Fault::gp(DATA0), Some(with_ext(Fault::gp(DATA0)))),
        (0, gate(CODE3, HANDLER, INT32, 3, 0), Fault::gp(CODE3), Some(with_ext(Fault::gp(CODE3)))),
        (0, gate(0x1008, HANDLER, INT32, 3, 0), Fault::gp(0x1008), Some(with_ext(Fault::gp(0x1008)))),
        (0, gate(FREE, HANDLER, INT32, 3, 0), Fault::np(FREE), Some(with_ext(Fault::np(FREE)))),
        (0, gate(FREE + 8, HANDLER, INT32, 3, 0), Fault::GP0, Some(with_ext(Fault::GP0))),
        (3, gate(CODE0, HANDLER, 5, 3, 0), Fault::gp(CODE0), Some(with_ext(Fault::gp(CODE0)))),
    ];
    for (cpl, raw, software, external) in cases {
        let mut b = Bench::new(Start::P32, cpl);
        b.gdt(FREE, absent);
        b.gdt(FREE + 8, descriptor(0, 0x10, CODE_R | access::DB));
        b.idt(0x40, raw);
        assert_eq!(b.refuse(INT_40), software, "{raw:#x}");
        for vector in 10..14 {
            b.idt(vector, gate(CODE0, 0x4000 + 0x100 * u64::from(vector), INT32, 0, 0));
        }
        deliver_interrupt(&mut b.cpu, 0x40).unwrap();
        match external {
            None => assert_eq!(b.cpu.rip, HANDLER),
            Some(fault) => {
                assert_eq!(b.cpu.rip, 0x4000 + 0x100 * u64::from(fault.vector), "{raw:#x}");
                assert_eq!(b.stack(1, 4), [u64::from(fault.error)], "{raw:#x}");
            }
        }
    }
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.idtr.limit = 0x40 * 8 + 6;
    assert_eq!(b.refuse(INT_40), idt(Fault::gp, 0));
}

#[test]
fn int3_into_int1_bound() {
    for (code, vector) in [([0xcc], 3), ([0xce], 4), ([0xf1], 1)] {
        let mut b = Bench::new(Start::P32, 3);
        b.idt(vector, gate(CODE0, HANDLER, INT32, 0, 0));
        b.cpu.rflags |= Rflags::OF.bits();
        if vector == 1 {
            assert_eq!(b.step(&code), Ok(Flow::Jump), "INT1 asks for no privilege");
            assert_eq!(b.cpu.mode.cpl, 0);
        } else {
            let error = u32::from(vector) * 8 + 2;
            assert_eq!(b.refuse(&code), Fault { error, ..Fault::GP0 });
        }
    }
    let mut b = Bench::new(Start::P32, 3);
    assert_eq!(b.step(&[0xce]), Ok(Flow::Next), "INTO without OF");
    b.write(DATA, 0x10_ffff_fff0, 8);
    for (index, inside) in [(-16i32, true), (16, true), (-17, false), (17, false)] {
        b.cpu.gpr[RAX] = u64::from(index as u32);
        // BOUND EAX, [DATA]
        let result = b.step(&[0x62, 0x05, 0x00, 0x90, 0, 0]);
        assert_eq!(result, if inside { Ok(Flow::Next) } else { Err(Fault::BR) }, "{index}");
    }
}

#[test]
fn from_virtual_8086_mode() {
    let mut b = Bench::new(Start::V86, 3);
    for (n, s) in b.cpu.seg.iter_mut().enumerate() {
        *s = crate::sys::segment::v86_segment(0x10 * n as u16);
    }
    b.cpu.seg[sreg::CS] = crate::sys::segment::v86_segment(0);
    b.gdt(CODE0, descriptor(0, 0xf_ffff, CODE_R | BIG));
    b.gdt(DATA0, descriptor(0, 0xf_ffff, DATA_W | BIG));
    b.idt(0x40, gate(CODE0, HANDLER, INT32, 3, 0));
    b.cpu.gpr[RSP] = 0x1_4000;
    assert_eq!(b.refuse(INT_40), Fault::GP0, "INT n needs IOPL 3");
    b.cpu.rflags |= 0x3200;
    assert_eq!(b.step(INT_40), Ok(Flow::Jump));
    let frame = [CODE + 2, 0, 0x2_3202, 0x1_4000, 0x20, 0, 0x30, 0x40, 0x50];
    assert_eq!(b.stack(9, 4), frame, "EIP CS EFLAGS ESP SS ES DS FS GS");
    assert_eq!(b.place(), (CODE0, HANDLER, DATA0, STACK0 - 36));
    assert!(!b.cpu.mode.v86 && b.cpu.mode.cpl == 0);
    let data = [sreg::ES, sreg::DS, sreg::FS, sreg::GS];
    assert!(data.iter().all(|n| b.cpu.seg[*n].unusable && b.cpu.seg[*n].selector == 0));
    // INT3 does not look at IOPL, but at the gate.
    let mut b = Bench::new(Start::V86, 3);
    b.gdt(CODE0, descriptor(0, 0xf_ffff, CODE_R | BIG));
    b.idt(3, gate(CODE0, HANDLER, INT32, 3, 0));
    assert_eq!(b.step(&[0xcc]), Ok(Flow::Jump));
    let mut b = Bench::new(Start::V86, 3);
    b.idt(0x41, gate(0x18, HANDLER, INT32, 3, 0));
    b.cpu.rflags |= 0x3000;
    assert_eq!(b.refuse(&[0xcd, 0x41]), Fault::gp(0x18), "only to level 0");
}

#[test]
fn long_mode_aligns_and_always_pushes_the_stack() {
    let mut b = Bench::new(Start::Long, 0);
    b.idt(14, gate(CODE0, HANDLER, INT32, 0, 0));
    b.cpu.gpr[RSP] = STACK - 5;
    b.cpu.fault_address = 0xffff_8000_0000_1000;
    deliver_fault(&mut b.cpu, Fault::pf(2)).unwrap();
    let sp = ((STACK - 5) & !15) - 48;
    assert_eq!(b.place(), (CODE0, HANDLER, DATA0, sp));
    assert_eq!(b.stack(6, 8), [2, CODE, u64::from(CODE0), 0x1_0002, STACK - 5, u64::from(DATA0)]);
    assert_eq!(b.cpu.cr2, 0xffff_8000_0000_1000);
}

#[test]
fn long_mode_inner_level_and_interrupt_stacks() {
    for start in [Start::Long, Start::Compat] {
        let mut b = Bench::new(start, 3);
        b.idt(0x40, gate(CODE0, HANDLER, TRAP32, 3, 0));
        b.cpu.rflags = 0x202;
        assert_eq!(b.step(INT_40), Ok(Flow::Jump));
        assert_eq!(b.stack(5, 8), [CODE + 2, u64::from(CODE3), 0x202, STACK3, u64::from(DATA3)]);
        assert_eq!(b.place(), (CODE0, HANDLER, 0, STACK0 - 40));
        assert_eq!((b.cpu.mode.cpl, b.cpu.mode.code, b.cpu.rflags), (0, 64, 0x202));
        assert!(b.cpu.seg[sreg::SS].unusable);
    }
    let mut b = Bench::new(Start::Long, 0);
    b.idt(0x40, gate(CODE0, HANDLER, INT32, 3, 2));
    b.write(TSS + 0x24 + 8, 0xa123, 8);
    assert_eq!(b.step(INT_40), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, HANDLER, DATA0, 0xa120 - 40), "IST 2, aligned; SS stays");
}

#[test]
fn long_mode_checks() {
    let idt = |fault: fn(u16) -> Fault| Fault { error: 0x40 * 8 + 2, ..fault(0) };
    let cases = [
        (gate(CODE0, HANDLER, INT16, 3, 0), 0, 0x6ff0, Fault { ..idt(Fault::gp) }),
        (gate(CODE0, HANDLER, 5, 3, 0), 0, 0x6ff0, idt(Fault::gp)),
        (gate(FREE, HANDLER, INT32, 3, 0), 0, 0x6ff0, Fault::gp(FREE)),
        (gate(CODE0, HANDLER, INT32, 3, 0), 0x8000, 0x6ff0, Fault::GP0),
        (gate(CODE0, HANDLER, INT32, 3, 0), 0, 0x8000_0000_0000, Fault::SS0),
    ];
    for (low, high, rsp0, fault) in cases {
        let mut b = Bench::new(Start::Long, 3);
        b.gdt(FREE, descriptor(0, 0xf_ffff, CODE_R | BIG));
        b.idt(0x40, low);
        b.write(IDT + 0x40 * 16 + 8, high, 8);
        b.write(TSS + 4, rsp0, 8);
        assert_eq!(b.refuse(INT_40), fault, "{low:#x} {high:#x}");
    }
    let mut b = Bench::new(Start::Long, 3);
    b.idt(0x40, gate(CODE0, HANDLER, INT32, 3, 0));
    b.write(TSS + 4, MISSING + 0x800, 8);
    assert_eq!(b.refuse(INT_40), Fault::pf(2), "a page fault on the new stack is the supervisor's");
    assert_eq!(b.cpu.fault_address, MISSING + 0x800 - 8);
    b.cpu.tr.limit = 10;
    assert_eq!(b.refuse(INT_40), Fault::ts(TSS_SEL));
}

/// Delivers `first`, whose gate's code segment does not exist so that a general protection follows, with only `gates` in place.
fn chain(first: Fault, gates: &[u8]) -> (Bench, Result<(), TripleFault>) {
    let mut b = Bench::new(Start::P32, 0);
    for vector in 0..32 {
        b.idt(vector, gate(0x1008, HANDLER, INT32, 0, 0));
    }
    for vector in gates {
        b.idt(*vector, gate(CODE0, 0x4000 + 0x100 * u64::from(*vector), INT32, 0, 0));
    }
    let result = deliver_fault(&mut b.cpu, first);
    (b, result)
}

#[test]
fn exceptions_in_the_delivery_of_exceptions() {
    // first, then what is delivered in the end: vector and error code
    let cases = [
        (Fault::UD, 13, 0x1009),
        (Fault::NM, 13, 0x1009),
        (Fault::DE, 8, 0),
        (Fault::gp(0x50), 8, 0),
        (Fault::ts(0x50), 8, 0),
        (Fault::np(0x50), 8, 0),
        (Fault::ss(0x50), 8, 0),
        (Fault::pf(2), 8, 0),
    ];
    for (first, vector, error) in cases {
        let (b, result) = chain(first, &[8, 13].map(|v| if v == first.vector { 0xff } else { v }));
        assert_eq!(result, Ok(()));
        assert_eq!((b.cpu.rip, b.stack(2, 4)), (0x4000 + 0x100 * vector, vec![error, CODE]), "{first:?}");
    }
    assert_eq!(chain(Fault::UD, &[8]).0.cpu.rip, 0x4800, "#UD, #GP, then #DF");
    assert_eq!(chain(Fault::UD, &[]).1, Err(TripleFault));
    assert_eq!(chain(Fault::pf(0), &[13]).1, Err(TripleFault));
    let mut b = Bench::new(Start::Long, 0);
    b.cpu.gpr[RSP] = MISSING + 0x1000;
    b.idt(6, gate(CODE0, HANDLER, INT32, 0, 0));
    b.idt(14, gate(CODE0, HANDLER, INT32, 0, 1));
    b.write(TSS + 0x24, STACK0, 8);
    deliver_fault(&mut b.cpu, Fault::UD).unwrap();
    assert_eq!((b.cpu.cr2, b.stack(2, 8)), (MISSING + 0xff8, vec![2, CODE]), "#UD, then #PF on the stack");
    let mut b = Bench::new(Start::Long, 0);
    b.cpu.gpr[RSP] = MISSING + 0x1000;
    b.idt(14, gate(CODE0, HANDLER, INT32, 0, 0));
    b.idt(8, gate(CODE0, 0x4800, INT32, 0, 1));
    b.write(TSS + 0x24, STACK0, 8);
    b.cpu.fault_address = 0x1234_5000;
    deliver_fault(&mut b.cpu, Fault::pf(0)).unwrap();
    assert_eq!((b.cpu.cr2, b.cpu.rip), (MISSING + 0xff8, 0x4800), "#PF twice is #DF");
}

#[test]
fn nmi_holds_off_others() {
    let mut b = Bench::new(Start::Long, 0);
    b.idt(2, gate(CODE0, HANDLER, INT32, 0, 0));
    deliver_nmi(&mut b.cpu).unwrap();
    assert!(b.cpu.nmi_masked);
    assert_eq!(b.cpu.rip, HANDLER);
    assert_eq!(b.step(&[0x48, 0xcf]), Ok(Flow::Jump));
    assert!(!b.cpu.nmi_masked);
    assert_eq!(b.place(), (CODE0, CODE, DATA0, STACK));
}

#[test]
fn a_16_bit_tss_has_16_bit_stacks() {
    let mut b = Bench::new(Start::P32, 3);
    b.cpu.tr = Segment { base: TSS, limit: 0x2b, selector: TSS_SEL, access: 0x83, unusable: false };
    b.write(TSS + 2, 0x6100, 2);
    b.write(TSS + 4, u64::from(DATA0), 2);
    b.idt(0x40, gate(CODE0, HANDLER, INT32, 3, 0));
    assert_eq!(b.step(INT_40), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, HANDLER, DATA0, 0x6100 - 20));
}

#[test]
fn from_16_bit_code_with_a_16_bit_stack() {
    let mut b = Bench::new(Start::P16, 0);
    b.idt(0x40, gate(CODE0, 0x2340, INT32, 0, 0));
    b.cpu.gpr[RSP] = 0xabcd_7ff0;
    assert_eq!(b.step(INT_40), Ok(Flow::Jump));
    assert_eq!((b.cpu.gpr[RSP], b.cpu.rip, b.cpu.mode.code), (0xabcd_7fe4, 0x2340, 16));
    assert_eq!(b.stack(3, 4), [CODE + 2, u64::from(CODE0), 2]);
    b.cpu.gpr[RSP] = 6;
    assert_eq!(b.refuse(&[0xcd, 0x40]), Fault::SS0, "the pointer wraps into the end of the segment");
}
