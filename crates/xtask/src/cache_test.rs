use super::{Scratch, remove_stale, unique};

#[test]
fn folders_of_processes_that_are_no_more_are_removed() {
    let scratch = Scratch::new().unwrap();
    // Greater than any process number that Linux gives.
    let stale = ["4194305-0", "4194399-17"];
    let kept = [unique(), "4194305".into(), "4194305-x".into(), "other".into()];
    for name in stale.iter().copied().chain(kept.iter().map(String::as_str)) {
        std::fs::create_dir(scratch.path().join(name)).unwrap();
    }
    remove_stale(scratch.path(), "");
    assert!(stale.iter().all(|name| !scratch.path().join(name).exists()));
    assert!(kept.iter().all(|name| scratch.path().join(name).exists()));
}
