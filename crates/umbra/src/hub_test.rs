use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{CLIENTS_MAX, Hub, QUEUE_MAX, RECENT_MAX, Reader};
use crate::log::{Log, read};

/// A guest, its hub, and the thread that passes its output to a log in this folder.
fn start(name: &str) -> (UnixStream, Arc<Hub>, JoinHandle<()>, std::path::PathBuf) {
    let folder = std::env::temp_dir().join(format!("umbra-hub-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (guest, theirs) = UnixStream::pair().unwrap();
    let hub = Arc::new(Hub::new(theirs));
    let (passing, log) = (hub.clone(), Log::start(&folder).unwrap());
    let thread = std::thread::spawn(move || passing.pass_output(Reader::Log(log)));
    (guest, hub, thread, folder)
}

fn attach(hub: &Arc<Hub>) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (hub, client) = (hub.clone(), hub.client().unwrap());
    std::thread::spawn(move || hub.serve(&client, theirs));
    ours
}

fn says(stream: &mut UnixStream, words: &str) {
    let mut got = vec![0; words.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(String::from_utf8_lossy(&got), words);
}

#[test]
fn all_clients_read_and_type() {
    let (mut guest, hub, thread, folder) = start("clients");
    guest.write_all(b"login: ").unwrap();
    let mut first = attach(&hub);
    says(&mut first, "login: ");
    let mut second = attach(&hub);
    says(&mut second, "login: ");
    first.write_all(b"ro").unwrap();
    says(&mut guest, "ro");
    second.write_all(b"ot\r").unwrap();
    says(&mut guest, "ot\r");
    guest.write_all(b"# ").unwrap();
    says(&mut first, "# ");
    says(&mut second, "# ");
    drop(first);
    guest.write_all(b"bye").unwrap();
    drop(guest);
    let mut rest = String::new();
    second.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "bye");
    thread.join().unwrap();
    assert!(hub.client().is_none(), "nobody comes after the end");
    assert_eq!(read(&folder).unwrap().0, b"login: # bye");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_client_that_does_not_read_stops_nobody() {
    let (mut guest, hub, thread, folder) = start("slow");
    let mut slow = attach(&hub);
    let mut quick = attach(&hub);
    let line = [b'.'; 1024];
    let lines = 4 * QUEUE_MAX / line.len();
    for _ in 0..lines {
        guest.write_all(&line).unwrap();
        // The quick one is never behind, however busy the machine is.
        quick.read_exact(&mut [0; 1024]).unwrap();
    }
    // The slow one wakes up: it gets what it was kept, learns of the gap, and then all again.
    let mut got = Vec::new();
    let mut bytes = [0; 4096];
    while !got.ends_with(b"bytes left out]\r\n") {
        let n = slow.read(&mut bytes).unwrap();
        assert!(n > 0);
        got.extend_from_slice(&bytes[..n]);
    }
    assert!(got.len() < lines * line.len());
    guest.write_all(b"end").unwrap();
    says(&mut slow, "end");
    says(&mut quick, "end");
    drop(guest);
    thread.join().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_client_that_never_reads_does_not_hold_up_the_end() {
    let (mut guest, hub, thread, folder) = start("dead");
    let _dead = attach(&hub);
    guest.write_all(&vec![b'x'; QUEUE_MAX]).unwrap();
    drop(guest);
    let begun = Instant::now();
    thread.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_new_client_sees_whole_lines_of_what_came_before() {
    let (mut guest, hub, thread, folder) = start("recent");
    for number in 0..1000 {
        guest.write_all(format!("line {number}\n").as_bytes()).unwrap();
    }
    guest.write_all(b"$").unwrap();
    let seen = || super::lock(&hub.state).recent.back() == Some(&b'$');
    while !seen() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut client = attach(&hub);
    drop(guest);
    let mut shown = String::new();
    client.read_to_string(&mut shown).unwrap();
    assert!(shown.starts_with("line ") && shown.ends_with("line 999\n$"), "{shown}");
    assert!(shown.len() <= RECENT_MAX && shown.len() > RECENT_MAX - 20);
    thread.join().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn there_is_room_for_so_many_and_again_when_they_leave() {
    let (guest, hub, thread, folder) = start("room");
    let all: Vec<_> = (0..CLIENTS_MAX).map(|_| attach(&hub)).collect();
    assert!(hub.client().is_none());
    drop(all);
    let begun = Instant::now();
    while hub.client().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "clients that left are still there");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(guest);
    thread.join().unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}
