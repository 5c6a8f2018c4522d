use umbra_x86::reg::gpr;
use zerocopy::FromBytes;

use crate::error::BootError;
use crate::layout::{self, GIB, Layout, MIB};
use crate::linux64::ZeroPage;
use crate::load::{BootImage, BootSource, LoadMethod, load};
use crate::pvh::{MemoryMapEntry, Module, StartInfo};
use crate::testdata::{self, BSS, PVH_ENTRY, Part, TEXT, bzimage_of, header, lz4};

const CMDLINE: &str = "console=ttyS0 panic=-1";

fn layout_of(ram: u64) -> Layout {
    Layout::new(ram, 40).unwrap()
}

fn source<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>, method: LoadMethod) -> BootSource<'a> {
    BootSource { kernel, initrd, cmdline: CMDLINE, method }
}

/// The bytes at an address, zeroes included.
fn at(image: &BootImage<'_>, gpa: u64, len: usize) -> Vec<u8> {
    let segment = image.segments.iter().find(|s| s.range().contains(&gpa)).expect("a segment is there");
    let offset = (gpa - segment.gpa) as usize;
    (offset..offset + len).map(|i| segment.data.get(i).copied().unwrap_or_default()).collect()
}

fn check_no_overlap(image: &BootImage<'_>, layout: &Layout) {
    let mut ranges: Vec<_> = image.segments.iter().map(|s| s.range()).collect();
    ranges.sort_by_key(|r| r.start);
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:x?}");
    }
    for r in ranges {
        assert!(layout.ram().any(|ram| ram.start <= r.start && r.end <= ram.end), "{r:x?} is not in RAM");
    }
}

fn start_info(image: &BootImage<'_>) -> StartInfo {
    StartInfo::read_from_bytes(&at(image, image.entry.gpr[gpr::RBX], size_of::<StartInfo>())).unwrap()
}

fn module(image: &BootImage<'_>) -> (u64, u64) {
    let module = at(image, start_info(image).modlist_paddr.get(), size_of::<Module>());
    let module = Module::read_from_bytes(&module).unwrap();
    (module.paddr.get(), module.size.get())
}

fn zero_page(image: &BootImage<'_>) -> ZeroPage {
    ZeroPage::read_from_bytes(&at(image, image.entry.gpr[gpr::RSI], 4096)).unwrap()
}

fn ramdisk(page: &ZeroPage) -> (u64, u64) {
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    (
        join(page.header.ramdisk_image.get(), page.ext_ramdisk_image.get()),
        join(page.header.ramdisk_size.get(), page.ext_ramdisk_size.get()),
    )
}

#[test]
fn pvh_is_the_default_for_a_bzimage() {
    let (kernel, initrd, layout) = (testdata::bzimage(), vec![7; 5000], layout_of(128 * MIB));
    let image = load(&source(&kernel, Some(&initrd), LoadMethod::Auto), &layout).unwrap();
    assert_eq!(image.method, LoadMethod::Pvh);
    check_no_overlap(&image, &layout);
    assert_eq!(at(&image, TEXT, 0x2000), testdata::text()[..0x2000]);
    assert_eq!(at(&image, TEXT + 0x20_0000, 8), b"data\0\0\0\0");
    let data = image.segments.iter().find(|s| s.gpa == TEXT + 0x20_0000).unwrap();
    assert_eq!(data.zeroes, BSS);

    let info = start_info(&image);
    assert_eq!((info.magic.get(), info.version.get(), info.nr_modules.get()), (0x336e_c578, 1, 1));
    assert_eq!(info.rsdp_paddr.get(), 0xe_0000);
    assert_eq!(at(&image, info.cmdline_paddr.get(), CMDLINE.len() + 1), [CMDLINE.as_bytes(), b"\0"].concat());
    assert_eq!(module(&image), (128 * MIB - 8192, 5000));
    assert_eq!(at(&image, 128 * MIB - 8192, 5000), initrd);
    let map = at(&image, info.memmap_paddr.get(), info.memmap_entries.get() as usize * 24);
    let map = <[MemoryMapEntry]>::ref_from_bytes(&map).unwrap();
    assert_eq!(map.len(), image.e820.len());
    for (line, entry) in map.iter().zip(&image.e820) {
        assert_eq!(line.addr.get()..line.addr.get() + line.size.get(), entry.range);
        assert_eq!(line.kind.get(), entry.kind as u32);
    }
}

#[test]
fn the_pvh_entry_is_flat_protected_mode() {
    let kernel = testdata::bzimage();
    let image = load(&source(&kernel, None, LoadMethod::Pvh), &layout_of(64 * MIB)).unwrap();
    let e = &image.entry;
    assert_eq!((e.rip, e.rflags, e.cr0, e.cr3, e.cr4, e.efer), (u64::from(PVH_ENTRY), 2, 0x11, 0, 0, 0));
    assert!(!e.is_long_mode());
    assert_eq!((e.cs.base, e.cs.limit, e.cs.access), (0, u32::MAX, 0xc09b));
    assert_eq!((e.data.base, e.data.limit, e.data.access), (0, u32::MAX, 0xc093));
    assert_eq!((e.tr.base, e.tr.limit, e.tr.access), (0, 0x67, 0x8b));
    assert!(e.ldtr.unusable);
    check_gdt(&image);
    let info = start_info(&image);
    assert_eq!((info.nr_modules.get(), info.modlist_paddr.get()), (0, 0));
}

/// Loading the selectors from the table in memory gives what the registers hold.
fn check_gdt(image: &BootImage<'_>) {
    let e = &image.entry;
    let table = at(image, e.gdtr.base, usize::from(e.gdtr.limit) + 1);
    for register in [e.cs, e.data, e.tr] {
        let descriptor = u64::read_from_bytes(&table[usize::from(register.selector)..][..8]).unwrap();
        assert_eq!(umbra_x86::segment::Segment::from_descriptor(register.selector, descriptor), register);
    }
}

#[test]
fn an_elf_kernel_boots_by_pvh_from_the_callers_bytes() {
    let (kernel, layout) = (testdata::elf(), layout_of(64 * MIB));
    let image = load(&source(&kernel, Some(b"initrd"), LoadMethod::Auto), &layout).unwrap();
    assert_eq!((image.method, image.entry.rip), (LoadMethod::Pvh, u64::from(PVH_ENTRY)));
    check_no_overlap(&image, &layout);
    assert_eq!(at(&image, TEXT, 0x2000), testdata::text()[..0x2000]);
    let e = load(&source(&kernel, None, LoadMethod::Linux64), &layout).unwrap_err();
    assert_eq!(e, BootError::ElfWithout64BitProtocol);
}

#[test]
fn the_64_bit_protocol() {
    let (kernel, initrd, layout) = (testdata::bzimage(), vec![9; 4096], layout_of(6 * GIB));
    let image = load(&source(&kernel, Some(&initrd), LoadMethod::Linux64), &layout).unwrap();
    assert_eq!(image.method, LoadMethod::Linux64);
    check_no_overlap(&image, &layout);
    assert_eq!(at(&image, TEXT, 0x2c0), kernel[5 * 512..][..0x2c0]);

    let e = &image.entry;
    assert_eq!((e.rip, e.cr0, e.cr4, e.efer), (TEXT + 0x200, 0x8000_0011, 0x20, 0x500));
    assert!(e.is_long_mode());
    assert_eq!((e.cs.selector, e.cs.access, e.data.selector), (0x10, 0xa09b, 0x18));
    check_gdt(&image);

    let page = zero_page(&image);
    assert_eq!(page.acpi_rsdp_addr.get(), 0xe_0000);
    assert_eq!(page.header.type_of_loader, 0xff);
    assert_eq!(page.header.setup_data.get(), 0);
    assert_eq!(page.header.magic, *b"HdrS");
    assert_eq!(page.header.init_size.get(), 0x40_0000);
    assert_eq!(page.header.code32_start.get(), TEXT as u32);
    let cmdline = u64::from(page.header.cmd_line_ptr.get());
    assert_eq!(at(&image, cmdline, CMDLINE.len() + 1), [CMDLINE.as_bytes(), b"\0"].concat());
    // Below 2 GiB, as the header says.
    assert_eq!(ramdisk(&page), (2 * GIB - 4096, 4096));
    assert_eq!(usize::from(page.e820_entries), image.e820.len());
    for (line, entry) in page.e820_table.iter().zip(&image.e820) {
        assert_eq!(line.addr.get()..line.addr.get() + line.size.get(), entry.range);
        assert_eq!(line.kind.get(), entry.kind as u32);
    }
}

/// Walks the page tables as the processor does.
fn translate(image: &BootImage<'_>, address: u64) -> Option<u64> {
    let entry = |table: u64, index: u64| {
        let entry = u64::read_from_bytes(&at(image, table + (index & 511) * 8, 8)).unwrap();
        (entry & 3 == 3).then_some(entry)
    };
    let pdpt = entry(image.entry.cr3, address >> 39)? & !0xfff;
    let directory = entry(pdpt, address >> 30)? & !0xfff;
    let page = entry(directory, address >> 21)?;
    assert_ne!(page & 0x80, 0, "a large page");
    Some((page & !0x1f_ffff) | (address & 0x1f_ffff))
}

#[test]
fn the_first_four_gib_are_mapped_onto_themselves() {
    let kernel = testdata::bzimage();
    let image = load(&source(&kernel, None, LoadMethod::Linux64), &layout_of(64 * MIB)).unwrap();
    for address in (0..4 * GIB).step_by(2 << 20) {
        assert_eq!(translate(&image, address + 0x1234), Some(address + 0x1234));
    }
    assert_eq!(translate(&image, 4 * GIB), None);
    assert_eq!(translate(&image, 1 << 39), None);
}

#[test]
fn the_initrd_is_at_the_top_of_what_the_kernel_reaches() {
    let kernel = testdata::bzimage();
    let initrd = vec![1; 100];
    for (ram, top) in
        [(64 * MIB, 64 * MIB), (GIB, GIB), (3 * GIB, 2 * GIB), (6 * GIB, 2 * GIB), (64 * GIB, 2 * GIB)]
    {
        let image = load(&source(&kernel, Some(&initrd), LoadMethod::Pvh), &layout_of(ram)).unwrap();
        assert_eq!(module(&image), (top - 4096, 100), "{ram:#x}");
        check_no_overlap(&image, &layout_of(ram));
    }
    // An ELF file names no limit: RAM below the hole is.
    let kernel = testdata::elf();
    let image = load(&source(&kernel, Some(&initrd), LoadMethod::Pvh), &layout_of(64 * GIB)).unwrap();
    assert_eq!(module(&image), (3 * GIB - 4096, 100));
}

#[test]
fn an_initrd_that_fits_only_above_4_gib_goes_there() {
    // The kernel reaches little below 4 GiB, so that the test needs no gigabytes.
    let mut h = header();
    h.initrd_addr_max = (TEXT as u32 + 0x37_ffff).into();
    let kernel = bzimage_of(h, &lz4(&testdata::elf()));
    let initrd = vec![5; 2 << 20];
    let layout = layout_of(6 * GIB);
    let image = load(&source(&kernel, Some(&initrd), LoadMethod::Auto), &layout).unwrap();
    assert_eq!(image.method, LoadMethod::Linux64);
    assert_eq!(ramdisk(&zero_page(&image)), (7 * GIB - (2 << 20), 2 << 20));
    check_no_overlap(&image, &layout);

    let e = load(&source(&kernel, Some(&initrd), LoadMethod::Pvh), &layout).unwrap_err();
    assert!(matches!(e, BootError::InitrdTooLarge { size: 0x20_0000, .. }), "{e}");
    assert!(e.to_string().contains("the 64-bit protocol takes more"), "{e}");
    let e = load(&source(&kernel, Some(&initrd), LoadMethod::Auto), &layout_of(GIB)).unwrap_err();
    assert!(matches!(e, BootError::MemoryTooSmall { needs_mib: 3074, has_mib: 1024, .. }), "{e}");
}

#[test]
fn too_little_memory_is_told_with_the_least_that_does() {
    let kernel = testdata::bzimage();
    let too_small = |what, needs_mib, has_mib| BootError::MemoryTooSmall { what, needs_mib, has_mib };
    let e = load(&source(&kernel, None, LoadMethod::Pvh), &layout_of(16 * MIB)).unwrap_err();
    assert_eq!(e, too_small("the kernel", 19, 16));
    let e = load(&source(&kernel, None, LoadMethod::Linux64), &layout_of(19 * MIB)).unwrap_err();
    assert_eq!(e, too_small("the kernel", 20, 19));
    load(&source(&kernel, None, LoadMethod::Linux64), &layout_of(20 * MIB)).unwrap();

    let initrd = vec![0; 5 << 20];
    for method in [LoadMethod::Pvh, LoadMethod::Linux64] {
        let e = load(&source(&kernel, Some(&initrd), method), &layout_of(21 * MIB)).unwrap_err();
        let BootError::MemoryTooSmall { what: "the kernel with its initrd", needs_mib, has_mib: 21 } = e
        else {
            panic!("{e}")
        };
        // What the message says is true, and it is the least.
        load(&source(&kernel, Some(&initrd), method), &layout_of(needs_mib * MIB)).unwrap();
        load(&source(&kernel, Some(&initrd), method), &layout_of((needs_mib - 1) * MIB)).unwrap_err();
    }
}

#[test]
fn auto_takes_the_64_bit_protocol_where_pvh_is_impossible() {
    let layout = layout_of(64 * MIB);
    let without_note = testdata::elf_of(&[Part::load(TEXT, vec![1; 64], 0)]);
    let payloads = [lz4(&without_note), b"BZh9....".to_vec(), lz4(b"no ELF file at all")];
    for payload in payloads {
        let kernel = bzimage_of(header(), &payload);
        let image = load(&source(&kernel, None, LoadMethod::Auto), &layout).unwrap();
        assert_eq!(image.method, LoadMethod::Linux64);
        assert!(load(&source(&kernel, None, LoadMethod::Pvh), &layout).is_err());
    }
    // Damage is damage, whoever unpacks it.
    let mut damaged = lz4(&testdata::elf());
    damaged.truncate(200);
    let kernel = bzimage_of(header(), &damaged);
    let e = load(&source(&kernel, None, LoadMethod::Auto), &layout).unwrap_err();
    assert!(matches!(e, BootError::Unpack { format: "LZ4", .. }), "{e}");
    // Neither way.
    let mut h = header();
    h.xloadflags = 0.into();
    let kernel = bzimage_of(h, &lz4(&without_note));
    let e = load(&source(&kernel, None, LoadMethod::Auto), &layout).unwrap_err();
    assert_eq!(e, BootError::No64BitEntry);
}

#[test]
fn kernels_that_want_impossible_places_are_refused() {
    let load_elf = |parts: &[Part]| {
        let kernel = testdata::elf_of(parts);
        load(&source(&kernel, None, LoadMethod::Auto), &layout_of(64 * GIB)).unwrap_err()
    };
    let notes = || Part::notes(testdata::notes());
    let low = load_elf(&[Part::load(0x8000, vec![1], 0), notes()]);
    assert!(low.to_string().contains("in the first MiB"), "{low}");
    let high = load_elf(&[Part::load(TEXT, vec![1], 4 * GIB), notes()]);
    assert!(matches!(high, BootError::Damaged(_)), "{high}");
    let outside = load_elf(&[Part::load(0x20_0000, vec![1], 0), notes()]);
    assert!(outside.to_string().contains("PVH entry 0x1000040 is outside"), "{outside}");

    let mut h = header();
    h.pref_address = u64::MAX.into();
    let kernel = bzimage_of(h, &lz4(&testdata::elf()));
    let e = load(&source(&kernel, None, LoadMethod::Linux64), &layout_of(GIB)).unwrap_err();
    assert!(matches!(e, BootError::Damaged(_)), "{e}");
}

#[test]
fn the_command_line_is_checked() {
    let kernel = testdata::bzimage();
    let try_line = |cmdline: &str, method| {
        load(&BootSource { kernel: &kernel, initrd: None, cmdline, method }, &layout_of(64 * MIB)).map(|_| ())
    };
    for method in [LoadMethod::Pvh, LoadMethod::Linux64] {
        assert_eq!(try_line(&"x".repeat(2047), method), Ok(()));
        let e = try_line(&"x".repeat(2048), method).unwrap_err();
        assert_eq!(e, BootError::CmdlineTooLong { len: 2048, max: 2047 });
        assert_eq!(try_line("a\0b", method), Err(BootError::CmdlineNul(1)));
        assert_eq!(try_line("", method), Ok(()));
    }
    // A header may say anything; our room is what counts.
    let mut h = header();
    h.cmdline_size = u32::MAX.into();
    let kernel = bzimage_of(h, &lz4(&testdata::elf()));
    let cmdline = "x".repeat(layout::CMDLINE_ROOM as usize);
    let source = BootSource { kernel: &kernel, initrd: None, cmdline: &cmdline, method: LoadMethod::Auto };
    let e = load(&source, &layout_of(64 * MIB)).unwrap_err();
    assert!(matches!(e, BootError::CmdlineTooLong { max: 65535, .. }), "{e}");
}

#[test]
fn an_empty_initrd_is_a_mistake() {
    let kernel = testdata::bzimage();
    let e = load(&source(&kernel, Some(b""), LoadMethod::Auto), &layout_of(64 * MIB)).unwrap_err();
    assert_eq!(e, BootError::EmptyInitrd);
}

#[test]
fn other_files_are_no_kernel() {
    let e = load(&source(b"MZ nothing", None, LoadMethod::Auto), &layout_of(64 * MIB)).unwrap_err();
    assert!(matches!(e, BootError::NotAKernel { .. }), "{e}");
}
