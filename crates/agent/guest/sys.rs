//! System calls of Linux on x86-64, as far as the agent makes them; an error is its number.

use core::arch::asm;
use core::ffi::CStr;
use core::marker::PhantomData;
use core::mem::size_of;

pub type Result<T> = core::result::Result<T, i32>;

pub const EINTR: i32 = 4;
pub const EAGAIN: i32 = 11;
pub const ENOENT: i32 = 2;
pub const EACCES: i32 = 13;
pub const EINVAL: i32 = 22;
pub const ENAMETOOLONG: i32 = 36;
pub const EIO: i32 = 5;

pub const POLLIN: i16 = 1;
pub const POLLOUT: i16 = 4;
pub const SIGHUP: i32 = 1;
const SIGCHLD: u64 = 17;

pub const O_RDONLY: usize = 0;
pub const O_WRONLY: usize = 1;
pub const O_RDWR: usize = 2;
pub const O_CREAT: usize = 0o100;
pub const O_NOCTTY: usize = 0o400;
pub const O_TRUNC: usize = 0o1000;
pub const O_NONBLOCK: usize = 0o4000;
pub const O_CLOEXEC: usize = 0o2000000;

pub const TIOCSCTTY: usize = 0x540e;
const TIOCSWINSZ: usize = 0x5414;
const TIOCSPTLCK: usize = 0x4004_5431;
const TIOCGPTPEER: usize = 0x5441;

/// Makes a system call.
///
/// # Safety
/// As the call of that number says of its arguments.
unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize> {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the kernel clobbers these registers and no others; what it does to memory the caller answers for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            out("rcx") _, out("r11") _,
            options(nostack),
        );
    }
    if (-4095..0).contains(&result) { Err(-result as i32) } else { Ok(result as usize) }
}

/// A call whose arguments are numbers.
fn plain(number: usize, a: usize, b: usize, c: usize) -> Result<usize> {
    // SAFETY: this is called for calls that take no addresses.
    unsafe { call(number, [a, b, c, 0, 0, 0]) }
}

/// A call with an address of something that lives as long as the call.
fn with<T: ?Sized>(number: usize, a: usize, what: *const T, c: usize) -> Result<usize> {
    // SAFETY: the callers below hand over references, and lengths that are theirs.
    unsafe { call(number, [a, what.cast::<u8>() as usize, c, 0, 0, 0]) }
}

pub fn read(fd: i32, bytes: &mut [u8]) -> Result<usize> {
    again(|| with(0, fd as usize, bytes.as_mut_ptr(), bytes.len()))
}

pub fn write(fd: i32, bytes: &[u8]) -> Result<usize> {
    again(|| with(1, fd as usize, bytes.as_ptr(), bytes.len()))
}

/// Makes a call again that a signal has interrupted.
fn again(mut work: impl FnMut() -> Result<usize>) -> Result<usize> {
    loop {
        match work() {
            Err(EINTR) => {}
            other => return other,
        }
    }
}

pub fn close(fd: i32) {
    // Nothing can be done about an error.
    let _ = plain(3, fd as usize, 0, 0);
}

pub fn open(path: &CStr, flags: usize, mode: u32) -> Result<i32> {
    // SAFETY: the path ends with a zero byte, which `CStr` promises.
    let fd = unsafe { call(2, [path.as_ptr() as usize, flags | O_CLOEXEC, mode as usize, 0, 0, 0]) }?;
    Ok(fd as i32)
}

/// Permissions and kind, and size, of an open file.
pub fn file_status(fd: i32) -> Result<(u32, u64)> {
    // `struct stat` is 144 bytes; the mode is at 24, the size at 48.
    let mut status = [0u64; 18];
    with(5, fd as usize, status.as_mut_ptr(), 0)?;
    Ok((status[3] as u32, status[6]))
}

pub fn set_mode(fd: i32, mode: u32) -> Result<usize> {
    plain(91, fd as usize, mode as usize, 0)
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: i32,
    pub events: i16,
    pub found: i16,
}

pub fn poll(fds: &mut [PollFd], timeout_ms: i32) -> Result<usize> {
    // SAFETY: address and length are of one slice.
    unsafe { call(7, [fds.as_mut_ptr() as usize, fds.len(), timeout_ms as usize, 0, 0, 0]) }
}

/// A socket that listens at a port of the guest's, for the host.
pub fn listen(port: u32) -> Result<i32> {
    const AF_VSOCK: usize = 40;
    const STREAM_CLOEXEC: usize = 1 | 0o2000000;
    let fd = plain(41, AF_VSOCK, STREAM_CLOEXEC, 0)?;
    // `struct sockaddr_vm`: family, reserved, port, any context ID, flags and padding.
    let address = [AF_VSOCK as u32, port, u32::MAX, 0];
    with(49, fd, address.as_ptr(), size_of::<[u32; 4]>())?;
    plain(50, fd, 16, 0)?;
    Ok(fd as i32)
}

/// The next connection, and the context ID of who has connected.
pub fn accept(fd: i32) -> Result<(i32, u32)> {
    let (mut address, mut len) = ([0u32; 4], size_of::<[u32; 4]>() as u32);
    // SAFETY: address and length are of one array.
    let socket = unsafe {
        call(288, [fd as usize, address.as_mut_ptr() as usize, &raw mut len as usize, 0o2000000, 0, 0])
    }?;
    Ok((socket as i32, address[2]))
}

/// Zero in the new process, its number in the old one.
pub fn fork() -> Result<i32> {
    plain(57, 0, 0, 0).map(|pid| pid as i32)
}

pub fn exit(code: i32) -> ! {
    loop {
        // It does not come back.
        let _ = plain(231, code as usize, 0, 0);
    }
}

/// The status of this child, if it has ended.
pub fn wait(pid: i32) -> Option<u32> {
    const WNOHANG: usize = 1;
    let mut status = 0u32;
    // SAFETY: the status is written where it is.
    let ended = unsafe { call(61, [pid as usize, &raw mut status as usize, WNOHANG, 0, 0, 0]) };
    matches!(ended, Ok(n) if n > 0).then_some(status)
}

/// To a process, or to a group if the number is negative.
pub fn kill(pid: i32, signal: i32) {
    // Who has ended already hears nothing.
    let _ = plain(62, pid as usize, signal as usize, 0);
}

/// Both ends of a pipe: to read, to write.
pub fn pipe() -> Result<[i32; 2]> {
    let mut ends = [0i32; 2];
    // SAFETY: two numbers are written.
    unsafe { call(293, [ends.as_mut_ptr() as usize, O_CLOEXEC, 0, 0, 0, 0]) }?;
    Ok(ends)
}

/// Makes `to` the same as `from`, and keep open when a program is run.
pub fn duplicate(from: i32, to: i32) -> Result<usize> {
    const F_SETFD: usize = 2;
    if from == to { plain(72, to as usize, F_SETFD, 0) } else { plain(33, from as usize, to as usize, 0) }
}

pub fn set_nonblocking(fd: i32) -> Result<usize> {
    const F_SETFL: usize = 4;
    plain(72, fd as usize, F_SETFL, O_NONBLOCK)
}

pub fn new_session() -> Result<usize> {
    plain(112, 0, 0, 0)
}

pub fn enter(folder: &CStr) -> Result<usize> {
    // SAFETY: the path ends with a zero byte.
    unsafe { call(80, [folder.as_ptr() as usize, 0, 0, 0, 0, 0]) }
}

/// Gives up being another user.
pub fn become_user(user: u32, group: u32, groups: &[u32]) -> Result<()> {
    with(116, groups.len(), groups.as_ptr(), 0)?;
    plain(106, group as usize, 0, 0)?;
    plain(105, user as usize, 0, 0)?;
    Ok(())
}

pub fn control(fd: i32, request: usize, argument: usize) -> Result<usize> {
    plain(16, fd as usize, request, argument)
}

pub fn set_window(fd: i32, rows: u16, columns: u16) {
    let size = [rows, columns, 0, 0];
    // A terminal that has gone needs no size.
    // SAFETY: `struct winsize` is four 16-bit numbers.
    let _ = unsafe { call(16, [fd as usize, TIOCSWINSZ, size.as_ptr() as usize, 0, 0, 0]) };
}

/// A new terminal: our end and the program's.
pub fn terminal() -> Result<[i32; 2]> {
    let ours =
        open(c"/dev/ptmx", O_RDWR | O_NOCTTY, 0).or_else(|_| open(c"/dev/pts/ptmx", O_RDWR | O_NOCTTY, 0))?;
    let unlocked = 0u32;
    // SAFETY: the call reads one number.
    unsafe { call(16, [ours as usize, TIOCSPTLCK, &raw const unlocked as usize, 0, 0, 0]) }?;
    let theirs = control(ours, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)?;
    Ok([ours, theirs as i32])
}

/// `struct sigaction` of the kernel: what is done, flags, restorer, mask.
fn set_action(signal: usize, action: usize) {
    let action = [action, 0, 0, 0];
    // SAFETY: the structure is read; ignoring or the default needs no code of ours. Signals that cannot be changed refuse.
    let _ = unsafe { call(13, [signal, action.as_ptr() as usize, 0, 8, 0, 0]) };
}

/// Nobody ends us because he reads no more.
pub fn ignore_broken_pipes() {
    set_action(13, 1);
}

/// Children that end leave nothing.
pub fn ignore_children() {
    set_action(SIGCHLD as usize, 1);
}

/// All signals do what they do by default, and none is held back.
pub fn default_signals() {
    (1..=64).for_each(|signal| set_action(signal, 0));
    hold(0);
}

fn hold(mask: u64) {
    const SIG_SETMASK: usize = 2;
    // SAFETY: the mask is eight bytes.
    let _ = unsafe { call(14, [SIG_SETMASK, &raw const mask as usize, 0, 8, 0, 0]) };
}

/// From now on ends of children are told by this descriptor.
pub fn watch_children() -> Result<i32> {
    set_action(SIGCHLD as usize, 0);
    let mask = 1u64 << (SIGCHLD - 1);
    hold(mask);
    // SAFETY: the mask is eight bytes.
    let fd = unsafe { call(289, [usize::MAX, &raw const mask as usize, 8, O_CLOEXEC | O_NONBLOCK, 0, 0]) }?;
    Ok(fd as i32)
}

/// Pointers to strings, with a null one behind.
pub struct Strings<'a, const N: usize> {
    all: [*const u8; N],
    len: usize,
    strings: PhantomData<&'a CStr>,
}

impl<'a, const N: usize> Strings<'a, N> {
    pub fn new() -> Self {
        Self { all: [core::ptr::null(); N], len: 0, strings: PhantomData }
    }

    /// Adds one. What is too many is left out.
    pub fn push(&mut self, string: &'a CStr) {
        if self.len + 1 < N
            && let Some(place) = self.all.get_mut(self.len)
        {
            *place = string.as_ptr().cast();
            self.len += 1;
        }
    }
}

/// Runs a program in this process; the error if it cannot.
pub fn run<const N: usize, const M: usize>(
    path: &CStr,
    arguments: &Strings<N>,
    variables: &Strings<M>,
) -> i32 {
    // SAFETY: all strings end with a zero byte and live, and both lists end with a null pointer.
    let result = unsafe {
        let lists =
            [path.as_ptr() as usize, arguments.all.as_ptr() as usize, variables.all.as_ptr() as usize];
        call(59, [lists[0], lists[1], lists[2], 0, 0, 0])
    };
    result.err().unwrap_or(EIO)
}
