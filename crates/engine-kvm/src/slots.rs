//! Guest memory as KVM's memory slots.

use std::io;
use std::sync::Weak;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use umbra_memory::{Observer, Region, RegionKind};

use crate::sys;

/// Keeps KVM's slots in step with the machine's memory. It does not keep the machine alive: memory outlives it.
pub(crate) struct Slots {
    pub(crate) vm: Weak<VmFd>,
    pub(crate) readonly: bool,
}

impl Slots {
    fn set(&self, slot: u32, region: &Region, len: u64) -> io::Result<()> {
        let Some(vm) = self.vm.upgrade() else { return Ok(()) };
        let flags = match region.kind() {
            RegionKind::Ram => 0,
            RegionKind::Rom if self.readonly => KVM_MEM_READONLY,
            RegionKind::Rom => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "this KVM has no read-only memory"));
            }
        };
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.gpa(),
            memory_size: len,
            userspace_addr: region.host() as u64,
        };
        // SAFETY: a region's mapping lives as long as the region, whose end `unmapped` tells of; and everything that can run the guest
        // (`Shared`) keeps the memory that owns it.
        unsafe { sys::set_memory(&vm, region) }
    }
}

impl Observer for Slots {
    fn mapped(&self, slot: u32, region: &Region) -> io::Result<()> {
        self.set(slot, region, region.len())
    }

    fn unmapped(&self, slot: u32, region: &Region) {
        // Removing a slot that exists does not fail; were it to, the slot would give the guest EFAULT, not foreign memory, until the
        // machine ends, which is now.
        let _ = self.set(slot, region, 0);
    }
}
