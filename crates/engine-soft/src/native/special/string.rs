//! String instructions (SDM volume 1, "String Operations").
//!
//! Forwards, as much as lies within one page of each operand and in plain RAM is done at once by the host's own string instruction, which
//! has the exact semantics for operands that overlap. All else, backwards too, goes element by element. Registers are
//! written after each piece, so that a fault or a wish for attention finds the progress made.

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind};
use umbra_x86::reg::{Rflags, gpr};
use umbra_x86::segment::sreg;

use crate::cpu::Cpu;
use crate::decode::Slow;
use crate::fault::{Exec, Flow};
use crate::mmu::Host;
use crate::native::special::host;
use crate::operand::{mask, segment_number};
use crate::sys::debug;

const PAGE: u64 = 4096;
/// Elements done one by one before somebody else may get the processor.
const ELEMENTS_MAX: u64 = 512;
/// Pieces done at once before that.
const PIECES_MAX: u64 = 64;
const STATUS: u64 = Rflags::STATUS.bits();

/// The handler of a string instruction without port.
pub fn handler(code: Code) -> Option<Slow> {
    use Code as C;
    matches!(
        code,
        C::Movsb_m8_m8
            | C::Movsw_m16_m16
            | C::Movsd_m32_m32
            | C::Movsq_m64_m64
            | C::Cmpsb_m8_m8
            | C::Cmpsw_m16_m16
            | C::Cmpsd_m32_m32
            | C::Cmpsq_m64_m64
            | C::Stosb_m8_AL
            | C::Stosw_m16_AX
            | C::Stosd_m32_EAX
            | C::Stosq_m64_RAX
            | C::Lodsb_AL_m8
            | C::Lodsw_AX_m16
            | C::Lodsd_EAX_m32
            | C::Lodsq_RAX_m64
            | C::Scasb_AL_m8
            | C::Scasw_AX_m16
            | C::Scasd_EAX_m32
            | C::Scasq_RAX_m64
    )
    .then_some(run as Slow)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Move,
    Compare,
    Store,
    Load,
    Scan,
}

impl Op {
    fn reads_source(self) -> bool {
        matches!(self, Self::Move | Self::Compare | Self::Load)
    }

    fn uses_destination(self) -> bool {
        self != Self::Load
    }

    fn writes(self) -> bool {
        matches!(self, Self::Move | Self::Store)
    }

    fn compares(self) -> bool {
        matches!(self, Self::Compare | Self::Scan)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Once,
    /// REP, REPE.
    Equal,
    /// REPNE.
    NotEqual,
}

/// The instruction taken apart.
#[derive(Clone, Copy)]
struct Shape {
    op: Op,
    size: u64,
    address_bits: u32,
    source_segment: usize,
    repeat: Repeat,
    down: bool,
}

impl Shape {
    fn of(cpu: &Cpu, i: &Instruction) -> Self {
        let op = match i.mnemonic() {
            M::Movsb | M::Movsw | M::Movsd | M::Movsq => Op::Move,
            M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => Op::Compare,
            M::Stosb | M::Stosw | M::Stosd | M::Stosq => Op::Store,
            M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Op::Load,
            _ => Op::Scan,
        };
        let address_bits = i.op_kinds().find_map(|k| match k {
            OpKind::MemorySegSI | OpKind::MemoryESDI => Some(16),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(32),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(64),
            _ => None,
        });
        let repeat = match () {
            () if i.has_repne_prefix() => Repeat::NotEqual,
            () if i.has_rep_prefix() => Repeat::Equal,
            () => Repeat::Once,
        };
        Self {
            op,
            size: i.memory_size().size() as u64,
            address_bits: address_bits.unwrap_or(64),
            source_segment: if op.reads_source() {
                segment_number(i.memory_segment()).unwrap_or(sreg::DS)
            } else {
                sreg::DS
            },
            repeat,
            down: cpu.flag(Rflags::DF),
        }
    }

    fn register(&self, cpu: &Cpu, n: usize) -> u64 {
        cpu.gpr[n] & mask(self.address_bits)
    }

    /// How many elements fit between `offset`, whose linear address is `linear`, and the end of the page and of the address size.
    fn room(&self, offset: u64, linear: u64) -> u64 {
        let page = PAGE - linear % PAGE;
        let wrap = mask(self.address_bits) - offset;
        page.min(wrap.saturating_add(1)) / self.size
    }

    fn source(&self, cpu: &Cpu, count: u64) -> Exec<u64> {
        cpu.linear(self.source_segment, self.register(cpu, gpr::RSI), count * self.size, false)
    }

    fn destination(&self, cpu: &Cpu, count: u64) -> Exec<u64> {
        cpu.linear(sreg::ES, self.register(cpu, gpr::RDI), count * self.size, self.op.writes())
    }

    /// Moves the pointers past `count` elements and, if repeated, counts them.
    fn advance(&self, cpu: &mut Cpu, count: u64) {
        let step = if self.down { self.size.wrapping_neg() } else { self.size }.wrapping_mul(count);
        for (n, used) in [(gpr::RSI, self.op.reads_source()), (gpr::RDI, self.op.uses_destination())] {
            if used {
                cpu.set_gpr(n, self.address_bits, cpu.gpr[n].wrapping_add(step));
            }
        }
        if self.repeat != Repeat::Once {
            cpu.set_gpr(gpr::RCX, self.address_bits, self.register(cpu, gpr::RCX).wrapping_sub(count));
        }
    }

    /// Whether a comparison with these flags ends the repetition.
    fn is_done(&self, flags: u64) -> bool {
        let equal = flags & Rflags::ZF.bits() != 0;
        self.op.compares()
            && (self.repeat == Repeat::Equal && !equal || self.repeat == Repeat::NotEqual && equal)
    }
}

fn run(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let flags = cpu.rflags;
    let end = repeat(cpu, i);
    // A comparison that is not over has not changed the flags (SDM volume 2, REP).
    if end != Ok(Flow::Next) {
        set_status(cpu, flags);
    }
    end
}

fn repeat(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let shape = Shape::of(cpu, i);
    if shape.repeat == Repeat::Once {
        element(cpu, &shape)?;
        return Ok(Flow::Next);
    }
    // With the trap flag or a data breakpoint, each iteration may be followed by a debug exception.
    let step = debug::traps_iterations(cpu);
    let mut budget = PIECES_MAX * ELEMENTS_MAX;
    loop {
        let count = shape.register(cpu, gpr::RCX);
        if count == 0 {
            return Ok(Flow::Next);
        }
        let (done, cost) = if step { (element(cpu, &shape)?, 1) } else { piece(cpu, &shape, count)? };
        if done || shape.register(cpu, gpr::RCX) == 0 {
            return Ok(Flow::Next);
        }
        budget = budget.saturating_sub(cost);
        if step || budget == 0 || cost == ELEMENTS_MAX && wanted(cpu) {
            return Ok(Flow::Again);
        }
    }
}

fn wanted(cpu: &Cpu) -> bool {
    cpu.shared.ports.get(cpu.id as usize).is_some_and(crate::vm::Port::wanted)
}

/// Does as many elements as can be done at once; whether a comparison ended it, and what it cost of the budget.
fn piece(cpu: &mut Cpu, shape: &Shape, count: u64) -> Exec<(bool, u64)> {
    if !shape.down
        && let Some(n) = plain_count(cpu, shape, count)
        && let Some(done) = plain(cpu, shape, n)?
    {
        return Ok((done, ELEMENTS_MAX));
    }
    for _ in 0..count.min(ELEMENTS_MAX) {
        if element(cpu, shape)? {
            return Ok((true, ELEMENTS_MAX));
        }
    }
    Ok((false, ELEMENTS_MAX))
}

/// How many elements lie within one page of each operand and within its segment; `None` if not even two.
fn plain_count(cpu: &Cpu, shape: &Shape, count: u64) -> Option<u64> {
    let mut n = count;
    if shape.op.reads_source() {
        let linear = shape.source(cpu, 1).ok()?;
        n = n.min(shape.room(shape.register(cpu, gpr::RSI), linear));
    }
    if shape.op.uses_destination() {
        let linear = shape.destination(cpu, 1).ok()?;
        n = n.min(shape.room(shape.register(cpu, gpr::RDI), linear));
    }
    let fits = n >= 2
        && !cpu.checks_alignment()
        && (!shape.op.reads_source() || shape.source(cpu, n).is_ok())
        && (!shape.op.uses_destination() || shape.destination(cpu, n).is_ok());
    fits.then_some(n)
}

/// Does `n` elements natively if both operands are plain RAM: whether a comparison ended it; `None` if they are not.
fn plain(cpu: &mut Cpu, shape: &Shape, n: u64) -> Exec<Option<bool>> {
    let len = n * shape.size;
    // As for one element: a comparison looks at the destination first.
    let order = if shape.op.compares() { [false, true] } else { [true, false] };
    let mut found = [std::ptr::null_mut(); 2];
    for is_source in order {
        let used = if is_source { shape.op.reads_source() } else { shape.op.uses_destination() };
        if !used {
            continue;
        }
        let linear = if is_source { shape.source(cpu, n)? } else { shape.destination(cpu, n)? };
        let Some(at) = direct(cpu, linear, len, !is_source && shape.op.writes())? else { return Ok(None) };
        found[usize::from(is_source)] = at;
    }
    let [destination, source] = found;
    let value = cpu.gpr[gpr::RAX];
    let while_equal = shape.repeat == Repeat::Equal;
    // SAFETY: the memory unit gave both addresses for `len` bytes, the destination for writing if it is written.
    let compared = unsafe {
        match shape.op {
            Op::Move => {
                host::copy(shape.size, destination, source, n);
                None
            }
            Op::Store => {
                host::fill(shape.size, destination, value, n);
                None
            }
            Op::Compare => Some(host::compare(shape.size, while_equal, source, destination, n)),
            Op::Scan => Some(host::scan(shape.size, while_equal, value, destination, n)),
            Op::Load => {
                let last = source.wrapping_add((len - shape.size) as usize);
                let mut bytes = [0u8; 8];
                host::copy(shape.size, bytes.as_mut_ptr(), last, 1);
                cpu.set_gpr(gpr::RAX, shape.size as u32 * 8, u64::from_le_bytes(bytes));
                None
            }
        }
    };
    let Some(compared) = compared else {
        cpu.host_written();
        shape.advance(cpu, n);
        return Ok(Some(false));
    };
    shape.advance(cpu, n - compared.left);
    set_status(cpu, compared.flags);
    Ok(Some(shape.is_done(compared.flags)))
}

fn direct(cpu: &mut Cpu, linear: u64, len: u64, write: bool) -> Exec<Option<*mut u8>> {
    Ok(match cpu.host(linear, len, write)? {
        Host::Direct(at) => Some(at),
        Host::Bounce => None,
    })
}

fn set_status(cpu: &mut Cpu, flags: u64) {
    cpu.rflags = cpu.rflags & !STATUS | flags & STATUS;
}

/// Does one element; whether a comparison ended the repetition.
fn element(cpu: &mut Cpu, shape: &Shape) -> Exec<bool> {
    let size = shape.size;
    let flags = if shape.op.compares() { Some(compare_element(cpu, shape)?) } else { None };
    if shape.op == Op::Load || shape.op == Op::Move {
        let linear = shape.source(cpu, 1)?;
        let value = load(cpu, linear, size)?;
        if shape.op == Op::Load {
            cpu.set_gpr(gpr::RAX, size as u32 * 8, value);
        } else {
            let linear = shape.destination(cpu, 1)?;
            store(cpu, linear, size, value)?;
        }
    } else if shape.op == Op::Store {
        let linear = shape.destination(cpu, 1)?;
        store(cpu, linear, size, cpu.gpr[gpr::RAX])?;
    }
    shape.advance(cpu, 1);
    let Some(flags) = flags else { return Ok(false) };
    set_status(cpu, flags);
    Ok(shape.is_done(flags))
}

/// The flags that comparing one element gives. The destination is loaded first, as Intel's processors do.
fn compare_element(cpu: &mut Cpu, shape: &Shape) -> Exec<u64> {
    let linear = shape.destination(cpu, 1)?;
    let right = load(cpu, linear, shape.size)?.to_le_bytes();
    let left = match shape.op {
        Op::Scan => cpu.gpr[gpr::RAX],
        _ => {
            let linear = shape.source(cpu, 1)?;
            load(cpu, linear, shape.size)?
        }
    };
    let left = left.to_le_bytes();
    // SAFETY: both buffers hold an element of any size.
    Ok(unsafe { host::compare(shape.size, true, left.as_ptr(), right.as_ptr(), 1) }.flags)
}

fn load(cpu: &mut Cpu, linear: u64, size: u64) -> Exec<u64> {
    Ok(match size {
        1 => cpu.load::<u8>(linear)?.into(),
        2 => cpu.load::<u16>(linear)?.into(),
        4 => cpu.load::<u32>(linear)?.into(),
        _ => cpu.load::<u64>(linear)?,
    })
}

fn store(cpu: &mut Cpu, linear: u64, size: u64, value: u64) -> Exec {
    match size {
        1 => cpu.store(linear, value as u8),
        2 => cpu.store(linear, value as u16),
        4 => cpu.store(linear, value as u32),
        _ => cpu.store(linear, value),
    }
}
