//! Versioned saved state: how a device or a processor becomes bytes and comes back.
//!
//! A saved thing is a [`Record`]: an id (which one), a kind and version (what), and bytes. The bytes are tagged
//! fields: `tag: u16 | length: u32 | payload`, little-endian, tags ascending. The top bit of a tag is set on
//! fields that a reader may ignore when it does not know them; an unknown field without it refuses the record.
//!
//! Decoding is total over untrusted bytes: every length is checked before it is used, a field may appear once,
//! and a missing field is an error. Encoding cannot fail.
#![forbid(unsafe_code)]

mod codec;
mod container;
mod record;

pub use codec::{Field, Reader, StateError, Writer};
pub use container::{ChunkKind, Container, ContainerError, ContainerWriter, FORMAT_VERSION};
pub use record::{Record, Saved};

#[cfg(test)]
#[path = "state_test.rs"]
mod state_test;
