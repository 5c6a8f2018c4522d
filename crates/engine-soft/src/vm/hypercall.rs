//! KVM's hypercalls (Linux's documentation of them).

use umbra_apic::{Delivery, Destination, Message};
use umbra_x86::cpuid::feature;

use super::count;
use crate::cpu::Cpu;

/// KVM_HC_SEND_IPI: processors by bits from a lowest APIC ID, and an interrupt command.
const SEND_IPI: u64 = 10;
/// KVM_EINVAL.
const INVALID: i64 = -22;

impl Cpu {
    /// KVM's hypercall `number`; what RAX becomes. `None` if there is no such call.
    pub(super) fn kvm_call(&mut self, number: u64, arguments: [u64; 4]) -> Option<i64> {
        self.counters.add(count::HYPERCALLS, 1);
        match number {
            SEND_IPI if self.cpuid.has(feature::KVM_PV_SEND_IPI) => Some(self.send_ipis(arguments)),
            _ => None,
        }
    }

    /// Returns how many processors were named.
    fn send_ipis(&mut self, [low, high, lowest, icr]: [u64; 4]) -> i64 {
        let delivery = match Delivery::from_bits((icr >> 8) as u32) {
            Some(d @ (Delivery::Fixed | Delivery::Nmi)) if icr >> 32 == 0 && icr & 1 << 11 == 0 => d,
            _ => return INVALID,
        };
        let Ok(lowest) = u32::try_from(lowest) else { return INVALID };
        let set = u128::from(high) << 64 | u128::from(low);
        let mut sent = 0;
        for n in (0..u128::BITS).filter(|n| set >> n & 1 != 0) {
            let Some(id) = lowest.checked_add(n).filter(|id| (*id as usize) < self.shared.ports.len()) else {
                break;
            };
            let message =
                Message { destination: Destination::Physical(id), delivery, vector: icr as u8, level: false };
            self.shared.deliver(&message, Some(self.id));
            sent += 1;
        }
        self.counters.add(count::IPIS, sent as u64);
        sent
    }
}
