//! 16-bit and segmented code: stacks, branches and limits.

use umbra_x86::reg::gpr::{RAX, RBP, RBX, RCX, RDI, RSP};
use umbra_x86::reg::{Cr0, Cr4, Efer};
use umbra_x86::segment::{Segment, Table, access, sreg};

use super::guest::{CODE, Guest, SEEN};
use crate::exec::{self, Stop};

/// Where the code segment starts.
const BASE: u64 = 0x2_0000;
const STACK: u64 = 0x3_0000;

/// Real mode, code at 2000:0000, stack at 3000:0100.
fn real() -> Guest {
    let mut guest = Guest::new();
    let cpu = &mut *guest.cpu;
    cpu.cr0 = Cr0::ET;
    cpu.cr4 = Cr4::empty();
    cpu.efer = Efer::empty();
    cpu.seg = [Segment::real(0, false); 6];
    cpu.seg[sreg::CS] = Segment::real((BASE >> 4) as u16, true);
    cpu.seg[sreg::SS] = Segment::real((STACK >> 4) as u16, false);
    cpu.idtr = Table { base: 0x400, limit: 0x3ff };
    cpu.gpr = [0; 16];
    cpu.gpr[RSP] = 0x100;
    cpu.update_mode();
    cpu.paging_changed();
    // Each vector's handler, at 0000:0600 + 8 n, leaves its number and halts: mov byte [SEEN], n; hlt
    for n in 0..32u8 {
        guest.put(0x400 + u64::from(n) * 4, 0x600 + u64::from(n) * 8, 4);
        let seen = SEEN.to_le_bytes();
        guest.bytes(0x600 + u64::from(n) * 8, &[0xc6, 0x06, seen[0], seen[1], n, 0xf4]);
    }
    guest.put(SEEN, 0xff, 4);
    guest
}

fn run(guest: &mut Guest, offset: u64, code: &[u8]) {
    guest.bytes(BASE + offset, code);
    guest.bytes(BASE + offset + code.len() as u64, &[0xf4]);
    guest.cpu.rip = offset;
    guest.go();
}

#[test]
fn a_stack_pointer_of_16_bits_wraps() {
    let mut guest = real();
    guest.cpu.gpr[RSP] = 0xabcd_0000;
    guest.cpu.gpr[RAX] = 0x1234;
    run(&mut guest, 0, &[0x50, 0x5b]);
    assert_eq!(guest.peek(STACK + 0xfffe, 2), 0x1234);
    assert_eq!((guest.cpu.gpr[RBX], guest.cpu.gpr[RSP]), (0x1234, 0xabcd_0000));
    // A push at 1 lies across the limit, and so does the delivery of that fault: the processor shuts down.
    guest.cpu.gpr[RSP] = 1;
    guest.bytes(BASE, &[0x90, 0x50]);
    guest.cpu.rip = 0;
    assert_eq!(exec::run(&mut guest.cpu), Stop::TripleFault);
    // Where the offset wraps between two pushes it does not matter.
    guest.cpu.gpr[RSP] = 2;
    run(&mut guest, 0x10, &[0x50, 0x50, 0x5b, 0x5b]);
    assert_eq!(guest.cpu.gpr[RSP], 2);
}

#[test]
fn calls_loops_and_frames() {
    let mut guest = real();
    // call f; jmp end; f: mov cx,5; l: add ax,cx; loop l; ret; end:
    run(&mut guest, 0x40, &[0xe8, 0x02, 0, 0xeb, 0x08, 0xb9, 5, 0, 0x01, 0xc8, 0xe2, 0xfc, 0xc3]);
    assert_eq!((guest.cpu.gpr[RAX], guest.cpu.gpr[RCX], guest.cpu.gpr[RSP]), (15, 0, 0x100));
    // push bp; mov bp,sp; pushad; popad; mov sp,bp; pop bp
    guest.cpu.gpr[RBP] = 0x5555;
    run(&mut guest, 0x80, &[0x55, 0x89, 0xe5, 0x66, 0x60, 0x66, 0x61, 0x89, 0xec, 0x5d]);
    assert_eq!((guest.cpu.gpr[RBP] & 0xffff, guest.cpu.gpr[RSP]), (0x5555, 0x100));
    // pushad stores ESP as it was.
    guest.cpu.gpr[RDI] = 0x7777_7777;
    run(&mut guest, 0xc0, &[0x66, 0x60]);
    assert_eq!(guest.peek(STACK + 0xe0, 4), 0x7777_7777);
    assert_eq!(guest.peek(STACK + 0xec, 4), 0x100);
    guest.cpu.gpr[RSP] = 0x100;
    // jcxz with CX zero but ECX not; a32 jecxz does not jump.
    guest.cpu.gpr[RCX] = 0x1_0000;
    guest.cpu.gpr[RAX] = 0;
    run(&mut guest, 0x100, &[0xe3, 0x02, 0xff, 0xc0, 0x67, 0xe3, 0x02, 0xff, 0xc0]);
    assert_eq!(guest.cpu.gpr[RAX], 1);
}

#[test]
fn sizes_that_are_not_the_codes() {
    let mut guest = real();
    // o32 call rel32 pushes four bytes; o32 ret pops them.
    run(&mut guest, 0, &[0x66, 0xe8, 1, 0, 0, 0, 0xf4, 0x66, 0x58]);
    assert_eq!(guest.cpu.gpr[RAX], 6);
    run(&mut guest, 0x20, &[0x66, 0x68, 0x28, 0, 0, 0, 0x66, 0xc3]);
    assert_eq!(guest.cpu.rip, 0x29, "it returned to the HLT there");
    // A target above the limit faults at the branch.
    run(&mut guest, 0x60, &[0x90, 0x66, 0xe9, 0, 0, 1, 0]);
    assert_eq!(guest.peek(SEEN, 1), 13);
    assert_eq!(guest.peek(STACK + guest.cpu.gpr[RSP], 2), 0x61);
}

#[test]
fn limits_and_segment_bases() {
    let mut guest = real();
    guest.put(STACK + 0xfffe, 0xaaaa, 2);
    // mov ax, ss:[0xfffe]; mov ax, ss:[0xffff]
    run(&mut guest, 0, &[0x36, 0xa1, 0xfe, 0xff, 0x36, 0xa1, 0xff, 0xff]);
    assert_eq!(guest.cpu.gpr[RAX], 0xaaaa);
    assert_eq!(guest.peek(SEEN, 1), 12, "a word at the limit, through SS");
    // The same bytes of code in two segments: what is relative to CS differs, mov al, cs:[0].
    for segment in [0x2000u16, 0x2001] {
        guest.cpu.seg[sreg::CS] = Segment::real(segment, true);
        guest.cpu.update_mode();
        guest.cpu.rip = BASE + 0x200 - (u64::from(segment) << 4);
        guest.bytes(BASE + 0x200, &[0x2e, 0xa0, 0, 0, 0xf4]);
        guest.put(BASE, 0x11, 1);
        guest.put(BASE + 0x10, 0x22, 1);
        guest.go();
        assert_eq!(guest.cpu.gpr[RAX] & 0xff, if segment == 0x2000 { 0x11 } else { 0x22 });
    }
}

#[test]
fn a_block_ends_at_the_limit_of_its_segment() {
    let mut guest = Guest::new();
    guest.narrow();
    guest.cpu.gpr[RAX] = 0;
    guest.run(&[0x40, 0x40, 0x40]);
    assert_eq!(guest.cpu.gpr[RAX], 3);
    // The same block again, with a limit in its middle: two instructions, then the fault.
    guest.cpu.seg[sreg::CS].limit = CODE as u32 + 1;
    guest.cpu.update_mode();
    assert_eq!(guest.fault(&[0x40, 0x40, 0x40]), (13, 0, CODE + 2));
    assert_eq!(guest.cpu.gpr[RAX], 5);
}

#[test]
fn expand_down_segments_in_32_bit_code() {
    let mut guest = Guest::new();
    guest.narrow();
    guest.cpu.seg[sreg::DS] =
        Segment { base: 0x1000, limit: 0xfff, selector: 0x10, access: 0x97 | access::DB, unusable: false };
    guest.cpu.update_mode();
    assert!(!guest.cpu.mode.flat);
    guest.put(0x2000, 0x1234_5678, 4);
    // mov eax, [0x1000] is the first offset inside; [0xffc] is outside.
    guest.run(&[0xa1, 0, 0x10, 0, 0]);
    assert_eq!(guest.cpu.gpr[RAX], 0x1234_5678);
    assert_eq!(guest.fault(&[0x90, 0xa1, 0xfc, 0x0f, 0, 0]), (13, 0, CODE + 1));
}
