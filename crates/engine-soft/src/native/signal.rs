//! Exceptions that the host's processor raises in a thunk.
//!
//! They come as signals. The handlers, installed once a process, look whether the interrupted instruction lies in a thunk or a translation; if so they
//! redirect the thread to its exit with the exception's vector, if not they call whoever handled the signal before. Page faults are
//! never a guest's: an operand was checked before, so they go to the handler before, too.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use crate::native::Pool;
use crate::native::enter::fault_exit;
use crate::translate::{HostFault, find_fault};

/// The signals that exceptions become.
const SIGNALS: [i32; 4] = [libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGBUS];
/// The vector of a page fault.
const PAGE_FAULT: u64 = 14;
/// Bytes of a thread's alternate signal stack: a frame with AVX-512 and AMX state is 12 KiB.
const STACK_SIZE: usize = 64 << 10;

/// What the kernel puts on the stack for a handler (Linux, x86-64 `struct ucontext`).
#[repr(C)]
struct Context {
    flags: u64,
    link: u64,
    stack: [u64; 3],
    /// R8 to R15, RDI, RSI, RBP, RBX, RDX, RAX, RCX, RSP, RIP, RFLAGS, selectors, error code, vector, mask, CR2.
    registers: [u64; 23],
    /// The FXSAVE image.
    fpu: *const u8,
}

const RDX: usize = 12;
const RAX: usize = 13;
const RSP: usize = 15;
const RIP: usize = 16;
const RFLAGS: usize = 17;
const VECTOR: usize = 20;
const FX_MXCSR: usize = 24;

type Handlers = [libc::sigaction; SIGNALS.len()];
static BEFORE: OnceLock<Handlers> = OnceLock::new();

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let frame = context.cast::<Context>();
    // SAFETY: the kernel passes a valid frame, which is this handler's alone.
    let frame = unsafe { &mut *frame };
    let r = &mut frame.registers;
    if Pool::Thunks.contains(r[RIP] as usize) && r[VECTOR] != PAGE_FAULT {
        // SAFETY: the frame has a floating-point part: a thread that runs a thunk has used the unit.
        r[RDX] = unsafe { frame.fpu.add(FX_MXCSR).cast::<u32>().read_unaligned() }.into();
        r[RAX] = r[VECTOR] + 1;
        r[RIP] = fault_exit as *const () as u64;
        r[RSP] += 8;
        return;
    }
    if Pool::Blocks.contains(r[RIP] as usize) && r[VECTOR] != PAGE_FAULT {
        let fault = HostFault { rip: r[RIP], vector: r[VECTOR], rflags: r[RFLAGS] };
        if let Some(rip) = find_fault(fault) {
            r[RIP] = rip;
            return;
        }
    }
    chain(signal, info, context);
}

/// Does what would have been done without us.
fn chain(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get().and_then(|b| SIGNALS.iter().position(|s| *s == signal).map(|n| &b[n]));
    let Some(before) = before else { return };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: restores what stood before; the instruction faults again on return, and now ends the process.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        address if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the address is that of a handler of this kind, by the flag.
            let f: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(address) };
            f(signal, info, context);
        }
        address => {
            // SAFETY: the address is that of a handler of this kind, by the missing flag.
            let f: extern "C" fn(i32) = unsafe { std::mem::transmute(address) };
            f(signal);
        }
    }
}

/// Installs the handlers; once is enough.
pub fn install() {
    BEFORE.get_or_init(|| SIGNALS.map(install_one));
}

fn install_one(signal: i32) -> libc::sigaction {
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zero is a value of the structure.
    let mut action = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both structures are valid; the handler is async-signal-safe.
    unsafe { libc::sigaction(signal, &raw const action, before.as_mut_ptr()) };
    // SAFETY: filled in by the call, or still zero.
    unsafe { before.assume_init() }
}

/// A thread's alternate signal stack, unmapped when the thread ends.
struct Stack(*mut libc::c_void);

impl Stack {
    fn new() -> Option<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping.
        let base = unsafe { libc::mmap(ptr::null_mut(), STACK_SIZE, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let stack = libc::stack_t { ss_sp: base, ss_flags: 0, ss_size: STACK_SIZE };
        // SAFETY: the stack is mapped until `drop`, which takes it out of use first.
        unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) };
        Some(Self(base))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: after the first call nobody uses the mapping.
        unsafe {
            libc::sigaltstack(&raw const stack, ptr::null_mut());
            libc::munmap(self.0, STACK_SIZE);
        }
    }
}

thread_local! {
    static READY: Cell<bool> = const { Cell::new(false) };
    static STACK: Option<Stack> = Stack::new();
}

/// Makes sure that this thread can take an exception in a thunk.
#[inline]
pub fn prepare_thread() {
    if !READY.get() {
        first_time();
    }
}

#[cold]
fn first_time() {
    install();
    STACK.with(|_| READY.set(true));
}
