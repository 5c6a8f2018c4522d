//! The jail of the process that is the machine.
//!
//! Before the first guest instruction runs, the worker gives up what it does not need: it can gain no privilege, see no file by
//! path (Landlock), start no program, open no socket, and dies with its broker. It holds only descriptors that it was given.
//! The system calls that it may still make are a list; others answer EPERM, so that a library that merely tries is not killed.

use std::collections::BTreeMap;
use std::io;

use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use thiserror::Error;

/// Why the jail could not be closed.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A `prctl` failed.
    #[error("cannot give up privileges: {0}")]
    Prctl(io::Error),
    /// Seccomp is refused.
    #[error("cannot filter system calls: {0}; the host's kernel must have seccomp filters")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter is wrong.
    #[error("cannot build the system call filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// Landlock failed in another way than being absent.
    #[error("cannot shut off the file system: {0}")]
    Landlock(#[from] landlock::RulesetError),
}

/// What the host could give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jail {
    /// The file system is out of reach by Landlock as well (older or stripped-down kernels lack it; seccomp stands in any case).
    pub landlock: bool,
}

/// System calls that a machine makes once it runs. Whatever is not here is refused: all that names a file, a program, another process or an
/// address of the network, and all that the kernel will learn later.
const ALLOWED: &[libc::c_long] = &[
    // memory
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    // descriptors that are there. A path in the two calls that tell of a file tells no more than that; without one the C library asks by them.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_ioctl,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    // of sockets that were passed and listen
    libc::SYS_accept4,
    // threads of this process, and their signals
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_prctl,
    libc::SYS_arch_prctl,
    libc::SYS_restart_syscall,
    // time and chance
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_delete,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // what the host is
    libc::SYS_getppid,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

fn prctl(option: libc::c_int, value: libc::c_ulong) -> Result<(), SandboxError> {
    // SAFETY: the options used here take integers only.
    match unsafe { libc::prctl(option, value, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(SandboxError::Prctl(io::Error::last_os_error())),
    }
}

/// Makes the kernel kill this process when its parent ends. Call it first of all: a parent that is gone already is told by the return value.
///
/// # Errors
/// The kernel refuses.
pub fn die_with_parent(parent: u32) -> Result<bool, SandboxError> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)?;
    Ok(std::os::unix::process::parent_id() == parent)
}

/// Closes the jail for this thread and all that it will start. Call it while the process has one thread.
///
/// # Errors
/// The host lacks seccomp, or a call fails.
pub fn enter() -> Result<Jail, SandboxError> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    // Not dumpable: other processes of the same user can neither trace this one nor read its memory.
    prctl(libc::PR_SET_DUMPABLE, 0)?;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .create()?
        .restrict_self()?;
    seccompiler::apply_filter(&filter()?)?;
    Ok(Jail { landlock: status.ruleset != RulesetStatus::NotEnforced })
}

fn filter() -> Result<BpfProgram, SandboxError> {
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        ALLOWED.iter().map(|n| (*n, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
#[path = "sandbox_test.rs"]
mod sandbox_test;
