//! What a guest program is: a few lines of assembly, the mode it starts in, and what must be true afterwards.
//!
//! The text is assembled when the crate is built (by the compiler's own assembler, in Intel syntax, after the macros of `prelude.s`). A group
//! is one piece of bytes with a directory in front, so that each program is found by its number.

use umbra_x86::cpuid::Feature;

/// The mode in which a program starts: ring 0, flat, interrupts off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Real mode, all segments at 0.
    Real,
    /// 32-bit protected mode without paging.
    Protected,
    /// 32-bit protected mode, two-level page tables with 4 MiB pages.
    Paged,
    /// 32-bit protected mode, PAE page tables.
    Pae,
    /// 64-bit mode.
    Long,
}

/// An exception or interrupt as the runtime's entry logs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Vector.
    pub vector: u8,
    /// Error code; 0 where there is none.
    pub error: u32,
    /// The saved instruction pointer, counted from the instruction that was tried: 0 for a fault, its length for a trap.
    /// `None` where it may be anything.
    pub at: Option<i64>,
    /// CR2, where it counts.
    pub cr2: Option<u64>,
}

/// A fault of `vector` without an error code.
pub const fn fault(vector: u8) -> Fault {
    fault_with(vector, 0)
}

/// A fault of `vector` with an error code.
pub const fn fault_with(vector: u8, error: u32) -> Fault {
    Fault { vector, error, at: Some(0), cr2: None }
}

/// A trap of `vector` after an instruction of `len` bytes.
pub const fn trap(vector: u8, len: i64) -> Fault {
    Fault { vector, error: 0, at: Some(len), cr2: None }
}

/// An interrupt of `vector`, anywhere.
pub const fn interrupt(vector: u8) -> Fault {
    Fault { vector, error: 0, at: None, cr2: None }
}

/// #GP(`error`).
pub const fn gp(error: u32) -> Fault {
    fault_with(13, error)
}

/// #PF with this error code at this address.
pub const fn pf(error: u32, address: u64) -> Fault {
    Fault { vector: 14, error, at: Some(0), cr2: Some(address) }
}

/// #UD.
pub const UD: Fault = fault(6);

/// What a program did to the outside, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    /// A write of this many bytes to a port, and the value.
    Out(u16, u8, u32),
    /// A read of this many bytes from a port.
    In(u16, u8),
    /// A write of these bytes to addresses without memory.
    Write(u64, &'static [u8]),
    /// A read of this many bytes from addresses without memory.
    Read(u64, u8),
    /// The end of a level-triggered interrupt.
    End(u8),
}

/// How a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By the write that DONE makes.
    Done,
    /// By a fault that cannot be delivered.
    TripleFault,
    /// Never: halted for ever with interrupts off.
    Sleeps,
    /// By DONE, a triple fault or a kick, whatever the results; for programs that only must not hurt.
    Any,
}

/// A guest program and what must be true of it.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its name within the group.
    pub name: &'static str,
    /// Its mode at the start.
    pub mode: Mode,
    /// What LOG must have stored, in the order of the text.
    pub results: &'static [u64],
    /// What the runtime's entries must have logged.
    pub faults: &'static [Fault],
    /// The accesses that left the processor: ports 0x300 to 0x3ff, and addresses without memory.
    pub io: &'static [Io],
    /// Whether neighbouring accesses count as one: an access may be made in parts.
    pub io_in_parts: bool,
    /// Bytes that must be in guest physical memory.
    pub memory: &'static [(u64, &'static [u8])],
    /// How it ends.
    pub end: End,
    /// CPUID features without which it means nothing.
    pub needs: &'static [Feature],
    /// How many processors run it; each starts at its beginning with its number in RDI.
    pub vcpus: u32,
    /// The processors but the first wait for their start by SIPI.
    pub waits_for_sipi: bool,
    /// It may be saved and restored at each MARK and LOG. Not so, if it measures time.
    pub can_move: bool,
}

impl Program {
    /// What a declaration does not say.
    pub const BASE: Self = Self {
        name: "",
        mode: Mode::Long,
        results: &[],
        faults: &[],
        io: &[],
        io_in_parts: false,
        memory: &[],
        end: End::Done,
        needs: &[],
        vcpus: 1,
        waits_for_sipi: false,
        can_move: true,
    };
}

/// Programs with a common subject.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// The programs, in the order of their bytes.
    pub programs: &'static [Program],
    /// Where the directory starts.
    pub(super) bytes: fn() -> *const u8,
}

impl Group {
    /// The bytes of program number `index`.
    pub fn code(&self, index: usize) -> &'static [u8] {
        let base = (self.bytes)();
        assert!(index < self.programs.len());
        // SAFETY: the directory has a pair of 32-bit numbers for each program (offset from its own start, and length), and the program's
        // bytes are part of the same section; both come from one macro, nothing writes there.
        unsafe {
            let entry = base.add(index * 8).cast::<u32>();
            let (offset, len) = (entry.read_unaligned() as usize, entry.add(1).read_unaligned() as usize);
            std::slice::from_raw_parts(base.add(offset), len)
        }
    }
}

macro_rules! begin {
    (Real) => {
        ", 16, 0\n"
    };
    (Protected) => {
        ", 32, 0\n"
    };
    (Paged) => {
        ", 32, 1\n"
    };
    (Pae) => {
        ", 32, 1\n"
    };
    (Long) => {
        ", 64, 1\n"
    };
}
pub(super) use begin;

/// Declares a group: `programs! { GROUP = "name", symbol; name in Mode "text" { field: value } }`.
macro_rules! programs {
    ($group:literal; $($(#[doc = $doc:literal])* $name:ident in $mode:ident $text:literal {
        $($field:ident : $value:expr),* $(,)?
    })*) => {
        std::arch::global_asm!(
            include_str!("../prelude.s"),
            concat!(
                ".pushsection .rodata.umbra_conformance,\"a\"\n.balign 8\n.globl umbra_conformance_", $group,
                "\numbra_conformance_", $group, ":\n",
                $(".long .Ls_", $group, stringify!($name), " - umbra_conformance_", $group,
                  "\n.long .Le_", $group, stringify!($name), " - .Ls_", $group, stringify!($name), "\n",)*
            ),
            $(concat!(
                "\n.Ls_", $group, stringify!($name), ":\nBEGIN .Ls_", $group, stringify!($name),
                $crate::conformance::program::begin!($mode), $text, "\n.Lx_", $group, stringify!($name), ":\nDONE\n.Le_",
                $group, stringify!($name), ":\n"
            ),)*
            ".code64\n.popsection\n",
            options(raw)
        );
        /// The group.
        pub(in crate::conformance) const GROUP: $crate::conformance::program::Group =
            $crate::conformance::program::Group {
                name: $group,
                programs: PROGRAMS,
                bytes: || {
                    // SAFETY: only the address of the label is taken.
                    unsafe extern "C" {
                        #[link_name = concat!("umbra_conformance_", $group)]
                        static BYTES: u8;
                    }
                    &raw const BYTES
                },
            };
        const PROGRAMS: &[$crate::conformance::program::Program] = &[
            $($crate::conformance::program::Program {
                name: stringify!($name),
                mode: $crate::conformance::program::Mode::$mode,
                $($field: $value,)*
                ..$crate::conformance::program::Program::BASE
            },)*
        ];
    };
}
pub(super) use programs;
