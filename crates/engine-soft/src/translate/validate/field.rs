//! The fields of the state block that translations use, and how.

use std::mem::offset_of;

use umbra_x86::reg::gpr;
use umbra_x86::segment::{Segment, sreg};

use crate::cpu::{Cpu, Mode, Msrs};
use crate::exec::Fast;

/// What may be done with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::translate) enum Kind {
    /// A number: read, and written if so said.
    Number { writable: bool },
    /// Holds the first TLB entry, which an index is added to.
    Tlb,
    /// The context that tags are of.
    Context,
    /// Holds what may be put there.
    Class,
    /// Holds the address of the attention word.
    Attention,
    /// Holds the first entry of the table by linear address, which an index is added to.
    Jumps,
    /// What entries of that table must be of.
    Key,
    /// Holds what is to be added to addresses in a window, as a lookup found it.
    Window,
    /// Holds an address to jump to.
    Code,
}

/// A field.
#[derive(Debug, Clone, Copy)]
pub(in crate::translate) struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub len: usize,
    pub kind: Kind,
}

const FREE: Kind = Kind::Number { writable: true };
const READ: Kind = Kind::Number { writable: false };

const fn fast(name: &'static str, offset: usize, len: usize, kind: Kind) -> Field {
    Field { name, offset: offset_of!(Cpu, fast) + offset, len, kind }
}

const fn cpu(name: &'static str, offset: usize, len: usize, kind: Kind) -> Field {
    Field { name, offset, len, kind }
}

const fn window(name: &'static str, n: usize) -> Field {
    fast(name, offset_of!(Fast, windows) + 8 * n, 8, Kind::Window)
}

const fn base(n: usize) -> usize {
    offset_of!(Cpu, seg) + n * size_of::<Segment>() + offset_of!(Segment, base)
}

/// All of them but the general registers.
const FIELDS: &[Field] = &[
    fast("context", offset_of!(Fast, context), 8, Kind::Context),
    fast("tlb_base", offset_of!(Fast, tlb_base), 8, FREE),
    fast("key", offset_of!(Fast, key), 8, Kind::Key),
    fast("status", offset_of!(Fast, status), 2, FREE),
    fast("page", offset_of!(Fast, page), 8, FREE),
    fast("tlb", offset_of!(Fast, tlb), 8, Kind::Tlb),
    fast("classes[0]", offset_of!(Fast, classes), 8, Kind::Class),
    fast("classes[1]", offset_of!(Fast, classes) + 8, 8, Kind::Class),
    fast("keeps_ac", offset_of!(Fast, keeps_ac), 1, READ),
    fast("attention", offset_of!(Fast, attention), 8, Kind::Attention),
    fast("jumps", offset_of!(Fast, jumps), 8, Kind::Jumps),
    fast("jump_hash", offset_of!(Fast, jump_hash), 8, READ),
    fast("global_key", offset_of!(Fast, global_key), 8, Kind::Key),
    fast("target", offset_of!(Fast, target), 8, FREE),
    window("windows[0]", 0),
    window("windows[1]", 1),
    window("windows[2]", 2),
    window("windows[3]", 3),
    window("windows[4]", 4),
    window("windows[5]", 5),
    window("windows[6]", 6),
    window("windows[7]", 7),
    fast("slow", offset_of!(Fast, slow), 8, Kind::Code),
    fast("leave", offset_of!(Fast, leave), 8, Kind::Code),
    fast("site", offset_of!(Fast, site), 4, FREE),
    fast("live", offset_of!(Fast, live), 1, READ),
    fast("translated", offset_of!(Fast, translated), 8, FREE),
    cpu("rip", offset_of!(Cpu, rip), 8, FREE),
    cpu("rflags", offset_of!(Cpu, rflags), 8, FREE),
    cpu("cpl", offset_of!(Cpu, mode) + offset_of!(Mode, cpl), 1, READ),
    cpu("interrupt_hint", offset_of!(Cpu, interrupt_hint), 1, READ),
    cpu("fs.base", base(sreg::FS), 8, READ),
    cpu("gs.base", base(sreg::GS), 8, FREE),
    cpu("kernel_gs_base", offset_of!(Cpu, msr) + offset_of!(Msrs, kernel_gs_base), 8, FREE),
];

const _: () = assert!(offset_of!(Cpu, gpr) == 0);

/// The field that `len` bytes at `offset` into the state block lie in.
pub(in crate::translate) fn find(offset: u64, len: usize) -> Option<Field> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(len)?;
    let register =
        gpr::NAMES.get(start / 8).map(|name| Field { name, offset: start / 8 * 8, len: 8, kind: FREE });
    let mut all = register.into_iter().chain(FIELDS.iter().copied());
    all.find(|f| len > 0 && f.offset <= start && end <= f.offset + f.len)
}
