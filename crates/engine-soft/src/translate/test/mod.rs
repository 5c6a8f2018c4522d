//! Translations of small programs: what they look like, that they are confined, that they do what the interpreter does.

mod address_test;
mod bad_input_test;
mod border_test;
mod change_test;
mod golden_test;
mod hostile_test;
mod lockstep_test;
mod operand_test;
mod program;
mod system_test;
mod validate_test;
mod vector_test;
mod window_test;

use umbra_x86::reg::Rflags;
use umbra_x86::reg::gpr::RSP;

use super::validate::{Given, seen};
use crate::exec::test::guest::{CODE, DATA, Guest, SEEN, STACK};

/// Bytes from hexadecimal digits; blanks are for the reader.
pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).unwrap()).collect();
    digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// A guest whose blocks are all translated before they run, of `bits`-bit code.
pub(super) fn guest(bits: u32) -> Guest {
    let mut guest = Guest::new();
    guest.cpu.translator.after = 0;
    if bits == 32 {
        guest.narrow();
    }
    guest
}

/// The translation of `code` at [`CODE`], which is not run.
pub(super) fn translation(guest: &mut Guest, code: &[u8]) -> (Vec<u8>, Given) {
    guest.bytes(CODE, code);
    guest.cpu.rip = CODE;
    seen::take();
    let block = guest.cpu.find_block().unwrap();
    assert_eq!(guest.cpu.translate(block), Ok(true));
    seen::take().pop().unwrap()
}

/// What [`SEEN`] holds when there was no exception.
pub(super) const NOTHING: u64 = 0xff;

/// Two guests that run the same, one as translations and one in the interpreter.
pub(super) struct Pair {
    pub translated: Guest,
    pub interpreted: Guest,
}

impl Pair {
    pub(super) fn new(bits: u32) -> Self {
        let (translated, mut interpreted) = (guest(bits), guest(bits));
        interpreted.cpu.translator.after = u32::MAX;
        Self { translated, interpreted }
    }

    /// Does the same to both.
    pub(super) fn both(&mut self, mut f: impl FnMut(&mut Guest)) {
        f(&mut self.translated);
        f(&mut self.interpreted);
    }

    /// Runs `code` in both from the state that `setup` makes, until HLT. They must come to the same; flags that nobody needs may
    /// differ after an exception. The vector of the exception, or [`NOTHING`].
    pub(super) fn run(&mut self, setup: impl Fn(&mut Guest), code: &[u8]) -> u64 {
        let before = self.translated.cpu.fast.translated;
        self.both(|guest| {
            guest.put(SEEN, NOTHING, 4);
            guest.cpu.gpr = std::array::from_fn(|n| 0x0101_0101_0101_0101 * (n as u64 + 3));
            guest.cpu.gpr[RSP] = STACK;
            guest.cpu.rflags = 2;
            setup(guest);
            guest.run(code);
        });
        assert!(self.translated.cpu.fast.translated > before, "nothing was translated");
        assert_eq!(self.interpreted.cpu.fast.translated, 0);
        self.compare()
    }

    pub(super) fn compare(&self) -> u64 {
        let (a, b) = (&self.translated, &self.interpreted);
        let seen = a.peek(SEEN, 4);
        assert_eq!(seen, b.peek(SEEN, 4), "vectors: rip {:#x}, {:#x}", a.cpu.rip, b.cpu.rip);
        assert_eq!((a.cpu.gpr, a.cpu.rip), (b.cpu.gpr, b.cpu.rip));
        assert_eq!((a.cpu.cr0, a.cpu.cr2), (b.cpu.cr0, b.cpu.cr2));
        let status = (Rflags::CF | Rflags::PF | Rflags::AF | Rflags::ZF | Rflags::SF | Rflags::OF).bits();
        let unknown = if seen == NOTHING { 0 } else { status };
        assert_eq!(a.cpu.rflags | unknown, b.cpu.rflags | unknown);
        assert_eq!(a.cpu.vector.zmm, b.cpu.vector.zmm);
        assert_eq!(a.cpu.vector.k, b.cpu.vector.k);
        assert_eq!(a.cpu.vector.fx, b.cpu.vector.fx);
        let bytes = |guest: &Guest| {
            let mut data = vec![0; (STACK - 0x1000 - DATA) as usize];
            guest.cpu.shared.memory.read(DATA, &mut data).unwrap();
            data
        };
        assert!(bytes(a) == bytes(b), "memory differs");
        seen
    }
}
