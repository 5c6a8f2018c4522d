//! The state block of a virtual processor.
//!
//! It holds the guest's registers where the translator will want them: one `#[repr(C)]` block that can hang off a
//! segment base, general registers first. Status flags are always concrete, in `rflags`.

use std::ptr::NonNull;
use std::sync::Arc;

use umbra_engine::{Counters, CpuIo, RunState};
use umbra_x86::cpuid::CpuidTable;
use umbra_x86::reg::{Cr0, Cr4, Efer, Rflags};
use umbra_x86::segment::{Segment, Table, access, sreg};

use crate::decode::Cache;
use crate::exec::Fast;
use crate::mmu::Tlb;
use crate::translate::Translator;
use crate::translate::lockstep::Lockstep;
use crate::vm::{Injected, KvmClock, Profile, Shared, Spin, Tsc};

/// Vector, mask and x87 state. Registers are whole, so that a thunk loads each with one instruction.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct VectorState {
    /// ZMM0 to ZMM31; XMM and YMM are their low parts.
    pub zmm: [[u8; 64]; 32],
    /// The FXSAVE64 image of x87, MMX and MXCSR (bytes 0 to 159; the XMM part is not used).
    pub fx: [u8; 512],
    /// K0 to K7.
    pub k: [u64; 8],
    /// PKRU.
    pub pkru: u32,
}

/// How the processor decodes and checks, derived from control registers, flags and CS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mode {
    /// Width of code: 16, 32 or 64.
    pub code: u8,
    /// Width of the stack pointer: 16, 32 or 64.
    pub stack: u8,
    /// Current privilege level (3 in virtual-8086 mode, 0 in real mode).
    pub cpl: u8,
    /// CR0.PE.
    pub protected: bool,
    /// Virtual-8086 mode.
    pub v86: bool,
    /// EFER.LMA.
    pub long: bool,
    /// CS, DS, ES, SS are all flat, base 0 and limit 4 GiB, the data segments writable; always so in 64-bit mode.
    pub flat: bool,
}

/// One virtual processor. Boxed, never moved while it runs.
#[repr(C, align(64))]
pub struct Cpu {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Offset in CS of the instruction that executes.
    pub rip: u64,
    /// What only the interpreter's fast paths use.
    pub fast: Fast,
    /// All of RFLAGS.
    pub rflags: u64,
    /// The mode, see [`Cpu::update_mode`].
    pub mode: Mode,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: Table,
    /// Interrupt descriptor table.
    pub idtr: Table,
    /// CR0.
    pub cr0: Cr0,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// The four page-directory-pointer entries, loaded with CR3 in PAE mode; see [`Cpu::load_pdptes`].
    pub pdptes: [u64; 4],
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// XCR0.
    pub xcr0: u64,
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Bits of DR6 for a debug trap after the instruction that executes; see `sys::debug`.
    pub debug_pending: u64,
    /// MSRs that instructions use.
    pub msr: Msrs,
    /// Vector and x87 state.
    pub vector: Box<VectorState>,
    /// The linear address of the latest page fault, not yet in CR2.
    pub fault_address: u64,
    /// Interrupts are held off until after the next instruction.
    pub shadow: Shadow,
    /// While an instruction is stepped: why interrupts were held off until it.
    pub ending_shadow: Shadow,
    /// An NMI is being handled.
    pub nmi_masked: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// The local APIC or the PIC may have an interrupt to deliver; looked at when interrupts can be taken.
    pub interrupt_hint: bool,
    /// A message has asked for an interrupt of the PIC.
    pub ext_int: bool,
    /// An event saved in the middle of its delivery, to be delivered first.
    pub injected: Option<Injected>,
    /// Whether it executes, is halted or waits.
    pub run_state: RunState,
    /// The processor's number and APIC ID.
    pub id: u32,
    /// When the host's time-stamp counter reaches this, the local APIC's timer goes off: `exec::run` returns soon.
    pub timer_at: u64,
    /// What the thread's alarm is set for, on the same scale; all ones if it is not.
    pub alarm_at: u64,
    /// The time-stamp counter.
    pub tsc: Tsc,
    /// KVM's clock.
    pub kvm: KvmClock,
    /// For how many nanoseconds a halted processor waits awake.
    pub halt_poll: u64,
    /// Whether it waits in a loop.
    pub spin: Spin,
    /// What CPUID shows.
    pub cpuid: CpuidTable,
    /// The software TLB.
    pub tlb: Box<Tlb>,
    /// Decoded blocks.
    pub cache: Box<Cache>,
    /// Translations of blocks that are hot.
    pub translator: Box<Translator>,
    /// What compares translations with the interpreter, if that is asked for.
    pub(crate) lockstep: Option<Box<Lockstep>>,
    /// Instructions made ready to run natively.
    pub native: Box<crate::native::Local>,
    /// Samples of what it does, if they are asked for.
    pub profile: Option<Box<Profile>>,
    /// What is shared with other processors and threads.
    pub shared: Arc<Shared>,
    /// What it counted.
    pub counters: Arc<Counters>,
    /// The rest of the machine, while `run` is on the stack.
    pub(crate) io: Option<NonNull<dyn CpuIo>>,
}

// SAFETY: `io` is the only part that is not `Send`; it is set only while `run` is on the stack of the thread that uses it.
unsafe impl Send for Cpu {}

/// Why interrupts are held off for one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shadow {
    /// They are not.
    #[default]
    None,
    /// After STI.
    Sti,
    /// After MOV SS or POP SS: debug exceptions and NMIs wait too.
    MovSs,
}

/// MSRs with an effect on instructions or with no effect at all but memory.
#[derive(Debug, Clone, Default)]
pub struct Msrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// IA32_PAT.
    pub pat: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// All others that can be written and read back, by number.
    pub other: std::collections::BTreeMap<u32, u64>,
}

impl Cpu {
    /// The rest of the machine. Only while `run` is on the stack. Device calls go through [`Cpu::with_io`], so that a device that
    /// takes its time does not hold up a processor that stops the world.
    pub fn io(&self) -> &dyn CpuIo {
        let io = self.io.expect("devices are reached only from within run");
        // SAFETY: `run` sets `io` from a reference that outlives it and clears it before it returns.
        unsafe { io.as_ref() }
    }

    /// Whether any of `flags` is set.
    pub fn flag(&self, flags: Rflags) -> bool {
        self.rflags & flags.bits() != 0
    }

    /// Sets or clears `flags`.
    pub fn set_flag(&mut self, flags: Rflags, on: bool) {
        if on {
            self.rflags |= flags.bits();
        } else {
            self.rflags &= !flags.bits();
        }
    }

    /// I/O privilege level.
    pub fn iopl(&self) -> u8 {
        ((self.rflags >> 12) & 3) as u8
    }

    /// Derives [`Cpu::mode`] anew. Call it after any change of CR0, EFER, RFLAGS.VM or a segment register; blocks are keyed by it.
    pub fn update_mode(&mut self) {
        let protected = self.cr0.contains(Cr0::PE);
        let v86 = protected && self.flag(Rflags::VM);
        let long = self.efer.contains(Efer::LMA);
        let cs = &self.seg[sreg::CS];
        let ss = &self.seg[sreg::SS];
        let code64 = long && cs.access & access::L != 0 && !v86;
        let code = match cs.access & access::DB {
            _ if code64 => 64,
            0 => 16,
            _ => 32,
        };
        let stack = match ss.access & access::DB {
            _ if code64 => 64,
            0 => 16,
            _ => 32,
        };
        // SS.DPL is the CPL in protected mode (SDM volume 3, "Privilege Levels"); a null SS in 64-bit mode keeps it in its cached DPL.
        let cpl = if v86 {
            3
        } else if protected {
            ss.dpl()
        } else {
            0
        };
        let is_whole =
            |n: usize| self.seg[n].base == 0 && self.seg[n].limit == u32::MAX && !self.seg[n].unusable;
        let is_plain = |n: &usize| {
            is_whole(*n) && self.seg[*n].access & (access::CODE | access::DC | access::RW) == access::RW
        };
        let data = [sreg::ES, sreg::SS, sreg::DS];
        let flat = code64 || protected && !v86 && is_whole(sreg::CS) && data.iter().all(is_plain);
        self.mode = Mode { code, stack, cpl, protected, v86, long, flat };
        self.update_context();
    }
}
