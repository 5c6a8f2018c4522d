//! A function's configuration space: registers, which of their bits a guest can write, base address registers and
//! the list of capabilities (PCI Local Bus Specification 3.0, chapter 6).
//!
//! Sizing a base address register needs no code: the bits below its size cannot be written, and read as zero.
//! These are conventional functions, without extended configuration space: from 0x100 on nothing answers, and everything reads as ones.

use umbra_device::DeviceError;
use zerocopy::{FromZeros, IntoBytes};

use crate::header::{
    CONFIG_LEN, Command, HEADER_LEN, Identity, Registers, STATUS_CAPABILITIES, STATUS_INTERRUPT,
    STATUS_OFFSET,
};
use crate::msix::CONTROL_WRITABLE;
use crate::{Bar, BarRegion, BarSpace, Intx, Msix, PciError};

/// Capability IDs (PCI Code and ID Assignment Specification, section 2).
const CAPABILITY_VENDOR: u8 = 0x09;
const CAPABILITY_MSIX: u8 = 0x11;

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
    /// The interrupt pin, which looks at the command register.
    intx: Option<Intx>,
    /// MSI-X, and where its control word is, from the header's end.
    msix: Option<(Msix, usize)>,
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
        let (bars, free, last_capability) = ([None; 6], 0, None);
        Self { value, writable, initial, bars, free, last_capability, intx: None, msix: None }
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

    /// Adds a vendor-specific capability: its head of two bytes and its own length byte are followed by `body`.
    ///
    /// # Errors
    /// One that does not fit.
    pub fn with_vendor_capability<const N: usize>(
        self,
        body: [u8; N],
        writable: [u8; N],
    ) -> Result<Self, PciError> {
        let at = HEADER_LEN + self.free;
        let mut config = self.with_capability(CAPABILITY_VENDOR, body, writable)?;
        // It fits into 256 bytes.
        let length = (N + 2) as u8;
        if let Some(byte) = config.initial.as_mut_bytes().get_mut(at + 2) {
            *byte = length;
        }
        if let Some(byte) = config.writable.as_mut_bytes().get_mut(at + 2) {
            *byte = 0;
        }
        config.reset();
        Ok(config)
    }

    /// Adds the interrupt pin INTA#.
    #[must_use]
    pub fn with_interrupt_pin(mut self, intx: &Intx) -> Self {
        self.initial.header.interrupt_pin = 1;
        self.intx = Some(intx.clone());
        self.reset();
        self
    }

    /// Adds MSI-X. `table` and `pending` say where the function shows the two: base address register and offset, a
    /// multiple of 8.
    ///
    /// # Errors
    /// A capability that does not fit, or a place that cannot be.
    pub fn with_msix(self, msix: &Msix, table: (u8, u32), pending: (u8, u32)) -> Result<Self, PciError> {
        let at = self.free;
        let control = msix.vectors() - 1;
        let mut body = [0; 10];
        let (words, _) = body.split_at_mut(2);
        words.copy_from_slice(&control.to_le_bytes());
        for (place, (bar, offset)) in [table, pending].into_iter().enumerate() {
            if bar > 5 || !offset.is_multiple_of(8) {
                return Err(PciError::MsixPlace { bar, offset });
            }
            let word = (offset | u32::from(bar)).to_le_bytes();
            body[2 + 4 * place..6 + 4 * place].copy_from_slice(&word);
        }
        let mut writable = [0; 10];
        writable[..2].copy_from_slice(&CONTROL_WRITABLE.to_le_bytes());
        let mut config = self.with_capability(CAPABILITY_MSIX, body, writable)?;
        config.msix = Some((msix.clone(), at + 2));
        Ok(config)
    }

    /// Reads at `offset`, any length.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let from = self.value.as_bytes().get(usize::from(offset)..).unwrap_or_default();
        data.fill(0xff);
        data.iter_mut().zip(from).for_each(|(byte, register)| *byte = *register);
        if let Some(status) = usize::from(STATUS_OFFSET).checked_sub(offset.into())
            && self.intx.as_ref().is_some_and(Intx::is_asserted)
            && let Some(byte) = data.get_mut(status)
        {
            *byte |= STATUS_INTERRUPT;
        }
    }

    /// A guest's write at `offset`, any length: only writable bits change.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let offset = usize::from(offset);
        let to = self.value.as_mut_bytes().get_mut(offset..).unwrap_or_default();
        let masks = self.writable.as_bytes().get(offset..).unwrap_or_default();
        for ((register, mask), byte) in to.iter_mut().zip(masks).zip(data) {
            *register = *register & !mask | byte & mask;
        }
        self.tell_interrupts();
    }

    /// Every register at its power-on value.
    pub fn reset(&mut self) {
        self.value = self.initial.clone();
        self.tell_interrupts();
    }

    /// Whoever interrupts learns what the registers say.
    fn tell_interrupts(&self) {
        if let Some(intx) = &self.intx {
            intx.set_disabled(self.command().contains(Command::INTERRUPT_DISABLE));
        }
        if let Some((msix, at)) = &self.msix {
            msix.set_control(self.msix_control(*at));
        }
    }

    fn msix_control(&self, at: usize) -> u16 {
        let word = self.value.capabilities.get(at..).and_then(|bytes| bytes.first_chunk::<2>());
        word.map_or(0, |word| u16::from_le_bytes(*word) & CONTROL_WRITABLE)
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
        // Nothing is sent and no wire driven: what is at their other ends is restored by itself.
        if let Some(intx) = &self.intx {
            intx.restore_disabled(self.command().contains(Command::INTERRUPT_DISABLE));
        }
        if let Some((msix, at)) = &self.msix {
            msix.restore_control(self.msix_control(*at));
        }
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
