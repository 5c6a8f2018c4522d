//! Where a driver finds the parts of a device: one base address register, and capabilities that point into it (section
//! 4.1.4).

use umbra_pci::{Bar, ConfigSpace, Identity, Intx, Msix, PciError};

use crate::Kind;

/// The base address register that has everything.
pub(super) const BAR: u8 = 0;
/// Its length. Each part has pages of its own.
pub(super) const BAR_LEN: u64 = 0x8000;
/// Common configuration.
pub(super) const COMMON: u64 = 0;
/// ISR status.
pub(super) const ISR: u64 = 0x1000;
/// The device's own configuration.
pub(super) const DEVICE: u64 = 0x2000;
/// Where drivers say that there is something in a queue.
pub(super) const NOTIFY: u64 = 0x3000;
/// MSI-X table.
pub(super) const MSIX_TABLE: u64 = 0x4000;
/// MSI-X pending bits.
pub(super) const MSIX_PENDING: u64 = 0x6000;
/// Bytes between the parts up to the MSI-X table.
pub(super) const PART_LEN: u64 = 0x1000;
/// Bytes between the queues' places in the notification part.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

/// The capability through which configuration space reaches the base address register (section 4.1.4.9). It is the first
/// one, so its place is known.
pub(super) const WINDOW: u16 = 0x40;
/// In it: which base address register, which offset in it, how many bytes; then the data.
pub(super) const WINDOW_BAR: u16 = WINDOW + 4;
pub(super) const WINDOW_DATA: u16 = WINDOW + 16;

/// Types of capabilities.
const COMMON_TYPE: u8 = 1;
const NOTIFY_TYPE: u8 = 2;
const ISR_TYPE: u8 = 3;
const DEVICE_TYPE: u8 = 4;
const WINDOW_TYPE: u8 = 5;

/// The vendor of all virtio devices, and what to add to a type for its device ID (section 4.1.2).
const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;

/// The body of a capability: length byte, type, base address register, ID, padding, offset, length, and more.
fn body<const N: usize>(kind: u8, offset: u64, len: u64, more: [u8; N]) -> Vec<u8> {
    let head = [0, kind, BAR, 0, 0, 0];
    [&head[..], &(offset as u32).to_le_bytes(), &(len as u32).to_le_bytes(), &more].concat()
}

/// Adds a capability whose body has exactly `N` bytes.
fn add<const N: usize>(config: ConfigSpace, body: &[u8], writable: [u8; N]) -> Result<ConfigSpace, PciError> {
    let too_long = PciError::CapabilityTooLong { len: body.len() + 2 };
    let body = <[u8; N]>::try_from(body).map_err(|_| too_long)?;
    config.with_vendor_capability(body, writable)
}

/// The configuration space of a device of this kind.
pub(super) fn config_space(kind: &Kind, msix: &Msix, intx: &Intx) -> Result<ConfigSpace, PciError> {
    let device = DEVICE_BASE + kind.device_type;
    let identity = Identity {
        vendor: VENDOR,
        device,
        revision: 1,
        class: kind.class,
        subsystem_vendor: VENDOR,
        subsystem: device,
    };
    // The window's base address register, offset, length and data are the driver's to write.
    let mut window = [0; 18];
    window[2] = 0xff;
    window[6..].fill(0xff);
    let config =
        ConfigSpace::new(identity).with_bar(BAR, Bar::Memory64 { len: BAR_LEN, prefetchable: false })?;
    let config = add(config, &body(WINDOW_TYPE, 0, 0, [0; 4]), window)?;
    let config = add(config, &body(COMMON_TYPE, COMMON, PART_LEN, []), [0; 14])?;
    let config = add(config, &body(ISR_TYPE, ISR, PART_LEN, []), [0; 14])?;
    let config = add(config, &body(DEVICE_TYPE, DEVICE, PART_LEN, []), [0; 14])?;
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    let config = add(config, &body(NOTIFY_TYPE, NOTIFY, PART_LEN, multiplier), [0; 18])?;
    let config = config.with_msix(msix, (BAR, MSIX_TABLE as u32), (BAR, MSIX_PENDING as u32))?;
    Ok(config.with_interrupt_pin(intx))
}
