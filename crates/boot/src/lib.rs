//! Guest loaders and firmware tables of machine type `umbra-1`.
//!
//! Everything here is pure: files and sizes go in, segments of guest memory and the first processor's registers come
//! out. Nothing reads a file or touches guest memory, so all of it can be tested and fuzzed as it is.
//!
//! - [`layout`]: the machine type's addresses, ports and interrupts;
//! - [`load()`]: bzImage and ELF kernels, by PVH or Linux' 64-bit protocol;
//! - [`bzimage`], [`payload`], [`elf`]: the parts of a kernel file;
//! - [`acpi`], [`smbios`]: what a firmware would leave in memory;
//! - [`cpio`]: initramfs archives.
//!
//! A kernel file is not trusted: what it says of sizes and places is checked before it is used, and what it unpacks
//! to is bounded.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod bzimage;
pub mod cpio;
pub mod e820;
pub mod elf;
pub mod entry;
pub mod error;
pub mod layout;
mod linux64;
pub mod load;
pub mod payload;
mod place;
mod pvh;
pub mod segment;
pub mod smbios;

#[cfg(test)]
mod acpi_test;
#[cfg(test)]
mod bzimage_test;
#[cfg(test)]
mod cpio_test;
#[cfg(test)]
mod e820_test;
#[cfg(test)]
mod elf_test;
#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod layout_test;
#[cfg(test)]
mod load_test;
#[cfg(test)]
mod payload_test;
#[cfg(test)]
mod smbios_test;
#[cfg(test)]
mod testdata;

pub use entry::Entry;
pub use error::BootError;
pub use layout::Layout;
pub use load::{BootImage, BootSource, LoadMethod, load};
pub use segment::{Bytes, Segment};
