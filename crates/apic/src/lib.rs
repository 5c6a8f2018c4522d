//! The local APIC as a pure model: no bus, no thread, no clock of its own.
//!
//! [`LocalApic`] is one processor's interrupt controller in both its forms: xAPIC, a page of registers in guest
//! physical memory, and x2APIC, MSRs 0x800 and above. Whoever owns it carries register accesses in, and does what
//! the returned [`Effects`] say: sends a [`Message`] to other processors, tells the I/O APIC of an end of interrupt,
//! sets an alarm for [`LocalApic::next_deadline`]. Time comes in with each call.
//!
//! The authority is the Intel SDM, volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)". Where the
//! manual leaves a choice the model takes KVM's, because a machine may move between the two: see each module.
//!
//! ```
//! use umbra_apic::{LocalApic, Now, reg};
//! let now = Now { ns: 0, tsc: 0 };
//! let mut apic = LocalApic::new(0, true, 46);
//! let _ = apic.write(reg::SVR, 0x1ff, &now);
//! apic.accept(0x31, false);
//! assert_eq!(apic.pending(), Some(0x31));
//! assert_eq!(apic.acknowledge(), 0x31);
//! assert_eq!(apic.eoi(), None, "edge-triggered: nobody else needs to know");
//! ```
#![forbid(unsafe_code)]

mod access;
mod apic;
mod message;
mod page;
pub mod reg;
mod timer;
mod vectors;

pub use access::{Effects, Gp};
pub use apic::{LocalApic, Lvt};
pub use message::{Delivery, Destination, Message, arbitrate};
pub use page::{PAGE_SIZE, PageError};
pub use timer::{Deadline, PERIOD_NS_MIN};

/// The time, for register accesses of which few need it.
pub trait Time {
    /// Machine time in nanoseconds.
    fn ns(&self) -> u64;
    /// The guest's time-stamp counter.
    fn tsc(&self) -> u64;
}

/// A moment, read beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Machine time in nanoseconds.
    pub ns: u64,
    /// The guest's time-stamp counter.
    pub tsc: u64,
}

impl Time for Now {
    fn ns(&self) -> u64 {
        self.ns
    }
    fn tsc(&self) -> u64 {
        self.tsc
    }
}

#[cfg(test)]
mod access_test;
#[cfg(test)]
mod apic_test;
#[cfg(test)]
mod message_test;
#[cfg(test)]
mod page_test;
#[cfg(test)]
mod random_test;
#[cfg(test)]
mod timer_test;
