//! A guest's driver, as a test double: it finds a device by its capabilities, negotiates, fills rings in guest memory and
//! reads what comes back. For tests and fuzz targets; a malicious one writes the rings by hand.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use umbra_device::{Device, IrqLine, IrqSink, Msi, MsiSink};
use umbra_memory::{Backing, Memory, Region, RegionKind};
use umbra_pci::PciDevice;

use crate::{VirtioDevice, VirtioPci, lock};

/// Bytes of guest memory, from address 0. Behind it is nothing.
pub const MEMORY_LEN: u64 = 4 << 20;
/// Where the parts of queue 0 are; each queue's are this much further than those of the one before.
const RINGS: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Buffers begin here.
const HEAP: u64 = 0x20_0000;
/// Nothing that is waited for takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// Descriptor flags.
pub const NEXT: u16 = 1;
/// The device writes the buffer.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Device status.
pub const DRIVER_OK: u8 = 4;
/// The device has given up.
pub const NEEDS_RESET: u8 = 64;

/// What the device sent.
#[derive(Default)]
pub struct Sent {
    /// Message data of each message.
    messages: Mutex<Vec<u32>>,
    /// Level of the interrupt pin.
    level: Mutex<bool>,
}

impl MsiSink for Sent {
    fn send(&self, msi: Msi) {
        lock(&self.messages).push(msi.data);
    }
}

impl IrqSink for Sent {
    fn set_level(&self, _pin: u32, high: bool) {
        *lock(&self.level) = high;
    }
}

/// A chain that was given to the device.
#[derive(Debug, Clone)]
pub struct Given {
    /// The first descriptor.
    pub head: u16,
    /// Buffers that the device writes: address and length.
    pub writable: Vec<(u64, u32)>,
}

/// A queue, from the driver's side.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
    /// The next free descriptor.
    free: u16,
    /// The next entry of the available ring.
    filled: u16,
    /// The next entry of the used ring to look at.
    seen: u16,
}

/// The driver, its device and its memory.
pub struct Driver {
    /// The device.
    pub function: Arc<Mutex<VirtioPci>>,
    /// Guest memory.
    pub memory: Arc<Memory>,
    /// Its queues.
    pub rings: Vec<Ring>,
    sent: Arc<Sent>,
    heap: u64,
    /// Offsets of common, ISR, device and notification parts, by capability type.
    parts: [u64; 6],
}

impl Driver {
    /// Puts a device into a machine of nothing but memory; it runs, and the driver has found its parts.
    ///
    /// # Panics
    /// The device cannot be a function.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let region = Region::map(0, MEMORY_LEN, RegionKind::Ram, Backing::Anonymous).expect("memory");
        let memory = Arc::new(Memory::new(vec![region]).expect("memory"));
        let sent = Arc::new(Sent::default());
        let line = IrqLine::new(sent.clone(), 0);
        let function = VirtioPci::new("dut", device, &memory, line, sent.clone()).expect("a function");
        let function = Arc::new(Mutex::new(function));
        lock(&function).resume();
        let parts = [0; 6];
        let mut driver = Self { function, memory, rings: Vec::new(), sent, heap: HEAP, parts };
        driver.find_parts();
        driver
    }

    /// The same driver with another device, which takes the state of the first one.
    ///
    /// # Panics
    /// The state is not taken.
    #[must_use]
    pub fn moved_to(self, device: Box<dyn VirtioDevice>) -> Self {
        lock(&self.function).pause();
        let record = lock(&self.function).save().expect("it is saved");
        let line = IrqLine::new(self.sent.clone(), 0);
        let function = VirtioPci::new("dut", device, &self.memory, line, self.sent.clone());
        let function = Arc::new(Mutex::new(function.expect("a function")));
        lock(&function).load(&record).expect("it is restored");
        assert_eq!(lock(&function).save().expect("it is saved"), record, "nothing is lost on the way");
        lock(&function).resume();
        Self { function, ..self }
    }

    /// Walks the list of capabilities.
    fn find_parts(&mut self) {
        let word = |at: u16| {
            let mut bytes = [0; 4];
            lock(&self.function).config_read(at, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let mut parts = [0; 6];
        let mut at = (word(0x34) & 0xff) as u16;
        while at != 0 {
            let head = word(at);
            let kind = (head >> 24) as usize;
            if head & 0xff == 9 && kind < parts.len() {
                parts[kind] = word(at + 8).into();
            }
            at = (head >> 8 & 0xff) as u16;
        }
        self.parts = parts;
    }

    /// Reads registers at `offset` of the base address register.
    pub fn bar_read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        lock(&self.function).bar_read(0, offset, &mut bytes);
        bytes
    }

    /// Writes registers at `offset` of the base address register.
    pub fn bar_write(&self, offset: u64, bytes: &[u8]) {
        lock(&self.function).bar_write(0, offset, bytes);
    }

    /// Reads common configuration.
    pub fn common<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.bar_read(self.parts[1] + offset)
    }

    /// Writes common configuration.
    pub fn set_common(&self, offset: u64, bytes: &[u8]) {
        self.bar_write(self.parts[1] + offset, bytes);
    }

    /// Reads the device's own configuration.
    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.bar_read(self.parts[4] + offset)
    }

    /// Writes the device's own configuration.
    pub fn set_config(&self, offset: u64, bytes: &[u8]) {
        self.bar_write(self.parts[4] + offset, bytes);
    }

    /// Reads ISR status, which clears it.
    pub fn isr(&self) -> u8 {
        self.bar_read::<1>(self.parts[3])[0]
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        self.common::<1>(0x14)[0]
    }

    /// Writes device status.
    pub fn set_status(&self, status: u8) {
        self.set_common(0x14, &[status]);
    }

    /// The features that are offered.
    pub fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.set_common(0, &select.to_le_bytes());
            u64::from(u32::from_le_bytes(self.common(4)))
        };
        half(0) | half(1) << 32
    }

    /// Resets, negotiates what of `features` is offered, sets all queues up and is ready. The features that both have.
    ///
    /// # Panics
    /// The device does not take the features.
    pub fn init(&mut self, features: u64) -> u64 {
        self.reset();
        self.set_status(1);
        self.set_status(3);
        let features = self.offered() & features;
        for select in 0..2u32 {
            self.set_common(8, &select.to_le_bytes());
            self.set_common(12, &((features >> (32 * select)) as u32).to_le_bytes());
        }
        self.set_status(11);
        assert_eq!(self.status(), 11, "the features are taken");
        self.set_up_queues();
        self.set_status(15);
        features
    }

    /// Asks for a reset and waits until it is through.
    pub fn reset(&self) {
        self.set_status(0);
        wait_until("the reset", || self.status() == 0);
    }

    fn set_up_queues(&mut self) {
        let count = u16::from_le_bytes(self.common(0x12));
        self.rings.clear();
        for queue in 0..count {
            self.set_common(0x16, &queue.to_le_bytes());
            let size = u16::from_le_bytes(self.common(0x18));
            let base = RINGS * (u64::from(queue) + 1);
            let (descriptors, available, used) = (base, base + AVAILABLE, base + USED);
            let ring = Ring { size, descriptors, available, used, free: 0, filled: 0, seen: 0 };
            self.poke(available, &[0; 4]);
            self.poke(used, &[0; 4]);
            for (at, address) in [(0x20, descriptors), (0x28, available), (0x30, used)] {
                self.set_common(at, &address.to_le_bytes());
            }
            self.set_common(0x1c, &1u16.to_le_bytes());
            self.rings.push(ring);
        }
    }

    /// Turns MSI-X on: vector 0 for changes of configuration, one for each queue from 1 on. The vector is the data of
    /// its message.
    pub fn use_messages(&self) {
        // The capability is the one with ID 0x11.
        let mut at = 0x40;
        let mut head = [0; 4];
        while at != 0 && head[0] != 0x11 {
            lock(&self.function).config_read(at, &mut head);
            if head[0] != 0x11 {
                at = head[1].into();
            }
        }
        for vector in 0..=self.rings.len() as u32 {
            let entry = [0xfee0_0000, 0, vector, 0].map(u32::to_le_bytes).concat();
            self.bar_write(0x4000 + 16 * u64::from(vector), &entry);
        }
        lock(&self.function).config_write(at + 2, &0x8000u16.to_le_bytes());
        self.set_common(0x10, &0u16.to_le_bytes());
        for queue in 0..self.rings.len() as u16 {
            self.set_common(0x16, &queue.to_le_bytes());
            self.set_common(0x1a, &(queue + 1).to_le_bytes());
        }
    }

    /// Messages since it was asked last.
    pub fn messages(&self) -> Vec<u32> {
        std::mem::take(&mut lock(&self.sent.messages))
    }

    /// Level of the interrupt pin.
    pub fn level(&self) -> bool {
        *lock(&self.sent.level)
    }

    /// Writes guest memory.
    ///
    /// # Panics
    /// There is none.
    pub fn poke(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write(gpa, bytes).expect("memory");
    }

    /// Reads guest memory.
    ///
    /// # Panics
    /// There is none.
    pub fn peek(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(gpa, &mut bytes).expect("memory");
        bytes
    }

    fn peek16(&self, gpa: u64) -> u16 {
        let bytes = self.peek(gpa, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// New memory for a buffer.
    pub fn buffer(&mut self, len: u64) -> u64 {
        let len = len.next_multiple_of(64);
        if self.heap + len > MEMORY_LEN {
            self.heap = HEAP;
        }
        self.heap += len;
        self.heap - len
    }

    /// Writes a descriptor of a table.
    pub fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let bytes =
            [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.poke(table + 16 * u64::from(index), &bytes.concat());
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let at = ring.available + 4 + 2 * u64::from(ring.filled % ring.size);
        ring.filled = ring.filled.wrapping_add(1);
        let (place, filled) = (ring.available + 2, ring.filled);
        self.poke(at, &head.to_le_bytes());
        self.poke(place, &filled.to_le_bytes());
    }

    /// Says that there is something in a queue.
    pub fn kick(&self, queue: usize) {
        self.bar_write(self.parts[2] + 4 * queue as u64, &(queue as u16).to_le_bytes());
    }

    /// Gives a chain: buffers that the device reads, then lengths of those that it writes. Not told of yet.
    pub fn give(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Given {
        let mut buffers = Vec::new();
        for bytes in readable {
            let at = self.buffer(bytes.len() as u64);
            self.poke(at, bytes);
            buffers.push((at, bytes.len() as u32, 0));
        }
        let mut given = Given { head: 0, writable: Vec::new() };
        for len in writable {
            let at = self.buffer((*len).into());
            self.poke(at, &vec![0xa5; *len as usize]);
            buffers.push((at, *len, WRITE));
            given.writable.push((at, *len));
        }
        let (table, size) = (self.rings[queue].descriptors, self.rings[queue].size);
        let first = self.rings[queue].free;
        given.head = first % size;
        for (i, (at, len, flags)) in buffers.iter().enumerate() {
            let index = first.wrapping_add(i as u16);
            let more = if i + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(table, index % size, *at, *len, flags | more, index.wrapping_add(1) % size);
        }
        self.rings[queue].free = first.wrapping_add(buffers.len() as u16);
        self.offer(queue, given.head);
        given
    }

    /// The next chain that came back: head and written length.
    pub fn take(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = self.rings[queue];
        if self.peek16(ring.used + 2) == ring.seen {
            return None;
        }
        let entry = self.peek(ring.used + 4 + 8 * u64::from(ring.seen % ring.size), 8);
        self.rings[queue].seen = ring.seen.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
        Some((word(0) as u16, word(4)))
    }

    /// Waits for the next chain that comes back.
    ///
    /// # Panics
    /// None comes.
    pub fn wait(&mut self, queue: usize) -> (u16, u32) {
        let mut taken = None;
        wait_until("a chain to come back", || {
            taken = self.take(queue);
            taken.is_some()
        });
        taken.unwrap_or_default()
    }

    /// Gives a chain, tells of it and waits for it: the written length, and what the device wrote.
    ///
    /// # Panics
    /// Another one comes back.
    pub fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> (u32, Vec<u8>) {
        let given = self.give(queue, readable, writable);
        self.kick(queue);
        let (head, len) = self.wait(queue);
        assert_eq!(head, given.head, "the chain that was given comes back");
        let parts = given.writable.iter().map(|(at, len)| self.peek(*at, *len as usize));
        (len, parts.collect::<Vec<_>>().concat())
    }

    /// Waits until the device says that it needs a reset.
    pub fn wait_for_broken(&self) {
        wait_until("the device to give up", || self.status() & NEEDS_RESET != 0);
    }
}

/// Waits until `done` says so.
///
/// # Panics
/// It takes too long.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}
