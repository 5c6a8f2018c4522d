//! The host code of a list of blocks, kept in the tree so that a change of it is seen.
//!
//! `UMBRA_GOLDEN=write cargo test -p umbra-engine-soft golden` writes the file anew.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

use super::program::PROGRAMS;
use super::{guest, hex, translation};
use crate::exec::test::guest::CODE;
use crate::translate::validate;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/translate/test/golden.txt");

/// A program and its translation as text; `None` where this processor does not have its instructions.
fn section(name: &str, bits: u32, program: &str) -> Option<String> {
    let code = hex(program);
    let guest_code: Vec<_> = Decoder::with_ip(bits, &code, 0, DecoderOptions::NONE).iter().collect();
    let mut guest = guest(bits);
    if !guest_code.iter().all(|i| crate::native::offered(&guest.cpu, i)) {
        return None;
    }
    let (host, given) = translation(&mut guest, &code);
    let mut text = format!("# {name}, {bits} bits\n#\n");
    let mut formatter = IntelFormatter::new();
    for i in &guest_code {
        let mut line = String::new();
        formatter.format(i, &mut line);
        writeln!(text, "#   {line}").unwrap();
    }
    text.push_str(&validate::listing(&host, &given, None));
    Some(text)
}

/// The sections of a file.
fn sections(text: &str) -> Vec<&str> {
    text.split("\n\n").map(str::trim).filter(|s| !s.is_empty()).collect()
}

#[test]
fn golden() {
    assert_eq!(CODE % 4096, 0);
    let made: Vec<_> =
        PROGRAMS.iter().map(|(name, bits, code)| (*name, section(name, *bits, code))).collect();
    if std::env::var_os("UMBRA_GOLDEN").is_some_and(|v| v == "write") {
        let all: Vec<String> = made.into_iter().map(|(name, text)| text.expect(name)).collect();
        std::fs::write(FILE, all.join("\n")).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(FILE).unwrap();
    let kept = sections(&kept);
    assert_eq!(kept.len(), made.len(), "write {FILE} anew: see the head of this test");
    for ((name, made), kept) in made.iter().zip(kept) {
        let Some(made) = made.as_deref().map(str::trim) else { continue };
        let first = made.lines().zip(kept.lines()).find(|(made, kept)| made != kept);
        assert!(
            made == kept,
            "{name}: made and kept differ: {first:#?}; write the file anew if that is meant: see the head"
        );
    }
}
