//! DSDT: the devices that a kernel cannot find by itself (ACPI 6.5, chapters 5, 6 and 19; for the host bridge, PCI
//! Firmware Specification 3.3).

use std::ops::Range;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    PackageBuilder, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink, aml};

use super::osc::PciOsc;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout::{self, Layout};

/// Revision from which integers have 64 bits.
const REVISION: u8 = 2;
/// `_STA`: present, enabled, shown, working.
const STATUS_PRESENT: u8 = 0x0f;

/// The DSDT.
pub(super) fn dsdt(layout: &Layout) -> Sdt {
    let devices = [host_bridge(layout), motherboard(), com1(), rtc(), keyboard(), pvpanic()];
    let devices: Vec<&dyn Aml> = devices.iter().map(|d| d as &dyn Aml).collect();
    let mut bytes = Vec::new();
    sleep_state(&mut bytes);
    Scope::new(Path::new("\\_SB_"), devices).to_aml_bytes(&mut bytes);
    let mut dsdt = Sdt::new(*b"DSDT", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&bytes);
    dsdt
}

/// AML of a finished object.
struct Device(Vec<u8>);

impl Device {
    fn new(name: &str, children: Vec<&dyn Aml>) -> Self {
        let mut bytes = Vec::new();
        aml::Device::new(Path::new(name), children).to_aml_bytes(&mut bytes);
        Self(bytes)
    }

    /// A device known by its name and resources alone.
    fn simple(name: &str, hid: &dyn Aml, resources: Vec<&dyn Aml>) -> Self {
        let hid = Name::new(Path::new("_HID"), hid);
        let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources));
        Self::new(name, vec![&hid, &Name::new(Path::new("_UID"), &ZERO), &resources])
    }
}

impl Aml for Device {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Power-off: what to write to PM1a control.
fn sleep_state(bytes: &mut Vec<u8>) {
    let package = Package::new(vec![&layout::ACPI_SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new(Path::new("\\_S5_"), &package).to_aml_bytes(bytes);
}

fn host_bridge(layout: &Layout) -> Device {
    let name = |name, value: &dyn Aml| Name::new(Path::new(name), value);
    Device::new(
        "PCI0",
        vec![
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_UID", &ZERO),
            &name("_SEG", &ZERO),
            &name("_BBN", &ZERO),
            &host_bridge_resources(layout),
            &name("_PRT", &interrupt_routing()),
            &PciOsc,
        ],
    )
}

/// The buses, ports and addresses below the host bridge; the configuration ports are its own.
fn host_bridge_resources(layout: &Layout) -> Name {
    let config = layout::PCI_CONFIG_ADDRESS;
    Name::new(
        Path::new("_CRS"),
        &ResourceTemplate::new(vec![
            &AddressSpace::<u16>::new_bus_number(0, u16::from(layout::PCI_BUSES) - 1),
            &IO::new(config, config, 1, 8),
            &AddressSpace::<u16>::new_io(0, config - 1, None),
            &AddressSpace::<u16>::new_io(config + 8, u16::MAX, None),
            &window::<u32>(layout::PCI_WINDOW_32_LOW),
            &window::<u32>(layout::PCI_WINDOW_32_HIGH),
            &window::<u64>(layout.pci_window_64()),
        ]),
    )
}

/// A window for memory BARs; `T` is as wide as its addresses.
fn window<T: Default + TryFrom<u64>>(range: Range<u64>) -> AddressSpace<T> {
    let address = |at| T::try_from(at).unwrap_or_default();
    let (first, last) = (address(range.start), address(range.end - 1));
    AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None)
}

/// `_PRT`: the four pins of every slot, wired to inputs of the I/O APIC without a link device.
fn interrupt_routing() -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for slot in 0..layout::PCI_SLOTS {
        // All functions of the device.
        let address = u32::from(slot) << 16 | 0xffff;
        for pin in 0..4u8 {
            let gsi = layout::pci_intx_gsi(slot, pin);
            table.add_element(&Package::new(vec![&address, &pin, &ZERO, &gsi]));
        }
    }
    table
}

/// Addresses and ports that belong to nobody else's device.
fn motherboard() -> Device {
    let (ecam, block) = (layout::PCI_ECAM, layout::ACPI_BLOCK);
    Device::simple(
        "MBRD",
        &EISAName::new("PNP0C02"),
        vec![
            &Memory32Fixed::new(true, ecam.start as u32, (ecam.end - ecam.start) as u32),
            &IO::new(block.start, block.start, 1, block.len() as u8),
        ],
    )
}

/// An ISA interrupt: edge-triggered, active high, not shared.
fn isa_irq(number: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, number)
}

fn com1() -> Device {
    Device::simple(
        "COM1",
        &EISAName::new("PNP0501"),
        vec![&IO::new(layout::COM1, layout::COM1, 1, 8), &isa_irq(layout::COM1_IRQ)],
    )
}

fn rtc() -> Device {
    Device::simple(
        "RTC_",
        &EISAName::new("PNP0B00"),
        vec![&IO::new(layout::RTC, layout::RTC, 1, 2), &isa_irq(layout::RTC_IRQ)],
    )
}

fn keyboard() -> Device {
    let (data, command) = (layout::I8042_DATA, layout::I8042_COMMAND);
    Device::simple(
        "KBD_",
        &EISAName::new("PNP0303"),
        vec![&IO::new(data, data, 1, 1), &IO::new(command, command, 1, 1), &isa_irq(layout::KEYBOARD_IRQ)],
    )
}

/// The device by which a guest tells that it crashed; Linux and Windows know it by this name.
fn pvpanic() -> Device {
    let port = IO::new(layout::PVPANIC, layout::PVPANIC, 1, 1);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&port]));
    Device::new(
        "PEVT",
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &resources,
            &Name::new(Path::new("_STA"), &STATUS_PRESENT),
        ],
    )
}
