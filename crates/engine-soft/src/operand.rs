//! Operands of a decoded instruction: registers, effective and linear addresses, values.
//!
//! Instructions are decoded with an instruction pointer of zero, because a block is kept by physical address: what iced-x86 says
//! of RIP-relative operands and near branches is relative to the start of the instruction, to which RIP is added here.

use iced_x86::{Instruction, OpKind, Register};
use umbra_x86::segment::{access, sreg};

use crate::cpu::Cpu;
use crate::fault::{Exec, Fault};
use crate::mmu::Word;

/// Whether `address` is canonical for 48-bit linear addresses.
pub fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

/// The mask of the low `bits` bits, for 8, 16, 32 or 64.
pub fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// A segment register's number; `None` for no segment register.
pub fn segment_number(register: Register) -> Option<usize> {
    register.is_segment_register().then(|| register as usize - Register::ES as usize)
}

/// The segment of the memory operand of `i` in code of this width. In 64-bit mode the prefixes for ES, CS, SS and DS mean nothing, not
/// even to the choice between #SS and #GP.
pub fn operand_segment(i: &Instruction, code: u8) -> usize {
    match segment_number(i.memory_segment()) {
        Some(n) if n >= sreg::FS || code != 64 => n,
        _ if matches!(i.memory_base().full_register(), Register::RSP | Register::RBP) => sreg::SS,
        _ => sreg::DS,
    }
}

impl Cpu {
    /// The value of a general register of any width, zero-extended; RIP, EIP and segment selectors too; 0 for `None`.
    pub fn reg(&self, r: Register) -> u64 {
        if let Some(n) = segment_number(r) {
            return u64::from(self.seg[n].selector);
        }
        match r {
            Register::None => 0,
            Register::AH | Register::CH | Register::DH | Register::BH => {
                self.gpr[r as usize - Register::AH as usize] >> 8 & 0xff
            }
            Register::RIP => self.rip,
            Register::EIP => self.rip & 0xffff_ffff,
            _ => self.gpr[r.full_register().number()] & mask(r.size() as u32 * 8),
        }
    }

    /// Writes a general register: 8 and 16 bits keep the rest, 32 bits zero the upper half.
    pub fn set_reg(&mut self, r: Register, value: u64) {
        if matches!(r, Register::AH | Register::CH | Register::DH | Register::BH) {
            let g = &mut self.gpr[r as usize - Register::AH as usize];
            *g = *g & !0xff00 | (value & 0xff) << 8;
            return;
        }
        self.set_gpr(r.full_register().number(), r.size() as u32 * 8, value);
    }

    /// Writes `bits` of general register `n`: 8 and 16 bits keep the rest, 32 bits zero the upper half.
    pub fn set_gpr(&mut self, n: usize, bits: u32, value: u64) {
        let g = &mut self.gpr[n];
        *g = match bits {
            8 | 16 => *g & !mask(bits) | value & mask(bits),
            _ => value & mask(bits),
        };
    }

    /// The offset in its segment of the memory operand, wrapped to the address size.
    pub fn effective_address(&self, i: &Instruction) -> u64 {
        if i.is_ip_rel_memory_operand() {
            let target = self.rip.wrapping_add(i.ip_rel_memory_address());
            return if i.memory_base() == Register::EIP { target & 0xffff_ffff } else { target };
        }
        let index = self.reg(i.memory_index()).wrapping_mul(u64::from(i.memory_index_scale()));
        let sum = self.reg(i.memory_base()).wrapping_add(index).wrapping_add(i.memory_displacement64());
        sum & mask(self.address_bits(i))
    }

    /// The address size of an instruction with a memory operand, in bits.
    pub fn address_bits(&self, i: &Instruction) -> u32 {
        let of = |r: Register| if r.is_gpr() { Some(r.size() as u32 * 8) } else { None };
        of(i.memory_base()).or(of(i.memory_index())).unwrap_or(match i.memory_displ_size() {
            2 => 16,
            4 => 32,
            8 => 64,
            _ => u32::from(self.mode.code),
        })
    }

    /// The linear address of `len` bytes at `offset` in segment `seg`, checked against the segment
    /// (SDM volume 3, "Limit Checking" and "Type Checking"; volume 1, "Canonical Addressing").
    pub fn linear(&self, seg: usize, offset: u64, len: u64, write: bool) -> Exec<u64> {
        if self.mode.code == 64 {
            let base = if seg >= sreg::FS { self.seg[seg].base } else { 0 };
            let linear = base.wrapping_add(offset);
            let last = linear.wrapping_add(len.max(1) - 1);
            return if is_canonical(linear) && is_canonical(last) {
                Ok(linear)
            } else {
                Err(Self::segment_fault(seg))
            };
        }
        let s = &self.seg[seg];
        if self.mode.flat
            && seg < sreg::FS
            && offset.wrapping_add(len) <= 1 << 32
            && !(write && s.access & (access::CODE | access::RW) != access::RW)
        {
            return Ok(offset);
        }
        self.check_segment(seg, offset, len, write)?;
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }

    fn segment_fault(seg: usize) -> Fault {
        if seg == sreg::SS { Fault::SS0 } else { Fault::GP0 }
    }

    fn check_segment(&self, seg: usize, offset: u64, len: u64, write: bool) -> Exec {
        let s = &self.seg[seg];
        let fault = Err(Self::segment_fault(seg));
        if self.mode.protected && !self.mode.v86 {
            let code = s.access & access::CODE != 0;
            let rw = s.access & access::RW != 0;
            let allowed = if write { rw && !code } else { rw || !code };
            if s.unusable || !allowed {
                return fault;
            }
        }
        let Some(last) = offset.checked_add(len.max(1) - 1) else { return fault };
        let expand_down = s.access & (access::CODE | access::DC) == access::DC;
        let top = if s.access & access::DB != 0 { 0xffff_ffff } else { 0xffff };
        let inside = match expand_down && self.mode.protected && !self.mode.v86 {
            true => offset > u64::from(s.limit) && last <= top,
            false => last <= u64::from(s.limit),
        };
        if inside { Ok(()) } else { fault }
    }

    /// The segment of the instruction's memory operand, see [`operand_segment`].
    pub fn memory_segment_number(&self, i: &Instruction) -> usize {
        operand_segment(i, self.mode.code)
    }

    /// The linear address of the instruction's memory operand of `len` bytes.
    pub fn memory_operand(&self, i: &Instruction, len: u64, write: bool) -> Exec<u64> {
        self.linear(self.memory_segment_number(i), self.effective_address(i), len, write)
    }

    /// Operand `n` as a `T`: register, immediate (already sign-extended by the decoder) or memory.
    pub fn operand<T: Word>(&mut self, i: &Instruction, n: u32) -> Exec<T> {
        match i.op_kind(n) {
            OpKind::Register => Ok(T::from_u64(self.reg(i.op_register(n)))),
            OpKind::Memory => {
                let linear = self.memory_operand(i, size_of::<T>() as u64, false)?;
                self.load(linear)
            }
            _ => Ok(T::from_u64(i.immediate(n))),
        }
    }

    /// Writes operand `n`: a register (by its own width) or memory (by `T`'s).
    pub fn set_operand<T: Word>(&mut self, i: &Instruction, n: u32, value: T) -> Exec {
        if i.op_kind(n) == OpKind::Register {
            self.set_reg(i.op_register(n), value.to_u64());
            return Ok(());
        }
        let linear = self.memory_operand(i, size_of::<T>() as u64, true)?;
        self.store(linear, value)
    }

    /// Where the instruction after `i` starts: RIP wrapped to the code size.
    pub fn next_rip(&self, i: &Instruction) -> u64 {
        self.rip.wrapping_add(i.len() as u64) & mask(u32::from(self.mode.code))
    }
}
