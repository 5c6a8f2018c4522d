//! A processor's registers in every mode, out of a fuzzer's bytes.

use umbra_engine::{CpuState, SavedSegment, SavedTable, xcomp};
use umbra_x86::cpuid::feature;
use umbra_x86::msr;
use umbra_x86::segment::{Segment, Table, access};

use super::cpuid;
use super::tables::*;
use crate::Input;

/// Modes of a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Real mode.
    Real,
    /// Virtual-8086 mode.
    V86,
    /// Protected mode, 16-bit code.
    Protected16,
    /// Protected mode, 32-bit code.
    Protected32,
    /// 32-bit code in long mode.
    Compatibility,
    /// 64-bit code.
    Long,
}

/// All of them.
pub const MODES: [Mode; 6] =
    [Mode::Real, Mode::V86, Mode::Protected16, Mode::Protected32, Mode::Compatibility, Mode::Long];

/// Values that instructions find interesting: pointers to all that is there and to what is not, limits of integers.
const POINTERS: [u64; 24] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
    0x0000_8000_0000_0000,
    DATA,
    DATA + 0xff8,
    DATA + 0x1003,
    STACK,
    CODE,
    MEMORY - 4,
    MEMORY,
    APIC + 0x300,
    NOTHING + 0xffd,
    GDT,
];

fn value(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        n if n < 0x80 => POINTERS[usize::from(n) % POINTERS.len()],
        n if n < 0xc0 => u64::from(n & 0x3f),
        _ => input.u64(),
    }
}

/// A flat or small segment of the GDT.
fn segment(selector: u16) -> SavedSegment {
    let raw = DESCRIPTORS[usize::from(selector >> 3) - 1];
    SavedSegment(Segment::from_descriptor(selector, raw))
}

/// Registers: the mode and ring are the first byte's, then come control bits, flags and general registers.
pub fn registers(input: &mut Input<'_>) -> CpuState {
    let first = input.u8();
    let (mode, user, choice) = (MODES[usize::from(first & 0x3f) % 6], first & 0x40 != 0, input.u8());
    let mut s = CpuState::power_on(0, cpuid());
    control(&mut s, mode, choice);
    segments(&mut s, mode, user);
    // All flags but VM and the identification's companions.
    s.rflags = u64::from(input.u32()) & 0x25_7fd5 & !0x2_0000 | 2;
    if mode == Mode::V86 {
        s.rflags |= 0x2_0000;
    }
    s.gpr = [(); 16].map(|()| value(input));
    if mode == Mode::Real || mode == Mode::V86 {
        s.gpr.iter_mut().for_each(|r| *r &= 0xffff_ffff);
    }
    if choice & 0x20 == 0 {
        s.gpr[4] = if mode == Mode::Real || mode == Mode::V86 { 0xe000 } else { STACK };
    }
    s.rip = if mode == Mode::Real || mode == Mode::V86 || mode == Mode::Protected16 { 0 } else { CODE };
    vectors(&mut s, input.u16());
    s
}

fn control(s: &mut CpuState, mode: Mode, choice: u8) {
    const MP_ET_NE: u64 = 0x32;
    const OSFXSR_OSXMMEXCPT_PSE_DE: u64 = 0x618;
    let paging = choice & 1 != 0 || matches!(mode, Mode::Compatibility | Mode::Long);
    s.cr0 = MP_ET_NE | if choice & 2 != 0 { 1 << 16 | 1 << 18 } else { 0 };
    s.cr4 = OSFXSR_OSXMMEXCPT_PSE_DE;
    let offered = [(feature::XSAVE, 1 << 18), (feature::FSGSBASE, 1 << 16), (feature::UMIP, 1 << 11)];
    for (n, (feature, bit)) in offered.into_iter().enumerate() {
        if cpuid().has(feature) && (n == 0 || choice >> (5 + n) & 1 != 0) {
            s.cr4 |= bit;
        }
    }
    if mode != Mode::Real {
        s.cr0 |= 1;
    }
    if matches!(mode, Mode::Compatibility | Mode::Long) {
        s.efer = 0xd01;
        s.cr4 |= 1 << 5;
        s.cr3 = PML4;
    } else if choice & 4 != 0 {
        s.cr4 |= 1 << 5;
        s.cr3 = PDPT_PAE;
    } else {
        s.cr3 = DIRECTORY_32;
    }
    if paging && mode != Mode::Real {
        s.cr0 |= 1 << 31;
    }
    if choice & 8 != 0 {
        s.cr0 |= 1 << 3;
    }
    if choice & 16 != 0 {
        s.cr4 |= 1 << 2;
    }
    s.xcr0 = if s.cr4 >> 18 & 1 != 0 { cpuid().get(0xd, 0).map_or(1, |e| u64::from(e.eax)) } else { 1 };
    for (number, value) in [
        (msr::IA32_STAR, u64::from(CODE0_64) << 32 | u64::from(CODE3_32) << 48),
        (msr::IA32_LSTAR, HANDLERS_64),
        (msr::IA32_CSTAR, HANDLERS_64),
        (msr::IA32_FMASK, 0x200),
        (msr::IA32_SYSENTER_CS, u64::from(CODE0_32)),
        (msr::IA32_SYSENTER_ESP, STACK_KERNEL),
        (msr::IA32_SYSENTER_EIP, CODE),
    ] {
        s.set_msr(number, value);
    }
}

fn segments(s: &mut CpuState, mode: Mode, user: bool) {
    let table = |base, limit| SavedTable(Table { base, limit });
    s.gdtr = table(GDT, 8 * DESCRIPTORS.len() as u16 + 7);
    let long = matches!(mode, Mode::Compatibility | Mode::Long);
    s.idtr = match mode {
        Mode::Real => table(0, 0x3ff),
        _ if long => table(IDT_64, 0xfff),
        _ => table(IDT_32, 0x7ff),
    };
    if mode == Mode::Real || mode == Mode::V86 {
        let mut real = Segment::real((DATA >> 4) as u16, false);
        let mut code = Segment::real((CODE >> 4) as u16, true);
        let mut stack = Segment::real((CODE >> 4) as u16, false);
        if mode == Mode::V86 {
            [&mut real, &mut code, &mut stack].into_iter().for_each(|s| s.access = 0xf3);
        }
        s.segments = [SavedSegment(real); 6];
        s.segments[1] = SavedSegment(code);
        s.segments[2] = SavedSegment(stack);
    } else {
        let (code, data) = match (mode, user) {
            (Mode::Protected16, false) => (CODE0_16, DATA0),
            (Mode::Protected16, true) => (CODE3_16, DATA3),
            (Mode::Long, false) => (CODE0_64, DATA0),
            (Mode::Long, true) => (CODE3_64, DATA3),
            (_, false) => (CODE0_32, DATA0),
            (_, true) => (CODE3_32, DATA3),
        };
        s.segments = [segment(data); 6];
        s.segments[1] = segment(code);
        if mode == Mode::Protected16 {
            s.segments[1].0.base = CODE;
        }
    }
    let tss = if long { TSS_64_SELECTOR } else { TSS_32_SELECTOR };
    if mode != Mode::Real {
        s.tr = segment(tss);
        s.ldtr = SavedSegment(Segment {
            base: LDT,
            limit: 0xff,
            selector: LDT_SELECTOR,
            access: 2 | access::P,
            unusable: false,
        });
    }
}

/// Vector registers with numbers of every kind in them; x87 as at power-on or with numbers on its stack.
fn vectors(s: &mut CpuState, seed: u16) {
    if seed == 0 {
        return;
    }
    let mut random = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        match random >> 60 {
            0 => 0,
            1 => 0x7ff0_0000_7f80_0000,
            2 => 0x7fc0_0000_7fa0_0000,
            3 => 0x3ff0_0000_3f80_0000,
            4 => u64::MAX,
            _ => random,
        }
    };
    for (number, len) in xcomp::SIZES {
        let shown = s.xcr0 >> number & 1 != 0;
        if *number == xcomp::X87 || *number == xcomp::PKRU || !shown {
            continue;
        }
        let mut bytes = vec![0; *len];
        bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&next().to_le_bytes()[..chunk.len()]));
        s.xsave.push((*number, bytes));
    }
    if let Some((_, x87)) = s.xsave.iter_mut().find(|(number, _)| *number == xcomp::X87) {
        // Control, status and tag words; exceptions masked for the most part.
        let word = next();
        x87[0] = word as u8 | if word & 0x300 != 0 { 0x3f } else { 0 };
        x87[1] = (word >> 16) as u8 & 0x0f;
        x87[3] = (word >> 24) as u8 & 0x38;
        x87[4] = (word >> 32) as u8;
        let mxcsr = (word >> 40) as u32 & 0xe040 | 0x1f80;
        x87[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        for register in x87[32..].chunks_mut(16) {
            register[..8].copy_from_slice(&next().to_le_bytes());
            register[8..10].copy_from_slice(&next().to_le_bytes()[6..]);
        }
    }
    s.xsave.sort_by_key(|c| c.0);
}
