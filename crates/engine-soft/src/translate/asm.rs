//! A small assembler for the fixed parts of translated code.
//!
//! It makes the few forms that address lookups, exits and the state block need, by hand, because they are most of what is emitted;
//! guest instructions themselves go through iced-x86's encoder (Intel SDM volume 2, chapter 2, "Instruction Format").

/// A host register by its number in an encoding.
pub(super) type Reg = u8;

pub(super) const RAX: Reg = 0;
/// First scratch register: addresses.
pub(super) const A: Reg = 10;
/// Second scratch register.
pub(super) const B: Reg = 11;

/// A memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mem {
    /// In the state block: relative to the base of GS.
    pub gs: bool,
    pub base: Option<Reg>,
    /// Register and the shift of its scale; any register but RSP.
    pub index: Option<(Reg, u8)>,
    pub disp: i32,
}

/// A word of the state block.
pub(super) fn state(offset: usize) -> Mem {
    debug_assert!(i32::try_from(offset).is_ok());
    Mem { gs: true, base: None, index: None, disp: offset as i32 }
}

/// `disp` bytes from where `base` points.
pub(super) fn at(base: Reg, disp: i32) -> Mem {
    Mem { gs: false, base: Some(base), index: None, disp }
}

/// Opcodes of the form `op r64, r/m64`, or of the other direction where named a store.
pub(super) mod op {
    pub const ADD: u8 = 0x03;
    pub const OR: u8 = 0x0b;
    pub const XOR: u8 = 0x33;
    pub const CMP: u8 = 0x3b;
    pub const CMP_STORE: u8 = 0x39;
    pub const MOV: u8 = 0x8b;
    pub const MOV_STORE: u8 = 0x89;
    pub const LEA: u8 = 0x8d;
}

/// The group number of an operation with an immediate (opcodes 80 to 83) and of a shift (C1).
pub(super) mod group {
    pub const ADD: u8 = 0;
    pub const OR: u8 = 1;
    pub const AND: u8 = 4;
    pub const SHL: u8 = 4;
    pub const SHR: u8 = 5;
    pub const CMP: u8 = 7;
    pub const SAR: u8 = 7;
}

/// Condition numbers as in Jcc's opcodes.
pub(super) mod cond {
    pub const EQUAL: u8 = 4;
    pub const NOT_EQUAL: u8 = 5;
    pub const ABOVE: u8 = 7;
}

/// Where a 32-bit displacement of a branch is that has no target yet.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(super) struct Hole(usize);

/// Bytes of code in the making.
#[derive(Debug, Default)]
pub(super) struct Asm {
    pub bytes: Vec<u8>,
    /// The window whose addend A holds; see `window`. Forgotten when A is written here; who lets others write it, or come in from
    /// elsewhere, forgets it as well.
    pub addend: Option<usize>,
}

impl Asm {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An operation between `reg` and memory, in the direction that its opcode says.
    fn results(&mut self, opcode: u8, reg: Reg) {
        if !matches!(opcode, op::MOV_STORE | op::CMP_STORE | op::CMP) {
            self.writes(reg);
        }
    }

    /// `reg` is written.
    fn writes(&mut self, reg: Reg) {
        if reg == A {
            self.addend = None;
        }
    }

    fn put32(&mut self, value: i32) {
        self.put(&value.to_le_bytes());
    }

    /// Prefixes, opcode and operands of an instruction with a memory operand.
    fn memory(&mut self, wide: bool, opcode: &[u8], reg: Reg, m: Mem) {
        if m.gs {
            self.put(&[0x65]);
        }
        let bit = |r: Option<Reg>| r.map_or(0, |r| r >> 3);
        let rex = u8::from(wide) << 3 | reg >> 3 << 2 | bit(m.index.map(|i| i.0)) << 1 | bit(m.base);
        if rex != 0 {
            self.put(&[0x40 | rex]);
        }
        self.put(opcode);
        let reg = (reg & 7) << 3;
        let Some(base) = m.base else {
            // No base: a SIB byte with a 32-bit displacement.
            let sib = m.index.map_or(0x25, |(r, shift)| shift << 6 | (r & 7) << 3 | 5);
            self.put(&[reg | 4, sib]);
            return self.put32(m.disp);
        };
        let short = i8::try_from(m.disp);
        let mode = match short {
            // Without a displacement RBP and R13 mean something else.
            Ok(0) if base & 7 != 5 => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        match m.index {
            None if base & 7 != 4 => self.put(&[mode | reg | base & 7]),
            None => self.put(&[mode | reg | 4, 0x24]),
            Some((r, shift)) => self.put(&[mode | reg | 4, shift << 6 | (r & 7) << 3 | base & 7]),
        }
        match (mode, short) {
            (0, _) => {}
            (0x40, Ok(disp)) => self.put(&[disp as u8]),
            _ => self.put32(m.disp),
        }
    }

    /// `op reg, mem` or, for stores, `op mem, reg`; 64 bits wide.
    pub(super) fn rm(&mut self, opcode: u8, reg: Reg, m: Mem) {
        self.results(opcode, reg);
        self.memory(true, &[opcode], reg, m);
    }

    /// The same, 32 bits wide; a register that is written is zero-extended.
    pub(super) fn rm32(&mut self, opcode: u8, reg: Reg, m: Mem) {
        self.results(opcode, reg);
        self.memory(false, &[opcode], reg, m);
    }

    /// `op reg, from`, 64 bits wide.
    pub(super) fn rr(&mut self, opcode: u8, reg: Reg, from: Reg) {
        self.writes(reg);
        self.put(&[0x48 | reg >> 3 << 2 | from >> 3, opcode, 0xc0 | (reg & 7) << 3 | from & 7]);
    }

    /// The same, 32 bits wide.
    pub(super) fn rr32(&mut self, opcode: u8, reg: Reg, from: Reg) {
        self.writes(reg);
        self.put(&[0x40 | reg >> 3 << 2 | from >> 3, opcode, 0xc0 | (reg & 7) << 3 | from & 7]);
    }

    /// `op reg, imm`, 64 bits wide.
    pub(super) fn ri(&mut self, group: u8, reg: Reg, value: i32) {
        self.writes(reg);
        let (rex, modrm) = (0x48 | reg >> 3, 0xc0 | group << 3 | reg & 7);
        match i8::try_from(value) {
            Ok(value) => self.put(&[rex, 0x83, modrm, value as u8]),
            Err(_) => {
                self.put(&[rex, 0x81, modrm]);
                self.put32(value);
            }
        }
    }

    /// The same, 32 bits wide, with a large immediate; the register is zero-extended.
    pub(super) fn ri32(&mut self, group: u8, reg: Reg, value: i32) {
        self.writes(reg);
        if reg >= 8 {
            self.put(&[0x41]);
        }
        self.put(&[0x81, 0xc0 | group << 3 | reg & 7]);
        self.put32(value);
    }

    /// `rorx reg, from, count`, or a copy of `from` that is shifted right where the host has no BMI2.
    pub(super) fn rotated(&mut self, reg: Reg, from: Reg, count: u8) {
        if is_x86_feature_detected!("bmi2") {
            self.writes(reg);
            let map = (!reg >> 3 & 1) << 7 | 0x40 | (!from >> 3 & 1) << 5 | 3;
            self.put(&[0xc4, map, 0xfb, 0xf0, 0xc0 | (reg & 7) << 3 | from & 7, count]);
        } else {
            self.rr(op::MOV, reg, from);
            self.shift(group::SHR, reg, count);
        }
    }

    /// `op dword mem, imm`.
    pub(super) fn mi32(&mut self, group: u8, m: Mem, value: i32) {
        match i8::try_from(value) {
            Ok(value) => {
                self.memory(false, &[0x83], group, m);
                self.put(&[value as u8]);
            }
            Err(_) => {
                self.memory(false, &[0x81], group, m);
                self.put32(value);
            }
        }
    }

    /// `test byte mem, imm`.
    pub(super) fn test_mi8(&mut self, m: Mem, value: u8) {
        self.memory(false, &[0xf6], 0, m);
        self.put(&[value]);
    }

    /// `mov word mem, reg`.
    pub(super) fn mov_m16(&mut self, m: Mem, reg: Reg) {
        self.put(&[0x66]);
        self.memory(false, &[op::MOV_STORE], reg, m);
    }

    /// `movzx r32, word mem`.
    pub(super) fn movzx16(&mut self, reg: Reg, m: Mem) {
        self.writes(reg);
        self.memory(false, &[0x0f, 0xb7], reg, m);
    }

    /// `crc32 reg, from`, 64 bits wide.
    pub(super) fn crc32(&mut self, reg: Reg, from: Reg) {
        self.writes(reg);
        let rex = 0x48 | reg >> 3 << 2 | from >> 3;
        self.put(&[0xf2, rex, 0x0f, 0x38, 0xf1, 0xc0 | (reg & 7) << 3 | from & 7]);
    }

    /// `shift reg, count`, 64 bits wide.
    pub(super) fn shift(&mut self, group: u8, reg: Reg, count: u8) {
        self.writes(reg);
        self.put(&[0x48 | reg >> 3, 0xc1, 0xc0 | group << 3 | reg & 7, count]);
    }

    /// `mov reg, imm64`.
    pub(super) fn mov_i64(&mut self, reg: Reg, value: u64) {
        self.writes(reg);
        self.put(&[0x48 | reg >> 3, 0xb8 | reg & 7]);
        self.put(&value.to_le_bytes());
    }

    /// `mov reg32, imm32`.
    pub(super) fn mov_i32(&mut self, reg: Reg, value: u32) {
        self.writes(reg);
        if reg >= 8 {
            self.put(&[0x41]);
        }
        self.put(&[0xb8 | reg & 7]);
        self.put32(value as i32);
    }

    /// Status flags into `Fast::status`, as `exec::flags` has them, through RAX, which `spare` keeps meanwhile.
    pub(super) fn spill_flags(&mut self, status: Mem, spare: Reg) {
        self.rr(op::MOV, spare, RAX);
        // lahf; seto al
        self.put(&[0x9f, 0x0f, 0x90, 0xc0]);
        self.mov_m16(status, RAX);
        self.rr(op::MOV, RAX, spare);
    }

    /// Status flags from `Fast::status`.
    pub(super) fn load_flags(&mut self, status: Mem, spare: Reg) {
        self.rr(op::MOV, spare, RAX);
        self.movzx16(RAX, status);
        // add al, 0x7f; sahf
        self.put(&[0x04, 0x7f, 0x9e]);
        self.rr(op::MOV, RAX, spare);
    }

    /// `mov r11d, number; jmp qword mem`: to engine code that wants the number of a site.
    pub(super) fn go_with(&mut self, number: u32, m: Mem) {
        self.mov_i32(B, number);
        self.jmp_m(m);
    }

    /// `jmp qword mem`.
    pub(super) fn jmp_m(&mut self, m: Mem) {
        self.memory(false, &[0xff], 4, m);
    }

    /// `jmp` to somewhere.
    pub(super) fn jmp(&mut self) -> Hole {
        self.put(&[0xe9, 0, 0, 0, 0]);
        Hole(self.len() - 4)
    }

    /// Skips the `jmp` that comes next unless RCX, or ECX if narrow, is zero. Flags stay.
    pub(super) fn skip_unless_zero(&mut self, narrow: bool) {
        if narrow {
            self.put(&[0x67]);
        }
        // jrcxz to the jump; jmp past it
        self.put(&[0xe3, 2, 0xeb, 5]);
    }

    /// `jcc` to somewhere.
    pub(super) fn jcc(&mut self, condition: u8) -> Hole {
        self.put(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        Hole(self.len() - 4)
    }

    /// Lets `hole` lead to `to`.
    pub(super) fn fill(&mut self, hole: Hole, to: usize) {
        self.fill_far(hole, to as i64);
    }

    /// Lets `hole` lead to `to`, which may be outside, in bytes from the start.
    pub(super) fn fill_far(&mut self, hole: Hole, to: i64) {
        let displacement = (to - (hole.0 as i64 + 4)) as i32;
        self.bytes[hole.0..hole.0 + 4].copy_from_slice(&displacement.to_le_bytes());
    }

    /// Lets `hole` lead to what comes next.
    pub(super) fn here(&mut self, hole: Hole) {
        self.fill(hole, self.len());
    }

    /// Where the displacement of `hole` is.
    pub(super) fn place(hole: &Hole) -> usize {
        hole.0
    }
}

#[cfg(test)]
#[path = "asm_test.rs"]
mod asm_test;
