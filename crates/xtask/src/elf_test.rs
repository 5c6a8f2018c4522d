//! What `ldd` prints and what a module says of itself.

use std::path::Path;

use super::elf::{module_depends, parse_ldd};

#[test]
fn libraries_and_the_loader_are_placed() {
    let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /opt/q/usr/lib/libz.so.1 (0x00007f)\n\
        \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
    let libraries = parse_ldd(text).expect("complete");
    assert_eq!(libraries.len(), 2);
    assert_eq!(libraries[0].0, Path::new("/lib/libz.so.1"));
    assert_eq!(libraries[0].1, Path::new("/opt/q/usr/lib/libz.so.1"));
    assert_eq!(libraries[1].0, Path::new("/lib64/ld-linux-x86-64.so.2"));
}

#[test]
fn a_missing_library_is_named() {
    let error = parse_ldd("\tlibgone.so.3 => not found\n").expect_err("incomplete");
    assert!(error.to_string().contains("libgone.so.3"));
}

#[test]
fn dependencies_are_read_from_modinfo() {
    assert_eq!(module_depends(b"\x7fELF...\0depends=irqbypass,ccp\0name=kvm\0"), ["irqbypass", "ccp"]);
    assert_eq!(module_depends(b"\0depends=\0name=kvm\0"), [""; 0]);
    assert_eq!(module_depends(b"nothing"), [""; 0]);
}
