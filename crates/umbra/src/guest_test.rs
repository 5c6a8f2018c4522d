//! Tests of what the guest's making reads and says.

use super::apt::{explain, parse_depends, parse_uris};
use super::deb::module_name;
use super::progress::line;

#[test]
fn the_kernel_behind_the_metapackage_is_found() {
    let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
    assert_eq!(parse_depends(text).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
    assert_eq!(parse_depends("linux-image-cloud-amd64\n  Depends: <linux-image-virtual>\n"), None);
    assert_eq!(parse_depends(""), None);
}

#[test]
fn uris_give_name_file_and_size() {
    let text = "'http://deb.example/b/busybox-static_1.35.0-4%2bb1_amd64.deb' busybox-static_1%3a1.35.0-4+b1_amd64.deb 928188 SHA256:3d3f\n\
                'http://deb.example/l.deb' linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb 26713492 SHA256:00\n\
                not a line of that kind\n\
                'http://deb.example/x' ../x_1_amd64.deb 5 SHA256:00\n";
    let [busybox, kernel] = &parse_uris(text)[..] else { panic!("two packages") };
    assert_eq!((busybox.name.as_str(), busybox.size), ("busybox-static", 928_188));
    assert_eq!(busybox.identity(), "busybox-static_1%3a1.35.0-4+b1");
    assert_eq!(kernel.file, "linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb");
}

#[test]
fn what_apt_says_becomes_what_to_do() {
    let says = |log: &str| explain(log).to_string();
    let old = says(
        "E: Failed to fetch http://deb.example/x.deb  404  Not Found [IP: 192.0.2.1 80]\nE: Failed to fetch some files",
    );
    assert!(old.contains("`sudo apt-get update`") && old.contains("404"), "{old}");
    assert!(
        says("E: Failed to fetch http://deb.example/x.deb  Temporary failure resolving 'deb.example'")
            .contains("network")
    );
    assert!(says("E: write - write (28: No space left on device)").contains("XDG_CACHE_HOME"));
    assert!(says("W: beside the point\nE: Something else").contains("\"Something else\""));
    assert!(says("").contains("apt-get"));
}

#[test]
fn modules_are_known_by_their_path() {
    let folder = "lib/modules/6.1.0-56-cloud-amd64/kernel/drivers/misc/pvpanic";
    assert_eq!(module_name(&format!("{folder}/pvpanic-mmio.ko")), Some("pvpanic-mmio"));
    assert_eq!(module_name(&format!("usr/{folder}/pvpanic.ko.xz")), Some("pvpanic"));
    assert_eq!(module_name(&format!("{folder}/pvpanic.ko.orig")), None);
    assert_eq!(module_name("boot/vmlinuz-6.1"), None);
}

#[test]
fn progress_is_bounded_by_the_whole() {
    assert_eq!(
        line("downloading x", 5_250_000, 10_000_000),
        "umbra: downloading x: 5.2 MB of 10.0 MB (52 %)"
    );
    assert_eq!(line("downloading x", 11, 10), "umbra: downloading x: 0.0 MB of 0.0 MB (100 %)");
    assert_eq!(line("downloading x", 0, 0), "umbra: downloading x: 0.0 MB of 0.0 MB (100 %)");
}
