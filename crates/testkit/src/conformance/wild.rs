//! Random bytes as code, in every mode and both rings: the engine must come back when it is kicked, and neither panic nor fail.

use std::time::Duration;

use umbra_engine::{CpuState, Engine};
use umbra_x86::cpuid::CpuidTable;

use super::bench::{self, Manner, Moves};
use super::known::Platform;
use super::layout;
use super::program::Mode;

/// How long one piece of random code may run.
const LIMIT: Duration = Duration::from_millis(3);
/// Pieces of one kind.
const PIECES: u64 = 24;

/// A kind of wild guest.
pub(super) struct Wild {
    pub(super) name: &'static str,
    mode: Mode,
    user: bool,
}

/// All kinds.
pub(super) const ALL: &[Wild] = &[
    Wild { name: "random_code_in_64_bit_ring_0", mode: Mode::Long, user: false },
    Wild { name: "random_code_in_64_bit_ring_3", mode: Mode::Long, user: true },
    Wild { name: "random_code_in_32_bit_ring_0", mode: Mode::Protected, user: false },
    Wild { name: "random_code_with_paging", mode: Mode::Paged, user: false },
    Wild { name: "random_code_with_pae", mode: Mode::Pae, user: false },
    Wild { name: "random_code_in_real_mode", mode: Mode::Real, user: false },
];

/// A generator of numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Bytes that lead somewhere more often than noise does: prefixes and escapes are frequent.
fn code(random: &mut Random) -> Vec<u8> {
    const LIKELY: &[u8] =
        &[0x0f, 0x48, 0x66, 0xf3, 0xf2, 0x67, 0xf0, 0x65, 0xc4, 0xc5, 0xff, 0x8e, 0x83, 0xcd, 0xa4, 0xcf];
    (0..0x1000)
        .map(|_| {
            let n = random.next();
            if n & 7 == 0 { LIKELY[(n >> 8) as usize % LIKELY.len()] } else { (n >> 16) as u8 }
        })
        .collect()
}

fn start(wild: &Wild, random: &mut Random, shown: &CpuidTable) -> CpuState {
    let mut state = layout::state(wild.mode, 0, shown);
    for (i, register) in state.gpr.iter_mut().enumerate() {
        // Half of them point somewhere.
        if i != 4 {
            *register = random.next() >> (random.next() & 63);
        }
    }
    if wild.user {
        layout::to_ring_3(&mut state);
    }
    state
}

/// Runs all pieces of a kind; what went wrong, in words.
pub(super) fn run(engine: &dyn Engine, shown: &CpuidTable, wild: &Wild, platform: Platform) -> Vec<String> {
    let mut wrong = Vec::new();
    for seed in 0..PIECES {
        let mut random = Random(seed << 8 | wild.name.len() as u64);
        let bytes = code(&mut random);
        let memory = match layout::memory(wild.mode, &bytes) {
            Ok(memory) => memory,
            Err(e) => return vec![e.to_string()],
        };
        let state = start(wild, &mut random, shown);
        let manner = Manner { engines: &[engine], moves: Moves::Never, platform };
        if let Err(e) = bench::run_wild(manner, shown, memory, &state, LIMIT) {
            wrong.push(format!("piece {seed}: {e}"));
        }
    }
    wrong
}
