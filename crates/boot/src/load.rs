//! From a kernel file, an initrd and a command line to segments of guest memory and the processor's first state.
//!
//! Pure: it needs no guest memory, only the sizes. The same inputs give the same image under every engine.

use std::sync::Arc;

use crate::bzimage::BzImage;
use crate::e820::{self, E820Entry};
use crate::elf::ElfKernel;
use crate::entry::Entry;
use crate::error::{BootError, starts_with};
use crate::layout::{CMDLINE, KERNEL_MIN, Layout, PAGE_TABLES, PVH_START_INFO, RAM_LOW_MAX, ZERO_PAGE};
use crate::linux64::{ZeroPageSpec, page_tables, zero_page};
use crate::payload::unpack;
use crate::place::{InitrdRules, place_cmdline, place_initrd, too_small};
use crate::pvh::start_info;
use crate::segment::{Bytes, Segment};

/// The command line's limit where the kernel file does not say one (Linux' COMMAND_LINE_SIZE less the NUL).
const CMDLINE_MAX: u32 = 2047;
/// 64-bit kernels prefer 16 MiB; a header older than 2.10 does not say.
const PREFERRED_ADDRESS: u64 = 16 << 20;

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadMethod {
    /// PVH where the kernel has it, else the 64-bit protocol.
    #[default]
    Auto,
    /// PVH: the ELF kernel, unpacked by us.
    Pvh,
    /// Linux' 64-bit protocol: the bzImage unpacks itself.
    Linux64,
}

/// What the user gave.
#[derive(Debug, Clone, Copy)]
pub struct BootSource<'a> {
    /// A bzImage or an ELF vmlinux.
    pub kernel: &'a [u8],
    /// The initial RAM disk, as it is.
    pub initrd: Option<&'a [u8]>,
    /// The kernel command line, without NUL.
    pub cmdline: &'a str,
    /// How to enter.
    pub method: LoadMethod,
}

/// A kernel that is ready to run.
#[derive(Debug, Clone)]
pub struct BootImage<'a> {
    /// [`LoadMethod::Pvh`] or [`LoadMethod::Linux64`].
    pub method: LoadMethod,
    /// What to write where, none overlapping another. The firmware's tables are not among them.
    pub segments: Vec<Segment<'a>>,
    /// The first processor's registers.
    pub entry: Entry,
    /// The memory map that the kernel is told.
    pub e820: Vec<E820Entry>,
}

/// Lays out a kernel.
///
/// # Errors
///
/// [`BootError`] where the file is no kernel, the memory too small, or the initrd or command line too large.
pub fn load<'a>(source: &BootSource<'a>, layout: &Layout) -> Result<BootImage<'a>, BootError> {
    if ElfKernel::is_one(source.kernel) {
        if source.method == LoadMethod::Linux64 {
            return Err(BootError::ElfWithout64BitProtocol);
        }
        let elf = ElfKernel::parse(source.kernel)?;
        let part = |range| Bytes::Borrowed(source.kernel.get(range).unwrap_or_default());
        return load_pvh(source, layout, &elf, part, PvhLimits::default());
    }
    let image = BzImage::parse(source.kernel)?;
    match source.method {
        LoadMethod::Linux64 => load_linux64(source, layout, &image),
        LoadMethod::Pvh => load_payload(source, layout, &image),
        LoadMethod::Auto => match load_payload(source, layout, &image) {
            Err(BootError::NoPvhEntry | BootError::UnknownCompression(_) | BootError::WrongElf(_)) => {
                load_linux64(source, layout, &image)
            }
            // PVH cannot hand over an initrd above 4 GiB; the other protocol may.
            Err(BootError::InitrdTooLarge { .. }) if image.reaches_above_4g() && image.entry_64().is_ok() => {
                load_linux64(source, layout, &image)
            }
            result => result,
        },
    }
}

/// PVH from the ELF file inside a bzImage.
fn load_payload<'a>(
    source: &BootSource<'a>,
    layout: &Layout,
    image: &BzImage<'_>,
) -> Result<BootImage<'a>, BootError> {
    let payload = image.payload()?.ok_or(BootError::NoPvhEntry)?;
    let kernel = unpack(payload, image.unpacked_max())?;
    if !ElfKernel::is_one(&kernel) {
        return Err(BootError::WrongElf(format!("the unpacked kernel starts with {}", starts_with(&kernel))));
    }
    let elf = ElfKernel::parse(&kernel)?;
    let kernel = Arc::new(kernel);
    let part = |range| Bytes::Part(Arc::clone(&kernel), range);
    let limits = PvhLimits {
        cmdline_max: cmdline_max(image),
        initrd_limit: initrd_limit(image),
        hint: if image.reaches_above_4g() { "; the 64-bit protocol takes more" } else { "" },
    };
    load_pvh(source, layout, &elf, part, limits)
}

/// What a bzImage's header says that an ELF file does not.
struct PvhLimits {
    cmdline_max: u32,
    initrd_limit: u64,
    hint: &'static str,
}

impl Default for PvhLimits {
    fn default() -> Self {
        Self { cmdline_max: CMDLINE_MAX, initrd_limit: RAM_LOW_MAX, hint: "" }
    }
}

fn load_pvh<'a>(
    source: &BootSource<'a>,
    layout: &Layout,
    elf: &ElfKernel,
    part: impl Fn(std::ops::Range<usize>) -> Bytes<'a>,
    limits: PvhLimits,
) -> Result<BootImage<'a>, BootError> {
    let entry = u64::from(elf.pvh_entry.ok_or(BootError::NoPvhEntry)?);
    check_fits(elf.end(), layout)?;
    let mut segments = Vec::with_capacity(elf.segments.len() + 4);
    for segment in &elf.segments {
        if segment.paddr < KERNEL_MIN {
            return Err(BootError::Damaged(format!(
                "it wants to be loaded at {:#x}, in the first MiB",
                segment.paddr
            )));
        }
        let data = part(segment.file.clone());
        let zeroes = segment.mem_size - data.len() as u64;
        segments.push(Segment { gpa: segment.paddr, data, zeroes });
    }
    if !elf.segments.iter().any(|s| (s.paddr..s.end()).contains(&entry)) {
        return Err(BootError::Damaged(format!("its PVH entry {entry:#x} is outside of what it loads")));
    }
    let rules =
        InitrdRules { kernel_end: elf.end(), limit: limits.initrd_limit, above_4g: false, hint: limits.hint };
    let initrd = place(source, &rules, layout, &mut segments)?;
    segments.push(place_cmdline(source.cmdline, limits.cmdline_max)?);
    let e820 = e820::map(layout);
    segments.push(start_info(&e820, initrd, CMDLINE));
    let entry = Entry::pvh(entry, PVH_START_INFO);
    segments.push(entry.gdt());
    Ok(BootImage { method: LoadMethod::Pvh, segments, entry, e820 })
}

fn load_linux64<'a>(
    source: &BootSource<'a>,
    layout: &Layout,
    image: &BzImage<'a>,
) -> Result<BootImage<'a>, BootError> {
    let entry = image.entry_64()?;
    let header = image.header();
    let kernel = match header.pref_address.get() {
        0 => PREFERRED_ADDRESS,
        address => address,
    };
    if !(KERNEL_MIN..RAM_LOW_MAX).contains(&kernel) {
        return Err(BootError::Damaged(format!("it wants to be loaded at {kernel:#x}")));
    }
    // Below RAM_LOW_MAX plus two 32-bit sizes: no overflow.
    let kernel_end = kernel + (image.code().len() as u64).max(u64::from(header.init_size.get()));
    check_fits(kernel_end, layout)?;
    let mut segments = vec![Segment::new(kernel, image.code())];
    let rules =
        InitrdRules { kernel_end, limit: initrd_limit(image), above_4g: image.reaches_above_4g(), hint: "" };
    let initrd = place(source, &rules, layout, &mut segments)?;
    segments.push(place_cmdline(source.cmdline, cmdline_max(image))?);
    let e820 = e820::map(layout);
    segments.push(zero_page(&ZeroPageSpec { header, kernel, initrd, cmdline: CMDLINE, e820: &e820 }));
    segments.push(page_tables());
    let entry = Entry::linux64(kernel + entry, ZERO_PAGE, PAGE_TABLES);
    segments.push(entry.gdt());
    Ok(BootImage { method: LoadMethod::Linux64, segments, entry, e820 })
}

fn place<'a>(
    source: &BootSource<'a>,
    rules: &InitrdRules,
    layout: &Layout,
    segments: &mut Vec<Segment<'a>>,
) -> Result<Option<(u64, u64)>, BootError> {
    let Some(initrd) = source.initrd else { return Ok(None) };
    let size = initrd.len() as u64;
    let gpa = place_initrd(size, rules, layout)?;
    segments.push(Segment::new(gpa, initrd));
    Ok(Some((gpa, size)))
}

/// A kernel must lie within the RAM below 4 GiB.
fn check_fits(end: u64, layout: &Layout) -> Result<(), BootError> {
    if end <= layout.ram_low().end {
        return Ok(());
    }
    if end <= RAM_LOW_MAX {
        return Err(too_small("the kernel", end, layout));
    }
    Err(BootError::Damaged(format!("it wants memory up to {end:#x}, beyond the RAM below 4 GiB")))
}

fn cmdline_max(image: &BzImage<'_>) -> u32 {
    match image.header().cmdline_size.get() {
        0 => CMDLINE_MAX,
        size => size,
    }
}

/// The first address that an initrd may not occupy.
fn initrd_limit(image: &BzImage<'_>) -> u64 {
    u64::from(image.header().initrd_addr_max.get()) + 1
}
