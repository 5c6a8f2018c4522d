//! Exceptions, and how an instruction ends.

/// An exception that an instruction raises (SDM volume 3, chapter 6). RIP stays at the instruction.
///
/// The address of a page fault is in `Cpu::fault_address`; it becomes CR2 when the fault is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Whether `error` is pushed.
    pub has_error: bool,
    /// Error code.
    pub error: u32,
}

impl Fault {
    const fn plain(vector: u8) -> Self {
        Self { vector, has_error: false, error: 0 }
    }

    const fn coded(vector: u8, error: u32) -> Self {
        Self { vector, has_error: true, error }
    }

    /// Divide error.
    pub const DE: Self = Self::plain(0);
    /// Debug exception; DR6 has been set.
    pub const DB: Self = Self::plain(1);
    /// BOUND range exceeded.
    pub const BR: Self = Self::plain(5);
    /// Invalid opcode.
    pub const UD: Self = Self::plain(6);
    /// Device not available.
    pub const NM: Self = Self::plain(7);
    /// x87 floating-point error.
    pub const MF: Self = Self::plain(16);
    /// Alignment check.
    pub const AC: Self = Self::coded(17, 0);
    /// SIMD floating-point exception.
    pub const XM: Self = Self::plain(19);
    /// General protection, error code 0.
    pub const GP0: Self = Self::coded(13, 0);
    /// Stack fault, error code 0.
    pub const SS0: Self = Self::coded(12, 0);

    /// General protection with a selector.
    pub const fn gp(selector: u16) -> Self {
        Self::coded(13, (selector & 0xfffc) as u32)
    }

    /// Stack fault with a selector.
    pub const fn ss(selector: u16) -> Self {
        Self::coded(12, (selector & 0xfffc) as u32)
    }

    /// Segment not present.
    pub const fn np(selector: u16) -> Self {
        Self::coded(11, (selector & 0xfffc) as u32)
    }

    /// Invalid TSS.
    pub const fn ts(selector: u16) -> Self {
        Self::coded(10, (selector & 0xfffc) as u32)
    }

    /// Page fault; the caller has set `Cpu::fault_address`.
    pub const fn pf(error: u32) -> Self {
        Self::coded(14, error)
    }
}

/// A result that may be an exception.
pub type Exec<T = ()> = Result<T, Fault>;

/// How an instruction that raised no exception ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next instruction of the block; RIP is advanced by the caller.
    Next,
    /// RIP has been set by the instruction; the block ends.
    Jump,
    /// As `Next`, but the block ends: what decides how the following bytes are decoded, translated or interrupted may have changed.
    End,
    /// As `End`; the processor now waits: look at `Cpu::run_state` and the attention bits.
    Wait,
    /// RIP unchanged: the instruction goes on later (a string instruction between iterations when something wants attention).
    Again,
}
