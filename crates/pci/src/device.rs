//! What a PCI function is.

use umbra_device::Device;

use crate::ConfigSpace;

/// A function on the bus.
///
/// `reset` and `load` change its configuration space without telling the bus; the machine resets and loads the bus
/// after its functions, and the bus then looks where they decode.
pub trait PciDevice: Device {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;

    /// Its configuration space.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// A guest reads configuration space; the access lies within one aligned double word. A function whose registers
    /// do something when they are read overrides this.
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// A guest writes configuration space; the access lies within one aligned double word. A function whose registers
    /// do something when they are written overrides this.
    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.config_mut().write(offset, data);
    }

    /// A guest reads at `offset` from the address in base address register `bar`, 1 to 64 bytes (1, 2 or 4 of ports).
    /// All of `data` must be written.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// A guest writes at `offset` from the address in base address register `bar`, 1 to 64 bytes (1, 2 or 4 to ports).
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]);
}
