//! A network card's configuration space (section 5.1.4) and features (5.1.3).

use bitflags::bitflags;
use umbra_net::Offloads;
use zerocopy::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

bitflags! {
    /// A card's own features.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct NetFeature: u64 {
        /// The device fills checksums in.
        const CHECKSUM = 1 << 0;
        /// The driver does.
        const GUEST_CHECKSUM = 1 << 1;
        const MTU = 1 << 3;
        const MAC = 1 << 5;
        const GUEST_TSO4 = 1 << 7;
        const GUEST_TSO6 = 1 << 8;
        const HOST_TSO4 = 1 << 11;
        const HOST_TSO6 = 1 << 12;
        const MERGEABLE = 1 << 15;
        const STATUS = 1 << 16;
    }
}

impl NetFeature {
    /// What is offered before a backend that can do this.
    pub(super) fn offered(backend: Offloads) -> Self {
        let mut features = Self::GUEST_CHECKSUM
            | Self::MTU
            | Self::MAC
            | Self::GUEST_TSO4
            | Self::GUEST_TSO6
            | Self::MERGEABLE
            | Self::STATUS;
        features.set(Self::CHECKSUM, backend.contains(Offloads::CHECKSUM));
        // Cutting needs checksums (section 5.1.3.1).
        features.set(Self::HOST_TSO4, backend.contains(Offloads::CHECKSUM | Offloads::TSO4));
        features.set(Self::HOST_TSO6, backend.contains(Offloads::CHECKSUM | Offloads::TSO6));
        features
    }

    /// What the driver finishes by itself.
    pub(super) fn guest_offloads(self) -> Offloads {
        let mut offloads = Offloads::empty();
        if self.contains(Self::GUEST_CHECKSUM) {
            offloads |= Offloads::CHECKSUM;
            offloads.set(Offloads::TSO4, self.contains(Self::GUEST_TSO4));
            offloads.set(Offloads::TSO6, self.contains(Self::GUEST_TSO6));
        }
        offloads
    }
}

/// `struct virtio_net_config`, as far as the features that are offered give it meaning.
#[derive(IntoBytes, Immutable, Debug, Clone)]
#[repr(C)]
pub(super) struct NetConfig {
    pub(super) mac: [u8; 6],
    pub(super) status: U16,
    pub(super) queue_pairs: U16,
    pub(super) mtu: U16,
}

/// Status: the cable is plugged in.
pub(super) const LINK_UP: u16 = 1;
