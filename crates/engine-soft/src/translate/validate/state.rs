//! What is known of registers and words of the state block at a point of a translation.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::offset_of;

use iced_x86::{Code as C, Instruction, InstructionInfo, InstructionInfoFactory, OpAccess, OpKind, Register};

use super::field::{self, Kind};
use super::{Given, Why};
use crate::cpu::Cpu;
use crate::exec::Fast;
use crate::mmu::{ENTRIES, Entry};
use crate::translate::border::Border;
use crate::translate::{JUMP_MASK, Jump};

const PAGE: i64 = 4096;
/// The shift that makes an offset into a class of the TLB of an address, with [`INDEX`].
const INDEX_SHIFT: u64 = 12 - size_of::<Entry>().trailing_zeros() as u64;
const INDEX: u64 = ((ENTRIES - 1) * size_of::<Entry>()) as u64;

/// A number: one that has a name, and what has been added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Number {
    name: u32,
    plus: i64,
}

/// The number zero has this name.
const ZERO: u32 = 0;

/// Bytes that have been found to be one page's, which may be accessed: from `first` to `last`, both relative to the number `name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Checked {
    name: u32,
    first: i64,
    last: i64,
    write: bool,
}

/// What a register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// A number that the guest may know.
    Number(Number),
    /// An address on its way to a TLB entry: shifted, then an offset into the class.
    Shifted(Number),
    Index(Number),
    /// An address and the context; then the offset in its page, if the fact about it is one.
    InContext(Number),
    Offset(Number, bool),
    /// The key that entries of the table by linear address must be of.
    Key,
    /// An entry's offset in that table.
    Place,
    // From here on: addresses of the host.
    /// The TLB entry that an address has.
    Entry(Number),
    /// What the TLB adds to addresses among those checked; then a host address.
    Addend(Checked),
    Host(Number, Checked),
    /// The attention word or the version word.
    Word,
    /// What is known of the next page.
    Border,
    /// An entry of the table by linear address, by a number of its own.
    Jump(u32),
    /// The first TLB entry of a class.
    Class,
    /// What is of no use any more, or never was.
    Stale,
}

/// What the flags tell if they say "equal".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fact {
    Checked(Checked),
    /// An entry is of the address, of the key.
    Rip(u32),
    Key(u32),
}

/// What an instruction comes to.
enum Outcome {
    /// Its first operand holds this.
    Value(Value),
    /// Nothing that is followed.
    Other,
    /// The same, of a host address for which that is right.
    Used,
}

/// How a number is made of others: base, index and its scale, displacement; cut to 32 bits.
type Sum = (Option<Number>, Option<(Number, u32)>, i64, bool);

/// Names of numbers.
#[derive(Debug, Default)]
pub(super) struct Names {
    last: u32,
    sums: HashMap<Sum, u32>,
}

impl Names {
    fn fresh(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    fn number(&mut self) -> Value {
        Value::Number(Number { name: self.fresh(), plus: 0 })
    }

    /// What LEA makes of its operands.
    fn sum(&mut self, base: Option<Number>, index: Option<(Number, u32)>, disp: i64, narrow: bool) -> Number {
        let (key, plus) = match (base, index) {
            _ if narrow => ((base, index, disp, true), 0),
            (None, None) => return Number { name: ZERO, plus: disp },
            (Some(n), None) | (None, Some((n, 1))) => {
                return Number { name: n.name, plus: n.plus.wrapping_add(disp) };
            }
            _ => ((base, index, 0, false), disp),
        };
        if let Some(name) = self.sums.get(&key) {
            return Number { name: *name, plus };
        }
        let name = self.fresh();
        self.sums.insert(key, name);
        Number { name, plus }
    }
}

impl Value {
    /// So much more, if it is a number.
    fn plus(self, more: i64) -> Option<Self> {
        match self {
            Self::Number(n) => Some(Self::Number(Number { plus: n.plus.wrapping_add(more), ..n })),
            _ => None,
        }
    }

    fn is_address(self) -> bool {
        use Value as V;
        let is_known =
            matches!(self, V::Entry(_) | V::Addend(_) | V::Host(..) | V::Word | V::Border | V::Jump(_));
        is_known || matches!(self, V::Class | V::Stale)
    }
}

/// The state.
#[derive(Debug, Clone)]
pub(super) struct State {
    registers: [Value; 16],
    /// Words of the state block, by offset.
    words: BTreeMap<usize, Value>,
    facts: BTreeSet<Fact>,
    /// The fact if the zero flag is set.
    equal: Option<Fact>,
    /// The fact if the last comparison was not "above".
    within: Option<Fact>,
}

fn number_of(r: Register) -> Option<usize> {
    r.is_gpr().then(|| r.full_register().number())
}

fn is_scratch(n: usize) -> bool {
    matches!(n, 10 | 11)
}

impl State {
    pub(super) fn unknown(names: &mut Names) -> Self {
        Self {
            // The scratch registers may hold anything of the engine's.
            registers: std::array::from_fn(|n| if is_scratch(n) { Value::Stale } else { names.number() }),
            words: BTreeMap::new(),
            facts: BTreeSet::new(),
            equal: None,
            within: None,
        }
    }

    /// What is known if either is so.
    pub(super) fn meet(mut self, other: &Self, names: &mut Names) -> Self {
        for (mine, theirs) in self.registers.iter_mut().zip(other.registers) {
            if *mine != theirs {
                let address = mine.is_address() || theirs.is_address();
                *mine = if address { Value::Stale } else { names.number() };
            }
        }
        self.words.retain(|offset, value| other.words.get(offset) == Some(value));
        self.facts.retain(|fact| other.facts.contains(fact));
        self.equal = self.equal.filter(|_| self.equal == other.equal);
        self.within = self.within.filter(|_| self.within == other.within);
        self
    }

    /// The engine may have run here, but not the guest: no more is known of scratch registers and of the TLB.
    pub(super) fn settle(&mut self) {
        const PAGE: usize = offset_of!(Cpu, fast) + offset_of!(Fast, page);
        const REGISTERS: usize = size_of::<[u64; 16]>();
        for (n, value) in self.registers.iter_mut().enumerate() {
            if is_scratch(n) {
                *value = Value::Stale;
            }
        }
        self.words.retain(|offset, value| *offset < REGISTERS || *offset == PAGE || value.is_address());
        self.facts.clear();
        (self.equal, self.within) = (None, None);
    }

    /// Goes past a branch, if `i` is one.
    pub(super) fn branch(&mut self, i: &Instruction, taken: bool) {
        let told = match i.code() {
            C::Jne_rel8_64 | C::Jne_rel32_64 if !taken => self.equal,
            C::Je_rel8_64 | C::Je_rel32_64 if taken => self.equal,
            C::Ja_rel8_64 | C::Ja_rel32_64 if !taken => self.within,
            _ => None,
        };
        self.facts.extend(told);
    }

    fn get(&self, r: Register) -> Option<Value> {
        number_of(r).map(|n| self.registers[n])
    }

    /// The number in a register; of what else it holds no more is known than that it is one.
    fn number(&mut self, r: Register, names: &mut Names) -> Result<Option<Number>, Why> {
        let Some(n) = number_of(r) else { return Ok(None) };
        if self.registers[n].is_address() {
            return Err(Why::Leak);
        }
        if !matches!(self.registers[n], Value::Number(_)) {
            self.registers[n] = names.number();
        }
        match self.registers[n] {
            Value::Number(number) => Ok(Some(number)),
            _ => Err(Why::Leak),
        }
    }

    /// Goes past an instruction that is no direct branch.
    pub(super) fn step(
        &mut self,
        i: &Instruction,
        given: &Given,
        factory: &mut InstructionInfoFactory,
        names: &mut Names,
    ) -> Result<(), Why> {
        let has_memory = i.op_kinds().any(|k| k == OpKind::Memory);
        let outcome = match i.code() {
            C::Lea_r64_m | C::Lea_r32_m | C::Lea_r16_m => self.load_address(i, names)?,
            _ if has_memory => self.memory(i, factory, names)?,
            _ => self.compute(i, given, names)?,
        };
        if i.code() == C::Jmp_rm64 {
            return Ok(());
        }
        let info = factory.info(i);
        let written = info.used_registers().iter().filter(|u| writes(u.access()));
        let written: Vec<usize> = written.filter_map(|u| number_of(u.register())).collect();
        let outcome = match outcome {
            Outcome::Value(value) => {
                let to = number_of(i.op0_register()).ok_or(Why::Leak)?;
                match value {
                    Value::Number(_) => Some((to, value)),
                    _ if is_scratch(to) => Some((to, value)),
                    _ if value.is_address() => return Err(Why::Leak),
                    _ => None,
                }
            }
            Outcome::Other => {
                self.keeps_addresses(i, info)?;
                None
            }
            Outcome::Used => None,
        };
        for n in written {
            self.registers[n] = names.number();
        }
        if let Some((to, value)) = outcome {
            self.registers[to] = value;
        }
        Ok(())
    }

    /// No operand is a host address that is read, or left in part.
    fn keeps_addresses(&self, i: &Instruction, info: &InstructionInfo) -> Result<(), Why> {
        for o in (0..i.op_count()).filter(|o| i.op_kind(*o) == OpKind::Register) {
            let r = i.op_register(o);
            let replaced = info.op_access(o) == OpAccess::Write && r.size() >= 4;
            if !replaced && self.get(r).is_some_and(Value::is_address) {
                return Err(Why::Leak);
            }
        }
        Ok(())
    }

    fn load_address(&mut self, i: &Instruction, names: &mut Names) -> Result<Outcome, Why> {
        let (base, index) = (i.memory_base(), i.memory_index());
        let is_plain = |r: Register| r == Register::None || r.is_gpr64();
        if !is_plain(base) || !is_plain(index) || i.code() == C::Lea_r16_m {
            return Err(Why::Forbidden);
        }
        if let (Some(Value::Number(n)), Some(Value::Addend(checked))) = (self.get(base), self.get(index)) {
            let is_sum =
                i.code() == C::Lea_r64_m && i.memory_index_scale() == 1 && i.memory_displacement64() == 0;
            return if is_sum { Ok(Outcome::Value(Value::Host(n, checked))) } else { Err(Why::Leak) };
        }
        let base = self.number(base, names)?;
        let index = self.number(index, names)?.map(|n| (n, i.memory_index_scale()));
        let narrow = i.code() == C::Lea_r32_m;
        Ok(Outcome::Value(Value::Number(names.sum(base, index, i.memory_displacement64() as i64, narrow))))
    }

    /// An instruction of registers alone.
    fn compute(&mut self, i: &Instruction, given: &Given, names: &mut Names) -> Result<Outcome, Why> {
        use Value as V;
        let (one, two) = (self.get(i.op0_register()), self.get(i.op1_register()));
        let value = match i.code() {
            C::Jmp_rm64 => return Err(Why::Target),
            C::Mov_r64_rm64 | C::Mov_rm64_r64 => two,
            C::Mov_r32_rm32 | C::Mov_rm32_r32 => {
                let n = self.number(i.op1_register(), names)?;
                Some(V::Number(names.sum(n, None, 0, true)))
            }
            C::Mov_r64_imm64 if i.immediate64() == given.version => Some(V::Word),
            C::Mov_r64_imm64 if Some(i.immediate64()) == given.border => Some(V::Border),
            C::Mov_r64_imm64 => Some(V::Number(Number { name: ZERO, plus: i.immediate64() as i64 })),
            C::Shr_rm64_imm8
            | C::Shl_rm64_imm8
            | C::And_rm64_imm8
            | C::And_rm64_imm32
            | C::And_rm32_imm32
            | C::Add_rm64_imm8
            | C::Add_rm64_imm32
            | C::Add_RAX_imm32
            | C::Sub_rm64_imm8
            | C::Sub_rm64_imm32
            | C::Sub_RAX_imm32 => one.and_then(|v| shape(i, v)),
            C::Inc_rm64 => one.and_then(|v| v.plus(1)),
            C::Dec_rm64 => one.and_then(|v| v.plus(-1)),
            C::VEX_Rorx_r64_rm64_imm8 if i.immediate(2) == INDEX_SHIFT => match two {
                Some(V::Number(n)) => Some(V::Shifted(n)),
                _ => None,
            },
            _ => None,
        };
        if i.rflags_modified() != 0 {
            (self.equal, self.within) = (None, None);
        }
        if matches!(i.code(), C::Cmp_rm64_imm8 | C::Cmp_rm64_imm32)
            && let Some(V::Offset(n, write)) = one
            && let Ok(room @ 0..PAGE) = i64::try_from(i.immediate(1))
        {
            let last = n.plus.checked_add(PAGE - 1 - room).ok_or(Why::Unchecked)?;
            self.within = Some(Fact::Checked(Checked { name: n.name, first: n.plus, last, write }));
            return Ok(Outcome::Used);
        }
        Ok(value.map_or(Outcome::Other, Outcome::Value))
    }

    /// An instruction with a memory operand.
    fn memory(
        &mut self,
        i: &Instruction,
        factory: &mut InstructionInfoFactory,
        names: &mut Names,
    ) -> Result<Outcome, Why> {
        let [used] = factory.info(i).used_memory() else { return Err(Why::Forbidden) };
        let write = writes(used.access());
        let size = i.memory_size().size();
        if i.rflags_modified() != 0 {
            (self.equal, self.within) = (None, None);
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        match i.memory_segment() {
            Register::GS if base == Register::None && index == Register::None => {
                return self.state_block(i, size, write, names);
            }
            Register::GS | Register::FS => return Err(Why::StateBlock),
            _ => {}
        }
        let is_plain = |r: Register| r == Register::None || r.is_gpr64();
        if size == 0 || !is_plain(base) || !is_plain(index) {
            return Err(Why::Unchecked);
        }
        let index = self.get(index).map(|v| (v, i.memory_index_scale()));
        let disp = i.memory_displacement64() as i64;
        use Value as V;
        match (self.get(base), index) {
            (Some(V::Entry(n)), None) => self.entry(i, n, disp, names),
            (Some(V::Jump(jump)), None) => self.jump(i, jump, disp, names),
            _ if i.code() == C::Jmp_rm64 => Err(Why::Target),
            (Some(V::Border), None) => border(i, disp, names),
            (Some(V::Word), None) if disp == 0 && size == 4 && !write => Ok(Outcome::Other),
            (Some(V::Host(n, checked)), None)
            | (Some(V::Addend(checked)), Some((V::Number(n), 1)))
            | (Some(V::Number(n)), Some((V::Addend(checked), 1)))
                if checked.has(n, disp, size) && (checked.write || !write) =>
            {
                Ok(Outcome::Other)
            }
            _ => Err(Why::Unchecked),
        }
    }

    /// An access to the state block.
    fn state_block(
        &mut self,
        i: &Instruction,
        size: usize,
        write: bool,
        names: &mut Names,
    ) -> Result<Outcome, Why> {
        use Value as V;
        let field = field::find(i.memory_displacement64(), size).ok_or(Why::StateBlock)?;
        let to = self.get(i.op0_register());
        let value = match (field.kind, i.code(), to) {
            (Kind::Code, C::Jmp_rm64, _) => return Ok(Outcome::Other),
            (_, C::Jmp_rm64, _) => return Err(Why::Target),
            (Kind::Number { writable: true }, code, _) if write => {
                self.words.remove(&field.offset);
                if code == C::Mov_rm64_r64 {
                    let value = self.number(i.op1_register(), names)?.ok_or(Why::StateBlock)?;
                    self.words.insert(field.offset, V::Number(value));
                }
                return Ok(Outcome::Other);
            }
            (Kind::Window, C::Mov_rm64_r64, _) if write => {
                let addend = self.get(i.op1_register()).filter(|v| matches!(v, V::Addend(_)));
                self.words.insert(field.offset, addend.ok_or(Why::StateBlock)?);
                return Ok(Outcome::Used);
            }
            (Kind::Tlb, C::Mov_rm64_r64, _) if write && self.get(i.op1_register()) == Some(V::Class) => {
                self.forget_entries();
                return Ok(Outcome::Used);
            }
            _ if write => return Err(Why::StateBlock),
            (Kind::Number { .. }, C::Mov_r64_rm64, _) => {
                *self.words.entry(field.offset).or_insert_with(|| names.number())
            }
            (Kind::Number { .. }, ..) => return Ok(Outcome::Other),
            (Kind::Window, C::Mov_r64_rm64, _) => *self.words.get(&field.offset).ok_or(Why::StateBlock)?,
            (Kind::Context, C::Xor_r64_rm64, Some(V::Number(n))) => V::InContext(n),
            // The way back, where there is nothing to find.
            (Kind::Context, C::Xor_r64_rm64, Some(v)) if !v.is_address() => names.number(),
            (Kind::Tlb, C::Add_r64_rm64, Some(V::Index(n))) => V::Entry(n),
            (Kind::Jumps, C::Add_r64_rm64, Some(V::Place)) => V::Jump(names.fresh()),
            (Kind::Attention, C::Mov_r64_rm64, _) => V::Word,
            (Kind::Class, C::Mov_r64_rm64, _) => V::Class,
            (Kind::Key, C::Mov_r64_rm64, _) => V::Key,
            (Kind::Key, C::Cmp_r64_rm64, _) => return Ok(Outcome::Other),
            _ => return Err(Why::StateBlock),
        };
        Ok(Outcome::Value(value))
    }

    /// Another class of the TLB is used from here on.
    fn forget_entries(&mut self) {
        self.facts.retain(|fact| !matches!(fact, Fact::Checked(_)));
        (self.equal, self.within) = (None, None);
        self.words.retain(|_, value| !value.is_address());
        for value in &mut self.registers {
            if matches!(value, Value::Index(_) | Value::Entry(_) | Value::Addend(_) | Value::Host(..)) {
                *value = Value::Stale;
            }
        }
    }

    /// An access to the TLB entry of an address.
    fn entry(&mut self, i: &Instruction, n: Number, disp: i64, names: &mut Names) -> Result<Outcome, Why> {
        const READ: i64 = offset_of!(Entry, read) as i64;
        const WRITE: i64 = offset_of!(Entry, write) as i64;
        const ADDEND: i64 = offset_of!(Entry, addend) as i64;
        const HOST: i64 = offset_of!(Entry, host) as i64;
        let one = self.get(i.op0_register());
        match (i.code(), disp) {
            (C::Xor_r64_rm64, READ | WRITE) => match one {
                Some(Value::InContext(m)) if m == n => Ok(Outcome::Value(Value::Offset(n, disp == WRITE))),
                Some(v) if !v.is_address() => Ok(Outcome::Value(names.number())),
                _ => Err(Why::Leak),
            },
            (C::Mov_r64_rm64, ADDEND) => {
                Ok(Outcome::Value(Value::Addend(self.checked(n).ok_or(Why::Unchecked)?)))
            }
            (C::Add_r64_rm64, HOST) if matches!(one, Some(Value::Offset(offset, _)) if offset == n) => {
                Ok(Outcome::Value(Value::Host(n, self.checked(n).ok_or(Why::Unchecked)?)))
            }
            _ => Err(Why::Unchecked),
        }
    }

    /// What is known to be checked of the page of an address, whose entry it chose.
    fn checked(&self, n: Number) -> Option<Checked> {
        let of_page = |fact: &Fact| match fact {
            Fact::Checked(c) if c.name == n.name && c.first == n.plus => Some(*c),
            _ => None,
        };
        self.facts.iter().filter_map(of_page).max_by_key(|c| (c.write, c.last))
    }

    /// An access to an entry of the table by linear address.
    fn jump(&mut self, i: &Instruction, jump: u32, disp: i64, names: &mut Names) -> Result<Outcome, Why> {
        const RIP: i64 = offset_of!(Jump, rip) as i64;
        const KEY: i64 = offset_of!(Jump, key) as i64;
        const CODE: i64 = offset_of!(Jump, code) as i64;
        const PAGE: i64 = offset_of!(Jump, page) as i64;
        match (i.code(), disp) {
            (C::Cmp_rm64_r64, RIP) => self.equal = Some(Fact::Rip(jump)),
            (C::Cmp_rm64_r64, KEY) if self.get(i.op1_register()) == Some(Value::Key) => {
                self.equal = Some(Fact::Key(jump));
            }
            (C::Mov_r64_rm64, RIP | PAGE) => return Ok(Outcome::Value(names.number())),
            (C::Jmp_rm64, CODE) => {
                let found = [Fact::Rip(jump), Fact::Key(jump)].iter().all(|f| self.facts.contains(f));
                return if found { Ok(Outcome::Other) } else { Err(Why::Target) };
            }
            _ => return Err(Why::Unchecked),
        }
        Ok(Outcome::Other)
    }
}

/// An access to what is known of the next page.
fn border(i: &Instruction, disp: i64, names: &mut Names) -> Result<Outcome, Why> {
    const KEY: i64 = offset_of!(Border, key) as i64;
    const LINEAR: i64 = offset_of!(Border, page) as i64;
    const VERSION_AT: i64 = offset_of!(Border, version_at) as i64;
    const VERSION: i64 = offset_of!(Border, version) as i64;
    match (i.code(), disp) {
        (C::Mov_r64_rm64, KEY | LINEAR) => Ok(Outcome::Value(names.number())),
        (C::Mov_r64_rm64, VERSION_AT) => Ok(Outcome::Value(Value::Word)),
        (C::Cmp_r32_rm32, VERSION) => Ok(Outcome::Other),
        _ => Err(Why::Unchecked),
    }
}

/// What an operation with an immediate makes of a value, if that is a step of a lookup.
fn shape(i: &Instruction, value: Value) -> Option<Value> {
    use Value as V;
    let operand = i.immediate(1);
    let value = match (i.code(), value) {
        (C::Shr_rm64_imm8, V::Number(n)) if operand == INDEX_SHIFT => V::Shifted(n),
        (C::And_rm32_imm32, V::Shifted(n)) if operand == INDEX => V::Index(n),
        (C::And_rm64_imm8 | C::And_rm64_imm32, v) if operand == JUMP_MASK as u64 && !v.is_address() => {
            V::Place
        }
        (C::Add_rm64_imm8 | C::Add_rm64_imm32 | C::Add_RAX_imm32, v) => return v.plus(operand as i64),
        (C::Sub_rm64_imm8 | C::Sub_rm64_imm32 | C::Sub_RAX_imm32, v) => {
            return v.plus((operand as i64).wrapping_neg());
        }
        _ => return None,
    };
    Some(value)
}

impl Checked {
    /// Whether `size` bytes, `disp` from a number, have been checked.
    fn has(self, n: Number, disp: i64, size: usize) -> bool {
        let at = n.plus.checked_add(disp);
        let last = at.and_then(|at| at.checked_add(size as i64 - 1));
        n.name == self.name
            && at.is_some_and(|at| self.first <= at)
            && last.is_some_and(|last| last <= self.last)
    }
}

fn writes(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
}
