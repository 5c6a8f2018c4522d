//! Where status flags are needed.
//!
//! Address lookups clobber them. A pass from the end of a block to its start finds where a flag is still to be read before it is
//! written; only there they are kept across a lookup. A fault where they are dead shows the handler of the fault a value
//! that no instruction will look at.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic as M, OpKind, RflagsBits};

use crate::native::host_is_amd;

/// All six.
pub(super) const ALL: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;
/// Instructions that are looked at beyond the end of a block.
const LOOK: usize = 6;
/// Bytes that those may have.
pub(super) const LOOK_BYTES: usize = 48;

/// What an instruction does to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Use {
    /// Those whose value before matters to it.
    pub read: u32,
    /// Those whose value before does not matter after it.
    pub written: u32,
}

impl Use {
    /// Reads all: anything that the interpreter does.
    pub(super) const CALL: Self = Self { read: ALL, written: 0 };

    pub(super) fn of(i: &Instruction) -> Self {
        // What a division leaves in them is undefined, and in fact what was there.
        if keeps_all_by_count(i) || matches!(i.mnemonic(), M::Div | M::Idiv) {
            return Self { read: ALL, written: 0 };
        }
        // Of these the manual leaves all but CF undefined, and in fact they stay.
        if matches!(i.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc) {
            return Self { read: 0, written: RflagsBits::CF };
        }
        let written = i.rflags_modified() & ALL;
        let kept = if keeps_undefined(i) { i.rflags_undefined() } else { 0 };
        Self { read: i.rflags_read() & ALL, written: written & !kept }
    }

    /// Those needed before it, if `after` are needed after it.
    pub(super) fn before(self, after: u32) -> u32 {
        self.read | after & !self.written
    }
}

/// What leaves flags that are undefined after it as they were, on this host.
fn keeps_undefined(i: &Instruction) -> bool {
    matches!(i.mnemonic(), M::Mul | M::Imul | M::Lzcnt | M::Tzcnt) && host_is_amd()
}

/// Shifts, rotates and repeated string instructions by a count that may be zero, which leaves all flags alone.
fn keeps_all_by_count(i: &Instruction) -> bool {
    if i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix()) {
        return true;
    }
    let shifts = matches!(
        i.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    if !shifts {
        return false;
    }
    let last = i.op_count() - 1;
    match i.op_kind(last) {
        OpKind::Register => true,
        // Some widths mask more of the count, and a rotate through carry takes it modulo 9 or 17.
        _ => i.immediate(last) & 0x1f == 0 || matches!(i.mnemonic(), M::Rcl | M::Rcr),
    }
}

/// Which flags are needed where `code` starts, as far as a look ahead tells; and how many bytes it looked at.
pub(super) fn needed_at(code: &[u8], bits: u32) -> (u32, usize) {
    let code = &code[..code.len().min(LOOK_BYTES)];
    let mut decoder = Decoder::with_ip(bits, code, 0, DecoderOptions::NONE);
    let mut open = ALL;
    let mut needed = 0;
    for _ in 0..LOOK {
        if !decoder.can_decode() {
            break;
        }
        let i = decoder.decode();
        if i.is_invalid() || !is_plain(&i) {
            break;
        }
        let uses = Use::of(&i);
        needed |= uses.read & open;
        open &= !uses.written;
        if open == 0 {
            return (needed, decoder.position());
        }
    }
    (ALL, 0)
}

/// Whether it neither branches nor does anything that saves flags.
fn is_plain(i: &Instruction) -> bool {
    i.flow_control() == FlowControl::Next
        && !i.is_privileged()
        && !matches!(i.mnemonic(), M::Pushf | M::Pushfd | M::Pushfq | M::Popf | M::Popfd | M::Popfq)
}

/// Where they are at some point of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// In the host's flags.
    pub host: bool,
    /// In `Fast::status`.
    pub memory: bool,
}
