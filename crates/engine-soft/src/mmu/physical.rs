//! Guest memory as the page walk sees it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use umbra_memory::{Memory, RegionKind};
use umbra_x86::paging::Physical;

/// Guest memory, for page walks.
pub(crate) struct Tables<'a>(pub(crate) &'a Memory);

impl Tables<'_> {
    /// Where an entry of `len` bytes is; the walk aligns entries to their size.
    fn host(&self, gpa: u64, len: u64) -> Option<*mut u8> {
        debug_assert!(gpa.is_multiple_of(len));
        self.0.host_address(gpa, len)
    }

    /// Whether writes have an effect.
    fn is_ram(&self, gpa: u64) -> bool {
        self.0.region(gpa).is_some_and(|(region, _)| region.kind() == RegionKind::Ram)
    }

    fn wrote(&self, gpa: u64, len: u64) {
        if let Some((region, tracker)) = self.0.region(gpa) {
            tracker.host_wrote(gpa - region.gpa(), len);
        }
    }
}

impl Physical for Tables<'_> {
    fn read_u32(&self, gpa: u64) -> u32 {
        // SAFETY: a live address of guest memory, aligned, accessed atomically by everybody.
        self.host(gpa, 4).map_or(0, |p| unsafe { AtomicU32::from_ptr(p.cast()) }.load(Ordering::Relaxed))
    }

    fn read_u64(&self, gpa: u64) -> u64 {
        // SAFETY: as above.
        self.host(gpa, 8).map_or(0, |p| unsafe { AtomicU64::from_ptr(p.cast()) }.load(Ordering::Relaxed))
    }

    fn replace_u32(&self, gpa: u64, old: u32, new: u32) -> bool {
        let Some(p) = self.host(gpa, 4).filter(|_| self.is_ram(gpa)) else { return true };
        // SAFETY: as above.
        let entry = unsafe { AtomicU32::from_ptr(p.cast()) };
        let done = entry.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        self.wrote(gpa, 4);
        done
    }

    fn replace_u64(&self, gpa: u64, old: u64, new: u64) -> bool {
        let Some(p) = self.host(gpa, 8).filter(|_| self.is_ram(gpa)) else { return true };
        // SAFETY: as above.
        let entry = unsafe { AtomicU64::from_ptr(p.cast()) };
        let done = entry.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok();
        self.wrote(gpa, 8);
        done
    }
}
