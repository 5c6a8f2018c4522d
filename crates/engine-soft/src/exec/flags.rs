//! The six status flags while handlers run: as LAHF and SETO leave them in AX.
//!
//! That is the cheapest way to take them from the host's processor and to give them back: two instructions each, against PUSHF and POPF,
//! which cost ten times as much.

use umbra_x86::reg::Rflags;

use crate::cpu::Cpu;

/// SF, ZF, AF, PF, CF in bits 8 to 15 as in RFLAGS' low byte, OF in bit 0.
pub(crate) type Status = u16;

const LOW: u64 = 0xd5;

/// Carry.
pub(crate) const CF: Status = 1 << 8;
/// Parity.
pub(crate) const PF: Status = 1 << 10;
/// Zero.
pub(crate) const ZF: Status = 1 << 14;
/// Sign.
pub(crate) const SF: Status = 1 << 15;
/// Overflow.
pub(crate) const OF: Status = 1;

/// Status flags from RFLAGS.
pub(crate) fn from_rflags(rflags: u64) -> Status {
    ((rflags & LOW) << 8 | rflags >> 11 & 1) as Status
}

/// Status flags as bits of RFLAGS.
pub(crate) fn to_rflags(status: Status) -> u64 {
    u64::from(status >> 8) & LOW | u64::from(status & 1) << 11
}

impl Cpu {
    /// Makes RFLAGS true: call it before anything but a handler looks at the processor.
    #[inline(always)]
    pub(crate) fn settle(&mut self) {
        self.rflags = self.rflags & !Rflags::STATUS.bits() | to_rflags(self.fast.status);
    }

    /// Takes the status flags from RFLAGS: call it before handlers run again.
    #[inline(always)]
    pub(crate) fn unsettle(&mut self) {
        self.fast.status = from_rflags(self.rflags);
    }
}

/// Whether condition `C` (its number in Jcc's opcodes) holds.
#[inline(always)]
pub(crate) fn condition<const C: u8>(status: Status) -> bool {
    let less = (status >> 15 ^ status) & 1 != 0;
    let holds = match C >> 1 {
        0 => status & OF != 0,
        1 => status & CF != 0,
        2 => status & ZF != 0,
        3 => status & (CF | ZF) != 0,
        4 => status & SF != 0,
        5 => status & PF != 0,
        6 => less,
        _ => less | (status & ZF != 0),
    };
    holds != (C & 1 != 0)
}
