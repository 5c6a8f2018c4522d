//! FADT: the fixed hardware (ACPI 6.5, section 5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;

/// IAPC_BOOT_ARCH: there are devices on the ISA bus.
const BOOT_LEGACY_DEVICES: u16 = 1 << 0;
/// IAPC_BOOT_ARCH: there is a keyboard controller.
const BOOT_8042: u16 = 1 << 1;
/// IAPC_BOOT_ARCH: do not probe for VGA.
const BOOT_NO_VGA: u16 = 1 << 2;
/// A latency above these means that there is no C2 or C3 state.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
/// CMOS register that holds the century.
const CMOS_CENTURY: u8 = 0x32;

/// The FADT, with the addresses of the tables it names.
pub(super) fn fadt(facs: u64, dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No sleep button; the power button is the fixed one, whose flag is clear.
        .flag(Flags::SlpButton)
        // The clock's wake status is not in the fixed registers.
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    // The tables are below 1 MiB; where both addresses of a table may be given, they agree.
    fadt.dsdt = (dsdt as u32).into();
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.sci_int = (layout::SCI_IRQ as u16).into();
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CMOS_CENTURY;
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | BOOT_8042 | BOOT_NO_VGA).into();

    fadt.pm1a_evt_blk = u32::from(layout::ACPI_PM1A_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(layout::ACPI_PM1A_EVENT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(layout::ACPI_PM1A_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(layout::ACPI_PM1A_CONTROL, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(layout::ACPI_PM_TIMER).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(layout::ACPI_PM_TIMER, 32, AccessSize::DwordAccess);
    fadt.reset_reg = port(layout::RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.finalize()
}

fn port(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port))
}
