//! Disk image formats of other systems: VirtualBox' vdi, and what comes with it.
//!
//! Constraints: an image file is hostile, so every number read from one is checked before it is used, and memory is
//! bounded by constants that each module states. A format does no data I/O; see `umbra_block::Format` for the rules.
#![forbid(unsafe_code)]

mod common;
mod table;
mod vdi;

use std::sync::Arc;

use umbra_block::Registry;

pub use vdi::Vdi;

/// Adds every format of this crate.
pub fn register(registry: &mut Registry) {
    registry.add(Arc::new(Vdi));
}
