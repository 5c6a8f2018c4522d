//! Frames on a connection that waits.

use crate::protocol::{BODY_MAX, FAILED, HEAD, head, pair, read_head};
use crate::sys::{EIO, Result, exit, read, write};

/// Writes all of it.
pub fn write_all(fd: i32, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let written = write(fd, bytes)?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

fn read_all(fd: i32, mut bytes: &mut [u8]) -> Result<()> {
    while !bytes.is_empty() {
        match read(fd, bytes)? {
            0 => return Err(EIO),
            n => bytes = bytes.get_mut(n..).unwrap_or_default(),
        }
    }
    Ok(())
}

/// Sends a frame. A host that has gone ends this process.
pub fn send(fd: i32, kind: u32, body: &[u8]) {
    if write_all(fd, &head(kind, body.len())).and_then(|()| write_all(fd, body)).is_err() {
        exit(1);
    }
}

/// Sends two numbers.
pub fn send_pair(fd: i32, kind: u32, first: u32, second: u32) {
    send(fd, kind, &pair(first, second));
}

/// Says what has failed, waits until the host has heard it, and ends this process.
pub fn fail(fd: i32, step: u32, error: i32) -> ! {
    send_pair(fd, FAILED, error as u32, step);
    end(fd);
}

/// Waits until the host closes the connection, so that nothing on its way is lost, and ends this process.
pub fn end(fd: i32) -> ! {
    let mut rest = [0; 4096];
    while matches!(read(fd, &mut rest), Ok(1..)) {}
    exit(0);
}

/// The next frame: its kind, and its body in `body`. A host that has gone or makes no sense ends this process.
pub fn receive(fd: i32, body: &mut [u8; BODY_MAX]) -> (u32, &[u8]) {
    let mut bytes = [0; HEAD];
    let got = read_all(fd, &mut bytes).ok().and_then(|()| read_head(bytes));
    if let Some((kind, len)) = got
        && let Some(body) = body.get_mut(..len)
        && read_all(fd, body).is_ok()
    {
        return (kind, body);
    }
    exit(1);
}
