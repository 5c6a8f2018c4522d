//! Registers in every role: resident ones, high bytes, the stack pointer, all against the interpreter.

use iced_x86::{Code as C, Encoder, Instruction, MemoryOperand, Register as R};
use umbra_x86::reg::gpr::{RAX, RBX, RCX, RDI, RDX, RSP};

use super::{NOTHING, Pair, hex};
use crate::exec::test::guest::{CODE, DATA, Guest, STACK};

/// Registers that stand for all: three that are resident, one that is another in the host, two that are themselves.
const REGISTERS: [R; 6] = [R::R10, R::R11, R::R15, R::RSP, R::RBX, R::R13];

fn sized(r: R, size: usize) -> R {
    let n = r.number() as u32;
    match size {
        1 if n < 4 => R::AL + n,
        1 => R::SPL + (n - 4),
        2 => R::AX + n,
        4 => R::EAX + n,
        _ => r,
    }
}

/// Code of instructions one after the other.
#[derive(Default)]
struct Program(Vec<u8>);

impl Program {
    fn add(&mut self, i: Instruction) {
        let mut encoder = Encoder::new(64);
        encoder.encode(&i, 0).unwrap_or_else(|e| panic!("{i}: {e}"));
        self.0.extend(encoder.take_buffer());
    }

    fn set(&mut self, r: R, value: u64) {
        self.add(Instruction::with2(C::Mov_r64_imm64, r, value).unwrap());
    }
}

/// Of two operands, the first a register and the second a register or memory, and the other way round.
const REGISTER_FIRST: &[C] = &[
    C::Mov_r64_rm64,
    C::Mov_r32_rm32,
    C::Mov_r16_rm16,
    C::Mov_r8_rm8,
    C::Add_r64_rm64,
    C::Adc_r32_rm32,
    C::Sub_r16_rm16,
    C::Xor_r8_rm8,
    C::Cmp_r64_rm64,
    C::Movzx_r32_rm8,
    C::Movsx_r64_rm16,
    C::Movsxd_r64_rm32,
    C::Imul_r64_rm64,
    C::Cmovb_r64_rm64,
    C::Cmovne_r32_rm32,
    C::Bsf_r64_rm64,
    C::Popcnt_r32_rm32,
];
const MEMORY_FIRST: &[C] = &[
    C::Mov_rm64_r64,
    C::Mov_rm32_r32,
    C::Mov_rm16_r16,
    C::Mov_rm8_r8,
    C::Add_rm64_r64,
    C::Sbb_rm32_r32,
    C::And_rm16_r16,
    C::Or_rm8_r8,
    C::Test_rm64_r64,
    C::Xchg_rm64_r64,
    C::Xadd_rm32_r32,
    C::Cmpxchg_rm64_r64,
    C::Shld_rm64_r64_CL,
];
/// Of one operand, a register or memory.
const ALONE: &[C] = &[
    C::Inc_rm64,
    C::Dec_rm8,
    C::Neg_rm32,
    C::Not_rm16,
    C::Shl_rm64_CL,
    C::Rcr_rm32_1,
    C::Mul_rm64,
    C::Imul_rm32,
    C::Setb_rm8,
    C::Setne_rm8,
];

/// Bytes of the operand that is a register or memory.
fn size(code: C, operand: u32) -> usize {
    use iced_x86::OpCodeOperandKind as K;
    match code.op_code().op_kind(operand) {
        K::r8_or_mem | K::r8_reg => 1,
        K::r16_or_mem | K::r16_reg => 2,
        K::r32_or_mem | K::r32_reg => 4,
        _ => 8,
    }
}

fn with(code: C, one: R, two: R) -> Instruction {
    let (one, two) = (sized(one, size(code, 0)), sized(two, size(code, 1)));
    match code.op_code().op_count() {
        3 => Instruction::with3(code, one, two, R::CL).unwrap(),
        _ => Instruction::with2(code, one, two).unwrap(),
    }
}

fn from_memory(code: C, to: R, m: MemoryOperand) -> Instruction {
    Instruction::with2(code, sized(to, size(code, 0)), m).unwrap()
}

fn to_memory(code: C, m: MemoryOperand, from: R) -> Instruction {
    let from = sized(from, size(code, 1));
    match code.op_code().op_count() {
        3 => Instruction::with3(code, m, from, R::CL).unwrap(),
        _ => Instruction::with2(code, m, from).unwrap(),
    }
}

fn alone(code: C, memory: Option<MemoryOperand>, r: R) -> Instruction {
    let one = matches!(code, C::Rcr_rm32_1);
    let shift = matches!(code, C::Shl_rm64_CL);
    match memory {
        Some(m) if one => Instruction::with2(code, m, 1).unwrap(),
        Some(m) if shift => Instruction::with2(code, m, R::CL).unwrap(),
        Some(m) => Instruction::with1(code, m).unwrap(),
        None => {
            let r = sized(r, size(code, 0));
            match (one, shift) {
                (true, _) => Instruction::with2(code, r, 1).unwrap(),
                (_, true) => Instruction::with2(code, r, R::CL).unwrap(),
                _ => Instruction::with1(code, r).unwrap(),
            }
        }
    }
}

/// All of the lists with `a` and `b` as operands.
fn of_registers(a: R, b: R) -> Program {
    let mut program = Program::default();
    for code in REGISTER_FIRST.iter().chain(MEMORY_FIRST) {
        program.add(with(*code, a, b));
    }
    for code in ALONE {
        program.add(alone(*code, None, a));
    }
    program.add(Instruction::with2(C::Lea_r64_m, a, MemoryOperand::with_base_displ(b, 0x1234)).unwrap());
    program
        .add(Instruction::with2(C::Lea_r32_m, sized(a, 4), MemoryOperand::with_base_displ(b, -4)).unwrap());
    program
}

/// All of the lists with `a` as operand and `base` plus twice `index` as address, which is made right before each.
fn of_memory(a: R, base: R, index: R) -> Program {
    const DISP: i64 = 0x40;
    let m = MemoryOperand::with_base_index_scale_displ_size(base, index, 2, DISP, 1);
    let mut program = Program::default();
    let mut n = 0;
    let mut add = |i: Instruction| {
        n += 8;
        program.set(base, DATA + n);
        program.set(index, if index == base { DATA + n } else { n * 2 });
        program.add(i);
    };
    REGISTER_FIRST.iter().for_each(|code| add(from_memory(*code, a, m)));
    MEMORY_FIRST.iter().for_each(|code| add(to_memory(*code, m, a)));
    ALONE.iter().for_each(|code| add(alone(*code, Some(m), a)));
    program
}

/// In a translation RSP may hold anything; HLT needs no stack.
fn setup(guest: &mut Guest) {
    guest.cpu.gpr[RCX] = 5;
    guest.cpu.rflags = 3;
}

#[test]
fn two_registers() {
    let mut pair = Pair::new(64);
    for a in REGISTERS {
        for b in REGISTERS {
            assert_eq!(pair.run(setup, &of_registers(a, b).0), NOTHING, "{a:?} {b:?}");
        }
    }
}

#[test]
fn registers_and_memory() {
    let mut pair = Pair::new(64);
    for a in REGISTERS {
        for base in REGISTERS {
            for index in REGISTERS.into_iter().filter(|r| *r != R::RSP && *r != base) {
                let program = of_memory(a, base, index);
                assert_eq!(pair.run(setup, &program.0), NOTHING, "{a:?} [{base:?}+{index:?}]");
            }
        }
    }
}

#[test]
fn a_register_that_is_base_and_index() {
    let mut pair = Pair::new(64);
    for r in REGISTERS.into_iter().filter(|r| *r != R::RSP) {
        for a in [R::RAX, R::R10, r] {
            let mut program = Program::default();
            program.set(r, DATA / 4);
            let m = MemoryOperand::with_base_index_scale_displ_size(r, r, 2, (DATA / 4) as i64, 8);
            program.add(to_memory(C::Mov_rm64_r64, m, a));
            program.add(from_memory(C::Add_r64_rm64, R::RAX, m));
            program.add(to_memory(C::Xadd_rm32_r32, m, a));
            assert_eq!(pair.run(setup, &program.0), NOTHING, "{r:?} {a:?}");
        }
    }
}

#[test]
fn stack_operands() {
    let mut pair = Pair::new(64);
    for r in REGISTERS {
        let mut program = Program::default();
        program.add(Instruction::with1(C::Push_r64, r).unwrap());
        program.add(Instruction::with1(C::Push_r64, R::RSP).unwrap());
        program.add(Instruction::with1(C::Push_r64, R::R11).unwrap());
        program.add(Instruction::with1(C::Pop_r64, R::R10).unwrap());
        program.add(Instruction::with1(C::Pop_r64, r).unwrap());
        program.add(Instruction::with1(C::Push_rm64, MemoryOperand::with_base(R::RBX)).unwrap());
        let setup = |guest: &mut Guest| {
            guest.cpu.gpr[RBX] = DATA;
            guest.cpu.gpr[r.number()] = if r == R::RSP { STACK } else { DATA + 8 };
            guest.put(DATA, 0x1122_3344, 8);
        };
        assert_eq!(pair.run(setup, &program.0), NOTHING, "{r:?}");
    }
}

#[test]
fn high_bytes() {
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| {
        guest.cpu.gpr[RBX] = DATA + 0x80;
        guest.cpu.gpr[RDX] = 8;
        guest.put(DATA + 0x80, 0x8877_6655_4433_2211, 8);
    };
    for code in [
        // mov ah,[rbx]; mov [rbx+1],ah; add ch,[rbx+rdx]; xor [rbx],ah
        hex("8a23886301022c133023"),
        // mov ah,ch; add dh,al; xchg ah,dh; movzx ecx,ah; cmp ah,[rbx+2]; setz dh
        hex("88ec00c686f40fb6cc3a63020f94c6"),
        // inc ah; mov [rip+0x200],ah; mov al,fs:[rbx]; mov bh,al; mul ch
        hex("fec4882500020000648a0388c7f6e5"),
        // stc; adc ah,[rbx]; sbb [rbx],ah; lock xadd [rbx+3],ch; lock cmpxchg [rbx],dh
        hex("f912231823f00fc06b03f00fb033"),
        // mov ah,[ebx]; mov [edx+0x200000],ah; rol ah,cl; test ah,[rbx]
        hex("678a236788a200002000d2c48423"),
    ] {
        assert_eq!(pair.run(setup, &code), NOTHING, "{code:x?}");
    }
}

#[test]
fn flags_that_a_repeated_instruction_leaves() {
    let mut pair = Pair::new(64);
    // cmp rcx,rbx; jg 1f; mul r15d; 1: repne scasq
    let code = hex("4839d97f0341f7e7f248af");
    for rcx in [0, 1] {
        let setup = |guest: &mut Guest| {
            guest.cpu.gpr[RCX] = rcx;
            guest.cpu.gpr[RBX] = 0xffff_fff6_4430_4be4;
            guest.cpu.gpr[RDI] = DATA;
        };
        assert_eq!(pair.run(setup, &code), NOTHING);
        assert!(rcx == 1 || pair.translated.cpu.rflags & 1 == 1);
    }
}

#[test]
fn flags_across_accesses_and_faults() {
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| {
        guest.cpu.gpr[RBX] = DATA;
        (guest.cpu.gpr[RAX], guest.cpu.gpr[RDX]) = (u64::MAX, DATA + 0x1000);
    };
    // add rax,1; mov rcx,[rbx]; adc rcx,0; mov [rbx+8],rcx; sbb rax,rax; mov rsi,[rbx+8]; pushfq; pop rdi; cmp rsi,rcx; push rax; setz al; mov r8,[rbx]; cmovz r9,r8; pop r8
    let whole = hex("4883c001488b0b4883d10048894b084819c0488b73089c5f4839ce500f94c04c8b034d0f44c84158");
    assert_eq!(pair.run(setup, &whole), NOTHING);
    pair.both(|guest| guest.map(DATA + 0x1000, 0));
    // The handler finds the flags that are needed after the fault.
    let faults = [
        // add rax,1; mov rcx,[rdx]; adc rcx,0
        hex("4883c001488b0a4883d100"),
        // add rax,1; mov [rdx],rcx; setz al; adc rcx,0; sets bl; seto cl; setp dl
        hex("4883c00148890a0f94c04883d1000f98c30f90c10f9ac2"),
        // add rax,1; adc [rdx],rcx
        hex("4883c00148110a"),
        // add rax,1; cmovz rcx,[rdx]
        hex("4883c001480f440a"),
        // add rax,1; mov rsp,rdx; pop rcx
        hex("4883c0014889d459"),
    ];
    for code in &faults[..4] {
        assert_eq!(pair.run(setup, code), 14);
        let [a, b] = [&pair.translated, &pair.interpreted].map(|g| g.peek(g.cpu.gpr[RSP] + 24, 8));
        assert_eq!(a & 0x41, 0x41, "carry and zero: {code:x?}");
        assert_eq!(a & 0x41, b & 0x41);
        assert_eq!(pair.translated.peek(pair.translated.cpu.gpr[RSP] + 8, 8), CODE + 4, "where it was");
    }
}

#[test]
fn conditions() {
    let mut pair = Pair::new(64);
    let setup = |guest: &mut Guest| guest.cpu.gpr[RBX] = DATA;
    // Every condition after every outcome of a comparison, taken and not, with a load between.
    for condition in 0..16u8 {
        for (a, b) in [(1u64, 2u64), (2, 1), (3, 3), (1 << 63, 1), (0, 1 << 63), (u64::MAX, 0)] {
            let mut program = Program::default();
            program.set(R::RAX, a);
            program.set(R::R11, b);
            // xor ecx,ecx; cmp rax,r11; mov rdx,[rbx]
            program.0.extend(hex("31c94c39d8488b13"));
            program.0.extend([0x70 | condition, 2, 0xff, 0xc1, 0xff, 0xc1]);
            assert_eq!(pair.run(setup, &program.0), NOTHING);
            let count = pair.translated.cpu.gpr[RCX];
            assert!(count == 1 || count == 2);
        }
    }
}
