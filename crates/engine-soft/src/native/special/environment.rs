//! x87 pointers, and the environment's formats (SDM volume 1, chapter 8.1.8 to 8.1.10).
//!
//! FNSTENV, FLDENV, FNSAVE and FRSTOR run natively in protected and long mode, where the formats are those of the host's 64-bit mode with
//! the same operand size. The real-address and virtual-8086 formats are made here from the 32-bit protected one.

use std::ops::Range;

use iced_x86::{Code, Encoder, Instruction, OpKind};

use crate::cpu::Cpu;
use crate::decode::Slow;
use crate::fault::{Exec, Fault, Flow};
use crate::native::{Pool, checks, compile, execute, run};
use crate::operand::mask;

const FOP: Range<usize> = 6..8;
const FIP: Range<usize> = 8..16;
const FDP: Range<usize> = 16..24;
/// ModRM without its middle field, as thunks encode it: the operand at RSI.
const THUNK_MODRM: u16 = 6;
const MODRM_REG: u16 = 0o70;

fn word(b: &[u8]) -> u64 {
    b.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

/// After an x87 instruction: where the image points into the thunk or to the operand's host address, it shall name the guest's
/// instruction and the operand's offset. What the host did not update stays.
pub fn fix_pointers(cpu: &mut Cpu, i: &Instruction, memory: *mut u8) {
    if !Pool::Thunks.contains(word(&cpu.vector.fx[FIP]) as usize) {
        return;
    }
    let rip = cpu.rip & mask(u32::from(cpu.mode.code));
    cpu.vector.fx[FIP].copy_from_slice(&rip.to_le_bytes());
    if !i.op_kinds().any(|k| k == OpKind::Memory) {
        return;
    }
    if word(&cpu.vector.fx[FDP]) == memory as u64 {
        let offset = cpu.effective_address(i);
        cpu.vector.fx[FDP].copy_from_slice(&offset.to_le_bytes());
    }
    let fop = word(&cpu.vector.fx[FOP]) as u16;
    if fop & 0xff & !MODRM_REG == THUNK_MODRM {
        let modrm = guest_modrm(cpu, i).unwrap_or(THUNK_MODRM) & !MODRM_REG;
        let fixed = fop & (0x700 | MODRM_REG) | modrm;
        cpu.vector.fx[FOP].copy_from_slice(&fixed.to_le_bytes());
    }
}

/// The instruction's ModRM byte.
fn guest_modrm(cpu: &Cpu, i: &Instruction) -> Option<u16> {
    let mut encoder = Encoder::try_new(u32::from(cpu.mode.code)).ok()?;
    encoder.encode(i, 0).ok()?;
    let bytes = encoder.take_buffer();
    let escape = bytes.iter().position(|b| *b & 0xf8 == 0xd8)?;
    bytes.get(escape + 1).map(|b| u16::from(*b))
}

/// The handler of one of these.
pub fn handler(code: Code) -> Option<Slow> {
    use Code as C;
    matches!(
        code,
        C::Fnstenv_m14byte
            | C::Fnstenv_m28byte
            | C::Fldenv_m14byte
            | C::Fldenv_m28byte
            | C::Fnsave_m94byte
            | C::Fnsave_m108byte
            | C::Frstor_m94byte
            | C::Frstor_m108byte
    )
    .then_some(environment as Slow)
}

fn environment(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    if cpu.mode.protected && !cpu.mode.v86 {
        let thunk = compile(cpu, i).ok_or(Fault::UD)?;
        return run(cpu, i, thunk);
    }
    real_mode(cpu, i)
}

/// Bytes of the 32-bit environment.
const ENVIRONMENT: usize = 28;
/// Bytes of the eight registers.
const REGISTERS: usize = 80;

#[repr(C, align(64))]
struct Buffer([u8; ENVIRONMENT + REGISTERS]);

fn real_mode(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    use Code as C;
    let (wide, all, store) = match i.code() {
        C::Fnstenv_m14byte => (false, false, true),
        C::Fnstenv_m28byte => (true, false, true),
        C::Fldenv_m14byte => (false, false, false),
        C::Fldenv_m28byte => (true, false, false),
        C::Fnsave_m94byte => (false, true, true),
        C::Fnsave_m108byte => (true, true, true),
        C::Frstor_m94byte => (false, true, false),
        _ => (true, true, false),
    };
    let mut native = *i;
    native.set_code(match (all, store) {
        (false, true) => C::Fnstenv_m28byte,
        (false, false) => C::Fldenv_m28byte,
        (true, true) => C::Fnsave_m108byte,
        (true, false) => C::Frstor_m108byte,
    });
    let environment = if wide { ENVIRONMENT } else { ENVIRONMENT / 2 };
    let len = environment + if all { REGISTERS } else { 0 };
    let thunk = compile(cpu, &native).ok_or(Fault::UD)?;
    let plan = *cpu.native.plan(thunk).ok_or(Fault::UD)?;
    checks::unit(cpu, plan.unit)?;
    let linear = cpu.memory_operand(i, len as u64, store)?;
    cpu.host(linear, len as u64, store)?;
    let mut buffer = Buffer([0; ENVIRONMENT + REGISTERS]);
    let mut image = [0; ENVIRONMENT + REGISTERS];
    if store {
        execute(cpu, &native, &plan, buffer.0.as_mut_ptr())?;
        to_real(&buffer.0, &mut image, wide);
        cpu.store_bytes(linear, &image[..len])?;
    } else {
        cpu.load_bytes(linear, &mut image[..len])?;
        from_real(&image, &mut buffer.0, wide);
        execute(cpu, &native, &plan, buffer.0.as_mut_ptr())?;
    }
    Ok(Flow::Next)
}

/// Protected 32-bit format: control, status, tag, instruction offset, selector and opcode, operand offset, selector.
fn to_real(from: &[u8], to: &mut [u8], wide: bool) {
    let (ip, opcode, dp) = (word(&from[12..16]), word(&from[18..20]) & 0x7ff, word(&from[20..24]));
    let fields = [
        word(&from[0..2]),
        word(&from[4..6]),
        word(&from[8..10]),
        ip & 0xffff,
        if wide { ip >> 16 << 12 | opcode } else { ip >> 4 & 0xf000 | opcode },
        dp & 0xffff,
        if wide { dp >> 16 << 12 } else { dp >> 4 & 0xf000 },
    ];
    let size = if wide { 4 } else { 2 };
    for (n, field) in fields.into_iter().enumerate() {
        // Unused halves of the first three words are ones, of the others zeros.
        let field = if wide && n < 3 { field | 0xffff_0000 } else { field };
        to[n * size..][..size].copy_from_slice(&field.to_le_bytes()[..size]);
    }
    to[7 * size..][..REGISTERS].copy_from_slice(&from[ENVIRONMENT..][..REGISTERS]);
}

fn from_real(from: &[u8], to: &mut [u8], wide: bool) {
    let size = if wide { 4 } else { 2 };
    let field = |n: usize| word(&from[n * size..][..size]);
    let high = |n: usize| if wide { (field(n) >> 12 & 0xffff) << 16 } else { (field(n) & 0xf000) << 4 };
    let ip = field(3) & 0xffff | high(4);
    let dp = field(5) & 0xffff | high(6);
    let fields = [field(0), field(1), field(2), ip, (field(4) & 0x7ff) << 16, dp, 0];
    for (n, field) in fields.into_iter().enumerate() {
        to[n * 4..][..4].copy_from_slice(&field.to_le_bytes()[..4]);
    }
    to[ENVIRONMENT..][..REGISTERS].copy_from_slice(&from[7 * size..][..REGISTERS]);
}
