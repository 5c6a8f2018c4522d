use std::io::Read;

/// What the jailed child tries; each line of its answer must be a refusal.
fn try_everything() -> String {
    let opened = std::fs::File::open("/etc/passwd").is_ok();
    let connected = std::os::unix::net::UnixStream::connect("/dev/null").err().map(|e| e.raw_os_error());
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").is_ok();
    let program = std::process::Command::new("/bin/true").status().is_ok();
    let thread = std::thread::spawn(|| std::fs::read("/proc/self/maps").is_ok()).join().unwrap_or(true);
    format!("{opened} {connected:?} {socket} {program} {thread}")
}

#[test]
fn a_jailed_process_reaches_nothing() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the child only runs the closure's code and ends by `_exit`; the parent only reads and waits.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        use std::io::Write;
        let text = match crate::enter() {
            Ok(_) => try_everything(),
            Err(e) => format!("not jailed: {e}"),
        };
        let ok = (&writer).write_all(text.as_bytes()).is_ok();
        // SAFETY: ends the child without running the test harness' destructors.
        unsafe { libc::_exit(i32::from(!ok)) };
    }
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let mut status = 0;
    // SAFETY: `pid` is our child and `status` a valid place for its status.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(text, "false Some(Some(1)) false false false");
    assert_eq!(status, 0);
}
