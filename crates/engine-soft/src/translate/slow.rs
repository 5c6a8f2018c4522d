//! What translations call: a TLB fill, vector registers, or the interpreter for one instruction.

use super::Translator;
use super::site::{INTERPRETED, Kind, LOOKED_UP, Site};
use crate::cpu::Cpu;
use crate::decode::{Block, Want};
use crate::exec::Exit;
use crate::fault::Fault;
use crate::mmu::{self, Class, NO_CONTEXT};
use crate::operand::is_canonical;
use crate::vm::{Activity, count};

/// The slow path of a site. For an access, `linear` is the address that the TLB was asked for. Gives the host's address to go on at, or 0 to leave the
/// translation, with `Fast::exit` set.
///
/// # Safety
/// `enter::slow` calls it, with the state block stored.
pub(super) unsafe extern "sysv64" fn slow(cpu: *mut Cpu, number: u32, linear: u64) -> usize {
    // SAFETY: while a translation runs only it uses the state block, and it waits for this call.
    let cpu = unsafe { &mut *cpu };
    cpu.turn_to(Activity::Miss);
    let to = cpu.take_slow_path(number, linear);
    cpu.turn_to(Activity::Translated);
    to
}

impl Cpu {
    fn take_slow_path(&mut self, number: u32, linear: u64) -> usize {
        // For those who sample what this is about.
        self.fast.site = number;
        let number = number as usize;
        let site = self.translator.sites[number];
        self.rip = self.fast.page | u64::from(site.offset);
        match site.kind {
            Kind::Access { write } if self.fill(linear, write, true) => {
                return self.translator.address(site.at);
            }
            Kind::Window { write } => {
                let there = self.fill(linear, write, false);
                return self.translator.address(if there { site.at } else { site.resume });
            }
            Kind::Border if self.look_beyond(site.resume as usize) => {
                return self.translator.address(site.at);
            }
            Kind::Vector(bit) => match self.wanted_vectors(bit) {
                Ok(live) => {
                    self.fast.wanted = live;
                    self.keep_vectors();
                    return self.translator.address(site.at);
                }
                Err(fault) => {
                    self.before_fault(fault);
                    return self.leave_with(Exit::Fault, Some(fault));
                }
            },
            _ => {}
        }
        self.interpret(number, site)
    }
}

impl Translator {
    fn address(&self, offset: u32) -> usize {
        self.area.address_of(offset as usize) as usize
    }
}

impl Cpu {
    /// Fills the TLB for an access. Whether asking again will find it. A write that is not `certain` sets no dirty flag.
    fn fill(&mut self, linear: u64, write: bool, certain: bool) -> bool {
        if self.fast.context == NO_CONTEXT || !is_canonical(linear) {
            return false;
        }
        let tag = mmu::tag(linear, self.fast.context);
        let asked = self.tlb.entry_of(self.fast.tlb_base, linear);
        // SAFETY: it is the address of an entry of this processor's TLB.
        let has = || unsafe { tag == if write { (*asked).write } else { (*asked).read } };
        if has() {
            // The page of the first byte is there: the last byte is on another.
            return false;
        }
        let class = self.class();
        debug_assert!(class as usize <= Class::SupervisorAc as usize);
        if self.mode.code != 64 && linear > 0xffff_ffff {
            return false;
        }
        let may = certain || !write || self.is_dirty(linear, class);
        may && self.page(linear, class, write).is_ok() && has()
    }

    fn leave_with(&mut self, exit: Exit, fault: Option<Fault>) -> usize {
        if let Some(fault) = fault {
            self.fast.fault = fault;
        }
        self.fast.exit = exit;
        self.fast.site = INTERPRETED;
        0
    }

    /// Lets the interpreter do the instruction that RIP is at.
    fn interpret(&mut self, number: usize, site: Site) -> usize {
        self.fast.interpreted += 1;
        self.turn_to(Activity::Helper);
        let epoch = self.cache.epoch;
        let start = self.rip;
        if !self.before_interpreted() {
            return self.leave_with(Exit::State, None);
        }
        let block = match self.block_of(site) {
            Some(block) => block,
            None => match self.look_up_block(Want::Alone) {
                Ok(block) => block,
                Err(fault) => return self.leave_with(Exit::Fault, Some(fault)),
            },
        };
        // SAFETY: it is remembered or was looked up just now, and nothing has emptied the cache since.
        let is_same = unsafe { (*block).lasting && (*block).version == site.version };
        if self.cache.epoch == epoch && is_same {
            self.translator.sites[number].block = self.cache.id(block);
        }
        let first = Block::ops(block);
        match (first.run)(self, first) {
            // Devices may have been asked for, but nothing that empties the cache.
            Exit::Fall if self.cache.epoch == epoch && is_same && site.resume != 0 => {
                self.after_interpreted();
                self.translator.address(site.resume)
            }
            Exit::Taken | Exit::Jump if !is_canonical(self.rip) || self.rip > self.fast.rip_max => {
                self.rip = start;
                self.leave_with(Exit::Fault, Some(Fault::GP0))
            }
            Exit::Jump if site.kind == Kind::Target => {
                (self.fast.target, self.fast.site) = (self.rip, LOOKED_UP);
                0
            }
            exit => self.leave_with(exit, None),
        }
    }

    /// Forgets translations whose blocks have been forgotten. None may be running.
    pub(super) fn sync_translator(&mut self) {
        if self.fast.epoch != self.cache.epoch {
            self.fast.epoch = self.cache.epoch;
            self.translator.clear();
            self.fast.jumps = self.translator.jumps();
            if let Some(lockstep) = &mut self.lockstep {
                lockstep.clear();
            }
            self.counters.add(count::CODE_CACHE_CLEARED, 1);
        }
    }
}
