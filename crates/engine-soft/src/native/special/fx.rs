//! FXSAVE and FXRSTOR (SDM volume 2, FXSAVE; volume 1, chapter 10.5).

use iced_x86::{Code, Instruction};
use umbra_x86::reg::Cr0;

use crate::cpu::Cpu;
use crate::decode::Slow;
use crate::fault::{Exec, Fault, Flow};
use crate::native::special::{host, layout, mxcsr};

const SIZE: u64 = 512;

/// The handler of one of these.
pub fn handler(code: Code) -> Option<Slow> {
    Some(match code {
        Code::Fxsave_m512byte => |cpu, i| save(cpu, i, false),
        Code::Fxsave64_m512byte => |cpu, i| save(cpu, i, true),
        Code::Fxrstor_m512byte => |cpu, i| restore(cpu, i, false),
        Code::Fxrstor64_m512byte => |cpu, i| restore(cpu, i, true),
        _ => return None,
    })
}

fn place(cpu: &mut Cpu, i: &Instruction, write: bool) -> Exec<u64> {
    if cpu.cr0.intersects(Cr0::EM | Cr0::TS) {
        return Err(Fault::NM);
    }
    let linear = layout::place(cpu, i, SIZE, 16, write)?;
    cpu.host(linear, SIZE, write)?;
    Ok(linear)
}

fn save(cpu: &mut Cpu, i: &Instruction, wide: bool) -> Exec<Flow> {
    let linear = place(cpu, i, true)?;
    let long = cpu.mode.code == 64;
    let mut image = layout::x87(cpu, wide).to_vec();
    image[28..32].copy_from_slice(&host::mxcsr_mask().to_le_bytes());
    image.extend(layout::xmm(cpu, long));
    cpu.store_bytes(linear, &image)?;
    Ok(Flow::Next)
}

fn restore(cpu: &mut Cpu, i: &Instruction, wide: bool) -> Exec<Flow> {
    let linear = place(cpu, i, false)?;
    let long = cpu.mode.code == 64;
    let mut image = [0; SIZE as usize];
    cpu.load_bytes(linear, &mut image)?;
    mxcsr::set_mxcsr(cpu, u32::from_le_bytes([image[24], image[25], image[26], image[27]]))?;
    layout::set_x87(cpu, wide, &image);
    layout::set_xmm(cpu, long, &image[layout::XMM..]);
    Ok(Flow::Next)
}
