//! System instructions, exceptions and interrupts: what the SDM's volume 3 is about.
//!
//! | file | what |
//! |---|---|
//! | `descriptor`, `segment`, `stack` | descriptors, loads of segment registers, frames on stacks |
//! | `far`, `iret`, `interrupt`, `task` | transfers between segments, levels and tasks |
//! | `control`, `msr`, `msr_table`, `cpuid`, `table` | control registers, MSRs, CPUID, descriptor tables |
//! | `fast_call`, `flags`, `port`, `debug`, `misc` | SYSCALL and kin, RFLAGS, ports, breakpoints, the rest |
//!
//! Each handler checks everything before it changes anything, so a fault leaves the processor as it was.

mod control;
mod cpuid;
pub mod debug;
mod descriptor;
mod far;
mod fast_call;
mod flags;
mod interrupt;
mod iret;
mod misc;
pub mod msr;
mod msr_table;
mod port;
mod segment;
mod stack;
mod table;
mod task;

use iced_x86::Code;

use crate::decode::Slow;

pub(crate) use control::{cr4_supported, is_valid_xcr0};
pub(crate) use cpuid::physical_bits;
pub use interrupt::{deliver_fault, deliver_interrupt, deliver_nmi};
pub(crate) use msr::efer_supported;

/// The processor has shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TripleFault;

/// The handler of a system instruction.
pub fn handler(code: Code) -> Option<Slow> {
    segments(code)
        .or_else(|| transfers(code))
        .or_else(|| tables(code))
        .or_else(|| system(code))
        .or_else(|| rest(code))
}

fn segments(code: Code) -> Option<Slow> {
    use Code::*;
    Some(match code {
        Mov_rm16_Sreg | Mov_r32m16_Sreg | Mov_r64m16_Sreg => segment::mov_from_sreg,
        Mov_Sreg_rm16 | Mov_Sreg_r32m16 | Mov_Sreg_r64m16 => segment::mov_to_sreg,
        Pushw_ES | Pushd_ES | Pushw_CS | Pushd_CS | Pushw_SS | Pushd_SS | Pushw_DS | Pushd_DS => {
            segment::push_sreg
        }
        Pushw_FS | Pushd_FS | Pushq_FS | Pushw_GS | Pushd_GS | Pushq_GS => segment::push_sreg,
        Popw_ES | Popd_ES | Popw_CS | Popw_SS | Popd_SS | Popw_DS | Popd_DS => segment::pop_sreg,
        Popw_FS | Popd_FS | Popq_FS | Popw_GS | Popd_GS | Popq_GS => segment::pop_sreg,
        Les_r16_m1616 | Les_r32_m1632 => segment::les,
        Lds_r16_m1616 | Lds_r32_m1632 => segment::lds,
        Lss_r16_m1616 | Lss_r32_m1632 | Lss_r64_m1664 => segment::lss,
        Lfs_r16_m1616 | Lfs_r32_m1632 | Lfs_r64_m1664 => segment::lfs,
        Lgs_r16_m1616 | Lgs_r32_m1632 | Lgs_r64_m1664 => segment::lgs,
        _ => return None,
    })
}

fn transfers(code: Code) -> Option<Slow> {
    use Code::*;
    Some(match code {
        Jmp_ptr1616 | Jmp_ptr1632 | Jmp_m1616 | Jmp_m1632 | Jmp_m1664 => far::jmp,
        Call_ptr1616 | Call_ptr1632 | Call_m1616 | Call_m1632 | Call_m1664 => far::call,
        Retfw | Retfd | Retfq | Retfw_imm16 | Retfd_imm16 | Retfq_imm16 => far::ret,
        Iretw | Iretd | Iretq => iret::iret,
        Int_imm8 => interrupt::int_n,
        Int3 => interrupt::int3,
        Into => interrupt::into,
        Int1 => interrupt::int1,
        Bound_r16_m1616 | Bound_r32_m3232 => interrupt::bound,
        Syscall => fast_call::syscall,
        Sysretd | Sysretq => fast_call::sysret,
        Sysenter => fast_call::sysenter,
        Sysexitd | Sysexitq => fast_call::sysexit,
        Swapgs => fast_call::swapgs,
        Rdfsbase_r32 | Rdfsbase_r64 | Rdgsbase_r32 | Rdgsbase_r64 => fast_call::read_base,
        Wrfsbase_r32 | Wrfsbase_r64 | Wrgsbase_r32 | Wrgsbase_r64 => fast_call::write_base,
        _ => return None,
    })
}

fn tables(code: Code) -> Option<Slow> {
    use Code::*;
    Some(match code {
        Sgdt_m1632_16 | Sgdt_m1632 | Sgdt_m1664 => table::sgdt,
        Sidt_m1632_16 | Sidt_m1632 | Sidt_m1664 => table::sidt,
        Lgdt_m1632_16 | Lgdt_m1632 | Lgdt_m1664 => table::lgdt,
        Lidt_m1632_16 | Lidt_m1632 | Lidt_m1664 => table::lidt,
        Sldt_rm16 | Sldt_r32m16 | Sldt_r64m16 => table::sldt,
        Str_rm16 | Str_r32m16 | Str_r64m16 => table::str,
        Lldt_rm16 | Lldt_r32m16 | Lldt_r64m16 => table::lldt,
        Ltr_rm16 | Ltr_r32m16 | Ltr_r64m16 => table::ltr,
        Lar_r16_rm16 | Lar_r32_r32m16 | Lar_r64_r64m16 => table::lar,
        Lsl_r16_rm16 | Lsl_r32_r32m16 | Lsl_r64_r64m16 => table::lsl,
        Verr_rm16 | Verr_r32m16 | Verr_r64m16 => table::verr,
        Verw_rm16 | Verw_r32m16 | Verw_r64m16 => table::verw,
        Arpl_rm16_r16 | Arpl_r32m16_r32 => table::arpl,
        _ => return None,
    })
}

fn system(code: Code) -> Option<Slow> {
    use Code::*;
    Some(match code {
        Mov_r32_cr | Mov_r64_cr => control::mov_from_cr,
        Mov_cr_r32 | Mov_cr_r64 => control::mov_to_cr,
        Mov_r32_dr | Mov_r64_dr => debug::mov_from_dr,
        Mov_dr_r32 | Mov_dr_r64 => debug::mov_to_dr,
        Lmsw_rm16 | Lmsw_r32m16 | Lmsw_r64m16 => control::lmsw,
        Smsw_rm16 | Smsw_r32m16 | Smsw_r64m16 => control::smsw,
        Clts => control::clts,
        Invlpg_m => control::invlpg,
        Invpcid_r32_m128 | Invpcid_r64_m128 => control::invpcid,
        Xsetbv => control::xsetbv,
        Xgetbv => control::xgetbv,
        Rdmsr => msr::rdmsr,
        Wrmsr => msr::wrmsr,
        Cpuid => cpuid::cpuid,
        Pushfw | Pushfd | Pushfq => flags::pushf,
        Popfw | Popfd | Popfq => flags::popf,
        Cli => flags::cli,
        Sti => flags::sti,
        Clac => flags::clac,
        Stac => flags::stac,
        In_AL_imm8 | In_AX_imm8 | In_EAX_imm8 | In_AL_DX | In_AX_DX | In_EAX_DX => port::input,
        Out_imm8_AL | Out_imm8_AX | Out_imm8_EAX | Out_DX_AL | Out_DX_AX | Out_DX_EAX => port::output,
        Insb_m8_DX | Insw_m16_DX | Insd_m32_DX => port::ins,
        Outsb_DX_m8 | Outsw_DX_m16 | Outsd_DX_m32 => port::outs,
        _ => return None,
    })
}

fn rest(code: Code) -> Option<Slow> {
    use Code::*;
    Some(match code {
        Hlt => misc::hlt,
        Pause => misc::pause,
        Wbinvd | Wbnoinvd | Invd => misc::cache_all,
        Clflush_m8 | Clflushopt_m8 | Clwb_m8 => misc::cache_line,
        Cldemote_m8 | Endbr32 | Endbr64 | Rdsspd_r32 | Rdsspq_r64 => misc::nothing,
        Serialize => misc::serialize,
        Rdtsc => misc::rdtsc,
        Rdtscp => misc::rdtscp,
        Rdpid_r32 | Rdpid_r64 => misc::rdpid,
        Rdpmc => misc::rdpmc,
        Vmcall | Vmmcall => misc::hypercall,
        Monitorw | Monitord | Monitorq => misc::monitor,
        Mwait => misc::mwait,
        Rdpkru => misc::rdpkru,
        Wrpkru => misc::wrpkru,
        Enterw_imm16_imm8 | Enterd_imm16_imm8 | Enterq_imm16_imm8 => stack::enter,
        Leavew | Leaved | Leaveq => stack::leave,
        Ud0 | Ud0_r16_rm16 | Ud0_r32_rm32 | Ud0_r64_rm64 | Ud1_r16_rm16 | Ud1_r32_rm32 | Ud1_r64_rm64
        | Ud2 => misc::undefined,
        Vmlaunch | Vmresume | Vmxoff | Vmfunc | Vmread_rm32_r32 | Vmread_rm64_r64 | Vmwrite_r32_rm32 => {
            misc::undefined
        }
        Vmwrite_r64_rm64 | Vmptrld_m64 | Vmptrst_m64 | Vmclear_m64 | Vmxon_m64 => misc::undefined,
        Invept_r32_m128 | Invept_r64_m128 | Invvpid_r32_m128 | Invvpid_r64_m128 => misc::undefined,
        Vmrunw | Vmrund | Vmrunq | Vmloadw | Vmloadd | Vmloadq | Vmsavew | Vmsaved | Vmsaveq => {
            misc::undefined
        }
        Stgi | Clgi | Skinit | Invlpgaw | Invlpgad | Invlpgaq | Getsecd | Getsecq | Rsm => misc::undefined,
        _ => return None,
    })
}

#[cfg(test)]
mod test;
