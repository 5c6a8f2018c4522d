//! Model-specific registers: which are saved, and what a state from elsewhere may bring.

use umbra_apic::Now;
use umbra_x86::cpuid::feature;
use umbra_x86::msr;

use super::Refused;
use crate::cpu::{Cpu, Msrs};
use crate::sys::msr::{self as registers, Stored};

/// What a guest can only read, or write without a trace.
const IGNORED: &[u32] = &[msr::IA32_BIOS_SIGN_ID, msr::IA32_PRED_CMD, msr::IA32_DEBUGCTL];

/// What another engine or host may have saved and this one does not heed, whatever the value: kept and given back.
const HARMLESS: &[u32] = &[
    0xe1,        // IA32_UMWAIT_CONTROL
    0x122,       // IA32_TSX_CTRL
    0x17b,       // IA32_MCG_CTL
    0xc001_011f, // VIRT_SPEC_CTRL
    msr::KVM_ASYNC_PF_EN,
    msr::KVM_STEAL_TIME,
    msr::KVM_PV_EOI_EN,
    msr::KVM_POLL_CONTROL,
    0x4b56_4d06, // KVM_ASYNC_PF_INT
    0x4b56_4d07, // KVM_ASYNC_PF_ACK
];

/// What has a place of its own in the state.
const ELSEWHERE: &[u32] =
    &[msr::IA32_TSC, msr::IA32_APIC_BASE, msr::IA32_EFER, msr::IA32_FS_BASE, msr::IA32_GS_BASE];

/// What has changed since power-on, and the PAT, which does not start at zero.
pub(super) fn save(cpu: &Cpu) -> Vec<(u32, u64)> {
    let m = &cpu.msr;
    let named = [
        (msr::IA32_TSC_ADJUST, m.tsc_adjust),
        (msr::IA32_SYSENTER_CS, m.sysenter_cs),
        (msr::IA32_SYSENTER_ESP, m.sysenter_esp),
        (msr::IA32_SYSENTER_EIP, m.sysenter_eip),
        (msr::IA32_PAT, m.pat),
        (msr::IA32_TSC_DEADLINE, cpu.tsc_deadline()),
        (msr::IA32_XSS, m.xss),
        (msr::IA32_STAR, m.star),
        (msr::IA32_LSTAR, m.lstar),
        (msr::IA32_CSTAR, m.cstar),
        (msr::IA32_FMASK, m.fmask),
        (msr::IA32_KERNEL_GS_BASE, m.kernel_gs_base),
        (msr::IA32_TSC_AUX, m.tsc_aux),
        (msr::KVM_WALL_CLOCK_NEW, cpu.kvm.wall_clock),
        (msr::KVM_SYSTEM_TIME_NEW, cpu.kvm.system_time),
    ];
    let changed = named.into_iter().filter(|(n, v)| *v != 0 || *n == msr::IA32_PAT);
    let kept =
        m.other.iter().map(|(n, v)| (*n, *v)).filter(|(n, v)| registers::at_power_on(cpu, *n) != Some(*v));
    let mut all: Vec<_> = changed.chain(kept).collect();
    all.sort_unstable();
    all
}

/// Replaces all: those that are missing are at their value at power-on.
pub(super) fn load(cpu: &mut Cpu, saved: &[(u32, u64)]) -> Result<(), Refused> {
    cpu.msr = Msrs { pat: msr::PAT_RESET, ..Msrs::default() };
    cpu.kvm = Default::default();
    let mut deadline = 0;
    for &(number, value) in saved {
        match number {
            msr::IA32_TSC_DEADLINE => deadline = value,
            // A write would move the counter, which has been loaded.
            msr::IA32_TSC_ADJUST => cpu.msr.tsc_adjust = value,
            // Their structures are written when time goes on.
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => {
                cpu.kvm.wall_clock = value;
                cpu.kvm.wall_clock_due = true;
            }
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => cpu.kvm.system_time = value,
            _ if IGNORED.contains(&number) => {}
            _ if ELSEWHERE.contains(&number) => return Err(format!("{} is not in its place", name(number))),
            _ => load_one(cpu, number, value)?,
        }
    }
    if deadline != 0 && cpu.cpuid.has(feature::TSC_DEADLINE) {
        // The counter as it was loaded; it may not run yet.
        let now = Now { ns: cpu.shared.clock.now(), tsc: cpu.tsc.save(&cpu.shared.time).0 };
        // The timer's MSR takes every value; when it goes off is derived when the processor runs.
        let _ = cpu.port().apic().msr_write(msr::IA32_TSC_DEADLINE, deadline, &now);
    }
    Ok(())
}

fn load_one(cpu: &mut Cpu, number: u32, value: u64) -> Result<(), Refused> {
    let refused = || format!("{} cannot hold {value:#x} here", name(number));
    match registers::load(cpu, number, value) {
        Stored::Yes => Ok(()),
        Stored::Refused => Err(refused()),
        Stored::Unknown if value == 0 || HARMLESS.contains(&number) => {
            cpu.msr.other.insert(number, value);
            Ok(())
        }
        Stored::Unknown => Err(refused()),
    }
}

/// A name to show.
fn name(number: u32) -> String {
    msr::name(number).map_or_else(|| format!("MSR {number:#x}"), Into::into)
}
