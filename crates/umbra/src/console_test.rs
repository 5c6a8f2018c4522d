use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::{Output, ROOM};

/// Tells the length of each write.
struct Writes(Sender<usize>);

impl Write for Writes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.len()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn bytes_come_in_order_and_all_of_them_before_the_end() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let output = Output::start(ours).unwrap();
    let mut console = output.console();
    let sent: Vec<u8> = (0..3 * ROOM).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).unwrap();
        assert!(got == expected);
    });
    sent.chunks(7).for_each(&mut console);
    drop(output);
    reader.join().unwrap();
}

#[test]
fn bytes_are_gathered() {
    let (writes, written) = channel();
    let output = Output::start(Writes(writes)).unwrap();
    let mut console = output.console();
    (0..1000).for_each(|_| console(b"x"));
    drop(output);
    let lengths: Vec<usize> = written.iter().collect();
    assert_eq!(lengths.iter().sum::<usize>(), 1000);
    assert!(lengths.len() < 500, "{lengths:?}");
}

#[test]
fn a_reader_that_has_gone_holds_nobody_up() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let output = Output::start(ours).unwrap();
    let mut console = output.console();
    let (done, finished) = channel();
    std::thread::spawn(move || {
        (0..4 * ROOM / 64).for_each(|_| console(&[0; 64]));
        done.send(())
    });
    finished.recv_timeout(Duration::from_secs(10)).expect("it does not wait");
    drop(output);
}
