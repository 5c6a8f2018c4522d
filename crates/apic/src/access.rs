//! Register accesses: the xAPIC page, the x2APIC MSRs, IA32_APIC_BASE and IA32_TSC_DEADLINE.
//!
//! Intel SDM volume 3: "Local APIC Register Address Map"; "Extended XAPIC (x2APIC)", with its table of register
//! access, its reserved bits, which raise #GP, and its state transitions.

use thiserror::Error;

use crate::Time;
use crate::apic::{LVT_WRITABLE, LocalApic, Lvt};
use crate::message::{Delivery, Destination, Message};
use crate::reg::*;
use crate::timer::Mode;

/// What the owner of an APIC must do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use]
pub struct Effects {
    /// Send this to the processors that it names.
    pub ipi: Option<Message>,
    /// Tell the I/O APIC that an interrupt with this vector has ended.
    pub eoi: Option<u8>,
    /// [`LocalApic::next_deadline`] may have changed.
    pub timer: bool,
}

impl Effects {
    const NONE: Self = Self { ipi: None, eoi: None, timer: false };
    const TIMER: Self = Self { timer: true, ..Self::NONE };
}

/// The access raises a general-protection exception.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the access to a local APIC register raises #GP")]
pub struct Gp;

fn lvt_index(offset: u32) -> Option<usize> {
    (LVT_TIMER..=LVT_ERROR).contains(&offset).then(|| ((offset - LVT_TIMER) / 16) as usize)
}

impl LocalApic {
    /// Reads from the register page: any part of one register's 32 bits; what lies between registers reads as zero.
    pub fn mmio_read(&mut self, offset: u64, data: &mut [u8], time: &dyn Time) {
        data.fill(0);
        let within = (offset & 15) as usize;
        if within < 4 && data.len() <= 4 - within {
            let bytes = self.read((offset & 0xff0) as u32, time).to_le_bytes();
            data.iter_mut().zip(&bytes[within..]).for_each(|(to, from)| *to = *from);
        }
    }

    /// Writes to the register page. Only aligned writes of 32 bits count, as the manual demands them.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8], time: &dyn Time) -> Effects {
        match <[u8; 4]>::try_from(data) {
            Ok(bytes) if offset & 15 == 0 => {
                self.write((offset & 0xff0) as u32, u32::from_le_bytes(bytes), time)
            }
            _ => Effects::NONE,
        }
    }

    /// Reads the 32-bit register at `offset` in the page.
    pub fn read(&mut self, offset: u32, time: &dyn Time) -> u32 {
        match self.register(offset, time) {
            Some(value) => value,
            None => {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// The value of a register that can be read; the same in both modes where it is in both.
    fn register(&self, offset: u32, time: &dyn Time) -> Option<u32> {
        Some(match offset {
            ID if self.is_x2apic() => self.id,
            ID => self.id << 24,
            VERSION => VERSION_VALUE,
            TPR => self.tpr.into(),
            PPR => self.ppr.into(),
            APR | RRD | EOI => 0,
            LDR => self.ldr(),
            DFR => self.dfr,
            SVR => self.svr,
            ISR..TMR => self.isr.register((offset - ISR) / 16),
            TMR..IRR => self.tmr.register((offset - TMR) / 16),
            IRR..ESR => self.irr.register((offset - IRR) / 16),
            ESR => self.esr,
            ICR => self.icr as u32,
            ICR_HIGH => (self.icr >> 32) as u32,
            LVT_TIMER..=LVT_ERROR => lvt_index(offset).and_then(|i| self.lvt.get(i)).copied()?,
            TMICT => self.timer.initial,
            TMCCT if self.timer_mode() == Mode::TscDeadline => 0,
            TMCCT => self.timer.count(time.ns()),
            TDCR => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes the 32-bit register at `offset` in the page. Writes to read-only registers do nothing.
    pub fn write(&mut self, offset: u32, value: u32, time: &dyn Time) -> Effects {
        match offset {
            LDR => self.ldr = value & 0xff00_0000,
            DFR => self.dfr = value | 0x0fff_ffff,
            ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value & !(1 << 12));
                return self.send(Message::from_icr(self.icr, false));
            }
            ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32,
            ID | VERSION | APR | PPR | RRD | ISR..ESR | TMCCT => {}
            _ => return self.write_common(offset, value, time),
        }
        Effects::NONE
    }

    /// Writes a register that both modes have.
    fn write_common(&mut self, offset: u32, value: u32, time: &dyn Time) -> Effects {
        match offset {
            TPR => self.set_tpr(value as u8),
            EOI => return Effects { eoi: self.eoi(), ..Effects::NONE },
            SVR => self.set_svr(value),
            ESR => self.esr = std::mem::take(&mut self.errors),
            LVT_TIMER => {
                let old = self.timer_mode();
                self.set_lvt(Lvt::Timer as usize, value);
                self.timer.set_mode(old, self.timer_mode());
                return Effects::TIMER;
            }
            LVT_THERMAL..=LVT_ERROR => {
                if let Some(index) = lvt_index(offset) {
                    self.set_lvt(index, value);
                }
            }
            TMICT => {
                self.timer.set_initial(value, self.timer_mode(), time.ns());
                return Effects::TIMER;
            }
            TDCR => {
                self.timer.set_divide(value & TDCR_WRITABLE, time.ns());
                return Effects::TIMER;
            }
            _ => self.error(ESR_ILLEGAL_REGISTER),
        }
        Effects::NONE
    }

    fn set_svr(&mut self, value: u32) {
        self.svr = value & SVR_WRITABLE;
        if value & SVR_ENABLE == 0 {
            self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
        }
    }

    /// While the APIC is disabled by software every entry stays masked.
    fn set_lvt(&mut self, index: usize, value: u32) {
        let forced = if self.svr & SVR_ENABLE == 0 { LVT_MASKED } else { 0 };
        if let (Some(lvt), Some(writable)) = (self.lvt.get_mut(index), LVT_WRITABLE.get(index)) {
            *lvt = value & writable | forced;
        }
    }

    /// What an interrupt command sends. A vector to the sender itself is accepted at once.
    fn send(&mut self, message: Option<Message>) -> Effects {
        let Some(message) = message else { return Effects::NONE };
        if message.delivery.has_vector() && message.vector < 16 {
            self.error(ESR_SEND_ILLEGAL);
            return Effects::NONE;
        }
        match (message.destination, message.delivery) {
            (Destination::SelfOnly, Delivery::Fixed | Delivery::LowestPriority) => {
                self.accept(message.vector, false);
                Effects::NONE
            }
            (Destination::SelfOnly, Delivery::Init | Delivery::Startup) => Effects::NONE,
            _ => Effects { ipi: Some(message), ..Effects::NONE },
        }
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// The processor raises #GP.
    pub fn msr_read(&self, msr: u32, time: &dyn Time) -> Result<u64, Gp> {
        match msr {
            MSR_APIC_BASE => Ok(self.base),
            MSR_TSC_DEADLINE => Ok(self.timer.tsc_deadline),
            MSR_X2APIC..=MSR_X2APIC_LAST if self.is_x2apic() => match (msr - MSR_X2APIC) * 16 {
                ICR => Ok(self.icr),
                APR | EOI | RRD | DFR | ICR_HIGH => Err(Gp),
                offset => self.register(offset, time).map(u64::from).ok_or(Gp),
            },
            _ => Err(Gp),
        }
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register.
    ///
    /// # Errors
    /// The processor raises #GP; nothing has changed.
    pub fn msr_write(&mut self, msr: u32, value: u64, time: &dyn Time) -> Result<Effects, Gp> {
        match msr {
            MSR_APIC_BASE => self.set_base(value),
            MSR_TSC_DEADLINE => Ok(self.set_tsc_deadline(value, time)),
            MSR_X2APIC..=MSR_X2APIC_LAST if self.is_x2apic() => {
                self.x2apic_write((msr - MSR_X2APIC) * 16, value, time)
            }
            _ => Err(Gp),
        }
    }

    fn x2apic_write(&mut self, offset: u32, value: u64, time: &dyn Time) -> Result<Effects, Gp> {
        let writable = match offset {
            ICR => 0xffff_ffff_000c_dfff,
            TPR | SELF_IPI => 0xff,
            EOI | ESR => 0,
            SVR => SVR_WRITABLE.into(),
            LVT_TIMER..=LVT_ERROR => {
                u64::from(lvt_index(offset).and_then(|i| LVT_WRITABLE.get(i)).ok_or(Gp)? | LVT_READ_ONLY)
            }
            TMICT => 0xffff_ffff,
            TDCR => TDCR_WRITABLE.into(),
            _ => return Err(Gp),
        };
        if value & !writable != 0 {
            return Err(Gp);
        }
        Ok(match offset {
            ICR => {
                self.icr = value & !(1 << 12);
                self.send(Message::from_icr(self.icr, true))
            }
            SELF_IPI => self.send(Some(Message {
                destination: Destination::SelfOnly,
                delivery: Delivery::Fixed,
                vector: value as u8,
                level: false,
            })),
            _ => self.write_common(offset, value as u32, time),
        })
    }

    /// Arms, or with zero disarms, the timer; without effect in its other modes. A deadline that has passed goes off here.
    fn set_tsc_deadline(&mut self, value: u64, time: &dyn Time) -> Effects {
        if self.timer_mode() != Mode::TscDeadline {
            return Effects::NONE;
        }
        self.timer.tsc_deadline = value;
        if value != 0 && value <= time.tsc() {
            self.expire(0, value);
        }
        Effects::TIMER
    }

    /// Switches modes as far as the manual's state diagram has an arrow: from x2APIC only to off, from off only to xAPIC.
    /// An APIC that is switched off forgets its state.
    fn set_base(&mut self, value: u64) -> Result<Effects, Gp> {
        const MODE: u64 = BASE_ENABLE | BASE_X2APIC;
        let (old, new) = (self.base & MODE, value & MODE);
        if !self.is_possible_base(value) || (old == MODE && new == BASE_ENABLE) || (old == 0 && new == MODE) {
            return Err(Gp);
        }
        self.base = value;
        if old != 0 && new == 0 {
            self.init();
        }
        Ok(if old == new { Effects::NONE } else { Effects::TIMER })
    }

    /// Whether no reserved bit is set and the mode is one.
    pub(crate) fn is_possible_base(&self, value: u64) -> bool {
        let address = BASE_ADDRESS & (u64::MAX >> (64 - self.address_bits));
        value & !(address | BASE_BSP | BASE_X2APIC | BASE_ENABLE) == 0
            && value & (BASE_ENABLE | BASE_X2APIC) != BASE_X2APIC
    }
}
