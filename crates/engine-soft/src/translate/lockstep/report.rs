//! What is told of a difference.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, IntelFormatter};

use umbra_x86::reg::gpr;

use super::Lockstep;
use super::replay::Difference;
use crate::cpu::{Cpu, VectorState};
use crate::exec::rflags_of;
use crate::translate::block::ITEMS_MAX;
use crate::translate::validate;

impl Cpu {
    /// A difference in words, with the block in the guest's code and in the host's.
    pub(super) fn describe(&mut self, lockstep: &Lockstep, difference: &Difference) -> String {
        let (from, to) = (lockstep.start.rip, lockstep.translated.rip);
        let mut text = format!(
            "lock-step: the tiers differ between {from:#x} and {to:#x} (CPL {}, {}-bit code)\n",
            lockstep.start.mode.cpl, lockstep.start.mode.code
        );
        // Writing into a string cannot fail.
        let _ = match difference {
            Difference::State(all) => all.iter().try_for_each(|(name, translated, interpreted)| {
                writeln!(text, "  {name}: translated {translated}, interpreted {interpreted}")
            }),
            Difference::Memory(m) => writeln!(
                text,
                "  memory at guest physical {:#x}: {:#018x} before, translated {:#018x}, interpreted {:#018x}",
                m.gpa, m.before, m.translated, m.interpreted
            ),
            Difference::Way(rip, what) => writeln!(text, "  the interpreter, at {rip:#x}, {what}"),
            Difference::Flags(i, flags) => writeln!(
                text,
                "  {i} at {to:#x} reads flags that the translation did not keep: {flags:#x} differ"
            ),
        };
        if lockstep.stale != 0 {
            let (flags, since) = (rflags_of(lockstep.stale), lockstep.stale_since);
            let _ = writeln!(text, "  the tiers had other status flags ({flags:#x}) since {since:#x}");
        }
        let gpr = lockstep.start.gpr.map(|value| format!("{value:x}")).join(" ");
        let _ = writeln!(text, "  registers at the start ({}): {gpr}", gpr::NAMES.join(" "));
        text.push_str("guest code:\n");
        self.guest_code(from, to, &mut text);
        text.push_str("host code of the block:\n");
        let code = lockstep.translation(lockstep.code);
        text.push_str(&validate::listing(code, &validate::Given::default(), None));
        text
    }

    fn guest_code(&mut self, from: u64, to: u64, text: &mut String) {
        let mut bytes = [0; 512];
        let len = self.code_at(from, &mut bytes);
        let mut decoder = Decoder::with_ip(self.mode.code.into(), &bytes[..len], from, DecoderOptions::NONE);
        let mut formatter = IntelFormatter::new();
        for i in decoder.iter().take(ITEMS_MAX) {
            let mut line = String::new();
            formatter.format(&i, &mut line);
            let _ = writeln!(text, "  {:#x}  {line}", i.ip());
            // A translation goes on after a conditional branch.
            let goes_on = matches!(i.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
            if i.is_invalid() || !goes_on || i.next_ip() == to {
                return;
            }
        }
    }
}

/// What differs in vector state: name, one, other.
pub(super) fn vector_differences(a: &VectorState, b: &VectorState) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    let hex = |bytes: &[u8]| bytes.iter().rev().map(|b| format!("{b:02x}")).collect::<String>();
    for (n, (a, b)) in a.zmm.iter().zip(&b.zmm).enumerate().filter(|(_, (a, b))| a != b) {
        all.push((format!("zmm{n}"), hex(a), hex(b)));
    }
    for (n, (a, b)) in a.k.iter().zip(&b.k).enumerate().filter(|(_, (a, b))| a != b) {
        all.push((format!("k{n}"), format!("{a:#x}"), format!("{b:#x}")));
    }
    if a.pkru != b.pkru {
        all.push(("pkru".into(), format!("{:#x}", a.pkru), format!("{:#x}", b.pkru)));
    }
    // x87 state and MXCSR; the rest of the image is not used.
    if a.fx[..160] != b.fx[..160] {
        all.push(("fxsave image".into(), hex(&a.fx[..160]), hex(&b.fx[..160])));
    }
    all
}
