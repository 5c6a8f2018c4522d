//! Registers and memory operands of an instruction as an operation has them.

use iced_x86::{Instruction, OpKind, Register};
use umbra_x86::segment::sreg;

use crate::cpu::Mode;
use crate::exec::{Op, op_flag, slot};
use crate::operand::{operand_segment, segment_number};

/// A general register as an operation has it: its byte offset.
pub(super) fn register(r: Register) -> u8 {
    match r {
        Register::AH | Register::CH | Register::DH | Register::BH => (r as u8 - Register::AH as u8) * 8 + 1,
        _ => r.full_register().number() as u8 * 8,
    }
}

fn slot_of(r: Register) -> u8 {
    if r == Register::None { slot::ZERO } else { r.full_register().number() as u8 }
}

/// Puts the memory operand of `i`, which starts `offset` bytes into its block, into `op`. Whether base and displacement are all there is.
pub(super) fn memory(mode: &Mode, i: &Instruction, offset: usize, op: &mut Op) -> bool {
    let segment = segment_number(i.memory_segment());
    if operand_segment(i, mode.code) == sreg::SS {
        op.flags |= op_flag::STACK;
    }
    match simple(mode, i, offset, segment, op) {
        Some(near) => near,
        None => {
            op.flags |= op_flag::GENERAL;
            false
        }
    }
}

/// `None` if the operand has to be computed from the whole instruction.
fn simple(mode: &Mode, i: &Instruction, offset: usize, segment: Option<usize>, op: &mut Op) -> Option<bool> {
    let (base, index) = (i.memory_base(), i.memory_index());
    if !mode.flat || mode.code == 16 {
        return None;
    }
    op.segment = match segment {
        Some(sreg::FS) if mode.code == 64 => slot::FS,
        Some(sreg::GS) if mode.code == 64 => slot::GS,
        Some(sreg::FS | sreg::GS) => return None,
        Some(sreg::CS) if mode.code != 64 => return None,
        _ => slot::ZERO,
    };
    if base == Register::RIP {
        let displacement = (i.ip_rel_memory_address() as i64).checked_add(offset as i64)?;
        (op.base, op.disp) = (slot::RIP, i32::try_from(displacement).ok()?);
        return Some(op.segment == slot::ZERO);
    }
    let wide = |r: Register| r == Register::None || r.is_gpr64();
    let narrow = |r: Register| r == Register::None || r.is_gpr32();
    let bare = base == Register::None && index == Register::None;
    if mode.code == 64 && wide(base) && wide(index) && (!bare || i.memory_displ_size() == 8) {
        op.disp = i32::try_from(i.memory_displacement64() as i64).ok()?;
    } else if narrow(base) && narrow(index) && (!bare || i.memory_displ_size() == 4) {
        op.disp = i.memory_displacement64() as u32 as i32;
        op.flags |= op_flag::NARROW;
    } else {
        return None;
    }
    op.base = slot_of(base);
    op.index = slot_of(index);
    op.flags |= (i.memory_index_scale().trailing_zeros() as u8) << op_flag::SCALE_SHIFT;
    Some(op.segment == slot::ZERO && op.index == slot::ZERO && op.flags & op_flag::NARROW == 0)
}

/// The width of a general register or of memory, as 0 to 3 for 8 to 64 bits; `None` for other registers and other sizes.
pub(super) fn width(i: &Instruction, n: u32) -> Option<usize> {
    let bytes = match i.op_kind(n) {
        OpKind::Register if i.op_register(n).is_gpr() => i.op_register(n).size(),
        OpKind::Memory => i.memory_size().size(),
        _ => return None,
    };
    matches!(bytes, 1 | 2 | 4 | 8).then(|| bytes.trailing_zeros() as usize)
}
