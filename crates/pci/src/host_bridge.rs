//! The generic PCI Express host bridge: what a guest finds at 00:00.0. It has an identity and no function of its own.

use umbra_device::{Device, DeviceError};
use umbra_state::{Record, Saved};

use crate::{ConfigSpace, Identity, PciDevice};

umbra_state::saved! {
    /// The host bridge.
    pub struct HostBridgeV1: "pci-host-bridge", 1 {
        /// Its configuration space.
        1 config: Vec<u8>,
    }
}

/// The host bridge.
pub struct HostBridge {
    id: String,
    config: ConfigSpace,
}

impl HostBridge {
    /// The one of a machine.
    pub fn new(id: impl Into<String>) -> Self {
        let identity = Identity {
            // Red Hat's registered ID of the generic host bridge, which drivers know.
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: [0x06, 0x00, 0x00],
            subsystem_vendor: 0,
            subsystem: 0,
        };
        Self { id: id.into(), config: ConfigSpace::new(identity) }
    }
}

impl PciDevice for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    /// It has no base address registers.
    fn bar_read(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}
}

impl Device for HostBridge {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&mut self) {
        self.config.reset();
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(HostBridgeV1 { config: self.config.save() }.to_record(&self.id))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let HostBridgeV1 { config } =
            HostBridgeV1::from_record(record).map_err(DeviceError::state(&self.id))?;
        self.config.load(&self.id, &config)
    }
}
