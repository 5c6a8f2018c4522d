//! The host's processor, in a bare child process.
//!
//! The child lives in signal handlers: leaving one (`rt_sigreturn`) loads all user state of the processor from the signal frame, so writing
//! a test's state there starts the test; the trap at its end is the next signal, whose frame holds the state after it. A frame's extended
//! state has the standard XSAVE format (SDM volume 1, chapter 13; Linux `struct _xstate`). 16-bit code and
//! data are segments of the child's local descriptor table.
//!
//! The handler touches nothing but the memory it was given: no allocation, no thread-local variable.

use std::arch::x86_64::__cpuid_count;
use std::arch::{asm, naked_asm};
use std::io;
use std::ptr::{addr_of, addr_of_mut};

use anyhow::{Context as _, ensure};
use umbra_x86::reg::gpr;

use super::state::{
    Bits, CODE, CODE_OFFSET, CODE_SIZE, DATA, DATA_SIZE, ENDLESS, GS_BASE, Outcome, PAGE, READ_ONLY_BYTE,
    State, Test, WINDOW, digest,
};

/// Tests that are run at once.
pub const BATCH: usize = 64;

/// What parent and child share.
#[repr(C, align(64))]
struct Block {
    count: usize,
    tests: [Test; BATCH],
    outcomes: [Outcome; BATCH],
}

/// What the handler knows.
struct Child {
    block: *mut Block,
    next: usize,
    running: bool,
    go: i32,
    done: i32,
    areas: Areas,
    /// Where the code page can be written.
    code: *mut u8,
}

/// Where the extended components are in a frame; zero if the host has them not.
#[derive(Clone, Copy)]
struct Areas {
    avx: usize,
    opmask: usize,
    zmm_high: usize,
    zmm_upper: usize,
}

static mut CHILD: Child = Child {
    block: std::ptr::null_mut(),
    next: 0,
    running: false,
    go: -1,
    done: -1,
    areas: Areas { avx: 0, opmask: 0, zmm_high: 0, zmm_upper: 0 },
    code: std::ptr::null_mut(),
};

/// Linux, x86-64: `struct ucontext`.
#[repr(C)]
struct Frame {
    flags: u64,
    link: u64,
    stack: [u64; 3],
    registers: [u64; 23],
    fpu: *mut u8,
}

/// Where each general register, by its number, is in a frame.
const ORDER: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
const RIP: usize = 16;
const FLAGS: usize = 17;
const SELECTORS: usize = 18;
const ERROR: usize = 19;
const VECTOR: usize = 20;
const CR2: usize = 22;
const HEADER: usize = 512;
const XMM: usize = 160;

const USER_CODE_64: u64 = 0x33;
const USER_CODE_32: u64 = 0x23;
const USER_DATA: u64 = 0x2b;
/// Selectors of the local descriptor table: index, table bit, privilege 3.
const LDT_CODE_16: u64 = 0x7;
const LDT_DATA_16: u64 = 0xf;

const SIGNALS: [i32; 7] =
    [libc::SIGTRAP, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGBUS, libc::SIGUSR1, libc::SIGALRM];
/// Seconds after which a test counts as one that does not end. A batch takes milliseconds.
const SECONDS_MAX: i64 = 2;

/// The signal handler: without the alignment check that a test may have left on, to which handlers are subject.
#[unsafe(naked)]
extern "C" fn enter_handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    naked_asm!("pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq", "jmp {}", sym handle)
}

extern "C" fn handle(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the child has one thread, handlers block each other, and the frame is this handler's.
    unsafe {
        let child = &mut *addr_of_mut!(CHILD);
        let frame = &mut *context.cast::<Frame>();
        let block = &mut *child.block;
        if child.running {
            read_outcome(child.areas, frame, &block.tests[child.next], &mut block.outcomes[child.next]);
            if signal == libc::SIGALRM {
                block.outcomes[child.next].vector = ENDLESS;
            }
            child.next += 1;
        }
        if !child.running || child.next >= block.count {
            wait_for_batch(child);
        }
        child.running = true;
        start_test(child, frame, &block.tests[child.next]);
    }
}

fn wait_for_batch(child: &mut Child) {
    let mut byte = 0u8;
    let timer = |seconds| libc::itimerval {
        it_interval: libc::timeval { tv_sec: seconds, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: seconds, tv_usec: 0 },
    };
    // SAFETY: one byte each way; the parent closes its ends when it ends.
    unsafe {
        libc::setitimer(libc::ITIMER_REAL, &timer(0), std::ptr::null_mut());
        libc::write(child.done, addr_of!(byte).cast(), 1);
        if libc::read(child.go, addr_of_mut!(byte).cast(), 1) != 1 {
            libc::_exit(0);
        }
        libc::setitimer(libc::ITIMER_REAL, &timer(SECONDS_MAX), std::ptr::null_mut());
    }
    child.next = 0;
}

/// # Safety
/// In the child, whose fixed pages are mapped; `frame` is the handler's.
unsafe fn start_test(child: &Child, frame: &mut Frame, test: &Test) {
    let (s, areas) = (&test.state, child.areas);
    for (n, at) in ORDER.iter().enumerate() {
        frame.registers[*at] = s.gpr[n];
    }
    frame.registers[RIP] = s.rip;
    frame.registers[FLAGS] = s.rflags | 0x202;
    let (cs, ss, ds) = match test.bits {
        Bits::SixtyFour => (USER_CODE_64, USER_DATA, 0),
        Bits::ThirtyTwo => (USER_CODE_32, USER_DATA, USER_DATA),
        Bits::Sixteen => (LDT_CODE_16, LDT_DATA_16, LDT_DATA_16),
    };
    frame.registers[SELECTORS] = cs | ss << 48;
    // SAFETY: the selectors are null or valid; code in 64-bit mode does not look at DS and ES.
    unsafe {
        asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) ds as u32);
        let code = child.code.add(CODE_OFFSET as usize);
        std::ptr::write_bytes(child.code, 0xcc, CODE_SIZE as usize);
        std::ptr::copy_nonoverlapping(test.code.as_ptr(), code, test.code_len as usize);
        std::ptr::write_bytes((DATA + PAGE) as *mut u8, 0, 2 * PAGE as usize);
        std::ptr::copy_nonoverlapping(s.memory.as_ptr(), s.window as *mut u8, WINDOW);
        let fpu = frame.fpu;
        std::ptr::copy_nonoverlapping(s.fx.as_ptr(), fpu, 160);
        for n in 0..16 {
            let z = s.zmm[n].as_ptr();
            std::ptr::copy_nonoverlapping(z, fpu.add(XMM + 16 * n), 16);
            if areas.avx != 0 {
                std::ptr::copy_nonoverlapping(z.add(16), fpu.add(areas.avx + 16 * n), 16);
            }
            if areas.zmm_high != 0 {
                std::ptr::copy_nonoverlapping(z.add(32), fpu.add(areas.zmm_high + 32 * n), 32);
                std::ptr::copy_nonoverlapping(s.zmm[16 + n].as_ptr(), fpu.add(areas.zmm_upper + 64 * n), 64);
            }
        }
        if areas.opmask != 0 {
            std::ptr::copy_nonoverlapping(s.k.as_ptr().cast(), fpu.add(areas.opmask), 64);
        }
        fpu.add(HEADER).cast::<u64>().write(present(areas));
    }
}

fn present(areas: Areas) -> u64 {
    3 | if areas.avx != 0 { 4 } else { 0 } | if areas.opmask != 0 { 0xe0 } else { 0 }
}

/// # Safety
/// As [`start_test`].
unsafe fn read_outcome(areas: Areas, frame: &Frame, test: &Test, out: &mut Outcome) {
    out.state = test.state;
    let s = &mut out.state;
    for (n, at) in ORDER.iter().enumerate() {
        s.gpr[n] = frame.registers[*at];
    }
    if test.bits == Bits::Sixteen {
        // Above the stack pointer's half there may be what Linux returned with (espfix64).
        s.gpr[gpr::RSP] &= u64::from(u32::MAX);
    }
    s.rip = frame.registers[RIP];
    s.rflags = frame.registers[FLAGS];
    out.vector = frame.registers[VECTOR] as u32;
    out.error = frame.registers[ERROR] as u32;
    out.address = if out.vector == 14 { frame.registers[CR2] } else { 0 };
    // SAFETY: the caller's word.
    unsafe {
        std::ptr::copy_nonoverlapping(s.window as *const u8, s.memory.as_mut_ptr(), WINDOW);
        out.pages = digest(std::slice::from_raw_parts((DATA + PAGE) as *const u8, 2 * PAGE as usize));
        let fpu = frame.fpu;
        let used = fpu.add(HEADER).cast::<u64>().read();
        let fetch = |component: u32, at: usize, to: *mut u8, len: usize| {
            if at != 0 && used >> component & 1 != 0 {
                std::ptr::copy_nonoverlapping(fpu.add(at), to, len);
            } else {
                std::ptr::write_bytes(to, 0, len);
            }
        };
        read_x87(s, fpu, used);
        for n in 0..16 {
            let z = s.zmm[n].as_mut_ptr();
            fetch(1, XMM + 16 * n, z, 16);
            fetch(2, areas.avx + 16 * n, z.add(16), 16);
            fetch(6, areas.zmm_high + 32 * n, z.add(32), 32);
            fetch(7, areas.zmm_upper + 64 * n, s.zmm[16 + n].as_mut_ptr(), 64);
        }
        fetch(5, areas.opmask, s.k.as_mut_ptr().cast(), 64);
    }
}

/// # Safety
/// As [`start_test`].
unsafe fn read_x87(s: &mut State, fpu: *const u8, used: u64) {
    // SAFETY: the caller's word.
    unsafe {
        std::ptr::copy_nonoverlapping(fpu, s.fx.as_mut_ptr(), 160);
    }
    if used & 1 == 0 {
        let mxcsr: [u8; 4] = [s.fx[24], s.fx[25], s.fx[26], s.fx[27]];
        s.fx = State::empty().fx;
        s.fx[24..28].copy_from_slice(&mxcsr);
    }
    s.fx[28..32].fill(0);
}

/// The child.
pub struct Oracle {
    block: *mut Block,
    pid: i32,
    go: i32,
    done: i32,
}

impl Oracle {
    /// Starts a child. The process should have one thread, since the child goes on without the others.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn start() -> anyhow::Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping.
        let block = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Block>(), protection, flags, -1, 0) };
        ensure!(block != libc::MAP_FAILED, "cannot map memory to share with the child");
        let (mut go, mut done) = ([0; 2], [0; 2]);
        // SAFETY: room for two descriptors each.
        let made = unsafe { libc::pipe(go.as_mut_ptr()) == 0 && libc::pipe(done.as_mut_ptr()) == 0 };
        ensure!(made, "cannot make pipes: {}", io::Error::last_os_error());
        // SAFETY: the child only runs `child`, which makes system calls and never returns.
        let pid = unsafe { libc::fork() };
        ensure!(pid >= 0, "cannot fork: {}", io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: in the child, which owns all of it.
            unsafe {
                libc::close(go[1]);
                libc::close(done[0]);
                child(block.cast(), go[0], done[1]);
            }
        }
        // SAFETY: the child's ends.
        unsafe {
            libc::close(go[0]);
            libc::close(done[1]);
        }
        let oracle = Self { block: block.cast(), pid, go: go[1], done: done[0] };
        oracle.wait().context("the child did not come up")?;
        Ok(oracle)
    }

    fn wait(&self) -> anyhow::Result<()> {
        let mut byte = 0u8;
        // SAFETY: one byte.
        let n = unsafe { libc::read(self.done, addr_of_mut!(byte).cast(), 1) };
        ensure!(n == 1, "the child that runs instructions natively died");
        Ok(())
    }

    /// Runs up to [`BATCH`] tests.
    ///
    /// # Errors
    /// The child died.
    pub fn run(&mut self, tests: &[Test]) -> anyhow::Result<Vec<Outcome>> {
        ensure!(!tests.is_empty() && tests.len() <= BATCH, "a batch has 1 to {BATCH} tests");
        // SAFETY: the child waits, so the block is the parent's.
        let block = unsafe { &mut *self.block };
        block.count = tests.len();
        block.tests[..tests.len()].copy_from_slice(tests);
        let byte = 0u8;
        // SAFETY: one byte.
        ensure!(unsafe { libc::write(self.go, addr_of!(byte).cast(), 1) } == 1, "the child is gone");
        self.wait()?;
        Ok(block.outcomes[..tests.len()].to_vec())
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // SAFETY: closing `go` ends the child if it waits; it is killed if not. Nobody uses the block after.
        unsafe {
            libc::close(self.go);
            libc::close(self.done);
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            libc::munmap(self.block.cast(), size_of::<Block>());
        }
    }
}

fn areas() -> Areas {
    let available = __cpuid_count(0xd, 0).eax;
    let at = |n: u32| if available >> n & 1 != 0 { __cpuid_count(0xd, n).ebx as usize } else { 0 };
    Areas { avx: at(2), opmask: at(5), zmm_high: at(6), zmm_upper: at(7) }
}

/// # Safety
/// Only in a fresh child; never returns.
unsafe fn child(block: *mut Block, go: i32, done: i32) -> ! {
    // SAFETY: the child owns its address space; the fixed pages are far from everything else.
    unsafe {
        let child = &mut *addr_of_mut!(CHILD);
        *child = Child { block, next: 0, running: false, go, done, areas: areas(), code: map_code() };
        let ok = !child.code.is_null() && map_pages() && make_segments() && set_gs_base();
        if !ok {
            libc::_exit(1);
        }
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let size = 256 << 10;
        let stack = libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0);
        let stack = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: size };
        libc::sigaltstack(&raw const stack, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = enter_handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&raw mut action.sa_mask);
        for signal in SIGNALS {
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
        // A child without a parent ends.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Touch the whole of the vector unit, so that frames have all of it.
        libc::raise(libc::SIGUSR1);
        libc::_exit(2)
    }
}

/// Maps the code page, which tests can only read; where it can be written, or null.
///
/// # Safety
/// As [`child`].
unsafe fn map_code() -> *mut u8 {
    let size = CODE_SIZE as usize;
    let (rw, rx) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_EXEC);
    // SAFETY: the caller's word; the other mapping is new.
    unsafe {
        let file = libc::memfd_create(c"code".as_ptr(), 0);
        if file < 0 || libc::ftruncate(file, size as i64) != 0 {
            return std::ptr::null_mut();
        }
        let fixed = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
        let code = libc::mmap(CODE as *mut _, size, rx, fixed, file, 0);
        let written = libc::mmap(std::ptr::null_mut(), size, rw, libc::MAP_SHARED, file, 0);
        if code as u64 != CODE || written == libc::MAP_FAILED { std::ptr::null_mut() } else { written.cast() }
    }
}

/// # Safety
/// As [`child`].
unsafe fn map_pages() -> bool {
    let fixed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's word.
    unsafe {
        let data = libc::mmap(DATA as *mut _, DATA_SIZE as usize, rw, fixed, -1, 0);
        if data as u64 != DATA {
            return false;
        }
        std::ptr::write_bytes((DATA + 3 * PAGE) as *mut u8, READ_ONLY_BYTE, PAGE as usize);
        libc::mprotect(DATA as *mut _, PAGE as usize, libc::PROT_NONE) == 0
            && libc::mprotect((DATA + 3 * PAGE) as *mut _, PAGE as usize, libc::PROT_READ) == 0
            && libc::mprotect((DATA + 4 * PAGE) as *mut _, PAGE as usize, libc::PROT_NONE) == 0
    }
}

/// # Safety
/// As [`child`]. Nothing else in the process uses GS.
unsafe fn set_gs_base() -> bool {
    const ARCH_SET_GS: libc::c_long = 0x1001;
    // SAFETY: the caller's word.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE) == 0 }
}

/// Linux: `struct user_desc`.
#[repr(C)]
struct Descriptor {
    entry: u32,
    base: u32,
    limit: u32,
    flags: u32,
}

/// # Safety
/// As [`child`].
unsafe fn make_segments() -> bool {
    // Bits 1 and 2 of the flags are the contents: 0 data, 2 code.
    let code = Descriptor { entry: 0, base: CODE as u32, limit: 0xffff, flags: 2 << 1 };
    let data = Descriptor { entry: 1, base: DATA as u32, limit: 0xffff, flags: 0 };
    [code, data].iter().all(|d| {
        // SAFETY: the structure is the kernel's.
        unsafe { libc::syscall(libc::SYS_modify_ldt, 1, std::ptr::from_ref(d), size_of::<Descriptor>()) == 0 }
    })
}
