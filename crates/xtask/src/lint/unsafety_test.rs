//! Planted `unsafe` without a reason, in the wrong crate, in macros; and the forms that are fine.

use std::path::Path;

use super::unsafety::{check, check_root};

fn lines(path: &str, text: &str) -> Vec<usize> {
    check(Path::new(path), text).iter().map(|finding| finding.line).collect()
}

const MEMORY: &str = "crates/memory/src/lib.rs";

#[test]
fn a_block_without_a_reason_is_found() {
    assert_eq!(lines(MEMORY, "fn f() {\n    unsafe { g() };\n}\n"), [2]);
    assert_eq!(lines(MEMORY, "// SAFETY:\nunsafe impl Send for S {}\n"), [2], "an empty reason is none");
    assert_eq!(lines(MEMORY, "// SAFETY: far away from it\n\nunsafe impl Send for S {}\n"), [3]);
    assert_eq!(
        lines(MEMORY, "fn f() {\n    let s = \"SAFETY: no comment at all\"; unsafe { g(s) };\n}\n"),
        [2]
    );
}

#[test]
fn reasons_above_the_block_the_statement_or_an_attribute_count() {
    for text in [
        "fn f() {\n    // SAFETY: the pointer is from above.\n    unsafe { g() };\n}\n",
        "fn f() {\n    // SAFETY: the pointer is from above.\n    let x =\n        h(unsafe { g() });\n}\n",
        "// SAFETY: no interior pointers here,\n// and so on.\n#[cfg(x)]\nunsafe impl Send for S {}\n",
        "fn f() { /* SAFETY: the pointer is good */ unsafe { g() } }\n",
        "fn f() {\n    a();\n    // SAFETY: the pointer is from above.\n    assert_eq!(unsafe { g() }, 1);\n}\n",
    ] {
        assert_eq!(lines(MEMORY, text), [0; 0], "{text}");
    }
}

#[test]
fn a_reason_for_the_statement_before_does_not_serve_the_next() {
    let text =
        "fn f() {\n    // SAFETY: the pointer is from above.\n    unsafe { g() };\n    unsafe { h() };\n}\n";
    assert_eq!(lines(MEMORY, text), [4]);
}

#[test]
fn macros_are_read_too() {
    assert_eq!(lines(MEMORY, "macro_rules! m { () => {\n unsafe { g() }\n}; }\n"), [2]);
    assert_eq!(lines(MEMORY, "fn f() {\n    println!(\"{}\",\n        unsafe { g() });\n}\n"), [3]);
}

#[test]
fn words_in_comments_strings_and_signatures_are_no_blocks() {
    let text =
        "// unsafe { }\nfn f() { let s = \"unsafe { }\"; }\n/// # Safety\n/// x\npub unsafe fn g() {}\n";
    assert_eq!(lines(MEMORY, text), [0; 0]);
}

#[test]
fn other_crates_may_not_even_with_a_reason() {
    let text = "// SAFETY: a fine reason it is.\nunsafe impl Send for S {}\n";
    assert_eq!(lines("crates/pci/src/lib.rs", text), [2]);
    assert_eq!(lines("crates/block/src/lib.rs", text), [2], "block may only in its I/O module");
    assert_eq!(lines("crates/block/src/io/uring.rs", text), [0; 0]);
    assert_eq!(lines(MEMORY, text), [0; 0]);
}

#[test]
fn roots_outside_the_list_forbid() {
    assert!(check_root(Path::new("crates/pci/src/lib.rs"), "//! PCI.\n").is_some());
    assert!(check_root(Path::new("crates/pci/src/lib.rs"), "//! PCI.\n#![forbid(unsafe_code)]\n").is_none());
    assert!(check_root(Path::new("crates/pci/src/lib.rs"), "// #![forbid(unsafe_code)]\n").is_some());
    assert!(check_root(Path::new(MEMORY), "//! Memory.\n").is_none());
}
