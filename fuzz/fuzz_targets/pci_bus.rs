//! The PCI bus, its host bridge and functions with every kind of base address: saved states that may be wrong, any
//! configuration. Regions must never overlap, and be unmapped as they were mapped.
#![no_main]

use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use umbra_device::{Device, DeviceError, Mmio, PortIo};
use umbra_fuzz::{Input, load_altered};
use umbra_pci::{
    Bar, BarMapper, BarRegion, BarSpace, BarTarget, Bus, ConfigSpace, HostBridge, Identity, PciDevice,
};
use umbra_state::{Record, Saved};

umbra_state::saved! {
    struct FunctionV1: "function", 1 { 1 config: Vec<u8> }
}

struct Function(ConfigSpace);

impl Function {
    fn new() -> Self {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [1, 0x80, 2],
            subsystem_vendor: 0x1234,
            subsystem: 0x5678,
        };
        let config = ConfigSpace::new(identity)
            .with_bar(0, Bar::Memory32 { len: 0x1000 })
            .and_then(|c| c.with_bar(1, Bar::Io { len: 32 }))
            .and_then(|c| c.with_bar(2, Bar::Memory64 { len: 0x1_0000, prefetchable: true }))
            .and_then(|c| c.with_bar(4, Bar::Memory64 { len: 1 << 47, prefetchable: false }))
            .and_then(|c| c.with_capability(0x05, [0; 6], [0x0f; 6]));
        Self(config.expect("there is room for all"))
    }
}

impl PciDevice for Function {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
    fn bar_read(&mut self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn bar_write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}
}

impl Device for Function {
    fn id(&self) -> &str {
        "function"
    }
    fn reset(&mut self) {
        self.0.reset();
    }
    fn save(&self) -> Result<Record, DeviceError> {
        Ok(FunctionV1 { config: self.0.save() }.to_record("function"))
    }
    fn load(&mut self, record: &Record) -> Result<(), DeviceError> {
        let FunctionV1 { config } =
            FunctionV1::from_record(record).map_err(DeviceError::state("function"))?;
        self.0.load("function", &config)
    }
}

/// An address space that refuses the first 2 GiB and checks what the bus promises.
#[derive(Clone, Default)]
struct Space(Arc<Mutex<Vec<(BarRegion, BarTarget)>>>);

impl BarMapper for Space {
    fn map(&mut self, region: BarRegion, target: BarTarget) -> bool {
        assert_eq!(region.base % region.len, 0);
        let mut mapped = self.0.lock().unwrap();
        assert!(mapped.iter().all(|(other, _)| !other.overlaps(&region)), "mapped regions never overlap");
        let room = region.space == BarSpace::Io || region.base >= 0x8000_0000;
        if room {
            mapped.push((region, target));
        }
        room
    }
    fn unmap(&mut self, region: BarRegion) {
        let mut mapped = self.0.lock().unwrap();
        let before = mapped.len();
        mapped.retain(|(other, _)| *other != region);
        assert_eq!(mapped.len() + 1, before, "what is unmapped was mapped");
    }
}

struct Machine {
    bus: Bus,
    space: Space,
    functions: [Arc<Mutex<dyn PciDevice>>; 3],
}

/// Slots that functions are in.
const SLOTS: [u8; 3] = [0, 3, 31];

impl Machine {
    fn new() -> Self {
        let space = Space::default();
        let mut bus = Bus::new("pci", space.clone());
        let functions: [Arc<Mutex<dyn PciDevice>>; 3] = [
            Arc::new(Mutex::new(HostBridge::new("host-bridge"))),
            Arc::new(Mutex::new(Function::new())),
            Arc::new(Mutex::new(Function::new())),
        ];
        for (slot, function) in SLOTS.into_iter().zip(&functions) {
            bus.insert(slot, function.clone()).expect("the slot is free");
        }
        Self { bus, space, functions }
    }

    /// A function, and then the bus, as the machine does it.
    fn load(&mut self, input: &mut Input<'_>) {
        let which = usize::from(input.below(4));
        if let Some(function) = self.functions.get(which) {
            load_altered(&mut *function.lock().unwrap(), input);
            let bus = self.bus.save().expect("it can be saved");
            self.bus.load(&bus).expect("it takes what it saved");
        } else {
            load_altered(&mut self.bus, input);
        }
    }

    /// An offset in the window: mostly a register that exists.
    fn offset(input: &mut Input<'_>) -> u64 {
        let (how, register) = (input.u8(), u64::from(input.u8()));
        match how {
            0..=3 => u64::from(input.u32()) % (256 << 20),
            _ => u64::from([0u8, 3, 31, 7][usize::from(how % 4)]) << 15 | register % 0x60,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            0 => self.load(input),
            1 => {
                self.functions.iter().for_each(|f| f.lock().unwrap().reset());
                self.bus.reset();
            }
            2 | 3 => {
                let (offset, len) = (Self::offset(input), usize::from(1 + input.below(8)));
                self.bus.mmio_write(offset, &input.u64().to_le_bytes()[..len]);
            }
            4 => {
                let (offset, len) = (Self::offset(input), usize::from(1 + input.below(64)));
                self.bus.mmio_write(offset, &[input.u8(); 64][..len]);
                self.bus.mmio_read(offset, &mut [0; 64][..len]);
            }
            5 => {
                let offset = Self::offset(input);
                let address = 0x8000_0000 | (offset >> 15 & 0x1f) << 11 | offset & 0xfc;
                self.bus.port_write(0, &(address as u32).to_le_bytes());
                let len = [1, 2, 4][usize::from(input.below(3))];
                self.bus.port_write(4 + u16::from(input.u8() % 4), &input.u32().to_le_bytes()[..len]);
            }
            6 => self.bus.port_write(
                u16::from(input.below(9)),
                &input.u32().to_le_bytes()[..1 + usize::from(input.u8() % 4)],
            ),
            _ => {
                let len = 1 + usize::from(input.u8() % 4);
                self.bus.port_read(u16::from(input.below(9)), &mut [0; 4][..len]);
                let target = self.space.0.lock().unwrap().first().map(|(_, target)| target.clone());
                if let Some(mut target) = target {
                    target.mmio_read(0, &mut [0; 8]);
                }
            }
        }
        self.check();
    }

    /// What is mapped is decoded; what is decoded is mapped, or may not be there, or is overlapped by something that is.
    fn check(&self) {
        let decoded: Vec<BarRegion> = self
            .functions
            .iter()
            .flat_map(|f| f.lock().unwrap().config().decoded().map(|(_, region)| region).collect::<Vec<_>>())
            .collect();
        let mapped: Vec<BarRegion> = self.space.0.lock().unwrap().iter().map(|(region, _)| *region).collect();
        assert!(mapped.iter().all(|region| decoded.contains(region)), "mapped, and nobody decodes it");
        for region in decoded {
            let refused = region.space == BarSpace::Memory && region.base < 0x8000_0000;
            assert!(
                refused || mapped.iter().any(|m| m.overlaps(&region)),
                "decoded, and not mapped without a reason"
            );
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let mut machine = Machine::new();
    while !input.is_empty() {
        machine.step(&mut input);
    }
});
