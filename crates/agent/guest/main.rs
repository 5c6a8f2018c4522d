//! The agent: what Umbra puts into a guest, so that the host can run commands there and copy files.
//!
//! It listens for the host on a virtio socket and makes a process for each connection. It knows no library, allocates nothing
//! and runs under any Linux from 4.13 on. The host has all power over the guest anyway, so it is believed; a
//! connection from anybody else is closed.
#![no_std]
#![no_main]

mod exec;
mod files;
mod frames;
#[path = "../src/protocol.rs"]
#[allow(dead_code)]
mod protocol;
mod session;
mod strings;
mod sys;
mod users;

use core::arch::{asm, global_asm};
use core::ffi::CStr;

use protocol::{BODY_MAX, EXEC, PORT, READ, READY, VERSION, WRITE, step};

/// The host's context ID.
const HOST: u32 = 2;

// The kernel enters with the stack at the number of arguments.
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {start}", "ud2", start = sym start);

/// The first code: `stack` is the number of arguments, then their addresses.
extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: so the kernel has made the stack; there is at least the program's name, or else a null pointer.
    let first = unsafe { (*stack > 1).then(|| CStr::from_ptr(*stack.add(2) as *const core::ffi::c_char)) };
    sys::ignore_broken_pipes();
    if first == Some(c"--stdin") {
        // One connection that somebody else has made.
        serve(0);
    }
    // Whoever starts it may have closed these three, and a command's streams must not take their places.
    while matches!(sys::open(c"/dev/null", sys::O_RDWR, 0), Ok(0..=2)) {}
    let listener = sys::listen(PORT).unwrap_or_else(|error| sys::exit(error));
    sys::ignore_children();
    loop {
        let Ok((connection, peer)) = sys::accept(listener) else {
            // Nothing is left of something: it is waited for.
            let _ = sys::poll(&mut [], 100);
            continue;
        };
        if peer == HOST && sys::fork() == Ok(0) {
            sys::close(listener);
            serve(connection);
        }
        sys::close(connection);
    }
}

/// Does what one connection asks for.
fn serve(fd: i32) -> ! {
    frames::send(fd, READY, &VERSION.to_le_bytes());
    let mut body = [0; BODY_MAX];
    match frames::receive(fd, &mut body) {
        (EXEC, request) => exec::exec(fd, request),
        (WRITE, request) => files::write(fd, request),
        (READ, request) => files::read(fd, request),
        _ => frames::fail(fd, step::REQUEST, sys::EINVAL),
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::exit(101);
}

// What the compiler takes for granted.

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller answers for both ranges.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack))
    };
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: going up, nothing is overwritten before it is read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: going down, neither; the caller answers for both ranges, which are not empty here.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") len => _, inout("rdi") to.add(len).sub(1) => _, inout("rsi") from.add(len).sub(1) => _,
            options(nostack),
        );
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller answers for the range.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8, options(nostack))
    };
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    for at in 0..len {
        // SAFETY: the caller answers for both ranges.
        let (one, other) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
        if one != other {
            return i32::from(one) - i32::from(other);
        }
    }
    0
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    // SAFETY: the same.
    unsafe { memcmp(one, other, len) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller answers for a zero byte at the end.
    while unsafe { string.add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}
