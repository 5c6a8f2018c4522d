//! Pieces of the state block as FXSAVE and XSAVE images have them (SDM volume 1, chapters 10.5.1 and 13.4).

use std::ops::Range;

use iced_x86::Instruction;
use umbra_x86::cpuid::CpuidTable;

use crate::cpu::Cpu;
use crate::fault::{Exec, Fault};

/// XMM registers in the legacy region.
pub const XMM: usize = 160;
/// Where they end.
pub const XMM_END: usize = 416;
/// Where the XSAVE header starts.
pub const HEADER: usize = 512;
/// Where the extended region starts.
pub const EXTENDED: usize = 576;
/// The legacy region of the image without MXCSR and its mask.
pub const X87: [Range<usize>; 2] = [0..24, 32..160];

/// The linear address of an image of `len` bytes, the instruction's memory operand. Processors look at where it starts, then at its
/// alignment, then at where it ends; the manual leaves the order open (SDM volume 3, "Priority Among Concurrent Events").
pub fn place(cpu: &Cpu, i: &Instruction, len: u64, align: u64, write: bool) -> Exec<u64> {
    if !cpu.memory_operand(i, 1, write)?.is_multiple_of(align) {
        return Err(Fault::GP0);
    }
    cpu.memory_operand(i, len, write)
}

/// An extended component: bytes `bytes` of vector registers `registers`, or the opmasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its number.
    pub number: u32,
    /// Where it is in the standard format.
    pub offset: usize,
    /// Bytes set aside for it.
    pub size: usize,
    /// In the compacted format it is aligned to 64 bytes.
    pub aligned: bool,
}

/// The extended components that CPUID shows, ascending.
pub fn components(cpuid: &CpuidTable) -> Vec<Component> {
    let shown = (2..32).filter_map(|n| cpuid.get(0xd, n).map(|e| (n, e)));
    let known = shown.filter(|(n, e)| registers(*n, true).is_some() && e.eax != 0);
    known
        .map(|(number, e)| Component {
            number,
            offset: e.ebx as usize,
            size: e.eax as usize,
            aligned: e.ecx & 2 != 0,
        })
        .collect()
}

/// Vector registers of a component and the bytes of each; the opmasks are none of them. Outside 64-bit mode, only eight registers exist.
fn registers(number: u32, long: bool) -> Option<(Range<usize>, Range<usize>)> {
    let low = if long { 0..16 } else { 0..8 };
    Some(match number {
        2 => (low, 16..32),
        5 => (0..0, 0..0),
        6 => (low, 32..64),
        7 => (if long { 16..32 } else { 0..0 }, 0..64),
        _ => return None,
    })
}

/// The bytes of a component.
pub fn read(cpu: &Cpu, number: u32, long: bool) -> Vec<u8> {
    if number == 5 {
        return cpu.vector.k.iter().flat_map(|k| k.to_le_bytes()).collect();
    }
    let Some((registers, bytes)) = registers(number, long) else { return Vec::new() };
    cpu.vector.zmm[registers].iter().flat_map(|r| r[bytes.clone()].iter().copied()).collect()
}

/// Sets a component from its bytes; missing ones are zero.
pub fn write(cpu: &mut Cpu, number: u32, long: bool, image: &[u8]) {
    let mut rest = image.iter().copied();
    let mut next = move || rest.next().unwrap_or(0);
    if number == 5 {
        cpu.vector.k.iter_mut().for_each(|k| *k = u64::from_le_bytes(std::array::from_fn(|_| next())));
        return;
    }
    let Some((registers, bytes)) = registers(number, long) else { return };
    for r in &mut cpu.vector.zmm[registers] {
        r[bytes.clone()].iter_mut().for_each(|b| *b = next());
    }
}

/// Whether a component differs from its initial state. Outside 64-bit mode ZMM16 to ZMM31 never do but with AMD's processors.
pub fn in_use(cpu: &Cpu, number: u32) -> bool {
    match number {
        7 if cpu.mode.code != 64 && !cpu.cpuid.is_amd() => false,
        0 => x87_in_use(cpu),
        1 => cpu.vector.zmm[..16].iter().any(|r| r[..16].iter().any(|b| *b != 0)),
        _ => read(cpu, number, true).iter().any(|b| *b != 0),
    }
}

fn x87_in_use(cpu: &Cpu) -> bool {
    let fx = &cpu.vector.fx;
    let control = [fx[0], fx[1]] != [0x7f, 3];
    control || fx[2..24].iter().chain(&fx[32..160]).any(|b| *b != 0)
}

/// The XMM registers that exist.
pub fn xmm(cpu: &Cpu, long: bool) -> Vec<u8> {
    let count = if long { 16 } else { 8 };
    cpu.vector.zmm[..count].iter().flat_map(|r| r[..16].iter().copied()).collect()
}

/// Sets the XMM registers that exist; missing bytes are zero.
pub fn set_xmm(cpu: &mut Cpu, long: bool, image: &[u8]) {
    let count = if long { 16 } else { 8 };
    let mut rest = image.iter().copied();
    for r in &mut cpu.vector.zmm[..count] {
        r[..16].iter_mut().for_each(|b| *b = rest.next().unwrap_or(0));
    }
}

/// The x87 part as an image has it: with 64-bit pointers (REX.W), or 32-bit ones and no selectors, which newer processors save as zero.
pub fn x87(cpu: &Cpu, wide: bool) -> [u8; 160] {
    let mut out = [0; 160];
    out.copy_from_slice(&cpu.vector.fx[..160]);
    if !wide {
        out[12..16].fill(0);
        out[20..24].fill(0);
    }
    out
}

/// Sets the x87 part, all but MXCSR, from the first 160 bytes of an image.
pub fn set_x87(cpu: &mut Cpu, wide: bool, image: &[u8]) {
    for range in X87 {
        cpu.vector.fx[range.clone()].copy_from_slice(&image[range]);
    }
    if !wide {
        cpu.vector.fx[12..16].fill(0);
        cpu.vector.fx[20..24].fill(0);
    }
    super::host::normalize_x87(&mut cpu.vector.fx);
}

/// The x87 part in its initial state.
pub fn reset_x87(cpu: &mut Cpu) {
    for range in X87 {
        cpu.vector.fx[range].fill(0);
    }
    cpu.vector.fx[..2].copy_from_slice(&0x37fu16.to_le_bytes());
}
