//! The PCI functions of a machine: what the specification asks for, each in its slot.
//!
//! Slots are given in a fixed order, disks first, so that a saved machine finds each where it was. A new kind of device
//! is a few lines here, a field of the specification, and an option of the command line.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use umbra_block::Disk;
use umbra_boot::layout as at;
use umbra_device::{Device, MsiLine};
use umbra_irqchip::IrqRouter;
use umbra_memory::Memory;
use umbra_net::Backend;
use umbra_pci::Bus;
use umbra_virtio::blk::{Blk, BlkSpec};
use umbra_virtio::net::{Net, NetSpec};
use umbra_virtio::rng::Rng;
use umbra_virtio::vsock::{Host as VsockHost, Vsock};
use umbra_virtio::{VirtioDevice, VirtioPci};

use crate::MachineError;
use crate::spec::{MachineSpec, VsockSpec};

/// A disk has a queue for each processor, but no more than keep its threads busy.
const DISK_QUEUES_MAX: u32 = 8;

/// What the functions are made of.
pub(crate) struct FunctionParts<'a> {
    pub spec: &'a MachineSpec,
    pub memory: &'a Arc<Memory>,
    pub messages: MsiLine,
    pub router: &'a IrqRouter,
    pub bus: &'a mut Bus,
    pub disks: Vec<Disk>,
    pub networks: Vec<Box<dyn Backend>>,
    pub vsock: Option<VsockHost>,
}

type Shared<T> = Arc<Mutex<T>>;

/// All functions but the host bridge.
pub(crate) struct Functions {
    all: Vec<Shared<VirtioPci>>,
    /// The images behind the disks, by the disks' names.
    disks: Vec<(String, Arc<Disk>)>,
}

/// The name of the disk of this number, as Linux would call it.
pub(crate) fn disk_name(index: usize) -> String {
    // There are fewer slots than letters.
    format!("vd{}", char::from(b'a' + (index % 26) as u8))
}

fn no_thread(error: std::io::Error) -> MachineError {
    MachineError::Host("cannot start a device's thread", error)
}

fn unpaired(what: &str) -> MachineError {
    MachineError::Spec(what.to_owned())
}

impl Functions {
    pub(crate) fn new(mut parts: FunctionParts<'_>) -> Result<Self, MachineError> {
        let spec = parts.spec;
        if parts.disks.len() != spec.disks.len() {
            let (given, wanted) = (parts.disks.len(), spec.disks.len());
            return Err(MachineError::Spec(format!(
                "the machine has {wanted} disks, and images for {given} were given"
            )));
        }
        let mut functions = Self { all: Vec::new(), disks: Vec::new() };
        for (index, disk) in std::mem::take(&mut parts.disks).into_iter().enumerate() {
            let (name, disk) = (disk_name(index), Arc::new(disk));
            let blk = BlkSpec {
                name: name.clone(),
                read_only: spec.disks[index].read_only,
                serial: spec.disks[index].serial.clone(),
                queues: spec.cpus.min(DISK_QUEUES_MAX) as u16,
            };
            let device = Blk::new(blk, disk.clone()).map_err(no_thread)?;
            functions.add(&format!("disk-{name}"), Box::new(device), &mut parts)?;
            functions.disks.push((name, disk));
        }
        functions.add_networks(&mut parts)?;
        if spec.rng {
            functions.add("rng", Box::new(Rng::new().map_err(no_thread)?), &mut parts)?;
        }
        match (spec.vsock, parts.vsock.take()) {
            (Some(VsockSpec { cid }), Some(host)) => {
                let device = Vsock::new(cid, host).map_err(no_thread)?;
                functions.add("vsock", Box::new(device), &mut parts)?;
            }
            (None, None) => {}
            (Some(_), None) => {
                return Err(unpaired("the machine has a socket device, and nothing to join it to"));
            }
            (None, Some(_)) => {
                return Err(unpaired("the machine has no socket device, and a host for one was given"));
            }
        }
        Ok(functions)
    }

    fn add_networks(&mut self, parts: &mut FunctionParts<'_>) -> Result<(), MachineError> {
        let networks = std::mem::take(&mut parts.networks);
        let spec = parts.spec;
        let wanted = &spec.networks;
        if networks.len() != wanted.len() {
            let (given, wanted) = (networks.len(), wanted.len());
            return Err(MachineError::Spec(format!(
                "the machine has {wanted} network cards, and networks for {given} were given"
            )));
        }
        for (index, (backend, network)) in networks.into_iter().zip(wanted).enumerate() {
            let name = format!("eth{index}");
            let device = Net::new(NetSpec { name: name.clone(), mac: network.mac_bytes()? }, backend)?;
            self.add(&format!("net-{name}"), Box::new(device), parts)?;
        }
        Ok(())
    }

    /// Puts a device into the next slot.
    fn add(
        &mut self,
        id: &str,
        device: Box<dyn VirtioDevice>,
        parts: &mut FunctionParts<'_>,
    ) -> Result<(), MachineError> {
        let slots = at::PCI_SLOTS_DEVICES;
        let slot = slots.clone().nth(self.all.len()).ok_or_else(|| {
            MachineError::Spec(format!("a machine has {} devices on PCI at most", slots.len()))
        })?;
        let line = parts.router.line(at::pci_intx_gsi(slot, 0));
        let line = line.map_err(|e| MachineError::Spec(e.to_string()))?;
        let function = VirtioPci::new(id, device, parts.memory, line, parts.messages.clone())?;
        let function = Arc::new(Mutex::new(function));
        parts.bus.insert(slot, function.clone())?;
        self.all.push(function);
        Ok(())
    }

    fn each(&self) -> impl Iterator<Item = MutexGuard<'_, VirtioPci>> {
        self.all.iter().map(|function| function.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All of them, in the order of their slots.
    pub(crate) fn devices(&self) -> impl Iterator<Item = Shared<dyn Device>> {
        self.all.iter().map(|function| function.clone() as Shared<dyn Device>)
    }

    /// Waits until nothing is in flight, and keeps it so. The processors stand.
    pub(crate) fn pause(&self) {
        self.each().for_each(|mut function| function.pause());
    }

    /// Goes on, before the processors do.
    pub(crate) fn resume(&self) {
        self.each().for_each(|mut function| function.resume());
    }

    fn each_disk(
        &self,
        doing: &'static str,
        work: impl Fn(&Disk) -> umbra_block::Result<()>,
    ) -> Result<(), MachineError> {
        let failed = |name: &str, e| MachineError::Disk { doing, name: name.to_owned(), source: Box::new(e) };
        let results = self.disks.iter().map(|(name, disk)| work(disk).map_err(|e| failed(name, e)));
        // One that fails keeps the others from nothing.
        results.fold(Ok(()), Result::and)
    }

    /// Makes durable what the disks were given. They are paused.
    pub(crate) fn flush_disks(&self) -> Result<(), MachineError> {
        self.each_disk("flush", Disk::flush)
    }

    /// Leaves the images as ones that were closed in order. They are paused, and not used any more.
    pub(crate) fn close_disks(&self) -> Result<(), MachineError> {
        self.each_disk("close", |disk| disk.drained(|node| node.format().close()))
    }
}
