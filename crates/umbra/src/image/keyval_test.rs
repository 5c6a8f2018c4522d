use super::{asks_for_help, flatten, options, pairs};
use crate::image::json_read;

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
    let text = "{'driver': 'qcow2', 'file': {'filename': 'a', 'locking': false, 'n': [3, 'x']}, 'backing': null, 'y': null}";
    let flat = flatten(&json_read::read(text).unwrap()).unwrap();
    let expected = [
        ("backing", ""),
        ("driver", "qcow2"),
        ("file.filename", "a"),
        ("file.locking", "off"),
        ("file.n.0", "3"),
        ("file.n.1", "x"),
    ];
    assert_eq!(flat.iter().collect::<Vec<_>>(), expected);
    assert!(flatten(&json_read::read("[1]").unwrap()).is_err());
    let deep = format!("{}1{}", "{'a':".repeat(100), "}".repeat(100));
    assert!(flatten(&json_read::read(&deep).unwrap()).is_err());
    let numbers = json_read::read("{'driver': 5, 'file.filename': [], 'x': {}}").unwrap();
    let wrong = "Block format 'raw' does not support the option 'x'";
    assert_eq!(flatten(&numbers), Err(wrong.to_owned()));
}
