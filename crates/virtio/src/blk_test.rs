//! The disk by the fake driver.

use std::sync::Arc;

use umbra_block::{
    BackingSpec, Disk, Environment, FileSpec, FileStorageSpec, MemoryStorage, NodeSpec, Opener, Registry,
    Result as BlockResult, Storage,
};
use umbra_device::{Device, DeviceError};
use umbra_pci::PciDevice;

use crate::blk::{Blk, BlkSpec};
use crate::driver::{Driver, wait_until};
use crate::lock;

const ALL: u64 = u64::MAX >> 24 | 1 << 32;
const SECTORS: u64 = 2048;

/// One storage by any name.
#[derive(Debug)]
struct One(Arc<MemoryStorage>);

impl Opener for One {
    fn open(&self, _file: &FileSpec, _spec: &FileStorageSpec) -> BlockResult<Arc<dyn Storage>> {
        Ok(self.0.clone())
    }
    fn create(&self, _file: &FileSpec) -> BlockResult<Arc<dyn Storage>> {
        Ok(self.0.clone())
    }
}

fn disk() -> Arc<Disk> {
    let storage = Arc::new(MemoryStorage::default());
    storage.set_len(SECTORS * 512).unwrap();
    let mut environment = Environment::new(Registry::builtin());
    environment.opener = Arc::new(One(storage));
    let spec = NodeSpec { backing: BackingSpec::None, ..NodeSpec::new("disk", Some("raw")).writable() };
    Arc::new(Disk::open(&environment, &spec).unwrap())
}

fn spec() -> BlkSpec {
    BlkSpec {
        name: "vda".into(),
        read_only: false,
        serial: "a serial number that is too long".into(),
        queues: 2,
    }
}

fn blk(spec: BlkSpec, disk: &Arc<Disk>) -> Box<Blk> {
    Box::new(Blk::new(spec, disk.clone()).unwrap())
}

fn ready(features: u64) -> (Driver, Arc<Disk>) {
    let disk = disk();
    let mut driver = Driver::new(blk(spec(), &disk));
    driver.init(features);
    (driver, disk)
}

fn head(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// A request with data for the device; its status.
fn send(driver: &mut Driver, queue: usize, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let (len, status) = driver.request(queue, &[&head(kind, sector), data], &[1]);
    assert_eq!(len, 1);
    status[0]
}

fn read(driver: &mut Driver, sector: u64, len: u32) -> (u8, Vec<u8>) {
    let (_, mut data) = driver.request(0, &[&head(0, sector)], &[len, 1]);
    let status = data.pop().unwrap();
    (status, data)
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn what_is_written_is_read() {
    let (mut driver, disk) = ready(ALL);
    for queue in 0..2 {
        let data: Vec<u8> = (0..1536u32).map(|i| (i * 7 + queue as u32) as u8).collect();
        assert_eq!(send(&mut driver, queue, 1, 3, &data), 0);
        assert_eq!(read(&mut driver, 3, 1536), (0, data.clone()));
        let mut there = vec![0; 1536];
        disk.read(3 * 512, &mut there).unwrap();
        assert_eq!(there, data);
    }
    assert_eq!(send(&mut driver, 0, 4, 0, &[]), 0, "flush");
    let (len, data) = driver.request(0, &[&head(0, 0)], &[100, 412, 1]);
    assert_eq!((len, data.len()), (513, 513), "in pieces");
}

#[test]
fn its_configuration_says_what_it_is() {
    let (driver, _) = ready(ALL);
    assert_eq!(u64::from_le_bytes(driver.config(0)), SECTORS);
    assert_eq!(u32::from_le_bytes(driver.config(12)), 126);
    assert_eq!(u32::from_le_bytes(driver.config(20)), 512);
    assert_eq!(driver.config::<1>(24), [3], "4 KiB physically");
    assert_eq!(u16::from_le_bytes(driver.config(34)), 2);
    assert_eq!(driver.config::<1>(56), [1]);
    assert_eq!(driver.config::<8>(60), [0; 8]);
    let features = driver.offered();
    for bit in [1, 2, 6, 9, 10, 11, 12, 13, 14] {
        assert_ne!(features >> bit & 1, 0, "{bit}");
    }
    assert_eq!(features >> 5 & 1, 0);
}

#[test]
fn its_serial_number_is_told() {
    let (mut driver, _) = ready(ALL);
    let (len, data) = driver.request(0, &[&head(8, 0)], &[20, 1]);
    assert_eq!((len, data), (21, b"a serial number that\0".to_vec()));
    assert_eq!(driver.request(0, &[&head(8, 0)], &[5, 1]).1, b"a ser\0");
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let (mut driver, disk) = ready(ALL);
    disk.write(0, &[7; 8192]).unwrap();
    assert_eq!(send(&mut driver, 0, 13, 0, &[range(0, 2, 0), range(4, 1, 1)].concat()), 0);
    let (_, data) = read(&mut driver, 0, 3072);
    let zero = |sector: usize| data[sector * 512..][..512].iter().all(|b| *b == 0);
    assert_eq!([0, 1, 2, 3, 4, 5].map(zero), [true, true, false, false, true, false]);
    assert_eq!(send(&mut driver, 0, 11, 0, &range(8, 8, 0)), 0);
    // Wrong ones.
    assert_eq!(send(&mut driver, 0, 11, 0, &range(8, 8, 1)), 2, "discard takes no flags");
    assert_eq!(send(&mut driver, 0, 13, 0, &range(8, 8, 2)), 2);
    for (sector, sectors) in [(SECTORS, 1), (u64::MAX, 1), (0, u32::MAX), (SECTORS - 1, 2)] {
        assert_eq!(send(&mut driver, 0, 13, 0, &range(sector, sectors, 0)), 1);
    }
    assert_eq!(send(&mut driver, 0, 13, 0, &[0; 15]), 1, "half a range");
    assert_eq!(send(&mut driver, 0, 13, 0, &[0; 65 * 16]), 1, "too many");
}

#[test]
fn wrong_requests_fail_and_the_next_ones_do_not() {
    let (mut driver, disk) = ready(ALL);
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, u64::MAX - 1] {
        assert_eq!(send(&mut driver, 0, 1, sector, &[1; 1024]), 1, "{sector}");
        let (status, data) = read(&mut driver, sector, 1024);
        assert_eq!((status, data), (1, vec![0xa5; 1024]), "nothing is written to buffers of what failed");
    }
    assert_eq!(send(&mut driver, 0, 1, 0, &[1; 100]), 1, "no whole sectors");
    assert_eq!(read(&mut driver, 0, 100).0, 1);
    assert_eq!(send(&mut driver, 0, 77, 0, &[]), 2, "unknown");
    assert_eq!(driver.request(0, &[&head(0, 0)], &[1 << 20, 1]).1.pop(), Some(0), "all of it at once");
    let mut there = vec![0; 512];
    disk.read(0, &mut there).unwrap();
    assert_eq!(there, [0; 512]);
    assert_eq!(send(&mut driver, 0, 1, 0, &[1; 512]), 0);
}

#[test]
fn a_request_of_more_bytes_than_may_be_fails() {
    let (mut driver, _) = ready(ALL);
    // The same megabyte of memory, 32 times.
    let table = driver.rings[0].descriptors;
    let at = driver.buffer(1024);
    driver.poke(at, &head(0, 0));
    driver.descriptor(table, 0, at, 16, 1, 1);
    for i in 1..=32 {
        driver.descriptor(table, i, 0x30_0000, 1 << 20, 3, i + 1);
    }
    driver.descriptor(table, 33, at + 512, 1, 2, 0);
    driver.offer(0, 0);
    driver.kick(0);
    driver.wait(0);
    assert_eq!(driver.peek(at + 512, 1), [1]);
}

#[test]
fn requests_without_head_or_status_break_the_queue() {
    for (readable, writable) in [(&[0; 16][..], &[][..]), (&[0; 15][..], &[1][..]), (&[][..], &[513][..])] {
        let (mut driver, _) = ready(ALL);
        driver.give(0, &[readable], writable);
        driver.kick(0);
        driver.wait_for_broken();
        driver.init(ALL);
        assert_eq!(send(&mut driver, 0, 4, 0, &[]), 0, "a reset heals it");
    }
}

#[test]
fn a_status_in_what_the_device_reads_is_not_written() {
    let (mut driver, _) = ready(ALL);
    let table = driver.rings[0].descriptors;
    let at = driver.buffer(64);
    driver.poke(at, &[head(4, 0), vec![0x77]].concat());
    driver.descriptor(table, 0, at, 16, 1, 1);
    driver.descriptor(table, 1, at + 16, 1, 0, 0);
    driver.offer(0, 0);
    driver.kick(0);
    driver.wait_for_broken();
    assert_eq!(driver.peek(at + 16, 1), [0x77]);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let disk = disk();
    let mut driver = Driver::new(blk(BlkSpec { read_only: true, ..spec() }, &disk));
    driver.init(ALL);
    assert_ne!(driver.offered() >> 5 & 1, 0);
    assert_eq!(driver.offered() >> 13 & 3, 0, "neither discard nor write zeroes");
    assert_eq!(send(&mut driver, 0, 1, 0, &[1; 512]), 1);
    assert_eq!(send(&mut driver, 0, 11, 0, &range(0, 1, 0)), 1);
    assert_eq!(send(&mut driver, 0, 13, 0, &range(0, 1, 0)), 1);
    assert_eq!(read(&mut driver, 0, 512), (0, vec![0; 512]));
}

#[test]
fn the_cache_is_the_drivers_to_choose() {
    let (driver, _) = ready(ALL);
    assert_eq!(driver.config::<1>(32), [1]);
    driver.set_config(32, &[0]);
    assert_eq!(driver.config::<1>(32), [0]);
    driver.set_config(32, &[7]);
    assert_eq!(driver.config::<1>(32), [0]);
    driver.set_config(0, &[7]);
    assert_eq!(u64::from_le_bytes(driver.config(0)), SECTORS);
    driver.reset();
    assert_eq!(driver.config::<1>(32), [1]);
}

#[test]
fn many_at_once_come_back_each_once() {
    let (mut driver, disk) = ready(ALL);
    for round in 0..50u64 {
        let mut given = Vec::new();
        for i in 0..30u64 {
            let bytes = [(round * 30 + i) as u8; 512];
            given.push(
                driver.give((i % 2) as usize, &[&head(1, i), &bytes], &[1]).head as usize * 2
                    + (i % 2) as usize,
            );
        }
        driver.kick(0);
        driver.kick(1);
        for i in 0..30 {
            let queue = i % 2;
            let (head, _) = driver.wait(queue);
            let at = given.iter().position(|g| *g == head as usize * 2 + queue).expect("it was given");
            given.remove(at);
        }
    }
    let mut there = [0; 512];
    disk.read(29 * 512, &mut there).unwrap();
    assert_eq!(there, [(49u32 * 30 + 29) as u8; 512]);
}

#[test]
fn resets_in_flight_lose_nothing_that_came_back() {
    let (mut driver, disk) = ready(ALL);
    for round in 0..100u8 {
        for sector in 0..8 {
            driver.give(0, &[&head(1, sector), &[round; 512]], &[1]);
        }
        driver.kick(0);
        driver.init(ALL);
        assert_eq!(send(&mut driver, 1, 1, 9, &[round; 512]), 0);
        let mut there = [0; 512];
        disk.read(9 * 512, &mut there).unwrap();
        assert_eq!(there, [round; 512]);
    }
}

#[test]
fn it_goes_on_elsewhere_with_what_it_was_given() {
    let (mut driver, disk) = ready(ALL);
    driver.set_config(32, &[0]);
    for i in 0..40u8 {
        assert_eq!(send(&mut driver, 0, 1, i.into(), &[i; 512]), 0);
    }
    driver.give(0, &[&head(1, 50), &[0x50; 512]], &[1]);
    let mut driver = driver.moved_to(blk(spec(), &disk));
    driver.wait(0);
    assert_eq!(read(&mut driver, 50, 512), (0, vec![0x50; 512]));
    assert_eq!(driver.config::<1>(32), [0]);
}

#[test]
fn another_disk_is_refused() {
    let (driver, _) = ready(ALL);
    lock(&driver.function).pause();
    let record = lock(&driver.function).save().unwrap();
    let read_only = Driver::new(blk(BlkSpec { read_only: true, ..spec() }, &disk()));
    assert!(lock(&read_only.function).load(&record).is_err(), "it lacks features that the guest uses");
    let smaller = disk();
    smaller.resize(512, umbra_block::Preallocation::Off, true, &umbra_block::Task::quiet()).unwrap();
    let smaller = Driver::new(blk(spec(), &smaller));
    let refused = lock(&smaller.function).load(&record).unwrap_err();
    assert!(matches!(refused, DeviceError::Impossible { .. }), "{refused}");
}

#[test]
fn its_threads_end_with_it() {
    let named = || {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let name = |t: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(t.unwrap().path().join("comm")).unwrap_or_default()
        };
        tasks.map(name).filter(|name| name.trim() == "io-vdz").count()
    };
    let driver = Driver::new(blk(BlkSpec { name: "vdz".into(), ..spec() }, &disk()));
    wait_until("the threads", || named() == 8);
    let mut header = [0; 4];
    lock(&driver.function).config_read(8, &mut header);
    assert_eq!(header, [1, 0, 0x80, 1]);
    drop(driver);
    assert_eq!(named(), 0);
}
