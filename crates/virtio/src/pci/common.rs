//! Common configuration: status, features and the set-up of queues (section 4.1.4.3).
//!
//! Reads of any width give what is there; writes count in a register's own width, 64-bit addresses also in halves, and
//! others are ignored.

use std::sync::Arc;

use super::VirtioPci;
use crate::interrupts::{NO_VECTOR, Status};
use crate::queue::{Queue, Setup};
use crate::{Feature, Running};

/// What a driver writes there and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Common {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
}

/// Puts 32 bits into the half of a 64-bit value that `high` says.
fn set_half(value: &mut u64, high: bool, half: u32) {
    let (low_part, high_part) = (*value & 0xffff_ffff, *value >> 32);
    *value = match high {
        true => u64::from(half) << 32 | low_part,
        false => high_part << 32 | u64::from(half),
    };
}

impl VirtioPci {
    /// All features that are offered.
    pub(super) fn offered(&self) -> u64 {
        let transport = Feature::INDIRECT_DESCRIPTORS | Feature::EVENT_INDEX | Feature::VERSION_1;
        self.kind.features | transport.bits()
    }

    fn selected(&self) -> Option<&Arc<Queue>> {
        self.queues.get(usize::from(self.common.queue_select))
    }

    /// The registers' bytes, in the order of `struct virtio_pci_common_cfg`.
    pub(super) fn common_bytes(&self) -> Vec<u8> {
        let word = |features: u64, select| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let common = self.common;
        let registers = *self.interrupts.registers();
        let none = Setup { rings: crate::queue::Rings::default(), enabled: false, vector: NO_VECTOR };
        let Setup { rings, enabled, vector } = self.selected().map_or(none, |queue| queue.setup());
        let mut bytes = Vec::with_capacity(64);
        bytes.extend(common.device_feature_select.to_le_bytes());
        bytes.extend(word(self.offered(), common.device_feature_select).to_le_bytes());
        bytes.extend(common.driver_feature_select.to_le_bytes());
        bytes.extend(word(common.driver_features, common.driver_feature_select).to_le_bytes());
        bytes.extend(registers.config_vector.to_le_bytes());
        bytes.extend((self.queues.len() as u16).to_le_bytes());
        bytes.extend([registers.status.bits(), registers.generation]);
        bytes.extend(common.queue_select.to_le_bytes());
        bytes.extend(rings.size.to_le_bytes());
        bytes.extend(vector.to_le_bytes());
        bytes.extend(u16::from(enabled).to_le_bytes());
        // Each queue has its own place for notifications, in their order.
        let notify = if self.selected().is_some() { common.queue_select } else { 0 };
        bytes.extend(notify.to_le_bytes());
        for address in [rings.descriptors, rings.available, rings.used] {
            bytes.extend(address.to_le_bytes());
        }
        bytes
    }

    /// A driver writes at `offset`.
    pub(super) fn common_write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0x14, &[status]) => self.write_status(status),
            // Until a reset is through nothing else is to be had.
            _ if self.is_resetting => {}
            (_, &[a, b]) => self.common_write16(offset, u16::from_le_bytes([a, b])),
            (_, &[a, b, c, d]) => self.common_write32(offset, u32::from_le_bytes([a, b, c, d])),
            (_, &[a, b, c, d, e, f, g, h]) => {
                self.common_write32(offset, u32::from_le_bytes([a, b, c, d]));
                self.common_write32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn common_write16(&mut self, offset: u64, value: u16) {
        let vector = if value < self.interrupts.msix().vectors() { value } else { NO_VECTOR };
        let change = |change: &dyn Fn(&mut Setup)| {
            if let Some(queue) = self.selected() {
                queue.change(change);
            }
        };
        match offset {
            0x10 => self.interrupts.registers().config_vector = vector,
            0x16 => self.common.queue_select = value,
            0x18 => change(&|setup| setup.rings.size = value),
            0x1a => change(&|setup| setup.vector = vector),
            0x1c if value == 1 => change(&|setup| setup.enabled = true),
            _ => {}
        }
    }

    fn common_write32(&mut self, offset: u64, value: u32) {
        let common = &mut self.common;
        match offset {
            0x00 => common.device_feature_select = value,
            0x08 => common.driver_feature_select = value,
            0x0c => {
                let fixed = self.interrupts.registers().status.contains(Status::FEATURES_OK);
                let select = common.driver_feature_select;
                if select < 2 && !fixed {
                    set_half(&mut common.driver_features, select == 1, value);
                }
            }
            0x20..0x38 if offset.is_multiple_of(4) => {
                let high = offset & 4 != 0;
                if let Some(queue) = self.selected() {
                    queue.change(|setup| {
                        let rings = &mut setup.rings;
                        let address = match offset & !7 {
                            0x20 => &mut rings.descriptors,
                            0x28 => &mut rings.available,
                            _ => &mut rings.used,
                        };
                        set_half(address, high, value);
                    });
                }
            }
            _ => {}
        }
    }

    /// The driver goes a step on, or (with zero) resets the device.
    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.begin_reset();
            return;
        }
        if self.is_resetting {
            return;
        }
        let written = Status::from_bits_truncate(value) - Status::NEEDS_RESET;
        let before = self.interrupts.registers().status;
        // Bits are never taken back but by a reset.
        let mut status = before | written;
        let features = self.common.driver_features;
        let acceptable = features & !self.offered() == 0 && features & Feature::VERSION_1.bits() != 0;
        if !before.contains(Status::FEATURES_OK) && !acceptable {
            // What the driver sees when it reads the status again (section 3.1.1).
            status -= Status::FEATURES_OK;
        }
        if !status.contains(Status::FEATURES_OK) {
            status -= Status::DRIVER_OK;
        }
        self.interrupts.registers().status |= status;
        if status.contains(Status::DRIVER_OK) && !before.contains(Status::DRIVER_OK) {
            self.start();
        }
    }

    /// The driver is ready.
    pub(super) fn start(&mut self) {
        let features = self.common.driver_features;
        self.queues.iter().for_each(|queue| queue.start(features));
        let (queues, interrupts) = (self.queues.clone(), self.interrupts.clone());
        self.device.start(Running { features, queues, interrupts });
    }
}
