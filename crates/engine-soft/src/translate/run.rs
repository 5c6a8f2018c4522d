//! Running a translation, and linking what it leads to.

use super::enter::{self, exception, prepare_thread};
use super::site::Kind;
use crate::cpu::Cpu;
use crate::decode::Block;
use crate::exec::{Exit, status_of};
use crate::mmu::{Class, ENTRIES};
use crate::vm::Activity;

/// How a translation was left. RIP has been set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// To a canonical address.
    Jump,
    /// To an address in the page of the translation; the site can be linked to what is there.
    Link(u32),
    /// Before a block whose code has changed; its entry can be linked to what is there now.
    Stale(u32),
    /// Something wants attention.
    Attention,
    /// As an operation of the interpreter leaves its block.
    Exit(Exit),
    /// It differs from the interpreter; see `lockstep`.
    Different,
}

impl Cpu {
    /// Tells translations where things are. The state block never moves again.
    pub(crate) fn prepare_translations(&mut self) {
        self.fast.this = self;
        self.fast.classes =
            [Class::Supervisor, Class::SupervisorAc].map(|class| self.tlb.class(class as usize * ENTRIES));
        self.fast.jumps = self.translator.jumps();
        self.fast.attention = self.port().attention.as_ptr();
        self.fast.slow = enter::slow as *const () as usize;
        self.fast.leave = enter::leave as *const () as usize;
    }

    /// Runs the translation `code` of the block at RIP, and all that it is linked to.
    #[inline]
    pub(crate) fn run_translation(&mut self, code: *const u8) -> Left {
        prepare_thread(self);
        self.fast.entered += 1;
        self.fast.page = self.rip & !0xfff;
        self.turn_to(Activity::Translated);
        // SAFETY: the run loop gives a translation of the block at RIP, and translations are there until the block cache is emptied, which makes
        // the run loop look up blocks anew. GS has been seen to.
        unsafe { enter::enter(self, code) };
        self.turn_to(Activity::Dispatch);
        let number = self.fast.site;
        match self.translator.sites[number as usize].kind {
            Kind::Jump => Left::Jump,
            Kind::Link => Left::Link(number),
            Kind::Stale => Left::Stale(number),
            Kind::Attention => Left::Attention,
            Kind::Fault => Left::Exit(self.host_fault()),
            _ => Left::Exit(self.fast.exit),
        }
    }

    /// An exception of the host's processor in a translation, as the guest's.
    #[cold]
    fn host_fault(&mut self) -> Exit {
        let fault = self.fast.host_fault;
        let t = &self.translator;
        let at = t.area.offset_of(fault.rip as *const u8) as u32;
        let site = t.sites.iter().rev().find(|s| s.kind == Kind::Native && s.at == at);
        // A translation raises exceptions only at such sites; an instruction that is retried by the interpreter raises its own.
        let Some(site) = site.copied() else { return Exit::Fault };
        self.rip = self.fast.page | u64::from(site.offset);
        if site.flags_live {
            self.fast.status = status_of(fault.rflags);
        }
        self.fast.fault = exception(self, fault.vector);
        Exit::Fault
    }

    /// Lets what `left` came from lead to `block`, if that is translated.
    pub(crate) fn link(&mut self, left: Left, block: *mut Block) {
        // SAFETY: the run loop has just found the block.
        let block = unsafe { &*block };
        if block.code_at.is_null() || !block.lasting || self.lockstep.is_some() {
            return;
        }
        self.sync_translator();
        let t = &mut *self.translator;
        match left {
            Left::Jump => self.announce(block.code_at),
            Left::Link(site) => {
                if let Some(site) = t.sites.get(site as usize).filter(|s| s.kind == Kind::Link) {
                    let from = site.at;
                    t.area.patch(from as usize, block.code_at);
                }
            }
            Left::Stale(site) => {
                if let Some(site) = t.sites.get(site as usize).filter(|s| s.kind == Kind::Stale) {
                    let entry = site.at;
                    t.area.redirect(entry as usize, block.code_at);
                }
            }
            _ => {}
        }
    }
}
