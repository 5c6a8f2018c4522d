//! A chain of descriptors that a device works on.

use std::sync::Arc;

use umbra_block::{IoBuf, IoSrc};
use umbra_memory::Memory;

use super::Queue;
use crate::buffer::Segment;

/// A request or buffer of the driver, until it is completed. All of it is RAM; nothing of it is copied before it is read,
/// and the driver may change it at any time.
///
/// A chain that is dropped without being completed is never given back to the driver, as long as it does not reset the device.
pub struct Chain {
    pub(super) queue: Arc<Queue>,
    pub(super) head: u16,
    /// Under which life of the queue it was taken.
    pub(super) epoch: u64,
    pub(super) readable: Vec<Segment>,
    pub(super) writable: Vec<Segment>,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { head, readable, writable, .. } = self;
        f.debug_struct("Chain")
            .field("head", head)
            .field("readable", readable)
            .field("writable", writable)
            .finish_non_exhaustive()
    }
}

impl Chain {
    fn memory(&self) -> &Memory {
        &self.queue.memory
    }

    /// Bytes that the driver wrote for the device.
    pub fn readable_len(&self) -> u64 {
        Segment::total(&self.readable)
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        Segment::total(&self.writable)
    }

    /// Copies from `offset` of what the driver wrote; how many bytes there were.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        for segment in Segment::part(&self.readable, offset, data.len() as u64) {
            let Some(to) = data.get_mut(done..done + segment.len as usize) else { break };
            // It is RAM: it was looked at when the chain was taken.
            if self.memory().read(segment.gpa, to).is_err() {
                break;
            }
            done += to.len();
        }
        done
    }

    /// Copies to `offset` of what the device may write; how many bytes there was room for.
    pub fn write(&self, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        for segment in Segment::part(&self.writable, offset, data.len() as u64) {
            let Some(from) = data.get(done..done + segment.len as usize) else { break };
            if self.memory().write(segment.gpa, from).is_err() {
                break;
            }
            done += from.len();
        }
        done
    }

    /// `len` bytes from `offset` of what the driver wrote, as the source of a write.
    pub fn io_srcs(&self, offset: u64, len: u64) -> Vec<IoSrc<'_>> {
        Segment::part(&self.readable, offset, len).filter_map(|s| s.io_src(self.memory())).collect()
    }

    /// `len` bytes from `offset` of what the device may write, as what a read fills. [`Chain::wrote`] tells of it afterwards.
    pub fn io_bufs(&self, offset: u64, len: u64) -> Vec<IoBuf<'_>> {
        Segment::part(&self.writable, offset, len).filter_map(|s| s.io_buf(self.memory())).collect()
    }

    /// Notes that `len` bytes from `offset` of what the device may write were written through [`Chain::io_bufs`].
    pub fn wrote(&self, offset: u64, len: u64) {
        Segment::part(&self.writable, offset, len).for_each(|segment| segment.wrote(self.memory()));
    }

    /// Gives it back to the driver, with how many bytes of it the device wrote, from the first on.
    pub fn complete(self, written: u32) {
        self.queue.complete(&self, written);
        // Dropping it is what makes it one less in flight.
    }

    /// Says that it makes no sense, not even enough to tell the driver so in it: the device needs a reset.
    pub fn refuse(self) {
        self.queue.refuse(&self);
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.queue.landed();
    }
}
