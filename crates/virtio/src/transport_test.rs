//! The transport and the queues, by the fake driver and a device whose chains the test completes by hand.

use std::sync::{Arc, Mutex};

use umbra_device::{Device, DeviceError};
use umbra_pci::PciDevice;
use umbra_state::{Record, Saved};

use crate::driver::{Driver, INDIRECT, MEMORY_LEN, NEEDS_RESET, NEXT, WRITE};
use crate::{Chain, Feature, Kind, Running, VirtioDevice, VirtioPciV1, lock};

umbra_state::saved! {
    struct HoldV1: "hold", 1 { 1 value: u8 }
}

#[derive(Default)]
struct Held {
    chains: Vec<Chain>,
    running: Option<Running>,
    resets: u32,
}

/// A device with a byte of configuration and two queues, which keeps the chains that it gets.
#[derive(Clone, Default)]
struct Hold {
    held: Arc<Mutex<Held>>,
    value: u8,
}

/// A feature of its own.
const OWN: u64 = 1 << 3;

impl VirtioDevice for Hold {
    fn kind(&self) -> Kind {
        Kind { device_type: 42, class: [0xff, 0, 0], features: OWN, queue_sizes: vec![8, 4] }
    }
    fn config_read(&self, offset: u64, data: &mut [u8]) {
        if let (0, Some(byte)) = (offset, data.first_mut()) {
            *byte = self.value;
        }
    }
    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if let (0, [value]) = (offset, data) {
            self.value = *value;
        }
    }
    fn start(&mut self, running: Running) {
        lock(&self.held).running = Some(running);
    }
    fn notify(&mut self, queue: u16) {
        let mut held = lock(&self.held);
        let Some(queue) = held.running.as_ref().and_then(|r| r.queues.get(usize::from(queue)).cloned())
        else {
            return;
        };
        while let Some(chain) = queue.pop() {
            held.chains.push(chain);
        }
    }
    fn reset(&mut self) {
        lock(&self.held).resets += 1;
        self.value = 0;
    }
    fn save(&self) -> Result<Record, DeviceError> {
        Ok(HoldV1 { value: self.value }.to_record("hold"))
    }
    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let HoldV1 { value } = HoldV1::from_record(record).map_err(DeviceError::state("hold"))?;
        self.value = value;
        Ok(())
    }
}

fn driver() -> (Driver, Arc<Mutex<Held>>) {
    let device = Hold::default();
    let held = device.held.clone();
    (Driver::new(Box::new(device)), held)
}

/// A driver that is ready, with these features of the queues.
fn ready(features: Feature) -> (Driver, Arc<Mutex<Held>>) {
    let (mut driver, held) = driver();
    driver.init(features.bits() | Feature::VERSION_1.bits());
    (driver, held)
}

fn held(held: &Mutex<Held>) -> Vec<Chain> {
    std::mem::take(&mut lock(held).chains)
}

#[test]
fn a_driver_finds_and_starts_it() {
    let (mut driver, state) = driver();
    let mut id = [0; 4];
    lock(&driver.function).config_read(0, &mut id);
    assert_eq!(u32::from_le_bytes(id), 0x106a_1af4);
    assert_eq!(driver.offered(), OWN | 1 << 28 | 1 << 29 | 1 << 32);
    assert_eq!(u16::from_le_bytes(driver.common(0x12)), 2);
    assert_eq!(driver.init(OWN | 1 << 32 | 1 << 40), OWN | 1 << 32);
    let running = lock(&state).running.take().unwrap();
    assert!(running.has(3) && !running.has(28));
    assert_eq!(running.queues.len(), 2);
    assert_eq!(driver.status(), 15);
    // Nothing but a reset takes a step back.
    driver.set_status(1);
    assert_eq!(driver.status(), 15);
    driver.set_config(0, &[7]);
    assert_eq!(driver.config::<1>(0), [7]);
    driver.reset();
    assert_eq!((driver.status(), driver.config::<1>(0)), (0, [0]));
}

#[test]
fn features_that_cannot_be_are_not_taken() {
    let (driver, state) = driver();
    for (features, taken) in [(0u64, false), (1 << 32, true), (1 << 32 | 1 << 5, false), (OWN, false)] {
        driver.reset();
        driver.set_status(3);
        for select in 0..2u32 {
            driver.set_common(8, &select.to_le_bytes());
            driver.set_common(12, &((features >> (32 * select)) as u32).to_le_bytes());
        }
        driver.set_status(11);
        assert_eq!(driver.status() & 8 != 0, taken, "{features:x}");
        driver.set_status(15);
        assert_eq!(driver.status() & 4 != 0, taken);
        assert_eq!(lock(&state).running.take().is_some(), taken);
    }
}

#[test]
fn chains_go_both_ways() {
    for features in [Feature::empty(), Feature::EVENT_INDEX] {
        let (mut driver, state) = ready(features);
        // More than the rings hold, so that indices wrap.
        for round in 0..100u8 {
            driver.give(0, &[&[round; 20], &[1, 2, 3]], &[2, 5]);
            driver.kick(0);
            let chain = held(&state).pop().unwrap();
            assert_eq!((chain.readable_len(), chain.writable_len()), (23, 7));
            let mut data = [0; 30];
            assert_eq!(chain.read(19, &mut data), 4);
            assert_eq!(data[..4], [round, 1, 2, 3]);
            assert_eq!(chain.write(1, &[10, 11, 12, 13, 14, 15, 16, 17]), 6);
            chain.complete(7);
            assert_eq!(driver.take(0).unwrap().1, 7);
        }
        let given = driver.give(1, &[], &[2, 5]);
        driver.kick(1);
        let chain = held(&state).pop().unwrap();
        assert_eq!(chain.io_bufs(1, 3).iter().map(|b| b.len()).collect::<Vec<_>>(), [1, 2]);
        chain.io_bufs(1, 3).iter().for_each(|buf| buf.copy_from(&[9; 4]));
        chain.wrote(1, 3);
        chain.complete(4);
        let (head, _) = driver.take(1).unwrap();
        assert_eq!(head, given.head);
        assert_eq!(driver.peek(given.writable[0].0, 2), [0xa5, 9]);
        assert_eq!(driver.peek(given.writable[1].0, 3), [9, 9, 0xa5]);
        assert!(held(&state).is_empty());
    }
}

#[test]
fn writes_of_a_device_mark_pages() {
    let (mut driver, state) = ready(Feature::empty());
    let memory = driver.memory.clone();
    let (_, tracker) = memory.region(0).unwrap();
    tracker.set_tracking(true);
    let given = driver.give(0, &[], &[64]);
    tracker.take_dirty();
    driver.kick(0);
    let chain = held(&state).pop().unwrap();
    chain.io_bufs(0, 64).iter().for_each(|buf| buf.zero());
    chain.wrote(0, 64);
    chain.complete(64);
    let dirty = tracker.take_dirty();
    let is_dirty = |gpa: u64| dirty[(gpa / 4096 / 64) as usize] >> (gpa / 4096 % 64) & 1 != 0;
    assert!(is_dirty(given.writable[0].0), "the buffer");
    assert!(is_dirty(driver.rings[0].used), "the used ring");
}

#[test]
fn the_pin_and_the_isr_tell_of_used_buffers() {
    let (mut driver, state) = ready(Feature::empty());
    driver.give(0, &[], &[8]);
    driver.kick(0);
    assert!(!driver.level());
    held(&state).pop().unwrap().complete(0);
    assert!(driver.level());
    assert_eq!((driver.isr(), driver.level(), driver.isr()), (1, false, 0));
    lock(&state).running.as_ref().unwrap().interrupts.config_changed();
    assert_eq!((driver.level(), driver.isr()), (true, 2));
    assert_eq!(driver.common::<1>(0x15), [1], "the generation moves");
}

#[test]
fn messages_tell_of_used_buffers_and_changes() {
    let (mut driver, state) = ready(Feature::empty());
    driver.use_messages();
    driver.give(0, &[], &[8]);
    driver.give(1, &[], &[8]);
    driver.kick(1);
    driver.kick(0);
    held(&state).into_iter().for_each(|chain| chain.complete(0));
    assert_eq!(driver.messages(), [2, 1]);
    lock(&state).running.as_ref().unwrap().interrupts.config_changed();
    assert_eq!((driver.messages(), driver.level(), driver.isr()), (vec![0], false, 0));
    // A vector that there is none of reads back as none.
    driver.set_common(0x10, &3u16.to_le_bytes());
    assert_eq!(driver.common::<2>(0x10), [0xff; 2]);
    // The driver may want no interrupt.
    let available = driver.rings[0].available;
    driver.poke(available, &1u16.to_le_bytes());
    driver.give(0, &[], &[8]);
    driver.kick(0);
    held(&state).pop().unwrap().complete(0);
    assert_eq!(driver.messages(), [0; 0]);
}

#[test]
fn event_indices_keep_both_sides_quiet() {
    let (mut driver, state) = ready(Feature::EVENT_INDEX);
    driver.use_messages();
    let ring = driver.rings[0];
    let event = ring.available + 4 + 2 * u64::from(ring.size);
    let wanted = ring.used + 4 + 8 * u64::from(ring.size);
    driver.poke(event, &2u16.to_le_bytes());
    for _ in 0..4 {
        driver.give(0, &[], &[8]);
        driver.kick(0);
        held(&state).pop().unwrap().complete(0);
    }
    assert_eq!(driver.messages(), [1, 1], "the first of all, and the one that goes past the event");
    assert_eq!(driver.peek(wanted, 2), [4, 0], "the device wants to be told of the next one");
}

#[test]
fn a_table_of_descriptors_is_a_chain() {
    let (mut driver, state) = ready(Feature::INDIRECT_DESCRIPTORS);
    let (table, data) = (driver.buffer(64), driver.buffer(64));
    driver.poke(data, &[5; 16]);
    driver.descriptor(table, 0, data, 16, NEXT, 2);
    driver.descriptor(table, 2, data + 16, 8, WRITE, 0);
    let descriptors = driver.rings[0].descriptors;
    driver.descriptor(descriptors, 0, data, 4, NEXT, 3);
    driver.descriptor(descriptors, 3, table, 48, INDIRECT, 0);
    driver.offer(0, 0);
    driver.kick(0);
    let chain = held(&state).pop().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (20, 8));
}

/// A driver that does one thing wrong; the device gives up, takes nothing more, and is well after a reset.
fn breaks(name: &str, features: Feature, wrong: impl FnOnce(&mut Driver)) {
    let (mut driver, state) = ready(features);
    wrong(&mut driver);
    driver.kick(0);
    assert!(held(&state).is_empty(), "{name}");
    assert_ne!(driver.status() & NEEDS_RESET, 0, "{name}");
    assert_eq!(driver.isr() & 2, 2, "{name}: the driver is told");
    driver.give(0, &[], &[8]);
    driver.kick(0);
    assert!(held(&state).is_empty(), "{name}: a broken queue gives nothing");
    driver.init(features.bits() | Feature::VERSION_1.bits());
    assert_eq!(driver.status(), 15, "{name}");
    driver.give(0, &[], &[8]);
    driver.kick(0);
    assert_eq!(held(&state).len(), 1, "{name}: a reset heals it");
}

const MMIO: u64 = 0xfec0_0000;

#[test]
fn malicious_descriptors_break_the_queue_and_nothing_else() {
    let one = |address: u64, len: u32, flags: u16, next: u16| {
        move |driver: &mut Driver| {
            let table = driver.rings[0].descriptors;
            driver.descriptor(table, 0, address, len, flags, next);
            driver.offer(0, 0);
        }
    };
    let none = Feature::empty();
    breaks("a loop of one", none, one(0x1000, 8, NEXT, 0));
    breaks("the next one beyond the table", none, one(0x1000, 8, NEXT, 8));
    breaks("a buffer beyond memory", none, one(MEMORY_LEN - 4, 8, 0, 0));
    breaks("a buffer that is longer than memory", none, one(0, u32::MAX, WRITE, 0));
    breaks("a buffer at the end of all addresses", none, one(u64::MAX, u32::MAX, WRITE, 0));
    breaks("a buffer in MMIO", none, one(MMIO, 8, WRITE, 0));
    breaks("a table that was not negotiated", none, one(0x1000, 16, INDIRECT, 0));
    let indirect = Feature::INDIRECT_DESCRIPTORS;
    breaks("an empty table", indirect, one(0x1000, 0, INDIRECT, 0));
    breaks("half a descriptor", indirect, one(0x1000, 24, INDIRECT, 0));
    breaks("a table longer than the queue", indirect, one(0x1000, 9 * 16, INDIRECT, 0));
    breaks("a table that goes on", indirect, one(0x1000, 16, INDIRECT | NEXT, 1));
    breaks("a table in MMIO", indirect, one(MMIO, 16, INDIRECT, 0));
    breaks("a table of a table", indirect, |driver| {
        driver.descriptor(0x1000, 0, 0x1000, 16, INDIRECT, 0);
        let table = driver.rings[0].descriptors;
        driver.descriptor(table, 0, 0x1000, 16, INDIRECT, 0);
        driver.offer(0, 0);
    });
    breaks("a loop of two", none, |driver| {
        let table = driver.rings[0].descriptors;
        driver.descriptor(table, 0, 0x1000, 8, NEXT, 1);
        driver.descriptor(table, 1, 0x1000, 8, NEXT, 0);
        driver.offer(0, 0);
    });
    breaks("what is read behind what is written", none, |driver| {
        let table = driver.rings[0].descriptors;
        driver.descriptor(table, 0, 0x1000, 8, WRITE | NEXT, 1);
        driver.descriptor(table, 1, 0x1000, 8, 0, 0);
        driver.offer(0, 0);
    });
}

#[test]
fn malicious_rings_break_the_queue_and_nothing_else() {
    let none = Feature::empty();
    breaks("a head beyond the table", none, |driver| driver.offer(0, 8));
    breaks("more entries than the ring has", none, |driver| {
        let available = driver.rings[0].available;
        driver.poke(available + 2, &9u16.to_le_bytes());
    });
    for (name, register, address) in [
        ("available ring in MMIO", 0x28, MMIO),
        ("available ring beyond memory", 0x28, MEMORY_LEN - 2),
        ("available ring at the end of all addresses", 0x28, u64::MAX - 1),
        ("descriptors in MMIO", 0x20, MMIO),
        ("descriptors at the end of all addresses", 0x20, u64::MAX - 15),
        ("descriptors askew", 0x20, 0x1_0008),
        ("available ring askew", 0x28, 0x1_4001),
        ("used ring askew", 0x30, 0x1_8002),
    ] {
        breaks(name, none, |driver| set_ring(driver, register, address));
    }
}

/// Sets a queue up anew with a part elsewhere, and offers a chain.
fn set_ring(driver: &mut Driver, register: u64, address: u64) {
    driver.reset();
    driver.set_status(3);
    driver.set_common(8, &1u32.to_le_bytes());
    driver.set_common(12, &1u32.to_le_bytes());
    driver.set_status(11);
    let ring = driver.rings[0];
    driver.set_common(0x16, &0u16.to_le_bytes());
    for (at, usual) in [(0x20, ring.descriptors), (0x28, ring.available), (0x30, ring.used)] {
        let place = if at == register { address } else { usual };
        driver.set_common(at, &place.to_le_bytes());
    }
    driver.set_common(0x1c, &1u16.to_le_bytes());
    driver.set_status(15);
    driver.give(0, &[], &[8]);
}

#[test]
fn a_used_ring_in_mmio_breaks_the_queue_when_it_is_written() {
    let (mut driver, state) = ready(Feature::empty());
    set_ring(&mut driver, 0x30, MMIO);
    driver.kick(0);
    let chain = held(&state).pop().unwrap();
    assert_eq!(driver.status() & NEEDS_RESET, 0);
    chain.complete(0);
    driver.wait_for_broken();
}

#[test]
fn a_reset_waits_for_what_is_in_flight_and_blocks_nobody() {
    let (mut driver, state) = ready(Feature::empty());
    driver.use_messages();
    let given = driver.give(0, &[], &[8]);
    driver.give(0, &[], &[8]);
    driver.kick(0);
    let mut chains = held(&state);
    let resets = lock(&state).resets;
    driver.set_status(0);
    assert_ne!(driver.status(), 0, "two are in flight");
    assert_eq!(lock(&state).resets, resets);
    driver.set_status(1);
    driver.set_common(0x16, &1u16.to_le_bytes());
    driver.kick(0);
    driver.give(0, &[], &[8]);
    driver.kick(0);
    assert!(held(&state).is_empty());
    chains.pop().unwrap().complete(8);
    assert_ne!(driver.status(), 0, "one is in flight");
    // What was under way may still be written, and is not told of.
    let chain = chains.pop().unwrap();
    assert_eq!(chain.write(0, &[1; 8]), 8);
    chain.complete(8);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.peek(given.writable[0].0, 8), [1; 8]);
    assert_eq!((driver.take(0), driver.messages()), (None, vec![]));
    assert_eq!(lock(&state).resets, resets + 1);
}

#[test]
fn a_chain_that_is_dropped_holds_up_nothing() {
    let (mut driver, state) = ready(Feature::empty());
    driver.give(0, &[], &[8]);
    driver.kick(0);
    drop(held(&state));
    driver.reset();
    assert_eq!(driver.take(0), None);
}

#[test]
fn nothing_is_taken_while_the_machine_stands() {
    let (mut driver, state) = ready(Feature::empty());
    lock(&driver.function).pause();
    driver.give(0, &[], &[8]);
    driver.kick(0);
    assert!(held(&state).is_empty());
    lock(&driver.function).resume();
    assert_eq!(held(&state).len(), 1, "what came meanwhile is taken first");
}

#[test]
fn pausing_waits_for_what_is_in_flight() {
    let (mut driver, state) = ready(Feature::empty());
    driver.give(0, &[], &[8]);
    driver.kick(0);
    let chain = held(&state).pop().unwrap();
    let refused = lock(&driver.function).save();
    assert!(matches!(refused, Err(DeviceError::NotSaveable { .. })), "{refused:?}");
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        chain.complete(3);
    });
    lock(&driver.function).pause();
    assert_eq!(driver.take(0).unwrap().1, 3);
    thread.join().unwrap();
}

#[test]
fn a_device_goes_on_elsewhere() {
    for features in [Feature::empty(), Feature::EVENT_INDEX] {
        let (mut driver, state) = ready(features);
        driver.use_messages();
        driver.set_config(0, &[9]);
        for _ in 0..11 {
            driver.give(0, &[], &[8]);
            driver.kick(0);
            held(&state).pop().unwrap().complete(0);
            driver.take(0).unwrap();
        }
        driver.messages();
        driver.give(0, &[], &[8]);
        let other = Hold::default();
        let state = other.held.clone();
        let mut driver = driver.moved_to(Box::new(other));
        assert_eq!((driver.status(), driver.config::<1>(0)), (15, [9]));
        let chain = held(&state).pop().expect("the chain that nobody had told of");
        driver.poke(driver.rings[0].available + 4 + 16, &11u16.to_le_bytes());
        chain.complete(5);
        assert_eq!(driver.take(0).unwrap().1, 5);
        assert_eq!(driver.messages(), [1]);
    }
}

#[test]
fn impossible_states_are_refused() {
    let (driver, _) = ready(Feature::empty());
    lock(&driver.function).pause();
    let record = lock(&driver.function).save().unwrap();
    let good = VirtioPciV1::from_record(&record).unwrap();
    let refused = |change: &dyn Fn(&mut VirtioPciV1)| {
        let mut state = good.clone();
        change(&mut state);
        let (other, _) = ready(Feature::EVENT_INDEX);
        lock(&other.function).pause();
        let before = lock(&other.function).save().unwrap();
        let result = lock(&other.function).load(&state.to_record("dut"));
        assert_eq!(lock(&other.function).save().unwrap(), before, "a refusal changes nothing");
        assert!(
            matches!(result, Err(DeviceError::Impossible { .. } | DeviceError::State { .. })),
            "{result:?}"
        );
    };
    refused(&|s| s.status = 0x10);
    refused(&|s| s.status = 4);
    refused(&|s| s.driver_features |= 1 << 50);
    refused(&|s| s.config_vector = 3);
    refused(&|s| s.queues.truncate(1));
    refused(&|s| s.config[0] ^= 1);
    refused(&|s| s.msix.bytes.truncate(5));
    refused(&|s| s.device.version = 9);
    let queue = |change: fn(&mut crate::QueueV1)| {
        refused(&|s| {
            let mut queue = crate::QueueV1::from_record(&s.queues[0]).unwrap();
            change(&mut queue);
            s.queues[0] = queue.to_record("queue");
        });
    };
    queue(|q| q.size = 16);
    queue(|q| q.size = 0);
    queue(|q| q.size = 5);
    queue(|q| q.vector = 3);
    queue(|q| q.used += 2);
}

#[test]
fn the_window_in_configuration_space_reaches_registers() {
    let (driver, _) = ready(Feature::empty());
    let write = |at: u16, bytes: &[u8]| lock(&driver.function).config_write(at, bytes);
    let read = || {
        let mut bytes = [0; 4];
        lock(&driver.function).config_read(0x50, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    write(0x4c, &1u32.to_le_bytes());
    write(0x48, &0x14u32.to_le_bytes());
    assert_eq!(read(), 15, "device status");
    write(0x48, &0x2000u32.to_le_bytes());
    write(0x50, &[0x77]);
    assert_eq!((read(), driver.config::<1>(0)), (0x77, [0x77]));
    for (bar, offset, len) in [(1, 0x14, 1u32), (0, 0x14, 3), (0, 0x15, 2), (0, 0x8000, 4), (0, u32::MAX, 1)]
    {
        write(0x44, &[bar]);
        write(0x48, &offset.to_le_bytes());
        write(0x4c, &len.to_le_bytes());
        write(0x50, &[0; 4]);
        read();
        assert_eq!(driver.status(), 15, "{bar} {offset:x} {len}");
    }
}

#[test]
fn any_access_anywhere_is_harmless() {
    let (driver, _) = ready(Feature::empty());
    for offset in (0..0x8000).step_by(3).chain(0..0x80) {
        for len in [1, 2, 4, 8, 64] {
            let mut data = vec![0x5a; len];
            if offset + (len as u64) <= 0x8000 {
                lock(&driver.function).bar_read(0, offset, &mut data);
                lock(&driver.function).bar_write(0, offset, &data);
            }
        }
    }
}

#[test]
fn a_power_on_reset_forgets_everything() {
    let (driver, _) = ready(Feature::empty());
    driver.use_messages();
    lock(&driver.function).pause();
    let (fresh, _) = self::driver();
    lock(&driver.function).reset();
    lock(&fresh.function).pause();
    assert_eq!(lock(&driver.function).save().unwrap(), lock(&fresh.function).save().unwrap());
}
