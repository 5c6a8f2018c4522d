//! The bus: 32 slots on bus 0 of one segment, and the two ways to reach their configuration space.
//!
//! - Ports 0xCF8 to 0xCFF, configuration mechanism #1 (PCI Local Bus Specification 3.0, section 3.2.2.3.2). The machine may
//!   put a one-byte register at 0xCF9 over it: here only whole double words at 0xCF8 mean anything.
//! - A window of 256 MiB, the enhanced configuration access mechanism (PCI Express Base Specification, section 7.2.2).
//!
//! An access that crosses double words is split at them, and so never reaches two functions at once. What is not there
//! reads as all ones.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use umbra_device::{Device, DeviceError, Mmio, PortIo};
use umbra_state::{Record, Saved};

use crate::{BarMapper, BarRegion, BarTarget, PciDevice, PciError, lock};

/// Slots of a bus.
const SLOTS: u8 = 32;
/// Offset of CONFIG_ADDRESS from 0xCF8.
const CONFIG_ADDRESS: u16 = 0;
/// Offset of CONFIG_DATA, four bytes.
const CONFIG_DATA: u16 = 4;
/// CONFIG_ADDRESS: data accesses go to configuration space.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: enable, bus, slot, function and double word; the rest is reserved and reads as zero.
const ADDRESS_BITS: u32 = ENABLE | 0x00ff_fffc;
/// Registers whose change may move what a function decodes: from the command register to the last base address.
const DECODING: std::ops::Range<u16> = 0x04..0x28;

umbra_state::saved! {
    /// The bus itself; functions are saved by themselves.
    pub struct PciBusV1: "pci-bus", 1 {
        /// CONFIG_ADDRESS.
        1 address: u32,
    }
}

/// A base address register that decodes.
struct Mapping {
    slot: u8,
    bar: u8,
    region: BarRegion,
}

/// The bus. As a [`Device`] it is reset and loaded after its functions.
pub struct Bus {
    id: String,
    /// CONFIG_ADDRESS.
    address: u32,
    functions: BTreeMap<u8, Arc<Mutex<dyn PciDevice>>>,
    mapper: Box<dyn BarMapper>,
    mapped: Vec<Mapping>,
}

/// Which register of which function.
#[derive(Clone, Copy)]
struct ConfigAddress {
    bus: u64,
    slot: u8,
    function: u8,
    register: u16,
}

impl Bus {
    /// How many ports it occupies.
    pub const PORTS: u16 = 8;
    /// How many bytes of memory its window occupies.
    pub const ECAM_LEN: u64 = 256 << 20;

    /// An empty bus that reports where its functions decode to `mapper`.
    pub fn new(id: impl Into<String>, mapper: impl BarMapper + 'static) -> Self {
        Self {
            id: id.into(),
            address: 0,
            functions: BTreeMap::new(),
            mapper: Box::new(mapper),
            mapped: Vec::new(),
        }
    }

    /// Puts a function into a slot.
    ///
    /// # Errors
    /// A slot that is taken or does not exist.
    pub fn insert(&mut self, slot: u8, device: Arc<Mutex<dyn PciDevice>>) -> Result<(), PciError> {
        if slot >= SLOTS {
            return Err(PciError::NoSlot(slot));
        }
        if self.functions.contains_key(&slot) {
            return Err(PciError::Occupied(slot));
        }
        self.functions.insert(slot, device);
        self.remap();
        Ok(())
    }

    /// The function at an address. There are no bridges, so no other buses, and one function a slot.
    fn function(&self, at: ConfigAddress) -> Option<&Arc<Mutex<dyn PciDevice>>> {
        if (at.bus, at.function) == (0, 0) { self.functions.get(&at.slot) } else { None }
    }

    fn config_read(&self, at: ConfigAddress, data: &mut [u8]) {
        match self.function(at) {
            Some(device) => lock(device).config_read(at.register, data),
            None => data.fill(0xff),
        }
    }

    fn config_write(&mut self, at: ConfigAddress, data: &[u8]) {
        let Some(device) = self.function(at) else { return };
        lock(device).config_write(at.register, data);
        if at.register < DECODING.end && at.register + data.len() as u16 > DECODING.start {
            self.remap();
        }
    }

    /// Looks where the functions decode, and tells the mapper what has changed. Of regions that overlap the one that was
    /// there first stays; the others come when it goes.
    fn remap(&mut self) {
        let Self { functions, mapper, mapped, .. } = self;
        let mut wanted: Vec<Mapping> = Vec::new();
        for (&slot, device) in functions.iter() {
            let device = lock(device);
            wanted.extend(device.config().decoded().map(|(bar, region)| Mapping { slot, bar, region }));
        }
        mapped.retain(|old| {
            let stays = wanted.iter().any(|new| old.same(new));
            if !stays {
                mapper.unmap(old.region);
            }
            stays
        });
        for new in wanted {
            if mapped.iter().any(|old| old.region.overlaps(&new.region)) {
                continue;
            }
            let Some(device) = functions.get(&new.slot) else { continue };
            if mapper.map(new.region, BarTarget::new(device.clone(), new.bar)) {
                mapped.push(new);
            }
        }
    }

    /// What CONFIG_DATA's byte at `offset` from CONFIG_ADDRESS stands for.
    fn selected(&self, offset: u16) -> Option<ConfigAddress> {
        let [register, function, bus, _] = self.address.to_le_bytes();
        (self.address & ENABLE != 0).then(|| ConfigAddress {
            bus: bus.into(),
            slot: function >> 3,
            function: function & 7,
            register: u16::from(register) + (offset - CONFIG_DATA),
        })
    }
}

impl Mapping {
    fn same(&self, other: &Self) -> bool {
        (self.slot, self.bar, self.region) == (other.slot, other.bar, other.region)
    }
}

/// The part of an access at `offset` that lies in CONFIG_DATA; none if it begins elsewhere.
fn data_len(offset: u16, len: usize) -> usize {
    if (CONFIG_DATA..Bus::PORTS).contains(&offset) { len.min(usize::from(Bus::PORTS - offset)) } else { 0 }
}

impl PortIo for Bus {
    fn port_read(&mut self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        if offset == CONFIG_ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
            return;
        }
        let len = data_len(offset, data.len());
        if len > 0
            && let Some(address) = self.selected(offset)
        {
            self.config_read(address, &mut data[..len]);
        }
    }

    fn port_write(&mut self, offset: u16, data: &[u8]) {
        if let (CONFIG_ADDRESS, &[a, b, c, d]) = (offset, data) {
            self.address = u32::from_le_bytes([a, b, c, d]) & ADDRESS_BITS;
            return;
        }
        let len = data_len(offset, data.len());
        if len > 0
            && let Some(address) = self.selected(offset)
        {
            self.config_write(address, &data[..len]);
        }
    }
}

/// What the byte at `offset` in the window stands for (PCI Express, table 7-1: bus, slot, function, register).
fn ecam_address(offset: u64) -> ConfigAddress {
    ConfigAddress {
        bus: offset >> 20,
        slot: (offset >> 15 & 0x1f) as u8,
        function: (offset >> 12 & 7) as u8,
        register: (offset & 0xfff) as u16,
    }
}

/// How many of `len` bytes at `offset` lie in the same double word.
fn to_double_word_end(offset: u64, len: usize) -> usize {
    len.min(4 - (offset & 3) as usize)
}

impl Mmio for Bus {
    fn mmio_read(&mut self, mut offset: u64, mut data: &mut [u8]) {
        while !data.is_empty() {
            let len = to_double_word_end(offset, data.len());
            let (part, rest) = data.split_at_mut(len);
            self.config_read(ecam_address(offset), part);
            (offset, data) = (offset.wrapping_add(len as u64), rest);
        }
    }

    fn mmio_write(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let (part, rest) = data.split_at(to_double_word_end(offset, data.len()));
            self.config_write(ecam_address(offset), part);
            (offset, data) = (offset.wrapping_add(part.len() as u64), rest);
        }
    }
}

impl Device for Bus {
    fn id(&self) -> &str {
        &self.id
    }

    fn reset(&mut self) {
        self.address = 0;
        self.remap();
    }

    fn save(&self) -> Result<Record, DeviceError> {
        Ok(PciBusV1 { address: self.address }.to_record(&self.id))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let PciBusV1 { address } = PciBusV1::from_record(record).map_err(DeviceError::state(&self.id))?;
        if address & !ADDRESS_BITS != 0 {
            return Err(DeviceError::Impossible { id: self.id.clone(), what: "configuration address" });
        }
        self.address = address;
        self.remap();
        Ok(())
    }
}
