//! MADT: local APICs, I/O APIC, and which input each ISA interrupt arrives at (ACPI 6.5, section 5.2.12).

use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes, Unaligned};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;

/// Revision that knows the "online capable" flag.
const REVISION: u8 = 5;
/// There are 8259 interrupt controllers too.
const PCAT_COMPAT: u32 = 1;
/// Polarity and trigger as the bus has them: for ISA active high, edge.
const AS_BUS: u16 = 0;
/// Active high, level.
const HIGH_LEVEL: u16 = 0b11_01;
/// All processors.
const ALL_PROCESSORS: u8 = 0xff;
/// The local interrupt that is the NMI.
const LINT1: u8 = 1;

/// The fields before the list.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    local_apic: U32,
    flags: U32,
}

/// Interrupt source override.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct SourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    gsi: U32,
    flags: U16,
}

/// Local APIC NMI.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct LocalApicNmi {
    kind: u8,
    length: u8,
    processor: u8,
    flags: U16,
    lint: u8,
}

/// The MADT for `cpus` processors of `cpus_max`, at most 254.
pub(super) fn madt(cpus: u32, cpus_max: u32) -> Sdt {
    let head = Head { local_apic: (layout::LAPIC as u32).into(), flags: PCAT_COMPAT.into() };
    let mut list = head.as_bytes().to_vec();
    for id in 0..cpus_max {
        let status = if id < cpus { EnabledStatus::Enabled } else { EnabledStatus::DisabledOnlineCapable };
        list.extend_from_slice(ProcessorLocalApic::new(id as u8, id as u8, status).as_bytes());
    }
    list.extend_from_slice(IoApic::new(layout::IOAPIC_ID, layout::IOAPIC as u32, 0).as_bytes());
    list.extend_from_slice(source_override(0, layout::PIT_GSI, AS_BUS).as_bytes());
    list.extend_from_slice(source_override(layout::SCI_IRQ as u8, layout::SCI_IRQ, HIGH_LEVEL).as_bytes());
    let nmi =
        LocalApicNmi { kind: 4, length: 6, processor: ALL_PROCESSORS, flags: AS_BUS.into(), lint: LINT1 };
    list.extend_from_slice(nmi.as_bytes());

    let mut madt = Sdt::new(*b"APIC", 36, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&list);
    madt
}

fn source_override(source: u8, gsi: u32, flags: u16) -> SourceOverride {
    SourceOverride { kind: 2, length: 10, bus: 0, source, gsi: gsi.into(), flags: flags.into() }
}
