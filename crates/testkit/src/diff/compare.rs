//! Whether two outcomes agree.
//!
//! What the manual leaves undefined is listed in `data/undefined.txt`, a line each: mnemonic, what, and where the manual says so.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use iced_x86::{Instruction, Register};

use umbra_engine_soft::host_is_amd;
use umbra_x86::reg::{Rflags, gpr};

use super::list;
use super::state::{Bits, ENDLESS, GS_BASE, Outcome, PAGE, State, Test};

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
    /// Whether a page fault comes first, or #GP for what a good operand says.
    content: bool,
    /// Everything, if one of both has a page fault where no byte is selected.
    suppression: bool,
    /// Status flags, after a fault.
    progress: bool,
}

static UNDEFINED: LazyLock<HashMap<String, Undefined>> = LazyLock::new(|| {
    list::lines(LIST).fold(HashMap::new(), |mut map, line| {
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
                "content" => entry.content = true,
                "suppression" => entry.suppression = true,
                "progress" => entry.progress = true,
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
    if fault && u.progress {
        o.state.rflags &= !Rflags::STATUS.bits();
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

/// The linear address of the first operand, in memory, of an instruction that did not change the registers that make it.
fn operand_address(bits: Bits, i: &Instruction, s: &State) -> Option<u64> {
    i.virtual_address(0, 0, |r, _, _| match r {
        Register::GS if bits == Bits::SixtyFour => Some(GS_BASE),
        _ if r.is_segment_register() => Some(bits.data_base()),
        _ if r.is_gpr() => Some(s.gpr[r.full_register().number()] & u64::MAX >> (64 - 8 * r.size())),
        _ => None,
    })
}

/// Of two page faults that may be of any page of the access, one may be of a page that is there, the other of one that is not.
fn without_presence(host: &mut Outcome, engine: &mut Outcome) {
    if (host.vector, engine.vector) == (14, 14) && host.address / PAGE != engine.address / PAGE {
        host.error &= !1;
        engine.error &= !1;
    }
}

/// Of a page fault and #GP(0) for what is at an address that itself is good, makes both the former.
fn without_content(bits: Bits, i: &Instruction, host: &mut Outcome, engine: &mut Outcome) {
    let good = |a: u64| a.is_multiple_of(64) && a < LINUX_USER_END;
    let (fault, other) = if host.vector == 14 { (host, engine) } else { (engine, host) };
    if fault.vector == 14
        && (other.vector, other.error) == (13, 0)
        && operand_address(bits, i, &other.state).is_some_and(good)
    {
        (other.vector, other.error, other.address) = (fault.vector, fault.error, fault.address);
    }
}

/// Whether an outcome is a page fault of `i` on a page where its mask, the second operand's signs, selects no byte: such an instruction may
/// as well go on.
pub fn is_left_open(bits: Bits, i: &Instruction, o: &Outcome) -> bool {
    if o.vector != 14 || !undefined(i).suppression {
        return false;
    }
    let Some(start) = operand_address(bits, i, &o.state) else { return false };
    let mask = i.op2_register();
    let bytes = if mask.is_mm() {
        // The image has the registers in the order of the stack.
        let top = usize::from(o.state.fx[3] >> 3 & 7);
        &o.state.fx[32 + 16 * (mask.number().wrapping_sub(top) & 7)..][..8]
    } else {
        &o.state.zmm[mask.number()][..16]
    };
    let mut selected = (0..).zip(bytes).filter(|(_, byte)| **byte & 0x80 != 0);
    selected.all(|(n, _)| start.wrapping_add(n) / PAGE != o.address / PAGE)
}

/// In what the engine's outcome differs from the host's: empty if they agree. `i` is the instruction that has run last, `dead` are flags that
/// may differ.
pub fn differences(test: &Test, i: &Instruction, dead: u64, host: &Outcome, engine: &Outcome) -> Vec<String> {
    if host.vector == ENDLESS || is_across_the_top(test, host, engine) {
        return Vec::new();
    }
    // What is left open to one alone: the other has gone on.
    if is_left_open(test.bits, i, host) != is_left_open(test.bits, i, engine) {
        return Vec::new();
    }
    let undefined = undefined(i);
    if (undefined.anywhere || host_is_amd()) && is_across_the_half(host, engine) {
        return Vec::new();
    }
    let (mut host, mut engine) = (*host, *engine);
    if undefined.anywhere {
        without_presence(&mut host, &mut engine);
    }
    if undefined.content {
        without_content(test.bits, i, &mut host, &mut engine);
    }
    let (host, engine) = (&defined(i, undefined, dead, &host), &defined(i, undefined, dead, &engine));
    if host == engine {
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

#[cfg(test)]
#[path = "compare_test.rs"]
mod compare_test;
