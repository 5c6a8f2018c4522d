//! The host's own string instructions and x87 image rules, on host memory.
//!
//! Other processors of the guest may change the same memory at any time, so it is touched by these instructions only, never
//! through references.

use std::arch::asm;
use std::sync::OnceLock;

/// The mask of MXCSR's bits that are not reserved.
pub fn mxcsr_mask() -> u32 {
    static MASK: OnceLock<u32> = OnceLock::new();
    *MASK.get_or_init(|| {
        let mut image = Image([0; 512]);
        // SAFETY: stores 512 bytes into an aligned buffer of that size.
        unsafe { asm!("fxsave64 [{}]", in(reg) image.0.as_mut_ptr()) };
        let mask = u32::from_le_bytes([image.0[28], image.0[29], image.0[30], image.0[31]]);
        // The manual's default where the field is zero (SDM volume 1, "Guidelines for Writing to the MXCSR Register").
        if mask == 0 { 0xffbf } else { mask }
    })
}

#[repr(C, align(64))]
struct Image([u8; 512]);

/// The x87 part of an FXSAVE64 image as the processor holds it once loaded: reserved bits and padding as it has them.
pub fn normalize_x87(fx: &mut [u8; 512]) {
    let mut image = Image(*fx);
    image.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    image.0[160..416].fill(0);
    let host_mxcsr = 0x1f80u32;
    // SAFETY: loads and stores an aligned image with a valid MXCSR; what Rust expects of the units is restored, and XMM registers
    // are declared lost.
    unsafe {
        asm!(
            "fxrstor64 [{0}]", "fxsave64 [{0}]", "fninit", "ldmxcsr [{1}]",
            in(reg) image.0.as_mut_ptr(), in(reg) &raw const host_mxcsr,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    fx[..24].copy_from_slice(&image.0[..24]);
    fx[32..160].copy_from_slice(&image.0[32..160]);
}

macro_rules! by_size {
    ($size:expr, $op:literal, $($args:tt)*) => {
        match $size {
            1 => asm!(concat!($op, "b"), $($args)*),
            2 => asm!(concat!($op, "w"), $($args)*),
            4 => asm!(concat!($op, "d"), $($args)*),
            _ => asm!(concat!($op, "q"), $($args)*),
        }
    };
}

/// REP MOVS forwards.
///
/// # Safety
/// `count * size` bytes are readable at `from` and writable at `to`.
pub unsafe fn copy(size: u64, to: *mut u8, from: *const u8, count: u64) {
    // SAFETY: the caller's word; the direction flag is clear in Rust code.
    unsafe {
        by_size!(size, "rep movs", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
}

/// REP STOS forwards.
///
/// # Safety
/// `count * size` bytes are writable at `to`.
pub unsafe fn fill(size: u64, to: *mut u8, value: u64, count: u64) {
    // SAFETY: the caller's word.
    unsafe {
        by_size!(size, "rep stos", inout("rcx") count => _, inout("rdi") to => _, in("rax") value, options(nostack, preserves_flags));
    }
}

/// How a comparison ended.
#[derive(Debug, Clone, Copy)]
pub struct Compared {
    /// Elements not looked at.
    pub left: u64,
    /// RFLAGS.
    pub flags: u64,
}

macro_rules! compare {
    ($size:expr, $rep:literal, $op:literal, $($args:tt)*) => {
        match $size {
            1 => asm!(concat!($rep, " ", $op, "b"), "pushfq", "pop {f}", $($args)*),
            2 => asm!(concat!($rep, " ", $op, "w"), "pushfq", "pop {f}", $($args)*),
            4 => asm!(concat!($rep, " ", $op, "d"), "pushfq", "pop {f}", $($args)*),
            _ => asm!(concat!($rep, " ", $op, "q"), "pushfq", "pop {f}", $($args)*),
        }
    };
}

/// REPE or REPNE CMPS forwards, `count` at least one.
///
/// # Safety
/// `count * size` bytes are readable at both addresses.
pub unsafe fn compare(size: u64, while_equal: bool, a: *const u8, b: *const u8, count: u64) -> Compared {
    let (mut left, flags): (u64, u64) = (count, 0);
    let mut f = flags;
    // SAFETY: the caller's word.
    unsafe {
        if while_equal {
            compare!(size, "repe", "cmps", f = out(reg) f, inout("rcx") left, inout("rsi") a => _, inout("rdi") b => _);
        } else {
            compare!(size, "repne", "cmps", f = out(reg) f, inout("rcx") left, inout("rsi") a => _, inout("rdi") b => _);
        }
    }
    Compared { left, flags: f }
}

/// REPE or REPNE SCAS forwards, `count` at least one.
///
/// # Safety
/// `count * size` bytes are readable at `at`.
pub unsafe fn scan(size: u64, while_equal: bool, value: u64, at: *const u8, count: u64) -> Compared {
    let mut left = count;
    let mut f: u64;
    // SAFETY: the caller's word.
    unsafe {
        if while_equal {
            compare!(size, "repe", "scas", f = out(reg) f, inout("rcx") left, inout("rdi") at => _, in("rax") value);
        } else {
            compare!(size, "repne", "scas", f = out(reg) f, inout("rcx") left, inout("rdi") at => _, in("rax") value);
        }
    }
    Compared { left, flags: f }
}
