//! XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR, XRSTORS (SDM volume 1, chapter 13).
//!
//! Whether a component is in use is found by comparing it with its initial state, as the manual allows.

use std::ops::Range;

use iced_x86::{Code, Instruction, Mnemonic as M};
use umbra_x86::cpuid::{CpuidTable, feature};
use umbra_x86::reg::{Cr0, Cr4, MXCSR_RESET, gpr};

use crate::cpu::Cpu;
use crate::decode::Slow;
use crate::fault::{Exec, Fault, Flow};
use crate::native::access::check_alignment;
use crate::native::special::layout::{self, EXTENDED, HEADER};
use crate::native::special::{host, mxcsr};

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// XCOMP_BV: the image is compacted.
const COMPACTED: u64 = 1 << 63;

/// The handler of one of these.
pub fn handler(code: Code) -> Option<Slow> {
    use Code as C;
    Some(match code {
        C::Xsave_mem | C::Xsave64_mem | C::Xsaveopt_mem | C::Xsaveopt64_mem => save_standard,
        C::Xsavec_mem | C::Xsavec64_mem | C::Xsaves_mem | C::Xsaves64_mem => save_compacted,
        C::Xrstor_mem | C::Xrstor64_mem | C::Xrstors_mem | C::Xrstors64_mem => restore,
        _ => return None,
    })
}

/// The alignment of an image.
const ALIGN: u64 = 64;

/// Where an extended component lies in an image.
struct Place {
    number: u32,
    at: usize,
    size: usize,
}

/// Where the extended components of `set` lie; compacted, `set` is XCOMP_BV.
fn places(cpuid: &CpuidTable, set: u64, compacted: bool) -> Vec<Place> {
    let mut next = EXTENDED;
    let mut places = Vec::new();
    for c in layout::components(cpuid) {
        if set >> c.number & 1 == 0 {
            continue;
        }
        let at = match compacted {
            true if c.aligned => next.next_multiple_of(64),
            true => next,
            false => c.offset,
        };
        next = at + c.size;
        places.push(Place { number: c.number, at, size: c.size });
    }
    places
}

/// REX.W: pointers of x87 have 64 bits.
fn is_wide(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        M::Xsave64 | M::Xsaveopt64 | M::Xsavec64 | M::Xsaves64 | M::Xrstor64 | M::Xrstors64
    )
}

fn is_supervisor(i: &Instruction) -> bool {
    matches!(i.mnemonic(), M::Xsaves | M::Xsaves64 | M::Xrstors | M::Xrstors64)
}

/// The checks that all share; the linear address and the requested components.
fn begin(cpu: &mut Cpu, i: &Instruction, write: bool) -> Exec<(u64, u64)> {
    if !cpu.cr4.contains(Cr4::OSXSAVE) {
        return Err(Fault::UD);
    }
    if cpu.cr0.contains(Cr0::TS) {
        return Err(Fault::NM);
    }
    let mut enabled = cpu.xcr0;
    if is_supervisor(i) {
        if cpu.mode.cpl != 0 {
            return Err(Fault::GP0);
        }
        enabled |= cpu.msr.xss;
    }
    if cpu.cpuid.is_amd() {
        // Before where it starts, other than with FXSAVE.
        check_alignment(cpu, i, ALIGN, cpu.effective_address(i))?;
    }
    let linear = layout::place(cpu, i, EXTENDED as u64, ALIGN, write)?;
    let requested = cpu.gpr[gpr::RDX] << 32 | cpu.gpr[gpr::RAX] & 0xffff_ffff;
    Ok((linear, requested & enabled))
}

/// The components in use.
fn in_use(cpu: &Cpu) -> u64 {
    let known = layout::components(&cpu.cpuid).into_iter().map(|c| c.number).chain([0, 1]);
    known.filter(|n| layout::in_use(cpu, *n)).fold(0, |set, n| set | 1 << n)
}

fn store(cpu: &mut Cpu, linear: u64, at: usize, data: &[u8]) -> Exec {
    cpu.store_bytes(linear.wrapping_add(at as u64), data)
}

fn store_x87(cpu: &mut Cpu, i: &Instruction, linear: u64) -> Exec {
    let image = layout::x87(cpu, is_wide(i));
    for range in layout::X87 {
        store(cpu, linear, range.start, &image[range.clone()])?;
    }
    Ok(())
}

fn store_mxcsr(cpu: &mut Cpu, linear: u64) -> Exec {
    let pair = u64::from(mxcsr::mxcsr(cpu)) | u64::from(host::mxcsr_mask()) << 32;
    store(cpu, linear, 24, &pair.to_le_bytes())
}

/// Checks that all that is requested of an image, in use or not, can be written before any of it is.
fn check_writable(cpu: &mut Cpu, linear: u64, set: u64, compacted: bool) -> Exec {
    let mut parts = legacy_parts(cpu, set, compacted);
    parts.push(HEADER..EXTENDED);
    parts.extend(places(&cpu.cpuid, set, compacted).iter().map(|p| p.at..p.at + p.size));
    for part in parts {
        let (mut at, end) = (part.start as u64, part.end as u64);
        while at < end {
            let n = (end - at).min(4096 - linear.wrapping_add(at) % 4096);
            cpu.host(linear.wrapping_add(at), n, true)?;
            at += n;
        }
    }
    Ok(())
}

/// The parts of the legacy region that are looked at for the components in `set`: those that they have (MXCSR is one of SSE, and in the
/// standard form of AVX), and all of the compacted form with AMD's processors.
fn legacy_parts(cpu: &Cpu, set: u64, compacted: bool) -> Vec<Range<usize>> {
    if compacted && cpu.cpuid.is_amd() {
        return std::iter::once(0..HEADER).collect();
    }
    let has_mxcsr = set & if compacted { SSE } else { SSE | AVX } != 0;
    let x87 = layout::X87.map(|range| (set & X87 != 0, range));
    let others = [(has_mxcsr, 24..32), (set & SSE != 0, layout::XMM..layout::XMM_END)];
    x87.into_iter().chain(others).filter(|part| part.0).map(|part| part.1).collect()
}

fn save_standard(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let (linear, set) = begin(cpu, i, true)?;
    let long = cpu.mode.code == 64;
    check_writable(cpu, linear, set, false)?;
    let used = in_use(cpu);
    // XSAVEOPT leaves out what is in its initial state.
    let optimized = matches!(i.mnemonic(), M::Xsaveopt | M::Xsaveopt64);
    let written = if optimized { set & used } else { set };
    let old: u64 = cpu.load(linear.wrapping_add(HEADER as u64))?;
    if written & X87 != 0 {
        store_x87(cpu, i, linear)?;
    }
    if written & SSE != 0 {
        let xmm = layout::xmm(cpu, long);
        store(cpu, linear, layout::XMM, &xmm)?;
    }
    if set & (SSE | AVX) != 0 {
        store_mxcsr(cpu, linear)?;
    }
    for p in places(&cpu.cpuid, written, false) {
        let data = layout::read(cpu, p.number, long);
        store(cpu, linear, p.at, &data)?;
    }
    store(cpu, linear, HEADER, &(old & !set | used & set).to_le_bytes())?;
    Ok(Flow::Next)
}

fn save_compacted(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let (linear, set) = begin(cpu, i, true)?;
    let long = cpu.mode.code == 64;
    check_writable(cpu, linear, set, true)?;
    let mut used = in_use(cpu) & set;
    if set & SSE != 0 && mxcsr::mxcsr(cpu) != MXCSR_RESET {
        used |= SSE;
    }
    if used & X87 != 0 {
        store_x87(cpu, i, linear)?;
    }
    if used & SSE != 0 {
        let xmm = layout::xmm(cpu, long);
        store(cpu, linear, layout::XMM, &xmm)?;
        store_mxcsr(cpu, linear)?;
    }
    for p in places(&cpu.cpuid, set, true) {
        if used >> p.number & 1 != 0 {
            let data = layout::read(cpu, p.number, long);
            store(cpu, linear, p.at, &data)?;
        }
    }
    let header = [used, set | COMPACTED].map(u64::to_le_bytes).concat();
    store(cpu, linear, HEADER, &header)?;
    Ok(Flow::Next)
}

/// What an image's header says, checked.
struct Header {
    present: u64,
    /// XCOMP_BV without its top bit.
    compacted: Option<u64>,
}

fn header(cpu: &Cpu, i: &Instruction, bytes: &[u8; 64]) -> Exec<Header> {
    let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|b| bytes[n * 8 + b]));
    let (present, format) = (word(0), word(1));
    let supervisor = is_supervisor(i);
    let enabled = cpu.xcr0 | if supervisor { cpu.msr.xss } else { 0 };
    let compacted = format & COMPACTED != 0;
    let set = format & !COMPACTED;
    let bad = match compacted {
        true => {
            !cpu.cpuid.has(feature::XSAVEC)
                || set & !enabled != 0
                || present & !set != 0
                || bytes[16..].iter().any(|b| *b != 0)
        }
        false => supervisor || present & !enabled != 0 || bytes[8..24].iter().any(|b| *b != 0),
    };
    if bad { Err(Fault::GP0) } else { Ok(Header { present, compacted: compacted.then_some(set) }) }
}

fn restore(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let (linear, set) = begin(cpu, i, false)?;
    let long = cpu.mode.code == 64;
    let mut bytes = [0; 64];
    cpu.load_bytes(linear.wrapping_add(HEADER as u64), &mut bytes)?;
    let format = u64::from_le_bytes(std::array::from_fn(|b| bytes[8 + b]));
    let legacy = load_legacy(cpu, linear, set, format)?;
    let header = header(cpu, i, &bytes)?;
    let loaded = set & header.present;
    // Everything is read, and MXCSR checked, before anything changes.
    let mut parts = Vec::new();
    for p in places(&cpu.cpuid, header.compacted.unwrap_or(set), header.compacted.is_some()) {
        let mut data = vec![0; p.size];
        if set >> p.number & 1 != 0 {
            cpu.load_bytes(linear.wrapping_add(p.at as u64), &mut data)?;
        }
        if loaded >> p.number & 1 == 0 {
            data.fill(0);
        }
        parts.push((p.number, data));
    }
    restore_mxcsr(cpu, &legacy, set, loaded, header.compacted.is_some())?;
    if loaded & X87 != 0 {
        layout::set_x87(cpu, is_wide(i), &legacy);
    } else if set & X87 != 0 {
        layout::reset_x87(cpu);
    }
    if set & SSE != 0 {
        let image: &[u8] = if loaded & SSE != 0 { &legacy[layout::XMM..] } else { &[] };
        layout::set_xmm(cpu, long, image);
    }
    let compacted_out = header.compacted.map_or(0, |format| set & !format);
    for p in places(&cpu.cpuid, compacted_out, false) {
        layout::write(cpu, p.number, long, &[]);
    }
    for (number, data) in parts.into_iter().filter(|p| set >> p.0 & 1 != 0) {
        layout::write(cpu, number, long, &data);
    }
    Ok(Flow::Next)
}

/// The legacy region. Processors read of it what is requested, present or not, before they check the header; the rest need not
/// be accessible.
fn load_legacy(cpu: &mut Cpu, linear: u64, set: u64, format: u64) -> Exec<[u8; HEADER]> {
    let mut legacy = [0; HEADER];
    let compacted = format & COMPACTED != 0;
    let set = if compacted { set & format } else { set };
    for range in legacy_parts(cpu, set, compacted) {
        cpu.load_bytes(linear.wrapping_add(range.start as u64), &mut legacy[range])?;
    }
    Ok(legacy)
}

/// The standard form loads MXCSR with SSE or AVX, present or not; the compacted form treats it as part of SSE.
fn restore_mxcsr(cpu: &mut Cpu, legacy: &[u8; HEADER], set: u64, loaded: u64, compacted: bool) -> Exec {
    let value = u32::from_le_bytes([legacy[24], legacy[25], legacy[26], legacy[27]]);
    match compacted {
        true if loaded & SSE != 0 => mxcsr::set_mxcsr(cpu, value),
        true if set & SSE != 0 => mxcsr::set_mxcsr(cpu, MXCSR_RESET),
        false if set & (SSE | AVX) != 0 => mxcsr::set_mxcsr(cpu, value),
        _ => Ok(()),
    }
}
