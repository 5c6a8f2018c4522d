//! The loop that runs a processor and turns KVM's exits into calls of [`CpuIo`].
//!
//! The loop leaves only for a [`Halt`]. Halting and waiting for SIPI happen in the kernel, as the local APIC is there.

use std::io;
use std::sync::Arc;

use umbra_engine::{CpuIo, EngineError, Halt};

use crate::kick::SignalWaits;
use crate::page::Exit;
use crate::report;
use crate::sys;
use crate::vcpu::KvmVcpu;

/// What is counted, by cause. `exits` is how often KVM_RUN returned.
pub(crate) const COUNTER_NAMES: &[&str] = &[
    "exits",
    "port_reads",
    "port_writes",
    "mmio_reads",
    "mmio_writes",
    "interrupt_windows",
    "ends_of_interrupt",
    "external_interrupts",
    "signals",
];
const EXITS: usize = 0;
const PORT_READS: usize = 1;
const PORT_WRITES: usize = 2;
const MMIO_READS: usize = 3;
const MMIO_WRITES: usize = 4;
const INTERRUPT_WINDOWS: usize = 5;
const ENDS_OF_INTERRUPT: usize = 6;
const EXTERNAL_INTERRUPTS: usize = 7;
const SIGNALS: usize = 8;

/// How often an access may be continued by another before it ends: KVM returns to the guest after 1,024 elements of a string instruction,
/// each of which may read and write in two parts.
const ACCESS_PARTS_MAX: usize = 1 << 14;

/// Two entries deliver a vector; two more, for exits that come first.
const DELIVERY_ENTRIES: usize = 4;

impl KvmVcpu {
    /// Runs until something above must decide.
    pub(crate) fn run_until_halt(&mut self, io: &dyn CpuIo) -> Halt {
        let kick = Arc::clone(&self.kick);
        // SAFETY: `self` is borrowed, and its page with it, until after the result is dropped.
        let _entered = unsafe { kick.enter(&self.page) };
        self.run_loop(io).unwrap_or_else(Halt::Error)
    }

    fn run_loop(&mut self, io: &dyn CpuIo) -> Result<Halt, EngineError> {
        loop {
            // This order loses no kick; see `crate::kick`.
            self.page.set_immediate_exit(false);
            if self.kick.take() {
                let halt = self.settle(io)?;
                let halt = if halt.is_none() { self.deliver_acknowledged(io)? } else { halt };
                return Ok(halt.unwrap_or(Halt::Stopped));
            }
            if self.must_settle_for_interrupt() {
                if let Some(halt) = self.settle(io)? {
                    return Ok(halt);
                }
                continue;
            }
            self.offer_external_interrupt(io)?;
            if let Some(halt) = self.enter(io)? {
                return Ok(halt);
            }
        }
    }

    /// Enters the guest once.
    fn enter(&mut self, io: &dyn CpuIo) -> Result<Option<Halt>, EngineError> {
        self.counters.add(EXITS, 1);
        let result = sys::run(&self.fd);
        self.is_page_current = true;
        self.is_access_open = false;
        match result {
            Ok(()) => self.handle(self.page.exit(), io),
            // EAGAIN: a processor that waits for SIPI was woken.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
                self.counters.add(SIGNALS, 1);
                Ok(None)
            }
            Err(e) => Err(report::run_failed(self, &e)),
        }
    }

    /// Completes the access that the last exit left open, without executing anything more; the page is current afterwards.
    fn settle(&mut self, io: &dyn CpuIo) -> Result<Option<Halt>, EngineError> {
        for _ in 0..ACCESS_PARTS_MAX {
            if self.is_page_current && !self.is_access_open {
                return Ok(None);
            }
            self.page.set_immediate_exit(true);
            if let Some(halt) = self.enter(io)? {
                return Ok(Some(halt));
            }
        }
        Err(EngineError::Internal("KVM does not come to the end of an access".into()))
    }

    /// Whether the page must be brought up to date before the PIC's interrupt can be offered: nothing has run yet, or the interrupt could be taken
    /// but an instruction is half done.
    fn must_settle_for_interrupt(&self) -> bool {
        self.id == 0
            && self.shared.external.is_high()
            && (!self.is_page_current || (self.is_access_open && self.page.is_ready_for_interrupt()))
    }

    /// Gives KVM the PIC's interrupt, if processor 0 can take one now, or else asks for an exit when it can.
    fn offer_external_interrupt(&mut self, io: &dyn CpuIo) -> Result<(), EngineError> {
        if self.id != 0 {
            return Ok(());
        }
        let line = &self.shared.external;
        if !line.is_high() || !self.page.is_ready_for_interrupt() {
            self.page.request_window(line.is_high());
            return Ok(());
        }
        let vector = io.external_interrupt();
        if let Some(vector) = vector {
            sys::interrupt(&self.fd, vector).map_err(EngineError::host("KVM_INTERRUPT"))?;
            self.acknowledged = Some(vector);
            self.counters.add(EXTERNAL_INTERRUPTS, 1);
        }
        // Another may wait behind this one. A line that is high without a vector is a PIC's mistake: it must not spin here.
        self.page.request_window(vector.is_some() && line.is_high());
        Ok(())
    }

    /// Makes KVM deliver a PIC's vector that it was given: until then it shows it nowhere, and nothing could take it away. A halted processor
    /// is woken by one entry and gets the vector in the next.
    fn deliver_acknowledged(&mut self, io: &dyn CpuIo) -> Result<Option<Halt>, EngineError> {
        if self.acknowledged.is_none() {
            return Ok(None);
        }
        let fd = Arc::clone(&self.fd);
        let _waits = SignalWaits::new(&fd).map_err(EngineError::host("KVM_SET_SIGNAL_MASK"))?;
        self.page.request_window(false);
        for _ in 0..DELIVERY_ENTRIES {
            self.page.set_immediate_exit(false);
            if let Some(halt) = self.enter(io)? {
                return Ok(Some(halt));
            }
        }
        self.acknowledged = None;
        Ok(None)
    }

    /// Makes KVM turn a timer that has gone off since the last exit into an interrupt that waits, without executing anything: KVM does so only
    /// on an entry, and until then no state shows it.
    pub(crate) fn collect_timer(&mut self) -> Result<(), EngineError> {
        let fd = Arc::clone(&self.fd);
        let _waits = SignalWaits::new(&fd).map_err(EngineError::host("KVM_SET_SIGNAL_MASK"))?;
        self.page.set_immediate_exit(false);
        self.page.request_window(false);
        match sys::run(&self.fd) {
            Ok(()) if matches!(self.page.exit(), Exit::Interrupted) => Ok(()),
            Ok(()) => Err(report::unexpected_exit(self, self.page.exit())),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => Ok(()),
            Err(e) => Err(report::run_failed(self, &e)),
        }
    }

    fn handle(&mut self, exit: Exit, io: &dyn CpuIo) -> Result<Option<Halt>, EngineError> {
        if !matches!(exit, Exit::Interrupted | Exit::EndOfInterrupt(_)) {
            // KVM delivers what was acknowledged before anything else in the guest happens.
            self.acknowledged = None;
        }
        match exit {
            Exit::Port { port, size, count, read } => self.port(port, size, count, read, io)?,
            Exit::MmioRead { gpa, len } => {
                let mut data = [0; 8];
                io.mmio_read(gpa, &mut data[..len]);
                self.page.answer_mmio(data);
                self.is_access_open = true;
                self.counters.add(MMIO_READS, 1);
            }
            Exit::MmioWrite { gpa, len, data } => {
                self.is_access_open = true;
                io.mmio_write(gpa, &data[..len]);
                self.counters.add(MMIO_WRITES, 1);
            }
            Exit::InterruptWindow => self.counters.add(INTERRUPT_WINDOWS, 1),
            Exit::EndOfInterrupt(vector) => {
                self.counters.add(ENDS_OF_INTERRUPT, 1);
                io.end_of_interrupt(vector);
            }
            Exit::Interrupted => self.counters.add(SIGNALS, 1),
            Exit::Shutdown => return Ok(Some(Halt::TripleFault)),
            Exit::Debug => return Ok(Some(Halt::Debug)),
            Exit::FailEntry(_)
            | Exit::Internal { .. }
            | Exit::SystemEvent(_)
            | Exit::MemoryFault { .. }
            | Exit::Other(_) => return Err(report::unexpected_exit(self, exit)),
        }
        Ok(None)
    }

    fn port(
        &mut self,
        port: u16,
        size: usize,
        count: usize,
        read: bool,
        io: &dyn CpuIo,
    ) -> Result<(), EngineError> {
        self.is_access_open = true;
        let data = self.page.port_data().filter(|_| matches!(size, 1 | 2 | 4));
        let Some(data) = data else {
            return Err(EngineError::Internal(format!("KVM tells of {count} port accesses of {size} bytes")));
        };
        for element in data.chunks_exact_mut(size) {
            if read {
                io.port_read(port, element);
            } else {
                io.port_write(port, element);
            }
        }
        self.counters.add(if read { PORT_READS } else { PORT_WRITES }, count as u64);
        Ok(())
    }
}

/// Whether a failure of KVM_RUN tells of guest memory that the host cannot provide.
pub(crate) fn is_memory_fault(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EHWPOISON))
}
