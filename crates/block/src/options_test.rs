//! Options in the user's words.

use super::{Options, Preallocation, parse_size};

#[test]
fn sizes_are_qemus() {
    for (text, size) in [
        ("0", Some(0)),
        ("512", Some(512)),
        ("512b", Some(512)),
        ("1k", Some(1024)),
        ("1.5M", Some(3 << 19)),
        ("2T", Some(2 << 40)),
        ("0x200", Some(512)),
        ("15E", Some(15 << 60)),
        ("16E", None),
        ("1.5", None),
        ("-1", None),
        ("", None),
        ("1kk", None),
        ("k", None),
        ("1.", None),
        ("99999999999999999999", None),
    ] {
        assert_eq!(parse_size(text), size, "{text}");
    }
}

#[test]
fn what_is_left_over_is_an_error() {
    let mut options: Options =
        [("a", "on"), ("b.c", "4k"), ("b.d", "x"), ("e", "maybe")].into_iter().collect();
    assert_eq!(options.take_bool("a").unwrap(), Some(true));
    let mut inner = options.take_prefixed("b.");
    assert_eq!(inner.take_size("c").unwrap(), Some(4096));
    assert_eq!(inner.take("d").as_deref(), Some("x"));
    inner.finish().unwrap();
    assert!(options.clone().finish().unwrap_err().to_string().contains("'e'"));
    assert!(options.take_bool("e").is_err());
    assert!(Preallocation::parse("some").is_err());
}
