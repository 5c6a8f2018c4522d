//! What a guest finds in its memory: descriptor tables, page tables and handlers that work in every mode.
//!
//! An exception's handler steps one byte past the instruction that raised it and goes on, so that one input
//! tries many; when it has done that [`HANDLED_MAX`] times, it ends the run.

use umbra_memory::Memory;

/// Bytes of memory, from address 0.
pub const MEMORY: u64 = 0x4_0000;
/// Where the fuzzer's code begins.
pub const CODE: u64 = 0x1_0000;
/// Bytes of code at most.
pub const CODE_MAX: usize = 512;

pub(super) const GDT: u64 = 0x1000;
pub(super) const LDT: u64 = 0x1800;
pub(super) const IDT_32: u64 = 0x2000;
pub(super) const IDT_64: u64 = 0x3000;
pub(super) const TSS_64: u64 = 0x4000;
pub(super) const TSS_32: u64 = 0x4800;
pub(super) const PML4: u64 = 0x5000;
pub(super) const PDPT_PAE: u64 = 0x9000;
pub(super) const DIRECTORY_32: u64 = 0xa000;
pub(super) const HANDLERS_64: u64 = 0xc000;
const HANDLERS_32: u64 = 0xd000;
const HANDLER_REAL: u64 = 0x600;
pub(super) const STACK_KERNEL: u64 = 0x1_f000;
pub(super) const STACK: u64 = 0x1_e000;
pub(super) const DATA: u64 = 0x2_0000;
/// Where the local APIC is, in linear addresses.
pub(super) const APIC: u64 = 0x1f_f000;
/// A linear address behind which is neither memory nor a device.
pub(super) const NOTHING: u64 = 0x1f_e000;

/// Counts down the exceptions until the run ends.
const COUNTER: u64 = 0x700;
const HANDLED_MAX: u8 = 24;

/// Selectors. `SYSCALL` and `SYSRET` want their four in this order.
pub(super) const CODE0_64: u16 = 0x08;
pub(super) const DATA0: u16 = 0x10;
pub(super) const CODE0_32: u16 = 0x18;
pub(super) const CODE0_16: u16 = 0x20;
pub(super) const CODE3_32: u16 = 0x33;
pub(super) const DATA3: u16 = 0x3b;
pub(super) const CODE3_64: u16 = 0x43;
pub(super) const CODE3_16: u16 = 0x4b;
pub(super) const TSS_64_SELECTOR: u16 = 0x50;
pub(super) const TSS_32_SELECTOR: u16 = 0x60;
pub(super) const LDT_SELECTOR: u16 = 0x68;

/// Descriptors from selector 8 on.
pub(super) const DESCRIPTORS: [u64; 19] = [
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x0000_9b00_0000_ffff,
    0x0000_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_fb00_0000_ffff,
    0x0000_8b00_4000_0000 | 0x2fff,
    0,
    0x0000_8b00_4800_0000 | 0x00ff,
    0x0000_8200_1800_0000 | 0x00ff,
    // Call gates to the handlers' first, for both sizes; a task gate; conforming and expand-down segments; an empty one.
    0x0000_ec00_0018_d000,
    0x0000_e500_0060_0000,
    0x00cf_9f00_0000_ffff,
    0x00cf_f700_0000_0fff,
    0x0000_ec00_0008_c000,
    0,
];

/// Vectors with an error code.
const WITH_ERROR: [u8; 8] = [8, 10, 11, 12, 13, 14, 17, 21];

fn gate(selector: u16, offset: u64, access: u64) -> u64 {
    offset & 0xffff | u64::from(selector) << 16 | access << 40 | (offset >> 16 & 0xffff) << 48
}

/// Writes everything, as it was in no run before.
///
/// # Panics
/// Never: the addresses are the memory's.
pub fn write(memory: &Memory) {
    let image = image();
    memory.write(0, &image).expect("it is memory");
}

/// The memory below the code, made once and copied.
fn image() -> &'static [u8] {
    static IMAGE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut image = Image(vec![0; MEMORY as usize]);
        descriptors(&mut image);
        handlers(&mut image);
        pages(&mut image);
        for (n, cell) in image.0[DATA as usize..].iter_mut().enumerate() {
            *cell = (n as u32).wrapping_mul(0x9e37_79b1).to_be_bytes()[0];
        }
        image.0
    })
}

struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn word(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}

fn descriptors(image: &mut Image) {
    for (at, raw) in (GDT + 8..).step_by(8).zip(DESCRIPTORS) {
        image.word(at, raw);
    }
    for (at, raw) in (LDT..).step_by(8).zip(&DESCRIPTORS[1..]) {
        image.word(at, *raw);
    }
    for vector in 0..256 {
        let dpl3 = if vector < 32 { 0 } else { 3 << 5 };
        let entry = if WITH_ERROR.contains(&(vector as u8)) && vector < 32 { 0x40 } else { 0 };
        image.word(IDT_32 + 8 * vector, gate(CODE0_32, HANDLERS_32 + entry, 0x8e | dpl3));
        image.word(IDT_64 + 16 * vector, gate(CODE0_64, HANDLERS_64 + entry, 0x8e | dpl3));
        image.put(4 * vector, &(HANDLER_REAL as u32).to_le_bytes());
    }
    // The 64-bit task state: stacks for rings and the first interrupt stack.
    image.put(TSS_64 + 4, &STACK_KERNEL.to_le_bytes());
    image.put(TSS_64 + 0x24, &(STACK_KERNEL - 0x800).to_le_bytes());
    image.put(TSS_64 + 0x66, &0x68u16.to_le_bytes());
    // The 32-bit one: the stack of ring 0, and what a switch to it loads.
    image.put(TSS_32 + 4, &(STACK_KERNEL as u32).to_le_bytes());
    image.put(TSS_32 + 8, &DATA0.to_le_bytes());
    image.put(TSS_32 + 0x1c, &(DIRECTORY_32 as u32).to_le_bytes());
    image.put(TSS_32 + 0x20, &(CODE as u32).to_le_bytes());
    image.put(TSS_32 + 0x38, &(STACK_KERNEL as u32).to_le_bytes());
    for (n, selector) in [DATA0, CODE0_32, DATA0, DATA0, DATA0, DATA0].into_iter().enumerate() {
        image.put(TSS_32 + 0x48 + 4 * n as u64, &selector.to_le_bytes());
    }
    image.put(TSS_32 + 0x66, &0x68u16.to_le_bytes());
}

/// `dec byte [COUNTER]; jz +n; inc [return address]; iret`, and behind it `out EXIT, al; jmp $`.
fn handlers(image: &mut Image) {
    let end = [0xe6, 0xf4, 0xeb, 0xfe];
    let counter = (COUNTER as u32).to_le_bytes();
    let long =
        [&[0xfe, 0x0c, 0x25][..], &counter, &[0x74, 6, 0x48, 0xff, 0x04, 0x24, 0x48, 0xcf], &end].concat();
    image.put(HANDLERS_64, &long);
    image.put(HANDLERS_64 + 0x40, &[&[0x48, 0x83, 0xc4, 8][..], &long].concat());
    // By SS, which is flat here whatever the guest did to DS.
    let flat = [&[0x36, 0xfe, 0x0d][..], &counter, &[0x74, 4, 0xff, 0x04, 0x24, 0xcf], &end].concat();
    image.put(HANDLERS_32, &flat);
    image.put(HANDLERS_32 + 0x40, &[&[0x83, 0xc4, 4][..], &flat].concat());
    let real =
        [&[0x2e, 0xfe, 0x0e, 0x00, 0x07, 0x74, 8, 0x55, 0x89, 0xe5, 0xff, 0x46, 2, 0x5d, 0xcf][..], &end];
    image.put(HANDLER_REAL, &real.concat());
    image.put(COUNTER, &[HANDLED_MAX]);
}

/// The first 2 MiB, of which [`MEMORY`] is there; users may use all. Above it the local APIC and an address without memory.
fn pages(image: &mut Image) {
    const PRESENT: u64 = 7;
    let (pdpt, directory, table, table_32) =
        (PML4 + 0x1000, PML4 + 0x2000, PML4 + 0x3000, DIRECTORY_32 + 0x1000);
    image.word(PML4, pdpt | PRESENT);
    // The upper half too: kernels are there.
    image.word(PML4 + 8 * 511, pdpt | PRESENT);
    image.word(pdpt, directory | PRESENT);
    image.word(pdpt + 8 * 511, directory | PRESENT);
    image.word(PDPT_PAE, directory | 1);
    image.word(directory, table | PRESENT);
    image.word(directory + 8, 0x80 | PRESENT);
    image.put(DIRECTORY_32, &((table_32 | PRESENT) as u32).to_le_bytes());
    image.put(DIRECTORY_32 + 4, &0x87u32.to_le_bytes());
    let mapped = (0..MEMORY / 4096).map(|page| (page, page << 12));
    let above = [(APIC >> 12, 0xfee0_0000), (NOTHING >> 12, 0xd000_0000)];
    for (page, gpa) in mapped.chain(above) {
        image.word(table + 8 * page, gpa | PRESENT);
        image.put(table_32 + 4 * page, &((gpa | PRESENT) as u32).to_le_bytes());
    }
}
