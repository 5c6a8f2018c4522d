use super::{Json, Object, parse_relaxed};

#[test]
fn it_looks_like_that_of_qemu_img() {
    let value: Json = Object::default()
        .with("list", vec![Json::from(1u64), Json::from("a\"b\u{e9}\n")])
        .with("empty", Json::List(Vec::new()))
        .with_some("absent", None::<bool>)
        .with("map", Object::default().with("truth", true))
        .with("none", Object::default())
        .into();
    let text = "{\n    \"list\": [\n        1,\n        \"a\\\"b\\u00E9\\n\"\n    ],\n    \"empty\": [\n    ],\n    \
                \"map\": {\n        \"truth\": true\n    },\n    \"none\": {\n    }\n}";
    assert_eq!(value.pretty(), text);
    assert!(serde_json::from_str::<serde_json::Value>(text).is_ok());
}

#[test]
fn apostrophes_quote_too() {
    let value = parse_relaxed(r#"{'driver':'ra"w',"file":{"filename":"it's\\"}, 'x': 'it\'s'}"#).unwrap();
    assert_eq!(value["driver"], "ra\"w");
    assert_eq!(value["file"]["filename"], "it's\\");
    assert_eq!(value["x"], "it's");
    for wrong in ["{", "{'a':1", "{'a", "{a:1}", "'\\"] {
        assert!(parse_relaxed(wrong).is_err(), "{wrong}");
    }
}
