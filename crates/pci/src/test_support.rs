//! What the tests share: a function with every kind of base address, an address space that remembers, a machine of
//! both, random numbers.

use std::sync::{Arc, Mutex};

use umbra_device::{Device, DeviceError, Mmio, PortIo};
use umbra_state::{Record, Saved};

use crate::{
    Bar, BarMapper, BarRegion, BarSpace, BarTarget, Bus, ConfigSpace, HostBridge, Identity, PciDevice,
};

umbra_state::saved! {
    struct ScratchV1: "scratch", 1 { 1 config: Vec<u8>, 2 cells: [u8; 4] }
}

/// A function with a byte of memory behind each base address register.
pub(crate) struct Scratch {
    id: String,
    config: ConfigSpace,
    cells: [u8; 4],
}

/// Where its three capabilities are.
pub(crate) const CAPABILITIES: [u8; 3] = [0x40, 0x48, 0x50];

impl Scratch {
    pub(crate) fn new(id: &str) -> Self {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [0x01, 0x80, 0x02],
            subsystem_vendor: 0x1234,
            subsystem: 0x5678,
        };
        let config = ConfigSpace::new(identity)
            .with_bar(0, Bar::Memory32 { len: 0x1000 })
            .and_then(|c| c.with_bar(1, Bar::Io { len: 32 }))
            .and_then(|c| c.with_bar(2, Bar::Memory64 { len: 0x1_0000, prefetchable: true }))
            .and_then(|c| c.with_capability(0x09, [8, 1, 2, 3, 4], [0; 5]))
            .and_then(|c| c.with_capability(0x05, [0; 6], [0x0f; 6]))
            .and_then(|c| c.with_capability(0x11, [0; 10], [0; 10]))
            .unwrap();
        Self { id: id.into(), config, cells: [0; 4] }
    }
}

impl PciDevice for Scratch {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(self.cells[usize::from(bar)].wrapping_add(offset as u8));
    }

    fn bar_write(&mut self, bar: u8, _offset: u64, data: &[u8]) {
        self.cells[usize::from(bar)] = data[0];
    }
}

impl Device for Scratch {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&mut self) {
        self.config.reset();
        self.cells = [0; 4];
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(ScratchV1 { config: self.config.save(), cells: self.cells }.to_record(&self.id))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let ScratchV1 { config, cells } =
            ScratchV1::from_record(record).map_err(DeviceError::state(&self.id))?;
        self.config.load(&self.id, &config)?;
        self.cells = cells;
        Ok(())
    }
}

/// An address space. It refuses memory below 0x8000_0000 and checks what the bus promises.
#[derive(Clone, Default)]
pub(crate) struct Space(pub(crate) Arc<Mutex<Vec<(BarRegion, BarTarget)>>>);

impl BarMapper for Space {
    fn map(&mut self, region: BarRegion, target: BarTarget) -> bool {
        assert_eq!(region.base % region.len, 0);
        let mut mapped = self.0.lock().unwrap();
        assert!(mapped.iter().all(|(other, _)| !other.overlaps(&region)), "mapped regions never overlap");
        if region.space == BarSpace::Memory && region.base < 0x8000_0000 {
            return false;
        }
        mapped.push((region, target));
        true
    }

    fn unmap(&mut self, region: BarRegion) {
        let mut mapped = self.0.lock().unwrap();
        let before = mapped.len();
        mapped.retain(|(other, _)| *other != region);
        assert_eq!(mapped.len() + 1, before, "what is unmapped was mapped");
    }
}

impl Space {
    /// The regions that are mapped: space, base, length.
    pub(crate) fn regions(&self) -> Vec<(BarSpace, u64, u64)> {
        let mut all: Vec<_> = self.0.lock().unwrap().iter().map(|(r, _)| (r.space, r.base, r.len)).collect();
        all.sort_by_key(|&(space, base, _)| (space == BarSpace::Memory, base));
        all
    }

    /// What answers at an address.
    pub(crate) fn at(&self, space: BarSpace, address: u64) -> Option<(BarTarget, u64)> {
        let mapped = self.0.lock().unwrap();
        let hit = |r: &BarRegion| r.space == space && (r.base..=r.last()).contains(&address);
        mapped.iter().find(|(r, _)| hit(r)).map(|(r, target)| (target.clone(), address - r.base))
    }
}

/// A bus with a host bridge in slot 0 and scratch functions in slots 3 and 31.
pub(crate) struct Machine {
    pub(crate) bus: Bus,
    pub(crate) space: Space,
    pub(crate) functions: Vec<Arc<Mutex<dyn PciDevice>>>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let space = Space::default();
        let mut bus = Bus::new("pci", space.clone());
        let functions: Vec<Arc<Mutex<dyn PciDevice>>> = vec![
            Arc::new(Mutex::new(HostBridge::new("host-bridge"))),
            Arc::new(Mutex::new(Scratch::new("scratch3"))),
            Arc::new(Mutex::new(Scratch::new("scratch31"))),
        ];
        for (slot, function) in [0, 3, 31].into_iter().zip(&functions) {
            bus.insert(slot, function.clone()).unwrap();
        }
        Self { bus, space, functions }
    }

    /// Functions first, then the bus.
    pub(crate) fn reset(&mut self) {
        self.functions.iter().for_each(|f| f.lock().unwrap().reset());
        self.bus.reset();
    }

    pub(crate) fn save(&self) -> Vec<Record> {
        let functions = self.functions.iter().map(|f| f.lock().unwrap().save().unwrap());
        functions.chain([self.bus.save().unwrap()]).collect()
    }

    pub(crate) fn load(&mut self, records: &[Record]) {
        for (function, record) in self.functions.iter().zip(records) {
            function.lock().unwrap().load(record).unwrap();
        }
        self.bus.load(&records[self.functions.len()]).unwrap();
    }

    /// Reads a double word through the window.
    pub(crate) fn read(&mut self, slot: u64, register: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.mmio_read(slot << 15 | register, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes through the window.
    pub(crate) fn write(&mut self, slot: u64, register: u64, data: &[u8]) {
        self.bus.mmio_write(slot << 15 | register, data);
    }

    pub(crate) fn write32(&mut self, slot: u64, register: u64, value: u32) {
        self.write(slot, register, &value.to_le_bytes());
    }
}

/// Reads from a port.
pub(crate) fn port_read(bus: &mut Bus, offset: u16, len: usize) -> u32 {
    let mut data = [0; 4];
    bus.port_read(offset, &mut data[..len]);
    u32::from_le_bytes(data)
}

/// A xorshift generator.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
