//! KVM calls that `kvm-ioctls` has not, or not in the shape needed here.
//!
//! Authority: Linux' documentation of the KVM API. `VcpuFd::run` is not used because it wants the only reference to the
//! vCPU, whose descriptor the machine needs as well, to stop its time; what a run leaves behind is read by [`crate::page`].

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVM_IRQFD_FLAG_DEASSIGN, KVMIO, kvm_device_attr, kvm_interrupt, kvm_ioeventfd,
    kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio, kvm_irqfd,
    kvm_msr_entry, kvm_signal_mask, kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use umbra_engine::DoorbellAt;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr};

ioctl_io_nr!(KVM_RUN, KVMIO, 0x80);
ioctl_iow_nr!(KVM_IRQFD, KVMIO, 0x76, kvm_irqfd);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);
ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Bytes of `struct kvm_xsave` without its flexible end: what the calls without a size transfer.
pub(crate) const XSAVE_LEN_MIN: usize = 4096;

fn check(ret: libc::c_int) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Runs the vCPU until it exits.
pub(crate) fn run(vcpu: &VcpuFd) -> io::Result<()> {
    // SAFETY: a vCPU descriptor; the call takes no pointer. What the guest may write is its own memory.
    check(unsafe { ioctl(vcpu, KVM_RUN()) })
}

/// Gives the vCPU the vector of an external interrupt, to be taken when it next can.
pub(crate) fn interrupt(vcpu: &VcpuFd, vector: u8) -> io::Result<()> {
    let arg = kvm_interrupt { irq: vector.into() };
    // SAFETY: a vCPU descriptor and the structure that the call reads.
    check(unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &arg) })
}

/// Signals that are blocked while the vCPU runs, by number less one; `None` for those that the thread blocks.
pub(crate) fn set_signal_mask(vcpu: &VcpuFd, blocked: Option<u64>) -> io::Result<()> {
    // `struct kvm_signal_mask`: the length of the set, then the set, unaligned.
    let mut arg = [0u8; 12];
    arg[..4].copy_from_slice(&8u32.to_ne_bytes());
    arg[4..].copy_from_slice(&blocked.unwrap_or(0).to_ne_bytes());
    let pointer = if blocked.is_some() { arg.as_ptr() } else { std::ptr::null() };
    // SAFETY: a vCPU descriptor; the call reads the 12 bytes, or nothing if the pointer is null.
    check(unsafe { ioctl_with_ptr(vcpu, KVM_SET_SIGNAL_MASK(), pointer) })
}

/// Gives the vCPU `banks` banks of machine checks, all on, as at power-on (without the call they are off).
pub(crate) fn set_machine_check_banks(vcpu: &VcpuFd, banks: u64) -> io::Result<()> {
    // SAFETY: a vCPU descriptor and the number that the call reads: IA32_MCG_CAP.
    check(unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &banks) })
}

/// Reads the vCPU's XSAVE image into `image`, which has as many bytes as the machine's images have, and at least [`XSAVE_LEN_MIN`].
pub(crate) fn get_xsave(vcpu: &VcpuFd, image: &mut [u8]) -> io::Result<()> {
    assert!(image.len() >= XSAVE_LEN_MIN);
    let request = if image.len() == XSAVE_LEN_MIN { KVM_GET_XSAVE() } else { KVM_GET_XSAVE2() };
    // SAFETY: a vCPU descriptor; the call writes the size that KVM_CAP_XSAVE2 told, which is the buffer's.
    check(unsafe { ioctl_with_mut_ptr(vcpu, request, image.as_mut_ptr()) })
}

/// Replaces the vCPU's XSAVE image; sizes as for [`get_xsave`].
pub(crate) fn set_xsave(vcpu: &VcpuFd, image: &[u8]) -> io::Result<()> {
    assert!(image.len() >= XSAVE_LEN_MIN);
    // SAFETY: a vCPU descriptor; the call reads the size that KVM_CAP_XSAVE2 told, which is the buffer's.
    check(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), image.as_ptr()) })
}

/// Reads a 64-bit attribute of the vCPU.
pub(crate) fn get_attribute(vcpu: &VcpuFd, group: u32, attr: u32) -> io::Result<u64> {
    let mut value = 0u64;
    let arg = kvm_device_attr { flags: 0, group, attr: attr.into(), addr: &raw mut value as u64 };
    // SAFETY: a vCPU descriptor; `addr` is a `u64` that lives through the call, the size of every attribute used here.
    check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &arg) })?;
    Ok(value)
}

/// Writes a 64-bit attribute of the vCPU.
pub(crate) fn set_attribute(vcpu: &VcpuFd, group: u32, attr: u32, value: u64) -> io::Result<()> {
    let arg = kvm_device_attr { flags: 0, group, attr: attr.into(), addr: &raw const value as u64 };
    // SAFETY: as for `get_attribute`; the call only reads.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &arg) })
}

/// The value of one MSR; `None` if the vCPU has it not.
pub(crate) fn get_msr(vcpu: &VcpuFd, index: u32) -> io::Result<Option<u64>> {
    let entry = kvm_msr_entry { index, ..kvm_msr_entry::default() };
    let mut list = kvm_bindings::Msrs::from_entries(&[entry]).map_err(io::Error::other)?;
    let read = vcpu.get_msrs(&mut list)?;
    Ok(list.as_slice().first().filter(|_| read == 1).map(|e| e.data))
}

/// Writes one MSR. Whether the vCPU took it.
pub(crate) fn set_msr(vcpu: &VcpuFd, index: u32, data: u64) -> io::Result<bool> {
    let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    let list = kvm_bindings::Msrs::from_entries(&[entry]).map_err(io::Error::other)?;
    Ok(vcpu.set_msrs(&list)? == 1)
}

/// Maps guest physical memory, or unmaps it if its size is 0.
///
/// # Safety
/// The host range must stay mapped, and be nothing but guest memory, until it is unmapped here or the machine is gone.
pub(crate) unsafe fn set_memory(vm: &VmFd, region: kvm_userspace_memory_region) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { vm.set_user_memory_region(region) }.map_err(io::Error::from)
}

/// Joins (or parts) an event descriptor and interrupt `gsi` of the routing table.
pub(crate) fn irqfd(vm: &VmFd, event: BorrowedFd<'_>, gsi: u32, attach: bool) -> io::Result<()> {
    let flags = if attach { 0 } else { KVM_IRQFD_FLAG_DEASSIGN };
    let arg = kvm_irqfd { fd: event.as_raw_fd().cast_unsigned(), gsi, flags, ..kvm_irqfd::default() };
    // SAFETY: a machine's descriptor and the structure that the call reads.
    check(unsafe { ioctl_with_ref(vm, KVM_IRQFD(), &arg) })
}

/// Joins (or parts) guest writes and an event descriptor.
pub(crate) fn ioeventfd(
    vm: &VmFd,
    at: DoorbellAt,
    len: u32,
    value: Option<u64>,
    event: BorrowedFd<'_>,
    attach: bool,
) -> io::Result<()> {
    let (addr, pio) = match at {
        DoorbellAt::Port(p) => (p.into(), 1 << kvm_ioeventfd_flag_nr_pio),
        DoorbellAt::Mmio(gpa) => (gpa, 0),
    };
    let datamatch = value.map_or(0, |_| 1 << kvm_ioeventfd_flag_nr_datamatch);
    let deassign = if attach { 0 } else { 1 << kvm_ioeventfd_flag_nr_deassign };
    let arg = kvm_ioeventfd {
        datamatch: value.unwrap_or(0),
        addr,
        len,
        fd: event.as_raw_fd(),
        flags: pio | datamatch | deassign,
        ..kvm_ioeventfd::default()
    };
    // SAFETY: a machine's descriptor and the structure that the call reads.
    check(unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), &arg) })
}
