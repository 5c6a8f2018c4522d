use super::{Json, Object};

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
