//! `cargo xtask bench`: Umbra beside QEMU, on the same machine, in one run.
//!
//! An absolute time says nothing where the machine is shared: what counts is the ratio. So the sides take turns, both
//! are pinned to the same processors, the machine's load is printed, and figures are medians.

pub mod boot;
pub mod cpu;
pub mod image;
pub mod io;
pub mod overhead;

mod vmm;

use std::path::Path;

use anyhow::{Context, Result};
use umbra_boot::bzimage::BzImage;
use umbra_boot::payload;

/// The middle of the values; of an even number, the lower of the two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// Seconds of a guest's clock in one of the host's, from (host's, guest's) at lines that the guest wrote.
///
/// A busy machine delays lines, by a tenth of a second and more, and never brings one early. So the least delayed line
/// of the first third is compared with the least delayed one of the last third.
pub(crate) fn clock_rate(ticks: &[(f64, f64)]) -> Option<f64> {
    let third = ticks.len().div_ceil(3);
    let delay = |tick: &&(f64, f64)| tick.0 - tick.1;
    let least = |some: &[(f64, f64)]| some.iter().min_by(|a, b| delay(a).total_cmp(&delay(b))).copied();
    let (first, last) = (least(ticks.get(..third)?)?, least(ticks.get(ticks.len() - third..)?)?);
    (last.0 > first.0).then(|| (last.1 - first.1) / (last.0 - first.0))
}

/// The machine's load averages, as the kernel prints them.
pub(crate) fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Writes the ELF kernel inside a bzImage to `to`, for the sides that boot it without its own unpacker.
pub(crate) fn unpack_kernel(image: &Path, to: &Path) -> Result<()> {
    let what = || format!("cannot unpack {}", image.display());
    let file = std::fs::read(image).with_context(what)?;
    let kernel = BzImage::parse(&file).with_context(what)?;
    let payload = kernel.payload().with_context(what)?.with_context(what)?;
    let plain = payload::unpack(payload, kernel.unpacked_max()).with_context(what)?;
    std::fs::write(to, plain).with_context(what)
}

#[cfg(test)]
mod bench_test;
