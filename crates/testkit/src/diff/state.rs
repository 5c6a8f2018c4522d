//! A processor's user-mode state, code that runs on it, and how it ended.

/// Linear address of the code page.
pub const CODE: u64 = 0x1000_0000;
/// Where in it the instruction starts.
pub const CODE_OFFSET: u64 = 0x800;
/// Most bytes of code that a test has.
pub const CODE_MAX: usize = 512;
/// Bytes of code around it, all INT3.
pub const CODE_SIZE: u64 = 0x1000;
/// Linear address of the data pages: one that is not there, two to read and write, one to read, one that is not there.
pub const DATA: u64 = 0x2000_0000;
/// Base of GS in 64-bit mode. That of FS is the child's C library's.
pub const GS_BASE: u64 = 0x1800_0000;
/// Bytes of a page.
pub const PAGE: u64 = 0x1000;
/// Bytes of all of them.
pub const DATA_SIZE: u64 = 0x5000;
/// What the read-only page is filled with.
pub const READ_ONLY_BYTE: u8 = 0x5a;
/// Bytes of memory that are compared.
pub const WINDOW: usize = 1024;
/// Offsets in the data pages where the compared bytes may start: at the first page that is there, across the two, before the read-only one.
pub const WINDOWS: [u64; 3] = [0x1000, 0x1e00, 0x2c00];

/// Registers and memory.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct State {
    /// ZMM0 to ZMM31.
    pub zmm: [[u8; 64]; 32],
    /// The first 160 bytes of an FXSAVE64 image: x87 and MXCSR.
    pub fx: [u8; 160],
    /// K0 to K7.
    pub k: [u64; 8],
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Offset in the code segment.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Where the compared bytes start.
    pub window: u64,
    /// The compared bytes.
    pub memory: [u8; WINDOW],
}

impl State {
    /// All zero, with the initial control words.
    pub fn empty() -> Self {
        let mut fx = [0; 160];
        fx[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        fx[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        Self {
            zmm: [[0; 64]; 32],
            fx,
            k: [0; 8],
            gpr: [0; 16],
            rip: CODE + CODE_OFFSET,
            rflags: 2,
            window: DATA + WINDOWS[0],
            memory: [0; WINDOW],
        }
    }
}

/// How wide code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Bits {
    /// A 16-bit code segment, with 16-bit data and stack segments, all with bases.
    Sixteen = 16,
    /// A flat 32-bit code segment.
    ThirtyTwo = 32,
    /// 64-bit mode.
    SixtyFour = 64,
}

impl Bits {
    /// As a number.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// What is added to an offset in CS.
    pub fn code_base(self) -> u64 {
        if self == Self::Sixteen { CODE } else { 0 }
    }

    /// What is added to an offset in DS, ES and SS.
    pub fn data_base(self) -> u64 {
        if self == Self::Sixteen { DATA } else { 0 }
    }

    /// General registers that exist.
    pub fn register_count(self) -> usize {
        if self == Self::SixtyFour { 16 } else { 8 }
    }
}

/// Code to run.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Test {
    /// The state before.
    pub state: State,
    /// An instruction, or more; INT3 follows.
    pub code: [u8; CODE_MAX],
    /// Its length.
    pub code_len: u32,
    /// The mode.
    pub bits: Bits,
}

impl Test {
    /// The code.
    pub fn code(&self) -> &[u8] {
        &self.code[..(self.code_len as usize).min(CODE_MAX)]
    }

    /// RIP after the INT3 behind the code.
    pub fn end(&self) -> u64 {
        self.state.rip + u64::from(self.code_len) + 1
    }
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Outcome {
    /// The state after.
    pub state: State,
    /// The exception; 3 is the INT3 after the instruction.
    pub vector: u32,
    /// Its error code, or 0.
    pub error: u32,
    /// The address of a page fault, or 0.
    pub address: u64,
    /// A digest of both pages that can be written, which has more than the compared bytes.
    pub pages: u64,
}

/// What [`Outcome::vector`] says of a test that did not end by itself.
pub const ENDLESS: u32 = 0xfffe;

/// A digest of memory: any byte that differs changes it, but for chance.
pub fn digest(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words
        .iter()
        .fold(0, |d: u64, w| (d.rotate_left(5) ^ u64::from_le_bytes(*w)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}
