//! Linux' 64-bit boot protocol: the zero page and the first page tables
//! (Documentation/arch/x86/boot.rst and zero-page.rst).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::bzimage::{HEADER_OFFSET, SetupHeader};
use crate::e820::E820Entry;
use crate::layout::{PAGE, PAGE_TABLES, RSDP, ZERO_PAGE};
use crate::segment::Segment;

/// Loader number for a loader that has none of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `loadflags`: do not print early messages.
const QUIET: u8 = 1 << 5;
/// Video mode "normal": leave it as it is.
const VIDEO_NORMAL: u16 = 0xffff;
const E820_MAX: usize = 128;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct E820Line {
    pub addr: U64,
    pub size: U64,
    pub kind: U32,
}

/// `struct boot_params`, the fields that a loader without firmware fills in.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ZeroPage {
    screen_to_ist: [u8; 0x70],
    pub acpi_rsdp_addr: U64,
    disks_to_olpc: [u8; 0x48],
    pub ext_ramdisk_image: U32,
    pub ext_ramdisk_size: U32,
    pub ext_cmd_line_ptr: U32,
    efi_to_alt_mem: [u8; 0x11c],
    pub e820_entries: u8,
    edd_to_sentinel: [u8; 8],
    pub header: SetupHeader,
    edd_signatures: [u8; 0x64],
    pub e820_table: [E820Line; E820_MAX],
    edd: [u8; 0x330],
}

const _: () = assert!(size_of::<ZeroPage>() == 4096);
const _: () = assert!(std::mem::offset_of!(ZeroPage, ext_ramdisk_image) == 0xc0);
const _: () = assert!(std::mem::offset_of!(ZeroPage, e820_entries) == 0x1e8);
const _: () = assert!(std::mem::offset_of!(ZeroPage, header) == HEADER_OFFSET);
const _: () = assert!(std::mem::offset_of!(ZeroPage, e820_table) == 0x2d0);

/// What goes into the zero page.
pub(crate) struct ZeroPageSpec<'a> {
    /// The kernel's own header.
    pub header: &'a SetupHeader,
    /// Where the protected-mode code is.
    pub kernel: u64,
    /// Address and size.
    pub initrd: Option<(u64, u64)>,
    /// Address.
    pub cmdline: u64,
    /// Memory map.
    pub e820: &'a [E820Entry],
}

/// The zero page, at [`ZERO_PAGE`].
pub(crate) fn zero_page(spec: &ZeroPageSpec<'_>) -> Segment<'static> {
    let mut page = ZeroPage::new_zeroed();
    page.header = spec.header.clone();
    page.header.type_of_loader = LOADER_UNDEFINED;
    page.header.loadflags &= !QUIET;
    page.header.vid_mode = VIDEO_NORMAL.into();
    page.header.setup_data = 0.into();
    page.header.code32_start = low(spec.kernel);
    page.header.cmd_line_ptr = low(spec.cmdline);
    page.ext_cmd_line_ptr = high(spec.cmdline);
    let (initrd, initrd_size) = spec.initrd.unwrap_or_default();
    page.header.ramdisk_image = low(initrd);
    page.ext_ramdisk_image = high(initrd);
    page.header.ramdisk_size = low(initrd_size);
    page.ext_ramdisk_size = high(initrd_size);
    page.acpi_rsdp_addr = RSDP.into();
    for (line, entry) in page.e820_table.iter_mut().zip(spec.e820) {
        line.addr = entry.range.start.into();
        line.size = (entry.range.end - entry.range.start).into();
        line.kind = (entry.kind as u32).into();
    }
    page.e820_entries = spec.e820.len().min(E820_MAX) as u8;
    Segment::new(ZERO_PAGE, page.as_bytes().to_vec())
}

fn low(value: u64) -> U32 {
    U32::new((value & 0xffff_ffff) as u32)
}

fn high(value: u64) -> U32 {
    U32::new((value >> 32) as u32)
}

/// Page tables at [`PAGE_TABLES`] that map the first 4 GiB onto themselves with 2 MiB pages.
pub(crate) fn page_tables() -> Segment<'static> {
    const ENTRIES: u64 = PAGE / 8;
    const PRESENT: u64 = 1 << 0;
    const WRITABLE: u64 = 1 << 1;
    const LARGE: u64 = 1 << 7;
    const TABLE: u64 = PRESENT | WRITABLE;
    const DIRECTORIES: u64 = 4;
    let pdpt = PAGE_TABLES + PAGE;
    let directories = pdpt + PAGE;

    let pml4 = (0..ENTRIES).map(|i| if i == 0 { pdpt | TABLE } else { 0 });
    let pdpt = (0..ENTRIES).map(|i| if i < DIRECTORIES { (directories + i * PAGE) | TABLE } else { 0 });
    let pages = (0..DIRECTORIES * ENTRIES).map(|i| (i << 21) | TABLE | LARGE);
    let bytes: Vec<u8> = pml4.chain(pdpt).chain(pages).flat_map(u64::to_le_bytes).collect();
    Segment::new(PAGE_TABLES, bytes)
}
