//! Model-specific registers: which are saved, and how KVM is asked for them.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use umbra_x86::msr;

use umbra_engine::MACHINE_CHECK_BANKS;

/// What is saved, in the order in which it is loaded, besides what has a place of its own in the state: TSC, deadline, EFER, segment bases, APIC.
/// Those that a host or a CPU model has not are left out.
const SAVED: &[u32] = &[
    msr::IA32_FEATURE_CONTROL,
    msr::IA32_TSC_ADJUST,
    msr::IA32_SPEC_CTRL,
    0xe1,  // IA32_UMWAIT_CONTROL
    0x122, // IA32_TSX_CTRL
    0x140, // MISC_FEATURES_ENABLES
    msr::IA32_SYSENTER_CS,
    msr::IA32_SYSENTER_ESP,
    msr::IA32_SYSENTER_EIP,
    msr::IA32_MCG_STATUS,
    0x17b, // IA32_MCG_CTL
    msr::IA32_MISC_ENABLE,
    msr::IA32_DEBUGCTL,
    msr::IA32_MTRR_FIX64K_00000,
    msr::IA32_MTRR_FIX16K_80000,
    msr::IA32_MTRR_FIX16K_80000 + 1,
    msr::IA32_PAT,
    msr::IA32_MTRR_DEF_TYPE,
    msr::IA32_XSS,
    msr::IA32_STAR,
    msr::IA32_LSTAR,
    msr::IA32_CSTAR,
    msr::IA32_FMASK,
    msr::IA32_KERNEL_GS_BASE,
    msr::IA32_TSC_AUX,
    msr::MSR_HWCR,
    0xc001_011f, // VIRT_SPEC_CTRL
    0xc001_1029, // DE_CFG
    msr::KVM_WALL_CLOCK_NEW,
    msr::KVM_SYSTEM_TIME_NEW,
    0x4b56_4d06, // KVM_ASYNC_PF_INT, needed by the next
    msr::KVM_ASYNC_PF_EN,
    msr::KVM_STEAL_TIME,
    msr::KVM_PV_EOI_EN,
    msr::KVM_POLL_CONTROL,
];

/// Variable-range and 4 KiB fixed-range MTRRs come in rows, and so do the banks of machine checks.
const SAVED_ROWS: &[(u32, u32)] =
    &[(msr::IA32_MTRR_PHYSBASE0, 16), (msr::IA32_MTRR_FIX4K_C0000, 8), (0x400, 4 * MACHINE_CHECK_BANKS)];

/// What a guest can only read, or write without a trace: a saved value may stand in a state, and means nothing here.
const IGNORED: &[u32] = &[
    msr::IA32_PLATFORM_ID,
    msr::IA32_BIOS_SIGN_ID,
    msr::MSR_PLATFORM_INFO,
    msr::IA32_MTRRCAP,
    msr::IA32_MCG_CAP,
    msr::IA32_ARCH_CAPABILITIES,
    msr::IA32_PRED_CMD,
    msr::MSR_SYSCFG,
];

/// The saved MSRs that a vCPU has, with their values. Asked of a new vCPU, these are the values at power-on.
pub(crate) fn available(vcpu: &VcpuFd) -> io::Result<Vec<(u32, u64)>> {
    let rows = SAVED_ROWS.iter().flat_map(|(first, count)| *first..first + count);
    let numbers: Vec<u32> = SAVED.iter().copied().chain(rows).collect();
    let mut found = Vec::with_capacity(numbers.len());
    let mut rest = numbers.as_slice();
    while !rest.is_empty() {
        let read = read(vcpu, rest)?;
        // KVM stops at the first that it has not.
        rest = rest.get(read.len() + 1..).unwrap_or(&[]);
        found.extend(read);
    }
    Ok(found)
}

/// Reads MSRs up to the first that the vCPU has not.
pub(crate) fn read(vcpu: &VcpuFd, numbers: &[u32]) -> io::Result<Vec<(u32, u64)>> {
    let entries: Vec<_> =
        numbers.iter().map(|index| kvm_msr_entry { index: *index, ..kvm_msr_entry::default() }).collect();
    let mut list = Msrs::from_entries(&entries).map_err(io::Error::other)?;
    let count = vcpu.get_msrs(&mut list)?;
    Ok(list.as_slice().iter().take(count).map(|e| (e.index, e.data)).collect())
}

/// Writes MSRs. The index of the first that the vCPU refuses, if it does.
pub(crate) fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> io::Result<Option<usize>> {
    let entries: Vec<_> = values
        .iter()
        .map(|&(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() })
        .collect();
    let list = Msrs::from_entries(&entries).map_err(io::Error::other)?;
    let count = vcpu.set_msrs(&list)?;
    Ok((count < values.len()).then_some(count))
}

/// What belongs into a state: what has changed since power-on, and the PAT, which the architecture does not start at zero.
pub(crate) fn is_saved(number: u32, value: u64, power_on: u64) -> bool {
    value != power_on || number == msr::IA32_PAT
}

/// The values to load: those of the state, and those at power-on for what is missing in it.
///
/// # Errors
/// In words: a value that this host cannot hold.
pub(crate) fn to_load(saved: &[(u32, u64)], available: &[(u32, u64)]) -> Result<Vec<(u32, u64)>, String> {
    let mut values = available.to_vec();
    let mut renamed: Vec<_> = saved.iter().map(|&(n, v)| (current_number(n), v)).collect();
    // Under both numbers, the current one counts, which sorts last.
    renamed.sort_by_key(|&(n, v)| (n, saved.contains(&(n, v))));
    for (number, value) in renamed {
        match values.iter_mut().find(|(n, _)| *n == number) {
            Some(entry) => entry.1 = value,
            None if value == 0 || IGNORED.contains(&number) || number == msr::IA32_TSC_DEADLINE => (),
            None => return Err(format!("{} holds {value:#x} and KVM has it not here", name(number))),
        }
    }
    Ok(values)
}

/// KVM's first two paravirtual MSRs are the same registers as their later numbers.
fn current_number(number: u32) -> u32 {
    match number {
        msr::KVM_WALL_CLOCK => msr::KVM_WALL_CLOCK_NEW,
        msr::KVM_SYSTEM_TIME => msr::KVM_SYSTEM_TIME_NEW,
        other => other,
    }
}

/// A name to show.
pub(crate) fn name(number: u32) -> String {
    msr::name(number).map_or_else(|| format!("MSR {number:#x}"), Into::into)
}
