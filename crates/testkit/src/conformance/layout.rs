//! The machine that every program finds: memory, page tables, descriptors, and the processor's state at the start.
//!
//! ```text
//! 00000 real-mode vectors                 07000 results (8 bytes each), 07f00 variables
//! 01000 PML4, or 32-bit page directory    08000 the program, to 09fff
//! 02000 PDPT, or PAE PDPT                 0a000 IDT
//! 03000 page directory, first GiB         0b000 log of exceptions, 64 bytes each
//! 04000 page table, first 2 or 4 MiB      0c000 entries of the vectors
//! 05000 page directory, 3 to 4 GiB        0f000 stack of ring 0, 0f800 RSP0, 0fc00 IST1, 10000 IST2
//! 06000 GDT, 06800 LDT                    10000 TSS with I/O bitmap, 13000 another TSS
//! 1f000 start of further processors       20000 free, to 9ffff
//! a0000 no memory                         e0000 ROM, to effff
//! f0000 no memory                         100000 memory that ring 3 may use, to 1fffff
//! 200000 free, to 3fffff; one large page  c0000000 to the end: no memory, mapped to itself
//! ```
//! Below 1 MiB pages are the supervisor's. The pages of variables and of the program are also at 100000 above themselves, for ring 3.

use std::io;
use std::sync::Arc;

use umbra_engine::{CpuState, RunState, SavedSegment, SavedTable};
use umbra_memory::{Backing, Memory, MemoryError, Region, RegionKind};
use umbra_x86::cpuid::{CpuidTable, feature};
use umbra_x86::msr;
use umbra_x86::reg::{Cr0, Cr4, Efer};
use umbra_x86::segment::{Segment, Table, access};

use super::program::Mode;

pub(super) const RESULTS: u64 = 0x7000;
pub(super) const LOG: u64 = 0xb000;
pub(super) const LOG_COUNT: u64 = 0x7f10;
pub(super) const LOG_MAX: u64 = 60;
pub(super) const CODE: u64 = 0x8000;
pub(super) const CODE_LEN_MAX: usize = 0x2000;
/// What a result slot holds before LOG stores into it.
pub(super) const UNSET: u64 = 0xa5a5;
const TOP_OF_MEMORY: u64 = 0x40_0000;
const USER: u64 = 0x10_0000;
const GDT: u64 = 0x6000;
const LDT: u64 = 0x6800;
const IDT: u64 = 0xa000;
const ENTRIES: u64 = 0xc000;
const TSS: u64 = 0x1_0000;
const STARTUP: u64 = 0x1_f000;
const STACK: u64 = 0xf000;

unsafe extern "C" {
    static umbra_conformance_runtime64: u8;
    static umbra_conformance_runtime64_end: u8;
    static umbra_conformance_runtime32: u8;
    static umbra_conformance_runtime32_end: u8;
    static umbra_conformance_runtime16: u8;
    static umbra_conformance_runtime16_end: u8;
    static umbra_conformance_startup: u8;
    static umbra_conformance_startup_end: u8;
}
std::arch::global_asm!(include_str!("runtime.s"), options(raw));

fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: callers pass the labels around one piece of the read-only section above.
    unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
}

fn runtime(mode: Mode) -> &'static [u8] {
    match mode {
        Mode::Real => {
            between(&raw const umbra_conformance_runtime16, &raw const umbra_conformance_runtime16_end)
        }
        Mode::Long => {
            between(&raw const umbra_conformance_runtime64, &raw const umbra_conformance_runtime64_end)
        }
        Mode::Protected | Mode::Paged | Mode::Pae => {
            between(&raw const umbra_conformance_runtime32, &raw const umbra_conformance_runtime32_end)
        }
    }
}

/// Memory of the shape above, all zero.
pub(super) fn empty_memory() -> Result<Memory, MemoryError> {
    let map = |gpa, len, kind| -> io::Result<Region> {
        Region::map(gpa, len, kind, Backing::memfd(c"conformance", len)?)
    };
    let regions = [
        (0, 0xa_0000, RegionKind::Ram),
        (0xe_0000, 0x1_0000, RegionKind::Rom),
        (USER, TOP_OF_MEMORY - USER, RegionKind::Ram),
    ];
    let regions =
        regions.into_iter().map(|(gpa, len, kind)| map(gpa, len, kind)).collect::<io::Result<Vec<_>>>();
    Memory::new(regions.map_err(MemoryError::Map)?)
}

/// Memory with everything in it that a program of `mode` needs, and the program.
pub(super) fn memory(mode: Mode, code: &[u8]) -> Result<Arc<Memory>, MemoryError> {
    assert!(code.len() <= CODE_LEN_MAX, "the program is too long");
    let memory = empty_memory()?;
    let words = |gpa: u64, words: &[u64]| {
        words.iter().zip((gpa..).step_by(8)).try_for_each(|(w, at)| memory.write(at, &w.to_le_bytes()))
    };
    words(RESULTS, &[UNSET; 64])?;
    memory.write(CODE, code)?;
    memory.write(ENTRIES, runtime(mode))?;
    memory.write(
        STARTUP,
        between(&raw const umbra_conformance_startup, &raw const umbra_conformance_startup_end),
    )?;
    words(GDT, &gdt(mode))?;
    write_tss(&memory, mode)?;
    // A mark in ROM, to be read.
    memory.write(0xe_0000, b"ROM bytes")?;
    match mode {
        Mode::Real => {
            for v in 0..256u64 {
                memory.write(v * 4, &(ENTRIES as u32 + v as u32 * 16).to_le_bytes())?;
            }
        }
        Mode::Protected | Mode::Paged | Mode::Pae => {
            for v in 0..256u64 {
                words(IDT + v * 8, &[gate(v)])?;
            }
        }
        Mode::Long => {
            for v in 0..256u64 {
                words(IDT + v * 16, &[gate(v), 0])?;
            }
        }
    }
    match mode {
        Mode::Real | Mode::Protected => {}
        Mode::Paged => page_tables_32(&memory)?,
        Mode::Pae | Mode::Long => page_tables_64(&memory, mode == Mode::Long)?,
    }
    Ok(Arc::new(memory))
}

/// An interrupt gate to the runtime's entry of `vector`. Vectors 3, 4 and 0x40 to 0x4f may be called from ring 3.
fn gate(vector: u64) -> u64 {
    let entry = ENTRIES + vector * 16;
    let dpl = if matches!(vector, 3 | 4 | 0x40..=0x4f) { 3 } else { 0 };
    entry | 8 << 16 | (0x8e | dpl << 5) << 40
}

/// The page of ring 3 at `USER` above `linear` shows these frames.
fn frame(linear: u64) -> u64 {
    match linear - if linear >= USER { USER } else { 0 } {
        low @ 0x7000..0xa000 if linear >= USER => low,
        _ => linear,
    }
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const LARGE: u64 = 0x80;
const A: u64 = 0x20;
const D: u64 = 0x40;

fn page_entry(page: u64) -> u64 {
    let linear = page << 12;
    frame(linear) | P | W | if linear >= USER { U } else { 0 }
}

fn page_tables_64(memory: &Memory, long: bool) -> Result<(), MemoryError> {
    let word = |at: u64, value: u64| memory.write(at, &value.to_le_bytes());
    for page in 0..512 {
        word(0x4000 + page * 8, page_entry(page))?;
        word(0x5000 + page * 8, (0xc000_0000 + (page << 21)) | P | W | LARGE)?;
    }
    word(0x3000, 0x4000 | P | W | U)?;
    word(0x3008, 0x20_0000 | P | W | LARGE)?;
    // The entries of the PAE pointer table have no rights of their own.
    let rights = if long { W | U } else { 0 };
    word(0x2000, 0x3000 | P | rights)?;
    word(0x2018, 0x5000 | P | rights)?;
    if long {
        word(0x1000, 0x2000 | P | W | U)?;
    }
    Ok(())
}

fn page_tables_32(memory: &Memory) -> Result<(), MemoryError> {
    let word = |at: u64, value: u64| memory.write(at, &(value as u32).to_le_bytes());
    for page in 0..1024 {
        let entry = if page >= 512 { page << 12 | P | W } else { page_entry(page) };
        word(0x4000 + page * 4, entry)?;
    }
    word(0x1000, 0x4000 | P | W | U)?;
    for large in 768..1024 {
        word(0x1000 + large * 4, large << 22 | P | W | LARGE | A | D)?;
    }
    Ok(())
}

/// A flat code or data descriptor with these access bits (as in [`Segment::access`]).
const fn flat(bits: u16) -> u64 {
    0xffff | (bits as u64 & 0xff) << 40 | 0xf << 48 | (bits as u64 >> 12) << 52
}

const CODE_BITS: u16 = access::P | access::S | access::CODE | access::RW | access::ACCESSED;
const DATA_BITS: u16 = access::P | access::S | access::RW | access::ACCESSED;
const BIG: u16 = access::G | access::DB;
const LONG: u16 = access::G | access::L;

const KCODE32: u64 = flat(CODE_BITS | BIG);
const KCODE64: u64 = flat(CODE_BITS | LONG);
const KDATA: u64 = flat(DATA_BITS | BIG);
const UCODE32: u64 = flat(CODE_BITS | BIG | access::DPL);
const UCODE64: u64 = flat(CODE_BITS | LONG | access::DPL);
const UDATA: u64 = flat(DATA_BITS | BIG | access::DPL);
/// 16-bit, base 0, limit 64 KiB.
const KCODE16: u64 = 0x0000_9b00_0000_ffff;
const KDATA16: u64 = 0x0000_9300_0000_ffff;

/// A system descriptor of `kind` (present) for `len` bytes at `base` below 16 MiB.
const fn system(kind: u64, base: u64, len: u64) -> u64 {
    (len - 1) | base << 16 | (0x80 | kind) << 40
}

/// The descriptors of `mode`; the numbers on the left are selectors.
fn gdt(mode: Mode) -> [u64; 36] {
    let long = mode == Mode::Long;
    let mut t = [0; 36];
    let mut put = |selector: usize, descriptor: u64| t[selector / 8] = descriptor;
    put(0x08, if long { KCODE64 } else { KCODE32 });
    put(0x10, KDATA);
    put(0x18, if long { KCODE32 } else { KCODE64 });
    put(0x20, KCODE16);
    put(0x28, KDATA16);
    put(0x30, UCODE32);
    put(0x38, UDATA);
    put(0x40, UCODE64);
    // The program loads the task register.
    put(0x48, system(0x9, TSS, TSS_LEN));
    put(0x58, system(0x2, LDT, 0x100));
    // For SYSENTER and SYSEXIT.
    put(0x68, if long { KCODE64 } else { KCODE32 });
    put(0x70, KDATA);
    put(0x78, UCODE32);
    put(0x80, UDATA);
    put(0x88, UCODE64);
    put(0x90, UDATA);
    // An available TSS.
    put(0x98, system(0x9, 0x1_3000, 0x68));
    // Conforming code; data that is not present; read-only data; code that cannot be read; data that expands down from 0x10000.
    put(0xa8, if long { flat(CODE_BITS | LONG | access::DC) } else { flat(CODE_BITS | BIG | access::DC) });
    put(0xb0, flat((DATA_BITS | BIG) & !access::P));
    put(0xb8, flat((DATA_BITS | BIG) & !access::RW));
    put(0xc0, flat((CODE_BITS | if long { LONG } else { BIG }) & !access::RW));
    put(0xc8, 0x0040_9700_0000_ffff);
    // Not yet accessed: data, code. Not present: code.
    put(0xd0, flat((DATA_BITS | BIG) & !access::ACCESSED));
    put(0xd8, flat((CODE_BITS | if long { LONG } else { BIG }) & !access::ACCESSED));
    put(0xe0, flat((CODE_BITS | if long { LONG } else { BIG }) & !access::P));
    // Data of one page at 0x20000.
    put(0xe8, 0x0040_9302_0000_0fff);
    t
}

/// Bytes of the TSS: its fields, and a bitmap of all ports with a byte behind it.
const TSS_LEN: u64 = 0x68 + 0x2000 + 1;

/// The current TSS: stacks for rings 0 to 2 (or ISTs), and an I/O bitmap in which all ports are forbidden.
fn write_tss(memory: &Memory, mode: Mode) -> Result<(), MemoryError> {
    if mode == Mode::Long {
        memory.write(TSS + 4, &0xf800u64.to_le_bytes())?;
        memory.write(TSS + 0x24, &0xfc00u64.to_le_bytes())?;
        memory.write(TSS + 0x2c, &0x1_0000u64.to_le_bytes())?;
    } else {
        memory.write(TSS + 4, &0xf800u32.to_le_bytes())?;
        memory.write(TSS + 8, &0x10u16.to_le_bytes())?;
    }
    memory.write(TSS + 0x66, &0x68u16.to_le_bytes())?;
    memory.write(TSS + 0x68, &vec![0xff; 0x2001])
}

/// Processor `id` at the start of a program.
pub(super) fn state(mode: Mode, id: u32, cpuid: &CpuidTable) -> CpuState {
    let mut s = CpuState::power_on(id, cpuid);
    s.run_state = RunState::Running;
    s.gpr[7] = u64::from(id);
    s.rip = CODE;
    s.gpr[4] = STACK - u64::from(id) * 0x800;
    s.segments = [SavedSegment(Segment::real(0, false)); 6];
    s.segments[1] = SavedSegment(Segment::real(0, true));
    s.idtr = SavedTable(Table { base: 0, limit: 0x3ff });
    s.cr0 = (Cr0::ET | Cr0::NE | Cr0::MP).bits();
    s.cr4 = (Cr4::OSFXSR | Cr4::OSXMMEXCPT).bits();
    if mode == Mode::Real {
        return s;
    }
    let g = gdt(mode);
    let segment =
        |selector: u16| SavedSegment(Segment::from_descriptor(selector, g[usize::from(selector) / 8]));
    s.segments = [segment(0x10); 6];
    s.segments[1] = segment(8);
    s.gdtr = SavedTable(Table { base: GDT, limit: 0x1ff });
    s.idtr = SavedTable(Table { base: IDT, limit: if mode == Mode::Long { 0xfff } else { 0x7ff } });
    s.ldtr = SavedSegment(Segment { unusable: true, ..Segment::default() });
    s.cr0 |= (Cr0::PE | Cr0::WP).bits();
    match mode {
        Mode::Real | Mode::Protected => {}
        Mode::Paged => {
            s.cr0 |= Cr0::PG.bits();
            s.cr4 |= Cr4::PSE.bits();
            s.cr3 = 0x1000;
        }
        Mode::Pae => {
            s.cr0 |= Cr0::PG.bits();
            s.cr4 |= Cr4::PAE.bits();
            s.efer = Efer::NXE.bits();
            s.cr3 = 0x2000;
        }
        Mode::Long => {
            s.cr0 |= Cr0::PG.bits();
            s.cr4 |= Cr4::PAE.bits();
            s.efer = (Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE).bits();
            s.cr3 = 0x1000;
            s.set_msr(msr::IA32_STAR, 0x0030_0008 << 32);
        }
    }
    if cpuid.has(feature::XSAVE) {
        s.cr4 |= Cr4::OSXSAVE.bits();
        s.xcr0 = if cpuid.has(feature::AVX) { 7 } else { 3 };
    }
    s
}

/// Puts a processor that starts in 64-bit mode into ring 3, in the pages that ring 3 may use.
pub(super) fn to_ring_3(s: &mut CpuState) {
    s.segments = [SavedSegment(Segment::from_descriptor(0x3b, UDATA)); 6];
    s.segments[1] = SavedSegment(Segment::from_descriptor(0x43, UCODE64));
    s.rip = CODE + USER;
    s.gpr[4] = 0x11_0000;
}
