//! Why /dev/kvm does not open, for people. For the process that opens files by path.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What this computer shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Facts {
    /// The processor's virtualization: `vmx`, `svm` or none.
    extension: Option<&'static str>,
    /// The processor is itself virtual.
    is_guest: bool,
    /// The module of the extension is loaded.
    is_module_loaded: bool,
    /// The group that /dev/kvm belongs to.
    group: Option<String>,
}

/// What to say, and what the user can do, after opening /dev/kvm failed with `error`.
pub fn diagnose(error: &io::Error) -> String {
    explain(error, &facts())
}

fn facts() -> Facts {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
    let extension = if has("vmx") { Some("vmx") } else { has("svm").then_some("svm") };
    let module = if extension == Some("svm") { "kvm_amd" } else { "kvm_intel" };
    Facts {
        extension,
        is_guest: has("hypervisor"),
        is_module_loaded: Path::new("/sys/module").join(module).exists(),
        group: fs::metadata("/dev/kvm").ok().map(|m| group_name(m.gid())),
    }
}

fn group_name(gid: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let mut names = groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    });
    names.next().unwrap_or_else(|| gid.to_string())
}

fn explain(error: &io::Error, facts: &Facts) -> String {
    let what = format!("/dev/kvm cannot be opened ({error})");
    if error.kind() == io::ErrorKind::PermissionDenied {
        let cure = match facts.group.as_deref() {
            Some("root") | None => {
                "only root may; give it to a group with a udev rule (Debian's packages of QEMU bring one)"
                    .into()
            }
            Some(group) => format!(
                "members of the group `{group}` may: run `sudo usermod -aG {group} $USER` and log in again"
            ),
        };
        return format!("{what}: {cure}");
    }
    let Some(extension) = facts.extension else {
        let cure = if facts.is_guest {
            "this computer is a virtual machine without nested virtualization: switch that on in the hypervisor around it"
        } else {
            "the processor shows neither VT-x nor AMD-V: switch virtualization on in the firmware's setup (VT-x, VMX, SVM mode)"
        };
        return format!("{what}: {cure}");
    };
    let module = if extension == "svm" { "kvm_amd" } else { "kvm_intel" };
    match (error.kind(), facts.is_module_loaded) {
        (io::ErrorKind::NotFound, true) => format!(
            "{what}: the module {module} is loaded but the device is not here; in a container, start it with `--device /dev/kvm`"
        ),
        (_, false) => format!(
            "{what}: the module {module} is not loaded: run `sudo modprobe {module}`; if that fails, virtualization is switched off in the \
             firmware's setup (`dmesg | grep kvm` says so)"
        ),
        _ => what,
    }
}

#[cfg(test)]
#[path = "tests/diagnose_test.rs"]
mod diagnose_test;
