//! A virtio device as a PCI function (section 4.1): the modern transport alone, without the legacy one.

mod common;
mod layout;

use std::sync::Arc;

use common::Common;
use umbra_device::{Device, DeviceError, IrqLine, MsiLine};
use umbra_memory::Memory;
use umbra_pci::{ConfigSpace, Intx, Msix, PciDevice, PciError};
use umbra_state::{Record, Saved};

use crate::device::read_registers;
use crate::interrupts::{Interrupts, NO_VECTOR, Registers, Status};
use crate::queue::Queue;
use crate::{Kind, VirtioDevice};

/// More queues than a driver finds places to notify.
const QUEUES_MAX: usize = 64;

umbra_state::saved! {
    /// A function. Nothing of it was in flight.
    pub struct VirtioPciV1: "virtio-pci", 1 {
        /// Its configuration space.
        1 config: Vec<u8>,
        /// MSI-X.
        2 msix: Record,
        /// Whether the interrupt pin is asserted.
        3 pin: bool,
        /// Device status.
        4 status: u8,
        /// ISR status.
        5 isr: u8,
        /// Configuration generation.
        6 generation: u8,
        /// The vector of configuration changes.
        7 config_vector: u16,
        /// Which half of the device's features is shown.
        8 device_feature_select: u32,
        /// Which half of the driver's features is shown.
        9 driver_feature_select: u32,
        /// The driver's features.
        10 driver_features: u64,
        /// Which queue is shown.
        11 queue_select: u16,
        /// The queues.
        12 queues: Vec<Record>,
        /// The device's own state.
        13 device: Record,
    }
}

/// A virtio device as a PCI function. It is made paused: see [`VirtioPci::resume`].
pub struct VirtioPci {
    id: String,
    config: ConfigSpace,
    device: Box<dyn VirtioDevice>,
    kind: Kind,
    interrupts: Interrupts,
    queues: Vec<Arc<Queue>>,
    common: Common,
    /// The driver has asked for a reset, and something is in flight.
    is_resetting: bool,
}

impl VirtioPci {
    /// The function of `device`, which reaches `memory`, with an interrupt pin at `line` and messages by `messages`.
    ///
    /// # Errors
    /// A device that cannot be one.
    pub fn new(
        id: impl Into<String>,
        device: Box<dyn VirtioDevice>,
        memory: &Arc<Memory>,
        line: IrqLine,
        messages: MsiLine,
    ) -> Result<Self, PciError> {
        let mut kind = device.kind();
        kind.queue_sizes.truncate(QUEUES_MAX);
        // One vector a queue, and one for changes of configuration.
        let msix = Msix::new(kind.queue_sizes.len() as u16 + 1, messages);
        let intx = Intx::new(line);
        let config = layout::config_space(&kind, &msix, &intx)?;
        let interrupts = Interrupts::new(msix, intx);
        let queue = |size: &u16| Queue::new(memory.clone(), interrupts.clone(), *size);
        let queues = kind.queue_sizes.iter().map(queue).collect();
        let common = Common::default();
        Ok(Self { id: id.into(), config, device, kind, interrupts, queues, common, is_resetting: false })
    }

    /// Takes nothing more from the driver, and waits until nothing is in flight. The vCPUs stand.
    pub fn pause(&mut self) {
        self.queues.iter().for_each(|queue| queue.pause());
        self.queues.iter().for_each(|queue| queue.wait());
        self.finish_reset();
    }

    /// Goes on, with what is in the queues first. Idempotent.
    pub fn resume(&mut self) {
        self.queues.iter().for_each(|queue| queue.resume());
        if self.is_started() {
            (0..self.queues.len() as u16).for_each(|queue| self.device.notify(queue));
        }
    }

    fn is_started(&self) -> bool {
        !self.is_resetting && self.interrupts.registers().status.contains(Status::DRIVER_OK)
    }

    /// The driver resets the device: from now on nothing is taken or given back. What is in flight is still on its way
    /// into memory, so the reset is not through before it has landed.
    fn begin_reset(&mut self) {
        self.is_resetting = true;
        self.queues.iter().for_each(|queue| queue.reset());
        self.finish_reset();
    }

    /// Ends a reset if nothing is in flight.
    fn finish_reset(&mut self) {
        if self.is_resetting && !self.queues.iter().any(|queue| queue.is_busy()) {
            self.is_resetting = false;
            self.common = Common::default();
            self.interrupts.reset();
            self.device.reset();
        }
    }

    fn notify(&mut self, offset: u64) {
        let queue = offset / u64::from(layout::NOTIFY_MULTIPLIER);
        if queue < self.queues.len() as u64 && self.is_started() {
            self.device.notify(queue as u16);
        }
    }

    /// The part of the base address register at `offset`, and the offset in it. An access that runs out of a part reads
    /// zeroes there: parts are wider than what they hold.
    fn part(offset: u64) -> (u64, u64) {
        match offset {
            layout::MSIX_TABLE..layout::MSIX_PENDING => (layout::MSIX_TABLE, offset - layout::MSIX_TABLE),
            layout::MSIX_PENDING.. => (layout::MSIX_PENDING, offset - layout::MSIX_PENDING),
            _ => (offset - offset % layout::PART_LEN, offset % layout::PART_LEN),
        }
    }

    /// What the window in configuration space reaches now: offset and length, if it can be.
    fn window(&self) -> Option<(u64, usize)> {
        let mut place = [0; 12];
        self.config.read(layout::WINDOW_BAR, &mut place);
        let [bar, _, _, _, a, b, c, d, e, f, g, h] = place;
        let (offset, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let fits = bar == layout::BAR
            && matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len)
            && u64::from(offset) < layout::BAR_LEN;
        fits.then_some((offset.into(), len as usize))
    }
}

impl PciDevice for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(layout::WINDOW_DATA).filter(|at| *at < 4)
            && let Some((from, len)) = self.window()
        {
            let mut value = [0; 4];
            if let Some(part) = value.get_mut(..len) {
                self.bar_read(layout::BAR, from, part);
            }
            data.iter_mut().zip(value.iter().skip(at.into())).for_each(|(to, from)| *to = *from);
        } else {
            self.config.read(offset, data);
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        if (layout::WINDOW_DATA..layout::WINDOW_DATA + 4).contains(&offset)
            && let Some((to, len)) = self.window()
        {
            let mut value = [0; 4];
            self.config.read(layout::WINDOW_DATA, &mut value);
            if let Some(part) = value.get(..len) {
                self.bar_write(layout::BAR, to, part);
            }
        }
    }

    fn bar_read(&mut self, _bar: u8, offset: u64, data: &mut [u8]) {
        self.finish_reset();
        data.fill(0);
        match Self::part(offset) {
            (layout::COMMON, at) => read_registers(&self.common_bytes(), at, data),
            (layout::ISR, 0) => read_registers(&[self.interrupts.take_isr()], 0, data),
            (layout::DEVICE, at) => self.device.config_read(at, data),
            (layout::MSIX_TABLE, at) => self.interrupts.msix().table_read(at, data),
            (layout::MSIX_PENDING, at) => self.interrupts.msix().pending_read(at, data),
            _ => {}
        }
    }

    fn bar_write(&mut self, _bar: u8, offset: u64, data: &[u8]) {
        self.finish_reset();
        match Self::part(offset) {
            (layout::COMMON, at) => self.common_write(at, data),
            (layout::NOTIFY, at) => self.notify(at),
            (layout::DEVICE, at) if !self.is_resetting => self.device.config_write(at, data),
            (layout::MSIX_TABLE, at) => self.interrupts.msix().table_write(at, data),
            _ => {}
        }
    }
}

impl Device for VirtioPci {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&mut self) {
        // The machine is paused, so nothing is in flight and this is through at once.
        self.begin_reset();
        self.config.reset();
        self.interrupts.msix().reset();
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(self.state()?.to_record(&self.id))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let saved = VirtioPciV1::from_record(record).map_err(DeviceError::state(&self.id))?;
        let before = self.state()?;
        self.take(saved).inspect_err(|_| {
            // What it was it can be again.
            let _ = self.take(before);
        })
    }
}

impl VirtioPci {
    fn state(&self) -> Result<VirtioPciV1, DeviceError> {
        if self.queues.iter().any(|queue| queue.is_busy()) {
            let why = "requests are in flight; pause the machine first";
            return Err(DeviceError::NotSaveable { id: self.id.clone(), why });
        }
        let Registers { status, isr, generation, config_vector } = *self.interrupts.registers();
        let Common { device_feature_select, driver_feature_select, driver_features, queue_select } =
            self.common;
        Ok(VirtioPciV1 {
            config: self.config.save(),
            msix: self.interrupts.msix().save(),
            pin: self.interrupts.intx().is_asserted(),
            status: status.bits(),
            isr,
            generation,
            config_vector,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues: self.queues.iter().map(|queue| queue.save()).collect(),
            device: self.device.save()?,
        })
    }

    /// Takes a saved state; nothing is in flight. Where it refuses, some of it may be taken already.
    fn take(&mut self, saved: VirtioPciV1) -> Result<(), DeviceError> {
        let VirtioPciV1 {
            config,
            msix,
            pin,
            status,
            isr,
            generation,
            config_vector,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues,
            device,
        } = saved;
        let impossible = |what| DeviceError::Impossible { id: self.id.clone(), what };
        let status = Status::from_bits(status).ok_or_else(|| impossible("device status"))?;
        let vectors = self.interrupts.msix().vectors();
        if config_vector != NO_VECTOR && config_vector >= vectors {
            return Err(impossible("configuration vector"));
        }
        if status.contains(Status::FEATURES_OK) && driver_features & !self.offered() != 0 {
            return Err(impossible("set of features: this machine's device lacks some of them"));
        }
        if status.contains(Status::DRIVER_OK) && !status.contains(Status::FEATURES_OK) {
            return Err(impossible("device status"));
        }
        if queues.len() != self.queues.len() {
            return Err(impossible("number of queues"));
        }
        self.device.reset();
        self.config.load(&self.id, &config)?;
        self.interrupts.msix().load(&self.id, &msix)?;
        for (queue, record) in self.queues.iter().zip(&queues) {
            queue.load(&self.id, record, vectors)?;
        }
        self.device.load(&device)?;
        self.interrupts.intx().restore(pin);
        *self.interrupts.registers() = Registers { status, isr, generation, config_vector };
        self.common = Common { device_feature_select, driver_feature_select, driver_features, queue_select };
        self.is_resetting = false;
        if status.contains(Status::DRIVER_OK) {
            self.start();
        }
        Ok(())
    }
}
