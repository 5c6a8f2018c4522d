use iced_x86::{Code, Instruction, MemoryOperand, Register as R};

use super::flags::dead_at;
use super::shrink::shrink;
use super::{Item, Program, Step};
use crate::diff::state::{Bits, CODE, CODE_OFFSET, State, Test};

const START: u64 = CODE + CODE_OFFSET;
const CF: u64 = 1;
const STATUS: u64 = 0x8d5;

fn program(steps: &[(Instruction, Option<usize>)]) -> Program {
    let item = |(instruction, label): &(Instruction, Option<usize>)| Item {
        steps: vec![Step { instruction: *instruction, label: *label }],
    };
    Program { state: State::empty(), bits: Bits::SixtyFour, items: steps.iter().map(item).collect() }
}

fn test(steps: &[Instruction]) -> Test {
    let steps: Vec<_> = steps.iter().map(|i| (*i, None)).collect();
    program(&steps).test().expect("it can be encoded")
}

fn add() -> Instruction {
    Instruction::with2(Code::Add_rm32_r32, R::EAX, R::ECX).unwrap()
}

fn load() -> Instruction {
    Instruction::with2(Code::Mov_r32_rm32, R::EAX, MemoryOperand::with_base(R::RBX)).unwrap()
}

#[test]
fn labels_become_addresses() {
    let branch = |code| Instruction::with_branch(code, 0).unwrap();
    let long = (0..20).map(|_| (Instruction::with2(Code::Mov_r64_imm64, R::RAX, 1u64 << 40).unwrap(), None));
    let mut steps = vec![(branch(Code::Jmp_rel8_64), Some(21))];
    steps.extend(long);
    steps.push((branch(Code::Jne_rel8_64), Some(21)));
    let test = program(&steps).test().expect("it can be encoded");
    // 200 bytes are too far for a short jump.
    assert_eq!(test.code()[..5], [0xe9, 200, 0, 0, 0]);
    assert_eq!(test.code()[205..], [0x75, 0xfe]);
}

#[test]
fn an_address_that_is_loaded() {
    let push = Instruction::with1(Code::Pushq_imm32, 0).unwrap();
    let test = program(&[(push, Some(1)), (Instruction::with(Code::Retnq), None)]).test().unwrap();
    assert_eq!(test.code(), [0x68, 0x05, 0x08, 0x00, 0x10, 0xc3]);
}

#[test]
fn flags_are_dead_before_they_are_overwritten() {
    let (add, load) = (add(), load());
    let at_load = START + 2;
    assert_eq!(dead_at(&test(&[add, load, add]), at_load), STATUS);
    // Nothing has written them.
    assert_eq!(dead_at(&test(&[load, add]), START), 0);
    // The end looks at them.
    assert_eq!(dead_at(&test(&[add, load]), at_load), 0);
    let adc = Instruction::with2(Code::Adc_rm32_r32, R::EAX, R::ECX).unwrap();
    assert_eq!(dead_at(&test(&[add, load, adc]), at_load), STATUS & !CF);
    let inc = Instruction::with1(Code::Inc_rm32, R::EAX).unwrap();
    assert_eq!(dead_at(&test(&[add, load, inc]), at_load), STATUS & !CF);
    // By a count of zero they are not.
    let shift = Instruction::with2(Code::Shl_rm32_CL, R::EAX, R::CL).unwrap();
    assert_eq!(dead_at(&test(&[add, load, shift]), at_load), 0);
    assert_eq!(dead_at(&test(&[add, load, shift, add]), at_load), STATUS);
    // What faults itself does not write.
    let to_memory = Instruction::with2(Code::Add_rm32_r32, MemoryOperand::with_base(R::RBX), R::ECX).unwrap();
    assert_eq!(dead_at(&test(&[add, to_memory]), at_load), STATUS);
}

#[test]
fn flags_are_dead_only_if_so_on_every_path() {
    let (add, load) = (add(), load());
    let jump = |code, label| (Instruction::with_branch(code, 0).unwrap(), Some(label));
    let at_load = START + 2;
    // JO reads OF only; both of its ways overwrite all.
    let both = program(&[(add, None), (load, None), jump(Code::Jo_rel8_64, 4), (add, None), (add, None)]);
    assert_eq!(dead_at(&both.test().unwrap(), at_load), STATUS & !0x800);
    let one = program(&[(add, None), (load, None), jump(Code::Jo_rel8_64, 4), (add, None)]);
    assert_eq!(dead_at(&one.test().unwrap(), at_load), 0);
    // A loop that never writes any comes to no end.
    let round = program(&[(add, None), (load, None), jump(Code::Jmp_rel8_64, 1)]);
    assert_eq!(dead_at(&round.test().unwrap(), at_load), STATUS);
}

#[test]
fn a_program_shrinks_to_what_matters() {
    let mut steps = vec![(add(), None); 12];
    steps[3] = (load(), None);
    steps[7] = (Instruction::with_branch(Code::Jmp_rel8_64, 0).unwrap(), Some(9));
    let matters = |p: &Program| {
        let has = |code| p.instructions().any(|i| i.code() == code);
        has(Code::Mov_r32_rm32) && has(Code::Jmp_rel8_64) && p.test().is_some()
    };
    let smallest = shrink(&program(&steps), matters);
    assert_eq!(smallest.len(), 2);
    let label = smallest.items.iter().flat_map(|i| &i.steps).find_map(|s| s.label);
    assert_eq!(label, Some(smallest.items.len()));
}
