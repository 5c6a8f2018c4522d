//! ELF kernels: what to load where, and the PVH entry (System V ABI; Xen's public/elfnote.h for the note).
//!
//! Segments go to their physical addresses. A relocatable kernel's payload has its relocations after the ELF file;
//! at the address it was linked for it needs none of them.

use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::BootError;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Linux has four or five program headers; a file with more than this is no kernel.
const PROGRAM_HEADERS_MAX: u16 = 64;
/// Notes are walked up to this many bytes.
const NOTES_MAX: usize = 64 << 10;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// ELF-64 file header.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct FileHeader {
    pub magic: [u8; 4],
    pub class: u8,
    pub data: u8,
    pub ident_version: u8,
    pub ident_rest: [u8; 9],
    pub kind: U16,
    pub machine: U16,
    pub version: U32,
    pub entry: U64,
    pub phoff: U64,
    pub shoff: U64,
    pub flags: U32,
    pub ehsize: U16,
    pub phentsize: U16,
    pub phnum: U16,
    pub shentsize: U16,
    pub shnum: U16,
    pub shstrndx: U16,
}

/// ELF-64 program header.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ProgramHeader {
    pub kind: U32,
    pub flags: U32,
    pub offset: U64,
    pub vaddr: U64,
    pub paddr: U64,
    pub filesz: U64,
    pub memsz: U64,
    pub align: U64,
}

/// ELF note header; name and descriptor follow, each padded to four bytes.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct NoteHeader {
    pub namesz: U32,
    pub descsz: U32,
    pub kind: U32,
}

/// A part of the file that goes to memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadSegment {
    /// Guest physical address.
    pub paddr: u64,
    /// Where its bytes are in the file; within the file.
    pub file: Range<usize>,
    /// Its size in memory, at least that in the file; the difference reads as zero.
    pub mem_size: u64,
}

/// What an ELF kernel says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElfKernel {
    /// What to load: ascending by address, without overlap, none empty.
    pub segments: Vec<LoadSegment>,
    /// The address of the PVH entry, if there is one.
    pub pvh_entry: Option<u32>,
}

impl ElfKernel {
    /// Whether the file looks like ELF at all.
    pub fn is_one(file: &[u8]) -> bool {
        file.starts_with(b"\x7fELF")
    }

    /// Reads the headers and notes.
    ///
    /// # Errors
    ///
    /// [`BootError`] where the file is for another machine, truncated, or contradicts itself.
    pub fn parse(file: &[u8]) -> Result<Self, BootError> {
        let headers = program_headers(file)?;
        let mut segments = Vec::new();
        let mut pvh_entry = None;
        for header in headers {
            match header.kind.get() {
                PT_LOAD if header.memsz.get() > 0 => segments.push(load_segment(&header, file)?),
                PT_NOTE if pvh_entry.is_none() => {
                    let notes = file_range(&header, file, "a note segment")?;
                    pvh_entry = find_pvh_entry(file.get(notes).unwrap_or_default());
                }
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(BootError::Damaged("the ELF file has nothing to load".into()));
        }
        segments.sort_by_key(|s| s.paddr);
        for pair in segments.windows(2) {
            if let [a, b] = pair
                && a.end() > b.paddr
            {
                return Err(BootError::Damaged(format!("two ELF segments overlap at {:#x}", b.paddr)));
            }
        }
        Ok(Self { segments, pvh_entry })
    }

    /// The first address after the kernel.
    pub fn end(&self) -> u64 {
        self.segments.iter().map(LoadSegment::end).max().unwrap_or_default()
    }
}

impl LoadSegment {
    /// The first address after it.
    pub fn end(&self) -> u64 {
        self.paddr.saturating_add(self.mem_size)
    }
}

fn program_headers(file: &[u8]) -> Result<Vec<ProgramHeader>, BootError> {
    let has = file.len() as u64;
    let truncated = |what, needs| BootError::Truncated { what, needs, has };
    let Ok((header, _)) = FileHeader::read_from_prefix(file) else {
        return Err(truncated("the ELF header", size_of::<FileHeader>() as u64));
    };
    if header.class != CLASS_64 {
        return Err(BootError::WrongElf("it is a 32-bit file".into()));
    }
    if header.data != LITTLE_ENDIAN || header.machine.get() != MACHINE_X86_64 {
        return Err(BootError::WrongElf(format!("its machine number is {}", header.machine)));
    }
    if usize::from(header.phentsize.get()) != size_of::<ProgramHeader>() {
        return Err(BootError::Damaged(format!("its ELF program headers have {} bytes", header.phentsize)));
    }
    let count = header.phnum.get();
    if count == 0 || count > PROGRAM_HEADERS_MAX {
        return Err(BootError::Damaged(format!("it has {count} ELF program headers")));
    }
    let start = header.phoff.get();
    let end = start.saturating_add(u64::from(count) * size_of::<ProgramHeader>() as u64);
    let bytes = slice(file, start, end).ok_or_else(|| truncated("the ELF program headers", end))?;
    let headers = <[ProgramHeader]>::ref_from_bytes(bytes)
        .map_err(|_| BootError::Damaged("its ELF program headers are cut".into()))?;
    Ok(headers.to_vec())
}

fn load_segment(header: &ProgramHeader, file: &[u8]) -> Result<LoadSegment, BootError> {
    let (paddr, mem_size) = (header.paddr.get(), header.memsz.get());
    if header.filesz.get() > mem_size || paddr.checked_add(mem_size).is_none() {
        return Err(BootError::Damaged(format!("the ELF segment at {paddr:#x} has impossible sizes")));
    }
    Ok(LoadSegment { paddr, file: file_range(header, file, "an ELF segment")?, mem_size })
}

/// Where a segment's bytes are in the file: within it.
fn file_range(header: &ProgramHeader, file: &[u8], what: &'static str) -> Result<Range<usize>, BootError> {
    let start = header.offset.get();
    let end = start.saturating_add(header.filesz.get());
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if end <= file.len() => Ok(start..end),
        _ => Err(BootError::Truncated { what, needs: end, has: file.len() as u64 }),
    }
}

fn slice(file: &[u8], start: u64, end: u64) -> Option<&[u8]> {
    file.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

/// The entry point that a Xen note in `notes` names. Notes that make no sense end the search.
fn find_pvh_entry(notes: &[u8]) -> Option<u32> {
    let mut rest = notes.get(..NOTES_MAX.min(notes.len()))?;
    while let Ok((header, tail)) = NoteHeader::read_from_prefix(rest) {
        let name_len = usize::try_from(header.namesz.get()).ok()?;
        let desc_len = usize::try_from(header.descsz.get()).ok()?;
        let name = tail.get(..name_len)?;
        let desc = tail.get(name_len.checked_next_multiple_of(4)?..)?;
        if header.kind.get() == NOTE_PHYS32_ENTRY && name == b"Xen\0" {
            // Four or eight bytes; the entry is below 4 GiB, as the processor starts in 32-bit mode.
            let (low, high) = desc.get(..desc_len)?.split_first_chunk::<4>()?;
            return high.iter().all(|b| *b == 0).then(|| u32::from_le_bytes(*low));
        }
        rest = desc.get(desc_len.checked_next_multiple_of(4)?..)?;
    }
    None
}
