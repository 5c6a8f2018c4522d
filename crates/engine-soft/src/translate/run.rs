//! Running a translation, and linking what it leads to.

use super::asm::Asm;
use super::cross::{self, Linked};
use super::enter::{self, exception, prepare_thread};
use super::site::{Kind, Site};
use crate::cpu::Cpu;
use crate::decode::{Block, Want};
use crate::exec::{Exit, status_of};
use crate::fault::Exec;
use crate::mmu::{Class, ENTRIES};
use crate::vm::Activity;

/// How a translation was left. RIP has been set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// To a canonical address.
    Jump,
    /// To an address in the page of the translation; the site can be linked to what is there.
    Link(u32),
    /// The same, to another page.
    Cross(u32),
    /// Before an instruction that the site can be linked to, in a block with other windows.
    Window(u32, Want),
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
        self.fast.find = enter::find as *const () as usize;
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
        let site = self.translator.sites[number as usize];
        self.rip = match site.kind {
            Kind::Jump | Kind::Cross => self.fast.target,
            Kind::Link | Kind::Narrower(_) | Kind::Stale | Kind::Attention => {
                self.fast.page | u64::from(site.offset)
            }
            _ => self.rip,
        };
        match site.kind {
            Kind::Jump => Left::Jump,
            Kind::Link => Left::Link(number),
            Kind::Cross => Left::Cross(number),
            Kind::Narrower(want) => Left::Window(number, want),
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

    /// The block that is remembered at a site, if its code has not changed.
    pub(super) fn block_of(&mut self, site: Site) -> Option<*mut Block> {
        // SAFETY: blocks stay until the cache is emptied, after which the sites are forgotten before any translation runs.
        self.cache.block(site.block).filter(|block| unsafe { (**block).is_current() })
    }

    /// The block at RIP, which the site of a link in the same page leads to.
    pub(crate) fn find_linked(&mut self, number: u32) -> Exec<*mut Block> {
        if let Some(block) = self.block_of(self.translator.sites[number as usize]) {
            return Ok(block);
        }
        let epoch = self.cache.epoch;
        let block = self.find_block()?;
        // SAFETY: it has just been found.
        if self.cache.epoch == epoch && unsafe { (*block).lasting } {
            self.translator.sites[number as usize].block = self.cache.id(block);
        }
        Ok(block)
    }

    /// Lets what `left` came from lead to `block`, if that is translated.
    pub(crate) fn link(&mut self, left: Left, block: *mut Block) {
        // SAFETY: the run loop has just found the block.
        let block = unsafe { &*block };
        if block.code_at.is_null() || self.lockstep.is_some() {
            return;
        }
        self.sync_translator();
        let site = |number: u32| self.translator.sites.get(number as usize).copied();
        match left {
            Left::Jump => _ = self.announce(block.code_at),
            Left::Link(number) | Left::Window(number, _) => {
                if let Some(site) = site(number).filter(|s| matches!(s.kind, Kind::Link | Kind::Narrower(_)))
                {
                    self.translator.area.patch(site.at as usize, entry_for(site, block));
                }
            }
            Left::Stale(number) => {
                if let Some(site) = site(number).filter(|s| s.kind == Kind::Stale) {
                    self.translator.area.redirect(site.at as usize, block.code_at);
                }
            }
            Left::Cross(number) => {
                if let Some(site) = site(number).filter(|s| s.kind == Kind::Cross) {
                    self.link_across(number, site, block.code_at);
                }
            }
            _ => {}
        }
    }

    /// Links a branch to another page, where RIP now is.
    fn link_across(&mut self, number: u32, site: Site, code: *const u8) {
        self.fast.patience = cross::PATIENCE;
        let global = self.announce(code);
        if !self.is_linkable() {
            return;
        }
        // It is near enough for a displacement, in 32-bit code around the end of the address space.
        let (wide, page) = (self.mode.code == 64, self.fast.page);
        let target = self.rip.wrapping_sub(page) as i32;
        let key = if global { self.fast.global_key } else { self.fast.key };
        let area = &self.translator.area;
        let to = area.offset_of(code) as i64 - i64::from(site.at);
        let mut asm = Asm::default();
        cross::emit(&mut asm, wide, target, number, Some(Linked { page, key, global, to }));
        area.overwrite(site.at as usize, &asm.bytes);
    }
}

/// Where a link enters a block of its page. A link forward from the same version of the page has no need to look at attention and
/// version: what leads back does.
fn entry_for(site: Site, block: &Block) -> *const u8 {
    let entry = block.code_at;
    match () {
        () if site.flags_live && block.spill_at > 0 => entry.wrapping_sub(block.spill_at.into()),
        () if site.forward && site.version == block.version => entry.wrapping_add(block.light_at.into()),
        () => entry,
    }
}
