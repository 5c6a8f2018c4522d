//! From RIP to a block.

use umbra_x86::segment::sreg;

use super::cache::{Block, Link};
use crate::cpu::Cpu;
use crate::fault::{Exec, Fault};
use crate::mmu::Fetch;
use crate::operand::is_canonical;

/// What kind of block is looked up; bits of its key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Want {
    /// As many instructions as there are.
    #[default]
    All = 0,
    /// One instruction alone.
    Alone = 1 << 5,
    /// One whose translation has small windows, or none; see `translate::window`.
    Small = 1 << 6,
    Plain = 1 << 7,
}

impl Block {
    /// What its translation has for windows.
    pub(crate) fn windows(&self) -> Want {
        let has = |want: Want| self.key & want as u64 != 0;
        match () {
            () if has(Want::Small) => Want::Small,
            () if has(Want::Plain) => Want::Plain,
            () => Want::All,
        }
    }
}

impl Cpu {
    /// The linear address of `rip`.
    pub(super) fn linear_rip(&self) -> u64 {
        if self.mode.code == 64 {
            self.rip
        } else {
            self.seg[sreg::CS].base.wrapping_add(self.rip) & 0xffff_ffff
        }
    }

    /// The block at RIP.
    ///
    /// # Errors
    /// What fetching its first instruction raises.
    #[inline(always)]
    pub(crate) fn find_block(&mut self) -> Exec<*mut Block> {
        if let Some(block) = self.cache.jump(self.rip, self.fast.key) {
            // SAFETY: blocks found by linear address are in the arena until it is emptied, which forgets them.
            if unsafe { (*block).is_current() } {
                return Ok(block);
            }
        }
        self.look_up_block(Want::All)
    }

    /// As [`Cpu::find_block`], for any kind.
    #[inline(never)]
    pub(crate) fn look_up_block(&mut self, want: Want) -> Exec<*mut Block> {
        let linear = self.linear_rip();
        if self.mode.code == 64 && !is_canonical(linear) || self.rip > self.fast.rip_max {
            return Err(Fault::GP0);
        }
        let fetch = self.fetch(linear)?;
        self.tlb.note_code(linear);
        if fetch.host.is_null() {
            return self.build_from_device(linear);
        }
        let key = fetch.gpa << 8 | u64::from(self.mode.block_key()) | want as u64;
        let found = self.cache.find(key);
        // SAFETY: `find` gives blocks of the arena, which nothing here empties.
        let usable = found.filter(|block| unsafe { self.is_usable(&**block, linear) });
        let block = match usable {
            Some(block) => block,
            None => self.build(linear, fetch, key, want == Want::Alone)?,
        };
        // SAFETY: as above, or `build` made it just now.
        if unsafe { (*block).lasting } && want == Want::All {
            self.cache.set_jump(Link { rip: self.rip, key: self.fast.key, block });
        }
        Ok(block)
    }

    /// Whether a block of the right physical address is right here as well: within the segment, and its second page the same one.
    fn is_usable(&mut self, block: &Block, linear: u64) -> bool {
        if self.rip.saturating_add(u64::from(block.len) - 1) > self.fast.rip_max {
            return false;
        }
        let Some(second) = block.second else { return true };
        let next = (linear & !0xfff).wrapping_add(0x1000);
        matches!(self.fetch(next), Ok(Fetch { gpa, .. }) if gpa == second.gpa)
    }
}
