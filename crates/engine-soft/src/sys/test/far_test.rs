//! Far JMP, CALL and RET.

use super::bench::*;
use crate::fault::{Fault, Flow};
use umbra_x86::reg::gpr::{RAX, RSP};
use umbra_x86::segment::{access, sreg};

const CONFORMING: u16 = 0x9f;
const CALL16: u16 = 4;
const CALL32: u16 = 0xc;
const RETF: &[u8] = &[0xcb];
const RETFQ: &[u8] = &[0x48, 0xcb];

/// JMP or CALL ptr16:32.
fn direct(opcode: u8, selector: u16, offset: u32) -> Vec<u8> {
    let mut code = vec![opcode];
    code.extend(offset.to_le_bytes());
    code.extend(selector.to_le_bytes());
    code
}

fn jmp(selector: u16, offset: u32) -> Vec<u8> {
    direct(0xea, selector, offset)
}

fn call(selector: u16, offset: u32) -> Vec<u8> {
    direct(0x9a, selector, offset)
}

#[test]
fn direct_jumps_keep_the_level() {
    let gp = Err(Fault::gp(FREE));
    let ok = Ok(Flow::Jump);
    let cases = [
        // CPL, RPL, access, offset
        (0, 0, CODE_R, 0x10, ok),
        (0, 3, CODE_R, 0x10, gp),
        (3, 3, at(3, CODE_R), 0x10, ok),
        (3, 0, at(3, CODE_R), 0x10, ok),
        (3, 3, CODE_R, 0x10, gp),
        (0, 0, at(3, CODE_R), 0x10, gp),
        (3, 3, CONFORMING, 0x10, ok),
        (0, 3, CONFORMING, 0x10, ok),
        (0, 0, at(3, CONFORMING), 0x10, gp),
        (0, 0, DATA_W, 0x10, gp),
        (0, 0, 0x82, 0x10, gp),
        (0, 0, CODE_R & !access::P, 0x10, Err(Fault::np(FREE))),
        (0, 0, CODE_R, 0x1000, Err(Fault::GP0)),
    ];
    for (cpl, rpl, access, offset, expected) in cases {
        let mut b = Bench::new(Start::P32, cpl);
        b.gdt(FREE, descriptor(0x500, 0xfff, access | access::DB));
        let result = b.step(&jmp(FREE | rpl, offset));
        assert_eq!(result, expected, "CPL {cpl} RPL {rpl} access {access:#x} offset {offset:#x}");
        if expected.is_ok() {
            assert_eq!((b.cpu.seg[sreg::CS].selector, b.cpu.rip), (FREE | u16::from(cpl), 0x10));
            assert_eq!(b.cpu.mode.cpl, cpl);
        }
    }
    let mut b = Bench::new(Start::P32, 0);
    assert_eq!(b.refuse(&jmp(0, 0)), Fault::GP0);
    assert_eq!(b.refuse(&jmp(0x1008, 0)), Fault::gp(0x1008));
}

#[test]
fn direct_calls_push_what_the_operand_size_says() {
    let mut b = Bench::new(Start::P32, 0);
    assert_eq!(b.step(&call(CODE0, 0x1234)), Ok(Flow::Jump));
    assert_eq!(b.stack(2, 4), [CODE + 7, u64::from(CODE0)]);
    assert_eq!(b.place(), (CODE0, 0x1234, DATA0, STACK - 8));
    b.cpu.rip = CODE;
    // CALL 8:0x4321 with 16 bits
    assert_eq!(b.step(&[0x66, 0x9a, 0x21, 0x43, 8, 0]), Ok(Flow::Jump));
    assert_eq!(b.stack(2, 2), [CODE + 6, u64::from(CODE0)]);
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.seg[sreg::SS].limit = 0x7fef - 4;
    b.cpu.update_mode();
    assert_eq!(b.refuse(&call(CODE0, 0x1234)), Fault::SS0);
}

#[test]
fn call_gate_to_the_same_level() {
    let mut b = Bench::new(Start::P32, 0);
    b.gdt(FREE, gate(CODE0, 0x12345, CALL32, 0, 3));
    assert_eq!(b.step(&call(FREE, 0xffff_ffff)), Ok(Flow::Jump));
    assert_eq!(b.stack(2, 4), [CODE + 7, u64::from(CODE0)], "no parameters without a new stack");
    assert_eq!(b.place(), (CODE0, 0x12345, DATA0, STACK - 8));
    let mut b = Bench::new(Start::P32, 0);
    b.gdt(FREE, gate(CODE0, 0x12345, CALL16, 0, 0));
    assert_eq!(b.step(&jmp(FREE, 0)), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, 0x2345, DATA0, STACK));
}

#[test]
fn call_gate_to_an_inner_level_switches_stacks_and_copies_parameters() {
    for (kind, size) in [(CALL32, 4), (CALL16, 2)] {
        let mut b = Bench::new(Start::P32, 3);
        b.gdt(FREE, gate(CODE0 | 3, 0x1234, kind, 3, 2));
        b.push(&[0x1111, 0x2222, 0x3333], size);
        let old = b.cpu.gpr[RSP];
        assert_eq!(b.step(&call(FREE | 3, 0)), Ok(Flow::Jump));
        let frame = [CODE + 7, u64::from(CODE3), 0x1111, 0x2222, old, u64::from(DATA3)];
        assert_eq!(b.stack(6, size), frame);
        assert_eq!(b.place(), (CODE0, 0x1234, DATA0, STACK0 - 6 * size));
        assert_eq!(b.cpu.mode.cpl, 0);
    }
}

#[test]
fn call_gates_are_checked() {
    let gate_to = |selector| gate(selector, 0x1234, CALL32, 3, 0);
    let cases = [
        // CPL, RPL of the gate's selector, gate, what
        (3, 3, gate(CODE0, 0, CALL32, 2, 0), Fault::gp(FREE)),
        (0, 3, gate(CODE0, 0, CALL32, 2, 0), Fault::gp(FREE)),
        (3, 3, gate_to(0), Fault::GP0),
        (3, 3, gate_to(DATA0), Fault::gp(DATA0)),
        (3, 3, gate_to(0x1008), Fault::gp(0x1008)),
        (3, 3, gate_to(CODE0) & !(0x80 << 40), Fault::np(FREE)),
        (0, 0, gate_to(CODE3), Fault::gp(CODE3)),
        (3, 3, gate_to(FREE + 8), Fault::np(FREE + 8)),
        (3, 3, gate(FREE + 16, 0x1234, CALL32, 3, 0), Fault::GP0),
    ];
    for (cpl, rpl, raw, fault) in cases {
        let mut b = Bench::new(Start::P32, cpl);
        b.gdt(FREE, raw);
        b.gdt(FREE + 8, descriptor(0, 0xf_ffff, CODE_R & !access::P | BIG));
        b.gdt(FREE + 16, descriptor(0, 0x10, CODE_R | access::DB));
        assert_eq!(b.refuse(&call(FREE | rpl, 0)), fault, "CPL {cpl} RPL {rpl} gate {raw:#x}");
    }
    let mut b = Bench::new(Start::P32, 3);
    b.gdt(FREE, gate_to(CODE0));
    assert_eq!(b.refuse(&jmp(FREE | 3, 0)), Fault::gp(CODE0), "a jump does not change the level");
}

#[test]
fn the_stack_of_the_inner_level_is_checked() {
    let ok_ss = u64::from(DATA0);
    let cases = [
        (0, 0x7ff, Fault::ts(0)),
        (u64::from(DATA0 | 1), 0x7ff, Fault::ts(DATA0)),
        (u64::from(CODE0), 0x7ff, Fault::ts(CODE0)),
        (u64::from(DATA3), 0x7ff, Fault::ts(DATA3)),
        (0x1000, 0x7ff, Fault::ts(0x1000)),
        (u64::from(FREE + 8), 0x7ff, Fault::ss(FREE + 8)),
        (ok_ss, 8, Fault::ts(TSS_SEL)),
    ];
    for (ss, limit, fault) in cases {
        let mut b = Bench::new(Start::P32, 3);
        b.gdt(FREE, gate(CODE0, 0x1234, CALL32, 3, 0));
        b.gdt(FREE + 8, descriptor(0, 0xf_ffff, DATA_W & !access::P | BIG));
        b.write(TSS + 8, ss, 4);
        b.cpu.tr.limit = limit;
        assert_eq!(b.refuse(&call(FREE | 3, 0)), fault, "SS {ss:#x} limit {limit:#x}");
    }
    let mut b = Bench::new(Start::P32, 3);
    b.gdt(FREE, gate(CODE0, 0x1234, CALL32, 3, 0));
    b.gdt(FREE + 8, descriptor(0, 7, DATA_W | access::DB));
    b.write(TSS + 8, u64::from(FREE + 8), 4);
    assert_eq!(b.refuse(&call(FREE | 3, 0)), Fault::ss(FREE + 8), "no room");
}

#[test]
fn call_gates_of_long_mode() {
    let mut b = Bench::new(Start::Long, 3);
    b.gdt(FREE, gate(CODE0, 0x1234, CALL32, 3, 0));
    b.gdt(FREE + 8, 0);
    b.write(DATA, u64::from(FREE | 3) << 32, 8);
    // CALL FAR m16:32 [DATA]
    let call: &[u8] = &[0xff, 0x1c, 0x25, 0x00, 0x90, 0, 0];
    assert_eq!(b.step(call), Ok(Flow::Jump));
    assert_eq!(b.stack(4, 8), [CODE + 7, u64::from(CODE3), STACK3, u64::from(DATA3)]);
    assert_eq!(b.place(), (CODE0, 0x1234, 0, STACK0 - 32));
    let cases = [
        (gate(CODE0, 0, CALL32, 3, 0), 1u64 << 40, Fault::gp(FREE)),
        (gate(CODE0, 0, CALL32, 3, 0), 0x8000, Fault::GP0),
        (gate(FREE + 16, 0, CALL32, 3, 0), 0, Fault::gp(FREE + 16)),
        (gate(CODE0, 0, CALL16, 3, 0), 0, Fault::gp(FREE)),
        (gate(TSS_B_SEL, 0, 5, 3, 0), 0, Fault::gp(FREE)),
    ];
    for (low, high, fault) in cases {
        let mut b = Bench::new(Start::Long, 3);
        b.gdt(FREE, low);
        b.gdt(FREE + 8, high);
        b.gdt(FREE + 16, descriptor(0, 0xf_ffff, CODE_R | BIG));
        b.write(DATA, u64::from(FREE | 3) << 32, 8);
        assert_eq!(b.refuse(call), fault, "{low:#x} {high:#x}");
    }
}

#[test]
fn returns_to_the_same_level() {
    let mut b = Bench::new(Start::P32, 0);
    b.push(&[0x1234, u64::from(CODE0), 0x55], 4);
    assert_eq!(b.step(RETF), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, 0x1234, DATA0, STACK - 4));
    let mut b = Bench::new(Start::P32, 0);
    b.push(&[0x1234, u64::from(CODE0), 1, 2, 3], 4);
    // RETF 8
    assert_eq!(b.step(&[0xca, 8, 0]), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE0, 0x1234, DATA0, STACK - 4));
    let cases = [
        (0, 0, Fault::GP0),
        (u64::from(DATA0), 0, Fault::gp(DATA0)),
        (0x1008, 0, Fault::gp(0x1008)),
        (u64::from(FREE), 0, Fault::np(FREE)),
        (u64::from(CODE3) & !3, 0, Fault::gp(CODE3)),
        (u64::from(FREE + 8), 0x11, Fault::GP0),
    ];
    for (selector, rip, fault) in cases {
        let mut b = Bench::new(Start::P32, 0);
        b.gdt(FREE, descriptor(0, 0xf_ffff, CODE_R & !access::P | BIG));
        b.gdt(FREE + 8, descriptor(0, 0x10, CODE_R | access::DB));
        b.push(&[rip, selector], 4);
        assert_eq!(b.refuse(RETF), fault, "{selector:#x}");
    }
    let mut b = Bench::new(Start::P32, 3);
    b.push(&[0x1234, u64::from(CODE0)], 4);
    assert_eq!(b.refuse(RETF), Fault::gp(CODE0), "not to an inner level");
}

#[test]
fn returns_to_an_outer_level() {
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.seg[sreg::ES] = b.cpu.seg[sreg::DS];
    let raw = b.read(GDT + u64::from(DATA3 & !7), 8);
    b.cpu.seg[sreg::FS] = umbra_x86::segment::Segment::from_descriptor(DATA3, raw);
    b.gdt(FREE, descriptor(0, 0xf_ffff, CONFORMING | BIG));
    b.cpu.seg[sreg::GS] =
        umbra_x86::segment::Segment::from_descriptor(FREE, b.read(GDT + u64::from(FREE), 8));
    b.push(&[0x1234, u64::from(CODE3), 7, 0x5000, u64::from(DATA3)], 4);
    // RETF 4
    assert_eq!(b.step(&[0xca, 4, 0]), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE3, 0x1234, DATA3, 0x5004));
    assert_eq!(b.cpu.mode.cpl, 3);
    let selectors = [sreg::ES, sreg::DS, sreg::FS, sreg::GS].map(|n| b.cpu.seg[n].selector);
    assert_eq!(selectors, [0, 0, DATA3, FREE], "segments of the inner level are gone");
    assert!(b.cpu.seg[sreg::ES].unusable && !b.cpu.seg[sreg::GS].unusable);
    let cases = [
        (0, Fault::GP0),
        (u64::from(DATA0), Fault::gp(DATA0)),
        (u64::from(DATA0 | 3), Fault::gp(DATA0)),
        (u64::from(CODE3), Fault::gp(CODE3)),
        (u64::from(FREE | 3), Fault::ss(FREE)),
    ];
    for (ss, fault) in cases {
        let mut b = Bench::new(Start::P32, 0);
        b.gdt(FREE, descriptor(0, 0xf_ffff, at(3, DATA_W) & !access::P | BIG));
        b.push(&[0x1234, u64::from(CODE3), 0x5000, ss], 4);
        assert_eq!(b.refuse(RETF), fault, "SS {ss:#x}");
    }
}

#[test]
fn returns_in_long_mode() {
    let mut b = Bench::new(Start::Long, 0);
    b.push(&[0x1234, u64::from(CODE3), 0x5000, u64::from(DATA3)], 8);
    assert_eq!(b.step(RETFQ), Ok(Flow::Jump));
    assert_eq!(b.place(), (CODE3, 0x1234, DATA3, 0x5000));
    let mut b = Bench::new(Start::Long, 0);
    b.push(&[0x8000_0000_0000, u64::from(CODE0)], 8);
    assert_eq!(b.refuse(RETFQ), Fault::GP0, "not canonical");
    let mut b = Bench::new(Start::Long, 0);
    b.gdt(FREE, descriptor(0, 0xf_ffff, CODE_R | access::L | BIG));
    b.push(&[0, u64::from(FREE)], 8);
    assert_eq!(b.refuse(RETFQ), Fault::gp(FREE), "L and D");
    b.push(&[0x1234, 0x19, 0x5000, 1], 8);
    assert_eq!(b.step(RETFQ), Ok(Flow::Jump), "level 1 may have a null SS in 64-bit mode");
    assert_eq!((b.place(), b.cpu.mode.cpl), ((0x19, 0x1234, 1, 0x5000), 1));
}

#[test]
fn compatibility_mode_takes_32_bits_of_the_offset() {
    let mut b = Bench::new(Start::Long, 0);
    b.gdt(FREE, descriptor(0, 0xfff, CODE_R | access::DB));
    b.push(&[0x7777_0000_0234, u64::from(FREE)], 8);
    assert_eq!(b.step(RETFQ), Ok(Flow::Jump));
    assert_eq!((b.cpu.rip, b.cpu.mode.code), (0x234, 32));
}

#[test]
fn the_deepest_part_of_a_frame_is_read_first() {
    let iretq: &[u8] = &[0x48, 0xcf];
    for (code, slots, inside, fault_at) in
        [(RETFQ, 2, 0, 8), (RETFQ, 2, 1, 0), (iretq, 3, 1, 8), (iretq, 5, 3, 8)]
    {
        let mut b = Bench::new(Start::Long, 0);
        b.cpu.gpr[RSP] = MISSING - 8 * inside;
        for (n, value) in [CODE, u64::from(CODE0), 2].into_iter().enumerate().take(inside as usize) {
            b.write(MISSING - 8 * inside + 8 * n as u64, value, 8);
        }
        assert_eq!(b.refuse(code), Fault::pf(0));
        assert_eq!(b.cpu.fault_address, MISSING + fault_at, "{slots} slots, {inside} there");
    }
}

#[test]
fn real_and_virtual_8086_mode() {
    for start in [Start::Real, Start::V86] {
        let mut b = Bench::new(start, 3);
        // JMP 0x1234:0x5678
        assert_eq!(b.step(&[0xea, 0x78, 0x56, 0x34, 0x12]), Ok(Flow::Jump));
        let cs = b.cpu.seg[sreg::CS];
        assert_eq!((cs.selector, cs.base, b.cpu.rip), (0x1234, 0x12340, 0x5678));
        // CALL 0x100:0x10 and back
        assert_eq!(b.step(&[0x9a, 0x10, 0, 0, 1]), Ok(Flow::Jump));
        assert_eq!(b.stack(2, 2), [0x567d, 0x1234]);
        assert_eq!(b.step(RETF), Ok(Flow::Jump));
        assert_eq!((b.cpu.seg[sreg::CS].selector, b.cpu.rip), (0x1234, 0x567d));
        // JMP with an offset of 32 bits beyond the limit
        assert_eq!(b.refuse(&[0x66, 0xea, 0, 0, 1, 0, 0, 1]), Fault::GP0);
    }
    let mut b = Bench::new(Start::Real, 0);
    b.cpu.gpr[RAX] = 0;
    b.cpu.gpr[RSP] = 0xfffd;
    assert_eq!(b.refuse(RETF), Fault::SS0, "the selector lies across the end of the segment");
}
