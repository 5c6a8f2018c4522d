//! The page that a vCPU shares with the kernel (`struct kvm_run`): why it left the guest, and what it is to do next.
//!
//! It is a mapping of our own beside that of `kvm-ioctls`, so that nobody holds a Rust reference to bytes that a signal handler and
//! the kernel change. All access is through raw pointers; the kernel touches the page only inside KVM_RUN.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    kvm_run,
};
use kvm_ioctls::VcpuFd;

/// Why the vCPU left the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Port accesses of one instruction: `count` times `size` bytes, which are in the page.
    Port { port: u16, size: usize, count: usize, read: bool },
    /// A read of `len` bytes at `gpa`.
    MmioRead { gpa: u64, len: usize },
    /// A write of the first `len` bytes of `data` at `gpa`.
    MmioWrite { gpa: u64, len: usize, data: [u8; 8] },
    /// It can take an external interrupt now, as was asked for.
    InterruptWindow,
    /// The end of a level-triggered interrupt.
    EndOfInterrupt(u8),
    /// A triple fault.
    Shutdown,
    /// A debug condition.
    Debug,
    /// Nothing: a signal.
    Interrupted,
    /// The processor refused the guest's state; its reason.
    FailEntry(u64),
    /// KVM met what it cannot do.
    Internal { suberror: u32, data: [u64; 4], instruction: Option<([u8; 15], u8)> },
    /// The guest, or something that stands for it, reports an event.
    SystemEvent(u32),
    /// Guest memory that the host cannot provide.
    MemoryFault { gpa: u64, len: u64 },
    /// Something that this engine never asked for.
    Other(u32),
}

/// A vCPU's shared page (and those after it, with the data of port accesses).
#[derive(Debug)]
pub(crate) struct RunPage {
    base: NonNull<kvm_run>,
    len: usize,
}

// SAFETY: a mapping that any thread may use; `&self` methods touch only single bytes, atomically, or bytes that only the kernel writes,
// inside KVM_RUN, which the owner of the vCPU calls.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the page of `vcpu`; `len` is what KVM_GET_VCPU_MMAP_SIZE told.
    pub(crate) fn map(vcpu: &VcpuFd, len: usize) -> io::Result<Self> {
        if len < size_of::<kvm_run>() {
            return Err(io::Error::other("KVM's run page is too small"));
        }
        // SAFETY: a fresh shared mapping of the vCPU's descriptor at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { base, len })
    }

    fn run(&self) -> *mut kvm_run {
        self.base.as_ptr()
    }

    /// The byte that makes KVM_RUN return at once, after it has completed what the last exit left open.
    pub(crate) fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: a byte of the mapping, which lives as long as `self`; it is only ever accessed atomically here, and read by the kernel.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run()).immediate_exit) }
    }

    /// Sets or clears [`RunPage::immediate_exit`].
    pub(crate) fn set_immediate_exit(&self, on: bool) {
        self.immediate_exit().store(on.into(), Ordering::SeqCst);
    }

    /// Asks for an exit as soon as an external interrupt can be taken.
    pub(crate) fn request_window(&self, on: bool) {
        // SAFETY: a byte of the mapping that the kernel only reads.
        unsafe { (&raw mut (*self.run()).request_interrupt_window).write_volatile(on.into()) };
    }

    /// Whether an external interrupt could be taken when KVM_RUN last returned.
    pub(crate) fn is_ready_for_interrupt(&self) -> bool {
        // SAFETY: a byte of the mapping.
        unsafe { (&raw const (*self.run()).ready_for_interrupt_injection).read_volatile() != 0 }
    }

    /// Why KVM_RUN returned.
    pub(crate) fn exit(&self) -> Exit {
        let run = self.run();
        // SAFETY: of the mapping, and nobody writes it outside KVM_RUN.
        let reason = unsafe { (&raw const (*run).exit_reason).read_volatile() };
        // SAFETY: each arm reads the member of the union that `reason` says is valid; all members are plain integers.
        unsafe {
            let u = &raw const (*run).__bindgen_anon_1;
            match reason {
                KVM_EXIT_IO => {
                    let io = (*u).io;
                    let read = u32::from(io.direction) == KVM_EXIT_IO_IN;
                    Exit::Port { port: io.port, size: io.size.into(), count: io.count as usize, read }
                }
                KVM_EXIT_MMIO => {
                    let m = (*u).mmio;
                    let len = (m.len as usize).min(m.data.len());
                    match m.is_write {
                        0 => Exit::MmioRead { gpa: m.phys_addr, len },
                        _ => Exit::MmioWrite { gpa: m.phys_addr, len, data: m.data },
                    }
                }
                KVM_EXIT_IRQ_WINDOW_OPEN => Exit::InterruptWindow,
                KVM_EXIT_IOAPIC_EOI => Exit::EndOfInterrupt((*u).eoi.vector),
                KVM_EXIT_SHUTDOWN => Exit::Shutdown,
                KVM_EXIT_DEBUG => Exit::Debug,
                KVM_EXIT_INTR => Exit::Interrupted,
                KVM_EXIT_FAIL_ENTRY => Exit::FailEntry((*u).fail_entry.hardware_entry_failure_reason),
                KVM_EXIT_INTERNAL_ERROR => self.internal_error(),
                KVM_EXIT_SYSTEM_EVENT => Exit::SystemEvent((*u).system_event.type_),
                KVM_EXIT_MEMORY_FAULT => {
                    let f = (*u).memory_fault;
                    Exit::MemoryFault { gpa: f.gpa, len: f.size }
                }
                other => Exit::Other(other),
            }
        }
    }

    fn internal_error(&self) -> Exit {
        // SAFETY: called for an internal error, whose two shapes share their first members; plain integers.
        let (error, emulation) = unsafe {
            let u = &raw const (*self.run()).__bindgen_anon_1;
            ((*u).internal, (*u).emulation_failure)
        };
        let has_bytes = error.suberror == KVM_INTERNAL_ERROR_EMULATION
            && error.ndata > 0
            && emulation.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
        let instruction = has_bytes.then(|| {
            // SAFETY: the flag says that the bytes are there; plain integers.
            let i = unsafe { emulation.__bindgen_anon_1.__bindgen_anon_1 };
            (i.insn_bytes, i.insn_size.min(15))
        });
        let mut data = [0; 4];
        let given = (error.ndata as usize).min(data.len());
        data[..given].copy_from_slice(&error.data[..given]);
        Exit::Internal { suberror: error.suberror, data, instruction }
    }

    /// The bytes of the port accesses that [`Exit::Port`] told of. `None` if the kernel told nonsense.
    pub(crate) fn port_data(&mut self) -> Option<&mut [u8]> {
        // SAFETY: the caller has just seen a port exit, and the member is plain integers.
        let io = unsafe { (*self.run()).__bindgen_anon_1.io };
        let len = usize::from(io.size).checked_mul(io.count as usize)?;
        let offset = usize::try_from(io.data_offset).ok()?;
        let end = offset.checked_add(len)?;
        (end <= self.len && offset >= size_of::<kvm_run>().min(self.len)).then(|| {
            // SAFETY: within the mapping and behind the structure, so that no other method touches it; `&mut self` keeps KVM_RUN away.
            unsafe { std::slice::from_raw_parts_mut(self.run().cast::<u8>().add(offset), len) }
        })
    }

    /// Answers the read that [`Exit::MmioRead`] told of.
    pub(crate) fn answer_mmio(&mut self, data: [u8; 8]) {
        // SAFETY: a member of the union in the mapping; `&mut self` keeps KVM_RUN away.
        unsafe { (*self.run()).__bindgen_anon_1.mmio.data = data };
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
