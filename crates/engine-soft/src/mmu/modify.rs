//! Read-modify-write accesses: one address at which a native instruction reads and writes.
//!
//! In RAM within a page the address is guest memory itself, so a locked instruction there is the guest's own atomic
//! operation. Elsewhere it is a buffer. A locked access that crosses a page is made while no other processor executes guest code.

use super::access::to_page_end;
use crate::cpu::Cpu;
use crate::fault::Exec;

/// A read-modify-write access in progress.
#[derive(Debug, Clone, Copy)]
pub(super) struct Modify {
    buffer: [u8; 16],
    linear: u64,
    len: usize,
    /// Where it is made, if it is made in guest memory.
    gpa: Option<u64>,
    /// The world is stopped for it.
    stopped: bool,
}

impl Modify {
    pub(super) const NONE: Self = Self { buffer: [0; 16], linear: 0, len: 0, gpa: None, stopped: false };
}

impl Cpu {
    /// Begins a read-modify-write access of up to 16 bytes at the current privilege: where to make it by one native instruction, after which
    /// [`Cpu::modify_end`] follows with nothing in between.
    pub(crate) fn modify_begin(&mut self, linear: u64, len: usize, lock: bool) -> Exec<*mut u8> {
        let class = self.class();
        self.check_word(linear, len, true, class)?;
        let linear = self.wrap(linear);
        let crosses = len > to_page_end(linear);
        if !crosses {
            let page = self.page(linear, class, true)?;
            if !page.host.is_null() && !page.rom {
                self.tlb.modify = Modify { gpa: Some(page.gpa), len, ..Modify::NONE };
                return Ok(page.host);
            }
        }
        let stopped = lock && crosses && !self.fast.stopped_world;
        if stopped {
            self.stop_world();
        }
        let mut buffer = [0; 16];
        let checked = self.check_pages(linear, len, class, true);
        let loaded = checked.and_then(|()| self.load_pages(linear, &mut buffer[..len], class));
        if let Err(fault) = loaded {
            if stopped {
                self.resume_world();
            }
            return Err(fault);
        }
        self.tlb.modify = Modify { buffer, linear, len, gpa: None, stopped };
        Ok(self.tlb.modify.buffer.as_mut_ptr())
    }

    /// Ends what [`Cpu::modify_begin`] began. Cannot fault: everything has been checked.
    pub(crate) fn modify_end(&mut self) {
        let modify = self.tlb.modify;
        if let Some(gpa) = modify.gpa {
            self.after_write(gpa, modify.len as u64);
            return;
        }
        // A page that another processor takes away between the two halves loses the write, as if it had come a moment later.
        let _ = self.store_pages(modify.linear, &modify.buffer[..modify.len], self.class());
        if modify.stopped {
            self.resume_world();
        }
    }
}
