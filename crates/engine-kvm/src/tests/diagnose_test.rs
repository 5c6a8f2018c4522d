use std::io;

use super::{Facts, diagnose, explain};

fn said(kind: io::ErrorKind, facts: &Facts) -> String {
    explain(&io::Error::from(kind), facts)
}

#[test]
fn each_cause_has_its_cure() {
    let none = Facts::default();
    let missing = io::ErrorKind::NotFound;
    assert!(said(missing, &none).contains("firmware's setup"));
    assert!(said(missing, &Facts { is_guest: true, ..none.clone() }).contains("nested virtualization"));
    let amd = Facts { extension: Some("svm"), ..none.clone() };
    assert!(said(missing, &amd).contains("modprobe kvm_amd"));
    let loaded = Facts { extension: Some("vmx"), is_module_loaded: true, ..none.clone() };
    assert!(said(missing, &loaded).contains("--device /dev/kvm"));
    let denied = io::ErrorKind::PermissionDenied;
    assert!(said(denied, &Facts { group: Some("kvm".into()), ..none.clone() }).contains("usermod -aG kvm"));
    assert!(said(denied, &Facts { group: Some("root".into()), ..none }).contains("udev"));
}

#[test]
fn this_computer_can_be_asked() {
    let text = diagnose(&io::Error::from_raw_os_error(libc::ENOENT));
    assert!(text.starts_with("/dev/kvm cannot be opened (No such file"), "{text}");
}
