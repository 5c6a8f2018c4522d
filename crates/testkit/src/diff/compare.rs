//! Whether two outcomes agree.
//!
//! What the manual leaves undefined is listed in `data/undefined.txt`, a line each: mnemonic, what, and where the manual says so.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use iced_x86::Instruction;

use umbra_x86::reg::gpr;

use super::state::{Bits, ENDLESS, Outcome, PAGE, State, Test};

const LIST: &str = include_str!("../../data/undefined.txt");
/// Where Linux's user addresses end: a page before the last canonical address of their half.
const LINUX_USER_END: u64 = 0x7fff_ffff_f000;
/// Flags that user-mode code can change.
const FLAGS: u64 = 0xcd5;
const NAMES: [(&str, u64); 6] =
    [("CF", 1), ("PF", 4), ("AF", 0x10), ("ZF", 0x40), ("SF", 0x80), ("OF", 0x800)];

/// What may differ after an instruction.
#[derive(Debug, Clone, Copy, Default)]
struct Undefined {
    /// These flags.
    flags: u64,
    /// The address of a page fault, within its page.
    address: bool,
    /// The address of a page fault.
    anywhere: bool,
    /// Memory, after a fault.
    memory: bool,
    /// Vector and mask registers, after a fault.
    vectors: bool,
    /// Everything, if one of both has a page fault.
    suppression: bool,
}

static UNDEFINED: LazyLock<HashMap<String, Undefined>> = LazyLock::new(|| {
    let lines = LIST.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    lines.fold(HashMap::new(), |mut map, line| {
        let mut words = line.split_whitespace();
        let mnemonic = words.next().unwrap_or_default().to_owned();
        let what = words.next().unwrap_or_default();
        let entry: &mut Undefined = map.entry(mnemonic).or_default();
        for name in what.split(',') {
            match name {
                "address" => entry.address = true,
                "anywhere" => entry.anywhere = true,
                "memory" => entry.memory = true,
                "vectors" => entry.vectors = true,
                "suppression" => entry.suppression = true,
                _ => entry.flags |= NAMES.iter().find(|n| n.0 == name).map_or(0, |n| n.1),
            }
        }
        map
    })
});

fn undefined(i: &Instruction) -> Undefined {
    let name = format!("{:?}", i.mnemonic());
    let families = (1..name.len()).map(|n| format!("{}*", &name[..n]));
    families
        .chain([name.clone(), format!("{:?}", i.code())])
        .find_map(|n| UNDEFINED.get(&n))
        .copied()
        .unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// An outcome without what need not agree.
fn defined(i: &Instruction, u: Undefined, dead: u64, o: &Outcome) -> Outcome {
    let mut o = *o;
    let fault = o.vector != 3;
    o.state.rflags &= FLAGS & !u.flags & !dead;
    // Whether a page of the kernel's is present is no business of a user's, but the processor tells; Linux does not.
    if o.address >= LINUX_USER_END {
        o.error &= !1;
    }
    // Of a masked operand, which element's address is told differs.
    if u.address || i.has_op_mask() {
        o.address &= !(PAGE - 1);
    }
    if u.anywhere {
        o.address = 0;
    }
    if fault && u.memory {
        o.state.memory.fill(0);
        o.pages = 0;
    }
    if fault && u.vectors {
        o.state.zmm.fill([0; 64]);
        o.state.k.fill(0);
    }
    if fault && (0..i.op_count()).any(|n| i.op_register(n).is_mm()) {
        without_mmx_transition(&mut o.state.fx);
    }
    o
}

/// An MMX instruction that faults has, on some processors, done the transition from x87 to MMX state before: here it always has
/// (SDM volume 1, chapter 9.5, leaves open which comes first). The image has registers in the order of the stack.
fn without_mmx_transition(fx: &mut [u8; 160]) {
    let top = usize::from(fx[3] >> 3 & 7);
    fx[3] &= !0x38;
    fx[4] = 0xff;
    fx[32..].rotate_right(16 * top);
}

/// An access across 4 GiB in a segment that reaches there may raise #GP, or go on at zero (SDM volume 3, 6.3, "Limit Checking").
fn is_across_the_top(test: &Test, host: &Outcome, engine: &Outcome) -> bool {
    let vectors = [host.vector, engine.vector];
    let wraps = |o: &Outcome| o.vector == 14 && o.address.wrapping_add(64) & 0xffff_ffff < 128;
    test.bits == Bits::ThirtyTwo
        && (vectors.contains(&12) || vectors.contains(&13))
        && (wraps(host) || wraps(engine))
}

/// Of an operand that crosses from Linux's last page into addresses that are not canonical, either part may fault first where any byte's
/// address may be told (SDM volume 3, 6.15, "Page-Fault Exception": accesses of several pieces).
fn is_across_the_half(host: &Outcome, engine: &Outcome) -> bool {
    let at_end = |o: &Outcome| o.vector == 14 && o.address >> 12 == LINUX_USER_END >> 12;
    let not_canonical = |o: &Outcome| matches!(o.vector, 12 | 13);
    at_end(host) && not_canonical(engine) || not_canonical(host) && at_end(engine)
}

/// Whether an instruction may or may not fault for what it masks off.
pub fn suppresses(i: &Instruction) -> bool {
    undefined(i).suppression
}

/// In what the engine's outcome differs from the host's: empty if they agree. `i` is the instruction that has run last, `dead` are flags that
/// may differ.
pub fn differences(test: &Test, i: &Instruction, dead: u64, host: &Outcome, engine: &Outcome) -> Vec<String> {
    if host.vector == ENDLESS || is_across_the_top(test, host, engine) {
        return Vec::new();
    }
    let undefined = undefined(i);
    if undefined.anywhere && is_across_the_half(host, engine) {
        return Vec::new();
    }
    let (host, engine) = (&defined(i, undefined, dead, host), &defined(i, undefined, dead, engine));
    let one_faults = (host.vector == 14) != (engine.vector == 14);
    if host == engine || undefined.suppression && one_faults {
        return Vec::new();
    }
    let mut out = Vec::new();
    let mut note = |what: &str, before: String, host: String, engine: String| {
        if host != engine {
            out.push(format!("{what}: before {before}, host {host}, engine {engine}"));
        }
    };
    let event = |o: &Outcome| format!("#{} error {:x} at {:x}", o.vector, o.error, o.address);
    note("exception", String::new(), event(host), event(engine));
    let (b, h, e) = (&test.state, &host.state, &engine.state);
    let word = |v: u64| format!("{v:x}");
    note("rip", word(b.rip), word(h.rip), word(e.rip));
    note("flags", word(b.rflags & FLAGS), word(h.rflags), word(e.rflags));
    for (n, name) in gpr::NAMES.iter().enumerate() {
        note(name, word(b.gpr[n]), word(h.gpr[n]), word(e.gpr[n]));
    }
    for n in 0..8 {
        note(&format!("k{n}"), word(b.k[n]), word(h.k[n]), word(e.k[n]));
    }
    for n in 0..32 {
        note(&format!("zmm{n}"), hex(&b.zmm[n]), hex(&h.zmm[n]), hex(&e.zmm[n]));
    }
    for (name, range) in x87_parts() {
        note(&name, hex(&b.fx[range.clone()]), hex(&h.fx[range.clone()]), hex(&e.fx[range]));
    }
    note("pages that can be written", String::new(), word(host.pages), word(engine.pages));
    memory(b, h, e, &mut out);
    out
}

fn x87_parts() -> Vec<(String, std::ops::Range<usize>)> {
    let named = [
        ("fcw", 0..2),
        ("fsw", 2..4),
        ("ftw", 4..6),
        ("fop", 6..8),
        ("fip", 8..16),
        ("fdp", 16..24),
        ("mxcsr", 24..28),
    ];
    let registers = (0..8).map(|n| (format!("st{n}"), 32 + 16 * n..48 + 16 * n));
    named.into_iter().map(|(name, range)| (name.to_owned(), range)).chain(registers).collect()
}

fn memory(before: &State, host: &State, engine: &State, out: &mut Vec<String>) {
    if host.memory == engine.memory {
        return;
    }
    let differ = |n: &usize| host.memory[*n] != engine.memory[*n];
    let first = (0..host.memory.len()).find(differ).unwrap_or(0);
    let last = (0..host.memory.len()).rfind(differ).unwrap_or(0).min(first + 63);
    let part = |s: &State| hex(&s.memory[first..=last]);
    let at = host.window + first as u64;
    out.push(format!(
        "memory at {at:x}: before {}, host {}, engine {}",
        part(before),
        part(host),
        part(engine)
    ));
}
