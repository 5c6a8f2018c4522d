//! The rest of the machine, as the programs need it: it records accesses, answers reads by rule, and does what a few ports ask for.
//!
//! | port | a write |
//! |---|---|
//! | e0 | ends the program; 0 is well |
//! | e1 | the machine may be moved here |
//! | e2 | the PIC asserts the vector written; 0 lets go |
//! | e3 | the PIC asserts a spurious interrupt: the line goes high, and there is no vector |
//! | e4 | a message-signalled interrupt: bits 0 to 15 data, 16 to 23 destination |
//! | e5 | the I/O APIC's pin 0 is routed to the message written as above |
//!
//! Reads from ports 300 to 3ff give bytes that count up from 10 hex; each byte read where no memory is, the low byte of its address.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use umbra_device::Msi;
use umbra_engine::{CpuIo, Kicker, PIN_COUNT, Vm};

use super::program::Io;

/// What is kept of the accesses; a program that makes more is wild.
const RECORDED_MAX: usize = 4096;

/// An access that left the processor, with its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Recorded {
    Out(u16, u8, u32),
    In(u16, u8),
    Write(u64, Vec<u8>),
    Read(u64, u8),
    End(u8),
}

impl From<&Io> for Recorded {
    fn from(io: &Io) -> Self {
        match *io {
            Io::Out(port, size, value) => Self::Out(port, size, value),
            Io::In(port, size) => Self::In(port, size),
            Io::Write(gpa, bytes) => Self::Write(gpa, bytes.to_vec()),
            Io::Read(gpa, len) => Self::Read(gpa, len),
            Io::End(vector) => Self::End(vector),
        }
    }
}

/// Joins neighbouring accesses of memory-mapped registers into one.
pub(super) fn joined(accesses: &[Recorded]) -> Vec<Recorded> {
    let mut out: Vec<Recorded> = Vec::new();
    for access in accesses {
        match (out.last_mut(), access) {
            (Some(Recorded::Write(gpa, bytes)), Recorded::Write(next, more))
                if *gpa + bytes.len() as u64 == *next =>
            {
                bytes.extend(more);
            }
            (Some(Recorded::Read(gpa, len)), Recorded::Read(next, more))
                if *gpa + u64::from(*len) == *next =>
            {
                *len += more;
            }
            _ => out.push(access.clone()),
        }
    }
    out
}

#[derive(Default)]
pub(super) struct Seen {
    pub(super) accesses: Vec<Recorded>,
    pub(super) done: Option<u8>,
    pub(super) marked: bool,
    /// What the PIC asserts.
    line: Option<u8>,
    spurious: bool,
    next_byte: u8,
}

/// The rest of the machine.
pub(super) struct Recorder {
    seen: Mutex<Seen>,
    vm: Mutex<Option<Arc<dyn Vm>>>,
    kickers: Mutex<Vec<Kicker>>,
    /// Whether marks stop the processors.
    moves: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn message(value: u32) -> Msi {
    Msi { address: 0xfee0_0000 | u64::from(value >> 16 & 0xff) << 12, data: value & 0xffff }
}

impl Recorder {
    pub(super) fn new(moves: bool) -> Self {
        let seen = Seen { next_byte: 0x10, ..Seen::default() };
        Self { seen: Mutex::new(seen), vm: Mutex::default(), kickers: Mutex::default(), moves }
    }

    /// Says which machine it is the rest of.
    pub(super) fn connect(&self, vm: &Arc<dyn Vm>, kickers: Vec<Kicker>) {
        *lock(&self.vm) = Some(Arc::clone(vm));
        *lock(&self.kickers) = kickers;
        let seen = self.seen();
        let high = seen.line.is_some() || seen.spurious;
        drop(seen);
        vm.set_external_interrupt(high);
    }

    /// The machine is about to go.
    pub(super) fn disconnect(&self) {
        *lock(&self.vm) = None;
        lock(&self.kickers).clear();
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    pub(super) fn kick(&self) {
        let kickers = lock(&self.kickers).clone();
        kickers.iter().for_each(Kicker::kick);
    }

    fn with_vm(&self, act: impl FnOnce(&dyn Vm)) {
        let vm = lock(&self.vm).clone();
        if let Some(vm) = vm {
            act(&*vm);
        }
    }

    fn record(&self, access: Recorded) {
        let mut seen = self.seen();
        if seen.accesses.len() < RECORDED_MAX {
            seen.accesses.push(access);
        }
    }

    fn command(&self, port: u16, value: u32) {
        match port {
            0xe0 => {
                self.seen().done.get_or_insert(value as u8);
                self.kick();
            }
            0xe1 if self.moves => {
                self.seen().marked = true;
                self.kick();
            }
            0xe2 => {
                self.seen().line = (value as u8 != 0).then_some(value as u8);
                self.with_vm(|vm| vm.set_external_interrupt(value as u8 != 0));
            }
            0xe3 => {
                self.seen().spurious = true;
                self.with_vm(|vm| vm.set_external_interrupt(true));
            }
            0xe4 => self.with_vm(|vm| vm.send(message(value))),
            0xe5 => {
                let mut routes = [None; PIN_COUNT];
                routes[0] = Some(message(value));
                self.with_vm(|vm| vm.set_routes(&routes).expect("routes of one pin"));
            }
            _ => (),
        }
    }
}

impl CpuIo for Recorder {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if !(0x300..0x400).contains(&port) {
            return;
        }
        let mut seen = self.seen();
        for byte in data.iter_mut() {
            *byte = seen.next_byte;
            seen.next_byte = seen.next_byte.wrapping_add(1);
        }
        drop(seen);
        self.record(Recorded::In(port, data.len() as u8));
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        let value = data.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
        if (0x300..0x400).contains(&port) {
            self.record(Recorded::Out(port, data.len() as u8, value));
        } else {
            self.command(port, value);
        }
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        data.iter_mut().zip(gpa..).for_each(|(byte, at)| *byte = at as u8);
        self.record(Recorded::Read(gpa, data.len() as u8));
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.record(Recorded::Write(gpa, data.to_vec()));
    }

    fn external_interrupt(&self) -> Option<u8> {
        let mut seen = self.seen();
        seen.spurious = false;
        let vector = seen.line.take();
        drop(seen);
        self.with_vm(|vm| vm.set_external_interrupt(false));
        vector
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.record(Recorded::End(vector));
    }
}
