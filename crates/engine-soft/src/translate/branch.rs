//! Control flow and the stack.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, OpKind};

use super::asm::{A, B, Hole, at, cond, group, op, state};
use super::block::{Builder, NotFound, Stub};
use super::copy::{STACK, is_resident, resident};
use super::memory::{Address, fast};
use super::site::{Kind, Site};
use super::{JUMP_MASK, Jump};
use crate::exec::Fast;

const PAGE: i32 = 4096;

/// An entry of the table by linear address, in B.
#[must_use]
struct Found;

/// The number of the register that is operand `o`.
fn number(i: &Instruction, o: u32) -> u8 {
    i.op_register(o).full_register().number() as u8
}

impl Builder<'_> {
    /// Bytes of a word on the stack.
    pub(super) fn word(&self) -> i32 {
        if self.wide { 8 } else { 4 }
    }

    /// The stack's top, `disp` bytes further.
    pub(super) fn stack(&self, disp: i32) -> Address {
        if self.wide {
            Address::Near { base: STACK, disp }
        } else {
            Address::Direct { mem: at(STACK, disp), narrow: true }
        }
    }

    /// Moves the stack pointer. Flags stay.
    pub(super) fn move_stack(&mut self, by: i32) {
        match self.wide {
            true => self.asm.rm(op::LEA, STACK, at(STACK, by)),
            false => self.asm.rm32(op::LEA, STACK, at(STACK, by)),
        }
    }

    pub(super) fn load(&mut self, to: u8, from: super::asm::Mem) {
        if self.wide { self.asm.rm(op::MOV, to, from) } else { self.asm.rm32(op::MOV, to, from) }
    }

    pub(super) fn store(&mut self, from: u8, to: super::asm::Mem) {
        if self.wide { self.asm.rm(op::MOV_STORE, from, to) } else { self.asm.rm32(op::MOV_STORE, from, to) }
    }

    /// PUSH of a register or an immediate.
    pub(super) fn push(&mut self, i: &Instruction) {
        let word = self.word();
        let place = self.lookup(self.stack(-word), word as u8, true);
        let from = match i.op0_kind() {
            OpKind::Register => self.in_register(number(i, 0), B),
            _ => {
                let value = i.immediate(0);
                match i32::try_from(value as i64) {
                    Ok(short) if short >= 0 => self.asm.mov_i32(B, short as u32),
                    _ => self.asm.mov_i64(B, value),
                }
                B
            }
        };
        self.store(from, place.mem());
        self.move_stack(-word);
    }

    /// POP of a register.
    pub(super) fn pop(&mut self, i: &Instruction) {
        let word = self.word();
        let place = self.lookup(self.stack(0), word as u8, false);
        let to = number(i, 0);
        if is_resident(to) {
            self.load(B, place.mem());
            self.asm.rm(op::MOV_STORE, B, resident(to));
        } else {
            self.load(super::copy::host_of(to), place.mem());
        }
        if to != 4 {
            self.move_stack(word);
        }
    }

    /// LEAVE.
    pub(super) fn leave(&mut self) {
        const RBP: u8 = 5;
        let word = self.word();
        let frame = match self.wide {
            true => Address::Near { base: RBP, disp: 0 },
            false => Address::Direct { mem: at(RBP, 0), narrow: true },
        };
        let place = self.lookup(frame, word as u8, false);
        match self.wide {
            true => self.asm.rm(op::LEA, STACK, at(RBP, word)),
            false => self.asm.rm32(op::LEA, STACK, at(RBP, word)),
        }
        self.load(RBP, place.mem());
    }

    /// Pushes the address of the instruction after the one at hand.
    fn push_next(&mut self) {
        let word = self.word();
        let next = i32::from(self.offset) + i32::from(self.len);
        let place = self.lookup(self.stack(-word), word as u8, true);
        self.asm.rm(op::MOV, B, state(fast(offset_of!(Fast, page))));
        self.asm.rm(op::LEA, B, at(B, next));
        self.store(B, place.mem());
        self.move_stack(-word);
    }

    /// CALL relative.
    pub(super) fn call(&mut self, target: i64) -> Option<()> {
        let target = i32::try_from(target).ok()?;
        self.push_next();
        self.go_to(target, false);
        Some(())
    }

    /// The target of an indirect branch into A.
    fn indirect_target(&mut self, i: &Instruction) -> Option<()> {
        match i.op0_kind() {
            OpKind::Register => {
                let from = self.in_register(number(i, 0), A);
                match self.wide {
                    true if from != A => self.asm.rr(op::MOV, A, from),
                    true => {}
                    false => self.asm.rr32(op::MOV, A, from),
                }
            }
            _ => {
                let address = Address::of(i, self.wide, self.offset, false)?;
                let place = self.lookup(address, self.word() as u8, false);
                self.load(A, place.mem());
            }
        }
        Some(())
    }

    /// Lets the interpreter do the instruction if A is no canonical address.
    fn check_canonical(&mut self) {
        if !self.wide {
            return;
        }
        let retry = self.asm.len();
        self.asm.rr(op::MOV, B, A);
        self.asm.shift(group::SAR, B, 47);
        self.asm.ri(group::ADD, B, 1);
        self.asm.ri(group::CMP, B, 1);
        let hole = self.asm.jcc(cond::ABOVE);
        self.slow_at(hole, Kind::Call, retry);
    }

    /// JMP to a register or through memory.
    pub(super) fn jump_indirect(&mut self, i: &Instruction) -> Option<()> {
        self.indirect_target(i)?;
        let miss = self.interpreted_target();
        let entry = self.look_up_target(miss);
        self.jump_to(entry);
        Some(())
    }

    /// CALL to a register or through memory.
    pub(super) fn call_indirect(&mut self, i: &Instruction) -> Option<()> {
        let kept = state(fast(offset_of!(Fast, target)));
        self.indirect_target(i)?;
        self.check_canonical();
        self.asm.rm(op::MOV_STORE, A, kept);
        self.push_next();
        self.asm.rm(op::MOV, A, kept);
        let entry = self.look_up_target(NotFound::Leave);
        self.jump_to(entry);
        Some(())
    }

    /// RET.
    pub(super) fn ret(&mut self, i: &Instruction) {
        let drop = if i.op_count() > 0 { i32::from(i.immediate16()) } else { 0 };
        let place = self.lookup(self.stack(0), self.word() as u8, false);
        self.load(A, place.mem());
        let miss = self.interpreted_target();
        let entry = self.look_up_target(miss);
        self.move_stack(self.word() + drop);
        self.jump_to(entry);
    }

    /// Jcc. `pending` says that flags are needed there and nowhere but in the host's.
    pub(super) fn branch(&mut self, condition: u8, target: i64, pending: bool) -> Option<()> {
        let target = i32::try_from(target).ok()?;
        let hole = self.asm.jcc(condition);
        self.lead(hole, target, pending);
        Some(())
    }

    /// Lets `hole` lead to an address relative to this page.
    fn lead(&mut self, hole: Hole, target: i32, pending: bool) {
        match (0..PAGE).contains(&target) {
            true => self.link(hole, target, pending),
            false => self.stubs.push(Stub::Cross { hole, target, pending, offset: self.offset }),
        }
    }

    /// JRCXZ, JECXZ. Flags stay.
    pub(super) fn branch_if_zero(&mut self, i: &Instruction, target: i64, pending: bool) -> Option<()> {
        let target = i32::try_from(target).ok()?;
        self.asm.skip_unless_zero(i.code() == Code::Jecxz_rel8_32);
        let hole = self.asm.jmp();
        self.lead(hole, target, pending);
        Some(())
    }

    /// Goes on at an address relative to this page.
    pub(super) fn go_to(&mut self, target: i32, pending: bool) {
        if (0..PAGE).contains(&target) {
            let hole = self.asm.jmp();
            return self.link(hole, target, pending);
        }
        if pending {
            self.asm.spill_flags(state(fast(offset_of!(Fast, status))), A);
        }
        self.cross(target);
    }

    /// Lets `hole` lead to the block at an address of this page: at once if it is this one, later by patching if not.
    fn link(&mut self, hole: Hole, target: i32, pending: bool) {
        if target == i32::from(self.start) && !self.alone {
            return self.asm.fill(hole, if pending { 0 } else { self.entry });
        }
        let site = self.site(Site {
            at: super::asm::Asm::place(&hole) as u32,
            flags_live: pending,
            forward: target > i32::from(self.start) && !self.serializes,
            ..Site::new(Kind::Link, target as u16)
        });
        self.stubs.push(Stub::Exit { hole, site });
    }

    /// A site for the instruction at hand, an indirect branch, to be done by the interpreter.
    fn interpreted_target(&mut self) -> NotFound {
        NotFound::Interpret { site: self.site(Site::new(Kind::Target, self.offset)) }
    }

    /// Leaves the entry of the address in A in the table of translations by linear address in B.
    fn look_up_target(&mut self, miss: NotFound) -> Found {
        self.asm.rm(op::MOV, B, state(fast(offset_of!(Fast, jump_hash))));
        self.asm.crc32(B, A);
        self.asm.ri(group::AND, B, JUMP_MASK as i32);
        self.asm.rm(op::ADD, B, state(fast(offset_of!(Fast, jumps))));
        self.asm.rm(op::CMP_STORE, A, at(B, offset_of!(Jump, rip) as i32));
        let hole = self.asm.jcc(cond::NOT_EQUAL);
        self.stubs.push(Stub::NotFound { hole, miss });
        let keys = [fast(offset_of!(Fast, key)), fast(offset_of!(Fast, global_key))];
        self.asm.rm(op::MOV, A, state(keys[usize::from(self.upper)]));
        self.asm.rm(op::CMP_STORE, A, at(B, offset_of!(Jump, key) as i32));
        let hole = self.asm.jcc(cond::NOT_EQUAL);
        let back = self.asm.len();
        self.stubs.push(Stub::OtherKey { hole, key: keys[usize::from(!self.upper)], back, miss });
        Found
    }

    /// Goes on at what was found.
    fn jump_to(&mut self, Found: Found) {
        self.asm.rm(op::MOV, A, at(B, offset_of!(Jump, page) as i32));
        self.asm.rm(op::MOV_STORE, A, state(fast(offset_of!(Fast, page))));
        self.asm.jmp_m(at(B, offset_of!(Jump, code) as i32));
    }
}
