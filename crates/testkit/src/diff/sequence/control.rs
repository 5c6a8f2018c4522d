//! Branches, loops, calls.

use iced_x86::{Code, Instruction, MemoryOperand, Register as R};

use super::super::state::Bits;
use super::generate::Generator;
use super::{Item, Step};

/// A loop within the program: its first item sets the counter, its last counts.
struct Inner {
    first: usize,
    last: usize,
}

/// A branch that is still without a target.
struct Open {
    item: usize,
    step: usize,
}

impl Generator<'_> {
    /// Makes the items: a main part, mostly in a loop, and maybe a subroutine.
    pub fn shape(&mut self) {
        let subroutine = self.random.one_in(3) && self.wanted > 8;
        let rounds = self.random.below(8) != 0;
        let room = self.wanted;
        self.wanted = room - if rounds { 2 } else { 0 } - if subroutine { 4 } else { 0 };
        let mut open = Vec::new();
        let mut inner = Vec::new();
        let mut calls = Vec::new();
        while self.fits(1) {
            let before = self.program.len();
            match self.random.below(16) {
                0 | 1 => self.forward(&mut open),
                2 if subroutine => self.call(&mut calls),
                3 if inner.is_empty() && self.pins.counters[0] != self.pins.counters[1] => {
                    self.inner(&mut inner, &mut open)
                }
                4 => self.flags(),
                _ => self.plain(),
            }
            if self.program.len() == before && !self.fits(4) {
                break;
            }
        }
        self.wanted = room;
        let tail = self.program.items.len();
        if rounds {
            let count = self.count(0, 0);
            self.push(count);
        }
        self.aim(&open, &inner, tail);
        if subroutine {
            self.subroutine(&calls);
        }
    }

    /// Counts, and goes back to item `to` if there is more.
    fn count(&mut self, counter: usize, to: usize) -> Vec<Step> {
        let n = u32::from(self.pins.counters[counter]);
        let wide = self.program.bits == Bits::SixtyFour;
        let count = match (wide, self.random.one_in(2)) {
            (true, true) => Instruction::with1(Code::Dec_rm64, R::RAX + n),
            (true, false) => Instruction::with2(Code::Sub_rm64_imm8, R::RAX + n, 1),
            (false, true) => Instruction::with1(Code::Dec_r32, R::EAX + n),
            (false, false) => Instruction::with2(Code::Sub_rm32_imm8, R::EAX + n, 1),
        };
        let back = if wide { Code::Jne_rel8_64 } else { Code::Jne_rel8_32 };
        vec![count.unwrap_or_default().into(), branch(back, Some(to))]
    }

    /// A conditional or unconditional branch forward, whose target is found later.
    fn forward(&mut self, open: &mut Vec<Open>) {
        let wide = self.program.bits == Bits::SixtyFour;
        let steps = match self.random.below(8) {
            0 => vec![branch(if wide { Code::Jmp_rel8_64 } else { Code::Jmp_rel8_32 }, None)],
            1 => self.through_register(),
            2 => self.through_stack(),
            _ => {
                let code = self.random.pick(&self.pool.branches);
                // LOOP counts in RCX.
                let counts = format!("{code:?}").starts_with("Loop");
                if counts && self.pins.counters.contains(&1) {
                    return;
                }
                let mut steps = vec![branch(code, None)];
                if counts && (self.pins.pointers.contains(&1) || self.pins.index == 1) {
                    return;
                }
                if self.random.one_in(3) {
                    let compare = if wide { Code::Cmp_rm64_r64 } else { Code::Cmp_rm32_r32 };
                    let first = if wide { R::RAX } else { R::EAX };
                    let (a, b) = (self.random.below(8) as u32, self.random.below(8) as u32);
                    let i = Instruction::with2(compare, first + a, first + b).unwrap_or_default();
                    steps.insert(0, i.into());
                }
                steps
            }
        };
        if self.fits(steps.len()) {
            let step = steps.iter().position(|s| s.label.is_some()).unwrap_or(0);
            let item = self.push(steps);
            open.push(Open { item, step });
        }
    }

    /// A register for an address: one that keeps no value.
    fn scratch(&mut self) -> u32 {
        let pins = self.pins;
        let pinned = [pins.pointers[0], pins.pointers[1], pins.index, pins.counters[0], pins.counters[1], 4];
        let count = self.program.bits.register_count() as u8;
        let free: Vec<u8> = (0..count).filter(|n| !pinned.contains(n)).collect();
        self.random.pick(&free).into()
    }

    /// The address of a label, in register `n`.
    fn address(&mut self, n: u32, label: Option<usize>) -> Step {
        let label = label.or(Some(0));
        let wide = self.program.bits == Bits::SixtyFour;
        let instruction = match (wide, self.random.one_in(2)) {
            (true, true) => {
                Instruction::with2(Code::Lea_r64_m, R::RAX + n, MemoryOperand::with_base_displ(R::RIP, 0))
            }
            _ => Instruction::with2(Code::Mov_r32_imm32, R::EAX + n, 0),
        };
        Step { instruction: instruction.unwrap_or_default(), label }
    }

    /// `JMP` to a register.
    fn through_register(&mut self) -> Vec<Step> {
        let n = self.scratch();
        let wide = self.program.bits == Bits::SixtyFour;
        let jump = match wide {
            true => Instruction::with1(Code::Jmp_rm64, R::RAX + n),
            false => Instruction::with1(Code::Jmp_rm32, R::EAX + n),
        };
        vec![self.address(n, None), jump.unwrap_or_default().into()]
    }

    /// `PUSH` of an address, `RET`.
    fn through_stack(&mut self) -> Vec<Step> {
        let wide = self.program.bits == Bits::SixtyFour;
        let push = match wide {
            true => Instruction::with1(Code::Pushq_imm32, 0),
            false => Instruction::with1(Code::Pushd_imm32, 0),
        };
        let ret = Instruction::with(if wide { Code::Retnq } else { Code::Retnd });
        vec![Step { instruction: push.unwrap_or_default(), label: Some(0) }, ret.into()]
    }

    /// Flags popped from the stack: status flags and the direction.
    fn flags(&mut self) {
        let wide = self.program.bits == Bits::SixtyFour;
        let value = (self.random.bits() & 0xcd5) as i32;
        let (push, pop) = match (wide, self.random.one_in(4)) {
            (_, true) => (Instruction::with1(Code::Push_imm16, value), Code::Popfw),
            (true, _) => (Instruction::with1(Code::Pushq_imm32, value), Code::Popfq),
            (false, _) => (Instruction::with1(Code::Pushd_imm32, value), Code::Popfd),
        };
        if self.fits(2) {
            self.push(vec![push.unwrap_or_default().into(), Instruction::with(pop).into()]);
        }
    }

    /// A short loop.
    fn inner(&mut self, inner: &mut Vec<Inner>, open: &mut Vec<Open>) {
        if !self.fits(6) {
            return;
        }
        let counter = usize::from(self.pins.counters[1]);
        let rounds = if self.random.one_in(6) { 40 } else { 1 + self.random.below(5) };
        let set = self.set(counter, rounds);
        let first = self.push(vec![set]);
        self.wanted -= 2;
        for _ in 0..1 + self.random.below(4) {
            if self.random.one_in(6) { self.forward(open) } else { self.plain() }
        }
        self.wanted += 2;
        let count = self.count(1, first + 1);
        let last = self.push(count);
        inner.push(Inner { first, last });
    }

    /// A call of the subroutine, whose place is found later.
    fn call(&mut self, calls: &mut Vec<Open>) {
        let wide = self.program.bits == Bits::SixtyFour;
        let steps = if self.random.one_in(2) {
            vec![branch(if wide { Code::Call_rel32_64 } else { Code::Call_rel32_32 }, None)]
        } else {
            let n = self.scratch();
            let call = match wide {
                true => Instruction::with1(Code::Call_rm64, R::RAX + n),
                false => Instruction::with1(Code::Call_rm32, R::EAX + n),
            };
            vec![self.address(n, None), call.unwrap_or_default().into()]
        };
        if self.fits(steps.len()) {
            let item = self.push(steps);
            calls.push(Open { item, step: 0 });
        }
    }

    /// Gives branches their targets: forward, up to `tail`, and not into a loop from without, whose counter would not be set.
    fn aim(&mut self, open: &[Open], inner: &[Inner], tail: usize) {
        for o in open {
            let far = (tail - o.item) as u64;
            let mut target = o.item + 1 + self.random.below(far.clamp(1, 6)) as usize;
            for l in inner {
                if o.item < l.first && (l.first + 1..=l.last).contains(&target) {
                    target = l.first;
                }
            }
            self.program.items[o.item].steps[o.step].label = Some(target.min(tail));
        }
    }

    /// Behind a jump to the end: the subroutine.
    fn subroutine(&mut self, calls: &[Open]) {
        let wide = self.program.bits == Bits::SixtyFour;
        if calls.is_empty() {
            return;
        }
        let over = branch(if wide { Code::Jmp_rel8_64 } else { Code::Jmp_rel8_32 }, None);
        let over = self.push(vec![over]);
        let start = self.program.items.len();
        self.balanced = true;
        self.wanted = self.wanted.saturating_sub(1);
        let mut open = Vec::new();
        while self.fits(1) && self.program.items.len() < start + 5 {
            let before = self.program.len();
            if self.random.one_in(6) {
                self.forward(&mut open)
            } else {
                self.plain()
            }
            if self.program.len() == before {
                break;
            }
        }
        let ret = self.program.items.len();
        self.program.items.push(Item {
            steps: vec![Instruction::with(if wide { Code::Retnq } else { Code::Retnd }).into()],
        });
        self.aim(&open, &[], ret);
        for c in calls {
            self.program.items[c.item].steps[c.step].label = Some(start);
        }
        self.program.items[over].steps[0].label = Some(ret + 1);
    }
}

fn branch(code: Code, label: Option<usize>) -> Step {
    let instruction = Instruction::with_branch(code, 0).unwrap_or_default();
    Step { instruction, label: label.or(Some(0)) }
}
