//! Small kernels made by hand for the tests: an ELF file with a PVH note, and a bzImage around it.

use zerocopy::{FromZeros, IntoBytes};

use crate::bzimage::{HEADER_OFFSET, SetupHeader};
use crate::elf::{FileHeader, NoteHeader, ProgramHeader};

/// Where the test kernel is loaded.
pub const TEXT: u64 = 0x100_0000;
/// Its PVH entry.
pub const PVH_ENTRY: u32 = 0x100_0040;
/// Bytes of zeroes after its data segment.
pub const BSS: u64 = 0x3000;
const SETUP_LEN: usize = 5 * 512;
/// Offset of the payload in the protected-mode code.
pub const PAYLOAD_OFFSET: usize = 0x2c0;

/// One program header and its bytes.
pub struct Part {
    pub kind: u32,
    pub paddr: u64,
    pub bytes: Vec<u8>,
    pub mem_size: u64,
}

impl Part {
    pub fn load(paddr: u64, bytes: Vec<u8>, zeroes: u64) -> Self {
        let mem_size = bytes.len() as u64 + zeroes;
        Self { kind: 1, paddr, bytes, mem_size }
    }

    pub fn notes(bytes: Vec<u8>) -> Self {
        Self { kind: 4, paddr: 0, mem_size: bytes.len() as u64, bytes }
    }
}

/// A note, padded.
pub fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let header = NoteHeader {
        namesz: (name.len() as u32).into(),
        descsz: (desc.len() as u32).into(),
        kind: kind.into(),
    };
    let mut out = header.as_bytes().to_vec();
    for part in [name, desc] {
        out.extend_from_slice(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

pub fn elf_of(parts: &[Part]) -> Vec<u8> {
    let mut header = FileHeader::new_zeroed();
    header.magic = *b"\x7fELF";
    header.class = 2;
    header.data = 1;
    header.machine = 62.into();
    header.phoff = 64.into();
    header.phentsize = 56.into();
    header.phnum = (parts.len() as u16).into();
    let mut out = header.as_bytes().to_vec();
    let mut offset = 64 + 56 * parts.len() as u64;
    for part in parts {
        let mut p = ProgramHeader::new_zeroed();
        p.kind = part.kind.into();
        p.offset = offset.into();
        p.paddr = part.paddr.into();
        p.filesz = (part.bytes.len() as u64).into();
        p.memsz = part.mem_size.into();
        out.extend_from_slice(p.as_bytes());
        offset += part.bytes.len() as u64;
    }
    for part in parts {
        out.extend_from_slice(&part.bytes);
    }
    out
}

/// Another tool's note, then Xen's.
pub fn notes() -> Vec<u8> {
    let mut notes = note(b"GNU\0", 3, &[7; 20]);
    notes.extend(note(b"Xen\0", 6, b"linux\0"));
    notes.extend(note(b"Xen\0", 18, &u64::from(PVH_ENTRY).to_le_bytes()));
    notes
}

pub fn text() -> Vec<u8> {
    (0..0x2000u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()).collect()
}

/// Two segments and a PVH note.
pub fn elf() -> Vec<u8> {
    elf_of(&[
        Part::load(TEXT, text(), 0),
        Part::load(TEXT + 0x20_0000, b"data".to_vec(), BSS),
        Part::notes(notes()),
    ])
}

pub fn header() -> SetupHeader {
    let mut h = SetupHeader::new_zeroed();
    h.setup_sects = 4;
    h.boot_flag = 0xaa55.into();
    // The header ends 0x6a bytes after 0x202.
    h.jump = [0xeb, 0x6a];
    h.magic = *b"HdrS";
    h.version = 0x20f.into();
    h.loadflags = 1;
    h.initrd_addr_max = 0x7fff_ffff.into();
    h.kernel_alignment = 0x20_0000.into();
    h.relocatable_kernel = 1;
    h.xloadflags = 0b11.into();
    h.cmdline_size = 2047.into();
    h.pref_address = TEXT.into();
    h.init_size = 0x40_0000.into();
    h.setup_data = 0x1234.into();
    h
}

pub fn bzimage_of(mut header: SetupHeader, payload: &[u8]) -> Vec<u8> {
    header.payload_offset = (PAYLOAD_OFFSET as u32).into();
    header.payload_length = (payload.len() as u32).into();
    let mut code = vec![0x90; PAYLOAD_OFFSET];
    code.extend_from_slice(payload);
    code.resize(code.len().next_multiple_of(16), 0);
    header.syssize = (code.len() as u32 / 16).into();
    let mut file = vec![0; SETUP_LEN];
    let bytes = header.as_bytes();
    file[HEADER_OFFSET..HEADER_OFFSET + bytes.len()].copy_from_slice(bytes);
    file.extend_from_slice(&code);
    file
}

/// LZ4 as kernels have it.
pub fn lz4(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for piece in data.chunks(8 << 20) {
        let block = lz4_flex::block::compress(piece);
        out.extend_from_slice(&(block.len() as u32).to_le_bytes());
        out.extend_from_slice(&block);
    }
    with_size(out, data)
}

/// The build's appended size.
pub fn with_size(mut packed: Vec<u8>, data: &[u8]) -> Vec<u8> {
    packed.extend_from_slice(&(data.len() as u32).to_le_bytes());
    packed
}

/// A bzImage with an LZ4 payload that has a PVH note.
pub fn bzimage() -> Vec<u8> {
    bzimage_of(header(), &lz4(&elf()))
}
