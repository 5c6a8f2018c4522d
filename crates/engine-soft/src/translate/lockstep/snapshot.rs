//! Registers and control state: everything that an instruction can change but vector state, memory and what `MSRs` keeps in a map.

use umbra_x86::reg::{Cr0, Cr4, Efer, Rflags, gpr};
use umbra_x86::segment::{Segment, Table};

use crate::cpu::{Cpu, Mode};

macro_rules! snapshot {
    ($($field:ident: $type:ty = $($place:ident).+;)*) => {
        /// The state at one moment; status flags apart, as `exec::flags` has them.
        #[derive(Debug, Clone, PartialEq)]
        pub(super) struct Snapshot {
            pub gpr: [u64; 16],
            pub rflags: u64,
            pub status: u16,
            $(pub $field: $type,)*
        }

        impl Snapshot {
            /// The state now, while translations or handlers run.
            pub(super) fn of(cpu: &Cpu) -> Self {
                Self {
                    gpr: cpu.gpr,
                    rflags: cpu.rflags & !Rflags::STATUS.bits(),
                    status: cpu.fast.status,
                    $($field: cpu.$($place).+,)*
                }
            }

            /// Puts it back.
            pub(super) fn restore(&self, cpu: &mut Cpu) {
                cpu.gpr = self.gpr;
                cpu.rflags = self.rflags;
                cpu.fast.status = self.status;
                $(cpu.$($place).+ = self.$field;)*
            }

            /// What differs but status flags: name, this, the other.
            pub(super) fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
                let mut all: Vec<_> = (0..16).filter(|n| self.gpr[*n] != other.gpr[*n]).map(|n| {
                    (gpr::NAMES[n].to_owned(), format!("{:#x}", self.gpr[n]), format!("{:#x}", other.gpr[n]))
                }).collect();
                let mut add = |name: &str, same: bool, this: String, that: String| {
                    if !same {
                        all.push((name.to_owned(), this, that));
                    }
                };
                let (a, b) = (self.rflags, other.rflags);
                add("rflags", a == b, format!("{a:#x}"), format!("{b:#x}"));
                $({
                    let (a, b) = (self.$field, other.$field);
                    add(stringify!($field), a == b, format!("{a:#x?}"), format!("{b:#x?}"));
                })*
                all
            }
        }
    };
}
snapshot! {
    rip: u64 = rip;
    seg: [Segment; 6] = seg;
    mode: Mode = mode;
    // What follows from privilege and RFLAGS.AC: which part of the TLB accesses use.
    tlb_base: usize = fast.tlb_base;
    tlb: *const crate::mmu::Entry = fast.tlb;
    kernel_gs_base: u64 = msr.kernel_gs_base;
    star: u64 = msr.star;
    lstar: u64 = msr.lstar;
    cstar: u64 = msr.cstar;
    fmask: u64 = msr.fmask;
    sysenter_cs: u64 = msr.sysenter_cs;
    sysenter_esp: u64 = msr.sysenter_esp;
    sysenter_eip: u64 = msr.sysenter_eip;
    tsc_aux: u64 = msr.tsc_aux;
    xss: u64 = msr.xss;
    ldtr: Segment = ldtr;
    tr: Segment = tr;
    gdtr: Table = gdtr;
    idtr: Table = idtr;
    cr0: Cr0 = cr0;
    cr2: u64 = cr2;
    cr3: u64 = cr3;
    cr4: Cr4 = cr4;
    efer: Efer = efer;
    xcr0: u64 = xcr0;
    dr: [u64; 4] = dr;
    dr6: u64 = dr6;
    dr7: u64 = dr7;
    nmi_masked: bool = nmi_masked;
}
