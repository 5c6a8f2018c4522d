//! Operations on integers of each width, by the host's own instructions, with the host's own flags.
//!
//! Flags that an instruction leaves undefined are whatever this processor leaves, given the guest's flags before.

use std::arch::asm;

use super::arith::Unary;
use super::flags::Status;
use crate::mmu::Word;

/// The seven shifts and rotates, and what they are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shift {
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
}

/// Instructions that look at one bit and change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bit {
    Test,
    Set,
    Reset,
    Complement,
}

/// An integer that ordinary instructions work on.
pub(crate) trait Int: Word {
    /// Width in bits.
    const BITS: u32;
    fn add(a: Self, b: Self) -> (Self, Status);
    fn sub(a: Self, b: Self) -> (Self, Status);
    fn and(a: Self, b: Self) -> (Self, Status);
    fn or(a: Self, b: Self) -> (Self, Status);
    fn xor(a: Self, b: Self) -> (Self, Status);
    fn adc(a: Self, b: Self, s: Status) -> (Self, Status);
    fn sbb(a: Self, b: Self, s: Status) -> (Self, Status);
    fn inc(a: Self, s: Status) -> (Self, Status);
    fn dec(a: Self, s: Status) -> (Self, Status);
    fn neg(a: Self) -> (Self, Status);
    fn not(a: Self) -> Self;
    fn shift(kind: Shift, a: Self, count: u8, s: Status) -> (Self, Status);
    /// MUL and IMUL of one operand: low half, high half.
    fn mul(signed: bool, a: Self, b: Self, s: Status) -> (Self, Self, Status);
    /// DIV and IDIV: quotient, remainder; `None` where they raise #DE.
    fn div(signed: bool, low: Self, high: Self, by: Self, s: Status) -> Option<(Self, Self, Status)>;
    /// XCHG with memory.
    ///
    /// # Safety
    /// `p` is readable and writable for the word.
    unsafe fn exchange(p: *mut u8, v: Self) -> Self;
    /// LOCK XADD: what was there.
    ///
    /// # Safety
    /// As [`Int::exchange`].
    unsafe fn lock_xadd(p: *mut u8, v: Self, s: Status) -> (Self, Status);
    /// LOCK CMPXCHG: the accumulator afterwards.
    ///
    /// # Safety
    /// As [`Int::exchange`].
    unsafe fn lock_cmpxchg(p: *mut u8, accumulator: Self, v: Self, s: Status) -> (Self, Status);
    /// LOCK ADD and so on, by number as in opcodes (0 ADD, 1 OR, 2 ADC, 3 SBB, 4 AND, 5 SUB, 6 XOR).
    ///
    /// # Safety
    /// As [`Int::exchange`].
    unsafe fn lock_op(op: u8, p: *mut u8, v: Self, s: Status) -> Status;
    /// LOCK NOT, NEG, INC, DEC.
    ///
    /// # Safety
    /// As [`Int::exchange`].
    unsafe fn lock_unary(op: Unary, p: *mut u8, s: Status) -> Status;
}

/// Integers of 16, 32 and 64 bits, which more instructions know.
pub(crate) trait Wide: Int {
    fn imul(a: Self, b: Self, s: Status) -> (Self, Status);
    /// BSF into a register, of which the whole is given.
    fn bsf(old: u64, source: Self, s: Status) -> (u64, Status);
    fn bsr(old: u64, source: Self, s: Status) -> (u64, Status);
    fn tzcnt(old: u64, source: Self, s: Status) -> (u64, Status);
    fn lzcnt(old: u64, source: Self, s: Status) -> (u64, Status);
    fn popcnt(old: u64, source: Self, s: Status) -> (u64, Status);
    fn bit(kind: Bit, a: Self, n: Self, s: Status) -> (Self, Status);
    /// # Safety
    /// As [`Int::exchange`]; `n` is below the width.
    unsafe fn lock_bit(kind: Bit, p: *mut u8, n: Self, s: Status) -> Status;
    fn bswap(a: Self) -> Self;
}

/// The guest's flags into the host's: AL plus 127 overflows if OF was set, SAHF does the rest.
macro_rules! with_flags {
    ($($line:expr),+ ; $($rest:tt)*) => {
        asm!("add al, 127", "sahf", $($line),+, "lahf", "seto al", $($rest)*)
    };
}

/// An instruction of two operands that only sets flags.
macro_rules! binary {
    ($name:ident, $op:literal, $m:literal, $class:ident) => {
        #[inline(always)]
        fn $name(mut a: Self, b: Self) -> (Self, Status) {
            let s: u32;
            // SAFETY: it works on registers alone.
            unsafe {
                asm!(concat!($op, " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                    a = inout($class) a, b = in($class) b, out("eax") s, options(pure, nomem, nostack))
            };
            (a, s as Status)
        }
    };
}

/// An instruction of two operands that uses flags or leaves some alone.
macro_rules! binary_with {
    ($name:ident, $op:literal, $m:literal, $class:ident) => {
        #[inline(always)]
        fn $name(mut a: Self, b: Self, s: Status) -> (Self, Status) {
            let mut s = u32::from(s);
            // SAFETY: it works on registers alone.
            unsafe {
                with_flags!(concat!($op, " {a", $m, "}, {b", $m, "}");
                    a = inout($class) a, b = in($class) b, inout("eax") s, options(pure, nomem, nostack))
            };
            (a, s as Status)
        }
    };
}

/// An instruction that writes a register, of which the whole is given.
macro_rules! scan_with {
    ($name:ident, $op:literal, $m:literal) => {
        fn $name(mut old: u64, source: Self, s: Status) -> (u64, Status) {
            let mut s = u32::from(s);
            // SAFETY: it works on registers alone.
            unsafe {
                with_flags!(concat!($op, " {a", $m, "}, {b", $m, "}");
                    a = inout(reg) old, b = in(reg) source, inout("eax") s, options(pure, nomem, nostack))
            };
            (old, s as Status)
        }
    };
}

/// An instruction of one operand that uses flags or leaves some alone.
macro_rules! unary_with {
    ($name:ident, $op:literal, $m:literal, $class:ident) => {
        #[inline(always)]
        fn $name(mut a: Self, s: Status) -> (Self, Status) {
            let mut s = u32::from(s);
            // SAFETY: it works on a register alone.
            unsafe {
                with_flags!(concat!($op, " {a", $m, "}"); a = inout($class) a, inout("eax") s, options(pure, nomem, nostack))
            };
            (a, s as Status)
        }
    };
}

/// An instruction on memory with a register.
macro_rules! locked {
    ($op:literal, $size:literal, $m:literal, $class:ident, $p:ident, $v:ident, $s:ident) => {
        with_flags!(concat!("lock ", $op, " ", $size, " ptr [{p}], {v", $m, "}");
            p = in(reg) $p, v = in($class) $v, inout("eax") $s, options(nostack))
    };
}

/// A locked instruction on memory alone.
macro_rules! locked_unary {
    ($op:literal, $size:literal, $p:ident, $s:ident) => {
        with_flags!(concat!("lock ", $op, " ", $size, " ptr [{p}]"); p = in(reg) $p, inout("eax") $s, options(nostack))
    };
}

/// A shift by CL.
macro_rules! shifts {
    ($m:literal, $class:ident, $($kind:ident $op:literal),*) => {
        #[inline(always)]
        fn shift(kind: Shift, mut a: Self, count: u8, s: Status) -> (Self, Status) {
            let mut s = u32::from(s);
            // SAFETY: they work on registers alone.
            unsafe {
                match kind {
                    $(Shift::$kind => with_flags!(concat!($op, " {a", $m, "}, cl");
                        a = inout($class) a, in("cl") count, inout("eax") s, options(pure, nomem, nostack)),)*
                }
            }
            (a, s as Status)
        }
    };
}

/// What all four widths have in common.
macro_rules! common {
    ($size:literal, $m:literal, $class:ident) => {
        const BITS: u32 = Self::BITS;
        binary!(add, "add", $m, $class);
        binary!(sub, "sub", $m, $class);
        binary!(and, "and", $m, $class);
        binary!(or, "or", $m, $class);
        binary!(xor, "xor", $m, $class);
        binary_with!(adc, "adc", $m, $class);
        binary_with!(sbb, "sbb", $m, $class);
        unary_with!(inc, "inc", $m, $class);
        unary_with!(dec, "dec", $m, $class);
        #[inline(always)]
        fn neg(a: Self) -> (Self, Status) {
            Self::sub(0, a)
        }
        #[inline(always)]
        fn not(a: Self) -> Self {
            !a
        }
        shifts!($m, $class, Rol "rol", Ror "ror", Rcl "rcl", Rcr "rcr", Shl "shl", Shr "shr", Sar "sar");
        #[inline(always)]
        unsafe fn exchange(p: *mut u8, mut v: Self) -> Self {
            // SAFETY: the caller vouches for the address.
            unsafe {
                asm!(concat!("xchg ", $size, " ptr [{p}], {v", $m, "}"), p = in(reg) p, v = inout($class) v,
                    options(nostack, preserves_flags))
            };
            v
        }
        unsafe fn lock_xadd(p: *mut u8, mut v: Self, s: Status) -> (Self, Status) {
            let mut s = u32::from(s);
            // SAFETY: the caller vouches for the address.
            unsafe {
                with_flags!(concat!("lock xadd ", $size, " ptr [{p}], {v", $m, "}");
                    p = in(reg) p, v = inout($class) v, inout("eax") s, options(nostack))
            };
            (v, s as Status)
        }
        unsafe fn lock_cmpxchg(p: *mut u8, accumulator: Self, v: Self, s: Status) -> (Self, Status) {
            let mut rax = u64::from(s);
            let mut a = u64::from(accumulator);
            // SAFETY: the caller vouches for the address.
            unsafe {
                asm!("add al, 127", "sahf", "xchg rax, {a}",
                    concat!("lock cmpxchg ", $size, " ptr [{p}], {v", $m, "}"),
                    "xchg rax, {a}", "lahf", "seto al",
                    p = in(reg) p, v = in($class) v, a = inout(reg) a, inout("rax") rax, options(nostack))
            };
            (a as Self, rax as Status)
        }
        unsafe fn lock_op(op: u8, p: *mut u8, v: Self, s: Status) -> Status {
            let mut s = u32::from(s);
            // SAFETY: the caller vouches for the address.
            unsafe {
                match op {
                    0 => locked!("add", $size, $m, $class, p, v, s),
                    1 => locked!("or", $size, $m, $class, p, v, s),
                    2 => locked!("adc", $size, $m, $class, p, v, s),
                    3 => locked!("sbb", $size, $m, $class, p, v, s),
                    4 => locked!("and", $size, $m, $class, p, v, s),
                    5 => locked!("sub", $size, $m, $class, p, v, s),
                    _ => locked!("xor", $size, $m, $class, p, v, s),
                }
            }
            s as Status
        }
        unsafe fn lock_unary(op: Unary, p: *mut u8, s: Status) -> Status {
            let mut s = u32::from(s);
            // SAFETY: the caller vouches for the address.
            unsafe {
                match op {
                    Unary::Inc => locked_unary!("inc", $size, p, s),
                    Unary::Dec => locked_unary!("dec", $size, p, s),
                    Unary::Neg => locked_unary!("neg", $size, p, s),
                    Unary::Not => locked_unary!("not", $size, p, s),
                }
            }
            s as Status
        }
        fn div(signed: bool, low: Self, high: Self, by: Self, s: Status) -> Option<(Self, Self, Status)> {
            let fits = if signed { signed_fits(Self::BITS, low.into(), high.into(), by.into()) } else { high < by };
            fits.then(|| Self::div_checked(signed, low, high, by, s))
        }
    };
}

/// Sign-extends the low `bits` bits.
fn extend(bits: u32, v: u64) -> i128 {
    i128::from((v << (64 - bits)) as i64 >> (64 - bits))
}

/// Whether IDIV has a quotient that fits.
fn signed_fits(bits: u32, low: u64, high: u64, by: u64) -> bool {
    let by = extend(bits, by);
    if by == 0 {
        return false;
    }
    let low_extended = extend(bits, low);
    let least = -(1i128 << (bits - 1));
    if extend(bits, high) == low_extended >> 127 {
        return !(low_extended == least && by == -1);
    }
    // The dividend is not the least of all, whose quotient by -1 would overflow: that one is caught by its magnitude.
    let dividend = extend(bits, high) << bits | i128::from(low);
    dividend.checked_div(by).is_some_and(|q| q >= least && q < -least)
}

/// MUL and DIV of 16, 32 and 64 bits. The accumulator and the guest's flags take turns in RAX.
macro_rules! multiply {
    ($m:literal) => {
        fn mul(signed: bool, a: Self, b: Self, s: Status) -> (Self, Self, Status) {
            let mut rax = u64::from(s);
            let mut low = u64::from(a);
            let high: u64;
            // SAFETY: it works on registers alone.
            unsafe {
                if signed {
                    asm!("add al, 127", "sahf", "xchg rax, {a}", concat!("imul {b", $m, "}"), "xchg rax, {a}", "lahf", "seto al",
                        a = inout(reg) low, b = in(reg) b, inout("rax") rax, out("rdx") high, options(pure, nomem, nostack));
                } else {
                    asm!("add al, 127", "sahf", "xchg rax, {a}", concat!("mul {b", $m, "}"), "xchg rax, {a}", "lahf", "seto al",
                        a = inout(reg) low, b = in(reg) b, inout("rax") rax, out("rdx") high, options(pure, nomem, nostack));
                }
            }
            (low as Self, high as Self, rax as Status)
        }
    };
}

/// The division itself.
macro_rules! divide {
    ($t:ty, $m:literal) => {
        impl DivChecked for $t {
            fn div_checked(signed: bool, low: Self, high: Self, by: Self, s: Status) -> (Self, Self, Status) {
                let mut rax = u64::from(s);
                let mut a = u64::from(low);
                let mut d = u64::from(high);
                // SAFETY: it works on registers alone; the caller has seen to it that the quotient fits.
                unsafe {
                    if signed {
                        asm!("add al, 127", "sahf", "xchg rax, {a}", concat!("idiv {b", $m, "}"), "xchg rax, {a}", "lahf", "seto al",
                            a = inout(reg) a, b = in(reg) by, inout("rax") rax, inout("rdx") d, options(pure, nomem, nostack));
                    } else {
                        asm!("add al, 127", "sahf", "xchg rax, {a}", concat!("div {b", $m, "}"), "xchg rax, {a}", "lahf", "seto al",
                            a = inout(reg) a, b = in(reg) by, inout("rax") rax, inout("rdx") d, options(pure, nomem, nostack));
                    }
                }
                (a as Self, d as Self, rax as Status)
            }
        }
    };
}

/// A division known not to raise #DE.
trait DivChecked: Sized {
    fn div_checked(signed: bool, low: Self, high: Self, by: Self, s: Status) -> (Self, Self, Status);
}
divide!(u16, ":x");
divide!(u32, ":e");
divide!(u64, ":r");

impl DivChecked for u8 {
    fn div_checked(signed: bool, low: u8, high: u8, by: u8, s: Status) -> (u8, u8, Status) {
        let mut rax = u64::from(s);
        let mut a = u64::from(low) | u64::from(high) << 8;
        // SAFETY: it works on registers alone; the caller has seen to it that the quotient fits.
        unsafe {
            if signed {
                asm!("add al, 127", "sahf", "xchg rax, {a}", "idiv {b}", "xchg rax, {a}", "lahf", "seto al",
                    a = inout(reg) a, b = in(reg_byte) by, inout("rax") rax, options(pure, nomem, nostack));
            } else {
                asm!("add al, 127", "sahf", "xchg rax, {a}", "div {b}", "xchg rax, {a}", "lahf", "seto al",
                    a = inout(reg) a, b = in(reg_byte) by, inout("rax") rax, options(pure, nomem, nostack));
            }
        }
        (a as u8, (a >> 8) as u8, rax as Status)
    }
}

impl Int for u8 {
    common!("byte", "", reg_byte);
    fn mul(signed: bool, a: u8, b: u8, s: Status) -> (u8, u8, Status) {
        let mut rax = u64::from(s);
        let mut a = u64::from(a);
        // SAFETY: it works on registers alone.
        unsafe {
            if signed {
                asm!("add al, 127", "sahf", "xchg rax, {a}", "imul {b}", "xchg rax, {a}", "lahf", "seto al",
                    a = inout(reg) a, b = in(reg_byte) b, inout("rax") rax, options(pure, nomem, nostack));
            } else {
                asm!("add al, 127", "sahf", "xchg rax, {a}", "mul {b}", "xchg rax, {a}", "lahf", "seto al",
                    a = inout(reg) a, b = in(reg_byte) b, inout("rax") rax, options(pure, nomem, nostack));
            }
        }
        (a as u8, (a >> 8) as u8, rax as Status)
    }
}

macro_rules! wide {
    ($t:ty, $size:literal, $m:literal, $bswap:expr) => {
        impl Int for $t {
            common!($size, $m, reg);
            multiply!($m);
        }

        impl Wide for $t {
            binary_with!(imul, "imul", $m, reg);
            scan_with!(bsf, "bsf", $m);
            scan_with!(bsr, "bsr", $m);
            scan_with!(tzcnt, "tzcnt", $m);
            scan_with!(lzcnt, "lzcnt", $m);
            scan_with!(popcnt, "popcnt", $m);
            #[inline(always)]
            fn bit(kind: Bit, a: Self, n: Self, s: Status) -> (Self, Status) {
                match kind {
                    Bit::Test => <$t as BitOps>::bt(a, n, s),
                    Bit::Set => <$t as BitOps>::bts(a, n, s),
                    Bit::Reset => <$t as BitOps>::btr(a, n, s),
                    Bit::Complement => <$t as BitOps>::btc(a, n, s),
                }
            }
            unsafe fn lock_bit(kind: Bit, p: *mut u8, n: Self, s: Status) -> Status {
                let mut s = u32::from(s);
                // SAFETY: the caller vouches for the address and that the bit lies within the word.
                unsafe {
                    match kind {
                        Bit::Test => with_flags!(concat!("bt ", $size, " ptr [{p}], {v", $m, "}");
                            p = in(reg) p, v = in(reg) n, inout("eax") s, options(nostack)),
                        Bit::Set => locked!("bts", $size, $m, reg, p, n, s),
                        Bit::Reset => locked!("btr", $size, $m, reg, p, n, s),
                        Bit::Complement => locked!("btc", $size, $m, reg, p, n, s),
                    }
                }
                s as Status
            }
            #[inline(always)]
            fn bswap(a: Self) -> Self {
                $bswap(a)
            }
        }

        impl BitOps for $t {
            binary_with!(bt, "bt", $m, reg);
            binary_with!(bts, "bts", $m, reg);
            binary_with!(btr, "btr", $m, reg);
            binary_with!(btc, "btc", $m, reg);
        }
    };
}

/// The bit instructions on registers.
trait BitOps: Sized {
    fn bt(a: Self, n: Self, s: Status) -> (Self, Status);
    fn bts(a: Self, n: Self, s: Status) -> (Self, Status);
    fn btr(a: Self, n: Self, s: Status) -> (Self, Status);
    fn btc(a: Self, n: Self, s: Status) -> (Self, Status);
}
// BSWAP of 16 bits is undefined; processors leave zero.
wide!(u16, "word", ":x", |_| 0);
wide!(u32, "dword", ":e", u32::swap_bytes);
wide!(u64, "qword", ":r", u64::swap_bytes);
