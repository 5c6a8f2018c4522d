//! Where the registers are and what their bits mean.
//!
//! Offsets are those of the xAPIC page; the x2APIC MSR of a register is `0x800 + offset / 16`. Intel SDM volume 3,
//! "Local APIC Register Address Map" and "x2APIC Register Address Space".

/// Local APIC ID.
pub const ID: u32 = 0x20;
/// Version.
pub const VERSION: u32 = 0x30;
/// Task priority.
pub const TPR: u32 = 0x80;
/// Arbitration priority; reads as zero.
pub const APR: u32 = 0x90;
/// Processor priority.
pub const PPR: u32 = 0xa0;
/// End of interrupt.
pub const EOI: u32 = 0xb0;
/// Remote read; reads as zero.
pub const RRD: u32 = 0xc0;
/// Logical destination.
pub const LDR: u32 = 0xd0;
/// Destination format.
pub const DFR: u32 = 0xe0;
/// Spurious interrupt vector.
pub const SVR: u32 = 0xf0;
/// In service, eight registers of 32 bits.
pub const ISR: u32 = 0x100;
/// Trigger mode, eight registers.
pub const TMR: u32 = 0x180;
/// Interrupt request, eight registers.
pub const IRR: u32 = 0x200;
/// Error status.
pub const ESR: u32 = 0x280;
/// Interrupt command, low half; a write sends.
pub const ICR: u32 = 0x300;
/// Interrupt command, high half: the destination.
pub const ICR_HIGH: u32 = 0x310;
/// The first of the local vector table.
pub const LVT_TIMER: u32 = 0x320;
/// Local vector table: thermal sensor.
pub const LVT_THERMAL: u32 = 0x330;
/// Local vector table: performance counters.
pub const LVT_PERF: u32 = 0x340;
/// Local vector table: the LINT0 pin.
pub const LVT_LINT0: u32 = 0x350;
/// Local vector table: the LINT1 pin.
pub const LVT_LINT1: u32 = 0x360;
/// Local vector table: errors.
pub const LVT_ERROR: u32 = 0x370;
/// Timer: initial count.
pub const TMICT: u32 = 0x380;
/// Timer: current count.
pub const TMCCT: u32 = 0x390;
/// Timer: divide configuration.
pub const TDCR: u32 = 0x3e0;
/// Self IPI, x2APIC only.
pub const SELF_IPI: u32 = 0x3f0;

/// The MSR that places and switches the local APIC.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// The MSR of the timer's TSC-deadline mode.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// The first x2APIC MSR.
pub const MSR_X2APIC: u32 = 0x800;
/// The last MSR of the x2APIC range.
pub const MSR_X2APIC_LAST: u32 = 0x8ff;

/// IA32_APIC_BASE: this is the bootstrap processor.
pub const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: the APIC is on.
pub const BASE_ENABLE: u64 = 1 << 11;
/// IA32_APIC_BASE: the bits of the page's address.
pub const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Where the page is after reset.
pub const DEFAULT_ADDRESS: u64 = 0xfee0_0000;

/// What the version register says: an integrated APIC of six LVT entries which can keep an EOI to itself.
pub(crate) const VERSION_VALUE: u32 = 1 << 24 | 5 << 16 | 0x14;

/// SVR: the APIC is on by software.
pub(crate) const SVR_ENABLE: u32 = 1 << 8;
/// SVR: an EOI is not broadcast.
pub(crate) const SVR_SUPPRESS_EOI: u32 = 1 << 12;
/// SVR: what can be written. Focus checking (bit 9) is kept and, as in every processor since the Pentium 4, does nothing.
pub(crate) const SVR_WRITABLE: u32 = SVR_SUPPRESS_EOI | 0x3ff;

/// LVT: masked.
pub(crate) const LVT_MASKED: u32 = 1 << 16;
/// LVT: delivery status and remote IRR, which are read-only.
pub(crate) const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;

/// ESR: an IPI with a vector below 16 was to be sent.
pub(crate) const ESR_SEND_ILLEGAL: u32 = 1 << 5;
/// ESR: an interrupt with a vector below 16 came.
pub(crate) const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
/// ESR: a register that does not exist was accessed (xAPIC).
pub(crate) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// TDCR: the bits that exist.
pub(crate) const TDCR_WRITABLE: u32 = 0xb;
