//! The state of the first processor at the kernel's first instruction, as plain data.

use umbra_x86::reg::{Cr0, Cr4, Efer, Rflags, gpr};
use umbra_x86::segment::{Segment as SegmentRegister, Table};
use zerocopy::IntoBytes;

use crate::layout::{BOOT_STACK_TOP, GDT};
use crate::segment::Segment;

/// Selector of the code segment: `__BOOT_CS` of the Linux boot protocol.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segments: `__BOOT_DS`.
pub const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task state segment.
pub const TASK_SELECTOR: u16 = 0x20;

/// Flat 32-bit code: execute and read, accessed, base 0, limit 4 GiB.
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
/// 64-bit code.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
/// Flat data: read and write, accessed, base 0, limit 4 GiB.
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// A busy task state segment at address 0 of the least length, which nobody loads from.
const TASK: u64 = 0x0000_8b00_0000_0067;

/// What the first processor's registers hold; what is not named here is as after reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Instruction pointer.
    pub rip: u64,
    /// General registers, numbered as in [`umbra_x86::reg::gpr`].
    pub gpr: [u64; 16],
    /// Flags: interrupts are off.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// CS.
    pub cs: SegmentRegister,
    /// DS, ES, SS, FS and GS.
    pub data: SegmentRegister,
    /// Task register.
    pub tr: SegmentRegister,
    /// Local descriptor table: none.
    pub ldtr: SegmentRegister,
    /// Where the descriptors are that the segment registers were loaded from.
    pub gdtr: Table,
    /// No interrupt table: an exception before the kernel has its own is a triple fault.
    pub idtr: Table,
}

impl Entry {
    /// Protected mode with flat 32-bit segments and without paging, as PVH wants it
    /// (Xen, "x86/HVM direct boot ABI"): EBX points to the start information.
    pub fn pvh(rip: u64, start_info: u64) -> Self {
        let mut entry = Self::flat(rip, CODE_32);
        entry.gpr[gpr::RBX] = start_info;
        entry
    }

    /// Long mode with the page tables at `cr3`, as Linux' 64-bit protocol wants it (Documentation/arch/x86/boot.rst,
    /// "64-bit boot protocol"): RSI points to the zero page.
    pub fn linux64(rip: u64, zero_page: u64, cr3: u64) -> Self {
        let mut entry = Self::flat(rip, CODE_64);
        entry.gpr[gpr::RSI] = zero_page;
        entry.cr0 |= Cr0::PG.bits();
        entry.cr3 = cr3;
        entry.cr4 = Cr4::PAE.bits();
        entry.efer = (Efer::LME | Efer::LMA).bits();
        entry
    }

    fn flat(rip: u64, code: u64) -> Self {
        let mut gprs = [0; 16];
        gprs[gpr::RSP] = BOOT_STACK_TOP;
        Self {
            rip,
            gpr: gprs,
            rflags: Rflags::FIXED.bits(),
            cr0: (Cr0::PE | Cr0::ET).bits(),
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs: SegmentRegister::from_descriptor(CODE_SELECTOR, code),
            data: SegmentRegister::from_descriptor(DATA_SELECTOR, DATA),
            tr: SegmentRegister::from_descriptor(TASK_SELECTOR, TASK),
            ldtr: SegmentRegister { unusable: true, ..SegmentRegister::default() },
            gdtr: Table { base: GDT, limit: GDT_LIMIT },
            idtr: Table::default(),
        }
    }

    /// Whether the kernel starts in long mode.
    pub const fn is_long_mode(&self) -> bool {
        self.efer & Efer::LMA.bits() != 0
    }

    /// The descriptor table in memory that agrees with the segment registers.
    pub(crate) fn gdt(&self) -> Segment<'static> {
        let code = if self.is_long_mode() { CODE_64 } else { CODE_32 };
        // In long mode the task state segment's descriptor has a second half, which is zero.
        let table: [u64; GDT_ENTRIES] = [0, 0, code, DATA, TASK, 0];
        Segment::new(GDT, table.as_bytes().to_vec())
    }
}

const GDT_ENTRIES: usize = 6;
const GDT_LIMIT: u16 = (GDT_ENTRIES * 8 - 1) as u16;
