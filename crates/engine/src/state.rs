//! The whole state of a processor, in the architecture's terms.
//!
//! One list of elements (see the macro's use below) gives the type, its state at power-on, its saved form and the comparison.
//! A new element is one line there; both engines destructure [`CpuState`] without `..`, so it is thought about in each.

use umbra_state::{Field, StateError};
use umbra_x86::cpuid::{CpuidEntry, CpuidTable};
use umbra_x86::msr;
use umbra_x86::reg::{CR0_RESET, DR6_RESET, DR7_RESET, FCW_RESET, MXCSR_RESET};
use umbra_x86::segment::{Segment, Table, access};

/// XSAVE components by number (SDM volume 1, chapter 13), and the bytes that each takes here.
pub mod xcomp {
    /// x87: the first 32 bytes of the FXSAVE area (MXCSR among them) and the eight registers, 16 bytes each.
    pub const X87: u32 = 0;
    /// XMM0 to XMM15.
    pub const SSE: u32 = 1;
    /// The upper halves of YMM0 to YMM15.
    pub const AVX: u32 = 2;
    /// Opmasks K0 to K7.
    pub const OPMASK: u32 = 5;
    /// The upper halves of ZMM0 to ZMM15.
    pub const ZMM_HI256: u32 = 6;
    /// ZMM16 to ZMM31.
    pub const HI16_ZMM: u32 = 7;
    /// PKRU.
    pub const PKRU: u32 = 9;

    /// Number and size in bytes of every component that a machine may have.
    pub const SIZES: &[(u32, usize)] =
        &[(X87, 160), (SSE, 256), (AVX, 256), (OPMASK, 64), (ZMM_HI256, 512), (HI16_ZMM, 1024), (PKRU, 8)];

    /// The size of a component.
    pub fn size(component: u32) -> Option<usize> {
        SIZES.iter().find(|c| c.0 == component).map(|c| c.1)
    }
}

/// Banks of machine checks that every processor has, under each engine. None ever reports anything; a kernel touches each some seven times
/// when it starts, so there are as many as server processors of the time of `portable-1` have, not as many as there could be.
pub const MACHINE_CHECK_BANKS: u32 = 10;

/// Whether a processor executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum RunState {
    /// It does.
    #[default]
    Running = 0,
    /// It waits for an interrupt after HLT.
    Halted = 1,
    /// It has had no SIPI since power-on or INIT.
    WaitForSipi = 2,
}

/// An exception or interrupt whose delivery has begun or is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Vector.
    pub vector: u8,
    /// Error code, if the exception has one.
    pub error: Option<u32>,
}

/// What is pending at the instruction boundary.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Events {
    /// An exception to be delivered first.
    pub exception: Option<Event>,
    /// A maskable interrupt that was acknowledged but not yet delivered.
    pub interrupt: Option<u8>,
    /// A software interrupt (INT n) is what `interrupt` is.
    pub interrupt_soft: bool,
    /// Interrupts are held off for one instruction after STI.
    pub sti_shadow: bool,
    /// Interrupts are held off for one instruction after MOV or POP to SS.
    pub mov_ss_shadow: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// An NMI is being handled: no other until IRET.
    pub nmi_masked: bool,
    /// INIT waits.
    pub init_pending: bool,
    /// SIPI with this vector waits.
    pub sipi: Option<u8>,
}

/// The local APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApicState {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// Its registers where the xAPIC page has them (SDM volume 3, "Local APIC Register Address Map"), 1,024 bytes; in x2APIC mode the ID register holds the 32-bit ID.
    /// The current count is what is left of the timer. IA32_TSC_DEADLINE is among the MSRs.
    pub page: Vec<u8>,
}

macro_rules! cpu_state {
    ($($(#[$doc:meta])* $tag:literal $name:ident : $ty:ty = $reset:expr;)*) => {
        umbra_state::saved! {
            /// The whole state of a processor. `CpuState::power_on` gives each element its value at power-on.
            pub struct CpuState: "cpu", 1 { $($(#[$doc])* $tag $name: $ty,)* }
        }

        impl CpuState {
            /// The state of processor `id` at power-on, with `cpuid` to show (SDM volume 3, "Processor State After Reset").
            pub fn power_on(id: u32, cpuid: &CpuidTable) -> Self {
                Self { $($name: $reset(id, cpuid),)* }
            }

            /// The names of the elements in which two states differ, with both values.
            pub fn differences(&self, other: &Self) -> Vec<String> {
                let mut out = Vec::new();
                $(if self.$name != other.$name {
                    out.push(format!("{}: {:x?} and {:x?}", stringify!($name), self.$name, other.$name));
                })*
                out
            }
        }
    };
}

cpu_state! {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15. RDX holds the processor's signature at power-on.
    1 gpr: [u64; 16] = |_, c: &CpuidTable| {
        let mut r = [0; 16];
        r[2] = c.get(1, 0).map_or(0x600, |e| u64::from(e.eax));
        r
    };
    /// RIP.
    2 rip: u64 = |_, _| 0xfff0;
    /// RFLAGS.
    3 rflags: u64 = |_, _| 2;
    /// ES, CS, SS, DS, FS, GS.
    4 segments: [SavedSegment; 6] = |_, _| {
        let mut s = [SavedSegment(Segment::real(0, false)); 6];
        s[1] = SavedSegment(Segment { base: 0xffff_0000, ..Segment::real(0xf000, true) });
        s
    };
    /// LDTR.
    5 ldtr: SavedSegment = |_, _| SavedSegment(Segment { limit: 0xffff, access: 2 | access::P, ..Segment::default() });
    /// TR.
    6 tr: SavedSegment = |_, _| SavedSegment(Segment { limit: 0xffff, access: 0xb | access::P, ..Segment::default() });
    /// GDTR.
    7 gdtr: SavedTable = |_, _| SavedTable(Table { base: 0, limit: 0xffff });
    /// IDTR.
    8 idtr: SavedTable = |_, _| SavedTable(Table { base: 0, limit: 0xffff });
    /// CR0.
    9 cr0: u64 = |_, _| CR0_RESET;
    /// CR2.
    10 cr2: u64 = |_, _| 0;
    /// CR3.
    11 cr3: u64 = |_, _| 0;
    /// CR4.
    12 cr4: u64 = |_, _| 0;
    /// CR8: the task priority.
    13 cr8: u64 = |_, _| 0;
    /// IA32_EFER.
    14 efer: u64 = |_, _| 0;
    /// XCR0.
    15 xcr0: u64 = |_, _| 1;
    /// DR0 to DR3.
    16 dr: [u64; 4] = |_, _| [0; 4];
    /// DR6.
    17 dr6: u64 = |_, _| DR6_RESET;
    /// DR7.
    18 dr7: u64 = |_, _| DR7_RESET;
    /// XSAVE components that are not in their initial state, ascending by number; sizes and layouts as in [`xcomp`].
    19 xsave: Vec<(u32, Vec<u8>)> = |_, _| {
        let mut x87 = vec![0; 160];
        x87[..2].copy_from_slice(&FCW_RESET.to_le_bytes());
        x87[24..28].copy_from_slice(&MXCSR_RESET.to_le_bytes());
        vec![(xcomp::X87, x87)]
    };
    /// Model-specific registers that are neither elements of their own nor the APIC's, ascending. One that is missing is at its value at power-on.
    20 msrs: Vec<(u32, u64)> = |_, _| vec![(msr::IA32_PAT, msr::PAT_RESET)];
    /// The local APIC; `None` if CPUID shows none.
    21 apic: Option<ApicState> = |id: u32, c: &CpuidTable| {
        let page = || {
            let mut p = vec![0; 1024];
            p[0x20..0x24].copy_from_slice(&(id << 24).to_le_bytes());
            p[0x30..0x34].copy_from_slice(&0x0005_0014u32.to_le_bytes());
            p[0xe0..0xe4].copy_from_slice(&[0xff; 4]);
            p[0xf0..0xf4].copy_from_slice(&0xffu32.to_le_bytes());
            (0x320..=0x370).step_by(0x10).for_each(|at: usize| p[at..at + 4].copy_from_slice(&0x1_0000u32.to_le_bytes()));
            if id == 0 {
                // The PIC reaches the bootstrap processor through LINT0 (ExtINT), as firmware would leave it.
                p[0x350..0x354].copy_from_slice(&0x700u32.to_le_bytes());
            }
            p
        };
        let base = msr::APIC_BASE_RESET | if id == 0 { msr::APIC_BASE_BSP } else { 0 };
        c.has(umbra_x86::cpuid::feature::APIC).then(|| ApicState { base, page: page() })
    };
    /// What is pending.
    22 events: Events = |_, _| Events::default();
    /// Whether it executes.
    23 run_state: RunState = |id, _| if id == 0 { RunState::Running } else { RunState::WaitForSipi };
    /// What CPUID shows.
    24 cpuid: Vec<SavedCpuid> = |_, c: &CpuidTable| c.entries().iter().copied().map(SavedCpuid).collect();
    /// The time-stamp counter, when the machine's clock was stopped.
    25 tsc: u64 = |_, _| 0;
    /// The time-stamp counter's frequency in kHz; 0 is the host's.
    26 tsc_khz: u32 = |_, _| 0;
}

impl CpuState {
    /// The value of an MSR of the list.
    pub fn msr(&self, number: u32) -> Option<u64> {
        self.msrs.iter().find(|m| m.0 == number).map(|m| m.1)
    }

    /// Adds or replaces an MSR of the list.
    pub fn set_msr(&mut self, number: u32, value: u64) {
        match self.msrs.binary_search_by_key(&number, |m| m.0) {
            Ok(i) => self.msrs[i].1 = value,
            Err(i) => self.msrs.insert(i, (number, value)),
        }
    }

    /// The bytes of an XSAVE component; `None` if it is in its initial state.
    pub fn xsave_component(&self, number: u32) -> Option<&[u8]> {
        self.xsave.iter().find(|c| c.0 == number).map(|c| c.1.as_slice())
    }

    /// What CPUID shows.
    pub fn cpuid_table(&self) -> CpuidTable {
        CpuidTable::new(self.cpuid.iter().map(|e| e.0))
    }
}

/// A [`Segment`] with a saved form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SavedSegment(pub Segment);

impl Field for SavedSegment {
    fn put(&self, out: &mut Vec<u8>) {
        let Segment { base, limit, selector, access, unusable } = self.0;
        base.put(out);
        limit.put(out);
        selector.put(out);
        access.put(out);
        unusable.put(out);
    }
    fn take(b: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        Ok(Self(Segment {
            base: Field::take(b, name)?,
            limit: Field::take(b, name)?,
            selector: Field::take(b, name)?,
            access: Field::take(b, name)?,
            unusable: Field::take(b, name)?,
        }))
    }
}

/// A [`Table`] with a saved form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SavedTable(pub Table);

impl Field for SavedTable {
    fn put(&self, out: &mut Vec<u8>) {
        let Table { base, limit } = self.0;
        base.put(out);
        limit.put(out);
    }
    fn take(b: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        Ok(Self(Table { base: Field::take(b, name)?, limit: Field::take(b, name)? }))
    }
}

/// A [`CpuidEntry`] with a saved form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SavedCpuid(pub CpuidEntry);

impl Field for SavedCpuid {
    fn put(&self, out: &mut Vec<u8>) {
        let CpuidEntry { leaf, subleaf, indexed, eax, ebx, ecx, edx } = self.0;
        indexed.put(out);
        [leaf, subleaf, eax, ebx, ecx, edx].put(out);
    }
    fn take(b: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        let indexed = Field::take(b, name)?;
        let [leaf, subleaf, eax, ebx, ecx, edx] = Field::take(b, name)?;
        Ok(Self(CpuidEntry { leaf, subleaf, indexed, eax, ebx, ecx, edx }))
    }
}

impl Field for RunState {
    fn put(&self, out: &mut Vec<u8>) {
        (*self as u8).put(out);
    }
    fn take(b: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        match u8::take(b, name)? {
            0 => Ok(Self::Running),
            1 => Ok(Self::Halted),
            2 => Ok(Self::WaitForSipi),
            _ => Err(StateError::Invalid(name)),
        }
    }
}

impl Field for Event {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { vector, error } = self;
        vector.put(out);
        error.put(out);
    }
    fn take(b: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        Ok(Self { vector: Field::take(b, name)?, error: Field::take(b, name)? })
    }
}

impl Field for Events {
    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            exception,
            interrupt,
            interrupt_soft,
            sti_shadow,
            mov_ss_shadow,
            nmi_pending,
            nmi_masked,
            init_pending,
            sipi,
        } = self;
        exception.put(out);
        interrupt.put(out);
        [*interrupt_soft, *sti_shadow, *mov_ss_shadow, *nmi_pending, *nmi_masked, *init_pending].put(out);
        sipi.put(out);
    }
    fn take(b: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        let exception = Field::take(b, name)?;
        let interrupt = Field::take(b, name)?;
        let [interrupt_soft, sti_shadow, mov_ss_shadow, nmi_pending, nmi_masked, init_pending] =
            Field::take(b, name)?;
        let sipi = Field::take(b, name)?;
        Ok(Self {
            exception,
            interrupt,
            interrupt_soft,
            sti_shadow,
            mov_ss_shadow,
            nmi_pending,
            nmi_masked,
            init_pending,
            sipi,
        })
    }
}

impl Field for ApicState {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { base, page } = self;
        base.put(out);
        page.put(out);
    }
    fn take(b: &mut &[u8], name: &'static str) -> Result<Self, StateError> {
        let (base, page): (u64, Vec<u8>) = (Field::take(b, name)?, Field::take(b, name)?);
        if page.len() == 1024 { Ok(Self { base, page }) } else { Err(StateError::Invalid(name)) }
    }
}
