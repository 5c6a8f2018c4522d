//! Network card (section 5.1) over a backend of `umbra-net`.
//!
//! A thread of its own, `net-` and the card's name, takes frames from the driver's buffers, once and by copying, before anything
//! looks at them; no vCPU waits for it. It stops reading the host's sockets while the driver gives it no room.

mod card;
mod config;

use std::sync::Arc;

use card::{Card, Shared};
use config::{LINK_UP, NetConfig, NetFeature};
use umbra_device::DeviceError;
use umbra_net::{Backend, LinkThread, Wake};
use umbra_state::{Record, Saved};
use zerocopy::IntoBytes;

use crate::device::read_registers;
use crate::{Kind, Running, VirtioDevice};

/// Entries of the queue of frames for the guest: a large frame takes up to 43 of its buffers.
const RECEIVE_SIZE: u16 = 1024;
/// Entries of the queue of frames from it.
const TRANSMIT_SIZE: u16 = 256;

umbra_state::saved! {
    /// A network card; what is on the network is not part of it.
    pub struct NetV1: "virtio-net", 1 {
        /// Its address.
        1 mac: [u8; 6],
        /// The longest packet.
        2 mtu: u16,
    }
}

/// What a card shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSpec {
    /// Its name, such as `eth0`, for its thread.
    pub name: String,
    /// Its address.
    pub mac: [u8; 6],
}

/// The device.
pub struct Net {
    spec: NetSpec,
    config: NetConfig,
    features: NetFeature,
    shared: Arc<Shared>,
    link: LinkThread,
}

impl Net {
    /// One at a backend, with its thread.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn new(spec: NetSpec, backend: Box<dyn Backend>) -> umbra_net::Result<Self> {
        let features = NetFeature::offered(backend.offloads());
        let config = NetConfig {
            mac: spec.mac,
            status: LINK_UP.into(),
            queue_pairs: 1.into(),
            mtu: backend.mtu().into(),
        };
        let shared = Arc::new(Shared::default());
        let card = Box::new(Card::new(Arc::clone(&shared)));
        let wake =
            Wake::new().map_err(|source| umbra_net::Error::Host { what: "make a doorbell", source })?;
        let link = LinkThread::start(&format!("net-{}", spec.name), wake, card, backend)?;
        Ok(Self { spec, config, features, shared, link })
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind {
            device_type: 1,
            class: [0x02, 0x00, 0x00],
            features: self.features.bits(),
            queue_sizes: vec![RECEIVE_SIZE, TRANSMIT_SIZE],
        }
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        let mut config = self.config.clone();
        config.status.set(if self.shared.is_up() { LINK_UP } else { 0 });
        read_registers(config.as_bytes(), offset, data);
    }

    fn start(&mut self, running: Running) {
        self.shared.set_running(Some(running));
        self.link.wake().wake();
    }

    fn notify(&mut self, _queue: u16) {
        self.link.wake().wake();
    }

    fn reset(&mut self) {
        self.shared.set_running(None);
        self.link.wake().wake();
    }

    fn save(&self) -> Result<Record, DeviceError> {
        let saved = NetV1 { mac: self.config.mac, mtu: self.config.mtu.get() };
        Ok(saved.to_record(&self.spec.name))
    }

    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let id = self.spec.name.as_str();
        let NetV1 { mac, mtu } = NetV1::from_record(record).map_err(DeviceError::state(id))?;
        if mtu != self.config.mtu.get() {
            let what = "MTU: the network that was given has another";
            return Err(DeviceError::Impossible { id: id.into(), what });
        }
        // The driver has read its address, and keeps it.
        self.config.mac = mac;
        Ok(())
    }
}
