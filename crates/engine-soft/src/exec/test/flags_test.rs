//! Results and flags of every arithmetic instruction against the host's processor.

use std::arch::asm;

use umbra_x86::reg::gpr::{RAX, RCX, RDX};

use super::guest::Guest;

const STATUS: u64 = 0x8d5;

/// A generator of numbers: xorshift, with values at the edges now and then.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let edge = [
            0,
            1,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            1 << 63,
            u64::MAX,
        ];
        match self.0 % 4 {
            0 => edge[(self.0 >> 8) as usize % edge.len()],
            _ => self.0.wrapping_mul(0x2545_f491_4f6c_dd1d),
        }
    }
}

/// RAX, RCX, RDX and the status flags.
type State = [u64; 4];

/// Executable memory for a few bytes of code.
struct Native(*mut u8);

impl Native {
    fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let p = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) };
        assert_ne!(p, libc::MAP_FAILED);
        Self(p.cast())
    }

    fn run(&self, code: &[u8], state: State) -> State {
        let [mut a, mut c, mut d, mut f] = state;
        // SAFETY: the code is one arithmetic instruction on RAX, RCX and RDX, and RET.
        unsafe {
            self.0.copy_from_nonoverlapping(code.as_ptr(), code.len());
            self.0.add(code.len()).write(0xc3);
            asm!("push {f}", "popfq", "call {p}", "pushfq", "pop {f}", f = inout(reg) f, p = in(reg) self.0,
                inout("rax") a, inout("rcx") c, inout("rdx") d);
        }
        [a, c, d, f & STATUS]
    }
}

fn interpreted(guest: &mut Guest, code: &[u8], state: State) -> State {
    let cpu = &mut guest.cpu;
    (cpu.gpr[RAX], cpu.gpr[RCX], cpu.gpr[RDX]) = (state[0], state[1], state[2]);
    cpu.rflags = 2 | state[3];
    guest.run(code);
    let cpu = &guest.cpu;
    [cpu.gpr[RAX], cpu.gpr[RCX], cpu.gpr[RDX], cpu.rflags & STATUS]
}

/// Prefixes and opcode bit of each width.
const WIDTHS: [(&[u8], u8); 4] = [(&[], 0), (&[0x66], 1), (&[], 1), (&[0x48], 1)];

fn forms() -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    for (prefix, w) in WIDTHS {
        let mut add = |bytes: &[u8]| forms.push([prefix, bytes].concat());
        for alu in 0..8 {
            // op eax, ecx; op ecx, eax from the other side; op eax, imm8
            add(&[alu << 3 | w, 0xc8]);
            add(&[alu << 3 | 2 | w, 0xc1]);
            add(&[if w == 0 { 0x80 } else { 0x83 }, 0xc0 | alu << 3, 0x91]);
        }
        add(&[0x84 | w, 0xc8]);
        for unary in [0xc0, 0xc8] {
            add(&[0xfe | w, unary]);
        }
        for unary in [0xd0, 0xd8, 0xe0, 0xe8] {
            // not, neg, mul, imul of eax
            add(&[0xf6 | w, unary]);
        }
        for shift in [0, 1, 2, 3, 4, 5, 7] {
            add(&[0xd0 | w, 0xc0 | shift << 3]);
            add(&[0xd2 | w, 0xc0 | shift << 3]);
            for count in [0, 3, 7, 31, 63] {
                add(&[0xc0 | w, 0xc0 | shift << 3, count]);
            }
        }
        add(&[0x0f, 0xc0 | w, 0xc8]);
        add(&[0x0f, 0xb0 | w, 0xca]);
        if w == 1 {
            for two in [0xaf, 0xa3, 0xab, 0xb3, 0xbb, 0xbc, 0xbd] {
                // imul, bt, bts, btr, btc, bsf, bsr
                add(&[0x0f, two, 0xc1]);
            }
            add(&[0x6b, 0xc1, 0x83]);
            add(&[0x69, 0xc1, 0x83, 0x12]);
            for bit in 4..8 {
                add(&[0x0f, 0xba, 0xc0 | bit << 3, 0x2b]);
            }
            add(&[0x98]);
            add(&[0x99]);
            for condition in 0..16 {
                add(&[0x0f, 0x40 | condition, 0xc1]);
            }
        } else {
            for condition in 0..16 {
                add(&[0x0f, 0x90 | condition, 0xc0]);
            }
            add(&[0x9e]);
            add(&[0x9f]);
            add(&[0xf5]);
        }
    }
    for form in &mut forms {
        // imul with a long immediate has four bytes of it, or two.
        if form.iter().position(|b| *b == 0x69).is_some_and(|n| n < 2) && form[0] != 0x66 {
            form.extend([0x34, 0x56]);
        }
    }
    forms
}

#[test]
fn results_and_flags_are_the_hosts() {
    let native = Native::new();
    let mut guest = Guest::new();
    let mut random = Random(0x1234_5678_9abc_def1);
    for form in forms() {
        // The overflow flag of shifts by more than one is undefined, and this processor leaves another one where the count is immediate.
        let undefined =
            if form.iter().any(|b| matches!(b, 0xc0 | 0xc1)) && form.len() > 2 { 0x800 } else { 0 };
        for _ in 0..200 {
            let state = [random.next(), random.next(), random.next(), random.next() & STATUS];
            let mut expected = native.run(&form, state);
            let mut got = interpreted(&mut guest, &form, state);
            expected[3] &= !undefined;
            got[3] &= !undefined;
            assert_eq!(got, expected, "{form:x?} on {state:x?}");
        }
    }
}

#[test]
fn scans_by_count() {
    let native = Native::new();
    let mut guest = Guest::new();
    let mut random = Random(77);
    for prefix in [&[0xf3u8][..], &[0x66, 0xf3], &[0xf3, 0x48]] {
        for op in [0xb8, 0xbc, 0xbd] {
            let form = [prefix, &[0x0f, op, 0xc1]].concat();
            for _ in 0..100 {
                let state = [random.next(), random.next(), 0, random.next() & STATUS];
                assert_eq!(
                    interpreted(&mut guest, &form, state),
                    native.run(&form, state),
                    "{form:x?} on {state:x?}"
                );
            }
        }
    }
}
