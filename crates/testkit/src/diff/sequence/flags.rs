//! Where a status flag is dead.
//!
//! The engine's translations keep a flag over an access to memory only if it will be looked at, so after a fault a dead one may have an older
//! value, or any. Dead it is at a fault if on every path from the instruction at fault, as the bytes go on, it is overwritten before it is
//! read; and it can only be lost if something before wrote flags, which makes translations keep them elsewhere.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic as M, OpKind, RflagsBits};

use super::super::state::Test;

/// In the order of iced-x86, and where RFLAGS has them.
const STATUS: [(u32, u64); 6] = [
    (RflagsBits::CF, 1),
    (RflagsBits::PF, 4),
    (RflagsBits::AF, 0x10),
    (RflagsBits::ZF, 0x40),
    (RflagsBits::SF, 0x80),
    (RflagsBits::OF, 0x800),
];
/// Instructions that are looked at.
const LOOK: usize = 200;

/// The flags, by their places in RFLAGS, that may differ at a fault of the instruction at `at`.
pub fn dead_at(test: &Test, at: u64) -> u64 {
    let all = STATUS.iter().fold(0, |all, f| all | f.0);
    let dead = if are_written_before(test, at) { all & !live_at(test, at, all) } else { 0 };
    STATUS.iter().filter(|f| dead & f.0 != 0).fold(0, |out, f| out | f.1)
}

/// The instruction at `at`, if that is in the code.
pub fn instruction_at(test: &Test, at: u64) -> Option<Instruction> {
    let offset = usize::try_from(at.checked_sub(test.state.rip)?).ok()?;
    let bytes = test.code().get(offset..).filter(|b| !b.is_empty())?;
    let i = Decoder::with_ip(test.bits.number(), bytes, at, DecoderOptions::NONE).decode();
    (!i.is_invalid()).then_some(i)
}

/// Those of `all` that some path from `at` reads before it writes them.
fn live_at(test: &Test, at: u64, all: u32) -> u32 {
    let mut live = 0;
    let mut ways = vec![(at, all)];
    let mut seen = Vec::new();
    while let Some((at, open)) = ways.pop() {
        if seen.contains(&(at, open)) {
            continue;
        }
        seen.push((at, open));
        let Some(i) = instruction_at(test, at).filter(|_| seen.len() < LOOK) else {
            live |= open;
            continue;
        };
        live |= open & i.rflags_read();
        let open = open & !surely_written(&i);
        if open == 0 {
            continue;
        }
        match i.flow_control() {
            FlowControl::Next => ways.push((i.next_ip(), open)),
            FlowControl::ConditionalBranch => {
                ways.push((i.next_ip(), open));
                ways.push((i.near_branch_target(), open));
            }
            FlowControl::UnconditionalBranch | FlowControl::Call => ways.push((i.near_branch_target(), open)),
            _ => live |= open,
        }
    }
    live
}

/// Flags that have another value after it, whatever its operands.
fn surely_written(i: &Instruction) -> u32 {
    let shifts = matches!(
        i.mnemonic(),
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    if shifts {
        let last = i.op_count() - 1;
        let count = if i.op_kind(last) == OpKind::Register { 0 } else { i.immediate(last) };
        // A rotation through the carry goes round after 9 or 17.
        let is_sure = count & 0x1f != 0 && (count == 1 || !matches!(i.mnemonic(), M::Rcl | M::Rcr));
        return if is_sure { i.rflags_modified() } else { 0 };
    }
    // The manual leaves the others undefined; they stay.
    if matches!(i.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc) {
        return RflagsBits::CF;
    }
    // A repetition of zero times, and a division, leave them.
    let leaves = i.has_rep_prefix() || i.has_repne_prefix() || matches!(i.mnemonic(), M::Div | M::Idiv);
    if leaves { 0 } else { i.rflags_modified() }
}

/// Whether some instruction writes flags which may have run before the one at `at`.
fn are_written_before(test: &Test, at: u64) -> bool {
    let mut decoder = Decoder::with_ip(test.bits.number(), test.code(), test.state.rip, DecoderOptions::NONE);
    let all: Vec<Instruction> = decoder.iter().collect();
    let goes_back = all.iter().any(|i| match i.flow_control() {
        FlowControl::Next => false,
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => i.near_branch_target() <= i.ip(),
        _ => true,
    });
    all.iter().any(|i| (goes_back || i.ip() < at) && i.rflags_modified() != 0)
}
