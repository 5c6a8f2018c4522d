//! From guest code to a translation.

use std::mem::offset_of;

use iced_x86::{
    Decoder, DecoderOptions, Encoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind,
};
use umbra_memory::CodePage;

use super::asm::{A, Asm, B, Hole, at, cond, group, op, state};
use super::border::{BEYOND_MAX, Border};
use super::copy::host_of;
use super::flags::{self, Place, Use};
use super::form::{Copied, Form};
use super::memory::{Address, fast};
use super::site::{Kind, LOOKED_UP, Site};
use super::system::System;
use super::window::{Open, Windows};
use super::{Full, Jump, validate, vector};
use crate::cpu::Cpu;
use crate::decode::Block;
use crate::exec::Fast;
use crate::mmu::copy_out;
use crate::vm::Activity;

const PAGE: usize = 4096;
/// Instructions of a translation.
pub(super) const ITEMS_MAX: usize = 256;
/// Conditional branches that a translation goes on after.
const BRANCHES_MAX: usize = 3;

/// Code out of line.
#[derive(Debug)]
pub(super) enum Stub {
    /// Calls the slow path of a site; after the interpreter did the instruction it goes on at `resume`, with flags loaded or not, or it
    /// leaves.
    Slow { hole: Hole, site: u32, resume: Option<usize>, load: bool },
    /// A window's lookup, from `first` to so many bytes beyond, found nothing; see `window`.
    Window { hole: Hole, site: u32, first: Address, beyond: i32, out: u32 },
    /// Calls the slow path of a border's site.
    Border { holes: [Hole; 3], site: u32 },
    /// Leaves by a site, to the address in its page that it says.
    Exit { hole: Hole, site: u32 },
    /// Goes on at an address off this page; flags may be needed there and only be in the host's.
    Cross { hole: Hole, target: i32, pending: bool, offset: u16 },
    /// The address in A is not in the table.
    NotFound { hole: Hole, miss: NotFound },
    /// Compares the key of the entry at B with this other one; goes on at `back`, or the entry's address is not in the table.
    OtherKey { hole: Hole, key: usize, back: usize, miss: NotFound },
}

/// What is done about a target that is not in the table.
#[derive(Debug, Clone, Copy)]
pub(super) enum NotFound {
    /// To leave for it.
    Leave,
    /// To let the interpreter do the instruction.
    Interpret { site: u32 },
}

/// One instruction of a block.
pub(super) struct Item {
    pub instruction: Instruction,
    pub form: Form,
    uses: Use,
    pub offset: u16,
}

/// A translation in the making.
pub(super) struct Builder<'a> {
    pub asm: Asm,
    pub encoder: Encoder,
    pub factory: &'a mut InstructionInfoFactory,
    /// 64-bit mode.
    pub wide: bool,
    /// In the upper half of the address space, where kernels are, which are there in every context.
    pub upper: bool,
    /// Where the block starts in its page.
    pub start: u16,
    /// Where it is entered with flags in the state block.
    pub entry: usize,
    /// The same, if attention and version need no look.
    light: usize,
    /// The number of the instruction at hand, and where it starts.
    pub item: usize,
    pub offset: u16,
    /// Its length, and its name.
    pub len: u16,
    pub mnemonic: Mnemonic,
    /// Every exit leaves; see `lockstep`.
    pub alone: bool,
    /// Instructions are counted.
    counts: bool,
    pub stubs: Vec<Stub>,
    sites: Vec<Site>,
    /// The number of the first of `sites`.
    first_site: u32,
    /// The border that its last instruction crosses, and its number.
    pub border: Option<Box<Border>>,
    pub first_border: u32,
    pub flags: Place,
    /// What comes next may not be what it was when this began.
    pub serializes: bool,
    /// Vector units that have been asked for.
    vector: u8,
    pub windows: Windows,
}

/// What is undone when an instruction turns out not to be translatable.
struct Mark {
    bytes: usize,
    stubs: usize,
    sites: usize,
    flags: Place,
    vector: u8,
    windows: Open,
}

impl Cpu {
    /// Translates a block, which RIP is at. Whether it has been.
    ///
    /// # Errors
    /// There is no room for more translations.
    #[cold]
    #[inline(never)]
    pub(crate) fn translate(&mut self, block: *mut Block) -> Result<bool, Full> {
        let before = self.turn_to(Activity::Translate);
        let done = self.try_translate(block);
        self.turn_to(before);
        done
    }

    fn try_translate(&mut self, block: *mut Block) -> Result<bool, Full> {
        self.sync_translator();
        // SAFETY: the run loop gives a block that exists.
        let b = unsafe { &mut *block };
        // Until it is known to succeed, it is not tried again soon.
        b.heat = 0;
        let stays = b.lasting || b.second.is_some();
        if !self.mode.flat || self.mode.code == 16 || !stays || !self.is_linkable() {
            return Ok(false);
        }
        let linear = self.rip;
        let Ok(fetch) = self.fetch(linear) else { return Ok(false) };
        if fetch.host.is_null() || fetch.code != b.code {
            return Ok(false);
        }
        let start = (linear & 0xfff) as u16;
        let page = fetch.host.wrapping_sub(usize::from(start));
        let mut bytes = [0; PAGE + BEYOND_MAX];
        // SAFETY: `fetch` gives an address of guest memory, of which a whole page is mapped.
        unsafe { copy_out(page, &mut bytes[..PAGE]) };
        let mut factory = InstructionInfoFactory::new();
        let mut items = self.items(&mut factory, &bytes[..PAGE], start);
        let next = (linear & !0xfff).wrapping_add(PAGE as u64) & self.fast.rip_mask;
        // Its last instruction may go on in the next page.
        let left = PAGE - items.last().map_or(start.into(), Item::end);
        if (1..=BEYOND_MAX).contains(&left)
            && let Ok(second) = self.fetch(next)
            && !second.host.is_null()
        {
            // SAFETY: as above.
            unsafe { copy_out(second.host, &mut bytes[PAGE..]) };
            items = self.items(&mut factory, &bytes, start);
        }
        let Some(end) = items.last().map(Item::end) else { return Ok(false) };
        let (needs, looked) = needs(&items, &bytes[..PAGE], u32::from(self.mode.code));
        // SAFETY: guest memory's tracking outlives the processor.
        let code: &CodePage = unsafe { &*b.code };
        let used = usize::from(start)..end.min(PAGE);
        for range in std::iter::once(used).chain(looked) {
            let gpa = (fetch.gpa & !0xfff) + range.start as u64;
            if code.version() != b.version || self.mark_code(code, gpa, range.len()) != b.version {
                return Ok(false);
            }
            let mut now = vec![0; range.len()];
            // SAFETY: as above; the range lies within the page.
            unsafe { copy_out(page.wrapping_add(range.start), &mut now) };
            if now != bytes[range] {
                return Ok(false);
            }
        }
        let border = (end > PAGE).then(|| Border::new(&bytes[PAGE..end], fetch.global));
        self.install(&mut factory, b, &items, &needs, border)
    }

    /// Whether direct branches from around RIP always lead to canonical addresses.
    pub(crate) fn is_linkable(&self) -> bool {
        const HALF: u64 = 1 << 47;
        const FAR: u64 = 1 << 33;
        self.rip.wrapping_add(HALF).wrapping_sub(FAR) < 2 * (HALF - FAR)
    }

    /// The instructions of the block at `start`.
    fn items(&mut self, factory: &mut InstructionInfoFactory, page: &[u8], start: u16) -> Vec<Item> {
        let mut items = Vec::new();
        let mut branches = BRANCHES_MAX;
        let mut at = usize::from(start);
        let mut decoder = Decoder::with_ip(self.mode.code.into(), &page[at..], 0, DecoderOptions::NONE);
        while items.len() < ITEMS_MAX && at < PAGE && decoder.can_decode() {
            decoder.set_ip(0);
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                break;
            }
            let form = match self.happens_once(&instruction) {
                true => Form::Interpret,
                false => Form::of(self, &instruction, factory),
            };
            let uses = match form {
                Form::Interpret | Form::System(System::Pushf) => Use::CALL,
                Form::System(_) => Use::default(),
                _ => Use::of(&instruction),
            };
            items.push(Item { instruction, form, uses, offset: at as u16 });
            at += instruction.len();
            match form {
                Form::Serialize => break,
                // What comes next is part of it, within limits.
                form if form.goes_on() && branches > 0 => branches -= 1,
                _ if instruction.flow_control() != FlowControl::Next => break,
                _ => {}
            }
        }
        if let Some(last) = items.last_mut()
            && last.form == Form::System(System::Sti)
        {
            // Its shadow reaches into the next block.
            (last.form, last.uses) = (Form::Interpret, Use::CALL);
        }
        items
    }

    fn install(
        &mut self,
        factory: &mut InstructionInfoFactory,
        block: &mut Block,
        items: &[Item],
        needs: &[u32],
        border: Option<Box<Border>>,
    ) -> Result<bool, Full> {
        let wide = self.mode.code == 64;
        let start = (self.rip & 0xfff) as u16;
        let mut builder = Builder {
            asm: Asm::default(),
            encoder: Encoder::new(64),
            factory,
            wide,
            upper: self.rip >> 63 != 0,
            start,
            entry: 0,
            light: 0,
            item: 0,
            offset: start,
            len: 0,
            mnemonic: Mnemonic::INVALID,
            alone: self.lockstep.is_some(),
            counts: self.translator.counts,
            stubs: Vec::new(),
            sites: Vec::new(),
            first_site: self.translator.sites.len() as u32,
            border,
            first_border: self.translator.borders.len() as u32,
            flags: Place { host: false, memory: true },
            serializes: false,
            vector: 0,
            windows: Windows::default(),
        };
        builder.build(block, items, needs);
        let Builder { asm, mut sites, entry, light, border, .. } = builder;
        validate::enforce(&asm.bytes, block, &sites, [entry, light], border.as_deref());
        let t = &mut *self.translator;
        let place =
            (t.sites.len() + sites.len() <= super::SITES_MAX).then(|| t.area.push(&asm.bytes)).flatten();
        let place = place.ok_or(Full)?;
        let base = t.area.offset_of(place) as u32;
        for site in &mut sites {
            site.version = block.version;
            site.at += base;
            if site.resume != 0 && site.kind != Kind::Border {
                site.resume += base;
            }
        }
        t.sites.append(&mut sites);
        t.borders.extend(border);
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.note_translation(place.wrapping_add(entry), asm.bytes.len() - entry);
        }
        block.code_at = place.wrapping_add(entry);
        (block.spill_at, block.light_at) = (entry as u8, (light - entry) as u8);
        self.counters.add(crate::vm::count::BLOCKS_TRANSLATED, 1);
        Ok(true)
    }

    /// Lets other translations find the one of the block at RIP. Whether in every context.
    pub(crate) fn announce(&mut self, code: *const u8) -> bool {
        let rip = self.rip;
        let global = matches!(self.fetch(rip), Ok(fetch) if fetch.global);
        if self.is_linkable() {
            let key = if global { self.fast.global_key } else { self.fast.key };
            *self.translator.place(rip, self.fast.jump_hash) = Jump { rip, key, code, page: rip & !0xfff };
        }
        global
    }
}

impl Item {
    pub(super) fn end(&self) -> usize {
        usize::from(self.offset) + self.instruction.len()
    }

    /// Whether it goes on in the next page.
    pub(super) fn crosses(&self) -> bool {
        self.end() > PAGE
    }

    /// Where a direct branch leads, in bytes from the start of the page.
    fn target(&self) -> Option<i64> {
        let near = matches!(self.instruction.op0_kind(), OpKind::NearBranch32 | OpKind::NearBranch64);
        let relative = match self.instruction.op0_kind() {
            OpKind::NearBranch32 => i64::from(self.instruction.near_branch_target() as u32 as i32),
            _ => self.instruction.near_branch_target() as i64,
        };
        near.then(|| relative + i64::from(self.offset))
    }
}

/// Which flags are needed where each instruction branches to, and after the last; and the ranges of the page that were looked at to
/// know.
fn needs(items: &[Item], page: &[u8], bits: u32) -> (Vec<u32>, Vec<std::ops::Range<usize>>) {
    let mut looked = Vec::new();
    let mut needed_at = |target: Option<i64>| {
        let within = target.and_then(|t| usize::try_from(t).ok()).filter(|t| *t < PAGE);
        let Some(at) = within else { return flags::ALL };
        let (some, len) = flags::needed_at(&page[at..], bits);
        if len > 0 {
            looked.push(at..at + len);
        }
        some
    };
    let elsewhere = |item: &Item| match item.form {
        Form::Branch(_) | Form::BranchIfZero | Form::Jump | Form::Call => needed_at(item.target()),
        _ if item.instruction.flow_control() == FlowControl::Next => 0,
        _ => flags::ALL,
    };
    let mut all: Vec<u32> = items.iter().map(elsewhere).collect();
    let last = items.last().filter(|last| !last.form.closes());
    all.push(last.map_or(0, |last| needed_at(Some(last.end() as i64))));
    (all, looked)
}

impl Builder<'_> {
    fn build(&mut self, block: &Block, items: &[Item], needs: &[u32]) {
        let mut live = needs.to_vec();
        for (n, item) in items.iter().enumerate().rev() {
            live[n] = item.uses.before(live[n + 1] | needs[n]);
        }
        if self.wide {
            self.windows = Windows::of(items, &live, block.windows());
        }
        self.enter(block, live[0] != 0);
        let mut closed = false;
        for (n, item) in items.iter().enumerate() {
            if n == 0 || items[n - 1].form.goes_on() {
                self.count(&items[n..]);
            }
            self.turn_to(n, item);
            self.open_ahead();
            closed = self.item(item, live[n], live[n + 1] | needs[n]) && item.form.closes();
        }
        if let Some(last) = items.last().filter(|_| !closed) {
            self.serializes = last.form == Form::Serialize;
            self.go_to(last.end() as i32, self.is_pending(live[items.len()]));
        }
        self.out_of_line();
    }

    /// The start of every translation. Those that come with flags in the host's put them away, if they are needed; then come
    /// attention and version, but for those that come from before in this page.
    fn enter(&mut self, block: &Block, reads_flags: bool) {
        if reads_flags {
            self.asm.spill_flags(state(fast(offset_of!(Fast, status))), A);
        }
        self.entry = self.asm.len();
        self.asm.rm(op::MOV, A, state(fast(offset_of!(Fast, attention))));
        self.asm.mi32(group::CMP, at(A, 0), 0);
        let hole = self.asm.jcc(cond::NOT_EQUAL);
        let site = self.site(Site::new(Kind::Attention, self.start));
        self.stubs.push(Stub::Exit { hole, site });
        self.asm.mov_i64(A, block.code.wrapping_byte_add(CodePage::VERSION_OFFSET) as u64);
        self.asm.mi32(group::CMP, at(A, 0), block.version as i32);
        let hole = self.asm.jcc(cond::NOT_EQUAL);
        let site = self.site(Site { at: self.entry as u32, ..Site::new(Kind::Stale, self.start) });
        self.stubs.push(Stub::Exit { hole, site });
        self.light = self.asm.len();
    }

    /// Counts the first of `items` up to a branch, if they are counted. Flags stay.
    fn count(&mut self, items: &[Item]) {
        if self.counts {
            let branch = items.iter().position(|i| i.form.goes_on());
            let counted = at(A, branch.map_or(items.len(), |n| n + 1) as i32);
            let counter = state(fast(offset_of!(Fast, translated)));
            self.asm.rm(op::MOV, A, counter);
            self.asm.rm(op::LEA, A, counted);
            self.asm.rm(op::MOV_STORE, A, counter);
        }
    }

    /// Whether flags that are needed are nowhere but in the host's.
    fn is_pending(&self, needed: u32) -> bool {
        needed != 0 && self.flags.host && !self.flags.memory
    }

    /// Emits one instruction; whether by its form, and not by a call of the interpreter.
    fn item(&mut self, item: &Item, before: u32, after: u32) -> bool {
        let mark = Mark {
            bytes: self.asm.len(),
            stubs: self.stubs.len(),
            sites: self.sites.len(),
            flags: self.flags,
            vector: self.vector,
            windows: self.windows.open,
        };
        let first = mark.stubs;
        let translated = self.form(item, before, after).is_some();
        if !translated {
            self.undo(mark);
            self.keep_flags();
            self.interpret();
            self.flags = Place { host: false, memory: true };
        }
        let load_after = self.flags.host && after != 0;
        // The interpreter may change what addresses mean.
        let here = (!self.windows.are_needed_after(self.item)).then_some(self.asm.len());
        for stub in &mut self.stubs[first..] {
            if let Stub::Slow { resume, load, .. } = stub {
                (*resume, *load) = (here, load_after);
                self.asm.addend = None;
            }
        }
        translated
    }

    /// `item` is the instruction at hand.
    pub(super) fn turn_to(&mut self, number: usize, item: &Item) {
        self.item = number;
        (self.offset, self.len) = (item.offset, item.instruction.len() as u16);
        self.mnemonic = item.instruction.mnemonic();
    }

    fn undo(&mut self, mark: Mark) {
        self.asm.bytes.truncate(mark.bytes);
        self.asm.addend = None;
        self.stubs.truncate(mark.stubs);
        self.sites.truncate(mark.sites);
        (self.flags, self.vector, self.windows.open) = (mark.flags, mark.vector, mark.windows);
    }

    fn form(&mut self, item: &Item, before: u32, after: u32) -> Option<()> {
        let i = &item.instruction;
        if item.crosses() && item.form != Form::Interpret {
            if before != 0 {
                self.keep_flags();
            }
            self.flags.host = false;
            self.cross_border()?;
        }
        match item.form {
            Form::Nothing | Form::Serialize => return Some(()),
            Form::Copy(copied) => return self.copied(i, copied, before),
            Form::Lea => return self.load_address(i),
            Form::Interpret => return None,
            _ => {}
        }
        if let Form::Branch(condition) = item.form {
            if !self.flags.host {
                self.asm.load_flags(state(fast(offset_of!(Fast, status))), A);
                self.flags.host = true;
            }
            return self.branch(condition, item.target()?, self.is_pending(after));
        }
        if item.form == Form::BranchIfZero {
            return self.branch_if_zero(i, item.target()?, self.is_pending(after));
        }
        if item.form == Form::Jump {
            self.go_to(i32::try_from(item.target()?).ok()?, self.is_pending(after));
            return Some(());
        }
        let keeps = matches!(item.form, Form::Push | Form::Pop | Form::Leave);
        if !keeps || !self.windows.serve(self.item) {
            if before != 0 {
                self.keep_flags();
            }
            self.flags.host = false;
        }
        match item.form {
            Form::Push => self.push(i),
            Form::PushMemory => self.push_memory(i)?,
            Form::System(system) => self.system(system),
            Form::Pop => self.pop(i),
            Form::Leave => self.leave(),
            Form::Return => self.ret(i),
            Form::Call => self.call(item.target()?)?,
            Form::CallIndirect => self.call_indirect(i)?,
            Form::JumpIndirect => self.jump_indirect(i)?,
            _ => return None,
        }
        Some(())
    }

    fn copied(&mut self, i: &Instruction, copied: Copied, before: u32) -> Option<()> {
        let unit = vector::bit(copied.unit) & !self.vector;
        let looks_up = copied.len > 0 && !self.windows.serve(self.item);
        if before != 0 && (unit != 0 || looks_up) {
            self.keep_flags();
        }
        if unit != 0 {
            let retry = self.asm.len();
            self.asm.test_mi8(state(fast(offset_of!(Fast, live))), unit);
            let hole = self.asm.jcc(cond::EQUAL);
            self.slow_at(hole, Kind::Vector(unit), retry);
            self.vector |= unit;
            self.flags.host = false;
        }
        let memory = match copied.len {
            0 => None,
            len => {
                let address = Address::of(i, self.wide, self.offset, false)?;
                self.flags.host &= !looks_up;
                let slow = if copied.masked { Kind::Call } else { Kind::Access { write: copied.write } };
                Some(self.lookup_or(address, len, copied.write, slow))
            }
        };
        let touches = (i.rflags_read() | i.rflags_modified()) & flags::ALL != 0;
        if before != 0 && touches && !self.flags.host {
            self.asm.load_flags(state(fast(offset_of!(Fast, status))), B);
            self.flags.host = true;
        }
        let place = self.emit_copy(i, memory)?;
        if copied.raises {
            let mut site = Site::new(Kind::Native, self.offset);
            (site.at, site.flags_live) = (place as u32, self.flags.host);
            self.site(site);
        }
        if i.rflags_modified() & flags::ALL != 0 {
            self.flags = Place { host: true, memory: false };
        }
        Some(())
    }

    /// LEA. Flags stay.
    fn load_address(&mut self, i: &Instruction) -> Option<()> {
        let address = Address::of(i, self.wide, self.offset, true)?;
        let to = i.op0_register();
        let guest = to.full_register().number() as u8;
        let resident = super::copy::is_resident(guest);
        let wide = match to.size() {
            8 => true,
            4 => false,
            _ => return None,
        };
        let scratch = if resident || !wide { A } else { host_of(guest) };
        self.effective(scratch, address);
        match (resident, wide) {
            (true, true) => self.asm.rm(op::MOV_STORE, A, super::copy::resident(guest)),
            (true, false) => {
                self.asm.rr32(op::MOV, A, A);
                self.asm.rm(op::MOV_STORE, A, super::copy::resident(guest));
            }
            (false, true) => {}
            (false, false) => self.asm.rr32(op::MOV, host_of(guest), A),
        }
        Some(())
    }

    /// Makes sure that flags are in the state block.
    fn keep_flags(&mut self) {
        if self.is_pending(flags::ALL) {
            self.asm.spill_flags(state(fast(offset_of!(Fast, status))), A);
            self.flags.memory = true;
        }
    }

    /// Adds a site; its number.
    pub(super) fn site(&mut self, site: Site) -> u32 {
        self.sites.push(site);
        self.first_site + self.sites.len() as u32 - 1
    }

    /// The slow path of the instruction at hand is taken by `hole`.
    pub(super) fn slow_at(&mut self, hole: Hole, kind: Kind, retry: usize) {
        // Whatever way it comes back.
        self.asm.addend = None;
        let site = self.slow_site(kind, retry);
        self.stubs.push(Stub::Slow { hole, site, resume: None, load: false });
    }

    pub(super) fn slow_site(&mut self, kind: Kind, retry: usize) -> u32 {
        let (at, mnemonic) = (retry as u32, self.mnemonic as u16);
        self.site(Site { at, mnemonic, ..Site::new(kind, self.offset) })
    }

    /// One of the sites of this block.
    pub(super) fn site_mut(&mut self, number: u32) -> &mut Site {
        &mut self.sites[(number - self.first_site) as usize]
    }

    /// Lets the interpreter do the instruction at hand.
    fn interpret(&mut self) {
        self.windows.open = Open::default();
        self.asm.addend = None;
        let site = self.slow_site(Kind::Call, self.asm.len());
        self.asm.go_with(site, state(fast(offset_of!(Fast, slow))));
        self.site_mut(site).resume = self.asm.len() as u32;
    }

    fn out_of_line(&mut self) {
        let status = state(fast(offset_of!(Fast, status)));
        for stub in std::mem::take(&mut self.stubs) {
            match stub {
                Stub::Slow { hole, site, resume, load } => {
                    self.asm.here(hole);
                    self.slow(site, resume, load);
                }
                Stub::Window { hole, site, first, beyond, out } => {
                    self.asm.here(hole);
                    self.closed_window(first, beyond, site, out);
                }
                Stub::Border { holes, site } => {
                    holes.into_iter().for_each(|hole| self.asm.here(hole));
                    self.asm.go_with(site, state(fast(offset_of!(Fast, slow))));
                }
                Stub::Exit { hole, site } => {
                    self.asm.here(hole);
                    if self.site_mut(site).flags_live {
                        self.asm.spill_flags(status, A);
                    }
                    self.leave_by(site);
                }
                Stub::Cross { hole, target, pending, offset } => {
                    self.asm.here(hole);
                    if pending {
                        self.asm.spill_flags(status, A);
                    }
                    self.offset = offset;
                    self.cross(target);
                }
                Stub::NotFound { hole, miss } => {
                    self.asm.here(hole);
                    self.not_found(miss);
                }
                Stub::OtherKey { hole, key, back, miss } => {
                    self.asm.here(hole);
                    self.asm.rm(op::MOV, A, state(key));
                    self.asm.rm(op::CMP_STORE, A, at(B, offset_of!(Jump, key) as i32));
                    let same = self.asm.jcc(cond::EQUAL);
                    self.asm.fill(same, back);
                    self.asm.rm(op::MOV, A, at(B, offset_of!(Jump, rip) as i32));
                    self.not_found(miss);
                }
            }
        }
    }

    /// Calls the slow path of a site; after the interpreter did the instruction it goes on at `resume`.
    fn slow(&mut self, site: u32, resume: Option<usize>, load: bool) {
        if let Kind::Access { write } = self.site_mut(site).kind {
            self.linear(write);
        }
        self.asm.go_with(site, state(fast(offset_of!(Fast, slow))));
        let Some(resume) = resume else { return };
        self.site_mut(site).resume = if load { self.asm.len() } else { resume } as u32;
        if load {
            self.asm.load_flags(state(fast(offset_of!(Fast, status))), B);
            let back = self.asm.jmp();
            self.asm.fill(back, resume);
        }
    }

    /// The address in A is not in the table.
    fn not_found(&mut self, miss: NotFound) {
        match miss {
            NotFound::Leave => self.leave_by(LOOKED_UP),
            NotFound::Interpret { site } => self.asm.go_with(site, state(fast(offset_of!(Fast, slow)))),
        }
    }

    pub(super) fn leave_by(&mut self, site: u32) {
        self.asm.go_with(site, state(fast(offset_of!(Fast, leave))));
    }
}
