//! Vector and opmask registers and MXCSR.
//!
//! They are the guest's in the host's registers from the moment a translation asks for them until Rust code runs, which may use them
//! itself. `Fast::live` says which units may be used; a translation tests its bit before its first instruction of a unit. So what CR0, CR4
//! and XCR0 say of a unit is looked at whenever they are loaded, and changing those registers means leaving the translation.

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
    /// What shall be live so that the unit of `bit` can be used.
    ///
    /// # Errors
    /// The exception that says that it cannot.
    pub(super) fn wanted_vectors(&self, bit: u8) -> Exec<u8> {
        let units = [(SSE, Unit::Sse), (AVX, Unit::Avx), (AVX512, Unit::Avx512)];
        let mut live = 0;
        for (b, unit) in units {
            match native::check_unit(self, unit) {
                Ok(()) => live |= b,
                Err(fault) if b == bit => return Err(fault),
                Err(_) => {}
            }
        }
        Ok(live)
    }
}
