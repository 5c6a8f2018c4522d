//! A processor in 64-bit mode at level 0 (or 3), with 4 MiB of memory mapped one to one, that runs code until HLT.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use umbra_device::Clock;
use umbra_engine::{CpuIo, RunState};
use umbra_memory::{Backing, Memory, Region, RegionKind};
use umbra_x86::reg::gpr::RSP;
use umbra_x86::reg::{Cr0, Cr4, Efer};
use umbra_x86::segment::{Segment, Table, access, sreg};

use crate::cpu::Cpu;
use crate::exec::{self, Stop};
use crate::native;
use crate::translate::lockstep;
use crate::vm::Shared;

pub const CODE: u64 = 0x10_0000;
pub const DATA: u64 = 0x20_0000;
pub const STACK: u64 = 0x30_0000;
/// What a handler of exceptions leaves its vector in.
pub const SEEN: u64 = 0x5000;
pub const TABLES: u64 = 0x8000;
/// A device answers here.
pub const DEVICE: u64 = 0x80_0000;
const IDT: u64 = 0x2000;
const HANDLERS: u64 = 0x6000;
pub const RAM: u64 = 4 << 20;
const PAGE: u64 = 0x1000;

/// Devices that remember what was written, and answer reads with the address.
#[derive(Default)]
pub struct Devices {
    pub written: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl CpuIo for Devices {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {}
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = (gpa as usize + n) as u8;
        }
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.written.lock().unwrap().push((gpa, data.to_vec()));
    }
    fn external_interrupt(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

pub struct Guest {
    pub cpu: Box<Cpu>,
    pub devices: &'static Devices,
}

/// A machine of `n` processors with [`RAM`] bytes.
pub fn machine(n: u32) -> Arc<Shared> {
    let region = Region::map(0, RAM, RegionKind::Ram, Backing::memfd(c"guest", RAM).unwrap()).unwrap();
    let memory = Memory::new(vec![region]).unwrap();
    Shared::new(Arc::new(memory), Clock::new(), n, 2_000_000)
}

impl Guest {
    pub fn new() -> Self {
        Self::of(machine(1), 0)
    }

    /// Processor `id` of a machine.
    pub fn of(shared: Arc<Shared>, id: u32) -> Self {
        let devices: &'static Devices = Box::leak(Box::default());
        let mut shown = native::host_features();
        // What the engine does without the host.
        shown.set_feature(native::SERIALIZE, true);
        let cpu = Cpu::new(shared, id, shown).unwrap();
        let mut guest = Self { cpu, devices };
        guest.cpu.translator.counts = true;
        guest.cpu.io = Some(NonNull::from(devices as &dyn CpuIo));
        if id == 0 {
            guest.tables();
        }
        guest.enter();
        // `UMBRA_LOCKSTEP=1 UMBRA_TRANSLATE_AFTER=0 cargo test` lets every test compare both tiers.
        if let Some(runs) = lockstep::asked().filter(|_| guest.cpu.shared.ports.len() == 1) {
            guest.cpu.start_lockstep(runs);
        }
        guest
    }

    fn tables(&mut self) {
        self.put(TABLES, (TABLES + PAGE) | 7, 8);
        self.put(TABLES + PAGE, (TABLES + 2 * PAGE) | 7, 8);
        for n in 0..8 {
            self.put(TABLES + 2 * PAGE + 8 * n, (TABLES + (3 + n) * PAGE) | 7, 8);
        }
        for n in 0..8 * 512 {
            self.put(TABLES + 3 * PAGE + 8 * n, (n * PAGE) | 7, 8);
        }
        // Each handler stores its vector and halts.
        for vector in 0..32u64 {
            let at = HANDLERS + 16 * vector;
            let mut code = vec![0xc7, 0x04, 0x25];
            code.extend((SEEN as u32).to_le_bytes());
            code.extend((vector as u32).to_le_bytes());
            code.push(0xf4);
            self.bytes(at, &code);
            self.put(IDT + 16 * vector, at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16) << 48, 8);
            self.put(IDT + 16 * vector + 8, 0, 8);
        }
        // Null, 64-bit code, data.
        self.put(0x1008, 0x00af_9b00_0000_ffff, 8);
        self.put(0x1010, 0x00cf_9300_0000_ffff, 8);
    }

    pub fn enter(&mut self) {
        let cpu = &mut *self.cpu;
        cpu.cr0 = Cr0::PE | Cr0::PG | Cr0::WP | Cr0::NE | Cr0::ET;
        cpu.cr4 = Cr4::PAE | Cr4::OSFXSR;
        cpu.efer = Efer::LME | Efer::LMA | Efer::NXE;
        cpu.cr3 = TABLES;
        cpu.gdtr = Table { base: 0x1000, limit: 0x17 };
        cpu.idtr = Table { base: IDT, limit: 0x1ff };
        let code = Segment {
            base: 0,
            limit: u32::MAX,
            selector: 8,
            access: 0x9b | access::L | access::G,
            unusable: false,
        };
        let data = Segment { access: 0x93 | access::DB | access::G, selector: 0x10, ..code };
        cpu.seg = [data; 6];
        cpu.seg[sreg::CS] = code;
        cpu.rflags = 2;
        cpu.run_state = RunState::Running;
        cpu.gpr[RSP] = STACK;
        cpu.rip = CODE;
        cpu.update_mode();
        cpu.paging_changed();
    }

    /// Makes the code segment a 32-bit one (compatibility mode) with flat data.
    pub fn narrow(&mut self) {
        self.cpu.seg[sreg::CS].access = 0x9b | access::DB | access::G;
        self.cpu.update_mode();
    }

    /// Level 3.
    pub fn user(&mut self) {
        for n in 0..6 {
            self.cpu.seg[n].access |= access::DPL;
            self.cpu.seg[n].selector |= 3;
        }
        self.cpu.update_mode();
    }

    pub fn bytes(&mut self, gpa: u64, bytes: &[u8]) {
        self.cpu.shared.memory.write(gpa, bytes).unwrap();
    }

    pub fn put(&mut self, gpa: u64, value: u64, len: usize) {
        self.bytes(gpa, &value.to_le_bytes()[..len]);
    }

    pub fn peek(&self, gpa: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.cpu.shared.memory.read(gpa, &mut data[..len]).unwrap();
        u64::from_le_bytes(data)
    }

    /// Sets the page-table entry of a linear address of the first 16 MiB.
    pub fn map(&mut self, linear: u64, entry: u64) {
        self.put(TABLES + 3 * PAGE + (linear >> 12) * 8, entry, 8);
    }

    /// Runs `code`, to which HLT is added, from [`CODE`] until a HLT.
    pub fn run(&mut self, code: &[u8]) {
        self.bytes(CODE, code);
        self.bytes(CODE + code.len() as u64, &[0xf4]);
        self.cpu.rip = CODE;
        self.go();
    }

    /// Goes on until a HLT.
    pub fn go(&mut self) {
        self.cpu.run_state = RunState::Running;
        let stop = exec::run(&mut self.cpu);
        let report = self.cpu.lockstep_report();
        assert_eq!(stop, Stop::Wait, "at {:#x}: {report}", self.cpu.rip);
    }

    /// Runs `code`, which must raise an exception: its vector, error code (or what is on the stack in its place) and RIP.
    pub fn fault(&mut self, code: &[u8]) -> (u64, u64, u64) {
        self.put(SEEN, 0xff, 4);
        self.run(code);
        let sp = self.cpu.gpr[RSP];
        let vector = self.peek(SEEN, 4);
        let with_error = matches!(vector, 8 | 10..=14 | 17);
        let error = if with_error { self.peek(sp, 8) } else { 0 };
        (vector, error, self.peek(sp + if with_error { 8 } else { 0 }, 8))
    }
}
