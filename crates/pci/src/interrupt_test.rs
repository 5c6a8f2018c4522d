//! MSI-X and the interrupt pin, by hand-fed accesses.

use std::sync::{Arc, Mutex};

use umbra_device::{DeviceError, IrqLine, IrqSink, Msi, MsiSink};
use umbra_state::Saved;

use crate::{ConfigSpace, Identity, Intx, Msix, MsixV1, PciError};

#[derive(Default)]
struct Seen {
    messages: Mutex<Vec<Msi>>,
    levels: Mutex<Vec<bool>>,
}

impl MsiSink for Seen {
    fn send(&self, msi: Msi) {
        self.messages.lock().unwrap().push(msi);
    }
}

impl IrqSink for Seen {
    fn set_level(&self, _pin: u32, high: bool) {
        self.levels.lock().unwrap().push(high);
    }
}

impl Seen {
    fn messages(&self) -> Vec<u32> {
        self.messages.lock().unwrap().drain(..).map(|m| m.data).collect()
    }

    fn levels(&self) -> Vec<bool> {
        self.levels.lock().unwrap().drain(..).collect()
    }
}

fn config() -> (ConfigSpace, Msix, Intx, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let msix = Msix::new(70, seen.clone());
    let intx = Intx::new(IrqLine::new(seen.clone(), 0));
    let config = ConfigSpace::new(Identity::default())
        .with_vendor_capability([0, 1, 2], [0xff; 3])
        .and_then(|c| c.with_msix(&msix, (2, 0x4000), (3, 0x800)))
        .unwrap()
        .with_interrupt_pin(&intx);
    (config, msix, intx, seen)
}

fn read32(config: &ConfigSpace, offset: u16) -> u32 {
    let mut data = [0; 4];
    config.read(offset, &mut data);
    u32::from_le_bytes(data)
}

const CONTROL: u16 = 0x4a;

fn control(config: &mut ConfigSpace, value: u16) {
    config.write(CONTROL, &value.to_le_bytes());
}

/// Puts a message into an entry, unmasked or not.
fn entry(msix: &Msix, vector: u64, data: u32, masked: bool) {
    msix.table_write(vector * 16, &0xfee0_1000_u64.to_le_bytes());
    msix.table_write(vector * 16 + 8, &data.to_le_bytes());
    msix.table_write(vector * 16 + 12, &(u32::from(masked) | 0xffff_fffe).to_le_bytes());
}

fn waiting(msix: &Msix) -> u64 {
    let mut data = [0; 8];
    msix.pending_read(0, &mut data);
    u64::from_le_bytes(data)
}

#[test]
fn the_capability_says_where_things_are() {
    let (config, msix, ..) = config();
    assert_eq!(read32(&config, 0x40), 0x0105_4809, "vendor: next, length, body");
    assert_eq!(read32(&config, 0x48), 69 << 16 | 0x11);
    assert_eq!((read32(&config, 0x4c), read32(&config, 0x50)), (0x4002, 0x803));
    assert_eq!((msix.table_len(), msix.pending_len()), (70 * 16, 16));
    assert_eq!(read32(&config, 0x3c) >> 8 & 0xff, 1, "INTA#");
    let place = |bar, offset| ConfigSpace::new(Identity::default()).with_msix(&msix, (bar, offset), (0, 0));
    assert_eq!(place(6, 0).unwrap_err(), PciError::MsixPlace { bar: 6, offset: 0 });
    assert_eq!(place(0, 4).unwrap_err(), PciError::MsixPlace { bar: 0, offset: 4 });
}

#[test]
fn messages_go_where_the_table_says() {
    let (mut config, msix, _, seen) = config();
    entry(&msix, 3, 0x33, false);
    msix.signal(3);
    assert_eq!(seen.messages(), [], "it is off");
    control(&mut config, 0x8000);
    assert!(msix.is_enabled());
    msix.signal(3);
    msix.signal(70);
    msix.signal(u16::MAX);
    assert_eq!(*seen.messages.lock().unwrap(), [Msi { address: 0xfee0_1000, data: 0x33 }]);
    assert_eq!(waiting(&msix), 0);
}

#[test]
fn masked_vectors_wait_and_go_once() {
    let (mut config, msix, _, seen) = config();
    control(&mut config, 0x8000);
    entry(&msix, 3, 0x33, true);
    entry(&msix, 65, 0x65, false);
    msix.signal(3);
    msix.signal(3);
    assert_eq!((seen.messages(), waiting(&msix)), (vec![], 1 << 3));
    entry(&msix, 4, 0x44, false);
    assert_eq!(seen.messages(), []);
    entry(&msix, 3, 0x33, false);
    assert_eq!((seen.messages(), waiting(&msix)), (vec![0x33], 0));
    // All of them.
    control(&mut config, 0xc000);
    msix.signal(3);
    msix.signal(65);
    assert_eq!(seen.messages(), []);
    control(&mut config, 0x8000);
    assert_eq!(seen.messages(), [0x33, 0x65]);
    msix.reset();
    config.reset();
    msix.signal(3);
    assert_eq!((seen.messages(), msix.is_enabled()), (vec![], false));
}

#[test]
fn hostile_offsets_reach_nothing() {
    let (mut config, msix, _, seen) = config();
    control(&mut config, 0x8000);
    for offset in (0..70 * 16 + 40).chain([u64::MAX, u64::MAX - 3, 1 << 32]) {
        for len in [0, 1, 3, 4, 8, 64] {
            let mut data = vec![0xff; len];
            msix.table_write(offset, &data);
            msix.table_read(offset, &mut data);
            assert!(offset < 70 * 16 || data.iter().all(|b| *b == 0));
            msix.pending_read(offset, &mut data);
        }
    }
    let MsixV1 { table, .. } = MsixV1::from_record(&msix.save()).unwrap();
    assert!(table.chunks(16).all(|entry| matches!(entry[12..], [1, 0, 0, 0])), "reserved bits stay zero");
    assert_eq!(seen.messages(), []);
}

#[test]
fn the_pin_follows_status_and_disable() {
    let (mut config, _, intx, seen) = config();
    let status = |config: &ConfigSpace| read32(config, 4) >> 19 & 1;
    assert_eq!(status(&config), 0);
    intx.set(true);
    intx.set(true);
    assert_eq!((seen.levels(), status(&config)), (vec![true], 1));
    let mut byte = [0];
    config.read(6, &mut byte);
    assert_eq!(byte[0] & 8, 8, "read alone as well");
    config.write(4, &0x400_u16.to_le_bytes());
    assert_eq!((seen.levels(), status(&config)), (vec![false], 1), "disabled is not served");
    intx.set(false);
    intx.set(true);
    assert_eq!(seen.levels(), []);
    config.write(4, &[0, 0]);
    assert_eq!(seen.levels(), [true]);
    intx.set(false);
    assert_eq!((seen.levels(), status(&config)), (vec![false], 0));
}

#[test]
fn a_restored_function_is_silent_and_the_same() {
    let (mut config_a, msix_a, intx_a, _) = config();
    control(&mut config_a, 0xc000);
    config_a.write(4, &0x400_u16.to_le_bytes());
    entry(&msix_a, 5, 0x55, false);
    msix_a.signal(5);
    intx_a.set(true);
    let (mut config_b, msix_b, intx_b, seen) = config();
    config_b.load("f", &config_a.save()).unwrap();
    msix_b.load("f", &msix_a.save()).unwrap();
    intx_b.restore(intx_a.is_asserted());
    assert_eq!((seen.messages(), seen.levels()), (vec![], vec![]));
    assert_eq!(msix_b.save(), msix_a.save());
    control(&mut config_b, 0x8000);
    config_b.write(4, &[0, 0]);
    assert_eq!((seen.messages(), seen.levels()), (vec![0x55], vec![true]));
}

#[test]
fn impossible_states_are_refused() {
    let (_, msix, ..) = config();
    let good = MsixV1::from_record(&msix.save()).unwrap();
    let refusal = Err(DeviceError::Impossible { id: "f".into(), what: "MSI-X table" });
    let mut short = good.clone();
    short.table.truncate(69 * 16);
    let mut odd = good.clone();
    odd.table[13] = 1;
    let mut beyond = good.clone();
    beyond.pending[9] = 0x80;
    let mut long = good.clone();
    long.pending.push(0);
    for state in [short, odd, beyond, long] {
        assert_eq!(msix.load("f", &state.to_record("msix")), refusal);
    }
    msix.load("f", &good.to_record("msix")).unwrap();
}
