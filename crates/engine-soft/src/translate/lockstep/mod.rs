//! Lock-step: every translated block is run in both tiers from the same state, and what came of it compared.
//!
//! A debug option (`UMBRA_LOCKSTEP`, [`crate::SoftEngine::in_lockstep`]) for machines of one processor. Blocks are not linked. A run of a block
//! is cut into *segments* of instructions that the translation does by itself; whatever it leaves to the interpreter (devices, system
//! instructions, faults, accesses that the TLB does not answer) lies between segments, and happens once. A segment is run
//!
//! 1. by the translation, which goes as it always does; pages of memory are kept as they were before they are first written;
//! 2. by the interpreter, instruction by instruction, from the state and the memory that the segment began with,
//!
//! and then registers, flags, control state, vector state and every page written by either must be the same. The machine goes on from what the
//! translation made.
//!
//! - *Writes* are seen because at the start of a segment no TLB entry allows them: the first to each page takes the slow path, which keeps the page.
//! - *Status flags* that nobody needs may differ ([`super::flags`]). So the interpreter keeps its own: the difference is carried from segment to
//!   segment, and an error once an instruction makes something of it. Exceptions and interrupts end that: a handler may see them.
//! - *Accessed and dirty bits* that a page walk sets within a segment are no instruction's result; their entries are left as they are.
//! - Code that a device writes over while it runs is not compared.
//! - What the first tier writes into MSRs other than those listed in `snapshot`, or leaves in the TLB, is not compared.
//! - Nobody else may write what a segment writes: other processors are refused, and devices that write guest memory on threads of their own
//!   would be taken for a difference where they hit the very words.
//!
//! | file | what |
//! |---|---|
//! | `snapshot` | registers and control state |
//! | `pages` | memory that a segment wrote |
//! | `replay` | a segment in the interpreter, and the comparison |
//! | `report` | what is told of a difference |

mod pages;
mod replay;
mod report;
mod snapshot;

use std::collections::HashMap;
use std::sync::OnceLock;

use iced_x86::{Instruction, Mnemonic};
use umbra_memory::CodePage;

pub(crate) use self::pages::Noting;
use self::pages::{Pages, Walked};
use self::snapshot::Snapshot;
use super::run::Left;
use crate::cpu::{Cpu, VectorState};
use crate::decode::Block;
use crate::exec::Exit;
use crate::fault::Fault;
use crate::mmu::Tlb;

/// How often a block is compared if all its runs are.
const ALWAYS: u32 = u32::MAX;
/// TLB entries that are remembered while nothing is compared.
const GRANTED_MAX: usize = 1 << 12;

/// What the environment asks for: 1 for every run of every block, more for so many runs of each.
pub(crate) fn asked() -> Option<u32> {
    static ASKED: OnceLock<Option<u32>> = OnceLock::new();
    let asked = || std::env::var("UMBRA_LOCKSTEP").ok().and_then(|text| text.parse().ok());
    (*ASKED.get_or_init(asked)).filter(|runs| *runs > 0)
}

/// What lock-step remembers.
pub(crate) struct Lockstep {
    /// How many runs of a block are compared.
    runs: u32,
    /// A segment is being run by the translation.
    open: bool,
    /// The state that it began with.
    start: Snapshot,
    /// Vector state that it began with, if it has been kept: before the segment first uses any.
    start_vector: Box<VectorState>,
    has_vector: bool,
    /// What the translation made of it.
    translated: Snapshot,
    translated_vector: Box<VectorState>,
    pages: Pages,
    walked: Walked,
    /// TLB entries that have been given leave to write.
    granted: Vec<usize>,
    /// Status flags that the interpreter has otherwise: to be taken as different from `Fast::status`, and since which block.
    stale: u16,
    stale_since: u64,
    /// Lengths of translations, by where they are.
    lengths: HashMap<usize, usize>,
    /// The segment at hand is not the first of its run: it may be empty.
    goes_on: bool,
    /// The run of the block at hand is compared.
    comparing: bool,
    /// The translation at hand; the page that it is of, and in which version.
    code: *const u8,
    page: (*const CodePage, u32),
    /// Runs of blocks that have been compared and not yet told.
    pub(crate) compared: u64,
    /// The difference that has been found.
    found: Option<String>,
}

// SAFETY: pointers are to guest memory and to translations of the processor that owns this.
unsafe impl Send for Lockstep {}

/// How a segment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Before an instruction that the translation leaves to the interpreter, or before the first: RIP is its address.
    Before,
    /// By a branch or at the end of the block: RIP is where it leads.
    Left,
    /// The instruction at RIP raised this.
    Fault(Fault),
}

impl Lockstep {
    /// For a processor in this state.
    pub(crate) fn new(cpu: &Cpu, runs: u32) -> Box<Self> {
        Box::new(Self {
            runs: if runs == 1 { ALWAYS } else { runs },
            open: false,
            start: Snapshot::of(cpu),
            start_vector: cpu.vector.clone(),
            has_vector: false,
            translated: Snapshot::of(cpu),
            translated_vector: cpu.vector.clone(),
            pages: Pages::default(),
            walked: Walked::default(),
            granted: Vec::new(),
            stale: 0,
            stale_since: 0,
            lengths: HashMap::new(),
            goes_on: false,
            comparing: false,
            code: std::ptr::null(),
            page: (std::ptr::null(), 0),
            compared: 0,
            found: None,
        })
    }

    /// TLB entry `index` is about to allow writes to the page at `host`, which is at `gpa`.
    pub(crate) fn note_write(&mut self, index: usize, gpa: u64, host: *mut u8) {
        self.granted.push(index);
        if self.open {
            self.pages.note(gpa & !0xfff, host.map_addr(|a| a & !0xfff));
        }
    }

    /// Lets no TLB entry allow writes.
    fn withdraw(&mut self, tlb: &mut Tlb) {
        for index in self.granted.drain(..) {
            tlb.entries[index].write = crate::mmu::no_tag(index);
        }
    }

    /// Forgets what is known of translations, which have been forgotten.
    pub(super) fn clear(&mut self) {
        self.lengths.clear();
    }

    /// Where a page walk notes the entries that it changes.
    pub(crate) fn walked(&self) -> Option<&Walked> {
        self.open.then_some(&self.walked)
    }

    /// The host code of a translation.
    pub(super) fn translation(&self, code: *const u8) -> &[u8] {
        match self.lengths.get(&(code as usize)) {
            // SAFETY: this much of code is there; nothing is written over it while one of its blocks is known.
            Some(len) => unsafe { std::slice::from_raw_parts(code, *len) },
            None => &[],
        }
    }

    /// Whether the code is still what was translated.
    fn is_current(&self) -> bool {
        // SAFETY: guest memory's tracking outlives the processor.
        unsafe { (*self.page.0).version() == self.page.1 }
    }

    /// A translation has been made.
    pub(super) fn note_translation(&mut self, code: *const u8, len: usize) {
        self.lengths.insert(code as usize, len);
    }
}

impl Cpu {
    /// From now on translations are compared; see [`asked`] for `runs`.
    pub(crate) fn start_lockstep(&mut self, runs: u32) {
        self.lockstep = Some(Lockstep::new(self, runs));
    }

    /// The interpreter and the translations have the same flags: what comes next may look at them.
    pub(crate) fn agree_on_flags(&mut self) {
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.stale = 0;
        }
    }

    /// Whether two runs of an instruction would never come to the same, so that in lock-step the interpreter does it, once.
    pub(super) fn happens_once(&self, i: &Instruction) -> bool {
        self.lockstep.is_some() && matches!(i.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed)
    }

    /// What differed.
    pub(crate) fn lockstep_report(&mut self) -> String {
        self.lockstep.as_mut().and_then(|l| l.found.take()).unwrap_or_default()
    }

    /// Runs the translation of a block, compared if that is asked for and still to be done for this block.
    #[inline]
    pub(crate) fn run_block(&mut self, block: *mut Block, code: *const u8) -> Left {
        if self.lockstep.is_some() { self.run_compared(block, code) } else { self.run_translation(code) }
    }

    fn run_compared(&mut self, block: *mut Block, code: *const u8) -> Left {
        // SAFETY: the run loop gives a block that exists.
        let block = unsafe { &mut *block };
        let Some(lockstep) = &mut self.lockstep else { return Left::Attention };
        // Until it was translated this counted something else.
        lockstep.comparing = block.heat < lockstep.runs;
        if !lockstep.comparing {
            lockstep.stale = 0;
            if lockstep.granted.len() > GRANTED_MAX {
                lockstep.withdraw(&mut self.tlb);
            }
            return self.run_translation(code);
        }
        block.heat = block.heat.saturating_add(1);
        (lockstep.code, lockstep.page) = (code, (block.code, block.version));
        lockstep.compared += 1;
        self.begin_segment(false);
        let left = self.run_translation(code);
        let end = match left {
            Left::Attention | Left::Stale(_) | Left::Window(..) => End::Before,
            Left::Exit(Exit::Fault) => End::Fault(self.fast.fault),
            _ => End::Left,
        };
        self.end_segment(end);
        // It may have been found before.
        if self.lockstep.as_ref().is_some_and(|l| l.found.is_some()) { Left::Different } else { left }
    }

    /// A segment begins at RIP.
    fn begin_segment(&mut self, goes_on: bool) {
        let Some(mut lockstep) = self.lockstep.take() else { return };
        lockstep.withdraw(&mut self.tlb);
        lockstep.pages.clear();
        lockstep.walked.clear();
        lockstep.start = Snapshot::of(self);
        lockstep.has_vector = false;
        (lockstep.open, lockstep.goes_on) = (true, goes_on);
        self.lockstep = Some(lockstep);
    }

    /// The segment is about to use vector state, which is in the state block.
    pub(super) fn keep_vectors(&mut self) {
        if let Some(lockstep) = self.lockstep.as_mut().filter(|l| l.open && !l.has_vector) {
            lockstep.has_vector = true;
            lockstep.start_vector.clone_from(&self.vector);
            // If it is the interpreter who comes to use it first, it is what the translation left.
            lockstep.translated_vector.clone_from(&self.vector);
        }
    }

    /// The translation leaves the instruction at RIP to the interpreter: its segment ends here. Whether all is well.
    pub(super) fn before_interpreted(&mut self) -> bool {
        self.end_segment(End::Before) && self.carry_flags()
    }

    /// The instruction at RIP raises this in a translation. Whether all is well.
    pub(super) fn before_fault(&mut self, fault: Fault) -> bool {
        self.end_segment(End::Fault(fault))
    }

    /// The interpreter did an instruction, and the translation goes on at RIP.
    pub(super) fn after_interpreted(&mut self) {
        if self.lockstep.as_ref().is_some_and(|l| l.comparing) {
            self.begin_segment(true);
            if self.fast.wanted != 0 {
                self.keep_vectors();
            }
        }
    }
}
