//! The state of a local APIC, and the life of an interrupt in it: accepted, pending, in service, ended.
//!
//! Intel SDM volume 3, "Handling Interrupts" and "Interrupt Acceptance for Fixed Interrupts". An interrupt is
//! deliverable when its class (the upper four bits of its vector) is above that of the processor priority. Both
//! sets' highest members and the processor priority are kept current, so that asking costs two comparisons.

use crate::message::{Delivery, Destination};
use crate::reg::*;
use crate::timer::{Deadline, Mode, Timer};
use crate::vectors::Vectors;

/// An entry of the local vector table, in the order of the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Lvt {
    /// The timer.
    Timer,
    /// The thermal sensor.
    Thermal,
    /// The performance counters.
    Perf,
    /// The LINT0 pin, at the PIC's output.
    Lint0,
    /// The LINT1 pin: NMI by convention.
    Lint1,
    /// Errors of the APIC itself.
    Error,
}

pub(crate) const LVT_COUNT: usize = 6;

/// What can be written of each entry.
pub(crate) const LVT_WRITABLE: [u32; LVT_COUNT] =
    [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

/// One processor's local APIC.
#[derive(Debug, Clone)]
pub struct LocalApic {
    pub(crate) id: u32,
    /// The guest's physical address width, for the reserved bits of IA32_APIC_BASE.
    pub(crate) address_bits: u32,
    /// IA32_APIC_BASE.
    pub(crate) base: u64,
    pub(crate) tpr: u8,
    pub(crate) ppr: u8,
    pub(crate) irr: Vectors,
    pub(crate) isr: Vectors,
    pub(crate) tmr: Vectors,
    irr_highest: u8,
    isr_highest: u8,
    pub(crate) ldr: u32,
    pub(crate) dfr: u32,
    pub(crate) svr: u32,
    pub(crate) esr: u32,
    /// Errors since the ESR was last written.
    pub(crate) errors: u32,
    pub(crate) icr: u64,
    pub(crate) lvt: [u32; LVT_COUNT],
    pub(crate) timer: Timer,
}

impl LocalApic {
    /// The APIC with ID `id`, as after power-on, in a processor with `address_bits` (32 to 52) physical address bits.
    pub fn new(id: u32, is_bsp: bool, address_bits: u32) -> Self {
        let mut apic = Self {
            id,
            address_bits: address_bits.clamp(32, 52),
            base: if is_bsp { BASE_BSP } else { 0 },
            tpr: 0,
            ppr: 0,
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr_highest: 0,
            isr_highest: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [0; LVT_COUNT],
            timer: Timer::default(),
        };
        apic.reset();
        apic
    }

    /// Power-on reset: xAPIC mode at the default address, every register at its first value. The BSP flag stays.
    pub fn reset(&mut self) {
        self.base = DEFAULT_ADDRESS | BASE_ENABLE | self.base & BASE_BSP;
        self.init();
    }

    /// INIT: the registers as after a reset; mode, address and ID stay.
    ///
    /// LINT0 of the bootstrap processor passes the PIC's interrupts on, which is what firmware leaves behind
    /// ("virtual wire mode", MultiProcessor Specification 3.6.2.2) and what KVM does, as kernels may be entered without firmware.
    pub fn init(&mut self) {
        (self.tpr, self.ppr) = (0, 0);
        (self.irr, self.isr, self.tmr) = Default::default();
        (self.irr_highest, self.isr_highest) = (0, 0);
        (self.ldr, self.dfr, self.svr) = (0, u32::MAX, 0xff);
        (self.esr, self.errors, self.icr) = (0, 0, 0);
        self.lvt = [LVT_MASKED; LVT_COUNT];
        if self.is_bsp() {
            self.lvt[Lvt::Lint0 as usize] = 7 << 8;
        }
        self.timer = Timer::default();
    }

    /// The APIC's ID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Whether this is the bootstrap processor's.
    pub fn is_bsp(&self) -> bool {
        self.base & BASE_BSP != 0
    }

    /// Whether the APIC is on (IA32_APIC_BASE), in either mode.
    pub fn is_on(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    /// Whether the APIC is on and enabled by software (SVR): it accepts fixed interrupts. INIT, start-up, SMI and NMI
    /// come through to an APIC that is merely on, which is why [`LocalApic::matches_destination`] does not ask for this.
    pub fn is_enabled(&self) -> bool {
        self.is_on() && self.svr & SVR_ENABLE != 0
    }

    /// Whether the registers are MSRs.
    pub fn is_x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    /// Where the register page is in guest physical memory; `None` if there is none (off, or x2APIC).
    pub fn mmio_base(&self) -> Option<u64> {
        (self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE).then_some(self.base & BASE_ADDRESS)
    }

    /// The logical destination register: derived from the ID in x2APIC mode.
    pub(crate) fn ldr(&self) -> u32 {
        if self.is_x2apic() { (self.id >> 4) << 16 | 1 << (self.id & 15) } else { self.ldr }
    }

    /// Whether a message to `destination` is for this processor; `is_sender`: it sent the message itself.
    pub fn matches_destination(&self, destination: Destination, is_sender: bool) -> bool {
        self.is_on()
            && match destination {
                Destination::Physical(id) => id == self.id,
                Destination::Logical(address) => self.matches_logical(address),
                Destination::All => true,
                Destination::AllButSelf => !is_sender,
                Destination::SelfOnly => is_sender,
            }
    }

    fn matches_logical(&self, address: u32) -> bool {
        let ldr = self.ldr();
        if self.is_x2apic() {
            return address >> 16 == ldr >> 16 && address & ldr & 0xffff != 0;
        }
        let id = ldr >> 24;
        match self.dfr >> 28 {
            0xf => address & id & 0xff != 0,
            0 => address >> 4 == id >> 4 && address & id & 0xf != 0,
            _ => false,
        }
    }

    /// Accepts an interrupt, by a message or from the I/O APIC: into the IRR. False if it was there, if the APIC
    /// does not accept any, or if the vector is illegal (below 16, an error of its own).
    pub fn accept(&mut self, vector: u8, level: bool) -> bool {
        if !self.is_enabled() {
            return false;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL);
            return false;
        }
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
        self.irr_highest = self.irr_highest.max(vector);
        self.irr.insert(vector)
    }

    /// The vector that the processor should take now, if its interrupt flag lets it.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        (self.irr_highest >> 4 > self.ppr >> 4).then_some(self.irr_highest)
    }

    /// The processor takes the pending interrupt: its vector, from now on in service. The spurious vector, which is
    /// not in service, if there is none any more.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(vector) = self.pending() else { return self.svr as u8 };
        self.irr.remove(vector);
        self.irr_highest = self.irr.highest();
        self.isr.insert(vector);
        self.isr_highest = vector;
        self.update_ppr();
        vector
    }

    /// Ends the interrupt in service with the highest vector. Returns the vector if the I/O APIC must hear of it:
    /// it was level-triggered, and the guest has not chosen to tell the I/O APIC itself.
    pub fn eoi(&mut self) -> Option<u8> {
        let vector = self.isr_highest;
        if vector == 0 {
            return None;
        }
        self.isr.remove(vector);
        self.isr_highest = self.isr.highest();
        self.update_ppr();
        (self.tmr.has(vector) && self.svr & SVR_SUPPRESS_EOI == 0).then_some(vector)
    }

    /// CR8: the task priority's class.
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8; its lower four bits count.
    pub fn set_cr8(&mut self, class: u8) {
        self.set_tpr(class << 4);
    }

    pub(crate) fn set_tpr(&mut self, tpr: u8) {
        self.tpr = tpr;
        self.update_ppr();
    }

    fn update_ppr(&mut self) {
        let serving = self.isr_highest & 0xf0;
        self.ppr = if self.tpr & 0xf0 >= serving { self.tpr } else { serving };
    }

    /// Recomputes what follows from IRR, ISR and TPR.
    pub(crate) fn refresh(&mut self) {
        self.irr_highest = self.irr.highest();
        self.isr_highest = self.isr.highest();
        self.update_ppr();
    }

    /// What [`arbitrate`](crate::arbitrate) compares: the processor with the lowest value is the least busy one.
    /// Only processors whose APIC [is enabled](LocalApic::is_enabled) take part.
    pub fn arbitration_priority(&self) -> u8 {
        let requested = self.irr_highest & 0xf0;
        if self.ppr & 0xf0 > requested { self.ppr } else { requested }
    }

    /// Whether the processor takes the PIC's interrupts: LINT0 passes them on, or there is no APIC in the way.
    pub fn accepts_ext_int(&self) -> bool {
        if !self.is_on() {
            return self.is_bsp();
        }
        let lint0 = self.lvt[Lvt::Lint0 as usize];
        lint0 & LVT_MASKED == 0 && Delivery::from_bits(lint0 >> 8) == Some(Delivery::ExtInt)
    }

    /// A local source asserts its interrupt. What the caller must deliver, if it is no vector (those are accepted here).
    pub fn raise(&mut self, source: Lvt) -> Option<Delivery> {
        let entry = &mut self.lvt[source as usize];
        let lvt = *entry;
        if lvt & LVT_MASKED != 0 || self.base & BASE_ENABLE == 0 {
            return None;
        }
        if source == Lvt::Perf {
            *entry |= LVT_MASKED;
        }
        // The timer and error entries have no delivery mode.
        let mode = if matches!(source, Lvt::Timer | Lvt::Error) { 0 } else { lvt >> 8 };
        match Delivery::from_bits(mode)? {
            Delivery::Fixed => {
                self.accept(lvt as u8, false);
                None
            }
            Delivery::LowestPriority | Delivery::Startup => None,
            other => Some(other),
        }
    }

    /// Notes an error and raises the error interrupt. An illegal vector for that interrupt is one more error, but
    /// raises nothing, or it would for ever.
    pub(crate) fn error(&mut self, bit: u32) {
        self.errors |= bit;
        let lvt = self.lvt[Lvt::Error as usize];
        if lvt & LVT_MASKED == 0 && lvt as u8 >= 16 {
            self.accept(lvt as u8, false);
        } else if lvt & LVT_MASKED == 0 {
            self.errors |= ESR_RECEIVE_ILLEGAL;
        }
    }

    pub(crate) fn timer_mode(&self) -> Mode {
        Mode::from_lvt(self.lvt[Lvt::Timer as usize])
    }

    /// When [`LocalApic::expire`] must be called. It changes only where [`Effects::timer`](crate::Effects) says so, in
    /// `expire`, and with reset, INIT and loading.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.timer.next(self.timer_mode())
    }

    /// The time is `now` (nanoseconds) and `tsc`: raises the timer's interrupt if it has come to its end. True if it has,
    /// whether or not the interrupt is masked. Harmless at any time.
    pub fn expire(&mut self, now: u64, tsc: u64) -> bool {
        let expired = self.timer.expire(self.timer_mode(), now, tsc);
        if expired {
            self.raise(Lvt::Timer);
        }
        expired
    }
}
