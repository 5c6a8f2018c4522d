//! What is wrong before a machine runs: one clear sentence, an exit code that is not zero, nothing left behind.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::tiny::{Code, console};
use common::{Home, accel, one_sentence, text};

fn power_off() -> Vec<u8> {
    Code::new().power_off().kernel()
}

#[test]
fn a_kernel_that_cannot_be_read_is_named() {
    let home = Home::new();
    home.refuse(&["run", "--kernel", "absent"], &["cannot read the kernel absent", "No such file"]);
    home.refuse(&["run", "--kernel", "."], &["the kernel . is not a file"]);
    home.refuse(&["run", "--kernel", "/dev/null"], &["the kernel /dev/null is not a file"]);
    let kernel = home.file("kernel", &power_off());
    home.refuse(&["run", "--kernel", &kernel, "--initrd", "absent"], &["cannot read the initrd absent"]);
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    let home = Home::new();
    home.refuse_kernel(b"#!/bin/sh\necho no kernel\n", &[], &["not a Linux kernel"]);
    home.refuse_kernel(b"", &[], &["not a Linux kernel", "empty"]);
    home.refuse_kernel(&[0; 4096], &[], &["not a Linux kernel"]);
    let mut for_32_bits = power_off();
    for_32_bits[4] = 1;
    home.refuse_kernel(&for_32_bits, &[], &["not a kernel for x86-64", "32-bit"]);
    home.refuse_kernel(&Code::new().power_off().kernel_without_entry(), &[], &["no PVH entry point"]);
    home.refuse_kernel(&power_off(), &["--boot-protocol", "linux64"], &["boot it by PVH"]);
}

#[test]
fn a_kernel_that_was_cut_anywhere_is_refused() {
    let home = Home::new();
    let kernel = console();
    for len in (1..kernel.len()).step_by(kernel.len() / 12) {
        home.refuse_kernel(&kernel[..len], &[], &[]);
    }
    home.refuse_kernel(&kernel[..kernel.len() - 1], &[], &["truncated", "fetch it again"]);
}

#[test]
fn a_bzimage_that_was_cut_is_refused() {
    let home = Home::new();
    // A setup header (Linux, Documentation/arch/x86/boot.rst) that promises 1 MiB of code.
    let mut image = vec![0; 0x800];
    image[0x1f1] = 1;
    image[0x1f4..0x1f8].copy_from_slice(&0x1_0000u32.to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1;
    home.refuse_kernel(&image, &[], &["truncated"]);
    image[0x206..0x208].copy_from_slice(&0x201u16.to_le_bytes());
    home.refuse_kernel(&image, &[], &["boot protocol"]);
}

#[test]
fn memory_that_is_too_small_says_how_much_is_needed() {
    let home = Home::new();
    let large = Code::new().power_off().kernel_of_size(40 << 20);
    home.refuse_kernel(&large, &[], &["the kernel needs at least 41 MiB", "16 MiB"]);
    let initrd = home.file("initrd", &vec![1; 20 << 20]);
    home.refuse_kernel(
        &power_off(),
        &["--initrd", &initrd],
        &["the kernel with its initrd needs at least", "16 MiB"],
    );
    let empty = home.file("empty", b"");
    home.refuse_kernel(&power_off(), &["--initrd", &empty], &["the initrd is empty"]);
}

/// Runs `kernel` with these options alone.
fn run_with<'a>(kernel: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--accel", "soft", "--quiet", "--kernel", kernel], more].concat()
}

#[test]
fn sizes_and_counts_have_limits() {
    let home = Home::new();
    let kernel = home.file("kernel", &power_off());
    for count in ["0", "255", "1000"] {
        home.refuse(&run_with(&kernel, &["--cpus", count]), &[count, "1 to 254"]);
    }
    for count in ["-1", "many", "4294967296"] {
        home.refuse(&run_with(&kernel, &[&format!("--cpus={count}")]), &[count]);
    }
    home.refuse(&run_with(&kernel, &["--memory", "8M"]), &["8 MiB is too small", "16M"]);
    home.refuse(&run_with(&kernel, &["--memory", "16777215G"]), &["memory"]);
    for size in ["0M", "1", "1K", "G", "-1G", "99999999999999999999G", "17179869184G"] {
        home.refuse(&run_with(&kernel, &[&format!("--memory={size}")]), &[size, "512M"]);
    }
    let long = "x".repeat(100_000);
    home.refuse(&run_with(&kernel, &["--append", &long]), &["command line has 100000 bytes", "more than"]);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let home = Home::new();
    let initrd = home.file("initrd", b"x");
    home.refuse(&["run", "--initrd", &initrd], &["--kernel"]);
    home.refuse(&["restore", "saved", "--initrd", &initrd], &["--kernel"]);
    home.refuse(&["run", "--accel", "xen"], &["xen", "auto", "kvm", "soft"]);
    home.refuse(&["run", "--cpu-model", "z80"], &["z80", "host", "portable"]);
    home.refuse(&["run", "--boot-protocol", "bios"], &["bios", "pvh"]);
    home.refuse(&["run", "--kernel", "a", "--kernel", "b"], &["--kernel"]);
    home.refuse(&["run", "--no-such-option"], &["--no-such-option"]);
    home.refuse(&["fly"], &["fly"]);
    home.refuse(&["save", "web"], &["FILE"]);
    for name in ["", ".", "../x", "a/b", "-x", &"x".repeat(64)] {
        home.refuse(&["run", &format!("--name={name}")], &["a name has 1 to 63 letters"]);
    }
    let nothing = home.end(&[]);
    assert_eq!(nothing.status.code(), Some(2));
}

#[test]
fn help_tells_the_exit_codes_and_keys() {
    let home = Home::new();
    for command in ["run", "restore"] {
        let help = home.succeed(&[command, "--help"]);
        for words in [
            "0  the guest",
            "3  the guest",
            "4  triple",
            "5  internal",
            "Ctrl-A x",
            "--no-reboot",
            "--events",
        ] {
            assert!(help.contains(words), "{command} --help lacks {words:?}");
        }
    }
    assert!(home.succeed(&["--version"]).starts_with("umbra "));
    assert!(!home.succeed(&["--help"]).contains("worker"), "what the user shall not call is not shown");
}

#[test]
fn machines_that_are_not_there_are_named() {
    let home = Home::new();
    assert_eq!(home.succeed(&["ls"]).lines().count(), 1, "the heading alone");
    assert_eq!(home.succeed(&["ls", "--json"]).trim(), "[]");
    for command in ["pause", "resume", "stop"] {
        home.refuse(&[command, "web"], &["no machine named `web` is running", "umbra ls"]);
    }
    home.refuse(&["stop", "--force", "web"], &["no machine named `web` is running"]);
    home.refuse(&["save", "web", "saved"], &["no machine named `web` is running"]);
    assert!(!home.path("saved").exists());
}

#[test]
fn an_events_file_that_cannot_be_written_is_named() {
    let home = Home::new();
    let kernel = home.file("kernel", &power_off());
    let arguments = home.run_arguments("soft", &kernel, &["--events", "no-such-folder/events"]);
    home.refuse(&arguments, &["cannot write the events file no-such-folder/events"]);
}

#[test]
fn a_folder_of_control_sockets_that_others_can_write_to_is_refused() {
    let home = Home::new();
    std::fs::create_dir(home.sockets()).unwrap();
    std::fs::set_permissions(home.sockets(), PermissionsExt::from_mode(0o777)).unwrap();
    home.refuse(&["ls"], &["is not a folder that only you can write to"]);
    let kernel = home.file("kernel", &power_off());
    home.refuse(&home.run_arguments("soft", &kernel, &[]), &["is not a folder that only you can write to"]);
}

#[test]
fn a_socket_path_that_is_too_long_is_refused() {
    let home = Home::new();
    let deep = home.path(&"d".repeat(90));
    std::fs::create_dir(&deep).unwrap();
    let kernel = home.file("kernel", &power_off());
    let mut command = home.umbra(&home.run_arguments("soft", &kernel, &["--name", &"n".repeat(63)]));
    let output = command.env("XDG_RUNTIME_DIR", &deep).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    one_sentence(&said);
    assert!(said.contains("too long for a socket"), "{said}");
}

#[test]
fn the_worker_is_nothing_to_call_by_hand() {
    let home = Home::new();
    let output = home.end(&["worker", "1"]);
    assert_eq!(output.status.code(), Some(1));
    one_sentence(&text(&output.stderr));
}

#[test]
fn the_engine_is_named_with_a_reason() {
    let home = Home::new();
    let kernel = home.file("kernel", &power_off());
    let output =
        home.end(&["run", "--accel", &accel(), "--memory", "16M", "--name", "web", "--kernel", &kernel]);
    assert_eq!(text(&output.stderr), format!("umbra: web runs on the {} engine: asked for\n", accel()));
    let output = home.end(&["run", "--memory", "16M", "--name", "web", "--kernel", &kernel]);
    assert!(output.status.success(), "auto always finds an engine: {output:?}");
    let said = text(&output.stderr);
    one_sentence(&said);
    assert!(
        said.starts_with("umbra: web runs on the kvm engine: ")
            || said.starts_with("umbra: web runs on the soft engine: ")
    );
}

#[test]
fn kvm_that_is_asked_for_runs_or_says_what_is_missing() {
    let home = Home::new();
    let kernel = home.file("kernel", &power_off());
    let arguments = home.run_arguments("kvm", &kernel, &[]);
    let output = home.end(&arguments);
    match output.status.code() {
        Some(0) => assert_eq!(text(&output.stderr), ""),
        _ => drop(home.refuse(&arguments, &["--accel soft"])),
    }
}

/// Runs a command line of the shell in its own mount namespace with an empty /dev; false if this host does not let us.
fn with_own_dev(home: &Home, prepare: &str) -> Option<(Option<i32>, String)> {
    let kernel = home.file("kernel", &power_off());
    let allowed = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/dev"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this host does not allow a mount namespace");
        return None;
    }
    let script = format!("exec 3>/dev/null && {{ {prepare}; }} >&3 2>&1 && exec \"$@\"");
    let mut all = vec!["-rm", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_umbra")];
    let arguments = home.run_arguments("kvm", &kernel, &[]);
    all.extend(arguments);
    let output = home.at_home("unshare", &all).output().unwrap();
    Some((output.status.code(), text(&output.stderr)))
}

#[test]
fn a_host_without_kvm_says_what_to_do() {
    let home = Home::new();
    let Some((code, said)) = with_own_dev(&home, "mount -t tmpfs none /dev") else { return };
    assert_eq!(code, Some(1), "{said}");
    one_sentence(&said);
    assert!(said.contains("/dev/kvm") && said.contains("--accel soft"), "{said}");
}

#[test]
fn a_dev_kvm_that_is_something_else_is_told() {
    let home = Home::new();
    let prepare = "mount -t tmpfs none /dev && : > /dev/kvm";
    let Some((code, said)) = with_own_dev(&home, prepare) else { return };
    assert_eq!(code, Some(1), "{said}");
    one_sentence(&said);
    assert!(said.contains("/dev/kvm") && said.contains("--accel soft"), "{said}");
}
