//! The jail of the process that is the machine.
//!
//! Before the first guest instruction runs, the worker gives up what it does not need: it can gain no privilege, see no file by
//! path (Landlock), start no program, open no socket, and dies with its broker. It holds only descriptors that it was given.
//! The list of refused system calls is of what a machine never needs; refused calls answer EPERM, so that a library that merely tries is not killed.

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

/// System calls that a machine never makes once it runs.
const REFUSED: &[libc::c_long] = &[
    // files by path
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_creat,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_chmod,
    libc::SYS_fchmodat,
    libc::SYS_chown,
    libc::SYS_fchownat,
    libc::SYS_truncate,
    libc::SYS_chdir,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    // other programs and processes
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // the network
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // the host as a whole
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_modify_ldt,
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
        REFUSED.iter().map(|n| (*n, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
#[path = "sandbox_test.rs"]
mod sandbox_test;
