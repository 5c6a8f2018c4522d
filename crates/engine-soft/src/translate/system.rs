//! System instructions that kernels execute all the time, in line where they have nothing to ask anybody.

use std::mem::offset_of;

use iced_x86::{Code, Instruction};
use umbra_x86::reg::Rflags;
use umbra_x86::segment::{Segment, sreg};

use super::asm::{A, B, cond, group, op, state};
use super::block::Builder;
use super::memory::{Address, fast};
use super::site::Kind;
use crate::cpu::{Cpu, Mode, Msrs};
use crate::exec::Fast;
use crate::mmu::{Class, ENTRIES};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum System {
    /// CLI.
    Cli,
    /// STI.
    Sti,
    /// CLAC.
    Clac,
    /// STAC.
    Stac,
    /// SWAPGS.
    Swapgs,
    /// PUSHFQ.
    Pushf,
}

const RFLAGS: usize = offset_of!(Cpu, rflags);
const CPL: usize = offset_of!(Cpu, mode) + offset_of!(Mode, cpl);

impl System {
    /// In 64-bit mode.
    pub(super) fn of(code: Code) -> Option<Self> {
        Some(match code {
            Code::Cli => Self::Cli,
            Code::Sti => Self::Sti,
            Code::Clac => Self::Clac,
            Code::Stac => Self::Stac,
            Code::Swapgs => Self::Swapgs,
            Code::Pushfq => Self::Pushf,
            _ => return None,
        })
    }
}

impl Builder<'_> {
    /// Emits it. Status flags are in the state block, and lost in the host's.
    pub(super) fn system(&mut self, system: System) {
        let rflags = state(RFLAGS);
        match system {
            System::Cli => {
                self.unless_zero(CPL);
                self.asm.mi32(group::AND, rflags, !(Rflags::IF.bits() as i32));
            }
            // Interrupts stay off for one more instruction: attention is next looked at where the next block starts. If one waits
            // already, the interpreter sees to it.
            System::Sti => {
                self.unless_zero(CPL);
                self.unless_zero(offset_of!(Cpu, interrupt_hint));
                self.asm.mi32(group::OR, rflags, Rflags::IF.bits() as i32);
            }
            System::Clac => self.set_ac(false),
            System::Stac => self.set_ac(true),
            System::Swapgs => {
                self.unless_zero(CPL);
                let base = offset_of!(Cpu, seg) + sreg::GS * size_of::<Segment>() + offset_of!(Segment, base);
                let kernel = offset_of!(Cpu, msr) + offset_of!(Msrs, kernel_gs_base);
                self.asm.rm(op::MOV, A, state(base));
                self.asm.rm(op::MOV, B, state(kernel));
                self.asm.rm(op::MOV_STORE, B, state(base));
                self.asm.rm(op::MOV_STORE, A, state(kernel));
            }
            System::Pushf => self.push_flags(),
        }
    }

    /// Lets the interpreter do the instruction unless this byte of the state block is zero.
    fn unless_zero(&mut self, offset: usize) {
        let retry = self.asm.len();
        self.asm.test_mi8(state(offset), 0xff);
        let hole = self.asm.jcc(cond::NOT_EQUAL);
        self.slow_at(hole, Kind::Call, retry);
    }

    /// CLAC and STAC: another class of accesses.
    fn set_ac(&mut self, on: bool) {
        let ac = Rflags::AC.bits() as i32;
        let (group, value) = if on { (group::OR, ac) } else { (group::AND, !ac) };
        self.unless_zero(fast(offset_of!(Fast, keeps_ac)));
        self.asm.mi32(group, state(RFLAGS), value);
        let class = if on { Class::SupervisorAc } else { Class::Supervisor } as usize;
        self.asm.rm(op::MOV, A, state(fast(offset_of!(Fast, classes) + 8 * usize::from(on))));
        self.asm.rm(op::MOV_STORE, A, state(fast(offset_of!(Fast, tlb))));
        self.asm.mov_i32(A, (class * ENTRIES) as u32);
        self.asm.rm(op::MOV_STORE, A, state(fast(offset_of!(Fast, tlb_base))));
    }

    /// PUSHFQ: RF and VM read as zero.
    fn push_flags(&mut self) {
        const LOW: i32 = 0xd5;
        let hidden = (Rflags::RF | Rflags::VM | Rflags::OF).bits() as i32 | LOW;
        let kept = state(fast(offset_of!(Fast, target)));
        let status = state(fast(offset_of!(Fast, status)));
        // See `exec::flags` for the form of the status flags.
        self.asm.movzx16(A, status);
        self.asm.rr(op::MOV, B, A);
        self.asm.shift(group::SHR, B, 8);
        self.asm.ri(group::AND, B, LOW);
        self.asm.ri(group::AND, A, 1);
        self.asm.shift(group::SHL, A, 11);
        self.asm.rr(op::OR, B, A);
        self.asm.rm(op::MOV, A, state(RFLAGS));
        self.asm.ri(group::AND, A, !hidden);
        self.asm.rr(op::OR, B, A);
        self.asm.rm(op::MOV_STORE, B, kept);
        self.push_kept();
    }

    /// Pushes what `Fast::target` holds.
    fn push_kept(&mut self) {
        let word = self.word();
        let place = self.lookup(self.stack(-word), word as u8, true);
        self.asm.rm(op::MOV, B, state(fast(offset_of!(Fast, target))));
        self.store(B, place.mem());
        self.move_stack(-word);
    }

    /// PUSH of memory.
    pub(super) fn push_memory(&mut self, i: &Instruction) -> Option<()> {
        let address = Address::of(i, self.wide, self.offset, false)?;
        let place = self.lookup(address, self.word() as u8, false);
        self.load(A, place.mem());
        self.asm.rm(op::MOV_STORE, A, state(fast(offset_of!(Fast, target))));
        self.push_kept();
        Some(())
    }
}
