use super::{asks_for_help, flatten, options, pairs};

#[test]
fn commas_are_written_twice() {
    let list = pairs("a=1,b=x,,y,c,d=,e==").unwrap();
    let list: Vec<(&str, &str)> = list.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(list, [("a", "1"), ("b", "x,y"), ("c", "on"), ("d", ""), ("e", "=")]);
    assert!(pairs("=3").is_err());
    assert_eq!(options("a=1,a=2").unwrap().get("a"), Some("2"));
}

#[test]
fn help_is_asked_for_in_two_ways() {
    assert!(asks_for_help("help") && asks_for_help("?") && asks_for_help("size=1G,help"));
    assert!(!asks_for_help("helper=1"));
}

#[test]
fn json_becomes_dotted_names() {
    let value = serde_json::json!({"driver": "qcow2", "file": {"filename": "a", "locking": false, "n": [3, "x"]}, "backing": null});
    let flat = flatten(&value).unwrap();
    for (name, value) in [
        ("driver", "qcow2"),
        ("file.filename", "a"),
        ("file.locking", "off"),
        ("file.n.1", "x"),
        ("backing", ""),
    ] {
        assert_eq!(flat.get(name), Some(value), "{name}");
    }
    assert!(flatten(&serde_json::json!([1])).is_err());
    let mut deep = serde_json::json!(1);
    for _ in 0..100 {
        deep = serde_json::json!({ "a": deep });
    }
    assert!(flatten(&deep).is_err());
}
