//! A function's configuration space: registers, which of their bits a guest can write, base address registers and
//! the list of capabilities (PCI Local Bus Specification 3.0, chapter 6).
//!
//! Sizing a base address register needs no code: the bits below its size cannot be written, and read as zero.
//! These are conventional functions, without extended configuration space: from 0x100 on nothing answers, and everything reads as ones.

use umbra_device::DeviceError;
use zerocopy::{FromZeros, IntoBytes};

use crate::header::{CONFIG_LEN, Command, HEADER_LEN, Identity, Registers, STATUS_CAPABILITIES};
use crate::{Bar, BarRegion, BarSpace, PciError};

/// Configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    value: Registers,
    /// The bits that a guest can write.
    writable: Registers,
    /// The values at power-on.
    initial: Registers,
    bars: [Option<Bar>; 6],
    /// Where the next capability goes, from the header's end.
    free: usize,
    /// Where the last capability is, from the header's end.
    last_capability: Option<usize>,
}

impl ConfigSpace {
    /// The configuration space of a function without base addresses and capabilities.
    pub fn new(identity: Identity) -> Self {
        let Identity { vendor, device, revision, class, subsystem_vendor, subsystem } = identity;
        let mut value = Registers::new_zeroed();
        value.header.vendor_id = vendor.into();
        value.header.device_id = device.into();
        value.header.revision_id = revision;
        [value.header.base_class, value.header.sub_class, value.header.programming_interface] = class;
        value.header.subsystem_vendor_id = subsystem_vendor.into();
        value.header.subsystem_id = subsystem.into();

        let mut writable = Registers::new_zeroed();
        let always = Command::all() - Command::IO_SPACE - Command::MEMORY_SPACE;
        writable.header.command = always.bits().into();
        // Scratch registers: nothing here looks at them.
        writable.header.cache_line_size = !0;
        writable.header.interrupt_line = !0;
        let initial = value.clone();
        Self { value, writable, initial, bars: [None; 6], free: 0, last_capability: None }
    }

    /// Adds base address register `index`.
    ///
    /// # Errors
    /// A register that cannot be, or that is taken.
    pub fn with_bar(mut self, index: u8, bar: Bar) -> Result<Self, PciError> {
        let at = usize::from(index);
        let wide = matches!(bar, Bar::Memory64 { .. });
        let free = |i: usize| self.bars.get(i).is_some_and(Option::is_none) && !self.is_upper_half(i);
        if !bar.is_possible() || !free(at) || (wide && !free(at + 1)) {
            return Err(PciError::Bar { index, bar });
        }
        self.bars[at] = Some(bar);
        let bits = bar.address_bits();
        self.initial.header.base_addresses[at] = bar.flags().into();
        self.writable.header.base_addresses[at] = (bits as u32 & !bar.flags()).into();
        if wide {
            self.writable.header.base_addresses[at + 1] = ((bits >> 32) as u32).into();
        }
        let enable = match bar.space() {
            BarSpace::Io => Command::IO_SPACE,
            BarSpace::Memory => Command::MEMORY_SPACE,
        };
        self.writable.header.command |= enable.bits();
        self.reset();
        Ok(self)
    }

    /// Adds a capability with the given ID, whose registers behind its two-byte head are `body`; `writable` says which of
    /// their bits a guest can write.
    ///
    /// # Errors
    /// One that does not fit.
    pub fn with_capability<const N: usize>(
        mut self,
        id: u8,
        body: [u8; N],
        writable: [u8; N],
    ) -> Result<Self, PciError> {
        let (at, len) = (self.free, N + 2);
        let too_long = PciError::CapabilityTooLong { len };
        let Some(place) = self.initial.capabilities.get_mut(at..at + len) else { return Err(too_long) };
        place[0] = id;
        place[2..].copy_from_slice(&body);
        self.writable.capabilities[at + 2..at + len].copy_from_slice(&writable);
        let pointer = (HEADER_LEN + at) as u8;
        match self.last_capability {
            None => self.initial.header.capabilities_pointer = pointer,
            Some(last) => self.initial.capabilities[last + 1] = pointer,
        }
        self.initial.header.status = STATUS_CAPABILITIES.into();
        self.last_capability = Some(at);
        // Capabilities begin at double words.
        self.free = (at + len).next_multiple_of(4);
        self.reset();
        Ok(self)
    }

    /// Reads at `offset`, any length.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let from = self.value.as_bytes().get(usize::from(offset)..).unwrap_or_default();
        data.fill(0xff);
        data.iter_mut().zip(from).for_each(|(byte, register)| *byte = *register);
    }

    /// A guest's write at `offset`, any length: only writable bits change.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let offset = usize::from(offset);
        let to = self.value.as_mut_bytes().get_mut(offset..).unwrap_or_default();
        let masks = self.writable.as_bytes().get(offset..).unwrap_or_default();
        for ((register, mask), byte) in to.iter_mut().zip(masks).zip(data) {
            *register = *register & !mask | byte & mask;
        }
    }

    /// Every register at its power-on value.
    pub fn reset(&mut self) {
        self.value = self.initial.clone();
    }

    /// The command register.
    pub fn command(&self) -> Command {
        Command::from_bits_truncate(self.value.header.command.get())
    }

    /// The base address registers that decode now, and where.
    pub fn decoded(&self) -> impl Iterator<Item = (u8, BarRegion)> + '_ {
        (0..6u8).filter_map(|index| {
            let bar = self.bars[usize::from(index)]?;
            let enable = match bar.space() {
                BarSpace::Io => Command::IO_SPACE,
                BarSpace::Memory => Command::MEMORY_SPACE,
            };
            let region = BarRegion { space: bar.space(), base: self.base(index, bar), len: bar.size() };
            self.command().contains(enable).then_some((index, region))
        })
    }

    /// The registers' bytes, for a saved state.
    pub fn save(&self) -> Vec<u8> {
        self.value.as_bytes().to_vec()
    }

    /// Takes saved bytes.
    ///
    /// # Errors
    /// Bytes that are not of the function `id`: in what a guest cannot write, they must be what this one has.
    pub fn load(&mut self, id: &str, saved: &[u8]) -> Result<(), DeviceError> {
        let fixed = self.initial.as_bytes().iter().zip(self.writable.as_bytes()).zip(saved);
        if saved.len() != CONFIG_LEN || fixed.into_iter().any(|((i, w), s)| (i ^ s) & !w != 0) {
            return Err(DeviceError::Impossible { id: id.into(), what: "configuration space" });
        }
        self.value.as_mut_bytes().copy_from_slice(saved);
        Ok(())
    }

    /// Whether register `index` holds the upper half of the one before it.
    fn is_upper_half(&self, index: usize) -> bool {
        let before = index.checked_sub(1).and_then(|i| self.bars.get(i));
        matches!(before, Some(Some(Bar::Memory64 { .. })))
    }

    fn base(&self, index: u8, bar: Bar) -> u64 {
        let register =
            |i: u8| self.value.header.base_addresses.get(usize::from(i)).map_or(0, |r| u64::from(r.get()));
        let raw = match bar {
            Bar::Memory64 { .. } => register(index) | register(index + 1) << 32,
            Bar::Io { .. } | Bar::Memory32 { .. } => register(index),
        };
        raw & bar.address_bits()
    }
}
