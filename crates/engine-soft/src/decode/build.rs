//! From code bytes to a block.

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl};
use umbra_memory::CodePage;

use super::cache::{Block, INSTRUCTIONS_MAX, Parts, Second};
use super::select::{Previous, Selected};
use crate::cpu::Cpu;
use crate::exec::{self, Op};
use crate::fault::{Exec, Fault};
use crate::mmu::{Fetch, copy_out};
use crate::vm::{Activity, count};

/// Bytes of code that a block may be made of.
const BYTES_MAX: usize = 512;
/// The longest instruction.
const INSTRUCTION_MAX: usize = 15;
/// How often a block is made anew because its bytes changed meanwhile, before one is made for this time only.
const RETRIES_MAX: u32 = 8;

/// Bytes of code.
struct Source {
    bytes: [u8; BYTES_MAX],
}

/// How decoding ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// A block of this many bytes.
    Block(usize),
    /// The first instruction goes on after the bytes.
    Short,
}

impl Cpu {
    /// Makes the block at `linear`.
    pub(super) fn build(&mut self, linear: u64, fetch: Fetch, key: u64, alone: bool) -> Exec<*mut Block> {
        let before = self.turn_to(Activity::Decode);
        let block = self.build_at(linear, fetch, key, alone);
        self.turn_to(before);
        block
    }

    fn build_at(&mut self, linear: u64, fetch: Fetch, key: u64, alone: bool) -> Exec<*mut Block> {
        let to_page_end = 4096 - (linear & 0xfff) as usize;
        let to_limit =
            usize::try_from((self.fast.rip_max - self.rip).saturating_add(1)).unwrap_or(usize::MAX);
        let len = BYTES_MAX.min(to_page_end).min(to_limit);
        for _ in 0..RETRIES_MAX {
            let source = Source::read(fetch.host, len);
            let End::Block(used) = self.decode(&source.bytes[..len], alone) else {
                return self.build_crossing(linear, fetch, key, to_limit);
            };
            let version = self.mark(&fetch, used);
            let now = Source::read(fetch.host, used);
            if now.bytes[..used] == source.bytes[..used] {
                let mut block = Block::new(key, fetch.code, version);
                block.lasting = true;
                block.len = used as u16;
                return Ok(self.finish(block));
            }
        }
        // Somebody writes here all the time: whatever is read now was there at some moment.
        let source = Source::read(fetch.host, len);
        match self.decode(&source.bytes[..len], true) {
            End::Block(used) => Ok(self.finish_passing(used)),
            End::Short => self.build_crossing(linear, fetch, key, to_limit),
        }
    }

    /// Makes the block of one instruction that crosses into the next page.
    fn build_crossing(&mut self, linear: u64, fetch: Fetch, key: u64, to_limit: usize) -> Exec<*mut Block> {
        let here = 4096 - (linear & 0xfff) as usize;
        if here >= INSTRUCTION_MAX || to_limit <= here {
            return Err(Fault::GP0);
        }
        let next = if self.mode.code == 64 {
            linear.wrapping_add(here as u64)
        } else {
            linear.wrapping_add(here as u64) & 0xffff_ffff
        };
        let second = self.fetch(next)?;
        if second.host.is_null() {
            return self.build_from_device(linear);
        }
        let len = INSTRUCTION_MAX.min(to_limit);
        let read = || {
            let (first, rest) =
                (Source::read(fetch.host, here), Source::read(second.host, len.saturating_sub(here)));
            let mut bytes = [0; INSTRUCTION_MAX];
            bytes[..here].copy_from_slice(&first.bytes[..here]);
            bytes[here..len].copy_from_slice(&rest.bytes[..len - here]);
            bytes
        };
        for _ in 0..RETRIES_MAX {
            let bytes = read();
            let End::Block(used) = self.decode(&bytes[..len], true) else { return Err(Fault::GP0) };
            let version = self.mark(&fetch, here.min(used));
            let other = self.mark(&second, used.saturating_sub(here));
            if read()[..used] == bytes[..used] {
                // Not linked to: what it is depends on two translations.
                let mut block = Block::new(key, fetch.code, version);
                block.second = Some(Second { gpa: second.gpa, code: second.code, version: other });
                block.len = used as u16;
                return Ok(self.finish(block));
            }
        }
        match self.decode(&read()[..len], true) {
            End::Block(used) => Ok(self.finish_passing(used)),
            End::Short => Err(Fault::GP0),
        }
    }

    /// Makes a block of one instruction whose bytes are, at least in part, a device's. It is used once.
    pub(super) fn build_from_device(&mut self, linear: u64) -> Exec<*mut Block> {
        let to_limit =
            usize::try_from((self.fast.rip_max - self.rip).saturating_add(1)).unwrap_or(usize::MAX);
        let mut bytes = [0; INSTRUCTION_MAX];
        for len in 1..=INSTRUCTION_MAX.min(to_limit) {
            let at = linear.wrapping_add(len as u64 - 1);
            let fetch = self.fetch(if self.mode.code == 64 { at } else { at & 0xffff_ffff })?;
            let byte = &mut bytes[len - 1..len];
            match fetch.host.is_null() {
                true => self.with_io(|io| io.mmio_read(fetch.gpa, byte)),
                // SAFETY: `fetch` gives an address of guest memory.
                false => unsafe { copy_out(fetch.host, byte) },
            }
            if let End::Block(used) = self.decode(&bytes[..len], true) {
                return Ok(self.finish_passing(used));
            }
        }
        Err(Fault::GP0)
    }

    /// Marks code, so that whoever writes to it tells. Gives the version that must still be there when the bytes have been read.
    fn mark(&mut self, fetch: &Fetch, len: usize) -> u32 {
        // SAFETY: `fetch` gives the tracking of guest memory, which outlives the processor.
        self.mark_code(unsafe { &*fetch.code }, fetch.gpa, len)
    }

    /// The same of `len` bytes at `gpa`, in the page of `code`.
    pub(crate) fn mark_code(&mut self, code: &CodePage, gpa: u64, len: usize) -> u32 {
        let marked = code.has_code().then(|| code.mark(gpa % 4096, len as u64));
        if let Some((version, false)) = marked {
            return version;
        }
        // Until now processors may have written here without telling.
        self.stop_world();
        if marked.is_some() {
            // The code was written to right before it was marked: whoever has marked more since then believes that all tell.
            code.void();
        }
        let (version, _) = code.mark(gpa % 4096, len as u64);
        self.tlb.forget_writes_of(gpa);
        self.shared.forget_writes(Some(self.id));
        self.resume_world();
        version
    }

    /// Decodes up to the end of a block into the cache's work space.
    fn decode(&mut self, bytes: &[u8], alone: bool) -> End {
        let mut ops = std::mem::take(&mut self.cache.ops);
        let mut kept = std::mem::take(&mut self.cache.instructions);
        ops.clear();
        kept.clear();
        let mut decoder = Decoder::with_ip(self.mode.code.into(), bytes, 0, DecoderOptions::NONE);
        let mut previous = Previous::default();
        let mut count = 0;
        let mut at = 0;
        let mut closed = false;
        let max = if alone { 1 } else { INSTRUCTIONS_MAX };
        while count < max && !closed && at < bytes.len() {
            decoder.set_ip(0);
            let i = decoder.decode();
            let mut selected = match i.is_invalid() {
                false => self.select(&i, at, &mut previous),
                true if decoder.last_error() == DecoderError::NoMoreBytes => break,
                true => Selected::undefined(decoder.position() - at >= INSTRUCTION_MAX),
            };
            selected.op.offset = at as u16;
            selected.op.len = i.len() as u8;
            if selected.fused {
                ops.pop();
            }
            if selected.keep {
                kept.push((ops.len(), i));
            }
            ops.push(selected.op);
            count += 1;
            self.cache.last = at as u16;
            closed = selected.closes;
            at += i.len().max(1);
            if closed || i.flow_control() != FlowControl::Next {
                break;
            }
        }
        if count > 0 && !closed {
            ops.push(Op { imm: at as u64, ..Op::new(exec::fall) });
        }
        self.cache.count = count as u32;
        self.cache.ops = ops;
        self.cache.instructions = kept;
        if count == 0 { End::Short } else { End::Block(at) }
    }

    fn lay_out(&mut self, mut block: Block, passing: bool) -> *mut Block {
        let mut ops = std::mem::take(&mut self.cache.ops);
        let kept = std::mem::take(&mut self.cache.instructions);
        block.count = self.cache.count;
        block.last = self.cache.last;
        let block = self.cache.push(Parts { block, ops: &mut ops, instructions: &kept }, passing);
        self.cache.ops = ops;
        self.cache.instructions = kept;
        self.counters.add(count::BLOCKS_DECODED, 1);
        block
    }

    fn finish(&mut self, block: Block) -> *mut Block {
        let block = self.lay_out(block, false);
        self.cache.insert(block);
        block
    }

    fn finish_passing(&mut self, used: usize) -> *mut Block {
        let mut block = Block::new(0, std::ptr::null(), 0);
        block.len = used as u16;
        self.lay_out(block, true)
    }
}

impl Source {
    fn read(host: *const u8, len: usize) -> Self {
        let mut source = Self { bytes: [0; BYTES_MAX] };
        // SAFETY: the caller keeps to the page of a fetch.
        unsafe { copy_out(host, &mut source.bytes[..len]) };
        source
    }
}
