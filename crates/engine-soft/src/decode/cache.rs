//! Where blocks are kept: one piece of memory that is filled from its start and emptied as a whole.

use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use iced_x86::Instruction;
use umbra_memory::CodePage;

use crate::exec::{Op, OpRef};
use crate::vm::thread_time;

/// The most instructions of a block: keeps the wait for attention and the stack of a debug build short.
pub(crate) const INSTRUCTIONS_MAX: usize = 64;
/// Eight-byte words for the blocks of a machine at first: 8 MiB, which the start of a Linux guest fills a few times. Its processors
/// mostly run the same code, and share them...
const WORDS_FIRST: usize = 8 << 17;
/// ... and at last, each: 96 MiB.
const WORDS_LAST: usize = 96 << 17;
/// No processor has less than 2 MiB.
const WORDS_MIN: usize = 2 << 17;
/// A cache that fills again within this time of its thread, in nanoseconds, over and over...
const SOON: u64 = 3_000_000_000;
/// ... until so many words have been used is too small: its guest works, and does not only start.
const WORDS_SOON: usize = 64 << 17;
/// Sets of the table by physical address, at first.
const SETS: usize = 1 << 12;
/// Blocks of a set, which is a cache line.
const WAYS: usize = 4;
/// Entries of the table by linear address.
const JUMPS: usize = 1 << 14;
/// Eight-byte words of an [`Instruction`].
const INSTRUCTION_WORDS: usize = size_of::<Instruction>().div_ceil(8);
/// The most words of one block.
const BLOCK_WORDS_MAX: usize =
    size_of::<Block>() / 8 + (INSTRUCTIONS_MAX + 1) * (size_of::<Op>() / 8 + INSTRUCTION_WORDS);

/// Where an exit of a block led last time.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Link {
    pub rip: u64,
    /// `Fast::key` at that time.
    pub key: u64,
    pub block: *mut Block,
}

impl Link {
    /// A link that no exit matches: bit 9 of a key is never set.
    const NONE: Self = Self { rip: 0, key: 1 << 9, block: null_mut() };
}

/// The second page of a block whose one instruction crosses pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Second {
    /// Guest physical address of the page.
    pub gpa: u64,
    pub code: *const CodePage,
    pub version: u32,
}

/// A decoded block. Its operations follow it in memory, and the instructions that some of them need follow those.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Block {
    /// The page's code, and the version that the block was made from.
    pub code: *const CodePage,
    pub version: u32,
    /// Instructions.
    pub count: u32,
    /// What the exits `Fall` and `Taken` led to.
    pub links: [Link; 2],
    /// Guest physical address and mode, and what was asked for.
    pub key: u64,
    /// Where the last instruction starts.
    pub last: u16,
    /// Bytes of code.
    pub len: u16,
    /// It may be linked to and found by linear address.
    pub lasting: bool,
    pub second: Option<Second>,
    /// How often it ran in the interpreter since somebody last tried to translate it.
    pub heat: u32,
    /// Its translation, or null.
    pub code_at: *const u8,
    /// How far before that it is entered with flags in the host's, and how far after it without a look at attention and version.
    pub spill_at: u8,
    pub light_at: u8,
}

const _: () =
    assert!(size_of::<Block>().is_multiple_of(8) && align_of::<Block>() == 8 && align_of::<Op>() == 8);

impl Block {
    /// Whether the code is still what the block was made from.
    #[inline(always)]
    pub(crate) fn is_current(&self) -> bool {
        // SAFETY: guest memory's tracking lives as long as the processor; a block from a device has null here and is never entered twice.
        !self.lasting || unsafe { (*self.code).version() } == self.version
    }

    /// As [`Block::is_current`], for both pages.
    pub(super) fn is_whole(&self) -> bool {
        // SAFETY: as above.
        let version = |code: *const CodePage| unsafe { (*code).version() };
        !self.code.is_null()
            && version(self.code) == self.version
            && self.second.is_none_or(|s| version(s.code) == s.version)
    }

    /// The first operation.
    #[inline(always)]
    pub(crate) fn ops(this: *mut Block) -> OpRef {
        // SAFETY: `Cache::push` puts operations behind every block, the last of which leaves it; a block stays until the cache is emptied,
        // which only happens between blocks.
        unsafe { OpRef::new(this.add(1).cast()) }
    }
}

/// A block by its place in the cache; good until that is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockId(u32);

impl BlockId {
    /// No block.
    pub(crate) const NONE: Self = Self(u32::MAX);
}

/// What a block is made of.
pub(super) struct Parts<'a> {
    pub block: Block,
    pub ops: &'a mut [Op],
    /// Instructions to keep, by number of operation.
    pub instructions: &'a [(usize, Instruction)],
}

impl Block {
    pub(super) fn new(key: u64, code: *const CodePage, version: u32) -> Self {
        Self {
            code,
            version,
            count: 0,
            links: [Link::NONE; 2],
            key,
            last: 0,
            len: 0,
            lasting: false,
            second: None,
            heat: 0,
            code_at: null(),
            spill_at: 0,
            light_at: 0,
        }
    }
}

/// A key that no block has: its mode would be impossible.
const NO_KEY: u64 = u64::MAX;

/// Blocks whose keys share a place in the table.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Set {
    keys: [u64; WAYS],
    blocks: [*mut Block; WAYS],
}

impl Set {
    const NONE: Self = Self { keys: [NO_KEY; WAYS], blocks: [null_mut(); WAYS] };
}

/// Decoded blocks of one processor.
pub struct Cache {
    arena: Box<[MaybeUninit<u64>]>,
    /// Words of it that may be used for now.
    limit: usize,
    /// How long the thread had run when those were last all used, and how many were in a row, each time soon after the time before.
    filled: Option<u64>,
    in_a_row: usize,
    used: usize,
    table: Box<[Set]>,
    /// Which block of a full set goes next.
    victim: usize,
    jumps: Box<[Link]>,
    /// Counts how often the cache was emptied.
    pub(crate) epoch: u64,
    /// Work space of the decoder.
    pub(super) ops: Vec<Op>,
    pub(super) instructions: Vec<(usize, Instruction)>,
    /// Instructions in the work space.
    pub(super) count: u32,
    /// Where the last of them starts.
    pub(super) last: u16,
}

// SAFETY: its pointers lead into its own arena and into the tracking of guest memory, which `Shared::memory` keeps alive.
unsafe impl Send for Cache {}

impl Cache {
    /// An empty cache for one of `processors`.
    pub fn new(processors: usize) -> Box<Self> {
        let share = |words: usize| (words / processors.max(1)).max(WORDS_MIN);
        Box::new(Self {
            // Memory comes as it is used.
            arena: Box::new_uninit_slice(share(2 * WORDS_LAST).min(WORDS_LAST)),
            limit: share(WORDS_FIRST),
            filled: None,
            in_a_row: 0,
            used: BLOCK_WORDS_MAX,
            table: vec![Set::NONE; SETS].into(),
            victim: 0,
            jumps: vec![Link::NONE; JUMPS].into(),
            epoch: 0,
            ops: Vec::new(),
            instructions: Vec::new(),
            count: 0,
            last: 0,
        })
    }

    /// Bytes of blocks, and how many there may ever be.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (usize, usize) {
        (8 * self.used, 8 * self.arena.len())
    }

    /// Forgets all blocks.
    pub(crate) fn clear(&mut self) {
        self.used = BLOCK_WORDS_MAX;
        self.table.fill(Set::NONE);
        self.jumps.fill(Link::NONE);
        self.epoch += 1;
    }

    /// All that may be used is: allows more if that happens often, or forgets all blocks.
    fn make_room(&mut self) {
        // Not the host's clock, by which a thread that waits for a processor seems to fill it slowly.
        let now = thread_time();
        let soon = self.filled.replace(now).is_some_and(|before| now.wrapping_sub(before) < SOON);
        self.in_a_row = if soon { self.in_a_row.saturating_add(self.limit) } else { 0 };
        if self.in_a_row >= WORDS_SOON && self.limit < self.arena.len() {
            self.limit = (2 * self.limit).min(self.arena.len());
            self.double_table();
        } else {
            self.clear();
        }
    }

    /// Twice as many sets, with the same blocks.
    fn double_table(&mut self) {
        let len = 2 * self.table.len();
        for set in std::mem::replace(&mut self.table, vec![Set::NONE; len].into()) {
            set.blocks.into_iter().zip(set.keys).filter(|b| b.1 != NO_KEY).for_each(|b| self.insert(b.0));
        }
    }

    fn jump_index(rip: u64, key: u64) -> usize {
        // Kernels are mapped in every context at the same addresses; each shall have entries of its own.
        (rip ^ rip >> 13 ^ (key >> 16).wrapping_mul(0x9e5)) as usize % JUMPS
    }

    /// The block at linear address `rip` that was found before under the same key.
    #[inline(always)]
    pub(crate) fn jump(&self, rip: u64, key: u64) -> Option<*mut Block> {
        let link = &self.jumps[Self::jump_index(rip, key)];
        (link.rip == rip && link.key == key).then_some(link.block)
    }

    /// Remembers a block by linear address.
    pub(super) fn set_jump(&mut self, link: Link) {
        self.jumps[Self::jump_index(link.rip, link.key)] = link;
    }

    /// The place of a block of this cache.
    pub(crate) fn id(&self, block: *const Block) -> BlockId {
        let words = (block as usize).wrapping_sub(self.arena.as_ptr() as usize) / 8;
        u32::try_from(words).map_or(BlockId::NONE, BlockId)
    }

    /// The block at a place.
    #[inline]
    pub(crate) fn block(&mut self, id: BlockId) -> Option<*mut Block> {
        (id != BlockId::NONE).then(|| self.arena.as_mut_ptr().wrapping_add(id.0 as usize).cast())
    }

    fn set(&mut self, key: u64) -> &mut Set {
        &mut self.table[(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & (self.table.len() - 1)]
    }

    /// The block of this key, if its code has not changed. One whose code has changed is taken out.
    pub(super) fn find(&mut self, key: u64) -> Option<*mut Block> {
        let set = self.set(key);
        let way = (0..WAYS).find(|way| set.keys[*way] == key)?;
        let block = set.blocks[way];
        // SAFETY: the table holds blocks of the arena, which stay until `clear`; a key that is found is never that of an empty place.
        if unsafe { (*block).is_whole() } {
            return Some(block);
        }
        set.keys[way] = NO_KEY;
        None
    }

    /// Puts a block into the table of blocks, in the place of another if the set is full.
    pub(super) fn insert(&mut self, block: *mut Block) {
        // SAFETY: `block` was made by `push`.
        let key = unsafe { (*block).key };
        self.victim = (self.victim + 1) % WAYS;
        let victim = self.victim;
        let set = self.set(key);
        let same = set.keys.iter().position(|k| *k == key);
        let way = same.or_else(|| set.keys.iter().position(|k| *k == NO_KEY)).unwrap_or(victim);
        (set.keys[way], set.blocks[way]) = (key, block);
    }

    /// Lays out a block in memory; empties the cache if there is no room. `passing` blocks live until the next one.
    pub(super) fn push(&mut self, parts: Parts<'_>, passing: bool) -> *mut Block {
        let head = size_of::<Block>() / 8;
        let each = size_of::<Op>() / 8;
        let words = head + parts.ops.len() * each + parts.instructions.len() * INSTRUCTION_WORDS;
        debug_assert!(words <= BLOCK_WORDS_MAX);
        if !passing && self.used + words > self.limit {
            self.make_room();
        }
        let start = if passing { 0 } else { self.used };
        if !passing {
            self.used += words;
        }
        let first = head + parts.ops.len() * each;
        for (n, (op, _)) in parts.instructions.iter().enumerate() {
            let at = first + n * INSTRUCTION_WORDS;
            parts.ops[*op].instruction = (at - head - op * each) as u16;
        }
        let base = self.arena[start..start + words].as_mut_ptr();
        // SAFETY: the slice has room for all three parts, which are written at multiples of eight bytes, their alignment.
        unsafe {
            base.cast::<Block>().write(parts.block);
            let ops = base.add(head).cast::<Op>();
            ops.copy_from_nonoverlapping(parts.ops.as_ptr(), parts.ops.len());
            for (n, (_, instruction)) in parts.instructions.iter().enumerate() {
                base.add(first + n * INSTRUCTION_WORDS).cast::<Instruction>().write(*instruction);
            }
        }
        base.cast()
    }
}
