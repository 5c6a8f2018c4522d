//! The repository's own tools, and the parts of them that tests use.
//!
//! The binary (`cargo xtask`) is the face; what lives here is what other crates' tests call too: the prepared
//! guests of [`guests`], the nested host of [`nest`], and child processes of [`process`].
#![forbid(unsafe_code)]

mod apt;
pub mod bench;
pub mod cache;
pub mod deps;
pub mod disk_guest;
mod elf;
pub mod fuzz;
pub mod guests;
pub mod initramfs;
pub mod lint;
pub mod nest;
pub mod net_guest;
pub mod process;
pub mod qemu_img;
mod root;
pub mod soak;
pub mod suite;
pub mod umbra;

#[cfg(test)]
mod apt_test;
#[cfg(test)]
mod elf_test;
#[cfg(test)]
mod fuzz_test;
#[cfg(test)]
mod process_test;
