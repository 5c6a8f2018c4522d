//! What fits nowhere else: HLT, PAUSE, time-stamps, hypercalls, caches, protection keys, MONITOR.

use iced_x86::{Code, Instruction};
use umbra_engine::RunState;
use umbra_x86::cpuid::feature;
use umbra_x86::reg::Cr4;
use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDX, RSI};
use umbra_x86::segment::sreg;

use super::control::check_cpl0;
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault, Flow};
use crate::operand::{mask, segment_number};
use crate::vm::hooks;

/// What a hypercall that does not exist returns.
const KVM_ENOSYS: i64 = -1000;
/// What a hypercall from user mode returns.
const KVM_EPERM: i64 = -1;

/// Instructions that never exist here.
pub(super) fn undefined(_: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    Err(Fault::UD)
}

/// Instructions without effect on a guest.
pub(super) fn nothing(_: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    Ok(Flow::Next)
}

/// HLT.
pub(super) fn hlt(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_cpl0(cpu)?;
    cpu.run_state = RunState::Halted;
    Ok(Flow::Wait)
}

/// PAUSE.
pub(super) fn pause(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    hooks::pause(cpu);
    Ok(Flow::Next)
}

/// WBINVD, WBNOINVD, INVD: guest memory is always coherent.
pub(super) fn cache_all(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_cpl0(cpu)?;
    Ok(Flow::Next)
}

/// CLFLUSH and its kin: checked as a load of a byte.
pub(super) fn cache_line(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let linear = cpu.memory_operand(i, 1, false)?;
    cpu.host(linear, 1, false)?;
    Ok(Flow::Next)
}

/// SERIALIZE: all processor state is always up to date at the end of a block.
pub(super) fn serialize(_: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    Ok(Flow::End)
}

fn check_tsc(cpu: &Cpu) -> Exec {
    if cpu.mode.cpl > 0 && cpu.cr4.contains(Cr4::TSD) { Err(Fault::GP0) } else { Ok(()) }
}

fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.set_gpr(RAX, 32, value);
    cpu.set_gpr(RDX, 32, value >> 32);
}

/// RDTSC.
pub(super) fn rdtsc(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_tsc(cpu)?;
    let value = hooks::rdtsc(cpu);
    set_edx_eax(cpu, value);
    Ok(Flow::Next)
}

/// RDTSCP.
pub(super) fn rdtscp(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    rdtsc(cpu, i)?;
    cpu.set_gpr(RCX, 32, cpu.msr.tsc_aux);
    Ok(Flow::Next)
}

/// RDPID.
pub(super) fn rdpid(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    cpu.set_reg(i.op0_register(), cpu.msr.tsc_aux);
    Ok(Flow::Next)
}

/// RDPMC: there is no counter, so every number is a wrong one.
pub(super) fn rdpmc(_: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    Err(Fault::GP0)
}

/// VMCALL and VMMCALL: a call to KVM's interface (number in RAX, arguments in RBX, RCX, RDX, RSI, result in RAX; 32 bits
/// wide outside of 64-bit mode).
pub(super) fn hypercall(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    let bits = if cpu.mode.code == 64 { 64 } else { 32 };
    let [number, a, b, c, d] = [RAX, RBX, RCX, RDX, RSI].map(|r| cpu.gpr[r] & mask(bits));
    let result = match cpu.mode.cpl {
        0 => hooks::hypercall(cpu, number, [a, b, c, d]).unwrap_or(KVM_ENOSYS),
        _ => KVM_EPERM,
    };
    cpu.set_gpr(RAX, bits, result as u64);
    Ok(Flow::End)
}

/// MONITOR: checks its address as a load; what is written there is not watched, since MWAIT may end at any time.
pub(super) fn monitor(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    if cpu.mode.cpl > 0 || !cpu.cpuid.has(feature::MONITOR) {
        return Err(Fault::UD);
    }
    if cpu.gpr[RCX] as u32 != 0 {
        return Err(Fault::GP0);
    }
    let bits = match i.code() {
        Code::Monitorw => 16,
        Code::Monitord => 32,
        _ => 64,
    };
    let segment = segment_number(i.memory_segment()).unwrap_or(sreg::DS);
    let linear = cpu.linear(segment, cpu.gpr[RAX] & mask(bits), 1, false)?;
    cpu.host(linear, 1, false)?;
    Ok(Flow::Next)
}

/// MWAIT: ends at once.
pub(super) fn mwait(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    if cpu.mode.cpl > 0 || !cpu.cpuid.has(feature::MONITOR) {
        return Err(Fault::UD);
    }
    if cpu.gpr[RCX] as u32 & !1 != 0 {
        return Err(Fault::GP0);
    }
    pause(cpu, i)?;
    Ok(Flow::End)
}

fn check_pkru(cpu: &Cpu) -> Exec {
    if !cpu.cr4.contains(Cr4::PKE) {
        return Err(Fault::UD);
    }
    if cpu.gpr[RCX] as u32 == 0 { Ok(()) } else { Err(Fault::GP0) }
}

/// RDPKRU.
pub(super) fn rdpkru(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_pkru(cpu)?;
    set_edx_eax(cpu, u64::from(cpu.vector.pkru));
    Ok(Flow::Next)
}

/// WRPKRU.
pub(super) fn wrpkru(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    check_pkru(cpu)?;
    if cpu.gpr[RDX] as u32 != 0 {
        return Err(Fault::GP0);
    }
    cpu.vector.pkru = cpu.gpr[RAX] as u32;
    cpu.flush_all();
    Ok(Flow::End)
}
