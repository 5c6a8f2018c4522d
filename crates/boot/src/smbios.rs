//! SMBIOS tables: the names that a guest shows as its hardware (DMTF DSP0134, version 3.3).
//!
//! The 64-bit entry point is at the start of [`layout::SMBIOS`], where kernels search for it; the structures follow.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, Unaligned};

use crate::layout::{self, MACHINE_TYPE};
use crate::segment::Segment;

const VENDOR: &str = "Umbra";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Type 0, characteristics: they are not told.
const CHARACTERISTICS_UNKNOWN: u64 = 1 << 3;
/// Type 0, second extension byte: this is a virtual machine.
const VIRTUAL_MACHINE: u8 = 1 << 4;
/// Type 1: woken by the power switch.
const WAKE_UP_POWER_SWITCH: u8 = 6;

/// The 64-bit entry point, section 5.2.2.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct EntryPoint {
    anchor: [u8; 5],
    checksum: u8,
    length: u8,
    major: u8,
    minor: u8,
    revision: u8,
    entry_revision: u8,
    reserved: u8,
    table_length_max: U32,
    table: U64,
}

/// What every structure begins with.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    kind: u8,
    length: u8,
    handle: U16,
}

/// Type 0, firmware.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Firmware {
    header: Header,
    vendor: u8,
    version: u8,
    segment: U16,
    release_date: u8,
    rom_size: u8,
    characteristics: U64,
    characteristics_extension: [u8; 2],
    release: [u8; 2],
    controller_release: [u8; 2],
}

/// Type 1, system.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct System {
    header: Header,
    manufacturer: u8,
    product: u8,
    version: u8,
    serial: u8,
    uuid: [u8; 16],
    wake_up: u8,
    sku: u8,
    family: u8,
}

/// The entry point and structures; `uuid` in the order in which it is written as text.
pub fn tables(uuid: [u8; 16]) -> Segment<'static> {
    let mut structures = Vec::new();
    let firmware = Firmware {
        header: header::<Firmware>(0),
        vendor: 1,
        version: 2,
        segment: 0.into(),
        release_date: 3,
        rom_size: 0,
        characteristics: CHARACTERISTICS_UNKNOWN.into(),
        characteristics_extension: [0, VIRTUAL_MACHINE],
        release: [0xff; 2],
        controller_release: [0xff; 2],
    };
    push(&mut structures, firmware.as_bytes(), &[VENDOR, VERSION, "01/01/2026"]);
    let system = System {
        header: header::<System>(1),
        manufacturer: 1,
        product: 2,
        version: 3,
        serial: 0,
        uuid: mixed_endian(uuid),
        wake_up: WAKE_UP_POWER_SWITCH,
        sku: 0,
        family: 4,
    };
    let product = format!("Umbra machine {MACHINE_TYPE}");
    push(&mut structures, system.as_bytes(), &[VENDOR, &product, MACHINE_TYPE, "Virtual Machine"]);
    push(&mut structures, header::<Header>(127).as_bytes(), &[]);

    let mut entry = EntryPoint {
        anchor: *b"_SM3_",
        checksum: 0,
        length: size_of::<EntryPoint>() as u8,
        major: 3,
        minor: 3,
        revision: 0,
        entry_revision: 1,
        reserved: 0,
        table_length_max: (structures.len() as u32).into(),
        table: (layout::SMBIOS.start + size_of::<EntryPoint>() as u64).into(),
    };
    entry.checksum = entry.as_bytes().iter().fold(0u8, |sum, b| sum.wrapping_sub(*b));
    let mut bytes = entry.as_bytes().to_vec();
    bytes.extend_from_slice(&structures);
    Segment::new(layout::SMBIOS.start, bytes)
}

/// The header of structure `T`; the handle is the type, as there is one of each.
fn header<T>(kind: u8) -> Header {
    Header { kind, length: size_of::<T>() as u8, handle: u16::from(kind).into() }
}

/// The formatted part, then its strings, each ended by NUL, and one NUL more (two where there is no string).
fn push(to: &mut Vec<u8>, formatted: &[u8], strings: &[&str]) {
    to.extend_from_slice(formatted);
    for string in strings {
        to.extend_from_slice(string.as_bytes());
        to.push(0);
    }
    if strings.is_empty() {
        to.push(0);
    }
    to.push(0);
}

/// Section 7.2.1: the first three fields are little-endian.
fn mixed_endian(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}
