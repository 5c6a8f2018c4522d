//! Guests of a few bytes: an ELF kernel with a PVH note, made by hand, that boots in no time on any engine.
//!
//! They run in 32-bit protected mode with paging off, as PVH starts them. Encodings: Intel SDM, volume 2. Layout of the
//! note: Xen's public/elfnote.h. Ports: machine type `umbra-1`.

use umbra_boot::layout;

/// Where the code is loaded and entered.
const CODE: u32 = 0x10_0000;
/// Memory of the guest's own, beyond the code.
const COUNTER: u32 = 0x30_0000;
/// Zeroes: an interrupt table without entries.
const NOTHING: u32 = 0x30_0010;

const LINE_STATUS: u16 = layout::COM1 + 5;
const MODEM_CONTROL: u16 = layout::COM1 + 4;

/// A program under construction.
#[derive(Clone, Default)]
pub struct Code(Vec<u8>);

impl Code {
    pub fn new() -> Self {
        Self::default()
    }

    fn add(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// `mov dx, port`
    fn port(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.add(&[0x66, 0xba, low, high])
    }

    /// Writes a byte to a port.
    pub fn out(self, port: u16, value: u8) -> Self {
        // mov al, value; out dx, al
        self.port(port).add(&[0xb0, value, 0xee])
    }

    /// Writes text to the serial line.
    pub fn say(self, text: &str) -> Self {
        text.bytes().fold(self.port(layout::COM1), |code, byte| code.add(&[0xb0, byte, 0xee]))
    }

    /// Switches the power off.
    pub fn power_off(self) -> Self {
        // SLP_TYP and SLP_EN (bit 13); mov ax, value; out dx, ax
        let [low, high] = (u16::from(layout::ACPI_SLEEP_TYPE_S5) << 10 | 1 << 13).to_le_bytes();
        self.port(layout::ACPI_PM1A_CONTROL).add(&[0x66, 0xb8, low, high, 0x66, 0xef]).halt()
    }

    /// Resets the machine.
    pub fn reset(self) -> Self {
        self.out(layout::RESET_PORT, layout::RESET_VALUE).halt()
    }

    /// Says that the kernel has panicked.
    pub fn panic(self) -> Self {
        self.out(layout::PVPANIC, 1).halt()
    }

    /// Takes an exception that cannot be delivered, nor can that of its failure.
    pub fn triple_fault(self) -> Self {
        // lidt [NOTHING]; ud2
        self.add(&[0x0f, 0x01, 0x1d]).add(&NOTHING.to_le_bytes()).add(&[0x0f, 0x0b])
    }

    /// `cli; hlt`, for ever.
    pub fn halt(self) -> Self {
        self.add(&[0xfa, 0xf4, 0xeb, 0xfc])
    }

    /// If the key in AL is `key`, `then`, whose code is short.
    fn on_key(self, key: u8, then: Code) -> Self {
        let skip = u8::try_from(then.0.len()).unwrap();
        assert!(skip < 0x80, "a short jump");
        // cmp al, key; jne past it
        self.add(&[0x3c, key, 0x75, skip]).add(&then.0)
    }

    /// The ELF kernel.
    pub fn kernel(&self) -> Vec<u8> {
        elf(&self.0, Some(CODE), self.0.len() as u64)
    }

    /// The same, but without the note that says where to enter.
    pub fn kernel_without_entry(&self) -> Vec<u8> {
        elf(&self.0, None, self.0.len() as u64)
    }

    /// The same with so much memory after its code.
    pub fn kernel_of_size(&self, bytes: u64) -> Vec<u8> {
        elf(&self.0, Some(CODE), bytes)
    }
}

/// A guest that says `ready` and then does what the keys on its serial line tell: `p` power off, `r` reset, `k` panic,
/// `t` triple fault, `c` count (it answers with a letter from memory and one from a register, `aA`, `bB`, and so on);
/// every other byte comes back.
pub fn console() -> Vec<u8> {
    // xor ebp, ebp; data terminal ready, request to send
    let start = Code::new().add(&[0x31, 0xed]).out(MODEM_CONTROL, 3).say("ready\r\n");
    let poll = start.0.len();
    // in al, dx; test al, 1; jz to `in`
    let code = start.port(LINE_STATUS).add(&[0xec, 0xa8, 0x01, 0x74, 0xfb]);
    let code = code.port(layout::COM1).add(&[0xec]);
    let code = code.on_key(b'p', Code::new().power_off());
    let code = code.on_key(b'r', Code::new().reset());
    let code = code.on_key(b'k', Code::new().panic());
    let code = code.on_key(b't', Code::new().triple_fault());
    let counter = COUNTER.to_le_bytes();
    // inc dword [COUNTER]; inc ebp; mov al, [COUNTER]; add al, 'a' - 1; out dx, al; mov eax, ebp; add al, 'A' - 1
    let count = Code::new().add(&[0xff, 0x05]).add(&counter).add(&[0x45, 0xa0]).add(&counter);
    let count = count.add(&[0x04, b'a' - 1, 0xee, 0x89, 0xe8, 0x04, b'A' - 1]);
    // out dx, al; jmp to `poll`
    let code = code.on_key(b'c', count).add(&[0xee, 0xe9]);
    let back = poll as i32 - (code.0.len() as i32 + 4);
    // Its own memory is zero at each start because the file says so.
    code.add(&back.to_le_bytes()).kernel_of_size(u64::from(NOTHING + 16 - CODE))
}

/// A 64-bit ELF file that is loaded at [`CODE`].
fn elf(code: &[u8], entry: Option<u32>, mem_size: u64) -> Vec<u8> {
    let mut note = Vec::new();
    if let Some(entry) = entry {
        // Sizes of name and descriptor, XEN_ELFNOTE_PHYS32_ENTRY.
        for word in [4, 4, 18] {
            note.extend_from_slice(&u32::to_le_bytes(word));
        }
        note.extend_from_slice(b"Xen\0");
        note.extend_from_slice(&entry.to_le_bytes());
    }
    let headers = 64 + 2 * 56;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let halves = |file: &mut Vec<u8>, words: &[u16]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
    let wide = |file: &mut Vec<u8>, words: &[u64]| words.iter().for_each(|w| file.extend(w.to_le_bytes()));
    // ET_EXEC, x86-64, version 1.
    halves(&mut file, &[2, 62, 1, 0]);
    // Entry, program headers, section headers.
    wide(&mut file, &[u64::from(CODE), 64, 0]);
    // Flags, header sizes, two program headers.
    halves(&mut file, &[0, 0, 64, 56, 2, 64, 0, 0]);
    for (kind, offset, address, size, mem_size) in [
        (1, headers, u64::from(CODE), code.len(), mem_size),
        (4, headers + code.len(), 0, note.len(), note.len() as u64),
    ] {
        // PT_LOAD or PT_NOTE, with all permissions.
        halves(&mut file, &[kind, 0, 7, 0]);
        wide(&mut file, &[offset as u64, address, address, size as u64, mem_size, 4]);
    }
    assert_eq!(file.len(), headers);
    file.extend_from_slice(code);
    file.extend_from_slice(&note);
    file
}
