//! What apt prints is read right: mirrors, simulations, the file of installed packages.

use super::apt::{Package, parse_simulation, parse_uris, sources, without_packages};

#[test]
fn mirrors_become_sources_with_backports() {
    let text = "'http://deb.example/debian/dists/bookworm/InRelease' deb.example_InRelease 0 \n\
        'http://deb.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' x 0 \n\
        'http://deb.example/debian/dists/bookworm-updates/InRelease' x 0 \n\
        'http://sec.example/debian-security/dists/bookworm-security/InRelease' x 0 \n\
        'http://other.example/apt/dists/nodistro/InRelease' x 0 \n";
    let list = sources(&parse_uris(text), "bookworm");
    let suites: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    assert_eq!(suites, ["bookworm", "bookworm-backports", "bookworm-security"]);
    assert!(!list.contains("other.example"), "{list}");
}

#[test]
fn simulations_name_packages_and_new_versions() {
    let text = "NOTE: This is only a simulation!\n\
        Inst libudev1 [252.38-1~deb12u1] (252.39-1~deb12u2 Debian:12.15/oldstable [amd64])\n\
        Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])\nConf seabios (1.16.2-1 Debian [all])\n";
    let package = |name: &str, version: &str| Package { name: name.into(), version: version.into() };
    assert_eq!(
        parse_simulation(text),
        [package("libudev1", "252.39-1~deb12u2"), package("seabios", "1.16.2-1")]
    );
}

#[test]
fn conflicting_packages_vanish_from_the_installed_ones() {
    let status = "Package: bash\nStatus: x\n\nPackage: qemu-utils\nStatus: x\nVersion: 10\n\nPackage: dash\n";
    assert_eq!(without_packages(status, &["qemu"]), "Package: bash\nStatus: x\n\nPackage: dash\n");
}
