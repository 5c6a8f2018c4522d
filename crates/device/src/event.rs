//! What devices tell the machine as a whole.

use std::sync::Arc;

/// Something that a guest did through a device and that concerns the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest switched the power off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset (i8042, reset register, ACPI).
    Reset,
    /// The guest says that its kernel has panicked (pvpanic).
    Panicked,
    /// The guest says that its kernel has panicked and that a crash kernel takes over (pvpanic).
    CrashLoaded,
}

/// Where devices report a [`MachineEvent`]. Must not block, and may be called under the device's lock.
pub type EventSink = Arc<dyn Fn(MachineEvent) + Send + Sync>;
