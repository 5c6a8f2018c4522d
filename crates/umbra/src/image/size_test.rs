use super::{SizeError, human, parse, parse_unit};

#[test]
fn sizes_are_read() {
    for (text, bytes) in [
        ("0", 0),
        ("1000", 1000),
        ("1k", 1024),
        ("1K", 1024),
        ("1.5G", 3 << 29),
        ("2E", 2 << 60),
        ("0x10", 16),
        ("1b", 1),
        ("512B", 512),
        ("1.0", 1),
        (".5k", 512),
        ("18446744073709551615", u64::MAX),
    ] {
        assert_eq!(parse(text), Ok(bytes), "{text}");
    }
    assert_eq!(parse_unit("3", 1 << 20), Ok(3 << 20));
    assert_eq!(parse_unit("3k", 1 << 20), Ok(3 << 10));
}

#[test]
fn what_is_no_size_is_refused() {
    for text in ["", "k", "10Q", "1kk", "1.5", "0x", "0x1k", "1 k", "ten", "-", "."] {
        assert_eq!(parse(text), Err(SizeError::Malformed), "{text}");
    }
    for text in ["-1", "99999999999999999999", "16E", "18446744073709551615k"] {
        assert_eq!(parse(text), Err(SizeError::Range), "{text}");
    }
}

#[test]
fn sizes_for_people_have_three_digits() {
    for (bytes, text) in [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (1024, "1 KiB"),
        (12_800, "12.5 KiB"),
        (197_120, "192 KiB"),
        (1_380_352, "1.32 MiB"),
        (1_441_792, "1.38 MiB"),
        (1 << 30, "1 GiB"),
        (1_074_790_400, "1 GiB"),
        (10_514_432, "10 MiB"),
        (1_023_590, "1e+03 KiB"),
        (u64::MAX, "16 EiB"),
    ] {
        assert_eq!(human(bytes), text, "{bytes}");
    }
}
