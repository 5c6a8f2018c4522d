//! A driver that does anything: what the targets of virtio devices share.

use umbra_device::Device;
use umbra_pci::PciDevice;
use umbra_virtio::VirtioDevice;
use umbra_virtio::driver::{Driver, MEMORY_LEN};

use crate::{Input, load_altered};

/// Steps of one input: each may be a reset, which waits for threads.
const STEPS_MAX: usize = 200;
/// Version 1 of the specification, without which there is no driver.
const VERSION_1: u64 = 1 << 32;

/// An address that a driver might give: mostly where the rings and buffers are.
fn address(input: &mut Input<'_>) -> u64 {
    match input.below(4) {
        0 => input.value(),
        1 => MEMORY_LEN - u64::from(input.u8()),
        2 => 0x1_0000 + u64::from(input.u16()),
        _ => 0x20_0000 + u64::from(input.u16()),
    }
}

fn step(driver: &mut Driver, input: &mut Input<'_>) {
    let queue = usize::from(input.u8()) % driver.rings.len().max(1);
    let len = usize::from(input.below(65));
    match input.below(13) {
        0 => drop(driver.init(input.u64() | VERSION_1)),
        1 | 2 => {
            let (index, to, bytes) = (input.u16() % 140, address(input), input.value() as u32);
            let table = if input.u8() & 3 == 0 { 0x20_0000 } else { driver.rings[queue].descriptors };
            driver.descriptor(table, index, to, bytes, input.u16() & 7, input.u16() % 140);
        }
        3 | 4 => {
            driver.offer(queue, input.u16() % 140);
            driver.kick(queue);
        }
        5 => driver.kick(usize::from(input.u8())),
        6 => {
            let at = address(input).min(MEMORY_LEN - 64);
            driver.poke(at, input.bytes(len));
        }
        7 => {
            let offset = u64::from(input.u16()) % (0x8000 - 64);
            let (offset, bytes) = (if input.u8() & 1 == 0 { offset % 64 } else { offset }, input.bytes(len));
            driver.bar_write(offset, bytes);
            driver.bar_read::<64>(offset);
        }
        8 => {
            let (offset, word) = (u16::from(input.u8()) & !3, input.u32());
            let mut function = driver.function.lock().unwrap();
            function.config_write(offset, &word.to_le_bytes());
            function.config_read(offset, &mut [0; 4]);
        }
        9 | 10 => {
            // A request that makes sense: a head of 16 bytes, data, room.
            let (kind, sector, room) = (input.u8() % 16, input.value(), u32::from(input.u16()));
            let head = [&u32::from(kind).to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
            let data = input.bytes(len);
            driver.give(queue, &[&head, data], &[room, 1]);
            driver.kick(queue);
        }
        11 => {
            // A packet of sockets from the guest's end, of a few connections, with room for what comes.
            let (ports, op) = (input.u8(), input.u8() % 9);
            let (guest, host) = (u32::from(ports & 3), u32::from(ports >> 2 & 3));
            let words = [3, 0, 2, 0, guest, host, len as u32, 1 | u32::from(op) << 16];
            let more = [u32::from(input.u8()), u32::from(input.u16()), u32::from(input.u8())];
            let head: Vec<u8> = words.iter().chain(&more).flat_map(|word| word.to_le_bytes()).collect();
            let data = input.bytes(len);
            driver.give(1 % driver.rings.len(), &[&head, data], &[]);
            driver.give(0, &[], &[44, 64]);
            driver.kick(1);
            driver.kick(0);
        }
        _ => {
            let mut function = driver.function.lock().unwrap();
            function.pause();
            if input.u8() & 1 == 0 {
                load_altered(&mut *function, input);
            }
            function.resume();
        }
    }
}

/// Lets the driver do what the input says, and moves the device in the end to another one.
///
/// # Panics
/// A promise is broken.
pub fn run(bytes: &[u8], device: &dyn Fn() -> Box<dyn VirtioDevice>) {
    let mut input = Input::new(bytes);
    let mut driver = Driver::new(device());
    driver.init(input.u64() | VERSION_1);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        step(&mut driver, &mut input);
    }
    let mut driver = driver.moved_to(device());
    driver.init(u64::MAX);
    let mut function = driver.function.lock().unwrap();
    function.pause();
    function.reset();
}
