use crate::fuzz::{choose, done};

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

#[test]
fn targets_are_all_or_those_that_are_named() {
    let known = names(&["a", "b", "c"]);
    assert_eq!(choose(known.clone(), &[]).unwrap(), known);
    assert_eq!(choose(known.clone(), &names(&["c", "a"])).unwrap(), names(&["c", "a"]));
    let error = choose(known, &names(&["a", "d"])).unwrap_err().to_string();
    assert!(error.contains("`d`") && error.contains("a, b, c"), "{error}");
    assert!(choose(Vec::new(), &[]).is_err(), "nothing fuzzed is no success");
}

#[test]
fn a_run_counts_only_if_it_came_to_its_end_and_tried_something() {
    let log = "#2 INITED cov: 1\n#9 NEW cov: 2\nDone 8437 runs in 13 second(s)\n";
    assert_eq!(done(log).unwrap(), "    8437 runs in 13 s");
    assert_eq!(done("#2 INITED cov: 1\n==1== ERROR: libFuzzer: deadly signal\n"), None);
    assert_eq!(done("Done 0 runs in 0 second(s)\n"), None);
}
