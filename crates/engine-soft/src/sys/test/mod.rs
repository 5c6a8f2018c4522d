//! System instructions, exceptions and interrupts, one instruction at a time.

mod bench;
mod control_test;
mod debug_test;
mod far_test;
mod fast_call_test;
mod flags_test;
mod fuzz_test;
mod interrupt_test;
mod iret_test;
mod misc_test;
mod msr_test;
mod port_test;
mod segment_test;
mod table_test;
mod task_test;

use std::sync::Arc;

use umbra_device::Clock;
use umbra_memory::{Backing, Memory, Region, RegionKind};
use umbra_x86::cpuid::{CpuidEntry, CpuidTable, feature};

use crate::cpu::Cpu;
use crate::native;
use crate::vm::Shared;

const TSC_KHZ: u32 = 1_000_000;

/// A table that shows what the engine has, by the vendor named.
fn shown(vendor: &[u8; 12]) -> CpuidTable {
    let mut table = native::host_features();
    let word = |n: usize| u32::from_le_bytes(vendor[n..n + 4].try_into().unwrap());
    let greatest = table.get(0, 0).map_or(0xd, |e| e.eax);
    table.set(CpuidEntry {
        eax: greatest,
        ebx: word(0),
        edx: word(4),
        ecx: word(8),
        ..CpuidEntry::default()
    });
    let sizes = table.get(0x8000_0008, 0).copied().unwrap_or_default();
    table.set(CpuidEntry { leaf: 0x8000_0008, eax: sizes.eax & !0xff | 46, ..sizes });
    [feature::SEP, feature::XSAVE, feature::MSR].iter().for_each(|f| table.set_feature(*f, true));
    table
}

/// Processor 0 of a machine with `len` bytes of RAM, with what CPUID shows.
fn processor_with(len: u64, cpuid: CpuidTable) -> Box<Cpu> {
    let backing = Backing::memfd(c"sys-test", len).unwrap();
    let region = Region::map(0, len, RegionKind::Ram, backing).unwrap();
    let memory = Arc::new(Memory::new(vec![region]).unwrap());
    let shared = Shared::new(memory, Clock::new(), 1, TSC_KHZ);
    Cpu::new(shared, 0, cpuid).unwrap()
}

/// The same, by Intel's name.
fn processor(len: u64) -> Box<Cpu> {
    processor_with(len, shown(b"GenuineIntel"))
}
