//! The programs, by subject.

mod addressing;
mod code;
mod debug;
mod descriptors;
mod flags;
mod hostile;
mod interrupts;
mod io;
mod modes;
mod paging;
mod privilege;
mod smp;
mod strings;
mod system;
mod vector;

use super::program::Group;

/// All groups.
pub const GROUPS: &[Group] = &[
    flags::GROUP,
    addressing::GROUP,
    paging::GROUP,
    privilege::GROUP,
    interrupts::GROUP,
    descriptors::GROUP,
    modes::GROUP,
    strings::GROUP,
    smp::GROUP,
    code::GROUP,
    io::GROUP,
    vector::GROUP,
    system::GROUP,
    debug::GROUP,
    hostile::GROUP,
];
