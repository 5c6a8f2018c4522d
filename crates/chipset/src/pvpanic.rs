//! The panic notifier: one port by which a guest kernel says that it has panicked (the pvpanic device interface, as
//! Linux's `pvpanic` driver and the ACPI device `QEMU0001` use it).

use bitflags::bitflags;
use umbra_device::{Device, DeviceError, EventSink, MachineEvent, PortIo};
use umbra_state::{Record, Saved};

use crate::bytes::FLOATING;

bitflags! {
    /// What can be reported; a read of the port says which of them are understood.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Reports: u8 {
        /// The kernel has panicked.
        const PANICKED = 1;
        /// The kernel has panicked, and its crash kernel takes over.
        const CRASH_LOADED = 1 << 1;
    }
}

umbra_state::saved! {
    /// The panic notifier.
    pub struct PvPanicV1: "pvpanic", 1 {
        /// What the guest has reported since the last reset.
        1 reported: u8,
    }
}

/// The panic notifier. Each kind of report is passed on once until the machine is reset.
pub struct PvPanic {
    id: String,
    reported: Reports,
    events: EventSink,
}

impl PvPanic {
    /// How many ports it occupies.
    pub const PORTS: u16 = 1;

    /// A notifier that reports to `events`.
    pub fn new(id: impl Into<String>, events: EventSink) -> Self {
        Self { id: id.into(), reported: Reports::empty(), events }
    }
}

impl PortIo for PvPanic {
    fn port_read(&mut self, offset: u16, data: &mut [u8]) {
        data.fill(FLOATING);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = Reports::all().bits();
        }
    }

    fn port_write(&mut self, offset: u16, data: &[u8]) {
        let (0, Some(&value)) = (offset, data.first()) else { return };
        let fresh = Reports::from_bits_truncate(value) - self.reported;
        self.reported |= fresh;
        // Who reports both at once has panicked; the crash kernel is the weaker claim.
        if fresh.contains(Reports::PANICKED) {
            (self.events)(MachineEvent::Panicked);
        } else if fresh.contains(Reports::CRASH_LOADED) {
            (self.events)(MachineEvent::CrashLoaded);
        }
    }
}

impl Device for PvPanic {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&mut self) {
        self.reported = Reports::empty();
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(PvPanicV1 { reported: self.reported.bits() }.to_record(&self.id))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let PvPanicV1 { reported } = PvPanicV1::from_record(record).map_err(DeviceError::state(&self.id))?;
        self.reported = Reports::from_bits(reported)
            .ok_or_else(|| DeviceError::Impossible { id: self.id.clone(), what: "set of reports" })?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "pvpanic_test.rs"]
mod pvpanic_test;
