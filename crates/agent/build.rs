//! Builds the program that runs in guests: without the standard library and without a C library, so that it is small, runs under
//! any Linux, and needs nothing that this host may lack. The compiler that builds this crate builds it too, in a second.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=guest");
    println!("cargo:rerun-if-changed=src/protocol.rs");
    let variable = |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let program = PathBuf::from(variable("OUT_DIR")).join("umbra-agent");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "umbra_agent"]);
    rustc.arg("--target").arg(variable("TARGET"));
    for option in [
        "opt-level=s",
        "panic=abort",
        "lto=fat",
        "codegen-units=1",
        "strip=symbols",
        "relocation-model=static",
        "target-feature=+crt-static",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-Wl,--build-id=none,--gc-sections",
    ] {
        rustc.args(["-C", option]);
    }
    rustc.arg("-o").arg(&program).arg("guest/main.rs");
    let status = rustc.status().expect("the compiler can be started");
    assert!(status.success(), "the guest's agent cannot be built: {rustc:?}");
}
