//! Doorbells: guest writes that end in an event descriptor (ioeventfd).

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use umbra_engine::{DoorbellAt, Doorbells, EngineError};

use crate::sys;

/// A machine's doorbells.
pub(crate) struct KvmDoorbells(pub(crate) Arc<VmFd>);

impl Doorbells for KvmDoorbells {
    fn attach(
        &self,
        at: DoorbellAt,
        len: u32,
        value: Option<u64>,
        event: BorrowedFd<'_>,
    ) -> Result<(), EngineError> {
        sys::ioeventfd(&self.0, at, len, value, event, true).map_err(EngineError::host("KVM_IOEVENTFD"))
    }

    fn detach(
        &self,
        at: DoorbellAt,
        len: u32,
        value: Option<u64>,
        event: BorrowedFd<'_>,
    ) -> Result<(), EngineError> {
        sys::ioeventfd(&self.0, at, len, value, event, false)
            .map_err(EngineError::host("KVM_IOEVENTFD, deassign"))
    }
}
