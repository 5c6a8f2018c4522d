//! LDMXCSR and STMXCSR; VZEROUPPER and VZEROALL.

use iced_x86::{Code, Instruction};

use crate::cpu::Cpu;
use crate::decode::Slow;
use crate::fault::{Exec, Fault, Flow};
use crate::native::checks;
use crate::native::plan::Unit;
use crate::native::special::host;

/// MXCSR in the FXSAVE image.
const MXCSR: std::ops::Range<usize> = 24..28;

/// The handler of one of these.
pub fn handler(code: Code) -> Option<Slow> {
    Some(match code {
        Code::Ldmxcsr_m32 => |cpu, i| load(cpu, i, Unit::Sse),
        Code::VEX_Vldmxcsr_m32 => |cpu, i| load(cpu, i, Unit::Avx),
        Code::Stmxcsr_m32 => |cpu, i| store(cpu, i, Unit::Sse),
        Code::VEX_Vstmxcsr_m32 => |cpu, i| store(cpu, i, Unit::Avx),
        Code::VEX_Vzeroupper => |cpu, _| zero(cpu, 16),
        Code::VEX_Vzeroall => |cpu, _| zero(cpu, 0),
        _ => return None,
    })
}

/// MXCSR.
pub fn mxcsr(cpu: &Cpu) -> u32 {
    let b = &cpu.vector.fx;
    u32::from_le_bytes([b[24], b[25], b[26], b[27]])
}

/// Sets MXCSR; a reserved bit is #GP.
pub fn set_mxcsr(cpu: &mut Cpu, value: u32) -> Exec {
    if value & !host::mxcsr_mask() != 0 {
        return Err(Fault::GP0);
    }
    cpu.vector.fx[MXCSR].copy_from_slice(&value.to_le_bytes());
    Ok(())
}

fn load(cpu: &mut Cpu, i: &Instruction, unit: Unit) -> Exec<Flow> {
    checks::unit(cpu, unit)?;
    let value: u32 = cpu.operand(i, 0)?;
    set_mxcsr(cpu, value)?;
    Ok(Flow::Next)
}

fn store(cpu: &mut Cpu, i: &Instruction, unit: Unit) -> Exec<Flow> {
    checks::unit(cpu, unit)?;
    let value = mxcsr(cpu);
    cpu.set_operand(i, 0, value)?;
    Ok(Flow::Next)
}

/// Zeroes vector registers from byte `from` on; outside 64-bit mode there are eight.
fn zero(cpu: &mut Cpu, from: usize) -> Exec<Flow> {
    checks::unit(cpu, Unit::Avx)?;
    let count = if cpu.mode.code == 64 { 16 } else { 8 };
    cpu.vector.zmm[..count].iter_mut().for_each(|r| r[from..].fill(0));
    Ok(Flow::Next)
}
