//! ACPI tables of machine type `umbra-1` (ACPI 6.5), placed in [`layout::ACPI_TABLES`].
//!
//! The machine is no hardware-reduced one: it has the PM1a registers, a power management timer and a fixed power
//! button, and it is always in ACPI mode (no SMI). The tables are the same for one layout and number of processors.

mod dsdt;
mod fixed;
mod madt;
mod osc;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use crate::error::BootError;
use crate::layout::{self, CPUS_MAX, Layout};
use crate::segment::Segment;

const OEM_ID: [u8; 6] = *b"UMBRA ";
const OEM_TABLE_ID: [u8; 8] = *b"UMBRA-1 ";
const OEM_REVISION: u32 = 1;
/// The FACS' alignment (section 5.2.10); the others need less.
const ALIGNMENT: u64 = 64;

/// What the tables depend on besides the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcpiSpec {
    /// Processors at start, with APIC ids from 0.
    pub cpus: u32,
    /// Processors there may be later; a kernel keeps room for each, so ask for no more than are meant.
    pub cpus_max: u32,
}

/// All tables, as one segment with the root pointer at [`layout::RSDP`].
///
/// # Errors
///
/// [`BootError::CpuCount`] for a number of processors that the machine type cannot have.
pub fn tables(spec: &AcpiSpec, layout: &Layout) -> Result<Segment<'static>, BootError> {
    let AcpiSpec { cpus, cpus_max } = *spec;
    if cpus == 0 || cpus > cpus_max || cpus_max > CPUS_MAX {
        return Err(BootError::CpuCount { cpus, cpus_max });
    }
    let mut area = Area::default();
    // Its content depends on where the others are: keep its place.
    area.push(&[0; size_of::<Rsdp>()]);
    let facs = area.push_table(&FACS::new());
    let dsdt = area.push_table(&dsdt::dsdt(layout));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(area.push_table(&fixed::fadt(facs, dsdt)));
    xsdt.add_entry(area.push_table(&madt::madt(cpus, cpus_max)));
    xsdt.add_entry(area.push_table(&mcfg()));
    let xsdt = area.push_table(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    Ok(area.finish(&rsdp))
}

/// PCI Express configuration space (PCI Firmware Specification 3.3, section 4.1.2).
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::PCI_ECAM.start, 0, 0, layout::PCI_BUSES - 1);
    mcfg
}

/// Tables one after the other.
#[derive(Default)]
struct Area(Vec<u8>);

impl Area {
    /// Appends at the next aligned address and returns it.
    fn push(&mut self, bytes: &[u8]) -> u64 {
        let at = (self.0.len() as u64).next_multiple_of(ALIGNMENT);
        self.0.resize(at as usize, 0);
        self.0.extend_from_slice(bytes);
        layout::ACPI_TABLES.start + at
    }

    fn push_table(&mut self, table: &dyn Aml) -> u64 {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.push(&bytes)
    }

    /// With the root pointer in its place at the start.
    fn finish(mut self, rsdp: &[u8]) -> Segment<'static> {
        for (to, from) in self.0.iter_mut().zip(rsdp) {
            *to = *from;
        }
        Segment::new(layout::RSDP, self.0)
    }
}
