//! A processor's whole state, to and from `CpuState`.
//!
//! Loading takes any values: what a processor cannot hold is refused with its name, before or while the state block is filled (a
//! processor whose load failed is not to be used). Nothing of what is accepted can do harm later, because everything that
//! the interpreter relies on is checked here.

mod check;
mod msrs;
mod vector;

use std::sync::Arc;

use umbra_apic::{LocalApic, PAGE_SIZE};
use umbra_engine::{
    ApicState, Counters, CpuState, EngineError, Events, RunState, SavedCpuid, SavedSegment, SavedTable,
};
use umbra_x86::cpuid::{CpuidTable, feature};
use umbra_x86::reg::{Cr0, Cr4, DR6_RESET, DR7_RESET, Efer, Rflags};

use crate::cpu::{Cpu, Mode, Msrs, Shadow, VectorState};
use crate::decode::Cache;
use crate::exec::Fast;
use crate::mmu::Tlb;
use crate::native;
use crate::translate::Translator;
use crate::vm::{Injected, KvmClock, Shared, Spin, Tsc, attention, count};

/// What is refused, in words.
pub(crate) type Refused = String;

impl Cpu {
    /// Processor `id` at power-on, with `cpuid` to show.
    ///
    /// # Errors
    /// The host has no executable memory left; CPUID shows a processor that has no state at power-on.
    pub(crate) fn new(shared: Arc<Shared>, id: u32, cpuid: CpuidTable) -> Result<Box<Self>, EngineError> {
        let state = CpuState::power_on(id, &cpuid);
        let vector = VectorState { zmm: [[0; 64]; 32], fx: [0; 512], k: [0; 8], pkru: 0 };
        let mut cpu = Box::new(Self {
            gpr: [0; 16],
            rip: 0,
            fast: Fast::default(),
            rflags: 2,
            mode: Mode::default(),
            seg: Default::default(),
            ldtr: Default::default(),
            tr: Default::default(),
            gdtr: Default::default(),
            idtr: Default::default(),
            cr0: Cr0::empty(),
            cr2: 0,
            cr3: 0,
            pdptes: [0; 4],
            cr4: Cr4::empty(),
            efer: Efer::empty(),
            xcr0: 1,
            dr: [0; 4],
            dr6: 0,
            dr7: 0,
            debug_pending: 0,
            msr: Msrs::default(),
            vector: Box::new(vector),
            fault_address: 0,
            shadow: Shadow::None,
            ending_shadow: Shadow::None,
            nmi_masked: false,
            nmi_pending: false,
            interrupt_hint: false,
            ext_int: false,
            injected: None,
            run_state: RunState::Running,
            id,
            timer_at: u64::MAX,
            alarm_at: u64::MAX,
            tsc: Tsc::default(),
            kvm: KvmClock::default(),
            halt_poll: 0,
            spin: Spin::default(),
            cpuid,
            tlb: Tlb::new(),
            cache: Cache::new(shared.ports.len()),
            translator: Translator::new()?,
            lockstep: None,
            profile: None,
            native: native::Local::new()?,
            shared,
            counters: Counters::new(count::NAMES),
            io: None,
        });
        cpu.prepare_translations();
        load(&mut cpu, &state)?;
        Ok(cpu)
    }
}

/// The processor's whole state. It does not run.
pub(crate) fn save(cpu: &Cpu) -> CpuState {
    let apic = cpu.port().apic().clone();
    let page = || apic.to_page(cpu.shared.clock.now()).to_vec();
    let (tsc, tsc_khz) = cpu.tsc.save(&cpu.shared.time);
    CpuState {
        gpr: cpu.gpr,
        rip: cpu.rip,
        rflags: cpu.rflags,
        segments: cpu.seg.map(SavedSegment),
        ldtr: SavedSegment(cpu.ldtr),
        tr: SavedSegment(cpu.tr),
        gdtr: SavedTable(cpu.gdtr),
        idtr: SavedTable(cpu.idtr),
        cr0: cpu.cr0.bits(),
        cr2: cpu.cr2,
        cr3: cpu.cr3,
        cr4: cpu.cr4.bits(),
        cr8: apic.cr8().into(),
        efer: cpu.efer.bits(),
        xcr0: cpu.xcr0,
        dr: cpu.dr,
        dr6: cpu.dr6,
        dr7: cpu.dr7,
        xsave: vector::save(&cpu.vector),
        msrs: msrs::save(cpu),
        apic: cpu.cpuid.has(feature::APIC).then(|| ApicState { base: apic.base(), page: page() }),
        events: save_events(cpu),
        run_state: cpu.run_state,
        cpuid: cpu.cpuid.entries().iter().copied().map(SavedCpuid).collect(),
        tsc,
        tsc_khz,
    }
}

fn save_events(cpu: &Cpu) -> Events {
    let waiting = cpu.port().waiting();
    let (exception, interrupt) = match cpu.injected {
        Some(Injected::Exception(event)) => (Some(event), None),
        Some(Injected::Interrupt(vector)) => (None, Some(vector)),
        None => (None, None),
    };
    Events {
        exception,
        interrupt,
        interrupt_soft: false,
        sti_shadow: cpu.shadow == Shadow::Sti,
        mov_ss_shadow: cpu.shadow == Shadow::MovSs,
        nmi_pending: cpu.nmi_pending || waiting & attention::NMI != 0,
        nmi_masked: cpu.nmi_masked,
        init_pending: waiting & attention::INIT != 0,
        sipi: (waiting & attention::SIPI != 0).then(|| cpu.port().sipi()),
    }
}

/// Sets the registers that INIT sets as well: all that are in the state block by name, but for XCR0 and the vector registers.
pub(crate) fn load_registers(cpu: &mut Cpu, state: &CpuState) {
    cpu.gpr = state.gpr;
    cpu.rip = state.rip;
    cpu.rflags = state.rflags & Rflags::all().bits() | Rflags::FIXED.bits();
    cpu.seg = state.segments.map(|s| s.0);
    (cpu.ldtr, cpu.tr) = (state.ldtr.0, state.tr.0);
    (cpu.gdtr, cpu.idtr) = (state.gdtr.0, state.idtr.0);
    cpu.cr0 = Cr0::from_bits_truncate(state.cr0) | Cr0::ET;
    (cpu.cr2, cpu.cr3) = (state.cr2, state.cr3);
    cpu.cr4 = Cr4::from_bits_truncate(state.cr4);
    cpu.efer = Efer::from_bits_truncate(state.efer);
    cpu.dr = state.dr;
    cpu.dr6 = state.dr6 & 0xe00f | DR6_RESET;
    cpu.dr7 = state.dr7 & 0xffff_2fff | DR7_RESET;
    cpu.update_mode();
}

/// Replaces the processor's whole state.
pub(crate) fn load(cpu: &mut Cpu, state: &CpuState) -> Result<(), EngineError> {
    try_load(cpu, state).map_err(EngineError::State)
}

fn try_load(cpu: &mut Cpu, state: &CpuState) -> Result<(), Refused> {
    let CpuState {
        gpr: _,
        rip: _,
        rflags: _,
        segments: _,
        ldtr: _,
        tr: _,
        gdtr: _,
        idtr: _,
        cr0: _,
        cr2: _,
        cr3: _,
        cr4: _,
        cr8,
        efer: _,
        xcr0,
        dr: _,
        dr6: _,
        dr7: _,
        xsave,
        msrs,
        apic,
        events,
        run_state,
        cpuid: _,
        tsc,
        tsc_khz,
    } = state;
    let shown = state.cpuid_table();
    if shown != cpu.cpuid {
        return Err("it was shown another CPUID than this processor shows".into());
    }
    check::registers(cpu, state)?;
    load_registers(cpu, state);
    cpu.xcr0 = *xcr0;
    let offered = check::components_offered(cpu);
    vector::load(&mut cpu.vector, xsave, offered)?;
    load_apic(cpu, apic.as_ref(), *cr8)?;
    cpu.tsc = Tsc::load(*tsc, *tsc_khz, &cpu.shared.time);
    msrs::load(cpu, msrs)?;
    load_events(cpu, events)?;
    cpu.run_state = *run_state;
    cpu.halt_poll = 0;
    cpu.interrupt_hint = true;
    cpu.paging_changed();
    if check::has_pdptes(cpu) {
        let cr3 = cpu.cr3;
        let refused = |_| format!("the page-directory-pointer table at CR3 {cr3:#x} has reserved bits");
        cpu.load_pdptes(cr3).map_err(refused)?;
    }
    Ok(())
}

fn load_apic(cpu: &mut Cpu, saved: Option<&ApicState>, cr8: u64) -> Result<(), Refused> {
    let bits = cpu.cpuid.answer(0x8000_0008, 0).eax & 0xff;
    let mut apic = LocalApic::new(cpu.id, cpu.id == 0, bits);
    match saved {
        Some(ApicState { base, page }) => {
            let page = <&[u8; PAGE_SIZE]>::try_from(page.as_slice());
            let page = page.map_err(|_| format!("its local APIC has not {PAGE_SIZE} bytes"))?;
            apic.load_page(page, *base, cpu.shared.clock.now()).map_err(|e| e.to_string())?;
        }
        None => {
            let base = apic.base() & umbra_apic::reg::BASE_BSP;
            apic.load_page(&[0; PAGE_SIZE], base, 0).map_err(|e| e.to_string())?;
            apic.set_cr8(cr8 as u8 & 15);
        }
    }
    *cpu.port().apic() = apic;
    Ok(())
}

/// An exception or interrupt of the program's own begins with its instruction, at which RIP still is.
fn load_events(cpu: &mut Cpu, events: &Events) -> Result<(), Refused> {
    let Events {
        exception,
        interrupt,
        interrupt_soft,
        sti_shadow,
        mov_ss_shadow,
        nmi_pending,
        nmi_masked,
        init_pending,
        sipi,
    } = events;
    if let Some(e) = exception.filter(|e| e.vector > 31) {
        return Err(format!("an exception with vector {} is pending", e.vector));
    }
    let exception = exception.filter(|e| !matches!(e.vector, 3 | 4)).map(Injected::Exception);
    let interrupt = interrupt.filter(|_| !interrupt_soft).map(Injected::Interrupt);
    cpu.injected = exception.or(interrupt);
    cpu.shadow = match (sti_shadow, mov_ss_shadow) {
        (_, true) => Shadow::MovSs,
        (true, false) => Shadow::Sti,
        (false, false) => Shadow::None,
    };
    (cpu.nmi_pending, cpu.nmi_masked) = (*nmi_pending, *nmi_masked);
    cpu.ext_int = false;
    cpu.debug_pending = 0;
    let port = cpu.port();
    port.clear(attention::WAKES & !attention::KICK);
    if *init_pending {
        port.signal_init();
    }
    if let Some(vector) = sipi {
        port.signal_sipi(*vector);
    }
    Ok(())
}

#[cfg(test)]
#[path = "../state_test.rs"]
mod state_test;
