//! IN and OUT, their permissions, and the string forms.

use super::bench::*;
use crate::fault::{Fault, Flow};
use umbra_x86::reg::gpr::{RAX, RCX, RDI, RDX, RSI};
use umbra_x86::segment::sreg;

/// Where the bit map of the benches' TSS is.
const MAP: u64 = TSS + 0x100;

#[test]
fn values_move() {
    let mut b = Bench::new(Start::P32, 0);
    b.ports.values.lock().unwrap().insert(0x60, 0x1234_5678);
    b.cpu.gpr[RAX] = 0xaaaa_aaaa_aaaa_aaaa;
    // IN AL, 0x60; IN AX, 0x60; IN EAX, 0x60
    for (code, rax) in [
        (&[0xe4u8, 0x60][..], 0xaaaa_aaaa_aaaa_aa78),
        (&[0x66, 0xe5, 0x60], 0xaaaa_aaaa_aaaa_5678),
        (&[0xe5, 0x60], 0x1234_5678u64),
    ] {
        assert_eq!(b.step(code), Ok(Flow::End));
        assert_eq!(b.cpu.gpr[RAX], rax);
    }
    b.cpu.gpr[RDX] = 0xabcd_03f8;
    // OUT DX, AL; OUT DX, EAX
    b.step(&[0xee]).unwrap();
    b.step(&[0xef]).unwrap();
    let written = b.ports.written.lock().unwrap().clone();
    assert_eq!(written, [(0x3f8, vec![0x78]), (0x3f8, vec![0x78, 0x56, 0x34, 0x12])]);
}

#[test]
fn the_permission_bit_map() {
    let out_dx_eax: &[u8] = &[0xef];
    let cases = [
        // mode, IOPL, limit of the TSS, byte 1 and 2 of the map, what
        (Start::P32, 3, 0x7ff, 0xffff, true),
        (Start::P32, 2, 0x7ff, 0xffff, false),
        (Start::P32, 0, 0x7ff, 0, true),
        (Start::P32, 0, 0x7ff, 1 << 5, false),
        (Start::P32, 0, 0x7ff, 1 << 8, false),
        (Start::P32, 0, 0x7ff, 1 << 4 | 1 << 9, true),
        (Start::P32, 0, 0x101, 0, false),
        (Start::P32, 0, 0x102, 0, true),
        (Start::V86, 3, 0x7ff, 1 << 6, false),
        (Start::V86, 0, 0x7ff, 0, true),
        (Start::Long, 0, 0x7ff, 0, true),
        (Start::Long, 0, 0x7ff, 1 << 5, false),
    ];
    for (start, iopl, limit, bits, allowed) in cases {
        let mut b = Bench::new(start, 3);
        b.cpu.rflags |= iopl << 12;
        b.cpu.tr.limit = limit;
        b.write(MAP + 1, bits, 2);
        b.cpu.gpr[RDX] = 13;
        let code = if start == Start::V86 { &[0x66, 0xef][..] } else { out_dx_eax };
        let expected = if allowed { Ok(Flow::End) } else { Err(Fault::GP0) };
        assert_eq!(b.step(code), expected, "{start:?} IOPL {iopl} limit {limit:#x} bits {bits:#x}");
        assert_eq!(b.ports.written.lock().unwrap().is_empty(), !allowed);
    }
    let mut b = Bench::new(Start::P32, 3);
    b.cpu.tr.access = 0x83;
    assert_eq!(b.refuse(out_dx_eax), Fault::GP0, "a 16-bit TSS has no map");
}

#[test]
fn strings() {
    let mut b = Bench::new(Start::P32, 0);
    b.ports.values.lock().unwrap().insert(0x1f0, 0x1122_3344);
    (b.cpu.gpr[RDX], b.cpu.gpr[RDI], b.cpu.gpr[RCX]) = (0x1f0, DATA, 3);
    // REP INSD
    assert_eq!(b.step(&[0xf3, 0x6d]), Ok(Flow::End));
    assert_eq!((b.cpu.gpr[RDI], b.cpu.gpr[RCX], b.read(DATA + 8, 4)), (DATA + 12, 0, 0x1122_3344));
    assert_eq!(b.read(DATA + 12, 4), 0);
    b.write(DATA, 0x6867_6665, 4);
    b.cpu.rflags |= 0x400;
    (b.cpu.gpr[RSI], b.cpu.gpr[RCX]) = (DATA + 3, 2);
    // REP OUTSB, downwards
    assert_eq!(b.step(&[0xf3, 0x6e]), Ok(Flow::End));
    assert_eq!(*b.ports.written.lock().unwrap(), [(0x1f0, vec![0x68]), (0x1f0, vec![0x67])]);
    assert_eq!((b.cpu.gpr[RSI], b.cpu.gpr[RCX]), (DATA + 1, 0));
}

#[test]
fn a_long_repetition_stops_on_the_way_and_goes_on() {
    let mut b = Bench::new(Start::Long, 0);
    (b.cpu.gpr[RDX], b.cpu.gpr[RSI], b.cpu.gpr[RCX]) = (0xe9, DATA, 1000);
    let mut steps = 0;
    while b.step(&[0xf3, 0x6e]).unwrap() == Flow::Again {
        steps += 1;
        assert_eq!(b.cpu.rip, CODE);
    }
    assert_eq!(
        (b.cpu.gpr[RCX], b.cpu.gpr[RSI], b.ports.written.lock().unwrap().len()),
        (0, DATA + 1000, 1000)
    );
    assert!(steps > 0);
}

#[test]
fn a_fault_in_the_middle_keeps_what_is_done() {
    let mut b = Bench::new(Start::Long, 0);
    (b.cpu.gpr[RDX], b.cpu.gpr[RDI], b.cpu.gpr[RCX]) = (0x1f0, MISSING - 2, 4);
    assert_eq!(b.step(&[0xf3, 0x6c]), Err(Fault::pf(2)));
    assert_eq!((b.cpu.gpr[RDI], b.cpu.gpr[RCX], b.cpu.rip), (MISSING, 2, CODE));
    assert_eq!(b.cpu.fault_address, MISSING);
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.seg[sreg::ES].limit = 0x10;
    b.cpu.update_mode();
    b.cpu.gpr[RDI] = 0xe;
    assert_eq!(b.refuse(&[0x6d]), Fault::GP0);
}
