//! What is known of a place in a translation.

use crate::decode::{BlockId, Want};

/// The site of exits that looked an address up and did not find it.
pub(super) const LOOKED_UP: u32 = 0;
/// The site of exits by an exception of the host's processor.
pub(super) const FAULTED: u32 = 1;

/// The site of exits by the interpreter.
pub(super) const INTERPRETED: u32 = 2;

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An access that the TLB did not answer: it is filled and asked again, or the interpreter does the instruction.
    Access {
        /// It writes.
        write: bool,
    },
    /// A window's lookup that the TLB did not answer: it is filled and asked again, or another block goes on; see `window`.
    Window {
        /// Something in it is written.
        write: bool,
    },
    /// The interpreter does the instruction.
    Call,
    /// The same, an indirect branch whose target was not found; where the interpreter comes to is looked up.
    Target,
    /// Vector registers are asked for; see `vector`.
    Vector(u8),
    /// The host's processor may raise an exception here, and nothing else happens.
    Native,
    /// An exit to an address in this page, which can be linked.
    Link,
    /// An exit to an address off this page, which can be linked; see `cross`.
    Cross,
    /// An exit to the same instruction in a block with other windows, which can be linked.
    Narrower(Want),
    /// A look at what is after a border did not find what was known; see `border`.
    Border,
    /// An exit because something wants attention.
    Attention,
    /// An exit because the code has changed.
    Stale,
    /// See [`LOOKED_UP`].
    Jump,
    /// See [`FAULTED`].
    Fault,
    /// See [`INTERPRETED`].
    Exit,
}

impl Kind {
    /// Whether its slow path may ask again where it came from.
    pub(super) fn is_retried(self) -> bool {
        matches!(self, Self::Access { .. } | Self::Window { .. } | Self::Vector(_))
    }
}

/// A place in a translation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site {
    pub kind: Kind,
    /// Where in its page the guest's instruction is (or, of an exit, where it leads).
    pub offset: u16,
    /// Status flags are the host's, and needed.
    pub flags_live: bool,
    /// Of a link: it leads to an address after the start of its own block.
    pub forward: bool,
    /// The instruction's name: an [`iced_x86::Mnemonic`].
    pub mnemonic: u16,
    /// The version of the page that was translated.
    pub version: u32,
    /// An offset into the area: where to try again; of a native instruction, where it is; of a link, its displacement; of a jump to
    /// another page, its start; of a stale block, its entry.
    pub at: u32,
    /// Where to go on after the interpreter did the instruction, 0 to leave; of a window, where to go on without; of a border, its number.
    pub resume: u32,
    /// The instruction as a block of its own, or the block that a link leads to, once it has been needed.
    pub block: BlockId,
}

const _: () = assert!(size_of::<Site>() == 24);

impl Site {
    pub(super) fn new(kind: Kind, offset: u16) -> Self {
        Self {
            kind,
            offset,
            flags_live: false,
            forward: false,
            mnemonic: 0,
            version: 0,
            at: 0,
            resume: 0,
            block: BlockId::NONE,
        }
    }
}
