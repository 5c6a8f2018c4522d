//! Machine type `umbra-1`: where everything is in the guest's physical address space and I/O ports.
//!
//! This is the one place for these numbers. They are fixed for ever: a saved machine names its type, and another
//! layout is another type. Everything that depends on the guest's memory size or on the processor's physical
//! address width is a function of [`Layout`].
//!
//! ```text
//! 0000_0000           RAM, up to 3 GiB (the first MiB: see the boot data and firmware constants below)
//! C000_0000..E000_0000  32-bit PCI window
//! E000_0000..F000_0000  PCI Express configuration space (ECAM), 256 buses
//! F000_0000..FEC0_0000  32-bit PCI window
//! FEC0_0000             I/O APIC          FED0_0000  HPET (reserved)      FED4_0000  TPM (reserved)
//! FEE0_0000             local APIC; writes from devices are MSI messages
//! FEFF_C000..FF00_0000  pages that KVM needs on Intel processors
//! 1_0000_0000           RAM above 3 GiB
//! next 1 GiB boundary   memory hot-plug area, up to half of the physical address space
//! upper half            64-bit PCI window
//! ```

use std::ops::Range;

use crate::error::BootError;

/// Name of the machine type.
pub const MACHINE_TYPE: &str = "umbra-1";
/// Greatest number of processors; their APIC ids are 0 to 253 (255 is broadcast, 254 stays free).
pub const CPUS_MAX: u32 = 254;

/// Bytes in one MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in one GiB.
pub const GIB: u64 = 1 << 30;
/// Bytes in a page.
pub const PAGE: u64 = 4096;

// Memory.

/// RAM below 4 GiB ends here at the latest.
pub const RAM_LOW_MAX: u64 = 3 * GIB;
/// RAM that does not fit below goes on here.
pub const RAM_HIGH_BASE: u64 = 4 * GIB;
/// The least RAM: the first MiB and a kernel's worth of it.
pub const RAM_MIN: u64 = 2 * MIB;
/// First 32-bit window for PCI memory BARs.
pub const PCI_WINDOW_32_LOW: Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI buses that the tables name: the one that there is, as no bridge makes another. Linux asks every slot of every bus named by the
/// configuration ports when it starts, two exits a slot. There is room for [`PCI_ECAM`]'s 256.
pub const PCI_BUSES: u8 = 1;
/// PCI Express enhanced configuration space: 256 buses of 1 MiB, segment 0.
pub const PCI_ECAM: Range<u64> = 0xe000_0000..0xf000_0000;
/// Second 32-bit window for PCI memory BARs.
pub const PCI_WINDOW_32_HIGH: Range<u64> = 0xf000_0000..0xfec0_0000;
/// I/O APIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Where an HPET would be.
pub const HPET: u64 = 0xfed0_0000;
/// Where a TPM would be.
pub const TPM: u64 = 0xfed4_0000;
/// Local APIC registers.
pub const LAPIC: u64 = 0xfee0_0000;
/// One page for KVM's identity map, then three for its task state segment (needed on Intel processors only).
pub const KVM_PAGES: Range<u64> = 0xfeff_c000..0xff00_0000;
/// AMD processors cannot reach RAM by DMA in these 12 GiB below 1 TiB, so nothing lies there.
pub const HYPERTRANSPORT_HOLE: Range<u64> = 0xfd_0000_0000..0x100_0000_0000;
/// Address bits beyond these are not used, so that hosts with wider addresses have the same layout.
pub const PHYS_BITS_USED_MAX: u8 = 46;

// The first MiB: what a loader leaves there for the kernel to read once.

/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// PVH start information, followed by its module list and memory map.
pub const PVH_START_INFO: u64 = 0x6000;
/// `struct boot_params` of the 64-bit protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack for an entry that wants one: grows down from here.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// Identity page tables of the 64-bit protocol: one PML4, one PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line, at most 64 KiB.
pub const CMDLINE: u64 = 0x2_0000;
/// Greatest room for the command line.
pub const CMDLINE_ROOM: u64 = 0x1_0000;
/// Extended BIOS data area: reserved, empty.
pub const EBDA: Range<u64> = 0x9_fc00..0xa_0000;
/// ACPI tables.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_0000;
/// ACPI root pointer: at a 16-byte boundary in the range that kernels search.
pub const RSDP: u64 = ACPI_TABLES.start;
/// SMBIOS entry point and structures.
pub const SMBIOS: Range<u64> = 0xf_0000..0x10_0000;
/// Kernels are loaded from here on.
pub const KERNEL_MIN: u64 = MIB;

// I/O ports.

/// Keyboard controller data port; the command port is 0x64.
pub const I8042_DATA: u16 = 0x60;
/// Keyboard controller command port.
pub const I8042_COMMAND: u16 = 0x64;
/// CMOS and real-time clock: index, then data.
pub const RTC: u16 = 0x70;
/// First serial port: eight registers.
pub const COM1: u16 = 0x3f8;
/// The guest's word that it has crashed.
pub const PVPANIC: u16 = 0x505;
/// ACPI power management block; everything in it is reserved, used or not.
pub const ACPI_BLOCK: Range<u16> = 0x600..0x640;
/// PM1a event block: status, then enable, two bytes each.
pub const ACPI_PM1A_EVENT: u16 = 0x600;
/// PM1a control register, two bytes; its SCI_EN bit always reads as one (there is no legacy mode).
pub const ACPI_PM1A_CONTROL: u16 = 0x604;
/// Power management timer, 32 bits at 3.579545 MHz.
pub const ACPI_PM_TIMER: u16 = 0x608;
/// Reserved for hot-plug and a generic event device.
pub const ACPI_HOTPLUG: Range<u16> = 0x620..0x640;
/// SLP_TYP value that powers off when it is written to PM1a control with SLP_EN.
pub const ACPI_SLEEP_TYPE_S5: u8 = 5;
/// PCI configuration address port; the data port is 0xcfc.
pub const PCI_CONFIG_ADDRESS: u16 = 0xcf8;
/// Reset control register.
pub const RESET_PORT: u16 = 0xcf9;
/// What to write there for a reset.
pub const RESET_VALUE: u8 = 0x06;

// Interrupts: numbers of the I/O APIC's inputs (GSI), which begin at 0.

/// Inputs of the I/O APIC.
pub const IOAPIC_PINS: u32 = 24;
/// APIC id in the I/O APIC's own register: it is not on the processors' bus, so it may be any number.
pub const IOAPIC_ID: u8 = 0;
/// The PIT's IRQ 0 arrives at this input.
pub const PIT_GSI: u32 = 2;
/// Keyboard.
pub const KEYBOARD_IRQ: u32 = 1;
/// First serial port.
pub const COM1_IRQ: u32 = 4;
/// Real-time clock.
pub const RTC_IRQ: u32 = 8;
/// ACPI system control interrupt: level-triggered, active high.
pub const SCI_IRQ: u32 = 9;
/// Mouse.
pub const MOUSE_IRQ: u32 = 12;
/// INTA# to INTD# of all PCI devices share four inputs from this one on.
pub const PCI_INTX_GSI: u32 = 16;

// PCI slots of bus 0.

/// Devices on bus 0.
pub const PCI_SLOTS: u8 = 32;
/// Host bridge.
pub const PCI_SLOT_HOST_BRIDGE: u8 = 0;
/// Devices that are there from the start take slots from here, in the order of the machine's specification.
pub const PCI_SLOTS_DEVICES: Range<u8> = 1..24;
/// Root ports, for devices that come later.
pub const PCI_SLOTS_ROOT_PORTS: Range<u8> = 24..32;

/// I/O APIC input of interrupt pin `pin` (0 is INTA#) of a device in `slot` of bus 0.
///
/// The same rule joins a bridge's secondary pins to its own (PCI-to-PCI Bridge Architecture 1.2, section 9.1).
pub const fn pci_intx_gsi(slot: u8, pin: u8) -> u32 {
    PCI_INTX_GSI + (slot as u32 + pin as u32) % 4
}

/// The parts of the address map that depend on the guest's memory and processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    ram: u64,
    phys_bits: u8,
}

impl Layout {
    /// The layout for `ram` bytes of memory and `phys_bits` physical address bits.
    ///
    /// # Errors
    ///
    /// [`BootError::MemorySize`] where `ram` is no multiple of a page, too small to be a machine, or reaches into
    /// the upper half of the physical address space.
    pub fn new(ram: u64, phys_bits: u8) -> Result<Self, BootError> {
        let bits = phys_bits.clamp(33, PHYS_BITS_USED_MAX);
        let top = (1u64 << (bits - 1)).min(HYPERTRANSPORT_HOLE.start);
        let max = RAM_LOW_MAX + (top - RAM_HIGH_BASE);
        if !ram.is_multiple_of(PAGE) || ram < RAM_MIN || ram > max {
            return Err(BootError::MemorySize {
                bytes: ram,
                min_mib: RAM_MIN / MIB,
                max_mib: max / MIB,
                phys_bits,
            });
        }
        Ok(Self { ram, phys_bits: bits })
    }

    /// Bytes of RAM.
    pub const fn ram_bytes(&self) -> u64 {
        self.ram
    }

    /// The RAM below 4 GiB.
    pub fn ram_low(&self) -> Range<u64> {
        0..self.ram.min(RAM_LOW_MAX)
    }

    /// The RAM above 4 GiB, if there is any.
    pub fn ram_high(&self) -> Option<Range<u64>> {
        (self.ram > RAM_LOW_MAX).then(|| RAM_HIGH_BASE..RAM_HIGH_BASE + (self.ram - RAM_LOW_MAX))
    }

    /// All RAM, in ascending order.
    pub fn ram(&self) -> impl Iterator<Item = Range<u64>> {
        std::iter::once(self.ram_low()).chain(self.ram_high())
    }

    /// Where memory may be added later. It begins at a 1 GiB boundary; with 42 address bits or more it holds 1 TiB.
    pub fn memory_hotplug(&self) -> Range<u64> {
        let ram_end = self.ram_high().map_or(RAM_HIGH_BASE, |r| r.end);
        let start = ram_end.next_multiple_of(GIB);
        let end = 1u64 << (self.phys_bits - 1);
        let hole = HYPERTRANSPORT_HOLE;
        let below = start..end.min(hole.start).max(start);
        let above = hole.end..end.max(hole.end);
        if above.end - above.start > below.end - below.start { above } else { below }
    }

    /// Where 64-bit PCI BARs go.
    pub fn pci_window_64(&self) -> Range<u64> {
        let start = 1u64 << (self.phys_bits - 1);
        let end = 1u64 << self.phys_bits;
        // With 40 address bits the window would end with the hole.
        if end == HYPERTRANSPORT_HOLE.end { start..HYPERTRANSPORT_HOLE.start } else { start..end }
    }
}
