//! Disk image formats of other systems: VirtualBox' vdi, Hyper-V's vhdx, VMware's vmdk, Virtual PC's vpc.
//!
//! Constraints: an image file is hostile, so every number read from one is checked before it is used, and memory is
//! bounded by constants that each module states. A format does no data I/O; see `umbra_block::Format` for the rules.
#![forbid(unsafe_code)]

mod common;
mod table;
mod vdi;
mod vhdx;
mod vmdk;
mod vpc;

use std::sync::Arc;

use umbra_block::Registry;

pub use vdi::Vdi;
pub use vhdx::Vhdx;
pub use vmdk::Vmdk;
pub use vpc::Vpc;

/// Adds every format of this crate.
pub fn register(registry: &mut Registry) {
    registry.add(Arc::new(Vdi)).add(Arc::new(Vhdx)).add(Arc::new(Vmdk)).add(Arc::new(Vpc));
}

#[cfg(test)]
mod harm_test;
#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod power_test;
