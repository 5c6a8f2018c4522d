//! Interrupt messages on their way to processors.
//!
//! Intel SDM volume 3, "Message Signalled Interrupts", "Issuing Interprocessor Interrupts". Locks: one local APIC at a time, for a moment.

use std::sync::atomic::Ordering;

use umbra_apic::{Delivery, Destination, Lvt, Message, arbitrate};

use super::{Port, Shared, VCPUS_MAX, attention};

impl Shared {
    /// Delivers a message; `sender` is the processor that sent it.
    pub(crate) fn deliver(&self, message: &Message, sender: Option<u32>) {
        if message.delivery == Delivery::LowestPriority {
            return self.deliver_lowest(message, sender);
        }
        if let Destination::Physical(id) = message.destination {
            if let Some(port) = self.ports.get(id as usize) {
                deliver_to(port, message, sender == Some(id));
            }
            return;
        }
        for (id, port) in (0..).zip(&self.ports) {
            deliver_to(port, message, sender == Some(id));
        }
    }

    /// To the least busy of those that the destination names.
    fn deliver_lowest(&self, message: &Message, sender: Option<u32>) {
        let mut candidates = [(0, 0); VCPUS_MAX as usize];
        let mut count = 0;
        for (id, port) in (0..).zip(&self.ports) {
            let apic = port.apic();
            let takes_part =
                apic.is_enabled() && apic.matches_destination(message.destination, sender == Some(id));
            if let Some(slot) = candidates.get_mut(count).filter(|_| takes_part) {
                *slot = (id as usize, apic.arbitration_priority());
                count += 1;
            }
        }
        let port = arbitrate(message.vector, &candidates[..count]).and_then(|id| self.ports.get(id));
        if let Some(port) = port {
            accept(port, message);
        }
    }

    /// The PIC's output changes; it is wired to LINT0 of processor 0.
    pub(crate) fn set_external(&self, high: bool) {
        let was = self.external.swap(high, Ordering::SeqCst);
        let Some(port) = self.ports.first().filter(|_| high) else { return };
        let mut bits = attention::EXTERNAL;
        if !was {
            // LINT0 may be programmed to give another interrupt than the PIC's at this edge.
            bits |= match port.apic().raise(Lvt::Lint0) {
                Some(Delivery::Nmi) => attention::NMI,
                _ => attention::APIC,
            };
        }
        port.signal(bits);
    }
}

/// Delivers a message to one processor, if it is for that one.
fn deliver_to(port: &Port, message: &Message, is_sender: bool) {
    if !port.apic().matches_destination(message.destination, is_sender) {
        return;
    }
    match message.delivery {
        Delivery::Fixed | Delivery::LowestPriority => accept(port, message),
        Delivery::Nmi => port.signal(attention::NMI),
        Delivery::Init => port.signal_init(),
        Delivery::Startup => port.signal_sipi(message.vector),
        Delivery::ExtInt => port.signal(attention::EXT_INT),
        // There is no system management mode.
        Delivery::Smi => {}
    }
}

fn accept(port: &Port, message: &Message) {
    let accepted = port.apic().accept(message.vector, message.level);
    if accepted {
        port.signal(attention::APIC);
    }
}

#[cfg(test)]
#[path = "deliver_test.rs"]
mod deliver_test;
