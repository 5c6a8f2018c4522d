//! Random system instructions on random tables: nothing panics, and a fault leaves the processor as it was.

use super::bench::*;
use crate::fault::{Fault, Flow};
use crate::fixture::Random;
use crate::operand::is_canonical;
use crate::sys::deliver_fault;
use umbra_x86::reg::gpr::RSP;
use umbra_x86::reg::{Cr4, Rflags};
use umbra_x86::segment::sreg;

impl Random {
    fn selector(&mut self) -> u16 {
        self.below(0x100) as u16
    }

    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::from(self.selector()),
            2 => self.below(MEMORY),
            3 => self.next(),
            4 => self.next() & 0xffff_ffff,
            5 => 1 << self.below(64),
            6 => self.below(0x1_0000),
            _ => self.of(&[CODE, DATA, STACK, STACK3, MISSING, MISSING - 4, u64::MAX, 1 << 47]),
        }
    }

    fn descriptor(&mut self) -> u64 {
        let selector = self.selector();
        match self.below(4) {
            0 => self.next(),
            1 => gate(
                selector,
                self.below(0x2_0000),
                self.below(16) as u16,
                self.below(4) as u8,
                self.below(32) as u8,
            ),
            _ => {
                let access = self.next() as u16 | 0x80;
                descriptor(
                    self.of(&[0, 0, 0, TSS_B, 0x123_4567]),
                    self.of(&[0, 0x67, 0xffff, 0xf_ffff]),
                    access,
                )
            }
        }
    }

    /// An instruction of this module; operands are random.
    fn instruction(&mut self, long: bool) -> Vec<u8> {
        const ONE: &[u8] = &[
            0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x62, 0x63, 0x6c, 0x6d, 0x6e, 0x6f, 0x8c, 0x8e, 0x9a,
            0x9c, 0x9d, 0xc4, 0xc5, 0xc8, 0xc9, 0xca, 0xcb, 0xcc, 0xcd, 0xce, 0xcf, 0xe4, 0xe5, 0xe6, 0xe7,
            0xea, 0xec, 0xed, 0xee, 0xef, 0xf1, 0xf4, 0xfa, 0xfb, 0xff, 0xff, 0xcf, 0xcf, 0xcb,
        ];
        const TWO: &[u8] = &[
            0x00, 0x00, 0x01, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0b, 0x20, 0x21, 0x22, 0x23,
            0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0xa0, 0xa1, 0xa2, 0xa8, 0xa9, 0xae, 0xb2, 0xb4, 0xb5, 0xc7,
        ];
        let mut code = Vec::new();
        for prefix in [0x66, 0x67, 0xf3] {
            if self.below(6) == 0 {
                code.push(prefix);
            }
        }
        if long && self.below(3) == 0 {
            code.push(0x48);
        }
        if self.below(2) == 0 {
            code.push(self.of(ONE));
        } else {
            code.extend([0x0f, self.of(TWO)]);
        }
        let at = self.below(MEMORY) as u32;
        let selector = u32::from(self.selector());
        match self.below(4) {
            0 => code.extend(self.next().to_le_bytes()),
            1 => code.extend([0x05 | self.next() as u8 & 0x38]),
            2 => code.extend([0xc0 | self.next() as u8]),
            _ => {}
        }
        code.extend(at.to_le_bytes());
        code.extend(selector.to_le_bytes());
        code.truncate(15);
        code
    }
}

fn bench(r: &mut Random) -> Bench {
    let start = r.of(&[
        Start::Real,
        Start::V86,
        Start::P16,
        Start::P32,
        Start::P32,
        Start::Compat,
        Start::Long,
        Start::Long,
    ]);
    let cpl = if start == Start::V86 { 3 } else { r.of(&[0, 0, 0, 1, 2, 3, 3]) };
    let mut b = Bench::new(start, if start == Start::Real { 0 } else { cpl });
    for n in 0..16 {
        let raw = r.descriptor();
        b.gdt(FREE + 8 * n, raw);
        let raw = r.descriptor();
        b.write(LDT + 8 * u64::from(n), raw, 8);
    }
    for vector in 0..0x80 {
        let raw = if r.below(3) == 0 {
            r.descriptor()
        } else {
            gate(CODE0, 0x8000 + r.below(0x100), r.of(&[0xe, 0xf]), 3, 0)
        };
        b.idt(vector, raw);
    }
    for n in 0..26 {
        let value = r.value();
        b.write(TSS_B + 4 * n, value, 4);
    }
    if r.below(2) == 0 {
        b.cpu.cr4 |= r.of(&[Cr4::UMIP, Cr4::DE, Cr4::FSGSBASE, Cr4::OSXSAVE, Cr4::TSD]);
    }
    b
}

/// Registers before an instruction: random, and a stack with values on it.
fn shake(b: &mut Bench, r: &mut Random) {
    for n in 0..16 {
        if n != RSP {
            b.cpu.gpr[n] = r.value();
        }
    }
    b.cpu.gpr[RSP] = if r.below(8) == 0 { r.value() } else { STACK - 0x80 };
    for n in 0..16 {
        let value = if r.below(3) == 0 {
            r.value()
        } else {
            u64::from(r.of(&[CODE0, DATA0, CODE3, DATA3, 0x202, 0x1234]))
        };
        let size = r.of(&[4, 8]);
        b.write(STACK - 0x80 + n * size, value, size as usize);
    }
    b.cpu.rip = CODE + r.below(0x80);
    let changed = (Rflags::IOPL | Rflags::IF | Rflags::DF | Rflags::AC | Rflags::NT).bits();
    if r.below(4) == 0 {
        b.cpu.rflags = b.cpu.rflags & !changed | r.next() & changed;
    }
    b.cpu.update_mode();
}

fn check_invariants(b: &mut Bench, seed: u64) {
    let mode = b.cpu.mode;
    b.cpu.update_mode();
    assert_eq!(b.cpu.mode, mode, "seed {seed}: the mode was not derived anew");
    let c = &b.cpu;
    assert_eq!(c.rflags & !0x3f_7fd7, 0, "seed {seed}: RFLAGS {:#x}", c.rflags);
    assert_ne!(c.rflags & 2, 0, "seed {seed}");
    assert!(c.mode.code == 64 || c.rip <= 0xffff_ffff, "seed {seed}: RIP {:#x}", c.rip);
    assert!(!(c.mode.v86 && c.mode.long), "seed {seed}");
    assert!(is_canonical(c.seg[sreg::FS].base) && is_canonical(c.tr.base), "seed {seed}");
}

#[test]
fn random_instructions() {
    let mut executed = [0u32; 3];
    for seed in 1..=3000u64 {
        let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut b = bench(&mut r);
        for _ in 0..12 {
            shake(&mut b, &mut r);
            let long = b.cpu.mode.code == 64;
            if !long && b.cpu.seg[sreg::CS].base >= MEMORY - 0x1_0000 {
                break;
            }
            let code = r.instruction(long);
            let (before, tr) = (b.snapshot(), b.cpu.tr.selector);
            let repeats = code.iter().take(3).any(|b| *b == 0xf3);
            match b.step(&code) {
                Ok(flow) => executed[usize::from(flow == Flow::Jump)] += 1,
                Err(fault) => {
                    executed[2] += 1;
                    // A task switch faults in the new task; general detect sets RF for its handler.
                    let switched = b.cpu.tr.selector != tr || fault == Fault::DB;
                    assert!(
                        switched || repeats || b.snapshot() == before,
                        "seed {seed}: {code:x?} {fault:x?}"
                    );
                    if deliver_fault(&mut b.cpu, fault).is_err() {
                        break;
                    }
                }
            }
            check_invariants(&mut b, seed);
            b.cpu.run_state = umbra_engine::RunState::Running;
        }
    }
    let [next, jumped, faulted] = executed;
    assert!(next > 1000 && jumped > 200 && faulted > 1000, "too few of a kind: {executed:?}");
}
