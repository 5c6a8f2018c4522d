//! Jobs over whole disks: copying, writing an overlay into what is below it, and giving an overlay another base.

mod chain;
mod copy;

pub use chain::{commit, copy_differences};
pub use copy::{Copy, CopySource};
