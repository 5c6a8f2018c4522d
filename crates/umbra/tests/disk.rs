//! Disks on the command line: which images a machine gets, what is refused and why, and that nobody else uses them meanwhile.

mod common;

use std::fs;

use common::process::Running;
use common::tiny::console;
use common::{Home, accel, one_sentence, text};

/// A home with a qcow2 image `disk.qcow2`, and a plain one of the same size.
fn home() -> Home {
    let home = Home::new();
    home.succeed(&["image", "create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]);
    home.file("disk.raw", &[0; 1 << 20]);
    home
}

fn start(home: &Home, name: &str, disks: &[&str]) -> Running {
    let words: Vec<&str> = disks.iter().flat_map(|disk| ["--disk", disk]).collect();
    let vm = home.start_kernel(&console(), name, &words);
    vm.says("ready");
    vm
}

fn refuse(home: &Home, disks: &[&str], words: &[&str]) {
    let more: Vec<&str> = disks.iter().flat_map(|disk| ["--disk", disk]).collect();
    home.refuse_kernel(&console(), &more, words);
}

fn ends(mut vm: Running) {
    vm.send(b"p");
    assert_eq!(vm.end().status.code(), Some(0));
}

#[test]
fn images_are_used_alone_and_closed_in_order() {
    let home = home();
    let vm = start(&home, "web", &["disk.qcow2", "disk.raw,format=raw,readonly=on"]);
    let kernel = home.path("kernel-web");
    let kernel = kernel.to_str().unwrap();
    let second = home.end(&home.run_arguments(&accel(), kernel, &["--disk", "disk.qcow2"]));
    assert!(text(&second.stderr).contains("'disk.qcow2' is in use"), "{second:?}");
    let output = home.end(&["image", "snapshot", "-c", "s", "disk.qcow2"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // What is only read is read by others.
    ends(start(&home, "other", &["disk.raw,format=raw,readonly=on"]));
    ends(vm);
    home.succeed(&["image", "check", "disk.qcow2"]);
    ends(start(&home, "web", &["disk.qcow2"]));
}

#[test]
fn the_same_image_twice_is_refused() {
    refuse(&home(), &["disk.qcow2", "disk.qcow2"], &["disk.qcow2", "lock"]);
}

#[test]
fn what_is_no_image_is_refused_with_what_to_do() {
    let home = home();
    refuse(&home, &["missing.qcow2"], &["missing.qcow2", "No such file"]);
    refuse(&home, &["disk.raw"], &["--disk disk.raw,format=raw"]);
    refuse(&home, &["disk.raw,format=qcow2"], &["disk.raw"]);
    refuse(&home, &["disk.qcow2,format=fancy"], &["fancy"]);
    refuse(&home, &["disk.qcow2,if=ide"], &["if=virtio"]);
    refuse(&home, &["disk.qcow2,serial=two words"], &["serial"]);
    refuse(&home, &["/dev/null"], &["/dev/null"]);
    refuse(&home, &["nbd://localhost/x"], &["nbd://localhost/x"]);
    refuse(&home, &["disk.qcow2"; 24], &["23 devices"]);
}

#[test]
fn a_chain_is_found_from_wherever_it_is_named() {
    let home = home();
    fs::create_dir(home.path("over")).unwrap();
    let create = |name: &str, base: &str, format: &str| {
        home.succeed(&["image", "create", "-q", "-f", "qcow2", "-b", base, "-F", format, name]);
    };
    create("over/one.qcow2", "../disk.raw", "raw");
    create("over/two.qcow2", "one.qcow2", "qcow2");
    ends(start(&home, "web", &["over/two.qcow2"]));
    fs::remove_file(home.path("disk.raw")).unwrap();
    refuse(&home, &["over/two.qcow2"], &["disk.raw", "No such file"]);
}

#[test]
fn an_image_makes_nobody_write_elsewhere() {
    let home = home();
    fs::create_dir(home.path("elsewhere")).unwrap();
    let outside = home.file("mine", &[7; 1 << 20]);
    // Its data are in a file that somebody else has, in another folder.
    let image = home.path("elsewhere/image.qcow2");
    home.succeed(&[
        "image",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=data,data_file_raw=on",
        "i.qcow2",
        "1M",
    ]);
    fs::rename(home.path("i.qcow2"), &image).unwrap();
    fs::remove_file(home.path("data")).unwrap();
    fs::rename(&outside, home.path("data")).unwrap();
    let named = image.to_str().unwrap();
    refuse(&home, &[named], &["data", "in the folder of the image"]);
    // Reading is another matter.
    ends(start(&home, "web", &[&format!("{named},readonly=on")]));
    assert_eq!(fs::read(home.path("data")).unwrap(), [7; 1 << 20]);
}

#[test]
fn a_saved_machine_takes_the_images_that_it_is_given() {
    let home = home();
    let vm = start(&home, "web", &["disk.qcow2,serial=one", "disk.raw,format=raw,readonly=on"]);
    home.succeed(&["save", "web", "saved"]);
    assert_eq!(vm.end().status.code(), Some(0));
    let accel = accel();
    let restore = |more: &[&str]| {
        let words = [&["restore", "saved", "--quiet", "--accel", accel.as_str()], more].concat();
        Running::start(home.umbra(&words))
    };
    for (more, word) in [
        (&[][..], "2 disks (disk.qcow2, disk.raw)"),
        (&["--disk", "disk.qcow2"], "1 were given"),
        (&["--disk", "disk.raw,format=raw", "--disk", "disk.qcow2,serial=x"], "serial"),
        (&["--disk", "disk.qcow2,readonly=on", "--disk", "disk.raw,format=raw"], "writable"),
    ] {
        let output = restore(more).end();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        one_sentence(&said);
        assert!(said.contains(word), "{said}");
    }
    fs::rename(home.path("disk.qcow2"), home.path("moved.qcow2")).unwrap();
    let disks = ["--disk", "moved.qcow2", "--disk", "disk.raw,format=raw"];
    let mut vm = restore(&disks);
    vm.send(b"c");
    vm.says("aA");
    ends(vm);
    home.nothing_left();
}
