//! A whole machine whose guest writes random values to every port and to random addresses without memory.
//!
//! The guest is a kernel of a few instructions with a PVH note. It may switch the machine off or reset it at any time; then it is started again
//! with other numbers. Nothing may panic, hang, fail or talk without bound, and the machine must be in a state that can be saved.

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use umbra_engine::Engine;
use umbra_machine::{BootFiles, Event, Machine, MachineSpec, Parts};

/// Where the kernel is loaded and entered.
const ENTRY: u32 = 0x100_0000;
/// Bytes that the console may print in one round: no more than the serial line is fast, and the guest is short.
const PRINTED_MAX: usize = 1 << 20;
const ROUND: Duration = Duration::from_millis(200);

std::arch::global_asm!(
    r#"
.pushsection .rodata.umbra_conformance,"a"
.globl umbra_conformance_whole
.globl umbra_conformance_whole_end
umbra_conformance_whole:
.code32
 mov esp, 0x200000
 mov ebp, 0x12345678
2:
 imul ebp, ebp, 0x5851f42d
 add ebp, 0x14057b7e
 mov edx, ebp
 shr edx, 13
 mov eax, ebp
 shr eax, 5
 test ebp, 0x80000000
 jz 3f
 out dx, al
 in al, dx
 shl edx, 1
 out dx, ax
 shl edx, 1
 out dx, eax
 in eax, dx
 jmp 2b
3:
 mov ecx, ebp
 shl ecx, 3
 and ecx, 0x3fffffff
 or ecx, 0xc0000000
 test ebp, 0x40000000
 jz 4f
 and ecx, 0x000003ff
 or ecx, 0xfec00000
4:
 mov [ecx], eax
 mov edi, [ecx]
 mov [ecx+2], al
 imul ebx, ebp, 0x10dcd
 shr ebx, 7
 and ebx, 0xffffc
 mov edi, [ebx+0xe0000000]
 mov [ebx+0xe0000000], eax
 jmp 2b
.code64
umbra_conformance_whole_end:
.popsection
"#,
    options(raw)
);

/// The guest's instructions with its first number replaced.
fn code(seed: u32) -> Vec<u8> {
    unsafe extern "C" {
        static umbra_conformance_whole: u8;
        static umbra_conformance_whole_end: u8;
    }
    let (start, end) = (&raw const umbra_conformance_whole, &raw const umbra_conformance_whole_end);
    // SAFETY: the labels stand around one piece of the read-only section above.
    let bytes = unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) };
    let mut bytes = bytes.to_vec();
    // `mov esp` takes five bytes, and `mov ebp` has its number behind one.
    bytes[6..10].copy_from_slice(&seed.to_le_bytes());
    bytes
}

/// An ELF kernel with a PVH note (System V ABI; Xen's public/elfnote.h).
fn kernel(seed: u32) -> Vec<u8> {
    let code = code(seed);
    let mut note = Vec::new();
    [4u32, 4, 18].iter().for_each(|n| note.extend(n.to_le_bytes()));
    note.extend(b"Xen\0");
    note.extend(ENTRY.to_le_bytes());
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u16, 62].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend(1u32.to_le_bytes());
    [u64::from(ENTRY), 64, 0].iter().for_each(|n| elf.extend(n.to_le_bytes()));
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 2, 64, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    let first = 64 + 2 * 56;
    let parts = [(1u32, first, code.len()), (4, first + code.len(), note.len())];
    for (kind, offset, len) in parts {
        elf.extend(kind.to_le_bytes());
        elf.extend(7u32.to_le_bytes());
        let address = u64::from(ENTRY);
        let words = [offset as u64, address, address, len as u64, len as u64, 1];
        words.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    }
    elf.extend(code);
    elf.extend(note);
    elf
}

fn file(bytes: &[u8]) -> Result<File> {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"kernel".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot make a memfd");
    }
    // SAFETY: the descriptor was just opened and is owned by nobody else.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes)?;
    Ok(file)
}

/// Runs one machine for a while; how often its guest was started.
fn round(engine: Box<dyn Engine>, seed: u32) -> Result<u32> {
    let (sender, events) = mpsc::channel();
    let printed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&printed);
    let console = Box::new(move |bytes: &[u8]| {
        count.fetch_add(bytes.len(), Ordering::SeqCst);
    });
    let name = engine.name();
    let spec = MachineSpec::new("hostile", 2, 64 << 20);
    let parts = Parts {
        engine,
        shared_memory: name == "soft",
        console,
        events: sender,
        disks: Vec::new(),
        networks: Vec::new(),
        vsock: None,
    };
    let machine = Machine::new(spec, parts)?;
    let begun = Instant::now();
    let mut starts = 0u32;
    while begun.elapsed() < ROUND {
        let files = BootFiles {
            kernel: file(&kernel(seed.wrapping_add(starts.wrapping_mul(0x1000_0002))))?,
            initrd: None,
        };
        machine.reset(&files)?;
        machine.resume()?;
        starts += 1;
        let event = events.recv_timeout(ROUND.saturating_sub(begun.elapsed()));
        machine.pause()?;
        match event {
            Ok(Event::Error(e)) if name == "soft" => bail!("round {seed:#x}: {e}"),
            // KVM leaves some instructions to its user, who can only end the machine.
            Ok(Event::Error(_)) => break,
            // Switched off, reset, panicked or shut down; or the time is over.
            _ => (),
        }
        while events.try_recv().is_ok() {}
    }
    let printed = printed.load(Ordering::SeqCst);
    if printed > PRINTED_MAX {
        bail!("round {seed:#x}: the guest printed {printed} bytes");
    }
    machine.save(b"{}", Vec::new()).with_context(|| format!("round {seed:#x}"))?;
    Ok(starts)
}

/// Runs a number of rounds, each on a machine of its own; how often a guest was started in each, because it had switched its machine off or reset it.
///
/// # Errors
/// The engine or the machine fails.
pub fn hostile_rounds(mut engine: impl FnMut() -> Result<Box<dyn Engine>>, count: u32) -> Result<Vec<u32>> {
    (0..count).map(|n| round(engine()?, n.wrapping_mul(0x9e37_79b9) | 1)).collect()
}
