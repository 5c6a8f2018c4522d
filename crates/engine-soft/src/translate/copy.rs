//! Instructions with other registers.

use std::mem::offset_of;

use iced_x86::{Instruction, OpAccess, OpKind, Register};

use super::asm::{A, B, Mem, Reg, op, state};
use super::block::Builder;
use super::memory::HostOperand;
use crate::cpu::Cpu;
use crate::native;

const RSP: u8 = 4;
/// The host's register that holds the guest's stack pointer.
pub(super) const STACK: Reg = 15;

/// Whether a guest's general register is in the state block.
pub(super) fn is_resident(n: u8) -> bool {
    matches!(n, 10 | 11 | 15)
}

/// The host's register that holds a guest's one which is not resident.
pub(super) fn host_of(n: u8) -> Reg {
    debug_assert!(!is_resident(n));
    if n == RSP { STACK } else { n }
}

/// Where a resident register is.
pub(super) fn resident(n: u8) -> Mem {
    state(offset_of!(Cpu, gpr) + 8 * usize::from(n))
}

/// The 64-bit register of a number.
fn register(n: Reg) -> Register {
    Register::RAX + u32::from(n)
}

/// Register `n` of the size of `like`.
fn same_size(like: Register, n: Reg) -> Register {
    let number = u32::from(n);
    match like.size() {
        1 if n < 4 => Register::AL + number,
        1 => Register::SPL + (number - 4),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

/// A resident register that stands in a scratch register for one instruction.
#[derive(Debug, Clone, Copy)]
struct Stand {
    guest: u8,
    scratch: Reg,
    loads: bool,
    stores: bool,
}

impl Builder<'_> {
    /// Emits `i` with the host's registers and its memory operand at `memory`; gives where it is. `None` if it cannot be; then
    /// nothing that was emitted is of use.
    pub(super) fn emit_copy(&mut self, i: &Instruction, memory: Option<HostOperand>) -> Option<usize> {
        let mut n = *i;
        n.set_code(native::in_64_bit_mode(i.code()));
        n.set_has_rep_prefix(false);
        n.set_has_repne_prefix(false);
        n.set_has_xacquire_prefix(false);
        n.set_has_xrelease_prefix(false);
        n.set_segment_prefix(Register::None);
        if let Some(m) = memory {
            n.set_memory_base(register(m.base));
            n.set_memory_index(m.index.map_or(Register::None, register));
            n.set_memory_index_scale(1);
            n.set_memory_displacement64(m.disp as i64 as u64);
            n.set_memory_displ_size(u32::from(m.disp != 0));
        }
        let stands = self.rename(i, &mut n, memory.is_some())?;
        for stand in stands.iter().flatten().filter(|s| s.loads) {
            self.asm.rm(op::MOV, stand.scratch, resident(stand.guest));
        }
        let place = self.asm.len();
        if stands.iter().flatten().any(|s| s.scratch == A) {
            self.asm.addend = None;
        }
        self.encoder.set_buffer(std::mem::take(&mut self.asm.bytes));
        let done = self.encoder.encode(&n, 0);
        self.asm.bytes = self.encoder.take_buffer();
        done.ok()?;
        for stand in stands.iter().flatten().filter(|s| s.stores) {
            self.asm.rm(op::MOV_STORE, stand.scratch, resident(stand.guest));
        }
        Some(place)
    }

    /// Puts the host's registers into `n`.
    fn rename(&mut self, i: &Instruction, n: &mut Instruction, address: bool) -> Option<[Option<Stand>; 2]> {
        let mut stands: [Option<Stand>; 2] = [None; 2];
        // With a memory operand the first scratch register holds its address.
        let free: &[Reg] = if address { &[B] } else { &[B, A] };
        let mut used = 0;
        for o in 0..i.op_count() {
            let r = i.op_register(o);
            if i.op_kind(o) != OpKind::Register || !r.is_gpr() {
                continue;
            }
            let high = matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
            let guest = r.full_register().number() as u8;
            if high {
                continue;
            }
            if !is_resident(guest) {
                n.set_op_register(o, same_size(r, host_of(guest)));
                continue;
            }
            let access = self.factory.info(i).op_access(o);
            let stores = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            let loads = access != OpAccess::Write || r.size() < 4;
            let known = stands[..used].iter_mut().flatten().find(|s| s.guest == guest);
            let scratch = match known {
                Some(stand) => {
                    stand.loads |= loads;
                    stand.stores |= stores;
                    stand.scratch
                }
                None => {
                    let scratch = *free.get(used)?;
                    stands[used] = Some(Stand { guest, scratch, loads, stores });
                    used += 1;
                    scratch
                }
            };
            n.set_op_register(o, same_size(r, scratch));
        }
        Some(stands)
    }

    /// A guest's register in a host's one: its own, or `scratch` after a load.
    pub(super) fn in_register(&mut self, guest: u8, scratch: Reg) -> Reg {
        if !is_resident(guest) {
            return host_of(guest);
        }
        self.asm.rm(op::MOV, scratch, resident(guest));
        scratch
    }
}
