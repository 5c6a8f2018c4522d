//! Tests of recipes and of what machines are told.

use super::machine::public_keys;
use super::recipe::{Recipe, Source, matches};

#[test]
fn recipes_of_the_program_are_in_order() {
    let all = Recipe::built_in().unwrap();
    let names: Vec<&str> = all.iter().map(|recipe| recipe.name.as_str()).collect();
    assert_eq!(names, ["debian", "alpine"]);
    for recipe in &all {
        assert!(recipe.source().is_ok() && recipe.bytes().unwrap() >= 1 << 30 && !recipe.about.is_empty());
        assert_eq!(&Recipe::find(&recipe.name).unwrap(), recipe);
    }
    assert!(all[0].packages.iter().any(|package| package == "busybox-static"), "the initramfs needs it");
}

#[test]
fn sources_are_recipes_too() {
    let recipe = Recipe::find("file:/tmp/root.tar.gz").unwrap();
    assert_eq!(recipe.name, "root");
    assert_eq!(recipe.source().unwrap(), Source::File("/tmp/root.tar.gz".as_ref()));
    assert_eq!(Recipe::find("apt:trixie").unwrap().source().unwrap(), Source::Apt("trixie"));
    let told = |text: &str| Recipe::find(text).unwrap_err().to_string();
    assert!(told("https://example.invalid/root.tar").contains("sha256"));
    assert!(told("apt:--option").contains("no source") && told("pypi:a b").contains("no source"));
    assert!(told("nothing").contains("debian and alpine"));
    assert!(told("file:/").contains("cannot be the name"));
}

#[test]
fn patterns_have_stars() {
    assert!(matches("alpine-*-amd64.qcow2", "alpine-3.23-amd64.qcow2"));
    assert!(!matches("alpine-*-amd64.qcow2", "alpine-3.23-arm64.qcow2"));
    assert!(
        matches("same", "same")
            && !matches("same", "same2")
            && matches("*", "")
            && matches("a*b*c", "aXbYbZc")
    );
    assert!(!matches("a*a", "a"));
}

#[test]
fn public_keys_are_found_and_private_ones_are_not() {
    let text = "# a comment\nssh-ed25519 AAAAC3Nz me@here\n\necdsa-sha2-nistp256 AAAAE2Vj\n-----BEGIN OPENSSH PRIVATE KEY-----\nssh-rsa\n";
    assert_eq!(public_keys(text), ["ssh-ed25519 AAAAC3Nz me@here", "ecdsa-sha2-nistp256 AAAAE2Vj"]);
}
