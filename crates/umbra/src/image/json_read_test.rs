use super::{Value, read};

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

#[test]
fn apostrophes_quote_too() {
    let value = read(r#" {'driver':'ra"w',"file":{"filename":"it's\\"}, 'x': 'it\'s'}"#).unwrap();
    let Value::Map(members) = value else { panic!("no object") };
    let file = Value::Map(vec![("filename".to_owned(), text("it's\\"))]);
    let expected = [("driver", text("ra\"w")), ("file", file), ("x", text("it's"))];
    assert_eq!(members, expected.map(|(name, value)| (name.to_owned(), value)));
}

#[test]
fn all_kinds_of_values() {
    let list =
        read(r#"[null, true, false, 0, -5, 1.5e-3, "\u0041\ud83d\ude00\/\b\f\n\r\t", [], {}]"#).unwrap();
    let number = |text: &str| Value::Number(text.to_owned());
    let expected = vec![
        Value::Null,
        Value::Bool(true),
        Value::Bool(false),
        number("0"),
        number("-5"),
        number("1.5e-3"),
        text("A\u{1f600}/\u{8}\u{c}\n\r\t"),
        Value::List(Vec::new()),
        Value::Map(Vec::new()),
    ];
    assert_eq!(list, Value::List(expected));
}

#[test]
fn mistakes_are_told_in_known_words() {
    for (json, message) in [
        ("", "Expecting a JSON value"),
        ("1 2", "Expecting at most one JSON value"),
        ("{", "JSON parse error, premature EOI"),
        ("{'a'", "JSON parse error, premature EOI"),
        ("{'a':1", "JSON parse error, premature EOI"),
        ("{'a", "JSON parse error, stray ''a'"),
        ("'\\", "JSON parse error, stray ''\\'"),
        ("{a:1}", "JSON parse error, invalid keyword 'a'"),
        ("{5:1}", "JSON parse error, key is not a string in object"),
        ("{'a'}", "JSON parse error, missing : in object pair"),
        ("{'a':}", "JSON parse error, expecting value"),
        ("{'a':1,}", "JSON parse error, expecting value"),
        ("{'a':1 'b':2}", "JSON parse error, expected separator in dict"),
        ("[1 2]", "JSON parse error, expected separator in list"),
        ("{'a':1,'a':1}", "JSON parse error, duplicate key"),
        ("]", "JSON parse error, expecting value"),
        ("01", "JSON parse error, stray '01'"),
        ("-x", "JSON parse error, stray '-x'"),
        ("[1.]", "JSON parse error, stray '1.]'"),
        ("1e+", "JSON parse error, stray '1e+'"),
        ("'\\x'", "JSON parse error, invalid escape sequence in string"),
        ("'\\u12'", "JSON parse error, \\u12 is not a valid Unicode character"),
        ("'\\ud800x'", "JSON parse error, \\ud800 is not a valid Unicode character"),
        ("'\\uffff'", "JSON parse error, \\uffff is not a valid Unicode character"),
        ("'\u{ffff}'", "JSON parse error, invalid UTF-8 sequence in string"),
        ("é", "JSON parse error, stray 'é'"),
    ] {
        assert_eq!(read(json), Err(message.to_owned()), "{json}");
    }
    let deep = "[".repeat(5000);
    assert_eq!(read(&deep), Err("JSON nesting depth limit exceeded".to_owned()));
}

#[test]
fn any_text_is_read_or_refused() {
    let pieces = [
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "'",
        "\"",
        "\\",
        "\\u",
        "\\ud800",
        "dc00",
        "-",
        "0",
        "1",
        ".",
        "e",
        "null",
        "a",
        "é",
        "\u{1f600}",
        "\n",
        " ",
    ];
    let mut word = 0x9e37_79b9_7f4a_7c15u64;
    let mut read_some = 0;
    for _ in 0..50_000 {
        let mut text = String::new();
        for _ in 0..word % 12 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push_str(pieces[(word >> 33) as usize % pieces.len()]);
        }
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        read_some += u32::from(read(&text).is_ok());
    }
    assert!(read_some > 100, "{read_some}");
}
