//! The socket device under any driver: the host's side takes every connection, says something and listens a while.
#![no_main]

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use umbra_virtio::vsock::{Host, Outside, Vsock};

/// Keeps the last few connections.
#[derive(Default)]
struct Servers(std::collections::VecDeque<UnixStream>);

impl Outside for Servers {
    fn connect(&mut self, port: u32) -> io::Result<OwnedFd> {
        if port & 3 == 3 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (mut ours, theirs) = UnixStream::pair()?;
        ours.write_all(b"welcome")?;
        theirs.set_nonblocking(true)?;
        self.0.push_back(ours);
        if self.0.len() > 4 {
            self.0.pop_front();
        }
        Ok(theirs.into())
    }
}

fuzz_target!(|bytes: &[u8]| {
    umbra_fuzz::virtio::run(bytes, &|| {
        let host = Host { listener: None, outside: Box::new(Servers::default()) };
        Box::new(Vsock::new(3, host).expect("a thread"))
    });
});
