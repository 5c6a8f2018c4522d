//! All devices of machine type `umbra-1`, and how they are joined.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use umbra_block::Disk;
use umbra_boot::Layout;
use umbra_boot::layout as at;
use umbra_chipset::{AcpiPm, Cmos, CmosSpec, I8042, PvPanic, ResetRegister, Serial};
use umbra_device::{Clock, Device, EventSink, MachineEvent, Msi, MsiLine, MsiSink};
use umbra_engine::{CpuIo, PIN_COUNT, Vm};
use umbra_irqchip::{
    ELCR_PORTS, IOAPIC_SIZE, Ioapic, IrqRouter, MASTER_PORTS, Pic, PicRange, Pit, SLAVE_PORTS,
};
use umbra_memory::Memory;
use umbra_net::Backend;
use umbra_pci::{Bus, HostBridge};
use umbra_state::Record;
use umbra_virtio::vsock::Host as VsockHost;

use crate::bus::{MmioBus, PortBus};
use crate::crew::Gate;
use crate::functions::{FunctionParts, Functions};
use crate::machine::Console;
use crate::save::take_record;
use crate::spec::MachineSpec;
use crate::timer::Timers;
use crate::{Event, MachineError};

/// What the devices are joined to.
pub(crate) struct BoardParts<'a> {
    pub vm: &'a Arc<dyn Vm>,
    pub clock: &'a Clock,
    pub timers: &'a Arc<Timers>,
    pub gate: &'a Arc<Gate>,
    pub events: &'a Sender<Event>,
    pub console: Console,
    pub layout: &'a Layout,
    pub spec: &'a MachineSpec,
    pub memory: &'a Arc<Memory>,
    /// The disks of the specification, in its order.
    pub disks: Vec<Disk>,
    /// The far ends of its network cards.
    pub networks: Vec<Box<dyn Backend>>,
    /// The far end of its socket device.
    pub vsock: Option<VsockHost>,
}

type Shared<T> = Arc<Mutex<T>>;

fn shared<T>(value: T) -> Shared<T> {
    Arc::new(Mutex::new(value))
}

fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The devices of a machine.
pub(crate) struct Board {
    ports: PortBus,
    mmio: MmioBus,
    ioapic: Ioapic,
    pic: Pic,
    serial: Shared<Serial>,
    pm: Shared<AcpiPm>,
    pub(crate) functions: Functions,
    /// Every device, in the order in which they are reset, saved and loaded: those that others drive or need come last.
    devices: Vec<Shared<dyn Device>>,
}

/// The engine as the receiver of messages.
struct Messages(Arc<dyn Vm>);

impl MsiSink for Messages {
    fn send(&self, msi: Msi) {
        self.0.send(msi);
    }
}

/// Devices' events stop the machine at once; what then happens is decided above.
fn event_sink(gate: &Arc<Gate>, events: &Sender<Event>) -> EventSink {
    let (gate, events) = (gate.clone(), Mutex::new(events.clone()));
    Arc::new(move |event| {
        let event = match event {
            MachineEvent::PowerOff => Event::PowerOff,
            MachineEvent::Reset => Event::Reset,
            MachineEvent::Panicked => Event::Panicked,
            // The guest goes on with its crash kernel.
            MachineEvent::CrashLoaded => return,
        };
        gate.stop_soon();
        // The receiver is gone only when the machine is being taken down.
        let _ = lock(&events).send(event);
    })
}

/// The interrupt controllers, wired to the engine.
struct Chips {
    ioapic: Ioapic,
    /// The same chip, as what its alarm is wired to.
    ioapic_device: Shared<Ioapic>,
    pic: Pic,
    router: IrqRouter,
}

impl Chips {
    fn new(parts: &BoardParts<'_>) -> Self {
        let (alarm_id, alarm) = parts.timers.alarm();
        let messages: MsiLine = Arc::new(Messages(parts.vm.clone()));
        let (vm, events) = (parts.vm.clone(), Mutex::new(parts.events.clone()));
        let gate = parts.gate.clone();
        let on_routes = move |routes: &[Option<Msi>; PIN_COUNT]| {
            if let Err(e) = vm.set_routes(routes) {
                gate.stop_soon();
                let _ = lock(&events).send(Event::Error(format!("cannot route interrupts: {e}")));
            }
        };
        let ioapic = Ioapic::new(messages, parts.clock.clone(), alarm, Arc::new(on_routes));
        let ioapic_device = shared(ioapic.clone());
        parts.timers.wire(alarm_id, &ioapic_device);
        let vm = parts.vm.clone();
        let pic = Pic::new(Arc::new(move |high| vm.set_external_interrupt(high)));
        let router = IrqRouter::new(Arc::new(pic.clone()), Arc::new(ioapic.clone()));
        Self { ioapic, ioapic_device, pic, router }
    }
}

impl Board {
    pub(crate) fn new(parts: BoardParts<'_>) -> Result<Self, MachineError> {
        let chips = Chips::new(&parts);
        let line = |gsi| chips.router.line(gsi).map_err(|e| MachineError::Spec(e.to_string()));
        let events = event_sink(parts.gate, parts.events);
        let (clock, timers) = (parts.clock, parts.timers);

        let (pit_alarm, alarm) = timers.alarm();
        let pit = Pit::new(line(0)?, clock.clone(), alarm);
        let (cmos_alarm, alarm) = timers.alarm();
        let cmos =
            shared(Cmos::new("cmos", cmos_spec(parts.layout), clock.clone(), alarm, line(at::RTC_IRQ)?));
        let (pm_alarm, alarm) = timers.alarm();
        let pm = shared(AcpiPm::new("acpi-pm", clock.clone(), alarm, line(at::SCI_IRQ)?, events.clone()));
        let serial = shared(Serial::new("com1", line(at::COM1_IRQ)?, parts.console));
        let keyboard =
            shared(I8042::new("i8042", line(at::KEYBOARD_IRQ)?, line(at::MOUSE_IRQ)?, events.clone()));
        let reset = shared(ResetRegister::new("reset-register", events.clone()));
        let panic = shared(PvPanic::new("pvpanic", events));
        let mut mmio = MmioBus::new();
        let windows = [at::PCI_WINDOW_32_LOW, at::PCI_WINDOW_32_HIGH, parts.layout.pci_window_64()];
        let mut bus = Bus::new("pci", mmio.windows(windows.to_vec()));
        let bridge = shared(HostBridge::new("pci-00.0"));
        bus.insert(at::PCI_SLOT_HOST_BRIDGE, bridge.clone())?;
        let functions = Functions::new(FunctionParts {
            spec: parts.spec,
            memory: parts.memory,
            messages: Arc::new(Messages(parts.vm.clone())),
            router: &chips.router,
            bus: &mut bus,
            disks: parts.disks,
            networks: parts.networks,
            vsock: parts.vsock,
        })?;
        let bus = shared(bus);

        let pit_device = shared(pit.clone());
        timers.wire(pit_alarm, &pit_device);
        timers.wire(cmos_alarm, &cmos);
        timers.wire(pm_alarm, &pm);

        let mut ports = PortBus::new();
        ports.add(MASTER_PORTS, 2, shared(chips.pic.ports(PicRange::Master)));
        ports.add(SLAVE_PORTS, 2, shared(chips.pic.ports(PicRange::Slave)));
        ports.add(ELCR_PORTS, 2, shared(chips.pic.ports(PicRange::Elcr)));
        ports.add(umbra_irqchip::COUNTER_PORTS, 4, shared(pit.counters()));
        ports.add_byte(umbra_irqchip::PORT_B, shared(pit.port_b()));
        ports.add(at::I8042_DATA, I8042::PORTS, keyboard.clone());
        ports.add(at::RTC, Cmos::PORTS, cmos.clone());
        ports.add(at::COM1, Serial::PORTS, serial.clone());
        ports.add(at::PVPANIC, PvPanic::PORTS, panic.clone());
        ports.add(at::ACPI_PM1A_EVENT, AcpiPm::PORTS, pm.clone());
        ports.add(at::PCI_CONFIG_ADDRESS, 8, bus.clone());
        ports.add_byte(at::RESET_PORT, reset.clone());
        mmio.add(at::IOAPIC, IOAPIC_SIZE, shared(chips.ioapic.clone()));
        mmio.add(at::PCI_ECAM.start, Bus::ECAM_LEN, bus.clone());

        let mut devices: Vec<Shared<dyn Device>> =
            vec![serial.clone(), keyboard, cmos, pm.clone(), reset, panic, bridge];
        devices.extend(functions.devices());
        let last: [Shared<dyn Device>; 5] =
            [bus, pit_device, shared(chips.router), shared(chips.pic.clone()), chips.ioapic_device];
        devices.extend(last);
        Ok(Self { ports, mmio, ioapic: chips.ioapic, pic: chips.pic, serial, pm, functions, devices })
    }

    pub(crate) fn reset(&self) {
        self.devices.iter().for_each(|d| lock(d).reset());
    }

    pub(crate) fn save(&self) -> Result<Vec<Record>, MachineError> {
        self.devices.iter().map(|d| Ok(lock(d).save()?)).collect()
    }

    /// Loads every device, taking its record out of `records`.
    pub(crate) fn load(&self, records: &mut Vec<Record>) -> Result<(), MachineError> {
        for device in &self.devices {
            let mut device = lock(device);
            let record = take_record(records, device.id())?;
            device.load(&record)?;
        }
        Ok(())
    }

    pub(crate) fn console_input(&self, data: &[u8]) -> usize {
        lock(&self.serial).receive(data)
    }

    pub(crate) fn press_power_button(&self) {
        lock(&self.pm).press_power_button();
    }
}

fn cmos_spec(layout: &Layout) -> CmosSpec {
    let unix_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    let low = layout.ram_low();
    CmosSpec {
        unix_ns,
        ram_below_4g: low.end - low.start,
        ram_above_4g: layout.ram_high().map_or(0, |r| r.end - r.start),
    }
}

impl CpuIo for Board {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port, data);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port, data);
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.mmio.read(gpa, data);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.mmio.write(gpa, data);
    }
    fn external_interrupt(&self) -> Option<u8> {
        self.pic.intr().then(|| self.pic.acknowledge())
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.eoi(vector);
    }
}
