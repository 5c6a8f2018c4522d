//! PUSHF, POPF, CLI, STI.

use super::bench::*;
use crate::cpu::Shadow;
use crate::fault::{Fault, Flow};

const IOPL: u64 = 0x3000;
const ALL: u64 = 0x3f_7fd7;
const RF: u64 = 0x1_0000;
const VM: u64 = 0x2_0000;
const V: u64 = 0x18_0000;

#[test]
fn popf_by_level_and_width() {
    // mode, CPL, flags before, image, width, flags after
    let cases = [
        (Start::P32, 0, 2, ALL, 4, ALL & !(RF | VM | V)),
        (Start::P32, 0, RF | V | 2, 0, 4, 2),
        (Start::P32, 0, 2, 0xffff, 2, 0x7fd7),
        (Start::P32, 0, V | 0x4_0002, 0, 2, V | 0x4_0002),
        (Start::P32, 1, 2, ALL, 4, ALL & !(RF | VM | V | IOPL | 0x200)),
        (Start::P32, 3, IOPL | 2, ALL, 4, ALL & !(RF | VM | V)),
        (Start::P32, 3, IOPL | 0x202, 0, 4, IOPL | 2),
        (Start::P32, 3, 0x202, 0, 4, 0x202),
        (Start::P32, 2, 0x2000 | 2, ALL, 4, ALL & !(RF | VM | V | 0x1000)),
        (Start::Real, 0, 2, 0xffff, 2, 0x7fd7),
        (Start::V86, 3, VM | IOPL | 0x202, 0, 2, VM | IOPL | 2),
        (Start::V86, 3, VM | IOPL | 2, ALL, 4, ALL & !(RF | V)),
        (Start::Long, 3, 0x202, ALL, 8, ALL & !(RF | VM | V | IOPL)),
    ];
    for (start, cpl, before, image, width, after) in cases {
        let mut b = Bench::new(start, cpl);
        b.cpu.rflags = before;
        b.push(&[image], width);
        let native = match start {
            Start::Real | Start::V86 => 2,
            Start::Long => 8,
            _ => 4,
        };
        let code: &[u8] = if width == native { &[0x9d] } else { &[0x66, 0x9d] };
        assert_eq!(b.step(code), Ok(Flow::End));
        assert_eq!(b.cpu.rflags, after, "{start:?} CPL {cpl} {before:#x} image {image:#x}");
    }
}

#[test]
fn pushf_hides_rf_and_vm() {
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.rflags = RF | 0x202;
    assert_eq!(b.step(&[0x9c]), Ok(Flow::Next));
    assert_eq!(b.stack(1, 4), [0x202]);
    let mut b = Bench::new(Start::V86, 3);
    b.cpu.rflags |= IOPL;
    assert_eq!(b.step(&[0x66, 0x9c]), Ok(Flow::Next));
    assert_eq!(b.stack(1, 4), [IOPL | 2]);
}

#[test]
fn virtual_8086_mode_needs_iopl_3() {
    for code in [0x9c, 0x9d, 0xfa, 0xfb, 0xcf] {
        let mut b = Bench::new(Start::V86, 3);
        b.cpu.rflags |= 0x2000;
        assert_eq!(b.refuse(&[code]), Fault::GP0);
    }
}

#[test]
fn cli_and_sti_by_iopl() {
    for (cpl, iopl, allowed) in [(0, 0, true), (1, 0, false), (1, 1, true), (3, 2, false), (3, 3, true)] {
        let mut b = Bench::new(Start::P32, cpl);
        b.cpu.rflags |= iopl << 12;
        let sti = b.step(&[0xfb]);
        assert_eq!(sti, if allowed { Ok(Flow::End) } else { Err(Fault::GP0) });
        assert_eq!((b.cpu.rflags & 0x200 != 0, b.cpu.shadow == Shadow::Sti), (allowed, allowed));
        let cli = b.step(&[0xfa]);
        assert_eq!(cli, if allowed { Ok(Flow::Next) } else { Err(Fault::GP0) });
        assert_eq!(b.cpu.rflags & 0x200, 0);
    }
    let mut b = Bench::new(Start::P32, 0);
    b.cpu.rflags |= 0x200;
    assert_eq!(b.step(&[0xfb]), Ok(Flow::Next));
    assert_eq!(b.cpu.shadow, Shadow::None, "STI with interrupts enabled holds nothing off");
}

#[test]
fn clac_and_stac_are_the_kernels() {
    let mut b = Bench::new(Start::Long, 0);
    assert_eq!(b.step(&[0x0f, 0x01, 0xcb]), Ok(Flow::Next));
    assert_eq!(b.cpu.rflags, 0x4_0002);
    assert_eq!(b.step(&[0x0f, 0x01, 0xca]), Ok(Flow::Next));
    assert_eq!(b.cpu.rflags, 2);
    let mut b = Bench::new(Start::Long, 3);
    assert_eq!(b.refuse(&[0x0f, 0x01, 0xcb]), Fault::UD);
}
