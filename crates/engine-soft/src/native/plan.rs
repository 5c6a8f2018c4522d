//! What running an instruction natively needs to know: registers, memory operand, checks. Made once for each form.

use iced_x86::{
    EncodingKind, Instruction, InstructionInfoFactory, InstructionInfoOptions, MemorySize, Mnemonic as M,
    OpAccess, OpKind, Register, RflagsBits,
};

use crate::native::forms;

/// The unit that executes an instruction; each has its own conditions in CR0, CR4 and XCR0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// General registers.
    General,
    /// General registers, VEX-encoded: not in real and virtual-8086 mode.
    GeneralVex,
    /// x87.
    X87,
    /// WAIT.
    Wait,
    /// MMX.
    Mmx,
    /// SSE.
    Sse,
    /// AVX.
    Avx,
    /// Opmask registers or EVEX.
    Avx512,
}

/// Which elements of a memory operand are accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Select {
    /// Those whose bit is set in an opmask register.
    Opmask(u8),
    /// As many, from the first, as bits are set in an opmask register (compress and expand).
    OpmaskPacked(u8),
    /// Each that is broadcast to any of this many elements whose bit is set.
    OpmaskFold(u8, u8),
    /// Those whose most significant bit is set in an element of a vector register of the same shape.
    Sign(u8),
    /// As `Sign`, in an MMX register.
    SignMmx(u8),
}

/// A memory operand of elements that are accessed one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masked {
    /// Which are.
    pub select: Select,
    /// Bytes of one.
    pub element: u8,
    /// How many there are.
    pub count: u8,
    /// All of the operand must be accessible nevertheless.
    pub whole: bool,
}

/// How the memory operand is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// There is none, or it is not accessed.
    None,
    /// All of it.
    Whole,
    /// A bit string that starts there; the operand of this many bytes is chosen by a register.
    Bits(Register),
    /// Elements of it.
    Masked(Masked),
    /// A cache line is named, no byte accessed.
    Line,
}

/// All that [`crate::native::run`] needs.
#[derive(Clone, Copy)]
pub struct Plan {
    /// The thunk.
    pub entry: *const u8,
    /// The unit.
    pub unit: Unit,
    /// The memory operand.
    pub operand: Operand,
    /// Its bytes.
    pub len: u8,
    /// Its alignment, 1 for none.
    pub align: u8,
    /// It is read.
    pub read: bool,
    /// It is written.
    pub write: bool,
    /// The access is locked.
    pub locked: bool,
    /// x87 state is loaded and stored.
    pub x87: bool,
    /// MXCSR is loaded and stored.
    pub mxcsr: bool,
}

/// The registers that an instruction uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct Registers {
    /// General registers.
    pub gpr: u16,
    /// Those written.
    pub gpr_written: u16,
    /// AH to DH are among them: no REX prefix is possible.
    pub high_byte: bool,
    /// Vector registers.
    pub vector: u32,
    /// Those written.
    pub vector_written: u32,
    /// Opmask registers.
    pub opmask: u8,
    /// Those written.
    pub opmask_written: u8,
    /// x87 or MMX registers.
    pub x87: bool,
    /// MMX registers.
    pub mmx: bool,
    /// The vector unit takes part.
    pub simd: bool,
    /// Status flags.
    pub flags: bool,
    /// MXCSR.
    pub mxcsr: bool,
    /// How the memory operand is accessed.
    pub access: Option<OpAccess>,
}

const STATUS: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

fn is_write(a: OpAccess) -> bool {
    matches!(a, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn is_read(a: OpAccess) -> bool {
    matches!(a, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

impl Registers {
    /// The registers of `i`, whose memory operand has no register in it.
    pub fn of(i: &Instruction, factory: &mut InstructionInfoFactory) -> Self {
        let info = factory.info_options(i, InstructionInfoOptions::NONE);
        let mut s = Self::default();
        for used in info.used_registers() {
            s.add(used.register(), is_write(used.access()));
        }
        for n in 0..i.op_count() {
            let r = i.op_register(n);
            s.high_byte |= i.op_kind(n) == OpKind::Register
                && matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
        }
        s.access = info.used_memory().first().map(|m| m.access());
        let touched = i.rflags_read() | i.rflags_modified();
        s.flags = touched & STATUS != 0;
        s.x87 = s.x87 || s.mmx || forms::is_x87(i);
        s.simd = s.vector != 0 || forms::is_vector_conversion(i);
        s.mxcsr = s.simd && forms::uses_mxcsr(i);
        s
    }

    fn add(&mut self, r: Register, write: bool) {
        let n = r.number();
        if r.is_gpr() {
            let bit = 1 << r.full_register().number();
            self.gpr |= bit;
            self.gpr_written |= if write { bit } else { 0 };
        } else if r.is_vector_register() {
            self.vector |= 1 << n;
            self.vector_written |= u32::from(write) << n;
        } else if r.is_k() {
            self.opmask |= 1 << n;
            self.opmask_written |= u8::from(write) << n;
        } else if r.is_mm() {
            self.mmx = true;
        } else if r.is_st() {
            self.x87 = true;
        }
    }

    /// The unit of `i`.
    pub fn unit(&self, i: &Instruction) -> Unit {
        match i.encoding() {
            EncodingKind::EVEX => Unit::Avx512,
            EncodingKind::VEX if self.opmask != 0 => Unit::Avx512,
            EncodingKind::VEX if self.simd => Unit::Avx,
            EncodingKind::VEX => Unit::GeneralVex,
            _ if i.mnemonic() == M::Wait => Unit::Wait,
            _ if self.simd => Unit::Sse,
            _ if self.mmx || i.mnemonic() == M::Emms => Unit::Mmx,
            _ if self.x87 => Unit::X87,
            _ => Unit::General,
        }
    }
}

/// The memory operand of `i`, which uses `registers`.
pub fn operand(i: &Instruction, registers: &Registers) -> Operand {
    let m = i.mnemonic();
    if matches!(m, M::Maskmovdqu | M::Vmaskmovdqu) {
        let masked = Masked {
            select: Select::Sign(i.op2_register().number() as u8),
            element: 1,
            count: 16,
            whole: false,
        };
        return Operand::Masked(masked);
    }
    if m == M::Maskmovq {
        let masked = Masked {
            select: Select::SignMmx(i.op2_register().number() as u8),
            element: 1,
            count: 8,
            whole: false,
        };
        return Operand::Masked(masked);
    }
    let Some(access) = registers.access else { return Operand::None };
    if !i.op_kinds().any(|k| k == OpKind::Memory) {
        return Operand::None;
    }
    if matches!(m, M::Clflush | M::Clflushopt | M::Clwb) {
        return Operand::Line;
    }
    if !is_read(access) && !is_write(access) {
        return Operand::None;
    }
    if matches!(m, M::Bt | M::Bts | M::Btr | M::Btc) && i.op1_kind() == OpKind::Register {
        return Operand::Bits(i.op1_register());
    }
    let masked = avx_masked(i).or_else(|| opmask_masked(i, is_write(access)));
    masked.map_or(Operand::Whole, Operand::Masked)
}

fn avx_masked(i: &Instruction) -> Option<Masked> {
    let element = match i.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd => 4,
        M::Vmaskmovpd | M::Vpmaskmovq => 8,
        _ => return None,
    };
    let register = i.op1_register();
    let count = (register.size() / element as usize) as u8;
    Some(Masked { select: Select::Sign(register.number() as u8), element, count, whole: false })
}

fn opmask_masked(i: &Instruction, write: bool) -> Option<Masked> {
    if i.encoding() != EncodingKind::EVEX || !i.has_op_mask() || !write && forms::ignores_mask_for_faults(i) {
        return None;
    }
    let k = i.op_mask().number() as u8;
    let size = i.memory_size();
    if size.is_broadcast() {
        let count = i.code().op_code().memory_size().size() / size.size().max(1);
        return Some(Masked {
            select: Select::OpmaskFold(k, count as u8),
            element: size.size() as u8,
            count: 1,
            whole: false,
        });
    }
    if format!("{:?}", i.mnemonic()).contains("broadcast") {
        let element = size.element_size().max(1);
        let select = Select::OpmaskFold(k, (i.op0_register().size() / element) as u8);
        return Some(Masked {
            select,
            element: element as u8,
            count: (size.size() / element) as u8,
            whole: false,
        });
    }
    // Where a broadcast is possible, its size is that of what a mask bit stands for; some read several smaller numbers each.
    let operation = i.code().op_code();
    let element = match () {
        () if operation.can_broadcast() => operation.broadcast_memory_size().size(),
        () if forms::is_complex_scalar(i) => size.size(),
        () => size.element_size(),
    };
    let (element, count) = (element as u8, (size.size() / element.max(1)) as u8);
    let packed = matches!(
        i.mnemonic(),
        M::Vpcompressb
            | M::Vpcompressw
            | M::Vpcompressd
            | M::Vpcompressq
            | M::Vcompressps
            | M::Vcompresspd
            | M::Vpexpandb
            | M::Vpexpandw
            | M::Vpexpandd
            | M::Vpexpandq
            | M::Vexpandps
            | M::Vexpandpd
    );
    let select = if packed { Select::OpmaskPacked(k) } else { Select::Opmask(k) };
    let whole = write && forms::ignores_mask_for_faults(i);
    (size != MemorySize::Unknown).then_some(Masked { select, element, count, whole })
}

/// Whether the operand is read, and whether it is written.
pub fn directions(i: &Instruction, registers: &Registers) -> (bool, bool) {
    if matches!(i.mnemonic(), M::Maskmovdqu | M::Vmaskmovdqu | M::Maskmovq) {
        return (false, true);
    }
    registers.access.map_or((false, false), |a| (is_read(a), is_write(a)))
}
