use super::*;

/// Far more than any of this takes.
const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_client_that_sends_byte_by_byte_gains_no_time() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let drip = std::thread::spawn(move || {
        // Ends when the other side has gone.
        while theirs.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let began = Instant::now();
    let mut bytes = Vec::new();
    let ended = Deadline::new(&ours, Duration::from_millis(100)).read_to_end(&mut bytes);
    let kind = ended.unwrap_err().kind();
    assert!(matches!(kind, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{kind:?}");
    assert!(began.elapsed() < LONG);
    drop(ours);
    drip.join().unwrap();
}

#[test]
fn a_client_that_does_not_take_its_answer_is_left() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let began = Instant::now();
    let written = Deadline::new(&ours, Duration::from_millis(100)).write_all(&vec![0; 64 << 20]);
    let kind = written.unwrap_err().kind();
    assert!(matches!(kind, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{kind:?}");
    assert!(began.elapsed() < LONG);
}
