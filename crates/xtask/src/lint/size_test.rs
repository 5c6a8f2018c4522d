//! Planted long files and functions are found, at the right line; short ones are left alone.

use std::path::Path;

use super::size::{FILE_LINES_MAX, FUNCTION_LINES_MAX, check};

fn function_of(lines: usize) -> String {
    format!("/// Doc.\nfn long() {{\n{}}}\n", "    step();\n".repeat(lines))
}

#[test]
fn a_function_at_the_limit_passes_and_one_above_is_named_with_its_line() {
    let path = Path::new("crates/x/src/lib.rs");
    assert_eq!(check(path, &function_of(FUNCTION_LINES_MAX)), []);
    let findings = check(path, &function_of(FUNCTION_LINES_MAX + 1));
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].line, 2);
    assert!(findings[0].what.contains("`long` has 71 lines"), "{}", findings[0]);
}

#[test]
fn comments_and_blank_lines_are_free() {
    let body = "    step();\n\n    // why\n".repeat(FUNCTION_LINES_MAX);
    assert_eq!(check(Path::new("a.rs"), &format!("fn f() {{\n{body}}}\n")), []);
}

#[test]
fn methods_and_default_methods_and_nested_functions_are_measured() {
    let long = "step();\n".repeat(FUNCTION_LINES_MAX + 1);
    for text in [
        format!("impl S {{ fn f(&self) {{\n{long}}} }}"),
        format!("trait T {{ fn f(&self) {{\n{long}}} }}"),
        format!("mod m {{ fn f() {{\n{long}}} }}"),
    ] {
        assert_eq!(check(Path::new("a.rs"), &text).len(), 1, "{text}");
    }
    let nested = format!("fn outer() {{\nfn inner() {{\n{long}}}\n}}");
    assert_eq!(check(Path::new("a.rs"), &nested).len(), 2);
}

#[test]
fn a_long_file_is_found() {
    let text = "// line\n".repeat(FILE_LINES_MAX);
    assert_eq!(check(Path::new("a.rs"), &text), []);
    let findings = check(Path::new("a.rs"), &(text + "// one more\n"));
    assert_eq!(findings.len(), 1);
    assert!(findings[0].what.contains("1001 lines"));
}

#[test]
fn a_file_that_is_no_rust_is_a_finding() {
    let findings = check(Path::new("a.rs"), "fn broken( {\n");
    assert_eq!(findings.len(), 1);
    assert!(findings[0].what.contains("cannot be parsed"));
}
