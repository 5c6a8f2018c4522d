//! A segment in the interpreter, and the comparison.

use iced_x86::{Decoder, DecoderOptions, Instruction, RflagsBits};

use super::End;
use super::pages::Differing;
use super::snapshot::Snapshot;
use crate::cpu::Cpu;
use crate::decode::{Block, Want};
use crate::exec::{Exit, rflags_of, status_of};
use crate::fault::Fault;
use crate::mmu::copy_out;
use crate::operand::is_canonical;
use crate::translate::block::ITEMS_MAX;

/// The most instructions of a segment.
const STEPS_MAX: usize = 4 * ITEMS_MAX;
/// The longest instruction.
const INSTRUCTION_MAX: usize = 15;

/// How the interpreter came to something else.
pub(super) enum Difference {
    /// Registers: name, translated, interpreted.
    State(Vec<(String, String, String)>),
    /// A word of memory.
    Memory(Differing),
    /// It went another way: where it was when that showed, and what it did.
    Way(u64, String),
    /// Flags that were taken for dead are read by this.
    Flags(Instruction, u64),
}

impl Cpu {
    /// Ends the segment, if one is open, by running it in the interpreter. Whether that came to the same.
    pub(super) fn end_segment(&mut self, end: End) -> bool {
        let Some(mut lockstep) = self.lockstep.take_if(|l| l.open) else { return true };
        lockstep.translated = Snapshot::of(self);
        if lockstep.has_vector {
            lockstep.translated_vector.clone_from(&self.vector);
        }
        let (fault, exit) = (self.fast.fault, self.fast.exit);
        lockstep.pages.rewind();
        lockstep.start.restore(self);
        self.fast.status ^= lockstep.stale;
        if lockstep.has_vector {
            self.vector.clone_from(&lockstep.start_vector);
        }
        let (before, event) = (lockstep.stale, self.fast.event);
        // The interpreter's writes are noted as well.
        self.lockstep = Some(lockstep);
        let done = self.replay(end);
        let Some(mut lockstep) = self.lockstep.take() else { return true };
        lockstep.open = false;
        lockstep.pages.settle(&lockstep.walked);
        if let Err(difference) = &done
            && lockstep.is_current()
        {
            lockstep.found = Some(self.describe(&lockstep, difference));
        }
        lockstep.stale = lockstep.translated.status ^ self.fast.status;
        if lockstep.stale & !before != 0 {
            lockstep.stale_since = lockstep.start.rip;
        }
        lockstep.translated.restore(self);
        if lockstep.has_vector {
            self.vector.clone_from(&lockstep.translated_vector);
        }
        (self.fast.fault, self.fast.exit, self.fast.event) = (fault, exit, event);
        let is_well = lockstep.found.is_none();
        self.lockstep = Some(lockstep);
        is_well
    }

    /// Runs the interpreter until it is where the translation was, in the same state.
    fn replay(&mut self, end: End) -> Result<(), Difference> {
        let Some(lockstep) = &self.lockstep else { return Ok(()) };
        let target = lockstep.translated.rip;
        // A block that left has done something, if only to lead back to its start.
        let least = usize::from(end == End::Left && !lockstep.goes_on);
        let mut first = None;
        for step in 0..STEPS_MAX {
            let here = self.rip;
            let is_there = here == target && step >= least;
            if is_there && !matches!(end, End::Fault(_)) {
                match self.difference() {
                    None => return Ok(()),
                    // A loop may come here more than once.
                    Some(difference) => first = first.or(Some(difference)),
                }
            }
            match (self.replay_one(), end) {
                (Exit::Fall | Exit::Taken | Exit::Jump | Exit::State, _) => {}
                (Exit::Fault, End::Fault(fault)) if is_there && self.fast.fault == fault => {
                    return self.difference().map_or(Ok(()), Err);
                }
                (Exit::Fault, _) => {
                    let what = format!("raised {:?}", self.fast.fault);
                    return Err(first.unwrap_or(Difference::Way(here, what)));
                }
                (exit, _) => return Err(first.unwrap_or(Difference::Way(here, format!("ended by {exit:?}")))),
            }
        }
        Err(first.unwrap_or(Difference::Way(self.rip, format!("never came to {target:#x}"))))
    }

    /// Does one instruction.
    fn replay_one(&mut self) -> Exit {
        let block = match self.look_up_block(Want::Alone) {
            Ok(block) => block,
            Err(fault) => return self.replayed_fault(fault),
        };
        let first = Block::ops(block);
        if first.instruction != 0 {
            // Done by the host's processor or in Rust, where vector state may change.
            self.keep_vectors();
        }
        let start = self.rip;
        let exit = (first.run)(self, first);
        // The shadow of STI ends with the instruction after it; translations know none.
        self.shadow = crate::cpu::Shadow::None;
        self.fast.event = 0;
        if matches!(exit, Exit::Taken | Exit::Jump)
            && (!is_canonical(self.rip) || self.rip > self.fast.rip_max)
        {
            self.rip = start;
            return self.replayed_fault(Fault::GP0);
        }
        exit
    }

    fn replayed_fault(&mut self, fault: Fault) -> Exit {
        self.fast.fault = fault;
        Exit::Fault
    }

    /// How what the interpreter has come to differs from what the translation made.
    fn difference(&self) -> Option<Difference> {
        let lockstep = self.lockstep.as_ref()?;
        let now = Snapshot { status: lockstep.translated.status, ..Snapshot::of(self) };
        if now != lockstep.translated {
            return Some(Difference::State(lockstep.translated.differences(&now)));
        }
        if lockstep.has_vector {
            let (a, b) = (&lockstep.translated_vector, &self.vector);
            let all = super::report::vector_differences(a, b);
            if !all.is_empty() {
                return Some(Difference::State(all));
            }
        }
        lockstep.pages.difference(&lockstep.walked).map(Difference::Memory)
    }

    /// The instruction at RIP is now done once, with the translation's flags. Those that differ from the interpreter's must not matter to it.
    pub(super) fn carry_flags(&mut self) -> bool {
        let Some(stale) = self.lockstep.as_ref().map(|l| l.stale).filter(|stale| *stale != 0) else {
            return true;
        };
        let Some(i) = self.instruction_at_rip() else {
            self.agree_on_flags();
            return true;
        };
        let bits = |flags: u32| status_of(bits_of(flags));
        let Some(mut lockstep) = self.lockstep.take() else { return true };
        if stale & bits(i.rflags_read()) == 0 {
            lockstep.stale &= !bits(i.rflags_modified());
        } else {
            let difference = Difference::Flags(i, rflags_of(stale));
            lockstep.found = Some(self.describe(&lockstep, &difference));
        }
        let is_well = lockstep.found.is_none();
        self.lockstep = Some(lockstep);
        is_well
    }

    /// The instruction at RIP, if it lies in one page.
    fn instruction_at_rip(&mut self) -> Option<Instruction> {
        let mut bytes = [0; INSTRUCTION_MAX];
        let len = self.code_at(self.rip, &mut bytes);
        let mut decoder =
            Decoder::with_ip(self.mode.code.into(), &bytes[..len], self.rip, DecoderOptions::NONE);
        Some(decoder.decode()).filter(|i| !i.is_invalid())
    }

    /// Reads code up to the end of its page: how many bytes.
    pub(super) fn code_at(&mut self, rip: u64, bytes: &mut [u8]) -> usize {
        let Ok(fetch) = self.fetch(rip) else { return 0 };
        if fetch.host.is_null() {
            return 0;
        }
        let len = bytes.len().min(4096 - (rip & 0xfff) as usize);
        // SAFETY: a fetch gives an address in a page of guest memory, and the length keeps to it.
        unsafe { copy_out(fetch.host, &mut bytes[..len]) };
        len
    }
}

/// Flags of the decoder as bits of RFLAGS.
fn bits_of(flags: u32) -> u64 {
    use umbra_x86::reg::Rflags as R;
    let all = [
        (RflagsBits::CF, R::CF),
        (RflagsBits::PF, R::PF),
        (RflagsBits::AF, R::AF),
        (RflagsBits::ZF, R::ZF),
        (RflagsBits::SF, R::SF),
        (RflagsBits::OF, R::OF),
    ];
    all.iter().filter(|(bit, _)| flags & bit != 0).fold(0, |bits, (_, flag)| bits | flag.bits())
}
