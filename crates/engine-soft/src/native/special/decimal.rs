//! Decimal adjustment, SALC and XLAT (SDM volume 2). What the manual leaves undefined is as Intel's processors have it.

use iced_x86::{Code, Instruction};
use umbra_x86::reg::{Rflags, gpr};

use crate::cpu::Cpu;
use crate::decode::Slow;
use crate::fault::{Exec, Fault, Flow};

/// The handler of one of these.
pub fn handler(code: Code) -> Option<Slow> {
    Some(match code {
        Code::Aaa => aaa,
        Code::Aas => aas,
        Code::Aam_imm8 => aam,
        Code::Aad_imm8 => aad,
        Code::Daa => daa,
        Code::Das => das,
        Code::Salc => salc,
        Code::Xlat_m8 => xlat,
        _ => return None,
    })
}

fn al(cpu: &Cpu) -> u8 {
    cpu.gpr[gpr::RAX] as u8
}

fn ah(cpu: &Cpu) -> u8 {
    (cpu.gpr[gpr::RAX] >> 8) as u8
}

fn set_al(cpu: &mut Cpu, value: u8) {
    cpu.set_gpr(gpr::RAX, 8, value.into());
}

fn set_ax(cpu: &mut Cpu, high: u8, low: u8) {
    cpu.set_gpr(gpr::RAX, 16, u16::from_le_bytes([low, high]).into());
}

/// SF, ZF and PF by a result.
fn set_result(cpu: &mut Cpu, result: u8) {
    cpu.set_flag(Rflags::SF, result & 0x80 != 0);
    cpu.set_flag(Rflags::ZF, result == 0);
    cpu.set_flag(Rflags::PF, result.count_ones().is_multiple_of(2));
}

/// Whether the low digit is to be adjusted.
fn low_digit_over(cpu: &Cpu) -> bool {
    al(cpu) & 0xf > 9 || cpu.flag(Rflags::AF)
}

fn aaa(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    ascii(cpu, 6, u16::wrapping_add)
}

fn aas(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    ascii(cpu, 6, u16::wrapping_sub)
}

fn ascii(cpu: &mut Cpu, digit: u16, adjust: fn(u16, u16) -> u16) -> Exec<Flow> {
    let over = low_digit_over(cpu);
    let mut ax = cpu.gpr[gpr::RAX] as u16;
    if over {
        ax = adjust(ax, 0x100 | digit);
    }
    let [low, high] = ax.to_le_bytes();
    set_ax(cpu, high, low & 0xf);
    cpu.set_flag(Rflags::AF, over);
    cpu.set_flag(Rflags::CF, over);
    cpu.set_flag(Rflags::OF, false);
    set_result(cpu, low & 0xf);
    Ok(Flow::Next)
}

fn aam(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let base = i.immediate8();
    let value = al(cpu);
    let (Some(high), Some(low)) = (value.checked_div(base), value.checked_rem(base)) else {
        return Err(Fault::DE);
    };
    set_ax(cpu, high, low);
    set_result(cpu, low);
    [Rflags::CF, Rflags::AF, Rflags::OF].iter().for_each(|f| cpu.set_flag(*f, false));
    Ok(Flow::Next)
}

fn aad(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let (low, more) = (al(cpu), ah(cpu).wrapping_mul(i.immediate8()));
    let (sum, carry) = low.overflowing_add(more);
    set_ax(cpu, 0, sum);
    set_result(cpu, sum);
    cpu.set_flag(Rflags::CF, carry);
    cpu.set_flag(Rflags::AF, (low ^ more ^ sum) & 0x10 != 0);
    cpu.set_flag(Rflags::OF, (low ^ sum) & (more ^ sum) & 0x80 != 0);
    Ok(Flow::Next)
}

fn daa(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    let old = al(cpu);
    let low = low_digit_over(cpu);
    let high = old > 0x99 || cpu.flag(Rflags::CF);
    let adjustment = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    decimal(cpu, old.wrapping_add(adjustment), low, high)
}

fn das(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    let old = al(cpu);
    let low = low_digit_over(cpu);
    let high = old > 0x99 || cpu.flag(Rflags::CF);
    let adjustment = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    decimal(cpu, old.wrapping_sub(adjustment), low, high || low && old < 6)
}

fn decimal(cpu: &mut Cpu, result: u8, low: bool, carry: bool) -> Exec<Flow> {
    set_al(cpu, result);
    set_result(cpu, result);
    cpu.set_flag(Rflags::AF, low);
    cpu.set_flag(Rflags::CF, carry);
    cpu.set_flag(Rflags::OF, false);
    Ok(Flow::Next)
}

fn salc(cpu: &mut Cpu, _: &Instruction) -> Exec<Flow> {
    let value = if cpu.flag(Rflags::CF) { 0xff } else { 0 };
    set_al(cpu, value);
    Ok(Flow::Next)
}

fn xlat(cpu: &mut Cpu, i: &Instruction) -> Exec<Flow> {
    let linear = cpu.memory_operand(i, 1, false)?;
    let value: u8 = cpu.load(linear)?;
    set_al(cpu, value);
    Ok(Flow::Next)
}
