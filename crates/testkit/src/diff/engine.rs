//! The software engine, in a guest whose user mode looks like the child's.
//!
//! A small kernel that is nothing but tables: an address space in long mode, an interrupt table whose handlers write to a
//! port and loop, a task state segment with one stack. Each test is user-mode code that ends in an exception, so
//! the handler that is reached and the frame on its stack tell how.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use iced_x86::Code;
use umbra_device::Clock;
use umbra_engine::{
    CpuIo, CpuState, Engine as _, Halt, Kicker, SavedSegment, SavedTable, Vcpu, VcpuSpec, Vm, VmSpec, xcomp,
};
use umbra_engine_soft::SoftEngine;
use umbra_memory::{Backing, Memory, Region, RegionKind};
use umbra_x86::cpuid::CpuidTable;
use umbra_x86::reg::{Cr0, Cr4, Efer};
use umbra_x86::segment::{Segment, Table};

use super::run::Subject;
use super::state::{
    Bits, CODE, CODE_OFFSET, CODE_SIZE, DATA, DATA_SIZE, GS_BASE, Outcome, PAGE, READ_ONLY_BYTE, State, Test,
    WINDOW, digest,
};

/// Linear address of the kernel's pages, which are at guest physical address zero: where a random address will hardly be.
const SYSTEM: u64 = 0x1234_4000_0000;
const SYSTEM_SIZE: u64 = 0x1_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLES: [u64; 3] = [0x4000, 0x5000, 0x6000];
const GDT: u64 = 0x7000;
const IDT: u64 = 0x8000;
const TSS: u64 = 0x9000;
const TSS_SIZE: u16 = 0x68;
const STACK_TOP: u64 = 0xb000;
const HANDLERS: u64 = 0xc000;
/// The kernel's own tables above [`TABLES`].
const SYSTEM_PDPT: u64 = 0xd000;
const SYSTEM_DIRECTORY: u64 = 0xe000;
const HANDLER_SIZE: u64 = 16;
/// OUT 0x42, AL; JMP to itself.
const HANDLER: [u8; 4] = [0xe6, 0x42, 0xeb, 0xfe];
const KERNEL_CODE: u16 = 8;

/// What an outcome says that was none.
const NO_EXCEPTION: u32 = 0xffff;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;

/// A kick ends the run once a handler writes to its port.
struct Io(Kicker);

impl CpuIo for Io {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&self, _: u16, _: &[u8]) {
        self.0.kick();
    }
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn external_interrupt(&self) -> Option<u8> {
        None
    }
    fn end_of_interrupt(&self, _: u8) {}
}

/// Which tier of the engine runs the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// The interpreter.
    Interpreter,
    /// Every block is translated at once.
    Translator,
    /// A block is interpreted once, then translated: what is translated leads to what is not, and back.
    Both,
}

impl Tier {
    fn after(self) -> u32 {
        match self {
            Self::Interpreter => u32::MAX,
            Self::Translator => 0,
            Self::Both => 1,
        }
    }
}

/// A thread that ends a run which does not end by itself.
struct Watch(Arc<AtomicU64>);

impl Watch {
    /// It looks this often, and ends a run that it has seen twice.
    const EVERY: Duration = Duration::from_secs(2);
    /// No run, ever again.
    const OVER: u64 = u64::MAX;

    fn start(kicker: Kicker) -> Self {
        // Odd while a run is under way.
        let runs = Arc::new(AtomicU64::new(0));
        let seen = runs.clone();
        std::thread::spawn(move || {
            let mut last = 0;
            loop {
                std::thread::sleep(Self::EVERY);
                let now = seen.load(Ordering::Relaxed);
                match now {
                    Self::OVER => break,
                    _ if now == last && now % 2 == 1 => kicker.kick(),
                    _ => last = now,
                }
            }
        });
        Self(runs)
    }

    fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.store(Self::OVER, Ordering::Relaxed);
    }
}

/// The engine's guest.
pub struct Guest {
    memory: Arc<Memory>,
    cpu: Box<dyn Vcpu>,
    io: Io,
    state: CpuState,
    cpuid: CpuidTable,
    /// The code page as it is.
    code: [u8; CODE_SIZE as usize],
    watch: Watch,
    _vm: Arc<dyn Vm>,
}

impl Guest {
    /// A guest that is shown all that the engine has, in `tier`.
    ///
    /// # Errors
    /// What the host or the engine refuses.
    pub fn new(tier: Tier) -> anyhow::Result<Self> {
        let memory = memory()?;
        let engine = SoftEngine::new()?.translating_after(tier.after());
        let cpuid = engine.supported_cpuid()?;
        let clock = Clock::new();
        let vm = engine.create_vm(VmSpec { memory: memory.clone(), clock, vcpus_max: 1 })?;
        let cpu = vm.create_vcpu(VcpuSpec { id: 0, cpuid: cpuid.clone() })?;
        let io = Io(cpu.kicker());
        let state = supervisor(&cpuid);
        let watch = Watch::start(cpu.kicker());
        let code = [0; CODE_SIZE as usize];
        Ok(Self { memory, cpu, io, state, cpuid, code, watch, _vm: vm })
    }

    /// How often translations were entered.
    pub fn translated(&self) -> u64 {
        let counters = self.cpu.counters();
        let mut all = counters.read();
        all.find(|c| c.0 == "entries into translations").map_or(0, |c| c.1)
    }

    fn prepare(&mut self, test: &Test) -> anyhow::Result<()> {
        let s = &test.state;
        let mut code = [0xcc; CODE_SIZE as usize];
        code[CODE_OFFSET as usize..][..test.code().len()].copy_from_slice(test.code());
        // What is the same stays translated.
        if code != self.code {
            self.memory.write(CODE, &code)?;
            self.code = code;
        }
        self.memory.write(DATA + PAGE, &[0; 2 * PAGE as usize])?;
        self.memory.write(s.window, &s.memory)?;
        let c = &mut self.state;
        c.gpr = s.gpr;
        c.rip = s.rip;
        c.rflags = s.rflags | 0x202;
        c.segments = segments(test.bits).map(SavedSegment);
        c.cr2 = 0;
        c.xsave = components(s, &self.cpuid);
        self.cpu.load(&self.state)?;
        Ok(())
    }

    fn outcome(&mut self, test: &Test) -> anyhow::Result<Outcome> {
        let c = self.cpu.save()?;
        let at = c.rip.wrapping_sub(SYSTEM + HANDLERS);
        if !(0..256 * HANDLER_SIZE).contains(&at) {
            return Ok(Outcome {
                state: State { rip: c.rip, ..test.state },
                vector: NO_EXCEPTION,
                error: 0,
                address: 0,
                pages: 0,
            });
        }
        let vector = (at / HANDLER_SIZE) as u32;
        let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
        let mut frame = [0; 48];
        self.memory.read(STACK_TOP - 48, &mut frame)?;
        let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|b| frame[n * 8 + b]));
        let mut state = test.state;
        state.gpr = c.gpr;
        state.gpr[4] = word(4);
        state.rip = word(1);
        state.rflags = word(3);
        load_components(&mut state, &c);
        self.memory.read(state.window, &mut state.memory)?;
        let mut pages = [0; 2 * PAGE as usize];
        self.memory.read(DATA + PAGE, &mut pages)?;
        let error = if has_error { word(0) as u32 } else { 0 };
        let address = if vector == 14 { c.cr2 } else { 0 };
        Ok(Outcome { state, vector, error, address, pages: digest(&pages) })
    }
}

impl Subject for Guest {
    fn offers(&self, code: Code) -> bool {
        umbra_engine_soft::offers(&self.cpuid, code)
    }

    fn run(&mut self, test: &Test) -> anyhow::Result<Outcome> {
        self.prepare(test)?;
        self.watch.begin();
        let halt = self.cpu.run(&self.io);
        self.watch.end();
        match halt {
            Halt::Stopped => self.outcome(test),
            Halt::Error(e) => Err(e).context("the engine cannot go on"),
            // Not what any instruction of user mode may do.
            Halt::TripleFault | Halt::Debug => {
                Ok(Outcome { state: test.state, vector: NO_EXCEPTION, error: 0, address: 0, pages: 0 })
            }
        }
    }
}

fn memory() -> anyhow::Result<Arc<Memory>> {
    let region = |gpa, len| -> anyhow::Result<Region> {
        let backing = Backing::memfd(c"diff", len)?;
        Region::map(gpa, len, RegionKind::Ram, backing).context("cannot map guest memory")
    };
    let regions = vec![region(0, SYSTEM_SIZE)?, region(CODE, CODE_SIZE)?, region(DATA, DATA_SIZE)?];
    let memory = Arc::new(Memory::new(regions)?);
    page_tables(&memory)?;
    tables(&memory)?;
    memory.write(DATA + 3 * PAGE, &[READ_ONLY_BYTE; PAGE as usize])?;
    Ok(memory)
}

fn page_tables(m: &Memory) -> anyhow::Result<()> {
    let set = |table: u64, n: u64, entry: u64| m.write(table + n * 8, &entry.to_le_bytes());
    let all = PRESENT | WRITABLE | USER;
    set(PML4, 0, PDPT | all)?;
    set(PDPT, 0, DIRECTORY | all)?;
    set(PML4, SYSTEM >> 39 & 511, SYSTEM_PDPT | all)?;
    set(SYSTEM_PDPT, SYSTEM >> 30 & 511, SYSTEM_DIRECTORY | all)?;
    set(SYSTEM_DIRECTORY, SYSTEM >> 21 & 511, TABLES[0] | all)?;
    for (table, address) in TABLES[1..].iter().zip([CODE, DATA]) {
        set(DIRECTORY, address >> 21 & 511, table | all)?;
    }
    for n in 0..SYSTEM_SIZE / PAGE {
        set(TABLES[0], n, (n * PAGE) | PRESENT | WRITABLE)?;
    }
    set(TABLES[1], CODE >> 12 & 511, CODE | PRESENT | USER)?;
    let data = |n: u64| (DATA + n * PAGE) | PRESENT | USER | NO_EXECUTE;
    let slot = DATA >> 12 & 511;
    set(TABLES[2], slot + 1, data(1) | WRITABLE)?;
    set(TABLES[2], slot + 2, data(2) | WRITABLE)?;
    set(TABLES[2], slot + 3, data(3))?;
    Ok(())
}

fn tables(m: &Memory) -> anyhow::Result<()> {
    // Index 1: a 64-bit code segment of privilege 0.
    m.write(GDT + 8, &0x00af_9b00_0000_ffffu64.to_le_bytes())?;
    for vector in 0..256 {
        let at = HANDLERS + vector * HANDLER_SIZE;
        m.write(at, &HANDLER)?;
        let linear = SYSTEM + at;
        // Of software interrupts, user mode may only call those of INT3 and INTO.
        let access = if matches!(vector, 3 | 4) { 0xee00 } else { 0x8e00 };
        let gate =
            linear & 0xffff | u64::from(KERNEL_CODE) << 16 | access << 32 | (linear >> 16 & 0xffff) << 48;
        m.write(IDT + vector * 16, &gate.to_le_bytes())?;
        m.write(IDT + vector * 16 + 8, &(linear >> 32).to_le_bytes())?;
    }
    m.write(TSS + 4, &(SYSTEM + STACK_TOP).to_le_bytes())?;
    // No permission bitmap for ports.
    m.write(TSS + 102, &TSS_SIZE.to_le_bytes())?;
    Ok(())
}

/// The state that all tests share.
fn supervisor(cpuid: &CpuidTable) -> CpuState {
    let mut c = CpuState::power_on(0, cpuid);
    c.cr0 = (Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM | Cr0::PG).bits();
    c.cr3 = PML4;
    c.cr4 = (Cr4::PAE | Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE).bits();
    c.efer = (Efer::LME | Efer::LMA | Efer::NXE | Efer::SCE).bits();
    c.xcr0 = cpuid.get(0xd, 0).map_or(3, |e| u64::from(e.eax));
    c.gdtr = SavedTable(Table { base: SYSTEM + GDT, limit: 15 });
    c.idtr = SavedTable(Table { base: SYSTEM + IDT, limit: 0xfff });
    c.ldtr = SavedSegment(Segment { base: 0, limit: 0, selector: 0, access: 0x82, unusable: true });
    c.tr = SavedSegment(Segment {
        base: SYSTEM + TSS,
        limit: u32::from(TSS_SIZE) - 1,
        selector: 0x10,
        access: 0x8b,
        unusable: false,
    });
    c
}

/// ES, CS, SS, DS, FS, GS as the child has them.
fn segments(bits: Bits) -> [Segment; 6] {
    let none = Segment { base: 0, limit: 0, selector: 0, access: 0, unusable: true };
    let flat = |selector, access| Segment { base: 0, limit: u32::MAX, selector, access, unusable: false };
    let data = flat(0x2b, 0xc0f3);
    match bits {
        Bits::SixtyFour => {
            let gs = Segment { base: GS_BASE, ..none };
            [none, flat(0x33, 0xa0fb), data, none, none, gs]
        }
        Bits::ThirtyTwo => [data, flat(0x23, 0xc0fb), data, data, none, none],
        Bits::Sixteen => {
            let code = Segment { base: CODE, limit: 0xffff, selector: 7, access: 0x00fb, unusable: false };
            let data = Segment { base: DATA, limit: 0xffff, selector: 0xf, access: 0x00f3, unusable: false };
            [data, code, data, data, none, none]
        }
    }
}

fn registers(s: &State, which: std::ops::Range<usize>, bytes: std::ops::Range<usize>) -> Vec<u8> {
    s.zmm[which].iter().flat_map(|z| z[bytes.clone()].iter().copied()).collect()
}

fn components(s: &State, cpuid: &CpuidTable) -> Vec<(u32, Vec<u8>)> {
    let shown = cpuid.get(0xd, 0).map_or(3, |e| e.eax);
    let mut all = vec![
        (xcomp::X87, s.fx.to_vec()),
        (xcomp::SSE, registers(s, 0..16, 0..16)),
        (xcomp::AVX, registers(s, 0..16, 16..32)),
        (xcomp::OPMASK, s.k.iter().flat_map(|k| k.to_le_bytes()).collect()),
        (xcomp::ZMM_HI256, registers(s, 0..16, 32..64)),
        (xcomp::HI16_ZMM, registers(s, 16..32, 0..64)),
    ];
    all.retain(|(n, _)| shown >> n & 1 != 0);
    all
}

fn load_components(s: &mut State, c: &CpuState) {
    let empty = State::empty();
    s.fx.copy_from_slice(c.xsave_component(xcomp::X87).unwrap_or(&empty.fx));
    s.fx[28..32].fill(0);
    let parts = [
        (xcomp::SSE, 0..16, 0..16),
        (xcomp::AVX, 0..16, 16..32),
        (xcomp::ZMM_HI256, 0..16, 32..64),
        (xcomp::HI16_ZMM, 16..32, 0..64),
    ];
    for (number, which, bytes) in parts {
        let image = c.xsave_component(number).unwrap_or_default();
        let mut rest = image.iter().copied();
        for z in &mut s.zmm[which] {
            z[bytes.clone()].iter_mut().for_each(|b| *b = rest.next().unwrap_or(0));
        }
    }
    let opmask = c.xsave_component(xcomp::OPMASK).unwrap_or_default();
    let mut rest = opmask.iter().copied();
    s.k.iter_mut().for_each(|k| *k = u64::from_le_bytes(std::array::from_fn(|_| rest.next().unwrap_or(0))));
    debug_assert_eq!(s.memory.len(), WINDOW);
}
