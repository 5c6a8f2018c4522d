//! The validator: an independent look at the bytes of a translation before they may run.
//!
//! It trusts nothing that the builder says. A second decoder (iced-x86) reads the code from its start; an abstract interpretation follows what
//! general registers and words of the state block hold, and each memory operand must be one of
//!
//! - a field of the state block, by GS and a displacement alone, in a direction that the field allows ([`field`]);
//! - the attention word or the version word of the page, read;
//! - a TLB entry, an entry of the table by linear address or the record of a border, read field by field;
//! - guest memory: what a TLB entry adds to an address, or its page's place and the offset in it, after the exclusive or of the address that chose the
//!   entry, the context and the entry's tag was found to leave room in the page for all bytes from that address to the last of the access. Writes
//!   need the tag for writes.
//!
//! Nothing touches the stack, segment registers or bases; instructions are on the list of those that run natively, or of the few that translations
//! have besides; branches lead to instructions of the same translation; host addresses stay in the two scratch registers, and addends also in the fields for
//! windows. Where the engine comes back into a translation, and where a loop closes, nothing is known of what registers hold; where it does so after a TLB
//! fill, only what a fill leaves as it is: the guest's registers and addends.
//!
//! It runs in every build with debug assertions, and in others if the environment has `UMBRA_VALIDATE`.

mod field;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use iced_x86::{
    Code as C, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory,
    IntelFormatter, Mnemonic as M, OpAccess, OpKind, Register,
};

use umbra_memory::CodePage;

use super::border::Border;
use super::site::{Kind, Site};
use crate::decode::Block;
use crate::native;
use state::State;

/// What must be known of a translation to judge it: where it lies among other things, not what is in it.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    /// The address of the version word of its page.
    pub version: u64,
    /// The address of what is known of the next page.
    pub border: Option<u64>,
    /// Where the engine may go on in it, besides its start.
    pub entries: Vec<u32>,
    /// Where it may do so after nothing but a TLB fill, or a load of vector registers.
    pub retries: Vec<u32>,
}

/// What is wrong, and with the instruction at which offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation {
    pub at: usize,
    pub why: Why,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Bytes that are no instruction.
    NoInstruction,
    /// An instruction that no translation may have.
    Forbidden,
    /// A register that no translation may use, or not so.
    Register,
    /// A branch to anything but an instruction of the translation, or to an address that is not known to be code.
    Target,
    /// It does not end in a jump.
    End,
    /// Memory of the state block that it may not access, or not so.
    StateBlock,
    /// Memory that was not checked, or not for this access.
    Unchecked,
    /// A host address where the guest could see it, or one that is computed with.
    Leak,
}

/// Whether translations are validated.
fn is_wanted() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    cfg!(debug_assertions) || *ASKED.get_or_init(|| std::env::var_os("UMBRA_VALIDATE").is_some())
}

/// Validates the translation of a block, which is entered at its own entries besides its start, before it is made runnable.
///
/// # Panics
/// It is not valid: running it could let the guest out.
pub(super) fn enforce(code: &[u8], block: &Block, sites: &[Site], own: [usize; 2], border: Option<&Border>) {
    if !is_wanted() {
        return;
    }
    let version = block.code.wrapping_byte_add(CodePage::VERSION_OFFSET) as u64;
    let resumed = sites.iter().filter(|s| s.kind.is_retried() || s.kind == Kind::Call);
    let entries = own.into_iter().map(|at| at as u32).chain(resumed.map(|s| s.resume)).collect();
    let is_retried = |s: &&Site| s.kind.is_retried() || s.kind == Kind::Border;
    let retries = sites.iter().filter(is_retried).map(|s| s.at).collect();
    let border = border.map(|border| &raw const *border as u64);
    let given = &Given { version, border, entries, retries };
    #[cfg(test)]
    seen::note(code, given);
    if let Err(violation) = validate(code, given) {
        panic!("a translation breaks the rules: {violation:?}\n{}", listing(code, given, Some(violation.at)));
    }
}

/// The code as text, with a mark at an offset. What differs from run to run has a name.
pub(super) fn listing(code: &[u8], given: &Given, mark: Option<usize>) -> String {
    let mut text = String::new();
    let mut formatter = IntelFormatter::new();
    for i in &mut Decoder::new(64, code, DecoderOptions::NONE) {
        let mut line = String::new();
        formatter.format(&i, &mut line);
        if i.memory_segment() == Register::GS
            && let Some(field) = field::find(i.memory_displacement64(), i.memory_size().size())
            && let Some((before, rest)) = line.split_once("gs:[")
            && let Some((_, after)) = rest.split_once(']')
        {
            line = format!("{before}gs:[{}]{after}", field.name);
        }
        if i.code() == C::Mov_r64_imm64 && i.immediate64() == given.version {
            line = format!("mov {:?},version", i.op0_register()).to_lowercase();
        }
        if i.code() == C::Mov_r64_imm64 && Some(i.immediate64()) == given.border {
            line = format!("mov {:?},border", i.op0_register()).to_lowercase();
        }
        let sign = if Some(i.ip() as usize) == mark { "=>" } else { "" };
        text.push_str(&format!("{sign:3}{:3x}  {line}\n", i.ip()));
    }
    text
}

/// Judges a translation.
///
/// # Errors
/// The first violation.
pub(super) fn validate(code: &[u8], given: &Given) -> Result<(), Violation> {
    let flow = Flow::of(code, given)?;
    let mut factory = InstructionInfoFactory::new();
    let mut names = state::Names::default();
    let mut coming: BTreeMap<usize, State> = BTreeMap::new();
    let arrive = |coming: &mut BTreeMap<usize, State>, names: &mut state::Names, at: usize, state: State| {
        let state = match coming.remove(&at) {
            Some(other) => other.meet(&state, names),
            None => state,
        };
        coming.insert(at, state);
    };
    for at in flow.order {
        let i = &flow.all[at];
        let found = |why| Violation { at: i.ip() as usize, why };
        let before = coming.remove(&at).filter(|_| !flow.open.contains(&at));
        let mut state = before.unwrap_or_else(|| State::unknown(&mut names));
        if flow.retried.contains(&at) {
            state.settle();
        }
        check_form(i, &mut factory).map_err(found)?;
        if !is_direct(i) {
            state.step(i, given, &mut factory, &mut names).map_err(found)?;
        }
        for (next, taken) in flow.next[at].iter().zip([true, false]).rev() {
            if let Some(next) = next {
                let mut state = state.clone();
                state.branch(i, taken);
                arrive(&mut coming, &mut names, *next, state);
            }
        }
    }
    Ok(())
}

/// The instructions of a translation, and how they follow each other.
struct Flow {
    all: Vec<Instruction>,
    /// What follows each: where it branches to, what comes next.
    next: Vec<[Option<usize>; 2]>,
    /// Where nothing is known.
    open: BTreeSet<usize>,
    /// Where nothing is known that a TLB fill changes.
    retried: BTreeSet<usize>,
    /// All, each after what leads to it, but where something is open.
    order: Vec<usize>,
}

impl Flow {
    fn of(code: &[u8], given: &Given) -> Result<Self, Violation> {
        let all: Vec<Instruction> = Decoder::new(64, code, DecoderOptions::NONE).iter().collect();
        let index: BTreeMap<u64, usize> = all.iter().enumerate().map(|(n, i)| (i.ip(), n)).collect();
        let find = |at: u64, from: u64| {
            index.get(&at).copied().ok_or(Violation { at: from as usize, why: Why::Target })
        };
        let mut open = BTreeSet::new();
        for entry in given.entries.iter().copied().chain([0]) {
            open.insert(find(entry.into(), entry.into())?);
        }
        let retried =
            given.retries.iter().map(|at| find((*at).into(), (*at).into())).collect::<Result<_, _>>()?;
        let mut next = Vec::new();
        for (n, i) in all.iter().enumerate() {
            let target = if is_direct(i) { Some(find(i.near_branch_target(), i.ip())?) } else { None };
            let falls = matches!(i.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
            if falls && n + 1 == all.len() && !i.is_invalid() {
                return Err(Violation { at: i.ip() as usize, why: Why::End });
            }
            next.push([target, falls.then_some(n + 1).filter(|n| *n < all.len())]);
        }
        let mut flow = Self { all, next, open, retried, order: Vec::new() };
        flow.arrange();
        Ok(flow)
    }

    /// Finds the order by a search in depth; where it closes a loop, nothing is known.
    fn arrange(&mut self) {
        #[derive(Clone, Copy, PartialEq)]
        enum Visit {
            New,
            Open,
            Done,
        }
        let mut visits = vec![Visit::New; self.all.len()];
        let roots = self.open.clone();
        // What nothing leads to is judged all the same.
        for root in roots.into_iter().chain(0..self.all.len()) {
            let mut path = if visits[root] == Visit::New { vec![(root, 0)] } else { Vec::new() };
            if !path.is_empty() {
                self.open.insert(root);
            }
            while let Some((at, branch)) = path.last_mut() {
                visits[*at] = Visit::Open;
                let Some(next) = self.next[*at].get(*branch) else {
                    visits[*at] = Visit::Done;
                    self.order.push(*at);
                    path.pop();
                    continue;
                };
                *branch += 1;
                match *next {
                    Some(next) if visits[next] == Visit::New => path.push((next, 0)),
                    Some(next) if visits[next] == Visit::Open => {
                        self.open.insert(next);
                    }
                    _ => {}
                }
            }
        }
        self.order.reverse();
    }
}

/// Whether it is a direct branch.
fn is_direct(i: &Instruction) -> bool {
    i.op_count() == 1 && i.op0_kind() == OpKind::NearBranch64
}

/// Whether a translation may have the instruction at all, whatever its memory operand is.
fn check_form(i: &Instruction, factory: &mut InstructionInfoFactory) -> Result<(), Why> {
    if i.is_invalid() {
        return Err(Why::NoInstruction);
    }
    let is_operand = |k| {
        let immediate = k >= OpKind::Immediate8 && k <= OpKind::Immediate32to64;
        immediate || matches!(k, OpKind::Register | OpKind::Memory | OpKind::NearBranch64)
    };
    let is_register = |r: Register| r.is_gpr() || r.is_vector_register() && !r.is_tmm() || r.is_k();
    let registers = (0..i.op_count()).filter(|o| i.op_kind(*o) == OpKind::Register);
    if !i.op_kinds().all(is_operand) || !registers.map(|o| i.op_register(o)).all(is_register) {
        return Err(Why::Forbidden);
    }
    let used = factory.info(i).used_registers();
    if used.iter().any(|u| u.register().full_register() == Register::RSP) {
        return Err(Why::Register);
    }
    if used.iter().any(|u| u.register().is_segment_register() && u.access() != OpAccess::Read) {
        return Err(Why::Register);
    }
    let allowed = match i.flow_control() {
        FlowControl::Next => {
            native::is_allowed(i) && !is_bit_string(i) && !is_x87(i)
                || matches!(i.mnemonic(), M::Mov | M::Lea | M::Vzeroupper | M::Vzeroall)
        }
        FlowControl::UnconditionalBranch => matches!(i.code(), C::Jmp_rel8_64 | C::Jmp_rel32_64),
        FlowControl::ConditionalBranch => {
            (i.is_jcc_short_or_near() || matches!(i.code(), C::Jrcxz_rel8_64 | C::Jecxz_rel8_64))
                && is_direct(i)
        }
        FlowControl::IndirectBranch => i.code() == C::Jmp_rm64,
        _ => false,
    };
    if allowed { Ok(()) } else { Err(Why::Forbidden) }
}

/// Whether a register chooses which bit after its memory operand it accesses.
fn is_bit_string(i: &Instruction) -> bool {
    matches!(i.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register
}

/// Whether it works on x87 state, which is never in the host's registers.
fn is_x87(i: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    i.cpuid_features().iter().any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX))
}

#[cfg(test)]
pub(super) mod seen {
    //! What has been validated on this thread, for tests.

    use std::cell::RefCell;

    use super::Given;

    thread_local! {
        static SEEN: RefCell<Vec<(Vec<u8>, Given)>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note(code: &[u8], given: &Given) {
        SEEN.with_borrow_mut(|seen| seen.push((code.to_vec(), given.clone())));
    }

    /// Those since it was asked for last.
    pub(in crate::translate) fn take() -> Vec<(Vec<u8>, Given)> {
        SEEN.take()
    }
}
