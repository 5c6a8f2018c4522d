//! A whole machine on an engine that executes nothing but counts: what is around the processors.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use umbra_device::{Msi, MsiSink};
use umbra_engine::{
    Counters, CpuIo, CpuState, Doorbells, Engine, EngineError, Halt, IrqEvents, Kicker, PIN_COUNT, Vcpu,
    VcpuSpec, Vm, VmSpec,
};
use umbra_x86::cpuid::{CpuidEntry, CpuidTable, feature};

use crate::{CpuModel, DiskSpec, Event, Machine, MachineSpec, NetworkSpec, Parts, SavedMachine, VsockSpec};

/// What a fake processor does when it runs: called again and again until it is kicked.
type Step = Arc<dyn Fn(u32, &dyn CpuIo) -> Option<Halt> + Send + Sync>;

struct Fake {
    step: Step,
    supported: CpuidTable,
}

struct FakeVm(Step);

struct FakeVcpu {
    step: Step,
    state: CpuState,
    id: u32,
    kicked: Arc<(AtomicBool, Mutex<()>, Condvar)>,
}

impl Engine for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn supported_cpuid(&self) -> Result<CpuidTable, EngineError> {
        Ok(self.supported.clone())
    }
    fn create_vm(&self, _spec: VmSpec) -> Result<Arc<dyn Vm>, EngineError> {
        Ok(Arc::new(FakeVm(self.step.clone())))
    }
}

impl MsiSink for FakeVm {
    fn send(&self, _msi: Msi) {}
}

impl Vm for FakeVm {
    fn create_vcpu(&self, spec: VcpuSpec) -> Result<Box<dyn Vcpu>, EngineError> {
        let state = CpuState::power_on(spec.id, &spec.cpuid);
        Ok(Box::new(FakeVcpu { step: self.0.clone(), state, id: spec.id, kicked: Arc::default() }))
    }
    fn set_external_interrupt(&self, _high: bool) {}
    fn set_routes(&self, _routes: &[Option<Msi>; PIN_COUNT]) -> Result<(), EngineError> {
        Ok(())
    }
    fn stop_time(&self) -> Result<(), EngineError> {
        Ok(())
    }
    fn start_time(&self) -> Result<(), EngineError> {
        Ok(())
    }
    fn irq_events(&self) -> Option<&dyn IrqEvents> {
        None
    }
    fn doorbells(&self) -> Option<&dyn Doorbells> {
        None
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Halt {
        while !self.kicked.0.swap(false, Ordering::SeqCst) {
            if let Some(halt) = (self.step)(self.id, io) {
                return halt;
            }
            self.state.gpr[0] += 1;
            let guard = self.kicked.1.lock().unwrap();
            let _unused = self.kicked.2.wait_timeout(guard, Duration::from_micros(200)).unwrap();
        }
        Halt::Stopped
    }
    fn kicker(&self) -> Kicker {
        let kicked = self.kicked.clone();
        Kicker::new(move || {
            kicked.0.store(true, Ordering::SeqCst);
            kicked.2.notify_all();
        })
    }
    fn save(&mut self) -> Result<CpuState, EngineError> {
        Ok(self.state.clone())
    }
    fn load(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.state = state.clone();
        Ok(())
    }
    fn counters(&self) -> Arc<Counters> {
        Counters::new(&["runs"])
    }
}

/// Everything that any model shows.
fn everything() -> CpuidTable {
    let leaf = |leaf, eax| CpuidEntry { leaf, eax, ..CpuidEntry::default() };
    let mut t = CpuidTable::new([
        leaf(0, 0xd),
        leaf(1, 0x306c3),
        leaf(0x8000_0000, 0x8000_0008),
        leaf(0x8000_0008, 40),
    ]);
    feature::ALL.iter().for_each(|(_, f)| t.set_feature(*f, true));
    t
}

pub(crate) fn parts(
    step: impl Fn(u32, &dyn CpuIo) -> Option<Halt> + Send + Sync + 'static,
) -> (Parts, Receiver<Event>, Arc<Mutex<Vec<u8>>>) {
    let (events, receiver) = channel();
    let printed = Arc::new(Mutex::new(Vec::new()));
    let out = printed.clone();
    let engine = Box::new(Fake { step: Arc::new(step), supported: everything() });
    let console = Box::new(move |bytes: &[u8]| out.lock().unwrap().extend_from_slice(bytes));
    (
        Parts {
            engine,
            shared_memory: false,
            console,
            events,
            disks: Vec::new(),
            networks: Vec::new(),
            vsock: None,
        },
        receiver,
        printed,
    )
}

pub(crate) fn spec() -> MachineSpec {
    MachineSpec::new("test", 2, 64 << 20)
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn processors_and_time_stand_while_paused() {
    let ran = Arc::new(AtomicU64::new(0));
    let count = ran.clone();
    let (parts, _events, _) = parts(move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        None
    });
    let machine = Machine::new(spec(), parts).unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 0, "it is made paused");
    for _ in 0..20 {
        let before = ran.load(Ordering::SeqCst);
        machine.resume().unwrap();
        while ran.load(Ordering::SeqCst) == before {
            std::thread::yield_now();
        }
        machine.pause().unwrap();
        let (stands, time) = (ran.load(Ordering::SeqCst), machine.clock.now());
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!((ran.load(Ordering::SeqCst), machine.clock.now()), (stands, time));
    }
}

#[test]
fn a_device_stops_the_machine_from_a_vcpu_thread() {
    let (parts, events, printed) = parts(|id, io| {
        if id == 1 {
            io.port_write(0x3f8, b"x");
            io.port_write(0x604, &0x3400u16.to_le_bytes());
        }
        None
    });
    let machine = Machine::new(spec(), parts).unwrap();
    machine.resume().unwrap();
    assert_eq!(events.recv_timeout(SOON), Ok(Event::PowerOff));
    machine.pause().unwrap();
    assert_eq!(printed.lock().unwrap()[0], b'x');
}

#[test]
fn triple_faults_errors_and_panics_are_events() {
    let (p, events, _) = parts(|id, _| (id == 1).then_some(Halt::TripleFault));
    let machine = Machine::new(spec(), p).unwrap();
    machine.resume().unwrap();
    assert_eq!(events.recv_timeout(SOON), Ok(Event::TripleFault { vcpu: 1 }));
    machine.pause().unwrap();
    drop(machine);
    let (p, events, _) = parts(|id, _| if id == 0 { panic!("the engine has a bug") } else { None });
    let machine = Machine::new(spec(), p).unwrap();
    machine.resume().unwrap();
    assert!(matches!(events.recv_timeout(SOON), Ok(Event::Error(_))));
    machine.pause().unwrap();
}

#[test]
fn unclaimed_addresses_read_all_ones_and_nothing_else_happens() {
    let (p, _events, _) = parts(|_, _| None);
    let machine = Machine::new(spec(), p).unwrap();
    let io: &dyn CpuIo = &*machine.board;
    let mut seed = 1u64;
    for _ in 0..200_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (port, len) = ((seed >> 40) as u16, 1 << (seed >> 20 & 3).min(2));
        // Those that stop a machine are tried elsewhere.
        if !(0x600..0x610).contains(&port) && port != 0x64 && port != 0xcf9 {
            io.port_write(port, &seed.to_le_bytes()[..len]);
            io.port_read(port, &mut [0; 4][..len]);
        }
        let gpa = 0xc000_0000 + (seed >> 33);
        io.mmio_write(gpa, &seed.to_le_bytes()[..len]);
        io.mmio_read(gpa, &mut [0; 8][..len]);
    }
    let mut data = [0; 4];
    io.port_read(0x1234, &mut data);
    assert_eq!(data, [0xff; 4]);
    io.mmio_read(0xd000_0000, &mut data);
    assert_eq!(data, [0xff; 4]);
}

fn saved() -> Vec<u8> {
    let (p, _events, _) = parts(|_, _| None);
    let machine = Machine::new(spec(), p).unwrap();
    machine.resume().unwrap();
    machine.memory.write(0x12345, b"remember").unwrap();
    machine.memory.write(0x3ff_fff8, b"the end.").unwrap();
    let io: &dyn CpuIo = &*machine.board;
    io.port_write(0x3ff, &[0x5a]);
    machine.pause().unwrap();
    machine.save(&serde_json::to_vec(machine.spec()).unwrap(), Vec::new()).unwrap()
}

fn restore(bytes: &[u8]) -> Result<Machine, crate::MachineError> {
    let file = SavedMachine::open(bytes)?;
    let spec =
        serde_json::from_slice(file.spec_json()).map_err(|e| crate::MachineError::Spec(e.to_string()))?;
    file.restore(spec, parts(|_, _| None).0)
}

#[test]
fn a_saved_machine_comes_back() {
    let bytes = saved();
    assert!(bytes.len() < 1 << 20, "memory that was never touched is not in the file: {} bytes", bytes.len());
    let machine = restore(&bytes).unwrap();
    let mut data = [0; 8];
    machine.memory.read(0x12345, &mut data).unwrap();
    assert_eq!(&data, b"remember");
    machine.memory.read(0x3ff_fff8, &mut data).unwrap();
    assert_eq!(&data, b"the end.");
    let mut scratch = [0];
    (&*machine.board as &dyn CpuIo).port_read(0x3ff, &mut scratch);
    assert_eq!(scratch, [0x5a]);
    let again = machine.save(&serde_json::to_vec(machine.spec()).unwrap(), Vec::new()).unwrap();
    assert_eq!(again, bytes, "and saves to the same bytes");
}

#[test]
fn a_damaged_file_is_refused() {
    let bytes = saved();
    let step = bytes.len() / 97 + 1;
    for at in (0..bytes.len()).step_by(step).chain(0..64) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(restore(&damaged).is_err(), "byte {at} altered and not noticed");
        assert!(restore(&bytes[..at]).is_err(), "cut at {at} and not noticed");
    }
}

#[test]
fn a_file_with_more_state_than_any_machine_has_is_refused() {
    let record =
        umbra_state::Record { id: "com1".into(), kind: "serial".into(), version: 1, bytes: vec![0; 1 << 20] };
    let mut bytes = Vec::new();
    umbra_state::Field::put(&record, &mut bytes);
    let mut file = umbra_state::ContainerWriter::new(Vec::new()).unwrap();
    file.chunk(umbra_state::ChunkKind::Spec, 0, b"{}").unwrap();
    (0..16).for_each(|_| file.chunk(umbra_state::ChunkKind::Record, 0, &bytes).unwrap());
    let file = file.finish().unwrap();
    let error = SavedMachine::open(file.as_slice()).err().unwrap().to_string();
    assert!(error.contains("more state"), "{error}");
}

#[test]
fn the_portable_model_is_the_same_everywhere() {
    let supported = everything();
    let table = crate::cpu_model::Processors::new(CpuModel::Portable1, 4, &supported).unwrap().cpuid(3);
    assert_eq!(table.get(1, 0).map(|e| e.ebx >> 24), Some(3));
    assert!(table.has(feature::AVX2) && !table.has(feature::AVX512F) && !table.has(feature::TSC_DEADLINE));
    assert_eq!(table.answer(0x4000_0000, 0).ebx, u32::from_le_bytes(*b"KVMK"));
    let mut less = supported;
    less.set_feature(feature::BMI2, false);
    let refused = crate::cpu_model::Processors::new(CpuModel::Portable1, 4, &less).err().unwrap();
    assert!(refused.to_string().contains("BMI2"), "{refused}");
}

#[test]
fn wrong_specifications_are_refused() {
    let good = spec();
    assert!(good.check().is_ok());
    let one = DiskSpec { serial: "web-1".into(), ..DiskSpec::default() };
    assert!(MachineSpec { disks: vec![one.clone()], ..good.clone() }.check().is_ok());
    let card = |mac: &str| MachineSpec { networks: vec![NetworkSpec { mac: mac.into() }], ..good.clone() };
    assert!(card("52:54:00:12:34:56").check().is_ok());
    for bad in [
        MachineSpec { version: 2, ..good.clone() },
        MachineSpec { machine: "q35".into(), ..good.clone() },
        MachineSpec { cpus: 0, ..good.clone() },
        MachineSpec { cpus: 255, ..good.clone() },
        MachineSpec { memory: 1 << 20, ..good.clone() },
        MachineSpec { memory: (64 << 20) + 4096, ..good.clone() },
        MachineSpec { uuid: "ü".repeat(16), ..good.clone() },
        MachineSpec { disks: vec![DiskSpec { serial: "two words".into(), ..one.clone() }], ..good.clone() },
        MachineSpec { disks: vec![DiskSpec { serial: "x".repeat(21), ..one }], ..good.clone() },
        card("52:54:00:12:34"),
        card("52:54:00:12:34:5"),
        card("53:54:00:12:34:56"),
        card("00:00:00:00:00:00"),
        card("52-54-00-12-34-56"),
        MachineSpec { vsock: Some(VsockSpec { cid: 2 }), ..good.clone() },
        MachineSpec { vsock: Some(VsockSpec { cid: u32::MAX }), ..good.clone() },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}
