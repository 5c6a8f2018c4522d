//! Random values that are worth trying, and a random state of them.

use umbra_x86::reg::Rflags;

use super::random::Random;
use super::state::{Bits, DATA, State, WINDOW, WINDOWS};

/// Status flags.
/// Direction flag.
const DF: u64 = 0x400;

/// An integer: edges, few bits, or anything.
pub fn integer(r: &mut Random) -> u64 {
    match r.below(8) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => 1 << r.below(64),
        4 => (1u64 << r.below(64)).wrapping_sub(1),
        5 => r.below(256),
        6 => (r.bits() as i64 >> r.below(64)) as u64,
        _ => r.bits(),
    }
}

/// The bits of a floating-point number with `exponent` and `fraction` bits.
fn float(r: &mut Random, exponent: u32, fraction: u32) -> u64 {
    let sign = r.below(2) << (exponent + fraction);
    let top = (1u64 << exponent) - 1;
    let e = match r.below(8) {
        0 => 0,
        1 => top,
        2 => 1,
        3 => top - 1,
        4 => top / 2 + r.below(u64::from(fraction) + 4),
        5 => (top / 2).saturating_sub(r.below(u64::from(fraction) + 4)),
        _ => r.below(top + 1),
    };
    let f = match r.below(5) {
        0 => 0,
        1 => 1,
        2 => 1 << (fraction - 1),
        3 => (1 << fraction) - 1,
        _ => r.bits() & ((1 << fraction) - 1),
    };
    sign | e << fraction | f
}

/// Fills `bytes` with numbers of one kind.
pub fn fill(r: &mut Random, bytes: &mut [u8]) {
    let kind = r.below(7);
    for chunk in bytes.chunks_mut(8) {
        let value = match kind {
            0 => r.bits(),
            1 => integer(r),
            2 => float(r, 8, 23) | float(r, 8, 23) << 32,
            3 => float(r, 11, 52),
            4 => (0..4).fold(0, |v, n| v | float(r, 5, 10) << (16 * n)),
            5 => (0..8).fold(0, |v, n| v | (integer(r) & 0xff) << (8 * n)),
            _ => 0,
        };
        chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
    }
}

/// An 80-bit floating-point number, invalid encodings among them.
pub fn extended(r: &mut Random) -> [u8; 10] {
    let mut out = [0; 10];
    let mantissa = match r.below(6) {
        0 => 0,
        1 => 1 << 63,
        2 => 3 << 62,
        3 => u64::MAX,
        4 => r.bits(),
        _ => r.bits() | 1 << 63,
    };
    let exponent = match r.below(7) {
        0 => 0,
        1 => 0x7fff,
        2 => 1,
        3 | 4 => 0x3fff - 70 + r.below(140),
        5 => 0x3fff,
        _ => r.below(0x8000),
    };
    out[..8].copy_from_slice(&mantissa.to_le_bytes());
    out[8..].copy_from_slice(&(exponent as u16 | (r.below(2) as u16) << 15).to_le_bytes());
    out
}

fn x87(r: &mut Random, fx: &mut [u8; 160]) {
    let control = match r.below(4) {
        0 => 0x37f,
        1 => 0x340 | r.bits() as u16 & 0x3f,
        _ => 0x7f | (r.bits() as u16 & 0xf00) | 0x40,
    };
    fx[..2].copy_from_slice(&control.to_le_bytes());
    // Condition codes and the top of the stack; exception flags that are masked.
    let flags = if r.one_in(4) { r.bits() as u16 & control & 0x3f } else { 0 };
    let status = r.bits() as u16 & 0x7f00 & !0x8000 | flags;
    fx[2..4].copy_from_slice(&status.to_le_bytes());
    fx[4] = match r.below(3) {
        0 => 0,
        1 => 0xff,
        _ => r.bits() as u8,
    };
    for n in 0..8 {
        fx[32 + 16 * n..][..10].copy_from_slice(&extended(r));
    }
}

fn mxcsr(r: &mut Random) -> u32 {
    let flags = if r.one_in(2) { 0 } else { r.bits() as u32 & 0x3f };
    match r.below(6) {
        0 => 0x1f80 | flags,
        // Some exceptions are not masked.
        1 => (r.bits() as u32 & 0x1f80) | (0x40 * (r.below(2) as u32)) | (r.below(4) as u32) << 13,
        _ => {
            0x1f80
                | flags
                | (r.below(4) as u32) << 13
                | (0x40 * (r.below(2) as u32))
                | (r.below(2) as u32) << 15
        }
    }
}

/// A random state; the stack pointer is in the middle of the window.
pub fn state(r: &mut Random, bits: Bits) -> State {
    let mut s = State::empty();
    s.zmm.iter_mut().for_each(|z| fill(r, z));
    s.k.iter_mut().for_each(|k| *k = integer(r));
    x87(r, &mut s.fx);
    let mxcsr = mxcsr(r);
    s.fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    let count = bits.register_count();
    for g in &mut s.gpr[..count] {
        *g = integer(r) & if bits == Bits::SixtyFour { u64::MAX } else { 0xffff_ffff };
    }
    s.window = DATA + r.pick(&WINDOWS);
    s.rip -= bits.code_base();
    s.gpr[4] = s.window - bits.data_base()
        + WINDOW as u64 / 2
        + 8 * r.below(8)
        + if r.one_in(8) { r.below(8) } else { 0 };
    s.rflags = 2 | r.bits() & Rflags::STATUS.bits() | if r.one_in(6) { DF } else { 0 };
    fill(r, &mut s.memory);
    s
}
