//! Ports and memory-mapped registers: which device answers where.
//!
//! What the machine type has is mapped once; what PCI functions have comes and goes as the guest sets their base
//! addresses, while vCPUs run. Each device is behind its own lock. An access that no device claims reads all ones and
//! writes nothing, as on a PC. Nothing here logs: a guest may touch unclaimed addresses as often as it likes.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use umbra_device::{Mmio, PortIo};
use umbra_pci::{BarMapper, BarRegion, BarSpace, BarTarget};

/// A device on a bus.
type Shared<T> = Arc<Mutex<T>>;

/// A sorted list of ranges that do not overlap.
struct Ranges<T: ?Sized>(Vec<(u64, u64, Shared<T>)>);

impl<T: ?Sized> Ranges<T> {
    fn add(&mut self, start: u64, len: u64, device: Shared<T>) {
        let at = self.0.partition_point(|r| r.0 < start);
        let free = self.0.get(at).is_none_or(|next| start + len <= next.0);
        assert!(
            free && (at == 0 || self.0[at - 1].0 + self.0[at - 1].1 <= start),
            "the layout has two devices at {start:#x}"
        );
        self.0.insert(at, (start, len, device));
    }

    fn remove(&mut self, start: u64) {
        self.0.retain(|range| range.0 != start);
    }

    /// The device that has all of `len` bytes at `address`, and the offset into its range.
    fn find(&self, address: u64, len: u64) -> Option<(&Shared<T>, u64)> {
        let i = self.0.partition_point(|r| r.0 <= address).checked_sub(1)?;
        let (start, size, device) = &self.0[i];
        let offset = address - start;
        (offset < *size && len <= size - offset).then_some((device, offset))
    }
}

/// All ports.
pub(crate) struct PortBus {
    ranges: Ranges<dyn PortIo>,
    /// Ports at which one-byte accesses go to another device than wider ones: the reset register within PCI's address port.
    byte_ranges: Ranges<dyn PortIo>,
}

impl PortBus {
    pub(crate) fn new() -> Self {
        Self { ranges: Ranges(Vec::new()), byte_ranges: Ranges(Vec::new()) }
    }

    pub(crate) fn add(&mut self, port: u16, len: u16, device: Shared<dyn PortIo>) {
        self.ranges.add(u64::from(port), u64::from(len), device);
    }

    pub(crate) fn add_byte(&mut self, port: u16, device: Shared<dyn PortIo>) {
        self.byte_ranges.add(u64::from(port), 1, device);
    }

    fn find(&self, port: u16, len: usize) -> Option<(&Shared<dyn PortIo>, u16)> {
        let (port, len) = (u64::from(port), len as u64);
        let byte = if len == 1 { self.byte_ranges.find(port, 1) } else { None };
        byte.or_else(|| self.ranges.find(port, len)).map(|(d, offset)| (d, offset as u16))
    }

    /// Reads 1, 2 or 4 bytes. An access that only begins in a device is split into bytes.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        if let Some((device, offset)) = self.find(port, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).port_read(offset, data);
        } else if data.len() > 1 {
            for (i, byte) in data.chunks_mut(1).enumerate() {
                self.read(port.wrapping_add(i as u16), byte);
            }
        } else {
            data.fill(0xff);
        }
    }

    /// Writes 1, 2 or 4 bytes, as [`PortBus::read`].
    pub(crate) fn write(&self, port: u16, data: &[u8]) {
        if let Some((device, offset)) = self.find(port, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).port_write(offset, data);
        } else if data.len() > 1 {
            for (i, byte) in data.chunks(1).enumerate() {
                self.write(port.wrapping_add(i as u16), byte);
            }
        }
    }
}

/// Registers of PCI functions, which come and go.
type Bars = Arc<RwLock<Ranges<dyn Mmio>>>;

/// All memory-mapped registers.
pub(crate) struct MmioBus {
    ranges: Ranges<dyn Mmio>,
    bars: Bars,
}

impl MmioBus {
    pub(crate) fn new() -> Self {
        Self { ranges: Ranges(Vec::new()), bars: Arc::new(RwLock::new(Ranges(Vec::new()))) }
    }

    pub(crate) fn add(&mut self, gpa: u64, len: u64, device: Shared<dyn Mmio>) {
        self.ranges.add(gpa, len, device);
    }

    /// What maps the registers of PCI functions into `windows`, in which nothing else is.
    pub(crate) fn windows(&self, windows: Vec<Range<u64>>) -> Windows {
        Windows { windows, bars: self.bars.clone() }
    }

    /// The device at an address. No lock of the map is held while it is called: it may change the map.
    fn find(&self, gpa: u64, len: u64) -> Option<(Shared<dyn Mmio>, u64)> {
        let of_functions = || {
            let bars = self.bars.read().unwrap_or_else(PoisonError::into_inner);
            bars.find(gpa, len).map(|(device, offset)| (device.clone(), offset))
        };
        let fixed = self.ranges.find(gpa, len).map(|(device, offset)| (device.clone(), offset));
        fixed.or_else(of_functions)
    }

    /// Reads 1 to 64 bytes.
    pub(crate) fn read(&self, gpa: u64, data: &mut [u8]) {
        match self.find(gpa, data.len() as u64) {
            Some((device, offset)) => {
                device.lock().unwrap_or_else(PoisonError::into_inner).mmio_read(offset, data)
            }
            None => data.fill(0xff),
        }
    }

    /// Writes 1 to 64 bytes.
    pub(crate) fn write(&self, gpa: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(gpa, data.len() as u64) {
            device.lock().unwrap_or_else(PoisonError::into_inner).mmio_write(offset, data);
        }
    }
}

/// Maps base addresses of PCI functions. Ports are refused: no function of this machine type has any.
pub(crate) struct Windows {
    windows: Vec<Range<u64>>,
    bars: Bars,
}

impl BarMapper for Windows {
    fn map(&mut self, region: BarRegion, target: BarTarget) -> bool {
        let within = |window: &Range<u64>| window.contains(&region.base) && window.contains(&region.last());
        let fits = region.space == BarSpace::Memory && self.windows.iter().any(within);
        if fits {
            let mut bars = self.bars.write().unwrap_or_else(PoisonError::into_inner);
            bars.add(region.base, region.len, Arc::new(Mutex::new(target)));
        }
        fits
    }

    fn unmap(&mut self, region: BarRegion) {
        self.bars.write().unwrap_or_else(PoisonError::into_inner).remove(region.base);
    }
}
