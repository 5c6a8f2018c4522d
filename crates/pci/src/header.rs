//! The configuration space header of a function that is no bridge (PCI Local Bus Specification 3.0, section 6.1,
//! "Type 00h Configuration Space Header").

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// The command register (section 6.2.2).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Command: u16 {
        /// The function answers at its I/O base addresses.
        const IO_SPACE = 1;
        /// The function answers at its memory base addresses.
        const MEMORY_SPACE = 1 << 1;
        /// The function may access memory and send messages.
        const BUS_MASTER = 1 << 2;
        /// Parity errors are reported.
        const PARITY_ERROR_RESPONSE = 1 << 6;
        /// System errors are reported.
        const SERR = 1 << 8;
        /// The interrupt pin is off.
        const INTERRUPT_DISABLE = 1 << 10;
    }
}

/// Where the status register is.
pub(crate) const STATUS_OFFSET: u16 = 6;
/// The status register's bit, in its low byte, that says that the interrupt pin is asserted (section 6.2.3).
pub(crate) const STATUS_INTERRUPT: u8 = 1 << 3;
/// The status register's bit that says that there is a list of capabilities (section 6.2.3).
pub(crate) const STATUS_CAPABILITIES: u16 = 1 << 4;

/// What a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// The header. It is used for what the registers hold and for which of their bits a guest can write.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Debug, Clone, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) vendor_id: U16,
    pub(crate) device_id: U16,
    pub(crate) command: U16,
    pub(crate) status: U16,
    pub(crate) revision_id: u8,
    pub(crate) programming_interface: u8,
    pub(crate) sub_class: u8,
    pub(crate) base_class: u8,
    pub(crate) cache_line_size: u8,
    pub(crate) latency_timer: u8,
    pub(crate) header_type: u8,
    pub(crate) bist: u8,
    pub(crate) base_addresses: [U32; 6],
    pub(crate) cardbus_cis_pointer: U32,
    pub(crate) subsystem_vendor_id: U16,
    pub(crate) subsystem_id: U16,
    pub(crate) expansion_rom: U32,
    pub(crate) capabilities_pointer: u8,
    pub(crate) reserved: [u8; 7],
    pub(crate) interrupt_line: u8,
    pub(crate) interrupt_pin: u8,
    pub(crate) min_gnt: u8,
    pub(crate) max_lat: u8,
}

/// Where the capabilities begin.
pub(crate) const HEADER_LEN: usize = size_of::<Header>();
/// The header and what follows it in conventional configuration space.
pub(crate) const CONFIG_LEN: usize = 256;

/// Conventional configuration space.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Debug, Clone, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Registers {
    pub(crate) header: Header,
    pub(crate) capabilities: [u8; CONFIG_LEN - HEADER_LEN],
}

const _: () = assert!(HEADER_LEN == 0x40);
