//! What CR0, CR4 and XCR0 say about units (SDM volume 2, table 2-18 and following; volume 3, chapter 13).

use umbra_x86::reg::{Cr0, Cr4};

use crate::cpu::Cpu;
use crate::fault::{Exec, Fault};
use crate::native::plan::Unit;

/// XCR0: SSE and AVX state.
const XCR0_AVX: u64 = 0b110;
/// XCR0: as well as opmask and ZMM state.
const XCR0_AVX512: u64 = 0b1110_0110;

/// Whether an instruction of `unit` may run now.
pub fn unit(cpu: &Cpu, unit: Unit) -> Exec {
    match unit {
        Unit::General => Ok(()),
        Unit::GeneralVex => vex_mode(cpu),
        Unit::X87 if cpu.cr0.intersects(Cr0::EM.union(Cr0::TS)) => Err(Fault::NM),
        Unit::Wait if cpu.cr0.contains(Cr0::MP.union(Cr0::TS)) => Err(Fault::NM),
        Unit::X87 | Unit::Wait => Ok(()),
        Unit::Mmx => {
            refuse(cpu.cr0.contains(Cr0::EM))?;
            available(cpu)
        }
        Unit::Sse => {
            refuse(cpu.cr0.contains(Cr0::EM) || !cpu.cr4.contains(Cr4::OSFXSR))?;
            available(cpu)
        }
        Unit::Avx => extended(cpu, XCR0_AVX),
        Unit::Avx512 => extended(cpu, XCR0_AVX512),
    }
}

fn refuse(invalid: bool) -> Exec {
    if invalid { Err(Fault::UD) } else { Ok(()) }
}

fn available(cpu: &Cpu) -> Exec {
    if cpu.cr0.contains(Cr0::TS) { Err(Fault::NM) } else { Ok(()) }
}

fn vex_mode(cpu: &Cpu) -> Exec {
    refuse(!cpu.mode.protected || cpu.mode.v86)
}

fn extended(cpu: &Cpu, state: u64) -> Exec {
    vex_mode(cpu)?;
    refuse(!cpu.cr4.contains(Cr4::OSXSAVE) || cpu.xcr0 & state != state)?;
    available(cpu)
}
