//! Which engine runs a machine, and why.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::bail;
use umbra_engine_kvm::{diagnose, probe};

use crate::cli::Accel;

const KVM: &str = "/dev/kvm";

/// The engine that was chosen.
pub struct Choice {
    /// /dev/kvm, if KVM runs the machine.
    pub kvm: Option<OwnedFd>,
    /// One clause for the user.
    pub why: String,
}

/// Chooses. KVM is taken only if it has just run a few instructions of a 64-bit kernel.
///
/// # Errors
/// KVM was asked for and cannot run a machine: what is missing and what to do.
pub fn choose(accel: Accel) -> anyhow::Result<Choice> {
    match accel {
        Accel::Soft => Ok(Choice { kvm: None, why: "asked for".into() }),
        Accel::Kvm => match kvm() {
            Ok(kvm) => Ok(Choice { kvm: Some(kvm), why: "asked for".into() }),
            Err(why) => bail!("{why}; use --accel soft to run without KVM"),
        },
        Accel::Auto => Ok(match kvm() {
            Ok(kvm) => Choice { kvm: Some(kvm), why: "KVM works here".into() },
            Err(why) => Choice { kvm: None, why },
        }),
    }
}

/// A descriptor of a KVM that works, or why there is none.
fn kvm() -> Result<OwnedFd, String> {
    let open = || -> io::Result<OwnedFd> { Ok(File::options().read(true).write(true).open(KVM)?.into()) };
    let kvm = open().map_err(|e| diagnose(&e))?;
    match probe(kvm.as_fd()) {
        Ok(_) => Ok(kvm),
        Err(failure) => Err(failure.to_string()),
    }
}
