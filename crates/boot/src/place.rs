//! Where initrd and command line go, and whether they fit.

use crate::error::BootError;
use crate::layout::{CMDLINE, CMDLINE_ROOM, Layout, MIB, PAGE};
use crate::segment::Segment;

/// What decides where an initrd may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InitrdRules {
    /// First address after the memory that the kernel needs for itself.
    pub kernel_end: u64,
    /// First address that the kernel cannot reach below 4 GiB.
    pub limit: u64,
    /// The kernel can reach memory above 4 GiB.
    pub above_4g: bool,
    /// What to try where nothing fits.
    pub hint: &'static str,
}

/// An address for `size` bytes: as high as allowed, at a page boundary, preferably below 4 GiB.
pub(crate) fn place_initrd(size: u64, rules: &InitrdRules, layout: &Layout) -> Result<u64, BootError> {
    if size == 0 {
        return Err(BootError::EmptyInitrd);
    }
    let top = layout.ram_low().end.min(rules.limit) & !(PAGE - 1);
    let bottom = rules.kernel_end.next_multiple_of(PAGE);
    let pages = size.div_ceil(PAGE).saturating_mul(PAGE);
    if let Some(at) = top.checked_sub(pages).filter(|at| *at >= bottom) {
        return Ok(at);
    }
    if let Some(high) = layout.ram_high().filter(|_| rules.above_4g)
        && let Some(at) = high.end.checked_sub(pages).filter(|at| *at >= high.start)
    {
        return Ok(at);
    }
    let needs = bottom.saturating_add(pages);
    if needs <= rules.limit.min(crate::layout::RAM_LOW_MAX) {
        return Err(too_small("the kernel with its initrd", needs, layout));
    }
    if rules.above_4g {
        // Above 4 GiB it would fit if there were that much.
        let needs = crate::layout::RAM_LOW_MAX.saturating_add(pages);
        return Err(too_small("the kernel with its initrd", needs, layout));
    }
    let room = rules.limit.min(crate::layout::RAM_LOW_MAX).saturating_sub(bottom);
    Err(BootError::InitrdTooLarge { size, room, hint: rules.hint })
}

/// The error for a guest whose RAM ends before `needs`.
pub(crate) fn too_small(what: &'static str, needs: u64, layout: &Layout) -> BootError {
    let has_mib = layout.ram_bytes() / MIB;
    BootError::MemoryTooSmall { what, needs_mib: needs.div_ceil(MIB), has_mib }
}

/// The command line with its NUL, at its place.
pub(crate) fn place_cmdline(cmdline: &str, max: u32) -> Result<Segment<'static>, BootError> {
    let room = usize::try_from(CMDLINE_ROOM - 1).unwrap_or_default();
    let max = usize::try_from(max).unwrap_or(usize::MAX).min(room);
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong { len: cmdline.len(), max });
    }
    if let Some(at) = cmdline.bytes().position(|b| b == 0) {
        return Err(BootError::CmdlineNul(at));
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    Ok(Segment::new(CMDLINE, bytes))
}
