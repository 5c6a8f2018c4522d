//! PCI functions in a whole machine: found, mapped, moved, saved with it, and restored.

use std::sync::Arc;

use umbra_block::{
    Disk, Environment, FileSpec, FileStorageSpec, MemoryStorage, NodeSpec, Opener, Registry, Storage,
};
use umbra_boot::layout::PCI_ECAM;
use umbra_engine::CpuIo;

use crate::machine_test::{parts, spec};
use crate::{
    DiskSpec, Machine, MachineError, MachineSpec, NetworkSpec, Parts, SavedMachine, VsockHost, VsockOutside,
    VsockSpec,
};

#[derive(Debug)]
struct One(Arc<MemoryStorage>);

impl Opener for One {
    fn open(&self, _: &FileSpec, _: &FileStorageSpec) -> umbra_block::Result<Arc<dyn Storage>> {
        Ok(self.0.clone())
    }
    fn create(&self, _: &FileSpec) -> umbra_block::Result<Arc<dyn Storage>> {
        Ok(self.0.clone())
    }
}

/// A disk of so many sectors in memory.
fn disk(sectors: u64) -> Disk {
    let storage = Arc::new(MemoryStorage::default());
    storage.set_len(sectors * 512).unwrap();
    let mut environment = Environment::new(Registry::builtin());
    environment.opener = Arc::new(One(storage));
    Disk::open(&environment, &NodeSpec::new("disk", Some("raw")).writable()).unwrap()
}

fn with_disks(sectors: &[u64]) -> Parts {
    Parts { disks: sectors.iter().map(|n| disk(*n)).collect(), ..parts(|_, _| None).0 }
}

fn two_disks() -> MachineSpec {
    let named = |file: &str| DiskSpec { file: file.into(), ..DiskSpec::default() };
    MachineSpec { disks: vec![named("a"), named("b")], rng: true, ..spec() }
}

/// What a guest on this machine does.
struct Guest<'a>(&'a dyn CpuIo);

impl Guest<'_> {
    fn register(slot: u64, at: u64) -> u64 {
        PCI_ECAM.start + (slot << 15) + at
    }

    fn read(&self, gpa: u64) -> u32 {
        let mut data = [0; 4];
        self.0.mmio_read(gpa, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_base(&self, slot: u64, base: u64) {
        self.0.mmio_write(Self::register(slot, 0x10), &base.to_le_bytes());
        self.0.mmio_write(Self::register(slot, 4), &[6, 0]);
    }

    /// The capacity in a disk's configuration.
    fn sectors(&self, base: u64) -> u32 {
        self.read(base + 0x2000)
    }
}

const LOW: u64 = 0xc000_0000;

#[test]
fn functions_are_where_they_were_asked_for() {
    let machine = Machine::new(two_disks(), with_disks(&[2048, 4096])).unwrap();
    let guest = Guest(&*machine.board);
    let ids = [0, 1, 2, 3, 4].map(|slot| guest.read(Guest::register(slot, 0)) >> 16);
    assert_eq!(ids, [0x0008, 0x1042, 0x1042, 0x1044, 0xffff]);
    // All ones into the base address tells its size.
    guest.0.mmio_write(Guest::register(1, 0x10), &[0xff; 8]);
    assert_eq!(guest.read(Guest::register(1, 0x10)), 0xffff_8004);
    guest.set_base(1, LOW);
    guest.set_base(2, LOW + 0x8000);
    assert_eq!((guest.sectors(LOW), guest.sectors(LOW + 0x8000)), (2048, 4096));
    // Moved while it is there, up into the window above RAM.
    let high = Layout64::window();
    guest.set_base(1, high);
    assert_eq!((guest.sectors(LOW), guest.sectors(high)), (u32::MAX, 2048));
    guest.0.mmio_write(Guest::register(1, 4), &[0, 0]);
    assert_eq!(guest.sectors(high), u32::MAX, "switched off");
}

/// Where the window above RAM of these machines is: their processors have 40 bits.
struct Layout64;

impl Layout64 {
    fn window() -> u64 {
        umbra_boot::Layout::new(64 << 20, 40).unwrap().pci_window_64().start
    }
}

#[test]
fn functions_are_kept_out_of_where_other_things_are() {
    let machine = Machine::new(two_disks(), with_disks(&[2048, 4096])).unwrap();
    let guest = Guest(&*machine.board);
    let ioapic = guest.read(0xfec0_0000);
    for base in [0, 0x10_0000, PCI_ECAM.start, 0xfec0_0000, 0xfee0_0000, 1 << 32, u64::MAX - 0x7fff, 1 << 41]
    {
        guest.set_base(1, base);
        assert_eq!(guest.read(Guest::register(1, 0)) >> 16, 0x1042, "{base:x}");
    }
    assert_eq!(guest.read(0xfec0_0000), ioapic);
    // Two at one address: the first one stays, the other comes when it goes.
    guest.set_base(1, LOW);
    guest.set_base(2, LOW);
    assert_eq!(guest.sectors(LOW), 2048);
    guest.set_base(1, LOW + 0x10_0000);
    assert_eq!(guest.sectors(LOW), 4096);
}

#[test]
fn a_saved_machine_with_disks_comes_back() {
    let machine = Machine::new(two_disks(), with_disks(&[2048, 4096])).unwrap();
    machine.resume().unwrap();
    Guest(&*machine.board).set_base(2, LOW);
    machine.pause().unwrap();
    let json = serde_json::to_vec(machine.spec()).unwrap();
    let bytes = machine.save(&json, Vec::new()).unwrap();
    machine.close_disks().unwrap();
    let restore = |sectors: &[u64]| {
        let file = SavedMachine::open(bytes.as_slice()).unwrap();
        let spec = serde_json::from_slice(file.spec_json()).unwrap();
        file.restore(spec, with_disks(sectors))
    };
    let again = restore(&[2048, 4096]).unwrap();
    assert_eq!(Guest(&*again.board).sectors(LOW), 4096);
    assert_eq!(again.save(&json, Vec::new()).unwrap(), bytes);
    assert!(matches!(restore(&[2048]), Err(MachineError::Spec(_))));
    let other = restore(&[2048, 2048]).err().unwrap();
    assert!(other.to_string().contains("size of the disk"), "{other}");
}

#[test]
fn network_cards_are_behind_the_disks_and_come_back_with_their_addresses() {
    let with_networks = |count: usize| {
        let user =
            || umbra_net::user::User::new(Default::default(), Box::new(umbra_net::user::Direct)).unwrap().0;
        let networks = (0..count).map(|_| Box::new(user()) as Box<dyn umbra_net::Backend>).collect();
        Parts { networks, ..with_disks(&[2048]) }
    };
    let mac = |last: u8| NetworkSpec { mac: format!("52:54:00:00:00:{last:02x}") };
    let (networks, disks) = (vec![mac(1), mac(2)], vec![DiskSpec::default()]);
    let spec = MachineSpec { disks, networks, rng: true, ..spec() };
    let machine = Machine::new(spec.clone(), with_networks(2)).unwrap();
    let guest = Guest(&*machine.board);
    let ids = [1, 2, 3, 4, 5].map(|slot| guest.read(Guest::register(slot, 0)) >> 16);
    assert_eq!(ids, [0x1042, 0x1041, 0x1041, 0x1044, 0xffff]);
    guest.set_base(3, LOW);
    assert_eq!(guest.read(LOW + 0x2000), u32::from_le_bytes([0x52, 0x54, 0, 0]));
    assert_eq!(guest.read(LOW + 0x2004) & 0xffff, 0x0200);
    machine.resume().unwrap();
    machine.pause().unwrap();
    let json = serde_json::to_vec(machine.spec()).unwrap();
    let bytes = machine.save(&json, Vec::new()).unwrap();
    let restore =
        |count| SavedMachine::open(bytes.as_slice()).unwrap().restore(spec.clone(), with_networks(count));
    assert_eq!(restore(2).unwrap().save(&json, Vec::new()).unwrap(), bytes);
    assert!(matches!(restore(1), Err(MachineError::Spec(_))));
}

/// Nobody listens for the guest.
struct Nobody;

impl VsockOutside for Nobody {
    fn connect(&mut self, _port: u32) -> std::io::Result<std::os::fd::OwnedFd> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }
}

#[test]
fn a_socket_device_is_behind_the_others_and_comes_back_with_its_context_id() {
    let with_host = |is_there: bool| {
        let vsock = is_there.then(|| VsockHost { listener: None, outside: Box::new(Nobody) });
        Parts { vsock, ..with_disks(&[2048]) }
    };
    let spec = MachineSpec {
        disks: vec![DiskSpec::default()],
        rng: true,
        vsock: Some(VsockSpec { cid: 77 }),
        ..spec()
    };
    let machine = Machine::new(spec.clone(), with_host(true)).unwrap();
    let guest = Guest(&*machine.board);
    let ids = [1, 2, 3, 4].map(|slot| guest.read(Guest::register(slot, 0)) >> 16);
    assert_eq!(ids, [0x1042, 0x1044, 0x1053, 0xffff]);
    guest.set_base(3, LOW);
    assert_eq!(guest.read(LOW + 0x2000), 77);
    machine.resume().unwrap();
    machine.pause().unwrap();
    let json = serde_json::to_vec(machine.spec()).unwrap();
    let bytes = machine.save(&json, Vec::new()).unwrap();
    let restore =
        |is_there| SavedMachine::open(bytes.as_slice()).unwrap().restore(spec.clone(), with_host(is_there));
    let again = restore(true).unwrap();
    assert_eq!(Guest(&*again.board).read(LOW + 0x2000), 77);
    assert!(matches!(restore(false), Err(MachineError::Spec(_))));
    let without = MachineSpec { vsock: None, ..spec.clone() };
    assert!(matches!(Machine::new(without, with_host(true)), Err(MachineError::Spec(_))));
}

#[test]
fn more_disks_than_slots_are_refused() {
    let mut spec = spec();
    spec.disks = vec![DiskSpec::default(); 24];
    let refused = Machine::new(spec, with_disks(&[8; 24])).err().unwrap();
    assert!(refused.to_string().contains("23 devices"), "{refused}");
}
