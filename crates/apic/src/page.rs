//! The saved form: a page of registers at their architectural offsets.
//!
//! 1,024 bytes, each register 32 bits, little-endian, as KVM's `kvm_lapic_state` has them when 32-bit x2APIC IDs are
//! enabled: in x2APIC mode the ID register holds the whole ID and the upper ICR register the whole destination.
//! IA32_APIC_BASE and IA32_TSC_DEADLINE travel as the MSRs that they are. Errors that the guest has not yet latched
//! into the ESR have no place in the page, so they are latched.

use thiserror::Error;

use crate::apic::{LVT_WRITABLE, LocalApic};
use crate::reg::*;
use crate::timer::Mode;

/// The size of the saved page.
pub const PAGE_SIZE: usize = 1024;

/// Why a saved page was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PageError {
    /// IA32_APIC_BASE has reserved bits or an impossible mode.
    #[error("the saved IA32_APIC_BASE {0:#x} is impossible on this processor")]
    Base(u64),
    /// The page is of another processor.
    #[error("the saved local APIC has ID {found}, but this processor's is {expected}")]
    Id {
        /// This processor's.
        expected: u32,
        /// What the page says.
        found: u32,
    },
}

fn put(page: &mut [u8; PAGE_SIZE], offset: u32, value: u32) {
    if let Some(place) = page.get_mut(offset as usize..).and_then(|p| p.first_chunk_mut()) {
        *place = value.to_le_bytes();
    }
}

fn get(page: &[u8; PAGE_SIZE], offset: u32) -> u32 {
    page.get(offset as usize..).and_then(|p| p.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

impl LocalApic {
    /// The registers at machine time `now` in nanoseconds.
    pub fn to_page(&self, now: u64) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        let id = if self.is_x2apic() { self.id } else { self.id << 24 };
        let current = if self.timer_mode() == Mode::TscDeadline { 0 } else { self.timer.count(now) };
        let registers = [
            (ID, id),
            (VERSION, VERSION_VALUE),
            (TPR, self.tpr.into()),
            (PPR, self.ppr.into()),
            (LDR, self.ldr()),
            (DFR, self.dfr),
            (SVR, self.svr),
            (ESR, self.esr | self.errors),
            (ICR, self.icr as u32),
            (ICR_HIGH, (self.icr >> 32) as u32),
            (TMICT, self.timer.initial),
            (TMCCT, current),
            (TDCR, self.timer.divide()),
        ];
        for (offset, value) in registers {
            put(&mut page, offset, value);
        }
        for i in 0..8 {
            put(&mut page, ISR + i * 16, self.isr.register(i));
            put(&mut page, TMR + i * 16, self.tmr.register(i));
            put(&mut page, IRR + i * 16, self.irr.register(i));
        }
        for (i, lvt) in (0u32..).zip(self.lvt) {
            put(&mut page, LVT_TIMER + i * 16, lvt);
        }
        page
    }

    /// Replaces the whole state by a saved one at machine time `now` in nanoseconds. Bits that do not exist are dropped.
    /// The TSC deadline is disarmed until its MSR is written. An APIC that is off has no state, whatever the page says.
    ///
    /// # Errors
    /// A page that cannot be this processor's; nothing has changed then.
    pub fn load_page(&mut self, page: &[u8; PAGE_SIZE], apic_base: u64, now: u64) -> Result<(), PageError> {
        if !self.is_possible_base(apic_base) {
            return Err(PageError::Base(apic_base));
        }
        if apic_base & BASE_ENABLE == 0 {
            self.base = apic_base;
            self.init();
            return Ok(());
        }
        let x2apic = apic_base & BASE_X2APIC != 0;
        let found = if x2apic { get(page, ID) } else { get(page, ID) >> 24 };
        let expected = if x2apic { self.id } else { self.id & 0xff };
        if found != expected {
            return Err(PageError::Id { expected, found });
        }
        self.base = apic_base;
        self.tpr = get(page, TPR) as u8;
        self.ldr = if x2apic { 0 } else { get(page, LDR) & 0xff00_0000 };
        self.dfr = get(page, DFR) | 0x0fff_ffff;
        self.svr = get(page, SVR) & SVR_WRITABLE;
        (self.esr, self.errors) = (get(page, ESR) & 0xff, 0);
        let high = get(page, ICR_HIGH) & if x2apic { u32::MAX } else { 0xff00_0000 };
        self.icr = u64::from(high) << 32 | u64::from(get(page, ICR) & !(1 << 12));
        for ((i, entry), writable) in (0u32..).zip(&mut self.lvt).zip(LVT_WRITABLE) {
            *entry = get(page, LVT_TIMER + i * 16) & writable;
        }
        for i in 0..8 {
            self.isr.set_register(i, get(page, ISR + i * 16));
            self.tmr.set_register(i, get(page, TMR + i * 16));
            self.irr.set_register(i, get(page, IRR + i * 16));
        }
        self.refresh();
        let mode = self.timer_mode();
        self.timer.load(get(page, TMICT), get(page, TMCCT), get(page, TDCR) & TDCR_WRITABLE, mode, now);
        Ok(())
    }
}
