//! PVH: the start information of the "x86/HVM direct boot ABI" (Xen, docs/misc/pvh.pandoc and
//! public/arch-x86/hvm/start_info.h), version 1.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::e820::E820Entry;
use crate::layout::{PVH_START_INFO, RSDP};
use crate::segment::Segment;

const MAGIC: u32 = 0x336e_c578;

/// `struct hvm_start_info`.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct StartInfo {
    pub magic: U32,
    pub version: U32,
    pub flags: U32,
    pub nr_modules: U32,
    pub modlist_paddr: U64,
    pub cmdline_paddr: U64,
    pub rsdp_paddr: U64,
    pub memmap_paddr: U64,
    pub memmap_entries: U32,
    pub reserved: U32,
}

/// `struct hvm_modlist_entry`.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Module {
    pub paddr: U64,
    pub size: U64,
    pub cmdline_paddr: U64,
    pub reserved: U64,
}

/// `struct hvm_memmap_table_entry`.
#[derive(Debug, Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct MemoryMapEntry {
    pub addr: U64,
    pub size: U64,
    pub kind: U32,
    pub reserved: U32,
}

const MODULES: u64 = PVH_START_INFO + size_of::<StartInfo>() as u64;
const MEMORY_MAP: u64 = MODULES + size_of::<Module>() as u64;

/// Start information, module list and memory map in one segment at [`PVH_START_INFO`].
pub(crate) fn start_info(e820: &[E820Entry], initrd: Option<(u64, u64)>, cmdline: u64) -> Segment<'static> {
    let info = StartInfo {
        magic: MAGIC.into(),
        version: 1.into(),
        flags: 0.into(),
        nr_modules: u32::from(initrd.is_some()).into(),
        modlist_paddr: if initrd.is_some() { MODULES.into() } else { 0.into() },
        cmdline_paddr: cmdline.into(),
        rsdp_paddr: RSDP.into(),
        memmap_paddr: MEMORY_MAP.into(),
        memmap_entries: u32::try_from(e820.len()).unwrap_or_default().into(),
        reserved: 0.into(),
    };
    let (paddr, size) = initrd.unwrap_or_default();
    let module =
        Module { paddr: paddr.into(), size: size.into(), cmdline_paddr: 0.into(), reserved: 0.into() };
    let mut bytes = info.as_bytes().to_vec();
    bytes.extend_from_slice(module.as_bytes());
    for entry in e820 {
        let line = MemoryMapEntry {
            addr: entry.range.start.into(),
            size: (entry.range.end - entry.range.start).into(),
            kind: (entry.kind as u32).into(),
            reserved: 0.into(),
        };
        bytes.extend_from_slice(line.as_bytes());
    }
    Segment::new(PVH_START_INFO, bytes)
}
