//! Tier 1, the translator: hot blocks of flat 32-bit and 64-bit code as code of the host.
//!
//! Guest and host are the same architecture, so most instructions are re-encoded with other registers and, where they have a memory
//! operand, run on the host address of the guest's bytes. What is left (system instructions, anything rare, every access that the software
//! TLB does not answer) is a call into the interpreter for that one instruction.
//!
//! | guest | host, while translated code runs |
//! |---|---|
//! | RAX to RDI but RSP, R8, R9, R12 to R14 | the same registers |
//! | RSP | R15 |
//! | R10, R11, R15 | in the state block; loaded where an instruction uses them |
//! | status flags | the host's, or `Fast::status` where address lookups come between; see `flags` |
//! | vector and opmask registers, MXCSR | the host's, once a block has asked for them; see `vector` |
//! | x87 and MMX | in the state block; the interpreter's |
//!
//! Host R10 and R11 are scratch, RSP is the engine's stack, GS is based at the state block ([`crate::cpu::Cpu`]).
//!
//! Translations are position-independent: what they need of RIP is the page (`Fast::page`) that they run at, so that one translation
//! serves all address spaces that map a page of code. Branches within the page are linked by patching; all others are looked up in a table by
//! linear address and key. Each block looks at its page's version and at the attention word when it is entered.
//!
//! | file | what |
//! |---|---|
//! | `asm` | the assembler of the fixed parts |
//! | `block` | from guest code to a translation |
//! | `form` | which instruction is translated how |
//! | `flags` | where status flags are needed |
//! | `memory` | address lookup |
//! | `copy` | instructions with other registers |
//! | `branch` | control flow, stack |
//! | `system` | frequent system instructions |
//! | `site` | what is known of places in translations |
//! | `enter` | into translations and out of them |
//! | `slow` | what translations call |
//! | `lockstep` | a debug option: every block in both tiers, compared |
//! | `validate` | an independent look at what was emitted, before it runs |
//! | `vector` | vector registers |

mod asm;
mod block;
mod branch;
mod copy;
pub(crate) mod enter;
mod flags;
mod form;
pub(crate) mod lockstep;
mod memory;
mod run;
mod site;
mod slow;
mod system;
mod validate;
mod vector;

#[cfg(test)]
mod test;

use std::sync::OnceLock;

use iced_x86::Mnemonic;
use umbra_engine::EngineError;

use crate::native::{Area, Pool};
use site::{Kind, Site};

pub(crate) use enter::{HostFault, find_fault};
pub(crate) use run::Left;

/// Entries of the table by linear address.
const JUMPS: usize = 1 << 13;
/// How often a block runs in the interpreter before it is translated.
const AFTER: u32 = 64;
/// Sites that a processor may have.
const SITES_MAX: usize = 1 << 20;

/// A translation found by linear address.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Jump {
    pub rip: u64,
    /// `Fast::key`, or `Fast::global_key`.
    pub key: u64,
    pub code: *const u8,
    /// The page of `rip`.
    pub page: u64,
}

impl Jump {
    /// Bit 9 of a key is never set.
    const NONE: Self = Self { rip: 0, key: 1 << 9, code: std::ptr::null(), page: 0 };
}

/// There is no room for more translations until all are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Translations of one processor.
pub struct Translator {
    area: Area,
    sites: Vec<Site>,
    jumps: Box<[Jump]>,
    /// How often a block runs in the interpreter first; `u32::MAX` for ever.
    pub(crate) after: u32,
}

// SAFETY: pointers lead into its own area, the processor's block cache and guest memory's tracking, which live as long.
unsafe impl Send for Translator {}

impl Translator {
    /// No translations yet.
    ///
    /// # Errors
    /// The host allows no executable memory.
    pub(crate) fn new() -> Result<Box<Self>, EngineError> {
        let mut translator = Self {
            area: Area::new(Pool::Blocks)?,
            sites: Vec::new(),
            jumps: vec![Jump::NONE; JUMPS].into(),
            after: after(),
        };
        translator.clear();
        Ok(Box::new(translator))
    }

    /// Forgets all translations; none may be running.
    pub(crate) fn clear(&mut self) {
        self.area.clear();
        self.sites.clear();
        // Those whose numbers `site` names.
        self.sites.extend([Kind::Jump, Kind::Fault, Kind::Exit].map(|kind| Site::new(kind, 0)));
        self.jumps.fill(Jump::NONE);
    }

    fn jump_index(rip: u64, hash: u64) -> usize {
        (rip ^ rip >> 13 ^ hash) as usize % JUMPS
    }

    /// What instruction a site is of.
    pub(crate) fn mnemonic(&self, site: u32) -> Option<Mnemonic> {
        let site = self.sites.get(site as usize).filter(|site| site.mnemonic != 0)?;
        Mnemonic::try_from(usize::from(site.mnemonic)).ok()
    }

    /// What the table by linear address holds.
    #[cfg(test)]
    fn table(&self) -> &[Jump] {
        &self.jumps
    }

    /// The table by linear address.
    pub(crate) fn jumps(&self) -> *const Jump {
        self.jumps.as_ptr()
    }
}

/// After how many runs in the interpreter a block is translated. The environment can say otherwise, to find faults of one tier.
fn after() -> u32 {
    static SAID: OnceLock<u32> = OnceLock::new();
    let said = || std::env::var("UMBRA_TRANSLATE_AFTER").ok().and_then(|text| text.parse().ok());
    *SAID.get_or_init(|| said().unwrap_or(AFTER))
}

/// What of a key goes into the place in the table: programs are mapped in many contexts at the same addresses.
pub(crate) fn hash_of(key: u64) -> u64 {
    (key >> 16).wrapping_mul(0x9e5)
}

/// The key of code that is there in every context: that of context zero, which is none.
pub(crate) fn global_key(key: u64) -> u64 {
    key & !0xffff_0000
}
