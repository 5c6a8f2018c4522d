//! What the fuzz targets share: numbers out of a fuzzer's bytes, and the machine around a device.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod board;
mod image;
mod input;
mod record;

pub mod disk;
pub mod guest;
pub mod nbd;
pub mod virtio;

pub use board::Board;
pub use image::{crc32c, image_of, input_of};
pub use input::Input;
pub use record::{alter, load_altered, load_record, repair_checksums};
