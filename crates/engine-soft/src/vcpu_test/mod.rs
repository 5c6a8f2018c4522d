//! Small guests, through the interface of `umbra-engine`.

mod asm;
mod interrupt_test;
mod io;
mod kick_test;
mod move_test;
mod smp_test;
mod timer_test;

use std::time::{Duration, Instant};

use umbra_engine::CpuState;
use umbra_x86::segment::{Segment, Table, access};

use crate::fixture::{self, Rig};
use asm::Asm;

/// Where things are in the guest's memory.
pub const GDT: u64 = 0x800;
pub const IDT: u64 = 0x1000;
pub const HANDLERS: u64 = 0x2000;
pub const CODE: u64 = 0x4000;
/// Counters of interrupts, by processor.
pub const COUNTS: u32 = 0x5000;
pub const REAL_CODE: u64 = 0x6000;
pub const STACKS: u64 = 0x1_0000;

/// Longer than anything takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(20);

/// A processor in 32-bit protected mode with flat segments and no paging, at `entry`.
pub fn flat(id: u32, entry: u64) -> CpuState {
    let mut s = CpuState::power_on(id, &fixture::cpuid());
    let segment = |selector, kind: u16| Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        access: kind | access::RW | access::ACCESSED | access::S | access::P | access::DB | access::G,
        unusable: false,
    };
    s.segments.iter_mut().for_each(|x| x.0 = segment(0x10, 0));
    s.segments[1].0 = segment(0x08, access::CODE);
    s.cr0 = 0x11;
    s.rip = entry;
    s.gpr[4] = STACKS + 0x1000 * u64::from(id + 1);
    s.gdtr.0 = Table { base: GDT, limit: 0x17 };
    s.idtr.0 = Table { base: IDT, limit: 0x7ff };
    s.run_state = umbra_engine::RunState::Running;
    s
}

/// Puts the descriptor tables and, for each `(vector, handler)`, a handler into memory.
pub fn tables(rig: &Rig, handlers: &[(u8, Asm)]) {
    let descriptors = [0, 0x00cf_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff];
    (GDT..).step_by(8).zip(descriptors).for_each(|(at, d)| rig.memory.write(at, &d.to_le_bytes()).unwrap());
    let mut at = HANDLERS;
    for (vector, code) in handlers {
        let gate = at & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (at >> 16) << 48;
        rig.memory.write(IDT + 8 * u64::from(*vector), &gate.to_le_bytes()).unwrap();
        rig.memory.write(at, &code.0).unwrap();
        at += code.0.len() as u64;
    }
}

/// Waits for `condition`, or fails with `what`.
pub fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "{what} did not come");
        std::thread::yield_now();
    }
}
