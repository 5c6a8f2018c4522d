//! Windows: one lookup for several accesses.
//!
//! Accesses of a block whose addresses are a constant apart (a frame of the stack, the members of a structure, a loop unrolled)
//! share a window: the bytes from the first of them to the last. The first instruction that needs it looks up all of it, as one access
//! that must lie in one page, and keeps in the state block what is to be added to its addresses; the others have nothing to look up, and
//! leave flags alone.
//!
//! Where the bytes are not one page's, or may not be accessed as all need it, the translation is left for another one of the same instruction, in
//! a block that has no windows ([`crate::decode::Want::Plain`]).
//!
//! A window is good until the interpreter runs, which may change what an address means: where it did an instruction and a window is still needed, the
//! translation is left. Nobody else changes that while a translation runs, because other processors wait for it to end.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, OpKind, Register};

use super::asm::{A, B, at, cond, group, op, state};
use super::block::{Builder, Item, Stub};
use super::copy::STACK;
use super::form::Form;
use super::memory::{Address, Base, HostOperand, fast};
use super::site::{Kind, Site};
use crate::exec::Fast;
use crate::mmu::Entry;

/// Windows that are open at a time.
pub(crate) const SLOTS: usize = 8;
/// Bytes that a window may have...
const REACH: i32 = 1024;
/// ... and for each of its accesses: the wider, the more often it is not one page's.
const EACH: i32 = 128;
/// Displacements that are followed.
const FAR: u32 = 1 << 28;
const RSP: u8 = 4;
const RBP: u8 = 5;
const WORD: i32 = 8;

/// A number that is not known: a name, and what has been added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number {
    name: u32,
    plus: i32,
}

/// What addresses of a window start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    /// A number's name.
    Name(u32),
    /// The page of the code.
    Page,
    /// A base, and an index with the shift of its scale.
    Sum(Option<Number>, Number, u8),
}

/// Accesses that share a lookup.
#[derive(Debug, Clone, Copy)]
struct Window {
    root: Root,
    /// The bytes from its root.
    from: i32,
    to: i32,
    write: bool,
    uses: i32,
    /// The first and the last instruction that need it.
    first: usize,
    last: usize,
    /// Where in the state block it is, once that is decided.
    slot: Option<usize>,
}

/// An access in a window.
#[derive(Debug, Clone, Copy)]
struct Use {
    item: usize,
    access: Access,
    window: usize,
    /// Bytes from the window's root.
    at: i32,
}

/// An access of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Access {
    address: Address,
    len: u8,
    write: bool,
}

/// The windows of a block.
#[derive(Debug, Default)]
pub(super) struct Windows {
    all: Vec<Window>,
    uses: Vec<Use>,
    /// Those that are open, by number.
    pub open: u128,
}

impl Windows {
    /// Finds them in 64-bit code.
    pub(super) fn of(items: &[Item]) -> Self {
        let mut numbers = Numbers::new();
        let mut windows = Self::default();
        let mut since = 0;
        for (n, item) in items.iter().enumerate() {
            if matches!(item.form, Form::Interpret | Form::System(_)) {
                since = windows.all.len();
                numbers = Numbers::new();
                continue;
            }
            for access in accesses(item).into_iter().flatten() {
                windows.add(&numbers, n, access, since);
            }
            numbers.follow(item);
        }
        windows.arrange();
        windows
    }

    /// Puts an access into a window: one from `since` on, or a new one.
    fn add(&mut self, numbers: &Numbers, item: usize, access: Access, since: usize) {
        let Some((root, at)) = numbers.root(access.address).filter(|(_, at)| at.unsigned_abs() < FAR) else {
            return;
        };
        let to = at + i32::from(access.len);
        let fits = |w: &Window| {
            let len = w.to.max(to) - w.from.min(at);
            w.root == root && len <= REACH.min(EACH * (w.uses + 1))
        };
        let found = self.all[since..].iter().position(fits).map(|n| since + n);
        let window = found.unwrap_or(self.all.len());
        match self.all.get_mut(window) {
            Some(w) => {
                (w.from, w.to) = (w.from.min(at), w.to.max(to));
                (w.write, w.uses, w.last) = (w.write || access.write, w.uses + 1, item);
            }
            None => {
                let (from, write) = (at, access.write);
                self.all.push(Window { root, from, to, write, uses: 1, first: item, last: item, slot: None });
            }
        }
        self.uses.push(Use { item, access, window, at });
    }

    /// Gives a place to those that are worth it, as far as there are places.
    fn arrange(&mut self) {
        let mut taken: [Option<usize>; SLOTS] = [None; SLOTS];
        for window in self.all.iter_mut().filter(|w| w.uses > 1) {
            window.slot = taken.iter().position(|until| until.is_none_or(|until| until < window.first));
            if let Some(slot) = window.slot {
                taken[slot] = Some(window.last);
            }
        }
        let Self { all, uses, .. } = self;
        uses.retain(|u| all[u.window].slot.is_some());
    }

    fn is_open(&self, window: usize) -> bool {
        self.open >> window & 1 != 0
    }

    /// Whether instruction `item` looks nothing up, because all that it accesses is in open windows.
    pub(super) fn serve(&self, item: usize, accesses: usize) -> bool {
        let mut own = self.uses.iter().filter(|u| u.item == item);
        own.clone().count() == accesses && own.all(|u| self.is_open(u.window))
    }

    /// Whether one that is open is needed after instruction `item`.
    pub(super) fn are_needed_after(&self, item: usize) -> bool {
        self.all.iter().enumerate().any(|(n, w)| self.is_open(n) && w.last > item)
    }
}

/// What an instruction accesses.
fn accesses(item: &Item) -> [Option<Access>; 2] {
    let i = &item.instruction;
    let memory =
        |len, write| Address::of(i, true, item.offset, false).map(|address| Access { address, len, write });
    let near =
        |base, disp, write| Some(Access { address: Address::Near { base, disp }, len: WORD as u8, write });
    let push = near(STACK, -WORD, true);
    let has_memory = i.op0_kind() == OpKind::Memory;
    match item.form {
        Form::Copy(copied) if copied.len > 0 && !copied.masked => [memory(copied.len, copied.write), None],
        Form::Push | Form::Call => [push, None],
        Form::Pop | Form::Return => [near(STACK, 0, false), None],
        Form::Leave => [near(RBP, 0, false), None],
        Form::PushMemory => [memory(WORD as u8, false), push],
        Form::CallIndirect if has_memory => [memory(WORD as u8, false), push],
        Form::CallIndirect => [push, None],
        Form::JumpIndirect if has_memory => [memory(WORD as u8, false), None],
        _ => [None; 2],
    }
}

/// What general registers hold.
#[derive(Debug)]
struct Numbers {
    registers: [Number; 16],
    last: u32,
}

impl Numbers {
    /// The name of the number zero.
    const ZERO: u32 = u32::MAX;

    fn new() -> Self {
        Self { registers: std::array::from_fn(|n| Number { name: n as u32, plus: 0 }), last: 15 }
    }

    fn get(&self, guest: u8) -> Number {
        self.registers[usize::from(guest)]
    }

    /// A register is written.
    fn forget(&mut self, guest: u8) {
        self.last += 1;
        self.registers[usize::from(guest)] = Number { name: self.last, plus: 0 };
    }

    /// A register is what `from` holds, and so much more.
    fn set(&mut self, guest: u8, from: u8, more: i32) {
        let Number { name, plus } = self.get(from);
        match plus.checked_add(more).filter(|plus| plus.unsigned_abs() < FAR) {
            Some(plus) => self.registers[usize::from(guest)] = Number { name, plus },
            None => self.forget(guest),
        }
    }

    /// What an address starts from, and how far from there it is.
    fn root(&self, address: Address) -> Option<(Root, i32)> {
        let guest = |host| if host == STACK { RSP } else { host };
        let sum = |base: Option<u8>, index: Option<(u8, u8)>, disp: i32| match (base, index) {
            (base, Some((index, shift))) => {
                Some((Root::Sum(base.map(|n| self.get(n)), self.get(index), shift), disp))
            }
            (Some(base), None) => {
                let Number { name, plus } = self.get(base);
                Some((Root::Name(name), plus.checked_add(disp)?))
            }
            (None, None) => Some((Root::Name(Self::ZERO), disp)),
        };
        match address {
            Address::Near { base, disp } => sum(Some(guest(base)), None, disp),
            Address::Page { disp } => Some((Root::Page, disp)),
            Address::Direct { mem, narrow: false } => {
                sum(mem.base.map(guest), mem.index.map(|(n, shift)| (guest(n), shift)), mem.disp)
            }
            Address::Kept { base, index, disp, narrow: false, segment: None } => match base {
                Base::Page => Some((Root::Page, disp)),
                Base::Register(base) => sum(Some(base), index, disp),
                Base::None => sum(None, index, disp),
            },
            _ => None,
        }
    }

    /// Goes past an instruction.
    fn follow(&mut self, item: &Item) {
        let i = &item.instruction;
        let number = |r: Register| r.full_register().number() as u8;
        match item.form {
            Form::Push | Form::PushMemory => self.set(RSP, RSP, -WORD),
            Form::Pop => {
                self.set(RSP, RSP, WORD);
                self.forget(number(i.op0_register()));
            }
            Form::Leave => {
                self.set(RSP, RBP, WORD);
                self.forget(RBP);
            }
            Form::Lea => match moved(i) {
                Some((from, more)) => self.set(number(i.op0_register()), from, more),
                None => self.forget(number(i.op0_register())),
            },
            Form::Copy(copied) => match moved(i) {
                Some((from, more)) => self.set(number(i.op0_register()), from, more),
                None => (0..16).filter(|n| copied.writes >> n & 1 != 0).for_each(|n| self.forget(n)),
            },
            _ => {}
        }
    }
}

/// If an instruction makes its first operand, a register, another register's value and so much more: which, how much.
fn moved(i: &Instruction) -> Option<(u8, i32)> {
    if i.op0_kind() != OpKind::Register {
        return None;
    }
    let to = i.op0_register().full_register().number() as u8;
    let immediate = || i32::try_from(i.immediate(1) as i64).ok();
    match i.code() {
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64 if i.op1_kind() == OpKind::Register => {
            Some((i.op1_register().number() as u8, 0))
        }
        Code::Lea_r64_m if i.memory_base().is_gpr64() && i.memory_index() == Register::None => {
            Some((i.memory_base().number() as u8, i32::try_from(i.memory_displacement64() as i64).ok()?))
        }
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_RAX_imm32 => Some((to, immediate()?)),
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_RAX_imm32 => {
            Some((to, immediate()?.checked_neg()?))
        }
        Code::Inc_rm64 => Some((to, 1)),
        Code::Dec_rm64 => Some((to, -1)),
        _ => None,
    }
}

impl Builder<'_> {
    /// The operand at an address in a window, which is opened if it is not open.
    pub(super) fn windowed(&mut self, address: Address, len: u8, write: bool) -> Option<HostOperand> {
        let access = Access { address, len, write };
        let found = self.windows.uses.iter().find(|u| u.item == self.item && u.access == access);
        let Use { window, at, .. } = *found?;
        let slot = self.windows.all[window].slot?;
        if !self.windows.is_open(window) {
            self.open(window, slot, address, at);
        }
        let addend = state(place_of(slot));
        if let Address::Near { base, disp } = address {
            if self.asm.addend != Some(slot) {
                self.asm.rm(op::MOV, A, addend);
                self.asm.addend = Some(slot);
            }
            return Some(HostOperand { base: A, index: Some(base), disp });
        }
        self.effective(A, address);
        self.asm.rm(op::MOV, B, addend);
        self.asm.rm(op::LEA, A, super::asm::Mem { gs: false, base: Some(A), index: Some((B, 0)), disp: 0 });
        Some(HostOperand { base: A, index: None, disp: 0 })
    }

    /// Looks a window up, for an access at `address` that is `at` bytes from its root.
    fn open(&mut self, number: usize, slot: usize, address: Address, at_root: i32) {
        let window = self.windows.all[number];
        let (first, beyond) = (address.plus(window.from - at_root), window.to - window.from - 1);
        let retry = self.asm.len();
        let hole = self.compare(first, beyond, window.write, None);
        let site = self.slow_site(Kind::Window { write: window.write }, retry);
        let plain = Site { forward: self.offset > self.start, ..Site::new(Kind::Plain, self.offset) };
        let plain = self.site(plain);
        self.stubs.push(Stub::Window { hole, site, first, beyond, plain });
        self.asm.rm(op::MOV, A, at(B, offset_of!(Entry, addend) as i32));
        self.asm.rm(op::MOV_STORE, A, state(place_of(slot)));
        self.asm.addend = Some(slot);
        self.windows.open |= 1 << number;
    }

    /// A window's lookup found nothing. If its bytes are one page's that may be filled, else the block goes on without windows.
    pub(super) fn closed_window(&mut self, first: Address, beyond: i32, site: u32, plain: u32) {
        self.effective(A, first);
        self.asm.rr(op::MOV, B, A);
        self.asm.rm(op::LEA, A, at(A, beyond));
        self.asm.rr(op::XOR, B, A);
        self.asm.shift(group::SHR, B, 12);
        let same = self.asm.jcc(cond::EQUAL);
        self.site_mut(site).resume = self.asm.len() as u32;
        let out = self.asm.jmp();
        self.site_mut(plain).at = super::asm::Asm::place(&out) as u32;
        self.asm.here(out);
        self.leave_by(plain);
        self.asm.here(same);
        self.asm.ri(group::AND, A, -4096);
        self.asm.rm(op::OR, A, state(fast(offset_of!(Fast, context))));
        self.asm.go_with(site, state(fast(offset_of!(Fast, slow))));
    }
}

/// Where in the state block a window is.
fn place_of(n: usize) -> usize {
    fast(offset_of!(Fast, windows)) + 8 * n
}
