//! What is left to do to a frame, in the layout of the kernel's `struct virtio_net_hdr` (`linux/virtio_net.h`; virtio 1.3, section
//! 5.1.6), which tap devices and network cards have in common.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What is left to do to a frame. By default nothing.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct VnetHeader {
    /// [`VnetHeader::NEEDS_CHECKSUM`], [`VnetHeader::CHECKSUM_VALID`].
    pub flags: u8,
    /// One of [`Gso`].
    pub gso_type: u8,
    /// Bytes of all headers, of a frame to be cut; a hint.
    pub header_len: U16,
    /// Payload of each piece.
    pub gso_size: U16,
    /// Where the bytes begin that the checksum is over.
    pub checksum_start: U16,
    /// Where, from there, it is to be put.
    pub checksum_offset: U16,
}

/// How a frame is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Gso {
    /// Not at all.
    None = 0,
    /// TCP over IPv4.
    Tcp4 = 1,
    /// TCP over IPv6.
    Tcp6 = 4,
}

impl VnetHeader {
    /// The checksum at `checksum_start + checksum_offset` is that of the pseudo header alone.
    pub const NEEDS_CHECKSUM: u8 = 1;
    /// The checksum need not be looked at.
    pub const CHECKSUM_VALID: u8 = 2;

    /// Whether the checksum says nothing about what the frame went through: it is not there yet, or was looked at.
    pub fn checksum_trusted(&self) -> bool {
        self.flags & (Self::NEEDS_CHECKSUM | Self::CHECKSUM_VALID) != 0
    }
}
