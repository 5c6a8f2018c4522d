use umbra_engine::{Event, xcomp};
use umbra_x86::cpuid::CpuidEntry;
use umbra_x86::msr as m;
use umbra_x86::reg::Rflags;
use umbra_x86::segment::{Segment, access, sreg};

use super::*;
use crate::fixture;

/// What the version register holds at power-on is the engine's own business.
const VERSION: std::ops::Range<usize> = 0x30..0x34;

fn at_power_on(id: u32) -> CpuState {
    CpuState::power_on(id, &fixture::cpuid())
}

fn without_version(mut state: CpuState) -> CpuState {
    if let Some(apic) = &mut state.apic {
        apic.page[VERSION].fill(0);
    }
    state
}

/// A 64-bit processor in the middle of its work.
fn busy() -> CpuState {
    let mut s = at_power_on(0);
    s.gpr = std::array::from_fn(|n| 0x1111_1111_1111_1111 * n as u64);
    (s.rip, s.rflags) = (0xffff_ffff_8100_0000, 0x246);
    (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer) = (0x8005_0033, 0x1234, 0x1000, 0x6_06b0, 0, 0xd01);
    let code = access::CODE | access::RW | access::ACCESSED | access::S | access::P | access::L | access::G;
    s.segments[sreg::CS].0 =
        Segment { base: 0, limit: u32::MAX, selector: 0x10, access: code, unusable: false };
    s.segments[sreg::GS].0.base = 0xffff_8880_0000_0000;
    s.xcr0 = 7;
    (s.dr, s.dr6, s.dr7) = ([1, 2, 3, 4], 0xffff_0ff1, 0x401);
    let mut x87 = vec![0; 160];
    x87[..2].copy_from_slice(&[0x7f, 2]);
    x87[24..28].copy_from_slice(&0x1fa0u32.to_le_bytes());
    s.xsave = vec![(xcomp::X87, x87), (xcomp::SSE, vec![3; 256]), (xcomp::AVX, (0..=255).collect())];
    let msrs = [
        (m::IA32_LSTAR, 0xffff_ffff_8100_1000),
        (m::IA32_STAR, 0x23_0010_0000_0000),
        (m::IA32_KERNEL_GS_BASE, 7),
        (m::IA32_TSC_AUX, 3),
        (m::IA32_TSC_ADJUST, 99),
        (m::IA32_SYSENTER_CS, 0x10),
        (m::IA32_MISC_ENABLE, 1),
        (m::IA32_MTRR_DEF_TYPE, 0xc06),
        (m::KVM_SYSTEM_TIME_NEW, 0x3001),
        (m::IA32_TSC_DEADLINE, 5_000_000),
    ];
    msrs.iter().for_each(|(n, v)| s.set_msr(*n, *v));
    let page = &mut s.apic.as_mut().unwrap().page;
    // On by software, timer in TSC-deadline mode, one interrupt requested.
    page[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    page[0x320..0x324].copy_from_slice(&0x4_00ecu32.to_le_bytes());
    page[0x210..0x214].copy_from_slice(&(1u32 << 5).to_le_bytes());
    s.events = Events {
        sti_shadow: true,
        nmi_pending: true,
        nmi_masked: true,
        init_pending: true,
        sipi: Some(0x9a),
        ..Events::default()
    };
    s.run_state = RunState::Halted;
    (s.tsc, s.tsc_khz) = (4_000_000, 1_234_567);
    s
}

#[test]
fn a_new_processor_is_at_power_on() {
    for id in [0, 3] {
        let cpu = Cpu::new(fixture::shared(1 << 16, 4), id, fixture::cpuid()).unwrap();
        assert_eq!(
            without_version(save(&cpu)).differences(&without_version(at_power_on(id))),
            Vec::<String>::new()
        );
    }
}

#[test]
fn what_is_loaded_is_what_is_saved() {
    let mut cpu = fixture::processor(1 << 16);
    for state in [at_power_on(0), busy(), at_power_on(0)] {
        load(&mut cpu, &state).unwrap();
        let saved = without_version(save(&cpu));
        assert_eq!(saved.differences(&without_version(state)), Vec::<String>::new());
    }
}

#[test]
fn events_in_delivery() {
    let mut cpu = fixture::processor(1 << 16);
    let mut load_events =
        |events: Events| load(&mut cpu, &CpuState { events, ..at_power_on(0) }).map(|()| save(&cpu).events);
    let page_fault = Events { exception: Some(Event { vector: 14, error: Some(2) }), ..Events::default() };
    assert_eq!(load_events(page_fault.clone()).unwrap(), page_fault);
    let interrupt = Events { interrupt: Some(0x31), mov_ss_shadow: true, ..Events::default() };
    assert_eq!(load_events(interrupt.clone()).unwrap(), interrupt);
    // The instruction is executed again.
    let soft = Events { interrupt: Some(0x80), interrupt_soft: true, ..Events::default() };
    assert_eq!(load_events(soft).unwrap(), Events::default());
    let breakpoint = Events { exception: Some(Event { vector: 3, error: None }), ..Events::default() };
    assert_eq!(load_events(breakpoint).unwrap(), Events::default());
    assert!(
        load_events(Events { exception: Some(Event { vector: 32, error: None }), ..Events::default() })
            .is_err()
    );
}

#[test]
fn what_no_processor_can_hold_is_refused_by_name() {
    type Change = fn(&mut CpuState);
    let cases: &[(&str, Change)] = &[
        ("CR0", |s| s.cr0 = 1 << 31),
        ("CR0", |s| s.cr0 = 1 << 40),
        ("CR0", |s| s.cr0 = 1 << 29),
        ("CR4", |s| s.cr4 = 1 << 12),
        ("CR4", |s| s.cr4 = 1 << 63),
        ("CR4", |s| s.cr4 = 1 << 17),
        ("EFER", |s| s.efer = 1 << 12),
        ("EFER", |s| s.efer = 0x500),
        ("EFER", |s| (s.cr0, s.efer) = (0x8000_0011, 0x500)),
        ("CR3", |s| s.cr3 = 1 << 63),
        ("XCR0", |s| s.xcr0 = 0),
        ("XCR0", |s| s.xcr0 = 5),
        ("XCR0", |s| s.xcr0 = 1 << 40),
        ("DR7", |s| s.dr7 = 1 << 32),
        ("GS", |s| s.segments[sreg::GS].0.base = 1 << 60),
        ("IDTR", |s| s.idtr.0.base = 1 << 47),
        ("component 1", |s| s.xsave = vec![(xcomp::SSE, vec![0; 255])]),
        ("component 9", |s| s.xsave = vec![(xcomp::PKRU, vec![0; 8])]),
        ("component 63", |s| s.xsave = vec![(63, vec![])]),
        ("component 4294967295", |s| s.xsave = vec![(u32::MAX, vec![])]),
        ("MXCSR", |s| s.xsave = vec![(xcomp::X87, vec![0xff; 160])]),
        ("IA32_LSTAR", |s| s.set_msr(m::IA32_LSTAR, 1 << 60)),
        ("IA32_PAT", |s| s.set_msr(m::IA32_PAT, 2)),
        ("IA32_EFER", |s| s.set_msr(m::IA32_EFER, 0)),
        ("MSR 0x12345", |s| s.set_msr(0x12345, 1)),
        ("local APIC", |s| s.apic.as_mut().unwrap().page.truncate(1000)),
        ("local APIC has ID 9", |s| s.apic.as_mut().unwrap().page[0x23] = 9),
        ("IA32_APIC_BASE", |s| s.apic.as_mut().unwrap().base = 0x400),
        ("CPUID", |s| s.cpuid.truncate(1)),
    ];
    let mut cpu = fixture::processor(1 << 16);
    for (name, change) in cases {
        let mut state = at_power_on(0);
        change(&mut state);
        let error = load(&mut cpu, &state).expect_err(name).to_string();
        assert!(error.contains(name), "{error} does not name {name}");
    }
    load(&mut cpu, &at_power_on(0)).unwrap();
}

#[test]
fn what_other_hosts_save_is_kept_if_it_is_harmless() {
    let mut cpu = fixture::processor(1 << 16);
    let mut state = at_power_on(0);
    let kept = [(0x12345, 0), (m::KVM_STEAL_TIME, 0x4001), (0x122, 2), (m::IA32_ARCH_CAPABILITIES, 1)];
    kept.iter().for_each(|(n, v)| state.set_msr(*n, *v));
    load(&mut cpu, &state).unwrap();
    assert_eq!(save(&cpu).msrs, state.msrs);
    // What has no trace is dropped, and KVM's clock has two numbers.
    state.set_msr(m::IA32_BIOS_SIGN_ID, 5);
    state.set_msr(m::KVM_SYSTEM_TIME, 0x2001);
    load(&mut cpu, &state).unwrap();
    let saved = save(&cpu);
    assert_eq!((saved.msr(m::IA32_BIOS_SIGN_ID), saved.msr(m::KVM_SYSTEM_TIME)), (None, None));
    assert_eq!(saved.msr(m::KVM_SYSTEM_TIME_NEW), Some(0x2001));
}

#[test]
fn page_directory_pointers_are_read_again() {
    let mut cpu = fixture::processor(1 << 16);
    let mut state = at_power_on(0);
    (state.cr0, state.cr3, state.cr4) = (0x8000_0011, 0x3000, 0x20);
    cpu.shared.memory.write(0x3000, &0x5001u64.to_le_bytes()).unwrap();
    load(&mut cpu, &state).unwrap();
    assert_eq!(cpu.pdptes, [0x5001, 0, 0, 0]);
    cpu.shared.memory.write(0x3000, &0x5007u64.to_le_bytes()).unwrap();
    assert!(load(&mut cpu, &state).unwrap_err().to_string().contains("page-directory-pointer"));
}

#[test]
fn a_processor_without_an_apic() {
    let mut cpuid = fixture::cpuid();
    cpuid.set_feature(umbra_x86::cpuid::feature::APIC, false);
    cpuid.set(CpuidEntry { leaf: 0x4000_0000, ..CpuidEntry::default() });
    let mut cpu = Cpu::new(fixture::shared(1 << 16, 1), 0, cpuid.clone()).unwrap();
    let state = CpuState { cr8: 5, ..CpuState::power_on(0, &cpuid) };
    load(&mut cpu, &state).unwrap();
    assert_eq!(save(&cpu).differences(&state), Vec::<String>::new());
    assert!(!cpu.port().apic().is_on());
}

#[test]
fn bits_that_do_not_exist_are_dropped_from_flags_and_debug_registers() {
    let mut cpu = fixture::processor(1 << 16);
    load(&mut cpu, &CpuState { rflags: !Rflags::VM.bits(), dr6: 0, dr7: 0xffff_ffff, ..at_power_on(0) })
        .unwrap();
    let saved = save(&cpu);
    assert_eq!(saved.rflags, (Rflags::all() - Rflags::VM).bits());
    assert_eq!((saved.dr6, saved.dr7), (0xffff_0ff0, 0xffff_2fff));
}
