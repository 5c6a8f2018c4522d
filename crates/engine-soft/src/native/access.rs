//! Memory operands of thunks.
//!
//! An operand in guest RAM, in one piece, is given to the thunk where it is. One that crosses a page or is device memory is copied into a
//! buffer, and back if it was written. Of a masked operand only the bytes from the first to the last element that is accessed
//! are looked up, so that the others never fault.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use umbra_x86::segment::sreg;

use crate::cpu::Cpu;
use crate::fault::{Exec, Fault};
use crate::mmu::Host;
use crate::native::execute;
use crate::native::plan::{Masked, Operand, Plan, Select};
use crate::operand::mask;

/// Room for the largest operand, the x87 state, from any offset in a cache line on.
#[repr(C, align(64))]
struct Buffer([u8; 256]);

impl Buffer {
    fn empty() -> Self {
        Self([0; 256])
    }

    /// Where an operand of `linear` starts: alignment within a cache line is kept.
    fn start(linear: u64) -> usize {
        (linear % 64) as usize
    }

    /// The address of byte `at`.
    fn address(&mut self, at: usize) -> *mut u8 {
        self.0.as_mut_ptr().wrapping_add(at)
    }
}

/// Finds the operand and runs the thunk.
pub fn run(cpu: &mut Cpu, i: &Instruction, plan: &Plan) -> Exec {
    match plan.operand {
        Operand::None => execute(cpu, i, plan, Buffer::empty().address(0)),
        Operand::Whole => {
            let result = plain(cpu, i, plan);
            stored(cpu, i, plan, result)
        }
        Operand::Bits(index) => bits(cpu, i, plan, index),
        Operand::Line => line(cpu, i, plan),
        Operand::Masked(masked) => {
            let result = elements(cpu, i, plan, masked);
            stored(cpu, i, plan, result)
        }
    }
}

/// The end of an instruction: a floating-point exception comes before whatever is wrong with the operand that would be stored to, but with
/// AMD's processors that of a store itself after it.
fn stored(cpu: &mut Cpu, i: &Instruction, plan: &Plan, result: Exec) -> Exec {
    match result {
        Err(fault) if plan.x87 && is_of_memory(fault) && has_pending(cpu) => {
            Err(pending_or(cpu, i, plan, fault))
        }
        Err(fault) if plan.write && !plan.read && is_of_memory(fault) && !cpu.cpuid.is_amd() => {
            store_faulted(cpu, i, plan, fault)
        }
        _ => result,
    }
}

/// Whether an x87 exception that is not masked waits for the next instruction.
fn has_pending(cpu: &Cpu) -> bool {
    cpu.vector.fx[2] & !cpu.vector.fx[0] & 0x3f != 0
}

/// What an x87 or MMX instruction raises that cannot access its operand while an exception is pending: that, unless it is one that does
/// not wait. Which those are the host's processor knows: one that raises nothing has not been run. (Of CVTPI2PS and CVTPI2PD with an operand in
/// memory the manual has the first wait, and there are processors on which neither does.)
#[cold]
fn pending_or(cpu: &mut Cpu, i: &Instruction, plan: &Plan, fault: Fault) -> Fault {
    let before = cpu.vector.clone();
    match execute(cpu, i, plan, Buffer::empty().address(64)) {
        Err(pending) if !is_of_memory(pending) => pending,
        _ => {
            cpu.vector = before;
            fault
        }
    }
}

fn is_of_memory(fault: Fault) -> bool {
    matches!(fault.vector, 12..=14 | 17)
}

#[cold]
fn store_faulted(cpu: &mut Cpu, i: &Instruction, plan: &Plan, fault: Fault) -> Exec {
    if plan.x87 {
        return if nothing_to_store(cpu, i, plan) { Ok(()) } else { Err(fault) };
    }
    if plan.mxcsr {
        // The conversion is done, and its flags set, before the store is tried.
        execute(cpu, i, plan, Buffer::empty().address(64))?;
    }
    Err(fault)
}

fn plain(cpu: &mut Cpu, i: &Instruction, plan: &Plan) -> Exec {
    if plan.align > 1 {
        check_alignment(cpu, i, plan.align.into(), cpu.effective_address(i))?;
    }
    let linear = cpu.memory_operand(i, plan.len.into(), plan.write)?;
    whole(cpu, i, plan, linear, 0)
}

/// Alignment comes before everything else that may be wrong with an operand, and is always #GP.
pub fn check_alignment(cpu: &Cpu, i: &Instruction, align: u64, offset: u64) -> Exec {
    let segment = cpu.memory_segment_number(i);
    let base = if cpu.mode.code == 64 && segment < sreg::FS { 0 } else { cpu.seg[segment].base };
    if base.wrapping_add(offset) & (align - 1) != 0 { Err(Fault::GP0) } else { Ok(()) }
}

/// Whether an x87 instruction has met an exception that is not masked and keeps it from storing: all but precision.
fn is_store_kept_back(cpu: &Cpu) -> bool {
    cpu.vector.fx[2] & !cpu.vector.fx[0] & 0x1f != 0
}

/// An x87 store that cannot access its operand: it still comes to an end if there is nothing to store, because of an exception that
/// is not masked. If not, nothing has changed.
#[cold]
fn nothing_to_store(cpu: &mut Cpu, i: &Instruction, plan: &Plan) -> bool {
    let before = cpu.vector.fx;
    let done = execute(cpu, i, plan, Buffer::empty().address(0)).is_ok() && is_store_kept_back(cpu);
    if !done {
        cpu.vector.fx = before;
    }
    done
}

/// Runs on all of the operand at `linear`; the thunk is given an address `before` bytes lower.
fn whole(cpu: &mut Cpu, i: &Instruction, plan: &Plan, linear: u64, before: i64) -> Exec {
    if cpu.checks_alignment() && linear & natural_alignment(i, plan) != 0 {
        return Err(Fault::AC);
    }
    match cpu.host(linear, plan.len.into(), plan.write)? {
        Host::Direct(at) => direct(cpu, i, plan, at.wrapping_offset(-before as isize)),
        // Whatever was looked up before the world stood still is looked up again.
        Host::Bounce if plan.locked => {
            alone(cpu, |cpu| match cpu.host(linear, plan.len.into(), plan.write)? {
                Host::Direct(at) => direct(cpu, i, plan, at.wrapping_offset(-before as isize)),
                Host::Bounce => bounce(cpu, i, plan, linear, before),
            })
        }
        Host::Bounce => bounce(cpu, i, plan, linear, before),
    }
}

/// With alignment checks on, the low bits of an address that must be zero (SDM volume 3, table "Alignment Requirements by Data Type").
fn natural_alignment(i: &Instruction, plan: &Plan) -> u64 {
    // To the half-precision conversions several numbers in a short operand are not one piece of data; to all others they are.
    let parts = matches!(i.mnemonic(), M::Vcvtph2ps | M::Vcvtps2ph);
    match plan.len {
        _ if parts => 0,
        2 | 4 | 8 => u64::from(plan.len) - 1,
        10 => 7,
        14 | 94 => 1,
        28 | 108 => 3,
        _ => 0,
    }
}

/// Runs on guest memory itself, and says that it was written.
fn direct(cpu: &mut Cpu, i: &Instruction, plan: &Plan, at: *mut u8) -> Exec {
    let result = execute(cpu, i, plan, at);
    cpu.host_written();
    result
}

/// Does `f` while no other processor executes guest code: a locked access that cannot be made at once.
fn alone(cpu: &mut Cpu, f: impl FnOnce(&mut Cpu) -> Exec) -> Exec {
    cpu.stop_world();
    let result = f(cpu);
    cpu.resume_world();
    result
}

fn bounce(cpu: &mut Cpu, i: &Instruction, plan: &Plan, linear: u64, before: i64) -> Exec {
    let mut buffer = Buffer::empty();
    let start = Buffer::start(linear);
    let bytes = start..start + usize::from(plan.len);
    if plan.read {
        cpu.load_bytes(linear, &mut buffer.0[bytes.clone()])?;
    }
    let at = buffer.address(start).wrapping_offset(-before as isize);
    execute(cpu, i, plan, at)?;
    let store = plan.write && !(plan.x87 && is_store_kept_back(cpu));
    if store { cpu.store_bytes(linear, &buffer.0[bytes]) } else { Ok(()) }
}

/// BT and its kin with a register index a bit string: the operand is the word that holds the bit, which may be far from the
/// effective address, on either side (SDM volume 2, BT).
fn bits(cpu: &mut Cpu, i: &Instruction, plan: &Plan, index: Register) -> Exec {
    let width = u32::from(plan.len) * 8;
    let value = cpu.reg(index);
    let index = (value << (64 - width)) as i64 >> (64 - width);
    let before = (index >> width.trailing_zeros()) * i64::from(plan.len);
    let offset = cpu.effective_address(i).wrapping_add(before as u64) & mask(cpu.address_bits(i));
    let linear = cpu.linear(cpu.memory_segment_number(i), offset, plan.len.into(), plan.write)?;
    whole(cpu, i, plan, linear, before)
}

/// CLFLUSH and its kin: the line is checked as a byte that is read; where it is not RAM there is nothing to flush.
fn line(cpu: &mut Cpu, i: &Instruction, plan: &Plan) -> Exec {
    let linear = cpu.memory_operand(i, 1, false)?;
    match cpu.host(linear, 1, false)? {
        Host::Direct(at) => execute(cpu, i, plan, at),
        Host::Bounce => Ok(()),
    }
}

/// The offset of the operand in its segment; that of MASKMOVQ and MASKMOVDQU is rDI.
fn offset(cpu: &Cpu, i: &Instruction) -> u64 {
    let implicit = i.op_kinds().find_map(|k| match k {
        OpKind::MemorySegDI => Some(Register::DI),
        OpKind::MemorySegEDI => Some(Register::EDI),
        OpKind::MemorySegRDI => Some(Register::RDI),
        _ => None,
    });
    implicit.map_or_else(|| cpu.effective_address(i), |register| cpu.reg(register))
}

/// Which elements are accessed, a bit each.
fn selected(cpu: &Cpu, masked: Masked) -> u64 {
    let low = |count: u8| u64::MAX >> (64 - u32::from(count).clamp(1, 64));
    let sign = |bytes: &[u8]| {
        let step = usize::from(masked.element);
        let top = |n: usize| u64::from(bytes[n * step + step - 1] >> 7) << n;
        (0..usize::from(masked.count)).map(top).fold(0, |a, b| a | b)
    };
    match masked.select {
        Select::Opmask(k) => cpu.vector.k[usize::from(k)] & low(masked.count),
        Select::OpmaskPacked(k) => {
            let n = (cpu.vector.k[usize::from(k)] & low(masked.count)).count_ones();
            if n == 0 { 0 } else { u64::MAX >> (64 - n) }
        }
        Select::OpmaskFold(k, count) => {
            let bits = cpu.vector.k[usize::from(k)] & low(count);
            let step = usize::from(masked.count.max(1));
            (0..usize::from(count)).step_by(step).fold(0, |set, n| set | bits >> n) & low(masked.count)
        }
        Select::Sign(n) => sign(&cpu.vector.zmm[usize::from(n)]),
        Select::SignMmx(n) => {
            // The image has the registers in stack order, MMX registers are counted from the first.
            let top = cpu.vector.fx[3] >> 3 & 7;
            let at = 32 + 16 * usize::from(n.wrapping_sub(top) & 7);
            sign(&cpu.vector.fx[at..at + 8])
        }
    }
}

fn elements(cpu: &mut Cpu, i: &Instruction, plan: &Plan, masked: Masked) -> Exec {
    let offset = offset(cpu, i);
    let set = selected(cpu, masked);
    if set != 0 {
        check_alignment(cpu, i, plan.align.into(), offset)?;
    }
    if set == 0 && !masked.whole {
        return execute(cpu, i, plan, Buffer::empty().address(64));
    }
    let size = u64::from(masked.element);
    let (first, end) = match masked.whole {
        true => (0, size * u64::from(masked.count)),
        false => (u64::from(set.trailing_zeros()) * size, u64::from(64 - set.leading_zeros()) * size),
    };
    // The effective address is cut to the address size, not those of the bytes that follow.
    let start = offset.wrapping_add(first);
    let linear = cpu.linear(cpu.memory_segment_number(i), start, end - first, plan.write)?;
    if cpu.checks_alignment() && linear.wrapping_sub(first) & natural_alignment(i, plan) != 0 {
        return Err(Fault::AC);
    }
    match cpu.host(linear, end - first, plan.write)? {
        Host::Direct(at) => direct(cpu, i, plan, at.wrapping_sub(first as usize)),
        Host::Bounce => bounce_elements(cpu, i, plan, masked, set, linear.wrapping_sub(first)),
    }
}

fn bounce_elements(
    cpu: &mut Cpu,
    i: &Instruction,
    plan: &Plan,
    masked: Masked,
    set: u64,
    linear: u64,
) -> Exec {
    let mut buffer = Buffer::empty();
    let start = Buffer::start(linear);
    let size = usize::from(masked.element);
    let chosen = (0..64usize).filter(|n| set >> n & 1 != 0);
    if plan.read {
        for n in chosen.clone() {
            let at = start + n * size;
            cpu.load_bytes(linear.wrapping_add((n * size) as u64), &mut buffer.0[at..at + size])?;
        }
    }
    let address = buffer.address(start);
    execute(cpu, i, plan, address)?;
    if plan.write {
        for n in chosen {
            let at = start + n * size;
            cpu.store_bytes(linear.wrapping_add((n * size) as u64), &buffer.0[at..at + size])?;
        }
    }
    Ok(())
}
