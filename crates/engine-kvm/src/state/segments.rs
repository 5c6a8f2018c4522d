//! Segment registers and descriptor tables (SDM volume 3, section 3.4.5).

use kvm_bindings::{kvm_dtable, kvm_segment};
use umbra_x86::segment::{Segment, Table, access};

/// Bits of the type of a task-state segment: busy.
const TSS_BUSY: u8 = 2;

/// As KVM has it.
pub(crate) fn to_kvm(s: &Segment) -> kvm_segment {
    let bit = |b: u16| u8::from(s.access & b != 0);
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.access & access::TYPE) as u8,
        present: bit(access::P),
        dpl: s.dpl(),
        db: bit(access::DB),
        s: bit(access::S),
        l: bit(access::L),
        g: bit(access::G),
        avl: bit(access::AVL),
        unusable: s.unusable.into(),
        padding: 0,
    }
}

/// As the architecture has it.
pub(crate) fn from_kvm(s: &kvm_segment) -> Segment {
    let bit = |on: u8, b: u16| if on != 0 { b } else { 0 };
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        access: u16::from(s.type_) & access::TYPE
            | u16::from(s.dpl & 3) << access::DPL_SHIFT
            | bit(s.present, access::P)
            | bit(s.db, access::DB)
            | bit(s.s, access::S)
            | bit(s.l, access::L)
            | bit(s.g, access::G)
            | bit(s.avl, access::AVL),
        unusable: s.unusable != 0,
    }
}

/// CS: outside long mode the L bit means nothing, and KVM refuses it there.
pub(crate) fn code_to_kvm(s: &Segment, long_mode: bool) -> kvm_segment {
    let kvm = to_kvm(s);
    kvm_segment { l: if long_mode { kvm.l } else { 0 }, ..kvm }
}

/// SS: its DPL is the CPL for KVM, also where the selector is null (64-bit mode), whose RPL is the CPL.
pub(crate) fn stack_to_kvm(s: &Segment) -> kvm_segment {
    let kvm = to_kvm(s);
    kvm_segment { dpl: if s.unusable { (s.selector & 3) as u8 } else { kvm.dpl }, ..kvm }
}

/// TR: a loaded task register is busy; processors refuse to run with one that is not.
pub(crate) fn task_to_kvm(s: &Segment) -> kvm_segment {
    let kvm = to_kvm(s);
    kvm_segment { type_: if matches!(kvm.type_, 1 | 9) { kvm.type_ | TSS_BUSY } else { kvm.type_ }, ..kvm }
}

/// GDTR or IDTR as KVM has it.
pub(crate) fn table_to_kvm(t: &Table) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, ..kvm_dtable::default() }
}

/// GDTR or IDTR as the architecture has it.
pub(crate) fn table_from_kvm(t: &kvm_dtable) -> Table {
    Table { base: t.base, limit: t.limit }
}
