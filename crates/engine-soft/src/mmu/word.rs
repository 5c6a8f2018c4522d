//! Integers that an instruction loads or stores at once, and the accesses themselves.

use std::arch::asm;

/// An integer that an instruction loads or stores at once.
pub trait Word: Copy + Default + Eq + Send + 'static {
    /// From the low bits of a 64-bit value.
    fn from_u64(value: u64) -> Self;
    /// Zero-extended, or the low 64 bits.
    fn to_u64(self) -> u64;
    /// Reads guest memory by one machine instruction (two for 16 bytes).
    ///
    /// # Safety
    /// `p` is readable for the size of the word.
    unsafe fn read(p: *const u8) -> Self;
    /// Writes guest memory by one machine instruction (two for 16 bytes).
    ///
    /// # Safety
    /// `p` is writable for the size of the word.
    unsafe fn write(self, p: *mut u8);
    /// From the first bytes of a buffer.
    fn from_bytes(bytes: &[u8; 16]) -> Self;
    /// Into the first bytes of a buffer, the rest zero.
    fn to_bytes(self) -> [u8; 16];
}

macro_rules! bytes {
    ($t:ty) => {
        fn from_u64(value: u64) -> Self {
            value as Self
        }
        fn to_u64(self) -> u64 {
            self as u64
        }
        fn from_bytes(bytes: &[u8; 16]) -> Self {
            u128::from_le_bytes(*bytes) as Self
        }
        fn to_bytes(self) -> [u8; 16] {
            (self as u128).to_le_bytes()
        }
    };
}

macro_rules! word {
    ($t:ty, $as:ty, $load:literal, $store:literal, $class:ident) => {
        impl Word for $t {
            bytes!($t);
            #[inline(always)]
            unsafe fn read(p: *const u8) -> Self {
                let value: $as;
                // SAFETY: the caller says that `p` can be read; the instruction does nothing else.
                unsafe { asm!($load, out(reg) value, in(reg) p, options(nostack, preserves_flags, readonly)) };
                value as Self
            }
            #[inline(always)]
            unsafe fn write(self, p: *mut u8) {
                // SAFETY: the caller says that `p` can be written; the instruction does nothing else.
                unsafe { asm!($store, in(reg) p, in($class) self, options(nostack, preserves_flags)) };
            }
        }
    };
}
word!(u8, u32, "movzx {0:e}, byte ptr [{1}]", "mov byte ptr [{0}], {1}", reg_byte);
word!(u16, u32, "movzx {0:e}, word ptr [{1}]", "mov word ptr [{0}], {1:x}", reg);
word!(u32, u32, "mov {0:e}, dword ptr [{1}]", "mov dword ptr [{0}], {1:e}", reg);
word!(u64, u64, "mov {0}, qword ptr [{1}]", "mov qword ptr [{0}], {1}", reg);

impl Word for u128 {
    bytes!(u128);
    unsafe fn read(p: *const u8) -> Self {
        // SAFETY: the caller says that 16 bytes can be read.
        unsafe { u128::from(u64::read(p)) | u128::from(u64::read(p.add(8))) << 64 }
    }
    unsafe fn write(self, p: *mut u8) {
        // SAFETY: the caller says that 16 bytes can be written.
        unsafe {
            (self as u64).write(p);
            ((self >> 64) as u64).write(p.add(8));
        }
    }
}

/// Copies guest memory out: at once if it is as long as a word.
///
/// # Safety
/// `p` is readable for the length of `data`.
pub(crate) unsafe fn copy_out(p: *const u8, data: &mut [u8]) {
    // SAFETY: every access lies within the length that the caller vouches for.
    unsafe {
        match data.len() {
            2 => return data.copy_from_slice(&u16::read(p).to_le_bytes()),
            4 => return data.copy_from_slice(&u32::read(p).to_le_bytes()),
            8 => return data.copy_from_slice(&u64::read(p).to_le_bytes()),
            _ => {}
        }
        let mut chunks = data.chunks_exact_mut(8);
        let mut at = p;
        for chunk in &mut chunks {
            chunk.copy_from_slice(&u64::read(at).to_le_bytes());
            at = at.add(8);
        }
        for byte in chunks.into_remainder() {
            *byte = u8::read(at);
            at = at.add(1);
        }
    }
}

/// Copies into guest memory: at once if it is as long as a word.
///
/// # Safety
/// `p` is writable for the length of `data`.
pub(crate) unsafe fn copy_in(p: *mut u8, data: &[u8]) {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    // SAFETY: every access lies within the length that the caller vouches for.
    unsafe {
        match data.len() {
            2 => return (word(data) as u16).write(p),
            4 => return (word(data) as u32).write(p),
            8 => return word(data).write(p),
            _ => {}
        }
        let mut chunks = data.chunks_exact(8);
        let mut at = p;
        for chunk in &mut chunks {
            word(chunk).write(at);
            at = at.add(8);
        }
        for byte in chunks.remainder() {
            byte.write(at);
            at = at.add(1);
        }
    }
}
