use super::{LEN_MAX, Log, read};

fn folder(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("umbra-log-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn a_log_has_its_bounds_and_the_newest_bytes() {
    let folder = folder("bounds");
    assert!(read(&folder).is_err());
    let mut log = Log::start(&folder).unwrap();
    let lines: Vec<String> = (0..300_000).map(|n| format!("line {n}\n")).collect();
    for line in &lines {
        log.write(line.as_bytes());
    }
    let written = lines.concat().into_bytes();
    assert!(written.len() as u64 > 3 * LEN_MAX);
    let (all, _) = read(&folder).unwrap();
    assert!(written.ends_with(&all));
    assert!(all.len() as u64 > LEN_MAX && all.len() as u64 <= 2 * LEN_MAX, "{}", all.len());
    let files: u64 = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(files <= 2 * LEN_MAX);
    // The next life begins with an empty one.
    Log::start(&folder).unwrap().write(b"again");
    assert_eq!(read(&folder).unwrap().0, b"again");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn who_follows_gets_each_byte_once() {
    let folder = folder("follow");
    let mut log = Log::start(&folder).unwrap();
    log.write(b"first ");
    let (mut all, mut follower) = read(&folder).unwrap();
    let mut written = b"first ".to_vec();
    for number in 0..5000 {
        let line = format!("{number} {}\n", "x".repeat(500));
        log.write(line.as_bytes());
        written.extend_from_slice(line.as_bytes());
        if number % 3 == 0 {
            follower.more(&mut all).unwrap();
        }
    }
    follower.more(&mut all).unwrap();
    assert!(written.len() as u64 > 2 * LEN_MAX);
    assert_eq!(all, written);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_log_without_a_folder_stops_nobody() {
    let folder = folder("gone");
    let mut log = Log::start(&folder).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    for _ in 0..3 * LEN_MAX / 4096 {
        log.write(&[0; 4096]);
    }
}
