//! Vector and opmask registers and MXCSR.
//!
//! They are the guest's in the host's registers from the moment a translation asks for them until Rust code runs, which may use them
//! itself. `Fast::live` says which units may be used; a translation tests its bit before its first instruction of a unit. So what CR0, CR4
//! and XCR0 say of a unit is looked at before it becomes live, and changing those registers means leaving the translation.

use crate::cpu::Cpu;
use crate::fault::Exec;
use crate::native::{self, Unit};

/// Bits of `Fast::live`.
pub(super) const SSE: u8 = 1;
pub(super) const AVX: u8 = 2;
pub(super) const AVX512: u8 = 4;

/// The bit of a unit; 0 for the general registers.
pub(super) fn bit(unit: Unit) -> u8 {
    match unit {
        Unit::Sse => SSE,
        Unit::Avx => AVX,
        Unit::Avx512 => AVX512,
        _ => 0,
    }
}

impl Cpu {
    /// What shall be live so that the unit of `bit` can be used: no more than it takes, because all of it is saved whenever Rust code runs.
    ///
    /// # Errors
    /// The exception that says that it cannot.
    pub(super) fn wanted_vectors(&self, bit: u8) -> Exec<u8> {
        let (unit, mut live) = match bit {
            SSE => (Unit::Sse, SSE),
            AVX if self.has_upper_halves() => (Unit::Avx, AVX | AVX512),
            AVX => (Unit::Avx, AVX),
            _ => (Unit::Avx512, AVX | AVX512),
        };
        native::check_unit(self, unit)?;
        if native::check_unit(self, Unit::Sse).is_ok() {
            live |= SSE;
        }
        // What was live when the translation asked is loaded again.
        Ok(live | self.fast.wanted)
    }

    /// Whether an instruction of AVX has something to clear: it zeroes all of a register above what it writes (SDM volume 1, 15.5).
    fn has_upper_halves(&self) -> bool {
        let upper = self.vector.zmm[..16].iter().flat_map(|z| &z[32..]);
        native::check_unit(self, Unit::Avx512).is_ok() && upper.fold(0, |all, b| all | b) != 0
    }
}
