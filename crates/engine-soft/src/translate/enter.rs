//! Into translations and out of them.
//!
//! [`enter`] loads the guest's registers and jumps to a translation. That leaves through [`leave`], which stores them and returns to the
//! caller of `enter`; or it calls Rust through [`slow`] and goes on where that says; or it asks [`find`] for another translation. An exception
//! of the host's processor comes as a signal, whose handler lets the thread go on at [`stop`].
//!
//! GS is based at the state block of the processor that runs on the thread; Linux leaves it to programs, and no library uses it.

use std::arch::naked_asm;
use std::cell::Cell;
use std::mem::offset_of;

use super::site::{FAULTED, LOOKED_UP};
use super::{JUMP_MASK, Jump};
use crate::cpu::{Cpu, VectorState};
use crate::exec::Fast;
use crate::fault::Fault;
use crate::native;

/// What a signal handler saw of an exception in a translation.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HostFault {
    pub rip: u64,
    pub vector: u64,
    pub rflags: u64,
}

const fn fast(offset: usize) -> usize {
    offset_of!(Cpu, fast) + offset
}

const LIVE: usize = fast(offset_of!(Fast, live));
const WANTED: usize = fast(offset_of!(Fast, wanted));
const SITE: usize = fast(offset_of!(Fast, site));

/// Stores the guest's general registers that are in the host's; see the table in `translate`.
macro_rules! store_registers {
    () => {
        "mov gs:[0], rax
         mov gs:[8], rcx
         mov gs:[16], rdx
         mov gs:[24], rbx
         mov gs:[32], r15
         mov gs:[40], rbp
         mov gs:[48], rsi
         mov gs:[56], rdi
         mov gs:[64], r8
         mov gs:[72], r9
         mov gs:[96], r12
         mov gs:[104], r13
         mov gs:[112], r14"
    };
}

/// Returns to the caller of [`enter`], which pushed these.
macro_rules! return_to_caller {
    () => {
        "add rsp, 8
         pop r15
         pop r14
         pop r13
         pop r12
         pop rbp
         pop rbx
         ret"
    };
}

/// Runs a translation until it is left.
///
/// # Safety
/// `code` is a translation of this processor for RIP in its present mode, `Fast::page` is RIP's page, GS is based at `cpu`.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn enter(cpu: *mut Cpu, code: *const u8) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "mov r10, rsi",
        "jmp {load}",
        load = sym load,
    )
}

/// Loads the guest's general registers and goes to R10.
#[unsafe(naked)]
unsafe extern "sysv64" fn load() {
    naked_asm!(
        "mov rax, gs:[0]",
        "mov rcx, gs:[8]",
        "mov rdx, gs:[16]",
        "mov rbx, gs:[24]",
        "mov r15, gs:[32]",
        "mov rbp, gs:[40]",
        "mov rsi, gs:[48]",
        "mov rdi, gs:[56]",
        "mov r8, gs:[64]",
        "mov r9, gs:[72]",
        "mov r12, gs:[96]",
        "mov r13, gs:[104]",
        "mov r14, gs:[112]",
        "jmp r10",
    )
}

/// Leaves by the site whose number is in R11; R10 may hold where to.
///
/// # Safety
/// Only translations go here.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn leave() {
    naked_asm!(
        "mov gs:[{site}], r11d",
        "mov gs:[{target}], r10",
        "jmp {stop}",
        site = const SITE,
        target = const fast(offset_of!(Fast, target)),
        stop = sym stop,
    )
}

/// Goes on at the address in R10, if the table has it. If not, or if patience is at an end, leaves: in the latter case by the site
/// whose number is in R11.
///
/// # Safety
/// Only translations go here.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn find() {
    naked_asm!(
        "sub dword ptr gs:[{patience}], 1",
        "js {leave}",
        "mov r11, gs:[{hash}]",
        "crc32 r11, r10",
        "and r11d, {mask}",
        "add r11, gs:[{jumps}]",
        "cmp [r11 + {rip}], r10",
        "jne 4f",
        "mov r10, gs:[{own}]",
        "cmp [r11 + {key}], r10",
        "jne 3f",
        "2:",
        "mov r10, [r11 + {page}]",
        "mov gs:[{here}], r10",
        "jmp [r11 + {code}]",
        "3:",
        "mov r10, gs:[{global}]",
        "cmp [r11 + {key}], r10",
        "je 2b",
        "mov r10, [r11 + {rip}]",
        "4:",
        "mov r11d, {none}",
        "jmp {leave}",
        patience = const fast(offset_of!(Fast, patience)),
        leave = sym leave,
        hash = const fast(offset_of!(Fast, jump_hash)),
        mask = const JUMP_MASK,
        jumps = const fast(offset_of!(Fast, jumps)),
        rip = const offset_of!(Jump, rip),
        key = const offset_of!(Jump, key),
        page = const offset_of!(Jump, page),
        code = const offset_of!(Jump, code),
        own = const fast(offset_of!(Fast, key)),
        global = const fast(offset_of!(Fast, global_key)),
        here = const fast(offset_of!(Fast, page)),
        none = const LOOKED_UP,
    )
}

/// Stores the guest's general registers and returns to the caller of [`enter`].
///
/// # Safety
/// Only [`leave`] and the signal handler go here.
#[unsafe(naked)]
pub(crate) unsafe extern "sysv64" fn stop() {
    naked_asm!(
        store_registers!(),
        "cmp byte ptr gs:[{live}], 0",
        "je 2f",
        "call {save}",
        "2:",
        return_to_caller!(),
        live = const LIVE,
        save = sym save_vectors,
    )
}

/// Calls [`super::slow::slow`] for the site whose number is in R11, with what an address lookup left in R10, and goes on where it says.
#[unsafe(naked)]
pub(super) unsafe extern "sysv64" fn slow() {
    naked_asm!(
        store_registers!(),
        "mov al, gs:[{live}]",
        "mov gs:[{wanted}], al",
        "test al, al",
        "je 2f",
        "call {save}",
        "2:",
        "mov rdi, gs:[{this}]",
        "mov esi, r11d",
        "mov rdx, r10",
        "call {slow}",
        "test rax, rax",
        "je 4f",
        "mov r10, rax",
        "cmp byte ptr gs:[{wanted}], 0",
        "je 3f",
        "call {load_vectors}",
        "3:",
        "jmp {load}",
        "4:",
        return_to_caller!(),
        live = const LIVE,
        wanted = const WANTED,
        this = const fast(offset_of!(Fast, this)),
        save = sym save_vectors,
        slow = sym super::slow::slow,
        load_vectors = sym load_vectors,
        load = sym load,
    )
}

const _: () = assert!(offset_of!(VectorState, zmm) == 0);

/// Saves what is live; then nothing is. R10 and R11 stay.
#[unsafe(naked)]
unsafe extern "sysv64" fn save_vectors() {
    naked_asm!(
        "mov rax, gs:[{vector}]",
        "stmxcsr [rax + {mxcsr}]",
        "test byte ptr gs:[{live}], {avx512}",
        "jne 4f",
        "test byte ptr gs:[{live}], {avx}",
        "jne 3f",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "movups [rax + 64*\\n], xmm\\n",
        ".endr",
        "jmp 5f",
        "3:",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "vmovdqu [rax + 64*\\n], ymm\\n",
        ".endr",
        "vzeroupper",
        "jmp 5f",
        "4:",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmovdqu64 [rax + 64*\\n], zmm\\n",
        ".endr",
        ".irp n, 0,1,2,3,4,5,6,7",
        "kmovq [rax + {k} + 8*\\n], k\\n",
        ".endr",
        "vzeroupper",
        "5:",
        "mov byte ptr gs:[{live}], 0",
        "push {default}",
        "ldmxcsr [rsp]",
        "pop rax",
        "ret",
        vector = const offset_of!(Cpu, vector),
        live = const LIVE,
        avx = const super::vector::AVX,
        avx512 = const super::vector::AVX512,
        mxcsr = const offset_of!(VectorState, fx) + 24,
        k = const offset_of!(VectorState, k),
        default = const 0x1f80,
    )
}

/// Loads what is wanted, which is then live. R10 and R11 stay.
#[unsafe(naked)]
unsafe extern "sysv64" fn load_vectors() {
    naked_asm!(
        "mov rax, gs:[{vector}]",
        "mov cl, gs:[{wanted}]",
        "mov gs:[{live}], cl",
        "ldmxcsr [rax + {mxcsr}]",
        "test cl, {avx512}",
        "jne 4f",
        "test cl, {avx}",
        "jne 3f",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "movups xmm\\n, [rax + 64*\\n]",
        ".endr",
        "ret",
        "3:",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "vmovdqu ymm\\n, [rax + 64*\\n]",
        ".endr",
        "ret",
        "4:",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "vmovdqu64 zmm\\n, [rax + 64*\\n]",
        ".endr",
        ".irp n, 0,1,2,3,4,5,6,7",
        "kmovq k\\n, [rax + {k} + 8*\\n]",
        ".endr",
        "ret",
        vector = const offset_of!(Cpu, vector),
        live = const LIVE,
        wanted = const WANTED,
        avx = const super::vector::AVX,
        avx512 = const super::vector::AVX512,
        mxcsr = const offset_of!(VectorState, fx) + 24,
        k = const offset_of!(VectorState, k),
    )
}

thread_local! {
    /// The processor whose state block GS is based at.
    static CURRENT: Cell<*mut Cpu> = const { Cell::new(std::ptr::null_mut()) };
}

/// Makes this thread ready to run translations of `cpu`.
pub(super) fn prepare_thread(cpu: *mut Cpu) {
    if CURRENT.get() != cpu {
        set_base(cpu);
    }
}

#[cold]
fn set_base(cpu: *mut Cpu) {
    const ARCH_SET_GS: libc::c_int = 0x1001;
    native::prepare_thread();
    // SAFETY: GS is nobody else's on this thread; see the head of this file. The call cannot fail for an address of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, cpu) };
    CURRENT.set(cpu);
}

/// For a signal handler: an exception in a translation, at `fault.rip`. Where the thread shall go on.
pub(crate) fn find_fault(fault: HostFault) -> Option<u64> {
    let cpu = CURRENT.get();
    if cpu.is_null() {
        return None;
    }
    // SAFETY: the thread was in a translation of this processor, so nothing else refers to its state block.
    unsafe {
        (*cpu).fast.host_fault = fault;
        (*cpu).fast.site = FAULTED;
    }
    Some(stop as *const () as u64)
}

/// The guest's exception for one of the host's.
pub(super) fn exception(cpu: &Cpu, vector: u64) -> Fault {
    use umbra_x86::reg::Cr4;
    match vector {
        0 => Fault::DE,
        6 => Fault::UD,
        17 => Fault::AC,
        19 if cpu.cr4.contains(Cr4::OSXMMEXCPT) => Fault::XM,
        19 => Fault::UD,
        _ => Fault::GP0,
    }
}
