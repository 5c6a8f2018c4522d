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
//! serves all address spaces that map a page of code. Branches within the page are linked by patching; direct ones to other pages too, for the
//! page and the key that they were last taken with; all others are looked up in a table by linear address and key. Each block looks
//! at its page's version and at the attention word when it is entered, but from a block before it in the page.
//!
//! | file | what |
//! |---|---|
//! | `asm` | the assembler of the fixed parts |
//! | `block` | from guest code to a translation |
//! | `border` | instructions that lie on two pages |
//! | `form` | which instruction is translated how |
//! | `flags` | where status flags are needed |
//! | `memory` | address lookup |
//! | `copy` | instructions with other registers |
//! | `branch` | control flow, stack |
//! | `cross` | direct branches to other pages |
//! | `system` | frequent system instructions |
//! | `site` | what is known of places in translations |
//! | `enter` | into translations and out of them |
//! | `slow` | what translations call |
//! | `lockstep` | a debug option: every block in both tiers, compared |
//! | `validate` | an independent look at what was emitted, before it runs |
//! | `vector` | vector registers |
//! | `window` | one lookup for several accesses |

mod asm;
mod block;
mod border;
mod branch;
mod copy;
mod cross;
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
mod window;

#[cfg(test)]
mod test;

use std::sync::OnceLock;

use iced_x86::Mnemonic;
use umbra_engine::EngineError;

use crate::native::{Area, Pool};
use border::Border;
use site::{Kind, Site};

pub(crate) use enter::{HostFault, find_fault};
pub(crate) use run::Left;
pub(crate) use window::SLOTS;

/// Entries of the table by linear address.
const JUMPS: usize = 1 << 16;
/// The bits of a hash that are the offset of an entry in it.
const JUMP_MASK: usize = (JUMPS - 1) * size_of::<Jump>();
/// How often a block runs in the interpreter before it is translated.
const AFTER: u32 = 32;
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
    /// No key is zero: translated code is flat.
    const NONE: Self = Self { rip: 0, key: 0, code: std::ptr::null(), page: 0 };

    /// Memory for a table of none, which comes as it is used.
    fn table() -> Box<[Self]> {
        // SAFETY: all zeros is `NONE`.
        unsafe { Box::new_zeroed_slice(JUMPS).assume_init() }
    }
}

/// There is no room for more translations until all are forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Translations of one processor.
pub struct Translator {
    area: Area,
    sites: Vec<Site>,
    /// Each where translations know it to be.
    #[allow(clippy::vec_box)]
    borders: Vec<Box<Border>>,
    jumps: Box<[Jump]>,
    /// How often a block runs in the interpreter first; `u32::MAX` for ever.
    pub(crate) after: u32,
    /// Translations that are made from now on count the instructions that they are made of.
    pub(crate) counts: bool,
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
            borders: Vec::new(),
            jumps: Jump::table(),
            after: after(),
            counts: false,
        };
        translator.clear();
        Ok(Box::new(translator))
    }

    /// Forgets all translations; none may be running. The table by linear address is then another.
    pub(crate) fn clear(&mut self) {
        self.area.clear();
        self.sites.clear();
        self.borders.clear();
        // Those whose numbers `site` names.
        self.sites.extend([Kind::Jump, Kind::Fault, Kind::Exit].map(|kind| Site::new(kind, 0)));
        self.jumps = Jump::table();
    }

    /// The place of an address in the table by linear address, as translations compute it.
    fn place(&mut self, rip: u64, hash: u64) -> &mut Jump {
        let hash = checksum(hash, rip) as usize & JUMP_MASK;
        &mut self.jumps[hash / size_of::<Jump>()]
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

/// CRC32 as the instruction computes it.
fn checksum(start: u64, value: u64) -> u64 {
    #[target_feature(enable = "sse4.2")]
    fn native(start: u64, value: u64) -> u64 {
        std::arch::x86_64::_mm_crc32_u64(start, value)
    }
    // SAFETY: [`after`] lets nothing be translated where the host does not have it.
    unsafe { native(start, value) }
}

/// After how many runs in the interpreter a block is translated. The environment can say otherwise, to find faults of one tier.
fn after() -> u32 {
    static SAID: OnceLock<u32> = OnceLock::new();
    let said = || std::env::var("UMBRA_TRANSLATE_AFTER").ok().and_then(|text| text.parse().ok());
    let decide = || if is_x86_feature_detected!("sse4.2") { said().unwrap_or(AFTER) } else { u32::MAX };
    *SAID.get_or_init(decide)
}

/// What of a key goes into the place in the table: programs are mapped in many contexts at the same addresses.
pub(crate) fn hash_of(key: u64) -> u64 {
    (key >> 16).wrapping_mul(0x9e5)
}

/// The key of code that is there in every context: that of context zero, which is none.
pub(crate) fn global_key(key: u64) -> u64 {
    key & !0xffff_0000
}
