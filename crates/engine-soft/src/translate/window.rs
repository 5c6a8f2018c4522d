//! Windows: one lookup for several accesses.
//!
//! Accesses of a block whose addresses are a constant apart (a frame of the stack, the members of a structure, a loop unrolled)
//! share a window: the bytes from the first of them to the last. The first instruction that needs it looks up all of it, as one access
//! that must lie in one page, and keeps in the state block what is to be added to its addresses; the others have nothing to look up, and
//! leave flags alone.
//!
//! The lookup comes where flags are not needed, if there is such a place before the first access and the address is known there; for that a window
//! may have one access alone.
//!
//! Where the bytes are not one page's, or may not be accessed as all need it, the translation is left for another one of the same instruction: in
//! a block that has small windows, and from there in one that has none ([`Want`]).
//!
//! A window is good until the interpreter runs, which may change what an address means: where it did an instruction and a window is still needed, the
//! translation is left. Nobody else changes that while a translation runs, because other processors wait for it to end.

use std::mem::offset_of;

use iced_x86::{Code, Instruction, OpKind, Register};

use super::asm::{A, B, at, cond, group, op, state};
use super::block::{Builder, Item, Stub};
use super::copy::{STACK, host_of, is_resident};
use super::form::Form;
use super::memory::{Address, Base, HostOperand, fast};
use super::site::{Kind, Site};
use crate::decode::Want;
use crate::exec::Fast;
use crate::mmu::Entry;

/// Windows that are open at a time.
pub(crate) const SLOTS: usize = 8;
/// Bytes that a window may have for each of its accesses: the wider, the more often it is not one page's.
const EACH: i32 = 128;
/// Displacements that are followed.
const FAR: u32 = 1 << 28;
const RSP: u8 = 4;
const RBP: u8 = 5;
const WORD: i32 = 8;

/// What a register holds: what it held since it was written last, and what has been added since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number {
    register: u8,
    /// Counts how often it has been written.
    version: u32,
    plus: i32,
}

/// What addresses of a window start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    Nothing,
    /// A register, and its version.
    Register(u8, u32),
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
    /// The first instruction from which on nothing runs that the interpreter does.
    since: usize,
    /// Where in the block it is looked up, if before its first use, and what is looked up there.
    ahead: Option<(usize, Address)>,
    /// Where in the state block it is, once that is decided.
    slot: Option<usize>,
}

/// The windows that are open, by slot.
pub(super) type Open = [Option<u16>; SLOTS];

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
    pub open: Open,
    /// Bytes that each may have.
    reach: i32,
    /// What block goes on where one cannot be looked up.
    narrower: Want,
}

impl Windows {
    /// Finds them in 64-bit code. `live` are the flags that are needed before each instruction.
    pub(super) fn of(items: &[Item], live: &[u32], want: Want) -> Self {
        let (reach, narrower) = match want {
            Want::Small => (128, Want::Plain),
            Want::Plain | Want::Alone => return Self::default(),
            Want::All => (1024, Want::Small),
        };
        let mut windows = Self { reach, narrower, ..Self::default() };
        let (mut since, mut first) = (0, 0);
        Numbers::go_past(items, |n, item, numbers| {
            if ends_windows(item) {
                (since, first) = (n + 1, windows.all.len());
            }
            for access in accesses(item).into_iter().flatten() {
                windows.add(numbers, n, access, first, since);
            }
        });
        windows.look_ahead(items, live);
        windows.arrange();
        windows
    }

    /// Puts an access into a window: one from number `first` on, or a new one.
    fn add(&mut self, numbers: &Numbers, item: usize, access: Access, first: usize, since: usize) {
        let Some((root, at)) = numbers.root(access.address).filter(|(_, at)| at.unsigned_abs() < FAR) else {
            return;
        };
        let to = at + i32::from(access.len);
        let fits = |w: &Window| {
            let len = w.to.max(to) - w.from.min(at);
            w.root == root && len <= self.reach.min(EACH * (w.uses + 1))
        };
        let found = self.all[first..].iter().position(fits).map(|n| first + n);
        let window = found.unwrap_or(self.all.len());
        match self.all.get_mut(window) {
            Some(w) => {
                (w.from, w.to) = (w.from.min(at), w.to.max(to));
                (w.write, w.uses, w.last) = (w.write || access.write, w.uses + 1, item);
            }
            None => {
                let (from, write, ahead, slot) = (at, access.write, None, None);
                let (first, last) = (item, item);
                self.all.push(Window { root, from, to, write, uses: 1, first, last, since, ahead, slot });
            }
        }
        self.uses.push(Use { item, access, window, at });
    }

    /// Finds the last place where each can be looked up, of those whose first access needs flags.
    fn look_ahead(&mut self, items: &[Item], live: &[u32]) {
        if !self.all.iter().any(|w| live[w.first] != 0 && w.since < w.first) {
            return;
        }
        Numbers::go_past(items, |n, _, numbers| {
            let wants = |w: &Window| {
                live[w.first] != 0 && (w.since..w.first).contains(&n) && (live[n] == 0 || w.since == n)
            };
            for window in self.all.iter_mut().filter(|w| wants(w)) {
                let address = numbers.address(window.root, window.from);
                window.ahead = address.map(|address| (n, address)).or(window.ahead);
            }
        });
    }

    /// Gives a place to those that are worth it, as far as there are places.
    fn arrange(&mut self) {
        let mut order: Vec<usize> = (0..self.all.len()).collect();
        order.sort_by_key(|n| self.all[*n].start());
        let mut taken: [Option<usize>; SLOTS] = [None; SLOTS];
        for n in order {
            let window = &mut self.all[n];
            if window.uses > 1 || window.ahead.is_some() {
                let start = window.start();
                window.slot = taken.iter().position(|until| until.is_none_or(|until| until < start));
            }
            if let Some(slot) = window.slot {
                taken[slot] = Some(window.last);
            }
        }
        let Self { all, uses, .. } = self;
        uses.retain(|u| all[u.window].slot.is_some());
    }

    fn is_open(&self, window: usize) -> bool {
        self.open.contains(&Some(window as u16))
    }

    /// Whether the access of instruction `item`, its only one, is in an open window.
    pub(super) fn serve(&self, item: usize) -> bool {
        self.uses.iter().any(|u| u.item == item && self.is_open(u.window))
    }

    /// Whether one that is open is needed after instruction `item`.
    pub(super) fn are_needed_after(&self, item: usize) -> bool {
        self.open.iter().flatten().any(|n| self.all[usize::from(*n)].last > item)
    }
}

impl Window {
    /// The instruction before or in which it is looked up.
    fn start(&self) -> usize {
        self.ahead.map_or(self.first, |(n, _)| n)
    }
}

/// Whether the interpreter does it, or what addresses mean is another matter after it.
fn ends_windows(item: &Item) -> bool {
    matches!(item.form, Form::Interpret | Form::System(_)) || item.crosses()
}

/// What an instruction accesses.
fn accesses(item: &Item) -> [Option<Access>; 2] {
    let i = &item.instruction;
    if item.crosses() {
        return [None; 2];
    }
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

/// What general registers hold. That two of them hold the same is not followed: the interpreter may do an instruction between, after which the validator
/// does not know it any more.
#[derive(Debug)]
struct Numbers([Number; 16]);

impl Numbers {
    /// Goes past instructions, with what registers hold before each.
    fn go_past(items: &[Item], mut each: impl FnMut(usize, &Item, &Self)) {
        let mut numbers = Self(std::array::from_fn(|n| Number { register: n as u8, version: 0, plus: 0 }));
        for (n, item) in items.iter().enumerate() {
            each(n, item, &numbers);
            numbers.follow(item);
        }
    }

    fn get(&self, guest: u8) -> Number {
        self.0[usize::from(guest)]
    }

    /// A register is written.
    fn forget(&mut self, guest: u8) {
        let number = &mut self.0[usize::from(guest)];
        (number.version, number.plus) = (number.version + 1, 0);
    }

    /// So much is added to a register.
    fn add(&mut self, guest: u8, more: i32) {
        match self.get(guest).plus.checked_add(more).filter(|plus| plus.unsigned_abs() < FAR) {
            Some(plus) => self.0[usize::from(guest)].plus = plus,
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
                let Number { version, plus, .. } = self.get(base);
                Some((Root::Register(base, version), plus.checked_add(disp)?))
            }
            (None, None) => Some((Root::Nothing, disp)),
        };
        match address {
            Address::Near { base, disp } => sum(Some(guest(base)), None, disp),
            Address::Page { disp } => Some((Root::Page, disp)),
            Address::Direct { mem, narrow: false } => {
                sum(mem.base.map(guest), mem.index.map(|(n, shift)| (guest(n), shift)), mem.disp)
            }
            Address::Kept { base, index, disp, narrow: false, segment: None } => match base {
                Base::Register(base) => sum(Some(base), index, disp),
                Base::None => sum(None, index, disp),
                Base::Page => None,
            },
            _ => None,
        }
    }

    /// An address so many bytes from a root, if registers still hold what it takes.
    fn address(&self, root: Root, at: i32) -> Option<Address> {
        let kept = |base, index, disp| Address::Kept { base, index, disp, narrow: false, segment: None };
        let holder = |number: Number| (self.get(number.register) == number).then_some(number.register);
        match root {
            Root::Page => Some(Address::Page { disp: at }),
            Root::Nothing => Some(kept(Base::None, None, at)),
            Root::Register(base, version) => {
                let Number { plus, .. } = Some(self.get(base)).filter(|n| n.version == version)?;
                let disp = at.checked_sub(plus)?;
                Some(match is_resident(base) {
                    true => kept(Base::Register(base), None, disp),
                    false => Address::Near { base: host_of(base), disp },
                })
            }
            Root::Sum(base, index, shift) => {
                let index = (holder(index)?, shift);
                let base = match base {
                    Some(number) => Base::Register(holder(number)?),
                    None => Base::None,
                };
                Some(kept(base, Some(index), at))
            }
        }
    }

    /// Goes past an instruction.
    fn follow(&mut self, item: &Item) {
        let i = &item.instruction;
        let number = |r: Register| r.full_register().number() as u8;
        match item.form {
            _ if ends_windows(item) => (0..16).for_each(|n| self.forget(n)),
            Form::Push | Form::PushMemory => self.add(RSP, -WORD),
            Form::Pop => {
                self.add(RSP, WORD);
                self.forget(number(i.op0_register()));
            }
            Form::Leave => [RSP, RBP].into_iter().for_each(|n| self.forget(n)),
            Form::Lea => match moved(i) {
                Some((n, more)) => self.add(n, more),
                None => self.forget(number(i.op0_register())),
            },
            Form::Copy(copied) => match moved(i) {
                Some((n, more)) => self.add(n, more),
                None => (0..16).filter(|n| copied.writes >> n & 1 != 0).for_each(|n| self.forget(n)),
            },
            _ => {}
        }
    }
}

/// If an instruction adds a constant to a register: which, how much.
fn moved(i: &Instruction) -> Option<(u8, i32)> {
    if i.op0_kind() != OpKind::Register {
        return None;
    }
    let to = i.op0_register().full_register().number() as u8;
    let immediate = || i32::try_from(i.immediate(1) as i64).ok();
    match i.code() {
        Code::Lea_r64_m if i.memory_base() == i.op0_register() && i.memory_index() == Register::None => {
            Some((to, i32::try_from(i.memory_displacement64() as i64).ok()?))
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
            let from = self.windows.all[window].from;
            self.open(window, slot, address.plus(from - at));
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

    /// Looks up windows that are to be looked up before the instruction at hand.
    pub(super) fn open_ahead(&mut self) {
        for number in 0..self.windows.all.len() {
            let Window { ahead, slot, .. } = self.windows.all[number];
            if let (Some((item, first)), Some(slot)) = (ahead, slot)
                && item == self.item
            {
                self.open(number, slot, first);
                self.flags.host = false;
            }
        }
    }

    /// Looks a window up, which is to start at `first`.
    fn open(&mut self, number: usize, slot: usize, first: Address) {
        let window = self.windows.all[number];
        let beyond = window.to - window.from - 1;
        let retry = self.asm.len();
        let hole = self.compare(first, beyond, window.write);
        let site = self.slow_site(Kind::Window { write: window.write }, retry);
        let kind = Kind::Narrower(self.windows.narrower);
        let out = Site { forward: self.offset > self.start, ..Site::new(kind, self.offset) };
        let out = self.site(out);
        self.stubs.push(Stub::Window { hole, site, first, beyond, out });
        self.asm.rm(op::MOV, A, at(B, offset_of!(Entry, addend) as i32));
        self.asm.rm(op::MOV_STORE, A, state(place_of(slot)));
        self.asm.addend = Some(slot);
        self.windows.open[slot] = Some(number as u16);
    }

    /// A window's lookup found nothing. If its bytes are one page's that may be filled, else the block is left by site `out`.
    pub(super) fn closed_window(&mut self, first: Address, beyond: i32, site: u32, out: u32) {
        self.effective(A, first);
        self.asm.rr(op::MOV, B, A);
        self.asm.rm(op::LEA, A, at(A, beyond));
        self.asm.rr(op::XOR, B, A);
        self.asm.shift(group::SHR, B, 12);
        let same = self.asm.jcc(cond::EQUAL);
        self.site_mut(site).resume = self.asm.len() as u32;
        let jump = self.asm.jmp();
        self.site_mut(out).at = super::asm::Asm::place(&jump) as u32;
        self.asm.here(jump);
        self.leave_by(out);
        self.asm.here(same);
        self.asm.go_with(site, state(fast(offset_of!(Fast, slow))));
    }
}

/// Where in the state block a window is.
fn place_of(n: usize) -> usize {
    fast(offset_of!(Fast, windows)) + 8 * n
}
