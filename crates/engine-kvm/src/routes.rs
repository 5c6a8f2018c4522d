//! Interrupt messages: those sent from here, those of event descriptors, and those whose end KVM must report.
//!
//! KVM's routing table has an entry for each I/O APIC pin (0 to 23, never triggered by number here: the I/O APIC sends its messages itself) and
//! one for each event descriptor (24 and above). From the pins' entries KVM learns which vectors are
//! level-triggered, and reports their ends (KVM_CAP_SPLIT_IRQCHIP).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::VmFd;
use umbra_device::Msi;
use umbra_engine::{EngineError, IrqEvents, PIN_COUNT};

use crate::sys;

/// Event descriptors that one machine may join; KVM's table has 4,096 entries.
const EVENTS_MAX: usize = 4096 - PIN_COUNT;

/// A message in KVM's terms: bits 8 to 31 of the destination stand in the upper half of the address, where the message itself has
/// bits 8 to 14 in bits 5 to 11 (KVM_FEATURE_MSI_EXT_DEST_ID).
pub(crate) fn to_kvm(msi: Msi) -> (u32, u32, u32) {
    let extended = msi.address as u32 & 0xfe0;
    let low = msi.address as u32 & !0xfe0;
    let high = (msi.address >> 32) as u32 | extended << 3;
    (low, high, msi.data)
}

#[derive(Default)]
struct Table {
    pins: [Option<Msi>; PIN_COUNT],
    events: BTreeMap<u32, Msi>,
}

impl Table {
    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let pins = self.pins.iter().enumerate().filter_map(|(pin, msi)| Some((pin as u32, (*msi)?)));
        let events = self.events.iter().map(|(gsi, msi)| (*gsi, *msi));
        let entry = |(gsi, msi)| {
            let (address_lo, address_hi, data) = to_kvm(msi);
            let msi = kvm_irq_routing_msi { address_lo, address_hi, data, ..kvm_irq_routing_msi::default() };
            kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
                ..kvm_irq_routing_entry::default()
            }
        };
        pins.chain(events).map(entry).collect()
    }
}

/// A machine's interrupt messages.
pub(crate) struct Routes {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

impl Routes {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, table: &Table) -> Result<(), EngineError> {
        let list = KvmIrqRouting::from_entries(&table.entries())
            .map_err(|_| EngineError::Internal("too many interrupt routes".into()))?;
        let done = self.vm.set_gsi_routing(&list).map_err(io::Error::from);
        done.map_err(EngineError::host("KVM_SET_GSI_ROUTING"))
    }

    /// The pins' messages. A pin that has none any more keeps its last: its interrupt may be in service, and its end must still come
    /// back, or the I/O APIC would hold the pin for ever (Linux masks such a pin before it signals the end).
    pub(crate) fn set_pins(&self, pins: &[Option<Msi>; PIN_COUNT]) -> Result<(), EngineError> {
        let mut table = self.table();
        let before = table.pins;
        table.pins.iter_mut().zip(pins).for_each(|(old, new)| *old = new.or(*old));
        if table.pins == before { Ok(()) } else { self.publish(&table) }
    }

    /// Sends a message. KVM drops one that names nobody.
    pub(crate) fn send(&self, msi: Msi) {
        let (address_lo, address_hi, data) = to_kvm(msi);
        // An error is the guest's: a destination or mode that does not exist.
        let _ = self.vm.signal_msi(kvm_msi { address_lo, address_hi, data, ..kvm_msi::default() });
    }
}

impl IrqEvents for Routes {
    fn attach(&self, event: BorrowedFd<'_>, msi: Msi) -> Result<u32, EngineError> {
        let mut table = self.table();
        if table.events.len() >= EVENTS_MAX {
            return Err(EngineError::Unavailable(format!(
                "a machine has at most {EVENTS_MAX} interrupt events"
            )));
        }
        let mut free = PIN_COUNT as u32..;
        let gsi = free.find(|gsi| !table.events.contains_key(gsi)).unwrap_or(u32::MAX);
        table.events.insert(gsi, msi);
        let done = self
            .publish(&table)
            .and_then(|()| sys::irqfd(&self.vm, event, gsi, true).map_err(EngineError::host("KVM_IRQFD")));
        if done.is_err() {
            table.events.remove(&gsi);
        }
        done.map(|()| gsi)
    }

    fn retarget(&self, handle: u32, msi: Msi) -> Result<(), EngineError> {
        let mut table = self.table();
        let entry = table.events.get_mut(&handle).ok_or_else(|| unknown(handle))?;
        if *entry == msi {
            return Ok(());
        }
        *entry = msi;
        self.publish(&table)
    }

    fn detach(&self, handle: u32, event: BorrowedFd<'_>) -> Result<(), EngineError> {
        let mut table = self.table();
        if !table.events.contains_key(&handle) {
            return Err(unknown(handle));
        }
        sys::irqfd(&self.vm, event, handle, false).map_err(EngineError::host("KVM_IRQFD, deassign"))?;
        table.events.remove(&handle);
        self.publish(&table)
    }
}

fn unknown(handle: u32) -> EngineError {
    EngineError::Internal(format!("no interrupt event has handle {handle}"))
}
